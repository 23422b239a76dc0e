//! Every codec against 100,000 damaged inputs: none may panic, and what is read must be sound.

use std::ops::Range;

use super::candidate::{MAX_CANDIDATES, parse_cas, write_cas};
use super::control::recorded::samples;
use super::control::{Datagram, decode_datagram, encode_json, encode_packet, parse_request, request_to_value};
use super::fingerprint::{Fingerprint, FingerprintKind};
use super::json_rpc::{self, RpcMethod, parse_call};
use super::uid::Uid;

const SEED: u64 = 0x2014_0718_5800_5801;
const ROUNDS: usize = 100_000;
/// What damage is made of, besides random bytes: the characters the formats are built from.
const TOKENS: [&str; 24] = [
    ":", "-", " ", "\"", "{", "}", "[", "]", ",", "null", "true", "0", "1", "-1", "65536", "1e999", "1.5", "\\u0000",
    "\u{e9}", "=", "tincan=1", "udp", "--", "\n",
];

/// Marsaglia's xorshift64: a seed names the whole run.
struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, range: Range<usize>) -> usize {
        let width = u64::try_from(range.len().max(1)).unwrap();
        range.start + usize::try_from(self.next() % width).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    /// `original` after one to four of: a flipped byte, a cut, an inserted token, a doubled stretch; or pure noise.
    fn damage(&mut self, original: &[u8]) -> Vec<u8> {
        if self.below(0..10) == 0 {
            let length = self.below(0..120);
            return (0..length).map(|_| self.byte()).collect();
        }
        let mut bytes = original.to_vec();
        for _ in 0..self.below(1..5) {
            let start = self.below(0..bytes.len() + 1);
            let end = self.below(start..bytes.len() + 1).min(start + 40);
            match self.below(0..4) {
                0 if start < bytes.len() => bytes[start] = self.byte(),
                1 => drop(bytes.drain(start..end)),
                2 => {
                    let token = TOKENS[self.below(0..TOKENS.len())];
                    bytes.splice(start..start, token.bytes());
                }
                _ => {
                    let stretch = bytes[start..end].to_vec();
                    bytes.splice(start..start, stretch);
                }
            }
        }
        bytes
    }
}

/// Feeds `ROUNDS` damaged copies of `originals` to `check`, which returns whether the input was accepted. Both
/// outcomes must happen, or the damage tests nothing.
pub(crate) fn damaged(originals: &[Vec<u8>], mut check: impl FnMut(&[u8]) -> bool) {
    println!("seed {SEED:#x}");
    let mut random = Xorshift(SEED);
    let mut accepted = 0;
    for _ in 0..ROUNDS {
        let original = random.below(0..originals.len());
        let input = random.damage(&originals[original]);
        accepted += usize::from(check(&input));
    }
    println!("{accepted} of {ROUNDS} accepted");
    assert!((ROUNDS / 1000..ROUNDS).contains(&accepted), "{accepted} accepted");
}

#[test]
fn damaged_fingerprints_are_refused_or_read_back() {
    let null = Fingerprint::null(FingerprintKind::Sha256).to_string();
    let sha1 = "14:15:16:17:18:19:1A:1B:1C:1D:1E:1F:20:21:22:23:24:25:26:27";
    damaged(&[null.into(), sha1.into()], |input| {
        let text = String::from_utf8_lossy(input);
        let Ok(fingerprint) = text.parse::<Fingerprint>() else { return false };
        assert_eq!(fingerprint.to_string(), text.to_uppercase());
        true
    });
}

#[test]
fn damaged_candidates_are_skipped_or_survive_rewriting() {
    let item = "Abc+/12x:1:udp:192.0.2.7:40001:2122194687:aBcDeFgHiJkLmNoP:abcdefghijklmnopqrstuvwx:local:eth0:0:1";
    let ip6 = item.replace("192.0.2.7", "2001-db8--1");
    damaged(&[item.into(), format!("{ip6} {item} tincan=1,vni=a1b2c3,sec=dtls").into()], |input| {
        let cas = parse_cas(&String::from_utf8_lossy(input));
        assert!(cas.candidates.len() <= MAX_CANDIDATES);
        for candidate in &cas.candidates {
            assert!(candidate.addr.port() != 0 && !candidate.addr.ip().is_loopback());
        }
        let again = parse_cas(&write_cas(&cas.candidates, cas.extension));
        assert_eq!((&again.candidates, again.extension, again.skipped), (&cas.candidates, cas.extension, 0));
        !cas.candidates.is_empty()
    });
}

#[test]
fn damaged_datagrams_are_refused_or_mean_a_call_that_reads_back() {
    let mut originals: Vec<Vec<u8>> = samples().iter().map(|request| encode_json(&request_to_value(request))).collect();
    originals.push(encode_packet(Uid::new([1; 20]), Uid::ZERO, &[0xff; 60]));
    damaged(&originals, |input| match decode_datagram(input) {
        Ok(Datagram::Control(json)) => {
            let Ok(request) = parse_request(&json) else { return false };
            assert_eq!(parse_request(&request_to_value(&request)), Ok(request));
            true
        }
        Ok(Datagram::Packet { source, destination, frame }) => {
            assert_eq!(encode_packet(source, destination, &frame), input);
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    });
}

#[test]
fn damaged_json_rpc_lines_are_answered_or_carried_out() {
    let methods = samples().into_iter().map(RpcMethod::Node).chain([RpcMethod::Status]);
    let originals: Vec<Vec<u8>> = methods.map(|method| json_rpc::call(1, &method).into()).collect();
    damaged(&originals, |input| match parse_call(input) {
        Ok(call) => {
            let again = parse_call(json_rpc::call(1, &call.method).as_bytes());
            assert_eq!(again.map(|again| again.method), Ok(call.method));
            true
        }
        Err(failure) => {
            let line = json_rpc::failure(&failure.id.unwrap_or_default(), &failure.error);
            assert_eq!(line.matches('\n').count(), 1);
            false
        }
    });
}
