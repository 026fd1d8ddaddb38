//! A session becomes a file of the newest shape.
//!
//! The file is in rollback mode, so that anybody can read it from a folder that he cannot write to; the agent turns WAL on
//! when it opens it. What that shape has no place for (samples of devices, stretches, slices, reclaim) is left out, and
//! counted.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, Statement, params};
use serde_json::json;
use warptrace_formats::annotation::encode_labels;
use warptrace_model::{
    Annotation, BootNanos, Call, Event, IoKind, OffCpu, OpCount, ProcessEvent, SystemSample,
    Thread, UnixNanos,
};
use warptrace_record::histogram;

use super::map::{self, Args, SECTOR, host};
use super::open::USER_VERSION;
use super::schema::{self, Fnv};
use super::tally::Tally;
use crate::error::StoreError;
use crate::meta::SessionMeta;
use crate::rows::Stack;
use crate::session::Session;

/// Keys of sums that wait in memory.
const SUMS: usize = 1 << 15;
const MINUTE: u64 = 60_000_000_000;
const FIVE_SECONDS: u64 = 5_000_000_000;
/// The finer sums are kept for the last so long, as the agent does, ns.
const FINE: u64 = 600_000_000_000;

/// Why a session could not be written as a file.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Session(#[from] StoreError),
    #[error("cannot write {path:?}")]
    Sqlite {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
}

/// A finding, as a row of `causal_chains`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chain {
    /// Unique in the session.
    pub descriptor: String,
    pub detected: UnixNanos,
    /// `HIGH`, `MEDIUM` or `LOW`.
    pub severity: &'static str,
    pub summary: String,
    pub root_cause: String,
    pub explanation: String,
    pub recommendations: Vec<String>,
    pub op: String,
    /// What it took and what is usual, µs.
    pub p99_micros: u64,
    pub p50_micros: u64,
    pub timeline: Vec<Step>,
}

/// One line of a chain's timeline.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    pub layer: &'static str,
    pub op: String,
    pub detail: String,
    pub dur_micros: u64,
}

/// Writes `session` to a new database at `path`; `chains` are its findings. `progress` gets the events so far. Returns what
/// was written, by table, and what has no place there. Cost: memory for the session's stacks, threads and processes.
///
/// # Errors
/// [`ExportError`]; the file at `path` is then of no use.
pub fn export(
    session: &Session,
    chains: &[Chain],
    path: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Tally, ExportError> {
    let sqlite = |source| ExportError::Sqlite {
        path: path.to_owned(),
        source,
    };
    let names = Names::of(session)?;
    let connection = create(path, session.meta()).map_err(sqlite)?;
    let mut tally = Tally::default();
    {
        let mut export = Export::new(&connection, session, &names).map_err(sqlite)?;
        export.about(chains, &names, &mut tally).map_err(sqlite)?;
        let mut stream = session.events(None)?;
        let mut batch = Vec::new();
        let mut done = 0;
        while stream.next_batch(&mut batch) {
            done += batch.len() as u64;
            for event in batch.drain(..) {
                export.event(&event, &mut tally).map_err(sqlite)?;
            }
            progress(done);
        }
        export.flush_sums().map_err(sqlite)?;
    }
    let finish = || -> rusqlite::Result<()> {
        // A call that was counted in one window and entered in the minute before it.
        for table in ["event_aggregates", "event_aggregates_5s"] {
            connection.execute(
                &format!("UPDATE {table} SET stored = count WHERE stored > count"),
                [],
            )?;
        }
        connection.execute_batch("COMMIT")?;
        connection.execute_batch(schema::INDEXES)?;
        connection.pragma_update(None, "user_version", USER_VERSION)
    };
    finish().map_err(sqlite)?;
    connection.close().map_err(|(_, e)| sqlite(e))?;
    Ok(tally)
}

fn create(path: &Path, meta: &SessionMeta) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    // The file is nobody's until it is whole: no journal, and the caller syncs it once.
    connection.execute_batch(
        "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
         PRAGMA locking_mode = EXCLUSIVE; PRAGMA cache_size = -32768;",
    )?;
    connection.execute_batch(schema::TABLES)?;
    connection.execute_batch("BEGIN")?;
    for source in schema::SOURCES {
        connection.execute("INSERT INTO sources VALUES (?1, ?2, ?3)", *source)?;
    }
    for op in schema::ops() {
        connection.execute("INSERT INTO ops VALUES (?1, ?2, ?3, ?4)", op)?;
    }
    let versions = [
        ("version", "0.10"),
        (schema::OWN_KEY, env!("CARGO_PKG_VERSION")),
        ("warptrace_session", meta.id.as_str()),
    ];
    for note in schema::NOTES.iter().copied().chain(versions) {
        connection.execute("INSERT INTO schema_info VALUES (?1, ?2)", note)?;
    }
    Ok(connection)
}

