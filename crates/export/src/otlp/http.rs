//! OTLP over HTTP: a POST, its status and its body.
//!
//! Source: OTLP specification 1.x, *OTLP/HTTP*: 429, 502, 503 and 504 may be tried again, after `Retry-After` where that is
//! given; so may what got no answer.

use std::io::Write as _;
use std::time::{Duration, SystemTime};

use ureq::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use warptrace_formats::otlp::{Partial, Refusal, UnreadableResponse};

use super::client::{Answer, USER_AGENT, host, reason};
use super::config::{Compression, Config, ConfigError, Protocol};
use super::tls::Pem;

/// Bytes of an answer that are read. A collector's are some hundred.
const ANSWER_LIMIT_BYTES: u64 = 256 * 1024;

/// Connections that were idle for longer are not used again, as servers close them: some after 5 s.
const IDLE: Duration = Duration::from_secs(4);

#[derive(Debug)]
pub(super) struct Http {
    url: String,
    headers: HeaderMap,
    is_json: bool,
    gzip: bool,
    pem: Pem,
    agent: Option<ureq::Agent>,
}

impl Clone for Http {
    fn clone(&self) -> Http {
        Http {
            url: self.url.clone(),
            headers: self.headers.clone(),
            is_json: self.is_json,
            gzip: self.gzip,
            pem: self.pem.clone(),
            agent: None,
        }
    }
}

impl Http {
    pub(super) fn new(config: &Config) -> Result<Http, ConfigError> {
        check_url(&config.endpoint)?;
        let is_json = config.protocol == Protocol::HttpJson;
        let gzip = config.compression == Compression::Gzip;
        let content = match is_json {
            true => "application/json",
            false => "application/x-protobuf",
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        for (name, value) in &config.headers.0 {
            headers.insert(
                HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| ConfigError::HeaderName(name.clone()))?,
                HeaderValue::from_str(value).map_err(|_| ConfigError::HeaderValue(name.clone()))?,
            );
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
        if gzip {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        Ok(Http {
            url: config.endpoint.clone(),
            headers,
            is_json,
            gzip,
            pem: Pem::load(config)?,
            agent: None,
        })
    }

    pub(super) fn send(&mut self, request: &[u8], timeout: Duration) -> Answer {
        let compressed = self.gzip.then(|| gzip(request));
        let body = compressed.as_deref().unwrap_or(request);
        let agent = self
            .agent
            .get_or_insert_with(|| connect(&self.pem, &self.url));
        let mut post = agent.post(&self.url);
        if let Some(headers) = post.headers_mut() {
            headers.clone_from(&self.headers);
        }
        let post = post.config().timeout_global(Some(timeout)).build();
        let mut response = match post.send(body) {
            Ok(response) => response,
            Err(error) => return unsent(&self.url, &error),
        };
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let body = response.body_mut().with_config().limit(ANSWER_LIMIT_BYTES);
        let body = body.read_to_vec();
        self.answer(status, &headers, body.ok().as_deref())
    }

    /// `body` is `None` when it could not be read to its end.
    fn answer(&self, status: StatusCode, headers: &HeaderMap, body: Option<&[u8]>) -> Answer {
        if status.is_success() {
            let partial = body.ok_or(UnreadableResponse);
            return Answer::Taken(partial.and_then(|body| match self.is_json {
                true => Partial::decode_json(body),
                false => Partial::decode_protobuf(body),
            }));
        }
        let body = body.unwrap_or_default();
        let refusal = match self.is_json {
            true => Refusal::decode_json(body),
            false => Refusal::decode_protobuf(body),
        };
        let why = match headers
            .get(header::LOCATION)
            .and_then(|to| to.to_str().ok())
        {
            // Not followed: the headers may be secrets that are meant for this host.
            Some(to) if status.is_redirection() => {
                format!(
                    "{} answered {status}, it is now at {}",
                    host(&self.url),
                    host(to)
                )
            }
            _ => reason(
                format_args!("{} answered {status}", host(&self.url)),
                &refusal.message,
            ),
        };
        match status.as_u16() {
            429 | 502 | 503 | 504 => Answer::Again {
                after: retry_after(headers).or(refusal.retry_after),
                why,
            },
            _ => Answer::Refused { why },
        }
    }
}

/// Of seconds or of a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(secs) = text.parse() {
        return Some(Duration::from_secs(secs));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// What got no answer: an error of the network may pass, one of the request does not.
fn unsent(url: &str, error: &ureq::Error) -> Answer {
    let why = reason(
        format_args!("no answer from {}", host(url)),
        &error.to_string(),
    );
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
            Answer::Refused { why }
        }
        _ => Answer::Again { after: None, why },
    }
}

fn connect(pem: &Pem, url: &str) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_age(IDLE);
    #[cfg(feature = "tls")]
    let config = match url
        .get(..6)
        .is_some_and(|s| s.eq_ignore_ascii_case("https:"))
    {
        true => config.tls_config(pem.for_ureq()),
        false => config,
    };
    #[cfg(not(feature = "tls"))]
    let _ = (pem, url);
    config.build().new_agent()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let to = Vec::with_capacity(bytes.len() / 4);
    let mut encoder = flate2::write::GzEncoder::new(to, flate2::Compression::fast());
    // Writing to memory does not fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

/// # Errors
/// When `url` is not an `http` or `https` URL with a host.
pub(super) fn check_url(url: &str) -> Result<Uri, ConfigError> {
    let wrong = || ConfigError::Endpoint(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    match known && uri.host().is_some_and(|host| !host.is_empty()) {
        true => Ok(uri),
        false => Err(wrong()),
    }
}
