//! Rows as Arrow columns: a table is declared once, as a struct, and its schema, its builder and its reader follow.
//!
//! Knows types and names of columns, nothing of what they mean. A column that a file lacks reads as null where the
//! field is an `Option`, which is how later versions add columns; any other lack or change of type is an error.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, ListArray, PrimitiveArray, RecordBatch, StringArray,
    StructArray, new_null_array,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    DataType, Field, Fields, Float64Type, Int32Type, Int64Type, Schema, SchemaRef, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};

/// Why a batch is not the table that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ColumnError {
    #[error("column {0} is missing")]
    Missing(&'static str),
    #[error("column {name} is {found}, not {wanted}")]
    Type {
        name: &'static str,
        found: String,
        wanted: String,
    },
}

/// A value of a column.
pub(crate) trait Cell: Sized {
    type Array;
    const NULLABLE: bool = false;
    fn data_type() -> DataType;
    fn array(values: Vec<Self>) -> ArrayRef;
    fn cast(array: &ArrayRef) -> Option<Self::Array>;
    /// The value in row `i`, which is below the array's length.
    fn get(array: &Self::Array, i: usize) -> Self;
}

/// A row of a table, or of a list in one.
pub(crate) trait Row: Sized {
    type Columns: Default + Send;
    type Reader;
    fn fields() -> Fields;
    fn push(self, columns: &mut Self::Columns);
    fn finish(columns: Self::Columns) -> Vec<ArrayRef>;
    fn reader(
        column: &dyn Fn(&str) -> Option<ArrayRef>,
        len: usize,
    ) -> Result<Self::Reader, ColumnError>;
    fn get(reader: &Self::Reader, i: usize) -> Self;

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(Self::fields()))
    }

    /// Every row of a batch.
    ///
    /// # Errors
    /// [`ColumnError`] when the batch is of another table.
    fn read(batch: &RecordBatch) -> Result<impl Iterator<Item = Self>, ColumnError> {
        let reader = Self::reader(
            &|name| batch.column_by_name(name).cloned(),
            batch.num_rows(),
        )?;
        Ok((0..batch.num_rows()).map(move |i| Self::get(&reader, i)))
    }
}

pub(crate) fn find<T: Cell>(
    name: &'static str,
    column: &dyn Fn(&str) -> Option<ArrayRef>,
    len: usize,
) -> Result<T::Array, ColumnError> {
    let array = match column(name) {
        Some(array) => array,
        None if T::NULLABLE => new_null_array(&T::data_type(), len),
        None => return Err(ColumnError::Missing(name)),
    };
    let wrong = || ColumnError::Type {
        name,
        found: array.data_type().to_string(),
        wanted: T::data_type().to_string(),
    };
    if !T::NULLABLE && array.null_count() > 0 {
        return Err(wrong());
    }
    T::cast(&array).ok_or_else(wrong)
}

macro_rules! primitive_cells {
    ($($rust:ty, $arrow:ty, $data_type:ident;)*) => {$(
        impl Cell for $rust {
            type Array = PrimitiveArray<$arrow>;
            fn data_type() -> DataType { DataType::$data_type }
            fn array(values: Vec<Self>) -> ArrayRef { Arc::new(PrimitiveArray::<$arrow>::from(values)) }
            fn cast(array: &ArrayRef) -> Option<Self::Array> { array.as_any().downcast_ref().cloned() }
            fn get(array: &Self::Array, i: usize) -> Self { array.value(i) }
        }
        impl Cell for Option<$rust> {
            type Array = PrimitiveArray<$arrow>;
            const NULLABLE: bool = true;
            fn data_type() -> DataType { DataType::$data_type }
            fn array(values: Vec<Self>) -> ArrayRef { Arc::new(PrimitiveArray::<$arrow>::from(values)) }
            fn cast(array: &ArrayRef) -> Option<Self::Array> { array.as_any().downcast_ref().cloned() }
            fn get(array: &Self::Array, i: usize) -> Self { array.is_valid(i).then(|| array.value(i)) }
        }
    )*};
}

primitive_cells! {
    u8, UInt8Type, UInt8;
    u16, UInt16Type, UInt16;
    u32, UInt32Type, UInt32;
    u64, UInt64Type, UInt64;
    i32, Int32Type, Int32;
    i64, Int64Type, Int64;
    f64, Float64Type, Float64;
}

impl Cell for bool {
    type Array = BooleanArray;
    fn data_type() -> DataType {
        DataType::Boolean
    }
    fn array(values: Vec<Self>) -> ArrayRef {
        Arc::new(BooleanArray::from(values))
    }
    fn cast(array: &ArrayRef) -> Option<Self::Array> {
        array.as_any().downcast_ref().cloned()
    }
    fn get(array: &Self::Array, i: usize) -> Self {
        array.value(i)
    }
}

impl Cell for String {
    type Array = StringArray;
    fn data_type() -> DataType {
        DataType::Utf8
    }
    fn array(values: Vec<Self>) -> ArrayRef {
        Arc::new(StringArray::from_iter_values(values))
    }
    fn cast(array: &ArrayRef) -> Option<Self::Array> {
        array.as_any().downcast_ref().cloned()
    }
    fn get(array: &Self::Array, i: usize) -> Self {
        array.value(i).to_owned()
    }
}

