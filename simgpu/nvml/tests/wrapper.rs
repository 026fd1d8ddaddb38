//! `libnvidia-ml.so.1` as `nvml-wrapper`, the usual Rust client, reads it.

#[path = "../../fixtures/testing.rs"]
mod testing;

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::{Duration, Instant},
};

use nvml_wrapper::{
    Nvml, bitmasks::device::ThrottleReasons, enum_wrappers::device::Clock,
    enums::device::UsedGpuMemory,
};
use testing::{Device, check_entry_points, fixture, libraries};

/// Set in the process of its own that a test's checks run in, as the library reads its environment once per process.
const INNER: &str = "WRAPPER_TEST_INNER";

fn is_inner() -> bool {
    std::env::var_os(INNER).is_some()
}

/// Starts the same test again, in a process that uses `device`. `about` is what it is told.
fn in_own_process(test: &str, device: &Device, about: u32) {
    let mut command = device.command(std::env::current_exe().unwrap());
    let output = command
        .args(["--exact", test])
        .env(INNER, about.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "{text}");
}

fn nvml() -> Nvml {
    let library = libraries().join("libnvidia-ml.so.1");
    Nvml::builder()
        .lib_path(library.as_os_str())
        .init()
        .unwrap()
}

#[test]
fn its_entry_points_are_apart_and_begin_with_push() {
    let needed = ["nvmlInit_v2", "nvmlDeviceGetCurrentClocksEventReasons"];
    check_entry_points(&libraries().join("libnvidia-ml.so.1"), &["nvml"], &needed);
}

#[test]
fn an_idle_device_is_described() {
    if !is_inner() {
        return in_own_process("an_idle_device_is_described", &Device::new(), 0);
    }
    let nvml = nvml();
    assert_eq!(nvml.device_count().unwrap(), 1);
    assert_eq!(nvml.sys_driver_version().unwrap(), "575.0.simgpu");
    assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 12090);
    assert!(nvml.device_by_index(1).is_err());
    let device = nvml.device_by_index(0).unwrap();
    assert_eq!(device.name().unwrap(), "simgpu (no real GPU)");
    let uuid = device.uuid().unwrap();
    assert!(uuid.starts_with("GPU-"), "{uuid}");
    assert_eq!(nvml.device_by_uuid(uuid).unwrap().index().unwrap(), 0);
    let pci = device.pci_info().unwrap();
    assert_eq!(pci.bus_id, "00000000:01:00.0");
    assert_eq!(
        nvml.device_by_pci_bus_id(pci.bus_id)
            .unwrap()
            .index()
            .unwrap(),
        0
    );
    let memory = device.memory_info().unwrap();
    assert_eq!((memory.total, memory.used), (24 << 30, 0));
    assert_eq!(memory.free, memory.total);
    assert_eq!(device.utilization_rates().unwrap().gpu, 0);
    assert_eq!(device.running_compute_processes().unwrap(), []);
    assert_eq!(
        device.current_throttle_reasons().unwrap(),
        ThrottleReasons::GPU_IDLE
    );
    assert_eq!(device.clock_info(Clock::Graphics).unwrap(), 210);
    assert_eq!(device.max_clock_info(Clock::SM).unwrap(), 1410);
    device
        .temperature(nvml_wrapper::enum_wrappers::device::TemperatureSensor::Gpu)
        .unwrap();
    assert!(device.power_usage().unwrap() < device.enforced_power_limit().unwrap());
}

#[test]
fn a_busy_throttled_device_is_described_process_by_process() {
    if is_inner() {
        return check_busy_device();
    }
    let device = Device::new();
    let mut holder = device
        .command(fixture("behaviour", "libcudart.so.12"))
        .arg("hold")
        .env("SIMGPU_THROTTLE", "0-1000:2:0x40")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(holder.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "holding\n");
    let test = "a_busy_throttled_device_is_described_process_by_process";
    let outcome = std::panic::catch_unwind(|| in_own_process(test, &device, holder.id()));
    holder.kill().unwrap();
    holder.wait().unwrap();
    outcome.unwrap();
}

fn check_busy_device() {
    let holder: u32 = std::env::var(INNER).unwrap().parse().unwrap();
    let nvml = nvml();
    let device = nvml.device_by_index(0).unwrap();
    assert_eq!(device.memory_info().unwrap().used, 1 << 30);
    let processes = device.running_compute_processes().unwrap();
    assert_eq!(processes.len(), 1);
    assert_eq!(processes[0].pid, holder);
    assert_eq!(processes[0].used_gpu_memory, UsedGpuMemory::Used(1 << 30));
    // The kernel runs for an hour; utilisation is about the second before, so it takes one to get there.
    let begin = Instant::now();
    while device.utilization_rates().unwrap().gpu < 100 {
        assert!(begin.elapsed() < Duration::from_secs(5), "never fully busy");
        std::thread::yield_now();
    }
    let samples = device.process_utilization_stats(None).unwrap();
    assert_eq!((samples[0].pid, samples[0].sm_util), (holder, 100));
    assert_eq!(
        device.current_throttle_reasons().unwrap(),
        ThrottleReasons::HW_THERMAL_SLOWDOWN
    );
    assert_eq!(device.clock_info(Clock::SM).unwrap(), 705);
}
