//! The page by which a recorder and the threads that it records agree: `control` in the directory of rings.
//!
//! The recorder makes the file, writes the fields of its side and reads those of the job's; every traced process maps it. A job
//! looks at [`Control::generation`] in each call, so switching off takes effect at once and costs the job one branch.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// First word of the page.
pub const MAGIC: u64 = u64::from_le_bytes(*b"wtctrl01");

/// Bytes of the file.
pub const BYTES: usize = 4096;

/// Name of the file in the directory of rings.
pub const FILE: &str = "control";

/// Names of rings begin so; a serial number in decimal follows.
pub const RING_PREFIX: &str = "ring.";

/// The variable that tells a job where the directory is.
pub const DIRECTORY_VARIABLE: &str = "WARPTRACE_RINGS";

/// What the ticks of a ring are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Clock {
    /// Nanoseconds of CLOCK_BOOTTIME.
    BootNanos = 0,
    /// The CPU's own counter (`rdtsc`, `cntvct_el0`), which the recorder converts. Chosen only where the kernel keeps time by it.
    Counter = 1,
}

/// See [`Control::mult`]. Fixed, so that shifting is one instruction.
pub const SHIFT: u32 = 32;

/// Set in [`Control::generation`]: nothing is recorded, but which device is current is followed, so that it is known afterwards.
pub const PAUSED: u32 = 1 << 31;

/// The page. Plain fields are written before the file has its final name; atomic ones change while jobs run.
#[derive(Debug)]
#[repr(C)]
pub struct Control {
    pub magic: u64,
    /// [`Clock`] as a number.
    pub clock: u32,
    /// Records in a ring, as [`super::Layout`] wants them.
    pub capacity: u32,
    /// Op counters in a ring.
    pub op_slots: u32,
    _unused: u32,
    /// Nanoseconds of a duration = ticks × `mult` >> [`SHIFT`], accurate to a few millionths.
    pub mult: u64,
    /// Bytes that all rings together may take.
    pub budget: u64,
    /// The recorder, as it sees itself.
    pub recorder_pid: u32,
    /// Not 0 while the recorder records; another value each time it starts to. With [`PAUSED`] it will, and does not now.
    pub generation: AtomicU32,
    /// Start time of the recorder, clock ticks since boot.
    pub recorder_start_ticks: u64,
    /// Bytes of rings that the recorder has removed.
    pub returned: AtomicU64,
    _to_cache_line: [u64; 8],
    /// Written by jobs from here on. Serial number of the next ring.
    pub serial: AtomicU64,
    /// Rings that are ready to be read, ever.
    pub rings: AtomicU64,
    /// Bytes that rings have taken, ever.
    pub taken: AtomicU64,
    /// Threads that could not be recorded: no memory left in the file system, or the budget is spent.
    pub no_space: AtomicU64,
    /// Threads that could not be recorded for another reason (descriptors, limits, a system call refused).
    pub refused: AtomicU64,
    /// Functions that were left alone because too many copies of their library are loaded.
    pub no_stub: AtomicU64,
}

const _: () = assert!(size_of::<Control>() <= BYTES);
const _: () = assert!(offset_of!(Control, serial) == 128);

/// The largest capacity, a power of two not above `wanted`, whose ring takes at most a 64th of the `left` bytes; `None` when not even
/// the smallest ring does. So early threads get what was asked for, and many threads share the rest instead of filling the file system.
pub fn affordable(wanted: super::Layout, left: u64) -> Option<super::Layout> {
    let mut capacity = wanted.capacity();
    let mut op_slots = wanted.op_slots();
    loop {
        let layout = super::Layout::new(capacity, op_slots)?;
        if layout.bytes() as u64 <= left / 64 {
            return Some(layout);
        }
        capacity /= 2;
        op_slots = op_slots.min((op_slots / 2).max(16));
    }
}
