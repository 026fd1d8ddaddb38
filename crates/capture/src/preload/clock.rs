//! From ticks of the CPU's counter to CLOCK_BOOTTIME, following it as NTP slews it.
//!
//! Both are read together at each poll; between two such anchors time is a straight line, so that converted times never go backwards, and
//! what touched in ticks touches in ns. With the boot clock itself in the rings there is nothing to convert.
#![expect(unsafe_code, reason = "reads the CPU's counter")]

use std::collections::VecDeque;
use std::time::Duration;

use warptrace_model::BootNanos;
use warptrace_record::Record;
use warptrace_record::ring::control::{Clock, SHIFT};

use crate::clock::boot_now;

/// Anchors kept, one a poll: the oldest are forgotten. What is younger than the newest anchor when it is converted may come out some ns
/// differently the next time; so records are read first, and then the clocks.
const ANCHORS: usize = 16384;

/// Long enough that the error of reading both clocks is a few millionths.
const CALIBRATION: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Anchor {
    ticks: u64,
    boot: u64,
}

/// The clock of the rings.
#[derive(Debug)]
pub(super) struct TickClock {
    clock: Clock,
    /// At least two of them where the clock is the counter; strictly increasing in ticks.
    anchors: VecDeque<Anchor>,
}

impl TickClock {
    /// Takes `clock`, or the counter where the kernel keeps time by it. Cost: 10 ms with the counter.
    pub(super) fn start(clock: Option<Clock>) -> TickClock {
        let clock = clock.unwrap_or_else(|| {
            if counter_is_good() {
                Clock::Counter
            } else {
                Clock::BootNanos
            }
        });
        let first = read();
        let mut anchors = VecDeque::from([first]);
        if clock == Clock::Counter {
            std::thread::sleep(CALIBRATION);
            anchors.push_back(read());
        }
        TickClock { clock, anchors }
    }

    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    /// Ns of a duration = ticks × this >> [`SHIFT`].
    pub(super) fn scale(&self) -> u64 {
        match (self.clock, self.anchors.front(), self.anchors.back()) {
            (Clock::Counter, Some(a), Some(b)) if b.ticks > a.ticks => {
                let mult = (u128::from(b.boot - a.boot) << SHIFT) / u128::from(b.ticks - a.ticks);
                mult as u64
            }
            _ => 1 << SHIFT,
        }
    }

    /// Reads both clocks. What was in a ring before this is converted between two readings.
    pub(super) fn anchor(&mut self) {
        if self.clock == Clock::BootNanos {
            return;
        }
        self.add(read());
    }

    fn add(&mut self, now: Anchor) {
        let grows = |last: &Anchor| now.ticks > last.ticks && now.boot > last.boot;
        if self.anchors.back().is_some_and(grows) {
            self.anchors.push_back(now);
            if self.anchors.len() > ANCHORS {
                self.anchors.pop_front();
            }
        }
    }

    /// The moment of a tick. Before the first anchor and after the last, the nearest line goes on.
    pub(super) fn convert(&self, ticks: u64) -> BootNanos {
        if self.clock == Clock::BootNanos || self.anchors.len() < 2 {
            return BootNanos(ticks);
        }
        let after = self.anchors.partition_point(|a| a.ticks <= ticks);
        let right = after.clamp(1, self.anchors.len() - 1);
        let (a, b) = (self.anchors[right - 1], self.anchors[right]);
        let span = i128::from(b.ticks) - i128::from(a.ticks);
        let past = i128::from(ticks) - i128::from(a.ticks);
        let boot = i128::from(a.boot) + past * (i128::from(b.boot) - i128::from(a.boot)) / span;
        BootNanos(boot.clamp(0, i128::from(u64::MAX)) as u64)
    }

    /// Converts begin and length of each record, and makes what a stretch says of itself fit its length.
    pub(super) fn convert_records(&self, records: &mut [Record]) {
        for record in records {
            let start = self.convert(record.ts);
            let end = self.convert(record.ts.saturating_add(record.dur));
            (record.ts, record.dur) = (start.0, end.since(start));
            if record.kind == warptrace_record::Kind::Stretch as u8 {
                // Three clocks, read one after the other: what exceeds the whole is the time between the readings.
                record.arg1 = record.arg1.min(record.dur);
                record.arg0 = record.arg0.min(record.dur - record.arg1);
            }
        }
    }
}

