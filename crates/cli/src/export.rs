//! `export`: a session as a file of another system.

mod memory;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use warptrace_api::{Explain, ExplainQuestion, Finding};
use warptrace_model::UnixNanos;
use warptrace_store::Session;
use warptrace_store::sqlite::{self, Chain, Step, Tally};

use crate::args::{ExportArgs, ExportFormat, Global};
use crate::{launch, output, sessions};

/// Version of the JSON.
const SCHEMA: &str = "warptrace.export/v1";

pub(crate) fn run(global: &Global, args: &ExportArgs) -> anyhow::Result<u8> {
    let folder = sessions::resolve(global, args.session.as_deref())?;
    let session =
        sessions::open(&folder).with_context(|| format!("cannot read the session {folder:?}"))?;
    let target = &args.output;
    if args.format == ExportFormat::MemoryTelemetry {
        return memory_telemetry(args, &session);
    }
    if target.is_dir() {
        bail!("{target:?} is a folder: name a file");
    }
    if !args.force && target.symlink_metadata().is_ok() {
        bail!("{target:?} exists already: --force replaces it");
    }
    let temporary = Temporary::create(target)?;
    let bar = progress();
    let answer = warptrace_api::explain(&session, &ExplainQuestion::default())?;
    let tally = sqlite::export(&session, &chains(&answer), &temporary.path, &mut |events| {
        if let Some(bar) = &bar {
            bar.set_position(events);
        }
    })?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    temporary.become_file(target, args.force)?;
    report(args, &session.meta().id, &tally)?;
    Ok(0)
}

/// A folder, unlike the others: it is never replaced, since it may be one that a recorder writes.
fn memory_telemetry(args: &ExportArgs, session: &Session) -> anyhow::Result<u8> {
    let target = &args.output;
    if target.symlink_metadata().is_ok() {
        bail!("{target:?} exists already: name a folder that does not");
    }
    let counts = memory::write(session, target)?;
    let events: u64 = counts.values().sum();
    let path = target.display().to_string();
    if args.json {
        output::print_json(&serde_json::json!({
            "schema": SCHEMA, "session": session.meta().id, "format": "memory-telemetry", "path": path,
            "rows": {"events": events, "sessions": counts.len()}, "left_out": [],
        }))?;
    } else {
        output::print(&format!(
            "{path}: {events} events of {} runs\n",
            counts.len()
        ))?;
    }
    Ok(0)
}

fn progress() -> Option<ProgressBar> {
    let style = ProgressStyle::with_template("  {spinner} {human_pos} events  {elapsed}").ok()?;
    std::io::stderr()
        .is_terminal()
        .then(|| ProgressBar::no_length().with_style(style))
}

fn report(args: &ExportArgs, session: &str, tally: &Tally) -> anyhow::Result<()> {
    let path = args.output.display().to_string();
    if args.json {
        let left_out: Vec<_> = tally
            .skipped
            .iter()
            .map(|((_, what), skipped)| serde_json::json!({"what": what, "count": skipped.count}))
            .collect();
        return output::print_json(&serde_json::json!({
            "schema": SCHEMA, "session": session, "format": "ingero-db", "path": path, "rows": tally.kept,
            "left_out": left_out,
        }));
    }
    let rows: Vec<String> = tally
        .kept
        .iter()
        .map(|(table, n)| format!("{n} {table}"))
        .collect();
    let mut text = format!("{path}: {}\n", rows.join(", "));
    for ((_, what), skipped) in &tally.skipped {
        text += &format!("  has no place there: {} × {what}\n", skipped.count);
    }
    output::print(&text)
}

/// The findings, as that system words its own.
fn chains(answer: &Explain) -> Vec<Chain> {
    answer.findings.iter().map(chain).collect()
}

fn chain(f: &Finding) -> Chain {
    let micros = |nanos: u64| nanos / 1_000;
    let worst = f
        .excess_ns
        .checked_div(f.units.slow)
        .map_or(0, |each| f.baseline_ns.saturating_add(each));
    let causes: Vec<String> = match f.blame.is_empty() {
        true => vec![f.cause.to_owned()],
        false => f
            .blame
            .iter()
            .filter(|b| b.ns > 0)
            .map(|b| match b.detail.is_empty() {
                true => b.cause.to_owned(),
                false => format!("{} ({})", b.cause, b.detail),
            })
            .collect(),
    };
    let step = |e: &warptrace_api::Evidence| Step {
        layer: layer(f.cause),
        op: f.cause.to_owned(),
        detail: e.what.clone(),
        dur_micros: micros(e.dur_ns),
    };
    let op = f.op.unwrap_or("all");
    let affected = Step {
        layer: "CUDA",
        op: op.to_owned(),
        detail: f.title.clone(),
        dur_micros: micros(worst),
    };
    Chain {
        descriptor: format!("{}-{}", f.cause, f.id),
        detected: UnixNanos(f.end_unix_ns),
        severity: match f.severity {
            // That system knows three.
            "CRITICAL" | "HIGH" => "HIGH",
            "MEDIUM" => "MEDIUM",
            _ => "LOW",
        },
        summary: f.title.clone(),
        root_cause: causes.join(" + "),
        explanation: f.summary.clone(),
        recommendations: (!f.recommendation.is_empty())
            .then(|| f.recommendation.clone())
            .into_iter()
            .collect(),
        op: op.to_owned(),
        p99_micros: micros(worst),
        p50_micros: micros(f.baseline_ns),
        timeline: f.evidence.iter().map(step).chain([affected]).collect(),
    }
}

fn layer(cause: &str) -> &'static str {
    match cause {
        "disk_wait" => "IO",
        "network_wait" => "NET",
        "allocator" | "copy" | "launch_gap" | "gpu_work" | "gpu_contention" | "gpu_throttle"
        | "device_lost" | "collective" | "peer_wait" | "cold_start" => "CUDA",
        _ => "HOST",
    }
}

/// A file beside the target that is gone unless it becomes it.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn create(target: &Path) -> anyhow::Result<Temporary> {
        let name = target
            .file_name()
            .with_context(|| format!("{target:?} names no file"))?;
        let mut own = std::ffi::OsString::from(".");
        own.push(name);
        own.push(format!(".{}.tmp", std::process::id()));
        let path = target.with_file_name(own);
        // Nobody else's: command lines and paths are in it.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot write {target:?}"))?;
        let temporary = Temporary { path };
        if let Some((uid, gid)) = launch::calling_user() {
            std::os::unix::fs::chown(&temporary.path, Some(uid.as_raw()), Some(gid.as_raw()))
                .with_context(|| format!("cannot write {target:?}"))?;
        }
        Ok(temporary)
    }

    /// All or nothing, and not in place of another file unless `force` says so.
    fn become_file(self, target: &Path, force: bool) -> anyhow::Result<()> {
        let place = || -> io::Result<()> {
            File::open(&self.path)?.sync_all()?;
            if force {
                std::fs::rename(&self.path, target)?;
            } else {
                // A link refuses where a rename would replace; where there are no links, it was looked for before.
                match std::fs::hard_link(&self.path, target) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                        std::fs::rename(&self.path, target)?;
                    }
                    other => other?,
                }
            }
            let folder = match target.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            File::open(folder)?.sync_all()
        };
        place().with_context(|| format!("cannot write {target:?}"))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is none.
        let _ = std::fs::remove_file(&self.path);
    }
}
