//! The client against a server of a few lines, in virtual time.

use std::collections::HashMap;

use stun::attributes::{ATTR_CHANNEL_NUMBER, ATTR_ERROR_CODE, ATTR_XORMAPPED_ADDRESS, AttrType};
use stun::integrity::MessageIntegrity;
use stun::message::{
    CLASS_ERROR_RESPONSE, CLASS_SUCCESS_RESPONSE, METHOD_ALLOCATE, METHOD_CHANNEL_BIND, METHOD_CREATE_PERMISSION,
    METHOD_REFRESH, Message, Setter,
};
use stun::xoraddr::XorMappedAddress;

use super::*;
use crate::wire::request::Secret;

const LINK: LinkId = LinkId(1);
const REALM: &str = "example.org";
const PEER: &str = "198.51.100.7:40001";
pub const RELAYED: &str = "203.0.113.1:50000";
const MAPPED: &str = "192.0.2.1:40001";

struct Address(AttrType, SocketAddr);

impl Setter for Address {
    fn add_to(&self, message: &mut Message) -> Result<(), stun::Error> {
        XorMappedAddress { ip: self.1.ip(), port: self.1.port() }.add_to_as(message, self.0)
    }
}

pub fn address(typ: AttrType, addr: &str) -> Box<dyn Setter> {
    Box::new(Address(typ, addr.parse().unwrap()))
}

#[expect(clippy::struct_excessive_bools, reason = "faults, each by itself")]
pub struct Server {
    password: String,
    nonce: u32,
    /// Every refusal brings another nonce.
    is_fickle: bool,
    is_silent: bool,
    /// Grants allocations and knows nothing of them afterwards.
    is_forgetful: bool,
    /// Gives no allocation back, whatever it says.
    is_clinging: bool,
    /// Ends of the leases.
    pub allocation: Option<Instant>,
    pub permissions: HashMap<SocketAddr, Instant>,
    pub channels: HashMap<u16, (SocketAddr, Instant)>,
    /// Method and whether it was granted.
    log: Vec<(&'static str, bool)>,
}

impl Server {
    /// Knows `user` with the password `right`.
    pub fn new() -> Self {
        Self {
            password: "right".to_owned(),
            nonce: 1,
            is_fickle: false,
            is_silent: false,
            is_forgetful: false,
            is_clinging: false,
            allocation: None,
            permissions: HashMap::new(),
            channels: HashMap::new(),
            log: Vec::new(),
        }
    }

    fn key(&self) -> MessageIntegrity {
        MessageIntegrity::new_long_term_integrity("user".to_owned(), REALM.to_owned(), self.password.clone())
    }

    pub fn answer(&mut self, now: Instant, datagram: &[u8]) -> Option<Vec<u8>> {
        let mut request = Incoming::parse(datagram).expect("the client writes sound messages");
        let outcome = match self.credentials(&mut request) {
            Some(code) => Err(code),
            None => self.grant(now, &request),
        };
        self.log.push((name_of(&request), outcome.is_ok()));
        if self.is_silent {
            return None;
        }
        let typ = |class| MessageType::new(request.method(), class);
        let id = request.transaction();
        Some(match outcome {
            Ok(attributes) => build(typ(CLASS_SUCCESS_RESPONSE), id, attributes, Some(&self.key())),
            Err(code) => {
                let [class, number] = [code / 100, code % 100].map(|part| u8::try_from(part).unwrap());
                let mut attributes = vec![raw(ATTR_ERROR_CODE, [0, 0, class, number])];
                if matches!(code, 401 | 438) {
                    attributes.push(raw(ATTR_REALM, REALM.as_bytes()));
                    attributes.push(raw(ATTR_NONCE, self.nonce.to_string().into_bytes()));
                }
                build(typ(CLASS_ERROR_RESPONSE), id, attributes, None)
            }
        })
    }

    fn credentials(&mut self, request: &mut Incoming) -> Option<u16> {
        let nonce = request.text(ATTR_NONCE);
        if self.is_fickle {
            self.nonce += 1;
        }
        if nonce.is_none() || !request.is_signed(&self.key()) {
            return Some(401);
        }
        (nonce != Some(self.nonce.to_string())).then_some(438)
    }

