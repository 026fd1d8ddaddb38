//! What was seen: processes, the records of their threads, who ran on which CPU, block I/O, devices.
//!
//! Facts only, kept for as long as a unit may need them and no longer. Knows nothing of units or of what is usual.

use std::collections::VecDeque;

use warptrace_model::record::OpId;
use warptrace_model::{
    BlockIo, BootNanos, Cpu, Device, GpuSample, Incarnation, OffCpu, Pid, ProcessEvent,
    ProcessInfo, Slice, StreamScope, Stretch, Thread, Tid, UnitKind, Window,
};

use crate::capped::{Capped, QuickMap};
use crate::cold_start::ColdStart;
use crate::paused::Paused;
use crate::thresholds::{Caps, Rules};
use crate::units::named::Named;
use crate::units::work::Work;

/// A process in its one life; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct ProcessIx(pub(crate) u32);

/// How a call's time is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InCall {
    /// Waits for the device.
    Wait,
    /// The first `own` ns are the copy, the rest waits.
    Copy,
    Allocator,
    /// Hands work over, or keeps books.
    Short,
}

/// A top-level call, or one of its own kind inside a library's call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallSpan {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) own: u64,
    pub(crate) op: OpId,
    pub(crate) how: InCall,
}

/// A thread that waits for the device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lead {
    /// Where the unit that is going on began.
    pub(crate) since: u64,
}

/// The records of one thread, by their ends.
#[derive(Default)]
pub(crate) struct Timeline {
    pub(crate) process: ProcessIx,
    pub(crate) calls: VecDeque<CallSpan>,
    pub(crate) off_cpu: VecDeque<OffCpu>,
    pub(crate) stretches: VecDeque<Stretch>,
    pub(crate) reclaims: VecDeque<Window>,
    pub(crate) lead: Option<Lead>,
    pub(crate) first_call: Option<u64>,
    /// End of its last record.
    pub(crate) seen: u64,
    /// Up to here something was given up.
    pub(crate) lost_before: u64,
}

impl Timeline {
    fn prune(&mut self, before: u64) {
        while self.calls.front().is_some_and(|c| c.end <= before) {
            self.calls.pop_front();
        }
        while self
            .off_cpu
            .front()
            .is_some_and(|o| o.window().end.0 <= before)
        {
            self.off_cpu.pop_front();
        }
        while self
            .stretches
            .front()
            .is_some_and(|s| s.start.0 + s.dur <= before)
        {
            self.stretches.pop_front();
        }
        while self.reclaims.front().is_some_and(|r| r.end.0 <= before) {
            self.reclaims.pop_front();
        }
    }
}

/// When a process had work on a device.
#[derive(Default)]
pub(crate) struct Activity {
    pub(crate) device: Option<Device>,
    pub(crate) since: Option<u64>,
    pub(crate) last_launch: u64,
    /// By end; do not overlap.
    pub(crate) spans: VecDeque<Window>,
}

/// Copies of one kind to or from one device.
pub(crate) struct Bandwidth {
    pub(crate) device: Option<Device>,
    pub(crate) kind: u8,
    /// Bytes a second of the last copies.
    samples: VecDeque<u64>,
    since_update: u32,
    pub(crate) bytes_per_sec: u64,
}

const BANDWIDTH_SAMPLES: usize = 64;

pub(crate) struct GraphExec {
    pub(crate) nodes: u64,
    pub(crate) made: u64,
    pub(crate) made_by: Tid,
    pub(crate) launched: bool,
    pub(crate) told: bool,
}

/// What is known of a process.
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) info: Option<Box<ProcessInfo>>,
    /// Its birth or exec was seen.
    pub(crate) from_start: bool,
    pub(crate) parent: Option<Pid>,
    pub(crate) start_ticks: u64,
    pub(crate) has_calls: bool,
    pub(crate) has_switches: bool,
    pub(crate) has_stretches: bool,
    /// A call of it succeeded: a device was there.
    pub(crate) device_worked: bool,
    pub(crate) ended: Option<u64>,
    pub(crate) seen: u64,
    pub(crate) work: Work,
    pub(crate) activity: Vec<Activity>,
    pub(crate) bandwidth: Vec<Bandwidth>,
    numbers: Capped<(Option<Device>, StreamScope, UnitKind), u64>,
    /// Allocator calls that may have waited for the device: whose and when.
    pub(crate) allocations: VecDeque<(Tid, Window)>,
    /// Nodes of graphs, by handle.
    pub(crate) graphs: Capped<u64, u64>,
    pub(crate) execs: Capped<u64, GraphExec>,
    pub(crate) cold: ColdStart,
    pub(crate) named: Named,
    /// Ordinary time of all its units, ns.
    pub(crate) unit_nanos: u64,
}

