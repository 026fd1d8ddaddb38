//! A first pass over the rows: of which nodes they are, from when to when, and whose a thread is.
//!
//! A file may hold several nodes (merged files do); each is a session of its own, since pids are a node's. And some rows
//! name a thread where they should name its process: rows of calls, which do not, tell.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use warptrace_model::UnixNanos;

use super::map::host;
use super::open::{TraceDb, TraceDbError};
use super::table::Column::{Number, Text};
use super::tally::Tally;
use crate::meta::{Identity, SessionMeta};

/// Nodes of one file that are told apart; more are left out, and counted.
const NODES: usize = 256;
/// Threads and processes of one node that are remembered.
const THREADS: usize = 1 << 17;
const PROCESSES: usize = 1 << 16;
/// Bytes of a node's name.
pub(crate) const NODE_BYTES: usize = 256;
/// Bytes of a command's name: the kernel has 16, and names of processes may be made longer.
pub(crate) const COMM_BYTES: usize = 256;
/// A thread with fewer waits for the device says nothing about which threads' switches are recorded.
const WAITS_THAT_COUNT: u32 = 20;

/// What a file holds.
#[derive(Debug, Default)]
pub struct Survey {
    /// By name; at least one.
    pub nodes: Vec<Node>,
    /// Rows of nodes beyond the most that are told apart.
    pub rows_of_other_nodes: u64,
}

/// The part of a file that is one node's.
#[derive(Debug, Default)]
pub struct Node {
    /// Empty where the file does not say.
    pub name: String,
    /// Rows of `events` whose time can be read.
    pub rows: u64,
    /// The earliest begin and the latest end, Unix ns.
    pub first: u64,
    pub last: u64,
    pub(crate) rank: Option<u32>,
    pub(crate) local_rank: Option<u32>,
    pub(crate) world_size: Option<u32>,
    pub(crate) threads: HashMap<u32, ThreadSeen>,
    pub(crate) processes: BTreeMap<u32, ProcessSeen>,
    /// There was no room for all of them.
    pub(crate) overfull: bool,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ThreadSeen {
    /// 0 while only rows that may err have named it.
    pub(crate) pid: u32,
    pub(crate) waits: u32,
    pub(crate) switches: u32,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct ProcessSeen {
    pub(crate) calls: bool,
    pub(crate) first: u64,
    /// Name of its main thread, or of another.
    pub(crate) name: String,
    pub(crate) cgroup: u64,
    pub(crate) rank: Option<u32>,
    pub(crate) local_rank: Option<u32>,
    pub(crate) world_size: Option<u32>,
}

impl Node {
    /// The process of a thread, when a row that does not err named it.
    pub(crate) fn process_of(&self, tid: u32) -> Option<u32> {
        self.threads
            .get(&tid)
            .map(|t| t.pid)
            .filter(|pid| *pid != 0)
    }

    /// Processes of which some threads' switches are recorded and others' are not: where a thread was when it made no
    /// call cannot be told of them.
    pub(crate) fn partly_switched(&self) -> BTreeSet<u32> {
        let mut switched = BTreeSet::new();
        let mut unswitched = BTreeSet::new();
        for thread in self.threads.values() {
            if thread.switches > 0 {
                switched.insert(thread.pid);
            } else if thread.waits >= WAITS_THAT_COUNT {
                unswitched.insert(thread.pid);
            }
        }
        switched.intersection(&unswitched).copied().collect()
    }

    fn see(&mut self, seen: &Seen<'_>) {
        if self.rows == 0 {
            (self.first, self.last) = (seen.start, seen.end);
        }
        self.rows += 1;
        self.first = self.first.min(seen.start);
        self.last = self.last.max(seen.end);
        let switch = (seen.source, seen.op) == (3, host::SCHED_SWITCH);
        // A switch may name the thread as the process; a retransmit and a wake-up name whom they interrupted.
        let errs = switch && seen.pid == seen.tid;
        let about_itself = seen.source != 6 && (seen.source, seen.op) != (3, host::SCHED_WAKEUP);
        if !about_itself || seen.tid == 0 {
            return;
        }
        if self.threads.len() < THREADS || self.threads.contains_key(&seen.tid) {
            let thread = self.threads.entry(seen.tid).or_default();
            if !errs {
                thread.pid = seen.pid;
            }
            thread.switches += u32::from(switch);
            thread.waits = thread.waits.saturating_add(u32::from(seen.is_wait()));
        } else {
            self.overfull = true;
        }
        if errs || switch {
            return;
        }
        if self.processes.len() >= PROCESSES && !self.processes.contains_key(&seen.pid) {
            self.overfull = true;
            return;
        }
        let process = self
            .processes
            .entry(seen.pid)
            .or_insert_with(|| ProcessSeen {
                first: seen.start,
                ..ProcessSeen::default()
            });
        process.first = process.first.min(seen.start);
        process.calls |= matches!(seen.source, 1 | 4 | 8 | 9);
        if !seen.comm.is_empty() && (process.name.is_empty() || seen.pid == seen.tid) {
            seen.comm.clone_into(&mut process.name);
        }
        if seen.cgroup > 1 {
            process.cgroup = seen.cgroup;
        }
        process.rank = seen.ranks[0].or(process.rank);
        process.local_rank = seen.ranks[1].or(process.local_rank);
        process.world_size = seen.ranks[2].or(process.world_size);
        self.rank = seen.ranks[0].or(self.rank);
        self.local_rank = seen.ranks[1].or(self.local_rank);
        self.world_size = seen.ranks[2].or(self.world_size);
    }
}

struct Seen<'a> {
    start: u64,
    end: u64,
    pid: u32,
    tid: u32,
    source: u8,
    op: u16,
    cgroup: u64,
    comm: &'a str,
    ranks: [Option<u32>; 3],
}

impl Seen<'_> {
    /// cudaStreamSync, cudaDeviceSync, cuCtxSynchronize.
    fn is_wait(&self) -> bool {
        matches!((self.source, self.op), (1, 5 | 6) | (4, 4))
    }
}

