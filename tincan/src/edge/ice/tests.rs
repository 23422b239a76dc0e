//! Edges with real agents, joined by a network made of channels.
//!
//! ```text
//!   edge a -- Port -->  queue, delay, cut?  --> handle_datagram of the edge that owns the address
//! ```
//!
//! Time is real, because webrtc-ice reads the system's clocks. What needs minutes is tested without agents in
//! `core::tests`.

use std::collections::HashMap;
use std::sync::Mutex;

use super::*;
use crate::ice::SelectedPair;
use crate::link::{CandidateKind, LEASE, Path, PortKind, Role};
use crate::wire::candidate::Candidate;

const LINK: LinkId = LinkId(7);
const SECURED_PORT: u16 = 40001;
const PLAIN_PORT: u16 = 40002;
/// One way; a round trip takes twice this.
const DELAY: Duration = Duration::from_millis(1);
/// For what has to come some time; generous, because the machine may be busy.
const SOON: Duration = Duration::from_secs(5);

struct Datagram {
    due: tokio::time::Instant,
    sender: usize,
    port: PortKind,
    path: Path,
    payload: Vec<u8>,
}

#[derive(Default)]
struct State {
    edges: Vec<Option<Arc<IceEdge>>>,
    owners: HashMap<IpAddr, usize>,
    is_cut: bool,
    sent: Vec<usize>,
}

struct Network {
    state: Mutex<State>,
    queue: mpsc::UnboundedSender<Datagram>,
}

impl Network {
    fn start() -> Arc<Self> {
        let (queue, mut arriving) = mpsc::unbounded_channel::<Datagram>();
        let network = Arc::new(Self { state: Mutex::default(), queue });
        let carrier = Arc::clone(&network);
        tokio::spawn(async move {
            while let Some(datagram) = arriving.recv().await {
                tokio::time::sleep_until(datagram.due).await;
                carrier.deliver(datagram);
            }
        });
        network
    }

    fn deliver(&self, datagram: Datagram) {
        let Datagram { due: _, sender, port, path, payload } = datagram;
        let state = self.state.lock().unwrap();
        let owner = state.owners.get(&path.remote.ip()).copied();
        let own = |ip: &IpAddr| state.owners.get(ip) == Some(&sender) && ip.is_ipv4() == path.remote.is_ipv4();
        let source = path.source.or_else(|| state.owners.keys().copied().find(own));
        if let (Some(owner), Some(source), false) = (owner, source.filter(own), state.is_cut)
            && let Some(edge) = &state.edges[owner]
            && path.remote.port() == port_number(port)
        {
            let flow = FlowKey { port, from: SocketAddr::new(source, port_number(port)), channel: None };
            edge.handle_datagram(flow, Some(path.remote.ip()), payload);
        }
    }

    fn cut(&self, is_cut: bool) {
        self.state.lock().unwrap().is_cut = is_cut;
    }

    fn sent(&self, node: usize) -> usize {
        self.state.lock().unwrap().sent[node]
    }

    /// Takes a node off the network for good.
    fn kill(&self, node: usize) {
        self.state.lock().unwrap().edges[node] = None;
    }
}

struct Port {
    network: Arc<Network>,
    node: usize,
}

impl Transmit for Port {
    fn transmit(&self, port: PortKind, path: &Path, payload: &[u8]) {
        self.network.state.lock().unwrap().sent[self.node] += 1;
        let due = tokio::time::Instant::now() + DELAY;
        let datagram = Datagram { due, sender: self.node, port, path: *path, payload: payload.to_vec() };
        self.network.queue.send(datagram).unwrap();
    }
}

/// An edge and what it told.
struct Peer {
    node: usize,
    edge: Arc<IceEdge>,
    events: mpsc::Receiver<IceEvent>,
}

