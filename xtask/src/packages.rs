//! Debian packages: what is missing, and installing it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;

use anyhow::Context;

use crate::shell;

/// To build: a C and C++ compiler, `BoringSSL`'s cmake, bindgen's libclang.
pub const BUILD: [&str; 5] = ["build-essential", "cmake", "clang", "libclang-dev", "git"];

/// To test: networks, NATs, servers, loads.
pub const TEST: [&str; 8] = ["iproute2", "nftables", "coturn", "iperf3", "procps", "ethtool", "prosody", "openssl"];

/// Asked by Debian's maintainer scripts before they start a service; 101 means "do not" (policy-rc.d of invoke-rc.d).
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";
/// Forbids only what our own apt starts: if we are killed and the file stays, it does no harm.
const POLICY: &str =
    "#!/bin/sh\n# Of tincan's `cargo xtask setup`; may be removed.\n[ -z \"$TINCAN_SETUP\" ] || exit 101\n";
/// Marks our own apt for that policy.
const MARK: (&str, &str) = ("TINCAN_SETUP", "1");

/// Whether this is a Debian.
pub fn has_apt() -> bool {
    shell::find("apt-get").is_some() && shell::find("dpkg-query").is_some()
}

/// Whether packages can be installed here and now.
pub fn may_install() -> bool {
    has_apt() && shell::is_root()
}

/// The command for a person.
pub fn by_hand(packages: &[String]) -> String {
    format!("apt-get install --no-install-recommends {}", packages.join(" "))
}

/// Those that are not installed.
pub fn missing<'a>(packages: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    packages.into_iter().filter(|package| !is_installed(package)).map(str::to_owned).collect()
}

fn is_installed(package: &str) -> bool {
    let status = shell::output(Command::new("dpkg-query").args(["-W", "-f=${Status}", package]));
    status.is_some_and(|status| status.ends_with(" installed"))
}

/// The version apt would install, which may be the one installed.
pub fn candidate(package: &str) -> Option<String> {
    policy(package, "Candidate: ")
}

/// Whether apt has another version than the one installed, or none is installed.
pub fn can_change(package: &str) -> bool {
    candidate(package) != policy(package, "Installed: ")
}

fn policy(package: &str, label: &str) -> Option<String> {
    let policy = shell::output(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"))?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix(label))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Fetches the lists of packages, once. Old lists may do, so that a failure is told and no error.
pub fn update() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        shell::say("fetching the lists of packages");
        if let Err(error) = shell::run(apt().arg("update").arg("-qq")) {
            shell::say(&format!("the lists of packages stay as they are: {error:#}"));
        }
    });
}

/// Installs packages, or newer versions of them, without starting the services in them; removes none.
pub fn install(packages: &[String]) -> anyhow::Result<()> {
    update();
    shell::say(&format!("installing {}", packages.join(" ")));
    let _policy = ServicePolicy::forbid().with_context(|| format!("cannot write {SERVICE_POLICY}"))?;
    shell::run(apt().args(["install", "-y", "-qq", "--no-install-recommends", "--no-remove"]).args(packages))
        .context("the packages could not be installed: look at apt's words above")
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    // A host that has just started may be upgrading itself.
    command.args(["-o", "DPkg::Lock::Timeout=300"]);
    command.env("DEBIAN_FRONTEND", "noninteractive").env(MARK.0, MARK.1).stdin(Stdio::null()).stdout(io::stderr());
    command
}

/// While this lives, our packages start no services; a policy of the host's own is respected and stays.
struct ServicePolicy {
    ours: bool,
}

impl ServicePolicy {
    fn forbid() -> io::Result<Self> {
        let path = Path::new(SERVICE_POLICY);
        if path.exists() {
            // One that an interrupted setup left is as good as new.
            return Ok(Self { ours: fs::read_to_string(path).is_ok_and(|text| text == POLICY) });
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(path)?;
        let policy = Self { ours: true };
        file.write_all(POLICY.as_bytes())?;
        Ok(policy)
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(SERVICE_POLICY)
        {
            shell::say(&format!("{SERVICE_POLICY} could not be removed: {error}"));
        }
    }
}
