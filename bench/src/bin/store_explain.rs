//! What `explain` reads of a big session, in time and memory: units, findings, counts, drops and gaps, never the events.
//!
//! `cargo run --release -p warptrace-bench --bin store_explain -- [EVENTS]` (10,000,000 unless said). The session has a unit
//! for every hundred events and the counts of forty ops a second. Reading is done by a fresh process, whose peak memory
//! the kernel tells (`VmHWM`). Budget: 2 s and 300 MB. A replay of all events, which `explain` never does, comes after it.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use warptrace_model::record::OpId;
use warptrace_model::record::op::OPS;
use warptrace_model::{
    BootNanos, Call, CallFlags, Category, ClockAnchor, Cpu, Device, Event, Histogram, Incarnation,
    OpCount, OpKey, Parts, Pid, Stream, StreamScope, Thread, Tid, Unit, UnitKey, UnitKind,
    UnixNanos, Window,
};
use warptrace_store::fs::RealFs;
use warptrace_store::{DataDir, Session, SessionMeta, SessionWriter};

const START: u64 = 5_000_000_000_000;
const EVENTS_A_SECOND: u64 = 10_000;
const EVENTS_A_UNIT: u64 = 100;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let first = args.next();
    if first.as_deref() == Some("--read") {
        return read(Path::new(&args.next().context("--read needs a session")?));
    }
    let count: u64 = match first {
        Some(n) => n
            .replace(['_', ','], "")
            .parse()
            .context("usage: store_explain [EVENTS]")?,
        None => 10_000_000,
    };
    let folder = tempfile::tempdir()?;
    let begin = cpu_nanos()?;
    let session = write(folder.path(), count)?;
    let each = (cpu_nanos()? - begin) / count.max(1);
    println!("writing took {each} ns of CPU time an event, making it included");
    let status = std::process::Command::new(std::env::current_exe()?)
        .arg("--read")
        .arg(session)
        .status()?;
    ensure!(status.success(), "reading failed: {status}");
    Ok(())
}

fn write(folder: &Path, count: u64) -> anyhow::Result<std::path::PathBuf> {
    let meta = SessionMeta::new(ClockAnchor {
        boot: BootNanos(START),
        unix: UnixNanos(1_795_000_000_000_000_000),
    });
    let mut writer = SessionWriter::create(Arc::new(RealFs), &DataDir::at(folder), meta)?;
    let launch = OpId::by_name("cudaLaunchKernel").context("the op table has it")?;
    let call = |i: u64| {
        Event::Call(Call {
            thread: Thread::new(4711, 4711),
            op: launch,
            start: BootNanos(START + i * 100_000),
            dur: 4_000 + i * 7_919 % 2_000,
            device: Some(Device(0)),
            stream: Stream(0x5580_0010),
            ret: 0,
            flags: CallFlags(0),
            arg0: 0x7f12_3400_0000 + i % 180 * 64,
            arg1: 0,
            stack_id: 0,
            cpu: Cpu(0),
        })
    };
    let mut at = 0;
    while at < count {
        let next = (at + EVENTS_A_SECOND).min(count);
        let events: Vec<Event> = (at..next).map(call).collect();
        writer.events(&events);
        let units: Vec<Unit> = (at / EVENTS_A_UNIT..next / EVENTS_A_UNIT)
            .map(unit)
            .collect();
        writer.units(&units);
        let second = Window {
            start: BootNanos(START + at * 100_000),
            end: BootNanos(START + next * 100_000),
        };
        let counts: Vec<Event> = (0..40).map(|op| counted(op, second)).collect();
        writer.events(&counts);
        writer.tick(second.end);
        at = next;
    }
    let path = writer.path().to_owned();
    writer.seal()?;
    Ok(path)
}

fn unit(number: u64) -> Unit {
    let mut parts = Parts::default();
    for (i, category) in Category::ALL.into_iter().enumerate() {
        parts[category] = number * 7_919 * (i as u64 + 1) % 800_000;
    }
    Unit {
        key: UnitKey {
            process: Incarnation {
                pid: Pid(4711),
                start_ticks: 7,
            },
            device: Some(Device(0)),
            stream: StreamScope::Many,
            kind: UnitKind::WaitInterval,
            class: 3,
        },
        lead: Tid(4711),
        name: None,
        number,
        start: BootNanos(START + number * EVENTS_A_UNIT * 100_000),
        dur: parts.total(),
        parts,
        launches: 180,
        slow: number.is_multiple_of(97),
        incomplete: false,
    }
}

fn counted(op: usize, window: Window) -> Event {
    let mut durations = Histogram::default();
    for i in 0..20 {
        durations.record(500 << (i % 10));
    }
    Event::Counts(Box::new(OpCount {
        key: OpKey {
            pid: Pid(4711),
            device: Some(Device(0)),
            op: OpId::from_index(op % OPS.len()).expect("the index is below the table's length"),
        },
        window,
        total: 1_000_000,
        durations,
    }))
}

fn read(path: &Path) -> anyhow::Result<()> {
    let begin = Instant::now();
    let session = Session::open(Arc::new(RealFs), path)?;
    let units = session.units(None)?.len();
    let findings = session.findings()?.len();
    let ops = session.ops(None)?.len();
    let others = session.drops()?.len() + session.gaps()?.len() + session.processes()?.len();
    let seconds = begin.elapsed().as_secs_f64();
    println!("{units} units, {findings} findings, counts of {ops} ops, {others} others");
    println!(
        "read in {seconds:.3} s (budget 2 s), peak memory {} (budget 300 MB)",
        peak_memory()?
    );

    let begin = Instant::now();
    let (mut batch, mut events) = (Vec::new(), 0);
    let mut stream = session.events(None)?;
    while stream.next_batch(&mut batch) {
        events += batch.len();
        batch.clear();
    }
    let rate = events as f64 / begin.elapsed().as_secs_f64() / 1e6;
    println!(
        "replay: {events} events in order, {rate:.1} million/s, peak memory {}",
        peak_memory()?
    );
    Ok(())
}

/// CPU time of this thread so far, ns: the first field of its schedstat.
fn cpu_nanos() -> anyhow::Result<u64> {
    let fields = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let first = fields.split(' ').next().context("schedstat has fields")?;
    Ok(first.parse()?)
}

/// The most memory that this process ever had, as the kernel says it.
fn peak_memory() -> anyhow::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    Ok(peak.context("the kernel says no VmHWM")?.trim().to_owned())
}
