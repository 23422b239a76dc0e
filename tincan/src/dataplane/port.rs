//! The node's two UDP ports: one dual-stack socket each, bursts in and out by one system call (`UDP_SEGMENT`, `UDP_GRO`).

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use nix::{setsockopt_impl, sockopt_impl};
use quinn_udp::{RecvMeta, UdpSocketState};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::dataplane::Transmit;
use crate::link::{Path, PortKind, RelayHop};

/// Room for bursts: the default loses checks when hundreds of links come up at once.
const SOCKET_BUFFER: usize = 8 << 20;

/// Longest wait for room in the socket's buffer; frames behind it then wait in the TAP's queue.
const SEND_PATIENCE_MS: u8 = 20;

/// After so many bursts in a row the offload is taken to be missing.
const MAX_OFFLOAD_FAILURES: u32 = 16;

/// Length of a `ChannelData` header in bytes (RFC 8656 section 12.4).
pub const CHANNEL_HEADER_LEN: usize = 4;

// Path MTU discovery (`ip(7)`, `ipv6(7)`), see `open_state`.
sockopt_impl!(IpMtuDiscover, SetOnly, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::c_int);
sockopt_impl!(Ipv6MtuDiscover, SetOnly, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::c_int);

/// `udp(7)` lists it not: datagrams without a checksum are taken over IPv6 too, where RFC 6935 allows them to tunnels.
const UDP_NO_CHECK6_RX: libc::c_int = 102;
sockopt_impl!(NoCheck6Rx, SetOnly, libc::IPPROTO_UDP, UDP_NO_CHECK6_RX, bool);

/// One UDP port for both families.
#[derive(Debug)]
pub struct UdpPort {
    kind: PortKind,
    socket: Socket,
    /// Replaced after a refusal: the crate takes any EINVAL for "no segmentation offload" and would never try it again.
    state: ArcSwap<UdpSocketState>,
    /// Bursts in a row that only went out one by one.
    offload_failures: AtomicU32,
    number: u16,
    /// The socket is an IPv6 one, so IPv4 destinations are written as IPv4-mapped addresses (RFC 4291).
    dual_stack: bool,
}

/// What to do while the socket's buffer is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Wait a moment: the frames behind then wait in the TAP's queue, where TCP notices.
    Wait,
    /// Lose the datagram.
    Never,
}

/// A burst as it came in: one or more datagrams of one sender, each `stride` bytes but the last.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    /// The sender, never an IPv4-mapped address.
    pub from: SocketAddr,
    /// The local address it was sent to.
    pub to: Option<IpAddr>,
    /// Bytes in all.
    pub len: usize,
    /// Bytes of each datagram but the last.
    pub stride: usize,
}

