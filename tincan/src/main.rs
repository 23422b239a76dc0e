//! The `tincan` program: see `tincan --help`.

use std::process::ExitCode;

use clap::Parser as _;
use tincan::cli::{self, CommandLine};

fn main() -> ExitCode {
    cli::run(CommandLine::parse())
}
