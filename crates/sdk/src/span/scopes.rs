//! Spans of scopes, as plain data of the thread that opened them.
//!
//! Most spans begin and end in one block of code, and nobody looks at them between. So a scope's span is a value in a table of its
//! thread: no allocation, no reference count, and a lock that somebody else holds only for the moments in which the exporters'
//! thread fetches what has ended. It becomes a [`Span`] when somebody asks for one, and where it is exported, in the exporter's
//! thread.
//!
//! A recorder goes this way when it has no rules, threads are its contexts, and no exporter wants to hear of starts.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use warptrace_model::{SpanId, Value};

use super::queue::Queue;
use super::span::EVENTS_KEPT;
use super::{Event, Span, Timestamp};
use crate::fork::{self, ForkMutex, Inherit};
use crate::owned::{self, Owner, Visitor};

/// Spans that a thread keeps before it hands them over; at 192 bytes each.
const BATCH: usize = 128;
/// Emptied batches that are kept to be filled again, and how many places one of them has at most.
const SPARE: usize = 16;
const SPARE_PLACES: usize = 4 * BATCH;

/// A span that only its scope knows. Its place is used again for others: it is written where it is, and never moved. Three cache
/// lines, since each goes to another core and back.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub(super) struct Plain {
    /// In a thread, in the order in which scopes began; from 1.
    key: u64,
    /// The latest span before it, when that was a scope's; else 0. Since its end, how many of its thread ended before it.
    outer: u64,
    pub(super) id: SpanId,
    pub(super) trace: u128,
    pub(super) within: Within,
    pub(super) name: Cow<'static, str>,
    pub(super) start: Timestamp,
    pub(super) end: Timestamp,
    pub(super) state: State,
    /// An exporter is to have it.
    wanted: bool,
    pub(super) thread: u32,
    pub(super) said: Option<Box<Said>>,
}

const _: () = assert!(size_of::<Plain>() == 192);

/// What a span is a part of: [`super::Parent`] in fewer bytes.
#[derive(Debug, Clone)]
pub(super) enum Within {
    None,
    Scope(SpanId),
    Span(Span),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// And somebody is to have it.
    Ended,
    /// Nobody is to have it.
    Over,
}

/// What is said of a span while it is open, and what else most have not.
#[derive(Debug, Clone, Default)]
pub(super) struct Said {
    pub(super) set: Vec<(Cow<'static, str>, Value)>,
    pub(super) events: Vec<Event>,
    pub(super) dropped_events: u32,
    /// Somebody asked for it: this is it, and what is plain is out of date.
    shared: Option<Span>,
}

/// Places for spans: those in use, and behind them empty ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    all: Vec<Plain>,
    used: usize,
}

impl Deref for Places {
    type Target = [Plain];

    #[inline]
    fn deref(&self) -> &[Plain] {
        &self.all[..self.used]
    }
}

impl DerefMut for Places {
    #[inline]
    fn deref_mut(&mut self) -> &mut [Plain] {
        &mut self.all[..self.used]
    }
}

impl Places {
    fn for_a_batch() -> Places {
        let mut places = Places::default();
        places.grow(BATCH);
        places
    }

    #[cold]
    fn grow(&mut self, by: usize) {
        self.all.resize_with(self.all.len() + by, || Plain::EMPTY);
    }

    /// One more, which is empty, and those before it.
    #[inline]
    fn add(&mut self) -> (&mut [Plain], &mut Plain) {
        if self.used == self.all.len() {
            self.grow(BATCH);
        }
        let (others, free) = self.all.split_at_mut(self.used);
        self.used += 1;
        (others, &mut free[0])
    }

    /// Those that are `wanted`, in their order; their places are empty.
    fn remove(&mut self, wanted: impl Fn(&Plain) -> bool) -> impl Iterator<Item = Plain> {
        let wanted = self.iter_mut().filter(move |place| wanted(place));
        wanted.map(|place| std::mem::replace(place, Plain::EMPTY))
    }

    fn clear(&mut self) {
        self.fill_with(|| Plain::EMPTY);
        self.used = 0;
    }
}

