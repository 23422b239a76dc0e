//! Outstanding requests to a TURN server: credentials, retransmission, which answer belongs to what.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use stun::agent::TransactionId;
use stun::attributes::{
    ATTR_CHANNEL_NUMBER, ATTR_LIFETIME, ATTR_NONCE, ATTR_REALM, ATTR_REQUESTED_TRANSPORT, ATTR_USERNAME,
    ATTR_XOR_PEER_ADDRESS, AttrType,
};
use stun::integrity::MessageIntegrity;
use stun::message::{
    CLASS_REQUEST, METHOD_ALLOCATE, METHOD_CHANNEL_BIND, METHOD_CREATE_PERMISSION, METHOD_REFRESH, Message,
    MessageType, Method, Setter,
};
use stun::xoraddr::XorMappedAddress;

use crate::edge::ice::message::{Incoming, build, raw};

/// First retransmission time, doubling: sent at 0, 0.25, 0.75, 1.75, 3.75 s.
const FIRST_RTO: Duration = Duration::from_millis(250);
/// Sends of one request before the server counts as silent.
const MAX_SENDS: u32 = 5;
/// New nonces accepted for one request.
const MAX_NONCES: u32 = 3;
/// Longest realm or nonce taken from a server, bytes (RFC 8489 sections 14.9 and 14.10).
const MAX_TEXT: usize = 763;
/// Lifetime asked for, seconds (RFC 8656 section 7.1: the default).
pub const LIFETIME: u32 = 600;
/// REQUESTED-TRANSPORT: UDP (RFC 8656 section 18.7).
const UDP_TRANSPORT: [u8; 4] = [17, 0, 0, 0];

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Allocate,
    Refresh,
    /// Gives back an allocation of an earlier life of this port.
    Clear,
    Release,
    Permission {
        peer: SocketAddr,
    },
    Channel {
        peer: SocketAddr,
        number: u16,
    },
}

impl Kind {
    fn method(self) -> Method {
        match self {
            Self::Allocate => METHOD_ALLOCATE,
            Self::Refresh | Self::Clear | Self::Release => METHOD_REFRESH,
            Self::Permission { .. } => METHOD_CREATE_PERMISSION,
            Self::Channel { .. } => METHOD_CHANNEL_BIND,
        }
    }

    fn attributes(self) -> Vec<Box<dyn Setter>> {
        match self {
            Self::Allocate => vec![raw(ATTR_REQUESTED_TRANSPORT, UDP_TRANSPORT)],
            Self::Refresh => vec![raw(ATTR_LIFETIME, LIFETIME.to_be_bytes())],
            Self::Clear | Self::Release => vec![raw(ATTR_LIFETIME, 0u32.to_be_bytes())],
            Self::Permission { peer } => vec![peer_address(peer)],
            Self::Channel { peer, number } => {
                let [high, low] = number.to_be_bytes();
                vec![raw(ATTR_CHANNEL_NUMBER, [high, low, 0, 0]), peer_address(peer)]
            }
        }
    }
}

/// XOR-PEER-ADDRESS, whose masking needs the transaction id of the message it goes into.
struct PeerAddress(SocketAddr);

impl Setter for PeerAddress {
    fn add_to(&self, message: &mut Message) -> Result<(), stun::Error> {
        XorMappedAddress { ip: self.0.ip(), port: self.0.port() }.add_to_as(message, ATTR_XOR_PEER_ADDRESS)
    }
}

/// The attribute that names a peer.
pub fn peer_address(peer: SocketAddr) -> Box<dyn Setter> {
    Box::new(PeerAddress(peer))
}

/// Long-term credentials (RFC 8489 section 9.2) with what the server told.
pub struct Auth {
    username: String,
    password: String,
    challenge: Option<Challenge>,
}

