//! A script that behaves as the GroupVPN and SocialVPN controllers of July 2014: their texts, sequence, timing, oddities.
//!
//! It is as blind as they were: it never learns whether a call worked, repeats no start-up call, ends when a datagram is
//! not what 2014 daemons sent, and finds out about links by `get_state` alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::netns::Namespace;
use crate::udp_door::{CONTROL, PACKET, VERSION};

/// Where both controllers look for the daemon.
const DAEMON: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 5800);
/// `contr_port`: echo requests are answered from here.
const ECHO_PORT: u16 = 5801;
/// `buf_size` of both.
const BUFFER_SIZE: usize = 65507;
/// `wait_time`: between two rounds of `get_state`.
pub const WAIT_TIME: Duration = Duration::from_secs(15);

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    GroupVpn,
    SocialVpn,
}

/// What the configuration file of such a controller says.
#[derive(Clone, Debug)]
pub struct Config {
    pub flavour: Flavour,
    /// Own uid; GroupVPN made it from the address (SHA-1 of its text).
    pub uid: &'static str,
    /// Own address on the overlay.
    pub ip4: &'static str,
    /// uid and address of those it can tell addresses of.
    pub peers: Vec<(&'static str, &'static str)>,
    /// JID.
    pub username: String,
    pub password: String,
    /// XMPP server.
    pub host: String,
    /// `host:port`.
    pub stun: String,
}

/// A running controller.
#[derive(Debug)]
pub struct Controller {
    config: Config,
    socket: UdpSocket,
    echo: UdpSocket,
    local: Option<Value>,
    peers: BTreeMap<String, Value>,
    asked: BTreeSet<String>,
    last_round: Instant,
    /// Every control datagram it got, in order.
    pub heard: Vec<Value>,
}

