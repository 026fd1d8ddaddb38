//! Records to spans: what begins, happens in and ends a span is put together, in memory that has a bound.

use std::collections::{HashMap, VecDeque};

use warptrace_model::{Object, SpanEvent, SpanId, SpanRecord, UnixNanos, Value};

use super::{Body, EventPart, Record, SpanPart, Stage};

/// Spans that are open at a time, at most; the oldest is given up.
pub const MAX_OPEN_SPANS: usize = 100_000;
/// Events that are kept of a span, as its writer does.
const MAX_EVENTS: usize = 128;

/// What was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpansCounts {
    /// Open spans that were given up for newer ones.
    pub given_up: u64,
    /// Events of spans that are not open: their starts were lost, or given up.
    pub stray_events: u64,
    /// Records that said that data is missing or not to be relied on.
    pub data_errors: u64,
}

/// Spans as their records come, of one file or of many in turn.
#[derive(Debug, Default)]
pub struct Spans {
    /// With the number of their start.
    open: HashMap<SpanId, (u64, SpanRecord)>,
    /// Starts in order, of spans that may be over by now.
    starts: VecDeque<(u64, SpanId)>,
    started: u64,
    counts: SpansCounts,
}

impl Spans {
    pub fn new() -> Spans {
        Spans::default()
    }

    pub fn counts(&self) -> SpansCounts {
        self.counts
    }

    /// Takes the next record; the span that is over by it. Of a span whose start is missing the end tells what it knows: the
    /// start then is its duration before the end, in whole ms where the record is not ours.
    pub fn take(&mut self, record: Record) -> Option<SpanRecord> {
        match record.body {
            Body::Span(Stage::Start, part) => {
                let id = part.id;
                let span = started(&part);
                self.starts.push_back((self.started, id));
                self.open.insert(id, (self.started, span));
                self.started += 1;
                self.keep_bound();
                None
            }
            Body::Span(_, part) => {
                let before = self.open.remove(&part.id);
                Some(ended(*part, before.map(|(_, span)| span)))
            }
            Body::Event {
                span,
                event,
                is_error,
            } => {
                let Some((_, span)) = self.open.get_mut(&span) else {
                    self.counts.stray_events += 1;
                    return None;
                };
                if is_error {
                    span.error = error_text(&event.attributes);
                }
                if span.events.len() < MAX_EVENTS {
                    span.events.push(happened(event));
                } else {
                    span.dropped_events += 1;
                }
                None
            }
            Body::DataError(_) => {
                self.counts.data_errors += 1;
                None
            }
        }
    }

    /// Spans that never ended, in the order of their starts.
    pub fn finish(self) -> Vec<SpanRecord> {
        let mut open: Vec<_> = self.open.into_values().collect();
        open.sort_by_key(|(number, _)| *number);
        open.into_iter().map(|(_, span)| span).collect()
    }

    fn keep_bound(&mut self) {
        let is_open = |open: &HashMap<SpanId, (u64, SpanRecord)>, (number, id): &(u64, SpanId)| {
            open.get(id).is_some_and(|(n, _)| n == number)
        };
        while self.open.len() > MAX_OPEN_SPANS {
            let Some(oldest) = self.starts.pop_front() else {
                return;
            };
            if is_open(&self.open, &oldest) {
                self.open.remove(&oldest.1);
                self.counts.given_up += 1;
            }
        }
        // Most are over long before they are the oldest: forgotten when they are the most of what is remembered.
        if self.starts.len() > 2 * MAX_OPEN_SPANS {
            let open = &self.open;
            self.starts.retain(|start| is_open(open, start));
        }
    }
}

fn started(part: &SpanPart) -> SpanRecord {
    let at = part.start_event.as_ref().and_then(|event| event.unix_nanos);
    SpanRecord {
        trace: part.trace.unwrap_or(part.id.to_bits()),
        id: part.id,
        parent: part.parent.map(|parent| parent.otlp()),
        name: part.name.clone(),
        start: unix(part.start_unix_nanos.or(at).unwrap_or(0)),
        end: None,
        attributes: part.attributes.clone(),
        events: Vec::new(),
        dropped_events: 0,
        error: None,
    }
}

fn ended(mut part: SpanPart, before: Option<SpanRecord>) -> SpanRecord {
    let stop = part.stop_event.as_ref().and_then(|event| event.unix_nanos);
    let duration = part.attributes.get("duration_msec");
    let duration = duration
        .and_then(|ms| ms.as_int()?.to_i64())
        .map(|ms| ms.saturating_mul(1_000_000));
    let mut span = before.unwrap_or_else(|| {
        if part.start_unix_nanos.is_none() && part.start_event.is_none() {
            let start = stop.map(|stop| stop.saturating_sub(duration.unwrap_or(0)));
            part.start_unix_nanos = start;
        }
        started(&part)
    });
    span.attributes = part.attributes;
    let by_duration = duration.map(|nanos| span.start.0.saturating_add_signed(nanos));
    let end = part.end_unix_nanos.map(unix);
    span.end = Some(
        end.or(by_duration.map(UnixNanos))
            .unwrap_or_else(|| unix(stop.unwrap_or(0))),
    );
    span.dropped_events = span.dropped_events.max(part.dropped_events);
    span
}

/// The exception behind an error if there is one, else its message.
fn error_text(attributes: &Object) -> Option<Box<str>> {
    let text = |name| attributes.get(name).and_then(Value::as_str);
    match (text("exception_type"), text("exception_message")) {
        (Some(kind), Some("") | None) => Some(kind.into()),
        (Some(kind), Some(message)) => Some(format!("{kind}: {message}").into()),
        (None, _) => text("error_message").map(Into::into),
    }
}

fn happened(event: EventPart) -> SpanEvent {
    let mut attributes = event.attributes;
    attributes.remove("timestamp_msec");
    SpanEvent {
        name: event.name,
        at: unix(event.unix_nanos.unwrap_or(0)),
        attributes,
    }
}

/// The epoch for what was before it.
fn unix(nanos: i64) -> UnixNanos {
    UnixNanos(u64::try_from(nanos).unwrap_or(0))
}
