//! Capture by eBPF: any process, from outside, at full detail.
//!
//! Loads the committed object of `bpf/`, places two uprobe-multi links in every library that exports CUDA's or NCCL's
//! entry points, as processes map it, and reads what the programs send. Needs Linux 5.15 with type information (perf events
//! take the place of the links before 6.6), and CAP_BPF and CAP_PERFMON; CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH to look
//! into other users' processes. What a machine does not have (a tracepoint, a library's symbols) is a gap, said once. It
//! does not know what a record means for a unit.
//!
//! Processes and threads are numbered as our own pid namespace does. One that is not in it (a hog of the machine, seen
//! from a container) keeps the machine's number with the top bit set.
//!
//! Nobody is woken by a record: [`Source::poll`] is called every few ms to 50 ms, and [`Ebpf::wait`] returns early only
//! when the ring is a quarter full. Dropping the value stops everything, as does the end of this process, however it
//! comes: nothing is pinned.

pub mod kernel;
mod layout;
mod library;
mod mappings;
mod uprobes;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use libbpf_rs::{
    Link, MapCore as _, MapFlags, Object, ObjectBuilder, OpenObject, PrintLevel, ProgramAttachType,
    ProgramInput, RingBuffer, RingBufferBuilder,
};
use warptrace_model::{
    BootNanos, Device, FilePath, Gap, GapCode, Histogram, Loss, LossReason, OpCount, OpKey, Pid,
    Thread, ThreadName, Window,
};
use warptrace_record::{Kind, NO_SYSCALL, Record, flag, process};

use self::kernel::{Kernel, ProbeKind, Refusal, Version};
use self::layout::{Count, Settings};
use self::library::{FileKey, Library};
use self::mappings::{Mappings, Seen};
use self::uprobes::Uprobes;
use crate::symbols::UserStack;
use crate::{Batch, Source, SourceError, clock, maps, proc};

pub use self::library::AttachError;
pub(crate) use self::library::is_candidate;

#[cfg(target_arch = "x86_64")]
static OBJECT: &[u8] = include_bytes!("../../../../bpf/warptrace.x86_64.bpf.o");
#[cfg(target_arch = "aarch64")]
static OBJECT: &[u8] = include_bytes!("../../../../bpf/warptrace.aarch64.bpf.o");

/// How to capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Bytes of the ring: a power of two, at least 4096.
    pub ring_bytes: u32,
    /// Trace only these processes, and their children from now on; `None`: whoever makes a traced call.
    pub pids: Option<Vec<u32>>,
    /// Libraries to probe at once, mapped by somebody or not: those that a command about to start may load.
    pub libraries: Vec<PathBuf>,
    /// Off-CPU records shorter than this are not sent, ns.
    pub off_cpu_min_nanos: u64,
    /// A user stack is taken of calls that can wait and took at least so long, ns; 0: never.
    pub stack_min_nanos: u64,
    /// Record block requests of every process, not of watched ones and kernel threads alone.
    pub all_block_io: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            ring_bytes: 8 << 20,
            pids: None,
            libraries: Vec::new(),
            off_cpu_min_nanos: 0,
            stack_min_nanos: 1_000_000,
            all_block_io: false,
        }
    }
}

/// Why capture did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("ring-size {0} is not a power of two of at least 4096 bytes")]
    RingSize(u32),
    #[error("no process {0}")]
    NoProcess(u32),
    #[error("the kernel refused the BPF {what} ({hint})")]
    Kernel {
        what: &'static str,
        hint: &'static str,
        #[source]
        source: libbpf_rs::Error,
    },
}

impl From<StartError> for SourceError {
    fn from(error: StartError) -> SourceError {
        let mut what = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            what = format!("{what}: {cause}");
            source = cause.source();
        }
        SourceError::Refused { what, source: None }
    }
}

fn refused(what: &'static str, source: libbpf_rs::Error) -> StartError {
    StartError::Kernel {
        what,
        hint: "run with RUST_LOG=warptrace_capture=debug for the verifier's words",
        source,
    }
}

/// Records taken from the ring in one poll at most, so that a flood cannot keep the caller.
const MAX_POLL: usize = 1 << 16;

/// Counts and losses are read this often, ns.
const COUNTS_EVERY: u64 = 1_000_000_000;

/// Most descriptors whose paths are remembered, most processes and threads: then the memory is emptied.
const MAX_KNOWN: usize = 1 << 14;

