//! Calls by op, and what each process did: launches, copies, switches, waits for a CPU.
//!
//! Calls are what the backends count, which is exact; what a call did (bytes, sizes, errors) is in its record alone, and as complete as
//! those are.

use std::collections::{BTreeMap, HashMap, VecDeque};

use warptrace_engine::cgroup_hash;
use warptrace_model::inference::CgroupHash;
use warptrace_model::metric::{Explicit, Exponential, Families, Number, attribute, metric};
use warptrace_model::record::op::{Class, OpId, Source, unpack_dims};
use warptrace_model::{Call, Histogram, Object, OffCpu, OpCount, Pid, ProcessInfo, Stretch};

use super::{count, texts};

/// Processes that are told apart; of more, those that were seen first are counted by their cgroup alone.
const PROCESSES: usize = 512;
/// Cgroups whose processes are gone; of more they are counted without one.
const CGROUPS: usize = 512;
/// Errors that are told apart by their code; of more they are counted without it.
const ERRORS: usize = 512;

const DIRECTIONS: [&str; 6] = ["h2h", "h2d", "d2h", "d2d", "default", "unknown"];

#[derive(Default)]
pub(super) struct Calls {
    ops: BTreeMap<OpId, (Histogram, u64)>,
    failed: BTreeMap<(OpId, Option<i32>), u64>,
    copies: [Option<Explicit>; DIRECTIONS.len()],
    processes: HashMap<Pid, Process>,
    /// By when they came.
    order: VecDeque<Pid>,
    gone: BTreeMap<Option<CgroupHash>, Sums>,
}

#[derive(Default)]
struct Process {
    start_ticks: u64,
    cgroup: Option<CgroupHash>,
    sums: Sums,
    /// Of launches.
    blocks: Option<Explicit>,
    grids: Option<Explicit>,
}

/// What can be added over processes.
#[derive(Default)]
struct Sums {
    launches: u64,
    copied: [u64; DIRECTIONS.len()],
    involuntary: u64,
    voluntary: u64,
    /// Runnable, and not running, ns.
    stalled: u64,
}

impl Sums {
    fn add(&mut self, other: &Sums) {
        self.launches += other.launches;
        for (all, these) in self.copied.iter_mut().zip(other.copied) {
            *all += these;
        }
        self.involuntary += other.involuntary;
        self.voluntary += other.voluntary;
        self.stalled += other.stalled;
    }
}

impl Calls {
    /// What a backend counted.
    pub(super) fn counts(&mut self, new: &OpCount) {
        let op = new.key.op.get();
        if op.source == Source::Nccl {
            return;
        }
        let (durations, total) = self.ops.entry(new.key.op).or_default();
        durations.merge(&new.durations);
        *total = total.saturating_add(new.total);
        // What of the driver's launches are the runtime's is in their records alone.
        if op.class == Class::Launch && op.source == Source::Runtime {
            let launches = new.durations.count();
            self.of(new.key.pid).sums.launches += launches;
        }
    }

    pub(super) fn call(&mut self, call: &Call) {
        let op = call.op.get();
        if call.ret != 0 && op.class != Class::Query && op.source != Source::Nccl {
            let known =
                self.failed.len() < ERRORS || self.failed.contains_key(&(call.op, Some(call.ret)));
            let code = known.then_some(call.ret);
            *self.failed.entry((call.op, code)).or_default() += 1;
        }
        // Within the runtime's call it is the same work.
        if call.flags.nested() && !call.flags.nested_in_library() {
            return;
        }
        match op.class {
            Class::Copy => {
                let direction = usize::from(call.copy_kind().unwrap_or(u8::MAX));
                let direction = direction.min(DIRECTIONS.len() - 1);
                let durations = self.copies[direction]
                    .get_or_insert_with(|| Explicit::new(metric::CUDA_COPY_DURATION.bounds));
                durations.record(call.dur as f64 / 1e9);
                let bytes = call.bytes().filter(|_| call.ret == 0).unwrap_or(0);
                self.of(call.thread.pid).sums.copied[direction] += bytes;
            }
            Class::Launch => {
                let process = self.of(call.thread.pid);
                process.sums.launches += u64::from(op.source == Source::Driver);
                let (blocks, threads) = unpack_dims(call.arg1);
                // A launch on several devices says neither.
                if blocks > 0 && threads > 0 {
                    for (histogram, metric, value) in [
                        (
                            &mut process.blocks,
                            &metric::CUDA_LAUNCH_BLOCK_SIZE,
                            threads,
                        ),
                        (&mut process.grids, &metric::CUDA_LAUNCH_GRID_SIZE, blocks),
                    ] {
                        let histogram =
                            histogram.get_or_insert_with(|| Explicit::new(metric.bounds));
                        histogram.record(value as f64);
                    }
                }
            }
            _ => {}
        }
    }

    pub(super) fn off_cpu(&mut self, off: &OffCpu) {
        let sums = &mut self.of(off.thread.pid).sums;
        match off.preempted {
            true => sums.involuntary += 1,
            false => sums.voluntary += 1,
        }
        sums.stalled += off.runnable;
    }

    pub(super) fn stretch(&mut self, stretch: &Stretch) {
        self.of(stretch.thread.pid).sums.stalled += stretch.runnable;
    }

