//! Which rank's memory rose first, and which rank holds more than its peers.
//!
//! *What it says*: who left its own level first; the others may have followed because of it.
//!
//! *Evidence needed*: each rank and device is compared with itself: a level that it kept after its start, and a rise well above
//! it. Ranks are compared by the steps that they name, or else by the common clock.
//!
//! *Looks like but is not*: starting late (a start is no rise above one's own level, whenever it comes); all ranks rising
//! together, which is the job's own doing; two devices of one rank; a rise that is earlier by less than the samples can tell.
//!
//! *Example*: rank 3 rises by 2.1 GiB at step 412; ranks 0, 1 and 2 at step 413.
//!
//! *Source*: an outlier among ranks is measured by the median distance of the *others*, so that it does not widen the spread
//! that it is measured by.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::math::{median, median_distance};
use super::series::{Level, Series};

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankRules {
    /// A level is kept when nothing rises by more than this, bytes.
    pub tolerance_bytes: i64,
    /// Or by this share of it.
    pub tolerance_share: f64,
    /// For this many points.
    pub plateau_points: usize,
    /// And this share of the series' time.
    pub plateau_share: f64,
    /// But no more than this, ns.
    pub max_plateau_ns: i64,
    /// A rise is at least this, bytes.
    pub min_rise_bytes: i64,
    /// And this share of the level.
    pub min_rise_share: f64,
    /// A rank stands out from its peers by at least this many times their median distance.
    pub peer_distances: f64,
    /// And this share of their median.
    pub peer_share: f64,
    /// And this, bytes.
    pub peer_bytes: i64,
    /// Clocks of different hosts are trusted to this, ns.
    pub clock_ns: i64,
}

impl Default for RankRules {
    fn default() -> RankRules {
        RankRules {
            tolerance_bytes: 32 << 20,
            tolerance_share: 0.02,
            plateau_points: 8,
            plateau_share: 0.1,
            max_plateau_ns: 60_000_000_000,
            min_rise_bytes: 64 << 20,
            min_rise_share: 0.1,
            peer_distances: 6.0,
            peer_share: 0.1,
            peer_bytes: 256 << 20,
            clock_ns: 50_000_000,
        }
    }
}

/// The ranks of one job.
#[derive(Debug, Clone, PartialEq)]
pub struct RankReport {
    /// What the ranks have in common: the job's id, else the session's.
    pub job: Arc<str>,
    pub has_job_id: bool,
    pub level: Level,
    /// As most of them say, and above the highest rank.
    pub world_size: i64,
    pub ranks: Vec<i64>,
    /// Ranks without a series, at most 1,024 of them.
    pub missing: Vec<i64>,
    pub hosts: usize,
    /// Whether moments were compared by the ranks' own steps, and not only by the clock.
    pub by_steps: bool,
    /// In order.
    pub rises: Vec<Rise>,
    pub first: FirstCause,
    /// Ranks that hold far more or less than the others.
    pub outliers: Vec<Outlier>,
    /// Ranks whose own level could not be learnt: too short, or it never settled.
    pub unsettled: Vec<i64>,
}

/// A rank left its own level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rise {
    /// Index of the series.
    pub series: usize,
    pub rank: i64,
    pub device: i64,
    /// When it left, nanoseconds since the Unix epoch.
    pub at_ns: i64,
    /// The step in which it left.
    pub step: Option<i64>,
    /// Its level before.
    pub level_bytes: i64,
    /// How far above it went.
    pub rise_bytes: i64,
}

/// Who was first.
#[derive(Debug, Clone, PartialEq)]
pub enum FirstCause {
    /// Nobody rose.
    None,
    /// One rank's devices rose before all others.
    Rank {
        rank: i64,
        /// Before the next rank, ns; `None` when nobody followed, or when they are told apart by steps.
        lead_ns: Option<i64>,
        lead_steps: Option<i64>,
        confidence: Confidence,
    },
    /// Several rose first, closer together than can be told apart.
    Several(BTreeSet<i64>),
    /// All rose together.
    All,
    /// Fewer than two ranks, or none has a level of its own.
    CannotTell,
}

/// Ascending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Confidence {
    Low,
    Medium,
    High,
}

impl Confidence {
    pub const fn name(self) -> &'static str {
        match self {
            Confidence::Low => "low",
            Confidence::Medium => "medium",
            Confidence::High => "high",
        }
    }
}

/// A rank that holds far more or less than its peers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outlier {
    pub series: usize,
    pub rank: i64,
    pub device: i64,
    pub bytes: i64,
    /// Median of the others.
    pub peers_bytes: i64,
}

/// Starts of numbered steps of a session and rank, by time.
pub type Steps = BTreeMap<(Arc<str>, i64), Vec<(i64, i64)>>;

