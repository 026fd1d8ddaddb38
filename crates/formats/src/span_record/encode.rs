//! Spans and events to records.

use warptrace_model::{Object, SpanId, Value};

use super::{MAX_NAME_BYTES, MAX_RECORD_BYTES, ParentId, start_of};
use crate::open_json::{self, Layout, Style, write_string};

/// Which keys a record has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keys {
    #[default]
    All,
    /// Those of the Python package `nv-one-logger-core` 2.3.1 alone. Non-finite doubles are bare words, as Python writes them.
    OneLogger,
}

/// Who wrote a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// From 1 in each process.
    pub count: u64,
    pub pid: u32,
}

/// A named moment: an event, a span's start or its end.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    pub name: &'a str,
    /// Without `timestamp_msec`, which is made of `unix_millis`.
    pub attributes: &'a Object,
    pub unix_nanos: i64,
    pub unix_millis: i64,
}

/// A span as a record shows it.
#[derive(Debug, Clone, Copy)]
pub struct SpanView<'a> {
    pub id: SpanId,
    pub name: &'a str,
    /// All that it has at this time.
    pub attributes: &'a Object,
    pub trace: u128,
    pub parent: Option<ParentId>,
    /// 0 when not known.
    pub thread: u32,
    pub start_unix_nanos: i64,
    pub dropped_events: u32,
}

/// How a span began, for records that say so.
pub type Begun<'a> = Moment<'a>;

/// How a span ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    pub moment: Moment<'a>,
    /// By the monotonic clock from its start.
    pub end_unix_nanos: i64,
}

/// Room that is kept for what follows a record's attributes: two names of events, six bytes a byte, and the rest.
const REST_BYTES: usize = 12 * MAX_NAME_BYTES + (16 << 10);

/// Writes records, each with its line feed, behind what `out` has.
#[derive(Debug)]
pub struct Writer<'o> {
    out: &'o mut String,
    keys: Keys,
    begin: usize,
    dropped_attributes: u32,
    non_finite: Vec<String>,
}

