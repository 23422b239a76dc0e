//! The kernel engine as the daemon has it: there, switched off, or refused with a reason.

use std::time::Duration;

use crate::config;
use crate::dataplane::kernel::KernelEngine;
use crate::dataplane::kernel::forwarder::Forwarder;
use crate::dataplane::table::Local;
use crate::edge::netlink::Netlink;
use crate::link::LinkId;
use crate::node::{LinkProtection, Output};
use crate::wire::uid::Uid;

/// How often the underlay's routes are looked at again: a link whose uplink changed goes on in user space meanwhile only
/// when ICE noticed first.
pub(super) const RECHECK: Duration = Duration::from_secs(2);

/// Routes asked for in one go before other inputs get their turn.
const QUESTIONS: usize = 64;

/// Whether kernel programs are loaded, and why not.
pub(super) enum FastPath {
    /// Attached to the TAP; detached when dropped.
    Attached(Box<Forwarder>),
    /// The operator switched it off.
    Off,
    /// Asked for, but this host does not allow it.
    Unavailable(String),
}

impl FastPath {
    /// Loads the kernel programs as the option says; only `on` makes a refusal an error.
    pub(super) fn start(
        wanted: config::FastPath,
        tap: &str,
        tap_mac: [u8; 6],
        plain_port: u16,
    ) -> anyhow::Result<Self> {
        if wanted == config::FastPath::Off {
            return Ok(Self::Off);
        }
        match attach(tap, tap_mac, plain_port) {
            Ok(forwarder) => Ok(Self::Attached(Box::new(forwarder))),
            Err(error) if wanted == config::FastPath::On => {
                Err(error.context("the kernel engine was asked for (--fast-path on) and cannot run; use auto or off"))
            }
            Err(error) => {
                tracing::warn!("the kernel engine cannot run, user space carries everything: {error:#}");
                Ok(Self::Unavailable(format!("{error:#}")))
            }
        }
    }

    /// One phrase for the log and `status`.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Attached(_) => "attached".to_owned(),
            Self::Off => "off".to_owned(),
            Self::Unavailable(reason) => format!("unavailable: {reason}"),
        }
    }

    /// The part that forwards.
    pub(super) fn forwarder(&self) -> Option<&Forwarder> {
        match self {
            Self::Attached(forwarder) => Some(forwarder),
            Self::Off | Self::Unavailable(_) => None,
        }
    }

    fn forwarder_mut(&mut self) -> Option<&mut Forwarder> {
        match self {
            Self::Attached(forwarder) => Some(forwarder),
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

    /// Asks the underlay about links that may be forwarded now, and installs them.
    pub(super) async fn settle(&mut self, netlink: &Netlink) {
        let Some(forwarder) = self.forwarder_mut() else { return };
        for _ in 0..QUESTIONS {
            let Some(question) = forwarder.next_question() else { return };
            let route = netlink.route_to(question.remote, question.source).await;
            forwarder.settle(question.link, route);
        }
    }

    /// Every link is looked at again by the next [`FastPath::settle`].
    pub(super) fn recheck(&mut self) {
        if let Some(forwarder) = self.forwarder_mut() {
            forwarder.recheck();
        }
    }
}

fn open_link(forwarder: &mut Forwarder, link: LinkId, uid: Uid, protection: &LinkProtection) {
    match protection {
        LinkProtection::Plain { receive_vni } => forwarder.add_link(link, uid, *receive_vni),
        LinkProtection::Dtls { .. } => {}
    }
}

fn attach(tap: &str, tap_mac: [u8; 6], plain_port: u16) -> anyhow::Result<Forwarder> {
    let mut engine = KernelEngine::load()?;
    engine.attach_tap(tap)?;
    Ok(Forwarder::new(engine, nix::net::if_::if_nametoindex(tap)?, tap_mac, plain_port))
}
