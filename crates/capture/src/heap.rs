//! The C library's heap, as a recorder wants it that runs for months.
#![cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "std sets no limits of the heap")
)]

/// Has memory that was given back go back to the machine, and all threads share one heap.
///
/// glibc gives each thread a heap of its own, up to eight a core, and raises by itself the size from which a block is mapped, up to
/// 32 MiB, once such a block is given back (mallopt(3), `M_MMAP_THRESHOLD`): batches that go from thread to thread and segments that are
/// sealed then leave holes that nobody fills. At 100,000 calls a second a recorder kept 119 MB so, and 30 MB like this, at the same
/// CPU time (`bench/src/bin/soak.rs`). Of the whole process, and so for programs and not for libraries to call, before they start threads.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    {
        const MIB: i32 = 1 << 20;
        // SAFETY: it sets numbers in the C library, which checks them; there is one thread still, or the library's lock holds others off.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_TRIM_THRESHOLD, MIB);
        }
    }
}
