//! One generation of a link: the credentials, the paths and the consent of one agent.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use stun::integrity::MessageIntegrity;

use crate::edge::ice::agent::{AgentId, Remote, Setup};
use crate::edge::ice::consent::Consent;
use crate::edge::ice::credentials::Credentials;
use crate::edge::ice::paths::{Paths, handle};
use crate::ice::SelectedPair;
use crate::link::{CandidateKind, LinkId, Role};
use crate::wire::candidate::Candidate;

/// Without a pair for this long an attempt counts as failed; it goes on at leisure.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Relayed pairs wait this long for a direct one, counted from the peer's first word.
const RELAY_WAIT: Duration = Duration::from_millis(500);
/// A peer that is there at all has spoken by then.
const EAGERNESS: Duration = Duration::from_secs(2);
/// Most requests in flight of one agent.
const MAX_OUTSTANDING: usize = 1024;

/// How often the agent does a round of checks. Each costs a check made for every path, whether it is sent or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The peer is there, or is given until then to show up.
    Eager { until: Instant },
    /// The peer is silent.
    Leisurely,
}

impl Pace {
    /// Fast for a while, or for good if the peer speaks.
    pub fn eager(now: Instant) -> Self {
        Self::Eager { until: now + EAGERNESS }
    }

    /// Pause between rounds; the crate takes more than 200 ms for 200 ms.
    fn check_interval(self) -> Duration {
        match self {
            Self::Eager { .. } => Duration::from_millis(20),
            Self::Leisurely => Duration::from_millis(200),
        }
    }
}

/// See the module's head. Not `Debug`: it holds keys.
pub struct Generation {
    pub agent: AgentId,
    pub number: u32,
    pub role: Role,
    pub local: Credentials,
    pub remote: Credentials,
    pub local_key: MessageIntegrity,
    pub remote_key: MessageIntegrity,
    pub started: Instant,
    /// When the first attempt with this number began.
    pub first_started: Instant,
    pub pace: Pace,
    pub paths: Paths,
    /// What the agent was told of the paths.
    remotes: Vec<Remote>,
    /// When the peer first proved to be there.
    pub heard: Option<Instant>,
    /// The path of the pair the agent selected.
    pub selected: Option<usize>,
    /// Runs from the moment `Selected` was reported.
    pub consent: Option<Consent>,
    /// `Failed` was reported.
    pub gave_up: bool,
    /// A later generation took over: this one ends then.
    pub close_at: Option<Instant>,
    /// Requests in flight.
    pub outstanding: usize,
    /// Whether an agent answers the peer's checks. A resumed generation has none: its pair is known already.
    pub has_agent: bool,
}

impl Generation {
    /// A generation without paths; `local` and `remote` are those of generation 0.
    pub fn new(
        now: Instant,
        agent: AgentId,
        number: u32,
        role: Role,
        local: &Credentials,
        remote: &Credentials,
    ) -> Self {
        Self {
            agent,
            number,
            role,
            local_key: local.key(),
            remote_key: remote.key(),
            local: local.of_generation(number),
            remote: remote.of_generation(number),
            started: now,
            first_started: now,
            pace: Pace::eager(now),
            paths: Paths::default(),
            remotes: Vec::new(),
            heard: None,
            selected: None,
            consent: None,
            gave_up: false,
            close_at: None,
            outstanding: 0,
            has_agent: true,
        }
    }

    /// A generation of another process that goes on with the pair it had.
    pub fn resumed(mut self, pair: &SelectedPair, consent: Consent) -> Self {
        let SelectedPair { path, local_addr, local_kind: _, remote_addr, remote_kind } = pair;
        self.has_agent = false;
        // It is past all eagerness: nothing is left to find.
        self.heard = Some(self.started);
        self.pace = Pace::Leisurely;
        self.selected = self.paths.add(*remote_addr, None, *remote_kind);
        if let Some(entry) = self.selected.and_then(|index| self.paths.get_mut(index)) {
            entry.source = path.source;
            entry.mapped = Some(*local_addr).filter(|addr| !addr.ip().is_unspecified());
        }
        self.consent = Some(consent);
        self
    }

    /// Adds the path to a candidate, direct or through our relay; what the agent is to be told when it is new.
    pub fn add_candidate(&mut self, candidate: &Candidate, relay: Option<SocketAddr>) -> Option<Remote> {
        let index = self.paths.add(candidate.addr, relay, candidate.kind)?;
        let priority = if relay.is_some() { relayed_priority(candidate.priority) } else { candidate.priority };
        let remote = Remote { handle: handle(index), priority: priority.max(1) };
        self.remotes.push(remote);
        Some(remote)
    }

    /// All that an agent of this generation begins with.
    pub fn setup(&self, link: LinkId) -> Setup {
        Setup {
            link,
            agent: self.agent,
            role: self.role,
            local: self.local.clone(),
            remote: self.remote.clone(),
            remotes: self.remotes.clone(),
            check_interval: self.pace.check_interval(),
        }
    }

    /// The peer proved to be there, on a path.
    pub fn hear(&mut self, index: usize, now: Instant) {
        if self.heard.is_none() {
            self.heard = Some(now);
            self.paths.trigger_all();
        }
        self.paths.trigger(index);
    }

