//! Rows become events, in one pass and in the order of the file, which is about the order of time.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;
use warptrace_model::{
    Annotation, BlockIo, BootNanos, Cpu, Event, FileType, Gap, GapCode, Incarnation, IoKind,
    Labels, OffCpu, Pid, ProcessEvent, ProcessInfo, Retransmit, Sender, SystemSample, Thread,
    ThreadName, Tid, Wake, Waker, Window,
};
use warptrace_record::{OpId, Source, UNKNOWN_SYSCALL};

use super::map::{self, Args, Head, SECTOR, SOURCE_NET, host};
use super::nesting::Nesting;
use super::open::{TraceDb, TraceDbError};
use super::schema;
use super::survey::{COMM_BYTES, LAST_NANOS, NODE_BYTES, Node, interval};
use super::table::Column::{Number, Text};
use super::table::{Cells, Wrong};
use super::tally::Tally;
use crate::rows::{Frame, Stack};
use crate::writer::SessionWriter;

/// Events given to the writer at once.
const BATCH: usize = 4_096;
/// Rows after which the writer is told the time, so that it flushes and seals.
const TICK_ROWS: u64 = 65_536;
/// Stacks that events may refer to; more are left out, and counted.
const STACKS: usize = 1 << 20;
/// Bytes of a stack's frames, and frames.
const STACK_BYTES: usize = 256 << 10;
const FRAMES: usize = 1_024;
/// Threads whose name, or waker, is remembered.
const THREADS: usize = 1 << 16;
/// Bytes of an annotation's labels: 32 of the longest, with room for escapes.
const LABEL_BYTES: usize = 96 << 10;

/// What else came out of an import, beside the session.
#[derive(Debug, Default)]
pub struct Imported {
    /// Processes of which only some threads' switches are known: their off-CPU records must not be taken for all.
    pub partly_switched: BTreeSet<u32>,
    /// The counts by minute belong to this node.
    pub has_aggregates: bool,
    /// The number of the last stack, to import another file to the same session.
    pub last_stack: u32,
}

/// Columns of `events`, in the order in which [`Import::row`] reads them.
const COLUMNS: [super::table::Column; 19] = [
    Number("timestamp"),
    Number("duration"),
    Number("pid"),
    Number("tid"),
    Number("source"),
    Number("op"),
    Text("node", NODE_BYTES),
    Text("comm", COMM_BYTES),
    Number("gpu_id"),
    Number("arg0"),
    Number("arg1"),
    Number("ret_code"),
    Number("stack_hash"),
    Text("stack_ips", STACK_BYTES),
    Number("stream"),
    Number("graph"),
    Number("exec"),
    Number("capture_mode"),
    Number("device"),
];

