// SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
/*
 * Why watched threads do not run: off-CPU intervals, who had the CPU meanwhile, and the life of processes.
 *
 * Off-CPU: a switch-out, the wake-up and the switch-in of a thread become one record, paired here. Switched out while
 * runnable (preempt, or state 0: the argument, since `__state` may have been changed by a wake-up on another CPU), all of
 * the gap is run-queue time; else it is blocked until sched_wakeup, then in the run queue. At switch-out the task that
 * leaves is current, so its saved registers say in which system call it sleeps: no system call tracepoint is needed.
 *
 * Wakers come from sched_waking (sched_wakeup may run on the other CPU) and are bystanders when the wake-up comes out of
 * an interrupt. The last sched_waking before the switch-in is the one that counts: it may come before the switch-out.
 *
 * Slices: the task that left when a thread came in explains only half of its wait, so while watched threads wait for a
 * CPU each switch on it sends who had run since. `waiters` of a CPU counts them; each thread remembers where it is counted.
 *
 * A CPU quota looks like preemption, and is told by the group's own throttled time passing over the wait.
 *
 * What was asleep before it was watched has no switch-out: its first interval is not seen.
 *
 * Oldest kernel: 5.15. Before 5.18 the state at a switch-out is the task's, which a wake-up on another CPU may have changed
 * by then: to TASK_WAKING, so that blocked stays blocked. Quotas since 6.6.
 */
#include "state.h"
#include "syscalls.h"
#include <bpf/bpf_tracing.h>

/* A thread of a watched process, from its first switch on. */
struct thread {
	u64 out_at; /* switch-out; 0 while it runs */
	u64 woken_at;
	u64 limit; /* longest sleep that the caller asked for, ns; 0: none known */
	u64 throttled; /* the group's throttled time when the thread became runnable */
	u64 group; /* whose: an address, compared only */
	u64 waker; /* tgid << 32 | tid */
	u64 stack_probe;
	u32 waits_on; /* 1 + the CPU in whose `waiters` it is counted; 0: none */
	s32 fd;
	u16 syscall, flags, waker_flags, file;
	char comm[COMM_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, u32); /* tid */
	__type(value, struct thread);
} threads SEC(".maps");

/* Names of occupants that were sent. */
struct comm {
	char comm[COMM_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, u32); /* tid */
	__type(value, struct comm);
} occupants SEC(".maps");

static __always_inline bool same_comm(const char *a, const char *b)
{
	return *(u64 *)a == *(u64 *)b && *(u64 *)(a + 8) == *(u64 *)(b + 8);
}

static __always_inline void read_comm(struct comm *out, const struct task_struct *task)
{
	bpf_probe_read_kernel(out, sizeof(*out), task->comm);
}

/* ---- waiting for a CPU ---- */

static __always_inline u32 cpu_of(const struct task_struct *task)
{
	if (bpf_core_field_exists(struct task_struct, thread_info.cpu))
		return task->thread_info.cpu;
	return ((const struct task_struct___cpu *)task)->cpu;
}

static __always_inline void begin_wait(struct thread *t, u32 number, u64 now)
{
	struct cpu *cpu = &cpus[number & (MAX_CPUS - 1)];

	if (t->waits_on || number >= MAX_CPUS)
		return;
	t->waits_on = number + 1;
	if (!cpu->waiters)
		cpu->slice_start = now;
	__sync_fetch_and_add(&cpu->waiters, 1);
}

static __always_inline void end_wait(struct thread *t)
{
	u32 number = t->waits_on - 1;

	if (!t->waits_on)
		return;
	t->waits_on = 0;
	__sync_fetch_and_add(&cpus[number & (MAX_CPUS - 1)].waiters, -1);
}

/* Since 6.6, where the kernel is built with groups and quotas. */
#define HAS_QUOTA                                                                                                      \
	(bpf_core_field_exists(struct task_struct, se.cfs_rq) &&                                                       \
	 bpf_core_field_exists(struct cfs_rq, throttled_clock_self_time))

