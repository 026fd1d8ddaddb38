use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;

use super::*;

/// A recorder of one connection, which answers each line by the next of `answers`, and tells what it was asked.
fn recorder(
    path: &Path,
    answers: &'static [CaptureAnswer],
) -> std::thread::JoinHandle<Vec<CaptureRequest>> {
    let listener = UnixListener::bind(path).expect("a place");
    let serve = move || {
        let (stream, _) = listener.accept().expect("a connection");
        let mut asked = Vec::new();
        let mut answers = answers.iter();
        let mut out = stream.try_clone().expect("a descriptor");
        for line in BufReader::new(stream).lines() {
            let line = line.expect("a line");
            asked.push(CaptureRequest::decode(line.as_bytes()).expect("a request"));
            if let Some(answer) = answers.next() {
                out.write_all(answer.encode()).expect("a peer");
            }
        }
        asked
    };
    std::thread::Builder::new()
        .name("recorder".into())
        .spawn(serve)
        .expect("a thread")
}

#[test]
fn a_connection_asks_and_lets_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("capture.sock");
    let recorder = recorder(&path, &[CaptureAnswer::Resumed, CaptureAnswer::Paused]);
    let (connection, answer) = Connection::open(&path).expect("a recorder");
    assert_eq!(answer, CaptureAnswer::Resumed);
    assert_eq!(
        connection.pause().expect("an answer"),
        CaptureAnswer::Paused
    );
    let asked = recorder.join().expect("a recorder");
    assert_eq!(asked, [CaptureRequest::Resume, CaptureRequest::Pause]);
}

#[test]
fn a_recorder_that_says_nothing_is_not_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("capture.sock");
    assert!(Connection::open(&path).is_err(), "nobody is there");
    let recorder = recorder(&path, &[]);
    assert!(Connection::open(&path).is_err());
    assert_eq!(
        recorder.join().expect("a recorder"),
        [CaptureRequest::Resume]
    );
}

#[test]
fn only_a_process_that_is_recorded_holds_anything() {
    for (answer, want) in [
        (Answer::Resumed, true),
        (Answer::On, true),
        (Answer::Refused, false),
        (Answer::Nobody, false),
    ] {
        assert_eq!(answer.is_recorded(), want, "{}", answer.name());
    }
}