impl TraceDb {
    /// Writes what the file says of `node` to `writer`. `alone`: there is no other node, so that tables which name none
    /// are this one's. Stacks are numbered from after `last_stack`, that of the session's import before, or 0. `progress`
    /// gets the rows so far.
    ///
    /// # Errors
    /// [`TraceDbError::Sqlite`] when SQLite refuses a query; damage and rows that make no sense are in `tally`.
    pub fn import(
        &self,
        node: &Node,
        alone: bool,
        last_stack: u32,
        writer: &mut SessionWriter,
        tally: &mut Tally,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Imported, TraceDbError> {
        let own = self.is_own_export();
        let mut import = Import {
            node,
            writer,
            batch: Vec::with_capacity(BATCH),
            nesting: Nesting::default(),
            stacks: HashMap::new(),
            last_stack,
            stacks_used: false,
            names: HashMap::new(),
            wakers: HashMap::new(),
            latest: BootNanos(node.first),
            rows: 0,
            told: 0,
            switches: 0,
            switches_unknown: 0,
            streamless: 0,
            flat_copies: 0,
            own,
        };
        self.stacks(&mut import, tally)?;
        let cgroups = self.cgroups(tally)?;
        let process_names = self.process_names(tally)?;
        import.processes(&cgroups, &process_names, alone);
        self.scan("events", &COLUMNS, tally, |tally, cells| {
            import.rows += 1;
            if import.rows.is_multiple_of(8_192) {
                progress(import.rows);
            }
            if cells.text(6).unwrap_or_default() == node.name.as_str()
                && let Err(Wrong(reason)) = import.row(tally, &cells)
            {
                tally.skip("events", reason, cells.rowid);
            }
        })?;
        import.rest();
        if alone {
            self.snapshots(&mut import, tally)?;
            self.annotations(&mut import, tally)?;
        } else {
            for table in ["system_snapshots", "annotations", "event_aggregates"] {
                let rows = self.count(table);
                tally.skip_rows(
                    table,
                    "does not say of which of the file's nodes it is",
                    rows,
                );
            }
        }
        import.rest();
        for (table, why) in [
            (
                "causal_chains",
                "conclusions of another engine; ours are drawn from the events",
            ),
            (
                "cgroup_schedstat",
                "sums over a control group, which follow from the events",
            ),
            (
                "event_aggregates_5s",
                "the same events as event_aggregates counts",
            ),
        ] {
            tally.skip_rows(table, why, self.count(table));
        }
        let partly_switched = node.partly_switched();
        import.tell_gaps(&partly_switched);
        let end = BootNanos(node.last).max(import.latest);
        let last_stack = import.last_stack;
        import.writer.tick(end);
        Ok(Imported {
            partly_switched,
            has_aggregates: alone && self.schema.has_table("event_aggregates"),
            last_stack,
        })
    }

    fn count(&self, table: &str) -> u64 {
        if !self.schema.has_table(table) {
            return 0;
        }
        let sql = format!("SELECT count(*) FROM main.\"{table}\"");
        let count = self
            .connection
            .query_row(&sql, [], |row| row.get::<_, i64>(0));
        let count = count.ok().and_then(|n| u64::try_from(n).ok());
        count.unwrap_or(0).min(self.rows_at_most)
    }

    /// Whether [`super::export`] wrote it.
    fn is_own_export(&self) -> bool {
        let mut own = false;
        let columns = [Text("key", 64)];
        let _ = self.scan(
            "schema_info",
            &columns,
            &mut Tally::default(),
            |_, cells| {
                own |= cells.text(0).is_ok_and(|key| key == schema::OWN_KEY);
            },
        );
        own
    }

    fn stacks(&self, import: &mut Import<'_>, tally: &mut Tally) -> Result<(), TraceDbError> {
        let columns = [
            Number("hash"),
            Text("ips", STACK_BYTES),
            Text("frames", STACK_BYTES),
        ];
        let mut batch = Vec::new();
        self.scan("stack_traces", &columns, tally, |tally, cells| {
            let mut stack = || -> Result<Stack, Wrong> {
                let hash = cells.int(0)?.ok_or(Wrong("it has no hash"))?;
                let frames = match &*cells.text(2)? {
                    "" => addresses(&cells.text(1)?)?,
                    json => frames(json)?,
                };
                let id = import
                    .intern(hash)
                    .ok_or(Wrong("more stacks than are told apart"))?;
                Ok(Stack { id, frames })
            };
            match stack() {
                Ok(stack) => {
                    tally.keep("stack_traces", 1);
                    batch.push(stack);
                }
                Err(Wrong(reason)) => tally.skip("stack_traces", reason, cells.rowid),
            }
            if batch.len() >= 256 {
                import.writer.resolved_stacks(&batch);
                batch.clear();
            }
        })?;
        import.writer.resolved_stacks(&batch);
        Ok(())
    }

    /// Path and container of each control group.
    fn cgroups(&self, tally: &mut Tally) -> Result<HashMap<u64, (String, String)>, TraceDbError> {
        const CGROUPS: usize = 1 << 16;
        let columns = [
            Number("cgroup_id"),
            Text("cgroup_path", 4_096),
            Text("container_id", 256),
        ];
        let mut cgroups = HashMap::new();
        self.scan("cgroup_metadata", &columns, tally, |tally, cells| {
            let row = (cells.bits(0), cells.text(1), cells.text(2));
            match row {
                (Ok(id), Ok(path), Ok(container)) if cgroups.len() < CGROUPS => {
                    tally.keep("cgroup_metadata", 1);
                    cgroups.insert(id, (path.into_owned(), container.into_owned()));
                }
                (Ok(_), Ok(_), Ok(_)) => {
                    tally.skip("cgroup_metadata", "more than are told apart", cells.rowid);
                }
                _ => tally.skip("cgroup_metadata", "a value of the wrong type", cells.rowid),
            }
        })?;
        Ok(cgroups)
    }

    fn process_names(&self, tally: &mut Tally) -> Result<BTreeMap<u32, String>, TraceDbError> {
        let columns = [Number("pid"), Text("name", COMM_BYTES)];
        let mut names = BTreeMap::new();
        self.scan("process_names", &columns, tally, |tally, cells| {
            match (cells.number::<u32>(0), cells.text(1)) {
                (Ok(pid), Ok(name)) if names.len() < THREADS => {
                    tally.keep("process_names", 1);
                    names.insert(pid, name.into_owned());
                }
                (Ok(_), Ok(_)) => {
                    tally.skip("process_names", "more than are told apart", cells.rowid);
                }
                (Err(Wrong(reason)), _) | (_, Err(Wrong(reason))) => {
                    tally.skip("process_names", reason, cells.rowid);
                }
            }
        })?;
        Ok(names)
    }

    fn snapshots(&self, import: &mut Import<'_>, tally: &mut Tally) -> Result<(), TraceDbError> {
        let columns = [
            Number("timestamp"),
            Number("cpu_pct"),
            Number("mem_pct"),
            Number("mem_avail"),
            Number("swap_mb"),
            Number("load_avg"),
        ];
        self.scan("system_snapshots", &columns, tally, |tally, cells| {
            let sample = || -> Result<SystemSample, Wrong> {
                const MIB: u64 = 1 << 20;
                let fraction = |column| -> Result<Option<f64>, Wrong> {
                    match cells.real(column)? {
                        Some(percent) if (0.0..=100.0).contains(&percent) => {
                            Ok(Some(percent / 100.0))
                        }
                        Some(_) => Err(Wrong("a percentage is out of range")),
                        None => Ok(None),
                    }
                };
                let available: u64 = cells.number(3)?;
                let used = fraction(2)?;
                // The total follows from what is available and which part of it is used.
                let total = used
                    .filter(|used| *used < 1.0)
                    .map_or(0.0, |used| available as f64 / (1.0 - used));
                Ok(SystemSample {
                    at: at(cells.number(0)?)?,
                    cpu: fraction(1)?,
                    memory_total: (total.round() as u64).saturating_mul(MIB),
                    memory_available: available.saturating_mul(MIB),
                    swap_used: cells.number::<u64>(4)?.saturating_mul(MIB),
                    load1: cells.real(5)?.unwrap_or(f64::NAN),
                    load5: f64::NAN,
                    ..SystemSample::default()
                })
            };
            match sample() {
                Ok(sample) => {
                    tally.keep("system_snapshots", 1);
                    import.give(Event::System(Box::new(sample)));
                }
                Err(Wrong(reason)) => tally.skip("system_snapshots", reason, cells.rowid),
            }
        })
    }

    fn annotations(&self, import: &mut Import<'_>, tally: &mut Tally) -> Result<(), TraceDbError> {
        let columns = [
            Number("timestamp"),
            Text("labels", LABEL_BYTES),
            Number("pid"),
            Number("start_time"),
            Number("span_start"),
            Number("span_end"),
            Number("peer_uid"),
            Number("peer_gid"),
            Number("peer_pid"),
        ];
        self.scan(
            "annotations",
            &columns,
            tally,
            |tally, cells| match annotation(&cells) {
                Ok(annotation) => {
                    tally.keep("annotations", 1);
                    import.give(Event::Annotation(Box::new(annotation)));
                }
                Err(Wrong(reason)) => tally.skip("annotations", reason, cells.rowid),
            },
        )
    }
}

/// A moment of Unix time, which is the boot clock of an imported session.
fn at(nanos: u64) -> Result<BootNanos, Wrong> {
    match nanos {
        0 => Err(Wrong("it has no time")),
        1..=LAST_NANOS => Ok(BootNanos(nanos)),
        _ => Err(Wrong("its time is out of range")),
    }
}

fn annotation(cells: &Cells<'_>) -> Result<Annotation, Wrong> {
    let text = cells.text(1)?;
    let said: BTreeMap<String, String> = serde_json::from_str(&text)
        .map_err(|_| Wrong("its labels are no JSON object of texts, or too long"))?;
    let mut labels = Labels::default();
    for (key, value) in &said {
        labels
            .insert(key, value)
            .map_err(|_| Wrong("a label is not allowed (key, length or number)"))?;
    }
    let span = match (cells.number::<u64>(4)?, cells.number::<u64>(5)?) {
        (0, 0) => None,
        (start, end) if start <= end => Some(Window {
            start: at(start)?,
            end: at(end)?,
        }),
        _ => return Err(Wrong("its span ends before it begins")),
    };
    let pid: u32 = cells.number(2)?;
    let sender = Sender {
        uid: cells.number(6)?,
        gid: cells.number(7)?,
        pid: cells.number(8)?,
    };
    Ok(Annotation {
        at: at(cells.number(0)?)?,
        span,
        scope: (pid != 0)
            .then(|| {
                Ok(Incarnation {
                    pid: Pid(pid),
                    start_ticks: cells.bits(3)?,
                })
            })
            .transpose()?,
        labels,
        // All zero: the columns' defaults. A process that sends has a pid.
        sender: (sender.pid != 0).then_some(sender),
    })
}

/// A frame as the file keeps it; all keys may be missing.
#[derive(Deserialize)]
struct CompactFrame {
    /// Address in hex, only where there is no symbol.
    #[serde(default)]
    i: String,
    #[serde(default)]
    s: String,
    /// Base name of the file that is mapped there.
    #[serde(default)]
    f: String,
    #[serde(default)]
    l: i64,
    #[serde(default)]
    pf: String,
    #[serde(default)]
    pfn: String,
    #[serde(default)]
    pl: i64,
}

fn frames(json: &str) -> Result<Vec<Frame>, Wrong> {
    let compact: Vec<CompactFrame> =
        serde_json::from_str(json).map_err(|_| Wrong("its frames are not the JSON of a stack"))?;
    if compact.len() > FRAMES {
        return Err(Wrong("it has too many frames"));
    }
    let some = |text: String| (!text.is_empty()).then_some(text);
    let line = |n: i64| u32::try_from(n).ok().filter(|n| *n > 0);
    Ok(compact
        .into_iter()
        .map(|c| {
            if c.pf.is_empty() && c.pfn.is_empty() {
                Frame {
                    ip: hex(&c.i).unwrap_or(0),
                    module: some(c.f),
                    function: some(c.s),
                    line: line(c.l),
                    ..Frame::default()
                }
            } else {
                Frame {
                    function: some(c.pfn),
                    file: some(c.pf),
                    line: line(c.pl),
                    ..Frame::default()
                }
            }
        })
        .collect())
}

fn addresses(json: &str) -> Result<Vec<Frame>, Wrong> {
    const WRONG: Wrong = Wrong("its addresses are not a JSON list of hex texts");
    let texts: Vec<String> = match json {
        "" => Vec::new(),
        json => serde_json::from_str(json).map_err(|_| WRONG)?,
    };
    if texts.len() > FRAMES {
        return Err(Wrong("it has too many frames"));
    }
    texts
        .iter()
        .map(|text| {
            Ok(Frame {
                ip: hex(text).ok_or(WRONG)?,
                ..Frame::default()
            })
        })
        .collect()
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

struct Import<'a> {
    node: &'a Node,
    writer: &'a mut SessionWriter,
    batch: Vec<Event>,
    nesting: Nesting,
    /// Our ids, by the file's hashes.
    stacks: HashMap<i64, u32>,
    last_stack: u32,
    stacks_used: bool,
    /// The last name of each thread.
    names: HashMap<Thread, Box<str>>,
    /// Of each thread, when and by whom it was woken last.
    wakers: HashMap<u32, (u64, Thread)>,
    latest: BootNanos,
    rows: u64,
    told: u64,
    switches: u64,
    switches_unknown: u64,
    /// Asynchronous copies without a stream, and two-dimensional ones with the bytes of a row only.
    streamless: u64,
    flat_copies: u64,
    own: bool,
}

impl Import<'_> {
    fn intern(&mut self, hash: i64) -> Option<u32> {
        if let Some(id) = self.stacks.get(&hash) {
            return Some(*id);
        }
        if self.stacks.len() >= STACKS {
            return None;
        }
        self.last_stack = self.last_stack.checked_add(1)?;
        self.stacks.insert(hash, self.last_stack);
        Some(self.last_stack)
    }

