//! Every call the unmodified 2014 controllers were recorded sending, the rules for malformed input, and the way back.

use serde_json::{Value, json};

use super::{
    Datagram, METHODS, RequestError, decode_datagram, encode_json, encode_packet, parse_request, request_to_value,
};
use crate::link::Security;
use crate::wire::candidate::parse_cas;
use crate::wire::request::{CreateLink, LocalIp, Overlay, RemoteIp, Request, Secret, TurnServer};
use crate::wire::uid::Uid;

const OWN: &str = "27bfb1be555a4d5026464af41794985a046965ff";
const PEER: &str = "c5158e6c1b708a72c6c28485f4b5856d841f1d28";
const SHA1: &str = "14:15:16:17:18:19:1A:1B:1C:1D:1E:1F:20:21:22:23:24:25:26:27";
const OWN_SHA1: &str = "01:02:03:04:05:06:07:08:09:0A:0B:0C:0D:0E:0F:10:11:12:13:14";
const CAS: &str = "Abc+/12x:1:udp:192.0.2.7:40001:2122194687:aBcDeFgHiJkLmNoP:abcdefghijklmnopqrstuvwx:local:eth0:0:\
                   1234567 Zyx98765:1:udp:203.0.113.9:51002:1686052607:qRsTuVwXyZ012345:ABCDEFGHIJKLMNOPQRSTUVWX:\
                   stun:eth0:0:7654321";

/// One datagram with the JSON text as the controller sent it.
fn call(text: &str) -> Result<Request, RequestError> {
    let datagram = [b"\x02\x01", text.as_bytes()].concat();
    match decode_datagram(&datagram) {
        Ok(Datagram::Control(json)) => parse_request(&json),
        other => panic!("{text} decoded to {other:?}"),
    }
}

fn uid(text: &str) -> Uid {
    text.parse().unwrap()
}

fn link(uid_text: &str, cas: &str) -> CreateLink {
    CreateLink {
        uid: uid(uid_text),
        fingerprint_text: SHA1.to_owned(),
        fingerprint: Some(SHA1.parse().unwrap()),
        overlay: Overlay::Xmpp,
        stun: Some("stun.example.org:3478".to_owned()),
        turn: None,
        security: Security::Dtls,
        cas: cas.to_owned(),
    }
}

fn remote_ip(uid_text: &str, ip4: &str, ip6: &str) -> Request {
    Request::SetRemoteIp(RemoteIp {
        uid: uid(uid_text),
        ip4: ip4.parse().unwrap(),
        ip4_text: ip4.to_owned(),
        ip6: ip6.parse().unwrap(),
        ip6_text: ip6.to_owned(),
    })
}

fn local_ip(uid_text: &str, [ip4, ip6]: [&str; 2], ip4_mask: u8, subnet_mask: u8) -> Request {
    Request::SetLocalIp(LocalIp {
        uid: uid(uid_text),
        ip4: ip4.parse().unwrap(),
        ip4_text: ip4.to_owned(),
        ip6: ip6.parse().unwrap(),
        ip6_text: ip6.to_owned(),
        ip4_mask,
        ip6_mask: 64,
        subnet_mask,
    })
}

fn con_req(peer: &str) -> Request {
    Request::PeerMessage { kind: "con_req".to_owned(), uid: uid(peer), data: OWN_SHA1.to_owned() }
}

fn register(port: u16) -> Request {
    Request::RegisterService {
        username: "alice@example.org".to_owned(),
        password: Secret("secret".to_owned()),
        host: "xmpp.example.org".to_owned(),
        port,
    }
}

fn callback(ip: &str, port: u16) -> Request {
    Request::SetCallbackEndpoint { ip: ip.to_owned(), port }
}

