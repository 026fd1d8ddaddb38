//! Which labels hold when: what the job said of a moment of one of its processes.
//!
//! An *instant* holds from its time on, until its process says the same key again. A *span* holds from its start to its
//! end, both included. What is said of no process in particular holds for all. Where several say the same key, the one
//! that was said last wins: time of the annotation first, then order of arrival.
//!
//! [`LabelIndex`] answers that while a recording runs, by true incarnations (pid and start time). [`join`] is the rule of
//! the existing agent (v0.17) for a finished list of events, which tells incarnations apart by the lifecycle events in its
//! window: the reference that the index is tested against, and for traces that came without start times.
//!
//! It does not know what a label means; steps and requests are made elsewhere.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;

use warptrace_model::{Annotation, BootNanos, Incarnation, Labels, Pid, ProcessEvent, Window};

/// How much a [`LabelIndex`] remembers. What is beyond that is given up, the oldest first, and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelCaps {
    /// Processes that said something.
    pub processes: usize,
    /// Keys of one process, and of what is said of no process in particular.
    pub keys: usize,
    /// Values of instants, in all.
    pub instants: usize,
    /// Spans, in all.
    pub spans: usize,
    /// Bytes of text, in all.
    pub bytes: usize,
}

impl Default for LabelCaps {
    /// 40 MB at most.
    fn default() -> LabelCaps {
        LabelCaps {
            processes: 4_096,
            keys: 256,
            instants: 100_000,
            spans: 50_000,
            bytes: 16 << 20,
        }
    }
}

/// What was given up for want of room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// Values, those of forgotten keys and processes among them.
    pub instants: u64,
    pub spans: u64,
    pub keys: u64,
    pub processes: u64,
}

/// Labels by process and time.
#[derive(Debug, Default)]
pub struct LabelIndex {
    caps: LabelCaps,
    scopes: BTreeMap<Scope, Said>,
    /// Processes by when they last said something; what is said of none is not among them, and is never given up.
    by_age: BTreeSet<(Order, Incarnation)>,
    /// Values that a later one of the same key stands before, and spans, in order of arrival.
    superseded: VecDeque<(Scope, Arc<str>, When)>,
    spans: VecDeque<(Scope, SpanKey)>,
    arrived: Order,
    instants: usize,
    span_count: usize,
    bytes: usize,
    forgotten: Forgotten,
}

type Scope = Option<Incarnation>;
/// Of arrival.
type Order = u64;
/// When something was said; of what was said at one moment, the later arrival is the later.
type When = (BootNanos, Order);

/// What was said of one process.
#[derive(Debug, Default)]
struct Said {
    last: Order,
    keys: BTreeMap<Arc<str>, Series>,
    spans: BTreeMap<SpanKey, Annotation>,
    /// Which lengths of spans there are: bit n for those of 2ⁿ⁻¹ to 2ⁿ - 1 ns, bit 0 for moments.
    lengths: u128,
}

#[derive(Debug, Default)]
struct Series {
    last: Order,
    values: BTreeMap<When, Box<str>>,
}

/// Spans of one length class lie by their start, so that those which overlap a window lie together.
type SpanKey = (u32, BootNanos, Order);

const fn length_class(nanos: u64) -> u32 {
    u64::BITS - nanos.leading_zeros()
}

/// Clock ticks of `/proc` in nanoseconds: USER_HZ is 100 on every architecture that we run on.
const CLOCK_TICK_NANOS: u64 = 10_000_000;

impl LabelIndex {
    pub fn new(caps: LabelCaps) -> LabelIndex {
        LabelIndex {
            caps,
            ..LabelIndex::default()
        }
    }