impl<'o> Writer<'o> {
    pub fn new(out: &'o mut String, keys: Keys) -> Writer<'o> {
        Writer {
            begin: out.len(),
            out,
            keys,
            dropped_attributes: 0,
            non_finite: Vec::new(),
        }
    }

    /// A span that has begun, has ended (`stop`), or both (`complete`). Returns how many attributes did not fit.
    ///
    /// Of `begun` and `ended` there is at least one.
    pub fn span(
        mut self,
        span: &SpanView<'_>,
        begun: Option<&Begun<'_>>,
        ended: Option<&Ended<'_>>,
        stamp: Stamp,
    ) -> u32 {
        self.out.push_str(match (begun, ended) {
            (Some(_), Some(_)) => "{\"type\":\"complete\",\"id\":",
            (_, None) => "{\"type\":\"start\",\"id\":",
            (None, Some(_)) => "{\"type\":\"stop\",\"id\":",
        });
        push_uuid(self.out, span.id);
        self.out.push_str(",\"name\":");
        push_name(self.out, span.name);
        if !span.attributes.is_empty() {
            let before = self.out.len();
            self.out.push_str(",\"attributes\":");
            if !self.object(span.attributes, None, "attributes") {
                self.out.truncate(before);
            }
        }
        if let Some(begun) = begun {
            self.out.push_str(",\"start_event\":");
            self.moment(begun, "start_event");
        }
        if let Some(ended) = ended {
            self.out.push_str(",\"stop_event\":");
            self.moment(&ended.moment, "stop_event");
        }
        self.stamp(stamp);
        if self.keys == Keys::All {
            self.out.push_str(",\"trace_id\":\"");
            push_hex(self.out, span.trace, 32);
            self.out.push('"');
            match span.parent {
                Some(ParentId::Span(id)) => {
                    self.out.push_str(",\"parent_id\":");
                    push_uuid(self.out, id);
                }
                Some(ParentId::Remote(id)) => {
                    self.out.push_str(",\"parent_id\":\"");
                    push_hex(self.out, u128::from(id), 16);
                    self.out.push('"');
                }
                None => {}
            }
            if span.thread != 0 {
                self.number(",\"thread_id\":", i64::from(span.thread));
            }
            let time = ended.map_or(span.start_unix_nanos, |ended| ended.end_unix_nanos);
            self.number(",\"time_unix_ns\":", time);
            if ended.is_some() {
                let duration = time.saturating_sub(span.start_unix_nanos);
                self.number(",\"duration_ns\":", duration);
                if span.dropped_events > 0 {
                    self.number(",\"dropped_events\":", i64::from(span.dropped_events));
                }
            }
        }
        self.end()
    }

    /// Something that happened in a span; an error of the program when `is_error`. Returns how many attributes did not fit.
    pub fn event(mut self, span: SpanId, event: &Moment<'_>, is_error: bool, stamp: Stamp) -> u32 {
        self.out.push_str(match is_error {
            true => "{\"type\":\"application_error\",\"span_id\":",
            false => "{\"type\":\"event\",\"span_id\":",
        });
        push_uuid(self.out, span);
        self.out.push_str(",\"event\":");
        self.moment(event, "event");
        self.stamp(stamp);
        if self.keys == Keys::All {
            self.number(",\"time_unix_ns\":", event.unix_nanos);
        }
        self.end()
    }

    /// That the records of this writer are not all. Returns how many attributes did not fit.
    pub fn data_error(mut self, error: &Moment<'_>, stamp: Stamp) -> u32 {
        self.out
            .push_str("{\"type\":\"telemetry_data_error\",\"error\":");
        self.moment(error, "error");
        self.stamp(stamp);
        if self.keys == Keys::All {
            self.number(",\"time_unix_ns\":", error.unix_nanos);
        }
        self.end()
    }

    fn moment(&mut self, moment: &Moment<'_>, place: &str) {
        self.out.push_str("{\"name\":");
        push_name(self.out, moment.name);
        self.out.push_str(",\"attributes\":");
        self.object(moment.attributes, Some(moment.unix_millis), place);
        self.out.push('}');
    }

    fn stamp(&mut self, stamp: Stamp) {
        self.out.push_str(",\"count\":");
        push_u64(self.out, stamp.count);
        self.number(",\"pid\":", i64::from(stamp.pid));
    }

    /// `name` is the comma, the quoted name and the colon.
    fn number(&mut self, name: &str, value: i64) {
        self.out.push_str(name);
        push_i64(self.out, value);
    }

    fn end(self) -> u32 {
        if self.keys == Keys::All {
            if self.dropped_attributes > 0 {
                self.out.push_str(",\"dropped_attributes\":");
                push_u64(self.out, u64::from(self.dropped_attributes));
            }
            // Names of attributes are as long as their writer wants: what does not fit is not told, and its values are words.
            let mut first = true;
            for place in &self.non_finite {
                if self.out.len() - self.begin + place.len() * 6 > MAX_RECORD_BYTES - 64 {
                    continue;
                }
                self.out
                    .push_str(if first { ",\"non_finite\":[" } else { "," });
                first = false;
                write_string(self.out, place);
            }
            self.out.push_str(if first { "" } else { "]" });
        }
        self.out.push_str("}\n");
        self.dropped_attributes
    }

    /// Writes what fits; whether that was anything. `millis` is `timestamp_msec`, which is at the place of one that was given.
    fn object(&mut self, object: &Object, millis: Option<i64>, place: &str) -> bool {
        const MILLIS: &str = "timestamp_msec";
        let mut said_millis = millis.is_none();
        let mut first = true;
        self.out.push('{');
        for (name, value) in object.iter() {
            let before = self.out.len();
            if !first {
                self.out.push(',');
            }
            let fits = match millis {
                Some(millis) if name == MILLIS => {
                    said_millis = true;
                    self.number("\"timestamp_msec\":", millis);
                    true
                }
                _ => self.pair(name, value, place),
            };
            if fits {
                first = false;
            } else {
                self.out.truncate(before);
                self.dropped_attributes += 1;
            }
        }
        if let Some(millis) = millis.filter(|_| !said_millis) {
            let name = if first {
                "\"timestamp_msec\":"
            } else {
                ",\"timestamp_msec\":"
            };
            self.number(name, millis);
            first = false;
        }
        self.out.push('}');
        !first
    }

    /// Whether it fits; if not, a part of it may have been written.
    fn pair(&mut self, name: &str, value: &Value, place: &str) -> bool {
        let limit = self.begin + MAX_RECORD_BYTES - REST_BYTES;
        if self.out.len().saturating_add(name.len()) > limit {
            return false;
        }
        write_string(self.out, name);
        self.out.push(':');
        let mut value_writer = ValueWriter {
            out: self.out,
            limit,
            literals: self.keys == Keys::OneLogger,
            non_finite: false,
        };
        if !value_writer.write(value) {
            return false;
        }
        if value_writer.non_finite && self.keys == Keys::All {
            self.non_finite.push(match place {
                "attributes" => format!("attributes.{name}"),
                _ => format!("{place}.attributes.{name}"),
            });
        }
        true
    }
}

struct ValueWriter<'o> {
    out: &'o mut String,
    limit: usize,
    /// Non-finite doubles as bare words.
    literals: bool,
    non_finite: bool,
}

