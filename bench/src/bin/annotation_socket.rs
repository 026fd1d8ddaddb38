//! Lines a second that one core takes from the annotation socket to the pipeline's queue, and the memory that a flood takes.
//!
//! `cargo run --release -p warptrace-bench --bin annotation_socket`. Clients are processes of their own; what counts is the CPU time
//! of the server's one thread, by the kernel's account of it (`/proc/self/task/TID/schedstat`): reading, splitting, decoding, judging
//! and queueing. Rate limit off. Beside it, what decoding alone takes of a line in memory.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use warptrace_agent::{AnnotationSocket, LineLoss, SocketLimits, SocketOptions};
use warptrace_formats::annotation::{Line, Lines};

const LINES: u64 = 4_000_000;
const FLOOD: u64 = 2_000_000;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    if let [_, path, lines, at_once] = &args[..] {
        return client(Path::new(path), lines.parse()?, at_once.parse()?);
    }
    let sizes: Vec<usize> = (0..8).map(|n| line(n).len()).collect();
    println!("lines of {sizes:?} bytes, {LINES} in all\n");
    let (split, decode) = in_memory()?;
    println!("in memory: splitting {split:.0} ns a line, decoding and checking {decode:.0} ns\n");
    println!(
        "| clients | lines in one write | server's CPU, ns a line | lines/s of one core | wall, lines/s | peak memory |"
    );
    println!("|---|---|---|---|---|---|");
    for (clients, at_once) in [(1, 500), (4, 500), (16, 500), (64, 500), (4, 20), (4, 1)] {
        let lines = if at_once == 1 { LINES / 4 } else { LINES };
        let run = serve(clients, lines, at_once, true)?;
        ensure!(run.lost == 0, "{} lines were lost", run.lost);
        let nanos = run.cpu.as_nanos() as f64 / lines as f64;
        println!(
            "| {clients} | {at_once} | {nanos:.0} | {:.2} M | {:.2} M | {} MB |",
            1e3 / nanos,
            lines as f64 / run.wall.as_secs_f64() / 1e6,
            run.memory >> 20,
        );
    }
    let run = serve(8, FLOOD, 500, false)?;
    println!(
        "\nflood of {FLOOD} lines that nobody takes: {} dropped and counted, {} MB more memory",
        run.lost,
        run.memory >> 20
    );
    Ok(())
}

/// What a training loop says, and now and then a request.
fn line(n: u64) -> Vec<u8> {
    let (ts, pid) = (1_700_000_000_000_000_000 + n, std::process::id());
    let text = match n % 8 {
        7 => format!(
            r#"{{"labels":{{"model":"llama-3-8b","request_id":"cmpl-{n:08}"}},"pid":{pid},"span_end":{},"span_start":{ts}}}"#,
            ts + 900_000_000
        ),
        _ => format!(
            r#"{{"labels":{{"epoch":"{}","phase":"train","step":"{n}"}},"pid":{pid},"ts":{ts}}}"#,
            n / 1_000
        ),
    };
    [text.as_bytes(), b"\n"].concat()
}

fn client(path: &Path, lines: u64, at_once: u64) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(path)?;
    // Made before, and sent over and over: the client must not be what is measured.
    let mut parts = Vec::new();
    for part in 0..8 {
        parts.push(
            (0..at_once)
                .flat_map(|n| line(part * at_once + n))
                .collect::<Vec<u8>>(),
        );
    }
    for n in 0..lines / at_once {
        stream.write_all(&parts[(n % 8) as usize])?;
    }
    Ok(())
}

struct Run {
    cpu: Duration,
    wall: Duration,
    lost: u64,
    /// More than before, at its highest, bytes.
    memory: u64,
}

fn serve(clients: u64, lines: u64, at_once: u64, drain: bool) -> anyhow::Result<Run> {
    let folder = tempfile::tempdir()?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700))?;
    let path = folder.path().join("annotate.sock");
    // The peak of what comes now.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let before = memory("VmRSS:")?;
    let (socket, receiver) = AnnotationSocket::start(SocketOptions {
        path: path.clone(),
        peer_path: None,
        limits: SocketLimits {
            lines_per_sec: None,
            // The server is what is measured: one that drains late, as all share the cores, must not lose its lines.
            queue_bytes: match drain {
                true => 1 << 30,
                false => SocketLimits::default().queue_bytes,
            },
            ..SocketLimits::default()
        },
    })?;
    let counts = socket.counts();
    let thread = server_thread()?;
    let (cpu, began) = (cpu_time(thread)?, Instant::now());
    let start = |_| {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg(&path)
            .arg((lines / clients).to_string())
            .arg(at_once.to_string());
        command.spawn()
    };
    let mut children: Vec<Child> = (0..clients).map(start).collect::<Result<_, _>>()?;
    let mut out = Vec::new();
    let done = || counts.taken() + counts.lost_lines();
    while done() < lines {
        if drain {
            receiver.drain_timeout(&mut out, Duration::from_millis(1));
            out.clear();
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let (wall, cpu) = (began.elapsed(), cpu_time(thread)? - cpu);
    for child in &mut children {
        ensure!(child.wait()?.success(), "a client failed");
    }
    let memory = memory("VmHWM:")?.saturating_sub(before);
    let other = counts.lost_lines() - counts.lost(LineLoss::QueueFull);
    ensure!(other == 0, "refused: {:?}", counts.losses());
    Ok(Run {
        cpu,
        wall,
        lost: counts.lost_lines(),
        memory,
    })
}

/// Nanoseconds of CPU a line: splitting alone, and decoding with all checks.
fn in_memory() -> anyhow::Result<(f64, f64)> {
    let stream: Vec<u8> = (0..20_000).flat_map(line).collect();
    let rounds = 20;
    let time = |each: fn(&[u8])| {
        let began = cpu_time(std::process::id())?;
        for _ in 0..rounds {
            let mut lines = Lines::default();
            for chunk in stream.chunks(64 << 10) {
                lines.push(chunk, each)?;
            }
        }
        let took = cpu_time(std::process::id())? - began;
        anyhow::Ok(took.as_nanos() as f64 / f64::from(rounds * 20_000))
    };
    let split = time(|line| {
        std::hint::black_box(line);
    })?;
    let both = time(|line| {
        std::hint::black_box(Line::decode(line).is_ok());
    })?;
    Ok((split, both - split))
}

/// A thread takes its name once it runs.
fn server_thread() -> anyhow::Result<u32> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        if let Some(thread) = find_thread()? {
            return Ok(thread);
        }
        std::thread::yield_now();
    }
    anyhow::bail!("the server has no thread")
}

fn find_thread() -> anyhow::Result<Option<u32>> {
    for task in std::fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        if std::fs::read_to_string(path.join("comm"))?.trim_end() == "wt-annotate" {
            let name = path.file_name().and_then(|n| n.to_str());
            return Ok(Some(name.context("a thread's number")?.parse()?));
        }
    }
    Ok(None)
}

fn cpu_time(thread: u32) -> anyhow::Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat"))?;
    let nanos = text
        .split_ascii_whitespace()
        .next()
        .context("an empty schedstat")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}

/// A line of `/proc/self/status`, bytes.
fn memory(field: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|l| l.split_ascii_whitespace().next());
    Ok(kib.context("no such line in status")?.parse::<u64>()? << 10)
}
