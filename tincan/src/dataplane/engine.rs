//! The user-space engine as the control loop sees it: commands in, events and figures out. The frames themselves are the
//! worker thread's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use anyhow::Context;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tincan_common::verdict::Verdict;

use crate::dataplane::port::Ports;
use crate::dataplane::worker::{Instruction, Worker};
use crate::dataplane::{Command, EngineEvent};
use crate::edge::tap::Tap;
use crate::link::{LinkId, Traffic};

/// Most frames of the controller that wait for the worker.
const MAX_INJECTIONS: u64 = 1024;

/// What the engine is made with.
pub struct EngineConfig {
    /// The device frames come from and go to.
    pub tap: Tap,
    /// The sockets of both ports; ICE sends through them too.
    pub ports: Arc<Ports>,
}

/// The running engine; dropping it stops its thread and removes the TAP.
pub struct Engine {
    inbox: mpsc::Sender<Instruction>,
    wake: Arc<EventFd>,
    figures: Arc<Figures>,
    // The worker reads them from its own copy; the map is only for whoever asks.
    links: Mutex<HashMap<LinkId, Arc<LinkFigures>>>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the worker thread. What happens is told in `events`.
    pub fn start(config: EngineConfig, events: tokio::sync::mpsc::Sender<EngineEvent>) -> anyhow::Result<Self> {
        let EngineConfig { tap, ports } = config;
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = Arc::new(EventFd::from_value_and_flags(0, flags).context("cannot make an eventfd")?);
        let (inbox, instructions) = mpsc::channel();
        let figures = Arc::new(Figures::default());
        let worker = Worker::new(tap, ports, instructions, wake.clone(), events, figures.clone());
        let thread = std::thread::Builder::new()
            .name("tincan-worker".to_owned())
            .spawn(move || worker.run())
            .context("cannot start the worker thread")?;
        Ok(Self { inbox, wake, figures, links: Mutex::default(), thread: Some(thread) })
    }

    /// Hands a command to the worker; commands are carried out in order.
    pub fn command(&self, command: Command) {
        let figures = match &command {
            Command::AddLink { link, .. } => {
                let figures = Arc::new(LinkFigures::default());
                self.links().insert(*link, figures.clone());
                Some(figures)
            }
            Command::RemoveLink { link } => self.links().remove(link),
            Command::Inject { .. } if !self.figures.injection_waits() => return,
            Command::SetLocal(_)
            | Command::SetSwitchMode { .. }
            | Command::MapPeer { .. }
            | Command::UnmapPeer { .. }
            | Command::SetSendTag { .. }
            | Command::RenewSession { .. }
            | Command::SetPath { .. }
            | Command::SetLongestFrame { .. }
            | Command::SetForwarding { .. }
            | Command::Inject { .. } => None,
        };
        self.instruct(Instruction::Command { command, figures });
    }

    /// Totals of a link, `None` when there is no such link.
    #[must_use]
    pub fn traffic(&self, link: LinkId) -> Option<Traffic> {
        self.links().get(&link).map(|figures| figures.read())
    }

    /// Every link it knows.
    #[must_use]
    pub fn all_links(&self) -> Vec<LinkId> {
        self.links().keys().copied().collect()
    }

    /// How often each verdict was reached.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        Verdict::ALL.into_iter().map(|verdict| (verdict.name(), self.figures.read(verdict))).collect()
    }

    fn instruct(&self, instruction: Instruction) {
        // Both fail only when the worker has ended, which it told in an event.
        let _ = self.inbox.send(instruction);
        let _ = self.wake.write(1);
    }

    fn links(&self) -> std::sync::MutexGuard<'_, HashMap<LinkId, Arc<LinkFigures>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.instruct(Instruction::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the worker thread panicked");
        }
    }
}

/// Counters of every verdict; the worker writes, anyone reads.
#[derive(Debug, Default)]
pub(super) struct Figures {
    verdicts: [AtomicU64; Verdict::COUNT],
    /// Frames of the controller on their way to the worker.
    injections: AtomicU64,
}

impl Figures {
    pub(super) fn count(&self, verdict: Verdict, times: u64) {
        self.verdicts[verdict.index()].fetch_add(times, Ordering::Relaxed);
    }

    /// Takes a place for a frame of the controller; without one the frame is lost and counted.
    fn injection_waits(&self) -> bool {
        let room = self.injections.fetch_add(1, Ordering::Relaxed) < MAX_INJECTIONS;
        if !room {
            self.injections.fetch_sub(1, Ordering::Relaxed);
            self.count(Verdict::Undeliverable, 1);
        }
        room
    }

    /// The worker has taken one.
    pub(super) fn injection_taken(&self) {
        self.injections.fetch_sub(1, Ordering::Relaxed);
    }

    fn read(&self, verdict: Verdict) -> u64 {
        self.verdicts[verdict.index()].load(Ordering::Relaxed)
    }
}

/// Totals of one link; the worker writes, anyone reads.
#[derive(Debug, Default)]
pub(super) struct LinkFigures {
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    sent_frames: AtomicU64,
    received_frames: AtomicU64,
    dropped: AtomicU64,
}

impl LinkFigures {
    pub(super) fn add_sent(&self, frames: u64, bytes: u64) {
        self.sent_frames.fetch_add(frames, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_received_bytes(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_received_frame(&self) {
        self.received_frames.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_dropped(&self, count: u64) {
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }

    fn read(&self) -> Traffic {
        Traffic {
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            received_bytes: self.received_bytes.load(Ordering::Relaxed),
            sent_frames: self.sent_frames.load(Ordering::Relaxed),
            received_frames: self.received_frames.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}
