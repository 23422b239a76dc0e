//! Programs on interfaces: attached behind foreign ones, pinned where that is wanted, taken over from a daemon before.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, io};

use anyhow::{Context, ensure};
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode};

use super::clsact::Filters;
use super::{
    CHECKED_INGRESS, KernelEngine, LOOPBACK_INDEX, PROGRAMS, TAP_EGRESS, UPLINK_PROGRAMS, UPLINK_XDP, failure,
    interface_name, program,
};
use crate::edge::ethtool;

impl KernelEngine {
    /// Attaches `tap_egress` behind the other programs of the TAP (TCX, Linux 6.6).
    pub fn attach_tap(&mut self, index: u32) -> anyhow::Result<()> {
        self.attach(TAP_EGRESS, index)
    }

    /// From now on uplinks also get a program in their driver (native XDP), which takes datagrams before GRO.
    pub fn work_in_driver(&mut self) -> anyhow::Result<()> {
        self.xdp()?.load().map_err(|error| failure::explain(error, "load the driver's program"))?;
        self.in_driver = true;
        Ok(())
    }

    /// The same, or a warning.
    pub fn prefer_driver(&mut self) {
        if let Err(error) = self.work_in_driver() {
            tracing::warn!("frames are not taken in the drivers: {error:#}");
        }
    }

    pub(super) fn xdp(&mut self) -> anyhow::Result<&mut Xdp> {
        let program = self.ebpf.program_mut(UPLINK_XDP);
        Ok(program.with_context(|| format!("the object has no program {UPLINK_XDP}"))?.try_into()?)
    }

    /// Attaches what belongs on an uplink; once is enough.
    pub fn attach_uplink(&mut self, index: u32) -> anyhow::Result<()> {
        self.uplink_programs().iter().try_for_each(|name| self.attach(name, index))?;
        if self.in_driver
            && self.drivers.insert(index)
            && let Err(error) = self.attach_to_driver(index)
        {
            tracing::warn!("frames are not taken in the driver: {error:#}");
        }
        Ok(())
    }

