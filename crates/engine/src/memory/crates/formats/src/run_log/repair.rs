//! What can be saved of a line that is no record: whole records that stand on it one after the other, or behind torn bytes.
//!
//! A writer that is killed in the middle of a write leaves half a record, and the next record is glued to it. That record is
//! whole, and where it begins is sure unless an object may stand there by the grammar: `"extra":{"kind":…` is then either the
//! value of `extra`, or a record behind a torn one. Such bytes are dropped, not guessed at.

use std::ops::Range;

use super::record::Record;
use crate::json::{ErrorKind, Reader, Token};

/// The parts of a line, in order; each byte that is not whitespace is in one of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Repaired {
    /// Whole records.
    pub records: Vec<Range<usize>>,
    /// What is no record.
    pub dropped: Vec<Range<usize>>,
}

/// How many places of a line are tried: what bounds the cost of a hostile one.
const TRIES: usize = 200;

/// Takes a line apart. A record gives itself; a blank line nothing. Cost: in practice two passes, at most 400.
pub fn repair(line: &[u8]) -> Repaired {
    let mut parts = Repaired::default();
    let mut from = 0;
    let mut tries = TRIES;
    while tries > 0 {
        tries -= 1;
        from += whitespace(&line[from..]);
        let rest = &line[from..];
        if rest.is_empty() {
            return parts;
        }
        let bad = match first_value(rest) {
            Ok(end) if Record::parse(&rest[..end]).is_ok() => {
                parts.records.push(from..from + end);
                from += end;
                continue;
            }
            Ok(end) => end,
            Err(bad) => bad,
        };
        // The bytes before `bad` belong to no record. The next one, if its beginning is sure, comes soon after.
        let Some(next) = next_record(rest, bad.saturating_sub(2).max(1), &mut tries) else {
            break;
        };
        drop_part(&mut parts, line, from..from + next);
        from += next;
    }
    if from < line.len() {
        drop_part(&mut parts, line, from..line.len());
    }
    parts
}

/// Where the first value of `text` ends, or where it goes wrong.
fn first_value(text: &[u8]) -> Result<usize, usize> {
    let mut reader = Reader::new(text);
    let object = matches!(reader.next(), Ok(Some(Token::ObjectStart)));
    if !object {
        return Err(0);
    }
    match reader.skip_to(0) {
        Ok(()) => Ok(reader.position()),
        // Wherever a string began that does not end, the break lies behind.
        Err(e) if e.kind == ErrorKind::UnterminatedString => Err(text.len()),
        Err(e) => Err(e.at),
    }
}

/// The first place from `from` on where a whole record begins for sure.
fn next_record(text: &[u8], from: usize, tries: &mut usize) -> Option<usize> {
    const BEGINNING: &[u8] = b"{\"kind\":\"";
    let mut at = from;
    while let Some(found) = find(&text[at.min(text.len())..], BEGINNING) {
        let start = at + found;
        let before = text[..start].iter().rev();
        let before = before.copied().find(|b| !b" \t\r".contains(b));
        let could_be_a_value = matches!(before, Some(b':' | b',' | b'['));
        if !could_be_a_value && first_value(&text[start..]).is_ok() {
            return Some(start);
        }
        *tries = tries.checked_sub(1)?;
        at = start + 1;
    }
    None
}

fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    text.windows(pattern.len()).position(|w| w == pattern)
}

fn whitespace(text: &[u8]) -> usize {
    let blank = |b: &&u8| matches!(**b, b' ' | b'\t' | b'\r');
    text.iter().take_while(blank).count()
}

fn drop_part(parts: &mut Repaired, line: &[u8], range: Range<usize>) {
    if range.len() > whitespace(&line[range.clone()]) {
        parts.dropped.push(range);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(line: &str, records: &[&str], dropped: &[&str]) {
        let parts = repair(line.as_bytes());
        let text = |ranges: &[Range<usize>]| -> Vec<String> {
            let slices = ranges.iter().map(|r| &line.as_bytes()[r.clone()]);
            slices
                .map(|s| String::from_utf8_lossy(s).into_owned())
                .collect()
        };
        assert_eq!(text(&parts.records), records, "records of {line}");
        assert_eq!(text(&parts.dropped), dropped, "dropped of {line}");
    }

    #[test]
    fn whole_records_are_saved_and_the_rest_is_told() {
        let a = r#"{"kind":"eval","t":1,"extra":{"a":[1]}}"#;
        let b = r#"{"kind":"note","text":"x"}"#;
        check(a, &[a], &[]);
        check(" \t\r", &[], &[]);
        check(&format!("{a}{b}"), &[a, b], &[]);
        check(&format!("{a} {b} {a}\r"), &[a, b, a], &[]);
        for torn in [
            "{\"kind\":\"ev",
            "{\"kind\":\"eval\",\"t\":1",
            "{\"kind\":\"eval\",\"t\":1.",
            "{\"kind\":\"eval\",\"x\":tru",
            "{\"kind\":\"eval\",\"x\":\"a\\",
            "{\"kind\":\"eval\",\"x\":\"a\\u00",
            "{\"kind\":\"eval\",\"x\":{\"y\":\"z\"",
            "{\"ki",
            "Segmentation fault (core dumped)",
            "}",
        ] {
            check(&format!("{torn}{b}"), &[b], &[torn]);
            check(&format!("{a}{torn}{b}{a}"), &[a, b, a], &[torn]);
            check(&format!("{b}{torn}"), &[b], &[torn]);
        }
    }

    #[test]
    fn what_may_be_a_value_of_the_torn_record_is_not_guessed_at() {
        let b = r#"{"kind":"note","text":"x"}"#;
        for torn in [
            "{\"kind\":\"eval\",\"extra\":",
            "{\"kind\":\"eval\",\"x\":[1,",
            "{\"a\":[ ",
        ] {
            let line = format!("{torn}{b}");
            check(&line, &[], &[&line]);
        }
    }

    #[test]
    fn a_quoted_record_is_text() {
        let line = r#"{"kind":"note","text":"{\"kind\":\"eval\"}"}"#;
        check(line, &[line], &[]);
        let torn = &line[..line.len() - 3];
        check(torn, &[], &[torn]);
    }

    proptest! {
        #[test]
        fn every_part_is_either_a_record_or_told_as_dropped(
            pieces in prop::collection::vec(prop::sample::select(vec![
                r#"{"kind":"eval","t":1}"#, r#"{"kind":"note","text":"é"}"#, "{\"kind\":\"", "{", "}", "[", "\"", "x", " ", ",", "\\", "1",
            ]), 0..12),
        ) {
            let line = pieces.concat();
            let line = line.as_bytes();
            let parts = repair(line);
            let mut all: Vec<_> = parts.records.iter().chain(&parts.dropped).cloned().collect();
            all.sort_by_key(|r| r.start);
            let mut at = 0;
            for range in all {
                prop_assert!(is_space(&line[at..range.start]) && !range.is_empty());
                at = range.end;
            }
            prop_assert!(is_space(&line[at..]));
            for range in parts.records {
                prop_assert!(Record::parse(&line[range]).is_ok());
            }
        }
    }

    fn is_space(text: &[u8]) -> bool {
        whitespace(text) == text.len()
    }
}
