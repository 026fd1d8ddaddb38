//! What happens before and after a call: the two functions that every stub calls.

use core::ffi::{CStr, c_char};
use core::sync::atomic::{Ordering, compiler_fence};

use warptrace_record::op::{OPS, Slot, Source, Wait, nccl_dtype_bytes, pack_dims};
use warptrace_record::{Kind as RecordKind, NESTED_MIN_NANOS, Record, flag};

use crate::arch::REGISTERS;
use crate::bind;
use crate::device::{CHANGES, Change};
use crate::stretch;
use crate::symbols::{self, FRAME_BYTES, Kind, LOOKUP, SYMBOLS, find};
use crate::thread::{MAX_DEPTH, State, Thread};

/// What a stub keeps on the caller's stack while the real function runs. The offset of `then` is known to `build.rs`. After it, in memory,
/// come the caller's frame pointer, the return address and the stack arguments, on both architectures.
#[repr(C, align(16))]
pub(crate) struct Frame {
    /// Argument registers.
    registers: [u64; 8],
    /// 0: jump to the real function and forget the frame; else call it, then [`leave`].
    then: u64,
    /// The thread that makes the call.
    thread: *const Thread,
    stub: u64,
    /// Entry, ticks.
    ts: u64,
    /// arg0, arg1 and stream, as far as they are known at entry.
    slots: [u64; 3],
    _unused: u64,
}

const _: () = assert!(size_of::<Frame>() == FRAME_BYTES);
const _: () = assert!(core::mem::offset_of!(Frame, then) == 64);

/// Words from the begin of a frame to the return address.
const RETURN_ADDRESS: usize = FRAME_BYTES / 8 + 1;

/// Where argument `n` (from 1) of the call is, in words from the begin of its frame.
const fn place_of(n: u8) -> u8 {
    let n = n as usize - 1;
    (if n < REGISTERS {
        n
    } else {
        RETURN_ADDRESS + 1 + n - REGISTERS
    }) as u8
}

impl Frame {
    /// # Safety
    /// `place` is that of an argument of the call, or of the return address.
    #[inline(always)]
    unsafe fn word(&self, place: u8) -> u64 {
        let at = (&raw const *self).expose_provenance() + 8 * place as usize;
        // SAFETY: stubs make frames right below the caller's, so what `place_of` names is there. It is the caller's memory, not the frame's.
        unsafe { *core::ptr::with_exposed_provenance::<u64>(at) }
    }

    fn caller(&self) -> usize {
        // SAFETY: the return address.
        unsafe { self.word(RETURN_ADDRESS as u8) as usize }
    }

    /// Argument `n`, counted from 1.
    #[inline(always)]
    fn argument(&self, n: u8) -> u64 {
        // SAFETY: the op table names only arguments that the call has.
        unsafe { self.word(place_of(n)) }
    }
}

const JUMP: u64 = 0;
const RECORD: u64 = 1;
const REWRITE: u64 = 2;

/// A slot that needs no decision: one word of the frame, masked, and a constant.
#[derive(Clone, Copy)]
struct Simple {
    place: u8,
    mask: u8,
    constant: u8,
}

/// Nothing, everything, the low half.
static MASKS: [u64; 3] = [0, u64::MAX, 0xffff_ffff];

/// What the hot path needs of a row of the op table, in few bytes.
struct Row {
    simple: [Simple; 3],
    number: u16,
    source: u8,
    waits: bool,
    /// A slot is not simple.
    looks: bool,
    /// A slot is known at return only.
    returns: bool,
    change: Change,
    slots: [Slot; 3],
}

static ROWS: [Row; OPS.len()] = {
    let mut rows = [const {
        Row {
            simple: [Simple {
                place: 0,
                mask: 0,
                constant: 0,
            }; 3],
            number: 0,
            source: 0,
            waits: false,
            looks: false,
            returns: false,
            change: Change::Nothing,
            slots: [Slot::Zero; 3],
        }
    }; OPS.len()];
    let mut i = 0;
    while i < OPS.len() {
        let op = &OPS[i];
        let row = &mut rows[i];
        row.number = op.number;
        row.source = op.source as u8;
        row.waits = !matches!(op.wait, Wait::Never);
        row.change = CHANGES[i];
        row.slots = [op.arg0, op.arg1, op.stream];
        let mut k = 0;
        while k < 3 {
            let simple = &mut row.simple[k];
            match row.slots[k] {
                Slot::Zero => {}
                Slot::Const(c) => simple.constant = c,
                Slot::P(n) => (simple.place, simple.mask) = (place_of(n), 1),
                Slot::Int(n) => (simple.place, simple.mask) = (place_of(n), 2),
                Slot::Out(_) => row.returns = true,
                _ => row.looks = true,
            }
            k += 1;
        }
        i += 1;
    }
    rows
};

