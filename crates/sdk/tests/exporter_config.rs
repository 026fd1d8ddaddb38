//! Exporters' configuration, by the vectors of `testdata/conformance/spans/exporter_config`: which exporters come out of packages'
//! defaults, files, variables and a program's own list.

#[allow(dead_code, reason = "shared with other tests, which use more of it")]
#[path = "../../formats/tests/conformance/support.rs"]
mod support;

use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::Value as Json;
use support::{Report, read, same};
use warptrace_formats::open_json;
use warptrace_model::{Object, Value};
use warptrace_sdk::exporter::config::{
    ConfigError, Entry, Lookup, Registry, Warning, of_packages, resolve,
};
use warptrace_sdk::exporter::{Discard, JsonlFile};
use warptrace_sdk::span::Exporter;

fn value(json: &Json) -> Value {
    open_json::parse(json.to_string().as_bytes()).unwrap()
}

fn object(json: &Json) -> Object {
    match value(json) {
        Value::Object(object) => object,
        other => panic!("{other:?} is no object"),
    }
}

/// Who was made of what.
type Made = Arc<Mutex<Vec<(String, Value)>>>;

/// The classes of the vectors, which note what they are given.
fn registry(made: &Made) -> Registry {
    let mut registry = Registry::new();
    let names = ["Alpha", "Beta", "Gamma"].map(|name| format!("vector_exporters.{name}"));
    let file = "nv_one_logger.exporter.file_exporter.FileExporter".to_owned();
    for name in names.into_iter().chain([file]) {
        let (made, class) = (Arc::clone(made), name.clone());
        registry.register(&name, move |settings| {
            let all = Value::Object(settings.all().clone());
            made.lock().unwrap().push((class.clone(), all));
            Ok(Box::new(Discard) as Box<dyn Exporter>)
        });
    }
    registry
}

/// Values as the vectors write them; a path is a text to us.
fn expected(json: &Json) -> Value {
    fn without_paths(json: &Json) -> Json {
        match json {
            Json::Object(o) if o.contains_key("$path") => o["$path"].clone(),
            Json::Object(o) => o
                .iter()
                .map(|(k, v)| (k.clone(), without_paths(v)))
                .collect(),
            Json::Array(items) => items.iter().map(without_paths).collect(),
            other => other.clone(),
        }
    }
    value(&without_paths(json))
}

/// Objects are compared without order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let mut pairs: Vec<(Box<str>, Value)> =
                object.iter().map(|(k, v)| (k.into(), sorted(v))).collect();
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(Object::from_pairs(pairs))
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

fn told(entries: &[Entry]) -> Vec<Value> {
    let one = |entry: &Entry| {
        let mut object = Object::new();
        object.insert("class_name", &*entry.class_name);
        object.insert("config", entry.config.clone());
        object.insert("enabled", entry.enabled.clone());
        sorted(&Value::Object(object))
    };
    entries.iter().map(one).collect()
}

/// Entries, classes with what they were made of, warnings.
type Outcome = (Vec<Entry>, Vec<(String, Value)>, u64);

/// The entries of a case, what was made of them, and how many warnings there were.
fn run(case: &Json, folder: &Path) -> Result<Outcome, ConfigError> {
    for (name, text) in case["files"].as_object().into_iter().flatten() {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match text.as_str() {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => std::fs::create_dir(&path).unwrap(),
        }
    }
    let packages = case["packages"].as_array().cloned().unwrap_or_default();
    let packages = packages.iter().map(|package| {
        let default = match package["default_config"].is_object() {
            true => Ok(object(&package["default_config"])),
            false => Err("it fails".to_owned()),
        };
        (package["entry_point"].as_str().unwrap().into(), default)
    });
    let (packages, mut warnings): (_, Vec<Warning>) = of_packages(packages);
    let lookup = Lookup::one_logger(case["config_file_path"].as_str().map(Into::into));
    let environment = |name: &str| case["env"][name].as_str().map(str::to_owned);
    let (file, warning) = lookup.relative_to(folder).load(environment);
    warnings.extend(warning);
    let direct = case["direct"].as_array().cloned().unwrap_or_default();
    let direct: Result<Vec<Entry>, ConfigError> = direct
        .iter()
        .map(|entry| Entry::from_object(&object(entry)))
        .collect();
    let entries = resolve(packages, file, direct?)?;
    let made = Made::default();
    let (_, failed) = registry(&made).create_all(&entries);
    let warned = (warnings.len() + failed.len()) as u64;
    let made = std::mem::take(&mut *made.lock().unwrap());
    Ok((entries, made, warned))
}

fn check(case: &Json) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let want = &case["expected"];
    let (entries, made, warned) = match (run(case, folder.path()), want["raises"].as_str()) {
        (Err(ConfigError::NoClassName), Some("KeyError")) => return Ok(()),
        (Ok(got), None) => got,
        (got, raises) => return Err(format!("{got:?}, and {raises:?} is to be raised")),
    };
    let list = |key: &str| want[key].as_array().ok_or(format!("no {key}"));
    let resolved: Vec<Value> = list("resolved")?
        .iter()
        .map(|e| sorted(&expected(e)))
        .collect();
    same("resolved", told(&entries), resolved)?;
    let created: Vec<(String, Value)> = list("created")?
        .iter()
        .map(|c| {
            (
                c["class"].as_str().unwrap_or("").to_owned(),
                sorted(&expected(&c["args"])),
            )
        })
        .collect();
    let made: Vec<_> = made
        .into_iter()
        .map(|(c, args)| (c, sorted(&args)))
        .collect();
    same("created", made, created)?;
    same("warnings", Some(warned), want["warnings"].as_u64())
}

