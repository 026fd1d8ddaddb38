//! One process's calls, cut into steps.
//!
//! A step of a stream is from the end of one wait that covers it to the end of the next: the work launched in it is the work
//! that its wait was for. Waits are calls that drain a stream, an event or the device, copies to the host that do, and loops
//! that ask whether something is done until it is. What a wait covers is [`Work`]'s to know; nothing that another wait is
//! for is taken away by it.
//!
//! A server that has no request is not slow. While nothing of a stream is outstanding, the time in which the thread that feeds it
//! mostly slept in system calls is not the step's. Without scheduler records nobody knows when it slept: then a step begins with
//! its first work.
//!
//! Knows nothing of baselines, and of no other process.

use std::collections::VecDeque;

use warptrace_model::inference::CgroupHash;
use warptrace_model::record::{Class, OpId, Source, Wait};
use warptrace_model::{Call, Device, FileType, Incarnation, OffCpu, Pid, Stream, Tid, Window};

use super::fingerprint::{AtRecords, Fingerprint};
use super::lineage::Lineage;
use super::lru::Lru;
use super::phase::Observed;
use super::settings::InferenceSettings;
use super::straggle::Straggler;
use crate::allocations;
use crate::engine::calls;
use crate::units::work::{StreamKey, Work, WorkSet};

/// `cudaErrorNotReady` and `CUDA_ERROR_NOT_READY`.
const NOT_READY: i32 = 600;
/// `cudaMemcpyDeviceToHost`.
const DEVICE_TO_HOST: u8 = 2;
/// Who asks less often than this does not wait for the answer, ns.
const POLL_GAP_NANOS: u64 = 5_000_000;
/// Sleeps of a thread that are told apart.
const SLEEPS: usize = 32;

/// What an op means here.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpRole {
    pub(super) memory: allocations::Role,
    /// It takes device memory from the driver, or gives it back, and not from or to a pool.
    memory_call: bool,
    work: calls::Role,
    kind: WorkKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorkKind {
    None,
    /// `arg0` is the function or graph.
    Launch,
    /// `arg0` is something else.
    LaunchOfMany,
    Copy,
    Collective,
}

pub(super) fn op_role(op: OpId) -> OpRole {
    let row = op.get();
    OpRole {
        memory: allocations::role(op),
        memory_call: matches!(
            row.name,
            "cudaMalloc"
                | "cudaMallocManaged"
                | "cudaMallocPitch"
                | "cudaMalloc3D"
                | "cudaFree"
                | "cuMemAlloc"
                | "cuMemAllocManaged"
                | "cuMemAllocPitch"
                | "cuMemFree"
                | "cuMemCreate"
                | "cuMemRelease"
                | "cuMemMap"
                | "cuMemUnmap"
        ),
        work: calls::Role::of(op),
        kind: match row.class {
            Class::Launch if row.name.ends_with("MultiDevice") => WorkKind::LaunchOfMany,
            Class::Launch | Class::GraphLaunch => WorkKind::Launch,
            // A prefetch moves pages, and its second argument is a device.
            Class::Copy if !row.name.contains("Prefetch") => WorkKind::Copy,
            Class::Collective if row.source == Source::Nccl && !row.name.contains("Group") => {
                WorkKind::Collective
            }
            _ => WorkKind::None,
        },
    }
}

/// A step whose end was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) device: Option<Device>,
    pub(super) stream: Stream,
    pub(super) tid: Tid,
    /// The wait that ended it.
    pub(super) op: OpId,
    /// Without the idle time at its begin.
    pub(super) window: Window,
    /// End of the wait before.
    pub(super) since: u64,
    pub(super) observed: Observed,
    /// 0 unless fingerprints are asked for.
    pub(super) fingerprint: u64,
}

/// What a call that came back from waiting means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    Step(Step),
    /// The first wait of its stream.
    First,
    UnknownEvent,
}

/// The first work of a stream after a wait.
#[derive(Debug, Clone, Copy)]
struct FirstWork {
    /// From here on its thread had something to do.
    ready: u64,
}

#[derive(Default)]
struct StreamSeen {
    /// End of the last wait that covered it.
    waited: Option<u64>,
    /// It was waited for by itself, not only with the whole device.
    by_itself: bool,
    first: Option<FirstWork>,
    /// The process's memory calls at that wait.
    memory_calls: u64,
    fingerprint: Fingerprint,
}

/// Sleeps in system calls, between calls.
#[derive(Debug, Clone, Copy)]
struct Slept {
    start: u64,
    end: u64,
    nanos: u64,
}