impl Batch {
    /// What has ended, in that order; its places are empty after it.
    pub(super) fn ended(&mut self) -> impl Iterator<Item = Plain> {
        self.places.sort_by_key(|place| place.outer);
        self.places.remove(|place| place.state == State::Ended)
    }

    /// The last `count`, which are in it no more.
    pub(super) fn split_off_last(&mut self, count: usize) -> Vec<Plain> {
        self.ended -= count;
        let mut all: Vec<Plain> = self.ended().collect();
        let last = all.split_off(self.ended);
        self.places = Places {
            used: all.len(),
            all,
        };
        last
    }
}

impl Plain {
    const EMPTY: Plain = Plain {
        key: 0,
        outer: 0,
        id: SpanId::from_bits(0),
        trace: 0,
        within: Within::None,
        name: Cow::Borrowed(""),
        start: Timestamp::new(0, 0.0),
        end: Timestamp::new(0, 0.0),
        state: State::Over,
        wanted: false,
        thread: 0,
        said: None,
    };

    fn begin_within(&mut self, span: &Span) {
        if let Some(active) = span.nearest_active() {
            self.trace = active.trace();
            self.within = Within::Span(active.clone());
        }
    }

    fn said(&mut self) -> &mut Said {
        self.said.get_or_insert_default()
    }

    fn shared(&self) -> Option<&Span> {
        self.said.as_ref()?.shared.as_ref()
    }
}

/// Spans that have ended, among others that nobody is to have.
#[derive(Debug, Clone, Default)]
pub(super) struct Batch {
    pub(super) places: Places,
    /// How many have ended.
    pub(super) ended: usize,
}

/// The latest span of a thread.
#[derive(Debug, Default)]
enum Latest {
    #[default]
    None,
    /// A scope's, by its key.
    Scope(u64),
    Span(Span),
}

impl Latest {
    fn is_scope(&self, key: u64) -> bool {
        matches!(self, Latest::Scope(k) if *k == key)
    }

    fn active(span: &Span) -> Latest {
        let active = span.nearest_active();
        active.map_or(Latest::None, |span| Latest::Span(span.clone()))
    }
}

/// What became of a scope's span, and what was the latest span before it. That is to be let go of after the lock: it may hold what is
/// somebody else's, whose end may come back here.
type Unusual = (Ended, Latest);

/// What one thread has of one recorder.
#[derive(Debug, Default)]
struct Local {
    thread: u32,
    last_key: u64,
    latest: Latest,
    /// In the order of their keys: spans that are open, and among them those that have ended.
    places: Places,
    /// How many are open, and how many have ended and are wanted, of those that are here and of all.
    open: usize,
    ended: usize,
    all_ended: u64,
}

impl Local {
    #[inline]
    fn begin(&mut self, id: SpanId, name: Cow<'static, str>, at: Timestamp, wanted: bool) -> u64 {
        let (outer, outer_place) = match self.latest {
            Latest::Scope(key) => (key, self.find(key)),
            Latest::None | Latest::Span(_) => (0, None),
        };
        self.last_key += 1;
        // Written field by field where it stays: a processor waits when it is to load by larger or other pieces what it has just
        // stored, as for a copy of the whole.
        let (others, place) = self.places.add();
        place.key = self.last_key;
        place.outer = outer;
        place.id = id;
        place.trace = id.to_bits();
        // For the same reason without a look at what was there: it is empty.
        std::mem::forget(std::mem::replace(&mut place.name, name));
        place.start = at;
        place.state = State::Open;
        place.wanted = wanted;
        place.thread = self.thread;
        match (&self.latest, outer_place.map(|outer| &others[outer])) {
            (Latest::Span(span), _) => place.begin_within(span),
            (_, Some(scope)) => match scope.shared() {
                Some(span) => place.begin_within(span),
                None => {
                    place.trace = scope.trace;
                    place.within = Within::Scope(scope.id);
                }
            },
            _ => {}
        }
        self.open += 1;
        self.latest = Latest::Scope(self.last_key);
        self.last_key
    }