/// Both clocks at one moment: the closest of three readings, since the thread may be interrupted between the two.
fn read() -> Anchor {
    let one = || {
        let before = ticks();
        let boot = boot_now().0;
        let after = ticks();
        let middle = before + after.saturating_sub(before) / 2;
        (
            after.saturating_sub(before),
            Anchor {
                ticks: middle,
                boot,
            },
        )
    };
    let mut best = one();
    for _ in 0..2 {
        let next = one();
        if next.0 < best.0 {
            best = next;
        }
    }
    best.1
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> u64 {
    // SAFETY: reads a counter that every x86-64 CPU has.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(target_arch = "aarch64")]
fn ticks() -> u64 {
    let ticks;
    // SAFETY: reads a counter that the kernel lets user programs read.
    unsafe { core::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nostack, nomem)) };
    ticks
}

/// The kernel itself keeps time by a counter that runs at one rate, in every sleep state, the same on all CPUs.
fn counter_is_good() -> bool {
    if cfg!(target_arch = "aarch64") {
        return true;
    }
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    judge_counter(
        &file("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        &file("/proc/cpuinfo"),
    )
}

fn judge_counter(clocksource: &str, cpuinfo: &str) -> bool {
    let flags = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|f| f == flag);
    // A kernel that has found the counters of its CPUs to disagree takes another clock source.
    matches!(
        clocksource.trim(),
        "tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page"
    ) && has("constant_tsc")
        && has("nonstop_tsc")
        && has("rdtscp")
}

#[cfg(test)]
mod tests {
    use super::*;
    use warptrace_record::Kind;

    fn clock(anchors: &[(u64, u64)]) -> TickClock {
        let mut clock = TickClock {
            clock: Clock::Counter,
            anchors: VecDeque::from([Anchor {
                ticks: anchors[0].0,
                boot: anchors[0].1,
            }]),
        };
        for &(ticks, boot) in &anchors[1..] {
            clock.add(Anchor { ticks, boot });
        }
        clock
    }

    #[test]
    fn time_is_a_line_between_anchors_and_goes_on_beyond_them() {
        let c = clock(&[(1_000, 0), (31_000, 10_000_000), (61_000, 30_000_000)]);
        for (ticks, boot) in [
            (1_000, 0),
            (16_000, 5_000_000),
            (31_000, 10_000_000),
            (46_000, 20_000_000),
            (76_000, 40_000_000),
        ] {
            assert_eq!(c.convert(ticks), BootNanos(boot));
        }
        assert_eq!(c.convert(0), BootNanos(0), "never before boot");
    }

    #[test]
    fn anchors_that_go_backwards_are_not_taken() {
        let mut c = clock(&[(0, 0), (30_000, 10_000_000)]);
        for (ticks, boot) in [
            (30_000, 10_000_300),
            (20_000, 40_000_000),
            (90_000, 9_000_000),
        ] {
            c.add(Anchor { ticks, boot });
        }
        assert_eq!(c.anchors.len(), 2);
    }

    #[test]
    fn stretches_that_touched_still_touch_and_never_exceed_their_length() {
        let c = clock(&[(0, 0), (30_000, 10_000_001), (60_000, 19_999_999)]);
        let mut records: Vec<Record> = (0..60)
            .map(|i| {
                let mut r = Record::new(Kind::Stretch, i * 997, 997, 1, 1);
                (r.arg0, r.arg1) = (400_000, 100_000 * (i % 7));
                r
            })
            .collect();
        c.convert_records(&mut records);
        for pair in records.windows(2) {
            assert_eq!(pair[0].ts + pair[0].dur, pair[1].ts);
        }
        assert!(records.iter().all(|r| r.arg0 + r.arg1 <= r.dur));
    }

    #[test]
    fn the_counter_of_this_machine_follows_the_boot_clock() {
        let mut c = TickClock::start(Some(Clock::Counter));
        let mult = c.scale();
        let begin = ticks();
        let before = boot_now().0;
        while boot_now().0 < before + 20_000_000 {}
        let spent = ((u128::from(ticks() - begin) * u128::from(mult)) >> SHIFT) as u64;
        assert!(spent.abs_diff(20_000_000) < 5_000_000, "{spent}");
        c.anchor();
        let (low, at, high) = (boot_now().0, c.convert(ticks()).0, boot_now().0);
        assert!(
            at + 100_000 > low && at < high + 100_000,
            "{low} {at} {high}"
        );
    }

    #[test]
    fn the_counter_is_chosen_only_where_the_kernel_trusts_it() {
        let good = "processor: 0\nflags\t\t: fpu rdtscp constant_tsc nonstop_tsc\n";
        assert!(judge_counter("tsc\n", good));
        assert!(!judge_counter("hpet\n", good));
        assert!(!judge_counter("tsc\n", "flags : rdtscp constant_tsc\n"));
        assert!(!judge_counter("", ""));
    }
}
