//! The record that both capture backends write, the histogram that both count in, the ring in shared memory, and the op table.
//!
//! Everything after the ring is one code path, because eBPF and preload write the same 72 bytes. This crate is `no_std`
//! and depends on nothing, so that the library inside the job can use it. It knows layouts, not meanings: what a record
//! says about a thread is `warptrace-model`'s word.
//!
//! Layout of a [`Record`], little-endian, no implicit padding:
//!
//! | offset | field | | offset | field | | offset | field |
//! |---|---|---|---|---|---|---|---|
//! | 0 | `kind` u8 | | 16 | `dur` u64 | | 44 | `cpu` u32 |
//! | 1 | `source` u8 | | 24 | `pid` u32 | | 48 | `arg0` u64 |
//! | 2 | `op` u16 | | 28 | `tid` u32 | | 56 | `arg1` u64 |
//! | 4 | `flags` u16 | | 32 | `ret` i32 | | 64 | `stream` u64 |
//! | 6 | `device` u16 | | 36 | `stack_id` u32 | | 72 | end |
//! | 8 | `ts` u64 | | 40 | `seq` u32 | | | |

#![no_std]

pub mod histogram;
pub mod op;
pub mod ring;

pub use op::{Class, Op, OpId, Source, Wait};

/// Bytes of one record.
pub const RECORD_BYTES: usize = 72;

/// `device` of a record whose producer did not know it.
pub const DEVICE_UNKNOWN: u16 = u16::MAX;

/// What a record tells; the first byte.
///
/// How each kind uses the slots beside `ts` (entry or begin, CLOCK_BOOTTIME ns), `dur` (ns), `pid`, `tid`, `cpu` and `seq`:
///
/// | kind | `op` | `flags` | `device` | `ret` | `stack_id` | `arg0` | `arg1` | `stream` |
/// |---|---|---|---|---|---|---|---|---|
/// | `Call` | number in its source | [`flag`] | CUDA ordinal | return code | user stack | by the op table | by the op table | stream handle |
/// | `OffCpu` | system call slept in, [`NO_SYSCALL`] for none | [`offcpu`] | file type, `S_IFMT >> 12` | descriptor, −1 for none | waker's thread | runnable ns (at the end of `dur`) | of that, throttled by a CPU quota, ns | waker's process << 32 &#124; last occupant's thread |
/// | `Slice` | 0 | 0 | – | 0 | 0 | 0 | 0 | 0 (`pid`, `tid`: who ran on `cpu`; tid 0 is idle) |
/// | `BlockIo` | 0 read, 1 write, 2 discard, 3 flush | 0 | – | error | `dev_t` | bytes | sector | inode, 0 when unknown |
/// | `Reclaim` | 0 | [`reclaim`] | – | 0 | 0 | pages reclaimed | 0 | 0 |
/// | `Process` | [`process`] | 0 | – | see [`process`] | 0 | see [`process`] | | |
/// | `Stretch` | 0 | 0 | – | 0 | 0 | running ns | runnable ns | throttled µs << 32 &#124; major faults u16 << 16 &#124; minor faults u16 (saturating) |
/// | `InFlight` | as `Call` | as `Call` | | 0 | | as `Call` | | (`dur`: so far) |
/// | `Retransmit` | 0 | 0 | – | 0 | 0 | address << 32 &#124; peer address | port << 16 &#124; peer port | socket's inode |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    Call = 1,
    OffCpu = 2,
    Slice = 3,
    BlockIo = 4,
    Reclaim = 5,
    Process = 6,
    Stretch = 7,
    InFlight = 8,
    Retransmit = 9,
}

impl Kind {
    const fn from_u8(v: u8) -> Option<Kind> {
        Some(match v {
            1 => Kind::Call,
            2 => Kind::OffCpu,
            3 => Kind::Slice,
            4 => Kind::BlockIo,
            5 => Kind::Reclaim,
            6 => Kind::Process,
            7 => Kind::Stretch,
            8 => Kind::InFlight,
            9 => Kind::Retransmit,
            _ => return None,
        })
    }
}

/// `op` of an off-CPU record of a thread that was in no system call.
pub const NO_SYSCALL: u16 = u16::MAX;

/// `op` of an off-CPU record from a source that does not say whether the thread slept in a system call, nor in which.
pub const UNKNOWN_SYSCALL: u16 = u16::MAX - 1;

/// Flags of a call.
pub mod flag {
    /// Made inside another traced call of the same thread; recorded only when slow (see [`super::NESTED_MIN_NANOS`]).
    pub const NESTED: u16 = 1 << 0;
    /// The outer call is of another source than a runtime call (NCCL calling CUDA), so this one has its own class.
    pub const NESTED_IN_LIBRARY: u16 = 1 << 1;
    /// The return was not seen (longjmp, thread exit): `dur` is not a duration of the call but until it was known to be over.
    pub const NO_RETURN: u16 = 1 << 2;
}

