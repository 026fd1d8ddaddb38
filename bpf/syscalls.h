/* SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause */
/*
 * What a system call waits on, by its number: only what is needed to tell why a thread sleeps.
 * Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
 */
#ifndef WARPTRACE_SYSCALLS_H
#define WARPTRACE_SYSCALLS_H

#define SYS_FD 1 /* the first argument is a descriptor */
#define SYS_SEND 2 /* may send to a socket */
#define SYS_RECEIVE 4 /* may receive from a socket, or wait until it can */
#define SYS_TIMER 8 /* sleeps for a time and nothing else */
#define SYS_POLL 16 /* poll(fds, n, ms) */
#define SYS_PPOLL 32 /* ppoll(fds, n, timespec) */
#define SYS_SELECT 64 /* select or pselect6(n, read, write, except, timeout) */
#define SYS_EPOLL 128 /* epoll_wait or epoll_pwait(fd, events, n, ms) */
#define SYS_FUTEX 256

#define SYSCALLS 512

const u16 syscalls[SYSCALLS] = {
#if defined(__TARGET_ARCH_x86)
	[0] = SYS_FD | SYS_RECEIVE, /* read */
	[1] = SYS_FD | SYS_SEND, /* write */
	[3] = SYS_FD, /* close */
	[7] = SYS_POLL | SYS_RECEIVE,
	[16] = SYS_FD, /* ioctl */
	[17] = SYS_FD, /* pread64 */
	[18] = SYS_FD, /* pwrite64 */
	[19] = SYS_FD | SYS_RECEIVE, /* readv */
	[20] = SYS_FD | SYS_SEND, /* writev */
	[23] = SYS_SELECT | SYS_RECEIVE,
	[35] = SYS_TIMER, /* nanosleep */
	[40] = SYS_FD | SYS_SEND, /* sendfile */
	[42] = SYS_FD | SYS_RECEIVE, /* connect */
	[43] = SYS_FD | SYS_RECEIVE, /* accept */
	[44] = SYS_FD | SYS_SEND, /* sendto */
	[45] = SYS_FD | SYS_RECEIVE, /* recvfrom */
	[46] = SYS_FD | SYS_SEND, /* sendmsg */
	[47] = SYS_FD | SYS_RECEIVE, /* recvmsg */
	[72] = SYS_FD, /* fcntl */
	[73] = SYS_FD, /* flock */
	[74] = SYS_FD, /* fsync */
	[75] = SYS_FD, /* fdatasync */
	[77] = SYS_FD, /* ftruncate */
	[202] = SYS_FUTEX,
	[217] = SYS_FD, /* getdents64 */
	[230] = SYS_TIMER, /* clock_nanosleep */
	[232] = SYS_FD | SYS_EPOLL | SYS_RECEIVE, /* epoll_wait */
	[270] = SYS_SELECT | SYS_RECEIVE, /* pselect6 */
	[271] = SYS_PPOLL | SYS_RECEIVE,
	[275] = SYS_FD, /* splice */
	[277] = SYS_FD, /* sync_file_range */
	[281] = SYS_FD | SYS_EPOLL | SYS_RECEIVE, /* epoll_pwait */
	[285] = SYS_FD, /* fallocate */
	[288] = SYS_FD | SYS_RECEIVE, /* accept4 */
	[295] = SYS_FD, /* preadv */
	[296] = SYS_FD, /* pwritev */
	[299] = SYS_FD | SYS_RECEIVE, /* recvmmsg */
	[306] = SYS_FD, /* syncfs */
	[307] = SYS_FD | SYS_SEND, /* sendmmsg */
	[326] = SYS_FD, /* copy_file_range */
	[327] = SYS_FD, /* preadv2 */
	[328] = SYS_FD, /* pwritev2 */
#else
	[22] = SYS_FD | SYS_EPOLL | SYS_RECEIVE, /* epoll_pwait */
	[25] = SYS_FD, /* fcntl */
	[29] = SYS_FD, /* ioctl */
	[32] = SYS_FD, /* flock */
	[46] = SYS_FD, /* ftruncate */
	[47] = SYS_FD, /* fallocate */
	[57] = SYS_FD, /* close */
	[61] = SYS_FD, /* getdents64 */
	[63] = SYS_FD | SYS_RECEIVE, /* read */
	[64] = SYS_FD | SYS_SEND, /* write */
	[65] = SYS_FD | SYS_RECEIVE, /* readv */
	[66] = SYS_FD | SYS_SEND, /* writev */
	[67] = SYS_FD, /* pread64 */
	[68] = SYS_FD, /* pwrite64 */
	[69] = SYS_FD, /* preadv */
	[70] = SYS_FD, /* pwritev */
	[71] = SYS_FD | SYS_SEND, /* sendfile */
	[72] = SYS_SELECT | SYS_RECEIVE, /* pselect6 */
	[73] = SYS_PPOLL | SYS_RECEIVE,
	[76] = SYS_FD, /* splice */
	[82] = SYS_FD, /* fsync */
	[83] = SYS_FD, /* fdatasync */
	[84] = SYS_FD, /* sync_file_range */
	[98] = SYS_FUTEX,
	[101] = SYS_TIMER, /* nanosleep */
	[115] = SYS_TIMER, /* clock_nanosleep */
	[202] = SYS_FD | SYS_RECEIVE, /* accept */
	[203] = SYS_FD | SYS_RECEIVE, /* connect */
	[206] = SYS_FD | SYS_SEND, /* sendto */
	[207] = SYS_FD | SYS_RECEIVE, /* recvfrom */
	[211] = SYS_FD | SYS_SEND, /* sendmsg */
	[212] = SYS_FD | SYS_RECEIVE, /* recvmsg */
	[242] = SYS_FD | SYS_RECEIVE, /* accept4 */
	[243] = SYS_FD | SYS_RECEIVE, /* recvmmsg */
	[267] = SYS_FD, /* syncfs */
	[269] = SYS_FD | SYS_SEND, /* sendmmsg */
	[285] = SYS_FD, /* copy_file_range */
	[286] = SYS_FD, /* preadv2 */
	[287] = SYS_FD, /* pwritev2 */
#endif
	[426] = SYS_FD, /* io_uring_enter */
	[441] = SYS_FD | SYS_RECEIVE, /* epoll_pwait2: its time limit is not read */
};

#define SYS_IO_URING_ENTER 426

static __always_inline u16 syscall_kind(u32 number)
{
	if (number >= SYSCALLS)
		return 0;
	/* The compiler must not drop the mask, by which the verifier knows the range. */
	asm volatile("" : "+r"(number));
	return syscalls[number & (SYSCALLS - 1)];
}

#endif
