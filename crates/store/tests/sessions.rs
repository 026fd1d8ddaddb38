//! Sessions as things: which there are, whose they are, when they go, and what is none.

mod support;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use support::*;
use warptrace_model::*;
use warptrace_store::fs::{Fs, MemFs, Owner, RealFs, Share};
use warptrace_store::{
    DataDir, Limits, Retention, Session, SessionMeta, SessionWriter, State, StoreError, find,
    list_sessions, newest, prune, remove,
};

const DAY: u64 = 86_400 * SECOND;

fn shared(fs: &MemFs) -> Arc<dyn Fs> {
    Arc::new(fs.clone())
}

/// A session that began and ended on `day`, of about `kib` kibibytes.
fn ended(fs: &MemFs, id: &str, day: u64, kib: usize) {
    let anchor = ClockAnchor {
        boot: BootNanos(START),
        unix: UnixNanos(day * DAY),
    };
    let mut meta = SessionMeta::new(anchor);
    meta.id = id.to_owned();
    SessionWriter::create(shared(fs), &DataDir::at("/data"), meta)
        .unwrap()
        .seal()
        .unwrap();
    let ballast = format!("/data/sessions/{id}/ballast");
    fs.put(Path::new(&ballast), vec![0; kib * 1024]);
}

fn ids(fs: &MemFs) -> Vec<String> {
    let sessions = list_sessions(&shared(fs), &["/data".into()]).unwrap();
    sessions.into_iter().map(|s| s.id).collect()
}

#[test]
fn sessions_are_listed_newest_first_from_all_folders() {
    let fs = MemFs::new();
    for (dir, id) in [
        ("/data", "2026b"),
        ("/var/lib/warptrace", "2026c"),
        ("/data", "2026a"),
    ] {
        let meta = meta(id);
        SessionWriter::create(shared(&fs), &DataDir::at(dir), meta).unwrap();
    }
    let dirs: Vec<PathBuf> = ["/data", "/missing", "/var/lib/warptrace"]
        .map(PathBuf::from)
        .into();
    let all = list_sessions(&shared(&fs), &dirs).unwrap();
    let order: Vec<&str> = all.iter().map(|s| s.id.as_str()).collect();
    assert_eq!(order, ["2026c", "2026b", "2026a"]);
    assert!(
        all.iter()
            .all(|s| s.session.as_ref().unwrap().1 == State::Torn)
    );
}

