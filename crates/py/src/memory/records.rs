//! Records and sessions of the telemetry format, as Python's dicts.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use warptrace_formats::memory::{
    LoadOptions, Strictness, Upgrade, Version, load_sessions, parse_summary, projected, record,
    stable_legacy_id, summary_object,
};
use warptrace_model::{Identity, MemoryEvent, Object, StatedIdentity, Value};

use super::exact::{dict, from_python, int};
use crate::tables::{load_error, with_place};

fn refused(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// A record of any version, in the form of the newest. Raises ValueError with the first rule that it breaks.
#[pyfunction]
#[pyo3(signature = (
    record, *, permissive_legacy=true, default_collector=None, default_sampling_interval_ms=None, default_session_id=None
))]
pub(super) fn memory_record<'py>(
    py: Python<'py>,
    record: &Bound<'py, PyAny>,
    permissive_legacy: bool,
    default_collector: Option<&str>,
    default_sampling_interval_ms: Option<&Bound<'py, PyAny>>,
    default_session_id: Option<&str>,
) -> PyResult<Bound<'py, PyDict>> {
    let mut upgrade = Upgrade {
        permissive_legacy,
        default_session_id: default_session_id.map(Arc::from),
        ..Upgrade::default()
    };
    if let Some(collector) = default_collector {
        upgrade.default_collector = collector.into();
    }
    if let Some(interval) = default_sampling_interval_ms {
        let Value::Int(interval) = from_python(interval)? else {
            return Err(refused("sampling_interval_ms must be an integer"));
        };
        upgrade.default_sampling_interval_ms = interval;
    }
    newest(py, &upgrade.event(from_python(record)?).map_err(refused)?)
}

fn newest<'py>(py: Python<'py>, event: &MemoryEvent) -> PyResult<Bound<'py, PyDict>> {
    dict(py, &record(event, Version::V4).map_err(refused)?)
}

/// A record as the view of it that no backend shows in. Raises ValueError as `memory_record`.
#[pyfunction]
pub(super) fn memory_projected<'py>(
    py: Python<'py>,
    record: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let event = Upgrade::default().event(from_python(record)?);
    dict(py, &projected(&event.map_err(refused)?, None))
}

/// Who a process is among those of its job: `job_id`, `rank`, `local_rank` and `world_size`, of what was stated, `metadata`, and
/// the variables of launchers in `env`. Raises ValueError for what cannot be.
#[pyfunction]
#[pyo3(signature = (stated, *, metadata=None, env=None))]
pub(super) fn memory_identity<'py>(
    py: Python<'py>,
    stated: &Bound<'py, PyDict>,
    metadata: Option<&Bound<'py, PyAny>>,
    env: Option<HashMap<String, String>>,
) -> PyResult<Bound<'py, PyDict>> {
    let object = |any: &Bound<'py, PyAny>| match from_python(any)? {
        Value::Object(object) => Ok(object),
        _ => Err(refused("not a mapping")),
    };
    let stated = object(stated)?;
    let metadata = metadata.map(object).transpose()?;
    let lookup = |name: &str| env.as_ref()?.get(name).cloned();
    let identity = Identity::resolve(
        StatedIdentity::of(&stated),
        metadata.as_ref(),
        env.is_some().then_some(&lookup),
    );
    let identity = identity.map_err(refused)?;
    let resolved = PyDict::new(py);
    resolved.set_item("job_id", identity.job_id.as_deref())?;
    resolved.set_item("rank", int(py, &identity.rank)?)?;
    resolved.set_item("local_rank", int(py, &identity.local_rank)?)?;
    resolved.set_item("world_size", int(py, &identity.world_size)?)?;
    Ok(resolved)
}

/// A session's summary as the format says it. Raises ValueError with the first rule that it breaks.
#[pyfunction]
pub(super) fn memory_summary<'py>(
    py: Python<'py>,
    summary: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let summary = parse_summary(&from_python(summary)?).map_err(refused)?;
    dict(py, &summary_object(&summary))
}

/// The id of what names no session, made of `parts`; None for parts that have none.
#[pyfunction]
pub(super) fn memory_legacy_id(parts: &Bound<'_, PyList>) -> PyResult<Option<String>> {
    let parts: Vec<Value> = parts
        .iter()
        .map(|part| from_python(&part))
        .collect::<PyResult<_>>()?;
    Ok(stable_legacy_id(&parts))
}

/// All sessions of a file or a sink's folder: `(summary, events, sources, warnings)` each, the one to look at first in front.
/// Raises ValueError for a bad record, OSError for what cannot be read.
#[pyfunction]
#[pyo3(signature = (path, *, permissive_legacy=true, events_key=None))]
pub(super) fn memory_sessions<'py>(
    py: Python<'py>,
    path: PathBuf,
    permissive_legacy: bool,
    events_key: Option<String>,
) -> PyResult<Bound<'py, PyList>> {
    let options = LoadOptions {
        strictness: Strictness::Strict,
        permissive_legacy,
        events_key,
    };
    let loaded = py.detach(|| with_place(&path, |place| load_sessions(place, &options)));
    let (sessions, _) = loaded.map_err(|e| load_error(&e))?;
    let list = PyList::empty(py);
    for session in sessions {
        let events = PyList::empty(py);
        for event in &session.events {
            events.append(newest(py, event)?)?;
        }
        let summary: Object = summary_object(&session.summary);
        list.append((
            dict(py, &summary)?,
            events,
            session.sources_loaded,
            session.warnings,
        ))?;
    }
    Ok(list)
}
