//! How many frames a second the controller is bothered with: a token bucket.

use std::time::{Duration, Instant};

/// Frames at once.
const BURST: u32 = 50;
/// Time that earns one frame: 100 a second.
const EARN: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Limiter {
    tokens: u32,
    earned_until: Instant,
}

impl Limiter {
    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: BURST, earned_until: now }
    }

    /// Whether one more may pass now.
    pub(super) fn allow(&mut self, now: Instant) -> bool {
        while self.tokens < BURST && self.earned_until + EARN <= now {
            self.tokens += 1;
            self.earned_until += EARN;
        }
        if self.tokens == BURST {
            self.earned_until = now;
        }
        let allowed = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(limiter: &mut Limiter, now: Instant, tries: usize) -> usize {
        (0..tries).filter(|_| limiter.allow(now)).count()
    }

    #[test]
    fn a_burst_passes_then_a_hundred_a_second() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        assert_eq!(allowed(&mut limiter, start, 1000), 50);
        let passed: usize = (1..=1000).map(|ms| allowed(&mut limiter, start + Duration::from_millis(ms), 10)).sum();
        assert_eq!(passed, 100);
    }

    #[test]
    fn a_long_silence_earns_one_burst_and_no_more() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        assert_eq!(allowed(&mut limiter, start, 1000), 50);
        assert_eq!(allowed(&mut limiter, start + Duration::from_secs(3600), 1000), 50);
    }
}
