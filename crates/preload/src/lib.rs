//! The library that times CUDA calls from inside a job.
//!
//! It is an auditor of the dynamic linker (`LD_AUDIT`): when a library that defines CUDA or NCCL entry points has been mapped and
//! nothing is bound to it yet, its symbol table is made to lead to stubs; where that cannot be done, the linker asks [`la_symbind64`]. The
//! same file can be preloaded (`LD_PRELOAD`): then the stubs are the exported names. A stub takes the time, calls the real function, takes the time again and writes a record to the ring of its
//! thread, a file in shared memory that outlives the job ([`warptrace_record::ring`]).
//!
//! It is a guest. It needs no other library, not even libc: its few system calls are made directly, so that errno, allocator and
//! locks of the job are never touched, and one build loads everywhere. What it does in a job that makes no CUDA call: it looks for
//! one variable, and for three names in each library that is loaded. In a call, it makes no system call, takes no lock and
//! allocates nothing; at a thread's first call it makes the thread's ring. When anything fails, that thread or function is left
//! alone, and a counter in the control page says so.
//!
//! It does not know what records mean, never converts times, and reads no configuration but the control page.
//!
//! | module | |
//! |---|---|
//! | `symbols` | names, and what is done with each, from the op table |
//! | `bind` | stubs, and the real function behind each |
//! | `call` | what happens before and after a call |
//! | `thread` | a thread's ring and its private state |
//! | `stretch` | what a thread did between two moments: running, waiting for a CPU, faults |
//! | `device` | which device a context belongs to |
//! | `process` | the control page, identity, fork |
//! | `elf`, `sys`, `arch` | loaded objects, system calls, instructions |
#![cfg_attr(panic = "abort", no_std)]
#![expect(
    unsafe_code,
    reason = "it stands between a program and its libraries, below libc"
)]

mod arch;
mod bind;
mod call;
mod device;
mod elf;
mod process;
mod stretch;
mod symbols;
mod sys;
mod thread;

use core::ffi::{CStr, c_char, c_int, c_uint};

/// Nothing here panics on purpose; if something does, the thread sleeps rather than take the job with it.
#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// glibc calls initialisers with the arguments of `main`: the one moment when the environment can be read without libc and before the
/// program has changed it.
extern "C" fn initialise(
    _argc: c_int,
    _argv: *const *const c_char,
    environment: *const *const c_char,
) {
    // SAFETY: the dynamic linker passes the environment: pointers to strings, ended by a null.
    unsafe { process::remember_directory(environment) };
}

#[used]
#[unsafe(link_section = ".init_array")]
static INITIALISE: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = initialise;

/// The version of the auditing interface that is spoken here. `LAV_CURRENT` has been 1 and 2, and what is used here
/// is the same in both.
#[unsafe(no_mangle)]
pub extern "C" fn la_version(offered: c_uint) -> c_uint {
    // Never 0, though nobody may be recording: glibc then unloads the auditor, and ends the process if it cannot (2.36 with a library
    // that was linked with `-z nodelete`). Declining each object costs less than that risk.
    offered.min(2)
}

/// Bindings to this object are of interest; from this object.
const BIND_TO: c_uint = 1;
const BIND_FROM: c_uint = 2;

/// # Safety
/// Called by the dynamic linker with the link map of an object that it has just mapped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn la_objopen(
    map: *const elf::LinkMap,
    _namespace: isize,
    _cookie: *mut usize,
) -> c_uint {
    if !process::has_directory() {
        return 0;
    }
    // SAFETY: the linker's promise.
    match unsafe { elf::Object::of_link_map(map) } {
        // Where the object's own symbol table leads to the stubs, there is nothing to ask about.
        Some(object) if bind::is_traced(&object) && !bind::redirect(&object) => BIND_TO | BIND_FROM,
        _ => BIND_FROM,
    }
}

/// # Safety
/// Called by the dynamic linker: `symbol` is a copy of the definition with its address in `value`, `name` its name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn la_symbind64(
    symbol: *const elf::Symbol,
    _index: c_uint,
    _from: *mut usize,
    _to: *mut usize,
    _flags: *mut c_uint,
    name: *const c_char,
) -> usize {
    // SAFETY: the linker's promise.
    let (real, name) = unsafe { ((*symbol).value as usize, CStr::from_ptr(name)) };
    bind::stub_for(name, real)
}