#[test]
fn entries_resolve_as_the_vectors_say() {
    let index: Json = serde_json::from_slice(&read("spans/index.json")).unwrap();
    let mut report = Report::new("spans-exporter-config");
    for listed in index["exporter_config"].as_array().unwrap() {
        let id = listed["id"].as_str().unwrap();
        let case: Json =
            serde_json::from_slice(&read(format!("spans/exporter_config/{id}.json"))).unwrap();
        // The Python provider's steps, and a list of objects and mappings, which Rust's types rule out.
        if case["provider"].is_array() || id == "cfg-43-direct-mixed" {
            report.elsewhere(id);
            continue;
        }
        report.case(id, || check(&case));
    }
    report.finish();
}

#[test]
fn our_own_configuration_is_taken_from_what_is_named_and_from_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let text = "exporters: [{class_name: console}]";
    for name in ["one_logger_exporters_config.yaml", "named.yaml"] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let none = |_: &str| None;
    let lookup = |path: Option<&str>| Lookup::new(path.map(Into::into)).relative_to(folder.path());
    assert_eq!(lookup(None).find(none), None);
    assert!(lookup(None).in_folder().find(none).is_some());
    let named =
        |name: &str| (name == "WARPTRACE_EXPORTERS_CONFIG").then(|| "named.yaml".to_owned());
    assert_eq!(
        lookup(None).load(named).0.unwrap()[0].class_name,
        "console".into()
    );
    let theirs =
        |name: &str| (name == "ONE_LOGGER_EXPORTER_CONFIG_PATH").then(|| "named.yaml".to_owned());
    assert_eq!(lookup(None).find(theirs), None);
    // One that is named and missing is told, and not looked past.
    let (entries, warning) = lookup(Some("gone.json")).load(named);
    assert!(entries.is_none());
    let warning = warning.unwrap().to_string();
    assert!(warning.ends_with("gone.json\" is missing"), "{warning}");
}

#[test]
fn what_cannot_be_made_says_why_and_the_rest_is_made() {
    let entry =
        |name: &str, config: &str| Entry::new(name, object(&serde_json::from_str(config).unwrap()));
    let entries = [
        entry("os.system", "{}"),
        entry("file", r#"{"path": "x.jsonl", "pth": "y"}"#),
        entry("file", "{}"),
        entry("file", r#"{"path": "x.jsonl", "existing": "erase"}"#),
        entry("file", r#"{"path": "x.jsonl", "max_bytes": -1}"#),
        entry("discard", "{}"),
    ];
    let (made, warnings) = Registry::builtin().create_all(&entries);
    assert_eq!(made.len(), 1);
    let said: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    let why = [
        "no exporter is called \"os.system\"",
        "\"pth\" is no setting (there are: path, existing",
        "\"path\" is missing",
        "\"existing\" must be one of append, truncate, rotate",
        "\"max_bytes\" must be a whole number from 0 on",
    ];
    for (said, why) in said.iter().zip(why) {
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(said.len(), why.len());
}

#[test]
fn two_of_one_class_stand_side_by_side_under_names_of_their_own() {
    let entry = |name: &str, path: &str| Entry {
        name: Some(name.into()),
        ..Entry::new("file", object(&serde_json::json!({ "path": path })))
    };
    let direct = vec![
        entry("a", "a.jsonl"),
        entry("b", "b.jsonl"),
        entry("a", "c.jsonl"),
    ];
    let resolved = resolve(Vec::new(), None, direct).unwrap();
    let (made, warnings) = Registry::builtin().create_all(&resolved);
    assert!(warnings.is_empty());
    let names: Vec<&str> = made.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(
        resolved[0].config.as_object().unwrap().get("path"),
        Some(&"c.jsonl".into())
    );
}

#[test]
fn every_built_in_name_makes_an_exporter() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let path = path.to_str().unwrap();
    let all = serde_json::json!({
        "path": path, "existing": "rotate", "max_bytes": 1000, "keep": 2, "keys": "one_logger",
        "merge_starts": true, "each_record": true,
    });
    let package = "nv_one_logger.exporter.file_exporter.FileExporter";
    for (name, config) in [
        ("file", all),
        (
            "log",
            serde_json::json!({"keys": "all", "merge_starts": false}),
        ),
        ("console", serde_json::json!({})),
        ("agent", serde_json::json!({"step_spans": ["s"]})),
        (
            "run_log",
            serde_json::json!({"path": path, "request_spans": ["r"]}),
        ),
        ("discard", serde_json::json!({})),
        (package, serde_json::json!({"file_path": path})),
        (
            "nv_one_logger.exporter.logger_exporter.LoggerExporter",
            serde_json::json!({}),
        ),
    ] {
        let entry = Entry::new(name, object(&config));
        let made = Registry::builtin().create(&entry);
        assert!(made.is_ok(), "{name}: {}", made.err().unwrap());
    }
    let _: Box<dyn Exporter> = Box::new(JsonlFile::new(path));
}
