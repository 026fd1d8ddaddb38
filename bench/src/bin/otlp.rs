//! What sending spans to an OTLP collector costs, and whether a burst, or an outage, loses any.
//!
//! `cargo run --release -p warptrace-bench --bin otlp -- [ROTEL]`: the cost of a push against a lock and a queue of the same
//! records in the same run; then 20,000 spans at once to a collector on this machine, a process of its own that reads requests
//! and counts their spans, in both encodings over HTTP. With the path of `rotel-agent` (of the wheel `rotel`) the burst goes to
//! that as well, over HTTP and gRPC.
//!
//! `… --bin otlp -- outage [SECONDS]` (60 unless said): the collector is killed in the middle of 1,000 spans a second, and comes
//! back SECONDS later. Every span is then either with the collector or counted as dropped; if not, this program fails.

use std::collections::VecDeque;
use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::time::{ClockId, clock_gettime};
use warptrace_export::otlp::{Config, Protocol, Signal};
use warptrace_export::{Batching, SpanSender};
use warptrace_model::{Object, SpanId, SpanRecord, UnixNanos, Value};

const USAGE: &str = "usage: otlp [ROTEL] | otlp outage [SECONDS]";
const BURST: u64 = 20_000;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--collector", address] => collector(address.parse()?),
        ["outage"] => outage(60),
        ["outage", seconds] => outage(seconds.parse().context(USAGE)?),
        [] => costs(None),
        [rotel] => costs(Some(rotel)),
        _ => anyhow::bail!(USAGE),
    }
}

/// As a training loop says a step: four attributes.
fn span(n: u64) -> SpanRecord {
    let mut attributes = Object::new();
    attributes.insert("step", n as i64);
    attributes.insert("loss", Value::Float(0.25));
    attributes.insert("phase", "forward");
    attributes.insert("rank", 3);
    SpanRecord {
        trace: 1,
        id: SpanId::from_bits(u128::from(n) + 1),
        parent: Some(1),
        name: "train.step".into(),
        start: UnixNanos(1_750_000_000_000_000_000 + n),
        end: Some(UnixNanos(1_750_000_000_000_900_000 + n)),
        attributes,
        events: Vec::new(),
        dropped_events: 0,
        error: None,
    }
}

fn sender(config: &Config, batching: Batching) -> anyhow::Result<SpanSender> {
    let mut resource = Object::new();
    resource.insert("service.name", "bench");
    Ok(SpanSender::new(config, batching, resource, "bench", "0")?)
}

fn costs(rotel: Option<&str>) -> anyhow::Result<()> {
    pushes()?;
    for protocol in [Protocol::HttpProtobuf, Protocol::HttpJson] {
        let (_collector, address) = start_collector("127.0.0.1:0")?;
        burst("a collector that counts", address, protocol)?;
    }
    if let Some(rotel) = rotel {
        for protocol in [Protocol::HttpProtobuf, Protocol::Grpc] {
            let (_rotel, address) = start_rotel(rotel, protocol)?;
            burst("rotel", address, protocol)?;
        }
    }
    Ok(())
}

