//! `sessions`, and which session the other commands mean.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use warptrace_agent::Rollover;
use warptrace_capture::clock;
use warptrace_export::cloud_provider;
use warptrace_model::UnixNanos;
use warptrace_store::fs::{Fs, RealFs};
use warptrace_store::{
    DataDir, Env, Retention, Session, SessionMeta, SessionSummary, SessionWriter,
};

use crate::args::{Global, SessionsArgs, SessionsCommand};
use crate::{config, launch, output};

/// Where sessions are written and looked for.
pub(crate) fn data_dir(global: &Global) -> anyhow::Result<DataDir> {
    Ok(DataDir::resolve(
        global.data.as_deref(),
        &Env::of_process(),
    )?)
}

fn disk() -> Arc<dyn Fs> {
    Arc::new(RealFs)
}

/// When a recording goes on in a new session, and what is kept.
pub(crate) fn rollover(store: &config::Store, dirs: &DataDir) -> Option<Rollover> {
    let limits = limits(store, dirs);
    let rolls = limits.max_bytes.is_some() || limits.max_age.is_some();
    (rolls || limits.keep != Retention::default()).then_some(limits)
}

/// The same; without a limit where none is wanted.
pub(crate) fn limits(store: &config::Store, dirs: &DataDir) -> Rollover {
    let max_age = store
        .max_age
        .map(|age| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
    let keep = Retention {
        max_bytes: store.max_bytes.map(|size| size.0),
        max_age,
        max_parts: store.keep.map(|parts| parts as usize),
    };
    Rollover {
        max_bytes: store.rollover_size.map(|size| size.0),
        max_age: store.rollover_age,
        keep,
        disk: disk(),
        dir: dirs.clone(),
    }
}

/// The sessions in a data folder.
pub(crate) fn all_in(data: &Path) -> anyhow::Result<Vec<SessionSummary>> {
    Ok(warptrace_store::list_sessions(&disk(), &[data.to_owned()])?)
}

/// Opens a session to read.
pub(crate) fn open(folder: &Path) -> anyhow::Result<Session> {
    Ok(Session::open(disk(), folder)?)
}

/// Begins a session. `provider` is whose machine it is, where somebody says so.
pub(crate) fn create(
    dirs: &DataDir,
    command: &[std::ffi::OsString],
    sources: &[&str],
    provider: Option<&str>,
) -> anyhow::Result<SessionWriter> {
    let mut meta = SessionMeta::new(clock::anchor());
    meta.command = command
        .iter()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    meta.sources = sources.iter().map(|s| (*s).to_owned()).collect();
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .map(|s| s.trim().to_owned())
            .unwrap_or_default()
    };
    meta.host = read("/proc/sys/kernel/hostname");
    let (vendor, product) = (
        "/sys/class/dmi/id/sys_vendor",
        "/sys/class/dmi/id/product_name",
    );
    let provider = provider.or_else(|| cloud_provider(&read(vendor), &read(product)));
    meta.identity.provider = provider.unwrap_or_default().to_owned();
    meta.kernel = read("/proc/sys/kernel/osrelease");
    meta.cpus = std::thread::available_parallelism().map_or(0, |n| n.get() as u32);
    meta.uid = launch::calling_user().map_or_else(
        || nix::unistd::Uid::effective().as_raw(),
        |(uid, _)| uid.as_raw(),
    );
    SessionWriter::create(disk(), dirs, meta).context("cannot begin a session")
}

