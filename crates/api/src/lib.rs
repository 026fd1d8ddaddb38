//! The questions that any surface may ask, and their answers.
//!
//! Every answer type derives `Serialize`: these are our JSON, documented in `docs/json.md`. Surfaces (command line,
//! terminal, dashboard, MCP) turn a request into one of these questions and draw the answer; none computes anything.
//! The words of a finding (title, summary, advice) are made here, from its data, so that every surface says the same.

mod answer;
mod by_unit;
mod cost;
mod explain;
mod live;
mod memory;
mod words;

pub use answer::{
    Blame, Drop, Evidence, Explain, Finding, Gap, Key, Op, Part, Place, Profile, SCHEMA, Subject,
    Units, WindowUnix,
};
pub use by_unit::{
    BY_UNIT_SCHEMA, ByUnit, ByUnitQuestion, MemoryAt, NamedUnit, OVERLAP_CAVEAT, PartBeside,
    by_unit,
};
pub use cost::Cost;
pub use explain::{ExplainError, ExplainQuestion, explain};
pub use live::{HostContext, Live, LiveOp};
pub use memory::{
    LevelRange, MEMORY_SCHEMA, Memory, MemoryCheck, MemoryFinding, MemoryIssue, MemoryLevel,
    MemoryMarker, MemoryOutlier, MemoryPhase, MemoryPoint, MemoryQuestion, MemoryRanks, MemoryRise,
    MemorySeries, MemorySession, MemorySpan, Skip, memory, memory_answer, size_text, size_words,
    untold,
};
pub use words::{category_words, cause_words, command_text, duration_text};
