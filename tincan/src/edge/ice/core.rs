//! The links of the ICE edge, without sockets, tasks and clocks: inputs are methods that take the time, outputs are
//! drained with [`Core::poll_output`], [`Core::deadline`] says when to come back.
//!
//! `core` holds the tables, the commands and the timers; `core::gathering` collects candidates, `core::checking` moves
//! messages between the agents and the wire, `core::relaying` runs the TURN clients, `core::resuming` goes on with links of
//! another process.

mod checking;
mod gathering;
mod relaying;
mod resuming;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::edge::ice::agent::{AgentId, Remote, Setup};
use crate::edge::ice::core::checking::Transactions;
use crate::edge::ice::core::relaying::Relay;
use crate::edge::ice::credentials::Credentials;
use crate::edge::ice::gather::{Gathering, HostAddress, SurveyRequest};
use crate::edge::ice::generation::{Generation, Pace, reflexive_candidate};
use crate::edge::ice::reflexive::Query;
use crate::ice::{IceCommand, IceEvent};
use crate::link::{CandidateKind, FlowKey, LinkId, Path, PortKind, Role};
use crate::wire::candidate::Candidate;
use crate::wire::request::TurnServer;

/// Most links at a time.
const MAX_LINKS: usize = 4096;
/// A replaced generation runs on for this long, so that the peer can finish its switch.
const HANDOVER: Duration = Duration::from_secs(1);

/// One of our ports and a server it talks to.
pub type ServerKey = (PortKind, SocketAddr);

/// What the edge is to do.
#[derive(Debug)]
pub enum Output {
    Event(IceEvent),
    Transmit {
        port: PortKind,
        path: Path,
        datagram: Vec<u8>,
    },
    /// Look addresses and names up; the answer comes back through [`Core::handle_survey`].
    Survey(SurveyRequest),
    StartAgent(Setup),
    /// Hand an agent a message.
    Deliver {
        agent: AgentId,
        handle: SocketAddr,
        datagram: Vec<u8>,
    },
    /// Give an agent one more address to try.
    AddRemote {
        agent: AgentId,
        remote: Remote,
    },
    StopAgent(AgentId),
}

/// What the core is made with.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Our TAP, whose addresses are never offered.
    pub tap_name: String,
    pub secured_port: u16,
    pub plain_port: u16,
    /// The number the plain socket itself has, where it is known by another: offered last, for peers on the same host or
    /// behind interfaces other than Ethernet, which the translation does not reach.
    pub direct_plain_port: Option<u16>,
    /// How long frames hold a plain link whose checks are not answered.
    pub lease: Duration,
}

/// A request for a generation that has no agent yet.
#[derive(Debug)]
struct Early {
    flow: FlowKey,
    arrival: crate::edge::ice::paths::Arrival,
    datagram: Vec<u8>,
}

