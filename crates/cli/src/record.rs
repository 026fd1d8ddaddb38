//! `record` and `trace`: start what is watched, record it, outlive it, explain it.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use warptrace_agent::{
    AnnotationReceiver, AnnotationSocket, Capture, CaptureSocket, Config, Finished, Outgoing,
    Recording, Rollover, SocketOptions,
};
use warptrace_api::{Explain, ExplainQuestion};
use warptrace_capture::clock;
use warptrace_capture::discover::candidate_libraries;
use warptrace_capture::ebpf::{self, Ebpf};
use warptrace_capture::engines::EngineWatch;
use warptrace_capture::pollers::GpuPoller;
use warptrace_capture::preload::{Preload, PreloadOptions};
use warptrace_capture::symbols::Symbols;
use warptrace_engine::{InferenceSettings, Rules};
use warptrace_formats::annotation::{
    CAPTURE_SOCKET_VARIABLE, SOCKET_VARIABLE, capture_socket_beside,
};
use warptrace_model::{Event, Gap};
use warptrace_store::DataDir;
use warptrace_tui::{Action, Tui};

use crate::args::{
    Global, InferenceArgs, OutgoingArgs, RecordArgs, StoreArgs, TraceArgs, TraceJson,
};
use crate::launch::{self, Job, Program};
use crate::signals::Signals;
use crate::{explain, guest, inference, output, sessions};

/// How often a waiting command looks at its child and its signals.
const GLANCE: Duration = Duration::from_millis(50);
/// Between two samples of the machine and the devices.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// A status line of `trace --json`.
const STATUS_EVERY: Duration = Duration::from_secs(60);

/// `record -- CMD`. The exit code is the command's.
pub(crate) fn record(global: &Global, args: &RecordArgs) -> anyhow::Result<u8> {
    let program = match launch::find(&args.command) {
        Ok(program) => program,
        Err(e) => return Ok(refuse(&e)),
    };
    let signals = Signals::catch()?;
    let job = Watched {
        program: &program,
        env: Vec::new(),
        gpu_library: None,
        sample_every: SAMPLE_EVERY,
        rules: Rules::default(),
        annotate: args.annotate,
        paused: args.paused,
        inference: Some((&args.inference, &args.outgoing)),
        store: Some(&args.store),
    };
    let mut ended = Outcome::default();
    let session = with_preload(global, &job, &signals, &mut |_| {}, &mut ended)?;
    conclude(global, session, args.json, args.quiet)?;
    Ok(ended.exit_code)
}

/// `trace`, of a command, of processes, or of all.
pub(crate) fn trace(global: &Global, args: &TraceArgs) -> anyhow::Result<u8> {
    if args.command.is_empty() {
        return trace_running(global, args);
    }
    let program = match launch::find(&args.command) {
        Ok(program) => program,
        Err(e) => return Ok(refuse(&e)),
    };
    let signals = Signals::catch()?;
    let job = Watched {
        program: &program,
        env: Vec::new(),
        gpu_library: None,
        sample_every: SAMPLE_EVERY,
        rules: Rules::default(),
        annotate: args.annotate,
        paused: false,
        inference: Some((&args.inference, &args.outgoing)),
        store: Some(&args.store),
    };
    let view = Trace {
        ring_size: args.ring_size,
        json: args.json,
        limit: args.duration,
        libraries: Vec::new(),
    };
    let mut ended = Outcome::default();
    let session = with_ebpf(global, &job, &view, &signals, &mut |_| {}, &mut ended)?;
    conclude(global, session, args.json.is_some(), args.quiet)?;
    Ok(ended.exit_code)
}

fn refuse(e: &launch::NoProgram) -> u8 {
    eprintln!("warptrace: {e}");
    e.exit_code()
}

/// A command, and what it is started with.
pub(crate) struct Watched<'a> {
    pub(crate) program: &'a Program,
    pub(crate) env: Vec<(OsString, OsString)>,
    /// NVML to ask instead of the machine's.
    pub(crate) gpu_library: Option<PathBuf>,
    pub(crate) sample_every: Duration,
    pub(crate) rules: Rules,
    /// Whether it may say what it is doing.
    pub(crate) annotate: bool,
    /// Whether nothing is recorded until it asks for it.
    pub(crate) paused: bool,
    /// Whether it is an inference server, and where what is found goes.
    pub(crate) inference: Option<(&'a InferenceArgs, &'a OutgoingArgs)>,
    /// How long a session gets, and what is kept of old ones.
    pub(crate) store: Option<&'a StoreArgs>,
}

