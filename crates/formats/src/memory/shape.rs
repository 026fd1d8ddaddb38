//! The way in which a writer lays out its records, learnt from one and used for the next.
//!
//! A writer repeats itself: the same keys in the same order, the same host, the same metadata, and only times and counters
//! change. So a line is compared with what is known, byte for byte, and only what differs is read: an identical stretch of
//! metadata is not parsed again, and its events share one value. Whatever does not fit is left to the general way, which
//! alone judges what is an error: a line is taken here only if it would be taken there with the same result.

use std::sync::Arc;

use warptrace_model::number_text::is_blank;
use warptrace_model::{Identity, Int, MemoryEvent, MemoryVersion, Metadata, Object, Value};

use super::capabilities::{self, Present};
use super::open_json::{self, OPTIONS};
use super::record::FIELDS;
use crate::json::{Reader, Token};

/// Layouts, texts of a field and metadata that are remembered.
const SHAPES: usize = 4;
const TEXTS: usize = 8;
const METADATA: usize = 8;
/// Metadata above this is not kept to be compared with.
const MAX_METADATA_BYTES: usize = 64 * 1024;

/// Places of the fields in [`FIELDS`].
const SESSION: usize = 1;
const TIMESTAMP: usize = 2;
const EVENT_TYPE: usize = 3;
const COLLECTOR: usize = 4;
const INTERVAL: usize = 5;
const PID: usize = 6;
const HOST: usize = 7;
const JOB: usize = 8;
const RANK: usize = 9;
const LOCAL_RANK: usize = 10;
const WORLD_SIZE: usize = 11;
const DEVICE: usize = 12;
const ALLOCATED: usize = 13;
const RESERVED: usize = 14;
const ACTIVE: usize = 15;
const INACTIVE: usize = 16;
const CHANGE: usize = 17;
const USED: usize = 18;
const FREE: usize = 19;
const TOTAL: usize = 20;
const CONTEXT: usize = 21;
const METADATA_FIELD: usize = 22;

/// A record's layout: what stands before each value, and after the last.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    said: MemoryVersion,
    parts: Vec<(Box<[u8]>, usize)>,
    end: Box<[u8]>,
}

/// A text as it stood in a record, with its quotes, or `null`.
#[derive(Debug)]
struct KnownText {
    raw: Box<[u8]>,
    text: Option<Arc<str>>,
}

#[derive(Debug)]
struct KnownMetadata {
    raw: Box<[u8]>,
    metadata: Arc<Metadata>,
    /// What inferred capabilities were inferred from; `None` if they were said.
    from: Option<(Arc<str>, Present)>,
}

/// What is known of the records of a file so far. Bounded.
#[derive(Debug, Default)]
pub(super) struct Known {
    shapes: Vec<Shape>,
    texts: [Vec<KnownText>; 23],
    metadata: Vec<KnownMetadata>,
}

/// The values of one record, by their place in [`FIELDS`].
#[derive(Default)]
struct Values {
    numbers: [Option<i64>; 23],
    texts: [Option<Arc<str>>; 23],
}

/// Metadata as it was met: known already, or new with its bytes.
enum Met {
    Known(usize),
    New(Object, std::ops::Range<usize>),
}

impl Known {
    /// The event of a line that is laid out like one before; `None` if it has to be read in the general way.
    pub(super) fn read(&mut self, line: &[u8]) -> Option<MemoryEvent> {
        for at in 0..self.shapes.len() {
            if let Some(event) = self.read_as(at, line) {
                self.shapes[..=at].rotate_right(1);
                return Some(event);
            }
        }
        None
    }

