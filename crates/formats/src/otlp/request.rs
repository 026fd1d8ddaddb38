//! A request of spans that somebody else sent, read within bounds: what it would take in memory is known before it is decoded.
//!
//! It knows what can be read, not what makes sense: an id of the wrong length, or an end before its beginning, is the collector's to
//! judge.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost::{DecodeError, Message as _};

use super::proto::ExportTraceServiceRequest;

/// Messages in a request, at most: resources, scopes, spans, events, links, attributes and their values. Twice as many objects, lists
/// and commas in JSON, where an attribute has two of each.
///
/// A batch of 512 spans has room for 120 attributes with each. An empty span takes 2 bytes on the wire and some 300 in memory: without a
/// bound a request of 4 MiB could take 600.
pub const MAX_REQUEST_ITEMS: usize = 1 << 17;

/// Levels of messages: as many as prost takes.
const MAX_DEPTH: usize = 100;

/// Why a request cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableRequest {
    #[error("not an ExportTraceServiceRequest: {0}")]
    Malformed(String),
    #[error("more than {MAX_REQUEST_ITEMS} spans, events, links, attributes and values")]
    TooMany,
}

impl From<DecodeError> for UnreadableRequest {
    fn from(error: DecodeError) -> UnreadableRequest {
        UnreadableRequest::Malformed(error.to_string())
    }
}

impl ExportTraceServiceRequest {
    /// Of protobuf. What a later version of OTLP added is left out.
    ///
    /// # Errors
    /// When `body` is no such request, or has more than [`MAX_REQUEST_ITEMS`]. Cost of finding out: a walk over the bytes.
    pub fn decode_protobuf(body: &[u8]) -> Result<ExportTraceServiceRequest, UnreadableRequest> {
        count_messages(body)?;
        Ok(ExportTraceServiceRequest::decode(body)?)
    }

    /// Of OTLP's JSON.
    ///
    /// # Errors
    /// As of [`decode_protobuf`](ExportTraceServiceRequest::decode_protobuf).
    pub fn decode_json(body: &[u8]) -> Result<ExportTraceServiceRequest, UnreadableRequest> {
        if count_marks(body) > 2 * MAX_REQUEST_ITEMS {
            return Err(UnreadableRequest::TooMany);
        }
        let read = serde_json::from_slice(body);
        read.map_err(|error| UnreadableRequest::Malformed(error.to_string()))
    }

    /// How many spans there are, in all scopes.
    pub fn span_count(&self) -> u64 {
        let scopes = self.resource_spans.iter().flat_map(|r| &r.scope_spans);
        scopes.map(|scope| scope.spans.len() as u64).sum()
    }
}

/// What a message is, as far as others are in it.
#[derive(Clone, Copy)]
enum Kind {
    Request,
    ResourceSpans,
    Resource,
    ScopeSpans,
    Scope,
    Span,
    Event,
    Link,
    KeyValue,
    AnyValue,
    Array,
    Pairs,
    /// There is none in it.
    Plain,
}

impl Kind {
    /// The message in a field, by the numbers of opentelemetry-proto 1.x.
    fn of_field(self, field: u32) -> Option<Kind> {
        Some(match (self, field) {
            (Kind::Request, 1) => Kind::ResourceSpans,
            (Kind::ResourceSpans, 1) => Kind::Resource,
            (Kind::ResourceSpans, 2) => Kind::ScopeSpans,
            (Kind::ScopeSpans, 1) => Kind::Scope,
            (Kind::ScopeSpans, 2) => Kind::Span,
            (Kind::Span, 11) => Kind::Event,
            (Kind::Span, 13) => Kind::Link,
            (Kind::Span, 15) => Kind::Plain,
            (Kind::Resource | Kind::Pairs, 1)
            | (Kind::Scope | Kind::Event, 3)
            | (Kind::Link, 4)
            | (Kind::Span, 9) => Kind::KeyValue,
            (Kind::KeyValue, 2) | (Kind::Array, 1) => Kind::AnyValue,
            (Kind::AnyValue, 5) => Kind::Array,
            (Kind::AnyValue, 6) => Kind::Pairs,
            _ => return None,
        })
    }
}

