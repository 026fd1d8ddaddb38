//! Initialisation, devices, contexts, errors.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use simgpu_device::{CUDA_VERSION, DEVICE_NAME, Status, device_uuid, status::describe};

use crate::state::*;

export!(cuInit => (flags: c_uint) {
    if flags != 0 {
        return Err(Status::InvalidValue);
    }
    initialise()
});

export!(cuDriverGetVersion => (version: *mut c_int) {
    put(version, CUDA_VERSION)
});

export!(cuGetErrorString => (error: CUresult, text: *mut *const c_char) {
    let known = describe(error);
    put(text, known.map_or(std::ptr::null(), |(_, text)| text.as_ptr()))?;
    known.map(drop).ok_or(Status::InvalidValue)
});

export!(cuGetErrorName => (error: CUresult, name: *mut *const c_char) {
    let known = describe(error);
    put(name, known.map_or(std::ptr::null(), |(name, _)| name.as_ptr()))?;
    known.map(drop).ok_or(Status::InvalidValue)
});

// ---- Devices ----

fn check(device: CUdevice) -> simgpu_device::driver::Result<usize> {
    let device = device_index(device)?;
    with(|driver| {
        if device < driver.machine().device_count() {
            Ok(device)
        } else {
            Err(Status::InvalidDevice)
        }
    })
}

/// Writes a text with its end, cut to `length` bytes.
///
/// # Safety
/// `to` is null or has room for `length` bytes.
unsafe fn put_text(
    to: *mut c_char,
    length: c_int,
    text: &str,
) -> simgpu_device::driver::Result<()> {
    let Some(room) = usize::try_from(length).ok().and_then(|l| l.checked_sub(1)) else {
        return Err(Status::InvalidValue);
    };
    if to.is_null() {
        return Err(Status::InvalidValue);
    }
    let kept = text.len().min(room);
    // SAFETY: `kept + 1 <= length` bytes, which the caller promises.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, kept);
        to.add(kept).write(0);
    }
    Ok(())
}

export!(cuDeviceGet => (device: *mut CUdevice, ordinal: c_int) {
    check(ordinal)?;
    put(device, ordinal)
});

export!(cuDeviceGetCount => (count: *mut c_int) {
    let devices = with(|driver| Ok(driver.machine().device_count()))?;
    put(count, devices as c_int)
});

export!(cuDeviceGetName => (name: *mut c_char, length: c_int, device: CUdevice) {
    check(device)?;
    put_text(name, length, DEVICE_NAME)
});

export!(cuDeviceGetUuid => (uuid: *mut [u8; 16], device: CUdevice) {
    put(uuid, device_uuid(check(device)?))
});

export!(cuDeviceGetUuid_v2 => (uuid: *mut [u8; 16], device: CUdevice) {
    let index = check(device)?;
    put(uuid, device_uuid(index))
});

export!(cuDeviceTotalMem_v2 => (bytes: *mut usize, device: CUdevice) {
    let device = check(device)?;
    let total = with(|driver| Ok(driver.machine().total_bytes(device)))?;
    put(bytes, total as usize)
});

export!(cuDeviceComputeCapability => (major: *mut c_int, minor: *mut c_int, device: CUdevice) {
    check(device)?;
    put(major, 8)?;
    put(minor, 0)
});

export!(cuDeviceGetPCIBusId => (text: *mut c_char, length: c_int, device: CUdevice) {
    let device = check(device)?;
    put_text(text, length, &format!("0000:{:02X}:00.0", device + 1))
});

export!(cuDeviceGetByPCIBusId => (device: *mut CUdevice, text: *const c_char) {
    if text.is_null() {
        return Err(Status::InvalidValue);
    }
    let text = CStr::from_ptr(text).to_str().map_err(|_| Status::InvalidValue)?;
    let bus = text.split(':').nth_back(1).and_then(|bus| c_int::from_str_radix(bus, 16).ok());
    let number = bus.ok_or(Status::InvalidValue)? - 1;
    check(number)?;
    put(device, number)
});

export!(cuDeviceCanAccessPeer => (can: *mut c_int, device: CUdevice, peer: CUdevice) {
    check(device)?;
    check(peer)?;
    put(can, c_int::from(device != peer))
});

/// The attributes that programs ask for, by the numbers of `CUdevice_attribute`. They describe a device of compute capability 8.0 in
/// shape only. Others are 0, as for a feature that a device lacks.
fn attribute(number: c_int, device: usize) -> c_int {
    match number {
        1..=3 => 1024,             // threads per block; block dimension x, y
        4 => 64,                   // block dimension z
        5 => 0x7fff_ffff,          // grid dimension x
        6 | 7 => 65535,            // grid dimension y, z
        8 => 48 << 10,             // shared memory per block
        9 => 64 << 10,             // constant memory
        10 => 32,                  // warp size
        11 => 0x7fff_ffff,         // pitch
        12 => 65536,               // registers per block
        13 => 1_410_000,           // clock, kHz
        14 => 512,                 // texture alignment
        15 => 1,                   // overlap of copies and kernels
        16 => 108,                 // multiprocessors
        19 => 1,                   // can map host memory
        31 => 1,                   // concurrent kernels
        33 => device as c_int + 1, // PCI bus
        36 => 1_215_000,           // memory clock, kHz
        37 => 5120,                // bus width, bits
        38 => 40 << 20,            // L2 cache
        39 => 2048,                // threads per multiprocessor
        40 => 2,                   // copy engines
        41 => 1,                   // unified addressing
        75 => 8,                   // compute capability, major
        76 => 0,                   // and minor
        78 => 1,                   // stream priorities
        81 => 164 << 10,           // shared memory per multiprocessor
        82 => 65536,               // registers per multiprocessor
        83 => 1,                   // managed memory
        95 => 1,                   // cooperative launch
        97 => 163 << 10,           // shared memory per block by opt-in
        102 => 1,                  // virtual memory management
        106 => 32,                 // blocks per multiprocessor
        115 => 1,                  // memory pools
        _ => 0,
    }
}

