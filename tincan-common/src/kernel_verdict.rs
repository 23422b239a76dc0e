//! What became of a frame in the kernel programs. What they do not carry goes up, and user space judges it.

/// One for every way through a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum KernelVerdict {
    /// From the TAP to a peer.
    Sent = 0,
    /// From a peer to the TAP.
    Delivered,
    /// From the TAP: nothing the programs know a peer for (ARP, groups, secured links, strangers, damaged frames).
    UpUnrouted,
    /// From the TAP: longer than the path takes.
    UpTooLong,
    /// From the TAP: a super-frame other than TCP, a VLAN tag, or a tunnel's frame.
    UpOffload,
    /// From the uplink: not a frame header, so STUN or something unknown.
    UpControl,
    /// From the uplink: outer addresses and ports of no link.
    UpUnknownFlow,
    /// From the uplink: lengths that do not fit (datagrams merged on the way), IP options, super-frames other than TCP.
    UpShape,
    /// From the uplink: another tag than the link's.
    UpTag,
    /// From the uplink: an inner source that is not the peer's, a group, or no IP.
    UpSource,
    /// From a peer, checked: the VXLAN device decapsulates it (super-frames other than TCP), or the merging veth sees it
    /// first (single TCP frames); then it is `Delivered`.
    HandedOver,
    /// From the VXLAN device or the merging veth without having been checked before; the frame is lost.
    Refused,
    /// The kernel refused a step when there was no way back; the frame is lost.
    Broken,
}

impl KernelVerdict {
    /// Every verdict, in order of its number.
    pub const ALL: [Self; 13] = [
        Self::Sent,
        Self::Delivered,
        Self::UpUnrouted,
        Self::UpTooLong,
        Self::UpOffload,
        Self::UpControl,
        Self::UpUnknownFlow,
        Self::UpShape,
        Self::UpTag,
        Self::UpSource,
        Self::HandedOver,
        Self::Refused,
        Self::Broken,
    ];

    /// Slots of the map.
    pub const COUNT: u32 = 13;

    /// The slot of this verdict.
    #[must_use]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sent => "kernel_sent",
            Self::Delivered => "kernel_delivered",
            Self::UpUnrouted => "kernel_up_unrouted",
            Self::UpTooLong => "kernel_up_too_long",
            Self::UpOffload => "kernel_up_offload",
            Self::UpControl => "kernel_up_control",
            Self::UpUnknownFlow => "kernel_up_unknown_flow",
            Self::UpShape => "kernel_up_shape",
            Self::UpTag => "kernel_up_tag",
            Self::UpSource => "kernel_up_source",
            Self::HandedOver => "kernel_handed_over",
            Self::Refused => "kernel_refused",
            Self::Broken => "kernel_broken",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verdict_has_the_slot_it_stands_at() {
        for (slot, verdict) in (0..KernelVerdict::COUNT).zip(KernelVerdict::ALL) {
            assert_eq!(verdict.index(), slot, "{verdict:?}");
        }
        assert_eq!(KernelVerdict::ALL.len(), KernelVerdict::COUNT as usize);
    }
}
