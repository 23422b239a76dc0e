//! One bound session: roster, presence, messages, until the stream ends.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt, StreamExt};
use tokio::sync::mpsc::Sender;
use tokio::time::{self, sleep_until, timeout};
use tokio_xmpp::Stanza;
use tokio_xmpp::xmlstream::{FallibleStreamElement, ReadError, StreamElementError, XmppStreamElement};
use tracing::{debug, warn};
use xmpp_parsers::iq::Iq;
use xmpp_parsers::jid::{FullJid, Jid};
use xmpp_parsers::minidom::Element;
use xmpp_parsers::ping::Ping;
use xmpp_parsers::presence::{Presence, Type};
use xmpp_parsers::roster::{Item, Roster, Subscription};
use xmpp_parsers::stanza_error::{DefinedCondition, ErrorType, StanzaError};

use super::connect::{StanzaChannel, closed, lost, stream_failure};
use super::counters::Counters;
use super::keeper::End;
use super::peers::{Allowance, Peers, Refusal};
use super::{Call, Failure, Inbox, XmppEvent};
use crate::wire::stanza::{NAMESPACE, PeerMessage, message_iq, presence, read_query};
use crate::wire::uid::Uid;

/// A server that does not answer the roster request this long has none.
const ROSTER_DEADLINE: Duration = Duration::from_secs(10);
/// 2014: presence at login, again after this time,
const SECOND_PRESENCE: Duration = Duration::from_secs(15);
/// and then at this interval.
const PRESENCE_INTERVAL: Duration = Duration::from_secs(120);
/// For one stanza to leave.
const SEND_DEADLINE: Duration = Duration::from_secs(10);
/// For an orderly logout.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// Messages whose return is recognised; a server returns one at once or never.
const REMEMBERED: usize = 256;
/// What the daemon itself says to its controller.
const OWN_KINDS: [&str; 5] = ["local_state", "peer_state", "con_stat", "echo_request", "echo_reply"];
const ROSTER_ID: &str = "roster";
const PING_ID: &str = "ping";

/// How often presence was sent in this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Announced {
    Never,
    Once,
    Often,
}

/// A message that may come back.
#[derive(Debug)]
struct Sent {
    id: String,
    to: FullJid,
    uid: Uid,
    kind: String,
}

