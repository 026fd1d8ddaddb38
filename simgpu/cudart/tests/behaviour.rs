//! The runtime and the driver as C programs use them: the cases of `behaviour.c`, and several processes on one device.

#[path = "../../fixtures/testing.rs"]
mod testing;

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::Stdio,
    sync::OnceLock,
};

use testing::{Device, fixture, libraries};

fn behaviour() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| fixture("behaviour", "libcudart.so.12"))
}

#[track_caller]
fn case(name: &str, variables: &[(&str, &str)]) -> String {
    Device::new().run(behaviour(), &[name], variables)
}

#[test]
fn failed_calls_return_the_codes_of_cuda_and_leave_them_as_last_error() {
    case("errors", &[]);
}

#[test]
fn memory_is_counted_and_small_allocations_keep_their_bytes() {
    case("memory", &[]);
}

#[test]
fn streams_and_events_are_ordered_and_timed() {
    case("order", &[]);
}

#[test]
fn a_copy_from_pinned_memory_lets_the_host_go_on() {
    case("pinned_copy_goes_on", &[("SIMGPU_H2D_GBPS", "0.001")]);
}

#[test]
fn a_copy_from_pageable_memory_keeps_the_host() {
    case("pageable_copy_keeps_the_host", &[]);
}

#[test]
fn captured_work_runs_when_its_graph_is_launched() {
    case("graphs", &[]);
}

#[test]
fn a_child_forked_after_initialisation_gets_an_error_and_no_deadlock() {
    case("forked_child_has_no_device", &[]);
}

#[test]
fn waits_spin_or_block_as_flags_and_environment_say() {
    let share =
        |name, variables: &[(&str, &str)]| -> u32 { case(name, variables).trim().parse().unwrap() };
    let blocking = [
        share("cpu_of_a_wait", &[("SIMGPU_SYNC", "block")]),
        share("cpu_of_a_blocking_wait", &[]),
    ];
    // A thread that sleeps for 200 ms uses next to nothing, whatever else the machine does.
    assert!(blocking.iter().all(|share| *share < 20), "{blocking:?}");
    // One that spins gets what others leave it: more than that, if only a little.
    let spinning = [
        share("cpu_of_a_wait", &[]),
        share("cpu_of_a_blocking_wait", &[("SIMGPU_SYNC", "spin")]),
    ];
    assert!(spinning.iter().all(|share| *share > 20), "{spinning:?}");
}

#[test]
fn processes_share_one_device_and_a_killed_one_leaves_it_free() {
    let device = Device::new();
    let mut holder = device
        .command(behaviour())
        .arg("hold")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(holder.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "holding\n");
    device.run(behaviour(), &["wait_behind"], &[]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    device.run(behaviour(), &["alone"], &[]);
}

#[test]
fn a_program_linked_to_the_runtime_runs_with_threads_forks_and_a_second_copy() {
    let plt = fixture("plt", "libcudart.so.12");
    let copy = libraries().join("copy");
    std::fs::create_dir_all(&copy).unwrap();
    let copy = copy.join("libcudart.so.12");
    std::fs::copy(libraries().join("libcudart.so.12"), &copy).unwrap();
    let device = Device::new();
    let copy = copy.to_str().unwrap();
    device.run(&plt, &["-n", "3", "-t", "4", "-f", "-d", copy], &[]);
}

#[test]
fn a_program_that_knows_the_driver_only_runs() {
    let program = fixture("static_driver", "libcuda.so.1");
    Device::new().run(&program, &["-n", "3"], &[]);
}

#[test]
fn a_setting_that_means_nothing_is_named_on_stderr_and_no_device_is_given() {
    let device = Device::new();
    let mut command = device.command(behaviour());
    let output = command
        .arg("memory")
        .env("SIMGPU_DEVICES", "many")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("SIMGPU_DEVICES=\"many\" is not a number from 1 to 8"),
        "{errors}"
    );
    assert_eq!(output.status.code(), Some(1));
}
