//! Against the Python package `stormlog` itself, on generated input: what it upgrades we upgrade alike, what we write it reads,
//! and what it writes we read.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use warptrace_formats::memory::{
    Folder, LoadOptions, Place, Strictness, Upgrade, Version, load_sessions, open_json, record,
    record_id, summary_object,
};
use warptrace_model::{LoadedSession, Object, SessionStatus, Value};
use warptrace_sdk::memory_sink::{MemorySink, SinkConfig};

/// The Python that has the package, if there is one.
fn python(test: &str) -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv/bin/python3");
    let candidates = [venv, PathBuf::from("python3")];
    let found = candidates.into_iter().find(|python| {
        let version = "import stormlog.telemetry_rollups; from importlib.metadata import version; \
                       assert version('stormlog').startswith('0.4.')";
        let status = Command::new(python)
            .args(["-c", version])
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    });
    if found.is_none() {
        skip(test, "no python3 with the package stormlog 0.4");
    }
    found
}

/// Says why `test` cannot run here, where CI counts it.
fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../skipped");
    let _ = std::fs::create_dir_all(&folder);
    let _ = std::fs::write(folder.join(format!("{test}.txt")), reason);
}

/// Runs a program with `input`, and returns the lines that it prints.
fn run(python: &Path, program: &str, args: &[&str], input: &str) -> Vec<String> {
    let mut child = Command::new(python)
        .arg("-c")
        .arg(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_owned();
    let writer = std::thread::Builder::new()
        .spawn(move || stdin.write_all(input.as_bytes()))
        .expect("a thread");
    let output = child.wait_with_output().expect("python3");
    writer.join().expect("no panic").expect("it reads all");
    assert!(output.status.success(), "{}", output.status);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(str::to_owned).collect()
}

fn line(value: Value) -> String {
    open_json::to_string(&value, open_json::Style::LINE)
}

fn parse(text: &str) -> Value {
    open_json::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Numbers that are the same in every run (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }
}

const V4: &str = r#"{"schema_version": 4, "session_id": "s", "timestamp_ns": 1700000000000000000, "event_type": "sample",
    "collector": "stormlog.cuda_tracker", "sampling_interval_ms": 100, "pid": 1, "host": "h", "job_id": "j", "rank": 1,
    "local_rank": 1, "world_size": 4, "device_id": 0, "allocator_allocated_bytes": 5, "allocator_reserved_bytes": 6,
    "allocator_active_bytes": 1, "allocator_inactive_bytes": null, "allocator_change_bytes": -1, "device_used_bytes": 6,
    "device_free_bytes": 3, "device_total_bytes": 9, "context": "x", "metadata": {"backend": "cuda"}}"#;

const LEGACY: [&str; 3] = [
    r#"{"timestamp": 1700000000.25, "memory_allocated": 1048576, "memory_reserved": 2097152, "event_type": "peak", "device_id": 1,
        "total_memory": 4194304, "context": null, "metadata": {"rank": 2, "world_size": 3, "job_id": "j", "session_id": "m"}}"#,
    r#"{"timestamp": 1700000000, "memory_mb": 12.75, "device": "/GPU:0", "type": "sample", "message": "m"}"#,
    r#"{"timestamp_ns": 5, "metadata_total_bytes": 77, "metadata_host": "mh", "metadata_pid": 9, "device_used_bytes": 7, "backend": " ROCm "}"#,
];

const KEYS: [&str; 44] = [
    "schema_version",
    "session_id",
    "timestamp_ns",
    "event_type",
    "collector",
    "sampling_interval_ms",
    "pid",
    "host",
    "job_id",
    "rank",
    "local_rank",
    "world_size",
    "device_id",
    "allocator_allocated_bytes",
    "allocator_reserved_bytes",
    "allocator_active_bytes",
    "allocator_inactive_bytes",
    "allocator_change_bytes",
    "device_used_bytes",
    "device_free_bytes",
    "device_total_bytes",
    "context",
    "metadata",
    "timestamp",
    "type",
    "message",
    "memory_allocated",
    "memory_reserved",
    "memory_change",
    "memory_mb",
    "device",
    "total_memory",
    "device_total",
    "total_bytes",
    "backend",
    "metadata_rank",
    "metadata_",
    "metadata_sampling_source",
    "metadata_memory_capabilities",
    "metadata_session_id",
    "bogus",
    "Zeta",
    "é",
    "metadata_severity",
];

