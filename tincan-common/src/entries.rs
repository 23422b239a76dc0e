//! What user space writes into the kernel programs' maps, as arrays of bytes: neither side depends on the other's layout.
//!
//! IPv4 addresses outside of a frame stand as IPv4-mapped IPv6 ones (RFC 4291 section 2.5.5.2). Numbers that are also in
//! packets are kept as packets have them, in network byte order; the others are the machine's own.

/// Version of the maps' names, keys and values: raised with every change, because a daemon goes on with the maps another
/// one left only when they have the same.
pub const LAYOUT: u32 = 1;

/// An outer or inner IPv6 address, or an IPv4-mapped one.
pub type Address = [u8; 16];

/// Inner destination to [`Sender`]: IPv4 addresses, cut to [`Settings::router_mask`].
pub const ROUTES4: &str = "routes4";
/// Inner destination to [`Sender`]: IPv6 addresses.
pub const ROUTES6: &str = "routes6";
/// [`Flow`] to [`Receiver`].
pub const FLOWS: &str = "flows";
/// One [`Settings`].
pub const SETTINGS: &str = "settings";
/// [`RawTraffic`] for each slot.
pub const TRAFFIC: &str = "traffic";
/// One number for each `KernelVerdict`.
pub const VERDICTS: &str = "verdicts";
/// One number: until when the entries hold, nanoseconds of `CLOCK_MONOTONIC`. A map of its own, so that the daemon renews it
/// without touching the settings, and programs read it in one load.
pub const LEASE: &str = "lease";
/// The host's own addresses on the underlay, a set: only what is to or from them is looked at by port.
pub const OWN_ADDRESSES: &str = "own_addresses";

/// Most inner destinations of each family.
pub const MAX_ROUTES: u32 = 1 << 17;
/// Most outer flows.
pub const MAX_FLOWS: u32 = 1 << 14;
/// Most links with counters.
pub const MAX_SLOTS: u32 = 1 << 12;
/// Most own addresses on the underlay.
pub const MAX_OWN_ADDRESSES: u32 = 256;

/// Per CPU: frames and bytes sent, frames and bytes received. A super-frame counts as the frames it is cut into, and its
/// headers once.
pub type RawTraffic = [u64; 4];

/// What every frame needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Interface index of the TAP; 0 while there is nothing to do.
    pub tap_index: u32,
    pub tap_mac: [u8; 6],
    /// The plain UDP port as peers know it, network order.
    pub plain_port: [u8; 2],
    /// The port user space's socket has, network order; another than `plain_port` where a VXLAN device holds that one so
    /// that the kernel merges what arrives there.
    pub socket_port: [u8; 2],
    /// Mark of packets that were checked and go through a helper device; 0 without one.
    pub mark: u32,
    /// Which bits of an inner IPv4 address choose the peer.
    pub router_mask: [u8; 4],
    /// Own inner addresses, which no peer may send from.
    pub own_ip4: [u8; 4],
    pub own_ip6: Address,
}

/// How to send to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sender {
    /// Interface index of the uplink.
    pub uplink: u32,
    /// Where the link's traffic is counted.
    pub slot: u32,
    /// Longest inner Ethernet frame that fits the path, bytes.
    pub max_frame: u32,
    /// The 24-bit tag the peer wants.
    pub tag: u32,
    /// Outer addresses; both of one family.
    pub source: Address,
    pub destination: Address,
    /// Outer UDP ports, network order.
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
}

/// Where a peer's datagrams come from and go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    pub remote: Address,
    pub local: Address,
    /// Network order.
    pub remote_port: [u8; 2],
    pub local_port: [u8; 2],
}

/// Whose datagrams these are, and what may be in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receiver {
    /// Where the link's traffic is counted.
    pub slot: u32,
    /// The 24-bit tag we asked for.
    pub tag: u32,
    /// Interface index of the veth whose far end merges TCP frames; 0 where the uplink did that, or nobody does.
    pub merger: u32,
    /// The peer's inner addresses, the IPv4 one cut to the router mask.
    pub ip4: [u8; 4],
    pub ip6: Address,
}

