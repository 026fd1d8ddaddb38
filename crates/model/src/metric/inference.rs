//! Metrics of inference: of the engine that watches from outside, and of what servers say of themselves.

use std::collections::HashMap;

use super::{Exemplar, Explicit, Families, Family, Metric, Number, attribute, metric};
use crate::inference::{
    BoundedHistogram, InferenceState, Outlier, OutlierBucket, Phase, SamplerState, WorkloadKey,
    WorkloadState,
};
use crate::serving::{Engine, ServingReading, ServingValue};
use crate::{BootNanos, ClockAnchor, Object, Pid, UnixNanos};

/// What is known of a server's process besides its steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    pub engine: Engine,
    pub model: Option<String>,
}

/// All metrics of an inference engine that began to watch at `start`, as they are at `at`.
///
/// `server` says what is known of a process; `clock` converts. Counters of outliers are by workload; those of workloads that were
/// forgotten are in one series without a workload, so that sums never fall.
pub fn inference_families(
    state: &InferenceState,
    server: &dyn Fn(Pid) -> Option<ServerFacts>,
    clock: ClockAnchor,
    start: BootNanos,
    at: BootNanos,
) -> Vec<Family> {
    let (start, at) = (clock.unix(start), clock.unix(at));
    let mut to = Families::new(start, at);
    let workloads = current(&state.workloads);
    let of = |workload: &WorkloadState| workload_attributes(&workload.key, server);

    for workload in workloads.iter().filter(|workload| workload.warmed) {
        // A workload that comes back after it was forgotten counts from its own first step on.
        let since = clock.unix(workload.since);
        let mut durations = |metric, histogram| {
            let value = Number::Explicit(histogram);
            to.push_since(metric, since, of(workload), value);
        };
        durations(&metric::INFERENCE_STEP_DURATION, step_secs(&workload.all));
        let healthy = step_secs(&workload.healthy);
        durations(&metric::INFERENCE_HEALTHY_STEP_DURATION, healthy);
        let paused = count(workload.paused_steps);
        to.push_since(&metric::INFERENCE_STEP_PAUSED, since, of(workload), paused);
        for (metric, nanos) in [
            (&metric::INFERENCE_BASELINE_MEAN, workload.mean_nanos),
            (&metric::INFERENCE_BASELINE_P95, workload.p95_nanos),
        ] {
            to.push(metric, of(workload), Number::Double(nanos as f64 / 1e9));
        }
    }
    for (metric, all, each) in [
        (
            &metric::INFERENCE_OUTLIER_COUNT,
            state.outliers,
            (|workload| workload.outliers) as fn(&WorkloadState) -> [u64; 3],
        ),
        (
            &metric::INFERENCE_OUTLIER_THROTTLED,
            state.throttled_outliers,
            |workload| workload.throttled_outliers,
        ),
    ] {
        for (i, bucket) in OutlierBucket::ALL.into_iter().enumerate() {
            let mut forgotten = all[i];
            for workload in &workloads {
                let outliers = each(workload)[i];
                forgotten = forgotten.saturating_sub(outliers);
                if outliers > 0 {
                    let mut attributes = of(workload);
                    attributes.insert(attribute::BUCKET.name, bucket.name());
                    let since = clock.unix(workload.since);
                    to.push_since(metric, since, attributes, count(outliers));
                }
            }
            if forgotten > 0 {
                to.push(
                    metric,
                    one(&attribute::BUCKET, bucket.name()),
                    count(forgotten),
                );
            }
        }
    }
    let workloads = state.workloads.len() as u64;
    to.push(
        &metric::INFERENCE_WORKLOADS,
        Object::new(),
        count(workloads),
    );
    for (phase, steps) in Phase::ALL.into_iter().zip(state.phases) {
        let attributes = one(&attribute::PHASE, phase.name());
        to.push(&metric::INFERENCE_STEP_COUNT, attributes, count(steps));
    }
    let left_out = &state.left_out;
    for (reason, steps) in [
        ("first", left_out.first),
        ("length", left_out.length),
        ("unknown_event", left_out.unknown_event),
        ("lost_records", left_out.lost_records),
        ("paused", left_out.paused),
    ] {
        let attributes = one(&attribute::ERROR_TYPE, reason);
        to.push(&metric::INFERENCE_STEP_LEFT_OUT, attributes, count(steps));
    }
    if state.kv_ages.count() > 0 {
        let ages = secs(
            &state.kv_ages,
            &metric::INFERENCE_KV_CACHE_ALLOCATION_AGE,
            1e3,
        );
        let metric = &metric::INFERENCE_KV_CACHE_ALLOCATION_AGE;
        to.push(metric, Object::new(), Number::Explicit(ages));
    }
    if let Some(last) = &state.last_degradation {
        let cause = || one(&attribute::SAMPLER_CAUSE, &last.cause());
        let degraded = u64::from(state.sampler != SamplerState::Healthy);
        to.push(
            &metric::INFERENCE_SAMPLER_DEGRADED,
            cause(),
            count(degraded),
        );
        let metric = &metric::INFERENCE_SAMPLER_DEGRADATION_COUNT;
        to.push(metric, cause(), count(state.degradations));
    }
    for (decision, events) in [("admitted", state.admitted), ("shed", state.shed)] {
        let attributes = one(&attribute::SAMPLER_DECISION, decision);
        to.push(
            &metric::INFERENCE_SAMPLER_EVENT_COUNT,
            attributes,
            count(events),
        );
    }
    for (metric, n) in [
        (&metric::INFERENCE_BASELINE_SHIFT, state.shifts),
        (&metric::INFERENCE_MESSAGE_DROPPED, state.dropped),
        (&metric::INFERENCE_EVICTED, state.evicted),
    ] {
        to.push(metric, Object::new(), count(n));
    }
    to.finish()
}

