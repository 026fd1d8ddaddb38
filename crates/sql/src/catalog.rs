//! The tables that can be asked: `raw` as stored, and views with names and units.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{RecordBatch, new_null_array};
use arrow::datatypes::SchemaRef;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::catalog::{MemorySchemaProvider, TableProvider};
use datafusion::common::TableReference;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{
    ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl,
};
use datafusion::datasource::{MemTable, ViewTable, provider_as_source};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, bitwise_and, col, lit};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::SessionContext;
use warptrace_model::record::offcpu;
use warptrace_store::{Session, TABLES, TableFiles, UnsealedStream, table_schema};

use crate::functions::Functions;
use crate::query::QueryError;

/// The schema of the tables as stored.
pub(crate) const RAW: &str = "raw";

/// Puts the tables and views of `sessions` into `ctx`.
pub(crate) fn register(
    ctx: &SessionContext,
    sessions: &[Session],
) -> std::result::Result<(), QueryError> {
    let catalog = ctx.catalog("datafusion").ok_or(QueryError::NoSessions)?;
    catalog.register_schema(RAW, Arc::new(MemorySchemaProvider::new()))?;
    let functions: Vec<Functions> = sessions
        .iter()
        .map(Functions::new)
        .collect::<std::result::Result<_, _>>()?;
    for table in TABLES {
        let (mut raw, mut view) = (None, None);
        for (session, functions) in sessions.iter().zip(&functions) {
            let rows = rows(table, session.table(table)?)?;
            let id = (sessions.len() > 1).then(|| lit(session.meta().id.clone()).alias("session"));
            let stored = table_schema(table).into_iter().flat_map(|s| {
                let names: Vec<Expr> = s.fields().iter().map(|f| col(f.name())).collect();
                names
            });
            let stored: Vec<Expr> = id.clone().into_iter().chain(stored).collect();
            let named: Vec<Expr> = id.into_iter().chain(view_of(table, functions)).collect();
            append(
                &mut raw,
                LogicalPlanBuilder::from(rows.clone())
                    .project(stored)?
                    .build()?,
            )?;
            append(
                &mut view,
                LogicalPlanBuilder::from(rows).project(named)?.build()?,
            )?;
        }
        let (Some(raw), Some(view)) = (raw, view) else {
            return Err(QueryError::NoSessions);
        };
        ctx.register_table(
            TableReference::partial(RAW, *table),
            Arc::new(ViewTable::new(raw, None)),
        )?;
        ctx.register_table(*table, Arc::new(ViewTable::new(view, None)))?;
    }
    Ok(())
}

fn append(all: &mut Option<LogicalPlan>, next: LogicalPlan) -> Result<()> {
    *all = Some(match all.take() {
        Some(before) => LogicalPlanBuilder::from(before).union(next)?.build()?,
        None => next,
    });
    Ok(())
}

/// All rows of one session's table: its sealed files and its streams.
fn rows(table: &str, files: TableFiles) -> Result<LogicalPlan> {
    let schema = table_schema(table)
        .ok_or_else(|| DataFusionError::Internal(format!("no table {table}")))?;
    let mut sources: Vec<Arc<dyn TableProvider>> = Vec::new();
    if !files.sealed.is_empty() {
        let urls = files
            .sealed
            .iter()
            .map(|path| ListingTableUrl::parse(file_url(path)));
        let config = ListingTableConfig::new_with_multi_paths(urls.collect::<Result<_>>()?)
            .with_listing_options(ListingOptions::new(Arc::new(ParquetFormat::default())))
            .with_schema(schema.clone());
        sources.push(Arc::new(ListingTable::try_new(config)?));
    }
    if !files.streams.is_empty() {
        let parts = files
            .streams
            .into_iter()
            .map(|stream| -> Arc<dyn PartitionStream> {
                Arc::new(StreamRows {
                    schema: schema.clone(),
                    stream: Arc::new(stream),
                })
            });
        sources.push(Arc::new(StreamingTable::try_new(
            schema.clone(),
            parts.collect(),
        )?));
    }
    if sources.is_empty() {
        sources.push(Arc::new(MemTable::try_new(schema, vec![vec![]])?));
    }
    let mut all = None;
    for source in sources {
        append(
            &mut all,
            LogicalPlanBuilder::scan(table, provider_as_source(source), None)?.build()?,
        )?;
    }
    all.ok_or_else(|| DataFusionError::Internal(format!("no rows for {table}")))
}

/// The URL of a file, whose path may hold what means something in one.
fn file_url(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut url = "file://".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                url.push(char::from(*byte))
            }
            _ => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url
}