    /// Takes in an annotation; they may come in any order. Cost: O(labels × log n).
    pub fn push(&mut self, annotation: &Annotation) {
        self.arrived += 1;
        let (scope, order) = (annotation.scope, self.arrived);
        let said = self.scopes.entry(scope).or_default();
        if let Some(process) = scope {
            self.by_age.remove(&(said.last, process));
            self.by_age.insert((order, process));
        }
        said.last = order;
        if let Some(span) = annotation.span {
            let class = length_class(span.nanos());
            let key = (class, span.start, order);
            said.lengths |= 1 << class;
            said.spans.insert(key, annotation.clone());
            self.spans.push_back((scope, key));
            self.span_count += 1;
            self.bytes += annotation.labels.heap_bytes();
        } else {
            for (key, value) in annotation.labels.iter() {
                let (name, series) = match said.keys.entry(key.into()) {
                    Entry::Occupied(e) => (Arc::clone(e.key()), e.into_mut()),
                    Entry::Vacant(e) => (Arc::clone(e.key()), e.insert(Series::default())),
                };
                let now = (annotation.at, order);
                let newest = series.values.last_key_value().map(|(at, _)| *at);
                if let Some(newest) = newest {
                    self.superseded.push_back((scope, name, newest.min(now)));
                }
                series.last = order;
                series.values.insert(now, value.into());
                self.instants += 1;
                self.bytes += value.len();
            }
        }
        self.make_room(scope);
    }

    /// The labels of a moment of a process. With `who.start_ticks` 0 the incarnation of that time is taken.
    ///
    /// More than [`Labels::MAX`] where several lines said them. Cost: O(keys × log n).
    pub fn at(&self, who: Incarnation, at: BootNanos) -> Labels {
        let mut merged: BTreeMap<&str, (When, &str)> = BTreeMap::new();
        let mut say = |when: When, key, value| match merged.entry(key) {
            Entry::Vacant(e) => {
                e.insert((when, value));
            }
            Entry::Occupied(mut e) => {
                if e.get().0 < when {
                    e.insert((when, value));
                }
            }
        };
        for said in self.relevant(who, at) {
            for (key, series) in &said.keys {
                if let Some((when, value)) = series.at(at) {
                    say(when, key, value);
                }
            }
            for ((_, _, order), span) in said.overlapping(at, at) {
                for (key, value) in span.labels.iter() {
                    say((span.at, *order), key, value);
                }
            }
        }
        let pairs: Vec<(&str, &str)> = merged.into_iter().map(|(k, (_, v))| (k, v)).collect();
        let mut labels = Labels::default();
        for line in pairs.chunks(Labels::MAX) {
            // What was taken in had been checked.
            labels.merge(&Labels::from_pairs(line).unwrap_or_default());
        }
        labels
    }

    /// One label of a moment of a process. Cost: O(log n), and what spans lie there.
    pub fn value(&self, who: Incarnation, at: BootNanos, key: &str) -> Option<&str> {
        let relevant = self.relevant(who, at);
        let said = relevant.flat_map(|said| {
            let instant = said.keys.get(key).and_then(|series| series.at(at));
            let spans = said
                .overlapping(at, at)
                .filter_map(|((_, _, order), span)| {
                    Some(((span.at, *order), span.labels.get(key)?))
                });
            instant.into_iter().chain(spans)
        });
        said.max_by_key(|(when, _)| *when).map(|(_, value)| value)
    }

    /// Every span of a process, and of no process in particular, that has a moment in common with `window`, by start; at one
    /// start in order of arrival. None hides another, whatever their keys: requests lie over each other.
    ///
    /// The incarnation of a `who` without a start time is that of the window's start. Cost: O(log n + what is found), times
    /// the number of magnitudes that lengths have.
    pub fn spans(&self, who: Incarnation, window: Window) -> Vec<&Annotation> {
        let relevant = self.relevant(who, window.start);
        sorted(relevant.flat_map(|said| said.overlapping(window.start, window.end)))
    }

    /// The same of all processes.
    pub fn all_spans(&self, window: Window) -> Vec<&Annotation> {
        let all = self.scopes.values();
        sorted(all.flat_map(|said| said.overlapping(window.start, window.end)))
    }

    /// What was given up so far.
    pub fn forgotten(&self) -> Forgotten {
        self.forgotten
    }

    /// What was said of nobody in particular, of the pid without a start time, and of the incarnation.
    fn relevant(&self, who: Incarnation, at: BootNanos) -> impl Iterator<Item = &Said> {
        let of = |start_ticks| {
            let pid = who.pid;
            Some(Incarnation { pid, start_ticks })
        };
        let life = match who.start_ticks {
            0 => {
                let begun = at.0 / CLOCK_TICK_NANOS;
                let lives = self.scopes.range(of(1)..=of(begun.max(1)));
                lives.last().map(|(_, said)| said)
            }
            start => self.scopes.get(&of(start)),
        };
        [self.scopes.get(&None), self.scopes.get(&of(0)), life]
            .into_iter()
            .flatten()
    }

