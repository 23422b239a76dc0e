//! tincan's programs in the kernel: plain links' frames go from the TAP to the uplink and back without user space.
//!
//! ```text
//!   application -> TAP -[tap_egress: encapsulate]-> uplink ~~~ uplink -[uplink_ingress: decapsulate]-> TAP -> application
//!                            | what it does not carry                          | what it does not carry
//!                            v                                                 v
//!                       user space reads the TAP                     user space's plain UDP port
//! ```
//!
//! A VXLAN device may hold the plain port, so that the kernel merges TCP frames before `uplink_ingress` sees them; then
//! `port_ingress` and `port_egress` translate the port for user space's socket, and `checked_ingress` guards that device.
//! It also takes TCP frames that went through a veth to be merged where the uplink does not.
//!
//! An entry point only decides; the maps and packet access have their own files. Nothing here holds policy: user space
//! writes the entries, the programs write counters, and what a program does not carry goes up untouched.

#![no_std]
#![no_main]

mod datagram;
mod egress;
mod ingress;
mod maps;
mod packet;
mod port;
mod strip;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use tincan_common::kernel_verdict::KernelVerdict;

/// Sends a peer's frames; the rest passes to user space.
#[classifier]
pub fn tap_egress(context: TcContext) -> i32 {
    conclude(egress::forward(&context).map(|action| (action, KernelVerdict::Sent)))
}

/// Takes peers' frames out of their datagrams; the rest passes to the host.
#[classifier]
pub fn uplink_ingress(context: TcContext) -> i32 {
    match ingress::deliver(&context) {
        Some(outcome) => conclude(outcome),
        None => TC_ACT_UNSPEC,
    }
}

/// Behind `uplink_ingress`: tells user space's socket what came for the plain port.
#[classifier]
pub fn port_ingress(context: TcContext) -> i32 {
    port::to_socket(&context);
    TC_ACT_UNSPEC
}

/// Gives what user space's socket sends the port that peers know.
#[classifier]
pub fn port_egress(context: TcContext) -> i32 {
    port::to_network(&context);
    TC_ACT_UNSPEC
}

/// Takes checked frames from the VXLAN device or the merging veth to the TAP; nothing else comes in there.
#[classifier]
pub fn checked_ingress(context: TcContext) -> i32 {
    conclude(ingress::deliver_checked(&context).map(|action| (action, KernelVerdict::Delivered)))
}

/// In the driver (XDP), where the operator asked for it: takes peers' frames out of their datagrams before GRO.
#[xdp]
pub fn uplink_xdp(context: XdpContext) -> u32 {
    strip::strip(&context)
}

/// Before `uplink_ingress`, where `uplink_xdp` is: its frames, merged by now, go to the TAP.
#[classifier]
pub fn stripped_ingress(context: TcContext) -> i32 {
    match ingress::deliver_stripped(&context) {
        Some(action) => conclude(Ok((action, KernelVerdict::Delivered))),
        None => TC_ACT_UNSPEC,
    }
}

/// Counts, and says what the kernel does next.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the verifier must see the action in the program itself")]
fn conclude(outcome: Result<(i32, KernelVerdict), KernelVerdict>) -> i32 {
    match outcome {
        Ok((action, verdict)) => {
            maps::count_verdict(verdict);
            action
        }
        Err(verdict) => {
            maps::count_verdict(verdict);
            // The next program of the TCX chain decides; after the last one the frame passes.
            if matches!(verdict, KernelVerdict::Broken | KernelVerdict::Refused) { TC_ACT_SHOT } else { TC_ACT_UNSPEC }
        }
    }
}

/// Unreachable: the verifier accepts no program that could get here.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
