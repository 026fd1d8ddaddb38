//! What a recording counts for metrics: calls, processes, devices, the machine, what was concluded, what was lost, and itself.
//!
//! It takes what passes by (events, units, findings, losses) and gives [`Family`]s when they are due. Counts are cumulative from the
//! begin of the recording on. What is told apart by something from outside (processes, codes of errors, communicators) is bounded; what
//! has no room is counted without it. It judges nothing; the metrics of inference are `model`'s, made of the engine's state.
//!
//! Cost: calls of most ops are counted by the backend, so a single one costs a match; a launch, a copy or a collective a look-up more.

mod calls;
mod collectives;
mod libraries;
mod machine;
mod own;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use warptrace_model::cost::{FindingCost, Prices};
use warptrace_model::metric::{
    Attribute, Explicit, Families, Family, Meter, Number, SERIES_LIMIT, attribute, metric,
};
use warptrace_model::{
    BootNanos, Cause, ClockAnchor, Event, Finding, FindingId, Gap, Loss, Object, Unit, UnixNanos,
};

use self::calls::Calls;
use self::collectives::Collectives;
use self::libraries::Libraries;
use self::machine::Machine;
pub(crate) use self::own::Own;

/// Findings whose last blame is remembered; a finding that is told again after so many others counts anew.
const FINDINGS: usize = 1024;

/// The counts of a recording.
pub(crate) struct Numbers {
    began: BootNanos,
    calls: Calls,
    collectives: Collectives,
    libraries: Libraries,
    machine: Machine,
    /// What is rare: losses, gaps, findings.
    meter: Meter,
    units: BTreeMap<&'static str, Explicit>,
    blamed: BTreeMap<FindingId, Vec<(Cause, u64)>>,
    /// Of `blamed`, the first that was told first.
    told: VecDeque<FindingId>,
    records: u64,
    annotations: u64,
}

impl Numbers {
    /// Counts from `began` on, which is `start` by the wall clock.
    pub(crate) fn new(began: BootNanos, start: UnixNanos) -> Numbers {
        Numbers {
            began,
            calls: Calls::default(),
            collectives: Collectives::new(start),
            libraries: Libraries::start(),
            machine: Machine::default(),
            meter: Meter::new(start, SERIES_LIMIT),
            units: BTreeMap::new(),
            blamed: BTreeMap::new(),
            told: VecDeque::new(),
            records: 0,
            annotations: 0,
        }
    }

    pub(crate) fn events(&mut self, events: &[Event], clock: ClockAnchor) {
        for event in events {
            match event {
                Event::Call(call) => {
                    self.records += 1;
                    self.calls.call(call);
                    if self.collectives.call(call, clock) {
                        self.libraries.called(call.thread.pid);
                    }
                }
                Event::Counts(count) => self.calls.counts(count),
                Event::OffCpu(e) => {
                    self.records += 1;
                    self.calls.off_cpu(e);
                }
                Event::Stretch(e) => {
                    self.records += 1;
                    self.calls.stretch(e);
                }
                Event::InFlight(_)
                | Event::Slice(_)
                | Event::BlockIo(_)
                | Event::Reclaim(_)
                | Event::Retransmit(_)
                | Event::Process(_) => self.records += 1,
                Event::ProcessInfo(process) => {
                    self.calls.process(process);
                    self.machine.world(process.world_size);
                    if process.in_job {
                        let pid = process.incarnation.pid;
                        self.libraries.process(pid, &process.name);
                    }
                }
                Event::System(sample) => self.machine.system(sample),
                Event::Gpu(sample) => self.machine.gpu(sample),
                Event::Annotation(_) => self.annotations += 1,
                Event::Lost(loss) => self.loss(loss),
                Event::ThreadName(_) | Event::FilePath(_) | Event::Capture(_) => {}
            }
        }
    }

    pub(crate) fn losses(&mut self, losses: &[Loss]) {
        losses.iter().for_each(|loss| self.loss(loss));
    }

    fn loss(&mut self, loss: &Loss) {
        let attributes = texts(&[
            (&attribute::ERROR_TYPE, loss.reason.name()),
            (&attribute::SOURCE, loss.source),
        ]);
        let n = i64::try_from(loss.count).unwrap_or(i64::MAX);
        // Both are of short lists: there is room.
        let _ = self.meter.add(&metric::AGENT_RECORD_DROPPED, attributes, n);
    }

