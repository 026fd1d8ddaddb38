//! Inference servers on the command line: settings from flags, the ways out, and `outliers`.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use warptrace_agent::{Kept, Outgoing, OutlierSocket, SocketOptions};
use warptrace_capture::engines::{self, EngineWatch};
use warptrace_engine::{InferenceSettings, KvLineage, PhaseRules};
use warptrace_export::alert::{AlertConfig, Alerter};
use warptrace_export::otlp::{self, Ignored, Signal};
use warptrace_export::{
    Batching, HostFacts, MetricSender, MetricSettings, ReceiveConfig, ResourceOptions, Scrape,
    ScrapeConfig, ServerTls, SpanReceiver, SpanRelay, SpanSender, resource_attributes,
};
use warptrace_formats::annotation::Surroundings;
use warptrace_formats::outlier_stream::{InferenceOutlier, MAX_LINE_BYTES, Message, Node};
use warptrace_model::Value;
use warptrace_model::metric::resource;

use crate::args::{Global, OutliersArgs};
use crate::config::{self, Classifier, Loaded, Node as _, Origin, Receive, ScrapeWhich, Settings};
use crate::{cost, output, sessions};

/// Of outliers and findings that wait for a collector, some 4,000: a recorder's memory is bounded more tightly than a job's.
const SPAN_QUEUE_BYTES: usize = 8 << 20;

/// Of the job's spans that wait for a collector: twice some of the largest requests that are taken.
const RELAY_QUEUE_BYTES: usize = 8 << 20;

/// How steps are judged; `None` when they are not.
pub(crate) fn settings(config: &Settings) -> anyhow::Result<Option<InferenceSettings>> {
    match config.inference.enabled {
        true => rules(&config.inference).map(Some),
        false => Ok(None),
    }
}

/// How steps would be judged.
///
/// # Errors
/// The first setting that no judgement can be made by.
pub(crate) fn rules(config: &config::Inference) -> anyhow::Result<InferenceSettings> {
    let phase = &config.phase;
    let nanos = u64::try_from(phase.prefill_min_avg_kernel.as_nanos()).unwrap_or(u64::MAX);
    let phases = PhaseRules {
        decode_max_launches: Some(phase.decode_max_launches),
        decode_max_copied_bytes: Some(phase.decode_max_memcpy.0),
        prefill_min_launches: Some(phase.prefill_min_launches),
        prefill_min_average_launch_nanos: Some(nanos),
        mixed_min_copied_bytes: Some(phase.mixed_memcpy.0),
        mixed_launches: Some((phase.mixed_launch_low, phase.mixed_launch_high)),
        decode_min_memory_calls: (phase.memfrag_decode_min > 0).then_some(phase.memfrag_decode_min),
        ..PhaseRules::default()
    };
    let settings = InferenceSettings {
        warmup_steps: config.baseline.warmup_samples,
        pause_on: config.baseline.pause_on_severity,
        outlier_ratio: config.outlier.threshold_ratio,
        degrade_on: config.outlier.sampler_degrade_on,
        fingerprint_key: config.fingerprint_key,
        kv_lineage: config.kvcache.lineage.then_some(KvLineage {
            top_n: config.kvcache.top_n,
            max_per_process: config.kvcache.max_per_pid,
        }),
        phases: (phase.classifier == Classifier::Rule).then_some(phases),
        ..InferenceSettings::default()
    };
    settings.validate().map_err(|wrong| {
        let key = match wrong.field {
            "warmup_steps" => "baseline.warmup_samples",
            "outlier_ratio" => "outlier.threshold_ratio",
            "kv_lineage.top_n" => "kvcache.top_n",
            "kv_lineage.max_per_process" => "kvcache.max_per_pid",
            field => field,
        };
        anyhow!("inference.{key} {} is not {}", wrong.value, wrong.allowed)
    })?;
    Ok(settings)
}