/// Stacks in the kernel's map, of which it holds 8192, at which it is emptied.
const MAX_STACKS: usize = 4096;

/// Entries of the map of counts where all of it is taken at the start, 2.5 KiB each.
const FIXED_COUNTS: u32 = 2048;

/// Where a block request begins; and what is probed instead on kernels before 6.5, which do not tell it.
const IO_START: &str = "block_io_start";
const INSTEAD_OF_IO_START: [&str; 2] = ["block_bio_queue", "block_split"];

fn stand_in_for_io_start(kernel: &Kernel) -> bool {
    let has = |name: &&str| kernel.has_tracepoint(name);
    !kernel.has_tracepoint(IO_START) && INSTEAD_OF_IO_START.iter().all(has)
}

/// What the ring's callback fills.
#[derive(Default)]
struct Inbox {
    records: Vec<Record>,
    malformed: u64,
}

/// Calls of one key.
#[derive(Default)]
struct Tally {
    total: u64,
    durations: Histogram,
}

/// A running capture.
pub struct Ebpf {
    // Links are closed first, then the programs and maps that they use.
    uprobes: Uprobes,
    links: Vec<Link>,
    mappings: Option<Mappings>,
    ring: RingBuffer<'static>,
    inbox: Arc<Mutex<Inbox>>,
    object: Object,

    kernel: Kernel,
    started: BootNanos,
    /// Places that have a probe, by file.
    probed: HashMap<FileKey, HashSet<u64>>,
    /// Paths that failed, or had nothing new: not tried again for each process.
    failed: HashSet<PathBuf>,
    /// Calls since the last count: those of records, and those that the kernel counted for want of one.
    tally: HashMap<OpKey, Tally>,
    /// The kernel's counts when they were last read.
    counts: HashMap<[u8; 8], Count>,
    counted_at: BootNanos,
    losses: [u64; layout::LOSSES],
    /// Number of the last record of each CPU, and whether one was missing since losses were last read.
    last_seq: HashMap<u32, u32>,
    gap_seen: bool,
    /// When the poll before last and the last one ended: what was lost since shows by the next record of its CPU.
    polled_at: [BootNanos; 2],
    /// Watched processes.
    job: HashSet<u32>,
    /// Those that were named, and are not told of yet.
    named: Vec<u32>,
    /// Those that were named before they began their program.
    fresh: HashSet<u32>,
    /// Processes whose facts were sent.
    told: HashSet<u32>,
    /// Processes that ended since the last count.
    ended: Vec<u32>,
    /// Path last sent of a process's descriptor.
    paths: HashMap<(u32, i32), String>,
    /// The process and the kernel's number of a stack that was read, and ours, which is never given twice.
    stacks: HashMap<(u32, u32), u32>,
    next_stack: u32,
    gaps: Vec<Gap>,
    stopped: bool,
}

impl Ebpf {
    /// Loads and attaches everything, and looks for libraries that running processes have mapped.
    ///
    /// # Errors
    /// [`StartError`]; nothing stays attached.
    pub fn start(options: &Options) -> Result<Ebpf, StartError> {
        Ebpf::start_on(Kernel::probe(), options)
    }

