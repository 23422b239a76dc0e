//! Consent freshness (RFC 7675) and the round trip of a selected pair.
//!
//! The peer counts as silent when nothing of it came for [`SILENCE`] although it was asked, or when none of our checks
//! was answered for [`CONSENT`]. It counts as back with the next answered check. Checks never end while the pair lives:
//! a cable put back is noticed within one interval. (RFC 7675 would have them end with consent; no data is sent then,
//! which is what it protects the other end from.)
//!
//! Frames of the peer count as words of it. While they come, a link that its port allows it may live without answers for
//! longer than [`CONSENT`]: the kernel forwards for a daemon that is about to be started again.

use std::time::{Duration, Instant};

/// Mean pause between checks; each is 0.8 to 1.2 times this (RFC 7675 section 5.1).
const INTERVAL: Duration = Duration::from_millis(1500);
/// Silence after which the peer counts as gone.
const SILENCE: Duration = Duration::from_secs(5);
/// Age of the last answered check after which consent is lost (RFC 7675 section 5.1).
const CONSENT: Duration = Duration::from_secs(30);
/// Unanswered checks without which silence means nothing: after a stop of this process (SIGSTOP, sleep) the clock
/// alone says that nothing came.
const CHECKS: u32 = 2;

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send a check.
    Check,
    /// The peer went silent.
    Lost,
}

/// See the module's head.
#[derive(Debug)]
pub struct Consent {
    next_check: Instant,
    heard: Instant,
    answered: Instant,
    /// When frames of the peer were last seen.
    frames: Option<Instant>,
    /// Age of the last answered check up to which frames hold the link.
    hold: Duration,
    /// It is not lost before this: whoever goes on for another process asks before it judges.
    grace: Instant,
    unanswered: u32,
    alive: bool,
}

impl Consent {
    /// Begins with a pair that was just proven. Frames hold the link until the last answer is `hold` old.
    pub fn new(now: Instant, jitter: u8, hold: Duration) -> Self {
        let hold = hold.max(CONSENT);
        let next_check = now + interval(jitter);
        Self { next_check, heard: now, answered: now, frames: None, hold, grace: now, unanswered: 0, alive: true }
    }

    /// Goes on with a pair whose last answer is `silence` old; the first check is due at once.
    pub fn resumed(now: Instant, silence: Duration, alive: bool, hold: Duration) -> Self {
        let answered = now.checked_sub(silence).unwrap_or(now);
        Self { next_check: now, answered, alive, grace: now + SILENCE, ..Self::new(now, 0, hold) }
    }

    /// A request of the peer came along the pair.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.unanswered = 0;
    }

    /// Frames of the peer came along the pair.
    pub fn frames_seen(&mut self, now: Instant) {
        self.frames = Some(now);
    }

    /// The peer answered one of our checks; true when it was lost before.
    pub fn answered(&mut self, now: Instant) -> bool {
        self.heard(now);
        self.answered = now;
        !std::mem::replace(&mut self.alive, true)
    }

    /// What is due at `now`; `jitter` (0..=255) spreads the next check over the permitted range.
    pub fn poll(&mut self, now: Instant, jitter: u8) -> Option<Step> {
        if self.alive && self.lost_at().is_some_and(|at| at <= now) {
            self.alive = false;
            return Some(Step::Lost);
        }
        if self.next_check <= now {
            self.next_check = now + interval(jitter);
            self.unanswered += 1;
            return Some(Step::Check);
        }
        None
    }

    /// When `poll` has something to say next.
    pub fn deadline(&self) -> Instant {
        if !self.alive {
            return self.next_check;
        }
        self.lost_at().map_or(self.next_check, |at| at.min(self.next_check))
    }

    fn lost_at(&self) -> Option<Instant> {
        if self.unanswered < CHECKS {
            return None;
        }
        let consent = self.answered + CONSENT;
        let held = self.frames.map_or(consent, |frames| consent.max((frames + SILENCE).min(self.answered + self.hold)));
        let silent = self.frames.map_or(self.heard, |frames| frames.max(self.heard)) + SILENCE;
        Some(silent.min(held).max(self.grace))
    }
}

/// Round trip, smoothed 3:1 (three parts old, one part new).
///
/// Until a pair is selected the shortest sample counts: a check the peer kept until its own side was ready comes back
/// late without the way being long.
#[derive(Clone, Debug, Default)]
pub struct RoundTrip {
    value: Option<Duration>,
}

impl RoundTrip {
    pub fn value(&self) -> Option<Duration> {
        self.value
    }

    /// A sample while pairs are still being tried.
    pub fn shortest(&mut self, sample: Duration) {
        self.value = Some(self.value.map_or(sample, |value| value.min(sample)));
    }

    /// A sample of the selected pair; the new mean.
    pub fn smooth(&mut self, sample: Duration) -> Duration {
        let mean = self.value.map_or(sample, |value| (value * 3 + sample) / 4);
        self.value = Some(mean);
        mean
    }
}

