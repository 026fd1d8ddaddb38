//! What is said to the user: each thing once, by Python's logging (logger `warptrace`), and never an exception.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

/// Something that is worth a warning the first time, and a count from then on.
#[derive(Debug, Default)]
pub(crate) struct Once(AtomicBool);

impl Once {
    pub(crate) const fn new() -> Once {
        Once(AtomicBool::new(false))
    }

    /// Logs `what` as a warning, the first time only. A logger that fails is no reason to fail.
    pub(crate) fn warn(&self, py: Python<'_>, what: impl Display) {
        if self.0.swap(true, Ordering::Relaxed) {
            return;
        }
        let warned = py
            .import("logging")
            .and_then(|logging| logging.call_method1("getLogger", ("warptrace",)))
            .and_then(|logger| logger.call_method1("warning", ("%s", what.to_string())));
        drop(warned);
    }
}

/// `None` for an error of the caller's values, which a job must not feel; what ends a program (KeyboardInterrupt) goes on.
pub(crate) fn swallow<T>(py: Python<'_>, result: PyResult<T>) -> PyResult<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.is_instance_of::<PyException>(py) => Ok(None),
        Err(e) => Err(e),
    }
}
