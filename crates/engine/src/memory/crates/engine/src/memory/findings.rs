//! What is concluded of all series together: findings, the worst first, and for each check that found nothing whether it could
//! have.

use warptrace_model::Severity;

use super::analysis::{OomMoment, phase_at};
use super::fragmentation::{Fragmentation, fragmentation};
use super::hidden::{Hidden, can_tell, hidden};
use super::leak::{Leak, Unknown, Verdict, leak};
use super::phases::Phases;
use super::ranks::{Confidence, FirstCause, RankReport};
use super::rules::Rules;
use super::series::{Level, Series};

/// What was concluded.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryFinding {
    pub severity: Severity,
    /// Index of the series it is about; of a report about ranks the first's.
    pub series: usize,
    /// Nanoseconds since the Unix epoch.
    pub start_ns: i64,
    pub end_ns: i64,
    /// 0..=1.
    pub confidence: f64,
    pub what: What,
    /// At its moment, where the job named its phases.
    pub phase: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// Memory ran out; index of the first of them, and how many of the series.
    Oom {
        first: usize,
        count: usize,
    },
    /// A floor rises: allocated, or device-used where nothing else is known.
    Leak(Leak),
    /// The allocator's reserve rises, and what is allocated from it does not.
    ReserveGrowth(Leak),
    /// Device memory outside the allocator rises.
    HiddenGrowth(Leak),
    /// Device memory outside the allocator was far above the usual; with the ranks on which it was so at the same time.
    HiddenSpikes {
        hidden: Hidden,
        ranks: Vec<i64>,
    },
    HiddenSteady(Hidden),
    Fragmentation(Fragmentation),
    /// Used reached nearly all of the total, so often, first at the finding's start.
    NearlyFull {
        episodes: u64,
        peak_bytes: i64,
        total_bytes: i64,
    },
    /// Index of the ranks' report.
    FirstCause {
        ranks: usize,
    },
    /// Indexes of the ranks' report and of the outlier in it.
    RankOutlier {
        ranks: usize,
        outlier: usize,
    },
}

impl What {
    /// A short snake_case word.
    pub const fn kind(&self) -> &'static str {
        match self {
            What::Oom { .. } => "oom",
            What::Leak(_) => "leak",
            What::ReserveGrowth(_) => "reserve_growth",
            What::HiddenGrowth(_) => "hidden_growth",
            What::HiddenSpikes { .. } => "hidden_spikes",
            What::HiddenSteady(_) => "hidden_steady",
            What::Fragmentation(_) => "fragmentation",
            What::NearlyFull { .. } => "nearly_full",
            What::FirstCause { .. } => "first_cause",
            What::RankOutlier { .. } => "rank_outlier",
        }
    }
}

/// What was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CheckKind {
    Leak,
    Hidden,
    Fragmentation,
}

impl CheckKind {
    pub const fn name(self) -> &'static str {
        match self {
            CheckKind::Leak => "leak",
            CheckKind::Hidden => "hidden",
            CheckKind::Fragmentation => "fragmentation",
        }
    }
}

/// How looking for something in a series went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Check {
    pub series: usize,
    pub kind: CheckKind,
    pub found: bool,
    /// Why it cannot be told, if so.
    pub unknown: Option<Unknown>,
}

const HOUR_NS: i64 = 3_600_000_000_000;

