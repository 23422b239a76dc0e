//! Whose datagram is it, and may its frame come in? The same for programs behind the driver (XDP) and behind GRO (TC).

use tincan_common::entries::{self, Flow, Receiver, SettingsInMap};
use tincan_common::frame::{ETHERNET_LEN, HEADER_LEN};
use tincan_common::inner::{
    self, IPV4, IPV4_LEN, IPV4_PROTOCOL_AT, IPV6, IPV6_FRAGMENT, IPV6_LEN, IPV6_NEXT_HEADER_AT, UDP, UDP_LEN,
};
use tincan_common::kernel_verdict::KernelVerdict;

use crate::maps;
use crate::packet::Bytes;

/// Where the UDP payload begins behind an outer header of each family.
pub const PAYLOAD_AT_IPV4: usize = ETHERNET_LEN + IPV4_LEN + UDP_LEN;
pub const PAYLOAD_AT_IPV6: usize = ETHERNET_LEN + IPV6_LEN + UDP_LEN;

/// What the outer headers say.
pub struct Outer {
    flow: Flow,
    /// Of the UDP header and what follows.
    udp_len: u32,
}

/// A peer's frame that may come in.
pub struct Admitted {
    /// Where the link's traffic is counted.
    pub slot: u32,
    /// See [`Receiver::merger`].
    pub merger: u32,
    /// The inner Ethernet header.
    pub ethernet: [u8; ETHERNET_LEN],
    /// The inner IP packet's protocol.
    pub protocol: u8,
    /// Bytes of the frame.
    pub len: u32,
}

/// Where the UDP header's ports stand from its beginning.
pub const SOURCE_PORT: usize = 0;
pub const DESTINATION_PORT: usize = 2;

/// Whether a packet may have `port` at `PORT` in its UDP header. Most packets of others end here, after a look at a few of
/// their first bytes; those that do not are checked whole.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub fn may_have_port<const PORT: usize>(packet: &impl Bytes, port: [u8; 2]) -> bool {
    // A packet whose first bytes are elsewhere than its header is rare.
    let Some(start) = packet.read::<PAYLOAD_AT_IPV4>(0) else { return true };
    let udp_at_ipv4 = PAYLOAD_AT_IPV4 - UDP_LEN;
    match [start[ETHERNET_LEN - 2], start[ETHERNET_LEN - 1]] {
        IPV4 => {
            start[ETHERNET_LEN + IPV4_PROTOCOL_AT] == UDP
                && [start[udp_at_ipv4 + PORT], start[udp_at_ipv4 + PORT + 1]] == port
        }
        IPV6 => match start[ETHERNET_LEN + IPV6_NEXT_HEADER_AT] {
            UDP => packet.read(PAYLOAD_AT_IPV6 - UDP_LEN + PORT).is_none_or(|found: [u8; 2]| found == port),
            next => next == IPV6_FRAGMENT,
        },
        _ => false,
    }
}

/// The ethertype of the outer packet; `None` for a frame too short for any datagram.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub fn outer_type(packet: &impl Bytes) -> Option<[u8; 2]> {
    if !packet.make_readable(PAYLOAD_AT_IPV4) {
        return None;
    }
    let [.., high, low]: [u8; ETHERNET_LEN] = packet.read(0)?;
    Some([high, low])
}

/// Reads the outer headers of a whole datagram for our plain port.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub fn outer4(packet: &impl Bytes, settings: SettingsInMap<'_>) -> Option<Outer> {
    let ip = inner::ipv4(&packet.read(ETHERNET_LEN)?)?;
    if ip.protocol != UDP || ip.is_fragment {
        return None;
    }
    let udp: [u8; UDP_LEN] = packet.read(ETHERNET_LEN + IPV4_LEN)?;
    outer(settings, entries::mapped(ip.source), entries::mapped(ip.destination), udp)
}

/// The same for IPv6.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub fn outer6(packet: &impl Bytes, settings: SettingsInMap<'_>) -> Option<Outer> {
    if !packet.make_readable(PAYLOAD_AT_IPV6) {
        return None;
    }
    let ip = inner::ipv6(&packet.read(ETHERNET_LEN)?)?;
    if ip.next_header != UDP {
        return None;
    }
    let udp: [u8; UDP_LEN] = packet.read(ETHERNET_LEN + IPV6_LEN)?;
    outer(settings, ip.source, ip.destination, udp)
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn outer(settings: SettingsInMap<'_>, remote: [u8; 16], local: [u8; 16], udp: [u8; UDP_LEN]) -> Option<Outer> {
    let [s0, s1, d0, d1, len_high, len_low, ..] = udp;
    let flow = Flow { remote, local, remote_port: [s0, s1], local_port: [d0, d1] };
    (flow.local_port == settings.plain_port())
        .then(|| Outer { flow, udp_len: u32::from(u16::from_be_bytes([len_high, len_low])) })
}

