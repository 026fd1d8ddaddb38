//! `runlog summary`: requests, errors, tokens, rate and latency of a file, its runs, models and principals.

use std::path::Path;

use serde::Serialize;
use warptrace_api::duration_text;
use warptrace_formats::run_log::{
    Groups, Latencies, RunSummary, Summary, SummaryOptions, Totals, format_utc,
};

use super::{counted, plain, read};
use crate::args::{Global, RunlogSummaryArgs};
use crate::output;
use crate::show::{Paint, thousands};

const SCHEMA: &str = "warptrace.runlog.summary/v1";

pub(super) fn run(global: &Global, args: &RunlogSummaryArgs) -> anyhow::Result<u8> {
    for path in &args.files {
        let mut summary = Summary::new(SummaryOptions {
            only_run: args.run,
            ..SummaryOptions::default()
        });
        read(path, |chunk| {
            summary.feed(chunk);
            Ok(())
        })?;
        summary.finish();
        if let Some(run) = args.run {
            let known = u64::from(run) <= summary.runs;
            anyhow::ensure!(
                known,
                "no run {run} in {path:?}: it has {}",
                counted(summary.runs, "run")
            );
        }
        if args.output.json {
            output::print_json(&answer(path, &summary))?;
        } else {
            output::print(&text(path, &summary, args.run, output::paint(global)))?;
        }
    }
    Ok(0)
}

#[derive(Serialize)]
struct Answer {
    schema: &'static str,
    file: String,
    lines: u64,
    corrupt: u64,
    torn_tail: bool,
    runs: u64,
    retired_requests: u64,
    #[serde(flatten)]
    totals: Sums,
    duration_s: f64,
    requests_per_s: Option<f64>,
    last_run: Option<Run>,
    recent_runs: Vec<Run>,
    runs_given_up: u64,
    models: Named,
    principals: Named,
}

#[derive(Serialize)]
struct Sums {
    requests: u64,
    errors: u64,
    tokens_out: u64,
    tokens_in: u64,
    invalid_tokens: u64,
    latency_us: Option<Latency>,
}

#[derive(Serialize)]
struct Latency {
    count: u64,
    min: u64,
    p50: u64,
    p90: u64,
    p95: u64,
    p99: u64,
    max: u64,
}

#[derive(Serialize)]
struct Run {
    run: u32,
    started: bool,
    ended: bool,
    started_at: Option<String>,
    host: Option<String>,
    backend: Option<String>,
    model: Option<String>,
    reason: Option<String>,
    #[serde(flatten)]
    totals: Sums,
    duration_s: f64,
    requests_per_s: Option<f64>,
}

#[derive(Serialize)]
struct Named {
    named: Vec<Group>,
    /// Under names above the bound on how many are told apart.
    other: Sums,
    unnamed: Sums,
}

#[derive(Serialize)]
struct Group {
    name: String,
    #[serde(flatten)]
    totals: Sums,
}

fn latency(latencies: &Latencies) -> Option<Latency> {
    Some(Latency {
        count: latencies.count(),
        min: latencies.min()?,
        p50: latencies.percentile(50)?,
        p90: latencies.percentile(90)?,
        p95: latencies.percentile(95)?,
        p99: latencies.percentile(99)?,
        max: latencies.max()?,
    })
}

fn sums(totals: &Totals) -> Sums {
    Sums {
        requests: totals.requests,
        errors: totals.errors,
        tokens_out: totals.tokens_out,
        tokens_in: totals.tokens_in,
        invalid_tokens: totals.invalid_tokens,
        latency_us: latency(&totals.latency_micros),
    }
}

fn named(groups: &Groups) -> Named {
    let group = |g: &warptrace_formats::run_log::Group| Group {
        name: g.name.clone(),
        totals: sums(&g.totals),
    };
    Named {
        named: groups.iter().map(group).collect(),
        other: sums(&groups.other),
        unnamed: sums(&groups.unnamed),
    }
}

fn started_at(run: &RunSummary) -> Option<String> {
    let secs = run.started_at?.0 / 1_000_000_000;
    i64::try_from(secs).ok().map(format_utc)
}

fn run_answer(run: &RunSummary) -> Run {
    Run {
        run: run.number,
        started: run.started,
        ended: run.ended,
        started_at: started_at(run),
        host: run.host.clone(),
        backend: run.backend.clone(),
        model: run.model.clone(),
        reason: run.reason.clone(),
        totals: sums(&run.totals),
        duration_s: run.duration_secs,
        requests_per_s: run.requests_per_sec(),
    }
}

fn answer(path: &Path, summary: &Summary) -> Answer {
    Answer {
        schema: SCHEMA,
        file: path.to_string_lossy().into_owned(),
        lines: summary.lines,
        corrupt: summary.corrupt,
        torn_tail: summary.torn_tail,
        runs: summary.runs,
        retired_requests: summary.retired,
        totals: sums(&summary.totals),
        duration_s: summary.duration_secs,
        requests_per_s: summary.requests_per_sec(),
        last_run: summary.last_run().map(run_answer),
        recent_runs: summary.recent().map(run_answer).collect(),
        runs_given_up: summary.runs_given_up,
        models: named(&summary.by_model),
        principals: named(&summary.by_principal),
    }
}

