//! Annotations: a line of JSON that labels a moment or a span of the job.
//!
//! The protocol of the `ingero` agent and of the Python package `ingero-annotate` (0.1.1), version 1: newline-delimited
//! JSON over a stream, client to server only.
//!
//! ```text
//! {"labels":{"epoch":"3","step":"42"},"pid":4711,"ts":1700000000000000000}
//! {"labels":{"request_id":"r1"},"pid":4711,"span_start":1700000000000000000,"span_end":1700000001000000000}
//! ```
//!
//! Bytes go through [`Lines`] (where a line ends, and how long it may be), [`Draft::decode`] (what it says),
//! [`check_scope`] (whether its sender may say it of that process), and [`Draft::check`] (limits); a writer's way is
//! [`Line::encode`]. What is refused has a [`Refusal`], and the names of refusals are the names of counters.
//!
//! It does not know clocks, how pids are looked up, or how a socket is opened; only where they lie ([`Surroundings`]).

mod encode;
mod line;
mod place;
mod plain;
mod refusal;
mod scope;
mod stream;
mod switch;

pub use encode::encode_labels;
pub use line::{Draft, Line};
pub use place::{SOCKET_NAME, SOCKET_VARIABLE, Surroundings};
pub use refusal::Refusal;
pub use scope::{Target, check_scope};
pub use stream::{Lines, Oversized, RateWindow};
pub use switch::{
    CAPTURE_SOCKET_NAME, CAPTURE_SOCKET_VARIABLE, CaptureAnswer, CaptureRequest,
    MAX_CAPTURE_LINE_BYTES, capture_socket_beside,
};

/// Bytes of a line at most, its line feed included.
pub const MAX_LINE_BYTES: usize = 16384;

/// Lines a second and connection that existing agents take.
pub const USUAL_LINES_PER_SEC: u32 = 1000;
