//! Why the wait for the device grew. The device is not seen, only what was asked of it and how long the host waited.

use warptrace_model::{Category, Cause};

use crate::baseline::Usual;
use crate::partition::share;
use crate::units::Measured;
use crate::units::work::COPY_KINDS;

/// What is known of a device besides the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Charges {
    /// Bytes a second of each kind of copy, as measured; 0 when it was not.
    pub(crate) bandwidth: [u64; COPY_KINDS],
}

impl Charges {
    /// Divides `excess` ns of waiting over its causes, each limited to what remains. The parts add up to `excess`.
    pub(crate) fn divide(&self, excess: u64, m: &Measured, usual: &Usual) -> [(Cause, u64); 6] {
        let mut left = excess;
        let mut charge = |ns: u64| {
            let taken = ns.min(left);
            left -= taken;
            taken
        };
        let (f, u) = (&m.facts, &usual.facts);
        let more_copied: u64 = (0..COPY_KINDS)
            .filter(|k| self.bandwidth[*k] > 0)
            .map(|k| {
                share(
                    f.bytes[k].saturating_sub(u.bytes[k]),
                    1_000_000_000,
                    self.bandwidth[k],
                )
            })
            .fold(0, u64::saturating_add);
        // At the baseline's wait per launch.
        let more_work = share(
            usual.parts[Category::DeviceWait],
            f.launches.saturating_sub(u.launches),
            u.launches,
        );
        let charged = [
            (Cause::Copy, charge(more_copied)),
            (
                Cause::GpuThrottle,
                charge(f.throttle.saturating_sub(u.throttle)),
            ),
            (
                Cause::GpuContention,
                charge(f.contention.saturating_sub(u.contention)),
            ),
            (
                Cause::Allocator,
                charge(f.allocation.saturating_sub(u.allocation)),
            ),
            (Cause::GpuWork, charge(more_work)),
        ];
        let [a, b, c, d, e] = charged;
        [a, b, c, d, e, (Cause::Unexplained, left)]
    }
}