    /// True when the agent's check may go out on a path now. Once a pair is selected, consent checks take over.
    pub fn may_check(&mut self, index: usize, nominates: bool, now: Instant) -> bool {
        if self.selected.is_some() || self.outstanding >= MAX_OUTSTANDING {
            return false;
        }
        nominates || self.paths.check_due(index, now, self.pause(now))
    }

    /// True when the agent may learn that a check worked: relayed paths are held back on the side that decides.
    pub fn may_succeed(&self, index: usize, now: Instant) -> bool {
        let Some(entry) = self.paths.get(index) else { return false };
        self.role == Role::Controlled
            || !entry.is_relayed()
            || self.heard.is_some_and(|heard| heard + RELAY_WAIT <= now)
    }

    /// When something is due without any input.
    pub fn deadline(&self) -> Option<Instant> {
        let failure = (self.selected.is_none() && !self.gave_up).then(|| self.started + PATIENCE);
        let consent = self.consent.as_ref().map(Consent::deadline);
        [failure, consent, self.close_at, self.relax_at()].into_iter().flatten().min()
    }

    /// When to slow down, unless the peer speaks before.
    pub fn relax_at(&self) -> Option<Instant> {
        match self.pace {
            Pace::Eager { until } if self.heard.is_none() => Some(until),
            Pace::Eager { .. } | Pace::Leisurely => None,
        }
    }

    /// True while the peer is not expected to speak.
    pub fn is_drowsy(&self) -> bool {
        self.pace == Pace::Leisurely && self.heard.is_none()
    }

    /// True for a generation that reports: not one that a later one replaced.
    pub fn is_current(&self) -> bool {
        self.close_at.is_none()
    }

    /// Pause between checks of one path: eager at first, at leisure when the peer may not even know of the link yet.
    fn pause(&self, now: Instant) -> Duration {
        let age = now.duration_since(self.first_started);
        Duration::from_millis(match age.as_secs() {
            0 => 50,
            1..=4 => 100,
            5..=29 => 200,
            _ => 2000,
        })
    }
}

/// Priority of a candidate reached through our relay: below every direct path (2^24 - 1 is the least of those, of a
/// relayed candidate with one local address), in the order of the candidates.
pub fn relayed_priority(priority: u32) -> u32 {
    priority >> 7
}

/// What is known of a peer address that is no signalled candidate.
pub fn reflexive_candidate(addr: SocketAddr) -> Candidate {
    Candidate {
        addr,
        // RFC 8445 section 5.1.2: type preference 110, one local address, component 1.
        priority: (110 << 24) | (65535 << 8) | 255,
        ufrag: String::new(),
        pwd: String::new(),
        kind: CandidateKind::PeerReflexive,
        network: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(role: Role) -> Generation {
        let credentials = Credentials { ufrag: "name".into(), pwd: "password".into() };
        Generation::new(Instant::now(), AgentId(1), 0, role, &credentials, &credentials)
    }

    #[test]
    fn a_path_through_our_relay_ranks_below_every_direct_one() {
        let least_direct = (65535u32 << 8) | 255;
        assert!(relayed_priority((126 << 24) | (65535 << 8) | 255) < least_direct);
    }

    #[test]
    fn relayed_paths_wait_half_a_second_from_the_first_word_of_the_peer_on_the_side_that_decides() {
        for (role, at_once) in [(Role::Controlling, false), (Role::Controlled, true)] {
            let mut generation = generation(role);
            let now = generation.started + Duration::from_secs(10);
            let candidate = reflexive_candidate("192.0.2.1:9".parse().unwrap());
            generation.add_candidate(&candidate, Some("192.0.2.50:3478".parse().unwrap())).unwrap();
            generation.add_candidate(&candidate, None).unwrap();
            generation.hear(0, now);
            assert_eq!(generation.may_succeed(0, now), at_once);
            assert!(generation.may_succeed(1, now));
            assert!(generation.may_succeed(0, now + RELAY_WAIT));
        }
    }

    #[test]
    fn checks_slow_down_while_the_peer_is_silent_and_speed_up_at_its_first_word() {
        let mut generation = generation(Role::Controlling);
        generation.add_candidate(&reflexive_candidate("192.0.2.1:9".parse().unwrap()), None).unwrap();
        let start = generation.started;
        let count = |generation: &mut Generation, from: u64, to: u64| {
            (from * 20..to * 20)
                .filter(|tick| generation.may_check(0, false, start + Duration::from_millis(tick * 50)))
                .count()
        };
        assert_eq!(count(&mut generation, 0, 1), 20);
        assert_eq!(count(&mut generation, 1, 5), 40);
        assert_eq!(count(&mut generation, 5, 30), 125);
        assert!(count(&mut generation, 30, 40) <= 6);
        let now = start + Duration::from_millis(40_100);
        assert!(generation.may_check(0, false, now));
        let now = start + Duration::from_secs(41);
        assert!(!generation.may_check(0, false, now));
        generation.hear(0, now);
        assert!(generation.may_check(0, false, now));
    }
}
