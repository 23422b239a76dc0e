//! From the uplink to the TAP: a peer's datagram loses its outer headers, and its frame arrives at the TAP.

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO, TC_ACT_UNSPEC,
};
use aya_ebpf::programs::TcContext;
use tincan_common::entries::SettingsInMap;
use tincan_common::frame::HEADER_LEN;
use tincan_common::inner::{IPV4, IPV6, TCP};
use tincan_common::kernel_verdict::KernelVerdict;

use crate::datagram::{self, Admitted, DESTINATION_PORT, Outer, PAYLOAD_AT_IPV4, PAYLOAD_AT_IPV6};
use crate::packet::Facts;
use crate::{maps, packet};

/// What becomes of a packet: what the kernel shall do with it, and the verdict; `None` for what is not for our port.
pub type Outcome = Option<Result<(i32, KernelVerdict), KernelVerdict>>;

/// Delivers a datagram for our plain port. Fragments are nothing for us: the host puts them together for the socket.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub fn deliver(context: &TcContext) -> Outcome {
    let settings = maps::settings()?;
    if !datagram::may_have_port::<DESTINATION_PORT>(context, settings.plain_port()) {
        return None;
    }
    let facts = Facts::of(context);
    if facts.has_vlan {
        return None;
    }
    match datagram::outer_type(context)? {
        IPV4 => {
            let outer = datagram::outer4(context, settings)?;
            Some(decapsulate::<PAYLOAD_AT_IPV4>(context, settings, &facts, &outer, IPV4))
        }
        IPV6 => {
            let outer = datagram::outer6(context, settings)?;
            Some(decapsulate::<PAYLOAD_AT_IPV6>(context, settings, &facts, &outer, IPV6))
        }
        _ => None,
    }
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
    let Admitted { slot, merger, ethernet, protocol, len } =
        datagram::admit::<AT>(context, settings, outer, facts.len)?;
    if facts.segment != 0 && protocol != TCP {
        // Decapsulated here it would keep the marks of a tunnel, for which UDP loses it.
        if settings.plain_port() == settings.socket_port() {
            return Err(KernelVerdict::UpShape);
        }
        context.set_mark(settings.mark());
        maps::count_received(slot, facts.frames, len);
        return Ok((TC_ACT_UNSPEC, KernelVerdict::HandedOver));
    }
    take_off::<AT>(context, [ethernet[12], ethernet[13]], outer_type)?;
    context.store(0, &datagram::to_tap(ethernet, settings), 0).map_err(|_| KernelVerdict::Broken)?;
    maps::count_received(slot, facts.frames, len);
    if merger != 0 && facts.segment == 0 && protocol == TCP {
        context.set_mark(settings.mark());
        return Ok((packet::redirect_out_of(merger), KernelVerdict::HandedOver));
    }
    Ok((packet::redirect_into(settings.tap_index()), KernelVerdict::Delivered))
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

/// From the driver's XDP program, by way of GRO, to the TAP: what that program marked; `None` for everything else.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one program, one function for the verifier")]
pub fn deliver_stripped(context: &TcContext) -> Option<i32> {
    let settings = maps::settings()?;
    let mark = packet::metadata(context)?;
    (mark == settings.mark() && mark != 0).then(|| packet::redirect_into(settings.tap_index()))
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
    let shrink = |flags: u32| context.adjust_room(-((AT + HEADER_LEN) as i32), BPF_ADJ_ROOM_MAC, u64::from(flags));
    let mut shrunk = shrink(BPF_F_ADJ_ROOM_FIXED_GSO | changes_to);
    // Before Linux 6.3 the kernel cannot be told; the interface that the frame arrives at reads the new type itself.
    if shrunk.is_err() && changes_to != 0 {
        shrunk = shrink(BPF_F_ADJ_ROOM_FIXED_GSO);
    }
    shrunk.map_err(|_| KernelVerdict::UpShape)
}
