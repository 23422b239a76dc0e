//! Access to a frame and its facts: the one place that turns packet offsets into pointers.

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_redirect, bpf_redirect_neigh};
use aya_ebpf::programs::TcContext;
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

/// Makes the first `length` bytes readable; false where the frame is shorter.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the verifier forgets packet pointers across it")]
pub fn make_readable(context: &TcContext, length: usize) -> bool {
    if context.data() + length <= context.data_end() {
        return true;
    }
    let Ok(wanted) = u32::try_from(length) else { return false };
    context.pull_data(wanted).is_ok()
}

/// The `N` bytes at `offset` from the start of the frame, or `None` where its linear part is shorter.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the verifier must see the bounds check and the read in one function")]
pub fn read<const N: usize>(context: &TcContext, offset: usize) -> Option<[u8; N]> {
    let start = context.data() + offset;
    if start + N > context.data_end() {
        return None;
    }
    // SAFETY: the kernel guarantees that data..data_end is readable, and start..start + N was just checked to lie
    // inside it. A byte array has no alignment and every bit pattern is valid.
    Some(unsafe { *(start as *const [u8; N]) })
}

/// The packet's mark.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the verifier follows the context pointer within one function")]
pub fn mark(context: &TcContext) -> u32 {
    // SAFETY: the kernel gives the program a valid context; the field is read whole, at its own offset.
    unsafe { ptr::read_volatile(&raw const (*context.skb.skb).mark) }
}

/// Two random bytes.
#[inline(always)]
#[expect(clippy::inline_always, reason = "a helper's call")]
pub fn random() -> [u8; 2] {
    // SAFETY: a helper without arguments.
    let [first, second, ..] = unsafe { bpf_get_prandom_u32() }.to_ne_bytes();
    [first, second]
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
