//! From excess to blame: which cause took how much, and how much of that lengthened the unit.
//!
//! Pure arithmetic on one unit and its usual. *Lost* is a cause's own positive excess; *exposed* is what is left of it
//! after the part that hid behind work of the device. Exposed parts are whole nanoseconds, none negative, and add up to the
//! unit's excess.

mod device;

use warptrace_model::{Category, Cause, Parts};

pub(crate) use device::Charges;

use crate::baseline::Usual;
use crate::partition::Piece;
use crate::units::Measured;

/// Number of causes.
pub(crate) const CAUSES: usize = Cause::ALL.len();

/// One unit's blame, by cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnitBlame {
    pub(crate) exposed: [u64; CAUSES],
    pub(crate) lost: [u64; CAUSES],
}

impl UnitBlame {
    pub(crate) fn cause(&self) -> Cause {
        main_cause(&self.exposed)
    }
}

/// The largest explained cause, if what is explained is at least half of it all; else [`Cause::Unexplained`].
pub(crate) fn main_cause(ns: &[u64; CAUSES]) -> Cause {
    let unexplained = ns[Cause::Unexplained as usize];
    let total: u64 = ns.iter().sum();
    let largest = Cause::ALL
        .into_iter()
        .filter(|c| *c != Cause::Unexplained)
        .max_by_key(|c| (ns[*c as usize], std::cmp::Reverse(*c)));
    match largest {
        Some(c) if ns[c as usize] > 0 && 2 * (total - unexplained) >= total => c,
        _ => Cause::Unexplained,
    }
}

/// The cause that a category's excess is blamed on; `None` for the wait for the device, which is divided.
pub(crate) const fn cause_of(c: Category) -> Option<Cause> {
    Some(match c {
        Category::RunQueueWait => Cause::RunQueueWait,
        Category::CpuQuota => Cause::CpuQuota,
        Category::DiskWait => Cause::DiskWait,
        Category::PageFault => Cause::PageFault,
        Category::Reclaim => Cause::Reclaim,
        Category::LockWait => Cause::LockWait,
        Category::NetworkWait => Cause::NetworkWait,
        Category::Sleep => Cause::Sleep,
        Category::Allocator => Cause::Allocator,
        Category::Copy => Cause::Copy,
        Category::Launch | Category::LaunchGap => Cause::LaunchGap,
        Category::Unexplained => Cause::Unexplained,
        Category::DeviceWait => return None,
    })
}

/// Parts by cause, the wait for the device left out.
fn by_cause(parts: &Parts) -> [u64; CAUSES] {
    let mut out = [0; CAUSES];
    for (c, ns) in parts.iter() {
        if let Some(cause) = cause_of(c) {
            out[cause as usize] += ns;
        }
    }
    out
}

/// Blames a unit's excess over `usual`, which must be positive. `charges` divides what the wait for the device took more.
pub(crate) fn blame(m: &Measured, usual: &Usual, charges: &Charges) -> UnitBlame {
    let (now, mean) = (by_cause(&m.parts), by_cause(&usual.parts));
    let mut lost: [u64; CAUSES] = std::array::from_fn(|i| now[i].saturating_sub(mean[i]));
    let mut negative: u64 = (0..CAUSES).map(|i| mean[i].saturating_sub(now[i])).sum();
    let mut exposed = lost;

    let (wait, usual_wait) = (
        m.parts[Category::DeviceWait],
        usual.parts[Category::DeviceWait],
    );
    if wait < usual_wait {
        // The device worked on while the host was late.
        let shrunk = usual_wait - wait;
        negative += shrunk - hide(&m.pieces, m.first_launch, &now, &lost, shrunk, &mut exposed);
    } else {
        for (cause, ns) in charges.divide(wait - usual_wait, m, usual) {
            lost[cause as usize] += ns;
            exposed[cause as usize] += ns;
        }
    }
    spread(&mut exposed, negative);
    UnitBlame { exposed, lost }
}

/// Takes up to `amount` from what of `lost` lies after `from`, latest first. Returns how much it took.
///
/// A cause's excess lies on its pieces in proportion to their length.
fn hide(
    pieces: &[Piece],
    from: u64,
    now: &[u64; CAUSES],
    lost: &[u64; CAUSES],
    amount: u64,
    exposed: &mut [u64; CAUSES],
) -> u64 {
    let mut left = amount;
    // Length of each cause's pieces after the one that is looked at: differences of a rounded sum are exact in total.
    let mut after = [0u64; CAUSES];
    let placed = |c: usize, len: u64| crate::partition::share(lost[c], len, now[c]);
    for p in pieces.iter().rev() {
        if left == 0 || p.end <= from {
            break;
        }
        let Some(cause) = cause_of(p.category) else {
            continue;
        };
        let c = cause as usize;
        let here = placed(c, after[c] + p.ns) - placed(c, after[c]);
        after[c] += p.ns;
        if p.start < from {
            continue;
        }
        let hidden = here.min(left);
        exposed[c] -= hidden;
        left -= hidden;
    }
    amount - left
}

/// Takes `amount` from the parts in proportion, whole nanoseconds, by largest remainder; ties in the order of causes.
///
/// `amount` is at most the sum of the parts.
pub(crate) fn spread(parts: &mut [u64; CAUSES], amount: u64) {
    let total: u64 = parts.iter().sum();
    let amount = amount.min(total);
    if amount == 0 {
        return;
    }
    let exact = |p: u64| u128::from(p) * u128::from(amount);
    let mut order: Vec<usize> = (0..CAUSES).collect();
    order.sort_by_key(|i| std::cmp::Reverse(exact(parts[*i]) % u128::from(total)));
    let mut taken = 0;
    let cuts: [u64; CAUSES] = std::array::from_fn(|i| {
        let cut = (exact(parts[i]) / u128::from(total)) as u64;
        taken += cut;
        cut
    });
    for (p, cut) in parts.iter_mut().zip(cuts) {
        *p -= cut;
    }
    let mut rest = amount - taken;
    for i in order {
        if rest == 0 {
            break;
        }
        if parts[i] > 0 {
            parts[i] -= 1;
            rest -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negative_excess_is_spread_by_largest_remainder() {
        let mut parts = [0; CAUSES];
        (parts[0], parts[1], parts[2]) = (5, 3, 2);
        spread(&mut parts, 3);
        // Exact: 1.5, 0.9, 0.6. Whole: 1, 0, 0. The two that remain go to the remainders 0.9 and 0.6.
        assert_eq!(parts[..3], [4, 2, 1]);
        spread(&mut parts, 7);
        assert_eq!(parts, [0; CAUSES]);
    }

    proptest::proptest! {
        #[test]
        fn spreading_takes_exactly_the_amount(
            v in proptest::collection::vec(0u64..1_000_000_000_000, CAUSES),
            part in 0u64..=1000,
        ) {
            let mut parts: [u64; CAUSES] = std::array::from_fn(|i| v[i]);
            let total: u64 = parts.iter().sum();
            let amount = total / 1000 * part;
            spread(&mut parts, amount);
            proptest::prop_assert_eq!(parts.iter().sum::<u64>(), total - amount);
        }
    }

    #[test]
    fn too_little_explained_is_unexplained() {
        let mut ns = [0; CAUSES];
        ns[Cause::DiskWait as usize] = 49;
        ns[Cause::Unexplained as usize] = 51;
        assert_eq!(main_cause(&ns), Cause::Unexplained);
        ns[Cause::LockWait as usize] = 49;
        assert_eq!(main_cause(&ns), Cause::DiskWait);
        assert_eq!(main_cause(&[0; CAUSES]), Cause::Unexplained);
    }
}
