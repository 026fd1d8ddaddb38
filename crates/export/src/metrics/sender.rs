//! The sender of metrics, and the thread behind it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use warptrace_formats::otlp::{Deltas, MetricsEncoder, Starts, Temporality, split};
use warptrace_model::metric::Snapshot;

use super::MetricSettings;
use super::queue::Queue;
use crate::otlp::{Client, Config, ConfigError, Delivered, Pace, Protocol, deliver};
use crate::phase::{Phase, pause, wait_until};
use crate::{Counts, DropReason};

/// Sends snapshots of metrics to an OTLP collector from a background thread.
///
/// [`offer`](MetricSender::offer) is a short lock and never waits for the network. One request is under way at a time, and tried
/// again while that makes sense ([`MetricSettings::retry`]). What waits is bounded; when there is no room, the oldest snapshot goes,
/// and its points are counted. Nothing that was counted is lost by that: a later snapshot has it, and deltas are made from what was
/// delivered.
///
/// Dropping the sender lets its thread send what waits, as long as the process lives; [`close`](MetricSender::close) waits for that.
/// Of a process that forks, only the parent sends.
#[derive(Debug)]
pub struct MetricSender {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: MetricSettings,
    state: Mutex<State>,
    /// Something changed: a snapshot came, one is settled, the sender closes.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: Queue,
    phase: Phase,
    ended: bool,
}

