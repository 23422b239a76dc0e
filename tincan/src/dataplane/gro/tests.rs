//! Frames of many flows in, TAP writes out; a write split again must be the frames that went in.

use super::*;
use crate::dataplane::checksum::tests::{Splitmix, naive};
use crate::dataplane::gso::tests::{Shape, Super, pseudo_bytes, split_all};

const ALL: Offloads = Offloads { tcp: true, udp: true };

/// The TAP writes of one batch, as vnet header and frame.
fn coalesce(offloads: Offloads, frames: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    flush(&mut Coalescer::new(offloads), frames)
}

fn flush(coalescer: &mut Coalescer, frames: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    for frame in frames {
        coalescer.push(frame);
    }
    let mut writes = vec![];
    coalescer.flush(|write| {
        writes.push((VnetHeader::parse(write).unwrap(), write[VnetHeader::LEN..].to_vec()));
    });
    writes
}

/// Number of payload bytes behind the vnet header's transport header, or `None` for a frame that was not merged.
fn sizes(writes: &[(VnetHeader, Vec<u8>)]) -> Vec<Option<(u16, usize)>> {
    let merged = |(header, frame): &(VnetHeader, Vec<u8>)| {
        (header != &VnetHeader::default()).then(|| (header.gso_size, frame.len() - usize::from(header.hdr_len)))
    };
    writes.iter().map(merged).collect()
}

fn segments(shape: &Shape) -> Vec<Vec<u8>> {
    let Super { header, frame, .. } = shape.build();
    split_all(&header, &frame).unwrap()
}

/// Makes the checksums of an untagged frame right again.
fn repair(frame: &mut [u8], shape: &Shape) {
    let (network, transport) = match shape.version {
        Network::V4 => (14, 34),
        Network::V6 => (14, 54),
    };
    if shape.version == Network::V4 {
        set_word(frame, 24, 0);
        let checksum = !naive(&frame[14..34]);
        set_word(frame, 24, checksum);
    }
    let (protocol, field) = match shape.kind {
        Transport::Tcp => (6, transport + 16),
        Transport::Udp => (17, transport + 6),
    };
    set_word(frame, field, 0);
    let mut summed = pseudo_bytes(frame, shape.version, network, protocol, frame.len() - transport);
    summed.extend(&frame[transport..]);
    set_word(frame, field, !naive(&summed));
}

#[test]
fn what_was_split_is_merged_to_the_same_bytes() {
    for version in [Network::V4, Network::V6] {
        for (size, payload) in [(1388, 4241), (1387, 2774), (1, 64), (1001, 63_999), (1388, 1389), (1400, 2799)] {
            for shape in [Shape::tcp(version), Shape::udp(version), Shape { flags: 0x18, ..Shape::tcp(version) }] {
                let shape = Shape { size, payload, ..shape };
                let whole = shape.build();
                let writes = coalesce(ALL, &segments(&shape));
                let header = VnetHeader { hdr_len: u16::try_from(whole.payload).unwrap(), ..whole.header };
                assert!(writes == [(header, whole.frame)], "{version:?} {size} {payload}");
            }
        }
    }
}

#[test]
fn a_frame_alone_is_written_as_it_came() {
    for shape in [Shape::tcp(Network::V4), Shape::udp(Network::V6), Shape { vlan: true, ..Shape::default() }] {
        let frame = segments(&shape).swap_remove(0);
        assert_eq!(coalesce(ALL, std::slice::from_ref(&frame)), [(VnetHeader::default(), frame)]);
    }
}

