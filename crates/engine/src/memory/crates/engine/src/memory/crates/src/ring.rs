//! One thread's ring in shared memory: the flight recorder that a traced thread writes and the recorder of the session reads.
//!
//! The producer never waits: it overwrites the oldest record, and the consumer finds out by `head` what it has missed. So the
//! file stays readable, and holds the last moments, when its thread is killed. Beside the records stand exact counts per
//! (op, device) and the calls in flight. Nothing here opens a file, maps memory or reads a clock; the producer gets memory, the
//! consumer something that reads bytes. The consumer believes nothing that it reads: another program wrote it.
//!
//! | offset | what |
//! |---|---|
//! | 0 | [`Header`]: identity, `head`, calls in flight, losses |
//! | 4,096 | [`Layout::op_slots`] × [`OP_SLOT_BYTES`]: key u64 (0: free), total ns u64, then a wrapping u32 for each bucket |
//! | then | [`Layout::capacity`] × [`RECORD_BYTES`]: record *n* at *n* mod capacity |
//!
//! Times in a ring are ticks of the clock that its header names ([`control::Clock`]); only op counts are always ns.
//!
//! The order of writes is that of a sequence lock: a release fence, the words of record *n*, then `head = n + 1` with release.
//! A reader that saw any word of record *n* thus sees `head >= n` in a later read, and record *n* − capacity, whose place it
//! takes, is the one it must throw away (Boehm, "Can seqlocks get along with programming language memory models?", MSPC 2012).
#![expect(
    unsafe_code,
    reason = "the producer writes to memory that another process maps"
)]

use core::mem::offset_of;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::histogram::{self, BUCKETS};
use crate::{RECORD_BYTES, Record};

pub mod control;

/// First word of a ring that is ready to be read; written last.
pub const MAGIC: u64 = u64::from_le_bytes(*b"wtring01");

/// Bytes before the op counters.
pub const HEADER_BYTES: usize = 4096;

/// Bytes of one (op, device) counter.
pub const OP_SLOT_BYTES: usize = 16 + 4 * BUCKETS;

/// Calls in flight that the header shows; deeper ones are not shown.
pub const IN_FLIGHT: usize = 4;

/// Capacities are powers of two from here on: fewer records would be overwritten between two polls.
pub const MIN_CAPACITY: u32 = 64;
/// 2^20 records, 72 MiB.
pub const MAX_CAPACITY: u32 = 1 << 20;
/// More op counters than there are ops and devices on any node would be a damaged header.
pub const MAX_OP_SLOTS: u32 = 4096;

const WORDS: usize = RECORD_BYTES / 8;
/// Set in the key of every counter in use, so that 0 is free.
const KEY_USED: u64 = 1 << 63;

/// A thread that still runs, as far as its ring says: a killed thread leaves this too.
pub const STATE_LIVE: u32 = 1;
/// Its thread is gone and nothing will be written any more.
pub const STATE_ENDED: u32 = 2;

/// How many records and op counters a ring has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    capacity: u32,
    op_slots: u32,
}

impl Layout {
    /// `None` unless `capacity` is a power of two from [`MIN_CAPACITY`] to [`MAX_CAPACITY`] and `op_slots` at most [`MAX_OP_SLOTS`].
    pub const fn new(capacity: u32, op_slots: u32) -> Option<Layout> {
        if capacity.is_power_of_two()
            && capacity >= MIN_CAPACITY
            && capacity <= MAX_CAPACITY
            && op_slots <= MAX_OP_SLOTS
        {
            Some(Layout { capacity, op_slots })
        } else {
            None
        }
    }

    /// Records that the ring holds.
    pub const fn capacity(self) -> u32 {
        self.capacity
    }

    /// Pairs of op and device that it can count.
    pub const fn op_slots(self) -> u32 {
        self.op_slots
    }

    /// Bytes of the whole ring.
    pub const fn bytes(self) -> usize {
        self.records_at() + self.capacity as usize * RECORD_BYTES
    }

    const fn records_at(self) -> usize {
        HEADER_BYTES + self.op_slots as usize * OP_SLOT_BYTES
    }
}

