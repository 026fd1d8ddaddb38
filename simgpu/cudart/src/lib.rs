//! `libcudart.so.12` of simgpu: the CUDA runtime API (CUDA 12, `cuda_runtime_api.h`) over the driver API.
//!
//! As the real runtime it opens `libcuda.so.1` by dlopen at the first call, asks `cuGetProcAddress` for each entry point, and every
//! call of its own becomes one of the driver's: whoever watches both layers sees calls within calls. It knows nothing of the device
//! model. Modules are loaded, and functions looked up, within the first launch that needs them.
//!
//! What is here is what tracing needs and what small programs, by hand or through `ctypes`, call: not all 421 names of the real
//! library. It must be built with frame pointers, so that its functions begin with `push` as the real ones do.
#![expect(unsafe_code, reason = "a C ABI")]
#![allow(
    non_snake_case,
    unreachable_pub,
    clippy::missing_safety_doc,
    clippy::too_many_arguments,
    reason = "the names, and the contracts, are those of cuda_runtime_api.h"
)]

#[macro_use]
mod state;

mod device;
mod driver;
mod graph;
mod launch;
mod memory;
mod stream;