impl Process {
    fn new(pid: Pid, caps: &Caps) -> Process {
        Process {
            pid,
            info: None,
            from_start: false,
            parent: None,
            start_ticks: 0,
            has_calls: false,
            has_switches: false,
            has_stretches: false,
            device_worked: false,
            ended: None,
            seen: 0,
            work: Work::new(caps.streams_per_process, caps.events_per_process),
            activity: Vec::new(),
            bandwidth: Vec::new(),
            numbers: Capped::new(256),
            allocations: VecDeque::new(),
            graphs: Capped::new(caps.graphs_per_process),
            execs: Capped::new(caps.graphs_per_process),
            cold: ColdStart::default(),
            named: Named::default(),
            unit_nanos: 0,
        }
    }

    /// Whether its first unit is still to come, and is its start.
    pub(crate) fn starts(&self) -> bool {
        self.from_start && matches!(self.cold, ColdStart::Unseen)
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        Incarnation {
            pid: self.pid,
            start_ticks: self
                .info
                .as_ref()
                .map_or(self.start_ticks, |i| i.incarnation.start_ticks),
        }
    }

    pub(crate) fn next_number(
        &mut self,
        device: Option<Device>,
        stream: StreamScope,
        kind: UnitKind,
    ) -> u64 {
        let n = self.numbers.entry((device, stream, kind), || 0);
        *n += 1;
        *n - 1
    }

    pub(crate) fn activity(&mut self, device: Option<Device>) -> &mut Activity {
        let i = self
            .activity
            .iter()
            .position(|a| a.device == device)
            .unwrap_or_else(|| {
                self.activity.push(Activity {
                    device,
                    ..Activity::default()
                });
                self.activity.len() - 1
            });
        &mut self.activity[i]
    }

    /// Bytes a second of copies of `kind`, as measured; `None` before one was.
    pub(crate) fn bandwidth(&self, device: Option<Device>, kind: u8) -> Option<u64> {
        self.bandwidth
            .iter()
            .find(|b| b.device == device && b.kind == kind && b.bytes_per_sec > 0)
            .map(|b| b.bytes_per_sec)
    }

    /// A copy that was waited for: `bytes` in `dur` ns.
    pub(crate) fn measure_copy(&mut self, device: Option<Device>, kind: u8, bytes: u64, dur: u64) {
        let rate = (u128::from(bytes) * 1_000_000_000 / u128::from(dur.max(1))) as u64;
        let i = self
            .bandwidth
            .iter()
            .position(|b| b.device == device && b.kind == kind)
            .unwrap_or_else(|| {
                self.bandwidth.push(Bandwidth {
                    device,
                    kind,
                    samples: VecDeque::new(),
                    since_update: 0,
                    bytes_per_sec: 0,
                });
                self.bandwidth.len() - 1
            });
        let b = &mut self.bandwidth[i];
        if b.samples.len() == BANDWIDTH_SAMPLES {
            b.samples.pop_front();
        }
        b.samples.push_back(rate);
        b.since_update += 1;
        // A copy that waited for other work looks slower than it is, none looks faster: near the top, but not the top.
        if b.samples.len() < 16 || b.since_update >= 16 {
            b.since_update = 0;
            let mut sorted: Vec<u64> = b.samples.iter().copied().collect();
            sorted.sort_unstable();
            b.bytes_per_sec = sorted[(sorted.len() - 1) * 9 / 10];
        }
    }
}

/// A device as its poller saw it.
#[derive(Default)]
pub(crate) struct Gpu {
    /// Newest last.
    pub(crate) samples: VecDeque<GpuSample>,
    /// Clocks of samples without throttling, MHz.
    pub(crate) clocks: VecDeque<u32>,
}

impl Gpu {
    /// Median clock while nothing held it back, MHz.
    pub(crate) fn usual_clock(&self) -> Option<u32> {
        let mut c: Vec<u32> = self.clocks.iter().copied().collect();
        c.sort_unstable();
        c.get(c.len() / 2).copied()
    }
}

