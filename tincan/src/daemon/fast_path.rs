//! The kernel engine as the daemon has it: there, switched off, or refused with a reason.

use std::time::Duration;

use anyhow::Context;
use nix::net::if_::if_nametoindex;

use crate::config;
use crate::dataplane::kernel::KernelEngine;
use crate::dataplane::kernel::forwarder::Forwarder;
use crate::dataplane::kernel::pins::{Left, Place};
use crate::dataplane::table::Local;
use crate::edge::netlink::Netlink;
use crate::edge::tap::{Tap, TapHold};
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
    /// Attached to the TAP; detached when dropped, unless links were left.
    Attached(Box<Attached>),
    /// The operator switched it off.
    Off,
    /// Asked for, but this host does not allow it.
    Unavailable(String),
}

/// The programs, and the TAP as long as it outlives this process with them.
pub(super) struct Attached {
    forwarder: Forwarder,
    hold: Option<TapHold>,
}

/// What a daemon before left in the kernel for the own TAP.
pub(super) struct Before {
    /// Where it would be, or why nothing can be pinned here.
    place: anyhow::Result<Place>,
    left: Left,
}

impl Before {
    /// Looks; changes nothing.
    pub(super) fn look(tap: &str) -> Self {
        let place = Place::of(tap);
        let left = place.as_ref().map_or(Left::Nothing, Place::look);
        Self { place, left }
    }

    /// The TAP: the one that was left, if it is ours, or a new one.
    pub(super) fn tap(&self, name: &str) -> anyhow::Result<Tap> {
        let is_ours = self.place.as_ref().is_ok_and(Place::owns_tap);
        if is_ours && if_nametoindex(name).is_ok() { Tap::adopt(name) } else { Tap::create(name) }
    }

    /// The port of plain links whose entries were left.
    pub(super) fn plain_port(&self) -> Option<u16> {
        match &self.left {
            Left::Whole(settings) => Some(u16::from_be_bytes(settings.plain_port)).filter(|port| *port != 0),
            Left::Nothing | Left::Unfit(_) => None,
        }
    }

    /// Removes what was left, if anything, and says so in one line.
    fn remove(&self, tap: &Tap, reason: &str) -> anyhow::Result<()> {
        let (Ok(place), Left::Whole(_) | Left::Unfit(_)) = (&self.place, &self.left) else { return Ok(()) };
        tracing::info!(pins = %place.path().display(), "what a daemon before left is removed: {reason}");
        tap.end_hold()?;
        place.remove()
    }

    /// Loads the programs, pinned where that is possible.
    fn load(&self, tap: &Tap) -> anyhow::Result<KernelEngine> {
        let place = match &self.place {
            Ok(place) => place.clone(),
            Err(error) => return load_unpinned(&format!("{error:#}")),
        };
        match &self.left {
            Left::Nothing => {}
            Left::Unfit(reason) => self.remove(tap, reason)?,
            Left::Whole(_) => match place.clone().make().and_then(KernelEngine::load_pinned) {
                Ok(engine) => {
                    tracing::info!(pins = %place.path().display(), "what a daemon before left is gone on with");
                    return Ok(engine);
                }
                Err(error) => self.remove(tap, &format!("{error:#}"))?,
            },
        }
        match place.make().and_then(KernelEngine::load_pinned) {
            Ok(engine) => Ok(engine),
            Err(error) => load_unpinned(&format!("{error:#}")),
        }
    }
}

fn load_unpinned(reason: &str) -> anyhow::Result<KernelEngine> {
    let engine = KernelEngine::load()?;
    tracing::info!("links end with this daemon: {reason}");
    Ok(engine)
}

impl FastPath {
    /// Loads the kernel programs as the option says; only `on` makes a refusal an error.
    pub(super) fn start(
        wanted: config::FastPath,
        before: &Before,
        tap: &Tap,
        plain_port: u16,
        lease: Duration,
    ) -> anyhow::Result<Self> {
        if wanted == config::FastPath::Off {
            before.remove(tap, "the kernel engine is switched off")?;
            return Ok(Self::Off);
        }
        let attached = Attached::new(before, tap, plain_port, lease).inspect_err(|error| {
            if let Err(left) = before.remove(tap, &format!("{error:#}")) {
                tracing::warn!("something of a daemon before is left, `tincan cleanup` removes it: {left:#}");
            }
        });
        match attached {
            Ok(attached) => Ok(Self::Attached(Box::new(attached))),
            Err(error) if wanted == config::FastPath::On => {
                Err(error.context("the kernel engine was asked for (--fast-path on) and cannot run; use auto or off"))
            }
            Err(error) => {
                tracing::warn!("the kernel engine cannot run, user space carries everything: {error:#}");
                Ok(Self::Unavailable(format!("{error:#}")))
            }
        }
    }

    /// Lets go of the links in the kernel, which then outlive this daemon by the lease; false where they cannot.
    pub(super) fn leave(&mut self) -> bool {
        let Self::Attached(attached) = self else { return false };
        let Attached { forwarder, hold } = &mut **attached;
        let Some(hold) = hold.as_mut().filter(|_| forwarder.leave()) else { return false };
        hold.leave();
        *self = Self::Off;
        true
    }

    /// One phrase for the log and `status`.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Attached(attached) if attached.hold.is_some() => "attached, pinned".to_owned(),
            Self::Attached(_) => "attached".to_owned(),
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

    /// Every link is looked at again by the next [`FastPath::settle`], and the programs hear that the daemon lives.
    pub(super) fn recheck(&mut self) {
        let Some(forwarder) = self.forwarder_mut() else { return };
        if let Err(error) = forwarder.renew_lease() {
            tracing::warn!("the kernel engine's lease cannot be renewed, user space will carry everything: {error:#}");
        }
        forwarder.recheck();
    }
}

fn open_link(forwarder: &mut Forwarder, link: LinkId, uid: Uid, protection: &LinkProtection) {
    match protection {
        LinkProtection::Plain { receive_vni } => forwarder.add_link(link, uid, *receive_vni),
        LinkProtection::Dtls { .. } => {}
    }
}

impl Attached {
    fn new(before: &Before, tap: &Tap, plain_port: u16, lease: Duration) -> anyhow::Result<Self> {
        let mut engine = before.load(tap)?;
        engine.attach_tap(tap.index())?;
        let is_pinned = engine.is_pinned();
        let forwarder = Forwarder::new(engine, tap.index(), tap.mac(), plain_port, lease)?;
        let hold = is_pinned.then(|| tap.hold()).transpose().context("cannot let the TAP stay")?;
        Ok(Self { forwarder, hold })
    }
}
