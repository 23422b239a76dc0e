//! Who may use the UDP door: the daemon's own user, root, and the members of a configured group.
//!
//! A datagram does not say who sent it, so the kernel is asked whose sockets are at its source port when it is read.
//! Nothing of that answer is kept, since the next datagram from the port may be another user's. A socket may send from
//! any address of the host (`IP_PKTINFO`), so every socket at the port must belong to someone allowed, wherever it is
//! bound; and one of them must look like the sender, or the sender is gone and the port perhaps someone else's.

mod sockets;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, User, getgrouplist};

use self::sockets::OpenSocket;

/// Between two lines of the log about refusals.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How long the user database's word on a user is kept: it may live on another host.
const MEMBERSHIP_LIFETIME: Duration = Duration::from_secs(60);

/// Users whose membership is kept; a user with subordinate uids can appear as thousands.
const MAX_MEMBERSHIPS: usize = 256;

/// Decides about senders, and counts those it refuses.
#[derive(Debug)]
pub struct Admission {
    own: Uid,
    group: Option<Gid>,
    memberships: HashMap<Uid, (bool, Instant)>,
    last_logged: Option<Instant>,
    foreign_users: u64,
    closed_senders: u64,
    failed_lookups: u64,
}

/// Why a datagram is not looked at.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("a socket at the sender's port belongs to another user, uid {0}")]
    ForeignUser(Uid),
    #[error("the sender's socket is closed or bound elsewhere, so its user is not known")]
    ClosedSender,
    #[error("the kernel does not tell the sender's user: {0}")]
    FailedLookup(#[from] io::Error),
}

impl Admission {
    /// Admits root, this process's user and the users of `group`.
    #[must_use]
    pub fn new(group: Option<Gid>) -> Self {
        Self {
            own: Uid::effective(),
            group,
            memberships: HashMap::new(),
            last_logged: None,
            foreign_users: 0,
            closed_senders: 0,
            failed_lookups: 0,
        }
    }

    /// Asks once, so that a kernel which cannot tell (`CONFIG_INET_UDP_DIAG`) is known before the first call.
    pub fn check_kernel(&self, door: SocketAddr) {
        if let Err(error) = ask_kernel(door) {
            tracing::warn!(%error, "the kernel does not tell whose UDP sockets are whose: use the Unix socket, \
                every call over UDP is refused");
        }
    }

    /// Whether what `sender` sent to `door` may be looked at; a refusal is counted, and logged at most once a minute.
    pub fn admits(&mut self, sender: SocketAddr, door: SocketAddr) -> bool {
        match self.examine(sender, door) {
            Ok(()) => true,
            Err(refusal) => {
                self.note(sender, &refusal, Instant::now());
                false
            }
        }
    }

    /// Whether what `door` sends to `receiver` is heard by someone who may call, and by nobody else: a port that a
    /// controller left may be another user's now.
    pub fn may_hear(&mut self, receiver: SocketAddr, door: SocketAddr) -> bool {
        let result = self.examine(receiver, door);
        result.inspect_err(|reason| tracing::debug!(%receiver, %reason, "nothing is told to this endpoint")).is_ok()
    }

    /// What was refused, by name.
    #[must_use]
    pub fn counters(&self) -> [(&'static str, u64); 3] {
        [
            ("foreign_users", self.foreign_users),
            ("closed_senders", self.closed_senders),
            ("failed_lookups", self.failed_lookups),
        ]
    }

    fn examine(&mut self, controller: SocketAddr, door: SocketAddr) -> Result<(), Refusal> {
        let sockets = sockets::at_port_of(controller)?;
        judge(&sockets, controller, door, |user| self.is_allowed(user, Instant::now()))
    }

    fn is_allowed(&mut self, user: Uid, now: Instant) -> bool {
        user.is_root() || user == self.own || self.group.is_some_and(|group| self.is_member(user, group, now))
    }

    fn is_member(&mut self, user: Uid, group: Gid, now: Instant) -> bool {
        if let Some((is_member, asked)) = self.memberships.get(&user)
            && now.duration_since(*asked) < MEMBERSHIP_LIFETIME
        {
            return *is_member;
        }
        let is_member = ask_user_database(user, group).unwrap_or_else(|error| {
            tracing::debug!(%user, %error, "groups of a user not known");
            false
        });
        if self.memberships.len() >= MAX_MEMBERSHIPS {
            self.memberships.clear();
        }
        self.memberships.insert(user, (is_member, now));
        is_member
    }

    /// Counts a refusal; true when it was logged too.
    fn note(&mut self, sender: SocketAddr, refusal: &Refusal, now: Instant) -> bool {
        match refusal {
            Refusal::ForeignUser(_) => self.foreign_users += 1,
            Refusal::ClosedSender => self.closed_senders += 1,
            Refusal::FailedLookup(_) => self.failed_lookups += 1,
        }
        if self.last_logged.is_some_and(|logged| now.duration_since(logged) < LOG_INTERVAL) {
            return false;
        }
        self.last_logged = Some(now);
        let refused = self.foreign_users + self.closed_senders + self.failed_lookups;
        tracing::info!(%sender, reason = %refusal, refused, "controller datagram refused");
        true
    }
}

/// Every socket at the port must be allowed, and one must be bound and connected as the sender's is.
fn judge(
    sockets: &[OpenSocket],
    sender: SocketAddr,
    door: SocketAddr,
    mut is_allowed: impl FnMut(Uid) -> bool,
) -> Result<(), Refusal> {
    if let Some(foreign) = sockets.iter().find(|socket| !is_allowed(socket.owner)) {
        return Err(Refusal::ForeignUser(foreign.owner));
    }
    let is_sender = |socket: &OpenSocket| {
        let OpenSocket { owner: _, local, remote } = socket;
        (local.is_unspecified() || *local == sender.ip()) && remote.is_none_or(|remote| remote == door)
    };
    if sockets.iter().any(is_sender) { Ok(()) } else { Err(Refusal::ClosedSender) }
}

/// Whether this kernel tells whose UDP sockets are whose (`CONFIG_INET_UDP_DIAG`), without which nobody is admitted.
pub fn ask_kernel(door: SocketAddr) -> io::Result<()> {
    sockets::at_port_of(door).map(drop)
}

/// By primary and supplementary groups of the user's account; a uid without account is in no group.
fn ask_user_database(user: Uid, group: Gid) -> Result<bool, Errno> {
    let Some(account) = User::from_uid(user)? else { return Ok(false) };
    let name = CString::new(account.name).map_err(|_| Errno::EINVAL)?;
    Ok(account.gid == group || getgrouplist(&name, account.gid)?.contains(&group))
}