/// Takes the next `N` bytes of an array whose length is known while compiling.
macro_rules! take {
    ($bytes:ident, $from:literal, $length:literal) => {{
        let mut part = [0; $length];
        part.copy_from_slice(&$bytes[$from..$from + $length]);
        part
    }};
}

/// Puts arrays behind one another.
macro_rules! join {
    ($length:literal; $($part:expr),+) => {{
        let mut bytes = [0; $length];
        let mut _at = 0;
        $(
            let part = $part;
            bytes[_at.._at + part.len()].copy_from_slice(&part);
            _at += part.len();
        )+
        bytes
    }};
}

impl Settings {
    /// Bytes in the map.
    pub const SIZE: usize = 42;

    /// As the map has it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let Self { tap_index, tap_mac, plain_port, socket_port, mark, router_mask, own_ip4, own_ip6 } = *self;
        let (tap_index, mark) = (tap_index.to_ne_bytes(), mark.to_ne_bytes());
        join!(42; tap_index, tap_mac, plain_port, router_mask, own_ip4, own_ip6, socket_port, mark)
    }

    /// From the map, for user space.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let map = SettingsInMap(bytes);
        Self {
            tap_index: map.tap_index(),
            tap_mac: map.tap_mac(),
            plain_port: map.plain_port(),
            socket_port: map.socket_port(),
            mark: map.mark(),
            router_mask: map.router_mask(),
            own_ip4: map.own_ip4(),
            own_ip6: map.own_ip6(),
        }
    }
}

/// [`Settings`] where they stand in the map, each read when it is needed: a program's stack has 512 bytes.
#[derive(Clone, Copy, Debug)]
pub struct SettingsInMap<'map>(pub &'map [u8; Settings::SIZE]);

/// Reads one field.
macro_rules! field {
    ($name:ident: $kind:ty = $from:literal, $length:literal, $read:expr) => {
        #[doc = concat!("See [`Settings::", stringify!($name), "`].")]
        #[must_use]
        #[inline(always)]
        pub fn $name(self) -> $kind {
            let bytes = self.0;
            $read(take!(bytes, $from, $length))
        }
    };
}

impl SettingsInMap<'_> {
    field!(tap_index: u32 = 0, 4, u32::from_ne_bytes);
    field!(tap_mac: [u8; 6] = 4, 6, core::convert::identity);
    field!(plain_port: [u8; 2] = 10, 2, core::convert::identity);
    field!(router_mask: [u8; 4] = 12, 4, core::convert::identity);
    field!(own_ip4: [u8; 4] = 16, 4, core::convert::identity);
    field!(own_ip6: Address = 20, 16, core::convert::identity);
    field!(socket_port: [u8; 2] = 36, 2, core::convert::identity);
    field!(mark: u32 = 38, 4, u32::from_ne_bytes);
}

impl Sender {
    /// Bytes in the map.
    pub const SIZE: usize = 52;

    /// As the map has it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let Self { uplink, slot, max_frame, tag, source, destination, source_port, destination_port } = *self;
        let numbers = [uplink, slot, max_frame, tag].map(u32::to_ne_bytes);
        join!(52; numbers[0], numbers[1], numbers[2], numbers[3], source, destination, source_port, destination_port)
    }

    /// From the map.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the verifier must see a map's value and its use in one function")]
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            uplink: u32::from_ne_bytes(take!(bytes, 0, 4)),
            slot: u32::from_ne_bytes(take!(bytes, 4, 4)),
            max_frame: u32::from_ne_bytes(take!(bytes, 8, 4)),
            tag: u32::from_ne_bytes(take!(bytes, 12, 4)),
            source: take!(bytes, 16, 16),
            destination: take!(bytes, 32, 16),
            source_port: take!(bytes, 48, 2),
            destination_port: take!(bytes, 50, 2),
        }
    }

    /// The outer IPv4 addresses, source first; `None` on an IPv6 path.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the verifier must see a map's value and its use in one function")]
    pub fn ipv4(&self) -> Option<([u8; 4], [u8; 4])> {
        let (source, destination) = (&self.source, &self.destination);
        is_mapped(source).then(|| (take!(source, 12, 4), take!(destination, 12, 4)))
    }
}

