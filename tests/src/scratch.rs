//! A directory of one's own that is removed at the end.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::bpffs;
use crate::netns::{PREFIX, is_abandoned};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A directory under the system's temporary one, readable by its owner only, removed on drop.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes the directory; `role` is part of its name.
    pub fn new(role: &str) -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("{PREFIX}{}-{number}-{role}", process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Removes directories whose maker was killed before it could, and with those that are a bpffs what was pinned.
pub(crate) fn sweep() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten().filter(|entry| is_abandoned(&entry.file_name().to_string_lossy())) {
        bpffs::unmount(&entry.path());
        // Of two benches that begin at once, one is too late; a file of that name is not ours.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && fs::remove_dir_all(entry.path()).is_ok() {
            eprintln!("{} of an earlier run is removed", entry.path().display());
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("{} is left behind: {error}", self.path.display());
        }
    }
}
