//! Which rank's device memory rose first, after aligning the ranks by their first samples.
//!
//! A rank's devices are one series here, and a rank that starts late is moved to the start of the others.

use std::collections::BTreeMap;
use std::sync::Arc;

use warptrace_model::MemoryEvent;

use super::{counter, is_sample};
use crate::memory::phases::{PhaseAttribution, Phases};

/// Below this no rise is a spike, bytes.
const MIN_SPIKE_BYTES: i128 = 64 << 20;

#[derive(Debug, Clone, PartialEq, Default)]
pub struct CrossRank {
    pub job_id: Option<Arc<str>>,
    /// 0 without samples.
    pub world_size: i128,
    pub participating_ranks: Vec<i128>,
    pub missing_ranks: Vec<i128>,
    pub rank_sample_counts: Vec<(i128, u64)>,
    /// First sample of the rank minus first sample of the anchor, ns.
    pub alignment_offsets_ns: Vec<(i128, i128)>,
    /// Aligned time of the second spike.
    pub cluster_onset_timestamp_ns: Option<i128>,
    pub first_cause_suspects: Vec<Suspect>,
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Suspect {
    pub rank: i128,
    /// Nanoseconds since the Unix epoch.
    pub first_spike_timestamp_ns: i128,
    pub aligned_first_spike_timestamp_ns: i128,
    pub peak_delta_bytes: i128,
    /// Rises in a row that make the spike.
    pub spike_window_samples: u64,
    pub lead_over_cluster_onset_ns: i128,
    /// `low`, `medium`, `high`.
    pub confidence: &'static str,
    pub supporting_ranks_at_or_before_onset: usize,
    pub phase: Option<PhaseAttribution>,
}

struct Sample<'a> {
    at: i128,
    used: i128,
    event: &'a MemoryEvent,
}

struct Spike<'a> {
    rank: i128,
    at: i128,
    aligned: i128,
    delta: i128,
    rises: u64,
    event: &'a MemoryEvent,
}

pub fn cross_rank(events: &[MemoryEvent], phases: Option<&Phases>) -> CrossRank {
    let mut answer = CrossRank::default();
    let mut notes: Vec<String> = Vec::new();
    let mut note = |text: String| {
        if !notes.contains(&text) {
            notes.push(text);
        }
    };
    if events.is_empty() {
        note("No telemetry events were provided.".into());
    }
    let mut samples: Vec<&MemoryEvent> = events.iter().filter(|e| is_sample(e)).collect();
    if samples.len() < events.len() {
        note("Ignored non-sample events during cross-rank analysis.".into());
    }
    let all = samples.len();
    samples.retain(|e| e.device_used_bytes.is_some());
    if samples.len() < all {
        note("Ignored samples without device-used memory during cross-rank analysis.".into());
    }
    if samples.is_empty() {
        note("No sample telemetry events were available for distributed analysis.".into());
        answer.notes = notes;
        return answer;
    }
    let jobs = most_frequent(samples.iter().filter_map(|e| e.identity.job_id.clone()));
    if jobs.len() > 1 {
        note("Multiple job_id values were observed; filtering to the most common value.".into());
        samples.retain(|e| e.identity.job_id == Some(jobs[0].clone()));
    }
    answer.job_id = jobs.into_iter().next();

    let mut ranks: BTreeMap<i128, Vec<Sample<'_>>> = BTreeMap::new();
    for event in samples.iter().copied() {
        if let (Some(rank), Some(at), Some(used)) = (
            event.identity.rank.to_i128(),
            event.timestamp_ns.to_i128(),
            counter(event.device_used_bytes.as_ref()),
        ) {
            ranks
                .entry(rank)
                .or_default()
                .push(Sample { at, used, event });
        }
    }
    for samples in ranks.values_mut() {
        samples.sort_by_key(|s| s.at);
    }
    let worlds = most_frequent(
        samples
            .iter()
            .filter_map(|e| e.identity.world_size.to_i128())
            .filter(|w| *w > 1),
    );
    let last_rank = ranks.keys().next_back().copied().unwrap_or(0);
    answer.world_size = worlds
        .first()
        .copied()
        .unwrap_or(1)
        .max(last_rank.saturating_add(1));
    answer.participating_ranks = ranks.keys().copied().collect();
    // A world size is what a record says; a list of all its ranks may be longer than memory.
    answer.missing_ranks = (0..answer.world_size)
        .filter(|rank| !ranks.contains_key(rank))
        .take(MAX_LISTED_RANKS)
        .collect();
    answer.rank_sample_counts = ranks.iter().map(|(r, s)| (*r, s.len() as u64)).collect();
    if !answer.missing_ranks.is_empty() {
        note(format!(
            "Missing rank data for ranks: {}.",
            listed(&answer.missing_ranks)
        ));
    }
    let anchor = ranks
        .values()
        .next()
        .and_then(|s| s.first())
        .map_or(0, |s| s.at);
    let interval = median_interval(&ranks);
    for (rank, samples) in &ranks {
        let offset = samples[0].at - anchor;
        answer.alignment_offsets_ns.push((*rank, offset));
        if offset.abs() > interval.saturating_mul(5) && interval > 0 {
            note(format!(
                "Rank {rank} starts {offset} ns from the anchor; first-sample alignment may be approximate."
            ));
        }
    }
    if ranks.len() < 2 {
        note("At least two ranks are required for cross-rank first-cause analysis.".into());
        answer.notes = notes;
        return answer;
    }
    let short: Vec<i128> = ranks
        .iter()
        .filter(|(_, s)| s.len() < 2)
        .map(|(r, _)| *r)
        .collect();
    if !short.is_empty() {
        note(format!(
            "Some ranks have fewer than two samples and cannot contribute to spike detection: {}.",
            listed(&short)
        ));
    }
    let mut spikes: Vec<Spike<'_>> = ranks
        .iter()
        .filter_map(|(rank, samples)| spike(*rank, samples, samples[0].at - anchor))
        .collect();
    spikes.sort_by_key(|s| (s.aligned, -s.delta, s.rank));
    match spikes.len() {
        0 => note("No qualifying cross-rank spikes were detected.".into()),
        1 => note("Only one rank produced a qualifying spike; confidence is limited.".into()),
        _ => {}
    }
    let onset = spikes.get(1).map(|s| s.aligned);
    answer.cluster_onset_timestamp_ns = onset;
    let first = spikes.first().map_or(0, |s| s.aligned);
    let earliest = spikes.iter().filter(|s| s.aligned == first).count();
    let sparse = !answer.missing_ranks.is_empty() || !short.is_empty();
    let at_onset = spikes
        .iter()
        .filter(|s| s.aligned <= onset.unwrap_or(first))
        .count();
    answer.first_cause_suspects = spikes[..at_onset]
        .iter()
        .map(|s| {
            let lead = onset.map_or(0, |onset| onset - s.aligned);
            let confidence = if spikes.len() < 2 || sparse || s.aligned != first {
                "low"
            } else if earliest == 1 && (lead >= interval || interval == 0) {
                "high"
            } else {
                "medium"
            };
            Suspect {
                rank: s.rank,
                first_spike_timestamp_ns: s.at,
                aligned_first_spike_timestamp_ns: s.aligned,
                peak_delta_bytes: s.delta,
                spike_window_samples: s.rises,
                lead_over_cluster_onset_ns: lead,
                confidence,
                supporting_ranks_at_or_before_onset: at_onset,
                phase: phases.and_then(|p| p.resolve_event(s.event)),
            }
        })
        .collect();
    answer.notes = notes;
    answer
}