/// Begin and end of a row, Unix ns: `timestamp` is the end where what happened is known when it is over.
pub(crate) fn interval(source: u8, op: u16, timestamp: u64, duration: u64) -> (u64, u64) {
    let by_end = matches!(source, 5 | 7) || (source, op) == (3, host::SCHED_SWITCH);
    let lasts = match (source, op) {
        // Bytes stand there, or nothing.
        (3, op) if op != host::SCHED_SWITCH => 0,
        _ => duration,
    };
    if by_end {
        (timestamp.saturating_sub(lasts), timestamp)
    } else {
        (timestamp, timestamp.saturating_add(lasts))
    }
}

/// More is no time: SQLite's numbers end there.
pub(crate) const LAST_NANOS: u64 = i64::MAX as u64;

impl TraceDb {
    /// About how many rows a pass over `events` has.
    pub fn rows(&self) -> u64 {
        self.rows_about("events")
    }

    /// Looks at every row once. `progress` gets the rows so far. Cost: memory for the threads and processes of the file,
    /// which are bounded.
    ///
    /// # Errors
    /// [`TraceDbError::Sqlite`].
    pub fn survey(&self, progress: &mut dyn FnMut(u64)) -> Result<Survey, TraceDbError> {
        let columns = [
            Number("timestamp"),
            Number("duration"),
            Number("pid"),
            Number("tid"),
            Number("source"),
            Number("op"),
            Text("node", NODE_BYTES),
            Text("comm", COMM_BYTES),
            Number("cgroup_id"),
            Number("rank"),
            Number("local_rank"),
            Number("world_size"),
        ];
        let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
        let mut others = 0;
        let mut done = 0;
        // Damage and rows that cannot be read are the import's to tell.
        let mut tally = Tally::default();
        self.scan("events", &columns, &mut tally, |_, cells| {
            done += 1;
            if done % 8_192 == 0 {
                progress(done);
            }
            let row = (|| {
                let (source, op) = (cells.number(4)?, cells.number(5)?);
                let (start, end) = interval(source, op, cells.number(0)?, cells.number(1)?);
                Ok::<_, super::table::Wrong>((
                    source,
                    op,
                    start,
                    end,
                    cells.number(2)?,
                    cells.number(3)?,
                ))
            })();
            let Ok((source, op, start, end, pid, tid)) = row else {
                return;
            };
            if end > LAST_NANOS {
                return;
            }
            let name = cells.text(6).unwrap_or_default();
            if !nodes.contains_key(&*name) {
                if nodes.len() >= NODES {
                    others += 1;
                    return;
                }
                nodes.insert(
                    name.clone().into_owned(),
                    Node {
                        name: name.clone().into_owned(),
                        ..Node::default()
                    },
                );
            }
            if let Some(node) = nodes.get_mut(&*name) {
                let rank = |column| cells.number_if(column).unwrap_or_default();
                node.see(&Seen {
                    start,
                    end,
                    pid,
                    tid,
                    source,
                    op,
                    cgroup: cells.bits(8).unwrap_or(0),
                    comm: &cells.text(7).unwrap_or_default(),
                    ranks: [rank(9), rank(10), rank(11)],
                });
            }
        })?;
        let mut nodes: Vec<Node> = nodes.into_values().collect();
        if nodes.is_empty() {
            nodes.push(Node::default());
        }
        if let [node] = nodes.as_mut_slice() {
            self.widen(node)?;
        }
        Ok(Survey {
            nodes,
            rows_of_other_nodes: others,
        })
    }

