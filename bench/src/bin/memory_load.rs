//! Loading GPU memory telemetry, against the Python package that defines the format in the same run.
//!
//! `cargo run --release -p warptrace-bench --bin memory_load -- [EVENTS] [PEER_EVENTS]` (1,000,000 and 100,000 unless said).
//! Both read lines of about 1.5 kB as a CUDA tracker writes them: samples with what it found of the device and its own health,
//! every hundredth an allocation with other metadata. The peer is `stormlog` 0.4.3 in the `python3` of target/venv or of the
//! path; without it, ours is measured alone. Each runs in a process of its own, and its peak resident memory is what the kernel
//! says of it. The file was just written, and is in the page cache for both.

use std::fmt::Write as _;
use std::io::Write as _;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use warptrace_agent::load_memory;
use warptrace_formats::memory::{LoadOptions, Strictness};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let first = args.next();
    if first.as_deref() == Some("load") {
        let path = args.next().context("a path")?;
        let threads = args.next().context("threads")?.parse()?;
        return load(Path::new(&path), threads);
    }
    let number = |text: Option<String>, default: u64| match text {
        Some(text) => text
            .replace(['_', ','], "")
            .parse()
            .context("a number of events"),
        None => Ok(default),
    };
    let events = number(first, 1_000_000)?;
    let peer_events = number(args.next(), 100_000)?.min(events);
    let folder = tempfile::tempdir()?;
    let (path, short) = (
        folder.path().join("long.jsonl"),
        folder.path().join("short.jsonl"),
    );
    let bytes = write(&path, events)?;
    write(&short, peer_events)?;
    println!("{events} events of {} bytes", bytes / events);

    let ours = child(
        Command::new(std::env::current_exe()?)
            .arg("load")
            .arg(&path)
            .arg("2"),
    )?;
    let alone = child(
        Command::new(std::env::current_exe()?)
            .arg("load")
            .arg(&path)
            .arg("1"),
    )?;
    for (what, run) in [("two threads", &ours), ("one thread", &alone)] {
        ensure!(run.events == events, "{what} found {} events", run.events);
        println!(
            "ours, {what}: {:.0} events/s, {:.2} GB/s, {} MB at most",
            run.rate(),
            bytes as f64 / run.seconds / 1e9,
            run.peak_kb / 1024
        );
    }
    match peer(&short) {
        Ok(theirs) => {
            ensure!(
                theirs.events == peer_events,
                "the peer found {} events",
                theirs.events
            );
            println!(
                "stormlog: {:.0} events/s, {} MB at most for {peer_events} events",
                theirs.rate(),
                theirs.peak_kb / 1024
            );
            println!(
                "{:.1} × on two threads, {:.1} × on one",
                ours.rate() / theirs.rate(),
                alone.rate() / theirs.rate()
            );
        }
        Err(error) => println!("without the peer: {error:#}"),
    }
    Ok(())
}

/// What a process said of its load.
struct Run {
    events: u64,
    seconds: f64,
    peak_kb: u64,
}

impl Run {
    fn rate(&self) -> f64 {
        self.events as f64 / self.seconds
    }
}

/// Loads a file strictly, looking at every event, and says how that went.
fn load(path: &Path, threads: usize) -> anyhow::Result<()> {
    let begin = Instant::now();
    let options = LoadOptions {
        strictness: Strictness::Strict,
        ..LoadOptions::default()
    };
    let mut used = 0_u128;
    let threads = NonZero::new(threads).context("no threads")?;
    let load = load_memory(path, &options, threads, &mut |_, events| {
        for event in events.iter() {
            let bytes = event.device_used_bytes.as_ref().and_then(|n| n.to_u64());
            used += u128::from(bytes.unwrap_or(0));
        }
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak
        .and_then(|text| text.split_whitespace().next())
        .context("VmHWM")?;
    ensure!(used > 0, "no counters");
    println!("{} {seconds} {peak}", load.events);
    Ok(())
}

fn child(command: &mut Command) -> anyhow::Result<Run> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{}",
        errors.lines().last().unwrap_or_default()
    );
    let mut words = text.split_whitespace();
    let mut word = || words.next().context("three numbers");
    Ok(Run {
        events: word()?.parse()?,
        seconds: word()?.parse()?,
        peak_kb: word()?.parse()?,
    })
}

