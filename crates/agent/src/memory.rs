//! Memory samples in the words of the telemetry format: what the engine saw, as records that its readers load.
//!
//! The process's own number (`allocator_allocated_bytes`) is what its calls took and did not give back; the device's is the
//! driver's, of all processes. Neither is made of the other, and what is not known is null.

use std::collections::{HashMap, HashSet};

use warptrace_engine::MemorySample;
use warptrace_formats::memory::Upgrade;
use warptrace_model::{
    ClockAnchor, Incarnation, Int, MemoryEvent, Object, Pid, ProcessInfo, Value,
};

/// Name of the collector in its records.
const COLLECTOR: &str = "warptrace.agent";
/// Processes whose place in their job is remembered.
const PROCESSES: usize = 4_096;

/// Makes records of samples.
pub(crate) struct MemoryRecords {
    session: String,
    host: String,
    interval_ms: u64,
    upgrade: Upgrade,
    /// Rank, local rank and world size, by process.
    places: HashMap<Pid, [Option<u32>; 3]>,
    /// Processes whose first record was made.
    begun: HashSet<(Incarnation, Option<u16>)>,
}

impl MemoryRecords {
    pub(crate) fn new(session: &str, host: &str, interval_ms: u64) -> MemoryRecords {
        MemoryRecords {
            session: session.to_owned(),
            host: if host.trim().is_empty() {
                "unknown"
            } else {
                host
            }
            .to_owned(),
            interval_ms,
            upgrade: Upgrade::default(),
            places: HashMap::new(),
            begun: HashSet::new(),
        }
    }

    /// The records go to another session from now on, which has none yet.
    pub(crate) fn session(&mut self, id: &str) {
        id.clone_into(&mut self.session);
        self.begun.clear();
    }

    pub(crate) fn process(&mut self, p: &ProcessInfo) {
        if self.places.len() >= PROCESSES {
            self.places.clear();
        }
        self.places
            .insert(p.incarnation.pid, [p.rank, p.local_rank, p.world_size]);
    }

    /// The records of a sample: before it a peak that was reached and left since the last one.
    pub(crate) fn records(&mut self, s: &MemorySample, anchor: &ClockAnchor) -> Vec<MemoryEvent> {
        let peak = s
            .allocator
            .peak_at
            .filter(|_| s.allocator.peak_bytes > s.allocator.live_bytes);
        let peak = peak.map(|at| {
            let mut then = *s;
            then.at = at;
            then.allocator.change_bytes = then
                .allocator
                .change_bytes
                .saturating_add(difference(s.allocator.peak_bytes, s.allocator.live_bytes));
            then.allocator.live_bytes = s.allocator.peak_bytes;
            // The driver was not asked then.
            (then.process_used_bytes, then.device_used_bytes) = (None, None);
            then
        });
        let mut records = Vec::new();
        if let Some(then) = peak {
            records.extend(self.record(&then, anchor, Some("peak")));
        }
        records.extend(self.record(s, anchor, None));
        records
    }

    /// The record of a sample; `None` when the format has no way to say it (a time before 1970).
    fn record(
        &mut self,
        s: &MemorySample,
        anchor: &ClockAnchor,
        event_type: Option<&str>,
    ) -> Option<MemoryEvent> {
        let device = s.device.map(|d| d.0);
        if self.begun.len() >= PROCESSES {
            self.begun.clear();
        }
        let first = event_type.is_none() && self.begun.insert((s.process, device));
        let number = |n: u64| Value::Int(Int::from(n));
        let maybe = |n: Option<u64>| n.map_or(Value::Null, number);
        let a = &s.allocator;
        let mut own = Object::new();
        own.insert("peak_bytes", number(a.peak_bytes));
        own.insert("live_allocations", number(a.live_count));
        own.insert("taken_bytes", number(a.taken_bytes));
        own.insert("given_back_bytes", number(a.given_back_bytes));
        own.insert(
            "oldest_allocation_ns",
            maybe(a.oldest.map(|at| s.at.since(at))),
        );
        own.insert("process_used_bytes", maybe(s.process_used_bytes));
        let mut metadata = Object::new();
        metadata.insert("backend", Value::from("cuda"));
        metadata.insert("sampling_source", Value::from("warptrace.calls_and_nvml"));
        metadata.insert("memory_capabilities", Value::Object(capabilities(s)));
        metadata.insert("warptrace", Value::Object(own));

        let mut r = Object::new();
        r.insert("schema_version", number(4));
        r.insert("session_id", Value::from(&*self.session));
        r.insert("timestamp_ns", number(anchor.unix(s.at).0));
        r.insert(
            "event_type",
            Value::from(match (event_type, s.last, first) {
                (Some(said), ..) => said,
                (None, true, _) => "stop",
                (None, false, true) => "start",
                (None, false, false) => "sample",
            }),
        );
        r.insert("collector", Value::from(COLLECTOR));
        r.insert("sampling_interval_ms", number(self.interval_ms));
        r.insert("pid", number(s.process.pid.0.into()));
        r.insert("host", Value::from(&*self.host));
        if let Some([rank, local, world]) = self.places.get(&s.process.pid) {
            // A rank without the size of its world is refused by readers.
            if let (Some(rank), Some(world)) = (rank, world) {
                r.insert("rank", number((*rank).into()));
                r.insert("local_rank", number(local.unwrap_or(*rank).into()));
                r.insert("world_size", number((*world).into()));
            }
        }
        r.insert(
            "device_id",
            Value::Int(Int::new(device.map_or(-1, i64::from))),
        );
        r.insert("allocator_allocated_bytes", number(a.live_bytes));
        r.insert("allocator_reserved_bytes", Value::Null);
        r.insert("allocator_active_bytes", Value::Null);
        r.insert("allocator_inactive_bytes", Value::Null);
        r.insert(
            "allocator_change_bytes",
            Value::Int(Int::new(a.change_bytes)),
        );
        // More in use than there is: the two were not read at one moment.
        let total = s.device_total_bytes;
        let used = s
            .device_used_bytes
            .filter(|u| total.is_some_and(|t| *u <= t));
        r.insert("device_used_bytes", maybe(used));
        r.insert("device_free_bytes", Value::Null);
        r.insert("device_total_bytes", maybe(total));
        r.insert("context", Value::Null);
        r.insert("metadata", Value::Object(metadata));
        self.upgrade.event(Value::Object(r)).ok()
    }
}