    /// [`Ebpf::start`], on a kernel that was asked before.
    ///
    /// # Errors
    /// As [`Ebpf::start`].
    pub fn start_on(kernel: Kernel, options: &Options) -> Result<Ebpf, StartError> {
        if let Some(refusal) = kernel.refusal() {
            return Err(refusal.into());
        }
        if !options.ring_bytes.is_power_of_two() || options.ring_bytes < 4096 {
            return Err(StartError::RingSize(options.ring_bytes));
        }
        for pid in options.pids.iter().flatten() {
            if !Path::new(&format!("/proc/{pid}")).exists() {
                return Err(StartError::NoProcess(*pid));
            }
        }
        log_libbpf();
        if kernel.probe_kind() == ProbeKind::PerfEvents {
            // Four descriptors a function.
            crate::sys::raise_descriptor_limit();
        }
        let started = clock::boot_now();
        let mut gaps = Vec::new();
        let object = load(&kernel, options, started, &mut gaps)?;
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let ring = open_ring(&object, Arc::clone(&inbox)).map_err(|e| refused("ring", e))?;
        let mut ebpf = Ebpf {
            uprobes: Uprobes::default(),
            links: Vec::new(),
            mappings: None,
            ring,
            inbox,
            object,
            kernel,
            started,
            probed: HashMap::new(),
            failed: HashSet::new(),
            tally: HashMap::new(),
            counts: HashMap::new(),
            counted_at: started,
            losses: [0; layout::LOSSES],
            last_seq: HashMap::new(),
            gap_seen: false,
            polled_at: [started; 2],
            job: HashSet::new(),
            named: Vec::new(),
            fresh: HashSet::new(),
            told: HashSet::new(),
            ended: Vec::new(),
            paths: HashMap::new(),
            stacks: HashMap::new(),
            next_stack: 1,
            gaps,
            stopped: false,
        };
        for pid in options.pids.iter().flatten() {
            ebpf.watch(*pid, false)?;
        }
        ebpf.attach_tracepoints()?;
        match Mappings::open() {
            Ok(mappings) => ebpf.mappings = Some(mappings),
            Err(error) => ebpf.gap(
                GapCode::ProbeMissing,
                format!("libraries loaded from now on are not found: perf_event_open: {error}"),
            ),
        }
        for path in &options.libraries {
            ebpf.find(path.clone());
        }
        match &options.pids {
            Some(pids) => pids.iter().for_each(|pid| ebpf.find_in_process(*pid)),
            None => ebpf.find_everywhere(),
        }
        Ok(ebpf)
    }

    /// Watches a process from now on, and the children that it will have. `from_start`: it has not begun its program yet.
    ///
    /// # Errors
    /// [`StartError::Kernel`] when the kernel refused.
    pub fn watch(&mut self, pid: u32, from_start: bool) -> Result<(), StartError> {
        let mut args = [0; 8];
        args[..4].copy_from_slice(&pid.to_le_bytes());
        args[4..].copy_from_slice(&u32::from(from_start).to_le_bytes());
        let program = self
            .object
            .progs_mut()
            .find(|p| p.name() == "watch")
            .ok_or_else(|| {
                refused(
                    "program watch",
                    io::Error::from(io::ErrorKind::NotFound).into(),
                )
            })?;
        program
            .test_run(ProgramInput {
                context_in: Some(&mut args),
                ..ProgramInput::default()
            })
            .map_err(|e| refused("program watch", e))?;
        self.job.insert(pid);
        self.named.push(pid);
        if from_start {
            remember(&mut self.fresh, pid);
        }
        Ok(())
    }

    /// Places probes in a library, unless they are there; the number of new ones.
    ///
    /// Cost: reads the library's symbols, and 5 ms.
    ///
    /// # Errors
    /// [`AttachError`]; what was probed before stays so.
    pub fn attach_library(&mut self, path: &Path) -> Result<usize, AttachError> {
        let library = Library::open(path)?;
        if self.probed.contains_key(&library.key) {
            return Ok(0);
        }
        let points = library.points()?;
        self.uprobes
            .place(
                self.kernel.probe_kind(),
                &mut self.object,
                &library,
                &points,
            )
            .map_err(|source| AttachError::Refused {
                path: library.path.clone(),
                source,
            })?;
        let places = points.iter().map(|p| p.offset).collect();
        self.probed.insert(library.key, places);
        tracing::debug!(path = %path.display(), probes = points.len(), "library probed");
        Ok(points.len())
    }

    /// Sleeps until the ring is a quarter full, or for `most`.
    pub fn wait(&self, most: Duration) {
        crate::sys::wait_readable(self.ring.epoll_fd(), most);
    }

    fn attach_tracepoints(&mut self) -> Result<(), StartError> {
        let mut links = Vec::new();
        let mut failed = Vec::new();
        for program in self.object.progs_mut() {
            let section = program.section().to_string_lossy().into_owned();
            let Some(tracepoint) = section.strip_prefix("tp_btf/") else {
                continue;
            };
            if !program.autoload() {
                continue;
            }
            match program.attach() {
                Ok(link) => links.push(link),
                // Without the scheduler there is nothing to explain with; the rest can be missed.
                Err(e) if tracepoint.starts_with("sched_") => {
                    return Err(refused("scheduler probes", e));
                }
                Err(e) => failed.push(format!("{tracepoint}: {e}")),
            }
        }
        self.links.append(&mut links);
        for detail in failed {
            self.gap(GapCode::ProbeMissing, detail);
        }
        Ok(())
    }

