//! The XMPP session: logs in, keeps the login alive, tells who is present and carries messages between peers.
//!
//! One task owns everything. It reports what it sees; what follows from it is the node's business.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tracing::debug;

use crate::wire::fingerprint::Fingerprint;
use crate::wire::request::Secret;
use crate::wire::uid::Uid;

use self::counters::Counters;
use self::keeper::Keeper;
pub use self::rehearsal::{Rehearsal, rehearse};

mod connect;
mod counters;
mod guard;
mod keeper;
mod peers;
mod rehearsal;
mod retry;
mod session;
mod trust;

/// RFC 6120 section 14.7.
pub const DEFAULT_PORT: u16 = 5222;
/// Requests waiting for the task: far more than one burst of a controller.
const REQUESTS: usize = 1024;

/// How a server is trusted and spoken to.
#[derive(Clone, Debug, Default)]
pub struct XmppOptions {
    /// Certificates of the authorities to trust (PEM) in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// SHA-256 of the server's certificate: exactly this one is accepted, whoever signed it and whatever names it bears.
    pub pinned: Option<Fingerprint>,
    /// TLS from the first byte (XEP-0368) in place of STARTTLS.
    pub direct_tls: bool,
}

impl XmppOptions {
    /// An error where these could never lead to a login, such as a file of authorities that is not there. Reads files.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.ca_file {
            Some(_) => trust::client_config(self).map(drop),
            None => Ok(()),
        }
    }
}

/// Whom to log in as, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// A bare jid, or its node part; then `host` is the domain too.
    pub username: String,
    pub password: Secret,
    /// Name or address of the server; empty = the jid's domain.
    pub host: String,
    pub port: u16,
    /// This node.
    pub uid: Uid,
}

/// What the session tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XmppEvent {
    /// Logged in, presence sent.
    Online { jid: String },
    /// The session is lost or cannot be made; it is tried again. Told once until the next change.
    Offline { reason: String },
    /// The password or the server's certificate is wrong. Told once; tried again after 5 minutes, or at another login.
    Refused { reason: String },
    /// A peer's presence arrived, the first or a further one.
    Present { uid: Uid, jid: String },
    /// A peer left.
    Gone { uid: Uid },
    /// A message of a peer, present or not.
    Message { from: Uid, kind: String, data: String },
    /// A message could not be sent, or came back.
    Undelivered { to: Uid, kind: String, reason: String },
}

/// What the owner asks of the task.
#[derive(Debug)]
enum Request {
    Login(Account),
    Send { to: Uid, kind: String, data: String },
}

/// The running session; it logs out and ends on drop.
#[derive(Debug)]
pub struct XmppEdge {
    requests: Sender<Request>,
    counters: Arc<Counters>,
}

impl XmppEdge {
    /// Starts the task on the current runtime; it waits for [`Self::login`].
    pub fn start(options: XmppOptions, events: Sender<XmppEvent>) -> Self {
        let (requests, inbox) = channel(REQUESTS);
        let counters = Arc::<Counters>::default();
        let keeper = Keeper::new(options, Inbox { requests: inbox, account: None }, events, Arc::clone(&counters));
        tokio::spawn(keeper.run());
        Self { requests, counters }
    }

    /// Logs in, or changes to another account; the account in use again changes nothing.
    pub fn login(&self, account: Account) {
        self.request(Request::Login(account));
    }

    /// Sends a message; [`XmppEvent::Undelivered`] follows when it cannot be.
    pub fn send(&self, to: Uid, kind: String, data: String) {
        self.request(Request::Send { to, kind, data });
    }

    /// What was dropped, by reason.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.all()
    }

    fn request(&self, request: Request) {
        if self.requests.try_send(request).is_err() {
            self.counters.overrun.add();
            debug!("the XMPP session does not keep up, a request is dropped");
        }
    }
}

/// The owner's requests, and the account they left us with.
#[derive(Debug)]
struct Inbox {
    requests: Receiver<Request>,
    account: Option<Account>,
}

/// What the task has to do next.
#[derive(Debug)]
enum Call {
    /// Use the account of the inbox, which is another one now.
    Login,
    Send {
        to: Uid,
        kind: String,
        data: String,
    },
}

impl Inbox {
    /// The next call; `None` once the owner is gone.
    async fn next(&mut self) -> Option<Call> {
        loop {
            match self.requests.recv().await? {
                Request::Login(account) if self.account.as_ref() == Some(&account) => {}
                Request::Login(account) => {
                    self.account = Some(account);
                    return Some(Call::Login);
                }
                Request::Send { to, kind, data } => return Some(Call::Send { to, kind, data }),
            }
        }
    }
}

/// Why there is no session, or no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing helps but somebody who changes the password, the certificate or the options.
    Refused(String),
    /// Somebody else logged in with our resource.
    Conflict(String),
    /// Anything that may be over soon.
    Lost(String),
}
