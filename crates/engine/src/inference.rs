//! Steps of inference servers against what is usual for them: phases, baselines, outliers, and what follows from an outlier.
//!
//! A server's iteration (one engine step, not one request) is seen from outside as a *step*: from the end of one wait for a
//! stream to the end of the next ([`process`]). What was launched in it says what it did, its *phase* ([`phase`]). Steps of one
//! process, stream and phase are a *workload*, with a mean and a 95th percentile that forget ([`sketch`], [`workload`]); a step of
//! 1.5 such percentiles or more is an *outlier*. It is told with what the device and the process's memory did meanwhile, and it
//! makes the [`sampler`] keep every event for a while. Beside that, processes that launch less while others take their CPUs are
//! told once a second ([`straggle`]).
//!
//! Pure and by event time: the same events in the same order give the same outliers with the same ids. [`crate::Engine`] puts
//! events in order, and feeds what it finds back here, so that a process in trouble is not judged twice.
//!
//! What it deliberately does not know: units and blame (the engine's), names of metrics and shapes of messages, what the
//! server says of itself, and how long anything took on the device.

mod fingerprint;
mod ids;
mod lineage;
mod lru;
mod phase;
mod process;
mod sampler;
mod settings;
mod sketch;
mod straggle;
mod throttle;
mod workload;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use sha2::{Digest as _, Sha256};
use warptrace_model::inference::{
    BaselineShift, CgroupHash, Degradation, InferenceState, KV_AGE_BOUNDS_MILLIS, KvAgeHistogram,
    LeftOutSteps, Outlier, Phase, Straggle, WorkloadKey,
};
use warptrace_model::record::OpId;
use warptrace_model::{
    BootNanos, Call, Event, Incarnation, LossReason, Pid, ProcessEvent, ProcessInfo, Severity,
    Window,
};

use crate::allocations;
use crate::paused::Paused;
use crate::world::NOT_THROTTLED;
use lru::Lru;
use process::{OpRole, Process, Step, Waited};
use sampler::Sampler;
use straggle::Slices;
use throttle::Devices;
use workload::{Verdict, Workload};

pub use phase::PhaseRules;
pub use sampler::Admission;
pub use settings::{InferenceCaps, InferenceSettings, KvLineage, SettingsError, ShiftRules};

const TICK_NANOS: u64 = 1_000_000_000;
/// After so many ticks with nothing between, nothing more comes of them: a straggler is forgotten after thirty.
const IDLE_TICKS: u32 = 40;
/// A process's workloads are told of for so long after its end, ns: exporters look once in ten seconds.
const AFTERLIFE_NANOS: u64 = 60_000_000_000;
/// Processes that ended, losses, and processes whose names are known.
const ENDED: usize = 1_024;
const LOSSES: usize = 256;
const KNOWN: usize = 1_024;

/// What is new since the last drain, each in the order in which it was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InferenceOutput {
    pub outliers: Vec<Outlier>,
    /// Slow-downs that became the usual.
    pub shifts: Vec<BaselineShift>,
    pub degradations: Vec<Degradation>,
    pub straggles: Vec<Straggle>,
}

/// What is known of a process before it makes a call.
#[derive(Default)]
struct Known {
    start_ticks: u64,
    cgroup: Option<CgroupHash>,
    comm: Box<str>,
}

/// Follows all processes that use a device. Holds all its state.
pub struct Inference {
    settings: InferenceSettings,
    roles: Vec<OpRole>,
    known: Lru<Pid, Known>,
    processes: Lru<Pid, Process>,
    workloads: Lru<WorkloadKey, Workload>,
    /// Lives that are over, by when.
    ended: VecDeque<(u64, Incarnation)>,
    devices: Devices,
    slices: Slices,
    sampler: Sampler,
    capture: Paused,
    losses: VecDeque<(Window, Option<Pid>)>,
    /// Live allocations that are followed.
    allocations: usize,
    now: u64,
    next_tick: Option<u64>,
    outliers: VecDeque<Outlier>,
    shifts: VecDeque<BaselineShift>,
    degradations: VecDeque<Degradation>,
    straggles: VecDeque<Straggle>,
    /// Counts of [`InferenceState`]; its other fields are made when it is asked for.
    counted: Counted,
}

