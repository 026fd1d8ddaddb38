//! What an event is: an alert, an out-of-memory error, a collector in trouble. And whether an exception is an
//! out-of-memory error.

use std::borrow::Cow;

use warptrace_model::{MemoryEvent, Object, Value};

use super::fingerprint::IssueKind;
use super::text::{alert_category, error_stem, normalized, normalized_value};

/// Type `warning`, `critical` or `error`, or a severity of that name in the metadata.
pub fn is_alert(event: &MemoryEvent) -> bool {
    is_alert_word(&event.event_type) || said_severity(event).as_deref().is_some_and(is_alert_word)
}

fn is_alert_word(word: &str) -> bool {
    matches!(word, "warning" | "critical" | "error")
}

/// The severity that its metadata says, else `critical` for the types `critical` and `error`, `warning` for that type, else
/// `info`. An open vocabulary, in lower case.
pub fn severity(event: &MemoryEvent) -> Cow<'static, str> {
    match (said_severity(event), &*event.event_type) {
        (Some(said), _) => Cow::Owned(said),
        (None, "critical" | "error") => Cow::Borrowed("critical"),
        (None, "warning") => Cow::Borrowed("warning"),
        (None, _) => Cow::Borrowed("info"),
    }
}

/// What the metadata says as text at `key`, normalised; `None` when it is absent, blank or not a text.
fn said(event: &MemoryEvent, key: &str) -> Option<String> {
    let text = event.metadata.values.get(key)?.as_str()?;
    (!text.trim().is_empty()).then(|| normalized(text))
}

fn said_severity(event: &MemoryEvent) -> Option<String> {
    said(event, "severity")
}

/// An `error` of which its writer says why memory ran out, or where it left a dump of the moment.
pub fn is_oom(event: &MemoryEvent) -> bool {
    let says = |key| event.metadata.values.get(key).is_some_and(|v| !v.is_null());
    &*event.event_type == "error" && (says("oom_reason") || says("oom_dump_path"))
}

/// Type `collector_degraded`, or a health status of `degraded` or `unhealthy` in the metadata.
pub fn is_collector_degradation(event: &MemoryEvent) -> bool {
    &*event.event_type == "collector_degraded"
        || said(event, "collector_health_status")
            .is_some_and(|status| matches!(&*status, "degraded" | "unhealthy"))
}

/// What the metadata says is behind the collector (`cuda`, `rocm`, …), or `unknown`.
pub fn backend(event: &MemoryEvent) -> String {
    normalized_value(event.metadata.values.get("backend"))
}

/// The issue that an event is a sighting of, with its dimensions: an out-of-memory error before a collector in trouble
/// before an alert.
pub fn issue(event: &MemoryEvent) -> Option<(IssueKind, Object)> {
    let metadata = &event.metadata.values;
    let text = |key| Value::from(normalized_value(metadata.get(key)).as_str());
    let collector = Value::from(&*event.collector);
    let backend = Value::from(backend(event).as_str());
    let dimensions = |pairs: Vec<(&str, Value)>| {
        Object::from_pairs(pairs.into_iter().map(|(k, v)| (k.into(), v)).collect())
    };
    if is_oom(event) {
        let pairs = vec![("backend", backend), ("reason", text("oom_reason"))];
        Some((IssueKind::Oom, dimensions(pairs)))
    } else if is_collector_degradation(event) {
        let partial = match metadata.get("collector_partial_fields") {
            Some(fields @ Value::Array(_)) => fields.clone(),
            _ => Value::Array(Vec::new()),
        };
        let error = metadata
            .get("collector_last_error")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let pairs = vec![
            ("collector", collector),
            ("backend", backend),
            ("health_status", text("collector_health_status")),
            ("partial_fields", partial),
            ("error_stem", Value::from(error_stem(error).as_str())),
        ];
        Some((IssueKind::CollectorDegradation, dimensions(pairs)))
    } else if is_alert(event) {
        let category = alert_category(event.context.as_deref().unwrap_or_default());
        let pairs = vec![
            ("event_type", Value::from(&*event.event_type)),
            ("severity", Value::from(&*severity(event))),
            ("collector", collector),
            ("backend", backend),
            ("category", Value::from(category.as_str())),
        ];
        Some((IssueKind::Alert, dimensions(pairs)))
    } else {
        None
    }
}

/// Why an exception is taken for an out-of-memory error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OomReason {
    /// An exception type of PyTorch.
    Torch,
    /// An exception type of TensorFlow.
    TensorFlow,
    /// Only the words of its message: a guess.
    Message(&'static str),
}

impl OomReason {
    /// Whether the type says it. The words of a message may be about anything.
    pub const fn is_certain(self) -> bool {
        !matches!(self, OomReason::Message(_))
    }
}

impl std::fmt::Display for OomReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OomReason::Torch => f.write_str("torch.cuda.OutOfMemoryError"),
            OomReason::TensorFlow => f.write_str("tensorflow.ResourceExhaustedError"),
            OomReason::Message(words) => write!(f, "message_pattern:{words}"),
        }
    }
}

/// Whether an exception of class `name` in `module` says that memory ran out: by its type, else by the words of `message`.
pub fn classify_oom(name: &str, module: &str, message: &str) -> Option<OomReason> {
    const WORDS: [&str; 8] = [
        "out of memory",
        "cuda out of memory",
        "hip out of memory",
        "resource exhausted",
        "failed to allocate",
        "allocation failed",
        "memoryerror",
        "std::bad_alloc",
    ];
    let name = name.to_lowercase();
    if name.ends_with("resourceexhaustederror") {
        return Some(OomReason::TensorFlow);
    }
    if name == "outofmemoryerror" && module.to_lowercase().contains("torch") {
        return Some(OomReason::Torch);
    }
    let message = message.to_lowercase();
    WORDS
        .into_iter()
        .find(|words| message.contains(words))
        .map(OomReason::Message)
}
