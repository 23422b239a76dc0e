//! A secured link that must not come up never passes a frame, least of all in the clear.
//!
//! ```text
//!   alice eth0 --- switch --- eth0 bob      captured on alice's eth0
//! ```

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tincan_tests::capture::{Capture, holds};
use tincan_tests::controller::{LinkPlan, Node, gather};
use tincan_tests::ping::ping;
use tincan_tests::rpc::RpcError;
use tincan_tests::topology::{Pair, Underlay};
use tincan_tests::wait;

const MARKER: &[u8] = b"this must never be seen on the wire";

/// `eth0` of alice over IPv4: Ethernet 14, IP 20, UDP 8.
const UDP_PAYLOAD: usize = 42;

struct Scene {
    pair: Pair,
    alice: Node,
    bob: Node,
    capture: Capture,
}

fn scene() -> Result<Scene> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let (alice, bob) = (Node::start(&pair.alice, 1)?, Node::start(&pair.bob, 2)?);
    let capture = Capture::start(&pair.alice, "eth0", |_, _| true)?;
    alice.map(&bob)?;
    bob.map(&alice)?;
    Ok(Scene { pair, alice, bob, capture })
}

/// Pings both ways, then makes sure that nothing of it was on the wire, nor any frame outside of DTLS.
fn nothing_passes(scene: &Scene) -> Result<()> {
    let Scene { pair, alice, bob, capture } = scene;
    for (host, target) in [(&pair.alice, bob), (&pair.bob, alice)] {
        let targets: [IpAddr; 2] = [target.ip4.into(), target.ip6.into()];
        for target in targets {
            let report = ping(host, target, 20, Duration::from_millis(10), MARKER)?;
            ensure!(report.lost == report.sent, "a ping to {target} was answered");
        }
    }
    for frame in capture.frames() {
        ensure!(!holds(&frame.bytes, MARKER), "a payload was on the wire");
        ensure!(!is_plain_frame(&frame.bytes), "a plain frame was on the wire");
    }
    Ok(())
}

/// UDP over IPv4 whose payload begins as a frame in the clear does.
fn is_plain_frame(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x08, 0x00]) && frame.get(23) == Some(&17) && frame.get(UDP_PAYLOAD) == Some(&0x08)
}

fn never_said_online(node: &mut Node) -> Result<()> {
    for received in node.door.drain()? {
        let json = received.json().unwrap_or_default();
        ensure!(json["type"] != "con_stat" || json["data"] != "online", "said online: {json}");
    }
    Ok(())
}

#[test]
fn a_wrong_fingerprint_on_one_side_passes_nothing() -> Result<()> {
    for wrong_at_bob in [true, false] {
        let mut scene = scene()?;
        let Scene { alice, bob, .. } = &mut scene;
        create_links(alice, bob, wrong_at_bob, ["", ""])?;
        let (of_alice, of_bob) = (alice.candidates(bob)?, bob.candidates(alice)?);
        create_links(alice, bob, wrong_at_bob, [&of_bob, &of_alice])?;
        // The handshake is tried and fails on both sides: one finds the fingerprint wrong, the other is told.
        for (node, peer) in [(&*alice, &*bob), (&*bob, &*alice)] {
            wait::until(Duration::from_secs(10), "the session's end", || {
                node.peer(peer).is_ok_and(|peer| peer.text("phase") == "ended")
            })?;
        }
        let reasons = [alice.peer(bob)?.text("reason").to_owned(), bob.peer(alice)?.text("reason").to_owned()];
        ensure!(
            reasons.iter().any(|reason| reason.contains("fingerprint")),
            "nobody names the fingerprint: {reasons:?}"
        );
        nothing_passes(&scene)?;
        never_said_online(&mut scene.alice)?;
        never_said_online(&mut scene.bob)?;
    }
    Ok(())
}

/// `create_link` on both sides, with candidates for alice and for bob; one side has a fingerprint that is nobody's.
fn create_links(alice: &Node, bob: &Node, wrong_at_bob: bool, candidates: [&str; 2]) -> Result<()> {
    for (node, peer, is_bob, cas) in [(alice, bob, false, candidates[0]), (bob, alice, true, candidates[1])] {
        let mut params = node.link_params(peer, &LinkPlan::secured(), cas);
        if is_bob == wrong_at_bob {
            params["fpr"] = json!(["AB"; 32].join(":"));
        }
        node.daemon.call("create_link", &params)?;
    }
    Ok(())
}

#[test]
fn a_second_call_cannot_make_a_link_what_the_first_did_not_ask_for() -> Result<()> {
    let Scene { alice, bob, .. } = scene()?;
    for (first, second) in [(LinkPlan::plain(), LinkPlan::secured()), (LinkPlan::secured(), LinkPlan::plain())] {
        alice.create_link(&bob, &first, "")?;
        let refusal = alice.create_link(&bob, &second, "").map_err(|error| error.to_string());
        ensure!(refusal.as_ref().is_err_and(|error| error.contains("trim_link")), "not refused: {refusal:?}");
        alice.trim(&bob)?;
    }
    let mut params = alice.link_params(&bob, &LinkPlan::secured(), "");
    params.as_object_mut().map(|params| params.remove("sec"));
    alice.daemon.call("create_link", &params)?;
    ensure!(alice.peer(&bob)?.text("security") == "dtls", "without sec the link is not secured");
    Ok(())
}

