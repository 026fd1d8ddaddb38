//! One request to a receiver, and what its answer means.

use std::time::Duration;

use ureq::http::{HeaderMap, HeaderValue, StatusCode, header};

use super::config::{AlertConfigError, Receiver, ReceiverKind};
use super::outbox::Outcome;
use crate::otlp::{USER_AGENT, connect_for, host, reason, retry_after};

/// Bytes of an answer that are read; a receiver's are some hundred.
const ANSWER_LIMIT_BYTES: u64 = 16 * 1024;

/// A receiver's address and connection.
#[derive(Debug)]
pub(super) struct Hook {
    url: String,
    headers: HeaderMap,
    kind: Kind,
    timeout: Duration,
    agent: ureq::Agent,
}

/// Whose answers they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Slack,
    PagerDuty,
    Webhook,
}

impl Hook {
    /// # Errors
    /// When a token cannot stand in a header.
    pub(super) fn new(receiver: &Receiver, timeout: Duration) -> Result<Hook, AlertConfigError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        let kind = match &receiver.kind {
            ReceiverKind::Slack { .. } => Kind::Slack,
            ReceiverKind::PagerDuty { .. } => Kind::PagerDuty,
            ReceiverKind::Webhook { token } => {
                if let Some(token) = token {
                    let value = HeaderValue::from_str(&format!("Bearer {}", token.expose()));
                    let mut value = value.map_err(|_| AlertConfigError::Token)?;
                    value.set_sensitive(true);
                    headers.insert(header::AUTHORIZATION, value);
                }
                Kind::Webhook
            }
        };
        let url = receiver.url.expose().to_owned();
        Ok(Hook {
            agent: connect_for(&url),
            url,
            headers,
            kind,
            timeout,
        })
    }

    pub(super) fn post(&self, body: &[u8]) -> Outcome {
        let mut post = self.agent.post(&self.url);
        if let Some(headers) = post.headers_mut() {
            headers.clone_from(&self.headers);
        }
        let post = post.config().timeout_global(Some(self.timeout)).build();
        let mut response = match post.send(body) {
            Ok(response) => response,
            Err(error) => return unsent(&self.url, &error),
        };
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let body = response.body_mut().with_config().limit(ANSWER_LIMIT_BYTES);
        let body = body.read_to_vec().unwrap_or_default();
        answer(self.kind, &self.url, status, &headers, &body)
    }
}

/// Slack and webhooks take by any status of success, PagerDuty by 202 alone; a page of HTML in its place is a proxy's, who took
/// nothing. 408, 429 and what the server could not do may be tried again.
fn answer(kind: Kind, url: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(body);
    let is_page = text.trim_start().starts_with('<');
    let taken = match kind {
        Kind::PagerDuty => status == StatusCode::ACCEPTED,
        Kind::Slack | Kind::Webhook => status.is_success(),
    };
    if taken && !(is_page && kind != Kind::Webhook) {
        return Outcome::Taken;
    }
    let why = format_args!("{} answered {status}", host(url)).to_string();
    let why = match is_page {
        true => format!("{why}: a page of HTML"),
        false => reason(why, &text.replace(char::is_control, " ")),
    };
    match status.as_u16() {
        408 | 429 | 503 => Outcome::Again {
            after: retry_after(headers),
            may_have_arrived: false,
            why,
        },
        200..300 | 500.. => Outcome::Again {
            after: retry_after(headers),
            may_have_arrived: true,
            why,
        },
        _ => Outcome::Refused { why },
    }
}

fn unsent(url: &str, error: &ureq::Error) -> Outcome {
    let why = reason(
        format_args!("no answer from {}", host(url)),
        &error.to_string(),
    );
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
            Outcome::Refused { why }
        }
        ureq::Error::ConnectionFailed
        | ureq::Error::HostNotFound
        | ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => Outcome::Again {
            after: None,
            may_have_arrived: false,
            why,
        },
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Outcome::Again {
            after: None,
            may_have_arrived: false,
            why,
        },
        _ => Outcome::Again {
            after: None,
            may_have_arrived: true,
            why,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: Kind, status: u16, body: &str) -> &'static str {
        let status = StatusCode::from_u16(status).unwrap();
        match answer(
            kind,
            "https://hooks/x",
            status,
            &HeaderMap::new(),
            body.as_bytes(),
        ) {
            Outcome::Taken => "taken",
            Outcome::Again {
                may_have_arrived: true,
                ..
            } => "again, may have it",
            Outcome::Again { .. } => "again",
            Outcome::Refused { .. } => "refused",
        }
    }

    #[test]
    fn what_an_answer_means_depends_on_whose_it_is() {
        for (kind, status, body, expected) in [
            (Kind::Slack, 200, "ok", "taken"),
            (
                Kind::Slack,
                200,
                "<!DOCTYPE html><p>log in",
                "again, may have it",
            ),
            (Kind::Slack, 404, "no_service", "refused"),
            (Kind::Slack, 429, "", "again"),
            (Kind::Slack, 302, "", "refused"),
            (Kind::PagerDuty, 202, r#"{"status":"success"}"#, "taken"),
            (Kind::PagerDuty, 200, "{}", "again, may have it"),
            (Kind::PagerDuty, 202, "<html>", "again, may have it"),
            (
                Kind::PagerDuty,
                400,
                r#"{"status":"invalid event"}"#,
                "refused",
            ),
            (Kind::PagerDuty, 500, "", "again, may have it"),
            (Kind::PagerDuty, 503, "", "again"),
            (Kind::Webhook, 204, "", "taken"),
            (Kind::Webhook, 200, "<ok/>", "taken"),
            (Kind::Webhook, 401, "", "refused"),
            (Kind::Webhook, 408, "", "again"),
        ] {
            assert_eq!(of(kind, status, body), expected, "{kind:?} {status} {body}");
        }
    }

    #[test]
    fn what_goes_wrong_is_said_without_the_address_which_is_a_secret() {
        let url = "https://hooks.slack.com/services/T0/B0/SECRET";
        let status = StatusCode::NOT_FOUND;
        let said = answer(Kind::Slack, url, status, &HeaderMap::new(), b"no_\nservice");
        let why = "hooks.slack.com answered 404 Not Found: no_ service".to_owned();
        assert_eq!(said, Outcome::Refused { why });
        for error in [
            ureq::Error::HostNotFound,
            ureq::Error::BadUri(String::new()),
        ] {
            assert!(!format!("{:?}", unsent(url, &error)).contains("SECRET"));
        }
    }
}