    /// What is known of processes before their rows are read.
    fn processes(
        &mut self,
        cgroups: &HashMap<u64, (String, String)>,
        names: &BTreeMap<u32, String>,
        alone: bool,
    ) {
        let mut infos = Vec::new();
        for (&pid, seen) in &self.node.processes {
            let (cgroup, container) = cgroups.get(&seen.cgroup).cloned().unwrap_or_default();
            let older = names.get(&pid).filter(|_| alone && seen.name.is_empty());
            infos.push(Event::ProcessInfo(Box::new(ProcessInfo {
                incarnation: Incarnation {
                    pid: Pid(pid),
                    start_ticks: 0,
                },
                name: older.unwrap_or(&seen.name).clone(),
                // The first that is known of it.
                start: BootNanos(seen.first),
                in_job: seen.calls,
                cgroup,
                container_id: container,
                rank: seen.rank,
                local_rank: seen.local_rank,
                world_size: seen.world_size,
                ..ProcessInfo::default()
            })));
        }
        for event in infos {
            self.give(event);
        }
        if alone {
            for (&pid, name) in names {
                if !name.is_empty()
                    && self
                        .node
                        .processes
                        .get(&pid)
                        .is_none_or(|p| p.name.is_empty())
                {
                    self.give(Event::ThreadName(ThreadName {
                        thread: Thread::new(pid, pid),
                        name: name.as_str().into(),
                    }));
                }
            }
        }
    }

