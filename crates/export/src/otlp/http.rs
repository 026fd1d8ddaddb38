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
            let key = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| ConfigError::HeaderName(name.clone()))?;
            let mut value =
                HeaderValue::from_str(value).map_err(|_| ConfigError::HeaderValue(name.clone()))?;
            value.set_sensitive(true);
            headers.insert(key, value);
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
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
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

/// Connections to any `http` or `https` URL by the system's authorities, without redirects.
pub(crate) fn connect_for(url: &str) -> ureq::Agent {
    let system = Pem {
        certificate: None,
        client: None,
    };
    connect(&system, url)
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

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
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

/// The host and the port of an `http` or `https` URL.
pub(crate) fn authority(url: &str) -> Option<(String, u16)> {
    let uri = check_url(url).ok()?;
    let usual = if uri.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    let host = uri.host()?.trim_matches(['[', ']']).to_owned();
    Some((host, uri.port_u16().unwrap_or(usual)))
}

#[cfg(test)]
mod tests {
    use super::super::config::Signal;
    use super::*;

    #[track_caller]
    fn after(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_str(text).unwrap());
        retry_after(&headers)
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let hour = SystemTime::now() + Duration::from_secs(3600);
        let wait = after(&httpdate::fmt_http_date(hour)).unwrap();
        assert!(wait > Duration::from_secs(3000) && wait <= Duration::from_secs(3600));
        for wrong in ["", "-1", "soon", "1.5"] {
            assert_eq!(after(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn only_four_statuses_may_be_tried_again() {
        let http = Http::new(&Config::new(Signal::Traces, Protocol::HttpProtobuf)).unwrap();
        for status in 100..600 {
            let code = StatusCode::from_u16(status).unwrap();
            let answer = http.answer(code, &HeaderMap::new(), Some(b""));
            let expected = match status {
                200..300 => matches!(answer, Answer::Taken(Ok(_))),
                429 | 502 | 503 | 504 => matches!(answer, Answer::Again { .. }),
                _ => matches!(answer, Answer::Refused { .. }),
            };
            assert!(expected, "{status}: {answer:?}");
        }
    }

    #[test]
    fn what_goes_wrong_is_said_without_paths_and_passwords() {
        let config = Config {
            endpoint: "http://user:secret@collector:4318/token/v1/traces".to_owned(),
            ..Config::new(Signal::Traces, Protocol::HttpJson)
        };
        let http = Http::new(&config).unwrap();
        let body = br#"{"code":16,"message":"who are you?"}"#;
        let answer = http.answer(StatusCode::UNAUTHORIZED, &HeaderMap::new(), Some(body));
        let why = "collector:4318 answered 401 Unauthorized: who are you?".to_owned();
        assert_eq!(answer, Answer::Refused { why });
        let mut moved = HeaderMap::new();
        let to = HeaderValue::from_static("https://elsewhere/token");
        moved.insert(header::LOCATION, to);
        let answer = http.answer(StatusCode::PERMANENT_REDIRECT, &moved, None);
        let why = "collector:4318 answered 308 Permanent Redirect, it is now at elsewhere";
        assert_eq!(
            answer,
            Answer::Refused {
                why: why.to_owned()
            }
        );
    }
}