impl Cell for Option<String> {
    type Array = StringArray;
    const NULLABLE: bool = true;
    fn data_type() -> DataType {
        DataType::Utf8
    }
    fn array(values: Vec<Self>) -> ArrayRef {
        Arc::new(StringArray::from_iter(values))
    }
    fn cast(array: &ArrayRef) -> Option<Self::Array> {
        array.as_any().downcast_ref().cloned()
    }
    fn get(array: &Self::Array, i: usize) -> Self {
        array.is_valid(i).then(|| array.value(i).to_owned())
    }
}

/// The name that Arrow and Parquet give the values of a list.
const ITEM: &str = "item";

fn list_type(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new(ITEM, item, false)))
}

fn list_array(item: DataType, lengths: &[usize], values: ArrayRef) -> ArrayRef {
    Arc::new(ListArray::new(
        Arc::new(Field::new(ITEM, item, false)),
        OffsetBuffer::from_lengths(lengths.iter().copied()),
        values,
        None,
    ))
}

/// A list column taken apart.
pub(crate) struct List<A> {
    offsets: ScalarBuffer<i32>,
    values: A,
}

impl<A> List<A> {
    fn range(&self, i: usize) -> std::ops::Range<usize> {
        self.offsets[i] as usize..self.offsets[i + 1] as usize
    }
}

impl Cell for Vec<String> {
    type Array = List<StringArray>;
    fn data_type() -> DataType {
        list_type(DataType::Utf8)
    }
    fn array(values: Vec<Self>) -> ArrayRef {
        let lengths: Vec<usize> = values.iter().map(Vec::len).collect();
        let flat = String::array(values.into_iter().flatten().collect());
        list_array(DataType::Utf8, &lengths, flat)
    }
    fn cast(array: &ArrayRef) -> Option<Self::Array> {
        let list: &ListArray = array.as_any().downcast_ref()?;
        Some(List {
            offsets: list.offsets().inner().clone(),
            values: String::cast(list.values())?,
        })
    }
    fn get(array: &Self::Array, i: usize) -> Self {
        array
            .range(i)
            .map(|k| String::get(&array.values, k))
            .collect()
    }
}

impl<R: Row> Cell for Vec<R> {
    type Array = List<R::Reader>;
    fn data_type() -> DataType {
        list_type(DataType::Struct(R::fields()))
    }
    fn array(values: Vec<Self>) -> ArrayRef {
        let lengths: Vec<usize> = values.iter().map(Vec::len).collect();
        let len = lengths.iter().sum();
        let mut columns = R::Columns::default();
        for row in values.into_iter().flatten() {
            row.push(&mut columns);
        }
        let rows = StructArray::try_new_with_length(R::fields(), R::finish(columns), None, len)
            .expect("columns and fields come from one declaration");
        list_array(DataType::Struct(R::fields()), &lengths, Arc::new(rows))
    }
    fn cast(array: &ArrayRef) -> Option<Self::Array> {
        let list: &ListArray = array.as_any().downcast_ref()?;
        let rows: &StructArray = list.values().as_any().downcast_ref()?;
        let column = |name: &str| rows.column_by_name(name).cloned();
        Some(List {
            offsets: list.offsets().inner().clone(),
            values: R::reader(&column, rows.len()).ok()?,
        })
    }
    fn get(array: &Self::Array, i: usize) -> Self {
        array.range(i).map(|k| R::get(&array.values, k)).collect()
    }
}

/// Declares a row: `rows! { /// doc  Name, NameColumns, NameReader { field: type, … } }`.
macro_rules! rows {
    ($($(#[$doc:meta])* $name:ident, $columns:ident, $reader:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub(crate) struct $name { $($(#[$field_doc])* pub(crate) $field: $type,)* }

        #[derive(Default)]
        pub(crate) struct $columns { $($field: Vec<$type>,)* }

        pub(crate) struct $reader { $($field: <$type as Cell>::Array,)* }

        impl Row for $name {
            type Columns = $columns;
            type Reader = $reader;

            fn fields() -> Fields {
                Fields::from(vec![$(Field::new(
                    stringify!($field), <$type as Cell>::data_type(), <$type as Cell>::NULLABLE,
                ),)*])
            }

            fn push(self, columns: &mut $columns) {
                $(columns.$field.push(self.$field);)*
            }

            fn finish(columns: $columns) -> Vec<ArrayRef> {
                vec![$(<$type as Cell>::array(columns.$field),)*]
            }

            fn reader(column: &dyn Fn(&str) -> Option<ArrayRef>, len: usize) -> Result<$reader, ColumnError> {
                Ok($reader { $($field: find::<$type>(stringify!($field), column, len)?,)* })
            }

            fn get(reader: &$reader, i: usize) -> $name {
                $name { $($field: <$type as Cell>::get(&reader.$field, i),)* }
            }
        }
    )*};
}
pub(crate) use rows;
