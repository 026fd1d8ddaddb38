//! What the kernel programs keep in their maps, byte for byte; a test compares each offset with the object's types.

use warptrace_model::{Device, Histogram, OpKey, Pid};
use warptrace_record::histogram::BUCKETS;
use warptrace_record::{Kind, OpId, Record, Source, flag};

/// `struct cpu` of bpf/state.h.
pub(super) const CPU_BYTES: usize = 64;
const CPU_LOST: usize = 16;
/// `enum loss`: ring full, map full, no return.
pub(super) const LOSSES: usize = 3;

/// `struct settings` of bpf/state.h.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Settings {
    pub(super) ring_bytes: u64,
    pub(super) loaded_at: u64,
    pub(super) off_cpu_min: u64,
    pub(super) stack_min: u64,
    pub(super) listed: bool,
    pub(super) all_block_io: bool,
    pub(super) pid_namespace: u32,
    /// `HAS_*` bits.
    pub(super) has: u32,
}

/// `HAS_*` of bpf/state.h.
pub(super) const HAS_SWITCH_STATE: u32 = 1;
pub(super) const HAS_VICTIM_TASK: u32 = 2;
pub(super) const HAS_IO_START: u32 = 4;

impl Settings {
    pub(super) const BYTES: usize = 48;

    pub(super) fn encode(&self) -> [u8; Settings::BYTES] {
        let mut out = [0; Settings::BYTES];
        let words = [
            self.ring_bytes,
            self.loaded_at,
            self.off_cpu_min,
            self.stack_min,
        ];
        for (place, word) in out.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        out[32..36].copy_from_slice(&u32::from(self.listed).to_le_bytes());
        out[36..40].copy_from_slice(&u32::from(self.all_block_io).to_le_bytes());
        out[40..44].copy_from_slice(&self.pid_namespace.to_le_bytes());
        out[44..48].copy_from_slice(&self.has.to_le_bytes());
        out
    }
}

/// Losses by reason, over all CPUs.
pub(super) fn decode_losses(cpus: &[u8]) -> [u64; LOSSES] {
    let mut out = [0u64; LOSSES];
    for cpu in cpus.chunks_exact(CPU_BYTES) {
        for (i, sum) in out.iter_mut().enumerate() {
            *sum = sum.wrapping_add(u64_at(cpu, CPU_LOST + 8 * i));
        }
    }
    out
}

/// `struct count_key`: pid u32, device u16, row of the op table u16.
pub(super) fn decode_count_key(b: &[u8]) -> Option<OpKey> {
    Some(OpKey {
        pid: Pid(u32_at(b, 0)),
        device: Device::from_record(u16_at(b, 4)),
        op: OpId::from_index(usize::from(u16_at(b, 6)))?,
    })
}

/// `struct count`: the sum, then the buckets, all u64. Holds the last values, to give differences.
#[derive(Debug, Clone)]
pub(super) struct Count(Box<[u64]>);

impl Default for Count {
    fn default() -> Count {
        Count(vec![0; 1 + BUCKETS].into())
    }
}

impl Count {
    /// Takes the values in `b`; the sum and the durations that were added since the last call, or `None` when none were.
    pub(super) fn advance(&mut self, b: &[u8]) -> Option<(u64, Histogram)> {
        let mut added = Histogram::default();
        let (mut any, mut total) = (false, 0);
        for (i, old) in self.0.iter_mut().enumerate() {
            let new = u64_at(b, 8 * i);
            let grown = new.wrapping_sub(*old);
            *old = new;
            if i == 0 {
                total = grown;
            } else if grown > 0 {
                any = true;
                added.add(i - 1, grown);
            }
        }
        any.then_some((total, added))
    }
}

const FRAMES: usize = 4;
const FRAME_BYTES: usize = 48;
const FRAMES_AT: usize = 24;

/// The open calls in `struct thread_calls`, outermost first, as records of calls in flight at `now`.
///
/// Output slots are not known yet, and 0.
pub(super) fn decode_open_calls(b: &[u8], tid: u32, now: u64) -> Vec<Record> {
    let depth = (u32_at(b, 0) as usize).min(FRAMES);
    let (pid, device) = (u32_at(b, 4), u16_at(b, 8));
    let mut outer = None;
    let mut out = Vec::with_capacity(depth);
    for i in 0..depth {
        let at = FRAMES_AT + i * FRAME_BYTES;
        let (ts, cookie) = (u64_at(b, at + 8), u64_at(b, at + 16));
        let Some(op) = OpId::from_index((cookie & 0xffff) as usize) else {
            continue;
        };
        let slot = |n: usize| {
            let is_output = (cookie >> (16 * (n + 1))) & 0xff == 4;
            if is_output {
                0
            } else {
                u64_at(b, at + 24 + 8 * n)
            }
        };
        let mut r = Record::new(Kind::InFlight, ts, now.saturating_sub(ts), pid, tid);
        r.source = op.get().source as u8;
        r.op = op.get().number;
        r.flags = match outer {
            None => 0,
            Some(Source::Nccl) => flag::NESTED | flag::NESTED_IN_LIBRARY,
            Some(_) => flag::NESTED,
        };
        r.device = device;
        (r.arg0, r.arg1, r.stream) = (slot(0), slot(1), slot(2));
        outer = Some(op.get().source);
        out.push(r);
    }
    out
}

pub(super) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(b, at))
}

pub(super) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(b, at))
}

pub(super) fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(b, at))
}

