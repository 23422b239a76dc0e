//! The plain port's two numbers: the one peers know belongs to a VXLAN device, user space's socket has another.
//!
//! The kernel merges datagrams (GRO) only for the port of a tunnel device. So what is not for the programs is told to the
//! socket by a changed destination port, and what the socket sends gets the source port that peers know. Only packets to
//! or from the host's own addresses are touched: others are merely routed through it.

use aya_ebpf::bindings::BPF_F_MARK_MANGLED_0;
use aya_ebpf::programs::TcContext;
use tincan_common::entries::{self, Address, SettingsInMap};
use tincan_common::frame::ETHERNET_LEN;
use tincan_common::inner::{self, IPV4, IPV4_LEN, IPV6, IPV6_FRAGMENT, IPV6_FRAGMENT_LEN, IPV6_LEN, UDP, UDP_LEN};

use crate::datagram::{self, DESTINATION_PORT, SOURCE_PORT};
use crate::packet::{Bytes as _, Facts};
use crate::{maps, packet};

/// Where the UDP header stands in an Ethernet frame.
const UDP_AT_IPV4: usize = ETHERNET_LEN + IPV4_LEN;
const UDP_AT_IPV6: usize = ETHERNET_LEN + IPV6_LEN;
const UDP_AT_IPV6_FRAGMENT: usize = UDP_AT_IPV6 + IPV6_FRAGMENT_LEN;
/// Where the checksum stands in the UDP header.
const CHECKSUM: usize = 6;

/// From the network to the socket: a packet to the plain port gets the socket's, unless it is for the VXLAN device.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub fn to_socket(context: &TcContext) {
    if let Some(settings) = translated()
        && packet::mark(context) != settings.mark()
    {
        replace::<DESTINATION_PORT>(context, settings.plain_port(), settings.socket_port());
    }
}

/// From the socket to the network: the reverse.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub fn to_network(context: &TcContext) {
    if let Some(settings) = translated() {
        replace::<SOURCE_PORT>(context, settings.socket_port(), settings.plain_port());
    }
}

/// The settings, if the two numbers differ.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn translated() -> Option<SettingsInMap<'static>> {
    maps::settings().filter(|settings| settings.plain_port() != settings.socket_port())
}

/// Finds the UDP header, in first fragments too, and writes the port at `FIELD` if it is `from`.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn replace<const FIELD: usize>(context: &TcContext, from: [u8; 2], to: [u8; 2]) -> Option<()> {
    if !datagram::may_have_port::<FIELD>(context, from) {
        return None;
    }
    let facts = &Facts::of(context);
    if facts.has_vlan || !context.make_readable(UDP_AT_IPV4 + UDP_LEN) {
        return None;
    }
    let [.., high, low]: [u8; ETHERNET_LEN] = context.read(0)?;
    match [high, low] {
        IPV4 => {
            let ip = inner::ipv4(&context.read(ETHERNET_LEN)?)?;
            let own = entries::mapped(if FIELD == SOURCE_PORT { ip.source } else { ip.destination });
            if ip.protocol != UDP || !ip.is_first {
                return None;
            }
            replace_at::<FIELD, UDP_AT_IPV4>(context, facts, &own, from, to)
        }
        IPV6 => {
            if !context.make_readable(UDP_AT_IPV6 + UDP_LEN) {
                return None;
            }
            let ip = inner::ipv6(&context.read(ETHERNET_LEN)?)?;
            let own = if FIELD == SOURCE_PORT { ip.source } else { ip.destination };
            match ip.next_header {
                UDP => replace_at::<FIELD, UDP_AT_IPV6>(context, facts, &own, from, to),
                IPV6_FRAGMENT => {
                    let next = inner::ipv6_first_fragment(&context.read(UDP_AT_IPV6)?)?;
                    if next != UDP || !context.make_readable(UDP_AT_IPV6_FRAGMENT + UDP_LEN) {
                        return None;
                    }
                    replace_at::<FIELD, UDP_AT_IPV6_FRAGMENT>(context, facts, &own, from, to)
                }
                _ => None,
            }
        }
        _ => None,
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn replace_at<const FIELD: usize, const UDP_AT: usize>(
    context: &TcContext,
    facts: &Facts,
    own: &Address,
    from: [u8; 2],
    to: [u8; 2],
) -> Option<()> {
    let header: [u8; UDP_LEN] = context.read(UDP_AT)?;
    if [header[FIELD], header[FIELD + 1]] != from || !maps::is_own(own) {
        return None;
    }
    // A super-frame's checksum field has only what its segments share, which the ports are no part of.
    if facts.segment == 0 {
        let (before, after) = (u16::from_ne_bytes(from), u16::from_ne_bytes(to));
        let flags = u64::from(BPF_F_MARK_MANGLED_0) | size_of::<u16>() as u64;
        context.l4_csum_replace(UDP_AT + CHECKSUM, u64::from(before), u64::from(after), flags).ok()?;
    }
    context.store(UDP_AT + FIELD, &to, 0).ok()
}
