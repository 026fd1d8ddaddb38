//! The kernel killed a process for want of memory.
//!
//! *What it says*: a process was chosen by the OOM killer. CRITICAL.
//! *Evidence needed*: one `oom/mark_victim`.
//! *Looks like but is not*: a CUDA call that returns `cudaErrorMemoryAllocation` (device memory), a kill by hand.
//! *Example*: a data loader of 30 GB in a container of 32 GB.
//! *Source*: Linux `mm/oom_kill.c`, tracepoint `oom:mark_victim`.

use warptrace_model::{BootNanos, Cause, Pid, Severity, Thread, Tid};

use super::{Fact, moment};

pub(crate) fn oom(at: BootNanos, victim: Pid) -> Fact {
    Fact {
        cause: Cause::Oom,
        severity: Severity::Critical,
        thread: Thread {
            pid: victim,
            tid: Tid(victim.0),
        },
        device: None,
        op: None,
        window: moment(at),
        what: "killed by the kernel's OOM killer".to_owned(),
        number: at.0,
    }
}
