//! Who is told, and how: settings from a file, keys and addresses from the environment.
//!
//! A receiver is there when its variable is set; the file says nothing but how it is told. An address of Slack's is a key, as
//! are those of most webhooks: in a file they are errors.

use std::fmt;
use std::time::Duration;

use warptrace_model::{Object, Severity, Value, nearest};

use super::book::Rules;
use super::outbox::Delivery;
use super::template::{Template, TemplateError};

/// The variables, and which setting one might take for them.
const SLACK_URL: &str = "WARPTRACE_ALERT_SLACK_URL";
const PAGERDUTY_KEY: &str = "WARPTRACE_ALERT_PAGERDUTY_KEY";
const WEBHOOK_URL: &str = "WARPTRACE_ALERT_WEBHOOK_URL";
const WEBHOOK_TOKEN: &str = "WARPTRACE_ALERT_WEBHOOK_TOKEN";

const PAGERDUTY_US: &str = "https://events.pagerduty.com/v2/enqueue";
const PAGERDUTY_EU: &str = "https://events.eu.pagerduty.com/v2/enqueue";

/// A key, or an address that is one. `Debug` leaves it out.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(secret: impl Into<String>) -> Secret {
        Secret(secret.into())
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Somebody who is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receiver {
    /// An `https` URL; `http` on this machine only.
    pub url: Secret,
    /// Alerts below it are not for this receiver.
    pub min_severity: Severity,
    pub template: Template,
    pub kind: ReceiverKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceiverKind {
    /// Empty is what the webhook was made for.
    Slack { channel: String, username: String },
    PagerDuty {
        routing_key: Secret,
        /// Instead of the alert's own: `critical`, `error`, `warning`, `info`.
        severity: Option<&'static str>,
    },
    Webhook {
        /// Sent as `Authorization: Bearer …`.
        token: Option<Secret>,
    },
}

impl ReceiverKind {
    /// As in counts and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            ReceiverKind::Slack { .. } => "slack",
            ReceiverKind::PagerDuty { .. } => "pagerduty",
            ReceiverKind::Webhook { .. } => "webhook",
        }
    }
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertConfig {
    /// For alerts that do not say where they come from: the node. Not empty.
    pub source: String,
    pub rules: Rules,
    pub delivery: Delivery,
    /// For one request.
    pub timeout: Duration,
    /// None is nobody to tell, and no threads.
    pub receivers: Vec<Receiver>,
}

