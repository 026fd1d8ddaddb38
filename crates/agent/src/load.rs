//! Reads files of GPU memory telemetry, however large: pieces of whole lines go to several threads, and events come out in
//! the order of the files.
//!
//! What the bytes mean is `formats`' to say; what becomes of the events is the caller's. Here are the disk and the threads.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZero;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use warptrace_formats::memory::{
    Batch, Chunk, ChunkDecoder, Chunks, Folder, LoadError, LoadOptions, Place, Plan, Read, Segment,
    SessionInfo, Skipped, Strictness, Tally, Upgrade, note_bad_lines, plan, read_events,
    upgrade_of,
};
use warptrace_model::MemoryEvent;

/// Entries of a folder that are looked at.
pub const MAX_ENTRIES: usize = 1_000_000;

/// Events of a document that are handed over at once.
const BATCH: usize = 1024;

/// A folder of the disk. What is opened in it lies in it: neither a name nor a symbolic link leads out, and only regular
/// files are read.
#[derive(Debug)]
pub struct DiskFolder {
    path: PathBuf,
    /// Without symbolic links.
    resolved: PathBuf,
    /// The one file that may be anywhere, because the caller named it.
    named: Option<String>,
}

impl DiskFolder {
    /// # Errors
    /// There is no such folder.
    pub fn new(path: &Path) -> io::Result<DiskFolder> {
        Ok(DiskFolder {
            path: path.to_owned(),
            resolved: path.canonicalize()?,
            named: None,
        })
    }
}

impl Folder for DiskFolder {
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in self.path.read_dir()? {
            // A name that is no text is no segment's.
            names.extend(entry?.file_name().into_string());
            if names.len() > MAX_ENTRIES {
                let text = format!("more than {MAX_ENTRIES} entries");
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn io::Read + Send + '_>> {
        let path = self.path.join(name);
        if self.named.as_deref() != Some(name) && !path.canonicalize()?.starts_with(&self.resolved)
        {
            let text = "a link that leads out of its folder";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        let file = open_regular(&path)?;
        Ok(Box::new(file))
    }
}

/// Opens a regular file, without waiting for the writer of what turns out to be a pipe.
fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "no regular file",
        )),
    }
}

/// What a load came to, beside the events.
#[derive(Debug)]
pub struct MemoryLoad {
    /// The one to look at first in front. Those without events are among them.
    pub sessions: Vec<SessionInfo>,
    pub events: u64,
    pub skipped: Skipped,
}

/// Gives the events of `path` to `each` in the order of files and lines, with the path of their file: of a sink's folder, its
/// manifest, a `.jsonl` file, or a JSON document.
///
/// Lines are decoded by `threads` threads, the caller's among them, and `each` is called on any of them, by one at a time;
/// it may take the events. Memory: a few pieces of a file ([`Chunks::BYTES`], or one line), whatever the file's size.
///
/// # Errors
/// The place cannot be read; or, strictly, a record is bad, and what `each` was given counts for nothing.
pub fn load_memory(
    path: &Path,
    options: &LoadOptions,
    threads: NonZero<usize>,
    each: &mut (dyn FnMut(&Arc<str>, &mut Vec<MemoryEvent>) + Send),
) -> Result<MemoryLoad, LoadError> {
    let text = path.to_string_lossy().into_owned();
    let unreadable = |source| LoadError::Io {
        path: text.clone(),
        source,
    };
    let resolved = path.canonicalize().map_err(unreadable)?;
    let (folder, file) = if resolved.is_dir() {
        (DiskFolder::new(path).map_err(unreadable)?, None)
    } else {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| unreadable(io::ErrorKind::InvalidFilename.into()))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut folder = DiskFolder::new(parent).map_err(unreadable)?;
        folder.named = Some(name.to_owned());
        (folder, Some(name))
    };
    let place = Place {
        path: &text,
        resolved: &resolved.to_string_lossy(),
        folder: &folder,
        file,
    };
    let mut tally = Tally::default();
    let read = match plan(&place)? {
        Plan::Document { .. } => read_document(&place, options, &mut tally, each)?,
        Plan::Lines {
            segments,
            manifest,
            refused,
        } => {
            let mut read = Read::default();
            read.skipped.refused = refused;
            read.summaries = manifest.map(|m| m.sessions).unwrap_or_default();
            let upgrades = segments.iter().map(|s| upgrade_of(&place, s, options));
            let upgrades: Vec<Upgrade> = upgrades.collect();
            let lines = Lines {
                folder: &folder,
                segments: &segments,
                upgrades: &upgrades,
                strictness: options.strictness,
                source: Mutex::new(Source::default()),
                delivery: Mutex::new(Delivery {
                    turn: 0,
                    failed: None,
                    stopped: false,
                    events: vec![0; segments.len()],
                    read,
                    tally: &mut tally,
                    each,
                }),
                turn: Condvar::new(),
            };
            lines.run(threads)?
        }
    };
    Ok(MemoryLoad {
        events: read.events,
        sessions: tally.finish(&place, &read),
        skipped: read.skipped,
    })
}

