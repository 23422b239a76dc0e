//! Two cores in virtual time, with agents of a few lines and a network that delays, loses and is cut.
//!
//! ```text
//!   core 0 -- Transmit --> 10 ms, loss, cut --> core 1        a STUN and TURN server answers at 203.0.113.1
//!     | ^                                        | ^
//!  agents: check every path each round, nominate the first that works
//! ```

use std::collections::{BTreeMap, HashMap};

use stun::agent::TransactionId;
use stun::attributes::{ATTR_DATA, ATTR_USE_CANDIDATE, ATTR_XOR_PEER_ADDRESS};
use stun::message::{BINDING_REQUEST, CLASS_INDICATION, METHOD_DATA, MessageType};
use stun::textattrs::Username;

use super::*;
use crate::edge::ice::agent::AgentOutput;
use crate::edge::ice::gather::Survey;
use crate::edge::ice::message::{self, Class, Incoming};
use crate::edge::ice::turn::tests::{RELAYED, Server, address};
use crate::ice::SelectedPair;
use crate::wire::request::Secret;

mod resuming;

const LINK: LinkId = LinkId(1);
const DELAY: Duration = Duration::from_millis(10);
const SERVER: &str = "203.0.113.1:3478";
const HOSTS: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
const PORT: u16 = 40001;
const LEASE: Duration = Duration::from_secs(60);

/// What webrtc-ice does, as far as the core can tell.
struct Agent {
    setup: Setup,
    next_round: Instant,
    asked: HashMap<TransactionId, bool>,
    nominated: Option<SocketAddr>,
    is_selected: bool,
}

impl Agent {
    fn check(&mut self, to: SocketAddr, nominates: bool) -> AgentOutput {
        let id = TransactionId::new();
        self.asked.insert(id, nominates);
        let Setup { link, agent, local, remote, .. } = &self.setup;
        let username = format!("{}:{}", remote.ufrag, local.ufrag);
        let mut attributes: Vec<Box<dyn stun::message::Setter>> = Vec::new();
        attributes.push(Box::new(Username::new(stun::attributes::ATTR_USERNAME, username)));
        if nominates {
            attributes.push(message::raw(ATTR_USE_CANDIDATE, Vec::new()));
        }
        let datagram = message::build(BINDING_REQUEST, id, attributes, Some(&remote.key()));
        AgentOutput::Sent { link: *link, agent: *agent, handle: to, datagram }
    }

    fn round(&mut self) -> Vec<AgentOutput> {
        if self.is_selected {
            return Vec::new();
        }
        if let Some(handle) = self.nominated.filter(|_| self.setup.role == Role::Controlling) {
            return vec![self.check(handle, true)];
        }
        let handles: Vec<SocketAddr> = self.setup.remotes.iter().map(|remote| remote.handle).collect();
        handles.into_iter().map(|handle| self.check(handle, false)).collect()
    }

    fn take(&mut self, handle: SocketAddr, datagram: &[u8]) -> Vec<AgentOutput> {
        let incoming = Incoming::parse(datagram).unwrap();
        let (link, agent) = (self.setup.link, self.setup.agent);
        let mut outputs = Vec::new();
        if incoming.class() == Class::Request {
            let key = self.setup.local.key();
            let datagram = message::answer(incoming.transaction(), handle, &key);
            outputs.push(AgentOutput::Sent { link, agent, handle, datagram });
            if self.setup.role == Role::Controlled && !self.is_selected {
                outputs.push(self.check(handle, false));
                if incoming.nominates() {
                    self.nominated = Some(handle);
                }
            }
            return outputs;
        }
        let Some(nominating) = self.asked.remove(&incoming.transaction()) else { return outputs };
        let is_last = match self.setup.role {
            Role::Controlling => nominating,
            Role::Controlled => self.nominated == Some(handle),
        };
        if self.is_selected {
            return outputs;
        }
        if is_last {
            self.is_selected = true;
            outputs.push(AgentOutput::Selected { link, agent, handle });
        } else if self.setup.role == Role::Controlling && self.nominated.is_none() {
            self.nominated = Some(handle);
            outputs.push(self.check(handle, true));
        }
        outputs
    }
}

