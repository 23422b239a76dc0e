//! The programs on real interfaces of a namespace that goes with the test's thread.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use super::*;

pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

pub fn enter_fresh_namespace() {
    assert!(geteuid().is_root(), "this test makes a network namespace: run it as root");
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
}

pub fn index_of(interface: &str) -> u32 {
    nix::net::if_::if_nametoindex(interface).unwrap()
}

/// Waits until no program is there: a process another test just began may hold the engine's files for a moment.
pub fn nothing_on(interface: &str, side: TcAttachType) {
    let start = Instant::now();
    while programs_on(interface, side) != [""; 0] {
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", programs_on(interface, side));
        thread::yield_now();
    }
}

pub fn programs_on(interface: &str, side: TcAttachType) -> Vec<String> {
    let (_, programs) = SchedClassifier::query_tcx(interface, side).unwrap();
    programs.iter().map(|program| program.name_as_str().unwrap().to_owned()).collect()
}

#[test]
fn programs_are_attached_once_and_go_with_the_engine() {
    enter_fresh_namespace();
    ip("link add near type veth peer name far");
    let mut engine = engine();
    engine.attach_tap(index_of("near")).unwrap();
    let index = index_of("far");
    engine.attach_uplink(index).unwrap();
    engine.attach_uplink(index).unwrap();
    assert_eq!(programs_on("near", TcAttachType::Egress), [TAP_EGRESS]);
    assert_eq!(programs_on("far", TcAttachType::Ingress), [UPLINK_INGRESS, PORT_INGRESS]);
    assert_eq!(programs_on("far", TcAttachType::Egress), [PORT_EGRESS]);
    engine.attach_helper(index_of("near")).unwrap();
    assert_eq!(programs_on("near", TcAttachType::Ingress), [CHECKED_INGRESS]);
    drop(engine);
    nothing_on("near", TcAttachType::Ingress);
    nothing_on("far", TcAttachType::Egress);
    nothing_on("near", TcAttachType::Egress);
    nothing_on("far", TcAttachType::Ingress);
}

#[test]
fn a_foreign_program_stays_where_it_is() {
    enter_fresh_namespace();
    ip("link add near type veth peer name far");
    let (mut foreign, mut own) = (engine(), engine());
    foreign.attach_tap(index_of("near")).unwrap();
    let ids = || SchedClassifier::query_tcx("near", TcAttachType::Egress).unwrap().1;
    let before = ids()[0].id();
    own.attach_tap(index_of("near")).unwrap();
    assert_eq!((ids().len(), ids()[0].id()), (2, before));
    let start = Instant::now();
    drop(own);
    while ids().len() != 1 {
        assert!(start.elapsed() < Duration::from_secs(5), "{} programs", ids().len());
        thread::yield_now();
    }
    assert_eq!(ids()[0].id(), before);
}

#[test]
fn the_loopback_device_is_refused_under_any_name() {
    enter_fresh_namespace();
    ip("link set lo name innocent");
    let error = engine().attach_tap(index_of("innocent")).unwrap_err().to_string();
    assert!(error.contains("loopback"), "{error}");
    let error = engine().attach_uplink(LOOPBACK_INDEX).unwrap_err().to_string();
    assert!(error.contains("loopback"), "{error}");
}

#[test]
fn an_unknown_interface_is_named_in_the_error() {
    enter_fresh_namespace();
    let error = engine().attach_uplink(77).unwrap_err().to_string();
    assert!(error.contains("77"), "{error}");
}

#[test]
fn the_verifier_reports_every_program() {
    let reports = engine().reports().unwrap();
    assert_eq!(reports.len(), PROGRAMS.len());
    assert!(reports.iter().all(|report| report.verified_instructions.is_some_and(|count| count > 0)), "{reports:?}");
}
