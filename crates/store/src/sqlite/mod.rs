//! The SQLite trace database of `ingero` (up to 0.17), both ways: its file becomes a session, a session becomes its file.
//!
//! One row of `events` is one call, off-CPU interval, block request, retransmit or moment in a process's life; beside
//! them are stacks, samples of the machine, counts by minute, annotations, and what is known of a run. [`TraceDb`] reads
//! every shape that the file has had (columns that came later may be missing, ids may be numbers), in constant memory,
//! and changes nothing: no migration, no `-wal` or `-shm` beside it. [`export`] writes the newest shape.
//!
//! What the file says otherwise than we do:
//!
//! - Times are Unix ns. An imported session's boot clock *is* Unix time. Calls carry their entry; block requests, socket
//!   calls and `sched_switch` the end of what they last.
//! - `cudaLaunchKernel` has its stream in `arg1` (we: the packed grid), `cudaStreamSync` in `arg0`; other calls have none.
//! - 64-bit values are SQLite's signed ones, bit for bit.
//! - A driver call inside a runtime call is a row of its own: [`nesting`] finds it again by its time.
//! - A `sched_switch` does not say why the thread was away, and its `pid` may be the thread's: `survey` says whose it is.
//! - Not every event is a row: those that were usual are only counted, in `event_aggregates` ([`Totals`]).
//! - The conclusions of another engine (`causal_chains`) are not taken over: ours are drawn from the events.
//!
//! This is the one place of the crate that reaches the disk other than through [`crate::fs::Fs`]: SQLite opens its files
//! itself. It deliberately knows nothing of who asks, of progress bars, and of the engine.

mod aggregates;
mod export;
mod import;
mod map;
mod nesting;
mod open;
mod schema;
mod survey;
mod table;
mod tally;

pub use aggregates::Totals;
pub use export::{Chain, ExportError, Step, export};
pub use import::Imported;
pub use open::{TraceDb, TraceDbError, is_sqlite};
pub use survey::{Node, Survey};
pub use tally::{Skipped, Tally};
