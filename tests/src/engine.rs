//! Nodes with a plain link on each engine, and on the one that is left to a daemon without permission.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::controller::{LinkPlan, Node, connect};
use crate::daemon::DaemonOptions;
use crate::topology::Pair;
use crate::wait;

const SOON: Duration = Duration::from_secs(10);

/// What forwards a plain link's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The programs in the kernel.
    Kernel,
    /// The same as filters of clsact, as before Linux 6.6.
    KernelByClsact,
    /// The daemon, because `--fast-path off` says so.
    User,
    /// The daemon, because it lacks `CAP_BPF`.
    WithoutBpf,
}

impl Engine {
    /// Options of a daemon that uses it.
    pub fn options(self) -> DaemonOptions {
        let words = match self {
            Self::Kernel => vec!["--fast-path", "on"],
            Self::KernelByClsact => vec!["--fast-path", "on", "--attach", "clsact"],
            Self::User => vec!["--fast-path", "off"],
            Self::WithoutBpf => Vec::new(),
        };
        let more = words.into_iter().map(str::to_owned).collect();
        DaemonOptions { more, may_use_bpf: self != Self::WithoutBpf, ..DaemonOptions::default() }
    }

    /// Two nodes with a plain link on it.
    pub fn linked(self, pair: &Pair) -> Result<[Node; 2]> {
        let options = self.options();
        self.link([Node::start_with(&pair.alice, 1, &options)?, Node::start_with(&pair.bob, 2, &options)?])
    }

    /// Links two nodes, and waits until both forward by it.
    pub fn link(self, [mut alice, mut bob]: [Node; 2]) -> Result<[Node; 2]> {
        connect(&mut alice, &mut bob, &LinkPlan::plain())?;
        self.await_on(&alice, &bob)?;
        self.await_on(&bob, &alice)?;
        Ok([alice, bob])
    }

    /// Waits until a node forwards to a peer by it.
    pub fn await_on(self, node: &Node, peer: &Node) -> Result<()> {
        let name = if self.is_in_kernel() { "kernel" } else { "user" };
        let is_on = || node.peer(peer).is_ok_and(|peer| peer.text("engine") == name);
        wait::until(SOON, &format!("the link to be on the {name} engine"), is_on).with_context(|| node.daemon.log())
    }

    /// Whether it is the kernel's programs.
    pub fn is_in_kernel(self) -> bool {
        matches!(self, Self::Kernel | Self::KernelByClsact)
    }

    /// An error where a node's frames went another way, as far as counters tell.
    pub fn check(self, node: &Node) -> Result<()> {
        let by_kernel = node.counter("kernel_sent")? + node.counter("kernel_delivered")?;
        ensure!(self.is_in_kernel() == (by_kernel > 0), "{by_kernel} frames went through the kernel's programs");
        Ok(())
    }
}
