//! `explain`: from a stored session to the answer. Reads `units`, `findings`, `ops`, `drops` and `gaps`, never the events.

use std::collections::BTreeMap;

use warptrace_model::cost::Prices;
use warptrace_model::{
    BootNanos, Category, ClockAnchor, Finding as ModelFinding, Incarnation, Pid,
    Profile as ModelProfile, Unit, UnitKey, UnixNanos, Window,
};
use warptrace_store::{Session, StoreError};

use crate::by_unit::{label_index, labels_of};
use crate::cost::Pricer;
use crate::{
    Blame, Drop, Evidence, Explain, Finding, Gap, Key, Op, Part, Place, Profile, SCHEMA, Subject,
    Units, WindowUnix, words,
};

/// What to explain of a session.
#[derive(Debug, Clone, Default)]
pub struct ExplainQuestion {
    /// Only the last so many ns of the session.
    pub since_nanos: Option<u64>,
    /// Only units that carry this label with this value, or whose process does at their begin; what was found in them. Calls
    /// are counted by the second and not by label: the answer has none then.
    pub label: Option<(String, String)>,
    /// Only the finding whose id begins with this.
    pub finding: Option<String>,
    /// What GPUs cost, and whose they are.
    pub prices: Prices,
}

/// Why a session could not be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no finding {asked:?} in session {session} (it has: {})", .have.join(", "))]
    NoSuchFinding {
        asked: String,
        session: String,
        have: Vec<String>,
    },
    #[error("{asked:?} is the beginning of {} findings: {}", .matching.len(), .matching.join(", "))]
    Ambiguous {
        asked: String,
        matching: Vec<String>,
    },
}

/// Answers `question` from `session`. Cost: one pass over the session's units and counts.
///
/// # Errors
/// [`ExplainError`] when a table cannot be read, or the finding asked for is not there.
pub fn explain(session: &Session, question: &ExplainQuestion) -> Result<Explain, ExplainError> {
    let meta = session.meta();
    let anchor = session.anchor();
    let (window, filter) = since(session, question.since_nanos)?;

    let processes = session.processes()?;
    let command_of = |process: Incarnation| {
        processes
            .iter()
            .find(|p| p.incarnation.pid == process.pid)
            .map_or_else(String::new, |p| words::command_text(&p.command))
    };
    let mut findings: Vec<ModelFinding> = session.findings()?;
    findings.retain(|f| f.window.end >= window.start && f.window.start <= window.end);
    findings.sort_by(|a, b| {
        b.severity
            .cmp(&a.severity)
            .then(b.excess_ns.cmp(&a.excess_ns))
            .then(a.id.cmp(&b.id))
    });
    let mut units = session.units(filter)?;
    if let Some((key, value)) = &question.label {
        let labels = label_index(session)?;
        units.retain(|u| labels_of(&labels, u).get(key) == Some(value));
        let mut by_process: BTreeMap<Pid, Vec<Window>> = BTreeMap::new();
        for u in &units {
            by_process
                .entry(u.key.process.pid)
                .or_default()
                .push(u.window());
        }
        findings.retain(|f| {
            let of = by_process.get(&f.key.process.pid);
            of.is_some_and(|windows| windows.iter().any(|w| w.overlap(&f.window) > 0))
        });
    }
    if let Some(asked) = &question.finding {
        let ids = |list: &[ModelFinding]| list.iter().map(|f| f.id.to_string()).collect::<Vec<_>>();
        let have = ids(&findings);
        findings.retain(|f| f.id.to_string().starts_with(&asked.to_ascii_lowercase()));
        match findings.len() {
            1 => {}
            0 => {
                return Err(ExplainError::NoSuchFinding {
                    asked: asked.clone(),
                    session: meta.id.clone(),
                    have,
                });
            }
            _ => {
                return Err(ExplainError::Ambiguous {
                    asked: asked.clone(),
                    matching: ids(&findings),
                });
            }
        }
    }

    let counted = match question.label {
        Some(_) => Vec::new(),
        None => session.ops(filter)?,
    };
    let mut ops: Vec<Op> = counted
        .into_iter()
        .map(|stats| {
            let quantile = |q| stats.durations.quantile(q).unwrap_or(0);
            Op {
                op: stats.key.op.name(),
                pid: stats.key.pid.0,
                device: stats.key.device.map(|d| d.0),
                count: stats.count,
                total_ns: stats.total,
                p50_ns: quantile(0.5),
                p95_ns: quantile(0.95),
                p99_ns: quantile(0.99),
            }
        })
        .collect();
    ops.sort_by(|a, b| {
        b.total_ns
            .cmp(&a.total_ns)
            .then(a.op.cmp(b.op))
            .then(a.pid.cmp(&b.pid))
    });

    let mut profile: Vec<Profile> = profiles(units.iter())
        .iter()
        .map(Profile::from_model)
        .collect();
    profile.sort_by_key(|p| std::cmp::Reverse(p.mean_ns.saturating_mul(p.units)));

    let pricer = Pricer::of(session, &question.prices)?;
    let main = processes
        .iter()
        .filter(|p| p.in_job)
        .min_by_key(|p| p.start);
    Ok(Explain {
        schema: SCHEMA,
        session: meta.id.clone(),
        window: WindowUnix {
            start_unix_ns: anchor.unix(window.start).0,
            end_unix_ns: anchor.unix(window.end).0,
        },
        profile,
        ops,
        findings: findings
            .iter()
            .map(|f| Finding {
                cost: pricer.cost(f),
                ..Finding::from_model(f, &anchor, &command_of(f.key.process))
            })
            .collect(),
        drops: session
            .drops()?
            .into_iter()
            .map(|d| Drop {
                source: d.source,
                reason: d.reason,
                count: d.count,
            })
            .collect(),
        gaps: session
            .gaps()?
            .into_iter()
            .map(|g| Gap {
                code: g.code.name(),
                detail: g.detail,
                count: g.count,
            })
            .collect(),
        subject: Subject {
            command: meta.command.clone(),
            pid: main.map(|p| p.incarnation.pid.0),
            sources: meta.sources.clone(),
            processes: processes.iter().filter(|p| p.in_job).count(),
        },
    })
}

