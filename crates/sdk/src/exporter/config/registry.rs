//! Names of exporters, and how each is made of its settings.

use std::collections::BTreeMap;

use warptrace_model::{Object, Value};

use super::{ConfigError, Entry, Warning};
use crate::exporter::{
    AgentSocket, Console, Discard, Existing, JsonlFile, Keys, LogLines, Rotation, RunLogExporter,
};
use crate::run_log::RunLog;
use crate::span::Exporter;

/// Makes an exporter.
pub type Factory =
    Box<dyn Fn(&mut Settings<'_>) -> Result<Box<dyn Exporter>, ConfigError> + Send + Sync>;

/// An exporter, and the name that a recorder should know it by.
pub type Named = (Box<str>, Box<dyn Exporter>);

/// Exporters by name.
#[derive(Default)]
pub struct Registry {
    factories: BTreeMap<Box<str>, Factory>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.factories.keys()).finish()
    }
}

impl Registry {
    /// An empty one.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// Ours:
    ///
    /// | name | settings |
    /// |---|---|
    /// | `file` | `path`, `existing` (`append`, `truncate`, `rotate`), `max_bytes`, `keep`, `keys` (`all`, `one_logger`), `merge_starts`, `each_record` |
    /// | `log` | `keys`, `merge_starts`; lines go to `tracing` |
    /// | `console` | |
    /// | `agent` | `step_spans` |
    /// | `run_log` | `path`, `request_spans` |
    /// | `otlp` (feature of that name) | `endpoint` (a base, as `http://host:4318`), `protocol`, `headers`, `timeout_ms`, `compression` (`none`, `gzip`), `service_name`; what is not said, OpenTelemetry's variables say |
    /// | `discard` | |
    ///
    /// and the Python package's names `nv_one_logger.exporter.file_exporter.FileExporter` (`file_path`), which writes the package's own
    /// records but renames a file that is there already, and `nv_one_logger.exporter.logger_exporter.LoggerExporter`;
    /// with OTLP also `nv_one_logger.otel.exporter.otel_exporter.OTelExporter`, which goes where the variables say.
    pub fn builtin() -> Registry {
        let mut registry = Registry::new();
        registry.register("file", |settings| {
            let path = settings.text("path")?;
            let path = path.ok_or(ConfigError::NoSetting("path".into()))?;
            let existing = settings.word(
                "existing",
                &[
                    ("append", Existing::Append),
                    ("truncate", Existing::Truncate),
                    ("rotate", Existing::Rotate),
                ],
            )?;
            let usual = Rotation::default();
            let rotation = Rotation {
                max_bytes: settings.count("max_bytes")?.unwrap_or(usual.max_bytes),
                keep: match settings.count("keep")? {
                    Some(keep) => u32::try_from(keep).unwrap_or(u32::MAX),
                    None => usual.keep,
                },
            };
            let mut file = JsonlFile::new(path)
                .existing(existing.unwrap_or_default())
                .rotation(rotation)
                .keys(keys(settings)?)
                .merge_starts(settings.flag("merge_starts")?.unwrap_or(false));
            if settings.flag("each_record")?.unwrap_or(false) {
                file = file.each_record();
            }
            Ok(Box::new(file))
        });
        registry.register("log", |settings| {
            let lines = LogLines::to_tracing()
                .keys(keys(settings)?)
                .merge_starts(settings.flag("merge_starts")?.unwrap_or(false));
            Ok(Box::new(lines))
        });
        registry.register("console", |_| Ok(Box::new(Console::stderr())));
        registry.register("agent", |settings| {
            let agent = AgentSocket::default();
            Ok(match settings.texts("step_spans")? {
                Some(names) => Box::new(agent.step_spans(names)),
                None => Box::new(agent),
            })
        });
        registry.register("run_log", |settings| {
            let path = settings.text("path")?;
            let path = path.ok_or(ConfigError::NoSetting("path".into()))?;
            let exporter = RunLogExporter::new(RunLog::open(path));
            Ok(match settings.texts("request_spans")? {
                Some(names) => Box::new(exporter.request_spans(names)),
                None => Box::new(exporter),
            })
        });
        registry.register("discard", |_| Ok(Box::new(Discard)));
        registry.register(
            "nv_one_logger.exporter.file_exporter.FileExporter",
            |settings| {
                let path = settings.text("file_path")?;
                let path = path.ok_or(ConfigError::NoSetting("file_path".into()))?;
                let file = JsonlFile::new(path)
                    .existing(Existing::Rotate)
                    .keys(Keys::OneLogger)
                    .merge_starts(true);
                Ok(Box::new(file))
            },
        );
        registry.register(
            "nv_one_logger.exporter.logger_exporter.LoggerExporter",
            |_| {
                let lines = LogLines::to_tracing()
                    .keys(Keys::OneLogger)
                    .merge_starts(true);
                Ok(Box::new(lines))
            },
        );
        #[cfg(feature = "otlp")]
        for name in [
            "otlp",
            "nv_one_logger.otel.exporter.otel_exporter.OTelExporter",
        ] {
            registry.register(name, otlp);
        }
        registry
    }

