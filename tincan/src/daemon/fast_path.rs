//! The kernel engine as the daemon has it: there, switched off, or refused with a reason.

use crate::config;
use crate::dataplane::kernel::KernelEngine;
use crate::dataplane::kernel::forwarder::Forwarder;
use crate::dataplane::table::Local;
use crate::link::{LinkId, UnderlayRoute};
use crate::node::{LinkProtection, Output};
use crate::wire::uid::Uid;

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
