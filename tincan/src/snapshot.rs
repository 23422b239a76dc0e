//! What outlives a killed daemon: who it was, and its plain links on direct paths, as the next daemon needs them to go
//! on. `codec` is its text.
//!
//! Secured links are not in it: a DTLS session lives in one process. Neither are passwords of XMPP and TURN accounts.

mod codec;

use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;

use crate::ice::SelectedPair;
use crate::wire::candidate::Candidate;
use crate::wire::control::RequestError;
use crate::wire::request::{LocalIp, Overlay, Request};
use crate::wire::uid::Uid;

/// A daemon as it was at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// When that was.
    pub taken: BootTime,
    /// The UDP port of its plain links: peers send to it.
    pub plain_port: u16,
    /// Where notifications went (`set_cb_endpoint`).
    pub callback: Option<SocketAddr>,
    pub node: NodeSnapshot,
}

/// What the node itself knew.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeSnapshot {
    pub local: LocalIp,
    /// Settings, and `set_remote_ip` of every peer in `links`.
    pub calls: Vec<Request>,
    pub links: Vec<PlainLink>,
}

/// A plain link on a direct path.
#[derive(Clone, Debug, PartialEq)]
pub struct PlainLink {
    pub uid: Uid,
    /// As `create_link` gave it.
    pub fingerprint_text: String,
    pub overlay: Overlay,
    /// What this side offered.
    pub own: End,
    /// What the peer offered.
    pub peer: End,
    /// The ICE generation whose pair carries the link.
    pub generation: u32,
    pub pair: SelectedPair,
    /// Whether the peer was taken for being there.
    pub reachable: bool,
    /// How long ago it answered a check.
    pub silence: Duration,
}

/// One end of a link.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// Never empty.
    pub candidates: Vec<Candidate>,
    /// The tag of frames to it, 1 to 2^24 - 1.
    pub vni: u32,
}

/// A time that a later process can compare with its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootTime {
    /// The kernel's name for this boot.
    pub boot_id: String,
    /// Since the boot.
    pub uptime: Duration,
}

/// Why a snapshot is not gone on with; no text repeats what the file says.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SnapshotError {
    /// Not JSON, or not with these members.
    #[error("it is damaged")]
    Damaged,
    /// Of another release.
    #[error("it has version {0}, this daemon reads version 1")]
    Version(u64),
    /// A call in it cannot be carried out.
    #[error("a call in it cannot be read: {0}")]
    Call(#[from] RequestError),
    /// A link in it cannot be.
    #[error("the link to {uid} in it {problem}")]
    Link { uid: Uid, problem: &'static str },
    /// The machine was started anew since.
    #[error("it is of another boot")]
    OtherBoot,
    /// Peers have given its links up.
    #[error("it is {} s old, and links are kept for {} s", age.as_secs(), lease.as_secs())]
    Expired { age: Duration, lease: Duration },
    /// Written later than now.
    #[error("it is of a later time than now")]
    Future,
}

impl Snapshot {
    /// How old it is, if it is of this boot and not older than `lease`.
    pub fn age(&self, now: &BootTime, lease: Duration) -> Result<Duration, SnapshotError> {
        if self.taken.boot_id != now.boot_id {
            return Err(SnapshotError::OtherBoot);
        }
        let age = now.uptime.checked_sub(self.taken.uptime).ok_or(SnapshotError::Future)?;
        if age > lease { Err(SnapshotError::Expired { age, lease }) } else { Ok(age) }
    }
}

impl NodeSnapshot {
    /// The same after some time: nobody forwards for a peer whose last answer is older than `lease`, however often the
    /// daemon was started anew since.
    #[must_use]
    pub fn aged(mut self, age: Duration, lease: Duration) -> Self {
        for link in &mut self.links {
            link.silence = link.silence.saturating_add(age);
            link.reachable &= link.silence <= lease;
        }
        self
    }
}

#[cfg(test)]
pub(crate) mod tests;
