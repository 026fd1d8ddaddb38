//! A call that waits for the device has not come back.
//!
//! *What it says*: a wait is open for longer than max(5 s, 20 × its op's median). CRITICAL, told while it hangs.
//! *Evidence needed*: the call in flight, as the backend sees it.
//! *Looks like but is not*: a wait for a long batch, which its op's median knows; a debugger that stopped the process.
//! *Example*: a kernel that never ends, a collective that one rank never entered.
//! *Source*: calls in flight of both backends.

use warptrace_model::record::{Class, Wait};
use warptrace_model::{Call, Cause, Severity};

use super::Fact;
use crate::incidents::time;
use crate::thresholds::FactRules;

/// `median`: of the op's calls that came back, ns, and their number.
pub(crate) fn hang(call: &Call, median: Option<(u64, u64)>, rules: &FactRules) -> Option<Fact> {
    let op = call.op.get();
    let waits = matches!(
        op.wait,
        Wait::Stream | Wait::Device | Wait::Event | Wait::Copy
    );
    if !waits && op.class != Class::Collective || call.flags.nested() {
        return None;
    }
    let usual = median.map_or(0, |(m, _)| m.saturating_mul(rules.hang_factor));
    if call.dur < usual.max(rules.hang_nanos) {
        return None;
    }
    let seldom = match median {
        Some((m, n)) => format!("; its {n} calls before took {} in the middle", time(m)),
        None => String::new(),
    };
    Some(Fact {
        cause: Cause::Hang,
        severity: Severity::Critical,
        thread: call.thread,
        device: call.device,
        op: Some(call.op),
        window: call.window(),
        what: format!(
            "{} has not returned for {}{seldom}",
            op.name,
            time(call.dur)
        ),
        number: call.start.0,
    })
}