/// Fails when there are more than [`MAX_REQUEST_ITEMS`], or `body` is no protobuf. Allocates nothing that grows with `body`.
fn count_messages(body: &[u8]) -> Result<(), UnreadableRequest> {
    let malformed = |what: &str| UnreadableRequest::Malformed(what.to_owned());
    let mut rest = body;
    // Each message with how much is left where it ends.
    let mut around = vec![(Kind::Request, 0)];
    let mut count = 0;
    while let Some(&(kind, end)) = around.last() {
        if rest.len() <= end {
            if rest.len() < end {
                return Err(malformed("a field is longer than its message"));
            }
            around.pop();
            continue;
        }
        let (field, wire) = decode_key(&mut rest)?;
        let Some(inner) = kind
            .of_field(field)
            .filter(|_| wire == WireType::LengthDelimited)
        else {
            skip_field(wire, field, &mut rest, DecodeContext::default())?;
            continue;
        };
        let length = usize::try_from(decode_varint(&mut rest)?).unwrap_or(usize::MAX);
        let inner_end = rest.len().checked_sub(length).filter(|left| *left >= end);
        let inner_end = inner_end.ok_or_else(|| malformed("a message is longer than its own"))?;
        count += 1;
        if count > MAX_REQUEST_ITEMS {
            return Err(UnreadableRequest::TooMany);
        }
        if around.len() > MAX_DEPTH {
            return Err(malformed("nested too deep"));
        }
        around.push((inner, inner_end));
    }
    Ok(())
}

