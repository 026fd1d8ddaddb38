//! A map of bounded size that gives up what was used longest ago, and counts that.
//!
//! Entries are in a list by their last use, so that finding the stalest costs nothing and no order depends on the hasher.

use std::hash::Hash;

use crate::capped::QuickMap;

const NONE: u32 = u32::MAX;

struct Slot<K, V> {
    key: K,
    value: V,
    /// Time of its last use.
    at: u64,
    newer: u32,
    older: u32,
}

/// Cost of every operation but [`Lru::retain`] and [`Lru::iter`]: O(1).
pub(super) struct Lru<K, V> {
    map: QuickMap<K, u32>,
    slots: Vec<Slot<K, V>>,
    newest: u32,
    oldest: u32,
    cap: usize,
    /// Entries given up for want of room.
    pub(super) evicted: u64,
}

impl<K: Hash + Eq + Copy, V> Lru<K, V> {
    /// Room for `cap` entries, at least one; nothing is allocated before the first.
    pub(super) fn new(cap: usize) -> Lru<K, V> {
        Lru {
            map: QuickMap::default(),
            slots: Vec::new(),
            newest: NONE,
            oldest: NONE,
            cap: cap.clamp(1, NONE as usize - 1),
            evicted: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Looks without counting as a use.
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        Some(&self.slots[*self.map.get(key)? as usize].value)
    }

    /// Looks without counting as a use.
    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        Some(&mut self.slots[*self.map.get(key)? as usize].value)
    }

    /// The entry of `key`, used at `at`, made by `new` when there is none.
    pub(super) fn touch(&mut self, key: K, at: u64, new: impl FnOnce() -> V) -> &mut V {
        let ix = match self.map.get(&key) {
            Some(ix) => {
                let ix = *ix;
                if self.newest != ix {
                    self.unlink(ix);
                    self.link(ix);
                }
                ix
            }
            None => {
                if self.slots.len() >= self.cap {
                    self.remove_at(self.oldest);
                    self.evicted += 1;
                }
                let ix = self.slots.len() as u32;
                self.slots.push(Slot {
                    key,
                    value: new(),
                    at,
                    newer: NONE,
                    older: NONE,
                });
                self.map.insert(key, ix);
                self.link(ix);
                ix
            }
        };
        let slot = &mut self.slots[ix as usize];
        slot.at = slot.at.max(at);
        &mut slot.value
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let ix = *self.map.get(key)?;
        Some(self.remove_at(ix))
    }

    /// Gives up what was last used before `before`; that is not an eviction.
    pub(super) fn expire(&mut self, before: u64) {
        while let Some(slot) = self.slots.get(self.oldest as usize)
            && slot.at < before
        {
            self.remove_at(self.oldest);
        }
    }

    /// Removes what `keep` does not keep. Cost: O(entries).
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let mut ix = self.slots.len();
        while ix > 0 {
            ix -= 1;
            let slot = &self.slots[ix];
            if !keep(&slot.key, &slot.value) {
                // The last slot moves here; it was asked already.
                self.remove_at(ix as u32);
            }
        }
    }

    /// All entries, in no order that means anything, but always the same one after the same operations.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.slots.iter().map(|s| (&s.key, &s.value))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.slots.iter_mut().map(|s| (&s.key, &mut s.value))
    }

    fn link(&mut self, ix: u32) {
        let newest = self.newest;
        let slot = &mut self.slots[ix as usize];
        (slot.newer, slot.older) = (NONE, newest);
        match self.slots.get_mut(newest as usize) {
            Some(s) => s.newer = ix,
            None => self.oldest = ix,
        }
        self.newest = ix;
    }

    fn unlink(&mut self, ix: u32) {
        let Slot { newer, older, .. } = self.slots[ix as usize];
        match self.slots.get_mut(newer as usize) {
            Some(s) => s.older = older,
            None => self.newest = older,
        }
        match self.slots.get_mut(older as usize) {
            Some(s) => s.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn remove_at(&mut self, ix: u32) -> V {
        self.unlink(ix);
        let gone = self.slots.swap_remove(ix as usize);
        self.map.remove(&gone.key);
        // What was last is at `ix` now: its neighbours and the map must know.
        if let Some(moved) = self.slots.get(ix as usize) {
            let (key, newer, older) = (moved.key, moved.newer, moved.older);
            self.map.insert(key, ix);
            match self.slots.get_mut(newer as usize) {
                Some(s) => s.older = ix,
                None => self.newest = ix,
            }
            match self.slots.get_mut(older as usize) {
                Some(s) => s.newer = ix,
                None => self.oldest = ix,
            }
        }
        gone.value
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Do {
        Touch(u8),
        Remove(u8),
        Expire(u64),
        Retain(u8),
    }

    fn anything() -> impl Strategy<Value = Do> {
        prop_oneof![
            4 => (0u8..12).prop_map(Do::Touch),
            1 => (0u8..12).prop_map(Do::Remove),
            1 => (0u64..8).prop_map(Do::Expire),
            1 => (1u8..5).prop_map(Do::Retain),
        ]
    }

    proptest! {
        #[test]
        fn it_holds_what_a_list_by_last_use_would_hold(ops in prop::collection::vec(anything(), 0..200), cap in 1usize..8) {
            let mut lru = Lru::new(cap);
            // Newest last.
            let mut plain: Vec<(u8, u64)> = Vec::new();
            let mut evicted = 0;
            for (now, op) in ops.into_iter().enumerate() {
                let now = now as u64;
                match op {
                    Do::Touch(k) => {
                        *lru.touch(k, now, || 0) += 1;
                        plain.retain(|(p, _)| *p != k);
                        if plain.len() == cap {
                            plain.remove(0);
                            evicted += 1;
                        }
                        plain.push((k, now));
                    }
                    Do::Remove(k) => {
                        prop_assert_eq!(lru.remove(&k).is_some(), plain.iter().any(|(p, _)| *p == k));
                        plain.retain(|(p, _)| *p != k);
                    }
                    Do::Expire(back) => {
                        lru.expire(now.saturating_sub(back));
                        plain.retain(|(_, at)| *at >= now.saturating_sub(back));
                    }
                    Do::Retain(n) => {
                        lru.retain(|k, _| k % n != 0);
                        plain.retain(|(k, _)| k % n != 0);
                    }
                }
                prop_assert_eq!((lru.len(), lru.evicted), (plain.len(), evicted));
                for (k, _) in &plain {
                    prop_assert!(lru.get(k).is_some());
                }
            }
        }
    }
}
