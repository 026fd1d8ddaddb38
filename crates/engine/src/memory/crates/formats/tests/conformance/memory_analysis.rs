//! The analyses of GPU memory telemetry, against the Python package `stormlog` 0.4.3.

use std::sync::Arc;

use warptrace_engine::memory::stormlog::{
    CollectiveConfig, CrossRank, GapEvidence, GapFinding, GapRules, collective, cross_rank, gaps,
};
use warptrace_engine::memory::{
    Derived, DerivedSession, IssueKind, Marker, MarkerSource, PhaseAttribution, PhaseOrigin,
    PhaseSpan, Phases, alert_category, backend, bytes_text, classify_oom, error_stem, fingerprint,
    is_alert, is_collector_degradation, is_oom, markers, normalized, retry_delay_secs, severity,
};
use warptrace_formats::memory::{Upgrade, open_json};
use warptrace_model::{Capabilities, Int, MemoryEvent, Metadata, Object, Value};

use crate::memory::{cases, compare, get, text};
use crate::support::Report;

/// What the vectors' events are overrides of.
const BASE: &str = r#"{"schema_version":4,"session_id":"S","timestamp_ns":1700000000000000000,"event_type":"sample","collector":"stormlog.cuda_tracker","sampling_interval_ms":100,"pid":1,"host":"n1","device_id":0,"allocator_allocated_bytes":1073741824,"allocator_reserved_bytes":2147483648,"allocator_active_bytes":null,"allocator_inactive_bytes":null,"allocator_change_bytes":0,"device_used_bytes":2147483648,"device_free_bytes":null,"device_total_bytes":17179869184,"context":null,"job_id":null,"rank":0,"local_rank":0,"world_size":1,"metadata":{}}"#;

/// An object of pairs.
macro_rules! object {
    ($($key:literal: $value:expr),* $(,)?) => {
        Value::Object(Object::from_pairs(vec![$(($key.into(), Value::from($value))),*]))
    };
}

fn merged(overrides: &Value) -> Object {
    let Ok(Value::Object(mut record)) = open_json::parse(BASE.as_bytes()) else {
        unreachable!("the base record is an object")
    };
    for (key, value) in overrides.as_object().into_iter().flat_map(Object::iter) {
        record.insert(key, value.clone());
    }
    record
}

fn upgraded(overrides: &Value) -> MemoryEvent {
    Upgrade::default()
        .event(Value::Object(merged(overrides)))
        .unwrap()
}

fn events(input: &Object) -> Vec<MemoryEvent> {
    let events = get(input, "events").as_array().unwrap_or_default();
    events.iter().map(upgraded).collect()
}

/// An event of fields that were never checked, as derived fields take them: all capabilities, none of them said.
fn unchecked(overrides: &Value) -> MemoryEvent {
    let record = merged(overrides);
    let mut event = upgraded(&Value::Object(Object::new()));
    let counter = |key| get(&record, key).as_int().cloned();
    event.collector = text(&record, "collector").into();
    event.allocator_allocated_bytes = counter("allocator_allocated_bytes");
    event.allocator_reserved_bytes = counter("allocator_reserved_bytes");
    event.allocator_inactive_bytes = counter("allocator_inactive_bytes");
    event.device_used_bytes = counter("device_used_bytes");
    event.device_total_bytes = counter("device_total_bytes");
    let capabilities = Capabilities {
        supports_allocator_inactive: true,
        supports_fragmentation_analysis: true,
        ..event.metadata.capabilities.clone()
    };
    event.metadata = Arc::new(Metadata {
        values: Object::new(),
        capabilities,
        inferred: true,
    });
    event
}

fn or_null<T: Into<Value>>(value: Option<T>) -> Value {
    value.map_or(Value::Null, Into::into)
}

fn float(value: Option<f64>) -> Value {
    value.map_or(Value::Null, Value::Float)
}

fn int(value: i128) -> Value {
    Value::Int(Int::from(value))
}

fn list<T>(items: impl IntoIterator<Item = T>, of: impl Fn(T) -> Value) -> Value {
    Value::Array(items.into_iter().map(of).collect())
}

fn texts<'a>(items: impl IntoIterator<Item = &'a str>) -> Value {
    list(items, Value::from)
}

