//! Registered code and its launches.
//!
//! A compiled program registers its device code when it starts: `__cudaRegisterFatBinary`, then for each kernel
//! `__cudaRegisterFunction(handle, stub, …, name, …)`. A launch names the stub; the first one on a device loads the module and looks
//! the function up (lazy loading, the default since CUDA 12.2). Programs without a compiler of ours call the same functions by hand.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    driver::{Driver, Function, driver},
    state::*,
};

/// `dim3`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Dim3 {
    x: c_uint,
    y: c_uint,
    z: c_uint,
}

impl Dim3 {
    fn is_empty(self) -> bool {
        self.x == 0 || self.y == 0 || self.z == 0
    }
}

#[derive(Default)]
struct Registry {
    next_binary: u64,
    /// Images by handle.
    binaries: BTreeMap<u64, Binary>,
    /// Kernels by the address of their stub.
    kernels: BTreeMap<usize, Kernel>,
}

struct Binary {
    /// What the program gave; only its address is used.
    image: usize,
    /// By device.
    modules: BTreeMap<c_int, Handle>,
}

struct Kernel {
    binary: u64,
    name: CString,
    /// By device.
    functions: BTreeMap<c_int, Function>,
}

static REGISTRY: Mutex<Option<Registry>> = Mutex::new(None);

fn registry() -> MutexGuard<'static, Option<Registry>> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The driver's function for a stub, loading what is not loaded yet.
pub(crate) fn function(driver: &Driver, stub: *const c_void) -> Result<Function> {
    let mut guard = registry();
    let registry = guard.as_mut().ok_or(error::INVALID_DEVICE_FUNCTION)?;
    let kernel = registry
        .kernels
        .get_mut(&(stub as usize))
        .ok_or(error::INVALID_DEVICE_FUNCTION)?;
    let device = device();
    if let Some(function) = kernel.functions.get(&device) {
        return Ok(*function);
    }
    let binary = registry
        .binaries
        .get_mut(&kernel.binary)
        .ok_or(error::INVALID_DEVICE_FUNCTION)?;
    let module = match binary.modules.get(&device) {
        Some(module) => *module,
        None => {
            let mut module = 0;
            // SAFETY: a place for the result; the image is the program's own, and stays while it is registered.
            check(unsafe { (driver.module_load)(&mut module, binary.image as *const c_void) })?;
            binary.modules.insert(device, module);
            module
        }
    };
    let mut function = 0;
    // SAFETY: a place for the result, and a C string.
    check(unsafe { (driver.module_function)(&mut function, module, kernel.name.as_ptr()) })?;
    kernel.functions.insert(device, function);
    Ok(function)
}

/// After a reset of a device: what was loaded there is gone.
pub(crate) fn forget_loaded(device: c_int) {
    if let Some(registry) = registry().as_mut() {
        for binary in registry.binaries.values_mut() {
            binary.modules.remove(&device);
        }
        for kernel in registry.kernels.values_mut() {
            kernel.functions.remove(&device);
        }
    }
}

// ---- Registration ----

/// Notes a program's device code. The handle is for the other calls; the real one is a `void **`, and so is this one's type.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaRegisterFatBinary(image: *const c_void) -> *mut Pointer {
    entry_point("__cudaRegisterFatBinary");
    let mut guard = registry();
    let registry = guard.get_or_insert_default();
    registry.next_binary += 0x10;
    let binary = Binary {
        image: image as usize,
        modules: BTreeMap::new(),
    };
    registry.binaries.insert(registry.next_binary, binary);
    registry.next_binary as *mut Pointer
}

/// The end of a registration: nothing is left to do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaRegisterFatBinaryEnd(_handle: *mut Pointer) {
    entry_point("__cudaRegisterFatBinaryEnd");
}