/// The session and what outlives it.
pub(super) struct Session<'a> {
    channel: StanzaChannel,
    own: FullJid,
    peers: &'a mut Peers,
    events: &'a Sender<XmppEvent>,
    counters: &'a Counters,
    announced: Announced,
    next_presence: time::Instant,
    sent: VecDeque<Sent>,
    next_id: u64,
    answers: Allowance,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        channel: StanzaChannel,
        own: FullJid,
        peers: &'a mut Peers,
        events: &'a Sender<XmppEvent>,
        counters: &'a Counters,
    ) -> Self {
        peers.begin_session(own.clone());
        Self {
            channel,
            own,
            peers,
            events,
            counters,
            announced: Announced::Never,
            next_presence: time::Instant::now() + ROSTER_DEADLINE,
            sent: VecDeque::new(),
            next_id: 0,
            answers: Allowance::new(),
        }
    }

    /// Runs until the stream ends, another account shall be used, or the owner is gone; then logs out.
    pub(super) async fn run(mut self, inbox: &mut Inbox) -> End {
        let end = match self.live(inbox).await {
            Ok(end) => end,
            Err(failure) => return End::Failed(failure),
        };
        let farewell = SinkExt::<&Stanza>::close(&mut self.channel);
        if timeout(CLOSE_DEADLINE, farewell).await.is_err() {
            debug!("the server did not take our logout");
        }
        end
    }

    async fn live(&mut self, inbox: &mut Inbox) -> Result<End, Failure> {
        self.send(Iq::from_get(ROSTER_ID, Roster { ver: None, items: Vec::new() }).into()).await?;
        loop {
            tokio::select! {
                element = self.channel.next() => match element {
                    Some(element) => self.take(element).await?,
                    None => return Err(closed()),
                },
                call = inbox.next() => match call {
                    Some(Call::Login) => return Ok(End::Login),
                    Some(Call::Send { to, kind, data }) => self.send_message(to, PeerMessage { kind, data }).await?,
                    None => return Ok(End::Dropped),
                },
                () = sleep_until(self.next_presence) => self.announce().await?,
            }
        }
    }

    async fn take(&mut self, element: Result<FallibleStreamElement, ReadError>) -> Result<(), Failure> {
        match element {
            Ok(FallibleStreamElement::Ok(XmppStreamElement::Stanza(stanza))) => self.take_stanza(stanza).await,
            Ok(FallibleStreamElement::Ok(XmppStreamElement::StreamError(error))) => {
                Err(stream_failure(&error.0.condition, &error))
            }
            Ok(FallibleStreamElement::Ok(_)) => Err(Failure::Lost("the server sent what is no stanza".to_owned())),
            Ok(FallibleStreamElement::Err(StreamElementError::InvalidStanza { .. }))
            | Err(ReadError::ParseError(_)) => {
                self.counters.malformed.add();
                Ok(())
            }
            Ok(FallibleStreamElement::Err(error @ StreamElementError::InvalidNonza { .. })) => Err(lost(error)),
            Err(ReadError::SoftTimeout) => self.send(Iq::from_get(PING_ID, Ping).into()).await,
            Err(ReadError::HardError(error)) => Err(lost(error)),
            Err(ReadError::StreamFooterReceived) => Err(closed()),
        }
    }

    async fn take_stanza(&mut self, stanza: Stanza) -> Result<(), Failure> {
        match stanza {
            Stanza::Presence(presence) => self.take_presence(&presence).await,
            Stanza::Message(_) => {}
            Stanza::Iq(Iq::Get { from, id, payload, .. }) => self.take_get(from, id, payload).await?,
            Stanza::Iq(Iq::Set { from, id, payload, .. }) => self.take_set(from, id, payload).await?,
            Stanza::Iq(Iq::Result { from, id, payload, .. }) => {
                if id == ROSTER_ID && self.is_server(from.as_ref()) {
                    self.take_roster(payload).await?;
                }
            }
            Stanza::Iq(Iq::Error { from, id, error, .. }) => self.take_error(from, &id, &error).await?,
        }
        Ok(())
    }

    async fn take_presence(&mut self, presence: &Presence) {
        let Some(Ok(from)) = presence.from.as_ref().map(Jid::try_as_full) else { return };
        match presence.type_ {
            Type::None => match self.peers.appeared(from, Instant::now()) {
                Ok(uid) => self.tell(XmppEvent::Present { uid, jid: from.to_string() }).await,
                Err(refusal) => self.refuse(refusal, from),
            },
            Type::Unavailable => {
                let gone = self.peers.left(from, Instant::now());
                self.tell_gone(gone).await;
            }
            // Who may see whom is arranged on the server, as in 2014.
            Type::Error | Type::Probe | Type::Subscribe | Type::Subscribed | Type::Unsubscribe | Type::Unsubscribed => {
            }
        }
    }

    async fn take_get(&mut self, from: Option<Jid>, id: String, payload: Element) -> Result<(), Failure> {
        if payload.is("query", NAMESPACE) {
            self.take_message(from.as_ref(), &payload).await;
            return Ok(());
        }
        if payload.is("ping", xmpp_parsers::ns::PING) && self.may_answer(from.as_ref()) {
            return self.send(Iq::Result { from: None, to: from, id, payload: None }.into()).await;
        }
        self.answer_unknown(from, id).await
    }

    async fn take_set(&mut self, from: Option<Jid>, id: String, payload: Element) -> Result<(), Failure> {
        match Roster::try_from(payload) {
            Ok(push) if self.is_server(from.as_ref()) => {
                for item in push.items {
                    self.take_item(item).await;
                }
                self.send(Iq::Result { from: None, to: from, id, payload: None }.into()).await
            }
            Ok(_) | Err(_) => self.answer_unknown(from, id).await,
        }
    }

    async fn take_message(&mut self, from: Option<&Jid>, payload: &Element) {
        let Some(Ok(from)) = from.map(Jid::try_as_full) else { return self.counters.malformed.add() };
        let uid = match self.peers.spoke(from, Instant::now()) {
            Ok(uid) => uid,
            Err(refusal) => return self.refuse(refusal, from),
        };
        match read_query(payload) {
            // What only the daemon says to its controller is no peer's to say.
            Ok(PeerMessage { kind, data: _ }) if OWN_KINDS.contains(&kind.as_str()) => {
                debug!(peer = %from, kind, "a message that poses as the daemon's own");
                self.counters.forged.add();
            }
            Ok(PeerMessage { kind, data }) => self.tell(XmppEvent::Message { from: uid, kind, data }).await,
            Err(error) => {
                debug!(peer = %from, %error, "a message that cannot be read");
                self.counters.malformed.add();
            }
        }
    }

    async fn take_roster(&mut self, payload: Option<Element>) -> Result<(), Failure> {
        // One by one: an item that cannot be read says nothing about the others.
        if let Some(roster) = payload.filter(|payload| payload.is("query", xmpp_parsers::ns::ROSTER)) {
            let items: Vec<Item> = roster.children().filter_map(|child| self.read_item(child)).collect();
            let accounts = items.into_iter().filter(counts).map(|item| item.jid);
            let (gone, rejected) = self.peers.set_accounts(accounts);
            for _ in 0..rejected {
                self.counters.overflow.add();
            }
            self.tell_gone(gone).await;
        }
        if self.announced == Announced::Never { self.announce().await } else { Ok(()) }
    }

    fn read_item(&self, child: &Element) -> Option<Item> {
        let read = Item::try_from(child.clone());
        read.inspect_err(|error| {
            debug!(%error, "a roster item that cannot be read");
            self.counters.malformed.add();
        })
        .ok()
    }

    async fn take_item(&mut self, item: Item) {
        if !counts(&item) {
            let gone = self.peers.remove_account(&item.jid);
            self.tell_gone(gone).await;
        } else if !self.peers.add_account(item.jid) {
            self.counters.overflow.add();
        }
    }

    async fn take_error(&mut self, from: Option<Jid>, id: &str, error: &StanzaError) -> Result<(), Failure> {
        if id == ROSTER_ID && self.is_server(from.as_ref()) && self.announced == Announced::Never {
            return self.announce().await;
        }
        let returned = |sent: &Sent| sent.id == id && from.as_ref().is_some_and(|from| *from == sent.to);
        if let Some(Sent { uid, kind, .. }) = self.sent.iter().position(returned).and_then(|at| self.sent.remove(at)) {
            let reason = format!("returned: {:?}", error.defined_condition);
            self.tell(XmppEvent::Undelivered { to: uid, kind, reason }).await;
        }
        Ok(())
    }

    /// Sends presence; the first time tells that we are online, the second time who has not come back.
    async fn announce(&mut self) -> Result<(), Failure> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.send(presence(now).into()).await?;
        let until_next = match self.announced {
            Announced::Never => {
                self.tell(XmppEvent::Online { jid: self.own.to_string() }).await;
                self.announced = Announced::Once;
                SECOND_PRESENCE
            }
            Announced::Once => {
                let gone = self.peers.forget_unseen();
                self.tell_gone(gone).await;
                self.announced = Announced::Often;
                PRESENCE_INTERVAL
            }
            Announced::Often => PRESENCE_INTERVAL,
        };
        self.next_presence = time::Instant::now() + until_next;
        Ok(())
    }

    async fn send_message(&mut self, uid: Uid, message: PeerMessage) -> Result<(), Failure> {
        let kind = message.kind.clone();
        let Some(to) = self.peers.address(uid).cloned() else {
            let reason = "no presence of this peer".to_owned();
            self.tell(XmppEvent::Undelivered { to: uid, kind, reason }).await;
            return Ok(());
        };
        let id = format!("m{}", self.next_id);
        self.next_id += 1;
        match message_iq(to.clone(), id.clone(), &message) {
            Ok(iq) => {
                self.sent.truncate(REMEMBERED - 1);
                self.sent.push_front(Sent { id, to, uid, kind });
                self.send(iq.into()).await
            }
            Err(error) => {
                self.tell(XmppEvent::Undelivered { to: uid, kind, reason: error.to_string() }).await;
                Ok(())
            }
        }
    }

    /// RFC 6120 section 8.4: a request we do not know is answered, but not to everybody and not without end.
    async fn answer_unknown(&mut self, from: Option<Jid>, id: String) -> Result<(), Failure> {
        if !self.may_answer(from.as_ref()) {
            return Ok(());
        }
        let error = StanzaError::new(ErrorType::Cancel, DefinedCondition::FeatureNotImplemented, "en", "");
        self.send(Iq::Error { from: None, to: from, id, error, payload: None }.into()).await
    }

    fn may_answer(&mut self, from: Option<&Jid>) -> bool {
        let known = self.is_server(from) || from.is_some_and(|from| self.peers.admits(&from.to_bare()));
        if !known {
            self.counters.strangers.add();
        }
        known && self.answers.takes(Instant::now())
    }

    /// RFC 6120 section 8.1.2.1: the server speaks for our account without `from` or with our own bare jid.
    fn is_server(&self, from: Option<&Jid>) -> bool {
        let Some(from) = from else { return true };
        let of_domain = from.node().is_none() && from.is_bare() && from.domain() == self.own.domain();
        of_domain || *from == self.own.to_bare() || *from == self.own
    }

    fn refuse(&self, refusal: Refusal, from: &FullJid) {
        match refusal {
            Refusal::NoNode => {}
            Refusal::Stranger => self.counters.strangers.add(),
            Refusal::Claimed { fresh } => {
                if fresh {
                    warn!(jid = %from, "refused: this account claims a uid that somebody else holds");
                }
                self.counters.claimed.add();
            }
            Refusal::Full => self.counters.overflow.add(),
            Refusal::Excess => self.counters.excess.add(),
        }
    }

    async fn send(&mut self, stanza: Stanza) -> Result<(), Failure> {
        match timeout(SEND_DEADLINE, self.channel.send(&stanza)).await {
            Ok(sent) => sent.map_err(lost),
            Err(_) => Err(Failure::Lost("the server takes nothing any more".to_owned())),
        }
    }

    async fn tell_gone(&self, gone: impl IntoIterator<Item = Uid>) {
        for uid in gone {
            self.tell(XmppEvent::Gone { uid }).await;
        }
    }

    async fn tell(&self, event: XmppEvent) {
        if self.events.send(event).await.is_err() {
            debug!("nobody listens to the XMPP session");
        }
    }
}

/// Whether an account may speak to us: one of us two sees the other's presence.
fn counts(item: &Item) -> bool {
    matches!(item.subscription, Subscription::To | Subscription::From | Subscription::Both)
}