    fn gap(&mut self, code: GapCode, detail: String) {
        tracing::debug!(code = code.name(), detail, "gap");
        self.gaps.push(Gap {
            code,
            detail,
            count: 1,
        });
    }

    // ---- libraries ----

    fn find_everywhere(&mut self) {
        for pid in proc::unsorted_pids() {
            self.find_in_process(pid);
        }
    }

    fn find_in_process(&mut self, pid: u32) {
        let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/maps")) else {
            return;
        };
        for file in maps::mapped_files(&text, library::is_candidate) {
            self.find(file.reach(pid));
        }
    }

    /// Probes a library that was come across; what is wrong with it is a gap.
    fn find(&mut self, path: PathBuf) {
        if self.failed.contains(&path) {
            return;
        }
        let Err(error) = self.attach_library(&path) else {
            return;
        };
        let code = match &error {
            // It was gone again, or its process was.
            AttachError::Open { .. } => return,
            AttachError::Unreadable { .. } => GapCode::NoSymbols,
            // PyTorch's library need not hold NCCL.
            AttachError::NothingToTrace { .. } => {
                remember(&mut self.failed, path);
                return;
            }
            AttachError::Refused { .. } => GapCode::ProbeMissing,
        };
        self.gap(code, format!("{}", Chain(&error)));
        remember(&mut self.failed, path);
    }

    fn poll_mappings(&mut self) {
        let mut seen = Vec::new();
        if let Some(mappings) = &mut self.mappings {
            mappings.poll(library::is_candidate, &mut seen);
        }
        for seen in seen {
            match seen {
                Seen::Mapped { pid, path } => self.find(maps::through_root(pid, &path)),
                Seen::Lost => self.find_everywhere(),
            }
        }
    }

    // ---- records ----

    fn sort(&mut self, mut record: Record, out: &mut Batch) {
        // A record that was overtaken by the next of its CPU looks like a gap too: then nothing is found lost.
        let last = self.last_seq.insert(record.cpu, record.seq);
        self.gap_seen |= last.is_some_and(|last| record.seq != last.wrapping_add(1));
        match record.kind() {
            Some(Kind::Process) => self.process_record(&record, out),
            Some(Kind::OffCpu) => {
                self.tell_path(&record, out);
                out.records.push(record);
            }
            Some(Kind::Call) => {
                self.tally_call(&record);
                record.stack_id = self.tell_stack(record.pid, record.stack_id, out);
                out.records.push(record);
            }
            _ => out.records.push(record),
        }
    }

    fn process_record(&mut self, r: &Record, out: &mut Batch) {
        match r.op {
            process::NAME => {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&r.arg0.to_le_bytes());
                bytes[8..].copy_from_slice(&r.arg1.to_le_bytes());
                let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
                out.names.push(ThreadName {
                    thread: Thread::new(r.pid, r.tid),
                    name: String::from_utf8_lossy(&bytes[..end]).into(),
                });
                self.tell_process(r.pid, out);
                return;
            }
            process::SEEN => {
                remember(&mut self.job, r.pid);
                // It may have been told of as somebody who was in the way.
                self.told.remove(&r.pid);
                self.tell_process(r.pid, out);
                tell_threads(r.pid, out);
                return;
            }
            process::FORK if r.arg0 == r.arg1 => {
                remember(&mut self.job, r.arg0 as u32);
                self.told.remove(&(r.arg0 as u32));
                self.tell_process(r.arg0 as u32, out);
            }
            process::EXEC => {
                self.told.remove(&r.pid);
                self.paths.retain(|(pid, _), _| *pid != r.pid);
                self.tell_process(r.pid, out);
            }
            process::EXIT if r.pid == r.tid => {
                self.job.remove(&r.pid);
                self.fresh.remove(&r.pid);
                self.told.remove(&r.pid);
                self.paths.retain(|(pid, _), _| *pid != r.pid);
                self.ended.push(r.pid);
            }
            _ => {}
        }
        out.records.push(*r);
    }

    /// Sends what is constant of a process, once.
    fn tell_process(&mut self, pid: u32, out: &mut Batch) {
        if pid == 0 || self.told.contains(&pid) {
            return;
        }
        remember(&mut self.told, pid);
        let in_job = self.job.contains(&pid);
        let Some(mut info) = proc::process_info(pid, false, in_job) else {
            return;
        };
        info.from_start = info.start > self.started || self.fresh.contains(&pid);
        if in_job && !info.from_start {
            let before = self.started.since(info.start) as f64 / 1e9;
            self.gap(
                GapCode::AttachedLate,
                format!("process {pid} ran for {before:.1} s before it was watched"),
            );
        }
        out.processes.push(info);
    }

    /// Sends what a descriptor is that a thread waited on, when that is new.
    fn tell_path(&mut self, r: &Record, out: &mut Batch) {
        // Anonymous files and pipes have no name worth a system call.
        const REGULAR: u16 = 0o10;
        const BLOCK: u16 = 0o6;
        if r.op == NO_SYSCALL || r.ret < 0 || !matches!(r.device, REGULAR | BLOCK) {
            return;
        }
        let Ok(path) = std::fs::read_link(format!("/proc/{}/fd/{}", r.pid, r.ret)) else {
            return;
        };
        let path = path.to_string_lossy().into_owned();
        let key = (r.pid, r.ret);
        if self.paths.get(&key) == Some(&path) {
            return;
        }
        if self.paths.len() >= MAX_KNOWN {
            self.paths.clear();
        }
        self.paths.insert(key, path.clone());
        out.paths.push(FilePath {
            pid: Pid(r.pid),
            fd: r.ret,
            path,
        });
    }

    /// Our number for the stack that the kernel's programs call `raw`; 0 for none. Sends the stack with its first record.
    /// The kernel gives equal addresses one number, whoever's they are.
    ///
    /// The kernel's map never forgets, and has no room for another stack of the same hash: so it is emptied half full, and
    /// its numbers then mean others.
    fn tell_stack(&mut self, pid: u32, raw: u32, out: &mut Batch) -> u32 {
        let Some(key) = raw.checked_sub(1).map(u32::to_le_bytes) else {
            return 0;
        };
        if let Some(id) = self.stacks.get(&(pid, raw)) {
            return *id;
        }
        let value = self
            .map("stacks")
            .and_then(|m| m.lookup(&key, MapFlags::ANY).ok()?)
            .unwrap_or_default();
        let addresses: Vec<u64> = value
            .chunks_exact(8)
            .map(|a| layout::u64_at(a, 0))
            .take_while(|a| *a != 0)
            .collect();
        if addresses.is_empty() {
            return 0;
        }
        let id = self.next_stack;
        self.next_stack = id.wrapping_add(1).max(1);
        self.stacks.insert((pid, raw), id);
        out.stacks.push(UserStack { id, pid, addresses });
        id
    }

    fn forget_stacks(&mut self) {
        if self.stacks.len() < MAX_STACKS {
            return;
        }
        for (_, raw) in std::mem::take(&mut self.stacks).into_keys() {
            if let Some(map) = self.map("stacks") {
                // Gone already is as good.
                let _ = map.delete(&(raw - 1).to_le_bytes());
            }
        }
    }

    // ---- counts ----

    /// Counts a call that came as a record: the kernel counts only the others.
    fn tally_call(&mut self, r: &Record) {
        let part_of_another = r.flags & flag::NESTED != 0 && r.flags & flag::NESTED_IN_LIBRARY == 0;
        if part_of_another || r.flags & flag::NO_RETURN != 0 {
            return;
        }
        if let Some(op) = r.call_op() {
            let tally = self
                .tally
                .entry(OpKey {
                    pid: Pid(r.pid),
                    device: Device::from_record(r.device),
                    op,
                })
                .or_default();
            tally.total = tally.total.saturating_add(r.dur);
            tally.durations.record(r.dur);
        }
    }

    fn count(&mut self, now: BootNanos, out: &mut Batch) {
        let window = Window {
            start: self.counted_at,
            end: now,
        };
        self.counted_at = now;
        for (key, value) in self.entries("counts") {
            let Some(key_bytes) = key.first_chunk::<8>() else {
                continue;
            };
            let Some(op_key) = layout::decode_count_key(key_bytes) else {
                continue;
            };
            if let Some((total, durations)) =
                self.counts.entry(*key_bytes).or_default().advance(&value)
            {
                let tally = self.tally.entry(op_key).or_default();
                tally.total = tally.total.saturating_add(total);
                tally.durations.merge(&durations);
            }
        }
        out.counts
            .extend(self.tally.drain().map(|(key, tally)| OpCount {
                key,
                window,
                total: tally.total,
                durations: tally.durations,
            }));
        // Calls of the ended were all counted before their end was seen.
        for pid in std::mem::take(&mut self.ended) {
            let gone: Vec<[u8; 8]> = self
                .counts
                .keys()
                .filter(|k| layout::u32_at(k.as_slice(), 0) == pid)
                .copied()
                .collect();
            for key in gone {
                self.counts.remove(&key);
                if let Some(map) = self.map("counts") {
                    // Gone already is as good.
                    let _ = map.delete(&key);
                }
            }
        }
    }

    fn count_losses(&mut self, window: Window, out: &mut Batch) {
        let cpus = self
            .map(".bss.cpus")
            .and_then(|m| m.lookup(&[0; 4], MapFlags::ANY).ok()?);
        let Some(cpus) = cpus else { return };
        let now = layout::decode_losses(&cpus);
        let reasons = [
            LossReason::RingFull,
            LossReason::MapFull,
            LossReason::NoReturn,
        ];
        for (reason, (new, old)) in reasons.into_iter().zip(now.into_iter().zip(self.losses)) {
            if new != old {
                out.losses.push(Loss {
                    source: "ebpf",
                    reason,
                    count: new.wrapping_sub(old),
                    window: Some(window),
                    pid: None,
                });
            }
        }
        self.losses = now;
        let malformed = std::mem::take(&mut self.lock().malformed);
        if malformed > 0 {
            out.losses.push(Loss {
                source: "ebpf",
                reason: LossReason::Malformed,
                count: malformed,
                window: Some(window),
                pid: None,
            });
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn map(&self, name: &str) -> Option<libbpf_rs::Map<'_>> {
        self.object.maps().find(|m| m.name() == name)
    }

    /// All entries of a hash map; those that change meanwhile may be missed or come twice.
    fn entries(&self, map: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let Some(map) = self.map(map) else {
            return Vec::new();
        };
        if let Ok(batch) = map.lookup_batch(256, MapFlags::ANY, MapFlags::ANY) {
            return batch.collect();
        }
        map.keys()
            .filter_map(|key| {
                let value = map.lookup(&key, MapFlags::ANY).ok()??;
                Some((key, value))
            })
            .collect()
    }
}