impl UdpPort {
    /// Binds a port for both families, or for IPv4 alone on a host without IPv6; 0 lets the kernel choose.
    pub fn bind(kind: PortKind, number: u16) -> io::Result<Self> {
        let (socket, dual_stack) = match open(Domain::IPV6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, number))) {
            Ok(socket) => (socket, true),
            Err(error) if no_ipv6(&error) => {
                (open(Domain::IPV4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, number)))?, false)
            }
            Err(error) => return Err(error),
        };
        let state = ArcSwap::from_pointee(open_state(&socket, kind, dual_stack)?);
        enlarge_buffers(&socket)?;
        if kind == PortKind::Plain && dual_stack {
            // The peer's kernel sends frames without one; ours may still be on its way to taking them.
            setsockopt(&socket, NoCheck6Rx, &true)?;
        }
        let number = socket.local_addr()?.as_socket().map_or(0, |address| address.port());
        Ok(Self { kind, socket, state, offload_failures: AtomicU32::new(0), number, dual_stack })
    }

    /// Which of the two it is.
    #[must_use]
    pub fn kind(&self) -> PortKind {
        self.kind
    }

    /// The number it is bound to.
    #[must_use]
    pub fn local_port(&self) -> u16 {
        self.number
    }

    /// Most datagrams one [`UdpPort::send`] takes.
    #[must_use]
    pub fn max_segments(&self) -> usize {
        self.state.load().max_gso_segments()
    }

    /// Most datagrams the kernel hands over as one.
    #[must_use]
    pub fn max_coalesced(&self) -> usize {
        self.state.load().gro_segments()
    }

    /// Sends datagrams of `segment` bytes each (the last may be shorter) straight to `path.remote` or to its relay; returns
    /// how many went out. What has to go through a TURN channel must have its header already.
    pub fn send(&self, path: &Path, datagrams: &[u8], segment: usize, patience: Patience) -> usize {
        let destination = self.on_socket(path.relay.map_or(path.remote, |hop| hop.server));
        let one = |datagram: &[u8]| self.send_once(destination, path.source, datagram, None, patience);
        if datagrams.len() <= segment {
            return usize::from(one(datagrams).is_ok());
        }
        if self.max_segments() > 1 {
            match self.send_once(destination, path.source, datagrams, Some(segment), patience) {
                Ok(()) => {
                    self.offload_failures.store(0, Ordering::Relaxed);
                    return datagrams.len().div_ceil(segment);
                }
                // The device has no checksum offload, or the path's MTU is smaller than a segment: `udp(7)`.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE)) => {
                    self.offload_failures.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => return 0,
            }
        }
        // The first that cannot go out ends the burst: the rest would fare no better, and waiting for each adds up.
        datagrams.chunks(segment).take_while(|datagram| one(datagram).is_ok()).count()
    }

    /// Receives bursts, one into each buffer; `WouldBlock` when there is none.
    pub fn receive(&self, buffers: &mut [IoSliceMut<'_>], bursts: &mut Vec<Burst>) -> io::Result<()> {
        bursts.clear();
        let mut metas = [RecvMeta::default(); quinn_udp::BATCH_SIZE];
        let most = buffers.len().min(metas.len());
        let count = self.state.load().recv((&self.socket).into(), &mut buffers[..most], &mut metas[..most])?;
        bursts.extend(metas[..count].iter().map(|meta| Burst {
            from: canonical(meta.addr),
            to: meta.dst_ip.map(|ip| ip.to_canonical()),
            len: meta.len,
            stride: meta.stride.max(1),
        }));
        Ok(())
    }

    fn send_once(
        &self,
        destination: SocketAddr,
        source: Option<IpAddr>,
        contents: &[u8],
        segment_size: Option<usize>,
        patience: Patience,
    ) -> io::Result<()> {
        let transmit = quinn_udp::Transmit { destination, ecn: None, contents, segment_size, src_ip: source };
        let result = self.try_send(&transmit);
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && patience == Patience::Wait => {
                let mut writable = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                poll(&mut writable, PollTimeout::from(SEND_PATIENCE_MS))?;
                self.try_send(&transmit)
            }
            // The local address is gone: let the kernel choose another.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && source.is_some() => {
                self.try_send(&quinn_udp::Transmit { src_ip: None, ..transmit })
            }
            result => result,
        }
        .inspect_err(|error| tracing::trace!(%destination, %error, "not sent"))
    }

    fn try_send(&self, transmit: &quinn_udp::Transmit<'_>) -> io::Result<()> {
        // Linux refuses port 0 with EINVAL.
        if transmit.destination.port() == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let result = self.state.load().try_send((&self.socket).into(), transmit);
        let refused =
            result.as_ref().is_err_and(|error| matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO)));
        if refused && self.offload_failures.load(Ordering::Relaxed) < MAX_OFFLOAD_FAILURES {
            match open_state(&self.socket, self.kind, self.dual_stack) {
                Ok(state) => self.state.store(Arc::new(state)),
                Err(error) => tracing::debug!(%error, "segmentation offload stays off"),
            }
        }
        result
    }

    fn on_socket(&self, address: SocketAddr) -> SocketAddr {
        match address {
            SocketAddr::V4(v4) if self.dual_stack => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())),
            SocketAddr::V4(_) | SocketAddr::V6(_) => address,
        }
    }
}

