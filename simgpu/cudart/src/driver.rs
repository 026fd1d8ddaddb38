//! The driver library: opened by name, its entry points found by `cuGetProcAddress`.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    sync::OnceLock,
};

use crate::state::{Handle, Pointer};

/// The version of the API that this runtime asks the driver for: CUDA 12.9.
pub(crate) const VERSION: c_int = 12090;

type GetProcAddress =
    unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64, *mut c_int) -> c_int;

macro_rules! driver {
    ($($field:ident = $name:literal $flags:literal ($($argument:ty),*);)*) => {
        /// Entry points of the driver.
        pub(crate) struct Driver {
            $(pub(crate) $field: unsafe extern "C" fn($($argument),*) -> c_int,)*
            get_proc_address: GetProcAddress,
        }

        fn resolve(get_proc_address: GetProcAddress) -> Option<Driver> {
            Some(Driver {
                $($field: {
                    let address = look_up(get_proc_address, $name, $flags)?;
                    // SAFETY: the driver's function of this name has this type, by cuda.h.
                    unsafe {
                        std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> c_int>(address)
                    }
                },)*
                get_proc_address,
            })
        }
    };
}

/// A function of the application or of a module, in the driver's hands.
pub(crate) type Function = Handle;

// Flags: 1 the plain form (legacy default stream), 2 the per-thread form.
driver! {
    init = c"cuInit" 1 (c_uint);
    driver_version = c"cuDriverGetVersion" 1 (*mut c_int);
    device_count = c"cuDeviceGetCount" 1 (*mut c_int);
    device_name = c"cuDeviceGetName" 1 (*mut c_char, c_int, c_int);
    device_uuid = c"cuDeviceGetUuid" 1 (*mut [u8; 16], c_int);
    device_total = c"cuDeviceTotalMem" 1 (*mut usize, c_int);
    device_attribute = c"cuDeviceGetAttribute" 1 (*mut c_int, c_int, c_int);
    device_pci = c"cuDeviceGetPCIBusId" 1 (*mut c_char, c_int, c_int);
    device_by_pci = c"cuDeviceGetByPCIBusId" 1 (*mut c_int, *const c_char);
    device_can_access = c"cuDeviceCanAccessPeer" 1 (*mut c_int, c_int, c_int);
    device_pool = c"cuDeviceGetDefaultMemPool" 1 (*mut Handle, c_int);
    primary_retain = c"cuDevicePrimaryCtxRetain" 1 (*mut Handle, c_int);
    primary_reset = c"cuDevicePrimaryCtxReset" 1 (c_int);
    primary_set_flags = c"cuDevicePrimaryCtxSetFlags" 1 (c_int, c_uint);
    primary_state = c"cuDevicePrimaryCtxGetState" 1 (c_int, *mut c_uint, *mut c_int);
    set_current = c"cuCtxSetCurrent" 1 (Handle);
    get_current = c"cuCtxGetCurrent" 1 (*mut Handle);
    current_device = c"cuCtxGetDevice" 1 (*mut c_int);
    priorities = c"cuCtxGetStreamPriorityRange" 1 (*mut c_int, *mut c_int);
    synchronize = c"cuCtxSynchronize" 1 ();
    module_load = c"cuModuleLoadData" 1 (*mut Handle, *const c_void);
    module_unload = c"cuModuleUnload" 1 (Handle);
    module_function = c"cuModuleGetFunction" 1 (*mut Function, Handle, *const c_char);
    function_attribute = c"cuFuncGetAttribute" 1 (*mut c_int, c_int, Function);
    function_set_attribute = c"cuFuncSetAttribute" 1 (Function, c_int, c_int);
    occupancy = c"cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags" 1 (*mut c_int, Function, c_int, usize, c_uint);
    launch = c"cuLaunchKernel" 1 (Function, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut Pointer, *mut Pointer);
    launch_ptsz = c"cuLaunchKernel" 2 (Function, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut Pointer, *mut Pointer);
    launch_ex = c"cuLaunchKernelEx" 1 (*const c_void, Function, *mut Pointer, *mut Pointer);
    launch_ex_ptsz = c"cuLaunchKernelEx" 2 (*const c_void, Function, *mut Pointer, *mut Pointer);
    launch_cooperative = c"cuLaunchCooperativeKernel" 1 (Function, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut Pointer);
    launch_cooperative_ptsz = c"cuLaunchCooperativeKernel" 2 (Function, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut Pointer);
    memory_info = c"cuMemGetInfo" 1 (*mut usize, *mut usize);
    alloc = c"cuMemAlloc" 1 (*mut Pointer, usize);
    alloc_pitch = c"cuMemAllocPitch" 1 (*mut Pointer, *mut usize, usize, usize, c_uint);
    alloc_managed = c"cuMemAllocManaged" 1 (*mut Pointer, usize, c_uint);
    free = c"cuMemFree" 1 (Pointer);
    alloc_async = c"cuMemAllocAsync" 1 (*mut Pointer, usize, Handle);
    alloc_async_ptsz = c"cuMemAllocAsync" 2 (*mut Pointer, usize, Handle);
    alloc_from_pool = c"cuMemAllocFromPoolAsync" 1 (*mut Pointer, usize, Handle, Handle);
    alloc_from_pool_ptsz = c"cuMemAllocFromPoolAsync" 2 (*mut Pointer, usize, Handle, Handle);
    free_async = c"cuMemFreeAsync" 1 (Pointer, Handle);
    free_async_ptsz = c"cuMemFreeAsync" 2 (Pointer, Handle);
    pool_trim = c"cuMemPoolTrimTo" 1 (Handle, usize);
    host_alloc = c"cuMemHostAlloc" 1 (*mut Pointer, usize, c_uint);
    host_free = c"cuMemFreeHost" 1 (Pointer);
    host_register = c"cuMemHostRegister" 1 (Pointer, usize, c_uint);
    host_unregister = c"cuMemHostUnregister" 1 (Pointer);
    host_device_pointer = c"cuMemHostGetDevicePointer" 1 (*mut Pointer, Pointer, c_uint);
    host_flags = c"cuMemHostGetFlags" 1 (*mut c_uint, Pointer);
    pointer_attribute = c"cuPointerGetAttribute" 1 (*mut c_void, c_int, Pointer);
    copy = c"cuMemcpy" 1 (Pointer, Pointer, usize);
    copy_ptds = c"cuMemcpy" 2 (Pointer, Pointer, usize);
    copy_h2d = c"cuMemcpyHtoD" 1 (Pointer, Pointer, usize);
    copy_h2d_ptds = c"cuMemcpyHtoD" 2 (Pointer, Pointer, usize);
    copy_d2h = c"cuMemcpyDtoH" 1 (Pointer, Pointer, usize);
    copy_d2h_ptds = c"cuMemcpyDtoH" 2 (Pointer, Pointer, usize);
    copy_d2d = c"cuMemcpyDtoD" 1 (Pointer, Pointer, usize);
    copy_d2d_ptds = c"cuMemcpyDtoD" 2 (Pointer, Pointer, usize);
    copy_async = c"cuMemcpyAsync" 1 (Pointer, Pointer, usize, Handle);
    copy_async_ptsz = c"cuMemcpyAsync" 2 (Pointer, Pointer, usize, Handle);
    copy_h2d_async = c"cuMemcpyHtoDAsync" 1 (Pointer, Pointer, usize, Handle);
    copy_h2d_async_ptsz = c"cuMemcpyHtoDAsync" 2 (Pointer, Pointer, usize, Handle);
    copy_d2h_async = c"cuMemcpyDtoHAsync" 1 (Pointer, Pointer, usize, Handle);
    copy_d2h_async_ptsz = c"cuMemcpyDtoHAsync" 2 (Pointer, Pointer, usize, Handle);
    copy_d2d_async = c"cuMemcpyDtoDAsync" 1 (Pointer, Pointer, usize, Handle);
    copy_d2d_async_ptsz = c"cuMemcpyDtoDAsync" 2 (Pointer, Pointer, usize, Handle);
    copy_peer = c"cuMemcpyPeer" 1 (Pointer, Handle, Pointer, Handle, usize);
    copy_peer_async = c"cuMemcpyPeerAsync" 1 (Pointer, Handle, Pointer, Handle, usize, Handle);
    copy_2d = c"cuMemcpy2DUnaligned" 1 (*const c_void);
    copy_2d_ptds = c"cuMemcpy2DUnaligned" 2 (*const c_void);
    copy_2d_async = c"cuMemcpy2DAsync" 1 (*const c_void, Handle);
    copy_2d_async_ptsz = c"cuMemcpy2DAsync" 2 (*const c_void, Handle);
    fill = c"cuMemsetD8" 1 (Pointer, u8, usize);
    fill_ptds = c"cuMemsetD8" 2 (Pointer, u8, usize);
    fill_async = c"cuMemsetD8Async" 1 (Pointer, u8, usize, Handle);
    fill_async_ptsz = c"cuMemsetD8Async" 2 (Pointer, u8, usize, Handle);
    fill_2d = c"cuMemsetD2D8" 1 (Pointer, usize, u8, usize, usize);
    fill_2d_ptds = c"cuMemsetD2D8" 2 (Pointer, usize, u8, usize, usize);
    fill_2d_async = c"cuMemsetD2D8Async" 1 (Pointer, usize, u8, usize, usize, Handle);
    fill_2d_async_ptsz = c"cuMemsetD2D8Async" 2 (Pointer, usize, u8, usize, usize, Handle);
    stream_create = c"cuStreamCreateWithPriority" 1 (*mut Handle, c_uint, c_int);
    stream_destroy = c"cuStreamDestroy" 1 (Handle);
    stream_synchronize = c"cuStreamSynchronize" 1 (Handle);
    stream_synchronize_ptsz = c"cuStreamSynchronize" 2 (Handle);
    stream_query = c"cuStreamQuery" 1 (Handle);
    stream_query_ptsz = c"cuStreamQuery" 2 (Handle);
    stream_wait = c"cuStreamWaitEvent" 1 (Handle, Handle, c_uint);
    stream_wait_ptsz = c"cuStreamWaitEvent" 2 (Handle, Handle, c_uint);
    stream_flags = c"cuStreamGetFlags" 1 (Handle, *mut c_uint);
    stream_flags_ptsz = c"cuStreamGetFlags" 2 (Handle, *mut c_uint);
    stream_priority = c"cuStreamGetPriority" 1 (Handle, *mut c_int);
    stream_priority_ptsz = c"cuStreamGetPriority" 2 (Handle, *mut c_int);
    stream_id = c"cuStreamGetId" 1 (Handle, *mut u64);
    stream_id_ptsz = c"cuStreamGetId" 2 (Handle, *mut u64);
    event_create = c"cuEventCreate" 1 (*mut Handle, c_uint);
    event_destroy = c"cuEventDestroy" 1 (Handle);
    event_record = c"cuEventRecord" 1 (Handle, Handle);
    event_record_ptsz = c"cuEventRecord" 2 (Handle, Handle);
    event_record_flags = c"cuEventRecordWithFlags" 1 (Handle, Handle, c_uint);
    event_record_flags_ptsz = c"cuEventRecordWithFlags" 2 (Handle, Handle, c_uint);
    event_query = c"cuEventQuery" 1 (Handle);
    event_synchronize = c"cuEventSynchronize" 1 (Handle);
    event_elapsed = c"cuEventElapsedTime" 1 (*mut f32, Handle, Handle);
    capture_begin = c"cuStreamBeginCapture" 1 (Handle, c_int);
    capture_begin_ptsz = c"cuStreamBeginCapture" 2 (Handle, c_int);
    capture_end = c"cuStreamEndCapture" 1 (Handle, *mut Handle);
    capture_end_ptsz = c"cuStreamEndCapture" 2 (Handle, *mut Handle);
    capture_is = c"cuStreamIsCapturing" 1 (Handle, *mut c_int);
    capture_is_ptsz = c"cuStreamIsCapturing" 2 (Handle, *mut c_int);
    capture_info = c"cuStreamGetCaptureInfo" 1 (Handle, *mut c_int, *mut u64, *mut Handle, *mut *const Handle, *mut usize);
    capture_info_ptsz = c"cuStreamGetCaptureInfo" 2 (Handle, *mut c_int, *mut u64, *mut Handle, *mut *const Handle, *mut usize);
    graph_create = c"cuGraphCreate" 1 (*mut Handle, c_uint);
    graph_destroy = c"cuGraphDestroy" 1 (Handle);
    graph_add_kernel = c"cuGraphAddKernelNode" 1 (*mut Handle, Handle, *const Handle, usize, *const c_void);
    graph_nodes = c"cuGraphGetNodes" 1 (Handle, *mut Handle, *mut usize);
    graph_instantiate = c"cuGraphInstantiateWithFlags" 1 (*mut Handle, Handle, u64);
    graph_instantiate_params = c"cuGraphInstantiateWithParams" 1 (*mut Handle, Handle, *mut c_void);
    graph_instantiate_params_ptsz = c"cuGraphInstantiateWithParams" 2 (*mut Handle, Handle, *mut c_void);
    graph_launch = c"cuGraphLaunch" 1 (Handle, Handle);
    graph_launch_ptsz = c"cuGraphLaunch" 2 (Handle, Handle);
    graph_upload = c"cuGraphUpload" 1 (Handle, Handle);
    graph_upload_ptsz = c"cuGraphUpload" 2 (Handle, Handle);
    graph_update = c"cuGraphExecUpdate" 1 (Handle, Handle, *mut c_void);
    graph_exec_destroy = c"cuGraphExecDestroy" 1 (Handle);
    profiler_start = c"cuProfilerStart" 1 ();
    profiler_stop = c"cuProfilerStop" 1 ();
}

