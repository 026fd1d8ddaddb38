//! Which files hold traced entry points, and where in them.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use warptrace_record::op::{OPS, Slot};
use warptrace_record::{OpId, Source};

use crate::elf::{self, ElfError};

/// Why a library's calls are not traced.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("cannot open {path:?}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot find the functions of {path:?}")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: ElfError,
    },
    #[error("no traced function is exported by {path:?}")]
    NothingToTrace { path: PathBuf },
    #[error("the kernel refused probes in {path:?}")]
    Refused {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Whether a file of this name may hold CUDA's or NCCL's entry points: the libraries themselves, under the names that
/// wheels give them too (`libcudart-d0da41ae.so.11.0`), and PyTorch's, which may hold NCCL.
pub(crate) fn is_candidate(file_name: &str) -> bool {
    const STEMS: [&str; 4] = ["libcudart", "libcuda.so", "libnccl", "libtorch_cuda"];
    file_name.contains(".so") && STEMS.iter().any(|stem| file_name.starts_with(stem))
}

/// What makes two paths one file, and so one set of probes. Containers reach one lower file through overlays of their own,
/// which differ in device number: there the inode's number and what seldom agrees by chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum FileKey {
    /// A probed file keeps its inode, so that the number is not given again.
    Plain { device: u64, inode: u64 },
    Overlay {
        inode: u64,
        bytes: u64,
        modified: (i64, i64),
    },
}

/// An open library.
pub(super) struct Library {
    pub(super) path: PathBuf,
    file: File,
    pub(super) key: FileKey,
}

/// One probe: a place in a file, and what a call there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) offset: u64,
    pub(super) op: OpId,
}

impl Library {
    pub(super) fn open(path: &Path) -> Result<Library, AttachError> {
        let failed = |source| AttachError::Open {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let m = file.metadata().map_err(failed)?;
        if !m.is_file() {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        let key = if is_overlay(&file) {
            FileKey::Overlay {
                inode: m.ino(),
                bytes: m.size(),
                modified: (m.mtime(), m.mtime_nsec()),
            }
        } else {
            FileKey::Plain {
                device: m.dev(),
                inode: m.ino(),
            }
        };
        Ok(Library {
            path: path.to_owned(),
            file,
            key,
        })
    }

    /// The path by which the kernel finds exactly the file that was read.
    pub(super) fn kernel_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Probes for this file, in the order of their places: one a place, since names share code (`ncclX` is `pncclX`).
    pub(super) fn points(&self) -> Result<Vec<Point>, AttachError> {
        let functions =
            elf::exported_functions(&self.file).map_err(|source| AttachError::Unreadable {
                path: self.path.clone(),
                source,
            })?;
        let points = points(&functions);
        if points.is_empty() {
            return Err(AttachError::NothingToTrace {
                path: self.path.clone(),
            });
        }
        Ok(points)
    }
}

fn points(functions: &HashMap<String, u64>) -> Vec<Point> {
    let mut by_offset = BTreeMap::new();
    for op in (0..OPS.len()).filter_map(OpId::from_index) {
        for symbol in op.get().symbols {
            let offset = functions.get(*symbol).copied().or_else(|| {
                (op.get().source == Source::Nccl)
                    .then(|| newest_version(functions, symbol))
                    .flatten()
            });
            if let Some(offset) = offset {
                by_offset.entry(offset).or_insert(op);
            }
        }
    }
    by_offset
        .into_iter()
        .map(|(offset, op)| Point { offset, op })
        .collect()
}

/// `symbol_vA_B_C` with the greatest numbers: a library that holds NCCL may export only those.
fn newest_version(functions: &HashMap<String, u64>, symbol: &str) -> Option<u64> {
    functions
        .iter()
        .filter_map(|(name, offset)| {
            let version = name.strip_prefix(symbol)?.strip_prefix("_v")?;
            let numbers: Vec<u32> = version
                .split('_')
                .map(|n| n.parse().ok())
                .collect::<Option<_>>()?;
            Some((numbers, *offset))
        })
        .max()
        .map(|(_, offset)| offset)
}

/// The cookie of a probe: its row of the op table, then the slots of arg0, arg1 and stream, 16 bits each.
pub(super) fn cookie(op: OpId) -> u64 {
    let row = op.get();
    let here = |slot: Slot| match (slot, row.name) {
        // The unique id, 128 bytes by value, is in memory on x86-64; on aarch64 a register points to it.
        (Slot::Pair(2, 3), "ncclCommInitRank" | "ncclCommInitRankConfig")
            if cfg!(target_arch = "aarch64") =>
        {
            Slot::Pair(2, 4)
        }
        _ => slot,
    };
    op.index() as u64
        | u64::from(here(row.arg0).encode()) << 16
        | u64::from(here(row.arg1).encode()) << 32
        | u64::from(here(row.stream).encode()) << 48
}

#[expect(unsafe_code, reason = "std has no fstatfs")]
fn is_overlay(file: &File) -> bool {
    const OVERLAYFS_SUPER_MAGIC: i64 = 0x794c_7630;
    let mut about = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open as long as `file`, and `about` is large enough for what is written to it.
    let done = unsafe { libc::fstatfs(file.as_raw_fd(), about.as_mut_ptr()) };
    if done != 0 {
        return false;
    }
    // SAFETY: fstatfs returned 0, so it filled the structure.
    let kind = unsafe { about.assume_init() }.f_type;
    #[allow(
        clippy::unnecessary_cast,
        reason = "the field's type depends on the architecture"
    )]
    let kind = kind as i64;
    kind == OVERLAYFS_SUPER_MAGIC
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_wheels_and_systems_are_candidates_and_others_are_not() {
        for name in [
            "libcudart.so.12",
            "libcudart-d0da41ae.so.11.0",
            "libcuda.so.1",
            "libnccl.so.2",
            "libtorch_cuda.so",
        ] {
            assert!(is_candidate(name), "{name}");
        }
        for name in [
            "libcudnn.so.9",
            "libcuda.txt",
            "libc.so.6",
            "libcublas.so.12",
        ] {
            assert!(!is_candidate(name), "{name}");
        }
    }

    #[test]
    fn names_that_share_code_get_one_probe() {
        let functions = HashMap::from([
            ("cudaMalloc".to_owned(), 0x100),
            ("cuMemAlloc".to_owned(), 0x200),
            ("cuMemAlloc_v2".to_owned(), 0x200),
            ("ncclAllReduce_v2_10_3".to_owned(), 0x300),
            ("ncclAllReduce_v2_9_8".to_owned(), 0x400),
            ("unrelated".to_owned(), 0x500),
        ]);
        let got: Vec<_> = points(&functions)
            .iter()
            .map(|p| (p.offset, p.op.name()))
            .collect();
        assert_eq!(
            got,
            [
                (0x100, "cudaMalloc"),
                (0x200, "cuMemAlloc"),
                (0x300, "ncclAllReduce")
            ]
        );
    }

    #[test]
    fn a_cookie_holds_the_row_and_three_slots() {
        let op = OpId::by_name("cudaMemcpyAsync").unwrap();
        let c = cookie(op);
        assert_eq!(c & 0xffff, op.index() as u64);
        assert_eq!(c >> 16 & 0xffff, u64::from(Slot::P(3).encode()));
        assert_eq!(c >> 48, u64::from(Slot::P(5).encode()));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Library::open(Path::new("/nowhere/libcudart.so"))
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.to_string(), "cannot open \"/nowhere/libcudart.so\"");
    }
}