impl Source for Ebpf {
    fn name(&self) -> &'static str {
        "ebpf"
    }

    fn poll(&mut self, out: &mut Batch) -> Result<(), SourceError> {
        self.poll_mappings();
        for pid in std::mem::take(&mut self.named) {
            self.tell_process(pid, out);
            tell_threads(pid, out);
        }
        let taken = self.ring.consume_raw_n(MAX_POLL);
        if taken < 0 {
            return Err(SourceError::Refused {
                what: "cannot read the BPF ring".to_owned(),
                source: Some(io::Error::from_raw_os_error(-taken)),
            });
        }
        let mut records = std::mem::take(&mut self.lock().records);
        for record in records.drain(..) {
            self.sort(record, out);
        }
        self.lock().records = records;
        self.forget_stacks();
        let now = clock::boot_now();
        let due = self.stopped || now.since(self.counted_at) >= COUNTS_EVERY;
        if due {
            self.count(now, out);
        }
        if due || self.gap_seen {
            let [start, _] = self.polled_at;
            self.count_losses(Window { start, end: now }, out);
            self.gap_seen = false;
        }
        self.polled_at = [self.polled_at[1], now];
        out.gaps.append(&mut self.gaps);
        Ok(())
    }

    fn in_flight(&mut self) -> Vec<Record> {
        let now = clock::boot_now().0;
        self.entries("calls")
            .iter()
            .flat_map(|(tid, calls)| layout::decode_open_calls(calls, layout::u32_at(tid, 0), now))
            .collect()
    }

    fn stop(&mut self) {
        self.stopped = true;
        self.mappings = None;
        self.uprobes.clear();
        // As above: together they wait once.
        let links = std::mem::take(&mut self.links);
        std::thread::scope(|scope| {
            for link in links {
                scope.spawn(move || drop(link));
            }
        });
    }
}

