//! Units against what is usual: slow or not, whose fault, and which incident it belongs to.

use std::collections::BTreeMap;

use warptrace_model::{
    Category, Cause, Finding, FindingId, NamedBy, Parts, Pid, Profile, Severity, Unit, UnitKey,
    UnitKind,
};

use crate::baseline::{Baseline, Usual};
use crate::blame::{Charges, UnitBlame, blame, spread};
use crate::capped::QuickMap;
use crate::cold_start::{self, ColdStart, Start};
use crate::incidents::Incident;
use crate::profile::Totals;
use crate::thresholds::Rules;
use crate::units::{Key, Measured};
use crate::world::World;

/// What is known of one key.
struct KeyState {
    public: UnitKey,
    baseline: Baseline,
    /// Slow units in a row: the new usual, when they last.
    shadow: Baseline,
    slow_in_row: usize,
    slow_since: u64,
    /// Units that were not slow.
    ordinary: u64,
    open: Vec<Incident>,
    unsettled: Unsettled,
    /// Small incidents that are over, of one cause each.
    small: Vec<Incident>,
    totals: Totals,
    seen: u64,
}

/// Slow units that ended with work outstanding. The next draining wait settles them: what the units up to it are shorter than
/// usual was only moved, not lost.
#[derive(Default)]
struct Unsettled {
    units: Vec<(Measured, Usual, UnitBlame)>,
    /// Units since the first of them.
    seen: usize,
    /// By how much those of them that were short were short, ns.
    returned: u64,
}

/// Facts kept between two ticks.
const FACTS: usize = 256;

/// A job that never waits for its device settles nothing: its units stand as they are after so many.
const SETTLED_BY: usize = 8;

/// Baselines, incidents and profiles of all keys.
pub(crate) struct Judge {
    keys: QuickMap<Key, KeyState>,
    starts: Vec<Start>,
    /// Findings that are new or changed.
    told: BTreeMap<FindingId, Finding>,
    /// Facts told since the last tick: about whom, how bad, when.
    facts: Vec<(Pid, Severity, u64)>,
    pub(crate) units: Vec<Unit>,
    pub(crate) evicted: u64,
}

impl Judge {
    pub(crate) fn new() -> Judge {
        Judge {
            keys: QuickMap::default(),
            starts: Vec::new(),
            told: BTreeMap::new(),
            facts: Vec::new(),
            units: Vec::new(),
            evicted: 0,
        }
    }

    pub(crate) fn tell(&mut self, f: Finding) {
        if self.facts.len() < FACTS {
            let pid = f.key.process.pid;
            self.facts.push((pid, f.severity, f.window.end.0));
        }
        self.told.insert(f.id, f);
    }

    fn state(&mut self, key: Key, public: UnitKey, world: &World, rules: &Rules) -> &mut KeyState {
        if !self.keys.contains_key(&key) {
            if self.keys.len() >= rules.caps.baselines
                && let Some(oldest) = self.keys.iter().map(|(k, s)| (s.seen, *k)).min()
                && let Some(mut gone) = self.keys.remove(&oldest.1)
            {
                self.evicted += 1;
                let told = &mut self.told;
                gone.settle(rules);
                gone.close(world, rules, told, |_| true);
            }
            self.keys.insert(
                key,
                KeyState {
                    public,
                    baseline: Baseline::default(),
                    shadow: Baseline::default(),
                    slow_in_row: 0,
                    slow_since: 0,
                    ordinary: 0,
                    open: Vec::new(),
                    unsettled: Unsettled::default(),
                    small: Vec::new(),
                    totals: Totals::default(),
                    seen: 0,
                },
            );
        }
        self.keys.get_mut(&key).expect("it was just put there")
    }

    /// Takes a unit in. Those of a process that starts are held back until its start is told from what is usual.
    pub(crate) fn take(&mut self, world: &mut World, rules: &Rules, m: Measured) {
        let Some(p) = world.processes.get_mut(&m.key.process) else {
            return;
        };
        if m.key.kind == UnitKind::WaitInterval {
            match &mut p.cold {
                ColdStart::Unseen if p.from_start => p.cold = ColdStart::Collecting(Vec::new()),
                ColdStart::Unseen => p.cold = ColdStart::Over,
                _ => {}
            }
            if let ColdStart::Collecting(units) = &mut p.cold {
                units.push(m);
                if units.len() >= rules.cold_start.units {
                    let key = units[0].key;
                    self.start_is_over(world, rules, key);
                }
                return;
            }
        }
        self.judge(world, rules, m);
    }

