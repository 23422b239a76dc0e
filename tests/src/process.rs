//! A process that ends with the value that owns it.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Namespace;
use crate::wait;

/// How long a process may take to obey SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// A running program inside a namespace; standard output and error go to a file. Stopped on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    /// Keeps the namespace until the process is gone.
    _namespace: Namespace,
}

impl Process {
    /// Starts `program` inside `namespace`, by `ip netns exec`, which gives it the right `/sys` too.
    pub fn start(namespace: &Namespace, program: &Path, arguments: &[String], log: &Path) -> Result<Self> {
        let output = File::create(log).with_context(|| format!("making {}", log.display()))?;
        let child = Command::new("ip")
            .args(["netns", "exec", namespace.name()])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            // Ctrl-C is for whoever owns the process, who then stops it in order.
            .process_group(0)
            .stdout(output.try_clone().context("sharing the log file")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { child, log: log.to_owned(), _namespace: namespace.clone() })
    }

    /// The same with the namespace's bpffs at `/sys/fs/bpf`, where the fresh `/sys` has none.
    pub fn start_with_pins(namespace: &Namespace, program: &Path, arguments: &[String], log: &Path) -> Result<Self> {
        let shown = |path: &Path| path.display().to_string();
        let script = "mount --bind \"$0\" /sys/fs/bpf && exec \"$@\"".to_owned();
        let words = [vec!["-c".to_owned(), script, shown(namespace.pins()?), shown(program)], arguments.to_vec()];
        Self::start(namespace, Path::new("sh"), &words.concat(), log)
    }

    /// Its process id: `ip netns exec` becomes the program.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far.
    pub fn output(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// How it ended; `None` while it runs.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("asking for a child's state")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid()).context("a process id out of range")?);
        kill(pid, signal).with_context(|| format!("sending {signal} to {pid}"))
    }

    /// Waits for the end.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        wait::until_some(deadline, "the end of a process", || self.ended().ok().flatten())
    }

    /// SIGTERM and a deadline; SIGKILL after that. True when SIGTERM was enough.
    pub fn stop(&mut self) -> Result<bool> {
        if self.ended()?.is_some() {
            return Ok(true);
        }
        self.signal(Signal::SIGTERM)?;
        if self.wait(STOP_DEADLINE).is_ok() {
            return Ok(true);
        }
        self.kill()?;
        Ok(false)
    }

    /// SIGKILL, as a crash.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.child.kill().context("killing a child")?;
            self.child.wait().context("waiting for a killed child")?;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("process {} may be left behind: {error:#}", self.pid());
        }
    }
}