/// What is known of threads, processes and stacks by their ids.
struct Names {
    threads: HashMap<Thread, String>,
    /// Name, control group's id and rank of each process.
    processes: HashMap<u32, Process>,
    cgroups: BTreeMap<u64, (String, String)>,
    stacks: Vec<(i64, Stack)>,
    hashes: HashMap<u32, i64>,
    /// The session counts calls beside storing them.
    counted: bool,
    end: u64,
}

#[derive(Default)]
struct Process {
    name: String,
    cgroup: u64,
    ranks: [Option<u32>; 3],
}

impl Names {
    fn of(session: &Session) -> Result<Names, StoreError> {
        let mut names = Names {
            threads: HashMap::new(),
            processes: HashMap::new(),
            cgroups: BTreeMap::new(),
            stacks: Vec::new(),
            hashes: HashMap::new(),
            counted: !session.ops(None)?.is_empty(),
            end: session.window()?.end.0,
        };
        for thread in session.threads()? {
            names.threads.insert(thread.thread, thread.name.into());
        }
        for info in session.processes()? {
            let mut cgroup = 0;
            if !info.cgroup.is_empty() || !info.container_id.is_empty() {
                let mut hash = Fnv::new();
                hash.add(info.cgroup.as_bytes());
                hash.add(info.container_id.as_bytes());
                // 0 and 1 mean none.
                cgroup = (hash.get() >> 1).max(2);
                names
                    .cgroups
                    .insert(cgroup, (info.cgroup, info.container_id));
            }
            let process = Process {
                name: info.name,
                cgroup,
                ranks: [info.rank, info.local_rank, info.world_size],
            };
            names.processes.insert(info.incarnation.pid.0, process);
        }
        for stack in session.stacks()? {
            let hash = schema::stack_hash(&stack.frames);
            names.hashes.insert(stack.id, hash);
            names.stacks.push((hash, stack));
        }
        Ok(names)
    }

    fn of_thread(&self, thread: Thread) -> &str {
        let own = self.threads.get(&thread).map(String::as_str);
        let process = || self.processes.get(&thread.pid.0).map(|p| p.name.as_str());
        own.or_else(process).unwrap_or_default()
    }
}

/// Bucket, source, op, process.
type Key = (u64, u8, u16, u32);

#[derive(Clone, Copy, Default)]
struct Sum {
    count: u64,
    stored: u64,
    dur: u64,
    arg0: u64,
    /// Of those that are rows, exactly.
    row_dur: Option<(u64, u64)>,
    /// Of all, by their buckets.
    all_dur: Option<(u64, u64)>,
}

fn widen(known: Option<(u64, u64)>, (low, high): (u64, u64)) -> Option<(u64, u64)> {
    Some(known.map_or((low, high), |(a, b)| (a.min(low), b.max(high))))
}

struct Export<'a> {
    connection: &'a Connection,
    meta: &'a SessionMeta,
    names: &'a Names,
    insert: Statement<'a>,
    number: u64,
    minutes: BTreeMap<Key, Sum>,
    fine: BTreeMap<Key, Sum>,
}

/// What rows have in common.
struct Row {
    source: u8,
    op: u16,
    /// What stands in `timestamp`.
    at: BootNanos,
    thread: Thread,
    dur: u64,
    args: Args,
    ret: i32,
    stack: i64,
}

