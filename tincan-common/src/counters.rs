//! What the kernel programs count: frames and bytes for each kind of inner frame.

/// The kind of an inner Ethernet frame; its number is the slot of the per-CPU map `frame_tallies`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FrameKind {
    /// Ethertype 0x0800.
    Ipv4 = 0,
    /// Ethertype 0x86DD.
    Ipv6 = 1,
    /// Ethertype 0x0806.
    Arp = 2,
    /// Any other ethertype, VLAN tags among them, and frames too short to have one.
    Other = 3,
}

impl FrameKind {
    /// Every kind, in slot order.
    pub const ALL: [Self; 4] = [Self::Ipv4, Self::Ipv6, Self::Arp, Self::Other];

    /// The number of slots in the map.
    pub const COUNT: u32 = 4;

    /// The kind of a frame with this ethertype (host byte order).
    #[must_use]
    pub const fn of(ethertype: u16) -> Self {
        match ethertype {
            0x0800 => Self::Ipv4,
            0x86DD => Self::Ipv6,
            0x0806 => Self::Arp,
            _ => Self::Other,
        }
    }

    /// The slot of this kind in the map.
    #[must_use]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Arp => "arp",
            Self::Other => "other",
        }
    }
}

/// One slot of the map on one CPU: frames, then bytes, both in host byte order.
pub type RawTally = [u64; 2];

/// Frames and bytes, summed over the CPUs. A GSO super-frame counts as one frame with all its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames seen.
    pub frames: u64,
    /// Bytes of these frames, from the Ethernet header on.
    pub bytes: u64,
}

impl Tally {
    /// The sum of what each CPU counted; wraps at 2^64.
    #[must_use]
    pub fn sum<'a>(per_cpu: impl IntoIterator<Item = &'a RawTally>) -> Self {
        per_cpu.into_iter().fold(Self::default(), |sum, &[frames, bytes]| Self {
            frames: sum.frames.wrapping_add(frames),
            bytes: sum.bytes.wrapping_add(bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_the_slot_it_stands_at() {
        for (slot, kind) in (0..FrameKind::COUNT).zip(FrameKind::ALL) {
            assert_eq!(kind.index(), slot);
        }
        assert_eq!(FrameKind::ALL.len(), FrameKind::COUNT as usize);
    }

    #[test]
    fn a_tally_is_the_sum_over_the_cpus() {
        assert_eq!(Tally::sum(&[[1, 60], [0, 0], [2, 3000]]), Tally { frames: 3, bytes: 3060 });
    }
}
