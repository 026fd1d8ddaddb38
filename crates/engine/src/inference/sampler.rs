//! How much of the stream of events is worth keeping.
//!
//! While all is well one event in a hundred is; from an outlier on, all. What is kept carries its *weight*: how many events it
//! stands for. Sums of weights are unbiased estimates of the counts of everything, whatever the sampler did meanwhile
//! (Horvitz and Thompson, "A generalization of sampling without replacement from a finite universe", JASA 47, 1952). Which
//! event is kept is decided by a hash of what it is, so that the same events are kept again.
//!
//! Whether all was kept at a moment is asked by the event's own time. Who asks late, after outliers of that time are known,
//! keeps the slow step itself and not only what follows it.

use std::collections::VecDeque;

use warptrace_model::inference::{Degradation, Outlier, OutlierBucket, SamplerState, WorkloadKey};
use warptrace_model::{BootNanos, Event, Window};

use super::settings::InferenceSettings;

/// Stretches in which everything is kept, remembered.
const STRETCHES: usize = 64;

/// What to do with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Keep it: it stands for this many events.
    Keep {
        weight: u32,
    },
    Shed,
}

pub(super) struct Sampler {
    degrade_on: Option<OutlierBucket>,
    one_in: u32,
    cooldown: u64,
    /// As they were found; the last may grow.
    stretches: VecDeque<Window>,
    /// Whose next ordinary step ends the degradation.
    cause: Option<WorkloadKey>,
    pub(super) last: Option<Degradation>,
    pub(super) degradations: u64,
    pub(super) admitted: u64,
    pub(super) admitted_weight: u64,
    pub(super) shed: u64,
}

impl Sampler {
    pub(super) fn new(settings: &InferenceSettings) -> Sampler {
        Sampler {
            degrade_on: settings.degrade_on,
            one_in: settings.sample_one_in.max(1),
            cooldown: settings.cooldown_nanos,
            stretches: VecDeque::new(),
            cause: None,
            last: None,
            degradations: 0,
            admitted: 0,
            admitted_weight: 0,
            shed: 0,
        }
    }

    /// Takes an outlier in; what it is when it makes the sampler keep everything that it did not keep.
    pub(super) fn outlier(&mut self, o: &Outlier) -> Option<Degradation> {
        let unknown = o.key.phase == Some(warptrace_model::inference::Phase::Unknown);
        if unknown || self.degrade_on.is_none_or(|level| o.bucket < level) {
            return None;
        }
        let end = o.at.plus(self.cooldown);
        self.keep(Window {
            start: o.window().start,
            end,
        });
        self.cause = Some(o.key);
        if let Some(last) = &mut self.last
            && last.cooldown_end >= o.at
        {
            last.cooldown_end = last.cooldown_end.max(end);
            return None;
        }
        self.degradations += 1;
        self.last = Some(Degradation {
            at: o.at,
            outlier: o.id,
            key: o.key,
            bucket: o.bucket,
            cooldown_end: end,
        });
        self.last
    }

    /// A process is in trouble, and its steps are not judged meanwhile: what explains it is kept all the same.
    pub(super) fn trouble(&mut self, w: Window) {
        if self.degrade_on.is_some() {
            self.keep(w);
        }
    }

    fn keep(&mut self, w: Window) {
        match self.stretches.back_mut() {
            Some(last) if last.end >= w.start && last.start <= w.end => {
                last.start = last.start.min(w.start);
                last.end = last.end.max(w.end);
            }
            _ => {
                if self.stretches.len() == STRETCHES {
                    self.stretches.pop_front();
                }
                self.stretches.push_back(w);
            }
        }
    }

    /// A step of this workload was ordinary, or what is usual for it has changed.
    pub(super) fn ordinary(&mut self, key: &WorkloadKey) {
        if self.cause.as_ref() == Some(key) {
            self.cause = None;
        }
    }

    pub(super) fn state(&self, now: BootNanos) -> SamplerState {
        let open = self.last.is_some_and(|d| now < d.cooldown_end);
        if !self.stretches.iter().any(|w| now < w.end) {
            SamplerState::Healthy
        } else if open && self.cause.is_some() {
            SamplerState::Degraded
        } else {
            SamplerState::Cooldown
        }
    }

    /// Whether to keep `event`, by what is known so far. What is no single observation (counts, losses, the life of processes,
    /// names, samples of the machine, what the job says) is always kept.
    pub(super) fn admit(&mut self, event: &Event) -> Admission {
        let admission = match identity(event) {
            None => Admission::Keep { weight: 1 },
            Some(_) if self.one_in == 1 || self.keeps_all(event) => Admission::Keep { weight: 1 },
            Some(hash) if hash <= u64::MAX / u64::from(self.one_in) => Admission::Keep {
                weight: self.one_in,
            },
            Some(_) => Admission::Shed,
        };
        match admission {
            Admission::Keep { weight } => {
                self.admitted = self.admitted.saturating_add(1);
                self.admitted_weight = self.admitted_weight.saturating_add(u64::from(weight));
            }
            Admission::Shed => self.shed = self.shed.saturating_add(1),
        }
        admission
    }

