//! The system calls that are made, without libc: errno stays what it was.

use core::ffi::{CStr, c_int};

use crate::arch::{self, nr, syscall};

const AT_FDCWD: usize = -100isize as usize;
const O_RDWR: usize = 2;
const O_CREAT: usize = 0o100;
const O_EXCL: usize = 0o200;
const O_CLOEXEC: usize = 0o2000000;
#[cfg(target_arch = "x86_64")]
const O_NOFOLLOW: usize = 0o400000;
#[cfg(target_arch = "aarch64")]
const O_NOFOLLOW: usize = 0o100000;
pub(crate) const PROT_WRITE: usize = 2;
const PROT_READ_WRITE: usize = 3;
const MAP_SHARED: usize = 1;
const MAP_PRIVATE_ANONYMOUS: usize = 0x22;
const MAP_POPULATE: usize = 0x8000;
const MADV_DONTFORK: usize = 10;
const MADV_WIPEONFORK: usize = 18;
const F_DUPFD_CLOEXEC: usize = 1030;
const RLIMIT_FSIZE: usize = 1;
const RUSAGE_THREAD: usize = 1;
const CLOCK_THREAD_CPUTIME_ID: usize = 3;
const CLOCK_BOOTTIME: usize = 7;
const PR_GET_NAME: usize = 16;
pub(crate) const ENOSPC: isize = -28;
const ESRCH: isize = -3;

/// A negative errno.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) isize);

fn result(ret: isize) -> Result<usize, Errno> {
    if (-4095..0).contains(&ret) {
        Err(Errno(ret))
    } else {
        Ok(ret as usize)
    }
}

/// A descriptor that is closed with its owner. The job may close it behind our back; see `stretch`.
pub(crate) struct Fd(c_int);

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: closes a descriptor.
        unsafe { syscall(nr::CLOSE, [self.0 as usize, 0, 0, 0, 0, 0]) };
    }
}

/// Device and inode of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId(u64, pub(crate) u64);

impl Fd {
    fn open(path: &CStr, flags: usize, mode: usize) -> Result<Fd, Errno> {
        let a = [
            AT_FDCWD,
            path.as_ptr() as usize,
            flags | O_CLOEXEC,
            mode,
            0,
            0,
        ];
        // SAFETY: `path` is a string.
        result(unsafe { syscall(nr::OPENAT, a) }).map(|fd| Fd(fd as c_int))
    }

    pub(crate) fn read_only(path: &CStr) -> Result<Fd, Errno> {
        Fd::open(path, 0, 0)
    }

    /// An existing file, not through a symbolic link.
    pub(crate) fn read_write(path: &CStr) -> Result<Fd, Errno> {
        Fd::open(path, O_RDWR | O_NOFOLLOW, 0)
    }

    /// A file that did not exist, for its owner alone.
    pub(crate) fn create(path: &CStr) -> Result<Fd, Errno> {
        Fd::open(path, O_RDWR | O_CREAT | O_EXCL, 0o600)
    }

    /// Takes `len` bytes from the file system now, so that touching them later cannot fail.
    pub(crate) fn allocate(&self, len: usize) -> Result<(), Errno> {
        // SAFETY: no pointers.
        result(unsafe { syscall(nr::FALLOCATE, [self.0 as usize, 0, 0, len, 0, 0]) }).map(drop)
    }

    /// Maps the first `len` bytes, shared.
    pub(crate) fn map(&self, len: usize, populate: bool) -> Result<usize, Errno> {
        let flags = MAP_SHARED | if populate { MAP_POPULATE } else { 0 };
        // SAFETY: the kernel chooses the place, so nothing that exists is replaced.
        result(unsafe {
            syscall(
                nr::MMAP,
                [0, len, PROT_READ_WRITE, flags, self.0 as usize, 0],
            )
        })
    }

    fn stat(&self) -> Option<[u64; 32]> {
        let mut stat = [0u64; 32];
        let a = [self.0 as usize, stat.as_mut_ptr() as usize, 0, 0, 0, 0];
        // SAFETY: 256 bytes are more than any `struct stat`.
        result(unsafe { syscall(nr::FSTAT, a) }).ok().map(|_| stat)
    }

    pub(crate) fn size(&self) -> Option<u64> {
        self.stat().map(|stat| stat[arch::STAT_SIZE])
    }