#[test]
fn psh_ends_a_merge() {
    let mut frames = segments(&Shape { payload: 1388 * 6, ..Shape::default() });
    frames[2][34 + 13] |= PSH;
    repair(&mut frames[2], &Shape::default());
    let writes = coalesce(ALL, &frames);
    assert_eq!(sizes(&writes), [Some((1388, 1388 * 3)), Some((1388, 1388 * 3))]);
    assert_eq!(writes[0].1[34 + 13], ACK | PSH);
    assert_eq!(writes[1].1[34 + 13], ACK);
    // On the first of a run too.
    frames.drain(..2);
    assert_eq!(sizes(&coalesce(ALL, &frames)), [None, Some((1388, 1388 * 3))]);
}

#[test]
fn a_shorter_segment_ends_a_merge_and_a_longer_one_begins_another() {
    let short = Shape { size: 500, payload: 1200, sequence: 0, ..Shape::default() };
    let long = Shape { size: 700, payload: 2100, sequence: 1200, id: 1, ..Shape::default() };
    let frames = [segments(&short), segments(&long)].concat();
    assert_eq!(sizes(&coalesce(ALL, &frames)), [Some((500, 1200)), Some((700, 2100))]);
    let longer_in_the_run = [&frames[..2], &segments(&Shape { sequence: 1000, ..long })[..]].concat();
    assert_eq!(sizes(&coalesce(ALL, &longer_in_the_run)), [Some((500, 1000)), Some((700, 2100))]);
}

#[test]
fn segments_out_of_order_are_not_merged() {
    let frames = segments(&Shape { payload: 1388 * 4, ..Shape::default() });
    let swapped = [&frames[0], &frames[2], &frames[1], &frames[3]].map(Clone::clone);
    let writes = coalesce(ALL, &swapped);
    assert_eq!(sizes(&writes), [None; 4]);
    assert!(writes.iter().map(|(_, frame)| frame).eq(&swapped));
    let twice = [&frames[0], &frames[0]].map(Clone::clone);
    assert_eq!(sizes(&coalesce(ALL, &twice)), [None; 2]);
}

/// Flips `mask` in byte `at` of the third of five segments, with right checksums.
fn changed(shape: &Shape, at: usize, mask: u8) -> Vec<Vec<u8>> {
    let mut frames = segments(&Shape { payload: usize::from(shape.size) * 5, ..shape.clone() });
    frames[2][at] ^= mask;
    repair(&mut frames[2], shape);
    frames
}

#[test]
fn a_segment_with_other_headers_ends_the_merge() {
    // MACs, TOS, DF, TTL; acknowledgement, header length's reserved bits, window, urgent pointer, options.
    let tcp4 = [0, 6, 15, 20, 22, 34 + 8, 34 + 11, 34 + 12, 34 + 14, 34 + 15, 34 + 18, 34 + 20, 34 + 31];
    // Traffic class, flow label, hop limit.
    let tcp6 = [3, 11, 15, 17, 21, 54 + 9, 54 + 15, 54 + 31];
    // And the length in the UDP header.
    let udp4 = [5, 15, 20, 22, 34 + 5];
    let udp6 = [5, 15, 17, 21, 54 + 5];
    let table = [
        (Shape::tcp(Network::V4), &tcp4[..]),
        (Shape::tcp(Network::V6), &tcp6),
        (Shape::udp(Network::V4), &udp4),
        (Shape::udp(Network::V6), &udp6),
    ];
    for (shape, places) in table {
        for &at in places {
            let mask = if at == 20 && shape.version == Network::V4 { 0x40 } else { 1 };
            let frames = changed(&shape, at, mask);
            let writes = coalesce(ALL, &frames);
            assert_eq!(sizes(&writes), [Some((1388, 2776)), None, Some((1388, 2776))], "byte {at}");
            assert_eq!(writes[1].1, frames[2]);
        }
    }
}

#[test]
fn options_of_another_length_end_the_merge() {
    let shape = Shape { payload: 1388 * 5, ..Shape::default() };
    let mut frames = segments(&shape);
    frames[2] = segments(&Shape { tcp_options: 8, ..shape }).swap_remove(2);
    assert_eq!(frames[2][54..62], frames[1][54..62]);
    assert_eq!(sizes(&coalesce(ALL, &frames)), [Some((1388, 2776)), None, Some((1388, 2776))]);
}

