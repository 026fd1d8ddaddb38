//! The end of a server: it is told to stop, its workers are told and waited for, and only then does the run end.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::RunLog;

/// How a shutdown went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shutdown {
    /// Requests of this process that were still in flight at the deadline.
    pub in_flight: usize,
    /// Workers that were still there at the deadline; they go on.
    pub workers_left: Vec<u32>,
    /// Workers that ended by an exit code other than 0 or by a signal other than SIGTERM.
    pub workers_failed: Vec<u32>,
}

impl Shutdown {
    /// What the run's end gives as its reason.
    pub fn reason(&self) -> &'static str {
        if self.in_flight > 0 || !self.workers_left.is_empty() {
            "interrupted"
        } else if !self.workers_failed.is_empty() {
            "errored"
        } else {
            "completed"
        }
    }
}

/// The workers of a server that forks: its children.
#[derive(Debug, Clone, Default)]
pub struct Workers {
    pids: Vec<u32>,
}

impl Workers {
    /// `pids` must be children of this process that nobody else waits for.
    pub fn new(pids: impl IntoIterator<Item = u32>) -> Workers {
        Workers {
            pids: pids.into_iter().collect(),
        }
    }

    /// Sends SIGTERM to every worker (whoever signalled this process alone has not reached them), waits for them and for
    /// this process's own requests, for `deadline` at most, and ends the run with what is in the file.
    ///
    /// A worker should stop accepting at SIGTERM, finish its requests, and exit.
    pub fn shutdown(&self, log: &RunLog, deadline: Duration) -> Shutdown {
        let until = Instant::now() + deadline;
        let mut done = Shutdown::default();
        let mut left = self.pids.clone();
        for &pid in &left {
            let _ = kill(nix_pid(pid), Signal::SIGTERM);
        }
        done.in_flight = log.drain(until);
        loop {
            left.retain(
                |&pid| match waitpid(nix_pid(pid), Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => true,
                    Ok(WaitStatus::Exited(_, 0) | WaitStatus::Signaled(_, Signal::SIGTERM, _)) => {
                        false
                    }
                    Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => {
                        done.workers_failed.push(pid);
                        false
                    }
                    Ok(_) => true,
                    // Not ours, or waited for by others: as good as gone once it cannot be signalled.
                    Err(_) => kill(nix_pid(pid), None).is_ok(),
                },
            );
            let now = Instant::now();
            if left.is_empty() || now >= until {
                break;
            }
            std::thread::sleep((until - now).min(Duration::from_millis(5)));
        }
        done.workers_left = left;
        log.run_end_aggregated(done.reason());
        done
    }
}

fn nix_pid(pid: u32) -> Pid {
    // A pid that no process has, rather than one that means a group.
    Pid::from_raw(
        i32::try_from(pid)
            .ok()
            .filter(|&p| p > 0)
            .unwrap_or(i32::MAX),
    )
}

/// SIGTERM and SIGINT, caught from here on for the whole process: the one signal handler here, and only when asked for.
#[derive(Debug)]
pub struct Termination {
    receiver: UnixStream,
}

impl Termination {
    /// Takes over both signals. Handlers that were there before are called, too.
    ///
    /// # Errors
    /// No socket pair, or the handlers were refused.
    pub fn install() -> io::Result<Termination> {
        let (receiver, sender) = UnixStream::pair()?;
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            signal_hook::low_level::pipe::register(signal as i32, sender.try_clone()?)?;
        }
        Ok(Termination { receiver })
    }

    /// Waits for one of them, at most `timeout` (for ever without one); a wait that another signal interrupts goes on. Returns
    /// whether it came.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            // A timeout of zero would be none.
            let left = left.map(|left| left.max(Duration::from_micros(1)));
            if self.receiver.set_read_timeout(left).is_err() {
                return false;
            }
            match (&self.receiver).read(&mut [0; 16]) {
                Ok(n) => return n > 0,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}
