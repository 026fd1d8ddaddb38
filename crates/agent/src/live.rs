//! Keeps what the live view shows, from what passes by. All of it is bounded: it holds ten seconds of host context,
//! the findings and gaps so far, and one number a loss reason.

use std::collections::{BTreeMap, HashMap, VecDeque};

use warptrace_api::{Drop, Finding, Gap as GapAnswer, HostContext, Live, LiveOp, command_text};
use warptrace_engine::{Engine, OpStats};
use warptrace_model::{
    BootNanos, ClockAnchor, Event, FileType, Finding as ModelFinding, Gap, Loss, Pid, SystemSample,
    Thread,
};

/// Width of the live view's window.
const WINDOW_NANOS: u64 = 10_000_000_000;
/// Names of threads kept for the occupants' line.
const MAX_NAMES: usize = 16_384;
/// Findings and gaps kept for the view; the session has them all.
const MAX_SHOWN: usize = 64;

pub(crate) struct LiveState {
    target: String,
    session: String,
    sources: Vec<&'static str>,
    began: BootNanos,
    anchor: ClockAnchor,
    /// One second of host context each.
    host: VecDeque<(u64, HostSecond)>,
    names: HashMap<Thread, Box<str>>,
    commands: HashMap<Pid, String>,
    system: Option<SystemSample>,
    drops: BTreeMap<(&'static str, &'static str), u64>,
    gaps: BTreeMap<(&'static str, String), u64>,
    findings: Vec<ModelFinding>,
}

#[derive(Default)]
struct HostSecond {
    context: HostContext,
    occupants: HashMap<Thread, u64>,
}

impl LiveState {
    pub(crate) fn new(target: String, session: String, sources: Vec<&'static str>) -> LiveState {
        let anchor = warptrace_capture::clock::anchor();
        LiveState {
            target,
            session,
            sources,
            began: anchor.boot,
            anchor,
            host: VecDeque::new(),
            names: HashMap::new(),
            commands: HashMap::new(),
            system: None,
            drops: BTreeMap::new(),
            gaps: BTreeMap::new(),
            findings: Vec::new(),
        }
    }

    /// What is recorded goes to another session from now on.
    pub(crate) fn session(&mut self, id: &str) {
        id.clone_into(&mut self.session);
    }