    pub(crate) fn id(&self) -> Option<FileId> {
        self.stat()
            .map(|stat| FileId(stat[0], stat[arch::STAT_INODE]))
    }

    /// Fills `out` from the begin of the file; how many bytes there were.
    #[inline]
    pub(crate) fn read_start(&self, out: &mut [u8]) -> Result<usize, Errno> {
        let a = [
            self.0 as usize,
            out.as_mut_ptr() as usize,
            out.len(),
            0,
            0,
            0,
        ];
        // SAFETY: `out` is writable for its length.
        result(unsafe { syscall(nr::PREAD64, a) })
    }

    /// The same file under a number that the job is less likely to take for its own, where limits allow one.
    pub(crate) fn out_of_the_way(self) -> Fd {
        const HIGH: usize = 512;
        let a = [self.0 as usize, F_DUPFD_CLOEXEC, HIGH, 0, 0, 0];
        // SAFETY: no pointers.
        match result(unsafe { syscall(nr::FCNTL, a) }) {
            Ok(fd) => Fd(fd as c_int),
            Err(_) => self,
        }
    }

    /// Lets go without closing: the number is the job's now.
    pub(crate) fn forget(self) {
        core::mem::forget(self);
    }
}

/// Fills `out` with a whole small file; how many bytes there were, 0 when it cannot be read.
pub(crate) fn read_file(path: &CStr, out: &mut [u8]) -> usize {
    let Ok(fd) = Fd::read_only(path) else {
        return 0;
    };
    let mut len = 0;
    while len < out.len() {
        let rest = &mut out[len..];
        let a = [
            fd.0 as usize,
            rest.as_mut_ptr() as usize,
            rest.len(),
            0,
            0,
            0,
        ];
        // SAFETY: `rest` is writable for its length.
        match result(unsafe { syscall(nr::READ, a) }) {
            Ok(n) if n > 0 => len += n,
            _ => break,
        }
    }
    len
}

pub(crate) fn unlink(path: &CStr) {
    // SAFETY: `path` is a string.
    unsafe { syscall(nr::UNLINKAT, [AT_FDCWD, path.as_ptr() as usize, 0, 0, 0, 0]) };
}

/// Inode of what `path` leads to.
pub(crate) fn inode(path: &CStr) -> Option<u64> {
    let mut stat = [0u64; 32];
    let a = [
        AT_FDCWD,
        path.as_ptr() as usize,
        stat.as_mut_ptr() as usize,
        0,
        0,
        0,
    ];
    // SAFETY: `path` is a string, 256 bytes are more than any `struct stat`.
    result(unsafe { syscall(nr::NEWFSTATAT, a) })
        .ok()
        .map(|_| stat[arch::STAT_INODE])
}

/// Zeroed private memory.
pub(crate) fn map_private(len: usize) -> Result<usize, Errno> {
    let a = [
        0,
        len,
        PROT_READ_WRITE,
        MAP_PRIVATE_ANONYMOUS,
        usize::MAX,
        0,
    ];
    // SAFETY: the kernel chooses the place, so nothing that exists is replaced.
    result(unsafe { syscall(nr::MMAP, a) })
}

/// # Safety
/// Nothing points into the mapping any more.
pub(crate) unsafe fn unmap(at: usize, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { syscall(nr::MUNMAP, [at, len, 0, 0, 0, 0]) };
}

/// A forked child does not have the mapping.
pub(crate) fn keep_from_children(at: usize, len: usize) -> Result<(), Errno> {
    // SAFETY: changes what a child inherits, nothing here.
    result(unsafe { syscall(nr::MADVISE, [at, len, MADV_DONTFORK, 0, 0, 0]) }).map(drop)
}

/// A forked child finds the mapping zeroed. Needs Linux 4.14.
pub(crate) fn zero_in_children(at: usize, len: usize) -> Result<(), Errno> {
    // SAFETY: as above.
    result(unsafe { syscall(nr::MADVISE, [at, len, MADV_WIPEONFORK, 0, 0, 0]) }).map(drop)
}

