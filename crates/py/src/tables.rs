//! Tables of telemetry, given to Python as Arrow streams.

use pyo3::prelude::*;

/// Adds this subject's names to the native module.
pub(crate) fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
