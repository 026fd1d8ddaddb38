//! JSON as Python's `json` module reads and writes it, into and from open data.
//!
//! Reading: `NaN` and the infinities are values, the last of equal keys holds, integers have up to 4,300 digits, lone
//! surrogates are kept. Writing: the same bytes that `json.dumps` gives, so that hashes of them are equal. Texts as Python's
//! `str` gives them are here, too, because ids are made of them.

use std::fmt::Write as _;

use warptrace_model::number_text::{self, MAX_INT_DIGITS};
use warptrace_model::{Int, Object, Value, lone_surrogate, surrogate_half};

use crate::json::{Error, ErrorKind, Number, Options, Reader, Str, Token};

/// Python's reading rules.
pub(crate) const OPTIONS: Options = Options {
    max_depth: 512,
    non_finite: true,
    check_utf8: true,
};

/// The value of a whole document.
///
/// # Errors
/// What is no JSON by Python's rules, is nested more than 512 deep, or has an integer of more than 4,300 digits.
pub fn parse(document: &[u8]) -> Result<Value, Error> {
    let mut reader = Reader::with_options(document, OPTIONS);
    let value = read(&mut reader)?;
    match reader.next()? {
        None => Ok(value),
        Some(_) => Err(Error {
            kind: ErrorKind::TrailingData,
            at: reader.position(),
        }),
    }
}

/// The value that comes next.
pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Value, Error> {
    match reader.next()? {
        Some(token) => read_from(reader, token),
        None => Err(Error {
            kind: ErrorKind::UnexpectedEnd,
            at: reader.position(),
        }),
    }
}

/// The value that `first` begins. No recursion: what is open waits in a list, which the reader's depth bounds.
pub(crate) fn read_from(reader: &mut Reader<'_>, first: Token<'_>) -> Result<Value, Error> {
    enum Open {
        Array(Vec<Value>),
        Object(Vec<(Box<str>, Value)>, Option<Box<str>>),
    }
    let mut open: Vec<Open> = Vec::new();
    let mut token = first;
    loop {
        let value = match token {
            Token::ObjectStart => {
                open.push(Open::Object(Vec::new(), None));
                None
            }
            Token::ArrayStart => {
                open.push(Open::Array(Vec::new()));
                None
            }
            Token::Key(key) => {
                if let Some(Open::Object(_, pending)) = open.last_mut() {
                    *pending = Some(text(&key));
                }
                None
            }
            Token::ObjectEnd | Token::ArrayEnd => open.pop().map(|done| match done {
                Open::Array(items) => Value::Array(items),
                Open::Object(pairs, _) => Value::Object(Object::from_pairs(pairs)),
            }),
            Token::String(string) => Some(Value::String(text(&string))),
            Token::Number(number) => Some(number_value(&number).ok_or_else(|| Error {
                kind: ErrorKind::BadNumber,
                at: reader.range().start,
            })?),
            Token::NonFinite(value) => Some(Value::Float(value)),
            Token::Bool(value) => Some(Value::Bool(value)),
            Token::Null => Some(Value::Null),
        };
        if let Some(value) = value {
            match open.last_mut() {
                None => return Ok(value),
                Some(Open::Array(items)) => items.push(value),
                Some(Open::Object(pairs, key)) => {
                    pairs.push((key.take().unwrap_or_default(), value))
                }
            }
        }
        token = reader.next()?.ok_or(Error {
            kind: ErrorKind::UnexpectedEnd,
            at: reader.position(),
        })?;
    }
}

/// A string's text, halves of surrogate pairs as [`lone_surrogate`] has them.
pub(crate) fn text(string: &Str<'_>) -> Box<str> {
    if let Some(text) = string.decode(crate::json::Invalid::Refuse) {
        return text.into();
    }
    // The bytes are UTF-8 but for surrogates in generalised form: 0xED, a second byte from 0xA0, a third.
    let bytes = string.decode_wtf8();
    let (mut out, mut rest) = (String::with_capacity(bytes.len() + 8), &bytes[..]);
    while !rest.is_empty() {
        let half = rest.windows(3).position(|w| w[0] == 0xED && w[1] >= 0xA0);
        let (plain, after) = rest.split_at(half.unwrap_or(rest.len()));
        out.push_str(&String::from_utf8_lossy(plain));
        rest = match after {
            [_, second, third, next @ ..] => {
                let unit = 0xD000 | u16::from(second & 0x3F) << 6 | u16::from(third & 0x3F);
                out.extend(lone_surrogate(unit));
                next
            }
            _ => &[],
        };
    }
    out.into()
}