fn difference(a: u64, b: u64) -> i64 {
    i64::try_from(a.saturating_sub(b)).unwrap_or(i64::MAX)
}

/// What this collector can measure here.
fn capabilities(s: &MemorySample) -> Object {
    let mut c = Object::new();
    c.insert("backend", Value::from("cuda"));
    c.insert("telemetry_collector", Value::from(COLLECTOR));
    c.insert("sampling_source", Value::from("warptrace.calls_and_nvml"));
    let driver = s.device_total_bytes.is_some();
    for (flag, set) in [
        ("supports_allocator_allocated", true),
        ("supports_allocator_reserved", false),
        ("supports_allocator_active", false),
        ("supports_allocator_inactive", false),
        ("supports_device_used", driver),
        ("supports_device_free", false),
        ("supports_device_total", driver),
        ("supports_native_allocator_history", false),
        ("supports_fragmentation_analysis", false),
        ("supports_allocator_attribution", false),
        ("supports_bounded_profiling", false),
    ] {
        c.insert(flag, Value::Bool(set));
    }
    c
}

#[cfg(test)]
mod tests {
    use warptrace_engine::AllocatorLevel;
    use warptrace_model::{BootNanos, Device, UnixNanos};

    use super::*;

    #[test]
    fn a_record_says_what_is_known_and_null_for_the_rest() {
        let anchor = ClockAnchor {
            boot: BootNanos(0),
            unix: UnixNanos(1_000),
        };
        let mut records = MemoryRecords::new("s", "", 1_000);
        records.process(&ProcessInfo {
            incarnation: Incarnation {
                pid: Pid(7),
                start_ticks: 1,
            },
            rank: Some(3),
            world_size: Some(8),
            ..ProcessInfo::default()
        });
        let mut sample = MemorySample {
            at: BootNanos(5),
            process: Incarnation {
                pid: Pid(7),
                start_ticks: 1,
            },
            device: Some(Device(1)),
            allocator: AllocatorLevel {
                live_bytes: 100,
                peak_bytes: 300,
                change_bytes: -200,
                ..AllocatorLevel::default()
            },
            process_used_bytes: None,
            device_used_bytes: None,
            device_total_bytes: None,
            last: false,
        };
        sample.allocator.peak_at = Some(BootNanos(3));
        let first = records.records(&sample, &anchor);
        let [peak, first] = &first[..] else {
            panic!("{first:#?}")
        };
        assert_eq!((&*peak.event_type, &*first.event_type), ("peak", "start"));
        assert_eq!(
            (&peak.timestamp_ns, &first.timestamp_ns),
            (&Int::new(1_003), &Int::new(1_005))
        );
        assert_eq!(peak.allocator_allocated_bytes, Some(Int::new(300)));
        assert_eq!(
            (&*first.host, &first.identity.rank),
            ("unknown", &Int::new(3))
        );
        assert_eq!(first.allocator_allocated_bytes, Some(Int::new(100)));
        assert_eq!(first.allocator_change_bytes, Some(Int::new(-200)));
        assert_eq!(
            (&first.device_used_bytes, &first.allocator_reserved_bytes),
            (&None, &None)
        );
        sample.allocator.peak_at = None;
        (sample.device_used_bytes, sample.device_total_bytes) = (Some(10), Some(20));
        let second = &records.records(&sample, &anchor)[0];
        assert_eq!(
            (&*second.event_type, &second.device_used_bytes),
            ("sample", &Some(Int::new(10)))
        );
        sample.device_total_bytes = Some(5);
        sample.last = true;
        let odd = &records.records(&sample, &anchor)[0];
        assert_eq!((&*odd.event_type, &odd.device_used_bytes), ("stop", &None));
    }
}
