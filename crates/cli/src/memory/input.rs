//! Files and folders of telemetry: which of them there are, and their events one after another.
//!
//! A folder that is no sink itself is searched for sinks and telemetry files, links not followed.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::num::NonZero;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use warptrace_agent::load_memory;
use warptrace_formats::memory::{
    LineError, LoadError, LoadOptions, MANIFEST, Skipped, Strictness, looks_like_segment, read_csv,
};
use warptrace_model::MemoryEvent;

/// Entries of a folder, and folders below one another, that are looked at.
const MAX_ENTRIES: usize = 1_000_000;
const MAX_DEPTH: usize = 6;

/// What was read beside the events.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) sources: Vec<String>,
    pub(super) skipped: Vec<(String, u64)>,
    /// How sessions ended, by id, as their writers or their events say.
    pub(super) status: HashMap<String, &'static str>,
    /// For stderr.
    pub(super) notes: Vec<String>,
}

/// Gives every event of `inputs` to `each`.
pub(super) fn read(
    inputs: &[PathBuf],
    strict: bool,
    each: &mut (dyn FnMut(&MemoryEvent) + Send),
) -> anyhow::Result<Taken> {
    let mut places = Vec::new();
    for input in inputs {
        let found = find(input)?;
        if found.is_empty() {
            bail!(
                "no telemetry in {}: neither a sink's manifest or segments, nor a .jsonl, .json or .csv file of events",
                input.display()
            );
        }
        places.extend(found);
    }
    let bar = progress();
    let options = LoadOptions {
        strictness: if strict {
            Strictness::Strict
        } else {
            Strictness::Lenient
        },
        ..LoadOptions::default()
    };
    let mut taken = Taken::default();
    let mut skipped: BTreeMap<String, u64> = BTreeMap::new();
    let alone = places.len() == inputs.len();
    for place in &places {
        match read_place(place, &options, &bar, &mut taken, each) {
            Ok(read) => {
                taken.sources.push(place.display().to_string());
                for (reason, count) in &read.by_reason {
                    *skipped.entry((*reason).to_owned()).or_default() += count;
                }
                let left_out: u64 = read.by_reason.values().sum();
                if let Some(example) = read.examples.first() {
                    let s = if left_out == 1 { "" } else { "s" };
                    taken
                        .notes
                        .push(format!("{example} ({left_out} record{s} left out)"));
                }
                for name in &read.refused {
                    taken.notes.push(format!(
                        "{}: its manifest names {name:?}, which is not in its folder (left out)",
                        place.display()
                    ));
                }
            }
            // What was only found while searching may be something else.
            Err(e) if !alone && !strict => {
                taken.notes.push(format!("{e:#} (file left out)"));
                *skipped.entry("unreadable_file".into()).or_default() += 1;
            }
            Err(e) => return Err(e),
        }
    }
    bar.finish_and_clear();
    taken.skipped = skipped.into_iter().collect();
    Ok(taken)
}

/// How far it is, on a terminal.
fn progress() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {pos} events, {elapsed}  {msg}") {
        bar.set_style(style);
    }
    bar
}

/// The place itself, or the places below a folder that is none.
fn find(input: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let kind = std::fs::metadata(input).with_context(|| match input.components().count() {
        1 => format!("no file or folder {input:?} here"),
        _ => format!("cannot read {input:?}"),
    })?;
    if !kind.is_dir() {
        return Ok(vec![input.to_owned()]);
    }
    let mut found = Vec::new();
    let mut left = MAX_ENTRIES;
    search(input, 0, &mut left, &mut found)?;
    if left == 0 {
        bail!("more than {MAX_ENTRIES} entries below {input:?}: name the folders to read");
    }
    found.sort();
    Ok(found)
}

fn search(
    folder: &Path,
    depth: usize,
    left: &mut usize,
    found: &mut Vec<PathBuf>,
) -> anyhow::Result<()> {
    let (mut files, mut folders, mut sink) = (Vec::new(), Vec::new(), false);
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {folder:?}"))?;
    for entry in entries.flatten() {
        *left = left.saturating_sub(1);
        if *left == 0 {
            return Ok(());
        }
        let (name, Ok(kind)) = (entry.file_name(), entry.file_type()) else {
            continue;
        };
        let name = name.to_string_lossy();
        if kind.is_dir() {
            folders.push(entry.path());
        } else if kind.is_file() {
            sink |= name == MANIFEST || looks_like_segment(&name);
            if is_telemetry(&name) {
                files.push(entry.path());
            }
        }
    }
    if sink {
        found.push(folder.to_owned());
        return Ok(());
    }
    found.append(&mut files);
    if depth < MAX_DEPTH {
        for folder in folders {
            search(&folder, depth + 1, left, found)?;
        }
    }
    Ok(())
}

/// Whether a file's name says that it may hold events.
fn is_telemetry(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let speaks = ["event", "track", "telemetry"]
        .iter()
        .any(|w| name.contains(w));
    name.ends_with(".jsonl") || (speaks && (name.ends_with(".json") || name.ends_with(".csv")))
}

fn read_place(
    path: &Path,
    options: &LoadOptions,
    bar: &ProgressBar,
    taken: &mut Taken,
    each: &mut (dyn FnMut(&MemoryEvent) + Send),
) -> anyhow::Result<Skipped> {
    bar.set_message(path.display().to_string());
    let is_table = path
        .extension()
        .is_some_and(|x| x.eq_ignore_ascii_case("csv"));
    if is_table && path.is_file() {
        return read_table(path, options, bar, each);
    }
    let threads = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
    let load = load_memory(path, options, threads, &mut |_, events| {
        bar.inc(events.len() as u64);
        events.iter().for_each(&mut *each);
    });
    match load {
        Ok(load) => {
            for session in load.sessions {
                let id = session.summary.session_id.to_string();
                taken.status.insert(id, session.summary.status.name());
            }
            Ok(load.skipped)
        }
        Err(e) => Err(load_error(e)),
    }
}

/// The error with its place in front, once.
fn load_error(e: LoadError) -> anyhow::Error {
    match &e {
        LoadError::Line {
            error: LineError::Record(_),
            ..
        }
        | LoadError::Record { .. }
        | LoadError::Document { .. } => {
            let place = e.place();
            anyhow::Error::new(e).context(place)
        }
        _ => e.into(),
    }
}

fn read_table(
    path: &Path,
    options: &LoadOptions,
    bar: &ProgressBar,
    each: &mut (dyn FnMut(&MemoryEvent) + Send),
) -> anyhow::Result<Skipped> {
    let text = path.display().to_string();
    let cannot = || format!("cannot read {path:?}");
    let resolved = path.canonicalize().with_context(cannot)?;
    let file = File::open(path).with_context(cannot)?;
    let mut skipped = Skipped::default();
    let mut first_error = None;
    read_csv(
        file,
        &resolved.to_string_lossy(),
        &mut |row, event| match event {
            Ok(event) => {
                bar.inc(1);
                each(&event);
            }
            Err(error) => {
                skipped.add(error.reason(), || format!("{text}:{row}: {error}"));
                first_error.get_or_insert_with(|| format!("{text}:{row}: {error}"));
            }
        },
    )
    .with_context(cannot)?;
    match first_error {
        Some(error) if options.strictness == Strictness::Strict => bail!(error),
        _ => Ok(skipped),
    }
}
