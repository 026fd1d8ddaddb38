//! Exporters: what is in the files, and what happens when disks are full, processes die and fork, and values are huge.
//!
//! Processes of their own are this test program again, which then runs [`a_process_of_its_own`] alone.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value as Json;
use warptrace_formats::span_record::{
    Body, Keys, Line, Lines, MAX_RECORD_BYTES, Record, Spans, Stage, log_line,
};
use warptrace_model::{SpanRecord, Value};
use warptrace_sdk::annotation::Writer;
use warptrace_sdk::exporter::{
    AgentSocket, Console, Discard, Existing, JsonlFile, LogLines, Rotation, RunLogExporter, Tee,
};
use warptrace_sdk::run_log::RunLog;
use warptrace_sdk::span::{
    Attributes, Event, ExportError, Exporter, Interest, MemoryExporter, Recorder, Span, Start,
    TEXT_LIMIT_BYTES,
};

/// Long enough for anything that will happen at all.
const LONG: Duration = Duration::from_secs(120);

fn recorder(exporter: impl Exporter + 'static) -> Recorder {
    let builder = Recorder::builder().exporter("under test", Box::new(exporter));
    builder.build().unwrap()
}

/// The records of a file, each of whose lines must be JSON as everybody reads it, or blank.
fn records(path: &Path) -> Vec<Record> {
    let text = std::fs::read(path).unwrap();
    let (mut records, mut lines) = (Vec::new(), Lines::new(MAX_RECORD_BYTES));
    let mut each = |line: Line<'_>| {
        let bytes = line.bytes.unwrap();
        if bytes.is_empty() {
            return;
        }
        serde_json::from_slice::<Json>(bytes).unwrap();
        records.push(Record::decode(bytes).unwrap());
    };
    lines.feed(&text, &mut each);
    assert!(!lines.finish(&mut each), "the last line has no end");
    records
}

fn spans(records: Vec<Record>) -> Vec<SpanRecord> {
    let mut spans = Spans::new();
    let done = records.into_iter().filter_map(|r| spans.take(r)).collect();
    assert_eq!(spans.counts(), Default::default());
    assert!(spans.finish().is_empty());
    done
}

fn stage(record: &Record) -> Option<Stage> {
    match &record.body {
        Body::Span(stage, _) => Some(*stage),
        _ => None,
    }
}

#[test]
fn spans_come_back_from_the_file_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    for merge in [false, true] {
        let path = folder.path().join(format!("a/b/{merge}.jsonl"));
        let memory = MemoryExporter::default();
        let file = JsonlFile::new(&path).merge_starts(merge);
        let recorder = Recorder::builder()
            .exporter("file", Box::new(file))
            .exporter("memory", Box::new(memory.clone()))
            .build()
            .unwrap();
        let remote = warptrace_model::SpanContext {
            trace: 7 << 100,
            span: 9,
        };
        {
            let outer = recorder.scope(Start::named("outer").parent(remote));
            outer.set("gen_ai.system", "x=\"y\" | é");
            outer.set("nan", f64::NEG_INFINITY);
            outer.set("big", warptrace_model::Int::from(i128::MAX));
            let failed = recorder.try_in_span("inner", |inner| {
                inner.set("n", 1_i64);
                inner.event(
                    "e",
                    Attributes::new().with("list", vec![1.5, f64::INFINITY]),
                );
                "x".parse::<u8>()
            });
            assert!(failed.is_err());
        }
        recorder.close(LONG).unwrap();
        let written = records(&path);
        let stages: Vec<_> = written.iter().filter_map(stage).collect();
        assert_eq!(
            stages,
            [Stage::Start, Stage::Start, Stage::Stop, Stage::Stop]
        );
        let counts: Vec<u64> = written.iter().map(|r| r.count.unwrap()).collect();
        assert_eq!(counts, (1..=written.len() as u64).collect::<Vec<_>>());
        assert!(written.iter().all(|r| r.pid == Some(std::process::id())));
        let Body::Span(_, part) = &written[0].body else {
            panic!()
        };
        assert_eq!(part.thread, Some(warptrace_sdk::thread_id()));
        assert_eq!(spans(written), memory.finished());
    }
}

