//! Which span is the latest here: the parent of the next one.

use std::sync::Arc;

use super::Span;
use super::scopes::Scopes;

/// Remembers the latest span of a task, or whatever a language has for that, where a recorder's own way does not do: one for each
/// thread, where a new thread begins without. What an async task needs is [`super::InSpan`].
pub trait Current: Send + Sync {
    /// The span that was set last in this context.
    fn latest(&self) -> Option<Span>;
    fn set(&self, span: Option<&Span>);
}

/// Where a recorder remembers.
pub(super) enum Contexts {
    Threads(Arc<Scopes>),
    Own(Box<dyn Current>),
}

impl Contexts {
    /// Each span that is made for this is told to `opened`.
    pub(super) fn latest(&self, opened: &dyn Fn(&Span)) -> Option<Span> {
        match self {
            Contexts::Threads(scopes) => scopes.latest(opened),
            Contexts::Own(current) => current.latest(),
        }
    }

    pub(super) fn set(&self, span: Option<&Span>) {
        match self {
            Contexts::Threads(scopes) => scopes.set_latest(span),
            Contexts::Own(current) => current.set(span),
        }
    }

    /// After `span`, if that is the latest, comes the nearest active one that it is a part of.
    pub(super) fn leave(&self, span: &Span) {
        match self {
            Contexts::Threads(scopes) => scopes.leave(span),
            Contexts::Own(current) => {
                if current.latest().is_some_and(|latest| latest == *span) {
                    current.set(span.nearest_active());
                }
            }
        }
    }
}
