//! The thread behind a sender: takes batches, sends them one at a time, and settles what became of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use warptrace_formats::otlp::Origin;
use warptrace_model::SpanRecord;

use super::counts::{DropReason, Untold};
use super::sender::{Local, Shared, Thread, now};
use crate::otlp::{Client, Delivered, Pace, Protocol, deliver as deliver_request};
use crate::phase::{Phase, pause};

/// How a request is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Protobuf,
    Json,
}

impl Encoding {
    pub(super) const fn of(protocol: Protocol) -> Encoding {
        match protocol {
            Protocol::HttpProtobuf | Protocol::Grpc => Encoding::Protobuf,
            Protocol::HttpJson => Encoding::Json,
        }
    }
}

/// Sends until the sender is closed and nothing waits.
pub(super) fn run(shared: &Shared, local: &Local) {
    let mut client = shared.client.clone();
    let origin = origin(shared);
    while let Some(batch) = next_batch(shared, local) {
        deliver(shared, local, &mut client, &origin, &batch);
        local.notify();
    }
    local.lock().thread = Thread::Ended;
    local.notify();
}

/// As seen from this process.
fn origin(shared: &Shared) -> Origin {
    let mut resource = shared.resource.clone();
    if resource.contains("process.pid") {
        resource.insert("process.pid", i64::from(std::process::id()));
    }
    Origin::new(&resource, &shared.scope.0, &shared.scope.1)
}

/// One request's worth of spans, and what of earlier drops it tells the collector.
struct Batch {
    spans: Vec<SpanRecord>,
    told: Untold,
}

/// Waits for the next batch; `None` when there will be no more.
///
/// The thread looks every [`Batching::delay`](super::Batching::delay), so that a push need not wake it but for a full batch.
fn next_batch(shared: &Shared, local: &Local) -> Option<Batch> {
    let mut state = local.lock();
    let mut due = Instant::now() + shared.limits.delay;
    loop {
        let left = due.saturating_duration_since(Instant::now());
        match state.phase {
            Phase::Abandoned => return None,
            Phase::Closing { .. } if state.queue.is_empty() && state.queue.untold.is_empty() => {
                return None;
            }
            Phase::Closing { .. } => break,
            Phase::Open => {}
        }
        let is_due = left.is_zero() || state.queue.is_wanted();
        if state.queue.is_batch(&shared.limits) || is_due && !state.queue.is_empty() {
            break;
        }
        if left.is_zero() {
            due = Instant::now() + shared.limits.delay;
            continue;
        }
        state = local.wait(state, left);
    }
    Some(Batch {
        spans: state.queue.take_batch(&shared.limits),
        told: std::mem::take(&mut state.queue.untold),
    })
}

/// Sends `batch` until the collector has it, or it is given up.
fn deliver(shared: &Shared, local: &Local, client: &mut Client, origin: &Origin, batch: &Batch) {
    // A panic, here or in a library that sends, must not end all exports.
    let request = catch_unwind(AssertUnwindSafe(|| {
        let report = (!batch.told.is_empty()).then(|| batch.told.span());
        let request = origin.request(batch.spans.iter().chain(&report));
        match shared.encoding {
            Encoding::Protobuf => request.to_protobuf(),
            Encoding::Json => request.to_json(),
        }
    }));
    let Ok(request) = request else {
        return give_up(
            local,
            batch,
            DropReason::Refused,
            "encoding panicked".to_owned(),
        );
    };
    let spans = batch.spans.len() as u64;
    let fresh = &shared.client;
    let (timeout, retry) = (shared.timeout, shared.limits.retry);
    let (reason, why) = match deliver_request(client, fresh, &request, timeout, retry, local) {
        Delivered::Taken(partial) => {
            let mut state = local.lock();
            let counts = &mut state.queue.counts;
            counts.unreadable += u64::from(partial.is_err());
            let partial = partial.unwrap_or_default();
            if !partial.message.is_empty() {
                counts.last_failure = Some(partial.message);
            }
            state.queue.answered(spans, partial.rejected);
            return;
        }
        Delivered::Refused { why } => (DropReason::Refused, why),
        Delivered::Exhausted { why } => (DropReason::RetriesExhausted, why),
        Delivered::Closed { why } => (DropReason::Closed, why),
    };
    give_up(local, batch, reason, why);
}

impl Pace for Local {
    fn time_for_a_try(&self, most: Duration) -> Duration {
        self.lock().phase.time_for_a_try(most)
    }

    fn pause(&self, wait: Duration, why: &str) -> bool {
        pause(&self.changed, self.lock(), wait, why, |state| {
            (state.phase, &mut state.queue.counts)
        })
    }
}

fn give_up(local: &Local, batch: &Batch, reason: DropReason, why: String) {
    let spans = batch.spans.len() as u64;
    let mut state = local.lock();
    let first = state.queue.counts.dropped(reason) == 0;
    state.queue.untold.put_back(&batch.told);
    state.queue.give_up(reason, spans, now());
    if first {
        tracing::warn!(spans, reason = reason.as_str(), why, "spans dropped");
    }
    state.queue.counts.last_failure = Some(why);
    if let (Phase::Closing { .. }, true) = (state.phase, state.queue.is_empty()) {
        // There is nobody to tell any more.
        state.queue.untold = Untold::default();
    }
}
