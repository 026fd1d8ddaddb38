//! What must not be concluded, beside what must.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use warptrace_model::{
    Capabilities, Identity, Int, MemoryEvent, MemoryVersion, Metadata, Object, Severity, Value,
};

use super::*;

const GIB: i64 = 1 << 30;
const MIB: i64 = 1 << 20;
const SEC: i64 = 1_000_000_000;
const T0: i64 = 1_700_000_000 * SEC;

fn metadata(values: Object) -> Arc<Metadata> {
    Arc::new(Metadata {
        values,
        capabilities: Capabilities {
            backend: "cuda".into(),
            telemetry_collector: "test".into(),
            sampling_source: "nvml".into(),
            supports_allocator_allocated: true,
            supports_allocator_reserved: true,
            supports_allocator_active: true,
            supports_allocator_inactive: true,
            supports_device_used: true,
            supports_device_free: true,
            supports_device_total: true,
            supports_native_allocator_history: false,
            supports_fragmentation_analysis: true,
            supports_allocator_attribution: true,
            supports_bounded_profiling: false,
        },
        inferred: false,
    })
}

/// A sample of rank 0 and device 0 at `at` ns after T0: 1 GiB allocated of 2 GiB reserved, 3 GiB used of 80 GiB.
fn sample(at: i64) -> MemoryEvent {
    MemoryEvent {
        said: MemoryVersion::V4,
        session_id: "S".into(),
        timestamp_ns: Int::new(T0 + at),
        event_type: "sample".into(),
        collector: "test".into(),
        sampling_interval_ms: Int::new(100),
        pid: Int::new(1),
        host: "node".into(),
        identity: Identity::default(),
        device_id: Int::ZERO,
        allocator_allocated_bytes: Some(Int::new(GIB)),
        allocator_reserved_bytes: Some(Int::new(2 * GIB)),
        allocator_active_bytes: None,
        allocator_inactive_bytes: None,
        allocator_change_bytes: None,
        device_used_bytes: Some(Int::new(3 * GIB)),
        device_free_bytes: None,
        device_total_bytes: Some(Int::new(80 * GIB)),
        context: None,
        metadata: metadata(Object::new()),
    }
}

fn allocated(at: i64, bytes: i64) -> MemoryEvent {
    MemoryEvent {
        allocator_allocated_bytes: Some(Int::new(bytes)),
        allocator_reserved_bytes: Some(Int::new(bytes + GIB)),
        device_used_bytes: Some(Int::new(bytes + 2 * GIB)),
        ..sample(at)
    }
}

fn of_rank(rank: i64, world: i64, event: MemoryEvent) -> MemoryEvent {
    MemoryEvent {
        session_id: format!("S{rank}").into(),
        pid: Int::new(100 + rank),
        identity: Identity {
            job_id: Some("job".into()),
            rank: Int::new(rank),
            local_rank: Int::new(rank),
            world_size: Int::new(world),
        },
        ..event
    }
}

/// A level each second.
fn each_second(levels: impl IntoIterator<Item = i64>) -> Vec<MemoryEvent> {
    let levels = levels.into_iter().enumerate();
    levels
        .map(|(i, bytes)| allocated(i as i64 * SEC, bytes))
        .collect()
}

fn report<'a>(events: impl IntoIterator<Item = &'a MemoryEvent>) -> MemoryReport {
    let mut analyzer = Analyzer::new(Rules::default());
    events.into_iter().for_each(|e| analyzer.add(e));
    analyzer.finish()
}

fn kinds(report: &MemoryReport) -> Vec<&'static str> {
    report.findings.iter().map(|f| f.what.kind()).collect()
}

#[track_caller]
fn check_kinds(events: &[MemoryEvent], want: &[&str]) {
    assert_eq!(kinds(&report(events)), want);
}

fn unknown(report: &MemoryReport, kind: CheckKind) -> Option<Unknown> {
    report
        .checks
        .iter()
        .find(|c| c.kind == kind)
        .and_then(|c| c.unknown)
}

