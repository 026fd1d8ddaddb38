//! Small system calls that std does not have, made safe.
#![expect(unsafe_code, reason = "std has no poll, and no limits of a process")]

use std::time::Duration;

/// Sleeps until `fd` is readable (or at its end), or for `most` (at most some 24 days); whether it is. A bad descriptor or a
/// signal ends it early.
pub(crate) fn wait_readable(fd: i32, most: Duration) -> bool {
    let mut wanted = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let millis = i32::try_from(most.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one valid pollfd, for the call's duration.
    unsafe { libc::poll(&mut wanted, 1, millis) == 1 }
}

/// Makes this process one that works for its parent: it ends with it, takes at most `bytes` of memory, leaves no core file,
/// and gives way to everybody else. What the kernel refuses of this is left.
pub(crate) fn become_helper(bytes: u64) {
    let limit = |most: u64| libc::rlimit {
        rlim_cur: most as libc::rlim_t,
        rlim_max: most as libc::rlim_t,
    };
    let (memory, core) = (limit(bytes), limit(0));
    // SAFETY: each takes numbers, or a structure that lives longer than the call and is only read.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::setrlimit(libc::RLIMIT_DATA, &memory);
        libc::setrlimit(libc::RLIMIT_CORE, &core);
        libc::setpriority(libc::PRIO_PROCESS, 0, 10);
    }
}
