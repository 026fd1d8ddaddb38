//! What is written comes back, whichever way it went.

mod support;

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use support::*;
use warptrace_model::*;
use warptrace_store::fs::{Fs, MemFs};
use warptrace_store::{Limits, State};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_event_comes_back_from_sealed_and_unsealed_segments(seed: u64, count in 0u64..2_000, batch in 1u64..400) {
        let fs = MemFs::new();
        let mut writer = create(&fs, "s", SMALL).unwrap();
        let mut now = START;
        let mut at = 0;
        while at < count {
            let next = (at + batch).min(count);
            writer.events(&events(seed, at..next));
            now += SECOND;
            writer.tick(BootNanos(now));
            at = next;
        }
        let want = sorted(&events(seed, 0..count));
        let live = open(&fs, "s").unwrap();
        prop_assert_eq!(live.state(), State::Live);
        prop_assert_eq!(&sorted(&read_events(&live, None)), &want);
        writer.seal().unwrap();
        let ended = open(&fs, "s").unwrap();
        prop_assert_eq!(ended.state(), State::Ended);
        prop_assert!(fs.files().iter().all(|f| !f.to_string_lossy().contains(".arrows")));
        let read = read_events(&ended, None);
        prop_assert_eq!(&sorted(&read), &want);
        prop_assert!(read.is_sorted_by_key(|e| e.end()), "events are given in the order in which they ended");
        prop_assert_eq!(ended.gaps().unwrap(), vec![]);
    }

    #[test]
    fn a_window_gives_what_ended_in_it(seed: u64, from in 0u64..150_000_000, len in 0u64..100_000_000) {
        let fs = MemFs::new();
        let mut writer = create(&fs, "s", SMALL).unwrap();
        for part in 0..10 {
            writer.events(&events(seed, part * 100..(part + 1) * 100));
            writer.tick(BootNanos(START + (part + 1) * SECOND));
        }
        let window = Window::at(BootNanos(START + from), len);
        let mut want = events(seed, 0..1_000);
        want.retain(|e| e.end().is_some_and(|end| end >= window.start && end <= window.end));
        prop_assert_eq!(sorted(&read_events(&open(&fs, "s").unwrap(), Some(window))), sorted(&want));
        writer.seal().unwrap();
        prop_assert_eq!(sorted(&read_events(&open(&fs, "s").unwrap(), Some(window))), sorted(&want));
    }

    #[test]
    fn outliers_come_back_exactly(seed: u64, count in 0u64..50) {
        let fs = MemFs::new();
        let mut writer = create(&fs, "s", Limits::default()).unwrap();
        let mut outliers: Vec<_> = (0..count).map(|i| outlier(seed.wrapping_add(i))).collect();
        writer.outliers(&outliers);
        writer.seal().unwrap();
        outliers.sort_by_key(|o| (o.at, o.id));
        prop_assert_eq!(open(&fs, "s").unwrap().outliers().unwrap(), outliers);
    }

    #[test]
    fn units_and_findings_come_back_exactly(seed: u64, count in 0u64..200) {
        let fs = MemFs::new();
        let mut writer = create(&fs, "s", SMALL).unwrap();
        let units: Vec<Unit> = (0..count).map(|i| unit(seed, i)).collect();
        // Late units come out of order.
        let (early, late) = units.split_at(units.len() / 2);
        writer.units(late);
        writer.tick(BootNanos(START + SECOND));
        writer.units(early);
        let findings: Vec<Finding> = (0..count).map(|i| finding(seed.wrapping_add(i), i % 7)).collect();
        for f in &findings {
            writer.findings(std::slice::from_ref(f));
        }
        writer.seal().unwrap();
        let session = open(&fs, "s").unwrap();
        prop_assert_eq!(session.units(None).unwrap(), units.clone());
        let mut last: Vec<Finding> = Vec::new();
        for id in 0..count.min(7) {
            last.extend(findings.iter().rfind(|f| f.id.0 == id).cloned());
        }
        prop_assert_eq!(session.findings().unwrap(), last);
        if let Some(unit) = units.first() {
            let window = Window::at(unit.start, 1);
            prop_assert_eq!(session.units(Some(window)).unwrap(), vec![unit.clone()]);
        }
    }
}

