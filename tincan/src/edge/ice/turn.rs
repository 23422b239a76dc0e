//! TURN client over UDP (RFC 8656), without sockets and clocks of its own.
//!
//! One allocation for one of our ports at one server, shared by every link that uses both:
//!
//! ```text
//!            401, 438: again with realm and nonce
//!                 .------.
//!                 v      |    success
//!   new ----> Allocating -+-----------> Allocated --- Refresh, CreatePermission, ChannelBind by their clocks
//!                 ^                        |   |
//!                 |   437, no answer       |   | no link needs it: Refresh with lifetime 0
//!                 +------------------------'   v
//!                 |  pause, doubling         Over
//!              Waiting <---- refused, or lost again and again
//! ```
//!
//! Peers get a permission and a channel each. What a peer sends before its channel is bound comes as Data indications;
//! what we send before that goes as Send indications.

mod peers;
mod requests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use stun::agent::TransactionId;
use stun::attributes::{
    ATTR_DATA, ATTR_LIFETIME, ATTR_NONCE, ATTR_REALM, ATTR_XOR_PEER_ADDRESS, ATTR_XOR_RELAYED_ADDRESS,
};
use stun::message::{CLASS_INDICATION, METHOD_DATA, METHOD_SEND, MessageType};

use crate::edge::ice::message::{Class, Incoming, build, raw};
use crate::edge::ice::turn::peers::Peers;
use crate::edge::ice::turn::requests::{Auth, Kind, LIFETIME, Requests, peer_address};
use crate::link::LinkId;
use crate::wire::request::TurnServer;

/// A refresh goes out this long before the end; half-way where the server grants less than twice this.
const REFRESH_AHEAD: Duration = Duration::from_secs(60);
/// Pause before a refused or lost allocation is tried again, doubling up to `MAX_PAUSE`.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Allocations that the server loses more often than this are not asked for again at once.
const LOSS_PERIOD: Duration = Duration::from_secs(180);

/// What the client tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TurnEvent {
    /// An allocation is there; the relayed address may differ from an earlier one.
    Allocated { relayed: SocketAddr, mapped: Option<SocketAddr> },
    /// The server refused or is silent; why, for a person. It is tried again later.
    Failed { reason: String },
    /// A peer's channel works from now on.
    Bound { peer: SocketAddr },
    /// A datagram of a peer that came without a channel.
    Data { peer: SocketAddr, payload: Vec<u8> },
    /// The allocation was given back, or the server did not care; the client can be dropped.
    Over,
}

#[derive(Debug)]
enum State {
    Allocating,
    Allocated { relayed: SocketAddr, refresh_at: Instant },
    Waiting { until: Instant },
    Releasing,
    Over,
}

/// See the module's head.
#[derive(Debug)]
pub struct TurnClient {
    server: SocketAddr,
    state: State,
    pause: Duration,
    /// An allocation from before a restart of ours was given back, and no other was granted since.
    has_cleared: bool,
    /// When the server lost an allocation last.
    lost_at: Option<Instant>,
    auth: Auth,
    requests: Requests,
    peers: Peers,
    events: VecDeque<TurnEvent>,
}

impl TurnClient {
    /// Begins to allocate at `server`, the resolved address of `account`.
    pub fn new(now: Instant, server: SocketAddr, account: &TurnServer) -> Self {
        let mut client = Self {
            server,
            state: State::Allocating,
            pause: FIRST_PAUSE,
            has_cleared: false,
            lost_at: None,
            auth: Auth::new(account.username.clone(), account.password.0.clone()),
            requests: Requests::default(),
            peers: Peers::default(),
            events: VecDeque::new(),
        };
        client.allocate(now);
        client
    }

    /// Whether it logs in with this account's name and password.
    pub fn is_for(&self, account: &TurnServer) -> bool {
        self.auth.is_for(&account.username, &account.password.0)
    }

    /// Our address at the server, while there is an allocation.
    pub fn relayed(&self) -> Option<SocketAddr> {
        match self.state {
            State::Allocated { relayed, .. } => Some(relayed),
            State::Allocating | State::Waiting { .. } | State::Releasing | State::Over => None,
        }
    }

    /// Wants a permission and a channel for a peer on behalf of a link; false when the server cannot reach it (other
    /// address family) or all channels are taken.
    pub fn add_peer(&mut self, now: Instant, peer: SocketAddr, link: LinkId) -> bool {
        // Allocations are IPv4 unless asked for otherwise (RFC 8656 section 7.1), which we do not.
        if !peer.is_ipv4() || !self.peers.add(peer, link, now) {
            return false;
        }
        self.grant(now);
        true
    }

