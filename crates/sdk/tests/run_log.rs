//! The run log as programs write it: many processes, kills, signals, files that go wrong.
//!
//! Processes of their own are this test program again, which then runs [`a_process_of_its_own`] alone.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use warptrace_formats::run_log::{Summary, SummaryOptions};
use warptrace_sdk::run_log::{
    Clock, Counters, RunLog, RunStart, Served, SystemClock, Termination, Workers,
};

const ROLE: &str = "WARPTRACE_TEST_ROLE";
const LOG: &str = "WARPTRACE_TEST_LOG";

/// Long enough for anything that will happen at all.
const LONG: Duration = Duration::from_secs(120);

/// Starts this program as another process in `role`, with its words.
fn start(role: &str, log: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args([
            "a_process_of_its_own",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ROLE, role)
        .env(LOG, log)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

/// Reads what a process says until a line has `word` in it.
fn await_word(from: &mut impl std::io::BufRead, word: &str) {
    let mut line = String::new();
    while !line.contains(word) {
        line.clear();
        assert_ne!(
            from.read_line(&mut line).expect("a pipe"),
            0,
            "it ended before it said {word:?}"
        );
    }
}

fn stdout(child: &mut Child) -> BufReader<std::process::ChildStdout> {
    BufReader::new(child.stdout.take().expect("a pipe"))
}

/// What other processes of these tests do. Alone, it does nothing.
#[test]
fn a_process_of_its_own() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let words: Vec<&str> = role.split(' ').collect();
    let path = PathBuf::from(std::env::var_os(LOG).expect("a log"));
    let number = |i: usize| words[i].parse::<u64>().expect("a number");
    match words[0] {
        "write" => write_records(&path, number(1) as usize, number(2), number(3)),
        "write_for_ever" => write_for_ever(&path, number(1) as usize),
        "serve" => serve(&path),
        "prefork" => prefork(&path),
        "work" => work(&path, number(1)),
        "daemon" => daemon(&path),
        "fill" => fill(&path),
        other => panic!("no role {other}"),
    }
    // Nothing of the test runner's after this.
    std::process::exit(0);
}

/// Writes `count` records of `size` bytes, numbered, as worker `who`.
fn write_records(path: &Path, size: usize, count: u64, who: u64) {
    let log = RunLog::open(path);
    // All begin at once.
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("a pipe");
    for i in 0..count {
        log.request(&numbered(size, who, i).served());
    }
    assert_eq!(log.dropped(), 0);
}

struct Numbered {
    extra: String,
    tokens: i64,
}

impl Numbered {
    fn served(&self) -> Served<'_> {
        Served {
            model: "m",
            prompt_tokens: 1,
            completion_tokens: self.tokens,
            latency_micros: 5,
            extra: &self.extra,
        }
    }
}

/// A request whose line has at least `size` bytes.
fn numbered(size: usize, who: u64, i: u64) -> Numbered {
    let pad = "x".repeat(size.saturating_sub(180));
    Numbered {
        extra: format!("{{\"request_id\":\"{who}-{i}\",\"pad\":\"{pad}\"}}"),
        tokens: i as i64,
    }
}

fn write_for_ever(path: &Path, size: usize) {
    let log = RunLog::open(path);
    log.run_start(&RunStart::here());
    for i in 0.. {
        log.request(&numbered(size, 0, i).served());
        if i == 20 {
            println!("writing");
        }
    }
}

/// A server without workers: at SIGTERM its request is still in flight, and ends when a line comes on stdin.
fn serve(path: &Path) {
    let termination = Termination::install().expect("handlers");
    let log = RunLog::open(path);
    log.run_start(&RunStart::here());
    let request = log.begin("m");
    println!("ready");
    assert!(termination.wait(Some(LONG)));
    println!("terminating");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::io::stdin()
                .read_line(&mut String::new())
                .expect("a pipe");
            request.served(1, 2, "{}");
        });
        let done = log.shutdown(LONG);
        assert_eq!(done.reason(), "completed");
    });
}

/// A server with two workers, which have a request in flight each at SIGTERM.
fn prefork(path: &Path) {
    let termination = Termination::install().expect("handlers");
    let log = RunLog::open(path);
    log.run_start(&RunStart::here());
    let origin = log.origin_micros().expect("a run");
    let mut workers: Vec<Child> = (0..2)
        .map(|_| {
            start(&format!("work {origin}"), path)
                .spawn()
                .expect("a process")
        })
        .collect();
    for worker in &mut workers {
        await_word(&mut stdout(worker), "ready");
    }
    println!("ready");
    assert!(termination.wait(Some(LONG)));
    let workers = Workers::new(workers.iter().map(Child::id));
    let done = workers.shutdown(&log, LONG);
    assert_eq!((done.reason(), done.workers_left.len()), ("completed", 0));
}

