//! Echo requests of our own (RFC 792, RFC 4443): counted, and compared byte by byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::{libc, setsockopt_impl, sockopt_impl};

use crate::netns::Namespace;

sockopt_impl!(IpMtuDiscover, SetOnly, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::c_int);

/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;
/// How long the last answers may take.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// What came of a series of echo requests.
#[derive(Clone, Debug, Default)]
pub struct PingReport {
    pub sent: u32,
    /// Requests without an intact answer.
    pub lost: u32,
    /// Round trips of the answered ones, in order of arrival.
    pub round_trips: Vec<Duration>,
}

/// Whether routers may cut an IPv4 packet, and this host one of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fragments {
    Allowed,
    Forbidden,
}

/// Sends `count` requests with `payload`, one per `interval`, and collects the answers. They may be fragmented.
pub fn ping(
    namespace: &Namespace,
    target: IpAddr,
    count: u32,
    interval: Duration,
    payload: &[u8],
) -> Result<PingReport> {
    let mut pinger = Pinger::open(namespace, target, payload, Fragments::Allowed)?;
    let mut sent_at = Vec::new();
    let mut report = PingReport { sent: count, lost: count, round_trips: Vec::new() };
    for sequence in 0..u16::try_from(count).context("too many pings")? {
        let now = Instant::now();
        sent_at.push(Some(now));
        pinger.send(sequence)?;
        pinger.collect(now + interval, false, &mut sent_at, &mut report)?;
    }
    pinger.collect(Instant::now() + LAST_ANSWERS, true, &mut sent_at, &mut report)?;
    Ok(report)
}

/// Pings ten times a second until the first answer; returns how long that took.
pub fn until_answered(namespace: &Namespace, target: IpAddr, deadline: Duration) -> Result<Duration> {
    let start = Instant::now();
    while start.elapsed() < deadline {
        let report = ping_once(namespace, target, Duration::from_millis(100))?;
        if report.lost == 0 {
            return Ok(start.elapsed());
        }
    }
    bail!("no ping to {target} was answered for {:.1} s", deadline.as_secs_f64())
}

/// One request, answered within `patience` or lost.
pub fn ping_once(namespace: &Namespace, target: IpAddr, patience: Duration) -> Result<PingReport> {
    Pinger::open(namespace, target, b"once", Fragments::Allowed)?.once(patience)
}

/// One request in an IP packet of `packet_len` bytes that must not be fragmented, answered within `patience` or lost.
pub fn ping_whole(namespace: &Namespace, target: IpAddr, packet_len: usize, patience: Duration) -> Result<PingReport> {
    let headers = HEADER + if target.is_ipv4() { 20 } else { 40 };
    let payload = vec![0x5a; packet_len.checked_sub(headers).context("no room for the headers")?];
    Pinger::open(namespace, target, &payload, Fragments::Forbidden)?.once(patience)
}

struct Pinger {
    fd: OwnedFd,
    target: IpAddr,
    message: Vec<u8>,
}

