//! Spans on their way out: a bounded queue, one thread behind it, and counts of all that became of them.

mod counts;
mod cut;
mod queue;
mod sender;
mod worker;

pub(crate) use self::counts::random;
pub use self::counts::{Counts, DropReason};
pub use self::queue::Batching;
pub use self::sender::SpanSender;
