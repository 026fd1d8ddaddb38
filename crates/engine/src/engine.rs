//! The engine: takes events in, in any order, and gives units and findings out.
//!
//! Events wait in the merge window, are then taken in the order of time, and become facts ([`crate::world`]). What is due
//! at a time (a unit to be measured, one to be judged, a tick) is done after all events up to that time and before the
//! next: so the outcome depends on the events alone, not on when or in which portions they came.

pub(crate) mod calls;
mod said;

use std::collections::{BTreeMap, VecDeque};

use warptrace_model::record::OpId;
use warptrace_model::{
    BootNanos, Device, Event, Finding, Gap, GapCode, Incarnation, Loss, LossReason, Pid,
    ProcessEvent, Profile, Unit,
};

use crate::allocations::{Allocations, AllocatorLevel};
use crate::inference::{Inference, InferenceOutput};
use crate::judge::Judge;
use crate::order::MergeBuffer;
use crate::partition::Partition;
use crate::rules::{self, Retransmits};
use crate::stats::{OpStats, Stats};
use crate::thresholds::Rules;
use crate::units::{self, Closed, LeftOut, Measured};
use crate::world::World;

/// What is new since the last drain.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Output {
    pub units: Vec<Unit>,
    /// Memory of each process that takes any, by device, at each sample of the machine and at its end.
    pub memory: Vec<MemorySample>,
    /// New ones, and those that changed, under the id they had. The most severe first, then by excess.
    pub findings: Vec<Finding>,
    /// Differences in count, by code and detail.
    pub gaps: Vec<Gap>,
    /// What the engine itself had to leave out: late events, evicted entries.
    pub losses: Vec<Loss>,
    /// Of an engine that was made with [`Engine::with_inference`].
    pub inference: InferenceOutput,
}

/// What is known of a process's memory on a device at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySample {
    pub at: BootNanos,
    pub process: Incarnation,
    pub device: Option<Device>,
    /// By its own calls.
    pub allocator: AllocatorLevel,
    /// By the driver, of the same moment: in use by this process; in use by all; the device's size.
    pub process_used_bytes: Option<u64>,
    pub device_used_bytes: Option<u64>,
    pub device_total_bytes: Option<u64>,
    /// The process's last one.
    pub last: bool,
}

/// Turns events into units, findings and statistics. Holds all its state: to cut a recording, keep the value.
pub struct Engine {
    rules: Rules,
    order: MergeBuffer,
    world: World,
    stats: Stats,
    allocations: Allocations,
    memory: Vec<MemorySample>,
    inference: Option<Inference>,
    judge: Judge,
    retransmits: Retransmits,
    roles: Vec<calls::Role>,
    /// Units to be measured, by when.
    closed: VecDeque<(u64, Closed)>,
    /// Units to be judged, by when and in the order in which they were measured.
    measured: BTreeMap<(u64, u64), Measured>,
    sequence: u64,
    /// End of the first event.
    began: Option<u64>,
    next_tick: u64,
    next_steady: u64,
    since_prune: u32,
    scratch: Partition,
    gaps: BTreeMap<(GapCode, String), u64>,
    late: u64,
    malformed: u64,
    told_evicted: u64,
}

const TICK_NANOS: u64 = 1_000_000_000;
/// After so many ticks with nothing between, all that time alone brings about has happened: the longest is a minute's.
const IDLE_TICKS: u32 = 70;
/// Events between two clean-ups: half of what is remembered of a thread, so that one thread's calls alone fill no list with what
/// nobody needs.
const PRUNE_EVENTS: u32 = 32_768;

