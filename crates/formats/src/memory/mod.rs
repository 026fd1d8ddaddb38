//! GPU memory telemetry: records of versions 2, 3, 4 and legacy, sessions, and the folders that sinks write.
//!
//! The format is that of the Python package `stormlog`, version 0.4.3, and everything that it wrote before. A record is a
//! JSON object; an event ([`warptrace_model::MemoryEvent`]) is what it says, in the newest version's form. Nothing here
//! opens a file.

mod capabilities;
mod encode;
mod error;
mod legacy;
pub mod open_json;
mod record;
mod session;

pub use encode::{NeedsV4, Version, record};
pub use error::{RecordError, Rule};
pub use record::Upgrade;
pub use session::{
    SummaryError, id_of_source, parse_status, parse_summary, stable_legacy_id, summary_object,
    uuid_text,
};
