//! Requests that are spans, in a run log.

use std::collections::HashSet;
use std::time::Duration;

use warptrace_formats::open_json::{Layout, Style, to_string};
use warptrace_model::{Object, Value};

use crate::run_log::{Failed, RunLog, Served};
use crate::span::event::attribute;
use crate::span::{Attributes, Event, ExportError, Exporter, Interest, Span};

/// Names of spans that are requests by default.
const REQUEST_SPANS: [&str; 3] = ["request", "chat", "text_completion"];
/// How far up a span's parents are looked at.
const MAX_PARENTS: usize = 64;

/// Writes a record of a [`RunLog`] for each span that is a request, when it has ended: one with a name of its own convention or of
/// OpenTelemetry's for generative AI (`request`, `chat`, `text_completion`, also followed by a space and a model), or with the
/// attribute `request_id`. Other spans, and spans within a request, leave no trace here.
///
/// | of a record | from the first attribute that there is |
/// |---|---|
/// | `model` | `model`, `gen_ai.response.model`, `gen_ai.request.model` |
/// | `prompt_tokens` | `prompt_tokens`, `gen_ai.usage.input_tokens`, else 0 |
/// | `completion_tokens` | `completion_tokens`, `gen_ai.usage.output_tokens`, else 0 |
/// | `latency_us` | the span's duration |
/// | `status` of an error | `http.response.status_code`, else 500 |
/// | `code` of an error | `error.type`, else `exception_type` of its error, else `error` |
///
/// A request whose span has an error is an error. All other attributes are `extra`. The run is begun and ended by whoever has the
/// log, which also counts what it could not write.
pub struct RunLogExporter {
    log: RunLog,
    requests: HashSet<Box<str>>,
}

impl RunLogExporter {
    pub fn new(log: RunLog) -> RunLogExporter {
        RunLogExporter {
            log,
            requests: REQUEST_SPANS.into_iter().map(Into::into).collect(),
        }
    }

    /// Which spans are requests by their names.
    #[must_use]
    pub fn request_spans<N: Into<Box<str>>>(
        mut self,
        names: impl IntoIterator<Item = N>,
    ) -> RunLogExporter {
        self.requests = names.into_iter().map(Into::into).collect();
        self
    }

    fn is_request(&self, span: &Span) -> bool {
        let name = span.name();
        let operation = name
            .split_once(' ')
            .map_or(name, |(operation, _)| operation);
        self.requests.contains(name)
            || self.requests.contains(operation)
            || span.initial_attributes().get("request_id").is_some()
    }
}

const MODEL: [&str; 3] = ["model", "gen_ai.response.model", "gen_ai.request.model"];
const PROMPT_TOKENS: [&str; 2] = ["prompt_tokens", "gen_ai.usage.input_tokens"];
const COMPLETION_TOKENS: [&str; 2] = ["completion_tokens", "gen_ai.usage.output_tokens"];
const STATUS: [&str; 1] = ["http.response.status_code"];
const CODE: [&str; 1] = ["error.type"];

fn first<'a>(attributes: &'a Attributes, names: &[&str]) -> Option<&'a Value> {
    names.iter().find_map(|name| attributes.get(name))
}

fn integer(attributes: &Attributes, names: &[&str]) -> Option<i64> {
    first(attributes, names)?.as_int()?.to_i64()
}

impl Exporter for RunLogExporter {
    fn interest(&self) -> Interest {
        Interest::Stops
    }

    fn start(&self, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }

    fn stop(&self, span: &Span) -> Result<(), ExportError> {
        let mut parents = std::iter::successors(span.parent(), |s| s.parent()).take(MAX_PARENTS);
        if !self.is_request(span) || parents.any(|parent| self.is_request(parent)) {
            return Ok(());
        }
        let attributes = span.attributes();
        let start = span.start_event().at().unix_nanos();
        let latency_micros = (span.end_unix_nanos().unwrap_or(start) - start) / 1000;
        let model = first(&attributes, &MODEL)
            .and_then(Value::as_str)
            .unwrap_or("");
        let mut extra = Object::new();
        let told = [
            &MODEL[..],
            &PROMPT_TOKENS,
            &COMPLETION_TOKENS,
            &STATUS,
            &CODE,
        ];
        for (name, value) in attributes.iter() {
            if name != attribute::DURATION_MSEC && !told.iter().any(|names| names.contains(&name)) {
                extra.insert(name, finite(value));
            }
        }
        let compact = Style {
            sorted: false,
            layout: Layout::Compact,
        };
        let extra = to_string(&Value::Object(extra), compact);
        match span.error() {
            None => self.log.request(&Served {
                model,
                prompt_tokens: integer(&attributes, &PROMPT_TOKENS).unwrap_or(0),
                completion_tokens: integer(&attributes, &COMPLETION_TOKENS).unwrap_or(0),
                latency_micros,
                extra: &extra,
            }),
            Some(message) => {
                let events = span.events();
                let exception = events.iter().rev().find_map(|event| {
                    let kind = event.own_attributes().get(attribute::EXCEPTION_TYPE);
                    kind.and_then(Value::as_str)
                });
                let code = first(&attributes, &CODE).and_then(Value::as_str);
                self.log.error(&Failed {
                    model,
                    status: integer(&attributes, &STATUS).unwrap_or(500),
                    code: code.or(exception).unwrap_or("error"),
                    message: &message,
                    latency_micros,
                    extra: &extra,
                });
            }
        }
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

    /// Does not end the run.
    fn close(&self, _: Duration) -> Result<(), ExportError> {
        Ok(())
    }

    fn dropped(&self) -> u64 {
        self.log.dropped()
    }
}

/// A double that JSON cannot say becomes its word.
fn finite(value: &Value) -> Value {
    match value {
        Value::Float(x) if x.is_nan() => "NaN".into(),
        Value::Float(x) if x.is_infinite() => {
            if *x > 0.0 { "Infinity" } else { "-Infinity" }.into()
        }
        Value::Array(items) => Value::Array(items.iter().map(finite).collect()),
        other => other.clone(),
    }
}
