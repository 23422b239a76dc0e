//! `tincan doctor` against real servers, behind real NATs, with and without rights.
//!
//! ```text
//!   alice 192.168.1.2 --- router with a NAT, 198.51.100.1 --- switch: coturn at 198.51.100.10 and .11
//!
//!   alice 192.0.2.1 --- switch: coturn at 192.0.2.100 and .101, prosody at 192.0.2.100
//! ```

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tincan_tests::controller::Node;
use tincan_tests::coturn::{self, Coturn};
use tincan_tests::daemon::{DaemonOptions, program};
use tincan_tests::netns::Namespace;
use tincan_tests::prosody::{DOMAIN, Prosody, ProsodyOptions, password};
use tincan_tests::scratch::Scratch;
use tincan_tests::topology::{Homes, Nat, Pair, SERVER, Underlay, firewall};
use tincan_tests::wait;

/// The second address of the STUN server behind the homes' routers.
const OTHER_SERVER: &str = "198.51.100.11";
/// Those of the hosts on one switch.
const LAN_SERVER: &str = "192.0.2.100";
const OTHER_LAN_SERVER: &str = "192.0.2.101";

/// The report and whether the exit status was 0.
struct Report {
    checks: Value,
    is_success: bool,
    text: String,
}

impl Report {
    /// State, finding and advice of the first check of this name.
    fn check(&self, name: &str) -> Result<(&str, &str, &str)> {
        let checks = self.checks["checks"].as_array().context("no checks")?;
        let check = checks.iter().find(|check| check["name"] == name);
        let check = check.with_context(|| format!("no check {name} in {}", self.text))?;
        let text = |key: &str| check[key].as_str().with_context(|| format!("no {key} in {check}"));
        Ok((text("state")?, text("found")?, text("do")?))
    }

    /// Fails unless the check has this state and its finding holds every one of `words`.
    fn expect(&self, name: &str, state: &str, words: &[&str]) -> Result<()> {
        let (is, found, _) = self.check(name)?;
        ensure!(is == state, "{name} is {is}, not {state}: {found}");
        for word in words {
            ensure!(found.contains(word), "{name} does not say {word:?}: {found}");
        }
        Ok(())
    }
}

/// Runs the command in `namespace`.
fn doctor(namespace: &Namespace, words: &[&str]) -> Result<Report> {
    doctor_by(&[&program()?.display().to_string()], namespace, words)
}

/// Runs the command by the words of `before`, which end with the program, with directories of its own.
fn doctor_by(before: &[&str], namespace: &Namespace, words: &[&str]) -> Result<Report> {
    let scratch = Scratch::new("doctor")?;
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o755)).context("letting others look")?;
    let output = Command::new("ip")
        .args(["netns", "exec", namespace.name()])
        .args(before)
        .args(["doctor", "--json", "--state-dir"])
        .arg(scratch.path().join("state"))
        .arg("--socket")
        .arg(scratch.path().join("tincan.sock"))
        .args(words)
        .env("TINCAN_TURN_PASSWORD", coturn::PASSWORD)
        .env("TINCAN_XMPP_PASSWORD", password("alice"))
        .output()
        .context("running tincan doctor")?;
    let text = String::from_utf8_lossy(&[output.stdout.clone(), output.stderr].concat()).into_owned();
    eprintln!("{text}");
    let checks: Value = serde_json::from_slice(&output.stdout).with_context(|| text.clone())?;
    ensure!(checks["ok"] == output.status.success(), "ok and the exit status differ: {text}");
    Ok(Report { checks, is_success: output.status.success(), text })
}

fn nat_is_told(nat: Nat, state: &str, words: &[&str]) -> Result<()> {
    let homes = Homes::new(nat, Nat::FullCone)?;
    homes.internet.address(&format!("{OTHER_SERVER}/24"))?;
    let server = Coturn::start_with_other(homes.internet.namespace(), SERVER, OTHER_SERVER)?;
    let report = doctor(&homes.alice, &["--stun", &server.address()])?;
    report.expect("stun", "ok", &["198.51.100.1:", "RTT"])?;
    report.expect("nat", state, words)
}

#[test]
fn a_full_cone_nat_depends_on_nothing() -> Result<()> {
    nat_is_told(Nat::FullCone, "ok", &["mapping endpoint-independent", "filtering endpoint-independent"])
}

#[test]
fn an_address_restricted_nat_filters_by_address() -> Result<()> {
    nat_is_told(Nat::AddressRestricted, "ok", &["mapping endpoint-independent", "filtering address-dependent"])
}

