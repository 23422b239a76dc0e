//! `ci`: everything a change must pass, cheapest first.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;

use crate::{ebpf, setup, shell, test, tidy};

/// Stops at the first step that fails.
pub fn ci(workspace: &Path) -> anyhow::Result<()> {
    step("setup", || setup::setup(workspace, false))?;
    step("tidy", || tidy::tidy(workspace))?;
    step("format", || {
        shell::run(shell::cargo(workspace).args(["fmt", "--all", "--check"]))?;
        for apart in ["tincan-ebpf", "tincan/fuzz"] {
            shell::run(shell::cargo(&workspace.join(apart)).args(["fmt", "--check"]))?;
        }
        Ok(())
    })?;
    step("kernel programs", || ebpf::deny_warnings(workspace))?;
    step("lints", || {
        shell::run(
            shell::cargo(workspace)
                .args(["clippy", "--quiet", "--locked", "--release", "--workspace", "--all-targets"])
                .args(["--", "-D", "warnings"]),
        )
    })?;
    step("documents", || {
        shell::run(
            shell::cargo(workspace)
                .args([
                    "doc",
                    "--quiet",
                    "--locked",
                    "--release",
                    "--workspace",
                    "--no-deps",
                    "--document-private-items",
                ])
                .env("RUSTDOCFLAGS", "-D warnings"),
        )
    })?;
    step("tests", || test::test(workspace, false, &[]))
}

fn step(name: &'static str, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let start = Instant::now();
    work().with_context(|| format!("{name}: not in order"))?;
    println!("ci: {name} in order, {} s", start.elapsed().as_secs());
    Ok(())
}
