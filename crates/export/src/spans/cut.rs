//! Making a span that is too large small enough: a 1 GB attribute must cost neither the collector nor the spans beside it.

use std::mem::take;

use warptrace_formats::otlp::{event_bytes, size_bytes, value_bytes};
use warptrace_model::{Object, SpanRecord, Value};

use crate::start_of;

/// Set on a span that was cut: the bytes that it lost, roughly.
const CUT: &str = "warptrace.export.cut_bytes";
/// What that attribute itself takes, at most.
const CUT_BYTES: usize = 100;

/// The smallest limit that is kept; below it there is no room for a name and a few attributes.
pub(super) const LEAST_LIMIT_BYTES: usize = 4096;

/// What no value is cut below: as much as any scalar takes.
const FLOOR_BYTES: usize = 48;
/// What a value takes beside its text or its items.
const VALUE_BYTES: usize = 24;
/// What an attribute takes beside its key and its value.
const PAIR_BYTES: usize = 16;

/// Cuts `record`, which is larger than `limit`, to at most `limit` bytes by the count of [`size_bytes`], and says so in an
/// attribute.
///
/// Of values the largest are cut, all to one level: text and lists lose their end, objects their last keys. Where there are
/// just too many attributes or events, the last ones go, and a name or an error of more than an eighth of the limit loses its
/// end.
pub(super) fn cut(record: &mut SpanRecord, limit: usize) {
    let limit = limit.max(LEAST_LIMIT_BYTES);
    let before = size_bytes(record);
    record.name = shortened(take(&mut record.name), limit / 8);
    record.error = record.error.take().map(|text| shortened(text, limit / 8));
    // With their values cut as far as they may be, attributes and events take a quarter each, so that all of them fit.
    keep_first_attributes(&mut record.attributes, limit / 4);
    keep_first_events(record, limit / 4);

    let size = size_bytes(record);
    let mut objects: Vec<&mut Object> = vec![&mut record.attributes];
    objects.extend(record.events.iter_mut().map(|event| &mut event.attributes));
    let values = objects
        .iter()
        .flat_map(|object| object.iter().map(|(_, value)| value_bytes(value)));
    let values: Vec<usize> = values.collect();
    let beside = size - values.iter().sum::<usize>() + CUT_BYTES;
    let level = level(values, limit.saturating_sub(beside));
    for (_, value) in objects.into_iter().flat_map(Object::iter_mut) {
        shorten(value, level);
    }
    let lost = before.saturating_sub(size_bytes(record));
    record
        .attributes
        .insert(CUT, i64::try_from(lost).unwrap_or(i64::MAX));
}

/// Bytes of an attribute whose value is cut as far as it may be.
fn least_bytes(key: &str, value: &Value) -> usize {
    PAIR_BYTES + key.len() + value_bytes(value).min(FLOOR_BYTES)
}

fn keep_first_attributes(attributes: &mut Object, budget: usize) {
    let mut left = budget;
    let fitting = attributes.iter().take_while(|(key, value)| {
        let needs = least_bytes(key, value);
        let fits = needs <= left;
        left = left.saturating_sub(needs);
        fits
    });
    let fitting = fitting.count();
    if fitting < attributes.len() {
        let kept = attributes.iter_mut().take(fitting);
        let kept = kept.map(|(key, value)| (key.into(), take(value)));
        *attributes = Object::from_pairs(kept.collect());
    }
}

fn keep_first_events(record: &mut SpanRecord, budget: usize) {
    let mut left = budget;
    let fitting = record.events.iter().take_while(|event| {
        let cuttable = event.attributes.iter().map(|(key, value)| {
            PAIR_BYTES + key.len() + value_bytes(value) - least_bytes(key, value)
        });
        let needs = event_bytes(event) - cuttable.sum::<usize>();
        let fits = needs <= left;
        left = left.saturating_sub(needs);
        fits
    });
    let fitting = fitting.count();
    let gone = u32::try_from(record.events.len() - fitting).unwrap_or(u32::MAX);
    record.dropped_events = record.dropped_events.saturating_add(gone);
    record.events.truncate(fitting);
}

/// The size to which all larger values are to be cut, so that `sizes` come to `budget` at most.
fn level(mut sizes: Vec<usize>, budget: usize) -> usize {
    sizes.sort_unstable();
    let mut left = budget;
    for (at, size) in sizes.iter().enumerate() {
        let share = left / (sizes.len() - at);
        if *size > share {
            return share.max(FLOOR_BYTES);
        }
        left -= size;
    }
    usize::MAX
}

/// Cuts `value` to `limit` bytes, if it is larger; a scalar stays.
fn shorten(value: &mut Value, limit: usize) {
    if value_bytes(value) <= limit {
        return;
    }
    let inside = limit.saturating_sub(VALUE_BYTES);
    match value {
        Value::Null | Value::Bool(_) | Value::Float(_) => {}
        // Beyond 64 bits, and so text in the end.
        Value::Int(n) => *value = Value::String(shortened(n.to_string().into(), inside)),
        Value::String(text) => *text = shortened(take(text), inside),
        Value::Array(items) => {
            let mut left = inside;
            let too_many = items.iter_mut().position(|item| {
                shorten(item, left);
                !fits(value_bytes(item), &mut left)
            });
            items.truncate(too_many.unwrap_or(items.len()));
        }
        Value::Object(object) => {
            let mut left = inside;
            let mut kept = Vec::new();
            for (key, value) in object.iter_mut() {
                let beside = PAIR_BYTES + key.len();
                shorten(value, left.saturating_sub(beside));
                if !fits(beside + value_bytes(value), &mut left) {
                    break;
                }
                kept.push((key.into(), take(value)));
            }
            *object = Object::from_pairs(kept);
        }
    }
}

