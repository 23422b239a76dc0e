//! The `BoringSSL` calls that the `boring` crate lacks: roles, DTLS timers, and the clock they run on.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use boring::error::ErrorStack;
use boring::ssl::{SslContextBuilder, SslRef};
use foreign_types::ForeignTypeRef;

use crate::link::Role;

/// Makes the session a DTLS server (controlling) or client (controlled); before any handshake step.
pub(super) fn set_role(ssl: &mut SslRef, role: Role) {
    let ssl = ssl.as_ptr();
    match role {
        // SAFETY: `ssl` comes from a live `&mut SslRef`, so it is valid and nobody else uses it during the call.
        Role::Controlling => unsafe { boring_sys::SSL_set_accept_state(ssl) },
        // SAFETY: as above.
        Role::Controlled => unsafe { boring_sys::SSL_set_connect_state(ssl) },
    }
}

/// Sets how long the first flight waits for an answer; every repetition waits twice as long.
pub(super) fn set_initial_timeout(ssl: &mut SslRef, timeout: Duration) {
    let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    // SAFETY: `ssl` comes from a live `&mut SslRef`; the call only stores a number in it.
    unsafe { boring_sys::DTLSv1_set_initial_timeout_duration(ssl.as_ptr(), milliseconds) }
}

/// Time left until [`handle_timeout`] has to be called; `None` while no flight waits.
pub(super) fn timeout(ssl: &SslRef) -> Option<Duration> {
    let mut left = boring_sys::timeval { tv_sec: 0, tv_usec: 0 };
    // SAFETY: `ssl` comes from a live `&SslRef` and is only read; `left` outlives the call, which writes no more than it.
    let set = unsafe { boring_sys::DTLSv1_get_timeout(ssl.as_ptr(), &raw mut left) };
    if set != 1 {
        return None;
    }
    let seconds = Duration::from_secs(u64::try_from(left.tv_sec).unwrap_or(0));
    Some(seconds + Duration::from_micros(u64::try_from(left.tv_usec).unwrap_or(0)))
}

/// Sends the last flight again if its time is over; an error means it was sent too often.
pub(super) fn handle_timeout(ssl: &mut SslRef) -> Result<(), ErrorStack> {
    // SAFETY: `ssl` comes from a live `&mut SslRef`, so it is valid and nobody else uses it during the call.
    let outcome = unsafe { boring_sys::DTLSv1_handle_timeout(ssl.as_ptr()) };
    if outcome < 0 { Err(ErrorStack::get()) } else { Ok(()) }
}

/// Runs the DTLS timers on the monotonic clock: `BoringSSL`'s own choice is the wall clock, which jumps.
pub(super) fn use_monotonic_clock(context: &mut SslContextBuilder) {
    // SAFETY: the context is valid as long as its builder; `tell_time` has the declared type and lives for ever.
    unsafe { boring_sys::SSL_CTX_set_current_time_cb(context.as_ptr(), Some(tell_time)) }
}

/// Time since the process first asked.
pub(super) fn now() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    #[cfg(test)]
    if let Some(now) = VIRTUAL_NOW.get() {
        return now;
    }
    START.elapsed()
}

#[cfg(test)]
thread_local! {
    /// Replaces the clock of this thread's sessions in tests.
    pub(super) static VIRTUAL_NOW: std::cell::Cell<Option<Duration>> = const { std::cell::Cell::new(None) };
}

unsafe extern "C" fn tell_time(_: *const boring_sys::SSL, out: *mut boring_sys::timeval) {
    let now = now();
    let time = boring_sys::timeval {
        tv_sec: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        tv_usec: i64::from(now.subsec_micros()),
    };
    // SAFETY: BoringSSL passes a pointer to a timeval of its own, valid for this call.
    unsafe { out.write(time) }
}
