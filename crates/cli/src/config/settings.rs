//! Every setting of a recorder, with its default.
//!
//! What `--inference` changes besides is in [`super::layers`]. Keys have the names of the flags where there is one.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use warptrace_engine::{InferenceSettings, KvLineage, PhaseRules};
use warptrace_formats::metrics::Names;
use warptrace_model::Severity;
use warptrace_model::inference::OutlierBucket;

use super::kinds::{Bytes, Headers, Prices, RingSize, Url};
use super::tree::{choice, section};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

section! {
    /// All of them. Which process is recorded, and whether it is explained, are no settings: they are the command line's.
    Settings {
        /// Speak as another tracer does: its names of metrics, its messages. The numbers stay ours
        compat: Option<Compat> = None, like "ingero";
        /// Stop after this time
        duration: Option<Duration> = None, flag "--duration", like "12h";
        /// JSON lines instead of the table: findings, drops and a status now and then (findings), all events as well (events), or off. With inference.enabled and no command findings
        json: JsonLines = JsonLines::Off, flag "--json", like "findings";
        /// Between two status lines of json. Without it 1m, with inference.enabled 30s
        heartbeat: Duration = secs(60), flag "--heartbeat", like "30s";
        /// Between two samples of the machine and its devices: memory, clocks, throttling
        sample_interval: Duration = secs(1), flag "--sample-interval";
        /// Take annotations: what the job says of its steps and requests
        annotate: bool = false, flag "--annotate";
        /// Kernel buffer for records, a power of two
        ring_size: RingSize = RingSize(8 << 20), flag "--ring-size";
        /// What this node is called. Without it the host's name
        node: Option<String> = None, flag "--node", like "gpu-17";
        /// The cluster that it is in
        cluster: Option<String> = None, flag "--cluster", like "west";
        /// Our own log
        log: Log = Log::default();
        /// Sessions: when one ends and the next begins, and which are kept
        store: Store = Store::default();
        /// Inference servers: how their steps are followed and judged
        inference: Inference = Inference::default();
        /// Metrics, wherever they go
        metrics: Metrics = Metrics::default();
        /// Metrics for Prometheus to ask for. Its token is in the variable WARPTRACE_PROMETHEUS_TOKEN
        prometheus: Prometheus = Prometheus::default();
        /// Metrics and traces to an OpenTelemetry collector. OpenTelemetry's own variables come before these
        otlp: Otlp = Otlp::default();
        /// Alerts. Who is told is in the variables WARPTRACE_ALERT_…: addresses and keys are no settings
        alerts: Alerts = Alerts::default();
        /// What GPUs cost
        cost: Cost = Cost::default();
    }
}

choice! {
    /// Another tracer.
    Compat {
        Ingero = "ingero",
    }
}

choice! {
    /// What goes to stdout as JSON.
    JsonLines {
        /// A table, where there is a terminal
        Off = "off",
        /// Findings, drops, a status line now and then
        Findings = "findings",
        /// Every event as well
        Events = "events",
    }
}

choice! {
    LogLevel {
        Off = "off",
        Error = "error",
        Warn = "warn",
        Info = "info",
        Debug = "debug",
        Trace = "trace",
    }
}

section! {
    Log {
        /// Write it to this file. Without it to stderr
        file: Option<PathBuf> = None, flag "--log", like "/var/log/warptrace.log";
        /// What it tells: off, error, warn, info, debug, trace. -v and WARPTRACE_LOG come before it
        level: LogLevel = LogLevel::Warn, flag "--log-level";
    }
}

section! {
    Store {
        /// A new session begins when the one that is written is so big. With inference.enabled 1GiB
        rollover_size: Option<Bytes> = None, flag "--rollover-size", like "1GiB";
        /// … or so old. With inference.enabled 24h
        rollover_age: Option<Duration> = None, flag "--rollover-age", like "24h";
        /// Finished sessions of this recorder that are kept; the oldest go. With inference.enabled 6
        keep: Option<u32> = None, flag "--keep", like "6";
        /// Remove the oldest sessions, anybody's, until all take at most this much
        max_bytes: Option<Bytes> = None, flag "--max-bytes", like "20GiB";
        /// Remove sessions that are older than this
        max_age: Option<Duration> = None, flag "--max-age", like "7d";
    }
}

section! {
    Inference {
        /// Follow the steps of inference servers (vLLM, SGLang, TGI, Triton): phases, what is usual, outliers
        enabled: bool = false, flag "--inference";
        /// What is usual for a workload
        baseline: Baseline = Baseline::default();
        /// What is not
        outlier: Outlier = Outlier::default();
        /// How steps are told apart
        phase: Phase = Phase::default();
        /// Keep one event in a hundred while steps are healthy, each with its weight, and all around outliers
        sampler: bool = false, flag "--inference-sampler";
        /// Tell workloads apart by the sequence of kernels that they launch, too
        fingerprint_key: bool = false, flag "--inference-fingerprint-key";
        /// How old the oldest allocations of a process are, said with its outliers
        kvcache: KvCache = KvCache::default();
        /// What servers say of themselves
        scrape: Scraping = Scraping::default();
    }
}

