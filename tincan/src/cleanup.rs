//! `tincan cleanup`: removes what dead daemons left in the kernel: pins, TAPs that stayed for them, helper devices,
//! filters.
//!
//! A TAP is ours if a pin of ours is attached to it, and nobody's if it can be opened. Other network namespaces are left
//! alone, except for pins whose devices are gone.

use std::fmt;

use anyhow::Context;
use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};

use crate::dataplane::kernel::clsact;
use crate::dataplane::kernel::pins::Place;
use crate::edge::netlink::Netlink;
use crate::edge::tap::{InUse, Tap};

/// Something that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// A TAP.
    Tap(String),
    /// A directory of pins; what was attached by them is detached.
    Pins(String),
    /// A device that a daemon made for itself.
    Helper(String),
    /// Filters of clsact, by interface, whose TAP is gone.
    Filters(String),
}

/// What [`run`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CleanupReport {
    pub removed: Vec<Removed>,
    /// What is in use, and by whom.
    pub kept: Vec<(String, String)>,
}

/// Removes what is left of `tap`, or of every TAP, in the network namespace of the calling thread.
pub fn run(tap: Option<&str>) -> anyhow::Result<CleanupReport> {
    let mut report = CleanupReport::default();
    for place in Place::all()?.iter().filter(|place| tap.is_none_or(|tap| tap == place.tap())) {
        remove_place(place, &mut report)?;
    }
    for interface in clsact::remove_orphans(tap)? {
        report.removed.push(Removed::Filters(interface));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot begin")?;
    runtime.block_on(remove_helpers(tap, &mut report))?;
    Ok(report)
}

fn remove_place(place: &Place, report: &mut CleanupReport) -> anyhow::Result<()> {
    let pins = place.path().display().to_string();
    if !place.is_here() {
        if place.tap_interface() == Some(0) {
            place.remove()?;
            report.removed.push(Removed::Pins(pins));
        }
        return Ok(());
    }
    // Held until the pins are gone, so that no daemon begins with it meanwhile.
    let tap = if place.owns_tap() {
        match Tap::adopt(place.tap()) {
            Err(error) if error.is::<InUse>() => {
                report.kept.push((place.tap().to_owned(), "a daemon is running with it: stop that first".to_owned()));
                return Ok(());
            }
            other => Some(other?),
        }
    } else {
        None
    };
    if let Some(tap) = &tap {
        tap.end_hold()?;
        report.removed.push(Removed::Tap(place.tap().to_owned()));
    }
    place.remove()?;
    report.removed.push(Removed::Pins(pins));
    Ok(())
}

/// A running daemon has its TAP, so helpers of one that is not there are nobody's.
async fn remove_helpers(tap: Option<&str>, report: &mut CleanupReport) -> anyhow::Result<()> {
    let netlink = Netlink::new()?;
    for helper in netlink.helpers().await? {
        if tap.is_none_or(|tap| tap == helper.tap) && if_nametoindex(helper.tap.as_str()).is_err() {
            netlink.remove_device(helper.index).await?;
            report.removed.push(Removed::Helper(helper.name));
        }
    }
    Ok(())
}

impl CleanupReport {
    /// For machines: `{"removed":[{"kind":..,"name":..}],"kept":[{"name":..,"reason":..}]}`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let removed: Vec<Value> = self
            .removed
            .iter()
            .map(|removed| {
                let (kind, name) = removed.words();
                json!({"kind": kind, "name": name})
            })
            .collect();
        let kept = self.kept.iter().map(|(name, reason)| json!({"name": name, "reason": reason}));
        json!({"removed": removed, "kept": kept.collect::<Vec<_>>()})
    }
}

impl Removed {
    fn words(&self) -> (&'static str, &str) {
        match self {
            Self::Tap(name) => ("tap", name),
            Self::Pins(name) => ("pins", name),
            Self::Helper(name) => ("device", name),
            Self::Filters(name) => ("filters", name),
        }
    }
}

impl fmt::Display for CleanupReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for removed in &self.removed {
            let (kind, name) = removed.words();
            writeln!(f, "removed {kind} {name}")?;
        }
        for (name, reason) in &self.kept {
            writeln!(f, "kept {name}: {reason}")?;
        }
        if self.removed.is_empty() && self.kept.is_empty() {
            writeln!(f, "nothing to remove")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_the_same_to_people_and_machines() {
        assert_eq!(CleanupReport::default().to_string(), "nothing to remove\n");
        let report = CleanupReport {
            removed: vec![Removed::Tap("ipop".to_owned()), Removed::Pins("/p".to_owned())],
            kept: vec![("blue".to_owned(), "a daemon has it".to_owned())],
        };
        assert_eq!(report.to_string(), "removed tap ipop\nremoved pins /p\nkept blue: a daemon has it\n");
        let expected = json!({
            "removed": [{"kind": "tap", "name": "ipop"}, {"kind": "pins", "name": "/p"}],
            "kept": [{"name": "blue", "reason": "a daemon has it"}],
        });
        assert_eq!(report.to_json(), expected);
    }
}
