//! Nothing that was flushed is lost, whatever the disk or the recorder does.

mod support;

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use support::*;
use warptrace_model::*;
use warptrace_store::fs::{Fault, MemFs};
use warptrace_store::{SessionWriter, State, StoreError};

/// Unlike each other, so that a set of texts is a multiset.
fn calls(range: std::ops::Range<u64>) -> Vec<Event> {
    let op = record::OpId::by_name("cudaLaunchKernel").unwrap();
    let call = |i: u64| {
        Event::Call(Call {
            thread: Thread::new(100, 101),
            op,
            // Nearly in order, as from two producers.
            start: BootNanos(START + (i ^ 1) * 1_000),
            dur: 700 + i % 13,
            device: Some(Device(0)),
            stream: Stream(0x5000),
            ret: 0,
            flags: CallFlags(0),
            arg0: i,
            arg1: 0,
            stack_id: 0,
            cpu: Cpu(1),
        })
    };
    range.map(call).collect()
}

/// The numbers of the calls that a disk holds.
fn stored(fs: &MemFs) -> Vec<u64> {
    let mut numbers: Vec<u64> = read_events(&open(fs, "s").unwrap(), None)
        .iter()
        .map(|e| match e {
            Event::Call(c) => c.arg0,
            other => panic!("nobody gave {other:?}"),
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

fn count(losses: &[Loss]) -> u64 {
    losses.iter().map(|l| l.count).sum()
}

#[test]
fn a_stream_torn_at_any_byte_of_its_last_batch_reads_up_to_the_one_before() {
    let fs = MemFs::new();
    let mut writer = create(&fs, "s", warptrace_store::Limits::default()).unwrap();
    let stream = Path::new("/data/sessions/s/events/000000.arrows");
    let mut ends = vec![0];
    for batch in 0..3 {
        writer.events(&calls(batch * 10..(batch + 1) * 10));
        writer.tick(BootNanos(START + (batch + 1) * SECOND));
        ends.push(fs.contents(stream).unwrap().len());
    }
    let whole = fs.contents(stream).unwrap();
    let torn = fs.killed();
    for len in 0..=whole.len() {
        torn.put(stream, whole[..len].to_vec());
        let batches = ends.iter().filter(|end| **end <= len).count() as u64 - 1;
        assert_eq!(
            stored(&torn),
            (0..batches * 10).collect::<Vec<_>>(),
            "cut to {len} bytes"
        );
    }
    let session = open(&torn, "s").unwrap();
    assert_eq!(session.state(), State::Torn);
    assert_eq!(session.gaps().unwrap()[0].code, GapCode::TornSession);
}

#[test]
fn garbage_after_the_last_batch_is_left_out_and_said() {
    let fs = MemFs::new();
    let mut writer = create(&fs, "s", warptrace_store::Limits::default()).unwrap();
    writer.events(&calls(0..10));
    writer.tick(BootNanos(START + SECOND));
    let torn = fs.killed();
    let stream = Path::new("/data/sessions/s/events/000000.arrows");
    let whole = torn.contents(stream).unwrap();
    let huge_message = [[0xff; 4], [0xff, 0xff, 0xff, 0x7f]].concat();
    for garbage in [
        vec![0; 4096],
        vec![0xff; 100],
        b"text".to_vec(),
        huge_message,
    ] {
        torn.put(stream, [whole.clone(), garbage].concat());
        let session = open(&torn, "s").unwrap();
        assert_eq!(read_events(&session, None).len(), 10);
        let gaps = session.gaps().unwrap();
        let said = gaps
            .iter()
            .any(|g| g.detail.contains("events/000000.arrows"));
        assert!(said, "{gaps:?}");
    }
}

#[test]
fn a_damaged_segment_costs_its_own_rows_and_is_said() {
    let fs = MemFs::new();
    let mut writer = create(&fs, "s", SMALL).unwrap();
    for batch in 0..20 {
        writer.events(&calls(batch * 100..(batch + 1) * 100));
        writer.tick(BootNanos(START + (batch + 1) * SECOND));
    }
    writer.seal().unwrap();
    let first = Path::new("/data/sessions/s/events/000000.parquet");
    let bytes = fs.contents(first).unwrap();
    let segments = |fs: &MemFs| {
        fs.files()
            .iter()
            .filter(|f| f.parent() == first.parent())
            .count()
    };
    assert!(segments(&fs) > 2);
    for damaged in [
        Vec::new(),
        bytes[..bytes.len() / 2].to_vec(),
        vec![0; bytes.len()],
    ] {
        fs.put(first, damaged);
        let session = open(&fs, "s").unwrap();
        let read = read_events(&session, None).len();
        assert!(read > 1_000 && read < 2_000, "{read}");
        let gaps = session.gaps().unwrap();
        assert!(
            gaps[0].detail.contains("events/000000.parquet is damaged"),
            "{gaps:?}"
        );
    }
}

/// Writes 12 batches of 50 calls with a tick after each. Gives what was lost, and the error of sealing.
fn record(fs: &MemFs) -> Result<(u64, Result<(), StoreError>), StoreError> {
    let mut writer = create(fs, "s", SMALL)?;
    let mut lost = 0;
    for batch in 0..12 {
        writer.events(&calls(batch * 50..(batch + 1) * 50));
        writer.tick(BootNanos(START + (batch + 1) * SECOND));
        lost += count(&writer.losses());
    }
    Ok((lost, writer.seal()))
}

#[test]
fn a_disk_that_refuses_once_loses_nothing_whenever_that_is() {
    let fs = MemFs::new();
    record(&fs).unwrap().1.unwrap();
    let operations = fs.operations();
    assert!(operations > 50, "{operations}");
    let mut recorded = 0;
    for n in 0..operations {
        let fs = MemFs::new();
        fs.set_fault(Fault::At(n));
        match record(&fs) {
            Err(_) => assert!(
                fs.files().is_empty(),
                "a session that could not begin left something at {n}"
            ),
            Ok((lost, _)) => {
                recorded += 1;
                assert_eq!(lost, 0, "at {n}");
                assert_eq!(stored(&fs), (0..600).collect::<Vec<_>>(), "at {n}");
            }
        }
    }
    assert!(recorded > operations / 2);
}

#[test]
fn a_disk_that_refuses_for_good_keeps_what_it_has() {
    let fs = MemFs::new();
    record(&fs).unwrap().1.unwrap();
    for n in 0..fs.operations() {
        let fs = MemFs::new();
        fs.set_fault(Fault::From(n));
        if let Ok((_, sealed)) = record(&fs) {
            assert!(sealed.is_err(), "sealed without a disk at {n}");
            let stored = stored(&fs);
            // Batches go one after the other: what is there is the begin of what was given.
            assert_eq!(
                stored,
                (0..stored.len() as u64).collect::<Vec<_>>(),
                "at {n}"
            );
            assert_eq!(stored.len() % 50, 0, "at {n}");
        }
    }
}

#[test]
fn a_full_disk_drops_and_counts_and_goes_on_when_there_is_room() {
    let fs = MemFs::new();
    let mut writer = create(&fs, "s", warptrace_store::Limits::default()).unwrap();
    writer.events(&calls(0..1_000));
    writer.tick(BootNanos(START + SECOND));
    fs.set_capacity(Some(fs.used() + 1_000));
    let mut given = 1_000;
    for second in 2..12 {
        writer.events(&calls(given..given + 20_000));
        given += 20_000;
        writer.tick(BootNanos(START + second * SECOND));
    }
    assert!(writer.failing().is_some());
    let lost = count(&writer.losses());
    assert!(lost > 100_000, "{lost}");
    assert_eq!(count(&writer.losses()), 0, "losses are told once");
    // What was there is there, with nothing torn after it.
    assert_eq!(stored(&fs), (0..1_000).collect::<Vec<_>>());
    fs.set_capacity(None);
    writer.tick(BootNanos(START + 20 * SECOND));
    assert!(writer.failing().is_none());
    writer.events(&calls(given..given + 10));
    writer.seal().unwrap();
    assert_eq!(stored(&fs).len() as u64 + lost, given + 10);
    let drops = open(&fs, "s").unwrap().drops().unwrap();
    let [drop] = drops.as_slice() else {
        panic!("{drops:?}")
    };
    assert_eq!(
        (drop.source.as_str(), drop.reason.as_str(), drop.count),
        ("store", "store_failed", lost)
    );
    assert!(drop.window.is_some());
}

#[test]
fn losses_of_the_store_that_are_given_back_are_not_counted_twice() {
    let fs = MemFs::new();
    let mut writer = create(&fs, "s", warptrace_store::Limits::default()).unwrap();
    fs.set_fault(Fault::From(0));
    writer.tick(BootNanos(START + SECOND));
    writer.events(&calls(0..100_000));
    let losses = writer.losses();
    let events: Vec<Event> = losses.iter().copied().map(Event::Lost).collect();
    writer.events(&events);
    fs.set_fault(Fault::None);
    writer.seal().unwrap();
    let drops = open(&fs, "s").unwrap().drops().unwrap();
    assert_eq!(drops.iter().map(|d| d.count).sum::<u64>(), count(&losses));
    assert_eq!(stored(&fs).len() as u64 + count(&losses), 100_000);
}

#[derive(Debug, Clone)]
enum Operation {
    Write(u64),
    /// Milliseconds pass.
    Tick(u64),
    Anchor,
    Fail(bool),
    Capacity(Option<u64>),
    Read,
    Kill,
    PowerCut,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let one = prop_oneof![
        8 => (1u64..300).prop_map(Operation::Write),
        8 => (1u64..4_000).prop_map(Operation::Tick),
        1 => Just(Operation::Anchor),
        1 => any::<bool>().prop_map(Operation::Fail),
        1 => prop_oneof![Just(None), (0u64..5_000).prop_map(Some)].prop_map(Operation::Capacity),
        2 => Just(Operation::Read),
        1 => Just(Operation::Kill),
        1 => Just(Operation::PowerCut),
    ];
    prop::collection::vec(one, 1..60)
}

/// What was given, and how far the disk must have it.
struct Model {
    given: u64,
    flushed: u64,
    synced: u64,
    since_flush: u64,
    since_sync: u64,
}

impl Model {
    /// After a kill: a begin of what was given, since no table is full in this test and nothing is dropped.
    fn check(&self, fs: &MemFs, at_least: u64) {
        let stored = stored(fs);
        let len = stored.len() as u64;
        assert_eq!(stored, (0..len).collect::<Vec<_>>());
        assert!(
            at_least <= len && len <= self.given,
            "{at_least} <= {len} <= {}",
            self.given
        );
    }

    /// After a power cut: all that was synced. Of later batches any may be there, as they are in several files.
    fn check_power_cut(&self, fs: &MemFs) {
        let stored = stored(fs);
        let synced = stored.iter().take_while(|n| **n < self.synced).count() as u64;
        assert_eq!(synced, self.synced);
        assert!(stored.windows(2).all(|pair| pair[0] < pair[1]), "twice");
        assert!(stored.last().is_none_or(|last| *last < self.given));
    }

    fn tick(&mut self, writer: &mut SessionWriter, millis: u64, now: &mut u64) {
        *now += millis * 1_000_000;
        self.since_flush += millis;
        self.since_sync += millis;
        writer.tick(BootNanos(*now));
        if writer.failing().is_none() {
            if self.since_flush >= 1_000 {
                (self.flushed, self.since_flush) = (self.given, 0);
            }
            if self.since_sync >= 5_000 {
                (self.synced, self.since_sync) = (self.flushed, 0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_happens_what_was_flushed_is_read_and_what_was_synced_survives_power(
        operations in operations(),
        seed: u64,
    ) {
        let fs = MemFs::new();
        let mut writer = create(&fs, "s", SMALL).unwrap();
        let mut numbers = Numbers(seed);
        let mut now = START;
        let mut model = Model { given: 0, flushed: 0, synced: 0, since_flush: 0, since_sync: 0 };
        for operation in operations {
            match operation {
                Operation::Write(n) => {
                    writer.events(&calls(model.given..model.given + n));
                    model.given += n;
                }
                Operation::Tick(millis) => model.tick(&mut writer, millis, &mut now),
                Operation::Anchor => writer.anchor(ClockAnchor {
                    boot: BootNanos(now),
                    unix: UnixNanos(now + numbers.below(1_000)),
                }),
                Operation::Fail(on) => {
                    let next = fs.operations() + numbers.below(6);
                    fs.set_fault(if on { Fault::From(next) } else { Fault::None });
                }
                Operation::Capacity(left) => fs.set_capacity(left.map(|l| fs.used() + l)),
                Operation::Read => model.check(&fs, model.flushed),
                Operation::Kill => model.check(&fs.killed(), model.flushed),
                Operation::PowerCut => {
                    let cut = fs.power_cut(|unsynced| numbers.below(unsynced as u64 + 1) as usize);
                    model.check_power_cut(&cut);
                }
            }
        }
        fs.set_fault(Fault::None);
        fs.set_capacity(None);
        prop_assert_eq!(writer.losses(), vec![]);
        writer.seal().unwrap();
        prop_assert_eq!(stored(&fs), (0..model.given).collect::<Vec<_>>());
        let left: Vec<PathBuf> = fs.files().into_iter().filter(|f| f.extension().is_some_and(|e| e == "tmp")).collect();
        prop_assert_eq!(left, Vec::<PathBuf>::new());
        prop_assert_eq!(stored(&fs.power_cut(|_| 0)), (0..model.given).collect::<Vec<_>>());
    }
}

#[test]
fn a_damaged_time_neither_stops_the_store_nor_ends_the_session_in_the_far_future() {
    let fs = MemFs::new();
    let mut writer = create(&fs, "s", SMALL).unwrap();
    let mut damaged = calls(0..3);
    for (event, start) in damaged.iter_mut().zip([0, u64::MAX, START]) {
        if let Event::Call(c) = event {
            c.start = BootNanos(start);
        }
    }
    writer.events(&damaged);
    fs.set_fault(Fault::From(0));
    writer.tick(BootNanos(START + SECOND));
    fs.set_fault(Fault::None);
    writer.tick(BootNanos(START + 3 * SECOND));
    assert_eq!(stored(&fs), [0, 1, 2]);
    writer.seal().unwrap();
    let window = open(&fs, "s").unwrap().window().unwrap();
    assert_eq!(window.end, BootNanos(START + 3 * SECOND));
    assert_eq!(stored(&fs), [0, 1, 2]);
}

#[test]
fn old_events_go_when_there_are_too_many_and_are_counted() {
    let fs = MemFs::new();
    let limits = warptrace_store::Limits {
        event_bytes: Some(20_000),
        ..SMALL
    };
    let mut writer = create(&fs, "s", limits).unwrap();
    let mut told = 0;
    for batch in 0..100 {
        writer.events(&calls(batch * 500..(batch + 1) * 500));
        writer.units(&[unit(1, batch)]);
        writer.tick(BootNanos(START + (batch + 1) * SECOND));
        for loss in writer.losses() {
            assert_eq!(loss.reason, LossReason::Evicted);
            told += loss.count;
        }
    }
    writer.seal().unwrap();
    let left = stored(&fs);
    assert_eq!(
        left,
        (told..50_000).collect::<Vec<_>>(),
        "the oldest are gone, and no others"
    );
    assert!(told > 10_000 && !left.is_empty(), "{told}");
    let session = open(&fs, "s").unwrap();
    let [drop] = session.drops().unwrap().try_into().unwrap();
    assert_eq!((drop.reason.as_str(), drop.count), ("evicted", told));
    assert_eq!(drop.window.unwrap().start, BootNanos(START));
    assert_eq!(session.units(None).unwrap().len(), 100);
}
