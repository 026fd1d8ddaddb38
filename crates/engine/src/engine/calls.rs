//! What a call means: for work sets, for its thread's time, for bandwidths; and where it ends a unit.

use warptrace_model::record::{Class, OpId, Wait};
use warptrace_model::{Call, Category, Stream, StreamScope, UnitKind};

use super::Engine;
use crate::rules;
use crate::units::named::Waited;
use crate::units::{self, Closed, Key, LoneCall, scope, work::work_class};
use crate::world::{CallSpan, GraphExec, InCall, Lead, World};

/// Shorter allocator calls are not remembered as waits for the device, ns.
const ALLOCATION_MIN_NANOS: u64 = 20_000;
const ALLOCATIONS: usize = 4_096;
/// Copies that say what the bandwidth is: at least this many bytes, and for calls that need not wait this long, ns.
const MEASURED_COPY_BYTES: u64 = 1 << 16;
const MEASURED_ASYNC_BYTES: u64 = 1 << 20;
const MEASURED_ASYNC_NANOS: u64 = 100_000;
/// `cudaMemcpyDeviceToHost`.
const DEVICE_TO_HOST: u8 = 2;
/// A longer interval between two waits, thirteen days, is no unit of anything.
const LONGEST_UNIT_NANOS: u64 = 1 << 50;

/// Bookkeeping that an op means for work sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    None,
    EventRecord,
    StreamWaitEvent,
    CaptureBegin,
    CaptureEnd,
    Instantiate,
    ExecDestroy,
}

impl Role {
    pub(crate) fn of(op: OpId) -> Role {
        match op.name() {
            "cudaEventRecord"
            | "cudaEventRecordWithFlags"
            | "cuEventRecord"
            | "cuEventRecordWithFlags" => Role::EventRecord,
            "cudaStreamWaitEvent" | "cuStreamWaitEvent" => Role::StreamWaitEvent,
            "graphBeginCapture" | "cuStreamBeginCapture" => Role::CaptureBegin,
            "graphEndCapture" | "cuStreamEndCapture" => Role::CaptureEnd,
            "graphInstantiate" | "cuGraphInstantiate" => Role::Instantiate,
            "graphExecDestroy" => Role::ExecDestroy,
            _ => Role::None,
        }
    }
}

impl Engine {
    pub(super) fn call(&mut self, c: &Call) {
        self.allocations.call(c);
        if c.flags.nested() && !c.flags.nested_in_library() {
            // Part of the call around it.
            return;
        }
        let op = c.op.get();
        let (start, end) = (c.start.0, c.end().0);
        // The median of the calls before: this one is judged by it.
        let long_launch = matches!(op.class, Class::Launch | Class::GraphLaunch)
            && c.dur > self.rules.device.long_launch_nanos;
        let lone = c.dur >= self.rules.finding.call_min_nanos;
        let median = if long_launch || lone {
            self.stats.median(c.thread.pid, c.device, c.op)
        } else {
            None
        };
        self.stats.call(c);
        let process = self.world.process_mut(c.thread.pid);
        process.has_calls = true;
        process.seen = process.seen.max(end);
        let mut fact = rules::device_lost(c, process.device_worked);
        if c.ret == 0 && !matches!(op.class, Class::Query | Class::Control) {
            process.device_worked = true;
        }
        let key = (c.device, c.stream);
        match op.class {
            Class::Launch | Class::GraphLaunch if c.ret == 0 => {
                let nodes = match process.execs.get_mut(&c.arg0) {
                    Some(g) if op.class == Class::GraphLaunch => {
                        g.launched = true;
                        g.nodes.max(1)
                    }
                    _ => 1,
                };
                if process.work.launch(key, nodes, c.start) {
                    let a = process.activity(c.device);
                    a.since.get_or_insert(start);
                    a.last_launch = end;
                }
            }
            Class::Copy if c.ret == 0 => {
                if let (Some(bytes), Some(kind)) = (c.bytes(), c.copy_kind()) {
                    process.work.copy(key, kind, bytes);
                    let enough = if op.wait == Wait::Copy {
                        bytes >= MEASURED_COPY_BYTES
                    } else {
                        bytes >= MEASURED_ASYNC_BYTES && c.dur >= MEASURED_ASYNC_NANOS
                    };
                    let rate = bytes as f64 * 1e9 / c.dur.max(1) as f64;
                    if enough && rate <= self.rules.device.max_bandwidth as f64 {
                        process.measure_copy(c.device, kind, bytes, c.dur);
                    }
                }
            }
            Class::Allocator if op.wait != Wait::Never && c.dur >= ALLOCATION_MIN_NANOS => {
                World::bounded(
                    &mut process.allocations,
                    (c.thread.tid, c.window()),
                    ALLOCATIONS,
                );
            }
            _ => {}
        }
        match self.roles[c.op.index()] {
            Role::None => {}
            Role::EventRecord => process.work.event_recorded(c.arg0, key),
            Role::StreamWaitEvent => process.work.stream_waits_for_event(key, c.arg0),
            Role::CaptureBegin if c.ret == 0 => process.work.capture_begins(key),
            Role::CaptureBegin => {}
            Role::CaptureEnd => {
                let nodes = process.work.capture_ends(key);
                if c.ret == 0
                    && let Some(nodes) = nodes
                {
                    process.graphs.insert(c.arg0, nodes);
                }
                fact = fact.or_else(|| rules::graph_capture(c));
            }
            Role::Instantiate if c.ret == 0 => {
                let nodes = process.graphs.get(&c.arg1).copied().unwrap_or(0);
                process.execs.insert(
                    c.arg0,
                    GraphExec {
                        nodes,
                        made: end,
                        made_by: c.thread.tid,
                        launched: false,
                        told: false,
                    },
                );
            }
            Role::Instantiate => {}
            Role::ExecDestroy => {
                process.execs.remove(&c.arg0);
            }
        }
        let queue_full = long_launch
            && median.is_none_or(|(m, _)| {
                c.dur > m.saturating_mul(self.rules.device.long_launch_factor)
            });
        let how = how(c, queue_full);
        let own = match (how, c.bytes(), c.copy_kind()) {
            (InCall::Copy, Some(bytes), Some(kind)) => {
                let rate = process
                    .bandwidth(c.device, kind)
                    .unwrap_or(self.rules.device.default_bandwidth);
                let ns = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
                (ns as u64).saturating_add(self.rules.device.copy_overhead_nanos)
            }
            _ => self.rules.device.copy_overhead_nanos,
        };
        self.world.call(
            c.thread,
            CallSpan {
                start,
                end,
                own,
                op: c.op,
                how,
            },
        );
        if let Some(f) = fact {
            let f = rules::finding(&self.world, f);
            self.judge.tell(f);
        }
        if c.ret == 0 {
            self.wait(c);
        }
        if lone && let Some((median, count)) = median {
            self.lone_call(c, how, median, count);
        }
    }