#[test]
fn a_port_restricted_nat_filters_by_address_and_port() -> Result<()> {
    nat_is_told(Nat::PortRestricted, "ok", &["mapping endpoint-independent", "filtering address-and-port-dependent"])
}

#[test]
fn a_symmetric_nat_maps_by_address_and_port() -> Result<()> {
    let words = ["mapping address-and-port-dependent", "filtering address-and-port-dependent", "no direct link"];
    nat_is_told(Nat::Symmetric, "warning", &words)
}

#[test]
fn a_server_with_one_address_cannot_tell_the_mapping() -> Result<()> {
    let homes = Homes::new(Nat::PortRestricted, Nat::FullCone)?;
    let server = Coturn::start(homes.internet.namespace(), SERVER)?;
    let report = doctor(&homes.alice, &["--stun", &server.address()])?;
    report.expect("stun", "ok", &["198.51.100.1:"])?;
    report.expect("nat", "skipped", &["mapping cannot be told: the server has one address"])
}

#[test]
fn a_host_where_all_is_well_ends_with_status_0_and_keeps_nothing() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    for address in [LAN_SERVER, OTHER_LAN_SERVER] {
        pair.lan.address(&format!("{address}/24"))?;
    }
    let stun = Coturn::start_with_other(pair.lan.namespace(), LAN_SERVER, OTHER_LAN_SERVER)?;
    let xmpp = Prosody::start(pair.lan.namespace(), LAN_SERVER, &ProsodyOptions::default())?;
    let (authority, account) = (xmpp.authority().display().to_string(), format!("alice@{DOMAIN}"));
    let servers = ["--stun", &stun.address(), "--turn", &stun.address(), "--turn-user", coturn::USER];
    let login = ["--xmpp", &account, "--xmpp-host", LAN_SERVER, "--xmpp-ca", &authority];
    let report = doctor(&pair.alice, &[&servers[..], &login, &["--peer", "192.0.2.2"]].concat())?;
    ensure!(report.is_success, "{}", report.text);
    report.expect("permissions", "ok", &[])?;
    report.expect("kernel-engine", "ok", &["attach"])?;
    report.expect("tap", "ok", &["ipop is free"])?;
    report.expect("clock", "ok", &["within 10 s of the XMPP server's"])?;
    report.expect("nat", "ok", &["no address translation", "filtering endpoint-independent"])?;
    report.expect("turn", "ok", &[LAN_SERVER, "given back"])?;
    let relayed = report.check("turn")?.1.split("relays at 192.0.2.100:").nth(1).context("no relayed port")?;
    let port: u16 = relayed.split(';').next().unwrap_or_default().parse().context("the relayed port")?;
    wait::until(Duration::from_secs(5), "the end of the allocation", || {
        pair.lan.namespace().ports("udp").is_ok_and(|ports| !ports.is_empty() && !ports.contains(&port))
    })?;
    report.expect("xmpp", "ok", &[&account, "out again"])?;
    report.expect("path-mtu", "ok", &["1500 bytes (a packet of 1500 arrived whole)", "1413", "1450"])?;
    ensure!(report.text.matches("\"path-mtu\"").count() == 2, "one line for each address: {}", report.text);
    ensure!(pair.alice.interfaces()? == ["eth0"], "a device is left behind");
    let log = xmpp.log();
    ensure!(log.contains("Received </stream:stream>"), "no farewell: {log}");
    ensure!(!log.contains("<presence"), "contacts saw the login: {log}");
    Ok(())
}

#[test]
fn a_host_without_any_address_for_peers_has_a_problem() -> Result<()> {
    let host = Namespace::new("lonely")?;
    let report = doctor(&host, &[])?;
    ensure!(!report.is_success, "{}", report.text);
    report.expect("addresses", "problem", &["no interface"])
}

#[test]
fn the_programs_are_attached_as_the_daemon_would() -> Result<()> {
    let host = Namespace::new("attached")?;
    for (way, said) in [("auto", "by TCX"), ("tcx", "by TCX"), ("clsact", "by clsact")] {
        doctor(&host, &["--attach", way])?.expect("kernel-engine", "ok", &[said])?;
    }
    Ok(())
}

