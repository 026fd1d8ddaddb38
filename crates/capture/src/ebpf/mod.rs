//! Capture by eBPF: any from outside, at full detail.
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
//! when the ring is a quarter full. Dropping the value stops everything, as does the end of this however it
//! comes: nothing is pinned.

mod counts;
pub mod kernel;
mod layout;
mod library;
mod load;
mod mappings;
mod tell;
mod uprobes;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libbpf_rs::{Link, MapCore as _, MapFlags, Object, ProgramInput, RingBuffer};
use warptrace_model::{BootNanos, Gap, GapCode, Histogram, OpKey, Window};
use warptrace_record::Record;

use self::kernel::{Kernel, ProbeKind, Refusal};
use self::layout::Count;
use self::library::{FileKey, Library};
use self::mappings::{Mappings, Seen};
use self::uprobes::Uprobes;
use crate::{Batch, Source, SourceError, clock, maps, proc};

pub use self::library::AttachError;
pub(crate) use self::library::is_candidate;

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

/// Records taken from the ring in one poll at most, so that a flood cannot keep the caller.
const MAX_POLL: usize = 1 << 16;

/// Counts and losses are read this often, ns.
const COUNTS_EVERY: u64 = 1_000_000_000;

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
    /// Runs of programs that the kernel skipped.
    skipped: u64,
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
        load::log_libbpf();
        if kernel.probe_kind() == ProbeKind::PerfEvents {
            // Four descriptors a function.
            crate::sys::raise_descriptor_limit();
        }
        let started = clock::boot_now();
        let mut gaps = Vec::new();
        let object = load::load(&kernel, options, started, &mut gaps)?;
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let ring =
            load::open_ring(&object, Arc::clone(&inbox)).map_err(|e| load::refused("ring", e))?;
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
            skipped: 0,
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
                load::refused(
                    "program watch",
                    io::Error::from(io::ErrorKind::NotFound).into(),
                )
            })?;
        program
            .test_run(ProgramInput {
                context_in: Some(&mut args),
                ..ProgramInput::default()
            })
            .map_err(|e| load::refused("program watch", e))?;
        self.job.insert(pid);
        self.named.push(pid);
        if from_start {
            tell::remember(&mut self.fresh, pid);
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
                    return Err(load::refused("scheduler probes", e));
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
                tell::remember(&mut self.failed, path);
                return;
            }
            AttachError::Refused { .. } => GapCode::ProbeMissing,
        };
        self.gap(code, format!("{}", Chain(&error)));
        tell::remember(&mut self.failed, path);
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
            tell::tell_threads(pid, out);
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
