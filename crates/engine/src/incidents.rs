//! Slow units of one key and one cause, close to each other, are one incident; and how an incident is told.
//!
//! An incident that stays small is told when it is over, together with others of its kind that come soon after it (a storm
//! every fiftieth step is one finding, not a hundred). One that grows past LOW is told while it lasts.

use std::collections::VecDeque;

use warptrace_model::record::OpId;
use warptrace_model::{
    Blame, Category, Cause, Evidence, Finding, FindingId, FindingKind, Place, Severity, Thread,
    Tid, UnitKey, UnitSpan, Window,
};

use crate::baseline::Usual;
use crate::blame::{CAUSES, UnitBlame, cause_of, main_cause};
use crate::partition::{About, Hint, add_hint};
use crate::thresholds::FindingRules;
use crate::units::Measured;
use crate::world::World;

/// Hints kept of one incident.
const HINTS: usize = 64;

/// One case, as evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    cause: Cause,
    hint: Hint,
}

/// Slow units, summed up.
#[derive(Debug, Clone)]
pub(crate) struct Incident {
    pub(crate) key: UnitKey,
    /// What its units have in common.
    pub(crate) cause: Cause,
    lead: Thread,
    op: Option<OpId>,
    window: Window,
    units: UnitSpan,
    worst_excess: u64,
    usual: Usual,
    exposed: [u64; CAUSES],
    lost: [u64; CAUSES],
    /// The units, or the incidents of a series, of the stretch that is graded, and their excess.
    recent: VecDeque<(Window, u64)>,
    severity: Severity,
    hints: Vec<Hint>,
    cases: Vec<Case>,
    clock: Option<(u32, u32)>,
    /// Beyond the usual, over all its units.
    more_launches: u64,
    more_bytes: u64,
    pub(crate) shifted: bool,
    /// Ordinary units of the key when the last slow one came.
    pub(crate) ordinary: u64,
    pub(crate) dirty: bool,
}

impl Incident {
    pub(crate) fn new(key: UnitKey, cause: Cause, m: &Measured) -> Incident {
        Incident {
            key,
            cause,
            lead: m.lead,
            op: m.op,
            window: m.window,
            units: UnitSpan {
                first: m.number,
                last: m.number,
                slow: 0,
                worst: m.number,
            },
            worst_excess: 0,
            usual: Usual::default(),
            exposed: [0; CAUSES],
            lost: [0; CAUSES],
            recent: VecDeque::new(),
            severity: Severity::Low,
            hints: Vec::new(),
            cases: Vec::new(),
            clock: None,
            more_launches: 0,
            more_bytes: 0,
            shifted: false,
            ordinary: 0,
            dirty: false,
        }
    }

    pub(crate) fn start(&self) -> u64 {
        self.window.start.0
    }

    pub(crate) fn end(&self) -> u64 {
        self.window.end.0
    }

    pub(crate) fn severity(&self) -> Severity {
        self.severity
    }

    pub(crate) fn excess(&self) -> u64 {
        self.exposed.iter().sum()
    }

    /// Big enough to be told at all.
    pub(crate) fn counts(&self, rules: &FindingRules) -> bool {
        self.excess() >= rules.min_excess_nanos
    }

    /// Big enough to be told while it lasts, and on its own.
    pub(crate) fn stands_alone(&self) -> bool {
        self.severity > Severity::Low
    }