section! {
    Baseline {
        /// Steps before a workload is judged
        warmup_samples: u32 = InferenceSettings::default().warmup_steps, flag "--inference-warmup";
        /// While a finding of this severity is fresh its process is not judged: low, medium, high, critical, off
        pause_on_severity: Option<Severity> = InferenceSettings::default().pause_on, flag "--inference-pause-on-severity";
    }
}

section! {
    Outlier {
        /// Where the outermost bucket begins, in 95th percentiles: more than 1
        threshold_ratio: f64 = InferenceSettings::default().outlier_ratio, flag "--inference-outlier-ratio";
        /// Outliers of this bucket or further out have the sampler keep everything: 1.5x, 2x, 3x, off
        sampler_degrade_on: Option<OutlierBucket> = InferenceSettings::default().degrade_on, flag "--inference-sampler-degrade-on";
        /// Tell them on this Unix socket. Without it on one that `warptrace outliers` finds
        socket: Option<PathBuf> = None, flag "--outliers", like "/run/warptrace/outliers.sock";
    }
}

choice! {
    Classifier {
        Rule = "rule",
        Off = "off",
    }
}

fn phases() -> PhaseRules {
    PhaseRules::default()
}

section! {
    Phase {
        /// By rules (rule), or one baseline a stream (off)
        classifier: Classifier = Classifier::Rule, flag "--inference-phase-classifier";
        /// Decode: fewer launches than this
        decode_max_launches: u64 = phases().decode_max_launches.unwrap_or(0), flag "--inference-phase-decode-max-launches";
        /// Decode: less copied than this
        decode_max_memcpy: Bytes = Bytes(phases().decode_max_copied_bytes.unwrap_or(0)), flag "--inference-phase-decode-max-memcpy";
        /// Prefill: more launches than this
        prefill_min_launches: u64 = phases().prefill_min_launches.unwrap_or(0), flag "--inference-phase-prefill-min-launches";
        /// Prefill: launch calls that take longer than this on average
        prefill_min_avg_kernel: Duration = Duration::from_nanos(phases().prefill_min_average_launch_nanos.unwrap_or(0)), flag "--inference-phase-prefill-min-avg-kernel";
        /// Mixed: at least this much copied
        mixed_memcpy: Bytes = Bytes(phases().mixed_min_copied_bytes.unwrap_or(0)), flag "--inference-phase-mixed-memcpy";
        /// Mixed: from this many launches …
        mixed_launch_low: u64 = phases().mixed_launches.unwrap_or_default().0, flag "--inference-phase-mixed-launch-low";
        /// … to this many
        mixed_launch_high: u64 = phases().mixed_launches.unwrap_or_default().1, flag "--inference-phase-mixed-launch-high";
        /// Decode: this many calls that take device memory or give it back; 0 takes the rule away
        memfrag_decode_min: u32 = phases().decode_min_memory_calls.unwrap_or(0), flag "--inference-phase-memfrag-decode-min";
    }
}

section! {
    KvCache {
        /// Say it
        lineage: bool = false, flag "--inference-kvcache-lineage";
        /// Of how many
        top_n: usize = KvLineage::default().top_n, flag "--inference-kvcache-top-n";
        /// Allocations remembered of a process
        max_per_pid: usize = KvLineage::default().max_per_process, flag "--inference-kvcache-max-per-pid";
    }
}

choice! {
    ScrapeWhich {
        Auto = "auto",
        Off = "off",
    }
}

section! {
    Scraping {
        /// Ask those that are found (auto), or none (off)
        mode: ScrapeWhich = ScrapeWhich::Auto, flag "--inference-scrape";
        /// How often
        interval: Duration = secs(10), flag "--inference-scrape-interval";
        /// Where, instead of the address at which a server listens
        host: Option<IpAddr> = None, flag "--inference-scrape-host", like "127.0.0.1";
        /// How often to look for servers while there is none
        redetect_interval: Duration = secs(30), flag "--inference-scrape-redetect-interval";
    }
}

section! {
    Metrics {
        /// Whose names: OpenTelemetry's (native), those of ingero, or both for a change-over. With compat: ingero those of ingero
        names: Names = Names::Native, flag "--metric-names", like "both";
    }
}

section! {
    Prometheus {
        /// Serve them
        enabled: bool = false, flag "--prometheus";
        /// Anything but loopback needs a certificate, its key and a token
        address: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 9464)), flag "--prometheus";
        /// File in PEM
        certificate: Option<PathBuf> = None, like "/etc/warptrace/tls.crt";
        /// File in PEM
        key: Option<PathBuf> = None, like "/etc/warptrace/tls.key";
    }
}

