//! Moves STUN messages between the wire and the agents, and judges whether the selected pairs live.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use stun::agent::TransactionId;

use crate::edge::ice::agent::{AgentId, AgentOutput};
use crate::edge::ice::consent::{Consent, Step};
use crate::edge::ice::core::{Core, Early, HANDOVER, Link, Output, ServerKey};
use crate::edge::ice::credentials::generation_name;
use crate::edge::ice::generation::{Generation, Pace, reflexive_candidate};
use crate::edge::ice::message::{self, Class, Incoming};
use crate::edge::ice::paths::{Arrival, Entry, handle, index_of};
use crate::ice::{IceEvent, SelectedPair, UFRAG_LENGTH};
use crate::link::{CandidateKind, FlowKey, LinkId, Path, PortKind};

/// A peer may be this many generations ahead of us.
const MAX_AHEAD: u32 = 4;
/// Early requests kept per link, one per source.
const MAX_EARLY: usize = 8;
/// A request not answered within this is forgotten (the agents forget after 4 s).
const TRANSACTION_LIFE: Duration = Duration::from_secs(5);

/// A request of ours in flight.
#[derive(Clone, Copy, Debug)]
struct Pending {
    link: LinkId,
    agent: AgentId,
    path: usize,
    sent: Instant,
    is_consent: bool,
}

/// Requests in flight of all agents, by transaction id.
#[derive(Debug, Default)]
pub struct Transactions {
    pending: HashMap<TransactionId, Pending>,
    order: VecDeque<(Instant, TransactionId)>,
}

impl Transactions {
    /// Takes out the next one whose time is over.
    fn expired(&mut self, now: Instant) -> Option<Pending> {
        while let Some((sent, id)) = self.order.front().copied() {
            if now < sent + TRANSACTION_LIFE {
                return None;
            }
            self.order.pop_front();
            if let Some(pending) = self.pending.remove(&id) {
                return Some(pending);
            }
        }
        None
    }

    fn insert(&mut self, id: TransactionId, pending: Pending) {
        self.order.push_back((pending.sent, id));
        self.pending.insert(id, pending);
    }
}

impl Core {
    /// A datagram of the control kind arrived on one of our ports.
    pub fn handle_datagram(&mut self, now: Instant, flow: FlowKey, to: Option<IpAddr>, payload: &[u8]) {
        let from = SocketAddr::new(flow.from.ip().to_canonical(), flow.from.port());
        let flow = FlowKey { from, ..flow };
        let arrival = match flow.channel {
            None => Arrival { remote: from, relay: None, to: to.map(|ip| ip.to_canonical()) },
            Some(channel) => {
                let Some(remote) = self.channel_peer(flow.port, from, channel) else { return };
                Arrival { remote, relay: Some(from), to: None }
            }
        };
        self.peer_datagram(now, flow, arrival, payload);
    }

    pub(super) fn peer_datagram(&mut self, now: Instant, flow: FlowKey, arrival: Arrival, payload: &[u8]) {
        let Some(mut incoming) = Incoming::parse(payload) else { return };
        if incoming.class() == Class::Request {
            if incoming.is_binding() {
                self.request(now, flow, arrival, incoming);
            }
            return;
        }
        if incoming.is_binding() && self.response(now, &arrival, &mut incoming) {
            return;
        }
        let key: ServerKey = (flow.port, flow.from);
        // Servers speak for themselves only, not through a relay.
        if arrival.relay.is_none() && !self.answer_query(now, key, &incoming) {
            self.relay_message(now, key, &mut incoming);
        }
    }