struct Side {
    core: Core,
    agents: BTreeMap<AgentId, Agent>,
    told: Vec<(Instant, IceEvent)>,
    sent: u32,
    candidates: Vec<Candidate>,
    /// Restarts failed generations and follows the peer, as the node does.
    is_driven: bool,
}

/// Arrival, number, receiver, sender, channel, payload.
type Flying = (Instant, u64, usize, SocketAddr, Option<u16>, Vec<u8>);

struct World {
    start: Instant,
    now: Instant,
    sides: [Side; 2],
    flying: BinaryHeap<Reverse<Flying>>,
    count: u64,
    loss_percent: u64,
    seed: u64,
    is_cut: bool,
    has_server: bool,
    has_direct_way: bool,
    turn: Server,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let side = |_| Side {
            core: Core::new(CoreConfig {
                tap_name: "ipop".into(),
                secured_port: PORT,
                plain_port: PORT + 1,
                direct_plain_port: None,
                lease: LEASE,
            }),
            agents: BTreeMap::new(),
            told: Vec::new(),
            sent: 0,
            candidates: Vec::new(),
            is_driven: false,
        };
        Self {
            start: now,
            now,
            sides: [0, 1].map(side),
            flying: BinaryHeap::new(),
            count: 0,
            loss_percent: 0,
            seed,
            is_cut: false,
            has_server: true,
            has_direct_way: true,
            turn: Server::new(),
        }
    }

    /// Two sides with candidates, and checks under way.
    fn connected(seed: u64) -> Self {
        let mut world = Self::new(seed);
        world.gather(None);
        world.check(0);
        world.check(1);
        world.run(Duration::from_secs(2));
        assert_eq!(world.selected(0).len() + world.selected(1).len(), 2);
        world
    }

    fn gather(&mut self, stun: Option<&str>) {
        for (side, role) in [Role::Controlling, Role::Controlled].into_iter().enumerate() {
            let stun = stun.map(str::to_owned);
            self.command(side, IceCommand::Gather { link: LINK, port: PortKind::Secured, role, stun, turn: None });
        }
        self.run(Duration::from_secs(2));
    }

    fn check(&mut self, side: usize) {
        let candidates = self.sides[1 - side].candidates.clone();
        assert!(!candidates.is_empty());
        self.command(side, IceCommand::Check { link: LINK, candidates });
    }

    fn command(&mut self, side: usize, command: IceCommand) {
        self.sides[side].core.handle_command(self.now, command);
        self.settle(side);
    }

    fn selected(&self, side: usize) -> Vec<(u32, SelectedPair)> {
        let told = self.sides[side].told.iter();
        told.filter_map(|(_, event)| {
            let IceEvent::Selected { generation, pair, .. } = event else { return None };
            Some((*generation, *pair))
        })
        .collect()
    }

    /// When an event was told first.
    fn when(&self, side: usize, pick: impl Fn(&IceEvent) -> bool) -> Option<Instant> {
        self.sides[side].told.iter().find(|(_, event)| pick(event)).map(|(at, _)| *at)
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let cores = self.sides.iter().filter_map(|side| side.core.deadline());
            let agents = self.sides.iter().flat_map(|side| side.agents.values().map(|agent| agent.next_round));
            let flying = self.flying.peek().map(|Reverse((at, ..))| *at);
            let Some(next) = cores.chain(agents).chain(flying).min().filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            self.turn();
        }
        self.now = end;
    }

    fn turn(&mut self) {
        while let Some(Reverse((at, ..))) = self.flying.peek()
            && *at <= self.now
        {
            let Some(Reverse((_, _, to, from, channel, datagram))) = self.flying.pop() else { return };
            let flow = FlowKey { port: PortKind::Secured, from, channel };
            let own = HOSTS[to].parse().unwrap();
            self.sides[to].core.handle_datagram(self.now, flow, Some(own), &datagram);
            self.settle(to);
        }
        for side in 0..2 {
            let mut outputs = Vec::new();
            for agent in self.sides[side].agents.values_mut().filter(|agent| agent.next_round <= self.now) {
                agent.next_round = self.now + agent.setup.check_interval;
                outputs.extend(agent.round());
            }
            for output in outputs {
                self.sides[side].core.handle_agent(self.now, output);
            }
            self.sides[side].core.handle_timeout(self.now);
            self.settle(side);
        }
    }

    fn settle(&mut self, side: usize) {
        while let Some(output) = self.sides[side].core.poll_output() {
            let mut agent_outputs = Vec::new();
            let agents = &mut self.sides[side].agents;
            match output {
                Output::Event(event) => self.tell(side, event),
                Output::Transmit { port: _, path, datagram } => self.fly(side, &path, datagram),
                Output::Survey(request) => {
                    let hosts = vec![HostAddress { interface: "eth0".into(), addr: HOSTS[side].parse().unwrap() }];
                    let stun = request.stun.map(|name| name.parse().unwrap()).into_iter().collect();
                    let turn = request.turn.map(|name| name.parse().unwrap()).into_iter().collect();
                    let survey = Survey { hosts, stun, turn, problems: Vec::new() };
                    self.sides[side].core.handle_survey(self.now, request.link, survey);
                }
                Output::StartAgent(setup) => {
                    let (id, next_round) = (setup.agent, self.now);
                    let asked = HashMap::new();
                    agents.insert(id, Agent { setup, next_round, asked, nominated: None, is_selected: false });
                }
                Output::Deliver { agent, handle, datagram } => {
                    if let Some(agent) = agents.get_mut(&agent) {
                        agent_outputs = agent.take(handle, &datagram);
                    }
                }
                Output::AddRemote { agent, remote } => {
                    if let Some(agent) = agents.get_mut(&agent) {
                        agent.setup.remotes.push(remote);
                    }
                }
                Output::StopAgent(agent) => drop(agents.remove(&agent)),
            }
            for output in agent_outputs {
                self.sides[side].core.handle_agent(self.now, output);
            }
        }
    }

    fn tell(&mut self, side: usize, event: IceEvent) {
        let at = self.now;
        if let IceEvent::Gathered { candidates, .. } = &event {
            self.sides[side].candidates.clone_from(candidates);
        }
        let restart = if let IceEvent::PeerRestarted { generation, .. } = &event {
            Some(*generation)
        } else {
            matches!(event, IceEvent::Failed { .. }).then_some(1)
        };
        self.sides[side].told.push((at, event));
        if let Some(generation) = restart.filter(|_| self.sides[side].is_driven) {
            self.sides[side].core.handle_command(self.now, IceCommand::Restart { link: LINK, generation });
        }
    }

    fn fly(&mut self, side: usize, path: &Path, datagram: Vec<u8>) {
        self.sides[side].sent += 1;
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if self.is_cut || (self.seed >> 33) % 100 < self.loss_percent {
            return;
        }
        let (own, peer) = (host(side), host(1 - side));
        if let Some(hop) = path.relay {
            if let Some((to, _)) = self.turn.channels.get(&hop.channel).filter(|_| self.turn.allocation.is_some()) {
                assert_eq!((*to, hop.server), (path.remote, SERVER.parse().unwrap()));
                self.arrive(2 * DELAY, 1 - side, RELAYED.parse().unwrap(), None, datagram);
            }
        } else if path.remote == SERVER.parse().unwrap() {
            self.serve(side, &datagram);
        } else if path.remote == RELAYED.parse().unwrap() {
            self.relay_back(own, 1 - side, datagram);
        } else if path.remote == peer && self.has_direct_way {
            self.arrive(DELAY, 1 - side, own, None, datagram);
        }
    }

    fn arrive(&mut self, delay: Duration, to: usize, from: SocketAddr, channel: Option<u16>, datagram: Vec<u8>) {
        self.count += 1;
        self.flying.push(Reverse((self.now + delay, self.count, to, from, channel, datagram)));
    }

    /// The server got a message of a side.
    fn serve(&mut self, side: usize, datagram: &[u8]) {
        let message = Incoming::parse(datagram).unwrap();
        let answer = if message.is_binding() {
            let mapped = SocketAddr::new([198, 51, 100, u8::try_from(side).unwrap()].into(), 5000);
            Some(message::answer(message.transaction(), mapped, &message::short_term_key("x")))
        } else if message.class() == Class::Indication {
            let peer = message.address(ATTR_XOR_PEER_ADDRESS).unwrap();
            if self.turn.permissions.contains_key(&peer) && peer == host(1 - side) {
                self.arrive(2 * DELAY, 1 - side, RELAYED.parse().unwrap(), None, message.value(ATTR_DATA).unwrap());
            }
            None
        } else {
            self.turn.answer(self.now, datagram)
        };
        if let Some(answer) = answer.filter(|_| self.has_server) {
            self.arrive(2 * DELAY, side, SERVER.parse().unwrap(), None, answer);
        }
    }

    /// A datagram came to the relayed address.
    fn relay_back(&mut self, from: SocketAddr, to: usize, datagram: Vec<u8>) {
        if self.turn.allocation.is_none() || !self.turn.permissions.contains_key(&from) {
            return;
        }
        let server = SERVER.parse().unwrap();
        let channel = self.turn.channels.iter().find(|(_, (peer, _))| *peer == from).map(|(number, _)| *number);
        let payload = if channel.is_some() {
            datagram
        } else {
            let typ = MessageType::new(METHOD_DATA, CLASS_INDICATION);
            let attributes = vec![address(ATTR_XOR_PEER_ADDRESS, &from.to_string()), message::raw(ATTR_DATA, datagram)];
            message::build(typ, TransactionId::new(), attributes, None)
        };
        self.arrive(2 * DELAY, to, server, channel, payload);
    }

    /// The controlling side has an allocation; both check.
    fn relayed(has_direct_way: bool) -> Self {
        let mut world = Self::new(9);
        world.has_direct_way = has_direct_way;
        let account = TurnServer { address: SERVER.into(), username: "user".into(), password: Secret("right".into()) };
        for (side, role, turn) in [(0, Role::Controlling, Some(account)), (1, Role::Controlled, None)] {
            world.command(side, IceCommand::Gather { link: LINK, port: PortKind::Secured, role, stun: None, turn });
        }
        world.run(Duration::from_secs(1));
        assert_eq!(world.sides[0].candidates.len(), 2);
        world.check(0);
        world.check(1);
        world.run(Duration::from_secs(5));
        world
    }
}