choice! {
    OtlpProtocol {
        HttpProtobuf = "http/protobuf",
        HttpJson = "http/json",
        Grpc = "grpc",
    }
}

choice! {
    OtlpCompression {
        None = "none",
        Gzip = "gzip",
    }
}

section! {
    Otlp {
        /// Send them
        enabled: bool = false, flag "--otlp";
        /// The collector's URL, without /v1/metrics. Without it this machine
        endpoint: Option<Url> = None, flag "--otlp", like "https://collector.example:4318";
        /// http/protobuf, http/json, grpc (in builds that have it)
        protocol: OtlpProtocol = OtlpProtocol::HttpProtobuf;
        /// Send metrics
        metrics: bool = true;
        /// Send a span for each outlier and each finding
        traces: bool = true;
        /// Between two sets of metrics
        metric_interval: Duration = secs(10);
        /// Of one request
        timeout: Duration = secs(10);
        /// none, gzip
        compression: OtlpCompression = OtlpCompression::None;
        /// Added to each request. Keys are no settings: OTEL_EXPORTER_OTLP_HEADERS has them
        headers: Headers = Headers::default();
        /// Whom to trust, a file in PEM. Without it the system's authorities
        certificate: Option<PathBuf> = None, like "/etc/warptrace/ca.crt";
        /// Our own certificate, a file in PEM, for collectors that ask for one
        client_certificate: Option<PathBuf> = None, like "/etc/warptrace/client.crt";
        /// … and its key
        client_key: Option<PathBuf> = None, like "/etc/warptrace/client.key";
        /// The job's own spans, passed on. Its token is in the variable WARPTRACE_OTLP_RECEIVE_TOKEN
        receive: Receive = Receive::default();
    }
}

section! {
    Receive {
        /// Take them, by OTLP over HTTP
        enabled: bool = false, flag "--otlp-receive";
        /// Anything but loopback needs a certificate, its key and a token
        address: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 4318)), flag "--otlp-receive";
        /// File in PEM
        certificate: Option<PathBuf> = None, like "/etc/warptrace/tls.crt";
        /// File in PEM
        key: Option<PathBuf> = None, like "/etc/warptrace/tls.key";
    }
}

section! {
    Alerts {
        /// Below it nobody is told: low, medium, high, critical
        min_severity: Severity = Severity::Medium;
        /// It is over when nothing was heard of it for so long
        resolve_after: Duration = secs(300);
        /// Say again that it goes on; or off
        reminder: Option<Duration> = Some(secs(4 * 3600));
        /// Incidents at a time
        max_open: u32 = 1024;
        /// Alerts at once, and …
        burst: u32 = 10;
        /// … in so much time
        burst_period: Duration = secs(60);
        /// Notices that wait for a receiver
        queue: u32 = 256;
        /// Of one request
        timeout: Duration = secs(10);
        /// To the address in WARPTRACE_ALERT_SLACK_URL
        slack: Slack = Slack::default();
        /// By the key in WARPTRACE_ALERT_PAGERDUTY_KEY
        pagerduty: PagerDuty = PagerDuty::default();
        /// To the address in WARPTRACE_ALERT_WEBHOOK_URL, with the token in WARPTRACE_ALERT_WEBHOOK_TOKEN if there is one
        webhook: Webhook = Webhook::default();
    }
}

section! {
    Slack {
        /// Instead of the one that the address was made for
        channel: Option<String> = None, like "#gpu";
        username: Option<String> = None, like "warptrace";
        /// Instead of the one for all
        min_severity: Option<Severity> = None, like "high";
        /// What is said (docs/alerts.md)
        template: Option<String> = None, like "{severity} {summary}";
    }
}

choice! {
    PagerDutySeverity {
        Critical = "critical",
        Error = "error",
        Warning = "warning",
        Info = "info",
    }
}

choice! {
    Region {
        Us = "us",
        Eu = "eu",
    }
}

section! {
    PagerDuty {
        /// Of the service: us, eu
        region: Region = Region::Us;
        /// Instead of the alert's own: critical, error, warning, info
        severity: Option<PagerDutySeverity> = None, like "warning";
        /// Instead of the one for all
        min_severity: Option<Severity> = None, like "critical";
        /// What is said (docs/alerts.md)
        template: Option<String> = None, like "{summary}";
    }
}

section! {
    Webhook {
        /// Instead of the one for all
        min_severity: Option<Severity> = None, like "high";
        /// What is said (docs/alerts.md)
        template: Option<String> = None, like "{action} {summary}";
    }
}

section! {
    Cost {
        /// Whose GPUs they are: aws, gcp, lambda, or one that has prices below or in rates
        provider: Option<String> = None, flag "--provider", like "aws";
        /// A file of prices, YAML or JSON, before the built-in ones (docs/cost.md)
        rates: Option<PathBuf> = None, flag "--gpu-rates", like "/etc/warptrace/gpu_rates.yaml";
        /// Prices here, as such a file has them; they come first
        prices: Prices = Prices::default();
    }
}
