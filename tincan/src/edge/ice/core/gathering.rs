//! Collects candidates of links: interfaces, STUN servers, a TURN server.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use crate::edge::ice::core::{Core, Link, MAX_LINKS, Output, Querying, ServerKey, Timer};
use crate::edge::ice::credentials::Credentials;
use crate::edge::ice::gather::{Gathering, HostAddress, Survey, SurveyRequest, candidates, choose_hosts};
use crate::edge::ice::message::Incoming;
use crate::edge::ice::reflexive::Query;
use crate::ice::IceEvent;
use crate::link::{LinkId, Path, PortKind, Role};
use crate::wire::request::TurnServer;

impl Core {
    pub(super) fn gather(
        &mut self,
        now: Instant,
        id: LinkId,
        port: PortKind,
        role: Role,
        stun: Option<String>,
        turn: Option<TurnServer>,
    ) {
        if self.links.contains_key(&id) {
            tracing::debug!(link = %id, "a link is gathered for once only");
            return;
        }
        if self.links.len() >= MAX_LINKS {
            let problem = format!("there are {MAX_LINKS} links already: trim some");
            self.event(IceEvent::Gathered { link: id, candidates: Vec::new(), problems: vec![problem] });
            return;
        }
        let local = match Credentials::random() {
            Ok(local) => local,
            Err(error) => {
                let problem = format!("no randomness for ICE credentials: {error}");
                self.event(IceEvent::Gathered { link: id, candidates: Vec::new(), problems: vec![problem] });
                return;
            }
        };
        let turn_name = turn.as_ref().map(|server| server.address.clone());
        self.names.insert(local.ufrag.clone(), id);
        let link = Link {
            port,
            role,
            tie_breaker: tie_breaker(&local),
            local,
            remote: None,
            hosts: Vec::new(),
            reflexive: Vec::new(),
            turn,
            relay: None,
            gathering: Some(Gathering::new(now, stun.clone(), turn_name.clone())),
            generations: Vec::new(),
            early: Vec::new(),
            announced: 0,
        };
        self.links.insert(id, link);
        self.outputs.push_back(Output::Survey(SurveyRequest { link: id, stun, turn: turn_name }));
    }

    /// Interfaces and names were looked up.
    pub fn handle_survey(&mut self, now: Instant, id: LinkId, survey: Survey) {
        let tap = self.config.tap_name.clone();
        let ignored = self.ignored.clone();
        let Some(link) = self.links.get_mut(&id) else { return };
        let Survey { hosts, stun, turn, problems } = survey;
        link.hosts = choose_hosts(&hosts, |name| name == tap || ignored.iter().any(|other| other == name));
        if link.gathering.is_none() {
            return;
        }
        let port = link.port;
        let queried = reachable(&link.hosts, &stun);
        let account = link.turn.clone();
        let relay = reachable(&link.hosts, &turn).into_iter().min_by_key(SocketAddr::is_ipv6);
        if let Some(gathering) = &mut link.gathering {
            gathering.surveyed(now, queried.clone(), relay.is_some(), problems);
        }
        for server in queried {
            self.query(now, (port, server), id);
        }
        if let (Some(server), Some(account)) = (relay, account) {
            self.join_relay(now, (port, server), &account, id);
        }
        self.tend_link(now, id);
    }

    /// Asks a STUN server, together with the other links that ask it just now.
    fn query(&mut self, now: Instant, key: ServerKey, id: LinkId) {
        let querying =
            self.queries.entry(key).or_insert_with(|| Querying { query: Query::new(now), links: BTreeSet::new() });
        querying.links.insert(id);
        self.tend_query(now, key);
    }

    pub(super) fn tend_query(&mut self, now: Instant, key: ServerKey) {
        let Some(querying) = self.queries.get_mut(&key) else { return };
        if querying.query.is_over(now) {
            self.queries.remove(&key);
            return;
        }
        let (port, server) = key;
        if let Some(datagram) = querying.query.poll_transmit(now) {
            let path = Path { remote: server, source: None, relay: None };
            self.outputs.push_back(Output::Transmit { port, path, datagram });
        }
        let at = querying.query.deadline();
        self.arm(Timer::Query(key), Some(at));
    }

    /// A message from a server we may have asked; false when it is no answer to a query.
    pub(super) fn answer_query(&mut self, now: Instant, key: ServerKey, incoming: &Incoming) -> bool {
        let Some(mapped) = self.queries.get(&key).and_then(|querying| querying.query.answer(incoming)) else {
            return false;
        };
        let links = self.queries.remove(&key).map(|querying| querying.links).unwrap_or_default();
        for id in links {
            self.learn_reflexive(id, mapped);
            if let Some(gathering) = self.links.get_mut(&id).and_then(|link| link.gathering.as_mut()) {
                gathering.answered(now, key.1);
            }
            self.tend_link(now, id);
        }
        true
    }

    /// A server saw our port as this address.
    pub(super) fn learn_reflexive(&mut self, id: LinkId, mapped: SocketAddr) {
        if let Some(link) = self.links.get_mut(&id)
            && !link.reflexive.contains(&mapped)
        {
            link.reflexive.push(mapped);
        }
    }

    /// Reports the candidates once all is there or had its time.
    pub(super) fn finish_gathering(&mut self, now: Instant, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(gathering) = link.gathering.take_if(|gathering| gathering.is_complete(now)) else { return };
        let relayed = link.relay.and_then(|key| self.relays.get(&key)).and_then(|relay| relay.client.relayed());
        let (port, local) = (link.port, link.local.clone());
        let (hosts, reflexive) = (link.hosts.clone(), link.reflexive.clone());
        let mut problems = gathering.into_problems(!reflexive.is_empty());
        if hosts.is_empty() {
            problems.push("no interface with a usable address is up".to_owned());
        }
        let direct = self.config.direct_plain_port.filter(|_| port == PortKind::Plain);
        let candidates = candidates(&local, (self.port_number(port), direct), &hosts, &reflexive, relayed);
        self.event(IceEvent::Gathered { link: id, candidates, problems });
    }
}

/// The first server address of each family that we have addresses of; of both when we know none of ours.
fn reachable(hosts: &[HostAddress], servers: &[SocketAddr]) -> Vec<SocketAddr> {
    let first = |six: bool| servers.iter().find(|server| server.is_ipv6() == six);
    let have = |six: bool| hosts.is_empty() || hosts.iter().any(|host| host.addr.is_ipv6() == six);
    [false, true].into_iter().filter(|six| have(*six)).filter_map(first).copied().collect()
}

/// Any 64 bits do: roles are fixed, so no conflict is ever decided by it. Taken from the name, which is random and
/// public anyway.
pub(super) fn tie_breaker(local: &Credentials) -> u64 {
    local.ufrag.bytes().fold(0u64, |mixed, byte| mixed.rotate_left(5) ^ u64::from(byte))
}
