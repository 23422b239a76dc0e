//! STUN messages (RFC 8489) as ICE and TURN use them: read once, verify, build.

use std::net::SocketAddr;

use stun::addr::MappedAddress;
use stun::agent::TransactionId;
use stun::attributes::{
    ATTR_ERROR_CODE, ATTR_FINGERPRINT, ATTR_ICE_CONTROLLED, ATTR_ICE_CONTROLLING, ATTR_MESSAGE_INTEGRITY,
    ATTR_OTHER_ADDRESS, ATTR_PRIORITY, ATTR_USE_CANDIDATE, ATTR_USERNAME, ATTR_XORMAPPED_ADDRESS, AttrType,
    RawAttribute,
};
use stun::error_code::ErrorCodeAttribute;
use stun::fingerprint::FINGERPRINT;
use stun::integrity::MessageIntegrity;
use stun::message::{
    BINDING_REQUEST, BINDING_SUCCESS, CLASS_ERROR_RESPONSE, CLASS_INDICATION, CLASS_REQUEST, CLASS_SUCCESS_RESPONSE,
    Getter, METHOD_BINDING, Message, MessageType, Method, Setter,
};
use stun::textattrs::Username;
use stun::xoraddr::XorMappedAddress;

use crate::link::Role;

/// Longest STUN message read, bytes: a check is about 150, a TURN Data indication carries one datagram.
const MAX_LENGTH: usize = 2048;
/// Header bytes of a STUN message (RFC 8489 section 5).
const HEADER: usize = 20;
/// The magic cookie (RFC 8489 section 5).
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// Longest text of a server's error shown to a person, characters.
const MAX_REASON: usize = 120;

/// Whether anything but FINGERPRINT follows MESSAGE-INTEGRITY: whoever saw a check could add it, so it must not count
/// (RFC 8489 section 14.5).
fn has_unsigned_attributes(message: &Message) -> bool {
    let mut types = message.attributes.0.iter().map(|attribute| attribute.typ);
    types.by_ref().any(|typ| typ == ATTR_MESSAGE_INTEGRITY) && types.any(|typ| typ != ATTR_FINGERPRINT)
}

/// The four classes of STUN messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Request,
    Indication,
    Success,
    Error,
}

/// A STUN message that arrived: well-formed, and its FINGERPRINT is right where it has one.
#[derive(Debug)]
pub struct Incoming {
    message: Message,
    class: Class,
}

