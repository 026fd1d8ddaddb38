//! Whether a recording does its work: read by a health endpoint and by a watchdog, while the pipeline may hang.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use warptrace_capture::clock;
use warptrace_model::BootNanos;
use warptrace_store::StoreError;

/// A pipeline that made no turn for so long hangs; it makes ten a second when nothing happens.
const HANGS_AFTER_NANOS: u64 = 10_000_000_000;

/// What the pipeline last said of itself. Cost: an atomic store a turn.
#[derive(Debug)]
pub struct Health {
    turned: AtomicU64,
    is_failing: AtomicBool,
    /// Why the store takes nothing, while it does not.
    store: Mutex<String>,
}

impl Health {
    pub(crate) fn new(now: BootNanos) -> Health {
        Health {
            turned: AtomicU64::new(now.0),
            is_failing: AtomicBool::new(false),
            store: Mutex::default(),
        }
    }

    /// The pipeline did a piece of its work, and so stands the store.
    pub(crate) fn turn(&self, now: BootNanos, store: Option<&StoreError>) {
        self.turned.store(now.0, Ordering::Relaxed);
        if self.is_failing.load(Ordering::Relaxed) == store.is_some() {
            return;
        }
        if let Some(error) = store {
            let source = std::error::Error::source(error).map(|source| format!(": {source}"));
            let text = format!("{error}{}", source.unwrap_or_default());
            *self.store.lock().unwrap_or_else(PoisonError::into_inner) = text;
        }
        self.is_failing.store(store.is_some(), Ordering::Relaxed);
    }

    /// When the pipeline last did a piece of its work. One that hangs stays where it is.
    pub fn turned(&self) -> BootNanos {
        BootNanos(self.turned.load(Ordering::Relaxed))
    }

    /// Whether all is well.
    ///
    /// # Errors
    /// What is not, in words: the pipeline made no turn for 10 s, or the store takes nothing.
    pub fn check(&self) -> Result<(), String> {
        let still = clock::boot_now().since(self.turned());
        if still >= HANGS_AFTER_NANOS {
            let secs = still / 1_000_000_000;
            return Err(format!("the recording made no progress for {secs} s"));
        }
        if self.is_failing.load(Ordering::Relaxed) {
            let why = self.store.lock().unwrap_or_else(PoisonError::into_inner);
            return Err(format!("what is recorded cannot be stored: {why}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_that_hangs_or_cannot_store_is_not_well() {
        let now = clock::boot_now();
        let health = Health::new(now);
        assert_eq!(health.check(), Ok(()));
        let full = StoreError::Io {
            what: "write",
            path: "/x".into(),
            source: std::io::Error::other("no space"),
        };
        health.turn(now, Some(&full));
        let wrong = health.check().unwrap_err();
        assert!(wrong.contains("no space"), "{wrong}");
        health.turn(now, None);
        assert_eq!(health.check(), Ok(()));
        health.turn(BootNanos(now.0 - HANGS_AFTER_NANOS), None);
        let wrong = health.check().unwrap_err();
        assert!(wrong.contains("no progress for 10 s"), "{wrong}");
    }
}
