//! Which exporters a program has, from three sources: packages' defaults, a file, and what the program says itself.
//!
//! An entry names an exporter and its settings. A file with at least one entry takes the place of all packages' entries; what the
//! program says is merged over that, name by name and setting by setting ([`resolve`]). This is how the Python package
//! `nv-one-logger-core` 2.3.1 resolves its own, so that its files work here, too:
//!
//! ```yaml
//! exporters:
//!   - class_name: file
//!     config: {path: "spans-{rank}.jsonl", max_bytes: 100000000}
//!   - class_name: console
//!     enabled: false
//! ```
//!
//! A name is one of a [`Registry`]; nothing is ever loaded because a file says so. No file is looked for in the working directory
//! unless [`Lookup::in_folder`] asks for that. With `name`, an entry stands for itself, so that there may be two of one class.
//!
//! Resolving is pure; [`Lookup`] alone reads files. What is wrong with a file or a package is a [`Warning`], and it counts as
//! absent; what is wrong with the program's own entries is an error.

mod registry;
mod yaml;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use warptrace_formats::{json, open_json};
use warptrace_model::{Int, Object, Value};

pub use self::registry::{Factory, Named, Registry, Settings};
pub use self::yaml::{YamlError, parse_yaml};

/// The variable that names our file.
pub const VARIABLE: &str = "WARPTRACE_EXPORTERS_CONFIG";
/// The Python package's variable, and its files in the working directory, in the order in which it looks for them.
pub const ONE_LOGGER_VARIABLE: &str = "ONE_LOGGER_EXPORTER_CONFIG_PATH";
const ONE_LOGGER_FILES: [&str; 3] = [
    "one_logger_exporters_config.yaml",
    "one_logger_exporters_config.yml",
    "one_logger_exporters_config.json",
];
/// Of a file; a longer one is refused.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// An exporter and its settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What a [`Registry`] knows it by.
    pub class_name: Box<str>,
    /// Sets apart entries of one class; ours alone.
    pub name: Option<Box<str>>,
    /// An object, or it cannot be created.
    pub config: Value,
    /// As it was said; see [`Entry::is_enabled`].
    pub enabled: Value,
}

impl Entry {
    pub fn new(class_name: &str, config: Object) -> Entry {
        Entry {
            class_name: class_name.into(),
            name: None,
            config: Value::Object(config),
            enabled: Value::Bool(true),
        }
    }

    /// From `class_name`, `config` (nothing unless said), `enabled` (true unless said) and `name`; other keys are left alone.
    ///
    /// # Errors
    /// [`ConfigError::NoClassName`].
    pub fn from_object(object: &Object) -> Result<Entry, ConfigError> {
        let class_name = object.get("class_name").and_then(Value::as_str);
        Ok(Entry {
            class_name: class_name.ok_or(ConfigError::NoClassName)?.into(),
            name: object.get("name").and_then(Value::as_str).map(Into::into),
            config: match object.get("config") {
                Some(config) => config.clone(),
                None => Value::Object(Object::new()),
            },
            enabled: object.get("enabled").cloned().unwrap_or(Value::Bool(true)),
        })
    }

    /// By Python's idea of truth: null, false, 0 and what is empty disable; the text `"false"` does not.
    pub fn is_enabled(&self) -> bool {
        match &self.enabled {
            Value::Null => false,
            Value::Bool(b) => *b,
            Value::Int(n) => *n != Int::ZERO,
            Value::Float(x) => *x != 0.0,
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(object) => !object.is_empty(),
        }
    }

    fn is_like(&self, other: &Entry) -> bool {
        self.class_name == other.class_name && self.name == other.name
    }
}