#[test]
fn flags_besides_ack_and_psh_are_never_merged() {
    for version in [Network::V4, Network::V6] {
        let shape = Shape::tcp(version);
        let transport = shape.build().transport;
        for mask in [0x01, 0x02, 0x04, 0x10, 0x20, 0x40, 0x80] {
            let frames = changed(&shape, transport + 13, mask);
            let writes = coalesce(ALL, &frames);
            assert_eq!(sizes(&writes), [Some((1388, 2776)), None, Some((1388, 2776))], "flag {mask:#x}");
            assert_eq!(writes[1].1, frames[2]);
        }
    }
}

#[test]
fn another_address_or_port_is_another_flow() {
    for (shape, places) in [
        (Shape::tcp(Network::V4), [14 + 12, 14 + 19, 34, 36, 37]),
        (Shape::udp(Network::V4), [14 + 15, 14 + 16, 35, 36, 37]),
        (Shape::tcp(Network::V6), [14 + 8, 14 + 39, 54, 55, 57]),
    ] {
        for at in places {
            let writes = coalesce(ALL, &changed(&shape, at, 1));
            // TCP misses the third segment; UDP merges on.
            let expected = match shape.kind {
                Transport::Tcp => vec![Some((1388, 2776)), None, Some((1388, 2776))],
                Transport::Udp => vec![Some((1388, 1388 * 4)), None],
            };
            assert_eq!(sizes(&writes), expected, "byte {at}");
        }
    }
}

#[test]
fn a_wrong_checksum_is_passed_on_alone_and_unchanged() {
    for (shape, places) in [
        (Shape::tcp(Network::V4), &[24, 34 + 16, 100, 1453][..]),
        (Shape::tcp(Network::V6), &[54 + 17, 100, 1473]),
        (Shape::udp(Network::V4), &[25, 34 + 7, 100, 1429]),
        (Shape::udp(Network::V6), &[54 + 6, 100, 1449]),
    ] {
        for &at in places {
            let mut frames = segments(&Shape { payload: 1388 * 5, ..shape.clone() });
            frames[2][at] ^= 4;
            let writes = coalesce(ALL, &frames);
            assert_eq!(sizes(&writes), [Some((1388, 2776)), None, Some((1388, 2776))], "byte {at}");
            assert_eq!(writes[1].1, frames[2]);
        }
    }
}

#[test]
fn datagrams_without_checksum_are_not_merged() {
    let mut frames = segments(&Shape::udp(Network::V4));
    for frame in &mut frames {
        // A payload with which zero would be the right checksum, were it not for its meaning.
        set_word(frame, 42, 0);
        set_word(frame, 40, 0);
        let mut summed = pseudo_bytes(frame, Network::V4, 14, 17, frame.len() - 34);
        summed.extend(&frame[34..]);
        set_word(frame, 42, !naive(&summed));
    }
    assert_eq!(sizes(&coalesce(ALL, &frames)), [None; 4]);
    for frame in &mut frames {
        set_word(frame, 40, 0xFFFF);
    }
    assert_eq!(sizes(&coalesce(ALL, &frames)), [Some((1388, 4241))]);
}

#[test]
fn reserved_tcp_bits_are_not_merged_even_if_all_have_them() {
    let mut frames = segments(&Shape::default());
    for frame in &mut frames {
        frame[34 + 12] |= 1;
        repair(frame, &Shape::default());
    }
    assert_eq!(sizes(&coalesce(ALL, &frames)), [None; 4]);
}

