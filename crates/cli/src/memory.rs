//! `memory`: GPU memory over time, from telemetry files and folders, with what is wrong with it.
//!
//! Reads once and keeps no events: files may be larger than memory.

mod csv;
mod html;
mod input;
mod text;

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use warptrace_api::{Memory, MemoryQuestion, Skip, memory_answer};
use warptrace_engine::memory::{Analyzer, Rules};
use warptrace_model::Severity;

use crate::args::{Global, MemoryArgs, MemoryOptions, MemoryView};
use crate::output;

pub(crate) fn run(global: &Global, args: &MemoryArgs) -> anyhow::Result<u8> {
    let (view, options) = match &args.view {
        Some(view) => view.parts(),
        None => (View::Summary, &args.options),
    };
    if options.inputs.is_empty() {
        bail!(
            "memory of what? Name a telemetry file, a sink's folder, or a folder of them: \
             warptrace memory {}run/telemetry",
            if view == View::Summary {
                String::new()
            } else {
                format!("{} ", view.name())
            }
        );
    }
    let mut answer = answer(options, view)?;
    view.narrow(&mut answer);
    let mut printed = false;
    if let Some(to) = &options.html {
        printed |= write(to, html::page(&answer).as_bytes())?;
    }
    if let Some(to) = &options.csv {
        printed |= write(to, csv::table(&answer, view).as_bytes())?;
    }
    if options.output.json {
        output::print_json(&answer)?;
    } else if !printed && options.html.is_none() && options.csv.is_none() {
        output::print(&text::answer(&answer, view, output::paint(global)))?;
    }
    let reaches = |limit: Severity| {
        answer
            .findings
            .iter()
            .any(|f| Severity::by_name(f.severity).is_some_and(|s| s >= limit))
    };
    Ok(u8::from(options.fail_on.is_some_and(reaches)))
}

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    Summary,
    Sessions,
    Timeline,
    Peaks,
    Leaks,
    Fragmentation,
    Gaps,
    Ranks,
    Issues,
}

impl View {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            View::Summary => "summary",
            View::Sessions => "sessions",
            View::Timeline => "timeline",
            View::Peaks => "peaks",
            View::Leaks => "leaks",
            View::Fragmentation => "fragmentation",
            View::Gaps => "gaps",
            View::Ranks => "ranks",
            View::Issues => "issues",
        }
    }

    /// Leaves findings and checks that are another view's.
    fn narrow(self, answer: &mut Memory) {
        let (findings, check): (&[&str], &str) = match self {
            View::Leaks => (&["leak", "reserve_growth", "hidden_growth"], "leak"),
            View::Fragmentation => (&["fragmentation", "reserve_growth"], "fragmentation"),
            View::Gaps => (
                &["hidden_growth", "hidden_spikes", "hidden_steady"],
                "hidden",
            ),
            View::Ranks => (&["first_cause", "rank_outlier"], ""),
            _ => return,
        };
        answer.findings.retain(|f| findings.contains(&f.kind));
        answer.checks.retain(|c| c.check == check);
    }
}

impl MemoryView {
    fn parts(&self) -> (View, &MemoryOptions) {
        match self {
            MemoryView::Sessions(options) => (View::Sessions, options),
            MemoryView::Timeline(options) => (View::Timeline, options),
            MemoryView::Peaks(options) => (View::Peaks, options),
            MemoryView::Leaks(options) => (View::Leaks, options),
            MemoryView::Fragmentation(options) => (View::Fragmentation, options),
            MemoryView::Gaps(options) => (View::Gaps, options),
            MemoryView::Ranks(options) => (View::Ranks, options),
            MemoryView::Issues(options) => (View::Issues, options),
        }
    }
}

fn answer(options: &MemoryOptions, view: View) -> anyhow::Result<Memory> {
    let mut analyzer = Analyzer::new(Rules::default());
    let read = input::read(&options.inputs, options.strict, &mut |event| {
        analyzer.add(event)
    })?;
    let report = analyzer.finish();
    let wants_points = view == View::Timeline || options.html.is_some() || options.csv.is_some();
    let question = MemoryQuestion {
        points: if wants_points { options.points } else { 0 },
    };
    let mut answer = memory_answer(&report, question);
    answer.sources = read.sources;
    for session in &mut answer.sessions {
        session.status = read.status.get(&session.session).copied();
    }
    answer.skipped.splice(
        0..0,
        read.skipped
            .into_iter()
            .map(|(reason, count)| Skip { reason, count }),
    );
    for note in read.notes {
        eprintln!("warptrace: {note}");
    }
    if answer.events == 0 {
        bail!("no event of GPU memory in {}", answer.sources.join(", "));
    }
    Ok(answer)
}

/// Writes `bytes` to a file, or for `-` to stdout. Says whether it was stdout.
fn write(to: &Path, bytes: &[u8]) -> anyhow::Result<bool> {
    if to == Path::new("-") {
        output::print(&String::from_utf8_lossy(bytes))?;
        return Ok(true);
    }
    let folder = to.parent().filter(|f| !f.as_os_str().is_empty());
    if let Some(folder) = folder
        && !folder.is_dir()
    {
        bail!("there is no folder {folder:?} to write {to:?} in");
    }
    let mut file = std::fs::File::create(to).with_context(|| format!("cannot write {to:?}"))?;
    file.write_all(bytes)
        .and_then(|()| file.flush())
        .with_context(|| format!("cannot write {to:?}"))?;
    eprintln!(
        "wrote {} ({})",
        to.display(),
        warptrace_api::size_text(bytes.len() as i64)
    );
    Ok(false)
}
