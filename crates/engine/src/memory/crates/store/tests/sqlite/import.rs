//! Every version's rows, as events.

use warptrace_model::*;

use crate::database::{MS, Row, T, VERSIONS, Version, create, import, insert, row};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// One of each kind of row, all of process 100 unless it is about another.
fn one_of_each() -> Vec<Row> {
    let with = |r: Row, arg0, arg1| Row { arg0, arg1, ..r };
    vec![
        // The process, and a thread of it.
        row(T, 100, 3, 5, 0),
        with(row(T + MS, 100, 3, 7, 0), 0, 105),
        // A launch on a stream above 2^63, the driver's inside it.
        with(row(T + 11 * MS + 2_000, 100, 4, 1, 3_000), i64::MIN + 7, 0),
        with(row(T + 11 * MS, 100, 1, 3, 9_000), i64::MIN + 7, -1),
        with(row(T + 12 * MS, 105, 1, 4, 2 * MS), 1 << 40, 1),
        with(row(T + 20 * MS, 100, 1, 5, 5 * MS), -1, 0),
        // An allocation that failed, and one that did not.
        Row {
            ret: 2,
            ..with(row(T + 26 * MS, 100, 1, 1, 5_000), 512, 0x7ffd)
        },
        with(row(T + 27 * MS, 100, 1, 1, 5_000), 512, 0x7f00),
        // Graphs have no handles there.
        row(T + 28 * MS, 100, 8, 4, 1_000),
        // Woken by 7/8 a millisecond before it was back.
        Row {
            pid: 7,
            ..with(row(T + 39 * MS, 8, 3, 2, 0), 0, 100)
        },
        with(row(T + 40 * MS, 100, 3, 1, 4 * MS), 0, 77),
        // A thread under its own number.
        Row {
            pid: 105,
            ..with(row(T + 50 * MS, 105, 3, 1, 3 * MS), 0, 78)
        },
        with(row(T + 60 * MS, 100, 5, 2, 2 * MS), 8, 4_096),
        with(
            row(T + 61 * MS, 100, 6, 1, 0),
            (0x0a00_0001 << 32) | 0x0a00_0002,
            (40_000 << 16) | 443,
        ),
        // No events of ours.
        with(row(T + 62 * MS, 100, 7, 1, MS), 5, 1_000),
        with(row(T + 63 * MS, 100, 3, 3, 4_096), 4_096, 0),
        with(row(T + 64 * MS, 100, 3, 21, 0), 3, 3_000),
        with(row(T + 65 * MS, 100, 3, 7, 0), 0, 999),
        with(row(T + 66 * MS, 100, 1, 99, 1), 0, 0),
        with(row(T + 67 * MS, 100, 42, 1, 1), 0, 0),
        // The victim of the OOM killer, and ends.
        Row {
            pid: 1,
            ..with(row(T + 70 * MS, 1, 3, 4, 0), 0, 555)
        },
        row(T + 80 * MS, 105, 3, 6, 0),
        row(T + 90 * MS, 100, 3, 6, 0),
    ]
}