/// What a question looks at: the whole session or its last `nanos`, and that as a filter when it is not the whole.
pub(crate) fn since(
    session: &Session,
    nanos: Option<u64>,
) -> Result<(Window, Option<Window>), StoreError> {
    let whole = session.window()?;
    let window = nanos.map_or(whole, |nanos| Window {
        start: whole.start.max(whole.end.minus(nanos)),
        end: whole.end,
    });
    Ok((window, nanos.map(|_| window)))
}

/// The usual unit of each key: means over its units that were not judged slow. Means are rounded down, category by category, and the usual
/// unit is their sum, so that its parts add up.
pub(crate) fn profiles<'a>(units: impl Iterator<Item = &'a Unit>) -> Vec<ModelProfile> {
    let mut sums: BTreeMap<UnitKey, (u64, [u128; Category::COUNT])> = BTreeMap::new();
    for unit in units.filter(|u| !u.incomplete && !u.slow) {
        let (count, parts) = sums.entry(unit.key).or_default();
        *count += 1;
        for (sum, part) in parts.iter_mut().zip(unit.parts.0) {
            *sum += u128::from(part);
        }
    }
    sums.into_iter()
        .map(|(key, (count, sums))| {
            let mut profile = ModelProfile {
                key,
                units: count,
                mean: 0,
                parts: warptrace_model::Parts::default(),
            };
            for (part, sum) in profile.parts.0.iter_mut().zip(sums) {
                *part = (sum / u128::from(count.max(1))) as u64;
            }
            profile.mean = profile.parts.total();
            profile
        })
        .collect()
}

impl Key {
    pub(crate) fn from_model(key: &UnitKey) -> Key {
        Key {
            pid: key.process.pid.0,
            start_ticks: key.process.start_ticks,
            device: key.device.map(|d| d.0),
            kind: key.kind.name(),
            class: if key.class == UnitKey::OTHER {
                -1
            } else {
                i32::from(key.class)
            },
        }
    }
}

impl Profile {
    pub(crate) fn from_model(profile: &ModelProfile) -> Profile {
        let mut parts: Vec<Part> = profile
            .parts
            .iter()
            .map(|(c, ns)| Part {
                category: c.name(),
                ns,
            })
            .collect();
        parts.sort_by_key(|p| std::cmp::Reverse(p.ns));
        Profile {
            key: Key::from_model(&profile.key),
            units: profile.units,
            mean_ns: profile.mean,
            parts,
        }
    }
}

impl Finding {
    /// The answer for a finding, worded, and without its cost. `command` is its process's command line, for the advice.
    pub fn from_model(f: &ModelFinding, anchor: &ClockAnchor, command: &str) -> Finding {
        let unix = |at: BootNanos| -> u64 {
            let UnixNanos(ns) = anchor.unix(at);
            ns
        };
        Finding {
            id: f.id.to_string(),
            kind: f.kind.name(),
            severity: f.severity.name(),
            cause: f.cause.name(),
            title: words::title(f),
            key: Key::from_model(&f.key),
            op: f.op.map(|op| op.name()),
            tid: f.tid.0,
            comm: f.comm.clone(),
            place: f.place.as_ref().map(|p| Place {
                file: p.file.clone(),
                line: p.line,
                function: p.function.clone(),
                op: p.op.map(|op| op.name()),
            }),
            start_unix_ns: unix(f.window.start),
            end_unix_ns: unix(f.window.end),
            units: Units {
                first: f.units.first,
                last: f.units.last,
                slow: f.units.slow,
                worst: f.units.worst,
            },
            shifted: f.shifted,
            baseline_ns: f.baseline_ns,
            excess_ns: f.excess_ns,
            blame: f
                .blame
                .iter()
                .map(|b| Blame {
                    cause: b.cause.name(),
                    ns: b.ns,
                    lost_ns: b.lost_ns,
                    share: if f.excess_ns == 0 {
                        0.0
                    } else {
                        b.ns as f64 / f.excess_ns as f64
                    },
                    detail: b.detail.clone(),
                })
                .collect(),
            summary: words::summary(f),
            recommendation: words::recommendation(f, command),
            evidence: f
                .evidence
                .iter()
                .map(|e| Evidence {
                    what: e.what.clone(),
                    pid: e.pid,
                    tid: e.tid,
                    comm: e.comm.clone(),
                    path: e.path.clone(),
                    start_unix_ns: unix(e.start),
                    dur_ns: e.dur,
                })
                .collect(),
            cost: None,
        }
    }
}
