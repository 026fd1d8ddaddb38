//! Libraries as processes map them: `PERF_RECORD_MMAP2` of every CPU.
//!
//! A probe can only be placed in a file that is known. The kernel tells of every executable mapping on the machine, so a
//! library that is loaded after we started is found in milliseconds, wherever it lies, without looking through `/proc`
//! again. Needs CAP_PERFMON. It does not know which libraries matter.
//!
//! Layout: `struct perf_event_attr`, `perf_event_mmap_page` and the comment on `PERF_RECORD_MMAP2` in
//! `include/uapi/linux/perf_event.h`, Linux 6.6.
#![expect(unsafe_code, reason = "std knows neither perf_event_open nor mmap")]

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_COUNT_SW_DUMMY: u64 = 9;
const ATTR_MMAP: u64 = 1 << 8;
const ATTR_MMAP2: u64 = 1 << 23;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
const PERF_RECORD_LOST: u32 = 2;
const PERF_RECORD_MMAP2: u32 = 10;

/// `data_head` and `data_tail` of the first page.
const HEAD_AT: usize = 1024;
const TAIL_AT: usize = 1032;

/// Pages of data a CPU; a power of two. A mapping takes some 128 bytes: 500 between two looks.
const DATA_PAGES: usize = 16;

/// `struct perf_event_attr` up to PERF_ATTR_SIZE_VER5.
#[repr(C)]
#[derive(Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clockid: i32,
    sample_regs_intr: u64,
    aux_watermark: u32,
    sample_max_stack: u16,
    reserved: u16,
}

/// What was mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Mapped {
        pid: u32,
        /// As the process names it.
        path: PathBuf,
    },
    /// Some were lost: only `/proc` knows them now.
    Lost,
}

/// The rings of all CPUs that were online at the start.
pub(super) struct Mappings {
    rings: Vec<Ring>,
}

struct Ring {
    _event: OwnedFd,
    base: NonNull<u8>,
    page: usize,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread; the kernel is the other side of it, and
// speaks through the two atomics.
unsafe impl Send for Ring {}

impl Mappings {
    /// Begins to listen.
    ///
    /// # Errors
    /// What `perf_event_open` or `mmap` said, for the first CPU that failed; nothing stays open.
    pub(super) fn open() -> io::Result<Mappings> {
        let cpus = online_cpus(&std::fs::read_to_string("/sys/devices/system/cpu/online")?);
        let rings = cpus
            .into_iter()
            .map(Ring::open)
            .collect::<io::Result<_>>()?;
        Ok(Mappings { rings })
    }

    /// Adds what was mapped since the last call to `out`, if `wanted` likes its file name.
    pub(super) fn poll(&mut self, wanted: impl Fn(&str) -> bool, out: &mut Vec<Seen>) {
        for ring in &mut self.rings {
            ring.drain(|record| {
                let seen = decode(record, &wanted);
                out.extend(seen);
            });
        }
    }
}

impl Ring {
    fn open(cpu: i32) -> io::Result<Ring> {
        let attr = Attr {
            kind: PERF_TYPE_SOFTWARE,
            size: size_of::<Attr>() as u32,
            config: PERF_COUNT_SW_DUMMY,
            flags: ATTR_MMAP | ATTR_MMAP2,
            ..Attr::default()
        };
        let (any_process, no_group) = (-1, -1);
        // SAFETY: `attr` is a perf_event_attr of the size that it says, which the kernel only reads.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attr,
                any_process,
                cpu,
                no_group,
                PERF_FLAG_FD_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call returned a new descriptor that nobody else owns.
        let event = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // SAFETY: sysconf has no preconditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        // SAFETY: a new mapping at an address of the kernel's choice; its length is what perf asks for, one page and a
        // power of two of data pages.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                page * (1 + DATA_PAGES),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                event.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Ring {
            _event: event,
            base,
            page,
        })
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: `at` is one of two aligned offsets within the first page, which stays mapped as long as `self`; the
        // kernel reads and writes them as whole words, as an atomic does.
        unsafe { &*self.base.as_ptr().add(at).cast::<AtomicU64>() }
    }

    fn drain(&mut self, mut each: impl FnMut(&[u8])) {
        let size = self.page * DATA_PAGES;
        let head = self.word(HEAD_AT).load(Ordering::Acquire);
        let mut tail = self.word(TAIL_AT).load(Ordering::Relaxed);
        let mut record = Vec::new();
        while tail < head {
            let header = self.copy(tail, 8, size);
            let bytes = usize::from(u16::from_le_bytes([header[6], header[7]]));
            // The kernel never writes less than a header; a wrong size must not loop for ever.
            if bytes < 8 {
                tail = head;
                break;
            }
            record.clear();
            record.extend_from_slice(&self.copy(tail, bytes, size));
            each(&record);
            tail += bytes as u64;
        }
        self.word(TAIL_AT).store(tail, Ordering::Release);
    }

    /// `count` bytes of the data from position `at`, around its end.
    fn copy(&self, at: u64, count: usize, size: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(count);
        for i in 0..count {
            let place = self.page + (at as usize + i) % size;
            // SAFETY: `place` is below the mapping's length. The kernel does not write between tail and head, where
            // these bytes are.
            out.push(unsafe { self.base.as_ptr().add(place).read_volatile() });
        }
        out
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `open`; no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.page * (1 + DATA_PAGES)) };
    }
}

