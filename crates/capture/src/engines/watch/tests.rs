//! The thread against processes that have an engine's command line, and servers that behave badly.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;

/// For what is only waited for when something is broken.
const LONG: Duration = Duration::from_secs(60);

/// A process that calls itself `argv`, and does nothing until it is dropped.
struct Named(Child);

impl Named {
    fn new(argv: &[&str]) -> Named {
        // With arguments that sleep refuses it would end; a shell that reads takes any.
        let mut command = Command::new("/bin/sh");
        command.arg0(argv[0]).args(["-s", "--"]).args(&argv[1..]);
        Named(
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server on a port that the system picks, which gives each connection its answer and closes.
fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::Builder::new().name("engine".to_owned());
    let serve = move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(&socket);
            let mut head = String::new();
            while reader.read_line(&mut head).is_ok_and(|n| n > 2) {}
            let answer = answer(&head);
            // Who asked may be gone.
            let _ = (&socket).write_all(&answer);
            if answer.is_empty() {
                // Says nothing until the other side closes.
                let _ = reader.read_to_end(&mut Vec::new());
            }
        }
    };
    thread.spawn(serve).unwrap();
    port
}

fn ok(body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}

/// The tritonserver needs no words that a shell would mind: `--metrics-port=N` is all.
fn engine(port: u16) -> Named {
    Named::new(&[
        "/opt/tritonserver/bin/tritonserver",
        &format!("--metrics-port={port}"),
    ])
}

fn settings(pids: &[u32]) -> Settings {
    Settings {
        pids: pids.to_vec(),
        interval: Duration::from_millis(200),
        redetect: Duration::from_millis(50),
        redetect_known: Duration::from_millis(50),
        ..Settings::default()
    }
}

/// The first report that `wanted` likes.
#[track_caller]
fn wait<T>(watch: &EngineWatch, wanted: impl Fn(Report) -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    while Instant::now() < deadline {
        if let Some(found) = watch.next(LONG).and_then(&wanted) {
            return found;
        }
    }
    panic!("no such report");
}

fn why(report: Report) -> Option<Unreachable> {
    match report {
        Report::Unreachable { why, .. } => Some(why),
        _ => None,
    }
}

fn body(report: Report) -> Option<String> {
    match report {
        Report::Scraped { body, .. } => Some(String::from_utf8(body).unwrap()),
        _ => None,
    }
}

#[track_caller]
fn unreachable(
    answer: impl Fn(&str) -> Vec<u8> + Send + 'static,
    change: impl Fn(&mut Settings),
) -> Unreachable {
    let process = engine(serve(answer));
    let mut settings = Settings {
        interval: Duration::from_secs(60),
        ..settings(&[process.pid()])
    };
    change(&mut settings);
    let watch = EngineWatch::start(settings).unwrap();
    let why = wait(&watch, why);
    assert_eq!(watch.counts().scraped, 0);
    why
}

#[test]
fn an_engine_is_found_asked_again_and_again_and_missed_when_it_ends() {
    let port = serve(|head| {
        assert!(head.starts_with("GET /metrics HTTP/1.1\r\n"), "{head}");
        assert!(
            head.to_ascii_lowercase()
                .contains("accept: text/plain; version=0.0.4")
        );
        ok("nv_inference_count 1\n")
    });
    let process = engine(port);
    let pid = process.pid();
    let mut watch = EngineWatch::start(settings(&[pid])).unwrap();
    let found = wait(&watch, |report| match report {
        Report::Found(engine) => Some(engine),
        _ => None,
    });
    assert_eq!(found.incarnation.pid, Pid(pid));
    assert_eq!(found.command.via, Via::Http { ports: vec![port] });
    assert_eq!(watch.engine_of(found.incarnation).as_ref(), Some(&found));
    let recycled = Incarnation {
        start_ticks: found.incarnation.start_ticks + 1,
        ..found.incarnation
    };
    assert_eq!(watch.engine_of(recycled), None);
    let (own, _) = proc::incarnation(std::process::id()).unwrap();
    assert_eq!(watch.engine_of(own), None);
    for _ in 0..2 {
        assert_eq!(wait(&watch, body), "nv_inference_count 1\n");
    }
    drop(process);
    let gone = wait(&watch, |report| match report {
        Report::Gone(incarnation) => Some(incarnation),
        _ => None,
    });
    assert_eq!(gone, found.incarnation);
    watch.stop();
    let counts = watch.counts();
    assert!(counts.scraped >= 2 && counts.scans >= 2, "{counts:?}");
}

