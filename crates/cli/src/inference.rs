//! Inference servers on the command line: settings from flags, the ways out, `outliers` and `replay`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use warptrace_agent::{Outgoing, OutlierSocket, SocketOptions};
use warptrace_capture::engines::{self, EngineWatch};
use warptrace_engine::{
    Engine, Inference, InferenceOutput, InferenceSettings, KvLineage, PhaseRules, Rules,
};
use warptrace_export::alert::{AlertConfig, Alerter};
use warptrace_export::otlp::{self, Ignored, Signal};
use warptrace_export::{
    Batching, HostFacts, MetricSender, MetricSettings, ResourceOptions, Scrape, ScrapeConfig,
    SpanSender, resource_attributes,
};
use warptrace_formats::annotation::Surroundings;
use warptrace_formats::outlier_stream::{InferenceOutlier, MAX_LINE_BYTES, Message, Node};
use warptrace_model::metric::resource;
use warptrace_model::{BootNanos, ClockAnchor, Value};

use crate::args::{
    Classifier, Global, InferenceArgs, InferenceRules, OutgoingArgs, OutliersArgs, ReplayArgs,
    ScrapeWhich,
};
use crate::{output, sessions};

/// Events between two looks at what the engine concluded.
const SETTLE_EVENTS: usize = 65_536;

/// How steps are judged; `None` when they are not.
pub(crate) fn settings(args: &InferenceArgs) -> anyhow::Result<Option<InferenceSettings>> {
    match args.inference {
        true => rules(&args.rules).map(Some),
        false => Ok(None),
    }
}

fn rules(args: &InferenceRules) -> anyhow::Result<InferenceSettings> {
    let mut settings = InferenceSettings::default();
    let mut phases = PhaseRules::default();
    settings.warmup_steps = args.inference_warmup.unwrap_or(settings.warmup_steps);
    settings.outlier_ratio = args
        .inference_outlier_ratio
        .unwrap_or(settings.outlier_ratio);
    if let Some(pause) = args.inference_pause_on_severity {
        settings.pause_on = pause.0;
    }
    if let Some(degrade) = args.inference_sampler_degrade_on {
        settings.degrade_on = degrade.0;
    }
    settings.fingerprint_key = args.inference_fingerprint_key;
    if args.inference_kvcache_lineage {
        let usual = KvLineage::default();
        settings.kv_lineage = Some(KvLineage {
            top_n: args.inference_kvcache_top_n.unwrap_or(usual.top_n),
            max_per_process: args
                .inference_kvcache_max_per_pid
                .unwrap_or(usual.max_per_process),
        });
    }
    let launches = args.inference_phase_decode_max_launches;
    phases.decode_max_launches = launches.or(phases.decode_max_launches);
    let copied = args.inference_phase_decode_max_memcpy;
    phases.decode_max_copied_bytes = copied.or(phases.decode_max_copied_bytes);
    let launches = args.inference_phase_prefill_min_launches;
    phases.prefill_min_launches = launches.or(phases.prefill_min_launches);
    if let Some(long) = args.inference_phase_prefill_min_avg_kernel {
        let nanos = u64::try_from(long.as_nanos()).unwrap_or(u64::MAX);
        phases.prefill_min_average_launch_nanos = Some(nanos);
    }
    let copied = args.inference_phase_mixed_memcpy;
    phases.mixed_min_copied_bytes = copied.or(phases.mixed_min_copied_bytes);
    if let Some((low, high)) = &mut phases.mixed_launches {
        *low = args.inference_phase_mixed_launch_low.unwrap_or(*low);
        *high = args.inference_phase_mixed_launch_high.unwrap_or(*high);
    }
    if let Some(calls) = args.inference_phase_memfrag_decode_min {
        phases.decode_min_memory_calls = (calls > 0).then_some(calls);
    }
    settings.phases = match args.inference_phase_classifier {
        Some(Classifier::Off) => None,
        _ => Some(phases),
    };
    settings.validate()?;
    Ok(settings)
}

/// Servers that are looked for and asked, among `pids` and their children if there are any.
pub(crate) fn engines(args: &InferenceArgs, pids: &[u32]) -> anyhow::Result<Option<EngineWatch>> {
    if !args.inference || args.inference_scrape == ScrapeWhich::Off {
        return Ok(None);
    }
    let watch = EngineWatch::start(engines::Settings {
        pids: pids.to_vec(),
        interval: args.inference_scrape_interval,
        redetect: args.inference_scrape_redetect_interval,
        host: args.inference_scrape_host,
        ..engines::Settings::default()
    });
    Ok(Some(watch.context("cannot look for inference servers")?))
}