#[test]
fn a_start_that_waits_becomes_one_record_with_its_stop_or_is_written_before_all_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let recorder = recorder(
        JsonlFile::new(&path)
            .merge_starts(true)
            .keys(Keys::OneLogger),
    );
    drop(recorder.span("alone"));
    {
        let outer = recorder.span("outer");
        recorder.data_error("lost", Attributes::new()).unwrap();
        drop(recorder.span("inner"));
        outer.event("e", Attributes::new());
    }
    let _open = recorder.span("open");
    recorder.close(LONG).unwrap();
    let kinds: Vec<String> = std::fs::read_to_string(&path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Json>(line).unwrap())
        .map(|r| {
            format!(
                "{} {}",
                r["type"].as_str().unwrap(),
                r["name"].as_str().unwrap_or("")
            )
        })
        .collect();
    let want = [
        "complete alone",
        "start outer",
        "telemetry_data_error ",
        "complete inner",
        "event ",
        "stop outer",
        "complete open",
    ];
    assert_eq!(kinds, want);
}

#[test]
fn a_file_that_is_there_is_appended_to_even_behind_half_a_line_unless_told_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let write = |existing: Existing| {
        let recorder = recorder(JsonlFile::new(&path).existing(existing));
        drop(recorder.span("s"));
        recorder.close(LONG).unwrap();
        std::fs::read_to_string(&path).unwrap()
    };
    std::fs::write(&path, "{\"type\":\"sta").unwrap();
    let text = write(Existing::Append);
    assert!(
        text.starts_with("{\"type\":\"sta\n{\"type\":\"start\""),
        "{text}"
    );
    assert_eq!(text.lines().count(), 3);
    assert_eq!(write(Existing::Append).lines().count(), 5);
    assert_eq!(write(Existing::Rotate).lines().count(), 2);
    assert_eq!(
        std::fs::read_to_string(folder.path().join("x.jsonl.1"))
            .unwrap()
            .lines()
            .count(),
        5
    );
    assert_eq!(write(Existing::Truncate).lines().count(), 2);
}

#[test]
fn files_are_rotated_by_size_and_so_many_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let rotation = Rotation {
        max_bytes: 2000,
        keep: 3,
    };
    let recorder = recorder(JsonlFile::new(&path).rotation(rotation).each_record());
    for _ in 0..100 {
        drop(recorder.span("s"));
    }
    recorder.close(LONG).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|f| f.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["x.jsonl", "x.jsonl.1", "x.jsonl.2", "x.jsonl.3"]);
    let mut last = None;
    for name in ["x.jsonl.3", "x.jsonl.2", "x.jsonl.1", "x.jsonl"] {
        let path = folder.path().join(name);
        assert!(path.metadata().unwrap().len() <= 2000);
        for record in records(&path) {
            assert!(last.is_none_or(|last| record.count == Some(last + 1)));
            last = record.count;
        }
    }
    assert_eq!(last, Some(200));
}

#[test]
fn several_writers_share_a_file_and_its_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let rotation = Rotation {
        max_bytes: 20_000,
        keep: 1000,
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let recorder = recorder(JsonlFile::new(&path).rotation(rotation).each_record());
                for _ in 0..500 {
                    drop(recorder.span("s"));
                }
                recorder.close(LONG).unwrap();
                assert_eq!(recorder.counts().exporters[0].lost, 0);
            });
        }
    });
    let mut all = Vec::new();
    for file in std::fs::read_dir(folder.path()).unwrap() {
        all.extend(records(&file.unwrap().path()));
    }
    assert_eq!(all.len(), 4000);
    let ended: HashSet<_> = all
        .iter()
        .filter_map(|r| match &r.body {
            Body::Span(Stage::Stop, span) => Some(span.id),
            _ => None,
        })
        .collect();
    assert_eq!(ended.len(), 2000);
}

#[test]
fn a_path_may_name_the_process() {
    let file = JsonlFile::new("/x/{host}/spans-{pid}-{rank}-{other}.jsonl");
    let host = nix::unistd::gethostname().unwrap();
    let want = format!(
        "/x/{}/spans-{}-0-{{other}}.jsonl",
        host.to_str().unwrap(),
        std::process::id()
    );
    // CI may be one rank of something.
    if std::env::var_os("RANK").is_none() && std::env::var_os("SLURM_PROCID").is_none() {
        assert_eq!(file.path(), PathBuf::from(want));
    }
}

