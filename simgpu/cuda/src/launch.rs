//! Launches. A kernel computes nothing; how long it takes is in [`simgpu_device::Driver::launch`].

use std::ffi::{c_uint, c_void};

use simgpu_device::{
    Status,
    driver::{Result, StreamRef},
};

use crate::state::*;

/// `CUlaunchConfig`.
#[repr(C)]
pub struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: Opaque,
    attributes: *mut c_void,
    attribute_count: c_uint,
}

/// What every launch comes to.
///
/// # Safety
/// `parameters` is null or a kernel's list of pointers to its parameters.
unsafe fn launch(
    function: Opaque,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    to: StreamRef,
    parameters: *mut *mut c_void,
) -> Result<()> {
    let blocks = grid.iter().map(|n| u64::from(*n)).product::<u64>();
    let threads = block.iter().map(|n| u64::from(*n)).product::<u64>();
    if blocks == 0 || threads == 0 || threads > 1024 {
        return Err(Status::InvalidValue);
    }
    let sleep_nanos = || {
        if parameters.is_null() {
            return None;
        }
        // SAFETY: only asked for a kernel with one parameter of 8 bytes, whose list the caller promises.
        unsafe {
            let first = parameters.read_unaligned();
            (!first.is_null()).then(|| first.cast::<u64>().read_unaligned())
        }
    };
    with_wait(|driver, context| driver.launch(context, to, function, blocks, sleep_nanos))
}

export!(cuLaunchKernel | cuLaunchKernel_ptsz, DEFAULT => (
    function: Opaque,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    _shared_bytes: c_uint,
    handle: Opaque,
    parameters: *mut *mut c_void,
    _extra: *mut *mut c_void,
) {
    let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
    launch(function, grid, block, stream(handle, DEFAULT), parameters)
});

export!(cuLaunchKernelEx | cuLaunchKernelEx_ptsz, DEFAULT => (
    config: *const LaunchConfig,
    function: Opaque,
    parameters: *mut *mut c_void,
    _extra: *mut *mut c_void,
) {
    let config = config.as_ref().ok_or(Status::InvalidValue)?;
    launch(function, config.grid, config.block, stream(config.stream, DEFAULT), parameters)
});

export!(cuLaunchCooperativeKernel | cuLaunchCooperativeKernel_ptsz, DEFAULT => (
    function: Opaque,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    _shared_bytes: c_uint,
    handle: Opaque,
    parameters: *mut *mut c_void,
) {
    let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
    launch(function, grid, block, stream(handle, DEFAULT), parameters)
});