/// Forgets device code and its kernels.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaUnregisterFatBinary(handle: *mut Pointer) {
    entry_point("__cudaUnregisterFatBinary");
    if let Some(registry) = registry().as_mut() {
        let binary = registry.binaries.remove(&(handle as u64));
        registry.kernels.retain(|_, k| k.binary != handle as u64);
        if let (Some(binary), Some(driver)) = (binary, driver()) {
            for module in binary.modules.into_values() {
                // A failure means that its context is gone already.
                // SAFETY: a number; the driver checks it.
                let _ = unsafe { (driver.module_unload)(module) };
            }
        }
    }
}

/// Notes a kernel: `stub` is what a launch names, `name` what it is called in the image.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaRegisterFunction(
    handle: *mut Pointer,
    stub: *const c_char,
    _device_function: *mut c_char,
    name: *const c_char,
    _thread_limit: c_int,
    _tid: *mut c_void,
    _bid: *mut c_void,
    _block: *mut c_void,
    _grid: *mut c_void,
    _warp_size: *mut c_int,
) {
    entry_point("__cudaRegisterFunction");
    if name.is_null() {
        return;
    }
    // SAFETY: a C string, by the compiler's convention.
    let name = unsafe { CStr::from_ptr(name) }.to_owned();
    let kernel = Kernel {
        binary: handle as u64,
        name,
        functions: BTreeMap::new(),
    };
    let mut guard = registry();
    let registry = guard.get_or_insert_default();
    registry.kernels.insert(stub as usize, kernel);
}

/// Notes a variable of the device: they have no content here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaRegisterVar(
    _handle: *mut Pointer,
    _host: *mut c_char,
    _device: *mut c_char,
    _name: *const c_char,
    _external: c_int,
    _bytes: usize,
    _constant: c_int,
    _global: c_int,
) {
    entry_point("__cudaRegisterVar");
}

/// Says yes, as every image is loadable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaInitModule(_handle: *mut Pointer) -> c_char {
    entry_point("__cudaInitModule");
    1
}

// ---- The `<<<…>>>` syntax: one call leaves the configuration, the stub takes it ----

type Configuration = (Dim3, Dim3, usize, Handle);

