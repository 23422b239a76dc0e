//! Whether this host's clock can be right: certificates of servers are refused by a wrong one.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::doctor::kernel_clock;
use crate::doctor::report::Check;
use crate::dtls;

const NAME: &str = "clock";

const SET_IT: &str = "set the clock, and run an NTP client (systemd-timesyncd, chrony)";

/// A file's time may come from another host's clock.
const TOLERANCE: Duration = Duration::from_secs(3600);
/// A difference to the server's clock that is more than its whole seconds and the way there.
const SMALL_DIFFERENCE: Duration = Duration::from_secs(10);
/// One that makes fresh certificates and one-time secrets invalid.
const LARGE_DIFFERENCE: Duration = Duration::from_secs(3600);

/// What is known about the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    now: SystemTime,
    /// When this program was put in place.
    program: Option<SystemTime>,
    /// The latest beginning of an own certificate.
    certificate: Option<SystemTime>,
    /// The XMPP server's clock less ours, milliseconds.
    server_difference_ms: Option<i64>,
    /// The kernel's word; `None` where it does not give it.
    synchronised: Option<bool>,
}

/// The check `clock`.
pub fn check(state_dir: &Path, server_difference_ms: Option<i64>) -> Check {
    judge(Known {
        now: SystemTime::now(),
        program: fs::metadata("/proc/self/exe").and_then(|file| file.modified()).ok(),
        certificate: dtls::latest_beginning(state_dir),
        server_difference_ms,
        synchronised: kernel_clock::is_synchronised().ok(),
    })
}

fn judge(known: Known) -> Check {
    let Known { now, program, certificate, server_difference_ms, synchronised } = known;
    for (what, time) in [("this program was put here", program), ("this node's certificate begins", certificate)] {
        if let Some(behind) = time.and_then(|time| time.duration_since(now).ok()).filter(|behind| *behind > TOLERANCE) {
            return Check::problem(NAME, format!("the clock is {} before {what}", span(behind)), SET_IT);
        }
    }
    if let Some(difference) = server_difference_ms {
        let size = Duration::from_millis(difference.unsigned_abs());
        let relation = if difference > 0 { "behind" } else { "ahead of" };
        let found = format!("the clock is {} {relation} the XMPP server's", span(size));
        if size > LARGE_DIFFERENCE {
            return Check::problem(NAME, found, SET_IT);
        }
        if size > SMALL_DIFFERENCE {
            return Check::warning(NAME, found, SET_IT);
        }
        return Check::ok(NAME, format!("within {} s of the XMPP server's", SMALL_DIFFERENCE.as_secs()));
    }
    match synchronised {
        Some(true) => Check::ok(NAME, "the kernel's clock is synchronised"),
        Some(false) => {
            let found = "plausible, but nothing keeps it right (the kernel says: not synchronised)";
            Check::warning(NAME, found, "run an NTP client (systemd-timesyncd, chrony)")
        }
        None => Check::warning(NAME, "plausible; the kernel does not say whether it is synchronised", ""),
    }
}

/// A time span in its two largest units.
fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::State;

    const DAY: Duration = Duration::from_secs(86_400);

    fn known() -> Known {
        let now = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        Known { now, program: Some(now - DAY), certificate: None, server_difference_ms: None, synchronised: Some(true) }
    }

    #[test]
    fn a_clock_before_what_exists_already_is_a_problem() {
        assert_eq!(judge(known()).state, State::Ok);
        let late = Some(known().now + 3 * DAY);
        for wrong in [Known { program: late, ..known() }, Known { certificate: late, ..known() }] {
            let check = judge(wrong);
            assert_eq!(check.state, State::Problem);
            assert!(check.found.contains("3 d 0 h before"), "{}", check.found);
        }
        assert_eq!(judge(Known { program: Some(known().now + TOLERANCE), ..known() }).state, State::Ok);
    }

    #[test]
    fn the_servers_clock_counts_more_than_the_kernels_word() {
        for (difference, state, words) in [
            (900, State::Ok, "within 10 s"),
            (-9_999, State::Ok, "within 10 s"),
            (11_000, State::Warning, "11 s behind"),
            (-61_000, State::Warning, "1 min 1 s ahead of"),
            (7_260_000, State::Problem, "2 h 1 min behind"),
            (i64::MIN, State::Problem, "ahead of"),
        ] {
            let check = judge(Known { server_difference_ms: Some(difference), synchronised: Some(false), ..known() });
            assert_eq!(check.state, state, "{check:?}");
            assert!(check.found.contains(words), "{check:?}");
        }
    }

    #[test]
    fn without_a_server_the_kernel_is_asked() {
        for (synchronised, state) in [(Some(true), State::Ok), (Some(false), State::Warning), (None, State::Warning)] {
            assert_eq!(judge(Known { synchronised, ..known() }).state, state);
        }
    }
}