impl Peer {
    fn join(network: &Arc<Network>, addresses: &[&str]) -> Self {
        let mut state = network.state.lock().unwrap();
        let node = state.edges.len();
        let hosts: Vec<HostAddress> = addresses
            .iter()
            .map(|addr| HostAddress { interface: "eth0".to_owned(), addr: addr.parse().unwrap() })
            .collect();
        state.owners.extend(hosts.iter().map(|host| (host.addr, node)));
        let (events, told) = mpsc::channel(64);
        let port = Arc::new(Port { network: Arc::clone(network), node });
        let config = CoreConfig {
            tap_name: "ipop".to_owned(),
            secured_port: SECURED_PORT,
            plain_port: PLAIN_PORT,
            direct_plain_port: None,
            lease: LEASE,
        };
        let edge = Arc::new(IceEdge::launch(Core::new(config), Interfaces::Fixed(hosts), port, events));
        state.edges.push(Some(Arc::clone(&edge)));
        state.sent.push(0);
        Self { node, edge, events: told }
    }

    async fn gather(&mut self, port: PortKind, role: Role) -> Vec<Candidate> {
        self.edge.command(IceCommand::Gather { link: LINK, port, role, stun: None, turn: None });
        self.wait(SOON, "candidates", |event| {
            let IceEvent::Gathered { candidates, problems, .. } = event else { return None };
            assert_eq!(problems, Vec::<String>::new());
            Some(candidates)
        })
        .await
    }

    fn check(&self, candidates: &[Candidate]) {
        self.edge.command(IceCommand::Check { link: LINK, candidates: candidates.to_vec() });
    }

    /// Waits for the event that `pick` takes, passing over others.
    async fn wait<T>(&mut self, within: Duration, what: &str, mut pick: impl FnMut(IceEvent) -> Option<T>) -> T {
        let mut passed = Vec::new();
        let deadline = tokio::time::Instant::now() + within;
        while let Ok(event) = tokio::time::timeout_at(deadline, self.events.recv()).await {
            let event = event.expect("the edge runs");
            passed.push(format!("{event:?}"));
            if let Some(picked) = pick(event) {
                return picked;
            }
        }
        panic!("node {} did not tell {what} within {within:?}; it told {passed:#?}", self.node);
    }

    async fn selected(&mut self, number: u32) -> SelectedPair {
        self.wait(SOON, "a selected pair", |event| {
            let IceEvent::Selected { pair, generation, .. } = event else { return None };
            (generation == number).then_some(pair)
        })
        .await
    }

    async fn event(&mut self, within: Duration, wanted: IceEvent) {
        self.wait(within, &format!("{wanted:?}"), |event| (event == wanted).then_some(())).await;
    }
}

fn port_number(port: PortKind) -> u16 {
    match port {
        PortKind::Secured => SECURED_PORT,
        PortKind::Plain => PLAIN_PORT,
    }
}

/// A controlling and a controlled edge on a network, gathered.
async fn gathered(ours: &[&str], theirs: &[&str]) -> (Arc<Network>, (Peer, Vec<Candidate>), (Peer, Vec<Candidate>)) {
    let network = Network::start();
    let (mut one, mut two) = (Peer::join(&network, ours), Peer::join(&network, theirs));
    let offer = one.gather(PortKind::Secured, Role::Controlling).await;
    let answer = two.gather(PortKind::Secured, Role::Controlled).await;
    (network, (one, offer), (two, answer))
}

/// The same, with a working pair of generation 0.
async fn connected() -> (Arc<Network>, Peer, Peer) {
    let (network, (mut one, offer), (mut two, answer)) = gathered(&["192.0.2.1"], &["192.0.2.2"]).await;
    one.check(&answer);
    two.check(&offer);
    one.selected(0).await;
    two.selected(0).await;
    (network, one, two)
}

/// Connects two edges and says how long it took from the later `Check` to the later `Selected`.
async fn connect(ours: &[&str], theirs: &[&str]) -> Duration {
    let (_network, (mut one, offer), (mut two, answer)) = gathered(ours, theirs).await;
    let start = Instant::now();
    one.check(&answer);
    two.check(&offer);
    let (left, right) = tokio::join!(one.selected(0), two.selected(0));
    let took = start.elapsed();
    assert_eq!((left.local_addr, left.remote_addr), (right.remote_addr, right.local_addr));
    for pair in [left, right] {
        assert_eq!((pair.local_kind, pair.remote_kind), (CandidateKind::Host, CandidateKind::Host));
        let source = Some(pair.local_addr.ip());
        assert_eq!(pair.path, Path { remote: pair.remote_addr, source, relay: None });
    }
    took
}

