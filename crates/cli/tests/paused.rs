//! `record --paused`: a job that is recorded only where it asks for it, or where a person does.

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use support::{Home, alone};

/// A training loop whose steps wait for the device once each. `BODY` is what it does.
const JOB: &str = r#"
import os, socket, sys, threading
sys.path.insert(0, sys.argv[1])
from train import Dim3, Runtime

class Capture:
    "As the protocol is, by hand."
    def __enter__(self):
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(os.environ["WARPTRACE_CAPTURE_SOCKET"])
        self.ask(b"resume/1\n", b"resumed\n")
    def __exit__(self, *_):
        self.ask(b"pause/1\n", b"paused\n")
        self.connection.close()
    def ask(self, line, want):
        self.connection.sendall(line)
        got = self.connection.recv(64)
        assert got == want, got

runtime = Runtime("libcudart.so.12")
runtime.cudaSetDevice(0)
kernel, stream = runtime.kernel("layer"), runtime.stream()
def steps(n):
    for _ in range(n):
        for _ in range(10):
            runtime.cudaLaunchKernel(kernel, Dim3(200, 1, 1), Dim3(256, 1, 1), None, 0, stream)
        runtime.cudaStreamSynchronize(stream)
BODY
"#;

fn job(home: &Home, args: &[&str], body: &str) -> Command {
    let libraries = home.simgpu();
    let script = home.dir.path().join("job.py");
    std::fs::write(&script, JOB.replace("BODY", body)).unwrap();
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../simgpu/workload/python");
    let mut command = home.command(args);
    command
        .args(["--", "python3"])
        .arg(&script)
        .arg(modules)
        .env("LD_LIBRARY_PATH", &libraries)
        .env("HOME", home.dir.path())
        .env("XDG_RUNTIME_DIR", home.dir.path().join("run"))
        .env("SIMGPU_SHM", home.dir.path().join("simgpu.shm"));
    std::fs::create_dir_all(home.dir.path().join("run")).unwrap();
    command
}

/// Calls of `op` in the newest session, and milliseconds for which capture was off.
fn recorded(home: &Home, op: &str) -> (u64, Option<u64>) {
    let answer = home.run(["explain", "--json"]).json();
    let ops = answer["ops"].as_array().unwrap().iter();
    let calls = ops
        .filter(|o| o["op"] == op)
        .map(|o| o["count"].as_u64().unwrap())
        .sum();
    let gaps = answer["gaps"].as_array().unwrap();
    let paused = gaps.iter().find(|g| g["code"] == "capture_paused");
    (calls, paused.map(|g| g["count"].as_u64().unwrap()))
}

#[test]
fn only_the_calls_of_the_blocks_are_recorded_and_the_rest_is_a_gap_with_its_length() {
    let _machine = alone();
    let home = Home::new();
    let body = "import time\nsteps(30)\nwith Capture(): steps(40)\ntime.sleep(0.3)\nsteps(30)\nwith Capture(): steps(5)\nsteps(7)";
    let out = job(&home, &["record", "--paused", "--quiet"], body).output();
    let out = out.unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let (waits, paused) = recorded(&home, "cudaStreamSync");
    assert_eq!(waits, 45);
    assert_eq!(recorded(&home, "cudaLaunchKernel").0, 450);
    assert!(paused.unwrap() >= 300, "{paused:?} ms");
    let text = home.run(["explain"]).out;
    assert!(text.contains("capture was switched off ("), "{text}");
}