#[test]
fn every_version_gives_the_same_events() {
    for version in VERSIONS {
        let dir = folder();
        let path = dir.path().join("ingero.db");
        let c = create(&path, version);
        for (i, r) in one_of_each().iter().enumerate() {
            insert(&c, version, i, r);
        }
        drop(c);
        let got = import(&path).unwrap();
        let events = got.events();
        let find = |want: &dyn Fn(&Event) -> bool| -> Event {
            let found: Vec<&Event> = events.iter().filter(|e| want(e)).collect();
            assert_eq!(found.len(), 1, "{version:?}: {events:#?}");
            found[0].clone()
        };
        let call = |name: &str| -> Vec<Call> {
            let of = |e: &Event| match e {
                Event::Call(c) if c.op.name() == name => Some(*c),
                _ => None,
            };
            events.iter().filter_map(of).collect()
        };
        let at = |ms: i64| BootNanos((T + ms * MS) as u64);

        let launch = call("cudaLaunchKernel")[0];
        assert_eq!((launch.start, launch.dur), (at(11), 9_000));
        assert_eq!(launch.stream, Stream(u64::MAX), "64 bits, {version:?}");
        assert_eq!((launch.arg0, launch.arg1), ((1 << 63) + 7, 0));
        assert!(!launch.flags.nested() && call("cuLaunchKernel")[0].flags.nested());
        assert_eq!(launch.device, None, "the agent never knew it");
        assert_eq!(call("cudaMemcpy")[0].thread, Thread::new(100, 105));
        assert_eq!(
            (
                call("cudaMemcpy")[0].bytes(),
                call("cudaMemcpy")[0].copy_kind()
            ),
            (Some(1 << 40), Some(1))
        );
        assert_eq!(call("cudaStreamSync")[0].stream, Stream(u64::MAX));
        let allocations = call("cudaMalloc");
        assert_eq!(
            (allocations[0].ret, allocations[0].arg1, allocations[1].arg1),
            (2, 0, 0x7f00)
        );
        assert_eq!(call("graphLaunch").len(), 1);

        let Event::OffCpu(woken) =
            find(&|e| matches!(e, Event::OffCpu(o) if o.thread.tid.0 == 100))
        else {
            unreachable!()
        };
        assert_eq!(
            (woken.start, woken.dur, woken.runnable),
            (at(36), 4 * MS as u64, MS as u64)
        );
        assert_eq!(woken.waker.map(|w| w.thread), Some(Thread::new(7, 8)));
        assert_eq!(woken.last_occupant, Tid(77));
        let Event::OffCpu(unknown) =
            find(&|e| matches!(e, Event::OffCpu(o) if o.thread.tid.0 == 105))
        else {
            unreachable!()
        };
        assert_eq!(
            unknown.thread.pid,
            Pid(100),
            "the call's row says whose thread it is"
        );
        assert_eq!((unknown.runnable, unknown.preempted), (0, false));
        assert_eq!(unknown.syscall, Some(record::UNKNOWN_SYSCALL));

        let Event::BlockIo(io) = find(&|e| matches!(e, Event::BlockIo(_))) else {
            unreachable!()
        };
        assert_eq!(
            (io.start, io.kind, io.bytes, io.sector),
            (at(58), IoKind::Write, 4_096, 4_096)
        );
        let Event::Retransmit(tcp) = find(&|e| matches!(e, Event::Retransmit(_))) else {
            unreachable!()
        };
        assert_eq!(
            (tcp.address, tcp.peer_address, tcp.port, tcp.peer_port),
            (0x0a00_0001, 0x0a00_0002, 40_000, 443)
        );
        let lives: Vec<ProcessEvent> = events
            .iter()
            .filter_map(|e| match e {
                Event::Process(p) => Some(*p),
                _ => None,
            })
            .collect();
        let (pid, thread) = (Pid(100), Thread::new(100, 105));
        assert_eq!(
            lives,
            [
                ProcessEvent::Exec {
                    at: at(0),
                    pid,
                    start_ticks: 0
                },
                ProcessEvent::ThreadBorn {
                    at: at(1),
                    parent: Thread::new(100, 100),
                    child: Tid(105)
                },
                ProcessEvent::OomKill {
                    at: at(70),
                    victim: Pid(555)
                },
                ProcessEvent::ThreadExit { at: at(80), thread },
                ProcessEvent::Exit {
                    at: at(90),
                    pid,
                    status: 0
                },
            ]
        );

        for (reason, count) in [
            ("socket calls", 1),
            ("mm_page_alloc:", 1),
            ("a sum over the whole machine", 1),
            ("process_fork:", 1),
            ("a call that is not known", 1),
            ("a source that is not known", 1),
        ] {
            assert_eq!(
                got.skipped("events", reason),
                count,
                "{reason}: {:#?}",
                got.tally
            );
        }
        assert_eq!(
            got.tally.kept["events"] + got.tally.skipped_rows(),
            one_of_each().len() as u64
        );
        assert!(got.tally.damage.is_empty());
        // One is kept to know who woke whom, and is no event of its own.
        assert_eq!(events.len() as u64 + 1, got.tally.kept["events"]);
        assert_eq!(
            (got.survey.nodes[0].first, got.survey.nodes[0].last),
            (T as u64, (T + 90 * MS) as u64)
        );
        let session = &got.sessions[0];
        assert_eq!(session.meta().created, UnixNanos(T as u64));
        assert_eq!(
            session.meta().unix(at(5)),
            UnixNanos((T + 5 * MS) as u64),
            "the boot clock is Unix time"
        );
        assert_eq!(session.window().unwrap().end, at(90));
        assert_eq!(
            session
                .processes()
                .unwrap()
                .iter()
                .filter(|p| p.in_job)
                .count(),
            1
        );
    }
}

