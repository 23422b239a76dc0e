//! `test`: every test of the workspace, counted.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};

use crate::{ebpf, setup, shell};

/// Results of one or more test binaries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Sets up, builds and tests; the last line counts.
pub fn test(workspace: &Path, without_ebpf: bool, arguments: &[String]) -> anyhow::Result<()> {
    ebpf::require_root("tests make network namespaces and load kernel programs")?;
    setup::setup(workspace, false)?;
    if !without_ebpf {
        ebpf::require_toolchain(workspace).context("give --without-ebpf to test everything else")?;
    }
    // The scenario tests run the daemon, which cargo builds for its own crate's tests only.
    let build = ["build", "--quiet", "--locked", "--release", "--workspace", "--bins"];
    shell::run(shell::cargo(workspace).args(build))?;
    let mut child = shell::cargo(workspace)
        .args(["test", "--locked", "--release", "--workspace", "--no-fail-fast"])
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo test")?;
    let mut total = Tally::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line.context("cannot read what cargo test prints")?;
            println!("{line}");
            total = total.and(Tally::of(&line).unwrap_or_default());
        }
    }
    let status = child.wait()?;
    let Tally { passed, failed, skipped } = total;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 || !status.success() {
        bail!("tests failed");
    }
    if passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

impl Tally {
    /// Reads `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s`.
    fn of(line: &str) -> Option<Self> {
        let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
        let count =
            |what: &str| counts.split("; ").find_map(|part| part.trim().strip_suffix(what)?.trim().parse::<u64>().ok());
        Some(Self { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
    }

    fn and(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_several_binaries_add_up() {
        let lines = [
            "running 3 tests",
            "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
            "test result: FAILED. 176 passed; 6 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.7s",
        ];
        let total = lines.iter().filter_map(|line| Tally::of(line)).fold(Tally::default(), Tally::and);
        assert_eq!(total, Tally { passed: 181, failed: 6, skipped: 1 });
    }
}