/// Puts outliers, those since the snapshot before, beside their workloads' steps as exemplars: how long the step took, the span that it
/// is exported as, and its event id. Of a workload's the last 16 are kept.
///
/// `server` is as in [`inference_families`], which made `families`. Cost: a walk over the workloads for each outlier.
pub fn add_outlier_exemplars(
    families: &mut [Family],
    outliers: &[Outlier],
    server: &dyn Fn(Pid) -> Option<ServerFacts>,
    clock: ClockAnchor,
) {
    const KEPT: usize = 16;
    let steps = &metric::INFERENCE_STEP_DURATION;
    let Some(family) = families.iter_mut().find(|family| family.metric == steps) else {
        return;
    };
    for outlier in outliers {
        let attributes = workload_attributes(&outlier.key, server);
        let mut points = family.points.iter_mut();
        let Some(point) = points.find(|point| point.attributes == attributes) else {
            continue;
        };
        if point.exemplars.len() == KEPT {
            point.exemplars.remove(0);
        }
        point.exemplars.push(Exemplar {
            value: outlier.step_nanos as f64 / 1e9,
            at: clock.unix(outlier.at),
            context: Some((outlier.span.trace, outlier.span.span)),
            attributes: one(&attribute::EVENT_ID, &outlier.id.to_string()),
        });
    }
}

/// Of workloads that differ in nothing that is exported, since one process had the id of another, the one that was seen last.
fn current(workloads: &[WorkloadState]) -> Vec<&WorkloadState> {
    let mut places: HashMap<WorkloadKey, usize> = HashMap::new();
    let mut kept: Vec<&WorkloadState> = Vec::with_capacity(workloads.len());
    for workload in workloads {
        let mut key = workload.key;
        key.process.start_ticks = 0;
        match places.get(&key) {
            Some(at) if kept[*at].seen < workload.seen => kept[*at] = workload,
            Some(_) => {}
            None => {
                places.insert(key, kept.len());
                kept.push(workload);
            }
        }
    }
    kept
}