    pub(crate) fn gaps(&mut self, gaps: &[Gap]) {
        for gap in gaps {
            let attributes = texts(&[(&attribute::GAP, gap.code.name())]);
            let n = i64::try_from(gap.count).unwrap_or(i64::MAX);
            let _ = self.meter.add(&metric::AGENT_GAP_COUNT, attributes, n);
        }
    }

    pub(crate) fn units(&mut self, units: &[Unit]) {
        for unit in units {
            let of = self.units.entry(unit.key.kind.name());
            let histogram = of.or_insert_with(|| Explicit::new(metric::UNIT_DURATION.bounds));
            histogram.record(unit.dur as f64 / 1e9);
        }
    }

    /// Findings as they are told: the same one again with what was added to it.
    pub(crate) fn findings(&mut self, findings: &[Finding]) {
        for finding in findings {
            let blame = finding.blame.iter().map(|b| (b.cause, b.ns)).collect();
            let before = self.blamed.insert(finding.id, blame);
            if before.is_none() {
                self.told.push_back(finding.id);
                let attributes = texts(&[
                    (
                        &attribute::SEVERITY,
                        &finding.severity.name().to_ascii_lowercase(),
                    ),
                    (&attribute::CAUSE, finding.cause.name()),
                ]);
                let _ = self.meter.add(&metric::FINDING_COUNT, attributes, 1);
            }
            for blame in &finding.blame {
                let told = before.iter().flatten().find(|(c, _)| *c == blame.cause);
                let new = blame.ns.saturating_sub(told.map_or(0, |(_, ns)| *ns));
                if new > 0 {
                    let attributes = texts(&[(&attribute::CAUSE, blame.cause.name())]);
                    let secs = new as f64 / 1e9;
                    let _ = self.meter.add_real(&metric::BLAME_TIME, attributes, secs);
                }
            }
            if self.told.len() > FINDINGS
                && let Some(oldest) = self.told.pop_front()
            {
                self.blamed.remove(&oldest);
            }
        }
    }

    /// What a finding cost on the devices that were sampled last; `provider` is what the machine says.
    pub(crate) fn cost<'a>(
        &'a self,
        finding: &Finding,
        prices: &'a Prices,
        provider: &'a str,
    ) -> Option<FindingCost<'a>> {
        let devices = self.machine.priced(finding.key.process.pid);
        prices.of(finding, provider, &devices)
    }

    /// All, as they are at `now`.
    pub(crate) fn families(
        &mut self,
        own: &Own,
        clock: ClockAnchor,
        now: BootNanos,
    ) -> Vec<Family> {
        let mut to = Families::new(clock.unix(self.began), clock.unix(now));
        self.calls.tell(&mut to);
        self.machine.tell(&mut to, now);
        self.libraries.tell(&mut to);
        for (kind, durations) in &self.units {
            let attributes = texts(&[(&attribute::UNIT_KIND, kind)]);
            let value = Number::Explicit(durations.clone());
            to.push(&metric::UNIT_DURATION, attributes, value);
        }
        let plain = |to: &mut Families, metric, n| to.push(metric, Object::new(), count(n));
        plain(&mut to, &metric::AGENT_RECORD_COUNT, self.records);
        plain(&mut to, &metric::ANNOTATION_COUNT, self.annotations);
        let refused = self.meter.refused() + self.collectives.refused();
        plain(&mut to, &metric::METRIC_REFUSED, refused);
        own.tell(&mut to, now.since(self.began));
        let mut families = to.finish();
        let at = clock.unix(now);
        families.extend(self.collectives.families(at));
        families.extend(self.meter.snapshot(Object::new(), at).families);
        families.retain(|family| !family.points.is_empty());
        families
    }
}

fn count(n: u64) -> Number {
    Number::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

fn texts(pairs: &[(&'static Attribute, &str)]) -> Object {
    let pairs = pairs
        .iter()
        .map(|(key, value)| (key.name.into(), (*value).into()));
    Object::from_pairs(pairs.collect())
}
