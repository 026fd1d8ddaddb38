//! Which source of a setting comes before which.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use warptrace_export::otlp::{Exporter, Exporters};
use warptrace_formats::metrics::Names;
use warptrace_model::Value;

use super::file::{File, put};
use super::kinds::{Bytes, RingSize};
use super::settings::{Compat, JsonLines, Settings};
use super::tree::{Key, Node as _, Reader, Shape};
use crate::args::{
    CostArgs, DaemonArgs, InferenceArgs, InferenceRules, OutgoingArgs, RecordArgs, ReplayArgs,
    StoreArgs, TraceArgs,
};
use crate::inference;

/// Who set a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    Default,
    /// `inference.enabled` changed the default.
    Inference,
    /// `compat` did.
    Compat,
    File,
    Variable,
    Flag,
}

impl Origin {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Origin::Default => "default",
            Origin::Inference => "inference.enabled",
            Origin::Compat => "compat",
            Origin::File => "file",
            Origin::Variable => "variable",
            Origin::Flag => "flag",
        }
    }
}

/// Settings, and who set each that is not by default.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Loaded {
    settings: Settings,
    origins: BTreeMap<String, Origin>,
}

impl Deref for Loaded {
    type Target = Settings;

    fn deref(&self) -> &Settings {
        &self.settings
    }
}

impl Loaded {
    /// Who set what is not by default.
    pub(super) fn origins(&self) -> &BTreeMap<String, Origin> {
        &self.origins
    }

    /// With what the job was told of as it was when the recording `began`.
    pub(crate) fn held_to(&self, began: &Loaded) -> Loaded {
        let mut held = self.clone();
        held.settings.otlp.receive = began.otlp.receive.clone();
        held
    }

    pub(crate) fn origin(&self, path: &str) -> Origin {
        self.origins.get(path).copied().unwrap_or(Origin::Default)
    }
}

/// What a recorder is for, as far as defaults depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// `trace` of what runs: the environment is ours alone.
    Daemon,
    /// With a command: stdout and the environment are its too.
    Command,
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Of `trace`.
///
/// # Errors
/// A file that cannot be read or used, a variable or a setting that cannot be, settings that contradict each other.
pub(crate) fn of_trace(args: &TraceArgs) -> anyhow::Result<Loaded> {
    traced(args, &environment)
}

fn traced(args: &TraceArgs, environment: Lookup<'_>) -> anyhow::Result<Loaded> {
    let purpose = match args.command.is_empty() {
        true => Purpose::Daemon,
        false => Purpose::Command,
    };
    let file = args.daemon.config.as_deref();
    load(file, purpose, environment, |layers| {
        layers.recorder(
            &args.inference,
            &args.outgoing,
            &args.store,
            &args.cost,
            &args.daemon,
        );
        layers.flag("annotate", args.annotate, |s| &mut s.annotate);
        layers.flag("duration", args.duration.map(Some), |s| &mut s.duration);
        layers.flag("json", args.json, |s| &mut s.json);
        layers.flag("heartbeat", args.heartbeat, |s| &mut s.heartbeat);
        layers.flag("ring_size", args.ring_size.map(RingSize), |s| {
            &mut s.ring_size
        });
    })
}

/// Of `record`. Errors are [`of_trace`]'s.
pub(crate) fn of_record(args: &RecordArgs) -> anyhow::Result<Loaded> {
    let file = args.daemon.config.as_deref();
    load(file, Purpose::Command, &environment, |layers| {
        layers.recorder(
            &args.inference,
            &args.outgoing,
            &args.store,
            &args.cost,
            &args.daemon,
        );
        layers.flag("annotate", args.annotate, |s| &mut s.annotate);
    })
}

/// Of `replay`. Errors are [`of_trace`]'s.
pub(crate) fn of_replay(args: &ReplayArgs) -> anyhow::Result<Loaded> {
    let file = args.config.as_deref();
    load(file, Purpose::Command, &environment, |layers| {
        layers.rules(&args.rules);
    })
}

/// Of a file alone, as a daemon would have them.
pub(super) fn of_file(path: &Path) -> anyhow::Result<Loaded> {
    let file = File::load(path)?;
    let layers = Layers::new(Some((&file, path)), &|_| None, Purpose::Daemon)?;
    layers.finish()
}

/// Of a file's text.
#[cfg(test)]
pub(super) fn of_text(text: &str) -> anyhow::Result<Loaded> {
    let file = File::parse(text.as_bytes())?;
    let path = Path::new("test.yaml");
    Layers::new(Some((&file, path)), &|_| None, Purpose::Daemon)?.finish()
}

