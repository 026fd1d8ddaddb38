//! What was asked of the device and by which wait it was done: the work set.
//!
//! The device is not seen. Streams are in-order queues: a wait for a stream means that all that was issued on it before
//! is done; a wait for an event, all before its record; a wait for the device or a legacy stream, all of the context.
//! `cudaStreamWaitEvent` makes a stream depend on another up to an event's record, so that a wait on the one covers that
//! part of the other. Launches on a capturing stream are nodes of its graph, not work. Source: CUDA C++ Programming Guide
//! 12, "Asynchronous Concurrent Execution"; CUDA Runtime API, "Stream synchronization behavior".

use std::collections::VecDeque;

use warptrace_model::{BootNanos, Device, Stream};

use crate::capped::Capped;

/// A stream of a process, on a device as far as it is known.
pub(crate) type StreamKey = (Option<Device>, Stream);

/// Kinds of copy, by `cudaMemcpyKind`; what is higher counts as 4 (by pointer).
pub(crate) const COPY_KINDS: usize = 5;

/// Work, counted. As a stream's state it counts from the stream's first call on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Issued {
    /// Kernels, and nodes of graphs.
    pub(crate) launches: u64,
    pub(crate) bytes: [u64; COPY_KINDS],
    /// How long the launch calls took on the host, ns, and collectives called: counted for who asks for it
    /// ([`Work::launch_took`], [`Work::collective`]).
    pub(crate) launch_nanos: u64,
    pub(crate) collectives: u64,
}

impl Issued {
    fn max(&mut self, other: &Issued) {
        self.launches = self.launches.max(other.launches);
        self.launch_nanos = self.launch_nanos.max(other.launch_nanos);
        self.collectives = self.collectives.max(other.collectives);
        for (a, b) in self.bytes.iter_mut().zip(other.bytes) {
            *a = (*a).max(b);
        }
    }

    fn add_difference(&mut self, to: &Issued, from: &Issued) {
        self.launches += to.launches.saturating_sub(from.launches);
        let took = to.launch_nanos.saturating_sub(from.launch_nanos);
        self.launch_nanos = self.launch_nanos.saturating_add(took);
        self.collectives += to.collectives.saturating_sub(from.collectives);
        for (i, b) in self.bytes.iter_mut().enumerate() {
            *b = b.saturating_add(to.bytes[i].saturating_sub(from.bytes[i]));
        }
    }
}

/// The work that a wait covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct WorkSet {
    pub(crate) work: Issued,
    /// Entry of its first launch.
    pub(crate) first_launch: Option<BootNanos>,
}

#[derive(Default)]
struct StreamState {
    issued: Issued,
    done: Issued,
    /// When the first launch after a possible completed point was made: launches before it, time. Ascending.
    marks: VecDeque<(u64, u64)>,
    mark_next: bool,
    /// Other streams that this one waits for, up to a point.
    after: Vec<(StreamKey, Issued)>,
    /// The capture that it takes part in.
    capture: Option<u64>,
    listed: bool,
}

/// No copy moves more: a larger size is a broken argument.
const MOST_BYTES: u64 = 1 << 48;
/// Completed points are remembered for so many unfinished events of one stream.
const MARKS: usize = 64;
/// Streams that one stream is known to wait for.
const AFTER: usize = 8;

impl StreamState {
    fn finish(&mut self, to: &Issued, set: &mut WorkSet) -> u64 {
        let before = self.done.launches;
        set.work.add_difference(to, &self.done);
        if to.launches > self.done.launches
            && let Some(&(_, at)) = self.marks.front()
        {
            let at = BootNanos(at);
            set.first_launch = Some(set.first_launch.map_or(at, |f| f.min(at)));
        }
        self.done.max(to);
        while self.marks.len() > 1 && self.marks[1].0 <= self.done.launches {
            self.marks.pop_front();
        }
        if self.done.launches >= self.issued.launches {
            self.marks.clear();
        }
        self.done.launches - before
    }
}

struct EventMark {
    stream: StreamKey,
    issued: Issued,
    after: Vec<(StreamKey, Issued)>,
    capture: Option<u64>,
}

/// The streams, events and captures of one process.
pub(crate) struct Work {
    streams: Capped<StreamKey, StreamState>,
    events: Capped<u64, EventMark>,
    /// Launches seen in captures that are open.
    captures: Capped<u64, u64>,
    next_capture: u64,
    /// Streams with unfinished work.
    unfinished: Vec<StreamKey>,
    /// Launches not known to be done.
    pub(crate) outstanding: u64,
}

impl Work {
    pub(crate) fn new(streams: usize, events: usize) -> Work {
        Work {
            streams: Capped::new(streams),
            events: Capped::new(events),
            captures: Capped::new(64),
            next_capture: 0,
            unfinished: Vec::new(),
            outstanding: 0,
        }
    }

