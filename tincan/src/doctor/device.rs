//! What the kernel offers: its version, a TAP, kernel programs, UDP offloads. All are really made, and removed again.

use std::fs;

use nix::net::if_::if_nametoindex;

use crate::config::{DaemonConfig, FastPath};
use crate::dataplane::kernel::{KernelEngine, clsact};
use crate::dataplane::port::UdpPort;
use crate::doctor::daemon::Running;
use crate::doctor::report::Check;
use crate::edge::tap::Tap;
use crate::link::PortKind;

const ENGINE: &str = "kernel-engine";
const TAP: &str = "tap";

/// TCX (`tincan/src/dataplane/kernel/attach.rs`) came with this version.
const TCX: (u32, u32) = (6, 6);
/// The oldest the kernel engine was tried on, with clsact in place of TCX.
const KERNEL_ENGINE: (u32, u32) = (6, 1);
/// UDP super-frames on a TAP (`TUN_F_USO4`).
const TAP_USO: (u32, u32) = (6, 2);
/// `UDP_GRO`; `UDP_SEGMENT` is older.
const UDP_GRO: (u32, u32) = (5, 0);

/// The checks `kernel`, `tap`, `kernel-engine` and `offload`.
pub fn checks(config: &DaemonConfig, running: Option<&Running>) -> Vec<Check> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let name = format!("tincan{}", std::process::id());
    let made = Tap::create(&name);
    let segments_udp = made.as_ref().ok().map(Tap::segments_udp);
    let engine = engine(config, made.as_ref().ok());
    let tap = match made {
        Ok(made) => {
            drop(made);
            if if_nametoindex(&*name).is_ok() {
                Check::problem(TAP, format!("the TAP {name} was made and does not go away"), "ip link del it by hand")
            } else {
                configured_tap(&config.tap, running)
            }
        }
        Err(error) => Check::problem(TAP, format!("{error:#}"), ""),
    };
    vec![kernel(release.trim(), config.fast_path), tap, engine, offload(segments_udp)]
}

fn configured_tap(name: &str, running: Option<&Running>) -> Check {
    let exists = if_nametoindex(name).is_ok();
    match running {
        Some(daemon) if exists && daemon.tap == name => {
            Check::ok(TAP, format!("TAPs can be made; {name} is the running daemon's"))
        }
        Some(_) | None if exists => Check::problem(
            TAP,
            format!("a network device {name} exists already and is no running daemon's"),
            "remove what a dead daemon left (tincan cleanup), or choose another name by --tap; if a daemon with another --socket made it, name that",
        ),
        Some(_) | None => Check::ok(TAP, format!("TAPs can be made, and the name {name} is free")),
    }
}

