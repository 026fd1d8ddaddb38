//! `ingest`: files of other systems become sessions.
//!
//! What a file is, its content says ([`detect`]). All goes into one session, whose boot clock is Unix time, so that it lies
//! on one timeline; but each node that a trace database names is a session of its own, since pids are a node's, and files
//! that name none go with the first. Files are read as they are met, one after the other, in constant memory; then the
//! engine judges what was traced ([`judge`]).

mod detect;
mod judge;
mod lines;
mod memory;
mod report;
mod walk;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use warptrace_capture::clock;
use warptrace_model::{BootNanos, ClockAnchor, UnixNanos};
use warptrace_store::fs::RealFs;
use warptrace_store::sqlite::{Tally, Totals, TraceDb, TraceDbError};
use warptrace_store::{DataDir, SessionMeta, SessionWriter};

use self::detect::{Format, HEAD_BYTES, detect};
use self::report::{FileReport, GapReport, Report, SessionReport};
use self::walk::{Met, walk};
use crate::args::{Global, IngestArgs};
use crate::{launch, output, sessions};

/// Databases whose counts are kept at hand until their session is judged.
const DATABASES: usize = 64;
/// Rows after which the writer is told the time.
const TICK_ROWS: u64 = 65_536;

pub(crate) fn run(global: &Global, args: &IngestArgs) -> anyhow::Result<u8> {
    for path in &args.paths {
        // What was named and is not there is a slip, found before anything is written.
        std::fs::metadata(path).with_context(|| format!("cannot read {path:?}"))?;
    }
    let mut ingest = Ingest {
        dirs: sessions::data_dir(global)?,
        open: Vec::new(),
        report: Report::new(),
        progress: Progress::new(),
        sink: None,
    };
    for path in &args.paths {
        walk(path, &mut |met| ingest.meet(met))?;
    }
    let report = ingest.finish()?;
    if args.output.json {
        output::print_json(&report)?;
    } else {
        output::print(&report.text())?;
    }
    Ok(u8::from(report.kept() == 0))
}

struct Ingest {
    dirs: DataDir,
    open: Vec<Open>,
    report: Report,
    progress: Progress,
    /// The folder of a sink that was read: its files were, too.
    sink: Option<PathBuf>,
}

/// A session being made.
struct Open {
    /// That its rows name; `None` while nothing has named one.
    node: Option<String>,
    writer: SessionWriter,
    times: Times,
    databases: Vec<TraceDb>,
    traced: bool,
    partly_switched: BTreeSet<u32>,
    last_stack: u32,
    kept: u64,
    /// After the writer, which must be gone before.
    unfinished: Unfinished,
}

/// A session's folder, removed unless it is finished: half an import is none, and neither is an empty one.
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn finished(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(folder) = self.0.take()
            && let Err(e) = warptrace_store::remove(&RealFs, &folder)
        {
            eprintln!(
                "warptrace: {folder:?} is not whole, and cannot be removed: {}",
                chain(e)
            );
        }
    }
}

/// From when to when a session is.
#[derive(Default)]
pub(crate) struct Times {
    span: Option<(u64, u64)>,
    rows: u64,
}

impl Times {
    /// Takes note of a row that is about `start` to `end`, Unix ns, and tells the writer the time now and then.
    pub(crate) fn see(&mut self, writer: &mut SessionWriter, start: u64, end: u64) {
        self.widen(start, end);
        self.rows += 1;
        if self.rows.is_multiple_of(TICK_ROWS)
            && let Some((_, last)) = self.span
        {
            writer.tick(BootNanos(last));
        }
    }

    fn widen(&mut self, start: u64, end: u64) {
        let (first, last) = self.span.unwrap_or((start, end));
        self.span = Some((first.min(start), last.max(end)));
    }
}

