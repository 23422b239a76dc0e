//! Where maps and links outlive the daemon that made them: a directory for each TAP in bpffs.
//!
//! ```text
//!   /sys/fs/bpf/tincan/<inode of the network namespace>-<tap>/v<LAYOUT>/settings flows ...        the maps
//!                                                                       tap_egress                the link on the TAP
//!                                                                       uplink_ingress-<ifindex>  one for each uplink
//! ```
//!
//! A link that is pinned stays attached without anyone holding it, and removing the pin detaches it. Filters of clsact
//! ([`clsact`](super::clsact)) stay by themselves and are removed with the pins. Nothing is mounted here: without bpffs
//! nothing is pinned.

use std::ffi::OsStr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, ensure};
use aya::maps::{Array, Map, MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use nix::net::if_::if_nametoindex;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use tincan_common::entries::{LAYOUT, SETTINGS, Settings};

use super::clsact::Filters;
use super::{MAPS, TAP_EGRESS};

/// Where systems mount bpffs.
const BPFFS: &str = "/sys/fs/bpf";
/// Our directory in it.
const DIRECTORY: &str = "tincan";
/// Only root may look inside.
const MODE: u32 = 0o700;

/// The directory of one TAP in one network namespace; whether it exists or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: PathBuf,
    namespace: u64,
    tap: String,
}

/// What a daemon before left in a [`Place`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    Nothing,
    /// All that a new daemon needs to go on, and the settings it had.
    Whole(Box<Settings>),
    /// Something else, and what is wrong with it.
    Unfit(String),
}

impl Place {
    /// The place of a TAP in the network namespace of the calling thread; the error says why nothing can be pinned.
    pub fn of(tap: &str) -> anyhow::Result<Self> {
        ensure!(is_bpffs_mounted(), "no bpffs at {BPFFS}; mount it to let them survive a restart");
        let namespace = current_namespace()?;
        Ok(Self { path: root().join(directory_name(namespace, tap)), namespace, tap: tap.to_owned() })
    }

    /// Every place that exists, of whatever namespace; none without bpffs.
    pub fn all() -> anyhow::Result<Vec<Self>> {
        if !is_bpffs_mounted() {
            return Ok(Vec::new());
        }
        let place = |name: &OsStr| {
            let (namespace, tap) = parse_directory_name(name.to_str()?)?;
            Some(Self { path: root().join(name), namespace, tap })
        };
        let names = list(&root()).with_context(|| format!("cannot list {}", root().display()))?;
        Ok(names.iter().filter_map(|name| place(name)).collect())
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The TAP's name.
    #[must_use]
    pub fn tap(&self) -> &str {
        &self.tap
    }

    /// Whether it belongs to the network namespace of the calling thread.
    #[must_use]
    pub fn is_here(&self) -> bool {
        current_namespace().is_ok_and(|namespace| namespace == self.namespace)
    }

    /// The interface that `tap_egress` of any layout is pinned to; 0 when that is gone, `None` without such a pin, unless
    /// it is a filter of the TAP here.
    #[must_use]
    pub fn tap_interface(&self) -> Option<u32> {
        let layouts = list(&self.path).unwrap_or_default();
        let interfaces = layouts.iter().filter_map(|layout| {
            let link = PinnedLink::from_pin(self.path.join(layout).join(TAP_EGRESS)).ok()?;
            interface_of(&FdLink::from(link))
        });
        interfaces.max().or_else(|| self.is_here().then(|| self.filtered_tap()).flatten())
    }

    /// The TAP, if the program is its filter.
    fn filtered_tap(&self) -> Option<u32> {
        let index = if_nametoindex(self.tap.as_str()).ok()?;
        let is_on = Filters::of(&self.tap, false).is_on(TAP_EGRESS, index);
        is_on.is_ok_and(|is_on| is_on).then_some(index)
    }

    /// Whether the device with the TAP's name is the one that was pinned: then this program made it.
    #[must_use]
    pub fn owns_tap(&self) -> bool {
        self.is_here() && if_nametoindex(self.tap.as_str()).is_ok_and(|index| self.tap_interface() == Some(index))
    }

    /// What is there; changes nothing.
    #[must_use]
    pub fn look(&self) -> Left {
        let layouts = match list(&self.path) {
            Ok(layouts) if layouts.is_empty() => return Left::Nothing,
            Ok(layouts) => layouts,
            Err(error) => return Left::Unfit(format!("it cannot be listed: {error}")),
        };
        if let Some(other) = layouts.iter().find(|layout| **layout != *layout_name()) {
            return Left::Unfit(format!("it has layout {}, this daemon {}", other.display(), layout_name()));
        }
        match self.settings() {
            Ok(_) if !self.owns_tap() => Left::Unfit(format!("its TAP {} is gone", self.tap)),
            Ok(settings) => Left::Whole(Box::new(settings)),
            Err(error) => Left::Unfit(format!("{error:#}")),
        }
    }

    /// The settings in it, once every map has the shape this program gives it.
    fn settings(&self) -> anyhow::Result<Settings> {
        for shape in &MAPS {
            let info = MapInfo::from_pin(self.map(shape.name)).with_context(|| format!("map {}", shape.name))?;
            let found = (info.key_size(), info.value_size(), info.max_entries());
            ensure!(found == (shape.key, shape.value, shape.entries), "map {} has another shape", shape.name);
        }
        let map = Map::from_map_data(MapData::from_pin(self.map(SETTINGS))?)?;
        let settings: Array<_, [u8; Settings::SIZE]> = Array::try_from(map)?;
        Ok(Settings::from_bytes(&settings.get(&0, 0).context("read the settings")?))
    }

    /// Removes every pin, of any layout: what was attached by them is detached, the maps go with their last user.
    pub fn remove(&self) -> anyhow::Result<()> {
        if self.is_here() {
            Filters::of(&self.tap, false).remove()?;
        }
        let what = || format!("cannot remove {}", self.path.display());
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(what),
            Ok(()) | Err(_) => {}
        }
        // Another TAP's directory may stand beside it.
        drop(fs::remove_dir(root()));
        Ok(())
    }

