//! What the node tells the controller unasked.

use crate::wire::uid::Uid;

/// A notification to the callback endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// `con_stat`: a link's status changed.
    ConnectionStatus { uid: Uid, status: LinkStatus },
    /// `con_resp`: fingerprint and candidates for `uid`; also `con_req`, `send_msg` and any message of a peer.
    Message { kind: String, uid: Uid, data: String },
}

/// The three words of `con_stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkStatus {
    Online,
    Offline,
    /// Readable or writable, not both yet.
    Unknown,
}

impl LinkStatus {
    /// The word on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Unknown => "unknown",
        }
    }
}
