//! Events in the order of time, though producers deliver them in batches and up to a second late.
//!
//! The order is by the end of an event and, at one moment, by what the event says: so it does not depend on the order of
//! delivery, and a replay judges as the live engine did.

use std::collections::BTreeMap;

use warptrace_model::{Annotation, BootNanos, Event, LossReason, ProcessEvent, Thread};

/// No machine is up for 73 years, and recordings whose clock is Unix time, read from files, are earlier than 2043; sums of
/// times up to here stay within 64 bits.
const LAST_NANOS: u64 = 1 << 61;

/// Events wait in slots of 2^24 ns (17 ms), so that taking those whose time has come does not touch the others: at one
/// `advance` every 10 ms an event that waits a second would be looked at a hundred times.
const SLOT_SHIFT: u32 = 24;

/// Holds events until their time has come.
#[derive(Default)]
pub(crate) struct MergeBuffer {
    waiting: BTreeMap<u64, Vec<(u64, Event)>>,
    ready: Vec<(u64, Event)>,
    /// All up to here was handed on.
    pub(crate) watermark: Option<u64>,
}

impl MergeBuffer {
    /// Keeps `event`; says why not when its time was handed on already, or is none.
    pub(crate) fn push(&mut self, event: Event) -> Result<(), LossReason> {
        if event.end().is_some_and(|end| end.0 > LAST_NANOS) {
            return Err(LossReason::Malformed);
        }
        let at = match &event {
            // What is known of a process holds from its start on, of a name from ever on: neither is ever late.
            Event::ProcessInfo(p) => p.start.0,
            Event::ThreadName(_) | Event::FilePath(_) => 0,
            // A loss matters from its begin on: the record that ended it may come long after.
            Event::Lost(l) => l.window.map_or(0, |w| w.start.0),
            // However late one hears of it, units in it are not judged.
            Event::Capture(c) => c.at.0,
            // Counts are sums: they stay exact whenever they come.
            Event::Counts(c) => c.window.end.0,
            other => {
                let at = other.end().map_or(0, |t| t.0);
                if self.watermark.is_some_and(|w| at <= w) {
                    return Err(LossReason::Late);
                }
                at
            }
        };
        self.waiting
            .entry(at >> SLOT_SHIFT)
            .or_default()
            .push((at, event));
        Ok(())
    }

    /// Takes all events up to `cutoff`, in order. Give the vector back by [`MergeBuffer::recycle`].
    pub(crate) fn take(&mut self, cutoff: u64) -> Vec<(u64, Event)> {
        let mut ready = std::mem::take(&mut self.ready);
        let last = cutoff >> SLOT_SHIFT;
        while let Some(slot) = self.waiting.first_entry()
            && *slot.key() < last
        {
            ready.append(&mut slot.remove());
        }
        if let Some(slot) = self.waiting.get_mut(&last) {
            ready.extend(slot.extract_if(.., |(at, _)| *at <= cutoff));
            if slot.is_empty() {
                self.waiting.remove(&last);
            }
        }
        ready.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| rank(x).cmp(&rank(y))));
        if self.watermark.is_none_or(|w| w < cutoff) {
            self.watermark = Some(cutoff);
        }
        ready
    }

    pub(crate) fn recycle(&mut self, mut ready: Vec<(u64, Event)>) {
        ready.clear();
        self.ready = ready;
    }

    /// End of the last event that waits.
    pub(crate) fn last(&self) -> Option<BootNanos> {
        let (_, slot) = self.waiting.last_key_value()?;
        slot.iter().map(|(at, _)| BootNanos(*at)).max()
    }
}