#[derive(Default)]
struct Counted {
    steps: u64,
    phases: [u64; 4],
    outliers: [u64; 3],
    throttled: [u64; 3],
    paused_steps: u64,
    shifts: u64,
    left_out: LeftOutSteps,
    kv_ages: KvAgeHistogram,
    dropped: u64,
    evicted: u64,
    evicted_allocations: u64,
}

/// The key under which processes of one container are told together, of a path as in [`ProcessInfo::cgroup`]; `None` for none.
pub fn cgroup_hash(path: &str) -> Option<CgroupHash> {
    if path.is_empty() {
        return None;
    }
    let digest = Sha256::digest(path.as_bytes());
    let first = digest.iter().take(8);
    Some(CgroupHash(first.fold(0, |h, b| h << 8 | u64::from(*b))))
}

impl Inference {
    /// The largest relative distance of a 95th percentile from the exact one.
    pub const P95_RELATIVE_ERROR: f64 = sketch::RELATIVE_ERROR;

    /// # Errors
    /// [`SettingsError`], for the first setting out of its range.
    pub fn new(settings: InferenceSettings) -> Result<Inference, SettingsError> {
        settings.validate()?;
        let caps = settings.caps;
        Ok(Inference {
            roles: (0..)
                .map_while(OpId::from_index)
                .map(process::op_role)
                .collect(),
            known: Lru::new(KNOWN),
            processes: Lru::new(caps.processes),
            workloads: Lru::new(caps.workloads),
            ended: VecDeque::new(),
            devices: Devices::default(),
            slices: Slices::default(),
            sampler: Sampler::new(&settings),
            capture: Paused::default(),
            losses: VecDeque::new(),
            allocations: 0,
            now: 0,
            next_tick: None,
            outliers: VecDeque::new(),
            shifts: VecDeque::new(),
            degradations: VecDeque::new(),
            straggles: VecDeque::new(),
            counted: Counted::default(),
            settings,
        })
    }

    pub fn settings(&self) -> &InferenceSettings {
        &self.settings
    }

    /// Takes an event whose place in time is `at`. Events come in the order of time; one that does not costs its own steps only.
    /// Cost: O(1), for a wait that ends a step O(buckets of a sketch), for one of the whole device O(streams).
    pub fn take(&mut self, at: BootNanos, event: &Event) {
        self.advance(at);
        match event {
            Event::Call(c) => self.call(c),
            Event::OffCpu(o) => {
                if let Some(p) = self.processes.get_mut(&o.thread.pid) {
                    p.off_cpu(o);
                    if o.preempted {
                        p.straggler.preempted(o, &self.slices);
                    }
                }
            }
            Event::Slice(s) => self.slices.ran(*s),
            Event::Process(e) => self.lived(e),
            Event::ProcessInfo(p) => self.learn(p),
            Event::ThreadName(n) if n.thread.tid.0 == n.thread.pid.0 => {
                let pid = n.thread.pid;
                self.known.touch(pid, self.now, Known::default).comm = n.name.clone();
                if let Some(p) = self.processes.get_mut(&pid) {
                    p.comm = n.name.clone();
                }
            }
            Event::Gpu(g) => self.devices.sample(g),
            Event::Capture(c) => self.capture.switched(c.at.0, c.on),
            Event::Lost(l) => {
                let missing = !matches!(l.reason, LossReason::StoreFailed | LossReason::Evicted);
                if let Some(w) = l.window
                    && missing
                {
                    if self.losses.len() == LOSSES {
                        self.losses.pop_front();
                    }
                    self.losses.push_back((w, l.pid));
                    for (pid, p) in self.processes.iter_mut() {
                        if l.pid.is_none_or(|lost| lost == *pid) {
                            p.straggler.lost();
                        }
                    }
                }
            }
            Event::ThreadName(_)
            | Event::InFlight(_)
            | Event::BlockIo(_)
            | Event::Reclaim(_)
            | Event::Stretch(_)
            | Event::Retransmit(_)
            | Event::FilePath(_)
            | Event::Counts(_)
            | Event::System(_)
            | Event::Annotation(_) => {}
        }
    }

    /// All events up to `now` were taken: does what time alone brings about.
    pub fn advance(&mut self, now: BootNanos) {
        let now = now.0;
        let mut ticks = 0;
        // At whole seconds of the clock, so that it does not matter which event came first.
        let next = now / TICK_NANOS * TICK_NANOS;
        let mut tick = *self
            .next_tick
            .get_or_insert(next.saturating_add(TICK_NANOS));
        while tick < now {
            self.tick(tick);
            ticks += 1;
            tick = tick.saturating_add(TICK_NANOS);
            if ticks >= IDLE_TICKS && tick < now {
                tick = tick.saturating_add((now - 1 - tick) / TICK_NANOS * TICK_NANOS);
            }
        }
        self.next_tick = Some(tick);
        self.now = self.now.max(now);
    }