    fn start_is_over(&mut self, world: &mut World, rules: &Rules, key: Key) {
        let Some(p) = world.processes.get_mut(&key.process) else {
            return;
        };
        let ColdStart::Collecting(units) = std::mem::replace(&mut p.cold, ColdStart::Over) else {
            return;
        };
        let public = public_key(world, key);
        let (start, cold) = cold_start::decide(&units, public, rules);
        if let Some(start) = start {
            if self.starts.len() < rules.caps.findings {
                self.starts.push(start);
            } else {
                self.evicted += 1;
            }
        }
        for (i, m) in units.into_iter().enumerate() {
            if i < cold {
                self.units.push(unit(world, &m, true));
            } else {
                self.judge(world, rules, m);
            }
        }
    }

    /// The processes that end, or the recording, will bring no more units: their starts are decided by what there is.
    pub(crate) fn no_more_units(
        &mut self,
        world: &mut World,
        rules: &Rules,
        of: impl Fn(Key) -> bool,
    ) {
        let mut keys: Vec<Key> = world
            .processes
            .values()
            .filter_map(|p| match &p.cold {
                ColdStart::Collecting(units) => units.first().map(|m| m.key),
                _ => None,
            })
            .filter(|k| of(*k))
            .collect();
        keys.sort_unstable();
        for key in keys {
            self.start_is_over(world, rules, key);
        }
    }

    fn judge(&mut self, world: &mut World, rules: &Rules, m: Measured) {
        let own = public_key(world, m.key);
        if let Some(p) = world.processes.get_mut(&m.key.process) {
            p.unit_nanos += m.dur();
        }
        if m.key.kind == UnitKind::Call {
            self.judge_call(world, rules, &m, own);
            return;
        }
        let inferred = m.key.kind == UnitKind::WaitInterval;
        let process = world.processes.get(&m.key.process);
        if inferred && process.is_some_and(|p| p.named.has_steps_in(m.window)) {
            // The job's own steps are judged, not what lies in them.
            self.units.push(unit(world, &m, false));
            return;
        }
        // The first that a process names holds its start.
        let first = m.key.kind == UnitKind::Named
            && !self.keys.contains_key(&m.key)
            && process.is_some_and(|p| p.from_start);
        if first {
            self.state(m.key, own, world, rules).seen = m.window.end.0;
            self.units.push(unit(world, &m, false));
            return;
        }
        let end = m.window.end.0;
        let rare_key = Key {
            class: UnitKey::OTHER,
            ..m.key
        };
        let class = &self.state(m.key, own, world, rules).baseline;
        // A class with few units is young, or rare among many others: only those are judged together.
        let young = !class.ready();
        let rare = young
            && inferred
            && m.number >= rules.baseline.rare_after
            && (class.units() as u64).saturating_mul(rules.baseline.rare_one_in) < m.number;
        let (key, public) = if rare {
            let other = UnitKey {
                class: UnitKey::OTHER,
                ..own
            };
            (rare_key, other)
        } else {
            (m.key, own)
        };
        let s = self.state(key, public, world, rules);
        s.seen = end;
        let b = &s.baseline;
        let slow = if rare {
            let limit = rules.baseline.rare_factor.saturating_mul(b.median());
            let enough =
                b.ready() && m.dur() > limit.max(b.median() + rules.baseline.min_excess_nanos);
            enough && m.dur() > b.usual().total
        } else {
            !young && b.slow(m.dur(), &rules.baseline)
        };
        self.units.push(unit(world, &m, slow));
        let s = self.state(key, public, world, rules);
        if is_request(&m) {
            // They share the device and the thread that serves them: one cause would be told once for each.
            s.totals.add(&m, slow);
            if !slow && !m.incomplete {
                s.baseline.learn(&m, &rules.baseline);
            }
            return;
        }
        if slow {
            let usual = s.baseline.usual();
            let b = blame(&m, &usual, &charges(world, m.key));
            s.unsettled.units.push((m.clone(), usual, b));
        } else {
            let short = s.baseline.usual().total.saturating_sub(m.dur());
            s.unsettled.returned += short;
        }
        s.unsettled.seen += 1;
        if !m.provisional || s.unsettled.seen >= SETTLED_BY || s.unsettled.units.is_empty() {
            s.settle(rules);
        }
        if !slow {
            s.ordinary += 1;
            if !m.incomplete {
                s.baseline.learn(&m, &rules.baseline);
            }
        }
        let told = &mut self.told;
        let Some(s) = self.keys.get_mut(&key) else {
            return;
        };
        if slow {
            if !rare {
                s.shift(&m, world, rules, told);
            }
        } else {
            s.slow_in_row = 0;
            if s.shadow.units() > 0 {
                s.shadow = Baseline::default();
            }
            let (ordinary, gap) = (s.ordinary, rules.finding.gap_units);
            s.close(world, rules, told, |i| ordinary - i.ordinary > gap);
        }
        // The class's own sums and, while it is rare, what it learns.
        if let Some(s) = self.keys.get_mut(&m.key) {
            s.seen = end;
            s.totals.add(&m, slow);
            // Slow among the rare, it may yet be usual for its class.
            if rare && !m.incomplete {
                s.baseline.learn(&m, &rules.baseline);
            }
        }
    }

