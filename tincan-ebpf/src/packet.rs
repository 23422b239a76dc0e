//! Access to a frame and its facts: the one place that turns packet offsets into pointers.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_coarse_ns, bpf_redirect, bpf_redirect_neigh, bpf_xdp_adjust_head, bpf_xdp_adjust_meta,
};
use aya_ebpf::programs::{TcContext, XdpContext};
use core::ptr;

/// What the kernel knows about a frame besides its bytes.
#[derive(Clone, Copy)]
pub struct Facts {
    /// Bytes, Ethernet header included.
    pub len: u32,
    /// A VLAN tag stands beside the frame.
    pub has_vlan: bool,
    /// Payload of each segment of a super-frame; 0 for a single frame.
    pub segment: u32,
    /// Frames a super-frame is cut into; at least 1.
    pub frames: u32,
}

impl Facts {
    /// Reads them once: LLVM may merge a second read with the first into one the verifier refuses.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the verifier follows the context pointer within one function")]
    pub fn of(context: &TcContext) -> Self {
        let skb = context.skb.skb;
        // SAFETY: the kernel gives the program a valid context; each field is read whole, at its own offset.
        let (len, vlan, segment, frames) = unsafe {
            (
                ptr::read_volatile(&raw const (*skb).len),
                ptr::read_volatile(&raw const (*skb).vlan_present),
                ptr::read_volatile(&raw const (*skb).gso_size),
                ptr::read_volatile(&raw const (*skb).gso_segs),
            )
        };
        Self { len, has_vlan: vlan != 0, segment, frames: if frames == 0 { 1 } else { frames } }
    }
}

/// A packet's bytes, wherever the program runs.
pub trait Bytes {
    /// Where the readable part begins and ends.
    fn bounds(&self) -> (usize, usize);

    /// Makes the first `length` bytes readable; false where the packet is shorter.
    fn make_readable(&self, length: usize) -> bool;

    /// The `N` bytes at `offset` from the start of the packet, or `None` where its readable part is shorter.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the verifier must see the bounds check and the read in one function")]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let (begin, end) = self.bounds();
        let start = begin + offset;
        if start + N > end {
            return None;
        }
        // SAFETY: the kernel guarantees that begin..end is readable, and start..start + N was just checked to lie inside
        // it. A byte array has no alignment and every bit pattern is valid.
        Some(unsafe { *(start as *const [u8; N]) })
    }
}

impl Bytes for TcContext {
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the verifier must see the bounds check and the read in one function")]
    fn bounds(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the verifier forgets packet pointers across it")]
    fn make_readable(&self, length: usize) -> bool {
        if self.data() + length <= self.data_end() {
            return true;
        }
        let Ok(wanted) = u32::try_from(length) else { return false };
        self.pull_data(wanted).is_ok()
    }
}

impl Bytes for XdpContext {
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the verifier must see the bounds check and the read in one function")]
    fn bounds(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the verifier must see the bounds check and the read in one function")]
    fn make_readable(&self, length: usize) -> bool {
        self.data() + length <= self.data_end()
    }
}

/// Overwrites the beginning of a packet in the driver; false where it is shorter.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the verifier must see the bounds check and the write in one function")]
pub fn write_start<const N: usize>(context: &XdpContext, bytes: &[u8; N]) -> bool {
    let start = context.data();
    if start + N > context.data_end() {
        return false;
    }
    // SAFETY: the kernel guarantees that data..data_end is writable in an XDP program, and the range was just checked.
    unsafe { *(start as *mut [u8; N]) = *bytes };
    true
}

/// Takes `length` bytes off the beginning of a packet in the driver; false where that cannot be.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the verifier forgets packet pointers across it")]
pub fn drop_start(context: &XdpContext, length: usize) -> bool {
    // SAFETY: a helper that takes the context and a number.
    unsafe { bpf_xdp_adjust_head(context.as_ptr().cast(), length as i32) == 0 }
}

/// Writes four bytes in front of a packet in the driver; false where there is no room.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the verifier must see the bounds check and the write in one function")]
pub fn write_metadata(context: &XdpContext, mark: u32) -> bool {
    // SAFETY: as in `drop_start`.
    if unsafe { bpf_xdp_adjust_meta(context.as_ptr().cast(), -(size_of::<u32>() as i32)) } != 0 {
        return false;
    }
    let start = context.metadata();
    if start + size_of::<u32>() > context.metadata_end() {
        return false;
    }
    // SAFETY: the kernel guarantees that data_meta..data is writable, and the range was just checked.
    unsafe { *(start as *mut [u8; 4]) = mark.to_ne_bytes() };
    true
}

/// What the driver's program wrote there.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the verifier must see the bounds check and the read in one function")]
pub fn metadata(context: &TcContext) -> Option<u32> {
    // SAFETY: the kernel gives the program a valid context; the field is read whole, at its own offset.
    let start = unsafe { ptr::read_volatile(&raw const (*context.skb.skb).data_meta) } as usize;
    if start + size_of::<u32>() > context.data() {
        return None;
    }
    // SAFETY: the kernel guarantees that data_meta..data is readable, and the range was just checked.
    Some(u32::from_ne_bytes(unsafe { *(start as *const [u8; 4]) }))
}

/// The packet's mark.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the verifier follows the context pointer within one function")]
pub fn mark(context: &TcContext) -> u32 {
    // SAFETY: the kernel gives the program a valid context; the field is read whole, at its own offset.
    unsafe { ptr::read_volatile(&raw const (*context.skb.skb).mark) }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, a few milliseconds late: a read of memory, where the exact clock asks the processor
/// (Linux 5.11).
#[inline(always)]
#[expect(clippy::inline_always, reason = "a helper's call")]
pub fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Sends the frame out of an interface, to the neighbour its outer IP header asks for.
#[inline(always)]
#[expect(clippy::inline_always, reason = "a tail of the program")]
pub fn redirect_to_neighbour(interface: u32) -> i32 {
    // SAFETY: a helper without pointers: the null parameters mean a lookup by the packet itself (Linux 5.10).
    let action = unsafe { bpf_redirect_neigh(interface, ptr::null_mut(), 0, 0) };
    action as i32
}

/// Sends the frame out of an interface as it is.
#[inline(always)]
#[expect(clippy::inline_always, reason = "a tail of the program")]
pub fn redirect_out_of(interface: u32) -> i32 {
    // SAFETY: a helper without pointers.
    let action = unsafe { bpf_redirect(interface, 0) };
    action as i32
}

/// Lets the frame arrive at an interface.
#[inline(always)]
#[expect(clippy::inline_always, reason = "a tail of the program")]
pub fn redirect_into(interface: u32) -> i32 {
    // SAFETY: a helper without pointers.
    let action = unsafe { bpf_redirect(interface, u64::from(BPF_F_INGRESS)) };
    action as i32
}
