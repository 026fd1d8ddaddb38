//! Questions to real sessions on a real disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use warptrace_model::record::OpId;
use warptrace_model::*;
use warptrace_sql::{Answer, Limits, QueryError, query};
use warptrace_store::fs::RealFs;
use warptrace_store::{DataDir, Session, SessionMeta, SessionWriter, TABLES};

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_000 * SECOND;
const UNIX: u64 = 1_795_000_000 * SECOND;

fn call(op: &str, start: u64, dur: u64, arg0: u64) -> Event {
    Event::Call(Call {
        thread: Thread::new(100, 101),
        op: OpId::by_name(op).unwrap(),
        start: BootNanos(START + start),
        dur,
        device: (op != "cudaFree").then_some(Device(3)),
        stream: Stream(u64::MAX),
        ret: if op == "cudaFree" { -2 } else { 0 },
        flags: CallFlags(0),
        arg0,
        arg1: 1,
        stack_id: 7,
        cpu: Cpu(2),
    })
}

fn writer(data: &Path, id: &str) -> SessionWriter {
    let mut meta = SessionMeta::new(ClockAnchor {
        boot: BootNanos(START),
        unix: UnixNanos(UNIX),
    });
    meta.id = id.to_owned();
    SessionWriter::create(Arc::new(RealFs), &DataDir::at(data), meta).unwrap()
}

/// Three kinds of calls and one of everything else; the second half of the calls comes after the clock was set by a
/// millisecond.
fn fill(writer: &mut SessionWriter) {
    writer.events(&[
        Event::ThreadName(ThreadName {
            thread: Thread::new(100, 101),
            name: "loader ✓".into(),
        }),
        Event::ProcessInfo(Box::new(ProcessInfo {
            incarnation: Incarnation {
                pid: Pid(100),
                start_ticks: 5,
            },
            name: "python".into(),
            command: vec!["python".into(), "train.py".into()],
            start: BootNanos(START),
            ..ProcessInfo::default()
        })),
        call("cudaMalloc", 1_000, 10, 4096),
        call("cudaMemcpy", 2_000, 20, 8192),
        call("cudaMemcpy", 3_000, 30, 8192),
        Event::BlockIo(BlockIo {
            thread: Thread::new(100, 100),
            start: BootNanos(START + 4_000),
            dur: 40,
            kind: IoKind::Read,
            bytes: 65_536,
            sector: 1,
            dev: 1,
            inode: 1,
            error: 0,
        }),
        Event::OffCpu(OffCpu {
            thread: Thread::new(100, 101),
            start: BootNanos(START + 5_000),
            dur: 50,
            runnable: 20,
            throttled: 0,
            preempted: false,
            iowait: true,
            uninterruptible: true,
            stopped: false,
            timed: false,
            poll_socket: false,
            syscall: Some(0),
            fd: Some(3),
            file: FileType::Regular,
            waker: Some(Waker {
                thread: Thread::new(100, 100),
                by: Wake::Kernel,
            }),
            last_occupant: Tid(9),
            cpu: Cpu(1),
        }),
        Event::Lost(Loss {
            source: "ebpf",
            reason: LossReason::RingFull,
            count: 5,
            window: None,
            pid: None,
        }),
    ]);
    writer.tick(BootNanos(START + SECOND));
    writer.anchor(ClockAnchor {
        boot: BootNanos(START + SECOND),
        unix: UnixNanos(UNIX + SECOND + 1_000_000),
    });
    writer.events(&[call("cudaFree", 2 * SECOND, 60, u64::MAX)]);
    let mut parts = Parts::default();
    parts[Category::Copy] = 70;
    writer.units(&[Unit {
        key: UnitKey {
            process: Incarnation::default(),
            device: None,
            stream: StreamScope::Many,
            kind: UnitKind::Call,
            class: 1,
        },
        lead: Tid(101),
        name: None,
        number: 0,
        start: BootNanos(START),
        dur: 70,
        parts,
        launches: 0,
        slow: false,
        incomplete: false,
    }]);
    writer.tick(BootNanos(START + 3 * SECOND));
}