#[test]
fn servers_that_are_silent_together_are_named_within_fifteen_seconds() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    firewall(&pair.bob, "table ip cut {\n chain input { type filter hook input priority filter; policy drop; }\n}\n")?;
    // The switch's neighbour table would tell of an address nobody has; bob is there, and says nothing.
    pair.alice.exec("ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev eth0 nud permanent")?;
    // This one's kernel takes the connection and the first words, and nobody answers them.
    pair.lan.address(&format!("{LAN_SERVER}/24"))?;
    let xmpp = Prosody::start(pair.lan.namespace(), LAN_SERVER, &ProsodyOptions::default())?;
    xmpp.freeze()?;
    let (stun, account) = ("192.0.2.2:3478", format!("alice@{DOMAIN}"));
    let words = ["--stun", stun, "--turn", stun, "--turn-user", "x", "--xmpp", &account, "--xmpp-host", LAN_SERVER];
    let start = Instant::now();
    let report = doctor(&pair.alice, &words)?;
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(15), "it took {took:?}");
    ensure!(!report.is_success);
    report.expect("stun", "problem", &["192.0.2.2:3478 is silent"])?;
    report.expect("turn", "problem", &["did not answer"])?;
    report.expect("xmpp", "problem", &["no login", LAN_SERVER])?;
    report.expect("path-mtu", "ok", &["not confirmed"])
}

#[test]
fn a_port_nobody_listens_at_is_told_apart_from_silence() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let report = doctor(&pair.alice, &["--stun", "192.0.2.2:3478", "--turn", "192.0.2.2:3478", "--turn-user", "x"])?;
    report.expect("stun", "problem", &["ICMP port unreachable"])?;
    report.expect("turn", "problem", &["ICMP port unreachable"])
}

#[test]
fn a_wrong_turn_password_is_named_as_such() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    pair.lan.address(&format!("{LAN_SERVER}/24"))?;
    let server = Coturn::start(pair.lan.namespace(), LAN_SERVER)?;
    let scratch = Scratch::new("password")?;
    let file = scratch.path().join("turn");
    fs::write(&file, "wrong\n")?;
    let file = file.display().to_string();
    let words = ["--turn", &server.address(), "--turn-user", coturn::USER, "--turn-password-file", &file];
    let report = doctor(&pair.alice, &words)?;
    report.expect("turn", "problem", &["refused the user name or the password", "401"])?;
    ensure!(report.check("turn")?.2.contains("TINCAN_TURN_PASSWORD"), "no next step: {}", report.text);
    Ok(())
}

#[test]
fn a_wrong_xmpp_password_is_tried_once_and_named_as_such() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    pair.lan.address(&format!("{LAN_SERVER}/24"))?;
    let server = Prosody::start(pair.lan.namespace(), LAN_SERVER, &ProsodyOptions::default())?;
    let (authority, account) = (server.authority().display().to_string(), format!("bob@{DOMAIN}"));
    let target = ["--xmpp", &account, "--xmpp-host", LAN_SERVER];
    let report = doctor(&pair.alice, &[&target[..], &["--xmpp-ca", &authority]].concat())?;
    report.expect("xmpp", "problem", &[&account, "does not accept this user name with this password"])?;
    ensure!(report.check("xmpp")?.2.contains("TINCAN_XMPP_PASSWORD"), "no next step: {}", report.text);
    let log = server.log();
    let tries = log.matches(": <auth ").count();
    ensure!(tries == 1, "{tries} tries: {log}");
    let stranger = doctor(&pair.alice, &target)?;
    stranger.expect("xmpp", "problem", &["certificate"])?;
    ensure!(stranger.check("xmpp")?.2.contains("--xmpp-ca"), "no next step: {}", stranger.text);
    Ok(())
}

#[test]
fn a_user_without_rights_is_told_what_is_missing() -> Result<()> {
    let host = Namespace::new("host")?;
    // The program may lie where nobody else may look. A program of its own copies it: a descriptor of ours that is open
    // for writing would be inherited by what other tests start meanwhile, and the kernel would not run the file.
    let scratch = Scratch::new("program")?;
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o755)).context("letting others look")?;
    let copy = scratch.path().join("tincan").display().to_string();
    host.exec(&format!("install -m 755 {} {copy}", program()?.display()))?;
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", &copy];
    let report = doctor_by(&nobody, &host, &[])?;
    ensure!(!report.is_success);
    report.expect("permissions", "problem", &["user 65534", "CAP_NET_ADMIN"])?;
    report.expect("tap", "problem", &["CAP_NET_ADMIN"])?;
    report.expect("kernel-engine", "warning", &["CAP_BPF"])?;
    report.expect("state-dir", "problem", &["cannot write"])?;
    report.expect("socket", "problem", &["cannot write"])?;
    ensure!(report.check("permissions")?.2.contains("root"), "no next step: {}", report.text);
    Ok(())
}