/// A stream that was not sealed, as DataFusion reads it.
struct StreamRows {
    schema: SchemaRef,
    stream: Arc<UnsealedStream>,
}

impl fmt::Debug for StreamRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamRows").finish_non_exhaustive()
    }
}

impl PartitionStream for StreamRows {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _ctx: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (schema, stream) = (self.schema.clone(), self.stream.clone());
        let batches = (0..stream.batches()).map(move |i| {
            let batch = stream
                .read(i)
                .map_err(|e| DataFusionError::External(e.into()))?;
            as_table(&batch, &schema)
        });
        let batches = futures::stream::iter(batches);
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), batches))
    }
}

/// A batch with the columns of today; those that its version did not have are null.
fn as_table(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = schema
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            Some(column) => column.clone(),
            None => new_null_array(field.data_type(), batch.num_rows()),
        });
    Ok(RecordBatch::try_new(schema.clone(), columns.collect())?)
}

/// The columns of the view of a table.
fn view_of(table: &str, f: &Functions) -> Vec<Expr> {
    let mut columns = Vec::new();
    let time = || {
        [
            f.utc(col("boot_ns")).alias("time"),
            f.unix(col("boot_ns")).alias("ts_ns"),
        ]
    };
    let comm = || f.comm(col("pid"), col("tid")).alias("comm");
    match table {
        "events" => {
            columns.extend(time());
            columns.extend([
                f.layer(col("source")).alias("layer"),
                f.kind(col("kind")).alias("kind"),
                f.op(["kind", "source", "op", "flags"].map(col).to_vec())
                    .alias("op"),
                col("pid"),
                col("tid"),
                comm(),
                col("device"),
                col("stream"),
                col("dur_ns"),
                col("ret"),
                f.bytes(["kind", "source", "op", "arg0"].map(col).to_vec())
                    .alias("bytes"),
            ]);
            columns.extend(["arg0", "arg1", "stack_id", "cpu", "flags"].map(col));
        }
        "offcpu" => {
            let flag = |bit: u16, name: &str| {
                bitwise_and(col("flags"), lit(bit))
                    .not_eq(lit(0u16))
                    .alias(name)
            };
            columns.extend(time());
            columns.push(f.kind(col("kind")).alias("kind"));
            columns.extend(["pid", "tid"].map(col));
            columns.push(comm());
            columns.extend(["cpu", "dur_ns", "runnable_ns", "throttled_ns", "running_ns"].map(col));
            columns.extend([
                flag(offcpu::PREEMPTED, "preempted"),
                flag(offcpu::IOWAIT, "iowait"),
                flag(offcpu::UNINTERRUPTIBLE, "uninterruptible"),
                flag(offcpu::STOPPED, "stopped"),
                flag(offcpu::TIMED, "timed"),
                flag(offcpu::POLL_SOCKET, "poll_socket"),
                flag(offcpu::WAKER_INTERRUPT, "waker_interrupt"),
                flag(offcpu::WAKER_KERNEL, "waker_kernel"),
            ]);
            columns.extend(["syscall", "fd"].map(col));
            columns.push(f.file_type(col("file_type")).alias("file_type"));
            columns.extend(["waker_pid", "waker_tid"].map(col));
            columns.push(
                f.comm(col("waker_pid"), col("waker_tid"))
                    .alias("waker_comm"),
            );
            columns.extend(["last_occupant", "major_faults", "minor_faults"].map(col));
        }
        "ops" => {
            columns.extend(time());
            columns.extend([
                col("dur_ns"),
                f.layer(col("source")).alias("layer"),
                f.call(col("source"), col("op")).alias("op"),
            ]);
            columns.extend(["pid", "device", "count", "total_ns", "buckets"].map(col));
        }
        "findings" => {
            columns.push(f.hex(col("id")).alias("id"));
            columns.extend(time());
            columns.extend(rest(table, &["id", "boot_ns"]));
        }
        "gaps" | "stacks" => columns.extend(rest(table, &[])),
        // All others have a time.
        _ => {
            columns.extend(time());
            columns.extend(rest(table, &["boot_ns"]));
        }
    }
    columns
}

/// The stored columns of a table, but for some.
fn rest(table: &str, but: &[&str]) -> Vec<Expr> {
    let schema = table_schema(table).into_iter();
    let names = schema.flat_map(|s| {
        s.fields()
            .iter()
            .map(|f| f.name().clone())
            .collect::<Vec<_>>()
    });
    names
        .filter(|n| !but.contains(&n.as_str()))
        .map(col)
        .collect()
}