    fn grant(&mut self, now: Instant, request: &Incoming) -> Result<Vec<Box<dyn Setter>>, u16> {
        let is_allocated = self.allocation.is_some_and(|end| now < end);
        let peer = request.address(ATTR_XOR_PEER_ADDRESS);
        match request.method() {
            METHOD_ALLOCATE if is_allocated => return Err(437),
            METHOD_ALLOCATE => {
                self.allocation = (!self.is_forgetful).then_some(now + Duration::from_secs(600));
                return Ok(vec![
                    address(ATTR_XOR_RELAYED_ADDRESS, RELAYED),
                    address(ATTR_XORMAPPED_ADDRESS, MAPPED),
                    raw(ATTR_LIFETIME, 600u32.to_be_bytes()),
                ]);
            }
            _ if !is_allocated => return Err(437),
            METHOD_REFRESH => {
                let lifetime = request.number(ATTR_LIFETIME).unwrap();
                if !self.is_clinging {
                    self.allocation = (lifetime > 0).then_some(now + Duration::from_secs(lifetime.into()));
                }
                return Ok(vec![raw(ATTR_LIFETIME, lifetime.to_be_bytes())]);
            }
            METHOD_CREATE_PERMISSION => {
                self.permissions.insert(peer.unwrap(), now + Duration::from_secs(300));
            }
            METHOD_CHANNEL_BIND => {
                let value = request.value(ATTR_CHANNEL_NUMBER).unwrap();
                let number = u16::from_be_bytes([value[0], value[1]]);
                assert!((0x4000..=0x4fff).contains(&number));
                self.channels.insert(number, (peer.unwrap(), now + Duration::from_secs(600)));
            }
            method => panic!("unexpected {method:?}"),
        }
        Ok(Vec::new())
    }
}

fn name_of(request: &Incoming) -> &'static str {
    match (request.method(), request.number(ATTR_LIFETIME)) {
        (METHOD_ALLOCATE, _) => "allocate",
        (METHOD_REFRESH, Some(0)) => "release",
        (METHOD_REFRESH, _) => "refresh",
        (METHOD_CREATE_PERMISSION, _) => "permit",
        _ => "bind",
    }
}

struct World {
    start: Instant,
    now: Instant,
    client: TurnClient,
    server: Server,
    told: Vec<TurnEvent>,
}

impl World {
    fn new(password: &str) -> Self {
        let now = Instant::now();
        let account = TurnServer {
            address: "turn.example.org".to_owned(),
            username: "user".to_owned(),
            password: Secret(password.to_owned()),
        };
        let client = TurnClient::new(now, "203.0.113.1:3478".parse().unwrap(), &account);
        Self { start: now, now, client, server: Server::new(), told: Vec::new() }
    }

    fn allocated() -> Self {
        let mut world = Self::new("right");
        world.run(Duration::from_secs(1));
        assert_eq!(world.client.relayed(), Some(RELAYED.parse().unwrap()));
        world.told.clear();
        world.server.log.clear();
        world
    }

    fn bound() -> Self {
        let mut world = Self::allocated();
        assert!(world.client.add_peer(world.now, PEER.parse().unwrap(), LINK));
        world.run(Duration::from_secs(1));
        assert_eq!(world.told, [TurnEvent::Bound { peer: PEER.parse().unwrap() }]);
        world.told.clear();
        world.server.log.clear();
        world
    }

    /// Runs for a while; answers come at once.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            while let Some(datagram) = self.client.poll_transmit(self.now) {
                if let Some(answer) = self.server.answer(self.now, &datagram) {
                    assert!(self.client.handle_message(self.now, &mut Incoming::parse(&answer).unwrap()));
                }
            }
            self.told.extend(std::iter::from_fn(|| self.client.poll_event()));
            let Some(next) = self.client.deadline().filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            self.client.handle_timeout(self.now);
        }
        self.now = end;
    }

    fn count(&self, name: &str) -> usize {
        self.server.log.iter().filter(|(other, _)| *other == name).count()
    }
}

#[test]
fn an_allocation_takes_two_requests_the_second_signed() {
    let mut world = World::new("right");
    world.run(Duration::from_secs(1));
    assert_eq!(world.server.log, [("allocate", false), ("allocate", true)]);
    let relayed = RELAYED.parse().unwrap();
    assert_eq!(world.told, [TurnEvent::Allocated { relayed, mapped: Some(MAPPED.parse().unwrap()) }]);
}