    fn make_room(&mut self, newest: Scope) {
        while self.by_age.len() > self.caps.processes.max(1) {
            self.forget_oldest_process(newest);
        }
        if let Some(said) = self.scopes.get_mut(&newest) {
            while said.keys.len() > self.caps.keys.max(1) {
                let oldest = said.keys.iter().min_by_key(|(_, series)| series.last);
                let Some(key) = oldest.map(|(key, _)| Arc::clone(key)) else {
                    break;
                };
                let series = said.keys.remove(&key).unwrap_or_default();
                self.forgotten.keys += 1;
                self.forgotten.instants += series.values.len() as u64;
                self.instants -= series.values.len();
                self.bytes -= series.bytes();
            }
        }
        while self.span_count > self.caps.spans || self.bytes > self.caps.bytes {
            let Some((scope, key)) = self.spans.pop_front() else {
                break;
            };
            let span = self
                .scopes
                .get_mut(&scope)
                .and_then(|s| s.spans.remove(&key));
            if let Some(span) = span {
                self.span_count -= 1;
                self.bytes -= span.labels.heap_bytes();
                self.forgotten.spans += 1;
            }
        }
        while self.instants > self.caps.instants || self.bytes > self.caps.bytes {
            let Some((scope, key, when)) = self.superseded.pop_front() else {
                // Only what holds now is left.
                if !self.forget_oldest_process(newest) {
                    break;
                }
                continue;
            };
            let said = self.scopes.get_mut(&scope);
            let series = said.and_then(|said| said.keys.get_mut(&key));
            if let Some(value) = series.and_then(|series| series.values.remove(&when)) {
                self.instants -= 1;
                self.bytes -= value.len();
                self.forgotten.instants += 1;
            }
        }
        // Those of forgotten processes and keys are still in the lists.
        if self.superseded.len() > 2 * self.instants + 64 {
            let scopes = &self.scopes;
            self.superseded.retain(|(scope, key, when)| {
                let series = scopes.get(scope).and_then(|said| said.keys.get(key));
                series.is_some_and(|series| series.values.contains_key(when))
            });
        }
        if self.spans.len() > 2 * self.span_count + 64 {
            let scopes = &self.scopes;
            self.spans.retain(|(scope, key)| {
                scopes.get(scope).is_some_and(|s| s.spans.contains_key(key))
            });
        }
    }

    /// Forgets the process that has been silent for longest, unless it is `but`. Says whether there was one.
    fn forget_oldest_process(&mut self, but: Scope) -> bool {
        let oldest = self
            .by_age
            .iter()
            .find(|(_, process)| Some(*process) != but);
        let Some(&(order, process)) = oldest else {
            return false;
        };
        self.by_age.remove(&(order, process));
        let said = self.scopes.remove(&Some(process)).unwrap_or_default();
        let instants: usize = said.keys.values().map(|series| series.values.len()).sum();
        let spans = said.spans.values().map(|span| span.labels.heap_bytes());
        self.bytes -= said.keys.values().map(Series::bytes).sum::<usize>() + spans.sum::<usize>();
        self.instants -= instants;
        self.span_count -= said.spans.len();
        self.forgotten.processes += 1;
        self.forgotten.instants += instants as u64;
        self.forgotten.spans += said.spans.len() as u64;
        true
    }
}

impl Series {
    fn at(&self, at: BootNanos) -> Option<(When, &str)> {
        let (when, value) = self.values.range(..=(at, Order::MAX)).next_back()?;
        Some((*when, value))
    }

    fn bytes(&self) -> usize {
        self.values.values().map(|value| value.len()).sum()
    }
}

