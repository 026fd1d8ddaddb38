//! The sink's writer, on a folder in memory.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::time::Duration;

use warptrace_formats::memory::{
    Folder, MANIFEST, Now, Sink, SinkConfig, SinkCounts, SinkError, SinkFolder, SinkWriter,
    open_json, parse_status, parse_summary,
};
use warptrace_model::{Int, Object, SessionStatus, Value};

use super::{cases, get, matches, shown, text};
use crate::support::Report;

/// Files by name.
#[derive(Debug, Default, Clone)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    fn get(&self, name: &str) -> io::Result<&Vec<u8>> {
        self.0
            .get(name)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Folder for Files {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(&self.get(name)?[..]))
    }
}

impl SinkFolder for Files {
    fn size(&self, name: &str) -> io::Result<u64> {
        Ok(self.get(name)?.len() as u64)
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        match self.0.contains_key(name) {
            true => Err(io::ErrorKind::AlreadyExists.into()),
            false => self.append(name, &[]),
        }
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0
            .entry(name.into())
            .or_default()
            .extend_from_slice(bytes);
        Ok(())
    }

    fn truncate(&mut self, name: &str, size: u64) -> io::Result<()> {
        let file = self.0.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        file.resize(size as usize, 0);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.remove(name);
        Ok(())
    }

    fn replace(&mut self, name: &str, text: &str) -> io::Result<()> {
        self.0.insert(name.into(), text.into());
        Ok(())
    }
}

const UNIX_NS: u64 = 1_800_000_000_000_000_000;
const NOW: Now = Now {
    monotonic: Duration::from_secs(1000),
    unix_ns: UNIX_NS,
};

fn writer() -> SinkWriter {
    SinkWriter {
        host: "{HOST}".into(),
        pid: 4321,
        fresh_id: || "{UUID4}".into(),
    }
}

fn config(case: &Object) -> SinkConfig {
    let given = get(case, "config").as_object().cloned().unwrap_or_default();
    let default = SinkConfig::default();
    // A count below 0 is as wrong as 0, and no count of ours.
    let count = |key: &str, default: u64| match given.get(key) {
        Some(Value::Int(n)) => n.to_u64().unwrap_or(0),
        _ => default,
    };
    let secs = |key: &str, default: Duration| match given.get(key) {
        Some(Value::Int(n)) => Duration::from_secs(n.to_u64().unwrap_or(0)),
        Some(Value::Float(secs)) => Duration::from_secs_f64(secs.max(0.0)),
        _ => default,
    };
    SinkConfig {
        flush_every_events: count("flush_every_events", default.flush_every_events),
        flush_every: secs("flush_every_seconds", default.flush_every),
        rollover_max_bytes: count("rollover_max_bytes", default.rollover_max_bytes),
        rollover_max_events: count("rollover_max_events", default.rollover_max_events),
        retention_max_files: count("retention_max_files", default.retention_max_files),
        retention_max_total_bytes: count(
            "retention_max_total_bytes",
            default.retention_max_total_bytes,
        ),
        write_rollups: get(&given, "write_rollups").as_bool().unwrap_or(true),
        rollup_window_secs: count("rollup_window_seconds", default.rollup_window_secs),
        max_buffer_bytes: given
            .get("max_buffer_bytes")
            .and_then(Value::as_int)
            .map(|n| n.to_u64().unwrap_or(0)),
        failure_backoff: secs("failure_backoff_seconds", default.failure_backoff),
        failure_backoff_max: secs("failure_backoff_max_seconds", default.failure_backoff_max),
    }
}

#[test]
fn sink_write() {
    let mut report = Report::new("memory_sink_write");
    for case in cases("sink_write.jsonl") {
        report.case(text(&case, "id"), || {
            let expect = get(&case, "expect").as_object().expect("expect");
            run(&case, expect)
        });
    }
    report.finish();
}