/// A nested call shorter than this is counted, not recorded.
pub const NESTED_MIN_NANOS: u64 = 100_000;

/// Flags of an off-CPU record.
pub mod offcpu {
    /// Switched out while still runnable: the whole gap is run-queue time.
    pub const PREEMPTED: u16 = 1 << 0;
    /// The task's `in_iowait` was set at switch-out.
    pub const IOWAIT: u16 = 1 << 1;
    /// Woken from an interrupt: the waker's thread is a bystander.
    pub const WAKER_INTERRUPT: u16 = 1 << 2;
    /// The waker was in a system call of its own.
    pub const WAKER_SYSCALL: u16 = 1 << 3;
    /// The waker is a kernel thread.
    pub const WAKER_KERNEL: u16 = 1 << 4;
    /// The waker was in a send call and the sleeper in a receive: believed though it came by softirq.
    pub const WAKER_SENT: u16 = 1 << 5;
    /// The state at switch-out was uninterruptible (D).
    pub const UNINTERRUPTIBLE: u16 = 1 << 6;
    /// Stopped or traced (SIGSTOP, debugger) or frozen.
    pub const STOPPED: u16 = 1 << 7;
    /// The sleep has a time limit that came from the caller (nanosleep, or a poll that timed out).
    pub const TIMED: u16 = 1 << 8;
    /// A poll, select or epoll that watched at least one socket.
    pub const POLL_SOCKET: u16 = 1 << 9;
}

/// Flags of a reclaim record.
pub mod reclaim {
    /// The memory cgroup's limit, not the machine's shortage.
    pub const CGROUP: u16 = 1 << 0;
    /// The thread was held back (`mm_vmscan_throttled`).
    pub const THROTTLED: u16 = 1 << 1;
    /// Compaction.
    pub const COMPACTION: u16 = 1 << 2;
}

/// `op` of a process record.
pub mod process {
    /// `pid`, `tid`: the parent; `arg0`: child process; `arg1`: child thread (equal: a process was born, else a thread).
    pub const FORK: u16 = 1;
    /// `pid`: the process, now another program; `arg1`: start time in clock ticks since boot.
    pub const EXEC: u16 = 2;
    /// `pid`, `tid`: who ended; `ret`: exit status as `wait` gives, when `pid == tid`.
    pub const EXIT: u16 = 3;
    /// `pid`: the victim of the OOM killer; `arg0`: who asked for memory, when known.
    pub const OOM_KILL: u16 = 4;
    /// `pid`: a process of which we saw a call for the first time.
    pub const SEEN: u16 = 5;
    /// `pid`, `tid`: a thread whose name is new; `arg0`, `arg1`: the 16 bytes of its name, padded with zeros.
    pub const NAME: u16 = 6;
}

/// One observation, as both backends write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    pub kind: u8,
    pub source: u8,
    pub op: u16,
    pub flags: u16,
    pub device: u16,
    /// Begin, ns of CLOCK_BOOTTIME.
    pub ts: u64,
    /// ns.
    pub dur: u64,
    pub pid: u32,
    pub tid: u32,
    pub ret: i32,
    pub stack_id: u32,
    /// Counts the records of one producer (a CPU, or a thread), wrapping; a gap is a counted loss.
    pub seq: u32,
    pub cpu: u32,
    pub arg0: u64,
    pub arg1: u64,
    pub stream: u64,
}

const _: () = assert!(core::mem::size_of::<Record>() == RECORD_BYTES);

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// Fewer than [`RECORD_BYTES`] bytes.
    Short(usize),
    /// A kind that this version does not know.
    UnknownKind(u8),
}

impl core::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            DecodeError::Short(n) => write!(f, "a record of {n} bytes (needs {RECORD_BYTES})"),
            DecodeError::UnknownKind(k) => write!(f, "a record of unknown kind {k}"),
        }
    }
}

impl core::error::Error for DecodeError {}

impl Record {
    /// A record with every slot zero but `kind`, `ts`, `dur`, `pid` and `tid`; the device is unknown.
    pub const fn new(kind: Kind, ts: u64, dur: u64, pid: u32, tid: u32) -> Record {
        Record {
            kind: kind as u8,
            source: 0,
            op: 0,
            flags: 0,
            device: DEVICE_UNKNOWN,
            ts,
            dur,
            pid,
            tid,
            ret: 0,
            stack_id: 0,
            seq: 0,
            cpu: 0,
            arg0: 0,
            arg1: 0,
            stream: 0,
        }
    }

    /// The kind, checked when the record was decoded.
    pub const fn kind(&self) -> Option<Kind> {
        Kind::from_u8(self.kind)
    }

    /// The op of a call, if the table has it.
    pub fn call_op(&self) -> Option<OpId> {
        OpId::find(Source::from_u8(self.source)?, self.op)
    }