fn load(
    path: Option<&Path>,
    purpose: Purpose,
    environment: Lookup<'_>,
    flags: impl FnOnce(&mut Layers),
) -> anyhow::Result<Loaded> {
    let file = path.map(File::load).transpose()?;
    let file = file.as_ref().zip(path);
    let mut layers = Layers::new(file, environment, purpose)?;
    flags(&mut layers);
    layers.obey_the_switch(environment);
    layers.finish()
}

/// Settings that are being put over each other. Each layer is put over those before it; what depends on the sum of them comes last.
struct Layers {
    loaded: Loaded,
    purpose: Purpose,
}

impl Layers {
    /// The defaults, the file, and the variables.
    fn new(
        file: Option<(&File, &Path)>,
        environment: Lookup<'_>,
        purpose: Purpose,
    ) -> anyhow::Result<Layers> {
        let mut layers = Layers {
            loaded: Loaded {
                settings: Settings::default(),
                origins: BTreeMap::new(),
            },
            purpose,
        };
        if let Some((file, path)) = file {
            let mut reader = Reader::default();
            let read = layers.loaded.settings.read(&file.value, &mut reader);
            if let Err(wrong) = read {
                bail!("{}: {}", path.display(), file.said(&wrong));
            }
            layers.said(reader, Origin::File);
        }
        layers.variables(environment)?;
        layers.exporters(environment);
        Ok(layers)
    }

    fn said(&mut self, reader: Reader, origin: Origin) {
        let said = reader.said.into_iter().map(|path| (path, origin));
        self.loaded.origins.extend(said);
    }

    /// `WARPTRACE_INFERENCE_BASELINE_WARMUP_SAMPLES` and the like: each value that is a word has one.
    fn variables(&mut self, environment: Lookup<'_>) -> anyhow::Result<()> {
        for path in paths() {
            let variable = variable(&path);
            let Some(text) = environment(&variable).filter(|text| !text.trim().is_empty()) else {
                continue;
            };
            let mut value = Value::Null;
            put(&mut value, &path, text.trim().into());
            let mut reader = Reader::default();
            let read = self.loaded.settings.read(&value, &mut reader);
            read.map_err(|wrong| anyhow::anyhow!("{}", wrong.message))
                .context(variable)?;
            self.said(reader, Origin::Variable);
        }
        Ok(())
    }

    /// `OTEL_METRICS_EXPORTER` and `OTEL_TRACES_EXPORTER`. They choose; they turn something on only where the environment is not a
    /// job's.
    fn exporters(&mut self, environment: Lookup<'_>) {
        let (exporters, ignored) = Exporters::from_env(environment);
        for variable in ignored {
            tracing::warn!("{variable}");
        }
        let is_ours = self.purpose == Purpose::Daemon;
        let asked = [&exporters.metrics, &exporters.traces];
        let otlp = asked
            .into_iter()
            .flatten()
            .any(|e| e.contains(&Exporter::Otlp));
        if otlp && is_ours {
            self.set("otlp.enabled", Origin::Variable, true, |s| {
                &mut s.otlp.enabled
            });
        }
        if let Some(metrics) = exporters.metrics {
            let otlp = metrics.contains(&Exporter::Otlp);
            self.set("otlp.metrics", Origin::Variable, otlp, |s| {
                &mut s.otlp.metrics
            });
            let prometheus = metrics.contains(&Exporter::Prometheus);
            if is_ours || !prometheus {
                self.set("prometheus.enabled", Origin::Variable, prometheus, |s| {
                    &mut s.prometheus.enabled
                });
            }
        }
        if let Some(traces) = exporters.traces {
            let otlp = traces.contains(&Exporter::Otlp);
            self.set("otlp.traces", Origin::Variable, otlp, |s| {
                &mut s.otlp.traces
            });
        }
    }

    /// `OTEL_SDK_DISABLED` is a switch for emergencies, so that no flag comes before it.
    fn obey_the_switch(&mut self, environment: Lookup<'_>) {
        let settings = &self.loaded.settings;
        let any = settings.otlp.enabled || settings.prometheus.enabled;
        if !any || !Exporters::from_env(environment).0.disabled {
            return;
        }
        tracing::warn!("nothing is exported: OTEL_SDK_DISABLED is true");
        self.set("otlp.enabled", Origin::Variable, false, |s| {
            &mut s.otlp.enabled
        });
        self.set("otlp.receive.enabled", Origin::Variable, false, |s| {
            &mut s.otlp.receive.enabled
        });
        self.set("prometheus.enabled", Origin::Variable, false, |s| {
            &mut s.prometheus.enabled
        });
    }

    fn set<T>(
        &mut self,
        path: &'static str,
        origin: Origin,
        value: T,
        place: impl FnOnce(&mut Settings) -> &mut T,
    ) {
        *place(&mut self.loaded.settings) = value;
        self.loaded.origins.insert(path.to_owned(), origin);
    }

