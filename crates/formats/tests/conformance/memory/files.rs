//! Files and folders, as the loaders of the Python package see them.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use warptrace_formats::memory::{
    self, Folder, LoadOptions, MANIFEST, Manifest, Place, Plan, Strictness, Tally, Version,
    id_of_source, load_events, load_sessions, plan, read_csv, record, summary_object,
};
use warptrace_model::{LoadedSession, Object, Value, default_session};

use super::{cases, get, matches, revive, shown, text};
use crate::support::{self, Report};

/// A folder of the disk.
pub(crate) struct Disk(pub(crate) PathBuf);

impl Folder for Disk {
    fn names(&self) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.0)?;
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn io::Read + Send + '_>> {
        Ok(Box::new(File::open(self.0.join(name))?))
    }
}

/// Calls `with` with the place that `path` is.
fn at<T>(path: &Path, with: impl FnOnce(&Place<'_>) -> T) -> T {
    let resolved = std::path::absolute(path).expect("a path");
    let resolved = path.canonicalize().unwrap_or(resolved);
    let (folder, file) = match path.is_dir() {
        true => (path.to_owned(), None),
        false => (
            path.parent().expect("a parent").to_owned(),
            path.file_name().and_then(|name| name.to_str()),
        ),
    };
    with(&Place {
        path: path.to_str().expect("a text"),
        resolved: resolved.to_str().expect("a text"),
        folder: &Disk(folder),
        file,
    })
}

#[test]
fn files() {
    let mut report = Report::new("memory_files");
    let root = support::folder().join("memory");
    let files = root.join("files").canonicalize().expect("the files");
    for case in cases("files_expected.jsonl") {
        report.case(text(&case, "id"), || {
            // The texts have the folder's own path in them.
            let path = files.join(text(&case, "path").strip_prefix("files/").expect("files/"));
            let expect = fill(get(&case, "expect"), &files);
            let args = get(&case, "args").as_object().cloned().unwrap_or_default();
            match text(&case, "loader") {
                "csv" => table(&path, &expect),
                _ => load(&path, &args, &expect, get(&case, "tags")),
            }
        });
    }
    report.finish();
}

/// The expectation with this machine's paths and ids in it.
fn fill(value: &Value, files: &Path) -> Value {
    match value {
        Value::String(text) => {
            let files_text = files.to_str().expect("a text");
            match text
                .strip_prefix("{LEGACY:")
                .and_then(|t| t.strip_suffix('}'))
            {
                Some(inside) => {
                    let (path, kind) = inside.rsplit_once(':').expect("a kind");
                    Value::from(&*id_of_source(&format!("{files_text}/{path}"), kind))
                }
                None => Value::from(&*text.replace("{FILES}", files_text)),
            }
        }
        Value::Array(items) => Value::Array(items.iter().map(|v| fill(v, files)).collect()),
        Value::Object(object) => Value::Object(Object::from_pairs(
            object
                .iter()
                .map(|(k, v)| (k.into(), fill(v, files)))
                .collect(),
        )),
        other => revive(other),
    }
}

fn session_value(session: &LoadedSession) -> Value {
    let events = session
        .events
        .iter()
        .map(|event| Value::Object(record(event, Version::V4).expect("v4 takes all")));
    let texts = |texts: &[String]| Value::Array(texts.iter().map(|t| Value::from(&**t)).collect());
    let mut object = Object::new();
    object.insert("summary", summary_object(&session.summary));
    object.insert("event_count", session.events.len() as i64);
    object.insert("events", Value::Array(events.collect()));
    object.insert("sources_loaded", texts(&session.sources_loaded));
    object.insert("warnings", texts(&session.warnings));
    Value::Object(object)
}

fn same(what: &str, got: &Value, want: &Value) -> Result<(), String> {
    match matches(got, want) {
        true => Ok(()),
        false => Err(format!(
            "{what}\n    got  {}\n    want {}",
            shown(got),
            shown(want)
        )),
    }
}

fn same_sessions(sessions: &[LoadedSession], expect: &Object) -> Result<(), String> {
    let got = Value::Array(sessions.iter().map(session_value).collect());
    same("sessions", &got, get(expect, "sessions"))?;
    if let Some(want) = expect.get("default_session_id") {
        let chosen = default_session(sessions);
        let got = chosen.map(|at| Value::from(&*sessions[at].summary.session_id));
        same("default_session_id", &got.unwrap_or_default(), want)?;
    }
    Ok(())
}

fn load(path: &Path, args: &Object, expect: &Value, tags: &Value) -> Result<(), String> {
    let expect = expect.as_object().expect("expect");
    let options = LoadOptions {
        strictness: Strictness::Strict,
        permissive_legacy: get(args, "permissive_legacy").as_bool().unwrap_or(true),
        events_key: get(args, "events_key").as_str().map(str::to_owned),
    };
    at(path, |place| {
        // What does not exist has no segments to its caller, who finds that out when he opens it.
        if let Some(want) = expect.get("segment_paths").filter(|_| path.exists()) {
            let paths = match plan(place) {
                Ok(Plan::Lines { segments, .. }) => {
                    segments.iter().map(|s| Value::from(&*s.path)).collect()
                }
                _ => Vec::new(),
            };
            same("segment_paths", &Value::Array(paths), want)?;
        }
        if let Some(want @ Value::Object(_)) = expect.get("manifest") {
            let name = place.folder.open(MANIFEST).and_then(io::read_to_string);
            let manifest = Manifest::parse(name.unwrap_or_default().as_bytes());
            same(
                "manifest",
                &manifest.map(manifest_value).unwrap_or_default(),
                want,
            )?;
        }
        let loose = tags
            .as_array()
            .unwrap_or_default()
            .iter()
            .any(|tag| matches!(tag.as_str(), Some("os-message" | "parser-message")));
        match (load_sessions(place, &options), expect.get("error")) {
            (Err(_), Some(_)) if loose || text(expect, "error_kind") == "internal" => Ok(()),
            (Err(got), Some(want)) => same("error", &Value::from(&*got.to_string()), want),
            (Err(got), None) => Err(format!("error {got}")),
            (Ok(_), Some(want)) => Err(format!("no error, want {}", shown(want))),
            (Ok((sessions, _)), None) => {
                same_sessions(&sessions, expect)?;
                let Some(want) = expect.get("load_events").and_then(Value::as_object) else {
                    return Ok(());
                };
                let events = load_events(place, &options, get(args, "session_id").as_str());
                match (events, want.get("error")) {
                    (Err(got), Some(want)) => same("error", &Value::from(&*got.to_string()), want),
                    (Err(got), None) => Err(format!("load_events: error {got}")),
                    (Ok(_), Some(want)) => Err(format!("load_events: want {}", shown(want))),
                    (Ok((events, _)), None) => {
                        let count = Value::from(events.len() as i64);
                        same("load_events count", &count, get(want, "count"))?;
                        let mut ids: Vec<&str> = events.iter().map(|e| &*e.session_id).collect();
                        ids.sort_unstable();
                        ids.dedup();
                        let ids = Value::Array(ids.into_iter().map(Value::from).collect());
                        same("load_events sessions", &ids, get(want, "session_ids"))
                    }
                }
            }
        }
    })
}

fn manifest_value(manifest: Manifest) -> Value {
    let mut object = Object::new();
    object.insert("schema_version", manifest.schema_version.clone());
    object.insert("format", &*manifest.format);
    let sessions = manifest
        .sessions
        .iter()
        .map(|s| Value::Object(summary_object(s)));
    object.insert("sessions", Value::Array(sessions.collect()));
    let segments = manifest.segments.iter().map(|segment| {
        let mut object = Object::new();
        object.insert("filename", &*segment.filename);
        object.insert("event_count", segment.event_count as i64);
        object.insert("size_bytes", segment.size_bytes as i64);
        object.insert("closed", segment.closed);
        let session = segment.session_id.as_deref();
        object.insert("session_id", session.map_or(Value::Null, Value::from));
        Value::Object(object)
    });
    object.insert("segments", Value::Array(segments.collect()));
    Value::Object(object)
}

/// A table is loaded by another loader there, which leaves out bad rows and orders sessions by their first event.
fn table(path: &Path, expect: &Value) -> Result<(), String> {
    at(path, |place| {
        let file = File::open(path).map_err(|e| e.to_string())?;
        let mut tally = Tally::default();
        let source: Arc<str> = place.resolved.into();
        let mut sessions: Vec<LoadedSession> = Vec::new();
        let mut events: Vec<memory::SessionInfo> = Vec::new();
        let mut loaded = Vec::new();
        read_csv(file, place.resolved, &mut |_, event| {
            if let Ok(event) = event {
                tally.add(&source, &event);
                loaded.push(event);
            }
        })
        .map_err(|e| e.to_string())?;
        events.extend(tally.finish(place, &memory::Read::default()));
        for info in events {
            let of =
                |event: &&warptrace_model::MemoryEvent| event.session_id == info.summary.session_id;
            let mut events: Vec<_> = loaded.iter().filter(of).cloned().collect();
            events.sort_by(|a, b| a.timestamp_ns.cmp(&b.timestamp_ns));
            sessions.push(LoadedSession {
                summary: info.summary.clone(),
                events,
                sources_loaded: info.sources.clone(),
                warnings: Vec::new(),
            });
        }
        let first = |session: &LoadedSession| {
            loaded
                .iter()
                .position(|e| e.session_id == session.summary.session_id)
        };
        sessions.sort_by_key(first);
        same_sessions(&sessions, expect.as_object().expect("expect"))
    })
}