impl Ingest {
    /// A file or folder on the way.
    fn meet(&mut self, met: Met<'_>) -> anyhow::Result<bool> {
        match met {
            Met::Left(path, why) => self.report.add(FileReport::unread(path, why)),
            Met::Folder(path) => {
                if memory::is_sink(path) {
                    self.take(path, Format::MemorySink)?;
                    self.sink = Some(path.to_owned());
                }
            }
            Met::File(path) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if self.sink.is_some()
                    && self.sink.as_deref() == path.parent()
                    && memory::is_of_sink(&name)
                {
                    return Ok(true);
                }
                let mut head = Vec::new();
                let read = File::open(path)
                    .and_then(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut head));
                match read.map(|_| detect(&head)) {
                    Ok(Ok(format)) => self.take(path, format)?,
                    Ok(Err(unknown)) => {
                        let why = unknown.words().to_owned();
                        self.report.add(FileReport::unread(path, why));
                    }
                    Err(e) => {
                        let why = format!("it cannot be read: {e}");
                        self.report.add(FileReport::unread(path, why));
                    }
                }
            }
        }
        Ok(true)
    }

    fn take(&mut self, path: &Path, format: Format) -> anyhow::Result<()> {
        let mut report = FileReport::new(path, format);
        if format == Format::TraceDb {
            self.trace_db(path, &mut report)?;
            self.report.add(report);
            return Ok(());
        }
        self.progress
            .file(path, std::fs::metadata(path).map_or(0, |m| m.len()));
        let at = self.session_of(None)?;
        let Ingest { open, progress, .. } = self;
        let Open {
            writer,
            times,
            kept,
            ..
        } = &mut open[at];
        let result = match format {
            Format::Annotations => lines::annotations(path, writer, times, &mut report, progress),
            Format::RunLog => lines::run_log(path, writer, times, &mut report, progress),
            _ => memory::take(path, format, writer, times, &mut report, progress),
        };
        if let Err(e) = result {
            // One file that cannot be read does not keep the others from it.
            report.fail(format!("{e:#}"));
        }
        if let Some((_, last)) = times.span {
            writer.tick(BootNanos(last));
        }
        *kept += report.kept();
        if report.kept() > 0 {
            report.sessions.push(writer.meta().id.clone());
            writer.describe(|meta| add_source(meta, format));
        }
        refused(writer)?;
        self.report.add(report);
        Ok(())
    }

    fn trace_db(&mut self, path: &Path, report: &mut FileReport) -> anyhow::Result<()> {
        let db = match TraceDb::open(path) {
            Ok(db) => db,
            Err(e) => {
                report.fail(chain(e));
                return Ok(());
            }
        };
        // The rows are gone through once to survey them, and once for each node.
        self.progress.file(path, db.rows() * 2);
        let survey = match db.survey(&mut |rows| self.progress.rows(rows)) {
            Ok(survey) => survey,
            Err(e) => {
                report.fail(chain(e));
                return Ok(());
            }
        };
        let mut tally = Tally::default();
        if survey.rows_of_other_nodes > 0 {
            report.skip_many(
                "rows of more nodes than are told apart",
                survey.rows_of_other_nodes,
            );
        }
        let alone = survey.nodes.len() == 1;
        let mut db = Some(db);
        for node in &survey.nodes {
            let Some(trace) = &db else { break };
            let at = self.session_of(Some(&node.name))?;
            let Ingest { open, progress, .. } = self;
            let session = &mut open[at];
            let learned = trace.session_meta(node, clock::anchor().unix)?;
            session.writer.describe(|meta| {
                meta.host = learned.host;
                meta.node = learned.node;
                meta.identity = learned.identity;
                if !learned.kernel.is_empty() {
                    meta.kernel = learned.kernel;
                }
                meta.cpus = learned.cpus.max(meta.cpus);
                add_source(meta, Format::TraceDb);
            });
            let before = tally.kept_rows();
            let rows = db.as_ref().map_or(0, TraceDb::rows);
            let imported = trace.import(
                node,
                alone,
                session.last_stack,
                &mut session.writer,
                &mut tally,
                &mut |done| progress.rows(rows + done),
            )?;
            if node.last > 0 {
                session.times.widen(node.first, node.last);
            }
            let kept = tally.kept_rows() - before;
            session.kept += kept;
            session.traced = true;
            session.last_stack = imported.last_stack;
            session.partly_switched.extend(imported.partly_switched);
            if kept > 0 {
                report.sessions.push(session.writer.meta().id.clone());
            }
            refused(&mut session.writer)?;
            if trace.changed() {
                tally
                    .damage
                    .push(TraceDbError::Changed(path.to_owned()).to_string());
            }
            if imported.has_aggregates {
                if session.databases.len() < DATABASES {
                    session.databases.extend(db.take());
                } else {
                    report.skip_many("event_aggregates of more files than are held at once", 1);
                }
            }
        }
        report.take(tally);
        Ok(())
    }

    /// The session of `node`; for what names none, the first.
    fn session_of(&mut self, node: Option<&str>) -> anyhow::Result<usize> {
        let found = match node {
            None => (!self.open.is_empty()).then_some(0),
            Some(node) => self
                .open
                .iter()
                .position(|o| o.node.as_deref() == Some(node))
                .or_else(|| self.open.iter().position(|o| o.node.is_none())),
        };
        let at = match found {
            Some(at) => at,
            None => {
                let writer = create(&self.dirs)?;
                let unfinished = Unfinished(Some(writer.path().to_owned()));
                self.open.push(Open {
                    node: None,
                    writer,
                    unfinished,
                    times: Times::default(),
                    databases: Vec::new(),
                    traced: false,
                    partly_switched: BTreeSet::new(),
                    last_stack: 0,
                    kept: 0,
                });
                self.open.len() - 1
            }
        };
        if let Some(node) = node {
            self.open[at].node = Some(node.to_owned());
        }
        Ok(at)
    }

    /// Judges and seals the sessions; those that nothing was kept for are removed.
    fn finish(mut self) -> anyhow::Result<Report> {
        for mut open in std::mem::take(&mut self.open) {
            let folder = open.writer.path().to_owned();
            if open.kept == 0 {
                continue;
            }
            let (first, last) = open.times.span.unwrap_or_default();
            open.writer.describe(|meta| meta.created = UnixNanos(first));
            open.writer.tick(BootNanos(last));
            open.writer.flush_now();
            if open.traced {
                self.progress.judging(open.kept);
                let session = sessions::open(&folder)?;
                let totals = Totals::new(&open.databases);
                judge::judge(
                    &mut open.writer,
                    &session,
                    totals,
                    &open.partly_switched,
                    &self.progress,
                )?;
            }
            refused(&mut open.writer)?;
            let (id, node) = (
                open.writer.meta().id.clone(),
                open.writer.meta().node.clone(),
            );
            open.writer.seal().context("cannot seal the session")?;
            open.unfinished.finished();
            let gaps = sessions::open(&folder)?.gaps()?;
            self.report.sessions.push(SessionReport {
                id,
                path: folder.display().to_string(),
                node,
                kept: open.kept,
                gaps: gaps
                    .into_iter()
                    .map(|gap| GapReport {
                        code: gap.code.name(),
                        detail: gap.detail,
                        count: gap.count,
                    })
                    .collect(),
            });
        }
        self.progress.end();
        Ok(self.report)
    }
}

