//! What is published of the settings: a JSON schema, an example with every key, the table of the reference.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};
use warptrace_model::{Int, Value};

use super::file::OTHER_NAMES;
use super::layers::Loaded;
use super::settings::Settings;
use super::tree::{Key, Node as _, Shape};

/// What the checks of the whole ([`super::layers`]) refuse besides, as far as a schema can say it: at least, at most.
const RANGES: [(&str, u64, u64); 6] = [
    ("inference.baseline.warmup_samples", 1, 1_000_000),
    ("inference.kvcache.top_n", 1, 64),
    ("inference.kvcache.max_per_pid", 1, 262_144),
    ("alerts.max_open", 1, 100_000),
    ("alerts.burst", 1, 1_000),
    ("alerts.queue", 1, 100_000),
];

fn keys() -> Vec<Key> {
    match Settings::shape() {
        Shape::Section(keys) => keys,
        Shape::Leaf(_) => Vec::new(),
    }
}

/// A JSON schema (draft 2020-12) of a file of settings.
pub(super) fn schema() -> Json {
    let mut top = section(&keys());
    for (path, least, most) in RANGES {
        if let Some(leaf) = place(&mut top, path) {
            leaf["minimum"] = least.into();
            leaf["maximum"] = most.into();
        }
    }
    if let Some(ratio) = place(&mut top, "inference.outlier.threshold_ratio") {
        ratio["exclusiveMinimum"] = 1.into();
    }
    for (other, ours) in OTHER_NAMES {
        let mut leaf = place(&mut top, ours).cloned().unwrap_or_default();
        leaf["description"] = format!("Another name of {ours}").into();
        leaf["deprecated"] = true.into();
        add(&mut top, other, leaf);
    }
    top["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    top["$id"] = "https://warptrace.dev/config.schema.json".into();
    top["title"] = "Settings of warptrace".into();
    top
}

fn section(keys: &[Key]) -> Json {
    let mut properties = Map::new();
    for key in keys {
        let mut shape = match &key.shape {
            Shape::Section(keys) => section(keys),
            Shape::Leaf(schema) => {
                let mut leaf = schema.clone();
                leaf["default"] = json(&key.default);
                leaf
            }
        };
        let flag = key
            .flag
            .map(|flag| format!(" ({flag})"))
            .unwrap_or_default();
        shape["description"] = format!("{}{flag}", key.about).into();
        properties.insert(key.name.to_owned(), shape);
    }
    json!({"type": ["object", "null"], "properties": properties, "additionalProperties": false})
}

/// What the schema says of the key at `path`.
fn place<'a>(section: &'a mut Json, path: &str) -> Option<&'a mut Json> {
    path.split('.').try_fold(section, |section, key| {
        section["properties"].as_object_mut()?.get_mut(key)
    })
}

fn add(section: &mut Json, path: &str, leaf: Json) {
    match path.split_once('.') {
        None => section["properties"][path] = leaf,
        Some((key, rest)) => {
            let properties = &mut section["properties"];
            if properties[key].is_null() {
                properties[key] = json!({"type": ["object", "null"], "properties": {}, "additionalProperties": false});
            }
            add(&mut properties[key], rest, leaf);
        }
    }
}

pub(super) fn json(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(on) => (*on).into(),
        Value::Int(n) => Int::to_u64(n).map_or_else(|| n.to_string().into(), Json::from),
        Value::Float(n) => (*n).into(),
        Value::String(text) => (&**text).into(),
        Value::Array(items) => items.iter().map(json).collect(),
        Value::Object(object) => {
            let pairs = object.iter().map(|(k, v)| (k.to_owned(), json(v)));
            Json::Object(pairs.collect())
        }
    }
}

/// A file with every key, its default, and what it is for. Those without a default are there as comments.
pub(super) fn example() -> String {
    let mut out = String::from(
        "# Every setting of warptrace, with its default. What is left out has it too.\n\
         #   sudo warptrace trace --config warptrace.yaml\n\
         #   warptrace config check warptrace.yaml\n\
         # Flags come before what is said here, and so do variables: store.keep is WARPTRACE_STORE_KEEP.\n\
         # Tokens, keys and addresses that are keys are in variables alone.\n",
    );
    write_example(&mut out, &keys(), 0);
    out
}