static __always_inline void read_throttled(struct thread *t, struct task_struct *task)
{
	struct cfs_rq *group;

	t->group = 0;
	if (!HAS_QUOTA)
		return;
	group = task->se.cfs_rq;
	t->group = (u64)group;
	t->throttled = group->throttled_clock_self_time;
}

/* Throttled time since read_throttled(); 0 when the thread has changed its queue. */
static __always_inline u64 throttled_since(struct thread *t, struct task_struct *task)
{
	struct cfs_rq *group;

	if (!HAS_QUOTA || !t->group)
		return 0;
	group = task->se.cfs_rq;
	return (u64)group == t->group ? group->throttled_clock_self_time - t->throttled : 0;
}

static __always_inline void send_slice(struct cpu *cpu, const struct task_struct *task, u64 id, u64 now)
{
	u64 start = cpu->slice_start;
	u32 tid = id;
	struct comm comm, *known;
	struct record *r;

	cpu->slice_start = now;
	if (now <= start)
		return;
	if (tid) {
		read_comm(&comm, task);
		known = bpf_map_lookup_elem(&occupants, &tid);
		if (!known || !same_comm(known->comm, comm.comm)) {
			bpf_map_update_elem(&occupants, &tid, &comm, BPF_ANY);
			send_name(id, now, comm.comm);
		}
	}
	r = reserve_host(KIND_SLICE, SOURCE_HOST, 0, id);
	if (!r)
		return;
	r->ts = start;
	r->dur = now - start;
	send(r);
}

/* ---- what a thread sleeps in ---- */

/*
 * File type bits of an open file; 0xff for what is no file (eventfd, epoll, io_uring and the like), which has none, or from
 * 6.16 on those of a regular one.
 */
static __always_inline u16 type_of(struct file *file)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	u16 type = BPF_CORE_READ(inode, i_mode) >> 12;

	if (!type || (type == S_IFREG >> 12 && BPF_CORE_READ(inode, i_sb, s_magic) == ANON_INODE_FS_MAGIC))
		return 0xff;
	return type;
}

static __always_inline struct file *file_of(const struct task_struct *task, u32 fd)
{
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **files, *file = 0;

	if (!table || fd >= BPF_CORE_READ(table, max_fds))
		return 0;
	files = BPF_CORE_READ(table, fd);
	bpf_probe_read_kernel(&file, sizeof(file), files + fd);
	return file;
}

static __always_inline bool is_socket(const struct task_struct *task, s32 fd)
{
	struct file *file = fd < 0 ? 0 : file_of(task, fd);

	return file && type_of(file) == S_IFSOCK >> 12;
}

/* The three below are global, so that the verifier looks through each once and not on every path of a switch. */

#define MANY 8 /* descriptors of a poll that are looked at */

__noinline int poll_has_socket(u64 fds, u64 n)
{
	const struct task_struct *task = (void *)bpf_get_current_task_btf();
	struct {
		s32 fd;
		u32 events;
	} p;

	for (u32 i = 0; i < MANY; i++) {
		if (i >= n || bpf_probe_read_user(&p, sizeof(p), (void *)(fds + i * sizeof(p))))
			return 0;
		if (is_socket(task, p.fd))
			return 1;
	}
	return 0;
}

__noinline int select_has_socket(u64 n, u64 set)
{
	const struct task_struct *task = (void *)bpf_get_current_task_btf();
	u64 bits = 0;

	if (bpf_probe_read_user(&bits, sizeof(bits), (void *)set))
		return 0;
	for (u32 fd = 0; fd < 64; fd++)
		if (fd < n && bits >> fd & 1 && is_socket(task, fd))
			return 1;
	return 0;
}