/// Ranks named in one list, at most.
const MAX_LISTED_RANKS: usize = 65_536;

fn listed(ranks: &[i128]) -> String {
    let texts: Vec<String> = ranks.iter().map(i128::to_string).collect();
    texts.join(", ")
}

/// Distinct values, the most frequent first; of equally frequent ones the one that came first.
fn most_frequent<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut counts: Vec<(T, usize)> = Vec::new();
    for value in values {
        match counts.iter_mut().find(|(v, _)| *v == value) {
            Some((_, count)) => *count += 1,
            None => counts.push((value, 1)),
        }
    }
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.into_iter().map(|(value, _)| value).collect()
}

/// Between neighbouring samples of a rank, over all ranks; 0 without any.
fn median_interval(ranks: &BTreeMap<i128, Vec<Sample<'_>>>) -> i128 {
    let mut intervals: Vec<i128> = ranks
        .values()
        .flat_map(|s| s.windows(2).map(|pair| pair[1].at - pair[0].at))
        .filter(|interval| *interval > 0)
        .collect();
    intervals.sort_unstable();
    let middle = intervals.len() / 2;
    match intervals.len() {
        0 => 0,
        n if n % 2 == 1 => intervals[middle],
        _ => (intervals[middle - 1] + intervals[middle]) / 2,
    }
}

fn spike<'a>(rank: i128, samples: &[Sample<'a>], offset: i128) -> Option<Spike<'a>> {
    let peak = samples.iter().map(|s| s.used).max()?;
    let threshold = MIN_SPIKE_BYTES.max(peak / 10);
    let (mut delta, mut rises) = (0, 0);
    for pair in samples.windows(2) {
        let rise = pair[1].used - pair[0].used;
        if rise <= 0 {
            (delta, rises) = (0, 0);
            continue;
        }
        delta += rise;
        rises += 1;
        if delta >= threshold {
            return Some(Spike {
                rank,
                at: pair[1].at,
                aligned: pair[1].at - offset,
                delta,
                rises,
                event: pair[1].event,
            });
        }
    }
    None
}
