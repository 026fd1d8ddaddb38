//! Recording that is switched on around a block.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use warptrace_sdk::capture::{Recorded, resume};

/// Adds this subject's names to the native module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<CaptureHold>()?;
    module.add_function(wrap_pyfunction!(resume_capture, module)?)
}

/// Holds recording on, where the recorder's answer says so, until it is released or nobody has it any more.
#[pyclass(module = "warptrace", frozen)]
struct CaptureHold {
    recorded: Mutex<Option<Recorded>>,
    /// `resumed`, `on`, `refused` or `nobody`.
    #[pyo3(get)]
    answer: &'static str,
}

#[pymethods]
impl CaptureHold {
    /// Lets go; once is enough.
    fn release(&self, py: Python<'_>) {
        let recorded = self
            .recorded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // The last one waits for the recorder's answer.
        py.detach(|| drop(recorded));
    }
}

/// Asks the recorder of this job, or one that runs on this machine, to record from now on.
#[pyfunction]
fn resume_capture(py: Python<'_>) -> CaptureHold {
    let recorded = py.detach(resume);
    CaptureHold {
        answer: recorded.answer().name(),
        recorded: Mutex::new(Some(recorded)),
    }
}