struct Challenge {
    realm: String,
    nonce: String,
    key: MessageIntegrity,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Auth {
    pub fn new(username: String, password: String) -> Self {
        Self { username, password, challenge: None }
    }

    /// Whether these are its credentials.
    pub fn is_for(&self, username: &str, password: &str) -> bool {
        self.username == username && self.password == password
    }

    /// True when requests are signed with this nonce already.
    pub fn uses(&self, nonce: Option<&str>) -> bool {
        self.challenge.as_ref().is_some_and(|challenge| Some(challenge.nonce.as_str()) == nonce)
    }

    /// Takes realm and nonce of an error answer; false when they are not usable.
    pub fn learn(&mut self, realm: Option<String>, nonce: Option<String>) -> bool {
        let realm = realm.or_else(|| self.challenge.as_ref().map(|known| known.realm.clone()));
        let (Some(realm), Some(nonce)) = (realm, nonce) else { return false };
        if realm.len() > MAX_TEXT || nonce.len() > MAX_TEXT {
            return false;
        }
        let key =
            MessageIntegrity::new_long_term_integrity(self.username.clone(), realm.clone(), self.password.clone());
        self.challenge = Some(Challenge { realm, nonce, key });
        true
    }

    pub fn forget(&mut self) {
        self.challenge = None;
    }

    /// True when an answer is signed as our requests are; before the first challenge nothing is.
    pub fn accepts(&self, incoming: &mut Incoming) -> bool {
        self.challenge.as_ref().is_none_or(|challenge| incoming.is_signed(&challenge.key))
    }

    fn write(&self, kind: Kind, id: TransactionId) -> Vec<u8> {
        let mut attributes = kind.attributes();
        let Some(Challenge { realm, nonce, key }) = &self.challenge else {
            return build(MessageType::new(kind.method(), CLASS_REQUEST), id, attributes, None);
        };
        let text = |typ: AttrType, text: &str| raw(typ, text.as_bytes());
        attributes.push(text(ATTR_USERNAME, &self.username));
        attributes.push(text(ATTR_REALM, realm));
        attributes.push(text(ATTR_NONCE, nonce));
        build(MessageType::new(kind.method(), CLASS_REQUEST), id, attributes, Some(key))
    }
}

#[derive(Debug)]
struct Outstanding {
    id: TransactionId,
    kind: Kind,
    datagram: Vec<u8>,
    sends: u32,
    nonces: u32,
    next: Instant,
}

/// The requests that wait for an answer.
#[derive(Debug, Default)]
pub struct Requests(Vec<Outstanding>);

impl Requests {
    /// Queues a request.
    pub fn send(&mut self, now: Instant, kind: Kind, auth: &Auth) {
        let id = TransactionId::new();
        let datagram = auth.write(kind, id);
        self.0.push(Outstanding { id, kind, datagram, sends: 0, nonces: 0, next: now });
    }

    /// Queues the request an answer belongs to again, with the credentials as they are now.
    pub fn repeat(&mut self, now: Instant, answer: &Incoming, auth: &Auth) {
        if let Some(request) = self.0.iter_mut().find(|request| request.id == answer.transaction()) {
            request.id = TransactionId::new();
            request.datagram = auth.write(request.kind, request.id);
            request.sends = 0;
            request.nonces += 1;
            request.next = now;
        }
    }

    /// What the request was for that this answers.
    pub fn kind_of(&self, answer: &Incoming) -> Option<Kind> {
        self.find(answer).map(|request| request.kind)
    }

    /// True when the request may be repeated with yet another nonce.
    pub fn may_repeat(&self, answer: &Incoming) -> bool {
        self.find(answer).is_some_and(|request| request.nonces < MAX_NONCES)
    }

    /// The request is answered for good.
    pub fn settle(&mut self, answer: &Incoming) {
        self.0.retain(|request| request.id != answer.transaction());
    }

    pub fn is_pending(&self, kind: Kind) -> bool {
        self.0.iter().any(|request| request.kind == kind)
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes out a request whose time is over.
    pub fn expired(&mut self, now: Instant) -> Option<Kind> {
        let index = self.0.iter().position(|request| request.sends >= MAX_SENDS && request.next <= now)?;
        Some(self.0.swap_remove(index).kind)
    }

    /// The next datagram that is due, first ones and repeats.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        let due = |request: &&mut Outstanding| request.sends < MAX_SENDS && request.next <= now;
        let request = self.0.iter_mut().find(due)?;
        request.next = now + FIRST_RTO * 2u32.pow(request.sends);
        request.sends += 1;
        Some(request.datagram.clone())
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.0.iter().map(|request| request.next).min()
    }

    fn find(&self, answer: &Incoming) -> Option<&Outstanding> {
        self.0.iter().find(|request| request.id == answer.transaction())
    }
}
