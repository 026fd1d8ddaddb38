//! Requests that an inference server says it has answered, or failed to.

use crate::UnixNanos;

/// One request, from a run log. What a log does not say is `None`, never 0.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Request {
    /// Number of the run in its log, from 1; 0 before the first `run_start`.
    pub run: u32,
    /// When it was accepted: `end` less the latency.
    pub start: Option<UnixNanos>,
    /// When it was logged, after its answer: the start of the run and the record's time since. Logs say the start of a
    /// run in whole seconds, so that both are up to a second early; their differences within a run are exact.
    pub end: Option<UnixNanos>,
    /// Nanoseconds from the run's start to the record, as the log says it.
    pub since_start_nanos: Option<u64>,
    pub latency_nanos: Option<u64>,
    pub model: Option<Box<str>>,
    /// Who asked: `user:<id>`, `agent:<agent>/<id>`, or as the server writes it.
    pub principal: Option<Box<str>>,
    /// As the server names it; some name all of theirs alike.
    pub request_id: Option<Box<str>>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    pub outcome: RequestOutcome,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RequestOutcome {
    Served,
    Failed {
        /// HTTP status.
        status: Option<u16>,
        /// A short word, such as `overloaded`.
        code: Option<Box<str>>,
        message: Option<Box<str>>,
    },
}
