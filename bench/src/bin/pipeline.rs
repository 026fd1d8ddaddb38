//! How many events a second one core takes from the ring to the disk: ring → decode → engine → store.
//!
//! `cargo run --release -p warptrace-bench --bin pipeline -- [EVENTS [RANKS…]]` (3,000,000 events of 8 ranks, and again of
//! 200, unless said). The stages are the agent's, in the agent's order, one batch for each 10 ms of the recording; times
//! are CPU time of the one thread that runs them. Making the records and writing them to the ring is not measured.
//!
//! The records follow a training step as eBPF recorded it on simgpu: copies, launches 42 µs apart on two streams that
//! wait for each other, a synchronisation with the driver's nested in it, preemptions with the slices of who ran instead,
//! a loader that reads from disk and wakes the trainer. 180 launches a step, as a transformer has, and every
//! hundredth second step is held up by a CPU hog, so that units are judged, blamed and become findings. 8 ranks of 20 ms steps
//! are about 90,000 events a second of recording; with 200 the recording itself has the budget's 2 million a second,
//! and all that the engine holds back for its merge window has that size. Budget: 2 million events a second.
#![expect(unsafe_code, reason = "maps the ring's memory")]

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::time::{ClockId, clock_gettime};
use warptrace_engine::{Engine, Rules};
use warptrace_model::{
    BootNanos, Cause, ClockAnchor, Event, Incarnation, Loss, Pid, ProcessInfo, Thread, ThreadName,
    UnixNanos,
};
use warptrace_record::ring::{Consumer, Layout, Owner, Producer, ReadAt};
use warptrace_record::{Kind, NO_SYSCALL, OpId, Record, flag, offcpu, op};
use warptrace_store::fs::RealFs;
use warptrace_store::{DataDir, SessionMeta, SessionWriter};

const BUDGET: f64 = 2e6;

const START: u64 = 5_000_000_000_000;
/// The agent polls as often.
const POLL_NANOS: u64 = 10_000_000;
const STEP_NANOS: u64 = 20_000_000;
const LAUNCHES: u64 = 180;
const LAUNCH_EVERY_NANOS: u64 = 42_000;
/// Preemptions in an ordinary step.
const PREEMPTIONS: u64 = 8;
/// Time lost to the hog in a step that it hits.
const HOG_NANOS: u64 = 12_000_000;
/// Records of the ring: one batch of the largest recording fits twice.
const RING: u32 = 1 << 16;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1).map(|n| n.replace(['_', ','], ""));
    let usage = "usage: pipeline [EVENTS [RANKS…]]";
    let events: u64 = args
        .next()
        .map_or(Ok(3_000_000), |n| n.parse())
        .context(usage)?;
    let mut ranks: Vec<u32> = args
        .map(|n| n.parse())
        .collect::<Result<_, _>>()
        .context(usage)?;
    if ranks.is_empty() {
        ranks = vec![8, 200];
    }
    for ranks in ranks {
        run(events, ranks)?;
    }
    Ok(())
}

