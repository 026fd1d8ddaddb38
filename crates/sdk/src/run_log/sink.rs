//! The file of a run log: one write a record, a fresh line to begin with, a look at what the record stands behind
//! ([`mend`](super::mend)), and no wait for anybody.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use super::mend::{self, Before};

/// How long a file that went wrong is left alone, µs.
const RETRY_MICROS: u64 = 1_000_000;

/// An open file, and what kind.
#[derive(Debug)]
pub(super) struct Opened {
    file: File,
    /// A regular file has a last byte, and can be deleted under us; a pipe can lose its reader.
    kind: FileKind,
    readable: bool,
}

impl Opened {
    /// The same file with a position of its own.
    ///
    /// # Errors
    /// It cannot be opened any more, as after a change of user.
    fn again(&self) -> io::Result<Opened> {
        open(Path::new(&format!(
            "/proc/self/fd/{}",
            self.file.as_raw_fd()
        )))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileKind {
    Regular,
    Pipe,
    Other,
}

/// Opens `path` for appending, without waiting for a pipe's reader.
pub(super) fn open(path: &Path) -> io::Result<Opened> {
    let is_pipe = |path: &Path| path.metadata().is_ok_and(|m| m.file_type().is_fifo());
    let open = |readable: bool| {
        OpenOptions::new()
            .read(readable)
            .append(true)
            .create(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
    };
    // A pipe that is opened for reading as well never lacks a reader; a file that may be written may still be secret.
    let (file, readable) = match is_pipe(path) {
        true => (open(false)?, false),
        false => match open(true) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => (open(false)?, false),
            opened => (opened?, true),
        },
    };
    let file_type = file.metadata()?.file_type();
    let kind = match () {
        () if file_type.is_file() => FileKind::Regular,
        () if file_type.is_fifo() => FileKind::Pipe,
        () => FileKind::Other,
    };
    Ok(Opened {
        file,
        kind,
        readable,
    })
}

/// One process's way to the file.
#[derive(Debug, Default)]
pub(super) struct Sink {
    /// Opened again, after what was opened at first was deleted or could not be opened.
    reopened: Option<Opened>,
    /// No use in trying before, µs of the monotonic clock.
    retry_at: u64,
    /// The file that was opened at first is of no more use.
    lost: bool,
    /// A record has been tried.
    begun: bool,
    /// The last write went wrong, and may have left half a record.
    owes_line_feed: bool,
    /// What was opened at first is the parent's, of whose position this process must know nothing.
    inherited: bool,
    /// Behind the last record, when that is known to stand on a line of its own; else 0.
    own_end: u64,
    /// Records of killed writers that this one has made blank.
    mended: u64,
    line: Vec<u8>,
}

/// How often a record is written that stands on half a line of somebody else's.
const MAX_WRITES: usize = 3;

/// Above this a buffer is not kept for the next record.
const KEPT_BUFFER_BYTES: usize = 64 << 10;

impl Sink {
    /// A forked child's.
    pub(super) fn inherited() -> Sink {
        Sink {
            inherited: true,
            ..Sink::default()
        }
    }

    /// Records of killed writers that this one has made blank.
    pub(super) fn mended(&self) -> u64 {
        self.mended
    }

    /// Writes one record in one write, on a line of its own: `fresh_line`, the first record, and the one after a failed write look
    /// at what the file ends with, and bring a line feed of their own where it is needed. What they could not see, since another
    /// writer was killed just now, is looked for afterwards.
    ///
    /// # Errors
    /// Why the record is lost. Nothing of it is written later.
    pub(super) fn append(
        &mut self,
        path: &Path,
        first: Option<&Opened>,
        now_micros: u64,
        fresh_line: bool,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<()> {
        self.find_file(path, first, now_micros)?;
        let own_position = self.reopened.is_some() || !self.inherited;
        let opened = match (&self.reopened, first) {
            (Some(opened), _) | (None, Some(opened)) => opened,
            (None, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        let must_look = fresh_line || !std::mem::replace(&mut self.begun, true);
        self.line.clear();
        if self.owes_line_feed || (must_look && lacks_line_feed(opened)) {
            self.line.push(b'\n');
        }
        encode(&mut self.line);
        let looks = own_position && opened.kind == FileKind::Regular && opened.readable;
        let (mut written, mut whole) = (Ok(0), false);
        for _ in 0..MAX_WRITES {
            written = write_once(opened, &self.line);
            whole = matches!(written, Ok(n) if n == self.line.len());
            let own_end = std::mem::take(&mut self.own_end);
            if !whole || !looks {
                break;
            }
            match mend::look_before(&opened.file, &self.line, own_end) {
                Before::Whole { end } => self.own_end = end,
                Before::Mended { end } => {
                    self.own_end = end;
                    self.mended += 1;
                }
                // The line that it stands on is no record, and ends with ours.
                Before::Glued => continue,
                Before::Unknown => {}
            }
            break;
        }
        self.owes_line_feed = !whole;
        if self.line.capacity() > KEPT_BUFFER_BYTES {
            self.line = Vec::new();
        }
        match written {
            Ok(_) if whole => Ok(()),
            Ok(n) => Err(io::Error::other(format!(
                "only {n} bytes of a record were written"
            ))),
            Err(e) => {
                if opened.kind == FileKind::Pipe && e.kind() == io::ErrorKind::BrokenPipe {
                    self.lose(now_micros);
                }
                Err(e)
            }
        }
    }

    /// Calls `each` with the file's bytes from its beginning, in chunks.
    ///
    /// # Errors
    /// It cannot be read: not a regular file, no permission, not open.
    pub(super) fn read(
        &self,
        first: Option<&Opened>,
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let opened = match (&self.reopened, first) {
            (Some(opened), _) => opened,
            (None, Some(opened)) if !self.lost => opened,
            _ => return Err(io::ErrorKind::NotFound.into()),
        };
        if opened.kind != FileKind::Regular || !opened.readable {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut chunk = vec![0; 256 << 10];
        let mut at = 0;
        loop {
            match opened.file.read_at(&mut chunk, at) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    each(&chunk[..n]);
                    at += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Makes sure that there is a file, and that somebody could find what is written to it.
    fn find_file(
        &mut self,
        path: &Path,
        first: Option<&Opened>,
        now_micros: u64,
    ) -> io::Result<()> {
        if self.inherited && !self.begun && self.reopened.is_none() {
            self.reopened = first.and_then(|first| first.again().ok());
        }
        let usable = match (&self.reopened, first) {
            (Some(opened), _) => Some(opened),
            (None, Some(opened)) if !self.lost => Some(opened),
            _ => None,
        };
        if let Some(opened) = usable {
            let deleted = opened.kind == FileKind::Regular
                && opened.file.metadata().is_ok_and(|m| m.nlink() == 0);
            if !deleted {
                return Ok(());
            }
            self.lose(now_micros);
            return Err(io::Error::other("the file was deleted"));
        }
        if now_micros < self.retry_at {
            return Err(io::Error::other("the file cannot be written"));
        }
        self.retry_at = now_micros.saturating_add(RETRY_MICROS);
        self.reopened = Some(open(path)?);
        (self.begun, self.owes_line_feed, self.own_end) = (false, false, 0);
        Ok(())
    }

    fn lose(&mut self, now_micros: u64) {
        self.reopened = None;
        self.lost = true;
        self.retry_at = now_micros.saturating_add(RETRY_MICROS);
    }
}

/// Whether a record that is appended now would stand behind something on its line. Where that cannot be seen: yes, as a blank line
/// does no harm.
fn lacks_line_feed(opened: &Opened) -> bool {
    let Some(size) = opened.file.metadata().ok().map(|m| m.size()) else {
        return true;
    };
    if opened.kind != FileKind::Regular || size == 0 {
        return false;
    }
    let mut last = [0];
    let read = opened.file.read_exact_at(&mut last, size - 1);
    read.is_err() || last != *b"\n"
}

/// One `write`, again only when a signal came before it began. A pipe without a reader sends no SIGPIPE to the job.
fn write_once(opened: &Opened, line: &[u8]) -> io::Result<usize> {
    let write = || {
        loop {
            match (&opened.file).write(line) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    };
    if opened.kind != FileKind::Pipe {
        return write();
    }
    let broken_pipe = SigSet::from(Signal::SIGPIPE);
    let Ok(before) = broken_pipe.thread_swap_mask(SigmaskHow::SIG_BLOCK) else {
        return write();
    };
    let written = write();
    let was_blocked = before.contains(Signal::SIGPIPE);
    if !was_blocked && matches!(&written, Err(e) if e.kind() == io::ErrorKind::BrokenPipe) {
        // It is pending for this thread, which makes this return at once.
        let _ = broken_pipe.wait();
    }
    let _ = before.thread_set_mask();
    written
}