    pub(crate) fn evicted(&self) -> u64 {
        self.streams.evicted + self.events.evicted
    }

    fn stream(&mut self, key: StreamKey) -> &mut StreamState {
        let s = self.streams.entry(key, StreamState::default);
        if !s.listed {
            s.listed = true;
            self.unfinished.push(key);
        }
        s
    }

    /// `n` kernels were launched at `at`. True when they are work, false when they were captured.
    pub(crate) fn launch(&mut self, key: StreamKey, n: u64, at: BootNanos) -> bool {
        let s = self.stream(key);
        if let Some(c) = s.capture {
            *self.captures.entry(c, || 0) += n;
            return false;
        }
        if s.mark_next || s.marks.is_empty() {
            s.mark_next = false;
            if s.marks.len() == MARKS {
                s.marks.remove(1);
            }
            s.marks.push_back((s.issued.launches, at.0));
        }
        s.issued.launches += n;
        self.outstanding += n;
        true
    }

    /// The launch that was just counted took `nanos` on the host.
    pub(crate) fn launch_took(&mut self, key: StreamKey, nanos: u64) {
        let took = &mut self.stream(key).issued.launch_nanos;
        *took = took.saturating_add(nanos);
    }

    /// A collective was called on a stream.
    pub(crate) fn collective(&mut self, key: StreamKey) {
        let s = self.stream(key);
        if s.capture.is_none() {
            s.issued.collectives += 1;
        }
    }

    /// `bytes` are copied on a stream.
    pub(crate) fn copy(&mut self, key: StreamKey, kind: u8, bytes: u64) {
        let s = self.stream(key);
        if s.capture.is_none() {
            let b = &mut s.issued.bytes[usize::from(kind).min(COPY_KINDS - 1)];
            *b = b.saturating_add(bytes.min(MOST_BYTES));
        }
    }

    pub(crate) fn event_recorded(&mut self, event: u64, stream: StreamKey) {
        let s = self.stream(stream);
        s.mark_next = true;
        let mark = EventMark {
            stream,
            issued: s.issued,
            after: s.after.clone(),
            capture: s.capture,
        };
        self.events.insert(event, mark);
    }

    pub(crate) fn stream_waits_for_event(&mut self, stream: StreamKey, event: u64) {
        let Some(e) = self.events.get(&event) else {
            return;
        };
        let (from, issued, capture) = (e.stream, e.issued, e.capture);
        let mut more = e.after.clone();
        more.push((from, issued));
        let s = self.stream(stream);
        if capture.is_some() {
            s.capture = capture;
        }
        for (k, i) in more {
            if k == stream {
                continue;
            }
            if let Some((_, have)) = s.after.iter_mut().find(|(other, _)| *other == k) {
                have.max(&i);
            } else if s.after.len() < AFTER {
                s.after.push((k, i));
            }
        }
    }

    pub(crate) fn capture_begins(&mut self, stream: StreamKey) {
        self.next_capture += 1;
        let c = self.next_capture;
        self.captures.insert(c, 0);
        self.stream(stream).capture = Some(c);
    }

    /// The capture that began on `stream` is over: the number of its launches.
    pub(crate) fn capture_ends(&mut self, stream: StreamKey) -> Option<u64> {
        let c = self.stream(stream).capture?;
        for (_, s) in self.streams.iter_mut() {
            if s.capture == Some(c) {
                s.capture = None;
            }
        }
        self.captures.remove(&c)
    }

    /// Whether something was issued on a stream that is not known to be done.
    pub(crate) fn has_more(&mut self, key: StreamKey) -> bool {
        let s = self.stream(key);
        s.issued != s.done
    }

    /// The stream on which `event` was recorded last.
    pub(crate) fn stream_of(&self, event: u64) -> Option<StreamKey> {
        self.events.get(&event).map(|e| e.stream)
    }

    /// All work of one stream is done.
    pub(crate) fn stream_done(&mut self, key: StreamKey) -> WorkSet {
        let s = self.stream(key);
        let to = s.issued;
        let after = std::mem::take(&mut s.after);
        let mut set = WorkSet::default();
        self.finish(key, &to, &mut set);
        for (other, to) in after {
            self.finish(other, &to, &mut set);
        }
        set
    }

    /// All work before the last record of `event` is done.
    pub(crate) fn event_done(&mut self, event: u64) -> WorkSet {
        let Some(e) = self.events.get(&event) else {
            return WorkSet::default();
        };
        let (key, to, after) = (e.stream, e.issued, e.after.clone());
        let mut set = WorkSet::default();
        self.finish(key, &to, &mut set);
        for (other, to) in after {
            self.finish(other, &to, &mut set);
        }
        set
    }

