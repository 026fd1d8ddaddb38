//! Where to, and how: what the OpenTelemetry specification calls the configuration of an OTLP exporter.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::environment::{Ignored, Variables};

/// What is sent, which decides variables and paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    /// As in `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`.
    const fn in_variables(self) -> &'static str {
        match self {
            Signal::Traces => "TRACES",
            Signal::Metrics => "METRICS",
        }
    }

    /// Below the base of an HTTP endpoint.
    const fn http_path(self) -> &'static str {
        match self {
            Signal::Traces => "v1/traces",
            Signal::Metrics => "v1/metrics",
        }
    }

    /// The method of the collector's gRPC service.
    #[cfg(feature = "grpc")]
    pub(super) const fn grpc_path(self) -> &'static str {
        match self {
            Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    #[default]
    HttpProtobuf,
    HttpJson,
    /// Needs the feature `grpc`.
    Grpc,
}

impl Protocol {
    pub const fn as_str(self) -> &'static str {
        match self {
            Protocol::HttpProtobuf => "http/protobuf",
            Protocol::HttpJson => "http/json",
            Protocol::Grpc => "grpc",
        }
    }

    /// Of a name as in `OTEL_EXPORTER_OTLP_PROTOCOL`, in any case.
    pub fn parse(name: &str) -> Option<Protocol> {
        [Protocol::HttpProtobuf, Protocol::HttpJson, Protocol::Grpc]
            .into_iter()
            .find(|protocol| protocol.as_str().eq_ignore_ascii_case(name))
    }

    const fn default_base(self) -> &'static str {
        match self {
            Protocol::HttpProtobuf | Protocol::HttpJson => "http://localhost:4318",
            Protocol::Grpc => "http://localhost:4317",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    #[default]
    None,
    Gzip,
}

/// Headers of each request. Values are often tokens, so that `Debug` leaves them out.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Headers(pub Vec<(String, String)>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().map(|(name, _)| (name, "…"));
        f.debug_map().entries(names).finish()
    }
}

/// Files in PEM, for `https` endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// Whom to trust; `None` is the system's authorities, and Mozilla's where the system has none.
    pub certificate: Option<PathBuf>,
    /// Our own certificate and its key, for collectors that ask for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// How to reach a collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub signal: Signal,
    /// An `http` or `https` URL: for HTTP the whole one, path included; for gRPC the host and its port.
    pub endpoint: String,
    pub protocol: Protocol,
    pub headers: Headers,
    /// For one request, from connecting to the end of the answer; more than 0.
    pub timeout: Duration,
    pub compression: Compression,
    pub tls: Tls,
}

impl Config {
    /// A collector on this machine, at the port of OTLP.
    pub fn new(signal: Signal, protocol: Protocol) -> Config {
        Config {
            signal,
            endpoint: match protocol {
                Protocol::Grpc => protocol.default_base().to_owned(),
                _ => below(protocol.default_base(), signal),
            },
            protocol,
            headers: Headers::default(),
            timeout: Duration::from_secs(10),
            compression: Compression::None,
            tls: Tls::default(),
        }
    }

    /// Below `base`, an `http` or `https` URL to which HTTP adds the signal's path.
    #[must_use]
    pub fn with_base(mut self, base: &str) -> Config {
        self.endpoint = match self.protocol {
            Protocol::Grpc => base.to_owned(),
            _ => below(base, self.signal),
        };
        self
    }

