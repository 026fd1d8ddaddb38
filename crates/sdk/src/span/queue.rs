//! Exporting behind the program's back: a bounded queue and a thread.
//!
//! Whoever records pushes and goes on: a push is a short lock, and wakes the thread only when that has fallen asleep. A full
//! queue drops what is new, counts it, and the exporter is told once that what it has is not all.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar};
use std::thread;
use std::time::{Duration, Instant};

use super::exporter::{Item, Outlet, exporting};
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

pub(super) struct Queue {
    shared: Arc<Shared>,
}

struct Shared {
    outlet: Outlet,
    clock: Arc<dyn Clock>,
    capacity: usize,
    state: ForkMutex<State>,
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
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
            }),
        }
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
        if state.items.len() >= self.shared.capacity || state.closing {
            drop(state);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.items.push_back(item);
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
            let left = self.shared.state.lock().items.len();
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
        let mut told_of_drops = false;
        loop {
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
                let bells = Arc::clone(&state.bells);
                if naps < NAPS {
                    naps += 1;
                    drop(bells.work.wait_timeout(state, NAP));
                } else {
                    state.asleep = true;
                    drop(bells.work.wait_while(state, |s| s.asleep));
                    naps = 0;
                }
                continue;
            }
            naps = 0;
            std::mem::swap(&mut batch, &mut state.items);
            drop(state);
            for item in batch.drain(..) {
                self.outlet.deliver(&item, || self.clock.now());
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