impl<'a> Export<'a> {
    fn new(
        connection: &'a Connection,
        session: &'a Session,
        names: &'a Names,
    ) -> rusqlite::Result<Export<'a>> {
        let insert = connection.prepare(
            "INSERT INTO events (id, timestamp, pid, tid, source, op, duration, gpu_id, arg0, arg1, ret_code, stack_hash,
             node, rank, local_rank, world_size, comm, cgroup_id, stream, graph, exec, capture_mode, device)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22,
             ?23)",
        )?;
        Ok(Export {
            connection,
            meta: session.meta(),
            names,
            insert,
            number: 0,
            minutes: BTreeMap::new(),
            fine: BTreeMap::new(),
        })
    }

    /// Unix ns, as SQLite keeps them.
    fn unix(&self, at: BootNanos) -> i64 {
        i64::try_from(self.meta.unix(at).0).unwrap_or(i64::MAX)
    }

    /// All that is no event.
    fn about(
        &mut self,
        chains: &[Chain],
        names: &Names,
        tally: &mut Tally,
    ) -> rusqlite::Result<()> {
        let meta = self.meta;
        let created = signed(meta.created.0);
        let id = &meta.identity;
        self.connection.execute(
            "INSERT INTO sessions (started_at, stopped_at, cpu_cores, kernel, ingero_ver, flags, node, rank, local_rank,
             world_size) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                created,
                meta.ended.map_or(0, |t| signed(t.0)),
                meta.cpus,
                meta.kernel,
                format!("warptrace {}", meta.version),
                "stack,record-all",
                node(meta),
                id.rank,
                id.local_rank,
                id.world_size
            ],
        )?;
        tally.keep("sessions", 1);
        let mut process_names: BTreeMap<u32, &str> = BTreeMap::new();
        for (thread, name) in &names.threads {
            if thread.pid.0 == thread.tid.0 && !name.is_empty() {
                process_names.insert(thread.pid.0, name);
            }
        }
        for (pid, process) in &names.processes {
            if !process.name.is_empty() {
                process_names.entry(*pid).or_insert(&process.name);
            }
        }
        for (pid, name) in &process_names {
            self.connection.execute(
                "INSERT INTO process_names VALUES (?1, ?2, ?3)",
                params![pid, name, created],
            )?;
        }
        tally.keep("process_names", process_names.len() as u64);
        for (id, (path, container)) in &names.cgroups {
            self.connection.execute(
                "INSERT INTO cgroup_metadata (cgroup_id, container_id, cgroup_path) VALUES (?1, ?2, ?3)",
                params![*id as i64, container, path],
            )?;
        }
        tally.keep("cgroup_metadata", names.cgroups.len() as u64);
        for (hash, stack) in &names.stacks {
            let (ips, frames) = stack_json(stack);
            // Two of our stacks may be one by its symbols.
            let new = self.connection.execute(
                "INSERT OR IGNORE INTO stack_traces VALUES (?1, ?2, ?3)",
                params![hash, ips, frames],
            )?;
            tally.keep("stack_traces", new as u64);
        }
        for chain in chains {
            self.chain(chain)?;
        }
        tally.keep("causal_chains", chains.len() as u64);
        Ok(())
    }

    fn chain(&self, chain: &Chain) -> rusqlite::Result<()> {
        let timeline: Vec<_> = chain
            .timeline
            .iter()
            .map(|step| {
                let mut line = json!({"layer": step.layer, "op": step.op, "detail": step.detail});
                if step.dur_micros > 0 {
                    line["dur_us"] = step.dur_micros.into();
                }
                line
            })
            .collect();
        let ratio = match chain.p50_micros {
            0 => 0.0,
            usual => chain.p99_micros as f64 / usual as f64,
        };
        let node = node(self.meta);
        let id = match node {
            "" => chain.descriptor.clone(),
            node => format!("{node}:{}", chain.descriptor),
        };
        self.connection.execute(
            "INSERT OR REPLACE INTO causal_chains VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            params![
                id,
                signed(chain.detected.0),
                chain.severity,
                chain.summary,
                chain.root_cause,
                chain.explanation,
                json!(chain.recommendations).to_string(),
                chain.op,
                signed(chain.p99_micros),
                signed(chain.p50_micros),
                ratio,
                json!(timeline).to_string(),
                node
            ],
        )?;
        Ok(())
    }

    fn event(&mut self, event: &Event, tally: &mut Tally) -> rusqlite::Result<()> {
        let left_out = match event {
            Event::Call(call) => return self.call(call, tally),
            Event::OffCpu(e) => return self.off_cpu(e, tally),
            Event::BlockIo(e) => {
                let op = match e.kind {
                    IoKind::Read => Some(1),
                    IoKind::Write => Some(2),
                    IoKind::Discard => Some(3),
                    IoKind::Flush => None,
                };
                match op {
                    Some(op) => {
                        let args = Args {
                            arg0: e.bytes.div_ceil(SECTOR),
                            arg1: e.sector,
                            ..Args::default()
                        };
                        let row = Row {
                            args,
                            dur: e.dur,
                            ..plain(5, op, e.start.plus(e.dur), e.thread)
                        };
                        return self.row(&row, tally);
                    }
                    None => "a flush of a block device",
                }
            }
            Event::Retransmit(e) => {
                let args = Args {
                    arg0: u64::from(e.address) << 32 | u64::from(e.peer_address),
                    arg1: u64::from(e.port) << 16 | u64::from(e.peer_port),
                    ..Args::default()
                };
                let row = Row {
                    args,
                    ..plain(6, 1, e.at, Thread::default())
                };
                return self.row(&row, tally);
            }
            Event::Process(e) => return self.process(e, tally),
            Event::System(e) => return self.snapshot(e, tally),
            Event::Annotation(e) => return self.annotation(e, tally),
            Event::Counts(e) => return self.counts(e),
            Event::InFlight(_) => "a call that had not returned",
            Event::Slice(_) => "a slice of somebody else's on a CPU",
            Event::Stretch(_) => "a stretch of a thread's own account",
            Event::Reclaim(_) => "reclaim",
            Event::Gpu(_) => "a sample of a device",
            Event::FilePath(_) => "a path of a file",
            Event::Lost(_) => "a loss, and how many it was",
            Event::Capture(_) => "that capture was switched on or off",
            Event::ThreadName(_) | Event::ProcessInfo(_) => return Ok(()),
            #[allow(unreachable_patterns, reason = "what came to the model later")]
            _ => "what came after this shape",
        };
        tally.skip_rows("events", left_out, 1);
        Ok(())
    }

    fn call(&mut self, call: &Call, tally: &mut Tally) -> rusqlite::Result<()> {
        let op = call.op.get();
        let hash = self.names.hashes.get(&call.stack_id).copied();
        self.row(
            &Row {
                args: map::args(call),
                dur: call.dur,
                ret: call.ret,
                stack: hash.unwrap_or(0),
                ..plain(op.source as u8, op.number, call.start, call.thread)
            },
            tally,
        )
    }

    fn off_cpu(&mut self, e: &OffCpu, tally: &mut Tally) -> rusqlite::Result<()> {
        let to = |target: u32| Args {
            arg1: target.into(),
            ..Args::default()
        };
        let end = e.start.plus(e.dur);
        if let Some(waker) = e.waker
            && !e.preempted
        {
            let woken = end.minus(e.runnable.min(e.dur));
            let row = Row {
                args: to(e.thread.tid.0),
                ..plain(3, host::SCHED_WAKEUP, woken, waker.thread)
            };
            self.row(&row, tally)?;
        }
        let row = Row {
            args: to(e.last_occupant.0),
            dur: e.dur,
            ..plain(3, host::SCHED_SWITCH, end, e.thread)
        };
        self.row(&row, tally)
    }

    fn process(&mut self, e: &ProcessEvent, tally: &mut Tally) -> rusqlite::Result<()> {
        let main = |pid: u32| Thread::new(pid, pid);
        let (op, at, thread, target, ret) = match *e {
            ProcessEvent::Born { at, parent, child } => (host::FORK, at, parent, child.0, 0),
            ProcessEvent::ThreadBorn { at, parent, child } => (host::FORK, at, parent, child.0, 0),
            ProcessEvent::Exec { at, pid, .. } => (host::EXEC, at, main(pid.0), 0, 0),
            ProcessEvent::Exit { at, pid, status } => (host::EXIT, at, main(pid.0), 0, status),
            ProcessEvent::ThreadExit { at, thread } => (host::EXIT, at, thread, 0, 0),
            ProcessEvent::OomKill { at, victim } => {
                (host::OOM_KILL, at, main(victim.0), victim.0, 0)
            }
        };
        let args = Args {
            arg1: target.into(),
            ..Args::default()
        };
        let row = Row {
            args,
            ret,
            ..plain(3, op, at, thread)
        };
        self.row(&row, tally)
    }

    fn row(&mut self, row: &Row, tally: &mut Tally) -> rusqlite::Result<()> {
        let timestamp = self.unix(row.at);
        self.number += 1;
        let process = self.names.processes.get(&row.thread.pid.0);
        let [rank, local_rank, world_size] = process.map_or_else(Default::default, |p| p.ranks);
        let identity = &self.meta.identity;
        let bits = |value: Option<u64>| value.map(|v| v as i64);
        let node = node(self.meta);
        self.insert.execute(params![
            format!("{node}:{}", self.number),
            timestamp,
            row.thread.pid.0,
            row.thread.tid.0,
            row.source,
            row.op,
            signed(row.dur),
            row.args.gpu_id,
            row.args.arg0 as i64,
            row.args.arg1 as i64,
            row.ret,
            row.stack,
            node,
            rank.or(identity.rank),
            local_rank.or(identity.local_rank),
            world_size.or(identity.world_size),
            self.names.of_thread(row.thread),
            process.map_or(0, |p| p.cgroup as i64),
            bits(row.args.stream),
            bits(row.args.graph),
            bits(row.args.exec),
            bits(row.args.capture_mode),
            row.args.device
        ])?;
        tally.keep("events", 1);

        // The counts of calls come from the session's own, where it has them.
        let is_call = matches!(row.source, 1 | 4 | 8 | 9);
        let counted = is_call && self.names.counted;
        let arg0 = match map::sums_arg0(row.source, row.op) {
            true => row.args.arg0,
            false => 0,
        };
        let new = Sum {
            count: u64::from(!counted),
            stored: 1,
            dur: if counted { 0 } else { row.dur },
            arg0,
            row_dur: Some((row.dur, row.dur)),
            all_dur: None,
        };
        self.add(
            (row.source, row.op, row.thread.pid.0),
            timestamp,
            row.at,
            new,
        )
    }

    fn counts(&mut self, c: &OpCount) -> rusqlite::Result<()> {
        let op = c.key.op.get();
        let mut bounds = None;
        for (bucket, _) in c.durations.buckets() {
            let (low, past) = histogram::bounds(bucket);
            bounds = widen(bounds, (low, past - 1));
        }
        let new = Sum {
            count: c.durations.count(),
            dur: c.total,
            all_dur: bounds,
            ..Sum::default()
        };
        let at = c.window.start;
        self.add(
            (op.source as u8, op.number, c.key.pid.0),
            self.unix(at),
            at,
            new,
        )
    }

    fn add(
        &mut self,
        (source, op, pid): (u8, u16, u32),
        timestamp: i64,
        at: BootNanos,
        new: Sum,
    ) -> rusqlite::Result<()> {
        let timestamp = u64::try_from(timestamp).unwrap_or(0);
        let fine = self.names.end.saturating_sub(at.0) <= FINE;
        for (sums, bucket, wanted) in [
            (&mut self.minutes, MINUTE, true),
            (&mut self.fine, FIVE_SECONDS, fine),
        ] {
            if wanted {
                let key = (timestamp / bucket * bucket, source, op, pid);
                let sum = sums.entry(key).or_default();
                sum.count = sum.count.saturating_add(new.count);
                sum.stored += new.stored;
                sum.dur = sum.dur.saturating_add(new.dur);
                sum.arg0 = sum.arg0.wrapping_add(new.arg0);
                sum.row_dur = new.row_dur.map_or(sum.row_dur, |d| widen(sum.row_dur, d));
                sum.all_dur = new.all_dur.map_or(sum.all_dur, |d| widen(sum.all_dur, d));
            }
        }
        if self.minutes.len() > SUMS || self.fine.len() > SUMS {
            self.flush_sums()?;
        }
        Ok(())
    }

    fn flush_sums(&mut self) -> rusqlite::Result<()> {
        for (table, sums) in [
            ("event_aggregates", std::mem::take(&mut self.minutes)),
            ("event_aggregates_5s", std::mem::take(&mut self.fine)),
        ] {
            let mut insert = self.connection.prepare_cached(&format!(
                "INSERT INTO {table} VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                 ON CONFLICT DO UPDATE SET count = count + excluded.count, stored = stored + excluded.stored,
                 sum_dur = sum_dur + excluded.sum_dur, min_dur = min(min_dur, excluded.min_dur),
                 max_dur = max(max_dur, excluded.max_dur), sum_arg0 = sum_arg0 + excluded.sum_arg0"
            ))?;
            for ((bucket, source, op, pid), sum) in sums {
                let exact = sum.stored >= sum.count;
                let both = sum
                    .all_dur
                    .filter(|_| !exact)
                    .map_or(sum.row_dur, |d| widen(sum.row_dur, d));
                let (min, max) = both.or(sum.all_dur).unwrap_or_default();
                insert.execute(params![
                    signed(bucket),
                    source,
                    op,
                    pid,
                    signed(sum.count),
                    signed(sum.stored),
                    signed(sum.dur),
                    signed(min),
                    signed(max),
                    signed(sum.arg0)
                ])?;
            }
        }
        Ok(())
    }

    fn snapshot(&mut self, s: &SystemSample, tally: &mut Tally) -> rusqlite::Result<()> {
        const MIB: u64 = 1 << 20;
        let used = s.memory_total.saturating_sub(s.memory_available);
        let percent = match s.memory_total {
            0 => 0.0,
            total => used as f64 * 100.0 / total as f64,
        };
        let mut insert = self.connection.prepare_cached(
            "INSERT OR IGNORE INTO system_snapshots (timestamp, cpu_pct, mem_pct, mem_avail, swap_mb, load_avg)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        let new = insert.execute(params![
            self.unix(s.at),
            s.cpu.unwrap_or(0.0) * 100.0,
            percent,
            signed(s.memory_available / MIB),
            signed(s.swap_used / MIB),
            if s.load1.is_finite() { s.load1 } else { 0.0 }
        ])?;
        tally.keep("system_snapshots", new as u64);
        Ok(())
    }

    fn annotation(&mut self, a: &Annotation, tally: &mut Tally) -> rusqlite::Result<()> {
        let span = a
            .span
            .map_or((0, 0), |s| (self.unix(s.start), self.unix(s.end)));
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO annotations (timestamp, labels, pid, start_time, span_start, span_end, peer_uid, peer_gid,
             peer_pid) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?;
        insert.execute(params![
            self.unix(a.at),
            encode_labels(&a.labels),
            a.scope.map_or(0, |s| s.pid.0),
            a.scope.map_or(0, |s| s.start_ticks as i64),
            span.0,
            span.1,
            a.sender.map_or(0, |s| s.uid),
            a.sender.map_or(0, |s| s.gid),
            a.sender.map_or(0, |s| s.pid)
        ])?;
        tally.keep("annotations", 1);
        Ok(())
    }
}

