//! Both sides' `create_link` in every order and duplicated: exactly one online link.
//!
//! ```text
//!   alice eth0 --- switch --- eth0 bob
//! ```

use std::panic;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tincan_tests::controller::{LinkPlan, Node, ONLINE_DEADLINE};
use tincan_tests::ping::ping;
use tincan_tests::topology::{Pair, Underlay};
use tincan_tests::traffic::noise;

const ROUNDS: u32 = 50;

/// One call of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    AliceBegins,
    BobBegins,
    AliceGetsCandidates,
    BobGetsCandidates,
}

#[test]
fn calls_in_any_order_and_number_make_exactly_one_secured_link() -> Result<()> {
    fifty_rounds(&LinkPlan::secured(), 1)
}

#[test]
fn calls_in_any_order_and_number_make_exactly_one_plain_link() -> Result<()> {
    fifty_rounds(&LinkPlan::plain(), 2)
}

#[test]
fn calls_of_both_sides_at_the_same_moment_make_exactly_one_link() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let (mut alice, mut bob) = (Node::start(&pair.alice, 1)?, Node::start(&pair.bob, 2)?);
    alice.map(&bob)?;
    bob.map(&alice)?;
    for plan in [LinkPlan::secured(), LinkPlan::plain()] {
        for round in 0..ROUNDS {
            at_once(&alice, &bob, &plan, ["", ""])?;
            let cas = [bob.candidates(&alice)?, alice.candidates(&bob)?];
            at_once(&alice, &bob, &plan, [&cas[0], &cas[1]])?;
            exactly_one_online(&pair, &mut alice, &mut bob)
                .with_context(|| format!("round {round}, secured: {}", plan.secured))?;
            drop((alice.door.drain()?, bob.door.drain()?));
        }
    }
    Ok(())
}

/// `create_link` of both sides, each twice, from four threads that begin together; `cas` is for alice and for bob.
fn at_once(alice: &Node, bob: &Node, plan: &LinkPlan, cas: [&str; 2]) -> Result<()> {
    let calls = [(alice, bob, cas[0]), (bob, alice, cas[1])];
    let barrier = Barrier::new(calls.len() * 2);
    thread::scope(|scope| {
        let spawned = [calls, calls].concat().into_iter().map(|(node, peer, cas)| {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                node.create_link(peer, plan, cas).map(drop)
            })
        });
        let spawned: Vec<_> = spawned.collect();
        spawned.into_iter().try_for_each(|call| call.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    })
}

fn fifty_rounds(plan: &LinkPlan, seed: u32) -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let (mut alice, mut bob) = (Node::start(&pair.alice, 1)?, Node::start(&pair.bob, 2)?);
    alice.map(&bob)?;
    bob.map(&alice)?;
    for round in 0..ROUNDS {
        let steps = shuffled(seed * 1000 + round);
        one_round(&pair, &mut alice, &mut bob, plan, &steps).with_context(|| format!("round {round}: {steps:?}"))?;
    }
    println!("{ROUNDS} of {ROUNDS} rounds ended with exactly one online link");
    Ok(())
}

fn one_round(pair: &Pair, alice: &mut Node, bob: &mut Node, plan: &LinkPlan, steps: &[Step]) -> Result<()> {
    drop((alice.door.drain()?, bob.door.drain()?));
    let (mut of_alice, mut of_bob) = (None, None);
    for step in steps {
        match step {
            Step::AliceBegins => drop(alice.create_link(bob, plan, "")?),
            Step::BobBegins => drop(bob.create_link(alice, plan, "")?),
            // Candidates can only be carried over once there are some; whoever is asked for them begins here at latest.
            Step::AliceGetsCandidates => {
                let cas = candidates(&mut of_bob, bob, alice, plan)?;
                alice.create_link(bob, plan, &cas)?;
            }
            Step::BobGetsCandidates => {
                let cas = candidates(&mut of_alice, alice, bob, plan)?;
                bob.create_link(alice, plan, &cas)?;
            }
        }
    }
    exactly_one_online(pair, alice, bob)
}

/// Waits for it on both sides, looks again while frames pass, and removes it.
fn exactly_one_online(pair: &Pair, alice: &mut Node, bob: &mut Node) -> Result<()> {
    alice.door.status(ONLINE_DEADLINE, &bob.uid, "online")?;
    bob.door.status(ONLINE_DEADLINE, &alice.uid, "online")?;
    let report = ping(&pair.alice, bob.ip4.into(), 3, Duration::from_millis(5), b"order")?;
    ensure!(report.lost == 0, "{} of 3 pings lost", report.lost);
    for (node, peer) in [(&*alice, &*bob), (&*bob, &*alice)] {
        let state = node.daemon.call("get_state", &serde_json::json!({"stats": true}))?;
        let peers = state["peers"].as_array().context("no peers")?;
        let links: Vec<&Value> = peers.iter().filter(|peer| peer.get("fpr").is_some()).collect();
        ensure!(links.len() == 1 && links[0]["uid"] == peer.uid, "not exactly one link: {links:?}");
        ensure!(links[0]["status"] == "online", "{}", links[0]);
    }
    alice.trim(bob)?;
    bob.trim(alice)?;
    Ok(())
}

/// What `owner` gathered for `peer` in this round.
fn candidates(known: &mut Option<String>, owner: &mut Node, peer: &Node, plan: &LinkPlan) -> Result<String> {
    if let Some(cas) = known {
        return Ok(cas.clone());
    }
    owner.create_link(peer, plan, "")?;
    let cas = owner.candidates(peer)?;
    *known = Some(cas.clone());
    Ok(cas)
}

/// Each step at least once and up to three times, in an order that follows from `seed`.
fn shuffled(seed: u32) -> Vec<Step> {
    let bytes = noise(64, seed);
    let mut dice = bytes.iter().copied().map(usize::from);
    let mut roll = |sides: usize| dice.next().unwrap_or_default() % sides;
    let mut steps = Vec::new();
    for step in [Step::AliceBegins, Step::BobBegins, Step::AliceGetsCandidates, Step::BobGetsCandidates] {
        for _ in 0..=roll(3) {
            steps.push(step);
        }
    }
    for last in (1..steps.len()).rev() {
        steps.swap(last, roll(last + 1));
    }
    steps
}
