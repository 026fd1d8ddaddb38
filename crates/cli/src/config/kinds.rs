//! Kinds of values: times, sizes, numbers, texts. They are written as on the command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use warptrace_formats::metrics::Names;
use warptrace_model::inference::OutlierBucket;
use warptrace_model::{Object, Severity, Value};

use super::tree::{Leaf, no_word, words};
use crate::args::{parse_bytes, parse_duration, parse_ring_size};

/// A size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

/// The size of the kernel's buffer in bytes: a power of two, at least 64 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingSize(pub(crate) u32);

/// Names and values that go with each request. None of them is a key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(pub(crate) Vec<(String, String)>);

/// An http or https URL; empty is the usual one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url(pub(crate) String);

/// Prices of GPUs, as in a file of them; null is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Prices(pub(crate) Value);

/// In the largest unit that it is a whole number of.
fn in_unit(amount: u128, units: &[(u128, &str)]) -> Value {
    let fits = |(size, _): &&(u128, &str)| amount >= *size && amount.is_multiple_of(*size);
    let (size, unit) = units.iter().find(fits).unwrap_or(&(1, ""));
    format!("{}{unit}", amount / size).into()
}

impl Leaf for Duration {
    fn schema() -> serde_json::Value {
        let unit = "(d|h|m|s|ms|us|ns|days?|hours?|hrs?|minutes?|mins?|seconds?|secs?|weeks?|w|millis|msecs?|usecs?|nsecs?|nanos)";
        json!({"type": "string", "pattern": format!("^([0-9]+ *{unit} *)+$")})
    }

    fn parse(text: &str) -> Result<Duration, String> {
        parse_duration(text)
    }

    fn shown(&self) -> Value {
        const UNITS: [(u128, &str); 7] = [
            (86_400_000_000_000, "d"),
            (3_600_000_000_000, "h"),
            (60_000_000_000, "m"),
            (1_000_000_000, "s"),
            (1_000_000, "ms"),
            (1_000, "us"),
            (1, "ns"),
        ];
        in_unit(self.as_nanos(), &UNITS)
    }
}

fn size_schema() -> serde_json::Value {
    json!({"type": ["string", "integer"], "minimum": 0, "pattern": "^[0-9]+ *(B|[kKmMgGtT]|[KMGT]iB)?$"})
}