#[test]
fn a_floor_that_rises_for_minutes_is_a_leak_with_its_rate() {
    // A saw of 500 MiB over a floor that rises by 2 MiB a second.
    let events = each_second((0..300).map(|i| GIB + i * 2 * MIB + (i % 10) * 50 * MIB));
    let report = report(&events);
    assert_eq!(kinds(&report), ["leak"]);
    let What::Leak(leak) = &report.findings[0].what else {
        unreachable!()
    };
    assert!(
        (leak.rate / (2.0 * MIB as f64) - 1.0).abs() < 0.05,
        "{leak:?}"
    );
    assert!(leak.full_in_ns.is_some());
}

#[test]
fn five_rising_samples_are_no_leak_and_the_check_says_that_it_cannot_tell() {
    let report = report(&each_second((0..5).map(|i| GIB + i * GIB)));
    assert_eq!(kinds(&report), [""; 0]);
    assert!(matches!(
        unknown(&report, CheckKind::Leak),
        Some(Unknown::TooShort { .. })
    ));
}

#[test]
fn what_looks_like_a_leak_but_gives_back_or_stops_is_none() {
    let ramp_then_flat = |i: i64| {
        if i < 90 {
            GIB + i * 100 * MIB
        } else {
            10 * GIB
        }
    };
    let one_step = |i: i64| if i < 150 { 4 * GIB } else { 9 * GIB };
    let rising_peaks = |i: i64| if i % 10 == 0 { GIB } else { GIB + i * 20 * MIB };
    let long_saw = |i: i64| GIB + (i % 120) * 50 * MIB;
    let falling = |i: i64| 20 * GIB - i * 20 * MIB;
    for (name, level) in [
        ("ramp", &ramp_then_flat as &dyn Fn(i64) -> i64),
        ("step", &one_step),
        ("peaks", &rising_peaks),
        ("saw", &long_saw),
        ("falling", &falling),
    ] {
        let events = each_second((0..300).map(level));
        assert_eq!(kinds(&report(&events)), [""; 0], "{name}");
    }
}

#[test]
fn equal_times_one_sample_nulls_and_no_samples_are_ordinary() {
    check_kinds(&[], &[]);
    check_kinds(&[sample(0)], &[]);
    let equal: Vec<MemoryEvent> = (0..100).map(|i| allocated(0, i * GIB / 50)).collect();
    check_kinds(&equal, &[]);
    let nulls: Vec<MemoryEvent> = (0..100)
        .map(|i| MemoryEvent {
            allocator_allocated_bytes: None,
            allocator_reserved_bytes: None,
            device_used_bytes: None,
            device_total_bytes: None,
            ..sample(i * SEC)
        })
        .collect();
    let report = report(&nulls);
    assert_eq!((report.counts.events, report.counts.measurements), (100, 0));
    assert!(report.series.is_empty());
}

#[test]
fn an_absent_counter_stays_absent_and_is_never_0() {
    let events: Vec<MemoryEvent> = (0..50)
        .map(|i| MemoryEvent {
            allocator_reserved_bytes: None,
            ..sample(i * SEC)
        })
        .collect();
    let report = report(&events);
    let one = &report.series[0];
    assert_eq!(one.peak(Level::Reserved), None);
    assert_eq!(one.peak(Level::Hidden), None);
    assert_eq!(one.absent[Level::Reserved as usize], 50);
    assert_eq!(
        unknown(&report, CheckKind::Hidden),
        Some(Unknown::NotMeasured(Level::Reserved))
    );
}

#[test]
fn counters_of_lifecycle_events_are_no_measurements() {
    let mut events = each_second([5 * GIB; 60]);
    let zeros = |event_type: &str, at| MemoryEvent {
        event_type: event_type.into(),
        allocator_allocated_bytes: Some(Int::ZERO),
        ..sample(at)
    };
    events.insert(0, zeros("start", 0));
    events.push(zeros("stop", 60 * SEC));
    let report = report(&events);
    assert_eq!(
        report.series[0].mean(Level::Allocated),
        Some(5.0 * GIB as f64)
    );
}

