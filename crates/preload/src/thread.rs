//! A thread's ring and its private state: made at its first traced call, given back when the thread is found to be gone.
//!
//! The thread's word (`arch::thread_word`) is 0 at birth, then the address of its [`Thread`], or an odd number when it cannot be
//! recorded. There are no destructors, which would need libc: each birth looks at a few older threads and frees what those
//! that are gone have left. The recorder learns of an end from `/proc`.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use warptrace_record::op::OPS;
use warptrace_record::ring::control::{self, Control};
use warptrace_record::ring::{Counter, Producer};

use crate::arch;
use crate::device::Current;
use crate::process::{self, Page, Path, Process};
use crate::stretch::Stretches;
use crate::sys::{self, Fd};

/// Calls of one thread that may be open at once; deeper ones pass unseen.
pub(crate) const MAX_DEPTH: usize = 16;

/// A recorded thread.
pub(crate) struct Thread {
    page: &'static Page,
    /// The process that this was made in.
    token: u64,
    /// The recording that it takes part in; 0 when each call must look closer.
    generation: AtomicU32,
    /// The frame of the call that is being recorded just now, or 0: a signal handler may come in between.
    pub(crate) busy: AtomicUsize,
    state: UnsafeCell<State>,
}

/// What only the owner touches, between setting and clearing `busy`.
pub(crate) struct State {
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) ring: Producer,
    /// Frames of the open calls, outermost first.
    pub(crate) frames: [usize; MAX_DEPTH],
    pub(crate) depth: usize,
    /// Row of the op table of the outermost open call.
    pub(crate) outermost: u8,
    pub(crate) device: Current,
    pub(crate) stretches: Stretches,
    /// The recording that the stretches are of.
    pub(crate) stretched: u32,
    counters: [CounterState; OPS.len()],
    clock: Clock,
    mapping: (usize, usize),
}

#[derive(Clone, Copy)]
enum CounterState {
    Unknown,
    Has(Counter),
    Full,
}

/// How this thread takes times.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    /// The CPU's counter, or else CLOCK_BOOTTIME.
    counter: bool,
    vdso: usize,
    mult: u64,
}

impl Clock {
    pub(crate) fn now(&self) -> u64 {
        if self.counter {
            arch::ticks()
        } else {
            sys::boot_nanos(self.vdso)
        }
    }
}

impl State {
    pub(crate) fn now(&self) -> u64 {
        self.clock.now()
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    #[inline(always)]
    pub(crate) fn nanos(&self, ticks: u64) -> u64 {
        ((u128::from(ticks) * u128::from(self.clock.mult)) >> control::SHIFT) as u64
    }

    /// Counts a call of the op in `row` on the current device.
    pub(crate) fn count(&mut self, row: u8, nanos: u64) {
        match self.counters[row as usize] {
            CounterState::Has(counter) => self.ring.count(counter, nanos),
            other => self.count_first(row, nanos, other),
        }
    }

    /// The counter that [`State::count`] would use, when it has been used before.
    #[inline(always)]
    pub(crate) fn counter(&self, row: u8) -> Option<Counter> {
        match self.counters[row as usize] {
            CounterState::Has(counter) => Some(counter),
            _ => None,
        }
    }

    /// Times are read without a call.
    #[inline(always)]
    pub(crate) fn counts_ticks(&self) -> bool {
        self.clock.counter
    }

    #[cold]
    fn count_first(&mut self, row: u8, nanos: u64, state: CounterState) {
        let op = crate::symbols::op(row);
        let counter = match state {
            CounterState::Full => None,
            _ => self.ring.counter(warptrace_record::ring::CountKey {
                source: op.source as u8,
                number: op.number,
                device: self.device.device(),
            }),
        };
        match counter {
            Some(counter) => {
                self.ring.count(counter, nanos);
                self.counters[row as usize] = CounterState::Has(counter);
            }
            None => {
                self.ring.uncounted();
                self.counters[row as usize] = CounterState::Full;
            }
        }
    }

    /// The current device may have changed: counters are another device's now.
    #[cold]
    pub(crate) fn device_changed(&mut self) {
        self.counters = [CounterState::Unknown; OPS.len()];
        self.ring.set_device(self.device.device());
    }
}

impl Thread {
    /// The calling thread, if it is recorded now.
    pub(crate) fn current() -> Option<&'static Thread> {
        let generation = process::generation() & !control::PAUSED;
        if generation == 0 {
            return None;
        }
        Thread::known(generation).or_else(|| find(arch::thread_word()))
    }

