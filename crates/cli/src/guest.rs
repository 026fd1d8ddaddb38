//! The libraries that the binary carries, and where they are put so that other processes can load them.
//!
//! Each version has a folder of its own. One that was not used for a week is removed by whoever uses another one, unless
//! a warptrace that runs has it locked, or a process has a file of it mapped: a job may outlive its recorder.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};

struct Guest {
    name: &'static str,
    len: usize,
    packed: &'static [u8],
}

impl Guest {
    /// Cost: some ms for each MB.
    fn unpack(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.len);
        flate2::read::ZlibDecoder::new(self.packed).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// In each folder: locked by those who use it, and as old as its last use.
const IN_USE: &str = "in-use";

/// A folder that was not used for so long is not wanted any more.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The locks that this process holds, for as long as it runs.
static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());

static GUESTS: &[Guest] = include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// The folder with the carried libraries, written there when they are not yet. Its name holds a hash of them,
/// so that another version never finds ours.
///
/// # Errors
/// When no folder can be written from which a library can be loaded.
pub(crate) fn folder(data: &Path) -> anyhow::Result<PathBuf> {
    let name = format!("lib-{:016x}", fingerprint());
    let uid = nix::unistd::Uid::effective();
    let mut candidates = vec![data.to_owned()];
    candidates.extend(
        std::env::var_os("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("warptrace")),
    );
    candidates.push(std::env::temp_dir().join(format!("warptrace-{uid}")));
    let mut last = None;
    for base in candidates {
        // The dynamic linker's lists are separated by colons and spaces.
        if base
            .as_os_str()
            .as_bytes()
            .iter()
            .any(|b| matches!(b, b':' | b' ' | b';'))
        {
            continue;
        }
        match write_all(&base, &name) {
            Ok(folder) => {
                remove_unused(&base, OsStr::new(&name), SystemTime::now());
                return Ok(folder);
            }
            Err(e) => last = Some(e),
        }
    }
    match last {
        Some(e) => Err(e.context("cannot put our libraries where a job can load them")),
        None => bail!(
            "no folder without a colon or a space in its path for our libraries: set --data to one"
        ),
    }
}

/// Path of one carried library in [`folder`].
pub(crate) fn library(folder: &Path, name: &str) -> PathBuf {
    folder.join(name)
}

#[cfg(feature = "demo")]
/// simgpu's libraries, as candidates for probes.
pub(crate) fn simgpu_libraries(folder: &Path) -> Vec<PathBuf> {
    ["libcudart.so.12", "libcuda.so.1"]
        .iter()
        .map(|name| folder.join("simgpu").join(name))
        .collect()
}

#[cfg(feature = "demo")]
/// A library path with simgpu's in front.
pub(crate) fn simgpu_path(folder: &Path) -> std::ffi::OsString {
    let mut path = folder.join("simgpu").into_os_string();
    if let Some(more) = std::env::var_os("LD_LIBRARY_PATH").filter(|p| !p.is_empty()) {
        path.push(":");
        path.push(more);
    }
    path
}

fn write_all(base: &Path, name: &str) -> anyhow::Result<PathBuf> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(base)
        .with_context(|| format!("cannot make the folder {base:?}"))?;
    // Whoever could write there could put another library in the place of ours.
    let about = std::fs::metadata(base)?;
    let own = nix::unistd::Uid::effective();
    if about.uid() != own.as_raw() && !own.is_root() {
        bail!("{base:?} belongs to another user ({})", about.uid());
    }
    if about.mode() & 0o022 != 0 {
        bail!(
            "other users may write to {base:?}: chmod go-w it, or name another folder with --data"
        );
    }
    let mount =
        nix::sys::statvfs::statvfs(base).with_context(|| format!("cannot look at {base:?}"))?;
    if mount
        .flags()
        .contains(nix::sys::statvfs::FsFlags::ST_NOEXEC)
    {
        bail!("nothing can be loaded from {base:?}: it is mounted noexec");
    }
    let folder = base.join(name);
    std::fs::create_dir_all(folder.join("simgpu"))
        .with_context(|| format!("cannot make the folder {folder:?}"))?;
    if let Some((uid, gid)) = crate::launch::calling_user() {
        for dir in [base, &folder, &folder.join("simgpu")] {
            let _ = std::os::unix::fs::chown(dir, Some(uid.as_raw()), Some(gid.as_raw()));
        }
    }
    hold(&folder);
    for guest in GUESTS {
        // simgpu's have the names of real libraries: they live where no search path leads by accident.
        let path = if guest.name.contains("warptrace") {
            folder.join(guest.name)
        } else {
            folder.join("simgpu").join(guest.name)
        };
        let bytes = guest.unpack().context("our own libraries are damaged")?;
        if std::fs::read(&path).is_ok_and(|there| there == bytes) {
            continue;
        }
        let partial = path.with_extension(format!("part-{}", std::process::id()));
        let mut file =
            std::fs::File::create(&partial).with_context(|| format!("cannot write {partial:?}"))?;
        file.write_all(&bytes)
            .with_context(|| format!("cannot write {partial:?}"))?;
        file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
        drop(file);
        std::fs::rename(&partial, &path).with_context(|| format!("cannot write {path:?}"))?;
    }
    Ok(folder)
}

