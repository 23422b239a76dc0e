//! How long a link takes to come up in a LAN without STUN: a figure to read, not one to fail by.
//!
//! ```text
//!   alice eth0 --- switch --- eth0 bob
//! ```

use std::time::Duration;

use anyhow::{Result, ensure};
use tincan_tests::controller::{LinkPlan, Node, connect};
use tincan_tests::topology::{Pair, Underlay};

const ROUNDS: usize = 20;

#[test]
fn twenty_links_of_each_kind_come_up_and_the_median_time_is_printed() -> Result<()> {
    let pair = Pair::new(Underlay::Dual)?;
    let (mut alice, mut bob) = (Node::start(&pair.alice, 1)?, Node::start(&pair.bob, 2)?);
    for plan in [LinkPlan::secured(), LinkPlan::plain()] {
        let mut times: Vec<Duration> = Vec::new();
        for _ in 0..ROUNDS {
            times.push(connect(&mut alice, &mut bob, &plan)?.linking);
            alice.trim(&bob)?;
            bob.trim(&alice)?;
            drop((alice.door.drain()?, bob.door.drain()?));
        }
        times.sort_unstable();
        ensure!(times.len() == ROUNDS);
        println!(
            "secured {}: create_link with cas to online on both sides, median of {ROUNDS}: {:?}, longest {:?}",
            plan.secured,
            times[ROUNDS / 2],
            times[ROUNDS - 1]
        );
    }
    Ok(())
}
