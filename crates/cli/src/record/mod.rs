//! `record` and `trace`: start what is watched, record it, outlive it, explain it.

mod running;
mod screen;
mod sockets;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use warptrace_agent::{Capture, Config, Finished, Kept, Outgoing, Recording, Rollover};
use warptrace_api::{Explain, ExplainQuestion};
use warptrace_capture::discover::candidate_libraries;
use warptrace_capture::ebpf::{self, Ebpf};
use warptrace_capture::engines::EngineWatch;
use warptrace_capture::pollers::GpuPoller;
use warptrace_capture::preload::{Preload, PreloadOptions};
use warptrace_capture::symbols::Symbols;
use warptrace_engine::{InferenceSettings, Rules};
use warptrace_model::Gap;
use warptrace_model::cost::Prices;
use warptrace_store::DataDir;

use self::running::trace_running;
use self::screen::{Screen, tap};
use self::sockets::{annotation_socket, capture_socket};
use crate::args::{Global, RecordArgs, TraceArgs};
use crate::config::{self, JsonLines, Loaded};
use crate::launch::{self, Job, Program};
use crate::signals::Signals;
use crate::{cost, daemon, explain, guest, inference, log, output, sessions};

/// How often a waiting command looks at its child and its signals.
const GLANCE: Duration = Duration::from_millis(50);

/// `record -- CMD`. The exit code is the command's.
pub(crate) fn record(global: &Global, args: &RecordArgs) -> anyhow::Result<u8> {
    let program = match launch::find(&args.command) {
        Ok(program) => program,
        Err(e) => return Ok(refuse(&e)),
    };
    let settings = config::of_record(args)?;
    log::set(global, &settings)?;
    let prices = cost::of_settings(&settings)?;
    let signals = Signals::catch()?;
    let job = Watched::by(&program, &settings, args.paused);
    let mut ended = Outcome::default();
    let session = with_preload(global, &job, &signals, &mut |_| {}, &mut ended)?;
    conclude(global, session, &prices, args.json, args.quiet)?;
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
    let settings = config::of_trace(args)?;
    log::set(global, &settings)?;
    let prices = cost::of_settings(&settings)?;
    let signals = Signals::catch()?;
    let job = Watched::by(&program, &settings, false);
    let view = Trace {
        ring_size: settings.ring_size.0,
        json: settings.json,
        heartbeat: settings.heartbeat,
        limit: settings.duration,
        libraries: Vec::new(),
    };
    let mut ended = Outcome::default();
    let session = with_ebpf(global, &job, &view, &signals, &mut |_| {}, &mut ended)?;
    let is_json = settings.json != JsonLines::Off;
    conclude(global, session, &prices, is_json, args.quiet)?;
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
    /// How inference servers are followed, where what is found goes, what is kept. `None` for what lasts for seconds.
    pub(crate) settings: Option<&'a Loaded>,
}

impl<'a> Watched<'a> {
    fn by(program: &'a Program, settings: &'a Loaded, paused: bool) -> Watched<'a> {
        Watched {
            program,
            env: Vec::new(),
            gpu_library: None,
            sample_every: settings.sample_interval,
            rules: Rules::default(),
            annotate: settings.annotate,
            paused,
            settings: Some(settings),
        }
    }
}

impl Watched<'_> {
    /// Whose machine it is, where somebody says so.
    fn provider(&self) -> Option<&str> {
        self.settings?.cost.provider.as_deref()
    }

    fn thins_out(&self) -> bool {
        self.settings
            .is_some_and(|settings| settings.inference.sampler)
    }

    fn rollover(&self, dirs: &DataDir) -> Option<Rollover> {
        let settings = self.settings?;
        sessions::rollover(&settings.store, dirs)
    }

    /// Checked, and ready, before the command begins. `env`, its environment, gets what it has to know of that.
    fn followed(
        &self,
        data: &Path,
        env: &mut Vec<(OsString, OsString)>,
    ) -> anyhow::Result<Followed> {
        let Some(settings) = self.settings else {
            return Ok(Followed::default());
        };
        let followed = followed(settings, &[], data)?;
        let outgoing = followed.outgoing.as_ref();
        if let Some(receiver) = outgoing.and_then(|outgoing| outgoing.receiver.as_ref()) {
            inference::tell_job(settings, receiver.address(), env);
        }
        Ok(followed)
    }
}

/// How inference servers are followed.
#[derive(Default)]
struct Followed {
    inference: Option<InferenceSettings>,
    engines: Option<EngineWatch>,
    outgoing: Option<Outgoing>,
}

fn followed(settings: &Loaded, pids: &[u32], data: &Path) -> anyhow::Result<Followed> {
    Ok(Followed {
        inference: inference::settings(settings)?,
        outgoing: inference::outgoing(settings, data, Kept::default())?,
        engines: inference::engines(settings, pids)?,
    })
}

/// What `trace` shows while it runs.
pub(crate) struct Trace {
    pub(crate) ring_size: u32,
    pub(crate) json: JsonLines,
    /// Between two status lines.
    pub(crate) heartbeat: Duration,
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
    let followed = job.followed(&dirs.path, &mut env)?;
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
    let writer = sessions::create(&dirs, &job.program.command, &["preload"], job.provider())?;
    let mut running = job.program.start(&env)?;
    started(running.pid());
    // Preload takes no stacks.
    let config = Config {
        annotations,
        inference: followed.inference,
        engines: followed.engines,
        outgoing: followed.outgoing,
        thin_out: job.thins_out(),
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
    let followed = job.followed(&dirs.path, &mut env)?;
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
        let writer = sessions::create(&dirs, &job.program.command, &["ebpf"], job.provider())?;
        let (tap, events) = tap(view.json);
        let config = Config {
            tap,
            symbols: Some(symbolizer()),
            annotations,
            inference: followed.inference,
            engines: followed.engines,
            outgoing: followed.outgoing,
            thin_out: job.thins_out(),
            rollover: job.rollover(&dirs),
            ..config(gpu, job, running.pid())
        };
        let recording = Recording::start(config, vec![Box::new(source)], writer)?;
        running.release();
        started(running.pid());
        // A table would lie over the command's own output: with a command there are JSON lines, or the end.
        let is_wanted = view.json != JsonLines::Off;
        let screen = is_wanted.then(|| Screen::start(view.json, view.heartbeat, events));
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
        thin_out: false,
        rollover: None,
    }
}

/// Looks stacks up by another process of this program, which stays what it is when the file is replaced.
fn symbolizer() -> Symbols {
    Symbols::new(|| {
        let mut command = std::process::Command::new("/proc/self/exe");
        daemon::alone(&mut command).arg("symbolize");
        command
    })
}

/// Explains what was recorded, and says what to type next.
fn conclude(
    global: &Global,
    recorded: Recorded,
    prices: &Prices,
    json: bool,
    quiet: bool,
) -> anyhow::Result<()> {
    if quiet {
        recorded.warn();
        return Ok(());
    }
    let answer = recorded.answer(prices)?;
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
    pub(crate) fn answer(&self, prices: &Prices) -> anyhow::Result<Explain> {
        self.warn();
        let session = sessions::open(&self.finished.session)
            .with_context(|| format!("cannot read the session {:?}", self.finished.session))?;
        let question = ExplainQuestion {
            prices: prices.clone(),
            ..ExplainQuestion::default()
        };
        let mut answer = warptrace_api::explain(&session, &question)?;
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
