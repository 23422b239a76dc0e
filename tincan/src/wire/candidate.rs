//! The `cas` string: candidates of 12 ':'-joined fields, separated by spaces, and our extension item.
//!
//! ```text
//! Abc+/12x:1:udp:192.0.2.7:40001:2122260223:ufrag:pwd:local:eth0:0:1234567 tincan=1,vni=a1b2c3,sec=dtls
//! id  component protocol ip port priority     type network generation foundation
//! ```
//!
//! IPv6 addresses are written with '-' for ':' (`2001-db8--1`), because ':' separates the fields.

use std::net::{IpAddr, SocketAddr};

use crate::link::{CandidateKind, Security};

/// Most candidates read from one `cas`; the rest is ignored (RFC 8445 section 6.1.2.5 caps pairs at 100).
pub const MAX_CANDIDATES: usize = 32;

/// Fields of a candidate item; 2014 readers skip items with fewer and ignore fields beyond.
const FIELDS: usize = 12;
/// RFC 8445 section 5.3: at least 4 and 22 characters, at most 256. 2014 peers use 16 and 24.
const UFRAG_LEN: std::ops::RangeInclusive<usize> = 4..=256;
const PWD_LEN: std::ops::RangeInclusive<usize> = 22..=256;
/// RFC 8445 section 5.1.2: 1 to 2^31 - 1 (2014 readers parse a signed 32-bit number).
const PRIORITIES: std::ops::RangeInclusive<u32> = 1..=0x7fff_ffff;
/// Longest interface name kept: Linux's IFNAMSIZ without the terminator.
const MAX_NETWORK_LEN: usize = 15;
/// First word of the extension item: its version.
const EXTENSION_VERSION: &str = "tincan=1";
const MAX_VNI: u32 = 0x00ff_ffff;

/// One UDP transport address a peer offers, with the ICE credentials that go with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where to send checks. Unusable addresses never get this far (port 0, unspecified, loopback, multicast).
    pub addr: SocketAddr,
    /// RFC 8445 priority.
    pub priority: u32,
    /// ICE user name fragment of this candidate.
    pub ufrag: String,
    /// ICE password of this candidate.
    pub pwd: String,
    /// Host, server-reflexive or relayed (`local`, `stun`, `relay` on the wire).
    pub kind: CandidateKind,
    /// Interface name, informational.
    pub network: String,
}

/// What travels beside the candidates in an item of fewer than 12 fields, which 2014 readers skip:
/// `tincan=1,vni=a1b2c3,sec=dtls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    /// The 24-bit tag the sender of this `cas` wants to see in frames to it.
    pub vni: u32,
    /// The security the sender asks for.
    pub security: Security,
}

/// A whole `cas` string, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cas {
    /// UDP candidates in the order given, at most [`MAX_CANDIDATES`].
    pub candidates: Vec<Candidate>,
    /// Absent when a 2014 daemon wrote the string.
    pub extension: Option<Extension>,
    /// Items that were skipped: malformed, TCP, forbidden address, over the cap.
    pub skipped: usize,
}

/// Reads a `cas` string; items that cannot be used are skipped and counted, so any text has a reading.
#[must_use]
pub fn parse_cas(text: &str) -> Cas {
    let mut cas = Cas::default();
    for item in text.split_whitespace() {
        if let Some(extension) = parse_extension(item).filter(|_| cas.extension.is_none()) {
            cas.extension = Some(extension);
        } else if let Some(candidate) = parse_candidate(item).filter(|_| cas.candidates.len() < MAX_CANDIDATES) {
            cas.candidates.push(candidate);
        } else {
            cas.skipped += 1;
        }
    }
    cas
}

/// Writes the `cas` string of `candidates` in the order given, the extension last.
///
/// A candidate no reader would take (forbidden address, credentials that are not ICE characters) is left out.
#[must_use]
pub fn write_cas(candidates: &[Candidate], extension: Option<Extension>) -> String {
    let items = candidates.iter().filter(|candidate| is_writable(candidate)).map(write_candidate);
    let items: Vec<String> = items.chain(extension.map(write_extension)).collect();
    items.join(" ")
}

/// The 2014 name of a candidate kind, in `cas` and in `stats`.
#[must_use]
pub fn kind_name(kind: CandidateKind) -> &'static str {
    match kind {
        CandidateKind::Host => "local",
        CandidateKind::ServerReflexive => "stun",
        CandidateKind::PeerReflexive => "prflx",
        CandidateKind::Relayed => "relay",
    }
}

