//! Waiting for the signals that ask to end.
//!
//! The first process of a container gets no signal that it has not asked for: without this,
//! SIGTERM would be lost, and the container be killed after its grace period.

use std::ffi::c_int;

const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;
const SIG_BLOCK: c_int = 0;

/// `sigset_t` of Linux's C libraries: 1024 bits.
#[repr(C)]
struct SignalSet([u64; 16]);

unsafe extern "C" {
    fn pthread_sigmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn sigwait(set: *const SignalSet, signal: *mut c_int) -> c_int;
}

fn ends() -> SignalSet {
    let mut set = SignalSet([0; 16]);
    set.0[0] = 1 << (SIGINT - 1) | 1 << (SIGTERM - 1);
    set
}

/// Keeps the signals until [`wait`] takes them. Threads that start later keep them, too.
pub(crate) fn hold_back() {
    let set = ends();
    // SAFETY: the set is a valid sigset_t of this system, and no old one is asked for.
    unsafe { pthread_sigmask(SIG_BLOCK, &set, std::ptr::null_mut()) };
}

/// Sleeps until one comes; its name.
pub(crate) fn wait() -> &'static str {
    let set = ends();
    let mut signal = 0;
    loop {
        // SAFETY: both point to valid memory for the length of the call.
        let failed = unsafe { sigwait(&set, &mut signal) };
        match signal {
            SIGTERM if failed == 0 => return "SIGTERM",
            SIGINT if failed == 0 => return "SIGINT",
            _ => {}
        }
    }
}
