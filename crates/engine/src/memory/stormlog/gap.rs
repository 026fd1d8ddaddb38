//! Memory of the device that the allocator does not hold: device-used minus reserved, over the samples as they come.

use warptrace_model::{Int, MemoryEvent};

use super::counter;
use crate::memory::derived::Derived;
use crate::memory::math::{deviation, line, mean, round};
use crate::memory::phases::{PhaseAttribution, Phases};
use crate::memory::text::bytes_text;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GapRules {
    /// Nothing is said while no gap reaches this share of the device's total.
    pub ratio: f64,
    /// A spike is above this many standard deviations over the mean.
    pub spike_zscore: f64,
    /// A drift explains at least this share of the variance.
    pub drift_r_squared: f64,
    /// Mean share of inactive split blocks in reserved.
    pub fragmentation_ratio: f64,
}

impl Default for GapRules {
    fn default() -> GapRules {
        GapRules {
            ratio: 0.05,
            spike_zscore: 2.0,
            drift_r_squared: 0.6,
            fragmentation_ratio: 0.3,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct GapFinding {
    pub critical: bool,
    /// 0..=1, to 3 decimals.
    pub confidence: f64,
    pub evidence: GapEvidence,
    pub description: String,
    /// Nanoseconds since the Unix epoch.
    pub at_ns: Int,
    pub phase: Option<PhaseAttribution>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GapEvidence {
    TransientSpike {
        spike_count: usize,
        max_gap_bytes: f64,
        max_zscore: f64,
        mean_gap_bytes: f64,
        std_gap_bytes: f64,
    },
    PersistentDrift {
        slope_bytes_per_sec: f64,
        r_squared: f64,
        p_value: f64,
        gap_start_bytes: f64,
        gap_end_bytes: f64,
    },
    FragmentationLike {
        avg_fragmentation_ratio: f64,
        max_fragmentation_ratio: f64,
        avg_gap_bytes: f64,
        sample_count: usize,
    },
}

impl GapEvidence {
    pub const fn classification(&self) -> &'static str {
        match self {
            GapEvidence::TransientSpike { .. } => "transient_spike",
            GapEvidence::PersistentDrift { .. } => "persistent_drift",
            GapEvidence::FragmentationLike { .. } => "fragmentation_like",
        }
    }
}

impl GapFinding {
    pub const fn severity(&self) -> &'static str {
        if self.critical { "critical" } else { "warning" }
    }
}

/// Findings, the worst first. Equal times give no drift (the package fails there).
pub fn gaps(events: &[MemoryEvent], rules: &GapRules, phases: Option<&Phases>) -> Vec<GapFinding> {
    let mut used: Vec<&MemoryEvent> = Vec::new();
    let mut gaps: Vec<f64> = Vec::new();
    let mut largest_ratio = 0.0_f64;
    for event in events {
        if !event.event_type.trim().eq_ignore_ascii_case("sample") {
            continue;
        }
        let (Some(in_use), Some(reserved), Some(total)) = (
            counter(event.device_used_bytes.as_ref()),
            counter(event.allocator_reserved_bytes.as_ref()),
            counter(event.device_total_bytes.as_ref()).filter(|total| *total > 0),
        ) else {
            continue;
        };
        let gap = in_use.saturating_sub(reserved) as f64;
        largest_ratio = largest_ratio.max((gap / total as f64).abs());
        used.push(event);
        gaps.push(gap);
    }
    if used.len() < 3 || largest_ratio < rules.ratio {
        return Vec::new();
    }
    let mut findings: Vec<GapFinding> = [
        spikes(&used, &gaps, rules),
        drift(&used, &gaps, rules),
        fragmentation(&used, &gaps, rules),
    ]
    .into_iter()
    .flatten()
    .map(|(mut finding, event)| {
        finding.phase = phases.and_then(|p| p.resolve_event(event));
        finding
    })
    .collect();
    findings.sort_by(|a, b| {
        b.critical
            .cmp(&a.critical)
            .then(b.confidence.total_cmp(&a.confidence))
    });
    findings
}

fn finding(
    event: &MemoryEvent,
    critical: bool,
    confidence: f64,
    evidence: GapEvidence,
    description: String,
) -> (GapFinding, &MemoryEvent) {
    let finding = GapFinding {
        critical,
        confidence: round(confidence, 3),
        evidence,
        description,
        at_ns: event.timestamp_ns.clone(),
        phase: None,
    };
    (finding, event)
}

fn first_max(values: &[f64]) -> Option<usize> {
    let mut best = None;
    for (i, value) in values.iter().enumerate() {
        if best.is_none_or(|b: usize| *value > values[b]) {
            best = Some(i);
        }
    }
    best
}

fn spikes<'a>(
    events: &[&'a MemoryEvent],
    gaps: &[f64],
    rules: &GapRules,
) -> Option<(GapFinding, &'a MemoryEvent)> {
    let (center, spread) = (mean(gaps)?, deviation(gaps)?);
    if spread == 0.0 {
        return None;
    }
    let zscore = |gap: f64| (gap - center) / spread;
    let count = gaps
        .iter()
        .filter(|g| zscore(**g) > rules.spike_zscore)
        .count();
    let at = first_max(gaps)?;
    let largest = zscore(gaps[at]);
    if count == 0 {
        return None;
    }
    Some(finding(
        events[at],
        largest > 4.0,
        (largest / 6.0).min(1.0),
        GapEvidence::TransientSpike {
            spike_count: count,
            max_gap_bytes: gaps[at],
            max_zscore: round(largest, 3),
            mean_gap_bytes: round(center, 1),
            std_gap_bytes: round(spread, 1),
        },
        format!(
            "Detected {count} transient spike(s) in the device-vs-allocator gap (max z-score {largest:.1})."
        ),
    ))
}

fn drift<'a>(
    events: &[&'a MemoryEvent],
    gaps: &[f64],
    rules: &GapRules,
) -> Option<(GapFinding, &'a MemoryEvent)> {
    if gaps.len() < 5 {
        return None;
    }
    let start = &events[0].timestamp_ns;
    let points: Vec<(f64, f64)> = events
        .iter()
        .zip(gaps)
        .map(|(e, gap)| (e.timestamp_ns.minus(start).to_f64() / 1e9, *gap))
        .collect();
    let line = line(&points)?;
    if line.slope <= 0.0 || line.r_squared < rules.drift_r_squared {
        return None;
    }
    let rate = Int::truncate(line.slope).unwrap_or(Int::ZERO);
    Some(finding(
        events[events.len() - 1],
        line.r_squared > 0.85,
        line.r_squared,
        GapEvidence::PersistentDrift {
            slope_bytes_per_sec: round(line.slope, 1),
            r_squared: round(line.r_squared, 4),
            p_value: round(line.p_value, 6),
            gap_start_bytes: gaps[0],
            gap_end_bytes: gaps[gaps.len() - 1],
        },
        format!(
            "Device-vs-allocator gap is drifting upward at {}/s (R²={:.2}).",
            bytes_text(&rate, 2),
            line.r_squared
        ),
    ))
}

fn fragmentation<'a>(
    events: &[&'a MemoryEvent],
    gaps: &[f64],
    rules: &GapRules,
) -> Option<(GapFinding, &'a MemoryEvent)> {
    let (mut at, mut ratios, mut of_gaps) = (Vec::new(), Vec::new(), Vec::new());
    for (event, gap) in events.iter().zip(gaps) {
        if let Some(ratio) = Derived::of(event).fragmentation_ratio {
            at.push(*event);
            ratios.push(ratio);
            of_gaps.push(*gap);
        }
    }
    let average = mean(&ratios)?;
    let largest = first_max(&ratios)?;
    if average < rules.fragmentation_ratio {
        return None;
    }
    Some(finding(
        at[largest],
        average > 0.5,
        (average / 0.6).min(1.0),
        GapEvidence::FragmentationLike {
            avg_fragmentation_ratio: round(average, 4),
            max_fragmentation_ratio: round(ratios[largest], 4),
            avg_gap_bytes: round(mean(&of_gaps)?, 1),
            sample_count: ratios.len(),
        },
        format!(
            "Inactive split blocks average {:.0}% of reserved memory: freed space inside segments still in use, \
             which can neither return to the device nor serve a larger request.",
            average * 100.0
        ),
    ))
}