impl Watched<'_> {
    fn rollover(&self, dirs: &DataDir) -> Option<Rollover> {
        let is_server = self
            .inference
            .is_some_and(|(inference, _)| inference.inference);
        self.store
            .and_then(|store| sessions::rollover(store, is_server, dirs))
    }

    /// Checked, and ready, before the command begins.
    fn followed(&self, data: &Path) -> anyhow::Result<Followed> {
        match self.inference {
            Some((inference, outgoing)) => followed(inference, outgoing, &[], data),
            None => Ok(Followed::default()),
        }
    }
}

/// How inference servers are followed.
#[derive(Default)]
struct Followed {
    inference: Option<InferenceSettings>,
    engines: Option<EngineWatch>,
    outgoing: Option<Outgoing>,
}

fn followed(
    inference: &InferenceArgs,
    outgoing: &OutgoingArgs,
    pids: &[u32],
    data: &Path,
) -> anyhow::Result<Followed> {
    Ok(Followed {
        inference: inference::settings(inference)?,
        outgoing: inference::outgoing(inference, outgoing, data)?,
        engines: inference::engines(inference, pids)?,
    })
}

/// What `trace` shows while it runs.
pub(crate) struct Trace {
    pub(crate) ring_size: u32,
    pub(crate) json: Option<TraceJson>,
    pub(crate) limit: Option<Duration>,
    /// Libraries to attach before the command begins, beside those that are found.
    pub(crate) libraries: Vec<PathBuf>,
}

/// A finished recording.
pub(crate) struct Recorded {
    pub(crate) finished: Finished,
}

/// How the command ended.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) exit_code: u8,
    /// We were told to stop, before it ended by itself.
    pub(crate) interrupted: bool,
}

/// Records `job` from inside. Calls `started` with its pid once it runs. Returns the session.
pub(crate) fn with_preload(
    global: &Global,
    job: &Watched<'_>,
    signals: &Signals,
    started: &mut dyn FnMut(u32),
    outcome: &mut Outcome,
) -> anyhow::Result<Recorded> {
    let dirs = sessions::data_dir(global)?;
    let libraries = guest::folder(&dirs.path)?;
    let library = guest::library(&libraries, "libwarptrace_preload.so");
    let source = Preload::start(&PreloadOptions {
        paused: job.paused,
        ..PreloadOptions::new(library)
    })?;
    let inherited = |name: &str| {
        let given = job
            .env
            .iter()
            .find(|(k, _)| k.as_os_str() == name)
            .map(|(_, v)| v.clone());
        given.or_else(|| std::env::var_os(name))
    };
    let added = source
        .environment(&job.program.path, inherited)
        .with_context(|| {
            format!(
                "cannot record {:?} from inside; from outside: sudo warptrace trace -- CMD",
                job.program.path
            )
        })?;
    let mut env = job.env.clone();
    env.extend(
        added
            .into_iter()
            .map(|(name, value)| (OsString::from(name), value)),
    );
    let gpu = gpu_poller(job.gpu_library.as_deref());
    let followed = job.followed(&dirs.path)?;
    let annotations = match job.annotate {
        true => Some(annotation_socket(&dirs.path, &mut env)?),
        false => None,
    };
    let capture = match job.paused {
        true => {
            let switch = source.switch();
            Capture::Switched(Box::new(move |on| switch.set(on)))
        }
        false => Capture::Always(None),
    };
    let capture = capture_socket(&dirs.path, &mut env, capture, job.paused)?;
    let writer = sessions::create(&dirs, &job.program.command, &["preload"])?;
    let mut running = job.program.start(&env)?;
    started(running.pid());
    // Preload takes no stacks.
    let config = Config {
        annotations,
        inference: followed.inference,
        engines: followed.engines,
        outgoing: followed.outgoing,
        rollover: job.rollover(&dirs),
        ..config(gpu, job, running.pid())
    };
    let recording = match Recording::start(config, vec![Box::new(source)], writer) {
        Ok(recording) => recording,
        Err(e) => {
            running.kill();
            return Err(e.into());
        }
    };
    outlive(&mut running, &recording, signals, None, None, outcome)?;
    drop(capture);
    let finished = recording.stop()?;
    Ok(Recorded { finished })
}