fn attribution(phase: Option<&PhaseAttribution>) -> Value {
    match phase {
        None => Value::Null,
        Some(PhaseAttribution::Unique {
            source,
            path,
            scope_id,
            thread_id,
            thread_name,
        }) => object! {
            "phase_resolution": "unique",
            "phase_paths": texts([path.as_str()]),
            "phase_source": source.name(),
            "phase_path": path.as_str(),
            "scope_id": &**scope_id,
            "thread_id": thread_id.clone(),
            "thread_name": &**thread_name,
        },
        Some(PhaseAttribution::Ambiguous { paths, likely }) => {
            let mut pairs: Vec<(Box<str>, Value)> = vec![
                ("phase_resolution".into(), "ambiguous".into()),
                (
                    "phase_paths".into(),
                    texts(paths.iter().map(String::as_str)),
                ),
            ];
            if let Some(likely) = likely {
                let summary = object! {"phase_path": likely.as_str(), "source": "heuristic"};
                pairs.push(("phase_summary".into(), summary));
            }
            Value::Object(Object::from_pairs(pairs))
        }
    }
}

fn span(span: &PhaseSpan) -> Value {
    object! {
        "session_id": &*span.session_id,
        "rank": span.rank.clone(),
        "thread_id": span.thread_id.clone(),
        "thread_name": &*span.thread_name,
        "scope_id": &*span.scope_id,
        "path": texts(span.path.iter().map(|p| &**p)),
        "start_ns": span.start_ns.clone(),
        "end_ns": span.end_ns.clone(),
        "sequence": span.sequence.clone(),
        "synthetic_end": span.synthetic_end,
    }
}

fn marker(marker: &Marker) -> Value {
    let (source, metadata) = match &marker.source {
        MarkerSource::Event(metadata) => {
            ("telemetry_event", Value::Object(metadata.values.clone()))
        }
        MarkerSource::Phase(span) => (
            "phase_replay",
            object! {
                "phase_path": texts(span.path.iter().map(|p| &**p)),
                "scope_id": &*span.scope_id,
                "thread_id": span.thread_id.clone(),
                "thread_name": &*span.thread_name,
                "sequence": span.sequence.clone(),
                "synthetic_end": span.synthetic_end,
            },
        ),
    };
    object! {
        "session_id": &*marker.session_id,
        "start_ns": marker.start_ns.clone(),
        "end_ns": or_null(marker.end_ns.clone()),
        "kind": marker.kind.name(),
        "source": source,
        "severity": marker.severity,
        "label": marker.label.as_str(),
        "rank": marker.rank.clone(),
        "local_rank": marker.local_rank.clone(),
        "world_size": marker.world_size.clone(),
        "event_type": marker.event_type,
        "metadata": metadata,
    }
}

fn gap(finding: &GapFinding) -> Value {
    let evidence = match finding.evidence {
        GapEvidence::TransientSpike {
            spike_count,
            max_gap_bytes,
            max_zscore,
            mean_gap_bytes,
            std_gap_bytes,
        } => object! {
            "spike_count": spike_count as i64,
            "max_gap_bytes": Value::Float(max_gap_bytes),
            "max_zscore": Value::Float(max_zscore),
            "mean_gap_bytes": Value::Float(mean_gap_bytes),
            "std_gap_bytes": Value::Float(std_gap_bytes),
        },
        GapEvidence::PersistentDrift {
            slope_bytes_per_sec,
            r_squared,
            p_value,
            gap_start_bytes,
            gap_end_bytes,
        } => object! {
            "slope_bytes_per_sec": Value::Float(slope_bytes_per_sec),
            "r_squared": Value::Float(r_squared),
            "p_value": Value::Float(p_value),
            "gap_start_bytes": Value::Float(gap_start_bytes),
            "gap_end_bytes": Value::Float(gap_end_bytes),
        },
        GapEvidence::FragmentationLike {
            avg_fragmentation_ratio,
            max_fragmentation_ratio,
            avg_gap_bytes,
            sample_count,
        } => object! {
            "avg_fragmentation_ratio": Value::Float(avg_fragmentation_ratio),
            "max_fragmentation_ratio": Value::Float(max_fragmentation_ratio),
            "avg_gap_bytes": Value::Float(avg_gap_bytes),
            "sample_count": sample_count as i64,
        },
    };
    object! {
        "classification": finding.evidence.classification(),
        "severity": finding.severity(),
        "confidence": Value::Float(finding.confidence),
        "evidence": evidence,
        "description": finding.description.as_str(),
        "remediation": Value::Array(Vec::new()),
        "evidence_timestamp_ns": finding.at_ns.clone(),
        "phase_attribution": attribution(finding.phase.as_ref()),
    }
}