/// The first page of a ring. Every field is one that another process may read at any time.
#[derive(Debug)]
#[repr(C)]
pub struct Header {
    magic: AtomicU64,
    capacity: AtomicU32,
    op_slots: AtomicU32,
    clock: AtomicU32,
    pid: AtomicU32,
    tid: AtomicU32,
    state: AtomicU32,
    pid_namespace: AtomicU64,
    start_ticks: AtomicU64,
    comm: [AtomicU64; 2],
    created: AtomicU64,
    /// Calls that were not recorded because a signal handler made them while a record was being written.
    reentrant: AtomicU64,
    /// Calls that were not counted because every op counter was taken.
    uncounted: AtomicU64,
    /// Calls that never returned (longjmp, an exception).
    abandoned: AtomicU64,
    _to_cache_line: [u64; 4],
    head: AtomicU64,
    device: AtomicU32,
    depth: AtomicU32,
    in_flight: [Flight; IN_FLIGHT],
}

#[derive(Debug)]
#[repr(C)]
struct Flight {
    ts: AtomicU64,
    /// [`flight_op`].
    op: AtomicU64,
    arg0: AtomicU64,
    stream: AtomicU64,
}

const _: () = assert!(size_of::<Header>() <= HEADER_BYTES);
const _: () = assert!(offset_of!(Header, head) == 128, "head begins a cache line");
const _: () = assert!(
    cfg!(target_endian = "little"),
    "records are little-endian words"
);

/// Whose ring it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Owner {
    /// As the thread itself sees it, in its own pid namespace.
    pub pid: u32,
    pub tid: u32,
    /// Inode of `/proc/self/ns/pid`; 0 when it could not be read.
    pub pid_namespace: u64,
    /// Start of the process, in clock ticks since boot; 0 when it could not be read.
    pub start_ticks: u64,
    /// Name of the thread when it made its first call, zero padded.
    pub comm: [u8; 16],
    /// [`control::Clock`] as a number.
    pub clock: u32,
    /// When the ring was made, in ticks of that clock.
    pub created: u64,
}

/// What a counter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CountKey {
    /// [`crate::Source`] as a number.
    pub source: u8,
    /// [`crate::Op::number`].
    pub number: u16,
    pub device: u16,
}

impl CountKey {
    const fn encode(self) -> u64 {
        KEY_USED | (self.source as u64) << 32 | (self.number as u64) << 16 | self.device as u64
    }

    const fn decode(word: u64) -> Option<CountKey> {
        if word & KEY_USED == 0 {
            return None;
        }
        Some(CountKey {
            source: (word >> 32) as u8,
            number: (word >> 16) as u16,
            device: word as u16,
        })
    }
}

/// Source and number of an op, as a ring shows a call in flight.
pub const fn flight_op(source: u8, number: u16) -> u32 {
    (source as u32) << 16 | number as u32
}

/// A counter of the producer that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter(u16);

/// The writing end: one thread's, in the job.
#[derive(Debug)]
pub struct Producer {
    base: NonNull<Header>,
    records: NonNull<[AtomicU64; WORDS]>,
    layout: Layout,
    mask: u64,
    used: u16,
    head: u64,
}

// SAFETY: the memory belongs to the producer alone, whichever thread owns that.
unsafe impl Send for Producer {}

