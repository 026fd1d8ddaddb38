//! A recording that goes on for months: a new session when the one that is written is big or old, and what is kept of the old ones.
//!
//! The engine goes on as it is, so baselines and units under way carry over; the new session is told again what is told once. A
//! thread of its own seals the old session and removes what is not to be kept: both take as long as the disk does.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{info, warn};
use warptrace_capture::clock;
use warptrace_model::{BootNanos, ClockAnchor, Pid};
use warptrace_store::fs::Fs;
use warptrace_store::{DataDir, Retention, Session, SessionWriter, StoreError, prune};

/// Between two looks at the size.
const LOOK_EVERY_NANOS: u64 = 1_000_000_000;
/// After a new session could not be begun.
const RETRY_AFTER_NANOS: u64 = 60_000_000_000;
/// Between two looks at what is to be removed.
const PRUNE_EVERY: Duration = Duration::from_secs(600);
/// How long the sealing of an old session may hold up the end of the recording.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sessions that wait to be sealed, each with the memory of its open segments.
const WAITING: usize = 4;

/// When a recording goes on in a new session, and what is kept.
#[derive(Clone)]
pub struct Rollover {
    /// Bytes of the session's tables.
    pub max_bytes: Option<u64>,
    /// Since the session began.
    pub max_age: Option<Duration>,
    /// Of all sessions of the data folder; looked at when a session ends and every ten minutes.
    pub keep: Retention,
    pub disk: Arc<dyn Fs>,
    pub dir: DataDir,
}

impl std::fmt::Debug for Rollover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rollover")
            .field("max_bytes", &self.max_bytes)
            .field("max_age", &self.max_age)
            .field("keep", &self.keep)
            .finish_non_exhaustive()
    }
}

/// [`Rollover`] at work.
pub(crate) struct Keeper {
    how: Rollover,
    began: BootNanos,
    look: BootNanos,
    keep: Arc<Mutex<Retention>>,
    ended: SyncSender<SessionWriter>,
    thread: JoinHandle<()>,
}

/// What a [`Keeper`] that was stopped still does.
pub(crate) struct Sealing {
    thread: JoinHandle<()>,
    until: Instant,
}

impl Keeper {
    pub(crate) fn start(how: Rollover, began: BootNanos) -> std::io::Result<Keeper> {
        let (ended, receiver) = sync_channel(WAITING);
        let (disk, dir) = (Arc::clone(&how.disk), how.dir.path.clone());
        let keep = Arc::new(Mutex::new(how.keep));
        let kept = Arc::clone(&keep);
        let thread = Builder::new()
            .name("wt-keeper".into())
            .spawn(move || keep_up(&receiver, &disk, &dir, &kept))?;
        Ok(Keeper {
            how,
            began,
            look: began,
            keep,
            ended,
            thread,
        })
    }

    /// Other limits of a session, and of what is kept; the data folder stays.
    pub(crate) fn reload(&mut self, how: Rollover) {
        self.how.max_bytes = how.max_bytes;
        self.how.max_age = how.max_age;
        *self.keep.lock().unwrap_or_else(PoisonError::into_inner) = how.keep;
        // Looked at with the next session, or when it is time: what was kept until now is not urgent to remove.
        self.how.keep = how.keep;
    }

    /// The session to go on in, if it is time for one. `writer` has been flushed when there is one.
    pub(crate) fn next(
        &mut self,
        writer: &mut SessionWriter,
        now: BootNanos,
    ) -> Option<SessionWriter> {
        if now < self.look {
            return None;
        }
        self.look = now.plus(LOOK_EVERY_NANOS);
        let is_big = self.how.max_bytes.is_some_and(|max| writer.bytes() >= max);
        let max_age = self.how.max_age.map(|age| age.as_nanos());
        let is_old = max_age.is_some_and(|max| u128::from(now.since(self.began)) >= max);
        if !is_big && !is_old {
            return None;
        }
        writer.flush_now();
        match self.begin(writer, clock::anchor()) {
            Ok(next) => {
                self.began = now;
                info!(
                    session = next.meta().id,
                    before = writer.meta().id,
                    "the recording goes on in a new session"
                );
                Some(next)
            }
            Err(e) => {
                self.look = now.plus(RETRY_AFTER_NANOS);
                warn!(
                    error = &e as &dyn Error,
                    "the recording goes on in the old session"
                );
                None
            }
        }
    }

    fn begin(&self, of: &SessionWriter, anchor: ClockAnchor) -> Result<SessionWriter, StoreError> {
        let disk = Arc::clone(&self.how.disk);
        let mut next = SessionWriter::create(disk, &self.how.dir, of.meta().next(anchor))?;
        // What the old session cannot be read for is in its own answers, too.
        let inherited = Session::open(Arc::clone(&self.how.disk), of.path()).and_then(|old| {
            let mut alive = HashMap::new();
            let look = |pid: Pid| Path::new(&format!("/proc/{pid}")).exists();
            next.inherit(&old, |pid| *alive.entry(pid).or_insert_with(|| look(pid)))
        });
        if let Err(e) = inherited {
            warn!(
                error = &e as &dyn Error,
                "names of processes are not in the new session"
            );
        }
        Ok(next)
    }

    /// Has the old session sealed.
    pub(crate) fn retire(&self, old: SessionWriter) {
        // Without the thread, or when the disk is that far behind, it stays as a crash would leave it, and can be read.
        let _ = self.ended.try_send(old);
    }

    /// Takes no more sessions. What is being sealed has a while from now on, in which others may end as well.
    pub(crate) fn stop(self) -> Sealing {
        Sealing {
            thread: self.thread,
            until: Instant::now() + PATIENCE,
        }
    }
}

impl Sealing {
    /// Until it is done, or its time is up.
    pub(crate) fn wait(self) {
        while !self.thread.is_finished() {
            if Instant::now() >= self.until {
                warn!(
                    "an earlier session of this recording is not sealed; it can be read as it is"
                );
                return;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// Removes what is not to be kept and seals what ended, until nothing more can come.
fn keep_up(
    ended: &Receiver<SessionWriter>,
    disk: &Arc<dyn Fs>,
    dir: &Path,
    keep: &Mutex<Retention>,
) {
    loop {
        let keep = *keep.lock().unwrap_or_else(PoisonError::into_inner);
        if keep != Retention::default() {
            match prune(disk, dir, keep, clock::anchor().unix) {
                Ok(pruned) => {
                    for (session, bytes) in pruned.removed {
                        info!(session, bytes, "an old session was removed");
                    }
                }
                Err(e) => warn!(error = &e as &dyn Error, "old sessions cannot be removed"),
            }
        }
        match ended.recv_timeout(PRUNE_EVERY) {
            Ok(old) => {
                let id = old.meta().id.clone();
                if let Err(e) = old.seal() {
                    let error = &e as &dyn Error;
                    warn!(
                        session = id,
                        error, "a session is not sealed; it can be read up to its last flush"
                    );
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
