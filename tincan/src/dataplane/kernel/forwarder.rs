//! Which plain links the kernel forwards: facts about links come in, entries go out as soon as all is known.
//!
//! A link has entries while it forwards, both tags and both inner addresses of its peer are known, its path is direct,
//! and the underlay's route to the peer is an Ethernet one. The receiver's entry comes first; a withdrawn link goes on in
//! user space with the next frame.
//!
//! What a daemon before left in pinned maps stays until a link of this daemon replaces it, receiver first, or until that
//! daemon's lease ends: so its end is no later for a crash in between. Only then is the lease renewed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::time::{ClockId, clock_gettime};
use tincan_common::entries::{Flow, MAX_SLOTS, Receiver, Sender, Settings};
use tincan_common::frame::HEADER_LEN;

use super::adopted::{Adopted, AdoptedFlow, Group};
use super::{KernelEngine, address};
use crate::dataplane::table::Local;
use crate::dataplane::too_big::longest_frame;
use crate::link::{LinkId, Path, Traffic, UnderlayRoute};
use crate::wire::uid::Uid;

/// How long before a lease's end it is settled whether it is renewed: longer than the pause between two looks of the
/// daemon.
const LEASE_MARGIN: Duration = Duration::from_secs(3);

/// Entries of one link in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Installed {
    destination4: [u8; 4],
    destination6: [u8; 16],
    flow: Flow,
    receiver: Receiver,
    sender: Sender,
}

#[derive(Debug)]
struct PlainLink {
    uid: Uid,
    slot: u32,
    /// What the slot had counted when the link got it.
    counted_before: [u64; 4],
    receive_tag: u32,
    send_tag: Option<u32>,
    path: Option<Path>,
    forwarding: bool,
    installed: Option<Installed>,
}

/// Ports of the daemon before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdoptedPorts {
    /// The plain port as peers know it.
    pub plain: u16,
    /// A VXLAN device held it; the socket had another.
    pub is_held: bool,
    /// Mark of what went through a helper device.
    pub mark: u32,
}

/// See the module's head.
pub struct Forwarder {
    engine: KernelEngine,
    settings: Settings,
    has_ports: bool,
    local: Option<Local>,
    peers: HashMap<Uid, (Ipv4Addr, Ipv6Addr)>,
    links: BTreeMap<LinkId, PlainLink>,
    by_uid: HashMap<Uid, LinkId>,
    free_slots: Vec<u32>,
    /// Links about which something changed.
    due: BTreeSet<LinkId>,
    /// The near end of the merging veth, and the uplinks that do not merge themselves.
    merger: Option<(u32, BTreeSet<u32>)>,
    /// How long entries outlive the last sign of this daemon.
    lease: Duration,
    /// Entries of the daemon before that no link of this one has replaced.
    adopted: Adopted,
}

impl Forwarder {
    /// With programs that are attached to the TAP already. Entries in their maps are adopted if they are for this TAP and
    /// their lease has not ended, and removed otherwise.
    pub fn new(engine: KernelEngine, tap_index: u32, tap_mac: [u8; 6], lease: Duration) -> anyhow::Result<Self> {
        let before = engine.settings()?;
        let adopted = engine.entries()?;
        let goes_on = before.tap_index == tap_index
            && before.tap_mac == tap_mac
            && engine.lease_end()? > monotonic(Duration::ZERO)?;
        let fresh = Settings { tap_index, tap_mac, ..Settings::default() };
        let mut forwarder = Self {
            engine,
            settings: if goes_on { before } else { fresh },
            has_ports: false,
            local: None,
            peers: HashMap::new(),
            links: BTreeMap::new(),
            by_uid: HashMap::new(),
            free_slots: (0..MAX_SLOTS).rev().filter(|slot| !adopted.has_slot(*slot)).collect(),
            due: BTreeSet::new(),
            merger: None,
            lease,
            adopted,
        };
        if !goes_on {
            forwarder.engine.configure(&Settings::default())?;
            forwarder.forget_unclaimed();
        }
        forwarder.renew_lease()?;
        Ok(forwarder)
    }

    /// Says that the daemon lives. While there are entries that no link has claimed, the lease of the daemon before runs on.
    pub fn renew_lease(&mut self) -> anyhow::Result<()> {
        if !self.adopted.is_empty() {
            if self.engine.lease_end()? > monotonic(LEASE_MARGIN)? {
                return Ok(());
            }
            self.forget_unclaimed();
        }
        self.engine.set_lease_end(monotonic(self.lease)?)
    }