#[tokio::test]
async fn two_edges_select_a_host_pair_of_either_family_at_once() {
    let (four, six) = (["192.0.2.1"], ["2001:db8::1"]);
    let both = ["192.0.2.1", "2001:db8::1", "198.51.100.1", "2001:db8:1::1"];
    let cases: [(&[&str], &[&str]); 4] = [
        (&four, &["192.0.2.2"]),
        (&six, &["2001:db8::2"]),
        (&both, &["192.0.2.2", "2001:db8::2"]),
        (&["192.0.2.1"], &["2001:db8::2", "192.0.2.2"]),
    ];
    for (ours, theirs) in cases {
        let mut times = Vec::new();
        for _ in 0..20 {
            times.push(connect(ours, theirs).await);
        }
        times.sort();
        println!("{ours:?} to {theirs:?}: median {:?}, longest {:?}", times[10], times[19]);
    }
}

#[tokio::test]
async fn the_order_of_gathering_and_checking_does_not_matter() {
    for (role, other) in [(Role::Controlling, Role::Controlled), (Role::Controlled, Role::Controlling)] {
        for late in [30, 700, 3500].map(Duration::from_millis) {
            let network = Network::start();
            let mut one = Peer::join(&network, &["192.0.2.1"]);
            let mut two = Peer::join(&network, &["192.0.2.2"]);
            let answer = two.gather(PortKind::Plain, other).await;
            // The first side gathers only now, knows the other's candidates at once, and checks in vain for a while.
            let offer = one.gather(PortKind::Plain, role).await;
            one.check(&answer);
            tokio::time::sleep(late).await;
            let start = Instant::now();
            two.check(&offer);
            tokio::join!(one.selected(0), two.selected(0));
            println!("{role:?} began {late:?} earlier: {:?}", start.elapsed());
        }
    }
}

#[tokio::test]
async fn a_cut_network_is_noticed_after_five_seconds_and_its_return_within_two() {
    let (network, mut one, mut two) = connected().await;
    network.cut(true);
    let (start, lost) = (Instant::now(), IceEvent::Disconnected { link: LINK, generation: 0 });
    tokio::join!(one.event(Duration::from_secs(7), lost.clone()), two.event(Duration::from_secs(7), lost));
    println!("noticed after {:?}", start.elapsed());
    assert!(start.elapsed() > Duration::from_secs(3));
    // The agents forget their own requests after four seconds.
    tokio::time::sleep(Duration::from_secs(6)).await;
    network.cut(false);
    let (start, back) = (Instant::now(), IceEvent::Reconnected { link: LINK, generation: 0 });
    tokio::join!(one.event(Duration::from_secs(4), back.clone()), two.event(Duration::from_secs(4), back));
    println!("back after {:?}", start.elapsed());
}

#[tokio::test]
async fn a_peer_that_is_killed_is_noticed_within_seven_seconds() {
    let (network, mut one, two) = connected().await;
    network.kill(two.node);
    drop(two);
    let start = Instant::now();
    one.event(Duration::from_secs(7), IceEvent::Disconnected { link: LINK, generation: 0 }).await;
    println!("noticed after {:?}", start.elapsed());
}

#[tokio::test]
async fn a_restart_of_one_side_is_told_to_the_other_and_both_move_on() {
    for is_controlling in [true, false] {
        let (_network, one, two) = connected().await;
        let (mut first, mut second) = if is_controlling { (one, two) } else { (two, one) };
        for generation in 1..=3 {
            let start = Instant::now();
            first.edge.command(IceCommand::Restart { link: LINK, generation });
            second.event(SOON, IceEvent::PeerRestarted { link: LINK, generation }).await;
            second.edge.command(IceCommand::Restart { link: LINK, generation });
            let (left, right) = tokio::join!(first.selected(generation), second.selected(generation));
            assert_eq!((left.local_addr, left.remote_addr), (right.remote_addr, right.local_addr));
            println!("generation {generation} after {:?}", start.elapsed());
        }
        // The older generations are silent for longer than it takes to miss them, and nobody does.
        let quiet = tokio::time::timeout(Duration::from_secs(6), async {
            first
                .wait(SOON * 2, "trouble", |event| (!matches!(event, IceEvent::RoundTrip { .. })).then_some(event))
                .await
        });
        assert_eq!(quiet.await.ok(), None);
    }
}