#[test]
fn null_short_and_missing_fingerprints_are_refused_with_a_reason() -> Result<()> {
    let scene = scene()?;
    let Scene { alice, bob, .. } = &scene;
    let null = ["00"; 32].join(":");
    let sha1 = ["AB"; 20].join(":");
    for fingerprint in [null.as_str(), "", "AB:CD", "not a fingerprint", sha1.as_str(), &bob.fingerprint[..92]] {
        let mut params = alice.link_params(bob, &LinkPlan::secured(), "");
        params["fpr"] = json!(fingerprint);
        let refusal = alice.daemon.call("create_link", &params).err();
        let refusal = refusal.as_ref().and_then(|error| error.downcast_ref::<RpcError>());
        ensure!(
            refusal.is_some_and(|error| error.message.contains("fpr")),
            "{fingerprint:?} was not refused with a reason: {refusal:?}"
        );
        ensure!(!alice.peer(bob)?.has_link(), "a link exists after {fingerprint:?}");
    }
    nothing_passes(&scene)
}

#[test]
fn null_and_short_fingerprints_over_the_door_of_2014_make_no_link() -> Result<()> {
    let mut scene = scene()?;
    let Scene { alice, bob, .. } = &mut scene;
    // Candidates that work, so that a daemon that fell back to a plain link would have all it needs.
    let (for_b, for_a) = gather(alice, bob, &LinkPlan::plain())?;
    alice.trim(bob)?;
    bob.create_link(alice, &LinkPlan::plain(), &for_b)?;
    // As a daemon of 2014 writes them: nothing but the fingerprint speaks against the link.
    let for_a = for_a.split(' ').filter(|item| !item.starts_with("tincan=")).collect::<Vec<_>>().join(" ");
    ensure!(!for_a.is_empty(), "no candidates");
    for fingerprint in [["00"; 32].join(":").as_str(), ["00"; 20].join(":").as_str(), "", "AB:CD"] {
        let mut call = alice.link_params(bob, &LinkPlan::secured(), &for_a);
        call["m"] = json!("create_link");
        call["fpr"] = json!(fingerprint);
        alice.door.send(&call)?;
        // The echo behind the call is answered after it.
        alice.door.subscribe()?;
        ensure!(!alice.peer(bob)?.has_link(), "a link exists after {fingerprint:?}");
    }
    // The same call with bob's own fingerprint makes one, though it can never agree with bob's plain one.
    let mut call = alice.link_params(bob, &LinkPlan::secured(), &for_a);
    call["m"] = json!("create_link");
    alice.door.send(&call)?;
    alice.door.subscribe()?;
    ensure!(alice.peer(bob)?.has_link(), "a good call makes no link either");
    nothing_passes(&scene)?;
    never_said_online(&mut scene.alice)?;
    never_said_online(&mut scene.bob)
}

#[test]
fn a_link_secured_on_one_side_only_passes_nothing() -> Result<()> {
    for alice_secured in [true, false] {
        let mut scene = scene()?;
        let plans = if alice_secured {
            [LinkPlan::secured(), LinkPlan::plain()]
        } else {
            [LinkPlan::plain(), LinkPlan::secured()]
        };
        let Scene { alice, bob, .. } = &mut scene;
        alice.create_link(bob, &plans[0], "")?;
        bob.create_link(alice, &plans[1], "")?;
        let (of_alice, of_bob) = (alice.candidates(bob)?, bob.candidates(alice)?);
        for (node, peer, plan, cas) in [(&*alice, &*bob, &plans[0], &of_bob), (&*bob, &*alice, &plans[1], &of_alice)] {
            let refusal = node.create_link(peer, plan, cas).map_err(|error| error.to_string());
            ensure!(refusal.as_ref().is_err_and(|error| error.contains("sec")), "not refused: {refusal:?}");
            // The 2014 door says nothing about it, and nothing changes either.
            let mut call = node.link_params(peer, plan, cas);
            call["m"] = json!("create_link");
            node.door.send(&call)?;
        }
        nothing_passes(&scene)?;
        never_said_online(&mut scene.alice)?;
        never_said_online(&mut scene.bob)?;
    }
    Ok(())
}

#[test]
fn a_plain_link_shows_that_the_capture_would_have_seen_it() -> Result<()> {
    let Scene { pair, mut alice, mut bob, capture } = scene()?;
    let (for_b, for_a) = gather(&mut alice, &mut bob, &LinkPlan::plain())?;
    let results: [Value; 2] =
        [alice.create_link(&bob, &LinkPlan::plain(), &for_a)?, bob.create_link(&alice, &LinkPlan::plain(), &for_b)?];
    ensure!(results.iter().all(|result| result["done"] == true), "{results:?}");
    alice.door.status(Duration::from_secs(10), &bob.uid, "online")?;
    bob.door.status(Duration::from_secs(10), &alice.uid, "online")?;
    ensure!(ping(&pair.alice, bob.ip4.into(), 5, Duration::from_millis(10), MARKER)?.lost == 0);
    wait::until(Duration::from_secs(5), "the pings on the wire", || {
        let plain = capture.frames().iter().filter(|frame| is_plain_frame(&frame.bytes)).count();
        capture.count_holding(MARKER) == 10 && plain >= 10
    })
    .with_context(|| format!("{} frames with the payload", capture.count_holding(MARKER)))
}
