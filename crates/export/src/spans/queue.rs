//! What waits to be sent, within bounds, and when it is due.
//!
//! Plain data behind a lock: it knows no thread, no collector and no clock.

use std::collections::VecDeque;
use std::time::Duration;

use warptrace_formats::otlp::size_bytes;
use warptrace_model::{SpanRecord, UnixNanos};

use super::counts::{Counts, DropReason, Untold};
use super::cut::LEAST_LIMIT_BYTES;
use crate::otlp::{Ignored, Retry, Variables};

/// How spans are gathered into requests, how many may wait, and for how long a request is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Spans in a request, at most.
    pub batch_spans: usize,
    /// Bytes of spans in a request, at most but for a single span. A gRPC server takes 4 MiB unless told otherwise.
    pub batch_bytes: usize,
    /// How long a span waits for others.
    pub delay: Duration,
    /// Spans that wait, at most; one more is dropped.
    pub queue_spans: usize,
    /// Bytes that wait, at most.
    pub queue_bytes: usize,
    /// A larger span is cut; 4 KiB at least.
    pub span_bytes: usize,
    pub retry: Retry,
}

impl Default for Batching {
    /// As OpenTelemetry's batch processor has it (512 spans), but with a second's delay instead of five, and room for
    /// 65,536 spans (64 MiB) instead of 2,048: a training job says its spans in bursts, and a collector that restarts should
    /// cost none.
    fn default() -> Batching {
        Batching {
            batch_spans: 512,
            batch_bytes: 3 << 20,
            delay: Duration::from_secs(1),
            queue_spans: 65_536,
            queue_bytes: 64 << 20,
            span_bytes: 1 << 20,
            retry: Retry::default(),
        }
    }
}

impl Batching {
    /// By the variables `OTEL_BSP_…` of the batch span processor, and which of them were ignored.
    ///
    /// `OTEL_BSP_EXPORT_TIMEOUT`, the time that a batch may take in all, is [`Retry::total`].
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> (Batching, Vec<Ignored>) {
        let variables = Variables::new(lookup);
        let mut batching = Batching::default();
        let millis = |name| variables.get(name).and_then(|said| said.millis());
        let count = |name| variables.get(name).and_then(|said| said.count());
        if let Some(delay) = millis("OTEL_BSP_SCHEDULE_DELAY") {
            batching.delay = delay;
        }
        if let Some(total) = millis("OTEL_BSP_EXPORT_TIMEOUT") {
            batching.retry.total = total;
        }
        if let Some(spans) = count("OTEL_BSP_MAX_QUEUE_SIZE") {
            batching.queue_spans = spans;
        }
        if let Some(spans) = count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE") {
            batching.batch_spans = spans;
        }
        (batching.within_reason(), variables.ignored())
    }

    /// With no bound at 0, no batch larger than the queue, and no span larger than a batch.
    #[must_use]
    pub(super) fn within_reason(self) -> Batching {
        let queue_spans = self.queue_spans.max(1);
        let span_bytes = self.span_bytes.max(LEAST_LIMIT_BYTES);
        Batching {
            batch_spans: self.batch_spans.clamp(1, queue_spans),
            batch_bytes: self.batch_bytes.max(1),
            // The thread looks this often, so that nobody has to wake it.
            delay: self.delay.max(Duration::from_millis(10)),
            queue_spans,
            queue_bytes: self.queue_bytes.max(span_bytes),
            span_bytes,
            retry: self.retry,
        }
    }
}

/// What waits, and what became of what waited.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<(SpanRecord, usize)>,
    bytes: usize,
    pub(super) counts: Counts,
    pub(super) untold: Untold,
    /// Spans that were taken in, ever; and those of them whose fate is known. A flush waits for the second to reach the first.
    taken_in: u64,
    settled: u64,
    /// Up to which span somebody waits.
    wanted: u64,
}

impl Queue {
    /// Whether a span of `size` bytes may be pushed.
    ///
    /// When not, it is the newest that is dropped: so does OpenTelemetry's batch processor, it costs the caller nothing, and
    /// of an outage the beginning is kept, in one piece.
    pub(super) fn has_room(&self, size: usize, limits: &Batching) -> bool {
        self.waiting.len() < limits.queue_spans && self.bytes + size <= limits.queue_bytes
    }

