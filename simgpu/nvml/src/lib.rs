//! `libnvidia-ml.so.1` of simgpu: NVML over [`simgpu_device`], for those who look at the device and do not use it.
//!
//! It opens the shared file of the device (`SIMGPU_SHM`) as an onlooker. Memory, utilisation, processes, clocks and throttle reasons are
//! those of the model. Temperature and power follow utilisation by a straight line and mean nothing else.
//!
//! Utilisation is the busy share of the last second, in steps of 100 ms.
#![expect(unsafe_code, reason = "a C ABI")]
#![allow(
    non_snake_case,
    unreachable_pub,
    clippy::missing_safety_doc,
    reason = "the names, and the contracts, are those of nvml.h"
)]

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_ulonglong},
    sync::{Mutex, OnceLock, PoisonError},
};

use simgpu_device::{
    CUDA_VERSION, Config, DEVICE_NAME, DRIVER_VERSION, Machine, boot_ns, device_uuid,
    machine::{BUCKET_NANOS, ProcessUsage},
};

/// `nvmlReturn_t`.
type Return = c_int;
type Result<T> = std::result::Result<T, Return>;
/// `nvmlDevice_t`: a pointer that nobody may look behind.
type Device = u64;

const UNINITIALIZED: Return = 1;
const INVALID_ARGUMENT: Return = 2;
const NOT_SUPPORTED: Return = 3;
const NOT_FOUND: Return = 6;
const INSUFFICIENT_SIZE: Return = 7;
const DRIVER_NOT_LOADED: Return = 9;

/// What the device runs at, MHz: with nothing to do; when it works; its memory.
const IDLE_MHZ: u64 = 210;
const BASE_MHZ: u64 = 1410;
const MEMORY_MHZ: u64 = 1215;
/// `nvmlClocksEventReasonGpuIdle`, and the two thermal ones.
const REASON_IDLE: u64 = 0x1;
const REASONS_THERMAL: u64 = 0x20 | 0x40;

/// Opened once and kept: a mapping is never undone.
static MACHINE: OnceLock<Machine> = OnceLock::new();
/// How often it was initialised without being shut down.
static USERS: Mutex<u32> = Mutex::new(0);

fn machine() -> Result<&'static Machine> {
    if *USERS.lock().unwrap_or_else(PoisonError::into_inner) == 0 {
        return Err(UNINITIALIZED);
    }
    MACHINE.get().ok_or(UNINITIALIZED)
}

fn index(machine: &Machine, device: Device) -> Result<usize> {
    let number = (device / HANDLE_STEP)
        .checked_sub(1)
        .ok_or(INVALID_ARGUMENT)? as usize;
    if !device.is_multiple_of(HANDLE_STEP) || number >= machine.device_count() {
        return Err(INVALID_ARGUMENT);
    }
    Ok(number)
}
const HANDLE_STEP: u64 = 0x1000;

fn handle(machine: &Machine, number: usize) -> Result<Device> {
    if number >= machine.device_count() {
        return Err(INVALID_ARGUMENT);
    }
    Ok((number as u64 + 1) * HANDLE_STEP)
}

