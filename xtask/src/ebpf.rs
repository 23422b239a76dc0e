//! `ebpf`: the kernel programs before this kernel's verifier.

mod stack;

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use crate::object::Toolchain;
use crate::{setup, shell};

/// Builds the programs and prints a line for each.
pub fn ebpf(workspace: &Path) -> anyhow::Result<()> {
    setup::setup(workspace, false)?;
    let toolchain = require_toolchain(workspace)?;
    let object = toolchain.build(workspace).map_err(|output| anyhow::anyhow!("{output}"))?;
    let image = fs::read(&object).context("the object is gone")?;
    println!("object: {} bytes", image.len());
    println!("\n{:<20} {:>22}", "program", format!("stack bytes of {}", stack::LIMIT));
    for (program, bytes) in stack::of_programs(&image)? {
        println!("{program:<20} {bytes:>22}");
    }
    println!();
    require_root("the verifier lets nobody else load programs")?;
    shell::run(shell::cargo(workspace).args([
        "run",
        "--quiet",
        "--locked",
        "--release",
        "--package",
        "tincan",
        "--example",
        "verifier",
    ]))
}

/// Fails at any warning in the kernel programs; the distribution's compiler comes without clippy.
pub fn deny_warnings(workspace: &Path) -> anyhow::Result<()> {
    let mut command = require_toolchain(workspace)?.command(workspace);
    // Cargo's own setting: it neither reaches the source of `core` nor builds anything anew.
    shell::run(command.args(["--quiet", "--locked", "-Zwarnings"]).env("CARGO_BUILD_WARNINGS", "deny"))
}

/// An error where the kernel programs cannot be built.
pub fn require_toolchain(workspace: &Path) -> anyhow::Result<Toolchain> {
    Toolchain::recorded(workspace)
        .context("the kernel programs cannot be built here; the lines above say what is missing")
}

/// An error for anyone but root.
pub fn require_root(why: &str) -> anyhow::Result<()> {
    if !shell::is_root() {
        bail!("run this as root: {why}");
    }
    Ok(())
}