/// What of the settings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AlertConfigError {
    #[error("{key} is a key, which no file holds: set the variable {variable} instead")]
    KeyInFile { key: String, variable: &'static str },
    #[error("{place} has no setting {key:?}{}", near.map(|n| format!(" (nearest: {n})")).unwrap_or_default())]
    UnknownKey {
        place: &'static str,
        key: String,
        near: Option<&'static str>,
    },
    #[error("{key} is not {wanted}")]
    Wrong { key: String, wanted: &'static str },
    #[error("{key}: {error}")]
    Template {
        key: String,
        #[source]
        error: TemplateError,
    },
    /// The value is left out: it is a secret.
    #[error("{0} is not an https URL (http is for this machine only)")]
    Url(&'static str),
    #[error("{PAGERDUTY_KEY} is not a routing key: 32 letters and digits")]
    RoutingKey,
    #[error("{WEBHOOK_TOKEN} has characters that a header cannot have")]
    Token,
    /// The value is left out: it is a secret.
    #[error("this build speaks no TLS (cargo feature `tls`), which {0} needs")]
    NoTls(&'static str),
    #[error("alerts have no source: the node has no name")]
    NoSource,
    #[error("cannot start a thread: {0}")]
    Thread(String),
}

impl AlertConfig {
    /// By a file's section `alerts`, as open data (null is an empty one), and the environment. `source` is the node's name.
    ///
    /// An unknown setting, a key in the file and a variable that is no address are errors: alerts that are never sent are found
    /// out too late.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn from_value(
        section: &Value,
        environment: &dyn Fn(&str) -> Option<String>,
        source: &str,
    ) -> Result<AlertConfig, AlertConfigError> {
        if source.trim().is_empty() {
            return Err(AlertConfigError::NoSource);
        }
        let variable = |name: &str| environment(name).filter(|value| !value.trim().is_empty());
        let empty = Object::new();
        let top = Section::of("alerts", section, &empty)?;
        top.keys(&[
            "min_severity",
            "resolve_after",
            "reminder",
            "max_open",
            "burst",
            "burst_period",
            "queue",
            "timeout",
            "slack",
            "pagerduty",
            "webhook",
        ])?;
        let defaults = Rules::default();
        let rules = Rules {
            min_severity: top.severity()?.unwrap_or(defaults.min_severity),
            quiet: top.duration("resolve_after")?.unwrap_or(defaults.quiet),
            reminder: match top.object.get("reminder") {
                Some(Value::Bool(false)) => None,
                Some(Value::String(off)) if &**off == "off" => None,
                _ => top.duration("reminder")?.or(defaults.reminder),
            },
            open: top.count("max_open", 100_000)?.unwrap_or(defaults.open),
            burst: top
                .count("burst", 1000)?
                .map_or(defaults.burst, |n| n as u32),
            per: top.duration("burst_period")?.unwrap_or(defaults.per),
        };
        let mut delivery = Delivery::default();
        if let Some(queue) = top.count("queue", 100_000)? {
            delivery.queue = queue;
        }
        let timeout = top.duration("timeout")?.unwrap_or(Duration::from_secs(10));

        let mut receivers = Vec::new();
        let slack = top.section("slack", &empty)?;
        slack.no_key("webhook_url", SLACK_URL)?;
        slack.no_key("url", SLACK_URL)?;
        slack.keys(&["channel", "username", "min_severity", "template"])?;
        let kind = ReceiverKind::Slack {
            channel: slack.text("channel")?.unwrap_or_default(),
            username: slack.text("username")?.unwrap_or_default(),
        };
        let default = "*{action} {severity}* {summary}\n{source} {component} · {details}";
        let slack = slack.receiver(kind, default, &rules)?;
        if let Some(url) = variable(SLACK_URL) {
            receivers.push(slack.at(url, SLACK_URL)?);
        }

        let pagerduty = top.section("pagerduty", &empty)?;
        pagerduty.no_key("routing_key", PAGERDUTY_KEY)?;
        pagerduty.keys(&["severity", "region", "min_severity", "template"])?;
        let url = match pagerduty.text("region")?.as_deref() {
            None | Some("us") => PAGERDUTY_US,
            Some("eu") => PAGERDUTY_EU,
            Some(_) => return Err(pagerduty.wrong("region", "us or eu")),
        };
        let severity = pagerduty.text("severity")?;
        let severity = match severity.as_deref() {
            None => None,
            Some(said) => {
                let known = ["critical", "error", "warning", "info"];
                let found = known.into_iter().find(|word| *word == said);
                Some(found.ok_or_else(|| {
                    pagerduty.wrong("severity", "critical, error, warning or info")
                })?)
            }
        };
        let routing_key = variable(PAGERDUTY_KEY);
        let kind = ReceiverKind::PagerDuty {
            routing_key: Secret::new(routing_key.as_deref().unwrap_or_default().trim()),
            severity,
        };
        let pagerduty = pagerduty.receiver(kind, "{summary}", &rules)?;
        if let Some(key) = routing_key {
            let key = key.trim();
            if key.len() != 32 || !key.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return Err(AlertConfigError::RoutingKey);
            }
            receivers.push(pagerduty.at(url.to_owned(), PAGERDUTY_KEY)?);
        }

        let webhook = top.section("webhook", &empty)?;
        webhook.no_key("url", WEBHOOK_URL)?;
        webhook.no_key("token", WEBHOOK_TOKEN)?;
        webhook.keys(&["min_severity", "template"])?;
        let kind = ReceiverKind::Webhook {
            token: variable(WEBHOOK_TOKEN).map(|token| Secret::new(token.trim())),
        };
        let default = "{action} {severity} {summary} ({source})";
        let webhook = webhook.receiver(kind, default, &rules)?;
        if let Some(url) = variable(WEBHOOK_URL) {
            receivers.push(webhook.at(url, WEBHOOK_URL)?);
        }
        Ok(AlertConfig {
            source: source.trim().to_owned(),
            rules,
            delivery,
            timeout,
            receivers,
        })
    }
}

impl Receiver {
    fn at(mut self, url: String, variable: &'static str) -> Result<Receiver, AlertConfigError> {
        let url = url.trim();
        let wrong = || AlertConfigError::Url(variable);
        let uri: ureq::http::Uri = url.parse().map_err(|_| wrong())?;
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(wrong)?;
        let is_here = host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.is_loopback());
        match uri.scheme_str() {
            Some("https") if !cfg!(feature = "tls") => {
                return Err(AlertConfigError::NoTls(variable));
            }
            Some("https") => {}
            Some("http") if is_here => {}
            _ => return Err(wrong()),
        }
        self.url = Secret::new(url);
        Ok(self)
    }
}

