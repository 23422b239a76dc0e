//! The 2014 UDP door: control datagrams and frames of a controller on this host, by a user who may.
//!
//! A reply leaves by the socket of its destination's family, so it comes from the address and port that were called.
//! Sending never waits: a datagram that cannot be sent at once is counted. What the daemon's loop has not yet read stays
//! in the kernel's buffer, which drops what does not fit.

#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use serde_json::Value;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use crate::edge::rpc::admission::Admission;
use crate::wire::answer::Answer;
use crate::wire::control::{
    ControlError, Datagram, PARSE_ERROR, decode_datagram, echo_reply, encode_json, encode_packet, local_state,
    notification, parse_request, peer_state,
};
use crate::wire::notification::Notification;
use crate::wire::request::Request;
use crate::wire::state::State;
use crate::wire::uid::Uid;

/// More than the longest UDP payload: 65507 bytes over IPv4, 65527 over IPv6.
const LONGEST: usize = 65_536;

/// Asked of the kernel, which caps it at `net.core.rmem_max`: some of the longest datagrams.
const RECEIVE_BUFFER: usize = 8 * LONGEST;

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
    receive_errors: AtomicU64,
    unsent: AtomicU64,
    unheard: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The bound sockets.
#[derive(Debug)]
pub struct UdpDoor {
    sockets: Vec<UdpSocket>,
    /// The socket that was read last: the others come first next time.
    last: usize,
    buffer: Box<[u8]>,
    admission: Admission,
    counters: Counters,
}

impl UdpDoor {
    /// Binds every address that this host has; at least one must work, and none may be in use.
    pub fn bind(addresses: &[IpAddr], port: u16, admission: Admission) -> anyhow::Result<Self> {
        let mut sockets = Vec::new();
        for address in addresses {
            match bind(SocketAddr::new(*address, port)) {
                Ok(socket) => sockets.push(socket),
                Err(error) if is_missing(&error) => {
                    tracing::info!(%address, port, %error, "this host lacks an address for controllers");
                }
                Err(error) => anyhow::bail!(
                    "cannot bind {} for controllers: {error}: is another daemon running? choose another port with \
                     --rpc-port",
                    SocketAddr::new(*address, port)
                ),
            }
        }
        anyhow::ensure!(
            !sockets.is_empty(),
            "this host has none of the addresses for controllers, {addresses:?}: choose another with --rpc-address"
        );
        let door = Self { sockets, last: 0, buffer: vec![0; LONGEST].into(), admission, counters: Counters::default() };
        if let Some(address) = door.local_addrs().first() {
            door.admission.check_kernel(*address);
        }
        Ok(door)
    }

    /// The addresses that are bound.
    #[must_use]
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }

    /// The next call or frame; dropping the future loses nothing. Anything malformed or from another user is counted
    /// here; only a JSON error is answered (2014).
    pub async fn recv(&mut self) -> UdpInput {
        loop {
            let Ok((from, len)) = self.receive().await else {
                count(&self.counters.receive_errors);
                continue;
            };
            if !self.admits(from) {
                // Whoever floods the door with what is refused does not keep the daemon from its other work.
                tokio::task::yield_now().await;
                continue;
            }
            if let Some(input) = self.read_datagram(from, &self.buffer[..len]) {
                return input;
            }
        }
    }

    /// Fills `buffer` from whichever socket has something, in turn.
    async fn receive(&mut self) -> io::Result<(SocketAddr, usize)> {
        let Self { sockets, last, buffer, admission: _, counters: _ } = self;
        poll_fn(|context| {
            for step in 1..=sockets.len() {
                let index = (*last + step) % sockets.len();
                let mut space = ReadBuf::new(buffer);
                if let Poll::Ready(received) = sockets[index].poll_recv_from(context, &mut space) {
                    *last = index;
                    return Poll::Ready(received.map(|from| (from, space.filled().len())));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Whether the sender of what was read last may use the door.
    fn admits(&mut self, from: SocketAddr) -> bool {
        if !from.ip().is_loopback() {
            count(&self.counters.foreign_sources);
            return false;
        }
        let Ok(door) = self.sockets[self.last].local_addr() else {
            count(&self.counters.receive_errors);
            return false;
        };
        self.admission.admits(from, door)
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
    pub fn notify(&mut self, to: SocketAddr, news: &Notification) {
        self.tell(to, &encode_json(&notification(news)));
    }

    /// Hands a frame nobody is known for to the controller.
    pub fn forward(&mut self, to: SocketAddr, source: Uid, destination: Uid, frame: &[u8]) {
        self.tell(to, &encode_packet(source, destination, frame));
    }

    /// To the callback endpoint, unless its port is nobody's or another user's by now.
    fn tell(&mut self, to: SocketAddr, datagram: &[u8]) {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let door = self.socket_for(to).and_then(|socket| socket.local_addr().ok());
        let is_heard = !to.ip().is_loopback() || door.is_some_and(|door| self.admission.may_hear(to, door));
        if is_heard { self.send(to, datagram) } else { count(&self.counters.unheard) }
    }

    /// The socket of the family of `to`.
    fn socket_for(&self, to: SocketAddr) -> Option<&UdpSocket> {
        self.sockets.iter().find(|socket| socket.local_addr().is_ok_and(|local| local.is_ipv4() == to.is_ipv4()))
    }

    /// What the door counted, by name.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { calls, frames, malformed, refused_parameters, foreign_sources, receive_errors, unsent, unheard } =
            &self.counters;
        [
            ("calls", calls),
            ("frames", frames),
            ("malformed", malformed),
            ("refused_parameters", refused_parameters),
            ("foreign_sources", foreign_sources),
            ("receive_errors", receive_errors),
            ("unsent", unsent),
            ("unheard", unheard),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
        .into_iter()
        .chain(self.admission.counters())
        .collect()
    }

    fn send(&self, to: SocketAddr, datagram: &[u8]) {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let sent = match self.socket_for(to) {
            // Not by tokio's `try_send_to`, which refuses until the runtime has seen the socket writable once.
            Some(socket) if to.ip().is_loopback() => SockRef::from(socket).send_to(datagram, &to.into()),
            _ => send_off_loopback(to, datagram),
        };
        if let Err(error) = sent {
            count(&self.counters.unsent);
            tracing::debug!(%to, len = datagram.len(), %error, "datagram to a controller not sent");
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// Whether the host has no such address or no such family.
fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// To a callback endpoint off this host: a socket bound to loopback cannot reach it, so an unbound one is used.
fn send_off_loopback(to: SocketAddr, datagram: &[u8]) -> io::Result<usize> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.send_to(datagram, to)
}
