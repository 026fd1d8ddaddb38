//! The run log's vectors.