/// What is wrong with entries of the program's own, or with creating an exporter.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("an exporter's entry has no class_name")]
    NoClassName,
    #[error("the settings of {class_name:?} are not a mapping")]
    NotAMapping { class_name: Box<str> },
    #[error("no exporter is called {class_name:?} (there are: {known})")]
    Unknown {
        class_name: Box<str>,
        known: Box<str>,
    },
    #[error("{setting:?} is no setting (there are: {known})")]
    UnknownSetting { setting: Box<str>, known: Box<str> },
    #[error("{setting:?} must be {what}")]
    WrongSetting { setting: Box<str>, what: Box<str> },
    #[error("{0:?} is missing")]
    NoSetting(Box<str>),
    #[error("it could not be created")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why a file counts as absent.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot be read")]
    Read(#[source] std::io::Error),
    #[error("is longer than {MAX_FILE_BYTES} bytes")]
    TooLong,
    #[error("is neither .yaml, .yml nor .json")]
    Suffix,
    #[error("is no JSON")]
    Json(#[source] json::Error),
    #[error("is no YAML")]
    Yaml(#[source] YamlError),
    #[error("has no list of exporters at the key exporters")]
    NoList,
    #[error("has an entry without class_name")]
    Entry,
    #[error("is missing")]
    Missing,
}

/// Something that was left out.
#[derive(Debug, thiserror::Error)]
pub enum Warning {
    #[error("exporters of the package {name:?} are left out: {why}")]
    Package { name: Box<str>, why: Box<str> },
    #[error("{path:?} {error}")]
    File {
        path: PathBuf,
        #[source]
        error: FileError,
    },
    #[error("the exporter {class_name:?} is left out: {error}")]
    Exporter {
        class_name: Box<str>,
        #[source]
        error: ConfigError,
    },
}

/// The entries of packages: of each its name and its default, or why there is none. Of equal names the first stays.
pub fn of_packages(
    packages: impl IntoIterator<Item = (Box<str>, Result<Object, String>)>,
) -> (Vec<Entry>, Vec<Warning>) {
    let (mut entries, mut warnings) = (Vec::new(), Vec::new());
    let mut names: Vec<Box<str>> = Vec::new();
    for (name, default) in packages {
        if names.contains(&name) {
            continue;
        }
        let entry = default.and_then(|o| Entry::from_object(&o).map_err(|e| e.to_string()));
        match entry {
            Ok(entry) => entries.push(entry),
            Err(why) => warnings.push(Warning::Package {
                name: name.clone(),
                why: why.into(),
            }),
        }
        names.push(name);
    }
    (entries, warnings)
}

/// The entries that hold: a file's, when it has any, else the packages'; and over these the program's own.
///
/// # Errors
/// [`ConfigError::NotAMapping`], when settings are to be merged and are no settings.
pub fn resolve(
    packages: Vec<Entry>,
    file: Option<Vec<Entry>>,
    direct: Vec<Entry>,
) -> Result<Vec<Entry>, ConfigError> {
    let base = match file {
        Some(file) if !file.is_empty() => file,
        _ => packages,
    };
    if direct.is_empty() {
        return Ok(base);
    }
    let mut resolved: Vec<Entry> = Vec::with_capacity(base.len() + direct.len());
    for entry in &base {
        put(&mut resolved, entry.clone());
    }
    for mut entry in direct {
        if let Some(under) = base.iter().find(|b| b.is_like(&entry)) {
            let not_a_mapping = || ConfigError::NotAMapping {
                class_name: entry.class_name.clone(),
            };
            let mut config = under.config.as_object().ok_or_else(not_a_mapping)?.clone();
            for (key, value) in entry.config.as_object().ok_or_else(not_a_mapping)?.iter() {
                config.insert(key, value.clone());
            }
            entry.config = Value::Object(config);
        }
        put(&mut resolved, entry);
    }
    Ok(resolved)
}

/// One entry of a kind: the last, at the first one's place.
fn put(entries: &mut Vec<Entry>, entry: Entry) {
    match entries.iter_mut().find(|e| e.is_like(&entry)) {
        Some(there) => *there = entry,
        None => entries.push(entry),
    }
}

/// The entries of a file, by its name and content.
///
/// # Errors
/// [`FileError`].
pub fn parse_file(path: &Path, content: &[u8]) -> Result<Vec<Entry>, FileError> {
    let suffix = path.extension().map(|s| s.to_ascii_lowercase());
    let value = match suffix.as_ref().and_then(|s| s.to_str()) {
        Some("json") => open_json::parse(content).map_err(FileError::Json)?,
        Some("yaml" | "yml") => parse_yaml(content).map_err(FileError::Yaml)?,
        _ => return Err(FileError::Suffix),
    };
    let list = value.as_object().and_then(|o| o.get("exporters"));
    let list = list.and_then(Value::as_array).ok_or(FileError::NoList)?;
    let entry = |value: &Value| {
        let entry = value.as_object().map(Entry::from_object);
        entry.and_then(Result::ok).ok_or(FileError::Entry)
    };
    list.iter().map(entry).collect()
}

/// Where a file is looked for: the path that is given, the path that a variable has, then the folder.
#[derive(Debug, Clone, Default)]
pub struct Lookup {
    path: Option<PathBuf>,
    variable: Option<&'static str>,
    /// What relative paths are relative to; empty for the working directory.
    relative_to: PathBuf,
    in_folder: bool,
    falls_through: bool,
}

impl Lookup {
    /// Ours: at `path`, else where [`VARIABLE`] says, and nowhere else. One that is named and missing is a warning.
    pub fn new(path: Option<PathBuf>) -> Lookup {
        Lookup {
            path,
            variable: Some(VARIABLE),
            ..Lookup::default()
        }
    }

    /// As the Python package looks: at `path`, where [`ONE_LOGGER_VARIABLE`] says, in the working directory. What is missing is not
    /// mentioned, and the next place is tried.
    pub fn one_logger(path: Option<PathBuf>) -> Lookup {
        Lookup {
            path,
            variable: Some(ONE_LOGGER_VARIABLE),
            falls_through: true,
            ..Lookup::default()
        }
        .in_folder()
    }

    /// Also looks for `one_logger_exporters_config.yaml`, `.yml` and `.json` in the working directory. Whoever can write there then
    /// chooses the exporters.
    #[must_use]
    pub fn in_folder(mut self) -> Lookup {
        self.in_folder = true;
        self
    }

    /// What relative paths are relative to, in place of the working directory.
    #[must_use]
    pub fn relative_to(mut self, folder: impl Into<PathBuf>) -> Lookup {
        self.relative_to = folder.into();
        self
    }

    /// The file to read, if there is one. A variable that is empty is not set.
    pub fn find(&self, environment: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
        let named = self.variable.and_then(environment);
        let named = named.filter(|v| !v.is_empty()).map(PathBuf::from);
        let folder: &[&str] = if self.in_folder {
            &ONE_LOGGER_FILES
        } else {
            &[]
        };
        let mut places = self
            .path
            .iter()
            .cloned()
            .chain(named)
            .map(|p| (p, self.falls_through));
        let mut usual = folder.iter().map(|name| (PathBuf::from(name), true));
        let there = |(path, only_if_there): (PathBuf, bool)| {
            let path = self.relative_to.join(path);
            (!only_if_there || path.exists()).then_some(path)
        };
        places.find_map(there).or_else(|| usual.find_map(there))
    }

    /// Finds the file and reads it. `None` without a usable one.
    pub fn load(
        &self,
        environment: impl Fn(&str) -> Option<String>,
    ) -> (Option<Vec<Entry>>, Option<Warning>) {
        let Some(path) = self.find(environment) else {
            return (None, None);
        };
        match read(&path).and_then(|content| parse_file(&path, &content)) {
            Ok(entries) => (Some(entries), None),
            Err(error) => (None, Some(Warning::File { path, error })),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let opened = std::fs::File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => FileError::Missing,
        _ => FileError::Read(e),
    })?;
    let mut content = Vec::new();
    opened
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(FileError::Read)?;
    match content.len() as u64 > MAX_FILE_BYTES {
        true => Err(FileError::TooLong),
        false => Ok(content),
    }
}
