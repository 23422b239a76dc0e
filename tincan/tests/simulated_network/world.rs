//! A network of pure nodes in virtual time: a controller that carries `con_resp`, ICE and DTLS reduced to when they
//! would succeed, cables that can be pulled.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use tincan::ice::{IceCommand, IceEvent, Resumption, SelectedPair};
use tincan::link::{CandidateKind, LinkId, Path, Security, Traffic};
use tincan::node::{LinkProtection, Node, Output, TrafficSource};
use tincan::wire::answer::Answer;
use tincan::wire::candidate::Candidate;
use tincan::wire::fingerprint::Fingerprint;
use tincan::wire::notification::{LinkStatus, Notification};
use tincan::wire::request::{CreateLink, LocalIp, Overlay, Request};
use tincan::wire::uid::Uid;

/// One-way delay of every datagram.
const DELAY: Duration = Duration::from_millis(10);
const SILENCE: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(2);
const GENERATION_LIFE: Duration = Duration::from_secs(30);

/// Something that will happen to a node.
#[derive(Clone, Debug)]
enum Happening {
    Call(Request),
    Ice(IceEvent),
    Authenticated(LinkId),
    SessionEnded(LinkId, String),
    Wake,
}

/// An ICE agent as far as the node can tell.
#[derive(Debug, Default)]
struct Agent {
    own_ufrag: String,
    remote_ufrag: Option<String>,
    pending: Option<u32>,
    selected: Option<u32>,
    silent: bool,
}

/// A link's data plane as far as the node can tell.
#[derive(Debug)]
struct Engine {
    uid: Uid,
    protection: LinkProtection,
    path: bool,
    established: bool,
    forwarding: bool,
}

/// A host of the simulation.
pub struct Host {
    pub node: Node,
    pub uid: Uid,
    pub fingerprint: Fingerprint,
    pub statuses: Vec<(Uid, LinkStatus)>,
    agents: BTreeMap<LinkId, Agent>,
    engines: BTreeMap<LinkId, Engine>,
    unplugged: bool,
    dead: bool,
}

/// The whole network.
pub struct World {
    pub now: Instant,
    pub hosts: Vec<Host>,
    /// Deliver every `con_resp` this many times.
    pub copies: usize,
    pub security: Security,
    epoch: Instant,
    random: u64,
    sequence: u64,
    queue: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    happenings: BTreeMap<u64, Happening>,
    flow: Vec<String>,
}

struct NoTraffic;

impl TrafficSource for NoTraffic {
    fn traffic(&self, _link: LinkId) -> Traffic {
        Traffic::default()
    }

    fn engine(&self, _link: LinkId) -> &'static str {
        "user"
    }
}

pub fn fingerprint_of(index: usize) -> Fingerprint {
    Fingerprint::Sha256([u8::try_from(index % 255).unwrap() + 1; 32])
}

fn ufrag_of(host: usize, link: LinkId) -> String {
    format!("ufrag{host:04}{:07}", link.0)
}

impl World {
    pub fn new(seed: u64, hosts: usize, security: Security) -> Self {
        println!("seed {seed}");
        let epoch = Instant::now();
        let mut world = Self {
            now: epoch,
            hosts: Vec::new(),
            copies: 1,
            security,
            epoch,
            random: seed.wrapping_mul(2) + 1,
            sequence: 0,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            flow: Vec::new(),
        };
        for index in 0..hosts {
            let host = world.new_host(index, fingerprint_of(index));
            world.hosts.push(host);
        }
        world
    }