#[test]
fn a_newer_session_that_cannot_be_read_is_said() {
    let fs = MemFs::new();
    ended(&fs, "2026a", 1, 0);
    ended(&fs, "2026b", 2, 0);
    let meta_file = Path::new("/data/sessions/2026b/session.json");
    fs.put(meta_file, br#"{"format":9,"what":"ever"}"#.to_vec());
    let (found, unreadable) = newest(&shared(&fs), &["/data".into()]).unwrap();
    assert_eq!(found.unwrap().id, "2026a");
    let [newer] = unreadable.as_slice() else {
        panic!("{unreadable:?}")
    };
    let error = newer.session.as_ref().unwrap_err();
    assert!(
        matches!(error, StoreError::Newer { found: 9, .. }),
        "{error}"
    );
}

#[test]
fn a_session_is_found_by_its_id_or_a_begin_of_it_that_no_other_has() {
    let fs = MemFs::new();
    for id in ["20261120T1-aa", "20261121T1-bb", "20261121T1-bbb"] {
        ended(&fs, id, 1, 0);
    }
    let find = |wanted| find(&shared(&fs), &["/data".into()], wanted);
    assert_eq!(
        find("20261120").unwrap(),
        Path::new("/data/sessions/20261120T1-aa")
    );
    assert_eq!(
        find("20261121T1-bb").unwrap(),
        Path::new("/data/sessions/20261121T1-bb")
    );
    assert_eq!(find("./here").unwrap(), Path::new("./here"));
    assert!(matches!(
        find("20261121"),
        Err(StoreError::Ambiguous { .. })
    ));
    assert!(matches!(find("x"), Err(StoreError::Unknown(_))));
    assert!(matches!(find(""), Err(StoreError::Unknown(_))));
}

#[test]
fn what_is_no_session_is_told_apart() {
    let fs = MemFs::new();
    ended(&fs, "s", 1, 0);
    assert!(matches!(open(&fs, "none"), Err(StoreError::NotASession(_))));
    let file = Path::new("/data/sessions/s/session.json");
    for (text, what) in [
        ("", "is not a session of warptrace"),
        ("[]", "is not a session of warptrace"),
        ("{\"name\":\"package\"}", "is not a session of warptrace"),
        ("{\"format\":1}", "is not a session of warptrace"),
        (
            "{\"format\":2}",
            "made by a newer warptrace (format 2, this one reads up to 1): upgrade",
        ),
    ] {
        fs.put(file, text.into());
        let error = open(&fs, "s").err().expect("it is no session").to_string();
        assert!(error.contains(what), "{text:?}: {error}");
    }
}

#[test]
fn nobody_else_can_write_a_session_or_remove_it_while_it_is_written() {
    let fs = MemFs::new();
    let writer = create(&fs, "s", Limits::default()).unwrap();
    assert!(matches!(
        create(&fs, "s", Limits::default()),
        Err(StoreError::Exists(_))
    ));
    assert_eq!(open(&fs, "s").unwrap().state(), State::Live);
    let path = Path::new("/data/sessions/s");
    assert!(matches!(remove(&fs, path), Err(StoreError::Live(_))));
    drop(writer);
    assert_eq!(open(&fs, "s").unwrap().state(), State::Torn);
    remove(&fs, path).unwrap();
    assert_eq!(fs.files(), Vec::<PathBuf>::new());
}

#[test]
fn only_sessions_are_removed() {
    let fs = MemFs::new();
    ended(&fs, "s", 1, 0);
    fs.put(Path::new("/data/sessions/s/session.json"), Vec::new());
    fs.remove_file(Path::new("/data/sessions/s/session.json"))
        .unwrap();
    assert!(matches!(
        remove(&fs, Path::new("/data/sessions/s")),
        Err(StoreError::NotASession(_))
    ));
    fs.remove_file(Path::new("/data/sessions/s/ballast"))
        .unwrap();
    remove(&fs, Path::new("/data/sessions/s")).unwrap();
    assert_eq!(ids(&fs), Vec::<String>::new());
}

#[test]
fn pruning_by_bytes_removes_the_oldest_and_never_the_live_one() {
    let fs = MemFs::new();
    let live = create(&fs, "1-live", Limits::default()).unwrap();
    for (id, kib) in [("2", 100), ("3", 100), ("4", 100)] {
        ended(&fs, id, 10, kib);
    }
    let keep = Retention {
        max_bytes: Some(250 * 1024),
        ..Retention::default()
    };
    let pruned = prune(&shared(&fs), Path::new("/data"), keep, UnixNanos(11 * DAY)).unwrap();
    let removed: Vec<&str> = pruned.removed.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(removed, ["2"]);
    assert!(matches!(pruned.kept.as_slice(), [(id, StoreError::Live(_))] if id == "1-live"));
    assert_eq!(ids(&fs), ["4", "3", "1-live"]);
    assert!(pruned.left > 200 * 1024 && pruned.left < 250 * 1024);
    drop(live);
}

#[test]
fn pruning_by_age_goes_by_the_end_and_spares_what_it_cannot_read() {
    let fs = MemFs::new();
    for (id, day) in [("1", 1), ("2", 5), ("3", 9), ("4", 2)] {
        ended(&fs, id, day, 1);
    }
    fs.put(
        Path::new("/data/sessions/4/session.json"),
        br#"{"format":9}"#.to_vec(),
    );
    let keep = Retention {
        max_age: Some(4 * DAY),
        ..Retention::default()
    };
    let pruned = prune(&shared(&fs), Path::new("/data"), keep, UnixNanos(10 * DAY)).unwrap();
    let removed: Vec<&str> = pruned.removed.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(removed, ["1", "2"]);
    assert_eq!(ids(&fs), ["4", "3"]);
}

#[test]
fn of_recordings_that_go_on_the_oldest_sessions_go_and_what_somebody_recorded_stays() {
    let fs = MemFs::new();
    ended(&fs, "0-mine", 1, 1);
    let anchor = |day: u64| ClockAnchor {
        boot: BootNanos(START),
        unix: UnixNanos(day * DAY),
    };
    let mut meta = SessionMeta::new(anchor(1)).rolling();
    let mut live = None;
    for day in 2..7 {
        meta = meta.next(anchor(day));
        meta.id = format!("part-{day}");
        let dir = DataDir::at("/data");
        let writer = SessionWriter::create(shared(&fs), &dir, meta.clone()).unwrap();
        match day {
            6 => live = Some(writer),
            // Killed: it counts as well.
            4 => drop(writer),
            _ => writer.seal().unwrap(),
        }
    }
    let keep = Retention {
        max_parts: Some(2),
        ..Retention::default()
    };
    prune(&shared(&fs), Path::new("/data"), keep, UnixNanos(9 * DAY)).unwrap();
    assert_eq!(ids(&fs), ["part-6", "part-5", "part-4", "0-mine"]);
    assert_eq!(meta.part.unwrap().number, 6);
    drop(live);
}

#[test]
fn a_session_that_goes_on_knows_the_names_of_what_still_lives() {
    let fs = MemFs::new();
    let mut first = create(&fs, "1", Limits::default()).unwrap();
    let process = |pid: u32| {
        Event::ProcessInfo(Box::new(ProcessInfo {
            incarnation: Incarnation {
                pid: Pid(pid),
                start_ticks: pid.into(),
            },
            name: "serve".into(),
            ..ProcessInfo::default()
        }))
    };
    let thread = |pid: u32| {
        Event::ThreadName(ThreadName {
            thread: Thread::new(pid, pid + 1),
            name: "loader".into(),
        })
    };
    let file = |pid: u32| {
        Event::FilePath(Box::new(FilePath {
            pid: Pid(pid),
            fd: 7,
            path: "/models/weights".into(),
        }))
    };
    for pid in [10, 20] {
        first.events(&[process(pid), thread(pid), file(pid)]);
    }
    first.stacks(&[(5, vec![0x1000, 0x2000])]);
    first.flush_now();
    let mut second = create(&fs, "2", Limits::default()).unwrap();
    let before = second.bytes();
    let read = open(&fs, "1").unwrap();
    second.inherit(&read, |pid| pid == Pid(20)).unwrap();
    second.flush_now();
    assert!(before == 0 && second.bytes() > 0);
    second.seal().unwrap();
    let second = open(&fs, "2").unwrap();
    let pids = |pids: Vec<Pid>| assert_eq!(pids, [Pid(20)]);
    pids(
        second
            .processes()
            .unwrap()
            .iter()
            .map(|p| p.incarnation.pid)
            .collect(),
    );
    pids(
        second
            .threads()
            .unwrap()
            .iter()
            .map(|t| t.thread.pid)
            .collect(),
    );
    pids(second.file_paths().unwrap().iter().map(|f| f.pid).collect());
    assert_eq!(second.stacks().unwrap(), read.stacks().unwrap());
}

#[test]
fn a_removal_that_was_interrupted_is_finished_by_the_next_prune() {
    let fs = MemFs::new();
    ended(&fs, "1", 1, 1);
    fs.rename(
        Path::new("/data/sessions/1"),
        Path::new("/data/sessions/.removing-1"),
    )
    .unwrap();
    assert_eq!(ids(&fs), Vec::<String>::new());
    prune(
        &shared(&fs),
        Path::new("/data"),
        Retention::default(),
        UnixNanos(DAY),
    )
    .unwrap();
    assert_eq!(fs.files(), Vec::<PathBuf>::new());
}

#[test]
fn on_a_real_disk_a_session_is_private_locked_and_complete() {
    let temp = tempfile::tempdir().unwrap();
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    let data = DataDir::at(temp.path().join("deep/data"));
    let mut writer = SessionWriter::create(fs.clone(), &data, meta("s")).unwrap();
    let path = writer.path().to_owned();
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    writer.events(&events(3, 0..500));
    writer.tick(BootNanos(START + SECOND));
    assert_eq!(mode(&path.join("events/000000.arrows")), 0o600);
    assert_eq!(mode(&path.join("events")), 0o700);
    let lock = fs.try_lock(&path.join("lock"), Share::Nobody);
    assert_eq!(lock.err().unwrap().kind(), std::io::ErrorKind::WouldBlock);
    let live = Session::open(fs.clone(), &path).unwrap();
    assert_eq!(live.state(), State::Live);
    assert_eq!(
        sorted(&read_events(&live, None)),
        sorted(&events(3, 0..500))
    );
    writer.seal().unwrap();
    let session = Session::open(fs.clone(), &path).unwrap();
    assert_eq!(session.state(), State::Ended);
    assert_eq!(
        sorted(&read_events(&session, None)),
        sorted(&events(3, 0..500))
    );
    // A copy without the lock file is a session, too.
    std::fs::remove_file(path.join("lock")).unwrap();
    assert_eq!(
        Session::open(fs.clone(), &path).unwrap().state(),
        State::Ended
    );
    remove(&*fs, &path).unwrap();
    assert!(!path.exists());
}

/// Needs root, as sudo has it: says so when it cannot run.
#[test]
fn under_sudo_everything_belongs_to_the_caller() {
    let temp = tempfile::tempdir().unwrap();
    if std::fs::metadata(temp.path()).unwrap().uid() != 0 {
        skip("store-under-sudo", "giving files away needs root");
        return;
    }
    let owner = Owner {
        uid: 4242,
        gid: 4343,
    };
    let data = DataDir {
        owner: Some(owner),
        ..DataDir::at(temp.path().join("share/warptrace"))
    };
    let mut writer = SessionWriter::with_limits(Arc::new(RealFs), &data, meta("s"), SMALL).unwrap();
    for second in 1..20 {
        writer.events(&events(3, second * 100..(second + 1) * 100));
        writer.tick(BootNanos(START + second * SECOND));
    }
    writer.seal().unwrap();
    let mut dirs = vec![temp.path().join("share")];
    let mut seen = 0;
    while let Some(dir) = dirs.pop() {
        let meta = std::fs::metadata(&dir).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (4242, 4343), "{dir:?}");
        for entry in std::fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            assert_eq!((meta.uid(), meta.gid()), (4242, 4343), "{:?}", entry.path());
            seen += 1;
            if meta.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    assert!(seen > 8, "{seen}");
}

/// A session written by version 1 of the format must open for ever. `WARPTRACE_WRITE_FIXTURES` writes it, once.
#[test]
fn a_session_of_format_1_opens() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/segment-v1");
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    if std::env::var_os("WARPTRACE_WRITE_FIXTURES").is_some() {
        write_fixture(&fs, &dir);
    }
    let data = [dir];
    let ended = Session::open(fs.clone(), &find(&fs, &data, "ended").unwrap()).unwrap();
    assert_eq!(ended.state(), State::Ended);
    check_fixture(&ended);
    // Left by a recorder that was killed: streams, of which that of events ends in part of a batch.
    let torn = Session::open(fs.clone(), &find(&fs, &data, "torn").unwrap()).unwrap();
    assert_eq!(torn.state(), State::Torn);
    check_fixture(&torn);
    let gaps = torn.gaps().unwrap();
    assert!(
        gaps.iter().any(|g| g.detail.contains("part of a batch")),
        "{gaps:?}"
    );
}

