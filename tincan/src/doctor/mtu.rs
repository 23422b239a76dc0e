//! The path's MTU to a server or peer, and what it leaves for frames of the overlay.
//!
//! The kernel knows the route's MTU and what ICMP told it. Datagrams that may not be fragmented (`IP_PMTUDISC_DO`) find
//! out more: a STUN server answers them, a closed port refuses them, a router that cannot pass them on says so - or
//! they vanish.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::{getsockopt_impl, sockopt_impl};
use stun::agent::TransactionId;
use stun::attributes::AttrType;
use stun::message::BINDING_REQUEST;
use tincan_common::frame::{ETHERNET_LEN, HEADER_LEN};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::dataplane::port::{IpMtuDiscover, Ipv6MtuDiscover};
use crate::doctor::place::{any_of_family, explain};
use crate::doctor::report::Check;
use crate::dtls::MAX_RECORD_OVERHEAD;
use crate::edge::ice::message::{Incoming, build, raw};

const NAME: &str = "path-mtu";

const UDP_HEADER: usize = 8;
/// Ethernet's: larger datagrams are not tried unless the overlay needs them.
const ETHERNET_MTU: usize = 1500;
/// A STUN header, an attribute's, FINGERPRINT (RFC 8489).
const STUN_FRAME: usize = 20 + 4 + 8;
/// An attribute that no server knows and every server skips (RFC 8489 section 14: comprehension-optional).
const PADDING: AttrType = AttrType(0xff01);
/// Repeats of a datagram, and how long the last is waited for.
const SENDS_AT: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_secs(1)];
/// Sizes tried while ICMP names smaller and smaller MTUs.
const MAX_STEPS: usize = 4;
/// Longest answer read, bytes.
const MAX_ANSWER: usize = 2048;

sockopt_impl!(Ipv6Mtu, GetOnly, libc::IPPROTO_IPV6, libc::IPV6_MTU, libc::c_int);

/// Whose address it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// It answers Binding requests.
    Stun,
    /// It may refuse datagrams, or be silent.
    Other,
}

/// What is known beyond the kernel's figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evidence {
    /// A packet of this many bytes arrived whole.
    Arrived(usize),
    /// Nothing came back, whatever the size.
    Silent,
    /// Small packets are answered; those of this many bytes vanish without a word.
    Vanished(usize),
}

/// A path's MTU in bytes, IP header included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PathMtu {
    kernel: usize,
    evidence: Evidence,
}

/// The check `path-mtu` for one address.
pub async fn check(target: SocketAddr, listener: Listener, tap_mtu: u16) -> Check {
    match look(target, listener, usize::from(tap_mtu)).await {
        Ok(seen) => judge(target, seen, usize::from(tap_mtu)),
        Err(error) => Check::warning(NAME, format!("to {}: {}", target.ip(), explain(&error)), "look at the routes"),
    }
}

/// Bytes around a frame's IP packet on a secured and on a plain link.
fn overheads(target: SocketAddr) -> (usize, usize) {
    let plain = ip_header(target) + UDP_HEADER + HEADER_LEN + ETHERNET_LEN;
    (plain + MAX_RECORD_OVERHEAD, plain)
}

fn ip_header(target: SocketAddr) -> usize {
    if target.is_ipv4() { 20 } else { 40 }
}

