//! Sends annotations to the agent's socket.
//!
//! ```no_run
//! use warptrace_sdk::annotation::Writer;
//!
//! let writer = Writer::new();
//! for step in 0..1_000 {
//!     writer.say(&[("step", step.to_string())]);
//! }
//! ```
//!
//! A writer is for the whole program and all of its threads. It never waits: what the socket does not take at once is held,
//! up to a bound, and sent with the next line; beyond that lines are dropped and counted. Without an agent a call costs a
//! clock read, and twice a second an attempt to connect. After a fork the child has a connection of its own. Whatever is
//! said, nothing here panics.
//!
//! Every line is stamped when it is said, so that one which was held does not seem to be later than it was.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket,
};
use warptrace_formats::annotation::{MAX_LINE_BYTES, RateWindow, SOCKET_VARIABLE, Surroundings};
use warptrace_model::Labels;

use crate::process_id;

pub use warptrace_formats::annotation::{Line, Refusal};

/// Attempts to connect in a second: one for an agent that comes, and one more for one that was just started again.
pub const CONNECTS_PER_SEC: u32 = 2;
/// Bytes of lines that are held while the socket takes none.
pub const HELD_BYTES: usize = 64 << 10;

thread_local! {
    /// Lines are encoded here; [`MAX_LINE_BYTES`] bound it.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What became of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The kernel has it. That the agent reads it is another thing: lines that it had not read are lost when it dies.
    Sent,
    /// It goes with the next one.
    Held,
    Dropped(Dropped),
}

/// Why a line was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// It is against the protocol.
    Refused(Refusal),
    /// Nobody listens.
    NoAgent,
    /// The agent does not keep up.
    Full,
    /// The writer has been closed.
    Closed,
}

/// What became of all lines of a writer, in this process and in those that it was forked from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriterCounts {
    /// Lines that the kernel took.
    pub sent: u64,
    pub refused: u64,
    pub no_agent: u64,
    pub full: u64,
    pub closed: u64,
    /// Connections that were made.
    pub connections: u64,
}

/// Sends annotations; see the module.
#[derive(Debug)]
pub struct Writer {
    places: Vec<PathBuf>,
    closed: AtomicBool,
    counts: Counts,
    /// Of the process that made it; those of its children follow.
    first: Process,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    refused: AtomicU64,
    no_agent: AtomicU64,
    full: AtomicU64,
    closed: AtomicU64,
    connections: AtomicU64,
}

/// The writer in one process. A child finds its parent's, whose lock some thread may have held at the fork: it never waits
/// for that one, and makes its own.
#[derive(Debug)]
struct Process {
    pid: u32,
    link: Mutex<Link>,
    child: OnceLock<Box<Process>>,
}

#[derive(Debug)]
struct Link {
    socket: Option<OwnedFd>,
    attempts: RateWindow,
    /// When attempts began to be counted.
    began: Option<Instant>,
    /// Lines that wait, whole ones; of the first, `begun` bytes have been sent on this connection.
    held: Vec<u8>,
    begun: usize,
}

impl Default for Writer {
    fn default() -> Writer {
        Writer::new()
    }
}

impl Writer {
    /// A writer to the agent of this machine or user: the socket that `WARPTRACE_ANNOTATE_SOCKET` names, else the first of
    /// the usual places where somebody listens. Connects with the first line.
    pub fn new() -> Writer {
        let variable = std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
        match variable {
            Some(path) => Writer::to(path),
            None => {
                let around = Surroundings::new(nix::unistd::geteuid().is_root(), |name| {
                    std::env::var_os(name)
                });
                Writer::with_places(around.candidates())
            }
        }
    }

    /// A writer to one socket.
    pub fn to(path: impl Into<PathBuf>) -> Writer {
        Writer::with_places(vec![path.into()])
    }

    fn with_places(places: Vec<PathBuf>) -> Writer {
        Writer {
            places,
            closed: AtomicBool::new(false),
            counts: Counts::default(),
            first: Process::new(),
        }
    }

    /// Labels this process from now on, until it says the same keys again.
    pub fn say<K: AsRef<str>, V: AsRef<str>>(&self, labels: &[(K, V)]) -> Fate {
        self.say_of(Some(process_id()), labels, None)
    }