const VALUES: [&str; 46] = [
    "null",
    "true",
    "false",
    "0",
    "1",
    "2",
    "-1",
    "-2",
    "4",
    "1.0",
    "1.5",
    "-0.0",
    "1e16",
    "1e-7",
    "1e300",
    "NaN",
    "Infinity",
    "9007199254740993",
    "9223372036854775808",
    "123456789012345678901234567890",
    "-99999999999999999999",
    "\"\"",
    "\" \"",
    "\"x\"",
    "\"7\"",
    "\"\\u2003\"",
    "\"\\u001f\"",
    "\"é\\ud83d\\ude00\"",
    "\"it's\"",
    "\"a\\\"b'c\"",
    "\"cpu\"",
    "\"gpu:3\"",
    "\"cuda:\\u0663\"",
    "\"/gpu\"",
    "\" MPS\"",
    "\"stormlog.JAX\"",
    "[]",
    "[1, \"a\", null, 1e20]",
    "{}",
    "{\"a\": [1.25, {}]}",
    "{\"rank\": 1, \"world_size\": 2}",
    "{\"backend\": \"\", \"sampling_source\": [1, \"q\", false]}",
    "{\"memory_capabilities\": {}}",
    "{\"memory_capabilities\": null}",
    "{\"pid\": \"x\"}",
    "{\"sampling_source\": 1e22}",
];

fn generated(random: &mut Random) -> String {
    let template = match random.below(6) {
        0 | 1 => V4.to_owned(),
        2 => V4.replace("\"schema_version\": 4", "\"schema_version\": 3"),
        3 => V4
            .replace("\"schema_version\": 4", "\"schema_version\": 2")
            .replace("\"session_id\": \"s\",", ""),
        n => LEGACY[(n + random.below(3)) % 3].to_owned(),
    };
    let Value::Object(mut object) = parse(&template) else {
        panic!("an object")
    };
    for _ in 0..random.below(4) {
        let key = random.of(&KEYS);
        match random.below(3) {
            0 => drop(object.remove(key)),
            _ => object.insert(key, parse(random.of(&VALUES))),
        }
    }
    line(Value::Object(object))
}

const UPGRADE: &str = r#"
import json, sys
from stormlog.telemetry import telemetry_event_from_record, telemetry_event_to_dict, project_telemetry_event
for line in sys.stdin:
    try:
        event = telemetry_event_from_record(json.loads(line))
        made = {"ok": telemetry_event_to_dict(event), "id": project_telemetry_event(event).record_id}
    except Exception as error:
        made = {"error": str(error), "plain": type(error) is ValueError}
    print(json.dumps(made, sort_keys=True))
"#;

#[test]
fn generated_records_are_upgraded_as_the_package_upgrades_them() {
    let Some(python) = python("generated_records_are_upgraded_as_the_package_upgrades_them") else {
        return;
    };
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let records: Vec<String> = (0..20_000).map(|_| generated(&mut random)).collect();
    let answers = run(&python, UPGRADE, &[], &(records.join("\n") + "\n"));
    assert_eq!(answers.len(), records.len());
    let (mut upgraded, mut wrong) = (0, Vec::new());
    for (raw, answer) in records.iter().zip(answers) {
        let ours = Upgrade::default().event(parse(raw));
        let Value::Object(theirs) = parse(&answer) else {
            panic!("{answer}")
        };
        let agrees = match (&ours, theirs.get("ok")) {
            (Ok(event), Some(want)) => {
                upgraded += 1;
                let got = Value::Object(record(event, Version::V4).expect("v4 takes all"));
                line(got) == line(want.clone())
                    && theirs.get("id").and_then(Value::as_str) == Some(&record_id(event))
            }
            (Err(error), None) => {
                let text = theirs
                    .get("error")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                // Texts of Python's own functions are accidents: that there is an error is enough.
                let accident = theirs.get("plain") != Some(&Value::Bool(true))
                    || text.starts_with("cannot convert float")
                    || text.starts_with("invalid literal for int()");
                accident || error.to_string() == text
            }
            _ => false,
        };
        if !agrees {
            let ours = ours.map(|event| record(&event, Version::V4));
            wrong.push(format!("{raw}\n  theirs {answer}\n  ours   {ours:?}"));
        }
    }
    assert!(upgraded > 2_000, "only {upgraded} were events");
    let shown = wrong.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} differ:\n{shown}", wrong.len());
}

struct Disk(PathBuf);

impl Folder for Disk {
    fn names(&self) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.0)?;
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(File::open(self.0.join(name))?))
    }
}

/// A folder's sessions by our loader, each as a line.
fn loaded(folder: &Path) -> Vec<String> {
    let path = folder.to_str().expect("a text");
    let place = Place {
        path,
        resolved: path,
        folder: &Disk(folder.to_owned()),
        file: None,
    };
    let options = LoadOptions {
        strictness: Strictness::Strict,
        ..LoadOptions::default()
    };
    let (sessions, _) = load_sessions(&place, &options).expect("it loads");
    sessions.iter().map(session_line).collect()
}

fn session_line(session: &LoadedSession) -> String {
    let events = session.events.iter();
    let events = events.map(|event| Value::Object(record(event, Version::V4).expect("v4")));
    let sources = session.sources_loaded.iter().map(|s| Value::from(&**s));
    let mut object = Object::new();
    object.insert("summary", summary_object(&session.summary));
    object.insert("events", Value::Array(events.collect()));
    object.insert("sources", Value::Array(sources.collect()));
    line(Value::Object(object))
}

