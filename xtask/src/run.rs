//! `run`: the lab, which lives in the tests' crate.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::{ebpf, setup, shell};

/// Sets up, builds, then becomes the lab.
pub fn run(workspace: &Path, arguments: &[String]) -> anyhow::Result<()> {
    become_bin(workspace, "lab", arguments)
}

/// Sets up, builds, then becomes a program of the tests' crate.
pub fn become_bin(workspace: &Path, name: &str, arguments: &[String]) -> anyhow::Result<()> {
    ebpf::require_root("network namespaces and TAPs need it")?;
    setup::setup(workspace, false)?;
    eprintln!("xtask: building (the first time takes some minutes)");
    shell::run(shell::cargo(workspace).args([
        "build",
        "--quiet",
        "--locked",
        "--release",
        "--package",
        "tincan",
        "--package",
        "tincan-tests",
        "--bins",
    ]))?;
    // Beside this program, wherever cargo's target directory is.
    let program = env::current_exe().context("cannot tell where this program is")?.with_file_name(name);
    let error = Command::new(&program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}