/// FNV-1a of all of them: to tell versions apart, not to trust them.
fn fingerprint() -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for guest in GUESTS {
        for chunk in guest.packed.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

/// Keeps a folder from being removed while this process runs, and says that it was used.
///
/// A file system without locks or room leaves it to its age and to who has its files mapped.
fn hold(folder: &Path) {
    let path = folder.join(IN_USE);
    for _ in 0..3 {
        let Ok(file) = open_lock(&path) else { return };
        if file.lock_shared().is_err() {
            return;
        }
        // Whoever removes a folder has its lock: this one may be that of a folder that is gone.
        let there = std::fs::metadata(&path).is_ok_and(|m| {
            file.metadata()
                .is_ok_and(|own| (own.dev(), own.ino()) == (m.dev(), m.ino()))
        });
        if there {
            let _ = file.set_modified(SystemTime::now());
            HELD.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(file);
            return;
        }
        let _ = std::fs::create_dir_all(folder.join("simgpu"));
    }
}

fn open_lock(path: &Path) -> std::io::Result<File> {
    let file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .mode(0o644)
        .open(path)?;
    if let Some((uid, gid)) = crate::launch::calling_user() {
        let _ = std::os::unix::fs::fchown(&file, Some(uid.as_raw()), Some(gid.as_raw()));
    }
    Ok(file)
}

/// Removes the folders of other versions in `base` that nobody used for a week, as of `now`, and that nobody uses.
///
/// What cannot be removed stays; nothing depends on it.
fn remove_unused(base: &Path, own: &OsStr, now: SystemTime) {
    let Ok(entries) = std::fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
        if is_dir && name != own && is_ours(&name) {
            remove_if_unused(&entry.path(), now);
        }
    }
}

/// `lib-` and 16 hex digits.
fn is_ours(name: &OsStr) -> bool {
    name.to_str()
        .and_then(|n| n.strip_prefix("lib-"))
        .is_some_and(|hash| {
            hash.len() == 16 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
}

fn remove_if_unused(folder: &Path, now: SystemTime) {
    let path = folder.join(IN_USE);
    // Versions before the lock left the folder's age alone.
    let used = std::fs::symlink_metadata(&path)
        .or_else(|_| std::fs::symlink_metadata(folder))
        .and_then(|m| m.modified());
    let unused = used.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age >= UNUSED));
    if !unused {
        return;
    }
    let Ok(lock) = open_lock(&path) else { return };
    if lock.try_lock().is_err() || is_mapped(folder) {
        return;
    }
    match std::fs::remove_dir_all(folder) {
        Ok(()) => tracing::info!(?folder, "removed the libraries of another version"),
        Err(error) => tracing::debug!(%error, ?folder, "cannot remove an old folder"),
    }
}

