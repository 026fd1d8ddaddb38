/* SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause */
/* Written by `cargo xtask ops` from the record crate; do not edit. */
#ifndef WARPTRACE_OPS_H
#define WARPTRACE_OPS_H

#define KIND_CALL 0x1
#define KIND_OFF_CPU 0x2
#define KIND_SLICE 0x3
#define KIND_BLOCK_IO 0x4
#define KIND_RECLAIM 0x5
#define KIND_PROCESS 0x6
#define KIND_RETRANSMIT 0x9
#define SOURCE_RUNTIME 0x1
#define SOURCE_HOST 0x3
#define SOURCE_DRIVER 0x4
#define SOURCE_IO 0x5
#define SOURCE_TCP 0x6
#define SOURCE_GRAPH 0x8
#define SOURCE_NCCL 0x9
#define FLAG_NESTED 0x1
#define FLAG_NESTED_IN_LIBRARY 0x2
#define FLAG_NO_RETURN 0x4
#define OFFCPU_PREEMPTED 0x1
#define OFFCPU_IOWAIT 0x2
#define OFFCPU_WAKER_INTERRUPT 0x4
#define OFFCPU_WAKER_SYSCALL 0x8
#define OFFCPU_WAKER_KERNEL 0x10
#define OFFCPU_WAKER_SENT 0x20
#define OFFCPU_UNINTERRUPTIBLE 0x40
#define OFFCPU_STOPPED 0x80
#define OFFCPU_TIMED 0x100
#define OFFCPU_POLL_SOCKET 0x200
#define RECLAIM_CGROUP 0x1
#define RECLAIM_THROTTLED 0x2
#define RECLAIM_COMPACTION 0x4
#define PROCESS_FORK 0x1
#define PROCESS_EXEC 0x2
#define PROCESS_EXIT 0x3
#define PROCESS_OOM_KILL 0x4
#define PROCESS_SEEN 0x5
#define PROCESS_NAME 0x6
#define DEVICE_UNKNOWN 0xffff
#define NO_SYSCALL 0xffff
#define SLOT_ZERO 0x0
#define SLOT_CONST 0x1
#define SLOT_P 0x2
#define SLOT_INT 0x3
#define SLOT_OUT 0x4
#define SLOT_MUL 0x5
#define SLOT_SHL 0x6
#define SLOT_NCCL_BYTES 0x7
#define SLOT_DIM3 0x8
#define SLOT_DIMS 0x9
#define SLOT_CONFIG_DIMS 0xa
#define SLOT_AT 0xb
#define SLOT_AT_MUL 0xc
#define SLOT_PAIR 0xd
#define EFFECT_SET_DEVICE 0x1
#define EFFECT_CONTEXT_MADE 0x2
#define EFFECT_CONTEXT_KNOWN 0x3
#define EFFECT_CONTEXT_SET 0x4
#define EFFECT_CONTEXT_PUSHED 0x5
#define EFFECT_CONTEXT_POPPED 0x6
#define NESTED_MIN_NANOS 0x186a0
#define BUCKETS 0x130
#define STACK_DEPTH 0x40
#define OPS 0x92
#define NCCL_TYPES 0x10

struct record {
	__u8 kind, source;
	__u16 op, flags, device;
	__u64 ts, dur;
	__u32 pid, tid;
	__s32 ret;
	__u32 stack_id, seq, cpu;
	__u64 arg0, arg1, stream;
};

struct op {
	__u8 source, wait, effect, pad;
	__u16 number;
};

const __u8 nccl_type_bytes[NCCL_TYPES] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1, 1, 1, 1, 1};