#[test]
fn a_process_that_becomes_an_engine_is_found_at_a_later_scan() {
    let port = serve(|_| ok("x 1\n"));
    // The same process, by exec, under a link whose name is an engine's.
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("tritonserver");
    std::os::unix::fs::symlink("/bin/sh", &link).unwrap();
    let script = format!(
        "read line; exec {} -s -- --metrics-port={port}",
        link.display()
    );
    let mut process = Command::new("/bin/sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let watch = EngineWatch::start(settings(&[process.id()])).unwrap();
    while watch.counts().scans < 2 {
        std::thread::yield_now();
    }
    assert_eq!(watch.poll(), []);
    process.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(wait(&watch, body), "x 1\n");
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn where_nothing_listens_nobody_is_asked() {
    // A port that was free a moment ago.
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let process = engine(port);
    let watch = EngineWatch::start(settings(&[process.pid()])).unwrap();
    assert_eq!(wait(&watch, why), Unreachable::NotListening(port));
    while watch.counts().failed.first().is_none_or(|(_, n)| *n < 3) {
        std::thread::yield_now();
    }
    // It is counted each time, and said once.
    assert_eq!(watch.poll(), []);
}

#[test]
fn an_error_a_redirect_and_a_page_that_is_too_large_are_no_answers() {
    let status =
        |line: &'static str| move |_: &str| format!("HTTP/1.1 {line}\r\n\r\n").into_bytes();
    let no = unreachable(status("500 No\r\nContent-Length: 0"), |_| {});
    assert_eq!(no, Unreachable::Status(500));
    let moved = "302 Found\r\nLocation: http://169.254.169.254/latest\r\nContent-Length: 0";
    assert_eq!(unreachable(status(moved), |_| {}), Unreachable::Status(302));
    let large = unreachable(|_| ok(&"x".repeat(2000)), |s| s.body_bytes = 1000);
    assert_eq!(large, Unreachable::TooLarge(1000));
    let garbage = unreachable(|_| b"\0\xff\r\n\r\n".to_vec(), |_| {});
    assert_eq!(garbage.name(), "failed");
}

#[test]
fn an_engine_that_says_nothing_or_never_ends_costs_its_time_and_no_more() {
    let silent = unreachable(|_| Vec::new(), |s| s.interval = Duration::from_millis(200));
    assert_eq!(silent, Unreachable::TimedOut(Duration::from_millis(100)));
    let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx".to_vec();
    let short = unreachable(move |_| cut.clone(), |_| {});
    assert!(matches!(short, Unreachable::Failed(_)), "{short:?}");
}

#[test]
fn of_two_engines_with_one_port_the_older_is_asked() {
    let port = serve(|_| ok("x 1\n"));
    let older = engine(port);
    // Start times are in ticks of 10 ms; by pid where they are equal, and pids may wrap: so wait for a tick.
    let start = |p: &Named| proc::incarnation(p.pid()).unwrap().0.start_ticks;
    let mut younger = engine(port);
    while start(&younger) == start(&older) {
        younger = engine(port);
    }
    let watch = EngineWatch::start(settings(&[older.pid(), younger.pid()])).unwrap();
    assert_eq!(wait(&watch, why), Unreachable::Taken(port, older.pid()));
}

#[test]
fn metrics_that_are_switched_off_are_said_to_be() {
    let process = Named::new(&["tritonserver", "--allow-metrics=false"]);
    let watch = EngineWatch::start(settings(&[process.pid()])).unwrap();
    assert_eq!(wait(&watch, why), Unreachable::Off("--allow-metrics=false"));
}

#[test]
fn an_engine_that_lets_its_time_run_out_is_asked_half_as_often_each_time() {
    let interval = Duration::from_secs(10);
    let pauses: Vec<u64> = (1..7).map(|n| pause(interval, n).as_secs()).collect();
    assert_eq!(pauses, [20, 40, 80, 160, 300, 300]);
    assert_eq!(pause(interval, u32::MAX), LONGEST_PAUSE);
    let hour = Duration::from_secs(3600);
    assert_eq!(pause(hour, 1), hour);
}

#[test]
fn large_answers_wait_one_at_a_time() {
    let large = "x".repeat(900_000);
    let process = engine(serve(move |_| ok(&large)));
    let mut watch = EngineWatch::start(Settings {
        interval: Duration::from_millis(100),
        body_bytes: 1 << 20,
        ..settings(&[process.pid()])
    })
    .unwrap();
    let deadline = Instant::now() + LONG;
    while watch.counts().dropped == 0 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    watch.stop();
    let large = watch.poll().into_iter().filter_map(body).count();
    assert_eq!(large, 1);
    assert_eq!(watch.shared.waiting_bytes.load(Ordering::Relaxed), 0);
}

#[test]
fn reports_that_nobody_takes_are_dropped_and_counted() {
    let process = engine(serve(|_| ok("x 1\n")));
    let mut watch = EngineWatch::start(Settings {
        interval: Duration::from_millis(20),
        ..settings(&[process.pid()])
    })
    .unwrap();
    let deadline = Instant::now() + LONG;
    while watch.counts().dropped == 0 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert!(watch.counts().dropped > 0);
    watch.stop();
    assert_eq!(watch.poll().len(), QUEUE);
}

/// A process in a network namespace of its own, with a server in it.
#[test]
fn an_engine_in_another_network_namespace_is_asked_in_there() {
    const NAME: &str = "an_engine_in_another_network_namespace_is_asked_in_there";
    let script = "import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'inside 1\\n')
    def log_message(self, *_): pass
import fcntl, socket, struct
# SIOCSIFFLAGS: lo up and running.
fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh', b'lo', 0x1 | 0x40))
http.server.HTTPServer(('127.0.0.1', 18002), Handler).serve_forever()";
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("tritonserver");
    let python = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output();
    let Some(python) = python.ok().filter(|o| o.status.success()) else {
        return skip(NAME, "no python3");
    };
    std::os::unix::fs::symlink(String::from_utf8_lossy(&python.stdout).trim(), &link).unwrap();
    let process = Command::new("unshare")
        .arg("--net")
        .arg(&link)
        .args(["-c", script, "--metrics-port=18002"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut process = Named(process);
    let pid = process.pid();
    let inside = || NetNamespace::of(pid).ok() != NetNamespace::own().ok() && is_link(pid, &link);
    let deadline = Instant::now() + LONG;
    let mut ended = None;
    while ended.is_none() && Instant::now() < deadline && !inside() {
        ended = process.0.try_wait().unwrap();
        std::thread::yield_now();
    }
    if ended.is_some() {
        return skip(
            NAME,
            "no network namespace to be had (CAP_SYS_ADMIN is missing)",
        );
    }
    // The same port outside is another program's; whether we get it or not, it must not be what is asked.
    let outside = TcpListener::bind((Ipv4Addr::LOCALHOST, 18002));
    let watch = EngineWatch::start(Settings {
        interval: Duration::from_secs(2),
        ..settings(&[pid])
    })
    .unwrap();
    assert_eq!(wait(&watch, body), "inside 1\n");
    drop(outside);
}

fn is_link(pid: u32, link: &Path) -> bool {
    proc::arguments(pid)
        .first()
        .is_some_and(|a| Path::new(a) == link)
}

/// Says why `test` cannot run here, where CI counts it.
fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/skipped");
    let _ = std::fs::create_dir_all(&folder);
    let _ = std::fs::write(folder.join(format!("{test}.txt")), reason);
}