/// Whether a process that we may look into has a file of `folder` mapped, under whatever path it knows it.
fn is_mapped(folder: &Path) -> bool {
    let mut files = Vec::new();
    for dir in [folder.to_owned(), folder.join("simgpu")] {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if let Ok(about) = entry.metadata() {
                files.push((about.ino().to_string(), entry.file_name()));
            }
        }
    }
    let maps_one = |maps: &[u8]| {
        maps.split(|b| *b == b'\n').any(|line| {
            // address perms offset dev inode path
            let inode = line.split(|b| *b == b' ').nth(4).unwrap_or_default();
            let line = line.strip_suffix(b" (deleted)").unwrap_or(line);
            let name = line.rsplit(|b| *b == b'/').next().unwrap_or_default();
            files
                .iter()
                .any(|(i, n)| i.as_bytes() == inode && n.as_bytes() == name)
        })
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|p| p.file_name().as_bytes().iter().all(u8::is_ascii_digit))
        .any(|p| std::fs::read(p.path().join("maps")).is_ok_and(|maps| maps_one(&maps)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "lib-00000000000000aa";
    const OTHER: &str = "lib-0123456789abcdef";

    /// A folder of libraries that was last used now.
    fn made(base: &Path, name: &str) -> PathBuf {
        let folder = base.join(name);
        std::fs::create_dir_all(folder.join("simgpu")).unwrap();
        std::fs::write(folder.join("libwarptrace_preload.so"), "x").unwrap();
        std::fs::write(folder.join("simgpu/libcuda.so.1"), "x").unwrap();
        open_lock(&folder.join(IN_USE)).unwrap();
        folder
    }

    fn later(days: u64) -> SystemTime {
        SystemTime::now() + Duration::from_secs(days * 24 * 60 * 60 + 60)
    }

    #[test]
    fn what_nobody_used_for_a_week_is_removed_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path();
        let (own, other) = (made(base, OWN), made(base, OTHER));
        let kept: Vec<PathBuf> = [
            "sessions",
            "lib-mine",
            "lib-0123456789ABCDEF",
            "lib-0123456789abcde",
        ]
        .iter()
        .map(|name| made(base, name))
        .collect();
        let elsewhere = tempfile::tempdir().unwrap();
        let target = made(elsewhere.path(), OTHER);
        let link = base.join("lib-fedcba9876543210");
        std::os::unix::fs::symlink(&target, &link).unwrap();

        remove_unused(base, OsStr::new(OWN), later(6));
        assert!(other.is_dir(), "it was used six days ago");
        remove_unused(base, OsStr::new(OWN), later(7));
        assert!(!other.exists() && own.is_dir());
        for folder in kept {
            assert!(folder.is_dir(), "{folder:?} is none of ours");
        }
        assert!(target.join("simgpu/libcuda.so.1").exists() && link.exists());
        remove_unused(&base.join("nowhere"), OsStr::new(OWN), later(7));
    }

    #[test]
    fn a_folder_of_a_version_that_knew_no_lock_goes_by_its_own_age() {
        let base = tempfile::tempdir().unwrap();
        let other = made(base.path(), OTHER);
        std::fs::remove_file(other.join(IN_USE)).unwrap();
        remove_unused(base.path(), OsStr::new(OWN), later(6));
        assert!(other.is_dir());
        remove_unused(base.path(), OsStr::new(OWN), later(8));
        assert!(!other.exists());
    }

    #[test]
    fn a_folder_that_somebody_holds_stays() {
        let base = tempfile::tempdir().unwrap();
        let other = made(base.path(), OTHER);
        let held = File::open(other.join(IN_USE)).unwrap();
        held.lock_shared().unwrap();
        remove_unused(base.path(), OsStr::new(OWN), later(30));
        assert!(other.is_dir());
        drop(held);
        remove_unused(base.path(), OsStr::new(OWN), later(30));
        assert!(!other.exists());
    }

    #[test]
    fn holding_a_folder_makes_it_used_and_locks_it() {
        let base = tempfile::tempdir().unwrap();
        let other = made(base.path(), OTHER);
        let lock = File::open(other.join(IN_USE)).unwrap();
        lock.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        hold(&other);
        assert!(lock.metadata().unwrap().modified().unwrap() > SystemTime::UNIX_EPOCH);
        assert!(lock.try_lock().is_err());
        remove_unused(base.path(), OsStr::new(OWN), later(30));
        assert!(other.is_dir());
    }

    #[test]
    fn a_folder_whose_file_a_process_has_mapped_stays_until_it_ends() {
        let base = tempfile::tempdir().unwrap();
        let other = made(base.path(), OTHER);
        // A program maps itself.
        let program = other.join("simgpu/libcuda.so.1");
        std::fs::remove_file(&program).unwrap();
        std::fs::copy("/bin/cat", &program).unwrap();
        let mut process = std::process::Command::new(&program)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        remove_unused(base.path(), OsStr::new(OWN), later(30));
        assert!(other.is_dir());
        process.kill().unwrap();
        process.wait().unwrap();
        remove_unused(base.path(), OsStr::new(OWN), later(30));
        assert!(!other.exists());
    }
}