    /// Leaves everything in the kernel when this is dropped, for as long as the lease is. False where nothing can stay.
    pub fn leave(&mut self) -> bool {
        let stays = self.engine.is_pinned() && self.renew_lease().is_ok();
        self.engine.set_staying(stays);
        stays
    }

    /// The flows of the daemon before that no link has claimed, each with what tells which link it was.
    #[must_use]
    pub fn adopted_flows(&self) -> Vec<AdoptedFlow> {
        self.adopted.flows()
    }

    /// Removes what no link has claimed.
    pub fn forget_unclaimed(&mut self) {
        let groups = self.adopted.take_all();
        if !groups.is_empty() {
            tracing::info!(links = groups.len(), "entries of the daemon before that nobody claimed are removed");
        }
        self.remove_groups(groups, None);
    }

    /// Removes adopted entries, except those that now stand for a link.
    fn remove_groups(&mut self, groups: Vec<(u32, Group)>, replaced: Option<&Installed>) {
        for (slot, group) in groups {
            for (flow, _) in group.flows.iter().filter(|(flow, _)| replaced.is_none_or(|new| new.flow != *flow)) {
                self.engine.remove_flow(flow);
            }
            for (to, _) in group.routes4.iter().filter(|(to, _)| replaced.is_none_or(|new| new.destination4 != *to)) {
                self.engine.remove_route4(*to);
            }
            for (to, _) in group.routes6.iter().filter(|(to, _)| replaced.is_none_or(|new| new.destination6 != *to)) {
                self.engine.remove_route6(to);
            }
            if group.is_free() && slot < MAX_SLOTS {
                self.free_slots.push(slot);
            }
        }
    }

    /// What the daemon before had, where its entries are gone on with; `None` after [`Forwarder::set_ports`] too.
    #[must_use]
    pub fn adopted_ports(&self) -> Option<AdoptedPorts> {
        let Settings { plain_port, socket_port, mark, .. } = self.settings;
        let is_held = plain_port != socket_port;
        let plain = u16::from_be_bytes(plain_port);
        (plain != 0 && !self.has_ports).then_some(AdoptedPorts { plain, is_held, mark })
    }

    /// The plain port as peers know it, the one of user space's socket, and the mark of what went through a helper device (0
    /// without one). Adopted entries are for the port of before: with another they go.
    pub fn set_ports(&mut self, plain: u16, socket: u16, mark: u32) -> anyhow::Result<()> {
        if self.settings.plain_port != plain.to_be_bytes() {
            self.forget_unclaimed();
        }
        self.has_ports = true;
        self.settings.plain_port = plain.to_be_bytes();
        self.settings.socket_port = socket.to_be_bytes();
        self.settings.mark = mark;
        self.engine.configure(&self.settings)
    }

    /// The interfaces by which peers may be reached, and the own addresses there.
    pub fn set_uplinks(&mut self, uplinks: &BTreeMap<u32, BTreeSet<IpAddr>>) -> anyhow::Result<()> {
        let own = uplinks.values().flatten().map(|ip| address(*ip)).collect();
        self.engine.set_own_addresses(&own)?;
        uplinks.keys().try_for_each(|index| self.engine.attach_uplink(*index))
    }

    /// The near end of the merging veth, while it has uplinks to merge for.
    #[must_use]
    pub fn merger(&self) -> Option<u32> {
        self.merger.as_ref().map(|(near, _)| *near)
    }

    /// The near end of the merging veth, and the uplinks whose TCP frames go there.
    pub fn set_merger(&mut self, merger: Option<(u32, BTreeSet<u32>)>) {
        if self.merger != merger {
            self.merger = merger;
            self.due.extend(self.links.keys());
        }
    }

    /// Whether the guard is on a device, also from a daemon before.
    #[must_use]
    pub fn is_guarded(&self, index: u32) -> bool {
        self.engine.is_guarded(index)
    }

    /// See [`KernelEngine::mend`].
    pub fn mend(&mut self) -> anyhow::Result<Vec<String>> {
        self.engine.mend()
    }

    /// A device through which checked frames come back to the TAP.
    pub fn attach_helper(&mut self, index: u32) -> anyhow::Result<()> {
        self.engine.attach_helper(index)
    }

