//! Exporting behind the program's back: a bounded queue and a thread.
//!
//! Whoever records pushes and goes on: a push is a short lock, and wakes the thread only when that has fallen asleep. A full
//! queue drops what is new, counts it, and the exporter is told once that what it has is not all.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, MutexGuard, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::exporter::{Item, Outlet, exporting};
use super::scopes::{Batch, Plain, Scopes};
use super::{Clock, ExportError};
use crate::fork::{ForkMutex, Inherit};

/// Items that wait, at most. A span is two.
pub const QUEUE_ITEMS: usize = 1 << 16;
/// How long the thread lies down when there is nothing, as long as there was something not long ago.
const NAP: Duration = Duration::from_millis(5);
/// Naps in a row before it sleeps until it is woken.
const NAPS: u32 = 100;

/// What an exporter is given to close when nobody waits for it.
const ALONE: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(super) struct Queue {
    shared: Arc<Shared>,
}

struct Shared {
    outlet: Outlet,
    clock: Arc<dyn Clock>,
    capacity: usize,
    state: ForkMutex<State>,
    dropped: AtomicU64,
    /// What has more for it, unasked.
    source: OnceLock<Weak<Scopes>>,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    /// How many these are.
    waiting: usize,
    /// There is a thread. When it could not be started, the queue fills, and is counted.
    running: bool,
    asleep: bool,
    closing: bool,
    closed: bool,
    /// Nobody waits for the end, so the thread closes the exporter.
    alone: bool,
    /// How many asked for a flush, and how many times all was brought out since.
    flushes_wanted: u64,
    flushes_done: u64,
    bells: Arc<Bells>,
}

#[derive(Default)]
struct Bells {
    /// For the thread: there is something.
    work: Condvar,
    /// For those who wait: a flush or the close is done.
    done: Condvar,
}

impl State {
    /// Not to be kept waiting.
    fn is_pressed(&self, capacity: usize) -> bool {
        self.closing || self.flushes_done < self.flushes_wanted || self.waiting >= capacity / 4
    }
}

impl Inherit for State {
    /// A child begins with nothing: what its parent had queued, its parent brings out.
    fn inherit(parent: Option<&mut State>) -> State {
        State {
            closing: parent.as_ref().is_some_and(|p| p.closing),
            closed: parent.is_some_and(|p| p.closed),
            ..State::default()
        }
    }
}

impl Queue {
    pub(super) fn new(outlet: Outlet, clock: Arc<dyn Clock>, capacity: usize) -> Queue {
        Queue {
            shared: Arc::new(Shared {
                outlet,
                clock,
                capacity: capacity.max(1),
                state: ForkMutex::new(State::default()),
                dropped: AtomicU64::new(0),
                source: OnceLock::new(),
            }),
        }
    }

    /// From now on its thread fetches what scopes have ended.
    pub(super) fn fed_by(&self, scopes: Weak<Scopes>) {
        let _ = self.shared.source.set(scopes);
    }

    pub(super) fn outlet(&self) -> &Outlet {
        &self.shared.outlet
    }

    /// Items that found the queue full.
    pub(super) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn push(&self, item: Item) {
        let mut state = self.shared.state.lock();
        if state.waiting >= self.shared.capacity || state.closing {
            drop(state);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.items.push_back(item);
        self.add(state, 1);
    }

    /// The same, of many. Gives back those that found the queue full, to be let go of.
    pub(super) fn push_ended(&self, mut batch: Batch) -> Vec<Plain> {
        let mut state = self.shared.state.lock();
        let room = match state.closing {
            true => 0,
            false => self.shared.capacity - state.waiting,
        };
        let mut over = Vec::new();
        if batch.ended > room {
            over = batch.split_off_last(batch.ended - room);
            let dropped = &self.shared.dropped;
            dropped.fetch_add(over.len() as u64, Ordering::Relaxed);
        }
        if batch.ended > 0 {
            let count = batch.ended;
            state.items.push_back(Item::Ended(batch));
            self.add(state, count);
        }
        over
    }

    /// There is something to fetch.
    pub(super) fn wake(&self) {
        let state = self.shared.state.lock();
        if !state.closing {
            self.rouse(state);
        }
    }

    fn add(&self, mut state: MutexGuard<'_, State>, count: usize) {
        let was_pressed = state.is_pressed(self.shared.capacity);
        state.waiting += count;
        if !was_pressed && state.is_pressed(self.shared.capacity) {
            state.bells.work.notify_one();
        }
        self.rouse(state);
    }

    fn rouse(&self, mut state: MutexGuard<'_, State>) {
        if !state.running {
            state.running = self.start();
        }
        if state.asleep {
            state.asleep = false;
            state.bells.work.notify_one();
        }
    }

    fn start(&self) -> bool {
        let shared = Arc::clone(&self.shared);
        let name = "wt-spans".to_owned();
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || shared.run());
        if let Err(e) = &thread {
            tracing::error!("no thread to export spans with: {e}");
        }
        thread.is_ok()
    }

