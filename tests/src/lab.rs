//! The lab of `cargo xtask run`: three hosts on a switch, a daemon each, a secured and a plain link, traffic over both.
//!
//! ```text
//!                 +--- eth0 bob    172.16.0.2   secured link with alice
//!   switch -------+--- eth0 alice  172.16.0.1
//!   192.0.2.0/24  +--- eth0 carol  172.16.0.3   plain link with alice
//!                 +--- eth0 server              with `--xmpp`: prosody, through which they find each other
//! ```

mod report;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::controller::{LinkPlan, Node, connect};
use crate::daemon::DaemonOptions;
use crate::lab::report::{LinkReport, Voice};
use crate::netns::Namespace;
use crate::ping::ping;
use crate::prosody::{DOMAIN, Prosody, ProsodyOptions};
use crate::signalling;
use crate::topology::{Lan, Underlay, plug_host};
use crate::traffic::tcp_gbps;

/// The XMPP server's number on the switch.
const SERVER: u8 = 100;
/// Pings of the first measurement of a link, and their pause.
const PINGS: u32 = 100;
const PING_PAUSE: Duration = Duration::from_millis(10);
/// Pings between two lines of live figures.
const LIVE_PINGS: u32 = 20;
const LIVE_PAUSE: Duration = Duration::from_millis(50);
/// Length of a throughput measurement.
const TCP_SECONDS: u32 = 3;
/// How finely Ctrl-C and the end are looked at.
const TICK: Duration = Duration::from_millis(100);

/// What the lab is told.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// End by itself after this time.
    pub duration: Option<Duration>,
    /// The last line is one JSON object.
    pub json: bool,
    /// Signalling goes through an XMPP server instead of the lab's controller.
    pub xmpp: bool,
}

/// A host of the lab that alice is linked to.
struct Partner {
    host: Namespace,
    node: Node,
    plan: LinkPlan,
    report: LinkReport,
}

/// When to stop: at a signal, or when time is up.
struct End {
    signalled: Arc<AtomicBool>,
    at: Option<Instant>,
}

impl End {
    fn watch(duration: Option<Duration>) -> Result<Self> {
        let signalled = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, signalled.clone()).context("watching for signals")?;
        }
        Ok(Self { signalled, at: duration.map(|duration| Instant::now() + duration) })
    }

    fn is_signalled(&self) -> bool {
        self.signalled.load(Ordering::Relaxed)
    }

    fn has_come(&self) -> bool {
        self.is_signalled() || self.at.is_some_and(|at| at <= Instant::now())
    }
}

/// Runs the lab; true when both links came up and no ping was lost.
///
/// # Errors
/// When the network or a daemon cannot be set up.
pub fn run(options: &Options) -> Result<bool> {
    let voice = Voice { json: options.json };
    let end = End::watch(options.duration)?;
    voice.say("lab: three hosts on a switch, in network namespaces of their own");
    let mut lan = Lan::new("lan")?;
    let server = if options.xmpp { Some(start_server(&mut lan, &voice)?) } else { None };
    let (_alice_host, mut alice) = start(&mut lan, "alice", 1, server.as_ref(), &voice)?;
    let mut partners = Vec::new();
    for (role, number, name, plan) in
        [("bob", 2, "secured", LinkPlan::secured()), ("carol", 3, "plain", LinkPlan::plain())]
    {
        let (host, node) = start(&mut lan, role, number, server.as_ref(), &voice)?;
        partners.push(Partner { host, node, plan, report: LinkReport::new(name) });
    }
    for partner in &mut partners {
        if !end.is_signalled() {
            link(&mut alice, partner, options.xmpp, &voice);
        }
    }
    for partner in &mut partners {
        if !end.is_signalled() && partner.report.is_up() {
            measure(&alice, partner, &voice);
        }
    }
    live(&alice, &mut partners, &end, &voice);
    let reports: Vec<LinkReport> = partners.iter().map(|partner| partner.report.clone()).collect();
    drop((partners, alice, server, lan));
    let ok = reports.iter().all(LinkReport::is_good);
    voice.conclude(ok, &reports);
    Ok(ok)
}

/// The object of a lab that could not be set up.
pub fn failed() -> Value {
    report::summary(false, &[])
}

/// An XMPP server in a namespace of its own, with an account for everyone.
fn start_server(lan: &mut Lan, voice: &Voice) -> Result<Prosody> {
    let (host, _cable) = plug_host(lan, "server", SERVER, Underlay::Ipv4)?;
    let accounts: Vec<String> = ["alice", "bob", "carol"].map(str::to_owned).to_vec();
    let options = ProsodyOptions { group: accounts.clone(), accounts, ..ProsodyOptions::default() };
    let server = Prosody::start(&host, &format!("192.0.2.{SERVER}"), &options).context("starting prosody")?;
    voice.say(&format!("server: prosody for {DOMAIN} at {}", server.address()));
    Ok(server)
}

