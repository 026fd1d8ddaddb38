//! Steps of one workload against what is usual for it.
//!
//! The usual is learnt from healthy steps only: what is an outlier does not count, or it would hide the next one. A slow-down
//! that lasts is therefore watched beside it, and becomes the usual when it has lasted long enough. Knows nothing of why a step
//! was slow, nor of what is done about it.

use warptrace_model::inference::{
    BaselineShift, OutlierBucket, STEP_BOUNDS_NANOS, WorkloadKey, WorkloadState,
};
use warptrace_model::{BootNanos, Window};

use super::settings::{InferenceSettings, ShiftRules};
use super::sketch::Sketch;

/// Fewer steps have no 95th percentile worth the name.
const MIN_WARMUP: u64 = 5;
const LOG_NANOS: u64 = 60_000_000_000;

/// What a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The workload is new: it is learnt from.
    Learnt,
    /// Judgement is paused.
    Paused,
    Ordinary,
    Outlier {
        bucket: OutlierBucket,
        p95: u64,
        mean: u64,
        /// None came in the minute before.
        first: bool,
    },
}

/// A slow-down that may last.
struct Run {
    since: u64,
    steps: u64,
    outliers: u64,
    /// Part of the latest steps that are outliers: an exponential mean over 256, in 65,536ths.
    share: u32,
    sketch: Sketch,
}

const WHOLE: u32 = 1 << 16;
/// A 95th percentile lets one step in twenty pass. Where one in ten is beyond it, it is not theirs any more.
const LASTING_SHARE: u32 = WHOLE / 10;
/// So that one outlier begins a run, which ends when no other comes within 177 steps.
const FIRST_SHARE: u32 = WHOLE / 5;

pub(super) struct Workload {
    state: WorkloadState,
    usual: Sketch,
    healthy: u64,
    run: Option<Box<Run>>,
    last_outlier: Option<u64>,
}

impl Workload {
    pub(super) fn new(key: WorkloadKey, at: u64, settings: &InferenceSettings) -> Workload {
        Workload {
            state: WorkloadState {
                key,
                since: BootNanos(at),
                seen: BootNanos(at),
                warmed: false,
                steps: 0,
                paused_steps: 0,
                outliers: [0; 3],
                throttled_outliers: [0; 3],
                shifts: 0,
                mean_nanos: 0,
                p95_nanos: 0,
                healthy: Default::default(),
                all: Default::default(),
            },
            usual: Sketch::new(settings.half_life_steps),
            healthy: 0,
            run: None,
            last_outlier: None,
        }
    }

    pub(super) fn state(&self) -> &WorkloadState {
        &self.state
    }

    /// Takes a step of `nanos`, 1 or more, that ended at `at`; with it, if so, that a lasting slow-down is the usual from now on.
    pub(super) fn step(
        &mut self,
        at: u64,
        nanos: u64,
        paused: bool,
        settings: &InferenceSettings,
    ) -> (Verdict, Option<BaselineShift>) {
        let s = &mut self.state;
        s.steps = s.steps.saturating_add(1);
        s.seen = s.seen.max(BootNanos(at));
        s.all.record(nanos, &STEP_BOUNDS_NANOS);
        let (p95, mean) = (s.p95_nanos, s.mean_nanos);
        let bucket = if s.warmed {
            bucket(nanos, p95, settings.outlier_ratio)
        } else {
            None
        };
        let shift = self.lasts(at, nanos, bucket.is_some(), settings);
        let s = &mut self.state;
        if paused {
            s.paused_steps = s.paused_steps.saturating_add(1);
            return (Verdict::Paused, shift);
        }
        let Some(bucket) = bucket else {
            let verdict = if s.warmed {
                Verdict::Ordinary
            } else {
                Verdict::Learnt
            };
            s.healthy.record(nanos, &STEP_BOUNDS_NANOS);
            // After a shift the step is in the new baseline already.
            if shift.is_none() {
                self.usual.record(nanos);
            }
            self.healthy += 1;
            self.learnt(settings);
            return (verdict, shift);
        };
        s.outliers[bucket as usize] += 1;
        let first = self
            .last_outlier
            .is_none_or(|last| at.saturating_sub(last) >= LOG_NANOS);
        if first {
            self.last_outlier = Some(at);
        }
        let verdict = Verdict::Outlier {
            bucket,
            p95,
            mean,
            first,
        };
        (verdict, shift)
    }

    /// The outlier that was just found fell into a time in which the device was held back.
    pub(super) fn throttled(&mut self, bucket: OutlierBucket) {
        self.state.throttled_outliers[bucket as usize] += 1;
    }

