//! Records in a file, a JSON object a line.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use warptrace_formats::span_record::Keys;
use warptrace_model::{Identity, Object, StatedIdentity};

use super::records::{Form, Lines, Records, Sink};
use crate::fork::process_id;
use crate::span::{Event, ExportError, Exporter, Span};

/// Bytes of records that are brought together for one write.
const BATCH_BYTES: usize = 64 << 10;
/// How long a file that could not be written is left alone.
const RETRY: Duration = Duration::from_secs(1);

/// What to do with a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Write behind what it has.
    #[default]
    Append,
    /// Lose what it has.
    Truncate,
    /// Rename it as [`Rotation`] does, and begin a new one.
    Rotate,
}

/// When a file is full, it becomes `NAME.1`, what was that `NAME.2`, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// A file does not grow beyond this, unless one batch of records alone is longer. 0: never full.
    pub max_bytes: u64,
    /// Renamed files that are kept.
    pub keep: u32,
}

impl Default for Rotation {
    fn default() -> Rotation {
        Rotation {
            max_bytes: 0,
            keep: 5,
        }
    }
}

/// Appends records to a file: [`warptrace_formats::span_record`] says which.
///
/// Whole records go out in one `write` on a descriptor in append mode, so that ranks and forked children may share a file, and a
/// process that is killed leaves whole records but perhaps one. `{pid}`, `{rank}` and `{host}` in the path give each its own; the
/// rank is what a launcher's variables say (as [`Identity::resolve`]), else 0. Missing folders are made.
///
/// By default records are written in batches: at the latest when the recorder's thread has emptied its queue, which is within
/// milliseconds. Where the exporter is called by the program's own threads nobody says that there is nothing more for now:
/// [`JsonlFile::each_record`] is for that.
///
/// A file that cannot be written (a full disk) fails once, what comes within the next second is dropped and counted, and then it
/// is tried again. When it works again, a `telemetry_data_error` record says how many records are missing (`lost_records`).
pub struct JsonlFile {
    records: Records<Target>,
}

#[derive(Debug)]
struct Target {
    /// With placeholders.
    path: PathBuf,
    existing: Existing,
    rotation: Rotation,
    batch_bytes: usize,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct Process {
    open: Option<Open>,
    retry_at: Option<Instant>,
    /// Records lost that no record tells of.
    untold: u64,
}

#[derive(Debug)]
struct Open {
    file: File,
    path: PathBuf,
    /// Regular: it has a size, a last byte, and can be renamed or deleted.
    regular: bool,
    /// The last line is not whole.
    owes_line_feed: bool,
}

impl JsonlFile {
    /// Nothing is opened before a recorder asks for it.
    pub fn new(path: impl Into<PathBuf>) -> JsonlFile {
        let target = Target {
            path: path.into(),
            existing: Existing::default(),
            rotation: Rotation::default(),
            batch_bytes: BATCH_BYTES,
            lost: AtomicU64::new(0),
        };
        JsonlFile {
            records: Records::new(target, Form::default()),
        }
    }

    fn with(self, change: impl FnOnce(&mut Target, &mut Form)) -> JsonlFile {
        let mut form = self.records.form();
        let mut target = self.records.sink;
        change(&mut target, &mut form);
        JsonlFile {
            records: Records::new(target, form),
        }
    }

    #[must_use]
    pub fn existing(self, existing: Existing) -> JsonlFile {
        self.with(|target, _| target.existing = existing)
    }

    #[must_use]
    pub fn rotation(self, rotation: Rotation) -> JsonlFile {
        self.with(|target, _| target.rotation = rotation)
    }

    /// Which keys records have.
    #[must_use]
    pub fn keys(self, keys: Keys) -> JsonlFile {
        self.with(|_, form| form.keys = keys)
    }

    /// Whether a start waits for what comes next, to be one `complete` record with its stop when that is it. It makes files
    /// smaller; a crash loses what waits.
    #[must_use]
    pub fn merge_starts(self, merge_starts: bool) -> JsonlFile {
        self.with(|_, form| form.merge_starts = merge_starts)
    }

    /// Writes each record by itself, before the call returns.
    #[must_use]
    pub fn each_record(self) -> JsonlFile {
        self.with(|target, _| target.batch_bytes = 0)
    }

    /// Attributes that were left out because their records would have been too long.
    pub fn dropped_attributes(&self) -> u64 {
        self.records.dropped_attributes.load(Ordering::Relaxed)
    }