    fn new_host(&mut self, index: usize, fingerprint: Fingerprint) -> Host {
        let mut bytes = [0; 20];
        let number = u32::try_from(index).unwrap();
        bytes[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b1).to_be_bytes());
        bytes[16..].copy_from_slice(&number.to_be_bytes());
        let uid = Uid::new(bytes);
        let mut node = Node::new(self.random());
        let ip4 = Ipv4Addr::from(0xac10_0001 + number);
        let ip6 = Ipv6Addr::from(0xfd50_0000_0000_0000_0000_0000_0000_0001 + u128::from(number));
        node.set_local(
            LocalIp {
                uid,
                ip4,
                ip4_text: ip4.to_string(),
                ip6,
                ip6_text: ip6.to_string(),
                ip4_mask: 16,
                ip6_mask: 64,
                subnet_mask: 32,
            },
            fingerprint,
        );
        Host {
            node,
            uid,
            fingerprint,
            statuses: Vec::new(),
            agents: BTreeMap::new(),
            engines: BTreeMap::new(),
            unplugged: false,
            dead: false,
        }
    }

    /// Small deterministic random numbers.
    pub fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    pub fn random_delay(&mut self, most: Duration) -> Duration {
        let millis = u64::try_from(most.as_millis()).unwrap().max(1);
        Duration::from_millis(self.random() % millis)
    }

    /// The `create_link` that host `from` is given for host `to`.
    pub fn create_link(&self, from: usize, to: usize, cas: &str) -> Request {
        assert_ne!(from, to);
        let fingerprint = self.hosts[to].fingerprint;
        Request::CreateLink(CreateLink {
            uid: self.hosts[to].uid,
            fingerprint_text: fingerprint.to_string(),
            fingerprint: Some(fingerprint),
            overlay: Overlay::Controller,
            stun: None,
            turn: None,
            security: self.security,
            cas: cas.to_owned(),
        })
    }

    pub fn call_after(&mut self, delay: Duration, host: usize, request: Request) {
        self.schedule(delay, host, Happening::Call(request));
    }

    /// Takes the host's cable out or puts it back.
    pub fn set_unplugged(&mut self, host: usize, unplugged: bool) {
        self.hosts[host].unplugged = unplugged;
        self.note(host, if unplugged { "cable pulled" } else { "cable back" });
        self.update_liveness();
        self.settle();
    }

    /// The daemon is killed: nothing more comes from it.
    pub fn kill(&mut self, host: usize) {
        self.hosts[host].dead = true;
        self.note(host, "killed");
        self.update_liveness();
    }

    /// The daemon starts again with an empty memory and this certificate.
    pub fn restart(&mut self, host: usize, fingerprint: Fingerprint) {
        self.hosts[host] = self.new_host(host, fingerprint);
        self.note(host, "started again");
    }

    /// The daemon starts again with what it knew when it was killed.
    pub fn resume(&mut self, host: usize) {
        let fingerprint = self.hosts[host].fingerprint;
        let snapshot = self.hosts[host].node.snapshot(self.now).expect("it has a link to resume");
        let mut node = Node::new(self.random());
        node.resume(self.now, snapshot, fingerprint);
        self.hosts[host] = Host { node, ..self.new_host(host, fingerprint) };
        self.note(host, "resumed");
        self.settle();
    }

    /// Runs until nothing is left to do or the time is over.
    pub fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        self.settle();
        while let Some(Reverse((at, _, _))) = self.queue.peek()
            && *at <= end
        {
            let Some(Reverse((at, sequence, host))) = self.queue.pop() else { break };
            self.now = at;
            if let Some(happening) = self.happenings.remove(&sequence) {
                self.happen(host, happening);
            }
            self.settle();
        }
        self.now = end;
    }

    /// Online as both nodes report it, with frames flowing both ways.
    pub fn linked(&mut self, a: usize, b: usize) -> bool {
        self.online(a, b) && self.online(b, a)
    }

    pub fn online(&mut self, from: usize, to: usize) -> bool {
        let uid = self.hosts[to].uid;
        let now = self.now;
        let host = &mut self.hosts[from];
        let Answer::State(state) =
            host.node.handle_request(now, Request::GetState { uid: Some(uid), stats: true }, &NoTraffic)
        else {
            panic!("get_state answers a state");
        };
        let reported = state.peers[0].link.as_ref().is_some_and(|link| link.online);
        let flowing = host.engines.values().filter(|engine| engine.uid == uid && engine.forwarding).count();
        assert!(flowing <= 1, "two links to one peer forward at once\n{}", self.flow_text());
        assert_eq!(reported, flowing == 1, "report and data plane differ\n{}", self.flow_text());
        reported
    }

    /// What happened, for the message of a failing test.
    pub fn flow_text(&self) -> String {
        self.flow.join("\n")
    }

    fn note(&mut self, host: usize, text: &str) {
        let at = self.now.duration_since(self.epoch);
        self.flow.push(format!("{at:>10.3?} host{host} {text}"));
    }

    fn schedule(&mut self, delay: Duration, host: usize, happening: Happening) {
        self.sequence += 1;
        self.happenings.insert(self.sequence, happening);
        self.queue.push(Reverse((self.now + delay, self.sequence, host)));
    }

    fn happen(&mut self, index: usize, happening: Happening) {
        let now = self.now;
        if self.hosts[index].dead {
            return;
        }
        if !matches!(happening, Happening::Wake) {
            self.note(index, &format!("{happening:?}").chars().take(160).collect::<String>());
        }
        let host = &mut self.hosts[index];
        match happening {
            Happening::Call(request) => drop(host.node.handle_request(now, request, &NoTraffic)),
            Happening::Ice(event) => host.node.handle_ice(now, event),
            Happening::Authenticated(link) => host.node.handle_authenticated(now, link),
            Happening::SessionEnded(link, reason) => host.node.handle_session_ended(now, link, reason),
            Happening::Wake => host.node.handle_timeout(now),
        }
    }

    /// Carries out what the nodes want until they want nothing more.
    fn settle(&mut self) {
        loop {
            let mut quiet = true;
            for index in 0..self.hosts.len() {
                while let Some(output) = self.hosts[index].node.poll_output() {
                    quiet = false;
                    self.carry_out(index, output);
                }
                if let Some(at) = self.hosts[index].node.poll_timeout() {
                    let delay = at.saturating_duration_since(self.now);
                    let planned = self.queue.iter().any(|Reverse((when, sequence, host))| {
                        *host == index
                            && *when <= self.now + delay
                            && matches!(self.happenings.get(sequence), Some(Happening::Wake))
                    });
                    if !planned {
                        self.schedule(delay, index, Happening::Wake);
                    }
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn carry_out(&mut self, index: usize, output: Output) {
        match output {
            Output::Notify(Notification::ConnectionStatus { uid, status }) => {
                self.note(index, &format!("con_stat {uid} {status:?}"));
                self.hosts[index].statuses.push((uid, status));
            }
            Output::Notify(Notification::Message { kind, uid, data }) => {
                assert_eq!(kind, "con_resp");
                self.carry_con_resp(index, uid, &data);
            }
            Output::Ice(command) => self.ice(index, command),
            Output::OpenLink { link, uid, role: _, protection } => {
                let engine = Engine { uid, protection, path: false, established: false, forwarding: false };
                self.hosts[index].engines.insert(link, engine);
            }
            Output::SetPath { link, path: _ } => {
                if let Some(engine) = self.hosts[index].engines.get_mut(&link) {
                    engine.path = true;
                }
                self.shake_hands(index, link);
            }
            Output::RenewSession { link, role: _, expected: _ } => {
                if let Some(engine) = self.hosts[index].engines.get_mut(&link) {
                    engine.established = false;
                }
                self.shake_hands(index, link);
            }
            Output::SetForwarding { link, enabled } => self.set_forwarding(index, link, enabled),
            Output::RemoveLink { link } => self.remove_link(index, link),
            Output::SetSendTag { .. }
            | Output::MapPeer { .. }
            | Output::UnmapPeer { .. }
            | Output::SetSwitchMode { .. }
            | Output::SetLogging { .. }
            | Output::Login { .. }
            | Output::Signal { .. } => {}
        }
    }

    fn carry_con_resp(&mut self, from: usize, uid: Uid, data: &str) {
        let Some(to) = self.hosts.iter().position(|host| host.uid == uid) else { return };
        let cas = data.split_once(' ').map_or("", |(_, cas)| cas).to_owned();
        let request = self.create_link(to, from, &cas);
        for _ in 0..self.copies {
            let delay = self.random_delay(Duration::from_millis(200));
            self.call_after(delay, to, request.clone());
        }
    }

    fn set_forwarding(&mut self, index: usize, link: LinkId, enabled: bool) {
        let flow = self.flow_text();
        if let Some(engine) = self.hosts[index].engines.get_mut(&link) {
            let secured = matches!(engine.protection, LinkProtection::Dtls { .. });
            assert!(!enabled || !secured || engine.established, "frames before the handshake\n{flow}");
            engine.forwarding = enabled;
        }
    }

    fn remove_link(&mut self, index: usize, link: LinkId) {
        let Some(engine) = self.hosts[index].engines.remove(&link) else { return };
        let Some((peer, peer_link)) = self.other_end(index, link) else { return };
        if engine.established && self.path_up(index, peer) {
            self.schedule(DELAY, peer, Happening::SessionEnded(peer_link, "closed by the peer".to_owned()));
        }
    }

    fn ice(&mut self, index: usize, command: IceCommand) {
        match command {
            IceCommand::Gather { link, .. } => {
                let own_ufrag = ufrag_of(index, link);
                self.hosts[index].agents.insert(link, Agent { own_ufrag, ..Agent::default() });
                let candidate = Candidate {
                    addr: SocketAddr::from(([192, 0, 2, u8::try_from(index % 250).unwrap() + 1], 4000)),
                    priority: 2_122_260_223,
                    ufrag: ufrag_of(index, link),
                    pwd: "passwordOf24Characters00".to_owned(),
                    kind: CandidateKind::Host,
                    network: "eth0".to_owned(),
                };
                let event = IceEvent::Gathered { link, candidates: vec![candidate], problems: Vec::new() };
                let delay = self.random_delay(Duration::from_millis(50));
                self.schedule(delay, index, Happening::Ice(event));
            }
            IceCommand::Check { link, candidates } => {
                if let Some(agent) = self.hosts[index].agents.get_mut(&link) {
                    agent.remote_ufrag = Some(candidates[0].ufrag.clone());
                }
                self.begin_generation(index, link, 0);
            }
            IceCommand::Restart { link, generation } => self.begin_generation(index, link, generation),
            IceCommand::Close { link } => {
                self.hosts[index].agents.remove(&link);
                self.update_liveness();
            }
            IceCommand::Resume { link, port: _, role: _, resumption } => {
                let Resumption { own, peer, generation, pair: _, reachable, silence: _ } = *resumption;
                let agent = Agent {
                    own_ufrag: own[0].ufrag.clone(),
                    remote_ufrag: Some(peer[0].ufrag.clone()),
                    pending: None,
                    selected: Some(generation),
                    silent: !reachable,
                };
                self.hosts[index].agents.insert(link, agent);
                self.update_liveness();
            }
            IceCommand::IgnoreInterfaces { .. } | IceCommand::TrafficSeen { .. } => {}
        }
    }

    fn begin_generation(&mut self, index: usize, link: LinkId, generation: u32) {
        let Some(agent) = self.hosts[index].agents.get_mut(&link) else { return };
        agent.pending = Some(generation);
        self.schedule(GENERATION_LIFE, index, Happening::Ice(IceEvent::Failed { link, generation }));
        self.connect(index, link);
    }

    /// Two agents that check each other with the same generation find each other, if datagrams pass.
    fn connect(&mut self, index: usize, link: LinkId) {
        let Some((peer, peer_link)) = self.other_end(index, link) else { return };
        if !self.path_up(index, peer) {
            return;
        }
        let Some(generation) = self.hosts[index].agents[&link].pending else { return };
        let theirs = &self.hosts[peer].agents[&peer_link];
        if theirs.pending == Some(generation) {
            for (host, link) in [(index, link), (peer, peer_link)] {
                let agent = self.hosts[host].agents.get_mut(&link).unwrap();
                (agent.pending, agent.selected, agent.silent) = (None, Some(generation), false);
                let event = IceEvent::Selected { link, generation, pair: pair() };
                let delay = if host == index { 3 * DELAY } else { 2 * DELAY };
                self.schedule(delay, host, Happening::Ice(event));
            }
        } else if theirs.pending.max(theirs.selected) < Some(generation) {
            let event = IceEvent::PeerRestarted { link: peer_link, generation };
            self.schedule(DELAY, peer, Happening::Ice(event));
        }
    }

    /// The host and link that `link` of `index` checks against, if that one checks back.
    fn other_end(&self, index: usize, link: LinkId) -> Option<(usize, LinkId)> {
        let Agent { own_ufrag: own, remote_ufrag, .. } = self.hosts[index].agents.get(&link)?;
        let wanted = remote_ufrag.as_ref()?;
        self.hosts.iter().enumerate().find_map(|(host, other)| {
            let found = other
                .agents
                .iter()
                .find(|(_, agent)| agent.own_ufrag == *wanted && agent.remote_ufrag.as_ref() == Some(own))?;
            Some((host, *found.0))
        })
    }

    fn path_up(&self, a: usize, b: usize) -> bool {
        [a, b].iter().all(|host| !self.hosts[*host].unplugged && !self.hosts[*host].dead)
    }

    /// After a change of the network: selected pairs that fell silent or speak again, and pending ones that can meet.
    fn update_liveness(&mut self) {
        let ends: Vec<(usize, LinkId)> = self
            .hosts
            .iter()
            .enumerate()
            .flat_map(|(host, state)| state.agents.keys().map(move |link| (host, *link)))
            .collect();
        for (host, link) in ends {
            let alive = self.other_end(host, link).is_some_and(|(peer, peer_link)| {
                self.path_up(host, peer)
                    && self.hosts[peer].agents[&peer_link].selected == self.hosts[host].agents[&link].selected
            });
            let agent = self.hosts[host].agents.get_mut(&link).unwrap();
            if let Some(generation) = agent.selected
                && agent.silent == alive
            {
                agent.silent = !alive;
                let (delay, event) = if alive {
                    (KEEPALIVE, IceEvent::Reconnected { link, generation })
                } else {
                    (SILENCE, IceEvent::Disconnected { link, generation })
                };
                self.schedule(delay, host, Happening::Ice(event));
            }
            self.connect(host, link);
        }
    }

    /// A handshake needs both sessions on a path and ends as their fingerprints say.
    fn shake_hands(&mut self, index: usize, link: LinkId) {
        let Some((peer, peer_link)) = self.other_end(index, link) else { return };
        let (Some(ours), Some(theirs)) =
            (self.hosts[index].engines.get(&link), self.hosts[peer].engines.get(&peer_link))
        else {
            return;
        };
        if !ours.path || !theirs.path || ours.established {
            return;
        }
        let (LinkProtection::Dtls { expected }, LinkProtection::Dtls { expected: their_expected }) =
            (ours.protection, theirs.protection)
        else {
            return;
        };
        let right = expected == self.hosts[peer].fingerprint && their_expected == self.hosts[index].fingerprint;
        for (host, link) in [(index, link), (peer, peer_link)] {
            self.hosts[host].engines.get_mut(&link).unwrap().established = right;
            let happening = if right {
                Happening::Authenticated(link)
            } else {
                Happening::SessionEnded(link, "wrong fingerprint".to_owned())
            };
            self.schedule(4 * DELAY, host, happening);
        }
    }
}

fn pair() -> SelectedPair {
    let (local_addr, remote_addr) =
        (SocketAddr::from(([192, 0, 2, 1], 4000)), SocketAddr::from(([192, 0, 2, 2], 4000)));
    SelectedPair {
        path: Path { remote: remote_addr, source: None, relay: None },
        local_addr,
        local_kind: CandidateKind::Host,
        remote_addr,
        remote_kind: CandidateKind::Host,
    }
}
