//! What a thread did between two moments: how long it ran, how long it could have run but had no CPU, how many faults it took.
//!
//! No privilege is needed: the scheduler's own numbers of the calling thread, and its CPU clock. Stretches of a thread follow each other
//! without a hole. Running and runnable come from two clocks that are read one after the other, so that they may exceed the
//! stretch by the time between; the reader of the record cuts that off.

use warptrace_record::{Kind, Record};

use crate::process::parse;
use crate::sys::{self, Fd, FileId};

/// No two readings closer than this: a shorter stretch says less than it costs.
pub(crate) const MIN_NANOS: u64 = 50_000;
/// A call that cannot wait by its contract is followed by a reading when it took longer than this …
pub(crate) const SLOW_NANOS: u64 = 100_000;
/// … but not more often than this.
pub(crate) const SLOW_EVERY_NANOS: u64 = 1_000_000;

/// How often the file is opened again after the job has closed it.
const MAX_OPENS: u8 = 8;

#[derive(Clone, Copy, Default)]
struct Reading {
    ticks: u64,
    running: u64,
    runnable: u64,
    minor: u64,
    major: u64,
}

/// The end of the last stretch, and the thread's own `schedstat`.
pub(crate) struct Stretches {
    schedstat: Option<(Fd, FileId)>,
    opens: u8,
    last: Option<Reading>,
}

impl Stretches {
    pub(crate) const fn new() -> Stretches {
        Stretches {
            schedstat: None,
            opens: 0,
            last: None,
        }
    }

    /// Ticks since the last stretch ended; `u64::MAX` before the first.
    #[inline]
    pub(crate) fn age(&self, now: u64) -> u64 {
        self.last
            .map_or(u64::MAX, |last| now.wrapping_sub(last.ticks))
    }

    /// Ends the stretch at `now`. `None` the first time, and when the numbers cannot be read.
    ///
    /// Cost: 450 ns, three system calls.
    pub(crate) fn end(&mut self, now: u64, pid: u32, tid: u32) -> Option<Record> {
        let runnable = self.runnable()?;
        let (minor, major) = sys::faults();
        let reading = Reading {
            ticks: now,
            running: sys::thread_cpu_nanos(),
            runnable,
            minor,
            major,
        };
        let last = self.last.replace(reading)?;
        let part = |a: u64, b: u64| a.saturating_sub(b).min(0xffff);
        let mut record = Record::new(
            Kind::Stretch,
            last.ticks,
            now.saturating_sub(last.ticks),
            pid,
            tid,
        );
        record.arg0 = reading.running.saturating_sub(last.running);
        record.arg1 = reading.runnable.saturating_sub(last.runnable);
        record.stream = part(major, last.major) << 16 | part(minor, last.minor);
        Some(record)
    }

    /// Time on a run queue so far, ns: the second number of the file.
    ///
    /// The job may have closed the descriptor, and its number may be another file's now: what does not read like the
    /// file is let go, not closed.
    fn runnable(&mut self) -> Option<u64> {
        loop {
            let (fd, _) = match &self.schedstat {
                Some(open) => open,
                None => {
                    if self.opens >= MAX_OPENS {
                        return None;
                    }
                    self.opens += 1;
                    let fd = Fd::read_only(c"/proc/thread-self/schedstat")
                        .ok()?
                        .out_of_the_way();
                    let id = fd.id()?;
                    self.schedstat.insert((fd, id))
                }
            };
            let mut bytes = [0; 80];
            let found = fd
                .read_start(&mut bytes)
                .ok()
                .and_then(|len| second_of_three(&bytes[..len]));
            if found.is_some() {
                return found;
            }
            if let Some((fd, _)) = self.schedstat.take() {
                fd.forget();
            }
        }
    }

    /// Closes the file, if the number still is that file.
    pub(crate) fn close(&mut self) {
        if let Some((fd, id)) = self.schedstat.take()
            && fd.id() != Some(id)
        {
            fd.forget();
        }
    }
}

/// The second of exactly three numbers on a line.
fn second_of_three(line: &[u8]) -> Option<u64> {
    let line = line.strip_suffix(b"\n")?;
    let mut numbers = line.split(|&b| b == b' ').map(parse);
    let (_, second, _) = (numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_line_of_three_numbers_is_a_schedstat() {
        assert_eq!(second_of_three(b"12 34 56\n"), Some(34));
        for bad in [
            &b"12 34 56"[..],
            b"12 34\n",
            b"1 2 3 4\n",
            b"a 2 3\n",
            b"",
            b"\n",
        ] {
            assert_eq!(second_of_three(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn stretches_touch_and_tell_running_from_sleeping() {
        let mut stretches = Stretches::new();
        let now = || sys::boot_nanos(0);
        assert!(
            stretches.end(now(), 1, 2).is_none(),
            "the first has no begin"
        );
        let cpu = sys::thread_cpu_nanos();
        while sys::thread_cpu_nanos() - cpu < 5_000_000 {}
        let ran = stretches.end(now(), 1, 2).unwrap();
        assert!(ran.arg0 >= 5_000_000, "it ran {} ns", ran.arg0);
        std::thread::park_timeout(std::time::Duration::from_millis(5));
        let slept = stretches.end(now(), 1, 2).unwrap();
        assert_eq!(slept.ts, ran.ts + ran.dur, "stretches touch");
        assert!(slept.arg0 + slept.arg1 < slept.dur, "it was blocked");
    }

    #[test]
    fn a_descriptor_that_the_job_took_for_its_own_is_neither_believed_nor_closed() {
        use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
        let mut stretches = Stretches::new();
        assert!(stretches.runnable().is_some());
        let link = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(Result::ok)
            .filter(|e| {
                std::fs::read_link(e.path())
                    .is_ok_and(|p| p.to_string_lossy().ends_with("schedstat"))
            })
            .filter_map(|e| e.file_name().to_string_lossy().parse::<i32>().ok())
            .find(|fd| *fd >= 512)
            .unwrap();
        // SAFETY: stands for a job that closes descriptors which it does not know.
        drop(unsafe { OwnedFd::from_raw_fd(link) });
        let other = std::fs::File::open("/proc/self/status").unwrap();
        let fd = Fd::read_only(c"/proc/self/status")
            .ok()
            .unwrap()
            .out_of_the_way();
        assert!(stretches.runnable().is_some(), "opened again");
        stretches.close();
        assert!(fd.id().is_some(), "the job's descriptor is still open");
        assert!(other.as_raw_fd() >= 0);
    }
}