fn run(events: u64, ranks: u32) -> anyhow::Result<()> {
    let layout = Layout::new(RING, 0).context("a ring of that size")?;
    let (mut producer, mut consumer) = ring(layout)?;
    let folder = tempfile::tempdir()?;
    let meta = SessionMeta::new(ClockAnchor {
        boot: BootNanos(START),
        unix: UnixNanos(1_795_000_000_000_000_000),
    });
    let mut writer = SessionWriter::create(Arc::new(RealFs), &DataDir::at(folder.path()), meta)?;
    let session = writer.path().to_owned();
    let mut engine = Engine::new(Rules::default());
    let mut jobs: Vec<Rank> = (0..ranks).map(Rank::new).collect();
    for job in &jobs {
        for event in job.names() {
            writer.events(std::slice::from_ref(&event));
            engine.push(event);
        }
    }

    let mut spent = Spent::default();
    let mut records: Vec<Record> = Vec::new();
    let mut batch: Vec<Event> = Vec::new();
    let mut found = Found::default();
    let began = Instant::now();
    let mut making = Duration::ZERO;
    let mut now = START;
    while found.events < events {
        now += POLL_NANOS;
        let made = Instant::now();
        let mut given = 0;
        for job in &mut jobs {
            given += job.write_until(now, &mut producer);
        }
        making += made.elapsed();

        let mut watch = Watch::start();
        let drained = consumer.drain(|record| records.push(record));
        watch.lap(&mut spent.ring);
        ensure!(
            drained.records == given && drained.lost == 0 && drained.malformed == 0,
            "{given} records went into the ring, and {drained:?} came out"
        );

        watch = Watch::start();
        batch.extend(records.iter().filter_map(Event::from_record));
        watch.lap(&mut spent.decode);
        ensure!(batch.len() == records.len(), "a record meant nothing");
        found.events += batch.len() as u64;
        records.clear();

        watch = Watch::start();
        writer.events(&batch);
        watch.lap(&mut spent.store);
        for event in batch.drain(..) {
            engine.push(event);
        }
        engine.advance(BootNanos(now));
        let output = engine.drain();
        watch.lap(&mut spent.engine);
        writer.units(&output.units);
        writer.findings(&output.findings);
        writer.gaps(&output.gaps);
        writer.tick(BootNanos(now));
        watch.lap(&mut spent.store);
        found.take(&output, writer.losses());
    }
    let mut watch = Watch::start();
    engine.finish(BootNanos(now));
    let output = engine.drain();
    watch.lap(&mut spent.engine);
    writer.units(&output.units);
    writer.findings(&output.findings);
    writer.gaps(&output.gaps);
    found.take(&output, writer.losses());
    writer.seal()?;
    watch.lap(&mut spent.store);
    let wall = began.elapsed() - making;

    let bytes = size(&session)?;
    found.check(ranks)?;
    println!(
        "{ranks} ranks: {} events of {:.1} s of recording ({:.0} a second), {} units, {} findings; {:.1} bytes an event",
        found.events,
        (now - START) as f64 / 1e9,
        found.events as f64 * 1e9 / (now - START) as f64,
        found.units,
        found.findings,
        bytes as f64 / found.events as f64,
    );
    println!("  stage      events/s   ns an event (CPU time)");
    for (stage, nanos) in [
        ("ring", spent.ring),
        ("decode", spent.decode),
        ("engine", spent.engine),
        ("store", spent.store),
        ("all", spent.all()),
    ] {
        println!(
            "  {stage:<7} {:>11.0}   {:>7.1}",
            found.events as f64 * 1e9 / nanos as f64,
            nanos as f64 / found.events as f64
        );
    }
    let rate = found.events as f64 * 1e9 / spent.all() as f64;
    println!(
        "  {:.2} of the budget of {BUDGET:.0} events/s; {:.0} events/s by the wall clock, with the disk and whoever else ran",
        rate / BUDGET,
        found.events as f64 / wall.as_secs_f64()
    );
    Ok(())
}

/// CPU time of the stages, ns.
#[derive(Default)]
struct Spent {
    ring: u64,
    decode: u64,
    engine: u64,
    store: u64,
}

impl Spent {
    fn all(&self) -> u64 {
        self.ring + self.decode + self.engine + self.store
    }
}

struct Watch(u64);

impl Watch {
    fn start() -> Watch {
        Watch(thread_cpu_nanos())
    }

    /// Adds the time since the start or the last lap to `to`.
    fn lap(&mut self, to: &mut u64) {
        let now = thread_cpu_nanos();
        *to += now - self.0;
        self.0 = now;
    }
}

fn thread_cpu_nanos() -> u64 {
    let t = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every Linux has this clock");
    t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
}

/// What came of the events, so that a run which did less than it should is no result.
#[derive(Default)]
struct Found {
    events: u64,
    units: u64,
    findings: u64,
    run_queue_waits: u64,
    lost: u64,
}

impl Found {
    fn take(&mut self, output: &warptrace_engine::Output, stored: Vec<Loss>) {
        self.units += output.units.len() as u64;
        self.findings += output.findings.len() as u64;
        self.run_queue_waits += output
            .findings
            .iter()
            .filter(|f| f.cause == Cause::RunQueueWait)
            .count() as u64;
        self.lost += output
            .losses
            .iter()
            .chain(&stored)
            .map(|l| l.count)
            .sum::<u64>();
    }

    fn check(&self, ranks: u32) -> anyhow::Result<()> {
        let per_unit = LAUNCHES + 4 * PREEMPTIONS;
        ensure!(
            self.units > u64::from(ranks),
            "only {} units were closed",
            self.units
        );
        ensure!(
            self.units * per_unit > self.events / 2,
            "{} units are too few for {} events",
            self.units,
            self.events
        );
        ensure!(self.run_queue_waits > 0, "the hog was not found");
        ensure!(self.lost == 0, "{} events were lost on the way", self.lost);
        Ok(())
    }
}

