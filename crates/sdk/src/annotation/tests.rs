//! The writer against agents that come, go, stall and hang up.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::net::{UnixListener, UnixStream};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("annotate.sock");
    (folder, path)
}

fn step(n: u32) -> [(&'static str, String); 1] {
    [("step", n.to_string())]
}

/// The steps of all lines up to the end of the stream.
fn steps(stream: UnixStream) -> Vec<String> {
    let lines = BufReader::new(stream).split(b'\n');
    let steps = lines.map(|line| {
        let line = Line::decode(&line.unwrap()).unwrap();
        line.labels.get("step").unwrap().to_owned()
    });
    steps.collect()
}

const NO_AGENT: Fate = Fate::Dropped(Dropped::NoAgent);

#[test]
fn lines_are_stamped_and_about_this_process_unless_they_say_otherwise() {
    let (_folder, path) = place();
    let agent = UnixListener::bind(&path).unwrap();
    let writer = Writer::to(&path);
    let before = unix_now().unwrap();
    assert_eq!(writer.say(&[("step", "1"), ("epoch", "0")]), Fate::Sent);
    assert_eq!(writer.span(&[("request_id", "r")], 5, 7), Fate::Sent);
    let labels = Labels::from_pairs(&[("run_id", "r1")]).unwrap();
    let line = Line {
        labels,
        ts: Some(9),
        ..Line::default()
    };
    assert_eq!(writer.write(&line), Fate::Sent);
    let after = unix_now().unwrap();
    drop(writer);
    let stream = BufReader::new(agent.accept().unwrap().0);
    let got: Vec<_> = stream.lines().map(Result::unwrap).collect();
    let decoded: Vec<_> = got
        .iter()
        .map(|l| Line::decode(l.as_bytes()).unwrap())
        .collect();
    assert!(got[0].starts_with(r#"{"labels":{"epoch":"0","step":"1"},"pid":"#));
    assert!(
        decoded[..2]
            .iter()
            .all(|l| l.pid == Some(std::process::id()))
    );
    assert!(
        decoded[..2]
            .iter()
            .all(|l| (before..=after).contains(&l.ts.unwrap()))
    );
    assert_eq!(decoded[1].span, Some((5, 7)));
    assert_eq!(got[2], r#"{"labels":{"run_id":"r1"},"ts":9}"#);
}

#[test]
fn without_an_agent_lines_are_dropped_and_counted() {
    let (_folder, path) = place();
    let writer = Writer::to(&path);
    assert_eq!([writer.say(&step(1)), writer.say(&step(2))], [NO_AGENT; 2]);
    std::fs::write(&path, "").unwrap();
    let writer_to_file = Writer::to(&path);
    assert_eq!(writer_to_file.say(&step(1)), NO_AGENT);
    assert!(!writer.is_connected() && !writer_to_file.is_connected());
    let counts = writer.counts();
    assert_eq!((counts.no_agent, counts.connections), (2, 0));
    assert_eq!(Writer::to("x".repeat(500)).say(&step(1)), NO_AGENT);
}

#[test]
fn an_agent_that_comes_later_is_found() {
    let (_folder, path) = place();
    let writer = Writer::to(&path);
    assert_eq!(writer.say(&step(1)), NO_AGENT);
    let agent = UnixListener::bind(&path).unwrap();
    // The second attempt of this second.
    assert_eq!(writer.say(&step(2)), Fate::Sent);
    drop(writer);
    assert_eq!(steps(agent.accept().unwrap().0), ["2"]);
}

#[test]
fn the_first_place_where_somebody_listens_is_taken() {
    let (folder, path) = place();
    let stale = folder.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    let agent = UnixListener::bind(&path).unwrap();
    let writer = Writer::with_places(vec![folder.path().join("none"), stale, path]);
    assert_eq!(writer.say(&step(1)), Fate::Sent);
    drop(writer);
    assert_eq!(steps(agent.accept().unwrap().0), ["1"]);
}

#[test]
fn a_connection_that_was_closed_is_made_again_for_the_same_line() {
    let (_folder, path) = place();
    let agent = UnixListener::bind(&path).unwrap();
    let writer = Writer::to(&path);
    assert_eq!(writer.say(&step(1)), Fate::Sent);
    let (mut first, _) = agent.accept().unwrap();
    let mut line = [0; 8];
    first.read_exact(&mut line).unwrap();
    drop(first);
    assert_eq!(writer.say(&step(2)), Fate::Sent);
    assert!(writer.is_connected());
    let counts = writer.counts();
    assert_eq!((counts.sent, counts.connections), (2, 2));
    drop(writer);
    assert_eq!(steps(agent.accept().unwrap().0), ["2"]);
}

#[test]
fn an_agent_that_was_started_again_at_the_same_path_gets_the_next_line() {
    let (_folder, path) = place();
    let agent = UnixListener::bind(&path).unwrap();
    let writer = Writer::to(&path);
    assert_eq!(writer.say(&step(1)), Fate::Sent);
    // Accepted, and never read.
    drop(agent.accept().unwrap());
    drop(agent);
    std::fs::remove_file(&path).unwrap();
    let agent = UnixListener::bind(&path).unwrap();
    assert_eq!(writer.say(&step(2)), Fate::Sent);
    drop(writer);
    assert_eq!(steps(agent.accept().unwrap().0), ["2"]);
}

#[test]
fn an_agent_that_does_not_read_costs_lines_and_never_waits() {
    let (_folder, path) = place();
    let agent = UnixListener::bind(&path).unwrap();
    let writer = Writer::to(&path);
    let mut fates = Vec::new();
    let mut n = 0;
    // As long as it takes to fill the kernel's buffer and ours.
    while fates
        .iter()
        .filter(|f| **f == Fate::Dropped(Dropped::Full))
        .count()
        < 100
    {
        n += 1;
        fates.push(writer.say(&step(n)));
    }
    let count = |fate| fates.iter().filter(|f| **f == fate).count() as u64;
    let held = count(Fate::Held);
    assert!(held > 100 && count(Fate::Sent) > 100);
    let (stream, _) = agent.accept().unwrap();
    // Once there is room again, what was held goes first, in order and whole.
    let reader = std::thread::scope(|scope| {
        let reader = scope.spawn(|| steps(stream));
        while writer.counts().sent < count(Fate::Sent) + held {
            let _ = writer.say(&step(0));
        }
        writer.close();
        reader.join().unwrap()
    });
    let first: Vec<String> = (1..=n - 100).map(|n| n.to_string()).collect();
    assert_eq!(reader[..first.len()], first);
    assert!(reader[first.len()..].iter().all(|step| step == "0"));
    let counts = writer.counts();
    assert_eq!(reader.len() as u64, counts.sent);
}

#[test]
fn a_line_that_was_cut_goes_whole_to_the_next_agent() {
    let (_folder, path) = place();
    let agent = UnixListener::bind(&path).unwrap();
    let writer = Writer::to(&path);
    let long = "x".repeat(256);
    let labels: Vec<(String, &str)> = (0..32).map(|i| (format!("k{i}"), long.as_str())).collect();
    while writer.say(&labels) != Fate::Held {}
    // Nothing of the first connection is read.
    drop(agent.accept().unwrap());
    let held = writer.link().held.len();
    assert!(held > 0);
    assert_eq!(writer.say(&step(1)), Fate::Sent);
    drop(writer);
    let (stream, _) = agent.accept().unwrap();
    let lines: Vec<_> = BufReader::new(stream).lines().map(Result::unwrap).collect();
    let whole = lines.iter().filter(|l| Line::decode(l.as_bytes()).is_ok());
    assert_eq!((whole.count(), lines.len()), (2, 2));
}

#[test]
fn close_is_for_good() {
    let (_folder, path) = place();
    let agent = UnixListener::bind(&path).unwrap();
    let writer = Writer::to(&path);
    assert_eq!(writer.say(&step(1)), Fate::Sent);
    writer.close();
    writer.close();
    assert_eq!(writer.say(&step(2)), Fate::Dropped(Dropped::Closed));
    assert!(!writer.is_connected());
    assert_eq!(steps(agent.accept().unwrap().0), ["1"]);
    assert_eq!((writer.counts().sent, writer.counts().closed), (1, 1));
}

#[test]
fn lines_of_many_threads_do_not_interleave() {
    let (_folder, path) = place();
    let agent = UnixListener::bind(&path).unwrap();
    let writer = Writer::to(&path);
    let got = std::thread::scope(|scope| {
        let reader = scope.spawn(|| steps(agent.accept().unwrap().0));
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let writer = &writer;
                scope.spawn(move || {
                    for line in 0..200 {
                        // The reader may be behind for a moment.
                        while writer.say(&step(thread * 1_000 + line))
                            == Fate::Dropped(Dropped::Full)
                        {}
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        while writer.link().flush(&writer.counts).is_ok() && !writer.link().held.is_empty() {}
        writer.close();
        reader.join().unwrap()
    });
    assert_eq!(got.len(), 1_600);
    assert_eq!(got.iter().collect::<BTreeSet<_>>().len(), 1_600);
    assert_eq!(writer.counts().connections, 1);
}

/// The writer as a child finds it: made by another process, which had it locked when it forked.
#[test]
fn a_child_waits_for_no_lock_of_its_parent_and_has_its_own_connection() {
    let (_folder, path) = place();
    let agent = UnixListener::bind(&path).unwrap();
    let mut writer = Writer::to(&path);
    assert_eq!(writer.say(&step(1)), Fate::Sent);
    let (_parents, _) = agent.accept().unwrap();
    writer.first.pid = 1;
    std::thread::scope(|scope| {
        let _held = writer.first.link.lock().unwrap();
        let child = scope.spawn(|| [writer.say(&step(2)), writer.say(&step(3))]);
        assert_eq!(child.join().unwrap(), [Fate::Sent; 2]);
    });
    assert_eq!(writer.counts().connections, 2);
    drop(writer);
    assert_eq!(steps(agent.accept().unwrap().0), ["2", "3"]);
}

#[test]
fn a_child_closes_its_copy_of_the_parent_s_connection() {
    let (_folder, path) = place();
    let agent = UnixListener::bind(&path).unwrap();
    let mut writer = Writer::to(&path);
    assert_eq!(writer.say(&step(1)), Fate::Sent);
    writer.first.pid = 1;
    assert_eq!(writer.say(&step(2)), Fate::Sent);
    // It has ended, though the writer lives.
    assert_eq!(steps(agent.accept().unwrap().0), ["1"]);
}

proptest! {
    #[test]
    fn nothing_that_is_said_panics(
        labels in prop::collection::vec((".{0,80}", ".{0,300}"), 0..40),
        pid in prop::option::of(any::<u32>()),
        span in prop::option::of((any::<i64>(), any::<i64>())),
    ) {
        let writer = Writer::to("/nonexistent/annotate.sock");
        let refused = Labels::from_pairs(&labels).map_err(Refusal::from);
        let fate = writer.say_of(pid, &labels, span);
        match (fate, refused) {
            (Fate::Dropped(Dropped::Refused(why)), Err(because)) => prop_assert_eq!(why, because),
            (Fate::Dropped(Dropped::Refused(why)), Ok(_)) => prop_assert!(
                matches!(why, Refusal::SpanIncomplete | Refusal::SpanReversed | Refusal::LineTooLong)
            ),
            (fate, refused) => prop_assert!(fate == NO_AGENT && refused.is_ok()),
        }
        let counts = writer.counts();
        prop_assert_eq!(counts.refused + counts.no_agent, 1);
    }
}

#[test]
fn a_line_that_is_encoded_already_goes_as_it_is_and_only_if_it_is_one() {
    let (_folder, path) = place();
    let writer = Writer::to(&path);
    assert!(!writer.connect());
    let agent = UnixListener::bind(&path).unwrap();
    assert!(writer.connect() && writer.connect());
    let refused = |why| Fate::Dropped(Dropped::Refused(why));
    for wrong in ["", "{}", "{}\n{}\n", "{}\n\n", "\n{}"] {
        assert_eq!(
            writer.write_encoded(wrong.as_bytes()),
            refused(Refusal::Syntax)
        );
    }
    let long = format!("{}\n", "x".repeat(MAX_LINE_BYTES));
    let whole = &long[1..];
    assert_eq!(
        writer.write_encoded(long.as_bytes()),
        refused(Refusal::LineTooLong)
    );
    assert_eq!(writer.write_encoded(whole.as_bytes()), Fate::Sent);
    let counts = writer.counts();
    assert_eq!((counts.sent, counts.refused, counts.connections), (1, 6, 1));
    writer.close();
    assert!(!writer.connect());
    assert_eq!(
        writer.write_encoded(b"{}\n"),
        Fate::Dropped(Dropped::Closed)
    );
    let mut got = String::new();
    let mut stream = agent.accept().unwrap().0;
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, whole);
}
