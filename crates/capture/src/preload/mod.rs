//! Capture from inside the job: rings in shared memory that the preload library writes, one a thread.
//!
//! The recorder makes a directory, starts the job with an environment that names it, and reads what appears there. It never
//! waits for the job, nor the job for it. What it reads is believed no further than a file that somebody else wrote: it is read by
//! `pread`, so that a truncated ring is a short read and not a signal.
//!
//! Times leave here as CLOCK_BOOTTIME ns, process and thread ids as the recorder's namespace numbers them. A thread that ended or
//! was killed is read to its last record, then its ring is removed.
//!
//! It does not start processes, and does not know what a call means.

mod clock;
mod directory;
mod identity;
mod quota;
mod support;
mod switch;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use warptrace_model::{
    BootNanos, Device, Gap, GapCode, Incarnation, Loss, LossReason, OpCount, OpKey, Pid,
    ProcessInfo, Thread, ThreadName, Window,
};
use warptrace_record::ring::control::Clock;
use warptrace_record::ring::{Consumer, CountKey, Counts, InFlight, OpenError, ReadAt, Refused};
use warptrace_record::{Kind, OpId, Record, Source as Layer, flag, process};

use crate::clock::boot_now;
use crate::{Batch, Source, SourceError, proc};

use clock::TickClock;
use directory::Directory;
use identity::Identity;
use quota::{Charged, Quotas};

pub use support::{Mechanism, PreloadUnsupported, mechanism, preload_support};
pub use switch::Switch;

/// How the job is to be recorded.
#[derive(Debug, Clone)]
pub struct PreloadOptions {
    /// The preload library, in a file that the job can load and nobody else can write.
    pub library: PathBuf,
    /// Where the directory of rings is made; a file system in memory.
    pub shared_memory: PathBuf,
    /// Records in the ring of a thread, a power of two from 64 to 2^20. Threads get smaller ones when there are many.
    pub capacity: u32,
    /// Bytes that all rings together may take; `None`: 64 MiB, or a quarter of what is free when that is less.
    pub budget: Option<u64>,
    /// The clock of the rings; `None`: the CPU's counter where the kernel keeps time by it, else CLOCK_BOOTTIME.
    pub clock: Option<Clock>,
    /// Nothing is recorded until [`Switch::set`] says so.
    pub paused: bool,
}

impl PreloadOptions {
    pub fn new(library: impl Into<PathBuf>) -> PreloadOptions {
        PreloadOptions {
            library: library.into(),
            shared_memory: "/dev/shm".into(),
            capacity: 8192,
            budget: None,
            clock: None,
            paused: false,
        }
    }
}

/// Pairs of op and device that a thread counts exactly.
const OP_SLOTS: u32 = 96;

/// How often counters, names and lives are looked at, ns.
const SLOW_NANOS: u64 = 500_000_000;

/// The source: it records every process that is started with its [`Preload::environment`], and their children.
#[derive(Debug)]
pub struct Preload {
    library: PathBuf,
    directory: Directory,
    clock: TickClock,
    identity: Identity,
    quotas: Quotas,
    rings: Vec<Ring>,
    /// Last news of each process, by its incarnation.
    processes: HashMap<Incarnation, ProcessInfo>,
    slow_at: BootNanos,
    /// Rings that were ready when the directory was last read.
    listed: u64,
    unopened: bool,
    reported: directory::JobCounters,
    switch: Switch,
    started: bool,
    stopped: bool,
}

#[derive(Debug)]
struct RingFile(File);

impl ReadAt for RingFile {
    fn read_at(&self, offset: usize, out: &mut [u8]) -> bool {
        self.0.read_exact_at(out, offset as u64).is_ok()
    }
}

#[derive(Debug)]
struct Ring {
    serial: u64,
    consumer: Consumer<RingFile>,
    thread: Thread,
    process: Incarnation,
    /// Its ids are the recorder's, so that its life can be followed in `/proc`.
    known: bool,
    /// Where a quota may hold it back.
    charged: Option<Charged>,
    name: String,
    /// End of the last record, for the window of a loss.
    last: BootNanos,
    counts: HashMap<CountKey, Counts>,
    counted: BootNanos,
    refused: Refused,
    gone: bool,
}