fn work(path: &Path, origin: u64) {
    let termination = Termination::install().expect("handlers");
    let log = RunLog::join(path, origin);
    let request = log.begin("m");
    println!("ready");
    assert!(termination.wait(Some(LONG)));
    request.served(1, 10, "{}");
}

/// Forks while other threads write: their turn may be taken at that moment, and they are not there in the child.
fn daemon(path: &Path) {
    let log = RunLog::open(path);
    log.run_start(&RunStart::here());
    let _of_the_parent = log.begin("m");
    let written = Arc::new(AtomicU64::new(0));
    for _ in 0..3 {
        let (log, written) = (log.clone(), Arc::clone(&written));
        let writer = move || loop {
            log.request(&numbered(20_000, 1, 0).served());
            written.fetch_add(1, Ordering::Relaxed);
        };
        std::thread::Builder::new()
            .name("writer".into())
            .spawn(writer)
            .expect("a thread");
    }
    while written.load(Ordering::Relaxed) < 100 {
        std::thread::yield_now();
    }
    nix::unistd::daemon(true, true).expect("a fork");
    assert_eq!(log.in_flight(), 0);
    log.request(&Served {
        model: "child",
        ..Served::default()
    });
    assert_eq!(log.shutdown(LONG).reason(), "completed");
    println!("the child is done");
}

/// Writes until the disk is full and after it has been emptied.
fn fill(path: &Path) {
    let log = RunLog::open(path);
    log.run_start(&RunStart::here());
    while log.dropped() < 3 {
        log.request(&numbered(3_000, 0, 0).served());
    }
    println!("full");
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("a pipe");
    log.request(&Served {
        model: "after",
        ..Served::default()
    });
    log.run_end("completed");
    println!("dropped {}", log.dropped());
}

/// Every line of a log that is not blank, as JSON; a line that is none is `Err`.
fn lines(path: &Path) -> Vec<Result<Value, String>> {
    let bytes = std::fs::read(path).expect("a log");
    assert!(
        bytes.is_empty() || bytes.ends_with(b"\n"),
        "the last line is whole"
    );
    bytes
        .split(|&b| b == b'\n')
        .filter(|line| !line.trim_ascii().is_empty())
        .map(|line| {
            serde_json::from_slice(line).map_err(|_| String::from_utf8_lossy(line).into_owned())
        })
        .collect()
}

fn records(path: &Path) -> Vec<Value> {
    let lines = lines(path).into_iter();
    lines
        .map(|line| line.expect("every line is a record"))
        .collect()
}

fn log_file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("events.jsonl");
    (folder, path)
}

/// Eight processes write `count` records each; every line must be a record, none lost, none twice.
#[track_caller]
fn eight_processes(size: usize, count: u64) {
    let (_folder, path) = log_file();
    let mut processes: Vec<Child> = (0..8)
        .map(|who| {
            start(&format!("write {size} {count} {who}"), &path)
                .spawn()
                .expect("a process")
        })
        .collect();
    for process in &mut processes {
        process
            .stdin
            .take()
            .expect("a pipe")
            .write_all(b"go\n")
            .expect("a pipe");
    }
    for process in processes {
        let output = process.wait_with_output().expect("a process");
        assert!(output.status.success(), "{output:?}");
    }
    let mut summary = Summary::new(SummaryOptions::default());
    let mut file = std::fs::File::open(&path).expect("a log");
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk).expect("a log") {
            0 => break,
            n => summary.feed(&chunk[..n]),
        }
    }
    summary.finish();
    assert_eq!(
        (summary.corrupt, summary.torn_tail),
        (0, false),
        "size {size}"
    );
    assert_eq!(summary.totals.requests, 8 * count, "size {size}");
    assert_eq!(
        summary.totals.tokens_out,
        8 * count * (count - 1) / 2,
        "size {size}"
    );
}

#[test]
fn eight_processes_never_tear_or_lose_a_line() {
    for (size, count) in [
        (200, 2_000),
        (4_096, 500),
        (9_000, 200),
        (70_000, 50),
        (1_000_000, 5),
    ] {
        eight_processes(size, count);
    }
}