    /// True when the allocation was given back or is about to be.
    pub fn is_ending(&self) -> bool {
        match self.state {
            State::Releasing | State::Over => true,
            State::Allocating | State::Allocated { .. } | State::Waiting { .. } => false,
        }
    }

    /// A link needs none of its peers any more.
    pub fn forget(&mut self, now: Instant, link: LinkId) {
        self.peers.forget(link, now);
    }

    /// The bound channel of a peer.
    pub fn channel(&self, peer: SocketAddr) -> Option<u16> {
        self.relayed().and_then(|_| self.peers.bound_channel(peer))
    }

    /// The peer behind a channel.
    pub fn peer(&self, channel: u16) -> Option<SocketAddr> {
        self.peers.of_channel(channel)
    }

    /// A Send indication to the server that carries `payload` to a peer without a bound channel; `None` while the
    /// server would not let it through.
    pub fn send_indication(&self, peer: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
        if self.relayed().is_none() || !self.peers.is_permitted(peer) {
            return None;
        }
        let id = TransactionId::new();
        let attributes = vec![peer_address(peer), raw(ATTR_DATA, payload)];
        Some(build(MessageType::new(METHOD_SEND, CLASS_INDICATION), id, attributes, None))
    }

    /// Asks the server now whether the allocation still lives, because a path through it went silent.
    pub fn probe(&mut self, now: Instant) {
        if let State::Allocated { refresh_at, .. } = &mut self.state {
            *refresh_at = (*refresh_at).min(now);
        }
        self.handle_timeout(now);
    }

    /// Gives the allocation back; ends with [`TurnEvent::Over`].
    pub fn release(&mut self, now: Instant) {
        let allocated = self.relayed().is_some();
        self.requests.clear();
        if allocated {
            self.state = State::Releasing;
            self.requests.send(now, Kind::Release, &self.auth);
        } else {
            self.end();
        }
    }

    /// A message of the server; false when it is not for this client.
    pub fn handle_message(&mut self, now: Instant, incoming: &mut Incoming) -> bool {
        if incoming.class() == Class::Indication && incoming.method() == METHOD_DATA {
            if let (Some(peer), Some(payload)) = (incoming.address(ATTR_XOR_PEER_ADDRESS), incoming.value(ATTR_DATA)) {
                self.events.push_back(TurnEvent::Data { peer, payload });
            }
            return true;
        }
        if !matches!(incoming.class(), Class::Success | Class::Error) {
            return false;
        }
        let Some(kind) = self.requests.kind_of(incoming) else { return false };
        match incoming.error() {
            Some((code, text)) if incoming.class() == Class::Error => self.refused(now, incoming, kind, code, &text),
            _ if incoming.class() == Class::Success && self.auth.accepts(incoming) => {
                self.requests.settle(incoming);
                self.succeeded(now, kind, incoming);
            }
            // An answer without the right integrity is as good as none (RFC 8489 section 9.2.5).
            _ => {}
        }
        true
    }