/// A loop that asks whether something is done.
#[derive(Debug, Clone, Copy)]
struct Poll {
    op: OpId,
    handle: u64,
    last: u64,
}

#[derive(Default)]
struct ThreadSeen {
    /// Its switches are recorded.
    switches: bool,
    /// By their ends; neither overlaps another nor a call.
    sleeps: VecDeque<Slept>,
    /// End of its last call.
    called: u64,
    poll: Option<Poll>,
}

impl ThreadSeen {
    /// From when on after `since` the thread had something to do, as it seems at its work at `now`.
    fn ready(&self, since: u64, now: u64, idle_nanos: u64) -> u64 {
        if now <= since {
            return since;
        }
        if !self.switches {
            return now;
        }
        let (mut ready, mut idle) = (since, 0u64);
        for s in &self.sleeps {
            if s.end <= since || s.end > now {
                continue;
            }
            idle += s.nanos.min(s.end - since);
            // Work of the host is not cut off because of a short sleep in it.
            if idle.saturating_mul(2) >= s.end - since {
                ready = s.end;
            }
        }
        let last = ready.max(self.called.min(now));
        if now - last >= idle_nanos {
            return now;
        }
        ready
    }

    fn slept(&mut self, o: &OffCpu) {
        self.switches = true;
        let disk = o.iowait || o.file == FileType::Regular;
        if o.syscall.is_none() || o.preempted || disk {
            return;
        }
        let w = o.blocked();
        if w.nanos() == 0 {
            return;
        }
        self.sleeps.push_back(Slept {
            start: w.start.0,
            end: w.end.0,
            nanos: w.nanos(),
        });
        if self.sleeps.len() > SLEEPS
            && let Some(oldest) = self.sleeps.pop_front()
            && let Some(next) = self.sleeps.front_mut()
        {
            next.start = oldest.start;
            next.nanos = next.nanos.saturating_add(oldest.nanos);
        }
    }

    /// A call from `start` to `end`: what was slept in it is its own.
    fn calls(&mut self, start: u64, end: u64) {
        while self.sleeps.back().is_some_and(|s| s.end > start) {
            self.sleeps.pop_back();
        }
        self.called = self.called.max(end);
    }
}

/// What is known of one life of a process.
pub(super) struct Process {
    pub(super) life: Incarnation,
    pub(super) cgroup: Option<CgroupHash>,
    pub(super) comm: Box<str>,
    work: Work,
    streams: Lru<StreamKey, StreamSeen>,
    threads: Lru<Tid, ThreadSeen>,
    at_records: AtRecords,
    memory_calls: u64,
    /// It was stopped or frozen last.
    stopped: Option<Window>,
    /// Judgement is paused up to here.
    pub(super) paused_until: u64,
    pub(super) seen: u64,
    pub(super) lineage: Lineage,
    pub(super) straggler: Straggler,
    evicted_before: u64,
}

impl Process {
    pub(super) fn new(pid: Pid, settings: &InferenceSettings) -> Process {
        let caps = &settings.caps;
        Process {
            life: Incarnation {
                pid,
                start_ticks: 0,
            },
            cgroup: None,
            comm: "".into(),
            work: Work::new(caps.streams_per_process, caps.events_per_process),
            streams: Lru::new(caps.streams_per_process),
            threads: Lru::new(caps.threads_per_process),
            at_records: AtRecords::new(caps.events_per_process),
            memory_calls: 0,
            stopped: None,
            paused_until: 0,
            seen: 0,
            lineage: Lineage::default(),
            straggler: Straggler::default(),
            evicted_before: 0,
        }
    }

    /// Forgets what was asked of the device: it is another program, or has been idle for long.
    pub(super) fn forget_work(&mut self, settings: &InferenceSettings) {
        self.evicted_before = self.evicted();
        let caps = &settings.caps;
        self.work = Work::new(caps.streams_per_process, caps.events_per_process);
        self.streams = Lru::new(caps.streams_per_process);
        self.threads = Lru::new(caps.threads_per_process);
        self.at_records = AtRecords::new(caps.events_per_process);
    }

    /// Forgets streams and threads of which nothing was seen since `before`.
    pub(super) fn forget_idle(&mut self, before: u64) {
        self.streams.expire(before);
        self.threads.expire(before);
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted_before
            + self.work.evicted()
            + self.streams.evicted
            + self.threads.evicted
            + self.at_records.evicted()
    }

    pub(super) fn has_work_state(&self) -> bool {
        self.streams.len() + self.threads.len() > 0
    }

    pub(super) fn was_stopped_in(&self, w: Window) -> bool {
        self.stopped.is_some_and(|s| s.overlap(&w) > 0)
    }

