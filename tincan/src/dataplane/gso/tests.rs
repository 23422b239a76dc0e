//! Super-frames in, wire frames out, compared with frames built one by one.

use super::*;
use crate::dataplane::samples::{Random, Sample, kinds, payload};

/// A super-frame as the TAP gives it: the checksum partial, the lengths those of the whole.
fn super_frame(sample: Sample, payload: &[u8], size: u16) -> (VnetHeader, Vec<u8>) {
    let frame = sample.frame(payload);
    let transport = sample.header_len() - if sample.tcp { 32 } else { 8 };
    let gso_type = match (sample.tcp, sample.v6) {
        (true, false) => VnetHeader::GSO_TCPV4,
        (true, true) => VnetHeader::GSO_TCPV6,
        (false, _) => VnetHeader::GSO_UDP_L4,
    };
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type,
        hdr_len: u16::try_from(sample.header_len()).unwrap(),
        gso_size: size,
        csum_start: u16::try_from(transport).unwrap(),
        csum_offset: if sample.tcp { 16 } else { 6 },
    };
    (header, frame)
}

fn split_all(header: &VnetHeader, frame: &mut [u8]) -> Result<Vec<Vec<u8>>, SplitError> {
    let mut frames = Vec::new();
    split(header, frame, &mut Vec::new(), |segment| frames.push(segment.to_vec()))?;
    Ok(frames)
}

/// The frame of a segment, built on its own.
fn segment(sample: Sample, payload: &[u8], size: usize, number: usize) -> Vec<u8> {
    let chunks: Vec<&[u8]> = payload.chunks(size).collect();
    let mut flags = sample.flags;
    if number + 1 < chunks.len() {
        flags &= !(FIN | PSH);
    }
    if number > 0 {
        flags &= !CWR;
    }
    let one = Sample {
        id: sample.id.wrapping_add(u16::try_from(number).unwrap()),
        sequence: sample.sequence.wrapping_add(u32::try_from(number * size).unwrap()),
        flags,
        ..sample
    };
    one.frame(chunks[number])
}

#[test]
fn every_segment_is_the_frame_a_host_without_offload_would_have_sent() {
    for sample in kinds() {
        for (len, size) in [(5000, 1220), (4880, 1220), (1221, 1220), (100, 1220), (1, 1), (9, 2), (60_000, 1448)] {
            // Identification and sequence number wrap within the longest.
            let sample = Sample { flags: 0x10 | FIN | PSH | CWR, ..sample };
            let payload = payload(len);
            let (header, mut frame) = super_frame(sample, &payload, u16::try_from(size).unwrap());
            let frames = split_all(&header, &mut frame).unwrap();
            assert_eq!(frames.len(), len.div_ceil(size), "{sample:?}");
            for (number, frame) in frames.iter().enumerate() {
                assert_eq!(*frame, segment(sample, &payload, size, number), "{sample:?} {len}/{size} #{number}");
            }
        }
    }
}

#[test]
fn an_ordinary_frame_passes_with_its_checksum_completed() {
    for sample in kinds() {
        let whole = sample.frame(b"hello");
        let (header, mut frame) = super_frame(sample, b"hello", 0);
        let at = usize::from(header.csum_start + header.csum_offset);
        let layout = Layout::of(&whole, None).unwrap();
        let partial = crate::dataplane::checksum::fold(layout.pseudo_sum(&whole));
        frame[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        let ordinary = VnetHeader { gso_type: VnetHeader::GSO_NONE, ..header };
        assert_eq!(split_all(&ordinary, &mut frame).unwrap(), std::slice::from_ref(&whole));
        assert_eq!(split_all(&VnetHeader::default(), &mut whole.clone()).unwrap(), [whole]);
    }
}

#[test]
fn headers_that_contradict_the_frame_are_errors() {
    let (header, frame) = super_frame(Sample::tcp(false), &payload(3000), 1000);
    let cases = [
        (VnetHeader { gso_size: 0, ..header }, SplitError::SegmentSize),
        (VnetHeader { gso_type: 9, ..header }, SplitError::Type(9)),
        (VnetHeader { csum_start: 33, ..header }, SplitError::Headers),
        (VnetHeader { csum_start: 60_000, ..header }, SplitError::Headers),
        (VnetHeader { gso_type: 0, csum_start: 60_000, ..header }, SplitError::ChecksumPlace),
    ];
    for (header, expected) in cases {
        assert_eq!(split_all(&header, &mut frame.clone()), Err(expected), "{header:?}");
    }
    let headers_only = &mut frame[..Sample::tcp(false).header_len()].to_vec();
    assert_eq!(split_all(&header, headers_only), Err(SplitError::Headers));
}

#[test]
fn nothing_the_tap_could_say_makes_it_panic() {
    let mut random = Random(7);
    for _ in 0..100_000 {
        let sample = kinds()[random.below(4)];
        let (header, mut frame) = super_frame(sample, &payload(random.below(200)), 100);
        let mut bytes = header.to_bytes();
        for _ in 0..random.below(4) {
            bytes[random.below(VnetHeader::LEN)] = u8::try_from(random.below(256)).unwrap();
        }
        for _ in 0..random.below(4) {
            let at = random.below(frame.len());
            frame[at] = u8::try_from(random.below(256)).unwrap();
        }
        frame.truncate(random.below(frame.len() + 1));
        let header = VnetHeader::parse(&bytes).unwrap();
        let mut longest = 0;
        let limit = frame.len();
        let result = split(&header, &mut frame, &mut Vec::new(), |segment| longest = longest.max(segment.len()));
        assert!(result.is_err() || longest <= limit);
    }
}
