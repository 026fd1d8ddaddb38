//! The sender: what callers hold.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use warptrace_model::{Object, SpanRecord, UnixNanos};

use super::counts::{Counts, DropReason};
use super::queue::{Batching, Queue, fit};
use super::worker;
use crate::otlp::{Client, Config, ConfigError};
use crate::phase::{Phase, wait_until};

/// Sends spans to an OTLP collector from a background thread.
///
/// [`push`](SpanSender::push) is a short lock and never waits for the network. The thread starts with the first span; it
/// batches, sends one request at a time, and tries again what may be tried again ([`Batching::retry`]). A span may arrive
/// twice, when the collector took it and its answer got lost.
///
/// Dropping the sender lets its thread send what waits, as long as the process lives; [`close`](SpanSender::close) waits for
/// that.
///
/// # Fork
///
/// A child process has a queue, counts and a thread of its own, which starts with its first span; what its parent had in the
/// queue is the parent's. No call in a child waits for a lock that some thread of the parent held. A process is told from its
/// parent by its id, which costs a system call a push, or by what [`with_process_key`](SpanSender::with_process_key) gives.
#[derive(Debug)]
pub struct SpanSender {
    shared: Arc<Shared>,
    process_key: fn() -> u32,
}

/// Generations of processes that are kept apart: a process, its child, the child's child, …
const GENERATIONS: usize = 8;

/// What the sender and its threads share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Never used itself, only cloned.
    pub(super) client: Client,
    pub(super) timeout: Duration,
    pub(super) limits: Batching,
    pub(super) encoding: worker::Encoding,
    pub(super) resource: Object,
    pub(super) scope: (String, String),
    /// The state of each generation. A process claims the first free one when it first calls, and touches no other: so that no
    /// lock in it can have been held at the fork.
    generations: [Generation; GENERATIONS],
    /// Spans of processes deeper than that.
    too_deep: AtomicU64,
}

#[derive(Debug, Default)]
struct Generation {
    /// 0 is free; else the process's key, and 1.
    key: AtomicU64,
    local: Local,
}

/// What belongs to one process.
#[derive(Debug, Default)]
pub(super) struct Local {
    state: Mutex<State>,
    /// Something changed: a batch is complete, spans are settled, the sender closes.
    pub(super) changed: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) queue: Queue,
    pub(super) thread: Thread,
    pub(super) phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Thread {
    #[default]
    None,
    Running,
    Ended,
}

impl Local {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, `timeout` at most.
    pub(super) fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        timeout: Duration,
    ) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, timeout);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }
}