#[test]
fn units_that_reach_into_a_stretch_without_capture_are_not_judged() {
    let _machine = alone();
    let home = Home::new();
    // A long stretch without capture in the middle of what would be one interval between two waits.
    let body = "import time\nwith Capture(): steps(60)\ntime.sleep(1)\nwith Capture(): steps(60)";
    let out = job(&home, &["record", "--paused", "--quiet"], body).output();
    assert!(out.unwrap().status.success());
    assert_eq!(recorded(&home, "cudaStreamSync").0, 120);
    let answer = home.run(["explain", "--json"]).json();
    let gaps = answer["gaps"].as_array().unwrap();
    let left_out = |g: &&serde_json::Value| {
        g["code"] == "units_left_out" && g["detail"].as_str().unwrap().contains("switched off")
    };
    let left_out = gaps
        .iter()
        .find(left_out)
        .expect("the unit around the pause");
    assert!(left_out["count"].as_u64().unwrap() >= 1);
    let findings = answer["findings"].as_array().unwrap().iter();
    let excess = findings.map(|f| f["excess_ns"].as_u64().unwrap_or(0));
    assert!(excess.max().unwrap_or(0) < 900_000_000, "{answer}");
}

#[test]
fn a_job_that_never_asks_is_told_how() {
    let _machine = alone();
    let home = Home::new();
    let out = job(&home, &["record", "--paused"], "steps(20)").output();
    let out = out.unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{text}");
    assert!(text.contains("capture is off under --paused"), "{text}");
    assert_eq!(recorded(&home, "cudaStreamSync").0, 0);
}

#[test]
fn a_recorder_that_is_not_paused_says_that_it_records() {
    let _machine = alone();
    let home = Home::new();
    let body = "c = Capture()\nc.connection = socket.socket(socket.AF_UNIX)\n\
        c.connection.connect(os.environ['WARPTRACE_CAPTURE_SOCKET'])\nc.ask(b'resume/1\\n', b'on\\n')\nsteps(20)";
    let out = job(&home, &["record", "--quiet"], body).output().unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    assert_eq!(recorded(&home, "cudaStreamSync"), (20, None));
}

#[test]
fn a_process_that_is_killed_in_a_block_lets_go() {
    let _machine = alone();
    let home = Home::new();
    let body = r#"
import signal
child = os.fork()
if child == 0:
    Capture().__enter__()
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
# Whether it is off by now is for the recorder to say.
probe = socket.socket(socket.AF_UNIX)
probe.connect(os.environ["WARPTRACE_CAPTURE_SOCKET"])
while True:
    probe.sendall(b"pause/1\n")
    if probe.recv(64) == b"paused\n": break
steps(20)
with Capture(): steps(3)
"#;
    let out = job(&home, &["record", "--paused", "--quiet"], body).output();
    let out = out.unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    assert_eq!(recorded(&home, "cudaStreamSync").0, 3);
}

#[test]
fn a_person_switches_a_paused_recorder_on() {
    let _machine = alone();
    let home = Home::new();
    // It goes on when recording is on, which it sees by the answer to letting go of nothing.
    let body = r#"
steps(20)
print("ready", flush=True)
probe = socket.socket(socket.AF_UNIX)
probe.connect(os.environ["WARPTRACE_CAPTURE_SOCKET"])
def until(want):
    while True:
        probe.sendall(b"pause/1\n")
        if probe.recv(64) == want: break
until(b"on\n")
steps(6)
print("done", flush=True)
until(b"paused\n")
steps(20)
"#;
    let mut job = job(&home, &["record", "--paused", "--quiet"], body)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(job.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "ready");
    let mut resume = home.command(["resume"]);
    resume.env("XDG_RUNTIME_DIR", home.dir.path().join("run"));
    let several = resume.args(["--recorder", "1"]).output().unwrap();
    assert_eq!(several.status.code(), Some(2), "that one is no recorder");
    let pid = job.id().to_string();
    let mut resume = home.command(["resume", "--recorder", &pid]);
    resume.env("XDG_RUNTIME_DIR", home.dir.path().join("run"));
    let mut person = resume.stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "done");
    // As Ctrl-C does.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(person.id() as i32),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    assert!(person.wait().unwrap().success());
    assert!(job.wait().unwrap().success());
    assert_eq!(recorded(&home, "cudaStreamSync").0, 6);
}
