use proptest::prelude::*;
use warptrace_model::{Int, Object, SpanId, Value};

use super::*;

const ID: SpanId = SpanId::from_bits(0x0123_4567_89ab_4def_8123_4567_89ab_cdef);
const STAMP: Stamp = Stamp {
    count: 1,
    pid: 4242,
};

fn object(pairs: &[(&str, Value)]) -> Object {
    Object::from_pairs(
        pairs
            .iter()
            .map(|(k, v)| ((*k).into(), v.clone()))
            .collect(),
    )
}

fn moment<'a>(name: &'a str, attributes: &'a Object) -> Moment<'a> {
    Moment {
        name,
        attributes,
        unix_nanos: 1_750_000_000_000_000_123,
        unix_millis: 1_750_000_000_000,
    }
}

fn view<'a>(name: &'a str, attributes: &'a Object) -> SpanView<'a> {
    SpanView {
        id: ID,
        name,
        attributes,
        trace: ID.to_bits(),
        parent: None,
        thread: 0,
        start_unix_nanos: 1_750_000_000_000_000_123,
        dropped_events: 0,
    }
}

#[test]
fn a_record_is_the_packages_to_the_byte_or_that_and_more() {
    let attributes = object(&[
        ("x", 1_i64.into()),
        ("u", "é \"q\"".into()),
        ("f", 1.0.into()),
    ]);
    let (none, mut line) = (Object::new(), String::new());
    let start = moment("span_start", &none);
    let mut span = view("a", &attributes);
    Writer::new(&mut line, Keys::OneLogger).span(&span, Some(&start), None, STAMP);
    assert_eq!(
        line,
        "{\"type\":\"start\",\"id\":\"01234567-89ab-4def-8123-456789abcdef\",\"name\":\"a\",\
         \"attributes\":{\"x\":1,\"u\":\"\\u00e9 \\\"q\\\"\",\"f\":1.0},\
         \"start_event\":{\"name\":\"span_start\",\"attributes\":{\"timestamp_msec\":1750000000000}},\
         \"count\":1,\"pid\":4242}\n"
    );
    let package = line.strip_suffix("}\n").unwrap().to_owned();
    line.clear();
    (span.parent, span.thread) = (Some(ParentId::Remote(7)), 9);
    Writer::new(&mut line, Keys::All).span(&span, Some(&start), None, STAMP);
    let more = line.strip_prefix(&package).unwrap();
    assert_eq!(
        more,
        ",\"trace_id\":\"0123456789ab4def8123456789abcdef\",\"parent_id\":\"0000000000000007\",\"thread_id\":9,\
         \"time_unix_ns\":1750000000000000123}\n"
    );
}

#[test]
fn doubles_that_json_cannot_say_come_back_and_words_stay_words() {
    let list = vec![f64::NAN, 1.0, f64::NEG_INFINITY];
    let own = object(&[
        ("nan", f64::NAN.into()),
        ("word", "NaN".into()),
        ("a.b", list.into()),
    ]);
    for (keys, has) in [
        (
            Keys::All,
            "\"non_finite\":[\"event.attributes.nan\",\"event.attributes.a.b\"]",
        ),
        (
            Keys::OneLogger,
            "\"nan\":NaN,\"word\":\"NaN\",\"a.b\":[NaN,1.0,-Infinity]",
        ),
    ] {
        let mut line = String::new();
        Writer::new(&mut line, keys).event(ID, &moment("e", &own), false, STAMP);
        assert!(line.contains(has), "{line}");
        assert_eq!(
            keys == Keys::All,
            serde_json::from_str::<serde_json::Value>(&line).is_ok()
        );
        let Body::Event { event, .. } = Record::decode(line.as_bytes()).unwrap().body else {
            panic!("{line}");
        };
        assert!(matches!(event.attributes.get("nan"), Some(Value::Float(x)) if x.is_nan()));
        assert_eq!(event.attributes.get("word"), Some(&"NaN".into()));
        let list = event.attributes.get("a.b").unwrap().as_array().unwrap();
        assert!(
            matches!(list, [Value::Float(x), Value::Float(1.0), Value::Float(f64::NEG_INFINITY)] if x.is_nan())
        );
    }
}

