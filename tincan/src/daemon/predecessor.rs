//! What a daemon before this one left in the kernel for the own TAP: gone on with, or removed with one line.

use nix::net::if_::if_nametoindex;

use crate::dataplane::kernel::pins::{Left, Place};
use crate::dataplane::kernel::{KernelEngine, Way};
use crate::edge::netlink::Netlink;
use crate::edge::tap::Tap;

/// See the module's head.
pub(super) struct Predecessor {
    /// Where it would be, or why nothing can be pinned here.
    place: anyhow::Result<Place>,
    left: Left,
}

impl Predecessor {
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
    pub(super) async fn remove(&self, netlink: &Netlink, tap: &Tap, reason: &str) -> anyhow::Result<()> {
        for helper in netlink.helpers().await? {
            if helper.tap == tap.name() {
                netlink.remove_device(helper.index).await?;
            }
        }
        let (Ok(place), Left::Whole(_) | Left::Unfit(_)) = (&self.place, &self.left) else { return Ok(()) };
        tracing::info!(pins = %place.path().display(), "what a daemon before left is removed: {reason}");
        tap.end_hold()?;
        place.remove()
    }

    /// Loads the programs, pinned where that is possible, and those for the uplinks' drivers if that is wanted.
    pub(super) async fn load(
        &self,
        netlink: &Netlink,
        tap: &Tap,
        in_driver: bool,
        way: Way,
    ) -> anyhow::Result<KernelEngine> {
        let load_unpinned = |reason: &str| {
            let mut engine = KernelEngine::load()?;
            tracing::info!("links end with this daemon: {reason}");
            if in_driver {
                engine.prefer_driver();
            }
            if way == Way::Clsact {
                engine.attach_by_clsact(tap.name());
            }
            Ok(engine)
        };
        let place = match &self.place {
            Ok(place) => place.clone(),
            Err(error) => return load_unpinned(&format!("{error:#}")),
        };
        let load = |place: Place| KernelEngine::load_pinned(place.make()?, in_driver, way);
        match &self.left {
            Left::Nothing => {}
            Left::Unfit(reason) => self.remove(netlink, tap, reason).await?,
            Left::Whole(_) => match load(place.clone()) {
                Ok(engine) => {
                    tracing::info!(pins = %place.path().display(), "what a daemon before left is gone on with");
                    return Ok(engine);
                }
                Err(error) => self.remove(netlink, tap, &format!("{error:#}")).await?,
            },
        }
        match load(place) {
            Ok(engine) => Ok(engine),
            Err(error) => load_unpinned(&format!("{error:#}")),
        }
    }
}
