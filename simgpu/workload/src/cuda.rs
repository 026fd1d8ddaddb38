//! The CUDA runtime, opened at run time, and the few types that make its use safe here.
#![expect(
    unsafe_code,
    reason = "calls of a C library through pointers from dlsym"
)]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    fmt, io,
    path::{Path, PathBuf},
    ptr::NonNull,
};

/// Why a workload ended early.
#[derive(Debug)]
pub enum WorkloadError {
    /// The runtime library could not be opened; the text is the loader's.
    Open { library: PathBuf, reason: String },
    /// The library lacks an entry point.
    Symbol {
        name: &'static str,
        library: PathBuf,
    },
    /// A call failed with this `cudaError_t`.
    Cuda { call: &'static str, code: i32 },
    /// A file or socket of the workload failed.
    Io {
        what: &'static str,
        source: io::Error,
    },
    /// An option has a value that means nothing.
    Option(&'static str),
}

impl fmt::Display for WorkloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { library, reason } => write!(f, "cannot open {library:?}: {reason}"),
            Self::Symbol { name, library } => write!(f, "no symbol {name} in {library:?}"),
            Self::Cuda { call, code } => write!(f, "{call} returned {code}"),
            Self::Io { what, .. } => write!(f, "{what}"),
            Self::Option(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for WorkloadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, WorkloadError>;

/// Adds what failed to an I/O error.
pub(crate) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> WorkloadError {
    move |source| WorkloadError::Io { what, source }
}

/// `dim3`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Dim3(c_uint, c_uint, c_uint);

impl Dim3 {
    fn line(x: u32) -> Self {
        Self(x, 1, 1)
    }
}

/// A stream or an event.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handle(u64);

/// Device memory.
#[derive(Clone, Copy)]
pub(crate) struct DevicePointer(*mut c_void);

// SAFETY: only a number to this process.
unsafe impl Send for DevicePointer {}

macro_rules! runtime {
    ($($field:ident = $name:literal ($($argument:ty),*) $(-> $result:ty)?;)*) => {
        struct Functions {
            $($field: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        fn resolve(library: NonNull<c_void>, path: &Path) -> Result<Functions> {
            Ok(Functions {
                $($field: {
                    let name = concat!($name, "\0");
                    // SAFETY: an open library, and a text that ends in 0.
                    let address = unsafe { libc::dlsym(library.as_ptr(), name.as_ptr().cast()) };
                    if address.is_null() {
                        return Err(WorkloadError::Symbol { name: $name, library: path.to_owned() });
                    }
                    // SAFETY: the runtime's function of this name has this type, by cuda_runtime_api.h.
                    unsafe {
                        std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(address)
                    }
                },)*
            })
        }
    };
}

runtime! {
    set_device = "cudaSetDevice" (c_int) -> c_int;
    set_flags = "cudaSetDeviceFlags" (c_uint) -> c_int;
    device_synchronize = "cudaDeviceSynchronize" () -> c_int;
    malloc = "cudaMalloc" (*mut *mut c_void, usize) -> c_int;
    free = "cudaFree" (*mut c_void) -> c_int;
    host_alloc = "cudaHostAlloc" (*mut *mut c_void, usize, c_uint) -> c_int;
    host_free = "cudaFreeHost" (*mut c_void) -> c_int;
    memcpy_async = "cudaMemcpyAsync" (*mut c_void, *const c_void, usize, c_int, u64) -> c_int;
    memset_async = "cudaMemsetAsync" (*mut c_void, c_int, usize, u64) -> c_int;
    stream_create = "cudaStreamCreateWithFlags" (*mut u64, c_uint) -> c_int;
    stream_synchronize = "cudaStreamSynchronize" (u64) -> c_int;
    stream_wait = "cudaStreamWaitEvent" (u64, u64, c_uint) -> c_int;
    event_create = "cudaEventCreateWithFlags" (*mut u64, c_uint) -> c_int;
    event_record = "cudaEventRecord" (u64, u64) -> c_int;
    event_synchronize = "cudaEventSynchronize" (u64) -> c_int;
    launch = "cudaLaunchKernel" (*const c_void, Dim3, Dim3, *mut *mut c_void, usize, u64) -> c_int;
    register_binary = "__cudaRegisterFatBinary" (*const c_void) -> *mut *mut c_void;
    register_end = "__cudaRegisterFatBinaryEnd" (*mut *mut c_void);
    register_function = "__cudaRegisterFunction" (
        *mut *mut c_void, *const c_char, *const c_char, *const c_char, c_int,
        *mut c_void, *mut c_void, *mut c_void, *mut c_void, *mut c_int
    );
}

/// The runtime library with the kernels of the workloads registered. It stays open for the life of the process.
pub(crate) struct Runtime {
    functions: Functions,
}

/// The workloads' kernels. What they would compute is in their names.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub(crate) enum Kernel {
    Embedding,
    AttentionForward,
    MlpForward,
    LossForward,
    AttentionBackward,
    MlpBackward,
    Optimizer,
    Prefill,
    Decode,
    Hog,
}

const KERNELS: [&CStr; 10] = [
    c"embedding_forward",
    c"attention_forward",
    c"mlp_forward",
    c"loss_forward",
    c"attention_backward",
    c"mlp_backward",
    c"adam_step",
    c"prefill_attention",
    c"decode_attention",
    c"hog_spin",
];

/// What the runtime takes for the kernels' stubs: only their addresses count.
static STUBS: [u8; KERNELS.len()] = [0; KERNELS.len()];
/// What it takes for the image.
static IMAGE: [u64; 8] = [0; 8];

/// Threads of each block that is launched.
const BLOCK: u32 = 256;
/// `cudaMemcpyHostToDevice`, `cudaMemcpyDeviceToHost`.
const H2D: c_int = 1;
const D2H: c_int = 2;

fn check(call: &'static str, code: c_int) -> Result<()> {
    if code == 0 {
        Ok(())
    } else {
        Err(WorkloadError::Cuda { call, code })
    }
}

impl Runtime {
    /// Opens `library` (a path, or a name to search for) and registers the kernels.
    pub(crate) fn open(library: &Path) -> Result<Self> {
        let fail = |reason: String| WorkloadError::Open {
            library: library.to_owned(),
            reason,
        };
        let name = CString::new(library.as_os_str().as_encoded_bytes())
            .map_err(|_| fail("the name holds a zero byte".into()))?;
        // SAFETY: a C string.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        let handle = NonNull::new(handle).ok_or_else(|| {
            // SAFETY: after a failed dlopen, dlerror gives a C string or null.
            let reason = unsafe {
                let text = libc::dlerror();
                if text.is_null() {
                    "no reason given".into()
                } else {
                    CStr::from_ptr(text).to_string_lossy().into_owned()
                }
            };
            fail(reason)
        })?;
        let functions = resolve(handle, library)?;
        let none = std::ptr::null_mut;
        // SAFETY: the compiler's convention: an image and stubs that live for ever, C strings, null for what is not used.
        unsafe {
            let binary = (functions.register_binary)(IMAGE.as_ptr().cast());
            for (stub, name) in STUBS.iter().zip(KERNELS) {
                let stub: *const u8 = stub;
                (functions.register_function)(
                    binary,
                    stub.cast(),
                    name.as_ptr(),
                    name.as_ptr(),
                    -1,
                    none(),
                    none(),
                    none(),
                    none(),
                    std::ptr::null_mut(),
                );
            }
            (functions.register_end)(binary);
        }
        Ok(Self { functions })
    }

    /// Chooses the device, and whether waits block (else they are as the runtime likes).
    pub(crate) fn use_device(&self, device: i32, blocking: bool) -> Result<()> {
        // SAFETY: numbers only.
        unsafe {
            check("cudaSetDevice", (self.functions.set_device)(device))?;
            let flags = if blocking { 4 } else { 0 };
            check("cudaSetDeviceFlags", (self.functions.set_flags)(flags))
        }
    }

    pub(crate) fn stream(&self) -> Result<Handle> {
        let mut stream = 0;
        // SAFETY: a place for the result. 1: cudaStreamNonBlocking.
        let code = unsafe { (self.functions.stream_create)(&mut stream, 1) };
        check("cudaStreamCreateWithFlags", code)?;
        Ok(Handle(stream))
    }

    pub(crate) fn event(&self) -> Result<Handle> {
        let mut event = 0;
        // SAFETY: a place for the result. 2: cudaEventDisableTiming.
        let code = unsafe { (self.functions.event_create)(&mut event, 2) };
        check("cudaEventCreateWithFlags", code)?;
        Ok(Handle(event))
    }

    pub(crate) fn record(&self, event: Handle, stream: Handle) -> Result<()> {
        // SAFETY: handles of this runtime.
        check("cudaEventRecord", unsafe {
            (self.functions.event_record)(event.0, stream.0)
        })
    }

    pub(crate) fn wait_for(&self, stream: Handle, event: Handle) -> Result<()> {
        // SAFETY: handles of this runtime.
        check("cudaStreamWaitEvent", unsafe {
            (self.functions.stream_wait)(stream.0, event.0, 0)
        })
    }

    pub(crate) fn synchronize(&self, stream: Handle) -> Result<()> {
        // SAFETY: a handle of this runtime.
        check("cudaStreamSynchronize", unsafe {
            (self.functions.stream_synchronize)(stream.0)
        })
    }

    pub(crate) fn synchronize_event(&self, event: Handle) -> Result<()> {
        // SAFETY: a handle of this runtime.
        check("cudaEventSynchronize", unsafe {
            (self.functions.event_synchronize)(event.0)
        })
    }

    pub(crate) fn synchronize_device(&self) -> Result<()> {
        // SAFETY: no arguments.
        check("cudaDeviceSynchronize", unsafe {
            (self.functions.device_synchronize)()
        })
    }

    pub(crate) fn launch(&self, kernel: Kernel, blocks: u32, stream: Handle) -> Result<()> {
        let stub: *const u8 = &STUBS[kernel as usize];
        let mut no_parameters = [std::ptr::null_mut()];
        // SAFETY: a registered stub; the kernels have no parameters.
        let code = unsafe {
            (self.functions.launch)(
                stub.cast(),
                Dim3::line(blocks),
                Dim3::line(BLOCK),
                no_parameters.as_mut_ptr(),
                0,
                stream.0,
            )
        };
        check("cudaLaunchKernel", code)
    }

    pub(crate) fn malloc(&self, bytes: usize) -> Result<DevicePointer> {
        let mut pointer = std::ptr::null_mut();
        // SAFETY: a place for the result.
        check("cudaMalloc", unsafe {
            (self.functions.malloc)(&mut pointer, bytes)
        })?;
        Ok(DevicePointer(pointer))
    }

    pub(crate) fn free(&self, pointer: DevicePointer) -> Result<()> {
        // SAFETY: the runtime checks the pointer, which is used no more.
        check("cudaFree", unsafe { (self.functions.free)(pointer.0) })
    }

    pub(crate) fn copy_to_device(
        &self,
        to: DevicePointer,
        from: &[u8],
        stream: Handle,
    ) -> Result<()> {
        // SAFETY: the device memory is as large as its owner says; the host memory lives in a `HostBuffer`, which is not freed
        // before the stream was synchronised.
        let code = unsafe {
            (self.functions.memcpy_async)(to.0, from.as_ptr().cast(), from.len(), H2D, stream.0)
        };
        check("cudaMemcpyAsync", code)
    }

    pub(crate) fn copy_to_host(
        &self,
        to: &mut [u8],
        from: DevicePointer,
        stream: Handle,
    ) -> Result<()> {
        // SAFETY: as above.
        let code = unsafe {
            (self.functions.memcpy_async)(to.as_mut_ptr().cast(), from.0, to.len(), D2H, stream.0)
        };
        check("cudaMemcpyAsync", code)
    }

    pub(crate) fn zero(&self, pointer: DevicePointer, bytes: usize, stream: Handle) -> Result<()> {
        // SAFETY: the device memory is as large as its owner says.
        check("cudaMemsetAsync", unsafe {
            (self.functions.memset_async)(pointer.0, 0, bytes, stream.0)
        })
    }

    /// Host memory for copies: page-locked, or ordinary.
    pub(crate) fn host_buffer(&self, bytes: usize, pinned: bool) -> Result<HostBuffer> {
        let mut address = std::ptr::null_mut();
        if pinned {
            // SAFETY: a place for the result.
            check("cudaHostAlloc", unsafe {
                (self.functions.host_alloc)(&mut address, bytes, 0)
            })?;
        } else {
            // SAFETY: a fresh mapping, at no address that anyone has.
            address = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            if address == libc::MAP_FAILED {
                return Err(io_error("cannot map a buffer")(io::Error::last_os_error()));
            }
        }
        let address = NonNull::new(address.cast()).ok_or(WorkloadError::Option("empty buffer"))?;
        Ok(HostBuffer {
            address,
            bytes,
            free: pinned.then_some(self.functions.host_free),
        })
    }
}

/// Page-aligned host memory.
pub(crate) struct HostBuffer {
    address: NonNull<u8>,
    bytes: usize,
    /// For page-locked memory, what frees it.
    free: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for HostBuffer {}

impl HostBuffer {
    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: `bytes` bytes of a mapping, zeros at first, that this owns.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.bytes) }
    }
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.bytes) }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        let address = self.address.as_ptr().cast();
        // SAFETY: made by the call that belongs to the one here, and used no more.
        unsafe {
            match self.free {
                Some(free) => {
                    free(address);
                }
                None => {
                    libc::munmap(address, self.bytes);
                }
            }
        }
    }
}
