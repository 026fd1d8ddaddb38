//! The fingerprint of a step: which functions it launched, in which order.
//!
//! 64-bit FNV-1a over whole addresses instead of bytes, as another tracer does it (ingero 0.17.0), so that its fingerprints
//! are ours. An address means something within one life of a process only, and so does a fingerprint.
//!
//! A hash cannot be cut in the middle: where a program waits for events, the fingerprint of what an event's record closes is
//! put aside at the record, and a new one begins. It knows which events are waited for from the first wait on.

use crate::capped::Capped;

/// The hash of no launch with an address.
const START: u64 = 0xcbf2_9ce4_8422_2325;

/// Addresses in order, hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Fingerprint {
    /// `None` without launches.
    hash: Option<u64>,
}

impl Fingerprint {
    /// A function was launched; 0 is one whose address is not known.
    pub(super) fn launched(&mut self, function: u64) {
        let hash = self.hash.unwrap_or(START);
        self.hash = Some(match function {
            0 => hash,
            f => (hash ^ f).wrapping_mul(0x100_0000_01b3),
        });
    }

    /// 0 without launches.
    pub(super) fn value(self) -> u64 {
        self.hash.unwrap_or(0)
    }
}

/// Events that are waited for, and what was launched before their last record.
pub(super) struct AtRecords(Capped<u64, Option<Fingerprint>>);

impl AtRecords {
    pub(super) fn new(events: usize) -> AtRecords {
        AtRecords(Capped::new(events))
    }

    /// `event` is recorded on the stream whose fingerprint is `running`.
    pub(super) fn recorded(&mut self, event: u64, running: &mut Fingerprint) {
        if let Some(at) = self.0.get_mut(&event) {
            *at = Some(std::mem::take(running));
        }
    }

    /// `event` was waited for: what was launched before its record.
    pub(super) fn waited(&mut self, event: u64, running: &mut Fingerprint) -> Fingerprint {
        match self.0.entry(event, || None).take() {
            Some(at_record) => at_record,
            None => std::mem::take(running),
        }
    }

    pub(super) fn evicted(&self) -> u64 {
        self.0.evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(functions: &[u64]) -> u64 {
        let mut f = Fingerprint::default();
        functions.iter().for_each(|p| f.launched(*p));
        f.value()
    }

    #[test]
    fn fingerprints_are_those_of_the_other_tracer() {
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&[0x1000]), 0xaf73_bd4c_861c_e7df);
        assert_eq!(of(&[0x1000, 0x2000]), 0x3e72_8807_e2e7_9fed);
        assert_eq!(of(&[0x2000, 0x1000]), 0x9b62_8807_586b_1fed);
        assert_eq!(of(&[0x1000, 0x2000, 0x1000]), 0x042d_1266_8f79_8fb7);
        assert_eq!(of(&[0]), 0xcbf2_9ce4_8422_2325);
    }

    #[test]
    fn what_is_launched_before_a_record_and_after_it_is_told_apart() {
        let (mut at, mut running) = (AtRecords::new(4), Fingerprint::default());
        running.launched(1);
        at.recorded(0xe, &mut running);
        assert_eq!(
            at.waited(0xe, &mut running).value(),
            of(&[1]),
            "nobody knew"
        );
        // The next step is launched before the wait for this one.
        running.launched(1);
        at.recorded(0xe, &mut running);
        running.launched(2);
        assert_eq!(at.waited(0xe, &mut running).value(), of(&[1]));
        assert_eq!(running.value(), of(&[2]));
    }
}
