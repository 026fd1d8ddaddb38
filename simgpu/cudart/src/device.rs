//! Devices, versions, errors.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use crate::{
    driver::{VERSION, driver},
    launch::forget_loaded,
    state::*,
};

export!(cudaRuntimeGetVersion => (version: *mut c_int) {
    put(version, VERSION)
});

// As the real one: without a driver the version is 0, and that is not an error.
export!(cudaDriverGetVersion => (version: *mut c_int) {
    match driver() {
        Some(driver) => check((driver.driver_version)(version)),
        None => put(version, 0),
    }
});

export!(cudaGetDeviceCount => (count: *mut c_int) {
    check((initialised()?.device_count)(count))
});

fn check_device(device: c_int) -> Result<()> {
    let mut count = 0;
    // SAFETY: a place for the result.
    check(unsafe { (initialised()?.device_count)(&mut count) })?;
    if (0..count).contains(&device) {
        Ok(())
    } else {
        Err(error::INVALID_DEVICE)
    }
}

// Since CUDA 12 this makes the device's context, too.
export!(cudaSetDevice => (device: c_int) {
    check_device(device)?;
    set_device(device);
    ready().map(drop)
});

export!(cudaInitDevice => (device: c_int, _flags: c_uint, _more: c_uint) {
    check_device(device)?;
    let before = crate::state::device();
    set_device(device);
    let outcome = ready().map(drop);
    set_device(before);
    outcome
});

export!(cudaGetDevice => (to: *mut c_int) {
    initialised()?;
    put(to, device())
});

export!(cudaSetDeviceFlags => (flags: c_uint) {
    check((initialised()?.primary_set_flags)(device(), flags & 0x1f))
});

export!(cudaGetDeviceFlags => (flags: *mut c_uint) {
    let (driver, mut active) = (initialised()?, 0);
    check((driver.primary_state)(device(), flags, &mut active))
});

export!(cudaDeviceSynchronize => () {
    check((ready()?.synchronize)())
});

export!(cudaDeviceReset => () {
    let driver = initialised()?;
    check((driver.primary_reset)(device()))?;
    forget_loaded(device());
    forget_binding(device());
    Ok(())
});

export!(cudaDeviceGetAttribute => (value: *mut c_int, number: c_int, device: c_int) {
    check((initialised()?.device_attribute)(value, number, device))
});

export!(cudaDeviceGetPCIBusId => (text: *mut c_char, length: c_int, device: c_int) {
    check((initialised()?.device_pci)(text, length, device))
});

export!(cudaDeviceGetByPCIBusId => (device: *mut c_int, text: *const c_char) {
    check((initialised()?.device_by_pci)(device, text))
});

export!(cudaDeviceCanAccessPeer => (can: *mut c_int, device: c_int, peer: c_int) {
    check((initialised()?.device_can_access)(can, device, peer))
});

export!(cudaProfilerStart => () {
    check((ready()?.profiler_start)())
});

export!(cudaProfilerStop => () {
    check((ready()?.profiler_stop)())
});

export!(cudaGetDriverEntryPoint => (
    name: *const c_char,
    function: *mut *mut c_void,
    flags: u64,
    status: *mut c_int,
) {
    if name.is_null() {
        return Err(error::INVALID_VALUE);
    }
    let found = initialised()?.entry_point(CStr::from_ptr(name), flags);
    if !status.is_null() {
        // 0 found, 1 not found.
        put(status, c_int::from(found.is_none()))?;
    }
    put(function, found.unwrap_or(std::ptr::null_mut()))
});

/// `cudaDeviceProp` of CUDA 12, by position: the header's fields between those that are set here are 0.
#[repr(C)]
pub struct Properties {
    name: [u8; 256],
    uuid: [u8; 16],
    luid: [u8; 8],
    luid_mask: c_uint,
    total_bytes: usize,
    shared_per_block: usize,
    registers_per_block: c_int,
    warp_size: c_int,
    pitch: usize,
    max_threads: c_int,
    max_block: [c_int; 3],
    max_grid: [c_int; 3],
    clock_khz: c_int,
    constant_bytes: usize,
    major: c_int,
    minor: c_int,
    texture_alignment: usize,
    texture_pitch_alignment: usize,
    overlap: c_int,
    multiprocessors: c_int,
    timeout: c_int,
    integrated: c_int,
    can_map_host: c_int,
    compute_mode: c_int,
    /// `maxTexture1D` to `maxSurfaceCubemapLayered`.
    textures: [c_int; 40],
    surface_alignment: usize,
    concurrent_kernels: c_int,
    ecc: c_int,
    pci_bus: c_int,
    pci_device: c_int,
    pci_domain: c_int,
    tcc: c_int,
    copy_engines: c_int,
    unified_addressing: c_int,
    memory_clock_khz: c_int,
    bus_width_bits: c_int,
    l2_bytes: c_int,
    l2_persisting_bytes: c_int,
    threads_per_multiprocessor: c_int,
    stream_priorities: c_int,
    global_l1: c_int,
    local_l1: c_int,
    shared_per_multiprocessor: usize,
    registers_per_multiprocessor: c_int,
    managed: c_int,
    /// `isMultiGpuBoard` to `cooperativeMultiDeviceLaunch`.
    more: [c_int; 10],
    shared_optin: usize,
    /// `pageableMemoryAccessUsesHostPageTables` to `accessPolicyMaxWindowSize`.
    access: [c_int; 4],
    reserved_shared: usize,
    /// `hostRegisterSupported` to the end.
    rest: [c_int; 76],
}

