/* SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause */
/*
 * What the programs share: settings, the ring, who is watched, losses.
 *
 * A process is *watched* when user space named it, when its parent was watched, or (unless only named ones are) from its
 * first traced call on. `watched` is the first filter of every machine-wide program: one byte, no map lookup; its rare
 * false hits (it is indexed by the low bits of the pid) are settled by `processes`.
 *
 * Loss: every record that could not be sent took a number of its CPU, so the gap shows, and is counted by reason in
 * `cpus`. A call whose record could not be sent is still counted in `counts` (calls.bpf.c).
 */
#ifndef WARPTRACE_STATE_H
#define WARPTRACE_STATE_H

#include "kernel.h"
#include "ops.h"

#define MAX_CPUS 1024
#define COMM_BYTES 16

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define HAS_SWITCH_STATE 1 /* sched_switch: the state, fourth (since 5.18) */
#define HAS_VICTIM_TASK 2  /* mark_victim: the task, first (since 6.8), and not its number */
#define HAS_IO_START 4     /* block_io_start (since 6.5): a request is known from its own start, and not by its bio */

/* Set once, before the programs are loaded. */
const volatile struct settings {
	u64 ring_bytes;
	/* CLOCK_BOOTTIME at load: who started later was seen from its start. */
	u64 loaded_at;
	/* Off-CPU records shorter than this, ns, are not sent. */
	u64 off_cpu_min;
	/* A user stack is taken at the return of a call that can wait and took at least so long, ns; 0: never. */
	u64 stack_min;
	/* Only processes that were named, and their children. */
	u32 listed;
	/* Block requests of everybody, not only of watched processes and kernel threads that work for them. */
	u32 all_block_io;
	/* Inode of the pid namespace in which everything is numbered; 0: the machine's. */
	u32 pid_namespace;
	/* What this kernel's tracepoints are given: HAS_*. A branch that it does not take is not verified. */
	u32 has;
} settings SEC(".rodata.settings") = {};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} ring SEC(".maps");

/* Keeps `struct record` in the object's type information, where a test compares it with the other side. */
struct record *record_layout;

enum loss {
	LOSS_RING_FULL,
	LOSS_MAP_FULL,
	LOSS_NO_RETURN,
	LOSSES,
};

/* One for each CPU; a cache line. */
struct cpu {
	/* Begin of the current slice; meaningful while `waiters` is not 0. */
	u64 slice_start;
	/* Watched threads that wait for this CPU. */
	u32 waiters;
	/* The next record's number. */
	u32 seq;
	u64 lost[LOSSES];
	u64 pad[3];
} __attribute__((aligned(64)));

struct cpu cpus[MAX_CPUS] SEC(".bss.cpus");

/* 1 where some process whose pid ends in these bits is watched, or was. */
u8 watched[1 << 16] SEC(".bss.watched");

#define PROCESS_FROM_START 1 /* its start was seen */

struct process {
	u32 flags;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, u32); /* tgid */
	__type(value, struct process);
} processes SEC(".maps");

static __always_inline struct cpu *this_cpu(void)
{
	return &cpus[bpf_get_smp_processor_id() & (MAX_CPUS - 1)];
}

static __always_inline void lost(enum loss reason)
{
	__sync_fetch_and_add(&this_cpu()->lost[reason], 1);
}

/* Marks a number of the machine's in a namespace that does not have the thread. */
#define FOREIGN 0x80000000u

#define MAX_NAMESPACES 8

static __noinline u32 number_in_namespace(const struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	u32 level = BPF_CORE_READ(pid, level), machine = BPF_CORE_READ(task, pid);
	struct upid number;

	if (!machine)
		return 0;
	for (u32 i = 1; i < MAX_NAMESPACES && i <= level; i++) {
		void *at = (void *)pid + bpf_core_field_offset(struct pid, numbers) +
			   i * bpf_core_type_size(struct upid);

		if (bpf_core_read(&number.ns, sizeof(number.ns), at + bpf_core_field_offset(struct upid, ns)) ||
		    BPF_CORE_READ(number.ns, ns.inum) != settings.pid_namespace)
			continue;
		bpf_core_read(&number.nr, sizeof(number.nr), at + bpf_core_field_offset(struct upid, nr));
		return number.nr;
	}
	return machine | FOREIGN;
}

/* tgid << 32 | tid, in the namespace of the settings. */
static __always_inline u64 thread_id(const struct task_struct *task)
{
	if (!settings.pid_namespace)
		return (u64)task->tgid << 32 | (u32)task->pid;
	return (u64)number_in_namespace(task->group_leader) << 32 | number_in_namespace(task);
}

static __always_inline u64 current_id(void)
{
	return settings.pid_namespace ? thread_id((void *)bpf_get_current_task_btf()) : bpf_get_current_pid_tgid();
}

static __always_inline bool maybe_watched(u32 tgid)
{
	return watched[tgid & 0xffff];
}

static __always_inline struct process *find_process(u32 tgid)
{
	return maybe_watched(tgid) ? bpf_map_lookup_elem(&processes, &tgid) : 0;
}

/* Watches a process; true when it was not watched before. */
static __always_inline bool watch_process(u32 tgid, u32 flags)
{
	struct process process = { .flags = flags };
	long err = bpf_map_update_elem(&processes, &tgid, &process, BPF_NOEXIST);

	if (err == -7) /* E2BIG */
		lost(LOSS_MAP_FULL);
	watched[tgid & 0xffff] = 1;
	return !err;
}

/*
 * Takes a record's place in the ring: all of it must be written before send(). Null, and counted, when the ring is full.
 */
static __always_inline struct record *reserve(u8 kind, u64 id)
{
	u32 number = bpf_get_smp_processor_id();
	struct cpu *cpu = &cpus[number & (MAX_CPUS - 1)];
	u32 seq = __sync_fetch_and_add(&cpu->seq, 1);
	struct record *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);

	if (!r) {
		__sync_fetch_and_add(&cpu->lost[LOSS_RING_FULL], 1);
		return 0;
	}
	r->kind = kind;
	r->pid = id >> 32;
	r->tid = id;
	r->seq = seq;
	r->cpu = number;
	return r;
}

/* Hands the record to user space, which looks by itself every few ms: it is woken only when the ring fills up. */
static __always_inline void send(struct record *r)
{
	u64 wake = BPF_RB_NO_WAKEUP;

	if ((r->seq & 63) == 0 && bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) > settings.ring_bytes / 4)
		wake = BPF_RB_FORCE_WAKEUP;
	bpf_ringbuf_submit(r, wake);
}

/* A record of something that has no op, no return and no arguments but those that the caller sets. */
static __always_inline struct record *reserve_host(u8 kind, u8 source, u16 op, u64 id)
{
	struct record *r = reserve(kind, id);

	if (!r)
		return 0;
	r->source = source;
	r->op = op;
	r->flags = 0;
	r->device = DEVICE_UNKNOWN;
	r->ts = 0;
	r->dur = 0;
	r->ret = 0;
	r->stack_id = 0;
	r->arg0 = 0;
	r->arg1 = 0;
	r->stream = 0;
	return r;
}

/* A thread's name, sent whenever it is new. */
static __always_inline void send_name(u64 id, u64 now, const char comm[COMM_BYTES])
{
	struct record *r = reserve_host(KIND_PROCESS, SOURCE_HOST, PROCESS_NAME, id);

	if (!r)
		return;
	r->ts = now;
	__builtin_memcpy(&r->arg0, comm, 8);
	__builtin_memcpy(&r->arg1, comm + 8, 8);
	send(r);
}

#endif
