//! Programs as filters of clsact: their order, foreign filters and qdiscs beside them, and who removes them.

use std::process::Command;

use aya::programs::tc::{NlOptions, TcAttachOptions};

use super::interfaces::{index_of, ip, nothing_on, programs_on};
use super::lifetimes::{FAR, NEAR, die, enter_place};
use super::*;
use crate::cleanup::{Removed, run};
use crate::dataplane::kernel::pins::{Left, Place};

/// What `tc` prints.
fn tc(arguments: &str) -> String {
    let output = Command::new("tc").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The filters on one side of an interface, in their order: what is shown behind a word of each.
fn shown(interface: &str, side: &str, word: &str) -> Vec<String> {
    let text = tc(&format!("filter show dev {interface} {side}"));
    let of_line = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|other| *other != word).skip(1);
        words.next().map(str::to_owned)
    };
    text.lines().filter_map(of_line).collect()
}

fn names(interface: &str, side: &str) -> Vec<String> {
    shown(interface, side, "name")
}

fn has_qdisc(interface: &str) -> bool {
    tc(&format!("qdisc show dev {interface}")).contains("clsact")
}

fn attach(engine: &mut KernelEngine) {
    engine.attach_tap(index_of(NEAR)).unwrap();
    engine.attach_uplink(index_of(FAR)).unwrap();
}

fn pinned(place: &Place) -> KernelEngine {
    let mut engine = KernelEngine::load_pinned(place.clone().make().unwrap(), false, Way::Clsact).unwrap();
    attach(&mut engine);
    engine.configure(&Settings { tap_index: index_of(NEAR), ..Settings::default() }).unwrap();
    engine
}

/// A filter as another program would add one; it goes with the engine.
fn add_foreign(engine: &mut KernelEngine, interface: &str, priority: u16) {
    let options = TcAttachOptions::Netlink(NlOptions { priority, ..NlOptions::default() });
    let program = program(&mut engine.ebpf, CHECKED_INGRESS).unwrap();
    program.attach_with_options(interface, TcAttachType::Ingress, options).unwrap();
}

const ON_UPLINK: [&str; 2] = [UPLINK_INGRESS, PORT_INGRESS];

#[test]
fn filters_have_their_order_and_go_with_an_engine_without_pins_and_so_does_its_qdisc() {
    drop(enter_place());
    let mut engine = engine();
    engine.attach_by_clsact(NEAR);
    attach(&mut engine);
    assert_eq!(names(NEAR, "egress"), [TAP_EGRESS]);
    assert_eq!(names(FAR, "ingress"), ON_UPLINK);
    assert_eq!(names(FAR, "egress"), [PORT_EGRESS]);
    attach(&mut engine);
    assert_eq!(names(FAR, "ingress"), ON_UPLINK, "once is enough");
    drop(engine);
    assert!(!has_qdisc(NEAR) && !has_qdisc(FAR));
}

#[test]
fn foreign_filters_come_first_and_stay_with_their_qdisc() {
    let place = enter_place();
    tc("qdisc add dev far clsact");
    let mut foreign = engine();
    add_foreign(&mut foreign, FAR, 10);
    add_foreign(&mut foreign, FAR, 0);
    let before = tc("filter show dev far ingress");
    let engine = pinned(&place);
    let all = tc("filter show dev far ingress");
    assert!(all.starts_with(&before) && all.len() > before.len(), "{all}");
    assert_eq!(names(FAR, "ingress")[2..], ON_UPLINK);
    drop(engine);
    assert_eq!(tc("filter show dev far ingress"), before);
    assert!(has_qdisc(FAR) && !has_qdisc(NEAR));
}

#[test]
fn a_qdisc_of_somebody_else_stays_without_filters_too() {
    let place = enter_place();
    tc("qdisc add dev far clsact");
    drop(pinned(&place));
    assert!(has_qdisc(FAR) && names(FAR, "ingress").is_empty());
    let engine = pinned(&place);
    let mut foreign = super::engine();
    add_foreign(&mut foreign, NEAR, 0);
    drop(engine);
    assert!(has_qdisc(NEAR), "somebody uses it by now");
}

