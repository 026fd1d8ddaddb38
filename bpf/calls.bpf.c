// SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
/*
 * Calls of CUDA and NCCL: entry to return, with arguments and return code.
 *
 * Two programs serve every entry point of every library. The cookie says which one it is and where its arguments are:
 *
 *   bits 0..16 row of the op table | 16..32 arg0 | 32..48 arg1 | 48..64 stream   (slots: kind 8, n 4, k 4; see slot())
 *
 * Nesting: a thread has a stack of FRAMES open calls. An inner call has the lower stack pointer, so that an entry drops
 * what a longjmp has left (its stack pointer is not above the new one), and a return finds its own frame by the pointer
 * at which the call was made. A function that jumps to another traced one at the same stack pointer becomes that one: one
 * call, counted once. So does a function that is probed twice, because a file was reached through two file systems.
 * Calls deeper than FRAMES are not seen. A call inside another is recorded when it took NESTED_MIN_NANOS, and is counted
 * only when the outer one is of NCCL.
 *
 * Loss: a call whose record could not be sent, or is not worth one, is counted in `counts`: a call is either a record or
 * counted there, so that user space, which counts the records, has exact sums at the least cost to the job. An open call
 * of a thread that ends is sent with FLAG_NO_RETURN.
 *
 * Devices: a thread's current device follows cudaSetDevice and the contexts of the driver. Before the first of them it is
 * 0 in a process that was seen from its start, else not known.
 *
 * Oldest kernel: 5.15 (attach cookies). The sections are those of uprobe-multi links, since 6.6; before, user space loads the
 * same programs for perf events, one a place and direction.
 */
#include "state.h"
#include "histogram.h"

#define FRAMES 4
#define CONTEXT_STACK 4

struct frame {
	u64 sp, ts, cookie;
	u64 args[3]; /* arg0, arg1, stream; of an output slot, where to read it at return */
};

/* A thread that made a traced call. */
struct thread_calls {
	u32 depth, pid;
	u16 device;
	u16 pushed; /* contexts on the driver's stack, below the current one */
	u16 devices[CONTEXT_STACK];
	u32 pad;
	struct frame frames[FRAMES];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, u32); /* tid */
	__type(value, struct thread_calls);
} calls SEC(".maps");

struct count_key {
	u32 pid;
	u16 device;
	u16 op; /* row of the op table */
};

/* Calls that returned and have no record. */
struct count {
	u64 total; /* ns */
	u64 buckets[BUCKETS];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct count_key);
	__type(value, struct count);
} counts SEC(".maps");

/* Where a new count begins: too large for the stack. Never written. */
struct count no_count;

struct context_key {
	u64 context;
	u32 pid;
	u32 pad;
};

/* Device of a context of the driver. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct context_key);
	__type(value, u32);
} contexts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 8192);
	__uint(key_size, sizeof(u32));
	__uint(value_size, STACK_DEPTH * sizeof(u64));
} stacks SEC(".maps");

#if defined(__TARGET_ARCH_x86)
#define REGISTER_ARGS 6
#define ARG_MASK 7
#define RETURNED(ctx) ((ctx)->ax)
/* The call has pushed the return address, the return has popped it. */
#define ENTRY_SP(ctx) ((ctx)->sp)
#define RETURN_SP(ctx) ((ctx)->sp - 8)
#define STACK_ARG(sp, n) ((sp) + 8 * ((n) - REGISTER_ARGS))
#else
#define REGISTER_ARGS 8
#define ARG_MASK 15
#define RETURNED(ctx) ((ctx)->regs[0])
#define ENTRY_SP(ctx) ((ctx)->sp)
#define RETURN_SP(ctx) ((ctx)->sp)
#define STACK_ARG(sp, n) ((sp) + 8 * ((n) - REGISTER_ARGS - 1))
#endif

/* Integer arguments of the call being entered: those in registers from [1] on, and where the others are. */
struct args {
	u64 reg[ARG_MASK + 1];
	u64 sp;
};

static __always_inline u64 arg(const struct args *a, u32 n)
{
	u64 v = 0;

	if (n <= REGISTER_ARGS)
		return a->reg[n & ARG_MASK];
	bpf_probe_read_user(&v, sizeof(v), (void *)STACK_ARG(a->sp, n));
	return v;
}

static __always_inline u64 capped(u64 v, u64 cap)
{
	return v < cap ? v : cap;
}

