//! Why a record is no event.

use std::fmt;

use warptrace_model::{IdentityError, Int};

/// Why a record was refused. The texts are those of the Python package `stormlog` 0.4.3, where it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("record must be a mapping")]
    NotAnObject,
    #[error("Legacy record conversion is disabled")]
    LegacyDisabled,
    #[error("Legacy record is missing a valid timestamp")]
    NoTimestamp,
    #[error("Unsupported schema_version: {0}")]
    UnsupportedVersion(Int),
    #[error("Missing required telemetry fields: {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    #[error("Unknown telemetry fields: {}", .0.join(", "))]
    Unknown(Vec<String>),
    #[error("{field} {rule}")]
    Field { field: &'static str, rule: Rule },
    #[error("{field} cannot exceed device_total_bytes")]
    AboveTotal { field: &'static str },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("metadata.memory_capabilities must be an object")]
    NoCapabilities,
    #[error("Missing memory capability fields: {}", .0.join(", "))]
    MissingCapabilities(Vec<&'static str>),
    #[error("Unknown memory capability fields: {}", .0.join(", "))]
    UnknownCapabilities(Vec<String>),
    #[error("metadata.memory_capabilities.{field} {rule}")]
    Capability { field: &'static str, rule: Rule },
    #[error("{counter} must be null when metadata.memory_capabilities.{flag} is false")]
    Unsupported {
        counter: &'static str,
        flag: &'static str,
    },
    #[error("allocator_change_bytes must be null when allocator allocated memory is unsupported")]
    ChangeUnsupported,
}

/// What a field must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    Integer,
    String,
    NonEmpty,
    Object,
    ObjectWhenProvided,
    Boolean,
    AtLeast(i64),
    NotNegativeWhenProvided,
    /// A finite number whose nanoseconds or bytes an integer can hold.
    Finite,
    /// Half of a surrogate pair is no text, and nothing can be made of it.
    Unicode,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::Integer => f.write_str("must be an integer"),
            Rule::String => f.write_str("must be a string"),
            Rule::NonEmpty => f.write_str("must be a non-empty string"),
            Rule::Object => f.write_str("must be an object"),
            Rule::ObjectWhenProvided => f.write_str("must be an object when provided"),
            Rule::Boolean => f.write_str("must be a boolean"),
            Rule::AtLeast(least) => write!(f, "must be >= {least}"),
            Rule::NotNegativeWhenProvided => f.write_str("must be >= 0 when provided"),
            Rule::Finite => f.write_str("must be finite"),
            Rule::Unicode => f.write_str("must be valid Unicode"),
        }
    }
}

impl RecordError {
    /// A short snake_case word, to count by.
    pub fn reason(&self) -> &'static str {
        match self {
            RecordError::NotAnObject => "not_an_object",
            RecordError::LegacyDisabled => "legacy_disabled",
            RecordError::NoTimestamp => "no_timestamp",
            RecordError::UnsupportedVersion(_) => "unsupported_version",
            RecordError::Missing(_) => "missing_field",
            RecordError::Unknown(_) => "unknown_field",
            RecordError::Field { .. } | RecordError::AboveTotal { .. } => "bad_field",
            RecordError::Identity(_) => "bad_identity",
            RecordError::NoCapabilities
            | RecordError::MissingCapabilities(_)
            | RecordError::UnknownCapabilities(_)
            | RecordError::Capability { .. }
            | RecordError::Unsupported { .. }
            | RecordError::ChangeUnsupported => "bad_capabilities",
        }
    }
}

pub(crate) fn bad(field: &'static str, rule: Rule) -> RecordError {
    RecordError::Field { field, rule }
}
