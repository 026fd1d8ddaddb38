/* SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause */
/*
 * The few kernel structures that are read, with the few fields: CO-RE finds the offsets of the running kernel.
 * What some kernel lacks is only read behind bpf_core_field_exists or bpf_core_type_exists.
 */
#ifndef WARPTRACE_KERNEL_H
#define WARPTRACE_KERNEL_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
typedef u8 bool;

/* Registers at a user space probe: the layout of the program's context, which is ABI and is not relocated. */
#if defined(__TARGET_ARCH_x86)
struct probe_regs {
	u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
#elif defined(__TARGET_ARCH_arm64)
struct probe_regs {
	u64 regs[31], sp, pc, pstate;
};
#else
#error "x86 or arm64"
#endif

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r10, r8, dx, si, di, orig_ax;
};
#else
struct pt_regs {
	u64 regs[31];
	s32 syscallno;
};
#endif

struct list_head {
	struct list_head *next;
};

struct thread_info {
	u32 cpu;
#if defined(__TARGET_ARCH_arm64)
	u64 preempt_count;
#endif
};

struct super_block {
	unsigned long s_magic;
};

struct inode {
	u16 i_mode;
	unsigned long i_ino;
	struct super_block *i_sb;
};

struct file {
	struct inode *f_inode;
	void *private_data;
};

struct fdtable {
	u32 max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct rb_node {
	struct rb_node *rb_right, *rb_left;
};

struct rb_root {
	struct rb_node *rb_node;
};

struct rb_root_cached {
	struct rb_root rb_root;
};

struct epoll_filefd {
	struct file *file;
};

struct epitem {
	struct rb_node rbn;
	struct epoll_filefd ffd;
};

struct eventpoll {
	struct rb_root_cached rbr;
};

struct ns_common {
	u32 inum;
};

struct pid_namespace {
	struct ns_common ns;
};

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid {
	u32 level;
	struct upid numbers[1];
};

/* Before 5.16. */
struct task_struct___cpu {
	u32 cpu;
};

struct cfs_rq {
	u64 throttled_clock_self_time; /* since 6.6, with CONFIG_CFS_BANDWIDTH */
};

struct sched_entity {
	struct cfs_rq *cfs_rq; /* with CONFIG_FAIR_GROUP_SCHED */
};

struct signal_struct {
	struct {
		int counter;
	} live;
	u32 flags;
	int group_exit_code;
};

struct task_struct {
	struct thread_info thread_info;
	u32 __state;
	void *stack;
	u32 flags;
	int pid, tgid;
	struct sched_entity se;
	int exit_code;
	unsigned in_iowait : 1;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	u64 start_boottime;
	char comm[16];
	struct files_struct *files;
	struct signal_struct *signal;
};

struct linux_binprm {
	const char *filename;
};

struct gendisk {
	int major, first_minor;
};

struct request_queue {
	struct gendisk *disk;
};

struct address_space {
	struct inode *host;
};

struct page {
	struct address_space *mapping;
};

struct bio_vec {
	struct page *bv_page;
};

struct bio {
	struct bio_vec *bi_io_vec;
};

struct request {
	struct request_queue *q;
	u32 cmd_flags;
	u32 __data_len;
	u64 __sector;
	struct bio *bio;
};

struct sock_common {
	u32 skc_daddr, skc_rcv_saddr;
	u16 skc_num, skc_dport, skc_family;
};

struct socket {
	struct file *file;
};

struct sock {
	struct sock_common __sk_common;
	struct socket *sk_socket;
};

#pragma clang attribute pop

/* include/linux/sched.h */
#define PF_EXITING 0x00000004
#define PF_IO_WORKER 0x00000010
#define PF_KTHREAD 0x00200000
#define TASK_UNINTERRUPTIBLE 0x0002
#define TASK_STOPPED_OR_TRACED 0x000c
#define TASK_EXITING 0x00b0 /* EXIT_DEAD, EXIT_ZOMBIE, TASK_DEAD */
#define TASK_FROZEN 0x8000
/* include/linux/sched/signal.h */
#define SIGNAL_GROUP_EXIT 0x00000004
/* arch/x86/include/asm/page_64_types.h, without KASAN */
#define KERNEL_STACK_BYTES (16 << 10)
/* include/linux/preempt.h: serving a softirq, a hard interrupt or an NMI */
#define IN_INTERRUPT 0x00ff0100
/* include/uapi/linux/stat.h */
#define S_IFREG 0100000
#define S_IFSOCK 0140000
/* include/uapi/linux/magic.h */
#define ANON_INODE_FS_MAGIC 0x09041934

#endif