/// Judges what is inside the UDP datagram whose payload begins at `AT`; `packet_len` is that of the whole packet, bytes.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub fn admit<const AT: usize>(
    packet: &impl Bytes,
    settings: SettingsInMap<'_>,
    outer: &Outer,
    packet_len: u32,
) -> Result<Admitted, KernelVerdict> {
    if !packet.make_readable(AT + HEADER_LEN + ETHERNET_LEN + IPV4_LEN) {
        return Err(KernelVerdict::UpControl);
    }
    let header: [u8; HEADER_LEN] = packet.read(AT).ok_or(KernelVerdict::UpControl)?;
    let tag = inner::tag(&header).ok_or(KernelVerdict::UpControl)?;
    let receiver = maps::receiver(&outer.flow).ok_or(KernelVerdict::UpUnknownFlow)?;
    if tag != receiver.tag {
        return Err(KernelVerdict::UpTag);
    }
    let ethernet: [u8; ETHERNET_LEN] = packet.read(AT + HEADER_LEN).ok_or(KernelVerdict::UpShape)?;
    if ethernet[0] & 1 == 1 {
        return Err(KernelVerdict::UpSource);
    }
    let ip_at = AT + HEADER_LEN + ETHERNET_LEN;
    let (protocol, ip_len) = match [ethernet[12], ethernet[13]] {
        IPV4 => check4(packet, settings, &receiver, ip_at)?,
        IPV6 => check6(packet, settings, &receiver, ip_at)?,
        _ => return Err(KernelVerdict::UpSource),
    };
    // GRO may have merged several datagrams: then the lengths contradict each other.
    let is_whole = (AT - UDP_LEN) as u32 + outer.udp_len == packet_len && ip_at as u32 + ip_len == packet_len;
    if !is_whole {
        return Err(KernelVerdict::UpShape);
    }
    let len = packet_len - (AT + HEADER_LEN) as u32;
    Ok(Admitted { slot: receiver.slot, merger: receiver.merger, ethernet, protocol, len })
}

/// The inner IPv4 packet's protocol and length, if it is from its peer.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn check4(
    packet: &impl Bytes,
    settings: SettingsInMap<'_>,
    receiver: &Receiver,
    at: usize,
) -> Result<(u8, u32), KernelVerdict> {
    let header = packet.read(at).ok_or(KernelVerdict::UpShape)?;
    let ip = inner::ipv4(&header).ok_or(KernelVerdict::UpShape)?;
    let is_peers = inner::masked(ip.source, settings.router_mask()) == receiver.ip4 && ip.source != settings.own_ip4();
    if is_peers { Ok((ip.protocol, u32::from(ip.total_len))) } else { Err(KernelVerdict::UpSource) }
}

/// The same for IPv6.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn check6(
    packet: &impl Bytes,
    settings: SettingsInMap<'_>,
    receiver: &Receiver,
    at: usize,
) -> Result<(u8, u32), KernelVerdict> {
    if !packet.make_readable(at + IPV6_LEN) {
        return Err(KernelVerdict::UpShape);
    }
    let header = packet.read(at).ok_or(KernelVerdict::UpShape)?;
    let ip = inner::ipv6(&header).ok_or(KernelVerdict::UpShape)?;
    let is_peers = ip.source == receiver.ip6 && ip.source != settings.own_ip6();
    if is_peers {
        Ok((ip.next_header, IPV6_LEN as u32 + u32::from(ip.payload_len)))
    } else {
        Err(KernelVerdict::UpSource)
    }
}

/// The inner Ethernet header with the TAP as its destination.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub fn to_tap(ethernet: [u8; ETHERNET_LEN], settings: SettingsInMap<'_>) -> [u8; ETHERNET_LEN] {
    let [_, _, _, _, _, _, s0, s1, s2, s3, s4, s5, t0, t1] = ethernet;
    let [d0, d1, d2, d3, d4, d5] = settings.tap_mac();
    [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1]
}
