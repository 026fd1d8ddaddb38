//! What a line says.
//!
//! The rules for odd JSON are those of the agent that existing writers were made for (v0.17, Go's `encoding/json`): names of
//! members match without regard to case, and with the long s for an s; of equal members the last one that is not null wins;
//! `labels` objects add up, and a null clears them; integers are plain integers; what is no character becomes U+FFFD. A
//! fault of syntax anywhere comes before a fault of type.

use std::borrow::Cow;

use warptrace_model::{
    Annotation, BootNanos, ClockAnchor, Incarnation, Labels, Sender, UnixNanos, Window,
};

use super::{Refusal, plain};
use crate::json::{Invalid, Number, Options, Reader, Str, Token};

/// As deep as the existing agent goes. A line is 16 KiB at most, so this is a rule, not a bound on work.
const OPTIONS: Options = Options {
    max_depth: 10_000,
    non_finite: false,
    check_utf8: false,
};

/// What a line says, once its limits have been checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Line {
    pub labels: Labels,
    /// When, Unix nanoseconds, also before 1970; `None`: when it is received. A decoder never gives `Some(0)`.
    pub ts: Option<i64>,
    /// The process, in its sender's pid namespace; `None`: no process in particular. A decoder never gives `Some(0)`.
    pub pid: Option<u32>,
    /// The start time that the sender claims for it, clock ticks since boot.
    pub start_time: Option<u64>,
    /// First and last Unix nanosecond of the span, neither of them 0, unless it is an instant.
    pub span: Option<(i64, i64)>,
}

impl Line {
    /// Decodes and checks one line, without its line feed; for those who need not look at the scope in between.
    ///
    /// # Errors
    /// The first refusal, by the order of [`Draft`].
    pub fn decode(line: &[u8]) -> Result<Line, Refusal> {
        if line.len() >= super::MAX_LINE_BYTES {
            return Err(Refusal::LineTooLong);
        }
        Draft::decode(line)?.check()
    }

    /// The same in our words. `received` stands for a time that the line does not give; times before boot become boot.
    ///
    /// Whose it is (`scope`) and who sent it is the caller's to say: the line can only claim.
    pub fn into_annotation(
        self,
        received: BootNanos,
        anchor: &ClockAnchor,
        scope: Option<Incarnation>,
        sender: Option<Sender>,
    ) -> Annotation {
        let boot = |unix: i64| anchor.boot(UnixNanos(u64::try_from(unix).unwrap_or(0)));
        Annotation {
            at: self.ts.map_or(received, boot),
            span: self.span.map(|(start, end)| Window {
                start: boot(start),
                end: boot(end),
            }),
            scope,
            labels: self.labels,
            sender,
        }
    }
}

/// A decoded line whose labels and span nobody has judged yet. Scope comes between the two: [`super::check_scope`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Draft<'a> {
    pub(super) labels: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    pub(super) ts: i64,
    pub(super) pid: u32,
    pub(super) start_time: u64,
    pub(super) span_start: i64,
    pub(super) span_end: i64,
}

/// A member that has a meaning.
#[derive(Clone, Copy)]
enum Member {
    Labels,
    Ts,
    Pid,
    StartTime,
    SpanStart,
    SpanEnd,
    /// The protocol's version: an integer, and nothing more.
    Version,
}

