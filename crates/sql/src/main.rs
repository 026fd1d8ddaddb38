//! `warptrace-sql`: asks sessions in SQL. Started by `warptrace query`, the dashboard and others that have no SQL engine.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use warptrace_sql::{Answer, Limits, query};
use warptrace_store::fs::RealFs;
use warptrace_store::{DataDir, Env, Session, find, newest};

/// Ask recorded sessions in SQL, read-only
#[derive(Debug, Parser)]
#[command(name = "warptrace-sql", version)]
struct Args {
    /// One SELECT or EXPLAIN; `SHOW TABLES` and `DESCRIBE events` say what there is
    sql: String,
    /// A session's directory or id; several get a column `session` [default: the newest]
    #[arg(long, value_name = "SESSION")]
    session: Vec<String>,
    /// Folder that sessions are in
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print one JSON object (warptrace.query/v1)
    #[arg(long)]
    json: bool,
    /// Rows to give at most
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    max_rows: usize,
    /// Time to take at most, such as 500ms, 30s, 5m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
    /// Memory to take at most, such as 512MiB, 2GiB
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_size)]
    memory: usize,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("warptrace-sql: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let fs: Arc<dyn warptrace_store::fs::Fs> = Arc::new(RealFs);
    let dir = DataDir::resolve(args.data.as_deref(), &Env::of_process());
    let mut paths: Vec<PathBuf> = Vec::new();
    for wanted in &args.session {
        let path = PathBuf::from(wanted);
        // A directory needs no data folder.
        paths.push(if path.is_dir() {
            path
        } else {
            let dir = dir.as_ref().map_err(|e| anyhow::anyhow!("{e}"))?;
            find(&fs, &dir.read, wanted)?
        });
    }
    if paths.is_empty() {
        let dir = dir?;
        let (found, unreadable) = newest(&fs, &dir.read)?;
        for newer in unreadable {
            if let Err(e) = &newer.session {
                eprintln!(
                    "warptrace-sql: session {} is newer and cannot be read: {e}",
                    newer.id
                );
            }
        }
        let found = found.context("no sessions yet: `warptrace record -- COMMAND` makes one")?;
        paths.push(found.path);
    }
    let sessions: Vec<Session> = paths
        .iter()
        .map(|path| Session::open(fs.clone(), path))
        .collect::<Result<_, _>>()?;
    let limits = Limits {
        max_rows: args.max_rows,
        timeout: args.timeout,
        memory_bytes: args.memory,
    };
    let answer = query(&sessions, &args.sql, limits)?;
    match print(&answer, args.json) {
        // Who reads has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn print(answer: &Answer, json: bool) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    if json {
        writeln!(out, "{}", answer.json())?;
    } else {
        answer.write_table(&mut out)?;
    }
    out.flush()
}

/// A whole number and the unit that it ends in; the first of `units` that fits counts.
fn parse_with_unit(text: &str, units: &[(&str, u64)], example: &str) -> Result<u64, String> {
    let wrong = || format!("not a number with a unit, such as {example}");
    let (number, factor) = units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))
        .ok_or_else(wrong)?;
    let number: u64 = number.trim().parse().map_err(|_| wrong())?;
    number
        .checked_mul(factor)
        .ok_or_else(|| "too much".to_owned())
}

/// Numbers with units, one after the other: `1m30s`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    let mut millis = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let unit = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let unit_len = unit
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(unit.len());
        let (part, after) = rest.split_at(rest.len() - unit.len() + unit_len);
        millis = parse_with_unit(part, &UNITS, "30s")?
            .checked_add(millis)
            .ok_or("too much")?;
        rest = after;
    }
    match millis {
        0 => Err("must be a number with a unit, such as 30s, and more than 0".to_owned()),
        millis => Ok(Duration::from_millis(millis)),
    }
}

fn parse_size(text: &str) -> Result<usize, String> {
    let units = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    let bytes = parse_with_unit(text, &units, "512MiB")?;
    if bytes == 0 {
        return Err("must be more than 0".to_owned());
    }
    usize::try_from(bytes).map_err(|_| "too much".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_numbers_with_units() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1s500ms"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("2MB"), Ok(2_000_000));
        for bad in [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "0s",
            "1s-",
            "é",
            "1é",
            "99999999999999999999s",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }
}