/// Takes `needs` from `left`, if there is that much.
fn fits(needs: usize, left: &mut usize) -> bool {
    let rest = left.checked_sub(needs);
    *left = rest.unwrap_or(0);
    rest.is_some()
}

fn shortened(text: Box<str>, limit: usize) -> Box<str> {
    match text.len() <= limit {
        true => text,
        false => start_of(&text, limit).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use warptrace_model::{Int, SpanEvent, SpanId, UnixNanos};

    use super::*;

    fn record(attributes: Vec<(&str, Value)>) -> SpanRecord {
        let pairs = attributes.into_iter().map(|(k, v)| (k.into(), v));
        SpanRecord {
            trace: 1,
            id: SpanId::from_bits(1),
            parent: None,
            name: "step".into(),
            start: UnixNanos(1),
            end: Some(UnixNanos(2)),
            attributes: Object::from_pairs(pairs.collect()),
            events: Vec::new(),
            dropped_events: 0,
            error: None,
        }
    }

    fn cut_to(mut record: SpanRecord, limit: usize) -> SpanRecord {
        cut(&mut record, limit);
        assert!(size_bytes(&record) <= limit, "{}", size_bytes(&record));
        record
    }

    #[test]
    fn only_the_largest_values_are_cut_and_the_span_says_how_much() {
        let long = |bytes: usize| Value::from("é".repeat(bytes / 2));
        let cut = cut_to(
            record(vec![
                ("huge", long(1 << 20)),
                ("large", long(100_000)),
                ("small", 7.into()),
                ("short", "ok".into()),
            ]),
            8192,
        );
        let len = |key| cut.attributes.get(key).unwrap().as_str().unwrap().len();
        assert!(len("huge") > 3000 && len("huge").abs_diff(len("large")) < 4);
        assert_eq!(cut.attributes.get("small"), Some(&7.into()));
        assert_eq!(cut.attributes.get("short"), Some(&"ok".into()));
        let lost = cut.attributes.get(CUT).unwrap().as_int().unwrap();
        assert!(*lost > (1 << 20) + 90_000 && *lost < (1 << 20) + 110_000);
    }

    #[test]
    fn of_too_many_attributes_and_events_the_first_are_kept_and_lost_events_counted() {
        let keys: Vec<String> = (0..100_000).map(|i| format!("key{i}")).collect();
        let mut large = record(keys.iter().map(|k| (k.as_str(), 1.into())).collect());
        let event = SpanEvent {
            name: "e".into(),
            at: UnixNanos(1),
            attributes: record(vec![("k", "v".repeat(500).into())]).attributes,
        };
        large.events = vec![event; 10_000];
        large.name = "n".repeat(100_000).into();
        large.error = Some("e".repeat(100_000).into());
        let cut = cut_to(large, 64 << 10);
        assert!(cut.attributes.contains("key0") && cut.attributes.len() > 100);
        assert!(cut.events.len() > 50);
        assert_eq!(cut.events.len() + cut.dropped_events as usize, 10_000);
        assert_eq!(cut.name.len(), 8192);
        assert_eq!(cut.error.unwrap().len(), 8192);
    }

    #[test]
    fn lists_and_objects_keep_their_beginning() {
        let inner = record(vec![("a", 1.into()), ("blob", "x".repeat(1 << 20).into())]);
        let cut = cut_to(
            record(vec![
                ("list", Value::Array(vec![1.into(); 100_000])),
                ("object", Value::Object(inner.attributes)),
                (
                    "digits",
                    Value::Int(Int::parse(&"9".repeat(10_000)).unwrap()),
                ),
            ]),
            6000,
        );
        let list = cut.attributes.get("list").unwrap().as_array().unwrap();
        assert!(list.len() > 20 && list.iter().all(|item| *item == 1.into()));
        let object = cut.attributes.get("object").unwrap().as_object().unwrap();
        assert_eq!(object.get("a"), Some(&1.into()));
        assert!(object.get("blob").unwrap().as_str().unwrap().len() > 1000);
        let digits = cut.attributes.get("digits").unwrap().as_str().unwrap();
        assert!(digits.len() > 1000 && digits.bytes().all(|b| b == b'9'));
    }

    proptest! {
        #[test]
        fn whatever_is_too_large_fits_afterwards(
            limit in LEAST_LIMIT_BYTES..20_000_usize,
            texts in prop::collection::vec((".{0,40}", 0..30_000_usize), 0..60),
            events in prop::collection::vec((".{0,200}", 0..9_000_usize), 0..40),
            name in 0..20_000_usize,
        ) {
            let mut large = record(Vec::new());
            for (key, bytes) in texts {
                large.attributes.insert(&key, "é".repeat(bytes));
            }
            large.events.extend(events.into_iter().map(|(key, bytes)| SpanEvent {
                name: key.as_str().into(),
                at: UnixNanos(1),
                attributes: record(vec![(&key, "v".repeat(bytes).into())]).attributes,
            }));
            large.name = "n".repeat(name).into();
            if size_bytes(&large) > limit {
                cut_to(large, limit);
            }
        }
    }
}
