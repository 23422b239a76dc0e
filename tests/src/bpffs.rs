//! A bpffs of one's own: what daemons pin there is removed with it, whoever was killed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::scratch::Scratch;

/// A mounted bpffs, unmounted on drop.
#[derive(Debug)]
pub struct Bpffs {
    scratch: Scratch,
}

impl Bpffs {
    /// Mounts it in a directory of its own.
    pub fn new() -> Result<Self> {
        let scratch = Scratch::new("bpf")?;
        mount(Some("bpf"), scratch.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting bpffs at {}", scratch.path().display()))?;
        Ok(Self { scratch })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        unmount(self.scratch.path());
    }
}

/// A directory and everything below it; nothing where there is none.
pub(crate) fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = vec![directory.to_owned()];
    for entry in fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))? {
        let path = entry?.path();
        let below = list(&path)?;
        found.extend(if below.is_empty() { vec![path] } else { below });
    }
    Ok(found)
}

/// Unmounts what is mounted there, if anything: at once for everyone to come, and for those inside when they end.
pub(crate) fn unmount(path: &Path) {
    // EINVAL: nothing is mounted there.
    let _ = umount2(path, MntFlags::MNT_DETACH);
}
