//! Frames in, TAP writes out; a write split again must be the frames that went in.

use super::*;
use crate::dataplane::gso::split;
use crate::dataplane::samples::{Random, Sample, kinds, payload};

const BOTH: Offloads = Offloads { tcp: true, udp: true };

fn writes(offloads: Offloads, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut coalescer = Coalescer::new(offloads);
    for frame in frames {
        coalescer.push(frame);
    }
    let mut packets = Vec::new();
    coalescer.flush(|packet| packets.push(packet.to_vec()));
    packets
}

fn split_again(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for packet in packets {
        let header = VnetHeader::parse(packet).unwrap();
        let mut frame = packet[VnetHeader::LEN..].to_vec();
        split(&header, &mut frame, &mut Vec::new(), |segment| frames.push(segment.to_vec())).unwrap();
    }
    frames
}

/// Consecutive frames of a flow with payloads of these lengths.
fn flow(sample: Sample, lengths: &[usize]) -> Vec<Vec<u8>> {
    let (mut sequence, mut id) = (sample.sequence, sample.id);
    lengths
        .iter()
        .map(|&len| {
            let frame = Sample { id, sequence, ..sample }.frame(&payload(len));
            sequence = sequence.wrapping_add(u32::try_from(len).unwrap());
            id = id.wrapping_add(1);
            frame
        })
        .collect()
}

#[test]
fn consecutive_frames_become_one_write_that_splits_into_the_same_frames() {
    for sample in kinds() {
        for lengths in [vec![1220; 40], [vec![1001; 7], vec![5]].concat(), vec![1, 1, 1], vec![700, 699]] {
            let frames = flow(sample, &lengths);
            let packets = writes(BOTH, &frames);
            assert_eq!(packets.len(), 1, "{sample:?} {lengths:?}");
            let header = VnetHeader::parse(&packets[0]).unwrap();
            assert_eq!(usize::from(header.gso_size), lengths[0]);
            assert_eq!(usize::from(header.hdr_len), sample.header_len());
            assert_eq!(header.flags, VnetHeader::NEEDS_CSUM);
            assert_eq!(split_again(&packets), frames, "{sample:?} {lengths:?}");
        }
    }
}

#[test]
fn a_single_frame_is_written_as_it_came() {
    for sample in kinds() {
        let frames = flow(sample, &[500]);
        assert_eq!(writes(BOTH, &frames), [[vec![0; VnetHeader::LEN], frames[0].clone()].concat()]);
    }
}

#[test]
fn no_packet_grows_beyond_what_ip_can_say() {
    for sample in kinds() {
        let frames = flow(sample, &vec![1400; 100]);
        let packets = writes(BOTH, &frames);
        assert!(packets.len() > 1 && packets.iter().all(|packet| packet.len() <= VnetHeader::LEN + 14 + MAX_PACKET));
        assert_eq!(split_again(&packets), frames);
    }
}

#[test]
fn what_a_receiver_could_tell_apart_is_not_merged() {
    let base = Sample::tcp(false);
    let second = Sample { sequence: base.sequence.wrapping_add(1000), id: base.id.wrapping_add(1), ..base };
    let first = base.frame(&payload(1000));
    let good = second.frame(&payload(1000));
    assert_eq!(writes(BOTH, &[first.clone(), good.clone()]).len(), 1);
    let patched = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        let layout = Layout::of(&frame, None).unwrap();
        layout.fit_lengths(&mut frame);
        layout.write_checksum(&mut frame);
        frame
    };
    let others = [
        ("TOS", patched(15, 0x02)),
        ("TTL", patched(22, 63)),
        ("source MAC", patched(6, 4)),
        ("fragment", patched(20, 0x20)),
        ("acknowledgement", patched(45, 1)),
        ("window", patched(48, 9)),
        ("URG pointer", patched(53, 1)),
        ("timestamp", patched(65, 1)),
        ("SYN", patched(47, 0x12)),
        ("RST", patched(47, 0x14)),
        ("FIN", patched(47, 0x11)),
        ("CWR", patched(47, 0x90)),
        ("sequence", Sample { sequence: second.sequence + 1, ..second }.frame(&payload(1000))),
        ("longer", second.frame(&payload(1001))),
        ("pure ACK", second.frame(&[])),
        ("other port", Sample { source_port: 1, ..second }.frame(&payload(1000))),
        ("bad checksum", {
            let mut frame = good.clone();
            frame[100] ^= 1;
            frame
        }),
        ("bad header checksum", {
            let mut frame = good.clone();
            frame[24] ^= 1;
            frame
        }),
        ("trailing byte", [good.clone(), vec![0]].concat()),
    ];
    for (name, other) in others {
        let packets = writes(BOTH, &[first.clone(), other.clone()]);
        assert_eq!(packets.len(), 2, "{name}");
        assert_eq!(packets[1][VnetHeader::LEN..], other, "{name}");
    }
    let without_df = |frame: &[u8], id: u16| {
        let mut frame = frame.to_vec();
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        frame[20] = 0;
        Layout::of(&frame, None).unwrap().fit_lengths(&mut frame);
        frame
    };
    let (a, b) = (without_df(&first, 5), without_df(&good, 6));
    assert_eq!(writes(BOTH, &[a.clone(), b]).len(), 1, "identification counts on");
    assert_eq!(writes(BOTH, &[a, without_df(&good, 7)]).len(), 2, "identification jumps");
}