/// Orders events of one moment by what they say.
fn rank(e: &Event) -> (u8, Thread, u64, u64, u64) {
    let none = Thread::default();
    match e {
        Event::ProcessInfo(p) => (
            0,
            Thread::new(p.incarnation.pid.0, 0),
            p.incarnation.start_ticks,
            0,
            0,
        ),
        Event::ThreadName(n) => (1, n.thread, 0, 0, 0),
        Event::FilePath(p) => (2, Thread::new(p.pid.0, 0), p.fd as u64, 0, 0),
        Event::Lost(l) => (
            3,
            none,
            l.reason as u64,
            l.count,
            l.pid.map_or(0, |p| u64::from(p.0)),
        ),
        Event::Capture(c) => (3, none, u64::MAX, u64::from(c.on), 0),
        Event::Process(p) => match *p {
            ProcessEvent::Born { parent, child, .. } => (4, parent, 0, u64::from(child.0), 0),
            ProcessEvent::ThreadBorn { parent, child, .. } => (4, parent, 1, u64::from(child.0), 0),
            ProcessEvent::Exec { pid, .. } => (4, Thread::new(pid.0, 0), 2, 0, 0),
            ProcessEvent::OomKill { victim, .. } => (4, Thread::new(victim.0, 0), 3, 0, 0),
            ProcessEvent::ThreadExit { thread, .. } => (12, thread, 0, 0, 0),
            ProcessEvent::Exit { pid, .. } => (13, Thread::new(pid.0, u32::MAX), 0, 0, 0),
        },
        Event::Slice(s) => (5, s.thread, s.start.0, u64::from(s.cpu.0), 0),
        Event::BlockIo(b) => (6, b.thread, b.start.0, b.sector, b.bytes),
        Event::OffCpu(o) => (7, o.thread, o.start.0, o.runnable, 0),
        Event::Reclaim(r) => (7, r.thread, r.start.0, u64::from(r.cgroup), r.pages),
        Event::Stretch(s) => (8, s.thread, s.start.0, s.running, s.runnable),
        // At one end the inner call comes before the outer: it began later.
        Event::Call(c) => (9, c.thread, !c.start.0, c.op.index() as u64, c.stream.0),
        Event::InFlight(c) => (10, c.thread, c.start.0, c.op.index() as u64, 0),
        Event::Counts(c) => (
            11,
            Thread::new(c.key.pid.0, 0),
            c.key.op.index() as u64,
            c.total,
            c.window.start.0,
        ),
        Event::Retransmit(r) => (11, none, 1, u64::from(r.port), u64::from(r.peer_port)),
        Event::Gpu(g) => (11, none, 2, u64::from(g.device), 0),
        Event::System(s) => (11, none, 3, s.memory_available, 0),
        Event::Annotation(a) => {
            let whose = a.scope.map_or(none, |s| Thread::new(s.pid.0, 0));
            let span = a.span.map_or(0, |s| s.start.0);
            (11, whose, 4, span, what(a))
        }
    }
}

/// A number made of an annotation's labels (FNV-1a), the same in every process.
fn what(a: &Annotation) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for (k, v) in a.labels.iter() {
        for b in k.bytes().chain([0]).chain(v.bytes()).chain([0]) {
            hash = (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use warptrace_model::{Cpu, Slice};

    use super::*;

    fn slice(end: u64, tid: u32) -> Event {
        Event::Slice(Slice {
            thread: Thread::new(1, tid),
            start: BootNanos(end - 1),
            dur: 1,
            cpu: Cpu(0),
        })
    }

    #[test]
    fn events_come_out_by_their_end_whatever_order_they_came_in() {
        let (mut a, mut b) = (MergeBuffer::default(), MergeBuffer::default());
        for e in [slice(5, 1), slice(3, 2), slice(5, 0), slice(9, 1)] {
            a.push(e).unwrap();
        }
        for e in [slice(9, 1), slice(5, 0), slice(5, 1), slice(3, 2)] {
            b.push(e).unwrap();
        }
        let first = a.take(5);
        assert_eq!(first, b.take(5));
        assert_eq!(first.iter().map(|(t, _)| *t).collect::<Vec<_>>(), [3, 5, 5]);
        assert_eq!(a.push(slice(5, 7)), Err(LossReason::Late));
        assert_eq!(a.push(slice(u64::MAX, 7)), Err(LossReason::Malformed));
        assert!(a.push(slice(6, 7)).is_ok());
    }
}