/// Records `job` from outside, probes attached before it begins.
pub(crate) fn with_ebpf(
    global: &Global,
    job: &Watched<'_>,
    view: &Trace,
    signals: &Signals,
    started: &mut dyn FnMut(u32),
    outcome: &mut Outcome,
) -> anyhow::Result<Recorded> {
    let dirs = sessions::data_dir(global)?;
    let mut env = job.env.clone();
    let followed = job.followed(&dirs.path)?;
    let annotations = match job.annotate {
        true => Some(annotation_socket(&dirs.path, &mut env)?),
        false => None,
    };
    let capture = capture_socket(&dirs.path, &mut env, Capture::Always(None), false)?;
    let mut running = job.program.start_gated(&env)?;
    let result = (|| {
        let options = ebpf::Options {
            pids: Some(Vec::new()),
            ring_bytes: view.ring_size,
            libraries: candidates(job, view),
            ..ebpf::Options::default()
        };
        let mut source = Ebpf::start(&options).context("cannot trace from outside")?;
        source.watch(running.pid(), true)?;
        let gpu = gpu_poller(job.gpu_library.as_deref());
        let writer = sessions::create(&dirs, &job.program.command, &["ebpf"])?;
        let (tap, events) = tap(view.json);
        let config = Config {
            tap,
            symbols: Some(symbolizer()),
            annotations,
            inference: followed.inference,
            engines: followed.engines,
            outgoing: followed.outgoing,
            rollover: job.rollover(&dirs),
            ..config(gpu, job, running.pid())
        };
        let recording = Recording::start(config, vec![Box::new(source)], writer)?;
        running.release();
        started(running.pid());
        // A table would lie over the command's own output: with a command there are JSON lines, or the end.
        let screen = view.json.map(|json| Screen::start(Some(json), events));
        outlive(
            &mut running,
            &recording,
            signals,
            screen,
            view.limit,
            outcome,
        )?;
        // Before the annotation socket, which may have made the folder.
        drop(capture);
        let finished = recording.stop()?;
        Ok(Recorded { finished })
    })();
    if result.is_err() {
        running.kill();
    }
    result
}

/// Libraries to attach before the command begins: those given, and those that it may load.
fn candidates(job: &Watched<'_>, view: &Trace) -> Vec<PathBuf> {
    let variable = |name: &str| {
        let given = job
            .env
            .iter()
            .find(|(k, _)| k.as_os_str() == name)
            .map(|(_, v)| v.clone());
        given.or_else(|| std::env::var_os(name))
    };
    let mut libraries = view.libraries.clone();
    libraries.extend(candidate_libraries(job.program.path.as_os_str(), variable));
    libraries.sort();
    libraries.dedup();
    libraries
}

