//! Real daemons: started in a namespace, waited for, stopped or killed.

use std::env;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::netns::Namespace;
use crate::process::Process;
use crate::rpc::RpcClient;
use crate::scratch::Scratch;
use crate::wait;

/// How long a daemon may take until its Unix socket answers.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// How much of a log is shown when a test fails.
const SHOWN_LINES: usize = 80;

/// The options a daemon is started with.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// `--tap`.
    pub tap: String,
    /// `--rpc-port`.
    pub rpc_port: u16,
    /// Further options, as words.
    pub more: Vec<String>,
    /// Whether there is a bpffs at `/sys/fs/bpf`, as on most hosts: then plain links in the kernel outlive a daemon that is
    /// killed.
    pub pins: bool,
    /// Whether it has the capabilities to load programs into the kernel.
    pub may_use_bpf: bool,
    /// Whether the log's last lines are printed at the end; the test harness shows them of failed tests only.
    pub log_at_end: bool,
}

impl Default for DaemonOptions {
    fn default() -> Self {
        Self {
            tap: "ipop".to_owned(),
            rpc_port: 5800,
            more: Vec::new(),
            pins: true,
            may_use_bpf: true,
            log_at_end: true,
        }
    }
}

/// A running daemon with a state directory of its own.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    options: DaemonOptions,
    namespace: Namespace,
    scratch: Arc<Scratch>,
}

impl Daemon {
    /// Starts a daemon and waits until its Unix socket answers.
    pub fn start(namespace: &Namespace, options: &DaemonOptions) -> Result<Self> {
        Self::start_in(namespace, options, Arc::new(Scratch::new("daemon")?))
    }

    /// Starts a daemon that is expected to refuse; returns what it said.
    pub fn start_refused(namespace: &Namespace, options: &DaemonOptions) -> Result<String> {
        let scratch = Arc::new(Scratch::new("daemon")?);
        let mut process = launch(namespace, options, &scratch)?;
        let status = process.wait(START_DEADLINE).context("the daemon did not refuse to start")?;
        if status.success() {
            bail!("the daemon ended as if all were well: {}", process.output());
        }
        Ok(process.output())
    }

    fn start_in(namespace: &Namespace, options: &DaemonOptions, scratch: Arc<Scratch>) -> Result<Self> {
        let process = launch(namespace, options, &scratch)?;
        let mut daemon = Self { process, options: options.clone(), namespace: namespace.clone(), scratch };
        daemon.wait_until_ready().with_context(|| daemon.tail())?;
        Ok(daemon)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let socket = self.socket();
        let ready = wait::until_some(START_DEADLINE, "the daemon's Unix socket", || {
            if self.process.ended().ok().flatten().is_some() {
                return Some(false);
            }
            let mut client = RpcClient::connect(&socket).ok()?;
            client.call("counters", &serde_json::json!({})).ok().map(|_| true)
        })?;
        if !ready {
            bail!("the daemon ended at start");
        }
        Ok(())
    }

    /// Where its Unix socket is.
    pub fn socket(&self) -> PathBuf {
        self.scratch.path().join("tincan.sock")
    }

    /// Where it keeps its certificate.
    pub fn state_dir(&self) -> PathBuf {
        self.scratch.path().join("state")
    }

    /// The options it runs with.
    pub fn options(&self) -> &DaemonOptions {
        &self.options
    }

    /// The namespace it runs in.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// A connection to its Unix socket.
    pub fn rpc(&self) -> Result<RpcClient> {
        RpcClient::connect(&self.socket())
    }

    /// One call on a connection of its own.
    pub fn call(&self, method: &str, params: &Value) -> Result<Value> {
        self.rpc()?.call(method, params)
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Stops it as a service manager does. True when it obeyed in time.
    pub fn stop(&mut self) -> Result<bool> {
        self.process.stop()
    }

    /// SIGKILL, as a crash.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it anew, with the state directory it had.
    pub fn restart(&mut self) -> Result<()> {
        self.process.stop()?;
        self.process = launch(&self.namespace, &self.options, &self.scratch)?;
        self.wait_until_ready().with_context(|| self.tail())
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        format!("daemon {} in {}:\n{shown}", self.pid(), self.namespace.name())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.options.log_at_end {
            eprintln!("{}", self.tail());
        }
    }
}

fn launch(namespace: &Namespace, options: &DaemonOptions, scratch: &Scratch) -> Result<Process> {
    let DaemonOptions { tap, rpc_port, more, pins, may_use_bpf, log_at_end: _ } = options;
    let path = |name: &str| scratch.path().join(name).display().to_string();
    let level = env::var("TINCAN_TEST_LOG").unwrap_or_else(|_| "debug".to_owned());
    let mut arguments: Vec<String> = ["daemon", "--tap", tap].map(str::to_owned).to_vec();
    arguments.extend(["--rpc-port".to_owned(), rpc_port.to_string(), "--log".to_owned(), level]);
    arguments.extend(["--socket".to_owned(), path("tincan.sock"), "--state-dir".to_owned(), path("state")]);
    arguments.extend_from_slice(more);
    let log = scratch.path().join("log");
    let mut program = program()?;
    if !may_use_bpf {
        // What is not in the bounding set is not in the program's either (capabilities(7)).
        let words = ["--bounding-set=-bpf,-perfmon,-sys_admin".to_owned(), program.display().to_string()];
        arguments.splice(0..0, words);
        program = PathBuf::from("setpriv");
    }
    if *pins {
        Process::start_with_pins(namespace, &program, &arguments, &log)
    } else {
        Process::start(namespace, &program, &arguments, &log)
    }
}

/// `tincan` with these words, where the namespace's bpffs is at `/sys/fs/bpf`; its exit status and what it printed.
pub fn command_with_pins(namespace: &Namespace, words: &[&str]) -> Result<(bool, String)> {
    let scratch = Scratch::new("command")?;
    let arguments: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let mut process = Process::start_with_pins(namespace, &program()?, &arguments, &scratch.path().join("log"))?;
    let status = process.wait(START_DEADLINE)?;
    Ok((status.success(), process.output()))
}

/// The `tincan` program: `$TINCAN_BIN`, or the one cargo built beside this program.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("TINCAN_BIN") {
        return Ok(path.into());
    }
    let this = env::current_exe().context("finding this program")?;
    let mut beside = this.ancestors().skip(1).take(2).map(|directory| directory.join("tincan"));
    beside.find(|path| path.is_file()).context("no tincan program: cargo build --release -p tincan, or set TINCAN_BIN")
}
