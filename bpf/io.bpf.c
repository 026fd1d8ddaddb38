// SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
/*
 * What threads wait for outside the scheduler: block requests, reclaim and compaction, the OOM killer; TCP retransmits.
 *
 * Block: block_io_start runs in the task that submits, block_rq_complete in an interrupt of whoever runs, so that the
 * first says who and when, the second how much and with what end. Requests of watched processes are recorded, and those of
 * kernel threads while anybody is watched: a write is often issued by a worker. An I/O quota is not seen here: it holds
 * requests back before they exist.
 * Before 6.5 there is no block_io_start, and user space loads block_bio_queue and block_split instead, where a bio is
 * submitted or has its front split off: a request is known by its first bio. One that was merged in front of another's
 * takes its record over.
 *
 * Reclaim is mostly running, not blocked: one record for each begin and end on a watched thread.
 *
 * Loss: `requests` full is LOSS_MAP_FULL. A request whose start was not seen has no record.
 *
 * Oldest kernel: 5.15.
 */
#include "state.h"
#include <bpf/bpf_tracing.h>

struct request_start {
	u64 id, at, inode;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, u64); /* address of the request */
	__type(value, struct request_start);
} requests SEC(".maps");

/* The same of bios, of which many end as a part of a request that is known by another. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, u64); /* address of the bio */
	__type(value, struct request_start);
} bios SEC(".maps");

/* The file of the page cache that a bio is for; 0 for direct I/O and anonymous memory. */
static __always_inline u64 inode_of(struct bio *bio)
{
	struct address_space *mapping = BPF_CORE_READ(bio, bi_io_vec, bv_page, mapping);

	if (!mapping || (u64)mapping & 3)
		return 0;
	return BPF_CORE_READ(mapping, host, i_ino);
}

/* Current submits; false when nobody wants to know. */
static __always_inline bool begin_request(struct request_start *start, struct bio *bio)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();

	start->id = thread_id(task);
	if (!settings.all_block_io && !(task->flags & (PF_KTHREAD | PF_IO_WORKER)) && !find_process(start->id >> 32))
		return 0;
	start->at = bpf_ktime_get_boot_ns();
	start->inode = inode_of(bio);
	return 1;
}

SEC("tp_btf/block_io_start")
int BPF_PROG(block_io_start, struct request *rq)
{
	u64 key = (u64)rq;
	struct request_start start;

	if (begin_request(&start, rq->bio) && bpf_map_update_elem(&requests, &key, &start, BPF_ANY))
		lost(LOSS_MAP_FULL);
	return 0;
}

static __always_inline int begin_bio(struct bio *bio)
{
	u64 key = (u64)bio;
	struct request_start start;

	if (begin_request(&start, bio))
		bpf_map_update_elem(&bios, &key, &start, BPF_ANY);
	return 0;
}

SEC("tp_btf/block_bio_queue")
int BPF_PROG(block_bio_queue, struct bio *bio)
{
	return begin_bio(bio);
}

SEC("tp_btf/block_split")
int BPF_PROG(block_split, struct bio *front)
{
	return begin_bio(front);
}

SEC("tp_btf/block_rq_complete")
int BPF_PROG(block_rq_complete, struct request *rq, int error, u32 bytes)
{
	u64 key = settings.has & HAS_IO_START ? (u64)rq : (u64)rq->bio;
	struct request_start *start;
	struct gendisk *disk;
	struct record *r;
	u32 op;

	if (settings.has & HAS_IO_START)
		start = bpf_map_lookup_elem(&requests, &key);
	else
		start = bpf_map_lookup_elem(&bios, &key);
	if (!start)
		return 0;
	op = rq->cmd_flags & 0xff;
	r = reserve_host(KIND_BLOCK_IO, SOURCE_IO, op == 0 ? 0 : op == 1 ? 1 : op == 2 ? 3 : 2, start->id);
	if (r) {
		disk = BPF_CORE_READ(rq, q, disk);
		r->ts = start->at;
		r->dur = bpf_ktime_get_boot_ns() - start->at;
		r->ret = (u8)error;
		r->stack_id = disk ? BPF_CORE_READ(disk, major) << 20 | BPF_CORE_READ(disk, first_minor) : 0;
		r->arg0 = bytes;
		r->arg1 = rq->__sector;
		r->stream = start->inode;
		send(r);
	}
	/* A request may complete in parts. */
	if (rq->__data_len > bytes) {
		start->at = bpf_ktime_get_boot_ns();
		return 0;
	}
	if (settings.has & HAS_IO_START)
		bpf_map_delete_elem(&requests, &key);
	else
		bpf_map_delete_elem(&bios, &key);
	return 0;
}

