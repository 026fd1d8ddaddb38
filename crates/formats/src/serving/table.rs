//! Which of an engine's metrics is which of ours.
//!
//! Source: vLLM 0.6 to 0.33, *Production Metrics* and `vllm/v1/metrics/loggers.py`; SGLang 0.4 to 0.5.23, *Production Metrics* and
//! `srt/metrics/collector.py`; text-generation-inference 3.3, *Metrics*; Triton Inference Server 2.60, *Metrics*; TensorRT-LLM's
//! backend for it, *Triton metrics*.

use warptrace_model::serving::{Engine, ServingMetric};

use super::Sample;

/// How an engine publishes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Gauge,
    /// With or without `_total` at the end.
    Counter,
    Histogram,
    /// Of a histogram the sum alone: tokens of all requests.
    SumOfHistogram,
    /// A sum as a counter, and how many it is of as the counter with this name.
    SumWithCount(&'static str),
}

/// A label that a series must, or must not, have.
#[derive(Debug, Clone, Copy)]
pub(super) enum Only {
    Is(&'static str, &'static str),
    OneOf(&'static str, &'static [&'static str]),
    NoneOf(&'static str, &'static [&'static str]),
}

impl Only {
    pub(super) fn holds(self, sample: &Sample<'_>) -> bool {
        let among = |label, values: &[&str]| {
            sample
                .label(label)
                .is_some_and(|value| values.contains(&value))
        };
        match self {
            Only::Is(label, value) => sample.label(label) == Some(value),
            Only::OneOf(label, values) => among(label, values),
            Only::NoneOf(label, values) => !among(label, values),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// With `_` for `:`, without the endings of parts and of counters.
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) metric: ServingMetric,
    /// From the engine's unit to ours.
    pub(super) scale: f64,
    pub(super) only: Option<Only>,
}

const fn row(name: &'static str, shape: Shape, metric: ServingMetric) -> Row {
    Row {
        name,
        shape,
        metric,
        scale: 1.0,
        only: None,
    }
}

const fn only(name: &'static str, shape: Shape, metric: ServingMetric, only: Only) -> Row {
    Row {
        only: Some(only),
        ..row(name, shape, metric)
    }
}

const fn micros(name: &'static str, metric: ServingMetric) -> Row {
    Row {
        scale: 1e-6,
        ..row(
            name,
            Shape::SumWithCount("nv_inference_request_success"),
            metric,
        )
    }
}

use Shape::{Counter, Gauge, Histogram, SumOfHistogram};

/// Of two rows with one metric, the first one that an engine publishes counts.
pub(super) fn rows(engine: Engine) -> Vec<Row> {
    match engine {
        Engine::Vllm => VLLM.to_vec(),
        Engine::Sglang => SGLANG.to_vec(),
        Engine::Tgi => TGI.to_vec(),
        // Its backend for vLLM publishes vLLM's metrics beside its own.
        Engine::Triton => TRITON.iter().chain(VLLM).copied().collect(),
    }
}

const FAILED: &[&str] = &["abort", "error"];

#[rustfmt::skip]
const VLLM: &[Row] = &[
    row("vllm_time_to_first_token_seconds", Histogram, ServingMetric::TimeToFirstToken),
    row("vllm_inter_token_latency_seconds", Histogram, ServingMetric::TimePerOutputToken),
    // Until 0.11.
    row("vllm_time_per_output_token_seconds", Histogram, ServingMetric::TimePerOutputToken),
    row("vllm_e2e_request_latency_seconds", Histogram, ServingMetric::RequestDuration),
    row("vllm_request_prefill_time_seconds", Histogram, ServingMetric::PrefillDuration),
    row("vllm_request_decode_time_seconds", Histogram, ServingMetric::DecodeDuration),
    row("vllm_request_queue_time_seconds", Histogram, ServingMetric::QueueDuration),
    row("vllm_prompt_tokens", Counter, ServingMetric::InputTokens),
    row("vllm_generation_tokens", Counter, ServingMetric::OutputTokens),
    row("vllm_num_requests_running", Gauge, ServingMetric::RequestsRunning),
    row("vllm_num_requests_waiting", Gauge, ServingMetric::RequestsQueued),
    row("vllm_kv_cache_usage_perc", Gauge, ServingMetric::KvCacheUtilization),
    // Until 0.9.
    row("vllm_gpu_cache_usage_perc", Gauge, ServingMetric::KvCacheUtilization),
    row("vllm_prefix_cache_queries", Counter, ServingMetric::PrefixCacheQueries),
    row("vllm_gpu_prefix_cache_queries", Counter, ServingMetric::PrefixCacheQueries),
    row("vllm_prefix_cache_hits", Counter, ServingMetric::PrefixCacheHits),
    row("vllm_gpu_prefix_cache_hits", Counter, ServingMetric::PrefixCacheHits),
    row("vllm_gpu_prefix_cache_hit_rate", Gauge, ServingMetric::PrefixCacheHitRatio),
    row("vllm_num_preemptions", Counter, ServingMetric::Preemptions),
    // "Success" counts every request that ended, by how.
    only("vllm_request_success", Counter, ServingMetric::RequestsSucceeded, Only::NoneOf("finished_reason", FAILED)),
    only("vllm_request_success", Counter, ServingMetric::RequestsFailed, Only::OneOf("finished_reason", FAILED)),
    row("vllm_spec_decode_num_accepted_tokens", Counter, ServingMetric::DraftTokensAccepted),
    row("vllm_spec_decode_num_draft_tokens", Counter, ServingMetric::DraftTokensProposed),
];

#[rustfmt::skip]
const SGLANG: &[Row] = &[
    row("sglang_time_to_first_token_seconds", Histogram, ServingMetric::TimeToFirstToken),
    row("sglang_inter_token_latency_seconds", Histogram, ServingMetric::TimePerOutputToken),
    row("sglang_time_per_output_token_seconds", Histogram, ServingMetric::TimePerOutputToken),
    row("sglang_e2e_request_latency_seconds", Histogram, ServingMetric::RequestDuration),
    row("sglang_request_latency", Histogram, ServingMetric::RequestDuration),
    row("sglang_queue_time_seconds", Histogram, ServingMetric::QueueDuration),
    row("sglang_prompt_tokens", Counter, ServingMetric::InputTokens),
    row("sglang_generation_tokens", Counter, ServingMetric::OutputTokens),
    row("sglang_num_running_reqs", Gauge, ServingMetric::RequestsRunning),
    row("sglang_num_queue_reqs", Gauge, ServingMetric::RequestsQueued),
    row("sglang_token_usage", Gauge, ServingMetric::KvCacheUtilization),
    row("sglang_cache_hit_rate", Gauge, ServingMetric::PrefixCacheHitRatio),
    // A retracted request gives its cache up and waits again.
    row("sglang_num_retracted_requests", Counter, ServingMetric::Preemptions),
    row("sglang_num_aborted_requests", Counter, ServingMetric::RequestsFailed),
    row("sglang_accepted_draft_tokens", Counter, ServingMetric::DraftTokensAccepted),
    row("sglang_proposed_draft_tokens", Counter, ServingMetric::DraftTokensProposed),
];

#[rustfmt::skip]
const TGI: &[Row] = &[
    row("tgi_request_duration", Histogram, ServingMetric::RequestDuration),
    row("tgi_request_mean_time_per_token_duration", Histogram, ServingMetric::TimePerOutputToken),
    row("tgi_request_queue_duration", Histogram, ServingMetric::QueueDuration),
    row("tgi_request_validation_duration", Histogram, ServingMetric::ValidationDuration),
    row("tgi_batch_forward_duration", Histogram, ServingMetric::BatchDuration),
    row("tgi_request_input_length", SumOfHistogram, ServingMetric::InputTokens),
    row("tgi_request_generated_tokens", SumOfHistogram, ServingMetric::OutputTokens),
    row("tgi_batch_current_size", Gauge, ServingMetric::BatchSize),
    row("tgi_queue_size", Gauge, ServingMetric::RequestsQueued),
    row("tgi_request_success", Counter, ServingMetric::RequestsSucceeded),
    row("tgi_request_failure", Counter, ServingMetric::RequestsFailed),
];

#[rustfmt::skip]
const TRITON: &[Row] = &[
    Row { scale: 1e-3, ..row("nv_inference_first_response_histogram_ms", Histogram, ServingMetric::TimeToFirstToken) },
    // Sums of the successful requests. Copying inputs and outputs (`compute_input`, `compute_output`) is neither prefill nor decode.
    micros("nv_inference_request_duration_us", ServingMetric::RequestDuration),
    micros("nv_inference_queue_duration_us", ServingMetric::QueueDuration),
    row("nv_inference_request_success", Counter, ServingMetric::RequestsSucceeded),
    row("nv_inference_request_failure", Counter, ServingMetric::RequestsFailed),
    row("nv_inference_pending_request_count", Gauge, ServingMetric::RequestsQueued),
    // TensorRT-LLM's backend.
    only("nv_trt_llm_request_metrics", Gauge, ServingMetric::RequestsRunning, Only::Is("request_type", "active")),
    only("nv_trt_llm_request_metrics", Gauge, ServingMetric::RequestsQueued, Only::Is("request_type", "waiting")),
    only("nv_trt_llm_kv_cache_block_metrics", Gauge, ServingMetric::KvCacheUtilization, Only::Is("kv_cache_block_type", "fraction")),
];

#[cfg(test)]
mod tests {
    use warptrace_model::serving::ServingKind;

    use super::*;

    #[test]
    fn the_documentation_names_every_metric_that_is_read_and_every_name_that_it_has() {
        let page = include_str!("../../../../docs/engines.md");
        for engine in Engine::ALL {
            for row in rows(engine) {
                let short = row
                    .name
                    .trim_start_matches("vllm_")
                    .trim_start_matches("sglang_");
                let rest = row.name.trim_start_matches("nv_inference_request");
                let named =
                    page.contains(&format!("`{short}")) || page.contains(&format!("`{rest}`"));
                // A successor's former name, the same under both prefixes, and what only some old version had.
                let former = [
                    "gpu_prefix_cache_queries",
                    "gpu_prefix_cache_hits",
                    "request_latency",
                ];
                assert!(named || former.contains(&short), "{}", row.name);
            }
        }
        for metric in ServingMetric::ALL {
            let (_, last) = metric.name().rsplit_once('.').unwrap();
            let duration = metric
                .name()
                .trim_end_matches(".duration")
                .rsplit_once('.')
                .unwrap()
                .1;
            let named = [
                metric.name(),
                &format!(".{last}`"),
                &format!(".{duration}.duration`"),
            ]
            .iter()
            .any(|name| page.contains(name));
            assert!(named, "{}", metric.name());
        }
    }

    #[test]
    fn every_row_has_a_shape_that_its_metric_can_be_read_from() {
        for engine in Engine::ALL {
            for row in rows(engine) {
                let fits = match row.shape {
                    Histogram | Shape::SumWithCount(_) => {
                        row.metric.kind() == ServingKind::Histogram
                    }
                    Counter | SumOfHistogram => row.metric.kind() == ServingKind::Counter,
                    Gauge => matches!(
                        row.metric.kind(),
                        ServingKind::Gauge | ServingKind::UpDownCounter
                    ),
                };
                assert!(fits, "{engine} {}", row.name);
                assert!(
                    !row.name.contains(':') && !row.name.ends_with("_total"),
                    "{}",
                    row.name
                );
                if let Shape::SumWithCount(of) = row.shape {
                    assert!(rows(engine).iter().any(|r| r.name == of), "{of}");
                }
            }
        }
    }
}
