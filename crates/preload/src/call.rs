//! What happens before and after a call: the two functions that every stub calls.

use core::ffi::{CStr, c_char};
use core::sync::atomic::{Ordering, compiler_fence};

use warptrace_record::op::{OPS, Slot, Source, Wait, nccl_dtype_bytes, pack_dims};
use warptrace_record::{Kind as RecordKind, NESTED_MIN_NANOS, Record, flag};

use crate::arch::REGISTERS;
use crate::bind;
use crate::device::{CHANGES, Change};
use crate::stretch;
use crate::symbols::{FRAME_BYTES, Kind, SYMBOLS, find};
use crate::thread::{MAX_DEPTH, State, Thread};

/// What a stub keeps on the caller's stack while the real function runs. The offsets of the first three fields are known to `build.rs`.
#[repr(C, align(16))]
pub(crate) struct Frame {
    /// Argument registers.
    registers: [u64; 8],
    /// The first stack argument; the return address is the word before it.
    stack: *const u64,
    /// 0: jump to the real function and forget the frame; else call it, then [`leave`].
    then: u64,
    stub: u64,
    /// Entry, ticks.
    ts: u64,
    /// arg0, arg1 and stream, as far as they are known at entry.
    slots: [u64; 3],
    _unused: [u64; 7],
}

const _: () = assert!(size_of::<Frame>() == FRAME_BYTES);
const _: () = assert!(core::mem::offset_of!(Frame, stack) == 64);
const _: () = assert!(core::mem::offset_of!(Frame, then) == 72);

const JUMP: u64 = 0;
const RECORD: u64 = 1;
const REWRITE: u64 = 2;

/// What the hot path needs of a row of the op table, in few bytes.
struct Row {
    slots: [Slot; 3],
    number: u16,
    source: u8,
    waits: bool,
    change: Change,
}

static ROWS: [Row; OPS.len()] = {
    let mut rows = [const {
        Row {
            slots: [Slot::Zero; 3],
            number: 0,
            source: 0,
            waits: false,
            change: Change::Nothing,
        }
    }; OPS.len()];
    let mut i = 0;
    while i < OPS.len() {
        let op = &OPS[i];
        rows[i] = Row {
            slots: [op.arg0, op.arg1, op.stream],
            number: op.number,
            source: op.source as u8,
            waits: !matches!(op.wait, Wait::Never),
            change: CHANGES[i],
        };
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
        // SAFETY: the return address is the word before the stack arguments.
        let caller = unsafe { *frame.stack.sub(1) } as usize;
        bind::linked(stub, caller)
    } else {
        bind::real(stub)
    };
    match SYMBOLS[bind::symbol_of(stub)].kind {
        Kind::Op(_) if real == 0 => bind::unresolved as *const () as usize,
        Kind::Op(row) => {
            if let Some(thread) = Thread::current() {
                frame.stub = stub as u64;
                begin(thread, frame, row);
            }
            real
        }
        kind => before_lookup(frame, stub, kind, real),
    }
}

/// After a call that `enter` wanted to see the end of. Gives what the caller is to get.
extern "C" fn leave(frame: &mut Frame, result: u64) -> u64 {
    if frame.then == RECORD {
        if let (Some(thread), Kind::Op(row)) = (
            Thread::current(),
            SYMBOLS[bind::symbol_of(frame.stub as usize)].kind,
        ) {
            end(thread, frame, row, result as i32);
        }
        return result;
    }
    after_lookup(frame, result)
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
fn begin(thread: &Thread, frame: &mut Frame, row: u8) {
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
        for (slot, to) in op.slots.iter().zip(&mut frame.slots) {
            // Most slots are empty or a plain argument.
            *to = match *slot {
                Slot::Zero => 0,
                slot => before(slot, &frame.registers, frame.stack),
            };
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

#[inline(always)]
fn end(thread: &Thread, frame: &mut Frame, row: u8, result: i32) {
    let at = &raw const *frame as usize;
    let Some(state) = take(thread, at) else {
        return;
    };
    let (now, cpu) = state.now_and_cpu();
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
        if level == 0 || nanos >= NESTED_MIN_NANOS {
            let [mut arg0, mut arg1, stream] = frame.slots;
            if let Slot::Out(n) = op.slots[0] {
                arg0 = after(result, argument(n, &frame.registers, frame.stack));
            }
            if let Slot::Out(n) = op.slots[1] {
                arg1 = after(result, argument(n, &frame.registers, frame.stack));
            }
            state.ring.push(&Record {
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
                cpu,
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
    let value = |slot: Slot, known: u64| match slot {
        Slot::Out(n) => after(0, argument(n, &frame.registers, frame.stack)),
        _ => known,
    };
    let arg0 = value(op.slots[0], frame.slots[0]);
    let arg1 = value(op.slots[1], frame.slots[1]);
    let before = state.device.device();
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
        state.ring.push(&record);
    }
}

#[inline(always)]
fn argument(n: u8, registers: &[u64; 8], stack: *const u64) -> u64 {
    let n = n as usize;
    if n <= REGISTERS {
        registers[(n - 1) & 7]
    } else {
        // SAFETY: the op table names only arguments that the call has; those beyond the registers are there.
        unsafe { *stack.add(n - 1 - REGISTERS) }
    }
}

/// The value of `slot` at entry.
#[inline(always)]
fn before(slot: Slot, registers: &[u64; 8], stack: *const u64) -> u64 {
    let p = |n: u8| argument(n, registers, stack);
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
fn before_lookup(frame: &mut Frame, stub: usize, kind: Kind, real: usize) -> usize {
    frame.stub = stub as u64;
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
        _ if frame.registers[0] == NEXT => {
            // SAFETY: the return address is the word before the stack arguments.
            bind::next(name(1), unsafe { *frame.stack.sub(1) } as usize) as u64
        }
        _ => bind::looked_up(name(1), result as usize) as u64,
    }
}
