//! What a plain link's packets look like on the underlay: read as a stranger with a copy of RFC 7348 would.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};

use crate::frames::ETHERNET_HEADER;
use crate::ping::{checksum, upper_checksum};

const UDP_HEADER: usize = 8;
const VXLAN_HEADER: usize = 8;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// An IP packet without options or extensions.
struct Packet<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload: &'a [u8],
}

/// Checks a captured Ethernet frame that carries another one; false for a frame that carries none.
pub fn check_tunnelled(frame: &[u8]) -> Result<bool> {
    let Some(outer) = packet(frame)? else { return Ok(false) };
    if outer.protocol != UDP || outer.payload.get(UDP_HEADER) != Some(&8) {
        return Ok(false);
    }
    let (udp, payload) = outer.payload.split_at(UDP_HEADER);
    ensure!(usize::from(u16::from_be_bytes([udp[4], udp[5]])) == outer.payload.len(), "the outer UDP length is wrong");
    let is_summed = udp[6..] != [0, 0];
    let sum = upper_checksum(outer.source, outer.destination, UDP, outer.payload);
    ensure!(!is_summed || sum == 0, "the outer UDP checksum is wrong");
    let (header, inner) = payload.split_at_checked(VXLAN_HEADER).context("a short VXLAN header")?;
    ensure!(header[..4] == [8, 0, 0, 0] && header[7] == 0, "reserved bits are set in {header:02x?}");
    check_inner(inner).with_context(|| format!("inside {frame:02x?}"))?;
    Ok(true)
}

fn check_inner(frame: &[u8]) -> Result<()> {
    let Some(Packet { source, destination, protocol, payload }) = packet(frame)? else { return Ok(()) };
    let sum = match protocol {
        ICMP => checksum(payload),
        TCP | UDP | ICMPV6 => upper_checksum(source, destination, protocol, payload),
        _ => 0,
    };
    ensure!(sum == 0, "the inner checksum of protocol {protocol} is wrong");
    Ok(())
}

/// The IP packet of an Ethernet frame, its header's checksum and lengths checked; `None` for another ethertype, fragments and
/// IPv4 options.
fn packet(frame: &[u8]) -> Result<Option<Packet<'_>>> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET_HEADER).context("a short frame")?;
    match ethernet[12..] {
        [0x08, 0x00] if packet.first() == Some(&0x45) => {
            let (header, payload) = packet.split_at_checked(20).context("a short IPv4 header")?;
            ensure!(checksum(header) == 0, "the checksum of an IPv4 header is wrong: {header:02x?}");
            ensure!(
                usize::from(u16::from_be_bytes([header[2], header[3]])) == packet.len(),
                "the IPv4 length is wrong"
            );
            let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into();
            let is_fragment = header[6] & 0xbf != 0 || header[7] != 0;
            let packet = Packet { source: address(12), destination: address(16), protocol: header[9], payload };
            Ok((!is_fragment).then_some(packet))
        }
        [0x86, 0xdd] => {
            let (header, payload) = packet.split_at_checked(40).context("a short IPv6 header")?;
            let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
            ensure!(header[0] >> 4 == 6 && length == payload.len(), "the IPv6 header is wrong: {header:02x?}");
            let address = |at: usize| -> Result<IpAddr> {
                Ok(Ipv6Addr::from(<[u8; 16]>::try_from(&header[at..at + 16])?).into())
            };
            Ok(Some(Packet { source: address(8)?, destination: address(24)?, protocol: header[6], payload }))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::udp;

    fn tunnelled(inner: &[u8]) -> Vec<u8> {
        let payload = [&[8, 0, 0, 0, 1, 2, 3, 0], inner].concat();
        udp(Ipv4Addr::new(192, 0, 2, 1).into(), Ipv4Addr::new(192, 0, 2, 2).into(), &payload)
    }

    fn inner() -> Vec<u8> {
        udp(Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into(), b"payload")
    }

    #[test]
    fn only_what_is_right_passes() {
        assert!(check_tunnelled(&tunnelled(&inner())).unwrap());
        assert!(!check_tunnelled(&inner()).unwrap(), "nothing is inside");
        let mut damaged = inner();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(check_tunnelled(&tunnelled(&damaged)).is_err());
        let mut wrong_sum = tunnelled(&inner());
        wrong_sum[24] ^= 1;
        assert!(check_tunnelled(&wrong_sum).is_err());
    }
}
