//! What stands before a record that has just been written, and its mending: killed writers leave no half of a line in a log.
//!
//! A record is one `write`, and yet SIGKILL can cut it. Linux copies a write into the page cache page by page and looks for a
//! fatal signal between two (`generic_perform_write` in `mm/filemap.c`, `iomap_write_iter` in `fs/iomap/buffered-io.c`), so that a
//! record which crosses a page's end in the *file* may end there: at a multiple of the page's size, and nowhere else. The next
//! record, somebody else's, would stand on the same line, and both would be lost.
//!
//! So a writer looks at the one byte before its record, when that is in the file: the position behind an appended record is known
//! without a race, and writes to one file are made one after the other, so that whoever left that byte is done. Exactly one
//! writer stands behind a cut record, so exactly one mends it, without a lock, and without waiting for anybody:
//!
//! - A rest that ends at a page's end is a killed writer's. It is overwritten by blanks and a line feed: a blank line, which no
//!   reader counts. Nobody was ever told that the record was written.
//! - Any other rest is half a line of a program that writes a line in several pieces. It stays as it is; our record is written
//!   again, on a line of its own, and what came of the two is one line that is no record.
//!
//! Nothing is ever cut off the file's end: a record that somebody appended in the meantime would go with it.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

/// The size of every page is a multiple of it.
const PAGE_BYTES: u64 = 4096;

/// A rest of a line above this is left as it is.
const MAX_REST_BYTES: u64 = 64 << 20;

const CHUNK_BYTES: usize = 4096;

/// What was before a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// The end of a line, or nothing that was in the way. Behind the record is this position.
    Whole { end: u64 },
    /// A killed writer's rest, which is no more.
    Mended { end: u64 },
    /// Half a line which is not ours to change, and the record stands on it.
    Glued,
    /// It cannot be told: a network's file, or the position is not ours alone.
    Unknown,
}

/// Looks at what `record`, the last write on `file`, stands behind; `own_end` is where this writer's record before it ended.
/// `file` is a regular file, open for reading and appending, its position this writer's alone. Cost where all is well: `lseek`, and
/// a `pread` of one byte if somebody else wrote in between.
pub(super) fn look_before(file: &File, record: &[u8], own_end: u64) -> Before {
    let mut at = file;
    let Ok(end) = at.stream_position() else {
        return Before::Unknown;
    };
    let Some(begin) = end.checked_sub(record.len() as u64) else {
        return Before::Unknown;
    };
    if begin == 0 || begin == own_end {
        return Before::Whole { end };
    }
    match byte_at(file, begin - 1) {
        Ok(b'\n') => Before::Whole { end },
        Ok(_) => mend(file, record, begin, end).unwrap_or(Before::Unknown),
        Err(_) => Before::Unknown,
    }
}

fn byte_at(file: &File, at: u64) -> io::Result<u8> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(byte[0])
}

fn mend(file: &File, record: &[u8], begin: u64, end: u64) -> io::Result<Before> {
    // Nothing is changed before a record that is not where it must be.
    let mut read_back = vec![0; record.len().min(CHUNK_BYTES)];
    file.read_exact_at(&mut read_back, begin)?;
    if !record.starts_with(&read_back) {
        return Ok(Before::Unknown);
    }
    // The record brought a line feed of its own.
    let on_its_own_line = record.first() == Some(&b'\n');
    let rest = rest_before(file, begin)?;
    let whole = Before::Whole { end };
    let Some(rest) = rest else {
        return Ok(if on_its_own_line {
            whole
        } else {
            Before::Glued
        });
    };
    if rest.is_blank {
        return Ok(whole);
    }
    if begin.is_multiple_of(PAGE_BYTES) && blank(file, rest.begin, begin, on_its_own_line).is_ok() {
        return Ok(Before::Mended { end });
    }
    Ok(if on_its_own_line {
        whole
    } else {
        Before::Glued
    })
}

struct Rest {
    begin: u64,
    is_blank: bool,
}

/// What stands between the last line feed before `end` and `end`; `None` if that is too much.
fn rest_before(file: &File, end: u64) -> io::Result<Option<Rest>> {
    let mut chunk = [0; CHUNK_BYTES];
    let (mut begin, mut is_blank) = (end, true);
    while begin > 0 {
        if end - begin > MAX_REST_BYTES {
            return Ok(None);
        }
        let len = begin.min(CHUNK_BYTES as u64);
        let read = &mut chunk[..len as usize];
        file.read_exact_at(read, begin - len)?;
        let line_feed = read.iter().rposition(|&b| b == b'\n');
        let tail = &read[line_feed.map_or(0, |at| at + 1)..];
        is_blank &= tail.iter().all(|b| matches!(b, b' ' | b'\t' | b'\r'));
        begin -= tail.len() as u64;
        if line_feed.is_some() {
            break;
        }
    }
    Ok(Some(Rest { begin, is_blank }))
}

