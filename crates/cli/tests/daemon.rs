//! The recorder as a service: as its unit runs it, a user of its own with four capabilities, and what it tells the service manager.

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use support::{Home, can_trace, skip};

/// So long anything may take on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(120);
/// A user that nobody is.
const SERVICE: u32 = 64_999;

fn unit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/systemd/warptrace.service")
}

/// The value of each line of the unit that sets `name`.
fn settings(name: &str) -> Vec<String> {
    let unit = std::fs::read_to_string(unit()).unwrap();
    let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_owned());
    unit.lines().filter_map(value).collect()
}

fn is_there(program: &str) -> bool {
    let version = Command::new(program).arg("--version").output();
    version.is_ok_and(|said| said.status.success())
}

/// Kept from outliving a test that fails.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Service {
    fn signal(&self, signal: &str) {
        kill(signal, &self.0.id().to_string());
    }
}

fn kill(signal: &str, pid: &str) {
    let sent = Command::new("kill").args([signal, pid]).status();
    assert!(sent.unwrap().success());
}

/// The service manager's side.
struct Manager {
    said: Receiver<String>,
    place: PathBuf,
}

impl Manager {
    fn new(folder: &Path) -> Manager {
        let place = folder.join("notify");
        let socket = UnixDatagram::bind(&place).unwrap();
        std::fs::set_permissions(&place, PermissionsExt::from_mode(0o777)).unwrap();
        let (tell, said) = sync_channel(65_536);
        // The kernel keeps ten datagrams: they are taken as they come.
        let listen = move || {
            let mut datagram = [0; 4096];
            while let Ok(n) = socket.recv(&mut datagram) {
                let said = String::from_utf8_lossy(&datagram[..n]).into_owned();
                if tell.send(said).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("manager".to_owned());
        thread.spawn(listen).unwrap();
        Manager { said, place }
    }

    /// What is said next that `wanted` is in.
    fn hear(&self, wanted: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let said = self.said.recv_timeout(left);
            let said = said.unwrap_or_else(|e| panic!("nobody said {wanted}: {e}"));
            if said.contains(wanted) {
                return said;
            }
        }
    }
}

/// `command` as the unit would run it: as a user of its own, with the unit's capabilities and no way to more.
fn confined(home: &Home, args: &[&str]) -> Command {
    let capabilities = settings("AmbientCapabilities").remove(0).to_lowercase();
    let capabilities = capabilities
        .split(' ')
        .map(|name| name.replace("cap_", ",+"));
    let capabilities = format!("-all{}", capabilities.collect::<String>());
    let plain = home.command(args);
    let mut command = Command::new("setpriv");
    let user = SERVICE.to_string();
    command.args([
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "--no-new-privs",
    ]);
    for set in ["--inh-caps", "--ambient-caps", "--bounding-set"] {
        command.args([set, &capabilities]);
    }
    command.arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let own = home.dir.path().join("service");
    std::fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(SERVICE), Some(SERVICE)).unwrap();
    command
        .env("WARPTRACE_DATA", own.join("data"))
        .env("XDG_RUNTIME_DIR", own.join("run"))
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Serves on simgpu until it is dropped, each 100th decode step ten times as long.
fn server(home: &Home) -> Service {
    let libraries = home.simgpu();
    let serve = serde_json::json!({"serve": {
        "millis": 600_000, "cudart": libraries.join("libcudart.so.12"), "socket": null, "slow_decode_every": 100,
    }});
    let mut command = home.command(["simgpu-workload", &serve.to_string()]);
    command
        .env("LD_LIBRARY_PATH", &libraries)
        .env("SIMGPU_SHM", home.dir.path().join("device"))
        .stdout(Stdio::null());
    Service(command.spawn().unwrap())
}

fn ask(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    format!("{} {}", &head[9..12], body.trim())
}

#[test]
fn with_four_capabilities_it_finds_outliers_and_tells_its_manager_what_it_does() {
    if !can_trace("daemon") {
        return;
    }
    if !is_there("setpriv") {
        return skip("daemon", "no setpriv (package util-linux)");
    }
    let home = Home::new();
    let manager = Manager::new(home.dir.path());
    let config = home.dir.path().join("config.yaml");
    std::fs::write(&config, "node: first\n").unwrap();
    let told = home.dir.path().join("service/run/outliers.sock");
    let args = [
        "trace",
        "--inference",
        "--inference-pause-on-severity=off",
        "--prometheus=127.0.0.1:0",
        "--verbose",
        "--config",
        config.to_str().unwrap(),
        "--outliers",
        told.to_str().unwrap(),
    ];
    let mut command = confined(&home, &args);
    let began = Instant::now();
    let mut service = Service(
        command
            .env("NOTIFY_SOCKET", &manager.place)
            .env("WATCHDOG_USEC", "600000")
            .spawn()
            .unwrap(),
    );
    let stderr = service.0.stderr.take().unwrap();
    let mut log = BufReader::new(stderr).lines().map(Result::unwrap);
    let address = log
        .find_map(|line| Some(line.split_once("address=")?.1.trim().to_owned()))
        .expect("it says where it is asked");
    let rest = std::thread::Builder::new().name("log".to_owned());
    let rest = rest.spawn(move || log.collect::<Vec<_>>()).unwrap();
    let ready = manager.hear("READY=1");
    assert!(
        ready.contains("STATUS=recording all CUDA processes"),
        "{ready}"
    );
    assert_eq!(ask(&address, "/healthz"), "200 ok");
    assert_eq!(ask(&address, "/readyz"), "200 ready");
    manager.hear("WATCHDOG=1");

    let server = server(&home);
    let mut outliers = BufReader::new(UnixStream::connect(&told).unwrap());
    outliers.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    while !line.contains("\"bucket\":\"3x\"") {
        line.clear();
        assert!(outliers.read_line(&mut line).unwrap() > 0 && began.elapsed() < PATIENCE);
    }
    assert!(line.contains("\"node_id\":\"first\""), "{line}");

    // The settings are read again; those that take effect do so without a consumer losing its place.
    std::fs::write(&config, "node: second\nstore: {keep: 3}\nring_size: 1MiB\n").unwrap();
    service.signal("-HUP");
    assert!(manager.hear("RELOADING=1").contains("MONOTONIC_USEC="));
    let ready = manager.hear("READY=1");
    assert!(
        ready.contains("new settings: node, store.keep; a restart is needed for ring_size"),
        "{ready}"
    );
    while !line.contains("\"node_id\":\"second\"") {
        line.clear();
        assert!(outliers.read_line(&mut line).unwrap() > 0 && began.elapsed() < PATIENCE);
    }
    // Settings that cannot be used change nothing.
    std::fs::write(&config, "noed: third\n").unwrap();
    service.signal("-HUP");
    let ready = manager.hear("READY=1");
    assert!(
        ready.contains("stay as they are") && ready.contains("did you mean node"),
        "{ready}"
    );
    assert_eq!(ask(&address, "/healthz"), "200 ok");

    service.signal("-TERM");
    manager.hear("STOPPING=1");
    assert_eq!(service.0.wait().unwrap().code(), Some(0));
    drop(server);
    let log = rest.join().unwrap();
    assert!(
        log.iter()
            .any(|line| line.contains("ERROR") && line.contains("noed")),
        "{log:#?}"
    );
    let sessions = home.dir.path().join("service/data/sessions");
    let session = std::fs::read_dir(&sessions)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let tables = std::fs::read_dir(&session).unwrap().flatten();
    let files = tables.filter_map(|table| Some(std::fs::read_dir(table.path()).ok()?.flatten()));
    let names: Vec<_> = files.flatten().map(|file| file.file_name()).collect();
    let ends = |end: &str| {
        names
            .iter()
            .filter(|name| name.to_string_lossy().ends_with(end))
            .count()
    };
    assert!(
        ends(".parquet") > 0 && ends(".arrows") == 0,
        "sealed: {names:?}"
    );
}

#[test]
fn the_unit_is_well_formed_and_exposes_little() {
    if !is_there("systemd-analyze") {
        return skip("unit", "no systemd-analyze (package systemd)");
    }
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(unit()).unwrap();
    // As if it were installed.
    let text = text.replace("/usr/bin/warptrace", env!("CARGO_BIN_EXE_warptrace"));
    let installed = folder.path().join("warptrace.service");
    std::fs::write(&installed, text).unwrap();
    for options in [
        &["verify"][..],
        &["security", "--offline=true", "--threshold=30"],
    ] {
        let mut command = Command::new("systemd-analyze");
        let said = command
            .arg("--no-pager")
            .args(options)
            .arg(&installed)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&said.stderr);
        let ours = text
            .lines()
            .filter(|line| line.contains("warptrace.service"));
        let ours: Vec<_> = ours.collect();
        assert!(
            said.status.success() && ours.is_empty(),
            "{options:?}: {said:#?}"
        );
    }
    assert_eq!(settings("NoNewPrivileges"), ["yes"]);
    assert_eq!(
        settings("CapabilityBoundingSet"),
        settings("AmbientCapabilities")
    );
}