impl Said {
    /// Spans that have a moment in common with `from..=to`.
    fn overlapping(
        &self,
        from: BootNanos,
        to: BootNanos,
    ) -> impl Iterator<Item = (&SpanKey, &Annotation)> {
        let classes = (0..=u64::BITS).filter(|class| self.lengths >> class & 1 == 1);
        classes.flat_map(move |class| {
            // None of this class is longer than `longest`, and none shorter than half of it: few are looked at in vain.
            let longest = u64::MAX.checked_shr(u64::BITS - class).unwrap_or(0);
            let begin = (class, from.minus(longest), 0);
            let end = (class, to, Order::MAX);
            let near = (begin <= end).then(|| self.spans.range(begin..=end));
            near.into_iter().flatten().filter(move |(_, span)| {
                let window = span.span.unwrap_or(Window::at(span.at, 0));
                window.end >= from
            })
        })
    }
}

fn sorted<'a>(spans: impl Iterator<Item = (&'a SpanKey, &'a Annotation)>) -> Vec<&'a Annotation> {
    let mut spans: Vec<_> = spans.collect();
    spans.sort_unstable_by_key(|((_, start, order), _)| (*start, *order));
    spans.into_iter().map(|(_, span)| span).collect()
}

/// What an event of [`join`] is labelled with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Joined {
    /// Annotations that apply.
    pub matched: usize,
    /// Their labels, of equal keys the newest.
    pub labels: Labels,
}

/// Labels for events (time and process), by the rule of the existing agent (v0.17).
///
/// Of `annotations` those count whose time lies in `window` (that of a span is when it was said, not where it lies), and of
/// `lifecycle` the execs and exits in it. An exec opens a life of its pid, an exit closes the one that was opened last. Where
/// an annotation names a pid, its place (the time of an instant, the start of a span) and the event must lie in the same life
/// of that pid, or both in none; its start time plays no part. Cost: events × annotations.
pub fn join(
    window: RangeInclusive<BootNanos>,
    lifecycle: &[ProcessEvent],
    annotations: &[Annotation],
    events: &[(BootNanos, Pid)],
) -> Vec<Joined> {
    let lives = lives(&window, lifecycle);
    let mut counted: Vec<&Annotation> = annotations
        .iter()
        .filter(|annotation| window.contains(&annotation.at))
        .collect();
    counted.sort_by_key(|annotation| annotation.at);
    let join_one = |&(at, pid): &(BootNanos, Pid)| {
        let mut joined = Joined::default();
        for annotation in &counted {
            if applies(annotation, at, pid, &lives) {
                joined.matched += 1;
                joined.labels.merge(&annotation.labels);
            }
        }
        joined
    };
    events.iter().map(join_one).collect()
}

/// From its exec up to its exit.
struct Life {
    pid: Pid,
    start: BootNanos,
    end: Option<BootNanos>,
}

fn lives(window: &RangeInclusive<BootNanos>, lifecycle: &[ProcessEvent]) -> Vec<Life> {
    let mut turns: Vec<(BootNanos, Pid, bool)> = lifecycle
        .iter()
        .filter_map(|event| match *event {
            ProcessEvent::Exec { at, pid, .. } => Some((at, pid, true)),
            ProcessEvent::Exit { at, pid, .. } => Some((at, pid, false)),
            _ => None,
        })
        .filter(|(at, ..)| window.contains(at))
        .collect();
    turns.sort_by_key(|(at, ..)| *at);
    let mut lives: Vec<Life> = Vec::new();
    for (at, pid, begins) in turns {
        if begins {
            lives.push(Life {
                pid,
                start: at,
                end: None,
            });
            continue;
        }
        let mut latest = lives.iter_mut().rev();
        if let Some(life) = latest.find(|life| life.pid == pid && life.end.is_none()) {
            life.end = Some(at);
        }
    }
    lives
}

fn applies(annotation: &Annotation, at: BootNanos, pid: Pid, lives: &[Life]) -> bool {
    if let Some(scope) = annotation.scope {
        let placed = annotation.span.map_or(annotation.at, |span| span.start);
        let life = |at: BootNanos| {
            lives.iter().position(|life| {
                life.pid == pid && life.start <= at && life.end.is_none_or(|end| at < end)
            })
        };
        if scope.pid != pid || life(placed) != life(at) {
            return false;
        }
    }
    match annotation.span {
        Some(span) => span.start <= at && at <= span.end,
        None => annotation.at <= at,
    }
}

#[cfg(test)]
#[path = "labels/tests.rs"]
mod tests;
