//! What a run log costs: to add up, to tokenize, to write; and whether eight processes under fire lose a line.
//!
//! `cargo run --release -p warptrace-bench --bin run_log -- [REQUESTS]` (1,000,000 unless said; 5,500,000 make a log above 1 GiB).
//! Adding up is done by a fresh process, whose peak memory the kernel tells (`VmHWM`). Budget: 5 s and 32 MB for a million
//! requests of 200 bytes. The floor of a written record is one `write` of the same bytes to a file in append mode.
//!
//! `… --bin run_log -- soak [SECONDS [MILLIS [RECORDS]]]` (60, 500 and 20,000 unless said): eight processes write RECORDS a second
//! together, one of them is killed every MILLIS and starts again; then every line is looked at. A record that its writer was told
//! of as written, and is not in the log, is a failure of this program, as is a line that is no record. A record that a kill has
//! cut is a blank line.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::time::{ClockId, clock_gettime};
use warptrace_formats::json::{Invalid, Reader};
use warptrace_formats::run_log::{Kind, Lines, Record, Summary, SummaryOptions};
use warptrace_sdk::run_log::{RunLog, RunStart, Served};

const USAGE: &str = "usage: run_log [REQUESTS] | run_log soak [SECONDS [MILLIS [RECORDS]]]";

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--add-up", log] => add_up(Path::new(log)),
        ["--worker", log, who, ack, rate] => {
            worker(Path::new(log), who, Path::new(ack), rate.parse()?)
        }
        ["soak", numbers @ ..] if numbers.len() <= 3 => {
            let number = |i: usize, or| numbers.get(i).map_or(Ok(or), |n: &&str| n.parse());
            let (seconds, millis) = (number(0, 60), number(1, 500));
            let records = number(2, 20_000).context(USAGE)?;
            soak(seconds.context(USAGE)?, millis.context(USAGE)?, records)
        }
        [] => costs(1_000_000),
        [n] => costs(n.replace(['_', ','], "").parse().context(USAGE)?),
        _ => anyhow::bail!(USAGE),
    }
}

/// What varies in a request of the benchmark.
struct Load {
    extra: String,
}

impl Load {
    fn new() -> Load {
        Load {
            extra: String::new(),
        }
    }

    /// Request `i`: a line of about 200 bytes.
    fn request(&mut self, who: &str, i: u64) -> Served<'_> {
        use std::fmt::Write as _;
        const MODELS: [&str; 4] = ["llama-3.1-8b", "llama-3.1-70b", "mixtral-8x7b", "bge-small"];
        // Spread as by a linear congruential generator (Knuth, MMIX).
        let random = i
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407)
            >> 33;
        self.extra.clear();
        let _ = write!(
            self.extra,
            "{{\"request_id\":\"{who}-{i}\",\"principal_id\":\"user:{}\"}}",
            random % 100
        );
        Served {
            model: MODELS[(random % 4) as usize],
            prompt_tokens: (random % 2_000) as i64,
            completion_tokens: (random % 512) as i64,
            latency_micros: 20_000 + (random % 3_000_000) as i64,
            extra: &self.extra,
        }
    }
}

fn costs(requests: u64) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("events.jsonl");
    write_log(&path, requests)?;
    let bytes = path.metadata()?.len();
    println!(
        "log: {requests} requests, {bytes} bytes, {:.0} a line",
        bytes as f64 / requests as f64
    );
    let status = Command::new(std::env::current_exe()?)
        .arg("--add-up")
        .arg(&path)
        .status()?;
    ensure!(status.success(), "adding up failed: {status}");
    tokenize(&path)
}