#[test]
fn stacks_of_every_version_are_found_by_their_events() {
    for version in VERSIONS {
        let dir = folder();
        let path = dir.path().join("ingero.db");
        let c = create(&path, version);
        if version == Version::V05 {
            insert(&c, version, 0, &row(T, 100, 1, 5, MS));
            c.execute(
                "UPDATE events SET stack_ips = '[\"0x7f0000000001\",\"0xffffffffffffffff\"]'",
                [],
            )
            .unwrap();
        } else {
            let frames = r#"[{"s":"cudaStreamSynchronize+0x1c","f":"libcudart.so.12"},{"i":"0xffffffffffffffff"},{"pf":"train.py","pfn":"forward","pl":142,"new":[]}]"#;
            c.execute("INSERT INTO stack_traces VALUES (-5, '', ?1), (6, '[\"0x10\"]', ''), (7, '', '[[')", [frames])
                .unwrap();
            for (i, stack) in [-5, 6, 7].into_iter().enumerate() {
                let r = Row {
                    stack,
                    ..row(T + i as i64 * 10 * MS, 100, 1, 5, MS)
                };
                insert(&c, version, i, &r);
            }
        }
        drop(c);
        let got = import(&path).unwrap();
        let stacks = got.sessions[0].stacks().unwrap();
        let of_call: Vec<u32> = got
            .events()
            .iter()
            .filter_map(|e| match e {
                Event::Call(c) => Some(c.stack_id),
                _ => None,
            })
            .collect();
        let ips = |id: u32| -> Vec<u64> {
            let stack = stacks.iter().find(|s| s.id == id).unwrap();
            stack.frames.iter().map(|f| f.ip).collect()
        };
        if version == Version::V05 {
            assert_eq!(ips(of_call[0]), [0x7f00_0000_0001, u64::MAX]);
            continue;
        }
        assert_eq!(ips(of_call[1]), [0x10]);
        let frames = &stacks.iter().find(|s| s.id == of_call[0]).unwrap().frames;
        assert_eq!(
            frames[0].function.as_deref(),
            Some("cudaStreamSynchronize+0x1c")
        );
        assert_eq!(frames[0].module.as_deref(), Some("libcudart.so.12"));
        assert_eq!(frames[1].ip, u64::MAX);
        assert_eq!(
            (
                frames[2].file.as_deref(),
                frames[2].function.as_deref(),
                frames[2].line
            ),
            (Some("train.py"), Some("forward"), Some(142))
        );
        assert_eq!(of_call[2], 0, "a stack that cannot be read is none");
        assert_eq!(got.skipped("stack_traces", "its frames"), 1);
    }
}

