//! tincan's programs in the kernel.
//!
//! An entry point only decides; counting and packet access have their own files. Nothing here holds policy: user space
//! writes the maps, the programs write counters.

#![no_std]
#![no_main]

mod maps;
mod packet;

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use tincan_common::counters::FrameKind;

/// Where the ethertype stands in an Ethernet header (IEEE 802.3).
const ETHERTYPE_OFFSET: usize = 12;

/// Counts every frame that leaves the host through the TAP and lets it go on its way.
#[classifier]
pub fn tap_egress(context: TcContext) -> i32 {
    maps::count(kind_of(&context), context.len());
    // The next program of the TCX chain decides; after the last one the frame passes.
    TC_ACT_UNSPEC
}

fn kind_of(context: &TcContext) -> FrameKind {
    packet::read(context, ETHERTYPE_OFFSET).map_or(FrameKind::Other, |bytes| FrameKind::of(u16::from_be_bytes(bytes)))
}

/// Unreachable: the verifier accepts no program that could get here.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
