//! Who may speak to us, and which uid is at which jid. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use xmpp_parsers::jid::{BareJid, FullJid};

use crate::wire::stanza::uid_of;
use crate::wire::uid::Uid;

/// As many as there are hosts in the largest overlay of the 2014 controllers (a /16); accounts likewise.
pub(super) const MAX_PEERS: usize = 65_536;
/// Most uids of one account but our own, which may be the account of every node: one contact must not fill the table.
const MAX_UIDS: usize = 256;
/// A uid whose owner left stays his account's for this long: he may only have blinked.
const RESERVED: Duration = Duration::from_secs(600);
/// Messages and presences a peer may send at once: one each for a hundred links.
const BURST: u32 = 100;
/// And from then on, one in this time: 20 a second.
const REFILL: Duration = Duration::from_millis(50);

/// Accounts and peers, over all sessions of one login.
#[derive(Debug)]
pub(super) struct Peers {
    own: FullJid,
    own_uid: Uid,
    /// How many uids each account has.
    accounts: HashMap<BareJid, usize>,
    known: HashMap<Uid, Peer>,
    session: u64,
    own_uid_reported: bool,
}

#[derive(Debug)]
struct Peer {
    jid: FullJid,
    /// Its presence was seen, not only a message.
    present: bool,
    /// When it left; its uid is kept for its account.
    left: Option<Instant>,
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
        let accounts = HashMap::from([(own.to_bare(), 0)]);
        Self { own, own_uid, accounts, known: HashMap::new(), session: 0, own_uid_reported: false }
    }

    /// A new session is bound: what was known stays until [`Self::forget_unseen`].
    pub(super) fn begin_session(&mut self, own: FullJid) {
        self.own = own;
        self.session += 1;
    }

    /// Takes the whole roster; returns the peers that no longer count and how many accounts found no room.
    pub(super) fn set_accounts(&mut self, roster: impl IntoIterator<Item = BareJid>) -> (Vec<Uid>, usize) {
        let mut former = std::mem::take(&mut self.accounts);
        self.accounts.insert(self.own.to_bare(), former.remove(&self.own.to_bare()).unwrap_or(0));
        let roster = roster.into_iter().collect::<Vec<_>>();
        for account in &roster {
            if let Some(uids) = former.remove(account) {
                self.accounts.insert(account.clone(), uids);
            }
        }
        let rejected = roster.into_iter().filter(|account| !self.add_account(account.clone())).count();
        (self.forget_strangers(), rejected)
    }

    /// Adds an account of the roster; false when there is no room.
    pub(super) fn add_account(&mut self, account: BareJid) -> bool {
        if self.accounts.len() >= MAX_PEERS && !self.accounts.contains_key(&account) {
            return false;
        }
        self.accounts.entry(account).or_insert(0);
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
        self.accounts.contains_key(account)
    }

    /// A presence arrived.
    pub(super) fn appeared(&mut self, from: &FullJid, now: Instant) -> Result<Uid, Refusal> {
        let (uid, peer) = self.entry(from, true, now)?;
        (peer.present, peer.left) = (true, None);
        if peer.allowance.takes(now) { Ok(uid) } else { Err(Refusal::Excess) }
    }

    /// An unavailable presence arrived; returns the peer that left.
    pub(super) fn left(&mut self, from: &FullJid, now: Instant) -> Option<Uid> {
        let uid = uid_of(from.resource().as_str())?;
        let peer = self.known.get_mut(&uid).filter(|peer| peer.jid == *from)?;
        peer.left = Some(now);
        std::mem::replace(&mut peer.present, false).then_some(uid)
    }

    /// A message arrived.
    pub(super) fn spoke(&mut self, from: &FullJid, now: Instant) -> Result<Uid, Refusal> {
        let (uid, peer) = self.entry(from, false, now)?;
        if peer.allowance.takes(now) { Ok(uid) } else { Err(Refusal::Excess) }
    }

    /// Where a peer is.
    pub(super) fn address(&self, uid: Uid) -> Option<&FullJid> {
        self.known.get(&uid).filter(|peer| peer.left.is_none()).map(|peer| &peer.jid)
    }

    /// Drops the peers this session has not seen; returns those that had been present.
    pub(super) fn forget_unseen(&mut self) -> Vec<Uid> {
        let session = self.session;
        self.forget(|peer| peer.session != session)
    }

    /// The entry of a sender, made or moved as needed. A presence weighs more than a message: it takes over an entry
    /// that no presence stands behind.
    fn entry(&mut self, from: &FullJid, presence: bool, now: Instant) -> Result<(Uid, &mut Peer), Refusal> {
        if !self.admits(&from.to_bare()) {
            return Err(Refusal::Stranger);
        }
        let uid = uid_of(from.resource().as_str()).filter(|uid| *from != self.own && *uid != Uid::ZERO);
        let uid = uid.ok_or(Refusal::NoNode)?;
        if uid == self.own_uid {
            let fresh = !std::mem::replace(&mut self.own_uid_reported, true);
            return Err(Refusal::Claimed { fresh });
        }
        if let Some(peer) = self.known.get_mut(&uid).filter(|peer| peer.jid.to_bare() != from.to_bare()) {
            let is_reserved = peer.left.is_some_and(|left| now.saturating_duration_since(left) < RESERVED);
            if peer.present || is_reserved || !presence {
                let fresh = !std::mem::replace(&mut peer.rival_reported, true);
                return Err(Refusal::Claimed { fresh });
            }
            self.drop_peer(uid);
        }
        if !self.known.contains_key(&uid) {
            self.make_room(&from.to_bare())?;
            *self.accounts.entry(from.to_bare()).or_insert(0) += 1;
            self.known.insert(uid, Peer::new(from.clone(), self.session));
        }
        let peer = self.known.get_mut(&uid).ok_or(Refusal::Full)?;
        if peer.jid != *from {
            peer.jid = from.clone();
        }
        peer.session = self.session;
        Ok((uid, peer))
    }

    /// Room for one more uid of an account; its own that are not present go first.
    fn make_room(&mut self, account: &BareJid) -> Result<(), Refusal> {
        let uids = self.accounts.get(account).copied().unwrap_or(0);
        let is_full = uids >= MAX_UIDS && *account != self.own.to_bare();
        if !is_full && self.known.len() < MAX_PEERS {
            return Ok(());
        }
        let absent = self.known.iter().find(|(_, peer)| !peer.present && peer.jid.to_bare() == *account);
        let uid = absent.map(|(uid, _)| *uid).ok_or(Refusal::Full)?;
        self.drop_peer(uid);
        Ok(())
    }

    fn drop_peer(&mut self, uid: Uid) {
        let Some(peer) = self.known.remove(&uid) else { return };
        if let Some(uids) = self.accounts.get_mut(&peer.jid.to_bare()) {
            *uids = uids.saturating_sub(1);
        }
    }

    fn forget_strangers(&mut self) -> Vec<Uid> {
        let accounts = std::mem::take(&mut self.accounts);
        let gone = self.forget(|peer| !accounts.contains_key(&peer.jid.to_bare()));
        self.accounts = accounts;
        gone
    }

    fn forget(&mut self, unwanted: impl Fn(&Peer) -> bool) -> Vec<Uid> {
        let dropped: Vec<(Uid, Peer)> = self.known.extract_if(|_, peer| unwanted(peer)).collect();
        for (_, peer) in &dropped {
            if let Some(uids) = self.accounts.get_mut(&peer.jid.to_bare()) {
                *uids = uids.saturating_sub(1);
            }
        }
        let mut gone: Vec<Uid> = dropped.into_iter().filter(|(_, peer)| peer.present).map(|(uid, _)| uid).collect();
        gone.sort_unstable();
        gone
    }
}

impl Peer {
    const fn new(jid: FullJid, session: u64) -> Self {
        Self { jid, present: false, left: None, session, rival_reported: false, allowance: Allowance::new() }
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
