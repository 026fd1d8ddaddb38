//! `warptrace._native`: the part of the Python package that is Rust. It converts arguments, lets other threads run while
//! it may wait, and maps errors to exceptions; what is done is done by the SDK and the formats.
//!
//! It knows nothing of frameworks, and nobody imports it but `python/warptrace`, which is typed and documented.
//! Each subject registers its names in a submodule's file; nothing else stands here.

mod annotation;
mod capture;
mod exporters;
mod memory;
mod run_log;
mod said;
mod span;
mod tables;
mod training;
mod value;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    annotation::register(module)?;
    capture::register(module)?;
    exporters::register(module)?;
    memory::register(module)?;
    run_log::register(module)?;
    span::register(module)?;
    tables::register(module)?;
    training::register(module)
}
