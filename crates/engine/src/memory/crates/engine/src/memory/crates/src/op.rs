//! The op table: every traced entry point, in which library, under which symbols, and what its arguments mean.
//!
//! One row is one *op*; its symbols are variants of one call (`_ptsz` and `_ptds` are the per-thread default stream
//! builds of nvcc, `_v2` a later ABI of the driver). `cargo xtask ops` writes the kernel's list from this table; the
//! preload library's interposers are made from it; numbers below 32 are those that existing traces of this kind store,
//! ours begin at 32. Signatures: CUDA Runtime and Driver API references 12.x, NCCL 2.28 `nccl.h`.

/// The layer of an event, with the numbers that existing traces use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Source {
    /// CUDA runtime API (`libcudart`).
    Runtime = 1,
    /// The kernel: scheduler, reclaim, process life.
    Host = 3,
    /// CUDA driver API (`libcuda`).
    Driver = 4,
    /// Block I/O.
    Io = 5,
    /// TCP.
    Tcp = 6,
    /// CUDA graphs, by the runtime API.
    Graph = 8,
    /// NCCL.
    Nccl = 9,
}

impl Source {
    pub const fn from_u8(v: u8) -> Option<Source> {
        Some(match v {
            1 => Source::Runtime,
            3 => Source::Host,
            4 => Source::Driver,
            5 => Source::Io,
            6 => Source::Tcp,
            8 => Source::Graph,
            9 => Source::Nccl,
            _ => return None,
        })
    }

    /// The name of the layer in views and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Source::Runtime => "cuda",
            Source::Host => "host",
            Source::Driver => "driver",
            Source::Io => "io",
            Source::Tcp => "tcp",
            Source::Graph => "cuda_graph",
            Source::Nccl => "nccl",
        }
    }

    /// The library whose symbols the ops of this source are, by the stem of its file name.
    pub const fn library(self) -> Option<&'static str> {
        match self {
            Source::Runtime | Source::Graph => Some("libcudart"),
            Source::Driver => Some("libcuda"),
            Source::Nccl => Some("libnccl"),
            Source::Host | Source::Io | Source::Tcp => None,
        }
    }
}

/// What kind of work a call is; decides its category in a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    Launch = 1,
    GraphLaunch = 2,
    Copy = 3,
    Memset = 4,
    /// Device or managed memory is taken or given back; pinned host memory too.
    Allocator = 5,
    /// Waits for the device and does nothing else.
    Sync = 6,
    /// Asks whether work is done; never waits.
    Query = 7,
    /// Events, streams, contexts, captures: bookkeeping of little cost.
    Control = 8,
    /// A collective, a send or a receive of NCCL.
    Collective = 9,
    /// Making or ending a communicator.
    Communicator = 10,
    /// Initialisation: contexts, modules, graph instantiation.
    Init = 11,
}

/// For what a call can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Wait {
    /// Never, by its contract. A launch still waits when the launch queue is full: the engine tells it by its length.
    Never = 0,
    /// For all work of one stream; ends a unit.
    Stream = 1,
    /// For all work of the context; ends a unit.
    Device = 2,
    /// For the work before one event; ends a unit.
    Event = 3,
    /// A synchronous copy: ends a unit when it brings data to the host.
    Copy = 4,
    /// It may wait (pageable copies, allocator calls that synchronise the device), and ends no unit.
    Maybe = 5,
}

/// Where a slot of the record comes from. `P(n)` counts integer arguments from 1 by the C ABI of the platform: a `dim3`
/// by value takes two of them on x86-64 and aarch64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    Zero,
    /// The constant.
    Const(u8),
    /// `P(n)`.
    P(u8),
    /// `P(n)`, its low 32 bits.
    Int(u8),
    /// `*(u64 *)P(n)` at return, if the call returned 0; else 0.
    Out(u8),
    /// `P(n) × P(n + 1)`.
    Mul(u8),
    /// `P(n) << k`.
    Shl(u8, u8),
    /// `P(n)` elements of the NCCL data type `P(n + 1)`, in bytes.
    NcclBytes(u8),
    /// Grid and block of a launch whose two `dim3` begin at `P(n)`, packed by [`pack_dims`].
    Dim3(u8),
    /// Grid and block of six integers from `P(n)` on, packed.
    Dims(u8),
    /// Grid and block from the launch configuration at `P(n)` (six u32 at its begin), packed.
    ConfigDims(u8),
    /// `*(u64 *)(P(n) + 8 × k)`, read at entry.
    At(u8, u8),
    /// `*(u64 *)(P(n) + 8 × k) × *(u64 *)(P(n) + 8 × (k + 1))`, read at entry.
    AtMul(u8, u8),
    /// `P(n) << 32 | P(k)`, low halves.
    Pair(u8, u8),
}