/// The 2014 name of a security, in `peer_state` and in the extension item.
#[must_use]
pub fn security_name(security: Security) -> &'static str {
    match security {
        Security::Dtls => "dtls",
        Security::None => "none",
    }
}

fn parse_candidate(item: &str) -> Option<Candidate> {
    // One piece more than wanted, so that fields beyond the twelfth do not end up in it.
    let fields: Vec<&str> = item.splitn(FIELDS + 1, ':').collect();
    let [_id, component, protocol, ip, port, priority, ufrag, pwd, kind, network, _generation, _foundation, ..] =
        *fields.as_slice()
    else {
        return None;
    };
    if component != "1" || protocol != "udp" {
        return None;
    }
    let addr = SocketAddr::new(parse_ip(ip)?, port.parse().ok()?);
    let priority = priority.parse().ok().filter(|priority| PRIORITIES.contains(priority))?;
    let kind = parse_kind(kind)?;
    if !is_target(addr) || !is_ice_text(ufrag, &UFRAG_LEN) || !is_ice_text(pwd, &PWD_LEN) {
        return None;
    }
    let (ufrag, pwd) = (ufrag.to_owned(), pwd.to_owned());
    Some(Candidate { addr, priority, ufrag, pwd, kind, network: safe_network(network) })
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    let ip: IpAddr = text.replace('-', ":").parse().ok()?;
    Some(ip.to_canonical())
}

/// The candidate kind of a 2014 name.
#[must_use]
pub fn parse_kind(name: &str) -> Option<CandidateKind> {
    match name {
        "local" => Some(CandidateKind::Host),
        "stun" => Some(CandidateKind::ServerReflexive),
        "prflx" => Some(CandidateKind::PeerReflexive),
        "relay" => Some(CandidateKind::Relayed),
        _ => None,
    }
}

/// Whether a stranger may make this node send checks to `addr`.
fn is_target(addr: SocketAddr) -> bool {
    let ip = addr.ip().to_canonical();
    let forbidden = match ip {
        // 0.0.0.0/8 is "this network" (RFC 1122 section 3.2.1.3).
        IpAddr::V4(ip) => ip.is_broadcast() || ip.octets()[0] == 0,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    addr.port() != 0 && !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !forbidden
}

/// Letters, digits, '+' and '/' (RFC 8839 section 5.1, `ice-char`).
fn is_ice_text(text: &str, lengths: &std::ops::RangeInclusive<usize>) -> bool {
    lengths.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte))
}

fn parse_extension(item: &str) -> Option<Extension> {
    let mut words = item.split(',');
    if words.next() != Some(EXTENSION_VERSION) {
        return None;
    }
    let (mut vni, mut security) = (None, Security::Dtls);
    for word in words {
        match word.split_once('=')? {
            ("vni", value) => vni = Some(parse_vni(value)?),
            ("sec", "dtls") => security = Security::Dtls,
            ("sec", "none") => security = Security::None,
            ("sec", _) => return None,
            _ => {}
        }
    }
    Some(Extension { vni: vni?, security })
}

