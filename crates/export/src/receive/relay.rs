//! Requests of others on their way to a collector: a bounded queue and one thread behind it.

use std::collections::VecDeque;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::otlp::{
    Client, Config, ConfigError, Delivered, Pace, Protocol, Retry, authority, deliver,
};
use crate::phase::{Phase, pause, wait_until};
use crate::{Counts, DropReason};

/// Passes encoded requests of spans on to a collector, one at a time, each as it is, and tries again while that makes sense.
///
/// What waits is bounded. [`pass`](SpanRelay::pass) never waits for the network, and what it does not take is its caller's. Dropping the
/// relay lets its thread send what waits, as long as the process lives; [`close`](SpanRelay::close) waits for that.
#[derive(Debug)]
pub struct SpanRelay {
    shared: Arc<Shared>,
    is_json: bool,
    endpoint: String,
}

#[derive(Debug)]
struct Shared {
    queue_bytes: usize,
    retry: Retry,
    state: Mutex<State>,
    /// A request came, one is settled, the relay closes.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Encoded, and how many spans are in it.
    waiting: VecDeque<(Vec<u8>, u64)>,
    /// Of those, and of the one under way.
    bytes: usize,
    counts: Counts,
    phase: Phase,
    ended: bool,
}

impl SpanRelay {
    /// Checks `config`, which is for [`Signal::Traces`](crate::otlp::Signal::Traces), reads its certificates, and starts the thread;
    /// connects to nothing yet. At most `queue_bytes` of requests wait.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn new(
        config: &Config,
        queue_bytes: usize,
        retry: Retry,
    ) -> Result<SpanRelay, ConfigError> {
        let client = Client::new(config)?;
        let shared = Arc::new(Shared {
            queue_bytes,
            retry,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let (working, timeout) = (Arc::clone(&shared), config.timeout);
        let thread = std::thread::Builder::new().name("wt-spans-on".to_owned());
        thread
            .spawn(move || working.run(&client, timeout))
            .map_err(ConfigError::NoThread)?;
        Ok(SpanRelay {
            shared,
            is_json: config.protocol == Protocol::HttpJson,
            endpoint: config.endpoint.clone(),
        })
    }

    /// Whether the collector takes JSON; else it takes protobuf.
    pub fn takes_json(&self) -> bool {
        self.is_json
    }

    /// Queues an encoded request with so many spans. False when there is no room, or the relay was closed; then it is not counted.
    ///
    /// Cost: a lock that nobody holds for long.
    pub fn pass(&self, request: Vec<u8>, spans: u64) -> bool {
        let mut state = self.shared.lock();
        let is_full = state.bytes.saturating_add(request.len()) > self.shared.queue_bytes;
        if state.phase != Phase::Open || is_full {
            return false;
        }
        state.bytes += request.len();
        state.counts.pending += spans;
        state.waiting.push_back((request, spans));
        drop(state);
        self.shared.changed.notify_all();
        true
    }

    /// What became of the spans that were passed on.
    pub fn counts(&self) -> Counts {
        self.shared.lock().counts.clone()
    }

    /// Whether what is passed on would come back, since `address` is where the collector is said to be. May ask a name server.
    pub fn leads_to(&self, address: SocketAddr) -> bool {
        let Some((host, port)) = authority(&self.endpoint) else {
            return false;
        };
        if port != address.port() {
            return false;
        }
        let here = |ip: std::net::IpAddr| {
            let (ip, ours) = (ip.to_canonical(), address.ip().to_canonical());
            ip == ours || (ours.is_unspecified() && ip.is_loopback()) || ip.is_unspecified()
        };
        let found = (host.as_str(), port).to_socket_addrs();
        found.is_ok_and(|mut found| found.any(|found| here(found.ip())))
    }

    /// Takes no more, sends what waits, and ends the thread. What could not be sent by `deadline` is dropped and counted, but for a
    /// request that is under way, which stays `pending`. False if there was any of either.
    pub fn close(&self, deadline: Instant) -> bool {
        let mut state = self.shared.lock();
        state.phase.close(Some(deadline));
        let before = state.counts.dropped_in_all();
        self.shared.changed.notify_all();
        let mut state = wait_until(&self.shared.changed, state, deadline, |state| state.ended);
        let left = std::mem::take(&mut state.waiting);
        for (_, spans) in &left {
            state.give_up(*spans, DropReason::Closed);
        }
        let is_done = state.counts.pending == 0 && state.counts.dropped_in_all() == before;
        drop(state);
        is_done
    }
}

impl Drop for SpanRelay {
    fn drop(&mut self) {
        let deadline = Instant::now() + self.shared.retry.total;
        self.shared.lock().phase.close(Some(deadline));
        self.shared.changed.notify_all();
    }
}

impl State {
    fn give_up(&mut self, spans: u64, reason: DropReason) {
        self.counts.pending -= spans;
        self.counts.drop(reason, spans);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread.
    fn run(&self, fresh: &Client, timeout: Duration) {
        let mut client = fresh.clone();
        while let Some((request, spans)) = self.next() {
            let delivered = deliver(&mut client, fresh, &request, timeout, self.retry, self);
            self.settle(request.len(), spans, delivered);
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits for a request; `None` when there will be no more, or no time is left for them.
    fn next(&self) -> Option<(Vec<u8>, u64)> {
        let mut state = self.lock();
        loop {
            if state.phase.is_over() {
                return None;
            }
            if let Some(next) = state.waiting.pop_front() {
                return Some(next);
            }
            if state.phase != Phase::Open {
                return None;
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn settle(&self, bytes: usize, spans: u64, delivered: Delivered) {
        let mut state = self.lock();
        state.bytes -= bytes;
        let (reason, why) = match delivered {
            Delivered::Taken(partial) => {
                let counts = &mut state.counts;
                counts.unreadable += u64::from(partial.is_err());
                let partial = partial.unwrap_or_default();
                if !partial.message.is_empty() {
                    counts.last_failure = Some(partial.message);
                }
                let rejected = partial.rejected.min(spans);
                counts.pending -= spans;
                counts.rejected += rejected;
                counts.sent += spans - rejected;
                return;
            }
            Delivered::Refused { why } => (DropReason::Refused, why),
            Delivered::Exhausted { why } => (DropReason::RetriesExhausted, why),
            Delivered::Closed { why } => (DropReason::Closed, why),
        };
        if state.counts.dropped(reason) == 0 {
            tracing::warn!(
                spans,
                reason = reason.as_str(),
                why,
                "spans of others dropped"
            );
        }
        state.give_up(spans, reason);
        state.counts.last_failure = Some(why);
    }
}

impl Pace for Shared {
    fn time_for_a_try(&self, most: Duration) -> Duration {
        self.lock().phase.time_for_a_try(most)
    }

    fn pause(&self, wait: Duration, why: &str) -> bool {
        pause(&self.changed, self.lock(), wait, why, |state| {
            (state.phase, &mut state.counts)
        })
    }
}
