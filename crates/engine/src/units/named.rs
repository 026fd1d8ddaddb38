//! Units that the job names: its steps, and the requests that it serves.
//!
//! A step is an instant annotation `step=k`, which lasts until the process names another one, or none by an empty name; or a span
//! with that label. A request is a span `request_id=…`; requests overlap, and each is accounted for as if it were alone. A named
//! unit has no wait of its own: its work set is that of the waits that ended in it, and its lead thread the one that waited most
//! often.

use std::collections::VecDeque;

use warptrace_model::record::OpId;
use warptrace_model::{
    Annotation, BootNanos, Device, NamedBy, Pid, Thread, Tid, UnitKey, UnitName, Window,
};

use super::work::{WorkSet, work_class};
use crate::world::window;

/// Waits that are remembered, and steps' intervals.
const WAITS: usize = 16_384;
/// Records are kept this long for spans, which are told when they are over, ns; twice the longest span, when that is more …
const REACH_NANOS: u64 = 60_000_000_000;
/// … up to an hour.
const REACH_MAX_NANOS: u64 = 3_600_000_000_000;

/// A draining wait that came back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waited {
    pub(crate) end: u64,
    pub(crate) tid: Tid,
    pub(crate) op: OpId,
    pub(crate) device: Option<Device>,
    pub(crate) set: WorkSet,
}

/// A unit that is over, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) name: UnitName,
    pub(crate) window: Window,
    pub(crate) class: u16,
}

/// The waits of one named unit, put together.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Covered {
    pub(crate) lead: Option<Tid>,
    pub(crate) op: Option<OpId>,
    pub(crate) device: Option<Device>,
    pub(crate) set: WorkSet,
}

/// What one process has named.
#[derive(Default)]
pub(crate) struct Named {
    /// The step that goes on: since when.
    open: Option<(u64, Box<str>)>,
    /// By end.
    waits: VecDeque<Waited>,
    /// Where steps were, by end; steps that follow each other are one.
    steps: VecDeque<Window>,
    /// How far back spans may begin, ns; 0 while none was heard.
    reach: u64,
    /// The one that was waited for last: a unit without a wait is compared with the others.
    device: Option<Device>,
    /// Records from before were given up.
    kept_from: u64,
    heard: bool,
}

impl Named {
    /// Takes what the job said: the unit that is over by it, unless it is shorter than a nanosecond. A span that began before
    /// what is kept is refused with its length, ns.
    pub(crate) fn hear(&mut self, a: &Annotation) -> Result<Option<Ended>, u64> {
        let (label, value) = match NamedBy::ALL
            .into_iter()
            .find_map(|n| Some((n, a.labels.get(n.label())?)))
        {
            Some(found) => found,
            None => return Ok(None),
        };
        let ended = |value: Box<str>, window: Window, class: u16| Ended {
            name: UnitName { label, value },
            window,
            class,
        };
        self.heard = true;
        let Some(span) = a.span else {
            return Ok((label == NamedBy::Step)
                .then(|| self.step(a.at.0, value))
                .flatten()
                .map(|(w, v)| ended(v, w, UnitKey::CLASS_OF_STEPS)));
        };
        let length = a.at.since(span.start);
        self.reach = length
            .saturating_mul(2)
            .clamp(self.reach.max(REACH_NANOS), REACH_MAX_NANOS);
        if span.start.0 < self.kept_from {
            return Err(length);
        }
        if span.nanos() == 0 {
            return Ok(None);
        }
        let class = match label {
            NamedBy::Step => {
                self.stepped(span);
                UnitKey::CLASS_OF_STEPS
            }
            NamedBy::Request => UnitKey::class_of_requests(work_class(tokens(a))),
        };
        Ok(Some(ended(value.into(), span, class)))
    }

    /// A step begins at `at`; the one before is over. With an empty name none begins.
    fn step(&mut self, at: u64, value: &str) -> Option<(Window, Box<str>)> {
        if let Some((_, open)) = &self.open
            && **open == *value
        {
            return None;
        }
        let (since, before) = match value.is_empty() {
            true => self.open.take(),
            false => self.open.replace((at, value.into())),
        }?;
        let w = window(since, at.max(since));
        self.stepped(w);
        (w.nanos() > 0).then_some((w, before))
    }