struct Link {
    port: PortKind,
    role: Role,
    local: Credentials,
    /// Sent in role attributes of consent checks (RFC 8445 section 7.1.2).
    tie_breaker: u64,
    /// Credentials of generation 0 and candidates of the peer, once known.
    remote: Option<(Credentials, Vec<Candidate>)>,
    hosts: Vec<HostAddress>,
    reflexive: Vec<SocketAddr>,
    turn: Option<TurnServer>,
    relay: Option<ServerKey>,
    gathering: Option<Gathering>,
    generations: Vec<Generation>,
    early: Vec<Early>,
    /// Latest generation of the peer that was reported.
    announced: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Timer {
    Link(LinkId),
    Query(ServerKey),
    Relay(ServerKey),
}

#[derive(Debug)]
struct Querying {
    query: Query,
    links: BTreeSet<LinkId>,
}

/// See the module's head.
pub struct Core {
    config: CoreConfig,
    ignored: Vec<String>,
    links: HashMap<LinkId, Link>,
    /// Our signalled names.
    names: HashMap<String, LinkId>,
    queries: HashMap<ServerKey, Querying>,
    relays: HashMap<ServerKey, Relay>,
    transactions: Transactions,
    next_agent: u64,
    outputs: VecDeque<Output>,
    timers: BinaryHeap<Reverse<(Instant, Timer)>>,
    armed: HashMap<Timer, Instant>,
}

impl Core {
    pub fn new(config: CoreConfig) -> Self {
        Self {
            config,
            ignored: Vec::new(),
            links: HashMap::new(),
            names: HashMap::new(),
            queries: HashMap::new(),
            relays: HashMap::new(),
            transactions: Transactions::default(),
            next_agent: 0,
            outputs: VecDeque::new(),
            timers: BinaryHeap::new(),
            armed: HashMap::new(),
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Core::handle_timeout`] has something to do next.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    pub fn handle_command(&mut self, now: Instant, command: IceCommand) {
        match command {
            IceCommand::Gather { link, port, role, stun, turn } => self.gather(now, link, port, role, stun, turn),
            IceCommand::Check { link, candidates } => self.check(now, link, candidates),
            IceCommand::Restart { link, generation } => self.restart(now, link, generation),
            IceCommand::Resume { link, port, role, resumption } => self.resume(now, link, port, role, *resumption),
            IceCommand::TrafficSeen { link } => self.traffic_seen(now, link),
            IceCommand::Close { link } => self.close(now, link),
            IceCommand::IgnoreInterfaces { names } => self.ignored = names,
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&Reverse((at, timer))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            if self.armed.get(&timer) != Some(&at) {
                continue;
            }
            self.armed.remove(&timer);
            match timer {
                Timer::Link(link) => self.tend_link(now, link),
                Timer::Query(key) => self.tend_query(now, key),
                Timer::Relay(key) => self.tend_relay(now, key),
            }
        }
    }

    /// The peer's candidates came. Those of a peer already being checked are added; other credentials start afresh.
    fn check(&mut self, now: Instant, id: LinkId, candidates: Vec<Candidate>) {
        let Some(first) = candidates.first() else {
            tracing::debug!(link = %id, "the peer offered no candidates");
            return;
        };
        let Some(link) = self.links.get_mut(&id) else { return };
        let credentials = Credentials { ufrag: first.ufrag.clone(), pwd: first.pwd.clone() };
        let (matching, others): (Vec<Candidate>, Vec<Candidate>) =
            candidates.into_iter().partition(|candidate| candidate.ufrag == credentials.ufrag);
        if !others.is_empty() {
            tracing::debug!(link = %id, ignored = others.len(), "candidates with other credentials than the first");
        }
        match &mut link.remote {
            Some((known, list)) if *known == credentials => {
                list.extend(matching);
                self.widen(now, id);
            }
            _ => {
                link.remote = Some((credentials, matching));
                link.announced = 0;
                for generation in std::mem::take(&mut link.generations) {
                    self.outputs.push_back(Output::StopAgent(generation.agent));
                }
                self.start_generation(now, id, 0, now);
            }
        }
    }

    /// Begins a later generation beside the working one, or a failed one again; one that never came to work is dropped.
    fn restart(&mut self, now: Instant, id: LinkId, number: u32) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(newest) = link.generations.iter().max_by_key(|generation| generation.number) else { return };
        let is_again = number == newest.number && newest.gave_up && newest.consent.is_none();
        if number <= newest.number && !is_again {
            tracing::debug!(link = %id, number, "a restart that is not later than what runs");
            return;
        }
        let first_started = if is_again { newest.first_started } else { now };
        let (kept, dropped) = std::mem::take(&mut link.generations)
            .into_iter()
            .partition(|generation| generation.consent.is_some() && generation.is_current());
        link.generations = kept;
        let dropped: Vec<Generation> = dropped;
        self.outputs.extend(dropped.iter().map(|generation| Output::StopAgent(generation.agent)));
        self.outputs.push_back(Output::Survey(SurveyRequest { link: id, stun: None, turn: None }));
        self.start_generation(now, id, number, first_started);
    }

    fn start_generation(&mut self, now: Instant, id: LinkId, number: u32, first_started: Instant) {
        self.next_agent += 1;
        let agent = AgentId(self.next_agent);
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some((credentials, candidates)) = &link.remote else { return };
        let mut generation = Generation::new(now, agent, number, link.role, &link.local, credentials);
        generation.first_started = first_started;
        if first_started < now {
            generation.pace = Pace::Leisurely;
        }
        let learned: Vec<Candidate> =
            learned_addresses(&link.generations).into_iter().map(reflexive_candidate).collect();
        for candidate in candidates.iter().chain(&learned) {
            generation.add_candidate(candidate, None);
        }
        self.outputs.push_back(Output::StartAgent(generation.setup(id)));
        let name = generation.local.ufrag.clone();
        link.generations.push(generation);
        self.widen(now, id);
        self.replay_early(now, id, &name);
        self.arm_link(id);
    }

    /// Replaces an agent that never heard of its peer by one that checks more or less often; the new one's name.
    fn change_pace(&mut self, id: LinkId, agent: AgentId, pace: Pace) -> AgentId {
        let Some(link) = self.links.get_mut(&id) else { return agent };
        let Some(generation) = link.generations.iter_mut().find(|generation| generation.agent == agent) else {
            return agent;
        };
        self.next_agent += 1;
        generation.agent = AgentId(self.next_agent);
        generation.pace = pace;
        generation.outstanding = 0;
        self.outputs.push_back(Output::StopAgent(agent));
        self.outputs.push_back(Output::StartAgent(generation.setup(id)));
        generation.agent
    }

    /// Gives the newest generation the paths it does not have yet: to every candidate, directly and through our relay.
    fn widen(&mut self, now: Instant, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some((_, candidates)) = &link.remote else { return };
        let relay = link.relay.and_then(|key| self.relays.get_mut(&key).map(|relay| (key, relay)));
        let Some(generation) = link.generations.iter_mut().max_by_key(|generation| generation.number) else { return };
        let mut remotes: Vec<Remote> =
            candidates.iter().filter_map(|candidate| generation.add_candidate(candidate, None)).collect();
        let mut touched = None;
        if let Some((key, relay)) = relay.filter(|(_, relay)| relay.client.relayed().is_some()) {
            for candidate in candidates {
                if relay.client.add_peer(now, candidate.addr, id) {
                    remotes.extend(generation.add_candidate(candidate, Some(key.1)));
                }
            }
            touched = Some(key);
        }
        let agent = generation.agent;
        self.outputs.extend(remotes.into_iter().map(|remote| Output::AddRemote { agent, remote }));
        if let Some(key) = touched {
            self.flush_relay(now, key);
        }
    }

    fn close(&mut self, now: Instant, id: LinkId) {
        let Some(link) = self.links.remove(&id) else { return };
        self.names.remove(&link.local.ufrag);
        for generation in &link.generations {
            self.outputs.push_back(Output::StopAgent(generation.agent));
        }
        for querying in self.queries.values_mut() {
            querying.links.remove(&id);
        }
        if let Some(key) = link.relay {
            self.leave_relay(now, key, id);
        }
        self.armed.remove(&Timer::Link(id));
    }

    /// Does what is due for a link.
    fn tend_link(&mut self, now: Instant, id: LinkId) {
        self.finish_gathering(now, id);
        self.tend_generations(now, id);
        self.arm_link(id);
    }

    fn arm_link(&mut self, id: LinkId) {
        let Some(link) = self.links.get(&id) else { return };
        let gathering = link.gathering.as_ref().and_then(Gathering::deadline);
        let at = link.generations.iter().filter_map(Generation::deadline).chain(gathering).min();
        self.arm(Timer::Link(id), at);
    }

    fn arm(&mut self, timer: Timer, at: Option<Instant>) {
        let Some(at) = at else {
            self.armed.remove(&timer);
            return;
        };
        if self.armed.insert(timer, at) != Some(at) {
            self.timers.push(Reverse((at, timer)));
        }
    }

    fn port_number(&self, port: PortKind) -> u16 {
        match port {
            PortKind::Secured => self.config.secured_port,
            PortKind::Plain => self.config.plain_port,
        }
    }

    fn event(&mut self, event: IceEvent) {
        self.outputs.push_back(Output::Event(event));
    }
}

/// Addresses of the peer that only its checks told, in generations that work or worked.
fn learned_addresses(generations: &[Generation]) -> Vec<SocketAddr> {
    let entries = generations.iter().flat_map(|generation| generation.paths.iter());
    entries
        .filter(|entry| entry.kind == CandidateKind::PeerReflexive && entry.relay.is_none())
        .map(|entry| entry.remote)
        .collect()
}

#[cfg(test)]
mod tests;
