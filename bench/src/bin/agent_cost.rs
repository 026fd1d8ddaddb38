//! What `warptrace trace` costs: start, stop, death, and CPU and memory while nothing and while much happens.
//!
//! `cargo run --release -p warptrace-bench --bin agent_cost -- [WARPTRACE [ROUNDS [SECONDS]]]`, as root (7 rounds and 20 s unless
//! said; without a path, the binary that was built last). A caller on simgpu, started by this program, makes cheap runtime calls
//! (99 `cudaEventRecord`, then a `cudaStreamSynchronize`, each millisecond) at the rate that it is told. Whether
//! probes are there is read in the caller's own code, where the kernel puts a breakpoint for each: a link that is gone from the
//! kernel's list may not have been taken out yet. A run in which calls were not recorded is no result.
#![expect(unsafe_code, reason = "calls functions of a library by their address")]

use std::ffi::{CString, c_void};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use warptrace_model::Event;
use warptrace_store::fs::{Fs, RealFs};
use warptrace_store::{Session, list_sessions};

/// Calls a second while starts and stops are measured, and under load.
const SOME_CALLS: u64 = 1_000;
const MANY_CALLS: u64 = 100_000;
/// A start or a stop that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let first = args.next();
    if first.as_deref() == Some("--call") {
        return call(&args.next().context("--call needs a library")?);
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
        binary,
        data: folder.path().to_owned(),
        window: Duration::from_secs(seconds),
    };
    println!("{}", bench.binary.display());
    let mut caller = Caller::start(&bench.simgpu()?, folder.path())?;
    bench.starts_and_stops(&mut caller, rounds)?;
    bench.at_rest(&mut caller)?;
    bench.under_load(&mut caller)
}

/// The newest of the binaries in `target`.
fn built() -> anyhow::Result<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let candidates = ["release", "debug"].map(|profile| target.join(profile).join("warptrace"));
    let age = |path: &PathBuf| path.metadata().and_then(|m| m.modified()).ok();
    candidates
        .into_iter()
        .filter(|path| path.exists())
        .max_by_key(age)
        .context("no warptrace is built: `cargo build --bin warptrace`, or give its path")
}

struct Bench {
    binary: PathBuf,
    data: PathBuf,
    window: Duration,
}

impl Bench {
    fn warptrace(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .env("WARPTRACE_DATA", &self.data)
            .env("NO_COLOR", "1");
        for name in ["SUDO_UID", "SUDO_GID", "SUDO_USER"] {
            command.env_remove(name);
        }
        command
    }

    /// The folder of simgpu's libraries, which `check` writes.
    fn simgpu(&self) -> anyhow::Result<PathBuf> {
        let said = self
            .warptrace()
            .arg("check")
            .output()
            .context("cannot start warptrace")?;
        for entry in std::fs::read_dir(&self.data)? {
            let folder = entry?.path().join("simgpu");
            if folder.join("libcudart.so.12").exists() {
                return Ok(folder);
            }
        }
        bail!(
            "`warptrace check` wrote no libraries: {}",
            String::from_utf8_lossy(&said.stderr)
        )
    }

