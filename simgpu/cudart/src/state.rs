//! What the runtime keeps: for each thread its device and its last error, for each device that its context is there.

use std::{
    cell::Cell,
    ffi::{c_int, c_void},
    sync::{
        Once,
        atomic::{AtomicBool, AtomicU64, Ordering::*},
    },
};

use crate::driver::{Driver, driver};

pub(crate) type CudaError = c_int;
/// Streams, events, graphs, contexts, modules, functions.
pub(crate) type Handle = u64;
/// Memory, of the host or of a device.
pub(crate) type Pointer = *mut c_void;

/// `cudaError_t`, where it is not just what the driver returned.
pub(crate) mod error {
    pub(crate) const INVALID_VALUE: i32 = 1;
    pub(crate) const INITIALIZATION: i32 = 3;
    pub(crate) const INVALID_CONFIGURATION: i32 = 9;
    pub(crate) const INVALID_MEMCPY_DIRECTION: i32 = 21;
    pub(crate) const INSUFFICIENT_DRIVER: i32 = 35;
    pub(crate) const INVALID_DEVICE_FUNCTION: i32 = 98;
    pub(crate) const INVALID_DEVICE: i32 = 101;
}

pub(crate) type Result<T> = std::result::Result<T, CudaError>;

const DEVICES: usize = 8;
/// Primary contexts, by device; 0 until it is retained.
static PRIMARY: [AtomicU64; DEVICES] = [const { AtomicU64::new(0) }; DEVICES];
static FORKED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static DEVICE: Cell<c_int> = const { Cell::new(0) };
    /// The device whose context was made current on this thread; -1 for none.
    static BOUND: Cell<c_int> = const { Cell::new(-1) };
    static LAST_ERROR: Cell<CudaError> = const { Cell::new(0) };
}

/// `Ok` for success.
pub(crate) fn check(code: c_int) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(code) }
}

/// The driver, initialised.
pub(crate) fn initialised() -> Result<&'static Driver> {
    static INIT: Once = Once::new();
    let driver = driver().ok_or(error::INSUFFICIENT_DRIVER)?;
    if FORKED.load(Relaxed) {
        return Err(error::INITIALIZATION);
    }
    INIT.call_once(|| {
        extern "C" fn in_child() {
            FORKED.store(true, Relaxed);
        }
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
    // SAFETY: no memory involved.
    check(unsafe { (driver.init)(0) })?;
    Ok(driver)
}

/// The driver, with the context of this thread's device current: what every call but a few begins with.
pub(crate) fn ready() -> Result<&'static Driver> {
    let device = DEVICE.get();
    if BOUND.get() == device
        && !FORKED.load(Relaxed)
        && let Some(driver) = driver()
    {
        return Ok(driver);
    }
    bind(device)
}

#[cold]
fn bind(device: c_int) -> Result<&'static Driver> {
    let driver = initialised()?;
    let primary = usize::try_from(device).ok().and_then(|d| PRIMARY.get(d));
    let primary = primary.ok_or(error::INVALID_DEVICE)?;
    let mut context = 0;
    // SAFETY: valid places for the results.
    unsafe {
        // A context that the program made current by the driver API is used as it is.
        check((driver.get_current)(&mut context))?;
        if context != 0 && BOUND.get() == -1 {
            let mut its_device = 0;
            check((driver.current_device)(&mut its_device))?;
            DEVICE.set(its_device);
            BOUND.set(its_device);
            return Ok(driver);
        }
        context = primary.load(Acquire);
        if context == 0 {
            check((driver.primary_retain)(&mut context, device))?;
            primary.store(context, Release);
        }
        check((driver.set_current)(context))?;
    }
    BOUND.set(device);
    Ok(driver)
}

/// The thread's device.
pub(crate) fn device() -> c_int {
    DEVICE.get()
}

pub(crate) fn set_device(device: c_int) {
    DEVICE.set(device);
}

/// After a reset: the context must be made current again.
pub(crate) fn forget_binding(device: c_int) {
    if let Some(primary) = usize::try_from(device).ok().and_then(|d| PRIMARY.get(d)) {
        primary.store(0, Release);
    }
    BOUND.set(-1);
}

/// The error that a call leaves behind for `cudaGetLastError`.
pub(crate) fn finish(result: Result<()>) -> CudaError {
    match result {
        Ok(()) => 0,
        Err(code) => {
            LAST_ERROR.set(code);
            code
        }
    }
}

pub(crate) fn last_error() -> CudaError {
    LAST_ERROR.get()
}

pub(crate) fn clear_last_error() -> CudaError {
    LAST_ERROR.replace(0)
}

/// Writes a result where the caller wants it.
///
/// # Safety
/// `to` is null, or valid for writing a `T`.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) -> Result<()> {
    if to.is_null() {
        return Err(error::INVALID_VALUE);
    }
    // SAFETY: by the caller's promise, and not null.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// Marks the beginning of an entry point. It makes the function differ from all others, so that no two become one address, and gives
/// it something on its stack, so that it sets its frame up (`push`) before all else. Costs one store.
#[inline(always)]
pub(crate) fn entry_point(name: &'static str) {
    std::hint::black_box(name.as_ptr());
}

/// Makes entry points: `export!(name => (argument: type, …) { body })`, where the body is a [`Result<()>`] with `?`.
///
/// With `export!(plain | per_thread, (plain_field, per_thread_field) => …)` it makes two, which call the driver's plain and
/// per-thread function: in the body, `call!` names it.
macro_rules! export {
    ($name:ident => ($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> crate::state::CudaError {
            crate::state::entry_point(stringify!($name));
            let body = || -> crate::state::Result<()> {
                #[allow(unused_unsafe, reason = "not every body needs it")]
                // SAFETY: the caller follows cuda_runtime_api.h: each pointer is null, or valid for what the call does there; and
                // the driver's functions get what cuda.h asks for.
                unsafe { $body }
            };
            crate::state::finish(body())
        }
    };
    // Two entry points that hand their arguments to one function of the driver each.
    ($plain:ident / $plain_field:ident, $per_thread:ident / $per_thread_field:ident =>
     ($($argument:ident: $type:ty),* $(,)?) -> ($($passed:expr),* $(,)?)) => {
        export!($plain => ($($argument: $type),*) {
            crate::state::check((crate::state::ready()?.$plain_field)($($passed),*))
        });
        export!($per_thread => ($($argument: $type),*) {
            crate::state::check((crate::state::ready()?.$per_thread_field)($($passed),*))
        });
    };
    // One entry point that does.
    ($name:ident / $field:ident => ($($argument:ident: $type:ty),* $(,)?) -> ($($passed:expr),* $(,)?)) => {
        export!($name => ($($argument: $type),*) {
            crate::state::check((crate::state::ready()?.$field)($($passed),*))
        });
    };
}