impl Slot {
    /// Sixteen bits for a probe's cookie: kind in the low 8, `n` in the next 4, `k` in the last 4.
    pub const fn encode(self) -> u16 {
        let (kind, n, k) = match self {
            Slot::Zero => (0, 0, 0),
            Slot::Const(c) => (1, c, 0),
            Slot::P(n) => (2, n, 0),
            Slot::Int(n) => (3, n, 0),
            Slot::Out(n) => (4, n, 0),
            Slot::Mul(n) => (5, n, 0),
            Slot::Shl(n, k) => (6, n, k),
            Slot::NcclBytes(n) => (7, n, 0),
            Slot::Dim3(n) => (8, n, 0),
            Slot::Dims(n) => (9, n, 0),
            Slot::ConfigDims(n) => (10, n, 0),
            Slot::At(n, k) => (11, n, k),
            Slot::AtMul(n, k) => (12, n, k),
            Slot::Pair(n, k) => (13, n, k),
        };
        kind | ((n as u16) << 8) | ((k as u16) << 12)
    }
}

/// Blocks of the grid (saturating at 2^48 − 1) and threads of a block (saturating at 2^16 − 1) in one word.
pub const fn pack_dims(grid: [u32; 3], block: [u32; 3]) -> u64 {
    let blocks = (grid[0] as u64)
        .saturating_mul(grid[1] as u64)
        .saturating_mul(grid[2] as u64);
    let threads = (block[0] as u64)
        .saturating_mul(block[1] as u64)
        .saturating_mul(block[2] as u64);
    let blocks = if blocks < (1 << 48) {
        blocks
    } else {
        (1 << 48) - 1
    };
    let threads = if threads < (1 << 16) {
        threads
    } else {
        (1 << 16) - 1
    };
    blocks << 16 | threads
}

/// The blocks and the threads per block that [`pack_dims`] put in `word`.
pub const fn unpack_dims(word: u64) -> (u64, u64) {
    (word >> 16, word & 0xffff)
}

/// Bytes of an element of NCCL's data type `dtype` (`ncclDataType_t`); 1 for one that is unknown.
pub const fn nccl_dtype_bytes(dtype: u32) -> u64 {
    match dtype {
        6 | 9 => 2,
        2 | 3 | 7 => 4,
        4 | 5 | 8 => 8,
        _ => 1,
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Op {
    pub source: Source,
    /// Stored in records; unique in its source.
    pub number: u16,
    pub name: &'static str,
    /// Every symbol that is this op. Those that a library has are all attached, once an address.
    pub symbols: &'static [&'static str],
    pub class: Class,
    pub wait: Wait,
    /// Number of integer arguments, by-value structures counted in eightbytes as x86-64 passes them.
    pub params: u8,
    pub arg0: Slot,
    pub arg1: Slot,
    pub stream: Slot,
    /// Which of the two arguments is a size in bytes.
    pub bytes: Bytes,
}

/// Where the bytes that a call moves or takes are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bytes {
    None,
    Arg0,
}

/// Index of a row of [`OPS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(u16);

impl OpId {
    /// The row with this source and number. Cost: a table look-up.
    pub fn find(source: Source, number: u16) -> Option<OpId> {
        let row = *BY_NUMBER.get(source as usize)?.get(number as usize)?;
        (row != u16::MAX).then_some(OpId(row))
    }

    /// The row at `index` of [`OPS`].
    pub fn from_index(index: usize) -> Option<OpId> {
        (index < OPS.len()).then_some(OpId(index as u16))
    }

    /// The op called `name` (as in [`Op::name`]) in any source, case-sensitively.
    pub fn by_name(name: &str) -> Option<OpId> {
        OPS.iter()
            .position(|op| op.name == name)
            .map(|i| OpId(i as u16))
    }

    pub const fn index(self) -> usize {
        self.0 as usize
    }

    pub fn get(self) -> &'static Op {
        &OPS[self.0 as usize]
    }

    pub fn name(self) -> &'static str {
        self.get().name
    }
}

const MAX_NUMBER: usize = 128;

static BY_NUMBER: [[u16; MAX_NUMBER]; 10] = {
    let mut table = [[u16::MAX; MAX_NUMBER]; 10];
    let mut i = 0;
    while i < OPS.len() {
        let cell = &mut table[OPS[i].source as usize][OPS[i].number as usize];
        assert!(*cell == u16::MAX, "two ops of one source have one number");
        *cell = i as u16;
        i += 1;
    }
    table
};

macro_rules! ops {
    ($($source:ident $number:literal $name:literal [$($symbol:literal)+] $class:ident $wait:ident $params:literal ($arg0:expr, $arg1:expr, $stream:expr) $bytes:ident;)*) => {
        /// Every op.
        pub static OPS: &[Op] = {
            use Slot::*;
            &[$(Op {
                source: Source::$source,
                number: $number,
                name: $name,
                symbols: &[$($symbol),+],
                class: Class::$class,
                wait: Wait::$wait,
                params: $params,
                arg0: $arg0,
                arg1: $arg1,
                stream: $stream,
                bytes: Bytes::$bytes,
            }),*]
        };
    };
}

