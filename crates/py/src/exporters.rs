//! The SDK's own exporters by name, and which exporters a program, a file and packages ask for.

use std::path::PathBuf;

use pyo3::exceptions::{PyLookupError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use warptrace_model::Value;
use warptrace_sdk::exporter::config::{ConfigError, Entry, Lookup, Registry, of_packages, resolve};

use crate::span::NativeExporter;
use crate::value;

/// Adds this subject's names to the native module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(create_exporter, module)?)?;
    module.add_function(wrap_pyfunction!(resolve_exporters, module)?)
}

fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn refused(e: &ConfigError) -> PyErr {
    match e {
        ConfigError::Unknown { .. } => PyLookupError::new_err(chain(e)),
        _ => PyValueError::new_err(chain(e)),
    }
}

/// An exporter of the SDK's, by its name and settings; a setting that is None is not said.
///
/// Raises LookupError for a name that is not known, ValueError for settings that are wrong.
#[pyfunction]
fn create_exporter(name: &str, config: &Bound<'_, PyDict>) -> PyResult<NativeExporter> {
    let mut config = value::object(config.as_any())?;
    let unsaid: Vec<Box<str>> = config
        .iter()
        .filter(|(_, value)| matches!(value, Value::Null))
        .map(|(key, _)| key.into())
        .collect();
    for key in unsaid {
        config.remove(&key);
    }
    let made = Registry::builtin().create(&Entry::new(name, config));
    made.map(NativeExporter::new).map_err(|e| refused(&e))
}

/// The entries that hold, as (class name, settings), those that are not enabled left out; and warnings.
///
/// `packages`: of each its name and what it asks for, or the text of why that cannot be had. `path`: a file; else the one that the
/// variable names. Raises ValueError for what is wrong with `direct`.
#[pyfunction]
#[pyo3(signature = (packages, path, direct))]
fn resolve_exporters<'py>(
    py: Python<'py>,
    packages: Vec<(String, Bound<'_, PyAny>)>,
    path: Option<PathBuf>,
    direct: Vec<Bound<'_, PyAny>>,
) -> PyResult<(Bound<'py, PyList>, Vec<String>)> {
    let mut asked = Vec::with_capacity(packages.len());
    for (name, entry) in packages {
        let entry = match entry.cast::<PyDict>() {
            Ok(entry) => Ok(value::object(entry.as_any())?),
            Err(_) => Err(entry.str()?.to_string()),
        };
        asked.push((name.into(), entry));
    }
    let (of_packages, mut warnings) = of_packages(asked);
    let (of_file, warning) = Lookup::new(path).load(|name| std::env::var(name).ok());
    warnings.extend(warning);
    let mut own = Vec::with_capacity(direct.len());
    for entry in direct {
        let entry = Entry::from_object(&value::object(&entry)?);
        own.push(entry.map_err(|e| refused(&e))?);
    }
    let resolved = resolve(of_packages, of_file, own).map_err(|e| refused(&e))?;
    let list = PyList::empty(py);
    for entry in resolved.iter().filter(|entry| entry.is_enabled()) {
        list.append((&*entry.class_name, value::to_python(py, &entry.config)?))?;
    }
    Ok((list, warnings.iter().map(|w| chain(w)).collect()))
}