/* Blocks of the grid << 16 | threads of a block, each at most what fits. */
static __always_inline u64 pack_dims(u64 gx, u64 gy, u64 gz, u64 bx, u64 by, u64 bz)
{
	const u64 most = (1ull << 48) - 1;
	/* Two factors of at most 32 bits fit; the third is tried by division. */
	u64 blocks = (u64)(u32)gx * (u32)gy, threads = (u64)(u32)bx * (u32)by;

	blocks = (u32)gz && blocks > most / (u32)gz ? most : blocks * (u32)gz;
	threads = (u32)bz && threads > 0xffff / (u32)bz ? 0xffff : threads * (u32)bz;
	return blocks << 16 | threads;
}

/* Slots that are rare or long. */
static __noinline u64 slot_slow(u32 kind, u32 n, u32 k, const struct args *a)
{
	u64 v[3] = {};

	switch (kind) {
	case SLOT_MUL:
		return arg(a, n) * arg(a, n + 1);
	case SLOT_SHL:
		return arg(a, n) << k;
	case SLOT_PAIR:
		return arg(a, n) << 32 | (u32)arg(a, k);
	case SLOT_NCCL_BYTES: {
		u32 type = arg(a, n + 1);

		return arg(a, n) * (type < NCCL_TYPES ? nccl_type_bytes[type & (NCCL_TYPES - 1)] : 1);
	}
	case SLOT_DIM3: {
		/* A dim3 is two eightbytes: x and y, z. */
		u64 gxy = arg(a, n), gz = arg(a, n + 1), bxy = arg(a, n + 2), bz = arg(a, n + 3);

		return pack_dims(gxy, gxy >> 32, gz, bxy, bxy >> 32, bz);
	}
	case SLOT_DIMS:
		return pack_dims(arg(a, n), arg(a, n + 1), arg(a, n + 2), arg(a, n + 3), arg(a, n + 4), arg(a, n + 5));
	case SLOT_CONFIG_DIMS:
		if (bpf_probe_read_user(v, sizeof(v), (void *)arg(a, n)))
			return 0;
		return pack_dims(v[0], v[0] >> 32, v[1], v[1] >> 32, v[2], v[2] >> 32);
	case SLOT_AT:
		bpf_probe_read_user(v, 8, (void *)(arg(a, n) + 8 * k));
		return v[0];
	case SLOT_AT_MUL:
		bpf_probe_read_user(v, 16, (void *)(arg(a, n) + 8 * k));
		return v[0] * v[1];
	}
	return 0;
}

static __always_inline u64 slot(u32 code, const struct args *a)
{
	u32 kind = code & 0xff, n = code >> 8 & 15, k = code >> 12 & 15;

	if (kind == SLOT_ZERO)
		return 0;
	if (kind == SLOT_P || kind == SLOT_OUT)
		return arg(a, n);
	if (kind == SLOT_INT)
		return (u32)arg(a, n);
	if (kind == SLOT_CONST)
		return n;
	return slot_slow(kind, n, k, a);
}

static __always_inline const struct op *op_of(const struct frame *f)
{
	u32 row = f->cookie & 0xffff;

	return &ops[row < OPS ? row : 0];
}

/* Counts a call that has no record. */
static __noinline void count_call(u32 pid, u16 device, u16 op, u64 dur)
{
	struct count_key key = { .pid = pid, .device = device, .op = op };
	struct count *count = bpf_map_lookup_elem(&counts, &key);
	u32 b = bucket(dur);

	if (!count) {
		bpf_map_update_elem(&counts, &key, &no_count, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&counts, &key);
		if (!count) {
			lost(LOSS_MAP_FULL);
			return;
		}
	}
	__sync_fetch_and_add(&count->total, dur);
	if (b < BUCKETS)
		__sync_fetch_and_add(&count->buckets[b], 1);
}

/* False when there was no place for it. */
static __always_inline bool send_call(struct thread_calls *t, u32 i, u64 id, u64 now, u16 flags, s32 ret, u32 stack)
{
	struct frame *f = &t->frames[i & (FRAMES - 1)];
	const struct op *op = op_of(f);
	struct record *r = reserve(KIND_CALL, id);

	if (!r)
		return 0;
	r->source = op->source;
	r->op = op->number;
	r->flags = flags;
	r->device = t->device;
	r->ts = f->ts;
	r->dur = now - f->ts;
	r->ret = ret;
	r->stack_id = stack;
	r->arg0 = f->args[0];
	r->arg1 = f->args[1];
	r->stream = f->args[2];
	send(r);
	return 1;
}

