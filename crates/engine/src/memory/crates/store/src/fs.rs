//! The one seam to the disk: everything that this crate reads or writes goes through [`Fs`].
//!
//! [`RealFs`] is the machine's; [`MemFs`] is its double, whose disk fills up, fails at any operation, and forgets what
//! was not synced when its power is cut. The seam knows nothing of sessions or tables.

mod mem;
mod real;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub use mem::{Fault, MemFs};
pub use real::RealFs;

/// To whom a new file or directory is given; under sudo, the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// How a file or directory is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Create {
    /// Permission bits; the process's umask takes away from them.
    pub mode: u32,
    pub owner: Option<Owner>,
}

/// A file being appended to.
pub trait Append: Write + Send {
    /// Waits until all that was written is on the disk.
    ///
    /// # Errors
    /// What the system says; the data may or may not be there.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts the file to its first `len` bytes; later writes go on from there.
    ///
    /// # Errors
    /// What the system says; the length is then not known.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

/// A file that is read at any place. A file that is removed stays readable while it is held.
pub trait ReadAt: Send + Sync {
    /// Bytes that the file had when it was asked.
    ///
    /// # Errors
    /// What the system says.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before; else what the system says.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

/// What a directory holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub name: String,
    pub is_dir: bool,
    /// Bytes; 0 for a directory.
    pub len: u64,
}

/// Keeps a lock until it is dropped.
pub trait Lock: Send {}

/// Who else may hold a lock at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    Nobody,
    OtherReaders,
}

/// A file system, as far as sessions need one.
pub trait Fs: Send + Sync {
    /// Makes a directory; its parent exists.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken; else what the system says.
    fn create_dir(&self, path: &Path, how: Create) -> io::Result<()>;

    /// Makes a file that did not exist, and opens it for appending.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken (by a symbolic link, too); else what the system says.
    fn create(&self, path: &Path, how: Create) -> io::Result<Box<dyn Append>>;

    /// # Errors
    /// What the system says.
    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadAt>>;

    /// The whole of a small file.
    ///
    /// # Errors
    /// `FileTooLarge` when it has more than `cap` bytes; else what the system says.
    fn read(&self, path: &Path, cap: u64) -> io::Result<Vec<u8>> {
        let file = self.open(path)?;
        let len = file.size()?;
        if len > cap {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{len} bytes, more than {cap}"),
            ));
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Gives a file or directory another name, in place of a file that had it; all or nothing.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// # Errors
    /// What the system says.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory and all in it; symbolic links are removed, not followed.
    ///
    /// # Errors
    /// What the system says; part of it may be gone.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// What is in a directory, by name.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;

    /// Waits until the names in a directory are on the disk.
    ///
    /// # Errors
    /// What the system says.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Locks an existing file against other processes; at once, or not at all. The system frees the lock when the
    /// process ends, however it ends.
    ///
    /// # Errors
    /// `WouldBlock` when someone holds it; else what the system says.
    fn try_lock(&self, path: &Path, share: Share) -> io::Result<Box<dyn Lock>>;

    /// Makes what is missing of `path`, parents first.
    ///
    /// # Errors
    /// What the system says, for the first directory that could not be made.
    fn create_dir_all(&self, path: &Path, how: Create) -> io::Result<()> {
        let mut missing: Vec<PathBuf> = Vec::new();
        let mut at = path;
        while !at.as_os_str().is_empty() && self.list(at).is_err_and(is_missing) {
            missing.push(at.to_owned());
            match at.parent() {
                Some(parent) => at = parent,
                None => break,
            }
        }
        for dir in missing.iter().rev() {
            match self.create_dir(dir, how) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_missing(e: io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound
}
