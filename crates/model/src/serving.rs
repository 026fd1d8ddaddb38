//! What inference servers say of themselves: which engine one is, and the measurements that it publishes, under one set of
//! names whatever the engine.
//!
//! Names are OpenTelemetry's semantic conventions for generative AI (1.37, status *development*) where they have one, else in
//! the namespace `warptrace.serving`. It knows no engine's own names and no text format: `formats` reads those, `capture` finds
//! and asks the engines.

use std::fmt;

/// A server of language models (or of any model, for Triton).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Engine {
    Vllm,
    Sglang,
    /// Hugging Face's text-generation-inference.
    Tgi,
    /// NVIDIA's Triton Inference Server.
    Triton,
}

impl Engine {
    pub const ALL: [Engine; 4] = [Engine::Vllm, Engine::Sglang, Engine::Tgi, Engine::Triton];

    /// As the value of `gen_ai.provider.name` (`gen_ai.system` until 1.36).
    pub const fn name(self) -> &'static str {
        match self {
            Engine::Vllm => "vllm",
            Engine::Sglang => "sglang",
            Engine::Tgi => "tgi",
            Engine::Triton => "triton",
        }
    }

    pub fn by_name(name: &str) -> Option<Engine> {
        Engine::ALL.into_iter().find(|e| e.name() == name)
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is measured. Durations are in seconds, whatever the engine counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServingMetric {
    /// From a request's arrival to its first token.
    TimeToFirstToken,
    /// Between two tokens of a response, after the first.
    TimePerOutputToken,
    /// From a request's arrival to its last token.
    RequestDuration,
    /// The part of a request that is prefill.
    PrefillDuration,
    /// The part of a request that is decode.
    DecodeDuration,
    /// The part of a request that is waiting to be scheduled.
    QueueDuration,
    /// The part of a request that is checking and tokenising it.
    ValidationDuration,
    /// One forward pass of a batch.
    BatchDuration,
    InputTokens,
    OutputTokens,
    /// Requests in the running batch.
    RequestsRunning,
    /// Requests that wait to be scheduled.
    RequestsQueued,
    BatchSize,
    /// Of the memory kept for the key-value cache, the part in use: 0..1.
    KvCacheUtilization,
    /// Tokens looked up in the prefix cache.
    PrefixCacheQueries,
    /// Tokens found there.
    PrefixCacheHits,
    /// The same as a fraction, of engines that give only that: 0..1.
    PrefixCacheHitRatio,
    /// Requests thrown out of the running batch for want of cache, to be computed again.
    Preemptions,
    RequestsSucceeded,
    RequestsFailed,
    /// Tokens of a draft model that were right.
    DraftTokensAccepted,
    /// Tokens of a draft model.
    DraftTokensProposed,
}

/// How values of a metric are to be read, in OpenTelemetry's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServingKind {
    Histogram,
    /// Only grows, from an engine's start on.
    Counter,
    /// A level that can be added over series.
    UpDownCounter,
    /// A fraction.
    Gauge,
}

impl ServingMetric {
    pub const ALL: [ServingMetric; 22] = [
        ServingMetric::TimeToFirstToken,
        ServingMetric::TimePerOutputToken,
        ServingMetric::RequestDuration,
        ServingMetric::PrefillDuration,
        ServingMetric::DecodeDuration,
        ServingMetric::QueueDuration,
        ServingMetric::ValidationDuration,
        ServingMetric::BatchDuration,
        ServingMetric::InputTokens,
        ServingMetric::OutputTokens,
        ServingMetric::RequestsRunning,
        ServingMetric::RequestsQueued,
        ServingMetric::BatchSize,
        ServingMetric::KvCacheUtilization,
        ServingMetric::PrefixCacheQueries,
        ServingMetric::PrefixCacheHits,
        ServingMetric::PrefixCacheHitRatio,
        ServingMetric::Preemptions,
        ServingMetric::RequestsSucceeded,
        ServingMetric::RequestsFailed,
        ServingMetric::DraftTokensAccepted,
        ServingMetric::DraftTokensProposed,
    ];

