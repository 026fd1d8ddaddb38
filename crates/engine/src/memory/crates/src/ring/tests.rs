//! The ring by two threads at full speed, by small sizes, and by damaged bytes.

extern crate std;

use std::alloc::{Layout as Memory, alloc_zeroed, dealloc};
use std::sync::atomic::AtomicBool;
use std::vec::Vec;

use super::*;
use crate::Kind;

/// Page-aligned shared memory that a producer and a consumer use at once.
struct Shared {
    at: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the producer writes and the consumer reads it by atomics alone.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(layout: Layout) -> Shared {
        let memory = Memory::from_size_align(layout.bytes(), 4096).unwrap();
        // SAFETY: the size is not zero.
        let at = NonNull::new(unsafe { alloc_zeroed(memory) }).unwrap();
        Shared { at, layout }
    }

    fn producer(&self) -> Producer {
        let owner = Owner {
            pid: 7,
            tid: 8,
            comm: *b"trainer\0\0\0\0\0\0\0\0\0",
            ..Owner::default()
        };
        // SAFETY: zeroed, page-aligned, as big as the layout says; each test makes one producer and drops it first.
        unsafe { Producer::create(self.at, self.layout, &owner) }
    }

    fn consumer(&self) -> Consumer<&Shared> {
        Consumer::open(self, self.layout.bytes() as u64).unwrap()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let memory = Memory::from_size_align(self.layout.bytes(), 4096).unwrap();
        // SAFETY: allocated with the same layout.
        unsafe { dealloc(self.at.as_ptr(), memory) }
    }
}

impl ReadAt for &Shared {
    fn read_at(&self, offset: usize, out: &mut [u8]) -> bool {
        assert!(offset.is_multiple_of(4) && offset + out.len() <= self.layout.bytes());
        for (i, four) in out.chunks_mut(4).enumerate() {
            // SAFETY: inside the allocation, aligned to 4, and only ever written by atomics.
            let word = unsafe { self.at.add(offset + 4 * i).cast::<AtomicU32>().as_ref() };
            four.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes()[..four.len()]);
        }
        true
    }
}

/// A record whose every word follows from `n`.
fn numbered(n: u64) -> Record {
    Record {
        op: n as u16,
        ret: n as i32,
        stack_id: n as u32,
        cpu: n as u32,
        arg0: n.wrapping_mul(3),
        arg1: n.wrapping_mul(5),
        stream: n.wrapping_mul(7),
        ..Record::new(Kind::Call, n, !n, n as u32, n as u32)
    }
}

fn check(record: &Record) -> u64 {
    let want = Record {
        seq: record.ts as u32,
        ..numbered(record.ts)
    };
    assert_eq!(*record, want, "a torn record was given");
    record.ts
}

fn drained(consumer: &mut Consumer<&Shared>) -> (Vec<u64>, Drained) {
    let mut got = Vec::new();
    let done = consumer.drain(|r| got.push(check(&r)));
    (got, done)
}

#[test]
fn records_come_back_in_order_and_once() {
    let shared = Shared::new(Layout::new(64, 0).unwrap());
    let mut producer = shared.producer();
    let mut consumer = shared.consumer();
    assert_eq!(consumer.owner().tid, 8);
    assert_eq!(&consumer.owner().comm[..8], b"trainer\0");
    assert_eq!(drained(&mut consumer), (Vec::new(), Drained::default()));
    for n in 0..5 {
        producer.push(|| numbered(n));
    }
    assert_eq!(drained(&mut consumer).0, [0, 1, 2, 3, 4]);
    assert_eq!(drained(&mut consumer).0, [0u64; 0]);
    producer.push(|| numbered(5));
    assert_eq!(drained(&mut consumer).0, [5]);
}

#[test]
fn an_overrun_is_counted_to_the_record_for_every_distance() {
    for written in 0..200u64 {
        for read_first in [0, 1, 40, 63, 64] {
            let shared = Shared::new(Layout::new(64, 0).unwrap());
            let mut producer = shared.producer();
            let mut consumer = shared.consumer();
            (0..read_first).for_each(|n| producer.push(|| numbered(n)));
            let (first, before) = drained(&mut consumer);
            (read_first..read_first + written).for_each(|n| producer.push(|| numbered(n)));
            let (second, after) = drained(&mut consumer);
            let head = read_first + written;
            assert_eq!(
                first.len() as u64 + second.len() as u64 + before.lost + after.lost,
                head
            );
            if written > 0 {
                assert_eq!(
                    second.last(),
                    Some(&(head - 1)),
                    "the newest is always there"
                );
            }
            assert!(second.windows(2).all(|w| w[0] + 1 == w[1]));
            assert_eq!(
                after.lost,
                (head + 1).saturating_sub(64).saturating_sub(read_first)
            );
        }
    }
}

