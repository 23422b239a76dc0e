//! Super-frames in, wire frames out, checked field by field.

use super::*;
use crate::dataplane::checksum::tests::{Splitmix, naive};

const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

/// A super-frame and its vnet header, as the kernel gives them.
#[derive(Clone)]
pub(in crate::dataplane) struct Super {
    pub header: VnetHeader,
    pub frame: Vec<u8>,
    pub network: usize,
    pub transport: usize,
    pub payload: usize,
}

/// What a super-frame is made of.
#[derive(Clone)]
pub(in crate::dataplane) struct Shape {
    pub version: Network,
    pub kind: Transport,
    pub vlan: bool,
    /// IPv4 options or IPv6 extension headers.
    pub ip_extra: Vec<u8>,
    pub tcp_options: usize,
    pub flags: u8,
    pub sequence: u32,
    pub id: u16,
    pub size: u16,
    pub payload: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            version: Network::V4,
            kind: Transport::Tcp,
            vlan: false,
            ip_extra: vec![],
            tcp_options: 12,
            flags: 0x10,
            sequence: 0xFFFF_FF00,
            id: 0xFFFE,
            size: 1388,
            payload: 1388 * 3 + 77,
        }
    }
}

impl Shape {
    pub fn udp(version: Network) -> Self {
        Self { version, kind: Transport::Udp, ..Self::default() }
    }

    pub fn tcp(version: Network) -> Self {
        Self { version, ..Self::default() }
    }

