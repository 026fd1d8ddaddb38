//! What holds of any input: round trips, pieces cut anywhere, a disk that fails at any time.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::time::Duration;

use proptest::prelude::*;
use warptrace_model::{Int, MemoryEvent, Object, SessionStatus, Value};

use super::*;

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i128>().prop_map(|n| Value::Int(Int::from(n))),
        any::<f64>()
            .prop_filter("NaN is not equal to itself", |x| !x.is_nan())
            .prop_map(Value::Float),
        ".*".prop_map(|text| Value::from(&*text)),
        // Halves of surrogate pairs.
        (0xD800_u16..0xE000).prop_map(|half| {
            let half = warptrace_model::lone_surrogate(half).unwrap();
            Value::from(&*format!("a{half}"))
        }),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let pair = (".{0,8}", inner.clone()).prop_map(|(key, value)| (key.into(), value));
        prop_oneof![
            prop::collection::vec(inner, 0..6).prop_map(Value::Array),
            prop::collection::vec(pair, 0..6).prop_map(|pairs| Object::from_pairs(pairs).into()),
        ]
    })
}

/// Events as their records, with counters and metadata of any kind.
fn raw_event() -> impl Strategy<Value = Object> {
    let counter = || prop::option::of(0_i64..i64::MAX);
    let text = || "[a-zé\u{1F600}].{0,12}";
    let metadata = prop::collection::vec((".{0,8}", value()), 0..4);
    (
        any::<u64>(),
        text(),
        text(),
        prop::option::of(text()),
        prop::array::uniform4(counter()),
        any::<Option<i64>>(),
        prop::option::of(".*"),
        metadata,
    )
        .prop_map(
            |(time, kind, session, job, counters, change, context, metadata)| {
                let optional = |value: Option<i64>| value.map_or(Value::Null, Value::from);
                let text =
                    |value: Option<String>| value.map_or(Value::Null, |text| Value::from(&*text));
                let [allocated, reserved, active, used] = counters;
                let mut metadata: Vec<_> = metadata
                    .into_iter()
                    .map(|(key, value)| (key.into(), value))
                    .collect();
                metadata.retain(|(key, _): &(Box<str>, Value)| **key != *"memory_capabilities");
                let pairs = vec![
                    ("schema_version", Value::from(4)),
                    ("session_id", Value::from(&*session)),
                    ("timestamp_ns", Value::Int(Int::from(time))),
                    ("event_type", Value::from(&*kind)),
                    ("collector", Value::from("stormlog.cuda_tracker")),
                    ("sampling_interval_ms", Value::from(100)),
                    ("pid", Value::from(7)),
                    ("host", Value::from("h")),
                    ("job_id", text(job)),
                    ("rank", Value::from(1)),
                    ("world_size", Value::from(2)),
                    ("device_id", Value::from(0)),
                    ("allocator_allocated_bytes", optional(allocated)),
                    ("allocator_reserved_bytes", optional(reserved)),
                    ("allocator_active_bytes", optional(active)),
                    ("allocator_inactive_bytes", Value::Null),
                    // A change of what is not measured is refused.
                    (
                        "allocator_change_bytes",
                        optional(change.filter(|_| allocated.is_some())),
                    ),
                    ("device_used_bytes", optional(used)),
                    ("device_free_bytes", Value::Null),
                    ("device_total_bytes", optional(used)),
                    ("context", text(context)),
                    ("metadata", Object::from_pairs(metadata).into()),
                ];
                Object::from_pairs(pairs.into_iter().map(|(k, v)| (k.into(), v)).collect())
            },
        )
}

fn line_of(record: &Object) -> String {
    let mut line = String::new();
    open_json::write_object(&mut line, record, open_json::Style::LINE);
    line + "\n"
}

/// Reads at most so many bytes at a time.
struct Slow<'a>(&'a [u8], usize);

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.1.min(buffer.len());
        self.0.read(&mut buffer[..length])
    }
}

fn decoded(bytes: &[u8], upgrade: &Upgrade) -> (Vec<MemoryEvent>, Vec<BadLine>) {
    let mut chunks = Chunks::new(bytes);
    let mut decoder = ChunkDecoder::new(upgrade.clone());
    let (mut chunk, mut batch) = (Chunk::default(), Batch::default());
    while chunks.read(&mut chunk).unwrap() {
        decoder.decode(&chunk, &mut batch);
    }
    (batch.events, batch.bad)
}

