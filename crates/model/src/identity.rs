//! Who a process is within a distributed job, and where that is learnt from: what it says itself, what its records'
//! metadata say, and the variables that launchers set.
//!
//! It reads no environment: callers bring one, as a function from names to values.

use std::sync::Arc;

use crate::Int;

/// A process's place in a distributed job.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    pub job_id: Option<Arc<str>>,
    /// `0..world_size`.
    pub rank: Int,
    /// Rank on its own node, `0..world_size`.
    pub local_rank: Int,
    /// At least 1.
    pub world_size: Int,
}

impl Default for Identity {
    /// The only process of a job without a name.
    fn default() -> Identity {
        Identity {
            job_id: None,
            rank: Int::ZERO,
            local_rank: Int::ZERO,
            world_size: Int::ONE,
        }
    }
}

/// Why an identity was refused. The texts are those of the Python package `stormlog` 0.4.3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityError {
    NotAnInteger(&'static str),
    NotAString(&'static str),
    Blank(&'static str),
    BelowZero(&'static str),
    BelowOne(&'static str),
    NotBelowWorldSize(&'static str),
}

impl std::fmt::Display for IdentityError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            IdentityError::NotAnInteger(field) => write!(f, "{field} must be an integer"),
            IdentityError::NotAString(field) => write!(f, "{field} must be a string"),
            IdentityError::Blank(field) => write!(f, "{field} must be a non-empty string"),
            IdentityError::BelowZero(field) => write!(f, "{field} must be >= 0"),
            IdentityError::BelowOne(field) => write!(f, "{field} must be >= 1"),
            IdentityError::NotBelowWorldSize(field) => write!(f, "{field} must be < world_size"),
        }
    }
}

impl std::error::Error for IdentityError {}
