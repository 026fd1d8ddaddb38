//! Ids of a traced thread as the recorder's pid namespace has them.
//!
//! A thread writes its ids as its own namespace numbers them, and which namespace that is. When it is another than the recorder's, the
//! kernel's list of a thread's ids in every namespace (`NSpid` in `status`, Linux 4.1) tells who it is here.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;

use warptrace_model::Thread;
use warptrace_record::ring::Owner;

use crate::proc;

#[derive(Debug)]
pub(super) struct Identity {
    namespace: u64,
    /// Process here, by (namespace, process there).
    known: HashMap<(u64, u32), u32>,
}

impl Identity {
    pub(super) fn new() -> Identity {
        Identity {
            namespace: namespace_of("self").unwrap_or(0),
            known: HashMap::new(),
        }
    }

    /// The owner of a ring, as numbered here; `None` when it is not visible from here, or gone.
    pub(super) fn translate(&mut self, owner: &Owner) -> Option<Thread> {
        if owner.pid_namespace == self.namespace || owner.pid_namespace == 0 {
            return Some(Thread::new(owner.pid, owner.tid));
        }
        let key = (owner.pid_namespace, owner.pid);
        let is_it = |pid: &u32| {
            namespace_of(&pid.to_string()) == Some(owner.pid_namespace)
                && innermost(&format!("/proc/{pid}/status")) == Some(owner.pid)
        };
        let pid = match self.known.get(&key).filter(|pid| is_it(pid)) {
            Some(pid) => *pid,
            None => proc::unsorted_pids().into_iter().find(is_it)?,
        };
        self.known.insert(key, pid);
        let tid = proc::unsorted_tids(pid)
            .into_iter()
            .find(|tid| innermost(&format!("/proc/{pid}/task/{tid}/status")) == Some(owner.tid))?;
        Some(Thread::new(pid, tid))
    }
}

fn namespace_of(pid: &str) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/pid"))
        .ok()
        .map(|m| m.ino())
}

/// The id in the innermost namespace.
fn innermost(status: &str) -> Option<u32> {
    parse_innermost(&std::fs::read_to_string(status).ok()?)
}

fn parse_innermost(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
    line.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_id_is_the_last_of_the_list() {
        assert_eq!(parse_innermost("Pid:\t7\nNSpid:\t700\t12\t1\n"), Some(1));
        assert_eq!(parse_innermost("NSpid:\t700\n"), Some(700));
        assert_eq!(parse_innermost("Pid:\t7\n"), None);
        assert_eq!(parse_innermost("NSpid:\n"), None);
    }

    #[test]
    fn a_thread_of_our_own_namespace_keeps_its_ids() {
        let mut identity = Identity::new();
        let owner = Owner {
            pid: 5,
            tid: 6,
            pid_namespace: identity.namespace,
            ..Owner::default()
        };
        assert_eq!(identity.translate(&owner), Some(Thread::new(5, 6)));
    }
}