#[test]
fn reserved_but_not_allocated_is_a_cache_and_no_fragmentation() {
    let events: Vec<MemoryEvent> = (0..60)
        .map(|i| MemoryEvent {
            allocator_reserved_bytes: Some(Int::new(40 * GIB)),
            device_used_bytes: Some(Int::new(41 * GIB)),
            ..sample(i * SEC)
        })
        .collect();
    let found = report(&events);
    assert_eq!(kinds(&found), [""; 0]);
    assert_eq!(
        unknown(&found, CheckKind::Fragmentation),
        Some(Unknown::NotMeasured(Level::Inactive))
    );
    let split: Vec<MemoryEvent> = events
        .into_iter()
        .map(|e| MemoryEvent {
            allocator_inactive_bytes: Some(Int::new(22 * GIB)),
            ..e
        })
        .collect();
    check_kinds(&split, &["fragmentation"]);
}

#[test]
fn one_spike_among_few_samples_is_seen_because_it_is_not_in_its_own_spread() {
    // By standard deviations of all, an outlier among n samples is at most (n - 1) / sqrt(n) of them away: 2.5 of 8.
    let hidden = |at: i64, bytes: i64| MemoryEvent {
        device_used_bytes: Some(Int::new(2 * GIB + bytes)),
        ..sample(at)
    };
    let events: Vec<MemoryEvent> = (0..8)
        .map(|i| hidden(i * SEC, if i == 5 { 9 * GIB } else { GIB + i * MIB }))
        .collect();
    let report = report(&events);
    assert_eq!(kinds(&report), ["hidden_spikes"]);
    assert_eq!(report.findings[0].start_ns, T0 + 5 * SEC);
}

#[test]
fn a_collector_without_a_driver_to_ask_says_nothing_about_hidden_memory() {
    let events: Vec<MemoryEvent> = (0..60)
        .map(|i| MemoryEvent {
            device_used_bytes: Some(Int::new(2 * GIB)),
            ..sample(i * SEC)
        })
        .collect();
    let report = report(&events);
    assert_eq!(
        unknown(&report, CheckKind::Hidden),
        Some(Unknown::UsedIsAllocator)
    );
}

#[test]
fn spikes_of_several_ranks_at_once_are_one_finding() {
    let mut events = Vec::new();
    for rank in 0..4 {
        for i in 0..60 {
            let bytes = if i == 30 { 6 * GIB } else { GIB };
            events.push(of_rank(
                rank,
                4,
                MemoryEvent {
                    device_used_bytes: Some(Int::new(2 * GIB + bytes)),
                    ..sample(i * SEC + rank * 10_000_000)
                },
            ));
        }
    }
    let report = report(&events);
    assert_eq!(kinds(&report), ["hidden_spikes"]);
    assert!(
        matches!(&report.findings[0].what, What::HiddenSpikes { ranks, .. } if ranks[..] == [0, 1, 2, 3])
    );
}

#[test]
fn nearly_full_has_two_levels_so_that_a_level_between_them_makes_no_episodes() {
    let used = |i: i64| [96, 94, 96, 94, 50, 96][i as usize] * 80 * GIB / 100;
    let events: Vec<MemoryEvent> = (0..6)
        .map(|i| MemoryEvent {
            device_used_bytes: Some(Int::new(used(i))),
            ..sample(i * SEC)
        })
        .collect();
    let report = report(&events);
    assert_eq!(report.series[0].full_episodes, 2);
}

#[test]
fn an_oom_by_type_is_certain_and_one_by_words_is_not() {
    for (reason, severity) in [
        ("torch.cuda.OutOfMemoryError", Severity::Critical),
        ("message_pattern:out of memory", Severity::High),
    ] {
        let mut values = Object::new();
        values.insert("oom_reason", reason);
        let oom = MemoryEvent {
            event_type: "error".into(),
            metadata: metadata(values),
            ..sample(SEC)
        };
        let report = report(&[sample(0), oom]);
        assert_eq!(kinds(&report), ["oom"]);
        assert_eq!(report.findings[0].severity, severity);
    }
    assert!(
        classify_oom("RuntimeError", "x", "the room is out of memory foam")
            .is_some_and(|r| !r.is_certain())
    );
}