fn write_log(path: &Path, requests: u64) -> anyhow::Result<()> {
    let mut load = Load::new();
    let log = RunLog::open(path);
    log.run_start(&RunStart {
        backend: "cuda",
        ..RunStart::here()
    });
    let begin = cpu_nanos()?;
    for i in 0..requests {
        log.request(&load.request("req", i));
    }
    let each = (cpu_nanos()? - begin) / requests.max(1);
    ensure!(log.dropped() == 0, "{} records were dropped", log.dropped());
    log.run_end("completed");

    let mut floor = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path.with_extension("floor"))?;
    let line = [b'x'; 200];
    let begin = cpu_nanos()?;
    for _ in 0..requests {
        floor.write_all(&line)?;
    }
    let write = (cpu_nanos()? - begin) / requests.max(1);
    std::fs::remove_file(path.with_extension("floor"))?;

    let off = RunLog::off();
    let begin = cpu_nanos()?;
    for i in 0..requests {
        off.request(&load.request("req", i));
    }
    let off = (cpu_nanos()? - begin) / requests.max(1);
    println!(
        "CPU time: a written record {each} ns, one write of 200 bytes {write} ns, log off {off} ns (making the request included)"
    );
    Ok(())
}

fn add_up(path: &Path) -> anyhow::Result<()> {
    let (begin, cpu) = (Instant::now(), cpu_nanos()?);
    let mut summary = Summary::new(SummaryOptions::default());
    let mut file = File::open(path)?;
    let mut chunk = vec![0; 256 << 10];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            n => summary.feed(&chunk[..n]),
        }
    }
    summary.finish();
    let (took, cpu) = (begin.elapsed().as_secs_f64(), (cpu_nanos()? - cpu) as f64);
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let peak: u64 = peak
        .and_then(|l| l.trim().split(' ').next())
        .context("no VmHWM")?
        .parse()?;
    let p99 = summary.totals.latency_micros.percentile(99).unwrap_or(0);
    println!(
        "added up: {took:.2} s, {:.2} s of them on a CPU, {:.0} ns of CPU a line, {:.0} MB a second of CPU, peak {:.1} MB; {} requests, \
         {} corrupt, p99 {p99} µs",
        cpu / 1e9,
        cpu / summary.lines.max(1) as f64,
        path.metadata()?.len() as f64 / cpu * 1e3,
        peak as f64 / 1e3,
        summary.totals.requests,
        summary.corrupt,
    );
    Ok(())
}

/// The tokenizer alone, line by line, on the first 64 MiB.
fn tokenize(path: &Path) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    File::open(path)?.take(64 << 20).read_to_end(&mut bytes)?;
    let lines: Vec<&[u8]> = bytes.split(|&b| b == b'\n').collect();
    let mut best = u64::MAX;
    let mut tokens = 0u64;
    for _ in 0..5 {
        let begin = cpu_nanos()?;
        tokens = 0;
        for line in &lines {
            let mut reader = Reader::new(line);
            while let Ok(Some(_)) = reader.next() {
                tokens += 1;
            }
        }
        best = best.min(cpu_nanos()? - begin);
    }
    println!(
        "tokens: {:.0} MB a second of CPU, {:.1} ns a token, lines split before",
        bytes.len() as f64 / best as f64 * 1e3,
        best as f64 / tokens.max(1) as f64
    );
    Ok(())
}

/// CPU time of this process, ns.
fn cpu_nanos() -> anyhow::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

const WORKERS: usize = 8;

/// Writes `share` records a second for ever, and keeps in `ack` how many records it was told of as written.
fn worker(path: &Path, who: &str, ack: &Path, share: u64) -> anyhow::Result<()> {
    let (log, ack) = (RunLog::open(path), File::create(ack)?);
    let mut load = Load::new();
    let begin = Instant::now();
    for i in 0.. {
        log.request(&load.request(who, i));
        ensure!(log.dropped() == 0, "a record was dropped");
        ack.write_all_at(&(i + 1).to_le_bytes(), 0)?;
        let due = Duration::from_nanos((i + 1) * 1_000_000_000 / share);
        // Ahead of its share by more than 10 ms.
        if let Some(ahead) = due.checked_sub(begin.elapsed() + Duration::from_millis(10)) {
            std::thread::sleep(ahead);
        }
    }
    Ok(())
}

/// One life of a worker: its name in the log, and its count.
struct Life {
    who: String,
    ack: PathBuf,
}

