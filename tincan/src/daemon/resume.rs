//! Links that outlive the process: the snapshot is kept while the daemon runs, and gone on with by the next one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::config::DaemonConfig;
use crate::daemon::Daemon;
use crate::edge::snapshot::{SnapshotFile, SnapshotWriter, boot_time};
use crate::node::{Node, Output};
use crate::snapshot::Snapshot;

/// Least pause between two writes.
const PAUSE: Duration = Duration::from_millis(200);
/// Where a snapshot takes long to make (20 ms for 4096 links), the loop spends no more than this part of its time on it.
const SHARE: u32 = 50;
/// How often it is written although nothing changed, so that its age says when the daemon ended; with a short lease more
/// often, this part of it.
const REFRESH: Duration = Duration::from_secs(10);
const REFRESH_SHARE: u32 = 4;

/// A snapshot that may be gone on with, and its age.
pub(super) struct Found {
    snapshot: Snapshot,
    age: Duration,
}

impl Found {
    /// Where peers send to.
    pub(super) fn plain_port(&self) -> u16 {
        self.snapshot.plain_port
    }
}

/// Looks for what a killed daemon left; what cannot be gone on with is removed and said.
pub(super) fn find(config: &DaemonConfig) -> Option<Found> {
    let file = SnapshotFile::new(&config.state_dir, &config.tap);
    match file.load(config.lease) {
        Ok(found) => found.map(|(snapshot, age)| Found { snapshot, age }),
        Err(error) => {
            refuse(&file, &format!("{error:#}"));
            None
        }
    }
}

fn refuse(file: &SnapshotFile, reason: &str) {
    tracing::warn!("links of the daemon before are not resumed, {} is removed: {reason}", file.path().display());
    if let Err(error) = file.remove() {
        tracing::warn!("{} cannot be removed: {error}", file.path().display());
    }
}

/// Keeps the snapshot's file as the node is.
pub(super) struct Keeper {
    file: SnapshotFile,
    writer: SnapshotWriter,
    /// When to write next.
    due: Option<Instant>,
    not_before: Instant,
    refresh: Duration,
    is_stored: bool,
}

impl Keeper {
    pub(super) fn start(config: &DaemonConfig) -> anyhow::Result<Self> {
        let file = SnapshotFile::new(&config.state_dir, &config.tap);
        let writer = SnapshotWriter::start(file.clone())?;
        let refresh = REFRESH.min(config.lease / REFRESH_SHARE);
        Ok(Self { file, writer, due: None, not_before: Instant::now(), refresh, is_stored: false })
    }

    /// Something that is kept may have changed.
    pub(super) fn changed(&mut self) {
        let soon = Instant::now().max(self.not_before);
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
    }

    /// What the node wants, as far as it changes what is kept.
    pub(super) fn note(&mut self, output: &Output) {
        let is_kept = matches!(
            output,
            Output::OpenLink { .. }
                | Output::SetSendTag { .. }
                | Output::SetPath { .. }
                | Output::SetForwarding { .. }
                | Output::RemoveLink { .. }
                | Output::MapPeer { .. }
                | Output::UnmapPeer { .. }
        );
        if is_kept {
            self.changed();
        }
    }

    /// When [`Keeper::keep`] has something to do next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Writes what is due.
    pub(super) fn keep(&mut self, node: &Node, plain_port: u16, callback: Option<SocketAddr>) {
        let start = Instant::now();
        if self.due.is_some_and(|due| due <= start) {
            self.write(node, plain_port, callback);
            let end = Instant::now();
            self.not_before = end + PAUSE.max((end - start) * SHARE);
            self.due = self.is_stored.then_some(end + self.refresh);
        }
    }

    fn write(&mut self, node: &Node, plain_port: u16, callback: Option<SocketAddr>) {
        match (node.snapshot(Instant::now()), boot_time()) {
            (Some(node), Ok(taken)) => {
                self.is_stored = true;
                self.writer.write(Snapshot { taken, plain_port, callback, node });
            }
            (None, _) => self.forget(),
            (Some(_), Err(error)) => {
                tracing::debug!("links will not outlive this daemon: {error:#}");
                self.forget();
            }
        }
    }

    fn forget(&mut self) {
        if std::mem::take(&mut self.is_stored) {
            self.writer.remove();
        }
    }
}

impl Daemon {
    /// Goes on with what a killed daemon left, as if the controller had made its calls again.
    pub(super) async fn resume(&mut self, found: Found) {
        let Found { snapshot: Snapshot { taken: _, plain_port, callback, node }, age } = found;
        // Written anew or removed with the first look, whatever comes of it.
        self.keeper.is_stored = true;
        self.keeper.changed();
        let own_port = self.plain_port();
        if own_port != plain_port {
            let reason = format!("its links use UDP port {plain_port}, this daemon has {own_port}");
            refuse(&self.keeper.file, &reason);
            return;
        }
        let fingerprint = match self.adopt_local(&node.local).await {
            Ok(fingerprint) => fingerprint,
            Err(reason) => {
                refuse(&self.keeper.file, &reason);
                return;
            }
        };
        let is_allowed = |callback: &SocketAddr| callback.ip().is_loopback() || self.config.allow_remote_controller;
        self.callback = callback.filter(is_allowed);
        let links = self.node.resume(Instant::now(), node.aged(age, self.config.lease), fingerprint);
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(links, age_ms, "plain links of the daemon before are resumed");
        self.carry_out_all();
        self.settle_underlay().await;
    }

    /// Writes the snapshot if it is due.
    pub(super) fn keep_snapshot(&mut self) {
        self.keeper.keep(&self.node, self.plain_port(), self.callback);
    }

    /// The daemon ends in order: its links stay for the next one, or nothing does.
    pub(super) fn end_snapshot(&mut self, keep_links: bool) {
        if keep_links {
            self.keeper.write(&self.node, self.plain_port(), self.callback);
        } else {
            self.keeper.writer.remove();
        }
        self.keeper.due = None;
    }
}
