//! Which span is the latest here: the parent of the next one.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Span;

/// Remembers the latest span of a thread, a task, or whatever a language has for that.
pub trait Current: Send + Sync {
    /// The span that was set last in this context.
    fn latest(&self) -> Option<Span>;
    fn set(&self, span: Option<&Span>);
}

/// One for each thread; a new thread begins without. What an async task needs is [`super::InSpan`].
#[derive(Debug)]
pub struct ThreadCurrent {
    key: u64,
}

thread_local! {
    /// By the key of their [`ThreadCurrent`]; a program has one or two.
    static LATEST: RefCell<Vec<(u64, Span)>> = const { RefCell::new(Vec::new()) };
}

impl Default for ThreadCurrent {
    fn default() -> ThreadCurrent {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        ThreadCurrent {
            key: NEXT.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl Current for ThreadCurrent {
    fn latest(&self) -> Option<Span> {
        // A thread that ends has no place any more; then there is no latest.
        let find = |all: &RefCell<Vec<(u64, Span)>>| {
            let all = all.borrow();
            all.iter()
                .find(|(key, _)| *key == self.key)
                .map(|(_, span)| span.clone())
        };
        LATEST.try_with(find).ok().flatten()
    }

    fn set(&self, span: Option<&Span>) {
        let replaced = LATEST.try_with(|all| {
            let mut all = all.borrow_mut();
            let at = all.iter().position(|(key, _)| *key == self.key);
            match (at, span) {
                (Some(at), Some(span)) => Some(std::mem::replace(&mut all[at].1, span.clone())),
                (Some(at), None) => Some(all.swap_remove(at).1),
                (None, Some(span)) => {
                    all.push((self.key, span.clone()));
                    None
                }
                (None, None) => None,
            }
        });
        // Let go of outside of the borrow: what is attached to a span is somebody else's, and may come back here.
        drop(replaced);
    }
}
