//! How many frames a second someone is bothered with: a token bucket.

use std::time::{Duration, Instant};

/// How a bucket fills.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// Most frames at once.
    pub(super) burst: u32,
    /// Time that earns one frame.
    pub(super) earn: Duration,
}

#[derive(Debug)]
pub(super) struct Limiter {
    rate: Rate,
    tokens: u32,
    earned_until: Instant,
}

impl Limiter {
    pub(super) fn new(now: Instant, rate: Rate) -> Self {
        Self { rate, tokens: rate.burst, earned_until: now }
    }

    /// Whether one more may pass now.
    pub(super) fn allow(&mut self, now: Instant) -> bool {
        let Rate { burst, earn } = self.rate;
        while self.tokens < burst && self.earned_until + earn <= now {
            self.tokens += 1;
            self.earned_until += earn;
        }
        if self.tokens == burst {
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

    const RATE: Rate = Rate { burst: 50, earn: Duration::from_millis(10) };

    fn allowed(limiter: &mut Limiter, now: Instant, tries: usize) -> usize {
        (0..tries).filter(|_| limiter.allow(now)).count()
    }

    #[test]
    fn a_burst_passes_then_a_hundred_a_second() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start, RATE);
        assert_eq!(allowed(&mut limiter, start, 1000), 50);
        let passed: usize = (1..=1000).map(|ms| allowed(&mut limiter, start + Duration::from_millis(ms), 10)).sum();
        assert_eq!(passed, 100);
    }

    #[test]
    fn a_long_silence_earns_one_burst_and_no_more() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start, RATE);
        assert_eq!(allowed(&mut limiter, start, 1000), 50);
        assert_eq!(allowed(&mut limiter, start + Duration::from_secs(3600), 1000), 50);
    }
}