/* Output slots hold an address still, which is not what the record says. */
static __always_inline void read_outputs(struct frame *f, bool succeeded)
{
	u64 v;

	if ((f->cookie >> 16 & 0xff) == SLOT_OUT) {
		v = 0;
		if (succeeded)
			bpf_probe_read_user(&v, sizeof(v), (void *)f->args[0]);
		f->args[0] = v;
	}
	if ((f->cookie >> 32 & 0xff) == SLOT_OUT) {
		v = 0;
		if (succeeded)
			bpf_probe_read_user(&v, sizeof(v), (void *)f->args[1]);
		f->args[1] = v;
	}
}

static __always_inline u16 nesting(const struct thread_calls *t, u32 i)
{
	if (i == 0)
		return 0;
	return FLAG_NESTED | (op_of(&t->frames[(i - 1) & (FRAMES - 1)])->source == SOURCE_NCCL ? FLAG_NESTED_IN_LIBRARY : 0);
}

/*
 * Gives up the open calls at or below `sp`, and the new depth. Of those below it the return was never seen; one at it was
 * left by a jump, and goes on as the call that is now entered.
 */
static __noinline u32 unwind(struct thread_calls *t, u64 sp, u64 now, u64 id)
{
	u32 depth = t->depth;

	for (int i = FRAMES - 1; i >= 0; i--) {
		struct frame *f = &t->frames[i];

		if (i >= depth)
			continue;
		if (f->sp > sp)
			break;
		if (f->sp < sp) {
			read_outputs(f, 0);
			send_call(t, i, id, now, nesting(t, i) | FLAG_NO_RETURN, 0, 0);
			lost(LOSS_NO_RETURN);
		}
		depth = i;
	}
	t->depth = depth;
	return depth;
}

/* The thread's first traced call; null when its process is none of ours. */
static __noinline struct thread_calls *first_call(u64 id)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	u32 tid = id, tgid = id >> 32;
	struct process *process = find_process(tgid);
	struct thread_calls new = { .pid = tgid, .device = DEVICE_UNKNOWN };
	bool from_start;

	if (!process && settings.listed)
		return 0;
	if (process)
		from_start = process->flags & PROCESS_FROM_START;
	else
		from_start = BPF_CORE_READ(task, group_leader, start_boottime) > settings.loaded_at;
	if (!process && watch_process(tgid, from_start ? PROCESS_FROM_START : 0)) {
		struct record *r = reserve_host(KIND_PROCESS, SOURCE_HOST, PROCESS_SEEN, (u64)tgid << 32 | tgid);

		if (r) {
			r->ts = bpf_ktime_get_boot_ns();
			send(r);
		}
	}
	if (from_start)
		new.device = 0;
	if (bpf_map_update_elem(&calls, &tid, &new, BPF_NOEXIST))
		lost(LOSS_MAP_FULL);
	else
		send_name(id, bpf_ktime_get_boot_ns(), task->comm);
	return bpf_map_lookup_elem(&calls, &tid);
}

SEC("uprobe.multi")
int call_entry(struct probe_regs *ctx)
{
	u64 id = current_id(), sp = ENTRY_SP(ctx), cookie;
	u32 tid = id, depth;
	struct thread_calls *t = bpf_map_lookup_elem(&calls, &tid);
	struct args a = {};
	struct frame *f;

	if (!t) {
		t = first_call(id);
		if (!t)
			return 0;
	}
	depth = t->depth;
	if (depth)
		depth = unwind(t, sp, bpf_ktime_get_boot_ns(), id);
	if (depth >= FRAMES)
		return 0;
	cookie = bpf_get_attach_cookie(ctx);
	a.sp = sp;
#if defined(__TARGET_ARCH_x86)
	a.reg[1] = ctx->di;
	a.reg[2] = ctx->si;
	a.reg[3] = ctx->dx;
	a.reg[4] = ctx->cx;
	a.reg[5] = ctx->r8;
	a.reg[6] = ctx->r9;
#else
	a.reg[1] = ctx->regs[0];
	a.reg[2] = ctx->regs[1];
	a.reg[3] = ctx->regs[2];
	a.reg[4] = ctx->regs[3];
	a.reg[5] = ctx->regs[4];
	a.reg[6] = ctx->regs[5];
	a.reg[7] = ctx->regs[6];
	a.reg[8] = ctx->regs[7];
#endif
	f = &t->frames[depth & (FRAMES - 1)];
	f->sp = sp;
	f->cookie = cookie;
	f->args[0] = slot(cookie >> 16 & 0xffff, &a);
	f->args[1] = slot(cookie >> 32 & 0xffff, &a);
	f->args[2] = slot(cookie >> 48, &a);
	t->depth = depth + 1;
	f->ts = bpf_ktime_get_boot_ns();
	return 0;
}