/// A rank that starts at `start`, loads for 5 s, and keeps `level` with a little noise till `end`; rises by 4 GiB at `rise`.
fn rank_series(rank: i64, world: i64, start: i64, end: i64, rise: Option<i64>) -> Vec<MemoryEvent> {
    (start..end)
        .map(|second| {
            let loaded = (second - start + 1).min(5) * 2 * GIB;
            let noise = (second * 7 % 5) * MIB;
            let risen = if rise.is_some_and(|at| second >= at) {
                4 * GIB
            } else {
                0
            };
            of_rank(
                rank,
                world,
                allocated(second * SEC + rank * 1_000_000, loaded + noise + risen),
            )
        })
        .collect()
}

fn first(report: &MemoryReport) -> &FirstCause {
    &report.ranks[0].first
}

#[test]
fn the_rank_that_left_its_level_first_is_named() {
    let mut events = rank_series(0, 3, 0, 100, Some(62));
    events.extend(rank_series(1, 3, 0, 100, Some(55)));
    events.extend(rank_series(2, 3, 0, 100, Some(61)));
    let report = report(&events);
    let want = FirstCause::Rank {
        rank: 1,
        lead_ns: Some(6 * SEC + 1_000_000),
        lead_steps: None,
        confidence: Confidence::High,
    };
    assert_eq!(first(&report), &want);
}

#[test]
fn starting_late_is_no_symptom() {
    // Aligned by first samples, rank 2's rise 15 s after its start would be earliest.
    let mut events = rank_series(0, 3, 0, 100, Some(50));
    events.extend(rank_series(1, 3, 0, 100, Some(56)));
    events.extend(rank_series(2, 3, 40, 100, Some(57)));
    assert!(matches!(
        first(&report(&events)),
        FirstCause::Rank { rank: 0, .. }
    ));
    let mut healthy = rank_series(0, 2, 0, 100, None);
    healthy.extend(rank_series(1, 2, 60, 100, None));
    assert_eq!(first(&report(&healthy)), &FirstCause::None);
}

#[test]
fn ranks_that_rise_together_are_nobody_s_fault() {
    let events: Vec<MemoryEvent> = (0..4)
        .flat_map(|rank| rank_series(rank, 4, 0, 100, Some(60)))
        .collect();
    assert_eq!(first(&report(&events)), &FirstCause::All);
}

#[test]
fn two_devices_of_one_rank_are_two_series_and_no_rise() {
    let mut events = rank_series(0, 2, 0, 60, None);
    events.extend(
        rank_series(0, 2, 0, 60, None)
            .into_iter()
            .map(|e| MemoryEvent {
                device_id: Int::ONE,
                allocator_allocated_bytes: Some(Int::new(40 * GIB)),
                ..e
            }),
    );
    events.extend(rank_series(1, 2, 0, 60, None));
    events.sort_by_key(|e| e.timestamp_ns.clone());
    let report = report(&events);
    assert_eq!(report.series.len(), 3);
    assert_eq!(first(&report), &FirstCause::None);
}