struct Recorded {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Recorded {
    fn new() -> Recorded {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path(), "s");
        fill(&mut writer);
        let path = writer.path().to_owned();
        writer.seal().unwrap();
        Recorded {
            _folder: folder,
            path,
        }
    }

    fn ask(&self, sql: &str) -> Result<Answer, QueryError> {
        query(&[open(&self.path)], sql, Limits::default())
    }

    #[track_caller]
    fn check(&self, sql: &str, rows: Value) {
        let answer = self.ask(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        assert_eq!(answer.json()["rows"], rows, "{sql}");
    }
}

fn open(path: &Path) -> Session {
    Session::open(Arc::new(RealFs), path).unwrap()
}

#[test]
fn the_view_events_speaks_names_and_units() {
    let recorded = Recorded::new();
    let answer = recorded.ask("SELECT * FROM events ORDER BY ts_ns").unwrap();
    let names: Vec<String> = answer.columns().into_iter().map(|c| c.name).collect();
    assert_eq!(
        names.join(" "),
        "time ts_ns layer kind op pid tid comm device stream dur_ns ret bytes arg0 arg1 stack_id cpu flags"
    );
    let rows = &answer.json()["rows"];
    assert_eq!(
        rows[0],
        json!([
            "2026-11-18T11:06:40.000001000Z",
            (UNIX + 1_000).to_string(),
            "cuda",
            "call",
            "cudaMalloc",
            100,
            101,
            "loader ✓",
            3,
            u64::MAX.to_string(),
            10,
            0,
            4096,
            "4096",
            "1",
            7,
            2,
            0,
        ])
    );
    assert_eq!(
        rows[3],
        json!([
            "2026-11-18T11:06:40.000004000Z",
            (UNIX + 4_000).to_string(),
            "io",
            "block_io",
            "block_read",
            100,
            100,
            "python",
            null,
            "1",
            40,
            0,
            65_536,
            "65536",
            "1",
            1,
            0,
            0,
        ])
    );
    // After the second anchor.
    let late = (UNIX + 2 * SECOND + 1_000_000).to_string();
    assert_eq!(
        (&rows[4][1], &rows[4][8], &rows[4][11]),
        (&json!(late), &Value::Null, &json!(-2))
    );
}

#[test]
fn calls_are_counted_by_name() {
    Recorded::new().check(
        "SELECT op, count(*), sum(dur_ns), sum(bytes) FROM events WHERE layer = 'cuda' GROUP BY op ORDER BY op",
        json!([
            ["cudaFree", 1, 60, null],
            ["cudaMalloc", 1, 10, 4096],
            ["cudaMemcpy", 2, 50, 16_384],
        ]),
    );
}

#[test]
fn threads_and_processes_come_and_go_by_different_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path(), "s");
    let (at, parent) = (BootNanos(START), Thread::new(100, 100));
    let (pid, thread) = (Pid(100), Thread::new(100, 101));
    let events = [
        ProcessEvent::Born {
            at,
            parent,
            child: Pid(200),
        },
        ProcessEvent::ThreadBorn {
            at,
            parent,
            child: Tid(101),
        },
        ProcessEvent::Exec {
            at,
            pid,
            start_ticks: 1,
        },
        ProcessEvent::Exit { at, pid, status: 0 },
        ProcessEvent::ThreadExit { at, thread },
        ProcessEvent::OomKill { at, victim: pid },
    ];
    writer.events(&events.map(Event::Process));
    let path = writer.path().to_owned();
    writer.seal().unwrap();
    let answer = query(
        &[open(&path)],
        "SELECT layer, op FROM events ORDER BY op",
        Limits::default(),
    );
    assert_eq!(
        answer.unwrap().json()["rows"],
        json!([
            ["host", "oom_kill"],
            ["host", "process_exec"],
            ["host", "process_exit"],
            ["host", "process_fork"],
            ["host", "thread_exit"],
            ["host", "thread_start"],
        ])
    );
}

