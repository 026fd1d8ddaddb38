//! A record as one line for a log: `[k=v | k=v | …]`.
//!
//! Nested objects are paths with points; at each level keys descend by code point, and objects that are empty vanish. Values are
//! JSON in ASCII, with a space after commas and colons. This is what the Python package `nv-one-logger-core` 2.3.1 writes. It
//! refuses keys with a point, and its reader stumbles over `=` and ` | ` in values. Here a part of a path that holds anything but
//! what is harmless is a JSON string, `attributes."gen_ai.system"="x"`; a value ends where its JSON ends. So every record reads
//! back, and lines without such keys are the package's to the byte.

use warptrace_model::{Object, Value};

use crate::json::{Reader, Str, Token};
use crate::open_json::{self, Layout, OPTIONS, Style, write_string};

/// Levels of nesting that are paths; what is deeper is a JSON value.
const MAX_PATH: usize = 8;

/// Why a line of a log is no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogLineError {
    #[error("no brackets around a record")]
    NotBracketed,
    #[error("byte {at} begins no key")]
    Key { at: usize },
    #[error("no value behind the key that ends at byte {at}")]
    Value { at: usize },
    #[error("something other than \" | \" at byte {at}")]
    Separator { at: usize },
}

impl LogLineError {
    /// A word for programs, which stays.
    pub const fn code(self) -> &'static str {
        match self {
            LogLineError::NotBracketed => "log_line_not_bracketed",
            _ => "log_line_malformed",
        }
    }
}

/// Appends the line of a record's object, without a line feed.
pub fn write(out: &mut String, record: &Object) {
    out.push('[');
    let begin = out.len();
    level(out, begin, "", record, 1);
    out.push(']');
}

fn level(out: &mut String, begin: usize, prefix: &str, object: &Object, depth: usize) {
    let mut pairs: Vec<_> = object.iter().collect();
    pairs.sort_unstable_by(|a, b| b.0.cmp(a.0));
    for (key, value) in pairs {
        let mut path = String::with_capacity(prefix.len() + key.len() + 1);
        path.push_str(prefix);
        match is_harmless(key) {
            true => path.push_str(key),
            false => write_string(&mut path, key),
        }
        if let Value::Object(inner) = value
            && depth < MAX_PATH
        {
            path.push('.');
            level(out, begin, &path, inner, depth + 1);
            continue;
        }
        if out.len() > begin {
            out.push_str(" | ");
        }
        out.push_str(&path);
        out.push('=');
        let spaced = Style {
            sorted: false,
            layout: Layout::Spaced,
        };
        open_json::write(out, value, spaced);
    }
}

/// Whether a key stands for itself.
fn is_harmless(key: &str) -> bool {
    let odd = |c: char| matches!(c, '.' | '=' | '|' | '[' | ']' | '"' | '\\') || c.is_control();
    !key.is_empty() && !key.starts_with(' ') && !key.ends_with(' ') && !key.contains(odd)
}

/// Reads the object that a line of a log holds: between the first bracket, or the first that begins a record where there is text
/// with brackets before it, and the last. A value that is no JSON is its text.
///
/// # Errors
/// [`LogLineError`].
pub fn parse(line: &str) -> Result<Object, LogLineError> {
    let open = line.find('[').map(|open| match line.find("[type=") {
        Some(record) if has_bracket(&line[open + 1..]) => record,
        _ => open,
    });
    let close = line.rfind(']');
    let (Some(open), Some(close)) = (open, close) else {
        return Err(LogLineError::NotBracketed);
    };
    if close <= open {
        return Err(LogLineError::NotBracketed);
    }
    let text = &line[..close];
    let mut pairs = Vec::new();
    let mut at = open + 1;
    while at < close {
        let (path, after) = key(text, at)?;
        let (value, after) = value(text, after)?;
        pairs.push((path, value));
        at = match &text[after..] {
            "" => break,
            rest if rest.starts_with(" | ") => after + 3,
            _ => return Err(LogLineError::Separator { at: after }),
        };
    }
    Ok(nest(pairs, 0))
}