#[test]
fn offloads_the_tap_does_not_take_are_not_used() {
    let (tcp, udp) = (flow(Sample::tcp(true), &[100; 3]), flow(Sample::udp(false), &[100; 3]));
    assert_eq!(writes(Offloads { tcp: true, udp: false }, &udp).len(), 3);
    assert_eq!(writes(Offloads { tcp: false, udp: true }, &tcp).len(), 3);
    let mut unchecked = udp.clone();
    for frame in &mut unchecked {
        frame[40..42].fill(0);
    }
    assert_eq!(writes(BOTH, &unchecked).len(), 3, "UDP without checksum");
}

#[test]
fn a_push_ends_the_write_and_a_fin_keeps_its_place() {
    let mut frames = flow(Sample::tcp(false), &[100; 6]);
    let start = Sample::tcp(false);
    let at = |number: u32, flags: u8| {
        let sequence = start.sequence.wrapping_add(100 * number);
        let id = start.id.wrapping_add(u16::try_from(number).unwrap());
        Sample { id, sequence, flags, ..start }.frame(&payload(100))
    };
    frames[2] = at(2, ACK | PSH);
    frames[5] = at(5, ACK | 0x01);
    let packets = writes(BOTH, &frames);
    let lengths: Vec<usize> =
        packets.iter().map(|packet| packet.len() - VnetHeader::LEN - start.header_len()).collect();
    assert_eq!(lengths, [300, 200, 100]);
    assert_eq!(split_again(&packets), frames);
}

#[test]
fn flows_keep_their_order_however_they_are_mixed() {
    let mut random = Random(3);
    for _ in 0..300 {
        let mut flows: Vec<Vec<Vec<u8>>> = (0..20)
            .map(|number| {
                let sample = Sample { source_port: number, ..kinds()[usize::from(number) % 4] };
                let lengths: Vec<usize> =
                    (0..random.below(12)).map(|_| [0, 1, 99, 1000, 1000, 1000, 1000][random.below(7)]).collect();
                flow(sample, &lengths)
            })
            .collect();
        let mut mixed = Vec::new();
        while flows.iter().any(|flow| !flow.is_empty()) {
            let flow = random.below(flows.len());
            if !flows[flow].is_empty() {
                mixed.push(flows[flow].remove(0));
            }
        }
        let out = split_again(&writes(BOTH, &mixed));
        let port_of = |frame: &[u8]| {
            let at = if frame[12] == 0x86 { 54 } else { 34 };
            u16::from_be_bytes([frame[at], frame[at + 1]])
        };
        for port in 0..20 {
            let of_port = |frames: &[Vec<u8>]| -> Vec<Vec<u8>> {
                frames.iter().filter(|frame| port_of(frame) == port).cloned().collect()
            };
            assert_eq!(of_port(&out), of_port(&mixed), "flow {port}");
        }
    }
}

#[test]
fn nothing_a_peer_could_send_makes_it_panic_or_lose_a_frame() {
    let mut random = Random(11);
    let mut coalescer = Coalescer::new(BOTH);
    for _ in 0..20_000 {
        let sample = kinds()[random.below(4)];
        let mut frames = flow(sample, &vec![random.below(90); random.below(6)]);
        for frame in &mut frames {
            for _ in 0..random.below(3) {
                let at = random.below(frame.len());
                frame[at] = u8::try_from(random.below(256)).unwrap();
            }
            frame.truncate(random.below(frame.len()) + random.below(2) * frame.len());
        }
        for frame in &frames {
            coalescer.push(frame);
        }
        let mut bytes = 0;
        coalescer.flush(|packet| bytes += packet.len());
        assert!(bytes >= frames.iter().map(Vec::len).max().unwrap_or(0));
    }
}