impl Producer {
    /// Makes a ring in `memory` and the writing end of it.
    ///
    /// # Safety
    /// `memory` is page-aligned, zeroed, and readable and writable for [`Layout::bytes`] bytes as long as the producer lives. Other
    /// processes may read it, no other code writes to it.
    pub unsafe fn create(memory: NonNull<u8>, layout: Layout, owner: &Owner) -> Producer {
        let base = memory.cast::<Header>();
        // SAFETY: the caller promises memory of that size and alignment; the records begin inside it, at a multiple of 8.
        let (header, records) = unsafe {
            (
                base.as_ref(),
                memory.add(layout.records_at()).cast::<[AtomicU64; WORDS]>(),
            )
        };
        header.capacity.store(layout.capacity, Ordering::Relaxed);
        header.op_slots.store(layout.op_slots, Ordering::Relaxed);
        header.clock.store(owner.clock, Ordering::Relaxed);
        header.pid.store(owner.pid, Ordering::Relaxed);
        header.tid.store(owner.tid, Ordering::Relaxed);
        header
            .pid_namespace
            .store(owner.pid_namespace, Ordering::Relaxed);
        header
            .start_ticks
            .store(owner.start_ticks, Ordering::Relaxed);
        header.created.store(owner.created, Ordering::Relaxed);
        let (low, high) = owner.comm.split_at(8);
        for (word, bytes) in header.comm.iter().zip([low, high]) {
            let mut eight = [0; 8];
            eight.copy_from_slice(bytes);
            word.store(u64::from_le_bytes(eight), Ordering::Relaxed);
        }
        header.state.store(STATE_LIVE, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Producer {
            base,
            records,
            layout,
            mask: u64::from(layout.capacity) - 1,
            used: 0,
            head: 0,
        }
    }

    fn header(&self) -> &Header {
        // SAFETY: `create`'s caller promised that the memory lives as long as `self`; the fields are atomic.
        unsafe { self.base.as_ref() }
    }

    fn slot(&self, index: u16) -> &OpSlot {
        debug_assert!((index as u32) < self.layout.op_slots);
        // SAFETY: counters come from `counter`, which makes none at or past `op_slots`; so the place is inside the memory.
        unsafe {
            self.base
                .cast::<u8>()
                .add(HEADER_BYTES + index as usize * OP_SLOT_BYTES)
                .cast::<OpSlot>()
                .as_ref()
        }
    }

    /// Records written so far.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Writes a record over the oldest one; its `seq` becomes its number. Cost: about 7 ns, no branch.
    #[inline(always)]
    pub fn push(&mut self, record: impl FnOnce() -> Record) {
        let at = (self.head & self.mask) as usize;
        // SAFETY: `at` is below the capacity, so the place is inside the memory that `create`'s caller promised.
        let place = unsafe { self.records.add(at).as_ref() };
        fence(Ordering::Release);
        // Made after the fence, so that its words need not wait in registers.
        let record = record();
        let seq = self.head as u32;
        for (to, word) in place.iter().zip(Record { seq, ..record }.to_words()) {
            to.store(word, Ordering::Relaxed);
        }
        self.head += 1;
        self.header().head.store(self.head, Ordering::Release);
    }

    /// The counter for `key`, a new one when it has none yet; `None` when all are taken. Cost: one load for each counter in use.
    pub fn counter(&mut self, key: CountKey) -> Option<Counter> {
        let known = (0..self.used)
            .find(|&index| self.slot(index).key.load(Ordering::Relaxed) == key.encode());
        if let Some(index) = known {
            return Some(Counter(index));
        }
        if self.used as u32 >= self.layout.op_slots {
            return None;
        }
        let index = self.used;
        self.used += 1;
        self.slot(index).key.store(key.encode(), Ordering::Release);
        Some(Counter(index))
    }

    /// Counts one call that took `nanos`.
    #[inline(always)]
    pub fn count(&self, counter: Counter, nanos: u64) {
        // One writer: loads and stores, no locked instruction.
        let slot = self.slot(counter.0);
        let bucket = &slot.buckets[histogram::bucket(nanos)];
        bucket.store(
            bucket.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
        slot.total.store(
            slot.total.load(Ordering::Relaxed).wrapping_add(nanos),
            Ordering::Relaxed,
        );
    }

    /// Counts a call that no counter was left for.
    pub fn uncounted(&self) {
        add_one(&self.header().uncounted);
    }

    /// Counts a call that came while a record was being written.
    pub fn reentrant(&self) {
        add_one(&self.header().reentrant);
    }

    /// Counts a call that will not return.
    pub fn abandoned(&self) {
        add_one(&self.header().abandoned);
    }

    /// Shows a call in flight at `level` (0 is the outermost). `ts` is in ticks, `op` made by [`flight_op`].
    #[inline(always)]
    pub fn enter(&self, level: usize, ts: u64, op: u32, arg0: u64, stream: u64) {
        let header = self.header();
        if let Some(flight) = header.in_flight.get(level) {
            flight.ts.store(ts, Ordering::Relaxed);
            flight.op.store(u64::from(op), Ordering::Relaxed);
            flight.arg0.store(arg0, Ordering::Relaxed);
            flight.stream.store(stream, Ordering::Relaxed);
        }
        header.depth.store(level as u32 + 1, Ordering::Release);
    }

    /// The call at `level`, and those inside it, are no longer in flight.
    #[inline(always)]
    pub fn leave(&self, level: usize) {
        self.header().depth.store(level as u32, Ordering::Release);
    }

    /// Shows the thread's current device.
    pub fn set_device(&self, device: u16) {
        self.header().device.store(device as u32, Ordering::Relaxed);
    }

    /// Says that nothing more will be written.
    pub fn end(&self) {
        self.header().state.store(STATE_ENDED, Ordering::Release);
    }
}

#[repr(C)]
struct OpSlot {
    key: AtomicU64,
    total: AtomicU64,
    buckets: [AtomicU32; BUCKETS],
}

const _: () = assert!(size_of::<OpSlot>() == OP_SLOT_BYTES);

fn add_one(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Where a consumer reads a ring from: a file, or memory.
pub trait ReadAt {
    /// Fills `out` with the bytes from `offset` on; `false` when they cannot be had. Two reads are made in program order.
    fn read_at(&self, offset: usize, out: &mut [u8]) -> bool;
}

/// Why bytes are no ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// The magic is not there: it is still being made, or is of another version.
    NotReady,
    /// Sizes that no producer writes, or more than the file holds.
    Malformed,
}

/// What one [`Consumer::drain`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drained {
    /// Records given.
    pub records: u64,
    /// Overwritten before they were read.
    pub lost: u64,
    /// Bytes that are no record.
    pub malformed: u64,
}

/// Calls that a producer could not record or count, since the ring was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refused {
    /// Made by a signal handler while a record was being written: neither recorded nor counted.
    pub reentrant: u64,
    /// Recorded, but not counted, because every counter was taken.
    pub uncounted: u64,
    /// Entered but never left (longjmp, an exception).
    pub abandoned: u64,
}

