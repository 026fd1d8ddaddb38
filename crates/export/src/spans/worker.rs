//! The thread behind a sender: takes batches, sends them one at a time, and settles what became of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use warptrace_formats::otlp::Origin;
use warptrace_model::SpanRecord;

use super::counts::{DropReason, Untold, random};
use super::sender::{Local, Phase, Shared, Thread, now};
use crate::otlp::{Answer, Backoff, Client, Protocol};

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
    let first_try = Instant::now();
    let mut backoff = Backoff::new(shared.limits.retry);
    loop {
        let timeout = time_for_a_try(shared, local, first_try);
        let answer = catch_unwind(AssertUnwindSafe(|| client.send(&request, timeout)));
        let answer = answer.unwrap_or_else(|_| {
            *client = shared.client.clone();
            let why = "sending panicked".to_owned();
            Answer::Again { after: None, why }
        });
        let (after, why) = match answer {
            Answer::Taken(partial) => {
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
            Answer::Refused { why } => {
                return give_up(local, batch, DropReason::Refused, why);
            }
            Answer::Again { after, why } => (after, why),
        };
        match backoff.next(first_try.elapsed(), after, random()) {
            None => return give_up(local, batch, DropReason::RetriesExhausted, why),
            Some(wait) => {
                if !pause(local, wait, &why) {
                    return give_up(local, batch, DropReason::Closed, why);
                }
            }
        }
    }
}

/// How long the next try may take.
fn time_for_a_try(shared: &Shared, local: &Local, first_try: Instant) -> Duration {
    /// So that the last try is one.
    const LEAST: Duration = Duration::from_millis(100);
    let left = shared
        .limits
        .retry
        .total
        .saturating_sub(first_try.elapsed());
    let timeout = shared.timeout.min(left);
    let timeout = match local.lock().phase {
        Phase::Closing {
            deadline: Some(deadline),
        } => timeout.min(deadline.saturating_duration_since(Instant::now())),
        _ => timeout,
    };
    timeout.max(LEAST)
}

/// Waits before the next try; false when the sender is closed and its deadline passed. Being closed ends the wait once, for a
/// last try.
fn pause(local: &Local, wait: Duration, why: &str) -> bool {
    let until = Instant::now() + wait;
    let mut state = local.lock();
    state.queue.counts.last_failure = Some(why.to_owned());
    let was_open = state.phase == Phase::Open;
    loop {
        match state.phase {
            Phase::Abandoned => return false,
            Phase::Closing {
                deadline: Some(deadline),
            } if Instant::now() >= deadline => {
                return false;
            }
            Phase::Closing { .. } if was_open => break,
            _ => {}
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        state = local.wait(state, left);
    }
    state.queue.counts.retried += 1;
    true
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