fn soak(seconds: u64, kill_millis: u64, records_a_second: u64) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("events.jsonl");
    let log = RunLog::open(&path);
    log.run_start(&RunStart::here());
    let mut lives = Vec::new();
    let mut start = |slot: usize| -> anyhow::Result<Child> {
        let who = format!("w{slot}.{}", lives.len());
        let ack = folder.path().join(&who);
        let child = Command::new(std::env::current_exe()?)
            .arg("--worker")
            .args([path.as_os_str(), who.as_ref(), ack.as_os_str()])
            .arg((records_a_second / WORKERS as u64).to_string())
            .stdin(Stdio::null())
            .spawn()?;
        lives.push(Life { who, ack });
        Ok(child)
    };
    let mut workers: Vec<Child> = (0..WORKERS).map(&mut start).collect::<Result<_, _>>()?;
    let begin = Instant::now();
    let mut kills = 0;
    while begin.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_millis(kill_millis));
        let slot = kills % WORKERS;
        workers[slot].kill()?;
        workers[slot].wait()?;
        workers[slot] = start(slot)?;
        kills += 1;
    }
    for worker in &mut workers {
        worker.kill()?;
        worker.wait()?;
        kills += 1;
    }
    let took = begin.elapsed().as_secs_f64();
    log.run_end_aggregated("completed");
    check(&path, &lives, kills, took)
}

fn check(path: &Path, lives: &[Life], kills: usize, took: f64) -> anyhow::Result<()> {
    use std::collections::HashMap;
    let mut next: HashMap<&str, u64> = lives.iter().map(|life| (life.who.as_str(), 0)).collect();
    let (mut corrupt, mut disorder, mut requests, mut tokens, mut stats) =
        (0u64, 0u64, 0u64, 0u64, None);
    let (mut mended, mut empty) = (0, 0);
    let mut lines = Lines::new(1 << 20);
    let log = std::fs::read(path)?;
    lines.feed(&log, |line| {
        if let Some(text) = line.bytes
            && text.trim_ascii().is_empty()
        {
            // An empty line is one that a starting writer began with when somebody else's record was only half in the file.
            *(if text.is_empty() {
                &mut empty
            } else {
                &mut mended
            }) += 1;
            return;
        }
        let Some(Ok(record)) = line.bytes.map(Record::parse) else {
            corrupt += 1;
            return;
        };
        match record.kind {
            Kind::Request => {
                requests += 1;
                tokens += record.completion_tokens.unwrap_or(0);
                let id = record.request_id.and_then(|s| s.decode(Invalid::Refuse));
                let id = id.unwrap_or_default();
                let (who, i) = id.rsplit_once('-').unwrap_or_default();
                match next.get_mut(who) {
                    Some(next) if i.parse() == Ok(*next) => *next += 1,
                    _ => disorder += 1,
                }
            }
            Kind::RunEnd => stats = Some(record.stats),
            _ => {}
        }
    });
    let torn_tail = lines.pending_bytes();
    let (mut acknowledged, mut beyond, mut missing) = (0, 0, 0);
    for life in lives {
        let mut count = [0; 8];
        // A life that ended before its first record has none.
        let _ = File::open(&life.ack).and_then(|f| f.read_exact_at(&mut count, 0));
        let (acked, found) = (u64::from_le_bytes(count), next[life.who.as_str()]);
        acknowledged += acked;
        beyond += found.saturating_sub(acked);
        missing += acked.saturating_sub(found);
    }
    println!(
        "soak: {took:.1} s, {requests} records ({:.0}/s), {} bytes, {kills} kills; {acknowledged} acknowledged, {missing} of them \
         missing, {beyond} written by a process that was killed before it knew; {mended} records cut by a kill and made blank, {empty} empty lines; \
         {corrupt} corrupt lines, {disorder} out of order or twice, {torn_tail} bytes without a line feed at the end; run_end says {stats:?}, counted {requests} and {tokens}",
        requests as f64 / took,
        log.len(),
    );
    ensure!(
        missing == 0 && disorder == 0,
        "records are missing, or come twice"
    );
    ensure!(corrupt == 0 && torn_tail == 0, "lines are torn");
    ensure!(
        stats == Some([Some(requests), Some(0), Some(tokens)]),
        "run_end is wrong"
    );
    Ok(())
}