    /// Takes a slow unit in.
    pub(crate) fn add(
        &mut self,
        m: &Measured,
        usual: &Usual,
        blame: &UnitBlame,
        rules: &FindingRules,
    ) {
        let excess: u64 = blame.exposed.iter().sum();
        self.window.end = self.window.end.max(m.window.end);
        self.units.last = self.units.last.max(m.number);
        self.units.slow += 1;
        if excess > self.worst_excess {
            self.worst_excess = excess;
            self.units.worst = m.number;
            self.op = m.op;
            self.lead = m.lead;
        }
        self.usual = *usual;
        for i in 0..CAUSES {
            self.exposed[i] += blame.exposed[i];
            self.lost[i] += blame.lost[i];
        }
        if m.clock.is_some() {
            self.clock = m.clock;
        }
        let worth = blame.lost.iter().sum::<u64>() / 10;
        let waited_more = m.parts[Category::DeviceWait] > usual.parts[Category::DeviceWait];
        for h in &m.hints {
            let cause = shows(h);
            if cause_of(h.category).is_none() && !waited_more {
                continue;
            }
            if blame.lost[cause as usize] > 0 {
                add_hint(&mut self.hints, HINTS, *h);
            }
            if blame.lost[cause as usize] > worth {
                self.case(Case { cause, hint: *h }, rules.evidence);
            }
        }
        let more = |now: u64, usual: u64| now.saturating_sub(usual);
        self.more_launches += more(m.facts.launches, usual.facts.launches);
        let bytes = m.facts.bytes.iter().zip(usual.facts.bytes);
        for (b, u) in bytes {
            self.more_bytes = self.more_bytes.saturating_add(more(*b, u));
        }
        self.recent.push_back((m.window, excess));
        self.grade(rules, rules.severity_window_nanos);
        let huge = m.dur() >= rules.high_unit_nanos
            && usual.median > 0
            && m.dur() >= rules.high_unit_factor.saturating_mul(usual.median);
        if huge {
            self.severity = self.severity.max(Severity::High);
        }
        self.dirty = true;
    }

    /// From now on it stands for a series of small incidents, and is graded as one whole.
    pub(crate) fn begin_series(&mut self) {
        self.recent.clear();
        self.recent.push_back((self.window, self.excess()));
    }

    /// Takes in a later incident of the same key and cause. It must have begun a series.
    pub(crate) fn absorb(&mut self, other: Incident, rules: &FindingRules) {
        self.window.end = self.window.end.max(other.window.end);
        self.units.last = self.units.last.max(other.units.last);
        self.units.slow += other.units.slow;
        if other.worst_excess > self.worst_excess {
            self.worst_excess = other.worst_excess;
            self.units.worst = other.units.worst;
            self.op = other.op;
            self.lead = other.lead;
        }
        self.usual = other.usual;
        for i in 0..CAUSES {
            self.exposed[i] += other.exposed[i];
            self.lost[i] += other.lost[i];
        }
        self.clock = other.clock.or(self.clock);
        self.more_launches += other.more_launches;
        self.more_bytes = self.more_bytes.saturating_add(other.more_bytes);
        for h in other.hints {
            add_hint(&mut self.hints, HINTS, h);
        }
        for c in other.cases {
            self.case(c, rules.evidence);
        }
        self.recent
            .push_back((other.window, other.exposed.iter().sum()));
        self.grade(rules, rules.recur_nanos);
        self.severity = self.severity.max(other.severity);
        self.shifted |= other.shifted;
        self.dirty = true;
    }

    /// Keeps the longest cases, those of the incident's own cause before others.
    fn case(&mut self, c: Case, keep: usize) {
        let own = self.cause;
        let rank = |c: &Case| {
            let longest = &c.hint.longest;
            (
                c.cause != own,
                std::cmp::Reverse(longest.nanos()),
                longest.start,
                c.cause,
            )
        };
        let at = self.cases.partition_point(|have| rank(have) <= rank(&c));
        self.cases.insert(at, c);
        self.cases.truncate(keep);
    }

    /// Severity never falls: it is that of the worst stretch of `length` ns.
    fn grade(&mut self, rules: &FindingRules, length: u64) {
        let Some((last, _)) = self.recent.back().copied() else {
            return;
        };
        let from = last.end.minus(length);
        while self.recent.len() > 1 && self.recent.front().is_some_and(|(w, _)| w.end <= from) {
            self.recent.pop_front();
        }
        let begin = self.recent.front().map_or(last.start, |(w, _)| w.start);
        let span = last.end.since(begin).max(length);
        let lost: u64 = self.recent.iter().map(|(_, e)| *e).sum();
        let fraction = lost as f64 / span as f64;
        let severity = if fraction >= rules.high_fraction {
            Severity::High
        } else if fraction >= rules.medium_fraction {
            Severity::Medium
        } else {
            Severity::Low
        };
        self.severity = self.severity.max(severity);
    }

