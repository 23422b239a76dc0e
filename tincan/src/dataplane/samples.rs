//! Frames for the tests of segmentation and coalescing, built from the RFCs and checked with the plainest arithmetic.

/// What a sample frame is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) v6: bool,
    pub(super) tcp: bool,
    pub(super) id: u16,
    pub(super) sequence: u32,
    pub(super) flags: u8,
    pub(super) source_port: u16,
}

impl Sample {
    pub(super) fn tcp(v6: bool) -> Self {
        Self { v6, tcp: true, id: 0xfffe, sequence: 0xffff_f000, flags: 0x10, source_port: 40_000 }
    }

    pub(super) fn udp(v6: bool) -> Self {
        Self { tcp: false, ..Self::tcp(v6) }
    }

    /// Headers and payload with right lengths and checksums.
    pub(super) fn frame(&self, payload: &[u8]) -> Vec<u8> {
        let mut transport = Vec::new();
        transport.extend_from_slice(&self.source_port.to_be_bytes());
        transport.extend_from_slice(&5201_u16.to_be_bytes());
        if self.tcp {
            transport.extend_from_slice(&self.sequence.to_be_bytes());
            transport.extend_from_slice(&77_u32.to_be_bytes());
            transport.extend_from_slice(&[0x80, self.flags, 2, 0, 0, 0, 0, 0]);
            transport.extend_from_slice(&[1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8]);
        } else {
            transport.extend_from_slice(&u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
            transport.extend_from_slice(&[0, 0]);
        }
        transport.extend_from_slice(payload);
        let (addresses, protocol) = (self.addresses(), if self.tcp { 6 } else { 17 });
        let mut pseudo = addresses.clone();
        pseudo.extend_from_slice(&u32::try_from(transport.len()).unwrap().to_be_bytes());
        pseudo.extend_from_slice(&[0, 0, 0, protocol]);
        let mut covered = pseudo;
        covered.extend_from_slice(&transport);
        let at = if self.tcp { 16 } else { 6 };
        let mut checksum = !ones_sum(&covered);
        if checksum == 0 {
            checksum = 0xffff;
        }
        transport[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        frame.extend_from_slice(&self.network_header(transport.len(), protocol));
        frame.extend_from_slice(&transport);
        frame
    }

    fn addresses(&self) -> Vec<u8> {
        if self.v6 { [[0xfd, 1].repeat(8), [0xfd, 2].repeat(8)].concat() } else { vec![10, 0, 0, 1, 10, 0, 0, 2] }
    }

    fn network_header(&self, transport_len: usize, protocol: u8) -> Vec<u8> {
        if self.v6 {
            let mut header = vec![0x86, 0xdd, 0x60, 0, 0, 0];
            header.extend_from_slice(&u16::try_from(transport_len).unwrap().to_be_bytes());
            header.extend_from_slice(&[protocol, 64]);
            header.extend_from_slice(&self.addresses());
            return header;
        }
        let mut header = vec![0x45, 0];
        header.extend_from_slice(&u16::try_from(20 + transport_len).unwrap().to_be_bytes());
        header.extend_from_slice(&self.id.to_be_bytes());
        header.extend_from_slice(&[0x40, 0, 64, protocol, 0, 0]);
        header.extend_from_slice(&self.addresses());
        let checksum = !ones_sum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        [vec![0x08, 0x00], header].concat()
    }

    /// Bytes before the payload.
    pub(super) fn header_len(&self) -> usize {
        14 + if self.v6 { 40 } else { 20 } + if self.tcp { 32 } else { 8 }
    }
}

/// The definition of RFC 1071, byte by byte.
pub(super) fn ones_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for (at, byte) in bytes.iter().enumerate() {
        sum += u32::from(*byte) << if at % 2 == 0 { 8 } else { 0 };
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// Bytes that repeat after 251, so that a shifted payload differs.
pub(super) fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect()
}

/// The four kinds that are split and merged.
pub(super) fn kinds() -> [Sample; 4] {
    [Sample::tcp(false), Sample::tcp(true), Sample::udp(false), Sample::udp(true)]
}

/// Splitmix64, for frames nobody thought of.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }
}
