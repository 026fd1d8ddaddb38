//! The running pipeline: sources → engine → store. It wires, and decides nothing.
//!
//! ```text
//!  capture thread ─────┐ bounded          ┌─► engine ─► units, findings ─┐
//!  (polls each source) ├────────► pipeline┤                             ├─► store
//!  sampler thread ─────┤ channel   thread └─► events ───────────────────┘   outgoing: outliers, metrics, spans, alerts
//!  symbols thread ─────┘ ◄── new user stacks, from the capture thread
//! ```
//!
//! The kernel's rings are the buffers; the channel between the threads is short. While it is full, sources are not asked: what
//! their rings cannot hold they count, and exact counts go on. The capture thread never waits for the disk. Closing it in order (sources, channel, engine, store) loses nothing that a source had.

mod annotate;
mod feeders;
mod health;
mod live;
mod load;
mod memory;
mod numbers;
mod outgoing;
mod outliers;
mod pipeline;
mod places;
mod rollover;
mod said;
mod servers;
mod symbols;
mod thinning;

pub use annotate::{
    AnnotationCounts, AnnotationReceiver, AnnotationSocket, Capture, CaptureSocket, ConnectionLoss,
    Limits as SocketLimits, LineLoss, SocketError, SocketOptions,
};
pub use health::Health;
pub use load::{DiskFolder, MAX_ENTRIES, MemoryLoad, load_memory};
pub use outgoing::{Kept, NewOutgoing, Outgoing};
pub use outliers::{OutlierCounts, OutlierSocket};
pub use pipeline::{AgentError, Config, Finished, Recording, Reload};
pub use rollover::Rollover;