    /// Labels an interval of this process, first and last Unix nanosecond: a request, a phase that is over.
    pub fn span<K: AsRef<str>, V: AsRef<str>>(
        &self,
        labels: &[(K, V)],
        start_unix_nanos: i64,
        end_unix_nanos: i64,
    ) -> Fate {
        let span = Some((start_unix_nanos, end_unix_nanos));
        self.say_of(Some(process_id()), labels, span)
    }

    fn say_of<K: AsRef<str>, V: AsRef<str>>(
        &self,
        pid: Option<u32>,
        labels: &[(K, V)],
        span: Option<(i64, i64)>,
    ) -> Fate {
        match Labels::from_pairs(labels) {
            Ok(labels) => self.write(&Line {
                labels,
                pid,
                span,
                ..Line::default()
            }),
            Err(e) => self.count(Fate::Dropped(Dropped::Refused(e.into()))),
        }
    }

    /// Sends a line as it is, stamped with the time when it has none. Without a pid it is about everything that is recorded,
    /// where the agent lets us speak for that.
    pub fn write(&self, line: &Line) -> Fate {
        match line.ts {
            Some(_) => self.write_unstamped(line),
            None => self.write_unstamped(&Line {
                ts: unix_now(),
                ..line.clone()
            }),
        }
    }

    /// The same; without a time it is of the moment when the agent reads it.
    pub fn write_unstamped(&self, line: &Line) -> Fate {
        // The buffer of this thread, unless the thread is about to end.
        let mut bytes = BUFFER.try_with(Cell::take).unwrap_or_default();
        let fate = match line.encode(&mut bytes) {
            Err(e) => Fate::Dropped(Dropped::Refused(e)),
            Ok(()) if self.closed.load(Ordering::Relaxed) => Fate::Dropped(Dropped::Closed),
            Ok(()) => self.link().send(&bytes, &self.places, &self.counts),
        };
        bytes.clear();
        let _ = BUFFER.try_with(|buffer| buffer.set(bytes));
        self.count(fate)
    }

    /// Sends a line that is encoded already, as it is: without a time it is of the moment when the agent reads it. It ends with
    /// a line feed, and there is no other in it; all else is for the agent to judge.
    pub fn write_encoded(&self, line: &[u8]) -> Fate {
        let one_line = line
            .iter()
            .position(|&b| b == b'\n')
            .is_some_and(|at| at + 1 == line.len());
        let fate = if !one_line {
            Fate::Dropped(Dropped::Refused(Refusal::Syntax))
        } else if line.len() > MAX_LINE_BYTES {
            Fate::Dropped(Dropped::Refused(Refusal::LineTooLong))
        } else if self.closed.load(Ordering::Relaxed) {
            Fate::Dropped(Dropped::Closed)
        } else {
            self.link().send(line, &self.places, &self.counts)
        };
        self.count(fate)
    }

    /// Connects now if there is no connection, as the next line would. Says whether there is one; that it is still good, as far
    /// as [`Writer::is_connected`].
    pub fn connect(&self) -> bool {
        !self.closed.load(Ordering::Relaxed) && self.link().settle(&self.places, &self.counts)
    }

    /// Whether there is a connection. Nobody says that it is still good until the next line.
    pub fn is_connected(&self) -> bool {
        self.link().socket.is_some()
    }

    /// What became of the lines so far.
    pub fn counts(&self) -> WriterCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        WriterCounts {
            sent: read(&self.counts.sent),
            refused: read(&self.counts.refused),
            no_agent: read(&self.counts.no_agent),
            full: read(&self.counts.full),
            closed: read(&self.counts.closed),
            connections: read(&self.counts.connections),
        }
    }

    /// Sends what is held, as far as the socket takes it at once, and ends the connection for good.
    pub fn close(&self) {
        if self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut link = self.link();
        let _ = link.flush(&self.counts);
        link.lose();
        link.drop_held(&self.counts);
    }

    fn count(&self, fate: Fate) -> Fate {
        let counter = match fate {
            // Counted where they leave.
            Fate::Sent | Fate::Held | Fate::Dropped(Dropped::NoAgent) => return fate,
            Fate::Dropped(Dropped::Refused(_)) => &self.counts.refused,
            Fate::Dropped(Dropped::Full) => &self.counts.full,
            Fate::Dropped(Dropped::Closed) => &self.counts.closed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        fate
    }

    /// This process' end. Threads wait here for each other, for as long as a few system calls that do not wait.
    fn link(&self) -> MutexGuard<'_, Link> {
        let pid = process_id();
        let mut process = &self.first;
        while process.pid != pid {
            process = process.child.get_or_init(|| {
                process.leave_to_parent();
                Box::new(Process::new())
            });
        }
        process.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

fn unix_now() -> Option<i64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.ok()?.as_nanos()).ok()
}

