//! The programs after the lease has ended: as if there were no entries.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tincan_common::kernel_verdict::KernelVerdict as V;

use super::frames::{OWN4, OWN6, PEER4, PEER6, datagram, frame4, frame6, tagged};
use super::*;

/// The programs' clock is up to this late, nanoseconds (`CONFIG_HZ` is at least 100).
const TICK: u64 = 10_000_000;

fn monotonic() -> u64 {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
    u64::try_from(now.as_nanos()).unwrap()
}

#[test]
fn without_a_lease_everything_passes_untouched_and_with_a_new_one_it_is_forwarded() {
    let minute = u64::try_from(Duration::from_secs(60).as_nanos()).unwrap();
    let frames = [
        ("IPv4", frame4(OWN4, PEER4, 17, &[1; 40]), frame4(PEER4, OWN4, 17, &[1; 40])),
        ("IPv6", frame6(OWN6, PEER6, 17, &[1; 40]), frame6(PEER6, OWN6, 17, &[1; 40])),
    ];
    for underlay in underlays() {
        for (family, out, back) in &frames {
            let arriving = datagram(underlay, &tagged(RECEIVE_TAG, back));
            let mut engine = linked(underlay);
            for (lease, end) in [("no", 0), ("an ended", monotonic() - TICK)] {
                let row = format!("{family} over {underlay:?} with {lease} lease");
                engine.set_lease_end(end).unwrap();
                let before = [V::UpUnrouted, V::UpUnknownFlow].map(|reason| verdict(&engine, reason));
                assert_eq!(run(&mut engine, TAP_EGRESS, out), (PASS_ON, out.clone()), "{row}");
                assert_eq!(run(&mut engine, UPLINK_INGRESS, &arriving), (PASS_ON, arriving.clone()), "{row}");
                let after = [V::UpUnrouted, V::UpUnknownFlow].map(|reason| verdict(&engine, reason));
                assert_eq!(after, before.map(|count| count + 1), "{row}");
            }
            assert_eq!(engine.traffic(SLOT).unwrap(), [0; 4], "nothing was carried");
            engine.set_lease_end(monotonic() + minute).unwrap();
            assert_eq!(run(&mut engine, TAP_EGRESS, out).0, REDIRECT, "{family} over {underlay:?}");
            assert_eq!(run(&mut engine, UPLINK_INGRESS, &arriving).0, REDIRECT, "{family} over {underlay:?}");
        }
    }
}
