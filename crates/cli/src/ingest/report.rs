//! What became of each file: for people, and as `warptrace.ingest/v1`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use warptrace_store::sqlite::Tally;

use super::detect::Format;

/// Files that are reported one by one; the rest is counted.
const FILES: usize = 1_000;
/// Reasons for which rows of one file were left out that are told one by one.
const REASONS: usize = 64;
/// Places that are named of one reason.
const PLACES: usize = 3;

/// Version of the JSON.
const SCHEMA: &str = "warptrace.ingest/v1";

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    pub(crate) sessions: Vec<SessionReport>,
    /// Rows of all files.
    kept: u64,
    skipped: u64,
    files: Vec<FileReport>,
    more_files: u64,
    /// Files of no known format, or that cannot be read.
    unread_files: u64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct SessionReport {
    pub(crate) id: String,
    pub(crate) path: String,
    pub(crate) node: String,
    pub(crate) kept: u64,
    pub(crate) gaps: Vec<GapReport>,
}

#[derive(Debug, Serialize)]
pub(crate) struct GapReport {
    pub(crate) code: &'static str,
    pub(crate) detail: String,
    pub(crate) count: u64,
}

/// One file, or the folder of a sink.
#[derive(Debug, Default, Serialize)]
pub(crate) struct FileReport {
    path: String,
    format: Option<&'static str>,
    /// Ids of the sessions that it went to.
    pub(crate) sessions: Vec<String>,
    /// Rows kept, by table.
    kept: BTreeMap<String, u64>,
    skipped: Vec<SkippedReport>,
    /// Some of those that were left out, where it is not told which is of which reason.
    examples: Vec<String>,
    damage: Vec<String>,
    /// Why nothing of it could be read.
    error: Option<String>,
    #[serde(skip)]
    words: &'static str,
}

#[derive(Debug, Serialize)]
struct SkippedReport {
    reason: String,
    count: u64,
    places: Vec<String>,
}

/// Text of a file, or a file's name, for a terminal: what would control that is U+FFFD.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

impl FileReport {
    pub(crate) fn new(path: &Path, format: Format) -> FileReport {
        FileReport {
            path: path.display().to_string(),
            format: Some(format.name()),
            words: format.words(),
            ..FileReport::default()
        }
    }

    pub(crate) fn unread(path: &Path, why: String) -> FileReport {
        FileReport {
            path: path.display().to_string(),
            error: Some(why),
            ..FileReport::default()
        }
    }

    pub(crate) fn keep(&mut self, table: &str, rows: u64) {
        if rows > 0 {
            *self.kept.entry(table.to_owned()).or_default() += rows;
        }
    }

    /// Counts one that was left out; `place` is made only while places are wanted.
    pub(crate) fn skip(&mut self, reason: &str, place: impl FnOnce() -> String) {
        self.skip_many(reason, 1);
        let places = self.skipped.iter_mut().find(|s| s.reason == reason);
        if let Some(skipped) = places
            && skipped.places.len() < PLACES
        {
            skipped.places.push(place());
        }
    }

    pub(crate) fn skip_many(&mut self, reason: &str, count: u64) {
        let known = self.skipped.iter().position(|s| s.reason == reason);
        let reason = match known.is_some() || self.skipped.len() < REASONS {
            true => reason,
            false => "other reasons",
        };
        match self.skipped.iter_mut().find(|s| s.reason == reason) {
            Some(skipped) => skipped.count += count,
            None => self.skipped.push(SkippedReport {
                reason: reason.to_owned(),
                count,
                places: Vec::new(),
            }),
        }
    }

    pub(crate) fn examples(&mut self, examples: Vec<String>) {
        self.examples = examples;
    }

    pub(crate) fn damaged(&mut self, what: String) {
        self.damage.push(what);
    }

    pub(crate) fn fail(&mut self, why: String) {
        self.error = Some(why);
    }