fn host(side: usize) -> SocketAddr {
    SocketAddr::new(HOSTS[side].parse().unwrap(), PORT)
}

fn is_lost(event: &IceEvent) -> bool {
    matches!(event, IceEvent::Disconnected { .. })
}

fn is_back(event: &IceEvent) -> bool {
    matches!(event, IceEvent::Reconnected { .. })
}

#[test]
fn a_link_survives_cuts_of_any_length_without_a_restart() {
    for seconds in [8, 60, 600, 86_400] {
        let mut world = World::connected(1);
        let cut_at = world.now;
        world.is_cut = true;
        world.run(Duration::from_secs(seconds));
        let healed_at = world.now;
        world.is_cut = false;
        world.run(Duration::from_secs(30));
        for side in 0..2 {
            let lost = world.when(side, is_lost).expect("it is noticed") - cut_at;
            let back = world.when(side, is_back).expect("it is noticed") - healed_at;
            assert!((3..=5).contains(&lost.as_secs()), "{lost:?}");
            assert!(back < Duration::from_secs(2), "{back:?}");
            assert_eq!(world.sides[side].told.iter().filter(|(_, event)| is_lost(event) || is_back(event)).count(), 2);
        }
    }
}

#[test]
fn a_cut_shorter_than_the_patience_is_not_told() {
    let mut world = World::connected(2);
    world.is_cut = true;
    world.run(Duration::from_millis(2800));
    world.is_cut = false;
    world.run(Duration::from_secs(30));
    assert!((0..2).all(|side| world.when(side, is_lost).is_none()));
}

