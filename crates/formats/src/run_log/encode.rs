//! Records to lines, to the byte: no whitespace, keys in one order, one line feed at the end, and no key twice, whatever text a
//! caller hands over.

use std::borrow::Cow;
use std::collections::HashSet;

use super::histogram::Latencies;
use crate::json::{Options, Reader, Token, escape_into};
use crate::utc::format_utc;

/// How deep a caller's value may be nested: what is around it adds a level, and readers take 512.
const CALLER_DEPTH: u32 = 511;

/// What a run begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunStart<'a> {
    pub host: &'a str,
    /// Of the operating system, in lower case: `linux`.
    pub os: &'a str,
    /// Of the machine: `x86_64`.
    pub arch: &'a str,
    /// `cpu`, `cuda`, …
    pub backend: &'a str,
    pub model: &'a str,
    pub model_path: &'a str,
    /// A JSON object; anything else is written as `{}`.
    pub config: &'a str,
}

/// A request that was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Served<'a> {
    pub model: &'a str,
    /// Negative counts and latencies are written as 0.
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    pub latency_micros: i64,
    /// More keys, as a JSON object; anything else adds none. Keys that are above, and repeated ones, are left out.
    pub extra: &'a str,
}

/// A request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Failed<'a> {
    pub model: &'a str,
    /// HTTP status.
    pub status: i64,
    /// A short word, such as `overloaded`.
    pub code: &'a str,
    /// For people. Keep prompts and credentials out of it.
    pub message: &'a str,
    pub latency_micros: i64,
    /// As in [`Served`].
    pub extra: &'a str,
}

/// What a run ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats<'a> {
    pub requests: u64,
    pub errors: u64,
    pub tokens_out: u64,
    /// Records that the writer could not write; left out when 0.
    pub dropped: u64,
    /// Left out when there are none.
    pub latency_micros: Option<&'a Latencies>,
}

/// Appends a `run_start`; `started_at_secs` is Unix time.
pub fn run_start(out: &mut Vec<u8>, started_at_secs: i64, start: &RunStart<'_>) {
    out.extend_from_slice(
        b"{\"kind\":\"run_start\",\"schema\":\"toy/v1\",\"t\":0,\"started_at\":\"",
    );
    out.extend_from_slice(format_utc(started_at_secs).as_bytes());
    out.extend_from_slice(b"\",\"host\":{");
    member(out, "name", start.host);
    out.push(b',');
    member(out, "os", start.os);
    out.push(b',');
    member(out, "arch", start.arch);
    out.extend_from_slice(b"},\"backend\":{");
    member(out, "kind", start.backend);
    out.extend_from_slice(b"},\"model\":{");
    member(out, "name", start.model);
    out.push(b',');
    member(out, "path", start.model_path);
    out.extend_from_slice(b"},\"config\":{");
    merge(out, start.config, &[], true);
    out.extend_from_slice(b"}}\n");
}

/// Appends the record of a served request, `t_micros` after its run's start.
pub fn request(out: &mut Vec<u8>, t_micros: u64, served: &Served<'_>) {
    serve_head(out, "eval", t_micros);
    member(out, "model", served.model);
    count(out, "prompt_tokens", served.prompt_tokens);
    count(out, "completion_tokens", served.completion_tokens);
    count(out, "latency_us", served.latency_micros);
    let own = ["model", "prompt_tokens", "completion_tokens", "latency_us"];
    merge(out, served.extra, &own, false);
    out.extend_from_slice(b"}}\n");
}

/// Appends the record of a failed request; without details its `extra` is empty.
pub fn error(out: &mut Vec<u8>, t_micros: u64, failed: Option<&Failed<'_>>) {
    serve_head(out, "error", t_micros);
    if let Some(failed) = failed {
        member(out, "model", failed.model);
        count(out, "status", failed.status);
        out.push(b',');
        member(out, "code", failed.code);
        out.push(b',');
        member(out, "message", failed.message);
        count(out, "latency_us", failed.latency_micros);
        let own = ["model", "status", "code", "message", "latency_us"];
        merge(out, failed.extra, &own, false);
    }
    out.extend_from_slice(b"}}\n");
}

