//! The run log of inference servers and training runs, toy/v1: a JSON object a line, appended by one process or by many.
//!
//! ```text
//! {"kind":"run_start","schema":"toy/v1","t":0,"started_at":"2026-02-01T00:00:00Z","host":{…},"backend":{…},"model":{…},"config":{…}}
//! {"kind":"eval","phase":"serve","t":1.25,"name":"request","extra":{"model":"m","prompt_tokens":12,"completion_tokens":8,"latency_us":87000}}
//! {"kind":"error","phase":"serve","t":2,"name":"request","extra":{"model":"m","status":503,"code":"overloaded","message":"…","latency_us":15}}
//! {"kind":"run_end","t":9,"ended_at":"2026-02-01T00:00:09Z","reason":"completed","stats":{"requests":1,"errors":1,"tokens_out":8}}
//! ```
//!
//! Reading is [`Lines`] (bytes to lines, any chunks), [`Record`] (a line to a record), and [`Summary`] (records to totals).
//! Nothing grows with the file: memory is bounded by the longest line and by the caps of [`SummaryOptions`]. Of equal keys
//! the first wins, at every level and after unescaping. A line that is no record is counted and never stops the rest.
//!
//! Writing is [`encode`]: lines without repeated keys, whatever a caller hands over. Files, clocks and processes are not
//! known here; `warptrace-sdk` has the writer.

mod check;
pub mod encode;
mod histogram;
mod record;
mod repair;
mod summary;

pub use crate::lines::{DEFAULT_LINE_LIMIT, Line, Lines};
pub use crate::utc::{format_utc, parse_utc};
pub use check::{Checker, Problem, ProblemKind};
pub use histogram::Latencies;
pub use record::{Kind, Record, Runs, is_blank};
pub use repair::{Repaired, repair};
pub use summary::{Group, Groups, RunSummary, Summary, SummaryOptions, Totals};

/// The largest count that every reader of JSON keeps exact, 2^53 - 1; more is not a count.
pub const MAX_COUNT: u64 = (1 << 53) - 1;
