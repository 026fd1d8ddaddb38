//! `warptrace annotate` against a recorder's socket.

mod support;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use support::Home;
use warptrace_agent::{AnnotationReceiver, AnnotationSocket, SocketLimits, SocketOptions};
use warptrace_model::{Annotation, Pid};

fn listen(home: &Home) -> (PathBuf, AnnotationSocket, AnnotationReceiver) {
    let folder = home.dir.path().join("socket");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    let path = folder.join("annotate.sock");
    let options = SocketOptions {
        path: path.clone(),
        peer_path: None,
        limits: SocketLimits::default(),
    };
    let (socket, receiver) = AnnotationSocket::start(options).unwrap();
    (path, socket, receiver)
}

/// All that came, once the command has ended.
fn heard(receiver: &AnnotationReceiver) -> Vec<Annotation> {
    let mut all = Vec::new();
    receiver.drain(&mut all);
    all
}

#[test]
fn what_is_said_has_arrived_when_the_command_ends() {
    let home = Home::new();
    let (path, _socket, receiver) = listen(&home);
    let path = path.to_str().unwrap();
    let before = warptrace_capture::clock::boot_now();
    let ran = home.run(["annotate", "step=12", "note=a=b é", "--socket", path]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    assert_eq!(ran.out, format!("1 annotation sent to {path}\n"));
    let got = heard(&receiver);
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].labels.get("note"), Some("a=b é"));
    assert_eq!((got[0].scope, got[0].span), (None, None));
    assert!(got[0].at >= before.minus(1_000_000_000));

    let us = std::process::id();
    let pid = us.to_string();
    let ran = home.run([
        "annotate",
        "phase=load",
        "--pid",
        &pid,
        "--since",
        "90s",
        "--socket",
        path,
        "--json",
    ]);
    let answer = ran.json();
    assert_eq!(
        (answer["sent"].as_u64(), answer["socket"].as_str()),
        (Some(1), Some(path))
    );
    let got = heard(&receiver);
    assert_eq!(got[0].scope.unwrap().pid, Pid(us));
    assert_eq!(got[0].span.unwrap().nanos(), 90_000_000_000);

    let (from, to) = ("2026-01-01T00:00:00Z", "1767225601000000000");
    let ran = home.run([
        "annotate",
        "phase=eval",
        "--span-start",
        from,
        "--span-end",
        to,
        "--socket",
        path,
    ]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    assert!(heard(&receiver)[0].span.is_some());
}

#[test]
fn a_file_goes_whole_or_not_at_all() {
    let home = Home::new();
    let (path, socket, receiver) = listen(&home);
    let file = home.dir.path().join("lines.jsonl");
    // More than one connection may send in a second.
    let lines: String = (0..2_500)
        .map(|n| format!("{{\"labels\":{{\"step\":\"{n}\"}}}}\n\n"))
        .collect();
    std::fs::write(&file, &lines).unwrap();
    let command = |from: &str| {
        let args = ["annotate", "--from-file", from, "--socket"];
        let mut command = home.command(args);
        command.arg(&path);
        command
    };
    let out = command("lines.jsonl").output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let got = heard(&receiver);
    let steps: Vec<_> = got
        .iter()
        .map(|a| a.labels.get("step").unwrap().parse::<i32>().unwrap())
        .collect();
    assert_eq!(steps, (0..2_500).collect::<Vec<i32>>());

    let before = socket.counts().accepted();
    std::fs::write(&file, lines + "{\"labels\":{\"step\":3}}\n").unwrap();
    let out = command("lines.jsonl").output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        said.contains("1 of 2501 lines are wrong")
            && said.contains("lines.jsonl:5001: a member of the wrong type"),
        "{said}"
    );
    assert_eq!(socket.counts().accepted(), before);

    let mut child = command("-").stdin(Stdio::piped()).spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"{\"labels\":{\"k\":\"v\"}}")
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(heard(&receiver).len(), 1);
}

#[test]
fn errors_say_what_was_tried_and_what_to_do() {
    let home = Home::new();
    let run = |args: &[&str]| {
        let mut command = home.command([&["annotate"], args].concat());
        command
            .env("HOME", home.dir.path())
            .env("XDG_RUNTIME_DIR", home.dir.path().join("run"));
        command.env_remove("WARPTRACE_ANNOTATE_SOCKET");
        let out = command.output().unwrap();
        (
            out.status.code(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        )
    };
    let stale = home.dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let (code, said) = run(&["k=v", "--socket", stale.to_str().unwrap()]);
    assert_eq!(code, Some(2));
    assert!(
        said.contains("warptrace trace --annotate")
            && said.contains("stale.sock: nobody listens any more"),
        "{said}"
    );
    for (args, want) in [
        (&["k"][..], "KEY=VALUE"),
        (&["not a key=v"], "KEY=VALUE"),
        (&[], "nothing to say"),
        (&["k=a\nb"], "\"k\"=\"a\\nb\": a control character"),
        (&["k=v", "--pid", "0"], "0"),
        (&["k=v", "--since", "soon"], "not a time"),
        (&["k=v", "--span-start", "soon"], "not a time"),
        (&["k=v", "--span-end", "5"], "--span-start"),
        (
            &["k=v", "--span-start", "7", "--span-end", "5"],
            "ends before it starts",
        ),
        (&["k=v", "--from-file", "f"], "--from-file"),
        (&["--from-file", "no-such"], "cannot open \"no-such\""),
    ] {
        let (code, said) = run(args);
        assert_eq!(code, Some(2), "{args:?}: {said}");
        assert!(said.contains(want), "{args:?} should say {want:?}: {said}");
    }
}