/// NVML's clock event reasons that do not hold a busy device back: idle, and the clock that somebody set
/// (`nvmlClocksEventReasonGpuIdle` 0x1, `…ApplicationsClocksSetting` 0x2; NVML API reference 12).
pub(crate) const NOT_THROTTLED: u64 = 0x1 | 0x2;

pub(crate) fn throttled(sample: &GpuSample) -> bool {
    sample
        .throttle_reasons
        .is_some_and(|r| r & !NOT_THROTTLED != 0)
}

/// Everything.
pub(crate) struct World {
    pub(crate) processes: QuickMap<ProcessIx, Process>,
    current: QuickMap<Pid, ProcessIx>,
    next_process: u32,
    pub(crate) threads: QuickMap<Thread, Timeline>,
    pub(crate) slices: Vec<VecDeque<Slice>>,
    pub(crate) io: VecDeque<BlockIo>,
    pub(crate) io_seen: bool,
    pub(crate) losses: VecDeque<(Window, Option<Pid>)>,
    pub(crate) paused: Paused,
    pub(crate) gpus: QuickMap<u16, Gpu>,
    pub(crate) names: Capped<Thread, Box<str>>,
    pub(crate) files: Capped<(Pid, i32), Box<str>>,
    caps: Caps,
    pub(crate) evicted: u64,
}

impl World {
    pub(crate) fn new(rules: &Rules) -> World {
        let caps = rules.caps.clone();
        World {
            processes: QuickMap::default(),
            current: QuickMap::default(),
            next_process: 0,
            threads: QuickMap::default(),
            slices: Vec::new(),
            io: VecDeque::new(),
            io_seen: false,
            losses: VecDeque::new(),
            paused: Paused::default(),
            gpus: QuickMap::default(),
            names: Capped::new(caps.names),
            files: Capped::new(caps.files),
            caps,
            evicted: 0,
        }
    }

    /// The life of `pid` that goes on, made when it is new.
    pub(crate) fn process_ix(&mut self, pid: Pid) -> ProcessIx {
        if let Some(ix) = self.current.get(&pid) {
            return *ix;
        }
        let ix = ProcessIx(self.next_process);
        self.next_process += 1;
        self.current.insert(pid, ix);
        self.processes.insert(ix, Process::new(pid, &self.caps));
        ix
    }

    pub(crate) fn process_mut(&mut self, pid: Pid) -> &mut Process {
        let ix = self.process_ix(pid);
        self.processes
            .get_mut(&ix)
            .expect("current processes are kept")
    }

    pub(crate) fn find_process(&self, pid: Pid) -> Option<&Process> {
        self.processes.get(self.current.get(&pid)?)
    }

    pub(crate) fn learn(&mut self, info: Box<ProcessInfo>) {
        let pid = info.incarnation.pid;
        if let Some(p) = self.find_process(pid)
            && let known = p.incarnation().start_ticks
            && known != 0
            && info.incarnation.start_ticks != 0
            && known != info.incarnation.start_ticks
        {
            self.end(pid, info.start.0);
        }
        let p = self.process_mut(pid);
        p.from_start |= info.from_start;
        p.info = Some(info);
    }

    pub(crate) fn lived(&mut self, e: &ProcessEvent) {
        match *e {
            ProcessEvent::Born { parent, child, at } => {
                let child = self.process_mut(child);
                child.parent = Some(parent.pid);
                child.from_start = true;
                child.seen = child.seen.max(at.0);
            }
            ProcessEvent::Exec {
                pid,
                start_ticks,
                at,
            } => {
                let p = self.process_mut(pid);
                p.from_start = true;
                p.start_ticks = start_ticks;
                p.seen = p.seen.max(at.0);
            }
            ProcessEvent::Exit { at, pid, .. } => self.end(pid, at.0),
            ProcessEvent::ThreadBorn { .. }
            | ProcessEvent::ThreadExit { .. }
            | ProcessEvent::OomKill { .. } => {}
        }
    }

    fn end(&mut self, pid: Pid, at: u64) {
        if let Some(ix) = self.current.remove(&pid)
            && let Some(p) = self.processes.get_mut(&ix)
        {
            p.ended = Some(at);
            for a in &mut p.activity {
                if let Some(since) = a.since.take() {
                    a.spans.push_back(window(since, at.max(since)));
                }
            }
        }
    }

