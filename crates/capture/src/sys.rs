//! Small system calls that std does not have, made safe.
#![expect(unsafe_code, reason = "std has no poll")]

use std::time::Duration;

/// Sleeps until `fd` is readable, or for `most` (at most some 24 days). A bad descriptor or a signal ends it early.
pub(crate) fn wait_readable(fd: i32, most: Duration) {
    let mut wanted = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let millis = i32::try_from(most.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one valid pollfd, for the call's duration.
    unsafe { libc::poll(&mut wanted, 1, millis) };
}