    /// `set_local_ip`.
    pub fn set_local(&mut self, local: Local) -> anyhow::Result<()> {
        let prefix = u32::from(local.router_prefix.min(32));
        let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
        let before = self.settings;
        self.settings.router_mask = mask.to_be_bytes();
        self.settings.own_ip4 = local.ip4.octets();
        self.settings.own_ip6 = local.ip6.octets();
        if self.settings != before {
            // Another node than the daemon before was: nothing of that one is its own.
            self.forget_unclaimed();
        }
        self.engine.configure(&self.settings)?;
        self.local = Some(local);
        self.due.extend(self.links.keys());
        Ok(())
    }

    /// `set_remote_ip`.
    pub fn map_peer(&mut self, uid: Uid, ip4: Ipv4Addr, ip6: Ipv6Addr) {
        self.peers.insert(uid, (ip4, ip6));
        self.due.extend(self.by_uid.get(&uid));
    }

    /// A peer has no inner addresses any more; a link to it goes on in user space.
    pub fn unmap_peer(&mut self, uid: Uid) {
        self.peers.remove(&uid);
        if let Some(link) = self.by_uid.get(&uid).copied() {
            self.withdraw_all(link);
        }
    }

    /// A plain link exists. Beyond the number of slots links stay in user space.
    pub fn add_link(&mut self, link: LinkId, uid: Uid, receive_tag: u32) {
        let claimed = self.adopted.claim_slot(link, receive_tag);
        let Some(slot) = claimed.or_else(|| self.free_slots.pop()) else { return };
        let counted_before = self.engine.traffic(slot).unwrap_or_default();
        let (send_tag, path, forwarding, installed) = (None, None, false, None);
        let entry = PlainLink { uid, slot, counted_before, receive_tag, send_tag, path, forwarding, installed };
        self.links.insert(link, entry);
        self.by_uid.insert(uid, link);
    }

    /// The tag the peer wants.
    pub fn set_send_tag(&mut self, link: LinkId, tag: u32) {
        self.change(link, |entry| entry.send_tag = Some(tag));
    }

    /// Where the peer is; the old path carries nothing more.
    pub fn set_path(&mut self, link: LinkId, path: Path) {
        if self.links.get(&link).is_some_and(|entry| entry.path != Some(path)) {
            self.withdraw(link);
            self.change(link, |entry| entry.path = Some(path));
        }
    }

    /// Whether frames may flow.
    pub fn set_forwarding(&mut self, link: LinkId, enabled: bool) {
        if !enabled {
            self.withdraw_all(link);
        }
        self.change(link, |entry| entry.forwarding = enabled);
    }

    /// The link is gone.
    pub fn remove_link(&mut self, link: LinkId) {
        self.withdraw_all(link);
        self.due.remove(&link);
        if let Some(entry) = self.links.remove(&link) {
            self.by_uid.remove(&entry.uid);
            self.free_slots.push(entry.slot);
        }
    }

    /// Links that may get entries now, once [`Forwarder::settle`] says how the underlay reaches their peers.
    pub fn take_due(&mut self) -> Vec<LinkId> {
        std::mem::take(&mut self.due).into_iter().filter(|link| self.is_ready(*link)).collect()
    }

    fn is_ready(&self, link: LinkId) -> bool {
        self.links.get(&link).is_some_and(|entry| {
            let is_known = self.local.is_some() && self.peers.contains_key(&entry.uid) && entry.send_tag.is_some();
            is_known && entry.forwarding && entry.path.is_some_and(|path| path.relay.is_none())
        })
    }

    /// Installs a link with the route that was found for it; without one it goes back to user space.
    pub fn settle(&mut self, link: LinkId, route: anyhow::Result<UnderlayRoute>) {
        if !self.is_ready(link) {
            return;
        }
        let result = route.and_then(|route| self.install(link, &route));
        if let Err(error) = result {
            tracing::debug!(%link, "user space carries this plain link: {error:#}");
            self.withdraw_all(link);
        }
    }

