//! Data loading: a worker thread that reads batches from real files, some steps ahead of the loop that uses them.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, SyncSender},
    thread::{self, JoinHandle},
};

use crate::{
    cuda::{HostBuffer, Result, WorkloadError, io_error},
    host::{boot_ns, drop_cache, next_random},
    train::{Injected, SlowLoader},
};

/// How the loader reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskReads {
    /// Through the page cache, which holds the files after the first round.
    #[default]
    Cached,
    /// Through the page cache, dropped before each batch.
    DropCache,
    /// Past the page cache (`O_DIRECT`). Not every file system can; the first read then fails.
    Direct,
}

/// Read in pieces of this size.
const PIECE: usize = 1 << 20;
/// Files that the batches come from in turn.
const FILES: usize = 4;

/// Files of data, made when this begins and removed with it.
pub(crate) struct DataFiles {
    paths: Vec<PathBuf>,
    /// Set when the folder was made here.
    folder: Option<PathBuf>,
}

impl DataFiles {
    /// Makes the files in `folder`, each of `bytes`.
    pub(crate) fn create(folder: &Path, bytes: usize) -> Result<Self> {
        let made = !folder.exists();
        fs::create_dir_all(folder).map_err(io_error("cannot make the data folder"))?;
        let mut files = Self {
            paths: Vec::new(),
            folder: made.then(|| folder.to_owned()),
        };
        let mut state = 0x2545_f491_4f6c_dd1d;
        let piece: Vec<u8> = (0..PIECE / 8)
            .flat_map(|_| {
                state = next_random(state);
                state.to_le_bytes()
            })
            .collect();
        for number in 0..FILES {
            let path = folder.join(format!("shard-{number:02}.bin"));
            let fail = || io_error("cannot write a data file");
            let mut file = File::create(&path).map_err(fail())?;
            files.paths.push(path);
            let mut left = bytes;
            while left > 0 {
                let part = left.min(PIECE);
                file.write_all(&piece[..part]).map_err(fail())?;
                left -= part;
            }
            // Only what is written back can be dropped from the page cache.
            file.sync_all().map_err(fail())?;
        }
        Ok(files)
    }

    pub(crate) fn path(&self, number: usize) -> &Path {
        &self.paths[number % self.paths.len()]
    }
}

impl Drop for DataFiles {
    fn drop(&mut self) {
        for path in &self.paths {
            let _ = fs::remove_file(path);
        }
        if let Some(folder) = &self.folder {
            // Only when it is empty: others may keep files there.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// A running loader. Dropping it ends the thread.
pub(crate) struct Loader {
    full: Receiver<Result<HostBuffer>>,
    empty: Option<SyncSender<HostBuffer>>,
    thread: Option<JoinHandle<Vec<Injected>>>,
}

impl Loader {
    /// Starts the thread `loader-0`, which fills `buffers` in turn.
    pub(crate) fn start(
        files: &DataFiles,
        buffers: Vec<HostBuffer>,
        reads: DiskReads,
        slow: Option<SlowLoader>,
    ) -> Result<Self> {
        let count = buffers.len();
        let (empty, to_fill) = mpsc::sync_channel::<HostBuffer>(count);
        let (filled, full) = mpsc::sync_channel(count);
        let files = files
            .paths
            .iter()
            .map(|path| open(path, reads))
            .collect::<Result<Vec<File>>>()?;
        let work = move || {
            let mut injected = Vec::new();
            for (number, mut buffer) in to_fill.iter().enumerate() {
                let slow_now = slow.filter(|slow| slow.when.hits(number as u64));
                let rounds = slow_now.map_or(1, |slow| slow.times.max(1));
                let start_ns = boot_ns();
                let file = &files[number % files.len()];
                let outcome = (0..rounds).try_for_each(|_| {
                    if reads == DiskReads::DropCache || slow_now.is_some() {
                        drop_cache(file);
                    }
                    read_batch(file, buffer.as_mut_slice())
                });
                if slow_now.is_some() {
                    injected.push(Injected {
                        kind: "slow_loader",
                        step: number as u64,
                        start_ns,
                        end_ns: boot_ns(),
                    });
                }
                if filled.send(outcome.map(|()| buffer)).is_err() {
                    break;
                }
            }
            injected
        };
        let thread = thread::Builder::new()
            .name("loader-0".into())
            .spawn(work)
            .map_err(io_error("cannot start the loader"))?;
        let loader = Self {
            full,
            empty: Some(empty),
            thread: Some(thread),
        };
        for buffer in buffers {
            loader.give_back(buffer);
        }
        Ok(loader)
    }

    /// The next batch; sleeps until it is there.
    pub(crate) fn next(&self) -> Result<HostBuffer> {
        let gone = WorkloadError::Option("the loader ended");
        self.full.recv().map_err(|_| gone)?
    }

    /// A buffer to fill again.
    pub(crate) fn give_back(&self, buffer: HostBuffer) {
        if let Some(empty) = &self.empty {
            // Without a loader the buffer just goes; `next` reports that one.
            let _ = empty.send(buffer);
        }
    }

    /// Ends the thread; what it injected.
    pub(crate) fn stop(mut self) -> Vec<Injected> {
        self.empty = None;
        self.thread
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default()
    }
}

fn open(path: &Path, reads: DiskReads) -> Result<File> {
    let flags = match reads {
        DiskReads::Direct => libc::O_DIRECT,
        _ => 0,
    };
    OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(io_error("cannot open a data file"))
}

fn read_batch(file: &File, buffer: &mut [u8]) -> Result<()> {
    for (number, piece) in buffer.chunks_mut(PIECE).enumerate() {
        file.read_exact_at(piece, (number * PIECE) as u64)
            .map_err(io_error("cannot read a data file"))?;
    }
    Ok(())
}
