//! The engine over what was imported, as it would have been over the recording.
//!
//! The events are read back from the session that is being written, in the order in which they ended, and what is concluded
//! of them goes into the same session. An imported session's boot clock is Unix time.

use std::collections::BTreeSet;

use anyhow::Context as _;
use warptrace_engine::{Engine, Output, Rules};
use warptrace_model::{BootNanos, Event};
use warptrace_store::sqlite::Totals;
use warptrace_store::{Session, SessionWriter};

use super::Progress;

/// Events between two looks at what the engine concluded.
const SETTLE_EVENTS: usize = 65_536;

/// Judges the events of `session`, which `writer` is writing: its units and findings, and exact counts of its calls, are
/// added. Switch records of the processes in `partly_switched` are not used. Returns whether there was a call.
pub(super) fn judge(
    writer: &mut SessionWriter,
    session: &Session,
    mut totals: Totals<'_>,
    partly_switched: &BTreeSet<u32>,
    progress: &Progress,
) -> anyhow::Result<bool> {
    let mut engine = Engine::new(Rules::default());
    let mut events = session
        .events(None)
        .context("cannot read the session back")?;
    let mut batch = Vec::new();
    let (mut calls, mut done, mut now, mut unsettled) = (false, 0, 0, 0);
    while events.next_batch(&mut batch) {
        done += batch.len() as u64;
        unsettled += batch.len();
        for event in batch.drain(..) {
            match &event {
                Event::Call(call) => {
                    calls = true;
                    totals.call(call)?;
                }
                Event::OffCpu(o) if partly_switched.contains(&o.thread.pid.0) => continue,
                _ => {}
            }
            if let Some(end) = event.end() {
                now = now.max(end.0);
            }
            engine.push(event);
        }
        if unsettled >= SETTLE_EVENTS {
            unsettled = 0;
            // They come in order: all up to the last one is there.
            engine.advance(BootNanos(now));
            settle(writer, engine.drain());
            writer.events(&totals.take(false)?);
            writer.tick(BootNanos(now));
            progress.judged(done);
        }
    }
    engine.finish(BootNanos(now));
    settle(writer, engine.drain());
    writer.events(&totals.take(true)?);
    writer.gaps(&totals.gaps());
    Ok(calls)
}

fn settle(writer: &mut SessionWriter, output: Output) {
    writer.units(&output.units);
    writer.findings(&output.findings);
    writer.gaps(&output.gaps);
    // What a process holds by its calls is not known where only some of them are stored: `output.memory` is left.
    let losses: Vec<Event> = output.losses.into_iter().map(Event::Lost).collect();
    writer.events(&losses);
}