// What `sizeof` and `offsetof` say of `struct cudaDeviceProp` in CUDA 12.9, on x86_64.
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Properties>() == 1032);
    assert!(offset_of!(Properties, multiprocessors) == 388);
    assert!(offset_of!(Properties, surface_alignment) == 568);
    assert!(offset_of!(Properties, managed) == 652);
    assert!(offset_of!(Properties, shared_optin) == 696);
    assert!(offset_of!(Properties, rest) == 728);
};

export!(cudaGetDeviceProperties_v2 => (to: *mut Properties, device: c_int) {
    check_device(device)?;
    let driver = initialised()?;
    // All fields are numbers, for which zeros are valid.
    let mut all: Properties = std::mem::zeroed();
    check((driver.device_name)(all.name.as_mut_ptr().cast(), 256, device))?;
    check((driver.device_uuid)(&mut all.uuid, device))?;
    check((driver.device_total)(&mut all.total_bytes, device))?;
    let attribute = |number| {
        let mut value = 0;
        check((driver.device_attribute)(&mut value, number, device)).map(|()| value)
    };
    all.shared_per_block = attribute(8)? as usize;
    all.registers_per_block = attribute(12)?;
    all.warp_size = attribute(10)?;
    all.pitch = attribute(11)? as usize;
    all.max_threads = attribute(1)?;
    all.max_block = [attribute(2)?, attribute(3)?, attribute(4)?];
    all.max_grid = [attribute(5)?, attribute(6)?, attribute(7)?];
    all.clock_khz = attribute(13)?;
    all.constant_bytes = attribute(9)? as usize;
    all.major = attribute(75)?;
    all.minor = attribute(76)?;
    all.texture_alignment = attribute(14)? as usize;
    all.overlap = attribute(15)?;
    all.multiprocessors = attribute(16)?;
    all.can_map_host = attribute(19)?;
    all.concurrent_kernels = attribute(31)?;
    all.pci_bus = attribute(33)?;
    all.copy_engines = attribute(40)?;
    all.unified_addressing = attribute(41)?;
    all.memory_clock_khz = attribute(36)?;
    all.bus_width_bits = attribute(37)?;
    all.l2_bytes = attribute(38)?;
    all.threads_per_multiprocessor = attribute(39)?;
    all.stream_priorities = attribute(78)?;
    all.shared_per_multiprocessor = attribute(81)? as usize;
    all.registers_per_multiprocessor = attribute(82)?;
    all.managed = attribute(83)?;
    all.shared_optin = attribute(97)? as usize;
    put(to, all)
});

// ---- Errors ----

/// The last error of this thread, which is then forgotten.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaGetLastError() -> CudaError {
    entry_point("cudaGetLastError");
    clear_last_error()
}

/// The last error of this thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaPeekAtLastError() -> CudaError {
    entry_point("cudaPeekAtLastError");
    last_error()
}

/// Name and text of an error. The names are those of `driver_types.h`; the texts are our own.
fn describe(code: CudaError) -> (&'static CStr, &'static CStr) {
    match code {
        0 => (c"cudaSuccess", c"no error"),
        1 => (c"cudaErrorInvalidValue", c"invalid argument"),
        2 => (c"cudaErrorMemoryAllocation", c"out of memory"),
        3 => (c"cudaErrorInitializationError", c"initialization error"),
        9 => (
            c"cudaErrorInvalidConfiguration",
            c"invalid configuration argument",
        ),
        21 => (
            c"cudaErrorInvalidMemcpyDirection",
            c"invalid copy direction for memcpy",
        ),
        35 => (
            c"cudaErrorInsufficientDriver",
            c"CUDA driver version is insufficient for CUDA runtime version",
        ),
        98 => (
            c"cudaErrorInvalidDeviceFunction",
            c"invalid device function",
        ),
        100 => (c"cudaErrorNoDevice", c"no CUDA-capable device is detected"),
        101 => (c"cudaErrorInvalidDevice", c"invalid device ordinal"),
        201 => (c"cudaErrorDeviceUninitialized", c"invalid device context"),
        400 => (
            c"cudaErrorInvalidResourceHandle",
            c"invalid resource handle",
        ),
        500 => (c"cudaErrorSymbolNotFound", c"named symbol not found"),
        600 => (c"cudaErrorNotReady", c"device not ready"),
        801 => (c"cudaErrorNotSupported", c"operation not supported"),
        900 => (
            c"cudaErrorStreamCaptureUnsupported",
            c"operation not permitted when stream is capturing",
        ),
        903 => (
            c"cudaErrorStreamCaptureUnmatched",
            c"stream capture was not begun on this stream",
        ),
        999 => (c"cudaErrorUnknown", c"unknown error"),
        _ => (c"unrecognized error code", c"unrecognized error code"),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaGetErrorName(code: CudaError) -> *const c_char {
    entry_point("cudaGetErrorName");
    describe(code).0.as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaGetErrorString(code: CudaError) -> *const c_char {
    entry_point("cudaGetErrorString");
    describe(code).1.as_ptr()
}
