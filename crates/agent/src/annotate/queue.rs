//! Annotations on their way to the pipeline: bounded by bytes, and never waited for by the side that fills it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use warptrace_model::Annotation;

pub(super) fn queue(capacity_bytes: usize) -> (Filler, AnnotationReceiver) {
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        news: Condvar::new(),
        capacity_bytes,
    });
    let receiver = AnnotationReceiver {
        shared: Arc::clone(&shared),
    };
    (Filler { shared }, receiver)
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    news: Condvar,
    capacity_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Annotation>,
    bytes: usize,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server's end.
#[derive(Debug)]
pub(super) struct Filler {
    shared: Arc<Shared>,
}

/// Memory of one in the queue.
fn bytes(annotation: &Annotation) -> usize {
    size_of::<Annotation>() + annotation.labels.heap_bytes()
}

impl Filler {
    /// Hands over what fits of `batch`, and empties it. Returns how many did.
    pub(super) fn push(&self, batch: &mut Vec<Annotation>) -> usize {
        if batch.is_empty() {
            return 0;
        }
        let mut state = self.shared.lock();
        // Nobody waits while there is something.
        let was_empty = state.waiting.is_empty();
        let mut taken = 0;
        for annotation in batch.drain(..) {
            let more = bytes(&annotation);
            if state.bytes + more > self.shared.capacity_bytes {
                break;
            }
            state.bytes += more;
            state.waiting.push_back(annotation);
            taken += 1;
        }
        drop(state);
        if was_empty && taken > 0 {
            self.shared.news.notify_one();
        }
        taken
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.news.notify_one();
    }
}

/// The pipeline's end.
#[derive(Debug)]
pub struct AnnotationReceiver {
    shared: Arc<Shared>,
}

impl AnnotationReceiver {
    /// Takes all that waits, in order of arrival, without waiting itself. Returns how many were appended.
    pub fn drain(&self, into: &mut Vec<Annotation>) -> usize {
        let waiting = {
            let mut state = self.shared.lock();
            state.bytes = 0;
            std::mem::take(&mut state.waiting)
        };
        let taken = waiting.len();
        into.extend(waiting);
        taken
    }

    /// Waits until there is something, the socket has been stopped, or `timeout` is over; then as [`drain`](Self::drain).
    /// `None` when nothing will come any more.
    pub fn drain_timeout(&self, into: &mut Vec<Annotation>, timeout: Duration) -> Option<usize> {
        let state = self.shared.lock();
        let idle = |state: &mut State| state.waiting.is_empty() && !state.closed;
        let waited = self.shared.news.wait_timeout_while(state, timeout, idle);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let over = state.closed && state.waiting.is_empty();
        drop(state);
        (!over).then(|| self.drain(into))
    }
}

#[cfg(test)]
mod tests {
    use warptrace_model::{BootNanos, Labels};

    use super::*;

    fn said(step: u32) -> Annotation {
        Annotation {
            at: BootNanos(u64::from(step)),
            span: None,
            scope: None,
            labels: Labels::from_pairs(&[("step", format!("{step:08}"))]).unwrap(),
            sender: None,
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_what_was_taken_makes_room() {
        let (filler, receiver) = queue(3 * bytes(&said(0)));
        let mut batch: Vec<_> = (0..5).map(said).collect();
        assert_eq!((filler.push(&mut batch), batch.len()), (3, 0));
        batch.push(said(5));
        assert_eq!(filler.push(&mut batch), 0);
        let mut out = Vec::new();
        assert_eq!(receiver.drain(&mut out), 3);
        batch.push(said(6));
        assert_eq!((filler.push(&mut batch), receiver.drain(&mut out)), (1, 1));
        let steps: Vec<_> = out.iter().map(|a| a.at.0).collect();
        assert_eq!(steps, [0, 1, 2, 6]);
    }

    #[test]
    fn the_end_comes_after_everything_that_waited() {
        let (filler, receiver) = queue(1 << 20);
        filler.push(&mut vec![said(1)]);
        drop(filler);
        let (mut out, long) = (Vec::new(), Duration::from_secs(3600));
        assert_eq!(receiver.drain_timeout(&mut out, long), Some(1));
        assert_eq!(receiver.drain_timeout(&mut out, long), None);
    }
}