    fn learnt(&mut self, settings: &InferenceSettings) {
        let s = &mut self.state;
        s.mean_nanos = self.usual.mean().unwrap_or(0);
        s.p95_nanos = self.usual.percentile(95).unwrap_or(0).max(1);
        s.warmed |= self.healthy >= u64::from(settings.warmup_steps).max(MIN_WARMUP);
    }

    /// Follows a slow-down.
    fn lasts(
        &mut self,
        at: u64,
        nanos: u64,
        outlier: bool,
        settings: &InferenceSettings,
    ) -> Option<BaselineShift> {
        let rules: ShiftRules = settings.shift?;
        if self.run.is_none() {
            if !outlier {
                return None;
            }
            self.run = Some(Box::new(Run {
                since: at.saturating_sub(nanos),
                steps: 0,
                outliers: 0,
                share: FIRST_SHARE,
                sketch: Sketch::new(settings.half_life_steps),
            }));
        }
        let run = self.run.as_mut()?;
        run.steps += 1;
        run.outliers += u64::from(outlier);
        run.sketch.record(nanos);
        run.share -= run.share >> 8;
        run.share += u32::from(outlier) * (WHOLE >> 8);
        if run.share < LASTING_SHARE {
            self.run = None;
            return None;
        }
        let lasted = at.saturating_sub(run.since) >= rules.min_nanos;
        if !outlier || run.outliers < rules.min_outliers || !lasted {
            return None;
        }
        let run = self.run.take()?;
        let (p95, mean) = (self.state.p95_nanos, self.state.mean_nanos);
        self.usual = run.sketch;
        self.learnt(settings);
        self.state.shifts += 1;
        Some(BaselineShift {
            key: self.state.key,
            window: Window {
                start: BootNanos(run.since),
                end: BootNanos(at),
            },
            steps: run.steps,
            outliers: run.outliers,
            from_p95_nanos: p95,
            from_mean_nanos: mean,
            to_p95_nanos: self.state.p95_nanos,
            to_mean_nanos: self.state.mean_nanos,
        })
    }
}