/// Appends a `run_end`; `ended_at_secs` is Unix time.
pub fn run_end(
    out: &mut Vec<u8>,
    t_micros: u64,
    ended_at_secs: i64,
    reason: &str,
    stats: &Stats<'_>,
) {
    out.extend_from_slice(b"{\"kind\":\"run_end\",\"t\":");
    seconds(out, t_micros);
    out.extend_from_slice(b",\"ended_at\":\"");
    out.extend_from_slice(format_utc(ended_at_secs).as_bytes());
    out.extend_from_slice(b"\",");
    member(out, "reason", reason);
    let Stats {
        requests,
        errors,
        tokens_out,
        ..
    } = stats;
    let mut text = format!(
        ",\"stats\":{{\"requests\":{requests},\"errors\":{errors},\"tokens_out\":{tokens_out}"
    );
    if stats.dropped > 0 {
        text += &format!(",\"dropped\":{}", stats.dropped);
    }
    if let Some(latencies) = stats.latency_micros
        && let (Some(min), Some(max)) = (latencies.min(), latencies.max())
    {
        text += &format!(
            ",\"latency_us\":{{\"count\":{},\"min\":{min}",
            latencies.count()
        );
        for percent in [50, 90, 95, 99] {
            let value = latencies.percentile(percent).unwrap_or(max);
            text += &format!(",\"p{percent}\":{value}");
        }
        text += &format!(",\"max\":{max}}}");
    }
    text += "}}\n";
    out.extend_from_slice(text.as_bytes());
}

fn serve_head(out: &mut Vec<u8>, kind: &str, t_micros: u64) {
    out.extend_from_slice(b"{\"kind\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"phase\":\"serve\",\"t\":");
    seconds(out, t_micros);
    out.extend_from_slice(b",\"name\":\"request\",\"extra\":{");
}

/// Seconds, with at most six digits behind the point and no zero at the end.
fn seconds(out: &mut Vec<u8>, micros: u64) {
    let (whole, fraction) = (micros / 1_000_000, micros % 1_000_000);
    out.extend_from_slice(whole.to_string().as_bytes());
    if fraction > 0 {
        let digits = format!(".{fraction:06}");
        out.extend_from_slice(digits.trim_end_matches('0').as_bytes());
    }
}

/// `"name":"text"`.
fn member(out: &mut Vec<u8>, name: &str, text: &str) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":\"");
    escape_into(out, text);
    out.push(b'"');
}

/// `,"name":value`, negative as 0.
fn count(out: &mut Vec<u8>, name: &str, value: i64) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    out.extend_from_slice(value.max(0).to_string().as_bytes());
}

/// Appends the members of the object in `text`, without whitespace, each byte of keys and values as it is. Left out, at every
/// level: keys equal (after unescaping) to an earlier one; at the first level: those in `taken`. Text that is not an object, or
/// nested deeper than readers take, adds nothing.
fn merge(out: &mut Vec<u8>, text: &str, taken: &[&str], first: bool) {
    let start = out.len();
    if append_members(out, text.as_bytes(), taken, first).is_none() {
        out.truncate(start);
    }
}

/// An open container of a caller's text.
struct Frame<'a> {
    /// The keys of an object so far; `None` for an array.
    keys: Option<HashSet<Cow<'a, [u8]>>>,
    /// Nothing of it has been written.
    first: bool,
}

