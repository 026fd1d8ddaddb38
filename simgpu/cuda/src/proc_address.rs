//! `cuGetProcAddress`: entry points by name, which is how the runtime and most frameworks find the driver.
//!
//! A name is asked for without its version: `cuMemAlloc` means `cuMemAlloc_v2`, and with the flag for per-thread default streams
//! `cuMemcpy` means `cuMemcpy_ptds`. Of several versions the newest is given: a caller of CUDA 12 expects those of this library.

use std::ffi::{CStr, c_char, c_int, c_void};

use simgpu_device::Status;

use crate::{
    context::*, graph::*, launch::*, memory::*, memory_map::*, module::*, state::*, stream::*,
};

struct EntryPoint {
    name: &'static str,
    address: *const c_void,
}

// SAFETY: the pointers are to functions; nobody writes there.
unsafe impl Sync for EntryPoint {}

macro_rules! entry_points {
    ($($name:ident)*) => {
        static ENTRY_POINTS: &[EntryPoint] = &[
            $(EntryPoint { name: stringify!($name), address: $name as *const c_void },)*
        ];
    };
}

entry_points! {
    cuCtxCreate_v2 cuCtxDestroy_v2 cuCtxGetApiVersion cuCtxGetCurrent cuCtxGetDevice cuCtxGetFlags cuCtxGetId
    cuCtxGetStreamPriorityRange cuCtxPopCurrent_v2 cuCtxPushCurrent_v2 cuCtxSetCurrent cuCtxSetFlags cuCtxSynchronize
    cuDeviceCanAccessPeer cuDeviceComputeCapability cuDeviceGet cuDeviceGetAttribute cuDeviceGetByPCIBusId cuDeviceGetCount
    cuDeviceGetDefaultMemPool cuDeviceGetMemPool cuDeviceGetName cuDeviceGetPCIBusId cuDeviceGetUuid cuDeviceGetUuid_v2
    cuDevicePrimaryCtxGetState cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxReset_v2 cuDevicePrimaryCtxRetain
    cuDevicePrimaryCtxSetFlags_v2 cuDeviceTotalMem_v2 cuDriverGetVersion cuEventCreate cuEventDestroy_v2 cuEventElapsedTime
    cuEventElapsedTime_v2 cuEventQuery cuEventRecord cuEventRecordWithFlags cuEventRecordWithFlags_ptsz cuEventRecord_ptsz
    cuEventSynchronize cuFuncGetAttribute cuFuncGetModule cuFuncLoad cuFuncSetAttribute cuFuncSetCacheConfig cuGetErrorName
    cuGetErrorString cuGetExportTable cuGetProcAddress cuGetProcAddress_v2 cuGraphAddKernelNode_v2 cuGraphCreate cuGraphDestroy
    cuGraphExecDestroy cuGraphExecUpdate_v2 cuGraphGetNodes cuGraphInstantiateWithFlags cuGraphInstantiateWithParams
    cuGraphInstantiateWithParams_ptsz cuGraphLaunch cuGraphLaunch_ptsz cuGraphUpload cuGraphUpload_ptsz cuInit
    cuKernelGetFunction cuLaunchCooperativeKernel cuLaunchCooperativeKernel_ptsz cuLaunchHostFunc cuLaunchHostFunc_ptsz
    cuLaunchKernel cuLaunchKernelEx cuLaunchKernelEx_ptsz cuLaunchKernel_ptsz cuLibraryGetKernel cuLibraryLoadData
    cuLibraryUnload cuMemAddressFree cuMemAddressReserve cuMemAllocAsync cuMemAllocAsync_ptsz cuMemAllocFromPoolAsync
    cuMemAllocFromPoolAsync_ptsz cuMemAllocHost_v2 cuMemAllocManaged cuMemAllocPitch_v2 cuMemAlloc_v2 cuMemCreate
    cuMemFreeAsync cuMemFreeAsync_ptsz cuMemFreeHost cuMemFree_v2 cuMemGetAccess
    cuMemGetAddressRange_v2 cuMemGetAllocationGranularity cuMemGetInfo_v2 cuMemHostAlloc cuMemHostGetDevicePointer_v2
    cuMemHostGetFlags cuMemHostRegister_v2 cuMemHostUnregister cuMemMap cuMemPoolTrimTo cuMemRelease cuMemSetAccess cuMemUnmap
    cuMemcpy cuMemcpy2DAsync_v2 cuMemcpy2DAsync_v2_ptsz cuMemcpy2DUnaligned_v2 cuMemcpy2DUnaligned_v2_ptds cuMemcpy2D_v2
    cuMemcpy2D_v2_ptds cuMemcpyAsync cuMemcpyAsync_ptsz cuMemcpyDtoDAsync_v2 cuMemcpyDtoDAsync_v2_ptsz cuMemcpyDtoD_v2
    cuMemcpyDtoD_v2_ptds cuMemcpyDtoHAsync_v2 cuMemcpyDtoHAsync_v2_ptsz cuMemcpyDtoH_v2 cuMemcpyDtoH_v2_ptds
    cuMemcpyHtoDAsync_v2 cuMemcpyHtoDAsync_v2_ptsz cuMemcpyHtoD_v2 cuMemcpyHtoD_v2_ptds cuMemcpyPeer cuMemcpyPeerAsync
    cuMemcpyPeerAsync_ptsz cuMemcpyPeer_ptds cuMemcpy_ptds cuMemsetD16Async cuMemsetD16Async_ptsz cuMemsetD16_v2
    cuMemsetD16_v2_ptds cuMemsetD2D16Async cuMemsetD2D16Async_ptsz cuMemsetD2D16_v2 cuMemsetD2D16_v2_ptds cuMemsetD2D32Async
    cuMemsetD2D32Async_ptsz cuMemsetD2D32_v2 cuMemsetD2D32_v2_ptds cuMemsetD2D8Async cuMemsetD2D8Async_ptsz cuMemsetD2D8_v2
    cuMemsetD2D8_v2_ptds cuMemsetD32Async cuMemsetD32Async_ptsz cuMemsetD32_v2 cuMemsetD32_v2_ptds cuMemsetD8Async
    cuMemsetD8Async_ptsz cuMemsetD8_v2 cuMemsetD8_v2_ptds cuModuleGetFunction cuModuleGetLoadingMode cuModuleLoad
    cuModuleLoadData cuModuleLoadDataEx cuModuleLoadFatBinary cuModuleUnload cuOccupancyMaxActiveBlocksPerMultiprocessor
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags cuPointerGetAttribute cuPointerGetAttributes cuProfilerStart
    cuProfilerStop cuStreamBeginCapture_v2 cuStreamBeginCapture_v2_ptsz cuStreamCreate cuStreamCreateWithPriority
    cuStreamDestroy_v2 cuStreamEndCapture cuStreamEndCapture_ptsz cuStreamGetCaptureInfo_v2 cuStreamGetCaptureInfo_v2_ptsz
    cuStreamGetCtx cuStreamGetCtx_ptsz cuStreamGetFlags cuStreamGetFlags_ptsz cuStreamGetId cuStreamGetId_ptsz
    cuStreamGetPriority cuStreamGetPriority_ptsz cuStreamIsCapturing cuStreamIsCapturing_ptsz cuStreamQuery
    cuStreamQuery_ptsz cuStreamSynchronize cuStreamSynchronize_ptsz cuStreamWaitEvent cuStreamWaitEvent_ptsz
}

