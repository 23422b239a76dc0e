//! The paths of one agent, each under a handle: a made-up IPv4 address the agent takes for the peer's address.
//!
//! Paths are told apart by the peer's address, by our address that the peer sends to, and by the relay between. The
//! agent knows nothing of this; it sees one local address and up to [`MAX_PATHS`] remote ones in 240.0.0.0/4.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::edge::ice::consent::RoundTrip;
use crate::link::CandidateKind;

/// Most paths of one agent (RFC 8445 section 6.1.2.5).
pub const MAX_PATHS: usize = 100;
/// The port of every handle; of no meaning.
const HANDLE_PORT: u16 = 1;

/// Where a datagram came from, in the words of paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The peer's address, also when the datagram came through a relay.
    pub remote: SocketAddr,
    /// The TURN server it came through.
    pub relay: Option<SocketAddr>,
    /// Our address it was sent to, when the socket told it.
    pub to: Option<IpAddr>,
}

/// One way to the peer.
#[derive(Clone, Debug)]
pub struct Entry {
    pub remote: SocketAddr,
    /// The TURN server on our side.
    pub relay: Option<SocketAddr>,
    /// Our address the peer sends to; known once it sent.
    pub source: Option<IpAddr>,
    /// What the peer's address is.
    pub kind: CandidateKind,
    /// How the peer sees us, from its answers.
    pub mapped: Option<SocketAddr>,
    pub rtt: RoundTrip,
    /// Not before this the agent's next check goes out.
    next_check: Option<Instant>,
}

impl Entry {
    /// True when a TURN server carries it, ours or the peer's.
    pub fn is_relayed(&self) -> bool {
        self.relay.is_some() || self.kind == CandidateKind::Relayed
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Paths {
    entries: Vec<Entry>,
}

impl Paths {
    /// The path of a datagram whose sender is proven; learns our address where it was not known yet.
    pub fn locate(&mut self, arrival: &Arrival) -> Option<usize> {
        let same = |entry: &Entry| entry.remote == arrival.remote && entry.relay == arrival.relay;
        if arrival.relay.is_some() || arrival.to.is_none() {
            return self.entries.iter().position(same);
        }
        if let Some(index) = self.entries.iter().position(|entry| same(entry) && entry.source == arrival.to) {
            return Some(index);
        }
        let index = self.entries.iter().position(|entry| same(entry) && entry.source.is_none())?;
        self.entries[index].source = arrival.to;
        Some(index)
    }

    /// True when an answer may have come along the path; learns our address where it was not known yet.
    pub fn accept_answer(&mut self, index: usize, arrival: &Arrival) -> bool {
        let Some(entry) = self.entries.get_mut(index) else { return false };
        if entry.remote != arrival.remote || entry.relay != arrival.relay {
            return false;
        }
        if entry.relay.is_some() {
            return true;
        }
        if entry.source.is_none() {
            entry.source = arrival.to;
        }
        arrival.to.is_none() || entry.source == arrival.to
    }

    /// Adds a path unless it is there or the table is full; its index when it is new.
    pub fn add(&mut self, remote: SocketAddr, relay: Option<SocketAddr>, kind: CandidateKind) -> Option<usize> {
        if self.entries.iter().any(|entry| entry.remote == remote && entry.relay == relay) {
            return None;
        }
        self.push(Entry {
            remote,
            relay,
            source: None,
            kind,
            mapped: None,
            rtt: RoundTrip::default(),
            next_check: None,
        })
    }

    /// Adds the path a proven request came along; `None` when the table is full.
    pub fn learn(&mut self, arrival: &Arrival) -> Option<usize> {
        let &Arrival { remote, relay, to } = arrival;
        if remote.port() == 0 || remote.ip().is_unspecified() {
            return None;
        }
        let known = self.entries.iter().find(|entry| entry.remote == remote);
        let kind = known.map_or(CandidateKind::PeerReflexive, |entry| entry.kind);
        let source = if relay.is_some() { None } else { to };
        self.push(Entry { remote, relay, source, kind, mapped: None, rtt: RoundTrip::default(), next_check: None })
    }

    fn push(&mut self, entry: Entry) -> Option<usize> {
        if self.entries.len() >= MAX_PATHS {
            return None;
        }
        self.entries.push(entry);
        Some(self.entries.len() - 1)
    }

    pub fn get(&self, index: usize) -> Option<&Entry> {
        self.entries.get(index)
    }

    pub fn get_mut(&mut self, index: usize) -> Option<&mut Entry> {
        self.entries.get_mut(index)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// True when the agent's check on a path is due now; the next one is `pause` later.
    pub fn check_due(&mut self, index: usize, now: Instant, pause: Duration) -> bool {
        // A few paths are checked at full speed; more of them share the budget of 200 checks/s.
        let share = Duration::from_millis(5) * u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        let Some(entry) = self.entries.get_mut(index) else { return false };
        // The agent's own tick may come a little early.
        let slack = Duration::from_millis(10);
        if entry.next_check.is_some_and(|at| now + slack < at) {
            return false;
        }
        entry.next_check = Some(now + pause.max(share));
        true
    }

    /// The peer spoke on this path: the check it triggers (RFC 8445 section 7.3.1.4) goes out at once.
    pub fn trigger(&mut self, index: usize) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.next_check = None;
        }
    }

    /// The next check of every path goes out at once.
    pub fn trigger_all(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.next_check = None);
    }
}