#[test]
fn a_file_that_was_deleted_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let recorder = recorder(JsonlFile::new(&path));
    drop(recorder.span("a"));
    assert!(recorder.flush(LONG));
    std::fs::remove_file(&path).unwrap();
    drop(recorder.span("b"));
    recorder.close(LONG).unwrap();
    assert_eq!(spans(records(&path)).len(), 1);
}

#[test]
fn what_cannot_be_opened_is_no_recorder_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let error = Recorder::builder()
        .exporter("file", Box::new(JsonlFile::new(folder.path())))
        .build()
        .unwrap_err();
    assert_eq!(error.code(), "file_not_opened");
    let file = JsonlFile::new(folder.path().join("x"));
    let outer = Recorder::builder()
        .build()
        .unwrap()
        .start(Start::named("s"))
        .unwrap()
        .unwrap();
    assert_eq!(
        file.start(&outer).unwrap_err().code(),
        "exporter_not_initialized"
    );
    file.initialize().unwrap();
    file.close(LONG).unwrap();
    assert_eq!(file.start(&outer).unwrap_err().code(), "exporter_closed");
    file.initialize().unwrap();
    file.start(&outer).unwrap();
}

/// A small file system, or the reason why there is none.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(test: &str, size: &str) -> Option<SmallDisk> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path())
            .output();
        if mounted.is_ok_and(|m| m.status.success()) {
            return Some(SmallDisk(folder));
        }
        skip(test, "cannot mount a tmpfs (needs root)");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// Says why `test` cannot run here, where CI counts it.
fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../skipped");
    let _ = std::fs::create_dir_all(&folder);
    let _ = std::fs::write(folder.join(format!("{test}.txt")), reason);
}

#[test]
fn a_full_disk_loses_nothing_that_is_not_counted_and_the_file_says_so_when_there_is_room() {
    let test =
        "a_full_disk_loses_nothing_that_is_not_counted_and_the_file_says_so_when_there_is_room";
    let Some(disk) = SmallDisk::new(test, "64k") else {
        return;
    };
    let (path, ballast) = (disk.0.path().join("x.jsonl"), disk.0.path().join("ballast"));
    std::fs::write(&ballast, vec![0; 32 << 10]).unwrap();
    let recorder = recorder(JsonlFile::new(&path));
    let lost = || recorder.counts().exporters[0].lost;
    let mut begun = 0;
    let mut one = || {
        drop(recorder.span("s"));
        begun += 1;
        recorder.flush(LONG);
    };
    while lost() == 0 {
        one();
    }
    std::fs::remove_file(&ballast).unwrap();
    // Until it is tried again.
    let told = |text: &str| text.contains("\"lost_records\":");
    while !told(&std::fs::read_to_string(&path).unwrap()) {
        one();
    }
    one();
    recorder.close(LONG).unwrap();
    let counts = recorder.counts();
    assert!(!counts.exporters[0].disabled, "{counts:?}");
    let text = std::fs::read_to_string(&path).unwrap();
    let decoded: Vec<_> = text
        .lines()
        .map(|line| Record::decode(line.as_bytes()))
        .collect();
    let torn = decoded.iter().filter(|r| r.is_err()).count();
    assert!(torn <= 1, "{torn}");
    let of_spans = decoded
        .iter()
        .flatten()
        .filter(|r| stage(r).is_some())
        .count() as u64;
    let others = decoded.iter().flatten().count() as u64 - of_spans;
    let lost = counts.exporters[0].lost;
    // Beside the spans, data errors are given to it: they are written, or lost as well.
    assert!(of_spans + lost >= 2 * begun, "{of_spans} + {lost}, {begun}");
    assert!(
        of_spans + lost <= 2 * begun + 2 && others >= 1,
        "{of_spans} + {lost}, {begun}, {others}"
    );
    assert_eq!(
        decoded.last().unwrap().as_ref().map(stage),
        Ok(Some(Stage::Stop))
    );
}

#[test]
fn a_device_that_is_always_full_fails_and_the_program_goes_on() {
    let recorder = recorder(JsonlFile::new("/dev/full"));
    for _ in 0..10 {
        drop(recorder.span("s"));
        recorder.flush(LONG);
    }
    recorder.close(LONG).unwrap();
    let counts = recorder.counts();
    // All were lost, and so was the report of it.
    assert!(
        counts.exporters[0].lost >= 20 && counts.exporters[0].refused >= 1,
        "{counts:?}"
    );
}