fn read_document(
    place: &Place<'_>,
    options: &LoadOptions,
    tally: &mut Tally,
    each: &mut (dyn FnMut(&Arc<str>, &mut Vec<MemoryEvent>) + Send),
) -> Result<Read, LoadError> {
    let source: Arc<str> = place.resolved.into();
    let mut batch = Vec::new();
    let read = read_events(place, options, &mut |_, event| {
        batch.push(event);
        if batch.len() == BATCH {
            tally.add_all(&source, &batch);
            each(&source, &mut batch);
            batch.clear();
        }
    })?;
    tally.add_all(&source, &batch);
    each(&source, &mut batch);
    Ok(read)
}

/// Segments being read by several threads.
struct Lines<'a> {
    folder: &'a DiskFolder,
    segments: &'a [Segment],
    upgrades: &'a [Upgrade],
    strictness: Strictness,
    source: Mutex<Source<'a>>,
    delivery: Mutex<Delivery<'a>>,
    /// The turn has come to somebody, or all is over.
    turn: Condvar,
}

/// Where the next piece comes from.
#[derive(Default)]
struct Source<'a> {
    segment: usize,
    chunks: Option<Chunks<Box<dyn io::Read + Send + 'a>>>,
    /// Of the next piece.
    ticket: u64,
}

/// Where decoded pieces go, in the order of their tickets.
struct Delivery<'a> {
    turn: u64,
    failed: Option<LoadError>,
    stopped: bool,
    /// By segment.
    events: Vec<u64>,
    read: Read,
    tally: &'a mut Tally,
    each: &'a mut (dyn FnMut(&Arc<str>, &mut Vec<MemoryEvent>) + Send),
}

/// A piece, or why there is none of this segment.
struct Piece {
    ticket: u64,
    segment: usize,
    error: Option<io::Error>,
}

/// Ends the others' waiting when a thread that holds a ticket panics: its turn would never pass on.
struct OnPanic<'a, 'b>(&'a Lines<'b>);

impl Drop for OnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.delivery().stopped = true;
            self.0.turn.notify_all();
        }
    }
}

impl<'a> Lines<'a> {
    fn run(self, threads: NonZero<usize>) -> Result<Read, LoadError> {
        std::thread::scope(|scope| {
            for _ in 1..threads.get() {
                let builder = std::thread::Builder::new().name("wt-load".into());
                // One thread fewer is slower, and no error.
                let _ = builder.spawn_scoped(scope, || self.work());
            }
            self.work();
        });
        let delivery = self
            .delivery
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let mut read = delivery.read;
        if let Some(error) = delivery.failed {
            return Err(error);
        }
        for (at, events) in delivery.events.iter().enumerate() {
            if *events == 0
                && let Some(session) = &self.upgrades[at].default_session_id
            {
                let sources = read.empty.entry(session.clone()).or_default();
                sources.insert(self.segments[at].path.as_str().into());
            }
        }
        Ok(read)
    }

