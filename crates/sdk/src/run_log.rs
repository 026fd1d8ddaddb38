//! Writes the run log of an inference server (toy/v1, read and spelled in [`warptrace_formats::run_log`]).
//!
//! ```no_run
//! use std::time::Duration;
//! use warptrace_sdk::run_log::{RunLog, RunStart};
//!
//! let log = RunLog::open("events.jsonl");
//! log.run_start(&RunStart { backend: "cuda", model: "llama-8b", ..RunStart::here() });
//! let request = log.begin("llama-8b");
//! // ... the answer is made and sent ...
//! request.served(12, 128, r#"{"request_id":"cmpl-1","principal_id":"user:42"}"#);
//! log.shutdown(Duration::from_secs(30));
//! ```
//!
//! A record is one `write` on a descriptor in append mode, so that records of any number of processes and threads never
//! interleave. A process that is killed in its write may leave the first part of one, of which it was never told that it was
//! written; whoever writes next makes that part blank, without a lock ([decision 023]). So on a local file no line is torn, but for two
//! processes that are killed within the same few microseconds, one in its write and the other right behind it.
//!
//! [decision 023]: https://github.com/warptrace/warptrace/blob/main/docs/decisions/023-a-killed-writer-s-record.md
//!
//! Nothing here fails, panics or waits for a reader: what cannot be written is dropped and counted, and the first
//! such loss is told once on stderr. Threads of a process take turns, so that `t` never falls in the file; a write to a local
//! file goes to the page cache. There are no threads of its own, and no signal handler unless [`Termination`] is asked for.
//!
//! Forks: a child may use the log of its parent. It has its own turn-taking, no requests in flight, and begins on a fresh line.

mod clock;
mod mend;
mod shutdown;
mod sink;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use warptrace_formats::run_log::encode::{self, Stats};
use warptrace_formats::run_log::{Latencies, Summary, SummaryOptions};

pub use self::clock::{Clock, SystemClock};
pub use self::shutdown::{Shutdown, Termination, Workers};
use self::sink::Sink;
pub use warptrace_formats::run_log::encode::{Failed, Served};

/// What a run begins with. The operating system and the machine are filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunStart<'a> {
    pub host: &'a str,
    /// `cpu`, `cuda`, …
    pub backend: &'a str,
    pub model: &'a str,
    pub model_path: &'a str,
    /// A JSON object; anything else is written as `{}`. Keep credentials out of it.
    pub config: &'a str,
}

impl RunStart<'_> {
    /// This machine's name, all else empty.
    pub fn here() -> RunStart<'static> {
        static HOST: OnceLock<String> = OnceLock::new();
        let host = HOST.get_or_init(|| {
            let name = nix::unistd::gethostname().unwrap_or_default();
            name.to_string_lossy().into_owned()
        });
        RunStart {
            host,
            ..RunStart::default()
        }
    }
}

/// What this process has counted since its run began, whether it could be written or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    pub requests: u64,
    pub errors: u64,
    pub tokens_out: u64,
}

/// A run log that is being written. Clones are the same log.
#[derive(Debug, Clone)]
pub struct RunLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Absolute; empty when the log is off.
    path: PathBuf,
    /// As opened at first; children of a fork write to it, too.
    file: Option<sink::Opened>,
    clock: Arc<dyn Clock>,
    state: State,
    dropped: AtomicU64,
    complained: AtomicBool,
    process: Process,
}

/// What a fork inherits. Changed by whoever has the turn, but for the counters.
#[derive(Debug)]
struct State {
    /// µs of the monotonic clock at `run_start`; [`NO_ORIGIN`] before it.
    origin: AtomicU64,
    /// The last `t` that was given out, µs.
    last_t: AtomicU64,
    ended: AtomicBool,
    requests: AtomicU64,
    errors: AtomicU64,
    tokens_out: AtomicU64,
}

const NO_ORIGIN: u64 = u64::MAX;

impl State {
    fn new(origin: u64) -> State {
        State {
            origin: AtomicU64::new(origin),
            last_t: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            tokens_out: AtomicU64::new(0),
        }
    }
}

/// What belongs to one process alone: a lock that another thread held when the process was forked is never waited for.
#[derive(Debug)]
struct Process {
    pid: u32,
    sink: Mutex<Sink>,
    in_flight: Mutex<usize>,
    drained: Condvar,
    /// A forked child's.
    child: OnceLock<Box<Process>>,
}

