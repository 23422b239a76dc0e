//! Running other programs: one place that says what failed and how.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, bail};

/// Runs a command to its end; anything but exit status 0 is an error that names it.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", name(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", describe(command));
    }
    Ok(())
}

/// What a command prints on standard output, `None` where it does not exist or fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The cargo that runs this program.
pub fn cargo(workspace: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace);
    command
}

/// The first program of this name.
pub fn find(program: &str) -> Option<PathBuf> {
    find_all(program).next()
}

/// Programs of this name in `PATH`, in cargo's own directory of binaries, and where programs of root are.
pub fn find_all(program: &str) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let mut directories: Vec<PathBuf> = env::split_paths(&path).collect();
    directories.extend(cargo_home.map(|home| home.join("bin")));
    directories.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let candidates = directories.into_iter().map(|directory| directory.join(program)).collect::<Vec<_>>();
    candidates.into_iter().filter(|candidate| candidate.is_file())
}

/// One line of progress for the person who waits.
pub fn say(line: &str) {
    eprintln!("setup: {line}");
}

/// Whether this process is root's.
pub fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    // Real, effective, saved, file system (proc(5)).
    ids.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn describe(command: &Command) -> String {
    let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once(name(command)).chain(arguments).collect::<Vec<_>>().join(" ")
}