    /// Takes in the times of tables that do not name a node: they are the one node's.
    fn widen(&self, node: &mut Node) -> Result<(), TraceDbError> {
        for table in ["system_snapshots", "annotations"] {
            let mut tally = Tally::default();
            self.scan(table, &[Number("timestamp")], &mut tally, |_, cells| {
                if let Ok(at @ 1..=LAST_NANOS) = cells.number::<u64>(0) {
                    let known = node.last > 0;
                    node.first = if known { node.first.min(at) } else { at };
                    node.last = node.last.max(at);
                }
            })?;
        }
        Ok(())
    }

    /// What the session of `node` is, made at `made`: identity from the file's own sessions, and from its rows.
    ///
    /// # Errors
    /// [`TraceDbError::Sqlite`].
    pub fn session_meta(&self, node: &Node, made: UnixNanos) -> Result<SessionMeta, TraceDbError> {
        use warptrace_model::{BootNanos, ClockAnchor};
        let anchor = |nanos| ClockAnchor {
            boot: BootNanos(nanos),
            unix: UnixNanos(nanos),
        };
        // Its id says when it was made, so that it is the newest; its clock begins with the trace.
        let mut meta = SessionMeta::new(anchor(made.0));
        meta.created = UnixNanos(node.first);
        meta.clock = vec![anchor(node.first)];
        meta.host.clone_from(&node.name);
        meta.node.clone_from(&node.name);
        meta.sources = vec!["ingero_db".to_owned()];
        meta.identity = Identity {
            rank: node.rank,
            local_rank: node.local_rank,
            world_size: node.world_size,
            ..Identity::default()
        };
        let columns = [
            Text("node", NODE_BYTES),
            Text("kernel", 256),
            Number("cpu_cores"),
            Number("rank"),
            Number("local_rank"),
            Number("world_size"),
        ];
        // The last session of the node says how the machine was.
        self.scan("sessions", &columns, &mut Tally::default(), |_, cells| {
            if cells.text(0).is_ok_and(|name| name == node.name.as_str()) {
                if let Ok(kernel) = cells.text(1) {
                    meta.kernel = kernel.into_owned();
                }
                meta.cpus = cells.number(2).unwrap_or(meta.cpus);
                let identity = &mut meta.identity;
                for (column, known) in [
                    (3, &mut identity.rank),
                    (4, &mut identity.local_rank),
                    (5, &mut identity.world_size),
                ] {
                    *known = cells.number_if(column).unwrap_or_default().or(*known);
                }
            }
        })?;
        Ok(meta)
    }
}
