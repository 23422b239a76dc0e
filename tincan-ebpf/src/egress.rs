//! From the TAP to a peer: the frame gets an outer IP, UDP and frame header, and leaves through the uplink.

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
};
use aya_ebpf::programs::TcContext;
use tincan_common::entries::Sender;
use tincan_common::frame::{self, ETHERNET_LEN, HEADER_LEN};
use tincan_common::inner::{self, IPV4, IPV4_LEN, IPV6, IPV6_LEN, TCP, UDP, UDP_LEN};
use tincan_common::kernel_verdict::KernelVerdict;

use crate::packet::Bytes as _;
use crate::{maps, packet};

/// What stands between the outer IP header and the inner Ethernet header, and that header.
const INSIDE: usize = UDP_LEN + HEADER_LEN + ETHERNET_LEN;
/// Hop limit of outer packets, as the kernel's own sockets have it.
const HOP_LIMIT: u8 = 64;
/// Flags and offset of outer IPv4 packets: a router that cannot pass one on tells this host's kernel the MTU, and user
/// space asks the kernel for it. What is never cut needs no identification (RFC 6864 section 4.1).
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];
/// The inner frame's MAC header stands between outer headers and inner IP: its length, in the place the kernel wants it.
const INNER_MAC: u64 = (ETHERNET_LEN as u64) << 56;
const COMMON_FLAGS: u64 =
    (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH) as u64 | INNER_MAC;

/// Puts the frame on its way, or says why user space has to.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub fn forward(context: &TcContext) -> Result<i32, KernelVerdict> {
    let settings = maps::settings().ok_or(KernelVerdict::UpUnrouted)?;
    let facts = packet::Facts::of(context);
    if !context.make_readable(ETHERNET_LEN + IPV4_LEN) {
        return Err(KernelVerdict::UpUnrouted);
    }
    let ethernet: [u8; ETHERNET_LEN] = context.read(0).ok_or(KernelVerdict::UpUnrouted)?;
    let (sender, protocol, ip_len) = match [ethernet[12], ethernet[13]] {
        IPV4 => {
            let header = context.read(ETHERNET_LEN).ok_or(KernelVerdict::UpUnrouted)?;
            let ip = inner::ipv4(&header).ok_or(KernelVerdict::UpUnrouted)?;
            if inner::is_group4(ip.destination) {
                return Err(KernelVerdict::UpUnrouted);
            }
            let sender = maps::route4(&inner::masked(ip.destination, settings.router_mask()));
            (sender, ip.protocol, IPV4_LEN)
        }
        IPV6 => {
            if !context.make_readable(ETHERNET_LEN + IPV6_LEN) {
                return Err(KernelVerdict::UpUnrouted);
            }
            let header = context.read(ETHERNET_LEN).ok_or(KernelVerdict::UpUnrouted)?;
            let ip = inner::ipv6(&header).ok_or(KernelVerdict::UpUnrouted)?;
            if inner::is_group6(&ip.destination) {
                return Err(KernelVerdict::UpUnrouted);
            }
            (maps::route6(&ip.destination), ip.next_header, IPV6_LEN)
        }
        _ => return Err(KernelVerdict::UpUnrouted),
    };
    let sender = sender.ok_or(KernelVerdict::UpUnrouted)?;
    if facts.has_vlan {
        return Err(KernelVerdict::UpOffload);
    }
    let longest = if facts.segment == 0 {
        facts.len
    } else {
        // A receiver of today's kernels loses a UDP super-frame that was decapsulated; user space cuts it.
        if protocol != TCP {
            return Err(KernelVerdict::UpOffload);
        }
        segment_len(context, ip_len, facts.segment)?
    };
    if longest > sender.max_frame {
        return Err(KernelVerdict::UpTooLong);
    }
    encapsulate(context, &sender, ethernet, facts.len)?;
    maps::count_sent(sender.slot, facts.frames, facts.len);
    Ok(packet::redirect_to_neighbour(sender.uplink))
}