    /// Takes `record` in. Says whether this made a batch complete.
    pub(super) fn push(&mut self, record: SpanRecord, size: usize, limits: &Batching) -> bool {
        let was_due = self.is_batch(limits);
        self.waiting.push_back((record, size));
        self.bytes += size;
        self.taken_in += 1;
        self.counts.pending += 1;
        !was_due && self.is_batch(limits)
    }

    /// Counts spans that were never taken in.
    pub(super) fn drop(&mut self, reason: DropReason, spans: u64, now: UnixNanos) {
        if spans > 0 {
            self.counts.drop(reason, spans);
            self.untold.add(reason, spans, now);
        }
    }

    /// Counts spans that were taken in, and were dropped after all.
    pub(super) fn give_up(&mut self, reason: DropReason, spans: u64, now: UnixNanos) {
        self.settle(spans);
        self.drop(reason, spans, now);
    }

    /// Counts spans that the collector answered for.
    pub(super) fn answered(&mut self, spans: u64, rejected: u64) {
        let rejected = rejected.min(spans);
        self.settle(spans);
        self.counts.rejected += rejected;
        self.counts.sent += spans - rejected;
    }

    fn settle(&mut self, spans: u64) {
        self.settled += spans;
        self.counts.pending -= spans;
    }

    /// Whether a whole batch waits.
    pub(super) fn is_batch(&self, limits: &Batching) -> bool {
        self.waiting.len() >= limits.batch_spans || self.bytes >= limits.batch_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The oldest spans that make one request.
    pub(super) fn take_batch(&mut self, limits: &Batching) -> Vec<SpanRecord> {
        let mut left = limits.batch_bytes;
        let fitting = self.waiting.iter().take(limits.batch_spans);
        let fitting = fitting.take_while(|(_, size)| {
            let fits = *size <= left;
            left = left.saturating_sub(*size);
            fits
        });
        let fitting = fitting.count().max(1).min(self.waiting.len());
        let batch = self.waiting.drain(..fitting).map(|(record, size)| {
            self.bytes -= size;
            record
        });
        batch.collect()
    }

    /// Empties the queue; the caller frees what was in it, without the lock.
    pub(super) fn take_all(&mut self) -> VecDeque<(SpanRecord, usize)> {
        self.bytes = 0;
        std::mem::take(&mut self.waiting)
    }

    /// Asks for all that is here to be sent without delay, and says up to where that is.
    pub(super) fn want_all(&mut self) -> u64 {
        self.wanted = self.taken_in;
        self.wanted
    }

    /// Whether somebody waits for spans that were not sent yet.
    pub(super) fn is_wanted(&self) -> bool {
        self.settled < self.wanted
    }

    /// Whether the fate of all spans up to this one is known. Spans are settled in their order.
    pub(super) fn is_settled(&self, up_to: u64) -> bool {
        self.settled >= up_to
    }
}

/// The size of `record` for the queue; what is above the limit is cut. Says whether it was.
pub(super) fn fit(record: &mut SpanRecord, limits: &Batching) -> (usize, bool) {
    let size = size_bytes(record);
    if size <= limits.span_bytes {
        return (size, false);
    }
    super::cut::cut(record, limits.span_bytes);
    (size_bytes(record), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> (Batching, usize) {
        let (batching, ignored) = Batching::from_env(|name| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        });
        (batching, ignored.len())
    }

    #[test]
    fn the_variables_of_the_batch_span_processor_hold_where_they_can_be_read() {
        assert_eq!(from(&[]), (Batching::default(), 0));
        let (batching, ignored) = from(&[
            ("OTEL_BSP_SCHEDULE_DELAY", "250"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "30000"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "512"),
        ]);
        assert_eq!(ignored, 0);
        assert_eq!(batching.delay, Duration::from_millis(250));
        assert_eq!(batching.retry.total, Duration::from_secs(30));
        // No batch is larger than the queue.
        assert_eq!((batching.queue_spans, batching.batch_spans), (100, 100));
        for wrong in ["0", "-1", "many", "1.5"] {
            let said = [
                ("OTEL_BSP_SCHEDULE_DELAY", wrong),
                ("OTEL_BSP_MAX_QUEUE_SIZE", wrong),
            ];
            assert_eq!(from(&said), (Batching::default(), 2), "{wrong}");
        }
    }
}
