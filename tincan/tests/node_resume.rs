//! A node that goes on with what another process knew: what it wants done, and what controllers may still change.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use tincan::ice::{IceCommand, IceEvent, Resumption, SelectedPair};
use tincan::link::{CandidateKind, LinkId, Path, PortKind, Role, Security, Traffic};
use tincan::node::{Confirmation, LinkProtection, Node, Output, TrafficSource};
use tincan::snapshot::NodeSnapshot;
use tincan::wire::answer::Answer;
use tincan::wire::candidate::{Candidate, Extension, write_cas};
use tincan::wire::fingerprint::Fingerprint;
use tincan::wire::request::{CreateLink, LocalIp, Overlay, RemoteIp, Request};
use tincan::wire::state::{LinkState, State};
use tincan::wire::uid::Uid;

const OWN: Fingerprint = Fingerprint::Sha256([5; 32]);
const SILENCE: Duration = Duration::from_secs(2);
const PEER_VNI: u32 = 0x0012_3456;

struct NoTraffic;

impl TrafficSource for NoTraffic {
    fn traffic(&self, _link: LinkId) -> Traffic {
        Traffic::default()
    }

    fn engine(&self, _link: LinkId) -> &'static str {
        "user"
    }
}

fn uid(last: u8) -> Uid {
    let mut bytes = [0x50; 20];
    bytes[19] = last;
    Uid::new(bytes)
}

fn local() -> LocalIp {
    let (ip4, ip6) = (Ipv4Addr::new(172, 16, 0, 5), Ipv6Addr::from(0xfd50_u128 << 112 | 5));
    LocalIp {
        uid: uid(5),
        ip4,
        ip4_text: ip4.to_string(),
        ip6,
        ip6_text: ip6.to_string(),
        ip4_mask: 24,
        ip6_mask: 64,
        subnet_mask: 32,
    }
}

fn remote_ip(peer: u8, last: u8) -> Request {
    let (ip4, ip6) = (Ipv4Addr::new(172, 16, 0, last), Ipv6Addr::from(0xfd50_u128 << 112 | u128::from(last)));
    Request::SetRemoteIp(RemoteIp { uid: uid(peer), ip4, ip4_text: ip4.to_string(), ip6, ip6_text: ip6.to_string() })
}

fn candidate(side: &str, kind: CandidateKind) -> Candidate {
    Candidate {
        addr: SocketAddr::from(([192, 0, 2, if side == "own" { 5 } else { 7 }], 4000)),
        priority: 2_122_260_223,
        ufrag: format!("{side:_<16}").replace('_', "0"),
        pwd: "passwordOf24Characters00".to_owned(),
        kind,
        network: "eth0".to_owned(),
    }
}

fn pair(kind: CandidateKind) -> SelectedPair {
    let (own, peer) = (candidate("own", kind).addr, candidate("peer", kind).addr);
    SelectedPair {
        path: Path { remote: peer, source: Some(own.ip()), relay: None },
        local_addr: own,
        local_kind: kind,
        remote_addr: peer,
        remote_kind: CandidateKind::Host,
    }
}

fn create(peer: u8, security: Security) -> CreateLink {
    let fingerprint = Fingerprint::Sha256([9; 32]);
    let extension = Some(Extension { vni: PEER_VNI, security });
    CreateLink {
        uid: uid(peer),
        fingerprint_text: fingerprint.to_string(),
        fingerprint: Some(fingerprint),
        overlay: Overlay::Controller,
        stun: None,
        turn: None,
        security,
        cas: write_cas(&[candidate("peer", CandidateKind::Host)], extension),
    }
}

fn ask(node: &mut Node, request: Request) -> Answer {
    node.handle_request(Instant::now(), request, &NoTraffic)
}

fn outputs(node: &mut Node) -> Vec<Output> {
    std::iter::from_fn(|| node.poll_output()).collect()
}

/// A node with a link to peer 7 on a pair of this kind, and its receive tag.
fn linked(security: Security, kind: CandidateKind) -> (Node, u32) {
    let mut node = Node::new(1);
    node.set_local(local(), OWN);
    ask(&mut node, Request::SetSwitchMode { enabled: true });
    ask(&mut node, remote_ip(7, 7));
    ask(&mut node, remote_ip(8, 8));
    assert_eq!(ask(&mut node, Request::CreateLink(create(7, security))), Answer::Done);
    let opened = outputs(&mut node).into_iter().find_map(|output| {
        let Output::OpenLink { link, protection, .. } = output else { return None };
        let LinkProtection::Plain { receive_vni } = protection else { return Some((link, 0)) };
        Some((link, receive_vni))
    });
    let (link, receive_vni) = opened.expect("the link is opened");
    let now = Instant::now();
    let candidates = vec![candidate("own", kind)];
    node.handle_ice(now, IceEvent::Gathered { link, candidates, problems: Vec::new() });
    node.handle_ice(now, IceEvent::Selected { link, generation: 2, pair: pair(kind) });
    outputs(&mut node);
    (node, receive_vni)
}

