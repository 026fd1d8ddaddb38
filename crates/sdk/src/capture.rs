//! Recording switched on around a block of the job's work.
//!
//! ```no_run
//! use warptrace_sdk::capture;
//!
//! for step in 0..1_000 {
//!     // Under `warptrace record --paused`, only the steps from 100 to 109 are recorded.
//!     let _recorded = (100..110).contains(&step).then(capture::resume);
//!     // ... the step ...
//! }
//! ```
//!
//! A recorder that is paused ([`Answer::Resumed`]) records the whole job, every thread and process of it, as long as anybody holds: blocks may
//! be nested, in threads and in processes, and a process that dies lets go. One that records in any case says so
//! ([`Answer::On`]). Where nobody listens ([`Answer::Nobody`]) a call costs an attempt to connect, then for half a second one clock read.
//!
//! The recorder is the one that `WARPTRACE_CAPTURE_SOCKET` names, as in a job that a recorder has started, else one that listens where
//! recorders do. Its answer is waited for, so that the block's first call is recorded and the first one after it is not: tens of µs at the ends of the outermost
//! block of a process, [`PATIENCE`] at most. Nothing fails, nothing is printed, no thread is started.
//!
//! A child that is forked within a block is recorded while the block lasts in its parent; its own copy of the guard does nothing.

use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use warptrace_formats::annotation::{
    CAPTURE_SOCKET_VARIABLE, CaptureAnswer, CaptureRequest, MAX_CAPTURE_LINE_BYTES, Surroundings,
};

use crate::annotation::open;
use crate::fork::{self, ForkMutex, Inherit};

/// How long an answer is waited for.
pub const PATIENCE: Duration = Duration::from_millis(200);
/// How long it is remembered that nobody listens.
const REMEMBERED: Duration = Duration::from_millis(500);

/// Who records now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A paused recorder does from now on, until this guard and all others are dropped.
    Resumed,
    /// A recorder does in any case.
    On,
    /// A recorder listens, and does not record this process, or not at its word.
    Refused,
    /// No recorder listens, or none answered.
    Nobody,
}

impl Answer {
    /// Whether the process is recorded.
    pub fn is_recorded(self) -> bool {
        matches!(self, Answer::Resumed | Answer::On)
    }

    /// `resumed`, `on`, `refused` or `nobody`.
    pub const fn name(self) -> &'static str {
        match self {
            Answer::Resumed => "resumed",
            Answer::On => "on",
            Answer::Refused => "refused",
            Answer::Nobody => "nobody",
        }
    }
}

/// Recording is on as long as this lives. Dropping it from another thread than [`resume`] was called in is as good.
#[derive(Debug)]
#[must_use = "recording pauses again when it is dropped"]
pub struct Recorded {
    answer: Answer,
    /// The process that asked, by [`fork::generation`].
    asked_in: u32,
    held: bool,
}

impl Recorded {
    pub fn answer(&self) -> Answer {
        self.answer
    }
}

/// Asks the recorder of this job, or one that runs on this machine, to record from now on.
///
/// Cost: within a block that this process has open already, a lock; else as the module says.
pub fn resume() -> Recorded {
    let mut holding = holding().lock();
    let answer = match (holding.held, holding.nobody_since) {
        (1.., _) => holding.answer,
        (0, Some(since)) if since.elapsed() < REMEMBERED => Answer::Nobody,
        (0, _) => holding.ask(),
    };
    let held = answer.is_recorded();
    holding.held += u32::from(held);
    Recorded {
        answer,
        asked_in: fork::generation(),
        held,
    }
}

/// Pauses again, unless others hold: the same as dropping the guard.
pub fn pause(recorded: Recorded) {
    drop(recorded);
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if !self.held || self.asked_in != fork::generation() {
            return;
        }
        let mut holding = holding().lock();
        holding.held = holding.held.saturating_sub(1);
        if holding.held == 0
            && let Some(connection) = holding.connection.take()
        {
            let _ = connection.pause();
        }
    }
}

/// What this process holds.
#[derive(Debug)]
struct Holding {
    held: u32,
    answer: Answer,
    /// Only while a paused recorder records for us.
    connection: Option<Connection>,
    nobody_since: Option<Instant>,
}

