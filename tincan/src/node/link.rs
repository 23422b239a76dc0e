//! One link's life, from `create_link` to `trim_link`.
//!
//! ```text
//! create_link -> gathering -> (con_resp out) -> waiting for cas -> checking -> securing -> online <-> offline
//!                                                                     ^           (plain: straight to online)
//!                                                                     +- a new ICE generation after silence
//! ```
//! The phase is never stored: it follows from what is known.

mod resume;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::ice::{IceCommand, SelectedPair};
use crate::link::{CandidateKind, LinkId, Role, Security, Traffic};
use crate::node::{LinkProtection, Output};
use crate::wire::candidate::{Candidate, Cas, Extension, write_cas};
use crate::wire::fingerprint::Fingerprint;
use crate::wire::notification::Notification;
use crate::wire::request::{CreateLink, Overlay};
use crate::wire::uid::Uid;

/// Silence before a new generation is tried beside the old one.
const RESTART_AFTER: Duration = Duration::from_secs(3);

/// Pause between attempts while nothing answers.
const RESTART_EVERY: Duration = Duration::from_secs(10);

/// First and longest pause between looks for a direct path while a link is relayed.
const UPGRADE_FIRST: Duration = Duration::from_secs(60);
const UPGRADE_LONGEST: Duration = Duration::from_secs(600);

/// The 2014 readable and writable flags: whose change makes a `con_stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flags {
    readable: bool,
    writable: bool,
}

impl Flags {
    pub(super) fn online(self) -> bool {
        self.readable && self.writable
    }
}

/// What the peer's `cas` said.
#[derive(Clone, Debug)]
struct Remote {
    candidates: Vec<Candidate>,
    /// The tag it wants in frames of a plain link.
    vni: Option<u32>,
    given_at: Instant,
}

/// One link.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts that are true independently of each other; the phase follows")]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) uid: Uid,
    pub(super) security: Security,
    pub(super) fingerprint_text: String,
    pub(super) overlay: Overlay,
    pub(super) receive_vni: u32,
    pub(super) created_at: Instant,
    pub(super) rtt: Option<Duration>,
    /// When the peer answered a check last.
    pub(super) answered_at: Option<Instant>,
    pub(super) pair: Option<SelectedPair>,
    pub(super) pair_reported: bool,
    pub(super) last_sample: Option<Sample>,
    pub(super) problems: Vec<String>,
    /// What `con_resp` said.
    pub(super) offer: Option<String>,
    role: Role,
    protection: LinkProtection,
    gathered: bool,
    /// What was offered to the peer.
    own: Vec<Candidate>,
    remote: Option<Remote>,
    /// The generation whose pair carries the link.
    generation: Option<u32>,
    /// The generation that is being tried.
    pending: Option<u32>,
    reachable: bool,
    authenticated: bool,
    /// The last session came to nothing; a fresh one begins when there is a path.
    session_due: bool,
    ended: Option<String>,
    first_online: Option<Instant>,
    retry_at: Option<Instant>,
    upgrade_pause: Duration,
}

/// Totals at one time and the rates they gave, for the per-second figures of `stats`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) traffic: Traffic,
    pub(super) sent_per_second: u64,
    pub(super) received_per_second: u64,
}

/// What `create_link` decided about a new link.
pub(super) struct LinkParameters {
    pub(super) id: LinkId,
    pub(super) uid: Uid,
    pub(super) security: Security,
    pub(super) fingerprint_text: String,
    pub(super) overlay: Overlay,
    pub(super) receive_vni: u32,
    pub(super) role: Role,
    pub(super) protection: LinkProtection,
}