    /// The place of a span that is open.
    #[inline]
    fn find(&self, key: u64) -> Option<usize> {
        let is_it = |place: &Plain| place.key == key && place.state == State::Open;
        match self.places.last() {
            Some(last) if is_it(last) => Some(self.places.len() - 1),
            _ => {
                let found = self.places.binary_search_by_key(&key, |place| place.key);
                found.ok().filter(|at| is_it(&self.places[*at]))
            }
        }
    }

    /// Ends a scope's span at `at`; `None` in the usual case.
    #[inline]
    fn end(
        &mut self,
        key: u64,
        at: Timestamp,
        wanted: bool,
        opened: &dyn Fn(&Span),
    ) -> Option<Unusual> {
        let Some(index) = self.find(key) else {
            return Some((Ended::Unknown, Latest::None));
        };
        // While it is the latest, nothing that began within it is open.
        let is_usual = self.latest.is_scope(key) && self.places[index].shared().is_none();
        if !is_usual {
            return Some(self.end_unusual(index, at, wanted, opened));
        }
        let outer = self.over(index, at, wanted);
        self.latest = match (outer, &self.places[index].within) {
            (0, Within::Span(span)) => Latest::active(span),
            (0, _) => Latest::None,
            (outer, _) => self.outer(outer),
        };
        None
    }

    /// One that was asked for, or that ends before what began within it.
    #[cold]
    fn end_unusual(
        &mut self,
        index: usize,
        at: Timestamp,
        wanted: bool,
        opened: &dyn Fn(&Span),
    ) -> Unusual {
        let key = self.places[index].key;
        let is_within = |place: &Plain| {
            place.state == State::Open && place.outer == key && place.shared().is_none()
        };
        // What outlives it needs more of it than its id, to know what is the latest in the end.
        if self.places[index + 1..].iter().any(is_within) {
            self.share(key, opened);
        }
        let shared = self.places[index].shared().cloned();
        if let Some(span) = &shared {
            let later = self.places[index + 1..].iter_mut();
            for place in later.filter(|place| is_within(place)) {
                place.outer = 0;
                place.within = Within::Span(span.clone());
            }
        }
        self.over(index, at, wanted && shared.is_none());
        let ended = shared.map_or(Ended::Done, Ended::Shared);
        let mut left = Latest::None;
        if self.latest.is_scope(key) {
            left = std::mem::take(&mut self.latest);
        }
        (ended, left)
    }

    /// The key of the scope that it was in.
    #[inline]
    fn over(&mut self, index: usize, at: Timestamp, wanted: bool) -> u64 {
        let place = &mut self.places[index];
        let wanted = place.wanted && wanted;
        place.end = at;
        place.state = if wanted { State::Ended } else { State::Over };
        let outer = std::mem::replace(&mut place.outer, self.all_ended);
        self.open -= 1;
        self.ended += usize::from(wanted);
        self.all_ended += 1;
        outer
    }

    /// What is the latest when the scope of this key is.
    fn outer(&self, key: u64) -> Latest {
        match self.find(key).map(|place| &self.places[place]) {
            None => Latest::None,
            Some(place) => match place.shared() {
                None => Latest::Scope(key),
                Some(span) => Latest::active(span),
            },
        }
    }

    /// Takes what has ended; what is open moves to `room`, which is empty.
    fn take(&mut self, room: Places) -> Batch {
        let mut places = std::mem::replace(&mut self.places, room);
        if self.open > 0 {
            for open in places.remove(|place| place.state == State::Open) {
                *self.places.add().1 = open;
            }
        }
        let ended = std::mem::take(&mut self.ended);
        Batch { places, ended }
    }

    /// Makes a span of a scope's, and of those that it is in.
    fn share(&mut self, key: u64, opened: &dyn Fn(&Span)) -> Option<Span> {
        let mut chain = Vec::new();
        let mut next = key;
        while let Some(place) = self.find(next).filter(|_| next != 0) {
            chain.push(place);
            next = match self.places[place].shared() {
                None => self.places[place].outer,
                Some(_) => 0,
            };
        }
        let mut within: Option<Span> = None;
        for index in chain.into_iter().rev() {
            let place = &mut self.places[index];
            let span = match place.shared() {
                Some(span) => span.clone(),
                None => {
                    let mut plain = place.clone();
                    if let (Within::Scope(_), Some(span)) = (&plain.within, &within) {
                        plain.within = Within::Span(span.clone());
                    }
                    let span = Span::of(plain);
                    opened(&span);
                    place.said().shared = Some(span.clone());
                    span
                }
            };
            if self.latest.is_scope(place.key) {
                self.latest = Latest::Span(span.clone());
            }
            within = Some(span);
        }
        within
    }
}

