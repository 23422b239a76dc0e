//! The controllers of 2014 bring their nodes together through a real XMPP server, at their own pace.
//!
//! ```text
//!   alice eth0 --- switch --- eth0 bob      prosody on the switch, 192.0.2.100; STUN on 192.0.2.101
//! ```

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tincan_tests::controller_2014::{Config, Controller, Flavour, ip6};
use tincan_tests::coturn::Coturn;
use tincan_tests::daemon::{Daemon, DaemonOptions};
use tincan_tests::ping::ping;
use tincan_tests::prosody::{DOMAIN, Prosody, ProsodyOptions, password};
use tincan_tests::signalling::trusting;
use tincan_tests::topology::{Pair, Underlay};
use tincan_tests::udp_door::UdpDoor;

const SERVER: &str = "192.0.2.100";
const STUN: &str = "192.0.2.101";
/// SHA-1 of "172.16.0.1" and of "172.16.0.2".
const GROUP: [(&str, &str); 2] = [
    ("27bfb1be555a4d5026464af41794985a046965ff", "172.16.0.1"),
    ("1e736a9615f7062d22608225bb572b839c483923", "172.16.0.2"),
];
/// SocialVPN takes any uid; every node is 172.31.0.100 to itself and gives its friends addresses of its own.
const FRIENDS: [(&str, &str); 2] = [
    ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "172.31.0.101"),
    ("bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "172.31.0.102"),
];
/// Two rounds of 15 to 30 s bring a pair together, a third shows it.
const CONVERGED: Duration = Duration::from_secs(100);
/// Offline, older than two rounds, trimmed in the next, asked for again, linked, seen.
const RECOVERED: Duration = Duration::from_secs(160);

struct Scene {
    pair: Pair,
    _server: Prosody,
    _stun: Coturn,
    daemons: [Daemon; 2],
    configs: [Config; 2],
}

impl Scene {
    fn new(flavour: Flavour, table: [(&'static str, &'static str); 2]) -> Result<Self> {
        let pair = Pair::new(Underlay::Ipv4)?;
        pair.lan.address(&format!("{SERVER}/24"))?;
        pair.lan.address(&format!("{STUN}/24"))?;
        let server = Prosody::start(pair.lan.namespace(), SERVER, &ProsodyOptions::default())?;
        let stun = Coturn::start(pair.lan.namespace(), STUN)?;
        let options = DaemonOptions { more: trusting(&server), ..DaemonOptions::default() };
        let daemons = [Daemon::start(&pair.alice, &options)?, Daemon::start(&pair.bob, &options)?];
        let config = |account: &str, own: usize| Config {
            flavour,
            uid: table[own].0,
            ip4: if flavour == Flavour::GroupVpn { table[own].1 } else { "172.31.0.100" },
            peers: vec![table[1 - own]],
            username: format!("{account}@{DOMAIN}"),
            password: password(account),
            host: SERVER.to_owned(),
            stun: stun.address(),
        };
        let configs = [config("alice", 0), config("bob", 1)];
        Ok(Self { pair, _server: server, _stun: stun, daemons, configs })
    }

    fn start_controllers(&self) -> Result<[Controller; 2]> {
        let [alice, bob] = self.configs.clone();
        Ok([Controller::start(&self.pair.alice, alice)?, Controller::start(&self.pair.bob, bob)?])
    }

    /// Lets both controllers go on until each has seen its peer online.
    fn converge(&self, controllers: &mut [Controller; 2], deadline: Duration) -> Result<()> {
        let start = Instant::now();
        let [alice, bob] = controllers;
        let [of_alice, of_bob] = self.configs.each_ref().map(|config| config.uid);
        thread::scope(|scope| {
            let sees = |controller: &Controller, uid: &str| controller.peer(uid)["status"] == "online";
            let bob = scope.spawn(move || bob.run(deadline, "alice online", |bob| sees(bob, of_alice)));
            alice.run(deadline, "bob online", |alice| sees(alice, of_bob))?;
            bob.join().map_err(|_| anyhow::anyhow!("bob's controller panicked"))?
        })?;
        println!(
            "{:?}: both see each other online after {:.1} s",
            self.configs[0].flavour,
            start.elapsed().as_secs_f64()
        );
        Ok(())
    }

    fn ping6(&self) -> Result<()> {
        let target = ip6(self.configs[1].uid).parse().context("bob's address")?;
        let report = ping(&self.pair.alice, target, 50, Duration::from_millis(10), b"as in 2014")?;
        ensure!(report.lost == 0, "{} of 50 pings lost", report.lost);
        Ok(())
    }
}