/// Whether a bracket stands in the first key, outside of quotes: then it is text before the record.
fn has_bracket(mut text: &str) -> bool {
    loop {
        if let Some((_, length)) = quoted(text) {
            text = &text[length..];
        }
        match text
            .find(['.', '=', '['])
            .map(|at| (at, text.as_bytes()[at]))
        {
            Some((_, b'[')) => return true,
            Some((at, b'.')) => text = &text[at + 1..],
            _ => return false,
        }
    }
}

/// A path, and where its value begins.
fn key(text: &str, mut at: usize) -> Result<(Vec<Box<str>>, usize), LogLineError> {
    let begin = at;
    let mut path = Vec::new();
    loop {
        let rest = &text[at..];
        let (part, length) = match quoted(rest) {
            Some((part, length)) => (part, length),
            None => {
                let length = rest
                    .find(['.', '='])
                    .ok_or(LogLineError::Key { at: begin })?;
                (rest[..length].into(), length)
            }
        };
        path.push(part);
        at += length;
        match text.as_bytes().get(at) {
            Some(b'.') if path.len() < MAX_PATH => at += 1,
            Some(b'=') => return Ok((path, at + 1)),
            _ => return Err(LogLineError::Key { at: begin }),
        }
    }
}

/// The JSON string that `text` begins with.
fn quoted(text: &str) -> Option<(Box<str>, usize)> {
    if !text.starts_with('"') {
        return None;
    }
    let mut end = 1;
    loop {
        end += text[end..].find('"')? + 1;
        // Of an even number of backslashes the last one escapes none.
        let slashes = text[..end - 1].bytes().rev().take_while(|b| *b == b'\\');
        if slashes.count() % 2 == 0 {
            break;
        }
    }
    let string: Str<'_> = Str::from_raw(&text.as_bytes()[1..end - 1])?;
    Some((open_json::text(&string), end))
}

/// A value, and where it ends.
fn value(text: &str, at: usize) -> Result<(Value, usize), LogLineError> {
    let rest = &text[at..];
    // What ends a value that is no JSON.
    let plain_end = || rest.find(" | ").unwrap_or(rest.len());
    let mut reader = Reader::with_options(rest.as_bytes(), OPTIONS);
    let first: Option<Token<'_>> = reader.next().ok().flatten();
    if let Some(first) = first
        && let Ok(value) = open_json::read_from(&mut reader, first)
    {
        let end = reader.position();
        if rest.len() == end || rest[end..].starts_with(" | ") {
            return Ok((value, at + end));
        }
    }
    let end = plain_end();
    if end == 0 {
        return Err(LogLineError::Value { at });
    }
    Ok((rest[..end].into(), at + end))
}

/// Pairs of paths as objects within each other; of what is said twice the last holds.
fn nest(mut pairs: Vec<(Vec<Box<str>>, Value)>, depth: usize) -> Object {
    let mut flat: Vec<(Box<str>, Value)> = Vec::with_capacity(pairs.len());
    // Stable: equal paths stay in order.
    pairs.sort_by(|a, b| a.0[depth].cmp(&b.0[depth]));
    let mut pairs = pairs.into_iter().peekable();
    while let Some((mut path, value)) = pairs.next() {
        let name = std::mem::take(&mut path[depth]);
        if path.len() == depth + 1 {
            flat.push((name, value));
            continue;
        }
        let mut inner = vec![(path, value)];
        let belongs =
            |next: &(Vec<Box<str>>, Value)| next.0[depth] == name && next.0.len() > depth + 1;
        while let Some(next) = pairs.next_if(belongs) {
            inner.push(next);
        }
        flat.push((name, Value::Object(nest(inner, depth + 1))));
    }
    Object::from_pairs(flat)
}
