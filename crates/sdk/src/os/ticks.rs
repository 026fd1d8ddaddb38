//! The processor's own clock, for half the price of the system's.
//!
//! Where Linux keeps time by a counter that every core reads alike, a program can read that counter itself: a read costs 16 ns
//! here, `clock_gettime` 36. How counts become nanoseconds is [`crate::span::SystemClock`]'s.
#![expect(unsafe_code, reason = "reading the counter is an instruction")]

use std::sync::LazyLock;

/// Whether the kernel itself keeps time by the counter: then it is constant, never stops, and is the same on all cores.
pub(crate) fn can_be_relied_on() -> bool {
    static RELIABLE: LazyLock<bool> = LazyLock::new(|| {
        let name = if cfg!(target_arch = "x86_64") {
            "tsc"
        } else if cfg!(target_arch = "aarch64") {
            "arch_sys_counter"
        } else {
            return false;
        };
        let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        std::fs::read_to_string(path).is_ok_and(|source| source.trim_end() == name)
    });
    *RELIABLE
}

/// Counts since some beginning. Not ordered with the instructions around it: up to some tens of ns off. 0 where there is no such counter.
#[inline]
pub(crate) fn read() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction; who may not use it cannot read the system's clock either, which
    // does the same (`can_be_relied_on`).
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(target_arch = "aarch64")]
    {
        let counts: u64;
        // SAFETY: as above; it reads a register, and nothing else.
        unsafe { std::arch::asm!("mrs {}, cntvct_el0", out(reg) counts, options(nomem, nostack)) };
        counts
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    0
}
