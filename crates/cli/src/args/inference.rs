//! Flags of how inference servers are followed, and of where what is found goes.
//!
//! Nothing has a default here: what is not given is decided where the flags meet the file.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use warptrace_model::inference::OutlierBucket;

use super::{parse_bytes, parse_duration, parse_switch};
use crate::config::{Classifier, Leaf as _, ScrapeWhich, Url};

/// How the steps of inference servers are judged. What is not given is as docs/inference.md says.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Inference servers")]
pub(crate) struct InferenceArgs {
    /// Follow the steps of inference servers (vLLM, SGLang, TGI, Triton): phases, what is usual, outliers
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "on", value_name = "on|off", value_parser = parse_switch)]
    pub(crate) inference: Option<bool>,
    /// Ask servers for what they say of themselves: those that are found (auto), or none (off) [default: auto]
    #[arg(long, value_name = "WHICH", value_enum, hide_short_help = true)]
    pub(crate) inference_scrape: Option<ScrapeWhich>,
    /// How often [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, hide_short_help = true)]
    pub(crate) inference_scrape_interval: Option<Duration>,
    /// Where, instead of the address at which a server listens
    #[arg(long, value_name = "IP", hide_short_help = true)]
    pub(crate) inference_scrape_host: Option<std::net::IpAddr>,
    /// How often to look for servers while there is none [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, hide_short_help = true)]
    pub(crate) inference_scrape_redetect_interval: Option<Duration>,
    #[command(flatten)]
    pub(crate) rules: InferenceRules,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Inference servers")]
pub(crate) struct InferenceRules {
    /// Steps before a workload is judged [default: 30]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(crate) inference_warmup: Option<u32>,
    /// Where the outermost bucket of outliers begins, in 95th percentiles [default: 3]
    #[arg(long, value_name = "RATIO", hide_short_help = true)]
    pub(crate) inference_outlier_ratio: Option<f64>,
    /// While a finding of this severity is fresh its process is not judged (low, medium, high, critical, off) [default: high]
    #[arg(long, value_name = "SEVERITY", value_parser = parse_pause, hide_short_help = true)]
    pub(crate) inference_pause_on_severity: Option<Pause>,
    /// Outliers of this bucket or further out end the thinning out of --inference-sampler for 30s (1.5x, 2x, 3x, off) [default: 3x]
    #[arg(long, value_name = "BUCKET", value_parser = parse_degrade, hide_short_help = true)]
    pub(crate) inference_sampler_degrade_on: Option<DegradeOn>,
    /// Tell steps apart by phase (rule), or have one baseline a stream (off) [default: rule]
    #[arg(long, value_name = "WHICH", value_enum, hide_short_help = true)]
    pub(crate) inference_phase_classifier: Option<Classifier>,
    /// Decode: fewer launches than this [default: 50]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(crate) inference_phase_decode_max_launches: Option<u64>,
    /// Decode: less copied than this [default: 1MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, hide_short_help = true)]
    pub(crate) inference_phase_decode_max_memcpy: Option<u64>,
    /// Prefill: more launches than this [default: 200]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(crate) inference_phase_prefill_min_launches: Option<u64>,
    /// Prefill: launch calls that take longer than this on average [default: 500us]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, hide_short_help = true)]
    pub(crate) inference_phase_prefill_min_avg_kernel: Option<Duration>,
    /// Mixed: at least this much copied [default: 10MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, hide_short_help = true)]
    pub(crate) inference_phase_mixed_memcpy: Option<u64>,
    /// Mixed: from this many launches … [default: 50]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(crate) inference_phase_mixed_launch_low: Option<u64>,
    /// … to this many [default: 200]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(crate) inference_phase_mixed_launch_high: Option<u64>,
    /// Decode: this many calls that take device memory or give it back; 0 takes the rule away [default: 1]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(crate) inference_phase_memfrag_decode_min: Option<u32>,
    /// Tell workloads apart by the sequence of kernels that they launch, too
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "on", value_name = "on|off", value_parser = parse_switch, hide_short_help = true)]
    pub(crate) inference_fingerprint_key: Option<bool>,
    /// Say with an outlier how old the oldest allocations of its process are
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "on", value_name = "on|off", value_parser = parse_switch, hide_short_help = true)]
    pub(crate) inference_kvcache_lineage: Option<bool>,
    /// How many of them [default: 5]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(crate) inference_kvcache_top_n: Option<usize>,
    /// Allocations remembered of a process [default: 8192]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(crate) inference_kvcache_max_per_pid: Option<usize>,
}