proptest! {
    #[test]
    fn open_data_is_read_as_it_was_written(value in value()) {
        for layout in [open_json::Layout::Spaced, open_json::Layout::Compact, open_json::Layout::Indented] {
            let style = open_json::Style { sorted: false, layout };
            let text = open_json::to_string(&value, style);
            prop_assert!(text.is_ascii());
            prop_assert_eq!(&open_json::parse(text.as_bytes()).unwrap(), &value);
        }
    }

    #[test]
    fn an_event_is_read_as_it_was_written(raws in prop::collection::vec(raw_event(), 1..5)) {
        let upgrade = Upgrade::default();
        let events: Vec<_> = raws.iter().map(|raw| upgrade.event(raw.clone().into()).unwrap()).collect();
        let records = events.iter().map(|event| record(event, Version::V4).unwrap());
        let text: String = records.map(|record| line_of(&record)).collect();
        let (again, bad) = decoded(text.as_bytes(), &upgrade);
        prop_assert!(bad.is_empty());
        let records = again.iter().map(|event| line_of(&record(event, Version::V4).unwrap()));
        prop_assert_eq!(records.collect::<String>(), text);
        for event in &events {
            // Version 3 says less or the same, and is upgraded to what it was made of.
            if let Ok(v3) = record(event, Version::V3) {
                let mut again = upgrade.event(v3.into()).unwrap();
                again.said = event.said;
                prop_assert_eq!(&again, event);
            }
        }
    }

    #[test]
    fn a_document_is_the_same_however_its_bytes_come(
        raws in prop::collection::vec(raw_event(), 0..5),
        pace in 1_usize..40,
        wrapped in any::<bool>(),
    ) {
        let upgrade = Upgrade::default();
        let list = Value::Array(raws.iter().cloned().map(Value::Object).collect());
        let list = open_json::to_string(&list, open_json::Style::MANIFEST);
        let text = match wrapped {
            true => format!("{{\"a\": [1, {{\"b\": \"]\\\"\"}}], \"events\": 5, \"events\": {list}}}\n"),
            false => list,
        };
        let mut got = Vec::new();
        let open = &mut || Ok(Slow(text.as_bytes(), pace));
        read_document(open, None, &upgrade, &mut |(index, event)| {
            got.push((index, event.unwrap()));
        }).unwrap();
        let want: Vec<_> = (0..).zip(raws).map(|(at, raw)| (at, upgrade.event(raw.into()).unwrap())).collect();
        prop_assert_eq!(format!("{got:?}"), format!("{want:?}"));
    }

    #[test]
    fn a_sink_on_a_failing_disk_loses_nothing_and_doubles_nothing(
        faults in prop::collection::vec(0_u8..6, 0..60),
        rollover in 1_u64..5,
        batch in 1_u64..4,
    ) {
        let config = SinkConfig {
            flush_every_events: batch,
            rollover_max_events: rollover,
            retention_max_files: 1000,
            write_rollups: false,
            ..SinkConfig::default()
        };
        let writer = SinkWriter { host: "h".into(), pid: 1, fresh_id: || "id".into() };
        let now = Now { monotonic: Duration::from_secs(1), unix_ns: 1 };
        let mut sink = Sink::open(Faulty::default(), config, writer, now).unwrap();
        sink.folder_mut().faults = faults;
        let mut failures = 0;
        for n in 0..30 {
            let mut record = Object::new();
            record.insert("n", n);
            failures += u32::from(sink.append(&record, now).is_err());
        }
        // Once the faults are over, all that was appended is there.
        sink.folder_mut().faults.clear();
        sink.close(SessionStatus::Completed, now).unwrap();
        prop_assert_eq!(sink.counts().dropped_records, 0);
        prop_assert!(failures > 0 || sink.counts().flush_failures == 0);
        let files = sink.into_folder().files;
        let manifest = Manifest::parse(&files[MANIFEST]).unwrap();
        let mut lines = Vec::new();
        for segment in &manifest.segments {
            let bytes = &files[&*segment.filename];
            prop_assert_eq!(segment.size_bytes, bytes.len() as u64);
            let text = std::str::from_utf8(bytes).unwrap();
            prop_assert_eq!(segment.event_count, text.lines().count() as u64);
            lines.extend(text.lines().map(str::to_owned));
        }
        let want: Vec<String> = (0..30).map(|n| format!("{{\"n\": {n}}}")).collect();
        prop_assert_eq!(lines, want);
    }
}

