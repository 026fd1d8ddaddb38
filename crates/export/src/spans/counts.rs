//! What became of spans (or points of metrics), and how a collector is told of those that it never saw.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use warptrace_model::{Object, SpanId, SpanRecord, UnixNanos, Value};

/// Why a span, or a point of a metric, was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The queue held as many spans, or bytes, as it may.
    QueueFull,
    /// The collector refused the request for good.
    Refused,
    /// The collector was not there, or had no room, for as long as we try.
    RetriesExhausted,
    /// The sender was closed: the span came after, or could not be sent before the deadline.
    Closed,
    /// The process is the child of a child of a child…, deeper than the sender keeps apart.
    ForkedTooDeep,
}

impl DropReason {
    pub const ALL: [DropReason; 5] = [
        DropReason::QueueFull,
        DropReason::Refused,
        DropReason::RetriesExhausted,
        DropReason::Closed,
        DropReason::ForkedTooDeep,
    ];

    /// As an `error.type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            DropReason::QueueFull => "queue_full",
            DropReason::Refused => "refused",
            DropReason::RetriesExhausted => "retries_exhausted",
            DropReason::Closed => "closed",
            DropReason::ForkedTooDeep => "forked_too_deep",
        }
    }
}

/// What became of the spans, or points of metrics, that this process pushed. Each is in exactly one of `pending`, `sent`, `rejected` and `dropped`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// In the queue, or in a request whose answer is not known yet.
    pub pending: u64,
    /// Taken by the collector.
    pub sent: u64,
    /// In a request that the collector took, but not taken, as it says itself (`partial_success`).
    pub rejected: u64,
    dropped: [u64; DropReason::ALL.len()],
    /// Spans of which something was cut, since they were too large.
    pub cut: u64,
    /// Requests that were sent again.
    pub retried: u64,
    /// Requests that were answered with success in a body that is not OTLP's; their spans are counted as sent.
    pub unreadable: u64,
    /// Why the last request that failed did, for a person.
    pub last_failure: Option<String>,
}

impl Counts {
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    pub fn dropped_in_all(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// All spans that were pushed.
    pub fn pushed(&self) -> u64 {
        self.pending + self.sent + self.rejected + self.dropped_in_all()
    }

    pub(crate) fn drop(&mut self, reason: DropReason, spans: u64) {
        self.dropped[reason as usize] += spans;
    }
}

/// What was dropped since the collector was last told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Untold {
    dropped: [u64; DropReason::ALL.len()],
    first: UnixNanos,
    last: UnixNanos,
}

impl Untold {
    pub(super) fn add(&mut self, reason: DropReason, spans: u64, now: UnixNanos) {
        if self.is_empty() {
            self.first = now;
        }
        self.last = now;
        self.dropped[reason as usize] += spans;
    }

    /// What was told after all was not.
    pub(super) fn put_back(&mut self, earlier: &Untold) {
        if earlier.is_empty() {
            return;
        }
        if self.is_empty() {
            self.last = earlier.last;
        }
        self.first = earlier.first;
        for (now, then) in self.dropped.iter_mut().zip(earlier.dropped) {
            *now += then;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.dropped == [0; DropReason::ALL.len()]
    }

    /// A span over the time in which spans were dropped: of a trace of its own, with status error.
    pub(super) fn span(&self) -> SpanRecord {
        let all: u64 = self.dropped.iter().sum();
        let message = match all {
            1 => "1 span was dropped before it was exported".to_owned(),
            all => format!("{all} spans were dropped before they were exported"),
        };
        let mut attributes = Object::new();
        attributes.insert("error_message", message.as_str());
        attributes.insert("telemetry_data_error_type", "incomplete_telemetry_data");
        attributes.insert("warptrace.export.dropped", Value::Int(all.into()));
        for (reason, dropped) in DropReason::ALL.iter().zip(self.dropped) {
            if dropped > 0 {
                let name = format!("warptrace.export.dropped.{}", reason.as_str());
                attributes.insert(&name, Value::Int(dropped.into()));
            }
        }
        let bits = || u128::from(random()) << 64 | u128::from(random());
        SpanRecord {
            trace: bits().max(1),
            id: SpanId::from_random(bits()),
            parent: None,
            name: "telemetry_data_error".into(),
            start: self.first,
            end: Some(self.last),
            attributes,
            events: Vec::new(),
            dropped_events: 0,
            error: Some(message.into()),
        }
    }
}

/// A number that no other process or call has, good enough for an id or for jitter.
pub(crate) fn random() -> u64 {
    // The keys of a thread are copied by a fork, the process and its clock are not.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.write_u128(
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos()),
    );
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_says_how_many_were_dropped_why_and_from_when_to_when() {
        let mut untold = Untold::default();
        assert!(untold.is_empty());
        untold.add(DropReason::QueueFull, 1, UnixNanos(5));
        assert_eq!(
            untold.span().error.as_deref(),
            Some("1 span was dropped before it was exported")
        );
        untold.add(DropReason::QueueFull, 2, UnixNanos(7));
        untold.add(DropReason::Refused, 512, UnixNanos(9));
        let span = untold.span();
        assert_eq!((span.start, span.end), (UnixNanos(5), Some(UnixNanos(9))));
        let said = |name: &str| span.attributes.get(name).cloned();
        assert_eq!(said("warptrace.export.dropped"), Some(515.into()));
        assert_eq!(said("warptrace.export.dropped.queue_full"), Some(3.into()));
        assert_eq!(said("warptrace.export.dropped.refused"), Some(512.into()));
        assert_eq!(said("warptrace.export.dropped.closed"), None);
        assert_ne!(span.id, untold.span().id);
        assert_ne!(span.trace, untold.span().trace);
    }

    #[test]
    fn what_could_not_be_told_is_told_later_with_its_own_time() {
        let mut earlier = Untold::default();
        earlier.add(DropReason::Refused, 3, UnixNanos(5));
        for (later, span) in [(None, (5, 5)), (Some(9), (5, 9))] {
            let mut untold = Untold::default();
            if let Some(at) = later {
                untold.add(DropReason::Closed, 1, UnixNanos(at));
            }
            untold.put_back(&earlier);
            untold.put_back(&Untold::default());
            let told = untold.span();
            assert_eq!(told.start, UnixNanos(span.0));
            assert_eq!(told.end, Some(UnixNanos(span.1)));
            let said = told.attributes.get("warptrace.export.dropped.refused");
            assert_eq!(said, Some(&3.into()));
        }
    }
}
