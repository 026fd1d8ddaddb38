//! When to send what to one receiver: in order, one at a time, again after a while, and nothing that is no longer so.
//!
//! Pure: times are durations since any one moment; whoever drives it asks [`Outbox::next`], sends, and says with
//! [`Outbox::done`] what came of it.
//!
//! A receiver gets a resolve only for what it got before (or may have got). A trigger that was not sent before its alert is over
//! is not sent at all. Of what waits for one alert only the newest is sent.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::book::{Action, Notice};
use crate::otlp::{Backoff, Retry};

/// However long a receiver asks to be left alone.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// How persistent to be, and how much may wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Of a notice; after its total the others have their turn before it. It is not given up: what it says is true, or it would
    /// have been superseded.
    pub retry: Retry,
    /// Notices that wait. When there are more the oldest that resolves nothing is dropped; those that do are at most as many as
    /// the receiver has open.
    pub queue: usize,
}

impl Default for Delivery {
    /// 1 s, doubling to a minute, for half an hour; 256 notices.
    fn default() -> Delivery {
        Delivery {
            retry: Retry {
                first: Duration::from_secs(1),
                longest: Duration::from_secs(60),
                total: Duration::from_secs(1800),
            },
            queue: 256,
        }
    }
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Taken,
    /// Not taken, and may be tried again, after the time that was asked for.
    Again {
        after: Option<Duration>,
        /// The answer got lost, so that it may have been taken.
        may_have_arrived: bool,
        why: String,
    },
    /// Not taken, and would not be.
    Refused {
        why: String,
    },
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until something is pushed or done.
    Idle,
    /// Nothing before that time.
    Wait(Duration),
    Send(Notice),
}

/// What became of the notices to a receiver. Each is in exactly one of `waiting`, `sent`, `superseded`, `queue_full` and
/// `refused`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutboxCounts {
    /// In the queue, or under way.
    pub waiting: u64,
    pub sent: u64,
    /// Not sent because something newer of the same alert was, or because the receiver never heard of what it resolves.
    pub superseded: u64,
    pub queue_full: u64,
    pub refused: u64,
    /// Requests that were sent again.
    pub retried: u64,
    /// Alerts that the receiver has open.
    pub open: u64,
    /// Why the last request that failed did, for a person.
    pub last_failure: Option<String>,
}

#[derive(Debug)]
struct Waiting {
    notice: Notice,
    /// When it was first sent, and how often it failed since.
    tried: Option<(Duration, Backoff)>,
    may_have_arrived: bool,
}

impl Waiting {
    fn key(&self) -> &str {
        &self.notice.alert.key
    }

    fn resolves(&self) -> bool {
        self.notice.action == Action::Resolve
    }
}

/// The notices to one receiver.
#[derive(Debug)]
pub struct Outbox {
    delivery: Delivery,
    queue: VecDeque<Waiting>,
    under_way: Option<Waiting>,
    not_before: Duration,
    /// Keys that the receiver has open.
    open: BTreeSet<String>,
    counts: OutboxCounts,
}

impl Outbox {
    pub fn new(delivery: Delivery) -> Outbox {
        Outbox {
            delivery,
            queue: VecDeque::new(),
            under_way: None,
            not_before: Duration::ZERO,
            open: BTreeSet::new(),
            counts: OutboxCounts::default(),
        }
    }

    pub fn push(&mut self, notice: Notice) {
        let key = notice.alert.key.as_str();
        let under_way = self.under_way.as_ref().filter(|w| w.key() == key);
        let is_being_told = under_way.is_some_and(|w| !w.resolves());
        let waits = self.queue.iter().position(|w| w.key() == key);
        let waiting = Waiting {
            notice,
            tried: None,
            may_have_arrived: false,
        };
        let old = waits.and_then(|at| self.queue.remove(at));
        self.counts.superseded += u64::from(old.is_some());
        if !waiting.resolves() {
            // In the place of the older one, so that an alert that changes does not wait for ever.
            match (old, waits) {
                (Some(old), Some(at)) if !old.resolves() => self.queue.insert(
                    at,
                    Waiting {
                        tried: old.tried,
                        may_have_arrived: old.may_have_arrived,
                        ..waiting
                    },
                ),
                _ => self.queue.push_back(waiting),
            }
            self.make_room();
            return;
        }
        let may_have_it = old.is_some_and(|old| old.may_have_arrived);
        let has_it = self.open.contains(waiting.key()) || is_being_told || may_have_it;
        match has_it {
            true => self.queue.push_back(waiting),
            false => self.counts.superseded += 1,
        }
    }

