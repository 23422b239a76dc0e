//! The 2014 UDP door: control datagrams and frames of a controller on this host.
//!
//! A reply leaves by the socket of its destination's family, so it always comes from the RPC port. Nothing here waits: a
//! datagram that cannot be sent at once is counted.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::wire::answer::Answer;
use crate::wire::control::{
    ControlError, Datagram, PARSE_ERROR, decode_datagram, echo_reply, encode_json, encode_packet, local_state,
    notification, parse_request, peer_state,
};
use crate::wire::notification::Notification;
use crate::wire::request::Request;
use crate::wire::state::State;
use crate::wire::uid::Uid;

/// Longest datagram of the controllers (their `buf_size` is 65507).
const LONGEST: usize = 65_536;

/// Datagrams that may wait for the daemon's loop; the kernel's buffer holds the rest.
const WAITING: usize = 64;

/// What came in through the door.
#[derive(Debug)]
pub enum UdpInput {
    /// A call to carry out.
    Call {
        /// The controller's socket.
        from: SocketAddr,
        /// What it asks.
        request: Request,
    },
    /// A frame for the TAP.
    Frame {
        /// The frame with its uid header.
        packet: ControlPacket,
    },
}

/// A type 0x02 datagram.
#[derive(Debug, PartialEq, Eq)]
pub struct ControlPacket {
    /// Whose frame it is, as the controller says.
    pub source: Uid,
    /// Whom it is for; zero from the 2014 controllers.
    pub destination: Uid,
    /// A whole Ethernet frame.
    pub frame: Vec<u8>,
}

#[derive(Debug, Default)]
struct Counters {
    calls: AtomicU64,
    frames: AtomicU64,
    malformed: AtomicU64,
    refused_parameters: AtomicU64,
    foreign_sources: AtomicU64,
    unsent: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The bound sockets and their readers.
#[derive(Debug)]
pub struct UdpDoor {
    sockets: Vec<Arc<UdpSocket>>,
    inbox: mpsc::Receiver<(SocketAddr, Vec<u8>)>,
    counters: Counters,
}

impl UdpDoor {
    /// Binds every address that this host has; at least one must work.
    pub fn bind(addresses: &[IpAddr], port: u16) -> anyhow::Result<Self> {
        let mut sockets = Vec::new();
        let mut failures = Vec::new();
        for address in addresses {
            match bind(SocketAddr::new(*address, port)) {
                Ok(socket) => sockets.push(Arc::new(socket)),
                Err(error) => failures.push(format!("{address}: {error}")),
            }
        }
        anyhow::ensure!(
            !sockets.is_empty(),
            "cannot bind UDP port {port} for controllers ({}): is another daemon running? choose another port with \
             --rpc-port",
            failures.join(", ")
        );
        for failure in &failures {
            tracing::info!(port, failure, "controllers cannot use this address");
        }
        let (sender, inbox) = mpsc::channel(WAITING);
        for socket in &sockets {
            tokio::spawn(read(socket.clone(), sender.clone()));
        }
        Ok(Self { sockets, inbox, counters: Counters::default() })
    }

    /// The addresses that are bound.
    #[must_use]
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }

    /// The next call or frame. Anything malformed is counted here; only a JSON error is answered (2014).
    pub async fn recv(&mut self) -> UdpInput {
        loop {
            let Some((from, datagram)) = self.inbox.recv().await else { std::future::pending().await };
            if !from.ip().to_canonical().is_loopback() {
                count(&self.counters.foreign_sources);
                continue;
            }
            if let Some(input) = self.read_datagram(from, &datagram) {
                return input;
            }
        }
    }

    fn read_datagram(&self, from: SocketAddr, datagram: &[u8]) -> Option<UdpInput> {
        match decode_datagram(datagram) {
            Ok(Datagram::Control(json)) => self.read_call(from, &json),
            Ok(Datagram::Packet { source, destination, frame }) => {
                count(&self.counters.frames);
                Some(UdpInput::Frame { packet: ControlPacket { source, destination, frame } })
            }
            Err(error) => {
                count(&self.counters.malformed);
                tracing::debug!(%from, %error, "malformed controller datagram");
                if matches!(error, ControlError::Json { .. }) {
                    self.send(from, PARSE_ERROR);
                }
                None
            }
        }
    }

    fn read_call(&self, from: SocketAddr, json: &Value) -> Option<UdpInput> {
        match parse_request(json) {
            Ok(request) => {
                count(&self.counters.calls);
                Some(UdpInput::Call { from, request })
            }
            Err(error) => {
                count(&self.counters.refused_parameters);
                tracing::info!(%from, %error, "call not understood");
                None
            }
        }
    }

    /// Answers a call as 2014 did: only states and echoes are said, `local_state` first.
    pub fn answer(&self, to: SocketAddr, answer: &Answer) {
        match answer {
            Answer::State(state) => {
                let State { local, peers, with_stats } = state.as_ref();
                self.send(to, &encode_json(&local_state(local)));
                for peer in peers {
                    self.send(to, &encode_json(&peer_state(peer, *with_stats)));
                }
            }
            Answer::Echo(message) => self.send(to, &encode_json(&echo_reply(message))),
            Answer::Refused(reason) => tracing::info!(controller = %to, reason, "call refused"),
            Answer::Done | Answer::Kept(_) => {}
        }
    }

    /// Tells the callback endpoint.
    pub fn notify(&self, to: SocketAddr, news: &Notification) {
        self.send(to, &encode_json(&notification(news)));
    }

    /// Hands a frame nobody is known for to the controller.
    pub fn forward(&self, to: SocketAddr, source: Uid, destination: Uid, frame: &[u8]) {
        self.send(to, &encode_packet(source, destination, frame));
    }

    /// What the door counted, by name.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { calls, frames, malformed, refused_parameters, foreign_sources, unsent } = &self.counters;
        [
            ("calls", calls),
            ("frames", frames),
            ("malformed", malformed),
            ("refused_parameters", refused_parameters),
            ("foreign_sources", foreign_sources),
            ("unsent", unsent),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
        .to_vec()
    }

    fn send(&self, to: SocketAddr, datagram: &[u8]) {
        let socket =
            self.sockets.iter().find(|socket| socket.local_addr().is_ok_and(|local| local.is_ipv4() == to.is_ipv4()));
        let sent = socket.is_some_and(|socket| socket.try_send_to(datagram, to).is_ok());
        if !sent {
            count(&self.counters.unsent);
        }
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(LONGEST * 4).context("receive buffer")?;
    socket.bind(&address.into())?;
    Ok(UdpSocket::from_std(socket.into())?)
}

async fn read(socket: Arc<UdpSocket>, inbox: mpsc::Sender<(SocketAddr, Vec<u8>)>) {
    let mut buffer = vec![0; LONGEST];
    loop {
        // An error here is a late ICMP "port unreachable" of a controller that went away: the socket stays good.
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else { continue };
        if inbox.send((from, buffer[..len].to_vec())).await.is_err() {
            return;
        }
    }
}