const struct op ops[OPS] = {
	{1, 5, 0, 0, 1}, /* cudaMalloc */
	{1, 5, 0, 0, 2}, /* cudaFree */
	{1, 0, 0, 0, 3}, /* cudaLaunchKernel */
	{1, 4, 0, 0, 4}, /* cudaMemcpy */
	{1, 1, 0, 0, 5}, /* cudaStreamSync */
	{1, 2, 0, 0, 6}, /* cudaDeviceSync */
	{1, 5, 0, 0, 7}, /* cudaMemcpyAsync */
	{1, 5, 0, 0, 8}, /* cudaMallocManaged */
	{1, 4, 0, 0, 9}, /* cudaMemcpy2D */
	{1, 5, 0, 0, 10}, /* cudaMemcpy2DAsync */
	{1, 4, 0, 0, 11}, /* cudaMemcpyPeer */
	{1, 5, 0, 0, 12}, /* cudaMemcpyPeerAsync */
	{1, 0, 0, 0, 32}, /* cudaMallocAsync */
	{1, 0, 0, 0, 33}, /* cudaMallocFromPoolAsync */
	{1, 0, 0, 0, 34}, /* cudaFreeAsync */
	{1, 5, 0, 0, 35}, /* cudaMallocHost */
	{1, 5, 0, 0, 36}, /* cudaHostAlloc */
	{1, 5, 0, 0, 37}, /* cudaFreeHost */
	{1, 5, 0, 0, 38}, /* cudaMallocPitch */
	{1, 5, 0, 0, 39}, /* cudaMalloc3D */
	{1, 5, 0, 0, 40}, /* cudaHostRegister */
	{1, 5, 0, 0, 41}, /* cudaHostUnregister */
	{1, 5, 0, 0, 42}, /* cudaMemset */
	{1, 0, 0, 0, 43}, /* cudaMemsetAsync */
	{1, 5, 0, 0, 44}, /* cudaMemset2D */
	{1, 0, 0, 0, 45}, /* cudaMemset2DAsync */
	{1, 5, 0, 0, 46}, /* cudaMemset3D */
	{1, 0, 0, 0, 47}, /* cudaMemset3DAsync */
	{1, 0, 0, 0, 48}, /* cudaEventRecord */
	{1, 0, 0, 0, 49}, /* cudaEventRecordWithFlags */
	{1, 3, 0, 0, 50}, /* cudaEventSync */
	{1, 0, 0, 0, 51}, /* cudaEventQuery */
	{1, 0, 0, 0, 52}, /* cudaStreamQuery */
	{1, 0, 0, 0, 53}, /* cudaStreamWaitEvent */
	{1, 0, 0, 0, 54}, /* cudaLaunchKernelExC */
	{1, 0, 0, 0, 55}, /* cudaLaunchCooperativeKernel */
	{1, 0, 0, 0, 56}, /* cudaLaunchCooperativeKernelMultiDevice */
	{1, 0, 0, 0, 57}, /* cudaLaunchHostFunc */
	{1, 4, 0, 0, 58}, /* cudaMemcpyToSymbol */
	{1, 4, 0, 0, 59}, /* cudaMemcpyFromSymbol */
	{1, 5, 0, 0, 60}, /* cudaMemcpyToSymbolAsync */
	{1, 5, 0, 0, 61}, /* cudaMemcpyFromSymbolAsync */
	{1, 4, 0, 0, 62}, /* cudaMemcpy3D */
	{1, 5, 0, 0, 63}, /* cudaMemcpy3DAsync */
	{1, 0, 0, 0, 64}, /* cudaMemPrefetchAsync */
	{1, 0, 1, 0, 65}, /* cudaSetDevice */
	{1, 0, 0, 0, 66}, /* cudaInitDevice */
	{1, 2, 0, 0, 67}, /* cudaDeviceReset */
	{1, 0, 0, 0, 68}, /* cudaStreamCreate */
	{1, 0, 0, 0, 69}, /* cudaStreamDestroy */
	{8, 0, 0, 0, 1}, /* graphBeginCapture */
	{8, 0, 0, 0, 2}, /* graphEndCapture */
	{8, 0, 0, 0, 3}, /* graphInstantiate */
	{8, 0, 0, 0, 4}, /* graphLaunch */
	{8, 0, 0, 0, 5}, /* graphDestroy */
	{8, 0, 0, 0, 6}, /* graphExecUpdate */
	{8, 0, 0, 0, 7}, /* graphExecDestroy */
	{4, 0, 0, 0, 1}, /* cuLaunchKernel */
	{4, 4, 0, 0, 2}, /* cuMemcpy */
	{4, 5, 0, 0, 3}, /* cuMemcpyAsync */
	{4, 2, 0, 0, 4}, /* cuCtxSynchronize */
	{4, 5, 0, 0, 5}, /* cuMemAlloc */
	{4, 5, 0, 0, 6}, /* cuMemAllocManaged */
	{4, 0, 0, 0, 32}, /* cuLaunchKernelEx */
	{4, 0, 0, 0, 33}, /* cuLaunchCooperativeKernel */
	{4, 4, 0, 0, 34}, /* cuMemcpyHtoD */
	{4, 4, 0, 0, 35}, /* cuMemcpyDtoH */
	{4, 4, 0, 0, 36}, /* cuMemcpyDtoD */
	{4, 5, 0, 0, 37}, /* cuMemcpyHtoDAsync */
	{4, 5, 0, 0, 38}, /* cuMemcpyDtoHAsync */
	{4, 5, 0, 0, 39}, /* cuMemcpyDtoDAsync */
	{4, 4, 0, 0, 40}, /* cuMemcpyPeer */
	{4, 5, 0, 0, 41}, /* cuMemcpyPeerAsync */
	{4, 4, 0, 0, 42}, /* cuMemcpy2D */
	{4, 5, 0, 0, 43}, /* cuMemcpy2DAsync */
	{4, 4, 0, 0, 44}, /* cuMemcpy3D */
	{4, 5, 0, 0, 45}, /* cuMemcpy3DAsync */
	{4, 5, 0, 0, 46}, /* cuMemFree */
	{4, 0, 0, 0, 47}, /* cuMemAllocAsync */
	{4, 0, 0, 0, 48}, /* cuMemFreeAsync */
	{4, 0, 0, 0, 49}, /* cuMemAllocFromPoolAsync */
	{4, 5, 0, 0, 50}, /* cuMemAllocHost */
	{4, 5, 0, 0, 51}, /* cuMemHostAlloc */
	{4, 5, 0, 0, 52}, /* cuMemFreeHost */
	{4, 5, 0, 0, 53}, /* cuMemAllocPitch */
	{4, 5, 0, 0, 54}, /* cuMemCreate */
	{4, 5, 0, 0, 55}, /* cuMemMap */
	{4, 5, 0, 0, 56}, /* cuMemUnmap */
	{4, 5, 0, 0, 57}, /* cuMemRelease */
	{4, 5, 0, 0, 58}, /* cuMemAddressReserve */
	{4, 5, 0, 0, 59}, /* cuMemAddressFree */
	{4, 5, 0, 0, 60}, /* cuMemSetAccess */
	{4, 5, 0, 0, 61}, /* cuMemsetD8 */
	{4, 5, 0, 0, 62}, /* cuMemsetD16 */
	{4, 5, 0, 0, 63}, /* cuMemsetD32 */
	{4, 0, 0, 0, 64}, /* cuMemsetD8Async */
	{4, 0, 0, 0, 65}, /* cuMemsetD16Async */
	{4, 0, 0, 0, 66}, /* cuMemsetD32Async */
	{4, 1, 0, 0, 67}, /* cuStreamSynchronize */
	{4, 0, 0, 0, 68}, /* cuStreamQuery */
	{4, 0, 0, 0, 69}, /* cuStreamWaitEvent */
	{4, 0, 0, 0, 70}, /* cuEventRecord */
	{4, 0, 0, 0, 71}, /* cuEventRecordWithFlags */
	{4, 3, 0, 0, 72}, /* cuEventSynchronize */
	{4, 0, 0, 0, 73}, /* cuEventQuery */
	{4, 0, 0, 0, 74}, /* cuGraphLaunch */
	{4, 0, 0, 0, 75}, /* cuGraphInstantiate */
	{4, 0, 0, 0, 76}, /* cuStreamBeginCapture */
	{4, 0, 0, 0, 77}, /* cuStreamEndCapture */
	{4, 0, 0, 0, 78}, /* cuStreamCreate */
	{4, 0, 0, 0, 79}, /* cuStreamDestroy */
	{4, 0, 4, 0, 80}, /* cuCtxSetCurrent */
	{4, 0, 5, 0, 81}, /* cuCtxPushCurrent */
	{4, 0, 6, 0, 82}, /* cuCtxPopCurrent */
	{4, 0, 2, 0, 83}, /* cuCtxCreate */
	{4, 0, 2, 0, 84}, /* cuCtxCreate_v3 */
	{4, 0, 2, 0, 85}, /* cuCtxCreate_v4 */
	{4, 0, 3, 0, 86}, /* cuDevicePrimaryCtxRetain */
	{4, 0, 0, 0, 87}, /* cuInit */
	{4, 0, 0, 0, 88}, /* cuModuleLoadData */
	{4, 0, 0, 0, 89}, /* cuLaunchHostFunc */
	{4, 5, 0, 0, 90}, /* cuMemHostRegister */
	{4, 5, 0, 0, 91}, /* cuMemHostUnregister */
	{4, 0, 0, 0, 92}, /* cuMemPrefetchAsync */
	{4, 0, 0, 0, 93}, /* cuLaunchCooperativeKernelMultiDevice */
	{9, 0, 0, 0, 1}, /* ncclCommInitRank */
	{9, 0, 0, 0, 2}, /* ncclCommDestroy */
	{9, 0, 0, 0, 3}, /* ncclAllReduce */
	{9, 0, 0, 0, 4}, /* ncclAllGather */
	{9, 0, 0, 0, 5}, /* ncclReduceScatter */
	{9, 0, 0, 0, 6}, /* ncclBcast */
	{9, 0, 0, 0, 7}, /* ncclSend */
	{9, 0, 0, 0, 8}, /* ncclRecv */
	{9, 0, 0, 0, 9}, /* ncclCommInitAll */
	{9, 0, 0, 0, 32}, /* ncclBroadcast */
	{9, 0, 0, 0, 33}, /* ncclReduce */
	{9, 0, 0, 0, 34}, /* ncclAlltoAll */
	{9, 0, 0, 0, 35}, /* ncclCommInitRankConfig */
	{9, 0, 0, 0, 36}, /* ncclCommInitRankScalable */
	{9, 0, 0, 0, 37}, /* ncclCommSplit */
	{9, 0, 0, 0, 38}, /* ncclCommAbort */
	{9, 0, 0, 0, 39}, /* ncclGroupStart */
	{9, 0, 0, 0, 40}, /* ncclGroupEnd */
	{9, 0, 0, 0, 41}, /* ncclCommFinalize */
	{9, 0, 0, 0, 42}, /* ncclGather */
	{9, 0, 0, 0, 43}, /* ncclScatter */
};

#endif
