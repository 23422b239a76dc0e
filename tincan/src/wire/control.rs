//! The 2014 controller datagrams: version, type, then JSON or a frame with its uids.
//!
//! ```text
//!  0        1       2
//! +--------+-------+-----------------------------------------------+
//! | 0x02   | 0x01  | one JSON object                               |  control
//! | 0x02   | 0x02  | source uid (20) | destination uid (20) | frame |  packet
//! +--------+-------+-----------------------------------------------+
//! ```
//!
//! `params` and `parse` read calls, `call` writes them, `report` renders what the node answers, `styled` is the text
//! form of the 2014 daemon.

mod call;
mod params;
mod parse;
#[cfg(test)]
pub(crate) mod recorded;
mod report;
mod styled;

use serde::Deserialize as _;
use serde_json::Value;
use thiserror::Error;

use crate::wire::uid::{UID_LEN, Uid};

pub use call::request_to_value;
pub use parse::{METHODS, RequestError, parse_request};
pub(crate) use report::millis;
pub use report::{echo_reply, local_state, notification, peer_state};

/// First byte of every datagram since 2014.
pub const VERSION: u8 = 0x02;
/// Second byte of a datagram that carries JSON.
pub const TYPE_CONTROL: u8 = 0x01;
/// Second byte of a datagram that carries a frame.
pub const TYPE_PACKET: u8 = 0x02;
/// Bytes of a packet datagram before the frame: version, type, both uids.
pub const PACKET_HEADER_LEN: usize = 2 + 2 * UID_LEN;
/// The whole answer to a control datagram whose JSON does not parse: exactly the text of 2014.
pub const PARSE_ERROR: &[u8] = b"\x02\x01{\"error\":\"json parsing failed\"}";

/// A datagram, read.
#[derive(Clone, Debug, PartialEq)]
pub enum Datagram {
    /// A call, not yet looked into: see [`parse_request`].
    Control(Value),
    /// A frame to write to the TAP.
    Packet { source: Uid, destination: Uid, frame: Vec<u8> },
}

/// Why a datagram is no controller datagram. Only [`ControlError::Json`] is answered, with [`PARSE_ERROR`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ControlError {
    /// No version and type.
    #[error("{len} bytes are too short for a version and a type")]
    Short { len: usize },
    /// A version other than [`VERSION`].
    #[error("version byte {found:#04x}, expected 0x02")]
    Version { found: u8 },
    /// A type neither control nor packet.
    #[error("type byte {found:#04x}, expected 0x01 or 0x02")]
    Type { found: u8 },
    /// A packet without both uids.
    #[error("{len} bytes are too short for a packet with two uids")]
    ShortPacket { len: usize },
    /// Control, but not JSON.
    #[error("not JSON: {reason}")]
    Json { reason: String },
}

/// Reads one datagram; bytes after the JSON value are ignored, as in 2014.
pub fn decode_datagram(datagram: &[u8]) -> Result<Datagram, ControlError> {
    let len = datagram.len();
    let [version, kind, payload @ ..] = datagram else { return Err(ControlError::Short { len }) };
    if *version != VERSION {
        return Err(ControlError::Version { found: *version });
    }
    match *kind {
        TYPE_CONTROL => decode_json(payload).map(Datagram::Control),
        TYPE_PACKET => decode_packet(payload).ok_or(ControlError::ShortPacket { len }),
        found => Err(ControlError::Type { found }),
    }
}

/// A packet datagram: `frame` is a whole Ethernet frame, `destination` zero when no peer is known for it.
#[must_use]
pub fn encode_packet(source: Uid, destination: Uid, frame: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(PACKET_HEADER_LEN + frame.len());
    datagram.extend([VERSION, TYPE_PACKET]);
    datagram.extend(source.as_bytes());
    datagram.extend(destination.as_bytes());
    datagram.extend(frame);
    datagram
}

/// A control datagram with `json` in the styled form of 2014: a watchdog of that time looks for its exact first bytes.
#[must_use]
pub fn encode_json(json: &Value) -> Vec<u8> {
    let mut datagram = vec![VERSION, TYPE_CONTROL];
    datagram.extend(styled::text(json).into_bytes());
    datagram
}

fn decode_json(payload: &[u8]) -> Result<Value, ControlError> {
    let mut reader = serde_json::Deserializer::from_slice(payload);
    Value::deserialize(&mut reader).map_err(|error| ControlError::Json { reason: error.to_string() })
}

fn decode_packet(payload: &[u8]) -> Option<Datagram> {
    let (source, rest) = payload.split_first_chunk()?;
    let (destination, frame) = rest.split_first_chunk()?;
    let (source, destination) = (Uid::new(*source), Uid::new(*destination));
    Some(Datagram::Packet { source, destination, frame: frame.to_vec() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn control(text: &[u8]) -> Vec<u8> {
        [&[VERSION, TYPE_CONTROL], text].concat()
    }

    #[test]
    fn short_foreign_and_unknown_datagrams_are_named_errors() {
        assert_eq!(decode_datagram(&[]), Err(ControlError::Short { len: 0 }));
        assert_eq!(decode_datagram(&[2]), Err(ControlError::Short { len: 1 }));
        assert_eq!(decode_datagram(b"\x01\x01{}"), Err(ControlError::Version { found: 1 }));
        assert_eq!(decode_datagram(b"\x03\x01{}"), Err(ControlError::Version { found: 3 }));
        for found in [0, 3, 4, 0xff] {
            assert_eq!(decode_datagram(&[2, found, b'{', b'}']), Err(ControlError::Type { found }));
        }
        assert_eq!(decode_datagram(&[2; 41]), Err(ControlError::ShortPacket { len: 41 }));
    }

    #[test]
    fn bytes_after_the_json_value_are_ignored() {
        let call = Datagram::Control(json!({"m": "get_state"}));
        for tail in [&b""[..], b"\n", b" \r\n\t", b"\0\0", b"}{", b"\xff\xfe"] {
            assert_eq!(decode_datagram(&control(&[b"{\"m\":\"get_state\"}", tail].concat())), Ok(call.clone()));
        }
    }

    #[test]
    fn text_that_is_not_json_gives_a_json_error() {
        let deep = [vec![b'['; 10_000], vec![b']'; 10_000]].concat();
        for text in [&b""[..], b" ", b"{", b"{'m':1}", b"nul", b"{\"m\":\"\xff\"}", b"{\"a\":NaN}", &deep] {
            assert!(matches!(decode_datagram(&control(text)), Err(ControlError::Json { .. })), "{text:?}");
        }
    }

    #[test]
    fn the_parse_error_answer_is_the_text_of_2014() {
        let Ok(Datagram::Control(json)) = decode_datagram(PARSE_ERROR) else { panic!("must be JSON") };
        assert_eq!(json, json!({"error": "json parsing failed"}));
        assert_eq!(PARSE_ERROR.len(), 2 + 31);
    }

    #[test]
    fn packets_carry_both_uids_and_the_frame() {
        let (source, destination) = (Uid::new([7; UID_LEN]), Uid::new([9; UID_LEN]));
        for frame in [&b""[..], b"\xff\xff\xff\xff\xff\xff\x02\x00\x00\xaa\xbb\xcc\x08\x06"] {
            let datagram = encode_packet(source, destination, frame);
            assert_eq!(datagram.len(), PACKET_HEADER_LEN + frame.len());
            assert_eq!(decode_datagram(&datagram), Ok(Datagram::Packet { source, destination, frame: frame.to_vec() }));
        }
    }
}
