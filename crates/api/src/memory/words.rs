//! The words of a finding about memory, made from its data.
//!
//! Advice is given only where its evidence is there, and never for a cause that the evidence does not name.

use serde_json::{Map, Value, json};
use warptrace_engine::memory::{
    CheckKind, FirstCause, Leak, Level, MemoryFinding, MemoryReport, OomMoment, RankReport, Series,
    Unknown, What,
};

use super::{check_words, evidence, real};
use crate::words::duration_text;

/// A size for people, in binary units and three figures: `840 B`, `12.3 KiB`, `1.50 GiB`; the sign of a change is kept.
pub fn size_text(bytes: i64) -> String {
    size_words(bytes as f64)
}

/// [`size_text`] of what was computed.
pub fn size_words(bytes: f64) -> String {
    let mut size = bytes.abs();
    let sign = if bytes < 0.0 { "-" } else { "" };
    if size < 1023.5 {
        return format!("{sign}{size:.0} B");
    }
    let mut unit = "";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        unit = next;
        size /= 1024.0;
        if size < 1023.5 {
            break;
        }
    }
    let digits = if size < 9.995 {
        2
    } else if size < 99.95 {
        1
    } else {
        0
    };
    format!("{sign}{size:.digits$} {unit}")
}

pub(super) struct Words {
    pub(super) title: String,
    pub(super) summary: String,
    pub(super) recommendation: String,
    pub(super) evidence: Map<String, Value>,
}

/// `rank 3, device 0`, or `device 0` where there is one rank.
fn whom(one: &Series) -> String {
    let device = match one.key.device {
        -1 => "the CPU".to_owned(),
        device => format!("device {device}"),
    };
    if one.world_size > 1 || one.key.rank > 0 {
        format!("rank {}, {device}", one.key.rank)
    } else {
        device
    }
}

fn nanos(ns: i64) -> String {
    duration_text(u64::try_from(ns).unwrap_or(0))
}

fn percent(ratio: f64) -> String {
    format!("{:.0} %", ratio * 100.0)
}

fn level_words(level: Level) -> &'static str {
    match level {
        Level::Allocated => "allocated memory",
        Level::Reserved => "memory reserved by the allocator",
        Level::Used => "memory in use on the device",
        Level::Hidden => "device memory outside the allocator",
        Level::Inactive => "inactive split blocks",
    }
}