/// Sends the names of threads that may not run for long: the others name themselves when they do.
fn tell_threads(pid: u32, out: &mut Batch) {
    for tid in proc::unsorted_tids(pid) {
        if let Some(name) = proc::thread_name(pid, tid) {
            out.names.push(ThreadName {
                thread: Thread::new(pid, tid),
                name: name.into(),
            });
        }
    }
}

/// An error with its causes, in one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Adds to a memory of bounded size: a full one begins anew, and says some things twice.
fn remember<T: Eq + std::hash::Hash>(set: &mut HashSet<T>, value: T) {
    if set.len() >= MAX_KNOWN {
        set.clear();
    }
    set.insert(value);
}

fn log_libbpf() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        libbpf_rs::set_print(Some((PrintLevel::Debug, |level, text| {
            let text = text.trim_end();
            match level {
                PrintLevel::Warn => tracing::warn!(target: "warptrace_capture::libbpf", "{text}"),
                PrintLevel::Info | PrintLevel::Debug => {
                    tracing::debug!(target: "warptrace_capture::libbpf", "{text}");
                }
            }
        })));
    });
}

fn load(
    kernel: &Kernel,
    options: &Options,
    now: BootNanos,
    gaps: &mut Vec<Gap>,
) -> Result<Object, StartError> {
    let mut open = ObjectBuilder::default()
        .open_memory(OBJECT)
        .map_err(|e| refused("object", e))?;
    for mut program in open.progs_mut() {
        let section = program.section().to_string_lossy().into_owned();
        let Some(tracepoint) = section.strip_prefix("tp_btf/") else {
            if section.ends_with("probe.multi") && kernel.probe_kind() == ProbeKind::PerfEvents {
                // The section's type of attachment is what old kernels do not know; none is that of a perf event.
                program.set_attach_type(ProgramAttachType::CgroupInetIngress);
            }
            continue;
        };
        if INSTEAD_OF_IO_START.contains(&tracepoint) {
            program.set_autoload(stand_in_for_io_start(kernel));
        } else if tracepoint == IO_START && stand_in_for_io_start(kernel) {
            program.set_autoload(false);
        } else if !kernel.has_tracepoint(tracepoint) {
            program.set_autoload(false);
            gaps.push(Gap {
                code: GapCode::ProbeMissing,
                detail: format!("this kernel has no tracepoint {tracepoint}"),
                count: 1,
            });
        }
    }
    let settings = Settings {
        ring_bytes: u64::from(options.ring_bytes),
        loaded_at: now.0,
        off_cpu_min: options.off_cpu_min_nanos,
        stack_min: options.stack_min_nanos,
        listed: options.pids.is_some(),
        all_block_io: options.all_block_io,
        pid_namespace: kernel.pid_namespace.unwrap_or(0),
        has: [
            (kernel.switch_state, layout::HAS_SWITCH_STATE),
            (kernel.victim_task, layout::HAS_VICTIM_TASK),
            (!stand_in_for_io_start(kernel), layout::HAS_IO_START),
        ]
        .into_iter()
        .filter_map(|(has, bit)| has.then_some(bit))
        .sum(),
    };
    let growing_maps = Version::parse(&kernel.release) >= kernel::GROWING_MAPS;
    configure(&mut open, &settings, options.ring_bytes, growing_maps)
        .map_err(|e| refused("settings", e))?;
    open.load().map_err(|e| refused("programs", e))
}