    fn read_as(&mut self, shape: usize, line: &[u8]) -> Option<MemoryEvent> {
        let mut at = 0;
        let mut values = Values::default();
        let mut met = None;
        let Known {
            shapes,
            texts,
            metadata,
        } = self;
        let shape = &shapes[shape];
        for (before, field) in &shape.parts {
            at += line[at..].starts_with(before).then_some(before.len())?;
            let rest = &line[at..];
            match *field {
                SESSION | EVENT_TYPE | COLLECTOR | HOST | JOB | CONTEXT => {
                    let (text, length) = known_text(&mut texts[*field], rest, *field)?;
                    values.texts[*field] = text;
                    at += length;
                }
                METADATA_FIELD => {
                    let known = metadata.iter().position(|k| rest.starts_with(&k.raw));
                    let length = match known {
                        Some(known) => metadata[known].raw.len(),
                        None => {
                            let mut reader = Reader::with_options(rest, OPTIONS);
                            let Value::Object(object) = open_json::read(&mut reader).ok()? else {
                                return None;
                            };
                            let length = reader.position();
                            met = Some(Met::New(object, at..at + length));
                            length
                        }
                    };
                    if let Some(known) = known {
                        met = Some(Met::Known(known));
                    }
                    at += length;
                }
                _ if *field >= ALLOCATED && rest.starts_with(b"null") => at += 4,
                _ => {
                    let (number, length) = small_int(rest)?;
                    values.numbers[*field] = Some(number);
                    at += length;
                }
            }
        }
        if line[at..] != *shape.end {
            return None;
        }
        let said = shape.said;
        let metadata = self.metadata_of(line, met?, &values, said)?;
        event_of(values, said, metadata)
    }

    /// The metadata that was met, and what inference it needs.
    fn metadata_of(
        &mut self,
        line: &[u8],
        met: Met,
        values: &Values,
        said: MemoryVersion,
    ) -> Option<Arc<Metadata>> {
        let present = values.present();
        let collector = values.texts[COLLECTOR].as_ref()?;
        let (mut object, range) = match met {
            Met::Known(at) => {
                let known = &self.metadata[at];
                let fits = match &known.from {
                    None => true,
                    Some((from, counters)) => from == collector && *counters == present,
                };
                // Inferred otherwise: the general way does it, and remembers.
                let metadata = fits.then(|| known.metadata.clone())?;
                self.metadata[..=at].rotate_right(1);
                return Some(metadata);
            }
            Met::New(object, range) => (object, range),
        };
        let inferred = !object.contains(capabilities::KEY);
        if inferred && said == MemoryVersion::V2 {
            return None;
        }
        if inferred {
            capabilities::infer(&mut object, collector, present);
        }
        let metadata = Arc::new(Metadata {
            capabilities: capabilities::check(&object).ok()?,
            values: object,
            inferred,
        });
        self.remember_metadata(&line[range], &metadata, collector, present);
        Some(metadata)
    }

    fn remember_metadata(
        &mut self,
        raw: &[u8],
        metadata: &Arc<Metadata>,
        collector: &Arc<str>,
        present: Present,
    ) {
        if raw.len() > MAX_METADATA_BYTES {
            return;
        }
        self.metadata.truncate(METADATA - 1);
        self.metadata.insert(
            0,
            KnownMetadata {
                raw: raw.into(),
                metadata: metadata.clone(),
                from: metadata.inferred.then(|| (collector.clone(), present)),
            },
        );
    }

    /// Remembers the layout and the metadata of a line that the general way took.
    pub(super) fn learn(&mut self, line: &[u8], event: &MemoryEvent) {
        // A record that left its session to others has an id that depends on more than its layout.
        let Some((shape, metadata)) = layout(line, event) else {
            return;
        };
        if let Some(raw) = metadata {
            self.metadata.retain(|known| *known.raw != *raw);
            let present = present(event);
            self.remember_metadata(raw, &event.metadata, &event.collector, present);
        }
        match self.shapes.iter().position(|known| *known == shape) {
            Some(at) => self.shapes[..=at].rotate_right(1),
            None => {
                self.shapes.truncate(SHAPES - 1);
                self.shapes.insert(0, shape);
            }
        }
    }
}