    pub(super) fn process(&mut self, info: &ProcessInfo) {
        if !info.in_job {
            return;
        }
        let pid = info.incarnation.pid;
        let start = info.incarnation.start_ticks;
        let another = |p: &Process| p.start_ticks != 0 && start != 0 && p.start_ticks != start;
        if self.processes.get(&pid).is_some_and(another) {
            self.retire(pid);
            self.order.retain(|known| *known != pid);
        }
        let process = self.of(pid);
        process.start_ticks = start;
        process.cgroup = cgroup_hash(&info.cgroup);
    }

    fn of(&mut self, pid: Pid) -> &mut Process {
        if !self.processes.contains_key(&pid) {
            if self.processes.len() >= PROCESSES
                && let Some(oldest) = self.order.pop_front()
            {
                self.retire(oldest);
            }
            self.order.push_back(pid);
        }
        self.processes.entry(pid).or_default()
    }

    /// Its counts go to its cgroup's, so that sums never fall; what cannot be added goes.
    fn retire(&mut self, pid: Pid) {
        let Some(process) = self.processes.remove(&pid) else {
            return;
        };
        let known = self.gone.len() < CGROUPS || self.gone.contains_key(&process.cgroup);
        let cgroup = process.cgroup.filter(|_| known);
        self.gone.entry(cgroup).or_default().add(&process.sums);
    }

    pub(super) fn tell(&self, to: &mut Families) {
        for (op, (durations, total)) in &self.ops {
            let value = Exponential::from_durations(durations, *total);
            to.push(
                &metric::CUDA_CALL_DURATION,
                function(*op),
                Number::Exponential(value),
            );
        }
        for ((op, code), n) in &self.failed {
            let mut attributes = function(*op);
            let code = code.map_or_else(|| "other".to_owned(), |code| code.to_string());
            attributes.insert(attribute::ERROR_TYPE.name, code);
            to.push(&metric::CUDA_CALL_FAILED, attributes, count(*n));
        }
        for (direction, durations) in DIRECTIONS.iter().zip(&self.copies) {
            if let Some(durations) = durations {
                let attributes = texts(&[(&attribute::COPY_DIRECTION, direction)]);
                let value = Number::Explicit(durations.clone());
                to.push(&metric::CUDA_COPY_DURATION, attributes, value);
            }
        }
        let mut by_cgroup: BTreeMap<Option<CgroupHash>, Sums> = BTreeMap::new();
        let living = self.processes.values().map(|p| (p.cgroup, &p.sums));
        let gone = self.gone.iter().map(|(cgroup, sums)| (*cgroup, sums));
        for (cgroup, sums) in living.chain(gone) {
            by_cgroup.entry(cgroup).or_default().add(sums);
        }
        for (cgroup, sums) in &by_cgroup {
            for (direction, bytes) in DIRECTIONS.iter().zip(sums.copied) {
                if bytes > 0 {
                    let mut attributes = of_cgroup(*cgroup);
                    attributes.insert(attribute::COPY_DIRECTION.name, *direction);
                    to.push(&metric::CUDA_COPY_IO, attributes, count(bytes));
                }
            }
            let secs = Number::Double(sums.stalled as f64 / 1e9);
            to.push(&metric::NODE_CPU_STALL_TIME, of_cgroup(*cgroup), secs);
        }
        let mut pids: Vec<_> = self.processes.iter().collect();
        pids.sort_by_key(|(pid, _)| **pid);
        let living = pids.iter().map(|(pid, p)| (Some(**pid), p.cgroup, &p.sums));
        let gone = self.gone.iter().map(|(cgroup, sums)| (None, *cgroup, sums));
        for (pid, cgroup, sums) in living.chain(gone) {
            let of = || {
                let mut attributes = of_cgroup(cgroup);
                if let Some(pid) = pid {
                    attributes.insert(attribute::PID.name, i64::from(pid.0));
                }
                attributes
            };
            if sums.launches > 0 {
                to.push(&metric::CUDA_LAUNCH_COUNT, of(), count(sums.launches));
            }
            for (how, n) in [
                ("involuntary", sums.involuntary),
                ("voluntary", sums.voluntary),
            ] {
                if n > 0 {
                    let mut attributes = of();
                    attributes.insert(attribute::CONTEXT_SWITCH_TYPE.name, how);
                    to.push(&metric::CONTEXT_SWITCHES, attributes, count(n));
                }
            }
        }
        for (pid, process) in pids {
            for (metric, histogram) in [
                (&metric::CUDA_LAUNCH_BLOCK_SIZE, &process.blocks),
                (&metric::CUDA_LAUNCH_GRID_SIZE, &process.grids),
            ] {
                if let Some(histogram) = histogram {
                    let mut attributes = Object::new();
                    attributes.insert(attribute::PID.name, i64::from(pid.0));
                    to.push(metric, attributes, Number::Explicit(histogram.clone()));
                }
            }
        }
    }
}

fn function(op: OpId) -> Object {
    let op = op.get();
    texts(&[
        (&attribute::LAYER, op.source.name()),
        (&attribute::FUNCTION, op.name),
    ])
}

fn of_cgroup(cgroup: Option<CgroupHash>) -> Object {
    let mut attributes = Object::new();
    if let Some(cgroup) = cgroup {
        attributes.insert(attribute::CGROUP.name, cgroup.to_string());
    }
    attributes
}
