//! The driver of this process behind one lock, the current context of each thread, and the macro that makes an entry point.

use std::{
    cell::Cell,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use simgpu_device::{
    Config, Driver, Machine, Status,
    driver::{Handle, Result, StreamRef, Wait},
};

pub(crate) type CUresult = i32;
pub(crate) type CUdevice = i32;
pub(crate) type CUdeviceptr = u64;
/// Contexts, streams, events, modules, functions, graphs: pointers that nobody may look behind.
pub(crate) type Opaque = u64;

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);
/// Set in a child that was forked after initialisation; its lock may be held by a thread that is not there.
static FORKED: AtomicBool = AtomicBool::new(false);

/// Depth of `cuCtxPushCurrent`, at most.
const STACK: usize = 32;

thread_local! {
    static CONTEXTS: Cell<([Handle; STACK], usize)> = const { Cell::new(([0; STACK], 0)) };
    static THREAD: Cell<u64> = const { Cell::new(0) };
}

fn lock() -> MutexGuard<'static, Option<Driver>> {
    DRIVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `cuInit`.
pub(crate) fn initialise() -> Result<()> {
    if FORKED.load(Relaxed) {
        return Err(Status::NotInitialized);
    }
    let mut driver = lock();
    if driver.is_some() {
        return Ok(());
    }
    let complain = |error: &dyn std::fmt::Display, status| {
        // Nobody but the person who set it up can repair this, and the ABI has no place for the reason.
        eprintln!("simgpu: {error}");
        status
    };
    let config = Config::from_env().map_err(|e| complain(&e, Status::InvalidValue))?;
    let machine = Machine::open(&config).map_err(|e| complain(&e, Status::NoDevice))?;
    *driver = Some(Driver::new(machine, config));
    extern "C" fn in_child() {
        FORKED.store(true, Relaxed);
    }
    // SAFETY: the handler only stores to an atomic.
    unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    Ok(())
}

/// Calls `f` with the driver, under its lock.
pub(crate) fn with<T>(f: impl FnOnce(&mut Driver) -> Result<T>) -> Result<T> {
    if FORKED.load(Relaxed) {
        return Err(Status::NotInitialized);
    }
    f(lock().as_mut().ok_or(Status::NotInitialized)?)
}

/// Calls `f` with the driver and the thread's context, then does the waiting that it asks for, without the lock.
pub(crate) fn with_wait(f: impl FnOnce(&mut Driver, Handle) -> Result<Wait>) -> Result<()> {
    let wait = with(|driver| f(driver, current()?))?;
    wait.run();
    Ok(())
}

/// The thread's current context.
pub(crate) fn current() -> Result<Handle> {
    match current_or_none() {
        0 => Err(Status::InvalidContext),
        context => Ok(context),
    }
}

/// The same; 0 for none.
pub(crate) fn current_or_none() -> Handle {
    let (stack, depth) = CONTEXTS.get();
    depth.checked_sub(1).map_or(0, |top| stack[top])
}

/// Replaces the top of the thread's stack; 0 removes it.
pub(crate) fn set_current(context: Handle) {
    let (mut stack, mut depth) = CONTEXTS.get();
    if context == 0 {
        depth = depth.saturating_sub(1);
    } else {
        depth = depth.max(1);
        stack[depth - 1] = context;
    }
    CONTEXTS.set((stack, depth));
}

pub(crate) fn push_current(context: Handle) -> Result<()> {
    let (mut stack, depth) = CONTEXTS.get();
    *stack.get_mut(depth).ok_or(Status::InvalidValue)? = context;
    CONTEXTS.set((stack, depth + 1));
    Ok(())
}

pub(crate) fn pop_current() -> Result<Handle> {
    let context = current()?;
    let (stack, depth) = CONTEXTS.get();
    CONTEXTS.set((stack, depth - 1));
    Ok(context)
}

/// What stream 0 means to an entry point: its plain form the legacy stream, `_ptds` and `_ptsz` the thread's own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum DefaultStream {
    Legacy,
    PerThread,
}

/// The stream that a handle of the ABI names: 0 by the entry point, 1 `CU_STREAM_LEGACY`, 2 `CU_STREAM_PER_THREAD`.
pub(crate) fn stream(handle: Opaque, default: DefaultStream) -> StreamRef {
    match (handle, default) {
        (0, DefaultStream::Legacy) | (1, _) => StreamRef::Legacy,
        (0, DefaultStream::PerThread) | (2, _) => StreamRef::PerThread(thread_number()),
        _ => StreamRef::Created(handle),
    }
}

/// A number of the thread that no other one ever has.
fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    if THREAD.get() == 0 {
        THREAD.set(NEXT.fetch_add(1, Relaxed));
    }
    THREAD.get()
}

/// Writes a result where the caller wants it.
///
/// # Safety
/// `to` is null, or valid for writing a `T`.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) -> Result<()> {
    if to.is_null() {
        return Err(Status::InvalidValue);
    }
    // SAFETY: by the caller's promise, and not null. C structs may lie anywhere in a buffer.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// The same, where null means that the caller does not want it.
///
/// # Safety
/// As [`put`].
pub(crate) unsafe fn put_optional<T>(to: *mut T, value: T) {
    // SAFETY: by the caller's promise; null is refused without writing.
    let _ = unsafe { put(to, value) };
}

/// A device's number from the ABI.
pub(crate) fn device_index(device: CUdevice) -> Result<usize> {
    usize::try_from(device).map_err(|_| Status::InvalidDevice)
}

pub(crate) fn code(result: Result<()>) -> CUresult {
    result.map_or_else(Status::code, |()| 0)
}

/// Marks the beginning of an entry point. It makes the function differ from all others, so that no two become one address, and gives
/// it something on its stack, so that it sets its frame up (`push`) before all else. Costs one store.
#[inline(always)]
pub(crate) fn entry_point(name: &'static str) {
    std::hint::black_box(name.as_ptr());
}

/// Makes entry points: `export!(name => (argument: type, …) { body })`, where the body is a [`Result<()>`] with `?`.
///
/// With `export!(plain | per_thread, DEFAULT => …)` it makes two, and `DEFAULT` in the body says what stream 0 means. Each gets a body
/// of its own, so that no entry point calls, or jumps to, another one: a probe on one never fires for the other.
macro_rules! export {
    ($name:ident => ($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> crate::state::CUresult {
            crate::state::entry_point(stringify!($name));
            let body = || -> simgpu_device::driver::Result<()> {
                #[allow(unused_unsafe, reason = "not every body needs it")]
                // SAFETY: the caller follows cuda.h: each pointer is null, or valid for what the call reads and writes there.
                unsafe { $body }
            };
            crate::state::code(body())
        }
    };
    ($plain:ident | $per_thread:ident, $default:ident => ($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        export!($plain => ($($argument: $type),*) {
            #[allow(dead_code, reason = "not every body needs it")]
            const $default: crate::state::DefaultStream = crate::state::DefaultStream::Legacy;
            $body
        });
        export!($per_thread => ($($argument: $type),*) {
            #[allow(dead_code, reason = "not every body needs it")]
            const $default: crate::state::DefaultStream = crate::state::DefaultStream::PerThread;
            $body
        });
    };
}
