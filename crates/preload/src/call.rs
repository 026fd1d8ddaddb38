//! What happens before and after a call: the two functions that every stub calls.

use core::ffi::{CStr, c_char};
use core::sync::atomic::{Ordering, compiler_fence};

use warptrace_record::op::{OPS, Slot, Source, Wait, nccl_dtype_bytes, pack_dims};
use warptrace_record::ring::flight_op;
use warptrace_record::{Kind as RecordKind, NESTED_MIN_NANOS, Record, flag};

use crate::arch::{self, REGISTERS};
use crate::bind;
use crate::device::{CHANGES, Change};
use crate::process;
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
    /// The thread that makes a call that is recorded.
    thread: *const Thread,
    /// The op of such a call.
    op: *const Row,
    /// The stub of a lookup.
    stub: u64,
    /// Entry, ticks.
    ts: u64,
    /// arg0, arg1 and stream, as far as they are known at entry.
    slots: [u64; 3],
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
/// The call was entered by `enter_quickly`, and may be left so.
const RECORD_QUICKLY: u64 = 1;
const RECORD: u64 = 2;
const REWRITE: u64 = 3;
/// Begun while recording was paused: only the device that it makes current is of interest.
const FOLLOW: u64 = 4;

/// What the hot path needs of a row of the op table, in one cache line.
#[repr(align(64))]
struct Row {
    /// The slots that need no decision: a word of the frame, masked.
    masks: [u64; 3],
    places: [u8; 3],
    row: u8,
    /// As the ring shows a call in flight.
    flight: u32,
    source: u8,
    number: u16,
    waits: bool,
    /// A slot is not simple.
    looks: bool,
    /// The call can be recorded without calling anything: all slots are simple, or grid and block of a launch, and it changes no device.
    quick: bool,
    /// arg1 is grid and block, from argument 2 on.
    launch: bool,
    change: Change,
    slots: [Slot; 3],
}

const _: () = assert!(size_of::<Row>() == 64);

static ROWS: [Row; OPS.len()] = {
    let mut rows = [const {
        Row {
            masks: [0; 3],
            places: [0; 3],
            row: 0,
            flight: 0,
            source: 0,
            number: 0,
            waits: false,
            looks: false,
            quick: false,
            launch: false,
            change: Change::Nothing,
            slots: [Slot::Zero; 3],
        }
    }; OPS.len()];
    let mut i = 0;
    while i < OPS.len() {
        rows[i] = row(i);
        i += 1;
    }
    rows
};

/// Where grid and block of a launch by the runtime begin.
const LAUNCH_DIMS: u8 = 2;

const fn row(i: usize) -> Row {
    let op = &OPS[i];
    let slots = [op.arg0, op.arg1, op.stream];
    let (mut masks, mut places) = ([0; 3], [0; 3]);
    let (mut looks, mut returns) = (false, false);
    let mut k = 0;
    while k < 3 {
        match slots[k] {
            Slot::Zero => {}
            Slot::P(n) => (places[k], masks[k]) = (place_of(n), u64::MAX),
            Slot::Int(n) => (places[k], masks[k]) = (place_of(n), 0xffff_ffff),
            Slot::Out(_) => returns = true,
            _ => looks = true,
        }
        k += 1;
    }
    let launch = matches!(slots[1], Slot::Dim3(LAUNCH_DIMS));
    let waits = !matches!(op.wait, Wait::Never);
    let changes = !matches!(CHANGES[i], Change::Nothing);
    Row {
        masks,
        places,
        row: i as u8,
        flight: flight_op(op.source as u8, op.number),
        source: op.source as u8,
        number: op.number,
        waits,
        looks,
        quick: !waits && !returns && !changes && (!looks || launch),
        launch,
        change: CHANGES[i],
        slots,
    }
}

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
    match enter_quickly(frame, stub as usize) {
        0 => enter_carefully(frame, stub as usize),
        real => real,
    }
}

/// After a call that `enter` wanted to see the end of. Gives what the caller is to get.
extern "C" fn leave(frame: &mut Frame, result: u64) -> u64 {
    if leave_quickly(frame, result as i32) {
        result
    } else {
        leave_carefully(frame, result)
    }
}

