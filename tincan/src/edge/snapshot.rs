//! The file that holds a snapshot: private, replaced as a whole, written by a thread of its own.
//!
//! Nothing is synced to the disk: a snapshot is of no use after the crash of the whole machine.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::snapshot::{BootTime, Snapshot};

/// Longest file read, bytes: 4096 links have some 2 KiB each.
const MAX_LENGTH: u64 = 64 << 20;
const FILE_MODE: u32 = 0o600;
/// Every permission of group and others.
const OTHERS: u32 = 0o077;

/// Where the snapshot of the daemon of a TAP is.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    path: PathBuf,
}

impl SnapshotFile {
    /// `<state_dir>/<tap>.links.json`.
    #[must_use]
    pub fn new(state_dir: &Path, tap: &str) -> Self {
        Self { path: state_dir.join(format!("{tap}.links.json")) }
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The snapshot and its age, if there is one that may be gone on with; the error says why one that is there may not.
    pub fn load(&self, lease: Duration) -> anyhow::Result<Option<(Snapshot, Duration)>> {
        let Some(text) = self.read()? else { return Ok(None) };
        let snapshot = Snapshot::decode(&text)?;
        let age = snapshot.age(&boot_time()?, lease)?;
        Ok(Some((snapshot, age)))
    }

    /// Removes the file, and one that a killed daemon did not get to the end of.
    pub fn remove(&self) -> io::Result<()> {
        remove(&self.fresh())?;
        remove(&self.path)
    }

    /// Where the next content is written before it replaces the file.
    fn fresh(&self) -> PathBuf {
        self.path.with_extension("json.new")
    }

    fn read(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("it cannot be opened"),
        };
        let metadata = file.metadata().context("it cannot be looked at")?;
        let is_private = metadata.uid() == nix::unistd::geteuid().as_raw() && metadata.mode() & OTHERS == 0;
        ensure!(metadata.is_file() && is_private, "it is not a file of this user alone (mode 0600)");
        ensure!(metadata.len() <= MAX_LENGTH, "it is longer than any daemon writes it");
        let mut text = Vec::new();
        file.take(MAX_LENGTH).read_to_end(&mut text).context("it cannot be read")?;
        Ok(Some(text))
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        let fresh = self.fresh();
        // One that is there already may have any mode.
        remove(&fresh)?;
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&fresh)?;
        file.write_all(text)?;
        fs::rename(&fresh, &self.path)
    }
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What the writing thread is to do.
enum Job {
    Write(Box<Snapshot>),
    Remove,
}

/// The writing thread; what it was given is done when this is dropped.
#[derive(Debug)]
pub struct SnapshotWriter {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl SnapshotWriter {
    /// Starts the thread.
    pub fn start(file: SnapshotFile) -> anyhow::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("tincan-snapshot".to_owned())
            .spawn(move || run(&file, &queue))
            .context("cannot start the thread that writes snapshots")?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Replaces the file's content, soon.
    pub fn write(&self, snapshot: Snapshot) {
        self.give(Job::Write(Box::new(snapshot)));
    }

    /// Removes the file, soon.
    pub fn remove(&self) {
        self.give(Job::Remove);
    }

    fn give(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // Fails only when the thread panicked, which its end tells.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes snapshots panicked");
        }
    }
}

fn run(file: &SnapshotFile, queue: &mpsc::Receiver<Job>) {
    let mut is_failing = false;
    while let Ok(first) = queue.recv() {
        // Only the last state counts.
        let job = queue.try_iter().last().unwrap_or(first);
        let result = match job {
            Job::Write(snapshot) => file.write(&snapshot.encode()),
            Job::Remove => file.remove(),
        };
        if let Err(error) = &result
            && !is_failing
        {
            let path = file.path().display();
            tracing::warn!("{path} cannot be written, links will not outlive this daemon: {error}");
        }
        is_failing = result.is_err();
    }
}

/// Now, as another process of the same boot understands it.
pub fn boot_time() -> anyhow::Result<BootTime> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let boot_id = read("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    let uptime = read("/proc/uptime")?;
    let seconds = uptime.split_whitespace().next().and_then(|text| text.parse().ok());
    let uptime = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Ok(BootTime { boot_id, uptime: uptime.context("/proc/uptime does not begin with a number of seconds")? })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// A directory that goes with the test.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tincan-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn what_is_written_is_private_whole_and_read_back_until_it_is_removed() {
        let directory = Directory::new("snapshot-written");
        let file = SnapshotFile::new(&directory.0, "ipop");
        assert_eq!(file.load(MINUTE).unwrap(), None);
        let snapshot = Snapshot { taken: boot_time().unwrap(), ..crate::snapshot::tests::snapshot() };
        let writer = SnapshotWriter::start(file.clone()).unwrap();
        writer.write(crate::snapshot::tests::snapshot());
        writer.write(snapshot.clone());
        drop(writer);
        let (loaded, age) = file.load(MINUTE).unwrap().unwrap();
        assert_eq!(loaded.node, snapshot.node);
        assert!(age < MINUTE);
        assert_eq!(fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, FILE_MODE);
        assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 1, "nothing else is left behind");
        fs::write(file.fresh(), b"half of a").unwrap();
        let writer = SnapshotWriter::start(file.clone()).unwrap();
        writer.remove();
        drop(writer);
        assert_eq!(file.load(MINUTE).unwrap(), None);
        assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 0, "nothing at all is left behind");
    }

    #[test]
    fn a_file_that_others_may_write_or_a_link_to_one_is_not_read() {
        let directory = Directory::new("snapshot-foreign");
        let file = SnapshotFile::new(&directory.0, "ipop");
        file.write(b"{}").unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
        let refusal = file.load(MINUTE).unwrap_err().to_string();
        assert!(refusal.contains("this user alone"), "{refusal}");
        let other = directory.0.join("other");
        fs::rename(file.path(), &other).unwrap();
        symlink(&other, file.path()).unwrap();
        assert!(file.load(MINUTE).is_err());
    }

    #[test]
    fn the_time_since_the_boot_does_not_go_back() {
        let (one, two) = (boot_time().unwrap(), boot_time().unwrap());
        assert_eq!(one.boot_id, two.boot_id);
        assert!(one.uptime > Duration::ZERO && two.uptime >= one.uptime);
    }
}
