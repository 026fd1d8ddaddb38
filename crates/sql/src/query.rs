//! One question: planned, checked, and run within its limits.

use std::time::Duration;

use arrow::array::RecordBatch;
use datafusion::common::{SchemaError, TableReference};
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Statement as Ast;
use futures::StreamExt as _;
use warptrace_store::{Session, StoreError, TABLES};

use crate::answer::Answer;
use crate::catalog::{self, RAW};

/// How much one question may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Further rows are left out, and the answer says so.
    pub max_rows: usize,
    pub timeout: Duration,
    /// Bytes that sorting, grouping and joining may hold.
    pub memory_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_rows: 10_000,
            timeout: Duration::from_secs(30),
            memory_bytes: 1 << 30,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error("no session to ask")]
    NoSessions,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no table {wanted:?}{}; there are: {}", did_you_mean(nearest), tables.join(", "))]
    NoTable {
        wanted: String,
        nearest: Option<String>,
        tables: Vec<String>,
    },
    #[error("no column {wanted:?}{}; there are: {}", did_you_mean(nearest), columns.join(", "))]
    NoColumn {
        wanted: String,
        nearest: Option<String>,
        columns: Vec<String>,
    },
    #[error("only SELECT and EXPLAIN: sessions are read-only")]
    ReadOnly,
    #[error("no answer after {0:?}: narrow the question, or give it more with --timeout")]
    Timeout(Duration),
    #[error(
        "the question needs more than {0} bytes of memory: narrow it, or give it more with --memory"
    )]
    Memory(usize),
    #[error("{}", first_line(.0))]
    Engine(Box<DataFusionError>),
    #[error("the query engine failed: {0}")]
    Panicked(String),
    #[error("cannot start the query engine")]
    Runtime(#[source] std::io::Error),
}

impl From<DataFusionError> for QueryError {
    fn from(e: DataFusionError) -> QueryError {
        QueryError::Engine(Box::new(e))
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map_or_else(String::new, |n| format!(" (did you mean {n}?)"))
}

/// What the engine says, without its back trace.
fn first_line(e: &DataFusionError) -> String {
    e.strip_backtrace()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// Asks `sql` of `sessions`. Runs on threads of its own until it ends or `limits` are reached.
///
/// # Errors
/// [`QueryError`].
pub fn query(sessions: &[Session], sql: &str, limits: Limits) -> Result<Answer, QueryError> {
    if sessions.is_empty() {
        return Err(QueryError::NoSessions);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("wt-sql")
        .enable_time()
        .build()
        .map_err(QueryError::Runtime)?;
    let ctx = context(limits)?;
    catalog::register(&ctx, sessions)?;
    // On a thread of the runtime, so that the time is up even when the engine does not come up for air.
    let question = runtime.spawn(ask(ctx, sql.to_owned(), limits));
    let answer = runtime.block_on(async {
        match tokio::time::timeout(limits.timeout, question).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(panicked)) => Err(QueryError::Panicked(panicked.to_string())),
            Err(_) => Err(QueryError::Timeout(limits.timeout)),
        }
    });
    // A question that ran out of time is not waited for.
    runtime.shutdown_background();
    answer
}

async fn ask(ctx: SessionContext, sql: String, limits: Limits) -> Result<Answer, QueryError> {
    let plan = plan(&ctx, &sql).await?;
    // A limit on top lets the engine keep only so many rows; one more tells whether there are more.
    let explains = matches!(plan, LogicalPlan::Explain(_) | LogicalPlan::Analyze(_));
    let run = async {
        let mut frame = ctx.execute_logical_plan(plan).await?;
        if !explains {
            frame = frame.limit(0, Some(limits.max_rows.saturating_add(1)))?;
        }
        let schema = frame.schema().as_arrow().clone();
        let mut stream = frame.execute_stream().await?;
        let mut batches: Vec<RecordBatch> = Vec::new();
        let (mut rows, mut truncated) = (0, false);
        while let Some(batch) = stream.next().await {
            let mut batch = batch?;
            if rows + batch.num_rows() > limits.max_rows {
                batch = batch.slice(0, limits.max_rows - rows);
                truncated = true;
            }
            rows += batch.num_rows();
            batches.push(batch);
            if truncated {
                break;
            }
        }
        Ok(Answer::new(schema.into(), batches, truncated))
    };
    run.await.map_err(|e: DataFusionError| match e.find_root() {
        DataFusionError::ResourcesExhausted(_) => QueryError::Memory(limits.memory_bytes),
        _ => e.into(),
    })
}

fn context(limits: Limits) -> Result<SessionContext, QueryError> {
    let no_disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_limit(limits.memory_bytes, 1.0)
        .with_disk_manager_builder(no_disk)
        .build_arc()?;
    let config = SessionConfig::new()
        .with_information_schema(true)
        .set_bool("datafusion.execution.parquet.pushdown_filters", true);
    Ok(SessionContext::new_with_config_rt(config, runtime))
}

/// The plan of one statement that only reads.
async fn plan(ctx: &SessionContext, sql: &str) -> Result<LogicalPlan, QueryError> {
    let state = ctx.state();
    let dialect = state.config().options().sql_parser.dialect;
    let statement = state.sql_to_statement(sql, &dialect)?;
    if !reads(&statement) {
        return Err(QueryError::ReadOnly);
    }
    for table in state.resolve_table_references(&statement)? {
        check_table(ctx, &table)?;
    }
    let plan = state
        .statement_to_plan(statement)
        .await
        .map_err(column_error)?;
    // The kind of statement is only the first word; what counts is that nothing in the plan writes.
    let only_reads = SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false);
    match only_reads.verify_plan(&plan) {
        Ok(()) => Ok(plan),
        Err(_) => Err(QueryError::ReadOnly),
    }
}

