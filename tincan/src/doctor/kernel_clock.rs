//! What the kernel says about its own clock.

use std::io;
use std::mem::MaybeUninit;

/// Whether something keeps the system's clock in step with the world's (`STA_UNSYNC`, adjtimex(2)).
pub fn is_synchronised() -> io::Result<bool> {
    let mut state = MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: the pointer is to a whole `timex`; its zeroed `modes` make this a read, which writes the other members.
    if unsafe { libc::adjtimex(state.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the struct is integers only, zeroed before the call.
    let state = unsafe { state.assume_init() };
    Ok(state.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_may_ask() {
        assert!(is_synchronised().is_ok());
    }
}