/// An object of settings.
struct Section<'a> {
    name: &'static str,
    object: &'a Object,
}

impl<'a> Section<'a> {
    fn of(
        name: &'static str,
        value: &'a Value,
        empty: &'a Object,
    ) -> Result<Section<'a>, AlertConfigError> {
        let object = match value {
            Value::Null => empty,
            Value::Object(object) => object,
            _ => {
                return Err(AlertConfigError::Wrong {
                    key: name.to_owned(),
                    wanted: "a section",
                });
            }
        };
        Ok(Section { name, object })
    }

    fn section(
        &self,
        name: &'static str,
        empty: &'a Object,
    ) -> Result<Section<'a>, AlertConfigError> {
        let full = match name {
            "slack" => "alerts.slack",
            "pagerduty" => "alerts.pagerduty",
            _ => "alerts.webhook",
        };
        match self.object.get(name) {
            None => Ok(Section {
                name: full,
                object: empty,
            }),
            Some(value) => Section::of(full, value, empty),
        }
    }

    fn keys(&self, known: &[&'static str]) -> Result<(), AlertConfigError> {
        match self.object.iter().find(|(key, _)| !known.contains(key)) {
            None => Ok(()),
            Some((key, _)) => Err(AlertConfigError::UnknownKey {
                place: self.name,
                key: crate::start_of(key, 64).to_owned(),
                near: nearest(key, known.iter().copied()),
            }),
        }
    }

    fn no_key(&self, key: &str, variable: &'static str) -> Result<(), AlertConfigError> {
        match self.object.contains(key) {
            false => Ok(()),
            true => Err(AlertConfigError::KeyInFile {
                key: format!("{}.{key}", self.name),
                variable,
            }),
        }
    }

    fn receiver(
        &self,
        kind: ReceiverKind,
        template: &str,
        rules: &Rules,
    ) -> Result<Receiver, AlertConfigError> {
        let said = self.text("template")?;
        let template = Template::parse(said.as_deref().unwrap_or(template));
        Ok(Receiver {
            url: Secret::new(""),
            min_severity: self.severity()?.unwrap_or(rules.min_severity),
            template: template.map_err(|error| AlertConfigError::Template {
                key: format!("{}.template", self.name),
                error,
            })?,
            kind,
        })
    }

    fn wrong(&self, key: &str, wanted: &'static str) -> AlertConfigError {
        AlertConfigError::Wrong {
            key: format!("{}.{key}", self.name),
            wanted,
        }
    }

    fn text(&self, key: &str) -> Result<Option<String>, AlertConfigError> {
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.to_string())),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    fn severity(&self) -> Result<Option<Severity>, AlertConfigError> {
        let wanted = "LOW, MEDIUM, HIGH or CRITICAL";
        let Some(text) = self.text("min_severity")? else {
            return Ok(None);
        };
        let severity = Severity::by_name(&text);
        severity
            .map(Some)
            .ok_or_else(|| self.wrong("min_severity", wanted))
    }

    fn duration(&self, key: &str) -> Result<Option<Duration>, AlertConfigError> {
        let longest = Duration::from_secs(30 * 24 * 3600);
        let Some(text) = self.text(key)? else {
            return Ok(None);
        };
        let duration = humantime::parse_duration(&text).ok();
        let duration = duration.filter(|d| !d.is_zero() && *d <= longest);
        duration
            .map(Some)
            .ok_or_else(|| self.wrong(key, "a time as 30s, 5m or 4h, above 0 and at most 30 days"))
    }

    fn count(&self, key: &str, most: i64) -> Result<Option<usize>, AlertConfigError> {
        let number = match self.object.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Int(number)) => number.to_i64(),
            Some(_) => None,
        };
        let number = number.filter(|n| (1..=most).contains(n));
        let number = number.ok_or_else(|| self.wrong(key, "a whole number within its limits"))?;
        Ok(usize::try_from(number).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(pairs: &[(&str, Value)]) -> Value {
        let mut object = Object::new();
        for (key, value) in pairs {
            object.insert(key, value.clone());
        }
        Value::Object(object)
    }

    fn read(section: &Value, variables: &[(&str, &str)]) -> Result<AlertConfig, AlertConfigError> {
        let environment = |name: &str| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        AlertConfig::from_value(section, &environment, "node-7")
    }

    const KEY: &str = "0123456789abcdef0123456789ABCDEF";

    #[test]
    fn without_variables_nobody_is_told_and_each_variable_is_a_receiver() {
        let config = read(&Value::Null, &[]).unwrap();
        assert_eq!(
            (config.receivers.len(), config.rules),
            (0, Rules::default())
        );
        let config = read(
            &Value::Null,
            &[
                (SLACK_URL, " https://hooks.slack.com/services/T/B/x "),
                (PAGERDUTY_KEY, KEY),
                (WEBHOOK_URL, "http://[::1]:9/x"),
                (WEBHOOK_TOKEN, "secret-token"),
            ],
        )
        .unwrap();
        let names: Vec<_> = config.receivers.iter().map(|r| r.kind.name()).collect();
        assert_eq!(names, ["slack", "pagerduty", "webhook"]);
        assert_eq!(config.receivers[1].url.expose(), PAGERDUTY_US);
        let shown = format!("{config:?}");
        for secret in ["services", KEY, "secret-token"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn the_documentation_has_every_variable_and_every_place_of_a_template() {
        let page = include_str!("../../../../docs/alerts.md");
        let places = super::super::template::NAMES.map(|name| format!("`{{{name}}}`"));
        let variables = [SLACK_URL, PAGERDUTY_KEY, WEBHOOK_URL, WEBHOOK_TOKEN];
        for name in variables
            .iter()
            .copied()
            .chain(places.iter().map(String::as_str))
        {
            assert!(page.contains(name), "{name}");
        }
    }

    #[test]
    fn settings_are_taken_from_the_file() {
        let section = value(&[
            ("min_severity", "high".into()),
            ("resolve_after", "90s".into()),
            ("reminder", "off".into()),
            ("max_open", Value::from(5_i64)),
            ("burst", Value::from(2_i64)),
            ("burst_period", "1m".into()),
            ("queue", Value::from(9_i64)),
            ("timeout", "3s".into()),
            (
                "slack",
                value(&[
                    ("channel", "#gpu".into()),
                    ("template", "{summary}!".into()),
                ]),
            ),
            (
                "pagerduty",
                value(&[
                    ("severity", "warning".into()),
                    ("region", "eu".into()),
                    ("min_severity", "CRITICAL".into()),
                ]),
            ),
        ]);
        let variables = [(SLACK_URL, "https://s/x"), (PAGERDUTY_KEY, KEY)];
        let config = read(&section, &variables).unwrap();
        assert_eq!(
            config.rules,
            Rules {
                min_severity: Severity::High,
                quiet: Duration::from_secs(90),
                reminder: None,
                open: 5,
                burst: 2,
                per: Duration::from_secs(60),
            }
        );
        assert_eq!(
            (config.delivery.queue, config.timeout),
            (9, Duration::from_secs(3))
        );
        let [slack, pagerduty] = &config.receivers[..] else {
            panic!("{config:?}");
        };
        assert_eq!(slack.min_severity, Severity::High);
        assert_eq!(slack.template, Template::parse("{summary}!").unwrap());
        assert_eq!(pagerduty.min_severity, Severity::Critical);
        assert_eq!(pagerduty.url.expose(), PAGERDUTY_EU);
    }

    #[track_caller]
    fn refused(section: &Value, variables: &[(&str, &str)], message: &str) {
        assert_eq!(read(section, variables).unwrap_err().to_string(), message);
    }

    #[test]
    fn a_key_in_a_file_is_an_error_that_names_its_variable_and_not_the_key() {
        for (section, key, variable) in [
            ("slack", "webhook_url", SLACK_URL),
            ("slack", "url", SLACK_URL),
            ("pagerduty", "routing_key", PAGERDUTY_KEY),
            ("webhook", "url", WEBHOOK_URL),
            ("webhook", "token", WEBHOOK_TOKEN),
        ] {
            refused(
                &value(&[(section, value(&[(key, "SECRET".into())]))]),
                &[],
                &format!(
                    "alerts.{section}.{key} is a key, which no file holds: set the variable {variable} instead"
                ),
            );
        }
    }

    #[test]
    fn what_cannot_be_is_refused_at_once() {
        refused(
            &value(&[("min_sevrity", "HIGH".into())]),
            &[],
            "alerts has no setting \"min_sevrity\" (nearest: min_severity)",
        );
        refused(
            &value(&[("slack", value(&[("chanel", "#x".into())]))]),
            &[],
            "alerts.slack has no setting \"chanel\" (nearest: channel)",
        );
        refused(&Value::from(1_i64), &[], "alerts is not a section");
        refused(
            &value(&[("min_severity", "URGENT".into())]),
            &[],
            "alerts.min_severity is not LOW, MEDIUM, HIGH or CRITICAL",
        );
        for wrong in ["0s", "5", "forever", "-1s", "1y"] {
            refused(
                &value(&[("resolve_after", wrong.into())]),
                &[],
                "alerts.resolve_after is not a time as 30s, 5m or 4h, above 0 and at most 30 days",
            );
        }
        refused(
            &value(&[("queue", Value::from(0_i64))]),
            &[],
            "alerts.queue is not a whole number within its limits",
        );
        refused(
            &value(&[("webhook", value(&[("template", "{sumary}".into())]))]),
            &[],
            "alerts.webhook.template: no place is named \"sumary\" (nearest: summary)",
        );
        let url = "is not an https URL (http is for this machine only)";
        for wrong in [
            "hooks.slack.com",
            "http://example.com/x",
            "ftp://localhost",
            "https:///x",
            "http://127.0.0.1.evil.com/",
        ] {
            refused(
                &Value::Null,
                &[(SLACK_URL, wrong)],
                &format!("{SLACK_URL} {url}"),
            );
        }
        refused(
            &Value::Null,
            &[(PAGERDUTY_KEY, "too-short")],
            "WARPTRACE_ALERT_PAGERDUTY_KEY is not a routing key: 32 letters and digits",
        );
        let nameless = AlertConfig::from_value(&Value::Null, &|_| None, " ");
        assert_eq!(nameless, Err(AlertConfigError::NoSource));
    }
}
