//! GPU memory telemetry, against the Python package `stormlog` 0.4.3 (and 0.3.5 for what its version 3 can say).

use std::sync::Arc;

use warptrace_formats::memory::{
    self, Upgrade, Version, open_json, parse_status, parse_summary, record, stable_legacy_id,
    summary_object,
};
use warptrace_model::{Identity, LoadedSession, Object, StatedIdentity, Value, default_session};

use crate::support::{self, Report};

mod files;
mod sink;

/// The cases of a file of the folder `memory`, read as open data: their integers have no size limit.
pub(crate) fn cases(name: &str) -> Vec<Object> {
    let bytes = support::read(format!("memory/{name}"));
    let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| match open_json::parse(line) {
            Ok(Value::Object(case)) => case,
            other => panic!("{name}: {other:?}"),
        })
        .collect()
}

pub(crate) fn get<'a>(object: &'a Object, key: &str) -> &'a Value {
    object.get(key).unwrap_or(&Value::Null)
}

pub(crate) fn text<'a>(object: &'a Object, key: &str) -> &'a str {
    get(object, key).as_str().unwrap_or_default()
}

/// `null` where the vectors have a float that strict JSON cannot hold.
fn revive(value: &Value) -> Value {
    match value {
        Value::Object(object) if object.len() == 1 && object.contains("$float") => {
            Value::Float(match text(object, "$float") {
                "nan" => f64::NAN,
                "inf" => f64::INFINITY,
                _ => f64::NEG_INFINITY,
            })
        }
        Value::Object(object) => Value::Object(Object::from_pairs(
            object.iter().map(|(k, v)| (k.into(), revive(v))).collect(),
        )),
        Value::Array(items) => Value::Array(items.iter().map(revive).collect()),
        other => other.clone(),
    }
}

/// Whether `got` is what the vectors ask for: keys in any order, floats within 1e-6.
pub(crate) fn matches(got: &Value, want: &Value) -> bool {
    match (got, want) {
        (Value::Object(got), Value::Object(want)) => {
            got.len() == want.len()
                && got
                    .iter()
                    .all(|(key, value)| want.get(key).is_some_and(|want| matches(value, want)))
        }
        (Value::Array(got), Value::Array(want)) => {
            got.len() == want.len() && got.iter().zip(want).all(|(got, want)| matches(got, want))
        }
        (Value::Float(got), Value::Float(want)) => {
            (got.is_nan() && want.is_nan())
                || got == want
                || (got - want).abs() <= (1e-6 * want.abs()).max(1e-9)
        }
        (got, want) => got == want,
    }
}

/// Compares an outcome with `expect`: `ok`, or an error whose text counts unless it is an accident of Python.
pub(crate) fn compare(got: Result<Value, String>, expect: &Object) -> Result<(), String> {
    match (got, expect.get("ok").map(revive)) {
        (Ok(got), Some(want)) if matches(&got, &want) => Ok(()),
        (Ok(got), Some(want)) => Err(format!(
            "\n    got  {}\n    want {}",
            shown(&got),
            shown(&want)
        )),
        (Err(_), None) if text(expect, "error_kind") == "internal" => Ok(()),
        (Err(got), None) if got == text(expect, "error") => Ok(()),
        (Err(got), None) => Err(format!("error {got:?}, want {:?}", text(expect, "error"))),
        (Ok(got), None) => Err(format!(
            "no error, but {}; want {:?}",
            shown(&got),
            text(expect, "error")
        )),
        (Err(got), Some(_)) => Err(format!("error {got:?}")),
    }
}

pub(crate) fn shown(value: &Value) -> String {
    open_json::to_string(value, open_json::Style::LINE)
}

fn raw_record(case: &Object) -> Result<Value, String> {
    match case.get("record_text") {
        Some(text) => open_json::parse(text.as_str().unwrap_or_default().as_bytes())
            .map_err(|e| e.to_string()),
        None => Ok(revive(get(case, "record"))),
    }
}

fn upgrade(args: &Object) -> Upgrade {
    let default = Upgrade::default();
    Upgrade {
        permissive_legacy: get(args, "permissive_legacy").as_bool().unwrap_or(true),
        default_collector: match args.get("default_collector").and_then(Value::as_str) {
            Some(text) => text.into(),
            None => default.default_collector,
        },
        default_sampling_interval_ms: match get(args, "default_sampling_interval_ms").as_int() {
            Some(int) => int.clone(),
            None => default.default_sampling_interval_ms,
        },
        default_session_id: get(args, "default_session_id").as_str().map(Arc::from),
    }
}