core::arch::global_asm!(
    include_str!(concat!(env!("OUT_DIR"), "/stubs.s")),
    enter = sym enter,
    leave = sym leave,
);

/// An exported name: for programs that are linked to it, because the library is preloaded.
#[cfg(all(panic = "abort", not(test)))]
macro_rules! stub {
    ($name:ident $number:literal $words:literal) => {
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() {
            #[cfg(target_arch = "x86_64")]
            core::arch::naked_asm!(
                concat!("mov r11d, ", $number),
                concat!("jmp warptrace_call_", $words)
            );
            #[cfg(target_arch = "aarch64")]
            core::arch::naked_asm!(
                concat!("mov w16, #", $number),
                concat!("b warptrace_call_", $words)
            );
        }
    };
}

#[cfg(all(panic = "abort", not(test)))]
#[expect(unreachable_pub, reason = "exported to the linker, not to Rust")]
mod exports {
    include!(concat!(env!("OUT_DIR"), "/exports.rs"));
}

/// Before a call. Gives the real function.
extern "C" fn enter(frame: &mut Frame, stub: u32) -> usize {
    let stub = stub as usize;
    frame.then = JUMP;
    let real = if bind::is_linked(stub) {
        bind::linked(stub, frame.caller())
    } else {
        bind::real(stub)
    };
    let row = symbols::ROWS[stub];
    if row == LOOKUP {
        return before_lookup(frame, stub, real);
    }
    if real == 0 {
        return bind::unresolved as *const () as usize;
    }
    if let Some(thread) = Thread::current() {
        begin(thread, frame, stub, row);
    }
    real
}

/// After a call that `enter` wanted to see the end of. Gives what the caller is to get.
extern "C" fn leave(frame: &mut Frame, result: u64) -> u64 {
    if frame.then != RECORD {
        return after_lookup(frame, result);
    }
    // SAFETY: `begin` put it there, in this thread, which still runs; a forked child has a copy of it.
    let thread = unsafe { &*frame.thread };
    if thread.is_of_this_process() {
        end(
            thread,
            frame,
            symbols::ROWS[frame.stub as usize],
            result as i32,
        );
    }
    result
}