    fn delivery(&self) -> MutexGuard<'_, Delivery<'a>> {
        self.delivery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let _end = OnPanic(self);
        let mut decoder = ChunkDecoder::new(Upgrade::default());
        let mut of_segment = usize::MAX;
        let (mut chunk, mut batch) = (Chunk::default(), Batch::default());
        while let Some(piece) = self.next(&mut chunk) {
            if piece.segment != of_segment {
                decoder.set_upgrade(self.upgrades[piece.segment].clone());
                of_segment = piece.segment;
            }
            batch.clear();
            if piece.error.is_none() {
                decoder.decode(&chunk, &mut batch);
            }
            if !self.deliver(piece, &mut batch) {
                return;
            }
        }
    }

    /// The next piece; `None` after the last.
    fn next(&self, chunk: &mut Chunk) -> Option<Piece> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let segment = source.segment;
            let file = &self.segments.get(segment)?.name;
            let found = match &mut source.chunks {
                Some(chunks) => chunks.read(chunk),
                None => self
                    .folder
                    .open(file)
                    .and_then(|reader| source.chunks.insert(Chunks::new(reader)).read(chunk)),
            };
            if !matches!(found, Ok(true)) {
                source.chunks = None;
                source.segment += 1;
            }
            if matches!(found, Ok(false)) {
                continue;
            }
            source.ticket += 1;
            return Some(Piece {
                ticket: source.ticket - 1,
                segment,
                error: found.err(),
            });
        }
    }

    /// Waits for the piece's turn and hands its events over; `false` if all is over.
    fn deliver(&self, piece: Piece, batch: &mut Batch) -> bool {
        let mut delivery = self.delivery();
        while delivery.turn != piece.ticket && !delivery.stopped {
            delivery = self
                .turn
                .wait(delivery)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if delivery.stopped {
            return false;
        }
        if let Err(error) = self.take(piece, batch, &mut delivery) {
            delivery.failed = Some(error);
            delivery.stopped = true;
        }
        delivery.turn += 1;
        self.turn.notify_all();
        !delivery.stopped
    }

    fn take(
        &self,
        piece: Piece,
        batch: &mut Batch,
        delivery: &mut Delivery<'_>,
    ) -> Result<(), LoadError> {
        let path = &self.segments[piece.segment].path;
        let Delivery {
            events,
            read,
            tally,
            each,
            ..
        } = delivery;
        if let Some(source) = piece.error {
            if self.strictness == Strictness::Strict {
                let path = path.clone();
                return Err(LoadError::Io { path, source });
            }
            read.skipped
                .add("unreadable_file", || format!("{path}: {source}"));
        }
        read.skipped.torn += u64::from(batch.torn);
        let bad = std::mem::take(&mut batch.bad);
        note_bad_lines(bad, path, self.strictness, &mut read.skipped)?;
        let count = batch.events.len() as u64;
        events[piece.segment] += count;
        read.events += count;
        if count > 0 {
            let source: Arc<str> = path.as_str().into();
            tally.add_all(&source, &batch.events);
            each(&source, &mut batch.events);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        r#"{"timestamp_ns": 1, "type": "TYPE", "memory_allocated": 5, "session_id": "s"}"#;

    fn write(folder: &Path, name: &str, text: &str) {
        std::fs::write(folder.join(name), text).unwrap();
    }

    fn lines(from: usize, count: usize) -> String {
        let line = |i: usize| LINE.replace("TYPE", &format!("e{i}")) + "\n";
        (from..from + count).map(line).collect()
    }

    fn load(
        path: &Path,
        strictness: Strictness,
        threads: usize,
    ) -> (Result<MemoryLoad, LoadError>, Vec<String>) {
        let mut types = Vec::new();
        let options = LoadOptions {
            strictness,
            ..LoadOptions::default()
        };
        let threads = NonZero::new(threads).unwrap();
        let load = load_memory(path, &options, threads, &mut |_, events| {
            types.extend(events.iter().map(|e| e.event_type.to_string()));
        });
        (load, types)
    }

    #[test]
    fn events_come_in_the_order_of_files_and_lines_whatever_the_number_of_threads() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "segment-000001.jsonl", &lines(0, 40_000));
        write(folder.path(), "segment-000002.jsonl", "");
        write(folder.path(), "segment-000003.jsonl", &lines(40_000, 7));
        for threads in [1, 2, 5] {
            let (load, types) = load(folder.path(), Strictness::Strict, threads);
            let load = load.unwrap();
            assert_eq!(load.events, 40_007);
            assert!(types.iter().enumerate().all(|(i, t)| *t == format!("e{i}")));
            assert_eq!(load.sessions.len(), 1);
            assert_eq!(load.sessions[0].events, 40_007);
            assert_eq!(load.sessions[0].sources.len(), 2);
        }
    }

    #[test]
    fn a_bad_line_fails_a_strict_load_at_its_place_and_is_counted_by_a_lenient_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.jsonl");
        write(
            folder.path(),
            "run.jsonl",
            &(lines(0, 5_000) + "{\"a\":\n[]\n" + &lines(0, 9)),
        );
        for threads in [1, 2] {
            let error = load(&path, Strictness::Strict, threads).0.unwrap_err();
            assert_eq!(error.place(), format!("{}:5001", path.display()));
            let load = load(&path, Strictness::Lenient, threads).0.unwrap();
            assert_eq!(load.events, 5_009);
            assert_eq!(load.skipped.by_reason["malformed"], 1);
            assert_eq!(load.skipped.by_reason["not_an_object"], 1);
            assert_eq!(
                load.skipped.examples[1],
                format!("{}:5002: not an object", path.display())
            );
        }
    }

    #[test]
    fn nothing_outside_of_the_folder_is_read() {
        let outside = tempfile::tempdir().unwrap();
        write(outside.path(), "secret.jsonl", &lines(0, 3));
        let folder = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret.jsonl");
        let name = format!(
            "../{}/secret.jsonl",
            outside.path().file_name().unwrap().display()
        );
        let manifest = format!(
            r#"{{"segments": [{{"filename": {name:?}}}, {{"filename": {:?}}}, {{"filename": "loop"}}]}}"#,
            secret.to_str().unwrap()
        );
        write(folder.path(), "manifest.json", &manifest);
        write(folder.path(), "segment-000002.jsonl", &lines(0, 2));
        let link = |to: &Path, name: &str| {
            std::os::unix::fs::symlink(to, folder.path().join(name)).unwrap();
        };
        link(&secret, "segment-000001.jsonl");
        link(Path::new("loop"), "loop");
        std::fs::create_dir(folder.path().join("segment-000003.jsonl")).unwrap();

        let (loaded, types) = load(folder.path(), Strictness::Lenient, 2);
        let loaded = loaded.unwrap();
        assert_eq!(types, ["e0", "e1"]);
        assert_eq!(loaded.skipped.refused.len(), 2);
        assert_eq!(loaded.skipped.by_reason["unreadable_file"], 3);
        // A link that the caller himself names is his to name.
        let named = folder.path().join("segment-000001.jsonl");
        assert_eq!(load(&named, Strictness::Lenient, 2).1.len(), 3);
    }

    #[test]
    fn a_document_is_handed_over_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let events: Vec<String> = lines(0, 3_000).lines().map(str::to_owned).collect();
        write(
            folder.path(),
            "run.json",
            &format!("[{}]", events.join(",")),
        );
        let (load, types) = load(&folder.path().join("run.json"), Strictness::Strict, 2);
        assert_eq!(load.unwrap().events, 3_000);
        assert!(types.iter().enumerate().all(|(i, t)| *t == format!("e{i}")));
    }
}
