//! Modules, libraries, functions. An image is anything: nothing in it is read, and every function name is found in it.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use simgpu_device::{Status, driver::Result};

use crate::state::*;

fn load() -> Result<Opaque> {
    let (module, wait) = with(|driver| driver.load_module(current()?))?;
    wait.run();
    Ok(module)
}

/// The text of a name.
///
/// # Safety
/// `name` is null or a C string.
unsafe fn text<'a>(name: *const c_char) -> Result<&'a str> {
    if name.is_null() {
        return Err(Status::InvalidValue);
    }
    // SAFETY: a C string, by the caller's promise.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_str().map_err(|_| Status::NotFound)
}

export!(cuModuleLoad => (module: *mut Opaque, path: *const c_char) {
    let path = text(path)?;
    if std::fs::metadata(path).is_err() {
        return Err(Status::NotFound);
    }
    put(module, load()?)
});

export!(cuModuleLoadData => (module: *mut Opaque, image: *const c_void) {
    if image.is_null() {
        return Err(Status::InvalidValue);
    }
    put(module, load()?)
});

export!(cuModuleLoadDataEx => (
    module: *mut Opaque,
    image: *const c_void,
    _count: c_uint,
    _options: *mut c_int,
    _values: *mut *mut c_void,
) {
    if image.is_null() || module.is_null() {
        return Err(Status::InvalidValue);
    }
    put(module, load()?)
});

export!(cuModuleLoadFatBinary => (module: *mut Opaque, image: *const c_void) {
    let image_is_there = !image.is_null();
    let loaded = if image_is_there { load() } else { Err(Status::InvalidValue) };
    put(module, loaded?)
});

export!(cuModuleUnload => (module: Opaque) {
    with(|driver| driver.unload_module(module))
});

export!(cuModuleGetFunction => (function: *mut Opaque, module: Opaque, name: *const c_char) {
    let name = text(name)?;
    let found = with(|driver| driver.function(module, name))?;
    put(function, found)
});

export!(cuModuleGetLoadingMode => (mode: *mut c_int) {
    // CU_MODULE_LAZY_LOADING, the default since CUDA 12.2.
    put(mode, 2)
});

// A library is a module that belongs to no context; here the context that loads it.
export!(cuLibraryLoadData => (
    library: *mut Opaque,
    image: *const c_void,
    _options: *mut c_int,
    _values: *mut *mut c_void,
    _count: c_uint,
    _library_options: *mut c_int,
    _library_values: *mut *mut c_void,
    _library_count: c_uint,
) {
    if image.is_null() {
        return Err(Status::InvalidValue);
    }
    put(library, load()?)
});

export!(cuLibraryUnload => (library: Opaque) {
    let result = with(|driver| driver.unload_module(library));
    result.map_err(|_| Status::InvalidHandle)
});

export!(cuLibraryGetKernel => (kernel: *mut Opaque, library: Opaque, name: *const c_char) {
    let name = text(name)?;
    let found = with(|driver| driver.function(library, name));
    put(kernel, found?)
});

export!(cuKernelGetFunction => (function: *mut Opaque, kernel: Opaque) {
    with(|driver| driver.function_info(kernel).map(drop))?;
    put(function, kernel)
});

export!(cuFuncGetModule => (module: *mut Opaque, function: Opaque) {
    let owner = with(|driver| Ok(driver.function_info(function)?.0))?;
    put(module, owner)
});

export!(cuFuncLoad => (function: Opaque) {
    // Loading takes its time in the first launch, whether it was asked for here or not.
    with(|driver| driver.function_info(function).map(drop))
});

export!(cuFuncGetAttribute => (value: *mut c_int, number: c_int, function: Opaque) {
    with(|driver| driver.function_info(function).map(drop))?;
    let known = match number {
        0 => 1024,    // threads per block, at most
        4 => 32,      // registers
        5 | 6 => 80,  // PTX and binary version
        8 => 48 << 10, // dynamic shared memory, at most
        1..=15 => 0,
        _ => return Err(Status::InvalidValue),
    };
    put(value, known)
});

export!(cuFuncSetAttribute => (function: Opaque, number: c_int, value: c_int) {
    if number < 0 || value < -1 {
        return Err(Status::InvalidValue);
    }
    with(|driver| driver.function_info(function).map(drop))
});

export!(cuFuncSetCacheConfig => (function: Opaque, config: c_int) {
    if !(0..=3).contains(&config) {
        return Err(Status::InvalidValue);
    }
    with(|driver| driver.function_info(function).map(drop))
});

/// Blocks of `threads` threads that fit on a multiprocessor of 2048 threads and 32 blocks.
fn occupancy(threads: c_int) -> Result<c_int> {
    match threads {
        1..=1024 => Ok((2048 / threads).min(32)),
        _ => Err(Status::InvalidValue),
    }
}

export!(cuOccupancyMaxActiveBlocksPerMultiprocessor => (
    blocks: *mut c_int,
    function: Opaque,
    threads: c_int,
    _shared: usize,
) {
    with(|driver| driver.function_info(function).map(drop))?;
    put(blocks, occupancy(threads)?)
});

export!(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags => (
    blocks: *mut c_int,
    function: Opaque,
    threads: c_int,
    _shared: usize,
    flags: c_uint,
) {
    if flags & !1 != 0 {
        return Err(Status::InvalidValue);
    }
    with(|driver| driver.function_info(function).map(drop))?;
    put(blocks, occupancy(threads)?)
});
