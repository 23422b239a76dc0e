//! The daemon's loop: the only place that knows both the node and the edges.

use crate::config::{DaemonConfig, LogControl};

/// Runs until SIGTERM or SIGINT.
#[expect(clippy::unused_async, reason = "the loop is not written yet")]
pub async fn run(config: DaemonConfig, log: LogControl) -> anyhow::Result<()> {
    drop((config, log));
    anyhow::bail!("the daemon's loop is not written yet")
}