#[test]
fn an_attribute_that_makes_a_record_too_long_is_left_out_and_counted() {
    let long = "\u{1}".repeat(1 << 20);
    let huge: Vec<&str> = vec![&long; 1000];
    let attributes = object(&[
        ("a", 1_i64.into()),
        ("huge", huge.into()),
        ("b", 2_i64.into()),
    ]);
    let name = "n".repeat(1 << 20);
    let (none, mut line) = (Object::new(), String::from("before\n"));
    let start = moment(&name, &none);
    let left_out = Writer::new(&mut line, Keys::All).span(
        &view(&name, &attributes),
        Some(&start),
        None,
        STAMP,
    );
    assert_eq!(left_out, 1);
    let line = line.strip_prefix("before\n").unwrap();
    assert!(line.len() <= MAX_RECORD_BYTES);
    let record = Record::decode(line.as_bytes()).unwrap();
    assert_eq!(record.dropped_attributes, 1);
    let Body::Span(Stage::Start, span) = record.body else {
        panic!()
    };
    assert_eq!(
        (span.attributes.len(), span.name.len()),
        (2, MAX_NAME_BYTES)
    );
}

#[test]
fn a_time_that_was_given_as_an_attribute_is_replaced_at_its_place() {
    let own = object(&[("timestamp_msec", 5_i64.into()), ("k", "v".into())]);
    let mut line = String::new();
    Writer::new(&mut line, Keys::OneLogger)
        .data_error(&moment("telemetry_data_error", &own), STAMP);
    assert!(
        line.contains("{\"timestamp_msec\":1750000000000,\"k\":\"v\"}"),
        "{line}"
    );
}

#[test]
fn what_is_no_record_says_why() {
    let cases: [(&str, &str); 10] = [
        ("", "not JSON"),
        ("[1]", "not an object"),
        ("{}", "\"type\" is missing"),
        ("{\"type\":1}", "\"type\" is not what it must be"),
        ("{\"type\":\"x\"}", "unknown type \"x\""),
        ("{\"type\":\"start\"}", "\"id\" is missing"),
        (
            "{\"type\":\"start\",\"id\":\"x\"}",
            "\"id\" is not what it must be",
        ),
        (
            "{\"type\":\"event\",\"span_id\":\"01234567-89ab-4def-8123-456789abcdef\",\"event\":1}",
            "\"event\" is not what it must be",
        ),
        (
            "{\"type\":\"telemetry_data_error\",\"error\":{\"name\":\"e\"},\"count\":-1}",
            "\"count\" is not what it must be",
        ),
        (
            "{\"type\":\"telemetry_data_error\"}",
            "\"error\" is missing",
        ),
    ];
    for (line, why) in cases {
        assert_eq!(
            Record::decode(line.as_bytes()).unwrap_err().to_string(),
            why,
            "{line}"
        );
    }
}

#[test]
fn spans_are_put_together_of_their_records() {
    let (none, attributes) = (Object::new(), object(&[("duration_msec", 2_i64.into())]));
    let (start, stop) = (moment("span_start", &none), moment("span_stop", &none));
    let ended = Ended {
        moment: stop,
        end_unix_nanos: 1_750_000_000_002_000_500,
    };
    let error = object(&[("error_message", "oops".into())]);
    let mut text = String::new();
    for keys in [Keys::All, Keys::OneLogger] {
        text.clear();
        let span = view("a", &attributes);
        Writer::new(&mut text, keys).span(&span, Some(&start), None, STAMP);
        Writer::new(&mut text, keys).event(ID, &moment("error", &error), true, STAMP);
        Writer::new(&mut text, keys).span(&span, None, Some(&ended), STAMP);
        Writer::new(&mut text, keys).event(ID, &moment("late", &none), false, STAMP);
        let (mut spans, mut lines, mut done) =
            (Spans::new(), Lines::new(MAX_RECORD_BYTES), Vec::new());
        let mut each =
            |line: Line<'_>| done.extend(spans.take(Record::decode(line.bytes.unwrap()).unwrap()));
        lines.feed(text.as_bytes(), &mut each);
        assert!(!lines.finish(&mut each));
        let [span] = &done[..] else {
            panic!("{done:?}")
        };
        assert_eq!(span.error.as_deref(), Some("oops"));
        assert_eq!((span.events.len(), &*span.events[0].name), (1, "error"));
        let exact = keys == Keys::All;
        assert_eq!(
            span.start.0,
            if exact {
                1_750_000_000_000_000_123
            } else {
                1_750_000_000_000_000_000
            }
        );
        assert_eq!(
            span.end.unwrap().0,
            if exact {
                1_750_000_000_002_000_500
            } else {
                1_750_000_000_002_000_000
            }
        );
        assert_eq!(spans.counts().stray_events, 1);
        assert!(spans.finish().is_empty());
    }
}

