//! What survives: the recorder killed, the job killed, the disk full, /dev/shm full.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::{Home, Ran, alone, can_trace, skip};
use warptrace_model::Event;
use warptrace_store::Session;
use warptrace_store::fs::RealFs;

/// Arguments that train on simgpu for so long.
fn workload(home: &Home, millis: u64) -> Vec<String> {
    let libraries = home.simgpu();
    let task = serde_json::json!({"train": {
        "workload": {"millis": millis, "cpu": null, "heavy_copies": false, "allocator_storm_every": 0},
        "cudart": libraries.join("libcudart.so.12"), "data": home.dir.path().join("training"),
    }});
    std::fs::create_dir_all(home.dir.path().join("training")).unwrap();
    vec![
        env!("CARGO_BIN_EXE_warptrace").into(),
        "simgpu-workload".into(),
        task.to_string(),
    ]
}

fn with_simgpu(command: &mut Command, home: &Home) {
    command
        .env("LD_LIBRARY_PATH", home.simgpu())
        .env("SIMGPU_SHM", home.dir.path().join("device"));
}

/// Waits until something holds, at most half a minute.
#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "waited in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The session has stored units.
fn has_units(session: &Path) -> bool {
    Session::open(Arc::new(RealFs), session)
        .is_ok_and(|s| s.units(None).is_ok_and(|u| u.len() >= 20))
}

fn child_of(pid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

#[test]
fn a_killed_recorder_leaves_a_session_that_opens_and_a_job_that_runs_on() {
    let _alone = alone();
    for backend in ["record", "trace"] {
        if backend == "trace" && !can_trace("killed_recorder_ebpf") {
            continue;
        }
        let home = Home::new();
        let job = workload(&home, 30_000);
        let mut command = home.command([backend, "--"]);
        with_simgpu(&mut command, &home);
        let mut recorder = command
            .args(&job)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("units are stored", || {
            home.sessions().first().is_some_and(|s| has_units(s))
        });
        let target = child_of(recorder.id()).expect("the job is the recorder's child");
        recorder.kill().unwrap();
        recorder.wait().unwrap();

        let cpu =
            || std::fs::read_to_string(format!("/proc/{target}/schedstat")).unwrap_or_default();
        let before = cpu();
        until("the job has run on", || {
            !cpu().is_empty() && cpu() != before
        });
        kill(Pid::from_raw(target as i32), Signal::SIGKILL).unwrap();

        let answer = home.run(["explain", "--json"]).json();
        assert!(
            answer["profile"].as_array().is_some_and(|p| !p.is_empty()),
            "{backend}: {answer:#}"
        );
        let gaps = answer["gaps"].as_array().unwrap();
        assert!(
            gaps.iter().any(|g| g["code"] == "torn_session"),
            "{backend}: {gaps:#?}"
        );
    }
}

#[test]
fn the_last_moments_of_a_killed_job_are_there() {
    let _alone = alone();
    for backend in ["record", "trace"] {
        if backend == "trace" && !can_trace("killed_job_ebpf") {
            continue;
        }
        let home = Home::new();
        let job = workload(&home, 30_000);
        let mut command = home.command([backend, "--"]);
        with_simgpu(&mut command, &home);
        let recorder = command
            .args(&job)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        until("units are stored", || {
            home.sessions().first().is_some_and(|s| has_units(s))
        });
        let target = child_of(recorder.id()).unwrap();
        let killed = warptrace_capture::clock::boot_now();
        kill(Pid::from_raw(target as i32), Signal::SIGKILL).unwrap();
        let ran = Ran::from(recorder.wait_with_output().unwrap());
        assert_eq!(ran.code, Some(137), "{ran:#?}");

        let session = Session::open(Arc::new(RealFs), &home.sessions()[0]).unwrap();
        let mut stream = session.events(None).unwrap();
        let mut batch = Vec::new();
        let mut last = 0;
        while stream.next_batch(&mut batch) {
            for event in batch.drain(..) {
                if let Event::Call(c) | Event::InFlight(c) = event {
                    last = last.max(c.start.0);
                }
            }
        }
        // A step is some 30 ms and has 40 calls; a loaded machine may stretch it.
        let missing = killed.0.saturating_sub(last);
        assert!(
            missing < 1_000_000_000,
            "{backend}: the last call is {missing} ns before the kill"
        );
    }
}

#[track_caller]
fn drop_counted(answer: &Value, reason: &str) {
    let drops = answer["drops"].as_array().unwrap();
    let counted = drops
        .iter()
        .any(|d| d["reason"] == reason && d["count"].as_u64() > Some(0));
    assert!(counted, "a drop {reason} is shown: {drops:#?}");
}

#[test]
fn a_full_disk_stops_storing_and_the_job_runs_on() {
    let _alone = alone();
    if !nix::unistd::Uid::effective().is_root() {
        return skip("full_disk", "needs root to mount a small tmpfs");
    }
    let home = Home::new();
    let small = home.dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let job = workload(&home, 6_000);
    // In a mount namespace of its own: nothing is left behind, whatever happens.
    let script = format!(
        "mount -t tmpfs -o size=5m tmpfs {} && exec \"$@\"",
        small.display()
    );
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        &script,
        "sh",
        env!("CARGO_BIN_EXE_warptrace"),
        "--data",
    ]);
    command
        .arg(&small)
        .args(["record", "--json", "--", "sh", "-c"]);
    // The job itself fills the disk, then trains.
    command
        .arg(format!(
            "cat /dev/zero > {}/filler 2>/dev/null; exec \"$@\"",
            small.display()
        ))
        .arg("sh")
        .args(&job);
    with_simgpu(&mut command, &home);
    let ran = Ran::from(command.output().unwrap());
    assert_eq!(ran.code, Some(0), "the job ended well: {ran:#?}");
    drop_counted(&ran.json(), "store_failed");
}

#[test]
fn a_full_dev_shm_is_counted_and_the_job_runs_on() {
    let _alone = alone();
    if !nix::unistd::Uid::effective().is_root() {
        return skip("full_dev_shm", "needs root to mount a small tmpfs");
    }
    let home = Home::new();
    let job = workload(&home, 3_000);
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs -o size=128k tmpfs /dev/shm && exec \"$@\"",
        "sh",
    ]);
    command
        .args([env!("CARGO_BIN_EXE_warptrace"), "--data"])
        .arg(home.data())
        .args(["record", "--json", "--"])
        .args(&job);
    with_simgpu(&mut command, &home);
    let ran = Ran::from(command.output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    drop_counted(&ran.json(), "no_ring");
}

#[test]
fn the_second_interrupt_ends_at_once() {
    let _alone = alone();
    if !can_trace("second_interrupt") {
        return;
    }
    let home = Home::new();
    let child = home
        .command(["trace"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    until("the session has begun", || !home.sessions().is_empty());
    // Both are pending before it looks: the second is seen while it stops, or it had stopped by then.
    kill(pid, Signal::SIGINT).unwrap();
    std::thread::sleep(Duration::from_millis(60));
    let _ = kill(pid, Signal::SIGTERM);
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert!(matches!(ran.code, Some(0 | 130)), "{ran:#?}");
    assert_eq!(home.run(["explain"]).code, Some(0), "the session opens");
}