    fn flag<T>(
        &mut self,
        path: &'static str,
        given: Option<T>,
        place: impl FnOnce(&mut Settings) -> &mut T,
    ) {
        if let Some(value) = given {
            self.set(path, Origin::Flag, value, place);
        }
    }

    /// A default that depends on other settings.
    fn unless_said<T>(
        &mut self,
        path: &'static str,
        origin: Origin,
        value: T,
        place: impl FnOnce(&mut Settings) -> &mut T,
    ) {
        if self.loaded.origin(path) == Origin::Default {
            self.set(path, origin, value, place);
        }
    }

    /// Flags that both recorders have.
    fn recorder(
        &mut self,
        inference: &InferenceArgs,
        outgoing: &OutgoingArgs,
        store: &StoreArgs,
        cost: &CostArgs,
        daemon: &DaemonArgs,
    ) {
        self.flag("inference.enabled", inference.inference, |s| {
            &mut s.inference.enabled
        });
        self.flag("inference.scrape.mode", inference.inference_scrape, |s| {
            &mut s.inference.scrape.mode
        });
        let interval = inference.inference_scrape_interval;
        self.flag("inference.scrape.interval", interval, |s| {
            &mut s.inference.scrape.interval
        });
        let host = inference.inference_scrape_host;
        self.flag("inference.scrape.host", host.map(Some), |s| {
            &mut s.inference.scrape.host
        });
        let redetect = inference.inference_scrape_redetect_interval;
        self.flag("inference.scrape.redetect_interval", redetect, |s| {
            &mut s.inference.scrape.redetect_interval
        });
        self.rules(&inference.rules);

        self.flag(
            "inference.outlier.socket",
            outgoing.outliers.clone().map(Some),
            |s| &mut s.inference.outlier.socket,
        );
        if let Some(at) = outgoing.prometheus {
            self.flag("prometheus.enabled", Some(true), |s| {
                &mut s.prometheus.enabled
            });
            self.flag("prometheus.address", at.0, |s| &mut s.prometheus.address);
        }
        if let Some(url) = &outgoing.otlp {
            self.flag("otlp.enabled", Some(true), |s| &mut s.otlp.enabled);
            let url = (!url.0.is_empty()).then(|| Some(url.clone()));
            self.flag("otlp.endpoint", url, |s| &mut s.otlp.endpoint);
        }
        if let Some(at) = outgoing.otlp_receive {
            self.flag("otlp.receive.enabled", Some(true), |s| {
                &mut s.otlp.receive.enabled
            });
            self.flag("otlp.receive.address", at.0, |s| {
                &mut s.otlp.receive.address
            });
        }
        self.flag("metrics.names", outgoing.metric_names, |s| {
            &mut s.metrics.names
        });
        self.flag("node", outgoing.node.clone().map(Some), |s| &mut s.node);
        let cluster = outgoing.cluster.clone();
        self.flag("cluster", cluster.map(Some), |s| &mut s.cluster);

        let size = store.rollover_size.map(|size| Some(Bytes(size)));
        self.flag("store.rollover_size", size, |s| &mut s.store.rollover_size);
        self.flag("store.rollover_age", store.rollover_age.map(Some), |s| {
            &mut s.store.rollover_age
        });
        self.flag("store.keep", store.keep.map(Some), |s| &mut s.store.keep);
        let size = store.max_bytes.map(|size| Some(Bytes(size)));
        self.flag("store.max_bytes", size, |s| &mut s.store.max_bytes);
        let age = store.max_age.map(Some);
        self.flag("store.max_age", age, |s| &mut s.store.max_age);
        self.flag("inference.sampler", store.inference_sampler, |s| {
            &mut s.inference.sampler
        });

        let rates = cost.gpu_rates.clone();
        self.flag("cost.rates", rates.map(Some), |s| &mut s.cost.rates);
        let provider = cost.provider.clone();
        self.flag("cost.provider", provider.map(Some), |s| {
            &mut s.cost.provider
        });
        self.flag("log.file", daemon.log.clone().map(Some), |s| {
            &mut s.log.file
        });
        self.flag("log.level", daemon.log_level, |s| &mut s.log.level);
        self.flag("sample_interval", daemon.sample_interval, |s| {
            &mut s.sample_interval
        });
    }

