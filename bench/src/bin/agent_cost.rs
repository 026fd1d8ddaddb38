//! What `warptrace trace` costs: start, stop, death, and CPU and memory while nothing and while much happens.
//!
//! `cargo run --release -p warptrace-bench --bin agent_cost -- [WARPTRACE [ROUNDS [SECONDS]]]`, as root (7 rounds and 20 s unless
//! said; without a path, the binary that was built last). A caller on simgpu, started by this program, makes cheap runtime calls
//! (a launch of a microsecond, 98 `cudaEventRecord`, a `cudaStreamSynchronize`, each millisecond) at the rate that it is told. Whether
//! probes are there is read in the caller's own code, where the kernel puts a breakpoint for each: a link that is gone from the
//! kernel's list may not have been taken out yet. A run in which calls were not recorded is no result.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use warptrace_bench::caller::{self, Caller};
use warptrace_bench::watched::{Agent, Installed, PATIENCE, built};
use warptrace_model::Event;
use warptrace_store::fs::{Fs, RealFs};
use warptrace_store::{Session, list_sessions};

/// Calls a second while starts and stops are measured, and under load.
const SOME_CALLS: u64 = 2_000;
const MANY_CALLS: u64 = 100_000;

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
    let rounds: usize = args.next().map_or(Ok(7), |n| n.parse())?;
    let seconds: u64 = args.next().map_or(Ok(20), |n| n.parse())?;
    ensure!(
        rounds > 0 && seconds > 0,
        "at least one round and one second"
    );
    let folder = tempfile::tempdir()?;
    let bench = Bench {
        installed: Installed {
            binary,
            data: folder.path().to_owned(),
        },
        window: Duration::from_secs(seconds),
    };
    println!("{}", bench.installed.binary.display());
    let mut caller = Caller::start(&bench.installed.simgpu()?, folder.path())?;
    bench.starts_and_stops(&mut caller, rounds)?;
    bench.at_rest(&mut caller)?;
    bench.under_load(&mut caller)
}

struct Bench {
    installed: Installed,
    window: Duration,
}

impl Bench {
    fn starts_and_stops(&self, caller: &mut Caller, rounds: usize) -> anyhow::Result<()> {
        caller.rate(SOME_CALLS)?;
        let clean = caller.code()?;
        let (mut first, mut stop, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        let (mut killed, mut killed_gone) = (Vec::new(), Vec::new());
        for round in 0..2 * rounds {
            let (seen, first_call) = channel();
            let mut agent = Agent::start(
                self.installed.warptrace().args([
                    "trace",
                    "--json=events",
                    "--pid",
                    &caller.id().to_string(),
                ]),
                move |line| {
                    if line.contains(r#""type":"call""#) {
                        let _ = seen.send(Instant::now());
                    }
                },
            )?;
            let at = first_call
                .recv_timeout(PATIENCE)
                .context("no call was seen")?;
            first.push(at - agent.began());
            ensure!(
                caller.code()? != clean,
                "calls are traced, but there are no probes in the code"
            );
            // Some of the usual life, so that there is a session to close.
            std::thread::sleep(Duration::from_millis(500));
            let signal = if round < rounds {
                Signal::SIGINT
            } else {
                Signal::SIGKILL
            };
            let began = Instant::now();
            let (status, exit) = agent.stop(signal)?;
            while caller.code()? != clean {
                ensure!(began.elapsed() < PATIENCE, "probes are left after {signal}");
                std::thread::sleep(Duration::from_millis(1));
            }
            let without = began.elapsed();
            if signal == Signal::SIGINT {
                ensure!(status.success(), "trace ended with {status}");
                stop.push(exit);
                gone.push(without);
            } else {
                killed.push(exit);
                killed_gone.push(without);
            }
        }
        println!(
            "start to first event      {}   (budget 500 ms)",
            range(first)
        );
        println!(
            "Ctrl-C to exit            {}   (budget 500 ms; with its explanation)",
            range(stop)
        );
        println!("Ctrl-C to probes gone     {}", range(gone));
        println!("kill -9 to exit           {}", range(killed));
        println!(
            "kill -9 to probes gone    {}   (budget 500 ms)",
            range(killed_gone)
        );
        Ok(())
    }

    fn at_rest(&self, caller: &mut Caller) -> anyhow::Result<()> {
        caller.rate(0)?;
        let agent = self.settled(caller)?;
        let before = agent.spent()?;
        std::thread::sleep(self.window);
        let used = agent.used_since(&before)?;
        agent.end()?;
        println!("at rest                   {used}   (budget 0.5 % and 64 MB)");
        Ok(())
    }

    fn under_load(&self, caller: &mut Caller) -> anyhow::Result<()> {
        caller.rate(MANY_CALLS)?;
        let untraced = caller.load(self.window / 4)?;
        let agent = self.settled(caller)?;
        let before = agent.spent()?;
        let load = caller.load(self.window)?;
        let used = agent.used_since(&before)?;
        caller.rate(0)?;
        agent.end()?;
        let (recorded, dropped) = self.recorded(caller.id())?;
        println!(
            "under {:>7.0} calls/s     {used}   (budget 25 %)",
            load.rate
        );
        println!(
            "  {recorded} calls recorded, dropped: {dropped}; the caller took {:.1} % of a core, \
             {:.1} % untraced at {:.0} calls/s",
            100.0 * load.share,
            100.0 * untraced.share,
            untraced.rate
        );
        let made = load.rate * self.window.as_secs_f64();
        ensure!(
            recorded as f64 >= 0.95 * made,
            "{recorded} of {made:.0} calls were recorded: this measured something cheaper"
        );
        Ok(())
    }

    /// An agent that has attached and come to rest.
    fn settled(&self, caller: &Caller) -> anyhow::Result<Agent> {
        let clean = caller.code()?;
        let agent = Agent::start(
            self.installed.warptrace().args([
                "trace",
                "--json",
                "--quiet",
                "--pid",
                &caller.id().to_string(),
            ]),
            |_| {},
        )?;
        let began = Instant::now();
        while caller.code()? == clean {
            ensure!(began.elapsed() < PATIENCE, "no probes came");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_secs(2));
        Ok(agent)
    }

    /// Calls of `pid` that the newest session holds, and what it says was dropped, by whom and why.
    fn recorded(&self, pid: u32) -> anyhow::Result<(u64, String)> {
        let fs: Arc<dyn Fs> = Arc::new(RealFs);
        let sessions = list_sessions(&fs, std::slice::from_ref(&self.installed.data))?;
        let newest = sessions.first().context("no session was written")?;
        let session = Session::open(Arc::clone(&fs), &newest.path)?;
        let (mut calls, mut events) = (0, Vec::new());
        let mut stream = session.events(None)?;
        while stream.next_batch(&mut events) {
            let ours = |e: &Event| matches!(e, Event::Call(c) if c.thread.pid.0 == pid);
            calls += events.drain(..).filter(ours).count() as u64;
        }
        let drops = session.drops()?;
        let said = drops
            .iter()
            .map(|l| format!("{} {} {}", l.count, l.source, l.reason));
        let said = said.collect::<Vec<_>>().join(", ");
        Ok((
            calls,
            if said.is_empty() {
                "nothing".to_owned()
            } else {
                said
            },
        ))
    }
}

/// Median and range of times, ms.
fn range(mut times: Vec<Duration>) -> String {
    times.sort();
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    format!(
        "{:>4.0} ms, {:.0} to {:.0} of {}",
        ms(times[times.len() / 2]),
        ms(times[0]),
        ms(times[times.len() - 1]),
        times.len()
    )
}