fn interval(jitter: u8) -> Duration {
    INTERVAL * (800 + u32::from(jitter) * 400 / 255) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs to `until`, answering checks in the given windows; returns (time, step) without the checks.
    fn run(consent: &mut Consent, start: Instant, until: Duration, answers: impl Fn(Duration) -> bool) -> Vec<String> {
        let mut log = Vec::new();
        loop {
            let now = consent.deadline();
            if now - start > until {
                return log;
            }
            while let Some(step) = consent.poll(now, 128) {
                match step {
                    Step::Check if answers(now - start) => {
                        if consent.answered(now) {
                            log.push(format!("back {}", (now - start).as_secs()));
                        }
                    }
                    Step::Check => {}
                    Step::Lost => log.push(format!("lost {}", (now - start).as_secs())),
                }
            }
        }
    }

    #[test]
    fn a_silent_peer_is_lost_after_five_to_eight_seconds_and_back_within_two_of_its_return() {
        let start = Instant::now();
        let mut consent = Consent::new(start, 128, CONSENT);
        let log = run(&mut consent, start, Duration::from_secs(90), |at| {
            at < Duration::from_secs(10) || at > Duration::from_secs(70)
        });
        let times: Vec<u64> = log.iter().map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect();
        assert!(log[0].starts_with("lost") && (13..=18).contains(&times[0]), "{log:?}");
        assert!(log[1].starts_with("back") && (70..=72).contains(&times[1]), "{log:?}");
        assert_eq!(log.len(), 2);
    }

    #[test]
    fn requests_of_the_peer_do_not_replace_consent_for_more_than_thirty_seconds() {
        let start = Instant::now();
        let mut consent = Consent::new(start, 0, CONSENT);
        let mut now = start;
        let lost = loop {
            now += Duration::from_millis(100);
            if consent.poll(now, 0) == Some(Step::Lost) {
                break now - start;
            }
            // Two checks go out between two words of the peer.
            if (now - start).as_millis().is_multiple_of(4000) {
                consent.heard(now);
            }
            assert!(now - start < Duration::from_secs(60));
        };
        assert!((30..=35).contains(&lost.as_secs()), "{lost:?}");
    }

    /// Runs a plain link whose peer answers nothing while frames come until `frames_until`; when it was lost.
    fn lost_with_frames(hold: Duration, frames_until: Duration) -> Duration {
        let start = Instant::now();
        let mut consent = Consent::new(start, 128, hold);
        let mut now = start;
        loop {
            now += Duration::from_millis(100);
            // As often as the daemon looks.
            if (now - start).as_millis().is_multiple_of(2000) && now - start <= frames_until {
                consent.frames_seen(now);
            }
            if consent.poll(now, 128) == Some(Step::Lost) {
                return now - start;
            }
            assert!(now - start < Duration::from_secs(300), "it is never lost");
        }
    }

    #[test]
    fn frames_hold_a_link_without_answers_for_as_long_as_the_lease_and_no_longer() {
        let lease = Duration::from_secs(60);
        assert_eq!(lost_with_frames(lease, Duration::from_secs(200)).as_secs(), 60);
        assert_eq!(lost_with_frames(CONSENT, Duration::from_secs(200)).as_secs(), 30, "not held");
    }

    #[test]
    fn frames_that_end_hold_no_longer_than_any_other_word_of_the_peer() {
        let lease = Duration::from_secs(60);
        for (frames_until, lost) in [(0, 5), (10, 15), (20, 25), (40, 45), (58, 60)] {
            let took = lost_with_frames(lease, Duration::from_secs(frames_until));
            assert_eq!(took.as_secs(), lost, "frames for {frames_until} s");
        }
    }

    #[test]
    fn a_resumed_pair_is_checked_at_once_and_its_consent_has_the_age_it_has() {
        let start = Instant::now();
        for (age, lost) in [(0, 5), (27, 5), (50, 5)] {
            let mut consent = Consent::resumed(start, Duration::from_secs(age), true, Duration::from_secs(60));
            assert_eq!(consent.deadline(), start);
            let log = run(&mut consent, start, Duration::from_secs(60), |_| false);
            let at: u64 = log[0].strip_prefix("lost ").unwrap().parse().unwrap();
            assert_eq!(at, lost, "{age} s old: {log:?}");
        }
        let mut consent = Consent::resumed(start, Duration::from_secs(50), true, Duration::from_secs(60));
        assert_eq!(run(&mut consent, start, Duration::from_secs(60), |_| true), [""; 0]);
        let mut consent = Consent::resumed(start, Duration::ZERO, false, Duration::from_secs(60));
        assert_eq!(run(&mut consent, start, Duration::from_secs(60), |at| at.as_secs() > 9), ["back 10"]);
    }

    #[test]
    fn a_stopped_process_does_not_blame_the_peer() {
        let start = Instant::now();
        let mut consent = Consent::new(start, 128, CONSENT);
        let wake = start + Duration::from_secs(60);
        assert_eq!(consent.poll(wake, 128), Some(Step::Check));
        assert_eq!(consent.poll(wake, 128), None);
        assert!(!consent.answered(wake + Duration::from_millis(20)));
    }

    #[test]
    fn the_interval_varies_by_a_fifth_to_both_sides() {
        assert_eq!(interval(0), Duration::from_millis(1200));
        assert_eq!(interval(255), Duration::from_millis(1800));
    }

    #[test]
    fn the_round_trip_is_the_shortest_until_selection_and_smoothed_after() {
        let mut rtt = RoundTrip::default();
        rtt.shortest(Duration::from_millis(900));
        rtt.shortest(Duration::from_millis(20));
        assert_eq!(rtt.smooth(Duration::from_millis(60)), Duration::from_millis(30));
    }
}
