//! What goes out while a recording runs: outliers to consumers of a socket, metrics and spans to a collector, metrics for
//! Prometheus, alerts to people, and the job's own spans to where ours go.
//!
//! It wires: what is said is the engine's, how it is said `formats`', how it travels `export`'s. Nothing here waits for anybody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use warptrace_engine::{Engine, InferenceOutput};
use warptrace_export::alert::{Alerter, Raised, of_finding, of_outlier, of_shift, of_straggle};
use warptrace_export::{MetricSender, Scrape, SpanReceiver, SpanRelay, SpanSender, Stage};
use warptrace_formats::metrics::Names;
use warptrace_formats::otlp::{finding_span, outlier_span};
use warptrace_formats::outlier_stream::{Message, Node};
use warptrace_model::cost::{Micros, Prices};
use warptrace_model::inference::Outlier;
use warptrace_model::metric::{Snapshot, add_outlier_exemplars, inference_families};
use warptrace_model::{
    BootNanos, ClockAnchor, Event, Finding, FindingId, Gap, Loss, Object, SpanContext, Unit,
};

use crate::health::Health;
use crate::numbers::{Numbers, Own};
use crate::outliers::OutlierSocket;
use crate::servers::Servers;

/// How often the endpoint for Prometheus has new numbers.
const PUBLISH_EVERY_NANOS: u64 = 1_000_000_000;
/// A finding that was not told again for so long is over: its span goes out, which cannot be said twice.
const FINDING_OVER_NANOS: u64 = 60_000_000_000;
/// Findings that may not be over; of more the oldest is taken to be.
const FINDINGS: usize = 256;
/// The newest outliers, which metrics show as exemplars.
const EXEMPLARS: usize = 128;
/// How long what waits may take at the end, in all ways out at once: half of the 2 s in which a recording is to stop.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long what waits in a way that is given up may take, while the recording goes on.
const PATIENCE_BESIDE: Duration = Duration::from_secs(30);

/// The ways out, as far as they are wanted.
#[derive(Default)]
pub struct Outgoing {
    /// Who says it, in messages and alerts.
    pub node: Node,
    /// Whose metrics they are.
    pub resource: Object,
    pub names: Names,
    pub outliers: Option<OutlierSocket>,
    pub scrape: Option<Scrape>,
    /// Metrics to a collector, a snapshot each time this has passed.
    pub metrics: Option<(MetricSender, Duration)>,
    pub spans: Option<SpanSender>,
    /// Spans of the job, which go where ours do.
    pub receiver: Option<SpanReceiver>,
    /// There is one when there is a receiver.
    pub relay: Option<Arc<SpanRelay>>,
    pub alerts: Option<Alerter>,
    /// What findings cost, in spans and alerts.
    pub prices: Prices,
    /// Whose machine it is, as far as it says; else empty.
    pub provider: String,
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing")
            .field("node", &self.node)
            .field("outliers", &self.outliers)
            .field("scrape", &self.scrape)
            .finish_non_exhaustive()
    }
}

/// Other ways out, for a recording that runs.
#[derive(Debug, Default)]
pub struct NewOutgoing {
    pub outgoing: Outgoing,
    pub keep: Kept,
}

/// Ways that stay as they are, whatever the new ones say of them: an address or a path can be taken only once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kept {
    pub outliers: bool,
    pub scrape: bool,
    pub metrics: bool,
    pub spans: bool,
    pub receiver: bool,
    pub relay: bool,
    pub alerts: bool,
}

/// [`Outgoing`] at work.
pub(crate) struct Out {
    to: Outgoing,
    /// Ways that were given up, and still send.
    leaving: Vec<JoinHandle<()>>,
    began: BootNanos,
    published: BootNanos,
    pushed: BootNanos,
    /// Findings as they were told last, and when.
    findings: BTreeMap<FindingId, (BootNanos, Finding)>,
    outliers: Vec<Outlier>,
    numbers: Numbers,
    own: Own,
}

impl Out {
    pub(crate) fn new(
        to: Outgoing,
        began: BootNanos,
        clock: ClockAnchor,
        health: &Arc<Health>,
    ) -> Out {
        to.begin(health);
        Out {
            to,
            leaving: Vec::new(),
            began,
            published: began,
            pushed: began,
            findings: BTreeMap::new(),
            outliers: Vec::new(),
            numbers: Numbers::new(began, clock.unix(began)),
            own: Own::default(),
        }
    }

    /// What happened, and what of it was lost.
    pub(crate) fn events(&mut self, events: &[Event], clock: ClockAnchor) {
        self.numbers.events(events, clock);
    }

    /// What the engine made of it, besides findings, and how much is stored.
    pub(crate) fn settled(&mut self, units: &[Unit], stored_bytes: u64) {
        self.numbers.units(units);
        self.own.stored(stored_bytes);
    }

    pub(crate) fn losses(&mut self, losses: &[Loss]) {
        self.numbers.losses(losses);
    }

    pub(crate) fn gaps(&mut self, gaps: &[Gap]) {
        self.numbers.gaps(gaps);
    }

