//! `tincan cleanup`: what was removed, in words or as JSON; a failure when something in use had to stay.

use std::process::ExitCode;

use crate::cleanup;

/// Removes, and prints what.
pub fn print(tap: Option<&str>, json: bool) -> anyhow::Result<ExitCode> {
    let report = cleanup::run(tap)?;
    let text = if json { format!("{:#}\n", report.to_json()) } else { report.to_string() };
    super::print(&text)?;
    Ok(if report.kept.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