    /// A slow call outside any unit. What is usual of it is its op's median, all of it of the call's own category.
    fn judge_call(&mut self, world: &World, rules: &Rules, m: &Measured, own: UnitKey) {
        let Some(call) = m.call else { return };
        let mut parts = Parts::default();
        parts[call.category] = call.median;
        let usual = Usual {
            parts,
            total: call.median,
            median: call.median,
            units: call.count,
            ..Usual::default()
        };
        if m.dur() <= usual.total {
            return;
        }
        self.units.push(unit(world, m, true));
        let b = blame(m, &usual, &charges(world, m.key));
        let end = m.window.end.0;
        let s = self.state(m.key, own, world, rules);
        s.seen = end;
        s.slow(m, &usual, b.cause(), |i, m, u| {
            i.add(m, u, &b, &rules.finding)
        });
    }

    /// Incidents that go on, and facts told since this was asked last: about whom, how bad, when it was last so. What is always
    /// slow is none of these.
    pub(crate) fn troubles(&mut self) -> Vec<(Pid, Severity, u64)> {
        let mut out = std::mem::take(&mut self.facts);
        for s in self.keys.values() {
            let open = s.open.iter().filter(|i| i.stands_alone());
            out.extend(open.map(|i| (i.key.process.pid, i.severity(), i.end())));
        }
        out
    }

    /// Closes incidents that nothing was added to for long, as of `now`.
    pub(crate) fn tick(&mut self, now: u64, world: &World, rules: &Rules) {
        let told = &mut self.told;
        for s in self.keys.values_mut() {
            s.close(world, rules, told, |i| {
                now.saturating_sub(i.end()) > rules.finding.gap_nanos
            });
        }
    }

    /// Looks for what is always slow.
    pub(crate) fn steady(&mut self, world: &World, rules: &Rules) {
        for (key, s) in &self.keys {
            let all = world
                .processes
                .get(&key.process)
                .map_or(0, |p| p.unit_nanos);
            let shared =
                s.public.kind == UnitKind::Named && s.public.class >= UnitKey::class_of_requests(0);
            if shared {
                continue;
            }
            for f in s.totals.steady(s.public, all, world, rules) {
                self.told.insert(f.id, f);
            }
        }
    }

    /// Tells starts, for a recording of this length so far.
    pub(crate) fn starts(&mut self, world: &World, rules: &Rules, recording: u64) {
        for s in &self.starts {
            if let Some(f) = s.finding(world, rules, recording) {
                self.told.insert(f.id, f);
            }
        }
    }

    pub(crate) fn finish(&mut self, world: &World, rules: &Rules) {
        let told = &mut self.told;
        for s in self.keys.values_mut() {
            s.settle(rules);
            s.close(world, rules, told, |_| true);
        }
    }

    /// What is new, the most severe first, then by excess.
    pub(crate) fn drain(&mut self, world: &World, rules: &Rules) -> Vec<Finding> {
        for s in self.keys.values_mut() {
            // A small one is told when it is over: it may grow, or belong to others.
            for i in s.open.iter_mut().filter(|i| i.stands_alone()) {
                if std::mem::take(&mut i.dirty) && i.counts(&rules.finding) {
                    let f = i.finding(world, &rules.finding);
                    self.told.insert(f.id, f);
                }
            }
        }
        let mut out: Vec<Finding> = std::mem::take(&mut self.told).into_values().collect();
        out.sort_by_key(|f| {
            (
                std::cmp::Reverse((f.severity, f.excess_ns)),
                f.window.start,
                f.id,
            )
        });
        out
    }

    pub(crate) fn profile(&self) -> Vec<Profile> {
        let mut by_key: BTreeMap<Key, (UnitKey, u64, Parts)> = BTreeMap::new();
        for (key, s) in &self.keys {
            // A few units of a class are no usual unit of their own.
            let (key, public) = if s.totals.units < 10 {
                let class = UnitKey::OTHER;
                (Key { class, ..*key }, UnitKey { class, ..s.public })
            } else {
                (*key, s.public)
            };
            let e = by_key.entry(key).or_insert((public, 0, Parts::default()));
            e.1 += s.totals.units;
            for c in Category::ALL {
                e.2[c] += s.totals.parts[c];
            }
        }
        by_key
            .into_values()
            .filter(|(_, units, _)| *units > 0)
            .map(|(key, units, sums)| {
                let parts = Parts(sums.0.map(|s| s / units));
                Profile {
                    key,
                    units,
                    mean: parts.total(),
                    parts,
                }
            })
            .collect()
    }
}