/// The made-up address of a path.
pub fn handle(index: usize) -> SocketAddr {
    let host = u8::try_from(index + 1).expect("at most 100 paths");
    SocketAddr::new(Ipv4Addr::new(240, 0, 0, host).into(), HANDLE_PORT)
}

/// The path a made-up address stands for.
pub fn index_of(handle: SocketAddr) -> Option<usize> {
    let IpAddr::V4(ip) = handle.ip() else { return None };
    let [240, 0, 0, host] = ip.octets() else { return None };
    usize::from(host).checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(remote: &str, to: &str) -> Arrival {
        Arrival { remote: remote.parse().unwrap(), relay: None, to: Some(to.parse().unwrap()) }
    }

    #[test]
    fn handles_and_paths_name_each_other() {
        for index in 0..MAX_PATHS {
            assert_eq!(index_of(handle(index)), Some(index));
        }
        assert_eq!(index_of("192.0.2.1:1".parse().unwrap()), None);
    }

    #[test]
    fn one_peer_address_reached_from_two_of_ours_makes_two_paths() {
        let mut paths = Paths::default();
        let index = paths.add("192.0.2.9:7".parse().unwrap(), None, CandidateKind::Host).unwrap();
        assert_eq!(paths.locate(&arrival("192.0.2.9:7", "10.0.0.1")), Some(index));
        assert_eq!(paths.locate(&arrival("192.0.2.9:7", "10.0.0.1")), Some(index));
        assert_eq!(paths.locate(&arrival("192.0.2.9:7", "10.0.0.2")), None);
        let second = paths.learn(&arrival("192.0.2.9:7", "10.0.0.2")).unwrap();
        assert_eq!(paths.get(second).unwrap().kind, CandidateKind::Host);
        assert_eq!(paths.locate(&arrival("192.0.2.9:7", "10.0.0.2")), Some(second));
    }

    #[test]
    fn an_answer_must_come_from_where_the_request_went() {
        let mut paths = Paths::default();
        let index = paths.add("192.0.2.9:7".parse().unwrap(), None, CandidateKind::Host).unwrap();
        assert!(!paths.accept_answer(index, &arrival("192.0.2.9:8", "10.0.0.1")));
        assert!(paths.accept_answer(index, &arrival("192.0.2.9:7", "10.0.0.1")));
        assert!(!paths.accept_answer(index, &arrival("192.0.2.9:7", "10.0.0.2")));
        let relayed = Arrival { relay: Some("192.0.2.50:3478".parse().unwrap()), ..arrival("192.0.2.9:7", "10.0.0.1") };
        assert!(!paths.accept_answer(index, &relayed));
    }

    #[test]
    fn the_table_is_capped() {
        let mut paths = Paths::default();
        for port in 1..=200 {
            paths.add(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), None, CandidateKind::Host);
        }
        assert_eq!(paths.iter().count(), MAX_PATHS);
        assert_eq!(paths.learn(&arrival("192.0.2.9:7", "10.0.0.1")), None);
    }

    #[test]
    fn checks_are_paced_and_a_word_of_the_peer_lets_the_next_one_go() {
        let mut paths = Paths::default();
        let index = paths.add("192.0.2.9:7".parse().unwrap(), None, CandidateKind::Host).unwrap();
        let (now, pause) = (Instant::now(), Duration::from_millis(250));
        assert!(paths.check_due(index, now, pause));
        assert!(!paths.check_due(index, now + Duration::from_millis(50), pause));
        paths.trigger(index);
        assert!(paths.check_due(index, now + Duration::from_millis(50), pause));
        assert!(paths.check_due(index, now + Duration::from_millis(300), pause));
    }
}
