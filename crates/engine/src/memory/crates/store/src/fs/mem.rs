//! A disk in memory that fails when told to.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Append, Create, Entry, Fs, Lock, ReadAt, Share};

/// Which changing operations fail, counted from 0 since [`MemFs::new`]: creating, writing, syncing, renaming,
/// cutting, removing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    #[default]
    None,
    /// This one alone. A write leaves half of its bytes.
    At(u64),
    /// This one and all after it.
    From(u64),
}

/// A disk in memory. Clones are the same disk.
///
/// It is pessimistic about power: of what was not synced, names go and file contents keep as much as the caller of
/// [`MemFs::power_cut`] says.
#[derive(Clone, Default)]
pub struct MemFs {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Default)]
struct Disk {
    nodes: BTreeMap<PathBuf, Node>,
    /// The names as they would be after a power cut.
    durable: BTreeMap<PathBuf, Node>,
    locks: BTreeMap<PathBuf, Held>,
    capacity: Option<u64>,
    fault: Fault,
    operations: u64,
}

#[derive(Clone)]
enum Node {
    Dir,
    File(Arc<Mutex<Content>>),
}

#[derive(Default, Clone)]
struct Content {
    bytes: Vec<u8>,
    synced: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Alone,
    Shared(u32),
}

impl MemFs {
    pub fn new() -> MemFs {
        MemFs::default()
    }

    /// Makes operations fail from now on.
    pub fn set_fault(&self, fault: Fault) {
        self.disk().fault = fault;
    }

    /// Limits the bytes of all files together; `None` for no limit. A write beyond fills what is left and fails.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk().capacity = bytes;
    }

    /// Changing operations so far.
    pub fn operations(&self) -> u64 {
        self.disk().operations
    }

    /// Bytes of all files together.
    pub fn used(&self) -> u64 {
        self.disk().used()
    }

    /// The disk as the next process finds it after `kill -9`: what was written is there, and no lock is held.
    #[must_use]
    pub fn killed(&self) -> MemFs {
        MemFs::holding(self.disk().nodes.clone(), |content| content.bytes.len())
    }

    /// The disk after a power cut. `keep` is asked for each file how many of its unsynced bytes made it.
    #[must_use]
    pub fn power_cut(&self, mut keep: impl FnMut(usize) -> usize) -> MemFs {
        MemFs::holding(self.disk().durable.clone(), |content| {
            let unsynced = content.bytes.len() - content.synced;
            content.synced + keep(unsynced).min(unsynced)
        })
    }

    /// A file's bytes; `None` when there is no such file.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        match self.disk().nodes.get(path)? {
            Node::File(content) => Some(lock(content).bytes.clone()),
            Node::Dir => None,
        }
    }

    /// Puts a file there, synced, whatever was there before.
    pub fn put(&self, path: &Path, bytes: Vec<u8>) {
        let content = Content {
            synced: bytes.len(),
            bytes,
        };
        let node = Node::File(Arc::new(Mutex::new(content)));
        let mut disk = self.disk();
        disk.nodes.insert(path.to_owned(), node.clone());
        disk.durable.insert(path.to_owned(), node);
    }

    /// The paths of all files.
    pub fn files(&self) -> Vec<PathBuf> {
        let disk = self.disk();
        let files = disk
            .nodes
            .iter()
            .filter(|(_, n)| matches!(n, Node::File(_)));
        files.map(|(path, _)| path.clone()).collect()
    }

    fn holding(mut nodes: BTreeMap<PathBuf, Node>, len: impl FnMut(&Content) -> usize) -> MemFs {
        let mut len = len;
        for node in nodes.values_mut() {
            if let Node::File(file) = node {
                let mut content = lock(file).clone();
                content.bytes.truncate(len(&content));
                content.synced = content.bytes.len();
                *node = Node::File(Arc::new(Mutex::new(content)));
            }
        }
        MemFs {
            disk: Arc::new(Mutex::new(Disk {
                durable: nodes.clone(),
                nodes,
                ..Disk::default()
            })),
        }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        lock(&self.disk)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, path.display().to_string())
}

impl Disk {
    fn used(&self) -> u64 {
        let files = self.nodes.values().map(|node| match node {
            Node::File(content) => lock(content).bytes.len() as u64,
            Node::Dir => 0,
        });
        files.sum()
    }

    /// Counts a changing operation, and says whether it works.
    fn change(&mut self) -> io::Result<()> {
        let n = self.operations;
        self.operations += 1;
        match self.fault {
            Fault::At(at) if at == n => Err(full()),
            Fault::From(at) if at <= n => Err(full()),
            _ => Ok(()),
        }
    }

    fn parent_exists(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if parent.parent().is_some() => match self.nodes.get(parent) {
                Some(Node::Dir) => Ok(()),
                _ => Err(missing(parent)),
            },
            _ => Ok(()),
        }
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<()> {
        self.parent_exists(path)?;
        if self.nodes.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.nodes.insert(path.to_owned(), node);
        Ok(())
    }
}

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