export!(cuDeviceGetAttribute => (value: *mut c_int, number: c_int, device: CUdevice) {
    let device = check(device)?;
    if number <= 0 {
        return Err(Status::InvalidValue);
    }
    put(value, attribute(number, device))
});

// ---- Primary contexts ----

export!(cuDevicePrimaryCtxRetain => (context: *mut Opaque, device: CUdevice) {
    let device = device_index(device)?;
    let (handle, wait) = with(|driver| driver.retain_primary(device))?;
    wait.run();
    put(context, handle)
});

export!(cuDevicePrimaryCtxRelease_v2 => (device: CUdevice) {
    let device = device_index(device)?;
    with(|driver| driver.release_primary(device))
});

export!(cuDevicePrimaryCtxReset_v2 => (device: CUdevice) {
    let device = device_index(device)?;
    with(|driver| driver.reset_primary(device))
});

export!(cuDevicePrimaryCtxSetFlags_v2 => (device: CUdevice, flags: c_uint) {
    let device = device_index(device)?;
    with(|driver| driver.set_primary_flags(device, flags))
});

export!(cuDevicePrimaryCtxGetState => (device: CUdevice, flags: *mut c_uint, active: *mut c_int) {
    let device = device_index(device)?;
    let (set, held) = with(|driver| driver.primary_state(device))?;
    put(flags, set)?;
    put(active, c_int::from(held))
});

// ---- Contexts ----

export!(cuCtxCreate_v2 => (context: *mut Opaque, flags: c_uint, device: CUdevice) {
    let device = device_index(device)?;
    let (handle, wait) = with(|driver| driver.create_own_context(device, flags))?;
    wait.run();
    push_current(handle)?;
    put(context, handle)
});

export!(cuCtxDestroy_v2 => (context: Opaque) {
    with(|driver| driver.destroy_context(context))?;
    if current_or_none() == context {
        set_current(0);
    }
    Ok(())
});

export!(cuCtxPushCurrent_v2 => (context: Opaque) {
    with(|driver| driver.context(context).map(drop))?;
    push_current(context)
});

export!(cuCtxPopCurrent_v2 => (context: *mut Opaque) {
    let old = pop_current()?;
    put_optional(context, old);
    Ok(())
});

export!(cuCtxSetCurrent => (context: Opaque) {
    if context != 0 {
        with(|driver| driver.context(context).map(drop))?;
    }
    set_current(context);
    Ok(())
});

export!(cuCtxGetCurrent => (context: *mut Opaque) {
    with(|_| Ok(()))?;
    put(context, current_or_none())
});

export!(cuCtxGetDevice => (device: *mut CUdevice) {
    let (index, _) = with(|driver| driver.context(current()?))?;
    put(device, index as CUdevice)
});

export!(cuCtxGetFlags => (flags: *mut c_uint) {
    let (_, set) = with(|driver| driver.context(current()?))?;
    put(flags, set)
});

export!(cuCtxSetFlags => (flags: c_uint) {
    with(|driver| driver.set_context_flags(current()?, flags))
});

export!(cuCtxGetId => (context: Opaque, id: *mut u64) {
    let handle = if context == 0 { current()? } else { context };
    with(|driver| driver.context(handle).map(drop))?;
    put(id, handle)
});

export!(cuCtxGetApiVersion => (context: Opaque, version: *mut c_uint) {
    let handle = if context == 0 { current()? } else { context };
    with(|driver| driver.context(handle).map(drop))?;
    put(version, 3020)
});

export!(cuCtxGetStreamPriorityRange => (least: *mut c_int, greatest: *mut c_int) {
    current()?;
    put_optional(least, 0);
    put_optional(greatest, -5);
    Ok(())
});

export!(cuCtxSynchronize => () {
    with_wait(|driver, context| driver.synchronize_context(context))
});

export!(cuProfilerStart => () {
    current().map(drop)
});

export!(cuProfilerStop => () {
    with(|driver| driver.context(current()?).map(drop))
});

/// Not in any header: what the runtime asks for. 0 means that there is no such table, and callers go without.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetExportTable(
    table: *mut *const c_void,
    _id: *const c_void,
) -> CUresult {
    entry_point("cuGetExportTable");
    // SAFETY: null, or valid for writing a pointer, by cuda.h.
    unsafe { put_optional(table, std::ptr::null()) };
    Status::NotFound.code()
}
