//! Sessions on disk: Arrow streams while they are written, Parquet once sealed.
//!
//! ```text
//! <data>/sessions/<id>/session.json              what the session is: format version, identity, clock offsets, sources
//! <data>/sessions/<id>/lock                      held by the process that writes it
//! <data>/sessions/<id>/<table>/000042.arrows     the segment being written: readable up to its last batch after a crash
//! <data>/sessions/<id>/<table>/000041.parquet    sealed: zstd, delta-encoded times, statistics for pruning
//! ```
//!
//! Every table is plain Arrow and Parquet, so that pandas, Polars, DuckDB, Spark and ClickHouse read it without us.
//! Merging sessions is copying their directories. This crate knows the tables and keeps them safe; it decides nothing
//! about what is worth storing, takes no clock, starts no thread, and reaches the disk only through [`fs::Fs`]. SQL over
//! sessions is `warptrace-sql`'s.

mod column;
mod device;
mod dirs;
mod error;
pub mod fs;
mod list;
mod memory;
mod meta;
mod request;
mod rows;
mod segment;
mod serving;
mod session;
#[cfg(feature = "sqlite")]
pub mod sqlite;
mod table;
mod writer;

pub use column::ColumnError;
pub use device::StoredDevice;
pub use dirs::{DataDir, Env, SYSTEM_DATA};
pub use error::{SegmentError, StoreError};
pub use list::{Pruned, Retention, SessionSummary, find, list_sessions, newest, prune, remove};
pub use memory::MemoryLevel;
pub use meta::{FORMAT_VERSION, Identity, Part, SessionMeta};
pub use request::StoredRequest;
pub use rows::{FLAG_THREAD, Frame, Stack, StoredLoss, TABLES, table_schema};
pub use serving::StoredReading;
pub use session::{EventStream, OpStats, Session, State, TableFiles, UnsealedStream};
pub use writer::{Limits, SessionWriter};