impl Flow {
    /// Bytes in the map.
    pub const SIZE: usize = 36;

    /// As the map has it.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the verifier must see a map's key and its use in one function")]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let Self { remote, local, remote_port, local_port } = *self;
        join!(36; remote, local, remote_port, local_port)
    }

    /// From the map.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            remote: take!(bytes, 0, 16),
            local: take!(bytes, 16, 16),
            remote_port: take!(bytes, 32, 2),
            local_port: take!(bytes, 34, 2),
        }
    }
}

impl Receiver {
    /// Bytes in the map.
    pub const SIZE: usize = 32;

    /// As the map has it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let Self { slot, tag, merger, ip4, ip6 } = *self;
        join!(32; slot.to_ne_bytes(), tag.to_ne_bytes(), ip4, ip6, merger.to_ne_bytes())
    }

    /// From the map.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the verifier must see a map's value and its use in one function")]
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            slot: u32::from_ne_bytes(take!(bytes, 0, 4)),
            tag: u32::from_ne_bytes(take!(bytes, 4, 4)),
            ip4: take!(bytes, 8, 4),
            ip6: take!(bytes, 12, 16),
            merger: u32::from_ne_bytes(take!(bytes, 28, 4)),
        }
    }
}

/// An IPv4 address as an IPv6 one.
#[must_use]
#[inline(always)]
#[expect(clippy::inline_always, reason = "the verifier must see a map's key and its use in one function")]
pub const fn mapped(ip4: [u8; 4]) -> Address {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ip4[0], ip4[1], ip4[2], ip4[3]]
}

/// Whether an address stands for an IPv4 one.
#[must_use]
#[inline(always)]
#[expect(clippy::inline_always, reason = "the verifier must see a map's value and its use in one function")]
pub const fn is_mapped(address: &Address) -> bool {
    matches!(address, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Address = [1; 16];
    const TWO: Address = [2; 16];

    #[test]
    fn entries_read_back() {
        let settings = Settings {
            tap_index: 0x0102_0304,
            tap_mac: [5; 6],
            plain_port: [6, 7],
            socket_port: [9, 10],
            mark: 11,
            router_mask: [255, 255, 255, 0],
            own_ip4: [8; 4],
            own_ip6: ONE,
        };
        assert_eq!(Settings::from_bytes(&settings.to_bytes()), settings);
        let sender = Sender {
            uplink: 1,
            slot: 2,
            max_frame: 3,
            tag: 4,
            source: ONE,
            destination: TWO,
            source_port: [5, 6],
            destination_port: [7, 8],
        };
        assert_eq!(Sender::from_bytes(&sender.to_bytes()), sender);
        let receiver = Receiver { slot: 1, tag: 2, merger: 3, ip4: [3; 4], ip6: TWO };
        assert_eq!(Receiver::from_bytes(&receiver.to_bytes()), receiver);
        let flow = Flow { remote: ONE, local: TWO, remote_port: [3, 4], local_port: [5, 6] };
        assert_eq!(Flow::from_bytes(&flow.to_bytes()), flow);
    }

    #[test]
    fn different_flows_have_different_keys() {
        let flow = Flow { remote: ONE, local: TWO, remote_port: [1, 2], local_port: [3, 4] };
        let others = [
            Flow { remote: TWO, ..flow },
            Flow { local: ONE, ..flow },
            Flow { remote_port: [2, 1], ..flow },
            Flow { local_port: [4, 3], ..flow },
        ];
        for other in others {
            assert_ne!(other.to_bytes(), flow.to_bytes());
        }
    }

    #[test]
    fn only_mapped_addresses_are_ipv4() {
        let both = Sender { source: mapped([1, 2, 3, 4]), destination: mapped([5, 6, 7, 8]), ..Sender::default() };
        assert_eq!(both.ipv4(), Some(([1, 2, 3, 4], [5, 6, 7, 8])));
        assert_eq!(Sender { source: ONE, destination: TWO, ..both }.ipv4(), None);
        assert!(!is_mapped(&[0; 16]));
    }
}