impl Engine {
    pub fn new(rules: Rules) -> Engine {
        Engine {
            world: World::new(&rules),
            stats: Stats::new(rules.caps.ops),
            allocations: Allocations::default(),
            memory: Vec::new(),
            inference: None,
            judge: Judge::new(),
            order: MergeBuffer::default(),
            retransmits: Retransmits::default(),
            roles: (0..)
                .map_while(OpId::from_index)
                .map(calls::Role::of)
                .collect(),
            closed: VecDeque::new(),
            measured: BTreeMap::new(),
            sequence: 0,
            began: None,
            next_tick: u64::MAX,
            next_steady: u64::MAX,
            since_prune: 0,
            scratch: Partition::default(),
            gaps: BTreeMap::new(),
            late: 0,
            malformed: 0,
            told_evicted: 0,
            rules,
        }
    }

    /// An engine that also follows the steps of inference servers.
    pub fn with_inference(rules: Rules, inference: Inference) -> Engine {
        Engine {
            inference: Some(inference),
            ..Engine::new(rules)
        }
    }

    pub fn inference(&self) -> Option<&Inference> {
        self.inference.as_ref()
    }

    /// For [`Inference::admit`].
    pub fn inference_mut(&mut self) -> Option<&mut Inference> {
        self.inference.as_mut()
    }

    /// Takes an event, in any order within the merge window. One that comes later, or whose time is past any machine's
    /// uptime, is counted and left out. Cost: amortised O(log n) in the events that wait.
    pub fn push(&mut self, event: Event) {
        match self.order.push(event) {
            Ok(()) => {}
            Err(LossReason::Late) => self.late += 1,
            Err(_) => self.malformed += 1,
        }
    }

    /// It is `now` on the boot clock: judges all that ended before `now` less the merge window.
    pub fn advance(&mut self, now: BootNanos) {
        let cutoff = now.0.saturating_sub(self.rules.merge_window_nanos);
        self.take_up_to(cutoff);
        self.run_due(cutoff);
        self.world.paused.lasted(cutoff, false);
        if let Some(i) = &mut self.inference {
            i.advance(BootNanos(cutoff));
        }
    }

    /// The recording ends: judges everything, ends incidents, and tells what was always slow and how the start was.
    pub fn finish(&mut self, end: BootNanos) {
        let end = self.order.last().map_or(end, |last| last.max(end));
        self.take_up_to(end.0);
        self.run_due(end.0);
        self.world.paused.lasted(end.0, true);
        if let Some(i) = &mut self.inference {
            i.advance(end);
        }
        while let Some((_, c)) = self.closed.pop_front() {
            self.measure(&c);
        }
        let unended = |p: &mut crate::world::Process| p.named.unended();
        let processes = self.world.processes.values_mut();
        for _ in 0..processes.map(unended).filter(|u| *u).count() {
            self.step_without_end();
        }
        while let Some((_, m)) = self.measured.pop_first() {
            self.judge_unit(m);
        }
        self.judge
            .no_more_units(&mut self.world, &self.rules, |_| true);
        self.judge.finish(&self.world, &self.rules);
        self.judge.steady(&self.world, &self.rules);
        let recording = self.began.map_or(0, |b| end.0.saturating_sub(b));
        self.judge.starts(&self.world, &self.rules, recording);
    }

    /// What is new since the last drain.
    pub fn drain(&mut self) -> Output {
        let mut losses = Vec::new();
        let mut lost = |reason, count| {
            if count > 0 {
                losses.push(Loss {
                    source: "engine",
                    reason,
                    count,
                    window: None,
                    pid: None,
                });
            }
        };
        let paused = self.world.paused.tell();
        if paused > 0 {
            self.gap(GapCode::CapturePaused, "capture was switched off", paused);
        }
        let late = std::mem::take(&mut self.late);
        let evicted = self.evicted() - self.told_evicted;
        self.told_evicted += evicted;
        lost(LossReason::Late, late);
        lost(LossReason::Malformed, std::mem::take(&mut self.malformed));
        lost(LossReason::Evicted, evicted);
        if late > 0 {
            self.gap(
                GapCode::LateRecords,
                "events that came after their time was judged",
                late,
            );
        }
        if evicted > 0 {
            self.gap(
                GapCode::Evicted,
                "entries of bounded tables of the engine",
                evicted,
            );
        }
        Output {
            units: std::mem::take(&mut self.judge.units),
            memory: std::mem::take(&mut self.memory),
            findings: self.judge.drain(&self.world, &self.rules),
            gaps: std::mem::take(&mut self.gaps)
                .into_iter()
                .map(|((code, detail), count)| Gap {
                    code,
                    detail,
                    count,
                })
                .collect(),
            losses,
            inference: self
                .inference
                .as_mut()
                .map(Inference::drain)
                .unwrap_or_default(),
        }
    }