/// Bytes of the longest frame a TCP super-frame is cut into.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn segment_len(context: &TcContext, ip_len: usize, segment: u32) -> Result<u32, KernelVerdict> {
    let data_offset = if ip_len == IPV4_LEN {
        read_data_offset::<{ ETHERNET_LEN + IPV4_LEN }>(context)
    } else {
        read_data_offset::<{ ETHERNET_LEN + IPV6_LEN }>(context)
    }
    .ok_or(KernelVerdict::UpOffload)?;
    // The upper four bits count words of four bytes (RFC 9293 section 3.1).
    let tcp_len = u32::from(data_offset >> 4) * 4;
    let headers = if ip_len == IPV4_LEN { ETHERNET_LEN + IPV4_LEN } else { ETHERNET_LEN + IPV6_LEN };
    Ok(headers as u32 + tcp_len + segment)
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn read_data_offset<const TCP_AT: usize>(context: &TcContext) -> Option<u8> {
    const OFFSET: usize = 12;
    if !context.make_readable(TCP_AT + OFFSET + 1) {
        return None;
    }
    context.read::<1>(TCP_AT + OFFSET).map(|[byte]| byte)
}

/// Writes the outer headers. On an error before the frame was touched it can still go up.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn encapsulate(context: &TcContext, sender: &Sender, ethernet: [u8; 14], len: u32) -> Result<(), KernelVerdict> {
    let udp_len = u16::try_from(len + (UDP_LEN + HEADER_LEN) as u32).map_err(|_| KernelVerdict::UpOffload)?;
    if let Some((source, destination)) = sender.ipv4() {
        let total_len = udp_len.checked_add(IPV4_LEN as u16).ok_or(KernelVerdict::UpOffload)?;
        make_room(context, IPV4_LEN + INSIDE, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4)?;
        let [len_high, len_low] = total_len.to_be_bytes();
        let [s0, s1, s2, s3] = source;
        let [d0, d1, d2, d3] = destination;
        let [flags, offset] = DONT_FRAGMENT;
        let mut ip =
            [0x45, 0, len_high, len_low, 0, 0, flags, offset, HOP_LIMIT, UDP, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
        [ip[10], ip[11]] = inner::ipv4_checksum(&ip);
        let mut headers = [0; ETHERNET_LEN + IPV4_LEN + INSIDE];
        headers[..ETHERNET_LEN].copy_from_slice(&nobodys(IPV4));
        headers[ETHERNET_LEN..ETHERNET_LEN + IPV4_LEN].copy_from_slice(&ip);
        headers[ETHERNET_LEN + IPV4_LEN..].copy_from_slice(&inside(sender, ethernet, udp_len));
        context.store(0, &headers, 0).map_err(|_| KernelVerdict::Broken)
    } else {
        make_room(context, IPV6_LEN + INSIDE, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6)?;
        let [len_high, len_low] = udp_len.to_be_bytes();
        let mut headers = [0; ETHERNET_LEN + IPV6_LEN + INSIDE];
        headers[..ETHERNET_LEN].copy_from_slice(&nobodys(IPV6));
        let (ip, inner) = headers[ETHERNET_LEN..].split_at_mut(IPV6_LEN);
        ip[..8].copy_from_slice(&[0x60, 0, 0, 0, len_high, len_low, UDP, HOP_LIMIT]);
        ip[8..24].copy_from_slice(&sender.source);
        ip[24..].copy_from_slice(&sender.destination);
        inner.copy_from_slice(&inside(sender, ethernet, udp_len));
        context.store(0, &headers, 0).map_err(|_| KernelVerdict::Broken)
    }
}

/// UDP header without checksum (RFC 6935 for IPv6), frame header, inner Ethernet header.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn inside(sender: &Sender, ethernet: [u8; ETHERNET_LEN], udp_len: u16) -> [u8; INSIDE] {
    let mut bytes = [0; INSIDE];
    bytes[..2].copy_from_slice(&sender.source_port);
    bytes[2..4].copy_from_slice(&sender.destination_port);
    bytes[4..6].copy_from_slice(&udp_len.to_be_bytes());
    bytes[8..16].copy_from_slice(&frame::header(sender.tag));
    bytes[16..].copy_from_slice(&ethernet);
    bytes
}

/// Room for the outer headers. The kernel refuses what it cannot cut later (VLAN, nested tunnels) and leaves it whole.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn make_room(context: &TcContext, grows: usize, family: u32) -> Result<(), KernelVerdict> {
    context
        .adjust_room(grows as i32, BPF_ADJ_ROOM_MAC, COMMON_FLAGS | u64::from(family))
        .map_err(|_| KernelVerdict::UpOffload)
}

/// The room is behind the first Ethernet header, whose addresses the neighbour lookup writes: they must only not be a
/// group's, which it would drop.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
const fn nobodys(ethertype: [u8; 2]) -> [u8; ETHERNET_LEN] {
    let [high, low] = ethertype;
    [2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, high, low]
}
