//! `warptrace resume`: a person switches a paused recorder on.
//!
//! It is one more holder beside the job: recording is on while this command runs, and pauses again when it ends, however it does,
//! unless the job holds.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use warptrace_formats::annotation::{CaptureAnswer, Surroundings};
use warptrace_sdk::capture::Connection;

use crate::args::ResumeArgs;
use crate::signals::Signals;

const GLANCE: Duration = Duration::from_millis(100);

pub(crate) fn run(args: &ResumeArgs) -> anyhow::Result<u8> {
    let place = match (&args.socket, args.recorder) {
        (Some(place), _) => place.clone(),
        (None, recorder) => find(recorder)?,
    };
    let signals = Signals::catch()?;
    let opened = Connection::open(&place);
    let (connection, answer) =
        opened.with_context(|| format!("no recorder answers at {place:?}"))?;
    match answer {
        CaptureAnswer::Resumed => {}
        CaptureAnswer::Refused => bail!("the recorder belongs to another user: {place:?}"),
        _ => {
            eprintln!("the recorder is not paused: it records all the time");
            return Ok(0);
        }
    }
    match args.duration {
        Some(_) => eprintln!("recording"),
        None => eprintln!("recording until Ctrl-C"),
    }
    let began = Instant::now();
    while args.duration.is_none_or(|limit| began.elapsed() < limit) {
        let left = args
            .duration
            .map(|limit| limit.saturating_sub(began.elapsed()));
        if signals
            .wait(left.map_or(GLANCE, |left| left.min(GLANCE)))
            .is_some()
        {
            break;
        }
        if !connection.stands() {
            eprintln!("the recorder has ended");
            return Ok(0);
        }
    }
    if connection.pause().is_ok_and(|now| now == CaptureAnswer::On) {
        eprintln!("recording goes on, at the job's own word");
    }
    Ok(0)
}

/// The socket of the recorder that was named, or of the only one that there is.
fn find(recorder: Option<u32>) -> anyhow::Result<PathBuf> {
    let is_root = nix::unistd::geteuid().is_root();
    let around = Surroundings::new(is_root, |name| std::env::var_os(name));
    let mut found = Vec::new();
    for place in around.capture_candidates() {
        let Some(folder) = place.parent() else {
            continue;
        };
        found.extend(recorders(folder));
    }
    found.sort();
    found.dedup();
    if let Some(recorder) = recorder {
        let named = found.into_iter().find(|(pid, _)| *pid == recorder);
        let (_, place) =
            named.with_context(|| format!("process {recorder} is no recorder of a command"))?;
        return Ok(place);
    }
    match &found[..] {
        [(_, place)] => Ok(place.clone()),
        [] => bail!("no recorder waits: start the job by `warptrace record --paused -- CMD`"),
        several => {
            let pids: Vec<String> = several.iter().map(|(pid, _)| pid.to_string()).collect();
            bail!(
                "several recorders run: name one by --recorder ({})",
                pids.join(", ")
            )
        }
    }
}

/// Recorders of commands that listen in `folder`, by pid.
fn recorders(folder: &Path) -> Vec<(u32, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let pid = name.to_str()?.strip_prefix("capture-")?;
            let pid = pid.strip_suffix(".sock")?.parse().ok()?;
            let path = entry.path();
            // One that was killed has left its socket.
            std::os::unix::net::UnixStream::connect(&path).ok()?;
            Some((pid, path))
        })
        .collect()
}
