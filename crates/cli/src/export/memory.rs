//! A session's memory samples as a folder of the telemetry format, which the `stormlog` package loads.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use warptrace_model::{Int, MemoryEvent, SessionStatus, SessionSummary, Value};
use warptrace_sdk::memory_sink::{MemorySink, SinkConfig};
use warptrace_store::Session;

/// Runs of collectors in one session of ours; each is written by itself.
const MAX_RUNS: usize = 256;

/// Writes `target`, which does not exist yet. Returns the events by run.
pub(super) fn write(session: &Session, target: &Path) -> anyhow::Result<BTreeMap<Arc<str>, u64>> {
    let runs = runs(session)?;
    if runs.is_empty() {
        bail!("session {} has no memory samples", session.meta().id);
    }
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".partial-{}", std::process::id()));
    let partial = target.with_file_name(name);
    let written = fill(session, &partial, &runs).and_then(|counts| {
        std::fs::rename(&partial, target).with_context(|| format!("cannot write {target:?}"))?;
        Ok(counts)
    });
    if written.is_err() {
        let _ = std::fs::remove_dir_all(&partial);
    }
    written
}

fn fill(
    session: &Session,
    folder: &Path,
    runs: &[SessionSummary],
) -> anyhow::Result<BTreeMap<Arc<str>, u64>> {
    // All of it is kept: what rolls over is for recorders.
    let config = SinkConfig {
        flush_every_events: 10_000,
        rollover_max_events: 1_000_000,
        retention_max_files: u64::MAX,
        retention_max_total_bytes: u64::MAX,
        ..SinkConfig::default()
    };
    let mut sink = MemorySink::open(folder, config)?;
    let mut counts = BTreeMap::new();
    for run in runs {
        sink.start_session(Some(run.clone()))?;
        let mut result = Ok(());
        let mut count = 0;
        each_of(session, &run.session_id, |event| {
            result = sink.append(event);
            count += 1;
            result.is_ok()
        })?;
        result.with_context(|| format!("cannot write {folder:?}"))?;
        sink.close(run.status)?;
        counts.insert(run.session_id.clone(), count);
    }
    Ok(counts)
}

fn each_of(
    session: &Session,
    id: &str,
    mut take: impl FnMut(&MemoryEvent) -> bool,
) -> anyhow::Result<()> {
    session.memory_events(|event| match &*event.session_id == id && !take(&event) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    })?;
    Ok(())
}

/// What the samples say of the runs that they are of, by their first times.
fn runs(session: &Session) -> anyhow::Result<Vec<SessionSummary>> {
    let mut runs: BTreeMap<Arc<str>, SessionSummary> = BTreeMap::new();
    let mut too_many = false;
    session.memory_events(|event| {
        let stop = &*event.event_type == "stop";
        let full = runs.len() == MAX_RUNS;
        match runs.get_mut(&event.session_id) {
            Some(run) => {
                run.started_at_ns = run.started_at_ns.clone().min(event.timestamp_ns.clone());
                if stop {
                    end(run, &event.timestamp_ns);
                }
            }
            None if full => {
                too_many = true;
                return ControlFlow::Break(());
            }
            None => {
                let mut run = summary(&event);
                if stop {
                    end(&mut run, &event.timestamp_ns);
                }
                runs.insert(event.session_id.clone(), run);
            }
        }
        ControlFlow::Continue(())
    })?;
    if too_many {
        bail!(
            "session {} has samples of more than {MAX_RUNS} runs",
            session.meta().id
        );
    }
    let mut runs: Vec<SessionSummary> = runs.into_values().collect();
    runs.sort_by(|a, b| a.started_at_ns.cmp(&b.started_at_ns));
    Ok(runs)
}

fn summary(event: &MemoryEvent) -> SessionSummary {
    SessionSummary {
        session_id: event.session_id.clone(),
        status: SessionStatus::Incomplete,
        started_at_ns: event.timestamp_ns.clone(),
        ended_at_ns: None,
        host: event.host.clone(),
        pid: event.pid.clone(),
        job_id: event
            .identity
            .job_id
            .as_deref()
            .map_or(Value::Null, Value::from),
        rank: event.identity.rank.clone(),
        local_rank: event.identity.local_rank.clone(),
        world_size: event.identity.world_size.clone(),
        source: "warptrace.export".into(),
    }
}

fn end(run: &mut SessionSummary, at: &Int) {
    run.status = SessionStatus::Completed;
    run.ended_at_ns = Some(
        run.ended_at_ns
            .take()
            .map_or_else(|| at.clone(), |e| e.max(at.clone())),
    );
}
