//! `test`: every test of the workspace, counted.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::{env, fs};

use anyhow::{Context, bail};

use crate::{ebpf, setup, shell};

/// Where `ip netns` keeps its handles, and how the bench's begin (`tests/src/netns.rs`).
const NAMESPACES: (&str, &str) = ("/run/netns", "tct-");
/// Tests of one binary at a time, where `RUST_TEST_THREADS` does not say: each scenario is several hosts with clocks of
/// their own, and dozens at once would be late for each other.
const THREADS: &str = "2";

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
    let before = abandoned_namespaces();
    let total = run_tests(workspace, arguments);
    let left: Vec<String> = abandoned_namespaces().difference(&before).cloned().collect();
    if !left.is_empty() {
        println!("test: namespaces are left behind, `ip netns del` removes them: {}", left.join(" "));
    }
    let (Tally { passed, failed, skipped }, succeeded) = total?;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 {
        bail!("tests failed");
    }
    if !succeeded {
        bail!("cargo test failed: a test program did not compile or did not end by itself");
    }
    if passed == 0 {
        bail!("no test ran");
    }
    if !left.is_empty() {
        bail!("the tests left namespaces behind");
    }
    Ok(())
}

/// Runs `cargo test`, passing its output on; the sum of its results and whether it succeeded.
fn run_tests(workspace: &Path, arguments: &[String]) -> anyhow::Result<(Tally, bool)> {
    let mut child = shell::cargo(workspace)
        .args(["test", "--locked", "--release", "--workspace", "--no-fail-fast"])
        .args(arguments)
        .env("RUST_TEST_THREADS", env::var_os("RUST_TEST_THREADS").unwrap_or_else(|| THREADS.into()))
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo test")?;
    let mut total = Tally::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("cannot read what cargo test prints")?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            total = total.and(Tally::of(&line).unwrap_or_default());
        }
    }
    Ok((total, child.wait()?.success()))
}

/// Namespaces of the bench whose maker no longer runs. Those of a run beside this one are not ours.
fn abandoned_namespaces() -> BTreeSet<String> {
    let (directory, prefix) = NAMESPACES;
    let Ok(entries) = fs::read_dir(directory) else { return BTreeSet::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| {
            let maker = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next());
            maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
        })
        .collect()
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
