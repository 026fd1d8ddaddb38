//! Calls and losses, counted: by the programs those that came as no record, here those that did.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use libbpf_rs::{MapCore as _, MapFlags};
use warptrace_model::{BootNanos, Device, Loss, LossReason, OpCount, OpKey, Pid, Window};
use warptrace_record::{Record, flag};

use super::{Ebpf, layout};
use crate::Batch;

impl Ebpf {
    /// Counts a call that came as a record: the kernel counts only the others.
    pub(super) fn tally_call(&mut self, r: &Record) {
        let part_of_another = r.flags & flag::NESTED != 0 && r.flags & flag::NESTED_IN_LIBRARY == 0;
        if part_of_another || r.flags & flag::NO_RETURN != 0 {
            return;
        }
        if let Some(op) = r.call_op() {
            let tally = self
                .tally
                .entry(OpKey {
                    pid: Pid(r.pid),
                    device: Device::from_record(r.device),
                    op,
                })
                .or_default();
            tally.total = tally.total.saturating_add(r.dur);
            tally.durations.record(r.dur);
        }
    }

    pub(super) fn count(&mut self, now: BootNanos, out: &mut Batch) {
        let window = Window {
            start: self.counted_at,
            end: now,
        };
        self.counted_at = now;
        self.count_skipped(window, out);
        for (key, value) in self.entries("counts") {
            let Some(key_bytes) = key.first_chunk::<8>() else {
                continue;
            };
            let Some(op_key) = layout::decode_count_key(key_bytes) else {
                continue;
            };
            if let Some((total, durations)) =
                self.counts.entry(*key_bytes).or_default().advance(&value)
            {
                let tally = self.tally.entry(op_key).or_default();
                tally.total = tally.total.saturating_add(total);
                tally.durations.merge(&durations);
            }
        }
        out.counts
            .extend(self.tally.drain().map(|(key, tally)| OpCount {
                key,
                window,
                total: tally.total,
                durations: tally.durations,
            }));
        // Calls of the ended were all counted before their end was seen.
        for pid in std::mem::take(&mut self.ended) {
            let gone: Vec<[u8; 8]> = self
                .counts
                .keys()
                .filter(|k| layout::u32_at(k.as_slice(), 0) == pid)
                .copied()
                .collect();
            for key in gone {
                self.counts.remove(&key);
                if let Some(map) = self.map("counts") {
                    // Gone already is as good.
                    let _ = map.delete(&key);
                }
            }
        }
    }

    fn count_skipped(&mut self, window: Window, out: &mut Batch) {
        let programs = self.object.progs();
        let now: u64 = programs.map(|program| skipped_runs(program.as_fd())).sum();
        let count = now.saturating_sub(std::mem::replace(&mut self.skipped, now));
        if count > 0 {
            out.losses.push(Loss {
                source: "ebpf",
                reason: LossReason::Skipped,
                count,
                window: Some(window),
                pid: None,
            });
        }
    }

    pub(super) fn count_losses(&mut self, window: Window, out: &mut Batch) {
        let cpus = self
            .map(".bss.cpus")
            .and_then(|m| m.lookup(&[0; 4], MapFlags::ANY).ok()?);
        let Some(cpus) = cpus else { return };
        let now = layout::decode_losses(&cpus);
        let reasons = [
            LossReason::RingFull,
            LossReason::MapFull,
            LossReason::NoReturn,
        ];
        for (reason, (new, old)) in reasons.into_iter().zip(now.into_iter().zip(self.losses)) {
            if new != old {
                out.losses.push(Loss {
                    source: "ebpf",
                    reason,
                    count: new.wrapping_sub(old),
                    window: Some(window),
                    pid: None,
                });
            }
        }
        self.losses = now;
        let malformed = std::mem::take(&mut self.lock().malformed);
        if malformed > 0 {
            out.losses.push(Loss {
                source: "ebpf",
                reason: LossReason::Malformed,
                count: malformed,
                window: Some(window),
                pid: None,
            });
        }
    }
}

/// How often the kernel did not run a program, since it was reached from within itself: in an interrupt, or by a task that took the
/// CPU meanwhile. Cost: some µs.
fn skipped_runs(program: BorrowedFd<'_>) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    recursion_misses(&std::fs::read_to_string(path).unwrap_or_default()).unwrap_or(0)
}

/// Of a program's `fdinfo`; Linux 5.12.
fn recursion_misses(info: &str) -> Option<u64> {
    let mut lines = info.lines();
    let misses = lines.find_map(|line| line.strip_prefix("recursion_misses:"))?;
    misses.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_says_how_often_it_did_not_run_a_program() {
        let info = "pos:\t0\nprog_type:\t26\nprog_id:\t51001\nrun_cnt:\t0\nrecursion_misses:\t17\nverified_insns:\t9\n";
        assert_eq!(super::recursion_misses(info), Some(17));
        assert_eq!(super::recursion_misses("pos:\t0\nflags:\t02000002\n"), None);
    }
}
