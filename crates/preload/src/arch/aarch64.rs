//! aarch64: system calls, the thread's word, the virtual counter, and the memory functions that the compiler calls.

use core::arch::{asm, global_asm};

/// Integer arguments in registers.
pub(crate) const REGISTERS: usize = 8;

pub(crate) mod nr {
    pub(crate) const FCNTL: usize = 25;
    pub(crate) const UNLINKAT: usize = 35;
    pub(crate) const FALLOCATE: usize = 47;
    pub(crate) const OPENAT: usize = 56;
    pub(crate) const CLOSE: usize = 57;
    pub(crate) const READ: usize = 63;
    pub(crate) const PREAD64: usize = 67;
    pub(crate) const NEWFSTATAT: usize = 79;
    pub(crate) const FSTAT: usize = 80;
    pub(crate) const CLOCK_GETTIME: usize = 113;
    pub(crate) const TGKILL: usize = 131;
    pub(crate) const GETRUSAGE: usize = 165;
    pub(crate) const PRCTL: usize = 167;
    pub(crate) const GETPID: usize = 172;
    pub(crate) const GETTID: usize = 178;
    pub(crate) const MUNMAP: usize = 215;
    pub(crate) const MMAP: usize = 222;
    pub(crate) const MPROTECT: usize = 226;
    pub(crate) const MINCORE: usize = 232;
    pub(crate) const SCHED_YIELD: usize = 124;
    pub(crate) const MADVISE: usize = 233;
    pub(crate) const PRLIMIT64: usize = 261;
}

/// `struct stat`: index of the inode in 8-byte words (`st_dev` is at 0).
pub(crate) const STAT_INODE: usize = 1;
/// Index of `st_size` in 8-byte words.
pub(crate) const STAT_SIZE: usize = 6;
pub(crate) const VDSO_CLOCK: &core::ffi::CStr = c"__kernel_clock_gettime";

/// # Safety
/// That of the system call.
#[inline]
pub(crate) unsafe fn syscall(n: usize, a: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: the kernel keeps every register but x0; the rest is the caller's promise.
    unsafe {
        asm!("svc #0", in("x8") n, inlateout("x0") a[0] => ret, in("x1") a[1], in("x2") a[2], in("x3") a[3],
            in("x4") a[4], in("x5") a[5], options(nostack));
    }
    ret
}

/// This thread's word, null at its birth.
#[inline]
pub(crate) fn thread_word() -> usize {
    let word;
    // SAFETY: reads an 8-byte variable in the static thread-local block, which every thread has.
    unsafe {
        asm!("adrp {0}, :gottprel:warptrace_thread", "ldr {0}, [{0}, :gottprel_lo12:warptrace_thread]",
            "mrs {1}, tpidr_el0", "ldr {0}, [{1}, {0}]", out(reg) word, out(reg) _,
            options(nostack, preserves_flags, readonly));
    }
    word
}

pub(crate) fn set_thread_word(word: usize) {
    // SAFETY: writes that variable.
    unsafe {
        asm!("adrp {0}, :gottprel:warptrace_thread", "ldr {0}, [{0}, :gottprel_lo12:warptrace_thread]",
            "mrs {1}, tpidr_el0", "str {2}, [{1}, {0}]", out(reg) _, out(reg) _, in(reg) word,
            options(nostack, preserves_flags));
    }
}

/// The virtual counter.
#[inline]
pub(crate) fn ticks() -> u64 {
    let ticks;
    // SAFETY: reads a counter.
    unsafe { asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nostack, nomem, preserves_flags)) };
    ticks
}

// The thread's word: initial-exec, so that reading it is three loads and never allocates.
global_asm!(
    ".pushsection .tbss, \"awT\", %nobits",
    ".p2align 3",
    ".globl warptrace_thread",
    ".hidden warptrace_thread",
    ".type warptrace_thread, %object",
    ".size warptrace_thread, 8",
    "warptrace_thread: .zero 8",
    ".popsection",
);

// The library needs no other library, so what the compiler calls must be inside it; hidden, so that the job's own is not replaced.
#[cfg(panic = "abort")]
global_asm!(
    ".pushsection .text.warptrace_memory, \"ax\", %progbits",
    ".globl memcpy",
    ".hidden memcpy",
    "memcpy: mov x3, x0",
    "1: cbz x2, 2f",
    "ldrb w4, [x1], #1",
    "strb w4, [x3], #1",
    "sub x2, x2, #1",
    "b 1b",
    "2: ret",
    ".globl memmove",
    ".hidden memmove",
    "memmove: sub x3, x0, x1",
    "cmp x3, x2",
    "b.hs memcpy",
    "3: cbz x2, 4f",
    "sub x2, x2, #1",
    "ldrb w4, [x1, x2]",
    "strb w4, [x0, x2]",
    "b 3b",
    "4: ret",
    ".globl memset",
    ".hidden memset",
    "memset: mov x3, x0",
    "5: cbz x2, 6f",
    "strb w1, [x3], #1",
    "sub x2, x2, #1",
    "b 5b",
    "6: ret",
    ".globl memcmp",
    ".hidden memcmp",
    ".globl bcmp",
    ".hidden bcmp",
    "memcmp:",
    "bcmp: mov x3, x0",
    "mov w0, wzr",
    "7: cbz x2, 8f",
    "ldrb w4, [x3], #1",
    "ldrb w5, [x1], #1",
    "sub x2, x2, #1",
    "subs w0, w4, w5",
    "b.eq 7b",
    "8: ret",
    ".globl strlen",
    ".hidden strlen",
    "strlen: mov x3, x0",
    "mov x0, xzr",
    "9: ldrb w4, [x3, x0]",
    "cbz w4, 10f",
    "add x0, x0, #1",
    "b 9b",
    "10: ret",
    ".popsection",
);
