//! From the uplink to the TAP: a peer's datagram loses its outer headers, and its frame arrives at the TAP.

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO, TC_ACT_UNSPEC,
};
use aya_ebpf::programs::TcContext;
use tincan_common::entries::{self, Flow, Receiver, SettingsInMap};
use tincan_common::frame::{ETHERNET_LEN, HEADER_LEN};
use tincan_common::inner::{self, IPV4, IPV4_LEN, IPV6, IPV6_LEN, TCP, UDP, UDP_LEN};
use tincan_common::kernel_verdict::KernelVerdict;

use crate::packet::Facts;
use crate::{maps, packet};

/// What the outer headers say.
struct Outer {
    flow: Flow,
    /// Of the UDP header and what follows.
    udp_len: u32,
}

/// What becomes of a packet: what the kernel shall do with it, and the verdict; `None` for what is not for our port.
pub type Outcome = Option<Result<(i32, KernelVerdict), KernelVerdict>>;

/// Delivers a datagram for our plain port. Fragments are nothing for us: the host puts them together for the socket.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub fn deliver(context: &TcContext) -> Outcome {
    let settings = maps::settings()?;
    let facts = Facts::of(context);
    if facts.has_vlan || !packet::make_readable(context, ETHERNET_LEN + IPV4_LEN + UDP_LEN) {
        return None;
    }
    let [.., high, low]: [u8; ETHERNET_LEN] = packet::read(context, 0)?;
    match [high, low] {
        IPV4 => {
            let outer = outer4(context, settings)?;
            Some(decapsulate::<{ ETHERNET_LEN + IPV4_LEN + UDP_LEN }>(context, settings, &facts, &outer, IPV4))
        }
        IPV6 => {
            let outer = outer6(context, settings)?;
            Some(decapsulate::<{ ETHERNET_LEN + IPV6_LEN + UDP_LEN }>(context, settings, &facts, &outer, IPV6))
        }
        _ => None,
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn outer4(context: &TcContext, settings: SettingsInMap<'_>) -> Option<Outer> {
    let ip = inner::ipv4(&packet::read(context, ETHERNET_LEN)?)?;
    if ip.protocol != UDP || ip.is_fragment {
        return None;
    }
    let udp: [u8; UDP_LEN] = packet::read(context, ETHERNET_LEN + IPV4_LEN)?;
    outer(settings, entries::mapped(ip.source), entries::mapped(ip.destination), udp)
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn outer6(context: &TcContext, settings: SettingsInMap<'_>) -> Option<Outer> {
    if !packet::make_readable(context, ETHERNET_LEN + IPV6_LEN + UDP_LEN) {
        return None;
    }
    let ip = inner::ipv6(&packet::read(context, ETHERNET_LEN)?)?;
    if ip.next_header != UDP {
        return None;
    }
    let udp: [u8; UDP_LEN] = packet::read(context, ETHERNET_LEN + IPV6_LEN)?;
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

/// Checks what is inside the UDP datagram at `AT`, takes the outer headers off and sends the frame to the TAP.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn decapsulate<const AT: usize>(
    context: &TcContext,
    settings: SettingsInMap<'_>,
    facts: &Facts,
    outer: &Outer,
    outer_type: [u8; 2],
) -> Result<(i32, KernelVerdict), KernelVerdict> {
    if !packet::make_readable(context, AT + HEADER_LEN + ETHERNET_LEN + IPV4_LEN) {
        return Err(KernelVerdict::UpControl);
    }
    let header: [u8; HEADER_LEN] = packet::read(context, AT).ok_or(KernelVerdict::UpControl)?;
    let tag = inner::tag(&header).ok_or(KernelVerdict::UpControl)?;
    let receiver = maps::receiver(&outer.flow).ok_or(KernelVerdict::UpUnknownFlow)?;
    if tag != receiver.tag {
        return Err(KernelVerdict::UpTag);
    }
    let ethernet: [u8; ETHERNET_LEN] = packet::read(context, AT + HEADER_LEN).ok_or(KernelVerdict::UpShape)?;
    if ethernet[0] & 1 == 1 {
        return Err(KernelVerdict::UpSource);
    }
    let inner_type = [ethernet[12], ethernet[13]];
    let ip_at = AT + HEADER_LEN + ETHERNET_LEN;
    let (protocol, ip_len) = match inner_type {
        IPV4 => check4(context, settings, &receiver, ip_at)?,
        IPV6 => check6(context, settings, &receiver, ip_at)?,
        _ => return Err(KernelVerdict::UpSource),
    };
    // GRO may have merged several datagrams: then the lengths contradict each other.
    let is_whole = (AT - UDP_LEN) as u32 + outer.udp_len == facts.len && ip_at as u32 + ip_len == facts.len;
    if !is_whole {
        return Err(KernelVerdict::UpShape);
    }
    let inner_len = facts.len - (AT + HEADER_LEN) as u32;
    if facts.segment != 0 && protocol != TCP {
        // Decapsulated here it would keep the marks of a tunnel, for which UDP loses it.
        if settings.plain_port() == settings.socket_port() {
            return Err(KernelVerdict::UpShape);
        }
        context.set_mark(settings.mark());
        maps::count_received(receiver.slot, facts.frames, inner_len);
        return Ok((TC_ACT_UNSPEC, KernelVerdict::HandedOver));
    }
    take_off::<AT>(context, inner_type, outer_type)?;
    let [_, _, _, _, _, _, s0, s1, s2, s3, s4, s5, ..] = ethernet;
    let [d0, d1, d2, d3, d4, d5] = settings.tap_mac();
    let [t0, t1] = inner_type;
    let ethernet = [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1];
    context.store(0, &ethernet, 0).map_err(|_| KernelVerdict::Broken)?;
    maps::count_received(receiver.slot, facts.frames, inner_len);
    if receiver.merger != 0 && facts.segment == 0 && protocol == TCP {
        context.set_mark(settings.mark());
        return Ok((packet::redirect_out_of(receiver.merger), KernelVerdict::HandedOver));
    }
    Ok((packet::redirect_into(settings.tap_index()), KernelVerdict::Delivered))
}

/// The inner IPv4 packet's protocol and length, if it is from its peer.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn check4(
    context: &TcContext,
    settings: SettingsInMap<'_>,
    receiver: &Receiver,
    at: usize,
) -> Result<(u8, u32), KernelVerdict> {
    let header = packet::read(context, at).ok_or(KernelVerdict::UpShape)?;
    let ip = inner::ipv4(&header).ok_or(KernelVerdict::UpShape)?;
    let is_peers = inner::masked(ip.source, settings.router_mask()) == receiver.ip4 && ip.source != settings.own_ip4();
    if is_peers { Ok((ip.protocol, u32::from(ip.total_len))) } else { Err(KernelVerdict::UpSource) }
}

/// The same for IPv6.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn check6(
    context: &TcContext,
    settings: SettingsInMap<'_>,
    receiver: &Receiver,
    at: usize,
) -> Result<(u8, u32), KernelVerdict> {
    if !packet::make_readable(context, at + IPV6_LEN) {
        return Err(KernelVerdict::UpShape);
    }
    let header = packet::read(context, at).ok_or(KernelVerdict::UpShape)?;
    let ip = inner::ipv6(&header).ok_or(KernelVerdict::UpShape)?;
    let is_peers = ip.source == receiver.ip6 && ip.source != settings.own_ip6();
    if is_peers {
        Ok((ip.next_header, IPV6_LEN as u32 + u32::from(ip.payload_len)))
    } else {
        Err(KernelVerdict::UpSource)
    }
}

/// From the VXLAN device or the merging veth to the TAP: only what was checked before, which its mark tells.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub fn deliver_checked(context: &TcContext) -> Result<i32, KernelVerdict> {
    let settings = maps::settings().ok_or(KernelVerdict::Refused)?;
    if settings.mark() == 0 || packet::mark(context) != settings.mark() {
        return Err(KernelVerdict::Refused);
    }
    context.set_mark(0);
    context.store(0, &settings.tap_mac(), 0).map_err(|_| KernelVerdict::Broken)?;
    Ok(packet::redirect_into(settings.tap_index()))
}

/// Removes everything between the first Ethernet header and the inner IP header.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn take_off<const AT: usize>(
    context: &TcContext,
    inner_type: [u8; 2],
    outer_type: [u8; 2],
) -> Result<(), KernelVerdict> {
    let changes_to = match inner_type {
        _ if inner_type == outer_type => 0,
        IPV4 => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
        _ => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
    };
    let shrinks = (AT + HEADER_LEN) as i32;
    context
        .adjust_room(-shrinks, BPF_ADJ_ROOM_MAC, u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | changes_to))
        .map_err(|_| KernelVerdict::UpShape)
}
