//! What the XMPP session dropped, by reason.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number for every reason.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Stanzas of accounts that are not in the roster.
    pub(super) strangers: Counter,
    /// Presence or messages under a uid that another account holds.
    pub(super) claimed: Counter,
    /// Messages and presences beyond a peer's rate.
    pub(super) excess: Counter,
    /// Peers and accounts beyond what the tables hold.
    pub(super) overflow: Counter,
    /// Stanzas that could not be read.
    pub(super) malformed: Counter,
    /// Messages of a kind that only the daemon says to its controller.
    pub(super) forged: Counter,
    /// Calls of the owner beyond what waits for the task.
    pub(super) overrun: Counter,
    /// Connections begun.
    pub(super) connects: Counter,
}

impl Counters {
    pub(super) fn all(&self) -> Vec<(&'static str, u64)> {
        let Self { strangers, claimed, excess, overflow, malformed, forged, overrun, connects } = self;
        vec![
            ("strangers", strangers.get()),
            ("claimed_uids", claimed.get()),
            ("excess", excess.get()),
            ("overflow", overflow.get()),
            ("malformed", malformed.get()),
            ("forged", forged.get()),
            ("overrun", overrun.get()),
            ("connects", connects.get()),
        ]
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