pub(super) fn of(report: &MemoryReport, finding: &MemoryFinding) -> Words {
    let one = &report.series[finding.series];
    let whom = whom(one);
    let during = match &finding.phase {
        Some(phase) => format!(", during {phase}"),
        None => String::new(),
    };
    match &finding.what {
        What::Oom { first, count } => oom(one, &report.ooms[*first], *count, &whom, &during),
        What::Leak(leak) => growth(
            leak,
            format!("Memory leaks on {whom}"),
            "find what keeps growing: compare two snapshots of torch.cuda.memory._snapshot() a minute apart; \
             the usual ones are losses kept with their graph (use .item() or .detach()), lists of outputs, and caches \
             without a limit",
        ),
        What::ReserveGrowth(leak) => growth(
            leak,
            format!("The allocator's reserve grows on {whom}, what is allocated from it does not"),
            "sizes that differ from step to step leave blocks that nothing else fits: pad or bucket the inputs, or set \
             PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
        ),
        What::HiddenGrowth(leak) => growth(
            leak,
            format!("Device memory outside the allocator grows on {whom}"),
            "it is not PyTorch's allocator: look at other processes on the device (nvidia-smi), at libraries with \
             workspaces of their own, and at communicators or streams made again and again",
        ),
        What::HiddenSpikes { hidden, ranks } => {
            let largest = &hidden.spikes[0];
            let above = largest.peak_bytes - hidden.median_bytes;
            let (on, hint) = match ranks.len() {
                0 | 1 => (whom.clone(), ""),
                n => (
                    format!("{n} ranks at once"),
                    " Ranks that rise together usually make buffers for communication.",
                ),
            };
            // A point of many moments does not say how long a spike within it was.
            let at_most = if one.point_ns() > 0 { "at most " } else { "" };
            let where_all = match ranks.len() {
                0 | 1 => String::new(),
                _ => format!(" (ranks {}; the most on {whom})", listed(ranks)),
            };
            Words {
                title: format!("{} more than usual outside the allocator on {on}", size_text(above)),
                summary: format!(
                    "{} of device memory lay outside the allocator for {at_most}{}{during}, {} is usual; {}{where_all}.{hint}",
                    size_text(largest.peak_bytes),
                    nanos((largest.end_ns - largest.start_ns).max(one.resolution_ns())),
                    size_text(hidden.median_bytes),
                    times(hidden.spike_count)
                ),
                recommendation: String::new(),
                evidence: evidence([
                    ("median_bytes", json!(hidden.median_bytes)),
                    ("peak_bytes", json!(largest.peak_bytes)),
                    ("spikes", json!(hidden.spike_count)),
                    ("ranks", json!(ranks)),
                ]),
            }
        }
        What::HiddenSteady(hidden) => {
            let share = one
                .total_bytes
                .map_or(0.0, |total| hidden.median_bytes as f64 / total as f64);
            Words {
                title: format!(
                    "{} of device memory is not the allocator's on {whom}",
                    size_text(hidden.median_bytes)
                ),
                summary: format!(
                    "{} of the device, all the time: contexts, communication buffers, other libraries or other processes.",
                    percent(share)
                ),
                recommendation: "nvidia-smi shows whether other processes are on the device".into(),
                evidence: evidence([
                    ("median_bytes", json!(hidden.median_bytes)),
                    ("min_bytes", json!(hidden.min_bytes)),
                    ("max_bytes", json!(hidden.max_bytes)),
                    ("share", real(share)),
                ]),
            }
        }
        What::Fragmentation(found) => Words {
            title: format!(
                "{} of reserved memory is fragmented on {whom}",
                percent(found.ratio)
            ),
            summary: format!(
                "{} on average lies free between used blocks (at most {}): it serves no larger request and cannot go \
                 back to the device.",
                size_text(found.mean_inactive_bytes),
                size_text(found.peak_inactive_bytes)
            ),
            recommendation: "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, or make sizes repeat (pad or bucket \
                             the inputs)"
                .into(),
            evidence: evidence([
                ("ratio", real(found.ratio)),
                ("mean_inactive_bytes", json!(found.mean_inactive_bytes)),
                ("peak_inactive_bytes", json!(found.peak_inactive_bytes)),
            ]),
        },
        What::NearlyFull {
            episodes,
            peak_bytes,
            total_bytes,
        } => Words {
            title: format!(
                "{whom} was nearly full: {} of {}",
                size_text(*peak_bytes),
                size_text(*total_bytes)
            ),
            summary: format!(
                "{} at its peak, {} above 95 %{during}.",
                percent(*peak_bytes as f64 / *total_bytes as f64),
                times(*episodes)
            ),
            recommendation: String::new(),
            evidence: evidence([
                ("episodes", json!(episodes)),
                ("peak_bytes", json!(peak_bytes)),
                ("total_bytes", json!(total_bytes)),
            ]),
        },
        What::FirstCause { ranks } => first_cause(&report.ranks[*ranks], one, &during),
        What::RankOutlier { ranks, outlier } => {
            let report = &report.ranks[*ranks];
            let outlier = &report.outliers[*outlier];
            let difference = outlier.bytes - outlier.peers_bytes;
            Words {
                title: format!(
                    "Rank {} holds {} {} than its peers",
                    outlier.rank,
                    size_text(difference.abs()),
                    if difference > 0 { "more" } else { "less" }
                ),
                summary: format!(
                    "{} of {} on {whom}; the others' median is {}.",
                    size_text(outlier.bytes),
                    level_words(report.level),
                    size_text(outlier.peers_bytes)
                ),
                recommendation: String::new(),
                evidence: evidence([
                    ("bytes", json!(outlier.bytes)),
                    ("peers_bytes", json!(outlier.peers_bytes)),
                ]),
            }
        }
    }
}