    fn stepped(&mut self, w: Window) {
        if let Some(last) = self.steps.back_mut()
            && last.end >= w.start
        {
            last.end = last.end.max(w.end);
            last.start = last.start.min(w.start);
            return;
        }
        if self.steps.len() == WAITS {
            self.steps.pop_front();
        }
        self.steps.push_back(w);
    }

    /// A step that never ended, at the end of its process or of the recording.
    pub(crate) fn unended(&mut self) -> bool {
        self.open.take().is_some()
    }

    pub(crate) fn waited(&mut self, w: Waited) {
        self.device = w.device.or(self.device);
        if !self.heard {
            return;
        }
        if self.waits.len() == WAITS {
            self.waits.pop_front();
        }
        self.waits.push_back(w);
    }

    /// The waits that ended in `w`. Cost: O(waits since its begin).
    pub(crate) fn covered(&self, w: Window) -> Covered {
        let mut c = Covered::default();
        let mut leads: Vec<(Tid, u32)> = Vec::new();
        let from = self.waits.partition_point(|x| x.end <= w.start.0);
        for x in self
            .waits
            .iter()
            .skip(from)
            .take_while(|x| x.end <= w.end.0)
        {
            match leads.iter_mut().find(|(t, _)| *t == x.tid) {
                Some((_, n)) => *n += 1,
                None => leads.push((x.tid, 1)),
            }
            c.op = Some(x.op);
            c.device = c.device.or(x.device);
            c.set.work.launches = c.set.work.launches.saturating_add(x.set.work.launches);
            for (sum, b) in c.set.work.bytes.iter_mut().zip(x.set.work.bytes) {
                *sum = sum.saturating_add(b);
            }
            if let Some(f) = x.set.first_launch {
                // What was launched before the unit began was outstanding from its begin on.
                let f = BootNanos(f.0.max(w.start.0));
                c.set.first_launch = Some(c.set.first_launch.map_or(f, |at| at.min(f)));
            }
        }
        c.lead = leads
            .into_iter()
            .max_by_key(|(tid, n)| (*n, std::cmp::Reverse(*tid)))
            .map(|(tid, _)| tid);
        c.device = c.device.or(self.device);
        c
    }

    /// Whether an inferred unit lies, in part, in steps that the job names itself.
    pub(crate) fn has_steps_in(&self, w: Window) -> bool {
        let open = self
            .open
            .as_ref()
            .is_some_and(|(since, _)| *since < w.end.0);
        let after = self.steps.partition_point(|s| s.end <= w.start);
        open || self.steps.get(after).is_some_and(|s| s.overlap(&w) > 0)
    }

    /// From when on the process's records are needed, at `now`.
    pub(crate) fn needs_from(&self, now: u64) -> u64 {
        let open = self.open.as_ref().map_or(u64::MAX, |(since, _)| *since);
        let spans = if self.reach > 0 {
            now.saturating_sub(self.reach)
        } else {
            u64::MAX
        };
        open.min(spans)
    }

    pub(crate) fn prune(&mut self, before: u64, now: u64) {
        let before = self.needs_from(now).min(before);
        self.kept_from = self.kept_from.max(before);
        while self.waits.front().is_some_and(|w| w.end <= before) {
            self.waits.pop_front();
        }
        while self.steps.front().is_some_and(|w| w.end.0 <= before) {
            self.steps.pop_front();
        }
    }
}

/// Tokens that a request read and wrote, as far as its labels say.
fn tokens(a: &Annotation) -> u64 {
    let count = |key| a.labels.get(key).and_then(|v| v.parse::<u64>().ok());
    count("prompt_len")
        .unwrap_or(0)
        .saturating_add(count("output_len").unwrap_or(0))
}

/// The thread whose time a named unit's is.
pub(crate) fn lead(pid: Pid, covered: &Covered) -> Thread {
    // Who waits for nothing is led by its main thread.
    Thread {
        pid,
        tid: covered.lead.unwrap_or(Tid(pid.0)),
    }
}
