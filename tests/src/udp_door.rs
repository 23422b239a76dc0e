//! A controller's end of the 2014 UDP API: two bytes of framing, then JSON or a frame.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::netns::Namespace;
use crate::wait;

/// First byte of every datagram.
pub const VERSION: u8 = 0x02;
/// Second byte of control datagrams.
pub const CONTROL: u8 = 0x01;
/// Second byte of packets: source uid, destination uid, frame.
pub const PACKET: u8 = 0x02;

/// How long the daemon may take to answer an echo.
const ECHO_DEADLINE: Duration = Duration::from_secs(10);

/// A datagram of the daemon.
#[derive(Clone, Debug)]
pub struct Received {
    /// When the bench read it.
    pub at: Instant,
    /// The whole datagram.
    pub bytes: Vec<u8>,
}

impl Received {
    /// The JSON of a control datagram.
    pub fn json(&self) -> Option<Value> {
        let [VERSION, CONTROL, text @ ..] = self.bytes.as_slice() else { return None };
        serde_json::from_slice(text).ok()
    }

    /// The frame of a packet.
    pub fn frame(&self) -> Option<&[u8]> {
        match self.bytes.as_slice() {
            [VERSION, PACKET, rest @ ..] => rest.get(40..),
            _ => None,
        }
    }
}

/// A controller's socket beside a daemon; what arrives and is not asked for yet is kept.
#[derive(Debug)]
pub struct UdpDoor {
    socket: UdpSocket,
    inbox: Vec<Received>,
}

impl UdpDoor {
    /// A socket inside `namespace` that talks to the daemon's RPC port.
    pub fn open(namespace: &Namespace, daemon_port: u16) -> Result<Self> {
        let daemon = SocketAddr::from((Ipv4Addr::LOCALHOST, daemon_port));
        let socket = namespace.enter(|| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("binding a controller's socket")?;
            socket.connect(daemon).with_context(|| format!("connecting to {daemon}"))?;
            Ok(socket)
        })?;
        Ok(Self { socket, inbox: Vec::new() })
    }

    /// Makes this socket the daemon's callback endpoint and waits until it is.
    ///
    /// `set_cb_endpoint` has no answer, and a call on the Unix socket could overtake it; an echo behind it cannot.
    pub fn subscribe(&mut self) -> Result<()> {
        self.send(&json!({"m": "set_cb_endpoint", "ip": "::", "port": 1}))?;
        self.send(&json!({"m": "echo_request", "msg": "subscribed"}))?;
        let is_echo = |received: &Received| received.json().is_some_and(|json| json["msg"] == "subscribed");
        self.take(ECHO_DEADLINE, "the echo behind set_cb_endpoint", is_echo).map(drop)
    }

    /// Sends a call; `m` is in it.
    pub fn send(&self, call: &Value) -> Result<()> {
        self.send_bytes(&[&[VERSION, CONTROL], call.to_string().as_bytes()].concat())
    }

    /// Sends a datagram as it is.
    pub fn send_bytes(&self, datagram: &[u8]) -> Result<()> {
        self.socket.send(datagram).context("sending to the daemon")?;
        Ok(())
    }

    /// Takes the first datagram that `wanted` accepts, of those kept or yet to come; others stay.
    pub fn take(&mut self, deadline: Duration, what: &str, wanted: impl Fn(&Received) -> bool) -> Result<Received> {
        let end = Instant::now() + deadline;
        let mut looked_at = 0;
        loop {
            if let Some(found) = self.inbox[looked_at..].iter().position(&wanted) {
                return Ok(self.inbox.remove(looked_at + found));
            }
            looked_at = self.inbox.len();
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("waited {:.1} s in vain for {what}; others came: {}", deadline.as_secs_f64(), self.summary());
            }
            self.receive(left)?;
        }
    }

    /// Takes a notification of `kind` about `uid`.
    pub fn notification(&mut self, deadline: Duration, kind: &str, uid: &str) -> Result<Value> {
        let is_wanted =
            |received: &Received| received.json().is_some_and(|json| json["type"] == kind && json["uid"] == uid);
        let received = self.take(deadline, &format!("{kind} about {uid}"), is_wanted)?;
        received.json().context("a notification that is no JSON")
    }

    /// Takes the `con_stat` about `uid` that says `status`, and tells when it came.
    pub fn status(&mut self, deadline: Duration, uid: &str, status: &str) -> Result<Instant> {
        let is_wanted = |received: &Received| {
            received
                .json()
                .is_some_and(|json| json["type"] == "con_stat" && json["uid"] == uid && json["data"] == status)
        };
        Ok(self.take(deadline, &format!("con_stat {status} about {uid}"), is_wanted)?.at)
    }

    /// Everything that came and was not taken, without waiting.
    pub fn drain(&mut self) -> Result<Vec<Received>> {
        while self.receive(Duration::from_millis(1))? {}
        Ok(std::mem::take(&mut self.inbox))
    }

    /// Reads one datagram into the inbox; false when none came in time.
    fn receive(&mut self, patience: Duration) -> Result<bool> {
        self.socket.set_read_timeout(Some(patience)).context("setting a deadline")?;
        let mut buffer = vec![0; 1 << 16];
        match wait::uninterrupted(|| self.socket.recv(&mut buffer)) {
            Ok(length) => {
                ensure!(length >= 2, "a datagram of {length} bytes from the daemon");
                buffer.truncate(length);
                self.inbox.push(Received { at: Instant::now(), bytes: buffer });
                Ok(true)
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                Ok(false)
            }
            Err(error) => Err(error).context("receiving from the daemon"),
        }
    }

    fn summary(&self) -> String {
        let texts =
            self.inbox.iter().map(|received| received.json().map_or("a packet".to_owned(), |json| json.to_string()));
        texts.collect::<Vec<_>>().join(", ")
    }
}