    /// Makes the directory of this layout. What is put there goes with the value that is returned.
    pub fn make(self) -> anyhow::Result<Pins> {
        let path = self.layout();
        let made = fs::DirBuilder::new().recursive(true).mode(MODE).create(&path);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Pins { place: self, stays: false })
    }

    pub(super) fn layout(&self) -> PathBuf {
        self.path.join(layout_name())
    }

    fn map(&self, name: &str) -> PathBuf {
        self.layout().join(name)
    }
}

/// The pins of a running daemon; they are removed with this value, unless they were left for the next one.
#[derive(Debug)]
pub struct Pins {
    place: Place,
    stays: bool,
}

impl Pins {
    /// The TAP's name.
    pub(super) fn tap(&self) -> &str {
        &self.place.tap
    }

    /// Where a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.place.map(name)
    }

    /// Where a program's link is pinned.
    pub(super) fn link(&self, program: &str, interface: u32) -> PathBuf {
        let name = if program == TAP_EGRESS { program.to_owned() } else { format!("{program}-{interface}") };
        self.place.layout().join(name)
    }

    /// The links that are pinned, as program and interface; of one that is gone too.
    pub(super) fn links(&self) -> anyhow::Result<Vec<(String, u32)>> {
        let names = list(&self.place.layout()).context("cannot list the pins")?;
        let tap = || if_nametoindex(self.place.tap.as_str()).unwrap_or(0);
        let link = |name: &OsStr| match name.to_str()? {
            TAP_EGRESS => Some((TAP_EGRESS.to_owned(), tap())),
            other => {
                other.rsplit_once('-').and_then(|(program, index)| Some((program.to_owned(), index.parse().ok()?)))
            }
        };
        Ok(names.iter().filter_map(|name| link(name)).collect())
    }

    /// Leaves them for the next daemon, or not.
    pub fn set_staying(&mut self, stays: bool) {
        self.stays = stays;
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if !self.stays
            && let Err(error) = self.place.remove()
        {
            tracing::warn!("pins are left behind, `tincan cleanup` removes them: {error:#}");
        }
    }
}

/// The interface a TCX link is on, 0 when it is gone. The crate does not tell, but the kernel does in `fdinfo`.
fn interface_of(link: &FdLink) -> Option<u32> {
    let wanted = link.info().ok()?.id();
    let directory = Path::new("/proc/thread-self/fdinfo");
    let of_descriptor = |name: &OsStr| {
        let text = fs::read_to_string(directory.join(name)).ok()?;
        let number = |key: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"))?;
            value.parse::<u32>().ok()
        };
        (number("link_id") == Some(wanted)).then(|| number("ifindex")).flatten()
    };
    list(directory).ok()?.iter().find_map(|name| of_descriptor(name))
}

fn is_bpffs_mounted() -> bool {
    statfs(BPFFS).is_ok_and(|mounted| mounted.filesystem_type() == BPF_FS_MAGIC)
}

/// The names in a directory, sorted; none where there is no directory.
fn list(path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn root() -> PathBuf {
    Path::new(BPFFS).join(DIRECTORY)
}

fn layout_name() -> String {
    format!("v{LAYOUT}")
}

/// bpffs reserves names with dots; a TAP's name may have them, but never a percent sign.
fn directory_name(namespace: u64, tap: &str) -> String {
    format!("{namespace}-{}", tap.replace('.', "%"))
}

fn parse_directory_name(name: &str) -> Option<(u64, String)> {
    let (namespace, tap) = name.split_once('-')?;
    Some((namespace.parse().ok()?, tap.replace('%', ".")))
}

/// The inode of the calling thread's network namespace, which names it while it lives.
fn current_namespace() -> anyhow::Result<u64> {
    let path = "/proc/thread-self/ns/net";
    Ok(fs::metadata(path).with_context(|| format!("cannot look at {path}"))?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_name_reads_back_and_has_no_dots() {
        for tap in ["ipop", "a-b.c-1", "..x"] {
            let name = directory_name(4_026_531_840, tap);
            assert!(!name.contains('.'), "{name}");
            assert_eq!(parse_directory_name(&name), Some((4_026_531_840, tap.to_owned())));
        }
        for name in ["", "ipop", "-ipop", "x-ipop", "-1-ipop"] {
            assert_eq!(parse_directory_name(name), None, "{name}");
        }
    }
}
