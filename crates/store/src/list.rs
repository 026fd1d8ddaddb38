//! Which sessions there are, and which of them are to go.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use warptrace_model::UnixNanos;

use crate::error::StoreError;
use crate::fs::{Entry, Fs, Lock, Share};
use crate::meta::{self, SessionMeta};
use crate::session::{Session, State};
use crate::writer::LOCK_FILE;

/// A directory that is or should be a session.
#[derive(Debug)]
pub struct SessionSummary {
    /// The directory's name.
    pub id: String,
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// What it is, or why that cannot be read.
    pub session: Result<(SessionMeta, State), StoreError>,
}

/// The begin of names of directories that are being removed.
const REMOVING: &str = ".removing-";

/// The sessions in the data folders `dirs`, newest first; folders that do not exist hold none. Ids begin with their time,
/// so a session that cannot be read stands in its place.
///
/// # Errors
/// [`StoreError::Io`] when a folder cannot be listed.
pub fn list_sessions(
    fs: &Arc<dyn Fs>,
    dirs: &[PathBuf],
) -> Result<Vec<SessionSummary>, StoreError> {
    let mut summaries = Vec::new();
    for dir in dirs {
        let sessions = dir.join("sessions");
        let entries = match fs.list(&sessions) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(StoreError::io("read", sessions)(e)),
        };
        for Entry { name, is_dir, .. } in entries {
            if !is_dir || name.starts_with('.') {
                continue;
            }
            let path = sessions.join(&name);
            let session = Session::open(fs.clone(), &path);
            summaries.push(SessionSummary {
                bytes: bytes_below(&**fs, &path),
                session: session.map(|s| (s.meta().clone(), s.state())),
                path,
                id: name,
            });
        }
    }
    summaries.sort_by(|a, b| b.id.cmp(&a.id));
    Ok(summaries)
}

/// The newest session that can be read, and those newer ones that cannot.
///
/// # Errors
/// [`StoreError::Io`] when a folder cannot be listed.
pub fn newest(
    fs: &Arc<dyn Fs>,
    dirs: &[PathBuf],
) -> Result<(Option<SessionSummary>, Vec<SessionSummary>), StoreError> {
    let mut unreadable = Vec::new();
    for summary in list_sessions(fs, dirs)? {
        if summary.session.is_ok() {
            return Ok((Some(summary), unreadable));
        }
        unreadable.push(summary);
    }
    Ok((None, unreadable))
}

/// The session that `wanted` names: a directory, an id, or the begin of just one id.
///
/// # Errors
/// [`StoreError::Unknown`], [`StoreError::Ambiguous`], [`StoreError::Io`].
pub fn find(fs: &Arc<dyn Fs>, dirs: &[PathBuf], wanted: &str) -> Result<PathBuf, StoreError> {
    if wanted.contains('/') {
        return Ok(PathBuf::from(wanted));
    }
    let mut found: Vec<SessionSummary> = list_sessions(fs, dirs)?;
    found.retain(|s| !wanted.is_empty() && s.id.starts_with(wanted));
    if let Some(exact) = found.iter().position(|s| s.id == wanted) {
        return Ok(found.swap_remove(exact).path);
    }
    match found.as_slice() {
        [one] => Ok(one.path.clone()),
        [] => Err(StoreError::Unknown(wanted.to_owned())),
        several => Err(StoreError::Ambiguous {
            wanted: wanted.to_owned(),
            found: several.iter().map(|s| s.id.clone()).collect(),
        }),
    }
}

