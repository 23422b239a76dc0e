//! What this process may do: capabilities(7) and the directories of the daemon.

use std::fs;
use std::path::Path;

use nix::unistd::{AccessFlags, Uid, eaccess};

use crate::config::FastPath;
use crate::doctor::report::Check;

/// Bits of `linux/capability.h`.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

const RUN_AS_ROOT: &str = "run as root (sudo), or give the service AmbientCapabilities=CAP_NET_ADMIN CAP_BPF";

/// The effective capabilities, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Capabilities(u64);

impl Capabilities {
    /// From the text of `/proc/<pid>/status`.
    fn parse(status: &str) -> Option<Self> {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok().map(Self)
    }

    fn has(self, capability: u32) -> bool {
        self.0 >> capability & 1 == 1
    }
}

/// The check `permissions`.
pub fn check(fast_path: FastPath) -> Check {
    const NAME: &str = "permissions";
    let status = fs::read_to_string("/proc/self/status").ok();
    match status.as_deref().and_then(Capabilities::parse) {
        Some(capabilities) => judge(capabilities, Uid::effective(), fast_path),
        None => Check::warning(NAME, "/proc/self/status does not tell this process's capabilities", "mount /proc"),
    }
}

fn judge(capabilities: Capabilities, user: Uid, fast_path: FastPath) -> Check {
    const NAME: &str = "permissions";
    let who = format!("user {user}");
    let bpf = capabilities.has(CAP_BPF) || capabilities.has(CAP_SYS_ADMIN);
    match (capabilities.has(CAP_NET_ADMIN), bpf, fast_path) {
        (false, ..) => {
            let found = format!("{who} lacks CAP_NET_ADMIN: no TAP device, no addresses on it, no kernel engine");
            Check::problem(NAME, found, RUN_AS_ROOT)
        }
        (true, true, _) | (true, false, FastPath::Off) => {
            Check::ok(NAME, format!("{who} may make a TAP and load kernel programs as configured"))
        }
        (true, false, FastPath::Auto) => {
            Check::warning(NAME, format!("{who} lacks CAP_BPF: user space carries everything"), RUN_AS_ROOT)
        }
        (true, false, FastPath::On) => {
            let found = format!("{who} lacks CAP_BPF, and the kernel engine is asked for (fast-path on)");
            Check::problem(NAME, found, RUN_AS_ROOT)
        }
    }
}

/// The check `state-dir`: the daemon can keep its key there.
pub fn state_dir(path: &Path) -> Check {
    const NAME: &str = "state-dir";
    match writable(path) {
        Ok(Some(ancestor)) if ancestor == path => Check::ok(NAME, format!("{} can be written", path.display())),
        Ok(Some(_)) => Check::ok(NAME, format!("{} can be made", path.display())),
        Ok(None) => {
            Check::problem(NAME, format!("{} is no directory", path.display()), "choose another by --state-dir")
        }
        Err(reason) => Check::problem(NAME, reason, "run as root, or choose another by --state-dir"),
    }
}

/// The directory that has to be written for `path` to be one: itself, or its nearest ancestor that exists; `None` where
/// a file is in the way.
pub fn writable(path: &Path) -> Result<Option<&Path>, String> {
    let Some(existing) = path.ancestors().find(|ancestor| ancestor.symlink_metadata().is_ok()) else {
        return Err(format!("{} cannot be looked up", path.display()));
    };
    if !existing.is_dir() {
        return Ok(None);
    }
    match eaccess(existing, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => Ok(Some(existing)),
        Err(error) => Err(format!("user {} cannot write {}: {}", Uid::effective(), existing.display(), error.desc())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::State;

    #[test]
    fn capabilities_are_read_from_the_kernels_text_or_not_at_all() {
        let read = |text| Capabilities::parse(text);
        assert_eq!(read("CapPrm:\t00\nCapEff:\t0000000000001000\n"), Some(Capabilities(1 << 12)));
        for text in ["", "CapEff:", "CapEff:\txyz", "CapEff: 11112222333344445", "CapInh:\t1"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn every_verdict_by_capabilities_and_wish() {
        let (admin, bpf, system) = (1 << CAP_NET_ADMIN, 1 << CAP_BPF, 1 << CAP_SYS_ADMIN);
        for (bits, fast_path, state) in [
            (0, FastPath::Off, State::Problem),
            (bpf, FastPath::Auto, State::Problem),
            (admin, FastPath::Off, State::Ok),
            (admin, FastPath::Auto, State::Warning),
            (admin, FastPath::On, State::Problem),
            (admin | bpf, FastPath::On, State::Ok),
            (admin | system, FastPath::Auto, State::Ok),
        ] {
            let check = judge(Capabilities(bits), Uid::from_raw(65_534), fast_path);
            assert_eq!(check.state, state, "{check:?}");
            assert_eq!(check.advice.contains("root"), state != State::Ok, "{check:?}");
        }
    }

    #[test]
    fn what_does_not_exist_is_judged_by_its_nearest_ancestor() {
        let base = std::env::temp_dir();
        assert_eq!(writable(&base), Ok(Some(base.as_path())));
        let deep = base.join(format!("tincan-no-such-{}/a/b", std::process::id()));
        assert_eq!(writable(&deep), Ok(Some(base.as_path())));
        assert_eq!(writable(Path::new("/proc/self/status/below")), Ok(None));
        assert_eq!(state_dir(Path::new("/proc/self/status")).state, State::Problem);
    }
}