    /// The calling thread, if it is known to take part in the recording `generation`. Cost: five loads.
    #[inline(always)]
    pub(crate) fn known(generation: u32) -> Option<&'static Thread> {
        let word = arch::thread_word();
        if word == 0 || word & 1 != 0 {
            return None;
        }
        // SAFETY: an even word is the address of this thread's slot, which is only reused when the thread is gone.
        let thread = unsafe { &*(word as *const Thread) };
        let is_known =
            thread.is_of_this_process() && generation == thread.generation.load(Ordering::Relaxed);
        is_known.then_some(thread)
    }

    /// Whether the process has not been forked since this was made.
    #[inline(always)]
    pub(crate) fn is_of_this_process(&self) -> bool {
        self.page.token() == self.token
    }

    /// Counts a call that came while `busy` was set.
    pub(crate) fn reentrant(&self) {
        // SAFETY: reads where the ring is, which does not change; the counter is an atomic there that nobody else of this thread uses.
        unsafe { (*self.state.get()).ring.reentrant() };
    }

    /// # Safety
    /// `busy` holds the caller's frame.
    #[expect(clippy::mut_from_ref, reason = "`busy` is the lock")]
    #[inline(always)]
    pub(crate) unsafe fn state(&self) -> &mut State {
        // SAFETY: the caller's promise: no other frame of this thread uses it, and no other thread ever does.
        unsafe { &mut *self.state.get() }
    }
}

/// The rest of [`Thread::current`]: not yet recorded, forked, switched on or off.
#[cold]
fn find(word: usize) -> Option<&'static Thread> {
    if word == BIRTH {
        return None;
    }
    arch::set_thread_word(BIRTH);
    let (word, found) = find_unless_refused(word);
    arch::set_thread_word(word);
    found
}

/// The thread's next word, and the thread if it is recorded.
fn find_unless_refused(word: usize) -> (usize, Option<&'static Thread>) {
    let Some(process) = process::ready(forget_parents_threads) else {
        return (word, None);
    };
    let generation = process::generation() & !control::PAUSED;
    let refused = refusal(process.pid(), generation);
    if generation == 0 || word == refused {
        return (word, None);
    }
    if word != 0 && word & 1 == 0 {
        // SAFETY: as in `current`; after a fork the slot is a copy, and its token tells.
        let thread = unsafe { &*(word as *const Thread) };
        if thread.token == process.page.token() {
            let known = if process.page.must_ask() {
                0
            } else {
                generation
            };
            thread.generation.store(known, Ordering::Relaxed);
            return (word, Some(thread));
        }
    }
    let made = make(process, generation);
    let word = made.map_or(refused, |thread| thread as *const Thread as usize);
    (word, made)
}

/// The word of a thread that is looking for its ring: a signal handler may call in between.
const BIRTH: usize = 1;

/// The word of a thread that cannot be recorded in this recording of this process.
fn refusal(pid: u32, generation: u32) -> usize {
    (pid as usize) << 32 | (generation as usize & 0x7fff_ffff) << 1 | 1
}

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const LIVE: u32 = 2;

struct Slot {
    state: AtomicU32,
    tid: AtomicU32,
    thread: UnsafeCell<MaybeUninit<Thread>>,
}

