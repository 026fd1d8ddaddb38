//! Lines as writers spell them nearly always, read in one pass: compact JSON, ASCII, without escapes, with no member but ours and
//! no value that is null or negative.
//!
//! It decides nothing: for a line that it knows it says what [`Draft::decode`] says, for any other nothing at all. Cost: with
//! the checks that follow, two fifths of the general decoder's (`bench --bin annotation_socket`).

use std::borrow::Cow;

use super::line::Draft;

/// Pairs of a usual line.
const USUAL_LABELS: usize = 4;

/// The line's content, if it is spelled in the usual way.
pub(super) fn decode(line: &[u8]) -> Option<Draft<'_>> {
    if !line.is_ascii() {
        return None;
    }
    let mut at = Cursor {
        rest: std::str::from_utf8(line).ok()?,
    };
    let mut draft = Draft::default();
    at.take(b'{')?;
    loop {
        let name = at.string()?;
        at.take(b':')?;
        match name {
            "labels" => at.labels(&mut draft.labels)?,
            "pid" => draft.pid = u32::try_from(at.natural()?).ok()?,
            "ts" => draft.ts = at.signed()?,
            "span_start" => draft.span_start = at.signed()?,
            "span_end" => draft.span_end = at.signed()?,
            "start_time" => draft.start_time = at.natural()?,
            _ => return None,
        }
        match at.byte()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    at.rest.is_empty().then_some(draft)
}

/// What has not been read of an ASCII text.
struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn byte(&mut self) -> Option<u8> {
        let first = *self.rest.as_bytes().first()?;
        self.rest = self.rest.get(1..)?;
        Some(first)
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.byte()? == byte).then_some(())
    }

    /// A string without escapes.
    #[inline]
    fn string(&mut self) -> Option<&'a str> {
        self.take(b'"')?;
        let bytes = self.rest.as_bytes();
        let end = bytes
            .iter()
            .position(|&b| b == b'"' || b == b'\\' || b < b' ')?;
        if bytes[end] != b'"' {
            return None;
        }
        let text = self.rest.get(..end)?;
        self.rest = self.rest.get(end + 1..)?;
        Some(text)
    }

    /// Digits, as many as surely fit.
    #[inline]
    fn natural(&mut self) -> Option<u64> {
        let bytes = self.rest.as_bytes();
        let (mut value, mut len) = (0u64, 0);
        while let Some(digit) = bytes.get(len).map(|b| b.wrapping_sub(b'0'))
            && digit < 10
        {
            value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
            len += 1;
        }
        if len == 0 || len > 19 || (bytes[0] == b'0' && len > 1) {
            return None;
        }
        self.rest = self.rest.get(len..)?;
        Some(value)
    }

    fn signed(&mut self) -> Option<i64> {
        i64::try_from(self.natural()?).ok()
    }

    fn labels(&mut self, into: &mut Vec<(Cow<'a, str>, Cow<'a, str>)>) -> Option<()> {
        self.take(b'{')?;
        into.reserve(USUAL_LABELS);
        loop {
            let key = self.string()?;
            self.take(b':')?;
            into.push((Cow::Borrowed(key), Cow::Borrowed(self.string()?)));
            match self.byte()? {
                b',' => {}
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn usual_lines_are_known() {
        for line in [
            r#"{"labels":{"epoch":"1","phase":"train","step":"41"},"pid":7,"ts":1700000000000000000}"#,
            r#"{"labels":{"a":"1"},"pid":0,"span_end":9,"span_start":1,"start_time":9999999999999999999}"#,
            r#"{"labels":{"a":""},"labels":{"b":"x/y"}}"#,
            r#"{"ts":5}"#,
        ] {
            let draft = decode(line.as_bytes());
            assert_eq!(draft, Draft::decode_any(line.as_bytes()).ok(), "{line}");
            assert!(draft.is_some(), "{line}");
        }
    }

    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => prop::sample::select(vec![
                "{", "}", "\"", ":", ",", " ", "\\", "\\u0041", "null", "true", "-", "-0", "0", "01", "[", "]", "\u{e9}", "\u{7f}",
                "\t", ".5", "e3", "\"labels\":", "\"pid\":", "\"ts\":", "\"PID\":", "\"v\":1", "\"span_start\":", "\"k\":\"v\"",
                "4294967295", "4294967296", "9223372036854775807", "9223372036854775808", "18446744073709551615",
                "18446744073709551616", "99999999999999999999", "{\"labels\":{\"a\":\"b\"", "{}", "{\"a\":\"b\"}",
            ]).prop_map(str::to_owned),
            1 => "[ -~]{0,8}",
        ]
    }

    /// A line that is nearly a usual one.
    fn nearly() -> impl Strategy<Value = String> {
        let member = prop_oneof![
            "[a-z]{1,3}".prop_map(|v| format!(r#""labels":{{"k":"{v}","l":"{v}"}}"#)),
            any::<u64>().prop_map(|n| format!(r#""ts":{n}"#)),
            any::<u32>().prop_map(|n| format!(r#""pid":{n}"#)),
            any::<u64>().prop_map(|n| format!(r#""start_time":{n}"#)),
            piece(),
        ];
        let members = prop::collection::vec(member, 0..5).prop_map(|m| m.join(","));
        (members, any::<prop::sample::Index>(), piece(), 0..3u8).prop_map(
            |(members, at, piece, change)| {
                let line = format!("{{{members}}}");
                let at = at.index(line.len() + 1);
                if change > 0 || !line.is_char_boundary(at) {
                    return line;
                }
                [&line[..at], &piece, &line[at..]].concat()
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]
        #[test]
        fn what_is_known_is_what_the_general_decoder_says(
            line in prop_oneof![nearly(), prop::collection::vec(piece(), 0..12).prop_map(|p| p.concat())]
        ) {
            if let Some(draft) = decode(line.as_bytes()) {
                prop_assert_eq!(Ok(draft), Draft::decode_any(line.as_bytes()), "{}", line);
            }
        }
    }
}