    fn detail(&self, world: &World, cause: Cause) -> String {
        let a_unit = |sum: u64| sum / self.units.slow.max(1);
        match cause {
            Cause::Copy if self.more_bytes > 0 => {
                format!(
                    "{} more bytes copied a unit than usual",
                    a_unit(self.more_bytes)
                )
            }
            Cause::GpuWork => format!(
                "{} more launches a unit, beside the usual {}",
                a_unit(self.more_launches),
                self.usual.facts.launches
            ),
            _ => detail(world, cause, &self.hints, self.clock, self.lead),
        }
    }

    pub(crate) fn finding(&self, world: &World, rules: &FindingRules) -> Finding {
        let cause = main_cause(&self.exposed);
        let excess = self.excess();
        let mut blame: Vec<Blame> = Cause::ALL
            .into_iter()
            .filter(|c| {
                let i = *c as usize;
                *c != Cause::Unexplained && (self.exposed[i] > 0 || self.lost[i] > 0)
            })
            .map(|c| Blame {
                cause: c,
                ns: self.exposed[c as usize],
                lost_ns: self.lost[c as usize],
                detail: self.detail(world, c),
            })
            .collect();
        blame.sort_by_key(|b| (std::cmp::Reverse((b.ns, b.lost_ns)), b.cause));
        let u = Cause::Unexplained as usize;
        blame.push(Blame {
            cause: Cause::Unexplained,
            ns: self.exposed[u],
            lost_ns: self.lost[u],
            detail: String::new(),
        });
        let second = blame
            .iter()
            .filter(|b| b.cause != cause && b.cause != Cause::Unexplained)
            .find(|b| b.ns as f64 >= rules.second_fraction * excess as f64 && b.ns > 0)
            .map(|b| b.cause);
        Finding {
            id: finding_id(
                &self.key,
                self.cause,
                FindingKind::Incident,
                self.window.start.0,
            ),
            kind: FindingKind::Incident,
            severity: self.severity,
            cause,
            second,
            key: self.key,
            op: self.op,
            tid: self.lead.tid,
            comm: world.name(self.lead).to_owned(),
            place: self.op.map(place),
            window: self.window,
            units: self.units,
            shifted: self.shifted,
            baseline_ns: self.usual.total,
            baseline_units: self.usual.units,
            excess_ns: excess,
            blame,
            evidence: self
                .cases
                .iter()
                .map(|c| evidence(world, &c.hint))
                .collect(),
        }
    }
}

/// The cause that a hint is evidence of.
pub(crate) fn shows(h: &Hint) -> Cause {
    match (cause_of(h.category), h.about) {
        (Some(cause), _) => cause,
        (None, About::Process(_)) => Cause::GpuContention,
        // A long wait shows nothing but itself.
        (None, _) => Cause::Unexplained,
    }
}

/// Where in the job: the op alone; who has stacks adds the line.
pub(crate) fn place(op: OpId) -> Place {
    Place {
        file: None,
        line: None,
        function: None,
        op: Some(op),
    }
}