    /// A check of a peer. Nothing is kept of it before its name and its integrity are known to be right.
    fn request(&mut self, now: Instant, flow: FlowKey, arrival: Arrival, mut incoming: Incoming) {
        let Some((ours, theirs)) = incoming.username() else { return };
        let Some(id) = ours.get(..UFRAG_LENGTH).and_then(|base| self.names.get(base)).copied() else { return };
        let Some(link) = self.links.get_mut(&id) else { return };
        if flow.port != link.port || !incoming.is_signed(&link.local.key()) {
            return;
        }
        let Some(generation) = link.generations.iter_mut().find(|generation| generation.local.ufrag == ours) else {
            self.early_request(id, flow, arrival, &ours, &incoming);
            return;
        };
        if generation.remote.ufrag != theirs {
            return;
        }
        let mut agent = generation.agent;
        if generation.is_drowsy() {
            agent = self.change_pace(id, agent, Pace::eager(now));
        }
        let Some(generation) = self.generation(id, agent) else { return };
        let index = match generation.paths.locate(&arrival) {
            Some(index) => index,
            None if arrival.relay.is_some() => {
                self.learn_relayed(now, id, agent, &arrival);
                return;
            }
            None => match generation.paths.learn(&arrival) {
                Some(index) => index,
                None => return,
            },
        };
        generation.hear(index, now);
        if generation.selected == Some(index)
            && let Some(consent) = &mut generation.consent
        {
            consent.heard(now);
        }
        if generation.has_agent {
            let datagram = incoming.bytes().to_vec();
            self.outputs.push_back(Output::Deliver { agent, handle: handle(index), datagram });
        } else if let Some(entry) = generation.paths.get(index).cloned() {
            let answer = message::answer(incoming.transaction(), entry.remote, &generation.local_key);
            self.send_along(id, &entry, answer);
        }
        self.arm_link(id);
    }