    /// The timeline of a thread, which saw something at `end`.
    pub(crate) fn timeline(&mut self, thread: Thread, end: u64) -> &mut Timeline {
        let process = self.process_ix(thread.pid);
        if self.threads.len() >= self.caps.threads && !self.threads.contains_key(&thread) {
            self.evict_thread();
        }
        let t = self.threads.entry(thread).or_default();
        if t.process != process {
            // Another life of these numbers.
            *t = Timeline {
                process,
                ..Timeline::default()
            };
        }
        t.seen = t.seen.max(end);
        t
    }

    fn evict_thread(&mut self) {
        if let Some(oldest) = self.threads.iter().map(|(k, t)| (t.seen, *k)).min() {
            self.threads.remove(&oldest.1);
            self.evicted += 1;
        }
    }

    /// Appends to one of a thread's lists, giving up the oldest when it is full.
    pub(crate) fn bounded<T>(list: &mut VecDeque<T>, item: T, cap: usize) -> Option<T> {
        let lost = if list.len() >= cap {
            list.pop_front()
        } else {
            None
        };
        list.push_back(item);
        lost
    }

    pub(crate) fn call(&mut self, thread: Thread, span: CallSpan) {
        let cap = self.caps.records_per_thread;
        let t = self.timeline(thread, span.end);
        t.first_call.get_or_insert(span.start);
        if let Some(lost) = World::bounded(&mut t.calls, span, cap) {
            t.lost_before = t.lost_before.max(lost.end);
            self.evicted += 1;
        }
    }

    pub(crate) fn off_cpu(&mut self, mut e: OffCpu) {
        e.runnable = e.runnable.min(e.dur);
        e.throttled = e.throttled.min(e.runnable);
        let cap = self.caps.records_per_thread;
        let t = self.timeline(e.thread, e.window().end.0);
        let process = t.process;
        if let Some(lost) = World::bounded(&mut t.off_cpu, e, cap) {
            t.lost_before = t.lost_before.max(lost.window().end.0);
            self.evicted += 1;
        }
        if let Some(p) = self.processes.get_mut(&process) {
            p.has_switches = true;
        }
    }

    pub(crate) fn stretch(&mut self, mut e: Stretch) {
        e.runnable = e.runnable.min(e.dur);
        e.running = e.running.min(e.dur - e.runnable);
        e.throttled = e.throttled.min(e.runnable);
        let cap = self.caps.records_per_thread;
        let t = self.timeline(e.thread, e.start.0 + e.dur);
        let process = t.process;
        if let Some(lost) = World::bounded(&mut t.stretches, e, cap) {
            t.lost_before = t.lost_before.max(lost.start.0 + lost.dur);
            self.evicted += 1;
        }
        if let Some(p) = self.processes.get_mut(&process) {
            p.has_stretches = true;
        }
    }

    pub(crate) fn slice(&mut self, s: Slice) {
        let cpu = s.cpu.0 as usize;
        if cpu >= self.caps.cpus {
            self.evicted += 1;
            return;
        }
        if self.slices.len() <= cpu {
            self.slices.resize_with(cpu + 1, VecDeque::new);
        }
        if World::bounded(&mut self.slices[cpu], s, self.caps.slices_per_cpu).is_some() {
            self.evicted += 1;
        }
    }

    pub(crate) fn block_io(&mut self, e: BlockIo) {
        self.io_seen = true;
        if World::bounded(&mut self.io, e, self.caps.block_ios).is_some() {
            self.evicted += 1;
        }
    }

    pub(crate) fn sample(&mut self, s: GpuSample) {
        let gpu = self.gpus.entry(s.device).or_default();
        let idle = s.throttle_reasons.is_some_and(|r| r & 0x1 != 0);
        if let Some(clock) = s.sm_clock_mhz
            && !throttled(&s)
            && !idle
        {
            World::bounded(&mut gpu.clocks, clock, 64);
        }
        World::bounded(&mut gpu.samples, s, 1_024);
    }

