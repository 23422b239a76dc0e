//! What the node tells a controller, as JSON objects with the keys of 2014: a key is there only when it has a meaning.

use std::time::Duration;

use serde_json::{Value, json};

use crate::wire::candidate::{kind_name, security_name};
use crate::wire::notification::Notification;
use crate::wire::state::{LinkState, LocalState, PathState, PeerState};

/// The round trip reported before one is known, in ms: where the 2014 daemon's smoothing started.
const UNKNOWN_RTT: u64 = 3000;

/// `local_state`, the first answer to `get_state`.
#[must_use]
pub fn local_state(local: &LocalState) -> Value {
    let LocalState { uid, ip4, ip6, fingerprint, mac } = local;
    let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "type": "local_state",
        "_uid": uid.map_or_else(String::new, |uid| uid.to_string()),
        "_ip4": ip4,
        "_ip6": ip6,
        "_fpr": fingerprint,
        "_mac": mac.join(":"),
    })
}

/// `peer_state`; `with_stats` adds the `stats` array to online peers.
#[must_use]
pub fn peer_state(peer: &PeerState, with_stats: bool) -> Value {
    let PeerState { uid, addresses, presence_age, link } = peer;
    let online = link.as_ref().is_some_and(|link| link.online);
    let mut report = json!({
        "type": "peer_state",
        "uid": uid.to_string(),
        "status": if online { "online" } else { "offline" },
        "xmpp_time": presence_age.as_secs(),
    });
    if let Some((ip4, ip6)) = addresses {
        report["ip4"] = json!(ip4);
        report["ip6"] = json!(ip6);
    }
    // Controllers take `fpr` for "a link exists" and cannot do without `last_time` then.
    if let Some(link) = link {
        report["fpr"] = json!(link.fingerprint);
        report["last_time"] = json!(link.age.as_secs());
    }
    if let Some(link) = link.as_ref().filter(|_| online) {
        report["security"] = json!(security_name(link.security));
        if with_stats {
            report["stats"] = stats(link);
        }
    }
    report
}

/// A notification to the callback endpoint.
#[must_use]
pub fn notification(notification: &Notification) -> Value {
    match notification {
        Notification::ConnectionStatus { uid, status } => {
            let data = status.name();
            json!({"type": "con_stat", "uid": uid.to_string(), "data": data})
        }
        Notification::Message { kind, uid, data } => json!({"type": kind, "uid": uid.to_string(), "data": data}),
    }
}

/// The answer to `echo_request`, with the type the page promises (the 2014 daemon sent `echo_request`).
#[must_use]
pub fn echo_reply(message: &str) -> Value {
    json!({"type": "echo_reply", "msg": message})
}

/// Whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One object per candidate pair; only the selected pair is known here.
fn stats(link: &LinkState) -> Value {
    link.path.iter().map(pair).collect()
}

fn pair(path: &PathState) -> Value {
    let PathState { local_addr, local_kind, remote_addr, remote_kind, rtt, traffic, .. } = path;
    json!({
        "local_addr": local_addr.to_string(),
        "local_type": kind_name(*local_kind),
        "rem_addr": remote_addr.to_string(),
        "rem_type": kind_name(*remote_kind),
        "best_conn": true,
        "readable": true,
        "writable": true,
        "timeout": false,
        "new_conn": path.new,
        "rtt": rtt.map_or(UNKNOWN_RTT, millis),
        "sent_total_bytes": traffic.sent_bytes,
        "recv_total_bytes": traffic.received_bytes,
        "sent_bytes_second": path.sent_per_second,
        "recv_bytes_second": path.received_per_second,
    })
}

#[cfg(test)]
mod tests {
    use crate::link::{CandidateKind, Security, Traffic};
    use crate::wire::control::encode_json;
    use crate::wire::fingerprint::{Fingerprint, FingerprintKind};
    use crate::wire::uid::Uid;

    use super::*;
    use crate::wire::notification::LinkStatus;

    const UID: &str = "c5158e6c1b708a72c6c28485f4b5856d841f1d28";

    fn uid() -> Uid {
        UID.parse().unwrap()
    }

    fn path() -> PathState {
        PathState {
            local_addr: "192.0.2.1:40000".parse().unwrap(),
            local_kind: CandidateKind::Host,
            remote_addr: "[2001:db8::9]:51002".parse().unwrap(),
            remote_kind: CandidateKind::PeerReflexive,
            rtt: Some(Duration::from_micros(12_900)),
            traffic: Traffic { sent_bytes: 5_000_000_000, received_bytes: 7, ..Traffic::default() },
            sent_per_second: 11,
            received_per_second: 12,
            new: true,
        }
    }

    fn link(online: bool) -> LinkState {
        LinkState {
            fingerprint: "14:15".to_owned(),
            online,
            security: Security::Dtls,
            age: Duration::from_millis(30_999),
            setup: None,
            phase: "online",
            reason: String::new(),
            offer: None,
            engine: "user",
            path: Some(path()),
        }
    }

