//! What a path means: which files of a folder hold events, and in which order.
//!
//! The folder is the caller's: this module asks for names and opens files by name, never by a path.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::sync::Arc;

use super::manifest::{
    MANIFEST, MAX_MANIFEST_BYTES, Manifest, SEGMENT_SUFFIX, is_segment_file, looks_like_segment,
};

/// A folder, as much of it as loading needs.
pub trait Folder {
    /// Names of the folder's entries, in any order; those that are no text may be left out.
    ///
    /// # Errors
    /// The folder cannot be read, or has more entries than the caller wants to hold.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Opens a file of the folder from its beginning. `name` is one plain component.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is none. What leads out of the folder, or is no regular file, is an error as well.
    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>>;
}

/// What is to be loaded: a folder, or a file of one.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The path as it was given, for messages.
    pub path: &'a str,
    /// The absolute path without symbolic links: ids of what has none are made of it.
    pub resolved: &'a str,
    /// The folder itself, or the one that the file is in.
    pub folder: &'a dyn Folder,
    /// The file's name in it.
    pub file: Option<&'a str>,
}

impl Place<'_> {
    /// The last component of the path, or the resolved path where there is none.
    pub(crate) fn name(&self) -> &str {
        let last = self.path.trim_end_matches('/').rsplit('/').next();
        match last {
            None | Some("" | ".") => self.resolved,
            Some(name) => name,
        }
    }

    /// The path of a file beside the place, or in it.
    fn path_of(&self, name: &str) -> String {
        let folder = match self.file {
            None => self.path,
            Some(_) => match self.path.rsplit_once('/') {
                Some(("", _)) => "/",
                Some((folder, _)) => folder,
                None => return name.to_owned(),
            },
        };
        match folder.trim_end_matches('/') {
            "" => format!("/{name}"),
            folder => format!("{folder}/{name}"),
        }
    }
}

/// A file of lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// In the place's folder.
    pub name: String,
    /// For messages, and for what a session names as its sources.
    pub path: String,
    /// The session of its records that name none, if the manifest has one for it.
    pub session_id: Option<Arc<str>>,
}

/// How a place is read.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// Lines of these files, in this order.
    Lines {
        segments: Vec<Segment>,
        manifest: Option<Manifest>,
        /// Names in the manifest that lead out of the folder, left out.
        refused: Vec<String>,
    },
    /// One JSON document.
    Document { file: String },
}

/// Why a place cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("Telemetry sink {path} retained no segments")]
    NoSegments { path: String },
    #[error("{path} holds no telemetry: neither a manifest nor segments")]
    NotASink { path: String },
    #[error("cannot read {path:?}")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// How `place` is read: a file whose name ends in `.jsonl` alone; a manifest or a folder with all its segments, those that the
/// manifest names and exist, and those that are there; any other file as a document.
///
/// # Errors
/// A folder without events, or one that cannot be read.
pub fn plan(place: &Place<'_>) -> Result<Plan, PlanError> {
    let is_lines = |name: &str| name.len() > SEGMENT_SUFFIX.len() && name.ends_with(SEGMENT_SUFFIX);
    match place.file {
        Some(file) if is_lines(file) => {
            let manifest = read_manifest(place.folder);
            let mut entries = manifest.iter().flat_map(|m| &m.segments);
            // Of several entries for one file the last one counts.
            let entry = entries.rfind(|segment| *segment.filename == *file);
            let segment = Segment {
                name: file.to_owned(),
                path: place.path.to_owned(),
                session_id: entry.and_then(|segment| segment.session_id.clone()),
            };
            Ok(Plan::Lines {
                segments: vec![segment],
                manifest,
                refused: Vec::new(),
            })
        }
        Some(file) if file != MANIFEST => Ok(Plan::Document { file: file.into() }),
        _ => plan_folder(place),
    }
}

fn plan_folder(place: &Place<'_>) -> Result<Plan, PlanError> {
    let path = || place.path.to_owned();
    let names = place.folder.names();
    let names = names.map_err(|source| PlanError::Io {
        path: path(),
        source,
    })?;
    let manifest = read_manifest(place.folder);
    let mut found: BTreeMap<&str, Option<Arc<str>>> = names
        .iter()
        .filter(|name| looks_like_segment(name))
        .map(|name| (&**name, None))
        .collect();
    let mut refused = Vec::new();
    if let Some(manifest) = &manifest {
        let there: HashSet<&str> = names.iter().map(|name| &**name).collect();
        // Of several entries for one file the last one counts.
        for segment in &manifest.segments {
            let name = &*segment.filename;
            if !is_segment_file(name) {
                refused.push(name.to_owned());
            } else if there.contains(name) {
                found.insert(name, segment.session_id.clone());
            }
        }
    }
    if found.is_empty() {
        return Err(match (manifest, place.file) {
            (Some(_), _) => PlanError::NoSegments { path: path() },
            (None, Some(file)) => return Ok(Plan::Document { file: file.into() }),
            (None, None) => PlanError::NotASink { path: path() },
        });
    }
    let segments = found
        .into_iter()
        .map(|(name, session_id)| Segment {
            name: name.to_owned(),
            path: place.path_of(name),
            session_id,
        })
        .collect();
    Ok(Plan::Lines {
        segments,
        manifest,
        refused,
    })
}

/// The folder's manifest; `None` if there is none that can be read.
pub(crate) fn read_manifest(folder: &dyn Folder) -> Option<Manifest> {
    let mut bytes = Vec::new();
    let file = folder.open(MANIFEST).ok()?;
    file.take(MAX_MANIFEST_BYTES + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    match bytes.len() as u64 > MAX_MANIFEST_BYTES {
        true => None,
        false => Manifest::parse(&bytes),
    }
}