impl Controller {
    /// Opens the sockets and makes the start-up calls, all at once and without waiting.
    pub fn start(namespace: &Namespace, config: Config) -> Result<Self> {
        let (socket, echo) = namespace.enter(|| {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).context("the controller's socket")?;
            let echo = UdpSocket::bind((Ipv6Addr::LOCALHOST, ECHO_PORT)).context("the controller's second socket")?;
            Ok((socket, echo))
        })?;
        socket.set_read_timeout(Some(WAIT_TIME)).context("wait_time")?;
        let (peers, asked, heard) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        let mut controller =
            Self { config, socket, echo, local: None, peers, asked, last_round: Instant::now(), heard };
        controller.start_up()?;
        Ok(controller)
    }

    /// Goes on with its loop until `done` holds after a datagram or a round.
    pub fn run(&mut self, deadline: Duration, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let end = Instant::now() + deadline;
        let mut buffer = vec![0; BUFFER_SIZE];
        while !done(self) {
            if Instant::now() > end {
                bail!("waited {:.0} s in vain for {what}: {:?}", deadline.as_secs_f64(), self.peers);
            }
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) => self.hear(&buffer[..length], from)?,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("the controller's socket"),
            }
            if self.last_round.elapsed() > WAIT_TIME {
                self.trim_pass()?;
                self.ask_state()?;
            }
        }
        Ok(())
    }

    /// The latest `local_state`.
    pub fn local(&self) -> &Value {
        self.local.as_ref().unwrap_or(&Value::Null)
    }

    /// The latest `peer_state` about `uid`.
    pub fn peer(&self, uid: &str) -> &Value {
        self.peers.get(uid).unwrap_or(&Value::Null)
    }

    /// Drops what earlier rounds told of the peers, so that [`Controller::run`] waits for news.
    pub fn forget_peers(&mut self) {
        self.peers.clear();
    }

    /// `get_state`, and a new round begins.
    pub fn ask_state(&mut self) -> Result<()> {
        self.last_round = Instant::now();
        let stats = self.config.flavour == Flavour::GroupVpn;
        self.send(&format!("{{\"stats\": {stats}, \"m\": \"get_state\"}}"))
    }

    /// The inactivity trim of an on-demand link, whose arguments are in the wrong places, without the `trim_link` after it.
    pub fn swapped_trim(&self, uid: &str) -> Result<()> {
        let own = self.config.uid;
        self.send(&format!(r#"{{"data": "destroy{own}", "overlay_id": "send_msg", "m": 1, "uid": "{uid}"}}"#))
    }

    /// `trim_link`.
    pub fn trim(&self, uid: &str) -> Result<()> {
        self.send(&format!(r#"{{"m": "trim_link", "uid": "{uid}"}}"#))
    }

    fn start_up(&mut self) -> Result<()> {
        let port = self.socket.local_addr().context("own port")?.port();
        let Config { flavour, uid, ip4, username, password, host, .. } = self.config.clone();
        let ip6 = ip6(uid);
        self.send(r#"{"logging": 1, "m": "set_logging"}"#)?;
        if flavour == Flavour::SocialVpn {
            self.send(r#"{"translate": 1, "m": "set_translation"}"#)?;
        }
        self.send(&format!(r#"{{"ip": "::", "m": "set_cb_endpoint", "port": {port}}}"#))?;
        self.send(&format!(
            r#"{{"ip4_mask": 24, "ip6_mask": 64, "uid": "{uid}", "m": "set_local_ip", "subnet_mask": 32, "ip6": "{ip6}", "ip4": "{ip4}"}}"#
        ))?;
        self.send(&format!(
            r#"{{"username": "{username}", "host": "{host}", "password": "{password}", "m": "register_svc"}}"#
        ))?;
        if flavour == Flavour::GroupVpn {
            self.send(r#"{"m": "set_switchmode", "switchmode": 0}"#)?;
        }
        self.send(r#"{"trim_enabled": false, "m": "set_trimpolicy"}"#)?;
        self.ask_state()?;
        self.send(r#"{"network_ignore_list": ["eth1"], "m": "set_network_ignore_list"}"#)
    }

    /// Takes a datagram as they did: anything unexpected ends the program.
    fn hear(&mut self, datagram: &[u8], from: SocketAddr) -> Result<()> {
        ensure!(from == DAEMON, "a datagram of {from}, not of {DAEMON}");
        let text = match datagram {
            [VERSION, CONTROL, text @ ..] => text,
            // GroupVPN without switch mode and SocialVPN without multihop leave frames alone.
            [VERSION, PACKET, ..] => return Ok(()),
            _ => bail!("a datagram that ends a 2014 controller: {datagram:02x?}"),
        };
        let message: Value = serde_json::from_slice(text).context("a control datagram that is no JSON")?;
        self.heard.push(message.clone());
        let word = |name: &str| message[name].as_str().map(str::to_owned);
        let kind = word("type").with_context(|| format!("no type in {message}"))?;
        if kind == "local_state" {
            self.local = Some(message);
            return Ok(());
        }
        if kind == "echo_request" {
            return self.answer_echo(from);
        }
        let (uid, data) = (word("uid"), word("data"));
        match kind.as_str() {
            "peer_state" => self.see(&uid.context("no uid in peer_state")?, message),
            "con_req" => self.take_request(&uid.context("no uid")?, &data.context("no data")?),
            "con_resp" => self.take_response(&uid.context("no uid")?, &data.context("no data")?),
            _ => Ok(()),
        }
    }

    /// A `peer_state`: a peer without link whose presence is fresh is asked for one.
    fn see(&mut self, uid: &str, state: Value) -> Result<()> {
        let own_fingerprint = self.fingerprint()?;
        let (status, fresh) = (state["status"].as_str(), state["xmpp_time"].as_u64());
        let (status, fresh) = (status.context("no status")?.to_owned(), fresh.context("no xmpp_time")?);
        let has_link = state.get("fpr").is_some();
        ensure!(!has_link || state["last_time"].is_u64(), "fpr without last_time ends a 2014 controller: {state}");
        let has_stats = state.get("stats").is_some();
        self.peers.insert(uid.to_owned(), state);
        let may_ask = self.config.flavour == Flavour::SocialVpn || status == "offline" || !has_stats;
        if !has_link && may_ask && fresh < 8 * WAIT_TIME.as_secs() {
            self.asked.insert(uid.to_owned());
            self.message("con_req", uid, &own_fingerprint)?;
        }
        Ok(())
    }

    fn take_request(&mut self, uid: &str, data: &str) -> Result<()> {
        if !self.asked.contains(uid) {
            return Ok(());
        }
        if uid > self.config.uid {
            self.trim(uid)?;
            self.asked.remove(uid);
        }
        self.create_link(uid, data)
    }

    fn take_response(&self, uid: &str, data: &str) -> Result<()> {
        self.create_link(uid, data)
    }

    /// `create_link` and `set_remote_ip`: `data` is cut at the length of the own fingerprint.
    fn create_link(&self, uid: &str, data: &str) -> Result<()> {
        let length = self.fingerprint()?.len();
        let fpr = data.get(..length).with_context(|| format!("{data:?} is shorter than a fingerprint"))?;
        let cas = data.get(length + 1..).unwrap_or_default();
        let stun = &self.config.stun;
        self.send(&format!(
            r#"{{"uid": "{uid}", "cas": "{cas}", "m": "create_link", "turn": "", "overlay_id": 1, "sec": true, "fpr": "{fpr}", "turn_user": "", "turn_pass": "", "stun": "{stun}"}}"#
        ))?;
        let known = self.config.peers.iter().find(|(peer, _)| *peer == uid);
        let (_, ip4) = known.with_context(|| format!("a uid outside the table ends a GroupVPN controller: {uid}"))?;
        let ip6 = ip6(uid);
        self.send(&format!(r#"{{"ip6": "{ip6}", "m": "set_remote_ip", "uid": "{uid}", "ip4": "{ip4}"}}"#))
    }

    /// Links that are offline and older than two rounds go.
    fn trim_pass(&self) -> Result<()> {
        for (uid, state) in &self.peers {
            let age = state["last_time"].as_u64().unwrap_or_default();
            if state.get("fpr").is_some() && state["status"] == "offline" && age > 2 * WAIT_TIME.as_secs() {
                if self.config.flavour == Flavour::GroupVpn {
                    self.message("send_msg", uid, &format!("destroy{}", self.config.uid))?;
                }
                self.trim(uid)?;
            }
        }
        Ok(())
    }

    fn message(&self, kind: &str, uid: &str, data: &str) -> Result<()> {
        self.send(&format!(r#"{{"data": "{data}", "overlay_id": 1, "m": "{kind}", "uid": "{uid}"}}"#))
    }

    fn answer_echo(&self, to: SocketAddr) -> Result<()> {
        let answer = [&[VERSION, CONTROL], br#"{"type": "echo_reply"}"#.as_slice()].concat();
        self.echo.send_to(&answer, to).context("answering an echo")?;
        Ok(())
    }

    fn fingerprint(&self) -> Result<String> {
        let fingerprint = self.local()["_fpr"].as_str().context("a peer before the first local_state ends them")?;
        Ok(fingerprint.to_owned())
    }

    fn send(&self, text: &str) -> Result<()> {
        let datagram = [&[VERSION, CONTROL], text.as_bytes()].concat();
        self.socket.send_to(&datagram, DAEMON).with_context(|| format!("sending {text}"))?;
        Ok(())
    }
}

/// The IPv6 address both make from a uid, groups with their zeros.
pub fn ip6(uid: &str) -> String {
    format!("fd50:0dbc:41f2:4a3c:{}:{}:{}:{}", &uid[..4], &uid[4..8], &uid[8..12], &uid[12..16])
}