fn write_example(out: &mut String, keys: &[Key], level: usize) {
    let indent = "  ".repeat(level);
    for key in keys {
        if level == 0 {
            out.push('\n');
        }
        for line in wrapped(key.about, 118 - indent.len()) {
            _ = writeln!(out, "{indent}# {line}");
        }
        let name = key.name;
        _ = match (&key.shape, key.like) {
            (Shape::Section(keys), _) => {
                _ = writeln!(out, "{indent}{name}:");
                write_example(out, keys, level + 1);
                Ok(())
            }
            (_, Some(count)) if count.parse::<u32>().is_ok() => {
                writeln!(out, "{indent}#{name}: {count}")
            }
            (_, Some(like)) => writeln!(out, "{indent}#{name}: {}", scalar(&like.into())),
            (_, None) if key.default.is_null() => writeln!(out, "{indent}#{name}: {{}}"),
            (_, None) => writeln!(out, "{indent}{name}: {}", scalar(&key.default)),
        };
    }
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// As YAML on one line. A text that YAML would take for something else is quoted.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => {
            let plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "/._-:".contains(c))
                && !text.ends_with(':');
            let read = warptrace_sdk::exporter::config::parse_yaml(text.as_bytes());
            match plain && read.is_ok_and(|read| read == *value) {
                true => text.to_string(),
                false => json(value).to_string(),
            }
        }
        other => json(other).to_string(),
    }
}

/// The settings that hold, as a file of them; behind each that is not by default, who set it.
pub(super) fn effective(loaded: &Loaded) -> String {
    fn write(out: &mut String, value: &Value, path: &str, level: usize, loaded: &Loaded) {
        let indent = "  ".repeat(level);
        let Value::Object(object) = value else { return };
        for (name, value) in object.iter() {
            let path = match path {
                "" => name.to_owned(),
                path => format!("{path}.{name}"),
            };
            match value {
                Value::Object(pairs) if !pairs.is_empty() && is_section(&path) => {
                    _ = writeln!(out, "{indent}{name}:");
                    write(out, value, &path, level + 1, loaded);
                }
                value => {
                    let line = format!("{indent}{name}: {}", scalar(value));
                    match loaded.origins().get(&path) {
                        Some(origin) => {
                            _ = writeln!(out, "{line:<47} # {}", origin.name());
                        }
                        None => {
                            _ = writeln!(out, "{line}");
                        }
                    }
                }
            }
        }
    }
    let mut out = String::new();
    write(&mut out, &loaded.show(), "", 0, loaded);
    out
}

fn is_section(path: &str) -> bool {
    let mut keys = keys();
    for name in path.split('.') {
        match keys.into_iter().find(|key| key.name == name) {
            Some(Key {
                shape: Shape::Section(below),
                ..
            }) => keys = below,
            _ => return false,
        }
    }
    true
}

/// Rows of the reference: key, default, flag, what it is.
#[cfg(test)]
pub(super) fn table() -> String {
    fn rows(out: &mut String, keys: &[Key], path: &str) {
        for key in keys {
            let path = match path {
                "" => key.name.to_owned(),
                path => format!("{path}.{}", key.name),
            };
            match &key.shape {
                Shape::Section(keys) => rows(out, keys, &path),
                Shape::Leaf(_) => {
                    let default = match key.default.is_null() {
                        true => String::new(),
                        false => format!("`{}`", scalar(&key.default)),
                    };
                    let flag = key.flag.map(|f| format!("`{f}`")).unwrap_or_default();
                    let about = key.about;
                    _ = writeln!(out, "| `{path}` | {default} | {flag} | {about} |");
                }
            }
        }
    }
    let mut out = String::from("| key | default | flag | |\n|---|---|---|---|\n");
    rows(&mut out, &keys(), "");
    let example = super::layers::variable("inference.baseline.warmup_samples");
    _ = writeln!(
        out,
        "\nA key's variable is its path in capitals: `inference.baseline.warmup_samples` is `{example}`."
    );
    out.push_str("\n| key of ingero 0.17.0's file | is |\n|---|---|\n");
    for (other, ours) in OTHER_NAMES {
        _ = writeln!(out, "| `{other}` | `{ours}` |");
    }
    out
}
