//! Records as they come from the ring, and what is told before them, so that a reader knows what they name: processes, paths of
//! descriptors, stacks.

use std::collections::HashSet;

use libbpf_rs::{MapCore as _, MapFlags};
use warptrace_model::{FilePath, GapCode, Pid, Thread, ThreadName};
use warptrace_record::{Kind, NO_SYSCALL, Record, process};

use super::{Ebpf, layout};
use crate::symbols::UserStack;
use crate::{Batch, proc};

/// Most descriptors whose paths are remembered, most processes and threads: then the memory is emptied.
const MAX_KNOWN: usize = 1 << 14;

/// Stacks in the kernel's map, of which it holds 8192, at which it is emptied.
const MAX_STACKS: usize = 4096;

impl Ebpf {
    pub(super) fn sort(&mut self, mut record: Record, out: &mut Batch) {
        // A record that was overtaken by the next of its CPU looks like a gap too: then nothing is found lost.
        let last = self.last_seq.insert(record.cpu, record.seq);
        self.gap_seen |= last.is_some_and(|last| record.seq != last.wrapping_add(1));
        match record.kind() {
            Some(Kind::Process) => self.process_record(&record, out),
            Some(Kind::OffCpu) => {
                self.tell_path(&record, out);
                out.records.push(record);
            }
            Some(Kind::Call) => {
                self.tally_call(&record);
                record.stack_id = self.tell_stack(record.pid, record.stack_id, out);
                out.records.push(record);
            }
            _ => out.records.push(record),
        }
    }

    fn process_record(&mut self, r: &Record, out: &mut Batch) {
        match r.op {
            process::NAME => {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&r.arg0.to_le_bytes());
                bytes[8..].copy_from_slice(&r.arg1.to_le_bytes());
                let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
                out.names.push(ThreadName {
                    thread: Thread::new(r.pid, r.tid),
                    name: String::from_utf8_lossy(&bytes[..end]).into(),
                });
                self.tell_process(r.pid, out);
                return;
            }
            process::SEEN => {
                remember(&mut self.job, r.pid);
                // It may have been told of as somebody who was in the way.
                self.told.remove(&r.pid);
                self.tell_process(r.pid, out);
                tell_threads(r.pid, out);
                return;
            }
            process::FORK if r.arg0 == r.arg1 => {
                remember(&mut self.job, r.arg0 as u32);
                self.told.remove(&(r.arg0 as u32));
                self.tell_process(r.arg0 as u32, out);
            }
            process::EXEC => {
                self.told.remove(&r.pid);
                self.paths.retain(|(pid, _), _| *pid != r.pid);
                self.tell_process(r.pid, out);
            }
            process::EXIT if r.pid == r.tid => {
                self.job.remove(&r.pid);
                self.fresh.remove(&r.pid);
                self.told.remove(&r.pid);
                self.paths.retain(|(pid, _), _| *pid != r.pid);
                self.ended.push(r.pid);
            }
            _ => {}
        }
        out.records.push(*r);
    }

    /// Sends what is constant of a process, once.
    pub(super) fn tell_process(&mut self, pid: u32, out: &mut Batch) {
        if pid == 0 || self.told.contains(&pid) {
            return;
        }
        remember(&mut self.told, pid);
        let in_job = self.job.contains(&pid);
        let Some(mut info) = proc::process_info(pid, false, in_job) else {
            return;
        };
        info.from_start = info.start > self.started || self.fresh.contains(&pid);
        if in_job && !info.from_start {
            let before = self.started.since(info.start) as f64 / 1e9;
            self.gap(
                GapCode::AttachedLate,
                format!("process {pid} ran for {before:.1} s before it was watched"),
            );
        }
        out.processes.push(info);
    }

    /// Sends what a descriptor is that a thread waited on, when that is new.
    fn tell_path(&mut self, r: &Record, out: &mut Batch) {
        // Anonymous files and pipes have no name worth a system call.
        const REGULAR: u16 = 0o10;
        const BLOCK: u16 = 0o6;
        if r.op == NO_SYSCALL || r.ret < 0 || !matches!(r.device, REGULAR | BLOCK) {
            return;
        }
        let Ok(path) = std::fs::read_link(format!("/proc/{}/fd/{}", r.pid, r.ret)) else {
            return;
        };
        let path = path.to_string_lossy().into_owned();
        let key = (r.pid, r.ret);
        if self.paths.get(&key) == Some(&path) {
            return;
        }
        if self.paths.len() >= MAX_KNOWN {
            self.paths.clear();
        }
        self.paths.insert(key, path.clone());
        out.paths.push(FilePath {
            pid: Pid(r.pid),
            fd: r.ret,
            path,
        });
    }

    /// Our number for the stack that the kernel's programs call `raw`; 0 for none. Sends the stack with its first record.
    /// The kernel gives equal addresses one number, whoever's they are.
    ///
    /// The kernel's map never forgets, and has no room for another stack of the same hash: so it is emptied half full, and
    /// its numbers then mean others.
    fn tell_stack(&mut self, pid: u32, raw: u32, out: &mut Batch) -> u32 {
        let Some(key) = raw.checked_sub(1).map(u32::to_le_bytes) else {
            return 0;
        };
        if let Some(id) = self.stacks.get(&(pid, raw)) {
            return *id;
        }
        let value = self
            .map("stacks")
            .and_then(|m| m.lookup(&key, MapFlags::ANY).ok()?)
            .unwrap_or_default();
        let addresses: Vec<u64> = value
            .chunks_exact(8)
            .map(|a| layout::u64_at(a, 0))
            .take_while(|a| *a != 0)
            .collect();
        if addresses.is_empty() {
            return 0;
        }
        let id = self.next_stack;
        self.next_stack = id.wrapping_add(1).max(1);
        self.stacks.insert((pid, raw), id);
        out.stacks.push(UserStack { id, pid, addresses });
        id
    }

    pub(super) fn forget_stacks(&mut self) {
        if self.stacks.len() < MAX_STACKS {
            return;
        }
        for (_, raw) in std::mem::take(&mut self.stacks).into_keys() {
            if let Some(map) = self.map("stacks") {
                // Gone already is as good.
                let _ = map.delete(&(raw - 1).to_le_bytes());
            }
        }
    }
}

/// Sends the names of threads that may not run for long: the others name themselves when they do.
pub(super) fn tell_threads(pid: u32, out: &mut Batch) {
    for tid in proc::unsorted_tids(pid) {
        if let Some(name) = proc::thread_name(pid, tid) {
            out.names.push(ThreadName {
                thread: Thread::new(pid, tid),
                name: name.into(),
            });
        }
    }
}

/// Adds to a memory of bounded size: a full one begins anew, and says some things twice.
pub(super) fn remember<T: Eq + std::hash::Hash>(set: &mut HashSet<T>, value: T) {
    if set.len() >= MAX_KNOWN {
        set.clear();
    }
    set.insert(value);
}
