//! Settings of a recorder: flags before variables, variables before the file, the file before what `--inference` changes, that before
//! the defaults.
//!
//! [`settings`] has them all, [`layers`] says which source comes before which, and nothing else does. [`of_trace`] and [`of_record`]
//! may be called again while a recorder runs; sections are compared to see what changed.

mod command;
mod file;
mod kinds;
mod layers;
mod reference;
mod settings;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use command::run;
pub(crate) use kinds::Url;
pub(crate) use layers::{Loaded, Origin, of_record, of_replay, of_trace};
pub(crate) use settings::{
    Classifier, Inference, JsonLines, LogLevel, Receive, ScrapeWhich, Settings, Store,
};
pub(crate) use tree::{Leaf, Node};