thread_local! {
    static CONFIGURATIONS: std::cell::RefCell<Vec<Configuration>> = const { std::cell::RefCell::new(Vec::new()) };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaPushCallConfiguration(
    grid: Dim3,
    block: Dim3,
    shared_bytes: usize,
    stream: Handle,
) -> c_uint {
    entry_point("__cudaPushCallConfiguration");
    CONFIGURATIONS.with_borrow_mut(|stack| stack.push((grid, block, shared_bytes, stream)));
    0
}

export!(__cudaPopCallConfiguration => (
    grid: *mut Dim3,
    block: *mut Dim3,
    shared_bytes: *mut usize,
    stream: *mut Handle,
) {
    let top = CONFIGURATIONS.with_borrow_mut(Vec::pop);
    let top = top.ok_or(error::INVALID_CONFIGURATION)?;
    put(grid, top.0)?;
    put(block, top.1)?;
    put(shared_bytes, top.2)?;
    put(stream, top.3)
});

// ---- Launches ----

macro_rules! launches {
    ($($name:ident / $field:ident ($($extra:expr)?);)*) => {$(
        export!($name => (
            stub: *const c_void,
            grid: Dim3,
            block: Dim3,
            parameters: *mut Pointer,
            shared_bytes: usize,
            stream: Handle,
        ) {
            let driver = ready()?;
            let function = function(driver, stub)?;
            if grid.is_empty() || block.is_empty() {
                return Err(error::INVALID_CONFIGURATION);
            }
            check((driver.$field)(
                function, grid.x, grid.y, grid.z, block.x, block.y, block.z,
                shared_bytes as c_uint, stream, parameters, $($extra)?
            ))
        });
    )*};
}

launches! {
    cudaLaunchKernel / launch (std::ptr::null_mut());
    cudaLaunchKernel_ptsz / launch_ptsz (std::ptr::null_mut());
    cudaLaunchCooperativeKernel / launch_cooperative ();
    cudaLaunchCooperativeKernel_ptsz / launch_cooperative_ptsz ();
}

/// `cudaLaunchConfig_t`.
#[repr(C)]
pub struct LaunchConfig {
    grid: Dim3,
    block: Dim3,
    shared_bytes: usize,
    stream: Handle,
    attributes: *mut c_void,
    attribute_count: c_uint,
}

/// `CUlaunchConfig`.
#[repr(C)]
struct DriverLaunchConfig {
    grid: Dim3,
    block: Dim3,
    shared_bytes: c_uint,
    stream: Handle,
    attributes: *mut c_void,
    attribute_count: c_uint,
}

macro_rules! launches_ex {
    ($($name:ident / $field:ident;)*) => {$(
        export!($name => (config: *const LaunchConfig, stub: *const c_void, parameters: *mut Pointer) {
            let driver = ready()?;
            let config = config.as_ref().ok_or(error::INVALID_VALUE)?;
            let function = function(driver, stub)?;
            if config.grid.is_empty() || config.block.is_empty() {
                return Err(error::INVALID_CONFIGURATION);
            }
            let translated = DriverLaunchConfig {
                grid: config.grid,
                block: config.block,
                shared_bytes: config.shared_bytes as c_uint,
                stream: config.stream,
                attributes: config.attributes,
                attribute_count: config.attribute_count,
            };
            check((driver.$field)((&raw const translated).cast(), function, parameters, std::ptr::null_mut()))
        });
    )*};
}

launches_ex! {
    cudaLaunchKernelExC / launch_ex;
    cudaLaunchKernelExC_ptsz / launch_ex_ptsz;
}

// ---- Functions ----

/// `cudaFuncAttributes`.
#[repr(C)]
pub struct FunctionAttributes {
    shared_bytes: usize,
    constant_bytes: usize,
    local_bytes: usize,
    max_threads: c_int,
    registers: c_int,
    ptx_version: c_int,
    binary_version: c_int,
    cache_mode: c_int,
    max_dynamic_shared_bytes: c_int,
    carveout: c_int,
    cluster: [c_int; 6],
    reserved: [c_int; 16],
}

export!(cudaFuncGetAttributes => (to: *mut FunctionAttributes, stub: *const c_void) {
    let driver = ready()?;
    let function = function(driver, stub)?;
    let attribute = |number| {
        let mut value = 0;
        check((driver.function_attribute)(&mut value, number, function)).map(|()| value)
    };
    put(to, FunctionAttributes {
        shared_bytes: 0,
        constant_bytes: 0,
        local_bytes: 0,
        max_threads: attribute(0)?,
        registers: attribute(4)?,
        ptx_version: attribute(5)?,
        binary_version: attribute(6)?,
        cache_mode: 0,
        max_dynamic_shared_bytes: attribute(8)?,
        carveout: -1,
        cluster: [0; 6],
        reserved: [0; 16],
    })
});

export!(cudaFuncSetAttribute => (stub: *const c_void, number: c_int, value: c_int) {
    let driver = ready()?;
    check((driver.function_set_attribute)(function(driver, stub)?, number, value))
});

export!(cudaFuncGetName => (name: *mut *const c_char, stub: *const c_void) {
    let driver = ready()?;
    function(driver, stub)?;
    let guard = registry();
    let kernel = guard.as_ref().and_then(|r| r.kernels.get(&(stub as usize)));
    // The text stays until the program takes its registration back.
    put(name, kernel.ok_or(error::INVALID_DEVICE_FUNCTION)?.name.as_ptr())
});

export!(cudaOccupancyMaxActiveBlocksPerMultiprocessor => (
    blocks: *mut c_int,
    stub: *const c_void,
    threads: c_int,
    shared_bytes: usize,
) {
    let driver = ready()?;
    check((driver.occupancy)(blocks, function(driver, stub)?, threads, shared_bytes, 0))
});

export!(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags => (
    blocks: *mut c_int,
    stub: *const c_void,
    threads: c_int,
    shared_bytes: usize,
    flags: c_uint,
) {
    let driver = ready()?;
    check((driver.occupancy)(blocks, function(driver, stub)?, threads, shared_bytes, flags))
});
