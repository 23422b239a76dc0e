//! The kernel engine as the daemon has it: there, switched off, or refused with a reason.

use std::collections::BTreeSet;

use anyhow::{Context, anyhow};

use crate::config::{self, DaemonConfig, XdpUse};
use crate::daemon::host::PortWish;
use crate::daemon::merging::Merging;
use crate::daemon::merging_veth::MergingVeth;
use crate::daemon::predecessor::Predecessor;
use crate::dataplane::kernel::forwarder::Forwarder;
use crate::dataplane::kernel::interface_name;
use crate::dataplane::kernel::{Way, clsact};
use crate::dataplane::table::Local;
use crate::edge::ethtool;
use crate::edge::netlink::Netlink;
use crate::edge::tap::{Tap, TapHold};
use crate::link::{LinkId, UnderlayRoute};
use crate::node::{LinkProtection, Output};
use crate::wire::uid::Uid;

/// Whether kernel programs are loaded, and why not.
pub(super) enum FastPath {
    /// Attached to the TAP; detached when dropped, unless links were left.
    Attached(Box<Attached>),
    /// The operator switched it off.
    Off,
    /// Asked for, but this host does not allow it.
    Unavailable(String),
}

/// The programs, the devices that merge for them, and the TAP as long as it outlives this process with them.
pub(super) struct Attached {
    forwarder: Forwarder,
    way: Way,
    tap: String,
    hold: Option<TapHold>,
    /// Merging, or why there is none.
    merging: Result<Merging, String>,
    veth: MergingVeth,
    /// Mark of packets that were checked and go through a helper device; never 0.
    mark: u32,
}

impl FastPath {
    /// Loads the kernel programs as the option says; only `on` makes a refusal an error.
    pub(super) async fn start(
        config: &DaemonConfig,
        netlink: &Netlink,
        predecessor: &Predecessor,
        tap: &Tap,
        wish: PortWish,
    ) -> anyhow::Result<Self> {
        let wanted = config.fast_path;
        if wanted == config::FastPath::Off {
            predecessor.remove(netlink, tap, "the kernel engine is switched off").await?;
            return Ok(Self::Off);
        }
        let refusal = match Attached::new(config, netlink, predecessor, tap, wish).await {
            Ok(attached) => return Ok(Self::Attached(Box::new(attached))),
            Err(refusal) => refusal,
        };
        if let Err(error) = predecessor.remove(netlink, tap, &format!("{refusal:#}")).await {
            tracing::warn!("something of a daemon before is left, `tincan cleanup` removes it: {error:#}");
        }
        if wanted == config::FastPath::On {
            return Err(
                refusal.context("the kernel engine was asked for (--fast-path on) and cannot run; use auto or off")
            );
        }
        tracing::warn!("the kernel engine cannot run, user space carries everything: {refusal:#}");
        Ok(Self::Unavailable(format!("{refusal:#}")))
    }

    /// Lets go of the links in the kernel, which then outlive this daemon by the lease; false where they cannot.
    pub(super) fn leave(&mut self) -> bool {
        let Self::Attached(attached) = self else { return false };
        let Attached { forwarder, hold, .. } = &mut **attached;
        let Some(hold) = hold.as_mut().filter(|_| forwarder.leave()) else { return false };
        hold.leave();
        *self = Self::Off;
        true
    }