const SLAB: usize = 32;
const SLABS: usize = 128;

type Slab = [Slot; SLAB];

static THREADS: [AtomicPtr<Slab>; SLABS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; SLABS];
static CURSOR: AtomicU32 = AtomicU32::new(0);

fn slabs() -> impl Iterator<Item = &'static Slab> {
    THREADS
        .iter()
        // SAFETY: slabs are never unmapped; zero is a free slot.
        .map_while(|slab| unsafe { slab.load(Ordering::Acquire).as_ref() })
}

fn make(process: Process, generation: u32) -> Option<&'static Thread> {
    let tid = sys::tid();
    let no_stub = crate::bind::take_no_stub();
    if no_stub > 0 {
        process
            .control
            .no_stub
            .fetch_add(no_stub, Ordering::Relaxed);
    }
    reap(process.pid(), tid);
    let Some(slot) = take_slot() else {
        process.control.refused.fetch_add(1, Ordering::Relaxed);
        return None;
    };
    match make_state(process, tid) {
        Ok(state) => {
            // SAFETY: the slot is ours until it is live.
            let thread = unsafe { &mut *slot.thread.get() }.write(Thread {
                page: process.page,
                token: process.page.token(),
                generation: AtomicU32::new(if process.page.must_ask() {
                    0
                } else {
                    generation
                }),
                busy: AtomicUsize::new(0),
                state: UnsafeCell::new(state),
            });
            slot.tid.store(tid, Ordering::Relaxed);
            slot.state.store(LIVE, Ordering::Release);
            process.control.rings.fetch_add(1, Ordering::Release);
            Some(thread)
        }
        Err(why) => {
            slot.state.store(FREE, Ordering::Release);
            let counter = match why {
                Refused::NoSpace => &process.control.no_space,
                Refused::Other => &process.control.refused,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

fn take_slot() -> Option<&'static Slot> {
    for place in &THREADS {
        let mut slab = place.load(Ordering::Acquire);
        if slab.is_null() {
            let at = sys::map_private(size_of::<Slab>()).ok()?;
            slab = match place.compare_exchange(
                core::ptr::null_mut(),
                at as *mut Slab,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => at as *mut Slab,
                Err(theirs) => {
                    // SAFETY: nobody else has seen it.
                    unsafe { sys::unmap(at, size_of::<Slab>()) };
                    theirs
                }
            };
        }
        // SAFETY: slabs are never unmapped; zero is a free slot.
        let slab = unsafe { &*slab };
        let free = slab.iter().find(|slot| {
            slot.state
                .compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        });
        if free.is_some() {
            return free;
        }
    }
    None
}

enum Refused {
    /// No memory in the file system, or the budget is spent.
    NoSpace,
    Other,
}

fn make_state(process: Process, tid: u32) -> Result<State, Refused> {
    let control = process.control;
    let wanted = process.layout().ok_or(Refused::Other)?;
    let mut taken = control.taken.load(Ordering::Relaxed);
    let layout = loop {
        let used = taken.wrapping_sub(control.returned.load(Ordering::Relaxed));
        let left = control.budget.saturating_sub(used);
        let layout = control::affordable(wanted, left).ok_or(Refused::NoSpace)?;
        match control.taken.compare_exchange_weak(
            taken,
            taken + layout.bytes() as u64,
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            Ok(_) => break layout,
            Err(now) => taken = now,
        }
    };
    let bytes = layout.bytes();
    let mapped = map_ring(control, bytes);
    let (at, mapping) = match mapped {
        Ok(at) => (at, (at.as_ptr() as usize, bytes)),
        Err(why) => {
            control.taken.fetch_sub(bytes as u64, Ordering::Relaxed);
            return Err(why);
        }
    };
    let clock = Clock {
        counter: process.counts_ticks(),
        vdso: process.vdso(),
        mult: control.mult,
    };
    let owner = process.owner(tid, clock.now());
    // SAFETY: a fresh file of that size, mapped at the begin of a page; only this thread writes to it.
    let ring = unsafe { Producer::create(at, layout, &owner) };
    let mut stretches = Stretches::new();
    // The first stretch begins here.
    let _ = stretches.end(clock.now(), owner.pid, tid);
    Ok(State {
        pid: owner.pid,
        tid,
        ring,
        frames: [0; MAX_DEPTH],
        depth: 0,
        outermost: 0,
        device: Current::new(),
        stretches,
        stretched: process::generation(),
        counters: [CounterState::Unknown; OPS.len()],
        clock,
        mapping,
    })
}

/// A new ring file of `bytes` bytes, mapped. It is taken from the file system before it is mapped, since touching a page that the file
/// system cannot give is a deadly signal; so is asking for more than the limit on file sizes.
fn map_ring(control: &Control, bytes: usize) -> Result<NonNull<u8>, Refused> {
    if !sys::may_write(bytes) {
        return Err(Refused::Other);
    }
    let number = control.serial.fetch_add(1, Ordering::Relaxed);
    let path = Path::in_directory(control::RING_PREFIX, Some(number));
    let path = path.as_c_str();
    let fd = Fd::create(path).map_err(|e| match e.0 {
        sys::ENOSPC => Refused::NoSpace,
        _ => Refused::Other,
    })?;
    let mapped = match fd.allocate(bytes) {
        Ok(()) => fd.map(bytes, true).map_err(|_| Refused::Other),
        Err(_) => Err(Refused::NoSpace),
    };
    let at = mapped.and_then(|at| {
        sys::keep_from_children(at, bytes).map_err(|_| Refused::Other)?;
        NonNull::new(at as *mut u8).ok_or(Refused::Other)
    });
    if at.is_err() {
        sys::unlink(path);
    }
    at
}

/// Slots looked at when a thread is born.
const REAP_AT_ONCE: u32 = 64;

/// Frees what threads that are gone have left.
fn reap(pid: u32, own_tid: u32) {
    let known = slabs().count() * SLAB;
    if known == 0 {
        return;
    }
    let first = CURSOR.fetch_add(REAP_AT_ONCE, Ordering::Relaxed) as usize;
    for i in 0..(REAP_AT_ONCE as usize).min(known) {
        let at = first.wrapping_add(i) % known;
        let Some(slot) = slabs().nth(at / SLAB).map(|slab| &slab[at % SLAB]) else {
            return;
        };
        if slot.state.load(Ordering::Acquire) != LIVE {
            continue;
        }
        let tid = slot.tid.load(Ordering::Relaxed);
        if (tid == own_tid || sys::is_gone(pid, tid))
            && slot
                .state
                .compare_exchange(LIVE, TAKEN, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        {
            // The number may have been given to a newer thread in between: then the slot is as it should be.
            if slot.tid.load(Ordering::Relaxed) != tid {
                slot.state.store(LIVE, Ordering::Release);
                continue;
            }
            // SAFETY: live means written, and its thread is gone, so nobody uses it.
            let state = unsafe { (*slot.thread.get()).assume_init_mut() }
                .state
                .get_mut();
            state.ring.end();
            state.stretches.close();
            let (at, len) = state.mapping;
            // SAFETY: only the state pointed into the ring.
            unsafe { sys::unmap(at, len) };
            slot.state.store(FREE, Ordering::Release);
        }
    }
}

/// In a forked child: its parent's threads do not exist here, and their rings are not mapped.
fn forget_parents_threads() {
    for slot in slabs().flatten() {
        if slot.state.load(Ordering::Relaxed) == LIVE {
            // SAFETY: live means written; the child has one thread.
            let state = unsafe { (*slot.thread.get()).assume_init_mut() }
                .state
                .get_mut();
            state.stretches.close();
        }
        slot.state.store(FREE, Ordering::Relaxed);
    }
}