/// Files in memory, on a disk that fails as it is told to: each operation takes the next fault.
#[derive(Debug, Default)]
struct Faulty {
    files: BTreeMap<String, Vec<u8>>,
    faults: Vec<u8>,
}

impl Faulty {
    /// Whether this operation fails.
    fn fails(&mut self) -> bool {
        self.faults.pop().is_some_and(|fault| fault == 0)
    }

    fn file(&mut self, name: &str) -> io::Result<&mut Vec<u8>> {
        self.files
            .get_mut(name)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Folder for Faulty {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.files.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        let file = self.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(&file[..]))
    }
}

impl SinkFolder for Faulty {
    fn size(&self, name: &str) -> io::Result<u64> {
        let file = self.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(file.len() as u64)
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        match self.files.contains_key(name) {
            true => Err(io::ErrorKind::AlreadyExists.into()),
            false if self.fails() => Err(io::ErrorKind::StorageFull.into()),
            false => {
                self.files.insert(name.into(), Vec::new());
                Ok(())
            }
        }
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let fails = self.fails();
        // A write that fails may have written a part, or all of it and not made it durable.
        let part = match self.faults.last() {
            _ if !fails => bytes.len(),
            Some(n) => bytes.len() * usize::from(*n).min(5) / 5,
            None => 0,
        };
        self.file(name)?.extend_from_slice(&bytes[..part]);
        match fails {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }

    fn truncate(&mut self, name: &str, size: u64) -> io::Result<()> {
        if self.fails() {
            return Err(io::ErrorKind::Other.into());
        }
        let file = self.file(name)?;
        assert!(file.len() as u64 >= size, "made longer");
        file.truncate(size as usize);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.files.remove(name);
        Ok(())
    }

    fn replace(&mut self, name: &str, text: &str) -> io::Result<()> {
        if self.fails() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.files.insert(name.into(), text.into());
        Ok(())
    }
}

#[test]
fn hostile_lines_are_counted_and_gone_past() {
    let good = r#"{"timestamp_ns": 1}"#;
    let upgrade = Upgrade::default();
    let mut bytes = Vec::new();
    let mut add = |line: &[u8]| {
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
    };
    add(good.as_bytes());
    add(&vec![b'x'; 2 * Chunks::<&[u8]>::MAX_LINE_BYTES + 5]);
    add("[".repeat(100_000).as_bytes());
    add(format!("{{\"timestamp_ns\": {}}}", "9".repeat(5000)).as_bytes());
    add(b"{\"timestamp_ns\": 1, \"context\": \"\xff\"}");
    add(b"\0");
    add(b"\xef\xbb\xbf{\"timestamp_ns\": 1}");
    add(good.as_bytes());
    let (events, bad) = decoded(&bytes, &upgrade);
    assert_eq!(events.len(), 2);
    let places: Vec<_> = bad
        .iter()
        .map(|bad| (bad.line, bad.error.reason()))
        .collect();
    let malformed = "malformed";
    assert_eq!(
        places,
        [
            (2, "line_too_long"),
            (3, malformed),
            (4, malformed),
            (5, malformed),
            (6, malformed),
            (7, malformed)
        ]
    );
}

#[test]
fn lines_end_at_lf_and_a_line_that_ends_otherwise_is_taken_apart_as_python_does() {
    let line = r#"{"timestamp_ns": 1, "context": "CONTEXT"}"#;
    let whole = line.replace("CONTEXT", "a\u{2028}b\u{85}c");
    let (events, bad) = decoded(whole.as_bytes(), &Upgrade::default());
    assert_eq!((events.len(), bad.len()), (1, 0));
    assert_eq!(events[0].context.as_deref(), Some("a\u{2028}b\u{85}c"));
    let several = [line, line, line].join("\r") + "\n\u{2003}\n" + line;
    let (events, bad) = decoded(several.as_bytes(), &Upgrade::default());
    assert_eq!((events.len(), bad.len()), (4, 0));
}