    /// Ends the unit of a thread whose draining wait came back.
    fn wait(&mut self, c: &Call) {
        let op = c.op.get();
        let ends = match op.wait {
            Wait::Stream | Wait::Device | Wait::Event => true,
            Wait::Copy => c.copy_kind() == Some(DEVICE_TO_HOST),
            Wait::Maybe | Wait::Never => false,
        };
        if !ends {
            return;
        }
        let end = c.end();
        let process = self.world.process_mut(c.thread.pid);
        let (stream, set) = match op.wait {
            Wait::Event => (
                process
                    .work
                    .stream_of(c.arg0)
                    .map_or(StreamScope::Many, |(_, s)| {
                        if s.is_legacy() {
                            StreamScope::Many
                        } else {
                            StreamScope::One(s)
                        }
                    }),
                process.work.event_done(c.arg0),
            ),
            wait => match scope(wait, c.stream).unwrap_or(StreamScope::Many) {
                StreamScope::One(s) => {
                    (StreamScope::One(s), process.work.stream_done((c.device, s)))
                }
                StreamScope::Many => (StreamScope::Many, process.work.device_done(c.device)),
            },
        };
        process.named.waited(Waited {
            end: end.0,
            tid: c.thread.tid,
            op: c.op,
            device: c.device,
            set,
        });
        let idle = process.work.outstanding == 0;
        for a in &mut process.activity {
            if (idle || (a.device == c.device && stream == StreamScope::Many))
                && let Some(since) = a.since.take()
            {
                World::bounded(
                    &mut a.spans,
                    crate::world::window(since, end.0.max(since)),
                    4_096,
                );
            }
        }
        let starts = process.starts();
        let line = self.world.timeline(c.thread, end.0);
        let ix = line.process;
        // Before its first wait a thread has no unit; only a process seen from its start has one, its start.
        let since = match line.lead {
            Some(lead) => Some(lead.since),
            None if starts => line.first_call,
            None => None,
        };
        line.lead = Some(Lead { since: end.0 });
        let unit = |s: &u64| *s < end.0 && end.0 - *s <= LONGEST_UNIT_NANOS;
        let Some(since) = since.filter(unit) else {
            return;
        };
        let key = Key {
            process: ix,
            device: c.device,
            stream,
            kind: UnitKind::WaitInterval,
            class: work_class(set.work.launches),
        };
        self.closed.push_back((
            end.0.saturating_add(self.rules.settle_nanos),
            Closed {
                key,
                lead: c.thread,
                window: crate::world::window(since, end.0),
                set,
                op: Some(c.op),
                call: None,
                name: None,
                provisional: false,
            },
        ));
    }

    /// A slow call of a thread that has no units.
    fn lone_call(&mut self, c: &Call, how: InCall, median: u64, count: u64) {
        let r = &self.rules.finding;
        let slow = count >= r.call_min_count && c.dur >= median.saturating_mul(r.call_factor);
        let line = self.world.timeline(c.thread, c.end().0);
        if !slow || line.lead.is_some() {
            return;
        }
        let key = Key {
            process: line.process,
            device: c.device,
            stream: StreamScope::One(Stream(0)),
            kind: UnitKind::Call,
            class: c.op.index() as u16,
        };
        let category = match how {
            InCall::Wait => Category::DeviceWait,
            InCall::Copy => Category::Copy,
            InCall::Allocator => Category::Allocator,
            InCall::Short => Category::Launch,
        };
        self.closed.push_back((
            c.end().0.saturating_add(self.rules.settle_nanos),
            Closed {
                key,
                lead: c.thread,
                window: c.window(),
                set: units::work::WorkSet::default(),
                op: Some(c.op),
                call: Some(LoneCall {
                    median,
                    count,
                    category,
                }),
                name: None,
                provisional: false,
            },
        ));
    }
}

/// How the time of a call is told.
fn how(c: &Call, queue_full: bool) -> InCall {
    let op = c.op.get();
    match op.class {
        Class::Allocator => InCall::Allocator,
        Class::Copy if op.wait != Wait::Never => InCall::Copy,
        Class::Sync => InCall::Wait,
        Class::Memset | Class::Init if op.wait != Wait::Never => InCall::Wait,
        Class::Launch | Class::GraphLaunch if queue_full => InCall::Wait,
        _ => InCall::Short,
    }
}