impl AsFd for UdpPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Both ports.
#[derive(Debug)]
pub struct Ports {
    /// DTLS links.
    pub secured: UdpPort,
    /// Plain links.
    pub plain: UdpPort,
}

impl Ports {
    /// The port of this kind.
    #[must_use]
    pub fn of(&self, kind: PortKind) -> &UdpPort {
        match kind {
            PortKind::Secured => &self.secured,
            PortKind::Plain => &self.plain,
        }
    }
}

impl Transmit for Ports {
    fn transmit(&self, port: PortKind, path: &Path, payload: &[u8]) {
        let mut wrapped = Vec::new();
        let datagram = match path.relay {
            None => payload,
            Some(hop) => {
                let Some(header) = channel_header(hop, payload.len()) else { return };
                wrapped.extend_from_slice(&header);
                wrapped.extend_from_slice(payload);
                &wrapped
            }
        };
        self.of(port).send(path, datagram, datagram.len(), Patience::Never);
    }
}

/// The `ChannelData` header for a payload, `None` beyond 65,535 bytes (RFC 8656 section 12.4).
#[must_use]
pub fn channel_header(hop: RelayHop, payload_len: usize) -> Option<[u8; CHANNEL_HEADER_LEN]> {
    let length = u16::try_from(payload_len).ok()?.to_be_bytes();
    let channel = hop.channel.to_be_bytes();
    Some([channel[0], channel[1], length[0], length[1]])
}

/// Channel number and payload of a `ChannelData` message; bytes behind the payload are padding.
#[must_use]
pub fn parse_channel_data(datagram: &[u8]) -> Option<(u16, &[u8])> {
    let (&[c0, c1, l0, l1], rest) = datagram.split_first_chunk::<CHANNEL_HEADER_LEN>()?;
    let payload = rest.get(..usize::from(u16::from_be_bytes([l0, l1])))?;
    Some((u16::from_be_bytes([c0, c1]), payload))
}

fn open(domain: Domain, address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// The crate's view of the socket; making it sets options, of which the path-MTU ones are not wanted here.
///
/// The kernel fragments what it knows not to fit, and believes routers that tell it so (with PROBE, INTERFACE and OMIT it
/// would not). For an IPv4 router to have something to tell, packets must say "don't fragment": with WANT those do that fit
/// and are no bursts, which is enough for the MTU of a plain link's path to become known whoever carries the link.
fn open_state(socket: &Socket, kind: PortKind, dual_stack: bool) -> io::Result<UdpSocketState> {
    let state = UdpSocketState::new(socket.into())?;
    let discovery = match kind {
        PortKind::Secured => libc::IP_PMTUDISC_DONT,
        PortKind::Plain => libc::IP_PMTUDISC_WANT,
    };
    setsockopt(socket, IpMtuDiscover, &discovery)?;
    if dual_stack {
        setsockopt(socket, Ipv6MtuDiscover, &libc::IPV6_PMTUDISC_DONT)?;
        setsockopt(socket, sockopt::Ipv6DontFrag, &false)?;
    }
    Ok(state)
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT))
}

