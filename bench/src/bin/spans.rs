//! What a span costs a program, beside a span of the crates `opentelemetry` and `opentelemetry_sdk` in the same run.
//!
//! `cargo run --release -p warptrace-bench --bin spans -- [SPANS [THREADS [EACH]]]` (200,000 a round; 100 threads with 100,000 spans
//! each). Rounds of ours and theirs take turns; of each kind the median is told, with the fastest and the slowest. Time is the CPU
//! time of the thread that makes the spans ("the program's"), that of the whole process with the exporter's thread, and wall time.
//! Both export in batches behind a queue of 65,536, to an exporter that lets go of what it is given; between bursts of 10,000 spans,
//! which the clock does not see, both bring out what they have, so that neither drops. Budget: start and stop in a third of the
//! time. Recording to a file is ours alone.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::time::{ClockId, clock_gettime};
use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, SpanData, SpanExporter,
};
use warptrace_sdk::exporter::{Discard, JsonlFile};
use warptrace_sdk::span::{Attributes, Recorder};

const USAGE: &str = "usage: spans [SPANS [THREADS [EACH]]]";
const QUEUE: usize = 1 << 16;
const BURST: usize = 10_000;
const ROUNDS: usize = 7;
const PATIENCE: Duration = Duration::from_secs(600);

fn main() -> anyhow::Result<()> {
    let args: Result<Vec<usize>, _> = std::env::args()
        .skip(1)
        .map(|n| n.replace(['_', ','], "").parse())
        .collect();
    let args = args.context(USAGE)?;
    let (spans, threads, each) = match args[..] {
        [] => (200_000, 100, 100_000),
        [spans] => (spans, 100, 100_000),
        [spans, threads] => (spans, threads, 100_000),
        [spans, threads, each] => (spans, threads, each),
        _ => anyhow::bail!(USAGE),
    };
    let folder = tempfile::tempdir()?;
    one_thread(spans, folder.path())?;
    long_job()?;
    many_threads(threads, each, &folder.path().join("many.jsonl"))
}

/// Lets go of spans, and counts them.
#[derive(Debug, Clone, Default)]
struct LetGo(Arc<AtomicU64>);