fn run(case: &Object, expect: &Object) -> Result<(), String> {
    let mut files = Files::default();
    let initial = get(case, "initial_files")
        .as_object()
        .cloned()
        .unwrap_or_default();
    for (name, text) in initial.iter() {
        files
            .0
            .insert(name.into(), text.as_str().expect("a text").into());
    }
    let open = |files: Files| Sink::open(files, config(case), writer(), NOW);
    let mut sink = match (open(files), expect.get("config_error")) {
        (Err(got), Some(want)) => return same("config", &Value::from(&*got.to_string()), want),
        (Ok(_), Some(want)) => return Err(format!("no error, want {}", shown(want))),
        (Err(got), None) => return Err(format!("{got}")),
        (Ok(sink), None) => sink,
    };
    let mut errors = Vec::new();
    for (at, op) in get(case, "ops")
        .as_array()
        .unwrap_or_default()
        .iter()
        .enumerate()
    {
        let op = op.as_object().expect("an operation");
        if let Err(error) = apply(&mut sink, op, &open) {
            let mut object = Object::new();
            object.insert("op", at as i64);
            object.insert("error", &*error.to_string());
            object.insert("error_type", "ValueError");
            errors.push(Value::Object(object));
        }
    }
    same("op_errors", &Value::Array(errors), get(expect, "op_errors"))?;
    let counts = sink.counts();
    let [diagnostics, failures] = counts_of(&counts);
    same("diagnostics", &diagnostics, get(expect, "diagnostics"))?;
    same("failures", &failures, get(expect, "failure_diagnostics"))?;
    let mut files = sink.into_folder().0;
    let manifest = files.remove(MANIFEST);
    let contents = files.into_iter().map(|(name, bytes)| {
        let text = String::from_utf8(bytes).expect("UTF-8");
        (name.into(), Value::from(&*text))
    });
    let contents = Value::Object(Object::from_pairs(contents.collect()));
    same("files", &contents, get(expect, "files"))?;
    let ends_well = manifest
        .as_ref()
        .is_some_and(|bytes| bytes.ends_with(b"}\n"));
    let want = get(expect, "manifest_text_tail_newline");
    same("tail", &Value::Bool(ends_well), want)?;
    let manifest = manifest.map_or(Value::Null, |bytes| {
        places(&open_json::parse(&bytes).expect("JSON"))
    });
    same("manifest", &manifest, get(expect, "manifest"))
}

fn apply(
    sink: &mut Sink<Files>,
    op: &Object,
    open: &dyn Fn(Files) -> Result<Sink<Files>, SinkError>,
) -> Result<(), SinkError> {
    match text(op, "op") {
        "start_session" => {
            let summary = match get(op, "summary") {
                Value::Null => None,
                summary => Some(parse_summary(summary).expect("a summary")),
            };
            sink.start_session(summary, NOW).map(drop)
        }
        "append" => sink.append(get(op, "record").as_object().expect("a record"), NOW),
        "flush" => sink.flush(get(op, "force").as_bool().unwrap_or(false), NOW),
        "close" => {
            let status = match get(op, "status") {
                Value::Null => SessionStatus::Completed,
                status => parse_status(status).expect("a status"),
            };
            sink.close(status, NOW)
        }
        "append_bytes" => {
            let bytes = text(op, "text").as_bytes();
            sink.folder_mut()
                .append(text(op, "file"), bytes)
                .expect("memory");
            Ok(())
        }
        "reopen_after_crash" => {
            let files = sink.folder_mut().clone();
            *sink = open(files)?;
            Ok(())
        }
        other => panic!("no operation {other}"),
    }
}

/// The two sets of counters that the Python package has.
fn counts_of(counts: &SinkCounts) -> [Value; 2] {
    let object = |pairs: &[(&str, u64)]| {
        let pairs = pairs.iter();
        Object::from_pairs(
            pairs
                .map(|(k, n)| ((*k).into(), Int::from(*n).into()))
                .collect(),
        )
    };
    let diagnostics = object(&[
        ("rollover_count", counts.rollovers),
        ("pruned_segment_count", counts.pruned_segments),
        ("pruned_bytes", counts.pruned_bytes),
        ("final_retained_files", counts.retained_segments),
        ("final_retained_bytes", counts.retained_bytes),
    ]);
    let mut failures = object(&[
        ("buffered_records", counts.buffered_records),
        ("buffered_bytes", counts.buffered_bytes),
        ("dropped_records", counts.dropped_records),
        ("dropped_bytes", counts.dropped_bytes),
        ("flush_failures", counts.flush_failures),
        (
            "consecutive_flush_failures",
            u64::from(counts.consecutive_flush_failures),
        ),
    ]);
    let error = counts.last_flush_error.as_deref();
    failures.insert("last_flush_error", error.map_or(Value::Null, Value::from));
    [Value::Object(diagnostics), Value::Object(failures)]
}

/// The manifest with the vectors' names for what differs from run to run.
fn places(value: &Value) -> Value {
    match value {
        Value::Int(n) if *n == Int::from(UNIX_NS) => Value::from("{NOW}"),
        Value::Array(items) => Value::Array(items.iter().map(places).collect()),
        Value::Object(object) => Value::Object(Object::from_pairs(
            object
                .iter()
                .map(|(key, value)| match (key, value) {
                    ("pid", Value::Int(n)) if *n == 4321 => (key.into(), Value::from("{PID}")),
                    _ => (key.into(), places(value)),
                })
                .collect(),
        )),
        other => other.clone(),
    }
}

fn same(what: &str, got: &Value, want: &Value) -> Result<(), String> {
    match matches(got, want) {
        true => Ok(()),
        false => Err(format!(
            "{what}\n    got  {}\n    want {}",
            shown(got),
            shown(want)
        )),
    }
}
