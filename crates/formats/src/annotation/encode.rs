//! Lines as the Python package writes them, byte for byte: compact, members and labels in order of name, ASCII only.

use warptrace_model::Labels;
use warptrace_model::number_text::Decimal;

use super::{Line, MAX_LINE_BYTES, Refusal};

impl Line {
    /// Appends the line, with its line feed. What is `None` is left out; a 0 is written, and means the same to a reader.
    ///
    /// # Errors
    /// [`Refusal::NoLabels`]; [`Refusal::SpanIncomplete`] for an end that is 0, [`Refusal::SpanReversed`];
    /// [`Refusal::LineTooLong`], since a character outside ASCII takes six or twelve bytes. `out` is then as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), Refusal> {
        if self.labels.is_empty() {
            return Err(Refusal::NoLabels);
        }
        let start = out.len();
        out.extend_from_slice(b"{\"labels\":");
        object(out, &self.labels, |out, value| {
            // Nearly all values are plain, and go as they are.
            let plain = |b: u8| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\';
            if value.bytes().all(plain) {
                return out.extend_from_slice(value.as_bytes());
            }
            for c in value.chars() {
                match c {
                    '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
                    ' '..='~' => out.push(c as u8),
                    _ => escape_utf16(out, c),
                }
            }
        });
        if let Some(pid) = self.pid {
            member(out, ",\"pid\":", pid);
        }
        if let Some((span_start, span_end)) = self.span {
            let wrong = match (span_start, span_end) {
                (0, _) | (_, 0) => Some(Refusal::SpanIncomplete),
                (start, end) if end < start => Some(Refusal::SpanReversed),
                _ => None,
            };
            if let Some(wrong) = wrong {
                out.truncate(start);
                return Err(wrong);
            }
            member(out, ",\"span_end\":", span_end);
            member(out, ",\"span_start\":", span_start);
        }
        if let Some(ticks) = self.start_time {
            member(out, ",\"start_time\":", ticks);
        }
        if let Some(ts) = self.ts {
            member(out, ",\"ts\":", ts);
        }
        out.extend_from_slice(b"}\n");
        if out.len() - start > MAX_LINE_BYTES {
            out.truncate(start);
            return Err(Refusal::LineTooLong);
        }
        Ok(())
    }
}

/// `name` is the comma, the quoted name and the colon.
fn member(out: &mut Vec<u8>, name: &str, value: impl Into<Decimal>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(value.into().as_str().as_bytes());
}

/// Labels as the existing agent stores them (the column `labels` of its database): a JSON object, names in order, with `<`,
/// `>`, `&`, U+2028 and U+2029 escaped, and other characters as they are.
pub fn encode_labels(labels: &Labels) -> String {
    let mut out = Vec::new();
    object(&mut out, labels, |out, value| {
        for c in value.chars() {
            match c {
                '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
                '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => escape_utf16(out, c),
                _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    });
    String::from_utf8(out).expect("made of characters")
}

/// An object of labels. Names need no escapes; `value` appends what stands between a value's quotes.
fn object(out: &mut Vec<u8>, labels: &Labels, value: impl Fn(&mut Vec<u8>, &str)) {
    out.push(b'{');
    for (i, (key, text)) in labels.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.push(b'"');
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(b"\":\"");
        value(out, text);
        out.push(b'"');
    }
    out.push(b'}');
}

fn escape_utf16(out: &mut Vec<u8>, c: char) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        out.extend_from_slice(b"\\u");
        for shift in [12, 8, 4, 0] {
            out.push(b"0123456789abcdef"[usize::from(*unit >> shift & 15)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::annotation::Draft;

    #[test]
    fn members_are_in_order_of_name() {
        let line = Line {
            labels: Labels::from_pairs(&[("b", "\"\\/é🚀"), ("a", "")]).unwrap(),
            ts: Some(-5),
            pid: Some(7),
            start_time: Some(u64::MAX),
            span: Some((1, 2)),
        };
        let mut out = b"before".to_vec();
        line.encode(&mut out).unwrap();
        let want = r#"before{"labels":{"a":"","b":"\"\\/\u00e9\ud83d\ude80"},"pid":7,"span_end":2,"span_start":1,"start_time":18446744073709551615,"ts":-5}"#;
        assert_eq!(String::from_utf8(out).unwrap(), format!("{want}\n"));
        assert_eq!(encode_labels(&line.labels), r#"{"a":"","b":"\"\\/é🚀"}"#);
    }

    #[test]
    fn what_a_reader_would_refuse_is_not_written() {
        let labels = Labels::from_pairs(&[("k", "v")]).unwrap();
        let span = |span| {
            let mut out = Vec::new();
            let labels = labels.clone();
            let line = Line {
                labels,
                span,
                ..Line::default()
            };
            (line.encode(&mut out), out.is_empty())
        };
        assert_eq!(span(Some((0, 1))), (Err(Refusal::SpanIncomplete), true));
        assert_eq!(span(Some((2, 1))), (Err(Refusal::SpanReversed), true));
        assert_eq!(span(Some((-2, -2))), (Ok(()), false));
        assert_eq!(
            Line::default().encode(&mut Vec::new()),
            Err(Refusal::NoLabels)
        );
    }

    fn labels() -> impl Strategy<Value = Labels> {
        let value = prop_oneof!["[ -~]{0,40}", "[^\\x00-\\x1f\\x7f]{0,60}"];
        prop::collection::vec(("[A-Za-z0-9_.-]{1,64}", value), 1..=32)
            .prop_map(|pairs| Labels::from_pairs(&pairs).unwrap_or_default())
            .prop_filter("labels", |labels| !labels.is_empty())
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_itself(
            labels in labels(),
            ts in prop::option::of(any::<i64>().prop_filter("0 is none", |t| *t != 0)),
            pid in prop::option::of(1..=u32::MAX),
            start_time in prop::option::of(1..=u64::MAX),
            span in prop::option::of((any::<i64>(), any::<u32>())),
        ) {
            let span = span
                .map(|(start, length)| (start, start.saturating_add(i64::from(length))))
                .filter(|(start, end)| *start != 0 && *end != 0);
            let line = Line { labels, ts, pid, start_time, span };
            let mut out = Vec::new();
            match line.encode(&mut out) {
                Ok(()) => {
                    prop_assert!(out.is_ascii() && out.ends_with(b"\n"));
                    prop_assert_eq!(Line::decode(&out[..out.len() - 1]), Ok(line));
                }
                Err(e) => prop_assert_eq!(e, Refusal::LineTooLong),
            }
        }

        #[test]
        fn the_agent_s_form_of_labels_is_json_that_says_the_same(labels in labels()) {
            let line = format!(r#"{{"labels":{}}}"#, encode_labels(&labels));
            prop_assert_eq!(Draft::decode(line.as_bytes()).unwrap().check().unwrap().labels, labels);
        }
    }
}