#[test]
fn records() {
    let mut report = Report::new("memory_records");
    let (mut as_v3, mut differs) = (0, Vec::new());
    for case in cases("records.jsonl") {
        let id = text(&case, "id").to_owned();
        let interval = get(&case, "args").as_object();
        let interval = interval.and_then(|args| args.get("default_sampling_interval_ms"));
        if interval.is_some_and(|value| value.as_int().is_none()) {
            // A default that is no integer: the type of ours says so before anything runs.
            report.elsewhere(&id);
            continue;
        }
        let event = raw_record(&case).and_then(|raw| {
            let args = get(&case, "args").as_object().cloned().unwrap_or_default();
            upgrade(&args).event(raw).map_err(|e| e.to_string())
        });
        report.case(&id, || {
            let written = event
                .clone()
                .map(|event| Value::Object(record(&event, Version::V4).expect("v4 takes all")));
            compare(written, get(&case, "expect").as_object().expect("expect"))
        });
        // What the older package reads, too, must be what we write as version 3.
        if let (Ok(event), Some(Value::Object(seed))) = (&event, case.get("expect_seed"))
            && let Some(want) = seed.get("ok")
        {
            let written = record(event, Version::V3).map(Value::Object);
            match written {
                Ok(got) if matches(&got, &revive(want)) => as_v3 += 1,
                got => differs.push(format!("{id}: {got:?}")),
            }
        }
    }
    assert!(
        differs.is_empty(),
        "as v3 {as_v3}, {}: {differs:#?}",
        differs.len()
    );
    report.finish();
}

#[test]
fn identity() {
    let mut report = Report::new("memory_identity");
    for case in cases("identity.jsonl") {
        report.case(text(&case, "id"), || {
            let kwargs = revive(get(&case, "kwargs"));
            let kwargs = kwargs.as_object().expect("kwargs");
            let env = kwargs.get("env").and_then(Value::as_object).cloned();
            let lookup = |name: &str| {
                let value = env.as_ref().and_then(|env| env.get(name)?.as_str());
                value.map(str::to_owned)
            };
            let metadata = kwargs.get("metadata").and_then(Value::as_object);
            let identity = Identity::resolve(
                StatedIdentity::of(kwargs),
                metadata,
                env.is_some().then_some(&lookup),
            );
            let got = identity.map_err(|e| e.to_string()).map(|identity| {
                let mut object = Object::new();
                let job = identity.job_id.as_deref();
                object.insert("job_id", job.map_or(Value::Null, Value::from));
                object.insert("rank", identity.rank);
                object.insert("local_rank", identity.local_rank);
                object.insert("world_size", identity.world_size);
                Value::Object(object)
            });
            compare(got, get(&case, "expect").as_object().expect("expect"))
        });
    }
    report.finish();
}

#[test]
fn sessions() {
    let mut report = Report::new("memory_sessions");
    for case in cases("sessions.jsonl") {
        report.case(text(&case, "id"), || {
            let input = revive(get(&case, "input"));
            let input = input.as_object().expect("input");
            compare(
                session_op(text(&case, "op"), input),
                get(&case, "expect").as_object().expect("expect"),
            )
        });
    }
    report.finish();
}