impl MetricSender {
    /// Checks `config`, reads its certificates, and starts the thread; connects to nothing yet. `version` is that of warptrace.
    ///
    /// # Errors
    /// See [`ConfigError`]; `config` is for [`Signal::Metrics`](crate::otlp::Signal::Metrics).
    pub fn new(
        config: &Config,
        settings: MetricSettings,
        version: &str,
    ) -> Result<MetricSender, ConfigError> {
        let client = Client::new(config)?;
        let shared = Arc::new(Shared {
            settings,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let worker = Worker {
            shared: Arc::clone(&shared),
            fresh: client.clone(),
            client,
            timeout: config.timeout,
            is_json: config.protocol == Protocol::HttpJson,
            encoder: MetricsEncoder {
                names: shared.settings.names,
                temporality: shared.settings.temporality,
                explicit_histograms: shared.settings.explicit_histograms,
                version: version.to_owned(),
            },
            deltas: Deltas::default(),
            starts: Starts::default(),
        };
        let thread = std::thread::Builder::new().name("warptrace-metrics".to_owned());
        thread
            .spawn(move || worker.run())
            .map_err(ConfigError::NoThread)?;
        Ok(MetricSender { shared })
    }

    /// Queues a snapshot. Returns whether it was; what is not is dropped and counted.
    ///
    /// Cost: a walk over the points, and a lock that nobody holds for long.
    pub fn offer(&self, snapshot: Arc<Snapshot>) -> bool {
        let mut state = self.shared.lock();
        if state.phase != Phase::Open {
            let points = snapshot.len() as u64;
            state.queue.counts.drop(DropReason::Closed, points);
            return false;
        }
        let (taken, pushed_out) = state.queue.push(snapshot, &self.shared.settings);
        drop(state);
        self.shared.changed.notify_all();
        drop(pushed_out);
        taken
    }

    /// What became of the points of all snapshots. Under several names, or as deltas, a point may be several on the wire or none; it
    /// is counted once.
    pub fn counts(&self) -> Counts {
        self.shared.lock().queue.counts.clone()
    }

    /// Waits until all that was offered before was sent or dropped. False when that was not by `deadline`; then it goes on in the
    /// background.
    pub fn flush(&self, deadline: Instant) -> bool {
        let state = self.shared.lock();
        let up_to = state.queue.taken_in();
        let done = |state: &mut State| state.queue.is_settled(up_to) || state.ended;
        let state = wait_until(&self.shared.changed, state, deadline, done);
        state.queue.is_settled(up_to)
    }

    /// Takes in no more snapshots, sends those that wait, and ends the thread. What could not be sent by `deadline` is dropped and
    /// counted, but for a request that is under way, which stays `pending`. False if there was any of either.
    pub fn close(&self, deadline: Instant) -> bool {
        let mut state = self.shared.lock();
        let up_to = state.queue.taken_in();
        state.phase.close(Some(deadline));
        self.shared.changed.notify_all();
        let mut state = wait_until(&self.shared.changed, state, deadline, |state| state.ended);
        let done = state.queue.is_settled(up_to);
        if !state.ended {
            state.phase = Phase::Abandoned;
        }
        while let Some(left) = state.queue.pop() {
            let points = left.len() as u64;
            state.queue.give_up(DropReason::Closed, points);
            state.queue.settle();
        }
        drop(state);
        self.shared.changed.notify_all();
        done
    }
}

impl Drop for MetricSender {
    fn drop(&mut self) {
        self.shared.lock().phase.close(None);
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pace for Shared {
    fn time_for_a_try(&self, most: Duration) -> Duration {
        self.lock().phase.time_for_a_try(most)
    }

    fn pause(&self, wait: Duration, why: &str) -> bool {
        pause(&self.changed, self.lock(), wait, why, |state| {
            (state.phase, &mut state.queue.counts)
        })
    }
}

/// The thread: sends snapshots one after the other.
struct Worker {
    shared: Arc<Shared>,
    /// Never used itself, only cloned.
    fresh: Client,
    client: Client,
    timeout: Duration,
    is_json: bool,
    encoder: MetricsEncoder,
    deltas: Deltas,
    starts: Starts,
}

impl Worker {
    fn run(mut self) {
        while let Some(snapshot) = self.next() {
            for mut part in split(&snapshot, self.shared.settings.batch_points) {
                self.starts.settle(&mut part);
                self.send(&part);
            }
            self.starts.forget_missing();
            self.deltas.forget_missing(&snapshot);
            self.shared.lock().queue.settle();
            self.shared.changed.notify_all();
        }
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
    }

    /// Waits for a snapshot; `None` when there will be no more.
    fn next(&self) -> Option<Arc<Snapshot>> {
        let mut state = self.shared.lock();
        loop {
            if state.phase == Phase::Abandoned {
                return None;
            }
            if let Some(snapshot) = state.queue.pop() {
                return Some(snapshot);
            }
            if state.phase != Phase::Open {
                return None;
            }
            let waited = self.shared.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sends a part of a snapshot until the collector has it, or it is given up.
    fn send(&mut self, part: &Snapshot) {
        let points = part.len() as u64;
        // A panic must not end all exports.
        let request = catch_unwind(AssertUnwindSafe(|| {
            let request = match self.encoder.temporality {
                Temporality::Cumulative => self.encoder.request(part),
                Temporality::Delta => self.encoder.request(&self.deltas.since(part)),
            };
            (!request.is_empty()).then(|| match self.is_json {
                true => request.to_json(),
                false => request.to_protobuf(),
            })
        }));
        let request = match request {
            Ok(Some(request)) => request,
            // Nothing of it is new, or has a name: there is nothing to say.
            Ok(None) => {
                self.shared.lock().queue.answered(points, 0);
                return;
            }
            Err(_) => {
                let why = "encoding panicked".to_owned();
                return self.give_up(points, DropReason::Refused, why);
            }
        };
        let retry = self.shared.settings.retry;
        let shared = &*self.shared;
        match deliver(
            &mut self.client,
            &self.fresh,
            &request,
            self.timeout,
            retry,
            shared,
        ) {
            Delivered::Taken(partial) => {
                if self.encoder.temporality == Temporality::Delta {
                    self.deltas.delivered(part);
                }
                let mut state = self.shared.lock();
                let counts = &mut state.queue.counts;
                counts.unreadable += u64::from(partial.is_err());
                let partial = partial.unwrap_or_default();
                if !partial.message.is_empty() {
                    counts.last_failure = Some(partial.message);
                }
                state.queue.answered(points, partial.rejected);
            }
            Delivered::Refused { why } => self.give_up(points, DropReason::Refused, why),
            Delivered::Exhausted { why } => self.give_up(points, DropReason::RetriesExhausted, why),
            Delivered::Closed { why } => self.give_up(points, DropReason::Closed, why),
        }
    }

    fn give_up(&self, points: u64, reason: DropReason, why: String) {
        let mut state = self.shared.lock();
        if state.queue.counts.dropped(reason) == 0 {
            tracing::warn!(points, reason = reason.as_str(), why, "metrics dropped");
        }
        state.queue.give_up(reason, points);
        state.queue.counts.last_failure = Some(why);
    }
}
