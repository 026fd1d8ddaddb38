//! What can be wrong with a call.

use super::ExportError;

/// Why a recorder did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the recorder is closed")]
    Closed,
    #[error("the span is not open in this recorder: it was stopped, or is another's")]
    SpanNotActive,
    #[error("the span was stopped: nothing can be added to it")]
    SpanStopped,
    #[error("the span is still running: it has no duration yet")]
    SpanNotStopped,
    #[error("a filter names no span")]
    InvalidFilter,
    #[error("the start has no monotonic time")]
    InvalidStart,
    #[error("the time is more than 600 s in the future")]
    TimestampInFuture,
    #[error("the time is more than 600 s ago")]
    TimestampTooOld,
    #[error("attribute {name:?}: a list must be of one kind")]
    MixedList { name: Box<str> },
    #[error("attribute {name:?} is of another type")]
    WrongType { name: Box<str> },
    #[error("the exporter {exporter} could not be made ready")]
    Initialize {
        exporter: Box<str>,
        #[source]
        source: ExportError,
    },
    /// What a program's own rules for spans refused; `code` is for programs.
    #[error("{message}")]
    Rule {
        code: &'static str,
        message: Box<str>,
    },
}

impl Error {
    /// A word for programs, which stays.
    pub const fn code(&self) -> &'static str {
        match self {
            Error::Closed => "recorder_closed",
            Error::SpanNotActive => "span_not_active",
            Error::SpanStopped => "span_not_running",
            Error::SpanNotStopped => "span_not_stopped",
            Error::InvalidFilter => "invalid_span_filter",
            Error::InvalidStart => "invalid_start_timestamp",
            Error::TimestampInFuture => "timestamp_in_future",
            Error::TimestampTooOld => "timestamp_too_old",
            Error::MixedList { .. } => "list_attribute_mixed_types",
            Error::WrongType { .. } => "attribute_type_mismatch",
            Error::Initialize { source, .. } => source.code(),
            Error::Rule { code, .. } => code,
        }
    }

    /// Refused by a rule.
    pub fn rule(code: &'static str, message: impl Into<Box<str>>) -> Error {
        Error::Rule {
            code,
            message: message.into(),
        }
    }
}