impl SpanSender {
    /// Checks `config` and reads its certificates; starts nothing and connects to nothing yet.
    ///
    /// `resource` describes the process (`service.name`, `host.name`, …); a `process.pid` in it is set anew in each forked
    /// child. `scope_name` and `scope_version` name the library that makes the spans.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn new(
        config: &Config,
        batching: Batching,
        resource: Object,
        scope_name: &str,
        scope_version: &str,
    ) -> Result<SpanSender, ConfigError> {
        Ok(SpanSender {
            shared: Arc::new(Shared {
                client: Client::new(config)?,
                timeout: config.timeout,
                limits: batching.within_reason(),
                encoding: worker::Encoding::of(config.protocol),
                resource,
                scope: (scope_name.to_owned(), scope_version.to_owned()),
                generations: Default::default(),
                too_deep: AtomicU64::new(0),
            }),
            process_key: std::process::id,
        })
    }

    /// With a cheaper way than the process's id to tell a child from its parent: a number that no ancestor of a process has.
    #[must_use]
    pub fn with_process_key(mut self, key: fn() -> u32) -> SpanSender {
        self.process_key = key;
        self
    }

    /// Queues a finished span. Returns whether it was; what is not is dropped and counted.
    ///
    /// Cost: a walk over the attributes, a lock and a copy of the record itself; a wake-up when a batch is complete. A span
    /// above [`Batching::span_bytes`] is cut here.
    pub fn push(&self, mut record: SpanRecord) -> bool {
        let Some(local) = self.shared.local((self.process_key)()) else {
            self.shared.too_deep.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        let (size, was_cut) = fit(&mut record, &self.shared.limits);
        let mut state = local.lock();
        state.queue.counts.cut += u64::from(was_cut);
        if state.phase != Phase::Open {
            state.queue.drop(DropReason::Closed, 1, now());
            return false;
        }
        let limits = &self.shared.limits;
        if !state.queue.has_room(size, limits) {
            state.queue.drop(DropReason::QueueFull, 1, now());
            return false;
        }
        let is_complete = state.queue.push(record, size, limits);
        if state.thread == Thread::None {
            self.start(&mut state);
        }
        drop(state);
        if is_complete {
            local.notify();
        }
        true
    }

    /// Starts the thread of this process. Without one spans wait in the queue, and it is tried again with each batch.
    fn start(&self, state: &mut State) {
        let waiting = state.queue.len();
        if waiting != 1 && !waiting.is_multiple_of(self.shared.limits.batch_spans) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let key = (self.process_key)();
        let thread = std::thread::Builder::new().name("warptrace-export".to_owned());
        let started = thread.spawn(move || {
            if let Some(local) = shared.local(key) {
                worker::run(&shared, local);
            }
        });
        match started {
            // It is not joined: in a forked child there is nothing to join. It says itself when it ends.
            Ok(_) => state.thread = Thread::Running,
            Err(error) => {
                tracing::warn!(%error, "no thread to export spans with");
                state.queue.counts.last_failure = Some(format!("no thread: {error}"));
            }
        }
    }

    /// What became of the spans that this process pushed.
    pub fn counts(&self) -> Counts {
        let mut counts = match self.shared.local((self.process_key)()) {
            Some(local) => local.lock().queue.counts.clone(),
            None => Counts::default(),
        };
        let too_deep = self.shared.too_deep.load(Ordering::Relaxed);
        counts.drop(DropReason::ForkedTooDeep, too_deep);
        counts
    }

    /// Has all that was pushed before sent without delay, and waits until it was sent or dropped. False when that was not by
    /// `deadline`; then it goes on in the background.
    ///
    /// A flush does not hurry a collector that asked us to wait.
    pub fn flush(&self, deadline: Instant) -> bool {
        let Some(local) = self.shared.local((self.process_key)()) else {
            return true;
        };
        let mut state = local.lock();
        let up_to = state.queue.want_all();
        self.ensure_thread(&mut state);
        local.notify();
        wait_until(&local.changed, state, deadline, |state| {
            state.queue.is_settled(up_to) || state.thread != Thread::Running
        })
        .queue
        .is_settled(up_to)
    }

    /// Takes in no more spans, sends those that wait, and ends the thread. What could not be sent by `deadline` is dropped and
    /// counted, but for a request that is under way, which stays `pending`. False if there was any of either.
    pub fn close(&self, deadline: Instant) -> bool {
        let Some(local) = self.shared.local((self.process_key)()) else {
            return true;
        };
        let mut state = local.lock();
        let up_to = state.queue.want_all();
        state.phase.close(Some(deadline));
        if !state.queue.is_empty() {
            self.ensure_thread(&mut state);
        }
        local.notify();
        let mut state = wait_until(&local.changed, state, deadline, |state| {
            state.thread != Thread::Running
        });
        let done = state.queue.is_settled(up_to);
        if state.thread == Thread::Running {
            state.phase = Phase::Abandoned;
        }
        let left = state.queue.take_all();
        let spans = left.len() as u64;
        state.queue.give_up(DropReason::Closed, spans, now());
        drop(state);
        local.notify();
        drop(left);
        done
    }

    fn ensure_thread(&self, state: &mut State) {
        if state.thread == Thread::None && !state.queue.is_empty() {
            self.start(state);
        }
    }
}

impl Drop for SpanSender {
    fn drop(&mut self) {
        let Some(local) = self.shared.local((self.process_key)()) else {
            return;
        };
        local.lock().phase.close(None);
        local.notify();
    }
}

impl Shared {
    /// What belongs to the process with this key; `None` when too many generations of processes came before it.
    fn local(&self, key: u32) -> Option<&Local> {
        let key = u64::from(key) + 1;
        for generation in &self.generations {
            let owner = match generation.key.load(Ordering::Relaxed) {
                // Of threads that come at once, one claims it for all.
                0 => {
                    let (free, relaxed) = (0, Ordering::Relaxed);
                    match generation.key.compare_exchange(free, key, relaxed, relaxed) {
                        Ok(_) => key,
                        Err(owner) => owner,
                    }
                }
                owner => owner,
            };
            if owner == key {
                return Some(&generation.local);
            }
        }
        None
    }
}

pub(super) fn now() -> UnixNanos {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    UnixNanos(since.map_or(0, |since| since.as_nanos() as u64))
}