#[test]
fn a_third_of_loss_delays_a_link_by_less_than_two_seconds_and_does_not_end_it() {
    for seed in 0..50 {
        let mut world = World::new(seed);
        world.gather(None);
        world.loss_percent = 33;
        let start = world.now;
        world.check(0);
        world.check(1);
        world.run(Duration::from_secs(120));
        for side in 0..2 {
            let at = world.when(side, |event| matches!(event, IceEvent::Selected { .. })).expect("it connects");
            assert!(at - start < Duration::from_secs(2), "seed {seed}: {:?}", at - start);
        }
        world.loss_percent = 0;
        world.run(Duration::from_secs(5));
        for side in &world.sides {
            let last = side.told.iter().rfind(|(_, event)| is_lost(event) || is_back(event));
            assert!(last.is_none_or(|(_, event)| is_back(event)), "seed {seed}: lost for good");
        }
    }
}

#[test]
fn a_silent_peer_fails_after_half_a_minute_and_is_asked_at_leisure_for_ever() {
    let mut world = World::new(3);
    world.gather(None);
    world.sides[0].is_driven = true;
    let start = world.now;
    let before = world.sides[0].sent;
    world.check(0);
    world.run(Duration::from_secs(31));
    let failed = world.when(0, |event| matches!(event, IceEvent::Failed { generation: 0, .. })).unwrap() - start;
    assert_eq!(failed.as_secs(), 30);
    let eager = world.sides[0].sent - before;
    assert!((100..250).contains(&eager), "{eager}");
    world.run(Duration::from_secs(29));
    let intervals: Vec<Duration> = world.sides[0].agents.values().map(|agent| agent.setup.check_interval).collect();
    assert_eq!(intervals, [Duration::from_millis(200)]);
    let before = world.sides[0].sent;
    world.run(Duration::from_secs(600));
    let leisurely = world.sides[0].sent - before;
    assert!((200..=400).contains(&leisurely), "{leisurely}");
    let failures =
        world.sides[0].told.iter().filter(|(_, event)| matches!(event, IceEvent::Failed { generation: 1, .. }));
    assert!((20..=21).contains(&failures.count()));
}