impl Preload {
    /// Makes the directory of rings and its control page; removes those of recorders of the same user that are gone.
    ///
    /// # Errors
    /// [`SourceError`] when no directory can be made, or an option is out of range.
    pub fn start(options: &PreloadOptions) -> Result<Preload, SourceError> {
        let clock = TickClock::start(options.clock);
        let (directory, control) = Directory::create(options, OP_SLOTS, &clock)?;
        Ok(Preload {
            switch: Switch::new(control, options.paused),
            library: options.library.clone(),
            directory,
            clock,
            identity: Identity::new(),
            quotas: Quotas::default(),
            rings: Vec::new(),
            processes: HashMap::new(),
            slow_at: BootNanos(0),
            listed: 0,
            unopened: false,
            reported: directory::JobCounters::default(),
            started: false,
            stopped: false,
        })
    }

    /// Switches recording on and off in every process of the job.
    pub fn switch(&self) -> Switch {
        self.switch.clone()
    }

    /// Where the rings are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Variables to start `program` with, beside those that it inherits: what `inherited` gives is appended to, not replaced.
    ///
    /// # Errors
    /// [`PreloadUnsupported`] when `program` would run, but could not be recorded.
    pub fn environment(
        &self,
        program: &Path,
        inherited: impl Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Result<Vec<(&'static str, std::ffi::OsString)>, PreloadUnsupported> {
        let mechanism = mechanism(program)?;
        Ok(self.environment_by(mechanism, inherited))
    }

    /// [`Preload::environment`] by a given mechanism, whatever the program is.
    pub fn environment_by(
        &self,
        mechanism: Mechanism,
        inherited: impl Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Vec<(&'static str, std::ffi::OsString)> {
        let variable = mechanism.variable();
        let mut value = inherited(variable).unwrap_or_default();
        // A recorder inside a recording has it already; two of them would record each call twice.
        let is_there = value
            .as_bytes()
            .split(|b| b": ".contains(b))
            .any(|path| path == self.library.as_os_str().as_bytes());
        if !is_there {
            if !value.is_empty() {
                value.push(":");
            }
            value.push(&self.library);
        }
        vec![
            (variable, value),
            (
                warptrace_record::ring::control::DIRECTORY_VARIABLE,
                self.directory.path().into(),
            ),
        ]
    }

    /// Opens rings that have appeared.
    fn find_rings(&mut self, out: &mut Batch) {
        let ready = self.directory.job_counters().rings;
        if ready == self.listed && !self.unopened {
            return;
        }
        self.listed = ready;
        self.unopened = false;
        for serial in self.directory.serials() {
            if self.rings.iter().any(|ring| ring.serial == serial) {
                continue;
            }
            match self.open(serial) {
                Ok(consumer) => self.admit(serial, consumer, out),
                // It is being made, or there is no descriptor left: later.
                Err(OpenError::NotReady) => self.unopened = true,
                Err(OpenError::Malformed) => {
                    self.directory.remove_ring(serial, 0);
                    out.losses.push(loss(LossReason::Malformed, 1, None));
                }
            }
        }
    }

    fn open(&self, serial: u64) -> Result<Consumer<RingFile>, OpenError> {
        let (file, len) = self
            .directory
            .open_ring(serial)
            .map_err(|_| OpenError::NotReady)?;
        Consumer::open(RingFile(file), len)
    }

    fn admit(&mut self, serial: u64, consumer: Consumer<RingFile>, out: &mut Batch) {
        let owner = *consumer.owner();
        let found = self.identity.translate(&owner);
        let thread = found.unwrap_or(Thread::new(owner.pid, owner.tid));
        let process = Incarnation {
            pid: thread.pid,
            start_ticks: owner.start_ticks,
        };
        let created = self.clock.convert(owner.created);
        let end = owner.comm.iter().position(|b| *b == 0).unwrap_or(16);
        let name = String::from_utf8_lossy(&owner.comm[..end]).into_owned();
        let news = proc::process_info(thread.pid.0, true, true)
            .filter(|info| found.is_some() && info.incarnation == process)
            .unwrap_or_else(|| ProcessInfo {
                incarnation: process,
                name: name.clone(),
                from_start: true,
                in_job: true,
                ..ProcessInfo::default()
            });
        let old = self.processes.get(&process);
        // A process that is gone by now tells less than it did before.
        if old.is_none_or(|old| *old != news && !news.command.is_empty()) {
            self.processes.insert(process, news.clone());
            out.processes.push(news);
        }
        out.names.push(ThreadName {
            thread,
            name: name.as_str().into(),
        });
        self.rings.push(Ring {
            serial,
            consumer,
            thread,
            process,
            known: found.is_some(),
            charged: found.and_then(|thread| self.quotas.of_process(thread.pid.0, created)),
            name,
            last: created,
            counts: HashMap::new(),
            counted: created,
            refused: Refused::default(),
            gone: false,
        });
    }

    /// Marks the rings whose threads are gone, and tells new names.
    fn look_at_lives(&mut self, out: &mut Batch) {
        let mut alive: HashMap<Incarnation, Option<Vec<u32>>> = HashMap::new();
        for ring in self.rings.iter_mut().filter(|ring| ring.known) {
            let tids = alive.entry(ring.process).or_insert_with(|| {
                let pid = ring.process.pid.0;
                let same = ring.process.start_ticks == 0
                    || proc::process_info(pid, true, true)
                        .is_some_and(|info| info.incarnation == ring.process);
                (same && !is_zombie(pid)).then(|| proc::unsorted_tids(pid))
            });
            let tid = ring.thread.tid.0;
            match tids {
                Some(tids) if tids.contains(&tid) => {
                    if let Some(name) = proc::thread_name(ring.thread.pid.0, tid)
                        && name != ring.name
                    {
                        out.names.push(ThreadName {
                            thread: ring.thread,
                            name: name.as_str().into(),
                        });
                        ring.name = name;
                    }
                }
                _ => ring.gone = true,
            }
        }
        for (process, tids) in alive {
            if tids.is_none() && self.processes.remove(&process).is_some() {
                // How it ended is its parent's to know.
                out.records.push(Record {
                    op: process::EXIT,
                    ret: -1,
                    ..Record::new(Kind::Process, boot_now().0, 0, process.pid.0, process.pid.0)
                });
            }
        }
    }

    fn report_job_counters(&mut self, out: &mut Batch) {
        let now = self.directory.job_counters();
        let before = std::mem::replace(&mut self.reported, now);
        let threads = now.no_space.saturating_sub(before.no_space)
            + now.refused.saturating_sub(before.refused);
        if threads > 0 {
            out.losses.push(loss(LossReason::NoRing, threads, None));
        }
        let functions = now.no_stub.saturating_sub(before.no_stub);
        if functions > 0 {
            out.gaps.push(Gap {
                code: GapCode::ProbeMissing,
                detail:
                    "more than four copies of a CUDA library in one process: the rest is not traced"
                        .into(),
                count: functions,
            });
        }
    }
}

/// Tells stretches what of their waiting for a CPU was being held back.
fn charge(quotas: &Quotas, charged: &mut Charged, records: &mut [Record]) {
    for r in records {
        if r.kind() == Some(Kind::Stretch) {
            let window = Window::at(BootNanos(r.ts), r.dur);
            let held = quotas.charge(charged, window, r.arg1.min(r.dur));
            // Faults are below; see the record's layout.
            r.stream = (held / 1000) << 32 | r.stream & 0xffff_ffff;
        }
    }
}

/// The process has ended and its parent has not asked for it yet.
fn is_zombie(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| Some(stat.rsplit_once(") ")?.1.starts_with(['Z', 'X'])))
        .unwrap_or(true)
}

fn loss(reason: LossReason, count: u64, pid: Option<Pid>) -> Loss {
    Loss {
        source: NAME,
        reason,
        count,
        window: None,
        pid,
    }
}

const NAME: &str = "preload";

impl Ring {
    /// Takes the new records, with ticks for times; those from `first` on in `out.records` are this ring's.
    fn drain(&mut self, out: &mut Batch) {
        let first = out.records.len();
        let done = self.consumer.drain(|record| out.records.push(record));
        let thread = self.thread;
        for record in &mut out.records[first..] {
            (record.pid, record.tid) = (thread.pid.0, thread.tid.0);
        }
        for (reason, count) in [
            (LossReason::Overwritten, done.lost),
            (LossReason::Malformed, done.malformed),
        ] {
            if count > 0 {
                out.losses.push(loss(reason, count, Some(thread.pid)));
            }
        }
    }