    /// The usual unit of each key so far, by key. A class of fewer than ten units is in [`UnitKey::OTHER`].
    ///
    /// [`UnitKey::OTHER`]: warptrace_model::UnitKey::OTHER
    pub fn profile(&self) -> Vec<Profile> {
        self.judge.profile()
    }

    /// Calls by (process, device, op) since the start, by key.
    pub fn ops(&self) -> Vec<OpStats> {
        self.stats.all()
    }

    /// The same over the last ten seconds, as far as events were taken.
    pub fn ops_window(&self) -> Vec<OpStats> {
        self.stats.window()
    }

    /// Records held for units to come.
    #[cfg(test)]
    pub(crate) fn records_held(&self) -> usize {
        let threads = self.world.threads.values();
        threads
            .map(|t| t.calls.len() + t.off_cpu.len() + t.stretches.len())
            .sum::<usize>()
            + self
                .world
                .slices
                .iter()
                .map(std::collections::VecDeque::len)
                .sum::<usize>()
            + self.closed.len()
            + self.measured.len()
    }

    fn evicted(&self) -> u64 {
        let work: u64 = self
            .world
            .processes
            .values()
            .map(|p| p.work.evicted())
            .sum();
        // Processes take their counts with them when they go: what was told is never taken back.
        (self.world.evicted
            + self.world.names.evicted
            + self.world.files.evicted
            + self.stats.evicted
            + self.judge.evicted
            + work)
            .max(self.told_evicted)
    }

    fn gap(&mut self, code: GapCode, detail: &str, count: u64) {
        *self.gaps.entry((code, detail.to_owned())).or_default() += count;
    }

    fn take_up_to(&mut self, cutoff: u64) {
        let ready = self.order.take(cutoff);
        for (at, event) in &ready {
            self.run_due(*at);
            self.take(*at, event);
        }
        self.order.recycle(ready);
    }

    /// Does what is due before `now`.
    fn run_due(&mut self, now: u64) {
        let mut idle = 0;
        loop {
            let close = self.closed.front().map_or(u64::MAX, |(at, _)| *at);
            let judge = self
                .measured
                .first_key_value()
                .map_or(u64::MAX, |((at, _), _)| *at);
            let due = close.min(judge).min(self.next_tick);
            if due >= now {
                return;
            }
            if close == due {
                if let Some((_, c)) = self.closed.pop_front() {
                    self.measure(&c);
                }
            } else if judge == due {
                if let Some((_, m)) = self.measured.pop_first() {
                    self.judge_unit(m);
                }
            } else {
                self.tick(due);
                idle += 1;
                let next = close.min(judge).min(now);
                if idle >= IDLE_TICKS && next > self.next_tick {
                    // Nothing more can come of ticks: to the last one before something happens.
                    self.next_tick += (next - 1 - self.next_tick) / TICK_NANOS * TICK_NANOS;
                }
                continue;
            }
            idle = 0;
        }
    }