/// The folder of the session that `wanted` names, or of the newest.
pub(crate) fn resolve(global: &Global, wanted: Option<&str>) -> anyhow::Result<PathBuf> {
    if let Some(wanted) = wanted
        && wanted.contains('/')
    {
        return Ok(PathBuf::from(wanted));
    }
    let dirs = data_dir(global)?;
    if let Some(wanted) = wanted {
        return Ok(warptrace_store::find(&disk(), &dirs.read, wanted)?);
    }
    let (newest, unreadable) = warptrace_store::newest(&disk(), &dirs.read)?;
    for session in unreadable {
        if let Err(e) = session.session {
            eprintln!(
                "warptrace: session {} is newer, but cannot be read: {:#}",
                session.id,
                anyhow::Error::new(e)
            );
        }
    }
    match newest {
        Some(session) => Ok(session.path),
        None => bail!(
            "no session yet: record one with `warptrace record -- CMD`, or see `warptrace demo` (looked in {})",
            dirs.read
                .iter()
                .map(|d| d.display().to_string())
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

pub(crate) fn run(global: &Global, args: &SessionsArgs) -> anyhow::Result<u8> {
    let dirs = data_dir(global)?;
    match &args.command {
        None => list(&dirs, args.output.json)?,
        Some(SessionsCommand::Rm { sessions }) => {
            for wanted in sessions {
                let folder = warptrace_store::find(&disk(), &dirs.read, wanted)?;
                warptrace_store::remove(&RealFs, &folder)?;
                output::print(&format!("removed {}\n", folder.display()))?;
            }
        }
        Some(SessionsCommand::Prune { max_size, max_age }) => {
            let keep = Retention {
                max_bytes: *max_size,
                max_age: max_age.map(|age| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)),
                ..Retention::default()
            };
            prune(&dirs, keep)?;
        }
    }
    Ok(0)
}

fn prune(dirs: &DataDir, keep: Retention) -> anyhow::Result<()> {
    let pruned = warptrace_store::prune(&disk(), &dirs.path, keep, clock::anchor().unix)?;
    for (id, bytes) in &pruned.removed {
        output::print(&format!("removed {id}  {}\n", size_text(*bytes)))?;
    }
    for (id, e) in pruned.kept {
        eprintln!("warptrace: kept {id}: {:#}", anyhow::Error::new(e));
    }
    output::print(&format!("{} are left\n", size_text(pruned.left)))
}

fn list(dirs: &DataDir, json: bool) -> anyhow::Result<()> {
    let sessions = warptrace_store::list_sessions(&disk(), &dirs.read)?;
    if json {
        let rows: Vec<_> = sessions
            .iter()
            .map(|s| {
                let path = s.path.display().to_string();
                match &s.session {
                    Ok((meta, state)) => serde_json::json!({
                        "id": s.id, "path": path, "bytes": s.bytes, "state": state.name(), "host": meta.host,
                        "command": meta.command, "sources": meta.sources, "created_unix_ns": meta.created.0.to_string(),
                        "ended_unix_ns": meta.ended.map(|t| t.0.to_string()),
                    }),
                    Err(e) => serde_json::json!({
                        "id": s.id, "path": path, "bytes": s.bytes, "state": "unreadable", "error": e.to_string(),
                    }),
                }
            })
            .collect();
        return output::print_json(&rows);
    }
    if sessions.is_empty() {
        return output::print("no session yet: warptrace record -- CMD\n");
    }
    let mut text = String::new();
    for s in &sessions {
        let size = size_text(s.bytes);
        match &s.session {
            Ok((meta, state)) => {
                let length = match meta.ended {
                    Some(UnixNanos(end)) => {
                        warptrace_api::duration_text(end.saturating_sub(meta.created.0))
                    }
                    None => state.name().to_owned(),
                };
                let what = if meta.command.is_empty() {
                    subject(&meta.sources).into()
                } else {
                    meta.command.join(" ")
                };
                let what: String = what.chars().take(60).collect();
                text += &format!(
                    "{}  {length:>12}  {size:>9}  {:<8} {what}\n",
                    s.id,
                    meta.sources.join("+")
                );
            }
            Err(e) => text += &format!("{}  {:>12}  {size:>9}  {e}\n", s.id, "unreadable"),
        }
    }
    if let Some(folder) = sessions.first().and_then(|s| s.path.parent()) {
        text += &format!("\nin {}\n", folder.display());
    }
    output::print(&text)
}

/// What a session without a command is about.
pub(crate) fn subject(sources: &[String]) -> &'static str {
    let recorded = |s: &String| matches!(s.as_str(), "ebpf" | "preload");
    match sources.is_empty() || sources.iter().any(recorded) {
        true => "all CUDA processes",
        false => "imported",
    }
}

/// Bytes for people.
pub(crate) fn size_text(bytes: u64) -> String {
    warptrace_api::size_text(i64::try_from(bytes).unwrap_or(i64::MAX))
}
