//! The directory of rings: made, shared with the job by its control page, removed; and those that dead recorders left.
//!
//! It lies in a file system in memory, for the owner alone. Its control page is locked (`flock`) as long as its recorder lives, whatever
//! pid namespace that lives in, so a directory whose page can be locked is nobody's. The page is written by `pwrite`, never mapped
//! here: a job that truncates it hurts itself.
#![expect(unsafe_code, reason = "statvfs and the user id are not in std")]

use std::collections::hash_map::RandomState;
use std::ffi::CString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::hash::BuildHasher as _;
use std::io::{self, Write as _};
use std::mem::offset_of;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use warptrace_record::ring::Layout;
use warptrace_record::ring::control::{self, Control};

use super::PreloadOptions;
use super::clock::TickClock;
use super::switch;
use crate::SourceError;

/// Beginning of the names of all directories of rings.
const PREFIX: &str = "warptrace-";

/// A directory without control page is being made, unless it is older than this.
const ABANDONED: Duration = Duration::from_secs(60);

const DEFAULT_BUDGET: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Locked.
    control: File,
    returned: u64,
}

/// What jobs have counted in the control page.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct JobCounters {
    pub(super) rings: u64,
    pub(super) no_space: u64,
    pub(super) refused: u64,
    pub(super) no_stub: u64,
}

impl Directory {
    /// The directory, and its control page once more.
    pub(super) fn create(
        options: &PreloadOptions,
        op_slots: u32,
        clock: &TickClock,
    ) -> Result<(Directory, File), SourceError> {
        let refused = |what: String, source| SourceError::Refused {
            what,
            source: Some(source),
        };
        if Layout::new(options.capacity, op_slots).is_none() {
            return Err(SourceError::Refused {
                what: format!(
                    "a ring of {} records (a power of two from {} to {} is needed)",
                    options.capacity,
                    warptrace_record::ring::MIN_CAPACITY,
                    warptrace_record::ring::MAX_CAPACITY
                ),
                source: None,
            });
        }
        let place = &options.shared_memory;
        sweep(place);
        let path = make_directory(place)
            .map_err(|e| refused(format!("cannot make a directory for rings in {place:?}"), e))?;
        let budget = options.budget.unwrap_or_else(|| {
            free_bytes(&path).map_or(DEFAULT_BUDGET, |free| DEFAULT_BUDGET.min(free / 4))
        });
        let mult = clock.scale();
        let page = control_page(&[
            (offset_of!(Control, magic), &control::MAGIC.to_le_bytes()),
            (
                offset_of!(Control, clock),
                &(clock.clock() as u32).to_le_bytes(),
            ),
            (
                offset_of!(Control, capacity),
                &options.capacity.to_le_bytes(),
            ),
            (offset_of!(Control, op_slots), &op_slots.to_le_bytes()),
            (offset_of!(Control, mult), &mult.to_le_bytes()),
            (offset_of!(Control, budget), &budget.to_le_bytes()),
            (
                offset_of!(Control, recorder_pid),
                &std::process::id().to_le_bytes(),
            ),
            (
                offset_of!(Control, generation),
                &switch::first(options.paused).to_le_bytes(),
            ),
        ]);
        let make = || {
            let hidden = path.join("control.new");
            let mut control = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&hidden)?;
            control.lock()?;
            control.write_all(&page)?;
            std::fs::rename(&hidden, path.join(control::FILE))?;
            let again = control.try_clone()?;
            Ok((control, again))
        };
        match make() {
            Ok((control, again)) => {
                let directory = Directory {
                    path,
                    control,
                    returned: 0,
                };
                Ok((directory, again))
            }
            Err(e) => {
                let _ = std::fs::remove_dir_all(&path);
                Err(refused(
                    format!("cannot write the control page of rings in {place:?}"),
                    e,
                ))
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the job's side of the page says; zeros when it cannot be read any more.
    pub(super) fn job_counters(&self) -> JobCounters {
        let mut page = [0; size_of::<Control>()];
        let _ = self.control.read_exact_at(&mut page, 0);
        let at = |offset: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&page[offset..offset + 8]);
            u64::from_le_bytes(word)
        };
        JobCounters {
            rings: at(offset_of!(Control, rings)),
            no_space: at(offset_of!(Control, no_space)),
            refused: at(offset_of!(Control, refused)),
            no_stub: at(offset_of!(Control, no_stub)),
        }
    }

    /// Serial numbers of the rings that are there, oldest first.
    pub(super) fn serials(&self) -> Vec<u64> {
        let mut serials: Vec<u64> = std::fs::read_dir(&self.path)
            .into_iter()
            .flatten()
            .filter_map(|e| {
                let name = e.ok()?.file_name();
                name.to_str()?
                    .strip_prefix(control::RING_PREFIX)?
                    .parse()
                    .ok()
            })
            .collect();
        serials.sort_unstable();
        serials
    }