    fn uplink_programs(&self) -> &'static [&'static str] {
        if self.in_driver { &UPLINK_PROGRAMS } else { &UPLINK_PROGRAMS[1..] }
    }

    /// Never over another program, which is left where it is. Not pinned: without it `uplink_ingress` takes the frames.
    fn attach_to_driver(&mut self, index: u32) -> anyhow::Result<()> {
        ensure!(index != LOOPBACK_INDEX, "refusing to attach to the loopback device");
        let name = &interface_name(index)?;
        // Attaching a program switches some drivers' GRO off.
        let merges = ethtool::merges(name)?;
        let attached = self.xdp()?.attach_to_if_index(index, XdpMode::Driver);
        attached.map_err(|error| failure::explain(error, &format!("attach to the driver of {name} (--xdp native)")))?;
        if merges { ethtool::set_merging(name, true) } else { Ok(()) }
    }

    /// Attaches the guard to a helper device, which must be down until then.
    pub fn attach_helper(&mut self, index: u32) -> anyhow::Result<()> {
        self.attach(CHECKED_INGRESS, index)
    }

    /// Whether the guard is on an interface.
    #[must_use]
    pub fn is_guarded(&self, index: u32) -> bool {
        let is_filtered = |filters: &Filters| filters.is_on(CHECKED_INGRESS, index).is_ok_and(|is_on| is_on);
        self.attached.contains_key(&(CHECKED_INGRESS, index)) || self.filters.as_ref().is_some_and(is_filtered)
    }

    /// Attaches a program to an interface, unless it is there.
    fn attach(&mut self, name: &'static str, index: u32) -> anyhow::Result<()> {
        if self.attached.contains_key(&(name, index)) {
            return Ok(());
        }
        ensure!(index != LOOPBACK_INDEX, "refusing to attach to the loopback device");
        if let Some(filters) = &self.filters {
            filters.attach(program(&mut self.ebpf, name)?, name, index)?;
            self.attached.insert((name, index), None);
            return Ok(());
        }
        let interface = interface_name(index)?;
        let program = program(&mut self.ebpf, name)?;
        let link = attach_last(program, &interface, side_of(name)?)?;
        let pinned = match self.pins.as_ref().map(|pins| pins.link(name, index)) {
            Some(pin) => {
                let link = FdLink::try_from(program.take_link(link)?)?;
                Some(link.pin(&pin).with_context(|| format!("pin {name} of {interface}"))?)
            }
            None => None,
        };
        self.attached.insert((name, index), pinned);
        Ok(())
    }

    /// Attaches again what somebody took away, and forgets interfaces that are gone; returns what it was, for a person.
    pub fn mend(&mut self) -> anyhow::Result<Vec<String>> {
        let mut missing = Vec::new();
        for (name, index) in self.attached.keys().copied().collect::<Vec<_>>() {
            let Ok(interface) = interface_name(index) else {
                self.forget(name, index);
                continue;
            };
            let is_on = match &self.filters {
                Some(filters) => filters.is_on(name, index)?,
                None => self.is_on(name, &interface)?,
            };
            if !is_on {
                missing.push((name, index, interface));
            }
        }
        // An uplink's programs have an order: all of them are attached again. Unpinned ones that are there stay.
        for (name, index, _) in &missing {
            let is_uplinks = UPLINK_PROGRAMS.contains(name) && self.pins.is_some() && self.filters.is_none();
            let again: &[&'static str] = if is_uplinks { self.uplink_programs() } else { &[*name] };
            for name in again {
                self.forget(name, *index);
            }
            again.iter().try_for_each(|name| self.attach(name, *index))?;
        }
        Ok(missing.into_iter().map(|(name, _, interface)| format!("{name} of {interface}")).collect())
    }

    fn is_on(&mut self, name: &'static str, interface: &str) -> anyhow::Result<bool> {
        let own = program(&mut self.ebpf, name)?.info()?.id();
        let (_, found) = SchedClassifier::query_tcx(interface, side_of(name)?)
            .with_context(|| format!("list the programs on {interface}"))?;
        Ok(found.iter().any(|info| info.id() == own))
    }

    /// Lets go of a pinned link, which ends it.
    fn forget(&mut self, name: &'static str, index: u32) {
        let Some(link) = self.attached.remove(&(name, index)) else { return };
        let pin = self.pins.as_ref().map(|pins| pins.link(name, index));
        if let Some(pin) = pin
            && let Err(error) = fs::remove_file(&pin)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(pin = %pin.display(), %error, "a pin stays");
        }
        drop(link);
    }

    /// Ends the pinned links of a daemon before, which attached in another way.
    pub(super) fn end_links(&self) -> anyhow::Result<()> {
        let Some(pins) = &self.pins else { return Ok(()) };
        for (name, index) in pins.links()? {
            let pin = pins.link(&name, index);
            fs::remove_file(&pin).with_context(|| format!("remove {}", pin.display()))?;
        }
        Ok(())
    }

    /// Puts the own programs in place of those that a daemon before left on the pinned links.
    pub(super) fn adopt_links(&mut self) -> anyhow::Result<()> {
        let wanted = self.uplink_programs();
        let Some(pins) = &self.pins else { return Ok(()) };
        let links: BTreeSet<(String, u32)> = pins.links()?.into_iter().collect();
        for (name, index) in &links {
            let pin = pins.link(name, *index);
            let known = PROGRAMS.iter().find(|(program, _)| program == name);
            // Attached again, one of an uplink's programs would come behind the others.
            let is_whole = !UPLINK_PROGRAMS.contains(&name.as_str())
                || UPLINK_PROGRAMS
                    .iter()
                    .all(|other| links.contains(&((*other).to_owned(), *index)) == wanted.contains(other));
            match known.filter(|_| is_whole) {
                Some((known, _)) => {
                    let replaced = replace(program(&mut self.ebpf, known)?, &pin);
                    if replaced.with_context(|| format!("take over {name} on interface {index}"))? {
                        self.attached.insert((known, *index), None);
                    }
                }
                None => fs::remove_file(&pin).with_context(|| format!("remove {}", pin.display()))?,
            }
        }
        Ok(())
    }
}

pub(super) fn side_of(name: &str) -> anyhow::Result<TcAttachType> {
    let found = PROGRAMS.iter().find(|(program, _)| *program == name);
    found.map(|(_, side)| *side).with_context(|| format!("no program {name}"))
}

/// Attaches a program behind the others.
fn attach_last(
    program: &mut SchedClassifier,
    interface: &str,
    side: TcAttachType,
) -> anyhow::Result<SchedClassifierLinkId> {
    program
        .attach_with_options(interface, side, TcAttachOptions::TcxOrder(LinkOrder::last()))
        .map_err(|error| failure::explain(error, &format!("attach to {interface} by TCX")))
}

/// Puts a program in place of the one a pinned link has, at once and for every frame. False where its interface is gone;
/// then its pin is too.
fn replace(program: &mut SchedClassifier, pin: &Path) -> anyhow::Result<bool> {
    let link = match PinnedLink::from_pin(pin) {
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.with_context(|| format!("open {}", pin.display()))?,
    };
    let link = SchedClassifierLink::try_from(FdLink::from(link)).with_context(|| format!("{}", pin.display()))?;
    if let Err(error) = program.attach_to_link(link) {
        tracing::debug!(pin = %pin.display(), "a pinned link is of no use any more: {error}");
        fs::remove_file(pin).with_context(|| format!("remove {}", pin.display()))?;
        return Ok(false);
    }
    Ok(true)
}
