//! Spans and events of a program: what it does, when, and in what.
//!
//! ```
//! use warptrace_sdk::span::{Attributes, Recorder, MemoryExporter};
//!
//! # fn main() -> Result<(), warptrace_sdk::span::Error> {
//! let kept = MemoryExporter::default();
//! let recorder = Recorder::builder().exporter("memory", Box::new(kept.clone())).build()?;
//! {
//!     let step = recorder.span("train.step");
//!     step.set("loss", 0.25);
//!     recorder.in_span("train.forward", |forward| {
//!         forward.event("cache.miss", Attributes::new().with("rows", 12_i64));
//!     });
//! }
//! recorder.close(std::time::Duration::from_secs(5))?;
//! assert_eq!(kept.finished().len(), 2);
//! # Ok(())
//! # }
//! ```
//!
//! Three ways of use: by scope, as above; by hand ([`Recorder::start`], [`Recorder::stop`]); and by what a training job does
//! ([`crate::training`]). Recording never waits for an exporter, unless that is a direct one; it never panics; and it fails
//! only where [`Strategy::Propagate`] asks for that. What an exporter refused, a queue dropped or a call got wrong is counted
//! ([`Recorder::counts`]), and each exporter is told once that what it has is not all.
//!
//! A forked child goes on with copies of the spans that were open, and with queues of its own, which begin empty.

mod attributes;
mod current;
mod error;
pub mod event;
mod exporter;
mod id;
mod memory;
mod queue;
mod recorder;
mod scope;
mod scopes;
#[expect(
    clippy::module_inception,
    reason = "the span itself, among what spans need"
)]
mod span;
mod time;

pub use attributes::{Attributes, TEXT_LIMIT_BYTES};
pub use current::Current;
pub use error::Error;
pub use event::{DataLoss, Event, Exception};
pub use exporter::{ExportError, Exporter, FailureLimit, Interest};
pub use memory::MemoryExporter;
pub use queue::QUEUE_ITEMS;
pub use recorder::{
    Builder, Counts, End, ExporterCounts, Filter, Recorder, Rules, Start, Strategy, WeakRecorder,
};
pub use scope::{InSpan, Scope, global, install};
pub use span::{EVENTS_KEPT, Parent, Span};
pub use time::{Clock, SystemClock, Timestamp, WINDOW_SECS};