/// The ways out that were asked for. `None` without `--inference`.
pub(crate) fn outgoing(
    inference: &InferenceArgs,
    args: &OutgoingArgs,
    data: &Path,
) -> anyhow::Result<Option<Outgoing>> {
    if !inference.inference {
        return Ok(None);
    }
    let lookup = |name: &str| std::env::var(name).ok();
    let options = ResourceOptions {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance_id: format!("{:016x}{:08x}", now_nanos(), std::process::id()),
        node_id: args.node.clone(),
        cluster_id: args.cluster.clone(),
        ..ResourceOptions::default()
    };
    let (resource, ignored) = resource_attributes(&host_facts(), &options, lookup);
    warn_of(ignored);
    let said = |name: &str| {
        let said = resource.get(name).and_then(Value::as_str);
        said.unwrap_or_default().to_owned()
    };
    let mut outgoing = Outgoing {
        node: Node {
            node_id: said(resource::NODE_ID),
            cluster_id: said(resource::CLUSTER_ID),
            ..Node::default()
        },
        names: args.metric_names,
        ..Outgoing::default()
    };
    outgoing.outliers = match &args.outliers {
        Some(path) => Some(OutlierSocket::start(path).context("cannot tell outliers")?),
        None => usual_socket(data),
    };
    if let Some(address) = args.prometheus {
        let config = ScrapeConfig {
            address,
            names: args.metric_names,
            token: lookup("WARPTRACE_PROMETHEUS_TOKEN"),
            ..ScrapeConfig::loopback()
        };
        let scrape = Scrape::start(&config).context("cannot serve metrics to Prometheus")?;
        tracing::info!(address = %scrape.address(), "metrics are served at /metrics");
        outgoing.scrape = Some(scrape);
    }
    if let Some(url) = &args.otlp {
        let config = |signal| {
            let (config, ignored) = otlp::Config::from_env(signal, lookup);
            warn_of(ignored);
            match url.as_str() {
                "" => config,
                url => config.with_base(url),
            }
        };
        let (mut settings, ignored) = MetricSettings::from_env(lookup);
        warn_of(ignored);
        settings.names = args.metric_names;
        let every = settings.interval;
        let sender = MetricSender::new(&config(Signal::Metrics), settings, &options.version)
            .context("cannot send metrics")?;
        outgoing.metrics = Some((sender, every));
        let (batching, ignored) = Batching::from_env(lookup);
        warn_of(ignored);
        let spans = SpanSender::new(
            &config(Signal::Traces),
            batching,
            resource.clone(),
            "warptrace",
            &options.version,
        );
        outgoing.spans = Some(spans.context("cannot send traces")?);
    }
    let alerts = AlertConfig::from_value(&Value::Null, &lookup, &outgoing.node.node_id)
        .context("cannot send alerts")?;
    if !alerts.receivers.is_empty() {
        outgoing.alerts = Some(Alerter::start(alerts).context("cannot send alerts")?);
    }
    outgoing.resource = resource;
    Ok(Some(outgoing))
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

fn now_nanos() -> u128 {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed();
    now.map_or(0, |since| since.as_nanos())
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

fn shown(outlier: &InferenceOutlier) -> String {
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

/// `warptrace replay`: the same steps, judged again.
pub(crate) fn replay(global: &Global, args: &ReplayArgs) -> anyhow::Result<u8> {
    let folder = sessions::resolve(global, args.session.as_deref())?;
    let session = sessions::open(&folder)?;
    let clocks = &session.meta().clock;
    let first = *clocks.first().context("the session has no clock")?;
    let settings = rules(&args.rules)?.with_clock(first);
    let rules = Rules {
        inference: true,
        ..Rules::default()
    };
    let mut engine = Engine::with_inference(rules, Inference::new(settings)?);
    let node = Node::default();
    let mut events = session.events(None).context("cannot read the session")?;
    let (mut batch, mut unsettled, mut now, mut found) = (Vec::new(), 0, 0, 0);
    let mut tell = |output: InferenceOutput| -> anyhow::Result<()> {
        for outlier in &output.outliers {
            found += 1;
            let clock = clock_at(clocks, outlier.at).unwrap_or(first);
            let message = node.outlier(outlier, clock);
            if args.output.json {
                let mut line = Vec::new();
                Message::from(message).encode(&mut line)?;
                output::print(&String::from_utf8_lossy(&line))?;
            } else {
                output::print(&shown(&message))?;
            }
        }
        Ok(())
    };
    while events.next_batch(&mut batch) {
        unsettled += batch.len();
        for event in batch.drain(..) {
            if let Some(end) = event.end() {
                now = now.max(end.0);
            }
            engine.push(event);
        }
        if unsettled >= SETTLE_EVENTS {
            unsettled = 0;
            engine.advance(BootNanos(now));
            tell(engine.drain().inference)?;
        }
    }
    engine.finish(BootNanos(now));
    tell(engine.drain().inference)?;
    let steps = engine.inference().map_or(0, |i| i.state().steps);
    if !args.output.json {
        let id = &session.meta().id;
        eprintln!("{found} outliers of {steps} steps in session {id}");
    }
    Ok(0)
}

/// The anchor that held at a moment.
fn clock_at(clocks: &[ClockAnchor], at: BootNanos) -> Option<ClockAnchor> {
    let before = clocks.iter().rev().find(|clock| clock.boot <= at);
    before.or(clocks.first()).copied()
}
