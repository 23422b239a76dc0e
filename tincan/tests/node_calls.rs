//! What the node answers to each call, and what it wants done: no sockets, no time passing.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use tincan::ice::{IceCommand, IceEvent, SelectedPair};
use tincan::link::{CandidateKind, LinkId, Path, PortKind, Role, Security, Traffic};
use tincan::node::{LinkProtection, MAX_LINKS, Node, Output, ServiceState, TrafficSource};
use tincan::wire::answer::Answer;
use tincan::wire::fingerprint::{Fingerprint, FingerprintKind};
use tincan::wire::request::{CreateLink, LocalIp, Overlay, RemoteIp, Request, Secret};
use tincan::wire::uid::Uid;

struct NoTraffic;

impl TrafficSource for NoTraffic {
    fn traffic(&self, _link: LinkId) -> Traffic {
        Traffic::default()
    }

    fn engine(&self, _link: LinkId) -> &'static str {
        "user"
    }
}

fn uid(last: u32) -> Uid {
    let mut bytes = [0x50; 20];
    bytes[16..].copy_from_slice(&last.to_be_bytes());
    Uid::new(bytes)
}

/// A node with uid 5 that was told who it is.
fn node() -> Node {
    let mut node = Node::new(1);
    let (ip4, ip6) = (Ipv4Addr::new(172, 16, 0, 5), Ipv6Addr::LOCALHOST);
    node.set_local(
        LocalIp {
            uid: uid(5),
            ip4,
            ip4_text: ip4.to_string(),
            ip6,
            ip6_text: "fd50:0dbc:0000::5".to_owned(),
            ip4_mask: 24,
            ip6_mask: 64,
            subnet_mask: 32,
        },
        Fingerprint::Sha256([5; 32]),
    );
    node
}

fn ask(node: &mut Node, request: Request) -> Answer {
    node.handle_request(Instant::now(), request, &NoTraffic)
}

fn outputs(node: &mut Node) -> Vec<Output> {
    std::iter::from_fn(|| node.poll_output()).collect()
}

fn create(peer: u32, security: Security, fingerprint: Option<Fingerprint>) -> CreateLink {
    CreateLink {
        uid: uid(peer),
        fingerprint_text: fingerprint.map_or_else(|| "nonsense".to_owned(), |fingerprint| fingerprint.to_string()),
        fingerprint,
        overlay: Overlay::Controller,
        stun: None,
        turn: None,
        security,
        cas: String::new(),
    }
}

fn remote_ip(peer: u32, last_octet: u8) -> Request {
    let ip4 = Ipv4Addr::new(172, 16, 0, last_octet);
    let ip6 = Ipv6Addr::from(u128::from(last_octet) << 64);
    Request::SetRemoteIp(RemoteIp { uid: uid(peer), ip4, ip4_text: ip4.to_string(), ip6, ip6_text: ip6.to_string() })
}

fn refused(answer: &Answer) -> bool {
    matches!(answer, Answer::Refused(_))
}

#[test]
fn a_secured_link_without_a_usable_fingerprint_is_refused_and_nothing_is_opened() {
    let mut node = node();
    for fingerprint in [
        None,
        Some(Fingerprint::null(FingerprintKind::Sha256)),
        Some(Fingerprint::null(FingerprintKind::Sha1)),
        Some(Fingerprint::Sha1([9; 20])),
    ] {
        let answer = ask(&mut node, Request::CreateLink(create(7, Security::Dtls, fingerprint)));
        assert!(refused(&answer), "{fingerprint:?}: {answer:?}");
        assert_eq!(outputs(&mut node), []);
    }
}

#[test]
fn a_plain_link_needs_no_fingerprint_and_lives_on_the_plain_port() {
    let mut node = node();
    assert_eq!(ask(&mut node, Request::CreateLink(create(7, Security::None, None))), Answer::Done);
    let wanted = outputs(&mut node);
    assert!(matches!(wanted[0], Output::OpenLink { protection: LinkProtection::Plain { receive_vni: 1.. }, .. }));
    assert!(matches!(wanted[1], Output::Ice(IceCommand::Gather { port: PortKind::Plain, .. })));
}

#[test]
fn the_larger_uid_controls() {
    let mut node = node();
    for (peer, expected) in [(4, Role::Controlling), (6, Role::Controlled)] {
        let call = create(peer, Security::Dtls, Some(Fingerprint::Sha256([9; 32])));
        assert_eq!(ask(&mut node, Request::CreateLink(call)), Answer::Done);
        let wanted = outputs(&mut node);
        assert!(matches!(wanted[0], Output::OpenLink { role, .. } if role == expected), "{wanted:?}");
    }
}