impl Incoming {
    /// Reads one datagram; `None` when it is no sound STUN message.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        if !(HEADER..=MAX_LENGTH).contains(&datagram.len()) || datagram[0] & 0xc0 != 0 || datagram[4..8] != COOKIE {
            return None;
        }
        if usize::from(u16::from_be_bytes([datagram[2], datagram[3]])) + HEADER != datagram.len() {
            return None;
        }
        let mut message = Message { raw: datagram.to_vec(), ..Message::default() };
        message.decode().ok()?;
        if message.contains(ATTR_FINGERPRINT) {
            FINGERPRINT.check(&message).ok()?;
        }
        let class = match message.typ.class {
            CLASS_REQUEST => Class::Request,
            CLASS_INDICATION => Class::Indication,
            CLASS_SUCCESS_RESPONSE => Class::Success,
            CLASS_ERROR_RESPONSE => Class::Error,
            _ => return None,
        };
        if class == Class::Request && has_unsigned_attributes(&message) {
            return None;
        }
        Some(Self { message, class })
    }

    pub fn class(&self) -> Class {
        self.class
    }

    pub fn method(&self) -> Method {
        self.message.typ.method
    }

    pub fn is_binding(&self) -> bool {
        self.method() == METHOD_BINDING
    }

    pub fn transaction(&self) -> TransactionId {
        self.message.transaction_id
    }

    /// The datagram as it came.
    pub fn bytes(&self) -> &[u8] {
        &self.message.raw
    }

    /// USERNAME split at its first `:` (receiver's half, sender's half).
    pub fn username(&self) -> Option<(String, String)> {
        let text = String::from_utf8(self.message.get(ATTR_USERNAME).ok()?).ok()?;
        text.split_once(':').map(|(ours, theirs)| (ours.to_owned(), theirs.to_owned()))
    }

    /// True when MESSAGE-INTEGRITY was made with `key`.
    pub fn is_signed(&mut self, key: &MessageIntegrity) -> bool {
        key.check(&mut self.message).is_ok()
    }

    pub fn nominates(&self) -> bool {
        self.message.contains(ATTR_USE_CANDIDATE)
    }

    /// XOR-MAPPED-ADDRESS.
    pub fn mapped(&self) -> Option<SocketAddr> {
        self.address(ATTR_XORMAPPED_ADDRESS)
    }

    /// An attribute of the XOR-MAPPED-ADDRESS form.
    pub fn address(&self, attribute: AttrType) -> Option<SocketAddr> {
        let mut address = XorMappedAddress::default();
        address.get_from_as(&self.message, attribute).ok()?;
        Some(SocketAddr::new(address.ip, address.port))
    }

    /// OTHER-ADDRESS (RFC 5780 section 7.4): where else the server listens, both address and port others.
    pub fn other_address(&self) -> Option<SocketAddr> {
        let length = self.value(ATTR_OTHER_ADDRESS)?.len();
        let mut address = MappedAddress::default();
        address.get_from_as(&self.message, ATTR_OTHER_ADDRESS).ok()?;
        // The crate fills a short address up with zeros.
        let expected = if address.ip.is_ipv4() { 8 } else { 20 };
        (length == expected).then(|| SocketAddr::new(address.ip, address.port))
    }

    /// The value of an attribute.
    pub fn value(&self, attribute: AttrType) -> Option<Vec<u8>> {
        self.message.get(attribute).ok()
    }

    /// The value of a text attribute.
    pub fn text(&self, attribute: AttrType) -> Option<String> {
        String::from_utf8(self.value(attribute)?).ok()
    }

    /// A 32-bit attribute.
    pub fn number(&self, attribute: AttrType) -> Option<u32> {
        Some(u32::from_be_bytes(self.value(attribute)?.try_into().ok()?))
    }

    /// ERROR-CODE, and it with its reason as text fit for a log line (such as `401 Unauthorized`).
    pub fn error(&self) -> Option<(u16, String)> {
        let mut attribute = ErrorCodeAttribute::default();
        if !self.message.contains(ATTR_ERROR_CODE) || attribute.get_from(&self.message).is_err() {
            return None;
        }
        let reason: String = String::from_utf8_lossy(&attribute.reason)
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(MAX_REASON)
            .collect();
        Some((attribute.code.0, format!("{} {reason}", attribute.code.0).trim_end().to_owned()))
    }
}

/// Cheap test that a datagram may be STUN, before any allocation.
pub fn looks_like_stun(datagram: &[u8]) -> bool {
    (HEADER..=MAX_LENGTH).contains(&datagram.len()) && datagram[0] & 0xc0 == 0 && datagram[4..8] == COOKIE
}

/// Builds a message: type, transaction id, attributes, MESSAGE-INTEGRITY when there is a key, FINGERPRINT.
pub fn build(
    typ: MessageType,
    id: TransactionId,
    attributes: Vec<Box<dyn Setter>>,
    key: Option<&MessageIntegrity>,
) -> Vec<u8> {
    let mut setters: Vec<Box<dyn Setter>> = vec![Box::new(typ), Box::new(id)];
    setters.extend(attributes);
    if let Some(key) = key {
        setters.push(Box::new(key.clone()));
    }
    setters.push(Box::new(FINGERPRINT));
    let mut message = Message::new();
    // Only an over-long text attribute can fail; the message is then empty and falls off at the sending edge.
    match message.build(&setters) {
        Ok(()) => message.raw,
        Err(_) => Vec::new(),
    }
}

/// An attribute given by its bytes.
pub fn raw(typ: AttrType, value: impl Into<Vec<u8>>) -> Box<dyn Setter> {
    Box::new(RawAttribute { typ, length: 0, value: value.into() })
}

/// A plain Binding request, as sent to a STUN server.
pub fn server_query(id: TransactionId) -> Vec<u8> {
    build(BINDING_REQUEST, id, Vec::new(), None)
}

/// A consent check (RFC 7675): a Binding request of the short-term credential mechanism.
pub fn check(id: TransactionId, username: String, key: &MessageIntegrity, role: Role, tie_breaker: u64) -> Vec<u8> {
    /// PRIORITY of a peer-reflexive candidate (RFC 8445 section 5.1.2): type 110, one local address, component 1.
    const PRIORITY: u32 = (110 << 24) | (65535 << 8) | 255;
    let role_attribute = match role {
        Role::Controlling => ATTR_ICE_CONTROLLING,
        Role::Controlled => ATTR_ICE_CONTROLLED,
    };
    let attributes: Vec<Box<dyn Setter>> = vec![
        Box::new(Username::new(ATTR_USERNAME, username)),
        raw(role_attribute, tie_breaker.to_be_bytes()),
        raw(ATTR_PRIORITY, PRIORITY.to_be_bytes()),
    ];
    build(BINDING_REQUEST, id, attributes, Some(key))
}