struct MemFile {
    disk: Arc<Mutex<Disk>>,
    content: Arc<Mutex<Content>>,
}

impl Write for MemFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut disk = lock(&self.disk);
        let works = disk.change();
        let left = match disk.capacity {
            Some(capacity) => capacity.saturating_sub(disk.used()) as usize,
            None => usize::MAX,
        };
        let mut content = lock(&self.content);
        if works.is_err() {
            content
                .bytes
                .extend_from_slice(&buf[..(buf.len() / 2).min(left)]);
            return Err(full());
        }
        if left == 0 && !buf.is_empty() {
            return Err(full());
        }
        let n = buf.len().min(left);
        content.bytes.extend_from_slice(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Append for MemFile {
    fn sync(&mut self) -> io::Result<()> {
        lock(&self.disk).change()?;
        let mut content = lock(&self.content);
        content.synced = content.bytes.len();
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        lock(&self.disk).change()?;
        let mut content = lock(&self.content);
        content.bytes.truncate(len as usize);
        content.synced = content.synced.min(content.bytes.len());
        Ok(())
    }
}

struct MemReader(Arc<Mutex<Content>>);

impl ReadAt for MemReader {
    fn size(&self) -> io::Result<u64> {
        Ok(lock(&self.0).bytes.len() as u64)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let content = lock(&self.0);
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let from = content.bytes.get(at..).unwrap_or_default();
        let from = from.get(..buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(from);
        Ok(())
    }
}

struct MemLock {
    disk: Arc<Mutex<Disk>>,
    path: PathBuf,
}

impl Lock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        let mut disk = lock(&self.disk);
        match disk.locks.get_mut(&self.path) {
            Some(Held::Shared(n)) if *n > 1 => *n -= 1,
            _ => drop(disk.locks.remove(&self.path)),
        }
    }
}

impl Fs for MemFs {
    fn create_dir(&self, path: &Path, _how: Create) -> io::Result<()> {
        let mut disk = self.disk();
        disk.change()?;
        disk.add(path, Node::Dir)
    }

    fn create(&self, path: &Path, _how: Create) -> io::Result<Box<dyn Append>> {
        let mut disk = self.disk();
        disk.change()?;
        let content = Arc::new(Mutex::new(Content::default()));
        disk.add(path, Node::File(content.clone()))?;
        Ok(Box::new(MemFile {
            disk: self.disk.clone(),
            content,
        }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadAt>> {
        match self.disk().nodes.get(path) {
            Some(Node::File(content)) => Ok(Box::new(MemReader(content.clone()))),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(missing(path)),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.change()?;
        let node = disk.nodes.remove(from).ok_or_else(|| missing(from))?;
        let inside: Vec<_> = disk
            .nodes
            .keys()
            .filter(|path| path.starts_with(from))
            .cloned()
            .collect();
        for path in inside {
            let node = disk.nodes.remove(&path).expect("its key was just seen");
            let rest = path.strip_prefix(from).expect("it starts with it");
            disk.nodes.insert(to.join(rest), node);
        }
        disk.nodes.insert(to.to_owned(), node);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.change()?;
        disk.nodes
            .remove(path)
            .map(drop)
            .ok_or_else(|| missing(path))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.change()?;
        if disk.nodes.remove(path).is_none() {
            return Err(missing(path));
        }
        disk.nodes.retain(|p, _| !p.starts_with(path));
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let disk = self.disk();
        match disk.nodes.get(path) {
            Some(Node::Dir) => {}
            Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            None if path.parent().is_none() => {}
            None => return Err(missing(path)),
        }
        let inside = disk.nodes.iter().filter(|(p, _)| p.parent() == Some(path));
        let entries = inside.map(|(path, node)| Entry {
            name: path
                .file_name()
                .expect("it has a parent")
                .to_string_lossy()
                .into_owned(),
            is_dir: matches!(node, Node::Dir),
            len: match node {
                Node::Dir => 0,
                Node::File(content) => lock(content).bytes.len() as u64,
            },
        });
        Ok(entries.collect())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.change()?;
        disk.durable.retain(|p, _| p.parent() != Some(path));
        let inside: Vec<_> = disk
            .nodes
            .iter()
            .filter(|(p, _)| p.parent() == Some(path))
            .map(|(p, n)| (p.clone(), n.clone()))
            .collect();
        disk.durable.extend(inside);
        Ok(())
    }

    fn try_lock(&self, path: &Path, share: Share) -> io::Result<Box<dyn Lock>> {
        let mut disk = self.disk();
        if !disk.nodes.contains_key(path) {
            return Err(missing(path));
        }
        let held = match (disk.locks.get(path), share) {
            (None, Share::Nobody) => Held::Alone,
            (None, Share::OtherReaders) => Held::Shared(1),
            (Some(Held::Shared(n)), Share::OtherReaders) => Held::Shared(n + 1),
            _ => return Err(io::ErrorKind::WouldBlock.into()),
        };
        disk.locks.insert(path.to_owned(), held);
        Ok(Box::new(MemLock {
            disk: self.disk.clone(),
            path: path.to_owned(),
        }))
    }
}