#[test]
fn tables_beside_the_events_are_taken_or_counted() {
    let dir = folder();
    let path = dir.path().join("ingero.db");
    let c = create(&path, Version::V17);
    let of_100 = Row {
        node: "node-a",
        comm: "python",
        cgroup: 4_242,
        ..row(T, 100, 1, 5, MS)
    };
    insert(&c, Version::V17, 1, &of_100);
    c.execute_batch(&format!(
        "UPDATE events SET rank = 3, local_rank = 1, world_size = 8;
         INSERT INTO cgroup_metadata VALUES (4242, '{}', '/kubepods/pod1', '', '');
         INSERT INTO sessions (started_at, stopped_at, cpu_cores, kernel, node) VALUES ({T}, 0, 96, '6.8.0', 'node-a');
         INSERT INTO system_snapshots (timestamp, cpu_pct, mem_pct, mem_avail, swap_mb, load_avg)
             VALUES ({T}, 12.5, 75.0, 1000, 3, 1.5), ({T} + 1, 101.0, 0, 0, 0, 0);
         INSERT INTO causal_chains (id, detected_at, severity, summary, root_cause, explanation)
             VALUES ('node-a:oom', {T}, 'HIGH', 's', 'r', 'e');
         INSERT INTO process_names VALUES (4000, 'dataloader', 0);
         INSERT INTO annotations (timestamp, labels, pid, start_time, span_start, span_end, peer_uid, peer_gid, peer_pid) VALUES
             ({T}, '{{\"step\":\"41\"}}', 100, 9007199254740993, 0, 0, 1000, 1001, 100),
             ({T} + 5, '{{\"phase\":\"eval\\u003c\"}}', 0, 0, {T}, {T} + 10, 0, 0, 0),
             ({T} + 6, '{{\"step\":1}}', 0, 0, 0, 0, 0, 0, 0),
             ({T} + 7, '{{\"a b\":\"c\"}}', 0, 0, 0, 0, 0, 0, 0),
             ({T} + 8, '{{\"a\":\"c\"}}', 0, 0, {T} + 2, {T}, 0, 0, 0);",
        "c".repeat(64)
    ))
    .unwrap();
    drop(c);
    let got = import(&path).unwrap();
    let session = &got.sessions[0];
    assert_eq!(
        (
            session.meta().node.as_str(),
            session.meta().kernel.as_str(),
            session.meta().cpus
        ),
        ("node-a", "6.8.0", 96)
    );
    assert_eq!(session.meta().identity.rank, Some(3));
    assert_eq!(session.meta().identity.world_size, Some(8));
    let processes = session.processes().unwrap();
    assert_eq!(processes[0].name, "python");
    assert_eq!(
        (
            processes[0].cgroup.as_str(),
            processes[0].container_id.len(),
            processes[0].rank
        ),
        ("/kubepods/pod1", 64, Some(3))
    );
    let names = session.threads().unwrap();
    assert!(
        names
            .iter()
            .any(|n| n.thread == Thread::new(4000, 4000) && &*n.name == "dataloader")
    );
    let samples: Vec<Event> = got
        .events()
        .into_iter()
        .filter(|e| matches!(e, Event::System(_)))
        .collect();
    let [Event::System(sample)] = samples.as_slice() else {
        panic!("{samples:?}")
    };
    assert_eq!(
        (sample.cpu, sample.memory_available, sample.memory_total),
        (Some(0.125), 1_000 << 20, 4_000 << 20)
    );
    let said = session.annotations().unwrap();
    assert_eq!(said.len(), 2);
    assert_eq!(
        said[0].scope,
        Some(Incarnation {
            pid: Pid(100),
            start_ticks: (1 << 53) + 1
        })
    );
    assert_eq!(
        said[0].sender,
        Some(Sender {
            uid: 1000,
            gid: 1001,
            pid: 100
        })
    );
    assert_eq!(said[0].labels.get("step"), Some("41"));
    assert_eq!(
        (said[1].labels.get("phase"), said[1].span),
        (Some("eval<"), Some(Window::at(BootNanos(T as u64), 10)))
    );
    assert_eq!(got.skipped("annotations", "its labels"), 1);
    assert_eq!(got.skipped("annotations", "a label is not allowed"), 1);
    assert_eq!(got.skipped("annotations", "its span"), 1);
    assert_eq!(got.skipped("system_snapshots", "a percentage"), 1);
    assert_eq!(got.skipped("causal_chains", "conclusions"), 1);
}

