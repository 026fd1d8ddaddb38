//! GPU memory telemetry: files of lines, documents, tables, and the folders of sinks.

use std::fs::File;
use std::io::{self, Read};
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use warptrace_agent::{DiskFolder, load_memory};
use warptrace_formats::memory::{
    self, Batch, Chunk, ChunkDecoder, Chunks, LoadOptions, MANIFEST, Place, Plan, Segment,
    Strictness, Upgrade,
};
use warptrace_model::MemoryEvent;
use warptrace_store::SessionWriter;

use super::detect::Format;
use super::report::FileReport;
use super::{Progress, Times};

const CUT_OFF: &str = "the last line is cut off";

/// Tells how much was read.
struct Counted<'a> {
    file: File,
    progress: &'a Progress,
}

impl<'a> Counted<'a> {
    fn open(path: &Path, progress: &'a Progress) -> io::Result<Counted<'a>> {
        Ok(Counted {
            file: File::open(path)?,
            progress,
        })
    }
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        self.progress.bytes(n as u64);
        Ok(n)
    }
}

/// Whether a folder is a sink's: it has the manifest of one.
pub(super) fn is_sink(folder: &Path) -> bool {
    if !std::fs::symlink_metadata(folder.join(MANIFEST)).is_ok_and(|m| m.is_file()) {
        return false;
    }
    let Ok(disk) = DiskFolder::new(folder) else {
        return false;
    };
    let place = Place {
        path: "",
        resolved: "",
        folder: &disk,
        file: None,
    };
    memory::plan(&place).is_ok_and(|plan| {
        matches!(
            plan,
            Plan::Lines {
                manifest: Some(_),
                ..
            }
        )
    })
}

/// Whether a file of a sink's folder is the sink's, and was read with it.
pub(super) fn is_of_sink(name: &str) -> bool {
    name == MANIFEST || memory::looks_like_segment(name)
}

/// Takes the events of a file, or of a sink's folder. What cannot be read is said in `report`; what came before it is kept.
pub(super) fn take(
    path: &Path,
    format: Format,
    writer: &mut SessionWriter,
    times: &mut Times,
    report: &mut FileReport,
    progress: &Progress,
) -> anyhow::Result<()> {
    let shown = path.display().to_string();
    let real = path.canonicalize()?;
    let resolved = real.display().to_string();
    let mut kept = Kept {
        writer,
        times,
        rows: 0,
        untimely: 0,
    };
    match format {
        Format::MemoryTable => {
            let file = Counted::open(&real, progress)?;
            memory::read_csv(file, &resolved, &mut |row, event| match event {
                Ok(event) => kept.take(&event),
                Err(e) => report.skip(e.reason(), || format!("{shown}:{row}: {e}")),
            })?;
        }
        Format::MemoryDocument => {
            let upgrade = Upgrade {
                permissive_legacy: true,
                default_session_id: Some(memory::id_of_source(&resolved, "json")),
                ..Upgrade::default()
            };
            let mut open = || Counted::open(&real, progress);
            let read =
                memory::read_document(
                    &mut open,
                    None,
                    &upgrade,
                    &mut |(index, event)| match event {
                        Ok(event) => kept.take(&event),
                        Err(e) => report.skip(e.reason(), || format!("{shown}[{index}]: {e}")),
                    },
                );
            if let Err(e) = read {
                report.damaged(e.to_string());
            }
        }
        Format::MemoryLines if !shown.ends_with(".jsonl") => {
            lines(&shown, &real, &mut kept, report, progress)?;
        }
        _ => {
            let options = LoadOptions {
                strictness: Strictness::Lenient,
                ..LoadOptions::default()
            };
            let threads = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
            let mut each = |_: &Arc<str>, events: &mut Vec<MemoryEvent>| {
                for event in events.iter() {
                    kept.take(event);
                }
                progress.rows(kept.rows);
            };
            match load_memory(path, &options, threads, &mut each) {
                Ok(read) => {
                    for (reason, count) in &read.skipped.by_reason {
                        report.skip_many(reason, *count);
                    }
                    report.examples(read.skipped.examples);
                    if read.skipped.torn > 0 {
                        report.skip_many(CUT_OFF, read.skipped.torn);
                    }
                    for name in &read.skipped.refused {
                        let why = "a name in the manifest that leads out of its folder";
                        report.skip(why, || format!("{name:?}"));
                    }
                }
                Err(e) => report.damaged(match e.place() {
                    place if place.is_empty() => e.to_string(),
                    place => format!("{place}: {e}"),
                }),
            }
        }
    }
    if kept.untimely > 0 {
        report.skip_many("a number beyond 64 bits, or no time", kept.untimely);
    }
    report.keep("memory", kept.rows);
    Ok(())
}

/// Lines in a file whose name does not say so.
fn lines(
    shown: &str,
    real: &Path,
    kept: &mut Kept<'_>,
    report: &mut FileReport,
    progress: &Progress,
) -> anyhow::Result<()> {
    let disk = DiskFolder::new(real.parent().unwrap_or(real))?;
    let place = Place {
        path: shown,
        resolved: &real.display().to_string(),
        folder: &disk,
        file: None,
    };
    let segment = Segment {
        name: String::new(),
        path: shown.to_owned(),
        session_id: None,
    };
    let upgrade = memory::upgrade_of(&place, &segment, &LoadOptions::default());
    let mut decoder = ChunkDecoder::new(upgrade);
    let mut chunks = Chunks::new(Counted::open(real, progress)?);
    let (mut chunk, mut batch) = (Chunk::default(), Batch::default());
    while chunks.read(&mut chunk)? {
        decoder.decode(&chunk, &mut batch);
        if batch.torn {
            report.skip(CUT_OFF, || shown.to_owned());
        }
        for bad in &batch.bad {
            let place = || format!("{shown}:{}: {}", bad.line, bad.error);
            report.skip(bad.error.reason(), place);
        }
        for event in &batch.events {
            kept.take(event);
        }
        batch.clear();
    }
    Ok(())
}

struct Kept<'a> {
    writer: &'a mut SessionWriter,
    times: &'a mut Times,
    rows: u64,
    untimely: u64,
}

impl Kept<'_> {
    fn take(&mut self, event: &MemoryEvent) {
        match event.time() {
            Some(at) if at.0 > 0 => {
                self.times.see(self.writer, at.0, at.0);
                match self.writer.memory(event) {
                    true => self.rows += 1,
                    false => self.untimely += 1,
                }
            }
            _ => self.untimely += 1,
        }
    }
}
