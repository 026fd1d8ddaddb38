//! Stubs, and the real function behind each.
//!
//! Each name has a few stubs, one for each copy of its library that the process has loaded; a stub is given away together with
//! the address of the real function, so a stub never leads to another copy than the one that was asked for. When a name's stubs are
//! used up, its caller gets the real function, and that is counted.
//!
//! Preloaded, the exported names are stubs as well, which find the real function at their first call: the one in the library that
//! the caller was linked to.

use core::ffi::{CStr, c_int};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::elf::{self, Object};
use crate::symbols::{self, COPIES, COUNT, Kind, SYMBOLS, Symbol};

/// The real function of each stub, 0 while it is free; the last copy is that of exported names.
static REAL: [AtomicUsize; COUNT * (COPIES + 1)] =
    [const { AtomicUsize::new(0) }; COUNT * (COPIES + 1)];

/// Functions that could not be given a stub.
static NO_STUB: AtomicU64 = AtomicU64::new(0);

/// One name a library: an object that defines one of them is traced.
const MARKS: [&CStr; 3] = [c"cudaLaunchKernel", c"cuLaunchKernel", c"ncclAllReduce"];

unsafe extern "C" {
    static warptrace_stubs: [[u8; 16]; COUNT * COPIES];
    // Begin and end of this library in memory, by the linker.
    static __ehdr_start: u8;
    static _end: u8;
}

/// The name of a stub.
#[inline(always)]
pub(crate) fn symbol_of(stub: usize) -> usize {
    stub % COUNT
}

/// The real function of a stub that was given away.
#[inline(always)]
pub(crate) fn real(stub: usize) -> usize {
    REAL[stub].load(Ordering::Relaxed)
}

/// A stub of an exported name, which nobody has given away.
#[inline(always)]
pub(crate) fn is_linked(stub: usize) -> bool {
    stub >= COUNT * COPIES
}

/// Functions that could not be given a stub since the last time that this was asked.
pub(crate) fn take_no_stub() -> u64 {
    if NO_STUB.load(Ordering::Relaxed) == 0 {
        0
    } else {
        NO_STUB.swap(0, Ordering::Relaxed)
    }
}

fn stubs() -> (usize, usize) {
    let first = &raw const warptrace_stubs as usize;
    (first, first + COUNT * COPIES * 16)
}

/// Whether `object` defines entry points of CUDA or NCCL. Any object may: NCCL is linked into PyTorch, file names are changed.
pub(crate) fn is_traced(object: &Object) -> bool {
    !is_own(object) && MARKS.iter().any(|mark| object.function(mark).is_some())
}

/// This library itself exports the same names.
fn is_own(object: &Object) -> bool {
    object.function(c"la_symbind64").is_some_and(is_own_address)
}

fn is_own_address(address: usize) -> bool {
    (&raw const __ehdr_start as usize..&raw const _end as usize).contains(&address)
}

fn is_stub(address: usize) -> bool {
    let (first, end) = stubs();
    (first..end).contains(&address)
}

/// Gives each function of `object` its stub, so that its address is recognised wherever it comes from.
pub(crate) fn register(object: &Object) {
    for (symbol, Symbol { name, .. }) in SYMBOLS.iter().enumerate() {
        if let Some(real) = object.function(name) {
            bind(symbol, real);
        }
    }
}

/// [`register`], and makes every later binding to `object` lead to the stubs, whatever kind it is: the dynamic linker asks an auditor about jump
/// slots and `dlsym` alone, and not about the pointers through which code built with `-fno-plt` calls. Says whether it could be done.
pub(crate) fn redirect(object: &Object) -> bool {
    object.redirect(|name, real| {
        let stub = stub_for(name, real);
        (stub != real).then_some(stub)
    })
}

/// The stub for the function `name` at `real`, or `real` itself when there is none for it.
pub(crate) fn stub_for(name: &CStr, real: usize) -> usize {
    if real == 0 || is_own_address(real) {
        return real;
    }
    symbols::find(name)
        .and_then(|symbol| bind(symbol, real))
        .unwrap_or(real)
}

/// The stub for the function at `real`, which is called `name` or is a variant of what is.
pub(crate) fn stub_for_variant(name: &CStr, real: usize) -> usize {
    let known = REAL[..COUNT * COPIES]
        .iter()
        .position(|r| r.load(Ordering::Relaxed) == real);
    match known {
        Some(stub) if real != 0 => stubs().0 + stub * 16,
        _ => stub_for(name, real),
    }
}