/// Objects, lists and commas of JSON, outside its texts.
fn count_marks(body: &[u8]) -> usize {
    let (mut marks, mut in_text, mut is_escaped) = (0, false, false);
    for byte in body {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_text => is_escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' | b',' if !in_text => marks += 1,
            _ => {}
        }
    }
    marks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{
        AnyValue, ArrayValue, Event, InstrumentationScope, KeyValue, KeyValueList, Link, Resource,
        ResourceSpans, ScopeSpans, Span, Status, Variant,
    };
    use super::*;

    fn some(value: Variant) -> AnyValue {
        AnyValue { value: Some(value) }
    }

    fn pair(key: &str, value: Variant) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: Some(some(value)),
        }
    }

    /// With something in every field.
    fn whole() -> ExportTraceServiceRequest {
        let inner = pair("k", Variant::BoolValue(true));
        let attributes = vec![
            pair("text", Variant::StringValue("a,{[\\\"".into())),
            pair("int", Variant::IntValue(i64::MIN)),
            // Its last bit is lost by a reader that is nearly exact.
            pair("double", Variant::DoubleValue(-2.351461421572519e77)),
            pair("bytes", Variant::BytesValue(vec![0, 255, 7, 8])),
            pair(
                "list",
                Variant::ArrayValue(ArrayValue {
                    values: vec![some(Variant::IntValue(1)), AnyValue { value: None }],
                }),
            ),
            pair(
                "pairs",
                Variant::KvlistValue(KeyValueList {
                    values: vec![inner],
                }),
            ),
        ];
        let link = Link {
            trace_id: vec![3; 16],
            span_id: vec![4; 8],
            trace_state: "a=b".into(),
            attributes: attributes.clone(),
            dropped_attributes_count: 1,
            flags: 0x101,
        };
        let event = Event {
            time_unix_nano: 5,
            name: "event".into(),
            attributes: attributes.clone(),
            dropped_attributes_count: 2,
        };
        let span = Span {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            trace_state: "c=d".into(),
            parent_span_id: vec![9; 8],
            name: "span".into(),
            kind: 3,
            start_time_unix_nano: 1,
            end_time_unix_nano: u64::MAX,
            attributes: attributes.clone(),
            dropped_attributes_count: 3,
            events: vec![event],
            dropped_events_count: 4,
            links: vec![link],
            dropped_links_count: 5,
            status: Some(Status {
                message: "no".into(),
                code: 2,
            }),
            flags: 0x301,
        };
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource {
                    attributes: attributes.clone(),
                    dropped_attributes_count: 6,
                }),
                scope_spans: vec![ScopeSpans {
                    scope: Some(InstrumentationScope {
                        name: "scope".into(),
                        version: "1".into(),
                        attributes,
                        dropped_attributes_count: 7,
                    }),
                    spans: vec![span.clone(), span],
                    schema_url: "s".into(),
                }],
                schema_url: "r".into(),
            }],
        }
    }

    #[test]
    fn a_request_is_the_same_in_both_encodings() {
        let request = whole();
        assert_eq!(request.span_count(), 2);
        let protobuf = request.to_protobuf();
        let json = request.to_json();
        assert_eq!(
            ExportTraceServiceRequest::decode_protobuf(&protobuf).unwrap(),
            request
        );
        assert_eq!(
            ExportTraceServiceRequest::decode_json(&json).unwrap(),
            request
        );
        for end in 1..protobuf.len() {
            // Cut at a field it may be one; it is never more.
            if let Ok(part) = ExportTraceServiceRequest::decode_protobuf(&protobuf[..end]) {
                assert!(part.span_count() <= 2);
            }
        }
        for end in 0..json.len() {
            assert!(ExportTraceServiceRequest::decode_json(&json[..end]).is_err());
        }
    }

    #[test]
    fn what_would_take_much_more_memory_than_bytes_is_refused() {
        let many = |head: &[u8], item: &[u8], n: usize| {
            // Lengths of three levels, each of 4 bytes.
            let mut body = item.repeat(n);
            for tag in head.iter().rev() {
                let length = body.len() as u32;
                let mut outer = vec![*tag];
                outer.extend((0..4).map(|i| {
                    let bits = (length >> (7 * i)) as u8 & 127;
                    if i < 3 { bits | 128 } else { bits }
                }));
                outer.extend(body);
                body = outer;
            }
            body
        };
        let (scopes, spans) = (0x12, 0x12);
        let few = many(&[0x0a, scopes], &[spans, 0], MAX_REQUEST_ITEMS - 2);
        let read = ExportTraceServiceRequest::decode_protobuf(&few).unwrap();
        assert_eq!(read.span_count(), MAX_REQUEST_ITEMS as u64 - 2);
        let more = many(&[0x0a, scopes], &[spans, 0], MAX_REQUEST_ITEMS);
        let refused = ExportTraceServiceRequest::decode_protobuf(&more);
        assert_eq!(refused, Err(UnreadableRequest::TooMany));
        let json = format!("{{\"resourceSpans\":[{}{{}}]}}", "{},".repeat(300_000));
        let refused = ExportTraceServiceRequest::decode_json(json.as_bytes());
        assert_eq!(refused, Err(UnreadableRequest::TooMany));
        let deep = many(&[0x0a; 1], &[0x0a, 0], 1);
        assert!(ExportTraceServiceRequest::decode_protobuf(&deep).is_ok());
        let mut value = Variant::IntValue(1);
        for _ in 0..60 {
            value = Variant::ArrayValue(ArrayValue {
                values: vec![some(value)],
            });
        }
        let mut nested = whole();
        nested.resource_spans[0].scope_spans[0].spans[0].attributes = vec![pair("deep", value)];
        for refused in [
            ExportTraceServiceRequest::decode_protobuf(&nested.to_protobuf()),
            ExportTraceServiceRequest::decode_json(&nested.to_json()),
        ] {
            assert!(
                matches!(refused, Err(UnreadableRequest::Malformed(_))),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn base64_is_read_with_and_without_padding_in_either_alphabet() {
        let read = |text: &str| {
            let json = format!("{{\"bytesValue\":{text:?}}}");
            serde_json::from_str::<AnyValue>(&json).map(|value| value.value)
        };
        for (text, bytes) in [
            ("", &b""[..]),
            ("AA==", &[0]),
            ("AA", &[0]),
            ("-_8=", &[0xfb, 0xff]),
            ("+/8", &[0xfb, 0xff]),
            ("AQID", &[1, 2, 3]),
        ] {
            let read = read(text).unwrap();
            assert_eq!(read, Some(Variant::BytesValue(bytes.to_vec())), "{text}");
        }
        for wrong in ["A", "A===", "A*==", "AAAAA"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>()) {
            let _ = ExportTraceServiceRequest::decode_protobuf(&bytes);
            let _ = ExportTraceServiceRequest::decode_json(&bytes);
            for mut whole in [whole().to_protobuf(), whole().to_json()] {
                let at = at.index(whole.len());
                let end = (at + bytes.len()).min(whole.len());
                whole[at..end].copy_from_slice(&bytes[..end - at]);
                let _ = ExportTraceServiceRequest::decode_protobuf(&whole);
                let _ = ExportTraceServiceRequest::decode_json(&whole);
            }
        }
    }
}
