//! Why a frame or datagram ended where it did: one list for both engines, the counters and the documents.

/// What became of a frame from the TAP, or of a datagram from the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Verdict {
    /// Sent to a peer; a frame to several peers counts once for each.
    Sent = 0,
    /// Given to the TAP.
    Delivered,
    /// An ARP request of this host, answered here.
    ArpAnswered,
    /// A frame of the controller (type 0x02), given to the TAP.
    Injected,
    /// A frame nobody is known for, handed to the controller.
    Unrouted,
    /// The same, beyond the rate the controller is given.
    UnroutedLimited,
    /// Waits for its link to come up.
    Queued,
    /// Pushed out of a full queue by younger frames.
    QueueOverflow,
    /// Its link is there, but the peer does not answer.
    LinkDown,
    /// A frame of the TAP that is damaged: too short, or lengths that contradict each other.
    MalformedFrame,
    /// Neither IPv4, IPv6 nor ARP.
    UnsupportedFrame,
    /// ARP for an address outside of the overlay's subnet.
    ArpIgnored,
    /// A multicast group that stays on its own link (RFC 5771, RFC 4291), or a group with nobody to send to.
    NotFlooded,
    /// The host has not told its own address yet (`set_local_ip`).
    NoIdentity,
    /// The socket refused the datagram.
    SendFailed,
    /// The DTLS session refused to seal.
    SealFailed,
    /// Longer than the path takes, and not to be fragmented; its sender is told, as often as the rate allows.
    TooBig,
    /// STUN or TURN, handed to ICE.
    Control,
    /// The same, while ICE was too busy to take it.
    ControlOverflow,
    /// DTLS or a frame from an address that ICE has not validated; kept for a moment.
    EarlyKept,
    /// The same, beyond the room there is or too old.
    UnknownFlow,
    /// The first byte belongs to no protocol that is spoken on this port.
    UnknownProtocol,
    /// A record or datagram with a damaged frame header or less than an Ethernet header behind it.
    MalformedDatagram,
    /// A plain frame without this link's tag.
    WrongTag,
    /// The inner source address does not belong to the peer that sent it.
    WrongSource,
    /// A record that could not be opened: forged, replayed, damaged, out of its time.
    NotAuthentic,
    /// The TAP refused the frame, or a super-frame of several.
    Undeliverable,
    /// A datagram of the network under the overlay that came through the overlay itself.
    Looped,
}

impl Verdict {
    /// Every verdict, in order of its number.
    pub const ALL: [Self; 28] = [
        Self::Sent,
        Self::Delivered,
        Self::ArpAnswered,
        Self::Injected,
        Self::Unrouted,
        Self::UnroutedLimited,
        Self::Queued,
        Self::QueueOverflow,
        Self::LinkDown,
        Self::MalformedFrame,
        Self::UnsupportedFrame,
        Self::ArpIgnored,
        Self::NotFlooded,
        Self::NoIdentity,
        Self::SendFailed,
        Self::SealFailed,
        Self::TooBig,
        Self::Control,
        Self::ControlOverflow,
        Self::EarlyKept,
        Self::UnknownFlow,
        Self::UnknownProtocol,
        Self::MalformedDatagram,
        Self::WrongTag,
        Self::WrongSource,
        Self::NotAuthentic,
        Self::Undeliverable,
        Self::Looped,
    ];

    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The slot of this verdict in a table of counters.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Delivered => "delivered",
            Self::ArpAnswered => "arp_answered",
            Self::Injected => "injected",
            Self::Unrouted => "unrouted",
            Self::UnroutedLimited => "unrouted_limited",
            Self::Queued => "queued",
            Self::QueueOverflow => "queue_overflow",
            Self::LinkDown => "link_down",
            Self::MalformedFrame => "malformed_frame",
            Self::UnsupportedFrame => "unsupported_frame",
            Self::ArpIgnored => "arp_ignored",
            Self::NotFlooded => "not_flooded",
            Self::NoIdentity => "no_identity",
            Self::SendFailed => "send_failed",
            Self::SealFailed => "seal_failed",
            Self::TooBig => "too_big",
            Self::Control => "control",
            Self::ControlOverflow => "control_overflow",
            Self::EarlyKept => "early_kept",
            Self::UnknownFlow => "unknown_flow",
            Self::UnknownProtocol => "unknown_protocol",
            Self::MalformedDatagram => "malformed_datagram",
            Self::WrongTag => "wrong_tag",
            Self::WrongSource => "wrong_source",
            Self::NotAuthentic => "not_authentic",
            Self::Undeliverable => "undeliverable",
            Self::Looped => "looped",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verdict_has_the_slot_it_stands_at() {
        for (slot, verdict) in Verdict::ALL.into_iter().enumerate() {
            assert_eq!(verdict.index(), slot, "{verdict:?}");
        }
    }
}
