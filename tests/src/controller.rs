//! A small controller: says who a daemon is, and links two of them by carrying each one's `con_resp` to the other.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::daemon::{Daemon, DaemonOptions};
use crate::netns::Namespace;
use crate::udp_door::UdpDoor;
use crate::wait;

/// How long gathering may take: a silent STUN server is given up after seconds.
pub const GATHER_DEADLINE: Duration = Duration::from_secs(15);
/// How long a link may take to come up behind NATs.
pub const ONLINE_DEADLINE: Duration = Duration::from_secs(15);

/// A daemon that knows who it is, and the controller's end of its UDP door.
#[derive(Debug)]
pub struct Node {
    pub daemon: Daemon,
    pub door: UdpDoor,
    /// 40 hex digits; the larger uid of two controls ICE and is the DTLS server.
    pub uid: String,
    pub ip4: Ipv4Addr,
    pub ip6: Ipv6Addr,
    /// Of its certificate, as text.
    pub fingerprint: String,
    /// Bits of an IPv4 address that choose the peer; below 32 a whole subnet is behind each.
    router_prefix: u8,
}

/// What a link shall be.
#[derive(Clone, Debug)]
pub struct LinkPlan {
    /// Whether `sec` is asked for.
    pub secured: bool,
    /// `host:port`, or empty.
    pub stun: String,
    /// `host:port`, user and password, or empty.
    pub turn: [String; 3],
}

impl LinkPlan {
    /// A DTLS link without servers.
    pub fn secured() -> Self {
        Self { secured: true, stun: String::new(), turn: Default::default() }
    }

    /// A link without protection and without servers.
    pub fn plain() -> Self {
        Self { secured: false, ..Self::secured() }
    }

    /// The same with a STUN server.
    #[must_use]
    pub fn with_stun(mut self, server: &str) -> Self {
        server.clone_into(&mut self.stun);
        self
    }

    /// The same with a TURN server.
    #[must_use]
    pub fn with_turn(mut self, server: &str, user: &str, password: &str) -> Self {
        self.turn = [server, user, password].map(str::to_owned);
        self
    }
}

/// A peer as the daemon's Unix socket reports it.
#[derive(Clone, Debug)]
pub struct Peer(pub Value);

impl Peer {
    /// Whether frames flow.
    pub fn is_online(&self) -> bool {
        self.0["status"] == "online"
    }

    /// Whether there is a link at all.
    pub fn has_link(&self) -> bool {
        self.0.get("fpr").is_some()
    }

    /// A text member, empty when absent.
    pub fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_default()
    }

    /// Kinds of the selected pair's ends: `local`, `stun`, `prflx`, `relay`.
    pub fn path_kinds(&self) -> (&str, &str) {
        let kind = |end: &str| self.0["path"][end].as_str().unwrap_or_default();
        (kind("local_kind"), kind("remote_kind"))
    }

    /// A number of the selected pair, zero when absent.
    pub fn path_number(&self, name: &str) -> u64 {
        self.0["path"][name].as_u64().unwrap_or_default()
    }
}

impl Node {
    /// Starts a daemon with default options and tells it who it is: node `number` is 172.16.0.`number`.
    pub fn start(namespace: &Namespace, number: u8) -> Result<Self> {
        Self::start_with(namespace, number, &DaemonOptions::default())
    }

    /// The same with options.
    pub fn start_with(namespace: &Namespace, number: u8, options: &DaemonOptions) -> Result<Self> {
        Self::start_as(namespace, number, options, Ipv4Addr::new(172, 16, 0, number), 32)
    }

    /// A node that routes: 172.16.`number`.1, with 172.16.`number`.0/24 behind it.
    pub fn start_router(namespace: &Namespace, number: u8, options: &DaemonOptions) -> Result<Self> {
        Self::start_as(namespace, number, options, Ipv4Addr::new(172, 16, number, 1), 24)
    }

    fn start_as(
        namespace: &Namespace,
        number: u8,
        options: &DaemonOptions,
        ip4: Ipv4Addr,
        router_prefix: u8,
    ) -> Result<Self> {
        let daemon = Daemon::start(namespace, options)?;
        let door = UdpDoor::open(namespace, options.rpc_port)?;
        let mut node = Self {
            daemon,
            door,
            uid: format!("{number:02x}").repeat(20),
            ip4,
            ip6: Ipv6Addr::new(0xfd50, 0xdbc, 0x41f2, 0x4a3c, 0, 0, 0, number.into()),
            fingerprint: String::new(),
            router_prefix,
        };
        node.introduce()?;
        Ok(node)
    }

    /// Tells a daemon that has just started who it is and where notifications go.
    pub fn introduce(&mut self) -> Result<()> {
        // Zero-padded groups, as the 2014 controllers write them.
        let ip6 = self.ip6.segments().map(|group| format!("{group:04x}")).join(":");
        let params = json!({
            "uid": self.uid, "ip4": self.ip4.to_string(), "ip6": ip6, "ip4_mask": if self.router_prefix == 32 { 24 } else { 16 },
            "ip6_mask": 64, "subnet_mask": self.router_prefix,
        });
        self.daemon.call("set_local_ip", &params)?;
        let state = self.daemon.call("get_state", &json!({}))?;
        let fingerprint = state["local_state"]["_fpr"].as_str().context("no _fpr in local_state")?;
        fingerprint.clone_into(&mut self.fingerprint);
        self.door.subscribe()
    }

