//! A call returned that the device, or the context on it, is lost.
//!
//! *What it says*: an error after which every further call of the process fails too. CRITICAL, once a process and code.
//! *Evidence needed*: a return code that the CUDA reference says so of; 46 and 999, which it says of other troubles as
//! well, only when the device worked before.
//! *Looks like but is not*: a call refused for its arguments (1), for want of memory (2), or before any device was there.
//! *Example*: an illegal address in a kernel (700), an uncorrectable ECC error (214), a device that fell off the bus.
//! *Source*: CUDA Runtime API 12, `cudaError`; the driver's `CUresult` has the same numbers for these.

use warptrace_model::record::Source;
use warptrace_model::{Call, Cause, Severity};

use super::{Fact, moment};

/// Codes after which the context cannot be used, and what they are called.
const LOST: &[(i32, &str)] = &[
    (214, "uncorrectable ECC error"),
    (220, "uncorrectable NVLink error"),
    (700, "illegal address"),
    (702, "launch timed out"),
    (710, "assertion in a kernel"),
    (714, "hardware stack error"),
    (715, "illegal instruction"),
    (716, "misaligned address"),
    (717, "invalid address space"),
    (718, "invalid program counter"),
    (719, "launch failure"),
];

/// Codes that mean it only on a device that worked.
const LOST_IF_WORKED: &[(i32, &str)] = &[(46, "devices unavailable"), (999, "unknown error")];

/// `worked`: a call of the process succeeded before.
pub(crate) fn device_lost(call: &Call, worked: bool) -> Option<Fact> {
    if call.ret == 0
        || !matches!(
            call.op.get().source,
            Source::Runtime | Source::Driver | Source::Graph
        )
    {
        return None;
    }
    let of = |list: &[(i32, &'static str)]| {
        list.iter()
            .find(|(code, _)| *code == call.ret)
            .map(|(_, n)| *n)
    };
    let name = of(LOST).or_else(|| of(LOST_IF_WORKED).filter(|_| worked))?;
    Some(Fact {
        cause: Cause::DeviceLost,
        severity: Severity::Critical,
        thread: call.thread,
        device: call.device,
        op: Some(call.op),
        window: moment(call.end()),
        what: format!("{} returned {} ({name})", call.op.name(), call.ret),
        number: call.ret as u64,
    })
}
