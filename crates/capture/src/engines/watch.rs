//! The thread that finds engines and asks them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use warptrace_model::{BootNanos, Incarnation, Pid};

use super::command::{Via, classify};
use super::listening::{listening, where_to};
use super::namespace::{NetNamespace, within};
use super::scrape::{Limits, Unreachable, fetch};
use super::tracker::{Change, EngineProcess, Seen, Tracker};
use crate::clock::boot_now;
use crate::proc;

/// Processes that a scan looks at.
const MAX_PROCESSES: usize = 65_536;
/// Reports that wait to be taken; their bodies are together at most as large as one may be.
const QUEUE: usize = 64;
/// An engine that lets its time run out is asked half as often each time, down to this, so that it costs the others nothing.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What to look for, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Only these processes; empty is every one.
    pub pids: Vec<u32>,
    /// From one question to the next, of each engine.
    pub interval: Duration,
    /// From scan to scan while no engine is known.
    pub redetect: Duration,
    /// From scan to scan once one is.
    pub redetect_known: Duration,
    /// Asked instead of the address at which an engine listens.
    pub host: Option<IpAddr>,
    /// Of an answer.
    pub body_bytes: u64,
    /// Engines that are known at a time.
    pub engines: usize,
}

impl Default for Settings {
    /// 10 s; 30 s and 5 min; 16 MiB; 64 engines.
    fn default() -> Settings {
        Settings {
            pids: Vec::new(),
            interval: Duration::from_secs(10),
            redetect: Duration::from_secs(30),
            redetect_known: Duration::from_secs(300),
            host: None,
            body_bytes: 16 << 20,
            engines: 64,
        }
    }
}

impl Settings {
    /// For one question: half of the interval, 5 s at most.
    fn timeout(&self) -> Duration {
        (self.interval / 2)
            .min(Duration::from_secs(5))
            .max(Duration::from_millis(10))
    }
}

/// What the thread has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// An engine appeared, or its command line changed.
    Found(EngineProcess),
    /// It ended, or became something else.
    Gone(Incarnation),
    Scraped {
        engine: EngineProcess,
        /// When it was asked.
        at: BootNanos,
        /// What it answered; nobody looked at it yet.
        body: Vec<u8>,
    },
    /// It runs and gives no metrics. Said when that begins and when the reason changes.
    Unreachable {
        engine: EngineProcess,
        why: Unreachable,
    },
}

impl Report {
    fn body_bytes(&self) -> u64 {
        match self {
            Report::Scraped { body, .. } => body.len() as u64,
            _ => 0,
        }
    }
}

/// What the thread did so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    pub scans: u64,
    /// Answers that were had.
    pub scraped: u64,
    /// Questions that had none, by [`Unreachable::name`], sorted.
    pub failed: Vec<(&'static str, u64)>,
    /// Reports that nobody took in time, or that had no room.
    pub dropped: u64,
    /// Engines beyond the limit, once a scan.
    pub left_out: u64,
}

/// Finds engines and asks them, on a thread of its own, which ends when this is dropped.
#[derive(Debug)]
pub struct EngineWatch {
    reports: Receiver<Report>,
    shared: Arc<Shared>,
    /// Closing it ends the thread.
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    tracker: Mutex<Tracker>,
    /// Bytes of the bodies that wait.
    waiting_bytes: AtomicU64,
    scans: AtomicU64,
    scraped: AtomicU64,
    dropped: AtomicU64,
    left_out: AtomicU64,
    failed: Mutex<HashMap<&'static str, u64>>,
}