fn holding() -> &'static ForkMutex<Holding> {
    static HOLDING: OnceLock<ForkMutex<Holding>> = OnceLock::new();
    HOLDING.get_or_init(|| ForkMutex::new(Holding::none()))
}

impl Inherit for Holding {
    fn inherit(parent: Option<&mut Holding>) -> Holding {
        // The parent's connection is closed here without a word: it stands as long as the parent has it.
        drop(parent.and_then(|parent| parent.connection.take()));
        Holding::none()
    }
}

impl Holding {
    fn none() -> Holding {
        Holding {
            held: 0,
            answer: Answer::Nobody,
            connection: None,
            nobody_since: None,
        }
    }

    fn ask(&mut self) -> Answer {
        let mut refused = false;
        for place in places() {
            match Connection::open(&place) {
                Ok((connection, CaptureAnswer::Resumed)) => {
                    self.connection = Some(connection);
                    self.nobody_since = None;
                    self.answer = Answer::Resumed;
                    return Answer::Resumed;
                }
                // It needs no holding: the connection ends.
                Ok((_, CaptureAnswer::On)) => {
                    self.nobody_since = None;
                    self.answer = Answer::On;
                    return Answer::On;
                }
                Ok(_) => refused = true,
                Err(_) => {}
            }
        }
        self.nobody_since = Some(Instant::now());
        match refused {
            true => Answer::Refused,
            false => Answer::Nobody,
        }
    }
}

/// Where a recorder may listen.
fn places() -> Vec<PathBuf> {
    let named = std::env::var_os(CAPTURE_SOCKET_VARIABLE).filter(|place| !place.is_empty());
    if let Some(place) = named {
        return vec![place.into()];
    }
    let is_root = nix::unistd::geteuid().is_root();
    Surroundings::new(is_root, |name| std::env::var_os(name)).capture_candidates()
}

/// One holder of one recorder: recording is on at its word as long as the connection stands. [`resume`] has one for each process;
/// this is for whoever holds for somebody else.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Asks the recorder that listens at `place`.
    ///
    /// # Errors
    /// Nobody listens there, or nobody who answers within [`PATIENCE`].
    pub fn open(place: &Path) -> io::Result<(Connection, CaptureAnswer)> {
        let stream = UnixStream::from(open(place)?);
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut connection = Connection { stream };
        let answer = connection.ask(CaptureRequest::Resume)?;
        Ok((connection, answer))
    }

    /// Lets go, and says whether recording is off now, [`CaptureAnswer::Paused`], or on at others' word.
    ///
    /// # Errors
    /// The recorder did not answer within [`PATIENCE`]; it is let go all the same.
    pub fn pause(mut self) -> io::Result<CaptureAnswer> {
        let answer = self.ask(CaptureRequest::Pause);
        // A child that was forked in the meantime has the descriptor, too.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        answer
    }

    /// Whether the recorder is still there.
    pub fn stands(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.stream.as_raw_fd(), &mut [0; 1], flags) {
            Ok(n) => n > 0,
            Err(e) => matches!(e, Errno::EAGAIN | Errno::EINTR),
        }
    }

    fn ask(&mut self, request: CaptureRequest) -> io::Result<CaptureAnswer> {
        // Not `write`: a recorder that is gone must send no SIGPIPE to the job.
        send(
            self.stream.as_raw_fd(),
            request.encode(),
            MsgFlags::MSG_NOSIGNAL,
        )?;
        let mut line = [0; MAX_CAPTURE_LINE_BYTES];
        let began = Instant::now();
        let mut len = 0;
        while len < line.len() && began.elapsed() <= PATIENCE {
            match self.stream.read(&mut line[len..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => len += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            if let Some(end) = line[..len].iter().position(|&b| b == b'\n') {
                let answer = CaptureAnswer::decode(&line[..end]);
                return answer.ok_or_else(|| io::ErrorKind::InvalidData.into());
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

#[cfg(test)]
#[path = "capture/tests.rs"]
mod tests;
