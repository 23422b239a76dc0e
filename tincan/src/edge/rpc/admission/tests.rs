//! Judgements on listed sockets, memberships and the log's pace; whole daemons are tested in the `tests` crate.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use super::*;

const NOBODY: Uid = Uid::from_raw(65_534);
const OWN: Uid = Uid::from_raw(1000);
const SENDER: &str = "127.0.0.1:4000";
const DOOR: &str = "127.0.0.1:5800";

fn socket(owner: Uid, local: &str, remote: Option<&str>) -> OpenSocket {
    OpenSocket { owner, local: local.parse().unwrap(), remote: remote.map(|remote| remote.parse().unwrap()) }
}

fn verdict(sockets: &[OpenSocket]) -> &'static str {
    match judge(sockets, SENDER.parse().unwrap(), DOOR.parse().unwrap(), |user| user == OWN) {
        Ok(()) => "admitted",
        Err(Refusal::ForeignUser(user)) => {
            assert_eq!(user, NOBODY);
            "foreign"
        }
        Err(Refusal::ClosedSender) => "closed",
        Err(Refusal::FailedLookup(error)) => panic!("{error}"),
    }
}

#[test]
fn a_sender_is_admitted_however_its_socket_is_bound_and_connected() {
    for (local, remote) in
        [("127.0.0.1", None), ("0.0.0.0", None), ("::", None), ("127.0.0.1", Some(DOOR)), ("::", Some(DOOR))]
    {
        assert_eq!(verdict(&[socket(OWN, local, remote)]), "admitted", "{local} {remote:?}");
        assert_eq!(verdict(&[socket(NOBODY, local, remote)]), "foreign", "{local} {remote:?}");
    }
}

#[test]
fn one_foreign_socket_at_the_port_spoils_it_wherever_it_is_bound() {
    let own = socket(OWN, "127.0.0.1", Some(DOOR));
    for foreign in
        [socket(NOBODY, "127.0.0.1", None), socket(NOBODY, "127.0.0.5", None), socket(NOBODY, "::1", Some("[::1]:53"))]
    {
        assert_eq!(verdict(&[own, foreign]), "foreign");
        assert_eq!(verdict(&[foreign, own]), "foreign");
    }
    assert_eq!(verdict(&[own, own]), "admitted");
}

#[test]
fn a_port_that_someone_allowed_took_over_for_something_else_admits_nobody() {
    assert_eq!(verdict(&[]), "closed");
    assert_eq!(verdict(&[socket(OWN, "192.0.2.1", None)]), "closed");
    assert_eq!(verdict(&[socket(OWN, "0.0.0.0", Some("192.0.2.53:53"))]), "closed");
    assert_eq!(verdict(&[socket(OWN, "127.0.0.1", Some("127.0.0.1:5801"))]), "closed");
}

#[test]
fn root_and_the_own_user_are_allowed_and_others_only_by_group() {
    let now = Instant::now();
    let mut closed = Admission { own: OWN, ..Admission::new(None) };
    assert!(closed.is_allowed(Uid::from_raw(0), now) && closed.is_allowed(OWN, now));
    assert!(!closed.is_allowed(NOBODY, now));
    let account = User::from_uid(NOBODY).unwrap().expect("every host has nobody");
    let mut open = Admission { own: OWN, ..Admission::new(Some(account.gid)) };
    assert!(open.is_allowed(NOBODY, now));
    assert!(!open.is_allowed(Uid::from_raw(4_000_000_000), now), "a uid without account is in no group");
    let mut other = Admission { own: OWN, ..Admission::new(Some(Gid::from_raw(4_000_000_000))) };
    assert!(!other.is_allowed(NOBODY, now));
}

#[test]
fn memberships_are_kept_for_a_while_and_never_more_than_the_cap() {
    let start = Instant::now();
    let group = Gid::from_raw(4_000_000_000);
    let mut admission = Admission { own: OWN, ..Admission::new(Some(group)) };
    admission.memberships.insert(NOBODY, (true, start));
    assert!(admission.is_allowed(NOBODY, start + MEMBERSHIP_LIFETIME / 2));
    assert!(!admission.is_allowed(NOBODY, start + MEMBERSHIP_LIFETIME), "an old answer still counts");
    for number in 0..2 * u32::try_from(MAX_MEMBERSHIPS).unwrap() {
        assert!(!admission.is_allowed(Uid::from_raw(3_000_000_000 + number), start));
        assert!(admission.memberships.len() <= MAX_MEMBERSHIPS);
    }
}

#[test]
fn refusals_are_counted_each_and_logged_once_a_minute() {
    let start = Instant::now();
    let mut admission = Admission::new(None);
    let mut note = |refusal: Refusal, at: Duration| admission.note(SENDER.parse().unwrap(), &refusal, start + at);
    assert!(note(Refusal::ForeignUser(NOBODY), Duration::ZERO));
    assert!(!note(Refusal::ForeignUser(NOBODY), LOG_INTERVAL / 2));
    assert!(!note(Refusal::ClosedSender, LOG_INTERVAL / 2));
    assert!(note(Refusal::FailedLookup(io::Error::other("no")), LOG_INTERVAL));
    assert_eq!(admission.counters(), [("foreign_users", 2), ("closed_senders", 1), ("failed_lookups", 1)]);
}

#[test]
fn a_real_sender_is_admitted_while_its_socket_is_open() {
    let mut admission = Admission::new(None);
    let door: SocketAddr = DOOR.parse().unwrap();
    let controller = UdpSocket::bind((IpAddr::from(Ipv4Addr::LOCALHOST), 0)).unwrap();
    let sender = controller.local_addr().unwrap();
    assert!(admission.admits(sender, door));
    drop(controller);
    assert!(!admission.admits(sender, door));
    assert_eq!(admission.counters()[1], ("closed_senders", 1));
}