#[test]
fn ranks_are_compared_by_the_steps_that_they_name_where_clocks_differ() {
    // Rank 1's clock is 30 s behind: by the clock its rise, in step 6, would come before rank 0's, in step 5.
    let mut events = Vec::new();
    for (rank, skew, rise) in [(0, 0, 5), (1, -30, 6)] {
        for step in 0..10 {
            let at = 100 + step * 10 + skew;
            let mut scope = Object::new();
            for (key, value) in [
                ("action", Value::from("enter")),
                ("name", "step".into()),
                ("path", Value::Array(vec!["step".into()])),
                ("scope_id", format!("S:{step}").as_str().into()),
                ("thread_id", 1.into()),
                ("thread_name", "main".into()),
                ("sequence", step.into()),
            ] {
                scope.insert(key, value);
            }
            let mut attributes = Object::new();
            attributes.insert("step", step);
            scope.insert("attributes", attributes);
            let mut values = Object::new();
            values.insert("phase_scope", scope);
            events.push(of_rank(
                rank,
                2,
                MemoryEvent {
                    event_type: "phase_enter".into(),
                    metadata: metadata(values),
                    ..sample(at * SEC)
                },
            ));
            for second in 0..10 {
                let bytes = if step >= rise { 9 * GIB } else { 5 * GIB };
                events.push(of_rank(rank, 2, allocated((at + second) * SEC, bytes)));
            }
        }
    }
    let report = report(&events);
    assert!(report.ranks[0].by_steps);
    assert!(matches!(
        first(&report),
        FirstCause::Rank {
            rank: 0,
            lead_steps: Some(1),
            ..
        }
    ));
}

#[test]
fn a_rank_stands_out_by_the_spread_of_the_others() {
    let mut events = Vec::new();
    for rank in 0..5 {
        let extra = if rank == 3 { 6 * GIB } else { 0 };
        events.extend((0..60).map(|i| {
            of_rank(
                rank,
                5,
                allocated(i * SEC, 10 * GIB + rank * 10 * MIB + extra),
            )
        }));
    }
    let report = report(&events);
    let outliers: Vec<i64> = report.ranks[0].outliers.iter().map(|o| o.rank).collect();
    assert_eq!(outliers, [3]);
}

#[test]
fn a_long_series_keeps_its_extremes_in_bounded_memory() {
    let mut rules = Rules::default();
    rules.caps.points = 64;
    let mut analyzer = Analyzer::new(rules);
    for i in 0..10_000_i64 {
        let bytes = match i {
            7_777 => 50 * GIB,
            3_333 => MIB,
            _ => 10 * GIB,
        };
        analyzer.add(&allocated(i * SEC, bytes));
    }
    let report = analyzer.finish();
    let one = &report.series[0];
    assert!(one.points().len() <= 64, "{}", one.points().len());
    let peak = one.peak(Level::Allocated).unwrap();
    assert_eq!((peak.bytes, peak.at_ns), (50 * GIB, T0 + 7_777 * SEC));
    let lowest = one
        .points()
        .iter()
        .filter_map(|p| p.get(Level::Allocated))
        .map(|r| r.min)
        .min();
    assert_eq!(lowest, Some(MIB));
    let count: u64 = one.points().iter().map(|p| u64::from(p.count)).sum();
    assert_eq!((count, one.measurements), (10_000, 10_000));
}

#[test]
fn what_does_not_fit_is_counted() {
    let mut rules = Rules::default();
    rules.caps.series = 2;
    let mut analyzer = Analyzer::new(rules);
    for device in 0..5 {
        analyzer.add(&MemoryEvent {
            device_id: Int::new(device),
            ..sample(0)
        });
    }
    analyzer.add(&MemoryEvent {
        timestamp_ns: Int::parse("99999999999999999999999999").unwrap(),
        ..sample(0)
    });
    let report = analyzer.finish();
    assert_eq!(report.series.len(), 2);
    assert_eq!(
        (report.counts.series_dropped, report.counts.out_of_range),
        (3, 1)
    );
}

/// Everything that a report concludes, with times since `zero`.
fn conclusions(report: &MemoryReport, zero: i64) -> Vec<String> {
    let findings = report.findings.iter().map(|f| {
        format!(
            "{} {:?} {} {} {}",
            f.what.kind(),
            f.severity,
            f.series,
            f.start_ns - zero,
            f.end_ns - zero
        )
    });
    let ranks = report.ranks.iter().map(|r| {
        let rises: Vec<_> = r
            .rises
            .iter()
            .map(|x| (x.rank, x.at_ns - zero, x.rise_bytes))
            .collect();
        format!("{:?} {rises:?} {:?}", r.first, r.outliers)
    });
    let peaks = report.series.iter().map(|s| {
        let peaks = Level::ALL.map(|l| s.peak(l).map(|p| (p.bytes, p.at_ns - zero)));
        format!("{peaks:?} {}", s.measurements)
    });
    findings.chain(ranks).chain(peaks).collect()
}