/* Looks down one side of the tree of watched files. */
__noinline int epoll_has_socket(u64 file)
{
	struct file *epoll = (void *)file;
	struct eventpoll *ep = BPF_CORE_READ(epoll, private_data);
	struct rb_node *node;

	if (!bpf_core_type_exists(struct epitem) || type_of(epoll) != 0xff || !ep)
		return 0;
	node = BPF_CORE_READ(ep, rbr.rb_root.rb_node);
	for (u32 i = 0; i < MANY && node; i++) {
		struct epitem *item = (void *)node - bpf_core_field_offset(struct epitem, rbn);
		struct file *watched_file = BPF_CORE_READ(item, ffd.file);
		struct rb_node *left = BPF_CORE_READ(node, rb_left);

		if (watched_file && type_of(watched_file) == S_IFSOCK >> 12)
			return 1;
		node = left ? left : BPF_CORE_READ(node, rb_right);
	}
	return 0;
}

static __always_inline u64 millis(s32 ms)
{
	return ms > 0 ? (u64)ms * 1000000 : 0;
}

static __always_inline u64 timespec(u64 at)
{
	s64 t[2] = {};

	if (!at || bpf_probe_read_user(t, sizeof(t), (void *)at) || t[0] < 0)
		return 0;
	return t[0] * 1000000000ull + t[1];
}

/* An absolute time of CLOCK_MONOTONIC. */
static __always_inline u64 until(u64 at)
{
	u64 end = timespec(at), now = bpf_ktime_get_ns();

	return end > now ? end - now : 0;
}

#if defined(__TARGET_ARCH_x86)
#define SYSCALL(regs) ((s32)(regs)->orig_ax)
#define ARG1(regs) ((regs)->di)
#define ARG2(regs) ((regs)->si)
#define ARG3(regs) ((regs)->dx)
#define ARG4(regs) ((regs)->r10)
#define ARG5(regs) ((regs)->r8)
#else
#define SYSCALL(regs) ((regs)->syscallno)
#define ARG1(regs) ((regs)->regs[0])
#define ARG2(regs) ((regs)->regs[1])
#define ARG3(regs) ((regs)->regs[2])
#define ARG4(regs) ((regs)->regs[3])
#define ARG5(regs) ((regs)->regs[4])
#endif

/* The system call that current is in; NO_SYSCALL for none. */
static __always_inline u16 current_syscall(void)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	struct pt_regs *regs = (void *)bpf_task_pt_regs((void *)task);
	s32 number = SYSCALL(regs);

	if (task->flags & PF_IO_WORKER)
		return SYS_IO_URING_ENTER;
	return number < 0 ? NO_SYSCALL : number;
}

/* Current blocks: in which system call, on which file, for how long at most. */
static __always_inline void read_sleep(struct thread *t)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	struct pt_regs *regs = (void *)bpf_task_pt_regs((void *)task);
	u16 number = t->syscall, what;
	struct file *file = 0;

	if (task->flags & PF_IO_WORKER)
		return;
	what = syscall_kind(number);
	if (what & SYS_FD) {
		t->fd = ARG1(regs);
		file = t->fd < 0 ? 0 : file_of(task, t->fd);
		if (file)
			t->file = type_of(file);
	}
	if (what & SYS_TIMER) {
		t->flags |= OFFCPU_TIMED;
	} else if (what & SYS_POLL) {
		t->limit = millis(ARG3(regs));
		if (poll_has_socket(ARG1(regs), ARG2(regs)))
			t->flags |= OFFCPU_POLL_SOCKET;
	} else if (what & SYS_PPOLL) {
		t->limit = timespec(ARG3(regs));
		if (poll_has_socket(ARG1(regs), ARG2(regs)))
			t->flags |= OFFCPU_POLL_SOCKET;
	} else if (what & SYS_SELECT) {
		if (select_has_socket(ARG1(regs), ARG2(regs)))
			t->flags |= OFFCPU_POLL_SOCKET;
	} else if (what & SYS_EPOLL) {
		t->limit = millis(ARG4(regs));
		if (file && epoll_has_socket((u64)file))
			t->flags |= OFFCPU_POLL_SOCKET;
	} else if (what & SYS_FUTEX) {
		/* FUTEX_WAIT's limit is a length, FUTEX_WAIT_BITSET's a moment of CLOCK_MONOTONIC. */
		u32 op = ARG2(regs);

		if ((op & 0x7f) == 0)
			t->limit = timespec(ARG4(regs));
		else if ((op & 0x17f) == 9)
			t->limit = until(ARG4(regs));
	}
}