/// Takes the thread's state for the call in `frame`; `None` in a signal handler that came while it was taken.
#[expect(clippy::mut_from_ref, reason = "`busy` is the lock")]
#[inline(always)]
fn take(thread: &Thread, frame: usize) -> Option<&mut State> {
    let busy = thread.busy.load(Ordering::Relaxed);
    // A frame further down the stack is one that was left by longjmp.
    if busy > frame {
        return None;
    }
    thread.busy.store(frame, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    // SAFETY: `busy` holds our frame.
    Some(unsafe { thread.state() })
}

#[inline(always)]
fn give_back(thread: &Thread) {
    compiler_fence(Ordering::SeqCst);
    thread.busy.store(0, Ordering::Relaxed);
}

#[inline(always)]
fn begin(thread: &Thread, frame: &mut Frame, stub: usize, row: u8) {
    let at = &raw const *frame as usize;
    let Some(state) = take(thread, at) else {
        return;
    };
    let op = &ROWS[row as usize];
    // Calls at or below this frame were left without return.
    while state.depth > 0 && state.frames[state.depth - 1] <= at {
        abandon(state);
    }
    let level = state.depth;
    if level < MAX_DEPTH {
        for k in 0..3 {
            let simple = op.simple[k];
            // SAFETY: the op table names only arguments that the call has; a constant looks at the first register.
            let word = unsafe { frame.word(simple.place) };
            frame.slots[k] = (word & MASKS[simple.mask as usize]) + u64::from(simple.constant);
        }
        if let Slot::Dim3(n) = op.slots[1] {
            // Launches are the most frequent calls.
            frame.slots[1] = before(Slot::Dim3(n), frame);
        } else if op.looks {
            look(frame, op);
        }
        if level == 0 {
            state.outermost = row;
            if op.waits {
                let now = state.now();
                stretch_at(state, now, stretch::MIN_NANOS);
            }
        }
        state.frames[level] = at;
        state.depth = level + 1;
        frame.thread = thread;
        frame.stub = stub as u64;
        frame.then = RECORD;
        let now = state.now();
        frame.ts = now;
        let [arg0, _, stream] = frame.slots;
        state
            .ring
            .enter(level, now, op.source, op.number, arg0, stream);
    }
    give_back(thread);
}

/// Fills the slots that take more than one word.
#[inline(never)]
fn look(frame: &mut Frame, op: &Row) {
    for (k, slot) in op.slots.iter().enumerate() {
        let value = match *slot {
            Slot::Zero | Slot::Const(_) | Slot::P(_) | Slot::Int(_) | Slot::Out(_) => continue,
            slot => before(slot, frame),
        };
        frame.slots[k] = value;
    }
}

#[inline(always)]
fn end(thread: &Thread, frame: &mut Frame, row: u8, result: i32) {
    let at = &raw const *frame as usize;
    let Some(state) = take(thread, at) else {
        return;
    };
    let now = state.now();
    while state.depth > 0 && state.frames[state.depth - 1] < at {
        abandon(state);
    }
    if state.depth > 0 && state.frames[state.depth - 1] == at {
        let op = &ROWS[row as usize];
        let level = state.depth - 1;
        state.depth = level;
        state.ring.leave(level);
        let ticks = now.saturating_sub(frame.ts);
        let nanos = state.nanos(ticks);
        if op.returns {
            for k in 0..3 {
                if let Slot::Out(n) = op.slots[k] {
                    frame.slots[k] = after(result, frame.argument(n));
                }
            }
        }
        if level == 0 || nanos >= NESTED_MIN_NANOS {
            let [arg0, arg1, stream] = frame.slots;
            state.ring.push(Record {
                kind: RecordKind::Call as u8,
                source: op.source,
                op: op.number,
                flags: if level == 0 { 0 } else { nested_flags(state) },
                device: state.device.device(),
                ts: frame.ts,
                dur: ticks,
                pid: state.pid,
                tid: state.tid,
                ret: result,
                stack_id: 0,
                seq: 0,
                cpu: CPU_UNKNOWN,
                arg0,
                arg1,
                stream,
            });
            if level == 0 {
                state.count(row, nanos);
                if op.waits {
                    stretch_at(state, now, stretch::MIN_NANOS);
                } else if nanos >= stretch::SLOW_NANOS {
                    stretch_at(state, now, stretch::SLOW_EVERY_NANOS);
                }
            }
        }
        if op.change != Change::Nothing && result == 0 {
            change_device(state, frame, op);
        }
    }
    give_back(thread);
}

/// Reading it with the time (`rdtscp`) takes 10 ns more, which nobody has had a use for.
const CPU_UNKNOWN: u32 = u32::MAX;

#[cold]
fn nested_flags(state: &State) -> u16 {
    if ROWS[state.outermost as usize].source == Source::Nccl as u8 {
        flag::NESTED | flag::NESTED_IN_LIBRARY
    } else {
        flag::NESTED
    }
}

#[cold]
fn change_device(state: &mut State, frame: &Frame, op: &Row) {
    let before = state.device.device();
    let [arg0, arg1, _] = frame.slots;
    if state.device.apply(op.change, arg0, arg1) && state.device.device() != before {
        state.device_changed();
    }
}

/// The innermost open call ended without returning here.
#[cold]
fn abandon(state: &mut State) {
    state.depth -= 1;
    state.ring.leave(state.depth);
    state.ring.abandoned();
}

/// Ends the thread's stretch at `now`, unless it is younger than `min` ns.
fn stretch_at(state: &mut State, now: u64, min: u64) {
    let age = state.stretches.age(now);
    if age != u64::MAX && state.nanos(age) < min {
        return;
    }
    if let Some(record) = state.stretches.end(now, state.pid, state.tid) {
        state.ring.push(record);
    }
}

/// The value of `slot` at entry.
#[inline(always)]
fn before(slot: Slot, frame: &Frame) -> u64 {
    let p = |n: u8| frame.argument(n);
    match slot {
        Slot::Zero | Slot::Out(_) => 0,
        Slot::Const(c) => u64::from(c),
        Slot::P(n) => p(n),
        Slot::Int(n) => p(n) & 0xffff_ffff,
        Slot::Mul(n) => p(n).wrapping_mul(p(n + 1)),
        Slot::Shl(n, k) => p(n) << k,
        Slot::NcclBytes(n) => p(n).wrapping_mul(nccl_dtype_bytes(p(n + 1) as u32)),
        Slot::Dim3(n) => pack_dims(dim3(p(n), p(n + 1)), dim3(p(n + 2), p(n + 3))),
        Slot::Dims(n) => pack_dims(
            [p(n) as u32, p(n + 1) as u32, p(n + 2) as u32],
            [p(n + 3) as u32, p(n + 4) as u32, p(n + 5) as u32],
        ),
        Slot::ConfigDims(n) => pack_dims(
            dim3(word_at(p(n), 0), word_at(p(n), 1)),
            [
                (word_at(p(n), 1) >> 32) as u32,
                word_at(p(n), 2) as u32,
                (word_at(p(n), 2) >> 32) as u32,
            ],
        ),
        Slot::At(n, k) => word_at(p(n), k),
        Slot::AtMul(n, k) => word_at(p(n), k).wrapping_mul(word_at(p(n), k + 1)),
        Slot::Pair(n, k) => p(n) << 32 | p(k) & 0xffff_ffff,
    }
}

/// x, y and z of a `dim3` that came in two eightbytes.
#[inline(always)]
fn dim3(xy: u64, z: u64) -> [u32; 3] {
    [xy as u32, (xy >> 32) as u32, z as u32]
}

/// Pointers below this are mistakes that the real function answers with an error.
const FIRST_POINTER: u64 = 4096;

/// Word `k` of the structure at `pointer`; 0 where there can be none.
fn word_at(pointer: u64, k: u8) -> u64 {
    if pointer < FIRST_POINTER {
        return 0;
    }
    // SAFETY: the caller gave it to a function that reads the same structure.
    unsafe { (pointer as *const u64).add(k as usize).read_unaligned() }
}

/// What a call wrote where it was told to, if it succeeded.
#[inline(always)]
fn after(result: i32, pointer: u64) -> u64 {
    if result == 0 { word_at(pointer, 0) } else { 0 }
}

/// `RTLD_NEXT`: the answer depends on who asks, so that libc cannot be asked from here.
const NEXT: u64 = u64::MAX;

#[cold]
fn before_lookup(frame: &mut Frame, stub: usize, real: usize) -> usize {
    frame.stub = stub as u64;
    let kind = SYMBOLS[bind::symbol_of(stub)].kind;
    let name = match kind {
        Kind::GetProc => frame.registers[0],
        _ => frame.registers[1],
    };
    if real == 0 {
        return match kind {
            Kind::Dlsym => nothing as *const () as usize,
            _ => bind::unresolved as *const () as usize,
        };
    }
    if name < FIRST_POINTER {
        return real;
    }
    // SAFETY: a string that the caller asks for.
    let name = unsafe { CStr::from_ptr(name as *const c_char) };
    if find(name).is_none() {
        return real;
    }
    frame.then = REWRITE;
    if kind == Kind::Dlsym && frame.registers[0] == NEXT {
        nothing as *const () as usize
    } else {
        real
    }
}

extern "C" fn nothing() -> usize {
    0
}

#[cold]
fn after_lookup(frame: &Frame, result: u64) -> u64 {
    // SAFETY: `before_lookup` has read it.
    let name = |n: usize| unsafe { CStr::from_ptr(frame.registers[n] as *const c_char) };
    match SYMBOLS[bind::symbol_of(frame.stub as usize)].kind {
        Kind::GetProc => {
            let place = frame.registers[1];
            if result as i32 == 0 && place >= FIRST_POINTER {
                let place = place as *mut usize;
                bind::register_all();
                // SAFETY: the real function has just written there.
                unsafe { *place = bind::stub_for_variant(name(0), *place) };
            }
            result
        }
        _ if frame.registers[0] == NEXT => bind::next(name(1), frame.caller()) as u64,
        _ => bind::looked_up(name(1), result as usize) as u64,
    }
}