#[test]
fn a_wrong_password_is_named_and_tried_no_more_than_once_a_minute() {
    for is_fickle in [false, true] {
        let mut world = World::new("wrong");
        world.server.is_fickle = is_fickle;
        world.run(Duration::from_secs(50));
        let [TurnEvent::Failed { reason }] = &world.told[..] else { panic!("{:?}", world.told) };
        assert!(reason.contains("password") && !reason.contains("wrong"), "{reason}");
        assert!(world.server.log.len() <= 4, "{:?}", world.server.log);
        world.server.password = "wrong".to_owned();
        world.server.is_fickle = false;
        world.run(Duration::from_secs(20));
        assert!(world.client.relayed().is_some());
    }
}

#[test]
fn a_stale_nonce_is_replaced_without_losing_the_allocation() {
    let mut world = World::bound();
    world.server.nonce = 2;
    world.run(Duration::from_secs(1000));
    assert_eq!(world.told, []);
    assert_eq!(world.server.log.iter().filter(|(_, granted)| !granted).count(), 1);
    assert!(world.client.relayed().is_some());
}

#[test]
fn a_peer_gets_a_permission_and_a_channel() {
    let mut world = World::allocated();
    let peer: SocketAddr = PEER.parse().unwrap();
    assert_eq!(world.client.send_indication(peer, b"hello"), None);
    assert!(world.client.add_peer(world.now, peer, LINK));
    assert_eq!(world.client.channel(peer), None);
    world.run(Duration::from_secs(1));
    assert_eq!(world.server.log, [("permit", true), ("bind", true)]);
    let number = world.client.channel(peer).unwrap();
    assert_eq!(world.server.channels[&number].0, peer);
    assert_eq!(world.client.peer(number), Some(peer));
    assert_eq!(world.client.peer(number + 1), None);
    let indication = Incoming::parse(&world.client.send_indication(peer, b"hello").unwrap()).unwrap();
    assert_eq!((indication.class(), indication.method()), (Class::Indication, METHOD_SEND));
    assert_eq!(indication.address(ATTR_XOR_PEER_ADDRESS), Some(peer));
    assert_eq!(indication.value(ATTR_DATA).unwrap(), b"hello");
    assert!(!world.client.add_peer(world.now, "[2001:db8::1]:9".parse().unwrap(), LINK));
}

#[test]
fn leases_are_renewed_before_they_end_and_not_much_more_often() {
    let mut world = World::bound();
    let peer: SocketAddr = PEER.parse().unwrap();
    for _ in 0..360 {
        world.run(Duration::from_secs(10));
        assert!(world.server.allocation.is_some_and(|end| world.now < end));
        assert!(world.now < world.server.permissions[&peer]);
        assert!(world.server.channels.values().all(|(_, end)| world.now < *end));
    }
    assert!((6..=7).contains(&world.count("refresh")));
    assert!((14..=15).contains(&world.count("permit")));
    assert!((6..=7).contains(&world.count("bind")));
    assert_eq!(world.told, []);
}

#[test]
fn an_allocation_of_an_earlier_life_is_cleared_first() {
    let mut world = World::new("right");
    world.server.allocation = Some(world.now + Duration::from_secs(600));
    world.run(Duration::from_secs(1));
    let log: Vec<&str> = world.server.log.iter().map(|(name, _)| *name).collect();
    assert_eq!(log, ["allocate", "allocate", "release", "allocate"]);
    assert!(world.client.relayed().is_some());
}

#[test]
fn a_server_that_forgot_everything_is_asked_for_it_all_again() {
    let mut world = World::bound();
    world.server.allocation = None;
    world.server.channels.clear();
    let peer: SocketAddr = PEER.parse().unwrap();
    world.client.probe(world.now);
    world.run(Duration::from_secs(1));
    let relayed = RELAYED.parse().unwrap();
    let allocated = TurnEvent::Allocated { relayed, mapped: Some(MAPPED.parse().unwrap()) };
    assert_eq!(world.told, [allocated, TurnEvent::Bound { peer }]);
    assert_eq!(world.server.channels[&world.client.channel(peer).unwrap()].0, peer);
}