    fn keeps_all(&self, event: &Event) -> bool {
        let at = event.end().unwrap_or_default();
        self.stretches.iter().rev().any(|w| w.contains(at))
    }
}

/// A hash of what a single observation is, the same for the same observation; `None` for what is none.
fn identity(event: &Event) -> Option<u64> {
    let (kind, thread, start, what) = match event {
        Event::Call(c) => (1, c.thread, c.start, c.op.index() as u64),
        Event::OffCpu(o) => (2, o.thread, o.start, 0),
        Event::Slice(s) => (3, s.thread, s.start, u64::from(s.cpu.0)),
        Event::BlockIo(b) => (4, b.thread, b.start, b.sector),
        Event::Reclaim(r) => (5, r.thread, r.start, 0),
        Event::Stretch(s) => (6, s.thread, s.start, 0),
        Event::InFlight(_)
        | Event::Retransmit(_)
        | Event::Process(_)
        | Event::ThreadName(_)
        | Event::ProcessInfo(_)
        | Event::FilePath(_)
        | Event::Counts(_)
        | Event::System(_)
        | Event::Gpu(_)
        | Event::Annotation(_)
        | Event::Capture(_)
        | Event::Lost(_) => return None,
    };
    let thread = u64::from(thread.pid.0) << 32 | u64::from(thread.tid.0);
    let h = [kind, thread, start.0, what]
        .into_iter()
        .fold(0, |h, v| mix(h ^ v));
    Some(h)
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), after its
/// increment, so that 0 is mixed too.
fn mix(v: u64) -> u64 {
    let v = v.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let v = (v ^ (v >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let v = (v ^ (v >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    v ^ (v >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use warptrace_model::inference::{EventId, Phase};
    use warptrace_model::record::OpId;
    use warptrace_model::{
        Call, CallFlags, Cpu, Incarnation, Pid, ProcessEvent, SpanContext, Stream, Thread, Tid,
    };

    const SEC: u64 = 1_000_000_000;

    fn call(tid: u32, start: u64) -> Event {
        Event::Call(Call {
            thread: Thread::new(7, tid),
            op: OpId::by_name("cudaLaunchKernel").unwrap(),
            start: BootNanos(start),
            dur: 5_000,
            device: None,
            stream: Stream(0),
            ret: 0,
            flags: CallFlags(0),
            arg0: 0,
            arg1: 0,
            stack_id: 0,
            cpu: Cpu(0),
        })
    }

    fn outlier(at_secs: u64, bucket: OutlierBucket, phase: Option<Phase>) -> Outlier {
        Outlier {
            id: EventId(1),
            span: SpanContext { trace: 1, span: 1 },
            key: WorkloadKey {
                cgroup: None,
                process: Incarnation::default(),
                stream: Stream(1),
                phase,
                device: None,
                fingerprint: 0,
            },
            at: BootNanos(at_secs * SEC),
            step_nanos: SEC,
            p95_nanos: SEC / 4,
            mean_nanos: SEC / 4,
            bucket,
            tid: Tid(7),
            op: OpId::by_name("cudaStreamSync").unwrap(),
            launches: 1,
            copied_bytes: 0,
            memory_calls: 0,
            throttle_reasons: 0,
            min_sm_clock_mhz: None,
            kv_ages_millis: Vec::new(),
            first_in_minute: true,
        }
    }

    fn sampler() -> Sampler {
        Sampler::new(&InferenceSettings::default())
    }

    /// Sum of weights of a second of calls 1 µs apart, and how many were kept.
    fn second(s: &mut Sampler, at_secs: u64) -> (u64, u64) {
        let (mut kept, mut weights) = (0, 0);
        for i in 0..100_000 {
            if let Admission::Keep { weight } =
                s.admit(&call(i % 8, at_secs * SEC + u64::from(i) * 10_000))
            {
                kept += 1;
                weights += u64::from(weight);
            }
        }
        (kept, weights)
    }

    #[test]
    fn one_in_a_hundred_is_kept_and_stands_for_a_hundred() {
        let mut s = sampler();
        let (kept, weights) = second(&mut s, 1);
        // Five standard deviations of 100,000 throws at 1 %: 157.
        assert!(kept.abs_diff(1_000) < 157, "{kept}");
        assert_eq!(weights, kept * 100);
        let again = second(&mut sampler(), 1);
        assert_eq!(again, (kept, weights), "the same events are kept again");
        assert_eq!(
            (s.admitted, s.admitted_weight, s.shed),
            (kept, weights, 100_000 - kept)
        );
    }

    #[test]
    fn from_an_outlier_on_all_is_kept_and_after_its_cooldown_little_again() {
        let mut s = sampler();
        let state = |s: &Sampler, at: u64| s.state(BootNanos(at * SEC));
        assert_eq!(state(&s, 99), SamplerState::Healthy);
        let o = outlier(100, OutlierBucket::X3, Some(Phase::Decode));
        let d = s.outlier(&o).unwrap();
        assert_eq!(d.cooldown_end, BootNanos(130 * SEC));
        assert_eq!(state(&s, 101), SamplerState::Degraded);
        assert_eq!(second(&mut s, 101), (100_000, 100_000));
        assert_eq!(
            second(&mut s, 99),
            (100_000, 100_000),
            "the slow step itself"
        );
        assert!(second(&mut s, 98).0 < 2_000);
        // Another one makes it longer, and is no news.
        assert_eq!(
            s.outlier(&outlier(110, OutlierBucket::X3, Some(Phase::Decode))),
            None
        );
        assert_eq!(s.last.unwrap().cooldown_end, BootNanos(140 * SEC));
        s.ordinary(&WorkloadKey {
            stream: Stream(9),
            ..o.key
        });
        assert_eq!(state(&s, 111), SamplerState::Degraded, "another workload's");
        s.ordinary(&o.key);
        assert_eq!(state(&s, 111), SamplerState::Cooldown);
        assert_eq!(second(&mut s, 139), (100_000, 100_000));
        assert_eq!(state(&s, 140), SamplerState::Healthy);
        assert!(second(&mut s, 140).0 < 2_000);
        assert!(s.outlier(&outlier(150, OutlierBucket::X3, None)).is_some());
        assert_eq!(s.degradations, 2);
    }

    #[test]
    fn a_process_in_trouble_has_everything_kept_though_its_steps_are_not_judged() {
        let mut s = sampler();
        let w = |a: u64, b: u64| Window {
            start: BootNanos(a * SEC),
            end: BootNanos(b * SEC),
        };
        s.trouble(w(100, 130));
        s.trouble(w(101, 131));
        assert_eq!(s.state(BootNanos(120 * SEC)), SamplerState::Cooldown);
        assert_eq!(second(&mut s, 130), (100_000, 100_000));
        assert!(second(&mut s, 131).0 < 2_000);
        assert_eq!(s.degradations, 0, "no outlier did it");
        assert_eq!(s.stretches.len(), 1);
        // An outlier of another process in that time is news.
        s.outlier(&outlier(110, OutlierBucket::X3, Some(Phase::Decode)))
            .unwrap();
        assert_eq!(s.state(BootNanos(120 * SEC)), SamplerState::Degraded);
        assert_eq!(second(&mut s, 139), (100_000, 100_000));
        let mut off = Sampler::new(&InferenceSettings {
            degrade_on: None,
            ..InferenceSettings::default()
        });
        off.trouble(w(100, 130));
        assert!(second(&mut off, 110).0 < 2_000);
    }

    #[test]
    fn it_recovers_though_no_ordinary_step_ever_comes() {
        let mut s = sampler();
        s.outlier(&outlier(100, OutlierBucket::X3, Some(Phase::Prefill)));
        assert_eq!(s.state(BootNanos(130 * SEC)), SamplerState::Healthy);
    }

    #[test]
    fn only_outliers_of_the_level_and_of_a_known_phase_count_and_off_is_off() {
        let mut s = sampler();
        assert_eq!(
            s.outlier(&outlier(1, OutlierBucket::X2, Some(Phase::Decode))),
            None
        );
        assert_eq!(
            s.outlier(&outlier(1, OutlierBucket::X3, Some(Phase::Unknown))),
            None
        );
        assert_eq!(s.state(BootNanos(SEC)), SamplerState::Healthy);
        let mut off = Sampler::new(&InferenceSettings {
            degrade_on: None,
            ..InferenceSettings::default()
        });
        assert_eq!(
            off.outlier(&outlier(1, OutlierBucket::X3, Some(Phase::Decode))),
            None
        );
        assert_eq!(
            (off.degradations, off.state(BootNanos(SEC))),
            (0, SamplerState::Healthy)
        );
    }

    #[test]
    fn what_is_no_single_observation_is_never_shed() {
        let mut s = Sampler::new(&InferenceSettings {
            sample_one_in: u32::MAX,
            ..InferenceSettings::default()
        });
        for at in 0..1_000 {
            let exit = Event::Process(ProcessEvent::Exit {
                at: BootNanos(at),
                pid: Pid(at as u32),
                status: 0,
            });
            assert_eq!(s.admit(&exit), Admission::Keep { weight: 1 });
        }
        assert_eq!(s.shed, 0);
        assert_eq!(s.admit(&call(1, 1)), Admission::Shed);
    }
}