impl Values {
    fn present(&self) -> Present {
        let has = |field: usize| self.numbers[field].is_some();
        Present {
            allocated: has(ALLOCATED),
            reserved: has(RESERVED),
            active: has(ACTIVE),
            inactive: has(INACTIVE),
            used: has(USED),
            free: has(FREE),
            total: has(TOTAL),
        }
    }
}

fn present(event: &MemoryEvent) -> Present {
    Present {
        allocated: event.allocator_allocated_bytes.is_some(),
        reserved: event.allocator_reserved_bytes.is_some(),
        active: event.allocator_active_bytes.is_some(),
        inactive: event.allocator_inactive_bytes.is_some(),
        used: event.device_used_bytes.is_some(),
        free: event.device_free_bytes.is_some(),
        total: event.device_total_bytes.is_some(),
    }
}

/// The event of values that keep all rules of a record; `None` if they break one.
fn event_of(values: Values, said: MemoryVersion, metadata: Arc<Metadata>) -> Option<MemoryEvent> {
    let n = &values.numbers;
    let least = |field: usize, least: i64| n[field].filter(|value| *value >= least);
    let rank = n[RANK].unwrap_or(0);
    let local_rank = n[LOCAL_RANK].unwrap_or(rank);
    let world_size = n[WORLD_SIZE].unwrap_or(1);
    let in_world = |rank: i64| (0..world_size).contains(&rank);
    let not_negative = [ALLOCATED, RESERVED, ACTIVE, INACTIVE, USED, FREE, TOTAL]
        .iter()
        .all(|field| n[*field].is_none_or(|value| value >= 0));
    let within = |field: usize| n[TOTAL].is_none_or(|total| n[field].is_none_or(|v| v <= total));
    let core = [ALLOCATED, RESERVED, CHANGE, USED]
        .iter()
        .all(|field| said == MemoryVersion::V4 || n[*field].is_some());
    if !in_world(rank) || !in_world(local_rank) || !not_negative || !core {
        return None;
    }
    if !within(USED) || !within(FREE) {
        return None;
    }
    let can = &metadata.capabilities;
    let supported = [
        (ALLOCATED, can.supports_allocator_allocated),
        (RESERVED, can.supports_allocator_reserved),
        (ACTIVE, can.supports_allocator_active),
        (INACTIVE, can.supports_allocator_inactive),
        (CHANGE, can.supports_allocator_allocated),
        (USED, can.supports_device_used),
        (FREE, can.supports_device_free),
        (TOTAL, can.supports_device_total),
    ];
    if supported
        .iter()
        .any(|(field, can)| !can && n[*field].is_some())
    {
        return None;
    }
    let int = |field: usize| n[field].map(Int::new);
    let timestamp_ns = Int::new(least(TIMESTAMP, 0)?);
    let sampling_interval_ms = Int::new(least(INTERVAL, 0)?);
    let pid = Int::new(least(PID, -1)?);
    let device_id = int(DEVICE)?;
    let counters = [
        ALLOCATED, RESERVED, ACTIVE, INACTIVE, CHANGE, USED, FREE, TOTAL,
    ]
    .map(int);
    let [
        allocated,
        reserved,
        active,
        inactive,
        change,
        used,
        free,
        total,
    ] = counters;
    let mut texts = values.texts;
    Some(MemoryEvent {
        said,
        session_id: texts[SESSION].take()?,
        timestamp_ns,
        event_type: texts[EVENT_TYPE].take()?,
        collector: texts[COLLECTOR].take()?,
        sampling_interval_ms,
        pid,
        host: texts[HOST].take()?,
        identity: Identity {
            job_id: texts[JOB].take(),
            rank: Int::new(rank),
            local_rank: Int::new(local_rank),
            world_size: Int::new(world_size),
        },
        device_id,
        allocator_allocated_bytes: allocated,
        allocator_reserved_bytes: reserved,
        allocator_active_bytes: active,
        allocator_inactive_bytes: inactive,
        allocator_change_bytes: change,
        device_used_bytes: used,
        device_free_bytes: free,
        device_total_bytes: total,
        context: texts[CONTEXT].take(),
        metadata,
    })
}

