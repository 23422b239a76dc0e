//! Who may speak to us, and which uid is at which jid. Pure.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use xmpp_parsers::jid::{BareJid, FullJid};

use crate::wire::stanza::uid_of;
use crate::wire::uid::Uid;

/// As many as there are hosts in the largest overlay of the 2014 controllers (a /16); accounts likewise.
pub(super) const MAX_PEERS: usize = 65_536;
/// Messages and presences a peer may send at once: one each for a hundred links.
const BURST: u32 = 100;
/// And from then on, one in this time: 20 a second.
const REFILL: Duration = Duration::from_millis(50);

/// Accounts and peers, over all sessions of one login.
#[derive(Debug)]
pub(super) struct Peers {
    own: FullJid,
    own_uid: Uid,
    accounts: HashSet<BareJid>,
    known: HashMap<Uid, Peer>,
    session: u64,
    own_uid_reported: bool,
}

#[derive(Debug)]
struct Peer {
    jid: FullJid,
    /// Its presence was seen, not only a message.
    present: bool,
    /// The session that saw it last.
    session: u64,
    /// Another account that wanted this uid was reported.
    rival_reported: bool,
    allowance: Allowance,
}

/// Why a stanza does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Its account is not in the roster.
    Stranger,
    /// Its resource holds no uid: a human's client, or ourselves.
    NoNode,
    /// Another account holds the uid, or we do. `fresh`: not reported yet.
    Claimed { fresh: bool },
    /// The table is full.
    Full,
    /// The peer sends too much.
    Excess,
}

impl Peers {
    /// Nobody yet; our own account counts.
    pub(super) fn new(own: FullJid, own_uid: Uid) -> Self {
        let accounts = HashSet::from([own.to_bare()]);
        Self { own, own_uid, accounts, known: HashMap::new(), session: 0, own_uid_reported: false }
    }

    /// A new session is bound: what was known stays until [`Self::forget_unseen`].
    pub(super) fn begin_session(&mut self, own: FullJid) {
        self.own = own;
        self.session += 1;
    }

    /// Takes the whole roster; returns the peers that no longer count and how many accounts found no room.
    pub(super) fn set_accounts(&mut self, roster: impl IntoIterator<Item = BareJid>) -> (Vec<Uid>, usize) {
        self.accounts = HashSet::from([self.own.to_bare()]);
        let rejected = roster.into_iter().filter(|account| !self.add_account(account.clone())).count();
        (self.forget_strangers(), rejected)
    }

    /// Adds an account of the roster; false when there is no room.
    pub(super) fn add_account(&mut self, account: BareJid) -> bool {
        if self.accounts.len() >= MAX_PEERS && !self.accounts.contains(&account) {
            return false;
        }
        self.accounts.insert(account);
        true
    }

    /// Removes an account; returns its peers.
    pub(super) fn remove_account(&mut self, account: &BareJid) -> Vec<Uid> {
        if *account != self.own.to_bare() {
            self.accounts.remove(account);
        }
        self.forget_strangers()
    }

    /// Whether stanzas of this account count.
    pub(super) fn admits(&self, account: &BareJid) -> bool {
        self.accounts.contains(account)
    }

    /// A presence arrived.
    pub(super) fn appeared(&mut self, from: &FullJid, now: Instant) -> Result<Uid, Refusal> {
        let (uid, peer) = self.entry(from, true)?;
        peer.present = true;
        if peer.allowance.takes(now) { Ok(uid) } else { Err(Refusal::Excess) }
    }

    /// An unavailable presence arrived; returns the peer that left.
    pub(super) fn left(&mut self, from: &FullJid) -> Option<Uid> {
        let uid = uid_of(from.resource().as_str())?;
        self.known.get(&uid).filter(|peer| peer.jid == *from)?;
        self.known.remove(&uid).filter(|peer| peer.present).map(|_| uid)
    }

    /// A message arrived.
    pub(super) fn spoke(&mut self, from: &FullJid, now: Instant) -> Result<Uid, Refusal> {
        let (uid, peer) = self.entry(from, false)?;
        if peer.allowance.takes(now) { Ok(uid) } else { Err(Refusal::Excess) }
    }

    /// Where a peer is.
    pub(super) fn address(&self, uid: Uid) -> Option<&FullJid> {
        self.known.get(&uid).map(|peer| &peer.jid)
    }

    /// Drops the peers this session has not seen; returns those that had been present.
    pub(super) fn forget_unseen(&mut self) -> Vec<Uid> {
        let session = self.session;
        self.forget(|peer| peer.session != session)
    }

    /// The entry of a sender, made or moved as needed. A presence weighs more than a message: it takes over an entry
    /// that no presence stands behind.
    fn entry(&mut self, from: &FullJid, presence: bool) -> Result<(Uid, &mut Peer), Refusal> {
        if !self.admits(&from.to_bare()) {
            return Err(Refusal::Stranger);
        }
        let uid = uid_of(from.resource().as_str()).filter(|uid| *from != self.own && *uid != Uid::ZERO);
        let uid = uid.ok_or(Refusal::NoNode)?;
        if uid == self.own_uid {
            let fresh = !std::mem::replace(&mut self.own_uid_reported, true);
            return Err(Refusal::Claimed { fresh });
        }
        if self.known.len() >= MAX_PEERS && !self.known.contains_key(&uid) {
            return Err(Refusal::Full);
        }
        let session = self.session;
        let peer = self.known.entry(uid).or_insert_with(|| Peer::new(from.clone(), session));
        let foreign = peer.jid.to_bare() != from.to_bare();
        if foreign && (peer.present || !presence) {
            let fresh = !std::mem::replace(&mut peer.rival_reported, true);
            return Err(Refusal::Claimed { fresh });
        }
        if foreign {
            *peer = Peer::new(from.clone(), session);
        }
        if peer.jid != *from {
            peer.jid = from.clone();
        }
        peer.session = session;
        Ok((uid, peer))
    }

    fn forget_strangers(&mut self) -> Vec<Uid> {
        let accounts = std::mem::take(&mut self.accounts);
        let gone = self.forget(|peer| !accounts.contains(&peer.jid.to_bare()));
        self.accounts = accounts;
        gone
    }

    fn forget(&mut self, unwanted: impl Fn(&Peer) -> bool) -> Vec<Uid> {
        let dropped = self.known.extract_if(|_, peer| unwanted(peer));
        let mut gone: Vec<Uid> = dropped.filter(|(_, peer)| peer.present).map(|(uid, _)| uid).collect();
        gone.sort_unstable();
        gone
    }
}

impl Peer {
    const fn new(jid: FullJid, session: u64) -> Self {
        Self { jid, present: false, session, rival_reported: false, allowance: Allowance::new() }
    }
}

/// What a sender may still send.
#[derive(Debug)]
pub(super) struct Allowance {
    left: u32,
    /// When the last one was added; `None` while it is full.
    refilled: Option<Instant>,
}

impl Allowance {
    pub(super) const fn new() -> Self {
        Self { left: BURST, refilled: None }
    }

    /// Takes one; false when there is none.
    pub(super) fn takes(&mut self, now: Instant) -> bool {
        let since = *self.refilled.get_or_insert(now);
        let added = now.saturating_duration_since(since).as_nanos() / REFILL.as_nanos();
        let added = u32::try_from(added).unwrap_or(BURST);
        if self.left.saturating_add(added) >= BURST {
            self.left = BURST;
            self.refilled = Some(now);
        } else {
            self.left += added;
            self.refilled = Some(since + REFILL * added);
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

#[cfg(test)]
mod tests;