fn kernel(release: &str, fast_path: FastPath) -> Check {
    const NAME: &str = "kernel";
    let Some(version) = parse_version(release) else {
        return Check::warning(NAME, format!("the kernel's version {release:?} cannot be read"), "");
    };
    if version >= TCX {
        return Check::ok(NAME, format!("Linux {release} has all that is used (TCX, UDP GSO and GRO, USO on TAPs)"));
    }
    let mut missing = Vec::new();
    if version < KERNEL_ENGINE {
        missing.push("parts that the kernel engine needs (6.1)");
    }
    if version < TAP_USO {
        missing.push("UDP super-frames on a TAP (6.2)");
    }
    if version < UDP_GRO {
        missing.push("UDP_GRO (5.0)");
    }
    if missing.is_empty() {
        return Check::ok(NAME, format!("Linux {release} has what is used, clsact in place of TCX (6.6)"));
    }
    let found = format!("Linux {release} lacks {}", missing.join(", "));
    if fast_path == FastPath::On && version < KERNEL_ENGINE {
        return Check::problem(NAME, found, "use Linux 6.1 or newer, or --fast-path auto");
    }
    Check::warning(NAME, found, "links work, slower; Linux 6.6 or newer has all")
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Loads the programs, and attaches them to `tap` where there is one.
fn engine(config: &DaemonConfig, tap: Option<&Tap>) -> Check {
    let fast_path = config.fast_path;
    if fast_path == FastPath::Off {
        return Check::skipped(ENGINE, "switched off (fast-path off)", "");
    }
    let loaded = KernelEngine::load().and_then(|mut engine| {
        if let Some(tap) = tap {
            if config.attach.is_clsact(clsact::has_tcx) {
                engine.attach_by_clsact(tap.name());
            }
            engine.attach_tap(tap.index())?;
        }
        let way = if engine.is_by_clsact() { "clsact" } else { "TCX" };
        Ok((engine.reports()?, way))
    });
    match loaded {
        Ok((reports, way)) if tap.is_some() => {
            Check::ok(ENGINE, format!("{} program(s) load and attach to a TAP by {way}", reports.len()))
        }
        Ok((reports, _)) => Check::ok(ENGINE, format!("{} program(s) load (no TAP to attach them to)", reports.len())),
        Err(error) if fast_path == FastPath::On => {
            Check::problem(ENGINE, format!("{error:#}"), "use --fast-path auto, or mend what is named")
        }
        Err(error) => {
            Check::warning(ENGINE, format!("{error:#}"), "user space carries everything: links work, with more CPU")
        }
    }
}

/// `segments_udp`: whether a TAP hands out UDP super-frames, where one could be made.
fn offload(segments_udp: Option<bool>) -> Check {
    const NAME: &str = "offload";
    let port = match UdpPort::bind(PortKind::Secured, 0) {
        Ok(port) => port,
        Err(error) => return Check::problem(NAME, format!("no UDP socket can be had: {error}"), ""),
    };
    let (sent, received) = (port.max_segments(), port.max_coalesced());
    let tap = match segments_udp {
        Some(true) => "; TAPs hand out UDP super-frames",
        Some(false) => "; TAPs hand out no UDP super-frames (Linux 6.2 does)",
        None => "",
    };
    let found = format!("UDP GSO: {sent} datagrams a call, GRO: {received}{tap}");
    if sent > 1 && received > 1 {
        Check::ok(NAME, found)
    } else {
        Check::warning(NAME, found, "links work, with more CPU; a newer kernel has both")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::State;

    #[test]
    fn versions_are_read_from_every_kind_of_release() {
        for (release, version) in [
            ("6.18.44-fc-v657", Some((6, 18))),
            ("6.6", Some((6, 6))),
            ("5.15-rc1", Some((5, 15))),
            ("", None),
            ("linux", None),
            ("6", None),
            ("99999999999.1", None),
        ] {
            assert_eq!(parse_version(release), version, "{release}");
        }
    }

    #[test]
    fn an_old_kernel_is_a_problem_only_where_its_engine_is_asked_for() {
        for (release, fast_path, state) in [
            ("6.6.0", FastPath::On, State::Ok),
            ("6.5.0", FastPath::On, State::Ok),
            ("6.1.0", FastPath::On, State::Warning),
            ("6.0.0", FastPath::On, State::Problem),
            ("6.0.0", FastPath::Auto, State::Warning),
            ("6.5.0", FastPath::Off, State::Ok),
            ("6.1.0", FastPath::Off, State::Warning),
            ("4.19.0", FastPath::Auto, State::Warning),
            ("", FastPath::Auto, State::Warning),
        ] {
            assert_eq!(kernel(release, fast_path).state, state, "{release}");
        }
        assert!(kernel("4.19.0", FastPath::Auto).found.contains("UDP_GRO"));
    }

    #[test]
    fn a_device_of_the_configured_name_is_the_daemons_or_a_problem() {
        let running = |tap: &str| Running { tap: tap.to_owned() };
        assert_eq!(configured_tap("lo", Some(&running("lo"))).state, State::Ok);
        assert_eq!(configured_tap("lo", Some(&running("ipop"))).state, State::Problem);
        assert_eq!(configured_tap("lo", None).state, State::Problem);
        assert_eq!(configured_tap("no-such-device", None).state, State::Ok);
    }
}