    fn make_room(&mut self) {
        let told = self.queue.iter().filter(|w| !w.resolves()).count();
        if told > self.delivery.queue.max(1) {
            let oldest = self.queue.iter().position(|w| !w.resolves());
            if oldest.and_then(|at| self.queue.remove(at)).is_some() {
                self.counts.queue_full += 1;
            }
        }
    }

    /// What to do now. What is to be sent is under way until [`Outbox::done`].
    pub fn next(&mut self, now: Duration) -> Step {
        if self.under_way.is_some() || self.queue.is_empty() {
            return Step::Idle;
        }
        if now < self.not_before {
            return Step::Wait(self.not_before);
        }
        let Some(mut next) = self.queue.pop_front() else {
            return Step::Idle;
        };
        let retry = self.delivery.retry;
        next.tried.get_or_insert((now, Backoff::new(retry)));
        let notice = next.notice.clone();
        self.under_way = Some(next);
        Step::Send(notice)
    }

    /// What came of it. `random` is any number, for jitter.
    pub fn done(&mut self, now: Duration, outcome: Outcome, random: u64) {
        let Some(mut sent) = self.under_way.take() else {
            return;
        };
        let key = sent.key().to_owned();
        match outcome {
            Outcome::Taken => {
                self.counts.sent += 1;
                self.not_before = Duration::ZERO;
                match sent.resolves() {
                    true => {
                        self.open.remove(&key);
                        self.drop_resolves_of(&key);
                    }
                    false => {
                        self.open.insert(key);
                    }
                }
            }
            Outcome::Refused { why } => {
                self.counts.refused += 1;
                self.counts.last_failure = Some(why);
                self.give_up(&sent);
            }
            Outcome::Again {
                after,
                may_have_arrived,
                why,
            } => {
                self.counts.last_failure = Some(why);
                sent.may_have_arrived |= may_have_arrived;
                let wait = sent.tried.as_mut().and_then(|(first, backoff)| {
                    backoff.next(now.saturating_sub(*first), after, random)
                });
                let longest = self.delivery.retry.longest;
                let late = after.unwrap_or(longest).clamp(longest, LONGEST_PAUSE);
                self.not_before = now + wait.unwrap_or(late);
                let newer = self.queue.iter().position(|w| w.key() == key);
                match newer {
                    // It stands at its own place and is what there is to say now.
                    Some(at) => {
                        self.counts.superseded += 1;
                        let is_resolve = self.queue[at].resolves();
                        let may_have = sent.may_have_arrived || self.open.contains(&key);
                        if is_resolve && !sent.resolves() && !may_have {
                            self.queue.remove(at);
                            self.counts.superseded += 1;
                        } else if !is_resolve {
                            self.queue[at].may_have_arrived |= sent.may_have_arrived;
                        }
                    }
                    None if wait.is_some() => {
                        self.counts.retried += 1;
                        self.queue.push_front(sent);
                    }
                    None => {
                        self.counts.retried += 1;
                        sent.tried = None;
                        self.queue.push_back(sent);
                    }
                }
            }
        }
    }

    /// A notice will not be sent: then neither will a resolve of what the receiver does not have.
    fn give_up(&mut self, gone: &Waiting) {
        if gone.resolves() {
            self.open.remove(gone.key());
        } else if !gone.may_have_arrived && !self.open.contains(gone.key()) {
            self.drop_resolves_of(gone.key());
        }
    }

    fn drop_resolves_of(&mut self, key: &str) {
        let before = self.queue.len();
        self.queue.retain(|w| !(w.resolves() && w.key() == key));
        self.counts.superseded += (before - self.queue.len()) as u64;
    }

    pub fn counts(&self) -> OutboxCounts {
        OutboxCounts {
            waiting: self.queue.len() as u64 + u64::from(self.under_way.is_some()),
            open: self.open.len() as u64,
            ..self.counts.clone()
        }
    }

    /// Nothing waits and nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.under_way.is_none()
    }
}