    /// Reads a record field by field. Bytes after the first [`RECORD_BYTES`] are ignored.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are too few or the kind is unknown.
    pub fn decode(b: &[u8]) -> Result<Record, DecodeError> {
        let Some(b) = b.first_chunk::<RECORD_BYTES>() else {
            return Err(DecodeError::Short(b.len()));
        };
        if Kind::from_u8(b[0]).is_none() {
            return Err(DecodeError::UnknownKind(b[0]));
        }
        Ok(Record {
            kind: b[0],
            source: b[1],
            op: u16::from_le_bytes(part(b, 2)),
            flags: u16::from_le_bytes(part(b, 4)),
            device: u16::from_le_bytes(part(b, 6)),
            ts: u64::from_le_bytes(part(b, 8)),
            dur: u64::from_le_bytes(part(b, 16)),
            pid: u32::from_le_bytes(part(b, 24)),
            tid: u32::from_le_bytes(part(b, 28)),
            ret: i32::from_le_bytes(part(b, 32)),
            stack_id: u32::from_le_bytes(part(b, 36)),
            seq: u32::from_le_bytes(part(b, 40)),
            cpu: u32::from_le_bytes(part(b, 44)),
            arg0: u64::from_le_bytes(part(b, 48)),
            arg1: u64::from_le_bytes(part(b, 56)),
            stream: u64::from_le_bytes(part(b, 64)),
        })
    }

    /// [`Record::encode`] as little-endian words.
    #[inline(always)]
    pub const fn to_words(&self) -> [u64; RECORD_BYTES / 8] {
        const fn pair(low: u32, high: u32) -> u64 {
            low as u64 | (high as u64) << 32
        }
        [
            self.kind as u64
                | (self.source as u64) << 8
                | (self.op as u64) << 16
                | (self.flags as u64) << 32
                | (self.device as u64) << 48,
            self.ts,
            self.dur,
            pair(self.pid, self.tid),
            pair(self.ret as u32, self.stack_id),
            pair(self.seq, self.cpu),
            self.arg0,
            self.arg1,
            self.stream,
        ]
    }

    /// The bytes that [`Record::decode`] reads back.
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut b = [0; RECORD_BYTES];
        b[0] = self.kind;
        b[1] = self.source;
        b[2..4].copy_from_slice(&self.op.to_le_bytes());
        b[4..6].copy_from_slice(&self.flags.to_le_bytes());
        b[6..8].copy_from_slice(&self.device.to_le_bytes());
        b[8..16].copy_from_slice(&self.ts.to_le_bytes());
        b[16..24].copy_from_slice(&self.dur.to_le_bytes());
        b[24..28].copy_from_slice(&self.pid.to_le_bytes());
        b[28..32].copy_from_slice(&self.tid.to_le_bytes());
        b[32..36].copy_from_slice(&self.ret.to_le_bytes());
        b[36..40].copy_from_slice(&self.stack_id.to_le_bytes());
        b[40..44].copy_from_slice(&self.seq.to_le_bytes());
        b[44..48].copy_from_slice(&self.cpu.to_le_bytes());
        b[48..56].copy_from_slice(&self.arg0.to_le_bytes());
        b[56..64].copy_from_slice(&self.arg1.to_le_bytes());
        b[64..72].copy_from_slice(&self.stream.to_le_bytes());
        b
    }
}

/// `N` bytes of `b` from `at`; every call above is in range, which `decode_reads_every_field` shows.
fn part<const N: usize>(b: &[u8; RECORD_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&b[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_reads_every_field_that_encode_wrote() {
        let r = Record {
            kind: 1,
            source: 4,
            op: 0x0302,
            flags: 0x0504,
            device: 0x0706,
            ts: 0x0f0e_0d0c_0b0a_0908,
            dur: 0x1716_1514_1312_1110,
            pid: 0x1b1a_1918,
            tid: 0x1f1e_1d1c,
            ret: -2,
            stack_id: 0x2726_2524,
            seq: 0x2b2a_2928,
            cpu: 0x2f2e_2d2c,
            arg0: 0x3736_3534_3332_3130,
            arg1: 0x3f3e_3d3c_3b3a_3938,
            stream: 0x4746_4544_4342_4140,
        };
        assert_eq!(Record::decode(&r.encode()), Ok(r));
        for (word, bytes) in r.to_words().iter().zip(r.encode().chunks_exact(8)) {
            assert_eq!(word.to_le_bytes(), *bytes);
        }
        assert_eq!(r.encode()[16], 0x10, "dur is at offset 16");
        assert_eq!(r.encode()[64], 0x40, "stream is at offset 64");
    }

    #[test]
    fn short_and_unknown_bytes_are_errors() {
        let good = Record::new(Kind::Slice, 1, 2, 3, 4).encode();
        for n in 0..RECORD_BYTES {
            assert_eq!(Record::decode(&good[..n]), Err(DecodeError::Short(n)));
        }
        for kind in (0..=255u8).filter(|k| Kind::from_u8(*k).is_none()) {
            let mut bytes = good;
            bytes[0] = kind;
            assert_eq!(Record::decode(&bytes), Err(DecodeError::UnknownKind(kind)));
        }
    }
}