/// A row of which only these are known.
fn plain(source: u8, op: u16, at: BootNanos, thread: Thread) -> Row {
    Row {
        source,
        op,
        at,
        thread,
        dur: 0,
        args: Args::default(),
        ret: 0,
        stack: 0,
    }
}

fn node(meta: &SessionMeta) -> &str {
    if meta.node.is_empty() {
        &meta.host
    } else {
        &meta.node
    }
}

/// SQLite has no unsigned numbers: more than it can hold is its most.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The columns `ips` and `frames` of a stack.
fn stack_json(stack: &Stack) -> (String, String) {
    let mut frames = Vec::new();
    for frame in &stack.frames {
        let (symbol, file, python, function, line) = schema::frame_texts(frame);
        let mut compact = serde_json::Map::new();
        let mut set = |key: &str, text: &str| {
            if !text.is_empty() {
                compact.insert(key.to_owned(), text.into());
            }
        };
        set("s", symbol);
        set("f", file);
        set("pf", python);
        set("pfn", function);
        if compact.is_empty() {
            // Of a frame that nothing is known of.
            continue;
        }
        if symbol.is_empty() && frame.ip != 0 {
            compact.insert("i".to_owned(), format!("{:#x}", frame.ip).into());
        }
        if line > 0 {
            compact.insert("pl".to_owned(), line.into());
        } else if let Some(line) = frame.line.filter(|_| frame.ip != 0) {
            compact.insert("l".to_owned(), line.into());
        }
        frames.push(serde_json::Value::Object(compact));
    }
    if frames.is_empty() {
        let ips: Vec<String> = stack
            .frames
            .iter()
            .map(|f| format!("{:#x}", f.ip))
            .collect();
        (json!(ips).to_string(), String::new())
    } else {
        (String::new(), json!(frames).to_string())
    }
}
