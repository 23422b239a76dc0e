//! Links that another process had: their pairs are taken as selected, and proven by consent checks at once.

use std::time::Instant;

use crate::edge::ice::agent::AgentId;
use crate::edge::ice::consent::Consent;
use crate::edge::ice::core::checking::hold;
use crate::edge::ice::core::gathering::tie_breaker;
use crate::edge::ice::core::{Core, Link, MAX_LINKS, Output};
use crate::edge::ice::credentials::Credentials;
use crate::edge::ice::gather::SurveyRequest;
use crate::edge::ice::generation::Generation;
use crate::ice::{IceEvent, Resumption};
use crate::link::{CandidateKind, LinkId, PortKind, Role};
use crate::wire::candidate::Candidate;

impl Core {
    /// Goes on with a link of another process. One that cannot be is told as silent.
    pub(super) fn resume(&mut self, now: Instant, id: LinkId, port: PortKind, role: Role, resumption: Resumption) {
        let Resumption { own, peer, generation: number, pair, reachable, silence } = resumption;
        let (Some(local), Some(remote)) = (credentials(&own), credentials(&peer)) else {
            self.event(IceEvent::Disconnected { link: id, generation: number });
            return;
        };
        if self.links.contains_key(&id) || self.names.contains_key(&local.ufrag) || self.links.len() >= MAX_LINKS {
            self.event(IceEvent::Disconnected { link: id, generation: number });
            return;
        }
        self.next_agent += 1;
        let consent = Consent::resumed(now, silence, reachable, hold(port, self.config.lease));
        let generation = Generation::new(now, AgentId(self.next_agent), number, role, &local, &remote);
        self.names.insert(local.ufrag.clone(), id);
        let is_reflexive = |candidate: &&Candidate| candidate.kind == CandidateKind::ServerReflexive;
        let link = Link {
            port,
            role,
            tie_breaker: tie_breaker(&local),
            local,
            remote: Some((remote, peer)),
            hosts: Vec::new(),
            reflexive: own.iter().filter(is_reflexive).map(|candidate| candidate.addr).collect(),
            turn: None,
            relay: None,
            gathering: None,
            generations: vec![generation.resumed(&pair, consent)],
            early: Vec::new(),
            announced: number,
        };
        self.links.insert(id, link);
        self.outputs.push_back(Output::Survey(SurveyRequest { link: id, stun: None, turn: None }));
        self.tend_link(now, id);
    }

    /// Frames of the peer came along the selected pair.
    pub(super) fn traffic_seen(&mut self, now: Instant, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        for generation in link.generations.iter_mut().filter(|generation| generation.is_current()) {
            if let Some(consent) = &mut generation.consent {
                consent.frames_seen(now);
            }
        }
        self.arm_link(id);
    }
}

/// The credentials of an agent, which each of its candidates has.
fn credentials(candidates: &[Candidate]) -> Option<Credentials> {
    candidates.first().map(|first| Credentials { ufrag: first.ufrag.clone(), pwd: first.pwd.clone() })
}