    fn give(&mut self, event: Event) {
        if let Some(end) = event.end() {
            self.latest = self.latest.max(end);
        }
        self.batch.push(event);
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.writer.events(&self.batch);
        self.batch.clear();
        if self.rows - self.told >= TICK_ROWS {
            self.told = self.rows;
            self.writer.tick(self.latest);
        }
    }

    fn rest(&mut self) {
        while let Some(call) = self.nesting.pop() {
            self.give(Event::Call(call));
        }
        self.flush();
    }

    /// One row of `events`.
    fn row(&mut self, tally: &mut Tally, cells: &Cells<'_>) -> Result<(), Wrong> {
        let source: u8 = cells.number(4)?;
        let op: u16 = cells.number(5)?;
        let timestamp: u64 = cells.number(0)?;
        at(timestamp)?;
        let (start, end) = interval(source, op, timestamp, cells.number(1)?);
        let (start, dur) = (BootNanos(start), at(end)?.0 - start);
        let mut thread = Thread::new(cells.number(2)?, cells.number(3)?);
        if source == 3 && op == host::SCHED_SWITCH && thread.pid.0 == thread.tid.0 {
            // A thread other than the main one, under its own number.
            thread.pid = self.node.process_of(thread.tid.0).map_or(thread.pid, Pid);
        }
        let target: u32 = match source {
            3 => cells.number(10)?,
            _ => 0,
        };
        let mut kept = true;
        match source {
            1 | 4 | 8 | 9 => {
                let op = Source::from_u8(source)
                    .and_then(|source| OpId::find(source, op))
                    .ok_or(Wrong("a call that is not known"))?;
                let call = self.call(op, thread, start, dur, cells)?;
                if let Some(call) = self.nesting.push(call) {
                    self.give(Event::Call(call));
                }
            }
            3 => match op {
                host::SCHED_SWITCH => self.off_cpu(thread, start, dur, target),
                host::SCHED_WAKEUP => {
                    if self.wakers.len() >= THREADS && !self.wakers.contains_key(&target) {
                        self.wakers.clear();
                    }
                    self.wakers.insert(target, (start.0, thread));
                }
                host::OOM_KILL => self.give(Event::Process(ProcessEvent::OomKill {
                    at: start,
                    victim: Pid(target),
                })),
                host::EXEC => self.give(Event::Process(ProcessEvent::Exec {
                    at: start,
                    pid: thread.pid,
                    start_ticks: 0,
                })),
                host::EXIT => self.give(Event::Process(match thread.pid.0 == thread.tid.0 {
                    true => ProcessEvent::Exit {
                        at: start,
                        pid: thread.pid,
                        status: cells.number(11)?,
                    },
                    false => ProcessEvent::ThreadExit { at: start, thread },
                })),
                host::FORK => kept = self.fork(tally, cells, start, thread, target),
                other => return Err(Wrong(host::other(other))),
            },
            5 => self.give(Event::BlockIo(BlockIo {
                thread,
                start,
                dur,
                kind: match op {
                    1 => IoKind::Read,
                    2 => IoKind::Write,
                    3 => IoKind::Discard,
                    _ => return Err(Wrong("a block request that is not known")),
                },
                bytes: cells
                    .bits(9)?
                    .checked_mul(SECTOR)
                    .ok_or(Wrong("a number is out of range"))?,
                sector: cells.bits(10)?,
                dev: 0,
                inode: 0,
                error: 0,
            })),
            6 => {
                let (addresses, ports) = (cells.bits(9)?, cells.bits(10)?);
                self.give(Event::Retransmit(Retransmit {
                    at: start,
                    address: (addresses >> 32) as u32,
                    peer_address: addresses as u32,
                    port: (ports >> 16) as u16,
                    peer_port: ports as u16,
                }));
            }
            SOURCE_NET => {
                return Err(Wrong(
                    "socket calls (net_send, net_recv) are no events of ours",
                ));
            }
            _ => return Err(Wrong("a source that is not known")),
        }
        if kept {
            tally.keep("events", 1);
        }
        // Whoever was interrupted by a retransmit has a name, too; a wake-up's row names the waker.
        self.name(thread, &cells.text(7)?);
        Ok(())
    }