    /// Adds an exporter, in place of one of that name.
    pub fn register(
        &mut self,
        name: &str,
        make: impl Fn(&mut Settings<'_>) -> Result<Box<dyn Exporter>, ConfigError>
        + Send
        + Sync
        + 'static,
    ) {
        self.factories.insert(name.into(), Box::new(make));
    }

    /// Makes one.
    ///
    /// # Errors
    /// A name or a setting that is not known, or what the exporter's maker says.
    pub fn create(&self, entry: &Entry) -> Result<Box<dyn Exporter>, ConfigError> {
        let make = self.factories.get(&entry.class_name).ok_or_else(|| {
            let known: Vec<&str> = self.factories.keys().map(|name| &**name).collect();
            ConfigError::Unknown {
                class_name: entry.class_name.clone(),
                known: known.join(", ").into(),
            }
        })?;
        let Value::Object(config) = &entry.config else {
            return Err(ConfigError::NotAMapping {
                class_name: entry.class_name.clone(),
            });
        };
        let mut settings = Settings {
            config,
            known: Vec::new(),
        };
        let exporter = make(&mut settings)?;
        settings.finish()?;
        Ok(exporter)
    }

    /// Makes all that are enabled; what cannot be made is left out.
    pub fn create_all(&self, entries: &[Entry]) -> (Vec<Named>, Vec<Warning>) {
        let (mut made, mut warnings) = (Vec::new(), Vec::new());
        for entry in entries.iter().filter(|entry| entry.is_enabled()) {
            match self.create(entry) {
                Ok(exporter) => {
                    let name = entry.name.as_ref().unwrap_or(&entry.class_name);
                    made.push((name.clone(), exporter));
                }
                Err(error) => warnings.push(Warning::Exporter {
                    class_name: entry.class_name.clone(),
                    error,
                }),
            }
        }
        (made, warnings)
    }
}

#[cfg(feature = "otlp")]
fn otlp(settings: &mut Settings<'_>) -> Result<Box<dyn Exporter>, ConfigError> {
    use warptrace_export::otlp::{Compression, Config, Headers, Protocol, Signal};

    let environment = |name: &str| std::env::var(name).ok();
    let (mut config, _) = Config::from_env(Signal::Traces, environment);
    let protocols = [Protocol::HttpProtobuf, Protocol::HttpJson, Protocol::Grpc];
    let protocols = protocols.map(|protocol| (protocol.as_str(), protocol));
    if let Some(protocol) = settings.word("protocol", &protocols)? {
        let before = Config::new(Signal::Traces, config.protocol);
        // An endpoint that nobody named is the protocol's.
        if config.endpoint == before.endpoint {
            config.endpoint = Config::new(Signal::Traces, protocol).endpoint;
        }
        config.protocol = protocol;
    }
    if let Some(endpoint) = settings.text("endpoint")? {
        config = config.with_base(endpoint);
    }
    if let Some(headers) = settings.typed("headers", "a mapping of texts", |value| {
        let pairs = value.as_object()?.iter();
        pairs
            .map(|(name, value)| Some((name.to_owned(), value.as_str()?.to_owned())))
            .collect::<Option<Vec<_>>>()
    })? {
        config.headers = Headers(headers);
    }
    if let Some(millis) = settings.count("timeout_ms")? {
        config.timeout = std::time::Duration::from_millis(millis.max(1));
    }
    let compressions = [("none", Compression::None), ("gzip", Compression::Gzip)];
    if let Some(compression) = settings.word("compression", &compressions)? {
        config.compression = compression;
    }
    let service = settings.text("service_name")?.unwrap_or("unknown_service");
    let made = crate::exporter::Otlp::with_config(&config, service, environment);
    let (otlp, _) = made.map_err(|e| ConfigError::Failed(Box::new(e)))?;
    Ok(Box::new(otlp))
}

fn keys(settings: &mut Settings<'_>) -> Result<Keys, ConfigError> {
    let words = [("all", Keys::All), ("one_logger", Keys::OneLogger)];
    Ok(settings.word("keys", &words)?.unwrap_or_default())
}

/// The settings of one exporter. What nobody asks for is unknown, and an error.
#[derive(Debug)]
pub struct Settings<'c> {
    config: &'c Object,
    known: Vec<&'static str>,
}

