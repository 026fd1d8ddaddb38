//! What a process holds on its devices, from its own calls that take and give back memory.
//!
//! Exact for what was seen: a level between two samples of a poller is no secret, so peaks are true ones. What was taken
//! before the recording began is not known, and its return changes nothing. Managed memory counts where it was asked for;
//! pinned host memory is not the device's. Virtual memory counts when it is created, not when it is mapped.
//!
//! Knows nothing of what the driver says is in use: that is another number, of all processes together.

use std::collections::{BTreeMap, VecDeque};

use warptrace_model::record::OpId;
use warptrace_model::{BootNanos, Call, Device, Pid};

use crate::capped::Capped;

/// Allocations remembered over all processes; the oldest are given up beyond it, and counted.
const LIVE: usize = 1 << 18;
/// Processes and devices with levels of their own.
const LEVELS: usize = 4_096;

/// What one process holds on one device by its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AllocatorLevel {
    /// Bytes in use now.
    pub live_bytes: u64,
    /// Allocations in use now.
    pub live_count: u64,
    /// Highest `live_bytes` since the level was taken last, and when it was reached; `None`: it was so then already.
    pub peak_bytes: u64,
    pub peak_at: Option<BootNanos>,
    /// Highest since the recording began.
    pub highest_bytes: u64,
    /// Bytes taken since the recording began, and given back: together the churn.
    pub taken_bytes: u64,
    pub given_back_bytes: u64,
    /// Change of `live_bytes` since the level was taken last.
    pub change_bytes: i64,
    /// Begin of the first allocation that is still in use, by the order in which they were made.
    pub oldest: Option<BootNanos>,
}

/// Follows the calls of all processes.
pub struct Allocations {
    /// By process and address or handle.
    live: Capped<(Pid, u64), Taken>,
    levels: BTreeMap<(Pid, Option<Device>), Level>,
    roles: Vec<Role>,
    unseen: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Taken {
    device: Option<Device>,
    bytes: u64,
    at: u64,
}

#[derive(Default)]
struct Level {
    now: AllocatorLevel,
    /// Addresses by the time at which they were taken; those given back are skipped.
    by_age: VecDeque<(u64, u64)>,
}

/// What an op does to a process's device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Other,
    /// Bytes in `arg0`, address or handle in `arg1`.
    Takes,
    /// Address or handle in `arg0`.
    GivesBack,
}

/// Device memory, by the CUDA Runtime and Driver API references 12.
pub(crate) fn role(op: OpId) -> Role {
    match op.name() {
        "cudaMalloc"
        | "cudaMallocManaged"
        | "cudaMallocAsync"
        | "cudaMallocFromPoolAsync"
        | "cudaMallocPitch"
        | "cuMemAlloc"
        | "cuMemAllocManaged"
        | "cuMemAllocAsync"
        | "cuMemAllocFromPoolAsync"
        | "cuMemAllocPitch"
        | "cuMemCreate" => Role::Takes,
        "cudaFree" | "cudaFreeAsync" | "cuMemFree" | "cuMemFreeAsync" | "cuMemRelease" => {
            Role::GivesBack
        }
        _ => Role::Other,
    }
}

impl Default for Allocations {
    fn default() -> Allocations {
        Allocations {
            live: Capped::new(LIVE),
            levels: BTreeMap::new(),
            roles: (0..).map_while(OpId::from_index).map(role).collect(),
            unseen: 0,
        }
    }
}

impl Allocations {
    /// Takes a call in; one that failed, or that is part of another, says nothing. Cost: O(1) amortised.
    pub fn call(&mut self, c: &Call) {
        let role = self.roles[c.op.index()];
        if role == Role::Other || c.ret != 0 || (c.flags.nested() && !c.flags.nested_in_library()) {
            return;
        }
        let pid = c.thread.pid;
        if role == Role::GivesBack {
            if c.arg0 == 0 {
                // Giving nothing back is allowed, and initialises the runtime.
                return;
            }
            match self.live.remove(&(pid, c.arg0)) {
                Some(taken) => self.give_back(pid, &taken),
                None => self.unseen += 1,
            }
            return;
        }
        if c.arg0 == 0 || c.arg1 == 0 {
            return;
        }
        let taken = Taken {
            device: c.device,
            bytes: c.arg0,
            at: c.start.0,
        };
        if let Some(gone) = self.live.remove(&(pid, c.arg1)) {
            // The address comes again: its return was not seen.
            self.give_back(pid, &gone);
        }
        let key = (pid, c.device);
        if !self.levels.contains_key(&key) && self.levels.len() >= LEVELS {
            self.levels.pop_first();
        }
        self.live.insert((pid, c.arg1), taken);
        let live = &self.live;
        let level = self.levels.entry(key).or_default();
        let now = &mut level.now;
        now.live_bytes = now.live_bytes.saturating_add(taken.bytes);
        now.live_count += 1;
        now.taken_bytes = now.taken_bytes.saturating_add(taken.bytes);
        if now.live_bytes > now.peak_bytes {
            now.peak_bytes = now.live_bytes;
            now.peak_at = Some(c.end());
        }
        now.highest_bytes = now.highest_bytes.max(now.live_bytes);
        now.change_bytes = now.change_bytes.saturating_add(signed(taken.bytes));
        level.by_age.push_back((c.arg1, taken.at));
        if level.by_age.len() as u64 > 2 * now.live_count + 64 {
            level
                .by_age
                .retain(|(address, at)| is_live(live, pid, *address, *at));
        }
    }