impl Link {
    pub(super) fn new(now: Instant, parameters: LinkParameters) -> Self {
        let LinkParameters { id, uid, security, fingerprint_text, overlay, receive_vni, role, protection } = parameters;
        Self {
            id,
            uid,
            security,
            fingerprint_text,
            overlay,
            receive_vni,
            created_at: now,
            rtt: None,
            answered_at: None,
            pair: None,
            pair_reported: false,
            last_sample: None,
            problems: Vec::new(),
            offer: None,
            role,
            protection,
            gathered: false,
            own: Vec::new(),
            remote: None,
            generation: None,
            pending: None,
            reachable: false,
            authenticated: false,
            session_due: false,
            ended: None,
            first_online: None,
            retry_at: None,
            upgrade_pause: UPGRADE_FIRST,
        }
    }

    /// Whether the peer's candidates are known; a later `cas` is then ignored until the link is trimmed (2014).
    pub(super) fn has_remote(&self) -> bool {
        self.remote.is_some()
    }

    /// What a later `create_link` asks for that this link is not.
    pub(super) fn conflict(&self, call: &CreateLink) -> Option<String> {
        let what = match (self.protection, call.security) {
            (LinkProtection::Dtls { expected }, Security::Dtls) if call.fingerprint != Some(expected) => {
                "a link with another fingerprint (fpr)"
            }
            (LinkProtection::Dtls { .. }, Security::Dtls) | (LinkProtection::Plain { .. }, Security::None) => {
                return None;
            }
            (LinkProtection::Dtls { .. }, Security::None) => security_name(Security::Dtls),
            (LinkProtection::Plain { .. }, Security::Dtls) => security_name(Security::None),
        };
        Some(format!("there is {what} to this uid already: trim_link first, on both sides"))
    }

    pub(super) fn flags(&self) -> Flags {
        let alive = self.ended.is_none();
        Flags { readable: alive && self.authenticated, writable: alive && self.reachable }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Time from the peer's candidates being given to the link first being online.
    pub(super) fn setup(&self) -> Option<Duration> {
        let given_at = self.remote.as_ref()?.given_at;
        self.first_online.map(|online| online.saturating_duration_since(given_at))
    }

    pub(super) fn phase(&self) -> &'static str {
        if self.ended.is_some() {
            return "ended";
        }
        match (self.gathered, self.has_remote(), self.generation, self.flags().online()) {
            (_, _, _, true) => "online",
            (false, _, _, _) => "gathering",
            (true, false, _, _) => "waiting for the peer's candidates",
            (true, true, None, _) => "checking",
            (true, true, Some(_), _) if self.first_online.is_none() && self.reachable => "securing",
            (true, true, Some(_), _) => "offline",
        }
    }

    /// Why the link is not online, or why it is relayed; empty when all is well.
    pub(super) fn reason(&self) -> String {
        if let Some(reason) = &self.ended {
            return format!("{reason}; trim the link and create it again");
        }
        let text = match self.phase() {
            "online" => return self.relay_reason(),
            "gathering" => "collecting own candidates",
            "waiting for the peer's candidates" => {
                "the controller has not given the peer's candidates yet (create_link with cas)"
            }
            "checking" => "no pair of candidates has answered yet: is the peer running and its link created?",
            "securing" => "the DTLS handshake is running",
            _ => "the peer does not answer; a new path is tried every few seconds",
        };
        self.problems.iter().fold(text.to_owned(), |text, problem| format!("{text}; {problem}"))
    }

    fn relay_reason(&self) -> String {
        if !self.relayed() {
            return String::new();
        }
        let text = "relayed: no direct check was answered; both sides are probably behind NATs with address- and \
                    port-dependent mapping, or UDP between them is blocked";
        self.problems.iter().fold(text.to_owned(), |text, problem| format!("{text}; {problem}"))
    }

    fn relayed(&self) -> bool {
        self.pair
            .is_some_and(|pair| pair.local_kind == CandidateKind::Relayed || pair.remote_kind == CandidateKind::Relayed)
    }

