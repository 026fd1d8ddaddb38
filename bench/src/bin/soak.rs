//! `warptrace trace --inference` for a long time: 100,000 calls a second, sessions that roll over, a collector that misbehaves.
//!
//! `cargo run --release -p warptrace-bench --bin soak -- [WARPTRACE [MINUTES]]`, as root (30 minutes unless said; without a path, the
//! binary that was built last). For the first third of the time the collector is dead (nothing listens), then slow (it takes connections,
//! reads, and never answers), then lying (it answers 200 with a page of HTML, and 400 without a reason). A new session begins at 64 MiB
//! and two old ones are kept, so that the disk's bound is four times 64 MiB: three sessions, and a segment held twice while it is sealed.
//!
//! What is shown: each minute CPU, memory and disk of the recorder, and at the end what it lost and how long it took to stop. Calls are
//! counted by the caller itself; a run in which the recorder counted fewer is no result.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use warptrace_bench::caller::{self, Caller};
use warptrace_bench::watched::{Agent, Installed, PATIENCE, built};

const CALLS: u64 = 100_000;
const SESSION_BYTES: u64 = 64 << 20;
const KEEP: u64 = 2;
const DISK_BOUND: u64 = (KEEP + 2) * SESSION_BYTES;
const SAMPLE_EVERY: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let first = args.next();
    if first.as_deref() == Some("--call") {
        return caller::serve(&args.next().context("--call needs a library")?);
    }
    ensure!(
        nix::unistd::Uid::effective().is_root(),
        "`warptrace trace` needs root"
    );
    let binary = match first {
        Some(path) => PathBuf::from(path),
        None => built()?,
    };
    let minutes: u64 = args.next().map_or(Ok(30), |n| n.parse())?;
    let folder = tempfile::tempdir()?;
    let installed = Installed {
        binary,
        data: folder.path().to_owned(),
    };
    println!("{}", installed.binary.display());
    soak(&installed, Duration::from_secs(60 * minutes))
}