    /// Goes on with other ways out. Nothing that waits is lost, and nothing here waits for it.
    pub(crate) fn reload(&mut self, next: NewOutgoing, health: &Arc<Health>) {
        let NewOutgoing { outgoing, keep } = next;
        let mut old = std::mem::replace(&mut self.to, outgoing);
        let to = &mut self.to;
        macro_rules! keep {
            ($($way:ident)*) => {$(if keep.$way { to.$way = old.$way.take(); })*};
        }
        keep!(outliers scrape metrics spans receiver relay alerts);
        to.begin(health);
        self.own.leave(&old);
        self.leaving.retain(|leaving| !leaving.is_finished());
        let thread = Builder::new().name("wt-leaving".to_owned());
        let leaving = thread.spawn(move || old.close(Instant::now() + PATIENCE_BESIDE));
        match leaving {
            Ok(leaving) => self.leaving.push(leaving),
            Err(e) => tracing::warn!(error = %e, "what waited for the old ways out is lost"),
        }
    }

    /// What the engine concluded since the last time.
    pub(crate) fn tell(
        &mut self,
        inference: &InferenceOutput,
        findings: &[Finding],
        servers: Option<&Servers>,
        now: BootNanos,
        clock: ClockAnchor,
    ) {
        self.numbers.findings(findings);
        if self.to.spans.is_some() {
            for finding in findings {
                let told = (now, finding.clone());
                self.findings.insert(finding.id, told);
            }
            self.end_findings(now, clock);
        }
        self.outliers.extend(inference.outliers.iter().cloned());
        let old = self.outliers.len().saturating_sub(EXEMPLARS);
        self.outliers.drain(..old);
        let to = &self.to;
        if let Some(socket) = &to.outliers {
            for outlier in &inference.outliers {
                socket.tell(&Message::from(to.node.outlier(outlier, clock)));
            }
            for degradation in &inference.degradations {
                socket.tell(&Message::from(to.node.degradation(degradation, clock)));
            }
            let straggles = inference.straggles.iter();
            for message in straggles.filter_map(|s| to.node.straggle(s, clock)) {
                socket.tell(&Message::from(message));
            }
        }
        if let Some(spans) = &to.spans {
            for outlier in &inference.outliers {
                let server = servers.and_then(|servers| servers.facts(outlier.key.process.pid));
                spans.push(outlier_span(outlier, to.names, server.as_ref(), clock));
            }
        }
        if let Some(alerts) = &to.alerts {
            let (node, cluster) = (&to.node.node_id, &to.node.cluster_id);
            for finding in findings {
                let mut alert = of_finding(finding, "", &clock, node, cluster);
                if let Some(cost) = self.numbers.cost(finding, &to.prices, &to.provider) {
                    let hourly = cost
                        .cost
                        .per_hour
                        .map(|hourly| to.prices.rates.show(hourly));
                    let hourly =
                        hourly.map_or_else(String::new, |text| format!(", {text} an hour"));
                    let total = to.prices.rates.show(cost.cost.total);
                    alert.details.push(("cost".to_owned(), total + &hourly));
                }
                alerts.raise(alert);
            }
            for outlier in &inference.outliers {
                alerts.raise(of_outlier(outlier, &clock, node, cluster));
            }
            for shift in &inference.shifts {
                alerts.raise(of_shift(shift, &clock, node, cluster));
            }
            for straggle in &inference.straggles {
                match of_straggle(straggle, &clock, node, cluster) {
                    Raised::Alert(alert) => alerts.raise(alert),
                    Raised::Over(key) => alerts.over(&key),
                }
            }
        }
    }

    /// Spans of the findings that are over at `now`.
    fn end_findings(&mut self, now: BootNanos, clock: ClockAnchor) {
        let Some(spans) = &self.to.spans else {
            return;
        };
        loop {
            let oldest = self.findings.iter().min_by_key(|(_, (told, _))| *told);
            let Some((&id, (told, _))) = oldest else {
                return;
            };
            if now.since(*told) < FINDING_OVER_NANOS && self.findings.len() <= FINDINGS {
                return;
            }
            if let Some((_, finding)) = self.findings.remove(&id) {
                // The same finding of the same recording is the same span, wherever it is told.
                let context = SpanContext {
                    trace: u128::from(clock.unix(self.began).0) << 64 | u128::from(id.0),
                    span: id.0.max(1),
                };
                let mut span = finding_span(&finding, context, clock);
                if let Some(cost) = self
                    .numbers
                    .cost(&finding, &self.to.prices, &self.to.provider)
                {
                    let amount = |micros: Micros| micros.0 as f64 / 1e6;
                    let attributes = &mut span.attributes;
                    attributes.insert("warptrace.finding.cost.total", amount(cost.cost.total));
                    if let Some(hourly) = cost.cost.per_hour {
                        attributes.insert("warptrace.finding.cost.hourly", amount(hourly));
                    }
                    let currency = self.to.prices.rates.currency.as_str();
                    attributes.insert("warptrace.finding.cost.currency", currency);
                }
                spans.push(span);
            }
        }
    }