#[test]
#[ignore = "writes 17 GB"]
fn eight_processes_never_tear_or_lose_a_line_at_full_length() {
    for size in [200, 4_096, 9_000, 70_000, 1_000_000] {
        eight_processes(size, 2_000);
    }
}

#[test]
fn a_killed_writer_costs_no_line_and_never_the_start_or_the_end_of_a_run() {
    let (_folder, path) = log_file();
    let kills = 100;
    for i in 0..kills {
        let size = [200, 9_000, 70_000, 1_000_000][i % 4];
        let mut process = start(&format!("write_for_ever {size}"), &path)
            .spawn()
            .expect("a process");
        await_word(&mut stdout(&mut process), "writing");
        process.kill().expect("a process to kill");
        process.wait().expect("a process");
        // Large logs are not what this is about.
        if i % 4 == 3 {
            let log = RunLog::open(&path);
            log.run_start(&RunStart::here());
            log.run_end("completed");
            let lines = lines(&path);
            let corrupt = lines.iter().filter(|line| line.is_err()).count();
            let count = |kind: &str| lines.iter().flatten().filter(|r| r["kind"] == kind).count();
            assert_eq!(corrupt, 0, "lines after 4 kills");
            assert_eq!((count("run_start"), count("run_end")), (5, 1));
            std::fs::remove_file(&path).expect("a log");
        }
    }
}

/// The `run_end` is the last record, and its numbers are those of the requests before it.
#[track_caller]
fn ended_after(path: &Path, requests: u64, tokens: u64) {
    let records = records(path);
    let last = records.last().expect("a record");
    assert_eq!(last["kind"], "run_end");
    assert_eq!(last["reason"], "completed");
    assert_eq!(
        (&last["stats"]["requests"], &last["stats"]["tokens_out"]),
        (&requests.into(), &tokens.into())
    );
    let served = records.iter().filter(|r| r["name"] == "request").count() as u64;
    assert_eq!(served, requests);
    let ts: Vec<f64> = records
        .iter()
        .map(|r| r["t"].as_f64().expect("a time"))
        .collect();
    assert!(ts.is_sorted(), "{ts:?}");
}

#[test]
fn a_request_in_flight_at_sigterm_is_in_the_run_s_end() {
    let (_folder, path) = log_file();
    let mut server = start("serve", &path).spawn().expect("a process");
    let mut says = stdout(&mut server);
    await_word(&mut says, "ready");
    kill(Pid::from_raw(server.id() as i32), Signal::SIGTERM).expect("a process");
    await_word(&mut says, "terminating");
    assert_eq!(
        records(&path).len(),
        1,
        "the run has not ended while a request is in flight"
    );
    server
        .stdin
        .take()
        .expect("a pipe")
        .write_all(b"finish\n")
        .expect("a pipe");
    assert!(server.wait().expect("a process").success());
    ended_after(&path, 1, 2);
}

#[test]
fn workers_are_waited_for_when_sigterm_reaches_the_parent_alone_or_all_of_them() {
    for to_all in [false, true] {
        let (_folder, path) = log_file();
        let mut server = start("prefork", &path)
            .process_group(0)
            .spawn()
            .expect("a process");
        await_word(&mut stdout(&mut server), "ready");
        let pid = Pid::from_raw(server.id() as i32);
        match to_all {
            true => killpg(pid, Signal::SIGTERM),
            false => kill(pid, Signal::SIGTERM),
        }
        .expect("a process");
        assert!(server.wait().expect("a process").success());
        ended_after(&path, 2, 20);
    }
}

#[test]
fn a_fork_while_threads_write_leaves_a_child_that_can_write() {
    let (_folder, path) = log_file();
    let mut parent = start("daemon", &path).spawn().expect("a process");
    let mut says = stdout(&mut parent);
    // The parent is gone by then; its child has its pipe.
    await_word(&mut says, "the child is done");
    parent.wait().expect("a process");
    let lines = lines(&path);
    let of_child = lines
        .iter()
        .flatten()
        .filter(|r| r["extra"]["model"] == "child")
        .count();
    assert_eq!(of_child, 1);
    assert!(lines.iter().filter(|line| line.is_err()).count() <= 1);
    let end = lines
        .iter()
        .flatten()
        .find(|r| r["kind"] == "run_end")
        .expect("an end");
    let requests = lines
        .iter()
        .flatten()
        .filter(|r| r["name"] == "request")
        .count();
    assert_eq!(end["stats"]["requests"], requests);
}

