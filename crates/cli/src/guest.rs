//! The libraries that the binary carries, and where they are put so that other processes can load them.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

struct Guest {
    name: &'static str,
    bytes: &'static [u8],
}

static GUESTS: &[Guest] = include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// The folder with the carried libraries, written there when they are not yet. Its name holds a hash of their bytes,
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
            Ok(folder) => return Ok(folder),
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

/// simgpu's libraries, as candidates for probes.
pub(crate) fn simgpu_libraries(folder: &Path) -> Vec<PathBuf> {
    ["libcudart.so.12", "libcuda.so.1"]
        .iter()
        .map(|name| folder.join("simgpu").join(name))
        .collect()
}

/// A library path with simgpu's in front.
pub(crate) fn simgpu_path(folder: &Path) -> OsString {
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
    for guest in GUESTS {
        // simgpu's have the names of real libraries: they live where no search path leads by accident.
        let path = if guest.name.contains("warptrace") {
            folder.join(guest.name)
        } else {
            folder.join("simgpu").join(guest.name)
        };
        if std::fs::read(&path).is_ok_and(|there| there == guest.bytes) {
            continue;
        }
        let partial = path.with_extension(format!("part-{}", std::process::id()));
        let mut file =
            std::fs::File::create(&partial).with_context(|| format!("cannot write {partial:?}"))?;
        file.write_all(guest.bytes)
            .with_context(|| format!("cannot write {partial:?}"))?;
        file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
        drop(file);
        std::fs::rename(&partial, &path).with_context(|| format!("cannot write {path:?}"))?;
    }
    Ok(folder)
}

/// FNV-1a of all bytes: to tell versions apart, not to trust them.
fn fingerprint() -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for guest in GUESTS {
        for chunk in guest.bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}
