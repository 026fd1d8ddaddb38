//! The capture of a CUDA graph failed.
//!
//! *What it says*: `cudaStreamEndCapture` returned an error: MEDIUM; for want of memory (2): HIGH.
//! *Evidence needed*: the return code.
//! *Looks like but is not*: a capture that was given up on purpose; it returns the same.
//! *Example*: a library that is initialised lazily inside the capture, and allocates there.
//! *Source*: CUDA Runtime API 12, `cudaStreamEndCapture`, `cudaErrorStreamCaptureInvalidated` (901) and its neighbours.

use warptrace_model::{Call, Cause, Severity};

use super::Fact;

/// `cudaErrorMemoryAllocation`.
const OUT_OF_MEMORY: i32 = 2;

pub(crate) fn graph_capture(call: &Call) -> Option<Fact> {
    if call.ret == 0 {
        return None;
    }
    let memory = call.ret == OUT_OF_MEMORY;
    Some(Fact {
        cause: if memory {
            Cause::Oom
        } else {
            Cause::Unexplained
        },
        severity: if memory {
            Severity::High
        } else {
            Severity::Medium
        },
        thread: call.thread,
        device: call.device,
        op: Some(call.op),
        window: call.window(),
        what: format!(
            "the capture of a CUDA graph failed: {} returned {}",
            call.op.name(),
            call.ret
        ),
        number: call.start.0,
    })
}