#[test]
fn a_server_that_loses_what_it_grants_is_not_asked_without_pause() {
    let mut world = World::new("right");
    world.server.is_forgetful = true;
    assert!(world.client.add_peer(world.now, PEER.parse().unwrap(), LINK));
    world.run(Duration::from_secs(600));
    assert!((4..=30).contains(&world.count("allocate")), "{} allocations in 10 minutes", world.count("allocate"));
    assert!(world.told.iter().any(|event| matches!(event, TurnEvent::Failed { .. })));
    world.server.is_forgetful = false;
    world.run(Duration::from_secs(130));
    assert!(world.client.channel(PEER.parse().unwrap()).is_some(), "it is not used once it works");
}

#[test]
fn a_server_that_never_gives_an_allocation_up_is_not_asked_without_pause() {
    let mut world = World::new("right");
    world.server.is_clinging = true;
    world.server.allocation = Some(world.now + Duration::from_secs(600));
    world.run(Duration::from_secs(300));
    assert!((4..=40).contains(&world.count("allocate")), "{:?}", world.server.log);
    assert!(world.told.iter().all(|event| matches!(event, TurnEvent::Failed { .. })), "{:?}", world.told);
}

#[test]
fn a_silent_server_is_asked_five_times_and_again_after_growing_pauses() {
    let mut world = World::new("right");
    world.server.is_silent = true;
    world.run(Duration::from_millis(8900));
    assert_eq!(world.server.log.len(), 5 + 1);
    assert!(matches!(&world.told[..], [TurnEvent::Failed { .. }]));
    world.run(Duration::from_secs(600));
    assert!((8..=20).contains(&world.told.len()), "{}", world.told.len());
    world.server.is_silent = false;
    world.run(Duration::from_secs(70));
    assert!(world.client.relayed().is_some());
}

#[test]
fn a_release_gives_the_allocation_back_also_when_the_server_is_silent() {
    for is_silent in [false, true] {
        let mut world = World::bound();
        world.server.is_silent = is_silent;
        world.client.release(world.now);
        assert!(world.client.is_ending());
        world.run(Duration::from_secs(10));
        assert_eq!(world.told, [TurnEvent::Over]);
        assert_eq!(world.server.allocation, None);
        assert_eq!(world.client.deadline(), None);
    }
}

#[test]
fn a_peer_no_link_needs_is_not_renewed() {
    let mut world = World::bound();
    world.client.forget(world.now, LINK);
    world.run(Duration::from_secs(3600));
    assert_eq!((world.count("permit"), world.count("bind")), (0, 0));
    assert_eq!(world.client.channel(PEER.parse().unwrap()), None);
}

#[test]
fn answers_with_a_wrong_signature_and_answers_to_nothing_change_nothing() {
    let mut world = World::allocated();
    world.client.probe(world.now);
    let request = Incoming::parse(&world.client.poll_transmit(world.now).unwrap()).unwrap();
    let typ = MessageType::new(METHOD_REFRESH, CLASS_SUCCESS_RESPONSE);
    let forged = MessageIntegrity::new_long_term_integrity("user".to_owned(), REALM.to_owned(), "guess".to_owned());
    for (id, key) in [
        (request.transaction(), Some(&forged)),
        (request.transaction(), None),
        (TransactionId::new(), Some(&world.server.key())),
    ] {
        let answer = build(typ, id, vec![raw(ATTR_LIFETIME, 3600u32.to_be_bytes())], key);
        world.client.handle_message(world.now, &mut Incoming::parse(&answer).unwrap());
        assert!(world.client.requests.is_pending(Kind::Refresh));
    }
    world.run(Duration::from_secs(1));
    assert!(!world.client.requests.is_pending(Kind::Refresh));
    assert!(world.start < world.now);
}

#[test]
fn data_without_a_channel_is_told_with_its_peer() {
    let mut world = World::allocated();
    let typ = MessageType::new(METHOD_DATA, CLASS_INDICATION);
    let attributes = vec![address(ATTR_XOR_PEER_ADDRESS, PEER), raw(ATTR_DATA, b"check".to_vec())];
    let indication = build(typ, TransactionId::new(), attributes, None);
    assert!(world.client.handle_message(world.now, &mut Incoming::parse(&indication).unwrap()));
    let bare = build(typ, TransactionId::new(), vec![raw(ATTR_DATA, b"nobody".to_vec())], None);
    assert!(world.client.handle_message(world.now, &mut Incoming::parse(&bare).unwrap()));
    world.run(Duration::ZERO);
    assert_eq!(world.told, [TurnEvent::Data { peer: PEER.parse().unwrap(), payload: b"check".to_vec() }]);
}