fn summary(answer: &CrossRank) -> Value {
    let by_rank = |pairs: Vec<(i128, i128)>| {
        let pairs = pairs
            .into_iter()
            .map(|(r, v)| (r.to_string().into(), int(v)));
        Value::Object(Object::from_pairs(pairs.collect()))
    };
    let counts = answer.rank_sample_counts.iter();
    object! {
        "job_id": or_null(answer.job_id.as_deref()),
        "world_size": int(answer.world_size),
        "participating_ranks": list(answer.participating_ranks.iter().copied(), int),
        "missing_ranks": list(answer.missing_ranks.iter().copied(), int),
        "rank_sample_counts": by_rank(counts.map(|(r, n)| (*r, i128::from(*n))).collect()),
        "alignment_offsets_ns": by_rank(answer.alignment_offsets_ns.clone()),
        "cluster_onset_timestamp_ns": answer.cluster_onset_timestamp_ns.map_or(Value::Null, int),
        "first_cause_suspects": list(&answer.first_cause_suspects, |s| object! {
            "rank": int(s.rank),
            "first_spike_timestamp_ns": int(s.first_spike_timestamp_ns),
            "aligned_first_spike_timestamp_ns": int(s.aligned_first_spike_timestamp_ns),
            "peak_delta_bytes": int(s.peak_delta_bytes),
            "spike_window_samples": int(i128::from(s.spike_window_samples)),
            "lead_over_cluster_onset_ns": int(s.lead_over_cluster_onset_ns),
            "confidence": s.confidence,
            "evidence": object! {
                "device_used_delta_bytes": int(s.peak_delta_bytes),
                "supporting_ranks_at_or_before_onset": s.supporting_ranks_at_or_before_onset as i64,
            },
            "phase_attribution": attribution(s.phase.as_ref()),
        }),
        "notes": texts(answer.notes.iter().map(String::as_str)),
    }
}

/// The text that Python's `str` gives of a value, and null as an empty one: what the small text helpers take.
fn said(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        other => open_json::python_text(other),
    }
}

fn number(input: &Object, key: &str) -> f64 {
    match get(input, key) {
        Value::Int(n) => n.to_f64(),
        Value::Float(x) => *x,
        other => panic!("{key}: {other:?}"),
    }
}