/// One process of the job: a trainer and its loader.
struct Rank {
    number: u32,
    steps: u64,
    next: u64,
    random: u64,
    /// Records that have not ended yet at the time written so far, by their end.
    waiting: VecDeque<Record>,
}

impl Rank {
    fn new(number: u32) -> Rank {
        Rank {
            number,
            steps: 0,
            // Ranks are not in step with each other.
            next: START + u64::from(number) * 7_919_000 % STEP_NANOS,
            random: u64::from(number) + 1,
            waiting: VecDeque::new(),
        }
    }

    fn pid(&self) -> u32 {
        10_000 + 10 * self.number
    }

    fn names(&self) -> Vec<Event> {
        let name = |tid: u32, name: &str| {
            Event::ThreadName(ThreadName {
                thread: Thread::new(self.pid(), tid),
                name: name.into(),
            })
        };
        let process = ProcessInfo {
            incarnation: Incarnation {
                pid: Pid(self.pid()),
                start_ticks: 7,
            },
            name: "python".into(),
            command: vec!["python".into(), "train.py".into()],
            start: BootNanos(START - 1_000_000_000),
            in_job: true,
            rank: Some(self.number),
            ..ProcessInfo::default()
        };
        vec![
            Event::ProcessInfo(Box::new(process)),
            name(self.pid(), "python"),
            name(self.pid() + 1, "loader-0"),
        ]
    }

    /// Writes what ended up to `until`, and says how many records that were.
    fn write_until(&mut self, until: u64, ring: &mut Producer) -> u64 {
        while self.next < until {
            self.step();
        }
        let mut written = 0;
        while let Some(record) = self.waiting.front().filter(|r| r.ts + r.dur <= until) {
            ring.push(|| *record);
            self.waiting.pop_front();
            written += 1;
        }
        written
    }

    /// Up to `below`, always the same for the same rank.
    fn random(&mut self, below: u64) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    fn call(&self, name: &str, ts: u64, dur: u64, stream: u64) -> Record {
        let op = OpId::by_name(name).expect("the op table has it").get();
        Record {
            source: op.source as u8,
            op: op.number,
            device: (self.number % 8) as u16,
            cpu: self.number,
            stream,
            ..Record::new(Kind::Call, ts, dur, self.pid(), self.pid())
        }
    }