    /// Takes the peer's candidates; says why if they cannot serve this link.
    pub(super) fn set_remote(&mut self, now: Instant, cas: Cas, outputs: &mut VecDeque<Output>) -> Result<(), String> {
        let Cas { candidates, extension, skipped } = cas;
        if candidates.is_empty() {
            return Err(format!("cas holds no usable UDP candidate ({skipped} were skipped)"));
        }
        let vni = extension.map(|extension| extension.vni);
        match (self.security, extension) {
            (Security::None, Some(Extension { vni, security: Security::None })) => {
                outputs.push_back(Output::SetSendTag { link: self.id, vni });
            }
            (Security::None, None) => {
                return Err("the peer's daemon does not offer plain links; create the link with sec true".to_owned());
            }
            (Security::Dtls, Some(Extension { vni: _, security: Security::Dtls }) | None) => {}
            (ours, Some(Extension { vni: _, security: theirs })) => {
                return Err(format!(
                    "this side asks for {}, the peer for {}: create both links with the same sec",
                    security_name(ours),
                    security_name(theirs)
                ));
            }
        }
        self.remote = Some(Remote { candidates, vni, given_at: now });
        self.begin_checks(outputs);
        Ok(())
    }

    pub(super) fn handle_gathered(
        &mut self,
        _now: Instant,
        own: Option<Fingerprint>,
        candidates: &[Candidate],
        problems: Vec<String>,
        outputs: &mut VecDeque<Output>,
    ) {
        self.gathered = true;
        self.own = candidates.to_vec();
        self.problems = problems;
        if candidates.is_empty() {
            self.problems.push("this host has no usable network address".to_owned());
        }
        let Some(own) = own else { return };
        let data = self.write_offer(own);
        self.offer = Some(data.clone());
        let (to, kind) = (self.uid, "con_resp".to_owned());
        outputs.push_back(match self.overlay {
            Overlay::Controller => Output::Notify(Notification::Message { kind, uid: to, data }),
            Overlay::Xmpp => Output::Signal { to, kind, data },
        });
        self.begin_checks(outputs);
    }

    fn write_offer(&self, own: Fingerprint) -> String {
        let extension = Extension { vni: self.receive_vni, security: self.security };
        format!("{own} {}", write_cas(&self.own, Some(extension)))
    }

    fn begin_checks(&mut self, outputs: &mut VecDeque<Output>) {
        if !self.gathered || self.pending.is_some() || self.generation.is_some() {
            return;
        }
        let Some(remote) = &self.remote else { return };
        self.pending = Some(0);
        outputs.push_back(Output::Ice(IceCommand::Check { link: self.id, candidates: remote.candidates.clone() }));
    }

    pub(super) fn handle_selected(
        &mut self,
        now: Instant,
        generation: u32,
        pair: SelectedPair,
        outputs: &mut VecDeque<Output>,
    ) {
        if self.ended.is_some() || self.generation.is_some_and(|current| generation < current) {
            return;
        }
        self.pair_reported &= self.pair == Some(pair);
        self.generation = Some(generation);
        self.pending = self.pending.filter(|pending| *pending > generation);
        self.pair = Some(pair);
        self.reachable = true;
        self.answered_at = Some(now);
        outputs.push_back(Output::SetPath { link: self.id, path: pair.path });
        self.renew_session(outputs);
        // A check of the peer carries its ICE password: for a plain link that is all the authentication there is.
        self.authenticated |= self.security == Security::None;
        self.note_online(now);
        self.plan_upgrade(now);
    }

    fn plan_upgrade(&mut self, now: Instant) {
        if !self.relayed() {
            self.retry_at = None;
            self.upgrade_pause = UPGRADE_FIRST;
            return;
        }
        self.retry_at = Some(now + self.upgrade_pause);
        self.upgrade_pause = (self.upgrade_pause * 2).min(UPGRADE_LONGEST);
    }

    pub(super) fn handle_authenticated(&mut self, now: Instant, _outputs: &mut VecDeque<Output>) {
        self.authenticated = true;
        self.note_online(now);
    }

