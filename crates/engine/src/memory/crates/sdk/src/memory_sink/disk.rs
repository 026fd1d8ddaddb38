//! A sink's folder on the disk: one writer, no links followed, everything durable before it is believed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use warptrace_formats::memory::{Folder, MANIFEST, SinkError, SinkFolder};

#[derive(Debug)]
pub(super) struct DiskFolder {
    path: PathBuf,
    /// The folder itself, to make its entries durable; locked where the file system has locks.
    folder: Option<Flock<File>>,
    unlocked: Option<File>,
    /// The segment that was written last.
    open: Option<(String, File)>,
}

impl DiskFolder {
    pub(super) fn open(path: &Path) -> Result<DiskFolder, SinkError> {
        let failed = |operation| {
            let name = path.to_string_lossy().into_owned();
            move |source| SinkError::Io {
                operation,
                name,
                source,
            }
        };
        std::fs::create_dir_all(path).map_err(failed("make"))?;
        let folder = File::open(path).map_err(failed("open"))?;
        // A lock on the folder itself leaves no file behind, and goes with the process.
        let (folder, unlocked) = match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => (Some(locked), None),
            Err((_, Errno::EWOULDBLOCK)) => return Err(SinkError::Locked),
            // No locks on this file system: nothing keeps a second writer out, but segments' names do not meet.
            Err((folder, _)) => (None, Some(folder)),
        };
        Ok(DiskFolder {
            path: path.to_owned(),
            folder,
            unlocked,
            open: None,
        })
    }

    fn sync_folder(&self) -> io::Result<()> {
        match (&self.folder, &self.unlocked) {
            (Some(folder), _) => folder.sync_all(),
            (None, Some(folder)) => folder.sync_all(),
            (None, None) => Ok(()),
        }
    }

    fn options() -> OpenOptions {
        let mut options = OpenOptions::new();
        options.custom_flags(O_NOFOLLOW | O_NONBLOCK);
        options
    }

    /// Opens a regular file of the folder.
    fn file(&self, name: &str, options: &OpenOptions) -> io::Result<File> {
        let file = options.open(self.path.join(name))?;
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "no regular file",
            )),
        }
    }
}

impl Folder for DiskFolder {
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in self.path.read_dir()? {
            let entry = entry?;
            // Links and folders are not ours, whatever they are called.
            if entry.file_type()?.is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(self.file(name, DiskFolder::options().read(true))?))
    }
}

impl SinkFolder for DiskFolder {
    fn size(&self, name: &str) -> io::Result<u64> {
        match &self.open {
            Some((open, file)) if open == name => Ok(file.metadata()?.len()),
            _ => Ok(self.path.join(name).symlink_metadata()?.len()),
        }
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let mut options = DiskFolder::options();
        let file = self.file(name, options.append(true).create_new(true))?;
        self.sync_folder()?;
        self.open = Some((name.to_owned(), file));
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if self.open.as_ref().is_none_or(|(open, _)| open != name) {
            let mut options = DiskFolder::options();
            let file = self.file(name, options.append(true).create(true))?;
            self.sync_folder()?;
            self.open = Some((name.to_owned(), file));
        }
        match &mut self.open {
            Some((_, file)) => {
                file.write_all(bytes)?;
                file.sync_data()
            }
            None => Ok(()),
        }
    }

    fn truncate(&mut self, name: &str, size: u64) -> io::Result<()> {
        let file = self.file(name, DiskFolder::options().write(true))?;
        file.set_len(size)?;
        file.sync_all()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|(open, _)| open == name) {
            self.open = None;
        }
        match std::fs::remove_file(self.path.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn replace(&mut self, name: &str, text: &str) -> io::Result<()> {
        // The manifest's temporary file has a fixed name, which readers of these folders know; others have our process's.
        let temporary = match name {
            MANIFEST => self.path.join("manifest.tmp"),
            _ => self.path.join(format!("{name}.{}.tmp", std::process::id())),
        };
        let mut options = DiskFolder::options();
        let written = options
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| std::fs::rename(&temporary, self.path.join(name)));
        if let Err(error) = written {
            // It may not even be there.
            let _ = std::fs::remove_file(&temporary);
            return Err(error);
        }
        self.sync_folder()
    }
}
