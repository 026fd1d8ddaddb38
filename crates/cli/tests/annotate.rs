//! A job that says what it is doing, from its first word to the account of each step.

mod support;

use std::path::Path;
use std::process::Command;

use support::{Home, alone, can_trace, skip};

/// A training loop of 90 steps that names its steps by `WRITER`, and in step 70 takes and gives back memory 400 times.
const JOB: &str = r#"
import os, sys
sys.path.insert(0, sys.argv[1])
from train import Dim3, Runtime
WRITER
runtime = Runtime("libcudart.so.12")
runtime.cudaSetDevice(0)
kernel, stream = runtime.kernel("layer"), runtime.stream()
held = runtime.allocate(192 << 20)
for step in range(90):
    say(step)
    for _ in range(10):
        runtime.cudaLaunchKernel(kernel, Dim3(2000, 1, 1), Dim3(256, 1, 1), None, 0, stream)
    if step == 70:
        for _ in range(400):
            runtime.cudaFree(runtime.allocate(64 << 20))
    runtime.cudaStreamSynchronize(stream)
say(90)
"#;

/// By the socket itself, as the protocol is.
const BY_HAND: &str = r#"
import json, socket
connection = socket.socket(socket.AF_UNIX)
connection.connect(os.environ["WARPTRACE_ANNOTATE_SOCKET"])
def say(step):
    line = {"pid": os.getpid(), "labels": {"step": str(step), "epoch": str(step // 60)}}
    connection.sendall(json.dumps(line).encode() + b"\n")
"#;

/// By the package that others publish, which knows nothing of us.
const BY_PACKAGE: &str = r#"
from ingero_annotate import AnnotationWriter
writer = AnnotationWriter()
assert writer.active, "nobody listens where the package looks"
def say(step):
    writer.write({"step": str(step), "epoch": str(step // 60)}, pid=os.getpid())
"#;

/// Records the job; says why not when it cannot run here.
fn record(home: &Home, how: &str, writer: &str) -> Result<(), String> {
    let libraries = home.simgpu();
    let script = home.dir.path().join("job.py");
    std::fs::write(&script, JOB.replace("WRITER", writer)).unwrap();
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../simgpu/workload/python");
    let mut command = home.command([how, "--annotate", "--quiet", "--", "python3"]);
    command
        .arg(&script)
        .arg(modules)
        .env("LD_LIBRARY_PATH", &libraries)
        .env("HOME", home.dir.path())
        .env("SIMGPU_SHM", home.dir.path().join("simgpu.shm"));
    let out = command.output().unwrap();
    if out.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&out.stderr).into_owned())
}

fn the_slow_step_is_named(home: &Home) {
    let answer = home.run(["explain", "--by-step", "--json"]).json();
    assert_eq!(answer["schema"], "warptrace.by_unit/v1");
    let units = answer["units"].as_array().unwrap();
    assert_eq!(
        units.len(),
        90,
        "the last instant begins a step that nothing ends"
    );
    let step = units.iter().find(|u| u["value"] == "70").unwrap();
    assert_eq!(step["slow"], true, "{step:#}");
    assert_eq!(step["labels"]["epoch"], "1");
    let part = |category: &str| {
        let parts = step["parts"].as_array().unwrap();
        let part = parts.iter().find(|p| p["category"] == category);
        part.map_or(0, |p| p["ns"].as_u64().unwrap())
    };
    let allocator = part("allocator");
    assert!(allocator > 10_000_000, "400 allocations: {step:#}");
    // Whoever else is on this machine may hold the job up for longer than what was done to it; the answer then says so.
    let undisturbed = allocator > part("run_queue_wait");
    if undisturbed {
        assert_eq!(step["parts"][0]["category"], "allocator", "{step:#}");
    }
    let parts: u64 = step["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["ns"].as_u64().unwrap())
        .sum();
    assert_eq!(parts, step["dur_ns"].as_u64().unwrap());
    let memory = &step["memory"];
    assert!(
        memory["allocated_bytes"].as_u64().unwrap() >= 192 << 20,
        "{memory}"
    );
    assert!(
        memory["device_used_bytes"].as_u64().unwrap() >= 192 << 20,
        "{memory}"
    );
    let findings = home.run(["explain", "--json", "--label", "epoch=1"]).json();
    if undisturbed {
        let finding = &findings["findings"][0];
        assert_eq!(finding["cause"], "allocator", "{findings:#}");
        assert_eq!(finding["units"]["worst"], 70);
        assert_eq!(step["findings"][0], finding["id"]);
    }
    let shown = home.run(["explain", "--by-step"]);
    assert!(
        shown.out.contains("step 70") && shown.out.contains("allocator +"),
        "{}",
        shown.out
    );
}

fn python(test: &str, module: &str) -> bool {
    let found = Command::new("python3")
        .args(["-c", &format!("import {module}")])
        .output();
    let found = found.is_ok_and(|out| out.status.success());
    if !found {
        skip(test, &format!("python3 has no {module}"));
    }
    found
}

#[test]
fn a_step_that_a_job_names_is_accounted_for_from_inside() {
    let _machine = alone();
    if !python(
        "a_step_that_a_job_names_is_accounted_for_from_inside",
        "ctypes",
    ) {
        return;
    }
    let home = Home::new();
    record(&home, "record", BY_HAND).unwrap();
    the_slow_step_is_named(&home);
}

#[test]
fn a_step_that_a_job_names_is_accounted_for_from_outside() {
    let _machine = alone();
    let test = "a_step_that_a_job_names_is_accounted_for_from_outside";
    if !can_trace(test) || !python(test, "ctypes") {
        return;
    }
    let home = Home::new();
    record(&home, "trace", BY_HAND).unwrap();
    the_slow_step_is_named(&home);
}

#[test]
fn the_published_writer_is_heard_where_it_looks() {
    let _machine = alone();
    let test = "the_published_writer_is_heard_where_it_looks";
    if !python(test, "ingero_annotate") {
        return;
    }
    let home = Home::new();
    record(&home, "record", BY_PACKAGE).unwrap();
    the_slow_step_is_named(&home);
}

/// Loads a telemetry folder as the package does: the type of each event, and the highest level of the process.
const LOAD: &str = r#"
import json, sys
from stormlog.telemetry import load_telemetry_sessions
events = [event for session in load_telemetry_sessions(sys.argv[1]) for event in session.events]
levels = [event.allocator_allocated_bytes for event in events]
print(json.dumps({"types": sorted({event.event_type for event in events}), "highest": max(levels)}))
"#;

#[test]
fn the_package_that_defines_the_telemetry_loads_our_samples() {
    let _machine = alone();
    let test = "the_package_that_defines_the_telemetry_loads_our_samples";
    if !python(test, "stormlog.telemetry") {
        return;
    }
    let home = Home::new();
    record(&home, "record", BY_HAND).unwrap();
    let folder = home.dir.path().join("telemetry");
    let folder = folder.to_str().unwrap();
    let ran = home.run(["export", "--format", "memory-telemetry", "-o", folder]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    let again = home.run(["export", "--format", "memory-telemetry", "-o", folder]);
    assert_eq!(again.code, Some(2), "{again:#?}");
    let loaded = Command::new("python3")
        .args(["-c", LOAD, folder])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&loaded.stdout).into_owned();
    assert!(
        loaded.status.success(),
        "{}",
        String::from_utf8_lossy(&loaded.stderr)
    );
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(said["types"].to_string().contains("start"), "{said}");
    // Between two samples: 192 MiB that stay, and 64 MiB that come and go in one step.
    assert_eq!(said["highest"], 256 << 20, "{said}");
    let shown = home.run(["memory"]);
    assert!(
        shown.code == Some(0) && shown.out.contains("256"),
        "{shown:#?}"
    );
}