    /// By the variables `OTEL_EXPORTER_OTLP_…`, those of the signal (`…_TRACES_…`) before the general ones, and what in them
    /// was ignored.
    ///
    /// As the specification asks (OpenTelemetry, *OTLP Exporter Configuration* and *Environment Variables*): an empty
    /// variable is as if not set, and what cannot be read is reported and left out. Times are milliseconds.
    pub fn from_env(
        signal: Signal,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> (Config, Vec<Ignored>) {
        let variables = Variables::new(lookup);
        let of = |name: &str| {
            let own = format!("OTEL_EXPORTER_OTLP_{}_{name}", signal.in_variables());
            variables
                .get(&own)
                .or_else(|| variables.get(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        let protocol = of("PROTOCOL").and_then(|said| said.read("a protocol", Protocol::parse));
        let mut config = Config::new(signal, protocol.unwrap_or_default());

        let insecure = of("INSECURE").is_some_and(|said| said.is_true());
        let own_endpoint = format!("OTEL_EXPORTER_OTLP_{}_ENDPOINT", signal.in_variables());
        let url = "an http or https URL";
        if config.protocol == Protocol::Grpc {
            let said = of("ENDPOINT")
                .and_then(|said| said.read(url, |text| grpc_endpoint(text, insecure)));
            config.endpoint = said.unwrap_or(config.endpoint);
        } else if let Some(whole) = variables
            .get(&own_endpoint)
            .and_then(|said| said.read(url, whole_url))
        {
            config.endpoint = whole;
        } else if let Some(base) = variables
            .get("OTEL_EXPORTER_OTLP_ENDPOINT")
            .and_then(|said| said.read(url, whole_url))
        {
            config.endpoint = below(&base, signal);
        }

        if let Some(said) = of("HEADERS") {
            config.headers = Headers(said.pairs());
        }
        let timeout = of("TIMEOUT").and_then(|said| said.millis());
        config.timeout = timeout.unwrap_or(config.timeout);
        let compression = of("COMPRESSION").and_then(|said| {
            said.read("none or gzip", |text| {
                match text.to_ascii_lowercase().as_str() {
                    "none" => Some(Compression::None),
                    "gzip" => Some(Compression::Gzip),
                    _ => None,
                }
            })
        });
        config.compression = compression.unwrap_or_default();
        config.tls.certificate = of("CERTIFICATE").map(|said| said.text().into());
        config.tls.client = match (of("CLIENT_CERTIFICATE"), of("CLIENT_KEY")) {
            (Some(certificate), Some(key)) => Some((certificate.text().into(), key.text().into())),
            (None, None) => None,
            (Some(alone), None) | (None, Some(alone)) => {
                alone.ignore("a certificate and a key, both or neither");
                None
            }
        };
        (config, variables.ignored())
    }
}

/// An `http` or `https` URL with a host.
fn whole_url(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let known = ["http", "https"]
        .iter()
        .any(|s| scheme.eq_ignore_ascii_case(s));
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if !known || host.is_empty() || text.contains(char::is_whitespace) {
        return None;
    }
    Some(match rest.contains('/') {
        true => text.to_owned(),
        false => format!("{text}/"),
    })
}

/// A URL, or a host and its port, which is secure unless `insecure`.
fn grpc_endpoint(text: &str, insecure: bool) -> Option<String> {
    match text.contains("://") {
        true => whole_url(text),
        false => {
            let scheme = if insecure { "http" } else { "https" };
            whole_url(&format!("{scheme}://{text}"))
        }
    }
}

fn below(base: &str, signal: Signal) -> String {
    format!("{}/{}", base.trim_end_matches('/'), signal.http_path())
}

/// What of a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the endpoint is not an http or https URL: {0:?}")]
    Endpoint(String),
    #[error("no header can be named {0:?}")]
    HeaderName(String),
    /// The value is left out, since it may be a secret.
    #[error("the value of header {0:?} has characters that a header cannot have")]
    HeaderValue(String),
    #[error(
        "this build speaks no gRPC, which builds with the cargo feature `grpc` do (http/protobuf, at port 4318, needs none)"
    )]
    NoGrpc,
    #[error("this build speaks no TLS (cargo feature `tls`), which the endpoint needs: {0:?}")]
    NoTls(String),
    #[error("cannot read {path:?}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{what} is not in PEM: {path:?}")]
    NotPem { what: &'static str, path: PathBuf },
    #[error("no timeout is 0")]
    NoTimeout,
    #[error("cannot start a thread to export with")]
    NoThread(#[source] std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn from(variables: &[(&str, &str)]) -> (Config, Vec<Ignored>) {
        from_signal(Signal::Traces, variables)
    }

    fn from_signal(signal: Signal, variables: &[(&str, &str)]) -> (Config, Vec<Ignored>) {
        Config::from_env(signal, |name| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn endpoint(variables: &[(&str, &str)]) -> String {
        let (config, ignored) = from(variables);
        assert!(ignored.is_empty(), "{ignored:?}");
        config.endpoint
    }

    const GENERAL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";

    #[test]
    fn without_variables_it_is_http_with_protobuf_to_this_machine() {
        let (config, ignored) = from(&[]);
        assert_eq!(config, Config::new(Signal::Traces, Protocol::HttpProtobuf));
        assert_eq!(config.endpoint, "http://localhost:4318/v1/traces");
        assert_eq!(config.timeout, Duration::from_secs(10));
        assert!(ignored.is_empty());
        let empty = from(&[
            (GENERAL, ""),
            (PROTOCOL, ""),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", ""),
        ]);
        assert_eq!(empty, (config, ignored));
    }

    #[test]
    fn the_general_endpoint_is_a_base_and_the_signals_own_is_taken_as_it_is() {
        for (base, whole) in [
            ("http://c:4318", "http://c:4318/v1/traces"),
            ("http://c:4318/", "http://c:4318/v1/traces"),
            ("https://c/my/collector", "https://c/my/collector/v1/traces"),
            ("HTTP://c/my/collector/", "HTTP://c/my/collector/v1/traces"),
        ] {
            assert_eq!(endpoint(&[(GENERAL, base)]), whole);
        }
        for (own, whole) in [
            ("http://c:4318", "http://c:4318/"),
            ("http://c:4318/", "http://c:4318/"),
            ("http://c/v1/traces", "http://c/v1/traces"),
            ("http://c/x?token=1", "http://c/x?token=1"),
        ] {
            assert_eq!(endpoint(&[(GENERAL, "http://other"), (TRACES, own)]), whole);
        }
        let metrics = from_signal(
            Signal::Metrics,
            &[(GENERAL, "http://c"), (TRACES, "http://d")],
        );
        assert_eq!(metrics.0.endpoint, "http://c/v1/metrics");
    }

    #[test]
    fn a_grpc_endpoint_may_be_a_host_and_is_secure_unless_said_otherwise() {
        let insecure = ("OTEL_EXPORTER_OTLP_INSECURE", "TRUE");
        for (said, whole) in [
            (vec![], "http://localhost:4317"),
            (vec![(GENERAL, "http://c:4317")], "http://c:4317/"),
            (vec![(GENERAL, "https://c:1/"), insecure], "https://c:1/"),
            (vec![(GENERAL, "c:4317")], "https://c:4317/"),
            (vec![(GENERAL, "c:4317"), insecure], "http://c:4317/"),
            (vec![(GENERAL, "c:4317"), (TRACES, "http://d")], "http://d/"),
        ] {
            let mut variables = vec![(PROTOCOL, "grpc")];
            variables.extend(&said);
            assert_eq!(endpoint(&variables), whole, "{said:?}");
        }
    }

    #[test]
    fn the_signals_own_variables_come_before_the_general_ones() {
        let (config, ignored) = from(&[
            (PROTOCOL, "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "HTTP/JSON"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"),
            (
                "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
                "authorization=Bearer%20x%3D, b = 2 ",
            ),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/c.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k.pem"),
        ]);
        assert!(ignored.is_empty(), "{ignored:?}");
        assert_eq!(config.protocol, Protocol::HttpJson);
        let pairs = [("authorization", "Bearer x="), ("b", "2")];
        let pairs = pairs.map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(config.headers, Headers(pairs.to_vec()));
        assert_eq!(config.timeout, Duration::from_millis(2500));
        assert_eq!(config.compression, Compression::Gzip);
        assert_eq!(config.tls.certificate, Some("/ca.pem".into()));
        assert_eq!(config.tls.client, Some(("/c.pem".into(), "/k.pem".into())));
        assert!(!format!("{config:?}").contains("Bearer"));
    }

    #[test]
    fn what_cannot_be_read_is_reported_without_its_secrets_and_left_out() {
        for (name, value) in [
            (PROTOCOL, "thrift"),
            (GENERAL, "localhost:4318"),
            (GENERAL, "ftp://c"),
            (TRACES, "http://"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "no-value"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=%zz"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k.pem"),
        ] {
            let (config, ignored) = from(&[(name, value)]);
            assert_eq!(config, from(&[]).0, "{name}={value}");
            assert_eq!(ignored.len(), 1, "{name}={value}");
            assert!(ignored[0].to_string().contains(name), "{}", ignored[0]);
        }
        let (_, ignored) = from(&[("OTEL_EXPORTER_OTLP_HEADERS", "ok=1,secret")]);
        assert!(!ignored[0].to_string().contains("secret"), "{}", ignored[0]);
    }
}
