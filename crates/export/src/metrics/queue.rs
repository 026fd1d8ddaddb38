//! Snapshots that wait, within bounds, and counts of their points. Plain data: it knows no thread and no collector.
//!
//! When there is no room it is the *oldest* snapshot that goes, the other way round than for spans: counters and histograms are
//! cumulative, so a later snapshot has all that an earlier one counted, and only the levels in between are lost.

use std::collections::VecDeque;
use std::sync::Arc;

use warptrace_model::metric::Snapshot;

use super::MetricSettings;
use crate::{Counts, DropReason};

#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<(Arc<Snapshot>, usize)>,
    bytes: usize,
    /// Of points.
    pub(super) counts: Counts,
    /// Snapshots taken in, ever, and those of them whose fate is known; a flush waits for the second to reach the first.
    taken_in: u64,
    settled: u64,
}

impl Queue {
    /// Takes a snapshot in; what it pushed out is given back, to be freed without the lock. False if it was dropped itself.
    pub(super) fn push(
        &mut self,
        snapshot: Arc<Snapshot>,
        settings: &MetricSettings,
    ) -> (bool, Vec<Arc<Snapshot>>) {
        let (size, points) = (snapshot.size_bytes(), snapshot.len() as u64);
        if size > settings.queue_bytes {
            self.counts.drop(DropReason::QueueFull, points);
            return (false, Vec::new());
        }
        let mut pushed_out = Vec::new();
        while self.waiting.len() >= settings.queue_snapshots.max(1)
            || self.bytes + size > settings.queue_bytes
        {
            let Some(oldest) = self.pop() else { break };
            self.give_up(DropReason::QueueFull, oldest.len() as u64);
            self.settled += 1;
            pushed_out.push(oldest);
        }
        self.waiting.push_back((snapshot, size));
        self.bytes += size;
        self.taken_in += 1;
        self.counts.pending += points;
        (true, pushed_out)
    }

    pub(super) fn pop(&mut self) -> Option<Arc<Snapshot>> {
        let (snapshot, size) = self.waiting.pop_front()?;
        self.bytes -= size;
        Some(snapshot)
    }

    /// Counts points that were taken in and were dropped after all.
    pub(super) fn give_up(&mut self, reason: DropReason, points: u64) {
        self.counts.pending -= points;
        self.counts.drop(reason, points);
    }

    /// Counts points that the collector answered for.
    pub(super) fn answered(&mut self, points: u64, rejected: u64) {
        let rejected = rejected.min(points);
        self.counts.pending -= points;
        self.counts.rejected += rejected;
        self.counts.sent += points - rejected;
    }

    /// The fate of the oldest snapshot that was not settled is known.
    pub(super) fn settle(&mut self) {
        self.settled += 1;
    }

    pub(super) fn taken_in(&self) -> u64 {
        self.taken_in
    }

    pub(super) fn is_settled(&self, up_to: u64) -> bool {
        self.settled >= up_to
    }
}

#[cfg(test)]
mod tests {
    use warptrace_model::metric::{Meter, Number, metric};
    use warptrace_model::{Object, UnixNanos};

    use super::*;

    fn snapshot(at: u64) -> Arc<Snapshot> {
        let mut meter = Meter::new(UnixNanos(1), 10);
        meter
            .set(&metric::STORE_SIZE, Object::new(), Number::Int(1))
            .unwrap();
        Arc::new(meter.snapshot(Object::new(), UnixNanos(at)))
    }

    #[test]
    fn the_oldest_goes_and_every_point_is_counted() {
        let settings = MetricSettings {
            queue_snapshots: 3,
            ..MetricSettings::default()
        };
        let mut queue = Queue::default();
        for at in 0..10 {
            let (taken, pushed_out) = queue.push(snapshot(at), &settings);
            assert!(taken);
            assert_eq!(pushed_out.len(), usize::from(at >= 3));
        }
        assert_eq!(queue.counts.dropped(DropReason::QueueFull), 7);
        assert_eq!((queue.counts.pending, queue.counts.pushed()), (3, 10));
        let first = queue.pop().unwrap();
        assert_eq!(first.families[0].points[0].at, UnixNanos(7));
        assert!(queue.is_settled(7) && !queue.is_settled(8));
    }

    #[test]
    fn bytes_are_bounded_and_what_is_larger_alone_is_dropped() {
        let size = snapshot(1).size_bytes();
        let settings = MetricSettings {
            queue_bytes: 2 * size,
            ..MetricSettings::default()
        };
        let mut queue = Queue::default();
        for at in 0..5 {
            queue.push(snapshot(at), &settings);
            assert!(queue.bytes <= 2 * size);
        }
        assert_eq!((queue.waiting.len(), queue.counts.dropped_in_all()), (2, 3));
        let small = MetricSettings {
            queue_bytes: size - 1,
            ..settings
        };
        let (taken, _) = queue.push(snapshot(9), &small);
        assert!(!taken);
        assert_eq!((queue.waiting.len(), queue.counts.dropped_in_all()), (2, 4));
    }
}