#[test]
fn identifications_must_follow_only_without_df() {
    for kind in [Transport::Tcp, Transport::Udp] {
        let shape = Shape { kind, payload: 1388 * 4, ..Shape::default() };
        let mut frames = segments(&shape);
        for frame in &mut frames {
            frame[20] = 0;
            repair(frame, &shape);
        }
        assert_eq!(sizes(&coalesce(ALL, &frames)), [Some((1388, 1388 * 4))]);
        set_word(&mut frames[2], 18, 7);
        repair(&mut frames[2], &shape);
        assert_eq!(sizes(&coalesce(ALL, &frames)), [Some((1388, 2776)), None, None]);
        for frame in &mut frames {
            frame[20] = 0x40;
            repair(frame, &shape);
        }
        assert_eq!(sizes(&coalesce(ALL, &frames)), [Some((1388, 1388 * 4))]);
    }
}

#[test]
fn pure_acknowledgements_and_empty_datagrams_are_not_merged() {
    for shape in [Shape::tcp(Network::V4), Shape::tcp(Network::V6), Shape::udp(Network::V4)] {
        let shape = Shape { payload: 0, ..shape };
        let mut frame = shape.build().frame;
        repair(&mut frame, &shape);
        let frames = vec![frame; 3];
        assert_eq!(sizes(&coalesce(ALL, &frames)), [None; 3]);
    }
}

#[test]
fn padding_options_and_vlan_tags_keep_a_frame_alone() {
    let mut padded = segments(&Shape::default());
    for frame in &mut padded {
        frame.push(0);
    }
    assert_eq!(sizes(&coalesce(ALL, &padded)), [None; 4]);
    // Zeros, so that the checksum of the first 20 bytes is right too.
    let options = Shape { ip_extra: vec![0; 4], ..Shape::default() };
    let extension = Shape { ip_extra: vec![6, 0, 1, 4, 0, 0, 0, 0], ..Shape::tcp(Network::V6) };
    let tagged = Shape { vlan: true, ..Shape::default() };
    for shape in [options, extension, tagged] {
        assert_eq!(sizes(&coalesce(ALL, &segments(&shape))), [None; 4]);
    }
}

#[test]
fn an_offload_that_is_off_merges_nothing() {
    let (tcp, udp) = (segments(&Shape::default()), segments(&Shape::udp(Network::V4)));
    let frames = [tcp, udp].concat();
    let only_tcp = [Some((1388, 4241)), None, None, None, None];
    assert_eq!(sizes(&coalesce(Offloads { tcp: true, udp: false }, &frames)), only_tcp);
    let only_udp = [None, None, None, None, Some((1388, 4241))];
    assert_eq!(sizes(&coalesce(Offloads { tcp: false, udp: true }, &frames)), only_udp);
}

#[test]
fn a_super_frame_is_an_ip_packet_of_at_most_65535_bytes() {
    // Segments of one byte, and the most that fits: 20 bytes of IP, 32 of TCP.
    let fits = Shape { size: 8, payload: 65_535 - 52, ..Shape::default() };
    let mut frames = segments(&fits);
    assert_eq!(sizes(&coalesce(ALL, &frames)), [Some((8, 65_483))]);
    let mut more = frames.pop().unwrap();
    more.extend([1; 5]);
    set_word(&mut more, 16, 60);
    repair(&mut more, &fits);
    frames.push(more);
    assert_eq!(sizes(&coalesce(ALL, &frames)), [Some((8, 65_480)), None]);
}

#[test]
fn a_udp_super_frame_has_at_most_64_datagrams() {
    let frames = segments(&Shape { size: 100, payload: 10_000, ..Shape::udp(Network::V6) });
    assert_eq!(sizes(&coalesce(ALL, &frames)), [Some((100, 6400)), Some((100, 3600))]);
}

/// `count` flows of TCP over IPv4 that differ in the source port, one segment of each in turn.
fn interleaved(count: u8, payload: usize) -> Vec<Vec<u8>> {
    let shape = Shape { payload, ..Shape::default() };
    let flows: Vec<_> = (0..count)
        .map(|port| {
            let mut frames = segments(&shape);
            for frame in &mut frames {
                frame[35] = port;
                repair(frame, &shape);
            }
            frames
        })
        .collect();
    (0..flows[0].len()).flat_map(|index| flows.iter().map(move |flow| flow[index].clone())).collect()
}

