//! Debian packages: what is missing, and installing it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use crate::shell;

/// To build: a C and C++ compiler, `BoringSSL`'s cmake, bindgen's libclang.
pub const BUILD: [&str; 5] = ["build-essential", "cmake", "clang", "libclang-dev", "git"];

/// To test: networks, NATs, servers, captures, loads.
pub const TEST: [&str; 6] = ["iproute2", "nftables", "coturn", "iperf3", "procps", "ethtool"];

/// Asked by Debian's maintainer scripts before they start a service; 101 means "do not" (policy-rc.d of invoke-rc.d).
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";

/// Whether packages can be installed here.
pub fn has_apt() -> bool {
    shell::find("apt-get").is_some() && shell::find("dpkg-query").is_some()
}

/// Those that are not installed.
pub fn missing<'a>(packages: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    packages.into_iter().filter(|package| !is_installed(package)).map(str::to_owned).collect()
}

fn is_installed(package: &str) -> bool {
    let status = shell::output(Command::new("dpkg-query").args(["-W", "-f=${Status}", package]));
    status.is_some_and(|status| status.ends_with(" installed"))
}

/// Whether apt could install it.
pub fn is_available(package: &str) -> bool {
    let policy = shell::output(Command::new("apt-cache").args(["policy", package])).unwrap_or_default();
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    candidate.is_some_and(|version| version != "(none)")
}

/// Fetches the lists of packages, once: what is on the disk may be older than the packages wanted.
pub fn update() -> anyhow::Result<()> {
    static FETCHED: AtomicBool = AtomicBool::new(false);
    if FETCHED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    println!("setup: fetching the lists of packages");
    shell::run(apt().arg("update").arg("-qq"))
        .context("the lists of packages could not be fetched: is there a network?")
}

/// Installs packages, or newer versions of them, without starting the services in them.
pub fn install(packages: &[String]) -> anyhow::Result<()> {
    update()?;
    println!("setup: installing {}", packages.join(" "));
    let _policy = ServicePolicy::forbid()?;
    shell::run(apt().args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages))
        .context("the packages could not be installed: look at apt's words above")
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(std::process::Stdio::null());
    command
}

/// While this lives, packages start no services; a policy of the host's own is respected and stays.
struct ServicePolicy {
    ours: bool,
}

impl ServicePolicy {
    fn forbid() -> anyhow::Result<Self> {
        let path = Path::new(SERVICE_POLICY);
        if path.exists() {
            return Ok(Self { ours: false });
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(path)
            .with_context(|| format!("cannot write {SERVICE_POLICY}"))?;
        file.write_all(b"#!/bin/sh\nexit 101\n")?;
        Ok(Self { ours: true })
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(SERVICE_POLICY)
        {
            eprintln!("setup: remove {SERVICE_POLICY} yourself, it keeps services from starting: {error}");
        }
    }
}