#[test]
fn other_views_have_names_too() {
    let recorded = Recorded::new();
    recorded.check(
        "SELECT kind, comm, iowait, preempted, file_type, waker_comm, runnable_ns FROM offcpu",
        json!([["off_cpu", "loader ✓", true, false, "regular", "python", 20]]),
    );
    recorded.check(
        "SELECT ts_ns, copy_ns, kind, slow FROM units",
        json!([[UNIX.to_string(), 70, "call", false]]),
    );
    recorded.check(
        "SELECT source, reason, count, ts_ns FROM drops",
        json!([["ebpf", "ring_full", 5, null]]),
    );
    recorded.check(
        "SELECT name, command FROM processes",
        json!([["python", ["python", "train.py"]]]),
    );
    recorded.check("SELECT name, tid FROM threads", json!([["loader ✓", 101]]));
}

#[test]
fn raw_tables_are_as_stored() {
    let recorded = Recorded::new();
    recorded.check(
        "SELECT boot_ns, source, op FROM raw.events WHERE kind = 1 ORDER BY boot_ns LIMIT 1",
        json!([[(START + 1_000).to_string(), 1, 1]]),
    );
    for table in TABLES {
        for schema in ["", "raw."] {
            let answer = recorded.ask(&format!("SELECT * FROM {schema}{table}"));
            assert!(answer.is_ok(), "{schema}{table}: {}", answer.unwrap_err());
        }
    }
}

#[test]
fn the_catalog_can_be_asked() {
    let recorded = Recorded::new();
    let tables = recorded.ask("SHOW TABLES").unwrap().json();
    let text = tables["rows"].to_string();
    assert!(
        text.contains(r#""public","events""#) && text.contains(r#""raw","events""#),
        "{text}"
    );
    assert!(recorded.ask("DESCRIBE events").unwrap().rows() > 10);
    assert!(recorded.ask("EXPLAIN SELECT * FROM events").unwrap().rows() > 0);
}

#[test]
fn streams_that_were_not_sealed_are_read_with_the_sealed_segments() {
    let folder = tempfile::tempdir().unwrap();
    let limits = warptrace_store::Limits {
        seal_bytes: 50_000,
        ..warptrace_store::Limits::default()
    };
    let meta = SessionMeta::new(ClockAnchor {
        boot: BootNanos(START),
        unix: UnixNanos(UNIX),
    });
    let mut writer =
        SessionWriter::with_limits(Arc::new(RealFs), &DataDir::at(folder.path()), meta, limits)
            .unwrap();
    for second in 0..30 {
        let calls: Vec<Event> = (0..100)
            .map(|i| call("cudaMemcpy", second * SECOND + i, 1, 1))
            .collect();
        writer.events(&calls);
        writer.tick(BootNanos(START + (second + 1) * SECOND));
    }
    let path = writer.path().to_owned();
    let files = open(&path).table("events").unwrap();
    assert!(!files.sealed.is_empty() && !files.streams.is_empty());
    for writer in [Some(writer), None] {
        // Live first, then left as by a crash.
        let answer = query(
            &[open(&path)],
            "SELECT count(*), sum(dur_ns) FROM events",
            Limits::default(),
        );
        assert_eq!(answer.unwrap().json()["rows"], json!([[3_000, 3_000]]));
        drop(writer);
    }
}

#[test]
fn several_sessions_have_a_column_that_tells_them_apart() {
    let folder = tempfile::tempdir().unwrap();
    let mut sessions = Vec::new();
    for id in ["a", "b"] {
        let mut writer = writer(folder.path(), id);
        fill(&mut writer);
        sessions.push(open(writer.path()));
    }
    let ask = |sql| query(&sessions, sql, Limits::default()).unwrap().json()["rows"].clone();
    assert_eq!(
        ask(
            "SELECT session, count(*) FROM events WHERE op = 'cudaMemcpy' GROUP BY session ORDER BY session"
        ),
        json!([["a", 2], ["b", 2]])
    );
    assert_eq!(
        ask("SELECT session, count FROM raw.drops ORDER BY session"),
        json!([["a", 5], ["b", 5]])
    );
}

#[test]
fn a_folder_of_any_name_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(&folder.path().join("a b%41#[x]*?é"), "s");
    fill(&mut writer);
    let path = writer.path().to_owned();
    writer.seal().unwrap();
    let answer = query(
        &[open(&path)],
        "SELECT count(*) FROM events",
        Limits::default(),
    )
    .unwrap();
    assert_eq!(answer.json()["rows"], json!([[5]]));
}