    /// Flags that `replay` has as well.
    fn rules(&mut self, args: &InferenceRules) {
        macro_rules! flags {
            ($($given:expr => $($key:ident).+;)*) => {
                $( self.flag(concat!("inference", $(".", stringify!($key)),+), $given, |s| &mut s.inference.$($key).+); )*
            };
        }
        flags! {
            args.inference_warmup => baseline.warmup_samples;
            args.inference_pause_on_severity.map(|pause| pause.0) => baseline.pause_on_severity;
            args.inference_outlier_ratio => outlier.threshold_ratio;
            args.inference_sampler_degrade_on.map(|on| on.0) => outlier.sampler_degrade_on;
            args.inference_phase_classifier => phase.classifier;
            args.inference_phase_decode_max_launches => phase.decode_max_launches;
            args.inference_phase_decode_max_memcpy.map(Bytes) => phase.decode_max_memcpy;
            args.inference_phase_prefill_min_launches => phase.prefill_min_launches;
            args.inference_phase_prefill_min_avg_kernel => phase.prefill_min_avg_kernel;
            args.inference_phase_mixed_memcpy.map(Bytes) => phase.mixed_memcpy;
            args.inference_phase_mixed_launch_low => phase.mixed_launch_low;
            args.inference_phase_mixed_launch_high => phase.mixed_launch_high;
            args.inference_phase_memfrag_decode_min => phase.memfrag_decode_min;
            args.inference_fingerprint_key => fingerprint_key;
            args.inference_kvcache_lineage => kvcache.lineage;
            args.inference_kvcache_top_n => kvcache.top_n;
            args.inference_kvcache_max_per_pid => kvcache.max_per_pid;
        }
    }

    /// What depends on all of them, and whether it all fits together.
    fn finish(mut self) -> anyhow::Result<Loaded> {
        if self.loaded.inference.enabled {
            self.umbrella();
        }
        if self.loaded.compat == Some(Compat::Ingero) {
            self.unless_said("metrics.names", Origin::Compat, Names::Ingero, |s| {
                &mut s.metrics.names
            });
        }
        let loaded = self.loaded;
        inference::rules(&loaded.inference)?;
        inference::alerts(&loaded, &|_| None, "node")?;
        if !loaded.inference.enabled {
            let needs = [
                ("prometheus.enabled", loaded.prometheus.enabled),
                ("otlp.enabled", loaded.otlp.enabled),
                (
                    "inference.outlier.socket",
                    loaded.inference.outlier.socket.is_some(),
                ),
            ];
            if let Some((what, _)) = needs.iter().find(|(_, is_on)| *is_on) {
                bail!(
                    "{what}, but inference.enabled is not: nothing would go out (--inference, or inference: {{enabled: true}} in the file)"
                );
            }
        }
        if loaded.prometheus.certificate.is_some() != loaded.prometheus.key.is_some() {
            bail!("prometheus.certificate and prometheus.key: both or neither");
        }
        let receive = &loaded.otlp.receive;
        if receive.enabled && !loaded.otlp.enabled {
            bail!(
                "otlp.receive.enabled, but otlp.enabled is not: there is no collector to pass spans on to (--otlp=URL, or otlp: {{enabled: true}} in the file)"
            );
        }
        if receive.certificate.is_some() != receive.key.is_some() {
            bail!("otlp.receive.certificate and otlp.receive.key: both or neither");
        }
        if loaded.otlp.client_certificate.is_some() != loaded.otlp.client_key.is_some() {
            bail!("otlp.client_certificate and otlp.client_key: both or neither");
        }
        Ok(loaded)
    }

    /// The defaults of a recorder that follows inference servers for months.
    fn umbrella(&mut self) {
        let by = Origin::Inference;
        self.unless_said("heartbeat", by, Duration::from_secs(30), |s| {
            &mut s.heartbeat
        });
        self.unless_said("store.rollover_size", by, Some(Bytes(1 << 30)), |s| {
            &mut s.store.rollover_size
        });
        let day = Some(Duration::from_secs(86_400));
        self.unless_said("store.rollover_age", by, day, |s| &mut s.store.rollover_age);
        self.unless_said("store.keep", by, Some(6), |s| &mut s.store.keep);
        // With a command stdout is the command's.
        if self.purpose == Purpose::Daemon {
            self.unless_said("json", by, JsonLines::Findings, |s| &mut s.json);
        }
    }
}

/// Every key that has a value of its own, from the top.
pub(super) fn paths() -> Vec<String> {
    fn below(keys: &[Key], path: &str, all: &mut Vec<String>) {
        for key in keys {
            let path = match path {
                "" => key.name.to_owned(),
                path => format!("{path}.{}", key.name),
            };
            match &key.shape {
                Shape::Section(keys) => below(keys, &path, all),
                Shape::Leaf(_) => all.push(path),
            }
        }
    }
    let mut all = Vec::new();
    if let Shape::Section(keys) = Settings::shape() {
        below(&keys, "", &mut all);
    }
    all
}

/// The variable of a key.
pub(super) fn variable(path: &str) -> String {
    format!("WARPTRACE_{}", path.to_uppercase().replace('.', "_"))
}

#[cfg(test)]
mod tests;
