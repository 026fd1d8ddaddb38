//! Reading the clock, and waiting up to a point of it.
//!
//! One clock: CLOCK_BOOTTIME, in ns. It is the same in all processes, which a deadline in shared memory needs.
#![expect(
    unsafe_code,
    reason = "clock_gettime, sched_yield and futex have no safe binding in std"
)]

use std::sync::atomic::AtomicU32;

/// How a thread spends the time until its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// Reads the clock in a loop: the CPU is busy. CUDA's default with few contexts.
    Spin,
    /// The same, and gives way to other threads between two looks.
    Yield,
    /// Sleeps in a futex, as blocking drivers do.
    Block,
}

/// Nanoseconds of CLOCK_BOOTTIME. About 25 ns (vDSO).
#[must_use]
pub fn boot_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid place for the result; CLOCK_BOOTTIME exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Returns once `boot_ns() >= deadline_ns`. Never early; late by what the scheduler takes, and when blocking by the timer slack
/// (50 µs by default).
pub fn wait_until(deadline_ns: u64, mode: SyncMode) {
    loop {
        let now = boot_ns();
        if now >= deadline_ns {
            return;
        }
        match mode {
            SyncMode::Spin => std::hint::spin_loop(),
            // SAFETY: no arguments, no memory.
            SyncMode::Yield => unsafe {
                libc::sched_yield();
            },
            SyncMode::Block => futex_sleep(deadline_ns - now),
        }
    }
}

/// Spends `cost_ns` of the caller's time on the CPU: what a real driver does in its own code and in `ioctl`.
pub fn spend(cost_ns: u64) {
    if cost_ns > 0 {
        wait_until(boot_ns() + cost_ns, SyncMode::Spin);
    }
}

fn futex_sleep(nanos: u64) {
    // Nobody wakes it: only the timeout, or a signal, ends the sleep.
    static NEVER_WOKEN: AtomicU32 = AtomicU32::new(0);
    let timeout = libc::timespec {
        tv_sec: (nanos / 1_000_000_000) as libc::time_t,
        tv_nsec: (nanos % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: the futex word and the timeout outlive the call; FUTEX_WAIT takes a relative timeout.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            NEVER_WOKEN.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            0,
            &raw const timeout,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_mode_returns_before_the_deadline() {
        for mode in [SyncMode::Spin, SyncMode::Yield, SyncMode::Block] {
            let deadline = boot_ns() + 2_000_000;
            wait_until(deadline, mode);
            assert!(boot_ns() >= deadline, "{mode:?}");
        }
    }

    #[test]
    fn spinning_uses_the_cpu_and_blocking_does_not() {
        let cpu = |mode| {
            let before = thread_cpu_ns();
            wait_until(boot_ns() + 40_000_000, mode);
            thread_cpu_ns() - before
        };
        // Spinning may be preempted for most of the 40 ms on a loaded machine, so compare, don't expect an amount.
        assert!(cpu(SyncMode::Spin) > 4 * cpu(SyncMode::Block));
    }

    fn thread_cpu_ns() -> u64 {
        let mut now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `now` is a valid place for the result.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) };
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }
}