    fn call(
        &mut self,
        op: OpId,
        thread: Thread,
        start: BootNanos,
        dur: u64,
        cells: &Cells<'_>,
    ) -> Result<warptrace_model::Call, Wrong> {
        let handle = |column| Ok::<_, Wrong>(cells.int(column)?.map(|bits| bits as u64));
        let args = Args {
            gpu_id: cells.number(8)?,
            arg0: cells.bits(9)?,
            arg1: cells.bits(10)?,
            stream: handle(14)?,
            graph: handle(15)?,
            exec: handle(16)?,
            capture_mode: handle(17)?,
            device: cells.number_if(18)?,
        };
        let stack_id = match cells.int(12)?.unwrap_or(0) {
            0 => self.legacy_stack(cells)?,
            hash => self.stacks.get(&hash).copied().unwrap_or(0),
        };
        self.stacks_used |= stack_id != 0;
        if !self.own {
            self.streamless += u64::from(matches!(
                op.name(),
                "cudaMemcpyAsync" | "cuMemcpyAsync" | "cuLaunchKernel"
            ));
            self.flat_copies +=
                u64::from(matches!(op.name(), "cudaMemcpy2D" | "cudaMemcpy2DAsync"));
        }
        let head = Head {
            thread,
            start,
            dur,
            ret: cells.number(11)?,
            stack_id,
        };
        Ok(map::call(op, head, &args))
    }