/// What a server says of itself: `started` is since when it counts, as well as that is known, `pid` its process.
///
/// A histogram without buckets is left out: it has no form here.
pub fn serving_families(
    readings: &[ServingReading],
    engine: Engine,
    pid: Option<Pid>,
    started: UnixNanos,
    at: UnixNanos,
) -> Vec<Family> {
    let mut to = Families::new(started, at);
    for reading in readings {
        let name = reading.metric.name();
        let Some(metric) = metric::ALL.iter().find(|metric| metric.name == name) else {
            continue;
        };
        let mut attributes = Object::new();
        if let Some(pid) = pid {
            attributes.insert(attribute::ENGINE_PID.name, i64::from(pid.0));
        }
        if let Some(model) = &reading.model {
            attributes.insert(attribute::GEN_AI_REQUEST_MODEL.name, model.as_str());
        }
        attributes.insert(attribute::GEN_AI_SYSTEM.name, engine.name());
        let value = match &reading.value {
            ServingValue::Number(x) => Number::Double(*x),
            ServingValue::Histogram(h) => {
                match Explicit::from_counts(&h.bounds, h.counts.clone(), h.sum, None) {
                    Some(histogram) => Number::Explicit(histogram),
                    None => continue,
                }
            }
        };
        to.push(metric, attributes, value);
    }
    to.finish()
}

/// Attributes of a workload, by our names.
pub fn workload_attributes(
    key: &WorkloadKey,
    server: &dyn Fn(Pid) -> Option<ServerFacts>,
) -> Object {
    let cgroup = key.cgroup.map(|cgroup| cgroup.to_string());
    let mut attributes = Object::new();
    attributes.insert(attribute::CGROUP.name, cgroup.unwrap_or_default());
    attributes.insert(attribute::PID.name, i64::from(key.process.pid.0));
    if let Some(device) = key.device {
        attributes.insert(attribute::DEVICE.name, i64::from(device.0));
    }
    attributes.insert(attribute::STREAM.name, crate::Int::from(key.stream.0));
    attributes.insert(attribute::PHASE.name, key.phase.map_or("", Phase::name));
    if key.fingerprint != 0 {
        let name = attribute::FINGERPRINT.name;
        attributes.insert(name, crate::Int::from(key.fingerprint));
    }
    if let Some(server) = server(key.process.pid) {
        if let Some(model) = server.model {
            attributes.insert(attribute::GEN_AI_REQUEST_MODEL.name, model);
        }
        attributes.insert(attribute::GEN_AI_SYSTEM.name, server.engine.name());
    }
    attributes
}

fn one(attribute: &super::Attribute, value: &str) -> Object {
    Object::from_pairs(vec![(attribute.name.into(), value.into())])
}

