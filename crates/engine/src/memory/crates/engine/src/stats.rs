//! How long calls take, per (process, device, op): exactly, since the start and over the last seconds.
//!
//! A backend that counts in the kernel or in the job sends its counts, which stay exact when records are shed; for its
//! processes records are not counted again. Knows nothing of units.

use std::collections::{BTreeMap, VecDeque};

use warptrace_model::record::OpId;
use warptrace_model::{Call, Device, Histogram, OpCount, OpKey, Pid};

use crate::capped::QuickMap;

/// Calls of one op by one process on one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpStats {
    pub key: OpKey,
    pub count: u64,
    /// Sum of durations, ns.
    pub total: u64,
    pub durations: Histogram,
}

impl OpStats {
    fn new(key: OpKey) -> OpStats {
        OpStats {
            key,
            count: 0,
            total: 0,
            durations: Histogram::default(),
        }
    }

    fn record(&mut self, dur: u64) {
        self.count += 1;
        self.total = self.total.saturating_add(dur);
        self.durations.record(dur);
    }

    fn merge(&mut self, other: &OpStats) {
        self.count += other.count;
        self.total = self.total.saturating_add(other.total);
        self.durations.merge(&other.durations);
    }
}

/// Length of one part of the recent window, ns.
const STEP_NANOS: u64 = 2_000_000_000;
/// Parts of it: ten seconds.
const STEPS: u64 = 5;

struct Slot {
    all: OpStats,
    /// By the number of the step; the last one is being counted.
    recent: VecDeque<(u64, OpStats)>,
    /// Median of all calls, ns, and the count at which it was taken.
    median: (u64, u64),
}

impl Slot {
    fn recent(&mut self, step: u64) -> &mut OpStats {
        if self.recent.back().is_none_or(|(s, _)| *s < step) {
            while self.recent.front().is_some_and(|(s, _)| s + STEPS <= step) {
                self.recent.pop_front();
            }
            self.recent.push_back((step, OpStats::new(self.all.key)));
        }
        &mut self.recent.back_mut().expect("there is one").1
    }
}

/// All counts.
pub(crate) struct Stats {
    slots: QuickMap<OpKey, Slot>,
    /// Processes whose backend counts.
    counted: QuickMap<Pid, ()>,
    cap: usize,
    /// The step of the newest call.
    now: u64,
    pub(crate) evicted: u64,
}

impl Stats {
    pub(crate) fn new(cap: usize) -> Stats {
        Stats {
            slots: QuickMap::default(),
            counted: QuickMap::default(),
            cap,
            now: 0,
            evicted: 0,
        }
    }

    fn slot(&mut self, key: OpKey) -> Option<&mut Slot> {
        if !self.slots.contains_key(&key) {
            if self.slots.len() >= self.cap {
                self.evicted += 1;
                return None;
            }
            self.slots.insert(
                key,
                Slot {
                    all: OpStats::new(key),
                    recent: VecDeque::new(),
                    median: (0, 0),
                },
            );
        }
        self.slots.get_mut(&key)
    }

    /// Counts a call, unless its process's backend does that.
    pub(crate) fn call(&mut self, call: &Call) {
        let step = call.end().0 / STEP_NANOS;
        self.now = self.now.max(step);
        if self.counted.contains_key(&call.thread.pid) {
            return;
        }
        let key = OpKey {
            pid: call.thread.pid,
            device: call.device,
            op: call.op,
        };
        let dur = call.dur;
        if let Some(slot) = self.slot(key) {
            slot.all.record(dur);
            slot.recent(step).record(dur);
        }
    }

    /// Takes over a backend's counts. The first of a process replace what was counted from its records.
    pub(crate) fn counts(&mut self, c: &OpCount) {
        if self.counted.insert(c.key.pid, ()).is_none() {
            let pid = c.key.pid;
            self.slots.retain(|key, _| key.pid != pid);
        }
        let step = c.window.end.0 / STEP_NANOS;
        self.now = self.now.max(step);
        if let Some(slot) = self.slot(c.key) {
            let more = OpStats {
                key: c.key,
                count: c.durations.count(),
                total: c.total,
                durations: c.durations.clone(),
            };
            slot.all.merge(&more);
            slot.recent(step).merge(&more);
        }
    }

    /// Median duration of an op's calls so far, ns, and how many there were. It may lag by a sixteenth of the calls.
    pub(crate) fn median(
        &mut self,
        pid: Pid,
        device: Option<Device>,
        op: OpId,
    ) -> Option<(u64, u64)> {
        let slot = self.slots.get_mut(&OpKey { pid, device, op })?;
        let (at, n) = (slot.median.1, slot.all.count);
        if n < 32 || n - at > at / 16 {
            slot.median = (slot.all.durations.quantile(0.5)?, n);
        }
        Some((slot.median.0, n))
    }

    /// Forgets a process that ended long ago, when there is no room for its counts.
    pub(crate) fn forget(&mut self, pid: Pid) {
        if self.slots.len() >= self.cap / 2 {
            self.slots.retain(|key, _| key.pid != pid);
        }
        self.counted.remove(&pid);
    }

    pub(crate) fn all(&self) -> Vec<OpStats> {
        let sorted: BTreeMap<&OpKey, &Slot> = self.slots.iter().collect();
        sorted.into_values().map(|s| s.all.clone()).collect()
    }

    pub(crate) fn window(&self) -> Vec<OpStats> {
        let sorted: BTreeMap<&OpKey, &Slot> = self.slots.iter().collect();
        let first = (self.now + 1).saturating_sub(STEPS);
        sorted
            .into_iter()
            .filter_map(|(key, slot)| {
                let mut sum = OpStats::new(*key);
                for (_, part) in slot.recent.iter().filter(|(s, _)| *s >= first) {
                    sum.merge(part);
                }
                (sum.count > 0).then_some(sum)
            })
            .collect()
    }
}
