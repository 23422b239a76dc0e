//! Waiting for a condition with a deadline: the one place where the bench polls.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks at a condition: far below every deadline, far above the cost of a look.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `condition` holds; `what` ends the sentence "waited ... for".
///
/// # Errors
/// When `deadline` passed first.
pub fn until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    until_some(deadline, what, || condition().then_some(()))
}

/// Waits until `look` gives a value.
///
/// # Errors
/// When `deadline` passed first.
pub fn until_some<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = look() {
            return Ok(value);
        }
        if start.elapsed() >= deadline {
            bail!("waited {:.1} s in vain for {what}", deadline.as_secs_f64());
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Makes a call anew while signals interrupt it: Linux restarts none on a socket with a deadline (signal(7)).
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Watches for the whole of `time` that `condition` keeps holding: for what must not happen.
///
/// # Errors
/// As soon as it does not hold.
pub fn throughout(time: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < time {
        if !condition() {
            bail!("after {:.1} s no longer: {what}", start.elapsed().as_secs_f64());
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}
