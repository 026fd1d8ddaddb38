//! Which events are stored, when not all are: decided when it is known what they were part of.
//!
//! Events wait for three seconds. By then the steps of inference servers that they belong to have been judged, so that all of a slow
//! one is kept, and not only what follows it ([`Inference::admit`]). What is left out was judged and counted like everything.

use std::collections::VecDeque;

use warptrace_engine::{Admission, Inference};
use warptrace_model::{BootNanos, Event};
use warptrace_store::SessionWriter;

/// The engine judges a second after the end of a step.
const WAIT_NANOS: u64 = 3_000_000_000;
/// Events that wait; of more the oldest are decided on at once.
const WAITING: usize = 1 << 19;

#[derive(Default)]
pub(crate) struct Thinning {
    /// As they came, with the time at which they did.
    waiting: VecDeque<(BootNanos, Vec<Event>)>,
    events: usize,
}

impl Thinning {
    pub(crate) fn take(&mut self, now: BootNanos, events: &[Event]) {
        if !events.is_empty() {
            self.events += events.len();
            self.waiting.push_back((now, events.to_vec()));
        }
    }

    /// Stores what of the events that have waited is worth it.
    pub(crate) fn store(
        &mut self,
        now: BootNanos,
        inference: &mut Inference,
        writer: &mut SessionWriter,
    ) {
        while let Some((taken, _)) = self.waiting.front()
            && (now.since(*taken) >= WAIT_NANOS || self.events > WAITING)
            && let Some((_, events)) = self.waiting.pop_front()
        {
            self.events -= events.len();
            for event in &events {
                if let Admission::Keep { weight } = inference.admit(event) {
                    writer.event(event, weight);
                }
            }
        }
    }

    /// As [`Thinning::store`], of all that waits.
    pub(crate) fn finish(mut self, inference: &mut Inference, writer: &mut SessionWriter) {
        self.store(BootNanos(u64::MAX), inference, writer);
    }
}