fn soak(installed: &Installed, length: Duration) -> anyhow::Result<()> {
    let mut caller = Caller::start(&installed.simgpu()?, &installed.data)?;
    caller.rate(CALLS)?;
    let untraced = caller.load(SAMPLE_EVERY / 4)?;
    caller.rate(0)?;
    let (made_before, _) = caller.report()?;
    let collector = Collector::start()?;
    let status = Arc::new(Mutex::new(serde_json::Value::Null));
    let last = Arc::clone(&status);
    let mut agent = Agent::start(
        installed
            .warptrace()
            .env("OTEL_METRIC_EXPORT_INTERVAL", "5000")
            .args([
                "trace",
                "--inference",
                "--quiet",
                "--json",
                "--heartbeat=1s",
                "--rollover-size=64MiB",
                "--keep=2",
                "--prometheus=127.0.0.1:0",
                &format!("--otlp=http://{}", collector.address),
                "--pid",
                &caller.id().to_string(),
            ]),
        move |line| {
            if let Ok(line) = serde_json::from_str::<serde_json::Value>(line)
                && line["type"] == "status"
            {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = line;
            }
        },
    )?;
    // Status lines come when it records.
    while status
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .is_null()
    {
        ensure!(agent.began().elapsed() < PATIENCE, "it does not record");
        std::thread::sleep(Duration::from_millis(10));
    }
    caller.rate(CALLS)?;
    let began = Instant::now();
    println!("  minute  collector  cpu      resident  anonymous  disk      sessions");
    let (mut shares, mut most_disk, mut resident) = (Vec::new(), 0, Vec::new());
    while began.elapsed() < length {
        let third = 3 * began.elapsed().as_millis() / length.as_millis().max(1);
        let mode = [Mode::Dead, Mode::Slow, Mode::Lying][(third as usize).min(2)];
        collector.be(mode);
        let before = agent.spent()?;
        let until = Instant::now() + SAMPLE_EVERY.min(length / 6);
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(500));
            most_disk = most_disk.max(disk(&installed.data.join("sessions")));
        }
        let used = agent.used_since(&before)?;
        let sessions = std::fs::read_dir(installed.data.join("sessions"))?.count();
        println!(
            "  {:>6.1}  {:<9}  {:>5.1} %  {:>5.0} MB  {:>6.0} MB  {:>5.0} MB  {sessions}",
            began.elapsed().as_secs_f64() / 60.0,
            format!("{mode:?}").to_lowercase(),
            100.0 * used.share,
            used.resident,
            used.anonymous,
            disk(&installed.data.join("sessions")) as f64 / 1e6,
        );
        shares.push(used.share);
        resident.push(used.resident);
    }
    caller.rate(0)?;
    let (made, _) = caller.report()?;
    let made = made - made_before;
    // The last records are taken in, and told by a status line.
    std::thread::sleep(Duration::from_secs(5));
    let said = status
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let (end, took) = agent.stop(Signal::SIGTERM)?;
    ensure!(end.success(), "trace ended with {end}");

    let mean = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
    let half = resident.len() / 2;
    println!(
        "{:.0} calls/s for {:.0} minutes; the caller took {:.1} % of a core untraced",
        made as f64 / began.elapsed().as_secs_f64(),
        length.as_secs_f64() / 60.0,
        100.0 * untraced.share
    );
    println!(
        "cpu                   {:.1} % of a core, {:.1} % in the worst minute   (budget 25 %)",
        100.0 * mean,
        100.0 * shares.iter().copied().fold(0.0, f64::max)
    );
    println!(
        "resident              {:.0} MB at most in the first half, {:.0} MB in the second   (budget 64 MB and what is configured: the kernel's ring, 8 MiB mapped twice, and 24 MiB of metrics and spans that wait)",
        resident[..half].iter().copied().fold(0.0, f64::max),
        resident[half..].iter().copied().fold(0.0, f64::max)
    );
    println!(
        "disk                  {:.0} MB at most   (bound {:.0} MB)",
        most_disk as f64 / 1e6,
        DISK_BOUND as f64 / 1e6
    );
    println!(
        "calls                 {made} made, {} counted, dropped: {}",
        said["calls"], said["drops"]
    );
    println!(
        "connections           {} to the collector",
        collector.taken.load(Ordering::Relaxed)
    );
    println!(
        "SIGTERM to exit       {:.0} ms   (budget 2 s)",
        took.as_secs_f64() * 1e3
    );
    ensure!(
        said["calls"].as_u64() == Some(made),
        "{} of {made} calls were counted: this measured something cheaper",
        said["calls"]
    );
    Ok(())
}

/// Bytes of the files in `folder` and below.
fn disk(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => disk(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Mode {
    Dead,
    Slow,
    Lying,
}

/// Something that is no collector, at an address that a recorder sends to.
struct Collector {
    address: SocketAddr,
    mode: Arc<AtomicU8>,
    taken: Arc<AtomicU64>,
}

impl Collector {
    fn start() -> anyhow::Result<Collector> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mode = Arc::new(AtomicU8::new(Mode::Dead as u8));
        let taken = Arc::new(AtomicU64::new(0));
        let (now, count) = (Arc::clone(&mode), Arc::clone(&taken));
        std::thread::spawn(move || {
            let is = |mode: Mode| now.load(Ordering::Relaxed) == mode as u8;
            while is(Mode::Dead) {
                std::thread::sleep(Duration::from_millis(100));
            }
            let listener = TcpListener::bind(address).expect("the port was ours a moment ago");
            let mut held = Vec::new();
            for stream in listener.incoming().flatten() {
                let n = count.fetch_add(1, Ordering::Relaxed);
                if is(Mode::Slow) {
                    // As many as a server would have.
                    held.push(stream);
                    held.truncate(1_000);
                } else {
                    held.clear();
                    std::thread::spawn(move || lie(stream, n));
                }
            }
        });
        Ok(Collector {
            address,
            mode,
            taken,
        })
    }

    fn be(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }
}

/// Answers what it was not asked.
fn lie(mut stream: TcpStream, n: u64) {
    let mut asked = [0; 16 << 10];
    let _ = stream.read(&mut asked);
    let answer: &[u8] = match n % 3 {
        0 => b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 20\r\n\r\n<html>welcome</html>",
        1 => b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        _ => b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 4000000000\r\n\r\n\xff\xff\xff",
    };
    let _ = stream.write_all(answer);
}
