//! GPU memory: records of the telemetry format, the sinks that they are written to, and what the driver says of a device.
//!
//! When to sample, and what a framework's allocator says, is Python's (`warptrace/memory.py`).

mod exact;
mod nvml;
mod records;
mod sink;

use pyo3::prelude::*;

/// Adds this subject's names to the native module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<nvml::Nvml>()?;
    module.add_class::<sink::MemorySink>()?;
    module.add_function(wrap_pyfunction!(records::memory_identity, module)?)?;
    module.add_function(wrap_pyfunction!(records::memory_legacy_id, module)?)?;
    module.add_function(wrap_pyfunction!(records::memory_projected, module)?)?;
    module.add_function(wrap_pyfunction!(records::memory_record, module)?)?;
    module.add_function(wrap_pyfunction!(records::memory_sessions, module)?)?;
    module.add_function(wrap_pyfunction!(records::memory_summary, module)?)
}
