//! Network namespaces that remove themselves.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::bpffs::Bpffs;
use crate::{bpffs, scratch};

/// Begins the name of every namespace of the bench; the id of the process that made it follows.
pub const PREFIX: &str = "tct-";
/// Where `ip netns` keeps its handles.
const HANDLES: &str = "/run/netns";

static NEXT: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

/// A network namespace with a unique name and `lo` up. Clones name the same one; the last one removes it.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    name: String,
    pins: OnceLock<Bpffs>,
}

impl Namespace {
    /// Makes the namespace; `role` ends its name.
    ///
    /// # Errors
    /// Without root, or when `ip` fails.
    pub fn new(role: &str) -> Result<Self> {
        ensure!(geteuid().is_root(), "network namespaces need root: run this as root (sudo)");
        SWEEP.call_once(|| {
            sweep();
            scratch::sweep();
        });
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{role}", process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self(Arc::new(Handle { name, pins: OnceLock::new() }));
        namespace.exec("ip link set lo up")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The bpffs of the daemons inside, mounted by the first who asks; it goes with the namespace.
    pub fn pins(&self) -> Result<&Path> {
        if self.0.pins.get().is_none() {
            // Of two at once, one's is dropped again.
            drop(self.0.pins.set(Bpffs::new()?));
        }
        Ok(self.0.pins.get().context("a bpffs that was just mounted")?.path())
    }

    /// What daemons inside have pinned and not removed.
    pub fn pinned(&self) -> Result<Vec<PathBuf>> {
        bpffs::list(&self.pins()?.join("tincan"))
    }

    /// Runs a command (split at white space) inside, to its end, and returns its output.
    ///
    /// # Errors
    /// When it cannot be run or ends with a non-zero status; the message holds what it said.
    pub fn exec(&self, command: &str) -> Result<String> {
        let mut words = command.split_whitespace();
        let program = words.next().context("an empty command")?;
        let mut command = Command::new(program);
        command.args(words).process_group(0);
        self.enter(move || run(&mut command)).with_context(|| format!("in namespace {}", self.name()))
    }

    /// Runs `inside` on a thread of its own that is in the namespace; sockets it opens belong there for good.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = Path::new(HANDLES).join(self.name());
        let entered = || {
            let handle = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            setns(handle, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", path.display()))?;
            inside()
        };
        thread::scope(|scope| scope.spawn(entered).join()).unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    /// The names of its network devices, `lo` excluded.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        let table = self.enter(|| fs::read_to_string("/proc/thread-self/net/dev").context("reading net/dev"))?;
        let names = table.lines().skip(2).filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
        Ok(names.filter(|name| *name != "lo").map(str::to_owned).collect())
    }

    /// The local ports of its sockets in a table of `/proc/net` (`udp`, `udp6`, `tcp`, `tcp6`); of TCP those listening.
    pub fn ports(&self, table: &str) -> Result<Vec<u16>> {
        let path = format!("/proc/thread-self/net/{table}");
        let text = self.enter(|| fs::read_to_string(&path).with_context(|| format!("reading {path}")))?;
        Ok(text.lines().skip(1).filter_map(|line| bound_port(line, table.starts_with("tcp"))).collect())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("namespace {} may be left behind: {error:#}", self.name);
        }
    }
}

/// The namespaces of the bench that exist, of any process.
pub fn existing() -> Vec<String> {
    let Ok(entries) = fs::read_dir(HANDLES) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(PREFIX)).collect()
}

/// Those whose maker no longer runs: it was killed before it could remove them.
pub fn abandoned() -> Vec<String> {
    existing().into_iter().filter(|name| is_abandoned(name)).collect()
}

fn maker(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// Whether `name` is one the bench gives and the process in it no longer runs.
pub(crate) fn is_abandoned(name: &str) -> bool {
    maker(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

/// Removes abandoned namespaces and the processes an earlier bench left in them.
fn sweep() {
    for name in abandoned() {
        let pids = run(Command::new("ip").args(["netns", "pids", &name])).unwrap_or_default();
        for pid in pids.lines().filter_map(|pid| pid.trim().parse().ok()) {
            kill(Pid::from_raw(pid), Signal::SIGKILL)
                .unwrap_or_else(|error| eprintln!("{name}: process {pid}: {error}"));
        }
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &name])) {
            eprintln!("namespace {name} of an earlier run stays: {error:#}");
        }
    }
}

/// The local port of one line of `/proc/net/{tcp,udp}*`: `sl local_address rem_address st ...`, in hex; state 0A listens.
fn bound_port(line: &str, listening_only: bool) -> Option<u16> {
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next()?;
    let state = fields.nth(1)?;
    if listening_only && state != "0A" {
        return None;
    }
    u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()
}

fn run(command: &mut Command) -> Result<String> {
    // In a group of its own, so that Ctrl-C does not cut short what the bench sets up and removes.
    let output = command.process_group(0).output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&said).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