    /// A finding of this severity about a process was fresh at `at`.
    pub fn found(&mut self, pid: Pid, severity: Severity, at: BootNanos) {
        if self
            .settings
            .pause_on
            .is_some_and(|level| severity >= level)
            && let Some(p) = self.processes.get_mut(&pid)
        {
            let until = at.plus(self.settings.pause_nanos);
            p.paused_until = p.paused_until.max(until.0);
            self.sampler.trouble(Window {
                start: at,
                end: until,
            });
        }
    }

    /// Whether an event is worth storing, by what is known so far. Counts what it answers.
    pub fn admit(&mut self, event: &Event) -> Admission {
        self.sampler.admit(event)
    }

    /// What is new since the last drain.
    pub fn drain(&mut self) -> InferenceOutput {
        InferenceOutput {
            outliers: self.outliers.drain(..).collect(),
            shifts: self.shifts.drain(..).collect(),
            degradations: self.degradations.drain(..).collect(),
            straggles: self.straggles.drain(..).collect(),
        }
    }

    /// All counters and gauges. Cost: O(workloads).
    pub fn state(&self) -> InferenceState {
        let c = &self.counted;
        let mut workloads: Vec<_> = self
            .workloads
            .iter()
            .map(|(_, w)| w.state().clone())
            .collect();
        workloads.sort_unstable_by_key(|w| w.key);
        InferenceState {
            workloads,
            steps: c.steps,
            phases: c.phases,
            outliers: c.outliers,
            throttled_outliers: c.throttled,
            paused_steps: c.paused_steps,
            shifts: c.shifts,
            left_out: c.left_out,
            kv_ages: c.kv_ages.clone(),
            sampler: self.sampler.state(BootNanos(self.now)),
            last_degradation: self.sampler.last,
            degradations: self.sampler.degradations,
            admitted: self.sampler.admitted,
            admitted_weight: self.sampler.admitted_weight,
            shed: self.sampler.shed,
            dropped: c.dropped,
            evicted: self.evicted(),
        }
    }

    /// Processes take their counts with them when they go: what was told is never taken back.
    fn evicted(&self) -> u64 {
        let of_processes: u64 = self.processes.iter().map(|(_, p)| p.evicted()).sum();
        let all = self.known.evicted
            + self.processes.evicted
            + self.workloads.evicted
            + self.counted.evicted_allocations
            + of_processes;
        all.max(self.counted.evicted)
    }

    fn tick(&mut self, now: u64) {
        self.now = self.now.max(now);
        let forget = now.saturating_sub(self.settings.forget_nanos);
        let mut told = Vec::new();
        let mut allocations = 0;
        for (pid, p) in self.processes.iter_mut() {
            allocations += p.lineage.len();
            if p.seen < forget {
                if p.has_work_state() {
                    p.forget_work(&self.settings);
                }
            } else {
                p.forget_idle(forget);
            }
            if let Some(second) = p.straggler.second(now) {
                let unix = self
                    .settings
                    .unix_of_boot_nanos
                    .saturating_add(second.since);
                told.push(Straggle {
                    id: ids::straggle(pid.0, unix),
                    at: BootNanos(now),
                    process: p.life,
                    comm: p.comm.to_string(),
                    state: second.state,
                    drop_millis: second.drop_millis,
                    preemptions: second.preemptions,
                    preempted_by: second.preempted_by,
                });
            }
        }
        told.sort_unstable_by_key(|s| s.process);
        let cap = self.settings.caps.messages;
        for s in told {
            queue(&mut self.straggles, s, cap, &mut self.counted.dropped);
        }
        self.allocations = allocations;
        let over = now.saturating_sub(AFTERLIFE_NANOS);
        while self.ended.front().is_some_and(|(at, _)| *at < over) {
            self.bury(|(at, _)| *at < over);
        }
        while let Some((w, _)) = self.losses.front()
            && w.end.0.saturating_add(self.settings.max_step_nanos) < now
        {
            self.losses.pop_front();
        }
        self.counted.evicted = self.evicted();
    }

