//! Files of lines: annotations and run logs, in the memory of a line.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::Context as _;
use warptrace_formats::{annotation, run_log};
use warptrace_model::{BootNanos, ClockAnchor, Event, Incarnation, Pid, UnixNanos};
use warptrace_store::SessionWriter;

use super::report::FileReport;
use super::{Progress, Times};

/// Bytes read at once.
const CHUNK: usize = 256 << 10;

/// Gives each line of the file, whose first is 1, to `each`; blank ones and what is too long are told apart.
fn lines(
    path: &Path,
    limit: usize,
    progress: &Progress,
    mut each: impl FnMut(run_log::Line<'_>),
) -> anyhow::Result<()> {
    let mut file = File::open(path).with_context(|| format!("cannot read {path:?}"))?;
    let mut lines = run_log::Lines::new(limit);
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e).with_context(|| format!("cannot read {path:?}")),
        };
        lines.feed(&chunk[..n], &mut each);
        progress.bytes(n as u64);
    }
    lines.finish(each);
    Ok(())
}

/// The annotations of a file. Its lines claim whose they are and nobody can check that: they have no sender.
pub(super) fn annotations(
    path: &Path,
    writer: &mut SessionWriter,
    times: &mut Times,
    report: &mut FileReport,
    progress: &Progress,
) -> anyhow::Result<()> {
    let unix = ClockAnchor {
        boot: BootNanos(0),
        unix: UnixNanos(0),
    };
    let mut kept = 0;
    lines(path, annotation::MAX_LINE_BYTES - 1, progress, |line| {
        let place = || format!("{}:{}", path.display(), line.number);
        let Some(bytes) = line.bytes else {
            return report.skip(annotation::Refusal::LineTooLong.name(), place);
        };
        if run_log::is_blank(bytes) {
            return;
        }
        let said = match annotation::Line::decode(bytes.strip_suffix(b"\r").unwrap_or(bytes)) {
            Ok(said) => said,
            Err(_) if !line.terminated => return report.skip("the last line is cut off", place),
            Err(refusal) => return report.skip(refusal.name(), place),
        };
        let Some(at) = said.ts.or(said.span.map(|(start, _)| start)) else {
            return report.skip(
                "no time in it, and when it was received is not known",
                place,
            );
        };
        let Ok(at @ 1..) = u64::try_from(at) else {
            return report.skip("its time is before 1970", place);
        };
        let scope = said.pid.map(|pid| Incarnation {
            pid: Pid(pid),
            start_ticks: said.start_time.unwrap_or(0),
        });
        let said = said.into_annotation(BootNanos(at), &unix, scope, None);
        times.see(writer, at, said.span.map_or(at, |s| s.end.0.max(at)));
        writer.events(&[Event::Annotation(Box::new(said))]);
        kept += 1;
    })?;
    report.keep("annotations", kept);
    Ok(())
}

/// The requests of a run log.
pub(super) fn run_log(
    path: &Path,
    writer: &mut SessionWriter,
    times: &mut Times,
    report: &mut FileReport,
    progress: &Progress,
) -> anyhow::Result<()> {
    let name = path.display().to_string();
    let mut runs = run_log::Runs::default();
    let mut kept = 0;
    lines(path, run_log::DEFAULT_LINE_LIMIT, progress, |line| {
        let place = || format!("{name}:{}", line.number);
        let Some(bytes) = line.bytes else {
            return report.skip("a line that is too long", place);
        };
        if run_log::is_blank(bytes) {
            return;
        }
        let record = match run_log::Record::parse(bytes) {
            Ok(record) => record,
            Err(_) if !line.terminated => return report.skip("the last line is cut off", place),
            Err(e) => return report.skip("no record", || format!("{}: {e}", place())),
        };
        runs.observe(&record);
        match runs.request(&record) {
            Some(request) => {
                let Some(end) = request.end else {
                    return report.skip("a request whose run did not say when it started", place);
                };
                let start = request.start.unwrap_or(end);
                times.see(writer, start.0, end.0);
                writer.request(&name, &request);
                kept += 1;
            }
            None => match record.kind {
                run_log::Kind::RunStart | run_log::Kind::RunEnd => {}
                kind => report.skip(
                    &format!(
                        "a record that is no request ({})",
                        if kind.name().is_empty() {
                            "of a kind that is not known"
                        } else {
                            kind.name()
                        }
                    ),
                    place,
                ),
            },
        }
    })?;
    report.keep("requests", kept);
    Ok(())
}
