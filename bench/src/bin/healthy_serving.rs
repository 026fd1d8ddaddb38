//! A healthy inference server for twenty minutes, and one that becomes slow for good: what `warptrace trace --inference` says of them.
//!
//! `cargo run --release -p warptrace-bench --bin healthy_serving -- [WARPTRACE [MINUTES [SLOW_MINUTES]]]`, as root (20 and 15 minutes unless
//! said; without a path, the binary that was built last). simgpu serves, with decode steps of 10 ms and more; beside it a monitor of jitter
//! sleeps for a millisecond on each CPU, again and again, and notes when it was not back in time. While all is well an outlier of three
//! times the usual must coincide with such a gap: on one CPU, in the time of the step, gaps of a quarter of what the step took too long.
//! After that decode steps take four times as long, for good: outliers, one finding that goes on, and then no outliers any more.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use warptrace_bench::watched::{Agent, Installed, PATIENCE, built};

/// A sleep that took so much longer is a gap.
const GAP: Duration = Duration::from_millis(3);

/// Begin and end, Unix ns.
type Gap = (u64, u64);

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    ensure!(
        nix::unistd::Uid::effective().is_root(),
        "`warptrace trace` needs root"
    );
    let binary = match args.next() {
        Some(path) => PathBuf::from(path),
        None => built()?,
    };
    let mut minutes = |usual: u64| -> anyhow::Result<Duration> {
        Ok(Duration::from_secs(
            60 * args.next().map_or(Ok(usual), |n| n.parse())?,
        ))
    };
    let (healthy, slow) = (minutes(20)?, minutes(15)?);
    let folder = tempfile::tempdir()?;
    let installed = Installed {
        binary,
        data: folder.path().to_owned(),
    };
    println!("{}", installed.binary.display());
    let gaps = monitor();
    let mut server = Server::start(&installed, healthy, slow)?;
    let place = folder.path().join("told/outliers.sock");
    let findings = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&findings);
    let mut agent = Agent::start(
        installed.warptrace().args([
            "trace",
            "--inference",
            "--quiet",
            "--json",
            "--outliers",
            &place.to_string_lossy(),
            "--pid",
            &server.0.id().to_string(),
        ]),
        move |line| {
            if let Ok(line) = serde_json::from_str::<Value>(line)
                && line["type"] == "finding"
            {
                kept.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((now(), line));
            }
        },
    )?;
    let outliers = follow(&place)?;
    let began = now();
    std::thread::sleep(healthy.saturating_sub(agent.began().elapsed()));
    let became_slow = now();
    let status = server.0.wait()?;
    ensure!(status.success(), "the server ended with {status}");
    let ended = now();
    let (end, _) = agent.stop(Signal::SIGTERM)?;
    ensure!(end.success(), "trace ended with {end}");

    let gaps = gaps.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let outliers = outliers
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let findings = findings
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let told = |from: u64, to: u64| outliers.iter().filter(move |o| (from..to).contains(&o.end));
    let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;

    println!("healthy, {:.0} s:", seconds(began, became_slow));
    for (cpu, gaps) in gaps.iter().enumerate() {
        let of = gaps.iter().filter(|g| (began..became_slow).contains(&g.1));
        let (count, most) = of.fold((0, 0), |(n, most), g| (n + 1, most.max(g.1 - g.0)));
        println!(
            "  cpu {cpu}: {count} gaps of {GAP:?} and more, {:.1} ms at most",
            most as f64 / 1e6
        );
    }
    let mut alone = 0;
    for outlier in told(began, became_slow).filter(|o| o.bucket == "3x") {
        let held = gaps
            .iter()
            .map(|gaps| outlier.gaps(gaps))
            .max()
            .unwrap_or(0);
        let excess = (outlier.end - outlier.begin).saturating_sub(outlier.p95);
        let coincides = 4 * held >= excess;
        alone += u32::from(!coincides);
        println!(
            "  3x {}: {:.1} ms, usually up to {:.1} ms; gaps of {:.1} ms in it{}",
            outlier.phase,
            (outlier.end - outlier.begin) as f64 / 1e6,
            outlier.p95 as f64 / 1e6,
            held as f64 / 1e6,
            if coincides { "" } else { "  NO GAP" },
        );
    }
    let count = |bucket: &str| {
        told(began, became_slow)
            .filter(|o| o.bucket == bucket)
            .count()
    };
    println!(
        "  outliers: {} of 1.5x, {} of 2x, {} of 3x, {alone} of these without a gap",
        count("1.5x"),
        count("2x"),
        count("3x")
    );

    println!("slow for good, {:.0} s:", seconds(became_slow, ended));
    let decode: Vec<_> = told(became_slow, u64::MAX)
        .filter(|o| o.phase == "decode")
        .collect();
    let at = |o: Option<&&Outlier>| o.map_or(0.0, |o| seconds(became_slow, o.end));
    println!(
        "  {} decode outliers, from {:.1} s to {:.1} s after it became so",
        decode.len(),
        at(decode.first()),
        at(decode.last())
    );
    let mut ids: Vec<(String, f64, String)> = Vec::new();
    for (when, line) in findings.iter().filter(|(when, _)| *when > became_slow) {
        let finding = &line["finding"];
        let start: u64 = finding["start_unix_ns"]
            .as_str()
            .unwrap_or_default()
            .parse()
            .unwrap_or(0);
        // What began before is about something else.
        if start + 5_000_000_000 < became_slow {
            continue;
        }
        let said = format!(
            "{} {} shifted {}: {}",
            finding["kind"], finding["severity"], finding["shifted"], finding["title"]
        );
        let id = finding["id"].as_str().unwrap_or_default().to_owned();
        match ids.iter_mut().find(|(known, ..)| *known == id) {
            Some((_, last, text)) => (*last, *text) = (seconds(became_slow, *when), said),
            None => ids.push((id, seconds(became_slow, *when), said)),
        }
    }
    for (id, last, said) in &ids {
        println!("  finding {id}, told last after {last:.0} s: {said}");
    }
    let replay = installed.warptrace().arg("replay").output()?;
    let said = String::from_utf8_lossy(&replay.stderr);
    println!("replay: {}", said.trim());
    ensure!(alone == 0, "{alone} outliers coincide with no gap");
    Ok(())
}