/// A text that was met before, or a plain one: ASCII, without escapes. With the length that it takes.
fn known_text(
    known: &mut Vec<KnownText>,
    rest: &[u8],
    field: usize,
) -> Option<(Option<Arc<str>>, usize)> {
    if let Some(at) = known.iter().position(|k| rest.starts_with(&k.raw)) {
        known[..=at].rotate_right(1);
        return Some((known[0].text.clone(), known[0].raw.len()));
    }
    let (raw, text) = if rest.starts_with(b"null") && (field == JOB || field == CONTEXT) {
        (&rest[..4], None)
    } else {
        let inside = rest.strip_prefix(b"\"")?;
        let length = memchr::memchr(b'"', inside)?;
        let inside = &inside[..length];
        let plain = |b: &u8| matches!(b, b' '..=b'~') && *b != b'\\';
        if !inside.iter().all(plain) {
            return None;
        }
        let text = std::str::from_utf8(inside).ok()?;
        if field != CONTEXT && is_blank(text) {
            return None;
        }
        (&rest[..length + 2], Some(Arc::from(text)))
    };
    known.truncate(TEXTS - 1);
    known.insert(
        0,
        KnownText {
            raw: raw.into(),
            text: text.clone(),
        },
    );
    Some((text, raw.len()))
}

/// An integer that `i64` holds, and its length.
fn small_int(rest: &[u8]) -> Option<(i64, usize)> {
    let negative = rest.first() == Some(&b'-');
    let digits = &rest[usize::from(negative)..];
    let mut value = 0_u64;
    let mut length = 0;
    while let Some(digit) = digits.get(length).map(|b| b.wrapping_sub(b'0'))
        && digit < 10
    {
        // 19 digits fit in u64, whatever they are.
        if length == 19 {
            return None;
        }
        value = value * 10 + u64::from(digit);
        length += 1;
    }
    if length == 0 || (length > 1 && digits[0] == b'0') {
        return None;
    }
    let value = i64::try_from(value).ok()?;
    Some((
        if negative { -value } else { value },
        length + usize::from(negative),
    ))
}