/// The ranks of each job among `series`, where there are two or more. `steps` hold when and which, by time.
pub fn compare(series: &[Series], steps: &Steps, rules: &RankRules) -> Vec<RankReport> {
    let mut jobs: BTreeMap<(bool, Arc<str>), Vec<usize>> = BTreeMap::new();
    for (at, one) in series.iter().enumerate() {
        let job = match &one.job_id {
            Some(job) => (true, job.clone()),
            None => (false, one.key.session_id.clone()),
        };
        jobs.entry(job).or_default().push(at);
    }
    jobs.into_iter()
        .filter_map(|((has_job_id, job), members)| {
            let ranks: BTreeSet<i64> = members.iter().map(|i| series[*i].key.rank).collect();
            let world = members
                .iter()
                .map(|i| series[*i].world_size)
                .max()
                .unwrap_or(1);
            (ranks.len() > 1 || world > 1)
                .then(|| report(job, has_job_id, series, &members, steps, rules))
        })
        .collect()
}

/// Ranks that are named as missing, at most.
const MAX_MISSING: usize = 1024;

fn report(
    job: Arc<str>,
    has_job_id: bool,
    series: &[Series],
    members: &[usize],
    steps: &Steps,
    rules: &RankRules,
) -> RankReport {
    // The allocator's own number where all have it: the device's has other processes in it.
    let level = [Level::Allocated, Level::Used]
        .into_iter()
        .find(|level| members.iter().all(|i| series[*i].has(*level)))
        .unwrap_or(Level::Allocated);
    let ranks: BTreeSet<i64> = members.iter().map(|i| series[*i].key.rank).collect();
    let hosts: BTreeSet<&str> = members.iter().map(|i| &*series[*i].key.host).collect();
    let world_size = world_size(members.iter().map(|i| &series[*i]))
        .max(ranks.last().map_or(1, |r| r.saturating_add(1)));
    let mut rises = Vec::new();
    let mut settled = BTreeMap::new();
    for &at in members {
        let one = &series[at];
        let Some(plateau) = plateau(one, level, rules) else {
            continue;
        };
        settled.insert(at, plateau);
        if let Some(mut rise) = rise(one, level, &plateau, rules) {
            rise.series = at;
            rise.step = steps
                .get(&(one.key.session_id.clone(), one.key.rank))
                .and_then(|s| s[..s.partition_point(|(t, _)| *t <= rise.at_ns)].last())
                .map(|(_, step)| *step);
            rises.push(rise);
        }
    }
    let by_steps = !rises.is_empty() && rises.iter().all(|r| r.step.is_some());
    rises.sort_by_key(|r| (r.step.filter(|_| by_steps), r.at_ns, r.rank, r.device));
    let unsettled: BTreeSet<i64> = members
        .iter()
        .filter(|i| !settled.contains_key(*i))
        .map(|i| series[*i].key.rank)
        .collect();
    let missing: Vec<i64> = (0..world_size)
        .filter(|r| !ranks.contains(r))
        .take(MAX_MISSING)
        .collect();
    let first = if ranks.len() < 2 || settled.is_empty() {
        FirstCause::CannotTell
    } else {
        let whole = missing.is_empty() && unsettled.is_empty();
        first_cause(series, &rises, &ranks, by_steps, hosts.len(), whole, rules)
    };
    RankReport {
        outliers: outliers(series, &settled, level, rules),
        job,
        has_job_id,
        level,
        world_size,
        ranks: ranks.into_iter().collect(),
        missing,
        hosts: hosts.len(),
        by_steps,
        rises,
        first,
        unsettled: unsettled.into_iter().collect(),
    }
}

/// What most say, of those that say more than one; ties go to the larger.
fn world_size<'a>(series: impl Iterator<Item = &'a Series>) -> i64 {
    let mut said: BTreeMap<i64, usize> = BTreeMap::new();
    for one in series.filter(|s| s.world_size > 1) {
        *said.entry(one.world_size).or_default() += 1;
    }
    said.into_iter()
        .max_by_key(|(size, count)| (*count, *size))
        .map_or(1, |(size, _)| size)
}

/// A level that a series kept after its start.
#[derive(Debug, Clone, Copy)]
struct Plateau {
    bytes: i64,
    /// Index of the first point behind it.
    end: usize,
}

fn tolerance(bytes: i64, rules: &RankRules) -> i64 {
    rules
        .tolerance_bytes
        .max((bytes as f64 * rules.tolerance_share) as i64)
}