impl<'a> Draft<'a> {
    /// Decodes one line, without its line feed and the carriage return before it.
    ///
    /// # Errors
    /// [`Refusal::Syntax`], [`Refusal::Type`].
    pub fn decode(line: &'a [u8]) -> Result<Draft<'a>, Refusal> {
        match plain::decode(line) {
            Some(draft) => Ok(draft),
            None => Draft::decode_any(line),
        }
    }

    /// As [`Draft::decode`], for lines of any spelling.
    pub(super) fn decode_any(line: &'a [u8]) -> Result<Draft<'a>, Refusal> {
        let mut reader = Reader::with_options(line, OPTIONS);
        let mut draft = Draft::default();
        let mut types = Ok(());
        match next(&mut reader)? {
            Token::ObjectStart => draft.members(&mut reader, &mut types)?,
            Token::Null => {}
            _ => {
                reader.skip_to(0).map_err(|_| Refusal::Syntax)?;
                types = Err(Refusal::Type);
            }
        }
        // Nothing may follow.
        reader.next().map_err(|_| Refusal::Syntax)?;
        types.map(|()| draft)
    }

    fn members(
        &mut self,
        reader: &mut Reader<'a>,
        types: &mut Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        while let Token::Key(name) = next(reader)? {
            let Some(member) = Member::of(&name) else {
                reader.skip_value().map_err(|_| Refusal::Syntax)?;
                continue;
            };
            let fits = match (member, next(reader)?) {
                (Member::Labels, Token::Null) => {
                    self.labels.clear();
                    true
                }
                (_, Token::Null) => true,
                (Member::Labels, Token::ObjectStart) => {
                    self.take_labels(reader, types)?;
                    true
                }
                (Member::Ts, Token::Number(n)) => set(&mut self.ts, signed(&n)),
                (Member::Pid, Token::Number(n)) => set(
                    &mut self.pid,
                    n.as_u64().and_then(|n| u32::try_from(n).ok()),
                ),
                (Member::StartTime, Token::Number(n)) => set(&mut self.start_time, n.as_u64()),
                (Member::SpanStart, Token::Number(n)) => set(&mut self.span_start, signed(&n)),
                (Member::SpanEnd, Token::Number(n)) => set(&mut self.span_end, signed(&n)),
                (Member::Version, Token::Number(n)) => signed(&n).is_some(),
                (_, Token::ObjectStart | Token::ArrayStart) => {
                    reader.skip_to(1).map_err(|_| Refusal::Syntax)?;
                    false
                }
                _ => false,
            };
            if !fits {
                *types = Err(Refusal::Type);
            }
        }
        Ok(())
    }

    fn take_labels(
        &mut self,
        reader: &mut Reader<'a>,
        types: &mut Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        while let Token::Key(key) = next(reader)? {
            let value = match next(reader)? {
                Token::String(value) => text(&value),
                Token::Null => Cow::Borrowed(""),
                other => {
                    if matches!(other, Token::ObjectStart | Token::ArrayStart) {
                        reader.skip_to(2).map_err(|_| Refusal::Syntax)?;
                    }
                    *types = Err(Refusal::Type);
                    continue;
                }
            };
            self.labels.push((text(&key), value));
        }
        Ok(())
    }

    /// The process that is claimed, unless the line names none.
    pub fn pid(&self) -> Option<u32> {
        (self.pid != 0).then_some(self.pid)
    }

    /// The start time that is claimed for it, clock ticks since boot.
    pub fn start_time(&self) -> Option<u64> {
        (self.start_time != 0).then_some(self.start_time)
    }

    /// Judges labels, then the span.
    ///
    /// # Errors
    /// What is wrong first: the number of labels, each label, an incomplete span, a reversed one.
    pub fn check(self) -> Result<Line, Refusal> {
        let labels = Labels::from_pairs(&self.labels)?;
        let span = match (self.span_start, self.span_end) {
            (0, 0) => None,
            (0, _) | (_, 0) => return Err(Refusal::SpanIncomplete),
            (start, end) if end < start => return Err(Refusal::SpanReversed),
            span => Some(span),
        };
        Ok(Line {
            labels,
            ts: (self.ts != 0).then_some(self.ts),
            pid: self.pid(),
            start_time: self.start_time(),
            span,
        })
    }
}

/// The next token of a document that has not ended.
fn next<'a>(reader: &mut Reader<'a>) -> Result<Token<'a>, Refusal> {
    match reader.next() {
        Ok(Some(token)) => Ok(token),
        _ => Err(Refusal::Syntax),
    }
}

fn set<T>(field: &mut T, value: Option<T>) -> bool {
    match value {
        Some(value) => {
            *field = value;
            true
        }
        None => false,
    }
}