/// Whether a statement is of a kind that only reads.
fn reads(statement: &Statement) -> bool {
    match statement {
        Statement::Statement(ast) => matches!(
            **ast,
            Ast::Query(_)
                | Ast::Explain { .. }
                | Ast::ExplainTable { .. }
                | Ast::ShowTables { .. }
                | Ast::ShowColumns { .. }
        ),
        Statement::Explain(explain) => reads(&explain.statement),
        _ => false,
    }
}

fn check_table(ctx: &SessionContext, table: &TableReference) -> Result<(), QueryError> {
    let known = match table.schema() {
        None if ctx.state().table_functions().contains_key(table.table()) => true,
        None | Some("public" | RAW) => TABLES.contains(&table.table()),
        Some("information_schema") => true,
        Some(_) => false,
    };
    if known || ctx.table_exist(table.clone()).unwrap_or(false) {
        return Ok(());
    }
    let mut tables: Vec<String> = TABLES.iter().map(|t| (*t).to_owned()).collect();
    let nearest = nearest(table.table(), tables.iter().map(String::as_str));
    tables.push(format!("{RAW}.* (the same, as stored)"));
    Err(QueryError::NoTable {
        wanted: table.to_string(),
        nearest,
        tables,
    })
}

/// Says which columns there are when one is not.
fn column_error(e: DataFusionError) -> QueryError {
    let DataFusionError::SchemaError(schema_error, _) = e.find_root() else {
        return e.into();
    };
    let SchemaError::FieldNotFound {
        field,
        valid_fields,
    } = schema_error.as_ref()
    else {
        return e.into();
    };
    let columns: Vec<String> = valid_fields.iter().map(|c| c.name.clone()).collect();
    QueryError::NoColumn {
        nearest: nearest(&field.name, columns.iter().map(String::as_str)),
        wanted: field.name.clone(),
        columns,
    }
}

/// The name that is the fewest letters away, if it is near.
fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let wanted = wanted.to_lowercase();
    let (distance, name) = names.map(|n| (distance(&wanted, n), n)).min()?;
    (distance <= wanted.len().max(3) / 2).then(|| name.to_owned())
}

/// Letters to insert, remove or change (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_few_letters_away() {
        let names = ["time", "ts_ns", "dur_ns", "device"];
        let near = |wanted| nearest(wanted, names.into_iter());
        assert_eq!(near("duration_ns").as_deref(), Some("dur_ns"));
        assert_eq!(near("DUR_NS").as_deref(), Some("dur_ns"));
        assert_eq!(near("devise").as_deref(), Some("device"));
        assert_eq!(near("completely_else"), None);
    }
}