// Columns: source, number, name, symbols, class, wait, parameters, (arg0, arg1, stream), where the bytes are.
ops! {
    Runtime 1 "cudaMalloc" ["cudaMalloc"] Allocator Maybe 2 (P(2), Out(1), Zero) Arg0;
    Runtime 2 "cudaFree" ["cudaFree"] Allocator Maybe 1 (P(1), Zero, Zero) None;
    Runtime 3 "cudaLaunchKernel" ["cudaLaunchKernel" "cudaLaunchKernel_ptsz"] Launch Never 8 (P(1), Dim3(2), P(8)) None;
    Runtime 4 "cudaMemcpy" ["cudaMemcpy" "cudaMemcpy_ptds"] Copy Copy 4 (P(3), Int(4), Zero) Arg0;
    Runtime 5 "cudaStreamSync" ["cudaStreamSynchronize" "cudaStreamSynchronize_ptsz"] Sync Stream 1 (Zero, Zero, P(1)) None;
    Runtime 6 "cudaDeviceSync" ["cudaDeviceSynchronize" "cudaThreadSynchronize"] Sync Device 0 (Zero, Zero, Zero) None;
    Runtime 7 "cudaMemcpyAsync" ["cudaMemcpyAsync" "cudaMemcpyAsync_ptsz"] Copy Maybe 5 (P(3), Int(4), P(5)) Arg0;
    Runtime 8 "cudaMallocManaged" ["cudaMallocManaged"] Allocator Maybe 3 (P(2), Out(1), Zero) Arg0;
    Runtime 9 "cudaMemcpy2D" ["cudaMemcpy2D" "cudaMemcpy2D_ptds"] Copy Copy 7 (Mul(5), Int(7), Zero) Arg0;
    Runtime 10 "cudaMemcpy2DAsync" ["cudaMemcpy2DAsync" "cudaMemcpy2DAsync_ptsz"] Copy Maybe 8 (Mul(5), Int(7), P(8)) Arg0;
    Runtime 11 "cudaMemcpyPeer" ["cudaMemcpyPeer"] Copy Copy 5 (P(5), Const(3), Zero) Arg0;
    Runtime 12 "cudaMemcpyPeerAsync" ["cudaMemcpyPeerAsync"] Copy Maybe 6 (P(5), Const(3), P(6)) Arg0;
    Runtime 32 "cudaMallocAsync" ["cudaMallocAsync" "cudaMallocAsync_ptsz"] Allocator Never 3 (P(2), Out(1), P(3)) Arg0;
    Runtime 33 "cudaMallocFromPoolAsync" ["cudaMallocFromPoolAsync" "cudaMallocFromPoolAsync_ptsz"] Allocator Never 4 (P(2), Out(1), P(4)) Arg0;
    Runtime 34 "cudaFreeAsync" ["cudaFreeAsync" "cudaFreeAsync_ptsz"] Allocator Never 2 (P(1), Zero, P(2)) None;
    Runtime 35 "cudaMallocHost" ["cudaMallocHost"] Allocator Maybe 2 (P(2), Out(1), Zero) Arg0;
    Runtime 36 "cudaHostAlloc" ["cudaHostAlloc"] Allocator Maybe 3 (P(2), Out(1), Zero) Arg0;
    Runtime 37 "cudaFreeHost" ["cudaFreeHost"] Allocator Maybe 1 (P(1), Zero, Zero) None;
    Runtime 38 "cudaMallocPitch" ["cudaMallocPitch"] Allocator Maybe 4 (Mul(3), Out(1), Zero) Arg0;
    Runtime 39 "cudaMalloc3D" ["cudaMalloc3D"] Allocator Maybe 4 (Zero, Out(1), Zero) None;
    Runtime 40 "cudaHostRegister" ["cudaHostRegister"] Allocator Maybe 3 (P(2), P(1), Zero) Arg0;
    Runtime 41 "cudaHostUnregister" ["cudaHostUnregister"] Allocator Maybe 1 (P(1), Zero, Zero) None;
    Runtime 42 "cudaMemset" ["cudaMemset" "cudaMemset_ptds"] Memset Maybe 3 (P(3), P(1), Zero) Arg0;
    Runtime 43 "cudaMemsetAsync" ["cudaMemsetAsync" "cudaMemsetAsync_ptsz"] Memset Never 4 (P(3), P(1), P(4)) Arg0;
    Runtime 44 "cudaMemset2D" ["cudaMemset2D" "cudaMemset2D_ptds"] Memset Maybe 5 (Mul(4), P(1), Zero) Arg0;
    Runtime 45 "cudaMemset2DAsync" ["cudaMemset2DAsync" "cudaMemset2DAsync_ptsz"] Memset Never 6 (Mul(4), P(1), P(6)) Arg0;
    Runtime 46 "cudaMemset3D" ["cudaMemset3D" "cudaMemset3D_ptds"] Memset Maybe 13 (Zero, Zero, Zero) None;
    Runtime 47 "cudaMemset3DAsync" ["cudaMemset3DAsync" "cudaMemset3DAsync_ptsz"] Memset Never 13 (Zero, Zero, P(2)) None;
    Runtime 48 "cudaEventRecord" ["cudaEventRecord" "cudaEventRecord_ptsz"] Control Never 2 (P(1), Zero, P(2)) None;
    Runtime 49 "cudaEventRecordWithFlags" ["cudaEventRecordWithFlags" "cudaEventRecordWithFlags_ptsz"] Control Never 3 (P(1), Int(3), P(2)) None;
    Runtime 50 "cudaEventSync" ["cudaEventSynchronize"] Sync Event 1 (P(1), Zero, Zero) None;
    Runtime 51 "cudaEventQuery" ["cudaEventQuery"] Query Never 1 (P(1), Zero, Zero) None;
    Runtime 52 "cudaStreamQuery" ["cudaStreamQuery" "cudaStreamQuery_ptsz"] Query Never 1 (Zero, Zero, P(1)) None;
    Runtime 53 "cudaStreamWaitEvent" ["cudaStreamWaitEvent" "cudaStreamWaitEvent_ptsz"] Control Never 3 (P(2), Int(3), P(1)) None;
    Runtime 54 "cudaLaunchKernelExC" ["cudaLaunchKernelExC" "cudaLaunchKernelExC_ptsz"] Launch Never 3 (P(2), ConfigDims(1), At(1, 4)) None;
    Runtime 55 "cudaLaunchCooperativeKernel" ["cudaLaunchCooperativeKernel" "cudaLaunchCooperativeKernel_ptsz"] Launch Never 8 (P(1), Dim3(2), P(8)) None;
    Runtime 56 "cudaLaunchCooperativeKernelMultiDevice" ["cudaLaunchCooperativeKernelMultiDevice"] Launch Never 3 (P(1), Int(2), Zero) None;
    Runtime 57 "cudaLaunchHostFunc" ["cudaLaunchHostFunc" "cudaLaunchHostFunc_ptsz"] Control Never 3 (P(2), P(3), P(1)) None;
    Runtime 58 "cudaMemcpyToSymbol" ["cudaMemcpyToSymbol" "cudaMemcpyToSymbol_ptds"] Copy Copy 5 (P(3), Int(5), Zero) Arg0;
    Runtime 59 "cudaMemcpyFromSymbol" ["cudaMemcpyFromSymbol" "cudaMemcpyFromSymbol_ptds"] Copy Copy 5 (P(3), Int(5), Zero) Arg0;
    Runtime 60 "cudaMemcpyToSymbolAsync" ["cudaMemcpyToSymbolAsync" "cudaMemcpyToSymbolAsync_ptsz"] Copy Maybe 6 (P(3), Int(5), P(6)) Arg0;
    Runtime 61 "cudaMemcpyFromSymbolAsync" ["cudaMemcpyFromSymbolAsync" "cudaMemcpyFromSymbolAsync_ptsz"] Copy Maybe 6 (P(3), Int(5), P(6)) Arg0;
    Runtime 62 "cudaMemcpy3D" ["cudaMemcpy3D" "cudaMemcpy3D_ptds"] Copy Copy 1 (Zero, Const(4), Zero) None;
    Runtime 63 "cudaMemcpy3DAsync" ["cudaMemcpy3DAsync" "cudaMemcpy3DAsync_ptsz"] Copy Maybe 2 (Zero, Const(4), P(2)) None;
    Runtime 64 "cudaMemPrefetchAsync" ["cudaMemPrefetchAsync" "cudaMemPrefetchAsync_ptsz"] Copy Never 4 (P(2), Int(3), P(4)) Arg0;
    Runtime 65 "cudaSetDevice" ["cudaSetDevice"] Init Never 1 (Int(1), Zero, Zero) None;
    Runtime 66 "cudaInitDevice" ["cudaInitDevice"] Init Never 3 (Int(1), Int(2), Zero) None;
    Runtime 67 "cudaDeviceReset" ["cudaDeviceReset"] Init Device 0 (Zero, Zero, Zero) None;
    Runtime 68 "cudaStreamCreate" ["cudaStreamCreate" "cudaStreamCreateWithFlags" "cudaStreamCreateWithPriority"] Control Never 3 (Out(1), Zero, Zero) None;
    Runtime 69 "cudaStreamDestroy" ["cudaStreamDestroy"] Control Never 1 (Zero, Zero, P(1)) None;

    Graph 1 "graphBeginCapture" ["cudaStreamBeginCapture" "cudaStreamBeginCapture_ptsz"] Control Never 2 (Int(2), Zero, P(1)) None;
    Graph 2 "graphEndCapture" ["cudaStreamEndCapture" "cudaStreamEndCapture_ptsz"] Control Never 2 (Out(2), Zero, P(1)) None;
    Graph 3 "graphInstantiate" ["cudaGraphInstantiate" "cudaGraphInstantiateWithFlags" "cudaGraphInstantiateWithParams" "cudaGraphInstantiateWithParams_ptsz"] Init Never 5 (Out(1), P(2), Zero) None;
    Graph 4 "graphLaunch" ["cudaGraphLaunch" "cudaGraphLaunch_ptsz"] GraphLaunch Never 2 (P(1), Zero, P(2)) None;
    Graph 5 "graphDestroy" ["cudaGraphDestroy"] Control Never 1 (P(1), Zero, Zero) None;
    Graph 6 "graphExecUpdate" ["cudaGraphExecUpdate"] Control Never 3 (P(1), P(2), Zero) None;
    Graph 7 "graphExecDestroy" ["cudaGraphExecDestroy"] Control Never 1 (P(1), Zero, Zero) None;

    Driver 1 "cuLaunchKernel" ["cuLaunchKernel" "cuLaunchKernel_ptsz"] Launch Never 11 (P(1), Dims(2), P(9)) None;
    Driver 2 "cuMemcpy" ["cuMemcpy" "cuMemcpy_v2" "cuMemcpy_ptds"] Copy Copy 3 (P(3), Const(4), Zero) Arg0;
    Driver 3 "cuMemcpyAsync" ["cuMemcpyAsync" "cuMemcpyAsync_v2" "cuMemcpyAsync_ptsz"] Copy Maybe 4 (P(3), Const(4), P(4)) Arg0;
    Driver 4 "cuCtxSynchronize" ["cuCtxSynchronize" "cuCtxSynchronize_v2" "cuCtxSynchronize_ptsz"] Sync Device 1 (Zero, Zero, Zero) None;
    Driver 5 "cuMemAlloc" ["cuMemAlloc" "cuMemAlloc_v2" "cuMemAlloc_v3"] Allocator Maybe 2 (P(2), Out(1), Zero) Arg0;
    Driver 6 "cuMemAllocManaged" ["cuMemAllocManaged" "cuMemAllocManaged_v2"] Allocator Maybe 3 (P(2), Out(1), Zero) Arg0;
    Driver 32 "cuLaunchKernelEx" ["cuLaunchKernelEx" "cuLaunchKernelEx_ptsz"] Launch Never 4 (P(2), ConfigDims(1), At(1, 4)) None;
    Driver 33 "cuLaunchCooperativeKernel" ["cuLaunchCooperativeKernel" "cuLaunchCooperativeKernel_ptsz"] Launch Never 10 (P(1), Dims(2), P(9)) None;
    Driver 34 "cuMemcpyHtoD" ["cuMemcpyHtoD" "cuMemcpyHtoD_v2" "cuMemcpyHtoD_v2_ptds"] Copy Copy 3 (P(3), Const(1), Zero) Arg0;
    Driver 35 "cuMemcpyDtoH" ["cuMemcpyDtoH" "cuMemcpyDtoH_v2" "cuMemcpyDtoH_v2_ptds"] Copy Copy 3 (P(3), Const(2), Zero) Arg0;
    Driver 36 "cuMemcpyDtoD" ["cuMemcpyDtoD" "cuMemcpyDtoD_v2" "cuMemcpyDtoD_v2_ptds"] Copy Copy 3 (P(3), Const(3), Zero) Arg0;
    Driver 37 "cuMemcpyHtoDAsync" ["cuMemcpyHtoDAsync" "cuMemcpyHtoDAsync_v2" "cuMemcpyHtoDAsync_v2_ptsz"] Copy Maybe 4 (P(3), Const(1), P(4)) Arg0;
    Driver 38 "cuMemcpyDtoHAsync" ["cuMemcpyDtoHAsync" "cuMemcpyDtoHAsync_v2" "cuMemcpyDtoHAsync_v2_ptsz"] Copy Maybe 4 (P(3), Const(2), P(4)) Arg0;
    Driver 39 "cuMemcpyDtoDAsync" ["cuMemcpyDtoDAsync" "cuMemcpyDtoDAsync_v2" "cuMemcpyDtoDAsync_v2_ptsz"] Copy Maybe 4 (P(3), Const(3), P(4)) Arg0;
    Driver 40 "cuMemcpyPeer" ["cuMemcpyPeer" "cuMemcpyPeer_ptds"] Copy Copy 5 (P(5), Const(3), Zero) Arg0;
    Driver 41 "cuMemcpyPeerAsync" ["cuMemcpyPeerAsync" "cuMemcpyPeerAsync_ptsz"] Copy Maybe 6 (P(5), Const(3), P(6)) Arg0;
    Driver 42 "cuMemcpy2D" ["cuMemcpy2D" "cuMemcpy2D_v2" "cuMemcpy2D_v2_ptds" "cuMemcpy2DUnaligned" "cuMemcpy2DUnaligned_v2" "cuMemcpy2DUnaligned_v2_ptds"] Copy Copy 1 (AtMul(1, 14), Const(4), Zero) Arg0;
    Driver 43 "cuMemcpy2DAsync" ["cuMemcpy2DAsync" "cuMemcpy2DAsync_v2" "cuMemcpy2DAsync_v2_ptsz"] Copy Maybe 2 (AtMul(1, 14), Const(4), P(2)) Arg0;
    Driver 44 "cuMemcpy3D" ["cuMemcpy3D" "cuMemcpy3D_v2" "cuMemcpy3D_v2_ptds"] Copy Copy 1 (Zero, Const(4), Zero) None;
    Driver 45 "cuMemcpy3DAsync" ["cuMemcpy3DAsync" "cuMemcpy3DAsync_v2" "cuMemcpy3DAsync_v2_ptsz"] Copy Maybe 2 (Zero, Const(4), P(2)) None;
    Driver 46 "cuMemFree" ["cuMemFree" "cuMemFree_v2"] Allocator Maybe 1 (P(1), Zero, Zero) None;
    Driver 47 "cuMemAllocAsync" ["cuMemAllocAsync" "cuMemAllocAsync_ptsz"] Allocator Never 3 (P(2), Out(1), P(3)) Arg0;
    Driver 48 "cuMemFreeAsync" ["cuMemFreeAsync" "cuMemFreeAsync_ptsz"] Allocator Never 2 (P(1), Zero, P(2)) None;
    Driver 49 "cuMemAllocFromPoolAsync" ["cuMemAllocFromPoolAsync" "cuMemAllocFromPoolAsync_ptsz"] Allocator Never 4 (P(2), Out(1), P(4)) Arg0;
    Driver 50 "cuMemAllocHost" ["cuMemAllocHost" "cuMemAllocHost_v2"] Allocator Maybe 2 (P(2), Out(1), Zero) Arg0;
    Driver 51 "cuMemHostAlloc" ["cuMemHostAlloc"] Allocator Maybe 3 (P(2), Out(1), Zero) Arg0;
    Driver 52 "cuMemFreeHost" ["cuMemFreeHost"] Allocator Maybe 1 (P(1), Zero, Zero) None;
    Driver 53 "cuMemAllocPitch" ["cuMemAllocPitch" "cuMemAllocPitch_v2"] Allocator Maybe 5 (Mul(3), Out(1), Zero) Arg0;
    Driver 54 "cuMemCreate" ["cuMemCreate"] Allocator Maybe 4 (P(2), Out(1), Zero) Arg0;
    Driver 55 "cuMemMap" ["cuMemMap"] Allocator Maybe 5 (P(2), P(1), Zero) Arg0;
    Driver 56 "cuMemUnmap" ["cuMemUnmap"] Allocator Maybe 2 (P(2), P(1), Zero) Arg0;
    Driver 57 "cuMemRelease" ["cuMemRelease"] Allocator Maybe 1 (P(1), Zero, Zero) None;
    Driver 58 "cuMemAddressReserve" ["cuMemAddressReserve"] Allocator Maybe 5 (P(2), Out(1), Zero) Arg0;
    Driver 59 "cuMemAddressFree" ["cuMemAddressFree"] Allocator Maybe 2 (P(2), P(1), Zero) Arg0;
    Driver 60 "cuMemSetAccess" ["cuMemSetAccess"] Allocator Maybe 4 (P(2), P(1), Zero) Arg0;
    Driver 61 "cuMemsetD8" ["cuMemsetD8" "cuMemsetD8_v2" "cuMemsetD8_v2_ptds"] Memset Maybe 3 (P(3), P(1), Zero) Arg0;
    Driver 62 "cuMemsetD16" ["cuMemsetD16" "cuMemsetD16_v2" "cuMemsetD16_v2_ptds"] Memset Maybe 3 (Shl(3, 1), P(1), Zero) Arg0;
    Driver 63 "cuMemsetD32" ["cuMemsetD32" "cuMemsetD32_v2" "cuMemsetD32_v2_ptds"] Memset Maybe 3 (Shl(3, 2), P(1), Zero) Arg0;
    Driver 64 "cuMemsetD8Async" ["cuMemsetD8Async" "cuMemsetD8Async_ptsz"] Memset Never 4 (P(3), P(1), P(4)) Arg0;
    Driver 65 "cuMemsetD16Async" ["cuMemsetD16Async" "cuMemsetD16Async_ptsz"] Memset Never 4 (Shl(3, 1), P(1), P(4)) Arg0;
    Driver 66 "cuMemsetD32Async" ["cuMemsetD32Async" "cuMemsetD32Async_ptsz"] Memset Never 4 (Shl(3, 2), P(1), P(4)) Arg0;
    Driver 67 "cuStreamSynchronize" ["cuStreamSynchronize" "cuStreamSynchronize_ptsz"] Sync Stream 1 (Zero, Zero, P(1)) None;
    Driver 68 "cuStreamQuery" ["cuStreamQuery" "cuStreamQuery_ptsz"] Query Never 1 (Zero, Zero, P(1)) None;
    Driver 69 "cuStreamWaitEvent" ["cuStreamWaitEvent" "cuStreamWaitEvent_ptsz"] Control Never 3 (P(2), Int(3), P(1)) None;
    Driver 70 "cuEventRecord" ["cuEventRecord" "cuEventRecord_ptsz"] Control Never 2 (P(1), Zero, P(2)) None;
    Driver 71 "cuEventRecordWithFlags" ["cuEventRecordWithFlags" "cuEventRecordWithFlags_ptsz"] Control Never 3 (P(1), Int(3), P(2)) None;
    Driver 72 "cuEventSynchronize" ["cuEventSynchronize"] Sync Event 1 (P(1), Zero, Zero) None;
    Driver 73 "cuEventQuery" ["cuEventQuery"] Query Never 1 (P(1), Zero, Zero) None;
    Driver 74 "cuGraphLaunch" ["cuGraphLaunch" "cuGraphLaunch_ptsz"] GraphLaunch Never 2 (P(1), Zero, P(2)) None;
    Driver 75 "cuGraphInstantiate" ["cuGraphInstantiate" "cuGraphInstantiate_v2" "cuGraphInstantiateWithFlags" "cuGraphInstantiateWithParams" "cuGraphInstantiateWithParams_ptsz"] Init Never 5 (Out(1), P(2), Zero) None;
    Driver 76 "cuStreamBeginCapture" ["cuStreamBeginCapture" "cuStreamBeginCapture_ptsz" "cuStreamBeginCapture_v2" "cuStreamBeginCapture_v2_ptsz"] Control Never 2 (Int(2), Zero, P(1)) None;
    Driver 77 "cuStreamEndCapture" ["cuStreamEndCapture" "cuStreamEndCapture_ptsz"] Control Never 2 (Out(2), Zero, P(1)) None;
    Driver 78 "cuStreamCreate" ["cuStreamCreate" "cuStreamCreateWithPriority"] Control Never 3 (Out(1), Zero, Zero) None;
    Driver 79 "cuStreamDestroy" ["cuStreamDestroy" "cuStreamDestroy_v2"] Control Never 1 (Zero, Zero, P(1)) None;
    Driver 80 "cuCtxSetCurrent" ["cuCtxSetCurrent"] Control Never 1 (P(1), Zero, Zero) None;
    Driver 81 "cuCtxPushCurrent" ["cuCtxPushCurrent" "cuCtxPushCurrent_v2"] Control Never 1 (P(1), Zero, Zero) None;
    Driver 82 "cuCtxPopCurrent" ["cuCtxPopCurrent" "cuCtxPopCurrent_v2"] Control Never 1 (Zero, Zero, Zero) None;
    Driver 83 "cuCtxCreate" ["cuCtxCreate" "cuCtxCreate_v2"] Init Never 3 (Int(3), Out(1), Zero) None;
    Driver 84 "cuCtxCreate_v3" ["cuCtxCreate_v3"] Init Never 5 (Int(5), Out(1), Zero) None;
    Driver 85 "cuCtxCreate_v4" ["cuCtxCreate_v4"] Init Never 4 (Int(4), Out(1), Zero) None;
    Driver 86 "cuDevicePrimaryCtxRetain" ["cuDevicePrimaryCtxRetain"] Init Never 2 (Int(2), Out(1), Zero) None;
    Driver 87 "cuInit" ["cuInit"] Init Never 1 (Int(1), Zero, Zero) None;
    Driver 88 "cuModuleLoadData" ["cuModuleLoad" "cuModuleLoadData" "cuModuleLoadDataEx" "cuModuleLoadFatBinary" "cuLibraryLoadData" "cuLibraryLoadFromFile"] Init Never 8 (Zero, Zero, Zero) None;
    Driver 89 "cuLaunchHostFunc" ["cuLaunchHostFunc" "cuLaunchHostFunc_ptsz"] Control Never 3 (P(2), P(3), P(1)) None;
    Driver 90 "cuMemHostRegister" ["cuMemHostRegister" "cuMemHostRegister_v2"] Allocator Maybe 3 (P(2), P(1), Zero) Arg0;
    Driver 91 "cuMemHostUnregister" ["cuMemHostUnregister"] Allocator Maybe 1 (P(1), Zero, Zero) None;
    Driver 92 "cuMemPrefetchAsync" ["cuMemPrefetchAsync" "cuMemPrefetchAsync_ptsz"] Copy Never 4 (P(2), Int(3), P(4)) Arg0;
    Driver 93 "cuLaunchCooperativeKernelMultiDevice" ["cuLaunchCooperativeKernelMultiDevice"] Launch Never 3 (P(1), Int(2), Zero) None;

    Nccl 1 "ncclCommInitRank" ["ncclCommInitRank"] Communicator Never 22 (Pair(2, 3), Out(1), Zero) None;
    Nccl 2 "ncclCommDestroy" ["ncclCommDestroy"] Communicator Never 1 (Zero, P(1), Zero) None;
    Nccl 3 "ncclAllReduce" ["ncclAllReduce"] Collective Never 7 (NcclBytes(3), P(6), P(7)) Arg0;
    Nccl 4 "ncclAllGather" ["ncclAllGather"] Collective Never 6 (NcclBytes(3), P(5), P(6)) Arg0;
    Nccl 5 "ncclReduceScatter" ["ncclReduceScatter"] Collective Never 7 (NcclBytes(3), P(6), P(7)) Arg0;
    Nccl 6 "ncclBcast" ["ncclBcast"] Collective Never 6 (NcclBytes(2), P(5), P(6)) Arg0;
    Nccl 7 "ncclSend" ["ncclSend"] Collective Never 6 (NcclBytes(2), P(5), P(6)) Arg0;
    Nccl 8 "ncclRecv" ["ncclRecv"] Collective Never 6 (NcclBytes(2), P(5), P(6)) Arg0;
    Nccl 9 "ncclCommInitAll" ["ncclCommInitAll"] Communicator Never 3 (Int(2), Zero, Zero) None;
    Nccl 32 "ncclBroadcast" ["ncclBroadcast"] Collective Never 7 (NcclBytes(3), P(6), P(7)) Arg0;
    Nccl 33 "ncclReduce" ["ncclReduce"] Collective Never 8 (NcclBytes(3), P(7), P(8)) Arg0;
    Nccl 34 "ncclAlltoAll" ["ncclAlltoAll" "ncclAllToAll"] Collective Never 6 (NcclBytes(3), P(5), P(6)) Arg0;
    Nccl 35 "ncclCommInitRankConfig" ["ncclCommInitRankConfig"] Communicator Never 22 (Pair(2, 3), Out(1), Zero) None;
    Nccl 36 "ncclCommInitRankScalable" ["ncclCommInitRankScalable"] Communicator Never 6 (Pair(2, 3), Out(1), Zero) None;
    Nccl 37 "ncclCommSplit" ["ncclCommSplit"] Communicator Never 5 (P(1), Out(4), Zero) None;
    Nccl 38 "ncclCommAbort" ["ncclCommAbort"] Communicator Never 1 (Zero, P(1), Zero) None;
    Nccl 39 "ncclGroupStart" ["ncclGroupStart"] Collective Never 0 (Zero, Zero, Zero) None;
    Nccl 40 "ncclGroupEnd" ["ncclGroupEnd"] Collective Never 0 (Zero, Zero, Zero) None;
    Nccl 41 "ncclCommFinalize" ["ncclCommFinalize"] Communicator Never 1 (Zero, P(1), Zero) None;
    Nccl 42 "ncclGather" ["ncclGather"] Collective Never 7 (NcclBytes(3), P(6), P(7)) Arg0;
    Nccl 43 "ncclScatter" ["ncclScatter"] Collective Never 7 (NcclBytes(3), P(6), P(7)) Arg0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_op_is_found_by_its_source_and_number_and_by_its_name() {
        for (i, op) in OPS.iter().enumerate() {
            assert_eq!(
                OpId::find(op.source, op.number).map(OpId::index),
                Some(i),
                "{}",
                op.name
            );
            assert_eq!(
                OpId::by_name(op.name).map(OpId::index),
                Some(i),
                "{} names two ops",
                op.name
            );
        }
        assert_eq!(OpId::find(Source::Runtime, 0), None);
        assert_eq!(OpId::find(Source::Runtime, 127), None);
        assert_eq!(OpId::find(Source::Host, 1), None);
    }

    #[test]
    fn no_symbol_belongs_to_two_ops() {
        for (i, a) in OPS.iter().enumerate() {
            for (j, b) in OPS.iter().enumerate() {
                for s in a.symbols {
                    assert!(
                        i == j || !b.symbols.contains(s),
                        "{s} is {} and {}",
                        a.name,
                        b.name
                    );
                }
            }
        }
    }

    #[test]
    fn slots_name_only_parameters_that_the_call_has() {
        for op in OPS {
            for slot in [op.arg0, op.arg1, op.stream] {
                let last = match slot {
                    Slot::Zero | Slot::Const(_) => 0,
                    Slot::P(n)
                    | Slot::Int(n)
                    | Slot::Out(n)
                    | Slot::Shl(n, _)
                    | Slot::ConfigDims(n)
                    | Slot::At(n, _)
                    | Slot::AtMul(n, _) => n,
                    Slot::Mul(n) | Slot::NcclBytes(n) => n + 1,
                    Slot::Dim3(n) => n + 3,
                    Slot::Dims(n) => n + 5,
                    Slot::Pair(n, k) => n.max(k),
                };
                assert!(
                    last <= op.params,
                    "{}: {slot:?} with {} parameters",
                    op.name,
                    op.params
                );
            }
        }
    }

    #[test]
    fn packed_dimensions_come_back_and_saturate() {
        assert_eq!(unpack_dims(pack_dims([4, 2, 1], [128, 2, 1])), (8, 256));
        assert_eq!(
            unpack_dims(pack_dims([u32::MAX; 3], [u32::MAX; 3])),
            ((1 << 48) - 1, (1 << 16) - 1)
        );
    }
}
