//! OTLP, the OpenTelemetry protocol: spans and metrics as a collector takes them, and its answers.
//!
//! [`Origin::request`] makes a request of spans, [`MetricsEncoder::request`] one of metrics, [`Deltas`] what came since the one
//! before; `to_protobuf` and `to_json` of a request are its two encodings. How one travels (HTTP, gRPC, compression, retries) is
//! the exporter's. Logs are not here.
//!
//! # What becomes of a span
//!
//! - `span_id` is the low 64 bits of our id, `trace_id` our trace; kind `INTERNAL`; trace flag *sampled*.
//! - An open span has end 0, which OTLP calls unset.
//! - An error is status `ERROR` with its text; a span without one has no status.
//!
//! # What becomes of a value
//!
//! | ours | OTLP |
//! |---|---|
//! | null | an empty `AnyValue` |
//! | bool, double, text | the same; half of a surrogate pair becomes U+FFFD |
//! | integer | `intValue`, beyond 64 bits with sign: its digits as text |
//! | list | `arrayValue`; when one integer of it is beyond 64 bits, all of its integers are text, so that it stays of one kind |
//! | object | `kvlistValue` |
//! | list or object below 16 levels of them | an empty `AnyValue`: receivers refuse a request that is nested too deep, as a whole |

mod conclusions;
mod deltas;
mod metrics;
mod proto;
mod request;
mod response;
mod starts;

use prost::Message as _;
use warptrace_model::{Int, Object, SpanEvent, SpanRecord, Value, surrogate_half};

pub use self::conclusions::{INGERO_SPAN_ATTRIBUTES, finding_span, outlier_span};
pub use self::deltas::Deltas;
pub use self::metrics::{MetricsEncoder, Temporality, split};
pub use self::proto::{
    AnyValue, ArrayValue, Buckets, Data, Event, Exemplar, ExemplarValue, ExponentialHistogram,
    ExponentialHistogramDataPoint, ExportMetricsServiceRequest, ExportTracePartialSuccess,
    ExportTraceServiceRequest, ExportTraceServiceResponse, Gauge, Histogram, HistogramDataPoint,
    InstrumentationScope, KeyValue, KeyValueList, Link, Metric, NumberDataPoint, PointValue,
    Resource, ResourceMetrics, ResourceSpans, ScopeMetrics, ScopeSpans, Span, Status, Sum, Variant,
};
pub use self::request::{MAX_REQUEST_ITEMS, UnreadableRequest};
pub use self::response::{Partial, Refusal, UnreadableResponse};
pub use self::starts::Starts;

/// Levels of lists and objects in a value; what lies deeper is left out. With the levels of messages around a value this is
/// within the 100 that prost, protobuf's C++ and its Python take.
pub const MAX_VALUE_DEPTH: usize = 16;

const KIND_INTERNAL: i32 = 1;
const STATUS_ERROR: i32 = 2;
const FLAG_SAMPLED: u32 = 1;

/// Who says the spans: the resource (process, host, service) and the scope (the instrumenting library).
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    resource: Resource,
    scope: InstrumentationScope,
}

impl Origin {
    pub fn new(resource: &Object, scope_name: &str, scope_version: &str) -> Origin {
        Origin {
            resource: Resource {
                attributes: attributes(resource),
                ..Resource::default()
            },
            scope: InstrumentationScope {
                name: scope_name.to_owned(),
                version: scope_version.to_owned(),
                ..InstrumentationScope::default()
            },
        }
    }

    /// One request with all of `spans`, in their order.
    pub fn request<'a>(
        &self,
        spans: impl IntoIterator<Item = &'a SpanRecord>,
    ) -> ExportTraceServiceRequest {
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(self.scope.clone()),
                    spans: spans.into_iter().map(span).collect(),
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        }
    }
}

