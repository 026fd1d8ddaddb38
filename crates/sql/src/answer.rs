//! An answer, as JSON and as a table for people.
//!
//! JSON keeps every bit: `ts_ns`, `boot_ns`, `*_unix_ns`, `total_ns`, pointers and ids are strings in every row, and so is
//! any other integer column that holds a value beyond 2^53, from where on JavaScript rounds. Times are RFC 3339 in UTC. A
//! float that JSON has no number for is `"NaN"`, `"Infinity"` or `"-Infinity"`.

use std::io::{self, Write};

use arrow::array::{Array, AsArray as _, RecordBatch};
use arrow::datatypes::{
    DataType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    SchemaRef, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde_json::{Map, Value, json};

/// The name and type of the JSON answer.
const SCHEMA: &str = "warptrace.query/v1";

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Answer {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    truncated: bool,
}

/// A column of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// Arrow's name of its type.
    pub data_type: String,
}

impl Answer {
    pub(crate) fn new(schema: SchemaRef, batches: Vec<RecordBatch>, truncated: bool) -> Answer {
        Answer {
            schema,
            batches,
            truncated,
        }
    }

    pub fn columns(&self) -> Vec<Column> {
        let fields = self.schema.fields().iter();
        let column = |f: &arrow::datatypes::FieldRef| Column {
            name: f.name().clone(),
            data_type: type_name(f.data_type()),
        };
        fields.map(column).collect()
    }

    pub fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// There were more rows than the limit allowed.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// `{"schema":"warptrace.query/v1","columns":[{"name","type"}],"rows":[[…]],"truncated"}`, in one line.
    pub fn json(&self) -> Value {
        let columns = self.columns().into_iter();
        let columns: Vec<Value> = columns
            .map(|c| json!({"name": c.name, "type": c.data_type}))
            .collect();
        let as_text: Vec<bool> = (0..columns.len()).map(|i| self.is_text(i)).collect();
        let mut rows = Vec::with_capacity(self.rows());
        for batch in &self.batches {
            for row in 0..batch.num_rows() {
                let values = batch.columns().iter().zip(&as_text);
                rows.push(Value::Array(
                    values.map(|(c, text)| value(c, row, *text)).collect(),
                ));
            }
        }
        json!({"schema": SCHEMA, "columns": columns, "rows": rows, "truncated": self.truncated})
    }

    /// Whether a column's integers are strings in JSON.
    fn is_text(&self, column: usize) -> bool {
        exact_by_name(self.schema.field(column).name())
            || self.batches.iter().any(|b| {
                let array = b.column(column);
                (0..array.len()).any(|row| is_beyond_double(array, row))
            })
    }

    /// Writes an aligned table, numbers to the right, and a line that says how many rows there are.
    ///
    /// # Errors
    /// What `out` says.
    pub fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        let fields = self.schema.fields();
        let numeric: Vec<bool> = fields.iter().map(|f| f.data_type().is_numeric()).collect();
        let mut lines: Vec<Vec<String>> = vec![fields.iter().map(|f| f.name().clone()).collect()];
        for batch in &self.batches {
            for row in 0..batch.num_rows() {
                lines.push(batch.columns().iter().map(|c| text(c, row)).collect());
            }
        }
        let width = |i: usize| {
            lines
                .iter()
                .map(|l| l[i].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..fields.len()).map(width).collect();
        for line in &lines {
            let mut padded = String::new();
            for ((cell, width), numeric) in line.iter().zip(&widths).zip(&numeric) {
                let gap = " ".repeat(width - cell.chars().count());
                let (left, right) = if *numeric {
                    (gap.as_str(), "")
                } else {
                    ("", gap.as_str())
                };
                padded.push_str(left);
                padded.push_str(cell);
                padded.push_str(right);
                padded.push_str("  ");
            }
            writeln!(out, "{}", padded.trim_end())?;
        }
        let rows = self.rows();
        let s = if rows == 1 { "" } else { "s" };
        let more = if self.truncated {
            ", more left out (--max-rows)"
        } else {
            ""
        };
        writeln!(out, "({rows} row{s}{more})")
    }
}

/// Types by names that do not change with the engine's choice of layout.
fn type_name(t: &DataType) -> String {
    match t {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "Utf8".to_owned(),
        DataType::Dictionary(_, value) => type_name(value),
        DataType::Timestamp(..) => "Timestamp".to_owned(),
        DataType::List(f) | DataType::LargeList(f) | DataType::ListView(f) => {
            format!("List<{}>", type_name(f.data_type()))
        }
        DataType::Struct(_) => "Struct".to_owned(),
        other => other.to_string(),
    }
}

fn exact_by_name(name: &str) -> bool {
    matches!(
        name,
        "ts_ns" | "boot_ns" | "total_ns" | "stream" | "arg0" | "arg1" | "ip" | "id"
    ) || name.ends_with("_unix_ns")
}

/// The integer in a row; `None` for null and for what is none.
fn integer(array: &dyn Array, row: usize) -> Option<i128> {
    if array.is_null(row) {
        return None;
    }
    Some(match array.data_type() {
        DataType::Int8 => array.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt8 => array.as_primitive::<UInt8Type>().value(row).into(),
        DataType::UInt16 => array.as_primitive::<UInt16Type>().value(row).into(),
        DataType::UInt32 => array.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).into(),
        _ => return None,
    })
}

fn is_beyond_double(array: &dyn Array, row: usize) -> bool {
    const EXACT: i128 = 1 << 53;
    integer(array, row).is_some_and(|v| !(-EXACT..=EXACT).contains(&v))
}

fn float(v: f64) -> Value {
    match serde_json::Number::from_f64(v) {
        Some(number) => Value::Number(number),
        None if v.is_nan() => json!("NaN"),
        None if v > 0.0 => json!("Infinity"),
        None => json!("-Infinity"),
    }
}

fn value(array: &dyn Array, row: usize, text_integers: bool) -> Value {
    if array.is_null(row) || array.data_type() == &DataType::Null {
        return Value::Null;
    }
    if let Some(v) = integer(array, row) {
        if text_integers || is_beyond_double(array, row) {
            return Value::String(v.to_string());
        }
        return json!(v as i64);
    }
    match array.data_type() {
        DataType::Boolean => json!(array.as_boolean().value(row)),
        DataType::Float16 => float(array.as_primitive::<Float16Type>().value(row).to_f64()),
        DataType::Float32 => float(array.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row)),
        DataType::List(_) => list(&array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => list(&array.as_fixed_size_list().value(row)),
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns().iter();
            let values = fields.iter().zip(columns).map(|(f, c)| {
                let exact = exact_by_name(f.name());
                (f.name().clone(), value(c, row, exact))
            });
            Value::Object(values.collect::<Map<_, _>>())
        }
        _ => Value::String(text(array, row)),
    }
}

fn list(values: &dyn Array) -> Value {
    Value::Array((0..values.len()).map(|i| value(values, i, false)).collect())
}

/// A cell for people; null is empty.
fn text(array: &dyn Array, row: usize) -> String {
    let options = FormatOptions::default().with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.9fZ"));
    match ArrayFormatter::try_new(array, &options) {
        Ok(formatter) => formatter.value(row).to_string(),
        Err(e) => format!("({e})"),
    }
}
