//! The start of a process: its first units, told from what later became usual.
//!
//! Only of processes whose start was recorded. The first units are held back until enough have come; those at the very
//! begin that are longer than is usual among them are the start, and enter neither baseline nor profile.

use warptrace_model::{
    Blame, Cause, Finding, FindingKind, Severity, UnitKey, UnitKind, UnitSpan, Window,
};

use crate::incidents::{evidence, finding_id, label, place, time};
use crate::partition::{About, Hint, add_hint};
use crate::thresholds::Rules;
use crate::units::Measured;
use crate::world::World;

/// Fewer units than this say nothing of what is usual.
const MIN_UNITS: usize = 5;

/// Where a process is in its start.
#[derive(Debug, Default)]
pub(crate) enum ColdStart {
    /// No unit yet.
    #[default]
    Unseen,
    /// Units, as they came.
    Collecting(Vec<Measured>),
    Over,
}

/// A start that took longer than what followed.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    key: UnitKey,
    first: Measured,
    window: Window,
    last: u64,
    slow: u64,
    usual: u64,
    usual_units: u64,
    pub(crate) excess: u64,
    hints: Vec<Hint>,
}

/// Divides the first units of a process: its start, if that was slow; how many units it took; and all units again.
pub(crate) fn decide(units: &[Measured], key: UnitKey, rules: &Rules) -> (Option<Start>, usize) {
    if units.len() < MIN_UNITS {
        return (None, 0);
    }
    let median = |of: &dyn Fn(&Measured) -> bool| {
        let mut d: Vec<u64> = units.iter().filter(|m| of(m)).map(Measured::dur).collect();
        d.sort_unstable();
        (d.get(d.len() / 2).copied().unwrap_or(0), d.len())
    };
    let all = median(&|_| true);
    let mut cold = 0;
    let (mut excess, mut usual) = (0, all.0);
    for m in units {
        let of_key = median(&|o| o.key == m.key);
        let reference = if of_key.1 >= MIN_UNITS {
            of_key.0
        } else {
            all.0
        };
        let limit =
            (reference as f64 * rules.cold_start.factor) as u64 + rules.baseline.min_excess_nanos;
        if m.dur() <= limit {
            break;
        }
        cold += 1;
        excess += m.dur() - reference;
        usual = reference;
    }
    let (Some(first), Some(last)) = (units.first(), units[..cold].last()) else {
        return (None, 0);
    };
    let mut hints = Vec::new();
    for h in units[..cold].iter().flat_map(|m| &m.hints) {
        add_hint(&mut hints, 64, *h);
    }
    hints.sort_by_key(|h| (std::cmp::Reverse(h.longest.nanos()), h.longest.start));
    let start = Start {
        key: UnitKey {
            kind: UnitKind::ColdStart,
            class: 0,
            ..key
        },
        first: first.clone(),
        window: Window {
            start: first.window.start,
            end: last.window.end,
        },
        last: last.number,
        slow: cold as u64,
        usual,
        usual_units: units.len() as u64,
        excess,
        hints,
    };
    (Some(start), cold)
}

impl Start {
    /// `recording`: its length so far, ns.
    pub(crate) fn finding(&self, world: &World, rules: &Rules, recording: u64) -> Option<Finding> {
        if self.excess < rules.cold_start.min_excess_nanos {
            return None;
        }
        let long = recording >= rules.cold_start.min_recording_nanos;
        let much = self.excess as f64 >= rules.cold_start.medium_fraction * recording as f64;
        let calls = self.hints.iter().find_map(|h| match h.about {
            About::Op(op) => Some(format!("{} took {}", op.name(), time(h.longest.nanos()))),
            _ => None,
        });
        let detail =
            calls.unwrap_or_else(|| format!("the first unit of {}", label(world, self.first.lead)));
        Some(Finding {
            id: finding_id(
                &self.key,
                Cause::ColdStart,
                FindingKind::Incident,
                self.window.start.0,
            ),
            kind: FindingKind::Incident,
            severity: if long && much {
                Severity::Medium
            } else {
                Severity::Low
            },
            cause: Cause::ColdStart,
            second: None,
            key: self.key,
            op: self.first.op,
            tid: self.first.lead.tid,
            comm: world.name(self.first.lead).to_owned(),
            place: self.first.op.map(place),
            window: self.window,
            units: UnitSpan {
                first: self.first.number,
                last: self.last,
                slow: self.slow,
                worst: self.first.number,
            },
            shifted: false,
            baseline_ns: self.usual,
            baseline_units: self.usual_units,
            excess_ns: self.excess,
            blame: vec![
                Blame {
                    cause: Cause::ColdStart,
                    ns: self.excess,
                    lost_ns: self.excess,
                    detail,
                },
                Blame {
                    cause: Cause::Unexplained,
                    ns: 0,
                    lost_ns: 0,
                    detail: String::new(),
                },
            ],
            evidence: self
                .hints
                .iter()
                .take(rules.finding.evidence)
                .map(|h| evidence(world, h))
                .collect(),
        })
    }
}