#[test]
fn links_need_an_identity_a_peer_and_usable_candidates() {
    let mut stranger = Node::new(1);
    assert!(refused(&ask(&mut stranger, Request::CreateLink(create(7, Security::None, None)))));
    let mut node = node();
    assert!(refused(&ask(&mut node, Request::CreateLink(create(5, Security::None, None)))));
    let mut call = create(7, Security::None, None);
    call.cas = "rubbish that:is:not:a:candidate".to_owned();
    assert!(refused(&ask(&mut node, Request::CreateLink(call))));
}

#[test]
fn addresses_of_the_overlay_are_no_candidates() {
    let cas = |addresses: &[&str]| {
        let item =
            |address: &&str| format!("1:1:udp:{address}:9:1:aBcDeFgHiJkLmNoP:aBcDeFgHiJkLmNoPqRsTuVwX:local:eth0:0:1");
        [addresses.iter().map(item).collect::<Vec<_>>().join(" ").as_str(), "tincan=1,vni=000001,sec=none"].join(" ")
    };
    let mut node = node();
    assert_eq!(ask(&mut node, remote_ip(9, 9)), Answer::Done);
    // The own subnets (of ::1/64 too), and what set_remote_ip said of a peer.
    let inner = ["172.16.0.1", "172.16.0.255", "--ffff-172.16.0.5", "--7-7", "0-0-0-9--"];
    let call = CreateLink { cas: cas(&inner), ..create(7, Security::None, None) };
    assert!(refused(&ask(&mut node, Request::CreateLink(call))));
    outputs(&mut node);
    let call = CreateLink { cas: cas(&[&inner[..], &["172.16.1.1"]].concat()), ..create(7, Security::None, None) };
    assert_eq!(ask(&mut node, Request::CreateLink(call)), Answer::Done);
    let opened = outputs(&mut node);
    let link =
        opened.iter().find_map(|output| if let Output::OpenLink { link, .. } = output { Some(*link) } else { None });
    let gathered = IceEvent::Gathered { link: link.unwrap(), candidates: Vec::new(), problems: Vec::new() };
    node.handle_ice(Instant::now(), gathered);
    let checked: Vec<_> = outputs(&mut node)
        .into_iter()
        .filter_map(|output| {
            if let Output::Ice(IceCommand::Check { candidates, .. }) = output { Some(candidates) } else { None }
        })
        .collect();
    assert_eq!(checked.concat().iter().map(|one| one.addr.ip().to_string()).collect::<Vec<_>>(), ["172.16.1.1"]);
}

#[test]
fn a_second_create_link_changes_nothing_and_trim_makes_room_for_a_new_one() {
    let mut node = node();
    let call = create(7, Security::None, None);
    assert_eq!(ask(&mut node, Request::CreateLink(call.clone())), Answer::Done);
    outputs(&mut node);
    assert!(matches!(ask(&mut node, Request::CreateLink(call.clone())), Answer::Kept(_)));
    assert_eq!(outputs(&mut node), []);
    assert_eq!(ask(&mut node, Request::TrimLink { uid: uid(7) }), Answer::Done);
    assert!(matches!(ask(&mut node, Request::TrimLink { uid: uid(7) }), Answer::Kept(_)));
    let wanted = outputs(&mut node);
    let stopped = wanted.iter().position(|output| matches!(output, Output::SetForwarding { enabled: false, .. }));
    let removed = wanted.iter().position(|output| matches!(output, Output::RemoveLink { .. }));
    assert!(stopped.is_some() && stopped < removed, "frames stop before the link goes: {wanted:?}");
    assert_eq!(ask(&mut node, Request::CreateLink(call)), Answer::Done);
}

#[test]
fn the_number_of_links_is_capped_and_existing_ones_are_unharmed() {
    let mut node = node();
    for peer in 0..u32::try_from(MAX_LINKS).unwrap() {
        assert_eq!(ask(&mut node, Request::CreateLink(create(1000 + peer, Security::None, None))), Answer::Done);
    }
    outputs(&mut node);
    assert!(refused(&ask(&mut node, Request::CreateLink(create(9, Security::None, None)))));
    assert_eq!(outputs(&mut node), []);
    assert_eq!(ask(&mut node, Request::TrimLink { uid: uid(1000) }), Answer::Done);
    assert_eq!(ask(&mut node, Request::CreateLink(create(9, Security::None, None))), Answer::Done);
}

