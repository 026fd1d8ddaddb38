//! What a timeline of memory is marked with: starts and stops, collectors in trouble, alerts, out-of-memory errors, phases.

use std::borrow::Cow;
use std::sync::Arc;

use warptrace_model::{Identity, Int, MemoryEvent, Metadata, Value};

use super::phases::{PhaseSpan, Phases};

/// A moment or an interval worth a mark.
#[derive(Debug, Clone, PartialEq)]
pub struct Marker {
    pub session_id: Arc<str>,
    /// Nanoseconds since the Unix epoch.
    pub start_ns: Int,
    /// `None` for a moment.
    pub end_ns: Option<Int>,
    pub kind: MarkerKind,
    /// `info`, `warning` or `critical`.
    pub severity: &'static str,
    pub label: String,
    pub rank: Int,
    pub local_rank: Int,
    pub world_size: Int,
    /// The event's, in the form in which it is known; `phase` for phases.
    pub event_type: &'static str,
    pub source: MarkerSource,
}

/// What a mark was made from.
#[derive(Debug, Clone, PartialEq)]
pub enum MarkerSource {
    /// An event, with what it says.
    Event(Arc<Metadata>),
    Phase(Box<PhaseSpan>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MarkerKind {
    // In order of name.
    Alert,
    Collector,
    Lifecycle,
    Oom,
    Phase,
}

impl MarkerKind {
    pub const fn name(self) -> &'static str {
        match self {
            MarkerKind::Alert => "alert",
            MarkerKind::Collector => "collector",
            MarkerKind::Lifecycle => "lifecycle",
            MarkerKind::Oom => "oom",
            MarkerKind::Phase => "phase",
        }
    }
}

impl Marker {
    /// The mark of one event, if it is worth one. Phases come from [`Marker::of_phase`].
    pub fn of(event: &MemoryEvent) -> Option<Marker> {
        use MarkerKind::{Alert, Collector, Lifecycle, Oom};
        let event_type = known(event.event_type.trim())?;
        let mut label: Cow<'static, str> = "".into();
        let (kind, severity, default) = match event_type {
            "start" => (Lifecycle, "info", "Tracking started"),
            "stop" => (Lifecycle, "info", "Tracking stopped"),
            "collector_degraded" => (Collector, "warning", "Collector degraded"),
            "collector_recovered" => (Collector, "info", "Collector recovered"),
            "warning" => (Alert, "warning", "Warning"),
            "critical" => (Alert, "critical", "Critical alert"),
            _ if has_oom_metadata(event) => {
                if let Some(reason) = event
                    .metadata
                    .values
                    .get("oom_reason")
                    .and_then(Value::as_str)
                    && !reason.trim().is_empty()
                {
                    label = format!("OOM detected: {}", reason.trim()).into();
                }
                (Oom, "critical", "OOM detected")
            }
            _ => (Alert, "critical", "Error"),
        };
        if label.is_empty() {
            label = default.into();
        }
        if let Some(context) = event.context.as_deref().map(str::trim)
            && !context.is_empty()
        {
            label = context.to_owned().into();
        }
        let identity = &event.identity;
        Some(Marker {
            session_id: event.session_id.clone(),
            start_ns: event.timestamp_ns.clone(),
            end_ns: None,
            kind,
            severity,
            label: label.into_owned(),
            rank: identity.rank.clone(),
            local_rank: identity.local_rank.clone(),
            world_size: identity.world_size.clone(),
            event_type,
            source: MarkerSource::Event(event.metadata.clone()),
        })
    }

    /// The mark of a phase of a process.
    pub fn of_phase(span: &PhaseSpan, identity: &Identity) -> Marker {
        Marker {
            session_id: span.session_id.clone(),
            start_ns: span.start_ns.clone(),
            end_ns: Some(span.end_ns.clone()),
            kind: MarkerKind::Phase,
            severity: "info",
            label: format!("Phase: {}", span.path_text()),
            rank: span.rank.clone(),
            local_rank: identity.local_rank.clone(),
            world_size: identity.world_size.clone(),
            event_type: "phase",
            source: MarkerSource::Phase(Box::new(span.clone())),
        }
    }

    /// By start, end (a moment first), rank, kind and label.
    pub fn order(&self, other: &Marker) -> std::cmp::Ordering {
        let key = |m: &Marker| (m.start_ns.clone(), m.end_ns.clone(), m.rank.clone(), m.kind);
        key(self)
            .cmp(&key(other))
            .then_with(|| self.label.cmp(&other.label))
    }
}

fn known(event_type: &str) -> Option<&'static str> {
    [
        "start",
        "stop",
        "collector_degraded",
        "collector_recovered",
        "warning",
        "critical",
        "error",
    ]
    .into_iter()
    .find(|known| *known == event_type)
}

fn has_oom_metadata(event: &MemoryEvent) -> bool {
    let says = |key| event.metadata.values.get(key).is_some_and(|v| !v.is_null());
    says("oom_reason") || says("oom_dump_path")
}

/// All marks of `events`, sorted.
pub fn markers(events: &[MemoryEvent], phases: &Phases) -> Vec<Marker> {
    let mut markers: Vec<Marker> = events.iter().filter_map(Marker::of).collect();
    for span in phases.unsorted_spans() {
        let of_rank =
            |e: &&MemoryEvent| e.session_id == span.session_id && e.identity.rank == span.rank;
        let identity = events.iter().find(of_rank).map(|e| e.identity.clone());
        markers.push(Marker::of_phase(span, &identity.unwrap_or_default()));
    }
    markers.sort_by(Marker::order);
    markers
}