#[test]
fn sixteen_interleaved_flows_are_merged_each_by_itself() {
    let writes = coalesce(ALL, &interleaved(16, 1388 * 4));
    assert_eq!(sizes(&writes), [Some((1388, 1388 * 4)); 16]);
    let ports: Vec<u8> = writes.iter().map(|(_, frame)| frame[35]).collect();
    assert_eq!(ports, (0..16).collect::<Vec<u8>>());
    // A seventeenth flow drives each out before its next segment comes.
    assert_eq!(sizes(&coalesce(ALL, &interleaved(17, 1388 * 4))), [None; 68]);
}

#[test]
fn other_protocols_close_no_flow_but_fragments_do() {
    let frames = segments(&Shape { payload: 2776, ..Shape::default() });
    let mut between = frames[0].clone();
    let mut merged_around = |at: usize, value: u8| {
        between.clone_from(&frames[0]);
        // What stands where a fragment has no ports is no flow's.
        between[35] ^= 1;
        between[at] = value;
        sizes(&coalesce(ALL, &[frames[0].clone(), between.clone(), frames[1].clone()]))
    };
    // ARP, ICMP; fragments, broken version.
    assert_eq!(merged_around(13, 6), [Some((1388, 2776)), None]);
    assert_eq!(merged_around(23, 1), [Some((1388, 2776)), None]);
    assert_eq!(merged_around(20, 0x20), [None; 3]);
    assert_eq!(merged_around(21, 0x01), [None; 3]);
    assert_eq!(merged_around(14, 0x55), [None; 3]);
    assert_eq!(merged_around(14, 0x41), [None; 3]);
    let six = segments(&Shape { payload: 2776, ..Shape::tcp(Network::V6) });
    for (protocol, expected) in [(58, vec![Some((1388, 2776)), None]), (44, vec![None; 3]), (0, vec![None; 3])] {
        between.clone_from(&six[0]);
        between[20] = protocol;
        assert_eq!(sizes(&coalesce(ALL, &[six[0].clone(), between.clone(), six[1].clone()])), expected);
    }
}

#[test]
fn a_coalescer_is_used_again_and_keeps_few_buffers() {
    let mut coalescer = Coalescer::new(ALL);
    let large = segments(&Shape { payload: 60_000, ..Shape::default() });
    let expected = coalesce(ALL, &large);
    assert_eq!(flush(&mut coalescer, &large), expected);
    assert_eq!(flush(&mut coalescer, &[]), []);
    // The next segments of the flow must not continue what is written already.
    let (first, second) = large.split_at(20);
    assert_eq!(flush(&mut coalescer, first).len(), 1);
    assert_eq!(flush(&mut coalescer, second).len(), 1);
    let many: Vec<_> = (0..500).map(|_| vec![0; 20_000]).collect();
    assert_eq!(flush(&mut coalescer, &many).len(), 500);
    let kept: usize = coalescer.items.iter().map(|item| item.buffer.capacity()).sum();
    assert!((1..=KEPT_BYTES).contains(&kept), "{kept} bytes");
    assert_eq!(flush(&mut coalescer, &large), expected);
}

/// The frames that the kernel would make of `writes`.
fn unmerge(writes: &[(VnetHeader, Vec<u8>)]) -> Vec<Vec<u8>> {
    writes.iter().flat_map(|(header, frame)| split_all(header, frame).unwrap()).collect()
}

/// With DF the identification means nothing (RFC 6864), and one behind a gap comes out without the gap.
fn forget_atomic_id(frame: &mut [u8]) {
    if word(frame, 12) == 0x0800 && frame[20] == 0x40 {
        set_word(frame, 18, 0);
        set_word(frame, 24, 0);
    }
}