fn add_source(meta: &mut SessionMeta, format: Format) {
    let name = format.name();
    if !meta.sources.iter().any(|s| s == name) {
        meta.sources.push(name.to_owned());
    }
}

/// Begins a session whose boot clock is Unix time.
fn create(dirs: &DataDir) -> anyhow::Result<SessionWriter> {
    let mut meta = SessionMeta::new(clock::anchor());
    meta.clock = vec![ClockAnchor {
        boot: BootNanos(0),
        unix: UnixNanos(0),
    }];
    meta.uid = launch::calling_user().map_or_else(
        || nix::unistd::Uid::effective().as_raw(),
        |(uid, _)| uid.as_raw(),
    );
    SessionWriter::create(Arc::new(RealFs), dirs, meta).context("cannot begin a session")
}

/// Whether the disk refused: half an import is none.
fn refused(writer: &mut SessionWriter) -> anyhow::Result<()> {
    let lost: u64 = writer.losses().iter().map(|l| l.count).sum();
    match writer.failing() {
        None if lost == 0 => Ok(()),
        None => bail!("the disk refused {lost} rows"),
        Some(e) => bail!("the disk refused what was read: {}", chain_of(e)),
    }
}

/// An error with its causes, on one line.
fn chain(e: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::new(e))
}

fn chain_of(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(source) = next {
        text += &format!(": {source}");
        next = source.source();
    }
    text
}

/// How far it has come, on a terminal.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    done: AtomicU64,
}

impl Progress {
    fn new() -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("  {bar:30} {percent:>3}%  {elapsed}  {msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(1).with_style(style.progress_chars("━╸─"))
        });
        Progress {
            bar,
            done: AtomicU64::new(0),
        }
    }

    /// A file begins, of so many bytes or rows.
    fn file(&self, path: &Path, length: u64) {
        self.done.store(0, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            let name = path
                .file_name()
                .unwrap_or(path.as_os_str())
                .to_string_lossy();
            bar.set_length(length.max(1));
            bar.set_position(0);
            bar.set_message(report::clean(&name));
        }
    }

    /// So many more bytes of it were read.
    pub(crate) fn bytes(&self, n: u64) {
        let done = self.done.fetch_add(n, Ordering::Relaxed) + n;
        self.rows(done);
    }

    /// So many of its rows were read.
    pub(crate) fn rows(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done.min(bar.length().unwrap_or(done)));
        }
    }

    fn judging(&self, events: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(events.max(1));
            bar.set_position(0);
            bar.set_message("judging");
        }
    }

    pub(crate) fn judged(&self, done: u64) {
        self.rows(done);
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
