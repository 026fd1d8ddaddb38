//! Reading a table whose shape is not known for sure: columns may be missing, values of any type and size.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use super::open::{TraceDb, TraceDbError};
use super::tally::Tally;

/// The ordinary tables of a file and their stored columns. Views, virtual tables and computed columns are none: they
/// would run what the file says.
pub(crate) struct Schema(BTreeMap<String, BTreeSet<String>>);

impl Schema {
    pub(crate) fn read(connection: &Connection) -> rusqlite::Result<Schema> {
        const TABLES: usize = 1_000;
        let mut tables = BTreeMap::new();
        let mut list = connection.prepare("PRAGMA main.table_list")?;
        let mut rows = list.query([])?;
        let mut names = Vec::new();
        while let Some(row) = rows.next()? {
            let (schema, name, kind, without_rowid): (String, String, String, bool) =
                (row.get(0)?, row.get(1)?, row.get(2)?, row.get(4)?);
            if schema == "main" && kind == "table" && !without_rowid && names.len() < TABLES {
                names.push(name);
            }
        }
        for name in names {
            let mut columns = BTreeSet::new();
            connection.pragma(Some("main"), "table_xinfo", &name, |row| {
                let (column, hidden): (String, i64) = (row.get(1)?, row.get(6)?);
                if hidden == 0 {
                    columns.insert(column);
                }
                Ok(())
            })?;
            tables.insert(name, columns);
        }
        Ok(Schema(tables))
    }

    pub(crate) fn has_table(&self, table: &str) -> bool {
        self.0.contains_key(table)
    }

    pub(crate) fn has(&self, table: &str, column: &str) -> bool {
        self.0.get(table).is_some_and(|c| c.contains(column))
    }
}

/// A column to read.
#[derive(Clone, Copy)]
pub(crate) enum Column {
    Number(&'static str),
    /// Of at most so many bytes; longer ones are not read, and taken for missing.
    Text(&'static str, usize),
}

use Column::{Number, Text};

/// What a value is when it is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wrong(pub(crate) &'static str);

/// A row, by the place of each column in the list that was asked for.
pub(crate) struct Cells<'a> {
    row: &'a Row<'a>,
    pub(crate) rowid: i64,
}

impl Cells<'_> {
    fn value(&self, column: usize) -> ValueRef<'_> {
        self.row.get_ref(column + 1).unwrap_or(ValueRef::Null)
    }

    /// `None` where the column is missing or null.
    pub(crate) fn int(&self, column: usize) -> Result<Option<i64>, Wrong> {
        match self.value(column) {
            ValueRef::Integer(n) => Ok(Some(n)),
            ValueRef::Null => Ok(None),
            _ => Err(Wrong("a value is not a whole number")),
        }
    }

    /// A whole number that fits in `T`; 0 where it is missing.
    pub(crate) fn number<T: TryFrom<i64> + Default>(&self, column: usize) -> Result<T, Wrong> {
        match self.int(column)? {
            None => Ok(T::default()),
            Some(n) => T::try_from(n).map_err(|_| Wrong("a number is out of range")),
        }
    }

    /// As [`Cells::number`], with absence kept.
    pub(crate) fn number_if<T: TryFrom<i64>>(&self, column: usize) -> Result<Option<T>, Wrong> {
        self.int(column)?
            .map(|n| T::try_from(n).map_err(|_| Wrong("a number is out of range")))
            .transpose()
    }

    /// Sixty-four bits that SQLite keeps as a signed number; 0 where they are missing.
    pub(crate) fn bits(&self, column: usize) -> Result<u64, Wrong> {
        Ok(self.int(column)?.unwrap_or(0) as u64)
    }

    /// A finite number.
    pub(crate) fn real(&self, column: usize) -> Result<Option<f64>, Wrong> {
        match self.value(column) {
            ValueRef::Integer(n) => Ok(Some(n as f64)),
            ValueRef::Real(x) if x.is_finite() => Ok(Some(x)),
            ValueRef::Null => Ok(None),
            _ => Err(Wrong("a value is not a number")),
        }
    }

    /// Empty where it is missing. Bytes that are no UTF-8 become U+FFFD.
    pub(crate) fn text(&self, column: usize) -> Result<std::borrow::Cow<'_, str>, Wrong> {
        match self.value(column) {
            ValueRef::Text(bytes) => Ok(String::from_utf8_lossy(bytes)),
            ValueRef::Null => Ok("".into()),
            _ => Err(Wrong("a value is not text")),
        }
    }
}

impl TraceDb {
    /// Gives every row of a table to `take`, in the order of the rowid, without trusting an index. `columns` that the
    /// table has not are missing. A damaged table gives what can be read, and says so in `tally`.
    ///
    /// # Errors
    /// [`TraceDbError::Sqlite`] when the query itself is refused.
    pub(crate) fn scan(
        &self,
        table: &'static str,
        columns: &[Column],
        tally: &mut Tally,
        mut take: impl FnMut(&mut Tally, Cells<'_>),
    ) -> Result<(), TraceDbError> {
        if !self.schema.has_table(table) {
            return Ok(());
        }
        let sql = format!(
            "SELECT rowid, {} FROM main.\"{table}\" NOT INDEXED ORDER BY rowid",
            self.list(table, columns)
        );
        let mut query = match self.connection.prepare(&sql) {
            Ok(query) => query,
            Err(e) => return Err(self.failure(e)),
        };
        let mut rows = query.query([]).map_err(|e| self.failure(e))?;
        let mut last = i64::MIN;
        let mut count = 0;
        loop {
            match rows.next() {
                Ok(None) => return Ok(()),
                Ok(Some(row)) => {
                    let rowid = row.get::<_, i64>(0).unwrap_or(i64::MIN);
                    // A tree whose pages are shared or looped would give rows for ever.
                    count += 1;
                    if (rowid <= last && count > 1) || count > self.rows_at_most {
                        tally.damaged(format!(
                            "{table} is damaged after row {last}: what follows is left out"
                        ));
                        return Ok(());
                    }
                    last = rowid;
                    take(tally, Cells { row, rowid });
                }
                Err(e) => {
                    tally.damaged(match last {
                        i64::MIN => format!("{table} cannot be read ({e})"),
                        _ => format!(
                            "{table} is damaged after row {last} ({e}): what follows is left out"
                        ),
                    });
                    return Ok(());
                }
            }
        }
    }

    /// The columns, as SQL that does not read what is too long.
    pub(crate) fn list(&self, table: &str, columns: &[Column]) -> String {
        let expressions = columns.iter().map(|column| match column {
            Number(name) | Text(name, _) if !self.schema.has(table, name) => "NULL".to_owned(),
            // A text where a number should be is not read, whatever its size.
            Number(name) => format!(
                "CASE WHEN typeof(\"{name}\") IN ('text', 'blob') THEN x'00' ELSE \"{name}\" END"
            ),
            Text(name, most) => {
                format!("CASE WHEN octet_length(\"{name}\") <= {most} THEN \"{name}\" END")
            }
        });
        expressions.collect::<Vec<_>>().join(", ")
    }

    /// The number of rows of a table, about: its highest rowid.
    pub(crate) fn rows_about(&self, table: &str) -> u64 {
        if !self.schema.has_table(table) {
            return 0;
        }
        let sql = format!("SELECT max(rowid) FROM main.\"{table}\"");
        let highest = self
            .connection
            .query_row(&sql, [], |row| row.get::<_, Option<i64>>(0));
        let highest = highest.ok().flatten().unwrap_or(0);
        u64::try_from(highest).unwrap_or(0).min(self.rows_at_most)
    }
}