#[test]
fn random_traffic_comes_out_as_it_went_in_flow_by_flow() {
    let mut random = Splitmix(11);
    let mut coalescer = Coalescer::new(ALL);
    let mut merged = 0;
    for round in 0..2000 {
        let mut flows: Vec<(Vec<Vec<u8>>, usize)> = (0..=random.below(20))
            .map(|_| {
                let version = if random.below(2) == 0 { Network::V4 } else { Network::V6 };
                let shape = if random.below(3) == 0 { Shape::udp(version) } else { Shape::tcp(version) };
                let size = 1 + random.below(40);
                let shape = Shape {
                    size: u16::try_from(size).unwrap(),
                    payload: 1 + random.below(size * 8),
                    flags: [0x10, 0x18, 0x11, 0x90][random.below(4)],
                    tcp_options: random.below(11) * 4,
                    ..shape
                };
                let mut frames = segments(&shape);
                let port = u16::try_from(random.draw() & 0xFFFF).unwrap();
                let transport = shape.build().transport;
                for frame in &mut frames {
                    set_word(frame, transport, port);
                    repair(frame, &shape);
                    if random.below(20) == 0 {
                        let at = random.below(frame.len());
                        frame[at] ^= 1 << random.below(8);
                    }
                }
                (frames, 0)
            })
            .collect();
        let mut frames = vec![];
        while !flows.is_empty() {
            let pick = random.below(flows.len());
            let (flow, next) = &mut flows[pick];
            frames.extend(flow.get(*next).cloned());
            *next += 1;
            if *next >= flow.len() {
                flows.swap_remove(pick);
            }
        }
        let writes = flush(&mut coalescer, &frames);
        merged += frames.len() - writes.len();
        let key = |frame: &Vec<u8>| match classify(frame) {
            Class::Flow(flow, _) => Some((flow.protocol, flow.ports, flow.addresses)),
            Class::Apart | Class::Unclear => None,
        };
        let mut out = unmerge(&writes);
        frames.sort_by_key(key);
        out.sort_by_key(key);
        for frame in out.iter_mut().chain(&mut frames) {
            forget_atomic_id(frame);
        }
        assert!(out == frames, "round {round}");
    }
    assert!(merged > 10_000, "only {merged} frames were merged");
}

#[test]
fn garbage_never_panics_and_is_never_lost() {
    let mut random = Splitmix(13);
    let shapes = [Network::V4, Network::V6].map(|version| [Shape::tcp(version), Shape::udp(version)]).concat();
    let good: Vec<Vec<u8>> =
        shapes.into_iter().flat_map(|shape| segments(&Shape { size: 30, payload: 100, ..shape })).collect();
    let mut coalescer = Coalescer::new(ALL);
    let mut pushed = 0;
    let mut bytes = 0;
    for _ in 0..100_000 {
        let mut frame = good[random.below(good.len())].clone();
        for _ in 0..random.below(3) {
            let at = random.below(frame.len());
            frame[at] = random.bytes(1)[0];
        }
        match random.below(8) {
            0 => frame.truncate(random.below(frame.len())),
            1 => {
                let len = random.below(80);
                frame = random.bytes(len);
            }
            _ => (),
        }
        bytes += frame.len();
        coalescer.push(&frame);
        pushed += 1;
        if random.below(100) == 0 {
            let mut scratch = vec![];
            coalescer.flush(|write| {
                let header = VnetHeader::parse(write).unwrap();
                let mut frame = write[VnetHeader::LEN..].to_vec();
                let count = |segment: &[u8]| {
                    pushed -= 1;
                    bytes -= segment.len();
                };
                crate::dataplane::gso::split(&header, &mut frame, &mut scratch, count).unwrap();
            });
            assert_eq!((pushed, bytes), (0, 0));
        }
    }
}
