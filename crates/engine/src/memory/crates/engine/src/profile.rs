//! The usual unit, and what of it is always slow.
//!
//! What has always been slow has no excess: it is a *steady* finding, when it takes much of the usual unit and nothing else
//! hides it. Slow units and the process's start are left out of that: they have findings of their own.

use warptrace_model::record::OpId;
use warptrace_model::{
    Blame, Category, Cause, Finding, FindingKind, Parts, Severity, Thread, UnitKey, UnitSpan,
    Window,
};

use crate::blame::{CAUSES, cause_of};
use crate::incidents::{detail, evidence, finding_id, place, shows};
use crate::partition::{Hint, add_hint};
use crate::thresholds::Rules;
use crate::units::Measured;
use crate::world::World;

/// Sums over the units of a key, since the start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Totals {
    /// All units but the cold ones.
    pub(crate) units: u64,
    pub(crate) parts: Parts,
    calm: Option<Calm>,
}

/// The same over units that were not slow.
#[derive(Debug, Clone)]
struct Calm {
    units: u64,
    nanos: u64,
    parts: Parts,
    bare: Parts,
    contention: u64,
    throttle: u64,
    hints: Vec<Hint>,
    window: Window,
    first: u64,
    last: u64,
    lead: Thread,
    op: Option<OpId>,
    clock: Option<(u32, u32)>,
}

impl Totals {
    pub(crate) fn add(&mut self, m: &Measured, slow: bool) {
        self.units += 1;
        for c in Category::ALL {
            self.parts[c] = self.parts[c].saturating_add(m.parts[c]);
        }
        if slow {
            return;
        }
        let calm = self.calm.get_or_insert_with(|| Calm {
            units: 0,
            nanos: 0,
            parts: Parts::default(),
            bare: Parts::default(),
            contention: 0,
            throttle: 0,
            hints: Vec::new(),
            window: m.window,
            first: m.number,
            last: m.number,
            lead: m.lead,
            op: m.op,
            clock: None,
        });
        calm.units += 1;
        calm.nanos += m.dur();
        for c in Category::ALL {
            calm.parts[c] += m.parts[c];
            calm.bare[c] += m.bare[c];
        }
        let wait = m.parts[Category::DeviceWait];
        // Two that share a device by turns have half of it each: so much of the common time is the other's.
        calm.contention += (m.facts.contention / 2).min(wait);
        calm.throttle += m.facts.throttle_of_max;
        calm.clock = m.clock.or(calm.clock);
        calm.window.end = calm.window.end.max(m.window.end);
        calm.last = m.number;
        calm.lead = m.lead;
        calm.op = m.op;
        for h in m.hints.iter().filter(|h| h.ns >= m.dur() / 20) {
            add_hint(&mut calm.hints, 16, *h);
        }
    }

    /// Steady findings of these units. `all`: time of all units of the process, ns.
    pub(crate) fn steady(
        &self,
        key: UnitKey,
        all: u64,
        world: &World,
        rules: &Rules,
    ) -> Vec<Finding> {
        let Some(calm) = &self.calm else {
            return Vec::new();
        };
        let rule = &rules.steady;
        if calm.units < rule.min_units || calm.nanos < rule.min_nanos {
            return Vec::new();
        }
        let mut by_cause = [0u64; CAUSES];
        for (c, ns) in calm.bare.iter() {
            if let Some(cause) = cause_of(c) {
                by_cause[cause as usize] += ns;
            }
        }
        by_cause[Cause::GpuContention as usize] = calm.contention;
        by_cause[Cause::GpuThrottle as usize] = calm.throttle;
        let mean = calm.parts.total() / calm.units;
        let mut found = Vec::new();
        for cause in Cause::ALL {
            let ns = by_cause[cause as usize];
            let fraction = ns as f64 / calm.nanos as f64;
            let of_process = ns as f64 / all.max(1) as f64;
            if cause == Cause::Unexplained
                || fraction < rule.medium_fraction
                || of_process < rule.process_fraction
                || ns < rules.finding.min_excess_nanos
            {
                continue;
            }
            let mut cases: Vec<&Hint> = calm.hints.iter().filter(|h| shows(h) == cause).collect();
            cases.sort_by_key(|h| (std::cmp::Reverse(h.longest.nanos()), h.longest.start));
            found.push(Finding {
                // One finding for as long as the process lives: its start is no part of the id.
                id: finding_id(&key, cause, FindingKind::Steady, 0),
                kind: FindingKind::Steady,
                severity: if fraction >= rule.high_fraction {
                    Severity::High
                } else {
                    Severity::Medium
                },
                cause,
                second: None,
                key,
                op: calm.op,
                tid: calm.lead.tid,
                comm: world.name(calm.lead).to_owned(),
                place: calm.op.map(place),
                window: calm.window,
                units: UnitSpan {
                    first: calm.first,
                    last: calm.last,
                    slow: calm.units,
                    worst: calm.first,
                },
                shifted: false,
                baseline_ns: mean.saturating_sub(ns / calm.units),
                baseline_units: calm.units,
                excess_ns: ns,
                blame: vec![
                    Blame {
                        cause,
                        ns,
                        lost_ns: ns,
                        detail: detail(world, cause, &calm.hints, calm.clock, calm.lead),
                    },
                    Blame {
                        cause: Cause::Unexplained,
                        ns: 0,
                        lost_ns: 0,
                        detail: String::new(),
                    },
                ],
                evidence: cases
                    .into_iter()
                    .take(rules.finding.evidence)
                    .map(|h| evidence(world, h))
                    .collect(),
            });
        }
        found
    }
}