fn judge(target: SocketAddr, seen: PathMtu, tap_mtu: usize) -> Check {
    let PathMtu { kernel, evidence } = seen;
    let (secured, plain) = overheads(target);
    let needed = tap_mtu + secured;
    let known = match evidence {
        Evidence::Arrived(size) => format!("a packet of {size} arrived whole"),
        Evidence::Silent => "by the kernel, not confirmed".to_owned(),
        Evidence::Vanished(size) => format!("by the kernel, but packets of {size} vanish"),
    };
    let room = kernel.saturating_sub(secured);
    let found = format!(
        "to {}: {kernel} bytes ({known}); overhead {secured} secured, {plain} plain: room for packets of {room} and {} \
         in the overlay, the TAP's MTU is {tap_mtu}",
        target.ip(),
        kernel.saturating_sub(plain),
    );
    match evidence {
        Evidence::Vanished(size) if size <= needed => Check::warning(
            NAME,
            found,
            "let ICMP \"fragmentation needed\" through; until then large frames may be lost",
        ),
        _ if needed > kernel && tap_mtu > room.max(1280) => Check::warning(
            NAME,
            found,
            format!("set --mtu {} on all nodes, or outer packets are fragmented", room.max(1280)),
        ),
        _ if needed > kernel => {
            Check::warning(NAME, found, "outer packets are fragmented: raise the path's MTU if you can")
        }
        Evidence::Arrived(_) | Evidence::Silent | Evidence::Vanished(_) => Check::ok(NAME, found),
    }
}

async fn look(target: SocketAddr, listener: Listener, tap_mtu: usize) -> io::Result<PathMtu> {
    let probe = Probe::open(target)?;
    let needed = tap_mtu + overheads(target).0;
    let mut size = probe.kernel_mtu()?.min(ETHERNET_MTU.max(needed));
    let mut outcome = probe.try_size(size).await?;
    for _ in 0..MAX_STEPS {
        let told = probe.kernel_mtu()?;
        if outcome != Outcome::TooBig || told >= size {
            break;
        }
        size = told;
        outcome = probe.try_size(size).await?;
    }
    let evidence = match (outcome, listener) {
        (Outcome::Arrived, _) => Evidence::Arrived(size),
        (Outcome::TooBig | Outcome::Silent, Listener::Other) => Evidence::Silent,
        (Outcome::TooBig | Outcome::Silent, Listener::Stun) => probe.after_silence(size, needed).await?,
    };
    Ok(PathMtu { kernel: probe.kernel_mtu()?, evidence })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Arrived,
    /// The kernel knows a smaller MTU than this now.
    TooBig,
    Silent,
}

struct Probe {
    socket: UdpSocket,
    target: SocketAddr,
}

impl Probe {
    fn open(target: SocketAddr) -> io::Result<Self> {
        let socket = std::net::UdpSocket::bind(any_of_family(target))?;
        socket.set_nonblocking(true)?;
        match target {
            SocketAddr::V4(_) => setsockopt(&socket, IpMtuDiscover, &libc::IP_PMTUDISC_DO)?,
            SocketAddr::V6(_) => setsockopt(&socket, Ipv6MtuDiscover, &libc::IPV6_PMTUDISC_DO)?,
        }
        socket.connect(target)?;
        Ok(Self { socket: UdpSocket::from_std(socket)?, target })
    }

    fn kernel_mtu(&self) -> io::Result<usize> {
        let mtu = match self.target {
            SocketAddr::V4(_) => getsockopt(&self.socket, sockopt::IpMtu)?,
            SocketAddr::V6(_) => getsockopt(&self.socket, Ipv6Mtu)?,
        };
        usize::try_from(mtu).map_err(io::Error::other)
    }

    /// Whether what the overlay needs gets through where `silent` bytes do not, or anything at all.
    async fn after_silence(&self, silent: usize, needed: usize) -> io::Result<Evidence> {
        if needed < silent && self.try_size(needed).await? == Outcome::Arrived {
            return Ok(Evidence::Arrived(needed));
        }
        let is_alive = self.try_size(0).await? == Outcome::Arrived;
        Ok(if is_alive { Evidence::Vanished(silent.min(needed)) } else { Evidence::Silent })
    }

