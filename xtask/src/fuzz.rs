//! `fuzz`: every codec under cargo-fuzz, one after the other.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use crate::shell;

/// Where the targets are.
const DIRECTORY: &str = "tincan/fuzz";

/// Runs the named targets, or all, for `seconds` each; stops at the first that finds something.
pub fn fuzz(workspace: &Path, seconds: u32, names: &[String]) -> anyhow::Result<()> {
    let all = targets(workspace)?;
    if let Some(unknown) = names.iter().find(|name| !all.contains(name)) {
        bail!("no fuzz target {unknown}; there are {}", all.join(", "));
    }
    if shell::find("cargo-fuzz").is_none() {
        shell::run(shell::cargo(workspace).args(["install", "--locked", "cargo-fuzz"]))?;
    }
    for target in all.iter().filter(|target| names.is_empty() || names.contains(target)) {
        let directory = workspace.join(DIRECTORY);
        let corpus = directory.join("corpus").join(target);
        fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
        println!("fuzz: {target}, {seconds} s");
        // The sanitizer's flags are nightly's; a stable compiler takes them with this variable.
        shell::run(
            Command::new("cargo")
                .current_dir(workspace.join("tincan"))
                .env("RUSTC_BOOTSTRAP", "1")
                .args(["fuzz", "run", "--fuzz-dir", "fuzz", target])
                .arg(corpus)
                .arg(directory.join("seeds").join(target))
                .args(["--", &format!("-max_total_time={seconds}"), "-print_final_stats=1"])
                .args(["-rss_limit_mb=2048", "-timeout=10"]),
        )?;
    }
    Ok(())
}

fn targets(workspace: &Path) -> anyhow::Result<Vec<String>> {
    let directory = workspace.join(DIRECTORY).join("targets");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let stem = |path: std::path::PathBuf| path.file_stem().map(|name| name.to_string_lossy().into_owned());
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| stem(entry.path())).collect();
    names.sort_unstable();
    Ok(names)
}
