//! Links over every kind of network under the overlay.
//!
//! ```text
//!   alice eth0 --- switch --- eth0 bob      192.0.2.0/24, 2001:db8:1::/64, or both
//! ```

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use tincan_tests::controller::{LinkPlan, Node, connect};
use tincan_tests::ping::ping;
use tincan_tests::topology::{Pair, Underlay};

#[test]
fn links_come_up_over_ipv4_alone() -> Result<()> {
    both_kinds_carry_both_families(Underlay::Ipv4)
}

#[test]
fn links_come_up_over_ipv6_alone() -> Result<()> {
    both_kinds_carry_both_families(Underlay::Ipv6)
}

#[test]
fn links_come_up_over_both_families() -> Result<()> {
    both_kinds_carry_both_families(Underlay::Dual)
}

fn both_kinds_carry_both_families(underlay: Underlay) -> Result<()> {
    for plan in [LinkPlan::secured(), LinkPlan::plain()] {
        let pair = Pair::new(underlay)?;
        let (mut alice, mut bob) = (Node::start(&pair.alice, 1)?, Node::start(&pair.bob, 2)?);
        connect(&mut alice, &mut bob, &plan)?;
        let targets: [IpAddr; 2] = [bob.ip4.into(), bob.ip6.into()];
        for target in targets {
            let report = ping(&pair.alice, target, 20, Duration::from_millis(10), b"underlay")?;
            ensure!(report.lost == 0, "{} of 20 pings to {target} over {underlay:?} lost", report.lost);
        }
        let peer = alice.peer(&bob)?;
        ensure!(peer.path_kinds() == ("local", "local"), "not a host pair: {:?}", peer.path_kinds());
        ensure!(peer.text("security") == if plan.secured { "dtls" } else { "none" });
    }
    Ok(())
}