    pub fn build(&self) -> Super {
        let mut random = Splitmix(u64::from(self.size) + self.payload as u64);
        let (protocol, checksum, gso_type) = match (self.kind, self.version) {
            (Transport::Tcp, Network::V4) => (6, 16, VnetHeader::GSO_TCPV4),
            (Transport::Tcp, Network::V6) => (6, 16, VnetHeader::GSO_TCPV6),
            (Transport::Udp, _) => (17, 6, VnetHeader::GSO_UDP_L4),
        };
        let transport_length = match self.kind {
            Transport::Tcp => 20 + self.tcp_options + self.payload,
            Transport::Udp => 8 + self.payload,
        };
        let mut frame = MACS.to_vec();
        if self.vlan {
            frame.extend([0x81, 0, 0, 5]);
        }
        let network = frame.len() + 2;
        let ip_payload = u16::try_from(transport_length + self.ip_extra.len()).unwrap();
        match self.version {
            Network::V4 => {
                let words = u8::try_from(5 + self.ip_extra.len() / 4).unwrap();
                frame.extend([8, 0, 0x40 | words, 3]);
                frame.extend((20 + ip_payload).to_be_bytes());
                frame.extend(self.id.to_be_bytes());
                frame.extend([0x40, 0, 63, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
                frame.extend(&self.ip_extra);
                let ip_checksum = !naive(&frame[network..]);
                set_word(&mut frame, network + 10, ip_checksum);
            }
            Network::V6 => {
                frame.extend([0x86, 0xDD, 0x60, 1, 2, 3]);
                frame.extend(ip_payload.to_be_bytes());
                frame.extend([if self.ip_extra.is_empty() { protocol } else { 60 }, 63]);
                frame.extend(random.bytes(32));
                frame.extend(&self.ip_extra);
            }
        }
        let transport = frame.len();
        match self.kind {
            Transport::Tcp => {
                frame.extend([0x12, 0x34, 0x56, 0x78]);
                frame.extend(self.sequence.to_be_bytes());
                let words = u8::try_from(5 + self.tcp_options / 4).unwrap();
                frame.extend([9, 8, 7, 6, words << 4, self.flags, 0x7F, 0xFF, 0, 0, 0, 0]);
                frame.extend(random.bytes(self.tcp_options));
            }
            Transport::Udp => {
                frame.extend([0x12, 0x34, 0x56, 0x78]);
                frame.extend(u16::try_from(transport_length).unwrap().to_be_bytes());
                frame.extend([0, 0]);
            }
        }
        let payload = frame.len();
        frame.extend(random.bytes(self.payload));
        let pseudo = naive(&pseudo_bytes(&frame, self.version, network, protocol, transport_length));
        set_word(&mut frame, transport + checksum, pseudo);
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type,
            hdr_len: 0,
            gso_size: self.size,
            csum_start: u16::try_from(transport).unwrap(),
            csum_offset: u16::try_from(checksum).unwrap(),
        };
        Super { header, frame, network, transport, payload }
    }
}

pub(in crate::dataplane) fn pseudo_bytes(
    frame: &[u8],
    version: Network,
    network: usize,
    protocol: u8,
    length: usize,
) -> Vec<u8> {
    let addresses = match version {
        Network::V4 => &frame[network + 12..network + 20],
        Network::V6 => &frame[network + 8..network + 40],
    };
    let length = u32::try_from(length).unwrap().to_be_bytes();
    [addresses, &length, &[0, 0, 0, protocol]].concat()
}

pub(in crate::dataplane) fn split_all(header: &VnetHeader, frame: &[u8]) -> Result<Vec<Vec<u8>>, SplitError> {
    let mut segments = vec![];
    let mut scratch = vec![0xAA; 100];
    split(header, &mut frame.to_vec(), &mut scratch, |segment| segments.push(segment.to_vec()))?;
    Ok(segments)
}

/// Checks every byte of every segment against the super-frame, checksums with the naive sum.
fn check(shape: &Shape) -> Vec<Vec<u8>> {
    let whole = shape.build();
    let segments = split_all(&whole.header, &whole.frame).unwrap();
    let size = usize::from(shape.size);
    assert_eq!(segments.len(), shape.payload.div_ceil(size));
    assert_eq!(longest_segment(&whole.header, &whole.frame), Ok(segments[0].len()));
    let mut payload: Vec<u8> = vec![];
    for (index, segment) in segments.iter().enumerate() {
        let last = index + 1 == segments.len();
        assert!(last || segment.len() == whole.payload + size);
        let mut expected = whole.frame[..whole.payload].to_vec();
        let length = segment.len() - whole.network;
        match shape.version {
            Network::V4 => {
                set_word(&mut expected, whole.network + 2, u16::try_from(length).unwrap());
                set_word(&mut expected, whole.network + 4, shape.id.wrapping_add(u16::try_from(index).unwrap()));
                assert_eq!(naive(&segment[whole.network..whole.transport]), 0xFFFF, "IPv4 checksum of {index}");
                expected[whole.network + 10..][..2].copy_from_slice(&segment[whole.network + 10..][..2]);
            }
            Network::V6 => set_word(&mut expected, whole.network + 4, u16::try_from(length - 40).unwrap()),
        }
        let transport_length = segment.len() - whole.transport;
        let (protocol, checksum) = match shape.kind {
            Transport::Tcp => {
                let sequence = shape.sequence.wrapping_add(u32::try_from(payload.len()).unwrap());
                expected[whole.transport + 4..][..4].copy_from_slice(&sequence.to_be_bytes());
                let keep = if index == 0 { 0xFF } else { 0x7F } & if last { 0xFF } else { 0xF6 };
                expected[whole.transport + 13] = shape.flags & keep;
                (6, 16)
            }
            Transport::Udp => {
                set_word(&mut expected, whole.transport + 4, u16::try_from(transport_length).unwrap());
                assert_ne!(word(segment, whole.transport + 6), 0);
                (17, 6)
            }
        };
        let mut summed = pseudo_bytes(segment, shape.version, whole.network, protocol, transport_length);
        summed.extend(&segment[whole.transport..]);
        assert_eq!(naive(&summed), 0xFFFF, "transport checksum of {index}");
        expected[whole.transport + checksum..][..2].copy_from_slice(&segment[whole.transport + checksum..][..2]);
        assert_eq!(segment[..whole.payload], expected, "headers of {index}");
        payload.extend(&segment[whole.payload..]);
    }
    assert_eq!(payload, whole.frame[whole.payload..]);
    segments
}

#[test]
fn tcp_and_udp_over_both_ip_versions_are_split() {
    for version in [Network::V4, Network::V6] {
        for vlan in [false, true] {
            check(&Shape { vlan, ..Shape::tcp(version) });
            check(&Shape { vlan, ..Shape::udp(version) });
        }
    }
}

#[test]
fn payloads_of_any_size_are_split() {
    for (size, payload) in [(1, 1), (1, 9), (8, 65_000), (1387, 1387), (1387, 1388), (1387, 2774), (777, 64_999)] {
        for version in [Network::V4, Network::V6] {
            check(&Shape { size, payload, ..Shape::tcp(version) });
            check(&Shape { size, payload: payload.min(8192 * usize::from(size)), ..Shape::udp(version) });
        }
    }
    check(&Shape { tcp_options: 0, payload: 65_535 - 40, ..Shape::default() });
    check(&Shape { tcp_options: 40, payload: 65_535 - 60, ..Shape::tcp(Network::V6) });
}

#[test]
fn fin_and_psh_are_on_the_last_segment_and_cwr_on_the_first() {
    for version in [Network::V4, Network::V6] {
        let shape = Shape { flags: 0xFF, ..Shape::tcp(version) };
        let transport = shape.build().transport;
        let flags: Vec<u8> = check(&shape).iter().map(|segment| segment[transport + 13]).collect();
        assert_eq!(flags, [0xF6, 0x76, 0x76, 0x7F]);
        let single = check(&Shape { payload: 100, ..shape });
        assert_eq!(single[0][transport + 13], 0xFF);
    }
}

#[test]
fn the_ecn_bit_changes_no_type() {
    let Super { mut header, frame, .. } = Shape { flags: 0x90, ..Shape::default() }.build();
    let plain = split_all(&header, &frame);
    header.gso_type |= VnetHeader::GSO_ECN;
    assert_eq!(split_all(&header, &frame), plain);
    assert!(plain.is_ok());
}

#[test]
fn ip_options_and_extension_headers_are_repeated() {
    check(&Shape { ip_extra: vec![1; 8], ..Shape::default() });
    check(&Shape { ip_extra: vec![1; 40], ..Shape::udp(Network::V4) });
    let chain = |last| [&[43, 0, 1, 4, 0, 0, 0, 0][..], &[last, 1, 4, 0], &[0; 4], &[0; 8]].concat();
    // Destination options, then a routing header without segments left.
    let routing = |left| [&[43, 0, 1, 4, 0, 0, 0, 0][..], &[6, 1, 4, left], &[0; 12]].concat();
    check(&Shape { ip_extra: chain(6), ..Shape::tcp(Network::V6) });
    check(&Shape { ip_extra: chain(17), ..Shape::udp(Network::V6) });
    check(&Shape { ip_extra: routing(0), ..Shape::tcp(Network::V6) });
    let further = Shape { ip_extra: routing(1), ..Shape::tcp(Network::V6) }.build();
    assert_eq!(split_all(&further.header, &further.frame), Err(SplitError::WrongProtocol));
}

#[test]
fn a_super_frame_without_partial_checksum_is_split_the_same() {
    for shape in [Shape::tcp(Network::V4), Shape::tcp(Network::V6), Shape::udp(Network::V6)] {
        let Super { mut header, frame, .. } = shape.build();
        let expected = split_all(&header, &frame).unwrap();
        header.flags = 0;
        header.csum_start = 0;
        assert_eq!(split_all(&header, &frame).unwrap(), expected);
    }
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_ffff() {
    // One of the 65,536 words makes the sum all ones.
    let Super { header, mut frame, payload, transport, .. } =
        Shape { size: 64, payload: 64, ..Shape::udp(Network::V4) }.build();
    set_word(&mut frame, payload, 0);
    let checksum = word(&split_all(&header, &frame).unwrap()[0], transport + 6);
    set_word(&mut frame, payload, checksum);
    assert_eq!(word(&split_all(&header, &frame).unwrap()[0], transport + 6), 0xFFFF);
}

#[test]
fn an_ordinary_frame_is_emitted_as_it_is() {
    let frame = Splitmix(9).bytes(60);
    assert_eq!(split_all(&VnetHeader::default(), &frame), Ok(vec![frame]));
}

#[test]
fn an_ordinary_frame_gets_its_checksum_completed() {
    let Super { mut header, frame, network, transport, .. } = Shape { payload: 501, ..Shape::default() }.build();
    header.gso_type = VnetHeader::GSO_NONE;
    let out = split_all(&header, &frame).unwrap();
    assert_eq!(out.len(), 1);
    let mut summed = pseudo_bytes(&out[0], Network::V4, network, 6, out[0].len() - transport);
    summed.extend(&out[0][transport..]);
    assert_eq!(naive(&summed), 0xFFFF);
    header.csum_start = 2000;
    assert_eq!(split_all(&header, &frame), Err(SplitError::ChecksumField));
}

/// Changes one thing in a super-frame that is right, and expects an error.
#[track_caller]
fn refuse(shape: &Shape, error: SplitError, spoil: impl FnOnce(&mut Super)) {
    let mut whole = shape.build();
    spoil(&mut whole);
    assert_eq!(split_all(&whole.header, &whole.frame), Err(error));
}

#[test]
fn vnet_headers_that_do_not_fit_are_refused() {
    let (tcp4, tcp6, udp6) = (Shape::tcp(Network::V4), Shape::tcp(Network::V6), Shape::udp(Network::V6));
    refuse(&tcp4, SplitError::SegmentSize, |whole| whole.header.gso_size = 0);
    refuse(&Shape { payload: 8193, ..tcp4.clone() }, SplitError::SegmentSize, |whole| whole.header.gso_size = 1);
    refuse(&tcp4, SplitError::UnknownType(3), |whole| whole.header.gso_type = 3);
    refuse(&tcp4, SplitError::UnknownType(0x42), |whole| whole.header.gso_type = 0x42);
    refuse(&tcp4, SplitError::WrongProtocol, |whole| whole.header.gso_type = VnetHeader::GSO_TCPV6);
    refuse(&tcp6, SplitError::WrongProtocol, |whole| whole.header.gso_type = VnetHeader::GSO_TCPV4);
    refuse(&tcp6, SplitError::WrongProtocol, |whole| whole.header.gso_type = VnetHeader::GSO_UDP_L4);
    refuse(&udp6, SplitError::WrongProtocol, |whole| whole.header.gso_type = VnetHeader::GSO_TCPV6);
    refuse(&tcp6, SplitError::ChecksumField, |whole| whole.header.csum_start += 2);
    refuse(&udp6, SplitError::ChecksumField, |whole| whole.header.csum_offset = 16);
}

#[test]
fn frames_whose_lengths_do_not_fit_are_refused() {
    for shape in [Shape::tcp(Network::V4), Shape::tcp(Network::V6), Shape::udp(Network::V4)] {
        refuse(&shape, SplitError::Length, |whole| whole.frame.push(0));
        refuse(&shape, SplitError::Length, |whole| whole.frame.truncate(whole.frame.len() - 1));
        for len in 0..shape.build().payload {
            let whole = shape.build();
            assert!(split_all(&whole.header, &whole.frame[..len]).is_err(), "{len} bytes");
        }
        let empty = Shape { payload: 0, ..shape };
        refuse(&empty, SplitError::Length, |_| ());
    }
    let tcp4 = Shape::default();
    refuse(&tcp4, SplitError::Length, |whole| whole.frame[whole.transport + 12] = 0x40);
    refuse(&tcp4, SplitError::Length, |whole| whole.frame[whole.network] = 0x44);
    refuse(&tcp4, SplitError::WrongProtocol, |whole| whole.frame[whole.network] = 0x65);
    refuse(&tcp4, SplitError::WrongProtocol, |whole| whole.frame[whole.network + 6] = 0x20);
    refuse(&tcp4, SplitError::WrongProtocol, |whole| whole.frame[whole.network + 9] = 17);
    refuse(&tcp4, SplitError::WrongProtocol, |whole| whole.frame[13] = 6);
    refuse(&Shape::tcp(Network::V6), SplitError::WrongProtocol, |whole| whole.frame[whole.network + 6] = 44);
    refuse(&Shape { payload: 8, ..tcp4 }, SplitError::Length, |whole| whole.frame[whole.transport + 12] = 0xF0);
}

#[test]
fn a_chain_of_extension_headers_ends_with_the_frame() {
    let endless = Shape { ip_extra: [60, 0, 1, 4, 0, 0, 0, 0].repeat(1000), payload: 8, ..Shape::tcp(Network::V6) };
    refuse(&endless, SplitError::Length, |_| ());
    refuse(&Shape { ip_extra: [60, 255, 1, 4, 0, 0, 0, 0].to_vec(), ..endless }, SplitError::Length, |_| ());
}

#[test]
fn garbage_never_panics_and_its_output_is_bounded() {
    let mut random = Splitmix(7);
    let good: Vec<Super> = [Network::V4, Network::V6]
        .into_iter()
        .flat_map(|version| [Shape::tcp(version), Shape::udp(version)])
        .flat_map(|shape| [shape.clone(), Shape { vlan: true, ..shape }])
        .map(|shape| Shape { payload: 300, size: 100, ..shape }.build())
        .collect();
    let mut scratch = vec![];
    let mut accepted = 0;
    for _ in 0..100_000 {
        let Super { header, mut frame, payload, .. } = good[random.below(good.len())].clone();
        let mut header_bytes = header.to_bytes();
        match random.below(4) {
            0 => frame = random.bytes(payload + 40),
            1 => header_bytes[random.below(10)] = random.bytes(1)[0],
            _ => (),
        }
        for _ in 0..random.below(4) {
            frame[random.below(payload)] = random.bytes(1)[0];
        }
        if random.below(4) == 0 {
            frame.truncate(random.below(frame.len()));
        }
        let (mut count, mut bytes) = (0, 0);
        let length = frame.len();
        let outcome = split(&VnetHeader::parse(&header_bytes).unwrap(), &mut frame, &mut scratch, |segment| {
            count += 1;
            bytes += segment.len();
        });
        assert_eq!(outcome.is_ok(), count > 0);
        assert!(count <= MAX_SEGMENTS && bytes <= length * count.max(1));
        accepted += usize::from(outcome.is_ok());
    }
    assert!(accepted > 10_000, "only {accepted} of the cases were not refused");
}