    /// The stack of a row of the oldest files, which has its addresses with it.
    fn legacy_stack(&mut self, cells: &Cells<'_>) -> Result<u32, Wrong> {
        let text = cells.text(13)?;
        if text.is_empty() {
            return Ok(0);
        }
        let frames = addresses(&text)?;
        let hash = schema::hash_of_addresses(frames.iter().map(|f| f.ip));
        let known = self.stacks.len();
        let Some(id) = self.intern(hash) else {
            return Ok(0);
        };
        if self.stacks.len() > known {
            self.writer.resolved_stacks(&[Stack { id, frames }]);
        }
        Ok(id)
    }

    fn off_cpu(&mut self, thread: Thread, start: BootNanos, dur: u64, before: u32) {
        self.switches += 1;
        let end = start.0 + dur;
        let woken = self.wakers.get(&thread.tid.0).copied();
        let woken = woken.filter(|(at, _)| (start.0..=end).contains(at));
        self.switches_unknown += u64::from(woken.is_none());
        self.give(Event::OffCpu(OffCpu {
            thread,
            start,
            dur,
            runnable: woken.map_or(0, |(at, _)| end - at),
            throttled: 0,
            preempted: false,
            iowait: false,
            uninterruptible: false,
            stopped: false,
            timed: false,
            poll_socket: false,
            syscall: Some(UNKNOWN_SYSCALL),
            fd: None,
            file: FileType::None,
            waker: woken
                .filter(|(_, thread)| thread.tid.0 != 0)
                .map(|(_, thread)| Waker {
                    thread,
                    by: Wake::Other,
                }),
            last_occupant: Tid(before),
            cpu: Cpu(0),
        }));
    }