/* ---- memory ---- */

/* Where threads are that reclaim or compact. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, u64); /* tgid << 32 | tid */
	__type(value, u64); /* since */
} reclaiming SEC(".maps");

static __always_inline int begin_reclaim(void)
{
	u64 id = current_id(), now;

	if (!find_process(id >> 32))
		return 0;
	now = bpf_ktime_get_boot_ns();
	bpf_map_update_elem(&reclaiming, &id, &now, BPF_ANY);
	return 0;
}

static __always_inline int end_reclaim(u16 flags, u64 pages)
{
	u64 id = current_id(), *since;
	struct record *r;

	if (!maybe_watched(id >> 32))
		return 0;
	since = bpf_map_lookup_elem(&reclaiming, &id);
	if (!since)
		return 0;
	r = reserve_host(KIND_RECLAIM, SOURCE_HOST, 0, id);
	if (r) {
		r->flags = flags;
		r->ts = *since;
		r->dur = bpf_ktime_get_boot_ns() - *since;
		r->arg0 = pages;
		send(r);
	}
	bpf_map_delete_elem(&reclaiming, &id);
	return 0;
}

SEC("tp_btf/mm_vmscan_direct_reclaim_begin")
int BPF_PROG(direct_reclaim_begin)
{
	return begin_reclaim();
}

SEC("tp_btf/mm_vmscan_direct_reclaim_end")
int BPF_PROG(direct_reclaim_end, unsigned long pages)
{
	return end_reclaim(0, pages);
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_begin")
int BPF_PROG(memcg_reclaim_begin)
{
	return begin_reclaim();
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_end")
int BPF_PROG(memcg_reclaim_end, unsigned long pages)
{
	return end_reclaim(RECLAIM_CGROUP, pages);
}

SEC("tp_btf/mm_compaction_begin")
int BPF_PROG(compaction_begin)
{
	return begin_reclaim();
}

SEC("tp_btf/mm_compaction_end")
int BPF_PROG(compaction_end)
{
	return end_reclaim(RECLAIM_COMPACTION, 0);
}

/* Held back so that writing can catch up: blocked inside a reclaim, told at its end. */
SEC("tp_btf/mm_vmscan_throttled")
int BPF_PROG(vmscan_throttled, int nid, int timeout_micros, int delayed_micros)
{
	u64 id = current_id();
	struct record *r;

	if (!find_process(id >> 32) || delayed_micros <= 0)
		return 0;
	r = reserve_host(KIND_RECLAIM, SOURCE_HOST, 0, id);
	if (!r)
		return 0;
	r->flags = RECLAIM_THROTTLED;
	r->dur = (u64)delayed_micros * 1000;
	r->ts = bpf_ktime_get_boot_ns() - r->dur;
	send(r);
	return 0;
}

/* Any victim on the machine: it may be what a watched process waited for. */
SEC("tp_btf/mark_victim")
int mark_victim(u64 *ctx)
{
	struct record *r;
	u32 tgid;

	if (settings.has & HAS_VICTIM_TASK)
		tgid = thread_id(*(struct task_struct *volatile *)&ctx[0]) >> 32;
	else
		tgid = *(volatile u64 *)&ctx[0] | (settings.pid_namespace ? FOREIGN : 0);
	r = reserve_host(KIND_PROCESS, SOURCE_HOST, PROCESS_OOM_KILL, (u64)tgid << 32 | tgid);
	if (!r)
		return 0;
	r->ts = bpf_ktime_get_boot_ns();
	r->arg0 = current_id() >> 32;
	send(r);
	return 0;
}

/* ---- network ---- */

#define AF_INET 2

/* A timer sends again, under any pid: the socket says whose it is. */
SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit, struct sock *sk)
{
	struct file *file = BPF_CORE_READ(sk, sk_socket, file);
	bool inet = sk->__sk_common.skc_family == AF_INET;
	struct record *r = reserve_host(KIND_RETRANSMIT, SOURCE_TCP, 0, 0);

	if (!r)
		return 0;
	r->ts = bpf_ktime_get_boot_ns();
	if (inet)
		r->arg0 = (u64)__builtin_bswap32(sk->__sk_common.skc_rcv_saddr) << 32 |
			  __builtin_bswap32(sk->__sk_common.skc_daddr);
	r->arg1 = (u64)sk->__sk_common.skc_num << 16 | __builtin_bswap16(sk->__sk_common.skc_dport);
	r->stream = file ? BPF_CORE_READ(file, f_inode, i_ino) : 0;
	send(r);
	return 0;
}
