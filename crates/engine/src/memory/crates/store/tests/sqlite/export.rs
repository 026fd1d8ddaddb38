//! A session as a file, and back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;
use warptrace_model::*;
use warptrace_store::fs::MemFs;
use warptrace_store::sqlite::{Chain, Step, export};
use warptrace_store::{DataDir, Frame, Session, Stack};

use crate::database::import;
use crate::support::{self, SECOND, START, read_events, sorted};

fn session(fill: impl FnOnce(&mut warptrace_store::SessionWriter)) -> Session {
    let fs = MemFs::new();
    let mut meta = support::meta("made");
    meta.node = "node-7".to_owned();
    meta.kernel = "6.8.0".to_owned();
    meta.cpus = 12;
    meta.identity.rank = Some(5);
    let mut writer =
        warptrace_store::SessionWriter::create(Arc::new(fs.clone()), &DataDir::at("/data"), meta)
            .unwrap();
    fill(&mut writer);
    writer.seal().unwrap();
    support::open(&fs, "made").unwrap()
}

fn text(c: &Connection, sql: &str) -> Vec<String> {
    let mut query = c.prepare(sql).unwrap();
    let columns = query.column_count();
    let rows = query.query_map([], |row| {
        let cells: Vec<String> = (0..columns)
            .map(|i| match row.get_ref(i).unwrap() {
                rusqlite::types::ValueRef::Text(t) => String::from_utf8_lossy(t).into_owned(),
                rusqlite::types::ValueRef::Null => "-".to_owned(),
                rusqlite::types::ValueRef::Integer(n) => n.to_string(),
                rusqlite::types::ValueRef::Real(x) => x.to_string(),
                rusqlite::types::ValueRef::Blob(_) => "blob".to_owned(),
            })
            .collect();
        Ok(cells.join("|"))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// What both formats can say of an event, at Unix time.
fn common(event: &Event, unix: impl Fn(BootNanos) -> BootNanos) -> Option<Event> {
    Some(match event {
        Event::Call(c) => {
            let mut c = *c;
            c.start = unix(c.start);
            // A row has no grid, no CPU, and no flags: what was nested is found again by its time.
            c.cpu = Cpu(0);
            c.flags = CallFlags(0);
            let op = c.op.get();
            match (op.source, op.number) {
                (record::Source::Runtime, 3) | (record::Source::Driver, 1) => c.arg1 = 0,
                (record::Source::Driver, 2 | 3) => c.arg1 = 4,
                (record::Source::Runtime, 1 | 8) | (record::Source::Driver, 5 | 6)
                    if c.ret != 0 =>
                {
                    c.arg1 = 0
                }
                (record::Source::Runtime, 5) => (c.arg0, c.arg1) = (0, 0),
                (record::Source::Graph, 1 | 2 | 4 | 5 | 7) => c.arg1 = 0,
                _ => {}
            }
            if op.stream == record::op::Slot::Zero {
                c.stream = Stream(0);
            }
            Event::Call(c)
        }
        Event::OffCpu(o) => {
            let woken = o.waker.is_some() && !o.preempted;
            Event::OffCpu(OffCpu {
                thread: o.thread,
                start: unix(o.start),
                dur: o.dur,
                runnable: if woken { o.runnable } else { 0 },
                throttled: 0,
                preempted: false,
                iowait: false,
                uninterruptible: false,
                stopped: false,
                timed: false,
                poll_socket: false,
                syscall: Some(record::UNKNOWN_SYSCALL),
                fd: None,
                file: FileType::None,
                waker: o.waker.filter(|_| woken).map(|w| Waker {
                    thread: w.thread,
                    by: Wake::Other,
                }),
                last_occupant: o.last_occupant,
                cpu: Cpu(0),
            })
        }
        Event::BlockIo(b) if b.kind != IoKind::Flush => Event::BlockIo(BlockIo {
            start: unix(b.start),
            bytes: b.bytes.div_ceil(512) * 512,
            dev: 0,
            inode: 0,
            error: 0,
            ..*b
        }),
        Event::Retransmit(r) => Event::Retransmit(Retransmit {
            at: unix(r.at),
            ..*r
        }),
        Event::Process(p) => Event::Process(match *p {
            ProcessEvent::Exec { at, pid, .. } => ProcessEvent::Exec {
                at: unix(at),
                pid,
                start_ticks: 0,
            },
            ProcessEvent::Exit { at, pid, status } => ProcessEvent::Exit {
                at: unix(at),
                pid,
                status,
            },
            ProcessEvent::ThreadExit { at, thread } => ProcessEvent::ThreadExit {
                at: unix(at),
                thread,
            },
            ProcessEvent::OomKill { at, victim } => ProcessEvent::OomKill {
                at: unix(at),
                victim,
            },
            ProcessEvent::Born { .. } | ProcessEvent::ThreadBorn { .. } => return None,
        }),
        Event::Annotation(a) => {
            let mut a = a.clone();
            a.at = unix(a.at);
            a.span = a.span.map(|s| Window {
                start: unix(s.start),
                end: unix(s.end),
            });
            a.sender = a.sender.filter(|s| s.pid != 0);
            a.scope = a.scope.filter(|s| s.pid.0 != 0);
            Event::Annotation(a)
        }
        _ => return None,
    })
}

/// Without what the import finds by itself.
fn found(event: &Event) -> Option<Event> {
    match event {
        Event::Call(c) => Some(Event::Call(Call {
            flags: CallFlags(0),
            ..*c
        })),
        Event::System(_) | Event::Counts(_) => None,
        Event::Process(ProcessEvent::Born { .. } | ProcessEvent::ThreadBorn { .. }) => None,
        other => Some(other.clone()),
    }
}

#[test]
fn a_session_comes_back_with_what_both_formats_can_say() {
    for seed in 0..4 {
        let mut events = support::events(seed, 0..1_500);
        // Stacks that are one by their symbols become one, so here none has any; a wake-up belongs to the sleep after it.
        for event in &mut events {
            match event {
                Event::Call(c) => c.stack_id = 0,
                Event::OffCpu(o) => o.waker = o.waker.filter(|w| w.thread.tid.0 != 0),
                _ => {}
            }
        }
        // Of one thread at a time: what overlaps cannot be told apart by a wake-up's row.
        let mut last: BTreeMap<Tid, BootNanos> = BTreeMap::new();
        events.retain(|event| match event {
            Event::OffCpu(o) => {
                let free = last.get(&o.thread.tid).is_none_or(|end| *end < o.start);
                if free {
                    last.insert(o.thread.tid, o.start.plus(o.dur));
                }
                free && o.dur < SECOND
            }
            _ => true,
        });
        let session = session(|w| w.events(&events));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.db");
        let tally = export(&session, &[], &path, &mut |_| {}).unwrap();
        assert!(tally.kept["events"] > 300, "{tally:#?}");
        let back = import(&path).unwrap();
        assert!(back.tally.damage.is_empty());
        let unix = |at: BootNanos| BootNanos(session.meta().unix(at).0);
        let want: Vec<Event> = read_events(&session, None)
            .iter()
            .filter_map(|e| common(e, unix))
            .collect();
        let have: Vec<Event> = back.events().iter().filter_map(found).collect();
        let (want, have) = (sorted(&want), sorted(&have));
        let missing: Vec<&String> = want
            .iter()
            .filter(|w| have.binary_search(w).is_err())
            .collect();
        let extra: Vec<&String> = have
            .iter()
            .filter(|h| want.binary_search(h).is_err())
            .collect();
        assert!(
            missing.is_empty() && extra.is_empty(),
            "seed {seed}\nmissing {missing:#?}\nextra {extra:#?}"
        );
        assert_eq!(want.len(), have.len());
        let meta = back.sessions[0].meta();
        assert_eq!(
            (
                meta.node.as_str(),
                meta.kernel.as_str(),
                meta.cpus,
                meta.identity.rank
            ),
            ("node-7", "6.8.0", 12, Some(5))
        );
    }
}

fn call(op: &str, at: u64, dur: u64, arg0: u64) -> Event {
    Event::Call(Call {
        thread: Thread::new(100, 101),
        op: record::OpId::by_name(op).unwrap(),
        start: BootNanos(START + at),
        dur,
        device: Some(Device(0)),
        stream: Stream(u64::MAX - 1),
        ret: 0,
        flags: CallFlags(0),
        arg0,
        arg1: 0x100 << 16 | 256,
        stack_id: 3,
        cpu: Cpu(1),
    })
}

#[test]
fn queries_for_the_other_tracers_file_give_what_they_say() {
    let unix = 1_795_000_000 * SECOND;
    let session = session(|w| {
        w.events(&[
            Event::ProcessInfo(Box::new(ProcessInfo {
                incarnation: Incarnation {
                    pid: Pid(100),
                    start_ticks: 5,
                },
                name: "python".to_owned(),
                cgroup: "/job".to_owned(),
                container_id: "c".repeat(64),
                in_job: true,
                ..ProcessInfo::default()
            })),
            Event::ThreadName(ThreadName {
                thread: Thread::new(100, 101),
                name: "loader".into(),
            }),
            call("cudaLaunchKernel", 0, 4_000, 0xabc),
            call("cudaStreamSync", 10_000, 900_000, 0),
            call("cudaMemcpy", 1_000_000, 1_000, 4_096),
            call("cudaMemcpy", 2_000_000, 3_000, 4_096),
            Event::System(Box::new(SystemSample {
                at: BootNanos(START),
                cpu: Some(0.25),
                memory_total: 8 << 30,
                memory_available: 2 << 30,
                swap_used: 5 << 20,
                load1: 1.25,
                ..SystemSample::default()
            })),
        ]);
        let frame = |ip, function: &str, file: Option<&str>, module: &str| Frame {
            ip,
            function: Some(function.to_owned()),
            file: file.map(Into::into),
            module: (!module.is_empty()).then(|| module.to_owned()),
            line: file.map(|_| 142),
            ..Frame::default()
        };
        let frames = vec![
            frame(
                0x10,
                "cudaLaunchKernel+0x5",
                None,
                "/usr/lib/libcudart.so.12",
            ),
            frame(0, "forward", Some("train.py"), ""),
        ];
        w.resolved_stacks(&[Stack { id: 3, frames }]);
    });
    let chain = Chain {
        descriptor: "warptrace-f3a1".to_owned(),
        detected: UnixNanos(unix),
        severity: "HIGH",
        summary: "cudaStreamSync p99=59.6ms (1.6x p50) — waiting for a CPU".to_owned(),
        root_cause: "run_queue_wait".to_owned(),
        explanation: "e".to_owned(),
        recommendations: vec!["taskset".to_owned()],
        op: "cudaStreamSync".to_owned(),
        p99_micros: 59_600,
        p50_micros: 38_200,
        timeline: vec![Step {
            layer: "HOST",
            op: "sched_switch".to_owned(),
            detail: "d".to_owned(),
            dur_micros: 7,
        }],
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.db");
    export(&session, &[chain], &path, &mut |_| {}).unwrap();
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "no journal is left"
    );
    let c = Connection::open(&path).unwrap();
    let check = |sql: &str, want: &[&str]| assert_eq!(text(&c, sql), want, "{sql}");

    check("PRAGMA integrity_check", &["ok"]);
    check("PRAGMA user_version", &["10"]);
    check("PRAGMA auto_vacuum", &["2"]);
    check(
        "SELECT id, timestamp, pid, tid, source, op, duration, gpu_id, arg0, arg1, ret_code, node, rank, comm, stream FROM events ORDER BY timestamp LIMIT 2",
        &[
            &format!("node-7:1|{unix}|100|101|1|3|4000|0|2748|-2|0|node-7|5|loader|-2"),
            &format!(
                "node-7:2|{}|100|101|1|5|900000|0|-2|0|0|node-7|5|loader|-2",
                unix + 10_000
            ),
        ],
    );
    check(
        "SELECT s.name, o.name, count(*), sum(e.duration) FROM events e JOIN ops o ON o.source_id = e.source AND o.op_id = e.op
         JOIN sources s ON s.id = e.source GROUP BY 1, 2 ORDER BY 4 DESC",
        &["CUDA|cudaStreamSync|1|900000", "CUDA|cudaLaunchKernel|1|4000", "CUDA|cudaMemcpy|2|4000"],
    );
    check(
        "SELECT op, pid, count, stored, sum_dur, min_dur, max_dur, sum_arg0 FROM event_aggregates ORDER BY op",
        &[
            "3|100|1|1|4000|4000|4000|0",
            "4|100|2|2|4000|1000|3000|8192",
            "5|100|1|1|900000|900000|900000|0",
        ],
    );
    check(
        "SELECT count(*), sum(count) FROM event_aggregates_5s",
        &["3|4"],
    );
    check(
        "SELECT bucket % 60000000000 FROM event_aggregates LIMIT 1",
        &["0"],
    );
    check(
        "SELECT DISTINCT st.frames FROM events e JOIN stack_traces st ON st.hash = e.stack_hash",
        &[
            r#"[{"f":"libcudart.so.12","s":"cudaLaunchKernel+0x5"},{"pf":"train.py","pfn":"forward","pl":142}]"#,
        ],
    );
    check(
        "SELECT DISTINCT m.container_id, m.cgroup_path FROM events e JOIN cgroup_metadata m USING (cgroup_id)",
        &[&format!("{}|/job", "c".repeat(64))],
    );
    check(
        "SELECT cpu_pct, mem_pct, mem_avail, swap_mb, load_avg FROM system_snapshots",
        &["25|75|2048|5|1.25"],
    );
    check("SELECT pid, name FROM process_names", &["100|python"]);
    check(
        "SELECT id, severity, cuda_op, cuda_p99_us, cuda_p50_us, round(tail_ratio, 2), recommendations, timeline FROM causal_chains",
        &[
            r#"node-7:warptrace-f3a1|HIGH|cudaStreamSync|59600|38200|1.56|["taskset"]|[{"detail":"d","dur_us":7,"layer":"HOST","op":"sched_switch"}]"#,
        ],
    );
    check(
        "SELECT kernel, cpu_cores, rank, started_at > 0 FROM sessions",
        &["6.8.0|12|5|1"],
    );
    check(
        "SELECT value FROM schema_info WHERE key = 'version'",
        &["0.10"],
    );
    let indexes = text(
        &c,
        "SELECT name FROM sqlite_schema WHERE type = 'index' AND name LIKE 'idx%' ORDER BY 1",
    );
    assert_eq!(
        indexes,
        [
            "idx_aggregates_5s_bucket",
            "idx_aggregates_bucket",
            "idx_annotations_pid",
            "idx_annotations_timestamp",
            "idx_cgroup_metadata_container_id",
            "idx_cgroup_schedstat_cgroup",
            "idx_chains_detected_at",
            "idx_chains_severity",
            "idx_events_cgroup",
            "idx_events_pid",
            "idx_events_source_op_stack",
            "idx_events_timestamp",
            "idx_sessions_started",
            "idx_snapshots_ts_uniq",
        ]
    );
    let columns = text(&c, "SELECT name FROM pragma_table_info('events')").join(" ");
    assert!(
        columns.starts_with("id timestamp pid tid source op duration gpu_id arg0 arg1 ret_code stack_hash node rank local_rank world_size comm stack_ips cgroup_id "),
        "{columns}"
    );
}

#[test]
fn calls_that_were_only_counted_are_in_the_sums() {
    let op = record::OpId::by_name("cudaLaunchKernel").unwrap();
    let mut durations = Histogram::default();
    for dur in [4_000, 4_000, 4_000, 90_000] {
        durations.record(dur);
    }
    let session = session(|w| {
        w.events(&[
            call("cudaLaunchKernel", 0, 4_000, 0),
            Event::Counts(Box::new(OpCount {
                key: OpKey {
                    pid: Pid(100),
                    device: Some(Device(0)),
                    op,
                },
                window: Window::at(BootNanos(START), SECOND),
                total: 102_000,
                durations,
            })),
        ]);
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.db");
    export(&session, &[], &path, &mut |_| {}).unwrap();
    let c = Connection::open(&path).unwrap();
    let row = text(
        &c,
        "SELECT count, stored, sum_dur, min_dur <= 4000, max_dur >= 90000 FROM event_aggregates",
    );
    assert_eq!(row, ["4|1|102000|1|1"]);
}

#[test]
fn a_file_that_cannot_be_made_is_an_error() {
    let session = session(|_| {});
    let error = export(
        &session,
        &[],
        Path::new("/no/such/folder/out.db"),
        &mut |_| {},
    )
    .unwrap_err();
    assert!(error.to_string().starts_with("cannot write"), "{error}");
}
