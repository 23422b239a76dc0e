//! `cargo xtask run`: the lab on the command line.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tincan_tests::lab::{self, Options};

/// Links three hosts in network namespaces by real daemons and shows traffic over the overlay.
#[derive(Parser)]
#[command(name = "cargo xtask run")]
struct CommandLine {
    /// End after this many seconds instead of at Ctrl-C
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Print one JSON object as the last line; everything else goes to standard error
    #[arg(long)]
    json: bool,
    /// Let the nodes find each other through an XMPP server (prosody) in a namespace of its own
    #[arg(long)]
    xmpp: bool,
}

fn main() -> ExitCode {
    let CommandLine { seconds, json, xmpp } = CommandLine::parse();
    match lab::run(&Options { duration: seconds.map(Duration::from_secs), json, xmpp }) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab: {error:#}");
            if json {
                println!("{}", lab::failed());
            }
            ExitCode::FAILURE
        }
    }
}