impl ValueWriter<'_> {
    /// `false` as soon as it is too long.
    fn write(&mut self, value: &Value) -> bool {
        const COMPACT: Style = Style {
            sorted: false,
            layout: Layout::Compact,
        };
        match value {
            Value::Float(x) if !x.is_finite() && !self.literals => {
                self.non_finite = true;
                self.out.push_str(match () {
                    () if x.is_nan() => "\"NaN\"",
                    () if *x > 0.0 => "\"Infinity\"",
                    () => "\"-Infinity\"",
                });
            }
            Value::String(text) => {
                if self.out.len().saturating_add(text.len()) > self.limit {
                    return false;
                }
                write_string(self.out, text);
            }
            Value::Int(n) => match n.to_i64() {
                Some(n) => push_i64(self.out, n),
                None => open_json::write(self.out, value, COMPACT),
            },
            Value::Array(items) => {
                self.out.push('[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        self.out.push(',');
                    }
                    if !self.write(item) {
                        return false;
                    }
                }
                self.out.push(']');
            }
            Value::Object(object) => {
                self.out.push('{');
                for (i, (name, item)) in object.iter().enumerate() {
                    if i > 0 {
                        self.out.push(',');
                    }
                    if self.out.len().saturating_add(name.len()) > self.limit {
                        return false;
                    }
                    write_string(self.out, name);
                    self.out.push(':');
                    if !self.write(item) {
                        return false;
                    }
                }
                self.out.push('}');
            }
            other => open_json::write(self.out, other, COMPACT),
        }
        self.out.len() <= self.limit
    }
}

fn push_name(out: &mut String, name: &str) {
    write_string(out, start_of(name, MAX_NAME_BYTES));
}

fn push_uuid(out: &mut String, id: SpanId) {
    let mut text = [b'-'; 38];
    (text[0], text[37]) = (b'"', b'"');
    let bits = id.to_bits();
    for (at, from, digits) in [
        (96, 1, 8),
        (80, 10, 4),
        (64, 15, 4),
        (48, 20, 4),
        (0, 25, 12),
    ] {
        hex(&mut text[from..from + digits], bits >> at);
    }
    push_ascii(out, &text);
}

/// The lowest `digits` of `bits`, 32 at most.
fn push_hex(out: &mut String, bits: u128, digits: usize) {
    let mut text = [0; 32];
    hex(&mut text[..digits], bits);
    push_ascii(out, &text[..digits]);
}

/// As many of the lowest digits as there is room for.
fn hex(text: &mut [u8], mut bits: u128) {
    for digit in text.iter_mut().rev() {
        *digit = b"0123456789abcdef"[bits as usize & 0xf];
        bits >>= 4;
    }
}

/// What was made of ASCII here.
fn push_ascii(out: &mut String, text: &[u8]) {
    out.push_str(std::str::from_utf8(text).unwrap_or_default());
}

fn push_i64(out: &mut String, value: i64) {
    if value < 0 {
        out.push('-');
    }
    push_u64(out, value.unsigned_abs());
}

fn push_u64(out: &mut String, mut value: u64) {
    // As many digits as the largest has.
    let mut digits = [b'0'; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    push_ascii(out, &digits[at..]);
}
