//! Bounded access to a frame's bytes: the one place that turns packet offsets into pointers.

use aya_ebpf::programs::TcContext;

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
