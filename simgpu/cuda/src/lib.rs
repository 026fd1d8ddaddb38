//! `libcuda.so.1` of simgpu: the CUDA driver API (CUDA 12, `cuda.h`) over [`simgpu_device`].
//!
//! What this library knows is the ABI: names with their versions (`_v2`) and per-thread variants (`_ptds`, `_ptsz`), structs, handles,
//! the current context of a thread. What a call means is in the device model.
//!
//! It must be built with frame pointers, so that its functions begin with `push` as the real ones do: probes then cost the same.
//! No function unwinds into its caller: a panic in an `extern "C"` function ends the process.
//!
//! As in the real driver, a child that was forked after `cuInit` cannot use CUDA: every call returns `CUDA_ERROR_NOT_INITIALIZED`.
#![expect(unsafe_code, reason = "a C ABI")]
#![allow(
    non_snake_case,
    unreachable_pub,
    clippy::missing_safety_doc,
    reason = "the names, and the contracts, are those of cuda.h"
)]

#[macro_use]
mod state;

mod context;
mod graph;
mod launch;
mod memory;
mod memory_map;
mod module;
mod proc_address;
mod stream;
