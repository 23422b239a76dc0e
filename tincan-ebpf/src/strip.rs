//! In the driver, before the kernel's packet exists: a peer's datagram loses its outer headers, so that the driver's GRO
//! merges the frames themselves. What is not taken goes on untouched, and `uplink_ingress` judges it.

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_PASS};
use aya_ebpf::programs::XdpContext;
use tincan_common::entries::SettingsInMap;
use tincan_common::frame::HEADER_LEN;
use tincan_common::inner::{IPV4, IPV6};
use tincan_common::kernel_verdict::KernelVerdict;

use crate::datagram::{self, DESTINATION_PORT, Outer, PAYLOAD_AT_IPV4, PAYLOAD_AT_IPV6};
use crate::{maps, packet};

/// The driver's action.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub fn strip(context: &XdpContext) -> u32 {
    match stripped(context) {
        None | Some(Ok(())) => XDP_PASS,
        Some(Err(verdict)) => {
            maps::count_verdict(verdict);
            XDP_ABORTED
        }
    }
}

/// `None` for a packet that is left as it is.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn stripped(context: &XdpContext) -> Option<Result<(), KernelVerdict>> {
    let settings = maps::settings().filter(|settings| settings.mark() != 0)?;
    if !datagram::may_have_port::<DESTINATION_PORT>(context, settings.plain_port()) {
        return None;
    }
    match datagram::outer_type(context)? {
        IPV4 => {
            let outer = datagram::outer4(context, settings)?;
            take_off::<PAYLOAD_AT_IPV4>(context, settings, &outer)
        }
        IPV6 => {
            let outer = datagram::outer6(context, settings)?;
            take_off::<PAYLOAD_AT_IPV6>(context, settings, &outer)
        }
        _ => None,
    }
}

/// Moves the packet's beginning to the inner Ethernet header and puts the mark in front of it, for `stripped_ingress`.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
fn take_off<const AT: usize>(
    context: &XdpContext,
    settings: SettingsInMap<'_>,
    outer: &Outer,
) -> Option<Result<(), KernelVerdict>> {
    let packet_len = u32::try_from(context.data_end() - context.data()).ok()?;
    let admitted = datagram::admit::<AT>(context, settings, outer, packet_len).ok()?;
    if !packet::drop_start(context, AT + HEADER_LEN) {
        return None;
    }
    let ethernet = datagram::to_tap(admitted.ethernet, settings);
    if !packet::write_metadata(context, settings.mark()) || !packet::write_start(context, &ethernet) {
        return Some(Err(KernelVerdict::Broken));
    }
    maps::count_received(admitted.slot, 1, admitted.len);
    Some(Ok(()))
}