/* ---- switches ---- */

static __always_inline void switch_out(bool preempt, struct task_struct *prev, u64 id, u32 state, u64 now)
{
	struct thread new = {}, *t;
	u32 tid = id;
	bool preempted = preempt || !state;

	t = bpf_map_lookup_elem(&threads, &tid);
	if (state & TASK_EXITING) {
		if (t)
			bpf_map_delete_elem(&threads, &tid);
		return;
	}
	if (!t) {
		if (prev->flags & PF_EXITING || !find_process(id >> 32))
			return;
		if (bpf_map_update_elem(&threads, &tid, &new, BPF_NOEXIST))
			lost(LOSS_MAP_FULL);
		t = bpf_map_lookup_elem(&threads, &tid);
		if (!t)
			return;
	}
	t->syscall = current_syscall();
	t->fd = -1;
	t->file = 0;
	t->limit = 0;
	t->flags = 0;
	if (preempted) {
		t->flags = OFFCPU_PREEMPTED;
		read_throttled(t, prev);
		begin_wait(t, bpf_get_smp_processor_id(), now);
	} else {
		t->group = 0;
		if (BPF_CORE_READ_BITFIELD(prev, in_iowait))
			t->flags |= OFFCPU_IOWAIT;
		if (state & TASK_UNINTERRUPTIBLE)
			t->flags |= OFFCPU_UNINTERRUPTIBLE;
		if (state & (TASK_STOPPED_OR_TRACED | TASK_FROZEN))
			t->flags |= OFFCPU_STOPPED;
		read_sleep(t);
	}
	t->out_at = now;
}

static __always_inline void switch_in(u32 last, struct task_struct *next, u64 id, u64 now)
{
	u64 out_at, runnable, throttled;
	u32 tid = id;
	struct thread *t = bpf_map_lookup_elem(&threads, &tid);
	struct record *r;
	struct comm comm;
	u16 flags;

	if (!t || !t->out_at)
		return;
	out_at = t->out_at;
	t->out_at = 0;
	end_wait(t);
	flags = t->flags;
	if (flags & OFFCPU_PREEMPTED)
		runnable = now - out_at;
	else
		runnable = t->woken_at > out_at && t->woken_at < now ? now - t->woken_at : 0;
	throttled = throttled_since(t, next);
	if (throttled > runnable)
		throttled = runnable;
	if (now - out_at < settings.off_cpu_min)
		return;
	read_comm(&comm, next);
	if (!same_comm(t->comm, comm.comm)) {
		__builtin_memcpy(t->comm, comm.comm, COMM_BYTES);
		send_name(id, now, comm.comm);
	}
	r = reserve(KIND_OFF_CPU, id);
	if (!r)
		return;
	if (t->limit && now - runnable - out_at >= t->limit)
		flags |= OFFCPU_TIMED;
	r->source = SOURCE_HOST;
	r->op = t->syscall;
	r->device = t->file;
	r->ts = out_at;
	r->dur = now - out_at;
	r->ret = t->fd;
	r->arg0 = runnable;
	r->arg1 = throttled;
	if (flags & OFFCPU_PREEMPTED) {
		r->stack_id = 0;
		r->stream = last;
	} else {
		flags |= t->waker_flags;
		r->stack_id = t->waker;
		r->stream = (t->waker >> 32) << 32 | last;
	}
	r->flags = flags;
	send(r);
}

/* Arguments: whether it was preempted, who leaves, who comes, since 5.18 the state of who leaves. */
SEC("tp_btf/sched_switch")
int sched_switch(u64 *ctx)
{
	struct task_struct *prev = (void *)ctx[1], *next = (void *)ctx[2];
	struct cpu *cpu = this_cpu();
	u64 out_id = thread_id(prev), in_id = thread_id(next), now;
	u32 state;
	bool out = maybe_watched(out_id >> 32), in = maybe_watched(in_id >> 32);

	if (!out && !in && !cpu->waiters)
		return 0;
	now = bpf_ktime_get_boot_ns();
	if (cpu->waiters)
		send_slice(cpu, prev, out_id, now);
	if (out) {
		/* Not read ahead of the branch: an argument that is not there is refused. */
		if (settings.has & HAS_SWITCH_STATE)
			state = *(volatile u64 *)&ctx[3];
		else
			state = prev->__state;
		switch_out(ctx[0], prev, out_id, state, now);
	}
	if (in)
		switch_in(out_id, next, in_id, now);
	return 0;
}