fn append_members<'a>(
    out: &mut Vec<u8>,
    text: &'a [u8],
    taken: &'a [&str],
    first: bool,
) -> Option<()> {
    let options = Options {
        max_depth: CALLER_DEPTH,
        ..Options::default()
    };
    let mut reader = Reader::with_options(text, options);
    if reader.next().ok()? != Some(Token::ObjectStart) {
        return None;
    }
    let taken = taken.iter().map(|key| Cow::Borrowed(key.as_bytes()));
    let mut frames = vec![Frame {
        keys: Some(taken.collect()),
        first,
    }];
    while let Some(token) = reader.next().ok()? {
        let range = reader.range();
        match token {
            Token::ObjectEnd | Token::ArrayEnd => {
                frames.pop();
                if !frames.is_empty() {
                    out.extend_from_slice(&text[range]);
                }
                continue;
            }
            Token::Key(key) => {
                let frame = frames.last_mut()?;
                if !frame.keys.as_mut()?.insert(key.decode_wtf8()) {
                    reader.skip_value().ok()?;
                    continue;
                }
                if !std::mem::replace(&mut frame.first, false) {
                    out.push(b',');
                }
                out.extend_from_slice(&text[range]);
                out.push(b':');
                continue;
            }
            _ => {}
        }
        if let Some(frame) = frames.last_mut()
            && frame.keys.is_none()
            && !std::mem::replace(&mut frame.first, false)
        {
            out.push(b',');
        }
        out.extend_from_slice(&text[range]);
        let keys = match token {
            Token::ObjectStart => Some(HashSet::new()),
            Token::ArrayStart => None,
            _ => continue,
        };
        frames.push(Frame { keys, first: true });
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::record::{Kind, Record};
    use super::*;

    fn extra(text: &str) -> String {
        let mut line = Vec::new();
        let served = Served {
            model: "m",
            extra: text,
            ..Served::default()
        };
        request(&mut line, 0, &served);
        let line = String::from_utf8(line).unwrap();
        let record = Record::parse(line.trim_end().as_bytes()).unwrap();
        assert_eq!(record.kind, Kind::Request);
        let head = "{\"kind\":\"eval\",\"phase\":\"serve\",\"t\":0,\"name\":\"request\",\"extra\":{\"model\":\"m\",\"prompt_tokens\":0,\
                    \"completion_tokens\":0,\"latency_us\":0";
        let rest = line.strip_prefix(head).unwrap();
        rest.strip_suffix("}}\n").unwrap().to_owned()
    }

    #[test]
    fn a_caller_s_object_is_merged_and_nothing_else() {
        for (text, want) in [
            ("", ""),
            ("{}", ""),
            (" { \n} \t", ""),
            ("null", ""),
            ("[1]", ""),
            ("{\"a\":1", ""),
            ("{\"a\":1}x", ""),
            ("{\"a\":NaN}", ""),
            ("{\"a\":\"\n\"}", ""),
            (
                "{\"a\": 1.50 , \"b\" :[ 1, {\"c\": null } ,[] ] }",
                ",\"a\":1.50,\"b\":[1,{\"c\":null},[]]",
            ),
            ("{\"a\":\"x y\\u0041\\/\"}", ",\"a\":\"x y\\u0041\\/\""),
            (
                "{\"mod\\u0065l\":{\"x\":1},\"a\":1,\"\\u0061\":2,\"latency_us\":[]}",
                ",\"a\":1",
            ),
            (
                "{\"a\":{\"b\":1,\"b\":[2],\"model\":3}}",
                ",\"a\":{\"b\":1,\"model\":3}",
            ),
            (
                "{\"\\ud800\":1,\"\\uD800\":2,\"\\ud801\":3}",
                ",\"\\ud800\":1,\"\\ud801\":3",
            ),
        ] {
            assert_eq!(extra(text), want, "{text}");
        }
    }

    #[test]
    fn what_is_nested_too_deeply_for_readers_is_left_out() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(extra(&nested(510)).contains("[["));
        assert_eq!(extra(&nested(511)), "");
        assert_eq!(extra(&"{\"a\":".repeat(100_000)), "");
    }

    #[test]
    fn seconds_have_at_most_six_digits_and_no_zero_at_the_end() {
        for (micros, want) in [
            (0, "0"),
            (1, "0.000001"),
            (1_000_000, "1"),
            (2_250_000, "2.25"),
            (86_400_000_100, "86400.0001"),
        ] {
            let mut out = Vec::new();
            seconds(&mut out, micros);
            assert_eq!(String::from_utf8(out).unwrap(), want);
        }
    }

    /// The value as JSON, with keys repeated and whitespace put in.
    fn messy(value: &Value) -> String {
        match value {
            Value::Object(members) => {
                let members: Vec<String> = members
                    .iter()
                    .map(|(k, v)| {
                        let (k, v) = (Value::from(k.as_str()), messy(v));
                        format!(" {k} :\t{v} ,{k}:[1]")
                    })
                    .collect();
                format!("{{{}\n}}", members.join(","))
            }
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(messy).collect();
                format!("[ {} ]", items.join(" ,"))
            }
            other => other.to_string(),
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c\"é]{0,2}", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_was_written(
            model in any::<String>(), code in any::<String>(), message in any::<String>(),
            prompt_tokens in any::<i64>(), completion_tokens in -9i64..1 << 53, latency_micros in 0i64..1 << 53, status in 0i64..1000,
            t_micros in 0u64..1 << 50, more in value(),
        ) {
            let extra = messy(&more);
            let mut line = Vec::new();
            request(&mut line, t_micros, &Served { model: &model, prompt_tokens, completion_tokens, latency_micros, extra: &extra });
            let text = line.strip_suffix(b"\n").unwrap();
            prop_assert!(!text.contains(&b'\n'));
            let record = Record::parse(text).unwrap();
            prop_assert_eq!(record.kind, Kind::Request);
            prop_assert!(record.model.unwrap().is(&model));
            prop_assert_eq!(record.completion_tokens, Some(completion_tokens.max(0) as u64).filter(|&n| n < 1 << 53));
            prop_assert_eq!(record.latency_micros, Some(latency_micros as u64));
            prop_assert!((record.t_secs.unwrap() * 1e6 - t_micros as f64).abs() < 0.5);
            let mut parsed: Value = serde_json::from_slice(text).unwrap();
            let merged = parsed["extra"].as_object_mut().unwrap();
            for own in ["model", "prompt_tokens", "completion_tokens", "latency_us"] {
                merged.remove(own);
            }
            let want = if more.is_object() { more } else { serde_json::json!({}) };
            prop_assert_eq!(&parsed["extra"], &want);

            line.clear();
            error(&mut line, t_micros, Some(&Failed { model: &model, status, code: &code, message: &message, latency_micros, extra: "" }));
            let record = Record::parse(line.strip_suffix(b"\n").unwrap()).unwrap();
            prop_assert_eq!((record.kind, record.status), (Kind::RequestError, Some(status as u64)));
            prop_assert!(record.code.unwrap().is(&code) && record.message.unwrap().is(&message));
        }
    }
}