fn session_op(op: &str, input: &Object) -> Result<Value, String> {
    let summary = |value: &Value| parse_summary(value).map_err(|e| e.to_string());
    let items = |key| get(input, key).as_array().unwrap_or_default();
    match op {
        "from_dict" => summary(get(input, "payload")).map(|s| Value::Object(summary_object(&s))),
        "finalize" => {
            let end = get(input, "ended_at_ns").as_int().cloned().expect("an end");
            let summary = summary(get(input, "summary"))?;
            Ok(Value::Object(summary_object(&summary.finalized(end))))
        }
        "sort" => {
            let mut all = items("summaries")
                .iter()
                .map(summary)
                .collect::<Result<Vec<_>, _>>()?;
            all.sort_by(|a, b| a.order(b));
            Ok(Value::Array(
                all.iter().map(|s| Value::from(&*s.session_id)).collect(),
            ))
        }
        "default" => {
            let loaded = items("loaded").iter().map(|pair| {
                let pair = pair.as_array().expect("a pair");
                Ok(LoadedSession {
                    summary: summary(&pair[0])?,
                    events: match pair[1] == Value::from(0) {
                        true => Vec::new(),
                        false => vec![any_event()],
                    },
                    sources_loaded: Vec::new(),
                    warnings: Vec::new(),
                })
            });
            let loaded = loaded.collect::<Result<Vec<_>, String>>()?;
            let chosen = default_session(&loaded);
            Ok(chosen.map_or(Value::Null, |at| {
                Value::from(&*loaded[at].summary.session_id)
            }))
        }
        "stable_legacy_session_id" => stable_legacy_id(items("parts"))
            .map(|id| Value::from(&*id))
            .ok_or_else(|| "no text".into()),
        "normalize_status" => parse_status(get(input, "value"))
            .map(|status| Value::from(status.name()))
            .map_err(|e| e.to_string()),
        other => panic!("no operation {other}"),
    }
}

#[test]
fn projection() {
    let mut report = Report::new("memory_projection");
    for case in cases("projection.jsonl") {
        report.case(text(&case, "id"), || {
            let event = raw_record(&case)
                .and_then(|raw| Upgrade::default().event(raw).map_err(|e| e.to_string()));
            let got = event.map(|event| Value::Object(memory::projected(&event, None)));
            compare(got, get(&case, "expect").as_object().expect("expect"))
        });
    }
    report.finish();
}

/// What the analysis vectors merge their overrides into.
const BASE: &str = r#"{"schema_version":4,"session_id":"S","timestamp_ns":1700000000000000000,"event_type":"sample",
    "collector":"stormlog.cuda_tracker","sampling_interval_ms":100,"pid":1,"host":"n1","device_id":0,
    "allocator_allocated_bytes":1073741824,"allocator_reserved_bytes":2147483648,"allocator_active_bytes":null,
    "allocator_inactive_bytes":null,"allocator_change_bytes":0,"device_used_bytes":2147483648,"device_free_bytes":null,
    "device_total_bytes":17179869184,"context":null,"job_id":null,"rank":0,"local_rank":0,"world_size":1,"metadata":{}}"#;

#[test]
fn rollups() {
    let mut report = Report::new("memory_rollups");
    let cases = cases("analysis.jsonl");
    for case in cases.iter().filter(|case| text(case, "op") == "rollup") {
        report.case(text(case, "id"), || {
            let input = get(case, "input").as_object().expect("input");
            let base = open_json::parse(BASE.as_bytes()).expect("JSON");
            let events = get(input, "events")
                .as_array()
                .unwrap_or_default()
                .iter()
                .map(|over| {
                    let mut raw = base.as_object().expect("an object").clone();
                    for (key, value) in over.as_object().expect("an object").iter() {
                        raw.insert(key, value.clone());
                    }
                    Upgrade::default()
                        .event(Value::Object(raw))
                        .expect("an event")
                });
            let mut events: Vec<_> = events.collect();
            events.sort_by(|a, b| a.timestamp_ns.cmp(&b.timestamp_ns));
            let summary = parse_summary(get(input, "summary")).expect("a summary");
            let window = get(input, "window_duration_ns")
                .as_int()
                .and_then(|n| n.to_u64());
            let window = window.unwrap_or(60_000_000_000);
            let mut sums = memory::SessionRollup::new(&summary.started_at_ns, window);
            events.iter().for_each(|event| sums.add(event));
            let session = sums.finish(&summary, &["src".to_owned()], &[]);
            let coverage = memory::Coverage::default();
            let mut got = memory::rollups_object(vec![session], None, &coverage, window, 0);
            got.insert("generated_at_ns", "{NOW}");
            compare(
                Ok(Value::Object(got)),
                get(case, "expect").as_object().expect("expect"),
            )
        });
    }
    report.finish();
}

fn any_event() -> warptrace_model::MemoryEvent {
    let raw = open_json::parse(br#"{"timestamp": 1}"#).expect("JSON");
    memory::Upgrade::default()
        .event(raw)
        .expect("a legacy record")
}