    /// The path in this process.
    pub fn path(&self) -> PathBuf {
        self.records.sink.resolved()
    }
}

impl Target {
    fn resolved(&self) -> PathBuf {
        let environment = |name: &str| std::env::var(name).ok();
        let rank = || {
            let nothing = Object::new();
            let identity =
                Identity::resolve(StatedIdentity::of(&nothing), None, Some(&environment));
            identity.map_or_else(|_| "0".to_owned(), |identity| identity.rank.to_string())
        };
        let host = || {
            let name = nix::unistd::gethostname().unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        let Some(text) = self.path.to_str() else {
            return self.path.clone();
        };
        if !text.contains('{') {
            return self.path.clone();
        }
        let mut text = text.replace("{pid}", &process_id().to_string());
        if text.contains("{rank}") {
            text = text.replace("{rank}", &rank());
        }
        if text.contains("{host}") {
            text = text.replace("{host}", &host());
        }
        text.into()
    }

    fn open(&self, path: &Path, existing: Existing) -> io::Result<Open> {
        if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)?;
        }
        if existing == Existing::Rotate
            && path.metadata().is_ok_and(|m| m.is_file() && m.size() > 0)
        {
            self.shift(path)?;
        }
        let open = |readable: bool| {
            OpenOptions::new()
                .read(readable)
                .append(true)
                .create(true)
                // A pipe without a reader is an error, not a wait.
                .custom_flags(OFlag::O_NONBLOCK.bits())
                .open(path)
        };
        let is_file = path.metadata().map_or(true, |m| m.is_file());
        let file = match open(is_file) {
            Err(e) if is_file && e.kind() == io::ErrorKind::PermissionDenied => open(false)?,
            opened => opened?,
        };
        let metadata = file.metadata()?;
        let regular = metadata.is_file();
        if existing == Existing::Truncate && regular {
            file.set_len(0)?;
        }
        let look = regular && existing != Existing::Truncate;
        let owes_line_feed = look && !ends_with_a_line(&file);
        Ok(Open {
            file,
            path: path.to_owned(),
            regular,
            owes_line_feed,
        })
    }

