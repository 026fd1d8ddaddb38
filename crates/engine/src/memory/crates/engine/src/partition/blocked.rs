//! Why a thread was blocked: the first of six answers that its switch-out and its waker give.
//!
//! The evidence is in the off-CPU record: the system call slept in, its descriptor's file type, whether the kernel counted
//! the sleep as I/O wait, and who woke the thread and how. A waker of the job that acted out of a system call of its own is
//! followed: this piece of time becomes that thread's own time, by the same rules.

use warptrace_model::{Category, FileType, OffCpu, Thread, Wake, Window};

use super::{About, Walk};
use crate::world::{CallSpan, InCall, window};

/// Numbers of system calls, of the architecture that this is built for. Source: Linux `syscall_64.tbl`, `asm-generic/unistd.h`.
mod nr {
    #[cfg(not(target_arch = "aarch64"))]
    mod arch {
        pub(crate) const FUTEX: &[u16] = &[202, 449];
        /// read, write, pread64, pwrite64, readv, writev, msync, sendfile, fsync, fdatasync, sync, getdents, getdents64,
        /// splice, sync_file_range, syncfs, preadv, pwritev, copy_file_range, preadv2, pwritev2.
        pub(crate) const FILE: &[u16] = &[
            0, 1, 17, 18, 19, 20, 26, 40, 74, 75, 162, 78, 217, 275, 277, 306, 295, 296, 326, 327,
            328,
        ];
        /// nanosleep, clock_nanosleep.
        pub(crate) const SLEEP: &[u16] = &[35, 230];
        pub(crate) const IO_URING_ENTER: u16 = 426;
    }
    #[cfg(target_arch = "aarch64")]
    mod arch {
        pub(crate) const FUTEX: &[u16] = &[98, 449];
        pub(crate) const FILE: &[u16] = &[
            63, 64, 67, 68, 65, 66, 227, 71, 82, 83, 81, 61, 76, 84, 267, 69, 70, 285, 286, 287,
        ];
        pub(crate) const SLEEP: &[u16] = &[101, 115];
        pub(crate) const IO_URING_ENTER: u16 = 426;
    }
    pub(crate) use arch::*;
}

impl Walk<'_> {
    /// Adds the pieces of `a..b`, in which `thread` was blocked as `o` says, inside `call` if any.
    #[expect(clippy::too_many_arguments, reason = "one moment of one thread, whole")]
    pub(super) fn blocked(
        &mut self,
        o: &OffCpu,
        call: Option<CallSpan>,
        a: u64,
        b: u64,
        own: &mut u64,
        thread: Thread,
        depth: usize,
    ) {
        let from = self.out.pieces.len();
        self.out.stopped |= o.stopped;
        if o.stopped {
            self.piece(a, b, b - a, Category::Unexplained);
        } else if o.syscall.is_none() {
            self.simple(Category::PageFault, About::Own, a, b);
        } else if self.disk(o, a, b) {
            self.out.disk_unseen |= !self.world.io_seen;
            self.simple(Category::DiskWait, About::File(thread.pid, o.fd), a, b);
        } else if let Some(c) = call
            && c.how != InCall::Short
        {
            self.in_call(c, a, b, b - a, own);
        } else if let Some(waker) = self.follows(o, thread, a, depth) {
            self.chain.push(waker);
            self.thread(waker, a, b, depth + 1);
            self.chain.pop();
        } else if o.file == FileType::Socket || o.poll_socket {
            self.simple(Category::NetworkWait, About::File(thread.pid, o.fd), a, b);
        } else if o.syscall.is_some_and(|nr| nr::FUTEX.contains(&nr)) && !o.timed {
            let about = o.waker.map_or(About::Own, |w| About::Waker(w.thread));
            self.simple(Category::LockWait, about, a, b);
        } else if o.timed || o.syscall.is_some_and(|nr| nr::SLEEP.contains(&nr)) {
            self.simple(Category::Sleep, About::Own, a, b);
        } else {
            self.piece(a, b, b - a, Category::Unexplained);
        }
        if depth == 0 {
            self.note_idle(o, from, a, b);
        }
    }

    fn simple(&mut self, category: Category, about: About, a: u64, b: u64) {
        self.piece(a, b, b - a, category);
        self.hint(category, about, window(a, b));
    }

    /// Whether the thread waited for a file's bytes.
    fn disk(&self, o: &OffCpu, a: u64, b: u64) -> bool {
        let Some(nr) = o.syscall else { return false };
        if nr == nr::IO_URING_ENTER {
            // A ring that waits for sockets may be counted as I/O wait too: only with a request of its own.
            return o.iowait && self.requests(o.thread, window(a, b)).0 > 0;
        }
        o.iowait || (o.file == FileType::Regular && nr::FILE.contains(&nr))
    }

    /// The thread whose time explains this wait: it woke this one out of a system call of its own, and belongs to the job.
    fn follows(&self, o: &OffCpu, thread: Thread, a: u64, depth: usize) -> Option<Thread> {
        let w = o.waker?;
        (w.by == Wake::Syscall
            && w.thread != thread
            && depth < self.rules.follow_depth
            && a >= self.floor
            && self.world.in_job(w.thread.pid, thread.pid)
            && self.process_of(w.thread).is_some_and(|p| p.has_switches))
        .then_some(w.thread)
    }

    /// Before the lead thread's first call: whether this wait, just added from piece `from` on, was for the network or
    /// for another program. A server that has no request waits so.
    fn note_idle(&mut self, o: &OffCpu, from: usize, a: u64, b: u64) {
        let Some((begin, end)) = self.leading else {
            return;
        };
        let Some(both) = window(a, b).intersect(&window(begin, end)) else {
            return;
        };
        let pid = o.thread.pid;
        let outside = o
            .waker
            .is_some_and(|w| w.by == Wake::Syscall && !self.world.in_job(w.thread.pid, pid));
        let network: u64 = self.out.pieces[from.saturating_sub(1)..]
            .iter()
            .filter(|p| p.category == Category::NetworkWait)
            .map(|p| Window::overlap(&window(p.start, p.end), &both))
            .sum();
        let asleep = self.rules.inference && o.syscall.is_some();
        if outside || asleep || 2 * network > both.nanos() {
            self.idle += both.nanos();
        }
        // Only when most of the time up to here was idle: work of the host is not cut off because of a short answer.
        if 2 * self.idle >= both.end.0 - begin && self.idle > 0 {
            self.out.idle_until = Some(both.end.0);
        }
    }
}
