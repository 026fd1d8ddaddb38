//! A notice as each receiver wants it, in JSON.
//!
//! Source: Slack, *Sending messages using incoming webhooks* and *Formatting text* (`&`, `<` and `>` are escaped, so that no
//! name of a process becomes a mention or a link); PagerDuty, *Events API v2* (`summary` 1,024 characters, `dedup_key` 255).

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use warptrace_model::{Severity, UnixNanos};

use super::book::{Action, Notice};
use super::template::Template;

/// Slack cuts longer texts itself, in the middle of anything.
const SLACK_TEXT: usize = 3000;
/// PagerDuty's limit.
const SUMMARY: usize = 1024;

/// Of the webhook's document.
const VERSION: u32 = 1;

/// What a template's place is, of `notice`; texts go through `escape`.
fn fact(notice: &Notice, name: &str, escape: &dyn Fn(&str) -> String) -> String {
    let alert = &notice.alert;
    match name {
        "action" => match notice.action {
            Action::Trigger => "FIRING".to_owned(),
            Action::Update => "ONGOING".to_owned(),
            Action::Resolve => "RESOLVED".to_owned(),
        },
        "severity" => alert.severity.name().to_owned(),
        "summary" => escape(&alert.summary),
        "source" => escape(&alert.source),
        "component" => escape(&alert.component),
        "group" => escape(&alert.group),
        "class" => escape(&alert.class),
        "key" => escape(&alert.key),
        "count" => notice.count.to_string(),
        "lasted" => shown(notice.lasted),
        "began" => rfc3339(notice.began),
        "details" => {
            let pairs = alert.details.iter();
            let pairs = pairs.map(|(k, v)| format!("{}={}", escape(k), escape(v)));
            pairs.collect::<Vec<_>>().join(" ")
        }
        detail => {
            let name = detail.strip_prefix("details.").unwrap_or(detail);
            let found = alert.details.iter().find(|(k, _)| k == name);
            found.map_or_else(String::new, |(_, v)| escape(v))
        }
    }
}

/// To whole seconds.
fn shown(lasted: Duration) -> String {
    humantime::format_duration(Duration::from_secs(lasted.as_secs())).to_string()
}

fn rfc3339(at: UnixNanos) -> String {
    // The year 2554 is as far as it goes, which humantime can show.
    humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(at.0)).to_string()
}

fn slack_text(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// An incoming webhook's message.
pub(super) fn slack(
    notice: &Notice,
    template: &Template,
    channel: &str,
    username: &str,
) -> Vec<u8> {
    let text = template.fill(|name| fact(notice, name, &slack_text));
    let mut body = Map::new();
    let text = crate::start_of(&text, SLACK_TEXT);
    body.insert("text".to_owned(), text.into());
    for (name, value) in [("channel", channel), ("username", username)] {
        if !value.is_empty() {
            body.insert(name.to_owned(), value.into());
        }
    }
    bytes(&Value::Object(body))
}

/// An event. `severity` is told instead of the alert's own, where it is given.
pub(super) fn pagerduty(
    notice: &Notice,
    template: &Template,
    routing_key: &str,
    severity: Option<&str>,
) -> Vec<u8> {
    let alert = &notice.alert;
    if notice.action == Action::Resolve {
        return bytes(&json!({
            "routing_key": routing_key,
            "event_action": "resolve",
            "dedup_key": alert.key,
        }));
    }
    let own = match alert.severity {
        Severity::Critical => "critical",
        Severity::High => "error",
        Severity::Medium => "warning",
        Severity::Low => "info",
    };
    let summary = template.fill(|name| fact(notice, name, &str::to_owned));
    let mut details = details(notice);
    details.insert("count".to_owned(), notice.count.into());
    let mut payload = json!({
        "summary": crate::start_of(&summary, SUMMARY),
        "source": alert.source,
        "severity": severity.unwrap_or(own),
        "timestamp": rfc3339(alert.at),
        "class": alert.class,
        "custom_details": details,
    });
    for (name, value) in [("component", &alert.component), ("group", &alert.group)] {
        if !value.is_empty() {
            payload[name] = value.as_str().into();
        }
    }
    bytes(&json!({
        "routing_key": routing_key,
        "event_action": "trigger",
        "dedup_key": alert.key,
        "client": "warptrace",
        "payload": payload,
    }))
}

/// Our own document; docs/alerts.md has its fields.
pub(super) fn webhook(notice: &Notice, template: &Template) -> Vec<u8> {
    let alert = &notice.alert;
    bytes(&json!({
        "version": VERSION,
        "action": match notice.action {
            Action::Trigger => "trigger",
            Action::Update => "update",
            Action::Resolve => "resolve",
        },
        "key": alert.key,
        "severity": alert.severity.name(),
        "summary": alert.summary,
        "source": alert.source,
        "component": alert.component,
        "group": alert.group,
        "class": alert.class,
        "began": rfc3339(notice.began),
        "lasted_secs": notice.lasted.as_secs(),
        "count": notice.count,
        "details": details(notice),
        "text": template.fill(|name| fact(notice, name, &str::to_owned)),
    }))
}

fn details(notice: &Notice) -> Map<String, Value> {
    let pairs = notice.alert.details.iter();
    pairs.map(|(k, v)| (k.clone(), v.as_str().into())).collect()
}

fn bytes(body: &Value) -> Vec<u8> {
    // Keys are texts and numbers are finite: this does not fail.
    serde_json::to_vec(body).unwrap_or_default()
}