    /// Metrics, when it is time.
    pub(crate) fn tick(
        &mut self,
        now: BootNanos,
        engine: &Engine,
        servers: Option<&mut Servers>,
        clock: ClockAnchor,
    ) {
        self.end_findings(now, clock);
        let publish = self.to.scrape.is_some() && now.since(self.published) >= PUBLISH_EVERY_NANOS;
        let every = self.to.metrics.as_ref().map(|(_, every)| every.as_nanos());
        let push = every.is_some_and(|every| u128::from(now.since(self.pushed)) >= every);
        if !publish && !push {
            return;
        }
        let snapshot = Arc::new(self.snapshot(now, engine, servers, clock));
        if publish && let Some(scrape) = &self.to.scrape {
            self.published = now;
            scrape.publish(Arc::clone(&snapshot));
        }
        if push && let Some((sender, _)) = &self.to.metrics {
            self.pushed = now;
            sender.offer(snapshot);
        }
    }

    fn snapshot(
        &mut self,
        now: BootNanos,
        engine: &Engine,
        mut servers: Option<&mut Servers>,
        clock: ClockAnchor,
    ) -> Snapshot {
        let mut families = Vec::new();
        if let Some(inference) = engine.inference() {
            let state = inference.state();
            if let Some(servers) = &mut servers {
                servers.meet(state.workloads.iter().map(|w| w.key.process));
            }
            let known = |pid| servers.as_ref().and_then(|servers| servers.facts(pid));
            families = inference_families(&state, &known, clock, self.began, now);
            add_outlier_exemplars(&mut families, &self.outliers, &known, clock);
        }
        if let Some(servers) = &servers {
            families.extend(servers.families(clock));
            self.own.unanswered(servers.unanswered());
        }
        self.own.look(&self.to);
        families.extend(self.numbers.families(&self.own, clock, now));
        Snapshot {
            resource: self.to.resource.clone(),
            families,
        }
    }

    /// The last numbers, and what waits. It goes on beside the sealing of the session, on a thread that does not outlast its deadline.
    pub(crate) fn finish(
        mut self,
        now: BootNanos,
        engine: &Engine,
        servers: Option<&mut Servers>,
        clock: ClockAnchor,
    ) -> std::io::Result<JoinHandle<()>> {
        self.end_findings(now.plus(FINDING_OVER_NANOS), clock);
        let snapshot = Arc::new(self.snapshot(now, engine, servers, clock));
        let until = Instant::now() + PATIENCE;
        if let Some(scrape) = &self.to.scrape {
            scrape.publish(Arc::clone(&snapshot));
            scrape.set_stage(Stage::Stopping);
        }
        if let Some((sender, _)) = &self.to.metrics {
            sender.offer(snapshot);
        }
        let Out { to, leaving, .. } = self;
        let ended = Builder::new().name("wt-closing".to_owned()).spawn(move || {
            to.close(until);
            while Instant::now() < until && leaving.iter().any(|thread| !thread.is_finished()) {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        ended.inspect_err(|e| tracing::warn!(error = %e, "what waits is not sent"))
    }
}

impl Outgoing {
    fn begin(&self, health: &Arc<Health>) {
        if let Some(scrape) = &self.scrape {
            let health = Arc::clone(health);
            scrape.set_watch(move || health.check());
            scrape.set_names(self.names);
            scrape.set_stage(Stage::Ready);
        }
        if let (Some(receiver), Some(relay)) = (&self.receiver, &self.relay) {
            receiver.pass_to(Arc::clone(relay));
        }
    }

    /// Sends what waits by all ways at once: one that hangs takes nothing from the others.
    fn close(mut self, until: Instant) {
        // What still comes would wait for nobody.
        if let Some(receiver) = self.receiver.take() {
            let received = receiver.received();
            tracing::info!(?received, "the job's spans are taken no more");
        }
        let metrics = || {
            if let Some((sender, _)) = &self.metrics
                && !sender.close(until)
            {
                tracing::warn!(counts = ?sender.counts(), "not all metrics reached the collector");
            }
        };
        let spans = || {
            if let Some(spans) = &self.spans
                && !spans.close(until)
            {
                tracing::warn!(counts = ?spans.counts(), "not all spans reached the collector");
            }
        };
        let relay = || {
            if let Some(relay) = &self.relay
                && !relay.close(until)
            {
                let counts = relay.counts();
                tracing::warn!(?counts, "not all of the job's spans reached the collector");
            }
        };
        let alerts = || {
            if let Some(alerts) = &self.alerts
                && !alerts.close(until)
            {
                tracing::warn!(counts = ?alerts.counts(), "not all alerts were sent");
            }
        };
        std::thread::scope(|threads| {
            let ways: [&(dyn Fn() + Sync); 4] = [&metrics, &spans, &relay, &alerts];
            for way in ways {
                let thread = Builder::new().name("wt-closing".to_owned());
                if thread.spawn_scoped(threads, way).is_err() {
                    way();
                }
            }
            if let Some(socket) = self.outliers {
                let counts = socket.counts();
                if counts.queue_full + counts.unwritable > 0 {
                    tracing::warn!(?counts, "not all outliers were told");
                }
            }
        });
    }
}