impl SpanExporter for LetGo {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.fetch_add(batch.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

struct Theirs {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    exported: LetGo,
}

impl Theirs {
    fn new() -> Theirs {
        let exported = LetGo::default();
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .build();
        let processor = BatchSpanProcessor::builder(exported.clone())
            .with_batch_config(config)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .build();
        let tracer = provider.tracer("bench");
        Theirs {
            provider,
            tracer,
            exported,
        }
    }
}

fn discarding() -> anyhow::Result<Recorder> {
    let builder = Recorder::builder().queue_items(QUEUE);
    Ok(builder.exporter("discard", Box::new(Discard)).build()?)
}

/// ns a span.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    program: f64,
    process: f64,
    wall: f64,
}

fn nanos(clock: ClockId) -> f64 {
    clock_gettime(clock).map_or(0.0, |t| Duration::from(t).as_nanos() as f64)
}

/// The cost of `spans` calls of `one`, in bursts with `bring_out` between, which costs the process alone.
fn measure(spans: usize, one: impl Fn(usize), bring_out: impl Fn()) -> Cost {
    let (mut program, mut wall) = (0.0, 0.0);
    let process = nanos(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    let mut waited = 0.0;
    for burst in 0..spans / BURST {
        let began = (
            nanos(ClockId::CLOCK_THREAD_CPUTIME_ID),
            nanos(ClockId::CLOCK_MONOTONIC),
        );
        for i in 0..BURST {
            one(burst * BURST + i);
        }
        let ended = nanos(ClockId::CLOCK_THREAD_CPUTIME_ID);
        program += ended - began.0;
        wall += nanos(ClockId::CLOCK_MONOTONIC) - began.1;
        bring_out();
        waited += nanos(ClockId::CLOCK_THREAD_CPUTIME_ID) - ended;
    }
    let process = nanos(ClockId::CLOCK_PROCESS_CPUTIME_ID) - process - waited;
    let n = (spans / BURST * BURST) as f64;
    Cost {
        program: program / n,
        process: process / n,
        wall: wall / n,
    }
}

fn one_thread(spans: usize, folder: &Path) -> anyhow::Result<()> {
    let theirs = Theirs::new();
    let ours = discarding()?;
    let off = Recorder::off();
    let alone = Recorder::builder().build()?;
    let path = folder.join("one.jsonl");
    let file = Recorder::builder().queue_items(QUEUE);
    let file = file
        .exporter("file", Box::new(JsonlFile::new(&path)))
        .build()?;
    let flush = |recorder: &Recorder| ensure_flushed(recorder);
    let their_flush = || {
        let _ = theirs.provider.force_flush();
    };
    let key = opentelemetry::Key::new;
    type Run<'a> = (&'a str, Box<dyn Fn() -> Cost + 'a>);
    let runs: Vec<Run<'_>> = vec![
        (
            "ours: span, no attributes",
            Box::new(|| measure(spans, |_| drop(ours.span("step")), || flush(&ours))),
        ),
        (
            "theirs: start, end",
            Box::new(|| measure(spans, |_| theirs.tracer.start("step").end(), their_flush)),
        ),
        (
            "theirs: in_span (as ours, current while it is open)",
            Box::new(|| {
                measure(
                    spans,
                    |_| theirs.tracer.in_span("step", |_| ()),
                    their_flush,
                )
            }),
        ),
        (
            "ours: three attributes, an event",
            Box::new(|| {
                let one = |i: usize| {
                    let span = ours.span("step");
                    span.set("step", i as i64);
                    span.set("loss", 0.25);
                    span.set("phase", "train");
                    span.event("e", Attributes::new().with("rows", 12_i64));
                };
                measure(spans, one, || flush(&ours))
            }),
        ),
        (
            "theirs: three attributes, an event",
            Box::new(|| {
                let one = |i: usize| {
                    let mut span = theirs.tracer.start("step");
                    span.set_attribute(opentelemetry::KeyValue::new("step", i as i64));
                    span.set_attribute(opentelemetry::KeyValue::new("loss", 0.25));
                    span.set_attribute(opentelemetry::KeyValue::new("phase", "train"));
                    let rows = opentelemetry::KeyValue::new(key("rows"), 12_i64);
                    span.add_event("e", vec![rows]);
                    span.end();
                };
                measure(spans, one, their_flush)
            }),
        ),
        (
            "ours: no exporter",
            Box::new(|| measure(spans, |_| drop(alone.span("step")), || {})),
        ),
        (
            "ours: to a file of JSON lines",
            Box::new(|| measure(spans, |_| drop(file.span("step")), || flush(&file))),
        ),
        (
            "ours: switched off",
            Box::new(|| measure(spans, |_| drop(black_box(&off).span("step")), || {})),
        ),
    ];
    let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); runs.len()];
    for round in 0..=ROUNDS {
        for (i, (_, run)) in runs.iter().enumerate() {
            let cost = run();
            // The first round warms up.
            if round > 0 {
                costs[i].push(cost);
            }
        }
    }
    println!("a span, ns (median; fastest to slowest of {ROUNDS} rounds of {spans})");
    println!(
        "{:<54}{:>24}{:>12}{:>10}",
        "", "the program's CPU", "all CPU", "wall"
    );
    let mut medians = Vec::new();
    for ((name, _), costs) in runs.iter().zip(&costs) {
        let program = spread(costs, |c| c.program);
        let (process, wall) = (spread(costs, |c| c.process), spread(costs, |c| c.wall));
        let range = format!("{:.1} ({:.1} to {:.1})", program.1, program.0, program.2);
        println!("{name:<54}{range:>24}{:>12.1}{:>10.1}", process.1, wall.1);
        medians.push(Cost {
            program: program.1,
            process: process.1,
            wall: wall.1,
        });
    }
    for (what, ours, theirs) in [
        ("start and end", 0, 1),
        ("current while open", 0, 2),
        ("attributes and an event", 3, 4),
    ] {
        println!(
            "{what}: ours takes {:.2} of theirs by the program's CPU time, {:.2} by all CPU time, {:.2} by wall time",
            medians[ours].program / medians[theirs].program,
            medians[ours].process / medians[theirs].process,
            medians[ours].wall / medians[theirs].wall,
        );
    }
    let made = (spans / BURST * BURST * (ROUNDS + 1)) as u64;
    let counts = ours.counts();
    println!(
        "dropped: ours {} of {} spans, theirs {} of {} spans; to the file {}",
        counts.exporters[0].dropped,
        made * 2,
        made * 3 - theirs.exported.0.load(Ordering::Relaxed),
        made * 3,
        file.counts().exporters[0].dropped + file.counts().exporters[0].lost,
    );
    Ok(())
}

