//! The two clocks, and the one place that converts between them.

/// Nanoseconds of CLOCK_BOOTTIME, as `bpf_ktime_get_boot_ns` gives; goes on while the machine sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct BootNanos(pub u64);

/// Nanoseconds since the Unix epoch, as OTLP wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct UnixNanos(pub u64);

impl BootNanos {
    /// This moment `nanos` later, saturating.
    #[must_use]
    pub const fn plus(self, nanos: u64) -> BootNanos {
        BootNanos(self.0.saturating_add(nanos))
    }

    /// This moment `nanos` earlier, not before boot.
    #[must_use]
    pub const fn minus(self, nanos: u64) -> BootNanos {
        BootNanos(self.0.saturating_sub(nanos))
    }

    /// Nanoseconds from `earlier` to this; 0 when `earlier` is later.
    pub const fn since(self, earlier: BootNanos) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Both clocks read at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockAnchor {
    pub boot: BootNanos,
    pub unix: UnixNanos,
}

impl ClockAnchor {
    /// Unix time of a moment of the boot clock, as this anchor sees it; saturating at the epoch.
    pub const fn unix(&self, at: BootNanos) -> UnixNanos {
        if at.0 >= self.boot.0 {
            UnixNanos(self.unix.0.saturating_add(at.0 - self.boot.0))
        } else {
            UnixNanos(self.unix.0.saturating_sub(self.boot.0 - at.0))
        }
    }

    /// The moment of the boot clock at a Unix time; saturating at boot.
    pub const fn boot(&self, at: UnixNanos) -> BootNanos {
        if at.0 >= self.unix.0 {
            BootNanos(self.boot.0.saturating_add(at.0 - self.unix.0))
        } else {
            BootNanos(self.boot.0.saturating_sub(self.unix.0 - at.0))
        }
    }
}

/// A half-open interval of the boot clock, `start <= end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    pub start: BootNanos,
    pub end: BootNanos,
}

impl Window {
    /// The interval from `start` for `nanos`.
    pub const fn at(start: BootNanos, nanos: u64) -> Window {
        Window {
            start,
            end: start.plus(nanos),
        }
    }

    pub const fn nanos(&self) -> u64 {
        self.end.since(self.start)
    }

    /// Nanoseconds that both have.
    pub fn overlap(&self, other: &Window) -> u64 {
        self.end.min(other.end).since(self.start.max(other.start))
    }

    /// The part that both have, unless it is empty.
    pub fn intersect(&self, other: &Window) -> Option<Window> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(Window { start, end })
    }

    pub fn contains(&self, at: BootNanos) -> bool {
        self.start <= at && at < self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_converts_both_ways_on_both_sides() {
        let anchor = ClockAnchor {
            boot: BootNanos(1_000),
            unix: UnixNanos(5_000_000),
        };
        for boot in [0, 999, 1_000, 1_001, 9_999] {
            assert_eq!(anchor.boot(anchor.unix(BootNanos(boot))), BootNanos(boot));
        }
        assert_eq!(anchor.unix(BootNanos(1_500)), UnixNanos(5_000_500));
    }

    #[test]
    fn windows_overlap_by_what_both_have() {
        let a = Window::at(BootNanos(10), 10);
        assert_eq!(a.overlap(&Window::at(BootNanos(15), 10)), 5);
        assert_eq!(a.overlap(&Window::at(BootNanos(20), 10)), 0);
        assert_eq!(a.intersect(&Window::at(BootNanos(20), 1)), None);
    }
}