#[test]
fn a_peer_that_comes_late_is_connected_within_half_a_second() {
    for (early, seconds) in [(0, 600), (1, 600), (0, 3), (1, 3)] {
        let mut world = World::new(4);
        world.gather(None);
        world.sides.iter_mut().for_each(|side| side.is_driven = true);
        world.check(early);
        world.run(Duration::from_secs(seconds));
        let start = world.now;
        world.check(1 - early);
        world.run(Duration::from_secs(20));
        for side in 0..2 {
            let at = world.when(side, |event| matches!(event, IceEvent::Selected { .. })).expect("it connects") - start;
            assert!(at < Duration::from_millis(500), "{at:?}");
        }
        assert_eq!(world.selected(0)[0].0, world.selected(1)[0].0);
    }
}

#[test]
fn a_stun_server_adds_a_candidate_and_a_silent_one_a_problem() {
    let told = |world: &World| {
        world.sides[0].told.iter().find_map(|(at, event)| {
            let IceEvent::Gathered { candidates, problems, .. } = event else { return None };
            Some((*at - world.start, candidates.clone(), problems.clone()))
        })
    };
    let mut world = World::new(5);
    world.gather(Some(SERVER));
    let (at, candidates, problems) = told(&world).unwrap();
    assert_eq!((at, problems.len()), (2 * DELAY, 0));
    let kinds: Vec<(CandidateKind, String)> =
        candidates.iter().map(|candidate| (candidate.kind, candidate.addr.to_string())).collect();
    let (host, reflexive) = ("192.0.2.1:40001".to_owned(), "198.51.100.0:5000".to_owned());
    assert_eq!(kinds, [(CandidateKind::Host, host), (CandidateKind::ServerReflexive, reflexive)]);
    assert!(candidates[0].priority > candidates[1].priority);

    let mut world = World::new(6);
    world.has_server = false;
    world.gather(Some(SERVER));
    let (at, candidates, problems) = told(&world).unwrap();
    assert_eq!((at, candidates.len()), (Duration::from_millis(1500), 1));
    assert!(problems[0].contains(SERVER), "{problems:?}");
}