    /// Forgets the workloads of lives that are over.
    fn bury(&mut self, which: impl Fn(&(u64, Incarnation)) -> bool) {
        let mut gone = Vec::new();
        self.ended.retain(|e| {
            let over = which(e);
            if over {
                gone.push(e.1);
            }
            !over
        });
        self.workloads.retain(|k, _| !gone.contains(&k.process));
    }

    fn lived(&mut self, e: &ProcessEvent) {
        match *e {
            ProcessEvent::Exit { at, pid, .. } => {
                self.known.remove(&pid);
                self.end(pid, at.0);
            }
            ProcessEvent::Born { at, child, .. } => {
                // The end of who had this number before was not seen.
                if let Some(life) = self.processes.get(&child).map(|p| p.life) {
                    let stale = |k: &Known| k.start_ticks == life.start_ticks;
                    if self.known.get(&child).is_some_and(stale) {
                        self.known.remove(&child);
                    }
                    self.end(child, at.0);
                }
            }
            ProcessEvent::Exec { pid, .. } => {
                if let Some(p) = self.processes.get_mut(&pid) {
                    p.forget_work(&self.settings);
                    p.lineage = Default::default();
                }
            }
            ProcessEvent::ThreadBorn { .. }
            | ProcessEvent::ThreadExit { .. }
            | ProcessEvent::OomKill { .. } => {}
        }
    }

    fn end(&mut self, pid: Pid, at: u64) {
        let Some(p) = self.processes.remove(&pid) else {
            return;
        };
        self.allocations = self.allocations.saturating_sub(p.lineage.len());
        self.counted.evicted = self.counted.evicted.max(self.evicted() + p.evicted());
        if self.ended.len() == ENDED
            && let Some((oldest, _)) = self.ended.front().copied()
        {
            self.bury(|(at, _)| *at <= oldest);
        }
        self.ended.push_back((at, p.life));
    }

    fn learn(&mut self, info: &ProcessInfo) {
        let pid = info.incarnation.pid;
        let ticks = info.incarnation.start_ticks;
        let cgroup = cgroup_hash(&info.cgroup);
        let k = self.known.touch(pid, self.now, Known::default);
        *k = Known {
            start_ticks: ticks,
            cgroup,
            comm: info.name.as_str().into(),
        };
        let Some(p) = self.processes.get_mut(&pid) else {
            return;
        };
        let known = p.life.start_ticks;
        if known != 0 && ticks != 0 && known != ticks {
            self.end(pid, info.start.0);
            return;
        }
        if ticks != 0 {
            p.life.start_ticks = ticks;
        }
        p.cgroup = cgroup.or(p.cgroup);
        p.comm = info.name.as_str().into();
    }

    fn call(&mut self, c: &Call) {
        if c.flags.nested() && !c.flags.nested_in_library() {
            // Part of the call around it.
            return;
        }
        let pid = c.thread.pid;
        let over = |e: &(u64, Incarnation)| e.1.pid == pid;
        if self.ended.iter().any(over) && self.processes.get(&pid).is_none() {
            // Another life of this number: it may not even be known as such.
            self.bury(over);
        }
        let (known, settings) = (&self.known, &self.settings);
        let p = self.processes.touch(pid, c.end().0, || {
            let mut p = Process::new(pid, settings);
            if let Some(k) = known.get(&pid) {
                p.life.start_ticks = k.start_ticks;
                p.cgroup = k.cgroup;
                p.comm = k.comm.clone();
            }
            p
        });
        let role = self.roles[c.op.index()];
        if let Some(kv) = self.settings.kv_lineage
            && c.ret == 0
        {
            let before = p.lineage.len();
            match role.memory {
                allocations::Role::Takes if c.arg1 != 0 => {
                    // When all are many, this one's oldest make room.
                    let full = self.allocations >= self.settings.caps.allocations;
                    let cap = if full {
                        before.clamp(1, kv.max_per_process)
                    } else {
                        kv.max_per_process
                    };
                    self.counted.evicted_allocations += p.lineage.taken(c.arg1, c.end().0, cap);
                }
                allocations::Role::GivesBack => p.lineage.given_back(c.arg0),
                _ => {}
            }
            self.allocations = (self.allocations + p.lineage.len()).saturating_sub(before);
        }
        match p.call(c, role, &self.settings) {
            None => {}
            Some(Waited::First) => self.counted.left_out.first += 1,
            Some(Waited::UnknownEvent) => self.counted.left_out.unknown_event += 1,
            Some(Waited::Step(step)) => self.step(pid, &step),
        }
    }