fn bind(symbol: usize, real: usize) -> Option<usize> {
    for copy in 0..COPIES {
        let stub = copy * COUNT + symbol;
        match REAL[stub].compare_exchange(0, real, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return Some(stubs().0 + stub * 16),
            Err(theirs) if theirs == real => return Some(stubs().0 + stub * 16),
            Err(_) => {}
        }
    }
    NO_STUB.fetch_add(1, Ordering::Relaxed);
    None
}

/// What callers meant by a name: the page of the return address << 16 | the stub + 1 that the function was bound to. Objects begin on page
/// boundaries, so a page has one meaning. Single words: no entry is ever half written, a lost one is found again.
static MEANINGS: [AtomicU64; 16384] = [const { AtomicU64::new(0) }; 16384];

/// The real function behind an exported name, for a call that returns to `caller`. 0 when no library has it.
///
/// When several loaded objects define the name, the one is meant that the caller's object was linked to. Cost: two loads, and a search
/// through all objects the first time that a page of code calls the name.
pub(crate) fn linked(stub: usize, caller: usize) -> usize {
    match known_linked(stub, caller) {
        0 => find_linked(stub, caller),
        real => real,
    }
}

/// [`linked`] without the search: 0 when it must be made.
#[inline(always)]
pub(crate) fn known_linked(stub: usize, caller: usize) -> usize {
    let symbol = symbol_of(stub);
    let page = caller as u64 >> 12;
    for way in places(page, symbol) {
        let word = MEANINGS[way].load(Ordering::Relaxed);
        let stub = (word as usize & 0xffff).wrapping_sub(1);
        if word >> 16 == page && symbol_of(stub) == symbol {
            return real(stub);
        }
    }
    real(stub)
}

/// Where the meaning of a name may stand for code on a page.
#[inline(always)]
fn places(page: u64, symbol: usize) -> [usize; 2] {
    let mixed = page.wrapping_mul(31).wrapping_add(symbol as u64);
    let place = (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50) as usize;
    [place, place ^ 1]
}

#[cold]
fn find_linked(stub: usize, caller: usize) -> usize {
    let symbol = symbol_of(stub);
    let page = caller as u64 >> 12;
    let [first, second] = places(page, symbol);
    let meant = meant_by(SYMBOLS[symbol].name, caller);
    if meant == 0 {
        return 0;
    }
    if SYMBOLS[symbol].kind == Kind::Dlsym {
        // There is one libc.
        REAL[stub].store(meant, Ordering::Relaxed);
    } else if let Some(stub) = bind(symbol, meant) {
        let stub = (stub - stubs().0) / 16;
        let empty = MEANINGS[first].load(Ordering::Relaxed) == 0;
        let way = if empty { first } else { second };
        MEANINGS[way].store(page << 16 | (stub as u64 + 1), Ordering::Relaxed);
    }
    meant
}

fn meant_by(name: &CStr, caller: usize) -> usize {
    let (mut first, mut several) = (0, false);
    elf::each_object(caller, |object, _| {
        if !is_own(object)
            && let Some(found) = object.function(name)
        {
            several |= first != 0 && first != found;
            first = if first == 0 { found } else { first };
        }
        true
    });
    if !several {
        return first;
    }
    let mut needed = None;
    elf::each_object(caller, |from, inside| {
        if inside {
            elf::each_object(caller, |to, _| {
                if !is_own(to) && from.needs(to) {
                    needed = to.function(name);
                }
                needed.is_none()
            });
        }
        !inside
    });
    needed.unwrap_or(first)
}

/// Makes the functions of every loaded library known by address, when the linker does not tell of them.
pub(crate) fn register_all() {
    elf::each_object(0, |object, _| {
        if is_traced(object) {
            register(object);
        }
        true
    });
}

/// What `dlsym(RTLD_NEXT, name)` gives to code at `caller`: the function in the first object loaded after the caller's that has one.
pub(crate) fn next(name: &CStr, caller: usize) -> usize {
    let (mut passed, mut found) = (false, 0);
    elf::each_object(caller, |object, inside| {
        if passed && !is_own(object) {
            found = object.function(name).unwrap_or(0);
        }
        passed |= inside;
        found == 0
    });
    stub_for(name, found)
}

/// What a lookup by name gives instead of `found`: a stub; nothing, where only this library has the name.
pub(crate) fn looked_up(name: &CStr, found: usize) -> usize {
    let Some(symbol) = symbols::find(name) else {
        return found;
    };
    if is_own_address(found) && !is_stub(found) {
        return if meant_by(SYMBOLS[symbol].name, 0) == 0 {
            0
        } else {
            found
        };
    }
    stub_for(name, found)
}

/// For a name that no library has.
pub(crate) extern "C" fn unresolved() -> c_int {
    // cudaErrorUnknown, CUDA_ERROR_UNKNOWN; NCCL takes any such number for an internal error.
    999
}