/// Servers that are looked for and asked, among `pids` and their children if there are any.
pub(crate) fn engines(config: &Settings, pids: &[u32]) -> anyhow::Result<Option<EngineWatch>> {
    let scrape = &config.inference.scrape;
    if !config.inference.enabled || scrape.mode == ScrapeWhich::Off {
        return Ok(None);
    }
    let watch = EngineWatch::start(engines::Settings {
        pids: pids.to_vec(),
        interval: scrape.interval,
        redetect: scrape.redetect_interval,
        host: scrape.host,
        ..engines::Settings::default()
    });
    Ok(Some(watch.context("cannot look for inference servers")?))
}

/// Who is told of alerts, and how. Keys and addresses are looked up in `environment`.
///
/// # Errors
/// What of it cannot be used.
pub(crate) fn alerts(
    config: &Settings,
    environment: &dyn Fn(&str) -> Option<String>,
    source: &str,
) -> anyhow::Result<AlertConfig> {
    // Its message has the cause in it.
    AlertConfig::from_value(&config.alerts.show(), environment, source)
        .map_err(|e| anyhow!("cannot send alerts: {e}"))
}

/// OpenTelemetry's variables, and what the settings say in their place. A flag and a variable of ours come before them, the file
/// after them.
fn otel(config: &Loaded, name: &str) -> Option<String> {
    let otlp = &config.otlp;
    let millis = |time: Duration| Some(time.as_millis().to_string());
    let path_text = |path: &Option<PathBuf>| Some(path.as_ref()?.to_string_lossy().into_owned());
    let (path, said) = match name {
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT" | "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => {
            ("otlp.endpoint", None)
        }
        "OTEL_EXPORTER_OTLP_ENDPOINT" => {
            let url = otlp.endpoint.as_ref();
            ("otlp.endpoint", url.map(|url| url.0.clone()))
        }
        "OTEL_EXPORTER_OTLP_PROTOCOL" => {
            let name = otlp.protocol.show().as_str().map(str::to_owned);
            ("otlp.protocol", name)
        }
        "OTEL_EXPORTER_OTLP_COMPRESSION" => {
            let name = otlp.compression.show().as_str().map(str::to_owned);
            ("otlp.compression", name)
        }
        "OTEL_EXPORTER_OTLP_HEADERS" => ("otlp.headers", Some(otlp.headers.encoded())),
        "OTEL_EXPORTER_OTLP_TIMEOUT" => ("otlp.timeout", millis(otlp.timeout)),
        "OTEL_EXPORTER_OTLP_CERTIFICATE" => ("otlp.certificate", path_text(&otlp.certificate)),
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE" => {
            let path = path_text(&otlp.client_certificate);
            ("otlp.client_certificate", path)
        }
        "OTEL_EXPORTER_OTLP_CLIENT_KEY" => ("otlp.client_key", path_text(&otlp.client_key)),
        "OTEL_METRIC_EXPORT_INTERVAL" => ("otlp.metric_interval", millis(otlp.metric_interval)),
        "OTEL_EXPORTER_PROMETHEUS_HOST" => {
            let host = config.prometheus.address.ip().to_string();
            ("prometheus.address", Some(host))
        }
        "OTEL_EXPORTER_PROMETHEUS_PORT" => {
            let port = config.prometheus.address.port().to_string();
            ("prometheus.address", Some(port))
        }
        _ => return std::env::var(name).ok(),
    };
    match config.origin(path) {
        Origin::Flag | Origin::Variable => said,
        Origin::Default => std::env::var(name).ok(),
        _ => {
            let variable = std::env::var(name).ok();
            variable.filter(|text| !text.trim().is_empty()).or(said)
        }
    }
}

