//! `runlog repair`: a log with every whole record of another, byte for byte, on a line of its own.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use warptrace_formats::run_log::{Line, Lines, Record, is_blank, repair};

use super::{counted, plain, read};
use crate::args::RunlogRepairArgs;
use crate::output;

const SCHEMA: &str = "warptrace.runlog.repair/v1";

/// Dropped parts that are told one by one.
const MAX_TOLD: usize = 100;

/// Longest line that is looked at: above what readers must take, so that only what nobody reads is dropped.
const LINE_LIMIT: usize = 256 << 20;

pub(super) fn run(args: &RunlogRepairArgs) -> anyhow::Result<u8> {
    ensure!(
        args.in_place || args.files.len() == 1,
        "--output takes one file; several are repaired with --in-place"
    );
    for path in &args.files {
        let done = match &args.output_file {
            Some(output) => {
                let file = OpenOptions::new().write(true).create_new(true).open(output);
                let file = file.with_context(|| format!("cannot make {output:?}"))?;
                write(path, &file)?
            }
            None => in_place(path)?,
        };
        let to = args.output_file.as_deref().unwrap_or(path);
        if args.output.json {
            output::print_json(&done.answer(path, to))?;
        } else {
            output::print(&done.text(path, to))?;
        }
    }
    Ok(0)
}

/// Writes beside `path`, and takes its place when all of it is on the disk.
fn in_place(path: &Path) -> anyhow::Result<Repaired> {
    let path = &path
        .canonicalize()
        .with_context(|| format!("cannot open {path:?}"))?;
    let before = fs::metadata(path).with_context(|| format!("cannot look at {path:?}"))?;
    ensure!(before.is_file(), "not a file: {path:?}");
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".repair-{}", std::process::id()));
    let temporary = Temporary(path.with_file_name(name));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary.0);
    let file = file.with_context(|| format!("cannot make {:?}", temporary.0))?;
    let done = write(path, &file)?;
    file.set_permissions(before.permissions())
        .context("cannot set the file's mode")?;
    let owned = std::os::unix::fs::fchown(&file, Some(before.uid()), Some(before.gid()));
    owned.context("cannot give the file to its owner")?;
    file.sync_all().context("cannot write to the disk")?;
    let after = fs::metadata(path).with_context(|| format!("cannot look at {path:?}"))?;
    ensure!(
        (after.len(), after.ino()) == (before.len(), before.ino()),
        "it was written to meanwhile, and is left as it was; stop its server first: {path:?}"
    );
    fs::rename(&temporary.0, path).with_context(|| format!("cannot replace {path:?}"))?;
    Ok(done)
}

/// A file that is removed unless it has taken another's place by then.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[derive(Default)]
struct Repaired {
    /// Lines that were a record, and are as they were.
    kept: u64,
    /// Records that did not stand alone.
    freed: u64,
    dropped_bytes: u64,
    dropped_parts: u64,
    told: Vec<Dropped>,
    /// The last line got its line feed.
    ended: bool,
}

#[derive(Clone, Serialize)]
struct Dropped {
    line: u64,
    bytes: u64,
    /// Its beginning.
    text: String,
}

fn write(path: &Path, to: &File) -> anyhow::Result<Repaired> {
    let mut out = BufWriter::with_capacity(256 << 10, to);
    let mut done = Repaired::default();
    let mut failed = None;
    let mut each = |line: Line<'_>| {
        if failed.is_none() {
            failed = done.line(&line, &mut out).err();
        }
    };
    let mut lines = Lines::new(LINE_LIMIT);
    read(path, |chunk| {
        lines.feed(chunk, &mut each);
        Ok(())
    })?;
    lines.finish(&mut each);
    match failed {
        Some(e) => Err(e),
        None => out.flush(),
    }
    .context("cannot write the repaired log")?;
    Ok(done)
}

impl Repaired {
    fn line(&mut self, line: &Line<'_>, out: &mut impl Write) -> std::io::Result<()> {
        let Some(bytes) = line.bytes else {
            self.drop_part(line.number, b"(a line above 256 MiB)");
            return Ok(());
        };
        if is_blank(bytes) {
            return Ok(());
        }
        if Record::parse(bytes).is_ok() {
            self.kept += 1;
            self.ended |= !line.terminated;
            out.write_all(bytes)?;
            return out.write_all(b"\n");
        }
        let parts = repair(bytes);
        for record in parts.records {
            self.freed += 1;
            out.write_all(&bytes[record])?;
            out.write_all(b"\n")?;
        }
        for part in parts.dropped {
            self.drop_part(line.number, &bytes[part]);
        }
        Ok(())
    }

    fn drop_part(&mut self, line: u64, bytes: &[u8]) {
        self.dropped_parts += 1;
        self.dropped_bytes += bytes.len() as u64;
        if self.told.len() < MAX_TOLD {
            let beginning = &bytes[..bytes.len().min(200)];
            self.told.push(Dropped {
                line,
                bytes: bytes.len() as u64,
                text: plain(&String::from_utf8_lossy(beginning), 60),
            });
        }
    }

    fn answer(&self, from: &Path, to: &Path) -> Answer {
        Answer {
            schema: SCHEMA,
            file: from.to_string_lossy().into_owned(),
            output: to.to_string_lossy().into_owned(),
            kept: self.kept,
            freed: self.freed,
            dropped: self.dropped_parts,
            dropped_bytes: self.dropped_bytes,
            line_feed_added: self.ended,
            parts: self.told.clone(),
        }
    }

    fn text(&self, from: &Path, to: &Path) -> String {
        let mut out = String::new();
        for part in &self.told {
            let (line, bytes) = (part.line, counted(part.bytes, "byte"));
            out += &format!(
                "{}:{line}: dropped {bytes}: {}\n",
                from.display(),
                part.text
            );
        }
        let hidden = self.dropped_parts - self.told.len() as u64;
        if hidden > 0 {
            out += &format!("{}: and {hidden} more\n", from.display());
        }
        out + &format!(
            "{}: {} kept as they were, {} freed from lines that they shared, {} dropped in {}{}\n",
            to.display(),
            counted(self.kept, "record"),
            crate::show::thousands(self.freed),
            counted(self.dropped_bytes, "byte"),
            counted(self.dropped_parts, "part"),
            if self.ended {
                ", a line feed added at the end"
            } else {
                ""
            },
        )
    }
}

#[derive(Serialize)]
struct Answer {
    schema: &'static str,
    file: String,
    output: String,
    kept: u64,
    freed: u64,
    dropped: u64,
    dropped_bytes: u64,
    line_feed_added: bool,
    /// The first 100.
    parts: Vec<Dropped>,
}
