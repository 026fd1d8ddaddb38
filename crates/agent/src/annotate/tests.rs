//! The socket under honest, slow, dying and hostile senders.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use warptrace_model::{Annotation, Pid, Window};

use super::*;

/// Far beyond what anything here takes: only a fault waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

struct Setup {
    _folder: TempDir,
    path: PathBuf,
    socket: AnnotationSocket,
    receiver: AnnotationReceiver,
}

fn start(limits: Limits) -> Setup {
    let folder = tempfile::tempdir().unwrap();
    // Other users' clients must get there.
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.path(), mode).unwrap();
    let path = folder.path().join("annotate.sock");
    let options = SocketOptions {
        path: path.clone(),
        peer_path: None,
        limits,
    };
    let (socket, receiver) = AnnotationSocket::start(options).unwrap();
    Setup {
        _folder: folder,
        path,
        socket,
        receiver,
    }
}

fn unlimited() -> Limits {
    Limits {
        lines_per_sec: None,
        ..Limits::default()
    }
}

impl Setup {
    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    /// Waits for `count` annotations.
    #[track_caller]
    fn receive(&self, count: usize) -> Vec<Annotation> {
        let mut out = Vec::new();
        while out.len() < count {
            let before = out.len();
            self.receiver.drain_timeout(&mut out, PATIENCE).unwrap();
            assert!(
                out.len() > before,
                "{} of {count} annotations came",
                out.len()
            );
        }
        out
    }

    /// Stops, and gives what had not been received yet, and the losses.
    fn stop(self) -> (Vec<Annotation>, Vec<(&'static str, bool, u64)>) {
        let counts = self.socket.counts();
        self.socket.stop();
        assert!(!self.path.exists());
        assert_eq!(counts.open(), 0);
        let mut rest = Vec::new();
        self.receiver.drain(&mut rest);
        (rest, counts.losses())
    }
}

fn values<'a>(annotations: &'a [Annotation], key: &str) -> Vec<&'a str> {
    let values = annotations.iter().filter_map(|a| a.labels.get(key));
    values.collect()
}

pub(super) fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/skipped");
    let _ = std::fs::create_dir_all(&folder);
    let _ = std::fs::write(folder.join(format!("{test}.txt")), reason);
}

