//! Keeps a session: connects, waits and tries again, and tells each change once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::connect::connect;
use super::counters::Counters;
use super::peers::Peers;
use super::retry::Retry;
use super::session::Session;
use super::{Call, Failure, Inbox, XmppEvent, XmppOptions};

/// Why a try or a session ended.
#[derive(Debug)]
pub(super) enum End {
    Failed(Failure),
    /// The account of the inbox shall be used.
    Login,
    /// The owner is gone.
    Dropped,
}

/// What was told last.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Online,
    Offline(String),
    Refused(String),
}

/// The task behind an `XmppEdge`.
pub(super) struct Keeper {
    options: XmppOptions,
    inbox: Inbox,
    events: Sender<XmppEvent>,
    counters: Arc<Counters>,
    peers: Option<Peers>,
    retry: Retry,
    told: Told,
}

impl Keeper {
    pub(super) fn new(options: XmppOptions, inbox: Inbox, events: Sender<XmppEvent>, counters: Arc<Counters>) -> Self {
        Self { options, inbox, events, counters, peers: None, retry: Retry::default(), told: Told::Nothing }
    }

    /// Runs until the owner is gone.
    pub(super) async fn run(mut self) {
        let mut end = idle(&mut self.inbox, &self.events).await;
        loop {
            match end {
                End::Dropped => return,
                End::Login => self.begin_anew(),
                End::Failed(failure) => {
                    let wait = self.retry.wait(&failure, random());
                    self.report(failure, wait).await;
                    if let Ok(interrupted) = timeout(wait, idle(&mut self.inbox, &self.events)).await {
                        end = interrupted;
                        continue;
                    }
                }
            }
            end = self.attempt().await;
        }
    }

    /// Nothing of another account counts for this one.
    fn begin_anew(&mut self) {
        self.peers = None;
        self.retry = Retry::default();
        self.told = Told::Nothing;
    }

    /// Connects and stays connected as long as it lasts.
    async fn attempt(&mut self) -> End {
        let Some(account) = self.inbox.account.clone() else { return idle(&mut self.inbox, &self.events).await };
        self.counters.connects.add();
        let (channel, own) = tokio::select! {
            connected = connect(&self.options, &account) => match connected {
                Ok(connected) => connected,
                Err(failure) => return End::Failed(failure),
            },
            end = idle(&mut self.inbox, &self.events) => return end,
        };
        info!(jid = %own, "XMPP session");
        self.told = Told::Online;
        let start = Instant::now();
        let peers = self.peers.get_or_insert_with(|| Peers::new(own.clone(), account.uid));
        let end = Session::new(channel, own, peers, &self.events, &self.counters).run(&mut self.inbox).await;
        self.retry.lasted(start.elapsed());
        end
    }

    async fn report(&mut self, failure: Failure, wait: Duration) {
        let seconds = wait.as_secs();
        let (told, event) = match failure {
            Failure::Refused(reason) => (Told::Refused(reason.clone()), XmppEvent::Refused { reason }),
            Failure::Conflict(reason) => {
                warn!(reason, seconds, "another session uses this node's XMPP resource; waiting");
                (Told::Offline(reason.clone()), XmppEvent::Offline { reason })
            }
            Failure::Lost(reason) => {
                debug!(reason, seconds, "no XMPP session; waiting");
                (Told::Offline(reason.clone()), XmppEvent::Offline { reason })
            }
        };
        if self.told != told {
            if matches!(told, Told::Refused(_)) {
                info!(seconds, "the refused login is tried again after this time, or at once by register_svc");
            }
            self.told = told;
            tell(&self.events, event).await;
        }
    }
}

/// Without a session messages come back at once; ends at a login or when the owner is gone.
async fn idle(inbox: &mut Inbox, events: &Sender<XmppEvent>) -> End {
    loop {
        match inbox.next().await {
            Some(Call::Login) => return End::Login,
            Some(Call::Send { to, kind, data: _ }) => {
                let reason = "not logged in".to_owned();
                tell(events, XmppEvent::Undelivered { to, kind, reason }).await;
            }
            None => return End::Dropped,
        }
    }
}

async fn tell(events: &Sender<XmppEvent>, event: XmppEvent) {
    if events.send(event).await.is_err() {
        debug!("nobody listens to the XMPP session");
    }
}

/// Without randomness nodes that failed together try again together: worse, but no reason to stop.
fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}