fn parse_vni(text: &str) -> Option<u32> {
    let digits = text.len() == 6 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

fn is_writable(candidate: &Candidate) -> bool {
    is_target(candidate.addr) && is_ice_text(&candidate.ufrag, &UFRAG_LEN) && is_ice_text(&candidate.pwd, &PWD_LEN)
}

fn write_candidate(candidate: &Candidate) -> String {
    let Candidate { addr, priority, ufrag, pwd, kind, network } = candidate;
    let ip = addr.ip().to_canonical().to_string().replace(':', "-");
    let port = addr.port();
    let priority = (*priority).clamp(*PRIORITIES.start(), *PRIORITIES.end());
    let kind = kind_name(*kind);
    let network = safe_network(network);
    let foundation = crc32(format!("{kind}{ip}udp").as_bytes());
    let id = write_id(&format!("{kind}{ip}{port}{ufrag}{network}"));
    format!("{id}:1:udp:{ip}:{port}:{priority}:{ufrag}:{pwd}:{kind}:{network}:0:{foundation}")
}

fn write_extension(extension: Extension) -> String {
    let Extension { vni, security } = extension;
    format!("{EXTENSION_VERSION},vni={:06x},sec={}", vni & MAX_VNI, security_name(security))
}

/// Eight characters that differ between the candidates of one agent; 2014 daemons drew them at random.
fn write_id(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let low = u64::from(crc32(text.as_bytes()));
    let high = u64::from(crc32(format!("id:{text}").as_bytes()));
    let bits = high << 32 | low;
    (0..8).fold(String::with_capacity(8), |mut id, position| {
        let digit = (bits >> (6 * position)) & 0x3f;
        let digit = usize::try_from(digit).expect("six bits fit");
        id.push(char::from(ALPHABET[digit]));
        id
    })
}

/// A network name that cannot break the format: no ':' and no white space, never empty, at most 15 characters.
fn safe_network(name: &str) -> String {
    let kept = |character: char| character.is_ascii_graphic() && character != ':';
    let safe: String = name.chars().take(MAX_NETWORK_LEN).map(|c| if kept(c) { c } else { '_' }).collect();
    if safe.is_empty() { "_".to_owned() } else { safe }
}

/// CRC-32 of IEEE 802.3, bit by bit: a few dozen bytes per candidate need no table.
fn crc32(bytes: &[u8]) -> u32 {
    const REFLECTED_POLYNOMIAL: u32 = 0xedb8_8320;
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            let carry = if crc & 1 == 1 { REFLECTED_POLYNOMIAL } else { 0 };
            (crc >> 1) ^ carry
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &str = "Abc+/12x:1:udp:192.0.2.7:40001:2122194687:aBcDeFgHiJkLmNoP:abcdefghijklmnopqrstuvwx:\
                            local:eth0:0:1234567 Zyx98765:1:udp:203.0.113.9:51002:1686052607:qRsTuVwXyZ012345:\
                            ABCDEFGHIJKLMNOPQRSTUVWX:stun:eth0:0:7654321";

    fn candidate(addr: &str, kind: CandidateKind) -> Candidate {
        Candidate {
            addr: addr.parse().unwrap(),
            priority: 2_122_260_223,
            ufrag: "aBcDeFgHiJkLmNoP".to_owned(),
            pwd: "abcdefghijklmnopqrstuvwx".to_owned(),
            kind,
            network: "eth0".to_owned(),
        }
    }

    fn item_with(ip: &str, port: &str) -> String {
        format!("Abc+/12x:1:udp:{ip}:{port}:1:aBcDeFgHiJkLmNoP:abcdefghijklmnopqrstuvwx:local:eth0:0:1")
    }

    #[test]
    fn the_recorded_2014_string_reads_with_credentials_of_each_candidate() {
        let cas = parse_cas(RECORDED);
        assert_eq!((cas.candidates.len(), cas.skipped, cas.extension), (2, 0, None));
        assert_eq!(
            cas.candidates[0],
            Candidate { priority: 2_122_194_687, ..candidate("192.0.2.7:40001", CandidateKind::Host) }
        );
        assert_eq!(cas.candidates[1].kind, CandidateKind::ServerReflexive);
        assert_eq!(cas.candidates[1].ufrag, "qRsTuVwXyZ012345");
        assert_eq!(cas.candidates[1].pwd, "ABCDEFGHIJKLMNOPQRSTUVWX");
    }

    #[test]
    fn what_is_written_reads_back_for_both_families_and_every_kind() {
        let candidates = vec![
            candidate("192.0.2.7:40001", CandidateKind::Host),
            candidate("[2001:db8::1]:40001", CandidateKind::Host),
            candidate("203.0.113.9:51002", CandidateKind::ServerReflexive),
            candidate("[2001:db8:1:2:3:4:5:6]:3", CandidateKind::Relayed),
            candidate("198.51.100.1:65535", CandidateKind::PeerReflexive),
        ];
        for security in [Security::Dtls, Security::None] {
            let extension = Some(Extension { vni: 0x00a1_b2c3, security });
            let text = write_cas(&candidates, extension);
            assert_eq!(parse_cas(&text), Cas { candidates: candidates.clone(), extension, skipped: 0 });
        }
    }

    #[test]
    fn a_written_candidate_has_twelve_fields_as_2014_readers_want_them() {
        let text = write_cas(&[candidate("[2001:db8::1]:40001", CandidateKind::Host)], None);
        let fields: Vec<&str> = text.split(':').collect();
        let foundation = crc32(b"local2001-db8--1udp").to_string();
        assert_eq!(fields[0].len(), 8);
        assert_eq!(
            fields[1..],
            [
                "1",
                "udp",
                "2001-db8--1",
                "40001",
                "2122260223",
                "aBcDeFgHiJkLmNoP",
                "abcdefghijklmnopqrstuvwx",
                "local",
                "eth0",
                "0",
                &foundation
            ]
        );
    }

    #[test]
    fn the_extension_is_one_item_a_2014_reader_skips() {
        let extension = Extension { vni: 0x0000_0abc, security: Security::None };
        let text = write_cas(&[], Some(extension));
        assert_eq!(text, "tincan=1,vni=000abc,sec=none");
        assert!(text.split(':').count() < FIELDS);
        assert_eq!(write_cas(&[], None), "");
    }

    #[test]
    fn extensions_default_to_dtls_and_must_be_whole() {
        let read = |text| parse_cas(text).extension;
        let dtls = Some(Extension { vni: 0x00a1_b2c3, security: Security::Dtls });
        assert_eq!(read("tincan=1,vni=a1b2c3"), dtls);
        assert_eq!(read("tincan=1,new=thing,vni=A1B2C3,sec=dtls"), dtls);
        assert_eq!(read("tincan=1,vni=a1b2c3 tincan=1,vni=000000,sec=none"), dtls);
        for text in [
            "tincan=1",
            "tincan=2,vni=a1b2c3",
            "tincan=1,sec=none",
            "tincan=1,vni=1a1b2c3",
            "tincan=1,vni=+1b2c3",
            "tincan=1,vni=a1b2c3,sec=rot13",
            "tincan=1,vni",
        ] {
            assert_eq!(parse_cas(text), Cas { skipped: 1, ..Cas::default() }, "{text}");
        }
    }

    #[test]
    fn forbidden_targets_are_skipped() {
        for ip in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.251",
            "255.255.255.255",
            "--",
            "--1",
            "ff02--fb",
            "fe80--1",
            "--ffff-127.0.0.1",
            "--ffff-0.0.0.0",
            "192.0.2",
            "example.org",
            "",
        ] {
            assert_eq!(parse_cas(&item_with(ip, "9")).skipped, 1, "{ip}");
        }
        for port in ["0", "65536", "-1", "", "x"] {
            assert_eq!(parse_cas(&item_with("192.0.2.7", port)).skipped, 1, "{port}");
        }
        assert_eq!(write_cas(&[candidate("127.0.0.1:9", CandidateKind::Host)], None), "");
    }

    #[test]
    fn mapped_addresses_become_ipv4() {
        let cas = parse_cas(&item_with("--ffff-192.0.2.7", "9"));
        assert_eq!(cas.candidates[0].addr, "192.0.2.7:9".parse().unwrap());
    }

    #[test]
    fn broken_items_are_skipped_and_further_fields_ignored() {
        let good = item_with("192.0.2.7", "9");
        assert_eq!(parse_cas(&format!("{good}:extra:fields")).candidates.len(), 1);
        for (from, to) in [
            (":udp:", ":tcp:"),
            (":udp:", ":UDP:"),
            ("x:1:", "x:2:"),
            (":local:", ":host:"),
            ("9:1:", "9:0:"),
            ("9:1:", "9:2147483648:"),
            ("aBcDeFgHiJkLmNoP", "aBc"),
            ("aBcDeFgHiJkLmNoP", "aBcD\u{e9}FgHi"),
            ("abcdefghijklmnopqrstuvwx", "abcdefghijklmnopqrstu"),
            ("abcdefghijklmnopqrstuvwx", "abcdefghijklmnopqrstuv!x"),
            (":0:1", ":0"),
        ] {
            let broken = good.replace(from, to);
            assert_ne!(broken, good);
            assert_eq!(parse_cas(&broken), Cas { skipped: 1, ..Cas::default() }, "{broken}");
        }
        for (length, candidates) in [(256, 1), (257, 0)] {
            let text = good.replace("aBcDeFgHiJkLmNoP", &"u".repeat(length));
            assert_eq!(parse_cas(&text).candidates.len(), candidates);
        }
    }

    #[test]
    fn a_flood_of_candidates_stops_at_the_cap() {
        let text = vec![item_with("192.0.2.7", "9"); 1000].join(" ");
        let cas = parse_cas(&text);
        assert_eq!((cas.candidates.len(), cas.skipped), (MAX_CANDIDATES, 1000 - MAX_CANDIDATES));
    }

    #[test]
    fn odd_network_names_cannot_break_the_format() {
        for (name, written) in [("a:b c\u{e9}", "a_b_c_"), ("", "_"), ("0123456789abcdefgh", "0123456789abcde")] {
            let odd = Candidate { network: name.to_owned(), ..candidate("192.0.2.7:9", CandidateKind::Host) };
            assert_eq!(parse_cas(&write_cas(&[odd], None)).candidates[0].network, written);
        }
    }

    #[test]
    fn crc_matches_the_published_check_value() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
