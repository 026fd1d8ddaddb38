//! Calls of NCCL's collectives.
//!
//! A record has the bytes, the stream and the communicator's handle; its rank and size are those that it was made with. The
//! communicator's id, the type of the data and the operation are not in it, and so in no attribute.

use std::collections::HashMap;

use warptrace_model::metric::{Exemplar, Family, Meter, SERIES_LIMIT, attribute, metric};
use warptrace_model::record::op::{Class, Source, Wait};
use warptrace_model::{BootNanos, Call, ClockAnchor, Object, Pid, Stream, UnixNanos};

/// Communicators whose ranks are known, and streams with a collective that nobody waited for: of more, all are forgotten.
const KNOWN: usize = 4096;

pub(super) struct Collectives {
    meter: Meter,
    /// By process and handle: rank, ranks.
    communicators: HashMap<(Pid, u64), (u32, u32)>,
    /// The last collective of a stream that was not waited for yet.
    pending: HashMap<(Pid, Stream), (BootNanos, Object)>,
}

impl Collectives {
    pub(super) fn new(start: UnixNanos) -> Collectives {
        Collectives {
            meter: Meter::new(start, SERIES_LIMIT),
            communicators: HashMap::new(),
            pending: HashMap::new(),
        }
    }

    /// Whether a communicator was made: the library is loaded by now.
    pub(super) fn call(&mut self, call: &Call, clock: ClockAnchor) -> bool {
        let (op, pid) = (call.op.get(), call.thread.pid);
        match (op.source, op.class) {
            (Source::Nccl, Class::Communicator) => self.communicator(call),
            (Source::Nccl, Class::Collective) if call.bytes().is_some() && call.ret == 0 => {
                self.collective(call, clock);
            }
            _ => {}
        }
        if op.wait == Wait::Stream
            && let Some((start, attributes)) = self.pending.remove(&(pid, call.stream))
        {
            let waited = call.start.since(start);
            self.observe(
                &metric::NCCL_BARRIER_DURATION,
                attributes,
                waited as f64 / 1e9,
                clock.unix(call.start),
            );
        }
        op.source == Source::Nccl && op.class == Class::Communicator
    }

    fn communicator(&mut self, call: &Call) {
        let key = (call.thread.pid, call.arg1);
        match call.op.name() {
            "ncclCommInitRank" | "ncclCommInitRankConfig" | "ncclCommInitRankScalable"
                if call.ret == 0 =>
            {
                if self.communicators.len() >= KNOWN {
                    self.communicators.clear();
                }
                let (ranks, rank) = ((call.arg0 >> 32) as u32, call.arg0 as u32);
                self.communicators.insert(key, (rank, ranks));
            }
            "ncclCommDestroy" | "ncclCommAbort" => {
                self.communicators.remove(&key);
            }
            _ => {}
        }
    }

    fn collective(&mut self, call: &Call, clock: ClockAnchor) {
        let pid = call.thread.pid;
        let name = call.op.name();
        let mut attributes = Object::new();
        let operation = name.strip_prefix("nccl").unwrap_or(name);
        attributes.insert(attribute::NCCL_OPERATION.name, operation);
        if let Some((rank, ranks)) = self.communicators.get(&(pid, call.arg1)) {
            attributes.insert(attribute::NCCL_RANK.name, i64::from(*rank));
            attributes.insert(attribute::NCCL_RANKS.name, i64::from(*ranks));
        }
        let at = clock.unix(call.start);
        let secs = call.dur as f64 / 1e9;
        self.observe(
            &metric::NCCL_COLLECTIVE_DURATION,
            attributes.clone(),
            secs,
            at,
        );
        let bytes = call.bytes().unwrap_or(0) as f64;
        self.observe(&metric::NCCL_COLLECTIVE_SIZE, attributes.clone(), bytes, at);
        // The default stream's wait is for all of them.
        if call.stream != Stream(0) {
            if self.pending.len() >= KNOWN {
                self.pending.clear();
            }
            self.pending
                .insert((pid, call.stream), (call.start, attributes));
        }
    }

    fn observe(
        &mut self,
        metric: &'static warptrace_model::metric::Metric,
        attributes: Object,
        value: f64,
        at: UnixNanos,
    ) {
        let exemplar = Exemplar {
            value,
            at,
            context: None,
            attributes: Object::new(),
        };
        // What was refused is in the meter's count.
        let _ = self
            .meter
            .record_explicit(metric, attributes, value, Some(exemplar));
    }

    pub(super) fn refused(&self) -> u64 {
        self.meter.refused()
    }

    pub(super) fn families(&mut self, at: UnixNanos) -> Vec<Family> {
        let mut families = self.meter.snapshot(Object::new(), at).families;
        families.retain(|family| *family.metric != metric::METRIC_REFUSED);
        families
    }
}