fn peer(path: &Path) -> anyhow::Result<Run> {
    const PROGRAM: &str = "import resource, sys, time
from stormlog.telemetry import load_telemetry_events
begin = time.perf_counter()
events = load_telemetry_events(sys.argv[1])
seconds = time.perf_counter() - begin
print(len(events), seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)";
    let ours = PathBuf::from("target/venv/bin/python3");
    let python = if ours.exists() {
        ours
    } else {
        "python3".into()
    };
    child(Command::new(python).args(["-c", PROGRAM]).arg(path))
}

/// Writes `events` lines and returns their bytes.
fn write(path: &Path, events: u64) -> anyhow::Result<u64> {
    let mut file = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    let mut line = String::new();
    let mut bytes = 0;
    for n in 0..events {
        line.clear();
        one_line(&mut line, n)?;
        file.write_all(line.as_bytes())?;
        bytes += line.len() as u64;
    }
    file.flush()?;
    Ok(bytes)
}

/// A line as the package's sink writes it: keys in order.
fn one_line(out: &mut String, n: u64) -> std::fmt::Result {
    let allocated = 8_000_000_000 + n * 4096 % 1_000_000_000;
    let reserved = allocated + 700_000_000;
    let time = 1_700_000_000_000_000_000 + n * 100_000_000;
    let (kind, context, more) = match n % 100 {
        99 => (
            "allocation",
            format!("\"Memory allocated: {:.2} MB\"", n as f64 / 7.0),
            format!("\"origin_thread_id\": {}, ", 140_000_000 + n),
        ),
        _ => (
            "sample",
            "\"Collected telemetry sample.\"".to_owned(),
            String::new(),
        ),
    };
    write!(
        out,
        "{{\"allocator_active_bytes\": {allocated}, \"allocator_allocated_bytes\": {allocated}, \
         \"allocator_change_bytes\": {}, \"allocator_inactive_bytes\": 65536, \"allocator_reserved_bytes\": {reserved}, \
         \"collector\": \"stormlog.cuda_tracker\", \"context\": {context}, \"device_free_bytes\": {}, \"device_id\": 0, \
         \"device_total_bytes\": 85899345920, \"device_used_bytes\": {reserved}, \"event_type\": \"{kind}\", \
         \"host\": \"node-17.cluster\", \"job_id\": \"train-llm-7b\", \"local_rank\": 3, \"metadata\": {{\"backend\": \"cuda\", \
         \"collector_consecutive_failures\": 0, \"collector_health_status\": \"healthy\", \"collector_last_error\": null, \
         \"collector_next_retry_epoch_s\": null, \"collector_partial_fields\": [], \"memory_capabilities\": {{\"backend\": \"cuda\", \
         \"sampling_source\": \"torch.cuda.memory_allocated/reserved\", \"supports_allocator_active\": true, \
         \"supports_allocator_allocated\": true, \"supports_allocator_attribution\": true, \"supports_allocator_inactive\": true, \
         \"supports_allocator_reserved\": true, \"supports_bounded_profiling\": true, \"supports_device_free\": true, \
         \"supports_device_total\": true, \"supports_device_used\": true, \"supports_fragmentation_analysis\": true, \
         \"supports_native_allocator_history\": true, \"telemetry_collector\": \"stormlog.cuda_tracker\"}}, {more}\
         \"sampling_source\": \"torch.cuda.memory_allocated/reserved\", \"supports_device_free\": true, \
         \"supports_device_total\": true, \"telemetry_partial\": false}}, \"pid\": 48213, \"rank\": 11, \
         \"sampling_interval_ms\": 100, \"schema_version\": 4, \"session_id\": \"7c1f3f0e-6f0b-4c5e-9a53-0d5a7f1f6a21\", \
         \"timestamp_ns\": {time}, \"world_size\": 64}}\n",
        if n.is_multiple_of(2) { 4096 } else { -4096 },
        85_899_345_920 - reserved,
    )
}