    /// A peer's address that our relay sees is new: it gets a channel, and the agent is told that it is a relayed one
    /// before its next check.
    fn learn_relayed(&mut self, now: Instant, id: LinkId, agent: AgentId, arrival: &Arrival) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(key) = link.relay.filter(|key| Some(key.1) == arrival.relay) else { return };
        let Some(relay) = self.relays.get_mut(&key) else { return };
        let Some(generation) = link.generations.iter_mut().find(|generation| generation.agent == agent) else { return };
        // First the link's own cap: a peer must not take every channel of the relay.
        let candidate = reflexive_candidate(arrival.remote);
        let Some(remote) = generation.add_candidate(&candidate, arrival.relay) else { return };
        if relay.client.add_peer(now, arrival.remote, id) {
            self.outputs.push_back(Output::AddRemote { agent, remote });
        }
        self.flush_relay(now, key);
    }

    /// A proven request for a generation we do not run: kept when it may come to run, reported when it is later.
    fn early_request(&mut self, id: LinkId, flow: FlowKey, arrival: Arrival, ours: &str, incoming: &Incoming) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let newest = link.generations.iter_mut().max_by_key(|generation| generation.number);
        let later = match newest.as_ref().map(|newest| newest.number) {
            None => (ours == link.local.ufrag).then_some(0),
            Some(newest) => (newest.saturating_add(1)..=newest.saturating_add(MAX_AHEAD))
                .find(|number| generation_name(&link.local.ufrag, *number) == ours),
        };
        let Some(number) = later else {
            // It is behind, and there to hear our checks, which take it along.
            if let Some(newest) = newest {
                newest.paths.trigger_all();
            }
            return;
        };
        link.early.retain(|early| early.arrival != arrival);
        if link.early.len() >= MAX_EARLY {
            link.early.remove(0);
        }
        link.early.push(Early { flow, arrival, datagram: incoming.bytes().to_vec() });
        if number > link.announced {
            link.announced = number;
            self.event(IceEvent::PeerRestarted { link: id, generation: number });
        }
    }

    /// Hands a new agent what came for it before it was there.
    pub(super) fn replay_early(&mut self, now: Instant, id: LinkId, name: &str) {
        let Some(link) = self.links.get_mut(&id) else { return };
        for Early { flow, arrival, datagram } in std::mem::take(&mut link.early) {
            let Some(incoming) = Incoming::parse(&datagram) else { continue };
            if incoming.username().is_some_and(|(ours, _)| ours == name) {
                self.request(now, flow, arrival, incoming);
            }
        }
    }

    /// An answer to a check of ours; false when it is none.
    fn response(&mut self, now: Instant, arrival: &Arrival, incoming: &mut Incoming) -> bool {
        let Some(pending) = self.transactions.pending.get(&incoming.transaction()).copied() else { return false };
        let Pending { link: id, agent, path, sent, is_consent } = pending;
        let Some(link) = self.links.get_mut(&id) else { return true };
        let Some(generation) = link.generations.iter_mut().find(|generation| generation.agent == agent) else {
            return true;
        };
        let is_genuine = incoming.class() == Class::Success
            && incoming.is_signed(&generation.remote_key)
            && generation.paths.accept_answer(path, arrival);
        if !is_genuine {
            return true;
        }
        self.transactions.pending.remove(&incoming.transaction());
        generation.outstanding = generation.outstanding.saturating_sub(1);
        let was_drowsy = generation.is_drowsy();
        generation.hear(path, now);
        if was_drowsy {
            // The new agent asks again at once, sooner than the old one would have gone on.
            self.change_pace(id, agent, Pace::eager(now));
            return true;
        }
        let sample = now.duration_since(sent);
        if let Some(entry) = generation.paths.get_mut(path) {
            entry.mapped = incoming.mapped().or(entry.mapped);
            if !is_consent {
                entry.rtt.shortest(sample);
            }
        }
        if is_consent {
            self.consented(now, id, agent, path, sample);
        } else if generation.may_succeed(path, now) {
            let datagram = incoming.bytes().to_vec();
            self.outputs.push_back(Output::Deliver { agent, handle: handle(path), datagram });
        }
        self.arm_link(id);
        true
    }

    fn consented(&mut self, now: Instant, id: LinkId, agent: AgentId, path: usize, sample: Duration) {
        let Some(generation) = self.generation(id, agent) else { return };
        let Some(consent) = &mut generation.consent else { return };
        let is_back = consent.answered(now);
        let (number, is_current) = (generation.number, generation.is_current());
        let rtt = generation.paths.get_mut(path).map(|entry| entry.rtt.smooth(sample));
        if !is_current {
            return;
        }
        if is_back {
            self.event(IceEvent::Reconnected { link: id, generation: number });
        }
        if let Some(rtt) = rtt {
            self.event(IceEvent::RoundTrip { link: id, rtt });
        }
    }

    /// An agent did something.
    pub fn handle_agent(&mut self, now: Instant, output: AgentOutput) {
        match output {
            AgentOutput::Sent { link, agent, handle, datagram } => self.agent_sent(now, link, agent, handle, datagram),
            AgentOutput::Selected { link, agent, handle } => {
                let Some(generation) = self.generation(link, agent) else { return };
                generation.selected = index_of(handle);
                self.report_selected(now, link, agent);
            }
        }
    }

    fn agent_sent(&mut self, now: Instant, id: LinkId, agent: AgentId, handle: SocketAddr, datagram: Vec<u8>) {
        let (Some(index), Some(message)) = (index_of(handle), Incoming::parse(&datagram)) else { return };
        let Some(generation) = self.generation(id, agent) else { return };
        let Some(entry) = generation.paths.get(index).cloned() else { return };
        match message.class() {
            Class::Request => {
                if generation.may_check(index, message.nominates(), now) {
                    self.send_request(now, id, agent, index, message.transaction(), datagram, false);
                }
            }
            Class::Success => {
                // The agent knows the handle only; the peer wants to know how we see it.
                let answer = message::answer(message.transaction(), entry.remote, &generation.local_key);
                self.send_along(id, &entry, answer);
            }
            Class::Indication | Class::Error => {}
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one request and all that is remembered of it")]
    fn send_request(
        &mut self,
        now: Instant,
        link: LinkId,
        agent: AgentId,
        path: usize,
        transaction: TransactionId,
        datagram: Vec<u8>,
        is_consent: bool,
    ) {
        while let Some(expired) = self.transactions.expired(now) {
            if let Some(generation) = self.generation(expired.link, expired.agent) {
                generation.outstanding = generation.outstanding.saturating_sub(1);
            }
        }
        let Some(generation) = self.generation(link, agent) else { return };
        let Some(entry) = generation.paths.get(path).cloned() else { return };
        generation.outstanding += 1;
        self.transactions.insert(transaction, Pending { link, agent, path, sent: now, is_consent });
        self.send_along(link, &entry, datagram);
    }

    fn send_along(&mut self, id: LinkId, entry: &Entry, datagram: Vec<u8>) {
        let Some(port) = self.links.get(&id).map(|link| link.port) else { return };
        let way = match entry.relay {
            None => Some((Path { remote: entry.remote, source: entry.source, relay: None }, datagram)),
            Some(server) => {
                self.relays.get(&(port, server)).and_then(|relay| relay.way(server, entry.remote, datagram))
            }
        };
        if let Some((path, datagram)) = way {
            self.outputs.push_back(Output::Transmit { port, path, datagram });
        }
    }

    /// A channel works: a pair that waited for it can be reported.
    pub(super) fn channel_bound(&mut self, now: Instant, id: LinkId, peer: SocketAddr) {
        let Some(link) = self.links.get(&id) else { return };
        let waits = |generation: &&Generation| {
            let entry = generation.selected.and_then(|index| generation.paths.get(index));
            generation.consent.is_none() && entry.is_some_and(|entry| entry.relay.is_some() && entry.remote == peer)
        };
        let waiting: Vec<AgentId> = link.generations.iter().filter(waits).map(|generation| generation.agent).collect();
        for agent in waiting {
            self.report_selected(now, id, agent);
        }
    }

    /// Reports a selected pair once data can use it, and ends the generations before it.
    fn report_selected(&mut self, now: Instant, id: LinkId, agent: AgentId) {
        let port_number = |port| self.port_number(port);
        let Some(link) = self.links.get(&id) else { return };
        let Some(position) = link.generations.iter().position(|generation| generation.agent == agent) else { return };
        let generation = &link.generations[position];
        let Some(entry) = generation.selected.and_then(|index| generation.paths.get(index)) else { return };
        if generation.consent.is_some() {
            return;
        }
        let relay = entry.relay.and_then(|server| self.relays.get(&(link.port, server)));
        let path = match (entry.relay, relay) {
            (None, _) => Path { remote: entry.remote, source: entry.source, relay: None },
            (Some(server), Some(relay)) => match relay.way(server, entry.remote, Vec::new()) {
                Some((path, _)) if path.relay.is_some() => path,
                _ => return,
            },
            (Some(_), None) => return,
        };
        let relayed = relay.and_then(|relay| relay.client.relayed());
        let (local_addr, local_kind) = local_end(link, entry, relayed, port_number(link.port));
        let (remote_addr, remote_kind) = (entry.remote, entry.kind);
        let pair = SelectedPair { path, local_addr, local_kind, remote_addr, remote_kind };
        let (number, rtt) = (generation.number, entry.rtt.value());
        self.take_over(now, id, position);
        self.event(IceEvent::Selected { link: id, generation: number, pair });
        if let Some(rtt) = rtt {
            self.event(IceEvent::RoundTrip { link: id, rtt });
        }
        self.arm_link(id);
    }

    /// A generation begins to carry data.
    fn take_over(&mut self, now: Instant, id: LinkId, position: usize) {
        let lease = self.config.lease;
        let Some(link) = self.links.get_mut(&id) else { return };
        let number = link.generations[position].number;
        link.generations[position].consent = Some(Consent::new(now, jitter(), hold(link.port, lease)));
        for generation in link.generations.iter_mut().filter(|generation| generation.number < number) {
            generation.close_at.get_or_insert(now + HANDOVER);
        }
    }

    pub(super) fn tend_generations(&mut self, now: Instant, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let (ended, kept) = std::mem::take(&mut link.generations)
            .into_iter()
            .partition(|generation: &Generation| generation.close_at.is_some_and(|at| at <= now));
        link.generations = kept;
        let ended: Vec<Generation> = ended;
        let agents: Vec<AgentId> = link.generations.iter().map(|generation| generation.agent).collect();
        self.outputs.extend(ended.iter().map(|generation| Output::StopAgent(generation.agent)));
        for agent in agents {
            self.tend_generation(now, id, agent);
        }
    }

    fn tend_generation(&mut self, now: Instant, id: LinkId, agent: AgentId) {
        let Some(generation) = self.generation(id, agent) else { return };
        let (number, is_current) = (generation.number, generation.is_current());
        if generation.relax_at().is_some_and(|at| at <= now) {
            self.change_pace(id, agent, Pace::Leisurely);
            return;
        }
        if generation.selected.is_none()
            && !generation.gave_up
            && generation.started + crate::edge::ice::generation::PATIENCE <= now
        {
            generation.gave_up = true;
            self.event(IceEvent::Failed { link: id, generation: number });
            return;
        }
        loop {
            let Some(generation) = self.generation(id, agent) else { return };
            let Some(step) = generation.consent.as_mut().and_then(|consent| consent.poll(now, jitter())) else {
                return;
            };
            match step {
                Step::Check => self.send_consent_check(now, id, agent),
                Step::Lost if is_current => self.lost(now, id, agent, number),
                Step::Lost => {}
            }
        }
    }

    fn lost(&mut self, now: Instant, id: LinkId, agent: AgentId, number: u32) {
        self.event(IceEvent::Disconnected { link: id, generation: number });
        let Some(link) = self.links.get(&id) else { return };
        let port = link.port;
        let generation = link.generations.iter().find(|generation| generation.agent == agent);
        let entry = generation.and_then(|generation| generation.paths.get(generation.selected?));
        if let Some(server) = entry.and_then(|entry| entry.relay) {
            self.probe_relay(now, (port, server));
        }
    }

    fn send_consent_check(&mut self, now: Instant, id: LinkId, agent: AgentId) {
        let Some(link) = self.links.get(&id) else { return };
        let Some(generation) = link.generations.iter().find(|generation| generation.agent == agent) else { return };
        let Some(path) = generation.selected else { return };
        let transaction = TransactionId::new();
        let username = format!("{}:{}", generation.remote.ufrag, generation.local.ufrag);
        let check = message::check(transaction, username, &generation.remote_key, generation.role, link.tie_breaker);
        self.send_request(now, id, agent, path, transaction, check, true);
    }

    pub(super) fn generation(&mut self, id: LinkId, agent: AgentId) -> Option<&mut Generation> {
        self.links.get_mut(&id)?.generations.iter_mut().find(|generation| generation.agent == agent)
    }
}

/// Our end of a pair, as the peer sees it.
fn local_end(link: &Link, entry: &Entry, relayed: Option<SocketAddr>, port: u16) -> (SocketAddr, CandidateKind) {
    if let Some(relayed) = relayed {
        return (relayed, CandidateKind::Relayed);
    }
    let unspecified = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port);
    let known = entry.mapped.or(entry.source.map(|ip| SocketAddr::new(ip, port)));
    let Some(mapped) = known else { return (unspecified, CandidateKind::PeerReflexive) };
    let is_host = mapped.port() == port && link.hosts.iter().any(|host| host.addr == mapped.ip());
    let kind = if is_host {
        CandidateKind::Host
    } else if link.reflexive.contains(&mapped) {
        CandidateKind::ServerReflexive
    } else {
        CandidateKind::PeerReflexive
    };
    (mapped, kind)
}

/// How old the last answer may become while frames come: those of a secured link say enough about the peer, but no kernel
/// forwards it, so nothing is won by keeping it for longer than RFC 7675 has it.
pub(super) fn hold(port: PortKind, lease: Duration) -> Duration {
    match port {
        PortKind::Secured => Duration::ZERO,
        PortKind::Plain => lease,
    }
}

/// A random byte that spreads consent checks; the middle when the system has none to give.
fn jitter() -> u8 {
    let mut byte = [128u8];
    match getrandom::fill(&mut byte) {
        Ok(()) => byte[0],
        Err(_) => 128,
    }
}
