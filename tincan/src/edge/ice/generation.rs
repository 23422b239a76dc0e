//! One generation of a link: the credentials, the paths and the consent of one agent.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use stun::integrity::MessageIntegrity;

use crate::edge::ice::agent::{AgentId, Remote};
use crate::edge::ice::consent::Consent;
use crate::edge::ice::credentials::Credentials;
use crate::edge::ice::paths::{Paths, handle};
use crate::link::{CandidateKind, Role};
use crate::wire::candidate::Candidate;

/// Without a pair for this long an attempt counts as failed; it goes on at leisure.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Relayed pairs wait this long for a direct one, counted from the peer's first word.
const RELAY_WAIT: Duration = Duration::from_millis(500);
/// Most requests in flight of one agent.
const MAX_OUTSTANDING: usize = 1024;

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
    pub paths: Paths,
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
            paths: Paths::default(),
            heard: None,
            selected: None,
            consent: None,
            gave_up: false,
            close_at: None,
            outstanding: 0,
        }
    }

    /// Adds the path to a candidate, direct or through our relay; what the agent is to be told when it is new.
    pub fn add_candidate(&mut self, candidate: &Candidate, relay: Option<SocketAddr>) -> Option<Remote> {
        let index = self.paths.add(candidate.addr, relay, candidate.kind)?;
        let priority = if relay.is_some() { relayed_priority(candidate.priority) } else { candidate.priority };
        Some(Remote { handle: handle(index), priority: priority.max(1) })
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
        [failure, consent, self.close_at].into_iter().flatten().min()
    }

    /// Pause between the rounds of its agent, each of which costs a check made for every path, sent or not.
    pub fn check_interval(&self) -> Duration {
        Duration::from_millis(if self.started == self.first_started { 20 } else { 200 })
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
            5..=29 => 250,
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
        assert_eq!(count(&mut generation, 5, 30), 100);
        assert!(count(&mut generation, 30, 40) <= 6);
        let now = start + Duration::from_millis(40_100);
        assert!(generation.may_check(0, false, now));
        let now = start + Duration::from_secs(41);
        assert!(!generation.may_check(0, false, now));
        generation.hear(0, now);
        assert!(generation.may_check(0, false, now));
    }
}
