//! `cargo xtask bench plain`: the comparison on the command line.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tincan_tests::plain_bench::{self, Design, Options, Setting};

/// Compares plain links with a bare veth and with kernel VXLAN, in network namespaces, taking turns.
#[derive(Parser)]
#[command(name = "cargo xtask bench plain")]
struct CommandLine {
    /// Offloads of the underlay
    #[arg(long, value_delimiter = ',', default_value = "default,off,gro")]
    settings: Vec<Setting>,
    /// What is compared
    #[arg(long, value_delimiter = ',', default_value = "raw,vxlan,kernel,user")]
    designs: Vec<Design>,
    /// Every design is measured once a round; figures are medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of each measurement
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Print one JSON object; everything else goes to standard error
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let CommandLine { settings, designs, rounds, seconds, json } = CommandLine::parse();
    let length = Duration::from_secs(seconds.into());
    match plain_bench::run(&Options { settings, designs, rounds, length, json }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