#[test]
fn an_address_belongs_to_one_peer_and_the_first_call_wins() {
    let mut node = node();
    assert_eq!(ask(&mut node, remote_ip(7, 7)), Answer::Done);
    assert!(matches!(ask(&mut node, remote_ip(7, 8)), Answer::Kept(_)));
    assert!(refused(&ask(&mut node, remote_ip(8, 7))), "another peer's address");
    assert!(refused(&ask(&mut node, remote_ip(8, 5))), "our own address");
    assert!(refused(&ask(&mut node, remote_ip(5, 9))), "our own uid");
    let mapped = outputs(&mut node);
    assert_eq!(mapped.len(), 1, "{mapped:?}");
    assert_eq!(ask(&mut node, Request::TrimLink { uid: uid(7) }), Answer::Kept("there is no link to this uid"));
    assert!(matches!(ask(&mut node, remote_ip(7, 9)), Answer::Kept(_)), "trim does not forget addresses");
}

#[test]
fn a_service_is_registered_once_and_only_by_a_node_with_identity() {
    let service = |password: &str| Request::RegisterService {
        username: "alice@example.org".to_owned(),
        password: Secret(password.to_owned()),
        host: "xmpp.example.org".to_owned(),
        port: 5222,
    };
    assert!(refused(&ask(&mut Node::new(1), service("secret"))));
    let mut node = node();
    assert!(refused(&ask(&mut node, service(""))));
    assert_eq!(ask(&mut node, service("secret")), Answer::Done);
    assert!(matches!(ask(&mut node, service("other")), Answer::Kept(_)), "while the login is under way");
    node.handle_service_state(ServiceState::Online { jid: "a@b/c".to_owned() });
    assert!(matches!(ask(&mut node, service("other")), Answer::Kept(_)), "while it works");
    node.handle_service_state(ServiceState::Offline { reason: "wrong password".to_owned() });
    outputs(&mut node);
    assert!(matches!(ask(&mut node, service("secret")), Answer::Kept(_)), "the same again is no correction");
    assert_eq!(ask(&mut node, service("other")), Answer::Done);
    assert!(outputs(&mut node).iter().any(|output| matches!(output, Output::Login { .. })));
    assert!(!format!("{node:?}").contains("secret\""), "passwords are never printed");
}

#[test]
fn a_refused_call_leaves_no_link() {
    let mut node = node();
    for cas in ["xx yy", "no candidates"] {
        let call = CreateLink { cas: cas.to_owned(), ..create(7, Security::None, None) };
        assert!(refused(&ask(&mut node, Request::CreateLink(call))), "{cas}");
        let Answer::State(state) = ask(&mut node, Request::GetState { uid: Some(uid(7)), stats: false }) else {
            panic!()
        };
        assert_eq!(state.peers[0].link, None, "{cas}");
    }
    assert_eq!(ask(&mut node, Request::CreateLink(create(7, Security::None, None))), Answer::Done);
}

#[test]
fn candidates_that_did_not_get_through_are_sent_when_the_peer_is_seen() {
    let mut node = node();
    let call = CreateLink { overlay: Overlay::Xmpp, ..create(7, Security::None, None) };
    assert_eq!(ask(&mut node, Request::CreateLink(call)), Answer::Done);
    let link = outputs(&mut node)
        .into_iter()
        .find_map(|output| if let Output::OpenLink { link, .. } = output { Some(link) } else { None })
        .unwrap();
    node.handle_ice(Instant::now(), IceEvent::Gathered { link, candidates: Vec::new(), problems: Vec::new() });
    let offers = |node: &mut Node| {
        let all = outputs(node).into_iter();
        all.filter(|output| matches!(output, Output::Signal { to, kind, .. } if *to == uid(7) && kind == "con_resp"))
            .count()
    };
    assert_eq!(offers(&mut node), 1);
    node.handle_presence(Instant::now(), uid(7));
    assert_eq!(offers(&mut node), 0, "nothing says that it was lost");
    node.handle_undelivered(uid(7), "send_msg");
    node.handle_undelivered(uid(8), "con_resp");
    node.handle_presence(Instant::now(), uid(7));
    assert_eq!(offers(&mut node), 0, "another message was lost");
    node.handle_undelivered(uid(7), "con_resp");
    node.handle_presence(Instant::now(), uid(7));
    node.handle_presence(Instant::now(), uid(7));
    assert_eq!(offers(&mut node), 1);
}