/// `trace` without a command: until Ctrl-C, or for a time.
fn trace_running(global: &Global, args: &TraceArgs) -> anyhow::Result<u8> {
    for &pid in &args.pid {
        if !Path::new(&format!("/proc/{pid}")).exists() {
            bail!(
                "no process {pid}: it has ended, or is in another pid namespace (`warptrace trace` alone watches all)"
            );
        }
    }
    let dirs = sessions::data_dir(global)?;
    let followed = followed(&args.inference, &args.outgoing, &args.pid, &dirs.path)?;
    let signals = Signals::catch()?;
    let pids = (!args.pid.is_empty()).then(|| args.pid.clone());
    let options = ebpf::Options {
        pids,
        ring_bytes: args.ring_size,
        ..ebpf::Options::default()
    };
    let source = Ebpf::start(&options).context("cannot trace from outside")?;
    let writer = sessions::create(&dirs, &[], &["ebpf"])?;
    let (tap, events) = tap(args.json);
    let target = match args.pid.as_slice() {
        [] => "all CUDA processes".to_owned(),
        pids => format!(
            "pid {}",
            pids.iter()
                .map(u32::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    };
    let annotations = match args.annotate {
        true => {
            let options = SocketOptions::usual(&dirs.path)?;
            let started = AnnotationSocket::start(options);
            Some(started.context("cannot listen for annotations")?)
        }
        false => None,
    };
    // Another recorder may have the place, which answers as we would.
    let capture = SocketOptions::usual(&dirs.path).ok().and_then(|usual| {
        let place = capture_socket_beside(&usual.path);
        let pids = (!args.pid.is_empty()).then(|| args.pid.clone());
        let started = CaptureSocket::start(&place, Capture::Always(pids));
        let why_not =
            |e: &_| tracing::info!(error = %e, "jobs are not told that they are recorded");
        started.inspect_err(why_not).ok()
    });
    let (gpu, gaps) = gpu_poller(None);
    let config = Config {
        rules: Rules::default(),
        target,
        sample_every: SAMPLE_EVERY,
        gpu,
        tap,
        gaps,
        symbols: Some(symbolizer()),
        annotations,
        inference: followed.inference,
        engines: followed.engines,
        outgoing: followed.outgoing,
        rollover: sessions::rollover(&args.store, args.inference.inference, &dirs),
    };
    let recording = Recording::start(config, vec![Box::new(source)], writer)?;
    let mut screen = Screen::start(args.json, events);
    let began = Instant::now();
    loop {
        if signals.wait(GLANCE).is_some() || screen.draw(&recording)? == Action::Stop {
            break;
        }
        if args.duration.is_some_and(|limit| began.elapsed() >= limit) || recording.ended() {
            break;
        }
        if !args.pid.is_empty()
            && args
                .pid
                .iter()
                .all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        {
            break;
        }
    }
    screen.close();
    drop(capture);
    let finished = stop(recording, &signals)?;
    screen.rest();
    conclude(
        global,
        Recorded { finished },
        args.json.is_some(),
        args.quiet,
    )?;
    Ok(0)
}

/// Stops the recording; a signal meanwhile ends us at once. The session can then be read up to its last flush.
fn stop(recording: Recording, signals: &Signals) -> anyhow::Result<Finished> {
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| recording.stop());
        while !stopping.is_finished() {
            if signals.wait(Duration::from_millis(20)).is_some() {
                eprintln!(
                    "warptrace: stopped at once; the session is readable up to its last flush"
                );
                std::process::exit(130);
            }
        }
        stopping
            .join()
            .map_err(|_| anyhow::anyhow!("stopping panicked"))?
            .map_err(Into::into)
    })
}

/// Waits for the command: passes signals on, shows what there is to show, and takes its exit code.
fn outlive(
    job: &mut Job,
    recording: &Recording,
    signals: &Signals,
    mut screen: Option<Screen>,
    limit: Option<Duration>,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        if let Some(arrived) = signals.wait(GLANCE) {
            outcome.interrupted = true;
            if !arrived.to_the_group {
                job.signal(arrived.signal);
            }
        }
        if let Some(status) = job.try_wait().context("cannot wait for the command")? {
            outcome.exit_code = launch::exit_code(status);
            break;
        }
        if let Some(screen) = &mut screen {
            screen.draw(recording)?;
        }
        if limit.is_some_and(|limit| began.elapsed() >= limit) {
            // The recording has its length; the command goes on without us.
            break;
        }
    }
    if let Some(screen) = &mut screen {
        screen.close();
        screen.rest();
    }
    Ok(())
}

fn gpu_poller(library: Option<&Path>) -> (Option<GpuPoller>, Vec<Gap>) {
    match GpuPoller::open(library.map(Path::as_os_str)) {
        Ok(poller) => (Some(poller), Vec::new()),
        Err(gap) => (None, vec![gap]),
    }
}

fn config((gpu, gaps): (Option<GpuPoller>, Vec<Gap>), job: &Watched<'_>, pid: u32) -> Config {
    Config {
        rules: job.rules.clone(),
        target: format!("{} (pid {pid})", launch::shown(&job.program.command)),
        sample_every: job.sample_every,
        gpu,
        tap: None,
        gaps,
        symbols: None,
        annotations: None,
        inference: None,
        engines: None,
        outgoing: None,
        rollover: None,
    }
}

type Annotations = (AnnotationSocket, AnnotationReceiver);

/// A socket for one command, whose environment `env` names it: several recorders may run side by side.
fn annotation_socket(
    data: &Path,
    env: &mut Vec<(OsString, OsString)>,
) -> anyhow::Result<Annotations> {
    let mut options = SocketOptions::usual(data)?;
    let name = format!("annotate-{}.sock", std::process::id());
    options.path.set_file_name(name);
    let path = options.path.clone();
    let started = AnnotationSocket::start(options).context("cannot listen for annotations")?;
    env.push((SOCKET_VARIABLE.into(), path.into()));
    Ok(started)
}