    /// All work on `device` is done.
    pub(crate) fn device_done(&mut self, device: Option<Device>) -> WorkSet {
        let mut set = WorkSet::default();
        // In the order of keys: what is summed up must not depend on the table's order.
        self.unfinished.sort_unstable();
        for key in std::mem::take(&mut self.unfinished) {
            if key.0 != device {
                self.unfinished.push(key);
                continue;
            }
            if let Some(s) = self.streams.get_mut(&key) {
                s.listed = false;
                let to = s.issued;
                s.after.clear();
                self.outstanding = self.outstanding.saturating_sub(s.finish(&to, &mut set));
            }
        }
        set
    }

    fn finish(&mut self, key: StreamKey, to: &Issued, set: &mut WorkSet) {
        if let Some(s) = self.streams.get_mut(&key) {
            self.outstanding = self.outstanding.saturating_sub(s.finish(to, set));
        }
    }
}

/// The work class of `launches`: classes are a quarter wide, single below 9. Class 0 is no work.
///
/// Integers only, so that every machine agrees. Cost: one step a class, 190 for the largest.
pub(crate) fn work_class(launches: u64) -> u16 {
    if launches == 0 {
        return 0;
    }
    let (mut low, mut class) = (1u64, 1u16);
    loop {
        let next = low.saturating_add((low / 4).max(1));
        if launches < next || next == u64::MAX {
            return class;
        }
        (low, class) = (next, class + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: StreamKey = (Some(Device(0)), Stream(0xa));
    const B: StreamKey = (Some(Device(0)), Stream(0xb));

    fn work() -> Work {
        Work::new(16, 16)
    }

    #[test]
    fn a_stream_wait_covers_its_stream_since_the_last_wait() {
        let mut w = work();
        w.launch(A, 3, BootNanos(10));
        w.copy(A, 1, 4096);
        w.launch(B, 5, BootNanos(11));
        let set = w.stream_done(A);
        assert_eq!((set.work.launches, set.work.bytes[1]), (3, 4096));
        assert_eq!(set.first_launch, Some(BootNanos(10)));
        assert_eq!(w.outstanding, 5);
        w.launch(A, 1, BootNanos(20));
        let set = w.device_done(Some(Device(0)));
        assert_eq!(
            (set.work.launches, set.first_launch),
            (6, Some(BootNanos(11)))
        );
        assert_eq!(w.outstanding, 0);
        assert_eq!(w.stream_done(A), WorkSet::default());
    }

    #[test]
    fn an_event_wait_covers_what_was_issued_before_its_record() {
        let mut w = work();
        w.launch(A, 2, BootNanos(10));
        w.event_recorded(7, A);
        w.launch(A, 4, BootNanos(20));
        assert_eq!(w.event_done(7).work.launches, 2);
        let rest = w.stream_done(A);
        assert_eq!(
            (rest.work.launches, rest.first_launch),
            (4, Some(BootNanos(20)))
        );
        assert_eq!(
            w.event_done(99),
            WorkSet::default(),
            "an event never recorded"
        );
    }

    #[test]
    fn a_wait_covers_the_streams_that_its_stream_waited_for() {
        let mut w = work();
        w.launch(B, 5, BootNanos(5));
        w.event_recorded(7, B);
        w.launch(B, 1, BootNanos(6));
        w.stream_waits_for_event(A, 7);
        w.launch(A, 2, BootNanos(10));
        let set = w.stream_done(A);
        assert_eq!(
            (set.work.launches, set.first_launch),
            (7, Some(BootNanos(5)))
        );
        assert_eq!(w.outstanding, 1);
    }

    #[test]
    fn captured_launches_are_nodes_and_not_work() {
        let mut w = work();
        w.capture_begins(A);
        assert!(!w.launch(A, 1, BootNanos(1)));
        w.event_recorded(7, A);
        w.stream_waits_for_event(B, 7);
        assert!(
            !w.launch(B, 1, BootNanos(2)),
            "a stream that joined the capture"
        );
        assert_eq!(w.capture_ends(A), Some(2));
        assert!(w.launch(B, 1, BootNanos(3)));
        assert_eq!(w.outstanding, 1);
    }

    #[test]
    fn classes_are_a_quarter_wide() {
        assert_eq!((work_class(0), work_class(1), work_class(8)), (0, 1, 8));
        assert_eq!(work_class(42), work_class(48));
        assert_ne!(work_class(42), work_class(53));
        let mut last = 0;
        for n in 0..10_000 {
            let c = work_class(n);
            assert!(c == last || c == last + 1);
            last = c;
        }
        assert!(work_class(u64::MAX) < u16::MAX);
    }
}