    pub(crate) fn events(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::OffCpu(e) => {
                    let second = self.second(e.start.plus(e.dur));
                    second.context.switches += 1;
                    second.context.run_queue_ns += e.runnable - e.throttled;
                    second.context.quota_ns += e.throttled;
                    let blocked = e.dur - e.runnable;
                    second.context.blocked_ns += blocked;
                    if e.iowait || e.file == FileType::Regular {
                        second.context.disk_ns += blocked;
                    }
                }
                Event::Stretch(e) => {
                    let second = self.second(e.start.plus(e.dur));
                    second.context.run_queue_ns += e.runnable - e.throttled;
                    second.context.quota_ns += e.throttled;
                    second.context.blocked_ns += e.dur.saturating_sub(e.running + e.runnable);
                }
                Event::Slice(e) if e.thread.tid.0 != 0 => {
                    *self
                        .second(e.start.plus(e.dur))
                        .occupants
                        .entry(e.thread)
                        .or_default() += e.dur;
                }
                Event::Reclaim(e) => self.second(e.start.plus(e.dur)).context.reclaim_ns += e.dur,
                Event::BlockIo(e) => self.second(e.start.plus(e.dur)).context.block_io += 1,
                Event::Retransmit(e) => self.second(e.at).context.retransmits += 1,
                Event::ThreadName(e) => {
                    if self.names.len() >= MAX_NAMES {
                        self.names.clear();
                    }
                    self.names.insert(e.thread, e.name.clone());
                }
                Event::ProcessInfo(e) => {
                    if self.commands.len() >= MAX_NAMES {
                        self.commands.clear();
                    }
                    self.commands
                        .insert(e.incarnation.pid, command_text(&e.command));
                }
                Event::System(e) => self.system = Some(**e),
                Event::Lost(e) => self.losses(&[*e]),
                _ => {}
            }
        }
    }

    pub(crate) fn losses(&mut self, losses: &[Loss]) {
        for loss in losses {
            *self
                .drops
                .entry((loss.source, loss.reason.name()))
                .or_default() += loss.count;
        }
    }

    pub(crate) fn gaps(&mut self, gaps: &[Gap]) {
        for gap in gaps {
            if self.gaps.len() < MAX_SHOWN
                || self
                    .gaps
                    .contains_key(&(gap.code.name(), gap.detail.clone()))
            {
                *self
                    .gaps
                    .entry((gap.code.name(), gap.detail.clone()))
                    .or_default() += gap.count;
            }
        }
    }

    pub(crate) fn findings(&mut self, findings: Vec<ModelFinding>) {
        for finding in findings {
            match self.findings.iter_mut().find(|f| f.id == finding.id) {
                Some(old) => *old = finding,
                None => self.findings.push(finding),
            }
        }
        self.findings.sort_by(|a, b| {
            b.severity
                .cmp(&a.severity)
                .then(b.excess_ns.cmp(&a.excess_ns))
                .then(a.id.cmp(&b.id))
        });
        self.findings.truncate(MAX_SHOWN);
    }

    fn second(&mut self, at: BootNanos) -> &mut HostSecond {
        let second = at.0 / 1_000_000_000;
        let newest = self.host.back().map_or(second, |(s, _)| *s);
        if second >= newest {
            if self.host.back().is_none_or(|(s, _)| *s != second) {
                self.host.push_back((second, HostSecond::default()));
            }
            while self.host.len() > (WINDOW_NANOS / 1_000_000_000) as usize {
                self.host.pop_front();
            }
        }
        let index = self
            .host
            .iter()
            .position(|(s, _)| *s >= second)
            .unwrap_or(0);
        &mut self.host[index].1
    }

    pub(crate) fn snapshot(&mut self, now: BootNanos, engine: &Engine) -> Live {
        let recent = engine.ops_window();
        let mut ops: Vec<LiveOp> = engine
            .ops()
            .iter()
            .map(|all| {
                let window = recent.iter().find(|w| w.key == all.key);
                live_op(all, window)
            })
            .collect();
        ops.sort_by(|a, b| {
            b.wall_share
                .total_cmp(&a.wall_share)
                .then(b.count.cmp(&a.count))
        });
        Live {
            session: self.session.clone(),
            target: self.target.clone(),
            sources: self.sources.clone(),
            elapsed_ns: now.since(self.began),
            records: 0,
            calls: ops.iter().map(|op| op.count).sum(),
            window_ns: WINDOW_NANOS.min(now.since(self.began)),
            ops,
            host: self.host_context(now),
            system: self.system,
            drops: self
                .drops
                .iter()
                .map(|((source, reason), count)| Drop {
                    source: (*source).into(),
                    reason: (*reason).into(),
                    count: *count,
                })
                .collect(),
            gaps: self
                .gaps
                .iter()
                .map(|((code, detail), count)| GapAnswer {
                    code,
                    detail: detail.clone(),
                    count: *count,
                })
                .collect(),
            findings: self
                .findings
                .iter()
                .map(|f| {
                    let command = self
                        .commands
                        .get(&f.key.process.pid)
                        .map_or("", String::as_str);
                    Finding::from_model(f, &self.anchor, command)
                })
                .collect(),
        }
    }

    fn host_context(&self, now: BootNanos) -> HostContext {
        let oldest = now.minus(WINDOW_NANOS).0 / 1_000_000_000;
        let mut sum = HostContext::default();
        let mut occupants: HashMap<Thread, u64> = HashMap::new();
        for (_, second) in self.host.iter().filter(|(s, _)| *s >= oldest) {
            let c = &second.context;
            sum.run_queue_ns += c.run_queue_ns;
            sum.quota_ns += c.quota_ns;
            sum.blocked_ns += c.blocked_ns;
            sum.disk_ns += c.disk_ns;
            sum.reclaim_ns += c.reclaim_ns;
            sum.switches += c.switches;
            sum.block_io += c.block_io;
            sum.retransmits += c.retransmits;
            for (thread, ns) in &second.occupants {
                *occupants.entry(*thread).or_default() += ns;
            }
        }
        sum.occupants = occupants
            .into_iter()
            .map(|(thread, ns)| {
                let name = self
                    .names
                    .get(&thread)
                    .map_or_else(|| "?".to_owned(), |n| n.to_string());
                (name, thread.pid.0, ns)
            })
            .collect();
        sum.occupants
            .sort_by(|a, b| b.2.cmp(&a.2).then(a.1.cmp(&b.1)));
        sum.occupants.truncate(5);
        sum
    }
}

fn live_op(all: &OpStats, window: Option<&OpStats>) -> LiveOp {
    let shown = window.unwrap_or(all);
    let quantile = |q| shown.durations.quantile(q).unwrap_or(0);
    let (p50, p99) = (quantile(0.5), quantile(0.99));
    let op = all.key.op.get();
    LiveOp {
        layer: op.source.name(),
        op: op.name,
        pid: all.key.pid.0,
        device: all.key.device.map(|d| d.0),
        count: all.count,
        recent: window.map_or(0, |w| w.count),
        p50_ns: p50,
        p95_ns: quantile(0.95),
        p99_ns: p99,
        wall_share: window.map_or(0.0, |w| w.total as f64 / WINDOW_NANOS as f64),
        tail: shown.count > 10 && p99 > 3 * p50,
    }
}