/// Says why `test` cannot run here, where CI counts it.
fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../skipped");
    let _ = std::fs::create_dir_all(&folder);
    let _ = std::fs::write(folder.join(format!("{test}.txt")), reason);
}

#[test]
fn a_full_disk_drops_records_and_writing_goes_on_when_there_is_room_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        .arg(folder.path())
        .output();
    if !mounted.is_ok_and(|m| m.status.success()) {
        return skip(
            "a_full_disk_drops_records_and_writing_goes_on_when_there_is_room_again",
            "cannot mount a tmpfs (needs root)",
        );
    }
    let result = std::panic::catch_unwind(|| {
        let (path, ballast) = (
            folder.path().join("events.jsonl"),
            folder.path().join("ballast"),
        );
        std::fs::write(&ballast, vec![0; 20 << 10]).expect("room");
        let mut process = start("fill", &path)
            .stderr(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut says = stdout(&mut process);
        await_word(&mut says, "full");
        std::fs::remove_file(&ballast).expect("the ballast");
        process
            .stdin
            .take()
            .expect("a pipe")
            .write_all(b"go on\n")
            .expect("a pipe");
        await_word(&mut says, "dropped 3");
        let output = process.wait_with_output().expect("a process");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            told.matches("run log records are dropped").count(),
            1,
            "{told}"
        );
        let lines = lines(&path);
        let corrupt = lines.iter().filter(|line| line.is_err()).count();
        assert!(corrupt <= 3, "{corrupt}");
        assert!(
            lines
                .iter()
                .flatten()
                .any(|r| r["extra"]["model"] == "after")
        );
        assert_eq!(
            lines.last().and_then(|l| l.as_ref().ok()).expect("an end")["stats"]["dropped"],
            3
        );
    });
    let _ = Command::new("umount").arg(folder.path()).status();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// A clock that the test sets, s.
#[derive(Debug, Default)]
struct Pinned(AtomicU64);

impl Clock for Pinned {
    fn wall_secs(&self) -> i64 {
        self.0.load(Ordering::Relaxed) as i64
    }

    fn monotonic_micros(&self) -> u64 {
        self.0.load(Ordering::Relaxed) * 1_000_000
    }
}

fn pinned(path: &Path) -> (RunLog, Arc<Pinned>) {
    let clock = Arc::new(Pinned(AtomicU64::new(1_000)));
    (
        RunLog::with_clock(path, Arc::clone(&clock) as Arc<dyn Clock>),
        clock,
    )
}

fn request() -> Served<'static> {
    Served {
        model: "m",
        completion_tokens: 3,
        ..Served::default()
    }
}

#[test]
fn requests_succeed_where_nothing_can_be_written_and_are_counted_as_dropped() {
    let folder = tempfile::tempdir().expect("a folder");
    for path in [
        folder.path().to_owned(),
        folder.path().join("missing/log"),
        PathBuf::from("/dev/full"),
    ] {
        let log = RunLog::open(&path);
        assert!(log.is_enabled());
        for n in 1..=5 {
            log.request(&request());
            assert_eq!((log.dropped(), log.counters().requests), (n, n), "{path:?}");
        }
        log.run_end_aggregated("completed");
        assert_eq!(log.dropped(), 6);
    }
}

#[test]
fn a_log_that_is_off_does_nothing_but_count() {
    let log = RunLog::off();
    log.run_start(&RunStart::here());
    log.request(&request());
    log.request(&Served {
        completion_tokens: -5,
        ..request()
    });
    log.record_error();
    drop(log.begin("m"));
    log.run_end("completed");
    assert!(!log.is_enabled());
    assert_eq!(
        log.counters(),
        Counters {
            requests: 2,
            errors: 2,
            tokens_out: 3
        }
    );
    assert_eq!(log.dropped(), 0);
}

#[test]
fn a_pipe_is_written_to_while_it_has_a_reader_and_never_waited_for() {
    let (_folder, path) = log_file();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let (log, clock) = pinned(&path);
    log.request(&request());
    assert_eq!(log.dropped(), 1, "no reader");
    let open_reader = || {
        let non_blocking = nix::fcntl::OFlag::O_NONBLOCK.bits();
        std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(non_blocking)
            .open(&path)
            .expect("a pipe")
    };
    let reader = open_reader();
    clock.0.fetch_add(1, Ordering::Relaxed);
    log.request(&request());
    assert_eq!(log.dropped(), 1);
    let mut line = String::new();
    BufReader::new(&reader)
        .read_line(&mut line)
        .expect("a line");
    assert!(line.starts_with("{\"kind\":\"eval\""));
    // Nobody reads on: the pipe fills, and nothing waits.
    while log.dropped() == 1 {
        log.request(&Served {
            extra: &numbered(60_000, 0, 0).extra,
            ..request()
        });
    }
    drop(reader);
    let before = log.dropped();
    log.request(&request());
    assert_eq!(log.dropped(), before + 1, "the reader is gone");
}