/// The system calls that a line of the unit's filter means.
fn expand(word: &str, calls: &mut BTreeSet<String>) {
    if !word.starts_with('@') {
        calls.insert(word.to_owned());
        return;
    }
    let said = Command::new("systemd-analyze")
        .args(["--no-pager", "syscall-filter", word])
        .output();
    let said = said.unwrap();
    assert!(said.status.success(), "{said:?}");
    let text = String::from_utf8(said.stdout).unwrap();
    // The set's own name comes first.
    let words = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    for word in words.skip(1) {
        expand(word, calls);
    }
}

#[test]
fn every_system_call_of_the_recorder_is_in_the_unit_s_filter() {
    if !can_trace("system_calls") {
        return;
    }
    for (program, package) in [("systemd-analyze", "systemd"), ("strace", "strace")] {
        if !is_there(program) {
            return skip("system_calls", &format!("no {program} (package {package})"));
        }
    }
    let mut allowed = BTreeSet::new();
    for line in settings("SystemCallFilter") {
        let (takes_away, words) = match line.strip_prefix('~') {
            Some(words) => (true, words.to_owned()),
            None => (false, line),
        };
        let mut calls = BTreeSet::new();
        words.split(' ').for_each(|word| expand(word, &mut calls));
        match takes_away {
            true => allowed.retain(|call| !calls.contains(call)),
            false => allowed.extend(calls),
        }
    }

    let home = Home::new();
    let manager = Manager::new(home.dir.path());
    let told = home.dir.path().join("told/outliers.sock");
    let made = home.dir.path().join("calls");
    // Port 9 (discard) of this machine: nobody is there.
    let plain = home.command([
        "trace",
        "--inference",
        "--annotate",
        "--prometheus=127.0.0.1:0",
    ]);
    let mut command = Command::new("strace");
    command
        .args(["-f", "-c", "-o"])
        .arg(&made)
        .arg(plain.get_program())
        .args(plain.get_args());
    command.args([
        "--inference-pause-on-severity=off",
        "--otlp=http://127.0.0.1:9",
        "--outliers",
    ]);
    let log = home.dir.path().join("log");
    command.arg(&told).arg("--log").arg(&log);
    let mut strace = Service(
        command
            .env("WARPTRACE_DATA", home.data())
            .env("XDG_RUNTIME_DIR", home.dir.path())
            .env("WARPTRACE_ALERT_WEBHOOK_URL", "http://127.0.0.1:9/")
            .env("NOTIFY_SOCKET", &manager.place)
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    manager.hear("READY=1");
    let server = server(&home);
    let mut outliers = BufReader::new(UnixStream::connect(&told).unwrap());
    outliers.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    assert!(outliers.read_line(&mut line).unwrap() > 0);
    let children = format!("/proc/{0}/task/{0}/children", strace.0.id());
    let recorder = std::fs::read_to_string(children).unwrap();
    kill("-HUP", recorder.trim());
    manager.hear("RELOADING=1");
    kill("-TERM", recorder.trim());
    assert!(strace.0.wait().unwrap().success());
    drop(server);

    let table = std::fs::read_to_string(made).unwrap();
    let rows = table
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_digit() || c == ' '));
    let calls = rows.filter_map(|row| row.split_whitespace().last());
    let calls: BTreeSet<_> = calls
        .filter(|call| !["syscall", "total"].contains(call))
        .collect();
    assert!(
        calls.contains("bpf") && calls.contains("perf_event_open"),
        "{table}"
    );
    let outside: Vec<_> = calls
        .iter()
        .filter(|call| !allowed.contains(**call))
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
}