/// A call that has not returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InFlight {
    /// Entry, in ticks.
    pub ts: u64,
    pub source: u8,
    pub number: u16,
    pub arg0: u64,
    pub stream: u64,
    pub device: u16,
    /// 0 is the outermost.
    pub level: usize,
}

/// What a counter says; all of it wraps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    pub key: CountKey,
    /// ns.
    pub total: u64,
    pub buckets: [u32; BUCKETS],
}

/// The reading end.
#[derive(Debug)]
pub struct Consumer<M> {
    memory: M,
    layout: Layout,
    owner: Owner,
    next: u64,
}

/// Records read at a time.
const CHUNK: usize = 64;

impl<M: ReadAt> Consumer<M> {
    /// Opens the ring in `memory`, which has `len` bytes; nothing of it is read yet, so a first drain gives the oldest record still there.
    ///
    /// # Errors
    /// [`OpenError`]; after [`OpenError::NotReady`] it is worth trying again.
    pub fn open(memory: M, len: u64) -> Result<Consumer<M>, OpenError> {
        let mut b = [0; size_of::<Header>()];
        if len < HEADER_BYTES as u64 || !memory.read_at(0, &mut b) {
            return Err(OpenError::NotReady);
        }
        if u64_at(&b, offset_of!(Header, magic)) != MAGIC {
            return Err(OpenError::NotReady);
        }
        fence(Ordering::Acquire);
        if !memory.read_at(0, &mut b) {
            return Err(OpenError::NotReady);
        }
        let layout = Layout::new(
            u32_at(&b, offset_of!(Header, capacity)),
            u32_at(&b, offset_of!(Header, op_slots)),
        )
        .filter(|layout| layout.bytes() as u64 <= len)
        .ok_or(OpenError::Malformed)?;
        let mut comm = [0; 16];
        let at = offset_of!(Header, comm);
        comm.copy_from_slice(&b[at..at + 16]);
        let owner = Owner {
            pid: u32_at(&b, offset_of!(Header, pid)),
            tid: u32_at(&b, offset_of!(Header, tid)),
            pid_namespace: u64_at(&b, offset_of!(Header, pid_namespace)),
            start_ticks: u64_at(&b, offset_of!(Header, start_ticks)),
            comm,
            clock: u32_at(&b, offset_of!(Header, clock)),
            created: u64_at(&b, offset_of!(Header, created)),
        };
        Ok(Consumer {
            memory,
            layout,
            owner,
            next: 0,
        })
    }

    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    fn u64_from(&self, offset: usize) -> Option<u64> {
        let mut b = [0; 8];
        self.memory
            .read_at(offset, &mut b)
            .then(|| u64::from_le_bytes(b))
    }

    fn head(&self) -> Option<u64> {
        self.u64_from(offset_of!(Header, head))
    }

    /// Its producer has said that nothing more will come.
    pub fn ended(&self) -> bool {
        let mut b = [0; 4];
        self.memory.read_at(offset_of!(Header, state), &mut b)
            && u32::from_le_bytes(b) == STATE_ENDED
    }

