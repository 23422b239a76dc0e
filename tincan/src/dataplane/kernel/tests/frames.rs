//! Frames made by hand, and the outer headers they should get.

use std::net::IpAddr;

use tincan_common::frame;

use super::{OWN_PORT, PEER_PORT, Underlay};

pub const OWN4: [u8; 4] = [172, 16, 0, 1];
pub const PEER4: [u8; 4] = [172, 16, 0, 2];
pub const STRANGER4: [u8; 4] = [172, 16, 0, 9];
pub const OWN6: [u8; 16] = [0xfd, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
pub const PEER6: [u8; 16] = [0xfd, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
pub const STRANGER6: [u8; 16] = [0xfd, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
/// As the TAP writes frames without ARP: its own address twice.
pub const MACS: [u8; 12] = [2, 0, 0, 0, 0xaa, 1, 2, 0, 0, 0, 0xbb, 2];

pub fn ethernet(ethertype: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&MACS[..], &ethertype, payload].concat()
}

/// An IPv4 packet with a right checksum.
pub fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut header = [0x45, 0, high, low, 0, 1, 0x40, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&source);
    header[16..].copy_from_slice(&destination);
    [header[10], header[11]] = tincan_common::inner::ipv4_checksum(&header);
    [&header, payload].concat()
}

pub fn ipv6(source: [u8; 16], destination: [u8; 16], next_header: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0x60, 0, 0, 0, high, low, next_header, 64], &source[..], &destination, payload].concat()
}

pub fn frame4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    ethernet([0x08, 0x00], &ipv4(source, destination, protocol, payload))
}

pub fn frame6(source: [u8; 16], destination: [u8; 16], next_header: u8, payload: &[u8]) -> Vec<u8> {
    ethernet([0x86, 0xdd], &ipv6(source, destination, next_header, payload))
}

/// A TCP segment without options.
pub fn tcp(payload: usize) -> Vec<u8> {
    let mut segment = vec![0x5a; 20 + payload];
    segment[..20].copy_from_slice(&[0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    segment
}

/// What the peer sends: `payload` in UDP over `underlay`, from the peer's port to ours.
pub fn datagram(underlay: Underlay, payload: &[u8]) -> Vec<u8> {
    udp_packet(underlay.peer, underlay.own, [PEER_PORT, OWN_PORT], payload)
}

pub fn udp_packet(source: IpAddr, destination: IpAddr, [from, to]: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
    let udp = [&from.to_be_bytes()[..], &to.to_be_bytes(), &length, &[0, 0], payload].concat();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => frame4(source.octets(), destination.octets(), 17, &udp),
        (IpAddr::V6(source), IpAddr::V6(destination)) => frame6(source.octets(), destination.octets(), 17, &udp),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("one packet has one family"),
    }
}

/// A frame behind its header.
pub fn tagged(tag: u32, frame: &[u8]) -> Vec<u8> {
    [&frame::header(tag)[..], frame].concat()
}
