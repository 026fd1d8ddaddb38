//! Run logs of inference servers.

use pyo3::prelude::*;

/// Adds this subject's names to the native module.
pub(crate) fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