impl Pinger {
    fn open(namespace: &Namespace, target: IpAddr, payload: &[u8], fragments: Fragments) -> Result<Self> {
        let (family, protocol, request) = match target {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128),
        };
        let fd = namespace
            .enter(|| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).context("a raw socket"))?;
        setsockopt(&fd, sockopt::RcvBufForce, &(1 << 20)).context("SO_RCVBUFFORCE")?;
        match (target, fragments) {
            (IpAddr::V4(_), Fragments::Allowed) => setsockopt(&fd, IpMtuDiscover, &libc::IP_PMTUDISC_DONT),
            (IpAddr::V4(_), Fragments::Forbidden) => setsockopt(&fd, IpMtuDiscover, &libc::IP_PMTUDISC_DO),
            (IpAddr::V6(_), Fragments::Allowed) => Ok(()),
            (IpAddr::V6(_), Fragments::Forbidden) => setsockopt(&fd, sockopt::Ipv6DontFrag, &true),
        }
        .context("IP_MTU_DISCOVER or IPV6_DONTFRAG")?;
        // The descriptor tells pingers of this process apart, the process id those of others.
        let identifier = std::process::id() ^ u32::try_from(fd.as_raw_fd()).context("a negative descriptor")? << 8;
        let [_, _, high, low] = identifier.to_be_bytes();
        let message = [&[request, 0, 0, 0, high, low, 0, 0], payload].concat();
        Ok(Self { fd, target, message })
    }

    fn once(&mut self, patience: Duration) -> Result<PingReport> {
        let mut sent_at = vec![Some(Instant::now())];
        let mut report = PingReport { sent: 1, lost: 1, round_trips: Vec::new() };
        self.send(0)?;
        self.collect(Instant::now() + patience, true, &mut sent_at, &mut report)?;
        Ok(report)
    }

    /// Sends request `sequence`. One that cannot be sent (no route, no carrier, too long) is a lost one.
    fn send(&mut self, sequence: u16) -> Result<()> {
        self.message[6..8].copy_from_slice(&sequence.to_be_bytes());
        let (fd, flags) = (self.fd.as_raw_fd(), MsgFlags::empty());
        let sent = match self.target {
            IpAddr::V4(ip) => {
                self.message[2..4].fill(0);
                let sum = checksum(&self.message);
                self.message[2..4].copy_from_slice(&sum.to_be_bytes());
                sendto(fd, &self.message, &SockaddrIn::from(SocketAddrV4::new(ip, 0)), flags)
            }
            // The kernel fills in the checksum of ICMPv6.
            IpAddr::V6(ip) => sendto(fd, &self.message, &SockaddrIn6::from(SocketAddrV6::new(ip, 0, 0, 0)), flags),
        };
        match sent {
            Ok(_)
            | Err(
                Errno::ENETUNREACH
                | Errno::EHOSTUNREACH
                | Errno::ENOBUFS
                | Errno::ENETDOWN
                | Errno::EAGAIN
                | Errno::EMSGSIZE,
            ) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("pinging {}", self.target)),
        }
    }

    /// Reads answers until `end`, or until none is missing if `leave_early`.
    fn collect(
        &self,
        end: Instant,
        leave_early: bool,
        sent_at: &mut [Option<Instant>],
        report: &mut PingReport,
    ) -> Result<()> {
        while !(leave_early && sent_at.iter().all(Option::is_none)) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let Some(sequence) = self.receive(left)? else { continue };
            if let Some(at) = sent_at.get_mut(usize::from(sequence)).and_then(Option::take) {
                report.lost -= 1;
                report.round_trips.push(at.elapsed());
            }
        }
        Ok(())
    }

    /// The sequence number of the next intact answer to us; `None` for anything else.
    fn receive(&self, patience: Duration) -> Result<Option<u16>> {
        let micros = i64::try_from(patience.as_micros().max(1)).context("a patience out of range")?;
        let timeout = TimeVal::new(micros / 1_000_000, micros % 1_000_000);
        setsockopt(&self.fd, sockopt::ReceiveTimeout, &timeout).context("SO_RCVTIMEO")?;
        let mut buffer = vec![0; 1 << 16];
        let length = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            // A raw socket that forbids fragments hears of errors, raw(7).
            Err(Errno::EAGAIN | Errno::EINTR | Errno::EMSGSIZE) => return Ok(None),
            Err(error) => return Err(error).context("receiving echo replies"),
        };
        let (offset, reply) = match self.target {
            IpAddr::V4(_) => (usize::from(buffer[0] & 0x0f) * 4, 0),
            IpAddr::V6(_) => (0, 129),
        };
        let Some(answer) = buffer[..length].get(offset..).filter(|answer| answer.len() >= HEADER) else {
            return Ok(None);
        };
        let is_ours =
            answer[0] == reply && answer[4..6] == self.message[4..6] && answer[HEADER..] == self.message[HEADER..];
        Ok(is_ours.then(|| u16::from_be_bytes([answer[6], answer[7]])))
    }
}

/// The internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

/// The checksum of an upper-layer message over IPv4 or IPv6, pseudo header included (RFC 768, RFC 8200 section 8.1).
pub fn upper_checksum(source: IpAddr, destination: IpAddr, protocol: u8, message: &[u8]) -> u16 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = u32::try_from(message.len()).expect("a message fits a frame").to_be_bytes();
    let pseudo = [octets(source), octets(destination), length.to_vec(), vec![0, 0, 0, protocol]].concat();
    checksum(&[pseudo.as_slice(), message].concat())
}

/// Unspecified address of a target's family, for sockets.
pub fn any_address(target: IpAddr) -> IpAddr {
    match target {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