fn show_size(bytes: u64) -> Value {
    const UNITS: [(u128, &str); 4] = [
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    in_unit(bytes.into(), &UNITS)
}

impl Leaf for Bytes {
    fn schema() -> serde_json::Value {
        size_schema()
    }

    fn parse(text: &str) -> Result<Bytes, String> {
        parse_bytes(text).map(Bytes)
    }

    fn shown(&self) -> Value {
        show_size(self.0)
    }
}

impl Leaf for RingSize {
    fn schema() -> serde_json::Value {
        size_schema()
    }

    fn parse(text: &str) -> Result<RingSize, String> {
        parse_ring_size(text).map(RingSize)
    }

    fn shown(&self) -> Value {
        show_size(self.0.into())
    }
}

impl Leaf for bool {
    fn schema() -> serde_json::Value {
        json!({"type": "boolean"})
    }

    fn parse(text: &str) -> Result<bool, String> {
        match text {
            "on" | "true" | "yes" => Ok(true),
            "off" | "false" | "no" => Ok(false),
            _ => Err("neither true nor false".into()),
        }
    }

    fn shown(&self) -> Value {
        (*self).into()
    }
}

macro_rules! count {
    ($($kind:ty)*) => {$(
        impl Leaf for $kind {
            fn schema() -> serde_json::Value {
                json!({"type": "integer", "minimum": 0})
            }

            fn parse(text: &str) -> Result<$kind, String> {
                text.parse().map_err(|_| format!("not a whole number from 0 to {}", <$kind>::MAX))
            }

            fn shown(&self) -> Value {
                Value::Int(u64::try_from(*self).unwrap_or(u64::MAX).into())
            }
        }
    )*};
}

count!(u32 u64 usize);

impl Leaf for f64 {
    fn schema() -> serde_json::Value {
        json!({"type": "number"})
    }

    fn parse(text: &str) -> Result<f64, String> {
        let number = text.parse().ok().filter(|n: &f64| n.is_finite());
        number.ok_or_else(|| "not a number".into())
    }

    fn shown(&self) -> Value {
        (*self).into()
    }
}

macro_rules! text {
    ($($kind:ty, $show:expr;)*) => {$(
        impl Leaf for $kind {
            fn schema() -> serde_json::Value {
                json!({"type": "string", "minLength": 1})
            }

            fn parse(text: &str) -> Result<$kind, String> {
                match text.trim() {
                    "" => Err("empty".into()),
                    _ => Ok(text.into()),
                }
            }

            /// A number or a word like `yes` is no text unless it is quoted: what was meant cannot be told.
            fn read(value: &Value) -> Result<$kind, String> {
                match value {
                    Value::String(text) => Self::parse(text),
                    _ => Err("not a text (write it in quotes)".into()),
                }
            }

            fn shown(&self) -> Value {
                let text: fn(&$kind) -> String = $show;
                text(self).into()
            }
        }
    )*};
}

text! {
    String, String::clone;
    PathBuf, |path| path.to_string_lossy().into_owned();
}

impl Leaf for SocketAddr {
    fn schema() -> serde_json::Value {
        json!({"type": "string", "pattern": "^.+:[0-9]+$"})
    }

    fn parse(text: &str) -> Result<SocketAddr, String> {
        let wrong = |_| "not an address with a port (127.0.0.1:9464, [::1]:9464)".into();
        text.parse().map_err(wrong)
    }

    fn shown(&self) -> Value {
        self.to_string().into()
    }
}

impl Leaf for Url {
    fn schema() -> serde_json::Value {
        json!({"type": "string", "pattern": "^https?://[^/ ]+"})
    }

    fn parse(text: &str) -> Result<Url, String> {
        let rest = ["http://", "https://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme));
        match rest {
            Some(rest) if !rest.is_empty() && !rest.starts_with('/') => Ok(Url(text.to_owned())),
            _ => Err("not an http or https URL (http://localhost:4318)".into()),
        }
    }

    fn shown(&self) -> Value {
        self.0.as_str().into()
    }
}

impl Leaf for IpAddr {
    fn schema() -> serde_json::Value {
        json!({"type": "string", "minLength": 2})
    }

    fn parse(text: &str) -> Result<IpAddr, String> {
        text.parse()
            .map_err(|_| "not an IP address (127.0.0.1, ::1)".into())
    }

    fn shown(&self) -> Value {
        self.to_string().into()
    }
}

impl Leaf for Names {
    fn schema() -> serde_json::Value {
        words(&["native", "ingero", "both"])
    }

    fn parse(text: &str) -> Result<Names, String> {
        let known = ["native", "ingero", "both"];
        Names::by_name(text).ok_or_else(|| no_word(text, &known))
    }

    fn shown(&self) -> Value {
        match self {
            Names::Native => "native",
            Names::Ingero => "ingero",
            Names::Both => "both",
        }
        .into()
    }
}

impl Leaf for Severity {
    fn schema() -> serde_json::Value {
        let names = [
            "low", "medium", "high", "critical", "LOW", "MEDIUM", "HIGH", "CRITICAL",
        ];
        words(&names)
    }

    fn parse(text: &str) -> Result<Severity, String> {
        let known = ["low", "medium", "high", "critical"];
        Severity::by_name(text).ok_or_else(|| no_word(text, &known))
    }

    fn shown(&self) -> Value {
        self.name().to_lowercase().into()
    }
}

impl Leaf for OutlierBucket {
    fn schema() -> serde_json::Value {
        words(&["1.5x", "2x", "3x"])
    }

    fn parse(text: &str) -> Result<OutlierBucket, String> {
        OutlierBucket::by_name(text).ok_or_else(|| no_word(text, &["1.5x", "2x", "3x"]))
    }

    fn shown(&self) -> Value {
        self.name().into()
    }
}

/// `off` is none.
impl<T: Leaf> Leaf for Option<T> {
    fn schema() -> serde_json::Value {
        let off = json!({"enum": ["off", false, null]});
        json!({"anyOf": [T::schema(), off]})
    }

    fn parse(text: &str) -> Result<Option<T>, String> {
        match text {
            "off" => Ok(None),
            text => T::parse(text).map(Some),
        }
    }

    fn read(value: &Value) -> Result<Option<T>, String> {
        match value {
            Value::Null | Value::Bool(false) => Ok(None),
            Value::String(off) if &**off == "off" => Ok(None),
            value => T::read(value).map(Some),
        }
    }

    fn shown(&self) -> Value {
        match self {
            Some(value) => value.shown(),
            None => Value::Null,
        }
    }
}

impl Headers {
    /// As in `OTEL_EXPORTER_OTLP_HEADERS`: `name=value,name=value`, all but letters, digits, `-`, `.` and `_` as `%20`.
    pub(crate) fn encoded(&self) -> String {
        let encode = |text: &str| {
            let bytes = text.bytes().map(|byte| match byte {
                b'-' | b'.' | b'_' => char::from(byte).to_string(),
                byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
                byte => format!("%{byte:02X}"),
            });
            bytes.collect::<String>()
        };
        let pairs = self.0.iter();
        let pairs = pairs.map(|(name, value)| format!("{}={}", encode(name), encode(value)));
        pairs.collect::<Vec<_>>().join(",")
    }
}

impl Leaf for Headers {
    fn schema() -> serde_json::Value {
        json!({"type": ["object", "null"], "additionalProperties": {"type": "string"}})
    }

    fn parse(_: &str) -> Result<Headers, String> {
        Err("a section: name: value".into())
    }

    fn read(value: &Value) -> Result<Headers, String> {
        // As in names of headers that hold keys: authorization, x-api-key, x-honeycomb-team, lightstep-access-token.
        const KEYS: [&str; 8] = [
            "auth",
            "key",
            "token",
            "secret",
            "cookie",
            "passw",
            "credential",
            "honeycomb-team",
        ];
        let object = match value {
            Value::Null => return Ok(Headers::default()),
            Value::Object(object) => object,
            _ => return Headers::parse(""),
        };
        let header = |(name, value): (&str, &Value)| {
            let small = name.to_ascii_lowercase();
            if KEYS.iter().any(|key| small.contains(key)) {
                return Err(format!(
                    "{name} is a key, which no file holds: set the variable OTEL_EXPORTER_OTLP_HEADERS instead"
                ));
            }
            let text = value.as_str();
            let text = text.ok_or_else(|| format!("{name} is not a text (write it in quotes)"))?;
            Ok((name.to_owned(), text.to_owned()))
        };
        object
            .iter()
            .map(header)
            .collect::<Result<_, _>>()
            .map(Headers)
    }

    fn shown(&self) -> Value {
        let pairs = self.0.iter();
        let pairs = pairs.map(|(k, v)| (k.as_str().into(), v.as_str().into()));
        Value::Object(Object::from_pairs(pairs.collect()))
    }
}

impl Leaf for Prices {
    fn schema() -> serde_json::Value {
        let per_hour = json!({"type": "number", "exclusiveMinimum": 0, "maximum": 10_000});
        let text = json!({"type": "string", "minLength": 1, "maxLength": 256});
        let date = json!({"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}(-[0-9]{2})?$"});
        let price = json!({"anyOf": [per_hour, {
            "type": "object", "required": ["per_hour"], "additionalProperties": false,
            "properties": {"per_hour": per_hour, "source": text, "as_of": date},
        }]});
        let gpus = json!({"type": "object", "additionalProperties": price});
        json!({"type": ["object", "null"], "additionalProperties": false, "properties": {
            "currency_name": text, "currency_symbol": {"type": "string", "maxLength": 256}, "source": text, "as_of": date,
            "default_provider": text, "fallback_rate": {"const": 0},
            "providers": {"type": "object", "additionalProperties": gpus},
        }})
    }

    fn parse(_: &str) -> Result<Prices, String> {
        Err("a section (docs/cost.md)".into())
    }

    fn read(value: &Value) -> Result<Prices, String> {
        if !value.is_null() {
            let checked = warptrace_model::cost::Rates::built_in().with_file(value);
            checked.map_err(|e| e.to_string())?;
        }
        Ok(Prices(value.clone()))
    }

    fn shown(&self) -> Value {
        self.0.clone()
    }
}