    pub(super) fn off_cpu(&mut self, o: &OffCpu) {
        if o.stopped {
            self.stopped = Some(o.window());
        }
        if let Some(t) = self.threads.get_mut(&o.thread.tid) {
            t.slept(o);
        }
    }

    /// Takes a top-level call in; what it means when it came back from waiting.
    pub(super) fn call(
        &mut self,
        c: &Call,
        role: OpRole,
        settings: &InferenceSettings,
    ) -> Option<Waited> {
        let (start, end) = (c.start.0, c.end().0);
        self.seen = self.seen.max(end);
        let query = c.op.get().class == Class::Query;
        let t = self.threads.touch(c.thread.tid, end, ThreadSeen::default);
        if !query {
            t.poll = None;
        }
        if role.memory_call {
            self.memory_calls += 1;
        }
        let key = (c.device, queue(c.stream));
        // Of a call whose return was not seen nobody knows when it came back.
        let came_back = c.ret == 0 && !c.flags.no_return();
        if c.ret == 0 {
            self.issue(c, key, role, settings);
        }
        let waited = if query {
            self.polled(c, key, settings)
        } else {
            let copies_back =
                c.op.get().wait == Wait::Copy && c.copy_kind() == Some(DEVICE_TO_HOST);
            let waits = c.op.get().class == Class::Sync || copies_back;
            if waits && came_back {
                self.wait(c, key, c.op.get().wait, c.arg0, settings)
            } else {
                None
            }
        };
        if let Some(t) = self.threads.get_mut(&c.thread.tid) {
            t.calls(start, end);
        }
        waited
    }

    /// Work on a stream.
    fn issue(&mut self, c: &Call, key: StreamKey, role: OpRole, settings: &InferenceSettings) {
        let issued = match role.kind {
            WorkKind::Launch | WorkKind::LaunchOfMany => {
                // A graph is one launch, as its call is one: engines put decodes into graphs, and launch prefills one by one.
                let counted = self.work.launch(key, 1, c.start);
                if counted {
                    self.work.launch_took(key, c.dur);
                    self.straggler.launched();
                }
                counted
            }
            WorkKind::Copy => {
                if let (Some(bytes), Some(kind)) = (c.bytes(), c.copy_kind()) {
                    self.work.copy(key, kind, bytes);
                }
                true
            }
            WorkKind::Collective => {
                self.work.collective(key);
                true
            }
            WorkKind::None => false,
        };
        if issued {
            let s = self.streams.touch(key, c.end().0, StreamSeen::default);
            if s.first.is_none() {
                let now = c.start.0;
                let since = s.waited.unwrap_or(now);
                let thread = self.threads.get(&c.thread.tid);
                let ready = thread.map_or(now, |t| t.ready(since, now, settings.idle_nanos));
                s.first = Some(FirstWork { ready });
            }
            if settings.fingerprint_key {
                match role.kind {
                    WorkKind::Launch => s.fingerprint.launched(c.arg0),
                    WorkKind::LaunchOfMany => s.fingerprint.launched(0),
                    _ => {}
                }
            }
        }
        match role.work {
            calls::Role::EventRecord => {
                self.work.event_recorded(c.arg0, key);
                if settings.fingerprint_key
                    && let Some(s) = self.streams.get_mut(&key)
                {
                    self.at_records.recorded(c.arg0, &mut s.fingerprint);
                }
            }
            calls::Role::StreamWaitEvent => self.work.stream_waits_for_event(key, c.arg0),
            calls::Role::CaptureBegin => self.work.capture_begins(key),
            calls::Role::CaptureEnd => {
                self.work.capture_ends(key);
            }
            _ => {}
        }
    }

    /// Somebody asked whether something is done.
    fn polled(&mut self, c: &Call, key: StreamKey, settings: &InferenceSettings) -> Option<Waited> {
        let event = c.op.name().ends_with("EventQuery");
        let handle = if event { c.arg0 } else { key.1.0 };
        let t = self.threads.get_mut(&c.thread.tid)?;
        let going_on = t.poll.is_some_and(|p| {
            (p.op, p.handle) == (c.op, handle) && c.start.0.saturating_sub(p.last) <= POLL_GAP_NANOS
        });
        if c.ret == NOT_READY {
            t.poll = Some(Poll {
                op: c.op,
                handle,
                last: c.end().0,
            });
            return None;
        }
        t.poll = None;
        if c.ret != 0 || !going_on {
            return None;
        }
        let wait = if event { Wait::Event } else { Wait::Stream };
        self.wait(c, key, wait, handle, settings)
    }