    fn install(&mut self, link: LinkId, route: &UnderlayRoute) -> anyhow::Result<()> {
        let Some(entry) = self.links.get(&link) else { return Ok(()) };
        let (Some(path), Some(tag)) = (entry.path, entry.send_tag) else { return Ok(()) };
        let (ip4, ip6) = self.peers.get(&entry.uid).context("the peer has no inner addresses")?;
        ensure!(path.remote.is_ipv4() == route.source.is_ipv4(), "a route of the other address family");
        ensure!(route.is_ethernet, "interface {} is not Ethernet", route.interface);
        let destination4 = self.cut(*ip4);
        let destination6 = ip6.octets();
        let (remote, local) = (address(path.remote.ip()), address(route.source));
        let (remote_port, local_port) = (path.remote.port().to_be_bytes(), self.settings.plain_port);
        let flow = Flow { remote, local, remote_port, local_port };
        let sender = Sender {
            uplink: route.interface,
            slot: entry.slot,
            max_frame: longest_frame(route.mtu, path.remote.is_ipv4()),
            tag,
            source: local,
            destination: remote,
            source_port: local_port,
            destination_port: remote_port,
        };
        let merger = self.merger.as_ref().filter(|(_, uplinks)| uplinks.contains(&route.interface));
        let merger = merger.map_or(0, |(near, _)| *near);
        let (slot, tag) = (entry.slot, entry.receive_tag);
        let receiver = Receiver { slot, tag, merger, ip4: destination4, ip6: destination6 };
        let wanted = Installed { destination4, destination6, flow, receiver, sender };
        if entry.installed == Some(wanted) {
            return Ok(());
        }
        // Entries under the same keys are overwritten; under others they must not stay.
        let keys = |installed: &Installed| (installed.destination4, installed.destination6, installed.flow);
        if entry.installed.is_some_and(|installed| keys(&installed) != keys(&wanted)) {
            self.withdraw(link);
        }
        self.engine.attach_uplink(route.interface)?;
        // Whatever of it comes to stand is withdrawn again if the rest fails.
        self.change_quietly(link, |entry| entry.installed = Some(wanted));
        self.engine.set_flow(&flow, &receiver)?;
        self.engine.set_route4(destination4, &sender)?;
        self.engine.set_route6(destination6, &sender)?;
        let replaced = self.adopted.take_replaced(link, &flow, destination4, &destination6);
        self.remove_groups(replaced, Some(&wanted));
        tracing::info!(%link, "the kernel forwards this plain link");
        Ok(())
    }

    fn withdraw(&mut self, link: LinkId) {
        let Some(installed) = self.links.get_mut(&link).and_then(|entry| entry.installed.take()) else { return };
        self.engine.remove_route4(installed.destination4);
        self.engine.remove_route6(&installed.destination6);
        self.engine.remove_flow(&installed.flow);
        tracing::debug!(%link, "user space forwards this plain link again");
    }

    /// The same with what the link claimed of the daemon before and has not replaced yet.
    fn withdraw_all(&mut self, link: LinkId) {
        self.withdraw(link);
        let claimed = self.adopted.take_of(link);
        self.remove_groups(claimed, None);
    }

    /// Whether the kernel forwards a link.
    #[must_use]
    pub fn is_installed(&self, link: LinkId) -> bool {
        self.links.get(&link).is_some_and(|entry| entry.installed.is_some())
    }

    /// What the kernel carried for a link, as user space counts it: bytes of datagrams.
    #[must_use]
    pub fn traffic(&self, link: LinkId) -> Traffic {
        let Some(entry) = self.links.get(&link) else { return Traffic::default() };
        let counted = self.engine.traffic(entry.slot).unwrap_or(entry.counted_before);
        let since = |index: usize| counted[index].wrapping_sub(entry.counted_before[index]);
        let headers = |frames: u64| frames.saturating_mul(HEADER_LEN as u64);
        Traffic {
            sent_bytes: since(1) + headers(since(0)),
            received_bytes: since(3) + headers(since(2)),
            sent_frames: since(0),
            received_frames: since(2),
            dropped: 0,
        }
    }

    /// Every verdict of the programs, by name.
    #[must_use]
    pub fn verdicts(&self) -> Vec<(&'static str, u64)> {
        self.engine.verdicts().unwrap_or_default()
    }

    /// Where a link is counted.
    #[cfg(test)]
    pub fn slot(&self, link: LinkId) -> Option<u32> {
        self.links.get(&link).map(|entry| entry.slot)
    }

    fn cut(&self, ip4: Ipv4Addr) -> [u8; 4] {
        let (octets, mask) = (ip4.octets(), self.settings.router_mask);
        tincan_common::inner::masked(octets, mask)
    }

    fn change(&mut self, link: LinkId, change: impl FnOnce(&mut PlainLink)) {
        if self.links.contains_key(&link) {
            self.change_quietly(link, change);
            self.due.insert(link);
        }
    }

    fn change_quietly(&mut self, link: LinkId, change: impl FnOnce(&mut PlainLink)) {
        if let Some(entry) = self.links.get_mut(&link) {
            change(entry);
        }
    }
}

/// A time from now, nanoseconds of the clock that the programs read.
fn monotonic(ahead: Duration) -> anyhow::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("read the clock")?;
    u64::try_from((Duration::from(now) + ahead).as_nanos()).context("a clock out of range")
}