fn answer(op: &str, input: &Object) -> Result<Value, String> {
    let value = get(input, "value");
    Ok(match op {
        "derived_event" => {
            let derived = Derived::of(&unchecked(get(input, "event")));
            object! {
                "allocator_gap_bytes": or_null(derived.allocator_gap_bytes),
                "utilization_ratio": float(derived.utilization_ratio),
                "fragmentation_ratio": float(derived.fragmentation_ratio),
                "allocator_cache_ratio": float(derived.allocator_cache_ratio),
                "is_degraded_collector": derived.is_degraded_collector,
            }
        }
        "derived_session" => {
            let derived = DerivedSession::of(&events(input));
            object! {
                "peak_utilization_ratio": float(derived.peak_utilization_ratio),
                "avg_fragmentation_ratio": float(derived.avg_fragmentation_ratio),
                "is_session_interrupted": derived.is_session_interrupted,
            }
        }
        "classify" => {
            let event = upgraded(get(input, "event"));
            object! {
                "is_alert": is_alert(&event),
                "severity": &*severity(&event),
                "is_oom": is_oom(&event),
                "is_collector_degradation": is_collector_degradation(&event),
                "backend": backend(&event).as_str(),
            }
        }
        "gap" => {
            let events = events(input);
            let phases = with_phases(input, &events);
            list(&gaps(&events, &GapRules::default(), phases.as_ref()), gap)
        }
        "cross_rank" => {
            let events = events(input);
            summary(&cross_rank(&events, with_phases(input, &events).as_ref()))
        }
        "collective" => {
            let events = events(input);
            let preset = get(input, "preset").as_str().unwrap_or("medium");
            let none = Object::new();
            let overrides = get(input, "overrides").as_object().unwrap_or(&none);
            let config = CollectiveConfig::resolve(preset, overrides).map_err(|e| e.to_string())?;
            let phases = with_phases(input, &events);
            list(&collective(&events, &config, phases.as_ref()), |i| {
                object! {
                    "rank": int(i.rank),
                    "interval_start_ns": int(i.start_ns),
                    "interval_end_ns": int(i.end_ns),
                    "classification": i.class.name(),
                    "confidence": Value::Float(i.confidence),
                    "reason_codes": texts(i.reason_codes.iter().copied()),
                    "evidence": object! {
                        "marker_hits": i.evidence.marker_hits as i64,
                        "synchronized_ranks": i.evidence.synchronized_ranks as i64,
                        "expected_world_size": int(i.evidence.expected_world_size),
                        "synchrony_ratio": Value::Float(i.evidence.synchrony_ratio),
                        "peak_gap_bytes": int(i.evidence.peak_gap_bytes),
                        "peak_gap_ratio": float(i.evidence.peak_gap_ratio),
                        "robust_zscore": Value::Float(i.evidence.robust_zscore),
                    },
                    "phase_attribution": attribution(i.phase.as_ref()),
                }
            })
        }
        "phases" => {
            let phases = Phases::of(&events(input));
            let at = get(input, "resolve_at").as_array().unwrap_or_default();
            let times: Vec<&Int> = at.iter().filter_map(Value::as_int).collect();
            let resolve = |at: &Int, origin: PhaseOrigin<'_>| {
                attribution(phases.resolve("S", &Int::ZERO, at, origin).as_ref())
            };
            let mut pairs: Vec<(Box<str>, Value)> = vec![
                ("spans".into(), list(phases.spans("S", &Int::ZERO), span)),
                (
                    "resolve".into(),
                    list(&times, |at| resolve(at, PhaseOrigin::default())),
                ),
            ];
            if let Some(origins) = get(input, "origin").as_array() {
                let resolved = list(origins.iter().filter_map(Value::as_object), |origin| {
                    let origin = PhaseOrigin {
                        thread_id: get(origin, "thread").as_int(),
                        scope_id: get(origin, "scope").as_str(),
                    };
                    resolve(times[0], origin)
                });
                pairs.push(("resolve_origin".into(), resolved));
            }
            Value::Object(Object::from_pairs(pairs))
        }
        "markers" => {
            let events = events(input);
            list(&markers(&events, &Phases::of(&events)), marker)
        }
        "fingerprint" => {
            let dimensions = get(input, "dimensions").as_object().unwrap();
            let kind = IssueKind::by_name(text(input, "kind")).map_err(|e| e.to_string())?;
            let found = fingerprint(kind, dimensions).map_err(|e| e.to_string())?;
            object! {
                "schema_version": 1,
                "fingerprint_id": found.id.as_str(),
                "kind": found.kind.name(),
                "dimensions": found.dimensions,
            }
        }
        "normalize_text" => normalized(&said(value)).as_str().into(),
        "categorize_alert" => alert_category(&said(value)).as_str().into(),
        "error_stem" => error_stem(&said(value)).as_str().into(),
        "format_bytes" => {
            let precision = get(input, "precision").as_int().and_then(Int::to_u64);
            let bytes = value.as_int().unwrap();
            bytes_text(bytes, precision.unwrap_or(2) as usize)
                .as_str()
                .into()
        }
        "retry_delay" => Value::Float(retry_delay_secs(
            get(input, "n").as_int().and_then(Int::to_i64).unwrap(),
            number(input, "initial"),
            number(input, "factor"),
            number(input, "max"),
        )),
        "oom_classify" => {
            let found = classify_oom(
                text(input, "name"),
                text(input, "module"),
                text(input, "message"),
            );
            object! {
                "is_oom": found.is_some(),
                "reason": or_null(found.map(|r| r.to_string()).as_deref()),
            }
        }
        other => return Err(format!("no such op: {other}")),
    })
}

fn with_phases(input: &Object, events: &[MemoryEvent]) -> Option<Phases> {
    (get(input, "with_phases").as_bool() == Some(true)).then(|| Phases::of(events))
}

#[test]
fn analysis() {
    let mut report = Report::new("memory_analysis");
    for case in cases("analysis.jsonl") {
        let (id, op) = (text(&case, "id"), text(&case, "op"));
        if op == "rollup" {
            // Files of a sink: with the other formats' tests.
            continue;
        }
        report.case(id, || {
            let input = get(&case, "input").as_object().unwrap();
            let mut expect = get(&case, "expect").as_object().unwrap().clone();
            if let ("retry_delay", Some(Value::Int(secs))) = (op, expect.get("ok")) {
                // Seconds come as they were given; ours are always a float.
                let secs = Value::Float(secs.to_f64());
                expect.insert("ok", secs);
            }
            compare(answer(op, input), &expect)
        });
    }
    report.finish();
}