    fn give_back(&mut self, pid: Pid, taken: &Taken) {
        let Some(level) = self.levels.get_mut(&(pid, taken.device)) else {
            return;
        };
        let now = &mut level.now;
        now.live_bytes = now.live_bytes.saturating_sub(taken.bytes);
        now.live_count = now.live_count.saturating_sub(1);
        now.given_back_bytes = now.given_back_bytes.saturating_add(taken.bytes);
        now.change_bytes = now.change_bytes.saturating_sub(signed(taken.bytes));
    }

    /// A process is gone, and with it what it held: its last levels.
    pub fn forget(&mut self, pid: Pid) -> Vec<(Option<Device>, AllocatorLevel)> {
        let first = (pid, None);
        if self
            .levels
            .range(first..)
            .next()
            .is_none_or(|((p, _), _)| *p != pid)
        {
            return Vec::new();
        }
        let last = self.take_where(|p| p == pid);
        self.levels.retain(|(p, _), _| *p != pid);
        self.live.retain(|(p, _)| *p != pid);
        last.into_iter().map(|((_, d), level)| (d, level)).collect()
    }

    /// The levels of now, by process and device; peaks and changes count from here on anew.
    pub fn take(&mut self) -> Vec<((Pid, Option<Device>), AllocatorLevel)> {
        self.take_where(|_| true)
    }

    fn take_where(
        &mut self,
        of: impl Fn(Pid) -> bool,
    ) -> Vec<((Pid, Option<Device>), AllocatorLevel)> {
        let live = &self.live;
        self.levels
            .iter_mut()
            .filter(|((pid, _), _)| of(*pid))
            .map(|(key, level)| {
                while let Some((address, at)) = level.by_age.front()
                    && !is_live(live, key.0, *address, *at)
                {
                    level.by_age.pop_front();
                }
                let mut told = level.now;
                told.oldest = level.by_age.front().map(|(_, at)| BootNanos(*at));
                level.now.peak_bytes = level.now.live_bytes;
                level.now.peak_at = None;
                level.now.change_bytes = 0;
                (*key, told)
            })
            .collect()
    }

    /// Allocations given up because there were too many, and returns of memory whose taking was not seen.
    pub fn lost(&self) -> (u64, u64) {
        (self.live.evicted, self.unseen)
    }
}

fn is_live(live: &Capped<(Pid, u64), Taken>, pid: Pid, address: u64, at: u64) -> bool {
    live.get(&(pid, address)).is_some_and(|t| t.at == at)
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::parse_trace;
    use warptrace_model::Event;

    fn after(trace: &str) -> Allocations {
        let mut a = Allocations::default();
        for e in parse_trace(trace).unwrap() {
            if let Event::Call(c) = e {
                a.call(&c);
            }
        }
        a
    }

    #[test]
    fn the_peak_between_two_looks_is_seen() {
        let mut a = after(
            "process p 1 job
             p 1ms +1us cudaMalloc bytes=100 arg1=0xa
             p 2ms +1us cudaMalloc bytes=900 arg1=0xb
             p 3ms +1us cudaFree arg0=0xb
             p 4ms +1us cudaMalloc bytes=50 arg1=0xc ret=2
             p 5ms +1us cuMemAlloc bytes=70 arg1=0xd nested
             p 6ms +1us cudaMallocHost bytes=1000 arg1=0xe",
        );
        let level = a.take()[0].1;
        assert_eq!(
            (level.live_bytes, level.live_count, level.peak_bytes),
            (100, 1, 1_000)
        );
        assert_eq!(
            (
                level.taken_bytes,
                level.given_back_bytes,
                level.change_bytes
            ),
            (1_000, 900, 100)
        );
        assert_eq!(level.oldest, Some(BootNanos(1_000_000)));
        assert_eq!(level.peak_at, Some(BootNanos(2_001_000)));
        let again = a.take()[0].1;
        assert_eq!(
            (again.peak_bytes, again.highest_bytes, again.change_bytes),
            (100, 1_000, 0)
        );
    }

    #[test]
    fn memory_taken_before_the_recording_is_not_invented() {
        let mut a = after("process p 1 job\np 1ms +1us cudaFree arg0=0xa\np 2ms +1us cudaFree");
        assert_eq!((a.take().len(), a.lost()), (0, (0, 1)));
    }

    #[test]
    fn an_address_that_comes_again_was_given_back() {
        let mut a = after(
            "process p 1 job
             p 1ms +1us cudaMalloc bytes=100 arg1=0xa
             p 2ms +1us cudaMalloc bytes=30 arg1=0xa device=1",
        );
        let levels = a.take();
        assert_eq!(
            levels.iter().map(|(_, l)| l.live_bytes).collect::<Vec<_>>(),
            [0, 30]
        );
        assert_eq!(levels[0].1.oldest, None);
        a.forget(Pid(1));
        assert_eq!(a.take(), []);
    }
}
