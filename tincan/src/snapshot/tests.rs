//! The text of snapshots: there and back, damaged, and too old.

use std::time::Instant;

use crate::link::{CandidateKind, Path};
use crate::node::Node;
use crate::wire::candidate::parse_cas;
use crate::wire::fingerprint::Fingerprint;
use crate::wire::mutation::damaged;
use crate::wire::request::RemoteIp;

use super::*;

const OWN: &str = "27bfb1be555a4d5026464af41794985a046965ff";
const PEERS: [&str; 2] = ["c5158e6c1b708a72c6c28485f4b5856d841f1d28", "0000000000000000000000000000000000000001"];
const PASSWORD: &str = "abcdefghijklmnopqrstuvwx";

fn end(name: &str, addresses: &[&str], vni: u32) -> End {
    let item = |address: &&str| format!("1:1:udp:{address}:40001:2122260223:{name}:{PASSWORD}:local:eth0:0:1");
    let text: Vec<String> = addresses.iter().map(item).collect();
    let candidates = parse_cas(&text.join(" ")).candidates;
    assert_eq!(candidates.len(), addresses.len());
    End { candidates, vni }
}

fn link(peer: usize, name: &str, local: &str, remote: &str) -> PlainLink {
    let remote_addr: SocketAddr = remote.parse().unwrap();
    let local_addr: SocketAddr = local.parse().unwrap();
    let path = Path { remote: remote_addr, source: Some(local_addr.ip()), relay: None };
    PlainLink {
        uid: PEERS[peer].parse().unwrap(),
        fingerprint_text: "14:15".to_owned(),
        overlay: if peer == 0 { Overlay::Controller } else { Overlay::Xmpp },
        own: end(name, &["192.0.2.1", "2001-db8--1"], 0x00a1_b2c3),
        peer: end("PeersNameFragment", &["192.0.2.2", "2001-db8--2"], 1),
        generation: 3,
        pair: SelectedPair {
            path,
            local_addr,
            local_kind: CandidateKind::Host,
            remote_addr,
            remote_kind: CandidateKind::PeerReflexive,
        },
        reachable: peer == 0,
        silence: Duration::from_millis(700),
    }
}

fn remote_ip(peer: usize, ip4: &str, ip6: &str) -> Request {
    Request::SetRemoteIp(RemoteIp {
        uid: PEERS[peer].parse().unwrap(),
        ip4: ip4.parse().unwrap(),
        ip4_text: ip4.to_owned(),
        ip6: ip6.parse().unwrap(),
        ip6_text: ip6.to_owned(),
    })
}

/// Two links, over IPv4 and over IPv6.
pub(crate) fn snapshot() -> Snapshot {
    Snapshot {
        taken: BootTime {
            boot_id: "0f0c2f0e-8f5e-4d9c-9a0e-aaaaaaaaaaaa".to_owned(),
            uptime: Duration::from_millis(123_456),
        },
        plain_port: 40001,
        callback: Some("127.0.0.1:40000".parse().unwrap()),
        node: NodeSnapshot {
            local: LocalIp {
                uid: OWN.parse().unwrap(),
                ip4: "172.16.0.1".parse().unwrap(),
                ip4_text: "172.16.0.1".to_owned(),
                ip6: "fd50:dbc::1".parse().unwrap(),
                ip6_text: "fd50:0dbc:0000::1".to_owned(),
                ip4_mask: 24,
                ip6_mask: 64,
                subnet_mask: 32,
            },
            calls: vec![
                Request::SetSwitchMode { enabled: false },
                Request::SetNetworkIgnoreList { interfaces: vec!["docker0".to_owned()] },
                remote_ip(0, "172.16.0.2", "fd50:dbc::2"),
                remote_ip(1, "172.16.0.3", "fd50:dbc::3"),
            ],
            links: vec![
                link(0, "OwnName000000001", "192.0.2.1:40001", "192.0.2.2:40001"),
                link(1, "OwnName000000002", "[2001:db8::1]:40001", "[2001:db8::2]:40001"),
            ],
        },
    }
}

/// The error of a snapshot of which one text was replaced.
fn refusal(from: &str, to: &str) -> SnapshotError {
    let text = String::from_utf8(snapshot().encode()).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    Snapshot::decode(text.replace(from, to).as_bytes()).unwrap_err()
}