fn look_up(get: GetProcAddress, name: &CStr, flags: u64) -> Option<*mut c_void> {
    let (mut address, mut status) = (std::ptr::null_mut(), 0);
    // SAFETY: valid places for both results, and a C string.
    let code = unsafe { get(name.as_ptr(), &mut address, VERSION, flags, &mut status) };
    (code == 0 && !address.is_null()).then_some(address)
}

impl Driver {
    /// `cudaGetDriverEntryPoint`.
    pub(crate) fn entry_point(&self, name: &CStr, flags: u64) -> Option<*mut c_void> {
        look_up(self.get_proc_address, name, flags)
    }
}

/// The driver, opened at the first call; `None` when there is no `libcuda.so.1` with all that is needed.
pub(crate) fn driver() -> Option<&'static Driver> {
    static DRIVER: OnceLock<Option<Driver>> = OnceLock::new();
    DRIVER.get_or_init(open).as_ref()
}

fn open() -> Option<Driver> {
    // SAFETY: a C string; the library stays open for ever.
    let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
    if library.is_null() {
        return None;
    }
    // SAFETY: an open library and a C string.
    let symbol = unsafe { libc::dlsym(library, c"cuGetProcAddress_v2".as_ptr()) };
    if symbol.is_null() {
        return None;
    }
    // SAFETY: the driver's function of this name has this type, by cuda.h.
    let get = unsafe { std::mem::transmute::<*mut c_void, GetProcAddress>(symbol) };
    resolve(get)
}
