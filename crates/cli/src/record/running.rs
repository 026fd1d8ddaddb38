//! `trace` of processes that run already: until Ctrl-C, for a time, or as the machine's service.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use warptrace_agent::{
    AnnotationSocket, Capture, CaptureSocket, Config, Finished, Recording, SocketOptions,
};
use warptrace_capture::ebpf::{self, Ebpf};
use warptrace_engine::Rules;
use warptrace_formats::annotation::capture_socket_beside;
use warptrace_tui::Action;

use super::screen::{Screen, tap};
use super::{GLANCE, Recorded, SAMPLE_EVERY, conclude, followed, gpu_poller, symbolizer};
use crate::args::{Global, TraceArgs};
use crate::sessions;
use crate::signals::Signals;

/// `trace` without a command: until Ctrl-C, or for a time.
pub(super) fn trace_running(global: &Global, args: &TraceArgs) -> anyhow::Result<u8> {
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