#[test]
fn a_link_that_waits_for_the_service_says_so() {
    let mut node = node();
    let reason = |node: &mut Node| {
        let Answer::State(state) = ask(node, Request::GetState { uid: Some(uid(7)), stats: false }) else { panic!() };
        state.peers[0].link.as_ref().unwrap().reason.clone()
    };
    let call = CreateLink { overlay: Overlay::Xmpp, ..create(7, Security::None, None) };
    assert_eq!(ask(&mut node, Request::CreateLink(call)), Answer::Done);
    assert!(reason(&mut node).ends_with("this node is not registered"), "{}", reason(&mut node));
    node.handle_service_state(ServiceState::Offline { reason: "no route".to_owned() });
    assert!(reason(&mut node).ends_with("offline: no route"), "{}", reason(&mut node));
    node.handle_service_state(ServiceState::Online { jid: "a@b/c".to_owned() });
    assert!(reason(&mut node).ends_with("the peer is not present at the XMPP service"), "{}", reason(&mut node));
    node.handle_presence(Instant::now(), uid(7));
    assert_eq!(reason(&mut node), "collecting own candidates");
}

#[test]
fn an_asked_for_uid_is_reported_even_when_unknown_and_addresses_stay_verbatim() {
    let mut node = node();
    let Answer::State(state) = ask(&mut node, Request::GetState { uid: Some(uid(99)), stats: false }) else {
        panic!("get_state answers a state");
    };
    assert_eq!(state.local.ip6, "fd50:0dbc:0000::5");
    assert_eq!(state.peers.len(), 1);
    assert_eq!(state.peers[0].link, None);
    let Answer::State(state) = ask(&mut Node::new(1), Request::GetState { uid: None, stats: false }) else {
        panic!("get_state answers a state");
    };
    assert_eq!((state.local.uid, state.local.ip4.as_str()), (None, "172.31.0.100"));
    assert_eq!(state.local.fingerprint.len(), 59);
}

#[test]
fn a_handshake_that_came_to_nothing_begins_anew_as_soon_as_there_is_a_path() {
    let mut node = node();
    let candidate = "AAAAAAAA:1:udp:192.0.2.7:4000:2130706431:userfrag:passwordpasswordpassword:local:eth0:0:1";
    let mut call = create(7, Security::Dtls, Some(Fingerprint::Sha256([7; 32])));
    call.cas = candidate.to_owned();
    assert_eq!(ask(&mut node, Request::CreateLink(call)), Answer::Done);
    let link = outputs(&mut node)
        .into_iter()
        .find_map(|output| if let Output::OpenLink { link, .. } = output { Some(link) } else { None })
        .unwrap();
    let now = Instant::now();
    let remote_addr = "192.0.2.7:4000".parse().unwrap();
    let pair = SelectedPair {
        path: Path { remote: remote_addr, source: None, relay: None },
        local_addr: "192.0.2.5:4000".parse().unwrap(),
        local_kind: CandidateKind::Host,
        remote_addr,
        remote_kind: CandidateKind::Host,
    };
    node.handle_ice(now, IceEvent::Gathered { link, candidates: Vec::new(), problems: Vec::new() });
    node.handle_ice(now, IceEvent::Selected { link, generation: 0, pair });
    outputs(&mut node);
    let renewals = |node: &mut Node| {
        outputs(node)
            .iter()
            .filter(|output| matches!(output, Output::RenewSession { role: Role::Controlled, .. }))
            .count()
    };
    node.handle_session_timed_out(link);
    assert_eq!(renewals(&mut node), 1, "at once while the path works");
    node.handle_ice(now, IceEvent::Disconnected { link, generation: 0 });
    node.handle_session_timed_out(link);
    assert_eq!(renewals(&mut node), 0, "not into silence");
    node.handle_ice(now, IceEvent::Reconnected { link, generation: 0 });
    assert_eq!(renewals(&mut node), 1, "when the path works again");
    node.handle_session_ended(now, link, "wrong fingerprint".to_owned());
    node.handle_session_timed_out(link);
    assert_eq!(renewals(&mut node), 0, "a session that was refused does not come back");
}

#[test]
fn two_peers_never_share_an_inner_address() {
    let mut node = node();
    assert_eq!(ask(&mut node, remote_ip(7, 7)), Answer::Done);
    let mut second = RemoteIp {
        uid: uid(8),
        ip4: Ipv4Addr::new(172, 16, 0, 8),
        ip4_text: "172.16.0.8".to_owned(),
        ip6: Ipv6Addr::from(7_u128 << 64),
        ip6_text: "0:0:0:7::".to_owned(),
    };
    assert!(refused(&ask(&mut node, Request::SetRemoteIp(second.clone()))), "the IPv6 address is taken");
    second.ip6 = Ipv6Addr::from(8_u128 << 64);
    assert_eq!(ask(&mut node, Request::SetRemoteIp(second)), Answer::Done);
}