#[test]
fn a_group_vpn_controller_is_understood() {
    let ip6 = "fd50:0dbc:41f2:4a3c:27bf:b1be:555a:4d50";
    let peer_ip6 = "fd50:0dbc:41f2:4a3c:c515:8e6c:1b70:8a72";
    let create = |cas: &str| {
        format!(
            r#"{{"uid": "{PEER}", "cas": "{cas}", "m": "create_link", "turn": "", "overlay_id": 1, "sec": true, "fpr": "{SHA1}", "turn_user": "", "turn_pass": "", "stun": "stun.example.org:3478"}}"#
        )
    };
    let recorded = [
        (r#"{"logging": 1, "m": "set_logging"}"#.to_owned(), Request::SetLogging { level: 1 }),
        (r#"{"ip": "::", "m": "set_cb_endpoint", "port": 33522}"#.to_owned(), callback("::", 33522)),
        (
            format!(
                r#"{{"ip4_mask": 24, "ip6_mask": 64, "uid": "{OWN}", "m": "set_local_ip", "subnet_mask": 32, "ip6": "{ip6}", "ip4": "172.16.0.1"}}"#
            ),
            local_ip(OWN, ["172.16.0.1", ip6], 24, 32),
        ),
        (
            r#"{"username": "alice@example.org", "host": "xmpp.example.org", "password": "secret", "m": "register_svc"}"#
                .to_owned(),
            register(5222),
        ),
        (r#"{"m": "set_switchmode", "switchmode": 0}"#.to_owned(), Request::SetSwitchMode { enabled: false }),
        (r#"{"trim_enabled": false, "m": "set_trimpolicy"}"#.to_owned(), Request::SetTrimPolicy { enabled: false }),
        (r#"{"stats": true, "m": "get_state"}"#.to_owned(), Request::GetState { uid: None, stats: true }),
        (format!(r#"{{"data": "{OWN_SHA1}", "overlay_id": 1, "m": "con_req", "uid": "{PEER}"}}"#), con_req(PEER)),
        (format!(r#"{{"m": "trim_link", "uid": "{PEER}"}}"#), Request::TrimLink { uid: uid(PEER) }),
        (create(""), Request::CreateLink(link(PEER, ""))),
        (
            format!(r#"{{"ip6": "{peer_ip6}", "m": "set_remote_ip", "uid": "{PEER}", "ip4": "172.16.0.3"}}"#),
            remote_ip(PEER, "172.16.0.3", peer_ip6),
        ),
        (create(CAS), Request::CreateLink(link(PEER, CAS))),
        (r#"{"type": "echo_reply"}"#.to_owned(), Request::EchoReply),
    ];
    for (text, request) in recorded {
        assert_eq!(call(&text), Ok(request), "{text}");
    }
    assert_eq!(parse_cas(CAS).candidates.len(), 2);
}

#[test]
fn a_social_vpn_controller_is_understood() {
    let (own, peer) = ("a".repeat(40), "f".repeat(40));
    let ip6 = "fd50:0dbc:41f2:4a3c:aaaa:aaaa:aaaa:aaaa";
    let peer_ip6 = "fd50:0dbc:41f2:4a3c:ffff:ffff:ffff:ffff";
    let create = |cas: &str| {
        format!(
            r#"{{"uid": "{peer}", "cas": "{cas}", "m": "create_link", "turn": "", "overlay_id": 1, "sec": true, "fpr": "{SHA1}", "turn_user": "", "turn_pass": "", "stun": "stun.example.org:3478"}}"#
        )
    };
    let recorded = [
        (r#"{"translate": 1, "m": "set_translation"}"#.to_owned(), Request::SetTranslation { enabled: true }),
        (r#"{"ip": "::", "m": "set_cb_endpoint", "port": 52530}"#.to_owned(), callback("::", 52530)),
        (
            format!(
                r#"{{"ip4_mask": 24, "ip6_mask": 64, "uid": "{own}", "m": "set_local_ip", "subnet_mask": 32, "ip6": "{ip6}", "ip4": "172.31.0.100"}}"#
            ),
            local_ip(&own, ["172.31.0.100", ip6], 24, 32),
        ),
        (r#"{"stats": false, "m": "get_state"}"#.to_owned(), Request::GetState { uid: None, stats: false }),
        (
            r#"{"network_ignore_list": ["eth1"], "m": "set_network_ignore_list"}"#.to_owned(),
            Request::SetNetworkIgnoreList { interfaces: vec!["eth1".to_owned()] },
        ),
        (format!(r#"{{"data": "{OWN_SHA1}", "overlay_id": 1, "m": "con_req", "uid": "{peer}"}}"#), con_req(&peer)),
        (format!(r#"{{"m": "trim_link", "uid": "{peer}"}}"#), Request::TrimLink { uid: uid(&peer) }),
        (create(""), Request::CreateLink(link(&peer, ""))),
        (
            format!(r#"{{"ip6": "{peer_ip6}", "m": "set_remote_ip", "uid": "{peer}", "ip4": "172.31.0.101"}}"#),
            remote_ip(&peer, "172.31.0.101", peer_ip6),
        ),
        (create(CAS), Request::CreateLink(link(&peer, CAS))),
    ];
    for (text, request) in recorded {
        assert_eq!(call(&text), Ok(request), "{text}");
    }
}

#[test]
fn other_recorded_forms_are_understood() {
    assert_eq!(
        call(r#"{"ip": "0.0.0.0", "m": "set_cb_endpoint", "port": 33832}"#),
        Ok(callback("0.0.0.0", 33832)),
        "a controller on a host without IPv6"
    );
    let ip6 = "fd50:0dbc:41f2:4a3c:27bf:b1be:555a:4d50";
    let router = format!(
        r#"{{"ip4_mask": 16, "ip6_mask": 64, "uid": "{OWN}", "m": "set_local_ip", "subnet_mask": 24, "ip6": "{ip6}", "ip4": "172.16.0.0"}}"#
    );
    assert_eq!(call(&router), Ok(local_ip(OWN, ["172.16.0.0", ip6], 16, 24)));
    assert_eq!(
        call("{\"m\":\"get_state\"}\n"),
        Ok(Request::GetState { uid: None, stats: false }),
        "the shell one-liner of the user pages"
    );
    let destroy = format!(r#"{{"data": "destroy{OWN}", "overlay_id": 1, "m": "send_msg", "uid": "{PEER}"}}"#);
    let message = Request::PeerMessage { kind: "send_msg".to_owned(), uid: uid(PEER), data: format!("destroy{OWN}") };
    assert_eq!(call(&destroy), Ok(message));
}

#[test]
fn recorded_switch_mode_packets_carry_arp_frames() {
    let request = b"\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\xaa\xbb\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01\
                    \x02\x00\x00\x00\xaa\xbb\xac\x10\x00\x09\x00\x00\x00\x00\x00\x00\xac\x10\x00\x02";
    let up = encode_packet(uid(OWN), Uid::ZERO, request);
    let header = b"\x02\x02\x27\xbf\xb1\xbe\x55\x5a\x4d\x50\x26\x46\x4a\xf4\x17\x94\x98\x5a\x04\x69\x65\xff";
    assert_eq!(up, [&header[..], &[0; 20], request].concat());

    let reply = b"\xff\xff\xff\xff\xff\xff\x02\x00\x00\xaa\xbb\xcc\x08\x06\x00\x01\x08\x00\x06\x04\x00\x02\
                  \x02\x00\x00\xaa\xbb\xcc\xac\x10\x00\x02\xff\xff\xff\xff\xff\xff\xac\x10\x00\x09";
    let down = [&b"\x02\x02"[..], &[0; 40], reply].concat();
    assert_eq!(down.len(), 84);
    let packet = Datagram::Packet { source: Uid::ZERO, destination: Uid::ZERO, frame: reply.to_vec() };
    assert_eq!(decode_datagram(&down), Ok(packet));
}

#[test]
fn the_integer_method_of_an_on_demand_trim_is_an_error_and_no_more() {
    let text = format!(
        r#"{{"data": "destroy{OWN}", "overlay_id": "send_msg", "m": 1, "uid": "1e736a9615f7062d22608225bb572b839c483923"}}"#
    );
    assert_eq!(call(&text), Err(RequestError::WrongType { key: "m", give: "text" }));
}

#[test]
fn missing_and_null_parameters_are_empty_zero_false_and_secured() {
    for tail in ["", r#", "uid": null, "stats": null"#, r#", "uid": """#] {
        let text = format!(r#"{{"m": "get_state"{tail}}}"#);
        assert_eq!(call(&text), Ok(Request::GetState { uid: None, stats: false }));
    }
    for (method, request) in [
        ("set_logging", Request::SetLogging { level: 0 }),
        ("set_switchmode", Request::SetSwitchMode { enabled: false }),
        ("set_translation", Request::SetTranslation { enabled: false }),
        ("set_trimpolicy", Request::SetTrimPolicy { enabled: false }),
        ("set_cb_endpoint", callback("", 0)),
        ("echo_request", Request::EchoRequest { message: String::new() }),
        ("echo_reply", Request::EchoReply),
    ] {
        assert_eq!(parse_request(&json!({"m": method})), Ok(request), "{method}");
    }
    let bare = parse_request(&json!({"m": "create_link", "uid": PEER, "fpr": null}));
    let expected = CreateLink {
        fingerprint_text: String::new(),
        fingerprint: None,
        overlay: Overlay::Controller,
        stun: None,
        security: Security::Dtls,
        ..link(PEER, "")
    };
    assert_eq!(bare, Ok(Request::CreateLink(expected)));
    let message = Request::PeerMessage { kind: "send_msg".to_owned(), uid: uid(PEER), data: String::new() };
    assert_eq!(parse_request(&json!({"m": "send_msg", "uid": PEER})), Ok(message));
}

#[test]
fn booleans_and_integers_stand_for_each_other() {
    for (value, enabled) in
        [(json!(true), true), (json!(1), true), (json!(-7), true), (json!(false), false), (json!(0), false)]
    {
        for (method, key, request) in [
            ("set_switchmode", "switchmode", Request::SetSwitchMode { enabled }),
            ("set_translation", "translate", Request::SetTranslation { enabled }),
            ("set_translation", "translation", Request::SetTranslation { enabled }),
            ("set_trimpolicy", "trim_enabled", Request::SetTrimPolicy { enabled }),
            ("get_state", "stats", Request::GetState { uid: None, stats: enabled }),
        ] {
            assert_eq!(parse_request(&json!({"m": method, key: value})), Ok(request), "{method} {value}");
        }
    }
    assert_eq!(parse_request(&json!({"m": "set_logging", "logging": true})), Ok(Request::SetLogging { level: 1 }));
}

#[test]
fn wrong_types_are_errors_for_every_parameter() {
    let calls = samples().into_iter().map(|request| request_to_value(&request));
    for call in calls {
        let keys: Vec<String> = call.as_object().unwrap().keys().cloned().collect();
        let ignored = |key: &str| key == "overlay_id" && call["m"] != "create_link";
        for key in keys.iter().filter(|key| !ignored(key)) {
            for wrong in [json!({}), json!([[]]), json!(1.5), json!(24.0), json!(1e300)] {
                let mut broken = call.clone();
                broken[key] = wrong;
                assert!(matches!(parse_request(&broken), Err(RequestError::WrongType { .. })), "{broken}");
            }
        }
    }
}

#[test]
fn unknown_keys_are_ignored_and_unknown_methods_are_peer_messages() {
    let text = format!(r#"{{"m": "chat", "uid": "{PEER}", "data": "hi", "overlay_id": "x", "new": [1]}}"#);
    let message = Request::PeerMessage { kind: "chat".to_owned(), uid: uid(PEER), data: "hi".to_owned() };
    assert_eq!(call(&text), Ok(message));
    for (call, error) in [
        (json!({"m": "x".repeat(65), "uid": PEER}), RequestError::TooLong { key: "m", limit: 64, unit: "bytes" }),
        (json!({}), RequestError::NoMethod),
        (json!({"m": null, "type": "echo_request"}), RequestError::NoMethod),
        (json!([]), RequestError::NotAnObject),
        (json!("get_state"), RequestError::NotAnObject),
        (Value::Null, RequestError::NotAnObject),
    ] {
        assert_eq!(parse_request(&call), Err(error), "{call}");
    }
    assert!(matches!(parse_request(&json!({"m": "a\nb", "uid": PEER})), Err(RequestError::Malformed { key: "m", .. })));
}

#[test]
fn masks_ports_and_levels_out_of_range_are_errors() {
    let local = request_to_value(&local_ip(OWN, ["172.16.0.1", "fd50::1"], 24, 32));
    for (key, value) in [
        ("ip4_mask", json!(0)),
        ("ip4_mask", json!(33)),
        ("ip4_mask", Value::Null),
        ("ip6_mask", json!(129)),
        ("ip6_mask", json!(-1)),
        ("subnet_mask", json!(33)),
        ("subnet_mask", json!(0)),
        ("subnet_mask", json!(i64::MIN)),
    ] {
        let mut call = local.clone();
        call[key] = value;
        let Err(RequestError::OutOfRange { key: named, .. }) = parse_request(&call) else { panic!("{call}") };
        assert_eq!(named, key);
    }
    for call in [
        json!({"m": "set_logging", "logging": 4}),
        json!({"m": "set_cb_endpoint", "ip": "::", "port": 65_536}),
        json!({"m": "set_cb_endpoint", "ip": "127.0.0.1"}),
        json!({"m": "create_link", "uid": PEER, "overlay_id": 2}),
    ] {
        assert!(matches!(parse_request(&call), Err(RequestError::OutOfRange { .. })), "{call}");
    }
    let huge = json!({"m": "set_logging", "logging": u64::MAX});
    assert!(matches!(parse_request(&huge), Err(RequestError::WrongType { .. })));
}

#[test]
fn without_a_subnet_mask_a_node_routes_only_for_itself() {
    let mut call = request_to_value(&local_ip(OWN, ["172.16.0.1", "fd50::1"], 24, 24));
    call["subnet_mask"] = Value::Null;
    assert_eq!(parse_request(&call), Ok(local_ip(OWN, ["172.16.0.1", "fd50::1"], 24, 32)));
}

#[test]
fn the_layer_2_marker_of_2015_controllers_is_read() {
    let call = json!({"m": "set_remote_ip", "uid": PEER, "ip4": "127.0.0.1", "ip6": "::1/128"});
    let Ok(Request::SetRemoteIp(remote)) = parse_request(&call) else { panic!("must be read") };
    assert_eq!((remote.ip6_text.as_str(), remote.ip6), ("::1/128", "::1".parse().unwrap()));
}

#[test]
fn needed_texts_must_be_there_and_readable() {
    for (call, key) in [
        (json!({"m": "trim_link"}), "uid"),
        (json!({"m": "trim_link", "uid": "27bf"}), "uid"),
        (json!({"m": "get_state", "uid": "x".repeat(40)}), "uid"),
        (json!({"m": "send_msg", "data": "hi"}), "uid"),
        (json!({"m": "set_remote_ip", "uid": PEER, "ip6": "fd50::1"}), "ip4"),
        (json!({"m": "set_remote_ip", "uid": PEER, "ip4": "172.16.0.1", "ip6": ""}), "ip6"),
        (json!({"m": "set_remote_ip", "uid": PEER, "ip4": "172.16.0", "ip6": "fd50::1"}), "ip4"),
        (json!({"m": "set_remote_ip", "uid": PEER, "ip4": "172.16.0.1", "ip6": "fd50::1/64"}), "ip6"),
        (json!({"m": "set_cb_endpoint", "ip": "localhost", "port": 1}), "ip"),
        (json!({"m": "register_svc", "username": "a@b", "password": "x"}), "host"),
        (json!({"m": "register_svc", "username": "a@b", "host": "x"}), "password"),
        (json!({"m": "register_svc", "password": "a", "host": "x"}), "username"),
        (json!({"m": "create_link", "uid": PEER, "stun": "example.org:http"}), "stun"),
        (json!({"m": "create_link", "uid": PEER, "turn": ":3478", "turn_user": "u"}), "turn"),
    ] {
        let error = parse_request(&call).unwrap_err();
        let (RequestError::Missing { key: named, .. } | RequestError::Malformed { key: named, .. }) = error else {
            panic!("{call} gave {error}")
        };
        assert_eq!(named, key, "{call}");
    }
}

#[test]
fn a_text_that_is_no_fingerprint_is_kept_for_the_node_to_judge() {
    for text in ["", "14:15", "sha-256 00"] {
        let call = json!({"m": "create_link", "uid": PEER, "fpr": text, "sec": true});
        let Ok(Request::CreateLink(link)) = parse_request(&call) else { panic!("{text}") };
        assert_eq!((link.fingerprint, link.fingerprint_text.as_str()), (None, text));
        assert_eq!(link.security, Security::Dtls);
    }
}

#[test]
fn stun_needs_a_colon_and_turn_a_user() {
    let servers = |stun: &str, turn: &str, user: &str| {
        let call = json!({"m": "create_link", "uid": PEER, "stun": stun, "turn": turn,
                          "turn_user": user, "turn_pass": "p"});
        let Ok(Request::CreateLink(link)) = parse_request(&call) else { panic!("{call}") };
        (link.stun, link.turn.map(|turn| turn.address))
    };
    assert_eq!(servers("stun.example.org", "turn.example.org:80", ""), (None, None));
    for (given, used) in [
        ("turn.example.org:80", "turn.example.org:80"),
        ("turn.example.org:0", "turn.example.org:3478"),
        ("192.0.2.1:3479", "192.0.2.1:3479"),
        ("2001:db8::1", "[2001:db8::1]:3478"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80"),
        ("[2001:db8::1]", "[2001:db8::1]:3478"),
    ] {
        assert_eq!(servers(given, given, "u"), (Some(used.to_owned()), Some(used.to_owned())));
    }
    assert_eq!(servers("", "turn.example.org", "u").1.as_deref(), Some("turn.example.org:3478"));
}

#[test]
fn over_long_texts_and_lists_are_refused() {
    let long = "x".repeat(65_537);
    for call in [
        json!({"m": "send_msg", "uid": PEER, "data": long}),
        json!({"m": "echo_request", "msg": long}),
        json!({"m": "create_link", "uid": PEER, "cas": long}),
        json!({"m": "create_link", "uid": PEER, "fpr": long}),
        json!({"m": "register_svc", "username": long}),
        json!({"m": "set_network_ignore_list", "network_ignore_list": vec!["eth0"; 65]}),
    ] {
        assert!(matches!(parse_request(&call), Err(RequestError::TooLong { .. })));
    }
    for names in [json!(["x".repeat(16)]), json!([""]), json!(["eth0", ""])] {
        let call = json!({"m": "set_network_ignore_list", "network_ignore_list": names});
        assert!(matches!(parse_request(&call), Err(RequestError::Malformed { .. })), "{call}");
    }
    for list in [Value::Null, json!("eth0"), json!([1])] {
        let call = json!({"m": "set_network_ignore_list", "network_ignore_list": list});
        assert!(matches!(parse_request(&call), Err(RequestError::WrongType { .. })), "{call}");
    }
}

#[test]
fn errors_say_what_to_give_and_repeat_no_secret() {
    let error = parse_request(&json!({"m": "register_svc", "username": "a@b", "password": ["hunter2"]})).unwrap_err();
    assert_eq!(error.to_string(), "\"password\" has the wrong type: give text");
    let error = parse_request(&json!({"m": "set_logging", "logging": 9})).unwrap_err();
    assert_eq!(error.to_string(), "\"logging\" is 9: give 0, 1, 2 or 3");
    assert_eq!(
        RequestError::NotAnObject.to_string(),
        "a call is a JSON object: give {\"m\": \"get_state\"} or the like"
    );
}

#[test]
fn every_request_reads_back_from_what_it_is_written_as() {
    for request in samples() {
        let call = request_to_value(&request);
        assert_eq!(parse_request(&call), Ok(request.clone()), "{call}");
        let Ok(Datagram::Control(json)) = decode_datagram(&encode_json(&call)) else { panic!("{call}") };
        assert_eq!(parse_request(&json), Ok(request));
    }
}

#[test]
fn the_list_of_methods_is_the_list_of_what_can_be_called() {
    let mut written: Vec<String> =
        samples().iter().map(|request| request_to_value(request)["m"].as_str().unwrap().to_owned()).collect();
    written.sort();
    written.dedup();
    assert_eq!(written, METHODS);
}

/// At least one request of every method.
pub(crate) fn samples() -> Vec<Request> {
    let turn = TurnServer {
        address: "turn.example.org:3478".to_owned(),
        username: "u".to_owned(),
        password: Secret("p".to_owned()),
    };
    vec![
        register(5223),
        local_ip(OWN, ["172.16.0.1", "fd50:0dbc:41f2:4a3c:27bf:b1be:555a:4d50"], 24, 32),
        Request::GetState { uid: None, stats: true },
        Request::GetState { uid: Some(uid(PEER)), stats: false },
        Request::CreateLink(link(PEER, CAS)),
        Request::CreateLink(CreateLink {
            turn: Some(turn),
            stun: None,
            fingerprint_text: "none".to_owned(),
            fingerprint: None,
            overlay: Overlay::Controller,
            security: Security::None,
            ..link(PEER, "")
        }),
        remote_ip(PEER, "172.16.0.3", "fd50:0dbc:41f2:4a3c:c515:8e6c:1b70:8a72"),
        Request::TrimLink { uid: uid(PEER) },
        callback("::1", 5801),
        Request::SetLogging { level: 3 },
        Request::SetSwitchMode { enabled: true },
        Request::SetTranslation { enabled: true },
        Request::SetTrimPolicy { enabled: true },
        Request::SetNetworkIgnoreList { interfaces: vec!["eth1".to_owned(), "wlan0".to_owned()] },
        Request::EchoRequest { message: "hello \u{1}\"\u{e9}".to_owned() },
        Request::EchoReply,
        con_req(PEER),
        Request::PeerMessage { kind: "send_msg".to_owned(), uid: uid(PEER), data: "a\nb".to_owned() },
    ]
}