/// The ways out that were asked for, without those that a recording goes on with. `None` unless inference servers are followed.
pub(crate) fn outgoing(
    config: &Loaded,
    data: &Path,
    keep: Kept,
) -> anyhow::Result<Option<Outgoing>> {
    if !config.inference.enabled {
        return Ok(None);
    }
    let lookup = |name: &str| otel(config, name);
    let options = ResourceOptions {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance_id: instance_id(),
        node_id: config.node.clone(),
        cluster_id: config.cluster.clone(),
        provider: config.cost.provider.clone(),
        ..ResourceOptions::default()
    };
    let (resource, ignored) = resource_attributes(&host_facts(), &options, lookup);
    warn_of(ignored);
    let said = |name: &str| {
        let said = resource.get(name).and_then(Value::as_str);
        said.unwrap_or_default().to_owned()
    };
    let names = config.metrics.names;
    let mut outgoing = Outgoing {
        node: Node {
            node_id: said(resource::NODE_ID),
            cluster_id: said(resource::CLUSTER_ID),
            ..Node::default()
        },
        names,
        ..Outgoing::default()
    };
    outgoing.outliers = match &config.inference.outlier.socket {
        _ if keep.outliers => None,
        Some(path) => Some(OutlierSocket::start(path).context("cannot tell outliers")?),
        None => usual_socket(data),
    };
    let prometheus = &config.prometheus;
    if prometheus.enabled && !keep.scrape {
        let (at, ignored) = ScrapeConfig::from_env(lookup);
        warn_of(ignored);
        let files = prometheus.certificate.clone().zip(prometheus.key.clone());
        let config = ScrapeConfig {
            names,
            token: lookup("WARPTRACE_PROMETHEUS_TOKEN"),
            tls: files.map(|(certificate, key)| ServerTls { certificate, key }),
            ..at
        };
        let scrape = Scrape::start(&config).context("cannot serve metrics to Prometheus")?;
        tracing::info!(address = %scrape.address(), "metrics are served at /metrics");
        outgoing.scrape = Some(scrape);
    }
    let collector = |signal| {
        let (config, ignored) = otlp::Config::from_env(signal, lookup);
        warn_of(ignored);
        config
    };
    if config.otlp.enabled && config.otlp.metrics && !keep.metrics {
        let (mut settings, ignored) = MetricSettings::from_env(lookup);
        warn_of(ignored);
        settings.names = names;
        let every = settings.interval;
        let sender = MetricSender::new(&collector(Signal::Metrics), settings, &options.version)
            .context("cannot send metrics")?;
        outgoing.metrics = Some((sender, every));
    }
    if config.otlp.enabled && config.otlp.traces && !keep.spans {
        let (batching, ignored) = Batching::from_env(lookup);
        warn_of(ignored);
        let batching = Batching {
            queue_bytes: SPAN_QUEUE_BYTES,
            ..batching
        };
        let spans = SpanSender::new(
            &collector(Signal::Traces),
            batching,
            resource.clone(),
            "warptrace",
            &options.version,
        );
        outgoing.spans = Some(spans.context("cannot send traces")?);
    }
    if config.otlp.enabled && config.otlp.receive.enabled {
        let (batching, _) = Batching::from_env(lookup);
        pass_on(
            &config.otlp.receive,
            &collector(Signal::Traces),
            batching.retry,
            lookup("WARPTRACE_OTLP_RECEIVE_TOKEN"),
            keep,
            &mut outgoing,
        )?;
    }
    let alerts = alerts(config, &lookup, &outgoing.node.node_id)?;
    if !alerts.receivers.is_empty() && !keep.alerts {
        outgoing.alerts = Some(Alerter::start(alerts).context("cannot send alerts")?);
    }
    outgoing.prices = cost::of_settings(config)?;
    outgoing.provider = said(resource::CLOUD_PROVIDER);
    outgoing.resource = resource;
    Ok(Some(outgoing))
}