/// What no queue took: what of it found its queue full, and places that nobody needs. To be let go of where nothing is locked.
#[derive(Debug, Default)]
struct Left {
    refused: Vec<Plain>,
    places: Places,
}

/// What all threads have of one recorder.
pub(super) struct Scopes {
    key: u64,
    queues: Vec<Queue>,
    threads: ForkMutex<Threads>,
    spare: ForkMutex<Spare>,
    /// A queue's thread has lain down, or was never started: it is to be told of what ends.
    asleep: AtomicBool,
}

#[derive(Debug, Default)]
struct Threads(Vec<Visitor<Local>>);

impl Inherit for Threads {
    /// A child has one thread, which comes back by itself: see [`Scopes::here`]. What the others have open ends in the parent.
    fn inherit(_: Option<&mut Threads>) -> Threads {
        Threads::default()
    }
}

#[derive(Debug, Default)]
struct Spare(Vec<Places>);

impl Inherit for Spare {
    fn inherit(_: Option<&mut Spare>) -> Spare {
        Spare::default()
    }
}

/// A thread's part of a recorder.
struct Here {
    key: u64,
    /// In which process; see [`fork`].
    generation: u32,
    local: Owner<Local>,
    scopes: Weak<Scopes>,
}

thread_local! {
    /// A program has one or two recorders.
    static HERE: RefCell<Vec<Here>> = const { RefCell::new(Vec::new()) };
}

impl Drop for Here {
    /// The thread ends, or the recorder has ended.
    fn drop(&mut self) {
        if self.generation != fork::generation() {
            // Of the parent, and it was never used here. The memory of one that is half changed is lost.
            if !self.local.is_whole() {
                std::mem::forget(self.local.visitor());
            }
            return;
        }
        let last = self
            .local
            .with(|local| (local.take(Places::default()), local.open == 0));
        if let (Some((batch, is_over)), Some(scopes)) = (last, self.scopes.upgrade()) {
            scopes.let_go(scopes.hand_over(batch));
            if is_over {
                let mut threads = scopes.threads.lock();
                threads.0.retain(|thread| !self.local.is_visited_by(thread));
            }
        }
    }
}

/// What became of a scope's span.
#[derive(Debug)]
pub(super) enum Ended {
    Done,
    /// It is no plain one any more, and to be stopped like any other.
    Shared(Span),
    /// This thread has no such span open.
    Unknown,
}

