//! Stream capture and graphs.

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};

use simgpu_device::Status;

use crate::state::*;

export!(cuStreamBeginCapture_v2 | cuStreamBeginCapture_v2_ptsz, DEFAULT => (handle: Opaque, mode: c_int) {
    if !(0..=2).contains(&mode) {
        return Err(Status::InvalidValue);
    }
    with(|driver| driver.begin_capture(current()?, stream(handle, DEFAULT)))
});

export!(cuStreamEndCapture | cuStreamEndCapture_ptsz, DEFAULT => (handle: Opaque, graph: *mut Opaque) {
    let made = with(|driver| driver.end_capture(current()?, stream(handle, DEFAULT)))?;
    put(graph, made)
});

export!(cuStreamIsCapturing | cuStreamIsCapturing_ptsz, DEFAULT => (handle: Opaque, status: *mut c_int) {
    let graph = with(|driver| driver.capturing(current()?, stream(handle, DEFAULT)))?;
    put(status, c_int::from(graph.is_some()))
});

export!(cuStreamGetCaptureInfo_v2 | cuStreamGetCaptureInfo_v2_ptsz, DEFAULT => (
    handle: Opaque,
    status: *mut c_int,
    id: *mut c_ulonglong,
    graph: *mut Opaque,
    dependencies: *mut *const Opaque,
    count: *mut usize,
) {
    let captured = with(|driver| driver.capturing(current()?, stream(handle, DEFAULT)))?;
    put(status, c_int::from(captured.is_some()))?;
    put_optional(id, captured.unwrap_or(0));
    put_optional(graph, captured.unwrap_or(0));
    // A graph here is a list, so the next node depends on the last one whatever is said.
    put_optional(dependencies, std::ptr::null());
    put_optional(count, 0);
    Ok(())
});

export!(cuGraphCreate => (graph: *mut Opaque, flags: c_uint) {
    if graph.is_null() || flags != 0 {
        return Err(Status::InvalidValue);
    }
    let made = with(|driver| Ok(driver.create_graph()))?;
    put(graph, made)
});

export!(cuGraphDestroy => (graph: Opaque) {
    with(|driver| driver.destroy_graph(graph))
});

/// `CUDA_KERNEL_NODE_PARAMS`, as far as it is read.
#[repr(C)]
pub struct KernelNode {
    function: Opaque,
    grid: [c_uint; 3],
    block: [c_uint; 3],
}

export!(cuGraphAddKernelNode_v2 => (
    node: *mut Opaque,
    graph: Opaque,
    _dependencies: *const Opaque,
    _count: usize,
    parameters: *const KernelNode,
) {
    let parameters = parameters.as_ref().ok_or(Status::InvalidValue)?;
    let blocks = parameters.grid.iter().map(|n| u64::from(*n)).product::<u64>();
    if node.is_null() || blocks == 0 || parameters.block.contains(&0) {
        return Err(Status::InvalidValue);
    }
    let number = with(|driver| driver.add_kernel_node(graph, parameters.function, blocks))?;
    put(node, graph + number as u64)
});

export!(cuGraphGetNodes => (graph: Opaque, nodes: *mut Opaque, count: *mut usize) {
    let known = with(|driver| driver.graph_nodes(graph))?;
    if nodes.is_null() {
        return put(count, known);
    }
    let room = count.as_mut().ok_or(Status::InvalidValue)?;
    for index in 0..known.min(*room) {
        put(nodes.add(index), graph + index as u64 + 1)?;
    }
    *room = known.min(*room);
    Ok(())
});

fn instantiate(graph: Opaque) -> simgpu_device::driver::Result<Opaque> {
    let (made, wait) = with(|driver| driver.instantiate(graph))?;
    wait.run();
    Ok(made)
}

export!(cuGraphInstantiateWithFlags => (executable: *mut Opaque, graph: Opaque, flags: c_ulonglong) {
    if executable.is_null() || flags & !0xf != 0 {
        return Err(Status::InvalidValue);
    }
    put(executable, instantiate(graph)?)
});

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[repr(C)]
pub struct Instantiation {
    flags: c_ulonglong,
    upload_stream: Opaque,
    failed_node: Opaque,
    result: c_int,
}

export!(cuGraphInstantiateWithParams | cuGraphInstantiateWithParams_ptsz, DEFAULT => (
    executable: *mut Opaque,
    graph: Opaque,
    parameters: *mut Instantiation,
) {
    let parameters = parameters.as_mut().ok_or(Status::InvalidValue)?;
    if executable.is_null() {
        return Err(Status::InvalidValue);
    }
    // The upload stream must be one, though there is nothing to upload.
    with(|driver| driver.stream_info(current()?, stream(parameters.upload_stream, DEFAULT)))?;
    let made = instantiate(graph)?;
    parameters.failed_node = 0;
    parameters.result = 0;
    put(executable, made)
});

export!(cuGraphLaunch | cuGraphLaunch_ptsz, DEFAULT => (executable: Opaque, handle: Opaque) {
    with_wait(|driver, context| driver.launch_graph(context, stream(handle, DEFAULT), executable))
});

export!(cuGraphUpload | cuGraphUpload_ptsz, DEFAULT => (executable: Opaque, handle: Opaque) {
    with(|driver| {
        driver.check_executable(executable)?;
        driver.stream_info(current()?, stream(handle, DEFAULT)).map(drop)
    })
});

/// `CUgraphExecUpdateResultInfo`.
#[repr(C)]
pub struct UpdateResult {
    result: c_int,
    node: Opaque,
    from_node: Opaque,
}

export!(cuGraphExecUpdate_v2 => (executable: Opaque, graph: Opaque, info: *mut UpdateResult) {
    let outcome = with(|driver| driver.update_executable(executable, graph));
    // 0: updated; 2: the topology changed.
    let result = if outcome.is_ok() { 0 } else { 2 };
    put_optional(info, UpdateResult { result, node: 0, from_node: 0 });
    outcome
});

export!(cuGraphExecDestroy => (executable: Opaque) {
    with(|driver| driver.destroy_executable(executable))
});

export!(cuLaunchHostFunc | cuLaunchHostFunc_ptsz, DEFAULT => (
    handle: Opaque,
    _function: *const c_void,
    _data: *mut c_void,
) {
    // The device has no thread that could call it.
    with(|driver| driver.stream_info(current()?, stream(handle, DEFAULT)))?;
    Err(Status::NotSupported)
});
