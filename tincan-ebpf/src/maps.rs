//! The maps that user space reads, and the one place that writes through their pointers.

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use tincan_common::counters::{FrameKind, RawTally};

#[map(name = "frame_tallies")]
static FRAME_TALLIES: PerCpuArray<RawTally> = PerCpuArray::with_max_entries(FrameKind::COUNT, 0);

/// Adds one frame of `bytes` bytes to this CPU's tally of `kind`.
pub fn count(kind: FrameKind, bytes: u32) {
    let Some(tally) = FRAME_TALLIES.get_ptr_mut(kind.index()) else { return };
    // SAFETY: the map gave a non-null pointer to this CPU's own slot, which holds a RawTally and outlives the program.
    // Programs do not migrate between CPUs while they run; a nested run on the same CPU can at worst lose a count.
    let [frames, total] = unsafe { &mut *tally };
    *frames += 1;
    *total += u64::from(bytes);
}
