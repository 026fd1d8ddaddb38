//! Rules that state facts: something happened that needs no baseline to be told. Findings of kind `rule`, without blame.
//!
//! One file a rule, each with the same headings.

mod device_lost;
mod graph_capture;
mod graph_unused;
mod hang;
mod oom;
mod retransmits;

use warptrace_model::record::OpId;
use warptrace_model::{
    BootNanos, Cause, Device, Evidence, Finding, FindingKind, Incarnation, Severity, StreamScope,
    Thread, UnitKey, UnitKind, UnitSpan, Window,
};

use crate::incidents::{finding_id, place};
use crate::world::World;

pub(crate) use device_lost::device_lost;
pub(crate) use graph_capture::graph_capture;
pub(crate) use graph_unused::graph_unused;
pub(crate) use hang::hang;
pub(crate) use oom::oom;
pub(crate) use retransmits::Retransmits;

/// What a rule states.
pub(crate) struct Fact {
    pub(crate) cause: Cause,
    pub(crate) severity: Severity,
    pub(crate) thread: Thread,
    pub(crate) device: Option<Device>,
    pub(crate) op: Option<OpId>,
    pub(crate) window: Window,
    pub(crate) what: String,
    /// Tells facts of one process and cause apart: an address, a call's begin.
    pub(crate) number: u64,
}

/// The finding of a fact.
pub(crate) fn finding(world: &World, f: Fact) -> Finding {
    let process = world.find_process(f.thread.pid).map_or(
        Incarnation {
            pid: f.thread.pid,
            start_ticks: 0,
        },
        |p| p.incarnation(),
    );
    let key = UnitKey {
        process,
        device: f.device,
        stream: StreamScope::Many,
        kind: UnitKind::Call,
        class: 0,
    };
    let name = world.name(f.thread).to_owned();
    Finding {
        id: finding_id(&key, f.cause, FindingKind::Rule, f.number),
        kind: FindingKind::Rule,
        severity: f.severity,
        cause: f.cause,
        second: None,
        key,
        op: f.op,
        tid: f.thread.tid,
        comm: name.clone(),
        place: f.op.map(place),
        window: f.window,
        units: UnitSpan {
            first: 0,
            last: 0,
            slow: 0,
            worst: 0,
        },
        shifted: false,
        baseline_ns: 0,
        baseline_units: 0,
        excess_ns: 0,
        blame: Vec::new(),
        evidence: vec![Evidence {
            what: f.what,
            pid: (f.thread.pid.0 != 0).then_some(f.thread.pid.0),
            tid: (f.thread.tid.0 != 0).then_some(f.thread.tid.0),
            comm: (!name.is_empty()).then_some(name),
            path: None,
            start: f.window.start,
            dur: f.window.nanos(),
        }],
    }
}

/// A moment.
fn moment(at: BootNanos) -> Window {
    Window { start: at, end: at }
}