    /// One phrase for the log and `status`.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Attached(attached) => {
                let way = if attached.way == Way::Clsact { "attached by clsact" } else { "attached" };
                let pinned = if attached.hold.is_some() { ", pinned" } else { "" };
                let merging = match &attached.merging {
                    Ok(merging) => merging.describe(),
                    Err(reason) => format!("not merging on receive: {reason}"),
                };
                let veth = attached.veth.describe(attached.forwarder.merger());
                format!("{way}{pinned}, {merging}{veth}")
            }
            Self::Off => "off".to_owned(),
            Self::Unavailable(reason) => format!("unavailable: {reason}"),
        }
    }

    /// The part that forwards.
    pub(super) fn forwarder(&self) -> Option<&Forwarder> {
        match self {
            Self::Attached(attached) => Some(&attached.forwarder),
            Self::Off | Self::Unavailable(_) => None,
        }
    }

    /// The plain port that the VXLAN device holds, if it does: then the socket needs another.
    pub(super) fn held_port(&self) -> Option<u16> {
        match self {
            Self::Attached(attached) => attached.merging.as_ref().ok().map(|merging| merging.port),
            Self::Off | Self::Unavailable(_) => None,
        }
    }

    /// Tells the programs about the ports and the underlay: from then on datagrams for the plain port reach `socket`.
    pub(super) async fn open(&mut self, netlink: &Netlink, socket: u16) {
        let held = self.held_port();
        let Self::Attached(attached) = self else { return };
        if let Err(error) = attached.forwarder.set_ports(held.unwrap_or(socket), socket, attached.mark) {
            tracing::warn!("the kernel engine took no settings, user space carries everything: {error:#}");
        }
        attached.tend(netlink).await;
    }

    /// Removes what is not gone with the programs.
    pub(super) async fn stop(&self, netlink: &Netlink) {
        let Self::Attached(attached) = self else { return };
        let device = match &attached.merging {
            Ok(merging) => merging.stop(netlink).await,
            Err(_) => Ok(()),
        };
        for removed in [device, attached.veth.stop(netlink).await] {
            if let Err(error) = removed {
                tracing::warn!("{error:#}");
            }
        }
    }

    fn forwarder_mut(&mut self) -> Option<&mut Forwarder> {
        match self {
            Self::Attached(attached) => Some(&mut attached.forwarder),
            Self::Off | Self::Unavailable(_) => None,
        }
    }

    /// Every verdict of the programs, by name.
    pub(super) fn counters(&self) -> Vec<(String, u64)> {
        let verdicts = self.forwarder().map(Forwarder::verdicts).unwrap_or_default();
        verdicts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
    }

    /// `set_local_ip`.
    pub(super) fn set_local(&mut self, local: Local) {
        let Some(forwarder) = self.forwarder_mut() else { return };
        if let Err(error) = forwarder.set_local(local) {
            tracing::warn!("the kernel engine took no settings, user space carries everything: {error:#}");
        }
    }

    /// What the node wants, as far as it concerns the kernel. What ends a link's forwarding takes effect at once, what
    /// begins it with [`FastPath::settle`].
    pub(super) fn note(&mut self, output: &Output) {
        let Some(forwarder) = self.forwarder_mut() else { return };
        if let Output::MapPeer { uid, ip4, ip6 } = output {
            forwarder.map_peer(*uid, *ip4, *ip6);
        } else if let Output::UnmapPeer { uid } = output {
            forwarder.unmap_peer(*uid);
        } else if let Output::OpenLink { link, uid, role: _, protection } = output {
            open_link(forwarder, *link, *uid, protection);
        } else if let Output::SetSendTag { link, vni } = output {
            forwarder.set_send_tag(*link, *vni);
        } else if let Output::SetPath { link, path } = output {
            forwarder.set_path(*link, *path);
        } else if let Output::SetForwarding { link, enabled } = output {
            forwarder.set_forwarding(*link, *enabled);
        } else if let Output::RemoveLink { link } = output {
            forwarder.remove_link(*link);
        }
    }

    /// Links that may be forwarded once the underlay's route to their peers is known.
    pub(super) fn take_due(&mut self) -> Vec<LinkId> {
        self.forwarder_mut().map(Forwarder::take_due).unwrap_or_default()
    }

    /// Installs a link with the route that was found, or gives it back to user space.
    pub(super) fn settle(&mut self, link: LinkId, route: anyhow::Result<UnderlayRoute>) {
        if let Some(forwarder) = self.forwarder_mut() {
            forwarder.settle(link, route);
        }
    }

    /// Says that the daemon lives and looks at the underlay's interfaces again; the links' routes are `Underlay`'s to ask for.
    pub(super) async fn recheck(&mut self, netlink: &Netlink) {
        let Self::Attached(attached) = self else { return };
        if let Err(error) = attached.forwarder.renew_lease() {
            tracing::warn!("the kernel engine's lease cannot be renewed, user space will carry everything: {error:#}");
        }
        attached.tend(netlink).await;
    }
}