    /// `(name, kind, unit, name in ingero 0.17.0)`; the last is empty where that has none.
    const fn row(self) -> (&'static str, ServingKind, &'static str, &'static str) {
        use ServingKind::{Counter, Gauge, Histogram, UpDownCounter};
        match self {
            ServingMetric::TimeToFirstToken => (
                "gen_ai.server.time_to_first_token",
                Histogram,
                "s",
                "gen_ai.client.operation.time_to_first_token",
            ),
            ServingMetric::TimePerOutputToken => (
                "gen_ai.server.time_per_output_token",
                Histogram,
                "s",
                "gen_ai.server.time_per_output_token",
            ),
            ServingMetric::RequestDuration => (
                "gen_ai.server.request.duration",
                Histogram,
                "s",
                "gen_ai.client.operation.duration",
            ),
            ServingMetric::PrefillDuration => (
                "warptrace.serving.request.prefill.duration",
                Histogram,
                "s",
                "gen_ai.server.request.duration.prefill",
            ),
            ServingMetric::DecodeDuration => (
                "warptrace.serving.request.decode.duration",
                Histogram,
                "s",
                "gen_ai.server.request.duration.decode",
            ),
            ServingMetric::QueueDuration => (
                "warptrace.serving.request.queue.duration",
                Histogram,
                "s",
                "gen_ai.server.queue.duration",
            ),
            ServingMetric::ValidationDuration => (
                "warptrace.serving.request.validation.duration",
                Histogram,
                "s",
                "gen_ai.server.validation.duration",
            ),
            ServingMetric::BatchDuration => (
                "warptrace.serving.batch.duration",
                Histogram,
                "s",
                "gen_ai.server.request.duration.batch",
            ),
            ServingMetric::InputTokens => (
                "warptrace.serving.token.input",
                Counter,
                "{token}",
                "gen_ai.client.token.usage.input",
            ),
            ServingMetric::OutputTokens => (
                "warptrace.serving.token.output",
                Counter,
                "{token}",
                "gen_ai.client.token.usage.output",
            ),
            ServingMetric::RequestsRunning => (
                "warptrace.serving.request.running",
                UpDownCounter,
                "{request}",
                "",
            ),
            ServingMetric::RequestsQueued => (
                "warptrace.serving.request.queued",
                UpDownCounter,
                "{request}",
                "gen_ai.server.queue.size",
            ),
            ServingMetric::BatchSize => (
                "warptrace.serving.batch.size",
                UpDownCounter,
                "{request}",
                "gen_ai.server.batch.size",
            ),
            ServingMetric::KvCacheUtilization => {
                ("warptrace.serving.kv_cache.utilization", Gauge, "1", "")
            }
            ServingMetric::PrefixCacheQueries => (
                "warptrace.serving.prefix_cache.queries",
                Counter,
                "{token}",
                "",
            ),
            ServingMetric::PrefixCacheHits => (
                "warptrace.serving.prefix_cache.hits",
                Counter,
                "{token}",
                "",
            ),
            ServingMetric::PrefixCacheHitRatio => {
                ("warptrace.serving.prefix_cache.hit_ratio", Gauge, "1", "")
            }
            ServingMetric::Preemptions => (
                "warptrace.serving.request.preemptions",
                Counter,
                "{preemption}",
                "",
            ),
            ServingMetric::RequestsSucceeded => (
                "warptrace.serving.request.succeeded",
                Counter,
                "{request}",
                "gen_ai.client.operation.success_total",
            ),
            ServingMetric::RequestsFailed => (
                "warptrace.serving.request.failed",
                Counter,
                "{request}",
                "gen_ai.client.operation.failure_total",
            ),
            ServingMetric::DraftTokensAccepted => (
                "warptrace.serving.draft_token.accepted",
                Counter,
                "{token}",
                "gen_ai.client.speculative.accepted_tokens",
            ),
            ServingMetric::DraftTokensProposed => (
                "warptrace.serving.draft_token.proposed",
                Counter,
                "{token}",
                "gen_ai.client.speculative.proposed_tokens",
            ),
        }
    }

    pub const fn name(self) -> &'static str {
        self.row().0
    }

    pub const fn kind(self) -> ServingKind {
        self.row().1
    }

    /// UCUM.
    pub const fn unit(self) -> &'static str {
        self.row().2
    }

    /// The canonical name in ingero 0.17.0, which scrapes the same engines; its values are in the engine's unit, ours are not.
    pub fn compat_name(self) -> Option<&'static str> {
        Some(self.row().3).filter(|name| !name.is_empty())
    }
}

/// A distribution since the engine started.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ServingHistogram {
    pub sum: f64,
    pub count: u64,
    /// Upper bounds of the buckets, ascending and finite, each part of the bucket that it closes; empty where the engine gives
    /// sum and count alone.
    pub bounds: Vec<f64>,
    /// How many fell into each bucket, and into the one above the last bound: one more than `bounds`, or none.
    pub counts: Vec<u64>,
}

impl ServingHistogram {
    /// What came since `earlier`, or all of it when the engine started anew between the two.
    #[must_use]
    pub fn since(&self, earlier: &ServingHistogram) -> ServingHistogram {
        let pairs = || self.counts.iter().zip(&earlier.counts);
        let goes_on = self.count >= earlier.count
            && self.bounds == earlier.bounds
            && self.counts.len() == earlier.counts.len()
            && pairs().all(|(now, then)| now >= then)
            && self.sum >= earlier.sum;
        if !goes_on {
            return self.clone();
        }
        ServingHistogram {
            sum: self.sum - earlier.sum,
            count: self.count - earlier.count,
            bounds: self.bounds.clone(),
            counts: pairs().map(|(now, then)| now - then).collect(),
        }
    }