/* ---- wake-ups ---- */

/*
 * Whether current was interrupted, rather than acting itself. `at` is an address on the running stack.
 *
 * On x86-64 an interrupt of kernel code, and every softirq outside of ksoftirqd, runs on a stack of the CPU; one of user
 * code runs on the task's own, which then shows no system call.
 */
static __always_inline bool interrupted(const struct task_struct *task, u64 at, u16 syscall)
{
#if defined(__TARGET_ARCH_x86)
	u64 stack = (u64)task->stack;

	if (at - stack >= KERNEL_STACK_BYTES)
		return 1;
	return !(task->flags & PF_KTHREAD) && syscall == NO_SYSCALL;
#else
	return task->thread_info.preempt_count & IN_INTERRUPT;
#endif
}

SEC("tp_btf/sched_waking")
int sched_waking(u64 *ctx)
{
	struct task_struct *p = (void *)ctx[0], *waker;
	u64 id = thread_id(p);
	u32 tid = id;
	struct thread *t;
	u16 flags = 0, number;

	if (!maybe_watched(id >> 32))
		return 0;
	t = bpf_map_lookup_elem(&threads, &tid);
	if (!t)
		return 0;
	waker = (void *)bpf_get_current_task_btf();
	number = waker->flags & PF_KTHREAD ? NO_SYSCALL : current_syscall();
	/* The arguments lie on the running stack. As an address it may not be reckoned with; out of a map it is a number. */
	*(void *volatile *)&t->stack_probe = ctx;
	if (waker->flags & PF_KTHREAD)
		flags = OFFCPU_WAKER_KERNEL;
	if (interrupted(waker, *(volatile u64 *)&t->stack_probe, number)) {
		flags |= OFFCPU_WAKER_INTERRUPT;
		/* Loopback: the softirq runs at the end of the sender's own call. */
		if (syscall_kind(number) & SYS_SEND && syscall_kind(t->syscall) & SYS_RECEIVE)
			flags |= OFFCPU_WAKER_SENT;
	} else if (number != NO_SYSCALL) {
		flags |= OFFCPU_WAKER_SYSCALL;
	}
	t->waker = thread_id(waker);
	t->waker_flags = flags;
	return 0;
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(sched_wakeup, struct task_struct *p)
{
	u64 id = thread_id(p);
	u32 tid = id;
	struct thread *t;
	u64 now;

	if (!maybe_watched(id >> 32))
		return 0;
	t = bpf_map_lookup_elem(&threads, &tid);
	if (!t || !t->out_at || t->flags & OFFCPU_PREEMPTED)
		return 0;
	now = bpf_ktime_get_boot_ns();
	t->woken_at = now;
	read_throttled(t, p);
	begin_wait(t, cpu_of(p), now);
	return 0;
}

/* A new thread waits from here on, for its first run. */
SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(sched_wakeup_new, struct task_struct *p)
{
	u64 id = thread_id(p), now;
	u32 tid = id;
	struct thread new = { .flags = OFFCPU_PREEMPTED, .syscall = NO_SYSCALL, .fd = -1 }, *t;

	if (!find_process(id >> 32))
		return 0;
	now = bpf_ktime_get_boot_ns();
	new.out_at = now;
	if (bpf_map_update_elem(&threads, &tid, &new, BPF_ANY)) {
		lost(LOSS_MAP_FULL);
		return 0;
	}
	t = bpf_map_lookup_elem(&threads, &tid);
	if (!t)
		return 0;
	read_throttled(t, p);
	begin_wait(t, cpu_of(p), now);
	return 0;
}

SEC("tp_btf/sched_migrate_task")
int BPF_PROG(sched_migrate_task, struct task_struct *p, int dest)
{
	u64 id = thread_id(p);
	u32 tid = id;
	struct thread *t;

	if (!maybe_watched(id >> 32))
		return 0;
	t = bpf_map_lookup_elem(&threads, &tid);
	if (!t || !t->waits_on)
		return 0;
	end_wait(t);
	begin_wait(t, dest, bpf_ktime_get_boot_ns());
	return 0;
}

/* ---- processes ---- */

SEC("tp_btf/sched_process_fork")
int BPF_PROG(process_fork, struct task_struct *parent, struct task_struct *child)
{
	u64 id = thread_id(parent), child_id;
	struct record *r;

	if (!find_process(id >> 32))
		return 0;
	child_id = thread_id(child);
	if (child->pid == child->tgid)
		watch_process(child_id >> 32, PROCESS_FROM_START);
	r = reserve_host(KIND_PROCESS, SOURCE_HOST, PROCESS_FORK, id);
	if (!r)
		return 0;
	r->ts = bpf_ktime_get_boot_ns();
	r->arg0 = child_id >> 32;
	r->arg1 = (u32)child_id;
	send(r);
	return 0;
}

/*
 * `old` is the thread that called exec, as the machine numbers it; it goes on under the process's own number. What other
 * thread it was is not known in a namespace: its entries wait for the number to come again.
 */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(process_exec, struct task_struct *p, int old)
{
	u64 id = thread_id(p), now;
	u32 tid = id, other = old;
	struct record *r;

	if (!find_process(id >> 32))
		return 0;
	now = bpf_ktime_get_boot_ns();
	bpf_map_delete_elem(&calls, &tid);
	if (old != p->pid && !settings.pid_namespace) {
		bpf_map_delete_elem(&calls, &other);
		bpf_map_delete_elem(&threads, &other);
	}
	r = reserve_host(KIND_PROCESS, SOURCE_HOST, PROCESS_EXEC, id);
	if (!r)
		return 0;
	r->ts = now;
	/* As /proc/PID/stat says it: USER_HZ is 100 on both architectures. */
	r->arg1 = BPF_CORE_READ(p, group_leader, start_boottime) / 10000000;
	send(r);
	return 0;
}

/*
 * Every thread comes by, in any order: `live` may be 0 for more than one of them, so the process ends with whoever takes
 * it out of the map.
 */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(process_exit, struct task_struct *p)
{
	u64 id = thread_id(p), now;
	u32 tid = id, tgid = id >> 32;
	struct signal_struct *signal;
	struct thread *t;
	struct record *r;

	if (!maybe_watched(tgid))
		return 0;
	now = bpf_ktime_get_boot_ns();
	end_calls(tid, id, now);
	t = bpf_map_lookup_elem(&threads, &tid);
	if (!t && !find_process(tgid))
		return 0;
	if (t) {
		end_wait(t);
		bpf_map_delete_elem(&threads, &tid);
	}
	if (tid != tgid) {
		r = reserve_host(KIND_PROCESS, SOURCE_HOST, PROCESS_EXIT, id);
		if (r) {
			r->ts = now;
			send(r);
		}
	}
	signal = p->signal;
	if (signal->live.counter || bpf_map_delete_elem(&processes, &tgid))
		return 0;
	r = reserve_host(KIND_PROCESS, SOURCE_HOST, PROCESS_EXIT, (u64)tgid << 32 | tgid);
	if (!r)
		return 0;
	r->ts = now;
	r->ret = signal->flags & SIGNAL_GROUP_EXIT ? signal->group_exit_code :
						     BPF_CORE_READ(p, group_leader, exit_code);
	send(r);
	return 0;
}

/* ---- commands of user space ---- */

struct watch_args {
	u32 pid, from_start;
};

/* Run by user space to name a process; its children follow. */
SEC("syscall")
int watch(struct watch_args *args)
{
	watch_process(args->pid, args->from_start ? PROCESS_FROM_START : 0);
	return 0;
}