#[test]
fn processes_threads_and_stacks_read_as_they_were_said_last() {
    let fs = MemFs::new();
    let mut writer = create(&fs, "s", Limits::default()).unwrap();
    let name = |tid, name: &str| {
        Event::ThreadName(ThreadName {
            thread: Thread::new(100, tid),
            name: name.into(),
        })
    };
    let (first, last, other) = (process(1, 100), process(2, 100), process(3, 101));
    writer.events(&[
        Event::ProcessInfo(Box::new(first)),
        Event::ProcessInfo(Box::new(other.clone())),
        name(100, "python"),
        name(101, "loader-1"),
    ]);
    writer.stacks(&[(5, vec![0x7f00_0000_1234, u64::MAX]), (6, vec![])]);
    writer.tick(BootNanos(START + SECOND));
    writer.events(&[
        Event::ProcessInfo(Box::new(last.clone())),
        name(101, "loader-2"),
    ]);
    let resolved = warptrace_store::Stack {
        id: 6,
        frames: vec![warptrace_store::Frame {
            ip: 1,
            module: Some("libc.so.6".into()),
            module_offset: Some(3),
            function: Some("read".into()),
            file: None,
            line: Some(7),
        }],
    };
    writer.resolved_stacks(std::slice::from_ref(&resolved));
    writer.seal().unwrap();
    let session = open(&fs, "s").unwrap();
    assert_eq!(session.processes().unwrap(), [last, other]);
    let threads = session.threads().unwrap();
    let names: Vec<&str> = threads.iter().map(|t| &*t.name).collect();
    assert_eq!(names, ["python", "loader-2"]);
    let stacks = session.stacks().unwrap();
    let addresses: Vec<u64> = stacks[0].frames.iter().map(|f| f.ip).collect();
    assert_eq!(addresses, [0x7f00_0000_1234, u64::MAX]);
    assert_eq!(stacks[1], resolved);
}

#[test]
fn counts_of_one_key_add_up_to_what_all_calls_would_have() {
    let fs = MemFs::new();
    let mut writer = create(&fs, "s", Limits::default()).unwrap();
    let op = record::OpId::by_name("cudaMemcpy").unwrap();
    let key = OpKey {
        pid: Pid(100),
        device: Some(Device(0)),
        op,
    };
    let mut whole = Histogram::default();
    for second in 0..100u64 {
        let mut durations = Histogram::default();
        durations.record(second * 1_000);
        whole.merge(&durations);
        writer.events(&[Event::Counts(Box::new(OpCount {
            key,
            window: Window::at(BootNanos(START + second * SECOND), SECOND),
            total: second * 1_000,
            durations,
        }))]);
        writer.tick(BootNanos(START + (second + 1) * SECOND));
    }
    writer.seal().unwrap();
    let session = open(&fs, "s").unwrap();
    let stats = session.ops(None).unwrap();
    assert_eq!(stats.len(), 1);
    assert_eq!(
        (stats[0].key, stats[0].count, stats[0].total),
        (key, 100, 4_950_000)
    );
    assert_eq!(stats[0].durations, whole);
    let last_ten = Window::at(BootNanos(START + 90 * SECOND + 1), 60 * SECOND);
    assert_eq!(session.ops(Some(last_ten)).unwrap()[0].count, 10);
}

#[test]
fn losses_are_summed_by_who_why_and_whose() {
    let fs = MemFs::new();
    let mut writer = create(&fs, "s", Limits::default()).unwrap();
    let loss = |count, at, pid: Option<u32>| {
        Event::Lost(Loss {
            source: "ebpf",
            reason: LossReason::RingFull,
            count,
            window: Some(Window::at(BootNanos(START + at), 10)),
            pid: pid.map(Pid),
        })
    };
    writer.events(&[loss(3, 0, None), loss(4, 100, None)]);
    writer.tick(BootNanos(START + SECOND));
    writer.events(&[loss(5, 50, None), loss(1, 0, Some(7))]);
    writer.seal().unwrap();
    let drops = open(&fs, "s").unwrap().drops().unwrap();
    let sums: Vec<_> = drops.iter().map(|d| (d.count, d.window, d.pid)).collect();
    assert_eq!(
        sums,
        [
            (12, Some(Window::at(BootNanos(START), 110)), None),
            (1, Some(Window::at(BootNanos(START), 10)), Some(Pid(7))),
        ]
    );
}

#[test]
fn gaps_are_kept_and_said_once() {
    let fs = MemFs::new();
    let mut writer = create(&fs, "s", Limits::default()).unwrap();
    let gap = |detail: &str, count| Gap {
        code: GapCode::AttachedLate,
        detail: detail.into(),
        count,
    };
    writer.gaps(&[gap("a", 1), gap("b", 2)]);
    writer.gaps(&[gap("a", 3)]);
    writer.seal().unwrap();
    let session = open(&fs, "s").unwrap();
    assert_eq!(session.gaps().unwrap(), [gap("a", 4), gap("b", 2)]);
}

#[test]
fn what_was_opened_stays_readable_while_the_writer_seals_it() {
    let fs = MemFs::new();
    let mut writer = create(&fs, "s", SMALL).unwrap();
    writer.events(&events(1, 0..500));
    writer.tick(BootNanos(START + SECOND));
    let reader = open(&fs, "s").unwrap();
    let mut stream = reader.events(None).unwrap();
    let mut all = Vec::new();
    stream.next_batch(&mut all);
    writer.seal().unwrap();
    while stream.next_batch(&mut all) {}
    assert_eq!(sorted(&all), sorted(&events(1, 0..500)));
}

