//! x86-64: system calls, the thread's word, the time stamp counter, and the memory functions that the compiler calls.

use core::arch::{asm, global_asm};

/// Integer arguments in registers.
pub(crate) const REGISTERS: usize = 6;

pub(crate) mod nr {
    pub(crate) const CLOSE: usize = 3;
    pub(crate) const MMAP: usize = 9;
    pub(crate) const MUNMAP: usize = 11;
    pub(crate) const MPROTECT: usize = 10;
    pub(crate) const MINCORE: usize = 27;
    pub(crate) const SCHED_YIELD: usize = 24;
    pub(crate) const READ: usize = 0;
    pub(crate) const FSTAT: usize = 5;
    pub(crate) const PREAD64: usize = 17;
    pub(crate) const MADVISE: usize = 28;
    pub(crate) const GETPID: usize = 39;
    pub(crate) const FCNTL: usize = 72;
    pub(crate) const GETRUSAGE: usize = 98;
    pub(crate) const PRCTL: usize = 157;
    pub(crate) const GETTID: usize = 186;
    pub(crate) const CLOCK_GETTIME: usize = 228;
    pub(crate) const TGKILL: usize = 234;
    pub(crate) const OPENAT: usize = 257;
    pub(crate) const NEWFSTATAT: usize = 262;
    pub(crate) const UNLINKAT: usize = 263;
    pub(crate) const FALLOCATE: usize = 285;
    pub(crate) const PRLIMIT64: usize = 302;
}

/// `struct stat`: offset of the inode (`st_dev` is at 0), and its size.
pub(crate) const STAT_INODE: usize = 1;
/// Index of `st_size` in 8-byte words.
pub(crate) const STAT_SIZE: usize = 6;
pub(crate) const VDSO_CLOCK: &core::ffi::CStr = c"__vdso_clock_gettime";

/// # Safety
/// That of the system call.
#[inline]
pub(crate) unsafe fn syscall(n: usize, a: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: the kernel keeps every register but rax, rcx and r11; the rest is the caller's promise.
    unsafe {
        asm!("syscall", inlateout("rax") n as isize => ret, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    ret
}

/// This thread's word, null at its birth.
#[inline]
pub(crate) fn thread_word() -> usize {
    let word;
    // SAFETY: reads an 8-byte variable in the static thread-local block, which every thread has.
    unsafe {
        asm!("mov {0}, qword ptr [rip + warptrace_thread@GOTTPOFF]", "mov {0}, qword ptr fs:[{0}]",
            out(reg) word, options(nostack, preserves_flags, readonly));
    }
    word
}

pub(crate) fn set_thread_word(word: usize) {
    // SAFETY: writes that variable.
    unsafe {
        asm!("mov {0}, qword ptr [rip + warptrace_thread@GOTTPOFF]", "mov qword ptr fs:[{0}], {1}",
            out(reg) _, in(reg) word, options(nostack, preserves_flags));
    }
}

/// The time stamp counter.
#[inline]
pub(crate) fn ticks() -> u64 {
    // SAFETY: reads a counter; the recorder chooses it only where user programs may read it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

// The thread's word: initial-exec, so that reading it is two loads and never allocates.
global_asm!(
    ".pushsection .tbss, \"awT\", @nobits",
    ".p2align 3",
    ".globl warptrace_thread",
    ".hidden warptrace_thread",
    ".type warptrace_thread, @object",
    ".size warptrace_thread, 8",
    "warptrace_thread: .zero 8",
    ".popsection",
);

// The library needs no other library, so what the compiler calls must be inside it; hidden, so that the job's own is not replaced.
#[cfg(panic = "abort")]
global_asm!(
    ".pushsection .text.warptrace_memory, \"ax\", @progbits",
    ".globl memcpy",
    ".hidden memcpy",
    "memcpy: mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    ".globl memmove",
    ".hidden memmove",
    "memmove: mov rax, rdi",
    "mov rcx, rdx",
    "mov r8, rdi",
    "sub r8, rsi",
    "cmp r8, rdx",
    "jb 2f",
    "rep movsb",
    "ret",
    "2: lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    ".globl memset",
    ".hidden memset",
    "memset: mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    ".globl memcmp",
    ".hidden memcmp",
    ".globl bcmp",
    ".hidden bcmp",
    "memcmp:",
    "bcmp: xor ecx, ecx",
    "3: cmp rcx, rdx",
    "je 4f",
    "movzx eax, byte ptr [rdi + rcx]",
    "movzx r8d, byte ptr [rsi + rcx]",
    "inc rcx",
    "sub eax, r8d",
    "je 3b",
    "ret",
    "4: xor eax, eax",
    "ret",
    ".globl strlen",
    ".hidden strlen",
    "strlen: xor eax, eax",
    "5: cmp byte ptr [rdi + rax], 0",
    "je 6f",
    "inc rax",
    "jmp 5b",
    "6: ret",
    ".popsection",
);