fn ensure_flushed(recorder: &Recorder) {
    assert!(recorder.flush(PATIENCE), "it took longer than {PATIENCE:?}");
}

/// Smallest, median, largest.
fn spread(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> (f64, f64, f64) {
    let mut all: Vec<f64> = costs.iter().map(of).collect();
    all.sort_by(f64::total_cmp);
    (all[0], all[all.len() / 2], all[all.len() - 1])
}

/// A training loop of a million steps: a span for each, and an update of the loop's span.
fn long_job() -> anyhow::Result<()> {
    let recorder = discarding()?;
    let training = recorder.span("training_loop");
    let step = |i: usize| {
        let step = recorder.span("training_iteration");
        step.set("step", i as i64);
        drop(step);
        training.set("iterations", i as i64);
        training.event(
            "training_metrics_update",
            Attributes::new().with("loss", 0.25),
        );
    };
    let some = |from: usize| measure(BURST, |i| step(from + i), || ensure_flushed(&recorder));
    let first: Vec<Cost> = (0..5).map(|i| some(10 + i * BURST)).collect();
    let mut at = 10 + 5 * BURST;
    while at < 1_000_000 {
        some(at);
        at += BURST;
    }
    let last: Vec<Cost> = (0..5).map(|i| some(1_000_000 + i * BURST)).collect();
    let (first, last) = (spread(&first, |c| c.program), spread(&last, |c| c.program));
    println!(
        "a step with an update of its loop: {:.0} ns from step 10 on, {:.0} ns from step 1,000,000 on: {:.2} of it",
        first.1,
        last.1,
        last.1 / first.1
    );
    Ok(())
}

fn many_threads(threads: usize, each: usize, path: &Path) -> anyhow::Result<()> {
    let before = memory_bytes("VmRSS")?;
    std::fs::write("/proc/self/clear_refs", "5").context("cannot reset the peak of memory")?;
    let recorder = Recorder::builder();
    let recorder = recorder
        .exporter("file", Box::new(JsonlFile::new(path)))
        .build()?;
    let began = nanos(ClockId::CLOCK_MONOTONIC);
    let cpu = nanos(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for i in 0..each {
                    recorder.span("step").set("step", i as i64);
                }
            });
        }
    });
    let made = nanos(ClockId::CLOCK_MONOTONIC) - began;
    recorder.close(PATIENCE)?;
    let all = nanos(ClockId::CLOCK_MONOTONIC) - began;
    let cpu = nanos(ClockId::CLOCK_PROCESS_CPUTIME_ID) - cpu;
    let peak = memory_bytes("VmHWM")?;
    let spans = threads * each;
    let counts = recorder.counts();
    let dropped = counts.exporters[0].dropped + counts.exporters[0].lost;
    let written = lines(path)?;
    println!(
        "{threads} threads, {spans} spans to a file: {:.1} s, {:.1} s with the rest of the file; {:.0} ns of CPU a span; peak memory {:.1} MB \
         ({:.1} before)",
        made / 1e9,
        all / 1e9,
        cpu / spans as f64,
        peak as f64 / 1e6,
        before as f64 / 1e6
    );
    println!(
        "  {written} records written, {dropped} dropped and counted, of {} ({} bytes)",
        spans * 2,
        path.metadata()?.len()
    );
    // The file says itself, once, that it is not all.
    let told = u64::from(dropped > 0);
    ensure!(
        written + dropped == 2 * spans as u64 + told,
        "records are neither written nor counted"
    );
    Ok(())
}

fn memory_bytes(what: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(what));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().nth(1))
        .context("no such line in /proc/self/status")?
        .parse()?;
    Ok(kib * 1024)
}

fn lines(path: &Path) -> anyhow::Result<u64> {
    use std::io::Read as _;
    let mut file = std::fs::File::open(path)?;
    let (mut chunk, mut lines) = (vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(lines),
            n => lines += chunk[..n].iter().filter(|b| **b == b'\n').count() as u64,
        }
    }
}
