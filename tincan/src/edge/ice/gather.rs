//! Gathering: from addresses of interfaces and servers' answers to candidates.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::edge::ice::credentials::Credentials;
use crate::edge::ice::reflexive;
use crate::link::{CandidateKind, LinkId};
use crate::wire::candidate::Candidate;

/// Most own addresses offered.
const MAX_HOSTS: usize = 16;
/// When one family of a STUN server answered, the other gets this much longer.
const OTHER_FAMILY: Duration = Duration::from_millis(300);
/// A TURN allocation takes two round trips, with repeats where the way is bad.
const RELAY_PATIENCE: Duration = Duration::from_secs(3);

/// An address of an interface of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAddress {
    pub interface: String,
    pub addr: IpAddr,
}

/// What the surroundings are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyRequest {
    pub link: LinkId,
    /// `host:port` to be resolved.
    pub stun: Option<String>,
    pub turn: Option<String>,
}

/// What the surroundings answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    pub hosts: Vec<HostAddress>,
    pub stun: Vec<SocketAddr>,
    pub turn: Vec<SocketAddr>,
    /// What could not be had, for a person.
    pub problems: Vec<String>,
}

/// A gathering that is not complete yet.
#[derive(Debug)]
pub struct Gathering {
    stun_name: Option<String>,
    turn_name: Option<String>,
    is_surveyed: bool,
    /// Servers that did not answer yet.
    queried: Vec<SocketAddr>,
    queried_until: Instant,
    /// Set while an allocation is waited for.
    relay_until: Option<Instant>,
    problems: Vec<String>,
}

impl Gathering {
    pub fn new(now: Instant, stun_name: Option<String>, turn_name: Option<String>) -> Self {
        Self {
            stun_name,
            turn_name,
            is_surveyed: false,
            queried: Vec::new(),
            queried_until: now + reflexive::PATIENCE,
            relay_until: None,
            problems: Vec::new(),
        }
    }

    /// The surroundings answered; `queried` are the STUN servers asked, `relay` says whether an allocation is awaited.
    pub fn surveyed(&mut self, now: Instant, queried: Vec<SocketAddr>, relay: bool, problems: Vec<String>) {
        self.is_surveyed = true;
        self.queried = queried;
        self.relay_until = relay.then_some(now + RELAY_PATIENCE);
        self.problems.extend(problems);
    }

    /// A STUN server answered.
    pub fn answered(&mut self, now: Instant, server: SocketAddr) {
        let before = self.queried.len();
        self.queried.retain(|other| *other != server);
        if self.queried.len() < before {
            self.queried_until = self.queried_until.min(now + OTHER_FAMILY);
        }
    }

    /// The allocation is there, or will not be for now.
    pub fn relay_settled(&mut self, problem: Option<String>) {
        if self.relay_until.take().is_some() {
            self.problems.extend(problem);
        }
    }

    pub fn is_complete(&self, now: Instant) -> bool {
        self.is_surveyed
            && (self.queried.is_empty() || self.queried_until <= now)
            && self.relay_until.is_none_or(|until| until <= now)
    }

    pub fn deadline(&self) -> Option<Instant> {
        if !self.is_surveyed {
            return None;
        }
        let queries = (!self.queried.is_empty()).then_some(self.queried_until);
        queries.into_iter().chain(self.relay_until).max()
    }

    /// What could not be had in the end, for a person; `is_reflexive` says whether any STUN server answered.
    pub fn into_problems(self, is_reflexive: bool) -> Vec<String> {
        let mut problems = self.problems;
        if !is_reflexive && !self.queried.is_empty() {
            problems.push(format!(
                "STUN server {} did not answer in {} s: check its address and that UDP is let through",
                self.stun_name.unwrap_or_default(),
                reflexive::PATIENCE.as_secs_f32()
            ));
        }
        if self.relay_until.is_some() {
            problems.push(format!(
                "TURN server {} did not answer in {} s: check its address and that UDP is let through",
                self.turn_name.unwrap_or_default(),
                RELAY_PATIENCE.as_secs()
            ));
        }
        problems
    }
}

/// Chooses the addresses to offer: not those of `ignored` interfaces, both families taking turns.
pub fn choose_hosts(all: &[HostAddress], ignored: impl Fn(&str) -> bool) -> Vec<HostAddress> {
    let mut usable: Vec<&HostAddress> = Vec::new();
    for host in all.iter().filter(|host| !ignored(&host.interface)) {
        if !usable.iter().any(|other| other.addr == host.addr) {
            usable.push(host);
        }
    }
    let (six, four): (Vec<&HostAddress>, Vec<&HostAddress>) = usable.into_iter().partition(|host| host.addr.is_ipv6());
    let longest = six.len().max(four.len());
    let in_turns = (0..longest).flat_map(|index| [six.get(index), four.get(index)]).flatten();
    in_turns.take(MAX_HOSTS).map(|host| (*host).clone()).collect()
}

