//! `replay`: the steps of inference servers in a session, judged again.
//!
//! A recording that went on over several sessions is judged from its first one on, as far as they are still there: what is usual was
//! learned there.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, bail};
use warptrace_engine::{Engine, Inference, InferenceOutput, Rules};
use warptrace_formats::outlier_stream::{Message, Node};
use warptrace_model::inference::{EventId, Outlier};
use warptrace_model::{BootNanos, GapCode};
use warptrace_store::Session;

use crate::args::{Global, ReplayArgs};
use crate::{config, inference, output, sessions};

/// Events between two looks at what the engine concluded.
const SETTLE_EVENTS: usize = 65_536;

/// `warptrace replay`.
pub(crate) fn run(global: &Global, args: &ReplayArgs) -> anyhow::Result<u8> {
    let folder = sessions::resolve(global, args.session.as_deref())?;
    let parts = parts_until(&folder)?;
    let asked = parts.last().context("no session")?;
    let meta = asked.meta();
    let first = parts.first().and_then(|part| part.meta().clock.first());
    let first = *first.context("the session has no clock")?;
    let begins = meta.clock.first().map_or(BootNanos(0), |clock| clock.boot);

    if let Some(one_in) = parts.iter().find_map(|part| part.meta().sample_one_in) {
        bail!(
            "this recording kept one event in {one_in} while all was well, so its steps cannot be judged again; the outliers that it found: \
             warptrace query 'select * from outliers'"
        );
    }
    let config = config::of_replay(args)?;
    let settings = inference::rules(&config.inference)?.with_clock(first);
    let rules = Rules {
        inference: true,
        ..Rules::default()
    };
    let mut engine = Engine::with_inference(rules, Inference::new(settings)?);
    let node = Node::default();
    let ids = |part: &Session| -> anyhow::Result<BTreeSet<EventId>> {
        Ok(part.outliers()?.iter().map(|o| o.id).collect())
    };
    // What ended in the last second of a session was judged, and is stored, in the next one.
    let here = ids(asked)?;
    let mut recorded = BTreeSet::new();
    for part in &parts {
        recorded.extend(ids(part)?);
    }
    let (mut found, mut told) = (BTreeSet::new(), 0);
    let mut tell = |output: InferenceOutput| -> anyhow::Result<()> {
        found.extend(output.outliers.iter().map(|o| o.id));
        let of_asked = |o: &&Outlier| o.at >= begins || here.contains(&o.id);
        for outlier in output.outliers.iter().filter(of_asked) {
            told += 1;
            let message = node.outlier(outlier, meta.anchor_at(outlier.at));
            if args.output.json {
                let mut line = Vec::new();
                Message::from(message).encode(&mut line)?;
                output::print(&String::from_utf8_lossy(&line))?;
            } else {
                output::print(&inference::shown(&message))?;
            }
        }
        Ok(())
    };
    let mut now = 0;
    for part in &parts {
        let (mut batch, mut unsettled) = (Vec::new(), 0);
        let mut events = part.events(None).context("cannot read the session")?;
        while events.next_batch(&mut batch) {
            unsettled += batch.len();
            for event in batch.drain(..) {
                if let Some(end) = event.end() {
                    now = now.max(end.0);
                }
                engine.push(event);
            }
            if unsettled >= SETTLE_EVENTS {
                unsettled = 0;
                engine.advance(BootNanos(now));
                tell(engine.drain().inference)?;
            }
        }
    }
    engine.finish(BootNanos(now));
    tell(engine.drain().inference)?;

    let steps = engine.inference().map_or(0, |i| i.state().steps);
    if !args.output.json {
        let what = match (found.len(), recorded.difference(&found).count()) {
            (n, 0) if n == recorded.len() => "as the recording found them".to_owned(),
            (n, missing) => format!(
                "{} of them the recording had not found, {missing} that it had are not among them",
                n + missing - recorded.len()
            ),
        };
        eprintln!(
            "{told} outliers of {steps} steps in session {}, {what}",
            meta.id
        );
        let was_paused = asked
            .gaps()?
            .iter()
            .any(|g| g.code == GapCode::CapturePaused);
        if was_paused {
            eprintln!(
                "warptrace: recording was switched off for a while, which a replay takes for slow steps"
            );
        }
    }
    Ok(0)
}

/// The session in `folder`, after those of the same recording that are before it and still there without a hole.
fn parts_until(folder: &Path) -> anyhow::Result<Vec<Session>> {
    let asked = sessions::open(folder)?;
    let part = asked.meta().part.clone();
    let mut parts = vec![asked];
    let (Some(part), Some(data)) = (part, folder.parent().and_then(Path::parent)) else {
        return Ok(parts);
    };
    let mut before: Vec<_> = sessions::all_in(data)?
        .into_iter()
        .filter_map(|summary| {
            let (meta, _) = summary.session.ok()?;
            let other = meta.part?;
            let is_before = other.recording == part.recording && other.number < part.number;
            is_before.then_some((other.number, summary.path))
        })
        .collect();
    before.sort();
    for (back, (number, path)) in before.iter().rev().enumerate() {
        if u64::from(*number) + back as u64 + 1 != u64::from(part.number) {
            break;
        }
        parts.insert(0, sessions::open(path)?);
    }
    if parts.len() < part.number as usize {
        let missing = part.number as usize - parts.len();
        eprintln!(
            "warptrace: the first {missing} sessions of this recording are gone: what was usual is learned from what is left"
        );
    }
    Ok(parts)
}
