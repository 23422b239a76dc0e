//! Runs the TURN clients: one per port of ours and server, shared by links.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use crate::edge::ice::core::{Core, Output, ServerKey, Timer};
use crate::edge::ice::message::Incoming;
use crate::edge::ice::paths::Arrival;
use crate::edge::ice::turn::{TurnClient, TurnEvent};
use crate::link::{FlowKey, LinkId, Path, PortKind, RelayHop};
use crate::wire::request::TurnServer;

/// A TURN client and the links that need it.
#[derive(Debug)]
pub struct Relay {
    pub client: TurnClient,
    links: BTreeSet<LinkId>,
}

impl Relay {
    /// How `datagram` gets to a peer through the allocation: along its channel, else inside a Send indication.
    pub fn way(&self, server: SocketAddr, peer: SocketAddr, datagram: Vec<u8>) -> Option<(Path, Vec<u8>)> {
        if let Some(channel) = self.client.channel(peer) {
            let hop = RelayHop { server, channel };
            return Some((Path { remote: peer, source: None, relay: Some(hop) }, datagram));
        }
        let indication = self.client.send_indication(peer, &datagram)?;
        Some((Path { remote: server, source: None, relay: None }, indication))
    }
}

impl Core {
    /// A link needs an allocation; it may be there already.
    pub(super) fn join_relay(&mut self, now: Instant, key: ServerKey, account: &TurnServer, id: LinkId) {
        let relay = self
            .relays
            .entry(key)
            .or_insert_with(|| Relay { client: TurnClient::new(now, key.1, account), links: BTreeSet::new() });
        let is_idle = relay.links.is_empty() && relay.client.is_ending();
        // Credentials of TURN servers may expire: what never got in with the old ones tries the new ones.
        let is_refused = relay.client.relayed().is_none() && !relay.client.is_for(account);
        if is_idle || is_refused {
            relay.client = TurnClient::new(now, key.1, account);
        }
        relay.links.insert(id);
        let is_there = relay.client.relayed().is_some();
        if let Some(link) = self.links.get_mut(&id) {
            link.relay = Some(key);
            if let Some(gathering) = link.gathering.as_mut().filter(|_| is_there) {
                gathering.relay_settled(None);
            }
        }
        self.widen(now, id);
        self.flush_relay(now, key);
    }

    pub(super) fn leave_relay(&mut self, now: Instant, key: ServerKey, id: LinkId) {
        let Some(relay) = self.relays.get_mut(&key) else { return };
        relay.links.remove(&id);
        relay.client.forget(now, id);
        if relay.links.is_empty() {
            relay.client.release(now);
        }
        self.flush_relay(now, key);
    }

    /// A path through the server went silent: does the allocation still live?
    pub(super) fn probe_relay(&mut self, now: Instant, key: ServerKey) {
        if let Some(relay) = self.relays.get_mut(&key) {
            relay.client.probe(now);
            self.flush_relay(now, key);
        }
    }

    pub(super) fn tend_relay(&mut self, now: Instant, key: ServerKey) {
        if let Some(relay) = self.relays.get_mut(&key) {
            relay.client.handle_timeout(now);
            self.flush_relay(now, key);
        }
    }

    /// A message of a TURN server; false when there is no such server, or it is none of its business.
    pub(super) fn relay_message(&mut self, now: Instant, key: ServerKey, incoming: &mut Incoming) -> bool {
        let Some(relay) = self.relays.get_mut(&key) else { return false };
        let is_taken = relay.client.handle_message(now, incoming);
        if is_taken {
            self.flush_relay(now, key);
        }
        is_taken
    }

    /// The peer behind a channel of a server.
    pub(super) fn channel_peer(&self, port: PortKind, server: SocketAddr, channel: u16) -> Option<SocketAddr> {
        self.relays.get(&(port, server))?.client.peer(channel)
    }

    /// Moves what a client has to send and to tell.
    pub(super) fn flush_relay(&mut self, now: Instant, key: ServerKey) {
        let (port, server) = key;
        loop {
            let Some(relay) = self.relays.get_mut(&key) else { return };
            while let Some(datagram) = relay.client.poll_transmit(now) {
                let path = Path { remote: server, source: None, relay: None };
                self.outputs.push_back(Output::Transmit { port, path, datagram });
            }
            let Some(event) = relay.client.poll_event() else { break };
            let links: Vec<LinkId> = relay.links.iter().copied().collect();
            match event {
                TurnEvent::Allocated { mapped, .. } => {
                    for id in links {
                        self.relay_ready(now, id, mapped);
                    }
                }
                TurnEvent::Failed { reason } => {
                    for id in links {
                        self.relay_failed(now, id, &reason);
                    }
                }
                TurnEvent::Bound { peer } => {
                    for id in links {
                        self.channel_bound(now, id, peer);
                    }
                }
                TurnEvent::Data { peer, payload } => {
                    let flow = FlowKey { port, from: server, channel: None };
                    let arrival = Arrival { remote: peer, relay: Some(server), to: None };
                    self.peer_datagram(now, flow, arrival, &payload);
                }
                TurnEvent::Over => {
                    self.relays.remove(&key);
                    self.arm(Timer::Relay(key), None);
                    return;
                }
            }
        }
        let at = self.relays.get(&key).and_then(|relay| relay.client.deadline());
        self.arm(Timer::Relay(key), at);
    }

    fn relay_ready(&mut self, now: Instant, id: LinkId, mapped: Option<SocketAddr>) {
        if let Some(mapped) = mapped {
            self.learn_reflexive(id, mapped);
        }
        if let Some(gathering) = self.links.get_mut(&id).and_then(|link| link.gathering.as_mut()) {
            gathering.relay_settled(None);
        }
        self.widen(now, id);
        self.tend_link(now, id);
    }

    fn relay_failed(&mut self, now: Instant, id: LinkId, reason: &str) {
        let gathering = self.links.get_mut(&id).and_then(|link| link.gathering.as_mut());
        let Some(gathering) = gathering else {
            tracing::debug!(link = %id, reason, "a relay is lost");
            return;
        };
        gathering.relay_settled(Some(reason.to_owned()));
        self.tend_link(now, id);
    }
}
