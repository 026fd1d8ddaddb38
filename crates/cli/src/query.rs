//! `query`: hands SQL to `warptrace-sql`, a program of its own (the SQL engine is too big for an agent to carry).

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::args::{Global, QueryArgs};
use crate::{launch, sessions};

pub(crate) fn run(global: &Global, args: &QueryArgs) -> anyhow::Result<u8> {
    let folders: Vec<PathBuf> = if args.session.is_empty() {
        vec![sessions::resolve(global, None)?]
    } else {
        args.session
            .iter()
            .map(|s| sessions::resolve(global, Some(s)))
            .collect::<anyhow::Result<_>>()?
    };
    let program = find_engine()?;
    let mut command = Command::new(&program);
    for folder in folders {
        command.arg("--session").arg(folder);
    }
    command.arg("--max-rows").arg(args.max_rows.to_string());
    command.arg("--timeout").arg(
        humantime::format_duration(args.timeout)
            .to_string()
            .replace(' ', ""),
    );
    if args.output.json {
        command.arg("--json");
    }
    command.arg("--").arg(&args.sql);
    let status = command
        .status()
        .with_context(|| format!("cannot start {program:?}"))?;
    Ok(launch::exit_code(status))
}

/// Beside ourselves first, so that a copied folder is whole; then PATH.
fn find_engine() -> anyhow::Result<PathBuf> {
    const NAME: &str = "warptrace-sql";
    if let Ok(own) = std::env::current_exe()
        && let Some(folder) = own.parent()
    {
        let beside = folder.join(NAME);
        if beside.is_file() {
            return Ok(beside);
        }
    }
    match launch::find(&[NAME.into()]) {
        Ok(program) => Ok(program.path),
        Err(_) => bail!(
            "the SQL engine is a program of its own, {NAME}, and it is not beside this one nor in PATH: \
             build it with `cargo build --release -p warptrace-sql` (ten minutes on two cores), or read the session's \
             Parquet files with DuckDB, pandas or Polars: `warptrace sessions` shows where they are"
        ),
    }
}