/// Overwrites `begin..end` with blanks, the last one being a line feed unless one follows. A descriptor in append mode would
/// append them, at any position (`pwrite(2)`, BUGS).
///
/// # Errors
/// The file cannot be opened again, as after a change of user.
fn blank(file: &File, begin: u64, end: u64, line_feed_follows: bool) -> io::Result<()> {
    let in_place = OpenOptions::new()
        .write(true)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let mut at = begin;
    while at < end {
        let mut blanks = [b' '; CHUNK_BYTES];
        let len = (end - at).min(CHUNK_BYTES as u64);
        if at + len == end && !line_feed_follows {
            blanks[len as usize - 1] = b'\n';
        }
        in_place.write_all_at(&blanks[..len as usize], at)?;
        at += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const RECORD: &[u8] = b"{\"kind\":\"eval\"}\n";

    struct Log {
        _folder: tempfile::TempDir,
        file: File,
    }

    /// A log with `content`, and behind it what `write` appends.
    fn log(content: &[u8], record: &[u8]) -> Log {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("events.jsonl");
        std::fs::write(&path, content).expect("a log");
        let file = OpenOptions::new().read(true).append(true).open(&path);
        let mut file = file.expect("a log");
        file.write_all(record).expect("a log");
        Log {
            _folder: folder,
            file,
        }
    }

    fn content(log: &Log) -> Vec<u8> {
        let mut all = vec![0; log.file.metadata().expect("a log").len() as usize];
        log.file.read_exact_at(&mut all, 0).expect("a log");
        all
    }

    /// A line, and half a record of `len` bytes that ends `behind` bytes behind the end of a page.
    fn cut(len: usize, behind: usize) -> Vec<u8> {
        let first = (len + behind + 1).next_multiple_of(PAGE_BYTES as usize) + behind - len;
        let mut content = vec![b'x'; first + len];
        content[first - 1] = b'\n';
        content
    }

    #[test]
    fn a_rest_that_ends_with_a_page_becomes_a_blank_line() {
        for len in [1, 2, 199, 4095, 4096, 4097, 9_000, 70_000] {
            let before = cut(len, 0);
            let log = log(&before, RECORD);
            let end = (before.len() + RECORD.len()) as u64;
            assert_eq!(
                look_before(&log.file, RECORD, 0),
                Before::Mended { end },
                "{len}"
            );
            let after = content(&log);
            let kept = before.len() - len;
            assert_eq!(after[..kept], before[..kept]);
            assert_eq!(after[before.len()..], *RECORD);
            let (line_feed, blanks) = after[kept..before.len()].split_last().expect("a line");
            assert_eq!(*line_feed, b'\n');
            assert!(blanks.iter().all(|&b| b == b' '));
            // A second look finds nothing to do.
            assert_eq!(look_before(&log.file, RECORD, 0), Before::Whole { end });
        }
    }

    #[test]
    fn a_rest_is_blank_before_a_record_with_a_line_feed_of_its_own() {
        let record = b"\n{\"kind\":\"eval\"}\n";
        let before = cut(100, 0);
        let log = log(&before, record);
        assert!(matches!(
            look_before(&log.file, record, 0),
            Before::Mended { .. }
        ));
        let after = content(&log);
        assert!(
            after[before.len() - 100..before.len()]
                .iter()
                .all(|&b| b == b' ')
        );
        assert_eq!(after[before.len()..], *record);
    }

    #[test]
    fn somebody_s_half_of_a_line_stays_as_it_is() {
        for (behind, record, want) in [
            (1, RECORD, "glued"),
            (4_095, RECORD, "glued"),
            (1, b"\n{}\n".as_slice(), "whole"),
        ] {
            let before = cut(100, behind);
            let log = log(&before, record);
            let found = match look_before(&log.file, record, 0) {
                Before::Glued => "glued",
                Before::Whole { .. } => "whole",
                _ => "other",
            };
            assert_eq!(found, want);
            assert_eq!(content(&log), [before.as_slice(), record].concat());
        }
    }

    #[test]
    fn blanks_before_a_record_are_in_nobody_s_way() {
        for behind in [0, 7] {
            let mut before = cut(100, behind);
            let rest = before.len() - 100;
            before[rest..].fill(b' ');
            let log = log(&before, RECORD);
            assert!(matches!(
                look_before(&log.file, RECORD, 0),
                Before::Whole { .. }
            ));
            assert_eq!(content(&log), [before.as_slice(), RECORD].concat());
        }
    }

    #[test]
    fn nothing_is_changed_where_the_record_is_not_found() {
        let before = cut(100, 0);
        let log = log(&before, RECORD);
        // As a position that somebody else has moved.
        let mut file = &log.file;
        for at in [0, 3, 100, before.len() as u64 + 5] {
            file.seek(io::SeekFrom::Start(at)).expect("a position");
            look_before(&log.file, RECORD, 1 << 40);
            assert_eq!(content(&log), [before.as_slice(), RECORD].concat());
        }
    }

    #[test]
    fn behind_the_record_of_one_s_own_nothing_is_read() {
        let before = cut(100, 0);
        let log = log(&before, RECORD);
        let end = (before.len() + RECORD.len()) as u64;
        let own_end = before.len() as u64;
        assert_eq!(
            look_before(&log.file, RECORD, own_end),
            Before::Whole { end }
        );
        assert_eq!(content(&log), [before.as_slice(), RECORD].concat());
    }
}