/// All that the controllers of 2014 read of the state.
fn check_state(controller: &Controller, own: &Config, peer: (&str, &str), with_stats: bool) -> Result<()> {
    let local = controller.local();
    ensure!(local["_uid"] == own.uid && local["_ip4"] == own.ip4, "{local}");
    ensure!(local["_ip6"] == ip6(own.uid).as_str(), "the address is not as it was given: {local}");
    ensure!(local["_mac"].as_str().is_some_and(|mac| mac.len() == 17), "{local}");
    let (uid, ip4) = peer;
    let seen = controller.peer(uid);
    ensure!(seen["uid"] == uid && seen["ip4"] == ip4 && seen["ip6"] == ip6(uid).as_str(), "{seen}");
    ensure!(seen["security"] == "dtls" && seen["status"] == "online", "{seen}");
    let fingerprint_length = local["_fpr"].as_str().map(str::len);
    ensure!(seen["fpr"].as_str().map(str::len) == fingerprint_length, "{seen}");
    ensure!(seen["last_time"].is_u64() && seen["xmpp_time"].is_u64(), "{seen}");
    ensure!(seen.get("stats").is_some() == with_stats, "{seen}");
    let Some(stats) = seen.get("stats") else { return Ok(()) };
    let pairs = stats.as_array().filter(|pairs| !pairs.is_empty()).with_context(|| format!("{stats}"))?;
    for pair in pairs {
        for name in ["sent_total_bytes", "recv_total_bytes", "sent_bytes_second", "recv_bytes_second", "rtt"] {
            ensure!(pair[name].is_u64(), "{name} in {pair}");
        }
        for name in ["best_conn", "writable", "readable", "timeout", "new_conn"] {
            ensure!(pair[name].is_boolean(), "{name} in {pair}");
        }
        for name in ["local_addr", "rem_addr", "local_type", "rem_type"] {
            ensure!(pair[name].is_string(), "{name} in {pair}");
        }
    }
    Ok(())
}

/// What GroupVPN adds up to see whether a link is in use.
fn activity(state: &Value) -> u64 {
    let pairs = state["stats"].as_array().into_iter().flatten();
    pairs.filter_map(|pair| Some(pair["sent_total_bytes"].as_u64()? + pair["recv_total_bytes"].as_u64()?)).sum()
}

#[test]
fn group_vpn_controllers_bring_their_nodes_together() -> Result<()> {
    let scene = Scene::new(Flavour::GroupVpn, GROUP)?;
    let mut controllers = scene.start_controllers()?;
    scene.converge(&mut controllers, CONVERGED)?;
    for own in 0..2 {
        check_state(&controllers[own], &scene.configs[own], GROUP[1 - own], true)?;
    }
    scene.ping6()?;
    let report = ping(&scene.pair.alice, "172.16.0.2".parse()?, 50, Duration::from_millis(10), b"GroupVPN")?;
    ensure!(report.lost == 0, "{} of 50 pings lost", report.lost);

    // Their oddities change nothing.
    let (alice, bob_uid) = (&mut controllers[0], GROUP[1].0);
    let before = activity(alice.peer(bob_uid));
    alice.swapped_trim(bob_uid)?;
    alice.trim("c5158e6c1b708a72c6c28485f4b5856d841f1d28")?;
    let mut watchdog = UdpDoor::open(&scene.pair.alice, 5800)?;
    watchdog.send_bytes(b"\x02\x01{\"m\":\"get_state\"}\n")?;
    let state = watchdog.take(Duration::from_secs(5), "an answer to the asker", |_| true)?;
    ensure!(state.bytes.starts_with(b"\x02\x01{\n   \"_fpr\""), "{:?}", String::from_utf8_lossy(&state.bytes));
    alice.forget_peers();
    alice.ask_state()?;
    alice.run(Duration::from_secs(5), "the next state", |alice| alice.peer(bob_uid)["status"] == "online")?;
    ensure!(activity(alice.peer(bob_uid)) >= before, "byte totals went back");
    scene.ping6()
}

#[test]
fn social_vpn_controllers_bring_their_nodes_together() -> Result<()> {
    let scene = Scene::new(Flavour::SocialVpn, FRIENDS)?;
    let mut controllers = scene.start_controllers()?;
    scene.converge(&mut controllers, CONVERGED)?;
    for own in 0..2 {
        check_state(&controllers[own], &scene.configs[own], FRIENDS[1 - own], false)?;
    }
    scene.ping6()
}

#[test]
fn group_vpn_controllers_get_over_a_node_that_was_killed() -> Result<()> {
    let mut scene = Scene::new(Flavour::GroupVpn, GROUP)?;
    let mut controllers = scene.start_controllers()?;
    scene.converge(&mut controllers, CONVERGED)?;
    // The controller does not notice that its daemon is another: it is started anew with it.
    scene.daemons[1].kill9()?;
    scene.daemons[1].restart()?;
    controllers[0].forget_peers();
    let [alice, bob] = controllers;
    drop(bob);
    let mut controllers = [alice, Controller::start(&scene.pair.bob, scene.configs[1].clone())?];
    scene.converge(&mut controllers, RECOVERED)?;
    scene.ping6()
}