fn plain() -> (Node, u32) {
    linked(Security::None, CandidateKind::Host)
}

/// What it keeps, with an age that does not depend on how long the test takes.
fn kept(node: &Node) -> NodeSnapshot {
    let mut snapshot = node.snapshot(Instant::now()).expect("there is a link");
    snapshot.links[0].silence = SILENCE;
    snapshot
}

fn resumed(snapshot: NodeSnapshot) -> (Node, Vec<Output>) {
    let mut node = Node::new(2);
    assert_eq!(node.resume(Instant::now(), snapshot, OWN), 1);
    let wanted = outputs(&mut node);
    (node, wanted)
}

fn state(node: &mut Node) -> State {
    match ask(node, Request::GetState { uid: Some(uid(7)), stats: true }) {
        Answer::State(state) => *state,
        other @ (Answer::Done | Answer::Kept(_) | Answer::Echo(_) | Answer::Refused(_)) => panic!("{other:?}"),
    }
}

fn link(node: &mut Node) -> LinkState {
    state(node).peers.remove(0).link.expect("there is a link")
}

#[test]
fn a_resumed_node_wants_what_the_calls_would_have_led_to() {
    let (before, receive_vni) = plain();
    let (_, wanted) = resumed(kept(&before));
    let (link, seven) = (LinkId(1), uid(7));
    let ip6 = Ipv6Addr::from(0xfd50_u128 << 112 | 7);
    let resumption = Box::new(Resumption {
        own: vec![candidate("own", CandidateKind::Host)],
        peer: vec![candidate("peer", CandidateKind::Host)],
        generation: 2,
        pair: pair(CandidateKind::Host),
        reachable: true,
        silence: SILENCE,
    });
    let expected = [
        Output::SetSwitchMode { enabled: true },
        Output::Ice(IceCommand::IgnoreInterfaces { names: Vec::new() }),
        Output::MapPeer { uid: seven, ip4: Ipv4Addr::new(172, 16, 0, 7), ip6 },
        Output::OpenLink {
            link,
            uid: seven,
            role: Role::Controlled,
            protection: LinkProtection::Plain { receive_vni },
        },
        Output::SetSendTag { link, vni: PEER_VNI },
        Output::SetPath { link, path: pair(CandidateKind::Host).path },
        Output::SetForwarding { link, enabled: true },
        Output::Ice(IceCommand::Resume { link, port: PortKind::Plain, role: Role::Controlled, resumption }),
    ];
    assert_eq!(wanted, expected);
}

#[test]
fn it_reports_the_link_as_before_and_keeps_the_same_snapshot() {
    let (mut before, _) = plain();
    let snapshot = kept(&before);
    let (mut after, _) = resumed(snapshot.clone());
    assert_eq!(kept(&after), snapshot);
    let (old, new) = (link(&mut before), link(&mut after));
    assert!(old.online && new.online);
    assert_eq!((old.fingerprint, old.offer, old.phase), (new.fingerprint, new.offer, new.phase));
    assert_eq!(old.path.map(|path| path.remote_addr), new.path.map(|path| path.remote_addr));
    assert_eq!(state(&mut before).local, state(&mut after).local);
}

#[test]
fn the_age_of_the_last_answer_is_kept_and_grows_until_there_is_another() {
    let (before, _) = plain();
    let (mut node, _) = resumed(kept(&before));
    let later = Instant::now() + Duration::from_secs(10);
    let silence = |node: &Node, at: Instant| node.snapshot(at).expect("there is a link").links[0].silence;
    assert!(silence(&node, later) >= SILENCE + Duration::from_secs(10));
    node.handle_ice(later, IceEvent::RoundTrip { link: LinkId(1), rtt: Duration::from_millis(1) });
    assert_eq!(silence(&node, later + Duration::from_secs(1)), Duration::from_secs(1));
}

#[test]
fn what_cannot_outlive_the_process_is_not_kept() {
    assert_eq!(Node::new(1).snapshot(Instant::now()), None);
    assert_eq!(linked(Security::Dtls, CandidateKind::Host).0.snapshot(Instant::now()), None);
    assert_eq!(linked(Security::None, CandidateKind::Relayed).0.snapshot(Instant::now()), None);
    let (mut node, _) = plain();
    ask(&mut node, Request::TrimLink { uid: uid(7) });
    assert_eq!(node.snapshot(Instant::now()), None);
}

