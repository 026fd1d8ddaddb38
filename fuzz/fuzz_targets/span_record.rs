//! A file of span records read in chunks that are cut anywhere is the same file; what a record says can be said again; a line of a log
//! reads back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warptrace_formats::span_record::{
    Body, Ended, Keys, Line, Lines, MAX_RECORD_BYTES, Moment, Record, SpanView, Spans, Stamp,
    Writer, log_line,
};
use warptrace_model::{Object, Value};

fuzz_target!(|input: &[u8]| {
    // The first byte says how long chunks are.
    let [cut, text @ ..] = input else {
        return;
    };
    let whole = read(std::iter::once(text));
    let parts = read(text.chunks(usize::from(*cut).max(1)));
    assert_eq!(whole.len(), parts.len());
    let mut spans = Spans::new();
    for (record, again) in whole.into_iter().zip(parts) {
        assert_eq!(format!("{record:?}"), format!("{again:?}"));
        write_again(&record);
        let _ = spans.take(record);
    }
    let _ = spans.finish();
    if let Ok(text) = std::str::from_utf8(text)
        && let Ok(object) = log_line::parse(text)
    {
        let mut line = String::new();
        log_line::write(&mut line, &object);
        let again = log_line::parse(&line).expect("what was written reads back");
        assert_eq!(sorted(&object), sorted(&again), "{line}");
    }
});

fn read<'t>(chunks: impl Iterator<Item = &'t [u8]>) -> Vec<Record> {
    let (mut records, mut lines) = (Vec::new(), Lines::new(MAX_RECORD_BYTES));
    let mut each = |line: Line<'_>| {
        records.extend(line.bytes.and_then(|bytes| Record::decode(bytes).ok()));
    };
    for chunk in chunks {
        lines.feed(chunk, &mut each);
    }
    lines.finish(&mut each);
    records
}

/// A start, written by us, reads back as it was.
fn write_again(record: &Record) {
    let Body::Span(_, span) = &record.body else {
        return;
    };
    let none = Object::new();
    let unix_nanos = span.start_unix_nanos.unwrap_or(0);
    let moment = Moment {
        name: "m",
        attributes: &none,
        unix_nanos,
        unix_millis: unix_nanos / 1_000_000,
    };
    let view = SpanView {
        id: span.id,
        name: &span.name,
        attributes: &span.attributes,
        trace: span.trace.unwrap_or(1),
        parent: span.parent,
        thread: span.thread.unwrap_or(0),
        start_unix_nanos: unix_nanos,
        dropped_events: span.dropped_events,
    };
    let ended = span.end_unix_nanos.map(|end_unix_nanos| Ended {
        moment,
        end_unix_nanos,
    });
    for keys in [Keys::All, Keys::OneLogger] {
        let mut line = String::new();
        let stamp = Stamp { count: 1, pid: 1 };
        Writer::new(&mut line, keys).span(&view, Some(&moment), ended.as_ref(), stamp);
        let again = Record::decode(line.as_bytes()).expect("what was written reads back");
        let Body::Span(_, again) = again.body else {
            panic!("{line}");
        };
        assert_eq!(again.id, span.id);
        // Compared as text: NaN is not itself. With all keys a word among doubles that are not finite becomes one of them.
        let said = format!("{:?}", span.attributes);
        if keys == Keys::OneLogger || !(said.contains("NaN") || said.contains("inf")) {
            assert_eq!(format!("{:?}", again.attributes), said);
        }
        if keys == Keys::All {
            assert_eq!(
                (again.parent, again.end_unix_nanos),
                (span.parent, span.end_unix_nanos)
            );
        }
    }
}

/// Log lines keep no order, and no empty objects.
fn sorted(object: &Object) -> String {
    let mut pairs: Vec<(&str, String)> = object
        .iter()
        .map(|(key, value)| match value {
            Value::Object(inner) => (key, sorted(inner)),
            other => (key, format!("{other:?}")),
        })
        .filter(|(_, value)| value != "[]")
        .collect();
    pairs.sort_unstable();
    format!("{pairs:?}")
}