    /// Makes way for a new file at `path`.
    fn shift(&self, path: &Path) -> io::Result<()> {
        let numbered = |n: u32| {
            let mut name = OsString::from(path);
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        let keep = self.rotation.keep;
        if keep == 0 {
            return std::fs::remove_file(path);
        }
        for n in (1..keep).rev() {
            match std::fs::rename(numbered(n), numbered(n + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        std::fs::rename(path, numbered(1))
    }

    /// A file that somebody will find, with room for `bytes` more.
    fn file<'p>(&self, process: &'p mut Process, bytes: u64) -> io::Result<&'p mut Open> {
        if let Some(open) = &process.open
            && open.regular
        {
            let metadata = open.file.metadata()?;
            let gone = metadata.nlink() == 0;
            let full = self.rotation.max_bytes > 0
                && metadata.size() > 0
                && metadata.size() + bytes > self.rotation.max_bytes;
            // Another process may have renamed it.
            let moved = self.rotation.max_bytes > 0 && !is_same(&metadata, &open.path);
            if full && !moved && !gone {
                self.rotate(open)?;
            }
            if gone || moved || full {
                process.open = None;
            }
        }
        match &mut process.open {
            Some(open) => Ok(open),
            none => Ok(none.insert(self.open(&self.resolved(), Existing::Append)?)),
        }
    }

    /// Of all who write to the file, one renames it. Whoever comes second finds it renamed.
    fn rotate(&self, open: &Open) -> io::Result<()> {
        if open.file.try_lock().is_err() {
            return Ok(());
        }
        let metadata = open.file.metadata()?;
        let shifted = match is_same(&metadata, &open.path) {
            true => self.shift(&open.path),
            false => Ok(()),
        };
        open.file.unlock()?;
        shifted
    }

    /// Writes whole records; how many of them are out when that fails.
    fn write(&self, process: &mut Process, text: &str) -> Result<(), (u64, io::Error)> {
        let open = self.file(process, text.len() as u64).map_err(|e| (0, e))?;
        // Ends the half line that stands before.
        let mend = usize::from(open.owes_line_feed);
        let bytes = match mend {
            0 => Cow::Borrowed(text.as_bytes()),
            _ => Cow::Owned([b"\n", text.as_bytes()].concat()),
        };
        let mut written = 0;
        let failed = loop {
            match (&open.file).write(&bytes[written..]) {
                Ok(0) => break io::ErrorKind::WriteZero.into(),
                Ok(n) => written += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break e,
            }
            if written == bytes.len() {
                open.owes_line_feed = false;
                return Ok(());
            }
        };
        let out = &bytes[..written];
        let line_feeds = out.iter().filter(|b| **b == b'\n').count();
        if written > 0 {
            open.owes_line_feed = !out.ends_with(b"\n");
        }
        if !open.regular {
            // A pipe may have a reader again when it is opened again.
            process.open = None;
        }
        Err((line_feeds.saturating_sub(mend) as u64, failed))
    }
}

/// Whether a file is empty or ends with a line feed. Half a line may be somebody's who is just writing it: that one is waited for, but
/// not for long. Where it cannot be seen, and where it stays half, the next record begins with a line feed: a blank line does no harm.
fn ends_with_a_line(file: &File) -> bool {
    for _ in 0..100 {
        let mut last = [b'\n'];
        let size = file.metadata().map_or(1, |m| m.size());
        let seen = match size.checked_sub(1) {
            Some(at) => file.read_exact_at(&mut last, at),
            None => Ok(()),
        };
        if seen.is_ok() && last == *b"\n" {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

fn is_same(metadata: &std::fs::Metadata, path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|there| (there.dev(), there.ino()) == (metadata.dev(), metadata.ino()))
}

impl Sink for Target {
    type Process = Process;

    fn put(&self, process: &mut Process, lines: &mut Lines, now: bool) -> Result<(), ExportError> {
        if lines.records == 0 || (!now && lines.text.len() < self.batch_bytes) {
            return Ok(());
        }
        let lose = |process: &mut Process, records: u64| {
            self.lost.fetch_add(records, Ordering::Relaxed);
            process.untold += records;
        };
        if process.retry_at.is_some_and(|at| Instant::now() < at) {
            lose(process, lines.records);
            lines.clear();
            return Ok(());
        }
        let written = self.write(process, &lines.text);
        let result = match written {
            Ok(()) => {
                process.retry_at = None;
                Ok(())
            }
            Err((whole, e)) => {
                lose(process, lines.records.saturating_sub(whole));
                process.retry_at = Some(Instant::now() + RETRY);
                let message = format!("cannot write to {:?}", self.resolved());
                Err(ExportError::of(format!("{message}: {e}"), e).with_code("file_not_written"))
            }
        };
        lines.clear();
        result
    }

    fn untold(&self, process: &mut Process) -> Option<u64> {
        let ready = process.untold > 0 && process.retry_at.is_none();
        ready.then(|| std::mem::take(&mut process.untold))
    }
}

impl Exporter for JsonlFile {
    /// Makes folders and opens the file, or says why not.
    fn initialize(&self) -> Result<(), ExportError> {
        let target = &self.records.sink;
        self.records.initialize(|process| {
            let path = target.resolved();
            let open = target.open(&path, target.existing).map_err(|e| {
                ExportError::of(format!("cannot open {path:?}: {e}"), e)
                    .with_code("file_not_opened")
            })?;
            *process = Process {
                open: Some(open),
                ..Process::default()
            };
            Ok(())
        })
    }

    fn start(&self, span: &Span) -> Result<(), ExportError> {
        self.records.start(span)
    }

    fn stop(&self, span: &Span) -> Result<(), ExportError> {
        self.records.stop(span)
    }

    fn event(&self, event: &Event, span: &Span) -> Result<(), ExportError> {
        self.records.event(event, span, false)
    }

    fn error(&self, event: &Event, span: &Span) -> Result<(), ExportError> {
        self.records.event(event, span, true)
    }

    fn data_error(&self, event: &Event) -> Result<(), ExportError> {
        self.records.data_error(event)
    }

    fn flush(&self, _: Duration) -> Result<(), ExportError> {
        self.records.flush()
    }

    fn close(&self, _: Duration) -> Result<(), ExportError> {
        self.records.close(|process| process.open = None)
    }

    /// Records that are not in the file.
    fn dropped(&self) -> u64 {
        self.records.sink.lost.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for JsonlFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("JsonlFile")
            .field(&self.records.sink)
            .finish()
    }
}
