//! Read-only SQL over sessions, by DataFusion.
//!
//! Schema `raw` has the tables as they are stored: times are `boot_ns`, ops are numbers. Views without a schema speak names
//! and units: `time` (UTC), `ts_ns` (Unix), `layer`, `op`, `comm`. Over several sessions each gets a column `session`.
//! Streams that were not sealed, by a live recorder or by a crash, are read up to their last whole batch.
//!
//! Read-only by construction: a statement is planned, and only a plan without DDL, DML, COPY, SET or PREPARE is executed;
//! no function reads files, and spilling to disk is off. Rows, time and memory are limited. This crate knows how to ask,
//! not what the columns mean for a job; it is the only one that carries a SQL engine, and nothing but its program
//! `warptrace-sql` depends on it.

mod answer;
mod catalog;
mod functions;
mod query;

pub use answer::{Answer, Column};
pub use query::{Limits, QueryError, query};