/// The fixture's content, in words that do not change when this test's made-up events do.
fn check_fixture(session: &Session) {
    assert_eq!(session.meta().command, ["python", "train.py"]);
    assert_eq!(
        session.meta().unix(BootNanos(START)),
        UnixNanos(1_795_000_000 * SECOND)
    );
    let all = read_events(session, None);
    let counts = |is: fn(&Event) -> bool| all.iter().filter(|e| is(e)).count();
    assert_eq!(counts(|e| matches!(e, Event::Call(_))), 7);
    assert_eq!(
        counts(|e| matches!(e, Event::OffCpu(_) | Event::Slice(_) | Event::Stretch(_))),
        3
    );
    assert_eq!(counts(|e| matches!(e, Event::Counts(_))), 1);
    assert_eq!(counts(|e| matches!(e, Event::System(_) | Event::Gpu(_))), 2);
    let Some(Event::Call(call)) = all
        .iter()
        .find(|e| matches!(e, Event::Call(c) if c.arg0 == u64::MAX))
    else {
        panic!("no call with the greatest argument in {all:?}")
    };
    assert_eq!(
        (call.op.name(), call.ret, call.arg1),
        ("cudaMemcpy", -2, (1 << 53) + 1)
    );
    let [unit] = session.units(None).unwrap().try_into().unwrap();
    assert_eq!((unit.dur, unit.parts[Category::DiskWait]), (900, 400));
    let [finding] = session.findings().unwrap().try_into().unwrap();
    assert_eq!((finding.comm.as_str(), finding.blame[0].ns), ("python", 21));
    assert_eq!(finding.evidence[0].path.as_deref(), Some("main ← loader-3"));
    assert_eq!(session.ops(None).unwrap()[0].count, 2);
    assert_eq!(
        session.processes().unwrap()[0].command,
        ["python", "train.py"]
    );
    assert_eq!(&*session.threads().unwrap()[0].name, "loader-3");
    assert_eq!(session.stacks().unwrap()[0].frames[1].ip, 0x7fff_1234);
    assert_eq!(session.drops().unwrap()[0].count, 5);
    assert_eq!(session.gaps().unwrap()[0].code, GapCode::AttachedLate);
}