    /// What the producer could not do so far.
    pub fn refused(&self) -> Refused {
        let at = |offset| self.u64_from(offset).unwrap_or(0);
        Refused {
            reentrant: at(offset_of!(Header, reentrant)),
            uncounted: at(offset_of!(Header, uncounted)),
            abandoned: at(offset_of!(Header, abandoned)),
        }
    }

    /// Gives every record written since the last time and before this call, in order, ticks as they are.
    ///
    /// Cost without news: one read of 8 bytes. Records that were overwritten meanwhile are counted as lost, and so is the oldest of
    /// a full ring, since its place may be half overwritten.
    pub fn drain(&mut self, mut each: impl FnMut(Record)) -> Drained {
        let mut done = Drained::default();
        let Some(head) = self.head() else {
            return done;
        };
        let capacity = self.layout.capacity as u64;
        if head < self.next {
            // Only a damaged header goes backwards.
            done.malformed += 1;
            self.next = head;
            return done;
        }
        let mut oldest = head.saturating_add(1).saturating_sub(capacity);
        let mut bytes = [0; CHUNK * RECORD_BYTES];
        while self.next < head {
            if self.next < oldest {
                let skip = oldest.min(head) - self.next;
                done.lost += skip;
                self.next += skip;
                continue;
            }
            let at = self.next & (capacity - 1);
            let n = (head - self.next).min(capacity - at).min(CHUNK as u64);
            let chunk = &mut bytes[..n as usize * RECORD_BYTES];
            let offset = self.layout.records_at() + at as usize * RECORD_BYTES;
            if !self.memory.read_at(offset, chunk) {
                break;
            }
            fence(Ordering::Acquire);
            let Some(now) = self.head() else { break };
            oldest = now.saturating_add(1).saturating_sub(capacity);
            let torn = oldest.saturating_sub(self.next).min(n);
            done.lost += torn;
            for record in chunk.chunks_exact(RECORD_BYTES).skip(torn as usize) {
                match Record::decode(record) {
                    Ok(record) => {
                        done.records += 1;
                        each(record);
                    }
                    Err(_) => done.malformed += 1,
                }
            }
            self.next += n;
        }
        done
    }

    /// Gives every counter in use. A counter that is being written may be one call behind in one of its parts.
    pub fn counts(&self, mut each: impl FnMut(&Counts)) {
        let mut bytes = [0; OP_SLOT_BYTES];
        for slot in 0..self.layout.op_slots as usize {
            let offset = HEADER_BYTES + slot * OP_SLOT_BYTES;
            // Counters are taken in order, so the first free one is the end.
            let Some(key) = self.u64_from(offset).and_then(CountKey::decode) else {
                return;
            };
            if !self.memory.read_at(offset, &mut bytes) {
                return;
            }
            let mut buckets = [0; BUCKETS];
            for (i, to) in buckets.iter_mut().enumerate() {
                *to = u32_at(&bytes, 16 + 4 * i);
            }
            each(&Counts {
                key,
                total: u64_at(&bytes, 8),
                buckets,
            });
        }
    }

    /// Gives the calls in flight, outermost first; none when the thread was entering or leaving one just then.
    pub fn in_flight(&self, mut each: impl FnMut(InFlight)) {
        const FROM: usize = offset_of!(Header, head);
        const LEN: usize = size_of::<Header>() - FROM;
        let (mut b, mut again) = ([0; LEN], [0; LEN]);
        if !self.memory.read_at(FROM, &mut b) {
            return;
        }
        fence(Ordering::Acquire);
        if !self.memory.read_at(FROM, &mut again) || b != again {
            return;
        }
        let depth = u32_at(&b, offset_of!(Header, depth) - FROM) as usize;
        let device = u32_at(&b, offset_of!(Header, device) - FROM) as u16;
        for level in 0..depth.min(IN_FLIGHT) {
            let at = offset_of!(Header, in_flight) - FROM + level * size_of::<Flight>();
            let op = u64_at(&b, at + offset_of!(Flight, op));
            each(InFlight {
                ts: u64_at(&b, at + offset_of!(Flight, ts)),
                source: (op >> 16) as u8,
                number: op as u16,
                arg0: u64_at(&b, at + offset_of!(Flight, arg0)),
                stream: u64_at(&b, at + offset_of!(Flight, stream)),
                device,
                level,
            });
        }
    }
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(out)
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&b[at..at + 4]);
    u32::from_le_bytes(out)
}

#[cfg(test)]
mod tests;
