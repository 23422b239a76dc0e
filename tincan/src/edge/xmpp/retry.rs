//! How long to wait before the next login. Pure: randomness comes in.

use std::time::Duration;

use super::Failure;

/// The first wait is half of this to all of it.
const FIRST: Duration = Duration::from_secs(2);
/// The longest wait of the first tries: a server that was away for a minute has us back within half a minute.
const SOON: Duration = Duration::from_secs(16);
/// Tries at that pace: about five minutes.
const SOON_TRIES: u32 = 24;
/// The longest wait after those.
const LATE: Duration = Duration::from_secs(60);
/// A session that lasted this long makes earlier failures forgotten.
const STABLE: Duration = Duration::from_secs(60);
/// The wait after a refusal: whoever mends it needs minutes, and servers lock accounts that are tried often.
const REFUSED: Duration = Duration::from_secs(300);
/// The wait after the first conflict; it doubles with each further one, so two nodes with one uid hardly disturb.
const CONFLICT: Duration = Duration::from_secs(60);
const MOST_CONFLICT_DOUBLINGS: u32 = 4;
/// Longer than the longest wait after a conflict, or two rivals would never count beyond one.
const CONFLICTS_FORGOTTEN: Duration = Duration::from_secs(2400);

/// Counts failures and says how long to wait.
#[derive(Debug, Default)]
pub(super) struct Retry {
    failures: u32,
    conflicts: u32,
}

impl Retry {
    /// A session lasted `time`.
    pub(super) fn lasted(&mut self, time: Duration) {
        if time >= STABLE {
            self.failures = 0;
        }
        if time >= CONFLICTS_FORGOTTEN {
            self.conflicts = 0;
        }
    }

    /// The wait after a failure; `random` spreads those that failed together.
    pub(super) fn wait(&mut self, failure: &Failure, random: u32) -> Duration {
        let share = f64::from(random) / f64::from(u32::MAX);
        match failure {
            Failure::Lost(_) => {
                let longest = if self.failures < SOON_TRIES { SOON } else { LATE };
                let wait = FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(longest);
                self.failures = self.failures.saturating_add(1);
                wait.mul_f64(0.5 + 0.5 * share)
            }
            Failure::Conflict(_) => {
                let wait = CONFLICT * 2_u32.pow(self.conflicts);
                self.conflicts = (self.conflicts + 1).min(MOST_CONFLICT_DOUBLINGS);
                wait.mul_f64(1.0 + 0.5 * share)
            }
            Failure::Refused(_) => REFUSED.mul_f64(1.0 + 0.1 * share),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> Failure {
        Failure::Lost("gone".to_owned())
    }

    #[test]
    fn waits_grow_from_a_second_to_a_minute() {
        let mut retry = Retry::default();
        let shortest: Vec<u64> = (0..30).map(|_| retry.wait(&lost(), 0).as_secs()).collect();
        assert_eq!(shortest[..6], [1, 2, 4, 8, 8, 8]);
        assert_eq!(shortest[23..26], [8, 30, 30]);
        assert_eq!(retry.wait(&lost(), u32::MAX).as_secs(), 60);
    }

    #[test]
    fn only_a_stable_session_forgets_failures() {
        let mut retry = Retry::default();
        for _ in 0..5 {
            retry.wait(&lost(), 0);
        }
        retry.lasted(Duration::from_secs(5));
        assert_eq!(retry.wait(&lost(), 0).as_secs(), 8);
        retry.lasted(STABLE);
        assert_eq!(retry.wait(&lost(), 0).as_secs(), 1);
    }

    #[test]
    fn conflicts_wait_a_minute_and_double_although_each_session_lasted() {
        let mut retry = Retry::default();
        let conflict = Failure::Conflict("replaced".to_owned());
        let mut waits = Vec::new();
        for _ in 0..6 {
            waits.push(retry.wait(&conflict, 0).as_secs());
            // The rival's wait, at most.
            retry.lasted(Duration::from_secs(1440));
        }
        assert_eq!(waits, [60, 120, 240, 480, 960, 960]);
        assert!(retry.wait(&conflict, u32::MAX) <= Duration::from_secs(1440));
        retry.lasted(CONFLICTS_FORGOTTEN);
        assert_eq!(retry.wait(&conflict, 0).as_secs(), 60);
    }

    #[test]
    fn a_refusal_waits_five_minutes_at_least() {
        let mut retry = Retry::default();
        let refused = Failure::Refused("no".to_owned());
        for random in [0, 7, u32::MAX] {
            assert!(retry.wait(&refused, random) >= Duration::from_secs(300));
        }
    }
}