fn count(n: u64) -> Number {
    Number::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

fn step_secs<const N: usize>(histogram: &BoundedHistogram<N>) -> Explicit {
    secs(histogram, &metric::INFERENCE_STEP_DURATION, 1e9)
}

/// In the metric's bounds, which are those of the counts in seconds.
fn secs<const N: usize>(
    histogram: &BoundedHistogram<N>,
    metric: &Metric,
    per_sec: f64,
) -> Explicit {
    let sum = histogram.sum as f64 / per_sec;
    let counts = histogram.counts.to_vec();
    Explicit::from_counts(metric.bounds, counts, sum, None)
        .unwrap_or_else(|| Explicit::new(metric.bounds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{
        CgroupHash, EventId, KV_AGE_BOUNDS_MILLIS, KvAgeHistogram, LeftOutSteps, STEP_BOUNDS_NANOS,
        StepHistogram,
    };
    use crate::metric::Point;
    use crate::record::{OpId, Source};
    use crate::serving::{ServingHistogram, ServingMetric};
    use crate::{Device, Incarnation, SpanContext, Stream, Tid, Value};

    #[test]
    fn the_bounds_of_the_table_are_those_of_the_counts() {
        let secs = STEP_BOUNDS_NANOS.map(|bound| bound as f64 * 1e-9);
        let close = |ours: &[f64], theirs: &[f64]| {
            assert_eq!(ours.len(), theirs.len());
            ours.iter()
                .zip(theirs)
                .all(|(a, b)| (a / b - 1.0).abs() < 1e-9)
        };
        assert!(close(metric::INFERENCE_STEP_DURATION.bounds, &secs));
        let secs = KV_AGE_BOUNDS_MILLIS.map(|bound| bound as f64 * 1e-3);
        assert!(close(
            metric::INFERENCE_KV_CACHE_ALLOCATION_AGE.bounds,
            &secs
        ));
    }

    fn workload(pid: u32, outliers: [u64; 3]) -> WorkloadState {
        let mut healthy = StepHistogram::default();
        (0..5).for_each(|_| healthy.record(20_000_000, &STEP_BOUNDS_NANOS));
        WorkloadState {
            key: WorkloadKey {
                cgroup: Some(CgroupHash(0xf6f7_a079_fa79_fb5d)),
                process: Incarnation {
                    pid: Pid(pid),
                    start_ticks: 1,
                },
                stream: Stream(0x7f00_0000_0000_0001),
                phase: Some(Phase::Decode),
                device: Some(Device(0)),
                fingerprint: 0,
            },
            since: BootNanos(1_500),
            seen: BootNanos(2_000),
            warmed: true,
            steps: 6,
            paused_steps: 0,
            outliers,
            throttled_outliers: [0; 3],
            shifts: 0,
            mean_nanos: 20_000_000,
            p95_nanos: 21_000_000,
            healthy: healthy.clone(),
            all: healthy,
        }
    }

    fn state(workloads: Vec<WorkloadState>) -> InferenceState {
        InferenceState {
            workloads,
            steps: 12,
            phases: [12, 0, 0, 0],
            outliers: [0, 2, 7],
            throttled_outliers: [0; 3],
            paused_steps: 0,
            shifts: 0,
            left_out: LeftOutSteps::default(),
            kv_ages: KvAgeHistogram::default(),
            sampler: SamplerState::Healthy,
            last_degradation: None,
            degradations: 0,
            admitted: 1,
            admitted_weight: 100,
            shed: 99,
            dropped: 0,
            evicted: 0,
        }
    }

    fn families(state: &InferenceState) -> Vec<Family> {
        let clock = ClockAnchor {
            boot: BootNanos(0),
            unix: UnixNanos(1_000_000),
        };
        let server = |pid| {
            let model = Some("m".to_owned());
            (pid == Pid(1)).then_some(ServerFacts {
                engine: Engine::Vllm,
                model,
            })
        };
        inference_families(state, &server, clock, BootNanos(1_000), BootNanos(3_000))
    }

    fn points<'a>(families: &'a [Family], metric: &Metric) -> &'a [Point] {
        let family = families.iter().find(|family| family.metric == metric);
        family.map_or(&[], |family| &family.points)
    }

    #[test]
    fn sums_of_outliers_do_not_fall_when_a_workload_is_forgotten() {
        let sum = |families: &[Family]| {
            let points = points(families, &metric::INFERENCE_OUTLIER_COUNT).iter();
            let values = points.map(|point| match point.value {
                Number::Int(n) => n,
                _ => panic!("{point:?}"),
            });
            values.sum::<i64>()
        };
        let both = families(&state(vec![workload(1, [0, 1, 3]), workload(2, [0, 1, 4])]));
        let one = families(&state(vec![workload(2, [0, 1, 4])]));
        assert_eq!(
            (sum(&both), sum(&one), sum(&families(&state(vec![])))),
            (9, 9, 9)
        );
    }

    #[test]
    fn of_two_processes_that_had_one_id_the_later_one_is_told_and_sums_have_both() {
        let mut earlier = workload(1, [0, 1, 3]);
        earlier.key.process.start_ticks = 0;
        earlier.seen = BootNanos(1_900);
        earlier.p95_nanos = 7;
        let families = families(&state(vec![earlier, workload(1, [0, 1, 4])]));
        let p95 = points(&families, &metric::INFERENCE_BASELINE_P95);
        assert_eq!((p95.len(), &p95[0].value), (1, &Number::Double(0.021)));
        let counts = points(&families, &metric::INFERENCE_OUTLIER_COUNT);
        let sum: i64 = counts
            .iter()
            .map(|point| match point.value {
                Number::Int(n) => n,
                _ => 0,
            })
            .sum();
        assert_eq!(sum, 9);
    }

    #[test]
    fn a_workload_says_its_steps_in_seconds_and_what_its_server_is() {
        let families = families(&state(vec![workload(1, [0, 1, 3]), workload(2, [0, 1, 4])]));
        let steps = points(&families, &metric::INFERENCE_HEALTHY_STEP_DURATION);
        let [first, second] = steps else {
            panic!("{steps:?}")
        };
        assert_eq!(
            (first.start, first.at),
            (UnixNanos(1_001_500), UnixNanos(1_003_000))
        );
        let Number::Explicit(histogram) = &first.value else {
            panic!("{first:?}")
        };
        assert_eq!(histogram.count(), 5);
        assert!((histogram.sum() - 0.1).abs() < 1e-12);
        let said = |point: &Point, key| {
            point
                .attributes
                .get(key)
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        assert_eq!(said(first, "gen_ai.request.model").as_deref(), Some("m"));
        assert_eq!(said(second, "gen_ai.request.model"), None);
        assert_eq!(
            said(second, "warptrace.cgroup.hash").as_deref(),
            Some("f6f7a079fa79fb5d")
        );
        let p95 = &points(&families, &metric::INFERENCE_BASELINE_P95)[0];
        assert_eq!(
            (p95.start, &p95.value),
            (UnixNanos(0), &Number::Double(0.021))
        );
    }

    #[test]
    fn an_outlier_is_an_exemplar_of_its_workloads_steps() {
        let clock = ClockAnchor {
            boot: BootNanos(0),
            unix: UnixNanos(1_000_000),
        };
        let mut families = families(&state(vec![workload(1, [0, 1, 3]), workload(2, [0, 1, 4])]));
        let outlier = |pid, step_nanos| Outlier {
            id: EventId(7),
            span: SpanContext { trace: 5, span: 6 },
            key: workload(pid, [0; 3]).key,
            at: BootNanos(2_000),
            step_nanos,
            p95_nanos: 1,
            mean_nanos: 1,
            bucket: OutlierBucket::X3,
            tid: Tid(1),
            op: OpId::find(Source::Runtime, 5).unwrap(),
            launches: 0,
            copied_bytes: 0,
            memory_calls: 0,
            throttle_reasons: 0,
            min_sm_clock_mhz: None,
            kv_ages_millis: Vec::new(),
            first_in_minute: true,
        };
        let outliers: Vec<_> = (1..=20).map(|n| outlier(2, n * 100_000_000)).collect();
        let unknown = [outlier(3, 1)];
        for some in [&outliers[..], &unknown] {
            add_outlier_exemplars(&mut families, some, &|_| None, clock);
        }
        let steps = points(&families, &metric::INFERENCE_STEP_DURATION);
        assert!(steps[0].exemplars.is_empty());
        let kept: Vec<f64> = steps[1].exemplars.iter().map(|e| e.value).collect();
        assert_eq!((kept.len(), kept[0], kept[15]), (16, 0.5, 2.0));
        let last = &steps[1].exemplars[15];
        assert_eq!(
            (last.at, last.context),
            (UnixNanos(1_002_000), Some((5, 6)))
        );
        let id = last
            .attributes
            .get("warptrace.event.id")
            .and_then(Value::as_str);
        assert_eq!(id, Some("00000000-0000-0000-0000-000000000007"));
    }

    #[test]
    fn what_a_server_says_keeps_its_model_and_a_histogram_without_buckets_is_left_out() {
        let reading = |metric, value| ServingReading {
            metric,
            model: Some("m".to_owned()),
            value,
        };
        let readings = [
            reading(ServingMetric::KvCacheUtilization, ServingValue::Number(0.5)),
            reading(
                ServingMetric::QueueDuration,
                ServingValue::Histogram(ServingHistogram {
                    sum: 1.5,
                    count: 3,
                    bounds: vec![0.5],
                    counts: vec![2, 1],
                }),
            ),
            reading(
                ServingMetric::BatchDuration,
                ServingValue::Histogram(ServingHistogram::default()),
            ),
        ];
        let families = serving_families(
            &readings,
            Engine::Vllm,
            Some(Pid(7)),
            UnixNanos(1),
            UnixNanos(2),
        );
        assert_eq!(families.len(), 2);
        let queue = &points(&families, &metric::SERVING_QUEUE_DURATION)[0];
        let Number::Explicit(histogram) = &queue.value else {
            panic!("{queue:?}")
        };
        assert_eq!(
            (histogram.count(), histogram.counts(), queue.start),
            (3, &[2, 1][..], UnixNanos(1))
        );
        assert_eq!(
            queue.attributes.get("warptrace.engine.pid"),
            Some(&Value::from(7))
        );
    }
}