impl KeyState {
    /// Takes the slow units that wait for it into incidents, net of what came back.
    fn settle(&mut self, rules: &Rules) {
        let Unsettled {
            units,
            mut returned,
            ..
        } = std::mem::take(&mut self.unsettled);
        for (m, usual, mut b) in units {
            let excess: u64 = b.exposed.iter().sum();
            let back = excess.min(returned);
            returned -= back;
            spread(&mut b.exposed, back);
            if back < excess {
                self.slow(&m, &usual, b.cause(), |i, m, u| {
                    i.add(m, u, &b, &rules.finding);
                });
            }
        }
    }

    /// Adds a slow unit to the incident of its cause, or begins one.
    fn slow(
        &mut self,
        m: &Measured,
        usual: &Usual,
        cause: Cause,
        add: impl FnOnce(&mut Incident, &Measured, &Usual),
    ) {
        let at = self
            .open
            .iter()
            .position(|i| i.cause == cause)
            .unwrap_or_else(|| {
                self.open.push(Incident::new(self.public, cause, m));
                self.open.len() - 1
            });
        let i = &mut self.open[at];
        i.ordinary = self.ordinary;
        add(i, m, usual);
    }

    /// Counts a slow unit towards a new normal.
    fn shift(
        &mut self,
        m: &Measured,
        world: &World,
        rules: &Rules,
        told: &mut BTreeMap<FindingId, Finding>,
    ) {
        let r = &rules.baseline;
        if self.slow_in_row == 0 {
            self.slow_since = m.window.start.0;
        }
        self.slow_in_row += 1;
        if !m.incomplete {
            self.shadow.learn(m, r);
        }
        let long = m.window.end.0.saturating_sub(self.slow_since) >= r.shift_after_nanos;
        if self.slow_in_row < r.shift_units || !long || !self.shadow.ready() {
            return;
        }
        let ordinary =
            ((self.shadow.median() as f64 * r.shift_spread) as u64).max(self.baseline.mad());
        if self.shadow.mad() <= ordinary {
            self.baseline = std::mem::take(&mut self.shadow);
            self.slow_in_row = 0;
            for i in &mut self.open {
                i.shifted = true;
            }
            self.close(world, rules, told, |_| true);
        }
    }

    /// Ends the open incidents that `over` says are over.
    fn close(
        &mut self,
        world: &World,
        rules: &Rules,
        told: &mut BTreeMap<FindingId, Finding>,
        over: impl Fn(&Incident) -> bool,
    ) {
        if self.open.is_empty() {
            return;
        }
        let (closed, open) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|i| over(i));
        self.open = open;
        for i in closed {
            self.closed(i, world, rules, told);
        }
    }

    fn closed(
        &mut self,
        i: Incident,
        world: &World,
        rules: &Rules,
        told: &mut BTreeMap<FindingId, Finding>,
    ) {
        let rule = &rules.finding;
        if i.stands_alone() || i.shifted {
            if i.counts(rule) {
                let f = i.finding(world, rule);
                told.insert(f.id, f);
            }
            return;
        }
        let recurs = |s: &Incident| s.cause == i.cause;
        let i = match self
            .small
            .iter()
            .position(recurs)
            .map(|at| self.small.swap_remove(at))
        {
            Some(mut series) if i.start().saturating_sub(series.end()) <= rule.recur_nanos => {
                series.absorb(i, rule);
                series
            }
            _ => {
                let mut first = i;
                first.begin_series();
                first
            }
        };
        if i.counts(rule) {
            let f = i.finding(world, rule);
            told.insert(f.id, f);
        }
        self.small.push(i);
    }
}

/// A request that is served, by its name.
fn is_request(m: &Measured) -> bool {
    let name = m.name.as_ref();
    name.is_some_and(|n| n.label == NamedBy::Request)
}

fn charges(world: &World, key: Key) -> Charges {
    let p = world.processes.get(&key.process);
    Charges {
        bandwidth: std::array::from_fn(|kind| {
            p.and_then(|p| p.bandwidth(key.device, kind as u8))
                .unwrap_or(0)
        }),
    }
}

pub(crate) fn public_key(world: &World, key: Key) -> UnitKey {
    UnitKey {
        process: world
            .processes
            .get(&key.process)
            .map(|p| p.incarnation())
            .unwrap_or_default(),
        device: key.device,
        stream: key.stream,
        kind: key.kind,
        class: key.class,
    }
}

fn unit(world: &World, m: &Measured, slow: bool) -> Unit {
    Unit {
        key: public_key(world, m.key),
        name: m.name.clone(),
        lead: m.lead.tid,
        number: m.number,
        start: m.window.start,
        dur: m.dur(),
        parts: m.parts,
        launches: m.facts.launches,
        slow,
        incomplete: m.incomplete,
    }
}