#[test]
fn what_a_dead_engine_left_is_replaced_in_its_place() {
    let place = enter_place();
    die(pinned(&place));
    assert_eq!(names(FAR, "ingress"), ON_UPLINK);
    assert!(place.owns_tap() && matches!(place.look(), Left::Whole(_)), "{:?}", place.look());
    let (handles, ids) = (shown(FAR, "ingress", "handle"), shown(FAR, "ingress", "id"));
    let engine = pinned(&place);
    assert_eq!(
        (names(FAR, "ingress"), shown(FAR, "ingress", "handle")),
        (ON_UPLINK.map(str::to_owned).to_vec(), handles)
    );
    let replaced = shown(FAR, "ingress", "id");
    assert!(replaced.len() == 2 && replaced.iter().all(|id| !ids.contains(id)), "{replaced:?} after {ids:?}");
    drop(engine);
    assert!(!has_qdisc(NEAR) && !has_qdisc(FAR));
}

#[test]
fn what_somebody_took_away_is_attached_again() {
    let place = enter_place();
    let mut engine = pinned(&place);
    assert_eq!(engine.mend().unwrap(), [""; 0]);
    tc("filter del dev far ingress pref 65026");
    assert_eq!(names(FAR, "ingress"), [PORT_INGRESS]);
    assert_eq!(engine.mend().unwrap(), ["uplink_ingress of far"]);
    assert_eq!(names(FAR, "ingress"), ON_UPLINK);
    tc("qdisc del dev far clsact");
    assert_eq!(engine.mend().unwrap().len(), 3);
    assert_eq!((names(FAR, "ingress"), names(FAR, "egress").len()), (ON_UPLINK.map(str::to_owned).to_vec(), 1));
    ip("link del far");
    assert_eq!(engine.mend().unwrap(), [""; 0], "an interface that is gone is no loss");
}

#[test]
fn two_taps_share_an_uplink_and_each_removes_its_own() {
    let place = enter_place();
    let first = pinned(&place);
    let mut second = engine();
    second.attach_by_clsact("other");
    second.attach_uplink(index_of(FAR)).unwrap();
    assert_eq!(names(FAR, "ingress").len(), 4);
    drop(first);
    assert_eq!(names(FAR, "ingress"), ON_UPLINK);
    assert!(has_qdisc(FAR));
    drop(second);
    assert_eq!(names(FAR, "ingress"), [""; 0]);
}

#[test]
fn a_cleanup_removes_filters_whose_tap_is_gone_and_no_others() {
    let place = enter_place();
    ip("link add alive type bridge");
    let mut alive = engine();
    alive.attach_by_clsact("alive");
    alive.attach_uplink(index_of(FAR)).unwrap();
    die(pinned(&place));
    std::fs::remove_dir_all(place.path()).unwrap();
    assert_eq!(names(FAR, "ingress").len(), 4);
    assert_eq!(run(None).unwrap().removed, [], "a device of that name is there");
    ip("link set near name gone");
    assert_eq!(run(Some("another")).unwrap().removed, []);
    let filters = |name: &str| Removed::Filters(name.to_owned());
    assert_eq!(run(Some(NEAR)).unwrap().removed, [filters(FAR), filters("gone")]);
    assert_eq!(names(FAR, "ingress"), ON_UPLINK, "those of the other");
    assert_eq!(run(None).unwrap().removed, []);
}

#[test]
fn an_engine_that_changes_the_way_takes_away_what_the_one_before_attached() {
    let place = enter_place();
    for _ in 0..2 {
        die(super::lifetimes::pinned(&place));
        assert_eq!(programs_on(FAR, TcAttachType::Ingress), ON_UPLINK);
        assert!(!has_qdisc(FAR));
        die(pinned(&place));
        nothing_on(FAR, TcAttachType::Ingress);
        assert_eq!(names(FAR, "ingress"), ON_UPLINK);
    }
    drop(pinned(&place));
}
