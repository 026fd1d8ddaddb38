//! What a job does on the host besides calling CUDA: computing, sleeping, faulting pages in, being somewhere.
#![expect(
    unsafe_code,
    reason = "clocks, affinity and mappings have no safe binding in std"
)]

use std::{fs::File, io, os::fd::AsRawFd as _, time::Duration};

use crate::cuda::{Result, io_error};

/// Nanoseconds of CLOCK_BOOTTIME, the clock of all times in the summaries.
pub(crate) fn boot_ns() -> u64 {
    clock_ns(libc::CLOCK_BOOTTIME)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid place for the result; both clocks that are asked for exist on every Linux.
    unsafe { libc::clock_gettime(clock, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Computes until this thread has used `cpu` of CPU time: on a busy machine it takes longer, as real work does.
pub(crate) fn compute(cpu: Duration) {
    if cpu.is_zero() {
        return;
    }
    let end = clock_ns(libc::CLOCK_THREAD_CPUTIME_ID) + cpu.as_nanos() as u64;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    while clock_ns(libc::CLOCK_THREAD_CPUTIME_ID) < end {
        // About 2 µs between two looks at the clock, which is a system call.
        for _ in 0..1500 {
            state = next_random(state);
        }
        std::hint::black_box(state);
    }
}

/// One step of xorshift64 (Marsaglia, 2003); never 0 when begun otherwise.
pub(crate) fn next_random(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^ (state << 17)
}

/// Binds the calling thread to one CPU.
pub(crate) fn pin_to(cpu: usize) -> Result<()> {
    // SAFETY: a plain set of bits, of the size that is given; CPU_SET ignores numbers beyond it.
    let code = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if code != 0 {
        return Err(io_error("cannot bind to the CPU asked for")(
            io::Error::last_os_error(),
        ));
    }
    Ok(())
}

/// Drops a file's pages from the page cache; what is not written back yet stays.
pub(crate) fn drop_cache(file: &File) {
    // SAFETY: a descriptor and numbers.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Reads one byte of each page of the first `bytes` of a file through a fresh mapping, its cache dropped: one major fault a page.
pub(crate) fn fault_in(file: &File, bytes: usize) -> Result<()> {
    drop_cache(file);
    let length = (file
        .metadata()
        .map_err(io_error("cannot look at a data file"))?
        .len() as usize)
        .min(bytes);
    if length == 0 {
        return Ok(());
    }
    // SAFETY: a fresh read-only mapping of a file that this process made and never shortens, unmapped after its last use.
    unsafe {
        let address = libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        if address == libc::MAP_FAILED {
            return Err(io_error("cannot map a data file")(
                io::Error::last_os_error(),
            ));
        }
        libc::madvise(address, length, libc::MADV_RANDOM);
        for offset in (0..length).step_by(4096) {
            std::hint::black_box(address.cast::<u8>().add(offset).read_volatile());
        }
        libc::munmap(address, length);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computing_uses_cpu_time_and_not_just_time() {
        let before = clock_ns(libc::CLOCK_THREAD_CPUTIME_ID);
        compute(Duration::from_millis(5));
        let used = clock_ns(libc::CLOCK_THREAD_CPUTIME_ID) - before;
        assert!(used >= 5_000_000, "{used}");
    }
}
