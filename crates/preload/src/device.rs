//! To which device a context belongs, and which one a thread uses.
//!
//! Every process is seen from its start here, so a thread that never chose a device uses device 0, as the runtime does.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use warptrace_record::DEVICE_UNKNOWN;
use warptrace_record::op::{OPS, Op};

/// What a successful call changes. Slots are those of the op table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Nothing,
    /// Current device := arg0.
    SetDevice,
    /// A context of device arg0, at arg1, becomes current.
    Create,
    /// A context of device arg0, at arg1.
    Retain,
    /// Current context := arg0.
    SetCurrent,
    Push,
    Pop,
}

/// What each row of the op table changes.
pub(crate) static CHANGES: [Change; OPS.len()] = {
    let mut changes = [Change::Nothing; OPS.len()];
    let mut i = 0;
    while i < OPS.len() {
        changes[i] = change(&OPS[i]);
        i += 1;
    }
    changes
};

const fn change(op: &Op) -> Change {
    const NAMES: [(&str, Change); 8] = [
        ("cudaSetDevice", Change::SetDevice),
        ("cuCtxCreate", Change::Create),
        ("cuCtxCreate_v3", Change::Create),
        ("cuCtxCreate_v4", Change::Create),
        ("cuDevicePrimaryCtxRetain", Change::Retain),
        ("cuCtxSetCurrent", Change::SetCurrent),
        ("cuCtxPushCurrent", Change::Push),
        ("cuCtxPopCurrent", Change::Pop),
    ];
    let mut i = 0;
    while i < NAMES.len() {
        if same(NAMES[i].0.as_bytes(), op.name.as_bytes()) {
            return NAMES[i].1;
        }
        i += 1;
    }
    Change::Nothing
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

/// Contexts that are remembered; the oldest is forgotten.
const CONTEXTS: usize = 64;

static OWNERS: [(AtomicU64, AtomicU32); CONTEXTS] =
    [const { (AtomicU64::new(0), AtomicU32::new(0)) }; CONTEXTS];
static NEXT: AtomicU32 = AtomicU32::new(0);

fn remember(context: u64, device: u16) {
    if context == 0 {
        return;
    }
    let known = OWNERS
        .iter()
        .find(|(c, _)| c.load(Ordering::Relaxed) == context);
    let (place, owner) =
        known.unwrap_or_else(|| &OWNERS[NEXT.fetch_add(1, Ordering::Relaxed) as usize % CONTEXTS]);
    owner.store(u32::from(device), Ordering::Relaxed);
    place.store(context, Ordering::Release);
}

fn owner(context: u64) -> Option<u16> {
    OWNERS
        .iter()
        .find(|(c, _)| c.load(Ordering::Acquire) == context)
        .map(|(_, device)| device.load(Ordering::Relaxed) as u16)
}

const DEPTH: usize = 8;

/// A thread's current device, and those under it on the stack of contexts.
pub(crate) struct Current {
    stack: [u16; DEPTH],
    depth: usize,
}

impl Current {
    pub(crate) const fn new() -> Current {
        Current {
            stack: [0; DEPTH],
            depth: 0,
        }
    }

    #[inline]
    pub(crate) fn device(&self) -> u16 {
        self.stack[self.depth]
    }

    /// Applies a call that succeeded. Says whether the device may be another one now.
    pub(crate) fn apply(&mut self, change: Change, arg0: u64, arg1: u64) -> bool {
        match change {
            Change::Nothing => return false,
            Change::SetDevice => self.stack[self.depth] = arg0 as u16,
            Change::Retain => {
                remember(arg1, arg0 as u16);
                return false;
            }
            Change::Create => {
                remember(arg1, arg0 as u16);
                self.push(arg0 as u16);
            }
            Change::SetCurrent => {
                if arg0 != 0 {
                    self.stack[self.depth] = owner(arg0).unwrap_or(DEVICE_UNKNOWN);
                }
            }
            Change::Push => self.push(owner(arg0).unwrap_or(DEVICE_UNKNOWN)),
            Change::Pop => self.depth = self.depth.saturating_sub(1),
        }
        true
    }

    fn push(&mut self, device: u16) {
        if self.depth + 1 < DEPTH {
            self.depth += 1;
        }
        self.stack[self.depth] = device;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_tied_to_an_op_of_the_table() {
        for change in [
            Change::SetDevice,
            Change::Create,
            Change::Retain,
            Change::SetCurrent,
            Change::Push,
            Change::Pop,
        ] {
            assert!(CHANGES.contains(&change));
        }
        assert_eq!(CHANGES.iter().filter(|c| **c == Change::Create).count(), 3);
    }

    #[test]
    fn contexts_lead_to_devices_and_popping_leads_back() {
        let mut current = Current::new();
        assert_eq!(current.device(), 0);
        current.apply(Change::SetDevice, 3, 0);
        assert_eq!(current.device(), 3);
        current.apply(Change::Retain, 5, 0xc5);
        assert_eq!(current.device(), 3);
        current.apply(Change::Push, 0xc5, 0);
        assert_eq!(current.device(), 5);
        current.apply(Change::Create, 6, 0xc6);
        assert_eq!(current.device(), 6);
        current.apply(Change::SetCurrent, 0xdead, 0);
        assert_eq!(current.device(), DEVICE_UNKNOWN);
        current.apply(Change::Pop, 0, 0);
        current.apply(Change::Pop, 0, 0);
        assert_eq!(current.device(), 3);
        for _ in 0..20 {
            current.apply(Change::Push, 0xc5, 0);
        }
        for _ in 0..20 {
            current.apply(Change::Pop, 0, 0);
        }
        assert_eq!(current.device(), 3);
    }
}