/// Which severity pauses the judgement, if one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pause(pub(crate) Option<warptrace_model::Severity>);

/// Which bucket of outliers has the sampler keep everything, if one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DegradeOn(pub(crate) Option<OutlierBucket>);

/// Where something is served; `None` is the usual place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServedAt(pub(crate) Option<std::net::SocketAddr>);

/// Where what is found goes while it is found.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Telemetry")]
pub(crate) struct OutgoingArgs {
    /// Tell outliers on this Unix socket [default: one that `warptrace outliers` finds]
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    pub(crate) outliers: Option<PathBuf>,
    /// Serve metrics to Prometheus, on this machine only [default of ADDRESS: 127.0.0.1:9464]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, require_equals = true, default_missing_value = "", value_parser = parse_place)]
    pub(crate) prometheus: Option<ServedAt>,
    /// Send metrics and traces to an OpenTelemetry collector [default of URL: by OTEL_EXPORTER_OTLP_ENDPOINT, else this machine]
    #[arg(long, value_name = "URL", num_args = 0..=1, require_equals = true, default_missing_value = "", value_parser = parse_otlp)]
    pub(crate) otlp: Option<Url>,
    /// Take the job's own spans, by OTLP over HTTP, and pass them on to the collector of --otlp [default of ADDRESS: 127.0.0.1:4318]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, require_equals = true, default_missing_value = "", value_parser = parse_place, hide_short_help = true)]
    pub(crate) otlp_receive: Option<ServedAt>,
    /// Names of metrics: OpenTelemetry's (native), those of ingero, or both for a change-over [default: native]
    #[arg(long, value_name = "NAMES", value_parser = parse_names, hide_short_help = true)]
    pub(crate) metric_names: Option<warptrace_formats::metrics::Names>,
    /// What this node is called [default: the host's name]
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub(crate) node: Option<String>,
    /// The cluster that it is in
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub(crate) cluster: Option<String>,
}

fn parse_pause(text: &str) -> Result<Pause, String> {
    match text {
        "off" => Ok(Pause(None)),
        text => warptrace_model::Severity::by_name(text)
            .map(|severity| Pause(Some(severity)))
            .ok_or_else(|| "one of low, medium, high, critical, off".into()),
    }
}

fn parse_degrade(text: &str) -> Result<DegradeOn, String> {
    match text {
        "off" => Ok(DegradeOn(None)),
        text => OutlierBucket::by_name(text)
            .map(|bucket| DegradeOn(Some(bucket)))
            .ok_or_else(|| "one of 1.5x, 2x, 3x, off".into()),
    }
}

fn parse_names(text: &str) -> Result<warptrace_formats::metrics::Names, String> {
    warptrace_formats::metrics::Names::by_name(text)
        .ok_or_else(|| "one of native, ingero, both".into())
}

fn parse_place(text: &str) -> Result<ServedAt, String> {
    match text {
        "" => Ok(ServedAt(None)),
        text => text
            .parse()
            .map(|address| ServedAt(Some(address)))
            .map_err(|_| "not an address with a port (127.0.0.1:9464, [::1]:9464)".into()),
    }
}

fn parse_otlp(text: &str) -> Result<Url, String> {
    match text {
        "" => Ok(Url(String::new())),
        text => Url::parse(text),
    }
}
