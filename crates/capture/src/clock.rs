//! The one place that reads clocks.
#![expect(unsafe_code, reason = "std does not read CLOCK_BOOTTIME")]

use warptrace_model::{BootNanos, ClockAnchor, UnixNanos};

/// Now, on CLOCK_BOOTTIME. Cost: 25 ns, no system call.
pub fn boot_now() -> BootNanos {
    BootNanos(read(libc::CLOCK_BOOTTIME))
}

/// Both clocks at one moment: the closest of five pairs, since the thread may be interrupted between the two reads.
pub fn anchor() -> ClockAnchor {
    let pair = || {
        let before = read(libc::CLOCK_BOOTTIME);
        let unix = read(libc::CLOCK_REALTIME);
        let after = read(libc::CLOCK_BOOTTIME);
        (
            after - before,
            ClockAnchor {
                boot: BootNanos(before + (after - before) / 2),
                unix: UnixNanos(unix),
            },
        )
    };
    let mut best = pair();
    for _ in 0..4 {
        let next = pair();
        if next.0 < best.0 {
            best = next;
        }
    }
    best.1
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec for the call's duration; both clocks exist on every Linux since 2.6.39, so the
    // call cannot fail.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_turns_now_into_now() {
        let anchor = anchor();
        let unix = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_nanos() as u64;
        let ours = anchor.unix(boot_now()).0;
        assert!(ours.abs_diff(unix) < 1_000_000_000, "{ours} against {unix}");
    }
}