/// A job of ranks, some of which rise.
fn job() -> impl Strategy<Value = Vec<MemoryEvent>> {
    prop::collection::vec((0_i64..10, prop::option::of(30_i64..80)), 2..5).prop_map(|ranks| {
        let world = ranks.len() as i64;
        let events = ranks.into_iter().enumerate();
        events
            .flat_map(|(rank, (start, rise))| rank_series(rank as i64, world, start, 100, rise))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_healthy_rank_that_starts_late_changes_no_first_cause(events in job(), start in 10_i64..95) {
        let before = report(&events);
        let mut with = events;
        let rank = before.ranks[0].ranks.len() as i64;
        with.extend(rank_series(rank, rank + 1, start, 100, None));
        let after = report(&with);
        let blamed = |r: &MemoryReport| -> BTreeSet<i64> { match first(r) {
            FirstCause::Rank { rank, .. } => [*rank].into(),
            FirstCause::Several(ranks) => ranks.clone(),
            FirstCause::All => r.ranks[0].rises.iter().map(|x| x.rank).collect(),
            FirstCause::None | FirstCause::CannotTell => BTreeSet::new(),
        } };
        prop_assert_eq!(blamed(&before), blamed(&after));
    }

    #[test]
    fn shifting_all_times_changes_nothing_but_times(events in job(), shift in 0_i64..4_000_000_000_000_000_000) {
        let before = conclusions(&report(&events), T0);
        let shifted: Vec<MemoryEvent> = events
            .into_iter()
            .map(|e| MemoryEvent { timestamp_ns: e.timestamp_ns.plus(&Int::new(shift)), ..e })
            .collect();
        prop_assert_eq!(before, conclusions(&report(&shifted), T0 + shift));
    }

    #[test]
    fn a_constant_series_has_no_finding(
        level in 0..40 * GIB, count in 1_usize..400, interval in 0_i64..10 * SEC,
    ) {
        let events: Vec<MemoryEvent> = (0..count as i64).map(|i| allocated(i * interval, level)).collect();
        prop_assert_eq!(kinds(&report(&events)), [""; 0]);
    }

    #[test]
    fn the_order_in_which_files_are_read_does_not_matter(events in job(), seed in any::<u64>()) {
        let before = conclusions(&report(&events), T0);
        // Whole ranks in another order, as files are.
        let mut files: Vec<Vec<MemoryEvent>> = Vec::new();
        for event in events {
            match files.iter_mut().find(|f| f[0].session_id == event.session_id) {
                Some(file) => file.push(event),
                None => files.push(vec![event]),
            }
        }
        let by = seed as usize % files.len();
        files.rotate_left(by);
        prop_assert_eq!(before, conclusions(&report(files.iter().flatten()), T0));
    }

    #[test]
    fn no_numbers_make_it_panic(
        rows in prop::collection::vec((any::<i64>(), any::<Option<i64>>(), any::<Option<i64>>(), any::<Option<i64>>(), any::<Option<i64>>(), 0_i64..3), 0..60),
    ) {
        let events: Vec<MemoryEvent> = rows
            .into_iter()
            .map(|(at, a, r, u, t, rank)| {
                let level = |v: Option<i64>| v.map(|v| Int::new(v.saturating_abs()));
                of_rank(rank, i64::MAX, MemoryEvent {
                    timestamp_ns: Int::new(at.saturating_abs()),
                    allocator_allocated_bytes: level(a),
                    allocator_reserved_bytes: level(r),
                    device_used_bytes: level(u),
                    device_total_bytes: level(t),
                    ..sample(0)
                })
            })
            .collect();
        report(&events);
        stormlog::cross_rank(&events, None);
        stormlog::gaps(&events, &stormlog::GapRules::default(), None);
        stormlog::collective(&events, &stormlog::CollectiveConfig::default(), None);
    }
}