/// A record of perf: header (type u32, misc u16, size u16), then for a mapping pid, tid u32; address, length, offset u64;
/// major, minor u32; inode, generation u64; protection, flags u32; the name, ended by a zero.
fn decode(record: &[u8], wanted: impl Fn(&str) -> bool) -> Option<Seen> {
    let word = |at: usize| {
        let bytes = record.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    };
    match word(0)? {
        PERF_RECORD_LOST => Some(Seen::Lost),
        PERF_RECORD_MMAP2 => {
            let name = record.get(72..)?.split(|b| *b == 0).next()?;
            let path = Path::new(OsStr::from_bytes(name));
            let file_name = path.file_name()?.to_str()?;
            (path.is_absolute() && wanted(file_name)).then(|| Seen::Mapped {
                pid: word(8).unwrap_or(0),
                path: path.to_owned(),
            })
        }
        _ => None,
    }
}

/// `0-3,8` as numbers; what is no number is left out.
fn online_cpus(text: &str) -> Vec<i32> {
    text.trim()
        .split(',')
        .filter_map(|range| {
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            Some(from.parse::<i32>().ok()?..=to.parse().ok()?)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(pid: u32, path: &str) -> Vec<u8> {
        let mut record = vec![0; 72];
        record[0] = PERF_RECORD_MMAP2 as u8;
        record[8..12].copy_from_slice(&pid.to_le_bytes());
        record.extend_from_slice(path.as_bytes());
        record.push(0);
        record
    }

    #[test]
    fn a_mapping_is_told_by_its_file_name() {
        let cuda = |n: &str| n.starts_with("libcuda");
        assert_eq!(
            decode(&mapping(7, "/a b/libcuda.so.1"), cuda),
            Some(Seen::Mapped {
                pid: 7,
                path: "/a b/libcuda.so.1".into()
            })
        );
        assert_eq!(decode(&mapping(7, "/libcuda/x"), cuda), None);
        assert_eq!(
            decode(&mapping(7, "//anon"), |_| true),
            Some(Seen::Mapped {
                pid: 7,
                path: "//anon".into()
            })
        );
        assert_eq!(decode(&mapping(7, "[vdso]"), |_| true), None);
        assert_eq!(decode(&[2, 0, 0, 0], cuda), Some(Seen::Lost));
        for cut in 0..72 {
            assert_eq!(
                decode(&mapping(7, "/libcuda.so")[..cut], cuda),
                None,
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn lists_of_cpus_are_ranges_and_numbers() {
        assert_eq!(online_cpus("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(online_cpus("0"), [0]);
        assert!(online_cpus("").is_empty());
    }
}
