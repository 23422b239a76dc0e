//! Ethernet frames made by hand, sent into one TAP and awaited out of another.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::packet::{Direction, PacketSocket};
use crate::ping::{checksum, upper_checksum};

/// Two MAC addresses.
pub const ETHERNET_ADDRESSES: usize = 12;
/// Addresses and `EtherType`.
pub const ETHERNET_HEADER: usize = 14;
/// The smallest frame an application hands out without the frame check sequence.
pub const MIN_FRAME: usize = 60;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const UDP: u8 = 17;
/// The next-header value of the IPv6 fragment header.
const FRAGMENT: u8 = 44;
/// Locally administered addresses that belong to nobody.
const SOURCE_MAC: [u8; 6] = [2, 0, 0, 0, 0xbe, 0xef];
const DESTINATION_MAC: [u8; 6] = [2, 0, 0, 0, 0xca, 0xfe];

/// A UDP datagram in one frame; `source` and `destination` are of one family.
pub fn udp(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    let message = udp_message(source, destination, payload);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4(source, destination, 0x4000, &message),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6(source, destination, UDP, &message),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("one datagram has one family"),
    }
}

/// The same datagram as two fragments; `split` is a multiple of 8.
pub fn udp_fragments(source: IpAddr, destination: IpAddr, payload: &[u8], split: u16) -> [Vec<u8>; 2] {
    const MORE: u16 = 0x2000;
    let message = udp_message(source, destination, payload);
    let (first, second) = message.split_at(split.into());
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            [ipv4(source, destination, MORE, first), ipv4(source, destination, split / 8, second)]
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let fragment = |offset_and_flag: u16, piece: &[u8]| {
                let [high, low] = offset_and_flag.to_be_bytes();
                let header = [UDP, 0, high, low, 0x12, 0x34, 0x56, 0x78];
                ipv6(source, destination, FRAGMENT, &[&header, piece].concat())
            };
            [fragment(1, first), fragment(split, second)]
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("one datagram has one family"),
    }
}

/// What an ARP frame does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arp {
    Request,
    Reply,
}

/// An ARP frame from `sender` about `target`, padded to [`MIN_FRAME`].
pub fn arp(what: Arp, destination_mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let operation = match what {
        Arp::Request => 1,
        Arp::Reply => 2,
    };
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    body.extend(SOURCE_MAC);
    body.extend(sender.octets());
    body.extend(destination_mac);
    body.extend(target.octets());
    let mut frame = ethernet(destination_mac, ETHERTYPE_ARP, &body);
    frame.resize(MIN_FRAME, 0);
    frame
}

/// The MAC address unicast frames here are sent to; the receiving daemon writes its TAP's own over it.
pub fn somebody() -> [u8; 6] {
    DESTINATION_MAC
}

/// Sends `frame` into one TAP and waits until it comes out of the other, the same from the `EtherType` on.
pub fn cross(from: &PacketSocket, to: &mut PacketSocket, frame: &[u8], deadline: Duration) -> Result<Vec<u8>> {
    from.send(frame)?;
    expect(to, frame, deadline)
}

/// Waits for `frame`, the same from the `EtherType` on; returns it with the addresses it came with.
pub fn expect(to: &mut PacketSocket, frame: &[u8], deadline: Duration) -> Result<Vec<u8>> {
    let wanted = &frame[ETHERNET_ADDRESSES..];
    let end = Instant::now() + deadline;
    let mut others = 0;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!(
                "a frame of {} bytes, EtherType {:02x?}, did not arrive; {others} others did",
                frame.len(),
                &wanted[..2]
            );
        }
        match to.receive(left)? {
            Some((Direction::In, arrived)) if arrived.get(ETHERNET_ADDRESSES..) == Some(wanted) => {
                return Ok(arrived.to_vec());
            }
            Some((Direction::In, _)) => others += 1,
            Some((Direction::Out, _)) | None => {}
        }
    }
}

/// Sends `frame`, then `marker`, and makes sure that `marker` arrives and `frame` does not.
pub fn never_crosses(
    from: &PacketSocket,
    to: &mut PacketSocket,
    frame: &[u8],
    marker: &[u8],
    deadline: Duration,
) -> Result<()> {
    from.send(frame)?;
    from.send(marker)?;
    let end = Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "the frame sent after the forbidden one did not arrive");
        let Some((Direction::In, arrived)) = to.receive(left)? else { continue };
        let rest = arrived.get(ETHERNET_ADDRESSES..);
        ensure!(rest != Some(&frame[ETHERNET_ADDRESSES..]), "a frame crossed that must not");
        if rest == Some(&marker[ETHERNET_ADDRESSES..]) {
            return Ok(());
        }
    }
}

fn udp_message(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("a datagram fits 64 KiB");
    let mut message = [0x9c, 0x40, 0x9c, 0x41].to_vec();
    message.extend(length.to_be_bytes());
    message.extend([0, 0]);
    message.extend(payload);
    let sum = upper_checksum(source, destination, UDP, &message);
    message[6..8].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
    message
}

fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, flags_and_offset: u16, message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + message.len()).expect("a packet fits 64 KiB").to_be_bytes();
    let [flags, offset] = flags_and_offset.to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0x31, 0x41, flags, offset, 64, UDP, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(message);
    ethernet(ipv4_mac(destination), ETHERTYPE_IPV4, &packet)
}

fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next_header: u8, message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("a packet fits 64 KiB").to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], next_header, 64];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(message);
    ethernet(ipv6_mac(destination), ETHERTYPE_IPV6, &packet)
}

fn ethernet(destination_mac: [u8; 6], ethertype: u16, body: &[u8]) -> Vec<u8> {
    [&destination_mac, &SOURCE_MAC, ethertype.to_be_bytes().as_slice(), body].concat()
}

/// RFC 1112 section 6.4 for groups; broadcast; [`somebody`] for hosts.
fn ipv4_mac(destination: Ipv4Addr) -> [u8; 6] {
    let [_, b, c, d] = destination.octets();
    if destination.is_multicast() {
        [1, 0, 0x5e, b & 0x7f, c, d]
    } else if d == 255 {
        [0xff; 6]
    } else {
        DESTINATION_MAC
    }
}

/// RFC 2464 section 7 for groups; [`somebody`] for hosts.
fn ipv6_mac(destination: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = destination.octets();
    if destination.is_multicast() { [0x33, 0x33, a, b, c, d] } else { DESTINATION_MAC }
}