#[test]
fn a_deleted_file_drops_records_until_it_is_made_again_a_second_later() {
    let (_folder, path) = log_file();
    let (log, clock) = pinned(&path);
    log.run_start(&RunStart::here());
    std::fs::remove_file(&path).expect("a log");
    for n in 1..=3 {
        log.request(&request());
        assert_eq!(log.dropped(), n);
    }
    assert!(!path.exists());
    clock.0.fetch_add(1, Ordering::Relaxed);
    log.request(&request());
    assert_eq!(log.dropped(), 3);
    assert_eq!(records(&path).len(), 1);
}

#[test]
fn a_torn_line_of_somebody_else_costs_neither_the_first_record_nor_the_end() {
    let (_folder, path) = log_file();
    std::fs::write(&path, "{\"kind\":\"ev").expect("a log");
    let tear = || {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .expect("a log");
        file.write_all(b"{\"kind\":\"eval\",\"t").expect("a log");
    };
    let log = RunLog::open(&path);
    log.run_start(&RunStart::here());
    log.request(&request());
    tear();
    log.run_end_aggregated("completed");
    let lines = lines(&path);
    let kinds: Vec<&str> = lines
        .iter()
        .map(|line| match line {
            Ok(record) => record["kind"].as_str().expect("a kind"),
            Err(_) => "torn",
        })
        .collect();
    assert_eq!(kinds, ["torn", "run_start", "eval", "torn", "run_end"]);
}

/// Half a record of somebody else's behind the log at `path`, which ends `behind` bytes behind the end of a page.
fn append_half_a_record(path: &Path, behind: usize) {
    let len = std::fs::metadata(path).expect("a log").len() as usize;
    let end = (len + 150).next_multiple_of(4096) + behind;
    let mut half = b"{\"kind\":\"eval\",\"phase\":\"serve\",\"extra\":{\"pad\":\"".to_vec();
    half.resize(end - len, b'x');
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(path)
        .expect("a log");
    file.write_all(&half).expect("a log");
}

#[test]
fn a_record_that_a_kill_has_cut_at_the_end_of_a_page_leaves_no_torn_line() {
    let (_folder, path) = log_file();
    let log = RunLog::open(&path);
    log.run_start(&RunStart::here());
    for n in 1..=20 {
        append_half_a_record(&path, 0);
        log.request(&request());
        log.record_error();
        assert_eq!((log.mended(), log.dropped()), (n, 0));
    }
    // One that nobody has written behind: whoever comes next, and the end of the run.
    append_half_a_record(&path, 0);
    let next = RunLog::open(&path);
    next.request(&request());
    assert_eq!(next.mended(), 1);
    append_half_a_record(&path, 0);
    log.run_end_aggregated("completed");
    assert_eq!(log.mended(), 21);
    let records = records(&path);
    assert_eq!(records.len(), 1 + 20 * 2 + 1 + 1);
    let stats = &records.last().expect("an end")["stats"];
    assert_eq!(
        (&stats["requests"], &stats["errors"]),
        (&21.into(), &20.into())
    );
}

#[test]
fn a_record_behind_half_a_line_of_another_program_is_neither_lost_nor_written_twice() {
    let (_folder, path) = log_file();
    let log = RunLog::open(&path);
    log.run_start(&RunStart::here());
    for i in 0..20 {
        append_half_a_record(&path, 1 + 97 * i);
        log.request(&numbered(200, 0, i as u64).served());
    }
    assert_eq!((log.mended(), log.dropped()), (0, 0));
    let lines = lines(&path);
    let ids: Vec<&str> = lines
        .iter()
        .flatten()
        .filter_map(|r| r["extra"]["request_id"].as_str())
        .collect();
    let want: Vec<String> = (0..20).map(|i| format!("0-{i}")).collect();
    assert_eq!(ids, want);
    assert_eq!(lines.iter().filter(|line| line.is_err()).count(), 20);
}