#[test]
fn a_running_daemon_is_no_problem_and_a_foreign_device_is_one() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv4)?;
    let alice = Node::start_with(&pair.alice, 1, &DaemonOptions::default())?;
    let socket = alice.daemon.socket().display().to_string();
    let program = program()?.display().to_string();
    let beside = pair.alice.exec(&format!("{program} doctor --socket {socket} --state-dir {socket}.state"))?;
    for line in ["a daemon answers at", "is taken, as it is while the daemon runs", "ipop is the running daemon's"] {
        ensure!(beside.contains(line), "no line {line:?}: {beside}");
    }
    pair.bob.exec("ip tuntap add dev ipop mode tap")?;
    let report = doctor(&pair.bob, &[])?;
    report.expect("tap", "problem", &["ipop exists already and is no running daemon's"])?;
    report.expect("rpc-port", "ok", &["free"])?;
    ensure!(pair.bob.interfaces()?.contains(&"ipop".to_owned()), "the foreign device is gone");
    Ok(())
}

/// Alice's path to the server with a narrow hop behind her router; `told` says whether ICMP comes back.
fn narrow_path(mtu: u32, told: bool) -> Result<Report> {
    let homes = Homes::new(Nat::PortRestricted, Nat::FullCone)?;
    let server = Coturn::start(homes.internet.namespace(), SERVER)?;
    homes.alice_router.exec(&format!("ip link set wan mtu {mtu}"))?;
    if !told {
        let rules = "table ip hush {\n chain out { type filter hook output priority filter; icmp type \
                     destination-unreachable drop; }\n}\n";
        firewall(&homes.alice_router, rules)?;
    }
    doctor(&homes.alice, &["--stun", &server.address()])
}

#[test]
fn a_narrow_hop_is_known_by_its_icmp() -> Result<()> {
    narrow_path(1400, true)?.expect("path-mtu", "ok", &["1400 bytes (a packet of 1400 arrived whole)", "1313"])?;
    narrow_path(1320, true)?.expect("path-mtu", "warning", &["1320 bytes", "1233 and 1270", "MTU is 1280"])
}

#[test]
fn a_narrow_hop_that_keeps_silent_is_found_by_what_vanishes() -> Result<()> {
    narrow_path(1400, false)?.expect("path-mtu", "ok", &["a packet of 1367 arrived whole"])?;
    narrow_path(1320, false)?.expect("path-mtu", "warning", &["packets of 1367 vanish"])
}

#[test]
fn over_ipv6_the_same_is_seen_with_its_larger_header() -> Result<()> {
    let pair = Pair::new(Underlay::Ipv6)?;
    pair.lan.address("2001:db8:1::100/64")?;
    let server = Coturn::start(pair.lan.namespace(), "2001:db8:1::100")?;
    let report = doctor(&pair.alice, &["--stun", &server.address()])?;
    report.expect("stun", "ok", &["[2001:db8:1::100]:3478", "[2001:db8:1::1]:"])?;
    report.expect("nat", "ok", &["no address translation"])?;
    report.expect("path-mtu", "ok", &["1500 bytes (a packet of 1500 arrived whole)", "1393 and 1430"])
}

#[test]
fn the_daemons_file_and_flags_say_what_is_looked_at() -> Result<()> {
    let host = Namespace::new("host")?;
    let scratch = Scratch::new("config")?;
    let file = scratch.path().join("tincan.toml");
    fs::write(&file, "tap = \"blue\"\nrpc-port = 5999\nfast-path = \"off\"\n")?;
    let report = doctor(&host, &["--config", &file.display().to_string(), "--rpc-port", "6001"])?;
    report.expect("tap", "ok", &["blue is free"])?;
    report.expect("rpc-port", "ok", &["6001 is free"])?;
    report.expect("kernel-engine", "skipped", &["switched off"])
}

#[test]
fn an_option_that_cannot_be_is_a_problem_of_the_configuration() -> Result<()> {
    let host = Namespace::new("host")?;
    for words in [["--mtu", "1279"], ["--config", "/nonexistent.toml"], ["--xmpp", "nobody"]] {
        let report = doctor(&host, &words)?;
        report.expect("configuration", "problem", &[words[1]])?;
    }
    Ok(())
}
