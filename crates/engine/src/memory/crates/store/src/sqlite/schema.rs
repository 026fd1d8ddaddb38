//! The tables of the file in its newest shape (`user_version` 10), with the rows that explain it.
//!
//! Five columns at the end of `events` are ours: `stream`, `graph`, `exec`, `capture_mode` (handles, as signed 64 bits) and
//! `device` (the CUDA ordinal, null where it is not known; `gpu_id` is 0 then). Readers that go by name do not see them.

use warptrace_record::op::OPS;

use crate::rows::Frame;

/// The key in `schema_info` by which an export is known.
pub(crate) const OWN_KEY: &str = "warptrace_version";

/// Made before the rows.
pub(crate) const TABLES: &str = "
CREATE TABLE events (
    id TEXT PRIMARY KEY,
    timestamp INTEGER NOT NULL,
    pid INTEGER NOT NULL,
    tid INTEGER NOT NULL,
    source INTEGER NOT NULL,
    op INTEGER NOT NULL,
    duration INTEGER NOT NULL,
    gpu_id INTEGER NOT NULL DEFAULT 0,
    arg0 INTEGER NOT NULL DEFAULT 0,
    arg1 INTEGER NOT NULL DEFAULT 0,
    ret_code INTEGER NOT NULL DEFAULT 0,
    stack_hash INTEGER NOT NULL DEFAULT 0,
    node TEXT NOT NULL DEFAULT '',
    rank INTEGER,
    local_rank INTEGER,
    world_size INTEGER,
    comm TEXT NOT NULL DEFAULT '',
    stack_ips TEXT NOT NULL DEFAULT '',
    cgroup_id INTEGER NOT NULL DEFAULT 0,
    stream INTEGER,
    graph INTEGER,
    exec INTEGER,
    capture_mode INTEGER,
    device INTEGER
);
CREATE TABLE stack_traces (
    hash INTEGER PRIMARY KEY,
    ips TEXT NOT NULL,
    frames TEXT NOT NULL DEFAULT ''
);
CREATE TABLE causal_chains (
    id TEXT PRIMARY KEY,
    detected_at INTEGER NOT NULL,
    severity TEXT NOT NULL,
    summary TEXT NOT NULL,
    root_cause TEXT NOT NULL,
    explanation TEXT NOT NULL,
    recommendations TEXT NOT NULL DEFAULT '',
    cuda_op TEXT NOT NULL DEFAULT '',
    cuda_p99_us INTEGER NOT NULL DEFAULT 0,
    cuda_p50_us INTEGER NOT NULL DEFAULT 0,
    tail_ratio REAL NOT NULL DEFAULT 0,
    timeline TEXT NOT NULL DEFAULT '',
    node TEXT NOT NULL DEFAULT ''
);
CREATE TABLE system_snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    timestamp INTEGER NOT NULL UNIQUE,
    cpu_pct REAL NOT NULL,
    mem_pct REAL NOT NULL,
    mem_avail INTEGER NOT NULL,
    swap_mb INTEGER NOT NULL,
    load_avg REAL NOT NULL
);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    started_at INTEGER NOT NULL,
    stopped_at INTEGER NOT NULL DEFAULT 0,
    gpu_model TEXT NOT NULL DEFAULT '',
    gpu_driver TEXT NOT NULL DEFAULT '',
    cpu_model TEXT NOT NULL DEFAULT '',
    cpu_cores INTEGER DEFAULT 0,
    mem_total INTEGER DEFAULT 0,
    kernel TEXT NOT NULL DEFAULT '',
    os_release TEXT NOT NULL DEFAULT '',
    cuda_ver TEXT NOT NULL DEFAULT '',
    python_ver TEXT NOT NULL DEFAULT '',
    ingero_ver TEXT NOT NULL DEFAULT '',
    pid_filter TEXT NOT NULL DEFAULT '',
    flags TEXT NOT NULL DEFAULT '',
    node TEXT NOT NULL DEFAULT '',
    rank INTEGER,
    local_rank INTEGER,
    world_size INTEGER
);
CREATE TABLE process_names (
    pid INTEGER NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    seen_at INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE event_aggregates (
    bucket INTEGER NOT NULL,
    source INTEGER NOT NULL,
    op INTEGER NOT NULL,
    pid INTEGER NOT NULL DEFAULT 0,
    count INTEGER NOT NULL DEFAULT 0,
    stored INTEGER NOT NULL DEFAULT 0,
    sum_dur INTEGER NOT NULL DEFAULT 0,
    min_dur INTEGER NOT NULL DEFAULT 0,
    max_dur INTEGER NOT NULL DEFAULT 0,
    sum_arg0 INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (bucket, source, op, pid)
);
CREATE TABLE event_aggregates_5s (
    bucket INTEGER NOT NULL,
    source INTEGER NOT NULL,
    op INTEGER NOT NULL,
    pid INTEGER NOT NULL DEFAULT 0,
    count INTEGER NOT NULL DEFAULT 0,
    stored INTEGER NOT NULL DEFAULT 0,
    sum_dur INTEGER NOT NULL DEFAULT 0,
    min_dur INTEGER NOT NULL DEFAULT 0,
    max_dur INTEGER NOT NULL DEFAULT 0,
    sum_arg0 INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (bucket, source, op, pid)
);
CREATE TABLE cgroup_metadata (
    cgroup_id INTEGER PRIMARY KEY,
    container_id TEXT NOT NULL DEFAULT '',
    cgroup_path TEXT NOT NULL DEFAULT '',
    pod_name TEXT NOT NULL DEFAULT '',
    namespace TEXT NOT NULL DEFAULT ''
);
CREATE TABLE cgroup_schedstat (
    cgroup_id INTEGER NOT NULL,
    p99_off_cpu INTEGER NOT NULL,
    total_off_cpu INTEGER NOT NULL,
    event_count INTEGER NOT NULL,
    window_start INTEGER NOT NULL DEFAULT 0,
    window_end INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (cgroup_id, window_end)
);
CREATE TABLE annotations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    timestamp INTEGER NOT NULL,
    labels TEXT NOT NULL,
    pid INTEGER NOT NULL DEFAULT 0,
    start_time INTEGER NOT NULL DEFAULT 0,
    span_start INTEGER NOT NULL DEFAULT 0,
    span_end INTEGER NOT NULL DEFAULT 0,
    peer_uid INTEGER NOT NULL DEFAULT 0,
    peer_gid INTEGER NOT NULL DEFAULT 0,
    peer_pid INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE sources (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    description TEXT NOT NULL
);
CREATE TABLE ops (
    source_id INTEGER NOT NULL,
    op_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    PRIMARY KEY (source_id, op_id)
);
CREATE TABLE schema_info (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
";

/// Made after the rows, which is quicker.
pub(crate) const INDEXES: &str = "
CREATE INDEX idx_events_timestamp ON events(timestamp);
CREATE INDEX idx_events_pid ON events(pid);
CREATE INDEX idx_events_source_op_stack ON events(source, op, stack_hash);
CREATE INDEX idx_events_cgroup ON events(cgroup_id) WHERE cgroup_id != 0;
CREATE INDEX idx_chains_detected_at ON causal_chains(detected_at);
CREATE INDEX idx_chains_severity ON causal_chains(severity);
CREATE UNIQUE INDEX idx_snapshots_ts_uniq ON system_snapshots(timestamp);
CREATE INDEX idx_sessions_started ON sessions(started_at);
CREATE INDEX idx_aggregates_bucket ON event_aggregates(bucket);
CREATE INDEX idx_aggregates_5s_bucket ON event_aggregates_5s(bucket);
CREATE INDEX idx_cgroup_metadata_container_id ON cgroup_metadata(container_id) WHERE container_id != '';
CREATE INDEX idx_cgroup_schedstat_cgroup ON cgroup_schedstat(cgroup_id);
CREATE INDEX idx_annotations_timestamp ON annotations(timestamp);
CREATE INDEX idx_annotations_pid ON annotations(pid) WHERE pid != 0;
";

pub(crate) const SOURCES: &[(u8, &str, &str)] = &[
    (1, "CUDA", "CUDA runtime API"),
    (2, "NVIDIA", "reserved"),
    (
        3,
        "HOST",
        "the kernel: scheduler, memory, life of processes",
    ),
    (4, "DRIVER", "CUDA driver API"),
    (5, "IO", "block I/O"),
    (6, "TCP", "TCP"),
    (7, "NET", "socket system calls"),
    (8, "CUDA_GRAPH", "CUDA graphs"),
    (
        9,
        "NCCL",
        "collectives; not written by the agent whose format this is",
    ),
];

/// Ops that are no calls of ours, by source.
const OTHER_OPS: &[(u8, u16, &str)] = &[
    (3, 1, "sched_switch"),
    (3, 2, "sched_wakeup"),
    (3, 3, "mm_page_alloc"),
    (3, 4, "oom_kill"),
    (3, 5, "process_exec"),
    (3, 6, "process_exit"),
    (3, 7, "process_fork"),
    (3, 10, "pod_restart"),
    (3, 11, "pod_eviction"),
    (3, 12, "pod_oom_kill"),
    (3, 20, "mm_page_alloc_summary"),
    (3, 21, "sched_switch_summary"),
    (5, 1, "block_read"),
    (5, 2, "block_write"),
    (5, 3, "block_discard"),
    (6, 1, "tcp_retransmit"),
    (7, 1, "net_send"),
    (7, 2, "net_recv"),
];

/// Rows of `ops`: source, number, name, what it is.
pub(crate) fn ops() -> impl Iterator<Item = (u8, u16, &'static str, String)> {
    let others = OTHER_OPS
        .iter()
        .map(|(source, op, name)| (*source, *op, *name, name.replace('_', " ")));
    let calls = OPS
        .iter()
        .map(|op| (op.source as u8, op.number, op.name, op.symbols.join(", ")));
    others.chain(calls)
}

/// Rows of `schema_info`, but for the versions.
pub(crate) const NOTES: &[(&str, &str)] = &[
    (
        "timestamp_unit",
        "nanoseconds since the Unix epoch; the entry of a call, the end of a block request and of a sched_switch",
    ),
    ("duration_unit", "nanoseconds"),
    (
        "arg0_note",
        "bytes of allocations and copies, function of launches, stream of cudaStreamSync, sectors of block requests; 64 bits, signed",
    ),
    (
        "arg1_note",
        "device pointer of allocations, kind of copies, stream of cudaLaunchKernel, target thread of host events, sector of block requests; 64 bits, signed",
    ),
    (
        "ret_code_note",
        "what the call returned, 0 for success; for process_exit the wait status",
    ),
    (
        "stack_traces_note",
        "events.stack_hash is stack_traces.hash; frames is a JSON list with the keys i, s, f, l, pf, pfn, pl",
    ),
    (
        "example_query",
        "SELECT o.name, count(*), sum(e.duration) FROM events e JOIN ops o ON o.source_id = e.source AND o.op_id = e.op GROUP BY o.name ORDER BY 3 DESC",
    ),
    (
        "system_snapshots_note",
        "samples of the machine; mem_avail and swap_mb in MiB",
    ),
    ("sessions_note", "one row: the session that was exported"),
    (
        "process_names_note",
        "names of processes, for rows without comm",
    ),
    (
        "event_aggregates_note",
        "calls by minute of their entry, all of them; those that are rows of events are counted in stored. Where count is above stored, min_dur and max_dur are within 12.5 %",
    ),
    (
        "cgroup_metadata_note",
        "cgroup_id is a hash of the path: it joins with events.cgroup_id, and is no inode",
    ),
    ("node_note", "the node of the session"),
    ("comm_note", "the last name of the thread"),
    (
        "nccl_note",
        "source 9: collectives, arg0 is their bytes and arg1 the communicator",
    ),
    (
        "extra_columns_note",
        "events.stream, graph, exec, capture_mode, device: null where they do not apply",
    ),
];

/// The 64-bit FNV-1a hash (Fowler, Noll, Vo).
pub(crate) struct Fnv(u64);

impl Fnv {
    pub(crate) const fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub(crate) const fn get(&self) -> u64 {
        self.0
    }
}

/// The hash of a stack of which only addresses are known.
pub(crate) fn hash_of_addresses(addresses: impl Iterator<Item = u64>) -> i64 {
    let mut hash = Fnv::new();
    for address in addresses {
        hash.add(&address.to_le_bytes());
    }
    hash.get() as i64
}

/// The texts of a frame in the file's terms: symbol, base name of the mapped file, Python file, Python function, and
/// the Python line.
pub(crate) fn frame_texts(frame: &Frame) -> (&str, &str, &str, &str, u32) {
    if frame.ip == 0 && frame.file.is_some() {
        let file = frame.file.as_deref().unwrap_or_default();
        let function = frame.function.as_deref().unwrap_or_default();
        return ("", "", file, function, frame.line.unwrap_or(0));
    }
    let module = frame.module.as_deref().unwrap_or_default();
    let base = module.rsplit('/').next().unwrap_or(module);
    (
        frame.function.as_deref().unwrap_or_default(),
        base,
        "",
        "",
        0,
    )
}

/// The hash of a stack, as the file has it: by symbols where any frame has one, else by addresses. Never 0.
pub(crate) fn stack_hash(frames: &[Frame]) -> i64 {
    let resolved = |f: &Frame| {
        let (symbol, file, python, function, _) = frame_texts(f);
        !(symbol.is_empty() && file.is_empty() && python.is_empty() && function.is_empty())
    };
    let hash = if frames.iter().any(resolved) {
        let mut hash = Fnv::new();
        for frame in frames {
            let (symbol, file, python, function, line) = frame_texts(frame);
            for text in [symbol, file, python, function] {
                hash.add(text.as_bytes());
                hash.add(&[0]);
            }
            hash.add(&line.to_le_bytes());
        }
        hash.get() as i64
    } else {
        hash_of_addresses(frames.iter().map(|f| f.ip))
    };
    if hash == 0 { 1 } else { hash }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_hash_as_fnv_does() {
        // Known values of FNV-1a, 64 bits: of nothing, and of "a".
        assert_eq!(Fnv::new().get(), 0xcbf2_9ce4_8422_2325);
        let mut hash = Fnv::new();
        hash.add(b"a");
        assert_eq!(hash.get(), 0xaf63_dc4c_8601_ec8c);

        let native = |ip, symbol: Option<&str>| Frame {
            ip,
            function: symbol.map(Into::into),
            ..Frame::default()
        };
        let by_address = hash_of_addresses([1, 2].into_iter());
        assert_eq!(stack_hash(&[native(1, None), native(2, None)]), by_address);
        // With a symbol, addresses do not matter: the same code in another process is the same stack.
        assert_eq!(
            stack_hash(&[native(1, Some("f"))]),
            stack_hash(&[native(9, Some("f"))])
        );
    }

    #[test]
    fn every_op_has_one_row() {
        let mut keys: Vec<(u8, u16)> = ops().map(|(source, op, ..)| (source, op)).collect();
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), count);
        for known in [(1, 1), (1, 12), (3, 21), (4, 6), (8, 4), (9, 9)] {
            assert!(keys.contains(&known), "{known:?}");
        }
    }
}
