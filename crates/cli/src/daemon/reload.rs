//! What changes while a recording goes on, when its settings are read again, and what has to wait for a restart.
//!
//! Nothing here takes effect: a [`Change`] says what would, so that all of it can be tried before any of it is done.

use warptrace_agent::Kept;
use warptrace_model::Value;

use crate::config::{Loaded, Node as _};

/// Keys, and sections of them, that take effect at once. Every other one is the recording's from its start to its end.
const AT_ONCE: [&str; 11] = [
    "alerts",
    "cluster",
    "heartbeat",
    "inference.outlier.socket",
    "log",
    "metrics.names",
    "node",
    "otlp",
    "prometheus.address",
    "prometheus.enabled",
    "store",
];

/// Within those, what is the recording's all the same: the job was told of it when it started.
const AT_START: [&str; 1] = ["otlp.receive"];

/// What differs between the settings of a running recording and others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Keys that take effect at once.
    pub(crate) at_once: Vec<String>,
    /// Keys that do at the next start.
    pub(crate) at_start: Vec<String>,
}

impl Change {
    /// To `next`, of a recording that began with the settings `began` and has those of `now`.
    pub(crate) fn new(began: &Loaded, now: &Loaded, next: &Loaded) -> Change {
        Change::of(&began.show(), &now.show(), &next.show())
    }

    fn of(began: &Value, now: &Value, next: &Value) -> Change {
        let (mut at_once, mut at_start) = (Vec::new(), Vec::new());
        differences(now, next, "", &mut at_once);
        differences(began, next, "", &mut at_start);
        at_once.retain(|key| is_at_once(key));
        at_start.retain(|key| !is_at_once(key));
        Change { at_once, at_start }
    }

    /// Whether a key below one of `sections` takes effect at once.
    pub(crate) fn touches(&self, sections: &[&str]) -> bool {
        let within = |key: &String| sections.iter().any(|section| is_within(key, section));
        self.at_once.iter().any(within)
    }

    /// The ways out that stay as they are, so that nothing of them is lost. What reads certificates from files begins again: they may
    /// have been renewed.
    pub(crate) fn kept(&self, next: &Loaded) -> Kept {
        let otlp = &next.otlp;
        let has_files = otlp.certificate.is_some() || otlp.client_certificate.is_some();
        let is_same = !has_files && !self.touches(&["otlp"]);
        Kept {
            outliers: !self.touches(&["inference.outlier.socket"]),
            scrape: !self.touches(&["prometheus.address", "prometheus.enabled"]),
            metrics: is_same && !self.touches(&["metrics.names"]),
            spans: is_same && !self.touches(&["node", "cluster"]),
            receiver: true,
            relay: is_same,
            alerts: !self.touches(&["alerts", "node"]),
        }
    }

    /// For the log and for who asks the service manager.
    pub(crate) fn said(&self) -> String {
        let mut said = match &self.at_once[..] {
            [] => "the settings are as they were".to_owned(),
            keys => format!("new settings: {}", keys.join(", ")),
        };
        if !self.at_start.is_empty() {
            said = format!(
                "{said}; a restart is needed for {}",
                self.at_start.join(", ")
            );
        }
        said
    }
}

fn is_at_once(key: &str) -> bool {
    let is_in = |sections: &[&str]| sections.iter().any(|section| is_within(key, section));
    is_in(&AT_ONCE) && !is_in(&AT_START)
}

fn is_within(key: &str, section: &str) -> bool {
    let rest = key.strip_prefix(section);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Keys of the values that are not the same, below `path`.
fn differences(one: &Value, other: &Value, path: &str, keys: &mut Vec<String>) {
    match (one.as_object(), other.as_object()) {
        (Some(one), Some(other)) => {
            for (name, value) in other.iter() {
                let path = match path {
                    "" => name.to_owned(),
                    path => format!("{path}.{name}"),
                };
                differences(one.get(name).unwrap_or(&Value::Null), value, &path, keys);
            }
        }
        _ if one != other => keys.push(path.to_owned()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn with(change: impl FnOnce(&mut Settings)) -> Value {
        let mut settings = Settings::default();
        change(&mut settings);
        settings.show()
    }

    #[test]
    fn what_needs_a_restart_is_said_until_there_is_one() {
        let began = with(|_| {});
        let next = with(|s| {
            s.inference.baseline.warmup_samples += 1;
            s.node = Some("gpu-17".into());
        });
        let first = Change::of(&began, &began, &next);
        let (node, warmup) = (
            "node".to_owned(),
            "inference.baseline.warmup_samples".to_owned(),
        );
        assert_eq!(
            (&first.at_once, &first.at_start),
            (&vec![node], &vec![warmup.clone()])
        );
        let again = Change::of(&began, &next, &next);
        assert_eq!((again.at_once.len(), &again.at_start), (0, &vec![warmup]));
        assert!(
            again
                .said()
                .contains("a restart is needed for inference.baseline")
        );
        assert_eq!(Change::of(&began, &next, &began).at_once, ["node"]);
        let other = with(|s| {
            s.otlp.receive.enabled = true;
            s.otlp.metrics = false;
        });
        let change = Change::of(&began, &began, &other);
        assert_eq!(change.at_once, ["otlp.metrics"]);
        assert_eq!(change.at_start, ["otlp.receive.enabled"]);
    }

    #[test]
    fn every_key_that_takes_effect_at_once_is_a_key() {
        let settings = Settings::default().show();
        for key in AT_ONCE.into_iter().chain(AT_START) {
            let mut place = Some(&settings);
            for name in key.split('.') {
                place = place.and_then(|place| place.as_object()?.get(name));
            }
            assert!(place.is_some(), "{key}");
        }
    }
}
