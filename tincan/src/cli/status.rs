//! `tincan status`: the node, its peers and their paths, for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::client::Client;

/// Digits of a uid that tell peers apart well enough for people.
const SHORT_UID: usize = 8;

const NO_IDENTITY: &str = "This node has no identity yet: start a controller, or give it one with
  tincan call set_local_ip uid=<40 hex digits> ip4=172.31.0.100 ip4_mask=24 ip6=fd50::100 ip6_mask=64
";

const NO_PEERS: &str = "No peers yet: a controller adds them, or make a link with
  tincan call create_link uid=<peer's uid> fpr=<peer's fingerprint> sec=true overlay_id=0
  tincan call set_remote_ip uid=<peer's uid> ip4=<its address> ip6=<its address>
";

/// The daemon's answer, as far as people see it; what an older daemon does not say is empty.
#[derive(Debug, Deserialize)]
struct Status {
    local_state: Local,
    #[serde(default)]
    host: Host,
    peers: Vec<Peer>,
    #[serde(default)]
    counters: BTreeMap<String, u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Host {
    tap: String,
    secured_port: u16,
    plain_port: u16,
    fast_path: String,
    service: String,
}

#[derive(Debug, Deserialize)]
struct Local {
    #[serde(rename = "_uid")]
    uid: String,
    #[serde(rename = "_ip4")]
    ip4: String,
    #[serde(rename = "_ip6")]
    ip6: String,
    #[serde(rename = "_fpr")]
    fingerprint: String,
    #[serde(rename = "_mac")]
    mac: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Peer {
    uid: String,
    ip4: Option<String>,
    status: String,
    /// Only with a link, as everything below.
    phase: Option<String>,
    reason: String,
    security: String,
    engine: String,
    /// Holds the ICE password: shown only while the peer still needs it.
    offer: Option<String>,
    setup_ms: Option<u64>,
    path: Option<Path>,
}

#[derive(Debug, Deserialize)]
struct Path {
    local_addr: String,
    local_kind: String,
    remote_addr: String,
    remote_kind: String,
    rtt_us: Option<u64>,
    sent_bytes: u64,
    received_bytes: u64,
    sent_frames: u64,
    received_frames: u64,
    dropped: u64,
}

/// Asks for the status and prints it.
pub(super) fn print(client: anyhow::Result<Client>, json: bool) -> anyhow::Result<()> {
    let answer = client?.call("status", &Map::new())?;
    if json { super::print(&format!("{answer:#}\n")) } else { super::print(&render(answer)?) }
}

fn render(answer: Value) -> anyhow::Result<String> {
    let Status { local_state, host, peers, counters } =
        serde_json::from_value(answer).context("this daemon's status is of another version: try --json")?;
    let mut text = String::new();
    write_local(&mut text, &local_state, &host)?;
    write_peers(&mut text, &peers)?;
    write_counters(&mut text, &counters)?;
    Ok(text)
}

fn write_local(text: &mut String, local: &Local, host: &Host) -> std::fmt::Result {
    let Local { uid, ip4, ip6, fingerprint, mac } = local;
    if uid.is_empty() {
        text.push_str(NO_IDENTITY);
    } else {
        writeln!(text, "node         {uid}")?;
        writeln!(text, "addresses    {ip4}  {ip6}")?;
        writeln!(text, "fingerprint  {fingerprint}")?;
    }
    let Host { tap, secured_port, plain_port, fast_path, service } = host;
    writeln!(text, "TAP          {tap}  {mac}")?;
    writeln!(text, "UDP ports    {secured_port} secured links, {plain_port} plain links")?;
    writeln!(text, "fast path    {fast_path}")?;
    writeln!(text, "XMPP         {service}")
}

fn write_peers(text: &mut String, peers: &[Peer]) -> std::fmt::Result {
    text.push('\n');
    if peers.is_empty() {
        text.push_str(NO_PEERS);
        return Ok(());
    }
    let online = peers.iter().filter(|peer| peer.status == "online").count();
    writeln!(text, "peers        {}, online {online}", peers.len())?;
    peers.iter().try_for_each(|peer| write_peer(text, peer))
}

fn write_peer(text: &mut String, peer: &Peer) -> std::fmt::Result {
    let Peer { uid, ip4, status, phase, reason, security, engine, offer, setup_ms, path } = peer;
    let short = uid.get(..SHORT_UID).unwrap_or(uid);
    write!(text, "\n{short}  {}  {status}", ip4.as_deref().unwrap_or("no address (set_remote_ip)"))?;
    let Some(phase) = phase else {
        return writeln!(text, "\n          no link: its controller or ours has not called create_link");
    };
    if phase != status {
        write!(text, " ({phase})")?;
    }
    text.push('\n');
    if !reason.is_empty() {
        writeln!(text, "          {reason}")?;
    }
    if let Some(offer) = offer.as_ref().filter(|_| phase.starts_with("waiting")) {
        writeln!(
            text,
            "          by hand, on the peer: tincan call create_link uid=<this node's> ... cas=\"{offer}\""
        )?;
    }
    if let Some(Path { local_addr, local_kind, remote_addr, remote_kind, .. }) = path {
        let (local_kind, remote_kind) = (kind_for_people(local_kind), kind_for_people(remote_kind));
        writeln!(text, "          {local_kind} {local_addr} -> {remote_kind} {remote_addr}")?;
    }
    write!(text, "          security {security}, engine {engine}")?;
    if let Some(rtt) = path.as_ref().and_then(|path| path.rtt_us) {
        write!(text, ", RTT {}.{} ms", rtt / 1000, rtt % 1000 / 100)?;
    }
    if let Some(setup) = setup_ms {
        write!(text, ", set up in {setup} ms")?;
    }
    text.push('\n');
    path.as_ref().map_or(Ok(()), |path| write_traffic(text, path))
}

fn write_traffic(text: &mut String, path: &Path) -> std::fmt::Result {
    let Path { sent_bytes, received_bytes, sent_frames, received_frames, dropped, .. } = path;
    writeln!(
        text,
        "          sent {sent_bytes} bytes, {sent_frames} frames; received {received_bytes} bytes, {received_frames} \
         frames; dropped {dropped}"
    )
}

/// The wire calls a host candidate `local`.
fn kind_for_people(kind: &str) -> &str {
    if kind == "local" { "host" } else { kind }
}

fn write_counters(text: &mut String, counters: &BTreeMap<String, u64>) -> std::fmt::Result {
    let counted: Vec<_> = counters.iter().filter(|(_, count)| **count != 0).collect();
    let Some(widest) = counted.iter().map(|(name, _)| name.len()).max() else { return Ok(()) };
    text.push_str("\ncounters\n");
    counted.iter().try_for_each(|(name, count)| writeln!(text, "  {name:widest$}  {count}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const UID: &str = "27bfb1be555a4d5026464af41794985a046965ff";

    fn answer(uid: &str, peers: &Value) -> Value {
        let local = json!({"type": "local_state", "_uid": uid, "_ip4": "172.31.0.100", "_ip6": "fd50::1",
                           "_fpr": "14:15", "_mac": "02:00:00:00:00:01"});
        let host = json!({"tap": "ipop", "secured_port": 4000, "plain_port": 4001, "fast_path": "attached",
                          "service": "online as a@b/c"});
        json!({"local_state": local, "host": host, "peers": peers, "counters": {"calls": 12, "malformed": 0, "udp_frames": 3}})
    }

    #[test]
    fn every_peer_shows_its_path_or_why_it_has_none() {
        let online = json!({
            "type": "peer_state", "uid": "c5158e6c1b708a72c6c28485f4b5856d841f1d28", "status": "online",
            "ip4": "172.31.0.2", "ip6": "fd50::2", "security": "dtls", "setup_ms": 420, "phase": "online",
            "reason": "relayed: no direct check was answered", "engine": "user", "path": {
                "local_addr": "10.0.0.1:4000", "local_kind": "local", "remote_addr": "10.0.0.2:4000",
                "remote_kind": "relay", "rtt_us": 1061, "sent_bytes": 1, "received_bytes": 2, "sent_frames": 3,
                "received_frames": 4, "dropped": 5,
            },
        });
        let checking = json!({
            "uid": "d0158e6c1b708a72c6c28485f4b5856d841f1d28", "status": "offline", "ip4": "172.31.0.3",
            "security": "none", "setup_ms": null, "phase": "checking", "reason": "no pair has answered yet",
            "engine": "user", "path": null,
        });
        let waiting = json!({
            "uid": "d1158e6c1b708a72c6c28485f4b5856d841f1d28", "status": "offline", "security": "none",
            "phase": "waiting for the peer's candidates", "reason": "", "offer": "AB:CD 1:2:3", "engine": "user",
        });
        let linkless = json!({"uid": "e0158e6c1b708a72c6c28485f4b5856d841f1d28", "status": "offline"});
        let expected = "\
node         27bfb1be555a4d5026464af41794985a046965ff
addresses    172.31.0.100  fd50::1
fingerprint  14:15
TAP          ipop  02:00:00:00:00:01
UDP ports    4000 secured links, 4001 plain links
fast path    attached
XMPP         online as a@b/c

peers        4, online 1

c5158e6c  172.31.0.2  online
          relayed: no direct check was answered
          host 10.0.0.1:4000 -> relay 10.0.0.2:4000
          security dtls, engine user, RTT 1.0 ms, set up in 420 ms
          sent 1 bytes, 3 frames; received 2 bytes, 4 frames; dropped 5

d0158e6c  172.31.0.3  offline (checking)
          no pair has answered yet
          security none, engine user

d1158e6c  no address (set_remote_ip)  offline (waiting for the peer's candidates)
          by hand, on the peer: tincan call create_link uid=<this node's> ... cas=\"AB:CD 1:2:3\"
          security none, engine user

e0158e6c  no address (set_remote_ip)  offline
          no link: its controller or ours has not called create_link

counters
  calls       12
  udp_frames  3
";
        assert_eq!(render(answer(UID, &json!([online, checking, waiting, linkless]))).unwrap(), expected);
    }

    #[test]
    fn a_node_without_identity_and_peers_says_what_to_do_next() {
        let text = render(answer("", &json!([]))).unwrap();
        assert!(text.contains("tincan call set_local_ip uid="), "{text}");
        assert!(text.contains("tincan call create_link uid="), "{text}");
    }

    #[test]
    fn what_the_codec_writes_is_understood() {
        let local = crate::wire::state::LocalState {
            uid: None,
            ip4: String::new(),
            ip6: String::new(),
            fingerprint: String::new(),
            mac: [0; 6],
        };
        let state = crate::wire::state::State { local, peers: Vec::new(), with_stats: true };
        let host = crate::wire::state::HostState {
            tap: "ipop".to_owned(),
            secured_port: 1,
            plain_port: 2,
            fast_path: "off".to_owned(),
            service: "not registered".to_owned(),
        };
        let line = crate::wire::json_rpc::status(&json!(1), &state, &host, &[("calls", 1)]);
        let mut answer: Value = serde_json::from_str(&line).unwrap();
        assert!(render(answer["result"].take()).unwrap().contains("calls  1"));
        assert!(render(json!({})).unwrap_err().to_string().contains("--json"));
    }
}
