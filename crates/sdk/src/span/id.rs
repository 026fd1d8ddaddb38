//! Random ids, without a system call for each.

use std::cell::Cell;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};

use warptrace_model::SpanId;

use crate::fork;

thread_local! {
    /// In which process it was seeded; the thread's own half, and how many ids it has made, from a random number on.
    static STATE: Cell<(u32, [u64; 2])> = const { Cell::new((u32::MAX, [0; 2])) };
}

/// A new id.
///
/// Each thread has a generator of its own, seeded by the operating system's randomness, and again in a forked child. `nanos`, a
/// time, is mixed in.
#[inline]
pub(super) fn next(nanos: i64) -> SpanId {
    let generation = fork::generation();
    let [own, count] = match STATE.get() {
        (seeded, state) if seeded == generation => state,
        _ => seed(nanos),
    };
    // The lower half, which is all that OTLP has of a span, is another one each time for 2^64 times.
    let count = count.wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set((generation, [own, count]));
    let low = mix(count);
    let high = (own ^ nanos as u64).wrapping_mul(low | 1);
    SpanId::from_random(u128::from(high) << 64 | u128::from(low))
}

#[cold]
fn seed(nanos: i64) -> [u64; 2] {
    let random = RandomState::new();
    let half = |which: u8| {
        let mut hasher = random.build_hasher();
        hasher.write_u8(which);
        hasher.write_u32(std::process::id());
        hasher.write_i64(nanos);
        hasher.finish()
    };
    [half(0), half(1)]
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood; OOPSLA 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn ids_differ_also_where_the_clock_stands_still_and_between_threads() {
        let make = || (0..10_000).map(|_| super::next(5)).collect::<Vec<_>>();
        let threads: Vec<_> = std::thread::scope(|s| {
            let running: Vec<_> = (0..4).map(|_| s.spawn(make)).collect();
            running.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let all: HashSet<_> = threads.iter().flatten().map(|id| id.otlp()).collect();
        assert_eq!(all.len(), 40_000);
    }
}