    /// Sends Binding requests that make packets of `size` bytes, less up to 3 as attributes are padded to 4.
    async fn try_size(&self, size: usize) -> io::Result<Outcome> {
        let id = TransactionId::new();
        let request = request(id, size.saturating_sub(ip_header(self.target) + UDP_HEADER));
        let start = Instant::now();
        for next in &SENDS_AT[1..] {
            match self.socket.send(&request).await {
                Ok(_) => {}
                Err(error) => return outcome_of(error),
            }
            if let Ok(outcome) = timeout_at(start + *next, self.receive(id)).await {
                return outcome;
            }
        }
        Ok(Outcome::Silent)
    }

    async fn receive(&self, id: TransactionId) -> io::Result<Outcome> {
        let mut buffer = [0; MAX_ANSWER];
        loop {
            match self.socket.recv(&mut buffer).await {
                Ok(length) => {
                    if Incoming::parse(&buffer[..length]).is_some_and(|incoming| incoming.transaction() == id) {
                        return Ok(Outcome::Arrived);
                    }
                }
                Err(error) => return outcome_of(error),
            }
        }
    }
}

/// A refusal came from the end of the path.
fn outcome_of(error: io::Error) -> io::Result<Outcome> {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Ok(Outcome::Arrived),
        Some(libc::EMSGSIZE) => Ok(Outcome::TooBig),
        _ => Err(error),
    }
}

/// A Binding request of at most `length` bytes, or the shortest one.
fn request(id: TransactionId, length: usize) -> Vec<u8> {
    let padding = length.saturating_sub(STUN_FRAME) & !3;
    build(BINDING_REQUEST, id, vec![raw(PADDING, vec![0; padding])], None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::State;

    fn judged(target: &str, kernel: usize, evidence: Evidence, tap_mtu: usize) -> Check {
        judge(target.parse().unwrap(), PathMtu { kernel, evidence }, tap_mtu)
    }

    #[test]
    fn the_room_is_the_mtu_less_every_header_of_either_family() {
        for (target, secured, plain) in [("192.0.2.1:9", 1413, 1450), ("[2001:db8::1]:9", 1393, 1430)] {
            let check = judged(target, 1500, Evidence::Silent, 1280);
            assert_eq!(check.state, State::Ok);
            assert!(check.found.contains(&format!("packets of {secured} and {plain} ")), "{}", check.found);
        }
    }

    #[test]
    fn every_verdict_by_what_is_needed_and_what_is_known() {
        // 1280 + 87 bytes over IPv4.
        for (kernel, evidence, tap_mtu, state, advice) in [
            (1367, Evidence::Arrived(1367), 1280, State::Ok, ""),
            (1366, Evidence::Arrived(1364), 1280, State::Warning, "raise the path's MTU"),
            (1500, Evidence::Silent, 1413, State::Ok, ""),
            (1500, Evidence::Silent, 1414, State::Warning, "--mtu 1413"),
            (1300, Evidence::Silent, 1400, State::Warning, "--mtu 1280"),
            (1500, Evidence::Arrived(1367), 1280, State::Ok, ""),
            (1500, Evidence::Vanished(1367), 1280, State::Warning, "ICMP"),
            (100, Evidence::Silent, 1280, State::Warning, "raise"),
        ] {
            let check = judged("192.0.2.1:9", kernel, evidence, tap_mtu);
            assert_eq!(check.state, state, "{check:?}");
            assert!(check.advice.contains(advice), "{check:?}");
        }
    }

    #[test]
    fn a_request_fills_the_packet_to_the_last_four_bytes() {
        for length in [0, 31, 32, 33, 1339, 1472, 8972] {
            let request = request(TransactionId::new(), length);
            assert!(request.len() <= length.max(STUN_FRAME) && request.len() + 4 > length, "{length}");
            assert!(Incoming::parse(&request).is_some() || request.len() > MAX_ANSWER);
        }
    }

    #[tokio::test]
    async fn a_closed_port_shows_that_a_whole_packet_arrived() {
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let seen = look(closed, Listener::Other, 1280).await.unwrap();
        assert_eq!(seen.evidence, Evidence::Arrived(1500));
    }
}