    fn step(&mut self, pid: Pid, step: &Step) {
        let Some(p) = self.processes.get_mut(&pid) else {
            return;
        };
        let (w, end) = (step.window, step.window.end.0);
        let left_out = &mut self.counted.left_out;
        if w.nanos() == 0 || w.nanos() > self.settings.max_step_nanos {
            left_out.length += 1;
            return;
        }
        // A wait may be among what is missing, or the step's first work.
        let whole = crate::world::window(step.since.min(end), end);
        let lost = |(l, of): &(Window, Option<Pid>)| {
            of.is_none_or(|of| of == pid) && l.start < whole.end && l.end > whole.start
        };
        if self.losses.iter().any(lost) {
            left_out.lost_records += 1;
            return;
        }
        if p.was_stopped_in(w) || self.capture.is_in(whole) {
            left_out.paused += 1;
            return;
        }
        let rules = self.settings.phases.as_ref();
        let phase = rules.map(|r| phase::classify(&step.observed, r));
        let key = WorkloadKey {
            cgroup: p.cgroup,
            process: p.life,
            stream: step.stream,
            phase,
            device: step.device,
            fingerprint: step.fingerprint,
        };
        self.counted.steps += 1;
        if let Some(phase) = phase {
            self.counted.phases[phase as usize] += 1;
        }
        let paused = end < p.paused_until;
        let settings = &self.settings;
        let workload = self
            .workloads
            .touch(key, end, || Workload::new(key, end, settings));
        let (verdict, shift) = workload.step(end, w.nanos(), paused, settings);
        let messages = self.settings.caps.messages;
        if let Some(shift) = shift {
            self.counted.shifts += 1;
            self.sampler.ordinary(&key);
            queue(&mut self.shifts, shift, messages, &mut self.counted.dropped);
        }
        match verdict {
            Verdict::Learnt => {}
            Verdict::Paused => self.counted.paused_steps += 1,
            Verdict::Ordinary => self.sampler.ordinary(&key),
            Verdict::Outlier {
                bucket,
                p95,
                mean,
                first,
            } => {
                let held = self.devices.during(w, pid, step.device);
                self.counted.outliers[bucket as usize] += 1;
                if held.reasons & !NOT_THROTTLED != 0 {
                    workload.throttled(bucket);
                    self.counted.throttled[bucket as usize] += 1;
                }
                let kv_ages_millis = match self.settings.kv_lineage {
                    Some(kv) if phase.is_none_or(|p| p == Phase::Decode) => {
                        p.lineage.oldest(kv.top_n, end)
                    }
                    _ => Vec::new(),
                };
                for age in &kv_ages_millis {
                    self.counted.kv_ages.record(*age, &KV_AGE_BOUNDS_MILLIS);
                }
                let unix = |at: BootNanos| self.settings.unix_of_boot_nanos.saturating_add(at.0);
                let outlier = Outlier {
                    id: ids::event(pid.0, step.stream.0, unix(w.end)),
                    span: ids::span(pid.0, step.stream.0, unix(w.start)),
                    key,
                    at: w.end,
                    step_nanos: w.nanos(),
                    p95_nanos: p95,
                    mean_nanos: mean,
                    bucket,
                    tid: step.tid,
                    op: step.op,
                    launches: step.observed.launches,
                    copied_bytes: step.observed.copied_bytes,
                    memory_calls: u32::try_from(step.observed.memory_calls).unwrap_or(u32::MAX),
                    throttle_reasons: held.reasons,
                    min_sm_clock_mhz: held.min_clock_mhz,
                    kv_ages_millis,
                    first_in_minute: first,
                };
                let dropped = &mut self.counted.dropped;
                if let Some(d) = self.sampler.outlier(&outlier) {
                    queue(&mut self.degradations, d, messages, dropped);
                }
                let cap = self.settings.caps.outliers;
                queue(&mut self.outliers, outlier, cap, dropped);
            }
        }
    }
}

/// Appends, dropping the oldest of a full queue.
fn queue<T>(to: &mut VecDeque<T>, item: T, cap: usize, dropped: &mut u64) {
    if to.len() >= cap.max(1) {
        to.pop_front();
        *dropped += 1;
    }
    to.push_back(item);
}
