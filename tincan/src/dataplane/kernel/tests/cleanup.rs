//! `tincan cleanup` among pins, devices and namespaces that go with the test's thread.

use std::fs::{self, File};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use super::interfaces::{ip, nothing_on};
use super::lifetimes::{FAR, NEAR, die, enter_place, pinned};
use super::*;
use crate::cleanup::{CleanupReport, Removed, run};
use crate::dataplane::kernel::pins::Place;
use crate::edge::tap::Tap;

fn removed_pins(place: &Place) -> CleanupReport {
    let pins = Removed::Pins(place.path().display().to_string());
    CleanupReport { removed: vec![pins], kept: vec![] }
}

/// A device with the alias of a helper.
fn make_helper(name: &str, alias: &str) {
    ip(&format!("link add {name} type bridge"));
    let status = Command::new("ip").args(["link", "set", name, "alias", alias]).status().unwrap();
    assert!(status.success());
}

fn devices() -> Vec<String> {
    nix::net::if_::if_nameindex().unwrap().iter().map(|device| device.name().to_str().unwrap().to_owned()).collect()
}

#[test]
fn only_what_was_asked_for_is_removed() {
    let place = enter_place();
    die(pinned(&place));
    assert_eq!(run(Some(FAR)).unwrap(), CleanupReport::default());
    assert!(place.owns_tap());
    // The device that stands for the TAP is none: it can be no daemon's, and pins of it are refused before they go.
    assert!(run(Some(NEAR)).is_err() && place.owns_tap());
    ip("link del near");
    assert_eq!(run(Some(NEAR)).unwrap(), removed_pins(&place));
    assert_eq!(run(None).unwrap(), CleanupReport::default());
}

#[test]
fn a_half_written_directory_is_removed() {
    let place = enter_place();
    die(pinned(&place));
    fs::remove_file(place.layout().join(TAP_EGRESS)).unwrap();
    nothing_on(NEAR, TcAttachType::Egress);
    assert_eq!(run(None).unwrap(), removed_pins(&place));
    nothing_on(FAR, TcAttachType::Ingress);
    assert!(devices().contains(&NEAR.to_owned()), "a device that no pin is on");
}

#[test]
fn another_namespace_is_left_alone_until_it_is_gone() {
    let place = enter_place();
    die(pinned(&place));
    let home = File::open("/proc/thread-self/ns/net").unwrap();
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    assert!(!place.is_here());
    assert_eq!(run(None).unwrap(), CleanupReport::default());
    setns(&home, CloneFlags::CLONE_NEWNET).unwrap();
    assert!(place.owns_tap(), "the links of another namespace were touched");
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    drop(home);
    let start = Instant::now();
    while place.tap_interface() != Some(0) {
        assert!(start.elapsed() < Duration::from_secs(10), "the namespace does not go");
        std::thread::yield_now();
    }
    assert_eq!(run(None).unwrap(), removed_pins(&place));
}

#[test]
fn helper_devices_go_when_their_tap_is_gone() {
    let _place = enter_place();
    make_helper("blue-gro", "tincan helper of blue");
    make_helper("red-gro", "tincan helper of red");
    make_helper("foreign", "not a tincan helper of blue");
    let tap = Tap::create("blue").unwrap();
    let helper = |name: &str| CleanupReport { removed: vec![Removed::Helper(name.to_owned())], kept: vec![] };
    assert_eq!(run(Some("blue")).unwrap(), CleanupReport::default(), "its daemon lives");
    assert_eq!(run(None).unwrap(), helper("red-gro"));
    drop(tap);
    assert_eq!(run(Some("blue")).unwrap(), helper("blue-gro"));
    assert!(devices().contains(&"foreign".to_owned()));
}