/* What a call that succeeded says about the thread's current device. */
static __noinline void follow_device(struct thread_calls *t, struct frame *f, u32 effect, u32 pid)
{
	struct context_key key = { .context = f->args[0], .pid = pid };
	u32 device = f->args[0], *known;

	switch (effect) {
	case EFFECT_SET_DEVICE:
		t->device = device;
		return;
	case EFFECT_CONTEXT_MADE:
	case EFFECT_CONTEXT_KNOWN:
		key.context = f->args[1];
		bpf_map_update_elem(&contexts, &key, &device, BPF_ANY);
		if (effect == EFFECT_CONTEXT_KNOWN)
			return;
		break;
	case EFFECT_CONTEXT_PUSHED:
	case EFFECT_CONTEXT_SET:
		known = bpf_map_lookup_elem(&contexts, &key);
		device = known ? *known : DEVICE_UNKNOWN;
		/* A null context is none: the next call that needs one gets the primary context of device 0. */
		if (!key.context)
			return;
		break;
	case EFFECT_CONTEXT_POPPED:
		if (t->pushed) {
			t->pushed--;
			t->device = t->devices[t->pushed & (CONTEXT_STACK - 1)];
		}
		return;
	default:
		return;
	}
	/* Made and pushed ones go on top of the current one; a stack deeper than ours forgets its bottom. */
	if (effect != EFFECT_CONTEXT_SET) {
		t->devices[t->pushed & (CONTEXT_STACK - 1)] = t->device;
		t->pushed++;
	}
	t->device = device;
}

/* The open call that was made at `sp`; those above it have not returned. FRAMES when there is none. */
static __noinline u32 find_frame(struct thread_calls *t, u64 sp)
{
	u32 found = FRAMES;

	for (u32 i = 0; i < FRAMES; i++)
		if (i < t->depth && t->frames[i].sp == sp)
			found = i;
	return found;
}

SEC("uretprobe.multi")
int call_return(struct probe_regs *ctx)
{
	u64 now = bpf_ktime_get_boot_ns(), id = current_id(), sp = RETURN_SP(ctx), dur;
	u32 tid = id, i, stack = 0;
	struct thread_calls *t = bpf_map_lookup_elem(&calls, &tid);
	const struct op *op;
	struct frame *f;
	s32 ret = RETURNED(ctx);
	bool counts_alone;
	u16 flags;

	if (!t || !t->depth)
		return 0;
	i = (t->depth - 1) & (FRAMES - 1);
	if (t->frames[i].sp != sp) {
		i = find_frame(t, sp);
		if (i >= FRAMES)
			return 0;
	}
	t->depth = i;
	f = &t->frames[i & (FRAMES - 1)];
	op = op_of(f);
	dur = now - f->ts;
	flags = nesting(t, i);
	read_outputs(f, ret == 0);
	if (op->effect && ret == 0)
		follow_device(t, f, op->effect, id >> 32);
	/* What is nested in a call of its own layer is part of that one. */
	counts_alone = !flags || flags & FLAG_NESTED_IN_LIBRARY;
	if (flags && dur < NESTED_MIN_NANOS) {
		if (counts_alone)
			count_call(id >> 32, t->device, f->cookie & 0xffff, dur);
		return 0;
	}
	if (op->wait && settings.stack_min && dur >= settings.stack_min) {
		long got = bpf_get_stackid(ctx, &stacks, BPF_F_USER_STACK);

		stack = got < 0 ? 0 : got + 1;
	}
	if (!send_call(t, i, id, now, flags, ret, stack) && counts_alone)
		count_call(id >> 32, t->device, f->cookie & 0xffff, dur);
	return 0;
}

/* A thread that ends leaves its open calls. */
static __always_inline void end_calls(u32 tid, u64 id, u64 now)
{
	struct thread_calls *t = bpf_map_lookup_elem(&calls, &tid);

	if (!t)
		return;
	if (t->depth) {
		read_outputs(&t->frames[0], 0);
		send_call(t, 0, id, now, FLAG_NO_RETURN, 0, 0);
		lost(LOSS_NO_RETURN);
	}
	bpf_map_delete_elem(&calls, &tid);
}
