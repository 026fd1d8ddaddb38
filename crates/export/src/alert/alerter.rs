//! The book and the outboxes, with threads.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::book::{Action, Book, Notice};
use super::config::{AlertConfig, AlertConfigError, Receiver, ReceiverKind};
use super::hook::Hook;
use super::outbox::{Outbox, OutboxCounts, Outcome, Step};
use super::{Alert, body};
use crate::spans::random;

/// Tells people of alerts, on a thread for each receiver.
///
/// [`raise`](Alerter::raise) and [`over`](Alerter::over) take a short lock and never wait for the network. Dropping the alerter
/// ends its threads without waiting; [`close`](Alerter::close) sends what waits. Neither resolves what is open: it is not over
/// because nobody watches.
#[derive(Debug)]
pub struct Alerter {
    shared: Arc<Shared>,
}

/// What became of alerts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertCounts {
    /// Alerts that were raised.
    pub raised: u64,
    /// Open now.
    pub open: u64,
    /// Of those, how many wait for their turn by the rate.
    pub waiting: u64,
    /// Not taken in, since too many were open.
    pub dropped: u64,
    pub receivers: Vec<ReceiverCounts>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiverCounts {
    /// `slack`, `pagerduty`, `webhook`.
    pub name: &'static str,
    pub counts: OutboxCounts,
}

#[derive(Debug)]
struct Shared {
    start: Instant,
    source: String,
    receivers: Vec<Receiver>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    book: Book,
    outboxes: Vec<Outbox>,
    raised: u64,
    running: usize,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Threads end when their outbox is empty, or at this time.
    Closing(Instant),
    Ended,
}

impl Alerter {
    /// Starts a thread for each receiver; connects to nothing yet.
    ///
    /// # Errors
    /// A token that cannot be sent, or no thread.
    pub fn start(config: AlertConfig) -> Result<Alerter, AlertConfigError> {
        let hooks = config.receivers.iter();
        let hooks: Result<Vec<Hook>, _> = hooks.map(|r| Hook::new(r, config.timeout)).collect();
        let outboxes = config.receivers.iter();
        let outboxes = outboxes.map(|_| Outbox::new(config.delivery.clone()));
        let shared = Arc::new(Shared {
            start: Instant::now(),
            source: config.source,
            state: Mutex::new(State {
                book: Book::new(config.rules),
                outboxes: outboxes.collect(),
                raised: 0,
                running: 0,
                phase: Phase::Open,
            }),
            receivers: config.receivers,
            changed: Condvar::new(),
        });
        // When one cannot start, dropping this ends those that did.
        let alerter = Alerter { shared };
        for (index, hook) in hooks?.into_iter().enumerate() {
            let shared = Arc::clone(&alerter.shared);
            let name = format!("wt-alert-{}", shared.receivers[index].kind.name());
            alerter.shared.lock().running += 1;
            let thread = std::thread::Builder::new().name(name);
            let started = thread.spawn(move || {
                shared.run(index, &hook);
                let mut state = shared.lock();
                state.running -= 1;
                drop(state);
                shared.changed.notify_all();
            });
            if let Err(error) = started {
                alerter.shared.lock().running -= 1;
                return Err(AlertConfigError::Thread(error.to_string()));
            }
        }
        Ok(alerter)
    }