#[test]
fn an_attribute_of_a_gigabyte_costs_itself_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let recorder = recorder(JsonlFile::new(&path));
    {
        let span = recorder.span("s");
        span.set("long", "x".repeat(1 << 30));
        let part = "y".repeat(TEXT_LIMIT_BYTES);
        span.set("list", vec![part.as_str(); 64]);
        span.set("n", 1_i64);
    }
    recorder.close(LONG).unwrap();
    assert!(path.metadata().unwrap().len() < 10 << 20);
    let [_, stop] = &records(&path)[..] else {
        panic!()
    };
    assert_eq!(stop.dropped_attributes, 1);
    let Body::Span(_, span) = &stop.body else {
        panic!()
    };
    let long = span.attributes.get("long").and_then(Value::as_str).unwrap();
    assert_eq!(long.len(), TEXT_LIMIT_BYTES);
    assert!(span.attributes.get("list").is_none() && span.attributes.get("n").is_some());
}

#[test]
fn a_hundred_threads_write_whole_records_and_lose_none_uncounted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let recorder = recorder(JsonlFile::new(&path));
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                for n in 0..200_i64 {
                    recorder.span("s").set("n", n);
                }
            });
        }
    });
    recorder.close(LONG).unwrap();
    let counts = recorder.counts();
    let written = records(&path);
    let of_spans = written.iter().filter(|r| stage(r).is_some()).count() as u64;
    assert_eq!(of_spans + counts.exporters[0].dropped, 40_000);
    let threads: HashSet<_> = written
        .iter()
        .filter_map(|r| match &r.body {
            Body::Span(_, span) => span.thread,
            _ => None,
        })
        .collect();
    assert!(
        counts.exporters[0].dropped > 0 || threads.len() == 100,
        "{}",
        threads.len()
    );
}

#[test]
fn log_lines_read_back_and_a_log_that_fails_is_counted() {
    let kept: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&kept);
    let lines = LogLines::new(move |line| match line.contains("refuse") {
        true => Err(ExportError::new("no")),
        false => {
            log.lock().unwrap().push(line.to_owned());
            Ok(())
        }
    });
    let recorder = recorder(lines.keys(Keys::All).merge_starts(true));
    recorder.span("a").set("gen_ai.system", "x=y | [z]");
    drop(recorder.span("refuse"));
    recorder.close(LONG).unwrap();
    let kept = kept.lock().unwrap();
    let record = Record::from_object(log_line::parse(&kept[0]).unwrap()).unwrap();
    let Body::Span(Stage::Complete, span) = &record.body else {
        panic!("{kept:?}")
    };
    assert_eq!(
        span.attributes.get("gen_ai.system"),
        Some(&"x=y | [z]".into())
    );
    let counts = recorder.counts();
    assert_eq!(
        (counts.exporters[0].lost, counts.exporters[0].refused),
        (1, 1)
    );
    // It was told that it has not all.
    assert!(
        kept[1].starts_with("[type=\"telemetry_data_error\""),
        "{kept:?}"
    );
}