/// Takes the job's spans, and passes them on to `collector`.
fn pass_on(
    receive: &Receive,
    collector: &otlp::Config,
    retry: otlp::Retry,
    token: Option<String>,
    keep: Kept,
    outgoing: &mut Outgoing,
) -> anyhow::Result<()> {
    let relay = match keep.relay {
        true => None,
        false => {
            let relay = SpanRelay::new(collector, RELAY_QUEUE_BYTES, retry);
            Some(Arc::new(relay.context("cannot pass spans on")?))
        }
    };
    let mut address = receive.address;
    if let (false, Some(relay)) = (keep.receiver, &relay) {
        let files = receive.certificate.clone().zip(receive.key.clone());
        let config = ReceiveConfig {
            address,
            token,
            tls: files.map(|(certificate, key)| ServerTls { certificate, key }),
        };
        let receiver = SpanReceiver::start(&config, Arc::clone(relay))
            .context("cannot take the job's spans")?;
        address = receiver.address();
        tracing::info!(%address, "the job's spans are taken at /v1/traces");
        outgoing.receiver = Some(receiver);
    }
    // A port that the system picked is nobody's yet.
    let is_known = address.port() != 0;
    if is_known && relay.as_ref().is_some_and(|relay| relay.leads_to(address)) {
        bail!(
            "the job's spans, taken at {address}, would be passed on to the same place: name another by --otlp-receive=ADDRESS, or the collector by --otlp=URL"
        );
    }
    outgoing.relay = relay;
    Ok(())
}

/// Tells the job where its spans are taken, unless its environment says where they go.
///
/// Not when it needs a token or a certificate to send them, which nobody but its owner gives it, nor when it is told to speak gRPC.
pub(crate) fn tell_job(config: &Loaded, address: SocketAddr, env: &mut Vec<(OsString, OsString)>) {
    const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL";
    let has_token = std::env::var_os("WARPTRACE_OTLP_RECEIVE_TOKEN").is_some();
    let said = |name: &str| {
        let given = env
            .iter()
            .find(|(key, _)| key.as_os_str() == OsStr::new(name));
        let text = given
            .map(|(_, value)| value.clone())
            .or_else(|| std::env::var_os(name));
        text.filter(|text| !text.is_empty())
    };
    let protocol = said(PROTOCOL).or_else(|| said("OTEL_EXPORTER_OTLP_PROTOCOL"));
    let speaks_grpc = protocol
        .as_deref()
        .is_some_and(|name| name.eq_ignore_ascii_case("grpc"));
    let why_not = if said(ENDPOINT).is_some() {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT says where"
    } else if speaks_grpc {
        "OTEL_EXPORTER_OTLP_PROTOCOL says grpc, and they are taken by HTTP"
    } else if has_token || config.otlp.receive.certificate.is_some() {
        "it needs a token, or a certificate to trust"
    } else {
        let url = format!("http://{address}/v1/traces");
        let protocol_said = protocol.is_some();
        env.push((ENDPOINT.into(), url.into()));
        if !protocol_said {
            env.push((PROTOCOL.into(), "http/protobuf".into()));
        }
        return;
    };
    tracing::info!("the job is not told where its spans are taken: {why_not}");
}

/// Without it the recording goes on: nobody asked for this place.
fn usual_socket(data: &Path) -> Option<OutlierSocket> {
    let usual = SocketOptions::usual(data).ok()?;
    let name = format!("outliers-{}.sock", std::process::id());
    let started = OutlierSocket::start(&usual.path.with_file_name(name));
    let why_not = |e: &_| tracing::warn!(error = %e, "outliers are not told while they are found");
    started.inspect_err(why_not).ok()
}

fn warn_of(ignored: Vec<Ignored>) {
    for variable in ignored {
        tracing::warn!("{variable}");
    }
}

/// Of this process: the same after its settings were read again.
fn instance_id() -> String {
    static ID: OnceLock<String> = OnceLock::new();
    let new = || {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed();
        let nanos = now.map_or(0, |since| since.as_nanos());
        format!("{nanos:016x}{:08x}", std::process::id())
    };
    ID.get_or_init(new).clone()
}

fn host_facts() -> HostFacts {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let executable = std::env::current_exe().ok();
    let executable = executable.as_deref().and_then(Path::file_name);
    let us = nix::unistd::User::from_uid(nix::unistd::geteuid());
    HostFacts {
        hostname: read("/proc/sys/kernel/hostname"),
        machine_id: read("/etc/machine-id"),
        kernel_release: read("/proc/sys/kernel/osrelease"),
        machine: std::env::consts::ARCH.to_owned(),
        cgroup: read("/proc/self/cgroup"),
        mountinfo: read("/proc/self/mountinfo"),
        system_vendor: read("/sys/class/dmi/id/sys_vendor"),
        product_name: read("/sys/class/dmi/id/product_name"),
        service_account_namespace: read("/var/run/secrets/kubernetes.io/serviceaccount/namespace"),
        pid: std::process::id(),
        executable: executable.map_or_else(String::new, |name| name.to_string_lossy().into()),
        owner: us.ok().flatten().map_or_else(String::new, |user| user.name),
    }
}

