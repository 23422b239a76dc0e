//! Plain links over a path whose MTU shrinks under traffic: senders hear of it, and nothing disappears.
//!
//! ```text
//!   alice ipop - eth0 --------- switch --------- eth0 - ipop bob          both eth0 are narrowed
//!   alice ipop - eth0 --- router === mid === router --- eth0 - ipop bob   the link `mid` is narrowed
//! ```

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tincan_tests::controller::{LinkPlan, Node, connect};
use tincan_tests::daemon::DaemonOptions;
use tincan_tests::netns::Namespace;
use tincan_tests::ping::{ping, ping_whole};
use tincan_tests::topology::{Lan, Pair, Routed, Underlay};
use tincan_tests::traffic::TcpStreaming;
use tincan_tests::wait;

/// How long TCP and pings may suffer from a cut.
const RECOVERY: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_millis(500);
/// The TAP's, so large that the cuts matter.
const MTU: usize = 1450;
/// What TCP must still bring after a cut.
const MORE: u64 = 8 << 20;

/// Which engine forwards, as `get_state` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Kernel,
    User,
}

/// A network whose MTU can be cut: its hosts, and the interfaces at both ends of the link that is narrowed.
struct Network {
    hosts: [Namespace; 2],
    /// Bob's address of the underlay where routers tell alice's host of cuts.
    behind_routers: Option<IpAddr>,
    narrowed: [(Namespace, &'static str); 2],
    is_ipv4: bool,
    /// Held for its namespace.
    _lan: Option<Lan>,
}

impl Network {
    fn switched(underlay: Underlay) -> Result<Self> {
        let Pair { alice, bob, lan, alice_cable: _, bob_cable: _ } = Pair::new(underlay)?;
        let hosts = [alice, bob];
        let narrowed = hosts.clone().map(|host| (host, "eth0"));
        let is_ipv4 = underlay == Underlay::Ipv4;
        Ok(Self { hosts, behind_routers: None, narrowed, is_ipv4, _lan: Some(lan) })
    }

    fn routed(underlay: Underlay) -> Result<Self> {
        let Routed { alice, bob, alice_router, bob_router } = Routed::new(underlay)?;
        let narrowed = [(alice_router, "mid"), (bob_router, "mid")];
        let is_ipv4 = underlay == Underlay::Ipv4;
        let of_bob = if is_ipv4 { "198.51.100.1" } else { "2001:db8:2::1" };
        let behind_routers = Some(of_bob.parse().context("bob's address")?);
        Ok(Self { hosts: [alice, bob], behind_routers, narrowed, is_ipv4, _lan: None })
    }

    fn narrow(&self, mtu: usize) -> Result<()> {
        for (namespace, interface) in &self.narrowed {
            namespace.exec(&format!("ip link set {interface} mtu {mtu}"))?;
        }
        Ok(())
    }

    /// Two nodes with a plain link over it.
    fn link(&self, engine: Engine) -> Result<[Node; 2]> {
        let fast_path = if engine == Engine::Kernel { "on" } else { "off" };
        let more = ["--mtu", "1450", "--fast-path", fast_path].map(str::to_owned).to_vec();
        let options = DaemonOptions { more, ..DaemonOptions::default() };
        let [alice, bob] = &self.hosts;
        let (mut alice, mut bob) = (Node::start_with(alice, 1, &options)?, Node::start_with(bob, 2, &options)?);
        connect(&mut alice, &mut bob, &LinkPlan::plain())?;
        let name = if engine == Engine::Kernel { "kernel" } else { "user" };
        for (node, peer) in [(&alice, &bob), (&bob, &alice)] {
            wait::until(RECOVERY, name, || node.peer(peer).is_ok_and(|peer| peer.text("engine") == name))?;
        }
        Ok([alice, bob])
    }

    /// Longest inner packet that crosses an underlay of `mtu` bytes in one piece, as senders are to hear of it: Ethernet,
    /// frame header, UDP and outer IP stand around it, and IPv6 knows no MTU below 1280.
    fn inner_mtu(&self, mtu: usize, target: IpAddr) -> usize {
        let fits = mtu - if self.is_ipv4 { 50 } else { 70 };
        if target.is_ipv4() { fits } else { fits.max(1280) }
    }
}

/// The MTU of the path to `target`, where routers or the daemon have told the host one.
fn learnt_mtu(host: &Namespace, target: IpAddr) -> Result<Option<usize>> {
    let route = host.exec(&format!("ip route get {target}"))?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1).map(|mtu| mtu.parse().with_context(|| route.clone())).transpose()
}

/// TCP and pings, inner IPv4 and IPv6, while the underlay's MTU is cut twice.
fn survive_cuts(network: &Network, engine: Engine) -> Result<()> {
    let [alice, bob] = network.link(engine)?;
    let [host, far] = &network.hosts;
    let targets = [IpAddr::from(bob.ip4), bob.ip6.into()];
    let streams = targets.iter().map(|target| TcpStreaming::start(host, far, *target));
    let streams = streams.collect::<Result<Vec<_>>>()?;
    for stream in &streams {
        stream.wait_received(MORE, RECOVERY).context("before any cut")?;
    }
    // What the host takes for the path's MTU; longer packets it would not even try.
    let mut longest = targets.map(|target| network.inner_mtu(1500, target).min(MTU));
    for mtu in [1400, 1280] {
        network.narrow(mtu)?;
        for stream in &streams {
            stream.wait_received(MORE, RECOVERY).with_context(|| format!("after the cut to {mtu}"))?;
            // Bursts of user space are fragmented by routers; a ping alone is not.
            stream.pause();
        }
        for (target, longest) in targets.into_iter().zip(&mut longest) {
            let expected = network.inner_mtu(mtu, target);
            hears(host, target, *longest, expected).with_context(|| format!("cut to {mtu}"))?;
            *longest = expected;
        }
        if let Some(bob) = network.behind_routers {
            ensure!(learnt_mtu(host, bob)? == Some(mtu), "the host did not hear of its routers");
        }
        for (target, expected) in targets.into_iter().zip(longest) {
            passes(host, target, expected).with_context(|| format!("{target} after the cut to {mtu}"))?;
        }
        for stream in &streams {
            stream.resume();
            stream.wait_received(MORE, RECOVERY).with_context(|| format!("in packets for {mtu} bytes"))?;
        }
    }
    ensure!(alice.counter("too_big")? > 0, "nobody was told");
    Ok(())
}

/// Pings of `length` bytes that must not be fragmented are refused with the new MTU.
fn hears(host: &Namespace, target: IpAddr, length: usize, expected: usize) -> Result<()> {
    let mut heard = None;
    wait::until(RECOVERY, "a ping to be told the path's MTU", || {
        let report = ping_whole(host, target, length, Duration::from_millis(100));
        heard = learnt_mtu(host, target).ok().flatten();
        heard == Some(expected) && report.is_ok_and(|report| report.lost == 1)
    })
    .with_context(|| format!("the host heard of {heard:?} to {target}, not of {expected}"))
}

/// Pings as long as the path takes pass whole, longer ones in fragments.
fn passes(host: &Namespace, target: IpAddr, longest: usize) -> Result<()> {
    wait::until(RECOVERY, "a ping as long as the path takes", || {
        ping_whole(host, target, longest, PATIENCE).is_ok_and(|report| report.lost == 0)
    })?;
    // The first may be lost: the far end hears of the cut by what it sends.
    wait::until(RECOVERY, "long pings without a loss", || {
        let report = ping(host, target, 20, Duration::from_millis(2), &[0x5a; 4000]);
        report.is_ok_and(|report| report.lost == 0)
    })
}

#[test]
fn the_kernel_engine_survives_a_narrowed_uplink_over_ipv4() -> Result<()> {
    survive_cuts(&Network::switched(Underlay::Ipv4)?, Engine::Kernel)
}

#[test]
fn the_kernel_engine_survives_a_narrowed_uplink_over_ipv6() -> Result<()> {
    survive_cuts(&Network::switched(Underlay::Ipv6)?, Engine::Kernel)
}

#[test]
fn the_kernel_engine_survives_a_narrow_link_between_routers_over_ipv4() -> Result<()> {
    survive_cuts(&Network::routed(Underlay::Ipv4)?, Engine::Kernel)
}

#[test]
fn the_kernel_engine_survives_a_narrow_link_between_routers_over_ipv6() -> Result<()> {
    survive_cuts(&Network::routed(Underlay::Ipv6)?, Engine::Kernel)
}

#[test]
fn user_space_survives_a_narrowed_uplink_over_ipv4() -> Result<()> {
    survive_cuts(&Network::switched(Underlay::Ipv4)?, Engine::User)
}

#[test]
fn user_space_survives_a_narrowed_uplink_over_ipv6() -> Result<()> {
    survive_cuts(&Network::switched(Underlay::Ipv6)?, Engine::User)
}

#[test]
fn user_space_survives_a_narrow_link_between_routers_over_ipv4() -> Result<()> {
    survive_cuts(&Network::routed(Underlay::Ipv4)?, Engine::User)
}

#[test]
fn user_space_survives_a_narrow_link_between_routers_over_ipv6() -> Result<()> {
    survive_cuts(&Network::routed(Underlay::Ipv6)?, Engine::User)
}