/// Counts its calls.
struct Told(Arc<Mutex<Vec<&'static str>>>, Interest);

impl Exporter for Told {
    fn interest(&self) -> Interest {
        self.1
    }

    fn start(&self, _: &Span) -> Result<(), ExportError> {
        self.0.lock().unwrap().push("start");
        Ok(())
    }

    fn stop(&self, span: &Span) -> Result<(), ExportError> {
        assert_eq!(span.events().len(), 2);
        self.0.lock().unwrap().push("stop");
        Ok(())
    }

    fn event(&self, _: &Event, _: &Span) -> Result<(), ExportError> {
        self.0.lock().unwrap().push("event");
        Ok(())
    }

    fn error(&self, _: &Event, _: &Span) -> Result<(), ExportError> {
        self.0.lock().unwrap().push("error");
        Ok(())
    }

    fn data_error(&self, _: &Event) -> Result<(), ExportError> {
        self.0.lock().unwrap().push("data error");
        Ok(())
    }

    fn close(&self, _: Duration) -> Result<(), ExportError> {
        Ok(())
    }
}

#[test]
fn an_exporter_is_told_what_it_wants_to_hear() {
    let (all, stops) = (Arc::default(), Arc::default());
    let recorder = Recorder::builder()
        .exporter(
            "all",
            Box::new(Told(Arc::clone(&all), Interest::Everything)),
        )
        .exporter("stops", Box::new(Told(Arc::clone(&stops), Interest::Stops)))
        .build()
        .unwrap();
    let _ = recorder.try_in_span("s", |s| {
        s.event("e", Attributes::new());
        "x".parse::<u8>()
    });
    recorder.data_error("lost", Attributes::new()).unwrap();
    recorder.close(LONG).unwrap();
    assert_eq!(
        *all.lock().unwrap(),
        ["start", "event", "error", "stop", "data error"]
    );
    assert_eq!(*stops.lock().unwrap(), ["stop", "data error"]);
}

/// Keeps what is written to it.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_console_shows_a_line_a_span_safe_for_a_terminal() {
    let kept = Kept::default();
    let tee = Tee::new(vec![
        Box::new(Console::to(kept.clone(), false)),
        Box::new(Discard),
    ]);
    let recorder = recorder(tee);
    {
        let outer = recorder.span("train.step");
        outer.set("step", 7_i64);
        let _ = recorder.try_in_span("lo\u{1b}ad", |_| "x".parse::<u8>());
    }
    recorder.close(LONG).unwrap();
    let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].contains("ERROR in lo\u{fffd}ad"), "{text}");
    assert!(
        lines[1].contains("    lo\u{fffd}ad") && lines[1].contains("invalid digit"),
        "{text}"
    );
    assert!(
        lines[2].contains("  train.step") && lines[2].ends_with("step=7"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn the_agent_is_told_of_steps_and_requests_once_each() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("annotate.sock");
    let listener = UnixListener::bind(&place).unwrap();
    let writer = Arc::new(Writer::to(&place));
    let recorder = recorder(AgentSocket::new(Arc::clone(&writer)));
    {
        let begun = Attributes::new().with("train_iterations_start", 100_i64);
        let _loop = recorder.scope(Start::named("training_loop").attributes(begun));
        for _ in 0..2 {
            let _step = recorder.span("training_single_iteration");
            let inner = recorder.span("forward");
            inner.set("step", 1_i64);
        }
        let request = recorder.span("chat");
        request.set("request_id", "r-1");
        request.set("prompt_len", 12_i64);
        request.set("bad key", "x");
        request.set("long", "y".repeat(1000));
    }
    recorder.close(LONG).unwrap();
    drop(recorder);
    writer.close();
    let (mut connection, _) = listener.accept().unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    let lines: Vec<Json> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let labels: Vec<String> = lines.iter().map(|l| l["labels"].to_string()).collect();
    assert_eq!(
        labels,
        [
            r#"{"span":"forward"}"#,
            r#"{"span":"training_single_iteration","step":"100"}"#,
            r#"{"span":"forward"}"#,
            r#"{"span":"training_single_iteration","step":"101"}"#,
            r#"{"prompt_len":"12","request_id":"r-1","span":"chat"}"#,
            r#"{"span":"training_loop","train_iterations_start":"100"}"#,
        ]
    );
    for line in &lines {
        assert!(line["span_start"].as_i64() <= line["span_end"].as_i64());
        assert_eq!(line["pid"], std::process::id());
    }
}

#[test]
fn requests_are_records_of_the_run_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.jsonl");
    let recorder = recorder(RunLogExporter::new(RunLog::open(&path)));
    {
        let request = recorder.span("chat m-1");
        request.set("gen_ai.request.model", "m-1");
        request.set("gen_ai.usage.input_tokens", 12_i64);
        request.set("gen_ai.usage.output_tokens", 8_i64);
        request.set("request_id", "r-1");
        request.set("nan", f64::NAN);
        drop(recorder.span("request"));
        drop(recorder.span("other"));
    }
    let _ = recorder.try_in_span("request", |_| "x".parse::<u8>());
    recorder.close(LONG).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Json> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    let extra = &lines[0]["extra"];
    assert_eq!(
        (&extra["model"], &extra["prompt_tokens"]),
        (&"m-1".into(), &12.into())
    );
    assert_eq!(
        (&extra["completion_tokens"], &extra["request_id"]),
        (&8.into(), &"r-1".into())
    );
    assert_eq!(extra["nan"], "NaN");
    assert_eq!(
        (&lines[1]["kind"], &lines[1]["extra"]["status"]),
        (&"error".into(), &500.into())
    );
}

