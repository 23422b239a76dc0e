//! A frame with its vnet header from the TAP, and the same bytes from a peer: routing, splitting, coalescing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tincan::dataplane::gro::{Coalescer, Offloads};
use tincan::dataplane::gso::split;
use tincan::dataplane::table::{Local, Table};
use tincan::dataplane::vnet::VnetHeader;
use tincan::wire::uid::Uid;

fuzz_target!(|bytes: &[u8]| {
    let Some((header, frame)) = bytes.split_at_checked(VnetHeader::LEN) else { return };
    let header = VnetHeader::parse(header).expect("a header of its length");
    let (own, peer) = (Uid::new([1; 20]), Uid::new([2; 20]));
    let ip4 = |last| [172, 16, 0, last].into();
    let ip6 = |last: u16| [0xfd50, 0, 0, 0, 0, 0, 0, last].into();
    let mut table = Table::default();
    table.set_local(Local { uid: own, ip4: ip4(1), ip4_prefix: 24, ip6: ip6(1), router_prefix: 32 });
    table.map_peer(peer, ip4(2), ip6(2));
    let _ = (table.route(frame, [2; 6]), table.may_be_from(peer, frame));

    let mut coalescer = Coalescer::new(Offloads { tcp: true, udp: true });
    let mut segments = 0_usize;
    let mut copy = frame.to_vec();
    let outcome = split(&header, &mut copy, &mut Vec::new(), |segment| {
        segments += 1;
        coalescer.push(segment);
    });
    assert!(outcome.is_ok() || segments == 0, "{segments} segments and an error");
    coalescer.push(frame);
    let mut writes = 0_usize;
    coalescer.flush(|_| writes += 1);
    assert!((1..=segments + 1).contains(&writes), "{segments} segments became {writes} writes");
});
