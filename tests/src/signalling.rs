//! Nodes that find each other and link through an XMPP server: a prompt controller on both sides.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::controller::{GATHER_DEADLINE, LinkPlan, Node, ONLINE_DEADLINE};
use crate::prosody::{DOMAIN, Prosody, password};
use crate::wait;

/// How long a login may take, a peer's presence included.
pub const LOGIN_DEADLINE: Duration = Duration::from_secs(15);

/// The daemon's options to trust the authority of `server`.
pub fn trusting(server: &Prosody) -> Vec<String> {
    vec!["--xmpp-ca".to_owned(), server.authority().display().to_string()]
}

/// `register_svc` as `account` of the server.
pub fn register(node: &Node, server: &Prosody, account: &str, password: &str) -> Result<Value> {
    let (host, port) = (server.address().ip().to_string(), server.address().port());
    let params = json!({"username": format!("{account}@{DOMAIN}"), "password": password, "host": host, "port": port});
    node.daemon.call("register_svc", &params)
}

/// `register_svc` with the account's password, until it is online.
pub fn log_in(node: &Node, server: &Prosody, account: &str) -> Result<()> {
    register(node, server, account, &password(account))?;
    wait::until(LOGIN_DEADLINE, "the XMPP login", || service(node).is_ok_and(|text| text.starts_with("online")))
        .with_context(|| format!("{:?}", service(node)))
}

/// How the login stands, as `tincan status` says it.
pub fn service(node: &Node) -> Result<String> {
    let status = node.daemon.call("status", &json!({}))?;
    Ok(status["host"]["service"].as_str().context("no service in the status")?.to_owned())
}

/// Waits until each sees the other's presence, as the 2014 controllers look for it: a peer in the state.
pub fn meet(one: &Node, other: &Node) -> Result<()> {
    for (node, peer) in [(one, other), (other, one)] {
        wait::until(LOGIN_DEADLINE, "the peer's presence", || {
            let state = node.daemon.call("get_state", &json!({})).unwrap_or_default();
            state["peers"].as_array().is_some_and(|peers| peers.iter().any(|known| known["uid"] == peer.uid.as_str()))
        })
        .with_context(|| format!("{:?}", service(node)))?;
    }
    Ok(())
}

/// From `con_req` with the own fingerprint to both online: the peer's controller answers by `create_link`, whose
/// `con_resp` the daemon sends by itself; then both have what they need.
pub fn link(one: &mut Node, other: &mut Node, plan: &LinkPlan) -> Result<Duration> {
    let start = Instant::now();
    one.daemon.call("con_req", &json!({"overlay_id": 1, "uid": other.uid, "data": one.fingerprint}))?;
    let request = other.door.notification(ONLINE_DEADLINE, "con_req", &one.uid)?;
    ensure!(request["data"] == one.fingerprint.as_str(), "{request}");
    create_link(other, one, plan, "")?;
    other.map(one)?;
    let of_other = candidates(one, other)?;
    create_link(one, other, plan, &of_other)?;
    one.map(other)?;
    let of_one = candidates(other, one)?;
    create_link(other, one, plan, &of_one)?;
    one.door.status(ONLINE_DEADLINE, &other.uid, "online")?;
    other.door.status(ONLINE_DEADLINE, &one.uid, "online")?;
    Ok(start.elapsed())
}

/// `create_link` by the UDP door, whose `con_resp` goes over XMPP.
fn create_link(node: &Node, peer: &Node, plan: &LinkPlan, cas: &str) -> Result<()> {
    let mut call = node.link_params(peer, plan, cas);
    call["overlay_id"] = json!(1);
    call["m"] = json!("create_link");
    node.door.send(&call)
}

/// What the peer's `con_resp` says after its fingerprint.
fn candidates(node: &mut Node, peer: &Node) -> Result<String> {
    let response = node.door.notification(GATHER_DEADLINE, "con_resp", &peer.uid)?;
    let data = response["data"].as_str().context("con_resp without data")?;
    let (fingerprint, cas) = data.split_once(' ').unwrap_or((data, ""));
    ensure!(fingerprint == peer.fingerprint, "con_resp begins with {fingerprint}, not the peer's fingerprint");
    Ok(cas.to_owned())
}
