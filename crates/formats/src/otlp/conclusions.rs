//! What the engine concluded, as spans: one for each outlier, one for each finding that is over.
//!
//! A finding is told when it has ended, since a span cannot be said again.

use warptrace_model::inference::Outlier;
use warptrace_model::metric::{ServerFacts, attribute, metric, workload_attributes};
use warptrace_model::{ClockAnchor, Finding, Object, SpanContext, SpanId, SpanRecord, Value};

use crate::metrics::{Dialect, Label, Names, ingero_labels, native_labels};

/// Attributes of an outlier's span by another tracer's names, besides those of its workload's metrics, in their order.
pub const INGERO_SPAN_ATTRIBUTES: [&str; 6] = [
    "ingero.infer.step_duration_ns",
    "ingero.infer.baseline_p95_ns",
    "ingero.infer.baseline_mean_ns",
    "ingero.infer.memfrag_events_in_step",
    "ingero.infer.throttle_reasons",
    "ingero.infer.kvcache.oldest_alloc_age_ms",
];

/// An outlier: the step that took too long, from its begin to its end. `server` is what is known of its process besides.
pub fn outlier_span(
    outlier: &Outlier,
    names: Names,
    server: Option<&ServerFacts>,
    clock: ClockAnchor,
) -> SpanRecord {
    let mut said = workload_attributes(&outlier.key, &|_| server.cloned());
    said.insert(attribute::BUCKET.name, outlier.bucket.name());
    let known = metric::INFERENCE_OUTLIER_COUNT.attributes;
    let oldest_millis = outlier.kv_ages_millis.first().copied();
    let secs = |nanos: u64| Value::Float(nanos as f64 / 1e9);
    let int = |n: u64| Value::Int(n.into());
    let mut attributes = Object::new();
    if names.has_native() {
        for (key, label) in native_labels(known, &said, Dialect::Otlp) {
            attributes.insert(&key, value(label));
        }
        attributes.insert(
            "warptrace.inference.step.duration",
            secs(outlier.step_nanos),
        );
        attributes.insert("warptrace.inference.baseline.p95", secs(outlier.p95_nanos));
        attributes.insert(
            "warptrace.inference.baseline.mean",
            secs(outlier.mean_nanos),
        );
        attributes.insert(attribute::EVENT_ID.name, outlier.id.to_string());
        attributes.insert("thread.id", i64::from(outlier.tid.0));
        attributes.insert("warptrace.cuda.function", outlier.op.name());
        attributes.insert("warptrace.inference.step.launches", int(outlier.launches));
        attributes.insert("warptrace.inference.step.copied", int(outlier.copied_bytes));
        if outlier.memory_calls > 0 {
            let calls = int(outlier.memory_calls.into());
            attributes.insert("warptrace.inference.step.memory_calls", calls);
        }
        if outlier.throttle_reasons != 0 {
            let bits = format!("{:#x}", outlier.throttle_reasons);
            attributes.insert("warptrace.gpu.throttle.reasons", bits);
        }
        if let Some(mhz) = outlier.min_sm_clock_mhz {
            let hertz = int(u64::from(mhz) * 1_000_000);
            attributes.insert("warptrace.gpu.clock.least", hertz);
        }
        if let Some(millis) = oldest_millis {
            let age = Value::Float(millis as f64 / 1e3);
            attributes.insert("warptrace.inference.kv_cache.oldest_age", age);
        }
    }
    if names.has_ingero() {
        let labels = ingero_labels(known, &said, Dialect::Otlp);
        let of = |name: Option<&str>| {
            let found = labels.iter().find(|(key, _)| Some(&**key) == name);
            found.map(|(key, label)| (key.to_string(), value(label.clone())))
        };
        let workload = [
            &attribute::CGROUP,
            &attribute::PID,
            &attribute::STREAM,
            &attribute::PHASE,
            &attribute::BUCKET,
        ];
        let known = [
            &attribute::FINGERPRINT,
            &attribute::GEN_AI_REQUEST_MODEL,
            &attribute::GEN_AI_SYSTEM,
        ];
        let [fingerprint, model, system] = known.map(|attribute| of(attribute.ingero));
        let [step, p95, mean, memory_calls, throttle, oldest] = INGERO_SPAN_ATTRIBUTES;
        let number = |key: &str, n: u64| Some((key.to_owned(), int(n)));
        let event = attribute::EVENT_ID.ingero;
        let reasons = outlier.throttle_reasons.to_string();
        let pairs = workload
            .map(|attribute| of(attribute.ingero))
            .into_iter()
            .chain([
                number(step, outlier.step_nanos),
                number(p95, outlier.p95_nanos),
                number(mean, outlier.mean_nanos),
                event.map(|key| (key.to_owned(), outlier.id.to_string().into())),
                fingerprint,
                number(memory_calls, outlier.memory_calls.into())
                    .filter(|_| outlier.memory_calls > 0),
                (outlier.throttle_reasons != 0).then(|| (throttle.to_owned(), reasons.into())),
                oldest_millis
                    .filter(|age| *age > 0)
                    .and_then(|age| number(oldest, age)),
                model,
                system,
            ]);
        for (key, value) in pairs.flatten() {
            attributes.insert(&key, value);
        }
    }
    let window = outlier.window();
    let bucket = outlier.bucket.name();
    SpanRecord {
        trace: outlier.span.trace,
        id: SpanId::from_bits(u128::from(outlier.span.span)),
        parent: None,
        name: match names {
            Names::Native => "inference.outlier".into(),
            Names::Ingero | Names::Both => format!("infer.outlier.{bucket}").into(),
        },
        start: clock.unix(window.start),
        end: Some(clock.unix(window.end)),
        attributes,
        events: Vec::new(),
        dropped_events: 0,
        error: Some(
            format!("a step took {bucket} of its workload's 95th percentile, or more").into(),
        ),
    }
}

