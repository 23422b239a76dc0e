//! The project's chores: `cargo xtask setup | run | test | bench | ci | tidy | ebpf | fuzz`.

mod bench;
mod ci;
mod ebpf;
mod fuzz;
mod object;
mod packages;
mod run;
mod setup;
mod shell;
mod test;
mod tidy;
mod toolchain;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's chores.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct CommandLine {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install what building and testing need; elsewhere than on Debian and Ubuntu, say what it is
    Setup {
        /// Only say what is missing
        #[arg(long)]
        dry_run: bool,
    },
    /// Link hosts in network namespaces over real daemons and show traffic
    Run {
        /// Arguments of the lab: --for SECONDS, --json, --xmpp
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run every test, those that need root included
    Test {
        /// Test without the kernel programs where their toolchain cannot be had
        #[arg(long)]
        without_ebpf: bool,
        /// Filters and options of `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Compare with the kernel's own means; figures are ratios within one run
    Bench {
        #[command(subcommand)]
        what: Comparison,
    },
    /// Format, lints, documents, tidy, then every test
    Ci,
    /// Check what lints cannot
    Tidy,
    /// Feed every codec with inputs that coverage guides (cargo-fuzz; takes minutes to build)
    Fuzz {
        /// Seconds for each target
        #[arg(long, default_value_t = 600)]
        seconds: u32,
        /// Targets; all when none is named
        targets: Vec<String>,
    },
    /// Build the kernel programs and show what this kernel's verifier says about them
    Ebpf,
}

#[derive(Subcommand)]
enum Comparison {
    /// Plain links, a bare veth and kernel VXLAN, taking turns
    Plain {
        /// Arguments of the comparison: --settings, --designs, --rounds, --seconds, --json
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let workspace = workspace();
    let result = match CommandLine::parse().chore {
        Chore::Setup { dry_run } => setup::setup(&workspace, dry_run),
        Chore::Run { arguments } => run::run(&workspace, &arguments),
        Chore::Test { without_ebpf, arguments } => test::test(&workspace, without_ebpf, &arguments),
        Chore::Bench { what: Comparison::Plain { arguments } } => bench::plain(&workspace, &arguments),
        Chore::Ci => ci::ci(&workspace),
        Chore::Tidy => tidy::tidy(&workspace),
        Chore::Fuzz { seconds, targets } => fuzz::fuzz(&workspace, seconds, &targets),
        Chore::Ebpf => ebpf::ebpf(&workspace),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace this program was built from.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}
