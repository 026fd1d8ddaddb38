//! What the recorder says of itself: what it sent and could not send, what waits, what it costs.

use std::collections::BTreeMap;

use warptrace_export::alert::Alerter;
use warptrace_export::{Counts, DropReason, MetricSender, SpanRelay, SpanSender};
use warptrace_model::Object;
use warptrace_model::metric::{Families, Metric, Number, attribute, metric};

use super::{count, texts};
use crate::outgoing::Outgoing;
use crate::outliers::OutlierSocket;

/// Clock ticks a second of `/proc`: `USER_HZ`, 100 on every architecture that Linux runs CUDA on.
const TICKS_PER_SEC: f64 = 100.0;

/// Counts of ways out, where ways were given up for others while the recording ran.
#[derive(Default)]
pub(crate) struct Own {
    /// Of those that were given up.
    before: Tally,
    now: Tally,
    levels: Vec<(&'static Metric, u64)>,
    /// Bytes of the session that is written.
    store_bytes: u64,
    /// Questions to inference servers that had no answer, by why.
    unanswered: Vec<(&'static str, u64)>,
}

/// By metric and `error.type`, which is empty on success.
#[derive(Default, Clone)]
struct Tally(BTreeMap<(&'static str, &'static str), (u64, Option<&'static Metric>)>);

impl Tally {
    fn add(&mut self, metric: &'static Metric, error: &'static str, n: u64) {
        let cell = self.0.entry((metric.name, error)).or_default();
        *cell = (cell.0 + n, Some(metric));
    }

    fn exported(&mut self, metric: &'static Metric, counts: &Counts) {
        self.add(metric, "", counts.sent);
        self.add(metric, "rejected", counts.rejected);
        for reason in DropReason::ALL {
            self.add(metric, reason.as_str(), counts.dropped(reason));
        }
    }

    fn outliers(&mut self, socket: &OutlierSocket) {
        let counts = socket.counts();
        for (error, n) in [
            ("no_consumer", counts.no_consumer),
            ("queue_full", counts.queue_full),
            ("unwritable", counts.unwritable),
        ] {
            self.add(&metric::STREAM_DROPPED, error, n);
        }
    }

    fn alerts(&mut self, alerter: &Alerter) {
        let counts = alerter.counts();
        self.add(&metric::ALERT_COUNT, "too_many", counts.dropped);
        for receiver in &counts.receivers {
            let counts = &receiver.counts;
            self.add(&metric::ALERT_COUNT, "", counts.sent);
            self.add(&metric::ALERT_COUNT, "queue_full", counts.queue_full);
            self.add(&metric::ALERT_COUNT, "refused", counts.refused);
        }
    }
}

impl Own {
    /// Looks at the ways out.
    pub(crate) fn look(&mut self, to: &Outgoing) {
        self.now = Tally::default();
        self.levels.clear();
        let waiting = |counts: Counts| counts.pending;
        if let Some((sender, _)) = &to.metrics {
            self.now.exported(&metric::EXPORT_POINTS, &sender.counts());
            let points = waiting(MetricSender::counts(sender));
            self.levels.push((&metric::EXPORT_POINTS_WAITING, points));
        }
        // Ours, and those of the job.
        let spans = to.spans.as_ref().map(SpanSender::counts);
        let passed_on = to.relay.as_deref().map(SpanRelay::counts);
        let mut spans_waiting = None;
        for counts in spans.into_iter().chain(passed_on) {
            self.now.exported(&metric::EXPORT_SPANS, &counts);
            *spans_waiting.get_or_insert(0) += waiting(counts);
        }
        if let Some(spans) = spans_waiting {
            self.levels.push((&metric::EXPORT_SPANS_WAITING, spans));
        }
        if let Some(receiver) = &to.receiver {
            let received = receiver.received();
            let requests = &metric::RECEIVE_REQUEST_COUNT;
            self.now.add(requests, "", received.requests);
            for (why, n) in received.refused {
                self.now.add(requests, why, n);
            }
        }
        if let Some(alerts) = &to.alerts {
            self.now.alerts(alerts);
            let receivers = alerts.counts().receivers;
            let waiting = receivers.iter().map(|r| r.counts.waiting).sum();
            self.levels.push((&metric::ALERT_WAITING, waiting));
        }
        if let Some(socket) = &to.outliers {
            self.now.outliers(socket);
            let consumers = socket.consumers() as u64;
            self.levels.push((&metric::STREAM_CONSUMERS, consumers));
        }
    }

    /// These ways are given up: what they counted stays counted.
    pub(crate) fn leave(&mut self, old: &Outgoing) {
        self.look(old);
        let now = std::mem::take(&mut self.now);
        for ((_, error), (n, metric)) in now.0 {
            if let Some(metric) = metric {
                self.before.add(metric, error, n);
            }
        }
        self.levels.clear();
    }

    pub(crate) fn stored(&mut self, bytes: u64) {
        self.store_bytes = bytes;
    }

    pub(crate) fn unanswered(&mut self, by_reason: Vec<(&'static str, u64)>) {
        self.unanswered = by_reason;
    }

    /// `uptime_nanos` is since the recording began.
    pub(super) fn tell(&self, to: &mut Families, uptime_nanos: u64) {
        let mut all = self.before.clone();
        for ((_, error), (n, metric)) in &self.now.0 {
            if let Some(metric) = metric {
                all.add(metric, error, *n);
            }
        }
        for ((_, error), (n, metric)) in all.0 {
            let attributes = match error {
                "" => Object::new(),
                error => texts(&[(&attribute::ERROR_TYPE, error)]),
            };
            if let Some(metric) = metric {
                to.push(metric, attributes, count(n));
            }
        }
        for (metric, level) in &self.levels {
            to.push(metric, Object::new(), count(*level));
        }
        for (why, n) in &self.unanswered {
            let attributes = texts(&[(&attribute::ERROR_TYPE, why)]);
            to.push(&metric::SERVING_SCRAPE_FAILED, attributes, count(*n));
        }
        to.push(&metric::STORE_SIZE, Object::new(), count(self.store_bytes));
        let uptime = Number::Double(uptime_nanos as f64 / 1e9);
        to.push(&metric::PROCESS_UPTIME, Object::new(), uptime);
        let read = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
        if let Some(modes) = cpu_secs(&read("/proc/self/stat")) {
            for (mode, secs) in ["user", "system"].into_iter().zip(modes) {
                let attributes = texts(&[(&attribute::CPU_MODE, mode)]);
                to.push(&metric::PROCESS_CPU_TIME, attributes, Number::Double(secs));
            }
        }
        if let Some(bytes) = resident_bytes(&read("/proc/self/status")) {
            to.push(&metric::PROCESS_MEMORY_USAGE, Object::new(), count(bytes));
        }
    }
}

/// User and system time of a `/proc/PID/stat`, fields 14 and 15; the name before them may hold anything.
fn cpu_secs(stat: &str) -> Option<[f64; 2]> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut ticks = rest.split_ascii_whitespace().skip(11);
    let mut secs = || Some(ticks.next()?.parse::<u64>().ok()? as f64 / TICKS_PER_SEC);
    Some([secs()?, secs()?])
}

/// `VmRSS` of a `/proc/PID/status`.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_memory_are_read_whatever_the_name_of_the_program() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 9 0 0 0 250 50 0 0 20 0 1 0 5 0 0";
        assert_eq!(cpu_secs(stat), Some([2.5, 0.5]));
        assert_eq!(cpu_secs("7 (a"), None);
        let status = "Name:\ta\nVmRSS:\t    1536 kB\n";
        assert_eq!(resident_bytes(status), Some(1_572_864));
    }
}