/// A finding that is over; `context` is what it is to be, and must be its own.
pub fn finding_span(finding: &Finding, context: SpanContext, clock: ClockAnchor) -> SpanRecord {
    let secs = |nanos: u64| Value::Float(nanos as f64 / 1e9);
    let mut attributes = Object::new();
    attributes.insert("warptrace.finding.id", finding.id.to_string());
    attributes.insert("warptrace.finding.kind", finding.kind.name());
    let severity = finding.severity.name().to_ascii_lowercase();
    attributes.insert(attribute::SEVERITY.name, severity);
    attributes.insert(attribute::CAUSE.name, finding.cause.name());
    if let Some(second) = finding.second {
        attributes.insert("warptrace.cause.second", second.name());
    }
    attributes.insert("warptrace.finding.excess", secs(finding.excess_ns));
    attributes.insert("warptrace.finding.baseline", secs(finding.baseline_ns));
    let slow = warptrace_model::Int::from(finding.units.slow);
    attributes.insert("warptrace.finding.slow_units", slow);
    if finding.shifted {
        attributes.insert("warptrace.finding.shifted", true);
    }
    attributes.insert(attribute::UNIT_KIND.name, finding.key.kind.name());
    let pid = finding.key.process.pid.0;
    attributes.insert(attribute::PID.name, i64::from(pid));
    attributes.insert("thread.id", i64::from(finding.tid.0));
    if !finding.comm.is_empty() {
        attributes.insert("thread.name", finding.comm.as_str());
    }
    if let Some(op) = finding.op {
        attributes.insert("warptrace.cuda.function", op.name());
    }
    if let Some(place) = &finding.place {
        if let Some(file) = &place.file {
            attributes.insert("code.file.path", file.as_str());
        }
        if let Some(line) = place.line {
            attributes.insert("code.line.number", i64::from(line));
        }
        if let Some(function) = &place.function {
            attributes.insert("code.function.name", function.as_str());
        }
    }
    for blame in &finding.blame {
        let key = format!("warptrace.blame.{}", blame.cause.name());
        attributes.insert(&key, secs(blame.ns));
        if !blame.detail.is_empty() {
            attributes.insert(&format!("{key}.detail"), blame.detail.as_str());
        }
    }
    let cause = finding.cause.name();
    let error = match finding.excess_ns {
        0 => cause.to_owned(),
        excess => format!("{cause}: {:.3} s longer than usual", excess as f64 / 1e9),
    };
    SpanRecord {
        trace: context.trace,
        id: SpanId::from_bits(u128::from(context.span)),
        parent: None,
        name: "finding".into(),
        start: clock.unix(finding.window.start),
        end: Some(clock.unix(finding.window.end)),
        attributes,
        events: Vec::new(),
        dropped_events: 0,
        error: Some(error.into()),
    }
}

fn value(label: Label) -> Value {
    match label {
        Label::Text(text) => text.into(),
        Label::Int(n) => n.into(),
        Label::Double(x) => x.into(),
        Label::Bool(b) => b.into(),
    }
}

#[cfg(test)]
mod tests;
