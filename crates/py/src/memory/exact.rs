//! Python's values as open data and back, each exactly: integers of any size, and strings with lone surrogates.
//!
//! What JSON has no word for is an error here. `crate::value` is for what people say of their spans, where nothing is.

use pyo3::IntoPyObjectExt as _;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple};
use warptrace_model::{Int, Object, Value, lone_surrogate, surrogate_half};

/// As deep as readers of the format go.
const DEPTH: u32 = 512;

pub(super) fn from_python(any: &Bound<'_, PyAny>) -> PyResult<Value> {
    nested(any, DEPTH)
}

fn nested(any: &Bound<'_, PyAny>, depth: u32) -> PyResult<Value> {
    if any.is_none() {
        return Ok(Value::Null);
    }
    if let Ok(text) = any.cast::<PyString>() {
        return Ok(Value::String(string(text)?.into()));
    }
    if any.is_instance_of::<PyBool>() {
        return Ok(Value::Bool(any.is_truthy()?));
    }
    if any.is_instance_of::<PyInt>() {
        if let Ok(n) = any.extract::<i64>() {
            return Ok(Value::from(n));
        }
        let text = any
            .py()
            .get_type::<PyInt>()
            .call_method1("__repr__", (any,))?;
        let digits = Int::parse(&text.str()?.to_string_lossy());
        return digits.map(Value::Int).ok_or_else(|| no_json(any));
    }
    if let Ok(x) = any.cast::<PyFloat>() {
        return Ok(Value::Float(x.value()));
    }
    if depth == 0 {
        return Err(PyTypeError::new_err(format!(
            "more than {DEPTH} levels deep"
        )));
    }
    let items: Vec<Bound<'_, PyAny>> = if let Ok(list) = any.cast::<PyList>() {
        list.iter().collect()
    } else if let Ok(tuple) = any.cast::<PyTuple>() {
        tuple.iter().collect()
    } else if let Ok(mapping) = any.cast::<PyMapping>() {
        let mut pairs = Vec::with_capacity(mapping.len()?);
        for pair in mapping.items()?.iter() {
            let (key, value) = pair.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
            let key = string(&key.str()?)?;
            pairs.push((key.into(), nested(&value, depth - 1)?));
        }
        return Ok(Value::Object(Object::from_pairs(pairs)));
    } else {
        return Err(no_json(any));
    };
    let items = items.iter().map(|item| nested(item, depth - 1));
    Ok(Value::Array(items.collect::<PyResult<_>>()?))
}

fn no_json(any: &Bound<'_, PyAny>) -> PyErr {
    let name = any.get_type().name().map(|name| name.to_string());
    let name = name.unwrap_or_else(|_| "this".to_owned());
    PyTypeError::new_err(format!("{name} is no value of JSON"))
}

fn string(text: &Bound<'_, PyString>) -> PyResult<String> {
    if let Ok(text) = text.to_str() {
        return Ok(text.to_owned());
    }
    let units = text.call_method1("encode", ("utf-16-le", "surrogatepass"))?;
    let units = units.cast::<PyBytes>()?.as_bytes().chunks_exact(2);
    let units = units.map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let chars = char::decode_utf16(units)
        .map(|c| c.or_else(|e| lone_surrogate(e.unpaired_surrogate()).ok_or(e)));
    let text = chars.collect::<Result<String, _>>();
    text.map_err(|e| PyTypeError::new_err(e.to_string()))
}

fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::Null => Ok(py.None().into_bound(py)),
        Value::Bool(b) => b.into_bound_py_any(py),
        Value::Int(n) => int(py, n),
        Value::Float(x) => x.into_bound_py_any(py),
        Value::String(text) => text_to_python(py, text),
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

pub(super) fn int<'py>(py: Python<'py>, n: &Int) -> PyResult<Bound<'py, PyAny>> {
    match n.to_i64() {
        Some(n) => n.into_bound_py_any(py),
        None => py.get_type::<PyInt>().call1((n.to_string(),)),
    }
}

pub(super) fn dict<'py>(py: Python<'py>, object: &Object) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (key, value) in object.iter() {
        dict.set_item(text_to_python(py, key)?, to_python(py, value)?)?;
    }
    Ok(dict)
}

fn text_to_python<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    if text.is_ascii() || !text.chars().any(|c| surrogate_half(c).is_some()) {
        return text.into_bound_py_any(py);
    }
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match surrogate_half(c) {
            Some(unit) => bytes.extend(unit.to_le_bytes()),
            None => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    bytes.extend(unit.to_le_bytes());
                }
            }
        }
    }
    PyBytes::new(py, &bytes).call_method1("decode", ("utf-16-le", "surrogatepass"))
}
