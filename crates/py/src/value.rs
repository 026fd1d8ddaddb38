//! Values that Python programs say of things, as the SDK keeps them, and back.

use pyo3::IntoPyObjectExt as _;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple};
use warptrace_model::{Int, Object, Value};

/// How deep a value may be; what is deeper is given as its text.
const DEPTH: u32 = 16;

/// The value, or the text of what the SDK has no kind for.
///
/// A scalar of NumPy or an array library counts as what its `item()` gives, unless it lies on a device: that would wait for it.
pub(crate) fn from_python(any: &Bound<'_, PyAny>) -> PyResult<Value> {
    nested(any, DEPTH)
}

fn nested(any: &Bound<'_, PyAny>, depth: u32) -> PyResult<Value> {
    if let Ok(text) = any.cast::<PyString>() {
        return Ok(Value::String(text.to_string_lossy().as_ref().into()));
    }
    if any.is_instance_of::<PyBool>() {
        return Ok(Value::Bool(any.is_truthy()?));
    }
    if any.is_instance_of::<PyInt>() {
        return match any.extract::<i64>() {
            Ok(n) => Ok(Value::from(n)),
            Err(_) => {
                let digits = any.str()?.to_string();
                Ok(Int::parse(&digits).map_or(Value::from(digits.as_str()), Value::Int))
            }
        };
    }
    if let Ok(x) = any.cast::<PyFloat>() {
        return Ok(Value::Float(x.value()));
    }
    if any.is_none() {
        return Ok(Value::Null);
    }
    if depth > 0 {
        let list = |items: Vec<Bound<'_, PyAny>>| {
            let items = items.iter().map(|item| nested(item, depth - 1));
            Ok(Value::Array(items.collect::<PyResult<_>>()?))
        };
        if let Ok(items) = any.cast::<PyList>() {
            return list(items.iter().collect());
        }
        if let Ok(items) = any.cast::<PyTuple>() {
            return list(items.iter().collect());
        }
        if let Ok(map) = any.cast::<PyDict>() {
            let mut pairs = Vec::with_capacity(map.len());
            for (key, value) in map {
                pairs.push((
                    key.str()?.to_string_lossy().as_ref().into(),
                    nested(&value, depth - 1)?,
                ));
            }
            return Ok(Value::Object(Object::from_pairs(pairs)));
        }
        if let Some(scalar) = host_scalar(any) {
            return nested(&scalar, 0);
        }
    }
    Ok(Value::from(any.str()?.to_string_lossy().as_ref()))
}

/// What a scalar of an array library holds, if that is in the host's memory.
fn host_scalar<'py>(any: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    let py = any.py();
    if any
        .getattr(pyo3::intern!(py, "ndim"))
        .ok()?
        .extract::<u32>()
        .ok()?
        != 0
    {
        return None;
    }
    if let Ok(device) = any.getattr(pyo3::intern!(py, "device")) {
        let device = device.str().ok()?.to_string();
        if device != "cpu" {
            return None;
        }
    }
    any.call_method0(pyo3::intern!(py, "item")).ok()
}

/// Pairs of a mapping, in its order.
pub(crate) fn object(any: &Bound<'_, PyAny>) -> PyResult<Object> {
    let mut pairs = Vec::new();
    if let Ok(map) = any.cast::<PyDict>() {
        pairs.reserve(map.len());
        for (key, value) in map {
            pairs.push((
                key.str()?.to_string_lossy().as_ref().into(),
                from_python(&value)?,
            ));
        }
    } else {
        for item in any.cast::<PyMapping>()?.items()? {
            let (key, value) = item.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
            pairs.push((
                key.str()?.to_string_lossy().as_ref().into(),
                from_python(&value)?,
            ));
        }
    }
    Ok(Object::from_pairs(pairs))
}

pub(crate) fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::Null => Ok(py.None().into_bound(py)),
        Value::Bool(b) => b.into_bound_py_any(py),
        Value::Int(n) => match n.to_i64() {
            Some(n) => n.into_bound_py_any(py),
            None => py.get_type::<PyInt>().call1((n.to_string(),)),
        },
        Value::Float(x) => x.into_bound_py_any(py),
        Value::String(text) => text.as_ref().into_bound_py_any(py),
        Value::Array(items) => {
            let list = PyList::empty(py);
            for item in items {
                list.append(to_python(py, item)?)?;
            }
            Ok(list.into_any())
        }
        Value::Object(object) => Ok(dict(py, object)?.into_any()),
    }
}

pub(crate) fn dict<'py>(py: Python<'py>, object: &Object) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (key, value) in object.iter() {
        dict.set_item(key, to_python(py, value)?)?;
    }
    Ok(dict)
}