/// Where one command's job asks to be recorded; its environment `env` names it. Without it the job is recorded all the same, unless it
/// is `needed`.
fn capture_socket(
    data: &Path,
    env: &mut Vec<(OsString, OsString)>,
    capture: Capture,
    needed: bool,
) -> anyhow::Result<Option<CaptureSocket>> {
    let started = SocketOptions::usual(data).and_then(|usual| {
        let name = format!("capture-{}.sock", std::process::id());
        CaptureSocket::start(&usual.path.with_file_name(name), capture)
    });
    match started {
        Ok(socket) => {
            env.push((CAPTURE_SOCKET_VARIABLE.into(), socket.path().into()));
            Ok(Some(socket))
        }
        Err(e) if needed => Err(e).context("the job could not ask to be recorded"),
        Err(e) => {
            tracing::info!(error = %e, "the job is not told that it is recorded");
            Ok(None)
        }
    }
}

/// Looks stacks up by another process of this program, which stays what it is when the file is replaced.
fn symbolizer() -> Symbols {
    Symbols::new(|| {
        let mut command = std::process::Command::new("/proc/self/exe");
        command.arg("symbolize");
        command
    })
}

type Tap = (
    Option<std::sync::mpsc::SyncSender<Vec<Event>>>,
    Option<Receiver<Vec<Event>>>,
);

fn tap(json: Option<TraceJson>) -> Tap {
    if json == Some(TraceJson::Events) {
        let (sender, receiver) = sync_channel(256);
        (Some(sender), Some(receiver))
    } else {
        (None, None)
    }
}

/// What `trace` shows: a table in a terminal, JSON lines elsewhere.
struct Screen {
    tui: Option<Tui>,
    lines: Option<Lines>,
    drawn: Option<Instant>,
}

struct Lines {
    events: Option<Receiver<Vec<Event>>>,
    anchor: warptrace_model::ClockAnchor,
    status: Instant,
    findings: Vec<(String, u64)>,
}

impl Screen {
    fn start(json: Option<TraceJson>, events: Option<Receiver<Vec<Event>>>) -> Screen {
        let terminal = std::io::stdout().is_terminal() && json.is_none();
        let lines = (!terminal).then(|| Lines {
            events,
            anchor: clock::anchor(),
            status: Instant::now(),
            findings: Vec::new(),
        });
        Screen {
            tui: if terminal { Tui::start().ok() } else { None },
            lines,
            drawn: None,
        }
    }

    fn draw(&mut self, recording: &Recording) -> anyhow::Result<Action> {
        if let Some(lines) = &mut self.lines {
            lines.write(recording)?;
            return Ok(Action::Continue);
        }
        if self
            .drawn
            .is_some_and(|at| at.elapsed() < Duration::from_millis(200))
        {
            return Ok(Action::Continue);
        }
        self.drawn = Some(Instant::now());
        match &mut self.tui {
            Some(tui) => Ok(tui.draw(&recording.live())?),
            None => Ok(Action::Continue),
        }
    }

    /// Gives the terminal back.
    fn close(&mut self) {
        self.tui = None;
    }

    /// Prints events that came while stopping.
    fn rest(&mut self) {
        if let Some(lines) = &mut self.lines {
            let _ = lines.events();
        }
    }
}

impl Lines {
    fn write(&mut self, recording: &Recording) -> anyhow::Result<()> {
        self.events()?;
        let live = recording.live();
        for finding in &live.findings {
            let known = self.findings.iter_mut().find(|(id, _)| *id == finding.id);
            let news = match known {
                Some((_, excess)) if *excess == finding.excess_ns => false,
                Some((_, excess)) => {
                    *excess = finding.excess_ns;
                    true
                }
                None => {
                    self.findings.push((finding.id.clone(), finding.excess_ns));
                    true
                }
            };
            if news {
                output::print_json(
                    &serde_json::json!({"type": "finding", "session": live.session, "finding": finding}),
                )?;
            }
        }
        if self.status.elapsed() >= STATUS_EVERY {
            self.status = Instant::now();
            output::print_json(&serde_json::json!({
                "type": "status", "session": live.session, "elapsed_ns": live.elapsed_ns, "records": live.records,
                "calls": live.calls, "findings": live.findings.len(), "drops": live.drops,
            }))?;
        }
        Ok(())
    }