#[test]
fn time_never_falls_and_a_run_has_its_own() {
    let (_folder, path) = log_file();
    let (log, clock) = pinned(&path);
    log.request(&request());
    log.run_start(&RunStart::here());
    for now in [1_005, 400, 1_003, 1_007] {
        clock.0.store(now, Ordering::Relaxed);
        log.request(&request());
    }
    log.run_end("completed");
    log.run_end("completed");
    clock.0.store(2_000, Ordering::Relaxed);
    log.run_start(&RunStart::here());
    clock.0.store(2_001, Ordering::Relaxed);
    log.record_error();
    log.run_end_aggregated("completed");
    let shown: Vec<_> = records(&path)
        .iter()
        .map(|r| {
            (
                r["kind"].as_str().expect("a kind").to_owned(),
                r["t"].as_u64().expect("a time"),
            )
        })
        .collect();
    let shown: Vec<_> = shown.iter().map(|(kind, t)| (kind.as_str(), *t)).collect();
    assert_eq!(
        shown,
        [
            ("eval", 0),
            ("run_start", 0),
            ("eval", 5),
            ("eval", 5),
            ("eval", 5),
            ("eval", 7),
            ("run_end", 7),
            ("run_start", 0),
            ("error", 1),
            ("run_end", 1),
        ]
    );
    let records = records(&path);
    assert_eq!(records[6]["stats"]["requests"], 4);
    assert_eq!(records[9]["stats"]["requests"], 0);
    assert_eq!(records[9]["stats"]["errors"], 1);
}

#[test]
fn a_request_that_is_not_ended_is_a_failed_one() {
    let (_folder, path) = log_file();
    let log = RunLog::open(&path);
    log.run_start(&RunStart::here());
    drop(log.begin("m"));
    let panicking = log.clone();
    let _ = std::panic::catch_unwind(move || {
        let _request = panicking.begin("m");
        panic!("the handler's own");
    });
    log.begin("m")
        .failed(503, "overloaded", "queue full", "{\"request_id\":\"r\"}");
    let codes: Vec<_> = records(&path)[1..]
        .iter()
        .map(|r| {
            (
                r["extra"]["status"].as_u64().expect("a status"),
                r["extra"]["code"].clone(),
            )
        })
        .collect();
    assert_eq!(
        codes,
        [
            (499, "abandoned".into()),
            (500, "panicked".into()),
            (503, "overloaded".into())
        ]
    );
    assert_eq!((log.in_flight(), log.counters().errors), (0, 3));
}

#[test]
fn a_deadline_that_passes_interrupts_the_run() {
    let (_folder, path) = log_file();
    let log = RunLog::open(&path);
    log.run_start(&RunStart::here());
    let request = log.begin("m");
    let done = log.shutdown(Duration::ZERO);
    assert_eq!((done.in_flight, done.reason()), (1, "interrupted"));
    request.served(1, 1, "");
    let kinds: Vec<_> = records(&path)
        .iter()
        .map(|r| r["kind"].as_str().expect("a kind").to_owned())
        .collect();
    assert_eq!(kinds, ["run_start", "run_end", "eval"]);
}

#[test]
fn a_worker_that_was_killed_makes_the_run_errored() {
    let (_folder, path) = log_file();
    let log = RunLog::open(&path);
    log.run_start(&RunStart::here());
    let mut worker = start("work 0", &path).spawn().expect("a process");
    await_word(&mut stdout(&mut worker), "ready");
    worker.kill().expect("a process");
    let workers = Workers::new([worker.id()]);
    let done = workers.shutdown(&log, LONG);
    assert_eq!(
        (done.workers_failed.as_slice(), done.reason()),
        (&[worker.id()][..], "errored")
    );
}

#[test]
fn threads_take_turns_so_that_time_never_falls_in_the_file() {
    let (_folder, path) = log_file();
    let log = RunLog::with_clock(&path, Arc::new(SystemClock));
    log.run_start(&RunStart::here());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    log.begin("m").served(1, 1, "{}");
                }
            });
        }
    });
    assert_eq!(log.shutdown(LONG).reason(), "completed");
    ended_after(&path, 2_000, 2_000);
}

#[test]
fn nothing_waits_for_a_signal_handler_that_nobody_asked_for() {
    let (_folder, path) = log_file();
    let mut process = start("write_for_ever 200", &path)
        .spawn()
        .expect("a process");
    await_word(&mut stdout(&mut process), "writing");
    kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).expect("a process");
    assert_eq!(
        process.wait().expect("a process").signal(),
        Some(Signal::SIGTERM as i32)
    );
}