/// Writes a result where the caller wants it.
///
/// # Safety
/// `to` is null, or valid for writing a `T`.
unsafe fn put<T>(to: *mut T, value: T) -> Result<()> {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: by the caller's promise, and not null.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// Writes a text and its end; too long is an error, as in NVML.
///
/// # Safety
/// `to` is null or has room for `length` bytes.
unsafe fn put_text(to: *mut c_char, length: c_uint, text: &str) -> Result<()> {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: `text.len() + 1 <= length` bytes, which the caller promises.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}

/// Makes entry points whose body is a [`Result<()>`] with `?`.
macro_rules! export {
    ($($name:ident => ($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> Return {
            // No two entry points are the same code, so that none becomes another one's alias.
            std::hint::black_box(stringify!($name).as_ptr());
            let body = || -> Result<()> {
                #[allow(unused_unsafe, reason = "not every body needs it")]
                // SAFETY: the caller follows nvml.h: each pointer is null, or valid for what the call reads and writes there.
                unsafe { $body }
            };
            body().err().unwrap_or(0)
        }
    )*};
}

// ---- The library ----

fn initialise() -> Result<()> {
    if MACHINE.get().is_none() {
        let complain = |error: &dyn std::fmt::Display| {
            // As in libcuda: only the person who set it up can repair this.
            eprintln!("simgpu: {error}");
            DRIVER_NOT_LOADED
        };
        let config = Config::from_env().map_err(|e| complain(&e))?;
        let opened = Machine::observe(&config).map_err(|e| complain(&e))?;
        // Another thread may have been quicker; both are the same.
        let _ = MACHINE.set(opened);
    }
    *USERS.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    Ok(())
}

export! {
    nvmlInit_v2 => () { initialise() }

    nvmlInit => () {
        initialise()
    }

    nvmlInitWithFlags => (_flags: c_uint) {
        initialise()
    }

    nvmlShutdown => () {
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        *users = users.checked_sub(1).ok_or(UNINITIALIZED)?;
        Ok(())
    }

    nvmlSystemGetDriverVersion => (text: *mut c_char, length: c_uint) {
        machine()?;
        put_text(text, length, DRIVER_VERSION)
    }

    nvmlSystemGetNVMLVersion => (text: *mut c_char, length: c_uint) {
        machine()?;
        put_text(text, length, "12.575.0.simgpu")
    }

    nvmlSystemGetCudaDriverVersion_v2 => (version: *mut c_int) {
        put(version, CUDA_VERSION)
    }

    nvmlSystemGetCudaDriverVersion => (version: *mut c_int) {
        machine()?;
        put(version, CUDA_VERSION)
    }

    nvmlSystemGetProcessName => (pid: c_uint, text: *mut c_char, length: c_uint) {
        machine()?;
        let name = std::fs::read_link(format!("/proc/{pid}/exe")).map_err(|_| NOT_FOUND)?;
        put_text(text, length, &name.to_string_lossy())
    }
}

/// The text of a return code. The texts are our own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlErrorString(code: Return) -> *const c_char {
    let text: &CStr = match code {
        0 => c"Success",
        UNINITIALIZED => c"Uninitialized",
        INVALID_ARGUMENT => c"Invalid Argument",
        NOT_SUPPORTED => c"Not Supported",
        NOT_FOUND => c"Not Found",
        INSUFFICIENT_SIZE => c"Insufficient Size",
        DRIVER_NOT_LOADED => c"Driver Not Loaded",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

// ---- Which device ----

/// `nvmlPciInfo_t`.
#[repr(C)]
pub struct PciInfo {
    legacy: [u8; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    ids: c_uint,
    subsystem: c_uint,
    text: [u8; 32],
}

fn uuid_text(device: usize) -> String {
    let hex: String = device_uuid(device)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    format!("GPU-{}", parts.join("-"))
}

fn pci(device: usize) -> PciInfo {
    fn text<const N: usize>(text: &str) -> [u8; N] {
        let mut bytes = [0; N];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        bytes
    }
    let bus = device as c_uint + 1;
    PciInfo {
        legacy: text(&format!("0000:{bus:02X}:00.0")),
        domain: 0,
        bus,
        device: 0,
        ids: 0,
        subsystem: 0,
        text: text(&format!("00000000:{bus:02X}:00.0")),
    }
}

export! {
    nvmlDeviceGetCount_v2 => (count: *mut c_uint) {
        put(count, machine()?.device_count() as c_uint)
    }

    nvmlDeviceGetCount => (count: *mut c_uint) {
        let devices = machine()?.device_count();
        put(count, devices as c_uint)
    }

    nvmlDeviceGetHandleByIndex_v2 => (number: c_uint, device: *mut Device) {
        put(device, handle(machine()?, number as usize)?)
    }

    nvmlDeviceGetHandleByIndex => (number: c_uint, device: *mut Device) {
        let found = handle(machine()?, number as usize)?;
        put(device, found)
    }

    nvmlDeviceGetHandleByUUID => (text: *const c_char, device: *mut Device) {
        let machine = machine()?;
        if text.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        let text = CStr::from_ptr(text).to_string_lossy();
        let number = (0..machine.device_count()).find(|n| uuid_text(*n) == text);
        put(device, handle(machine, number.ok_or(NOT_FOUND)?)?)
    }

    nvmlDeviceGetHandleByPciBusId_v2 => (text: *const c_char, device: *mut Device) {
        let machine = machine()?;
        if text.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        let text = CStr::from_ptr(text).to_string_lossy();
        let bus = text.split(':').nth_back(1).and_then(|bus| usize::from_str_radix(bus, 16).ok());
        let number = bus.and_then(|bus| bus.checked_sub(1)).ok_or(NOT_FOUND)?;
        put(device, handle(machine, number).map_err(|_| NOT_FOUND)?)
    }

    nvmlDeviceGetIndex => (device: Device, number: *mut c_uint) {
        put(number, index(machine()?, device)? as c_uint)
    }

    nvmlDeviceGetMinorNumber => (device: Device, number: *mut c_uint) {
        let found = index(machine()?, device)?;
        put(number, found as c_uint)
    }

    nvmlDeviceGetName => (device: Device, text: *mut c_char, length: c_uint) {
        index(machine()?, device)?;
        put_text(text, length, DEVICE_NAME)
    }

    nvmlDeviceGetUUID => (device: Device, text: *mut c_char, length: c_uint) {
        let number = index(machine()?, device)?;
        put_text(text, length, &uuid_text(number))
    }

    nvmlDeviceGetPciInfo_v3 => (device: Device, info: *mut PciInfo) {
        put(info, pci(index(machine()?, device)?))
    }

    nvmlDeviceGetCudaComputeCapability => (device: Device, major: *mut c_int, minor: *mut c_int) {
        index(machine()?, device)?;
        put(major, 8)?;
        put(minor, 0)
    }

    nvmlDeviceGetMigMode => (device: Device, _current: *mut c_uint, _pending: *mut c_uint) {
        index(machine()?, device)?;
        Err(NOT_SUPPORTED)
    }
}

// ---- Memory ----

/// `nvmlMemory_t`.
#[repr(C)]
pub struct Memory {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// `nvmlMemory_v2_t`.
#[repr(C)]
pub struct MemoryV2 {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

const MEMORY_V2: c_uint = size_of::<MemoryV2>() as c_uint | 2 << 24;

export! {
    nvmlDeviceGetMemoryInfo => (device: Device, memory: *mut Memory) {
        let machine = machine()?;
        let device = index(machine, device)?;
        let (total, free) = (machine.total_bytes(device), machine.free_bytes(device));
        put(memory, Memory { total, free, used: total - free })
    }

    nvmlDeviceGetMemoryInfo_v2 => (device: Device, memory: *mut MemoryV2) {
        let machine = machine()?;
        let device = index(machine, device)?;
        let to = memory.as_mut().ok_or(INVALID_ARGUMENT)?;
        if to.version != MEMORY_V2 {
            // NVML_ERROR_ARGUMENT_VERSION_MISMATCH
            return Err(25);
        }
        let (total, free) = (machine.total_bytes(device), machine.free_bytes(device));
        *to = MemoryV2 { version: MEMORY_V2, total, reserved: 0, free, used: total - free };
        Ok(())
    }
}

// ---- Load ----

/// `nvmlUtilization_t`.
#[repr(C)]
pub struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

/// A second, which utilisation is about.
const WINDOW: u64 = 10 * BUCKET_NANOS;

/// What each process used in the last whole pieces that `window` ns hold; and their length.
fn recent(machine: &Machine, device: usize, window: u64) -> (Vec<ProcessUsage>, u64) {
    let to = boot_ns() / BUCKET_NANOS * BUCKET_NANOS;
    let window = (window / BUCKET_NANOS).clamp(1, 50) * BUCKET_NANOS;
    (machine.usage(device, to.saturating_sub(window), to), window)
}

fn percent(nanos: u64, window: u64) -> c_uint {
    (nanos * 100 / window).min(100) as c_uint
}

fn utilization(machine: &Machine, device: usize) -> Utilization {
    let (processes, window) = recent(machine, device, WINDOW);
    Utilization {
        gpu: percent(processes.iter().map(|p| p.compute_nanos).sum(), window),
        memory: percent(processes.iter().map(|p| p.copy_nanos).sum(), window),
    }
}

/// `nvmlProcessInfo_v1_t`.
#[repr(C)]
pub struct ProcessV1 {
    pid: c_uint,
    bytes: c_ulonglong,
}

/// `nvmlProcessInfo_v2_t`, which is `nvmlProcessInfo_t`.
#[repr(C)]
pub struct Process {
    pid: c_uint,
    bytes: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// `nvmlProcessUtilizationSample_t`.
#[repr(C)]
pub struct ProcessSample {
    pid: c_uint,
    /// Microseconds of the Unix clock.
    time: c_ulonglong,
    gpu: c_uint,
    memory: c_uint,
    encoder: c_uint,
    decoder: c_uint,
}

/// Fills a caller's list: `count` is its room, and then how many there are.
///
/// # Safety
/// `count` is null or valid; `list` is null or has room for as many as `count` says.
unsafe fn put_list<T>(list: *mut T, count: *mut c_uint, items: Vec<T>) -> Result<()> {
    // SAFETY: by the caller's promise.
    unsafe {
        let room = count.as_mut().ok_or(INVALID_ARGUMENT)?;
        let fits = items.len() <= *room as usize;
        *room = items.len() as c_uint;
        if items.is_empty() {
            return Ok(());
        }
        if !fits || list.is_null() {
            return Err(INSUFFICIENT_SIZE);
        }
        for (offset, item) in items.into_iter().enumerate() {
            list.add(offset).write_unaligned(item);
        }
    }
    Ok(())
}

fn processes(device: Device) -> Result<Vec<Process>> {
    let machine = machine()?;
    let device = index(machine, device)?;
    let (usage, _) = recent(machine, device, BUCKET_NANOS);
    let process = |p: &ProcessUsage| Process {
        pid: p.pid,
        bytes: p.memory_bytes,
        gpu_instance: c_uint::MAX,
        compute_instance: c_uint::MAX,
    };
    Ok(usage.iter().map(process).collect())
}

fn unix_micros() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_micros() as u64)
}

export! {
    nvmlDeviceGetUtilizationRates => (device: Device, to: *mut Utilization) {
        let machine = machine()?;
        put(to, utilization(machine, index(machine, device)?))
    }

    nvmlDeviceGetComputeRunningProcesses_v3 => (device: Device, count: *mut c_uint, list: *mut Process) {
        put_list(list, count, processes(device)?)
    }

    nvmlDeviceGetComputeRunningProcesses_v2 => (device: Device, count: *mut c_uint, list: *mut Process) {
        let all = processes(device)?;
        put_list(list, count, all)
    }

    nvmlDeviceGetComputeRunningProcesses => (device: Device, count: *mut c_uint, list: *mut ProcessV1) {
        let all = processes(device)?.into_iter().map(|p| ProcessV1 { pid: p.pid, bytes: p.bytes });
        put_list(list, count, all.collect())
    }

    nvmlDeviceGetGraphicsRunningProcesses_v3 => (device: Device, count: *mut c_uint, list: *mut Process) {
        index(machine()?, device)?;
        put_list(list, count, Vec::new())
    }

    nvmlDeviceGetMPSComputeRunningProcesses_v3 => (device: Device, count: *mut c_uint, _list: *mut Process) {
        index(machine()?, device)?;
        put(count, 0)
    }

    nvmlDeviceGetProcessUtilization => (
        device: Device,
        list: *mut ProcessSample,
        count: *mut c_uint,
        last_seen: c_ulonglong,
    ) {
        let machine = machine()?;
        let device = index(machine, device)?;
        let now = unix_micros();
        // Since the caller's last sample; the last second when it has none.
        let since = if last_seen == 0 { WINDOW } else { now.saturating_sub(last_seen).saturating_mul(1000) };
        let (usage, window) = recent(machine, device, since);
        let sample = |p: &ProcessUsage| ProcessSample {
            pid: p.pid,
            time: now,
            gpu: percent(p.compute_nanos, window),
            memory: percent(p.copy_nanos, window),
            encoder: 0,
            decoder: 0,
        };
        let samples: Vec<ProcessSample> = usage.iter().map(sample).collect();
        if samples.is_empty() {
            put(count, 0)?;
            return Err(NOT_FOUND);
        }
        put_list(list, count, samples)
    }
}

// ---- Clocks, throttling, heat ----

/// Clock of the multiprocessors in MHz, and why it is not the base one.
fn clock(machine: &Machine, device: usize) -> (u64, u64) {
    let throttle = machine.throttle(device, boot_ns());
    if utilization(machine, device).gpu == 0 {
        return (IDLE_MHZ, throttle.reasons | REASON_IDLE);
    }
    (BASE_MHZ * 1000 / throttle.factor_milli, throttle.reasons)
}

fn clock_of(device: Device, kind: c_int) -> Result<c_uint> {
    let machine = machine()?;
    let device = index(machine, device)?;
    match kind {
        0 | 1 => Ok(clock(machine, device).0 as c_uint),
        2 => Ok(MEMORY_MHZ as c_uint),
        3 => Ok(BASE_MHZ as c_uint),
        _ => Err(INVALID_ARGUMENT),
    }
}

fn highest_clock(device: Device, kind: c_int) -> Result<c_uint> {
    index(machine()?, device)?;
    match kind {
        0 | 1 | 3 => Ok(BASE_MHZ as c_uint),
        2 => Ok(MEMORY_MHZ as c_uint),
        _ => Err(INVALID_ARGUMENT),
    }
}

/// All reasons that a schedule can give, and idle.
const REASONS: u64 = 0x1ff;

export! {
    nvmlDeviceGetClockInfo => (device: Device, kind: c_int, mhz: *mut c_uint) {
        put(mhz, clock_of(device, kind)?)
    }

    nvmlDeviceGetClock => (device: Device, kind: c_int, id: c_int, mhz: *mut c_uint) {
        match id {
            0 => put(mhz, clock_of(device, kind)?),
            1..=3 => put(mhz, highest_clock(device, kind)?),
            _ => Err(INVALID_ARGUMENT),
        }
    }

    nvmlDeviceGetMaxClockInfo => (device: Device, kind: c_int, mhz: *mut c_uint) {
        put(mhz, highest_clock(device, kind)?)
    }

    nvmlDeviceGetApplicationsClock => (device: Device, kind: c_int, mhz: *mut c_uint) {
        let highest = highest_clock(device, kind)?;
        put(mhz, highest)
    }

    nvmlDeviceGetCurrentClocksThrottleReasons => (device: Device, reasons: *mut c_ulonglong) {
        let machine = machine()?;
        put(reasons, clock(machine, index(machine, device)?).1)
    }

    nvmlDeviceGetCurrentClocksEventReasons => (device: Device, reasons: *mut c_ulonglong) {
        let machine = machine()?;
        let device = index(machine, device)?;
        put(reasons, clock(machine, device).1)
    }

    nvmlDeviceGetSupportedClocksThrottleReasons => (device: Device, reasons: *mut c_ulonglong) {
        index(machine()?, device)?;
        put(reasons, REASONS)
    }

    nvmlDeviceGetSupportedClocksEventReasons => (device: Device, reasons: *mut c_ulonglong) {
        let known = index(machine()?, device).map(|_| REASONS)?;
        put(reasons, known)
    }

    nvmlDeviceGetPerformanceState => (device: Device, state: *mut c_int) {
        let machine = machine()?;
        let busy = utilization(machine, index(machine, device)?).gpu > 0;
        put(state, if busy { 0 } else { 8 })
    }

    nvmlDeviceGetTemperature => (device: Device, sensor: c_int, celsius: *mut c_uint) {
        let machine = machine()?;
        let device = index(machine, device)?;
        if sensor != 0 {
            return Err(INVALID_ARGUMENT);
        }
        let hot = clock(machine, device).1 & REASONS_THERMAL != 0;
        let by_load = 35 + utilization(machine, device).gpu * 40 / 100;
        put(celsius, if hot { 92 } else { by_load })
    }

    nvmlDeviceGetPowerUsage => (device: Device, milliwatts: *mut c_uint) {
        let machine = machine()?;
        let load = utilization(machine, index(machine, device)?).gpu;
        put(milliwatts, 60_000 + load * 3_400)
    }

    nvmlDeviceGetEnforcedPowerLimit => (device: Device, milliwatts: *mut c_uint) {
        index(machine()?, device)?;
        put(milliwatts, 400_000)
    }
}
