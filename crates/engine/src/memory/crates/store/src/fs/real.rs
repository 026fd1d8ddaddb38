//! The machine's file system.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{self as unix, DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::{Append, Create, Entry, Fs, Lock, ReadAt, Share};

/// The machine's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFs;

struct RealFile(File);

impl Write for RealFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Append for RealFile {
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)?;
        self.0.seek(SeekFrom::Start(len)).map(drop)
    }
}

impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        unix::FileExt::read_exact_at(self, buf, offset)
    }
}

impl Lock for File {}

impl Fs for RealFs {
    fn create_dir(&self, path: &Path, how: Create) -> io::Result<()> {
        DirBuilder::new().mode(how.mode).create(path)?;
        match how.owner {
            // Not following links: whoever owns the parent could have put one in its place meanwhile.
            Some(owner) => unix::lchown(path, Some(owner.uid), Some(owner.gid)),
            None => Ok(()),
        }
    }

    fn create(&self, path: &Path, how: Create) -> io::Result<Box<dyn Append>> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(how.mode)
            .open(path)?;
        if let Some(owner) = how.owner {
            unix::fchown(&file, Some(owner.uid), Some(owner.gid))?;
        }
        Ok(Box::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadAt>> {
        Ok(Box::new(File::open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            // A file may be sealed away between the listing and the look at it.
            let Ok(meta) = entry.metadata() else { continue };
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            entries.push(Entry {
                name,
                is_dir: meta.is_dir(),
                len: if meta.is_dir() { 0 } else { meta.len() },
            });
        }
        entries.sort();
        Ok(entries)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn try_lock(&self, path: &Path, share: Share) -> io::Result<Box<dyn Lock>> {
        let file = File::open(path)?;
        match share {
            Share::Nobody => file.try_lock(),
            Share::OtherReaders => file.try_lock_shared(),
        }?;
        Ok(Box::new(file))
    }
}