/// The layout of a line and the bytes of its metadata, if events can be read by it.
fn layout<'a>(line: &'a [u8], event: &MemoryEvent) -> Option<(Shape, Option<&'a [u8]>)> {
    if !matches!(event.said, MemoryVersion::V3 | MemoryVersion::V4) {
        return None;
    }
    let mut reader = Reader::with_options(line, OPTIONS);
    reader
        .next()
        .ok()?
        .filter(|token| *token == Token::ObjectStart)?;
    let mut parts = Vec::with_capacity(FIELDS.len());
    let mut metadata = None;
    let mut seen = [false; FIELDS.len()];
    let mut from = 0;
    while let Some(Token::Key(key)) = reader.next().ok()? {
        let field = FIELDS.iter().position(|field| key.is(field))?;
        // Of equal keys the last holds: not for here.
        if std::mem::replace(&mut seen[field], true) {
            return None;
        }
        let value = reader.skip_value().ok()?;
        match field {
            // The same in every record of this layout.
            0 => continue,
            SESSION if line[value.clone()].first() != Some(&b'"') => return None,
            METADATA_FIELD => metadata = Some(&line[value.clone()]),
            _ => {}
        }
        parts.push((line[from..value.start].into(), field));
        from = value.end;
    }
    let complete = seen[SESSION] && reader.next().ok()?.is_none();
    complete.then(|| {
        let shape = Shape {
            said: event.said,
            parts,
            end: line[from..].into(),
        };
        (shape, metadata)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Upgrade;

    const LINE: &str = r#"{"schema_version": 4, "session_id": "s", "timestamp_ns": 1700000000000000000, "event_type": "sample", "collector": "c", "sampling_interval_ms": 100, "pid": 1, "host": "h", "job_id": null, "rank": 0, "device_id": 0, "allocator_allocated_bytes": 5, "allocator_reserved_bytes": 6, "allocator_active_bytes": null, "allocator_inactive_bytes": null, "allocator_change_bytes": -1, "device_used_bytes": 6, "device_free_bytes": null, "device_total_bytes": 9, "context": "x", "metadata": {}}"#;

    fn general(line: &str) -> Option<MemoryEvent> {
        Upgrade::default()
            .event(open_json::parse(line.as_bytes()).ok()?)
            .ok()
    }

    fn said(line: &str) -> String {
        let event = general(line).unwrap();
        let record = crate::memory::record(&event, crate::memory::Version::V4).unwrap();
        open_json::to_string(&Value::Object(record), open_json::Style::LINE)
    }

    #[test]
    fn a_line_that_is_laid_out_like_one_before_is_read_by_comparison_with_the_same_result() {
        let line = said(LINE);
        let mut known = Known::default();
        assert_eq!(known.read(line.as_bytes()), None);
        known.learn(line.as_bytes(), &general(&line).unwrap());
        let taken = [
            line.clone(),
            line.replace("1700000000000000000", "9223372036854775807"),
            line.replace("\"x\"", "null"),
            line.replace("\"sample\"", "\"other\""),
            line.replace(
                "\"allocator_reserved_bytes\": 6",
                "\"allocator_reserved_bytes\": null",
            ),
            line.replace("\"metadata\": {", "\"metadata\": {\"new\": [1.5, {}], "),
            line.replace(
                "\"allocator_change_bytes\": -1",
                "\"allocator_change_bytes\": -0",
            ),
        ];
        for line in taken {
            let event = known.read(line.as_bytes());
            assert!(event.is_some(), "not taken: {line}");
            assert_eq!(event, general(&line), "{line}");
        }
    }

    #[test]
    fn what_breaks_a_rule_is_left_to_the_general_way() {
        let line = said(LINE);
        let mut known = Known::default();
        known.learn(line.as_bytes(), &general(&line).unwrap());
        let left = [
            ("1700000000000000000", "9223372036854775808"),
            ("1700000000000000000", "-1"),
            ("1700000000000000000", "01"),
            ("1700000000000000000", "1.0"),
            ("\"h\"", "\" \""),
            ("\"h\"", "\"\\u0068\""),
            ("\"h\"", "\"é\""),
            ("\"h\"", "null"),
            ("\"pid\": 1", "\"pid\": -2"),
            ("\"pid\": 1", "\"pid\": null"),
            ("\"rank\": 0", "\"rank\": 1"),
            ("\"device_used_bytes\": 6", "\"device_used_bytes\": 10"),
            ("\"device_free_bytes\": null", "\"device_free_bytes\": 1"),
            (
                "\"supports_device_used\": true",
                "\"supports_device_used\": false",
            ),
            ("\"schema_version\": 4", "\"schema_version\": 3"),
            ("\"host\"", "\"hast\""),
            ("\"world_size\": 1}", "\"world_size\": 1} x"),
            ("\"metadata\": {", "\"metadata\": {\"a\" 1, "),
        ];
        for (from, to) in left {
            let changed = line.replace(from, to);
            assert_ne!(changed, line, "{from}");
            assert_eq!(known.read(changed.as_bytes()), None, "{from} → {to}");
        }
    }

    #[test]
    fn inferred_capabilities_are_shared_only_by_records_with_the_same_counters() {
        let mut known = Known::default();
        let v3 = LINE.replace("\"schema_version\": 4", "\"schema_version\": 3");
        known.learn(v3.as_bytes(), &general(&v3).unwrap());
        assert_eq!(known.read(v3.as_bytes()), general(&v3));
        let without = v3.replace("\"device_total_bytes\": 9", "\"device_total_bytes\": null");
        assert_eq!(known.read(without.as_bytes()), None);
        let other = v3.replace("\"collector\": \"c\"", "\"collector\": \"jax\"");
        assert_eq!(known.read(other.as_bytes()), None);
    }
}