    /// Takes over what a trace database's import, or an export, counted.
    pub(crate) fn take(&mut self, tally: Tally) {
        for (table, rows) in tally.kept {
            self.keep(table, rows);
        }
        for ((_, reason), skipped) in tally.skipped {
            self.skip_many(&reason, skipped.count);
            if let Some(own) = self.skipped.iter_mut().find(|s| s.reason == reason) {
                own.places.extend(skipped.places);
                own.places.truncate(PLACES);
            }
        }
        self.damage.extend(tally.damage);
    }

    pub(crate) fn kept(&self) -> u64 {
        self.kept.values().sum()
    }

    fn skipped(&self) -> u64 {
        self.skipped.iter().map(|s| s.count).sum()
    }

    /// Some lines for people.
    fn text(&self) -> String {
        let mut out = String::new();
        let path = clean(&self.path);
        if let Some(error) = &self.error
            && self.kept.is_empty()
        {
            let _ = writeln!(out, "  {path}: {}", clean(error));
            return out;
        }
        let kept: Vec<String> = self
            .kept
            .iter()
            .map(|(table, n)| format!("{n} {table}"))
            .collect();
        let kept = match kept.is_empty() {
            true => "nothing".to_owned(),
            false => kept.join(", "),
        };
        let _ = writeln!(out, "  {path}  ({})  kept {kept}", self.words);
        for skipped in &self.skipped {
            let places = match skipped.places.is_empty() {
                true => String::new(),
                false => format!(
                    "  ({}{})",
                    clean(&skipped.places.join(", ")),
                    if skipped.count > skipped.places.len() as u64 {
                        ", …"
                    } else {
                        ""
                    }
                ),
            };
            let _ = writeln!(
                out,
                "    left out {} × {}{places}",
                skipped.count, skipped.reason
            );
        }
        for example in self.examples.iter().take(PLACES) {
            let _ = writeln!(out, "    such as  {}", clean(example));
        }
        for damage in self.damage.iter().chain(&self.error) {
            let _ = writeln!(out, "    damaged  {}", clean(damage));
        }
        out
    }
}

impl Report {
    pub(crate) fn new() -> Report {
        Report {
            schema: SCHEMA,
            sessions: Vec::new(),
            kept: 0,
            skipped: 0,
            files: Vec::new(),
            more_files: 0,
            unread_files: 0,
        }
    }

    pub(crate) fn add(&mut self, file: FileReport) {
        self.kept += file.kept();
        self.skipped += file.skipped();
        self.unread_files += u64::from(file.error.is_some() && file.kept.is_empty());
        if self.files.len() < FILES {
            self.files.push(file);
        } else {
            self.more_files += 1;
        }
    }

    pub(crate) fn kept(&self) -> u64 {
        self.kept
    }

    pub(crate) fn text(&self) -> String {
        /// Files that a person is shown.
        const SHOWN: usize = 20;
        let mut out = String::new();
        // Those that say something first.
        let mut files: Vec<&FileReport> = self.files.iter().collect();
        files.sort_by_key(|f| f.kept.is_empty());
        for file in files.iter().take(SHOWN) {
            out += &file.text();
        }
        let more = self.files.len().saturating_sub(SHOWN) as u64 + self.more_files;
        if more > 0 {
            let _ = writeln!(
                out,
                "  and {more} more files: warptrace ingest --json says them"
            );
        }
        let _ = writeln!(
            out,
            "kept {} rows, left out {}, could not read {} files",
            self.kept, self.skipped, self.unread_files
        );
        for session in &self.sessions {
            out.push('\n');
            let node = match session.node.is_empty() {
                true => String::new(),
                false => format!("  (node {})", clean(&session.node)),
            };
            let _ = writeln!(out, "session {}{node}  {} rows", session.id, session.kept);
            for gap in &session.gaps {
                let times = if gap.count > 1 {
                    format!(" (× {})", gap.count)
                } else {
                    String::new()
                };
                let _ = writeln!(out, "  unknown  {}{times}", gap.detail);
            }
            let _ = writeln!(out, "  warptrace explain {}", session.id);
        }
        out
    }
}