/// Answers each request with success, and gives its JSON.
#[cfg(feature = "otlp")]
fn collector(listener: std::net::TcpListener, requests: std::sync::mpsc::SyncSender<Json>) {
    while let Ok((connection, _)) = listener.accept() {
        let requests = requests.clone();
        std::thread::Builder::new()
            .name("collector".into())
            .spawn(move || {
                let mut reader = BufReader::new(connection);
                loop {
                    let (mut line, mut length) = (String::new(), 0);
                    while line != "\r\n" {
                        line.clear();
                        if reader.read_line(&mut line).unwrap_or(0) == 0 {
                            return;
                        }
                        if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                            length = n.trim().parse().unwrap();
                        }
                    }
                    let mut body = vec![0; length];
                    reader.read_exact(&mut body).unwrap();
                    let _ = requests.send(serde_json::from_slice(&body).unwrap());
                    let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
                    reader.get_mut().write_all(answer.as_bytes()).unwrap();
                }
            })
            .unwrap();
    }
}

#[cfg(feature = "otlp")]
#[test]
fn a_burst_of_20_000_spans_reaches_a_collector_with_ids_parents_events_and_errors() {
    use warptrace_sdk::exporter::config::{Entry, Registry};

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, requests) = std::sync::mpsc::sync_channel(1000);
    std::thread::Builder::new()
        .name("collector".into())
        .spawn(move || collector(listener, sender))
        .unwrap();
    let config = serde_json::json!({
        "endpoint": endpoint, "protocol": "http/json", "headers": {"x-key": "k"}, "timeout_ms": 60_000, "service_name": "train",
    });
    let Value::Object(config) =
        warptrace_formats::open_json::parse(config.to_string().as_bytes()).unwrap()
    else {
        panic!()
    };
    let otlp = Registry::builtin()
        .create(&Entry::new("otlp", config))
        .unwrap();
    let recorder = Recorder::builder()
        .direct_exporter("otlp", otlp)
        .build()
        .unwrap();
    let parent = recorder.in_span("outer", |outer| {
        for _ in 0..19_998 {
            drop(recorder.span("inner"));
        }
        let _ = recorder.try_in_span("failed", |_| "x".parse::<u8>());
        outer.span().unwrap().id()
    });
    recorder.data_error("not all", Attributes::new()).unwrap();
    recorder.close(LONG).unwrap();
    assert_eq!(recorder.counts().exporters[0].lost, 0);
    let requests: Vec<Json> = requests.try_iter().collect();
    let mut spans = Vec::new();
    for request in &requests {
        let resource = &request["resourceSpans"][0];
        let attributes = resource["resource"]["attributes"].as_array().unwrap();
        let service = attributes
            .iter()
            .find(|a| a["key"] == "service.name")
            .unwrap();
        assert_eq!(service["value"]["stringValue"], "train");
        spans.extend(resource["scopeSpans"][0]["spans"].as_array().unwrap());
    }
    assert_eq!(spans.len(), 20_001);
    let id = format!("{:016x}", parent.otlp());
    let inner = spans
        .iter()
        .filter(|s| s["parentSpanId"] == id.as_str())
        .count();
    assert_eq!(inner, 19_999);
    let named = |name: &str| spans.iter().find(|s| s["name"] == name).unwrap();
    assert_eq!(
        named("outer")["traceId"],
        format!("{:032x}", parent.to_bits())
    );
    assert_eq!(
        (
            &named("failed")["status"]["code"],
            &named("failed")["events"][0]["name"]
        ),
        (&2.into(), &"error".into())
    );
    let lost = named("telemetry_data_error");
    assert_eq!(
        (&lost["status"]["message"], &lost["startTimeUnixNano"]),
        (&"not all".into(), &lost["endTimeUnixNano"])
    );
}

const ROLE: &str = "WARPTRACE_TEST_ROLE";
const FILE: &str = "WARPTRACE_TEST_FILE";