#[test]
fn what_is_written_reads_back() {
    assert_eq!(Snapshot::decode(&snapshot().encode()), Ok(snapshot()));
}

#[test]
fn it_is_gone_on_with_in_the_same_boot_for_as_long_as_the_lease() {
    let (snapshot, lease) = (snapshot(), Duration::from_secs(60));
    let at = |uptime: Duration| BootTime { uptime, ..snapshot.taken.clone() };
    let age = |now: &BootTime| snapshot.age(now, lease);
    assert_eq!(age(&at(snapshot.taken.uptime)), Ok(Duration::ZERO));
    assert_eq!(age(&at(snapshot.taken.uptime + lease)), Ok(lease));
    let late = lease + Duration::from_millis(1);
    assert_eq!(age(&at(snapshot.taken.uptime + late)), Err(SnapshotError::Expired { age: late, lease }));
    assert_eq!(age(&at(Duration::ZERO)), Err(SnapshotError::Future));
    let other = BootTime { boot_id: "another".to_owned(), ..snapshot.taken.clone() };
    assert_eq!(age(&other), Err(SnapshotError::OtherBoot));
}

#[test]
fn a_link_is_forwarded_for_no_longer_than_the_lease_after_the_last_answer_however_often_it_is_resumed() {
    let (mut node, lease) = (snapshot().node, Duration::from_secs(60));
    for resumed in 1..=3 {
        node = node.aged(Duration::from_secs(20), lease);
        assert_eq!(node.links[0].reachable, resumed < 3, "{:?}", node.links[0].silence);
    }
}

#[test]
fn what_no_daemon_wrote_is_refused_and_never_repeated() {
    for (from, to, expected) in [
        ("\"version\":1", "\"version\":2", SnapshotError::Version(2)),
        ("\"version\":1", "\"version\":-1", SnapshotError::Damaged),
        ("\"plain_port\":40001", "\"plain_port\":0", SnapshotError::Damaged),
        ("\"plain_port\"", "\"plain_port\":7,\"further\"", SnapshotError::Damaged),
        ("set_switchmode", "get_state", SnapshotError::Damaged),
        ("\"m\":\"set_local_ip\"", "\"m\":\"trim_link\"", SnapshotError::Damaged),
    ] {
        assert_eq!(refusal(from, to), expected, "{from} -> {to}");
    }
    for (from, to) in [
        ("\"sec\":false", "\"sec\":true"),
        ("vni=a1b2c3", "vni=000000"),
        ("vni=000001", "vni=0"),
        ("sec=none", "sec=dtls"),
        ("\"generation\":3", "\"generation\":4294967295"),
        ("OwnName000000001", "OwnName1"),
        ("OwnName000000001", "OwnName000000002"),
        (PEERS[1], PEERS[0]),
        (PEERS[1], OWN),
        ("\"remote_kind\":\"prflx\"", "\"remote_kind\":\"relay\""),
        ("\"remote_addr\":\"192.0.2.2:40001\"", "\"remote_addr\":\"192.0.2.2:0\""),
        ("\"remote_addr\":\"192.0.2.2:40001\"", "\"remote_addr\":\"224.0.0.1:40001\""),
        ("\"remote_addr\":\"192.0.2.2:40001\"", "\"remote_addr\":\"[::ffff:192.0.2.2]:40001\""),
        ("\"source\":\"192.0.2.1\"", "\"source\":\"2001:db8::1\""),
    ] {
        let error = refusal(from, to);
        assert!(matches!(error, SnapshotError::Link { .. }), "{from} -> {to}: {error:?}");
    }
}

#[test]
fn damaged_snapshots_are_refused_or_sound_and_a_node_takes_them_without_harm() {
    damaged(&[snapshot().encode()], |input| match Snapshot::decode(input) {
        Ok(read) => {
            assert_eq!(Snapshot::decode(&read.encode()).as_ref(), Ok(&read));
            let mut node = Node::new(1);
            let links = read.node.links.len();
            let node_snapshot = read.node.aged(Duration::from_secs(1), Duration::from_secs(60));
            assert!(node.resume(Instant::now(), node_snapshot, Fingerprint::Sha256([1; 32])) <= links);
            while node.poll_output().is_some() {}
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty() && !error.to_string().contains(PASSWORD));
            false
        }
    });
}