fn configure(
    open: &mut OpenObject,
    settings: &Settings,
    ring_bytes: u32,
    growing_maps: bool,
) -> Result<(), libbpf_rs::Error> {
    for mut map in open.maps_mut() {
        if map.name() == "ring" {
            map.set_max_entries(ring_bytes)?;
        } else if map.name() == "counts" && !growing_maps {
            map.set_map_flags(0)?;
            map.set_max_entries(FIXED_COUNTS)?;
        } else if map.name() == ".rodata.settings"
            && let Some(place) = map
                .initial_value_mut()
                .and_then(|v| v.get_mut(..Settings::BYTES))
        {
            place.copy_from_slice(&settings.encode());
        }
    }
    Ok(())
}

fn open_ring(
    object: &Object,
    inbox: Arc<Mutex<Inbox>>,
) -> Result<RingBuffer<'static>, libbpf_rs::Error> {
    let map = object
        .maps()
        .find(|m| m.name() == "ring")
        .ok_or_else(|| libbpf_rs::Error::from(io::Error::from(io::ErrorKind::NotFound)))?;
    let mut builder = RingBufferBuilder::new();
    builder.add(&map, move |bytes| {
        let mut inbox = inbox.lock().unwrap_or_else(PoisonError::into_inner);
        match Record::decode(bytes) {
            Ok(record) => inbox.records.push(record),
            Err(_) => inbox.malformed += 1,
        }
        0
    })?;
    builder.build()
}