/// `warptrace outliers`.
pub(crate) fn outliers(global: &Global, args: &OutliersArgs) -> anyhow::Result<u8> {
    let place = match &args.socket {
        Some(place) => place.clone(),
        None => find(global)?,
    };
    let stream = UnixStream::connect(&place)
        .with_context(|| format!("no recorder tells outliers at {place:?}"))?;
    if !args.output.json {
        eprintln!("outliers from {}, until Ctrl-C", place.display());
    }
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    let mut told = 0;
    while args.count.is_none_or(|count| told < count) {
        line.clear();
        let mut limited = (&mut lines).take(MAX_LINE_BYTES as u64 + 1);
        let n = limited.read_until(b'\n', &mut line);
        if n.context("the recorder's connection broke")? == 0 {
            break;
        }
        if line.last() != Some(&b'\n') {
            bail!("what comes from {place:?} is no stream of outliers");
        }
        match Message::decode(&line) {
            Ok(Some(message)) if args.output.json => {
                let mut text = Vec::new();
                if message.encode(&mut text).is_ok() {
                    output::print(&String::from_utf8_lossy(&text))?;
                }
            }
            Ok(Some(Message::InferenceOutlier(outlier))) => output::print(&shown(&outlier))?,
            Ok(Some(message)) => output::print(&format!("{}\n", message.type_name()))?,
            // A newer recorder's.
            Ok(None) => continue,
            Err(e) => bail!("what comes from {place:?} is no stream of outliers: {e}"),
        }
        told += 1;
    }
    Ok(0)
}

pub(crate) fn shown(outlier: &InferenceOutlier) -> String {
    let secs = outlier.timestamp.0 / 1_000_000_000;
    let time = warptrace_formats::utc::format_utc(i64::try_from(secs).unwrap_or(0));
    let millis = |nanos: i64| nanos as f64 / 1e6;
    let phase = match outlier.phase.as_str() {
        "" => "step",
        phase => phase,
    };
    format!(
        "{time}  {:<5} {phase:<8} {:>9.2} ms, usually up to {:.2} ms   pid {} stream {:#x}\n",
        outlier.bucket,
        millis(outlier.step_duration_ns),
        millis(outlier.baseline_p95_ns),
        outlier.pid,
        outlier.stream_handle
    )
}

/// The socket of the only recorder that tells outliers.
fn find(global: &Global) -> anyhow::Result<PathBuf> {
    let is_root = nix::unistd::geteuid().is_root();
    let around = Surroundings {
        data: sessions::data_dir(global).ok().map(|dirs| dirs.path),
        ..Surroundings::new(is_root, |name| std::env::var_os(name))
    };
    let mut found = Vec::new();
    for place in around.candidates() {
        let entries = place.parent().map(std::fs::read_dir);
        let entries = entries.into_iter().flatten().flatten().flatten();
        found.extend(entries.map(|entry| entry.path()).filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            let is_ours = name.is_some_and(|n| n.starts_with("outliers-") && n.ends_with(".sock"));
            // One that was killed has left its socket.
            is_ours && UnixStream::connect(path).is_ok()
        }));
    }
    found.sort();
    found.dedup();
    match &found[..] {
        [place] => Ok(place.clone()),
        [] => bail!("no recorder follows inference servers: warptrace trace --inference"),
        several => {
            let places: Vec<_> = several.iter().map(|p| p.display().to_string()).collect();
            bail!(
                "several recorders run: name one by --socket\n  {}",
                places.join("\n  ")
            )
        }
    }
}
