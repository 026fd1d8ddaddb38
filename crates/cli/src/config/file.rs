//! A file of settings: bytes to open data, with the line of each key; and keys that have another name elsewhere.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use saphyr_parser::{Event, Parser};
use warptrace_model::{Object, Value};
use warptrace_sdk::exporter::config::parse_yaml;

use super::tree::Wrong;

/// A larger file is no settings.
const MAX_BYTES: u64 = 1 << 20;

/// Keys of the file that ingero 0.17.0 reads, and ours for them. Where its value says nothing (empty, 0), nothing is said.
pub(super) const OTHER_NAMES: [(&str, &str); 6] = [
    ("agent.node", "node"),
    ("agent.log_level", "log.level"),
    ("inference.db_rollover.size", "store.rollover_size"),
    ("inference.db_rollover.keep", "store.keep"),
    ("inference.daemon.duration", "duration"),
    ("inference.daemon.log_path", "log.file"),
];

/// What a file says.
#[derive(Debug)]
pub(super) struct File {
    pub(super) value: Value,
    places: Places,
}

impl File {
    pub(super) fn load(path: &Path) -> anyhow::Result<File> {
        let cannot = || format!("cannot read the settings {path:?}");
        let file = std::fs::File::open(path).with_context(cannot)?;
        let mut content = Vec::new();
        let mut limited = file.take(MAX_BYTES + 1);
        limited.read_to_end(&mut content).with_context(cannot)?;
        if content.len() as u64 > MAX_BYTES {
            bail!("{}: more than {MAX_BYTES} bytes", path.display());
        }
        File::parse(&content).map_err(|e| e.context(path.display().to_string()))
    }

    pub(super) fn parse(content: &[u8]) -> anyhow::Result<File> {
        let mut value = parse_yaml(content)?;
        // What `parse_yaml` takes is UTF-8, and has a grammar.
        let places = Places::of(std::str::from_utf8(content)?);
        if let Some((path, line)) = &places.again {
            bail!("line {line}: {path} is there twice");
        }
        let mut file = File {
            value: Value::Null,
            places,
        };
        if let Err(wrong) = rename(&mut value) {
            bail!("{}", file.said(&wrong));
        }
        file.value = value;
        Ok(file)
    }

    /// What is wrong, and where.
    pub(super) fn said(&self, wrong: &Wrong) -> String {
        let Wrong { path, message } = wrong;
        let line = self.places.line(path);
        let line = line.map(|l| format!("line {l}: ")).unwrap_or_default();
        match (path.as_str(), message.strip_prefix("unknown key")) {
            ("", _) => format!("{line}{message}"),
            (path, Some(rest)) => format!("{line}unknown key {path}{rest}"),
            (path, None) => format!("{line}{path}: {message}"),
        }
    }
}

/// Values under other names go where ours are.
fn rename(value: &mut Value) -> Result<(), Wrong> {
    for (other, ours) in OTHER_NAMES {
        let Some(said) = take(value, other) else {
            continue;
        };
        let is_nothing = match &said {
            Value::Null => true,
            Value::String(text) => text.is_empty() || &**text == "0",
            Value::Int(n) => *n == 0,
            _ => false,
        };
        if is_nothing {
            continue;
        }
        if !put(value, ours, said) {
            return Err(Wrong {
                path: other.to_owned(),
                message: format!("another name of {ours}, which is there too"),
            });
        }
    }
    Ok(())
}

/// Takes the value at `path` out, and with it the sections that it leaves empty.
fn take(value: &mut Value, path: &str) -> Option<Value> {
    let Value::Object(object) = value else {
        return None;
    };
    let Some((key, rest)) = path.split_once('.') else {
        return object.remove(path);
    };
    let (_, below) = object.iter_mut().find(|(name, _)| *name == key)?;
    let taken = take(below, rest)?;
    if below.as_object().is_some_and(Object::is_empty) {
        object.remove(key);
    }
    Some(taken)
}

/// Says `said` at `path`, unless something is said there.
pub(super) fn put(value: &mut Value, path: &str, said: Value) -> bool {
    if value.is_null() {
        *value = Value::Object(Object::new());
    }
    let Value::Object(object) = value else {
        return false;
    };
    match path.split_once('.') {
        None if object.contains(path) => false,
        None => {
            object.insert(path, said);
            true
        }
        Some((key, rest)) => {
            if !object.contains(key) {
                object.insert(key, Value::Null);
            }
            let mut below = object.iter_mut().filter(|(name, _)| *name == key);
            below
                .next()
                .is_some_and(|(_, below)| put(below, rest, said))
        }
    }
}

/// Where each key is.
#[derive(Debug, Default)]
struct Places {
    lines: BTreeMap<String, usize>,
    /// A key that its section had already.
    again: Option<(String, usize)>,
}

impl Places {
    fn of(text: &str) -> Places {
        let mut places = Places::default();
        // Of each open section: its path, and the key whose value comes next. Lists have no keys.
        let mut open: Vec<(String, Option<String>, bool)> = Vec::new();
        for event in Parser::new_from_str(text.trim_start_matches('\u{feff}')) {
            let Ok((event, span)) = event else {
                return places;
            };
            let line = span.start.line();
            match event {
                Event::MappingStart(..) | Event::SequenceStart(..) => {
                    let path = match open.last_mut() {
                        None => String::new(),
                        Some((path, key, _)) => joined(path, key.take().as_deref()),
                    };
                    let is_mapping = matches!(event, Event::MappingStart(..));
                    open.push((path, None, is_mapping));
                }
                Event::MappingEnd | Event::SequenceEnd => {
                    open.pop();
                }
                Event::Scalar(word, ..) => match open.last_mut() {
                    Some((path, key @ None, true)) => {
                        *key = Some(word.to_string());
                        let path = joined(path, Some(&word));
                        let before = places.lines.insert(path.clone(), line);
                        if before.is_some() && word != "<<" && places.again.is_none() {
                            places.again = Some((path, line));
                        }
                    }
                    Some((_, key, _)) => *key = None,
                    None => {}
                },
                Event::Alias(_) => {
                    if let Some((_, key, _)) = open.last_mut() {
                        *key = None;
                    }
                }
                _ => {}
            }
        }
        places
    }

    /// Of the key, or of the nearest section around it.
    fn line(&self, path: &str) -> Option<usize> {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return Some(*line);
            }
            // Said under another name.
            let other = OTHER_NAMES.iter().find(|(_, ours)| *ours == path);
            if let Some(line) = other.and_then(|(other, _)| self.lines.get(*other)) {
                return Some(*line);
            }
            path = path.rsplit_once('.')?.0;
        }
    }
}

fn joined(path: &str, key: Option<&str>) -> String {
    match (path, key) {
        ("", key) => key.unwrap_or_default().to_owned(),
        (path, None) => path.to_owned(),
        (path, Some(key)) => format!("{path}.{key}"),
    }
}