/// `None` for an integer that is too long.
fn number_value(number: &Number<'_>) -> Option<Value> {
    if !number.is_integer_literal() {
        return Some(Value::Float(number.as_f64()));
    }
    let text = number.text();
    if text.len() > MAX_INT_DIGITS && text.trim_start_matches('-').len() > MAX_INT_DIGITS {
        return None;
    }
    Int::parse(text).map(Value::Int)
}

/// How `json.dumps` was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// `sort_keys`: objects in order of their keys, else as they are.
    pub sorted: bool,
    pub layout: Layout,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One line, a space after commas and colons.
    Spaced,
    /// One line without spaces.
    Compact,
    /// A line an item, two spaces deeper a level.
    Indented,
}

impl Style {
    /// A line of a segment, and what record ids are hashed from.
    pub const LINE: Style = Style {
        sorted: true,
        layout: Layout::Spaced,
    };
    /// A manifest.
    pub const MANIFEST: Style = Style {
        sorted: false,
        layout: Layout::Indented,
    };
}

/// Appends `value` as JSON of ASCII characters only. What has no end of nesting in memory is not deep, either: values read
/// by [`parse`] nest 512 levels at most.
pub fn write(out: &mut String, value: &Value, style: Style) {
    write_at(out, value, style, 0);
}

/// [`write`] into a new string.
pub fn to_string(value: &Value, style: Style) -> String {
    let mut out = String::new();
    write(&mut out, value, style);
    out
}

fn write_at(out: &mut String, value: &Value, style: Style, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Int(int) => {
            let _ = write!(out, "{int}");
        }
        Value::Float(value) => write_float(out, *value),
        Value::String(text) => write_string(out, text),
        Value::Array(items) if items.is_empty() => out.push_str("[]"),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                separate(out, style, depth + 1, i > 0);
                write_at(out, item, style, depth + 1);
            }
            end(out, style, depth);
            out.push(']');
        }
        Value::Object(object) => write_object_at(out, object, style, depth),
    }
}

/// [`write`] of an object.
pub fn write_object(out: &mut String, object: &Object, style: Style) {
    write_object_at(out, object, style, 0);
}

fn write_object_at(out: &mut String, object: &Object, style: Style, depth: usize) {
    if object.is_empty() {
        out.push_str("{}");
        return;
    }
    let mut pairs: Vec<(&str, &Value)> = object.iter().collect();
    if style.sorted {
        pairs.sort_by_key(|(key, _)| *key);
    }
    out.push('{');
    for (i, (key, value)) in pairs.into_iter().enumerate() {
        separate(out, style, depth + 1, i > 0);
        write_string(out, key);
        out.push_str(match style.layout {
            Layout::Compact => ":",
            _ => ": ",
        });
        write_at(out, value, style, depth + 1);
    }
    end(out, style, depth);
    out.push('}');
}

fn separate(out: &mut String, style: Style, depth: usize, comma: bool) {
    if comma {
        out.push(',');
    }
    match style.layout {
        Layout::Spaced if comma => out.push(' '),
        Layout::Indented => {
            out.push('\n');
            out.extend(std::iter::repeat_n("  ", depth));
        }
        _ => {}
    }
}

fn end(out: &mut String, style: Style, depth: usize) {
    if style.layout == Layout::Indented {
        separate(out, style, depth, false);
    }
}

/// Appends a quoted string, all but printable ASCII escaped.
pub(crate) fn write_string(out: &mut String, text: &str) {
    out.push('"');
    let plain = |b: u8| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\';
    if text.bytes().all(plain) {
        out.push_str(text);
        out.push('"');
        return;
    }
    let mut from = 0;
    for (at, c) in text.char_indices() {
        if matches!(c, ' '..='~') && c != '"' && c != '\\' {
            continue;
        }
        out.push_str(&text[from..at]);
        from = at + c.len_utf8();
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            _ => match surrogate_half(c) {
                Some(half) => {
                    let _ = write!(out, "\\u{half:04x}");
                }
                None => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
            },
        }
    }
    out.push_str(&text[from..]);
    out.push('"');
}