    /// Adds another one; without buckets where the two have others.
    pub fn add(&mut self, other: &ServingHistogram) {
        self.sum += other.sum;
        self.count = self.count.saturating_add(other.count);
        if self.bounds == other.bounds && self.counts.len() == other.counts.len() {
            for (ours, theirs) in self.counts.iter_mut().zip(&other.counts) {
                *ours = ours.saturating_add(*theirs);
            }
        } else {
            self.bounds.clear();
            self.counts.clear();
        }
    }

    /// `None` when it is empty.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    /// Quantile `q` (0..=1) by linear interpolation in the bucket that holds it, as Prometheus' `histogram_quantile` does: the
    /// first bucket begins at 0, and what lies above the last bound is said to be that bound. `None` without buckets or values.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let all: u64 = self.counts.iter().sum();
        if all == 0 || self.bounds.is_empty() || !(0.0..=1.0).contains(&q) {
            return None;
        }
        let rank = q * all as f64;
        let mut below = 0_u64;
        for (i, count) in self.counts.iter().enumerate() {
            let up_to = below + count;
            if up_to as f64 >= rank && *count > 0 {
                let Some(end) = self.bounds.get(i).copied() else {
                    break;
                };
                let start = match i {
                    0 => 0_f64.min(end),
                    i => self.bounds[i - 1],
                };
                let part = (rank - below as f64).max(0.0) / *count as f64;
                return Some(start + (end - start) * part);
            }
            below = up_to;
        }
        self.bounds.last().copied()
    }
}

/// A value of a metric.
#[derive(Debug, Clone, PartialEq)]
pub enum ServingValue {
    /// Of [`ServingKind::Histogram`].
    Histogram(ServingHistogram),
    /// Of all other kinds; finite.
    Number(f64),
}

/// A measurement of an engine, as scraped: one of each metric and model.
#[derive(Debug, Clone, PartialEq)]
pub struct ServingReading {
    pub metric: ServingMetric,
    /// The model's name as the engine gives it, for `gen_ai.request.model`.
    pub model: Option<String>,
    pub value: ServingValue,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_given_once_and_are_in_a_namespace_of_ours_or_are_conventions() {
        let conventions = [
            "gen_ai.server.time_to_first_token",
            "gen_ai.server.time_per_output_token",
            "gen_ai.server.request.duration",
        ];
        let mut seen = std::collections::HashSet::new();
        for metric in ServingMetric::ALL {
            let name = metric.name();
            assert!(seen.insert(name), "{name} twice");
            let ours = name.starts_with("warptrace.serving.");
            assert!(ours || conventions.contains(&name), "{name}");
            let is_time = metric.unit() == "s";
            assert_eq!(is_time, metric.kind() == ServingKind::Histogram, "{name}");
        }
        for engine in Engine::ALL {
            assert_eq!(Engine::by_name(engine.name()), Some(engine));
        }
    }

    fn histogram(sum: f64, bounds: &[f64], counts: &[u64]) -> ServingHistogram {
        ServingHistogram {
            sum,
            count: counts.iter().sum(),
            bounds: bounds.to_vec(),
            counts: counts.to_vec(),
        }
    }

    #[test]
    fn what_came_between_two_scrapes_is_their_difference_unless_the_engine_started_anew() {
        let then = histogram(2.0, &[0.1, 1.0], &[3, 1, 0]);
        let now = histogram(5.0, &[0.1, 1.0], &[3, 3, 1]);
        let between = now.since(&then);
        assert_eq!(between, histogram(3.0, &[0.1, 1.0], &[0, 2, 1]));
        assert_eq!(between.mean(), Some(1.0));
        assert_eq!(then.since(&now), then);
        assert_eq!(now.since(&now).mean(), None);
        let other = histogram(2.0, &[0.2, 1.0], &[3, 1, 0]);
        assert_eq!(now.since(&other), now);
    }

    #[test]
    fn a_quantile_is_interpolated_in_its_bucket() {
        let h = histogram(0.0, &[1.0, 2.0, 4.0], &[10, 10, 20, 0]);
        assert_eq!(h.quantile(0.5), Some(2.0));
        assert_eq!(h.quantile(0.75), Some(3.0));
        assert_eq!(h.quantile(0.125), Some(0.5));
        assert_eq!(h.quantile(0.0), Some(0.0));
        let above = histogram(0.0, &[1.0], &[0, 5]);
        assert_eq!(above.quantile(0.5), Some(1.0));
        assert_eq!(histogram(0.0, &[], &[]).quantile(0.5), None);
        assert_eq!(h.quantile(1.5), None);
    }
}
