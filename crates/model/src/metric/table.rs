//! The table.
//!
//! A name of ours follows OpenTelemetry's conventions: no unit and no `total` in it, UCUM units, durations in seconds, sizes in
//! bytes, fractions from 0 to 1. States that are 0 or 1 are up-down counters of unit `1`, as in OpenTelemetry's `hw.status`, so
//! that Prometheus does not call them ratios.

use super::attribute::*;
use super::{Attribute, Derived, Ingero, Instrument, Metric, Shape};

/// Attributes of the resource, the process or machine that all points of an export are about.
pub mod resource {
    /// A name of ours, and `ingero`'s for the same.
    pub struct ResourceAttribute {
        pub name: &'static str,
        pub ingero: Option<&'static str>,
        pub meaning: &'static str,
    }

    macro_rules! resource {
        ($($id:ident = $name:literal, [$($ingero:literal)?], $meaning:literal;)*) => {
            $(#[doc = $meaning] pub const $id: &str = $name;)*

            /// All, in the order in which they are written.
            pub static ALL: &[ResourceAttribute] = &[$(ResourceAttribute {
                name: $name,
                ingero: first(&[$($ingero)?]),
                meaning: $meaning,
            }),*];
        };
    }

    const fn first(names: &[&'static str]) -> Option<&'static str> {
        match names {
            [name, ..] => Some(name),
            [] => None,
        }
    }

    resource! {
        SERVICE_NAME = "service.name", ["service.name"], "`warptrace`; `ingero` where only its names are wanted; or what `OTEL_SERVICE_NAME` says";
        SERVICE_VERSION = "service.version", ["service.version"], "version of warptrace";
        SERVICE_INSTANCE_ID = "service.instance.id", [], "one run of it: differs after a restart";
        NODE_ID = "warptrace.node.id", ["ingero.node.id"], "node: what the configuration says, else the host's name";
        CLUSTER_ID = "warptrace.cluster.id", ["ingero.cluster.id"], "cluster, as the configuration says";
        CLOUD_PROVIDER = "cloud.provider", ["ingero.provider"], "`aws`, `gcp` or `azure`, as the machine's firmware says";
        WORLD_SIZE = "warptrace.world_size", ["ingero.world_size"], "processes of the job, where that is known";
        NODE_RANK = "warptrace.node.rank", ["ingero.node.rank"], "rank of the node in the job";
        HOST_NAME = "host.name", [], "name of the host";
        HOST_ID = "host.id", [], "`/etc/machine-id`";
        HOST_ARCH = "host.arch", [], "`amd64`, `arm64`";
        OS_TYPE = "os.type", [], "`linux`";
        OS_VERSION = "os.version", [], "release of the kernel";
        CLUSTER_NAME = "k8s.cluster.name", [], "by the variable `K8S_CLUSTER_NAME`";
        K8S_NODE_NAME = "k8s.node.name", [], "by the variable `K8S_NODE_NAME` or `NODE_NAME`";
        K8S_NAMESPACE = "k8s.namespace.name", [], "by a variable, else the service account's file";
        K8S_POD_NAME = "k8s.pod.name", [], "by the variable `K8S_POD_NAME` or `POD_NAME`, else the host's name in a pod";
        K8S_POD_UID = "k8s.pod.uid", [], "by the variable `K8S_POD_UID` or `POD_UID`, else the cgroup's path";
        K8S_CONTAINER_NAME = "k8s.container.name", [], "by the variable `K8S_CONTAINER_NAME` or `CONTAINER_NAME`";
        CONTAINER_ID = "container.id", [], "64 hexadecimal digits, of the cgroup's path";
        PROCESS_PID = "process.pid", [], "process of warptrace";
        PROCESS_EXECUTABLE = "process.executable.name", [], "its program";
        PROCESS_OWNER = "process.owner", [], "user that it runs as";
    }
}

type Attributes = &'static [&'static Attribute];

const fn row(
    name: &'static str,
    instrument: Instrument,
    unit: &'static str,
    meaning: &'static str,
) -> Metric {
    Metric {
        name,
        instrument,
        unit,
        meaning,
        attributes: &[],
        bounds: &[],
        ingero: &[],
    }
}

const fn counter(name: &'static str, unit: &'static str, meaning: &'static str) -> Metric {
    row(name, Instrument::Counter, unit, meaning)
}

/// An up-down counter.
const fn level(name: &'static str, unit: &'static str, meaning: &'static str) -> Metric {
    row(name, Instrument::UpDownCounter, unit, meaning)
}

const fn gauge(name: &'static str, unit: &'static str, meaning: &'static str) -> Metric {
    row(name, Instrument::Gauge, unit, meaning)
}

const fn histogram(
    name: &'static str,
    unit: &'static str,
    bounds: &'static [f64],
    meaning: &'static str,
) -> Metric {
    Metric {
        bounds,
        ..row(name, Instrument::Histogram, unit, meaning)
    }
}

impl Metric {
    const fn by(self, attributes: Attributes) -> Metric {
        Metric { attributes, ..self }
    }

    const fn ingero(self, ingero: &'static [Ingero]) -> Metric {
        Metric { ingero, ..self }
    }
}

impl Ingero {
    const fn new(name: &'static str, shape: Shape, unit: &'static str) -> Ingero {
        Ingero {
            name: Some(name),
            prometheus: None,
            shape,
            unit,
            attributes: &[],
            only: None,
            derived: Derived::Times(1.0),
            bounds: &[],
        }
    }

    const fn int(name: &'static str, unit: &'static str) -> Ingero {
        Ingero::new(name, Shape::IntGauge, unit)
    }

    const fn double(name: &'static str, unit: &'static str) -> Ingero {
        Ingero::new(name, Shape::DoubleGauge, unit)
    }

    const fn sum(name: &'static str, unit: &'static str) -> Ingero {
        Ingero::new(name, Shape::Sum, unit)
    }

    const fn histogram(
        name: &'static str,
        unit: &'static str,
        times: f64,
        bounds: &'static [f64],
    ) -> Ingero {
        Ingero {
            derived: Derived::Times(times),
            bounds,
            ..Ingero::new(name, Shape::Histogram, unit)
        }
    }

    /// In Prometheus alone.
    const fn only_prometheus(name: &'static str, shape: Shape) -> Ingero {
        Ingero {
            name: None,
            prometheus: Some(name),
            ..Ingero::new("", shape, "")
        }
    }

    const fn prometheus(self, name: &'static str) -> Ingero {
        Ingero {
            prometheus: Some(name),
            ..self
        }
    }

    const fn by(self, attributes: Attributes) -> Ingero {
        Ingero { attributes, ..self }
    }

    const fn only(self, attribute: &'static Attribute, value: &'static str) -> Ingero {
        Ingero {
            only: Some((attribute, value)),
            ..self
        }
    }

    const fn derived(self, derived: Derived) -> Ingero {
        Ingero { derived, ..self }
    }
}

/// Of steps, seconds.
const STEP_SECS: &[f64] = &[
    1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
const STEP_NANOS: &[f64] = &[
    1e5, 2.5e5, 5e5, 1e6, 2.5e6, 5e6, 1e7, 2.5e7, 5e7, 1e8, 2.5e8, 5e8, 1e9, 2.5e9, 5e9, 1e10,
];
const COPY_SECS: &[f64] = &[
    1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
];
const COPY_MILLIS: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0,
];
const AGE_SECS: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];
const AGE_MILLIS: &[f64] = &[
    10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 1.2e5, 3e5, 6e5,
];
/// Of single calls, from a microsecond to ten seconds.
const CALL_SECS: &[f64] = &[
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2,
    5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Of units of a job's work, from a millisecond to ten minutes.
const UNIT_SECS: &[f64] = &[
    1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    600.0,
];
/// OpenTelemetry's advice for `gen_ai.server.request.duration`.
const REQUEST_SECS: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
/// The same for `gen_ai.server.time_to_first_token`.
const FIRST_TOKEN_SECS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// The same for `gen_ai.server.time_per_output_token`.
const TOKEN_SECS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];
/// The same for `gen_ai.client.token.usage`.
const TOKENS: &[f64] = &[
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
const SIZE_BYTES: &[f64] = &[
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
];
const BLOCK_THREADS: &[f64] = &[32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
const GRID_BLOCKS: &[f64] = &[
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
];

/// What a workload of an inference server is told apart by, elsewhere and here.
const WORKLOAD_ELSEWHERE: Attributes = &[
    &CGROUP,
    &PID,
    &STREAM,
    &PHASE,
    &FINGERPRINT,
    &GEN_AI_REQUEST_MODEL,
    &GEN_AI_SYSTEM,
];
const WORKLOAD: Attributes = &[
    &CGROUP,
    &PID,
    &DEVICE,
    &STREAM,
    &PHASE,
    &FINGERPRINT,
    &GEN_AI_REQUEST_MODEL,
    &GEN_AI_SYSTEM,
];
const OUTLIER: Attributes = &[
    &BUCKET,
    &CGROUP,
    &PID,
    &DEVICE,
    &STREAM,
    &PHASE,
    &FINGERPRINT,
    &GEN_AI_REQUEST_MODEL,
    &GEN_AI_SYSTEM,
];
const COLLECTIVE: Attributes = &[
    &NCCL_OPERATION,
    &NCCL_COMMUNICATOR,
    &NCCL_RANK,
    &NCCL_RANKS,
    &NCCL_DATA_TYPE,
    &NCCL_REDUCE_OPERATION,
    &NCCL_PEER,
];
const SERVING: Attributes = &[&ENGINE_PID, &GEN_AI_REQUEST_MODEL, &GEN_AI_SYSTEM];
const TOKEN_USAGE: Attributes = &[
    &GEN_AI_TOKEN_TYPE,
    &GEN_AI_OPERATION,
    &GEN_AI_RESPONSE_MODEL,
    &ENGINE_PID,
    &GEN_AI_REQUEST_MODEL,
    &GEN_AI_SYSTEM,
];
const HEALTH: Attributes = &[&NODE_STATE, &WORKLOAD_TYPE];

macro_rules! metrics {
    ($($(#[$section:meta])? $id:ident = $row:expr;)*) => {
        /// Every metric of the table.
        pub mod metric {
            use super::*;

            $(
                #[doc = concat!("See its [`meaning`](Metric::meaning).")]
                pub static $id: Metric = $row;
            )*

            /// All, in the order of the documentation.
            pub static ALL: &[&Metric] = &[$(&$id),*];
        }
    };
}

metrics! {
    // Inference servers, by workload.
    INFERENCE_STEP_DURATION = histogram("warptrace.inference.step.duration", "s", STEP_SECS,
        "Steps of an inference engine").by(WORKLOAD);
    INFERENCE_HEALTHY_STEP_DURATION = histogram("warptrace.inference.healthy_step.duration", "s", STEP_SECS,
        "Steps that a workload's baseline is made of: no outliers").by(WORKLOAD)
        .ingero(&[Ingero::histogram("ingero.infer.step_duration_ns", "ns", 1e9, STEP_NANOS)
            .prometheus("ingero_infer_step_duration_ns").by(WORKLOAD_ELSEWHERE)]);
    INFERENCE_STEP_PAUSED = counter("warptrace.inference.step.paused", "{step}",
        "Steps that were not judged, since a finding of their process explains them").by(WORKLOAD);
    INFERENCE_STEP_LEFT_OUT = counter("warptrace.inference.step.left_out", "{step}",
        "Waits that ended no step that can be judged").by(&[&ERROR_TYPE]);
    INFERENCE_STEP_COUNT = counter("warptrace.inference.step.count", "{step}", "Steps, by phase").by(&[&PHASE]);
    INFERENCE_BASELINE_SHIFT = counter("warptrace.inference.baseline.shift", "{shift}",
        "Times that a lasting slow-down became the usual");
    INFERENCE_BASELINE_MEAN = gauge("warptrace.inference.baseline.mean", "s",
        "Mean of a workload's healthy steps").by(WORKLOAD)
        .ingero(&[Ingero::double("ingero.infer.baseline_mean_ns", "ns").derived(Derived::Times(1e9))
            .prometheus("ingero_infer_baseline_mean_ns").by(WORKLOAD_ELSEWHERE)]);
    INFERENCE_BASELINE_P95 = gauge("warptrace.inference.baseline.p95", "s",
        "95th percentile of a workload's healthy steps").by(WORKLOAD)
        .ingero(&[Ingero::double("ingero.infer.baseline_p95_ns", "ns").derived(Derived::Times(1e9))
            .prometheus("ingero_infer_baseline_p95_ns").by(WORKLOAD_ELSEWHERE)]);
    INFERENCE_WORKLOADS = level("warptrace.inference.workloads", "{workload}",
        "Workloads that have a baseline or are getting one")
        .ingero(&[Ingero::int("ingero.infer.workloads_tracked", "1").prometheus("ingero_infer_workloads_tracked")]);
    INFERENCE_EVICTED = counter("warptrace.inference.evicted", "{entry}",
        "Workloads, streams and allocations that were forgotten since there were too many");
    INFERENCE_OUTLIER_COUNT = counter("warptrace.inference.outlier.count", "{outlier}",
        "Steps far above their workload's baseline").by(OUTLIER)
        .ingero(&[Ingero::sum("ingero.infer.outlier_total", "1").prometheus("ingero_infer_outlier_total").by(&[&BUCKET])]);
    INFERENCE_OUTLIER_THROTTLED = counter("warptrace.inference.outlier.throttled", "{outlier}",
        "Those of them during which a device was throttled").by(OUTLIER)
        .ingero(&[Ingero::sum("ingero.infer.throttle_active_total", "1")
            .prometheus("ingero_infer_throttle_active_total").by(&[&BUCKET])]);
    INFERENCE_KV_CACHE_ALLOCATION_AGE = histogram("warptrace.inference.kv_cache.allocation.age", "s", AGE_SECS,
        "Ages of the oldest live allocations, at outliers")
        .ingero(&[Ingero::histogram("ingero.infer.kvcache.alloc_age_ms", "ms", 1e3, AGE_MILLIS)
            .prometheus("ingero_infer_kvcache_alloc_age_ms")]);
    INFERENCE_SAMPLER_DEGRADED = level("warptrace.inference.sampler.degraded", "1",
        "1 while the sampler admits every event, since something is wrong")
        .ingero(&[Ingero::int("ingero.infer.sampler.degraded", "1")
            .prometheus("ingero_infer_sampler_degraded").by(&[&SAMPLER_CAUSE])]);
    INFERENCE_SAMPLER_DEGRADATION_COUNT = counter("warptrace.inference.sampler.degradation.count", "{degradation}",
        "Outliers that made the sampler admit every event")
        .ingero(&[Ingero::sum("ingero.infer.sampler.degradations_total", "1")
            .prometheus("ingero_infer_sampler_degradations_total").by(&[&SAMPLER_CAUSE])]);

    INFERENCE_SAMPLER_EVENT_COUNT = counter("warptrace.inference.sampler.event.count", "{event}",
        "Events that the sampler decided on").by(&[&SAMPLER_DECISION]);
    INFERENCE_MESSAGE_DROPPED = counter("warptrace.inference.message.dropped", "{message}",
        "Outliers and other messages that nobody took in time");

    // What inference engines say of themselves; the same names and units as `ServingMetric`'s.
    SERVING_TIME_TO_FIRST_TOKEN = histogram("gen_ai.server.time_to_first_token", "s", FIRST_TOKEN_SECS,
        "From a request's arrival to its first token").by(SERVING)
        .ingero(&[Ingero::histogram("gen_ai.client.operation.time_to_first_token", "s", 1.0, FIRST_TOKEN_SECS).by(SERVING)]);
    SERVING_TIME_PER_OUTPUT_TOKEN = histogram("gen_ai.server.time_per_output_token", "s", TOKEN_SECS,
        "Between two tokens of a response, after the first").by(SERVING)
        .ingero(&[Ingero::histogram("gen_ai.server.time_per_output_token", "s", 1.0, TOKEN_SECS).by(SERVING)]);
    SERVING_REQUEST_DURATION = histogram("gen_ai.server.request.duration", "s", REQUEST_SECS,
        "From a request's arrival to its last token").by(SERVING)
        .ingero(&[Ingero::histogram("gen_ai.client.operation.duration", "s", 1.0, REQUEST_SECS).by(SERVING)]);
    SERVING_TOKEN_USAGE = histogram("gen_ai.client.token.usage", "{token}", TOKENS, "Tokens of a request").by(TOKEN_USAGE)
        .ingero(&[Ingero::histogram("gen_ai.client.token.usage", "{token}", 1.0, TOKENS).by(TOKEN_USAGE)]);
    SERVING_PREFILL_DURATION = histogram("warptrace.serving.request.prefill.duration", "s", REQUEST_SECS, "The part of a request that is prefill").by(SERVING)
        .ingero(&[Ingero::histogram("gen_ai.server.request.duration.prefill", "s", 1.0, REQUEST_SECS).by(SERVING)]);
    SERVING_DECODE_DURATION = histogram("warptrace.serving.request.decode.duration", "s", REQUEST_SECS, "The part of a request that is decode").by(SERVING)
        .ingero(&[Ingero::histogram("gen_ai.server.request.duration.decode", "s", 1.0, REQUEST_SECS).by(SERVING)]);
    SERVING_QUEUE_DURATION = histogram("warptrace.serving.request.queue.duration", "s", REQUEST_SECS, "The part of a request that is waiting to be scheduled").by(SERVING)
        .ingero(&[Ingero::histogram("gen_ai.server.queue.duration", "s", 1.0, REQUEST_SECS).by(SERVING)]);
    SERVING_VALIDATION_DURATION = histogram("warptrace.serving.request.validation.duration", "s", REQUEST_SECS, "The part of a request that is checking and tokenising it").by(SERVING)
        .ingero(&[Ingero::histogram("gen_ai.server.validation.duration", "s", 1.0, REQUEST_SECS).by(SERVING)]);
    SERVING_BATCH_DURATION = histogram("warptrace.serving.batch.duration", "s", REQUEST_SECS, "One forward pass of a batch").by(SERVING)
        .ingero(&[Ingero::histogram("gen_ai.server.request.duration.batch", "s", 1.0, REQUEST_SECS).by(SERVING)]);
    SERVING_TOKEN_INPUT = counter("warptrace.serving.token.input", "{token}", "Tokens of prompts").by(SERVING)
        .ingero(&[Ingero::sum("gen_ai.client.token.usage.input", "{token}").by(SERVING)]);
    SERVING_TOKEN_OUTPUT = counter("warptrace.serving.token.output", "{token}", "Tokens of responses").by(SERVING)
        .ingero(&[Ingero::sum("gen_ai.client.token.usage.output", "{token}").by(SERVING)]);
    SERVING_REQUEST_RUNNING = level("warptrace.serving.request.running", "{request}", "Requests in the running batch").by(SERVING);
    SERVING_REQUEST_QUEUED = level("warptrace.serving.request.queued", "{request}", "Requests that wait to be scheduled").by(SERVING)
        .ingero(&[Ingero::int("gen_ai.server.queue.size", "{request}").by(SERVING)]);
    SERVING_BATCH_SIZE = level("warptrace.serving.batch.size", "{request}", "Requests of a batch").by(SERVING)
        .ingero(&[Ingero::int("gen_ai.server.batch.size", "{request}").by(SERVING)]);
    SERVING_KV_CACHE_UTILIZATION = gauge("warptrace.serving.kv_cache.utilization", "1", "Of the memory kept for the key-value cache, the part in use").by(SERVING);
    SERVING_PREFIX_CACHE_QUERIES = counter("warptrace.serving.prefix_cache.queries", "{token}", "Tokens looked up in the prefix cache").by(SERVING);
    SERVING_PREFIX_CACHE_HITS = counter("warptrace.serving.prefix_cache.hits", "{token}", "Tokens found there").by(SERVING);
    SERVING_PREFIX_CACHE_HIT_RATIO = gauge("warptrace.serving.prefix_cache.hit_ratio", "1", "The same as a fraction, of engines that give only that").by(SERVING);
    SERVING_PREEMPTIONS = counter("warptrace.serving.request.preemptions", "{preemption}", "Requests thrown out of the running batch for want of cache").by(SERVING);
    SERVING_REQUEST_SUCCEEDED = counter("warptrace.serving.request.succeeded", "{request}", "Requests that were answered").by(SERVING)
        .ingero(&[Ingero::sum("gen_ai.client.operation.success_total", "{request}").by(SERVING)]);
    SERVING_REQUEST_FAILED = counter("warptrace.serving.request.failed", "{request}", "Requests that were not").by(SERVING)
        .ingero(&[Ingero::sum("gen_ai.client.operation.failure_total", "{request}").by(SERVING)]);
    SERVING_DRAFT_ACCEPTED = counter("warptrace.serving.draft_token.accepted", "{token}", "Tokens of a draft model that were right").by(SERVING)
        .ingero(&[Ingero::sum("gen_ai.client.speculative.accepted_tokens", "{token}").by(SERVING)]);
    SERVING_DRAFT_PROPOSED = counter("warptrace.serving.draft_token.proposed", "{token}", "Tokens of a draft model").by(SERVING)
        .ingero(&[Ingero::sum("gen_ai.client.speculative.proposed_tokens", "{token}").by(SERVING)]);
    SERVING_SCRAPE_FAILED = counter("warptrace.serving.scrape.failed", "{scrape}",
        "Requests for an engine's metrics that failed").by(&[&ERROR_TYPE, &ENGINE_PID]);

    // Calls.
    CUDA_CALL_DURATION = histogram("warptrace.cuda.call.duration", "s", CALL_SECS,
        "Calls of CUDA's runtime and driver, by the time of the host; their count is exact").by(&[&LAYER, &FUNCTION])
        .ingero(&[
            Ingero::double("gpu.cuda.operation.duration", "us").derived(Derived::Percentiles(1e6))
                .prometheus("gpu_cuda_operation_duration_microseconds").by(&[&LAYER, &FUNCTION, &PERCENTILE]),
            Ingero::sum("gpu.cuda.operation.count", "{event}").derived(Derived::Count)
                .prometheus("gpu_cuda_operation_count").by(&[&LAYER, &FUNCTION]),
        ]);
    CUDA_CALL_FAILED = counter("warptrace.cuda.call.failed", "{call}",
        "Calls that returned an error, but for those that ask whether something is done").by(&[&LAYER, &FUNCTION, &ERROR_TYPE]);
    CUDA_COPY_IO = counter("warptrace.cuda.copy.io", "By", "Bytes that were copied").by(&[&COPY_DIRECTION])
        .ingero(&[
            Ingero::sum("gpu.memcpy.bytes_total", "By").prometheus("gpu_memcpy_bytes_total").by(&[&COPY_DIRECTION]),
            Ingero::sum("ingero.node.cuda_memcpy_bytes_total", "By").by(&[&CGROUP, &COPY_DIRECTION]),
        ]);
    CUDA_COPY_DURATION = histogram("warptrace.cuda.copy.duration", "s", COPY_SECS,
        "Copies, by the time of the host").by(&[&COPY_DIRECTION])
        .ingero(&[Ingero::histogram("gpu.memcpy.duration_ms", "ms", 1e3, COPY_MILLIS)
            .prometheus("gpu_memcpy_duration_ms").by(&[&COPY_DIRECTION])]);
    CUDA_LAUNCH_COUNT = counter("warptrace.cuda.launch.count", "{launch}", "Kernels that were launched").by(&[&CGROUP, &PID])
        .ingero(&[
            Ingero::sum("ingero.node.cuda_kernel_launch_total", "1").by(&[&CGROUP]),
            Ingero::only_prometheus("gpu_kernel_launch_count", Shape::Sum).by(&[&PID]),
        ]);
    CUDA_LAUNCH_BLOCK_SIZE = histogram("warptrace.cuda.launch.block_size", "{thread}", BLOCK_THREADS,
        "Threads of a launch's block").by(&[&PID])
        .ingero(&[Ingero { bounds: BLOCK_THREADS,
            ..Ingero::only_prometheus("gpu_kernel_launch_threads_per_block", Shape::Histogram).by(&[&PID]) }]);
    CUDA_LAUNCH_GRID_SIZE = histogram("warptrace.cuda.launch.grid_size", "{block}", GRID_BLOCKS,
        "Blocks of a launch").by(&[&PID])
        .ingero(&[Ingero { bounds: GRID_BLOCKS,
            ..Ingero::only_prometheus("gpu_kernel_launch_grid_blocks", Shape::Histogram).by(&[&PID]) }]);
    DRIVER_CALL_COUNT = counter("warptrace.driver.call.count", "{call}",
        "Calls of the kernel's driver about memory, where these are traced").by(&[&IOCTL_COMMAND])
        .ingero(&[Ingero::only_prometheus("gpu_memfrag_ioctl_event_total", Shape::Sum).by(&[&IOCTL_COMMAND])]);

    // Collectives.
    NCCL_COLLECTIVE_DURATION = histogram("warptrace.nccl.collective.duration", "s", CALL_SECS,
        "Calls of collectives, by the time of the host").by(COLLECTIVE)
        .ingero(&[
            Ingero::double("nccl.collective.duration_ms", "ms").derived(Derived::Measurements(1e3)).by(COLLECTIVE),
            Ingero::only_prometheus("gpu_nccl_collective_count", Shape::Sum).derived(Derived::Count).by(&[&NCCL_OPERATION]),
        ]);
    NCCL_COLLECTIVE_SIZE = histogram("warptrace.nccl.collective.size", "By", SIZE_BYTES,
        "Bytes of a collective: elements times the size of their type").by(COLLECTIVE)
        .ingero(&[
            Ingero::int("nccl.collective.bytes", "By").derived(Derived::Measurements(1.0)).by(COLLECTIVE),
            Ingero::only_prometheus("gpu_nccl_collective_bytes_total", Shape::Sum).derived(Derived::Sum).by(&[&NCCL_OPERATION]),
        ]);
    NCCL_BARRIER_DURATION = histogram("warptrace.nccl.barrier.duration", "s", CALL_SECS,
        "From a collective's start to the start of the wait that follows it on its stream").by(COLLECTIVE)
        .ingero(&[
            Ingero::double("nccl.collective.barrier_wait_ms", "ms").derived(Derived::Measurements(1e3)).by(COLLECTIVE),
            Ingero::only_prometheus("gpu_nccl_collective_barrier_events", Shape::Sum).derived(Derived::Count).by(&[&NCCL_OPERATION]),
        ]);
    NCCL_COLLECTIVE_LAG = gauge("warptrace.nccl.collective.lag", "s",
        "How much later than the median of its peers a rank entered a collective").by(COLLECTIVE)
        .ingero(&[Ingero::double("nccl.collective.peer_lag_ms", "ms").derived(Derived::Times(1e3)).by(COLLECTIVE)]);
    NCCL_LOADED = level("warptrace.nccl.loaded", "1", "1 for each process that has NCCL loaded")
        .by(&[&PID, &COMM, &LIBRARY_PATH, &LIBRARY_VERSION])
        .ingero(&[Ingero::int("gpu.nccl.process_loaded", "1").prometheus("gpu_nccl_process_loaded")
            .by(&[&PID, &COMM, &LIBRARY_PATH, &LIBRARY_VERSION])]);
    NCCL_PROCESSES = level("warptrace.nccl.processes", "{process}", "Processes that have NCCL loaded")
        .ingero(&[Ingero::int("gpu.nccl.processes_total", "1").prometheus("gpu_nccl_processes_total")]);

    // Devices.
    GPU_UTILIZATION = gauge("hw.gpu.utilization", "1", "Part of the time in which the device was busy").by(&[&GPU, &GPU_TASK]);
    GPU_MEMORY_USAGE = level("hw.gpu.memory.usage", "By", "Device memory in use, of all processes").by(&[&GPU])
        .ingero(&[Ingero::int("gpu.memory.used", "By").prometheus("gpu_memory_used_bytes").by(&[&GPU])]);
    GPU_MEMORY_LIMIT = level("hw.gpu.memory.limit", "By", "Device memory").by(&[&GPU])
        .ingero(&[Ingero::int("gpu.memory.total", "By").prometheus("gpu_memory_total_bytes").by(&[&GPU])]);
    GPU_MEMORY_FREE = level("warptrace.gpu.memory.free", "By", "Device memory that can be allocated").by(&[&GPU])
        .ingero(&[Ingero::int("gpu.memory.free", "By").prometheus("gpu_memory_free_bytes").by(&[&GPU])]);
    GPU_MEMORY_RESERVED = gauge("warptrace.gpu.memory.reserved.utilization", "1",
        "Part of the device memory that the driver keeps for itself, which is no fragmentation").by(&[&GPU])
        .ingero(&[Ingero::double("gpu.memory.fragmentation_estimate", "1")
            .prometheus("gpu_memory_fragmentation_estimate").by(&[&GPU])]);
    PROCESS_GPU_MEMORY_USAGE = level("warptrace.process.gpu.memory.usage", "By",
        "Device memory in use by a process, as the driver says").by(&[&GPU, &PID])
        .ingero(&[Ingero::int("gpu.memory.process.allocated_bytes", "By")
            .prometheus("gpu_memory_process_allocated_bytes").by(&[&GPU, &PID])]);
    GPU_THROTTLE_ACTIVE = level("warptrace.gpu.throttle.active", "1", "1 while the device is throttled").by(&[&GPU, &THROTTLE_REASON])
        .ingero(&[
            Ingero::double("gpu.throttle.power_active", "1").prometheus("gpu_throttle_power_active")
                .by(&[&GPU]).only(&THROTTLE_REASON, "power"),
            Ingero::double("gpu.throttle.thermal_active", "1").prometheus("gpu_throttle_thermal_active")
                .by(&[&GPU]).only(&THROTTLE_REASON, "thermal"),
            Ingero::double("gpu.throttle.sw_active", "1").prometheus("gpu_throttle_sw_active")
                .by(&[&GPU]).only(&THROTTLE_REASON, "sw"),
            Ingero::double("gpu.throttle.hw_active", "1").prometheus("gpu_throttle_hw_active")
                .by(&[&GPU]).only(&THROTTLE_REASON, "hw"),
        ]);
    GPU_THROTTLE_COUNT = counter("warptrace.gpu.throttle.count", "{event}", "Times that throttling began").by(&[&GPU, &THROTTLE_REASON])
        .ingero(&[
            Ingero::only_prometheus("gpu_throttle_power_event_total", Shape::Sum).only(&THROTTLE_REASON, "power"),
            Ingero::only_prometheus("gpu_throttle_thermal_event_total", Shape::Sum).only(&THROTTLE_REASON, "thermal"),
            Ingero::only_prometheus("gpu_throttle_sw_event_total", Shape::Sum).only(&THROTTLE_REASON, "sw"),
            Ingero::only_prometheus("gpu_throttle_hw_event_total", Shape::Sum).only(&THROTTLE_REASON, "hw"),
        ]);

    GPU_CLOCK = gauge("warptrace.gpu.clock.frequency", "Hz", "Frequency of the multiprocessors' clock").by(&[&GPU]);
    GPU_CLOCK_LIMIT = gauge("warptrace.gpu.clock.limit", "Hz", "The most that it can be").by(&[&GPU]);
    GPU_TEMPERATURE = gauge("hw.temperature", "Cel", "Temperature of the device").by(&[&GPU]);
    GPU_POWER = gauge("hw.power", "W", "Power that the device takes").by(&[&GPU]);

    // The machine.
    CPU_UTILIZATION = gauge("system.cpu.utilization", "1", "Busy part of all CPUs")
        .ingero(&[Ingero::double("system.cpu.utilization", "1").prometheus("system_cpu_utilization")]);
    MEMORY_UTILIZATION = gauge("system.memory.utilization", "1", "Used part of the memory").by(&[&MEMORY_STATE])
        .ingero(&[Ingero::double("system.memory.utilization", "1").prometheus("system_memory_utilization")]);
    MEMORY_AVAILABLE = level("system.linux.memory.available", "By", "Memory that can be had without swapping")
        .ingero(&[Ingero::int("system.memory.usage.available", "By").prometheus("system_memory_usage_available")]);
    LOAD_AVERAGE_1M = gauge("system.cpu.load_average.1m", "{thread}", "Threads that run or want to, mean of about a minute")
        .ingero(&[Ingero::double("system.cpu.load_average.1m", "1").prometheus("system_cpu_load_average_1m")]);

    CONTEXT_SWITCHES = counter("process.context_switches", "{context_switch}", "Times that a traced thread lost its CPU")
        .by(&[&CONTEXT_SWITCH_TYPE, &PID]);

    // What the engine concluded.
    UNIT_DURATION = histogram("warptrace.unit.duration", "s", UNIT_SECS,
        "Steps, requests and other intervals that somebody waits for").by(&[&UNIT_KIND]);
    BLAME_TIME = counter("warptrace.blame.time", "s",
        "What units took longer than usual, by its cause; the causes add up to all of it").by(&[&CAUSE]);
    FINDING_COUNT = counter("warptrace.finding.count", "{finding}", "Findings that began").by(&[&SEVERITY, &CAUSE])
        .ingero(&[Ingero::sum("ingero.anomaly.count", "{event}").prometheus("ingero_anomaly_count")]);

    // Health of a node in its fleet.
    NODE_SCORE = gauge("warptrace.node.score", "1", "Health of the node: 1 is as good as its peers").by(&[&NODE_STATE, &WORKLOAD_TYPE, &CGROUP])
        .ingero(&[Ingero::double("ingero.node.health_score", "1").by(&[&NODE_STATE, &WORKLOAD_TYPE, &CGROUP])]);
    NODE_SIGNAL_VALUE = gauge("warptrace.node.signal", "1", "What the score is made of").by(&[&NODE_SIGNAL, &NODE_STATE, &WORKLOAD_TYPE])
        .ingero(&[
            Ingero::double("ingero.node.throughput_ratio", "1").by(HEALTH).only(&NODE_SIGNAL, "throughput"),
            Ingero::double("ingero.node.compute_efficiency", "1").by(HEALTH).only(&NODE_SIGNAL, "compute"),
            Ingero::double("ingero.node.memory_headroom", "1").by(HEALTH).only(&NODE_SIGNAL, "memory"),
            Ingero::double("ingero.node.cpu_availability", "1").by(HEALTH).only(&NODE_SIGNAL, "cpu"),
        ]);
    NODE_DEGRADED = level("warptrace.node.degraded", "1", "1 while a signal is below half of what it was for long").by(HEALTH)
        .ingero(&[Ingero::int("ingero.node.degradation_warning", "1").by(HEALTH)]);
    NODE_STRAGGLER = level("warptrace.node.straggler", "1", "1 while the node is slower than its peers").by(&[&DETECTION_MODE, &DOMINANT_SIGNAL])
        .ingero(&[Ingero::int("ingero.node.straggler_event", "1")
            .by(&[&DETECTION_MODE, &THRESHOLD, &SCORE, &DOMINANT_SIGNAL, &EVENT_ID])]);
    NODE_INFO = level("warptrace.node.info", "1", "1, for what the node has").by(&[&GPU_MODEL, &GPU_COUNT])
        .ingero(&[Ingero::int("ingero.node.info", "1").by(&[&GPU_MODEL, &GPU_COUNT])]);
    NODE_WORLD_SIZE = level("warptrace.node.world_size", "{process}", "Processes of the node's job")
        .ingero(&[Ingero::int("ingero.node.world_size", "1")]);
    NODE_CPU_STALL_TIME = counter("warptrace.node.cpu.stall.time", "s", "Time that traced threads waited for a CPU").by(&[&CGROUP])
        .ingero(&[Ingero::sum("ingero.node.cpu_stall_nanos_total", "ns").derived(Derived::Times(1e9)).by(&[&CGROUP])]);
    DETECTION = level("warptrace.agent.detection_mode", "1", "1, for how stragglers are told at the time").by(&[&DETECTION_MODE])
        .ingero(&[Ingero::int("ingero.agent.detection_mode", "1").by(&[&DETECTION_MODE])]);
    FLEET_REACHABLE = level("warptrace.agent.fleet.reachable", "1", "1 while the fleet's collector answers")
        .ingero(&[Ingero::int("ingero.agent.fleet_reachable", "1")]);
    FLEET_NODE_ACTIVE = level("warptrace.fleet.node.active", "{node}", "Nodes that report").by(&[&CLUSTER, &CGROUP])
        .ingero(&[Ingero::only_prometheus("ingero_fleet_active_nodes", Shape::IntGauge).by(&[&CLUSTER, &CGROUP])]);
    FLEET_THRESHOLD = gauge("warptrace.fleet.threshold", "1", "Score below which a node is a straggler").by(&[&CLUSTER, &CGROUP])
        .ingero(&[Ingero::only_prometheus("ingero_fleet_threshold", Shape::DoubleGauge).by(&[&CLUSTER, &CGROUP])]);
    FLEET_MEDIAN = gauge("warptrace.fleet.median", "1", "Median of the scores").by(&[&CLUSTER, &CGROUP])
        .ingero(&[Ingero::only_prometheus("ingero_fleet_median", Shape::DoubleGauge).by(&[&CLUSTER, &CGROUP])]);
    FLEET_MAD = gauge("warptrace.fleet.mad", "1", "Median of the scores' distances from their median").by(&[&CLUSTER, &CGROUP])
        .ingero(&[Ingero::only_prometheus("ingero_fleet_mad", Shape::DoubleGauge).by(&[&CLUSTER, &CGROUP])]);
    FLEET_STRAGGLERS = level("warptrace.fleet.stragglers", "{node}", "Nodes below the threshold").by(&[&CLUSTER, &CGROUP])
        .ingero(&[Ingero::only_prometheus("ingero_fleet_straggler_count", Shape::IntGauge).by(&[&CLUSTER, &CGROUP])]);
    FLEET_COVERAGE_LOW = level("warptrace.fleet.coverage_low", "1", "1 while too few nodes report to judge").by(&[&CLUSTER, &CGROUP])
        .ingero(&[Ingero::only_prometheus("ingero_fleet_coverage_low", Shape::IntGauge).by(&[&CLUSTER, &CGROUP])]);

    // Ourselves.
    AGENT_RECORD_COUNT = counter("warptrace.agent.record.count", "{record}", "Records that arrived");
    AGENT_RECORD_DROPPED = counter("warptrace.agent.record.dropped", "{record}", "Records that did not").by(&[&ERROR_TYPE, &SOURCE])
        .ingero(&[Ingero::only_prometheus("ingero_ringbuf_overflows_total", Shape::Sum).only(&ERROR_TYPE, "ring_full")]);
    AGENT_GAP_COUNT = counter("warptrace.agent.gap.count", "{gap}", "Things that could not be known").by(&[&GAP]);
    ANNOTATION_COUNT = counter("warptrace.annotation.count", "{annotation}", "Annotations of the job");
    STORE_SIZE = level("warptrace.store.size", "By", "The session that is being written, on disk")
        .ingero(&[Ingero::only_prometheus("ingero_trace_db_bytes", Shape::IntGauge)]);
    STORE_PRUNED = counter("warptrace.store.pruned", "{row}", "Rows that were deleted to stay within bounds")
        .ingero(&[Ingero::only_prometheus("ingero_trace_db_pruned_rows_total", Shape::Sum)]);
    STREAM_CONSUMERS = level("warptrace.stream.consumers", "{consumer}", "Consumers of the outlier stream");
    STREAM_DROPPED = counter("warptrace.stream.dropped", "{message}",
        "Messages of the outlier stream that a consumer did not get").by(&[&ERROR_TYPE]);
    EXPORT_POINTS = counter("otel.sdk.exporter.metric_data_point.exported", "{data_point}",
        "Points that were exported; with an error, that were not").by(&[&ERROR_TYPE]);
    EXPORT_SPANS = counter("otel.sdk.exporter.span.exported", "{span}",
        "Spans that were exported; with an error, that were not").by(&[&ERROR_TYPE]);
    EXPORT_POINTS_WAITING = level("otel.sdk.exporter.metric_data_point.inflight", "{data_point}",
        "Points that wait to be exported, or are under way");
    EXPORT_SPANS_WAITING = level("otel.sdk.exporter.span.inflight", "{span}",
        "Spans that wait to be exported, or are under way");
    RECEIVE_REQUEST_COUNT = counter("warptrace.receive.request.count", "{request}",
        "Requests with spans of others that were taken; with an error, that were not").by(&[&ERROR_TYPE]);
    METRIC_REFUSED = counter("warptrace.metric.refused", "{measurement}",
        "Measurements for new series, of which there were too many");
    ALERT_COUNT = counter("warptrace.alert.count", "{alert}", "Alerts that were sent; with an error, that were not").by(&[&ERROR_TYPE]);
    ALERT_WAITING = level("warptrace.alert.inflight", "{alert}", "Alerts that wait to be sent, or are under way");
    PROCESS_UPTIME = gauge("process.uptime", "s", "How long the recording goes on");
    PROCESS_CPU_TIME = counter("process.cpu.time", "s", "CPU time of warptrace itself").by(&[&CPU_MODE]);
    PROCESS_MEMORY_USAGE = level("process.memory.usage", "By", "Resident memory of warptrace itself");
}