/// The usual case of `enter`, without a call, so that it needs few registers: the thread is known, the op never waits, times are read from the
/// CPU's counter. 0: not the usual case, and nothing has changed.
#[inline(always)]
fn enter_quickly(frame: &mut Frame, stub: usize) -> usize {
    // SAFETY: a stub's number is below the number of stubs.
    let row = unsafe { *symbols::ROWS.get_unchecked(stub) };
    if row == LOOKUP {
        return 0;
    }
    let real = if bind::is_linked(stub) {
        bind::known_linked(stub, frame.caller())
    } else {
        bind::real(stub)
    };
    let generation = process::generation();
    // SAFETY: a row other than `LOOKUP` is one of the op table.
    let op = unsafe { ROWS.get_unchecked(row as usize) };
    if !process::records(generation) {
        // While it is paused, the device is still followed.
        if generation != 0 && op.change != Change::Nothing {
            return 0;
        }
        frame.then = JUMP;
        return real;
    }
    if !op.quick || real == 0 {
        return 0;
    }
    let Some(thread) = Thread::known(generation) else {
        return 0;
    };
    let at = &raw const *frame as usize;
    let Some(state) = take(thread, at) else {
        return 0;
    };
    let level = state.depth;
    let is_inside = level == 0 || level < MAX_DEPTH && state.frames[level - 1] > at;
    if !is_inside || !state.counts_ticks() {
        give_back(thread);
        return 0;
    }
    fill(frame, op);
    if op.launch {
        frame.slots[1] = before(Slot::Dim3(LAUNCH_DIMS), frame);
    }
    open(thread, state, frame, op, RECORD_QUICKLY, arch::ticks);
    give_back(thread);
    real
}

/// The usual case of `leave`, without a call; `false`: not the usual case, and nothing has changed.
#[inline(always)]
fn leave_quickly(frame: &mut Frame, result: i32) -> bool {
    if frame.then != RECORD_QUICKLY {
        return false;
    }
    // SAFETY: `open` put them there, in this thread, which still runs; a forked child has a copy of it.
    let (thread, op) = unsafe { (&*frame.thread, &*frame.op) };
    if !thread.is_of_this_process() {
        return false;
    }
    let at = &raw const *frame as usize;
    let Some(state) = take(thread, at) else {
        return false;
    };
    let level = state.depth.wrapping_sub(1);
    if level >= MAX_DEPTH || state.frames[level] != at {
        give_back(thread);
        return false;
    }
    let ticks = arch::ticks().saturating_sub(frame.ts);
    let nanos = state.nanos(ticks);
    const { assert!(stretch::SLOW_NANOS <= NESTED_MIN_NANOS) };
    let counter = state.counter(op.row);
    if nanos >= stretch::SLOW_NANOS || level == 0 && counter.is_none() {
        give_back(thread);
        return false;
    }
    close(state, level);
    if level == 0
        && let Some(counter) = counter
    {
        push(state, frame, op, 0, ticks, result);
        state.ring.count(counter, nanos);
    }
    give_back(thread);
    true
}

#[cold]
#[inline(never)]
fn enter_carefully(frame: &mut Frame, stub: usize) -> usize {
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
    let op = &ROWS[row as usize];
    // At a thread's first call it is not known before whether the recording is paused.
    if let Some(thread) = Thread::current()
        && (process::records(process::generation()) || op.change != Change::Nothing)
    {
        begin(thread, frame, op);
    }
    real
}