/// A program that sends lines, then goes on living until its standard input ends; it prints a line once it has sent.
fn python(script: &str, path: &Path) -> Command {
    let mut command = Command::new("python3");
    command
        .args(["-c", script])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

const SEND: &str = r#"
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
def send(line):
    s.sendall(line.encode() + b"\n")
"#;

#[test]
fn lines_arrive_in_order_with_their_sender_and_on_the_boot_clock() {
    let setup = start(Limits::default());
    let before = warptrace_capture::clock::boot_now();
    let mut client = setup.connect();
    let ts = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    let (start, end) = (ts - 2_000_000_000, ts - 1_000_000_000);
    let lines = format!(
        "{{\"labels\":{{\"step\":\"1\"}}}}\r\n\n{{\"labels\":{{\"step\":\"2\"}}}}\n\
         {{\"labels\":{{\"step\":\"3\"}},\"ts\":{ts}}}\n\
         {{\"labels\":{{\"step\":\"4\"}},\"span_start\":{start},\"span_end\":{end}}}\n"
    );
    client.write_all(lines.as_bytes()).unwrap();
    let got = setup.receive(4);
    let after = warptrace_capture::clock::boot_now();
    assert_eq!(values(&got, "step"), ["1", "2", "3", "4"]);
    assert!(got[0].at < got[1].at && before < got[0].at && got[1].at < after.plus(4));
    assert!(got[2].at >= before.minus(1_000_000_000) && got[2].at <= after.plus(1_000_000_000));
    let span = got[3].span.unwrap();
    assert_eq!(span, Window::at(span.start, 1_000_000_000));
    assert!(got.iter().all(|a| a.scope.is_none()));
    let sender = got[0].sender.unwrap();
    assert_eq!(sender.pid, std::process::id());
    assert_eq!(sender.uid, nix::unistd::getuid().as_raw());
    let counts = setup.socket.counts();
    drop(client);
    let (rest, losses) = setup.stop();
    assert!(rest.is_empty() && losses.is_empty());
    assert_eq!((counts.accepted(), counts.taken()), (1, 4));
}

#[test]
fn a_process_is_labelled_by_its_incarnation() {
    let setup = start(Limits::default());
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let (us, child_pid) = (std::process::id(), child.id());
    let mut client = setup.connect();
    let mut send = |rest: String| {
        writeln!(client, r#"{{"labels":{{"k":"v"}},{rest}}}"#).unwrap();
    };
    send(format!(r#""pid":{us}"#));
    send(format!(r#""pid":{child_pid}"#));
    send(format!(r#""pid":{}"#, gone.id()));
    send(format!(r#""pid":{us},"start_time":1"#));
    send(r#""pid":4294967295"#.into());
    send(format!(r#""pid":{us},"start_time":0"#));
    let got = setup.receive(3);
    let start_ticks = |pid| {
        let info = warptrace_capture::proc::process_info(pid, false, false);
        info.unwrap().incarnation
    };
    let scopes: Vec<_> = got.iter().map(|a| a.scope.unwrap()).collect();
    assert_eq!(
        scopes,
        [start_ticks(us), start_ticks(child_pid), start_ticks(us)]
    );
    drop(child.stdin.take());
    child.wait().unwrap();
    let (_, losses) = setup.stop();
    let want = [
        ("start_time_mismatch", false, 1),
        ("pid_unverifiable", false, 2),
    ];
    assert_eq!(losses, want);
}

#[test]
fn another_user_labels_its_own_processes_only() {
    let test = "another_user_labels_its_own_processes_only";
    if !nix::unistd::geteuid().is_root() {
        return skip(test, "becoming another user needs root");
    }
    let setup = start(Limits::default());
    let script = format!(
        "{SEND}\nsend('{{\"labels\":{{\"who\":\"init\"}},\"pid\":1}}')\n\
         send('{{\"labels\":{{\"who\":\"self\"}},\"pid\":%d}}' % os.getpid())\n\
         send('{{\"labels\":{{\"who\":\"all\"}}}}')\nprint('sent', flush=True)\nsys.stdin.read()"
    );
    let mut client = python(&script, &setup.path)
        .uid(12_345)
        .gid(12_345)
        .spawn()
        .unwrap();
    let got = setup.receive(2);
    let pid = client.id();
    drop(client.stdin.take());
    client.wait().unwrap();
    assert_eq!(values(&got, "who"), ["self", "all"]);
    // What it says of nobody in particular is about itself: it may not speak for the machine.
    assert!(got.iter().all(|a| {
        a.scope
            .is_some_and(|s| s.pid == Pid(pid) && s.start_ticks > 0)
    }));
    assert!(got.iter().all(|a| a.sender.unwrap().uid == 12_345));
    assert_eq!(setup.socket.counts().narrowed(), 1);
    assert_eq!(setup.stop().1, [("pid_not_owned", false, 1)]);
}

#[test]
fn the_superuser_labels_anybody_s_process() {
    if !nix::unistd::geteuid().is_root() {
        return skip("the_superuser_labels_anybody_s_process", "needs root");
    }
    let setup = start(Limits::default());
    let mut other = Command::new("cat")
        .stdin(Stdio::piped())
        .uid(12_345)
        .spawn()
        .unwrap();
    let mut client = setup.connect();
    writeln!(client, r#"{{"labels":{{"k":"v"}},"pid":{}}}"#, other.id()).unwrap();
    let got = setup.receive(1);
    assert_eq!(got[0].scope.unwrap().pid, Pid(other.id()));
    drop(other.stdin.take());
    other.wait().unwrap();
    assert_eq!(setup.stop().1, []);
}

#[test]
fn a_container_s_pids_are_its_own() {
    let test = "a_container_s_pids_are_its_own";
    if !nix::unistd::geteuid().is_root() {
        return skip(test, "a pid namespace needs root");
    }
    let setup = start(Limits::default());
    // In the new namespace the sender is 1, and its child 2: both are somebody else's numbers here.
    let script = format!(
        "{SEND}\nchild = os.fork()\nif child == 0:\n    sys.stdin.read()\n    os._exit(0)\n\
         assert os.getpid() == 1\n\
         send('{{\"labels\":{{\"who\":\"self\"}},\"pid\":1}}')\n\
         send('{{\"labels\":{{\"who\":\"child\"}},\"pid\":%d}}' % child)\n\
         send('{{\"labels\":{{\"who\":\"nobody\"}},\"pid\":77}}')\n\
         send('{{\"labels\":{{\"who\":\"all\"}}}}')\nprint('sent', flush=True)\nsys.stdin.read()"
    );
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child", "python3", "-c", &script])
        .arg(&setup.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let Ok(mut client) = command.spawn() else {
        return skip(test, "no unshare");
    };
    let mut sent = [0; 5];
    if client.stdout.take().unwrap().read_exact(&mut sent).is_err() {
        client.wait().unwrap();
        return skip(test, "no pid namespace to be had");
    }
    let got = setup.receive(3);
    assert_eq!(values(&got, "who"), ["self", "child", "all"]);
    let numbers = |pid: Pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|l| l.starts_with("NSpid:")).unwrap();
        let words = line.split_ascii_whitespace().skip(1);
        words.map(|w| w.parse().unwrap()).collect::<Vec<u32>>()
    };
    let pids: Vec<Pid> = got.iter().map(|a| a.scope.unwrap().pid).collect();
    assert_eq!(numbers(pids[0]), [pids[0].0, 1]);
    assert_eq!(numbers(pids[1]).len(), 2);
    assert_ne!(pids[1], pids[0]);
    // Root in there, but it does not see what we see: it speaks for itself.
    assert_eq!(pids[2], pids[0]);
    drop(client.stdin.take());
    client.wait().unwrap();
    assert_eq!(setup.stop().1, [("pid_unverifiable", false, 1)]);
}

#[test]
fn hundreds_of_connections_are_served_at_once_and_each_in_order() {
    let setup = start(Limits {
        connections: 2_000,
        connections_per_user: 2_000,
        ..unlimited()
    });
    let (clients, lines) = (300, 40);
    let mut open: Vec<UnixStream> = (0..clients).map(|_| setup.connect()).collect();
    for line in 0..lines {
        for (number, client) in open.iter_mut().enumerate() {
            writeln!(client, r#"{{"labels":{{"c":"{number}","n":"{line}"}}}}"#).unwrap();
        }
    }
    let got = setup.receive(clients * lines);
    let mut next = vec![0; clients];
    for annotation in &got {
        let number = |key| {
            annotation
                .labels
                .get(key)
                .unwrap()
                .parse::<usize>()
                .unwrap()
        };
        assert_eq!(number("n"), next[number("c")]);
        next[number("c")] += 1;
    }
    assert!(got.is_sorted_by_key(|a| a.at));
    assert_eq!(setup.socket.counts().open(), clients as u64);
    let (rest, losses) = setup.stop();
    assert!(rest.is_empty() && losses.is_empty());
    // They are told that nobody listens any more.
    for client in &mut open {
        assert_eq!(client.read(&mut [0; 8]).unwrap_or(0), 0);
    }
}

#[test]
fn a_slow_sender_and_a_half_line_hold_nobody_up() {
    let setup = start(Limits::default());
    let mut slow = setup.connect();
    let mut quick = setup.connect();
    let line = br#"{"labels":{"who":"slow"}}"#;
    for (i, byte) in line.iter().enumerate() {
        slow.write_all(&[*byte]).unwrap();
        writeln!(quick, r#"{{"labels":{{"who":"quick","n":"{i}"}}}}"#).unwrap();
        assert_eq!(values(&setup.receive(1), "n"), [i.to_string()]);
    }
    // The end of the stream ends the line.
    slow.shutdown(Shutdown::Write).unwrap();
    assert_eq!(values(&setup.receive(1), "who"), ["slow"]);
    let mut half = setup.connect();
    half.write_all(br#"{"labels":{"who":"#).unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    // Its connection is closed once the half line has been judged.
    assert_eq!(half.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(setup.stop().1, [("json_syntax", false, 1)]);
}

#[test]
fn a_line_too_long_ends_its_connection_and_no_other() {
    let setup = start(Limits::default());
    let (mut long, mut other) = (setup.connect(), setup.connect());
    let mut bytes = b"{\"labels\":{\"who\":\"before\"}}\n".to_vec();
    bytes.extend(vec![b'x'; 100_000]);
    bytes.extend(b"\n{\"labels\":{\"who\":\"after\"}}\n");
    // The server may be gone before all of it is sent.
    let _ = long.write_all(&bytes);
    assert_eq!(long.read(&mut [0; 8]).unwrap_or(0), 0);
    writeln!(other, r#"{{"labels":{{"who":"other"}}}}"#).unwrap();
    assert_eq!(values(&setup.receive(2), "who"), ["before", "other"]);
    let (rest, losses) = setup.stop();
    assert!(rest.is_empty());
    assert_eq!(
        losses,
        [("line_too_long", false, 1), ("line_too_long", true, 1)]
    );
}

#[test]
fn a_flood_that_nobody_takes_is_counted_and_takes_no_memory() {
    let setup = start(Limits {
        queue_bytes: 256 << 10,
        ..unlimited()
    });
    let sent = 200_000u64;
    let line = br#"{"labels":{"phase":"flood","step":"123456"}}"#;
    let mut chunk = line.to_vec();
    chunk.push(b'\n');
    let chunk = chunk.repeat(1_000);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = setup.connect();
                for _ in 0..sent / 4_000 {
                    client.write_all(&chunk).unwrap();
                }
                client.shutdown(Shutdown::Write).unwrap();
                assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
            });
        }
    });
    let counts = setup.socket.counts();
    let (held, losses) = setup.stop();
    let bytes: usize = held
        .iter()
        .map(|a| size_of::<Annotation>() + a.labels.heap_bytes())
        .sum();
    assert!(bytes <= 256 << 10 && held.len() > 1_000, "{bytes}");
    assert_eq!(counts.taken(), held.len() as u64);
    assert_eq!(losses, [("queue_full", false, sent - held.len() as u64)]);
}

#[test]
fn a_second_has_so_many_lines_of_one_connection() {
    let setup = start(Limits::default());
    let line = "{\"labels\":{\"k\":\"v\"}}\n";
    let mut busy = setup.connect();
    busy.write_all(format!("bad\n\n\n{}", line.repeat(1_500)).as_bytes())
        .unwrap();
    let mut other = setup.connect();
    other.write_all(line.as_bytes()).unwrap();
    let (got, losses) = setup.stop();
    // Whoever stops a machine for a second in the middle of this starts another second.
    let limited = losses.iter().find(|(name, ..)| *name == "rate_limited");
    let limited = limited.map_or(0, |(.., count)| *count);
    assert_eq!(got.len() as u64 + limited, 1_501);
    assert!(limited <= 501, "{limited}");
    assert!(losses.contains(&("json_syntax", false, 1)));
}

#[test]
fn a_user_s_connections_are_limited_and_come_free_again() {
    let setup = start(Limits {
        connections_per_user: 2,
        ..Limits::default()
    });
    let mut taken = [setup.connect(), setup.connect()];
    let mut turned_away = setup.connect();
    assert_eq!(turned_away.read(&mut [0; 8]).unwrap(), 0);
    taken[0].shutdown(Shutdown::Write).unwrap();
    assert_eq!(taken[0].read(&mut [0; 8]).unwrap(), 0);
    let mut next = setup.connect();
    writeln!(next, r#"{{"labels":{{"k":"v"}}}}"#).unwrap();
    setup.receive(1);
    assert_eq!(setup.stop().1, [("too_many_connections_of_user", true, 1)]);
}

#[test]
fn senders_that_are_killed_leave_the_socket_serving() {
    let setup = start(Limits::default());
    for _ in 0..5 {
        let script = format!(
            "{SEND}\nsend('{{\"labels\":{{\"who\":\"victim\"}}}}')\n\
             s.sendall(b'{{\"labels\":')\nprint('sent', flush=True)\nsys.stdin.read()"
        );
        let mut client = python(&script, &setup.path).spawn().unwrap();
        client
            .stdout
            .take()
            .unwrap()
            .read_exact(&mut [0; 5])
            .unwrap();
        // Who is gone before it is accepted is nobody whom the socket can believe.
        setup.receive(1);
        client.kill().unwrap();
        client.wait().unwrap();
    }
    let mut client = setup.connect();
    writeln!(client, r#"{{"labels":{{"who":"survivor"}}}}"#).unwrap();
    assert_eq!(values(&setup.receive(1), "who"), ["survivor"]);
    assert_eq!(setup.stop().1, [("json_syntax", false, 5)]);
}

#[test]
fn what_was_sent_before_the_stop_is_taken() {
    let setup = start(unlimited());
    let mut clients: Vec<UnixStream> = (0..20).map(|_| setup.connect()).collect();
    for client in &mut clients {
        let lines = "{\"labels\":{\"k\":\"v\"}}\n".repeat(500);
        client.write_all(lines.as_bytes()).unwrap();
        client.write_all(br#"{"labels":{"last":"half"#).unwrap();
    }
    let (got, losses) = setup.stop();
    assert_eq!(got.len(), 20 * 500);
    assert!(losses.is_empty(), "{losses:?}");
}

#[test]
fn a_second_recorder_cannot_take_the_place_and_the_first_serves_on() {
    let setup = start(Limits::default());
    let options = SocketOptions {
        path: setup.path.clone(),
        peer_path: None,
        limits: Limits::default(),
    };
    let refused = AnnotationSocket::start(options).map(|_| ());
    assert!(matches!(refused, Err(SocketError::InUse(_))));
    let mut client = setup.connect();
    writeln!(client, r#"{{"labels":{{"k":"v"}}}}"#).unwrap();
    setup.receive(1);
    assert_eq!(setup.stop().1, []);
}

#[test]
fn the_peer_path_is_taken_only_while_nobody_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let options = SocketOptions {
        path: folder.path().join("own/annotate.sock"),
        peer_path: Some(folder.path().join(".peer/annotate/annotate.sock")),
        limits: Limits::default(),
    };
    let peer_path = options.peer_path.clone().unwrap();
    let (socket, receiver) = AnnotationSocket::start(options.clone()).unwrap();
    assert_eq!(socket.paths(), [options.path.clone(), peer_path.clone()]);
    let mut client = UnixStream::connect(&peer_path).unwrap();
    writeln!(client, r#"{{"labels":{{"k":"v"}}}}"#).unwrap();
    let mut got = Vec::new();
    assert_eq!(receiver.drain_timeout(&mut got, PATIENCE), Some(1));
    socket.stop();
    assert!(!folder.path().join(".peer").exists());

    std::fs::create_dir_all(peer_path.parent().unwrap()).unwrap();
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(peer_path.parent().unwrap(), mode).unwrap();
    let _theirs = std::os::unix::net::UnixListener::bind(&peer_path).unwrap();
    let (socket, _receiver) = AnnotationSocket::start(options.clone()).unwrap();
    assert_eq!(socket.paths(), [options.path]);
    assert!(matches!(socket.not_taken(), Some(SocketError::InUse(_))));
    socket.stop();
    assert!(peer_path.exists());
}