    /// A new thread, or a new process: other rows tell which.
    fn fork(
        &mut self,
        tally: &mut Tally,
        cells: &Cells<'_>,
        at: BootNanos,
        parent: Thread,
        child: u32,
    ) -> bool {
        match self.node.process_of(child) {
            Some(pid) if pid == child => self.give(Event::Process(ProcessEvent::Born {
                at,
                parent,
                child: Pid(child),
            })),
            Some(_) => self.give(Event::Process(ProcessEvent::ThreadBorn {
                at,
                parent,
                child: Tid(child),
            })),
            None => {
                let why = "process_fork: whether a process or a thread was born cannot be told";
                tally.skip("events", why, cells.rowid);
                return false;
            }
        }
        true
    }

    fn name(&mut self, thread: Thread, name: &str) {
        if name.is_empty()
            || thread.tid.0 == 0
            || self.names.get(&thread).is_some_and(|n| &**n == name)
        {
            return;
        }
        if self.names.len() >= THREADS && !self.names.contains_key(&thread) {
            self.names.clear();
        }
        self.names.insert(thread, name.into());
        self.give(Event::ThreadName(ThreadName {
            thread,
            name: name.into(),
        }));
    }

    /// What the file could not say, with how often it mattered.
    fn tell_gaps(&mut self, partly_switched: &BTreeSet<u32>) {
        let gap = |code, detail: &str, count| Gap {
            code,
            detail: detail.to_owned(),
            count,
        };
        let mut gaps = vec![gap(
            GapCode::NoNvml,
            "clocks and memory of the device: the imported trace has none",
            1,
        )];
        if self.switches_unknown > 0 {
            gaps.push(gap(
                GapCode::NotRecorded,
                "why a thread left its CPU, and how long of it it waited to get one back: the imported trace says it only where it has the wake-up",
                self.switches_unknown,
            ));
        }
        if self.switches > 0 {
            gaps.push(gap(
                GapCode::NoSchedulerRecords,
                "who had the CPU meanwhile: the imported trace names only who ran last",
                self.switches,
            ));
        }
        for (count, detail) in [
            (
                self.streamless,
                "streams of asynchronous copies and of driver launches: the imported trace has none, and they count as the default stream's",
            ),
            (
                self.flat_copies,
                "bytes of two-dimensional copies: the imported trace has those of one row",
            ),
            (
                partly_switched.len() as u64,
                "where the threads of a process were between calls: the imported trace follows only some of them, so none is judged by it",
            ),
            (
                u64::from(self.node.overfull),
                "all threads and processes of the imported trace: there were too many to remember",
            ),
        ] {
            if count > 0 {
                gaps.push(gap(GapCode::NotRecorded, detail, count));
            }
        }
        if !self.stacks_used {
            gaps.push(gap(
                GapCode::NoStacks,
                "lines of code: the imported trace has no stacks",
                1,
            ));
        }
        self.writer.gaps(&gaps);
    }
}
