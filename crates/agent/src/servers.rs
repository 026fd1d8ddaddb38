//! What inference servers say of themselves, beside what is seen of them: which process is which server, its newest metrics, and
//! evidence for findings.

use std::collections::BTreeMap;

use warptrace_capture::engines::{EngineProcess, EngineWatch, Report};
use warptrace_engine::Serving;
use warptrace_formats::serving::decode_scrape;
use warptrace_model::metric::{Family, ServerFacts, serving_families};
use warptrace_model::serving::{Engine, ServingReading};
use warptrace_model::{BootNanos, ClockAnchor, Finding, Incarnation, Loss, LossReason, Pid};

/// Processes of servers whose server is known; a server has as many as it has devices, and a few more.
const MEMBERS: usize = 4096;
/// Readings that are stored in a second; a server with a model gives twenty or so, each ten.
const ROWS_A_SECOND: usize = 4096;

/// Servers that are found by their command lines, and asked.
pub(crate) struct Servers {
    watch: EngineWatch,
    serving: Serving,
    answers: BTreeMap<Incarnation, Answer>,
    /// Whose process a process is; `None` for one that belongs to no server.
    members: BTreeMap<Incarnation, Option<EngineProcess>>,
    /// What was said in the second that is counted, and in how many readings.
    second: (u64, usize),
    left_out: u64,
}

/// What a server said, to be stored.
pub(crate) struct Said {
    pub(crate) at: BootNanos,
    pub(crate) process: Incarnation,
    pub(crate) engine: Engine,
    pub(crate) readings: Vec<ServingReading>,
}

/// The newest of a server.
struct Answer {
    engine: EngineProcess,
    readings: Vec<ServingReading>,
    /// Since when we know it; it counts since its start, which it does not say.
    since: BootNanos,
    at: BootNanos,
}

impl Servers {
    pub(crate) fn new(watch: EngineWatch) -> Servers {
        Servers {
            watch,
            serving: Serving::default(),
            answers: BTreeMap::new(),
            members: BTreeMap::new(),
            second: (0, 0),
            left_out: 0,
        }
    }

    /// Takes what was found and answered since the last time. Of what was said, gives back what there is room for.
    pub(crate) fn hear(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        for report in self.watch.poll() {
            match report {
                Report::Found(engine) => {
                    tracing::info!(
                        engine = engine.command.engine.name(),
                        pid = engine.incarnation.pid.0,
                        model = engine.command.model.as_deref().unwrap_or_default(),
                        "an inference server"
                    );
                    // Its processes may have been looked at before it was found.
                    self.members.clear();
                }
                Report::Gone(process) => {
                    self.answers.remove(&process);
                    self.members.clear();
                }
                Report::Scraped { engine, at, body } => {
                    let scrape = decode_scrape(engine.command.engine, &body);
                    let process = engine.incarnation;
                    self.serving.answered(process, at, &scrape.readings);
                    let second = at.0 / 1_000_000_000;
                    if self.second.0 != second {
                        self.second = (second, 0);
                    }
                    let room = ROWS_A_SECOND.saturating_sub(self.second.1);
                    let stored = scrape.readings.len().min(room);
                    self.second.1 += stored;
                    self.left_out += (scrape.readings.len() - stored) as u64;
                    said.push(Said {
                        at,
                        process,
                        engine: engine.command.engine,
                        readings: scrape.readings[..stored].to_vec(),
                    });
                    let since = self.answers.get(&process).map_or(at, |a| a.since);
                    let answer = Answer {
                        engine,
                        readings: scrape.readings,
                        since,
                        at,
                    };
                    self.answers.insert(process, answer);
                }
                Report::Unreachable { engine, why } => {
                    tracing::warn!(
                        engine = engine.command.engine.name(),
                        pid = engine.incarnation.pid.0,
                        why = why.name(),
                        "an inference server gives no metrics"
                    );
                }
            }
        }
        said
    }

    /// Readings that were not given back since the last time.
    pub(crate) fn left_out(&mut self) -> Option<Loss> {
        let count = std::mem::take(&mut self.left_out);
        (count > 0).then_some(Loss {
            source: "agent",
            reason: LossReason::RateLimited,
            count,
            window: None,
            pid: None,
        })
    }

    /// Adds what the server said around each finding about one of its processes.
    pub(crate) fn explain(&mut self, findings: &mut [Finding]) {
        for finding in findings {
            if let Some(engine) = self.engine_of(finding.key.process) {
                let said = self.serving.evidence(engine.incarnation, finding.window);
                finding.evidence.extend(said);
            }
        }
    }

    /// Looks the servers of these processes up, so that [`Servers::facts`] knows them.
    pub(crate) fn meet(&mut self, processes: impl Iterator<Item = Incarnation>) {
        for process in processes {
            let _ = self.engine_of(process);
        }
    }

    pub(crate) fn facts(&self, pid: Pid) -> Option<ServerFacts> {
        let mut of = self.members.iter().filter(|(member, _)| member.pid == pid);
        let engine = of.find_map(|(_, engine)| engine.as_ref())?;
        Some(ServerFacts {
            engine: engine.command.engine,
            model: engine.command.model.clone(),
        })
    }

    fn engine_of(&mut self, process: Incarnation) -> Option<EngineProcess> {
        if let Some(known) = self.members.get(&process) {
            return known.clone();
        }
        if self.members.len() >= MEMBERS {
            self.members.clear();
        }
        let engine = self.watch.engine_of(process);
        self.members.insert(process, engine.clone());
        engine
    }

    /// Questions that had no answer, by why.
    pub(crate) fn unanswered(&self) -> Vec<(&'static str, u64)> {
        self.watch.counts().failed
    }

    /// What the servers say, as metrics.
    pub(crate) fn families(&self, clock: ClockAnchor) -> Vec<Family> {
        let mut all: Vec<Family> = Vec::new();
        for (process, answer) in &self.answers {
            let engine = answer.engine.command.engine;
            let (since, at) = (clock.unix(answer.since), clock.unix(answer.at));
            let of_one = serving_families(&answer.readings, engine, Some(process.pid), since, at);
            for family in of_one {
                let same = |known: &&mut Family| std::ptr::eq(known.metric, family.metric);
                match all.iter_mut().find(same) {
                    Some(known) => known.points.extend(family.points),
                    None => all.push(family),
                }
            }
        }
        all
    }
}