#[test]
fn a_link_that_was_silent_is_resumed_as_offline_and_tried_anew() {
    let (mut before, _) = plain();
    before.handle_ice(Instant::now(), IceEvent::Disconnected { link: LinkId(1), generation: 2 });
    let (mut after, wanted) = resumed(kept(&before));
    assert!(wanted.contains(&Output::SetForwarding { link: LinkId(1), enabled: false }));
    assert_eq!(link(&mut after).phase, "offline");
    let due = after.poll_timeout().expect("it is tried anew");
    after.handle_timeout(due);
    let wanted = outputs(&mut after);
    assert_eq!(wanted, [Output::Ice(IceCommand::Restart { link: LinkId(1), generation: 3 })]);
}

#[test]
fn a_resumed_link_whose_peer_does_not_answer_goes_offline_and_comes_back() {
    let (before, _) = plain();
    let (mut node, _) = resumed(kept(&before));
    node.handle_ice(Instant::now(), IceEvent::Disconnected { link: LinkId(1), generation: 2 });
    assert!(outputs(&mut node).contains(&Output::SetForwarding { link: LinkId(1), enabled: false }));
    node.handle_ice(Instant::now(), IceEvent::Reconnected { link: LinkId(1), generation: 2 });
    assert!(link(&mut node).online);
}

#[test]
fn the_controller_may_say_the_same_again() {
    let (before, _) = plain();
    let (mut node, _) = resumed(kept(&before));
    let again = LocalIp { ip6_text: "fd50:0::5".to_owned(), ..local() };
    assert_eq!(node.confirm_local(&again), Confirmation::Same);
    assert_eq!(state(&mut node).local.ip6, "fd50:0::5", "texts are the controller's");
    assert_eq!(node.confirm_local(&again), Confirmation::Settled, "then the first call wins, as ever");
    assert!(matches!(ask(&mut node, remote_ip(7, 7)), Answer::Kept(_)));
    assert!(matches!(ask(&mut node, Request::CreateLink(create(7, Security::None))), Answer::Kept(_)));
    assert_eq!(outputs(&mut node), []);
    assert_eq!(ask(&mut node, Request::TrimLink { uid: uid(7) }), Answer::Done);
    assert_eq!(ask(&mut node, Request::CreateLink(create(7, Security::None))), Answer::Done);
}

#[test]
fn the_controller_may_name_another_node_and_begins_afresh() {
    let (before, _) = plain();
    let (mut node, _) = resumed(kept(&before));
    let other = LocalIp { uid: uid(6), ..local() };
    assert_eq!(node.confirm_local(&other), Confirmation::Other(Box::new(local())));
    node.forget_local();
    let wanted = outputs(&mut node);
    let expected = [
        Output::SetForwarding { link: LinkId(1), enabled: false },
        Output::RemoveLink { link: LinkId(1) },
        Output::Ice(IceCommand::Close { link: LinkId(1) }),
        Output::UnmapPeer { uid: uid(7) },
    ];
    assert_eq!(wanted, expected);
    assert!(!node.has_local() && node.snapshot(Instant::now()).is_none());
    node.set_local(other, OWN);
    assert_eq!(ask(&mut node, remote_ip(9, 7)), Answer::Done, "the address is free");
}

#[test]
fn resumed_addresses_give_way_to_other_ones_once() {
    let (before, _) = plain();
    let (mut node, _) = resumed(kept(&before));
    assert_eq!(ask(&mut node, remote_ip(7, 9)), Answer::Done);
    assert!(matches!(outputs(&mut node)[..], [Output::UnmapPeer { .. }, Output::MapPeer { .. }]));
    assert!(matches!(ask(&mut node, remote_ip(7, 10)), Answer::Kept(_)));

    let (mut node, _) = resumed(kept(&before));
    assert_eq!(ask(&mut node, remote_ip(8, 7)), Answer::Done, "another peer has the address now");
    assert_eq!(outputs(&mut node)[0], Output::UnmapPeer { uid: uid(7) });
}

#[test]
fn a_path_into_the_overlay_or_a_link_to_itself_is_left_out() {
    let (before, _) = plain();
    let snapshot = kept(&before);
    let mut inner = snapshot.clone();
    inner.links[0].pair.path.remote = "172.16.0.77:4000".parse().unwrap();
    let mut own = snapshot;
    own.links[0].uid = uid(5);
    for snapshot in [inner, own] {
        let mut node = Node::new(2);
        assert_eq!(node.resume(Instant::now(), snapshot, OWN), 0);
        assert!(!outputs(&mut node).iter().any(|output| matches!(output, Output::OpenLink { .. })));
    }
}