impl Process {
    fn new(pid: u32, sink: Sink) -> Process {
        Process {
            pid,
            sink: Mutex::new(sink),
            in_flight: Mutex::new(0),
            drained: Condvar::new(),
            child: OnceLock::new(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RunLog {
    /// Opens a log for appending, and creates it if it is missing (not its folder). Never fails: what goes wrong is told once
    /// on stderr, records are dropped and counted, and opening is tried again at most once a second. With an empty path the
    /// log is off: no I/O at all, and counters still move.
    pub fn open(path: impl AsRef<Path>) -> RunLog {
        RunLog::with_clock(path, Arc::new(SystemClock))
    }

    /// A log that is off.
    pub fn off() -> RunLog {
        RunLog::open("")
    }

    /// As [`RunLog::open`], for a worker that was started and not forked: its `t` counts from the origin that
    /// [`RunLog::origin_micros`] gave in the process that began the run.
    pub fn join(path: impl AsRef<Path>, origin_micros: u64) -> RunLog {
        RunLog::build(
            path.as_ref(),
            Arc::new(SystemClock),
            State::new(origin_micros),
        )
    }

    /// As [`RunLog::open`], by another clock.
    pub fn with_clock(path: impl AsRef<Path>, clock: Arc<dyn Clock>) -> RunLog {
        RunLog::build(path.as_ref(), clock, State::new(NO_ORIGIN))
    }

    fn build(path: &Path, clock: Arc<dyn Clock>, state: State) -> RunLog {
        let mut shared = Shared {
            // A later change of the working directory must not lead elsewhere.
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            file: None,
            clock,
            state,
            dropped: AtomicU64::new(0),
            complained: AtomicBool::new(false),
            process: Process::new(std::process::id(), Sink::default()),
        };
        if path.as_os_str().is_empty() {
            shared.path = PathBuf::new();
        } else {
            match sink::open(&shared.path) {
                Ok(file) => shared.file = Some(file),
                Err(e) => shared.complain(&e),
            }
        }
        RunLog {
            shared: Arc::new(shared),
        }
    }

    /// A second writer of the same run with counters of its own, which begin as these are: what a forked child has.
    pub fn duplicate(&self) -> RunLog {
        let from = &self.shared.state;
        let copy = |value: &AtomicU64| AtomicU64::new(value.load(Ordering::Relaxed));
        let state = State {
            origin: copy(&from.origin),
            last_t: copy(&from.last_t),
            ended: AtomicBool::new(from.ended.load(Ordering::Relaxed)),
            requests: copy(&from.requests),
            errors: copy(&from.errors),
            tokens_out: copy(&from.tokens_out),
        };
        RunLog::build(&self.shared.path, Arc::clone(&self.shared.clock), state)
    }

    /// Whether there is a path to write to.
    pub fn is_enabled(&self) -> bool {
        !self.shared.path.as_os_str().is_empty()
    }

    /// Records of this process that could not be written.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Parts of records that killed writers had left, and that this process has made blank since it opened the log.
    pub fn mended(&self) -> u64 {
        self.turn().mended()
    }

    pub fn counters(&self) -> Counters {
        let state = &self.shared.state;
        Counters {
            requests: state.requests.load(Ordering::Relaxed),
            errors: state.errors.load(Ordering::Relaxed),
            tokens_out: state.tokens_out.load(Ordering::Relaxed),
        }
    }

    /// When the run began, µs of CLOCK_MONOTONIC; for [`RunLog::join`]. `None` before [`RunLog::run_start`].
    pub fn origin_micros(&self) -> Option<u64> {
        let origin = self.shared.state.origin.load(Ordering::Relaxed);
        (origin != NO_ORIGIN).then_some(origin)
    }

    /// Begins a run: counters and `t` go to 0. To be called before workers are forked.
    pub fn run_start(&self, start: &RunStart<'_>) {
        let mut turn = self.turn();
        let state = &self.shared.state;
        state
            .origin
            .store(self.shared.clock.monotonic_micros(), Ordering::Relaxed);
        state.last_t.store(0, Ordering::Relaxed);
        state.ended.store(false, Ordering::Relaxed);
        for counter in [&state.requests, &state.errors, &state.tokens_out] {
            counter.store(0, Ordering::Relaxed);
        }
        if !self.is_enabled() {
            return;
        }
        let (os, arch) = machine();
        let record = encode::RunStart {
            host: start.host,
            os,
            arch,
            backend: start.backend,
            model: start.model,
            model_path: start.model_path,
            config: start.config,
        };
        let wall_secs = self.shared.clock.wall_secs();
        let write = |line: &mut Vec<u8>| encode::run_start(line, wall_secs, &record);
        self.append(&mut turn, false, write);
    }

    /// Writes and counts a request that was served. Its `request_id` belongs into `extra`, and should be unique.
    pub fn request(&self, served: &Served<'_>) {
        let state = &self.shared.state;
        state.requests.fetch_add(1, Ordering::Relaxed);
        let tokens = u64::try_from(served.completion_tokens).unwrap_or(0);
        state.tokens_out.fetch_add(tokens, Ordering::Relaxed);
        self.serve_record(|line, t| encode::request(line, t, served));
    }

    /// Writes and counts a request that failed.
    pub fn error(&self, failed: &Failed<'_>) {
        self.shared.state.errors.fetch_add(1, Ordering::Relaxed);
        self.serve_record(|line, t| encode::error(line, t, Some(failed)));
    }

    /// Writes and counts a failure without details.
    pub fn record_error(&self) {
        self.shared.state.errors.fetch_add(1, Ordering::Relaxed);
        self.serve_record(|line, t| encode::error(line, t, None));
    }

    /// Begins a request: its latency is measured from here, and [`RunLog::shutdown`] waits for it.
    pub fn begin(&self, model: impl Into<Box<str>>) -> InFlight {
        let process = self.process();
        *lock(&process.in_flight) += 1;
        InFlight {
            log: self.clone(),
            model: model.into(),
            began_micros: self.shared.clock.monotonic_micros(),
            pid: process.pid,
            recorded: false,
        }
    }

    /// Requests of this process that [`RunLog::begin`] began and that have not ended.
    pub fn in_flight(&self) -> usize {
        *lock(&self.process().in_flight)
    }

    /// Ends the run with what this process has counted. Only the first end of a run is written.
    pub fn run_end(&self, reason: &str) {
        let Counters {
            requests,
            errors,
            tokens_out,
        } = self.counters();
        let mine = Ending {
            requests,
            errors,
            tokens_out,
            latency_micros: None,
        };
        self.end(reason, |_| mine);
    }

    /// Ends the run with what all processes have written of it, read back from the file; with this process's own counters where
    /// it cannot be read. Cost: one pass over the file in constant memory.
    pub fn run_end_aggregated(&self, reason: &str) {
        self.end(reason, |sink| {
            let Counters {
                requests,
                errors,
                tokens_out,
            } = self.counters();
            let mut summary = Summary::new(SummaryOptions {
                max_runs: 1,
                max_groups: 0,
                ..SummaryOptions::default()
            });
            let read = sink.read(self.shared.file.as_ref(), |chunk| summary.feed(chunk));
            summary.finish();
            match summary.last_run() {
                Some(run) if read.is_ok() => Ending {
                    requests: run.totals.requests,
                    errors: run.totals.errors,
                    tokens_out: run.totals.tokens_out,
                    latency_micros: Some(run.totals.latency_micros.clone()),
                },
                _ => Ending {
                    requests,
                    errors,
                    tokens_out,
                    latency_micros: None,
                },
            }
        });
    }

    /// Waits until no request is in flight in this process, for `deadline` at most, and ends the run: `completed` or
    /// `interrupted`. The server must have stopped accepting. With workers: [`Workers::shutdown`].
    pub fn shutdown(&self, deadline: Duration) -> Shutdown {
        let left = self.drain(Instant::now() + deadline);
        let done = Shutdown {
            in_flight: left,
            ..Shutdown::default()
        };
        self.run_end_aggregated(done.reason());
        done
    }

    /// Waits until no request is in flight in this process; returns how many still are at `until`.
    fn drain(&self, until: Instant) -> usize {
        let process = self.process();
        let mut in_flight = lock(&process.in_flight);
        while *in_flight > 0 {
            let now = Instant::now();
            if now >= until {
                break;
            }
            let waited = process.drained.wait_timeout(in_flight, until - now);
            in_flight = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *in_flight
    }

    fn end(&self, reason: &str, ending: impl FnOnce(&mut Sink) -> Ending) {
        let mut turn = self.turn();
        if self.shared.state.ended.swap(true, Ordering::Relaxed) || !self.is_enabled() {
            return;
        }
        let ending = ending(&mut turn);
        let stats = Stats {
            requests: ending.requests,
            errors: ending.errors,
            tokens_out: ending.tokens_out,
            dropped: self.dropped(),
            latency_micros: ending.latency_micros.as_ref(),
        };
        let (t, wall_secs) = (self.t_micros(), self.shared.clock.wall_secs());
        self.append(&mut turn, true, |line| {
            encode::run_end(line, t, wall_secs, reason, &stats);
        });
    }

    fn serve_record(&self, encode: impl FnOnce(&mut Vec<u8>, u64)) {
        if !self.is_enabled() {
            return;
        }
        let mut turn = self.turn();
        let t = self.t_micros();
        self.append(&mut turn, false, |line| encode(line, t));
    }

    /// µs since `run_start`, never less than the last one of this process; 0 before it. To be called by who has the turn.
    fn t_micros(&self) -> u64 {
        let state = &self.shared.state;
        let Some(origin) = self.origin_micros() else {
            return 0;
        };
        let now = self.shared.clock.monotonic_micros().saturating_sub(origin);
        let t = now.max(state.last_t.load(Ordering::Relaxed));
        state.last_t.store(t, Ordering::Relaxed);
        t
    }

    fn append(&self, sink: &mut Sink, fresh_line: bool, encode: impl FnOnce(&mut Vec<u8>)) {
        let shared = &*self.shared;
        let now = shared.clock.monotonic_micros();
        if let Err(e) = sink.append(&shared.path, shared.file.as_ref(), now, fresh_line, encode) {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            shared.complain(&e);
        }
    }

    fn turn(&self) -> MutexGuard<'_, Sink> {
        lock(&self.process().sink)
    }

    fn process(&self) -> &Process {
        let pid = std::process::id();
        let mut process = &self.shared.process;
        while process.pid != pid {
            process = process
                .child
                .get_or_init(|| Box::new(Process::new(pid, Sink::inherited())));
        }
        process
    }
}

/// The numbers of a `run_end`.
struct Ending {
    requests: u64,
    errors: u64,
    tokens_out: u64,
    latency_micros: Option<Latencies>,
}

impl Shared {
    /// Tells the first loss, and no other.
    fn complain(&self, error: &std::io::Error) {
        use std::io::Write as _;
        if !self.complained.swap(true, Ordering::Relaxed) {
            let path = &self.path;
            // Whoever closed stderr does not want to know.
            let _ = writeln!(
                std::io::stderr(),
                "warptrace: run log records are dropped: {error}: {path:?}"
            );
        }
    }
}

/// The operating system in lower case and the machine, at most 31 bytes each.
fn machine() -> (&'static str, &'static str) {
    static MACHINE: OnceLock<(String, String)> = OnceLock::new();
    let (os, arch) = MACHINE.get_or_init(|| {
        let Ok(name) = nix::sys::utsname::uname() else {
            return ("unknown".into(), "unknown".into());
        };
        let text = |s: &std::ffi::OsStr| s.to_string_lossy().chars().take(31).collect::<String>();
        (text(name.sysname()).to_lowercase(), text(name.machine()))
    });
    (os, arch)
}

/// A request that has begun. It ends as [`InFlight::served`] or [`InFlight::failed`]; one that is dropped is recorded as failed,
/// with code `abandoned` (status 499), or `panicked` (500) when a panic did it.
#[derive(Debug)]
#[must_use = "a request that is dropped is recorded as failed"]
pub struct InFlight {
    log: RunLog,
    model: Box<str>,
    began_micros: u64,
    pid: u32,
    recorded: bool,
}

impl InFlight {
    /// Time since it began.
    pub fn elapsed(&self) -> Duration {
        let now = self.log.shared.clock.monotonic_micros();
        Duration::from_micros(now.saturating_sub(self.began_micros))
    }

    /// To be called when the answer is complete; for a stream, after its end has been sent. `extra` as in [`Served`].
    pub fn served(mut self, prompt_tokens: i64, completion_tokens: i64, extra: &str) {
        self.recorded = true;
        self.log.request(&Served {
            model: &self.model,
            prompt_tokens,
            completion_tokens,
            latency_micros: self.latency_micros(),
            extra,
        });
    }

    /// `status` is HTTP's, `code` a short word, `extra` as in [`Served`].
    pub fn failed(mut self, status: i64, code: &str, message: &str, extra: &str) {
        self.fail(status, code, message, extra);
    }

    fn fail(&mut self, status: i64, code: &str, message: &str, extra: &str) {
        self.recorded = true;
        self.log.error(&Failed {
            model: &self.model,
            status,
            code,
            message,
            latency_micros: self.latency_micros(),
            extra,
        });
    }

    fn latency_micros(&self) -> i64 {
        i64::try_from(self.elapsed().as_micros()).unwrap_or(i64::MAX)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // A fork's copy is not the child's request.
        let process = self.log.process();
        if process.pid != self.pid {
            return;
        }
        if !self.recorded {
            match std::thread::panicking() {
                true => self.fail(500, "panicked", "", ""),
                false => self.fail(499, "abandoned", "", ""),
            }
        }
        let process = self.log.process();
        let mut in_flight = lock(&process.in_flight);
        *in_flight = in_flight.saturating_sub(1);
        if *in_flight == 0 {
            process.drained.notify_all();
        }
    }
}
