//! What `trace` shows while it runs: a table in a terminal, JSON lines elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use warptrace_agent::Recording;
use warptrace_capture::clock;
use warptrace_model::{ClockAnchor, Event};
use warptrace_tui::{Action, Tui};

use crate::config::JsonLines;
use crate::output;

pub(super) type Tap = (Option<SyncSender<Vec<Event>>>, Option<Receiver<Vec<Event>>>);

pub(super) fn tap(json: JsonLines) -> Tap {
    if json == JsonLines::Events {
        let (sender, receiver) = sync_channel(256);
        (Some(sender), Some(receiver))
    } else {
        (None, None)
    }
}

/// Between two looks at the recording, which publishes as often.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What `trace` shows: a table in a terminal, JSON lines elsewhere.
pub(super) struct Screen {
    tui: Option<Tui>,
    lines: Option<Lines>,
    drawn: Option<Instant>,
}

struct Lines {
    events: Option<Receiver<Vec<Event>>>,
    anchor: ClockAnchor,
    status: Instant,
    heartbeat: Duration,
    looked: Option<Instant>,
    findings: Vec<(String, u64)>,
}

impl Screen {
    /// Status lines are `heartbeat` apart.
    pub(super) fn start(
        json: JsonLines,
        heartbeat: Duration,
        events: Option<Receiver<Vec<Event>>>,
    ) -> Screen {
        let terminal = std::io::stdout().is_terminal() && json == JsonLines::Off;
        let lines = (!terminal).then(|| Lines {
            events,
            anchor: clock::anchor(),
            status: Instant::now(),
            heartbeat,
            looked: None,
            findings: Vec::new(),
        });
        Screen {
            tui: if terminal { Tui::start().ok() } else { None },
            lines,
            drawn: None,
        }
    }

    pub(super) fn draw(&mut self, recording: &Recording) -> anyhow::Result<Action> {
        if let Some(lines) = &mut self.lines {
            lines.write(recording)?;
            return Ok(Action::Continue);
        }
        if self.drawn.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return Ok(Action::Continue);
        }
        self.drawn = Some(Instant::now());
        match &mut self.tui {
            Some(tui) => Ok(tui.draw(&recording.live())?),
            None => Ok(Action::Continue),
        }
    }

    /// Whether it is a table, in a terminal.
    pub(super) fn is_table(&self) -> bool {
        self.tui.is_some()
    }

    /// Status lines are so far apart from now on.
    pub(super) fn set_heartbeat(&mut self, heartbeat: Duration) {
        if let Some(lines) = &mut self.lines {
            lines.heartbeat = heartbeat;
        }
    }

    /// Gives the terminal back.
    pub(super) fn close(&mut self) {
        self.tui = None;
    }

    /// Prints events that came while stopping.
    pub(super) fn rest(&mut self) {
        if let Some(lines) = &mut self.lines {
            let _ = lines.events();
        }
    }
}

impl Lines {
    fn write(&mut self, recording: &Recording) -> anyhow::Result<()> {
        self.events()?;
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let live = recording.live();
        // Of what is not shown any more nothing new is told either.
        let shown = |id: &String| live.findings.iter().any(|finding| finding.id == *id);
        self.findings.retain(|(id, _)| shown(id));
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
        if self.status.elapsed() >= self.heartbeat {
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
fn event_json(event: &Event, anchor: &ClockAnchor) -> Option<serde_json::Value> {
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