    /// An alert was seen, for the first time or again. Cost: a lock, and copies of its texts.
    pub fn raise(&self, alert: Alert) {
        let alert = alert.within_limits(&self.shared.source);
        let mut state = self.shared.lock();
        state.raised += 1;
        let now = self.shared.now();
        if let Some(notice) = state.book.raise(now, alert) {
            self.shared.push(&mut state, &notice);
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// The alert with this key is over; nothing happens when there is none.
    pub fn over(&self, key: &str) {
        let mut state = self.shared.lock();
        if let Some(notice) = state.book.over(key) {
            self.shared.push(&mut state, &notice);
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    pub fn counts(&self) -> AlertCounts {
        let state = self.shared.lock();
        let receivers = self.shared.receivers.iter().zip(&state.outboxes);
        AlertCounts {
            raised: state.raised,
            open: state.book.len() as u64,
            waiting: state.book.waiting(self.shared.now()) as u64,
            dropped: state.book.dropped(),
            receivers: receivers
                .map(|(receiver, outbox)| ReceiverCounts {
                    name: receiver.kind.name(),
                    counts: outbox.counts(),
                })
                .collect(),
        }
    }

    /// Sends what waits, until `deadline` at most, and ends the threads. False when something was not sent; a request that is
    /// under way at the deadline goes on for its timeout, and nobody waits for it.
    pub fn close(&self, deadline: Instant) -> bool {
        let mut state = self.shared.lock();
        state.phase = Phase::Closing(deadline);
        self.shared.changed.notify_all();
        while state.running > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.shared.wait(state, left);
        }
        state.phase = Phase::Ended;
        let all = state.outboxes.iter().all(Outbox::is_empty);
        drop(state);
        self.shared.changed.notify_all();
        all
    }
}

impl Drop for Alerter {
    fn drop(&mut self) {
        self.shared.lock().phase = Phase::Ended;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, most);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn push(&self, state: &mut State, notice: &Notice) {
        for (receiver, outbox) in self.receivers.iter().zip(&mut state.outboxes) {
            // What a receiver was not told it is not told to be over either: the outbox knows.
            if notice.alert.severity >= receiver.min_severity || notice.action == Action::Resolve {
                outbox.push(notice.clone());
            }
        }
    }

    /// The thread of one receiver.
    fn run(&self, index: usize, hook: &Hook) {
        let mut was_failing = false;
        let mut state = self.lock();
        loop {
            let now = self.now();
            let notices = state.book.tick(now);
            for notice in &notices {
                self.push(&mut state, notice);
            }
            if !notices.is_empty() {
                self.changed.notify_all();
            }
            match state.phase {
                Phase::Ended => return,
                Phase::Closing(_) if state.outboxes[index].is_empty() => return,
                Phase::Closing(deadline) if Instant::now() >= deadline => return,
                _ => {}
            }
            let wait = match state.outboxes[index].next(now) {
                Step::Send(notice) => {
                    drop(state);
                    let outcome = hook.post(&self.body(index, &notice));
                    was_failing = self.log(index, &outcome, was_failing);
                    state = self.lock();
                    let now = self.now();
                    state.outboxes[index].done(now, outcome, random());
                    continue;
                }
                Step::Wait(until) => Some(until),
                Step::Idle => None,
            };
            let due = [wait, state.book.next(now)].into_iter().flatten().min();
            let due = due.map(|at| at.saturating_sub(now));
            let closing = match state.phase {
                Phase::Closing(deadline) => {
                    Some(deadline.saturating_duration_since(Instant::now()))
                }
                _ => None,
            };
            let most = [due, closing].into_iter().flatten().min();
            state = self.wait(state, most.unwrap_or(Duration::from_secs(3600)));
        }
    }

    fn body(&self, index: usize, notice: &Notice) -> Vec<u8> {
        let receiver = &self.receivers[index];
        match &receiver.kind {
            ReceiverKind::Slack { channel, username } => {
                body::slack(notice, &receiver.template, channel, username)
            }
            ReceiverKind::PagerDuty {
                routing_key,
                severity,
            } => body::pagerduty(notice, &receiver.template, routing_key.expose(), *severity),
            ReceiverKind::Webhook { .. } => body::webhook(notice, &receiver.template),
        }
    }

    /// Says when sending begins to fail and when it works again, not each time. Whether it fails now.
    fn log(&self, index: usize, outcome: &Outcome, was_failing: bool) -> bool {
        let receiver = self.receivers[index].kind.name();
        match outcome {
            Outcome::Taken => {
                if was_failing {
                    tracing::info!(receiver, "alerts are sent again");
                }
                false
            }
            Outcome::Again { why, .. } | Outcome::Refused { why } => {
                if !was_failing {
                    tracing::warn!(receiver, why, "an alert could not be sent");
                }
                true
            }
        }
    }
}