    fn starts_and_stops(&self, caller: &mut Caller, rounds: usize) -> anyhow::Result<()> {
        caller.rate(SOME_CALLS)?;
        let clean = caller.code()?;
        let (mut first, mut stop, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        let (mut killed, mut killed_gone) = (Vec::new(), Vec::new());
        for round in 0..2 * rounds {
            let mut agent = Agent::start(
                self.warptrace()
                    .arg("trace")
                    .args(["--json=events", "--pid"]),
                caller.id(),
            )?;
            first.push(agent.first_call()?);
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
            kill(agent.pid(), signal)?;
            let status = agent.child.wait()?;
            let exit = began.elapsed();
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
            self.warptrace()
                .arg("trace")
                .args(["--json", "--quiet", "--pid"]),
            caller.id(),
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
        let sessions = list_sessions(&fs, std::slice::from_ref(&self.data))?;
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

/// A running `warptrace trace`.
struct Agent {
    child: Child,
    began: Instant,
    calls: Receiver<Instant>,
}

impl Agent {
    fn start(command: &mut Command, pid: u32) -> anyhow::Result<Agent> {
        let began = Instant::now();
        let mut child = command
            .arg(pid.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start warptrace")?;
        let lines = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        let (first, calls) = channel();
        // Reads to the end, so that the agent never waits for its reader.
        std::thread::spawn(move || {
            let mut told = false;
            for line in lines.lines().map_while(Result::ok) {
                if !told && line.contains(r#""type":"call""#) {
                    told = true;
                    let _ = first.send(Instant::now());
                }
            }
        });
        Ok(Agent {
            child,
            began,
            calls,
        })
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Time from the start of the process until the first call was on its output.
    fn first_call(&self) -> anyhow::Result<Duration> {
        let at = self
            .calls
            .recv_timeout(PATIENCE)
            .context("no call was seen")?;
        Ok(at - self.began)
    }

    fn spent(&self) -> anyhow::Result<Spent> {
        Ok(Spent {
            cpu_nanos: self.cpu_nanos()?,
            at: Instant::now(),
        })
    }

    fn used_since(&self, before: &Spent) -> anyhow::Result<Use> {
        let nanos = self.cpu_nanos()? - before.cpu_nanos;
        let share = nanos as f64 / before.at.elapsed().as_nanos() as f64;
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kib = |name: &str| -> anyhow::Result<f64> {
            let line = status
                .lines()
                .find_map(|l| l.strip_prefix(name))
                .context("the kernel tells memory")?;
            Ok(line.trim().trim_end_matches(" kB").parse::<f64>()?)
        };
        Ok(Use {
            share,
            resident: kib("VmRSS:")? * 1024e-6,
            anonymous: kib("RssAnon:")? * 1024e-6,
        })
    }

    /// Time that its threads have run, ns; threads that ended are not in it.
    fn cpu_nanos(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            sum += text
                .split(' ')
                .next()
                .and_then(|n| n.parse::<u64>().ok())
                .unwrap_or(0);
        }
        Ok(sum)
    }

    fn end(mut self) -> anyhow::Result<()> {
        kill(self.pid(), Signal::SIGINT)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "trace ended with {status}");
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time of all threads at a moment.
struct Spent {
    cpu_nanos: u64,
    at: Instant,
}

struct Use {
    /// Of one core, 0..
    share: f64,
    /// MB, all of it and without mapped files (the binary itself, the kernel's ring).
    resident: f64,
    anonymous: f64,
}

impl std::fmt::Display for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.2} % of a core, {:.0} MB resident ({:.0} MB anonymous)",
            100.0 * self.share,
            self.resident,
            self.anonymous
        )
    }
}

/// The process that is traced: this program again.
struct Caller {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// What of its memory is code of simgpu.
    code: Vec<(u64, usize)>,
}

struct Load {
    /// Calls a second.
    rate: f64,
    /// Of one core.
    share: f64,
}

impl Caller {
    fn start(simgpu: &Path, folder: &Path) -> anyhow::Result<Caller> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--call")
            .arg(simgpu.join("libcudart.so.12"))
            .env("LD_LIBRARY_PATH", simgpu)
            .env("SIMGPU_SHM", folder.join("device"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take().context("its input is a pipe")?;
        let answers = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        let mut caller = Caller {
            child,
            orders,
            answers,
            code: Vec::new(),
        };
        ensure!(caller.answer()? == "ready", "the caller did not begin");
        for line in std::fs::read_to_string(format!("/proc/{}/maps", caller.id()))?.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [range, mode, .., path] = words[..]
                && mode.contains('x')
                && Path::new(path).starts_with(simgpu)
                && let Some((from, to)) = range.split_once('-')
            {
                let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
                caller.code.push((from, (to - from) as usize));
            }
        }
        ensure!(
            caller.code.len() >= 2,
            "the runtime and the driver are not mapped"
        );
        Ok(caller)
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    /// simgpu's code as the caller would run it, breakpoints and all.
    fn code(&self) -> anyhow::Result<Vec<u8>> {
        let memory = std::fs::File::open(format!("/proc/{}/mem", self.id()))?;
        let mut all = Vec::new();
        for &(from, len) in &self.code {
            let at = all.len();
            all.resize(at + len, 0);
            memory.read_exact_at(&mut all[at..], from)?;
        }
        Ok(all)
    }

    /// From now on, so many calls a second.
    fn rate(&mut self, rate: u64) -> anyhow::Result<()> {
        writeln!(self.orders, "{rate}")?;
        ensure!(self.answer()? == "ok", "the caller did not understand");
        Ok(())
    }

    /// Calls made so far, and CPU time taken, ns.
    fn report(&mut self) -> anyhow::Result<(u64, u64)> {
        writeln!(self.orders, "report")?;
        let answer = self.answer()?;
        let (calls, nanos) = answer.split_once(' ').context("two numbers")?;
        Ok((calls.parse()?, nanos.parse()?))
    }

    fn load(&mut self, window: Duration) -> anyhow::Result<Load> {
        let ((calls, cpu), began) = (self.report()?, Instant::now());
        std::thread::sleep(window);
        let (calls_now, cpu_now) = self.report()?;
        let seconds = began.elapsed().as_secs_f64();
        Ok(Load {
            rate: (calls_now - calls) as f64 / seconds,
            share: (cpu_now - cpu) as f64 / 1e9 / seconds,
        })
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(
            self.answers.read_line(&mut line)? > 0,
            "the caller has ended"
        );
        Ok(line.trim().to_owned())
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls asked for in a second, and made so far.
static RATE: AtomicU64 = AtomicU64::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);

/// The caller: takes orders from its input, and ends with it.
fn call(library: &str) -> anyhow::Result<()> {
    let cuda = Cuda::open(library)?;
    let main = std::thread::current();
    std::thread::spawn(move || {
        for order in std::io::stdin().lines().map_while(Result::ok) {
            match order.parse() {
                Ok(rate) => {
                    RATE.store(rate, Ordering::Relaxed);
                    main.unpark();
                    println!("ok");
                }
                Err(_) => {
                    let t = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
                        .expect("every Linux has this clock");
                    let nanos = t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64;
                    println!("{} {nanos}", CALLS.load(Ordering::Relaxed));
                }
            }
        }
        std::process::exit(0);
    });
    println!("ready");
    let tick = Duration::from_millis(1);
    let mut next = Instant::now();
    loop {
        let calls = RATE.load(Ordering::Relaxed) / 1_000;
        if calls == 0 {
            std::thread::park();
            next = Instant::now();
            continue;
        }
        for _ in 1..calls {
            cuda.record_event()?;
        }
        cuda.synchronize()?;
        CALLS.fetch_add(calls, Ordering::Relaxed);
        next += tick;
        match next.checked_duration_since(Instant::now()) {
            Some(left) => std::thread::sleep(left),
            // Others had the CPU: what was missed is made up for, but not more than a tenth of a second of it.
            None => next = next.max(Instant::now() - 100 * tick),
        }
    }
}

/// The runtime's functions that the caller needs, with one stream and one event.
struct Cuda {
    record: extern "C" fn(usize, usize) -> i32,
    synchronize: extern "C" fn(usize) -> i32,
    stream: usize,
    event: usize,
}

impl Cuda {
    fn open(library: &str) -> anyhow::Result<Cuda> {
        let name = CString::new(library)?;
        // SAFETY: a valid string; the library is simgpu's runtime.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
        ensure!(!handle.is_null(), "cannot load {library:?}");
        let (mut stream, mut event) = (0, 0);
        // SAFETY: C functions of these types, by the CUDA runtime's reference; both write one handle.
        unsafe {
            type Create = extern "C" fn(*mut usize, u32) -> i32;
            let make = std::mem::transmute::<*mut c_void, Create>(symbol(
                handle,
                "cudaStreamCreateWithFlags",
            )?);
            ensure!(make(&mut stream, 1) == 0, "no stream");
            let make = std::mem::transmute::<*mut c_void, Create>(symbol(
                handle,
                "cudaEventCreateWithFlags",
            )?);
            ensure!(make(&mut event, 2) == 0, "no event");
            Ok(Cuda {
                record: std::mem::transmute::<*mut c_void, extern "C" fn(usize, usize) -> i32>(
                    symbol(handle, "cudaEventRecord")?,
                ),
                synchronize: std::mem::transmute::<*mut c_void, extern "C" fn(usize) -> i32>(
                    symbol(handle, "cudaStreamSynchronize")?,
                ),
                stream,
                event,
            })
        }
    }

    fn record_event(&self) -> anyhow::Result<()> {
        let code = (self.record)(self.event, self.stream);
        ensure!(code == 0, "cudaEventRecord returned {code}");
        Ok(())
    }

    fn synchronize(&self) -> anyhow::Result<()> {
        let code = (self.synchronize)(self.stream);
        ensure!(code == 0, "cudaStreamSynchronize returned {code}");
        Ok(())
    }
}

fn symbol(handle: *mut c_void, name: &str) -> anyhow::Result<*mut c_void> {
    let text = CString::new(name)?;
    // SAFETY: an open handle and a valid string.
    let address = unsafe { libc::dlsym(handle, text.as_ptr()) };
    ensure!(!address.is_null(), "no symbol {name}");
    Ok(address)
}