const LOAD: &str = r#"
import dataclasses, json, sys
from stormlog.telemetry import load_telemetry_sessions, telemetry_event_to_dict
from stormlog.telemetry_rollups import read_telemetry_rollups
for session in load_telemetry_sessions(sys.argv[1]):
    print(json.dumps({"summary": dataclasses.asdict(session.summary), "sources": session.sources_loaded,
                      "events": [telemetry_event_to_dict(event) for event in session.events]}, sort_keys=True))
rollups = read_telemetry_rollups(sys.argv[1])
print(rollups is not None and json.dumps({r.session.session_id: r.event_count for r in rollups.sessions}, sort_keys=True))
"#;

const WRITE: &str = r#"
import json, sys
from stormlog.session import session_summary_from_dict
from stormlog.telemetry_sink import AppendOnlyTelemetrySink, TelemetrySinkConfig
sink = AppendOnlyTelemetrySink(TelemetrySinkConfig(root_dir=sys.argv[1], flush_every_events=3, rollover_max_events=7,
                                                    flush_every_seconds=3600))
for line in sys.stdin:
    told = json.loads(line)
    if "start" in told:
        sink.start_session(session_summary_from_dict(told["start"]))
    elif "close" in told:
        sink.close(told["close"])
    else:
        sink.append(told)
"#;

/// What a sink is told: summaries, records, closes; two sessions.
fn told() -> Vec<Value> {
    let mut random = Random(7);
    let mut told = Vec::new();
    for (session, status) in [("first", "completed"), ("second é", "incomplete")] {
        told.push(parse(&format!(
            r#"{{"start": {{"session_id": {session:?}, "status": "running", "started_at_ns": 5, "host": "h", "pid": 3, "source": "t"}}}}"#
        )));
        for n in 0..25 {
            let Value::Object(mut record) = parse(V4) else {
                panic!("an object")
            };
            record.insert("session_id", session);
            record.insert("timestamp_ns", 1_700_000_000_000_000_000 + n / 2);
            record.insert(
                "context",
                parse(random.of(&["\"\\ud83d\\ude00\"", "null", "\"\\ud800\"", "\"a\\nb\""])),
            );
            record.insert(
                "metadata",
                parse(random.of(&["{\"x\": 1e16}", "{}", "{\"x\": [NaN, 0.1]}"])),
            );
            told.push(Value::Object(record));
        }
        told.push(parse(&format!("{{\"close\": {status:?}}}")));
    }
    told
}

fn write_ours(folder: &Path) {
    let config = SinkConfig {
        flush_every_events: 3,
        // No flush by the clock: batches are the same whatever the machine does.
        flush_every: std::time::Duration::from_secs(3600),
        rollover_max_events: 7,
        ..SinkConfig::default()
    };
    let mut sink = MemorySink::open(folder, config).expect("it opens");
    for told in told() {
        let Value::Object(told) = told else {
            panic!("an object")
        };
        if let Some(summary) = told.get("start") {
            let summary = warptrace_formats::memory::parse_summary(summary).expect("a summary");
            sink.start_session(Some(summary)).expect("it starts");
        } else if let Some(status) = told.get("close").and_then(Value::as_str) {
            let status = SessionStatus::from_name(status).expect("a status");
            sink.close(status).expect("it closes");
        } else {
            sink.append_record(&told).expect("it is written");
        }
    }
}

#[test]
fn both_sinks_write_the_same_folder_and_both_loaders_read_it_alike() {
    let test = "both_sinks_write_the_same_folder_and_both_loaders_read_it_alike";
    let Some(python) = python(test) else { return };
    let folders = tempfile::tempdir().expect("a folder");
    let root = folders.path().canonicalize().expect("a path");
    let (ours, theirs) = (root.join("ours"), root.join("theirs"));
    write_ours(&ours);
    let input: String = told().into_iter().map(|told| line(told) + "\n").collect();
    run(&python, WRITE, &[theirs.to_str().expect("a text")], &input);

    let files = |folder: &Path| -> Vec<(String, String)> {
        let mut names = Disk(folder.to_owned()).names().expect("it is there");
        names.retain(|name| name.starts_with("segment-"));
        names.sort();
        let text = |name: &String| std::fs::read_to_string(folder.join(name)).expect("UTF-8");
        names
            .iter()
            .map(|name| (name.clone(), text(name)))
            .collect()
    };
    assert_eq!(files(&ours), files(&theirs));
    assert_eq!(files(&ours).len(), 6);
    for folder in [&ours, &theirs] {
        let mut theirs = run(&python, LOAD, &[folder.to_str().expect("a text")], "");
        let rollups = theirs.pop().expect("rollups");
        assert_eq!(theirs, loaded(folder));
        assert_eq!(rollups, r#"{"first": 25, "second \u00e9": 25}"#);
    }
}