    fn tick(&mut self, now: u64) {
        self.next_tick = now + TICK_NANOS;
        self.judge.tick(now, &self.world, &self.rules);
        let troubles = self.judge.troubles();
        if let Some(i) = &mut self.inference {
            for (pid, severity, at) in troubles {
                i.found(pid, severity, BootNanos(at));
            }
        }
        let world = &mut self.world;
        let mut facts = Vec::new();
        let mut ended = Vec::new();
        for (ix, p) in &mut world.processes {
            let pid = p.pid;
            let mut unused: Vec<_> = p
                .execs
                .iter_mut()
                .filter_map(|(handle, g)| {
                    rules::graph_unused(pid, *handle, g, now, &self.rules.fact)
                })
                .collect();
            facts.append(&mut unused);
            for a in &mut p.activity {
                let over = a
                    .last_launch
                    .saturating_add(self.rules.device.forgotten_nanos);
                if let Some(since) = a.since
                    && over < now
                {
                    a.since = None;
                    World::bounded(
                        &mut a.spans,
                        crate::world::window(since, over.max(since)),
                        4_096,
                    );
                }
            }
            // Its last units are judged by now.
            let settled = self.rules.settle_nanos + 2 * self.rules.sample_reach_nanos;
            if p.ended.is_some_and(|at| at.saturating_add(settled) < now) {
                ended.push(*ix);
            }
        }
        for f in facts {
            let f = rules::finding(&self.world, f);
            self.judge.tell(f);
        }
        if !ended.is_empty() {
            self.judge
                .no_more_units(&mut self.world, &self.rules, |k| ended.contains(&k.process));
        }
        if now >= self.next_steady {
            self.next_steady = now + self.rules.steady.period_nanos;
            self.judge.steady(&self.world, &self.rules);
            let recording = self.began.map_or(0, |b| now.saturating_sub(b));
            self.judge.starts(&self.world, &self.rules, recording);
        }
        self.prune(now);
    }

    fn prune(&mut self, now: u64) {
        self.since_prune = 0;
        let open = self
            .closed
            .iter()
            .map(|(_, c)| c.window.start.0)
            .min()
            .unwrap_or(u64::MAX);
        let reach = self.rules.follow_reach_nanos + self.rules.settle_nanos + TICK_NANOS;
        self.world.prune(now, open, reach);
    }

    fn take(&mut self, at: u64, event: &Event) {
        if event.end().is_some()
            && self.began.is_none()
            && !matches!(event, Event::Lost(_) | Event::Counts(_) | Event::Capture(_))
        {
            self.began = Some(at);
            self.next_tick = at + TICK_NANOS;
            self.next_steady = at + self.rules.steady.period_nanos;
        }
        self.since_prune += 1;
        if self.since_prune >= PRUNE_EVENTS {
            self.prune(at);
        }
        if let Some(i) = &mut self.inference {
            i.take(BootNanos(at), event);
        }
        match event {
            Event::Call(c) => self.call(c),
            Event::OffCpu(o) => self.world.off_cpu(*o),
            Event::Slice(s) => self.world.slice(*s),
            Event::Stretch(s) => self.world.stretch(*s),
            Event::BlockIo(b) => self.world.block_io(*b),
            Event::Reclaim(r) => {
                let end = r.start.plus(r.dur).0;
                let w = crate::world::window(r.start.0, end);
                let cap = self.rules.caps.records_per_thread;
                World::bounded(&mut self.world.timeline(r.thread, end).reclaims, w, cap);
            }
            Event::InFlight(c) => {
                let median = self.stats.median(c.thread.pid, c.device, c.op);
                if let Some(f) = rules::hang(c, median, &self.rules.fact) {
                    let f = rules::finding(&self.world, f);
                    self.judge.tell(f);
                }
            }
            Event::Retransmit(r) => {
                if let Some(f) = self.retransmits.seen(r, &self.rules.fact) {
                    let f = rules::finding(&self.world, f);
                    self.judge.tell(f);
                }
            }
            Event::Process(e) => {
                if let ProcessEvent::OomKill { at, victim } = *e {
                    let f = rules::finding(&self.world, rules::oom(at, victim));
                    self.judge.tell(f);
                }
                if let ProcessEvent::Exit { pid, .. } = *e {
                    self.stats.forget(pid);
                    for (device, level) in self.allocations.forget(pid) {
                        self.remember(BootNanos(at), pid, device, level, true);
                    }
                    if self.world.process_mut(pid).named.unended() {
                        self.step_without_end();
                    }
                }
                self.world.lived(e);
            }
            Event::ThreadName(n) => self.world.names.insert(n.thread, n.name.clone()),
            Event::ProcessInfo(p) => self.world.learn(p.clone()),
            Event::FilePath(p) => self
                .world
                .files
                .insert((p.pid, p.fd), p.path.as_str().into()),
            Event::Counts(c) => self.stats.counts(c),
            Event::System(_) => {
                for ((pid, device), level) in self.allocations.take() {
                    self.remember(BootNanos(at), pid, device, level, false);
                }
            }
            Event::Gpu(g) => self.world.sample((**g).clone()),
            Event::Annotation(a) => self.annotation(at, a),
            Event::Capture(c) => self.world.paused.switched(c.at.0, c.on),
            Event::Lost(l) => {
                let what = format!("{}: {}", l.source, l.reason.name());
                *self.gaps.entry((GapCode::RecordsLost, what)).or_default() += l.count;
                if let Some(w) = l.window {
                    World::bounded(&mut self.world.losses, (w, l.pid), 4_096);
                }
            }
        }
    }

