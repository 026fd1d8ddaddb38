//! What follows from the counters of one event, and of a session's events.

use warptrace_model::{Int, MemoryEvent};

/// What follows from one event's counters. Absent is `None`: a counter that is missing, or a divisor that is 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Derived {
    /// Reserved but not allocated, at least 0: what the allocator keeps for later. Not lost, and not fragmentation.
    pub allocator_gap_bytes: Option<Int>,
    /// Allocated of the device's total; where the collector cannot tell allocated, used of the total.
    pub utilization_ratio: Option<f64>,
    /// Free blocks within segments in use, of reserved.
    pub fragmentation_ratio: Option<f64>,
    /// `allocator_gap_bytes` of reserved.
    pub allocator_cache_ratio: Option<f64>,
    /// Whether the collector's name says that it is a makeshift.
    pub is_degraded_collector: bool,
}

impl Derived {
    pub fn of(event: &MemoryEvent) -> Derived {
        let capabilities = event.capabilities();
        let allocated = event
            .allocator_allocated_bytes
            .as_ref()
            .filter(|_| capabilities.supports_allocator_allocated);
        let reserved = event.allocator_reserved_bytes.as_ref();
        let gap = event
            .allocator_allocated_bytes
            .as_ref()
            .zip(reserved)
            .map(|(allocated, reserved)| reserved.minus(allocated).max(Int::ZERO));
        let fragmentation = event.allocator_inactive_bytes.as_ref().filter(|_| {
            capabilities.supports_allocator_inactive && capabilities.supports_fragmentation_analysis
        });
        let collector = event.collector.to_lowercase();
        Derived {
            utilization_ratio: ratio(
                allocated.or(event.device_used_bytes.as_ref()),
                event.device_total_bytes.as_ref(),
            ),
            fragmentation_ratio: ratio(fragmentation, reserved),
            allocator_cache_ratio: ratio(gap.as_ref(), reserved),
            allocator_gap_bytes: gap,
            is_degraded_collector: [
                "fallback",
                "degraded",
                "unavailable",
                "partial",
                "legacy.unknown",
            ]
            .iter()
            .any(|word| collector.contains(word)),
        }
    }
}

fn ratio(part: Option<&Int>, whole: Option<&Int>) -> Option<f64> {
    let (part, whole) = (part?, whole?);
    (*whole > 0).then(|| part.to_f64() / whole.to_f64())
}

/// What follows from a session's events, in order of time.
#[derive(Debug, Clone, PartialEq)]
pub struct DerivedSession {
    pub peak_utilization_ratio: Option<f64>,
    /// Over the events that have one.
    pub avg_fragmentation_ratio: Option<f64>,
    /// Its last event is not `stop`.
    pub is_session_interrupted: bool,
}

impl DerivedSession {
    pub fn of(events: &[MemoryEvent]) -> DerivedSession {
        let (mut peak, mut sum, mut count) = (None, 0.0, 0_u64);
        for derived in events.iter().map(Derived::of) {
            if let Some(ratio) = derived.utilization_ratio {
                peak = Some(f64::max(peak.unwrap_or(ratio), ratio));
            }
            if let Some(ratio) = derived.fragmentation_ratio {
                sum += ratio;
                count += 1;
            }
        }
        DerivedSession {
            peak_utilization_ratio: peak,
            avg_fragmentation_ratio: (count > 0).then(|| sum / count as f64),
            is_session_interrupted: events.last().is_none_or(|e| &*e.event_type != "stop"),
        }
    }
}