/// A hash of what a finding is about: FNV-1a, so that it is the same on every machine and in every version.
pub(crate) fn finding_id(key: &UnitKey, cause: Cause, kind: FindingKind, start: u64) -> FindingId {
    let stream = match key.stream {
        warptrace_model::StreamScope::One(s) => s.0,
        warptrace_model::StreamScope::Many => u64::MAX,
    };
    let words = [
        u64::from(key.process.pid.0),
        key.process.start_ticks,
        key.device.map_or(u64::MAX, |d| u64::from(d.0)),
        stream,
        key.kind as u64,
        u64::from(key.class),
        cause as u64,
        kind as u64,
        start,
    ];
    let mut h = 0xcbf2_9ce4_8422_2325u64;
    for b in words.into_iter().flat_map(u64::to_le_bytes) {
        h = (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    }
    FindingId(h)
}

/// What a cause's hints say in a few words; empty when they say nothing.
pub(crate) fn detail(
    world: &World,
    cause: Cause,
    hints: &[Hint],
    clock: Option<(u32, u32)>,
    lead: Thread,
) -> String {
    let of = |category: Category| {
        let mut found: Vec<&Hint> = hints.iter().filter(|h| h.category == category).collect();
        found.sort_by_key(|h| (std::cmp::Reverse(h.ns), h.about));
        found
    };
    match cause {
        Cause::RunQueueWait => occupants(world, &of(Category::RunQueueWait)),
        Cause::CpuQuota => match of(Category::CpuQuota).first() {
            Some(h) => format!(
                "the CPU quota of its cgroup held it back for {}",
                time(h.ns)
            ),
            None => String::new(),
        },
        Cause::DiskWait => match of(Category::DiskWait).first() {
            Some(h) => disk(world, h),
            None => String::new(),
        },
        Cause::LaunchGap => {
            let mut found = of(Category::LaunchGap);
            found.retain(|h| h.chain.threads().len() > 1);
            match found.first() {
                Some(h) => format!(
                    "{} ran for {}, and it was waited for",
                    last_name(world, h),
                    time(h.ns)
                ),
                None => format!(
                    "{} ran its own code instead of feeding the device",
                    label(world, lead)
                ),
            }
        }
        Cause::LockWait => match of(Category::LockWait).first() {
            Some(h) => match h.about {
                About::Waker(w) if w.tid != crate::partition::NOBODY => {
                    format!("woken by {}", label(world, w))
                }
                _ => String::new(),
            },
            None => String::new(),
        },
        Cause::NetworkWait => match of(Category::NetworkWait).first() {
            Some(h) => file(world, h),
            None => String::new(),
        },
        Cause::Allocator => op_calls(&of(Category::Allocator)),
        Cause::Copy => op_calls(&of(Category::Copy)),
        Cause::GpuContention => {
            let others = of(Category::DeviceWait);
            let other = others.iter().find_map(|h| match h.about {
                About::Process(pid) => Some((pid, h.ns)),
                _ => None,
            });
            match (other, other.map_or("", |(pid, _)| world.process_name(pid))) {
                (Some((pid, ns)), "") => {
                    format!("process {pid} had work on the device for {}", time(ns))
                }
                (Some((pid, ns)), name) => {
                    format!("{name} (pid {pid}) had work on the device for {}", time(ns))
                }
                (None, _) => String::new(),
            }
        }
        Cause::GpuThrottle => match clock {
            Some((clock, usual)) => format!("the clock was {clock} MHz instead of {usual}"),
            None => String::new(),
        },
        _ => String::new(),
    }
}

fn occupants(world: &World, hints: &[&Hint]) -> String {
    // By process: a hog of eight threads is one hog.
    let mut by: Vec<(Thread, u64, Vec<u32>)> = Vec::new();
    for h in hints {
        if let About::Occupant(who, cpu) = h.about {
            match by.iter_mut().find(|(t, ..)| t.pid == who.pid) {
                Some((_, ns, cpus)) => {
                    *ns += h.ns;
                    if !cpus.contains(&cpu.0) {
                        cpus.push(cpu.0);
                    }
                }
                None => by.push((who, h.ns, vec![cpu.0])),
            }
        }
    }
    by.sort_by_key(|(who, ns, _)| (std::cmp::Reverse(*ns), *who));
    let Some((who, ns, mut cpus)) = by.first().cloned() else {
        return "no CPU owner known".to_owned();
    };
    cpus.sort_unstable();
    let cpus: Vec<String> = cpus.iter().map(u32::to_string).collect();
    let name = world.process_name(who.pid);
    let name = if name.is_empty() {
        world.name(who)
    } else {
        name
    };
    let more = match by.len() - 1 {
        0 => String::new(),
        1 => ", and one more".to_owned(),
        n => format!(", and {n} more"),
    };
    format!(
        "{} (pid {}) held cpu {} for {}{more}",
        if name.is_empty() { "a process" } else { name },
        who.pid,
        cpus.join(", "),
        time(ns)
    )
}

fn disk(world: &World, h: &Hint) -> String {
    let what = file(world, h);
    let reads = if world.io_seen && h.requests == 0 {
        "no request of it was seen".to_owned()
    } else if world.io_seen && h.request_nanos < h.ns / 10 {
        "no request was slow: an I/O quota held it back".to_owned()
    } else if h.requests > 0 {
        format!("{} requests", h.requests)
    } else {
        String::new()
    };
    match (what.is_empty(), reads.is_empty()) {
        (false, false) => format!("{what}, {reads}"),
        (true, _) => reads,
        (_, true) => what,
    }
}

fn file(world: &World, h: &Hint) -> String {
    match h.about {
        About::File(pid, Some(fd)) => match world.files.get(&(pid, fd)) {
            Some(path) => path.to_string(),
            None => format!("descriptor {fd} of {pid}"),
        },
        _ => String::new(),
    }
}

fn op_calls(hints: &[&Hint]) -> String {
    match hints.first() {
        Some(h) => match h.about {
            About::Op(op) => format!("{} × {}, {}", h.count, op.name(), time(h.ns)),
            _ => String::new(),
        },
        None => String::new(),
    }
}

fn last_name(world: &World, h: &Hint) -> String {
    label(world, h.chain.threads().last().copied().unwrap_or_default())
}

/// A thread's name, or its number.
pub(crate) fn label(world: &World, t: Thread) -> String {
    let name = world.names.get(&t).map_or("", |n| n);
    if !name.is_empty() {
        return name.to_owned();
    }
    match (world.process_name(t.pid), t.tid == Tid(t.pid.0)) {
        ("", _) => format!("thread {}", t.tid),
        (name, true) => name.to_owned(),
        (name, false) => format!("{name}, thread {}", t.tid),
    }
}

pub(crate) fn evidence(world: &World, h: &Hint) -> Evidence {
    let own = h.chain.threads().last().copied().unwrap_or_default();
    let (who, what) = match h.about {
        About::Occupant(who, cpu) => (who, format!("held cpu {}", cpu.0)),
        About::Process(pid) => (
            Thread {
                pid,
                tid: Tid(pid.0),
            },
            "had work on the device".to_owned(),
        ),
        About::Op(op) => (own, op.name().to_owned()),
        _ => (
            own,
            match h.category {
                Category::DiskWait => "read or wrote a file",
                Category::PageFault => "waited for a page",
                Category::Reclaim => "reclaimed memory",
                Category::LockWait => "waited for a lock",
                Category::NetworkWait => "waited for the network",
                Category::Sleep => "slept",
                Category::CpuQuota => "was held back by its CPU quota",
                Category::LaunchGap => "ran outside CUDA calls",
                other => other.name(),
            }
            .to_owned(),
        ),
    };
    let path = if h.chain.threads().len() > 1 {
        let names: Vec<String> = h.chain.threads().iter().map(|t| label(world, *t)).collect();
        Some(names.join(" ← "))
    } else {
        Some(file(world, h)).filter(|f| !f.is_empty())
    };
    let name = world.name(who);
    Evidence {
        what,
        pid: Some(who.pid.0),
        tid: Some(who.tid.0),
        comm: (!name.is_empty()).then(|| name.to_owned()),
        path,
        start: h.longest.start,
        dur: h.longest.nanos(),
    }
}

/// A duration as people say it: three digits.
pub(crate) fn time(ns: u64) -> String {
    let (value, unit) = match ns {
        1_000_000_000.. => (ns as f64 / 1e9, "s"),
        1_000_000.. => (ns as f64 / 1e6, "ms"),
        1_000.. => (ns as f64 / 1e3, "µs"),
        _ => return format!("{ns} ns"),
    };
    if value < 9.995 {
        format!("{value:.2} {unit}")
    } else if value < 99.95 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}