fn now() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed();
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// Gaps of each CPU, from now on.
fn monitor() -> Arc<Mutex<Vec<Vec<Gap>>>> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let gaps = Arc::new(Mutex::new(vec![Vec::new(); cpus]));
    for cpu in 0..cpus {
        let gaps = Arc::clone(&gaps);
        std::thread::spawn(move || {
            let mut only = CpuSet::new();
            let _ = only
                .set(cpu)
                .and_then(|()| sched_setaffinity(Pid::from_raw(0), &only));
            let pause = Duration::from_millis(1);
            loop {
                let (before, began) = (Instant::now(), now());
                std::thread::sleep(pause);
                if before.elapsed() >= pause + GAP {
                    let mut gaps = gaps.lock().unwrap_or_else(PoisonError::into_inner);
                    gaps[cpu].push((began, now()));
                }
            }
        });
    }
    gaps
}

/// simgpu's server, which becomes slow after `healthy`. It dies with this.
struct Server(Child);

impl Server {
    fn start(installed: &Installed, healthy: Duration, slow: Duration) -> anyhow::Result<Server> {
        let simgpu = installed.simgpu()?;
        let serve = serde_json::json!({"serve": {
            "millis": (healthy + slow).as_millis() as u64, "cudart": simgpu.join("libcudart.so.12"), "socket": null,
            "slow_decode_after_millis": healthy.as_millis() as u64,
        }});
        let child = Command::new(&installed.binary)
            .arg("simgpu-workload")
            .arg(serve.to_string())
            .env("LD_LIBRARY_PATH", &simgpu)
            .env("SIMGPU_SHM", installed.data.join("device"))
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start the server")?;
        Ok(Server(child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Debug, Clone)]
struct Outlier {
    begin: u64,
    end: u64,
    p95: u64,
    phase: String,
    bucket: String,
}

impl Outlier {
    /// What of it is in `gaps`, ns.
    fn gaps(&self, gaps: &[Gap]) -> u64 {
        let inside = |&(from, to): &Gap| to.min(self.end).saturating_sub(from.max(self.begin));
        gaps.iter().map(inside).sum()
    }
}

/// What is told on the socket at `place`, as it comes.
fn follow(place: &Path) -> anyhow::Result<Arc<Mutex<Vec<Outlier>>>> {
    let began = Instant::now();
    let stream = loop {
        match UnixStream::connect(place) {
            Ok(stream) => break stream,
            Err(_) if began.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(20)),
            Err(e) => return Err(e).context("no outliers are told"),
        }
    };
    let outliers = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&outliers);
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let Ok(message) = serde_json::from_str::<Value>(&line) else {
                continue;
            };
            if message["type"] != "inference_outlier" {
                continue;
            }
            let number = |name: &str| message[name].as_u64().unwrap_or(0);
            let text = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
            let end = humantime::parse_rfc3339(&text("timestamp")).ok();
            let end = end.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            let end = end.map_or(0, |since| since.as_nanos() as u64);
            told.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Outlier {
                    begin: end.saturating_sub(number("step_duration_ns")),
                    end,
                    p95: number("baseline_p95_ns"),
                    phase: text("phase"),
                    bucket: text("bucket"),
                });
        }
    });
    Ok(outliers)
}
