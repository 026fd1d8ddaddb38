//! Stream capture and graphs.

use std::ffi::{c_int, c_uint, c_void};

use crate::{
    launch::{Dim3, function},
    state::*,
};

export!(cudaStreamBeginCapture / capture_begin, cudaStreamBeginCapture_ptsz / capture_begin_ptsz =>
    (stream: Handle, mode: c_int) -> (stream, mode));

export!(cudaStreamEndCapture / capture_end, cudaStreamEndCapture_ptsz / capture_end_ptsz =>
    (stream: Handle, graph: *mut Handle) -> (stream, graph));

export!(cudaStreamIsCapturing / capture_is, cudaStreamIsCapturing_ptsz / capture_is_ptsz =>
    (stream: Handle, status: *mut c_int) -> (stream, status));

export!(cudaStreamGetCaptureInfo_v2 / capture_info, cudaStreamGetCaptureInfo_v2_ptsz / capture_info_ptsz => (
    stream: Handle,
    status: *mut c_int,
    id: *mut u64,
    graph: *mut Handle,
    dependencies: *mut *const Handle,
    count: *mut usize,
) -> (stream, status, id, graph, dependencies, count));

export!(cudaGraphCreate / graph_create => (graph: *mut Handle, flags: c_uint) -> (graph, flags));

export!(cudaGraphDestroy / graph_destroy => (graph: Handle) -> (graph));

/// `cudaKernelNodeParams`.
#[repr(C)]
pub struct KernelNode {
    function: *const c_void,
    grid: Dim3,
    block: Dim3,
    shared_bytes: c_uint,
    parameters: *mut Pointer,
    extra: *mut Pointer,
}

/// `CUDA_KERNEL_NODE_PARAMS`.
#[repr(C)]
struct DriverKernelNode {
    function: Handle,
    grid: Dim3,
    block: Dim3,
    shared_bytes: c_uint,
    parameters: *mut Pointer,
    extra: *mut Pointer,
    kernel: Handle,
    context: Handle,
}

export!(cudaGraphAddKernelNode => (
    node: *mut Handle,
    graph: Handle,
    dependencies: *const Handle,
    count: usize,
    what: *const KernelNode,
) {
    let driver = ready()?;
    let what = what.as_ref().ok_or(error::INVALID_VALUE)?;
    let translated = DriverKernelNode {
        function: function(driver, what.function)?,
        grid: what.grid,
        block: what.block,
        shared_bytes: what.shared_bytes,
        parameters: what.parameters,
        extra: what.extra,
        kernel: 0,
        context: 0,
    };
    check((driver.graph_add_kernel)(node, graph, dependencies, count, (&raw const translated).cast()))
});

export!(cudaGraphGetNodes / graph_nodes =>
    (graph: Handle, nodes: *mut Handle, count: *mut usize) -> (graph, nodes, count));

export!(cudaGraphInstantiate => (executable: *mut Handle, graph: Handle, flags: u64) {
    check((ready()?.graph_instantiate)(executable, graph, flags))
});

export!(cudaGraphInstantiateWithFlags => (executable: *mut Handle, graph: Handle, flags: u64) {
    let driver = ready()?;
    check((driver.graph_instantiate)(executable, graph, flags))
});

export!(cudaGraphInstantiateWithParams / graph_instantiate_params,
    cudaGraphInstantiateWithParams_ptsz / graph_instantiate_params_ptsz =>
    (executable: *mut Handle, graph: Handle, parameters: *mut c_void) -> (executable, graph, parameters));

export!(cudaGraphLaunch / graph_launch, cudaGraphLaunch_ptsz / graph_launch_ptsz =>
    (executable: Handle, stream: Handle) -> (executable, stream));

export!(cudaGraphUpload / graph_upload, cudaGraphUpload_ptsz / graph_upload_ptsz =>
    (executable: Handle, stream: Handle) -> (executable, stream));

export!(cudaGraphExecUpdate / graph_update =>
    (executable: Handle, graph: Handle, info: *mut c_void) -> (executable, graph, info));

export!(cudaGraphExecDestroy / graph_exec_destroy => (executable: Handle) -> (executable));
