//! What is wrong in a log, by line: bytes that are no record, records that readers disagree about, and runs whose books do not
//! balance.

use std::collections::HashSet;

use super::record::{Kind, Record, is_blank};
use super::repair::repair;
use crate::json::{Invalid, Options, Reader, Token};
use crate::lines::Line;

/// Something wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From 1, as an editor counts.
    pub line: u64,
    pub kind: ProblemKind,
    /// For people; empty when the kind says it all.
    pub detail: String,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProblemKind {
    /// The line is no record, and holds none.
    NoRecord,
    /// Whole records stand on the line, but not alone; readers skip it.
    GluedRecords,
    /// Above the limit; readers may skip it.
    TooLong,
    /// The last line has no line feed: a write that was cut, or is under way.
    TornTail,
    /// A key comes twice in one object. Some readers take the first, most libraries the last.
    RepeatedKey,
    /// No string `kind`.
    NoKind,
    /// `t` is absent, negative or no number.
    NoTime,
    /// A `run_start` of another schema than `toy/v1`.
    OtherSchema,
    /// A request whose completion tokens are absent or no count; it adds 0.
    InvalidTokens,
    /// A request of the shape that was retired in May 2026; readers do not count it.
    RetiredRequest,
    /// The run before this `run_start` has no `run_end`: its server was killed.
    NoRunEnd,
    /// A second `run_end` of one run.
    SecondRunEnd,
    /// A request behind the `run_end` of its run, in whose numbers it is missing.
    AfterRunEnd,
    /// A `run_end` whose numbers are not those of the records before it.
    WrongStats,
}

impl ProblemKind {
    /// All kinds, in the order of their declaration.
    pub const ALL: [ProblemKind; 14] = [
        ProblemKind::NoRecord,
        ProblemKind::GluedRecords,
        ProblemKind::TooLong,
        ProblemKind::TornTail,
        ProblemKind::RepeatedKey,
        ProblemKind::NoKind,
        ProblemKind::NoTime,
        ProblemKind::OtherSchema,
        ProblemKind::InvalidTokens,
        ProblemKind::RetiredRequest,
        ProblemKind::NoRunEnd,
        ProblemKind::SecondRunEnd,
        ProblemKind::AfterRunEnd,
        ProblemKind::WrongStats,
    ];

    /// A short snake_case word.
    pub const fn name(self) -> &'static str {
        match self {
            ProblemKind::NoRecord => "no_record",
            ProblemKind::GluedRecords => "glued_records",
            ProblemKind::TooLong => "too_long",
            ProblemKind::TornTail => "torn_tail",
            ProblemKind::RepeatedKey => "repeated_key",
            ProblemKind::NoKind => "no_kind",
            ProblemKind::NoTime => "no_time",
            ProblemKind::OtherSchema => "other_schema",
            ProblemKind::InvalidTokens => "invalid_tokens",
            ProblemKind::RetiredRequest => "retired_request",
            ProblemKind::NoRunEnd => "no_run_end",
            ProblemKind::SecondRunEnd => "second_run_end",
            ProblemKind::AfterRunEnd => "after_run_end",
            ProblemKind::WrongStats => "wrong_stats",
        }
    }

    /// What it means, for people.
    pub const fn words(self) -> &'static str {
        match self {
            ProblemKind::NoRecord => "not a record",
            ProblemKind::GluedRecords => "records that do not stand alone on their line",
            ProblemKind::TooLong => "longer than readers must take",
            ProblemKind::TornTail => "no line feed at the end",
            ProblemKind::RepeatedKey => "a key comes twice",
            ProblemKind::NoKind => "no kind",
            ProblemKind::NoTime => "t is missing, negative or not a number",
            ProblemKind::OtherSchema => "the schema is not toy/v1",
            ProblemKind::InvalidTokens => "completion_tokens is missing or not a count",
            ProblemKind::RetiredRequest => {
                "a request of a retired shape, which readers do not count"
            }
            ProblemKind::NoRunEnd => "the run before has no run_end",
            ProblemKind::SecondRunEnd => "a second run_end",
            ProblemKind::AfterRunEnd => "a request behind its run's run_end",
            ProblemKind::WrongStats => "run_end does not say what the records before it say",
        }
    }
}

/// Looks at a log line by line.
#[derive(Debug, Clone, Default)]
pub struct Checker {
    /// A `run_start` or any record has been there.
    in_run: bool,
    ended: bool,
    requests: u64,
    errors: u64,
    tokens_out: u64,
}

impl Checker {
    pub fn new() -> Checker {
        Checker::default()
    }

    /// Takes the next line, and calls `each` for everything wrong with it.
    pub fn line(&mut self, line: &Line<'_>, mut each: impl FnMut(Problem)) {
        let mut say = |kind, detail: String| {
            each(Problem {
                line: line.number,
                kind,
                detail,
            });
        };
        if !line.terminated && line.bytes != Some(b"") {
            say(ProblemKind::TornTail, String::new());
        }
        let Some(bytes) = line.bytes else {
            return say(ProblemKind::TooLong, String::new());
        };
        if is_blank(bytes) {
            return;
        }
        match Record::parse(bytes) {
            Ok(record) => self.record(&record, &mut say),
            Err(e) => match repair(bytes).records.len() {
                0 => say(ProblemKind::NoRecord, e.to_string()),
                1 => say(
                    ProblemKind::GluedRecords,
                    "1 record and something else".into(),
                ),
                n => say(ProblemKind::GluedRecords, format!("{n} records")),
            },
        }
    }

