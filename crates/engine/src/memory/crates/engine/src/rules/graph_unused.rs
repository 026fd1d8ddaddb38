//! A CUDA graph was instantiated and never launched.
//!
//! *What it says*: thirty seconds after `cudaGraphInstantiate` no launch of it was seen. LOW.
//! *Evidence needed*: the instantiation and every graph launch since.
//! *Looks like but is not*: a graph kept for a batch size that comes rarely; the finding says only what was seen.
//! *Example*: a server that captures forty batch sizes and uses three.
//! *Source*: CUDA Runtime API 12, "Graph Management".

use warptrace_model::record::OpId;
use warptrace_model::{BootNanos, Cause, Pid, Severity, Thread, Window};

use super::Fact;
use crate::thresholds::FactRules;
use crate::world::GraphExec;

/// The fact, once, when the graph `handle` of `pid` is not used at `now`.
pub(crate) fn graph_unused(
    pid: Pid,
    handle: u64,
    g: &mut GraphExec,
    now: u64,
    rules: &FactRules,
) -> Option<Fact> {
    if g.launched || g.told || now.saturating_sub(g.made) < rules.graph_unused_nanos {
        return None;
    }
    g.told = true;
    Some(Fact {
        cause: Cause::Unexplained,
        severity: Severity::Low,
        thread: Thread {
            pid,
            tid: g.made_by,
        },
        device: None,
        op: OpId::by_name("graphInstantiate"),
        window: Window::at(BootNanos(g.made), rules.graph_unused_nanos),
        what: format!("the CUDA graph {handle:#x} was instantiated and not launched"),
        number: handle ^ g.made,
    })
}