impl Scopes {
    pub(super) fn new(queues: Vec<Queue>) -> Arc<Scopes> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let scopes = Arc::new(Scopes {
            key: NEXT.fetch_add(1, Ordering::Relaxed),
            queues,
            threads: ForkMutex::new(Threads::default()),
            spare: ForkMutex::new(Spare::default()),
            asleep: AtomicBool::new(true),
        });
        for queue in &scopes.queues {
            queue.fed_by(Arc::downgrade(&scopes));
        }
        scopes
    }

    /// Begins a span in this thread, whose name is `name`, or what that is made into; its key. `None` when the thread is about to
    /// end, and has no place for it.
    #[inline]
    pub(super) fn begin(
        self: &Arc<Scopes>,
        id: SpanId,
        name: &mut Cow<'static, str>,
        at: Timestamp,
        wanted: bool,
    ) -> Option<u64> {
        self.here(|local| local.begin(id, std::mem::take(name), at, wanted))
    }

    /// Ends a span of this thread, which an exporter is to have unless it is not `wanted`.
    #[inline]
    pub(super) fn end(
        self: &Arc<Scopes>,
        key: u64,
        at: Timestamp,
        wanted: bool,
        opened: &dyn Fn(&Span),
    ) -> Ended {
        let (mut full, mut unusual) = (false, None);
        let here = self.here(|local| {
            unusual = local.end(key, at, wanted, opened);
            full = local.places.len() >= BATCH && local.places.len() >= 2 * local.open;
        });
        if here.is_none() {
            return Ended::Unknown;
        }
        if full {
            self.bring();
        }
        // Whoever sets it looks at our table after that: either it finds what has ended, or we find this.
        if self.asleep.load(Ordering::Relaxed) {
            self.wake();
        }
        unusual.map_or(Ended::Done, |(ended, _)| ended)
    }

    #[cold]
    fn wake(&self) {
        if self.asleep.swap(false, Ordering::Relaxed) {
            self.queues.iter().for_each(Queue::wake);
        }
    }

    /// A queue's thread is about to lie down, and looks once more before it does.
    pub(super) fn is_going_to_sleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        // So that either this thread sees that there is news, or the one that has it sees that we sleep.
        owned::everywhere();
        self.collect();
    }

    /// Adds an attribute to a span of this thread, or replaces the one of that name; gives it back with the span when that is no
    /// plain one any more.
    pub(super) fn set(
        self: &Arc<Scopes>,
        key: u64,
        name: Cow<'static, str>,
        value: Value,
    ) -> Option<(Span, Cow<'static, str>, Value)> {
        self.here(|local| {
            let place = local.find(key)?;
            let said = local.places[place].said();
            if let Some(span) = &said.shared {
                return Some((span.clone(), name, value));
            }
            match said.set.iter_mut().find(|(known, _)| *known == name) {
                Some((_, old)) => *old = value,
                None => said.set.push((name, value)),
            }
            None
        })
        .flatten()
    }

    /// Adds an event to a span of this thread; gives it back with the span when that is no plain one any more.
    pub(super) fn event(self: &Arc<Scopes>, key: u64, event: Event) -> Option<(Span, Event)> {
        self.here(|local| {
            let place = local.find(key)?;
            let said = local.places[place].said();
            if let Some(span) = &said.shared {
                return Some((span.clone(), event));
            }
            match said.events.len() < EVENTS_KEPT {
                true => said.events.push(event),
                false => said.dropped_events += 1,
            }
            None
        })
        .flatten()
    }

    /// The [`Span`] of a scope of this thread. Each that this makes is told to `opened`.
    pub(super) fn share(self: &Arc<Scopes>, key: u64, opened: &dyn Fn(&Span)) -> Option<Span> {
        self.here(|local| local.share(key, opened)).flatten()
    }

    /// Makes spans of what all threads have open by scopes, of those whose name `wanted` takes.
    pub(super) fn share_all(
        self: &Arc<Scopes>,
        wanted: &dyn Fn(&str) -> bool,
        opened: &dyn Fn(&Span),
    ) {
        // Forked, this thread may not be known yet.
        self.here(|_| ());
        for thread in self.threads() {
            thread.visit(|local| {
                let open = local.places.iter().filter(|place| {
                    place.state == State::Open && place.shared().is_none() && wanted(&place.name)
                });
                for key in open.map(|open| open.key).collect::<Vec<_>>() {
                    local.share(key, opened);
                }
            });
        }
    }

    /// The latest span of this thread.
    pub(super) fn latest(self: &Arc<Scopes>, opened: &dyn Fn(&Span)) -> Option<Span> {
        self.here(|local| match &local.latest {
            Latest::None => None,
            Latest::Scope(key) => local.share(*key, opened),
            Latest::Span(span) => Some(span.clone()),
        })
        .flatten()
    }

    pub(super) fn set_latest(self: &Arc<Scopes>, span: Option<&Span>) {
        let latest = span.map_or(Latest::None, |span| Latest::Span(span.clone()));
        let replaced = self.here(|local| std::mem::replace(&mut local.latest, latest));
        drop(replaced);
    }

    /// After `span`, if that is the latest of this thread, comes what it is a part of.
    pub(super) fn leave(self: &Arc<Scopes>, span: &Span) {
        let replaced = self.here(|local| match &local.latest {
            Latest::Span(latest) if latest == span => {
                let active = Latest::active(span);
                Some(std::mem::replace(&mut local.latest, active))
            }
            _ => None,
        });
        drop(replaced);
    }

    /// Hands over what has ended in this thread, so that what is exported next comes after it.
    pub(super) fn bring(self: &Arc<Scopes>) {
        let room = self.room();
        if let Some(batch) = self.here(|local| local.take(room)) {
            self.let_go(self.hand_over(batch));
        }
    }

    /// Hands over what has ended in all threads. Cost: some µs for each that began or ended a span since the last time.
    pub(super) fn collect(&self) {
        for thread in self.threads() {
            // Made before the thread may have to wait.
            let mut room = self.room();
            let left = thread.visit_for_news(|local| match local.ended {
                0 => Left::default(),
                // Here, so that nothing that the thread exports next comes before.
                _ => self.hand_over(local.take(std::mem::take(&mut room))),
            });
            self.let_go(left.unwrap_or_default());
            self.recycle(room);
        }
    }

    fn threads(&self) -> Vec<Visitor<Local>> {
        self.threads.lock().0.clone()
    }

    fn hand_over(&self, batch: Batch) -> Left {
        let mut left = Left::default();
        match self.queues.split_last() {
            Some((last, others)) if batch.ended > 0 => {
                for queue in others {
                    left.refused.extend(queue.push_ended(batch.clone()));
                }
                left.refused.extend(last.push_ended(batch));
            }
            _ => left.places = batch.places,
        }
        left
    }

    fn let_go(&self, left: Left) {
        drop(left.refused);
        self.recycle(left.places);
    }

    /// Places for a batch.
    fn room(&self) -> Places {
        let spare = self.spare.lock().0.pop();
        spare.unwrap_or_else(Places::for_a_batch)
    }

    /// Takes what is left of a batch, to fill it again.
    pub(super) fn recycle(&self, mut places: Places) {
        if !(1..=SPARE_PLACES).contains(&places.all.len()) {
            return;
        }
        places.clear();
        let mut spare = self.spare.lock();
        if spare.0.len() < SPARE {
            spare.0.push(places);
        }
    }

    /// `None` in a thread that is about to end, whose own memory is gone. `look` must not come back here.
    #[inline]
    fn here<T>(self: &Arc<Scopes>, look: impl FnOnce(&mut Local) -> T) -> Option<T> {
        let is_here = |here: &Here| here.key == self.key && here.generation == fork::generation();
        let here = HERE.try_with(|all| {
            let mut known = all.borrow();
            let at = match known.iter().position(is_here) {
                Some(at) => at,
                None => {
                    drop(known);
                    self.arrive(all);
                    known = all.borrow();
                    known.iter().position(is_here)?
                }
            };
            known[at].local.with(look)
        });
        here.ok().flatten()
    }

    /// A thread's first span of this recorder, in this process.
    #[cold]
    fn arrive(self: &Arc<Scopes>, all: &RefCell<Vec<Here>>) {
        let mut known = std::mem::take(&mut *all.borrow_mut());
        let parents = known.iter().position(|here| here.key == self.key);
        let here = parents
            .and_then(|at| known.swap_remove(at).come_back())
            .unwrap_or_else(|| Here {
                key: self.key,
                generation: fork::generation(),
                local: Owner::new(Local {
                    thread: fork::thread_id(),
                    ..Local::default()
                }),
                scopes: Arc::downgrade(self),
            });
        self.threads.lock().0.push(here.local.visitor());
        // In a child, the queues' threads are to be started.
        self.asleep.store(true, Ordering::Relaxed);
        known.push(here);
        // Of recorders that are no more.
        let (kept, over): (_, Vec<Here>) = known
            .into_iter()
            .partition(|here| here.scopes.strong_count() > 0);
        *all.borrow_mut() = kept;
        drop(over);
    }
}

impl Here {
    /// In a forked child: its thread goes on with what its parent's had open. What that had ended, the parent brings out.
    fn come_back(mut self) -> Option<Here> {
        if !self.local.is_whole() {
            return None;
        }
        self.generation = fork::generation();
        self.local.with(|local| {
            local.thread = fork::thread_id();
            local.take(Places::default())
        });
        Some(self)
    }
}