/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`.
const PER_THREAD: u64 = 2;

fn find(base: &str, per_thread: bool) -> Option<*const c_void> {
    let versions = ["_v3", "_v2", ""];
    let variants: &[&str] = if per_thread {
        &["_ptsz", "_ptds", ""]
    } else {
        &[""]
    };
    variants.iter().find_map(|variant| {
        versions.iter().find_map(|version| {
            let fits = |name: &str| {
                let rest = name
                    .strip_prefix(base)
                    .and_then(|r| r.strip_prefix(version));
                rest == Some(variant)
            };
            let found = ENTRY_POINTS.iter().find(|entry| fits(entry.name));
            found.map(|entry| entry.address)
        })
    })
}

/// Finds an entry point and says how that went: 0 found, 1 no such name, 2 a newer version is asked for.
///
/// # Safety
/// The pointers are null or as cuda.h says.
unsafe fn look_up(
    symbol: *const c_char,
    function: *mut *const c_void,
    flags: u64,
    status: *mut c_int,
) -> simgpu_device::driver::Result<()> {
    if symbol.is_null() {
        return Err(Status::InvalidValue);
    }
    // SAFETY: a C string, by the caller's promise.
    let name = unsafe { CStr::from_ptr(symbol) }.to_str().unwrap_or("");
    let found = find(name, flags & PER_THREAD != 0);
    // SAFETY: null or valid for writing, by the caller's promise.
    unsafe {
        put(function, found.unwrap_or(std::ptr::null()))?;
        put_optional(status, c_int::from(found.is_none()));
    }
    found.map(drop).ok_or(Status::NotFound)
}

export!(cuGetProcAddress => (symbol: *const c_char, function: *mut *const c_void, _version: c_int, flags: u64) {
    look_up(symbol, function, flags, std::ptr::null_mut())
});

export!(cuGetProcAddress_v2 => (
    symbol: *const c_char,
    function: *mut *const c_void,
    _version: c_int,
    flags: u64,
    status: *mut c_int,
) {
    look_up(symbol, function, flags, status)
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_name_finds_its_newest_version_and_its_per_thread_variant() {
        let at = |name: &str| {
            let entry = ENTRY_POINTS.iter().find(|entry| entry.name == name);
            entry.map(|entry| entry.address)
        };
        for (base, per_thread, want) in [
            ("cuMemAlloc", false, "cuMemAlloc_v2"),
            ("cuMemcpyHtoD", false, "cuMemcpyHtoD_v2"),
            ("cuMemcpyHtoD", true, "cuMemcpyHtoD_v2_ptds"),
            ("cuMemcpyAsync", true, "cuMemcpyAsync_ptsz"),
            ("cuLaunchKernel", false, "cuLaunchKernel"),
            ("cuLaunchKernel", true, "cuLaunchKernel_ptsz"),
            ("cuEventQuery", true, "cuEventQuery"),
        ] {
            assert!(at(want).is_some(), "{want}");
            assert_eq!(find(base, per_thread), at(want), "{base}");
        }
        assert_eq!(find("cuNoSuchThing", false), None);
        assert_eq!(find("cuMemcpy", false), at("cuMemcpy"), "not a longer name");
    }
}