fn times(count: u64) -> String {
    match count {
        1 => "once".into(),
        n => format!("{n} times"),
    }
}

fn oom(one: &Series, moment: &OomMoment, count: usize, whom: &str, during: &str) -> Words {
    let level = |level: Level| moment.levels[level as usize];
    let mut held = Vec::new();
    for (of, word) in [
        (Level::Allocated, "allocated"),
        (Level::Reserved, "reserved"),
        (Level::Used, "in use on the device"),
    ] {
        if let Some(bytes) = level(of) {
            held.push(format!("{} {word}", size_text(bytes)));
        }
    }
    if let Some(total) = moment.total_bytes.or(one.total_bytes) {
        held.push(format!("of {}", size_text(total)));
    }
    let inactive = level(Level::Inactive).unwrap_or(0);
    let cached = level(Level::Reserved)
        .zip(level(Level::Allocated))
        .map_or(0, |(reserved, allocated)| reserved - allocated);
    let by_words = if moment.by_words {
        " The words of an error message say so, not its type."
    } else {
        ""
    };
    let recommendation = if cached > 0 && inactive > cached / 2 {
        "much of what was reserved was fragmented: set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True".into()
    } else {
        match &moment.dump_path {
            Some(path) => format!("the collector left a dump of the moment: {path}"),
            None => String::new(),
        }
    };
    Words {
        title: format!("Out of memory on {whom}"),
        summary: format!(
            "{}{during}: {}.{by_words}",
            match count {
                1 => "Once".to_owned(),
                n => format!("{n} times, first"),
            },
            if held.is_empty() {
                "nothing was measured at that moment".into()
            } else {
                held.join(", ")
            }
        ),
        recommendation,
        evidence: evidence([
            ("count", json!(count)),
            ("reason", json!(moment.reason)),
            ("allocated_bytes", json!(level(Level::Allocated))),
            ("reserved_bytes", json!(level(Level::Reserved))),
            ("device_used_bytes", json!(level(Level::Used))),
            ("inactive_bytes", json!(level(Level::Inactive))),
            ("total_bytes", json!(moment.total_bytes.or(one.total_bytes))),
        ]),
    }
}

fn growth(leak: &Leak, title: String, advice: &str) -> Words {
    let full = match leak.full_in_ns {
        Some(ns) => format!(" At this rate the device is full in {}.", nanos(ns)),
        None => String::new(),
    };
    Words {
        title: format!(
            "{title}: {} in {}",
            size_text(leak.growth_bytes()),
            nanos(leak.end_ns - leak.start_ns)
        ),
        summary: format!(
            "After warm-up the least {} rose from {} to {}, {} a minute, in {} of {} steps.{full}",
            level_words(leak.level),
            size_text(leak.start_bytes),
            size_text(leak.end_bytes),
            size_words(leak.rate * 60.0),
            leak.rising,
            leak.steps
        ),
        recommendation: advice.into(),
        evidence: evidence([
            ("level", json!(leak.level.name())),
            ("start_bytes", json!(leak.start_bytes)),
            ("end_bytes", json!(leak.end_bytes)),
            ("growth_bytes", json!(leak.growth_bytes())),
            ("bytes_per_second", real(leak.rate)),
            ("duration_ns", json!(leak.end_ns - leak.start_ns)),
            ("rising_steps", json!(leak.rising)),
            ("steps", json!(leak.steps)),
            ("full_in_ns", json!(leak.full_in_ns)),
        ]),
    }
}