impl<'c> Settings<'c> {
    /// A setting as it is.
    pub fn get(&mut self, name: &'static str) -> Option<&'c Value> {
        self.known.push(name);
        self.config.get(name).filter(|value| !value.is_null())
    }

    /// All of them, for a maker that takes any.
    pub fn all(&mut self) -> &'c Object {
        static NONE: Object = Object::new();
        std::mem::replace(&mut self.config, &NONE)
    }

    /// # Errors
    /// When it is something else; so with the others.
    pub fn text(&mut self, name: &'static str) -> Result<Option<&'c str>, ConfigError> {
        self.typed(name, "a text", Value::as_str)
    }

    /// # Errors
    /// When it is not true or false.
    pub fn flag(&mut self, name: &'static str) -> Result<Option<bool>, ConfigError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// # Errors
    /// When it is not a whole number from 0 on.
    pub fn count(&mut self, name: &'static str) -> Result<Option<u64>, ConfigError> {
        self.typed(name, "a whole number from 0 on", |v| v.as_int()?.to_u64())
    }

    /// # Errors
    /// When it is not a list of texts.
    pub fn texts(&mut self, name: &'static str) -> Result<Option<Vec<Box<str>>>, ConfigError> {
        self.typed(name, "a list of texts", |value| {
            let texts = value.as_array()?.iter();
            texts.map(|text| text.as_str().map(Into::into)).collect()
        })
    }

    /// One of some words.
    ///
    /// # Errors
    /// When it is none of them.
    pub fn word<T: Copy>(
        &mut self,
        name: &'static str,
        words: &[(&str, T)],
    ) -> Result<Option<T>, ConfigError> {
        let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let what = format!("one of {}", all.join(", "));
        self.typed(name, &what, |value| {
            let text = value.as_str()?;
            words
                .iter()
                .find(|(word, _)| *word == text)
                .map(|(_, t)| *t)
        })
    }

    fn typed<T>(
        &mut self,
        name: &'static str,
        what: &str,
        read: impl FnOnce(&'c Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let wrong = || ConfigError::WrongSetting {
            setting: name.into(),
            what: what.into(),
        };
        read(value).map(Some).ok_or_else(wrong)
    }

    fn finish(self) -> Result<(), ConfigError> {
        let unknown = self
            .config
            .iter()
            .find(|(name, _)| !self.known.contains(name));
        match unknown {
            None => Ok(()),
            Some((name, _)) => Err(ConfigError::UnknownSetting {
                setting: name.into(),
                known: self.known.join(", ").into(),
            }),
        }
    }
}