    /// Takes what was counted since the last time.
    fn count(&mut self, now: BootNanos, out: &mut Batch) {
        let window = Window {
            start: self.counted,
            end: now,
        };
        self.counted = now;
        let (pid, counts) = (self.thread.pid, &mut self.counts);
        self.consumer.counts(|new| {
            let Some(op) =
                Layer::from_u8(new.key.source).and_then(|layer| OpId::find(layer, new.key.number))
            else {
                return;
            };
            let old = counts.entry(new.key).or_insert_with(|| Counts {
                key: new.key,
                total: 0,
                buckets: [0; warptrace_record::histogram::BUCKETS],
            });
            let mut count = OpCount {
                key: OpKey {
                    pid,
                    device: Device::from_record(new.key.device),
                    op,
                },
                window,
                total: new.total.wrapping_sub(old.total),
                durations: Default::default(),
            };
            for (i, (a, b)) in new.buckets.iter().zip(&old.buckets).enumerate() {
                if a != b {
                    count.durations.add(i, u64::from(a.wrapping_sub(*b)));
                }
            }
            if new.buckets != old.buckets {
                *old = new.clone();
                out.counts.push(count);
            }
        });
        let refused = self.consumer.refused();
        let before = std::mem::replace(&mut self.refused, refused);
        for (reason, now, before) in [
            // The ring was being written when a signal handler made another call.
            (LossReason::RingFull, refused.reentrant, before.reentrant),
            (LossReason::MapFull, refused.uncounted, before.uncounted),
            (LossReason::NoReturn, refused.abandoned, before.abandoned),
        ] {
            if now > before {
                out.losses.push(loss(reason, now - before, Some(pid)));
            }
        }
    }

