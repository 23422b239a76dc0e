//! `cargo xtask bench plain` runs and reports every figure; what the figures are is no test's business.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

#[test]
fn every_figure_of_every_design_is_reported() -> Result<()> {
    let words = "--settings gro --designs vxlan,kernel --rounds 1 --seconds 1 --json";
    let output = Command::new(env!("CARGO_BIN_EXE_plain-bench")).args(words.split(' ')).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| said.to_string())?;
    for design in ["vxlan", "tincan_kernel"] {
        let figures = &report["settings"]["gro"][design];
        for name in ["tcp1_gbps", "tcp4_gbps", "pps", "flood_pps", "rtt_us", "rtt_p99_us", "cpu_s_per_gbit"] {
            let value = figures[name].as_f64().with_context(|| format!("{design} has no {name}: {report}"))?;
            // With a busy receiver no rate need arrive whole within so short a time.
            ensure!(value > 0.0 || (name == "pps" && value == 0.0), "{design}: {name} is {value}");
        }
    }
    Ok(())
}

#[test]
fn unknown_words_are_refused() -> Result<()> {
    for words in ["--settings none", "--designs carrier-pigeon", "--rounds 0"] {
        let output = Command::new(env!("CARGO_BIN_EXE_plain-bench")).args(words.split(' ')).output()?;
        ensure!(!output.status.success(), "{words} was taken");
    }
    Ok(())
}
