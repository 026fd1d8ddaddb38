//! Rises of memory outside the allocator that go with communication: several ranks at the same time, or near an event that
//! speaks of a collective.
//!
//! A rank's devices are one series here. Spikes are outliers by median and median distance, so that they do not hide each
//! other.

use std::collections::{BTreeMap, BTreeSet};

use warptrace_model::{MemoryEvent, Object, Value};

use super::{counter, is_sample};
use crate::memory::math::{deviation, mean, median, median_distance, round};
use crate::memory::phases::{PhaseAttribution, Phases};

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CollectiveConfig {
    /// At least 3.
    pub min_samples_per_rank: u64,
    pub min_gap_bytes: u64,
    /// Of the device's total.
    pub min_gap_ratio: f64,
    pub robust_zscore_threshold: f64,
    /// How far from a spike an event may speak of a collective.
    pub marker_window_ns: u64,
    pub interval_padding_ns: u64,
    /// How far apart the spikes of ranks may be.
    pub synchrony_window_ns: u64,
    /// 0..=1.
    pub min_synchrony_ratio: f64,
    /// 0..=1.
    pub min_confidence: f64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CollectiveError {
    Preset(String),
    Fields(Vec<String>),
    NotANumber(&'static str),
    Below(&'static str, &'static str),
    NotAShare(&'static str),
}

impl std::fmt::Display for CollectiveError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CollectiveError::Preset(name) => write!(
                f,
                "Unknown collective attribution preset: '{name}' (known: high, low, medium)"
            ),
            CollectiveError::Fields(fields) => write!(
                f,
                "Unknown collective attribution override fields: {}",
                fields.join(", ")
            ),
            CollectiveError::NotANumber(field) => write!(f, "{field} must be a number"),
            CollectiveError::Below(field, bound) => write!(f, "{field} must be {bound}"),
            CollectiveError::NotAShare(field) => write!(f, "{field} must be in [0, 1]"),
        }
    }
}

impl std::error::Error for CollectiveError {}

impl Default for CollectiveConfig {
    /// The preset `medium`.
    fn default() -> CollectiveConfig {
        CollectiveConfig {
            min_samples_per_rank: 6,
            min_gap_bytes: 128 << 20,
            min_gap_ratio: 0.04,
            robust_zscore_threshold: 2.5,
            marker_window_ns: 150_000_000,
            interval_padding_ns: 120_000_000,
            synchrony_window_ns: 120_000_000,
            min_synchrony_ratio: 0.5,
            min_confidence: 0.5,
        }
    }
}

impl CollectiveConfig {
    /// Sensitivity `low`, `medium` or `high` (any case, blanks around it), with single settings replaced.
    ///
    /// # Errors
    /// An unknown preset or setting, or a value out of range.
    pub fn resolve(preset: &str, overrides: &Object) -> Result<CollectiveConfig, CollectiveError> {
        let medium = CollectiveConfig::default();
        let mut config = match preset.trim().to_lowercase().as_str() {
            "low" => CollectiveConfig {
                min_samples_per_rank: 8,
                min_gap_bytes: 256 << 20,
                min_gap_ratio: 0.06,
                robust_zscore_threshold: 3.0,
                marker_window_ns: 120_000_000,
                interval_padding_ns: 100_000_000,
                synchrony_window_ns: 100_000_000,
                min_synchrony_ratio: 0.6,
                min_confidence: 0.7,
            },
            "medium" => medium,
            "high" => CollectiveConfig {
                min_samples_per_rank: 5,
                min_gap_bytes: 64 << 20,
                min_gap_ratio: 0.025,
                robust_zscore_threshold: 1.8,
                marker_window_ns: 180_000_000,
                interval_padding_ns: 160_000_000,
                synchrony_window_ns: 180_000_000,
                min_synchrony_ratio: 0.34,
                min_confidence: 0.35,
            },
            _ => return Err(CollectiveError::Preset(preset.into())),
        };
        let mut unknown = Vec::new();
        let mut wrong = None;
        for (key, value) in overrides.iter() {
            let Some(number) = number(value) else {
                match FIELDS.into_iter().find(|f| *f == key) {
                    Some(field) => wrong = Some(CollectiveError::NotANumber(field)),
                    None => unknown.push(key.to_owned()),
                }
                continue;
            };
            // Negative numbers are refused below; the check needs to see them.
            match key {
                "min_samples_per_rank" if number < 3.0 => {
                    wrong = wrong.or(Some(CollectiveError::Below(FIELDS[0], ">= 3")));
                }
                "min_samples_per_rank" => config.min_samples_per_rank = number as u64,
                "min_gap_bytes" => set(&mut config.min_gap_bytes, number, FIELDS[1], &mut wrong),
                "min_gap_ratio" => config.min_gap_ratio = number,
                "robust_zscore_threshold" => config.robust_zscore_threshold = number,
                "marker_window_ns" => {
                    set(&mut config.marker_window_ns, number, FIELDS[4], &mut wrong);
                }
                "interval_padding_ns" => {
                    set(
                        &mut config.interval_padding_ns,
                        number,
                        FIELDS[5],
                        &mut wrong,
                    );
                }
                "synchrony_window_ns" => {
                    set(
                        &mut config.synchrony_window_ns,
                        number,
                        FIELDS[6],
                        &mut wrong,
                    );
                }
                "min_synchrony_ratio" => config.min_synchrony_ratio = number,
                "min_confidence" => config.min_confidence = number,
                _ => unknown.push(key.to_owned()),
            }
        }
        if !unknown.is_empty() {
            unknown.sort();
            return Err(CollectiveError::Fields(unknown));
        }
        if let Some(error) = wrong {
            return Err(error);
        }
        if config.min_gap_ratio < 0.0 {
            return Err(CollectiveError::Below(FIELDS[2], ">= 0"));
        }
        if config.robust_zscore_threshold <= 0.0 {
            return Err(CollectiveError::Below(FIELDS[3], "> 0"));
        }
        for (field, share) in [
            (FIELDS[7], config.min_synchrony_ratio),
            (FIELDS[8], config.min_confidence),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(CollectiveError::NotAShare(field));
            }
        }
        Ok(config)
    }
}