#[test]
fn nothing_can_be_written() {
    let recorded = Recorded::new();
    let target = recorded.path.join("stolen.csv");
    let copy = format!("COPY (SELECT * FROM events) TO '{}'", target.display());
    let external = format!(
        "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{}'",
        recorded.path.display()
    );
    for sql in [
        "CREATE TABLE t AS SELECT 1",
        "CREATE VIEW v AS SELECT 1",
        "CREATE SCHEMA s",
        "DROP TABLE events",
        "DROP VIEW events",
        "INSERT INTO raw.events SELECT * FROM raw.events",
        "DELETE FROM events",
        "UPDATE events SET pid = 1",
        "SET datafusion.execution.batch_size = 1",
        "PREPARE p AS SELECT 1",
        "EXPLAIN ANALYZE INSERT INTO raw.events SELECT * FROM raw.events",
        &copy,
        &external,
    ] {
        assert!(recorded.ask(sql).is_err(), "{sql}");
    }
    assert!(!target.exists());
    for sql in [
        "CREATE TABLE t AS SELECT 1",
        "SET datafusion.execution.batch_size = 1",
        &copy,
    ] {
        let error = recorded.ask(sql).unwrap_err().to_string();
        assert_eq!(
            error, "only SELECT and EXPLAIN: sessions are read-only",
            "{sql}"
        );
    }
    recorded.check("SELECT count(*) FROM events", json!([[5]]));
}

#[test]
fn no_other_file_can_be_read() {
    let recorded = Recorded::new();
    let file = format!("SELECT * FROM '{}/session.json'", recorded.path.display());
    for sql in [
        file.as_str(),
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM parquet_metadata('/x')",
    ] {
        assert!(recorded.ask(sql).is_err(), "{sql}");
    }
}