pub(super) fn conclude(
    series: &[Series],
    ranks: &[RankReport],
    ooms: &[OomMoment],
    phases: &Phases,
    rules: &Rules,
) -> (Vec<MemoryFinding>, Vec<Check>) {
    let (mut findings, mut checks) = (Vec::new(), Vec::new());
    for (at, one) in series.iter().enumerate() {
        let mut add = |severity, start_ns, end_ns, confidence, what| {
            findings.push(MemoryFinding {
                severity,
                series: at,
                start_ns,
                end_ns,
                confidence,
                what,
                phase: phase_at(phases, &one.key, start_ns),
            });
        };
        let mut check = |kind, found, unknown| {
            checks.push(Check {
                series: at,
                kind,
                found,
                unknown,
            });
        };

        let mine: Vec<usize> = (0..ooms.len())
            .filter(|i| ooms[*i].key == one.key)
            .collect();
        if let (Some(first), Some(last)) = (mine.first(), mine.last()) {
            let certain = mine.iter().any(|i| !ooms[*i].by_words);
            let severity = if certain {
                Severity::Critical
            } else {
                Severity::High
            };
            let what = What::Oom {
                first: *first,
                count: mine.len(),
            };
            let confidence = if certain { 1.0 } else { 0.6 };
            add(
                severity,
                ooms[*first].at_ns,
                ooms[*last].at_ns,
                confidence,
                what,
            );
        }

        // Device-used is everybody's: it is this job's leak only when nothing else is known.
        let level = if one.has(Level::Allocated) {
            Level::Allocated
        } else {
            Level::Used
        };
        let verdict = leak(one, level, &rules.leak);
        let (found, unknown) = outcome(&verdict);
        check(CheckKind::Leak, found, unknown);
        if let Verdict::Holds(leak) = verdict {
            add(
                growth_severity(&leak, one),
                leak.start_ns,
                leak.end_ns,
                leak.confidence,
                What::Leak(leak),
            );
        } else if let Verdict::Holds(leak) = leak(one, Level::Reserved, &rules.leak)
            && one.has(Level::Allocated)
        {
            add(
                Severity::Medium,
                leak.start_ns,
                leak.end_ns,
                leak.confidence,
                What::ReserveGrowth(leak),
            );
        }

        let verdict = hidden(one, &rules.hidden);
        let (_, unknown) = outcome(&verdict);
        let mut found = false;
        if let Verdict::Holds(hidden) = verdict {
            if can_tell(one, &rules.hidden).is_ok()
                && let Verdict::Holds(leak) = leak(one, Level::Hidden, &rules.leak)
            {
                found = true;
                add(
                    growth_severity(&leak, one),
                    leak.start_ns,
                    leak.end_ns,
                    leak.confidence,
                    What::HiddenGrowth(leak),
                );
            } else if let Some(largest) = hidden.spikes.first() {
                found = true;
                let near_full = one
                    .total_bytes
                    .is_some_and(|t| one.peak(Level::Used).is_some_and(|p| p.bytes >= t - t / 10));
                let severity = if near_full {
                    Severity::High
                } else {
                    Severity::Medium
                };
                add(
                    severity,
                    largest.start_ns,
                    largest.end_ns,
                    0.8,
                    What::HiddenSpikes {
                        hidden: hidden.clone(),
                        ranks: vec![one.key.rank],
                    },
                );
            }
            if hidden.is_large {
                found = true;
                add(
                    Severity::Low,
                    one.first_ns,
                    one.last_ns,
                    0.9,
                    What::HiddenSteady(hidden),
                );
            }
        }
        check(CheckKind::Hidden, found, unknown);

        let verdict = fragmentation(one, &rules.fragmentation);
        let (found, unknown) = outcome(&verdict);
        check(CheckKind::Fragmentation, found, unknown);
        if let Verdict::Holds(fragmentation) = verdict {
            let severity = if fragmentation.severe {
                Severity::High
            } else {
                Severity::Medium
            };
            add(
                severity,
                one.first_ns,
                one.last_ns,
                0.9,
                What::Fragmentation(fragmentation),
            );
        }

        if let (Some(since), Some(total)) = (one.full_since_ns, one.total_bytes)
            && let Some(peak) = one.peak(Level::Used).or(one.peak(Level::Allocated))
        {
            let what = What::NearlyFull {
                episodes: one.full_episodes,
                peak_bytes: peak.bytes,
                total_bytes: total,
            };
            add(Severity::Medium, since, one.last_ns, 1.0, what);
        }
    }
    together(&mut findings, series);
    for (at, report) in ranks.iter().enumerate() {
        if let FirstCause::Rank {
            rank, confidence, ..
        } = &report.first
            && let Some(rise) = report.rises.iter().find(|r| r.rank == *rank)
        {
            findings.push(MemoryFinding {
                severity: if *confidence == Confidence::Low {
                    Severity::Low
                } else {
                    Severity::Medium
                },
                series: rise.series,
                start_ns: rise.at_ns,
                end_ns: series[rise.series].last_ns,
                confidence: match confidence {
                    Confidence::Low => 0.4,
                    Confidence::Medium => 0.7,
                    Confidence::High => 0.9,
                },
                what: What::FirstCause { ranks: at },
                phase: phase_at(phases, &series[rise.series].key, rise.at_ns),
            });
        }
        for (outlier, stands_out) in report.outliers.iter().enumerate() {
            let one = &series[stands_out.series];
            findings.push(MemoryFinding {
                severity: Severity::Low,
                series: stands_out.series,
                start_ns: one.first_ns,
                end_ns: one.last_ns,
                confidence: 0.8,
                what: What::RankOutlier { ranks: at, outlier },
                phase: None,
            });
        }
    }
    findings.sort_by(|a, b| {
        b.severity
            .cmp(&a.severity)
            .then(b.confidence.total_cmp(&a.confidence))
            .then(a.start_ns.cmp(&b.start_ns))
            .then(a.series.cmp(&b.series))
    });
    (findings, checks)
}