#[test]
fn each_node_of_a_merged_file_is_a_session_of_its_own() {
    let dir = folder();
    let path = dir.path().join("merged.db");
    let c = create(&path, Version::V10);
    for (i, node) in ["a", "b", "a", "b", "b"].into_iter().enumerate() {
        let r = Row {
            node,
            ..row(T + i as i64 * MS, 100, 1, 5, 10)
        };
        insert(&c, Version::V10, i, &r);
    }
    c.execute(
        "INSERT INTO system_snapshots VALUES (1, ?1, 1, 1, 1, 1, 1)",
        [T],
    )
    .unwrap();
    drop(c);
    let got = import(&path).unwrap();
    let counts: Vec<(String, u64, usize)> = got
        .sessions
        .iter()
        .zip(&got.survey.nodes)
        .map(|(s, n)| {
            (
                s.meta().node.clone(),
                n.rows,
                crate::support::read_events(s, None).len(),
            )
        })
        .collect();
    assert_eq!(counts, [("a".to_owned(), 2, 2), ("b".to_owned(), 3, 3)]);
    // Once for each session that it might have been of.
    assert_eq!(got.skipped("system_snapshots", "does not say"), 2);
}

#[test]
fn what_was_only_counted_is_in_the_counts_and_not_twice() {
    use warptrace_store::sqlite::{Totals, TraceDb};
    const MINUTE: i64 = 60_000_000_000;
    let bucket = T / MINUTE * MINUTE;
    let dir = folder();
    let path = dir.path().join("ingero.db");
    let c = create(&path, Version::V17);
    for i in 0..3 {
        insert(
            &c,
            Version::V17,
            i,
            &row(bucket + i as i64 * MS, 100, 1, 3, 1_000),
        );
    }
    c.execute_batch(&format!(
        "INSERT INTO event_aggregates VALUES ({bucket}, 1, 3, 100, 1003, 3, 5003000, 1000, 5000, 0),
             ({bucket} + {MINUTE}, 1, 3, 100, 10, 0, 20000, 2000, 2000, 0),
             ({bucket}, 3, 3, 100, 7, 0, 0, 0, 0, 0), ({bucket}, 1, 3, -1, 7, 0, 0, 0, 0, 0);"
    ))
    .unwrap();
    drop(c);
    let got = import(&path).unwrap();
    assert!(got.imported[0].has_aggregates);
    let db = TraceDb::open(&path).unwrap();
    for (with, want) in [
        (true, vec![(1_003, 5_003_000), (10, 20_000)]),
        (false, vec![(3, 3_000)]),
    ] {
        let mut totals = Totals::new(with.then_some(&db));
        for event in got.events() {
            if let Event::Call(call) = event {
                totals.call(&call).unwrap();
            }
        }
        let counts: Vec<(u64, u64)> = totals
            .take(true)
            .unwrap()
            .iter()
            .map(|e| match e {
                Event::Counts(c) => (c.durations.count(), c.total),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(counts, want);
        assert_eq!(
            totals.gaps().first().map(|g| g.count),
            with.then_some(1_010)
        );
    }
}

#[test]
fn a_process_of_which_only_some_threads_switches_are_known_is_told() {
    let dir = folder();
    let path = dir.path().join("ingero.db");
    let c = create(&path, Version::V10);
    let mut number = 0;
    let mut add = |r: Row| {
        number += 1;
        insert(&c, Version::V10, number, &r);
    };
    for i in 0..40 {
        // 100 waits in two threads and has the switches of one; 200 has those of its only one.
        add(row(T + i * MS, 100, 1, 5, 1_000));
        add(row(T + i * MS, 101, 1, 5, 1_000));
        add(row(T + i * MS + 5_000, 100, 3, 1, 500));
        for (source, op) in [(1, 5), (3, 1)] {
            add(Row {
                pid: 200,
                ..row(T + i * MS, 200, source, op, 1_000)
            });
        }
    }
    drop(c);
    let got = import(&path).unwrap();
    assert_eq!(
        got.imported[0]
            .partly_switched
            .iter()
            .copied()
            .collect::<Vec<_>>(),
        [100]
    );
}