#[test]
fn the_oldest_open_span_is_given_up() {
    let none = Object::new();
    let start = moment("span_start", &none);
    let mut spans = Spans::new();
    for n in 1..=MAX_OPEN_SPANS as u128 + 2 {
        let span = SpanView {
            id: SpanId::from_bits(n),
            ..view("a", &none)
        };
        let mut line = String::new();
        Writer::new(&mut line, Keys::All).span(&span, Some(&start), None, STAMP);
        spans.take(Record::decode(line.as_bytes()).unwrap());
    }
    assert_eq!(spans.counts().given_up, 2);
    let open = spans.finish();
    assert_eq!(
        (open.len(), open[0].id),
        (MAX_OPEN_SPANS, SpanId::from_bits(3))
    );
}

#[test]
fn a_log_line_is_the_packages_and_awkward_keys_and_values_come_back() {
    let plain = "[type=\"event\" | span_id=\"s\" | pid=1 | event.name=\"e\" | event.attributes.k=\"a \\\"q\\\" | b=c\" | count=2]";
    let object = log_line::parse(plain).unwrap();
    let mut line = String::new();
    log_line::write(&mut line, &object);
    assert_eq!(line, plain);
    for odd in [
        "x [2025-01-01] INFO [type=\"a\" | gen_ai.\"a.b=c | d]\"=[1, 2]]",
        "[\"\"={\"a\": 1}]",
        "[]",
        // Brackets in quotes are no text before the record, wherever they stand.
        "[a.\"e[])\".x=\"[type=1]\"]",
        "[2025] [\"e[\"=1]",
    ] {
        let object = log_line::parse(odd).unwrap_or_else(|e| panic!("{odd}: {e}"));
        line.clear();
        log_line::write(&mut line, &object);
        assert_eq!(log_line::parse(&line).unwrap(), object, "{odd} {line}");
    }
    assert_eq!(
        log_line::parse("[a=notjson]").unwrap().get("a"),
        Some(&"notjson".into())
    );
    for bad in [
        "no",
        "]a=1[",
        "[a]",
        "[a=]",
        "[=",
        "[a=1 b=2]x",
        "[a.=1 | ]",
    ] {
        let _ = log_line::parse(bad);
    }
    assert_eq!(
        log_line::parse("no brackets").unwrap_err().code(),
        "log_line_not_bracketed"
    );
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z_.=| \\[\\]\"\\\\]{0,12}",
        prop::collection::vec(
            any::<char>().prop_filter("halves of pairs have characters of their own", |c| *c
                < '\u{10F800}'),
            0..6
        )
        .prop_map(|chars| chars.into_iter().collect()),
        Just("NaN".to_owned()),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        text().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i128>().prop_map(|n| Value::Int(Int::from(n))),
        any::<f64>()
            .prop_filter("NaN is not itself", |x| !x.is_nan())
            .prop_map(Value::from),
        Just(Value::Null),
    ];
    prop_oneof![
        scalar.clone(),
        prop::collection::vec(
            any::<f64>().prop_filter("NaN is not itself", |x| !x.is_nan()),
            0..4
        )
        .prop_map(Value::from),
        prop::collection::vec(text(), 0..4).prop_map(Value::from),
    ]
}