#[tokio::test]
async fn a_closed_link_is_forgotten_and_sends_nothing_more() {
    let (network, mut one, mut two) = connected().await;
    one.edge.command(IceCommand::Close { link: LINK });
    // Commands are taken in order: with this answer the link is closed.
    let other = LinkId(8);
    let gather =
        IceCommand::Gather { link: other, port: PortKind::Secured, role: Role::Controlled, stun: None, turn: None };
    one.edge.command(gather);
    one.wait(SOON, "the other link", |event| {
        matches!(event, IceEvent::Gathered { link, .. } if link == other).then_some(())
    })
    .await;
    let before = network.sent(one.node);
    two.event(Duration::from_secs(7), IceEvent::Disconnected { link: LINK, generation: 0 }).await;
    assert_eq!(network.sent(one.node), before);
    assert!(one.events.try_recv().is_err());
    // The same number may be used again and is a new link.
    let (offer, answer) = tokio::join!(one.gather(PortKind::Secured, Role::Controlling), async {
        two.edge.command(IceCommand::Close { link: LINK });
        two.gather(PortKind::Secured, Role::Controlled).await
    });
    one.check(&answer);
    two.check(&offer);
    tokio::join!(one.selected(0), two.selected(0));
}

#[tokio::test]
async fn round_trips_of_the_selected_pair_are_told_again_and_again() {
    let (_network, mut one, mut two) = connected().await;
    for peer in [&mut one, &mut two] {
        for _ in 0..3 {
            let rtt = peer
                .wait(SOON, "a round trip", |event| {
                    let IceEvent::RoundTrip { link: LINK, rtt } = event else { return None };
                    Some(rtt)
                })
                .await;
            println!("{rtt:?}");
            assert!(rtt >= 2 * DELAY && rtt < Duration::from_millis(500), "{rtt:?}");
        }
    }
}

#[tokio::test]
async fn a_peer_that_comes_back_with_new_credentials_is_checked_afresh() {
    let (network, mut one, mut two) = connected().await;
    two.edge.command(IceCommand::Close { link: LINK });
    let answer = two.gather(PortKind::Secured, Role::Controlled).await;
    one.edge.command(IceCommand::Close { link: LINK });
    let offer = one.gather(PortKind::Secured, Role::Controlling).await;
    one.check(&answer);
    two.check(&offer);
    tokio::join!(one.selected(0), two.selected(0));
    assert!(network.sent(one.node) > 0);
}

#[tokio::test]
async fn bad_datagrams_change_nothing() {
    let (network, mut one, mut two) = connected().await;
    let flow = FlowKey { port: PortKind::Secured, from: "192.0.2.2:40001".parse().unwrap(), channel: None };
    let relayed = FlowKey { channel: Some(0x4000), ..flow };
    let mut check = message::check(
        stun::agent::TransactionId::new(),
        "nobody:knows".to_owned(),
        &message::short_term_key("x"),
        Role::Controlling,
        1,
    );
    for round in 0..2000usize {
        let at = round * 7919 % check.len();
        check[at] = check[at].wrapping_add(u8::try_from(round % 251).unwrap());
        // The header stays plausible, so that the rest is looked at.
        check[0] &= 0x01;
        check[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
        let length = check.len() - round % 40;
        for flow in [flow, relayed] {
            one.edge.handle_datagram(flow, None, check[..length].to_vec());
        }
        tokio::task::yield_now().await;
    }
    for length in 0..32 {
        one.edge.handle_datagram(flow, None, vec![0; length]);
    }
    one.edge.handle_datagram(flow, None, vec![0; 65_535]);
    for peer in [&mut one, &mut two] {
        peer.wait(SOON, "a round trip", |event| matches!(event, IceEvent::RoundTrip { .. }).then_some(())).await;
    }
    assert!(network.sent(one.node) < 100);
}
