//! `AF_PACKET` sockets: whole Ethernet frames out of and into one interface.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use crate::netns::Namespace;

/// Above the largest merged frame the kernel hands out (64 KiB and its headers).
const MAX_FRAME: usize = 1 << 17;
/// `PACKET_OUTGOING` of `linux/if_packet.h`: the host itself sent the frame.
const OUTGOING: u8 = 4;

/// Which way a frame went, seen from the interface's host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It arrived (through a TAP: the daemon wrote it).
    In,
    /// It left (through a TAP: the daemon reads it).
    Out,
}

/// A packet socket bound to one interface.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    interface_index: usize,
    buffer: Vec<u8>,
}

impl PacketSocket {
    /// Opens the socket inside `namespace`.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        namespace.enter(|| Self::open_here(interface)).with_context(|| format!("packet socket on {interface}"))
    }

    fn open_here(interface: &str) -> Result<Self> {
        let address = link_address(interface)?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).context("AF_PACKET")?;
        bind(fd.as_raw_fd(), &address).context("binding")?;
        setsockopt(&fd, sockopt::RcvBufForce, &(8 << 20)).context("SO_RCVBUFFORCE")?;
        Ok(Self { fd, interface_index: address.ifindex(), buffer: vec![0; MAX_FRAME] })
    }

    /// Sends one frame; frames too short for Ethernet are the caller's to pad.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.fd.as_raw_fd(), frame, MsgFlags::empty()).context("sending a frame")?;
        Ok(())
    }

    /// The next frame, `None` when none came within `patience`.
    pub fn receive(&mut self, patience: Duration) -> Result<Option<(Direction, &[u8])>> {
        let micros = i64::try_from(patience.as_micros().max(1)).context("a patience out of range")?;
        let timeout = TimeVal::new(micros / 1_000_000, micros % 1_000_000);
        setsockopt(&self.fd, sockopt::ReceiveTimeout, &timeout).context("SO_RCVTIMEO")?;
        let (length, from) = match recvfrom::<LinkAddr>(self.fd.as_raw_fd(), &mut self.buffer) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error).context("receiving a frame"),
        };
        // Between socket() and bind() frames of other interfaces may have come in.
        let Some(from) = from.filter(|from| from.ifindex() == self.interface_index) else { return Ok(None) };
        let direction = if from.pkttype() == OUTGOING { Direction::Out } else { Direction::In };
        Ok(Some((direction, &self.buffer[..length])))
    }
}

/// The interface's link-layer socket address, as the kernel lists it.
fn link_address(interface: &str) -> Result<LinkAddr> {
    let listed = getifaddrs().context("listing interfaces")?.filter(|entry| entry.interface_name == interface);
    let address = listed.filter_map(|entry| entry.address).find_map(|address| address.as_link_addr().copied());
    address.with_context(|| format!("no interface {interface}"))
}