fn attributes() -> impl Strategy<Value = Object> {
    let pair = (text().prop_map(String::into_boxed_str), value());
    prop::collection::vec(pair, 0..6).prop_map(|pairs| {
        let mut object = Object::from_pairs(pairs);
        object.remove("timestamp_msec");
        object
    })
}

fn without_millis(event: &EventPart) -> Object {
    let mut attributes = event.attributes.clone();
    attributes.remove("timestamp_msec");
    attributes
}

/// Order is not kept by log lines.
fn sorted(object: &Object) -> Vec<(Box<str>, Value)> {
    let mut pairs: Vec<(Box<str>, Value)> =
        object.iter().map(|(k, v)| (k.into(), v.clone())).collect();
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    pairs
}

proptest! {
    #[test]
    fn a_span_comes_back_as_it_was(
        bits in any::<u128>(), trace in any::<u128>(), parent in any::<Option<(bool, u128)>>(), thread in any::<u32>(),
        name in text(), all in attributes(), of_start in attributes(), of_stop in attributes(),
        start in 0..i64::MAX, end in 0..i64::MAX, stage in 0..3, count in any::<u64>(), pid in any::<u32>(), dropped in any::<u32>(),
    ) {
        let parent = parent.map(|(ours, id)| if ours { ParentId::Span(SpanId::from_bits(id)) } else { ParentId::Remote(id as u64) });
        let view = SpanView {
            id: SpanId::from_bits(bits), name: &name, attributes: &all, trace, parent, thread, start_unix_nanos: start, dropped_events: dropped,
        };
        let begun = Moment { name: "span_start", attributes: &of_start, unix_nanos: start, unix_millis: start / 1_000_000 };
        let ended = Ended {
            moment: Moment { name: "span_stop", attributes: &of_stop, unix_nanos: end, unix_millis: end / 1_000_000 },
            end_unix_nanos: end,
        };
        let begun = (stage != 1).then_some(&begun);
        let ended = (stage != 0).then_some(&ended);
        let mut line = String::new();
        Writer::new(&mut line, Keys::All).span(&view, begun, ended, Stamp { count, pid });
        prop_assert!(line.is_ascii() && line.ends_with('\n'));
        prop_assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok());
        let record = Record::decode(line.as_bytes()).unwrap();
        prop_assert_eq!((record.count, record.pid), (Some(count), Some(pid)));
        let Body::Span(_, span) = &record.body else { panic!() };
        prop_assert_eq!((span.id, &*span.name, span.trace, span.parent), (view.id, &*name, Some(trace), parent));
        prop_assert_eq!(span.thread, (thread != 0).then_some(thread));
        prop_assert_eq!((span.start_unix_nanos, span.end_unix_nanos), (Some(start), ended.map(|e| e.end_unix_nanos)));
        prop_assert_eq!(span.dropped_events, if stage == 0 { 0 } else { dropped });
        prop_assert_eq!(&span.attributes, &all);
        prop_assert_eq!(span.start_event.as_ref().map(without_millis), begun.map(|_| of_start.clone()));
        prop_assert_eq!(span.stop_event.as_ref().map(without_millis), ended.map(|_| of_stop.clone()));
        // As a line of a log.
        let Value::Object(object) = crate::open_json::parse(line.as_bytes()).unwrap() else { panic!() };
        let mut log = String::from("INFO ");
        log_line::write(&mut log, &object);
        prop_assert!(log.is_char_boundary(0) && !log.contains('\n'));
        let again = Record::from_object(log_line::parse(&log).unwrap()).unwrap();
        let Body::Span(_, logged) = &again.body else { panic!() };
        prop_assert_eq!(sorted(&logged.attributes), sorted(&all));
    }

    #[test]
    fn no_input_is_too_much(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,100}") {
        let _ = Record::decode(&bytes);
        let _ = log_line::parse(&text);
        let _ = log_line::parse(&format!("[{text}]"));
    }
}
