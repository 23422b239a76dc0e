//! The lab of `cargo xtask run`: what it prints, how it ends, what it leaves.
//!
//! ```text
//!                 +--- eth0 bob      secured link with alice
//!   switch -------+--- eth0 alice
//!                 +--- eth0 carol    plain link with alice
//! ```

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tincan_tests::netns::{PREFIX, existing};

/// A lab in a process group of its own, as a shell starts it.
fn start(arguments: &[&str]) -> Result<(Child, BufReader<ChildStderr>)> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(arguments)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the lab")?;
    let lines = BufReader::new(child.stderr.take().context("no standard error")?);
    Ok((child, lines))
}

/// Its exit status, the object it printed and nothing beside it; its words for people go to `lines`.
fn end(mut child: Child, mut lines: BufReader<ChildStderr>) -> Result<(bool, Value)> {
    let (mut said, mut printed) = (String::new(), String::new());
    lines.read_to_string(&mut said).context("reading standard error")?;
    child.stdout.take().context("no standard output")?.read_to_string(&mut printed)?;
    let status = child.wait().context("waiting for the lab")?;
    println!("{said}{printed}");
    ensure!(printed.lines().count() == 1, "not exactly one line on standard output: {printed:?}");
    let prefix = format!("{PREFIX}{}-", child.id());
    let left: Vec<String> = existing().into_iter().filter(|name| name.starts_with(&prefix)).collect();
    ensure!(left.is_empty(), "namespaces are left: {left:?}");
    let mut directories = fs::read_dir(env::temp_dir())?.flatten();
    let is_left = directories.any(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    ensure!(!is_left, "a directory is left");
    Ok((status.success(), serde_json::from_str(&printed)?))
}

fn ensure_good(summary: &Value) -> Result<()> {
    ensure!(summary["ok"] == true, "{summary}");
    let links = summary["links"].as_array().context("no links")?;
    ensure!(links.len() == 2, "{summary}");
    for (link, (name, security)) in links.iter().zip([("secured", "dtls"), ("plain", "none")]) {
        ensure!(link["name"] == name && link["security"] == security, "{link}");
        ensure!(link["status"] == "online" && link["path"] == "host", "{link}");
        ensure!(link["ping_sent"].as_u64() >= Some(50) && link["ping_lost"] == 0, "{link}");
        ensure!(link["setup_ms"].is_number() && link["tcp_gbps"].is_number(), "{link}");
        let engine = if name == "plain" { "kernel" } else { "user" };
        let by_user = link["user_engine_percent"].as_f64().context("no user_engine_percent")?;
        ensure!(link["engine"] == engine && (by_user < 1.0) == (engine == "kernel"), "{link}");
    }
    Ok(())
}

#[test]
fn a_lab_with_a_time_ends_by_itself_with_one_object_and_leaves_nothing() -> Result<()> {
    let (child, lines) = start(&["--json", "--for", "1"])?;
    let (succeeded, summary) = end(child, lines)?;
    ensure!(succeeded, "the lab failed");
    ensure_good(&summary)
}

#[test]
fn ctrl_c_ends_a_lab_without_a_lost_ping_and_leaves_nothing() -> Result<()> {
    let (child, mut lines) = start(&["--json"])?;
    let mut line = String::new();
    while !line.starts_with("live figures") {
        line.clear();
        ensure!(lines.read_line(&mut line)? > 0, "the lab ended early");
        print!("{line}");
    }
    // A terminal sends it to the whole group, as here.
    killpg(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT).context("Ctrl-C")?;
    let (succeeded, summary) = end(child, lines)?;
    ensure!(succeeded, "the lab failed: {summary}");
    ensure_good(&summary)
}

#[test]
fn a_lab_that_cannot_start_its_daemons_says_so_and_fails() -> Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["--json", "--for", "1"])
        .env("TINCAN_BIN", "/nonexistent/tincan")
        .output()
        .context("running the lab")?;
    ensure!(!output.status.success(), "a lab without daemons succeeded");
    let summary: Value = serde_json::from_slice(&output.stdout).context("no object on standard output")?;
    ensure!(summary["ok"] == false, "{summary}");
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("alice"), "the reason is missing: {said}");
    Ok(())
}