    /// Calls in flight at `now`, as records.
    fn in_flight(&self, clock: &TickClock, kind: Kind, now: BootNanos) -> Vec<Record> {
        let mut calls = Vec::new();
        self.consumer.in_flight(|call: InFlight| {
            let ts = clock.convert(call.ts);
            let (pid, tid) = (self.thread.pid.0, self.thread.tid.0);
            calls.push(Record {
                source: call.source,
                op: call.number,
                flags: if call.level > 0 { flag::NESTED } else { 0 },
                device: call.device,
                arg0: call.arg0,
                stream: call.stream,
                ..Record::new(kind, ts.0, now.since(ts), pid, tid)
            });
        });
        calls
    }
}

impl Source for Preload {
    fn name(&self) -> &'static str {
        NAME
    }

    fn poll(&mut self, out: &mut Batch) -> Result<(), SourceError> {
        if !self.started {
            self.started = true;
            out.gaps.push(Gap {
                code: GapCode::NoSchedulerRecords,
                detail: "preload knows how long a thread waited for a CPU, not who had it; for what it was blocked is not known either".into(),
                count: 1,
            });
        }
        self.switch.take_changes(&mut out.switched);
        let now = boot_now();
        let slow = self.stopped || now.since(self.slow_at) >= SLOW_NANOS;
        self.find_rings(out);
        if slow {
            self.slow_at = now;
            // Before the records are read: who is gone now has written all of them.
            self.look_at_lives(out);
        }

        let mut spans = Vec::with_capacity(self.rings.len());
        for ring in &mut self.rings {
            let (record, loss) = (out.records.len(), out.losses.len());
            ring.drain(out);
            spans.push((record..out.records.len(), loss..out.losses.len()));
        }
        // Read after the records, so that no record is younger than the newest anchor, nor than the books of the quotas.
        self.clock.anchor();
        self.quotas.look(boot_now());
        for (ring, (records, losses)) in self.rings.iter_mut().zip(spans) {
            let before = ring.last;
            let records = &mut out.records[records];
            self.clock.convert_records(records);
            if let Some(charged) = &mut ring.charged {
                charge(&self.quotas, charged, records);
            }
            if let Some(last) = records.last() {
                ring.last = ring.last.max(BootNanos(last.ts).plus(last.dur));
            }
            let after = records.first().map_or(ring.last, |r| BootNanos(r.ts));
            for loss in &mut out.losses[losses] {
                loss.window = Some(Window {
                    start: before.min(after),
                    end: after,
                });
            }
        }

        if slow {
            for ring in &mut self.rings {
                ring.count(now, out);
            }
            self.report_job_counters(out);
        }
        for ring in self.rings.extract_if(.., |ring| ring.gone) {
            // What it was in when it ended: entered, never left.
            for mut call in ring.in_flight(&self.clock, Kind::Call, now) {
                call.flags |= flag::NO_RETURN;
                out.records.push(call);
            }
            self.directory
                .remove_ring(ring.serial, ring.consumer.layout().bytes() as u64);
        }
        Ok(())
    }

    fn in_flight(&mut self) -> Vec<Record> {
        let now = boot_now();
        self.clock.anchor();
        self.rings
            .iter()
            .flat_map(|ring| ring.in_flight(&self.clock, Kind::InFlight, now))
            .collect()
    }

    /// Switches recording off in every process. The rings stay until the value is dropped.
    fn stop(&mut self) {
        self.switch.end();
        self.directory.switch_off();
        self.stopped = true;
    }
}