impl Process {
    fn new() -> Process {
        Process {
            pid: process_id(),
            link: Mutex::new(Link::default()),
            child: OnceLock::new(),
        }
    }

    /// Closes the child's copy of its parent's connection, so that the agent sees it end with the parent.
    fn leave_to_parent(&self) {
        let link = match self.link.try_lock() {
            Ok(link) => Some(link),
            Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(mut link) = link {
            *link = Link::default();
        }
    }
}

impl Default for Link {
    fn default() -> Link {
        Link {
            socket: None,
            attempts: RateWindow::new(CONNECTS_PER_SEC),
            began: None,
            held: Vec::new(),
            begun: 0,
        }
    }
}

impl Link {
    fn send(&mut self, line: &[u8], places: &[PathBuf], counts: &Counts) -> Fate {
        if !self.settle(places, counts) {
            counts.no_agent.fetch_add(1, Ordering::Relaxed);
            return Fate::Dropped(Dropped::NoAgent);
        }
        if self.held.len() + line.len() > HELD_BYTES {
            return Fate::Dropped(Dropped::Full);
        }
        // Nearly always nothing is held, and the socket takes the line whole.
        if self.held.is_empty()
            && let Some(socket) = &self.socket
            && let Ok(n) = try_send(socket, line)
        {
            if n == line.len() {
                counts.sent.fetch_add(1, Ordering::Relaxed);
                return Fate::Sent;
            }
            self.begun = n;
        }
        self.held.extend_from_slice(line);
        match self.settle(places, counts) {
            true if self.held.is_empty() => Fate::Sent,
            true => Fate::Held,
            false => Fate::Dropped(Dropped::NoAgent),
        }
    }

    /// Sends what is held, on a new connection when there is none or the old one is over. Says whether there is one; without
    /// one nothing is kept for who may come much later.
    fn settle(&mut self, places: &[PathBuf], counts: &Counts) -> bool {
        for _ in 0..2 {
            if self.socket.is_none() && !self.reconnect(places, counts) {
                break;
            }
            if self.flush(counts).is_ok() {
                return true;
            }
            self.lose();
        }
        self.drop_held(counts);
        false
    }

    /// Sends of what is held as much as the socket takes.
    fn flush(&mut self, counts: &Counts) -> io::Result<()> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        while self.begun < self.held.len() {
            match try_send(socket, &self.held[self.begun..]) {
                Ok(n) => self.begun += n,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => break,
                Err(e) => return Err(e.into()),
            }
        }
        // What is whole is done with.
        let sent = &self.held[..self.begun];
        let whole = sent
            .iter()
            .rposition(|&b| b == b'\n')
            .map_or(0, |at| at + 1);
        counts
            .sent
            .fetch_add(lines(&sent[..whole]), Ordering::Relaxed);
        self.held.drain(..whole);
        self.begun -= whole;
        Ok(())
    }

    /// The connection is over. A line that was cut is sent whole on the next.
    fn lose(&mut self) {
        self.socket = None;
        self.begun = 0;
    }

    fn drop_held(&mut self, counts: &Counts) {
        counts
            .no_agent
            .fetch_add(lines(&self.held), Ordering::Relaxed);
        self.held.clear();
        self.begun = 0;
    }

    fn reconnect(&mut self, places: &[PathBuf], counts: &Counts) -> bool {
        let began = *self.began.get_or_insert_with(Instant::now);
        if !self.attempts.take(began.elapsed().as_nanos() as u64) {
            return false;
        }
        self.socket = places.iter().find_map(|place| open(place).ok());
        if self.socket.is_some() {
            counts.connections.fetch_add(1, Ordering::Relaxed);
        }
        self.socket.is_some()
    }
}

fn try_send(socket: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    send(socket.as_raw_fd(), bytes, flags)
}

fn lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&b| b == b'\n').count() as u64
}

/// A connection, if it can be had at once.
pub(crate) fn open(place: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(place)?)?;
    Ok(socket)
}

#[cfg(test)]
#[path = "annotation/tests.rs"]
mod tests;
