//! Records of spans: a JSON object a line, written while a job runs, so that a crash leaves what had begun.
//!
//! ```text
//! {"type":"start","id":"<uuid>","name":"train.step","attributes":{"step":7},"start_event":{"name":"span_start","attributes":{"timestamp_msec":1750000000000}},"count":1,"pid":4242,…}
//! {"type":"event","span_id":"<uuid>","event":{"name":"cache.miss","attributes":{"rows":12,"timestamp_msec":1750000000010}},"count":2,"pid":4242,…}
//! {"type":"application_error","span_id":"<uuid>","event":{"name":"error","attributes":{"error_message":"…","timestamp_msec":1750000000020}},"count":3,"pid":4242,…}
//! {"type":"stop","id":"<uuid>","name":"train.step","attributes":{"step":7,"duration_msec":38},"stop_event":{"name":"span_stop","attributes":{…}},"count":4,"pid":4242,…}
//! {"type":"complete","id":"<uuid>","name":"load","start_event":{…},"stop_event":{…},"count":5,"pid":4242,…}
//! {"type":"telemetry_data_error","error":{"name":"telemetry_data_error","attributes":{…}},"count":6,"pid":4242,…}
//! ```
//!
//! That much is the format of the Python package `nv-one-logger-core` 2.3.1, written for its readers with [`Keys::OneLogger`],
//! byte for byte as its `json` would. [`Keys::All`] adds, behind those:
//!
//! | key | in | what |
//! |---|---|---|
//! | `trace_id` | `start`, `stop`, `complete` | 32 hexadecimal digits |
//! | `parent_id` | the same, absent in a root | the parent's `id`; of another library's span its 16 hexadecimal digits |
//! | `thread_id` | the same | thread of the operating system that started the span; absent when not known |
//! | `time_unix_ns` | all | when what the record tells was, exact ns since the Unix epoch; of `stop` and `complete` the end, which is as long after the start as the monotonic clock says |
//! | `duration_ns` | `stop`, `complete` | from start to end, by the monotonic clock |
//! | `dropped_attributes` | any, when not 0 | attributes left out because the record would have been longer than [`MAX_RECORD_BYTES`] |
//! | `dropped_events` | `stop`, `complete`, when not 0 | events that the span did not keep, each of which has a record all the same |
//! | `non_finite` | any, when there is one | see below |
//!
//! Every record has the time, and it is a number, so that `pandas.read_json(lines=True)` keeps it exact: that makes doubles of strings of
//! digits, and of integers in columns which some records lack; a duration is exact in a double up to 104 days.
//!
//! **Not a number.** Doubles that JSON cannot say are the strings `"NaN"`, `"Infinity"` and `"-Infinity"`, as in Protocol Buffers'
//! JSON, and `non_finite` lists the places of such values: `["attributes.loss"]`. Those three words anywhere in a value that is
//! listed are doubles. With [`Keys::OneLogger`] they are bare words, which Python reads and which are no JSON. Both are read.
//!
//! Reading: [`Lines`] makes lines of bytes, [`Record::decode`] a record of a line, [`Spans`] spans of records. A line that is
//! no record costs itself alone.
//!
//! [`log_line`] is the same record as one line of a log: `[type="start" | pid=4242 | attributes.step=7 | …]`.

mod decode;
mod encode;
pub mod log_line;
mod spans;

pub use self::decode::{Body, DecodeError, EventPart, Record, SpanPart, Stage};
pub use self::encode::{Begun, Ended, Keys, Moment, SpanView, Stamp, Writer};
pub use self::spans::{MAX_OPEN_SPANS, Spans, SpansCounts};
pub use crate::lines::{DEFAULT_LINE_LIMIT, Line, Lines};

use warptrace_model::SpanId;

/// A record's length at most, without its line feed; what readers take.
pub const MAX_RECORD_BYTES: usize = DEFAULT_LINE_LIMIT;
/// Of a name, as it is written; a longer one is cut at a character.
pub const MAX_NAME_BYTES: usize = 4 << 10;

/// What a span is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParentId {
    /// One of ours.
    Span(SpanId),
    /// Another library's, or another process's, of which only its id in OTLP is known.
    Remote(u64),
}

impl ParentId {
    /// The id in OTLP.
    pub const fn otlp(self) -> u64 {
        match self {
            ParentId::Span(id) => id.otlp(),
            ParentId::Remote(id) => id,
        }
    }
}

/// The first bytes of `text`, `limit` at most, that are whole characters.
pub fn start_of(text: &str, limit: usize) -> &str {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests;
