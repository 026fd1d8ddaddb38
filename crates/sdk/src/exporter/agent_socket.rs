//! Spans on the recorded timeline: as annotations, to the agent that records this process.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use warptrace_formats::open_json::python_text;
use warptrace_formats::span_record::start_of;
use warptrace_model::{Labels, NamedBy, SpanId, Value};

use crate::annotation::Writer;
use crate::fork::{ForkMutex, Inherit};
use crate::span::event::attribute;
use crate::span::{Event, ExportError, Exporter, Interest, Span};

/// Names of spans that are steps by default, whether or not an attribute says so.
pub const STEP_SPANS: [&str; 2] = ["train.step", "training_single_iteration"];
/// Where the count of steps begins in a loop that goes on from a checkpoint.
const FIRST_STEP: &str = "train_iterations_start";
/// How far up a span's parents are looked at.
const MAX_PARENTS: usize = 64;
/// The label that holds a span's name.
const SPAN: &str = "span";
const ERROR: &str = "error";

/// Tells the agent of each span when it has ended: an interval with the labels `span` (its name), `error` if it failed, and its
/// attributes as far as labels can say them (a valid key, one line of text, at most 256 bytes).
///
/// Spans that name units of work make `explain --by-step` and `--by-request`: a span is a step when it has the attribute `step` or
/// one of the names [`STEP_SPANS`], and a request when it has `request_id`. Spans within it do not repeat that, or each would be a
/// unit. A step without a number is counted, from `train_iterations_start` of the span around it, else from 0.
///
/// Without an agent nothing is wrong: what it would have been told is counted as dropped, and it is looked for twice a second.
pub struct AgentSocket {
    writer: Arc<Writer>,
    steps: HashSet<Box<str>>,
    counted: ForkMutex<Counted>,
}

/// Steps so far in a loop.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    of: Option<SpanId>,
    next: i64,
}

impl Inherit for Counted {
    fn inherit(parent: Option<&mut Counted>) -> Counted {
        parent.map_or_else(Counted::default, |p| *p)
    }
}

impl Default for AgentSocket {
    fn default() -> AgentSocket {
        AgentSocket::new(Arc::new(Writer::new()))
    }
}

impl AgentSocket {
    pub fn new(writer: Arc<Writer>) -> AgentSocket {
        AgentSocket {
            writer,
            steps: STEP_SPANS.into_iter().map(Into::into).collect(),
            counted: ForkMutex::new(Counted::default()),
        }
    }

    /// Which spans are steps by their names, in place of [`STEP_SPANS`].
    #[must_use]
    pub fn step_spans<N: Into<Box<str>>>(
        mut self,
        names: impl IntoIterator<Item = N>,
    ) -> AgentSocket {
        self.steps = names.into_iter().map(Into::into).collect();
        self
    }

    fn labels(&self, span: &Span) -> Labels {
        let mut labels = Labels::default();
        let mut say = |key: &str, text: &str| {
            // What a label cannot say is in the other exporters.
            let _ = labels.insert(key, text);
        };
        say(SPAN, short(span.name()));
        if let Some(error) = span.error() {
            say(ERROR, short(&error));
        }
        let attributes = span.attributes();
        for named in NamedBy::ALL {
            let key = named.label();
            let own = attributes.get(key).map(python_text);
            let is_step = named == NamedBy::Step && self.steps.contains(span.name());
            if (own.is_none() && !is_step) || self.is_within(span, named) {
                continue;
            }
            let value = own.unwrap_or_else(|| self.count(span).to_string());
            say(key, short(&value));
        }
        for (key, value) in attributes.iter() {
            let taken = [SPAN, ERROR, attribute::DURATION_MSEC].contains(&key);
            if taken || NamedBy::by_label(key).is_some() || !Labels::is_key(key) {
                continue;
            }
            match value {
                Value::Null | Value::Object(_) => {}
                Value::String(text) => say(key, text),
                other => say(key, &python_text(other)),
            }
        }
        labels
    }

    /// Whether a span around it is such a unit already.
    fn is_within(&self, span: &Span, named: NamedBy) -> bool {
        let mut parents = std::iter::successors(span.parent(), |s| s.parent()).take(MAX_PARENTS);
        parents.any(|parent| {
            let has = |a: &crate::span::Attributes| a.get(named.label()).is_some();
            has(parent.initial_attributes())
                || (named == NamedBy::Step && self.steps.contains(parent.name()))
                || has(&parent.updated_attributes())
        })
    }

    fn count(&self, span: &Span) -> i64 {
        let of = span.parent().map(Span::id);
        let mut counted = self.counted.lock();
        if counted.of != of {
            let mut parents =
                std::iter::successors(span.parent(), |s| s.parent()).take(MAX_PARENTS);
            let first = parents.find_map(|p| p.initial_attributes().get_int(FIRST_STEP).ok()?);
            *counted = Counted {
                of,
                next: first.unwrap_or(0),
            };
        }
        counted.next = counted.next.saturating_add(1);
        counted.next - 1
    }
}

impl Exporter for AgentSocket {
    fn interest(&self) -> Interest {
        Interest::Stops
    }

    fn start(&self, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }

    fn stop(&self, span: &Span) -> Result<(), ExportError> {
        let start = span.start_event().at().unix_nanos();
        // One that ends before it began, by clocks that the caller gave, ends when it began.
        let end = span.end_unix_nanos().unwrap_or(start).max(start);
        let line = crate::annotation::Line {
            labels: self.labels(span),
            pid: Some(crate::process_id()),
            span: Some((start, end)),
            ..Default::default()
        };
        // What became of it, the writer counts.
        self.writer.write(&line);
        Ok(())
    }

    fn event(&self, _: &Event, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }

    fn error(&self, _: &Event, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }

    fn data_error(&self, _: &Event) -> Result<(), ExportError> {
        Ok(())
    }

    /// Leaves the writer open: others may use it.
    fn close(&self, _: Duration) -> Result<(), ExportError> {
        Ok(())
    }

    /// Lines of the writer that the agent did not get, whoever said them.
    fn dropped(&self) -> u64 {
        let counts = self.writer.counts();
        counts.refused + counts.no_agent + counts.full + counts.closed
    }
}

/// What fits into a label.
fn short(text: &str) -> &str {
    start_of(text, Labels::MAX_VALUE_BYTES)
}