/// The first highest level that did not rise for long enough: until then a series starts.
fn plateau(series: &Series, level: Level, rules: &RankRules) -> Option<Plateau> {
    let share = (series.duration_ns() as f64 * rules.plateau_share) as i64;
    let needed_ns = share.min(rules.max_plateau_ns);
    let mut highest: Option<i64> = None;
    let (mut since, mut kept) = (series.first_ns, 0);
    for (at, point) in series.points().iter().enumerate() {
        let Some(range) = point.get(level) else {
            continue;
        };
        match highest {
            Some(bytes) if range.max <= bytes + tolerance(bytes, rules) => {
                kept += 1;
                if kept >= rules.plateau_points && point.last_ns - since >= needed_ns {
                    return Some(Plateau { bytes, end: at + 1 });
                }
            }
            _ => {
                highest = Some(range.max);
                since = point.first_ns;
                kept = 1;
            }
        }
    }
    None
}

/// Where a series first goes well above the level that it kept, traced back to where it left it.
fn rise(series: &Series, level: Level, plateau: &Plateau, rules: &RankRules) -> Option<Rise> {
    let base = plateau.bytes;
    let needed = rules
        .min_rise_bytes
        .max((base as f64 * rules.min_rise_share) as i64);
    let mut left: Option<i64> = None;
    let mut highest: Option<i64> = None;
    for point in &series.points()[plateau.end..] {
        let Some(range) = point.get(level) else {
            continue;
        };
        if range.max <= base + tolerance(base, rules) {
            if highest.is_some() {
                break;
            }
            left = None;
            continue;
        }
        left = left.or(Some(point.first_ns));
        if range.max - base >= needed {
            highest = Some(highest.map_or(range.max, |h| h.max(range.max)));
        }
    }
    Some(Rise {
        series: 0,
        rank: series.key.rank,
        device: series.key.device,
        at_ns: left?,
        step: None,
        level_bytes: base,
        rise_bytes: highest? - base,
    })
}

fn first_cause(
    series: &[Series],
    rises: &[Rise],
    ranks: &BTreeSet<i64>,
    by_steps: bool,
    hosts: usize,
    whole: bool,
    rules: &RankRules,
) -> FirstCause {
    let Some(earliest) = rises.first() else {
        return FirstCause::None;
    };
    let resolution = |rise: &Rise| series[rise.series].resolution_ns();
    let own = resolution(earliest);
    let clock = if hosts > 1 && !by_steps {
        rules.clock_ns
    } else {
        0
    };
    let step = |rise: &Rise| rise.step.filter(|_| by_steps);
    let together = |rise: &Rise| {
        step(rise) == step(earliest)
            && rise.at_ns - earliest.at_ns <= own.max(resolution(rise)).max(clock)
    };
    let first: BTreeSet<i64> = rises
        .iter()
        .filter(|r| together(r))
        .map(|r| r.rank)
        .collect();
    if first.len() > 1 {
        return if first.len() == ranks.len() {
            FirstCause::All
        } else {
            FirstCause::Several(first)
        };
    }
    let next = rises.iter().find(|r| r.rank != earliest.rank);
    let lead_ns = next
        .filter(|n| step(n) == step(earliest))
        .map(|n| n.at_ns - earliest.at_ns);
    FirstCause::Rank {
        rank: earliest.rank,
        lead_ns,
        lead_steps: next
            .and_then(|n| Some(step(n)? - step(earliest)?))
            .filter(|steps| *steps > 0),
        confidence: match next {
            _ if !whole => Confidence::Low,
            // A rank that rises alone is certain to be alone, but it may be the cause of nothing.
            None => Confidence::Medium,
            Some(n) if hosts > 1 && !by_steps && n.at_ns - earliest.at_ns < 20 * clock => {
                Confidence::Medium
            }
            Some(_) => Confidence::High,
        },
    }
}

/// Ranks whose own level is far from the median of the others', by the others' spread. Needs two others.
fn outliers(
    series: &[Series],
    settled: &BTreeMap<usize, Plateau>,
    level: Level,
    rules: &RankRules,
) -> Vec<Outlier> {
    let levels: Vec<(usize, f64)> = settled
        .iter()
        .map(|(at, plateau)| {
            let after: Vec<f64> = series[*at].points()[plateau.end.saturating_sub(1)..]
                .iter()
                .filter_map(|p| p.get(level))
                .map(|r| r.mean())
                .collect();
            (*at, median(&after).unwrap_or(plateau.bytes as f64))
        })
        .collect();
    let mut outliers = Vec::new();
    for (at, bytes) in &levels {
        let others: Vec<f64> = levels
            .iter()
            .filter(|(other, _)| other != at)
            .map(|(_, b)| *b)
            .collect();
        if others.len() < 2 {
            break;
        }
        let center = median(&others).unwrap_or(0.0);
        let spread = median_distance(&others, center).unwrap_or(0.0);
        let needed = (rules.peer_bytes as f64)
            .max(rules.peer_share * center)
            .max(rules.peer_distances * spread);
        if (bytes - center).abs() >= needed {
            outliers.push(Outlier {
                series: *at,
                rank: series[*at].key.rank,
                device: series[*at].key.device,
                bytes: *bytes as i64,
                peers_bytes: center as i64,
            });
        }
    }
    outliers
}