    fn step(&mut self) {
        let (pid, cpu) = (self.pid(), self.number);
        let loader = pid + 1;
        let begin = self.next;
        let hog = self.steps >= 60 && self.steps % 100 / 2 == 30;
        let end = begin + STEP_NANOS + self.random(400_000) + if hog { HOG_NANOS } else { 0 };
        let streams = [0x5580_0010, 0x5580_0050];
        let mut out = Vec::with_capacity(256);

        // The loader reads the next batch, wakes the trainer, and sleeps until it is asked again.
        let read = begin + 1_000_000;
        let took = 2_500_000 + self.random(1_000_000);
        out.push(Record {
            op: 17,
            flags: offcpu::IOWAIT | offcpu::UNINTERRUPTIBLE | offcpu::WAKER_INTERRUPT,
            device: 0o10,
            ret: 7,
            cpu,
            arg0: 20_000,
            ..Record::new(Kind::OffCpu, read, took, pid, loader)
        });
        out.push(Record {
            arg0: 1 << 20,
            arg1: self.steps << 11,
            stack_id: 0x10_0003,
            stream: 4_711,
            cpu,
            ..Record::new(Kind::BlockIo, read + 10_000, took - 40_000, pid, loader)
        });
        out.push(Record {
            op: 202,
            flags: offcpu::WAKER_SYSCALL,
            ret: -1,
            cpu,
            arg0: 4_000,
            stack_id: pid,
            stream: u64::from(pid) << 32,
            ..Record::new(
                Kind::OffCpu,
                read + took + 300_000,
                end - read - took - 200_000,
                pid,
                loader,
            )
        });

        // The trainer: copy in, forward, backward, copy out, wait.
        let mut at = begin + 60_000;
        let batch = Record {
            arg0: 4 << 20,
            arg1: 1,
            ..self.call("cudaMemcpyAsync", at, 2_700, streams[0])
        };
        out.push(batch);
        at += 3_200;
        out.push(Record {
            arg0: 4 << 20,
            ..self.call("cudaMemsetAsync", at, 1_400, streams[1])
        });
        for launch in 0..LAUNCHES {
            at += LAUNCH_EVERY_NANOS - 2_000 + self.random(4_000);
            let half = usize::from(launch >= LAUNCHES / 2);
            if launch == LAUNCHES / 2 {
                out.push(Record {
                    arg0: 0x7001,
                    ..self.call("cudaEventRecord", at, 1_800, streams[0])
                });
                at += 2_400;
                out.push(Record {
                    arg1: 0x7001,
                    ..self.call("cudaStreamWaitEvent", at, 1_300, streams[1])
                });
                at += 2_400;
            }
            let took = 1_250 + self.random(300);
            out.push(Record {
                arg0: 0x7f12_3400_0000 + launch * 64,
                arg1: op::pack_dims([108, 1, 1], [256, 1, 1]),
                ..self.call("cudaLaunchKernel", at, took, streams[half])
            });
        }
        at += 3_000;
        out.push(Record {
            arg0: 0x7002,
            ..self.call("cudaEventRecord", at, 1_300, streams[1])
        });
        at += 2_000;
        out.push(Record {
            arg1: 0x7002,
            ..self.call("cudaStreamWaitEvent", at, 1_100, streams[0])
        });
        at += 2_000;
        out.push(Record {
            arg0: 4,
            arg1: 2,
            ..self.call("cudaMemcpyAsync", at, 1_500, streams[0])
        });
        at += 2_500;
        let (wait, back) = (at, end);
        out.push(Record {
            flags: flag::NESTED,
            ..self.call(
                "cuStreamSynchronize",
                wait + 600,
                back - wait - 2_000,
                streams[0],
            )
        });
        out.push(self.call("cudaStreamSync", wait, back - wait, streams[0]));

        // It spins while it waits, and is preempted now and then; the hog takes longer.
        let share = (back - wait) / (PREEMPTIONS + 1);
        let held = if hog { HOG_NANOS / PREEMPTIONS } else { 60_000 };
        for i in 0..PREEMPTIONS {
            let ts = wait + 10_000 + i * share;
            let dur = (held + self.random(20_000)).min(share - 10_000);
            let by = if hog {
                999
            } else {
                800 + self.random(20) as u32
            };
            out.push(Record {
                cpu,
                ..Record::new(Kind::Slice, ts, dur, by, by)
            });
            out.push(Record {
                op: NO_SYSCALL,
                flags: offcpu::PREEMPTED,
                device: 0,
                ret: -1,
                cpu,
                arg0: dur,
                stream: u64::from(by),
                ..Record::new(Kind::OffCpu, ts, dur, pid, pid)
            });
        }
        // Records are written when what they tell has ended; the driver's wait ends inside the runtime's.
        self.waiting.extend(out);
        self.waiting.make_contiguous().sort_by_key(|r| r.ts + r.dur);
        self.steps += 1;
        self.next = end;
    }
}

/// A ring in memory that has a file's descriptor, as a traced thread's has, and both ends of it.
fn ring(layout: Layout) -> anyhow::Result<(Producer, Consumer<RingFile>)> {
    // SAFETY: a valid name; the descriptor that comes back is ours alone.
    let file = unsafe {
        let fd = libc::memfd_create(c"ring".as_ptr(), libc::MFD_CLOEXEC);
        ensure!(
            fd >= 0,
            "no memory file: {}",
            std::io::Error::last_os_error()
        );
        File::from_raw_fd(fd)
    };
    file.set_len(layout.bytes() as u64)?;
    // SAFETY: a new shared mapping of the whole file, at an address that the kernel chooses.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            layout.bytes(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    ensure!(
        memory != libc::MAP_FAILED,
        "cannot map the ring: {}",
        std::io::Error::last_os_error()
    );
    let memory = NonNull::new(memory.cast::<u8>()).context("mapped at null")?;
    let owner = Owner {
        pid: 1,
        tid: 1,
        ..Owner::default()
    };
    // SAFETY: the mapping is page-aligned, zeroed, as long as the layout says, never unmapped, and nobody else writes to it.
    let producer = unsafe { Producer::create(memory, layout, &owner) };
    let consumer = Consumer::open(RingFile(file), layout.bytes() as u64)
        .map_err(|e| anyhow::anyhow!("the ring does not open: {e:?}"))?;
    Ok((producer, consumer))
}

/// As the recorder reads the ring of a job.
struct RingFile(File);

impl ReadAt for RingFile {
    fn read_at(&self, offset: usize, out: &mut [u8]) -> bool {
        self.0.read_exact_at(out, offset as u64).is_ok()
    }
}

/// Bytes of all files below `folder`.
fn size(folder: &std::path::Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() {
            size(&entry.path())?
        } else {
            meta.len()
        };
    }
    Ok(bytes)
}