fn write_float(out: &mut String, value: f64) {
    match value {
        _ if value.is_nan() => out.push_str("NaN"),
        f64::INFINITY => out.push_str("Infinity"),
        f64::NEG_INFINITY => out.push_str("-Infinity"),
        _ => out.push_str(&number_text::float_text(value)),
    }
}

/// A value's text as Python's `str` gives it.
///
/// Within lists and objects strings are in their `repr` form; of what is not printable only control characters, format
/// characters among the first 0x300 and surrogates are escaped there.
pub fn python_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.to_string(),
        _ => {
            let mut out = String::new();
            python_repr(&mut out, value);
            out
        }
    }
}

fn python_repr(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(int) => {
            let _ = write!(out, "{int}");
        }
        Value::Float(value) => out.push_str(&number_text::float_text(*value)),
        Value::String(text) => python_string_repr(out, text),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                python_repr(out, item);
            }
            out.push(']');
        }
        Value::Object(object) => {
            out.push('{');
            for (i, (key, item)) in object.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                python_string_repr(out, key);
                out.push_str(": ");
                python_repr(out, item);
            }
            out.push('}');
        }
    }
}

fn python_string_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c == quote => out.extend(['\\', c]),
            _ if surrogate_half(c).is_some() => {
                let _ = write!(out, "\\u{:04x}", surrogate_half(c).unwrap_or_default());
            }
            _ if !c.is_control() && c != '\u{ad}' && (c == ' ' || !c.is_whitespace()) => {
                out.push(c)
            }
            _ if u32::from(c) < 0x100 => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            _ => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
        }
    }
    out.push(quote);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn rewritten(json: &str, want: &str) {
        let value = parse(json.as_bytes()).unwrap();
        assert_eq!(to_string(&value, Style::LINE), want);
    }

    #[test]
    fn a_document_is_read_and_written_by_pythons_rules() {
        rewritten(r#"{"b":1,"a":[],"b":{}}"#, r#"{"a": [], "b": {}}"#);
        rewritten(
            "[NaN,-Infinity,1.0,1e16,1e-5,0.0001,-0.0,-0]",
            "[NaN, -Infinity, 1.0, 1e+16, 1e-05, 0.0001, -0.0, 0]",
        );
        rewritten(
            "123456789012345678901234567890",
            "123456789012345678901234567890",
        );
        rewritten(
            r#""\ud800 \ud83d\ude00 é \u007f\/""#,
            r#""\ud800 \ud83d\ude00 \u00e9 \u007f/""#,
        );
        assert_eq!(parse(b"1 2").unwrap_err().kind, ErrorKind::TrailingData);
        assert!(parse("9".repeat(4300).as_bytes()).is_ok());
        assert!(parse("9".repeat(4301).as_bytes()).is_err());
        assert!(parse("[".repeat(600).as_bytes()).is_err());
    }

    #[test]
    fn layouts_are_those_of_json_dumps() {
        let value = parse(br#"{"b":[1,{}],"a":{"c":null}}"#).unwrap();
        assert_eq!(
            to_string(&value, Style::MANIFEST),
            "{\n  \"b\": [\n    1,\n    {}\n  ],\n  \"a\": {\n    \"c\": null\n  }\n}"
        );
        let compact = Style {
            sorted: true,
            layout: Layout::Compact,
        };
        assert_eq!(to_string(&value, compact), r#"{"a":{"c":null},"b":[1,{}]}"#);
    }

    #[test]
    fn texts_are_those_of_pythons_str() {
        for (json, want) in [
            ("true", "True"),
            ("null", "None"),
            ("1700000000.5", "1700000000.5"),
            ("1e16", "1e+16"),
            ("\"a'b\"", "a'b"),
            (
                r#"["a'b", "a'\"b", "\n\u001b\u00a0é", {"k": null}]"#,
                r#"["a'b", 'a\'"b', '\n\x1b\xa0é', {'k': None}]"#,
            ),
        ] {
            assert_eq!(python_text(&parse(json.as_bytes()).unwrap()), want);
        }
    }
}
