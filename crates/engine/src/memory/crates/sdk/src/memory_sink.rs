//! Writes GPU memory telemetry to a folder of segments, which the Python package `stormlog` reads, and we.
//!
//! [`MemorySink`] writes where it is called: it is for a thread that may wait for a disk. [`BackgroundMemorySink`] hands events
//! to a thread of its own: it never waits, and drops and counts what its queue has no room for.
//!
//! When lines are written, rotated and thrown away is decided in [`warptrace_formats::memory`]; here are the disk, the clock
//! and the thread. A folder has one writer: a second one is refused while the first lives. A forked child of a writer is no
//! writer.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use warptrace_formats::memory::{Now, Sink, SinkWriter, Version, uuid_text};
use warptrace_model::{Int, MemoryEvent, Object, SessionStatus, SessionSummary, Value};

pub use warptrace_formats::memory::{SinkConfig, SinkConfigError, SinkCounts, SinkError};

mod disk;

use disk::DiskFolder;

/// A sink that writes where it is called.
///
/// Dropped without [`MemorySink::close`], it loses what was not flushed, and its session is found interrupted.
#[derive(Debug)]
pub struct MemorySink {
    sink: Sink<DiskFolder>,
    path: PathBuf,
    begun: Instant,
    pid: u32,
    version: Version,
}

impl MemorySink {
    /// Opens `folder`, which is made if there is none, with what a process before left in it.
    ///
    /// # Errors
    /// A bad configuration; another process writes the folder; or it cannot be read or written.
    pub fn open(folder: impl AsRef<Path>, config: SinkConfig) -> Result<MemorySink, SinkError> {
        config.check()?;
        let path = folder.as_ref().to_owned();
        let begun = Instant::now();
        let pid = std::process::id();
        let writer = SinkWriter {
            host: host().into(),
            pid,
            fresh_id,
        };
        let disk = DiskFolder::open(&path)?;
        Ok(MemorySink {
            sink: Sink::open(disk, config, writer, now(begun))?,
            path,
            begun,
            pid,
            version: Version::default(),
        })
    }

    /// Writes events as records of `version` from now on.
    pub fn with_version(mut self, version: Version) -> MemorySink {
        self.version = version;
        self
    }

    /// The time, if this is still the process that opened the sink.
    fn now(&self) -> Result<Now, SinkError> {
        match std::process::id() == self.pid {
            true => Ok(now(self.begun)),
            false => Err(SinkError::Forked),
        }
    }

    /// Begins a session, and returns it; an active one goes on and is returned instead. Without a summary one is made of this
    /// process.
    ///
    /// # Errors
    /// The manifest cannot be written.
    pub fn start_session(
        &mut self,
        summary: Option<SessionSummary>,
    ) -> Result<SessionSummary, SinkError> {
        let now = self.now()?;
        self.sink.start_session(summary, now)
    }

    /// The active session.
    pub fn session(&self) -> Option<&SessionSummary> {
        self.sink.session()
    }

    /// Appends an event of the active session; without one, its own is begun.
    ///
    /// # Errors
    /// It is of another session, the version cannot say it, or the disk failed (not in bounded mode).
    pub fn append(&mut self, event: &MemoryEvent) -> Result<(), SinkError> {
        let now = self.now()?;
        self.sink.append_event(event, self.version, now)
    }

    /// Appends a record of any kind.
    ///
    /// # Errors
    /// As [`MemorySink::append`].
    pub fn append_record(&mut self, record: &Object) -> Result<(), SinkError> {
        let now = self.now()?;
        self.sink.append(record, now)
    }

    /// Writes what waits: always when forced, else what has waited long enough. To be called now and then when events are rare.
    ///
    /// # Errors
    /// The disk failed (not in bounded mode).
    pub fn flush(&mut self, force: bool) -> Result<(), SinkError> {
        let now = self.now()?;
        self.sink.flush(force, now)
    }