    /// Waits until all that was pushed before has been brought out; `false` when that took longer than `patience`.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let mut state = self.shared.state.lock();
        if !state.running {
            return state.items.is_empty();
        }
        state.flushes_wanted += 1;
        let wanted = state.flushes_wanted;
        let bells = Arc::clone(&state.bells);
        state.asleep = false;
        bells.work.notify_one();
        let wait = bells
            .done
            .wait_timeout_while(state, patience, |s| s.flushes_done < wanted);
        wait.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }

    /// Brings out what there is within `patience`, and closes the exporter.
    pub(super) fn close(&self, patience: Duration) -> Result<(), ExportError> {
        let began = Instant::now();
        let mut state = self.shared.state.lock();
        if state.closed {
            return self.shared.outlet.exporter.close(patience);
        }
        state.closing = true;
        let bells = Arc::clone(&state.bells);
        let late = if state.running {
            state.asleep = false;
            bells.work.notify_one();
            let wait = bells
                .done
                .wait_timeout_while(state, patience, |s| !s.closed);
            wait.map_or(true, |(_, timeout)| timeout.timed_out())
        } else {
            state.closed = true;
            false
        };
        if late {
            let left = self.shared.state.lock().waiting;
            return Err(ExportError::new(format!(
                "not done within {patience:?}, {left} records are left"
            ))
            .with_code("close_timed_out"));
        }
        let left = patience.saturating_sub(began.elapsed());
        self.shared.outlet.exporter.close(left)
    }
}

impl Queue {
    /// Lets the thread bring out what there is and close the exporter, whenever that is done.
    pub(super) fn close_later(&self) {
        let mut state = self.shared.state.lock();
        state.closing = true;
        if !state.running {
            drop(state);
            self.shared.close_exporter();
            return;
        }
        state.alone = true;
        state.asleep = false;
        state.bells.work.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        let mut batch = VecDeque::new();
        let mut naps = 0;
        let mut rested = true;
        let mut told_of_drops = false;
        loop {
            self.fetch();
            let mut state = self.state.lock();
            // What is asked for from here on is about later items, too.
            let wanted = state.flushes_wanted;
            if state.items.is_empty() && state.flushes_done == wanted {
                if state.closing {
                    state.closed = true;
                    state.running = false;
                    state.bells.done.notify_all();
                    if state.alone {
                        drop(state);
                        self.close_exporter();
                    }
                    return;
                }
                rested = true;
                let bells = Arc::clone(&state.bells);
                if naps < NAPS {
                    naps += 1;
                    drop(bells.work.wait_timeout(state, NAP));
                } else {
                    state.asleep = true;
                    drop(state);
                    if let Some(scopes) = self.source() {
                        scopes.is_going_to_sleep();
                    }
                    drop(bells.work.wait_while(self.state.lock(), |s| s.asleep));
                    naps = 0;
                }
                continue;
            }
            naps = 0;
            // By batches: whoever records is not to meet us each time.
            if !rested && !state.is_pressed(self.capacity) {
                rested = true;
                let bells = Arc::clone(&state.bells);
                let pressed = |s: &mut State| !s.is_pressed(self.capacity);
                drop(bells.work.wait_timeout_while(state, NAP, pressed));
                continue;
            }
            rested = false;
            std::mem::swap(&mut batch, &mut state.items);
            state.waiting = 0;
            drop(state);
            let source = self.source();
            for item in batch.drain(..) {
                let places = self.outlet.deliver(item, || self.clock.now());
                if let (Some(places), Some(scopes)) = (places, &source) {
                    scopes.recycle(places);
                }
            }
            if !told_of_drops && self.dropped.load(Ordering::Relaxed) > 0 {
                told_of_drops = true;
                let message = "spans were dropped: the exporter does not keep up";
                self.outlet.report(message, || self.clock.now());
            }
            self.flush_exporter();
            if wanted > 0 {
                let mut state = self.state.lock();
                state.flushes_done = wanted;
                state.bells.done.notify_all();
            }
        }
    }

    fn source(&self) -> Option<Arc<Scopes>> {
        self.source.get()?.upgrade()
    }

    fn fetch(&self) {
        if let Some(scopes) = self.source() {
            scopes.collect();
        }
    }

    fn close_exporter(&self) {
        if let Err(e) = exporting(|| self.outlet.exporter.close(ALONE)) {
            tracing::error!(exporter = &*self.outlet.name, "closing failed: {e}");
        }
    }

    fn flush_exporter(&self) {
        if let Err(e) = exporting(|| self.outlet.exporter.flush(Duration::ZERO)) {
            self.outlet.failed(&e, || self.clock.now());
        }
    }
}