/// Removes a session that nobody writes.
///
/// # Errors
/// [`StoreError::Live`] for one that is being written; [`StoreError::NotASession`] for a directory that is none, unless it
/// is an empty one that a crash left; [`StoreError::Io`].
pub fn remove(fs: &dyn Fs, session: &Path) -> Result<(), StoreError> {
    let is_session = match fs.list(session) {
        Ok(entries) => {
            let ours = |e: &Entry| e.name == LOCK_FILE || e.name.starts_with(meta::FILE);
            entries.iter().all(ours) || entries.iter().any(|e| e.name == meta::FILE)
        }
        Err(e) => return Err(StoreError::io("read", session)(e)),
    };
    if !is_session {
        return Err(StoreError::NotASession(session.to_owned()));
    }
    // Held until it is gone, so that nobody begins to write it.
    let _lock: Option<Box<dyn Lock>> = match fs.try_lock(&session.join(LOCK_FILE), Share::Nobody) {
        Ok(lock) => Some(lock),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            return Err(StoreError::Live(session.to_owned()));
        }
        // One that was copied without it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(StoreError::io("lock", session)(e)),
    };
    let name = session.file_name().unwrap_or_default().to_string_lossy();
    let doomed = session.with_file_name(format!("{REMOVING}{name}"));
    // Under another name first: nobody sees half of it.
    fs.rename(session, &doomed)
        .map_err(StoreError::io("remove", session))?;
    fs.remove_dir_all(&doomed)
        .map_err(StoreError::io("remove", doomed))
}

/// What to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// Bytes of all sessions together; the oldest go first.
    pub max_bytes: Option<u64>,
    /// Sessions that ended (or, not ended, began) so long ago go, ns.
    pub max_age: Option<u64>,
    /// Sessions of recordings that went on in others, which are not being written; the oldest go first. Others stay.
    pub max_parts: Option<usize>,
}

/// What [`prune`] did.
#[derive(Debug, Default)]
pub struct Pruned {
    /// Ids and bytes of the sessions that are gone.
    pub removed: Vec<(String, u64)>,
    /// Those that should have gone, and why they did not.
    pub kept: Vec<(String, StoreError)>,
    /// Bytes of what is left.
    pub left: u64,
}

/// Removes sessions in the data folder `dir` that `keep` does not want, oldest first, and what an interrupted removal
/// left. A session that is being written stays, whatever its size; one that cannot be read (of a newer format, perhaps)
/// stays as well, though its bytes count.
///
/// # Errors
/// [`StoreError::Io`] when the folder cannot be listed.
pub fn prune(
    fs: &Arc<dyn Fs>,
    dir: &Path,
    keep: Retention,
    now: UnixNanos,
) -> Result<Pruned, StoreError> {
    let sessions = dir.join("sessions");
    for entry in fs.list(&sessions).unwrap_or_default() {
        if entry.name.starts_with(REMOVING) {
            let _ = fs.remove_dir_all(&sessions.join(entry.name));
        }
    }
    let mut all = list_sessions(fs, &[dir.to_owned()])?;
    all.reverse();
    let mut pruned = Pruned {
        left: all.iter().map(|s| s.bytes).sum(),
        ..Pruned::default()
    };
    let is_finished_part = |summary: &SessionSummary| match &summary.session {
        Ok((meta, state)) => meta.part.is_some() && *state != State::Live,
        Err(_) => false,
    };
    let parts = all.iter().filter(|s| is_finished_part(s)).count();
    let mut old_parts = keep.max_parts.map_or(0, |max| parts.saturating_sub(max));
    for summary in all {
        let is_old_part = old_parts > 0 && is_finished_part(&summary);
        old_parts -= usize::from(is_old_part);
        let too_much = keep.max_bytes.is_some_and(|max| pruned.left > max);
        let (over, live) = match &summary.session {
            Ok((meta, state)) => (meta.ended.unwrap_or(meta.created), *state == State::Live),
            Err(_) => continue,
        };
        let too_old = keep
            .max_age
            .is_some_and(|age| now.0.saturating_sub(over.0) > age);
        // A live one is not even asked for by its age: it is as old as now.
        if !(too_much || is_old_part || too_old && !live) {
            continue;
        }
        match remove(&**fs, &summary.path) {
            Ok(()) => {
                pruned.left -= summary.bytes;
                pruned.removed.push((summary.id, summary.bytes));
            }
            Err(e) => pruned.kept.push((summary.id, e)),
        }
    }
    Ok(pruned)
}

/// Bytes of the files of a session: two levels of directories.
fn bytes_below(fs: &dyn Fs, session: &Path) -> u64 {
    let list = |dir: &Path| fs.list(dir).unwrap_or_default();
    let mut bytes = 0;
    for entry in list(session) {
        bytes += entry.len;
        if entry.is_dir {
            bytes += list(&session.join(&entry.name))
                .iter()
                .map(|e| e.len)
                .sum::<u64>();
        }
    }
    bytes
}