    /// Stops the daemon, or lets it stay dead, starts it anew and tells it who it is.
    pub fn restart(&mut self) -> Result<()> {
        self.daemon.restart()?;
        self.door = UdpDoor::open(self.daemon.namespace(), self.daemon.options().rpc_port)?;
        self.introduce()
    }

    /// Parameters of `create_link` to `peer`; change members to taste.
    pub fn link_params(&self, peer: &Self, plan: &LinkPlan, cas: &str) -> Value {
        let LinkPlan { secured, stun, turn: [turn, user, password] } = plan;
        json!({
            "overlay_id": 0, "uid": peer.uid, "fpr": peer.fingerprint, "sec": secured, "cas": cas,
            "stun": stun, "turn": turn, "turn_user": user, "turn_pass": password,
        })
    }

    /// `create_link` to `peer`.
    pub fn create_link(&self, peer: &Self, plan: &LinkPlan, cas: &str) -> Result<Value> {
        self.daemon.call("create_link", &self.link_params(peer, plan, cas))
    }

    /// The candidates for `peer`, once they are gathered: `con_resp` without its fingerprint.
    pub fn candidates(&mut self, peer: &Self) -> Result<String> {
        let response = self.door.notification(GATHER_DEADLINE, "con_resp", &peer.uid)?;
        let data = response["data"].as_str().context("con_resp without data")?;
        let (fingerprint, cas) = data.split_once(' ').unwrap_or((data, ""));
        ensure!(fingerprint == self.fingerprint, "con_resp begins with {fingerprint}, not the own fingerprint");
        Ok(cas.to_owned())
    }

    /// `set_remote_ip` of `peer`.
    pub fn map(&self, peer: &Self) -> Result<Value> {
        let params = json!({"uid": peer.uid, "ip4": peer.ip4.to_string(), "ip6": peer.ip6.to_string()});
        self.daemon.call("set_remote_ip", &params)
    }

    /// `trim_link` to `peer`.
    pub fn trim(&self, peer: &Self) -> Result<Value> {
        self.daemon.call("trim_link", &json!({"uid": peer.uid}))
    }

    /// What the daemon reports of `peer`.
    pub fn peer(&self, peer: &Self) -> Result<Peer> {
        let state = self.daemon.call("get_state", &json!({"uid": peer.uid, "stats": true}))?;
        Ok(Peer(state["peers"][0].clone()))
    }

    /// A counter of the daemon, zero when it has none of that name.
    pub fn counter(&self, name: &str) -> Result<u64> {
        Ok(self.daemon.call("counters", &json!({}))?[name].as_u64().unwrap_or_default())
    }

    /// Waits until a counter of the daemon has reached `least`.
    ///
    /// # Errors
    /// When it has not in time.
    pub fn wait_counter(&self, name: &str, least: u64, deadline: Duration) -> Result<()> {
        let reached = || self.counter(name).is_ok_and(|now| now >= least);
        wait::until(deadline, &format!("{name} to reach {least}"), reached)
    }

    /// Waits until the link to `peer` is online.
    pub fn wait_online(&self, peer: &Self, deadline: Duration) -> Result<Peer> {
        let online = || self.peer(peer).ok().filter(Peer::is_online);
        wait::until_some(deadline, "a link to be online", online)
            .with_context(|| format!("{:?}", self.peer(peer).map(|peer| peer.0.to_string())))
    }
}

/// What [`connect`] saw.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// From the first `create_link` without candidates to both sides' `con_resp`.
    pub gathering: Duration,
    /// From the first `create_link` with candidates to the later of both sides' `con_stat` online.
    pub linking: Duration,
}

/// Links two nodes and waits until both say online.
pub fn connect(a: &mut Node, b: &mut Node, plan: &LinkPlan) -> Result<Setup> {
    let start = Instant::now();
    let (for_b, for_a) = gather(a, b, plan)?;
    let gathering = start.elapsed();
    a.map(b)?;
    b.map(a)?;
    let start = Instant::now();
    a.create_link(b, plan, &for_a)?;
    b.create_link(a, plan, &for_b)?;
    let a_online = a.door.status(ONLINE_DEADLINE, &b.uid, "online")?;
    let b_online = b.door.status(ONLINE_DEADLINE, &a.uid, "online")?;
    Ok(Setup { gathering, linking: a_online.max(b_online) - start })
}

/// `create_link` without candidates on both; returns a's candidates (for b) and b's (for a).
pub fn gather(a: &mut Node, b: &mut Node, plan: &LinkPlan) -> Result<(String, String)> {
    a.create_link(b, plan, "")?;
    b.create_link(a, plan, "")?;
    let of_a = a.candidates(b)?;
    let of_b = b.candidates(a)?;
    Ok((of_a, of_b))
}
