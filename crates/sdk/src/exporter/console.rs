//! A line for people for each span that ends.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use warptrace_formats::open_json::python_text;
use warptrace_formats::run_log::format_utc;
use warptrace_model::Value;

use crate::span::event::attribute;
use crate::span::{Event, ExportError, Exporter, Span};

/// Characters of one value that are shown.
const VALUE_CHARS: usize = 80;
/// Values that are shown.
const VALUES: usize = 12;
/// Levels that are indented.
const MAX_INDENT: usize = 8;

/// Writes a line a span, when it has ended: when that was (UTC), its name below its parents', how long it took, its attributes, and
/// its error. Errors and telemetry data errors have lines of their own as they happen.
///
/// ```text
/// 12:00:01.234Z  train.step             38.2 ms  step=7 loss=0.25
/// 12:00:01.240Z    load                  1.1 ms  ERROR FileNotFoundError: data/3
/// ```
pub struct Console {
    out: Mutex<Box<dyn Write + Send>>,
    colors: bool,
    lost: AtomicU64,
}

impl Console {
    /// To stderr; in colours when that is a terminal and `NO_COLOR` is not set.
    pub fn stderr() -> Console {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Console::to(io::stderr(), io::stderr().is_terminal() && !no_color)
    }

    /// To anything.
    pub fn to(out: impl Write + Send + 'static, colors: bool) -> Console {
        Console {
            out: Mutex::new(Box::new(out)),
            colors,
            lost: AtomicU64::new(0),
        }
    }

    fn say(&self, line: &str) -> Result<(), ExportError> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let written = out.write_all(line.as_bytes()).and_then(|()| out.flush());
        written.map_err(|e| {
            self.lost.fetch_add(1, Ordering::Relaxed);
            ExportError::of("cannot write to the console", e)
        })
    }

    fn paint(&self, line: &mut String, color: &str, text: &str) {
        match self.colors {
            true => {
                let _ = write!(line, "\u{1b}[{color}m{text}\u{1b}[0m");
            }
            false => line.push_str(text),
        }
    }
}

const DIM: &str = "2";
const RED: &str = "31";
const BOLD: &str = "1";

impl Exporter for Console {
    fn start(&self, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }

    fn stop(&self, span: &Span) -> Result<(), ExportError> {
        let start = span.start_event().at().unix_nanos();
        let end = span.end_unix_nanos().unwrap_or(start);
        let mut line = String::new();
        self.paint(&mut line, DIM, &clock_time(end));
        let depth = std::iter::successors(span.parent(), |s| s.parent());
        let indent = "  ".repeat(depth.take(MAX_INDENT).count());
        let name = format!("{indent}{}", printable(span.name()));
        let _ = write!(line, "  {name:<24}");
        let took = format!("{:>9}", duration(end.saturating_sub(start)));
        self.paint(&mut line, BOLD, &took);
        let attributes = span.attributes();
        let own = |name: &str| name != attribute::DURATION_MSEC;
        let said = attributes.iter().filter(|(name, _)| own(name));
        for (name, value) in said.take(VALUES) {
            let _ = write!(line, "  {}={}", printable(name), shown(value));
        }
        let said = attributes.iter().filter(|(name, _)| own(name));
        let more = said.count().saturating_sub(VALUES);
        if more > 0 {
            let _ = write!(line, "  +{more}");
        }
        if let Some(error) = span.error() {
            line.push_str("  ");
            self.paint(&mut line, RED, &format!("ERROR {}", printable(&error)));
        }
        line.push('\n');
        self.say(&line)
    }

    fn event(&self, _: &Event, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }

    fn error(&self, event: &Event, span: &Span) -> Result<(), ExportError> {
        let mut line = clock_time(event.at().unix_nanos());
        let text = event.error_message().unwrap_or_default();
        let text = format!("  ERROR in {}: {}", printable(span.name()), printable(text));
        self.paint(&mut line, RED, &text);
        line.push('\n');
        self.say(&line)
    }

    fn data_error(&self, event: &Event) -> Result<(), ExportError> {
        let mut line = clock_time(event.at().unix_nanos());
        let text = event.error_message().unwrap_or_default();
        let text = format!("  what is shown is not all: {}", printable(text));
        self.paint(&mut line, RED, &text);
        line.push('\n');
        self.say(&line)
    }

    fn close(&self, _: Duration) -> Result<(), ExportError> {
        Ok(())
    }

    fn dropped(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// `12:00:01.234Z`.
fn clock_time(unix_nanos: i64) -> String {
    let text = format_utc(unix_nanos.div_euclid(1_000_000_000));
    let time = text.split_once('T').map_or("", |(_, time)| time);
    let millis = unix_nanos.rem_euclid(1_000_000_000) / 1_000_000;
    format!("{}.{millis:03}Z", time.trim_end_matches('Z'))
}

fn duration(nanos: i64) -> String {
    let nanos = nanos as f64;
    match nanos.abs() {
        n if n < 1e6 => format!("{:.1} µs", nanos / 1e3),
        n if n < 1e9 => format!("{:.1} ms", nanos / 1e6),
        _ => format!("{:.2} s", nanos / 1e9),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        other => printable(&python_text(other)),
    }
}

/// What is safe for a terminal, on one line, and not long.
fn printable(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(VALUE_CHARS)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(VALUE_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_durations_are_for_people() {
        assert_eq!(clock_time(1_750_000_000_123_456_789), "15:06:40.123Z");
        assert_eq!(clock_time(-1), "23:59:59.999Z");
        for (nanos, want) in [
            (0, "0.0 µs"),
            (38_200_000, "38.2 ms"),
            (12_345_000_000, "12.35 s"),
        ] {
            assert_eq!(duration(nanos), want);
        }
        assert_eq!(printable("a\u{1b}[31m\nb"), "a\u{fffd}[31m\u{fffd}b");
        assert_eq!(printable(&"x".repeat(81)).chars().count(), 81);
    }
}
