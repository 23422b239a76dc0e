//! The command line: `tincan daemon`, `tincan status`, `tincan call`, `tincan doctor`, `tincan cleanup`.

mod call;
mod cleanup;
mod status;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::client::Client;
use crate::config::{DaemonOptions, LogControl, default_socket};
use crate::doctor::{self, DoctorOptions};

/// A peer-to-peer overlay network.
#[derive(Parser, Debug)]
#[command(name = "tincan", version)]
pub struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the daemon in the foreground, until SIGTERM or SIGINT
    Daemon(Box<DaemonOptions>),
    /// Show this node, its peers and their paths
    Status {
        #[command(flatten)]
        target: Target,
        /// Print the daemon's answer as JSON
        #[arg(long)]
        json: bool,
    },
    /// Call a method of the controller API, as in: `tincan call set_logging logging=3`
    Call {
        #[command(flatten)]
        target: Target,
        /// Name of the method
        method: String,
        /// Its parameters
        #[arg(value_name = "KEY=VALUE")]
        parameters: Vec<String>,
    },
    /// Remove what dead daemons left in this network namespace: kernel programs, TAPs, helper devices; exit status 1 if a
    /// running daemon keeps some of it
    Cleanup {
        /// Only what belongs to this TAP
        #[arg(long, value_name = "NAME")]
        tap: Option<String>,
        /// Print what was removed as JSON
        #[arg(long)]
        json: bool,
    },
    /// Look whether this host and the servers are fit for a node; exit status 1 if something is a problem
    Doctor(Box<DoctorOptions>),
}

/// Which daemon is meant.
#[derive(Args, Debug)]
struct Target {
    /// Unix socket of the daemon [default: named after the TAP, in /run/tincan]
    #[arg(long, value_name = "PATH", conflicts_with = "tap")]
    socket: Option<PathBuf>,
    /// TAP of the daemon
    #[arg(long, value_name = "NAME", default_value = "ipop")]
    tap: String,
}

impl Target {
    fn connect(self) -> anyhow::Result<Client> {
        Client::connect(self.socket.unwrap_or_else(|| default_socket(&self.tap)))
    }
}

/// Carries out the command line; an error is printed and makes exit status 1.
#[must_use]
pub fn run(line: CommandLine) -> ExitCode {
    let result = match line.command {
        Command::Daemon(options) => run_daemon(*options).map(|()| ExitCode::SUCCESS),
        Command::Status { target, json } => status::print(target.connect(), json).map(|()| ExitCode::SUCCESS),
        Command::Call { target, method, parameters } => {
            call::print(target.connect(), &method, &parameters).map(|()| ExitCode::SUCCESS)
        }
        Command::Cleanup { tap, json } => cleanup::print(tap.as_deref(), json),
        Command::Doctor(options) => run_doctor(*options),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tincan: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot print the answer"),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn run_daemon(options: DaemonOptions) -> anyhow::Result<()> {
    let config = options.resolve()?;
    let log = LogControl::start(config.log)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(crate::daemon::run(config, log))
}

fn run_doctor(options: DoctorOptions) -> anyhow::Result<ExitCode> {
    let json = options.json;
    let report = doctor::run(options)?;
    let text = if json { format!("{:#}\n", report.to_json()) } else { report.to_string() };
    print(&text)?;
    Ok(if report.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_daemon_is_named_by_its_tap_or_by_its_socket_but_not_by_both() {
        let parse = |words: &[&str]| CommandLine::try_parse_from([&["tincan", "status"], words].concat());
        for (words, socket, tap) in [
            (&["--tap", "blue"][..], None, "blue"),
            (&["--socket", "/tmp/s", "--json"], Some(PathBuf::from("/tmp/s")), "ipop"),
        ] {
            let Command::Status { target, .. } = parse(words).unwrap().command else { panic!("status was asked") };
            assert_eq!((target.socket, target.tap.as_str()), (socket, tap));
        }
        assert!(parse(&["--tap", "blue", "--socket", "/tmp/s"]).is_err());
    }
}