/// CPU time of this thread.
fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The median of several rounds, so that a wake-up or a page fault of one does not count.
fn median(mut rounds: Vec<f64>) -> f64 {
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

/// CPU time, in ns, that `push` takes for a span, which has just been made.
fn each(spans: u64, mut push: impl FnMut(SpanRecord)) -> f64 {
    /// As many as stay in a core's own cache.
    const AT_ONCE: u64 = 200;
    let mut all = Duration::ZERO;
    for first in (0..spans).step_by(AT_ONCE as usize) {
        let records: Vec<SpanRecord> = (first..first + AT_ONCE).map(span).collect();
        let begin = thread_time();
        records.into_iter().for_each(&mut push);
        all += thread_time() - begin;
    }
    all.as_nanos() as f64 / spans as f64
}

fn pushes() -> anyhow::Result<()> {
    const ROUNDS: usize = 15;
    const SPANS: u64 = 50_000;
    // Nobody listens on port 1: all stays in the queue, which has room for all of a round.
    let nowhere = Config::new(Signal::Traces, Protocol::HttpProtobuf);
    let nowhere = nowhere.with_base("http://127.0.0.1:1");
    let mut floor = Vec::new();
    let mut by_id = Vec::new();
    let mut by_key = Vec::new();
    let mut full = Vec::new();
    for _ in 0..ROUNDS {
        let queue = Mutex::new(VecDeque::new());
        floor.push(each(SPANS, |record| {
            if let Ok(mut queue) = queue.lock() {
                queue.push_back(black_box(record));
            }
        }));
        drop(queue);

        let by_counter = sender(&nowhere, Batching::default())?.with_process_key(|| 1);
        for (times, sender) in [
            (&mut by_id, sender(&nowhere, Batching::default())?),
            (&mut by_key, by_counter),
        ] {
            sender.push(span(0));
            times.push(each(SPANS, |record| {
                black_box(sender.push(record));
            }));
            ensure!(sender.counts().pending == SPANS + 1);
            sender.close(Instant::now());
        }

        let bounds = Batching {
            queue_spans: 1,
            ..Batching::default()
        };
        let sender = sender(&nowhere, bounds)?.with_process_key(|| 1);
        full.push(each(SPANS, |record| {
            sender.push(record);
        }));
        sender.close(Instant::now());
    }
    println!("a push, ns of CPU, median of {ROUNDS} rounds of {SPANS} spans with 4 attributes");
    println!("  a lock and a queue alone          {:.0}", median(floor));
    println!("  a push, a fork told by a counter  {:.0}", median(by_key));
    println!("  a push, a fork told by the pid    {:.0}", median(by_id));
    println!(
        "  a push to a full queue: dropped, counted, freed  {:.0}",
        median(full)
    );
    Ok(())
}

fn burst(to: &str, address: SocketAddr, protocol: Protocol) -> anyhow::Result<()> {
    let config = Config::new(Signal::Traces, protocol).with_base(&format!("http://{address}"));
    let sender = sender(&config, Batching::default())?.with_process_key(|| 1);
    // The connection, and a collector that has just started, are not the burst's.
    sender.push(span(0));
    sender.flush(Instant::now() + Duration::from_secs(30));
    let records: Vec<SpanRecord> = (0..BURST).map(span).collect();
    let cpu = || clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from);
    let (begin, before) = (Instant::now(), cpu()?);
    records.into_iter().for_each(|record| {
        sender.push(record);
    });
    let pushed = begin.elapsed();
    sender.flush(Instant::now() + Duration::from_secs(60));
    let (all, cpu) = (begin.elapsed(), cpu()? - before);
    let counts = sender.counts();
    println!(
        "{BURST} spans to {to} by {}: pushed in {:.1} ms, there after {:.0} ms; {:.1} µs of our CPU a span; \
         sent {}, dropped {}, pending {}, retried {}",
        protocol.as_str(),
        pushed.as_secs_f64() * 1e3,
        all.as_secs_f64() * 1e3,
        cpu.as_secs_f64() * 1e6 / BURST as f64,
        counts.sent - 1,
        counts.dropped_in_all(),
        counts.pending,
        counts.retried,
    );
    ensure!(counts.sent == BURST + 1, "not all arrived: {counts:?}");
    Ok(())
}

/// A collector that dies under 1,000 spans a second, and comes back.
fn outage(seconds: u64) -> anyhow::Result<()> {
    const A_SECOND: u64 = 1_000;
    let (mut running, address) = start_collector("127.0.0.1:0")?;
    let config = Config::new(Signal::Traces, Protocol::HttpProtobuf);
    let config = config.with_base(&format!("http://{address}"));
    let sender = sender(&config, Batching::default())?;
    let begin = Instant::now();
    let mut pushed = 0;
    let mut counted = 0;
    for second in 0..seconds + 20 {
        if second == 5 {
            counted += running.spans_and_kill()?;
        }
        if second == 5 + seconds {
            running = start_collector(&address.to_string())?.0;
        }
        for n in 0..A_SECOND {
            sender.push(span(second * A_SECOND + n));
            pushed += 1;
        }
        let next = Duration::from_secs(second + 1);
        std::thread::sleep(next.saturating_sub(begin.elapsed()));
    }
    sender.close(Instant::now() + Duration::from_secs(60));
    let counts = sender.counts();
    counted += running.spans_and_kill()?;
    let dropped = counts.dropped_in_all();
    println!(
        "{seconds} s without a collector, {A_SECOND} spans/s: {pushed} pushed, the collectors have {counted}; \
         sent {}, dropped and counted {dropped}, pending {}, retried {} times",
        counts.sent, counts.pending, counts.retried
    );
    ensure!(
        counts.pushed() == pushed,
        "not all are accounted for: {counts:?}"
    );
    // The span that tells of drops is none of ours; a request whose answer was lost with the collector comes twice.
    ensure!(
        counted >= counts.sent,
        "the collectors have fewer than they took"
    );
    Ok(())
}

