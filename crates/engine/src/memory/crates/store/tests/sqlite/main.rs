//! The SQLite trace database: every shape that it has had, hostile ones, and both ways.
#![cfg(feature = "sqlite")]

mod database;
mod export;
mod hostile;
mod import;
mod read_only;
#[path = "../support/mod.rs"]
mod support;