    /// Ends the active session and writes all that waits, then the sums over the folder. The next event begins a session.
    ///
    /// # Errors
    /// The disk failed. [`SinkError::Rollups`] and errors that name `rollups.json` are of the sums only: all else is safe.
    pub fn close(&mut self, status: SessionStatus) -> Result<(), SinkError> {
        let now = self.now()?;
        self.sink.close(status, now)?;
        let resolved = self.path.canonicalize();
        let resolved = resolved.unwrap_or_else(|_| self.path.clone());
        let (path, resolved) = (self.path.to_string_lossy(), resolved.to_string_lossy());
        self.sink.write_rollups(&path, &resolved, now)
    }

    pub fn counts(&self) -> SinkCounts {
        self.sink.counts()
    }
}

fn now(begun: Instant) -> Now {
    let unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Now {
        monotonic: begun.elapsed(),
        unix_ns: u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX),
    }
}

fn host() -> String {
    let name = nix::unistd::gethostname().ok();
    let name = name.and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unknown".into())
}

/// A random UUID (RFC 9562, version 4).
fn fresh_id() -> String {
    let mut bytes = [0; 16];
    let random =
        std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    if random.is_err() {
        // Without the device: the keys that the standard library seeds its maps with.
        use std::hash::{BuildHasher as _, RandomState};
        let half = || {
            RandomState::new()
                .hash_one(std::process::id())
                .to_le_bytes()
        };
        bytes[..8].copy_from_slice(&half());
        bytes[8..].copy_from_slice(&half());
    }
    bytes[6] = bytes[6] & 0x0F | 0x40;
    bytes[8] = bytes[8] & 0x3F | 0x80;
    uuid_text(bytes)
}

/// A sink that never waits for the disk: a thread of its own does.
///
/// Dropped without [`BackgroundMemorySink::close`], it ends its session as incomplete, waiting up to
/// [`BackgroundMemorySink::DROP_PATIENCE`].
#[derive(Debug)]
pub struct BackgroundMemorySink {
    queue: SyncSender<Command>,
    dropped: AtomicU64,
    pid: u32,
}

enum Command {
    Start(Box<SessionSummary>),
    Event(Box<MemoryEvent>),
    Record(Object),
    Flush(SyncSender<BackgroundCounts>),
    Close(SessionStatus, SyncSender<BackgroundCounts>),
    /// The last one: the folder is free for another writer before the reply.
    End(SyncSender<BackgroundCounts>),
}

/// What a background sink did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackgroundCounts {
    pub sink: SinkCounts,
    /// Events that the sink refused: of another session, or beyond its version.
    pub refused: u64,
    /// Why, the last time; also why sums could not be written.
    pub last_error: Option<String>,
    /// Events that the queue had no room for.
    pub dropped: u64,
}

impl BackgroundMemorySink {
    /// Events that wait for the thread at most.
    pub const QUEUE: usize = 8192;
    /// Bytes that wait for the disk at most, if the configuration sets no bound: this sink always has one.
    pub const BUFFER_BYTES: u64 = 8 << 20;
    /// How long dropping it waits for the disk.
    pub const DROP_PATIENCE: Duration = Duration::from_secs(5);

    /// Opens `folder` as [`MemorySink::open`] does, and starts the thread.
    ///
    /// # Errors
    /// As [`MemorySink::open`]; or there is no thread to be had.
    pub fn open(
        folder: impl AsRef<Path>,
        mut config: SinkConfig,
    ) -> Result<BackgroundMemorySink, SinkError> {
        config.max_buffer_bytes.get_or_insert(Self::BUFFER_BYTES);
        let pause = config.flush_every;
        let sink = MemorySink::open(folder, config)?;
        let (queue, commands) = sync_channel(Self::QUEUE);
        std::thread::Builder::new()
            .name("wt-memory-sink".into())
            .spawn(move || work(sink, &commands, pause))
            .map_err(|source| SinkError::Io {
                operation: "start a thread for",
                name: "wt-memory-sink".into(),
                source,
            })?;
        Ok(BackgroundMemorySink {
            queue,
            dropped: AtomicU64::new(0),
            pid: std::process::id(),
        })
    }