    fn ring(&self, serial: u64) -> PathBuf {
        self.path.join(format!("{}{serial}", control::RING_PREFIX))
    }

    pub(super) fn open_ring(&self, serial: u64) -> io::Result<(File, u64)> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.ring(serial))?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok((file, metadata.len()))
    }

    /// Removes a ring and gives its `bytes` back to the budget. A thread that still has it mapped does not notice.
    pub(super) fn remove_ring(&mut self, serial: u64, bytes: u64) {
        let _ = std::fs::remove_file(self.ring(serial));
        self.returned += bytes;
        let _ = self.control.write_all_at(
            &self.returned.to_le_bytes(),
            offset_of!(Control, returned) as u64,
        );
    }

    /// Tells every process to record no more; takes effect at its next call.
    pub(super) fn switch_off(&self) {
        switch_off(&self.control);
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.switch_off();
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn switch_off(control: &File) {
    let _ = control.write_all_at(&0u32.to_le_bytes(), offset_of!(Control, generation) as u64);
}

fn control_page(fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut page = vec![0; control::BYTES];
    for (at, bytes) in fields {
        page[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    page
}

fn user() -> u32 {
    // SAFETY: cannot fail.
    unsafe { libc::geteuid() }
}

/// A new directory in `place`, for us alone, under a name that did not exist.
fn make_directory(place: &Path) -> io::Result<PathBuf> {
    // Seeded by the kernel, also where there is no /dev/urandom.
    let random = RandomState::new().hash_one(());
    let name = format!("{PREFIX}{}-{random:016x}", user());
    let path = place.join(name);
    DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}

/// Bytes that an unprivileged user can still write to the file system of `path`.
fn free_bytes(path: &Path) -> Option<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: all fields are integers.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a string and a structure for the call's duration.
    let ok = unsafe { libc::statvfs(path.as_ptr(), &mut stat) } == 0;
    // A tmpfs without limit says 0 blocks.
    (ok && stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Removes the directories in `place` that are ours and whose recorders are gone. Jobs that still write to them are switched off.
pub(super) fn sweep(place: &Path) {
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
    for entry in entries.filter(|e| e.file_name().as_bytes().starts_with(PREFIX.as_bytes())) {
        let Ok(metadata) = std::fs::symlink_metadata(entry.path()) else {
            continue;
        };
        if !metadata.is_dir() || metadata.uid() != user() {
            continue;
        }
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(entry.path().join(control::FILE));
        let is_nobodys = match &control {
            Ok(control) => control.try_lock().is_ok(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => metadata
                .modified()
                .ok()
                .and_then(|then| SystemTime::now().duration_since(then).ok())
                .is_some_and(|age| age > ABANDONED),
            Err(_) => false,
        };
        if is_nobodys {
            if let Ok(control) = control {
                switch_off(&control);
            }
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warptrace_record::ring::control::Clock;

    fn start(place: &Path) -> Directory {
        let mut options = PreloadOptions::new("/nowhere.so");
        options.shared_memory = place.into();
        let clock = TickClock::start(Some(Clock::BootNanos));
        Directory::create(&options, 96, &clock).unwrap().0
    }

    #[test]
    fn a_directory_is_private_and_goes_with_its_recorder() {
        let place = tempfile::tempdir().unwrap();
        let directory = start(place.path());
        let path = directory.path().to_owned();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert_eq!(
            std::fs::metadata(path.join(control::FILE)).unwrap().len(),
            control::BYTES as u64
        );
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn a_sweep_takes_what_dead_recorders_left_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let alive = start(place.path());
        let dead = start(place.path());
        let dead_path = dead.path().to_owned();
        let control = OpenOptions::new()
            .read(true)
            .open(dead_path.join(control::FILE))
            .unwrap();
        dead.control.unlock().unwrap();
        std::mem::forget(dead);
        let young = place.path().join("warptrace-1-young");
        std::fs::create_dir(&young).unwrap();
        let foreign = place.path().join("somebody-elses");
        std::fs::create_dir(&foreign).unwrap();
        let file = place.path().join("warptrace-file");
        std::fs::write(&file, "").unwrap();
        sweep(place.path());
        assert!(!dead_path.exists());
        assert!(alive.path().exists() && young.exists() && foreign.exists() && file.exists());
        let mut generation = [1; 4];
        control
            .read_exact_at(&mut generation, offset_of!(Control, generation) as u64)
            .unwrap();
        assert_eq!(
            generation, [0; 4],
            "jobs that still have the page are switched off"
        );
    }

    #[test]
    fn a_capacity_that_is_no_power_of_two_is_refused_in_words() {
        let mut options = PreloadOptions::new("/nowhere.so");
        options.capacity = 1000;
        let clock = TickClock::start(Some(Clock::BootNanos));
        let error = Directory::create(&options, 96, &clock).unwrap_err();
        assert!(error.to_string().contains("1000 records"), "{error}");
    }
}
