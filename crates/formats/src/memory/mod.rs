//! GPU memory telemetry: records of versions 2, 3, 4 and legacy, sessions, and the folders that sinks write.
//!
//! The format is that of the Python package `stormlog`, version 0.4.3, and everything that it wrote before. A record is a
//! JSON object; an event ([`warptrace_model::MemoryEvent`]) is what it says, in the newest version's form. Nothing here
//! opens a file.

mod capabilities;
mod csv;
mod document;
mod encode;
mod error;
mod folder;
mod legacy;
mod lines;
mod load;
mod manifest;
mod projection;
mod record;
mod rollup;
mod session;
mod shape;
mod sink;

pub use crate::open_json;
pub use csv::{MAX_ROW_BYTES, RowError, read_csv};
pub use document::{DocumentError, Item, MAX_RECORD_BYTES, read_document};
pub use encode::{NeedsV4, Version, record};
pub use error::{RecordError, Rule};
pub use folder::{Folder, Place, Plan, PlanError, Segment, plan};
pub use lines::{BadLine, Batch, Chunk, ChunkDecoder, Chunks, LineError};
pub use load::{
    LoadError, LoadOptions, Read, SessionInfo, Skipped, Strictness, Tally, list_sessions,
    load_events, load_sessions, note_bad_lines, read_events, upgrade_of,
};
pub use manifest::{
    FORMAT, MANIFEST, Manifest, SCHEMA_VERSION, SEGMENT_PREFIX, SEGMENT_SUFFIX, SegmentEntry,
    is_segment_file, looks_like_segment, segment_name,
};
pub use projection::{projected, record_id};
pub use record::Upgrade;
pub use rollup::{Coverage, ROLLUPS, SessionRollup, rollups_object, rollups_text};
pub use session::{
    SummaryError, id_of_source, parse_status, parse_summary, stable_legacy_id, summary_object,
    uuid_text,
};
pub use sink::{
    Now, SOURCE, Sink, SinkConfig, SinkConfigError, SinkCounts, SinkError, SinkFolder, SinkWriter,
};

#[cfg(test)]
mod tests;