#[test]
fn errors_name_what_there_is() {
    let recorded = Recorded::new();
    let error = |sql| recorded.ask(sql).unwrap_err().to_string();
    let text = error("SELECT * FROM event");
    assert!(
        text.starts_with(r#"no table "event" (did you mean events?); there are: events, offcpu, "#),
        "{text}"
    );
    let text = error("SELECT * FROM raw.unit");
    assert!(text.contains("did you mean units?"), "{text}");
    let text = error("SELECT duration_ns FROM events");
    assert!(
        text.starts_with(
            r#"no column "duration_ns" (did you mean dur_ns?); there are: time, ts_ns"#
        ),
        "{text}"
    );
    for sql in [
        "",
        "SELEC 1",
        "SELECT 1; SELECT 2",
        "SELECT no_such_function(1)",
    ] {
        assert!(!error(sql).is_empty(), "{sql}");
    }
}

#[test]
fn rows_time_and_memory_are_limited() {
    let recorded = Recorded::new();
    let ask = |sql, limits| query(&[open(&recorded.path)], sql, limits);
    let few = Limits {
        max_rows: 2,
        ..Limits::default()
    };
    for (sql, rows, truncated) in [
        ("SELECT pid FROM events", 2, true),
        ("SELECT pid FROM events LIMIT 2", 2, false),
        ("SELECT pid FROM events WHERE pid = 0", 0, false),
        ("SELECT pid FROM events ORDER BY ts_ns DESC", 2, true),
    ] {
        let answer = ask(sql, few).unwrap();
        assert_eq!(
            (answer.rows(), answer.truncated()),
            (rows, truncated),
            "{sql}"
        );
        assert_eq!(answer.json()["truncated"], json!(truncated));
    }
    // It cannot end in the time it has, on any machine.
    let endless =
        "SELECT count(*) FROM generate_series(1, 9000000000000000000) WHERE value % 7 = 3";
    let brief = Limits {
        timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let result = ask(endless, brief);
    assert!(matches!(result, Err(QueryError::Timeout(_))), "{result:?}");
    let small = Limits {
        memory_bytes: 1 << 20,
        ..Limits::default()
    };
    let greedy = "SELECT count(*) FROM (SELECT value, count(*) FROM generate_series(1, 3000000) GROUP BY value)";
    let error = ask(greedy, small).unwrap_err();
    assert!(matches!(error, QueryError::Memory(_)), "{error}");
}

#[test]
fn json_keeps_every_bit() {
    Recorded::new().check(
        "SELECT 9007199254740993, 1, CAST('NaN' AS DOUBLE), NULL, [1, 9007199254740993], named_struct('ip', 5, 'n', 6),
                arrow_cast(18446744073709551615, 'UInt64') AS big, 5 AS ts_ns, 5 AS start_unix_ns, 1.5, true",
        json!([[
            "9007199254740993", 1, "NaN", null, [1, "9007199254740993"], {"ip": "5", "n": 6},
            "18446744073709551615", "5", "5", 1.5, true,
        ]]),
    );
}

#[test]
fn a_column_with_one_number_too_big_is_text_throughout() {
    Recorded::new().check(
        "SELECT n FROM (VALUES (1), (9007199254740993)) AS t(n) ORDER BY n",
        json!([["1"], ["9007199254740993"]]),
    );
}

fn program(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_warptrace-sql"))
        .args(args)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn the_program_prints_a_table_or_one_json_object() {
    let recorded = Recorded::new();
    let session = recorded.path.to_str().unwrap();
    let sql = "SELECT op, count(*) AS calls FROM events GROUP BY op ORDER BY op";
    let (code, out, err) = program(&[sql, "--session", session]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(
        out,
        "op          calls\nblock_read      1\ncudaFree        1\ncudaMalloc      1\ncudaMemcpy      2\n(4 rows)\n"
    );
    let (code, out, _) = program(&[sql, "--session", session, "--json", "--max-rows", "1"]);
    assert_eq!(code, 0);
    assert_eq!(
        serde_json::from_str::<Value>(&out).unwrap(),
        json!({
            "schema": "warptrace.query/v1",
            "columns": [{"name": "op", "type": "Utf8"}, {"name": "calls", "type": "Int64"}],
            "rows": [["block_read", 1]],
            "truncated": true,
        })
    );
}

#[test]
fn the_program_finds_the_newest_session_and_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let (code, _, err) = program(&["SELECT 1", "--data", data]);
    assert_eq!(
        (code, err.as_str()),
        (
            2,
            "warptrace-sql: no sessions yet: `warptrace record -- COMMAND` makes one\n"
        )
    );
    for id in ["20260101T000000Z-a", "20270101T000000Z-b"] {
        fill(&mut writer(folder.path(), id));
    }
    let newer = folder.path().join("sessions/20280101T000000Z-c");
    std::fs::create_dir(&newer).unwrap();
    std::fs::write(newer.join("session.json"), r#"{"format":7}"#).unwrap();
    let (code, out, err) = program(&["SELECT count(*) AS n FROM events", "--data", data]);
    assert_eq!((code, out.as_str()), (0, "n\n5\n(1 row)\n"));
    assert!(
        err.contains("20280101T000000Z-c is newer and cannot be read") && err.contains("upgrade"),
        "{err}"
    );
    let (code, _, err) = program(&["SELECT 1", "--data", data, "--session", "202"]);
    assert_eq!(code, 2);
    assert!(err.contains("could be any of"), "{err}");
    let (code, _, err) = program(&["SELECT 1", "--data", data, "--timeout", "never"]);
    assert_eq!(code, 2);
    assert!(err.contains("30s"), "{err}");
}