/// Rows of a table on a terminal at most; `--json` has them all.
const MAX_ROWS: usize = 20;

fn text(path: &Path, summary: &Summary, only: Option<u32>, paint: Paint) -> String {
    let totals = &summary.totals;
    let what = match only {
        Some(run) => format!("run {run} of {}", summary.runs),
        None => counted(summary.runs, "run"),
    };
    let mut out = format!(
        "{} · {what} · {} · {} · {} tokens out, {} in\n",
        path.display(),
        counted(totals.requests, "request"),
        counted(totals.errors, "error"),
        thousands(totals.tokens_out),
        thousands(totals.tokens_in),
    );
    for (n, word, words) in [
        (
            summary.corrupt,
            "line",
            "no record and left out (see: warptrace runlog check)",
        ),
        (
            totals.invalid_tokens,
            "request",
            "without a count of completion tokens, added as 0",
        ),
        (summary.retired, "request", "of a retired shape, left out"),
    ] {
        if n > 0 {
            out += &format!("  {}: {words}\n", counted(n, word));
        }
    }
    if summary.torn_tail {
        out += "  the last line has no line feed: it was cut, or is being written\n";
    }
    let mut rows = vec![row("all", totals, Some(summary.requests_per_sec()))];
    let first = summary.recent().rev().skip(MAX_ROWS).count();
    for run in summary.recent().skip(first) {
        if only.is_some_and(|only| only != run.number) {
            continue;
        }
        let mut name = match run.number {
            0 => "before run 1".to_owned(),
            n => format!("run {n}"),
        };
        if let Some(started) = started_at(run) {
            name += &format!(", {started}");
        }
        let end = match (&run.reason, run.ended) {
            (Some(reason), _) => plain(reason, 20),
            (None, true) => "ended".to_owned(),
            (None, false) => "no end".to_owned(),
        };
        name += &format!(", {end}");
        rows.push(row(&name, &run.totals, Some(run.requests_per_sec())));
    }
    out += &table("", &rows, paint);
    let given_up = summary.runs_given_up + first as u64;
    if given_up > 0 && only.is_none() {
        out += &format!(
            "  {} before these: --run N shows one\n",
            counted(given_up, "run")
        );
    }
    for (what, groups) in [
        ("model", &summary.by_model),
        ("principal", &summary.by_principal),
    ] {
        let mut groups_shown: Vec<_> = groups.iter().collect();
        groups_shown.sort_by_key(|g| std::cmp::Reverse(g.totals.requests + g.totals.errors));
        let more = groups_shown.len().saturating_sub(MAX_ROWS);
        groups_shown.truncate(MAX_ROWS);
        let mut rows: Vec<_> = groups_shown
            .iter()
            .map(|g| row(&plain(&g.name, 40), &g.totals, None))
            .collect();
        for (name, rest) in [("(other)", &groups.other), ("(none)", &groups.unnamed)] {
            if rest.requests + rest.errors > 0 {
                rows.push(row(name, rest, None));
            }
        }
        if !groups_shown.is_empty() {
            out += &table(what, &rows, paint);
            if more > 0 {
                out += &format!("  and {more} more: --json has them all\n");
            }
        }
    }
    out
}

const HEADINGS: [&str; 8] = [
    "",
    "requests",
    "errors",
    "tokens out",
    "req/s",
    "p50",
    "p95",
    "p99",
];

type Row = [String; 8];

/// `rate` is left out where a rate has no meaning, and a dash where it is not known.
fn row(name: &str, totals: &Totals, rate: Option<Option<f64>>) -> Row {
    let percentile = |p| match totals.latency_micros.percentile(p) {
        Some(micros) => duration_text(micros.saturating_mul(1_000)),
        None => "-".to_owned(),
    };
    [
        name.to_owned(),
        thousands(totals.requests),
        thousands(totals.errors),
        thousands(totals.tokens_out),
        match rate {
            None => String::new(),
            Some(None) => "-".to_owned(),
            Some(Some(rate)) if rate < 10.0 => format!("{rate:.2}"),
            Some(Some(rate)) => format!("{rate:.1}"),
        },
        percentile(50),
        percentile(95),
        percentile(99),
    ]
}

/// The first column to the left, all others to the right; a column that is empty in all rows is left out.
fn table(title: &str, rows: &[Row], paint: Paint) -> String {
    let mut headings = HEADINGS;
    headings[0] = title;
    let widths: Vec<usize> = (0..headings.len())
        .map(|i| {
            let longest = rows.iter().map(|row| row[i].chars().count()).max();
            match longest.unwrap_or(0) {
                0 => 0,
                longest => longest.max(headings[i].len()),
            }
        })
        .collect();
    let line = |cells: &[&str]| {
        let mut line = format!("  {:<1$}", cells[0], widths[0]);
        for (cell, &width) in cells.iter().zip(&widths).skip(1) {
            if width > 0 {
                line += &format!("  {cell:>width$}");
            }
        }
        line.trim_end().to_owned()
    };
    let mut out = format!("\n{}\n", paint.dim(&line(&headings)));
    for row in rows {
        let cells: Vec<&str> = row.iter().map(String::as_str).collect();
        out += &line(&cells);
        out.push('\n');
    }
    out
}