fn write_fixture(fs: &Arc<dyn Fs>, dir: &Path) {
    let thread = Thread::new(100, 101);
    let at = |n: u64| BootNanos(START + n * 1_000);
    let memcpy = record::OpId::by_name("cudaMemcpy").unwrap();
    let call = |n: u64, arg0: u64| {
        Event::Call(Call {
            thread,
            op: memcpy,
            start: at(n),
            dur: 500,
            device: n.is_multiple_of(2).then_some(Device(0)),
            stream: Stream(0),
            ret: -2,
            flags: CallFlags(0),
            arg0,
            arg1: (1 << 53) + 1,
            stack_id: 1,
            cpu: Cpu(3),
        })
    };
    let mut durations = Histogram::default();
    durations.record(500);
    durations.record(70_000);
    let mut events: Vec<Event> = (0..6).map(|n| call(n, n)).collect();
    events.push(call(6, u64::MAX));
    events.extend([
        Event::OffCpu(OffCpu {
            thread,
            start: at(2),
            dur: 300,
            runnable: 200,
            throttled: 0,
            preempted: true,
            iowait: false,
            uninterruptible: false,
            stopped: false,
            timed: false,
            poll_socket: false,
            syscall: None,
            fd: None,
            file: FileType::None,
            waker: None,
            last_occupant: Tid(9),
            cpu: Cpu(3),
        }),
        Event::Slice(Slice {
            thread: Thread::new(9, 9),
            start: at(2),
            dur: 200,
            cpu: Cpu(3),
        }),
        Event::Stretch(Stretch {
            thread,
            start: at(0),
            dur: 100,
            running: 50,
            runnable: 50,
            throttled: 0,
            major_faults: 1,
            minor_faults: 2,
        }),
        Event::Counts(Box::new(OpCount {
            key: OpKey {
                pid: Pid(100),
                device: None,
                op: memcpy,
            },
            window: Window::at(at(0), 1_000),
            total: 70_500,
            durations,
        })),
        Event::System(Box::new(SystemSample {
            at: at(1),
            load1: 0.5,
            ..SystemSample::default()
        })),
        Event::Gpu(Box::new(GpuSample {
            at: at(1),
            memory_used: Some(u64::MAX),
            ..GpuSample::default()
        })),
        Event::ThreadName(ThreadName {
            thread,
            name: "loader-3".into(),
        }),
        Event::ProcessInfo(Box::new(ProcessInfo {
            incarnation: Incarnation {
                pid: Pid(100),
                start_ticks: 7,
            },
            name: "python".into(),
            command: vec!["python".into(), "train.py".into()],
            ..ProcessInfo::default()
        })),
        Event::FilePath(Box::new(FilePath {
            pid: Pid(100),
            fd: 3,
            path: "/data/shard-03.tar".into(),
        })),
        Event::Lost(Loss {
            source: "ebpf",
            reason: LossReason::RingFull,
            count: 5,
            window: None,
            pid: None,
        }),
    ]);
    let key = UnitKey {
        process: Incarnation {
            pid: Pid(100),
            start_ticks: 7,
        },
        device: Some(Device(0)),
        stream: StreamScope::Many,
        kind: UnitKind::WaitInterval,
        class: 3,
    };
    let mut parts = Parts::default();
    parts[Category::DiskWait] = 400;
    parts[Category::DeviceWait] = 500;
    let unit = Unit {
        key,
        lead: Tid(101),
        name: None,
        number: 0,
        start: at(0),
        dur: 900,
        parts,
        launches: 4,
        slow: true,
        incomplete: false,
    };
    let finding = Finding {
        id: FindingId(u64::MAX),
        kind: FindingKind::Incident,
        severity: Severity::High,
        cause: Cause::DiskWait,
        second: None,
        key,
        op: Some(memcpy),
        tid: Tid(101),
        comm: "python".into(),
        place: None,
        window: Window::at(at(0), 900),
        units: UnitSpan {
            first: 0,
            last: 0,
            slow: 1,
            worst: 0,
        },
        shifted: false,
        baseline_ns: 879,
        baseline_units: 30,
        excess_ns: 21,
        blame: vec![
            Blame {
                cause: Cause::DiskWait,
                ns: 21,
                lost_ns: 400,
                detail: "/data/shard-03.tar".into(),
            },
            Blame {
                cause: Cause::Unexplained,
                ns: 0,
                lost_ns: 0,
                detail: String::new(),
            },
        ],
        evidence: vec![Evidence {
            what: "read".into(),
            pid: Some(100),
            tid: None,
            comm: None,
            path: Some("main ← loader-3".into()),
            start: at(0),
            dur: 400,
        }],
    };
    for id in ["ended", "torn"] {
        let mut meta = meta(id);
        meta.command = vec!["python".into(), "train.py".into()];
        let mut writer = SessionWriter::create(fs.clone(), &DataDir::at(dir), meta).unwrap();
        writer.events(&events);
        writer.units(std::slice::from_ref(&unit));
        writer.findings(std::slice::from_ref(&finding));
        writer.stacks(&[(1, vec![0x40_0000, 0x7fff_1234])]);
        writer.gaps(&[Gap {
            code: GapCode::AttachedLate,
            detail: "2 s".into(),
            count: 1,
        }]);
        writer.tick(BootNanos(START + SECOND));
        if id == "ended" {
            writer.seal().unwrap();
        } else {
            drop(writer);
            let stream = dir.join("sessions/torn/events/000000.arrows");
            let mut bytes = std::fs::read(&stream).unwrap();
            bytes.extend_from_within(..200);
            std::fs::write(&stream, bytes).unwrap();
        }
    }
}
