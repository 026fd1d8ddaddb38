//! Where records come from: one file a source behind one trait.
//!
//! A source starts, gives batches, stops, and says what it lost. It knows nothing of units or findings. `unsafe` is
//! allowed here, in the modules that speak to the kernel and to shared memory.

pub mod clock;
pub mod discover;
pub mod ebpf;
mod elf;
pub mod engines;
pub mod heap;
mod maps;
pub mod pollers;
pub mod preload;
pub mod proc;
pub mod symbols;
mod sys;

use warptrace_model::{CaptureSwitched, FilePath, Gap, Loss, OpCount, ProcessInfo, ThreadName};
use warptrace_record::Record;

use crate::symbols::UserStack;

/// What a source saw since it was last asked.
#[derive(Debug, Default)]
pub struct Batch {
    /// As their producers wrote them; ordered per producer only.
    pub records: Vec<Record>,
    /// Calls counted exactly, as differences.
    pub counts: Vec<OpCount>,
    pub names: Vec<ThreadName>,
    pub processes: Vec<ProcessInfo>,
    pub paths: Vec<FilePath>,
    /// Differences since the last batch.
    pub losses: Vec<Loss>,
    /// Said once each.
    pub gaps: Vec<Gap>,
    /// User stacks that records name.
    pub stacks: Vec<UserStack>,
    /// In order.
    pub switched: Vec<CaptureSwitched>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        let Batch {
            records,
            counts,
            names,
            processes,
            paths,
            losses,
            gaps,
            stacks,
            switched,
        } = self;
        records.is_empty()
            && counts.is_empty()
            && names.is_empty()
            && processes.is_empty()
            && paths.is_empty()
            && losses.is_empty()
            && gaps.is_empty()
            && stacks.is_empty()
            && switched.is_empty()
    }

    pub fn clear(&mut self) {
        let Batch {
            records,
            counts,
            names,
            processes,
            paths,
            losses,
            gaps,
            stacks,
            switched,
        } = self;
        records.clear();
        counts.clear();
        names.clear();
        processes.clear();
        paths.clear();
        losses.clear();
        gaps.clear();
        stacks.clear();
        switched.clear();
    }
}

/// Why a source could not start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("{what}")]
    Refused {
        /// What was refused, to what, and what to do about it.
        what: String,
        #[source]
        source: Option<std::io::Error>,
    },
}

/// A running capture backend.
pub trait Source: Send {
    /// `ebpf` or `preload`; as in the session's list of sources and in drops.
    fn name(&self) -> &'static str;

    /// Adds what came since the last call to `out`. Returns at once when there is nothing.
    ///
    /// # Errors
    /// [`SourceError`] when the source can give nothing more. A lost record is not an error, but a [`Loss`].
    fn poll(&mut self, out: &mut Batch) -> Result<(), SourceError>;

    /// Calls that have not returned yet, as records of [`warptrace_record::Kind::InFlight`].
    fn in_flight(&mut self) -> Vec<Record>;

    /// Detaches and frees everything; well under a second. Poll once more afterwards for what was left.
    fn stop(&mut self);
}