impl ExportTraceServiceRequest {
    /// As protobuf.
    pub fn to_protobuf(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// As OTLP's JSON: ids in hexadecimal, 64-bit integers as text, enumerations as numbers, lowerCamelCase.
    pub fn to_json(&self) -> Vec<u8> {
        // Only a map with keys that are no strings fails, and there is none in these messages.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

fn span(record: &SpanRecord) -> Span {
    Span {
        trace_id: record.trace.to_be_bytes().to_vec(),
        span_id: record.id.otlp().to_be_bytes().to_vec(),
        parent_span_id: record
            .parent
            .map(|id| id.to_be_bytes().to_vec())
            .unwrap_or_default(),
        name: text(&record.name),
        kind: KIND_INTERNAL,
        start_time_unix_nano: record.start.0,
        end_time_unix_nano: record.end.map_or(0, |end| end.0),
        attributes: attributes(&record.attributes),
        events: record.events.iter().map(event).collect(),
        dropped_events_count: record.dropped_events,
        status: record.error.as_deref().map(|message| Status {
            message: text(message),
            code: STATUS_ERROR,
        }),
        flags: FLAG_SAMPLED,
        ..Span::default()
    }
}

fn event(event: &SpanEvent) -> Event {
    Event {
        time_unix_nano: event.at.0,
        name: text(&event.name),
        attributes: attributes(&event.attributes),
        ..Event::default()
    }
}

fn attributes(object: &Object) -> Vec<KeyValue> {
    key_values(object, 0)
}

fn key_values(object: &Object, depth: usize) -> Vec<KeyValue> {
    object
        .iter()
        .map(|(key, value)| KeyValue {
            key: text(key),
            value: Some(any_value(value, false, depth)),
        })
        .collect()
}

/// `depth` is the number of lists and objects around the value.
fn any_value(value: &Value, integers_as_text: bool, depth: usize) -> AnyValue {
    let variant = match value {
        Value::Null => None,
        Value::Bool(b) => Some(Variant::BoolValue(*b)),
        Value::Int(n) => Some(match n.to_i64() {
            Some(n) if !integers_as_text => Variant::IntValue(n),
            _ => Variant::StringValue(n.to_string()),
        }),
        Value::Float(x) => Some(Variant::DoubleValue(*x)),
        Value::String(s) => Some(Variant::StringValue(text(s))),
        Value::Array(_) | Value::Object(_) if depth == MAX_VALUE_DEPTH => None,
        Value::Array(items) => {
            let as_text = items.iter().any(is_big);
            Some(Variant::ArrayValue(ArrayValue {
                values: items
                    .iter()
                    .map(|item| any_value(item, as_text, depth + 1))
                    .collect(),
            }))
        }
        Value::Object(object) => Some(Variant::KvlistValue(KeyValueList {
            values: key_values(object, depth + 1),
        })),
    };
    AnyValue { value: variant }
}

fn is_big(value: &Value) -> bool {
    matches!(value, Value::Int(n) if n.to_i64().is_none())
}

/// `text` with each half of a surrogate pair replaced, since no Unicode text holds one.
fn text(text: &str) -> String {
    // All of them are in the last rows of plane 16, whose UTF-8 begins so.
    if !text.as_bytes().contains(&0xf4) {
        return text.to_owned();
    }
    text.chars()
        .map(|c| match surrogate_half(c) {
            Some(_) => char::REPLACEMENT_CHARACTER,
            None => c,
        })
        .collect()
}

/// Bytes that a span takes on the wire as protobuf, at most, and roughly what it takes in memory, at least.
///
/// Never less than the encoding in a request; for spans of a few attributes about twice it. Cost: a walk over the
/// attributes, no allocation but for integers beyond 64 bits.
pub fn size_bytes(record: &SpanRecord) -> usize {
    const SPAN: usize = 200;
    SPAN + record.name.len()
        + record.error.as_deref().map_or(0, str::len)
        + attributes_bytes(&record.attributes)
        + record.events.iter().map(event_bytes).sum::<usize>()
}

/// The part of [`size_bytes`] that an event is.
pub fn event_bytes(event: &SpanEvent) -> usize {
    const EVENT: usize = 64;
    EVENT + event.name.len() + attributes_bytes(&event.attributes)
}

/// The part of [`size_bytes`] that attributes are.
pub fn attributes_bytes(attributes: &Object) -> usize {
    object_bytes(attributes, 0)
}

/// The part of [`size_bytes`] that the value of an attribute is.
pub fn value_bytes(value: &Value) -> usize {
    bytes_of(value, 0)
}

fn bytes_of(value: &Value, depth: usize) -> usize {
    /// Tags and lengths of an `AnyValue` and what is in it, or the value in memory.
    const VALUE: usize = 24;
    VALUE
        + match value {
            Value::Null | Value::Bool(_) | Value::Float(_) => 0,
            Value::Int(n) => int_bytes(n),
            Value::String(s) => s.len(),
            Value::Array(_) | Value::Object(_) if depth == MAX_VALUE_DEPTH => 0,
            Value::Array(items) => {
                let items = items.iter().map(|item| bytes_of(item, depth + 1));
                items.sum()
            }
            Value::Object(object) => object_bytes(object, depth + 1),
        }
}

fn object_bytes(object: &Object, depth: usize) -> usize {
    /// Tags and lengths of a `KeyValue` and its key.
    const PAIR: usize = 16;
    let pairs = object
        .iter()
        .map(|(key, value)| PAIR + key.len() + bytes_of(value, depth));
    pairs.sum()
}

fn int_bytes(n: &Int) -> usize {
    match n.to_i64() {
        // As many as its digits take, since a list may turn them to text.
        Some(_) => 20,
        None => n.to_string().len(),
    }
}

#[cfg(test)]
mod tests;