#[test]
fn two_threads_at_full_speed_lose_records_only_by_count_and_never_see_a_torn_one() {
    const TOTAL: u64 = 400_000;
    for capacity in [64, 1024] {
        let shared = Shared::new(Layout::new(capacity, 0).unwrap());
        let mut producer = shared.producer();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..TOTAL {
                    producer.push(|| numbered(n));
                }
                done.store(true, Ordering::Release);
            });
            let mut consumer = shared.consumer();
            let (mut given, mut lost, mut last) = (0, 0, None);
            loop {
                let finished = done.load(Ordering::Acquire);
                let (got, drained) = drained(&mut consumer);
                assert_eq!(drained.malformed, 0);
                given += got.len() as u64;
                lost += drained.lost;
                for n in got {
                    assert!(last < Some(n));
                    last = Some(n);
                }
                if finished {
                    break;
                }
            }
            assert_eq!(last, Some(TOTAL - 1));
            assert_eq!(given + lost, TOTAL);
        });
    }
}

#[test]
fn counters_keep_key_total_and_buckets_and_run_out_by_count() {
    let shared = Shared::new(Layout::new(64, 2).unwrap());
    let mut producer = shared.producer();
    let key = |number| CountKey {
        source: 4,
        number,
        device: 3,
    };
    let first = producer.counter(key(1)).unwrap();
    let second = producer.counter(key(2)).unwrap();
    assert_eq!(producer.counter(key(3)), None);
    producer.uncounted();
    producer.count(first, 5);
    producer.count(first, 5);
    producer.count(second, 1 << 20);
    let consumer = shared.consumer();
    let mut got = Vec::new();
    consumer.counts(|c| got.push(c.clone()));
    assert_eq!(got.len(), 2);
    assert_eq!(
        (got[0].key, got[0].total, got[0].buckets[5]),
        (key(1), 10, 2)
    );
    assert_eq!(got[1].buckets[histogram::bucket(1 << 20)], 1);
    assert_eq!(
        producer.counter(key(2)),
        Some(second),
        "a key has one counter"
    );
    assert_eq!(
        consumer.refused(),
        Refused {
            uncounted: 1,
            ..Refused::default()
        }
    );
}

#[test]
fn calls_in_flight_are_seen_to_four_levels_while_they_last() {
    let shared = Shared::new(Layout::new(64, 0).unwrap());
    let producer = shared.producer();
    let consumer = shared.consumer();
    let levels = || {
        let mut got = Vec::new();
        consumer.in_flight(|f| got.push((f.level, f.ts, f.source, f.number, f.arg0, f.device)));
        got
    };
    assert_eq!(levels(), []);
    producer.set_device(2);
    for level in 0..6 {
        producer.enter(level, 100 + level as u64, flight_op(1, 5), 9, 0);
    }
    let four: Vec<_> = (0..4).map(|l| (l, 100 + l as u64, 1, 5, 9, 2)).collect();
    assert_eq!(levels(), four);
    producer.leave(1);
    assert_eq!(levels(), &four[..1]);
    producer.leave(0);
    assert_eq!(levels(), []);
    assert!(!consumer.ended());
    producer.end();
    assert!(consumer.ended());
}

/// Bytes of a file that may be anything.
struct Bytes(Vec<u8>);

impl ReadAt for &Bytes {
    fn read_at(&self, offset: usize, out: &mut [u8]) -> bool {
        match self.0.get(offset..offset + out.len()) {
            Some(b) => {
                out.copy_from_slice(b);
                true
            }
            None => false,
        }
    }
}

#[test]
fn no_header_however_damaged_makes_the_consumer_panic_or_read_without_end() {
    let layout = Layout::new(64, 1).unwrap();
    let shared = Shared::new(layout);
    let mut producer = shared.producer();
    (0..10).for_each(|n| producer.push(|| numbered(n)));
    let mut whole = Bytes(std::vec![0; layout.bytes()]);
    assert!((&shared).read_at(0, &mut whole.0));
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut opened = 0;
    for _ in 0..20_000 {
        let mut bytes = Bytes(whole.0[..whole.0.len() - (random() % 2) as usize * 72].to_vec());
        for _ in 0..random() % 4 {
            let at = (random() % size_of::<Header>() as u64 / 4 * 4) as usize;
            let word = [0, 1, u32::MAX, random() as u32][(random() % 4) as usize];
            bytes.0[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let Ok(mut consumer) = Consumer::open(&bytes, bytes.0.len() as u64) else {
            continue;
        };
        opened += 1;
        let done = consumer.drain(|_| ());
        assert!(done.records <= 64);
        consumer.counts(|_| ());
        consumer.in_flight(|_| ());
        consumer.refused();
    }
    assert!(
        opened > 1_000,
        "too few damaged rings were opened: {opened}"
    );
}

#[test]
fn rings_shrink_as_the_budget_is_spent_and_end_with_none() {
    let wanted = Layout::new(8192, 96).unwrap();
    assert_eq!(control::affordable(wanted, 64 << 20), Some(wanted));
    let small = control::affordable(wanted, 4 << 20).unwrap();
    assert!(small.capacity() < 8192 && small.bytes() <= 1 << 16);
    assert_eq!(control::affordable(wanted, 1 << 20), None);
    let (mut left, mut rings) = (64u64 << 20, 0);
    while let Some(layout) = control::affordable(wanted, left) {
        left -= layout.bytes() as u64;
        rings += 1;
    }
    assert!(rings >= 200, "{rings}");
}
