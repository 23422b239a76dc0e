//! Capturing what passes an interface into memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::netns::Namespace;
use crate::packet::{Direction, PacketSocket};

/// How often the capturing thread looks whether it shall end.
const LOOK: Duration = Duration::from_millis(20);

/// One captured frame.
#[derive(Clone, Debug)]
pub struct Captured {
    /// When the bench read it.
    pub at: Instant,
    /// Which way it went.
    pub direction: Direction,
    /// The whole frame.
    pub bytes: Vec<u8>,
}

/// A running capture; ends on drop.
#[derive(Debug)]
pub struct Capture {
    frames: Arc<Mutex<Vec<Captured>>>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Begins capturing on `interface` of `namespace`; `keep` says of each frame whether it is wanted.
    pub fn start(
        namespace: &Namespace,
        interface: &str,
        keep: impl Fn(Direction, &[u8]) -> bool + Send + 'static,
    ) -> Result<Self> {
        let mut socket = PacketSocket::open(namespace, interface)?;
        let frames = Arc::new(Mutex::new(Vec::new()));
        let ending = Arc::new(AtomicBool::new(false));
        let (store, end) = (Arc::clone(&frames), Arc::clone(&ending));
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                match socket.receive(LOOK) {
                    Ok(Some((direction, bytes))) if keep(direction, bytes) => {
                        lock(&store).push(Captured { at: Instant::now(), direction, bytes: bytes.to_vec() });
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
        Ok(Self { frames, ending, thread: Some(thread) })
    }

    /// What was captured so far.
    pub fn frames(&self) -> Vec<Captured> {
        lock(&self.frames).clone()
    }

    /// How many captured frames hold `needle` anywhere.
    pub fn count_holding(&self, needle: &[u8]) -> usize {
        lock(&self.frames).iter().filter(|frame| holds(&frame.bytes, needle)).count()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("a capture ended in a panic");
        }
    }
}

/// Whether `needle` occurs in `bytes`.
pub fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

fn lock(frames: &Mutex<Vec<Captured>>) -> MutexGuard<'_, Vec<Captured>> {
    frames.lock().unwrap_or_else(PoisonError::into_inner)
}