    fn note_online(&mut self, now: Instant) {
        if self.flags().online() {
            self.first_online.get_or_insert(now);
        }
    }

    pub(super) fn handle_disconnected(
        &mut self,
        now: Instant,
        generation: u32,
        jitter: u64,
        _outputs: &mut VecDeque<Output>,
    ) {
        if self.generation != Some(generation) || self.ended.is_some() {
            return;
        }
        self.reachable = false;
        self.retry_at = Some(now + RESTART_AFTER + jitter_of(jitter));
    }

    pub(super) fn handle_reconnected(&mut self, now: Instant, generation: u32, outputs: &mut VecDeque<Output>) {
        if self.generation != Some(generation) || self.ended.is_some() {
            return;
        }
        self.reachable = true;
        self.renew_session(outputs);
        self.note_online(now);
        self.plan_upgrade(now);
    }

    pub(super) fn handle_round_trip(&mut self, now: Instant, rtt: Duration) {
        self.rtt = Some(rtt);
        self.answered_at = Some(now);
    }

    pub(super) fn handle_failed(&mut self, now: Instant, generation: u32, jitter: u64) {
        if self.pending == Some(generation) {
            self.pending = None;
        }
        if self.ended.is_none() && !self.reachable {
            self.retry_at = Some(now + jitter_of(jitter));
        }
    }

    /// The peer moved on to a later generation: follow it, or the pair can never form.
    pub(super) fn handle_peer_restarted(&mut self, now: Instant, generation: u32, outputs: &mut VecDeque<Output>) {
        let newest = self.pending.or(self.generation);
        if self.ended.is_some() || !self.has_remote() || newest.is_some_and(|newest| generation <= newest) {
            return;
        }
        self.restart(now, generation, outputs);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, jitter: u64, outputs: &mut VecDeque<Output>) {
        self.retry_at = None;
        if self.ended.is_some() || !self.has_remote() {
            return;
        }
        // The number only grows when a generation connected, so both sides always try the same one.
        let next = self.generation.map_or(1, |generation| generation.saturating_add(1));
        self.restart(now, next, outputs);
        if !self.reachable {
            self.retry_at = Some(now + RESTART_EVERY + jitter_of(jitter));
        }
    }

    fn restart(&mut self, now: Instant, generation: u32, outputs: &mut VecDeque<Output>) {
        self.pending = Some(generation);
        outputs.push_back(Output::Ice(IceCommand::Restart { link: self.id, generation }));
        if self.reachable && self.relayed() {
            self.plan_upgrade(now);
        }
    }

    /// The handshake came to nothing, for want of a path or a peer: a fresh session begins as soon as there is a path.
    pub(super) fn handle_session_timed_out(&mut self, outputs: &mut VecDeque<Output>) {
        if self.ended.is_none() {
            self.authenticated = false;
            self.session_due = true;
            self.renew_session(outputs);
        }
    }

    fn renew_session(&mut self, outputs: &mut VecDeque<Output>) {
        let LinkProtection::Dtls { expected } = self.protection else { return };
        if self.reachable && std::mem::take(&mut self.session_due) {
            outputs.push_back(Output::RenewSession { link: self.id, role: self.role, expected });
        }
    }

    pub(super) fn handle_session_ended(&mut self, _now: Instant, reason: String, outputs: &mut VecDeque<Output>) {
        self.ended.get_or_insert(reason);
        self.retry_at = None;
        outputs.push_back(Output::Ice(IceCommand::Close { link: self.id }));
    }
}

fn security_name(security: Security) -> &'static str {
    match security {
        Security::Dtls => "a secured link (sec true)",
        Security::None => "a plain link (sec false)",
    }
}

/// Up to one second, so that two sides do not keep missing each other in step.
fn jitter_of(random: u64) -> Duration {
    Duration::from_millis(random % 1000)
}