/// A plain integer. `-0` is 0 here; where only naturals may stand it does not fit.
fn signed(n: &Number<'_>) -> Option<i64> {
    n.as_i64()
}

fn text<'a>(text: &Str<'a>) -> Cow<'a, str> {
    text.decode(Invalid::ReplaceBytes).unwrap_or_default()
}

impl Member {
    const NAMES: [(&'static str, Member); 7] = [
        ("labels", Member::Labels),
        ("pid", Member::Pid),
        ("ts", Member::Ts),
        ("span_start", Member::SpanStart),
        ("span_end", Member::SpanEnd),
        ("start_time", Member::StartTime),
        ("v", Member::Version),
    ];

    fn of(name: &Str<'_>) -> Option<Member> {
        let find = |same: &dyn Fn(&str) -> bool| {
            let names = Member::NAMES.iter();
            names.copied().find(|(n, _)| same(n)).map(|(_, m)| m)
        };
        match name.raw() {
            b"labels" => Some(Member::Labels),
            b"pid" => Some(Member::Pid),
            b"ts" => Some(Member::Ts),
            // The longest name, with every letter an escape.
            raw if raw.len() > 6 * "start_time".len() => None,
            raw if raw.is_ascii() && !name.is_escaped() => {
                find(&|n| raw.eq_ignore_ascii_case(n.as_bytes()))
            }
            _ => {
                let name = text(name);
                find(&|n| folds_to(&name, n))
            }
        }
    }
}

/// Whether `name` is `lower` by Unicode's simple case folding, for a `lower` of ASCII letters that are not k.
fn folds_to(name: &str, lower: &str) -> bool {
    let fold = |c: char| match c {
        'ſ' => 's',
        c => c.to_ascii_lowercase(),
    };
    name.chars().map(fold).eq(lower.chars())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Line, Refusal> {
        Line::decode(text.as_bytes())
    }

    fn labels(text: &str) -> String {
        match line(text) {
            Ok(line) => format!("{:?}", line.labels),
            Err(e) => e.name().to_owned(),
        }
    }

    #[test]
    fn names_of_members_match_whatever_their_case() {
        let all = r#"{"LABELS":{"k":"v"},"Pid":1,"tS":2,"Span_Start":3,"\u0053pan_end":4,"ſtart_time":5,"V":6}"#;
        let line = line(all).unwrap();
        assert_eq!((line.pid, line.ts), (Some(1), Some(2)));
        assert_eq!((line.span, line.start_time), (Some((3, 4)), Some(5)));
        assert_eq!(labels(r#"{"labelſ":{"k":"v"}}"#), r#"{"k": "v"}"#);
        assert_eq!(labels(r#"{"label\u017f":{"k":"v"}}"#), r#"{"k": "v"}"#);
        assert_eq!(labels(r#"{"label":{"k":"v"}}"#), "no_labels");
        assert_eq!(labels(r#"{"labels ":{"k":"v"}}"#), "no_labels");
    }

    #[test]
    fn labels_add_up_and_null_clears_them() {
        let twice = r#"{"labels":{"a":"1","b":"1"},"labels":{"b":"2","c":"3"}}"#;
        assert_eq!(labels(twice), r#"{"a": "1", "b": "2", "c": "3"}"#);
        let cleared = r#"{"labels":{"not a key":"1"},"labels":null,"labels":{"b":"2"}}"#;
        assert_eq!(labels(cleared), r#"{"b": "2"}"#);
        assert_eq!(labels(r#"{"labels":{"a":"1"},"labels":null}"#), "no_labels");
        let mended = format!(r#"{{"labels":{{"a":"{}","a":"ok"}}}}"#, "x".repeat(300));
        assert_eq!(labels(&mended), r#"{"a": "ok"}"#);
        let many: Vec<String> = (0..40).map(|i| format!(r#""k{}":"v""#, i % 32)).collect();
        let many = format!(r#"{{"labels":{{{}}}}}"#, many.join(","));
        assert_eq!(line(&many).map(|l| l.labels.len()), Ok(32));
    }

    #[test]
    fn a_fault_of_syntax_comes_before_a_fault_of_type() {
        assert_eq!(labels(r#"{"labels":{"k":1},"ts":"x""#), "json_syntax");
        assert_eq!(labels(r#"[1,{"labels":2},]"#), "json_syntax");
        assert_eq!(
            labels(r#"{"labels":{"k":{"x":[1]}},"pid":[{}]}"#),
            "json_type"
        );
        assert_eq!(labels(r#"{"v":1.5,"labels":{"k":"v"}}"#), "json_type");
        assert_eq!(
            labels(r#"{"labels":{"k":"v"}} {"labels":{"k":"v"}}"#),
            "json_syntax"
        );
        assert_eq!(labels("\u{feff}{\"labels\":{\"k\":\"v\"}}"), "json_syntax");
    }

    #[test]
    fn integers_are_plain_and_null_leaves_what_was_said() {
        let ts = |v: &str| line(&format!(r#"{{"labels":{{"k":"v"}},"ts":{v}}}"#)).map(|l| l.ts);
        for wrong in ["1.0", "1e3", "\"1\"", "true", "[]", "9223372036854775808"] {
            assert_eq!(ts(wrong), Err(Refusal::Type), "{wrong}");
        }
        for wrong in ["01", "+1", "NaN", "-", "1.", ".5"] {
            assert_eq!(ts(wrong), Err(Refusal::Syntax), "{wrong}");
        }
        assert_eq!(ts("-0"), Ok(None));
        assert_eq!(ts("-9223372036854775808"), Ok(Some(i64::MIN)));
        assert_eq!(ts("5,\"ts\":null"), Ok(Some(5)));
        assert_eq!(ts("5,\"ts\":6"), Ok(Some(6)));
    }

    #[test]
    fn what_is_no_character_is_replaced_byte_by_byte_and_then_judged() {
        let value = b"{\"labels\":{\"k\":\"a\xf0\x9f\x9ab\\ud800\"}}";
        let line = Line::decode(value).unwrap();
        assert_eq!(
            line.labels.get("k"),
            Some("a\u{fffd}\u{fffd}\u{fffd}b\u{fffd}")
        );
        let key = b"{\"labels\":{\"k\xff\":\"a\"}}";
        assert_eq!(Line::decode(key), Err(Refusal::BadKey));
        // 86 bytes that are no characters become 258 bytes of text.
        let long = [b"{\"labels\":{\"k\":\"".as_slice(), &[0xff; 86], b"\"}}"].concat();
        assert_eq!(Line::decode(&long), Err(Refusal::ValueTooLong));
    }

    #[test]
    fn depth_is_bounded_where_the_existing_agent_bounds_it() {
        let nested = |n: usize| {
            let (open, close) = ("[".repeat(n), "]".repeat(n));
            format!(r#"{{"labels":{{"k":"v"}},"x":{open}{close}}}"#)
        };
        assert_eq!(labels(&nested(8_000)), r#"{"k": "v"}"#);
        assert!(Draft::decode(nested(9_999).as_bytes()).is_ok());
        assert_eq!(
            Draft::decode(nested(10_000).as_bytes()).err(),
            Some(Refusal::Syntax)
        );
    }

    #[test]
    fn times_are_converted_and_those_before_boot_are_boot() {
        let anchor = ClockAnchor {
            boot: BootNanos(1_000),
            unix: UnixNanos(1_000_000),
        };
        let at = |text: &str| {
            let line = line(text).unwrap();
            line.into_annotation(BootNanos(7), &anchor, None, None)
        };
        assert_eq!(at(r#"{"labels":{"k":"v"}}"#).at, BootNanos(7));
        assert_eq!(at(r#"{"labels":{"k":"v"},"ts":-5}"#).at, BootNanos(0));
        let span =
            at(r#"{"labels":{"k":"v"},"ts":1000500,"span_start":1000100,"span_end":1000200}"#);
        assert_eq!(span.at, BootNanos(1_500));
        assert_eq!(span.span, Some(Window::at(BootNanos(1_100), 100)));
    }
}