/// A collector in a process of its own; dropping it kills it.
struct Running(Child);

impl Running {
    /// How many spans it has taken; then it is killed, as by a crash.
    fn spans_and_kill(&mut self) -> anyhow::Result<u64> {
        let input = self.0.stdin.as_mut().context("no standard input")?;
        writeln!(input, "how many")?;
        let output = self.0.stdout.as_mut().context("no standard output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        self.0.kill()?;
        self.0.wait()?;
        Ok(line.trim().parse()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_collector(on: &str) -> anyhow::Result<(Running, SocketAddr)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--collector", on])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = Vec::new();
    let output = child.stdout.as_mut().context("no standard output")?;
    let mut byte = [0];
    // By bytes, so that nothing of a later answer is taken.
    while output.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    let address = String::from_utf8(line)?.parse()?;
    Ok((Running(child), address))
}

fn start_rotel(path: &str, protocol: Protocol) -> anyhow::Result<(Running, SocketAddr)> {
    let free = || TcpListener::bind("127.0.0.1:0")?.local_addr();
    let (grpc, http) = (free()?, free()?);
    let child = Command::new(path)
        .args(["start", "--exporter", "blackhole"])
        .args(["--otlp-grpc-endpoint", &grpc.to_string()])
        .args(["--otlp-http-endpoint", &http.to_string()])
        .args(["--pid-file", "/dev/null", "--log-file", "/dev/null"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {path:?}"))?;
    let address = if protocol == Protocol::Grpc {
        grpc
    } else {
        http
    };
    Ok((Running(child), address))
}

/// Takes requests, counts their spans, and says how many there were for each line on standard input.
fn collector(on: SocketAddr) -> anyhow::Result<()> {
    static SPANS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    use std::sync::atomic::Ordering::SeqCst;
    let listener = TcpListener::bind(on)?;
    println!("{}", listener.local_addr()?);
    let asked = std::thread::Builder::new().name("asked".to_owned());
    asked.spawn(|| {
        for _ in std::io::stdin().lines() {
            println!("{}", SPANS.load(SeqCst));
        }
    })?;
    for socket in listener.incoming() {
        let socket = socket?;
        let connection = std::thread::Builder::new().name("connection".to_owned());
        connection.spawn(move || {
            serve(socket, |spans| {
                SPANS.fetch_add(spans, SeqCst);
            })
        })?;
    }
    Ok(())
}

fn serve(socket: TcpStream, took: impl Fn(u64)) -> anyhow::Result<()> {
    let mut stream = BufReader::new(socket);
    loop {
        let (mut length, mut is_json) = (0, false);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(bytes) = line.strip_prefix("content-length:") {
                length = bytes.trim().parse()?;
            }
            is_json |= line == "content-type: application/json";
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        // Of spans as this program makes them, each has one name.
        let name = b"train.step";
        let spans = body.windows(name.len()).filter(|window| window == name);
        took(spans.count() as u64);
        let (kind, answer) = match is_json {
            true => ("application/json", "{}"),
            false => ("application/x-protobuf", ""),
        };
        let length = answer.len();
        // In one piece, or the last one waits 40 ms for an acknowledgement of the first.
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{answer}"
        );
        stream.get_mut().write_all(answer.as_bytes())?;
    }
}
