//! How this host reaches the peers of plain links: the kernel is asked about every direct path, again and again, and both
//! engines hear the answer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::bail;

use crate::daemon::Daemon;
use crate::dataplane::Command;
use crate::dataplane::too_big::longest_frame;
use crate::edge::netlink::Netlink;
use crate::link::{LinkId, Path, UnderlayRoute};
use crate::node::{LinkProtection, Output};

/// How often routes are looked at again: what a router told the kernel of a path's MTU holds from then on, and a link
/// whose uplink changed goes on in user space meanwhile only when ICE noticed first.
pub(super) const RECHECK: Duration = Duration::from_secs(2);

/// Routes asked for in one go before other inputs get their turn.
const QUESTIONS: usize = 64;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Underlay {
    links: BTreeMap<LinkId, PlainLink>,
    due: BTreeSet<LinkId>,
}

#[derive(Debug, Default)]
struct PlainLink {
    path: Option<Path>,
    /// What the engine was told last.
    longest_frame: Option<usize>,
}

impl Underlay {
    /// What the node wants, as far as it concerns plain links' paths.
    pub(super) fn note(&mut self, output: &Output) {
        if let Output::OpenLink { link, protection: LinkProtection::Plain { .. }, .. } = output {
            self.links.insert(*link, PlainLink::default());
        } else if let Output::SetPath { link, path } = output {
            if let Some(known) = self.links.get_mut(link) {
                known.path = Some(*path);
                self.due.insert(*link);
            }
        } else if let Output::RemoveLink { link } = output {
            self.links.remove(link);
        }
    }

    /// Asks about every link again.
    pub(super) fn recheck(&mut self) {
        self.due.extend(self.links.keys());
    }

    /// Whether there is something to ask.
    pub(super) fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    async fn next_answer(&mut self, netlink: &Netlink) -> Option<(LinkId, anyhow::Result<UnderlayRoute>)> {
        while let Some(link) = self.due.pop_first() {
            let Some(path) = self.links.get(&link).and_then(|known| known.path) else { continue };
            return Some((link, route_of(&path, netlink).await));
        }
        None
    }

    /// Takes what the engine has to know; true when that is new.
    fn set_longest_frame(&mut self, link: LinkId, longest: Option<usize>) -> bool {
        let Some(known) = self.links.get_mut(&link) else { return false };
        std::mem::replace(&mut known.longest_frame, longest) != longest
    }
}

async fn route_of(path: &Path, netlink: &Netlink) -> anyhow::Result<UnderlayRoute> {
    match path.relay {
        None => netlink.route_to(path.remote.ip(), path.source).await,
        Some(_) => bail!("the path goes through a relay"),
    }
}

impl Daemon {
    /// Asks the kernel about links whose way is to be looked at, and tells the engines.
    pub(super) async fn settle_underlay(&mut self) {
        self.underlay.due.extend(self.fast_path.take_due());
        for _ in 0..QUESTIONS {
            let Some((link, route)) = self.underlay.next_answer(&self.netlink).await else { return };
            let longest = route.as_ref().ok().map(|route| longest_frame(route.mtu, route.source.is_ipv4()));
            let longest = longest.and_then(|bytes| usize::try_from(bytes).ok());
            if self.underlay.set_longest_frame(link, longest) {
                tracing::debug!(%link, longest, "longest frame of a plain link");
                self.engine.command(Command::SetLongestFrame { link, longest });
            }
            self.fast_path.settle(link, route);
        }
    }
}