/// The answer to a check that came from `mapped`.
pub fn answer(id: TransactionId, mapped: SocketAddr, key: &MessageIntegrity) -> Vec<u8> {
    let address = XorMappedAddress { ip: mapped.ip(), port: mapped.port() };
    build(BINDING_SUCCESS, id, vec![Box::new(address)], Some(key))
}

/// The key of the short-term mechanism: the password itself (RFC 8489 section 9.1.1).
pub fn short_term_key(pwd: &str) -> MessageIntegrity {
    MessageIntegrity::new_short_term_integrity(pwd.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        check(TransactionId::new(), "ours:theirs".into(), &short_term_key("secret"), Role::Controlling, 7)
    }

    #[test]
    fn a_check_is_read_back_with_its_names_and_key() {
        let mut incoming = Incoming::parse(&sample()).unwrap();
        assert_eq!(incoming.class(), Class::Request);
        assert!(incoming.is_binding());
        assert_eq!(incoming.username(), Some(("ours".into(), "theirs".into())));
        assert!(incoming.is_signed(&short_term_key("secret")));
        assert!(!incoming.is_signed(&short_term_key("other")));
    }

    #[test]
    fn an_answer_carries_the_address_of_either_family() {
        for address in ["192.0.2.1:5", "[2001:db8::7]:40000"] {
            let address: SocketAddr = address.parse().unwrap();
            let mut incoming =
                Incoming::parse(&answer(TransactionId::new(), address, &short_term_key("secret"))).unwrap();
            assert_eq!(incoming.mapped(), Some(address));
            assert!(incoming.is_signed(&short_term_key("secret")));
        }
    }

    #[test]
    fn an_other_address_is_read_whole_or_not_at_all() {
        let read = |value: &[u8]| {
            let attributes = vec![raw(ATTR_OTHER_ADDRESS, value)];
            Incoming::parse(&build(BINDING_SUCCESS, TransactionId::new(), attributes, None)).unwrap().other_address()
        };
        let ip4 = [0, 1, 0x0d, 0x97, 198, 51, 100, 11];
        let mut ip6 = [0; 20];
        ip6[..8].copy_from_slice(&[0, 2, 0x0d, 0x97, 0x20, 1, 0x0d, 0xb8]);
        assert_eq!(read(&ip4), Some("198.51.100.11:3479".parse().unwrap()));
        assert_eq!(read(&ip6), Some("[2001:db8::]:3479".parse().unwrap()));
        for damaged in [&ip4[..7], &ip4[..4], &ip4[..0], &ip6[..8], &ip6[..19], &[ip4, ip4].concat(), &[0, 3, 0, 1, 2]]
        {
            assert_eq!(read(damaged), None, "{damaged:?}");
        }
    }

    #[test]
    fn what_was_added_behind_the_integrity_makes_a_check_none() {
        let key = short_term_key("secret");
        let without = check(TransactionId::new(), "a:b".to_owned(), &key, Role::Controlled, 7);
        assert!(Incoming::parse(&without).is_some());
        // USE-CANDIDATE in the place of FINGERPRINT: type, no length; the header counts it.
        let mut forged = without[..without.len() - 8].to_vec();
        forged.extend([0x00, 0x25, 0, 0]);
        let length = u16::try_from(forged.len() - HEADER).unwrap().to_be_bytes();
        forged[2..4].copy_from_slice(&length);
        assert!(Incoming::parse(&forged).is_none());
    }

    #[test]
    fn damaged_messages_are_refused_and_never_panic() {
        let good = sample();
        for length in 0..good.len() {
            assert!(Incoming::parse(&good[..length]).is_none());
        }
        // The last eight bytes are FINGERPRINT, which stands outside of what the integrity covers.
        for index in 0..good.len() - 8 {
            for flip in [1u8, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[index] ^= flip;
                if let Some(mut incoming) = Incoming::parse(&bad) {
                    assert!(!incoming.is_signed(&short_term_key("secret")), "byte {index} changed unnoticed");
                }
            }
        }
        let mut trailing = good;
        trailing.push(0);
        assert!(Incoming::parse(&trailing).is_none());
    }
}