fn array<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    b.get(at..)
        .and_then(|b| b.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use libbpf_rs::btf::types::{MemberAttr, Struct};
    use libbpf_rs::btf::{Btf, HasSize as _};
    use warptrace_record::{DEVICE_UNKNOWN, RECORD_BYTES};

    use super::*;

    fn objects() -> impl Iterator<Item = PathBuf> {
        ["x86_64", "aarch64"].into_iter().map(|arch| {
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../bpf/warptrace.{arch}.bpf.o"))
        })
    }

    /// Name and byte offset of each member of a structure of the object, and its size.
    fn members(object: &Path, name: &str) -> (Vec<(String, usize)>, usize) {
        let btf = Btf::from_path(object).unwrap();
        let of = btf.type_by_name::<Struct<'_>>(name).unwrap();
        let list = of
            .iter()
            .map(|m| {
                let MemberAttr::Normal { offset } = m.attr else {
                    panic!("{name} has a bit field")
                };
                (
                    m.name.unwrap().to_string_lossy().into_owned(),
                    offset as usize / 8,
                )
            })
            .collect();
        (list, of.size())
    }

    #[track_caller]
    fn check(name: &str, want: &[(&str, usize)], bytes: usize) {
        for object in objects() {
            let (got, size) = members(&object, name);
            let got: Vec<(&str, usize)> = got.iter().map(|(n, at)| (n.as_str(), *at)).collect();
            assert_eq!(
                (got.as_slice(), size),
                (want, bytes),
                "{name} in {object:?}"
            );
        }
    }

    #[test]
    fn a_record_is_written_as_it_is_read() {
        use std::mem::offset_of;
        check(
            "record",
            &[
                ("kind", offset_of!(Record, kind)),
                ("source", offset_of!(Record, source)),
                ("op", offset_of!(Record, op)),
                ("flags", offset_of!(Record, flags)),
                ("device", offset_of!(Record, device)),
                ("ts", offset_of!(Record, ts)),
                ("dur", offset_of!(Record, dur)),
                ("pid", offset_of!(Record, pid)),
                ("tid", offset_of!(Record, tid)),
                ("ret", offset_of!(Record, ret)),
                ("stack_id", offset_of!(Record, stack_id)),
                ("seq", offset_of!(Record, seq)),
                ("cpu", offset_of!(Record, cpu)),
                ("arg0", offset_of!(Record, arg0)),
                ("arg1", offset_of!(Record, arg1)),
                ("stream", offset_of!(Record, stream)),
            ],
            RECORD_BYTES,
        );
    }

    #[test]
    fn maps_hold_what_is_read_from_them() {
        check("count_key", &[("pid", 0), ("device", 4), ("op", 6)], 8);
        check("count", &[("total", 0), ("buckets", 8)], 8 * (1 + BUCKETS));
        check(
            "cpu",
            &[
                ("slice_start", 0),
                ("waiters", 8),
                ("seq", 12),
                ("lost", CPU_LOST),
                ("pad", CPU_LOST + 8 * LOSSES),
            ],
            CPU_BYTES,
        );
        check(
            "settings",
            &[
                ("ring_bytes", 0),
                ("loaded_at", 8),
                ("off_cpu_min", 16),
                ("stack_min", 24),
                ("listed", 32),
                ("all_block_io", 36),
                ("pid_namespace", 40),
                ("has", 44),
            ],
            Settings::BYTES,
        );
        check(
            "thread_calls",
            &[
                ("depth", 0),
                ("pid", 4),
                ("device", 8),
                ("pushed", 10),
                ("devices", 12),
                ("pad", 20),
                ("frames", FRAMES_AT),
            ],
            FRAMES_AT + FRAMES * FRAME_BYTES,
        );
        check(
            "frame",
            &[("sp", 0), ("ts", 8), ("cookie", 16), ("args", 24)],
            FRAME_BYTES,
        );
    }

    #[test]
    fn a_count_gives_what_was_added() {
        let value = |total: u64, bucket: usize, n: u64| {
            let mut b = vec![0; 8 * (1 + BUCKETS)];
            b[..8].copy_from_slice(&total.to_le_bytes());
            b[8 * (1 + bucket)..][..8].copy_from_slice(&n.to_le_bytes());
            b
        };
        let mut count = Count::default();
        let (total, durations) = count.advance(&value(100, 5, 3)).unwrap();
        assert_eq!((total, durations.count()), (100, 3));
        assert_eq!(count.advance(&value(100, 5, 3)), None);
        let (total, durations) = count.advance(&value(130, 5, 4)).unwrap();
        assert_eq!(
            (total, durations.buckets().collect::<Vec<_>>()),
            (30, vec![(5, 1)])
        );
    }

    #[test]
    fn an_open_call_is_told_without_its_outputs() {
        let malloc = OpId::by_name("cudaMalloc").unwrap();
        let mut b = vec![0; FRAMES_AT + FRAMES * FRAME_BYTES];
        b[0] = 1;
        b[4..8].copy_from_slice(&77u32.to_le_bytes());
        b[8..10].copy_from_slice(&DEVICE_UNKNOWN.to_le_bytes());
        let words = [
            0x7000,
            900,
            super::super::library::cookie(malloc),
            4096,
            0xdead,
            0,
        ];
        for (i, word) in words.iter().enumerate() {
            b[FRAMES_AT + 8 * i..][..8].copy_from_slice(&u64::to_le_bytes(*word));
        }
        let got = decode_open_calls(&b, 78, 1_000);
        let [call] = got.as_slice() else {
            panic!("{got:?}")
        };
        assert_eq!((call.pid, call.tid, call.ts, call.dur), (77, 78, 900, 100));
        assert_eq!(
            (call.arg0, call.arg1, call.device),
            (4096, 0, DEVICE_UNKNOWN)
        );
        assert_eq!(call.call_op(), Some(malloc));
        b[0] = 200;
        assert!(
            decode_open_calls(&b, 78, 1_000).len() <= FRAMES,
            "a wrong depth reads nothing beyond"
        );
    }
}
