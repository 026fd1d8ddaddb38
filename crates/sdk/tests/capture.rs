//! Recording switched on by a job: nested, in threads, in processes, and where nobody listens.
//!
//! Jobs are this test program again, which then runs [`a_job_of_its_own`] alone, since what a process holds is one thing.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use warptrace_formats::annotation::{CAPTURE_SOCKET_VARIABLE, CaptureAnswer};
use warptrace_sdk::capture::{self, Answer};

const ROLE: &str = "WARPTRACE_TEST_ROLE";
/// Long enough for anything that will happen at all.
const LONG: Duration = Duration::from_secs(60);

/// What a recorder hears.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Line(u32, String),
    End(u32),
}

fn spawn(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name("recorder".into());
    thread.spawn(work).expect("a thread");
}

/// Listens at `path`, answers `resume` by `answer` and all else by `paused`, and tells what it hears, by the number of the connection.
fn recorder(path: &Path, answer: CaptureAnswer) -> Receiver<Heard> {
    let listener = UnixListener::bind(path).expect("a place");
    let (tell, hear) = sync_channel(64);
    spawn(move || {
        for (number, stream) in (0..).zip(listener.incoming()) {
            let (stream, tell): (_, SyncSender<Heard>) = (stream.expect("a peer"), tell.clone());
            spawn(move || {
                let mut out = stream.try_clone().expect("a descriptor");
                for line in BufReader::new(stream).lines() {
                    let line = line.expect("a line");
                    let answer = match line.as_str() {
                        "resume/1" => answer,
                        _ => CaptureAnswer::Paused,
                    };
                    let _ = tell.send(Heard::Line(number, line));
                    let _ = out.write_all(answer.encode());
                }
                let _ = tell.send(Heard::End(number));
            });
        }
    });
    hear
}

fn job(role: &str, socket: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args([
            "a_job_of_its_own",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ROLE, role)
        .env(CAPTURE_SOCKET_VARIABLE, socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process")
}

/// What jobs of these tests do. Alone, it does nothing.
#[test]
fn a_job_of_its_own() {
    match std::env::var(ROLE).as_deref() {
        Ok("nested") => nested(),
        Ok("forked") => forked(),
        Ok("killed") => killed(),
        Ok("on") => assert_eq!(capture::resume().answer(), Answer::On),
        Ok("refused") => {
            let recorded = capture::resume();
            assert_eq!(recorded.answer(), Answer::Refused);
            assert!(!recorded.answer().is_recorded());
        }
        Ok("nobody") => nobody(),
        Ok(other) => panic!("no role {other}"),
        Err(_) => {}
    }
}

fn nested() {
    let outer = capture::resume();
    assert_eq!(outer.answer(), Answer::Resumed);
    for _ in 0..3 {
        drop(capture::resume());
    }
    let inner = capture::resume();
    // The outer block ends first, and in another thread.
    let thread = std::thread::Builder::new().name("other".into());
    let other = thread.spawn(move || {
        let own = capture::resume();
        assert_eq!(own.answer(), Answer::Resumed);
        drop(outer);
        own
    });
    let own = other.expect("a thread").join().expect("a thread");
    capture::pause(own);
    drop(inner);
    drop(capture::resume());
}

fn forked() {
    let parents = capture::resume();
    assert_eq!(parents.answer(), Answer::Resumed);
    // The parent ends here, as a process does that is killed: it says nothing.
    nix::unistd::daemon(true, true).expect("a fork");
    drop(parents);
    let own = capture::resume();
    assert_eq!(own.answer(), Answer::Resumed);
    drop(own);
}

fn killed() {
    let recorded = capture::resume();
    assert_eq!(recorded.answer(), Answer::Resumed);
    println!("recorded");
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("a pipe");
}

fn nobody() {
    assert_eq!(capture::resume().answer(), Answer::Nobody);
    println!("nobody");
    // A recorder is there now, and is found a little later.
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("a pipe");
    while capture::resume().answer() == Answer::Nobody {
        std::thread::yield_now();
    }
}

fn line(number: u32, text: &str) -> Heard {
    Heard::Line(number, text.to_owned())
}

#[track_caller]
fn hears(hear: &Receiver<Heard>, want: &[Heard]) {
    for want in want {
        assert_eq!(hear.recv_timeout(LONG).as_ref(), Ok(want));
    }
}

fn finish(mut job: Child) {
    assert!(job.wait().expect("a process").success());
}

#[test]
fn nested_blocks_of_all_threads_are_one_holder() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("capture.sock");
    let hear = recorder(&path, CaptureAnswer::Resumed);
    finish(job("nested", &path));
    let heard: Vec<Heard> = (0..6)
        .map(|_| hear.recv_timeout(LONG).expect("a word"))
        .collect();
    // Each connection has a thread of its own: one's end may be heard behind the next one's begin.
    let (ends, lines): (Vec<Heard>, Vec<Heard>) = heard
        .into_iter()
        .partition(|heard| matches!(heard, Heard::End(_)));
    let words = [
        (0, "resume/1"),
        (0, "pause/1"),
        (1, "resume/1"),
        (1, "pause/1"),
    ];
    assert_eq!(lines, words.map(|(n, word)| line(n, word)));
    assert_eq!(ends.len(), 2);
}

#[test]
fn a_forked_child_neither_ends_its_parent_s_block_nor_keeps_it_open() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("capture.sock");
    let hear = recorder(&path, CaptureAnswer::Resumed);
    finish(job("forked", &path));
    hears(&hear, &[line(0, "resume/1")]);
    let mut rest: Vec<Heard> = (0..4)
        .map(|_| hear.recv_timeout(LONG).expect("a word"))
        .collect();
    // The two connections end in any order.
    let ended = rest.iter().position(|h| *h == Heard::End(0));
    rest.remove(ended.expect("the parent's connection ends"));
    let own = [line(1, "resume/1"), line(1, "pause/1"), Heard::End(1)];
    assert_eq!(rest, own);
}

#[test]
fn a_process_that_is_killed_lets_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("capture.sock");
    let hear = recorder(&path, CaptureAnswer::Resumed);
    let mut job = job("killed", &path);
    hears(&hear, &[line(0, "resume/1")]);
    let mut said = BufReader::new(job.stdout.take().expect("a pipe")).lines();
    while !said
        .next()
        .expect("a line")
        .expect("a line")
        .contains("recorded")
    {}
    job.kill().expect("a process");
    job.wait().expect("a process");
    hears(&hear, &[Heard::End(0)]);
}

#[test]
fn a_recorder_that_is_on_or_refuses_is_not_held() {
    for (role, answer) in [
        ("on", CaptureAnswer::On),
        ("refused", CaptureAnswer::Refused),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("capture.sock");
        let hear = recorder(&path, answer);
        finish(job(role, &path));
        hears(&hear, &[line(0, "resume/1"), Heard::End(0)]);
    }
}

#[test]
fn that_nobody_listens_is_remembered_for_a_while_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("capture.sock");
    let mut job = job("nobody", &path);
    let mut said = BufReader::new(job.stdout.take().expect("a pipe")).lines();
    while !said
        .next()
        .expect("a line")
        .expect("a line")
        .contains("nobody")
    {}
    let hear = recorder(&path, CaptureAnswer::Resumed);
    let mut tell = job.stdin.take().expect("a pipe");
    tell.write_all(b"go on\n").expect("a pipe");
    finish(job);
    hears(
        &hear,
        &[line(0, "resume/1"), line(0, "pause/1"), Heard::End(0)],
    );
}
