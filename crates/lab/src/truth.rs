//! What really happened, read from the kernel's own books while it happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// What was injected, and what it did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Truth {
    pub scenario: String,
    /// The workload.
    pub pid: u32,
    /// Processes that the injector started: name, pid, start and end (CLOCK_BOOTTIME ns).
    pub injected: Vec<Injected>,
    /// Cumulative run-queue wait of the workload's main thread.
    pub run_delay: Vec<RunDelay>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Injected {
    pub name: String,
    pub pid: u32,
    pub start_boot_ns: u64,
    pub end_boot_ns: u64,
}

/// `/proc/PID/task/TID/schedstat` at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RunDelay {
    /// CLOCK_BOOTTIME.
    pub boot_ns: u64,
    /// Field 2: time spent waiting to run since the thread began, ns.
    pub run_delay_ns: u64,
}

impl Truth {
    /// Run-queue wait of the main thread between two moments, linear between the readings.
    pub fn run_delay_between(&self, start_boot_ns: u64, end_boot_ns: u64) -> u64 {
        self.run_delay_at(end_boot_ns)
            .saturating_sub(self.run_delay_at(start_boot_ns))
    }

    fn run_delay_at(&self, at: u64) -> u64 {
        let next = self.run_delay.partition_point(|r| r.boot_ns < at);
        let Some(after) = self.run_delay.get(next) else {
            return self.run_delay.last().map_or(0, |r| r.run_delay_ns);
        };
        let Some(before) = next.checked_sub(1).map(|i| self.run_delay[i]) else {
            return after.run_delay_ns;
        };
        let (span, part) = (after.boot_ns - before.boot_ns, at - before.boot_ns);
        let grown = after.run_delay_ns.saturating_sub(before.run_delay_ns);
        before.run_delay_ns
            + (u128::from(grown) * u128::from(part) / u128::from(span.max(1))) as u64
    }
}

/// CLOCK_BOOTTIME, ns.
pub(crate) fn boot_now() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |t| {
        t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
    })
}

/// Reads a thread's run delay every 20 ms until it ends or is told to stop.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<RunDelay>>,
}

impl Watch {
    /// Watches the main thread of `pid`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(pid: u32) -> std::io::Result<Watch> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("lab-truth".into())
            .spawn(move || {
                let path = format!("/proc/{pid}/task/{pid}/schedstat");
                let mut readings = Vec::new();
                while !stopped.load(Ordering::Acquire) {
                    let Ok(text) = std::fs::read_to_string(&path) else {
                        break;
                    };
                    if let Some(ns) = text
                        .split_ascii_whitespace()
                        .nth(1)
                        .and_then(|v| v.parse().ok())
                    {
                        readings.push(RunDelay {
                            boot_ns: boot_now(),
                            run_delay_ns: ns,
                        });
                    }
                    std::thread::park_timeout(Duration::from_millis(20));
                }
                readings
            })?;
        Ok(Watch { stop, thread })
    }

    pub fn finish(self) -> Vec<RunDelay> {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        self.thread.join().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_delay_between_two_readings_is_linear() {
        let reading = |boot_ns, run_delay_ns| RunDelay {
            boot_ns,
            run_delay_ns,
        };
        let truth = Truth {
            run_delay: vec![reading(100, 0), reading(200, 50), reading(300, 50)],
            ..Truth::default()
        };
        assert_eq!(truth.run_delay_between(100, 200), 50);
        assert_eq!(truth.run_delay_between(120, 140), 10);
        assert_eq!(truth.run_delay_between(200, 300), 0);
        assert_eq!(truth.run_delay_between(0, 1_000), 50);
    }
}