/// How far out `nanos` lies; the outermost bucket is asked first.
fn bucket(nanos: u64, p95: u64, outermost: f64) -> Option<OutlierBucket> {
    let ratio = nanos as f64 / p95.max(1) as f64;
    if ratio >= outermost {
        Some(OutlierBucket::X3)
    } else if ratio >= 2.0 {
        Some(OutlierBucket::X2)
    } else if ratio >= 1.5 {
        Some(OutlierBucket::X1_5)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warptrace_model::inference::Phase;
    use warptrace_model::{Incarnation, Stream};

    const MS: u64 = 1_000_000;

    fn key() -> WorkloadKey {
        WorkloadKey {
            cgroup: None,
            process: Incarnation::default(),
            stream: Stream(16),
            phase: Some(Phase::Decode),
            device: None,
            fingerprint: 0,
        }
    }

    struct Case {
        w: Workload,
        now: u64,
        settings: InferenceSettings,
        shifts: Vec<BaselineShift>,
    }

    impl Case {
        fn new(settings: InferenceSettings) -> Case {
            Case {
                w: Workload::new(key(), 0, &settings),
                now: 0,
                settings,
                shifts: Vec::new(),
            }
        }

        fn step(&mut self, nanos: u64, paused: bool) -> Verdict {
            self.now += nanos;
            let (v, shift) = self.w.step(self.now, nanos, paused, &self.settings);
            self.shifts.extend(shift);
            v
        }

        /// How many of `n` steps are outliers.
        fn steps(&mut self, n: u64, nanos: impl Fn(u64) -> u64) -> u64 {
            (0..n)
                .filter(|i| matches!(self.step(nanos(*i), false), Verdict::Outlier { .. }))
                .count() as u64
        }
    }

    #[test]
    fn buckets_are_exclusive_and_begin_at_their_ratios() {
        use OutlierBucket::{X1_5, X2, X3};
        let of = |n, outermost| bucket(n, 1_000, outermost);
        assert_eq!(of(1_499, 3.0), None);
        assert_eq!(of(1_500, 3.0), Some(X1_5));
        assert_eq!(of(1_999, 3.0), Some(X1_5));
        assert_eq!(of(2_000, 3.0), Some(X2));
        assert_eq!(of(2_999, 3.0), Some(X2));
        assert_eq!(of(3_000, 3.0), Some(X3));
        assert_eq!(of(4_999, 5.0), Some(X2));
        assert_eq!(of(2_000, 2.0), Some(X3));
        assert_eq!(of(1_300, 1.2), Some(X3));
    }

    #[test]
    fn thirty_steps_are_learnt_from_and_the_next_is_judged() {
        let mut c = Case::new(InferenceSettings::default());
        for i in 0..30 {
            assert_eq!(c.step((10 + i % 3) * MS, false), Verdict::Learnt);
        }
        let p95 = c.w.state().p95_nanos;
        assert!(
            p95.abs_diff(12 * MS) <= 12 * MS / 128,
            "true from the first judgement on: {p95}"
        );
        assert_eq!(c.w.state().mean_nanos, 11 * MS);
        assert_eq!(
            c.step(120 * MS, false),
            Verdict::Outlier {
                bucket: OutlierBucket::X3,
                p95,
                mean: 11 * MS,
                first: true
            }
        );
        assert_eq!(c.w.state().p95_nanos, p95, "it is not learnt from");
        assert_eq!(c.step(11 * MS, false), Verdict::Ordinary);
        assert_eq!(c.w.state().healthy.count(), 31);
        assert_eq!(c.w.state().all.count(), 32);
    }

    #[test]
    fn one_outlier_a_minute_is_the_first() {
        let mut c = Case::new(InferenceSettings::default());
        c.steps(100, |_| 10 * MS);
        let mut firsts = 0;
        for i in 0..20 * 6_000 {
            let nanos = if i % 100 == 0 { 40 * MS } else { 10 * MS };
            if let Verdict::Outlier { first, .. } = c.step(nanos, false) {
                firsts += u64::from(first);
            }
        }
        // 1,236 s of time, less what is rounded up to whole outliers.
        assert!((20..=21).contains(&firsts), "{firsts}");
        assert_eq!(c.w.state().outliers, [0, 0, 1_200]);
        assert!(c.shifts.is_empty(), "one in a hundred is not what is usual");
    }

    #[test]
    fn a_lasting_slow_down_becomes_the_usual_once() {
        let mut c = Case::new(InferenceSettings::default());
        c.steps(1_000, |i| (10 + i % 3) * MS);
        let outliers = c.steps(20_000, |i| (100 + i % 30) * MS);
        assert_eq!(c.shifts.len(), 1);
        let s = c.shifts[0];
        assert!(s.window.nanos() >= 600_000_000_000);
        assert_eq!((s.outliers, s.steps), (outliers, outliers));
        assert!(s.from_p95_nanos.abs_diff(12 * MS) < MS);
        assert!(s.to_p95_nanos.abs_diff(128 * MS) < 2 * MS);
        assert_eq!(c.w.state().shifts, 1);
        // And back: what is faster is never an outlier, and in time the usual again.
        assert_eq!(c.steps(4_000, |_| 11 * MS), 0);
        assert!(c.w.state().p95_nanos < 12 * MS);
    }

    #[test]
    fn a_fifth_of_slow_steps_becomes_the_usual_too() {
        let mut c = Case::new(InferenceSettings::default());
        c.steps(1_000, |_| 10 * MS);
        c.steps(60_000, |i| if i % 5 == 0 { 30 * MS } else { 10 * MS });
        assert_eq!(c.shifts.len(), 1);
        assert_eq!(
            c.steps(1_000, |i| if i % 5 == 0 { 30 * MS } else { 10 * MS }),
            0
        );
    }

    #[test]
    fn a_slow_down_that_ends_in_time_leaves_the_usual_as_it_was() {
        let mut c = Case::new(InferenceSettings::default());
        c.steps(1_000, |_| 10 * MS);
        let p95 = c.w.state().p95_nanos;
        for _ in 0..3 {
            assert_eq!(c.steps(5_000, |_| 100 * MS), 5_000);
            c.steps(1_000, |_| 10 * MS);
            assert_eq!(c.w.state().p95_nanos, p95);
        }
        assert_eq!(c.shifts, []);
        let mut never = Case::new(InferenceSettings {
            shift: None,
            ..InferenceSettings::default()
        });
        never.steps(1_000, |_| 10 * MS);
        assert_eq!(never.steps(50_000, |_| 100 * MS), 50_000);
    }

    #[test]
    fn what_lasts_through_a_pause_is_the_usual_after_it() {
        let mut c = Case::new(InferenceSettings::default());
        c.steps(1_000, |_| 10 * MS);
        for _ in 0..10_000 {
            assert_eq!(c.step(100 * MS, true), Verdict::Paused);
        }
        assert_eq!(c.shifts.len(), 1);
        assert_eq!(c.steps(100, |_| 100 * MS), 0);
        assert_eq!(c.w.state().paused_steps, 10_000);
        assert_eq!(
            c.w.state().healthy.count(),
            1_100,
            "paused steps are not healthy ones"
        );
    }
}
