//! How old the oldest allocations of a process are.
//!
//! Serving engines take a few large blocks at their start and divide them themselves, so that these ages mostly show the age of
//! the process; they say more of engines that take device memory for each request. Knows nothing of what the memory is for.

use std::collections::VecDeque;

use crate::capped::QuickMap;

/// Live allocations of one process, by address or handle.
#[derive(Default)]
pub(super) struct Lineage {
    /// When each was made.
    live: QuickMap<u64, u64>,
    /// By the order in which they were made; those given back since are skipped.
    order: VecDeque<(u64, u64)>,
}

impl Lineage {
    pub(super) fn len(&self) -> usize {
        self.live.len()
    }

    /// `address` was taken at `at`; when it is there already, its return was not seen. How many were given up for want of room.
    pub(super) fn taken(&mut self, address: u64, at: u64, cap: usize) -> u64 {
        let mut evicted = 0;
        if !self.live.contains_key(&address) {
            while self.live.len() >= cap.max(1) {
                let Some((oldest, at)) = self.order.pop_front() else {
                    break;
                };
                if self.live.get(&oldest) == Some(&at) {
                    self.live.remove(&oldest);
                    evicted += 1;
                }
            }
        }
        self.live.insert(address, at);
        self.order.push_back((address, at));
        if self.order.len() > 2 * self.live.len() + 64 {
            let live = &self.live;
            self.order.retain(|(a, at)| live.get(a) == Some(at));
            // An address that was taken twice at one time is there twice.
            self.order.truncate(2 * self.live.len() + 64);
        }
        evicted
    }

    pub(super) fn given_back(&mut self, address: u64) {
        self.live.remove(&address);
    }

    /// Ages at `now` of the `n` oldest, in whole milliseconds, the oldest first. One made after `now` is new.
    pub(super) fn oldest(&mut self, n: usize, now: u64) -> Vec<u64> {
        while let Some((a, at)) = self.order.front()
            && self.live.get(a) != Some(at)
        {
            self.order.pop_front();
        }
        let mut found: Vec<(u64, u64)> = Vec::with_capacity(n);
        for entry in &self.order {
            if found.len() == n {
                break;
            }
            if self.live.get(&entry.0) == Some(&entry.1) && !found.contains(entry) {
                found.push(*entry);
            }
        }
        let age = |(_, at): (u64, u64)| now.saturating_sub(at) / 1_000_000;
        let mut ages: Vec<u64> = found.into_iter().map(age).collect();
        ages.sort_unstable_by(|a, b| b.cmp(a));
        ages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn the_oldest_come_first_and_what_was_given_back_is_gone() {
        let mut l = Lineage::default();
        for (address, at) in [(0xa, 10), (0xb, 20), (0xc, 30), (0xd, 40)] {
            assert_eq!(l.taken(address, at * MS, 8), 0);
        }
        l.given_back(0xa);
        l.given_back(0xee);
        assert_eq!(l.oldest(2, 100 * MS), [80, 70]);
        // Taken again: it is as old as that.
        l.taken(0xb, 90 * MS, 8);
        assert_eq!(l.oldest(9, 100 * MS), [70, 60, 10]);
        assert_eq!(l.oldest(9, 35 * MS), [5, 0, 0]);
    }

    #[test]
    fn a_full_one_gives_up_its_oldest_and_memory_stays_bounded() {
        let mut l = Lineage::default();
        let mut evicted = 0;
        for i in 0..10_000 {
            evicted += l.taken(i, i * MS, 4);
        }
        assert_eq!((l.len(), evicted), (4, 9_996));
        for i in 0..10_000 {
            l.taken(7, i, 4);
        }
        assert!(l.order.len() <= 80);
        assert_eq!(l.oldest(1, 10_000 * MS), [3]);
    }
}