#[cold]
#[inline(never)]
fn leave_carefully(frame: &mut Frame, result: u64) -> u64 {
    if frame.then == REWRITE {
        return after_lookup(frame, result);
    }
    // SAFETY: as in `leave_quickly`.
    let thread = unsafe { &*frame.thread };
    if thread.is_of_this_process() {
        end(thread, frame, result as i32);
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

fn begin(thread: &Thread, frame: &mut Frame, op: &'static Row) {
    let at = &raw const *frame as usize;
    let Some(state) = take(thread, at) else {
        thread.reentrant();
        return;
    };
    // Calls at or below this frame were left without return.
    while state.depth > 0 && state.frames[state.depth - 1] <= at {
        abandon(state);
    }
    if state.depth < MAX_DEPTH {
        fill(frame, op);
        if op.looks {
            look(frame, op);
        }
        if state.depth == 0 && op.waits && records() {
            let now = state.now();
            stretch_at(state, now, stretch::MIN_NANOS);
        }
        let clock = state.clock();
        let then = if records() { RECORD } else { FOLLOW };
        open(thread, state, frame, op, then, || clock.now());
    }
    give_back(thread);
}

/// Fills the slots that are one word; the others become 0.
#[inline(always)]
fn fill(frame: &mut Frame, op: &Row) {
    for k in 0..3 {
        // SAFETY: the op table names only arguments that the call has; an empty slot looks at the first register.
        let word = unsafe { frame.word(op.places[k]) };
        frame.slots[k] = word & op.masks[k];
    }
}

/// Fills the slots that are not one word.
fn look(frame: &mut Frame, op: &Row) {
    for (k, slot) in op.slots.iter().enumerate() {
        let value = match *slot {
            Slot::Zero | Slot::P(_) | Slot::Int(_) | Slot::Out(_) => continue,
            slot => before(slot, frame),
        };
        frame.slots[k] = value;
    }
}

/// Enters the call in `frame`, whose slots are filled, at the level below the open ones.
#[inline(always)]
fn open(
    thread: &Thread,
    state: &mut State,
    frame: &mut Frame,
    op: &'static Row,
    then: u64,
    now: impl FnOnce() -> u64,
) {
    let level = state.depth & (MAX_DEPTH - 1);
    if level == 0 {
        state.outermost = op.row;
    }
    state.frames[level] = &raw const *frame as usize;
    state.depth = level + 1;
    frame.thread = thread;
    frame.op = op;
    frame.then = then;
    let now = now();
    frame.ts = now;
    let [arg0, _, stream] = frame.slots;
    state.ring.enter(level, now, op.flight, arg0, stream);
}

/// The call at `level` is not open any more.
#[inline(always)]
fn close(state: &mut State, level: usize) {
    state.depth = level;
    state.ring.leave(level);
}

#[inline(always)]
fn push(state: &mut State, frame: &Frame, op: &Row, flags: u16, ticks: u64, result: i32) {
    let (device, pid, tid) = (state.device.device(), state.pid, state.tid);
    state.ring.push(|| Record {
        kind: RecordKind::Call as u8,
        source: op.source,
        op: op.number,
        flags,
        device,
        ts: frame.ts,
        dur: ticks,
        pid,
        tid,
        ret: result,
        stack_id: 0,
        seq: 0,
        cpu: CPU_UNKNOWN,
        arg0: frame.slots[0],
        arg1: frame.slots[1],
        stream: frame.slots[2],
    });
}

fn end(thread: &Thread, frame: &mut Frame, result: i32) {
    let at = &raw const *frame as usize;
    let Some(state) = take(thread, at) else {
        return;
    };
    let now = state.now();
    while state.depth > 0 && state.frames[state.depth - 1] < at {
        abandon(state);
    }
    if state.depth > 0 && state.frames[state.depth - 1] == at {
        // SAFETY: as in `leave_quickly`.
        let op = unsafe { &*frame.op };
        let level = state.depth - 1;
        close(state, level);
        let ticks = now.saturating_sub(frame.ts);
        let nanos = state.nanos(ticks);
        for k in 0..3 {
            if let Slot::Out(n) = op.slots[k] {
                frame.slots[k] = after(result, frame.argument(n));
            }
        }
        if frame.then == FOLLOW {
            // Nothing is recorded of it.
        } else if level == 0 {
            push(state, frame, op, 0, ticks, result);
            state.count(op.row, nanos);
            if op.waits {
                stretch_at(state, now, stretch::MIN_NANOS);
            } else if nanos >= stretch::SLOW_NANOS {
                stretch_at(state, now, stretch::SLOW_EVERY_NANOS);
            }
        } else if nanos >= NESTED_MIN_NANOS {
            let flags = nested_flags(state);
            push(state, frame, op, flags, ticks, result);
        }
        if op.change != Change::Nothing && result == 0 {
            change_device(state, frame, op);
        }
    }
    give_back(thread);
}

/// Reading it with the time (`rdtscp`) takes 10 ns more, which nobody has had a use for.
const CPU_UNKNOWN: u32 = u32::MAX;

fn nested_flags(state: &State) -> u16 {
    if ROWS[state.outermost as usize].source == Source::Nccl as u8 {
        flag::NESTED | flag::NESTED_IN_LIBRARY
    } else {
        flag::NESTED
    }
}

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

/// Whether calls are recorded now.
fn records() -> bool {
    process::records(process::generation())
}

/// Ends the thread's stretch at `now`, unless it is younger than `min` ns.
fn stretch_at(state: &mut State, now: u64, min: u64) {
    // What was between two recordings is no stretch of either.
    let generation = process::generation();
    if state.stretched != generation {
        state.stretched = generation;
        let _ = state.stretches.end(now, state.pid, state.tid);
        return;
    }
    let age = state.stretches.age(now);
    if age != u64::MAX && state.nanos(age) < min {
        return;
    }
    if let Some(record) = state.stretches.end(now, state.pid, state.tid) {
        state.ring.push(|| record);
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
