//! Which plain links the kernel forwards: facts about links come in, entries go out as soon as all is known.
//!
//! A link has entries while it forwards, both tags and both inner addresses of its peer are known, its path is direct,
//! and the underlay's route to the peer is an Ethernet one. The receiver's entry comes first; a withdrawn link goes on in
//! user space with the next frame.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, ensure};
use tincan_common::entries::{Flow, MAX_SLOTS, Receiver, Sender, Settings};
use tincan_common::frame::HEADER_LEN;

use super::{KernelEngine, address};
use crate::dataplane::table::Local;
use crate::dataplane::too_big::longest_frame;
use crate::link::{LinkId, Path, Traffic, UnderlayRoute};
use crate::wire::uid::Uid;

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

/// See the module's head.
pub struct Forwarder {
    engine: KernelEngine,
    settings: Settings,
    local: Option<Local>,
    peers: HashMap<Uid, (Ipv4Addr, Ipv6Addr)>,
    links: BTreeMap<LinkId, PlainLink>,
    by_uid: HashMap<Uid, LinkId>,
    free_slots: Vec<u32>,
    /// Links about which something changed.
    due: BTreeSet<LinkId>,
    /// The near end of the merging veth, and the uplinks that do not merge themselves.
    merger: Option<(u32, BTreeSet<u32>)>,
}

impl Forwarder {
    /// With programs that are attached to the TAP already.
    #[must_use]
    pub fn new(engine: KernelEngine, tap_index: u32, tap_mac: [u8; 6]) -> Self {
        let settings = Settings { tap_index, tap_mac, ..Settings::default() };
        Self {
            engine,
            settings,
            local: None,
            peers: HashMap::new(),
            links: BTreeMap::new(),
            by_uid: HashMap::new(),
            free_slots: (0..MAX_SLOTS).rev().collect(),
            due: BTreeSet::new(),
            merger: None,
        }
    }

    /// The plain port as peers know it, the one of user space's socket, and the mark of what went through a helper device (0
    /// without one).
    pub fn set_ports(&mut self, plain: u16, socket: u16, mark: u32) -> anyhow::Result<()> {
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

    /// A device through which checked frames come back to the TAP.
    pub fn attach_helper(&mut self, index: u32) -> anyhow::Result<()> {
        self.engine.attach_helper(index)
    }

    /// `set_local_ip`.
    pub fn set_local(&mut self, local: Local) -> anyhow::Result<()> {
        let prefix = u32::from(local.router_prefix.min(32));
        let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
        self.settings.router_mask = mask.to_be_bytes();
        self.settings.own_ip4 = local.ip4.octets();
        self.settings.own_ip6 = local.ip6.octets();
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
            self.withdraw(link);
        }
    }

    /// A plain link exists. Beyond the number of slots links stay in user space.
    pub fn add_link(&mut self, link: LinkId, uid: Uid, receive_tag: u32) {
        let Some(slot) = self.free_slots.pop() else { return };
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
            self.withdraw(link);
        }
        self.change(link, |entry| entry.forwarding = enabled);
    }

    /// The link is gone.
    pub fn remove_link(&mut self, link: LinkId) {
        self.withdraw(link);
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
            self.withdraw(link);
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
        tracing::info!(%link, "the kernel forwards this plain link");
        Ok(())
    }

    fn withdraw(&mut self, link: LinkId) {
        let Some(installed) = self.links.get_mut(&link).and_then(|entry| entry.installed.take()) else { return };
        self.engine.remove(installed.destination4, &installed.destination6, &installed.flow);
        tracing::debug!(%link, "user space forwards this plain link again");
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