/// Starts this program as another process in `role`.
fn start(role: &str, file: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "a_process_of_its_own",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ROLE, role)
        .env(FILE, file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads what a process says until a line has `word` in it.
fn await_word(process: &mut Child, word: &str) {
    let mut says = BufReader::new(process.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains(word) {
        line.clear();
        assert_ne!(
            says.read_line(&mut line).unwrap(),
            0,
            "it ended before it said {word:?}"
        );
    }
    process.stdout = Some(says.into_inner());
}

#[test]
fn a_process_of_its_own() {
    let Some(role) = std::env::var_os(ROLE) else {
        return;
    };
    let path = std::env::var_os(FILE).unwrap();
    match role.to_str().unwrap() {
        "killed" => {
            let recorder = recorder(JsonlFile::new(path));
            let _outer = recorder.span("outer");
            drop(recorder.span("done"));
            recorder.in_span("inner", |_| {
                assert!(recorder.flush(LONG));
                println!("ready");
                let _ = std::io::stdin().read(&mut [0]);
            });
        }
        "forks" => {
            let recorder = recorder(JsonlFile::new(path));
            let outer = recorder.span("outer");
            outer.set("who", "both");
            assert!(recorder.flush(LONG));
            // The parent ends here, without a word more; the child goes on in the middle of the span.
            nix::unistd::daemon(true, true).unwrap();
            drop(recorder.span("of the child"));
            drop(outer);
            recorder.close(LONG).unwrap();
            println!("done");
        }
        "forks-with-plain-spans" => {
            let kept = MemoryExporter::default();
            let recorder = Recorder::builder().exporter("memory", Box::new(kept.clone()));
            let recorder = recorder.build().unwrap();
            drop(recorder.span("of the parent alone"));
            let outer = recorder.span("outer");
            nix::unistd::daemon(true, true).unwrap();
            drop(recorder.span("of the child"));
            drop(outer);
            recorder.close(LONG).unwrap();
            let names: Vec<_> = kept.finished().into_iter().map(|s| s.name).collect();
            std::fs::write(path, names.join("\n")).unwrap();
            println!("done");
        }
        other => panic!("role {other}"),
    }
}

#[test]
fn a_forked_child_ends_the_scopes_that_were_open_and_leaves_the_rest_to_its_parent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("names");
    let mut process = start("forks-with-plain-spans", &path);
    await_word(&mut process, "done");
    drop(process.stdin.take());
    process.wait().unwrap();
    let names = std::fs::read_to_string(&path).unwrap();
    assert_eq!(names, "of the child\nouter");
}

#[test]
fn what_had_begun_is_in_the_file_of_a_process_that_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let mut process = start("killed", &path);
    await_word(&mut process, "ready");
    process.kill().unwrap();
    process.wait().unwrap();
    let mut spans = Spans::new();
    let done: Vec<_> = records(&path)
        .into_iter()
        .filter_map(|r| spans.take(r))
        .collect();
    assert_eq!(done.len(), 1);
    let open = spans.finish();
    let names: Vec<&str> = open.iter().map(|s| &*s.name).collect();
    assert_eq!(names, ["outer", "inner"]);
    assert_eq!(open[1].parent, Some(open[0].id.otlp()));
    assert!(open.iter().all(|s| s.end.is_none()));
}

#[test]
fn a_fork_in_the_middle_of_a_span_leaves_a_child_that_ends_it_as_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let mut process = start("forks", &path);
    await_word(&mut process, "done");
    let mut stdin = process.stdin.take().unwrap();
    let _ = stdin.write_all(b"\n");
    process.wait().unwrap();
    let written = records(&path);
    let pids: Vec<u32> = written.iter().map(|r| r.pid.unwrap()).collect();
    assert_eq!(pids[0], process.id());
    assert!(
        pids[1..]
            .iter()
            .all(|pid| *pid == pids[1] && *pid != pids[0]),
        "{pids:?}"
    );
    let counts: Vec<u64> = written.iter().map(|r| r.count.unwrap()).collect();
    assert_eq!(counts, [1, 1, 2, 3], "each process counts its own");
    let spans = spans(written);
    assert_eq!(spans.len(), 2);
    assert_eq!(spans[0].parent, Some(spans[1].id.otlp()));
}