    /// Puts what the driver says beside what a process's calls say.
    fn remember(
        &mut self,
        at: BootNanos,
        pid: Pid,
        device: Option<Device>,
        allocator: AllocatorLevel,
        last: bool,
    ) {
        let gpus = &self.world.gpus;
        let sample = device
            .and_then(|d| gpus.get(&d.0)?.samples.back())
            .filter(|s| s.at == at);
        let process = self.world.find_process(pid);
        self.memory.push(MemorySample {
            at,
            process: process.map_or(
                Incarnation {
                    pid,
                    start_ticks: 0,
                },
                |p| p.incarnation(),
            ),
            device,
            allocator,
            process_used_bytes: sample
                .and_then(|s| s.processes.iter().find(|(p, ..)| *p == pid)?.2),
            device_used_bytes: sample.and_then(|s| s.memory_used),
            device_total_bytes: sample.and_then(|s| s.memory_total),
            last,
        });
    }

    fn measure(&mut self, c: &Closed) {
        let (m, unknown) = match units::measure(&mut self.world, &self.rules, c, &mut self.scratch)
        {
            Ok(m) => m,
            Err(LeftOut::Stopped) => {
                self.gap(
                    GapCode::UnitsLeftOut,
                    "the process was stopped or frozen in them",
                    1,
                );
                return;
            }
            Err(LeftOut::Paused) => {
                let what = "capture was switched off in a part of them";
                self.gap(GapCode::UnitsLeftOut, what, 1);
                return;
            }
            Err(LeftOut::Idle | LeftOut::Gone) => return,
        };
        if unknown.spread {
            self.gap(
                GapCode::NoSchedulerRecords,
                "who held the CPU is not known: recorded from inside the process",
                1,
            );
        } else if unknown.uncovered {
            self.gap(
                GapCode::NoSchedulerRecords,
                "what threads did outside their calls is not known: neither switches nor run delay were recorded",
                1,
            );
        }
        if unknown.disk_unseen {
            self.gap(
                GapCode::NoBlockIo,
                "disk waits are not tied to requests: none were recorded",
                1,
            );
        }
        let device = c.key.device.map(|d| d.0);
        if device.is_some_and(|d| self.world.gpus.contains_key(&d)) {
            // Samples come once in a while: those that follow the unit speak for it too.
            self.sequence += 1;
            let due = c.window.end.0.saturating_add(self.rules.sample_reach_nanos);
            self.measured.insert((due, self.sequence), m);
        } else {
            self.judge_unit(m);
        }
    }

    fn judge_unit(&mut self, mut m: Measured) {
        units::sampled(&self.world, &self.rules, &mut m);
        self.judge.take(&mut self.world, &self.rules, m);
    }
}