    /// Begins a session of the events to come. Never waits.
    pub fn start_session(&self, summary: SessionSummary) {
        self.send(Command::Start(summary.into()));
    }

    /// Appends an event. Never waits; without room it is dropped and counted.
    pub fn append(&self, event: MemoryEvent) {
        self.send(Command::Event(event.into()));
    }

    /// Appends a record of any kind. Never waits; without room it is dropped and counted.
    pub fn append_record(&self, record: Object) {
        self.send(Command::Record(record));
    }

    fn send(&self, command: Command) {
        // A forked child has no thread behind its queue.
        let sent = std::process::id() == self.pid && self.queue.try_send(command).is_ok();
        if !sent {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all before is on the disk, or `patience` is over; `None` then.
    pub fn flush(&self, patience: Duration) -> Option<BackgroundCounts> {
        self.ask(Command::Flush, patience)
    }

    /// Ends the session as [`MemorySink::close`] does and waits for it, or until `patience` is over; `None` then, and it goes on.
    pub fn close(&self, status: SessionStatus, patience: Duration) -> Option<BackgroundCounts> {
        self.ask(|reply| Command::Close(status, reply), patience)
    }

    fn ask(
        &self,
        command: impl FnOnce(SyncSender<BackgroundCounts>) -> Command,
        patience: Duration,
    ) -> Option<BackgroundCounts> {
        if std::process::id() != self.pid {
            return None;
        }
        let until = Instant::now() + patience;
        let (reply, answer) = sync_channel(1);
        let mut command = command(reply);
        // The queue may be full of events just now.
        loop {
            match self.queue.try_send(command) {
                Ok(()) => break,
                Err(TrySendError::Full(again)) if Instant::now() < until => command = again,
                Err(_) => return None,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let left = until.saturating_duration_since(Instant::now());
        let mut counts = answer.recv_timeout(left).ok()?;
        counts.dropped = self.dropped.load(Ordering::Relaxed);
        Some(counts)
    }

    /// Events that the queue had no room for so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for BackgroundMemorySink {
    fn drop(&mut self) {
        self.ask(Command::End, Self::DROP_PATIENCE);
    }
}

fn work(mut sink: MemorySink, commands: &Receiver<Command>, pause: Duration) {
    let mut counts = BackgroundCounts::default();
    loop {
        let (done, reply) = match commands.recv_timeout(pause) {
            Ok(Command::Start(summary)) => (sink.start_session(Some(*summary)).map(drop), None),
            Ok(Command::Event(event)) => (sink.append(&event), None),
            Ok(Command::Record(record)) => (sink.append_record(&record), None),
            Ok(Command::Flush(reply)) => (sink.flush(true), Some(reply)),
            Ok(Command::Close(status, reply)) => (sink.close(status), Some(reply)),
            Ok(Command::End(reply)) => {
                if sink.session().is_some()
                    && let Err(error) = sink.close(SessionStatus::Incomplete)
                {
                    counts.last_error = Some(error.to_string());
                }
                counts.sink = sink.counts();
                drop(sink);
                let _ = reply.try_send(counts);
                return;
            }
            Err(RecvTimeoutError::Timeout) => (sink.flush(false), None),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if let Err(error) = done {
            counts.refused += u64::from(reply.is_none());
            counts.last_error = Some(error.to_string());
        }
        if let Some(reply) = reply {
            counts.sink = sink.counts();
            // Whoever asked may have gone.
            let _ = reply.try_send(counts.clone());
        }
    }
}

/// A new session of this process, to be given to a sink and written into its events.
pub fn new_session(source: &str) -> SessionSummary {
    let unix = now(Instant::now()).unix_ns;
    SessionSummary {
        session_id: fresh_id().into(),
        status: SessionStatus::Running,
        started_at_ns: unix.into(),
        ended_at_ns: None,
        host: Arc::from(host()),
        pid: u64::from(std::process::id()).into(),
        job_id: Value::Null,
        rank: Int::ZERO,
        local_rank: Int::ZERO,
        world_size: Int::ONE,
        source: source.into(),
    }
}

#[cfg(test)]
mod tests;
