//! The engine over what was imported, as it would have been over the recording.
//!
//! The events are read back from the session that is being written, in the order in which they ended, and what is concluded
//! of them goes into the same session. An imported session's boot clock is Unix time, which is no uptime: for the engine it
//! begins shortly before the first event.

use std::collections::BTreeSet;

use anyhow::Context as _;
use warptrace_engine::{Engine, Output, Rules};
use warptrace_model::{BootNanos, Event, ProcessEvent, Window};
use warptrace_store::sqlite::Totals;
use warptrace_store::{Session, SessionWriter};

use super::Progress;

/// Time before the first event.
const LEAD_NANOS: u64 = 10_000_000_000;
/// Longest recording that is judged, four years; what is earlier counts as its begin.
const LONGEST_NANOS: u64 = 1 << 57;
/// Events between two looks at what the engine concluded.
const SETTLE_EVENTS: usize = 65_536;

/// Judges the events of `session`, which `writer` is writing: its units and findings, and exact counts of its calls, are
/// added. Switch records of the processes in `partly_switched` are not used. Returns whether there was a call.
pub(super) fn judge(
    writer: &mut SessionWriter,
    session: &Session,
    mut totals: Totals<'_>,
    partly_switched: &BTreeSet<u32>,
    (first, last): (u64, u64),
    progress: &Progress,
) -> anyhow::Result<bool> {
    let base = first
        .max(last.saturating_sub(LONGEST_NANOS))
        .saturating_sub(LEAD_NANOS);
    let mut engine = Engine::new(Rules::default());
    let mut events = session
        .events(None)
        .context("cannot read the session back")?;
    let mut batch = Vec::new();
    let (mut calls, mut done, mut now, mut unsettled) = (false, 0, 0, 0);
    while events.next_batch(&mut batch) {
        done += batch.len() as u64;
        unsettled += batch.len();
        for mut event in batch.drain(..) {
            match &event {
                Event::Call(call) => {
                    calls = true;
                    totals.call(call)?;
                }
                Event::OffCpu(o) if partly_switched.contains(&o.thread.pid.0) => continue,
                _ => {}
            }
            shift(&mut event, |at| at.minus(base));
            if let Some(end) = event.end() {
                now = now.max(end.0);
            }
            engine.push(event);
        }
        if unsettled >= SETTLE_EVENTS {
            unsettled = 0;
            // They come in order: all up to the last one is there.
            engine.advance(BootNanos(now));
            settle(writer, engine.drain(), base);
            writer.events(&totals.take(false)?);
            writer.tick(BootNanos(now.saturating_add(base)));
            progress.judged(done);
        }
    }
    engine.finish(BootNanos(now));
    settle(writer, engine.drain(), base);
    writer.events(&totals.take(true)?);
    writer.gaps(&totals.gaps());
    Ok(calls)
}

fn settle(writer: &mut SessionWriter, mut output: Output, base: u64) {
    let back = |at: BootNanos| at.plus(base);
    for unit in &mut output.units {
        unit.start = back(unit.start);
    }
    for finding in &mut output.findings {
        finding.window = moved(finding.window, back);
        for evidence in &mut finding.evidence {
            evidence.start = back(evidence.start);
        }
    }
    writer.units(&output.units);
    writer.findings(&output.findings);
    writer.gaps(&output.gaps);
    // What a process holds by its calls is not known where only some of them are stored: `output.memory` is left.
    let losses: Vec<Event> = output
        .losses
        .into_iter()
        .map(|mut loss| {
            loss.window = loss.window.map(|w| moved(w, back));
            Event::Lost(loss)
        })
        .collect();
    writer.events(&losses);
}

fn moved(window: Window, to: impl Fn(BootNanos) -> BootNanos) -> Window {
    Window {
        start: to(window.start),
        end: to(window.end),
    }
}

/// Moves every time of an event.
fn shift(event: &mut Event, to: impl Fn(BootNanos) -> BootNanos) {
    let set = |at: &mut BootNanos| *at = to(*at);
    match event {
        Event::Call(e) | Event::InFlight(e) => set(&mut e.start),
        Event::OffCpu(e) => set(&mut e.start),
        Event::Slice(e) => set(&mut e.start),
        Event::BlockIo(e) => set(&mut e.start),
        Event::Reclaim(e) => set(&mut e.start),
        Event::Stretch(e) => set(&mut e.start),
        Event::Retransmit(e) => set(&mut e.at),
        Event::Process(
            ProcessEvent::Born { at, .. }
            | ProcessEvent::ThreadBorn { at, .. }
            | ProcessEvent::Exec { at, .. }
            | ProcessEvent::Exit { at, .. }
            | ProcessEvent::ThreadExit { at, .. }
            | ProcessEvent::OomKill { at, .. },
        ) => set(at),
        Event::ProcessInfo(e) => set(&mut e.start),
        Event::Counts(e) => e.window = moved(e.window, to),
        Event::System(e) => set(&mut e.at),
        Event::Gpu(e) => set(&mut e.at),
        Event::Annotation(e) => {
            set(&mut e.at);
            e.span = e.span.map(|span| moved(span, to));
        }
        Event::Lost(e) => e.window = e.window.map(|w| moved(w, to)),
        Event::ThreadName(_) | Event::FilePath(_) => {}
    }
}
