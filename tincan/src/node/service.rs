//! The XMPP service as the node sees it: the account, who is present, messages of peers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use crate::node::{MAX_PEERS, Node, Output};
use crate::wire::answer::Answer;
use crate::wire::notification::Notification;
use crate::wire::request::{Overlay, Secret};
use crate::wire::uid::Uid;

/// The 2014 controllers take a peer for present while its last presence is younger than this (`xmpp_time`).
const FRESH: Duration = Duration::from_secs(120);

/// The XMPP account of `register_svc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub username: String,
    pub password: Secret,
    pub host: String,
    pub port: u16,
}

/// How the login stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ServiceState {
    /// `register_svc` was not called.
    #[default]
    Unregistered,
    /// The first login is under way.
    Connecting,
    /// Logged in under this JID.
    Online { jid: String },
    /// Not logged in; tried again by itself unless the reason says otherwise.
    Offline { reason: String },
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unregistered => f.write_str("not registered"),
            Self::Connecting => f.write_str("logging in"),
            Self::Online { jid } => write!(f, "online as {jid}"),
            Self::Offline { reason } => write!(f, "offline: {reason}"),
        }
    }
}

/// Account and presences.
#[derive(Debug, Default)]
pub(super) struct Signalling {
    service: Option<Service>,
    state: ServiceState,
    presences: BTreeMap<Uid, Presence>,
    /// Who sent a message, present or not: they can be answered (2014).
    heard: BTreeSet<Uid>,
}

#[derive(Clone, Copy, Debug)]
struct Presence {
    last: Instant,
    gone: bool,
}

impl Signalling {
    /// Peers that were ever present.
    pub(super) fn seen(&self) -> impl Iterator<Item = Uid> {
        self.presences.keys().copied()
    }

    /// Whether there is somewhere to send to.
    fn has_seen(&self, uid: Uid) -> bool {
        self.presences.contains_key(&uid) || self.heard.contains(&uid)
    }

    /// Time since a peer's last presence, zero when there was none (2014). A peer that said goodbye is not fresh.
    pub(super) fn presence_age(&self, now: Instant, uid: Uid) -> Duration {
        self.presences.get(&uid).map_or(Duration::ZERO, |presence| {
            let age = now.saturating_duration_since(presence.last);
            if presence.gone { age.max(FRESH) } else { age }
        })
    }
}

impl Node {
    /// How the login stands, for reports.
    #[must_use]
    pub fn service_state(&self) -> &ServiceState {
        &self.signalling.state
    }

    /// The login changed.
    pub fn handle_service_state(&mut self, state: ServiceState) {
        self.signalling.state = state;
    }

    /// A peer is present at the service.
    pub fn handle_presence(&mut self, now: Instant, uid: Uid) {
        let room = self.signalling.presences.len() < MAX_PEERS || self.signalling.presences.contains_key(&uid);
        if room {
            self.signalling.presences.insert(uid, Presence { last: now, gone: false });
            self.offer_again(uid);
        }
    }

    /// A message to a peer did not get through: of those, candidates are sent again.
    pub fn handle_undelivered(&mut self, to: Uid, kind: &str) {
        let waiting = self.links.get_mut(&to).filter(|link| kind == "con_resp" && !link.has_remote());
        if let Some(link) = waiting {
            link.offer_is_due = true;
        }
    }

    fn offer_again(&mut self, to: Uid) {
        let Some(link) = self.links.get_mut(&to).filter(|link| link.offer_is_due) else { return };
        link.offer_is_due = false;
        if let Some(data) = link.offer.clone() {
            self.outputs.push_back(Output::Signal { to, kind: "con_resp".to_owned(), data });
        }
    }

    /// A peer left the service. Its link does not need the service and stays; of who has neither link nor addresses
    /// nothing is kept.
    pub fn handle_absence(&mut self, uid: Uid) {
        if !self.links.contains_key(&uid) && !self.addresses.contains_key(&uid) {
            self.signalling.presences.remove(&uid);
        }
        if let Some(presence) = self.signalling.presences.get_mut(&uid) {
            presence.gone = true;
        }
    }

    /// A message of a peer came through the service, of whatever kind.
    pub fn handle_message(&mut self, from: Uid, kind: String, data: String) {
        if self.signalling.heard.len() >= MAX_PEERS {
            self.signalling.heard.pop_first();
        }
        self.signalling.heard.insert(from);
        self.outputs.push_back(Output::Notify(Notification::Message { kind, uid: from, data }));
    }

    pub(super) fn register_service(&mut self, service: Service) -> Answer {
        let Some(local) = &self.local else {
            return Answer::Refused("this node has no identity yet: call set_local_ip first".to_owned());
        };
        if service.username.is_empty() || service.password.0.is_empty() || service.host.is_empty() {
            return Answer::Refused("username, password and host must all be given".to_owned());
        }
        match (&self.signalling.service, &self.signalling.state) {
            (None, _) => {}
            // What does not work may be corrected.
            (Some(before), ServiceState::Offline { .. }) if *before != service => {}
            (Some(_), _) => return Answer::Kept("a service is registered; other values are taken while it is offline"),
        }
        self.outputs.push_back(Output::Login { service: service.clone(), uid: local.ip.uid });
        self.signalling.service = Some(service);
        self.signalling.state = ServiceState::Connecting;
        Answer::Done
    }

    /// Why the peer's candidates, which the XMPP service carries, cannot come.
    pub(super) fn signalling_hindrance(&self, uid: Uid) -> Option<String> {
        let link = self.links.get(&uid).filter(|link| link.overlay == Overlay::Xmpp && !link.has_remote())?;
        match &self.signalling.state {
            ServiceState::Online { .. } if self.signalling.presences.get(&link.uid).is_some_and(|peer| !peer.gone) => {
                None
            }
            ServiceState::Online { .. } => Some("the peer is not present at the XMPP service".to_owned()),
            state @ (ServiceState::Unregistered | ServiceState::Connecting | ServiceState::Offline { .. }) => {
                Some(format!("the XMPP service carries them, but this node is {state}"))
            }
        }
    }

    /// `con_req`, `send_msg` and every method the daemon does not know go to the peer as they are (2014).
    pub(super) fn send_message(&mut self, kind: String, to: Uid, data: String) -> Answer {
        let cannot = |why: &str| Answer::Refused(format!("cannot send {kind} to {to}: {why}"));
        match &self.signalling.state {
            ServiceState::Unregistered => cannot("this node is not registered at an XMPP service (register_svc)"),
            ServiceState::Connecting => cannot("the login at the XMPP service is under way"),
            ServiceState::Offline { reason } => cannot(&format!("the XMPP service cannot be reached: {reason}")),
            ServiceState::Online { .. } if !self.signalling.has_seen(to) => cannot(
                "the peer has not been seen at the XMPP service: is it logged in, and is its account this one or in its roster?",
            ),
            ServiceState::Online { .. } => {
                self.outputs.push_back(Output::Signal { to, kind, data });
                Answer::Done
            }
        }
    }
}