    fn events(&mut self) -> anyhow::Result<()> {
        let Some(receiver) = &self.events else {
            return Ok(());
        };
        while let Ok(events) = receiver.try_recv() {
            let mut out = std::io::stdout().lock();
            for event in &events {
                if let Some(line) = event_json(event, &self.anchor) {
                    match writeln!(out, "{line}") {
                        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                        other => other?,
                    }
                }
            }
        }
        Ok(())
    }
}

/// One event as a line of `trace --json=events`.
fn event_json(event: &Event, anchor: &warptrace_model::ClockAnchor) -> Option<serde_json::Value> {
    let unix = |at| anchor.unix(at).0.to_string();
    Some(match event {
        Event::Call(c) | Event::InFlight(c) => {
            let op = c.op.get();
            serde_json::json!({
                "type": if matches!(event, Event::Call(_)) { "call" } else { "in_flight" },
                "ts_unix_ns": unix(c.start), "layer": op.source.name(), "op": op.name, "pid": c.thread.pid.0,
                "tid": c.thread.tid.0, "device": c.device.map(|d| d.0), "stream": format!("{:#x}", c.stream.0),
                "dur_ns": c.dur, "ret": c.ret, "bytes": c.bytes(), "arg0": format!("{:#x}", c.arg0),
                "arg1": format!("{:#x}", c.arg1), "nested": c.flags.nested(),
            })
        }
        Event::OffCpu(e) => serde_json::json!({
            "type": "offcpu", "ts_unix_ns": unix(e.start), "pid": e.thread.pid.0, "tid": e.thread.tid.0, "dur_ns": e.dur,
            "runnable_ns": e.runnable, "throttled_ns": e.throttled, "syscall": e.syscall, "iowait": e.iowait,
            "waker_tid": e.waker.map(|w| w.thread.tid.0),
        }),
        Event::Stretch(e) => serde_json::json!({
            "type": "stretch", "ts_unix_ns": unix(e.start), "pid": e.thread.pid.0, "tid": e.thread.tid.0,
            "dur_ns": e.dur, "running_ns": e.running, "runnable_ns": e.runnable,
        }),
        Event::BlockIo(e) => serde_json::json!({
            "type": "block_io", "ts_unix_ns": unix(e.start), "pid": e.thread.pid.0, "tid": e.thread.tid.0,
            "dur_ns": e.dur, "bytes": e.bytes, "op": format!("{:?}", e.kind).to_lowercase(),
        }),
        Event::Lost(e) => serde_json::json!({
            "type": "drop", "source": e.source, "reason": e.reason.name(), "count": e.count,
        }),
        _ => return None,
    })
}

/// Explains what was recorded, and says what to type next.
fn conclude(global: &Global, recorded: Recorded, json: bool, quiet: bool) -> anyhow::Result<()> {
    if quiet {
        recorded.warn();
        return Ok(());
    }
    let answer = recorded.answer()?;
    if json {
        return output::print_json(&answer);
    }
    let text = explain::text(global, &answer, false);
    let session = &answer.session;
    // The command's own output is on stdout: ours goes beside it.
    eprint!("{text}\nsession {session}      warptrace explain {session}\n");
    Ok(())
}

impl Recorded {
    /// The explanation of the whole session.
    pub(crate) fn answer(&self) -> anyhow::Result<Explain> {
        self.warn();
        let session = sessions::open(&self.finished.session)
            .with_context(|| format!("cannot read the session {:?}", self.finished.session))?;
        let mut answer = warptrace_api::explain(&session, &ExplainQuestion::default())?;
        if self.finished.sealed.is_err() {
            // What the disk could not take, it cannot tell either.
            answer.drops.clone_from(&self.finished.live.drops);
        }
        Ok(answer)
    }

    /// Says when the session is not whole.
    fn warn(&self) {
        if let Err(e) = &self.finished.sealed {
            let chain = std::error::Error::source(e)
                .map(|source| format!(": {source}"))
                .unwrap_or_default();
            eprintln!(
                "warptrace: the session could not be sealed, and can be read up to its last flush: {e}{chain}"
            );
        }
    }
}