const FIELDS: [&str; 9] = [
    "min_samples_per_rank",
    "min_gap_bytes",
    "min_gap_ratio",
    "robust_zscore_threshold",
    "marker_window_ns",
    "interval_padding_ns",
    "synchrony_window_ns",
    "min_synchrony_ratio",
    "min_confidence",
];

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Int(n) => Some(n.to_f64()),
        Value::Float(x) => Some(*x),
        _ => None,
    }
}

fn set(to: &mut u64, number: f64, field: &'static str, wrong: &mut Option<CollectiveError>) {
    if number < 0.0 {
        *wrong = wrong.take().or(Some(CollectiveError::Below(field, ">= 0")));
    } else {
        *to = number as u64;
    }
}

/// Ascending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CollectiveClass {
    Suspect,
    Likely,
    Confident,
}

impl CollectiveClass {
    pub const fn name(self) -> &'static str {
        match self {
            CollectiveClass::Suspect => "collective_suspect",
            CollectiveClass::Likely => "collective_likely",
            CollectiveClass::Confident => "collective_confident",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct CollectiveInterval {
    pub rank: i128,
    /// Nanoseconds since the Unix epoch.
    pub start_ns: i128,
    pub end_ns: i128,
    pub class: CollectiveClass,
    /// 0..=1, to 3 decimals.
    pub confidence: f64,
    /// Sorted.
    pub reason_codes: BTreeSet<&'static str>,
    pub evidence: CollectiveEvidence,
    pub phase: Option<PhaseAttribution>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CollectiveEvidence {
    pub marker_hits: usize,
    pub synchronized_ranks: usize,
    pub expected_world_size: i128,
    pub synchrony_ratio: f64,
    pub peak_gap_bytes: i128,
    /// Of the device's total; `None` when that is not known.
    pub peak_gap_ratio: Option<f64>,
    pub robust_zscore: f64,
}

struct Spike<'a> {
    event: &'a MemoryEvent,
    at: i128,
    gap: i128,
    ratio: Option<f64>,
    zscore: f64,
    /// Times of the events about collectives nearby.
    markers: Vec<i128>,
}

/// Intervals by rank, then by start.
pub fn collective(
    events: &[MemoryEvent],
    config: &CollectiveConfig,
    phases: Option<&Phases>,
) -> Vec<CollectiveInterval> {
    let mut samples: BTreeMap<i128, Vec<(i128, &MemoryEvent)>> = BTreeMap::new();
    let mut markers: BTreeMap<i128, Vec<i128>> = BTreeMap::new();
    let (mut world, mut start) = (1, None::<i128>);
    for event in events {
        let (Some(rank), Some(at)) = (event.identity.rank.to_i128(), event.timestamp_ns.to_i128())
        else {
            continue;
        };
        world = world.max(event.identity.world_size.to_i128().unwrap_or(1));
        start = Some(start.map_or(at, |start| start.min(at)));
        if speaks_of_collectives(event) {
            markers.entry(rank).or_default().push(at);
        }
        if is_sample(event) {
            samples.entry(rank).or_default().push((at, event));
        }
    }
    let mut spikes: BTreeMap<i128, Vec<Spike<'_>>> = BTreeMap::new();
    for (rank, mut samples) in samples {
        samples.sort_by_key(|(at, _)| *at);
        let of_rank = markers.get(&rank).map_or(&[][..], Vec::as_slice);
        let found = spikes_of(&samples, of_rank, config);
        if !found.is_empty() {
            spikes.insert(rank, found);
        }
    }
    let window = i128::from(config.synchrony_window_ns);
    let mut intervals = Vec::new();
    for (rank, of_rank) in &spikes {
        let mut merged: Vec<CollectiveInterval> = Vec::new();
        for spike in of_rank {
            let together = spikes
                .values()
                .filter(|others| others.iter().any(|o| (o.at - spike.at).abs() <= window))
                .count();
            let Some(next) = score(
                *rank,
                spike,
                together,
                world,
                start.unwrap_or(0),
                config,
                phases,
            ) else {
                continue;
            };
            match merged.last_mut() {
                Some(last) if next.start_ns <= last.end_ns => merge(last, next),
                _ => merged.push(next),
            }
        }
        intervals.append(&mut merged);
    }
    intervals
}

fn spikes_of<'a>(
    samples: &[(i128, &'a MemoryEvent)],
    markers: &[i128],
    config: &CollectiveConfig,
) -> Vec<Spike<'a>> {
    let known: Vec<(i128, i128, &MemoryEvent)> = samples
        .iter()
        .filter_map(|(at, event)| {
            let used = counter(event.device_used_bytes.as_ref())?;
            let reserved = counter(event.allocator_reserved_bytes.as_ref())?;
            Some((*at, used.saturating_sub(reserved).max(0), *event))
        })
        .collect();
    if (known.len() as u64) < config.min_samples_per_rank {
        return Vec::new();
    }
    let gaps: Vec<f64> = known.iter().map(|(_, gap, _)| *gap as f64).collect();
    let zscore = zscore(&gaps);
    let window = i128::from(config.marker_window_ns);
    known
        .into_iter()
        .filter_map(|(at, gap, event)| {
            let ratio = counter(event.device_total_bytes.as_ref())
                .filter(|total| *total > 0)
                .map(|total| gap as f64 / total as f64);
            let significant = gap >= i128::from(config.min_gap_bytes)
                || ratio.is_some_and(|r| r >= config.min_gap_ratio);
            let zscore = zscore(gap as f64);
            (significant && zscore >= config.robust_zscore_threshold).then(|| Spike {
                event,
                at,
                gap,
                ratio,
                zscore,
                markers: markers
                    .iter()
                    .copied()
                    .filter(|m| (m - at).abs() <= window)
                    .collect(),
            })
        })
        .collect()
}

/// How far above the middle a value is: by median distance, or by standard deviations where more than half are equal.
fn zscore(values: &[f64]) -> impl Fn(f64) -> f64 + use<> {
    let center = median(values).unwrap_or(0.0);
    let distance = median_distance(values, center).unwrap_or(0.0);
    let (mean, spread) = (
        mean(values).unwrap_or(0.0),
        deviation(values).unwrap_or(0.0),
    );
    move |value| {
        let z = if distance > 0.0 {
            0.6745 * (value - center) / distance
        } else if spread > 0.0 {
            (value - mean) / spread
        } else {
            0.0
        };
        z.max(0.0)
    }
}

fn score(
    rank: i128,
    spike: &Spike<'_>,
    together: usize,
    world: i128,
    trace_start: i128,
    config: &CollectiveConfig,
    phases: Option<&Phases>,
) -> Option<CollectiveInterval> {
    let synchrony = if world > 1 {
        ((together.saturating_sub(1)) as f64 / (world - 1) as f64).clamp(0.0, 1.0)
    } else {
        0.0
    };
    let share = |value: f64, of: f64| if of > 0.0 { (value / of).min(1.0) } else { 1.0 };
    let divergence = share(spike.gap as f64, config.min_gap_bytes as f64)
        .max(spike.ratio.map_or(0.0, |r| share(r, config.min_gap_ratio)));
    let marked = !spike.markers.is_empty();
    let alone = world <= 1 || together <= 1;
    let mut confidence = 0.34 * synchrony
        + 0.16 * share(spike.zscore, config.robust_zscore_threshold)
        + 0.16 * divergence;
    confidence += if marked { 0.34 } else { -0.15 };
    if alone {
        confidence -= 0.15;
    }
    if spike.ratio.is_none() {
        confidence -= 0.05;
    }
    let confidence = round(confidence.clamp(0.0, 1.0), 3);
    if confidence <= 0.0 || confidence < config.min_confidence {
        return None;
    }
    let mut reason_codes = BTreeSet::from(["gap_spike_statistical_outlier"]);
    if marked {
        reason_codes.extend(["marker_collective_token", "marker_spike_overlap"]);
    } else {
        reason_codes.insert("weak_marker_signal");
    }
    if synchrony >= config.min_synchrony_ratio {
        reason_codes.insert("cross_rank_synchrony");
    }
    if divergence >= 0.5 {
        reason_codes.insert("allocator_device_divergence");
    }
    if alone {
        reason_codes.insert("single_rank_only");
    }
    let padding = i128::from(config.interval_padding_ns);
    let times = || spike.markers.iter().copied().chain([spike.at]);
    let start = times().min().unwrap_or(spike.at) - padding;
    Some(CollectiveInterval {
        rank,
        start_ns: start.max(trace_start).max(0),
        end_ns: times().max().unwrap_or(spike.at) + padding,
        class: if confidence >= 0.8 {
            CollectiveClass::Confident
        } else if confidence >= 0.6 {
            CollectiveClass::Likely
        } else {
            CollectiveClass::Suspect
        },
        confidence,
        reason_codes,
        evidence: CollectiveEvidence {
            marker_hits: spike.markers.len(),
            synchronized_ranks: together,
            expected_world_size: world,
            synchrony_ratio: round(synchrony, 4),
            peak_gap_bytes: spike.gap,
            peak_gap_ratio: spike.ratio.map(|r| round(r, 6)),
            robust_zscore: round(spike.zscore, 4),
        },
        phase: phases.and_then(|p| p.resolve_event(spike.event)),
    })
}

fn merge(into: &mut CollectiveInterval, next: CollectiveInterval) {
    into.start_ns = into.start_ns.min(next.start_ns);
    into.end_ns = into.end_ns.max(next.end_ns);
    into.class = into.class.max(next.class);
    into.confidence = into.confidence.max(next.confidence);
    into.reason_codes.extend(next.reason_codes);
    let (a, b) = (&mut into.evidence, next.evidence);
    a.marker_hits = a.marker_hits.max(b.marker_hits);
    a.synchronized_ranks = a.synchronized_ranks.max(b.synchronized_ranks);
    a.expected_world_size = a.expected_world_size.max(b.expected_world_size);
    a.synchrony_ratio = a.synchrony_ratio.max(b.synchrony_ratio);
    a.peak_gap_bytes = a.peak_gap_bytes.max(b.peak_gap_bytes);
    a.peak_gap_ratio = match (a.peak_gap_ratio, b.peak_gap_ratio) {
        (Some(x), Some(y)) => Some(x.max(y)),
        (x, y) => x.or(y),
    };
    a.robust_zscore = a.robust_zscore.max(b.robust_zscore);
    into.phase = merge_phases(into.phase.take(), next.phase);
}

/// Both, as one: the same phase stays, different ones are ambiguous.
fn merge_phases(
    a: Option<PhaseAttribution>,
    b: Option<PhaseAttribution>,
) -> Option<PhaseAttribution> {
    let (a, b) = match (a, b) {
        (Some(a), Some(b)) => (a, b),
        (a, b) => return a.or(b),
    };
    if a == b && matches!(a, PhaseAttribution::Unique { .. }) {
        return Some(a);
    }
    let paths = |p: PhaseAttribution| match p {
        PhaseAttribution::Unique { path, .. } => vec![path],
        PhaseAttribution::Ambiguous { paths, .. } => paths,
    };
    let all: BTreeSet<String> = paths(a).into_iter().chain(paths(b)).collect();
    Some(PhaseAttribution::Ambiguous {
        paths: all.into_iter().collect(),
        likely: None,
    })
}

/// Whether an event's type, context or any text in its metadata names a collective.
fn speaks_of_collectives(event: &MemoryEvent) -> bool {
    names_collective(&event.event_type)
        || event.context.as_deref().is_some_and(names_collective)
        || event.metadata.values.iter().any(|(_, v)| any_text(v))
}

fn any_text(value: &Value) -> bool {
    match value {
        Value::String(text) => names_collective(text),
        Value::Array(items) => items.iter().any(any_text),
        Value::Object(object) => object.iter().any(|(_, v)| any_text(v)),
        _ => false,
    }
}

/// Whether `text` names a collective operation or its library; `-` is as `_`, and `_` may be left out.
pub(in crate::memory) fn names_collective(text: &str) -> bool {
    const WORDS: [&str; 11] = [
        "nccl",
        "collective",
        "communication",
        "all_reduce",
        "allreduce",
        "all_gather",
        "allgather",
        "reduce_scatter",
        "reducescatter",
        "broadcast",
        "barrier",
    ];
    let text = text.to_lowercase().replace('-', "_");
    let plain = text.replace('_', "");
    WORDS
        .iter()
        .any(|word| text.contains(word) || plain.contains(word))
}
