//! YAML into open data, as far as configuration files go.
//!
//! The grammar is the crate `saphyr-parser`'s: kept up, without unsafe code, and only a parser, so that what a word means is said
//! here. (`serde_yaml`, with all its forks on libyaml, is given up; `serde-saphyr` decides what words mean by the type that is wanted,
//! and settings have none.) Words mean what they do to PyYAML's `safe_load`, YAML 1.1: `yes`, `no`, `on` and `off` are booleans, `0x10`
//! and `010` are numbers, `1e3` is text. Other than there, dates and sexagesimal numbers are text, keys must be scalars, and of tags
//! only `!!str` has an effect.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError};
use warptrace_model::{Int, Object, Value};

/// Levels of nesting.
const MAX_DEPTH: usize = 64;
/// Values in all, those that aliases repeat among them.
const MAX_VALUES: usize = 100_000;

/// Why a text is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum YamlError {
    #[error("not UTF-8")]
    Utf8,
    #[error("{0}")]
    Syntax(ScanError),
    #[error("more than one document")]
    Documents,
    #[error("nested more than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("more than {MAX_VALUES} values")]
    TooMany,
    #[error("a key that is a list or a mapping")]
    Key,
    #[error("an alias of nothing")]
    Alias,
}

/// The one document of a text; null for an empty one.
///
/// # Errors
/// [`YamlError`].
pub fn parse_yaml(content: &[u8]) -> Result<Value, YamlError> {
    let text = std::str::from_utf8(content).map_err(|_| YamlError::Utf8)?;
    let mut loader = Loader::default();
    let mut parser = Parser::new_from_str(text.trim_start_matches('\u{feff}'));
    let mut documents = 0;
    while let Some(event) = parser.next_event() {
        let (event, _) = event.map_err(YamlError::Syntax)?;
        match event {
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    return Err(YamlError::Documents);
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let as_text = style != ScalarStyle::Plain || tag.is_some_and(|t| t.suffix == "str");
                let value = match as_text {
                    true => Value::from(&*text),
                    false => plain(&text),
                };
                let key = (!as_text && text == "<<").then_some(Key::Merge);
                loader.value(
                    value,
                    key.unwrap_or_else(|| Key::Named((&*text).into())),
                    anchor,
                )?;
            }
            Event::SequenceStart(anchor, _) => loader.open(Open::List(Vec::new()), anchor)?,
            Event::MappingStart(anchor, _) => {
                loader.open(Open::Mapping(Vec::new(), Object::new(), None), anchor)?;
            }
            Event::SequenceEnd | Event::MappingEnd => loader.close()?,
            Event::Alias(anchor) => {
                let known = loader.anchors.iter().rev().find(|(a, _)| *a == anchor);
                let (_, value) = known.ok_or(YamlError::Alias)?;
                let value = value.clone();
                loader.values += count(&value);
                loader.value(value, Key::None, 0)?;
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
    }
    Ok(loader.done.unwrap_or_default())
}

enum Key {
    Named(Box<str>),
    /// What a mapping has besides what it says itself.
    Merge,
    /// Not fit to be one.
    None,
}

enum Open {
    List(Vec<Value>),
    /// Its pairs, what is merged under them, and the key whose value comes next.
    Mapping(Vec<(Box<str>, Value)>, Object, Option<Key>),
}

#[derive(Default)]
struct Loader {
    open: Vec<(Open, usize)>,
    anchors: Vec<(usize, Value)>,
    values: usize,
    done: Option<Value>,
}

impl Loader {
    fn open(&mut self, open: Open, anchor: usize) -> Result<(), YamlError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(YamlError::TooDeep);
        }
        if let Some((Open::Mapping(_, _, None), _)) = self.open.last() {
            return Err(YamlError::Key);
        }
        self.open.push((open, anchor));
        Ok(())
    }

    fn close(&mut self) -> Result<(), YamlError> {
        let Some((open, anchor)) = self.open.pop() else {
            return Ok(());
        };
        let value = match open {
            Open::List(items) => Value::Array(items),
            Open::Mapping(mut pairs, merged, _) => {
                let said = Object::from_pairs(std::mem::take(&mut pairs));
                let mut object = said;
                for (key, value) in merged.iter() {
                    if !object.contains(key) {
                        object.insert(key, value.clone());
                    }
                }
                Value::Object(object)
            }
        };
        self.value(value, Key::None, anchor)
    }

    /// A value is whole; as a key it is `key`.
    fn value(&mut self, value: Value, key: Key, anchor: usize) -> Result<(), YamlError> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(YamlError::TooMany);
        }
        if anchor != 0 {
            self.values += count(&value);
            self.anchors.push((anchor, value.clone()));
        }
        match self.open.last_mut() {
            None => self.done = Some(value),
            Some((Open::List(items), _)) => items.push(value),
            Some((Open::Mapping(pairs, merged, pending), _)) => match pending.take() {
                None => match key {
                    Key::None => return Err(YamlError::Key),
                    key => *pending = Some(key),
                },
                Some(Key::Named(name)) => pairs.push((name, value)),
                Some(_) => merge(merged, &value),
            },
        }
        Ok(())
    }
}

/// A mapping, or a list of them, under what is said. The first one to say a key holds.
fn merge(merged: &mut Object, value: &Value) {
    let from: &[Value] = match value {
        Value::Array(items) => items,
        one => std::slice::from_ref(one),
    };
    for object in from.iter().filter_map(Value::as_object) {
        for (key, value) in object.iter() {
            if !merged.contains(key) {
                merged.insert(key, value.clone());
            }
        }
    }
}

fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(object) => 1 + object.iter().map(|(_, v)| count(v)).sum::<usize>(),
        _ => 1,
    }
}

/// What a word without quotes means.
fn plain(text: &str) -> Value {
    // In small letters, with a capital, or in capitals.
    let lower = text.to_ascii_lowercase();
    let capital = text.chars().skip(1).all(|c| c.is_ascii_lowercase());
    let cased = text == lower || capital || text == text.to_ascii_uppercase();
    match &*lower {
        "" | "~" => return Value::Null,
        "null" if cased => return Value::Null,
        "true" | "yes" | "on" if cased => return true.into(),
        "false" | "no" | "off" if cased => return false.into(),
        ".nan" if cased => return f64::NAN.into(),
        ".inf" | "+.inf" => return f64::INFINITY.into(),
        "-.inf" => return f64::NEG_INFINITY.into(),
        _ => {}
    }
    integer(text)
        .or_else(|| float(text))
        .unwrap_or_else(|| text.into())
}

fn integer(text: &str) -> Option<Value> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let digits = digits.replace('_', "");
    let radix = |digits: &str, radix| {
        let size = i128::from_str_radix(digits, radix).ok()?;
        Some(Int::from(if negative { -size } else { size }))
    };
    let hex = digits.strip_prefix("0x");
    let binary = digits.strip_prefix("0b");
    let n = match (hex, binary) {
        (Some(hex), _) => radix(hex, 16)?,
        (_, Some(binary)) => radix(binary, 2)?,
        _ if digits.starts_with('0') && digits.len() > 1 => radix(&digits, 8)?,
        _ if negative => Int::ZERO.minus(&Int::parse(&digits)?),
        _ => Int::parse(&digits)?,
    };
    Some(Value::Int(n))
}

/// With a point, and a sign in the exponent.
fn float(text: &str) -> Option<Value> {
    let plain = text.replace('_', "");
    let known = |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+' | b'e' | b'E');
    let (mantissa, exponent) = match plain.find(['e', 'E']) {
        Some(at) => (&plain[..at], Some(&plain[at + 1..])),
        None => (&*plain, None),
    };
    let signed = exponent.is_none_or(|e| e.starts_with(['-', '+']));
    // A sign wants a digit before the point.
    let signed_point = mantissa.starts_with("-.") || mantissa.starts_with("+.");
    let has_digit = mantissa.bytes().any(|b| b.is_ascii_digit());
    if !mantissa.contains('.') || signed_point || !signed || !has_digit || !plain.bytes().all(known)
    {
        return None;
    }
    plain.parse().ok().map(Value::Float)
}

#[cfg(test)]
mod tests {
    use warptrace_formats::open_json::{Layout, Style, to_string};

    use super::*;

    #[track_caller]
    fn check(yaml: &str, json: &str) {
        let style = Style {
            sorted: false,
            layout: Layout::Compact,
        };
        match parse_yaml(yaml.as_bytes()) {
            Ok(value) => assert_eq!(to_string(&value, style), json, "{yaml}"),
            Err(e) => assert_eq!(e.to_string(), json, "{yaml}"),
        }
    }

    /// The right sides are what PyYAML 6.0.3 gives, but for what the module says.
    #[test]
    fn words_mean_what_they_do_to_pyyaml() {
        check("", "null");
        check(
            "[~, null, Null, NULL, nULL, yes, No, ON, off, oN, true, FALSE]",
            r#"[null,null,null,null,"nULL",true,false,true,false,"oN",true,false]"#,
        );
        check(
            "[1, -1, +1, 0x1F, 010, 0b11, 1_000, 08, 1e3, 1.5, .5, 1.0e+3, 1.0e3, -.inf, 1.2.3, 0, -0, +.5]",
            r#"[1,-1,1,31,8,3,1000,"08","1e3",1.5,0.5,1000.0,"1.0e3",-Infinity,"1.2.3",0,0,"+.5"]"#,
        );
        check(
            "['1', \"yes\", !!str 1, a b, 2026-01-02]",
            r#"["1","yes","1","a b","2026-01-02"]"#,
        );
        check(
            "a: 1\nb:\n  - x: 2\n    y: |\n      t\n",
            r#"{"a":1,"b":[{"x":2,"y":"t\n"}]}"#,
        );
        check("1: a\ntrue: b", r#"{"1":"a","true":"b"}"#);
        check("a: 1\na: 2", r#"{"a":2}"#);
    }

    #[test]
    fn anchors_are_values_again_and_bombs_are_refused() {
        check(
            "a: &x {k: 1}\nb: *x\nc: {<<: *x, m: 2}\nd: {<<: *x, k: 3}",
            r#"{"a":{"k":1},"b":{"k":1},"c":{"m":2,"k":1},"d":{"k":3}}"#,
        );
        let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x, x, x]\n");
        for (before, name) in "abcdefgh".chars().zip("bcdefghi".chars()) {
            let items = vec![format!("*{before}"); 10].join(", ");
            bomb += &format!("{name}: &{name} [{items}]\n");
        }
        check(&bomb, "more than 100000 values");
        check(&"[".repeat(100), "nested more than 64 levels");
        check("? [a]\n: b", "a key that is a list or a mapping");
        check("a\n---\nb", "more than one document");
    }
}