    /// Slices of `cpu` that overlap `window`, newest first: who and the part that both have.
    pub(crate) fn occupants(
        &self,
        cpu: Cpu,
        w: Window,
    ) -> impl Iterator<Item = (Thread, Window)> + '_ {
        self.slices
            .get(cpu.0 as usize)
            .into_iter()
            .flatten()
            .rev()
            .take_while(move |s| s.start.0 + s.dur > w.start.0)
            .filter(|s| s.thread.tid != Tid(0))
            .filter_map(move |s| Some((s.thread, Window::at(s.start, s.dur).intersect(&w)?)))
    }

    /// Whether `pid` is part of the job that `of` belongs to.
    pub(crate) fn in_job(&self, pid: Pid, of: Pid) -> bool {
        if pid == of {
            return true;
        }
        let mut at = pid;
        for _ in 0..16 {
            let Some(p) = self.find_process(at) else {
                return false;
            };
            if p.has_calls || p.info.as_ref().is_some_and(|i| i.in_job) {
                return true;
            }
            match p.parent.or(p.info.as_ref().map(|i| i.parent)) {
                Some(parent) if parent == of => return true,
                Some(parent) => at = parent,
                None => return false,
            }
        }
        false
    }

    /// Name of a thread, or of its process; empty when neither is known.
    pub(crate) fn name(&self, thread: Thread) -> &str {
        if let Some(n) = self.names.get(&thread) {
            return n;
        }
        self.process_name(thread.pid)
    }

    /// Name of a process's main thread; empty when it is not known.
    pub(crate) fn process_name(&self, pid: Pid) -> &str {
        if let Some(n) = self.names.get(&Thread {
            pid,
            tid: Tid(pid.0),
        }) {
            return n;
        }
        self.find_process(pid)
            .and_then(|p| p.info.as_ref())
            .map_or("", |i| &i.name)
    }

    /// Drops what no unit that is open at `now` can need. `open`: where the oldest unit not yet taken apart begins.
    pub(crate) fn prune(&mut self, now: u64, open: u64, reach: u64) {
        // A unit needs nothing from before its begin; one that goes on for very long, of other threads only the end.
        let since = |t: &Timeline| {
            let p = self.processes.get(&t.process);
            let inferred = match (&t.lead, p) {
                (Some(lead), _) => lead.since,
                (None, Some(p)) if p.starts() => t.first_call.unwrap_or(u64::MAX),
                _ => u64::MAX,
            };
            inferred.min(p.map_or(u64::MAX, |p| p.named.needs_from(now)))
        };
        let oldest = self.threads.values().map(since).min().unwrap_or(u64::MAX);
        let before = oldest.min(open).clamp(now.saturating_sub(reach), now);
        let own: Vec<(Thread, u64)> = self.threads.iter().map(|(k, t)| (*k, since(t))).collect();
        for (thread, since) in own {
            if let Some(t) = self.threads.get_mut(&thread) {
                t.prune(since.min(before).max(t.lost_before));
            }
        }
        for cpu in &mut self.slices {
            while cpu.front().is_some_and(|s| s.start.0 + s.dur <= before) {
                cpu.pop_front();
            }
        }
        while self.io.front().is_some_and(|e| e.start.0 + e.dur <= before) {
            self.io.pop_front();
        }
        while self.losses.front().is_some_and(|(w, _)| w.end.0 <= before) {
            self.losses.pop_front();
        }
        self.paused.prune(before);
        for p in self.processes.values_mut() {
            p.named.prune(before, now);
            for a in &mut p.activity {
                while a.spans.front().is_some_and(|w| w.end.0 <= before) {
                    a.spans.pop_front();
                }
            }
            while p
                .allocations
                .front()
                .is_some_and(|(_, w)| w.end.0 <= before)
            {
                p.allocations.pop_front();
            }
        }
        self.threads
            .retain(|_, t| t.lead.is_some() || t.seen > before);
        let ended: Vec<ProcessIx> = self
            .processes
            .iter()
            .filter(|(_, p)| p.ended.is_some_and(|at| at < before))
            .map(|(ix, _)| *ix)
            .collect();
        for ix in ended {
            self.processes.remove(&ix);
            self.threads.retain(|_, t| t.process != ix);
        }
        // Processes that never said good-bye: the longest silent go first.
        while self.processes.len() > self.caps.processes {
            let Some((_, ix)) = self.processes.iter().map(|(ix, p)| (p.seen, *ix)).min() else {
                break;
            };
            if let Some(p) = self.processes.remove(&ix) {
                self.current.retain(|_, at| *at != ix);
                self.threads.retain(|t, _| t.pid != p.pid);
                self.evicted += 1;
            }
        }
    }
}

pub(crate) fn window(start: u64, end: u64) -> Window {
    Window {
        start: BootNanos(start),
        end: BootNanos(end),
    }
}
