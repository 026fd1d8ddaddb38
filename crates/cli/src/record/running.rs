//! `trace` of processes that run already: until Ctrl-C, for a time, or as the machine's service.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use signal_hook::consts::{SIGHUP, SIGTERM};
use warptrace_agent::{
    AnnotationSocket, Capture, CaptureSocket, Config, Finished, NewOutgoing, Recording, Reload,
    SocketOptions,
};
use warptrace_capture::ebpf::{self, Ebpf};
use warptrace_engine::Rules;
use warptrace_formats::annotation::capture_socket_beside;
use warptrace_store::DataDir;
use warptrace_tui::Action;

use super::screen::{Screen, tap};
use super::{GLANCE, Recorded, conclude, followed, gpu_poller, symbolizer};
use crate::args::{Global, TraceArgs};
use crate::config::{self, JsonLines, Loaded};
use crate::daemon::{Change, Manager};
use crate::signals::Signals;
use crate::{cost, inference, log, sessions};

/// `trace` without a command: until Ctrl-C, or for a time.
pub(super) fn trace_running(global: &Global, args: &TraceArgs) -> anyhow::Result<u8> {
    for &pid in &args.pid {
        if !Path::new(&format!("/proc/{pid}")).exists() {
            bail!(
                "no process {pid}: it has ended, or is in another pid namespace (`warptrace trace` alone watches all)"
            );
        }
    }
    let mut manager = Manager::of_process();
    manager.status("attaching");
    let signals = Signals::catch()?;
    let settings = config::of_trace(args)?;
    log::set(global, &settings)?;
    let prices = cost::of_settings(&settings)?;
    let dirs = sessions::data_dir(global)?;
    let followed = followed(&settings, &args.pid, &dirs.path)?;
    let pids = (!args.pid.is_empty()).then(|| args.pid.clone());
    let options = ebpf::Options {
        pids,
        ring_bytes: settings.ring_size.0,
        ..ebpf::Options::default()
    };
    let source = Ebpf::start(&options).context("cannot trace from outside")?;
    let writer = sessions::create(&dirs, &[], &["ebpf"], settings.cost.provider.as_deref())?;
    if settings.inference.enabled && settings.log.file.is_none() && log::is_stderr_lost() {
        // What runs for months must be able to say what went wrong.
        log::to(Some(&dirs.path.join("warptrace.log")))?;
    }
    let (tap, events) = tap(settings.json);
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
    let annotations = match settings.annotate {
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
        sample_every: settings.sample_interval,
        gpu,
        tap,
        gaps,
        symbols: Some(symbolizer()),
        annotations,
        inference: followed.inference,
        engines: followed.engines,
        outgoing: followed.outgoing,
        thin_out: settings.inference.sampler,
        rollover: sessions::rollover(&settings.store, &dirs),
    };
    let recording_what = format!("recording {}", config.target);
    let recording = Recording::start(config, vec![Box::new(source)], writer)?;
    let health = recording.health();
    let screen = Screen::start(settings.json, settings.heartbeat, events);
    let mut running = Running {
        global,
        args,
        dirs,
        began: settings.clone(),
        settings,
        recording,
        screen,
    };
    let mut status = recording_what.clone();
    manager.ready(&status);
    let began = Instant::now();
    let why = loop {
        if let Some(arrived) = signals.wait(GLANCE) {
            // Where a table is shown it is the terminal that hung up.
            if arrived.signal != SIGHUP || running.screen.is_table() {
                break Some(arrived.signal);
            }
            manager.reloading();
            status = match running.reload() {
                Ok(said) => {
                    tracing::info!("{said}");
                    format!("{recording_what}; {said}")
                }
                Err(e) => {
                    tracing::error!("the settings stay as they are: {e:#}");
                    format!("{recording_what}; the settings stay as they are: {e:#}")
                }
            };
            manager.ready(&status);
        }
        if running.screen.draw(&running.recording)? == Action::Stop {
            break None;
        }
        manager.watch(health.turned());
        match health.check() {
            Ok(()) => manager.status(&status),
            Err(wrong) => manager.status(&wrong),
        }
        let limit = running.began.duration;
        let is_over = limit.is_some_and(|limit| began.elapsed() >= limit);
        if is_over || running.recording.ended() || are_gone(&args.pid) {
            break None;
        }
    };
    manager.stopping();
    let Running {
        settings,
        recording,
        mut screen,
        ..
    } = running;
    screen.close();
    drop(capture);
    let finished = stop(recording, &signals)?;
    screen.rest();
    // Who stops a service waits for it, and nobody reads what it would say.
    let is_service = manager.is_there() || (settings.inference.enabled && why == Some(SIGTERM));
    let is_quiet = args.quiet || is_service;
    let is_json = settings.json != JsonLines::Off;
    conclude(global, Recorded { finished }, &prices, is_json, is_quiet)?;
    Ok(0)
}

/// A recording, and the settings that it has.
struct Running<'a> {
    global: &'a Global,
    args: &'a TraceArgs,
    dirs: DataDir,
    /// With which it began: some hold until its end.
    began: Loaded,
    settings: Loaded,
    recording: Recording,
    screen: Screen,
}

impl Running<'_> {
    /// Reads the settings again, and says what of them takes effect.
    ///
    /// # Errors
    /// They cannot be used: those that there were stay, all of them.
    fn reload(&mut self) -> anyhow::Result<String> {
        // Whatever the settings are, a log that was moved away is not written on.
        log::reopen()?;
        let next = config::of_trace(self.args)?;
        let change = Change::new(&self.began, &self.settings, &next);
        let keep = change.kept(&next);
        let outgoing = match self.began.inference.enabled {
            true => {
                let next = next.held_to(&self.began);
                inference::outgoing(&next, &self.dirs.path, keep)?
            }
            false => None,
        };
        log::set(self.global, &next)?;
        self.recording.reload(Reload {
            outgoing: outgoing.map(|outgoing| NewOutgoing { outgoing, keep }),
            rollover: change
                .touches(&["store"])
                .then(|| sessions::limits(&next.store, &self.dirs)),
        });
        self.screen.set_heartbeat(next.heartbeat);
        self.settings = next;
        Ok(change.said())
    }
}

/// Whether there were some to watch, and none lives.
fn are_gone(pids: &[u32]) -> bool {
    let lives = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
    !pids.is_empty() && !pids.iter().any(lives)
}

/// Stops the recording; a signal meanwhile ends us at once. The session can then be read up to its last flush.
fn stop(recording: Recording, signals: &Signals) -> anyhow::Result<Finished> {
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| recording.stop());
        while !stopping.is_finished() {
            let arrived = signals.wait(Duration::from_millis(20));
            if arrived.is_some_and(|arrived| arrived.signal != SIGHUP) {
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
