//! The words of warptrace: clocks, ids, events, units, findings.
//!
//! Plain values that every other crate shares. No I/O, no clock, no encoding: `store` and `api` own their encodings of
//! these types, and nothing here is serialisable. A *record* is a backend's bytes ([`warptrace_record`]); an *event* is
//! the same once typed; a *finding* is what a person sees.

mod annotation;
pub mod cost;
mod event;
mod finding;
mod identity;
mod ids;
pub mod inference;
mod memory;
pub mod metric;
mod nearest;
pub mod number_text;
mod request;
pub mod serving;
mod span;
mod stats;
mod time;
mod unit;
mod value;

pub use annotation::{Annotation, LabelError, Labels, Sender};
pub use event::{
    BlockIo, Call, CallFlags, CaptureSwitched, Event, FilePath, FileType, GpuSample, IoKind, Loss,
    LossReason, OffCpu, ProcessEvent, ProcessInfo, Reclaim, Retransmit, Slice, Stretch,
    SystemSample, ThreadName, Wake, Waker,
};
pub use finding::{
    Blame, Cause, Evidence, Finding, FindingId, FindingKind, Gap, GapCode, Place, Severity,
    UnitSpan,
};
pub use identity::{Environment, Identity, IdentityError, StatedIdentity};
pub use ids::{Cpu, Device, Incarnation, Pid, Stream, Thread, Tid};
pub use memory::{
    Capabilities, LoadedSession, MemoryEvent, MemoryVersion, Metadata, SessionStatus,
    SessionSummary, default_session,
};
pub use nearest::nearest;
pub use request::{Request, RequestOutcome};
pub use span::{SpanContext, SpanEvent, SpanId, SpanRecord};
pub use stats::{Histogram, OpCount, OpKey};
pub use time::{BootNanos, ClockAnchor, UnixNanos, Window};
pub use unit::{Category, NamedBy, Parts, Profile, StreamScope, Unit, UnitKey, UnitKind, UnitName};
pub use value::{Int, Object, Value, lone_surrogate, surrogate_half};

pub use warptrace_record as record;
