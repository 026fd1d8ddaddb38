//! Small texts: what an alert or an error is *about*, without the numbers that differ each time.
//!
//! The forms are those of the Python package `stormlog` 0.4.3, so that an issue has the same fingerprint in both.

use warptrace_model::number_text::{decimal_digit, is_blank_char};
use warptrace_model::{Int, Value};

/// A text without what varies: trimmed, in lower case, hexadecimal numbers as `<hex>`, free-standing decimal ones (with
/// decimals and a percent sign) as `<num>`, runs of white space as one space. `unknown` when nothing is left.
pub fn normalized(text: &str) -> String {
    let lower = text.to_lowercase();
    let words = lower
        .split(is_blank_char)
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    if words.is_empty() {
        return "unknown".into();
    }
    numbers(&hexadecimals(&words))
}

/// [`normalized`] of a value of open data; null is `unknown`, composite values are too.
pub fn normalized_value(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => normalized(text),
        Some(Value::Bool(b)) => b.to_string(),
        Some(Value::Int(n)) => normalized(&n.to_string()),
        Some(Value::Float(x)) => normalized(&float_text(*x)),
        _ => "unknown".into(),
    }
}

/// A float as Python's `json` writes it.
pub(super) fn float_text(x: f64) -> String {
    match x {
        _ if x.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        _ => warptrace_model::number_text::float_text(x),
    }
}

/// The `0x…` of a text that is in lower case.
fn hexadecimals(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("0x") {
        let digits = rest[at + 2..]
            .bytes()
            .take_while(u8::is_ascii_hexdigit)
            .count();
        out.push_str(&rest[..at]);
        out.push_str(if digits == 0 { "0x" } else { "<hex>" });
        rest = &rest[at + 2 + digits..];
    }
    out + rest
}

/// Decimal numbers with no letter, digit or underscore beside them.
fn numbers(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let alone = at == 0 || !is_word(chars[at - 1]);
        match alone.then(|| number_at(&chars, at)).flatten() {
            Some(end) => {
                out.push_str("<num>");
                at = end;
            }
            None => {
                out.push(chars[at]);
                at += 1;
            }
        }
    }
    out
}

/// Where the number ends that begins at `at`: the longest of digits, digits with decimals, and either with a percent sign,
/// that no word character follows.
fn number_at(chars: &[char], at: usize) -> Option<usize> {
    let digits = |from: usize| {
        chars[from..]
            .iter()
            .take_while(|c| decimal_digit(**c).is_some())
            .count()
    };
    let whole = at + digits(at);
    if whole == at {
        return None;
    }
    let mut ends = vec![whole];
    if chars.get(whole) == Some(&'.') {
        let decimals = digits(whole + 1);
        if decimals > 0 {
            ends.push(whole + 1 + decimals);
        }
    }
    for end in ends.into_iter().rev() {
        let percent = chars.get(end) == Some(&'%');
        for end in [end + usize::from(percent), end] {
            if !chars.get(end).copied().is_some_and(is_word) {
                return Some(end);
            }
        }
    }
    None
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// What an error is about: its [`normalized`] text before the first colon, at most 120 characters.
pub fn error_stem(text: &str) -> String {
    let text = normalized(text);
    let stem = text.split(':').next().unwrap_or_default().trim();
    if stem.is_empty() {
        return "unknown".into();
    }
    stem.chars().take(120).collect()
}

/// What an alert is about: `high_fragmentation`, `oom_alert`, `generic_alert`, or its [`normalized`] text.
pub fn alert_category(text: &str) -> String {
    let text = normalized(text);
    if text.contains("fragmentation") {
        "high_fragmentation".into()
    } else if text.contains("oom") || text.contains("out of memory") {
        "oom_alert".into()
    } else if text == "unknown" {
        "generic_alert".into()
    } else {
        text
    }
}

/// Bytes in steps of 1024 with the letters of the telemetry format (`1.50 KB`; these are KiB); 0 is `0 B`.
pub fn bytes_text(bytes: &Int, precision: usize) -> String {
    scaled_text(bytes.to_f64(), precision)
}

pub(super) fn scaled_text(bytes: f64, precision: usize) -> String {
    if bytes == 0.0 {
        return "0 B".into();
    }
    let mut size = bytes;
    let mut unit = "B";
    for next in ["KB", "MB", "GB", "TB", "PB"] {
        if size.abs() < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = next;
    }
    format!("{size:.precision$} {unit}")
}

/// How long a collector waits after its `failures`th failure in a row, seconds: `initial_secs`, then each time `factor` times
/// longer, at most `max_secs`. 0 when any of them is not above zero (but the factor: up to 1 nothing grows).
pub fn retry_delay_secs(failures: i64, initial_secs: f64, factor: f64, max_secs: f64) -> f64 {
    if failures <= 0 || initial_secs <= 0.0 || max_secs <= 0.0 {
        return 0.0;
    }
    if factor <= 1.0 {
        return initial_secs.min(max_secs);
    }
    let steps = i32::try_from(failures - 1).unwrap_or(i32::MAX);
    // Infinity is above every maximum.
    (initial_secs * factor.powi(steps)).min(max_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_alone_and_hexadecimals_anywhere() {
        for (text, want) in [
            ("1,000", "<num>,<num>"),
            ("1_000", "1_000"),
            ("-.5", "-.<num>"),
            ("1.25a", "<num>.25a"),
            ("5%5", "<num>%<num>"),
            ("0X1G a0x1 0x", "<hex>g a<hex> 0x"),
            ("१.५ ½ ①", "<num> ½ ①"),
            (" A\u{a0} b ", "a b"),
        ] {
            assert_eq!(normalized(text), want, "{text:?}");
        }
        assert_eq!(normalized_value(Some(&Value::Float(1e16))), "1e+<num>");
        assert_eq!(error_stem(": x"), "unknown");
    }
}
