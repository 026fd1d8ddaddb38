//! `memory`: GPU memory over time, from sessions, telemetry files and folders, with what is wrong with it.
//!
//! Reads once and keeps no events: files may be larger than memory.

mod csv;
mod html;
mod input;
mod text;

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use warptrace_api::{Memory, MemoryQuestion, Skip, memory_answer};
use warptrace_engine::memory::{Analyzer, Rules};
use warptrace_model::Severity;

use crate::args::{Global, MemoryArgs, MemoryOptions, MemoryView};
use crate::{output, sessions};

pub(crate) fn run(global: &Global, args: &MemoryArgs) -> anyhow::Result<u8> {
    let (view, options) = match &args.view {
        Some(view) => view.parts(),
        None => (View::Summary, &args.options),
    };
    let inputs = inputs(global, &options.inputs)?;
    let mut answer = answer(&inputs, options, view)?;
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

/// What to read: files and folders of telemetry, and sessions of ours.
struct Inputs {
    files: Vec<PathBuf>,
    sessions: Vec<PathBuf>,
}

/// Tells sessions from telemetry: a folder that has a `session.json`, or what is no file but begins a session's id. Without
/// any, the newest session.
fn inputs(global: &Global, named: &[PathBuf]) -> anyhow::Result<Inputs> {
    let mut inputs = Inputs {
        files: Vec::new(),
        sessions: Vec::new(),
    };
    for name in named {
        if name.join("session.json").is_file() {
            inputs.sessions.push(name.clone());
        } else if !name.exists()
            && let Some(id) = name.to_str().filter(|n| !n.contains('/'))
            && let Ok(session) = sessions::resolve(global, Some(id))
        {
            inputs.sessions.push(session);
        } else {
            inputs.files.push(name.clone());
        }
    }
    if named.is_empty() {
        inputs.sessions.push(sessions::resolve(global, None)?);
    }
    Ok(inputs)
}

fn answer(inputs: &Inputs, options: &MemoryOptions, view: View) -> anyhow::Result<Memory> {
    let mut analyzer = Analyzer::new(Rules::default());
    let mut read = input::read(&inputs.files, options.strict, &mut |event| {
        analyzer.add(event)
    })?;
    for folder in &inputs.sessions {
        let session = sessions::open(folder)
            .with_context(|| format!("cannot read the session {folder:?}"))?;
        read.sources.push(format!("session {}", session.meta().id));
        session.memory_events(|event| {
            analyzer.add(&event);
            ControlFlow::Continue(())
        })?;
    }
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
        let advice = match inputs.files.is_empty() {
            true => {
                " (the job took no memory on a GPU while it was recorded; to read telemetry, name its file or folder)"
            }
            false => "",
        };
        bail!(
            "no event of GPU memory in {}{advice}",
            answer.sources.join(", ")
        );
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
