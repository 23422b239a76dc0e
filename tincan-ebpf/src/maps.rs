//! The maps that user space fills and reads, and the one place that goes through their pointers.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use tincan_common::entries::{
    Address, Flow, MAX_FLOWS, MAX_OWN_ADDRESSES, MAX_ROUTES, MAX_SLOTS, RawTraffic, Receiver, Sender, Settings,
    SettingsInMap,
};
use tincan_common::kernel_verdict::KernelVerdict;

use crate::packet;

#[map(name = "settings")]
static SETTINGS: Array<[u8; Settings::SIZE]> = Array::with_max_entries(1, 0);
#[map(name = "routes4")]
static ROUTES4: HashMap<[u8; 4], [u8; Sender::SIZE]> = HashMap::with_max_entries(MAX_ROUTES, BPF_F_NO_PREALLOC);
#[map(name = "routes6")]
static ROUTES6: HashMap<[u8; 16], [u8; Sender::SIZE]> = HashMap::with_max_entries(MAX_ROUTES, BPF_F_NO_PREALLOC);
#[map(name = "flows")]
static FLOWS: HashMap<[u8; Flow::SIZE], [u8; Receiver::SIZE]> = HashMap::with_max_entries(MAX_FLOWS, BPF_F_NO_PREALLOC);
#[map(name = "own_addresses")]
static OWN_ADDRESSES: HashMap<Address, u8> = HashMap::with_max_entries(MAX_OWN_ADDRESSES, BPF_F_NO_PREALLOC);
#[map(name = "traffic")]
static TRAFFIC: PerCpuArray<RawTraffic> = PerCpuArray::with_max_entries(MAX_SLOTS, 0);
#[map(name = "lease")]
static LEASE: Array<u64> = Array::with_max_entries(1, 0);
#[map(name = "verdicts")]
static VERDICTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(KernelVerdict::COUNT, 0);

/// What every frame needs; `None` while user space has nothing to do.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the verifier must see a map's value and its use in one function")]
pub fn settings() -> Option<SettingsInMap<'static>> {
    let settings = SettingsInMap(SETTINGS.get(0)?);
    (settings.tap_index() != 0).then_some(settings)
}

/// Whether entries hold: not when no daemon has renewed the lease in time. Asked only where there is one, because a clock
/// costs as much as a lookup.
#[inline(always)]
#[expect(clippy::inline_always, reason = "two loads and a helper's call")]
fn entries_hold() -> bool {
    LEASE.get(0).is_some_and(|end| packet::now() < *end)
}

/// How to send to whoever has this inner IPv4 address, cut to the router mask.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the verifier must see a map's value and its use in one function")]
pub fn route4(destination: &[u8; 4]) -> Option<Sender> {
    // SAFETY: the entry may be replaced while it is read, but not freed before the program ends (RCU), and any bytes
    // are a valid entry.
    unsafe { ROUTES4.get(destination) }.filter(|_| entries_hold()).map(Sender::from_bytes)
}

/// The same for IPv6.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the verifier must see a map's value and its use in one function")]
pub fn route6(destination: &[u8; 16]) -> Option<Sender> {
    // SAFETY: as in `route4`.
    unsafe { ROUTES6.get(destination) }.filter(|_| entries_hold()).map(Sender::from_bytes)
}

/// Whose datagrams these are.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the verifier must see a map's value and its use in one function")]
pub fn receiver(flow: &Flow) -> Option<Receiver> {
    // SAFETY: as in `route4`.
    unsafe { FLOWS.get(&flow.to_bytes()) }.filter(|_| entries_hold()).map(Receiver::from_bytes)
}

/// Whether this is an address of the host on the underlay.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the verifier must see a map's value and its use in one function")]
pub fn is_own(address: &Address) -> bool {
    // SAFETY: only whether there is an entry matters.
    unsafe { OWN_ADDRESSES.get(address) }.is_some()
}

/// Adds to what a link sent.
pub fn count_sent(slot: u32, frames: u32, bytes: u32) {
    add_traffic(slot, [u64::from(frames), u64::from(bytes), 0, 0]);
}

/// Adds to what a link received.
pub fn count_received(slot: u32, frames: u32, bytes: u32) {
    add_traffic(slot, [0, 0, u64::from(frames), u64::from(bytes)]);
}

fn add_traffic(slot: u32, added: RawTraffic) {
    let Some(traffic) = TRAFFIC.get_ptr_mut(slot) else { return };
    // SAFETY: the map gave a non-null pointer to this CPU's own slot, which outlives the program. Programs do not
    // migrate between CPUs while they run; a nested run on the same CPU can at worst lose a count.
    let totals = unsafe { &mut *traffic };
    for (total, more) in totals.iter_mut().zip(added) {
        *total += more;
    }
}

/// Counts one frame.
pub fn count_verdict(verdict: KernelVerdict) {
    let Some(count) = VERDICTS.get_ptr_mut(verdict.index()) else { return };
    // SAFETY: as in `add_traffic`.
    unsafe { *count += 1 };
}
