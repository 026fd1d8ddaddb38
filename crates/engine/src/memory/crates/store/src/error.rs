//! Why a session could not be written, opened or read.

use std::io;
use std::path::PathBuf;

use crate::column::ColumnError;
use crate::meta::FORMAT_VERSION;

/// Why a session could not be written, opened or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {what} {path:?}")]
    Io {
        /// A verb: `create`, `read`, `write`, …
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{0:?} is not a session: it has no session.json (`warptrace sessions` lists those there are)"
    )]
    NotASession(PathBuf),
    #[error("{path:?} is not a session of warptrace")]
    Foreign {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "{path:?} was made by a newer warptrace (format {found}, this one reads up to {FORMAT_VERSION}): upgrade"
    )]
    Newer { path: PathBuf, found: u64 },
    #[error("{0:?} is being written by another process")]
    Live(PathBuf),
    #[error("session {0} exists already")]
    Exists(String),
    #[error("no session {0:?} (`warptrace sessions` lists those there are)")]
    Unknown(String),
    #[error("{wanted:?} could be any of {}", found.join(", "))]
    Ambiguous { wanted: String, found: Vec<String> },
    #[error("no folder for sessions: set HOME or WARPTRACE_DATA, or name one with --data")]
    NoDataDir,
    #[error("a segment is damaged: {path:?}")]
    Segment {
        path: PathBuf,
        #[source]
        source: SegmentError,
    },
}

impl StoreError {
    pub(crate) fn io(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.into();
        move |source| StoreError::Io { what, path, source }
    }
}

/// What is wrong with a segment's file.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Arrow(#[from] arrow::error::ArrowError),
    #[error(transparent)]
    Parquet(#[from] parquet::errors::ParquetError),
    #[error(transparent)]
    Column(#[from] ColumnError),
    /// The begin of the file is not a schema, so nothing in it can be read.
    #[error("it has no whole schema")]
    NoSchema,
}