#[test]
fn a_flood_of_genuine_early_checks_keeps_no_more_than_a_few() {
    let mut world = World::new(7);
    world.gather(None);
    let ours = world.sides[0].candidates[0].clone();
    let credentials = Credentials { ufrag: ours.ufrag.clone(), pwd: ours.pwd };
    for port in 1..1000 {
        let id = TransactionId::new();
        let name = format!("{}:whoever", ours.ufrag);
        let check = message::check(id, name, &credentials.key(), Role::Controlled, 1);
        let flow =
            FlowKey { port: PortKind::Secured, from: SocketAddr::new(HOSTS[1].parse().unwrap(), port), channel: None };
        world.sides[0].core.handle_datagram(world.now, flow, None, &check);
    }
    world.settle(0);
    assert!(world.sides[0].core.links[&LINK].early.len() <= 8);
    assert_eq!(world.sides[0].sent, 0);
}

#[test]
fn nothing_of_a_closed_link_is_kept() {
    let mut world = World::connected(8);
    world.command(0, IceCommand::Close { link: LINK });
    let sent = world.sides[0].sent;
    world.run(Duration::from_secs(60));
    let side = &world.sides[0];
    assert_eq!(side.sent, sent);
    assert!(side.agents.is_empty() && side.core.links.is_empty() && side.core.names.is_empty());
    assert!(side.core.armed.is_empty() && side.core.deadline().is_none());
}

#[test]
fn a_relayed_pair_is_selected_after_half_a_second_when_nothing_else_works() {
    let world = World::relayed(false);
    let at = world.when(0, |event| matches!(event, IceEvent::Selected { .. })).expect("it connects");
    // Gathering had the first second.
    let took = at - world.start;
    assert!(took > Duration::from_millis(1500) && took < Duration::from_millis(1900), "{took:?}");
    let (ours, theirs) = (world.selected(0)[0].1, world.selected(1)[0].1);
    let relayed: SocketAddr = RELAYED.parse().unwrap();
    assert_eq!((ours.local_addr, ours.local_kind), (relayed, CandidateKind::Relayed));
    assert_eq!((ours.remote_addr, ours.remote_kind), (host(1), CandidateKind::Host));
    let hop = ours.path.relay.unwrap();
    assert_eq!(world.turn.channels[&hop.channel].0, host(1));
    assert_eq!((theirs.remote_addr, theirs.remote_kind), (relayed, CandidateKind::Relayed));
    assert_eq!(theirs.path.relay, None);
}

#[test]
fn a_direct_pair_is_preferred_to_a_relayed_one() {
    let world = World::relayed(true);
    for side in 0..2 {
        let pair = world.selected(side)[0].1;
        assert_eq!((pair.path.relay, pair.remote_addr), (None, host(1 - side)));
    }
}

#[test]
fn a_relayed_link_comes_back_by_itself_when_its_server_forgot_it() {
    let mut world = World::relayed(false);
    world.turn.allocation = None;
    world.turn.channels.clear();
    world.turn.permissions.clear();
    let start = world.now;
    world.run(Duration::from_secs(15));
    for side in 0..2 {
        let back = world.when(side, is_back).expect("it comes back") - start;
        assert!(back < Duration::from_secs(8), "{back:?}");
    }
}