impl Attached {
    async fn new(
        config: &DaemonConfig,
        netlink: &Netlink,
        predecessor: &Predecessor,
        tap: &Tap,
        wish: PortWish,
    ) -> anyhow::Result<Self> {
        let way = if config.attach.is_clsact(clsact::has_tcx) { Way::Clsact } else { Way::Tcx };
        let mut engine = predecessor.load(netlink, tap, config.xdp == XdpUse::Native, way).await?;
        engine.attach_tap(tap.index())?;
        let is_pinned = engine.is_pinned();
        let mut forwarder = Forwarder::new(engine, tap.index(), tap.mac(), config.lease)?;
        let hold = is_pinned.then(|| tap.hold()).transpose().context("cannot let the TAP stay")?;
        // Packets on their way through a helper device have the mark of before.
        let mark = forwarder.adopted_ports().map_or_else(random_mark, |ports| Ok(ports.mark))?;
        let merging = Merging::start(netlink, &mut forwarder, tap.name(), wish).await.map_err(|error| {
            tracing::info!("plain frames arrive unmerged: {error:#}");
            format!("{error:#}")
        });
        let veth = MergingVeth::new(tap.name());
        Ok(Self { forwarder, way, tap: tap.name().to_owned(), hold, merging, veth, mark })
    }

    /// The programs are where they belong, and the helper devices are well.
    async fn tend(&mut self, netlink: &Netlink) {
        match self.forwarder.mend() {
            Ok(again) if again.is_empty() => {}
            Ok(again) => tracing::warn!(programs = ?again, "somebody took programs away; they are attached again"),
            Err(error) => tracing::warn!("somebody took programs away: {error:#}"),
        }
        if let Ok(merging) = &mut self.merging {
            merging.mend(netlink, &mut self.forwarder).await;
        }
        let uplinks = match netlink.ethernet_uplinks(&self.tap).await {
            Ok(uplinks) => uplinks,
            Err(error) => {
                tracing::warn!("cannot look at the underlay: {error:#}");
                return;
            }
        };
        let is_translated = self.merging.is_ok();
        if is_translated && let Err(error) = self.forwarder.set_uplinks(&uplinks) {
            tracing::warn!("peers may not reach the plain port on every interface: {error:#}");
        }
        let is_awake = self.merging.as_ref().is_ok_and(Merging::is_awake);
        let unmerged: BTreeSet<u32> = uplinks.into_keys().filter(|index| !is_awake || !uplink_merges(*index)).collect();
        let merger = if unmerged.is_empty() { None } else { self.veth.ready(netlink, &mut self.forwarder).await };
        self.forwarder.set_merger(merger.map(|near| (near, unmerged)));
    }
}

/// Whether an interface runs GRO; one that cannot be asked counts as if.
fn uplink_merges(index: u32) -> bool {
    let name = interface_name(index);
    name.and_then(|name| ethtool::merges(&name)).unwrap_or_else(|error| {
        tracing::debug!(index, "GRO is taken to be on: {error:#}");
        true
    })
}

/// Any odd number.
fn random_mark() -> anyhow::Result<u32> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| anyhow!("the kernel gives no random numbers: {error}"))?;
    Ok(u32::from_ne_bytes(bytes) | 1)
}

fn open_link(forwarder: &mut Forwarder, link: LinkId, uid: Uid, protection: &LinkProtection) {
    match protection {
        LinkProtection::Plain { receive_vni } => forwarder.add_link(link, uid, *receive_vni),
        LinkProtection::Dtls { .. } => {}
    }
}