    /// Work whose time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(kind) = self.requests.expired(now) {
            self.unanswered(now, kind);
        }
        match self.state {
            State::Waiting { until } if until <= now => self.allocate(now),
            State::Allocated { refresh_at, .. } => {
                if refresh_at <= now && !self.requests.is_pending(Kind::Refresh) {
                    self.requests.send(now, Kind::Refresh, &self.auth);
                }
                self.grant(now);
            }
            State::Allocating | State::Waiting { .. } | State::Releasing | State::Over => {}
        }
    }

    /// When `handle_timeout` or `poll_transmit` has something to do next.
    pub fn deadline(&self) -> Option<Instant> {
        let own = match self.state {
            State::Waiting { until } => Some(until),
            State::Allocated { refresh_at, .. } => {
                let refresh = (!self.requests.is_pending(Kind::Refresh)).then_some(refresh_at);
                refresh.into_iter().chain(self.peers.deadline()).min()
            }
            State::Allocating | State::Releasing | State::Over => None,
        };
        own.into_iter().chain(self.requests.deadline()).min()
    }

    /// The next datagram for the server, first ones and repeats.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.requests.poll_transmit(now)
    }

    pub fn poll_event(&mut self) -> Option<TurnEvent> {
        self.events.pop_front()
    }

    fn allocate(&mut self, now: Instant) {
        self.state = State::Allocating;
        self.requests.clear();
        self.peers.reset(now);
        self.requests.send(now, Kind::Allocate, &self.auth);
    }

    /// Asks for what the peers lack or is about to run out.
    fn grant(&mut self, now: Instant) {
        if self.relayed().is_none() {
            return;
        }
        for kind in self.peers.due(now) {
            self.requests.send(now, kind, &self.auth);
        }
    }

    fn succeeded(&mut self, now: Instant, kind: Kind, incoming: &Incoming) {
        match kind {
            Kind::Allocate => self.allocated(now, incoming),
            Kind::Refresh => {
                if let State::Allocated { refresh_at, .. } = &mut self.state {
                    *refresh_at = refresh_time(now, incoming);
                }
            }
            Kind::Permission { peer } => self.peers.permitted(peer, now),
            Kind::Channel { peer, .. } => {
                if self.peers.bound(peer, now) {
                    self.events.push_back(TurnEvent::Bound { peer });
                }
            }
            Kind::Clear => self.allocate(now),
            Kind::Release => self.end(),
        }
    }

    fn allocated(&mut self, now: Instant, incoming: &Incoming) {
        let Some(relayed) = incoming.address(ATTR_XOR_RELAYED_ADDRESS) else {
            self.fail(now, "its answer names no relayed address");
            return;
        };
        self.state = State::Allocated { relayed, refresh_at: refresh_time(now, incoming) };
        self.has_cleared = false;
        self.events.push_back(TurnEvent::Allocated { relayed, mapped: incoming.mapped() });
        self.grant(now);
    }

    fn refused(&mut self, now: Instant, incoming: &Incoming, kind: Kind, code: u16, text: &str) {
        let (realm, nonce) = (incoming.text(ATTR_REALM), incoming.text(ATTR_NONCE));
        let retry = match code {
            // With this very nonce already signed, 401 says that name or password are wrong.
            401 => !self.auth.uses(nonce.as_deref()),
            438 => true,
            _ => false,
        };
        if retry && self.requests.may_repeat(incoming) && self.auth.learn(realm, nonce) {
            self.requests.repeat(now, incoming, &self.auth);
            return;
        }
        self.requests.settle(incoming);
        match (kind, code) {
            // The server still holds an allocation of this port, from before a restart of ours: it has to go first.
            (Kind::Allocate, 437) if !self.has_cleared => {
                self.has_cleared = true;
                self.requests.send(now, Kind::Clear, &self.auth);
            }
            (Kind::Allocate, 401 | 441) => {
                self.auth.forget();
                self.pause = MAX_PAUSE;
                self.fail(now, &format!("it refused the user name or the password ({text})"));
            }
            (Kind::Allocate | Kind::Clear, _) => self.fail(now, &format!("it refused an allocation: {text}")),
            (Kind::Refresh, _) | (Kind::Permission { .. } | Kind::Channel { .. }, 437) => self.lose(now),
            (Kind::Permission { .. } | Kind::Channel { .. }, _) => self.peers.refused(kind, now),
            (Kind::Release, _) => self.end(),
        }
    }

    fn unanswered(&mut self, now: Instant, kind: Kind) {
        match kind {
            Kind::Allocate | Kind::Clear => {
                self.fail(now, "it did not answer: check its address and that UDP is let through");
            }
            Kind::Refresh => self.lose(now),
            Kind::Permission { .. } | Kind::Channel { .. } => self.peers.refused(kind, now),
            Kind::Release => self.end(),
        }
    }

    /// The server does not know the allocation any more, after a restart for example: another one at once, unless they get
    /// lost again and again.
    fn lose(&mut self, now: Instant) {
        let is_again = self.lost_at.replace(now).is_some_and(|before| now < before + LOSS_PERIOD);
        if is_again {
            self.fail(now, "it loses allocations soon after it has granted them");
        } else {
            self.pause = FIRST_PAUSE;
            self.allocate(now);
        }
    }

    fn fail(&mut self, now: Instant, why: &str) {
        self.requests.clear();
        self.state = State::Waiting { until: now + self.pause };
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        self.events.push_back(TurnEvent::Failed { reason: format!("TURN server {}: {why}", self.server) });
    }

    fn end(&mut self) {
        self.requests.clear();
        self.state = State::Over;
        self.events.push_back(TurnEvent::Over);
    }
}

fn refresh_time(now: Instant, incoming: &Incoming) -> Instant {
    let lifetime = Duration::from_secs(u64::from(incoming.number(ATTR_LIFETIME).unwrap_or(LIFETIME)));
    let wait = lifetime.saturating_sub(REFRESH_AHEAD).max(lifetime / 2);
    now + wait.clamp(Duration::from_secs(1), Duration::from_secs(3600))
}

#[cfg(test)]
pub mod tests;