    /// A wait came back.
    fn wait(
        &mut self,
        c: &Call,
        key: StreamKey,
        wait: Wait,
        event: u64,
        settings: &InferenceSettings,
    ) -> Option<Waited> {
        let end = c.end().0;
        let (device, stream) = key;
        // Which stream's step it ends, what it covers, and the streams that have nothing outstanding after it.
        let (key, set, covered) = match wait {
            Wait::Event => {
                let Some((device, stream)) = self.work.stream_of(event) else {
                    return Some(Waited::UnknownEvent);
                };
                let set = self.work.event_done(event);
                if set.work == WorkSet::default().work {
                    // It was known to be done.
                    return None;
                }
                ((device, stream), set, vec![(device, stream)])
            }
            Wait::Stream if stream != Stream(0) => (key, self.work.stream_done(key), vec![key]),
            Wait::Device => {
                let all = self.streams_of(device, |_| true);
                ((device, Stream(0)), self.work.device_done(device), all)
            }
            // The legacy stream, and copies on it, wait for all streams that were not made non-blocking: for all, as far as is
            // known, that nobody waits for by themselves.
            _ => {
                let own = (device, Stream(0));
                let mut set = self.work.stream_done(own);
                let others = self.streams_of(device, |s| !s.by_itself);
                for other in others.iter().filter(|k| **k != own) {
                    let more = self.work.stream_done(*other);
                    set.work.launches += more.work.launches;
                    set.work.collectives += more.work.collectives;
                    set.work.launch_nanos =
                        set.work.launch_nanos.saturating_add(more.work.launch_nanos);
                    for (a, b) in set.work.bytes.iter_mut().zip(more.work.bytes) {
                        *a = a.saturating_add(b);
                    }
                }
                (own, set, others)
            }
        };
        let mut fingerprint = 0;
        let mut ready: Option<u64> = None;
        for k in covered.iter().filter(|k| **k != key).chain([&key]) {
            let more = self.work.has_more(*k);
            let s = self.streams.touch(*k, end, StreamSeen::default);
            if let Some(first) = s.first.take() {
                ready = Some(ready.map_or(first.ready, |r| r.min(first.ready)));
            }
            // What is outstanding already was launched before: the next step begins at once.
            s.first = more.then_some(FirstWork { ready: 0 });
            if settings.fingerprint_key {
                let of = if wait == Wait::Event {
                    self.at_records.waited(event, &mut s.fingerprint)
                } else {
                    std::mem::take(&mut s.fingerprint)
                };
                fingerprint = if fingerprint == 0 {
                    of.value()
                } else {
                    fingerprint ^ of.value().rotate_left(1)
                };
            }
            if *k != key {
                s.waited = Some(end);
                s.memory_calls = self.memory_calls;
            }
        }
        let s = self.streams.touch(key, end, StreamSeen::default);
        // Nothing was launched: the wait itself is what the thread came for.
        let ready = ready.unwrap_or_else(|| {
            let (now, thread) = (c.start.0, self.threads.get(&c.thread.tid));
            let since = s.waited.unwrap_or(now);
            thread.map_or(now, |t| t.ready(since, now, settings.idle_nanos))
        });
        s.by_itself |= key.1 != Stream(0);
        let since = s.waited.replace(end);
        let memory_calls = self.memory_calls - s.memory_calls;
        s.memory_calls = self.memory_calls;
        let Some(since) = since else {
            return Some(Waited::First);
        };
        let start = since.max(ready);
        Some(Waited::Step(Step {
            device: key.0,
            stream: key.1,
            tid: c.thread.tid,
            op: c.op,
            window: crate::world::window(start.min(end), end),
            since,
            observed: Observed {
                launches: set.work.launches,
                launch_nanos: set.work.launch_nanos,
                collectives: set.work.collectives,
                copied_bytes: set.work.bytes.iter().fold(0, |n, b| n.saturating_add(*b)),
                memory_calls,
            },
            fingerprint,
        }))
    }

    /// Streams of a device, in their order.
    fn streams_of(
        &self,
        device: Option<Device>,
        of: impl Fn(&StreamSeen) -> bool,
    ) -> Vec<StreamKey> {
        let all = self.streams.iter();
        let mut keys: Vec<StreamKey> = all
            .filter(|((d, _), s)| *d == device && of(s))
            .map(|(k, _)| *k)
            .collect();
        keys.sort_unstable();
        keys
    }
}

/// Both handles of the legacy default stream are one queue.
fn queue(stream: Stream) -> Stream {
    if stream.is_legacy() {
        Stream(0)
    } else {
        stream
    }
}
