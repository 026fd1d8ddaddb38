//! Why a line was refused.

use std::fmt;

use warptrace_model::LabelError;

/// Why a line was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Not JSON, not one value, or nested deeper than 10,000 levels.
    Syntax,
    /// JSON, but a member has the wrong type or a number does not fit.
    Type,
    NoLabels,
    TooManyLabels,
    BadKey,
    ValueTooLong,
    ControlCharacter,
    /// One end of a span without the other.
    SpanIncomplete,
    /// A span that ends before it starts.
    SpanReversed,
    /// The claimed start time is another incarnation's.
    StartTimeMismatch,
    /// Nothing is known of the process that is named.
    PidUnverifiable,
    /// The process that is named belongs to somebody else.
    PidNotOwned,
    /// Longer than [`super::MAX_LINE_BYTES`].
    LineTooLong,
}

impl Refusal {
    pub const ALL: [Refusal; 13] = [
        Refusal::Syntax,
        Refusal::Type,
        Refusal::NoLabels,
        Refusal::TooManyLabels,
        Refusal::BadKey,
        Refusal::ValueTooLong,
        Refusal::ControlCharacter,
        Refusal::SpanIncomplete,
        Refusal::SpanReversed,
        Refusal::StartTimeMismatch,
        Refusal::PidUnverifiable,
        Refusal::PidNotOwned,
        Refusal::LineTooLong,
    ];

    /// A short snake_case word.
    pub const fn name(self) -> &'static str {
        match self {
            Refusal::Syntax => "json_syntax",
            Refusal::Type => "json_type",
            Refusal::NoLabels => LabelError::None.name(),
            Refusal::TooManyLabels => LabelError::TooMany.name(),
            Refusal::BadKey => LabelError::BadKey.name(),
            Refusal::ValueTooLong => LabelError::ValueTooLong.name(),
            Refusal::ControlCharacter => LabelError::ControlCharacter.name(),
            Refusal::SpanIncomplete => "span_incomplete",
            Refusal::SpanReversed => "span_reversed",
            Refusal::StartTimeMismatch => "start_time_mismatch",
            Refusal::PidUnverifiable => "pid_unverifiable",
            Refusal::PidNotOwned => "pid_not_owned",
            Refusal::LineTooLong => "line_too_long",
        }
    }
}

impl From<LabelError> for Refusal {
    fn from(e: LabelError) -> Refusal {
        match e {
            LabelError::None => Refusal::NoLabels,
            LabelError::TooMany => Refusal::TooManyLabels,
            LabelError::BadKey => Refusal::BadKey,
            LabelError::ValueTooLong => Refusal::ValueTooLong,
            LabelError::ControlCharacter => Refusal::ControlCharacter,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Syntax => f.write_str("not one JSON object"),
            Refusal::Type => f.write_str(
                "a member of the wrong type (labels are strings, the rest plain integers)",
            ),
            Refusal::NoLabels => LabelError::None.fmt(f),
            Refusal::TooManyLabels => LabelError::TooMany.fmt(f),
            Refusal::BadKey => LabelError::BadKey.fmt(f),
            Refusal::ValueTooLong => LabelError::ValueTooLong.fmt(f),
            Refusal::ControlCharacter => LabelError::ControlCharacter.fmt(f),
            Refusal::SpanIncomplete => {
                f.write_str("a span needs both span_start and span_end, neither of them 0")
            }
            Refusal::SpanReversed => f.write_str("the span ends before it starts"),
            Refusal::StartTimeMismatch => {
                f.write_str("the process has another start time than the line says")
            }
            Refusal::PidUnverifiable => f.write_str("the process cannot be looked up"),
            Refusal::PidNotOwned => f.write_str("the process belongs to another user"),
            Refusal::LineTooLong => write!(
                f,
                "more than {} bytes with the line feed",
                super::MAX_LINE_BYTES
            ),
        }
    }
}

impl std::error::Error for Refusal {}
