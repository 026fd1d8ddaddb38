//! Files and folders of GPU memory telemetry on the disk, and the exceptions of those that cannot be read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use warptrace_formats::memory::{Folder, LoadError, Place, PlanError};

/// Opens without waiting for the writer of what turns out to be a pipe (`O_NONBLOCK` of Linux).
const O_NONBLOCK: i32 = 0o4000;
/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 1_000_000;

/// A folder. What is opened in it lies in it: neither a name nor a symbolic link leads out, and only regular files are read.
struct DiskFolder {
    path: PathBuf,
    resolved: PathBuf,
    /// The one file that may be anywhere, because the caller named it.
    named: Option<String>,
}

impl Folder for DiskFolder {
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in self.path.read_dir()?.take(MAX_ENTRIES) {
            // A name that is no text is no segment's.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        let path = self.path.join(name);
        if self.named.as_deref() != Some(name) && !path.canonicalize()?.starts_with(&self.resolved)
        {
            let text = "a link that leads out of its folder";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Ok(Box::new(open_file(&path)?))
    }
}

/// A regular file.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        return Ok(file);
    }
    Err(match metadata.is_dir() {
        true => io::ErrorKind::IsADirectory.into(),
        false => io::Error::new(io::ErrorKind::InvalidInput, "no regular file"),
    })
}

/// Calls `then` with the place that a path means.
pub(crate) fn with_place<T>(
    path: &Path,
    then: impl FnOnce(&Place<'_>) -> Result<T, LoadError>,
) -> Result<T, LoadError> {
    let text = path.to_string_lossy().into_owned();
    let unreadable = |source| LoadError::Io {
        path: text.clone(),
        source,
    };
    let resolved = path.canonicalize().map_err(unreadable)?;
    let (folder, file) = if resolved.is_dir() {
        (path, None)
    } else {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| unreadable(io::ErrorKind::InvalidFilename.into()))?;
        // What the caller names must be there to be read; a segment of a folder may be left out.
        open_file(path).map_err(unreadable)?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        (parent.unwrap_or(Path::new(".")), Some(name))
    };
    let folder = DiskFolder {
        path: folder.to_owned(),
        resolved: folder.canonicalize().map_err(unreadable)?,
        named: file.map(str::to_owned),
    };
    then(&Place {
        path: &text,
        resolved: &resolved.to_string_lossy(),
        folder: &folder,
        file,
    })
}

/// OSError (by its number: FileNotFoundError, …) with the path.
pub(crate) fn io_error(error: &io::Error, path: &str) -> PyErr {
    match error.raw_os_error() {
        Some(number) => {
            let text = error.to_string();
            let text = text
                .split(" (os error")
                .next()
                .unwrap_or_default()
                .to_owned();
            PyOSError::new_err((number, text, path.to_owned()))
        }
        None if error.kind() == io::ErrorKind::IsADirectory => {
            const EISDIR: i32 = 21;
            PyOSError::new_err((EISDIR, "Is a directory", path.to_owned()))
        }
        None => PyOSError::new_err(format!("{error}: {path:?}")),
    }
}

/// OSError for what cannot be read, ValueError for what is no telemetry.
pub(crate) fn load_error(error: &LoadError) -> PyErr {
    match error {
        LoadError::Io { path, source } => io_error(source, path),
        LoadError::Plan(PlanError::Io { path, source, .. }) => io_error(source, path),
        other => PyValueError::new_err(other.to_string()),
    }
}