fn start(lan: &mut Lan, role: &str, number: u8, server: Option<&Prosody>, voice: &Voice) -> Result<(Namespace, Node)> {
    let (host, _cable) = plug_host(lan, role, number, Underlay::Dual)?;
    let more = server.map(signalling::trusting).unwrap_or_default();
    let options = DaemonOptions { log_at_end: false, more, ..DaemonOptions::default() };
    let node = Node::start_with(&host, number, &options).with_context(|| format!("starting {role}'s daemon"))?;
    voice.say(&format!("{role}: daemon {} is node {}.., {}", node.daemon.pid(), &node.uid[..8], node.ip4));
    if let Some(server) = server {
        signalling::log_in(&node, server, role).with_context(|| format!("logging {role} in"))?;
        voice.say(&format!("{role}: {}", signalling::service(&node)?));
    }
    Ok((host, node))
}

/// Links alice with a partner; a failure is told and stays in the report.
fn link(alice: &mut Node, partner: &mut Partner, by_xmpp: bool, voice: &Voice) {
    let name = partner.report.name;
    let linked = if by_xmpp {
        let met = signalling::meet(alice, &partner.node);
        let linked = met.and_then(|()| signalling::link(alice, &mut partner.node, &partner.plan));
        linked.map(|took| (took, "con_req to online"))
    } else {
        let linked = connect(alice, &mut partner.node, &partner.plan);
        linked.map(|setup| (setup.linking, "candidates known to online"))
    };
    match linked {
        Ok((took, what)) => {
            partner.report.setup = Some(took);
            look(alice, partner);
            let LinkReport { status, security, path, engine, .. } = &partner.report;
            let millis = millis(took);
            voice.say(&format!(
                "{name} link: {status}, {what} {millis:.1} ms, security {security}, path {path}, engine {engine}"
            ));
        }
        Err(error) => {
            look(alice, partner);
            voice.say(&format!("{name} link: did not come up: {error:#}"));
            voice.say(&format!("alice's daemon said:\n{}", alice.daemon.log()));
            voice.say(&format!("its partner's said:\n{}", partner.node.daemon.log()));
        }
    }
}

/// Takes what alice's daemon says about the link into the report.
fn look(alice: &Node, partner: &mut Partner) {
    if let Ok(peer) = alice.peer(&partner.node) {
        partner.report.update(&peer);
    }
    // A daemon that does not answer leaves the figure it had.
    drop(partner.report.update_engines(&partner.node));
}

fn measure(alice: &Node, partner: &mut Partner, voice: &Voice) {
    let name = partner.report.name;
    let target = partner.node.ip4.into();
    send_pings(alice, partner, PINGS, PING_PAUSE, voice);
    let LinkReport { ping_sent, ping_lost, .. } = partner.report;
    voice.say(&format!("{name} link: {ping_sent} pings, {ping_lost} lost"));
    match tcp_gbps(alice.daemon.namespace(), &partner.host, target, TCP_SECONDS) {
        Ok(gbps) => {
            partner.report.tcp_gbps = Some(gbps);
            voice.say(&format!("{name} link: TCP {gbps:.2} Gb/s"));
        }
        Err(error) => voice.say(&format!("{name} link: no TCP figure: {error:#}")),
    }
    look(alice, partner);
}

fn send_pings(alice: &Node, partner: &mut Partner, count: u32, pause: Duration, voice: &Voice) {
    match ping(alice.daemon.namespace(), partner.node.ip4.into(), count, pause, b"tincan lab") {
        Ok(report) => {
            partner.report.ping_sent += report.sent;
            partner.report.ping_lost += report.lost;
            partner.report.round_trip = report.round_trips.iter().min().copied();
        }
        Err(error) => voice.say(&format!("{} link: pinging failed: {error:#}", partner.report.name)),
    }
}

/// Shows figures until the end.
fn live(alice: &Node, partners: &mut [Partner], end: &End, voice: &Voice) {
    if end.has_come() {
        return;
    }
    voice.say(match end.at {
        Some(_) => "live figures until time is up",
        None => "live figures; Ctrl-C ends the lab and removes everything",
    });
    while !end.has_come() {
        for partner in partners.iter_mut().filter(|partner| partner.report.is_up()) {
            if end.is_signalled() {
                return;
            }
            send_pings(alice, partner, LIVE_PINGS, LIVE_PAUSE, voice);
            look(alice, partner);
            voice.say(&partner.report.line());
        }
        let pause = Instant::now() + Duration::from_secs(1);
        while Instant::now() < pause && !end.has_come() {
            thread::sleep(TICK);
        }
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