/// Beyond `rmem_max` where this process may (`CAP_NET_ADMIN`), up to it otherwise.
fn enlarge_buffers(socket: &Socket) -> io::Result<()> {
    if setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        SockRef::from(socket).set_recv_buffer_size(SOCKET_BUFFER)?;
    }
    if setsockopt(socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
        SockRef::from(socket).set_send_buffer_size(SOCKET_BUFFER)?;
    }
    Ok(())
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback(port: &UdpPort, ip: IpAddr) -> Path {
        Path { remote: SocketAddr::new(ip, port.local_port()), source: None, relay: None }
    }

    fn receive_all(port: &UdpPort, wanted: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut got = Vec::new();
        let mut bursts = Vec::new();
        while got.len() < wanted {
            let mut readable = [PollFd::new(port.as_fd(), PollFlags::POLLIN)];
            assert_ne!(poll(&mut readable, PollTimeout::from(5000_u16)).unwrap(), 0, "nothing came: {got:?}");
            let mut buffers = vec![vec![0; 65_536]; 4];
            let mut slices: Vec<IoSliceMut<'_>> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
            port.receive(&mut slices, &mut bursts).unwrap();
            for (burst, buffer) in bursts.iter().zip(&buffers) {
                got.extend(buffer[..burst.len].chunks(burst.stride).map(|datagram| (burst.from, datagram.to_vec())));
            }
        }
        got
    }

    #[test]
    fn a_burst_arrives_as_its_datagrams_over_both_families() {
        let (a, b) = (UdpPort::bind(PortKind::Secured, 0).unwrap(), UdpPort::bind(PortKind::Plain, 0).unwrap());
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let burst: Vec<u8> = (0..250_u16).map(|n| u8::try_from(n % 251).unwrap()).collect();
            assert_eq!(a.send(&loopback(&b, ip), &burst, 100, Patience::Wait), 3);
            let got = receive_all(&b, 3);
            let from = SocketAddr::new(ip, a.local_port());
            let expected: Vec<(SocketAddr, Vec<u8>)> =
                burst.chunks(100).map(|datagram| (from, datagram.to_vec())).collect();
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn a_refused_datagram_does_not_end_the_segmentation_of_others() {
        let (a, b) = (UdpPort::bind(PortKind::Secured, 0).unwrap(), UdpPort::bind(PortKind::Plain, 0).unwrap());
        let before = a.max_segments();
        assert!(before > 1, "this kernel has UDP_SEGMENT");
        let good = loopback(&b, Ipv4Addr::LOCALHOST.into());
        let elsewhere =
            Path { source: Some("2001:db8::77".parse().unwrap()), ..loopback(&b, Ipv6Addr::LOCALHOST.into()) };
        let nowhere = Path { remote: "127.0.0.1:0".parse().unwrap(), ..good };
        assert_eq!(a.send(&nowhere, &[1; 300], 100, Patience::Wait), 0);
        assert_eq!(a.send(&elsewhere, &[2; 300], 100, Patience::Wait), 3, "the kernel chooses another source");
        assert_eq!(a.max_segments(), before);
        assert_eq!(a.send(&good, &[3; 300], 100, Patience::Wait), 3);
        assert_eq!(receive_all(&b, 6).len(), 6);
    }

    #[test]
    fn a_relay_hop_wraps_what_ice_sends_as_channel_data() {
        let ports = Ports {
            secured: UdpPort::bind(PortKind::Secured, 0).unwrap(),
            plain: UdpPort::bind(PortKind::Plain, 0).unwrap(),
        };
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.plain.local_port()));
        let path = Path {
            remote: "192.0.2.1:9".parse().unwrap(),
            source: None,
            relay: Some(RelayHop { server, channel: 0x4001 }),
        };
        ports.transmit(PortKind::Secured, &path, b"check");
        let got = receive_all(&ports.plain, 1);
        assert_eq!(got[0].1, b"\x40\x01\x00\x05check");
        assert_eq!(parse_channel_data(&got[0].1), Some((0x4001, &b"check"[..])));
    }

    #[test]
    fn channel_data_shorter_than_it_says_is_refused() {
        assert_eq!(parse_channel_data(b"\x40\x01\x00\x05chec"), None);
        assert_eq!(parse_channel_data(b"\x40\x01\x00"), None);
        assert_eq!(parse_channel_data(b"\x40\x01\x00\x04checkpad"), Some((0x4001, &b"chec"[..])));
    }
}