impl Shared {
    /// For short: never over a question to an engine.
    fn tracker(&self) -> MutexGuard<'_, Tracker> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EngineWatch {
    /// Starts with a scan, at once.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(settings: Settings) -> io::Result<EngineWatch> {
        let (to, reports) = sync_channel(QUEUE);
        let (stop, stopped) = sync_channel(0);
        let shared = Arc::new(Shared {
            tracker: Mutex::new(Tracker::new(settings.engines)),
            waiting_bytes: AtomicU64::new(0),
            scans: AtomicU64::new(0),
            scraped: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
            failed: Mutex::default(),
        });
        let worker = Worker {
            settings,
            shared: Arc::clone(&shared),
            to,
            unreachable: HashMap::new(),
            slow: HashMap::new(),
        };
        let thread = std::thread::Builder::new().name("wt-engines".to_owned());
        let thread = thread.spawn(move || worker.run(&stopped))?;
        Ok(EngineWatch {
            reports,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// What was reported since the last call; returns at once.
    pub fn poll(&self) -> Vec<Report> {
        self.reports.try_iter().map(|r| self.took(r)).collect()
    }

    /// The next report, when one comes within `timeout`.
    pub fn next(&self, timeout: Duration) -> Option<Report> {
        let report = self.reports.recv_timeout(timeout).ok()?;
        Some(self.took(report))
    }

    fn took(&self, report: Report) -> Report {
        let bytes = report.body_bytes();
        self.shared
            .waiting_bytes
            .fetch_sub(bytes, Ordering::Relaxed);
        report
    }

    /// The engine that a process is or is part of, as of the last scan: what calls CUDA is mostly a child of the engine's first
    /// process. `None` when the pid is another process's by now.
    ///
    /// Cost: a small file for each ancestor up to the engine, so keep the answer for as long as the process lives.
    pub fn engine_of(&self, process: Incarnation) -> Option<EngineProcess> {
        let (life, _) = proc::incarnation(process.pid.0)?;
        if life != process {
            return None;
        }
        let parent = |pid: Pid| Some(proc::incarnation(pid.0)?.1).filter(|p| p.0 > 0);
        // The files are read without the lock.
        let tracker = self.shared.tracker().clone();
        tracker.engine_of(process.pid, parent)
    }

    pub fn counts(&self) -> Counts {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let failed = self.shared.failed.lock();
        let failed = failed.unwrap_or_else(PoisonError::into_inner);
        let mut failed: Vec<(&'static str, u64)> = failed.iter().map(|(n, c)| (*n, *c)).collect();
        failed.sort_unstable();
        Counts {
            scans: of(&self.shared.scans),
            scraped: of(&self.shared.scraped),
            failed,
            dropped: of(&self.shared.dropped),
            left_out: of(&self.shared.left_out),
        }
    }

    /// Ends the thread, once a question that is under way has its answer or its time is up, 5 s at most. What was reported until
    /// then can still be polled.
    pub fn stop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

impl Drop for EngineWatch {
    /// Does not wait for the thread.
    fn drop(&mut self) {
        self.stop = None;
    }
}

struct Worker {
    settings: Settings,
    shared: Arc<Shared>,
    to: SyncSender<Report>,
    /// What was last said of each engine that could not be reached.
    unreachable: HashMap<Incarnation, Unreachable>,
    /// How often in a row an engine let its time run out, and when it is asked again.
    slow: HashMap<Incarnation, (u32, Instant)>,
}

impl Worker {
    fn run(mut self, stopped: &Receiver<()>) {
        let mut next_scan = Instant::now();
        let mut next_scrape = next_scan;
        loop {
            let now = Instant::now();
            if now >= next_scan {
                let is_new = self.scan();
                let pause = match self.shared.tracker().is_empty() {
                    true => self.settings.redetect,
                    false => self.settings.redetect_known,
                };
                next_scan = now + pause;
                if is_new {
                    next_scrape = now;
                }
            }
            if now >= next_scrape {
                let all_there = self.scrape(stopped);
                next_scrape = now + self.settings.interval;
                if !all_there {
                    // One of them ended: who took its place is found sooner.
                    next_scan = next_scan.min(now + self.settings.redetect);
                }
            }
            let wait = next_scan
                .min(next_scrape)
                .saturating_duration_since(Instant::now());
            match stopped.recv_timeout(wait) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Whether there is a new engine, or one that changed.
    fn scan(&mut self) -> bool {
        let seen = processes(&self.settings.pids);
        let changes = self.shared.tracker().scanned(&seen);
        let mut is_new = false;
        for change in changes {
            match change {
                Change::Found(engine) | Change::Changed(engine) => {
                    is_new = true;
                    self.unreachable.remove(&engine.incarnation);
                    self.slow.remove(&engine.incarnation);
                    tracing::info!(
                        engine = engine.command.engine.name(),
                        pid = engine.incarnation.pid.0,
                        "inference engine found"
                    );
                    self.report(Report::Found(engine));
                }
                Change::Gone(incarnation) => {
                    self.unreachable.remove(&incarnation);
                    self.slow.remove(&incarnation);
                    self.report(Report::Gone(incarnation));
                }
            }
        }
        self.shared.scans.fetch_add(1, Ordering::Relaxed);
        let left_out = self.shared.tracker().left_out();
        self.shared.left_out.store(left_out, Ordering::Relaxed);
        is_new
    }

    /// Asks all engines, one after another. False when one of them is no more.
    fn scrape(&mut self, stopped: &Receiver<()>) -> bool {
        let own = NetNamespace::own().ok();
        let mut all_there = true;
        // Where the older engines were asked, so that nobody is asked twice.
        let mut asked: HashMap<(NetNamespace, SocketAddr), u32> = HashMap::new();
        let mut engines: Vec<EngineProcess> = self.shared.tracker().engines().collect();
        engines.sort_by_key(|e| (e.incarnation.start_ticks, e.incarnation.pid));
        for engine in engines {
            if !matches!(
                stopped.try_recv(),
                Err(std::sync::mpsc::TryRecvError::Empty)
            ) {
                return all_there;
            }
            let there = proc::incarnation(engine.incarnation.pid.0);
            if there.is_none_or(|(life, _)| life != engine.incarnation) {
                all_there = false;
                continue;
            }
            let slow = self.slow.get(&engine.incarnation).copied();
            if slow.is_some_and(|(_, again)| Instant::now() < again) {
                continue;
            }
            let at = boot_now();
            match self.ask(&engine, own, &mut asked) {
                Ok(body) => {
                    self.unreachable.remove(&engine.incarnation);
                    self.slow.remove(&engine.incarnation);
                    self.shared.scraped.fetch_add(1, Ordering::Relaxed);
                    self.report(Report::Scraped { engine, at, body });
                }
                Err(why) => {
                    if let Unreachable::TimedOut(_) = why {
                        let times = slow.map_or(1, |(times, _)| times.saturating_add(1));
                        let again = Instant::now() + pause(self.settings.interval, times);
                        self.slow.insert(engine.incarnation, (times, again));
                    }
                    self.failed(engine, why);
                }
            }
        }
        all_there
    }

    fn ask(
        &self,
        engine: &EngineProcess,
        own: Option<NetNamespace>,
        asked: &mut HashMap<(NetNamespace, SocketAddr), u32>,
    ) -> Result<Vec<u8>, Unreachable> {
        let ports = match &engine.command.via {
            Via::Http { ports } => ports,
            Via::Https => return Err(Unreachable::Https),
            Via::UnixSocket => return Err(Unreachable::UnixSocket),
            Via::Off(why) => return Err(Unreachable::Off(why)),
        };
        let pid = engine.incarnation.pid.0;
        let theirs = NetNamespace::of(pid).map_err(|_| Unreachable::NamespaceHidden)?;
        let sockets: Vec<SocketAddr> = ["tcp", "tcp6"]
            .iter()
            .filter_map(|table| File::open(format!("/proc/{pid}/net/{table}")).ok())
            .flat_map(|file| listening(BufReader::new(file)))
            .collect();
        let first = ports.first().copied().unwrap_or_default();
        let address = where_to(&sockets, ports, self.settings.host);
        let address = address.ok_or(Unreachable::NotListening(first))?;
        if let Some(older) = asked.insert((theirs, address), pid) {
            asked.insert((theirs, address), older);
            return Err(Unreachable::Taken(address.port(), older));
        }
        let limits = Limits {
            timeout: self.settings.timeout(),
            body_bytes: self.settings.body_bytes,
        };
        match own == Some(theirs) {
            true => fetch(address, limits),
            false => within(pid, theirs, || fetch(address, limits)).map_err(|error| match error
                .kind()
            {
                io::ErrorKind::PermissionDenied => Unreachable::NamespaceClosed,
                _ => Unreachable::Failed(error.to_string()),
            })?,
        }
    }

    fn failed(&mut self, engine: EngineProcess, why: Unreachable) {
        let failed = self.shared.failed.lock();
        let mut failed = failed.unwrap_or_else(PoisonError::into_inner);
        *failed.entry(why.name()).or_default() += 1;
        drop(failed);
        let said = self.unreachable.insert(engine.incarnation, why.clone());
        if said.as_ref() != Some(&why) {
            self.report(Report::Unreachable { engine, why });
        }
    }

    fn report(&self, report: Report) {
        let (bytes, waiting) = (report.body_bytes(), &self.shared.waiting_bytes);
        let most = self.settings.body_bytes.max(1 << 20);
        // Only this thread adds.
        let has_room = bytes == 0 || waiting.load(Ordering::Relaxed) + bytes <= most;
        waiting.fetch_add(bytes, Ordering::Relaxed);
        if !has_room || matches!(self.to.try_send(report), Err(TrySendError::Full(_))) {
            waiting.fetch_sub(bytes, Ordering::Relaxed);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Until an engine is asked again that let its time run out so many times in a row.
fn pause(interval: Duration, times: u32) -> Duration {
    let doubled = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
    interval
        .saturating_mul(doubled)
        .min(LONGEST_PAUSE.max(interval))
}

/// The processes of a scan. Kernel threads and processes that end meanwhile have no arguments, and are seen as parents only.
fn processes(only: &[u32]) -> Vec<Seen> {
    let mut pids = match only.is_empty() {
        true => proc::unsorted_pids(),
        false => only.to_vec(),
    };
    pids.truncate(MAX_PROCESSES);
    let seen = pids.into_iter().filter_map(|pid| {
        let (incarnation, parent) = proc::incarnation(pid)?;
        let command = classify(&proc::arguments(pid), &|name| {
            proc::environment_variable(pid, name)
        });
        // Between the two reads the pid may have become another process.
        let command = command
            .filter(|_| proc::incarnation(pid).is_some_and(|(again, _)| again == incarnation));
        Some(Seen {
            incarnation,
            parent: match parent {
                Pid(0) => incarnation.pid,
                parent => parent,
            },
            command,
        })
    });
    seen.collect()
}

#[cfg(test)]
mod tests;