#[test]
fn sealed_rows_are_in_order_of_time_across_batches() {
    let fs = MemFs::new();
    let mut writer = create(&fs, "s", Limits::default()).unwrap();
    let mut now = START;
    // Each batch reaches far back into the one before.
    for part in [0..300, 200..500, 100..150, 450..700] {
        writer.events(&events(1, part));
        now += SECOND;
        writer.tick(BootNanos(now));
    }
    writer.seal().unwrap();
    let file = fs
        .contents(Path::new("/data/sessions/s/events/000000.parquet"))
        .unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(
        bytes::Bytes::from(file),
    )
    .unwrap()
    .build()
    .unwrap();
    let mut starts = Vec::new();
    for batch in reader {
        let batch = batch.unwrap();
        let column = batch.column_by_name("boot_ns").unwrap();
        let column: &arrow::array::UInt64Array = column.as_any().downcast_ref().unwrap();
        starts.extend_from_slice(column.values());
    }
    assert!(starts.len() > 200 && starts.is_sorted());
}

#[test]
fn a_stream_is_sealed_when_it_is_old() {
    let fs = MemFs::new();
    let mut writer = create(&fs, "s", Limits::default()).unwrap();
    writer.events(&events(1, 0..10));
    for second in 1..=598 {
        writer.tick(BootNanos(START + second * SECOND));
    }
    let sealed = |fs: &MemFs| {
        fs.files()
            .iter()
            .any(|f| f.ends_with("events/000000.parquet"))
    };
    assert!(!sealed(&fs));
    for second in 599..=605 {
        writer.tick(BootNanos(START + second * SECOND));
    }
    assert!(sealed(&fs));
}

#[test]
fn the_window_of_a_session_reaches_to_the_last_that_is_known() {
    let fs = MemFs::new();
    let mut writer = create(&fs, "s", Limits::default()).unwrap();
    let mut call = events(1, 0..100)
        .into_iter()
        .find(|e| matches!(e, Event::Call(_)))
        .unwrap();
    if let Event::Call(c) = &mut call {
        (c.start, c.dur) = (BootNanos(START + 7 * SECOND), SECOND);
    }
    writer.events(&[call]);
    writer.tick(BootNanos(START + 9 * SECOND));
    let window = |fs: &MemFs| open(fs, "s").unwrap().window().unwrap();
    let torn = fs.killed();
    assert_eq!(
        window(&torn),
        Window {
            start: BootNanos(START),
            end: BootNanos(START + 8 * SECOND)
        }
    );
    writer.seal().unwrap();
    assert_eq!(
        window(&fs),
        Window {
            start: BootNanos(START),
            end: BootNanos(START + 9 * SECOND)
        }
    );
}

#[test]
fn the_trait_object_and_the_double_are_one_disk() {
    let fs = MemFs::new();
    let dynamic: Arc<dyn Fs> = Arc::new(fs.clone());
    let how = warptrace_store::fs::Create {
        mode: 0o600,
        owner: None,
    };
    dynamic.create_dir_all(Path::new("/a/b/c"), how).unwrap();
    assert!(dynamic.list(Path::new("/a/b")).unwrap()[0].is_dir);
}

#[test]
fn annotations_memory_and_requests_come_back_as_they_were_said() {
    let fs = MemFs::new();
    let mut writer = create(&fs, "s", Limits::default()).unwrap();
    let said: Vec<Event> = (0..400)
        .flat_map(|i| events(9, i..i + 1))
        .filter(|e| matches!(e, Event::Annotation(_)))
        .collect();
    writer.events(&said);
    for i in 0..10 {
        assert!(writer.memory(&memory_event(i)));
        writer.request("run.jsonl", &request(i));
    }
    let mut huge = memory_event(1);
    huge.device_total_bytes = Int::parse("99999999999999999999");
    assert!(!writer.memory(&huge), "no column holds it");
    writer.seal().unwrap();
    let session = open(&fs, "s").unwrap();
    let annotations: Vec<Event> = session
        .annotations()
        .unwrap()
        .into_iter()
        .map(|a| Event::Annotation(Box::new(a)))
        .collect();
    assert!(said.len() > 10);
    assert_eq!(sorted(&annotations), sorted(&said));
    let read: Vec<Request> = session
        .requests()
        .unwrap()
        .into_iter()
        .map(|r| r.request)
        .collect();
    assert_eq!(read, (0..10).map(request).collect::<Vec<_>>());
    let mut read = Vec::new();
    let mut want: Vec<MemoryEvent> = (0..10).map(memory_event).collect();
    session
        .memory_events(|e| {
            read.push(e);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    for e in read.iter_mut().chain(&mut want) {
        // Once concluded, a capability is said.
        Arc::make_mut(&mut e.metadata).inferred = false;
    }
    assert_eq!(read, want);
    let levels = session.memory_levels().unwrap();
    assert_eq!(
        (levels.len(), levels[0].pid, levels[1].pid),
        (10, None, Some(0))
    );
    assert_eq!(levels[0].allocated_bytes, Some(i64::MAX as u64));
    assert_eq!(levels[1].device_used_bytes, Some(1));
}