/// How far apart spikes of several ranks may be and still be one, ns, beside what their samples can tell.
const TOGETHER_NS: i64 = 150_000_000;

/// Joins spikes that several ranks of a job have at the same time: the largest stays, and names the ranks.
fn together(findings: &mut Vec<MemoryFinding>, series: &[Series]) {
    let job = |f: &MemoryFinding| {
        let one = &series[f.series];
        one.job_id
            .clone()
            .unwrap_or_else(|| one.key.session_id.clone())
    };
    let largest = |f: &MemoryFinding| match &f.what {
        What::HiddenSpikes { hidden, .. } => hidden
            .spikes
            .first()
            .map(|s| s.peak_bytes - hidden.median_bytes),
        _ => None,
    };
    let (mut spikes, others): (Vec<_>, Vec<_>) = std::mem::take(findings)
        .into_iter()
        .partition(|f| largest(f).is_some());
    *findings = others;
    spikes.sort_by_key(|f| (std::cmp::Reverse(largest(f)), f.series));
    let mut kept: Vec<MemoryFinding> = Vec::new();
    for mut spike in spikes {
        let near = |k: &&mut MemoryFinding| {
            let resolution = series[k.series]
                .resolution_ns()
                .max(series[spike.series].resolution_ns());
            job(k) == job(&spike) && (k.start_ns - spike.start_ns).abs() <= TOGETHER_NS + resolution
        };
        match kept.iter_mut().find(near) {
            Some(first) => {
                first.severity = first.severity.max(spike.severity);
                if let (What::HiddenSpikes { ranks, .. }, What::HiddenSpikes { ranks: more, .. }) =
                    (&mut first.what, &mut spike.what)
                {
                    ranks.append(more);
                    ranks.sort_unstable();
                    ranks.dedup();
                }
            }
            None => kept.push(spike),
        }
    }
    findings.append(&mut kept);
}

fn outcome<T>(verdict: &Verdict<T>) -> (bool, Option<Unknown>) {
    match verdict {
        Verdict::Holds(_) => (true, None),
        Verdict::DoesNotHold => (false, None),
        Verdict::CannotTell(why) => (false, Some(*why)),
    }
}

/// A tenth of the device, or an hour to the end, is severe.
fn growth_severity(leak: &Leak, series: &Series) -> Severity {
    let large = series
        .total_bytes
        .is_some_and(|total| leak.growth_bytes() >= total / 10);
    if large || leak.full_in_ns.is_some_and(|ns| ns < HOUR_NS) {
        Severity::High
    } else {
        Severity::Medium
    }
}