    fn peer(link: Option<LinkState>) -> PeerState {
        PeerState { uid: uid(), addresses: None, presence_age: Duration::from_millis(5999), link }
    }

    #[test]
    fn a_watchdog_of_2014_finds_the_first_bytes_of_local_state() {
        let local = LocalState {
            uid: None,
            ip4: "172.31.0.100".to_owned(),
            ip6: "fd50:0dbc:41f2:4a3c:0000:0000:0000:0000".to_owned(),
            fingerprint: Fingerprint::null(FingerprintKind::Sha1).to_string(),
            mac: [2, 0, 0, 0xaa, 0xbb, 0xcc],
        };
        let datagram = encode_json(&local_state(&local));
        let expected = format!(
            "\x02\x01{{\n   \"_fpr\" : \"{}\",\n   \"_ip4\" : \"172.31.0.100\",\n   \
             \"_ip6\" : \"fd50:0dbc:41f2:4a3c:0000:0000:0000:0000\",\n   \"_mac\" : \"02:00:00:aa:bb:cc\",\n   \
             \"_uid\" : \"\",\n   \"type\" : \"local_state\"\n}}\n",
            ["00"; 20].join(":")
        );
        assert_eq!(datagram[..14], *b"\x02\x01\x7b\x0a\x20\x20\x20\x22\x5f\x66\x70\x72\x22\x20");
        assert_eq!(String::from_utf8(datagram).unwrap(), expected);
        let named = local_state(&LocalState { uid: Some(uid()), ..local });
        assert_eq!(named["_uid"], UID);
    }

    #[test]
    fn a_peer_without_link_has_neither_fpr_nor_last_time() {
        let seen = json!({"type": "peer_state", "uid": UID, "status": "offline", "xmpp_time": 5});
        assert_eq!(peer_state(&peer(None), true), seen);
        let addresses = Some(("172.16.0.3".to_owned(), "fd50:0dbc::0001".to_owned()));
        let mapped = peer_state(&PeerState { addresses, ..peer(None) }, false);
        assert_eq!(
            mapped,
            json!({"type": "peer_state", "uid": UID, "status": "offline", "xmpp_time": 5,
                   "ip4": "172.16.0.3", "ip6": "fd50:0dbc::0001"})
        );
    }

    #[test]
    fn an_offline_link_shows_fpr_and_last_time_but_no_security_or_stats() {
        let expected = json!({"type": "peer_state", "uid": UID, "status": "offline", "xmpp_time": 5,
                              "fpr": "14:15", "last_time": 30});
        assert_eq!(peer_state(&peer(Some(link(false))), true), expected);
    }

    #[test]
    fn an_online_link_shows_security_and_stats_when_asked() {
        let mut expected = json!({"type": "peer_state", "uid": UID, "status": "online", "xmpp_time": 5,
                                  "fpr": "14:15", "last_time": 30, "security": "dtls"});
        assert_eq!(peer_state(&peer(Some(link(true))), false), expected);
        expected["stats"] = json!([{
            "best_conn": true, "readable": true, "writable": true, "timeout": false, "new_conn": true,
            "local_addr": "192.0.2.1:40000", "local_type": "local",
            "rem_addr": "[2001:db8::9]:51002", "rem_type": "prflx", "rtt": 12,
            "sent_total_bytes": 5_000_000_000_u64, "recv_total_bytes": 7,
            "sent_bytes_second": 11, "recv_bytes_second": 12,
        }]);
        assert_eq!(peer_state(&peer(Some(link(true))), true), expected);
    }

    #[test]
    fn stats_of_an_online_link_are_an_array_even_without_a_path() {
        let bare = LinkState { path: None, security: Security::None, ..link(true) };
        let report = peer_state(&peer(Some(bare)), true);
        assert_eq!((&report["stats"], &report["security"]), (&json!([]), &json!("none")));
        let unmeasured = LinkState { path: Some(PathState { rtt: None, ..path() }), ..link(true) };
        assert_eq!(peer_state(&peer(Some(unmeasured)), true)["stats"][0]["rtt"], 3000);
    }

    #[test]
    fn notifications_have_type_uid_and_data() {
        for (status, data) in
            [(LinkStatus::Online, "online"), (LinkStatus::Offline, "offline"), (LinkStatus::Unknown, "unknown")]
        {
            let rendered = notification(&Notification::ConnectionStatus { uid: uid(), status });
            let text = format!(
                "\x02\x01{{\n   \"data\" : \"{data}\",\n   \"type\" : \"con_stat\",\n   \"uid\" : \"{UID}\"\n}}\n"
            );
            assert_eq!(encode_json(&rendered), text.into_bytes());
        }
        let message = Notification::Message { kind: "con_resp".to_owned(), uid: uid(), data: "14:15 x".to_owned() };
        assert_eq!(notification(&message), json!({"type": "con_resp", "uid": UID, "data": "14:15 x"}));
    }

    #[test]
    fn an_echo_is_answered_as_the_page_says() {
        assert_eq!(echo_reply("hello"), json!({"type": "echo_reply", "msg": "hello"}));
    }
}