/// Gives the pages from that of `from` to that of the byte before `to` the protection; whether it could be done.
pub(crate) fn protect(from: usize, to: usize, protection: usize) -> bool {
    // The page size is not known here: one of these fits.
    [4096, 65536].iter().any(|page| {
        let begin = from & !(page - 1);
        // SAFETY: callers widen the protection of pages that they are about to write, or put it back.
        result(unsafe { syscall(nr::MPROTECT, [begin, to - begin, protection, 0, 0, 0]) }).is_ok()
    })
}

/// There is memory at `at`, the begin of a page.
pub(crate) fn is_mapped(at: usize) -> bool {
    let mut resident = [0u8; 16];
    // SAFETY: one byte a page is written.
    result(unsafe {
        syscall(
            nr::MINCORE,
            [at, 4096, resident.as_mut_ptr() as usize, 0, 0, 0],
        )
    })
    .is_ok()
}

pub(crate) fn pid() -> u32 {
    // SAFETY: no arguments.
    unsafe { syscall(nr::GETPID, [0; 6]) as u32 }
}

pub(crate) fn tid() -> u32 {
    // SAFETY: no arguments.
    unsafe { syscall(nr::GETTID, [0; 6]) as u32 }
}

/// Lets another thread run.
pub(crate) fn give_way() {
    // SAFETY: no arguments.
    unsafe { syscall(nr::SCHED_YIELD, [0; 6]) };
}

/// The thread of this process is gone.
pub(crate) fn is_gone(pid: u32, tid: u32) -> bool {
    // SAFETY: signal 0 is not sent.
    unsafe { syscall(nr::TGKILL, [pid as usize, tid as usize, 0, 0, 0, 0]) == ESRCH }
}

pub(crate) fn thread_name() -> [u8; 16] {
    let mut name = [0; 16];
    // SAFETY: the kernel writes at most 16 bytes.
    unsafe {
        syscall(
            nr::PRCTL,
            [PR_GET_NAME, name.as_mut_ptr() as usize, 0, 0, 0, 0],
        )
    };
    name
}

/// A file of `len` bytes may be made: beyond the limit, trying is a deadly signal.
pub(crate) fn may_write(len: usize) -> bool {
    let mut limit = [0u64; 2];
    let a = [0, RLIMIT_FSIZE, 0, limit.as_mut_ptr() as usize, 0, 0];
    // SAFETY: `limit` is a `struct rlimit64`.
    result(unsafe { syscall(nr::PRLIMIT64, a) }).is_ok() && len as u64 <= limit[0]
}

fn clock(id: usize) -> u64 {
    let mut time = [0u64; 2];
    // SAFETY: `time` is a `struct timespec`.
    unsafe {
        syscall(
            nr::CLOCK_GETTIME,
            [id, time.as_mut_ptr() as usize, 0, 0, 0, 0],
        )
    };
    time[0] * 1_000_000_000 + time[1]
}

/// CPU time of this thread, ns. Exact to now, unlike the scheduler's statistics.
#[inline]
pub(crate) fn thread_cpu_nanos() -> u64 {
    clock(CLOCK_THREAD_CPUTIME_ID)
}

/// A C function of the kernel's: `clock_gettime`.
type ClockGettime = unsafe extern "C" fn(usize, *mut u64) -> c_int;

/// CLOCK_BOOTTIME, ns; by `vdso` without entering the kernel, where it is not 0.
#[inline]
pub(crate) fn boot_nanos(vdso: usize) -> u64 {
    if vdso == 0 {
        return clock(CLOCK_BOOTTIME);
    }
    let mut time = [0u64; 2];
    // SAFETY: the kernel's own function, found in the object that it maps into every process.
    unsafe {
        core::mem::transmute::<usize, ClockGettime>(vdso)(CLOCK_BOOTTIME, time.as_mut_ptr());
    }
    time[0] * 1_000_000_000 + time[1]
}

/// (minor, major) faults of this thread.
#[inline]
pub(crate) fn faults() -> (u64, u64) {
    let mut usage = [0u64; 18];
    // SAFETY: 144 bytes are a `struct rusage`.
    unsafe {
        syscall(
            nr::GETRUSAGE,
            [RUSAGE_THREAD, usage.as_mut_ptr() as usize, 0, 0, 0, 0],
        )
    };
    // Two times of two words, maxrss, ixrss, idrss, isrss, then the faults.
    (usage[8], usage[9])
}