    fn record(&mut self, record: &Record<'_>, say: &mut impl FnMut(ProblemKind, String)) {
        if let Some(key) = repeated_key(record.text) {
            say(ProblemKind::RepeatedKey, format!("{key:?}"));
        }
        if record.kind_name.is_none() {
            say(ProblemKind::NoKind, String::new());
        }
        if record.t_secs.is_none() {
            say(ProblemKind::NoTime, String::new());
        }
        match record.kind {
            Kind::RunStart => {
                if self.in_run && !self.ended {
                    say(ProblemKind::NoRunEnd, String::new());
                }
                if !record.schema.is_some_and(|s| s.is("toy/v1")) {
                    let schema = record.schema.and_then(|s| s.decode(Invalid::Replace));
                    say(
                        ProblemKind::OtherSchema,
                        format!("{:?}", schema.unwrap_or_default()),
                    );
                }
                *self = Checker::default();
            }
            Kind::Request | Kind::RequestError => {
                if self.ended {
                    say(ProblemKind::AfterRunEnd, String::new());
                }
                let served = record.kind == Kind::Request;
                if served && record.completion_tokens.is_none() {
                    say(ProblemKind::InvalidTokens, String::new());
                }
                self.requests += u64::from(served);
                self.errors += u64::from(!served);
                let tokens = record.completion_tokens.filter(|_| served);
                self.tokens_out = self.tokens_out.saturating_add(tokens.unwrap_or(0));
            }
            Kind::RetiredRequest => say(ProblemKind::RetiredRequest, String::new()),
            Kind::RunEnd => {
                if std::mem::replace(&mut self.ended, true) {
                    say(ProblemKind::SecondRunEnd, String::new());
                }
                let [requests, errors, tokens_out] = record.stats;
                for (name, said, counted) in [
                    ("requests", requests, self.requests),
                    ("errors", errors, self.errors),
                    ("tokens_out", tokens_out, self.tokens_out),
                ] {
                    if let Some(said) = said.filter(|&said| said != counted) {
                        say(
                            ProblemKind::WrongStats,
                            format!("{name} {said}, not {counted}"),
                        );
                    }
                }
            }
            _ => {}
        }
        self.in_run = true;
    }
}

/// The first key that comes twice in one object, at any level, after unescaping.
fn repeated_key(text: &[u8]) -> Option<String> {
    let mut reader = Reader::with_options(text, Options::default());
    let mut open: Vec<HashSet<std::borrow::Cow<'_, [u8]>>> = Vec::new();
    while let Ok(Some(token)) = reader.next() {
        match token {
            Token::ObjectStart | Token::ArrayStart => open.push(HashSet::new()),
            Token::ObjectEnd | Token::ArrayEnd => {
                open.pop();
            }
            Token::Key(key) if !open.last_mut()?.insert(key.decode_wtf8()) => {
                return Some(key.decode(Invalid::Replace)?.chars().take(40).collect());
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::Lines;

    /// The problems of a log, as `line kind detail`.
    fn problems(log: &str) -> Vec<String> {
        let (mut found, mut checker) = (Vec::new(), Checker::new());
        let mut lines = Lines::new(120);
        let mut check = |line: Line<'_>| {
            checker.line(&line, |p| {
                found.push(format!("{} {} {}", p.line, p.kind.name(), p.detail));
            });
        };
        lines.feed(log.as_bytes(), &mut check);
        lines.finish(&mut check);
        found.iter().map(|s| s.trim_end().to_owned()).collect()
    }

    const START: &str = "{\"kind\":\"run_start\",\"schema\":\"toy/v1\",\"t\":0}\n";

    fn request(t: u32) -> String {
        format!(
            "{{\"kind\":\"eval\",\"phase\":\"serve\",\"t\":{t},\"name\":\"request\",\"extra\":{{\"completion_tokens\":2}}}}\n"
        )
    }

    #[test]
    fn a_log_in_order_has_no_problem() {
        let end = "{\"kind\":\"run_end\",\"t\":2,\"stats\":{\"requests\":1,\"errors\":0,\"tokens_out\":2}}\n";
        let log = [
            START,
            "\n",
            &request(1),
            end,
            START,
            "{\"kind\":\"note\",\"t\":1}\r\n",
        ]
        .concat();
        assert_eq!(problems(&log), [""; 0]);
    }

    #[test]
    fn each_problem_is_told_by_its_line() {
        let log = [
            "{\"kind\":\"run_start\",\"schema\":\"toy/v2\",\"t\":0}\n",
            "oops\n",
            &(request(1).trim_end().to_owned() + "{\"kind\":\"note\",\"t\":1}\n"),
            &("x".repeat(200) + "\n"),
            "{\"kind\":\"note\",\"t\":1,\"a\":{\"b\":1,\"\\u0062\":2}}\n",
            "{\"t\":-1}\n",
            "{\"kind\":\"eval\",\"phase\":\"serve\",\"t\":1,\"name\":\"request\",\"extra\":{}}\n",
            "{\"kind\":\"inference\",\"t\":1}\n",
            START,
            "{\"kind\":\"run_end\",\"t\":1,\"stats\":{\"requests\":7,\"errors\":0}}\n",
            &request(1),
            "{\"kind\":\"run_end\",\"t\":1}\n",
            "{\"kind\":\"no",
        ]
        .concat();
        assert_eq!(
            problems(&log),
            [
                "1 other_schema \"toy/v2\"",
                "2 no_record expected a value at byte 0",
                "3 glued_records 2 records",
                "4 too_long",
                "5 repeated_key \"b\"",
                "6 no_kind",
                "6 no_time",
                "7 invalid_tokens",
                "8 retired_request",
                "9 no_run_end",
                "10 wrong_stats requests 7, not 0",
                "11 after_run_end",
                "12 second_run_end",
                "13 torn_tail",
                "13 no_record string without an end at byte 8",
            ]
        );
    }
}