fn first_cause(report: &RankReport, one: &Series, during: &str) -> Words {
    let rise = report.rises.first();
    Words {
        title: format!("Rank {} rose first", one.key.rank),
        summary: format!(
            "{}{during}: {}",
            rise.map_or(String::new(), |r| format!(
                "{} more than the {} it had kept",
                size_text(r.rise_bytes),
                size_text(r.level_bytes)
            )),
            ranks(report)
        ),
        recommendation: String::new(),
        evidence: evidence([
            ("rise_bytes", json!(rise.map(|r| r.rise_bytes))),
            ("level_bytes", json!(rise.map(|r| r.level_bytes))),
            ("step", json!(rise.and_then(|r| r.step))),
            ("ranks_that_rose", json!(report.rises.len())),
            (
                "compared_by",
                json!(if report.by_steps { "steps" } else { "clock" }),
            ),
        ]),
    }
}

/// `0, 1, 4`; a long list is cut.
fn listed(ranks: &[i64]) -> String {
    let mut text: Vec<String> = ranks.iter().take(8).map(i64::to_string).collect();
    if ranks.len() > 8 {
        text.push(format!("and {} more", ranks.len() - 8));
    }
    text.join(", ")
}

/// What comparing the ranks came to, in a sentence or two.
pub(super) fn ranks(report: &RankReport) -> String {
    let mut text = match &report.first {
        FirstCause::None => "no rank rose above the level that it kept.".to_owned(),
        FirstCause::CannotTell if report.ranks.len() < 2 => {
            format!("only rank {} was recorded.", listed(&report.ranks))
        }
        FirstCause::CannotTell => {
            "no rank kept a level for long enough to be compared with itself.".to_owned()
        }
        FirstCause::All => {
            "all ranks rose together: the job did it, no rank of its own.".to_owned()
        }
        FirstCause::Several(first) => {
            let first: Vec<i64> = first.iter().copied().collect();
            format!(
                "ranks {} rose first, closer together than can be told apart.",
                listed(&first)
            )
        }
        FirstCause::Rank {
            rank,
            lead_ns,
            lead_steps,
            confidence,
        } => {
            let followers = report.rises.iter().filter(|r| r.rank != *rank).count();
            let lead = match (lead_steps, lead_ns, followers) {
                (_, _, 0) => "no other did".to_owned(),
                (Some(steps), _, _) => format!("{steps} steps before the next"),
                (None, Some(ns), _) => format!("{} before the next", nanos(*ns)),
                (None, None, _) => "before the next".to_owned(),
            };
            format!(
                "rank {rank} rose, {lead} (confidence {}).",
                confidence.name()
            )
        }
    };
    if !report.missing.is_empty() {
        text += &format!(" Not recorded: {}.", listed(&report.missing));
    }
    if !report.unsettled.is_empty() && !matches!(report.first, FirstCause::CannotTell) {
        text += &format!(
            " Still starting, or too short: {}.",
            listed(&report.unsettled)
        );
    }
    text
}

/// Why a check could not be made.
pub(super) fn unknown(why: Unknown, kind: CheckKind) -> String {
    let what = check_words(kind);
    match why {
        Unknown::NotMeasured(level) => {
            format!(
                "{what}: the collector does not measure {}",
                level_words(level)
            )
        }
        Unknown::UsedIsAllocator => format!(
            "{what}: the collector has no driver to ask, its device-used is the allocator's own number"
        ),
        Unknown::TooShort {
            known_ns,
            needed_ns,
        } => format!(
            "{what}: {} after warm-up is too short, {} are needed",
            nanos(known_ns),
            nanos(needed_ns)
        ),
        Unknown::TooFew { known, needed } => {
            format!("{what}: {known} measurements are too few, {needed} are needed")
        }
        Unknown::OneRank => format!("{what}: one rank cannot be compared"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_figures_and_binary_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (-1536, "-1.50 KiB"),
            (12 << 20, "12.0 MiB"),
            (850 << 30, "850 GiB"),
            (i64::MAX, "8.00 EiB"),
        ] {
            assert_eq!(size_text(bytes), text);
        }
    }
}
