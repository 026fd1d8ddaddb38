//! Small system calls that std does not have, made safe.
#![expect(
    unsafe_code,
    reason = "std has no poll, no limits of a process, no fork, and no namespaces"
)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
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

/// Lets this process open as many files as it may.
pub(crate) fn raise_descriptor_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both take a structure that lives longer than the call; the first fills it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// Moves the calling thread, and no other, into a network namespace, given as `/proc/PID/ns/net` opened.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN in the namespace's user namespace and in our own.
pub(crate) fn enter_net_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes a descriptor that lives longer than the call, and a number.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a process that holds the descriptors `held`, and nothing else of ours, until what is returned is closed; then it ends,
/// and closes them, however long that takes. It is nobody's child, and hears no terminal.
///
/// Cost: a fork, some ms.
pub(crate) fn child_that_holds(mut held: Vec<i32>) -> io::Result<OwnedFd> {
    let mut ends = [-1; 2];
    // SAFETY: two numbers are written to an array of two.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pipe2 gave two new descriptors that nobody else owns.
    let (told, tell) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    held.push(told.as_raw_fd());
    held.sort_unstable();
    // SAFETY: after fork in a process with threads, only async-signal-safe functions may be called until the child ends:
    // `hold` and what it calls make system calls and touch no lock and no allocator.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: as said: system calls alone. _exit runs no destructor, so no descriptor is closed twice.
        0 => unsafe {
            libc::setsid();
            if libc::fork() == 0 {
                hold(&held, told.as_raw_fd());
            }
            libc::_exit(0)
        },
        child => {
            let mut status = 0;
            // SAFETY: waits for our own child, which ends at once; the status is written to a number.
            while unsafe { libc::waitpid(child, &mut status, 0) } == -1
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
            Ok(tell)
        }
    }
}

/// Closes all but `held`, which is sorted, and waits for the end of `told`, one of them.
///
/// # Safety
/// To be called in a child that does nothing afterwards but `_exit`: it closes descriptors that others own.
unsafe fn hold(held: &[i32], told: i32) {
    let mut next = 0;
    for fd in held.iter().copied().chain([i32::MAX]) {
        if fd > next {
            // SAFETY: takes numbers. Not all are open: the kernel (5.9 and newer) skips those.
            unsafe { libc::syscall(libc::SYS_close_range, next, fd - 1, 0) };
        }
        next = fd.saturating_add(1);
    }
    let mut byte = 0u8;
    // SAFETY: one byte is written to one byte.
    while unsafe { libc::read(told, (&raw mut byte).cast(), 1) } == -1
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}
