//! Maps that cannot grow without bound, and the hasher of the hot path.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// Multiply and rotate: keys here are small integers from our own kernel side, in maps of bounded size.
#[derive(Default, Clone, Copy)]
pub(crate) struct QuickHasher(u64);

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }

    fn write_u8(&mut self, v: u8) {
        self.write_u64(u64::from(v));
    }

    fn write_u16(&mut self, v: u16) {
        self.write_u64(u64::from(v));
    }

    fn write_u32(&mut self, v: u32) {
        self.write_u64(u64::from(v));
    }

    fn write_i32(&mut self, v: i32) {
        self.write_u64(u64::from(v as u32));
    }

    fn write_u64(&mut self, v: u64) {
        // An odd constant of 64 bits: 2^64 divided by the golden ratio.
        self.0 = (self.0.rotate_left(26) ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_usize(&mut self, v: usize) {
        self.write_u64(v as u64);
    }

    fn write_isize(&mut self, v: isize) {
        self.write_u64(v as u64);
    }

    fn finish(&self) -> u64 {
        // The table takes its index from the low bits, which a product mixes least.
        self.0 ^ (self.0 >> 32)
    }
}

pub(crate) type QuickMap<K, V> = HashMap<K, V, BuildHasherDefault<QuickHasher>>;

/// A map that gives up its oldest entry when it is full, and counts that.
pub(crate) struct Capped<K, V> {
    map: QuickMap<K, V>,
    /// Keys by age; those removed since are skipped.
    order: VecDeque<K>,
    cap: usize,
    pub(crate) evicted: u64,
}

impl<K: Hash + Eq + Copy, V> Capped<K, V> {
    pub(crate) fn new(cap: usize) -> Capped<K, V> {
        Capped {
            map: QuickMap::default(),
            order: VecDeque::new(),
            cap: cap.max(1),
            evicted: 0,
        }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.map.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.map.get_mut(key)
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.map.remove(key)
    }

    /// Removes what `keep` does not keep. Cost: O(entries).
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        self.map.retain(|k, _| keep(k));
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.map.insert(key, value).is_none() {
            self.make_room(key);
        }
    }

    /// The entry of `key`, made by `new` when there is none.
    pub(crate) fn entry(&mut self, key: K, new: impl FnOnce() -> V) -> &mut V {
        if !self.map.contains_key(&key) {
            self.insert(key, new());
        }
        self.map.get_mut(&key).expect("it was just put there")
    }

    fn make_room(&mut self, newest: K) {
        self.order.push_back(newest);
        while self.map.len() > self.cap {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            if oldest != newest && self.map.remove(&oldest).is_some() {
                self.evicted += 1;
            }
        }
        if self.order.len() > 2 * self.cap + 16 {
            let map = &self.map;
            self.order.retain(|k| map.contains_key(k));
            // A key that was removed and came again is there twice; the cap of the map still holds.
            self.order.truncate(2 * self.cap);
        }
    }

    /// In no order.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.map.iter_mut()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_gives_up_its_oldest_entry_and_counts_it() {
        let mut m = Capped::new(2);
        m.insert(1u32, 'a');
        m.insert(2, 'b');
        m.insert(2, 'B');
        m.insert(3, 'c');
        assert_eq!((m.len(), m.evicted), (2, 1));
        assert_eq!(
            (m.get(&1), m.get(&2), m.get(&3)),
            (None, Some(&'B'), Some(&'c'))
        );
    }

    #[test]
    fn coming_and_going_keys_leave_no_trace() {
        let mut m = Capped::new(4);
        for i in 0..10_000u32 {
            m.insert(i % 3, i);
            m.remove(&(i % 3));
        }
        assert_eq!((m.len(), m.evicted), (0, 0));
        assert!(m.order.len() <= 24);
    }
}