/// Writes the candidates of a link whose port is `port`, and perhaps `direct` where translation does not reach.
pub fn candidates(
    credentials: &Credentials,
    (port, direct): (u16, Option<u16>),
    hosts: &[HostAddress],
    reflexive: &[SocketAddr],
    relayed: Option<SocketAddr>,
) -> Vec<Candidate> {
    let network = |addr: IpAddr| {
        let same = hosts.iter().find(|host| host.addr.is_ipv4() == addr.is_ipv4()).or(hosts.first());
        same.map(|host| host.interface.clone()).unwrap_or_default()
    };
    let mut offers: Vec<(SocketAddr, CandidateKind, String)> = Vec::new();
    for host in hosts {
        offers.push((SocketAddr::new(host.addr, port), CandidateKind::Host, host.interface.clone()));
    }
    for addr in reflexive {
        if !offers.iter().any(|(other, _, _)| other == addr) {
            offers.push((*addr, CandidateKind::ServerReflexive, network(addr.ip())));
        }
    }
    if let Some(addr) = relayed {
        offers.push((addr, CandidateKind::Relayed, network(addr.ip())));
    }
    for host in hosts {
        if let Some(direct) = direct {
            offers.push((SocketAddr::new(host.addr, direct), CandidateKind::Host, host.interface.clone()));
        }
    }
    let numbered = offers.into_iter().enumerate();
    numbered
        .map(|(index, (addr, kind, network))| Candidate {
            addr,
            priority: priority(kind, index),
            ufrag: credentials.ufrag.clone(),
            pwd: credentials.pwd.clone(),
            kind,
            network,
        })
        .collect()
}

/// RFC 8445 section 5.1.2.1, component 1; `index` is the place among our candidates.
fn priority(kind: CandidateKind, index: usize) -> u32 {
    let preference: u32 = match kind {
        CandidateKind::Host => 126,
        CandidateKind::PeerReflexive => 110,
        CandidateKind::ServerReflexive => 100,
        CandidateKind::Relayed => 0,
    };
    let local = 65535 - u32::try_from(index).unwrap_or(u32::MAX).min(65535);
    (preference << 24) | (local << 8) | 255
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(interface: &str, addr: &str) -> HostAddress {
        HostAddress { interface: interface.into(), addr: addr.parse().unwrap() }
    }

    #[test]
    fn families_take_turns_and_ignored_interfaces_are_left_out() {
        let all = [
            host("eth0", "192.0.2.1"),
            host("eth0", "192.0.2.2"),
            host("ipop", "172.31.0.1"),
            host("eth0", "2001:db8::1"),
            host("wlan0", "192.0.2.2"),
            host("wlan0", "192.0.2.3"),
        ];
        let chosen = choose_hosts(&all, |name| name == "ipop");
        let addresses: Vec<String> = chosen.iter().map(|host| host.addr.to_string()).collect();
        assert_eq!(addresses, ["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    }

    #[test]
    fn at_most_sixteen_own_addresses_are_offered() {
        let all: Vec<HostAddress> = (1..=40).map(|last| host("eth0", &format!("192.0.2.{last}"))).collect();
        assert_eq!(choose_hosts(&all, |_| false).len(), 16);
    }

    #[test]
    fn priorities_order_host_before_reflexive_before_relayed() {
        use CandidateKind::{Host, Relayed, ServerReflexive};

        let credentials = Credentials { ufrag: "name".into(), pwd: "password".into() };
        let hosts = [host("eth0", "2001:db8::1"), host("eth0", "192.168.0.2")];
        let reflexive = ["203.0.113.9:40000".parse().unwrap(), "[2001:db8::1]:7".parse().unwrap()];
        let list =
            candidates(&credentials, (7, Some(8)), &hosts, &reflexive, Some("198.51.100.1:50000".parse().unwrap()));
        let kinds: Vec<CandidateKind> = list.iter().map(|candidate| candidate.kind).collect();
        assert_eq!(kinds, [Host, Host, ServerReflexive, Relayed, Host, Host]);
        assert_eq!(list.iter().map(|candidate| candidate.addr.port()).collect::<Vec<_>>(), [7, 7, 40000, 50000, 8, 8]);
        assert!(list[..4].windows(2).all(|pair| pair[0].priority > pair[1].priority));
        assert_eq!(list[0].priority, 2_130_706_431);
        assert!(list[3].priority < 1 << 24);
        assert!(list[4..].iter().all(|direct| direct.priority < list[1].priority));
    }

    #[test]
    fn gathering_without_servers_is_complete_with_the_survey() {
        let now = Instant::now();
        let mut gathering = Gathering::new(now, None, None);
        assert!(!gathering.is_complete(now));
        gathering.surveyed(now, Vec::new(), false, Vec::new());
        assert!(gathering.is_complete(now));
        assert!(gathering.into_problems(false).is_empty());
    }

    #[test]
    fn silent_servers_hold_gathering_up_only_so_long_and_are_named() {
        let now = Instant::now();
        let mut gathering = Gathering::new(now, Some("192.0.2.1:3478".into()), None);
        gathering.surveyed(now, vec!["192.0.2.1:3478".parse().unwrap()], false, Vec::new());
        assert!(!gathering.is_complete(now + Duration::from_millis(1499)));
        assert!(gathering.is_complete(now + Duration::from_millis(1500)));
        let problems = gathering.into_problems(false);
        assert_eq!(
            problems,
            ["STUN server 192.0.2.1:3478 did not answer in 1.5 s: check its address and that UDP is let through"]
        );
    }

    #[test]
    fn the_second_family_gets_a_short_grace_once_the_first_answered() {
        let now = Instant::now();
        let (four, six) = ("192.0.2.1:3478".parse().unwrap(), "[2001:db8::1]:3478".parse().unwrap());
        let mut gathering = Gathering::new(now, Some("stun.example:3478".into()), None);
        gathering.surveyed(now, vec![four, six], false, Vec::new());
        gathering.answered(now + Duration::from_millis(20), four);
        assert!(!gathering.is_complete(now + Duration::from_millis(300)));
        assert!(gathering.is_complete(now + Duration::from_millis(320)));
        assert!(gathering.into_problems(true).is_empty());
    }
}
