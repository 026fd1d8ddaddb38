//! Prometheus' text exposition, read: what inference servers, exporters and proxies serve at `/metrics`.
//!
//! Format 0.0.4, and of OpenMetrics 1.0 what has the same shape: exemplars are skipped, `# EOF` is a comment. Names in quotes, as
//! Prometheus 3 writes those with other characters, are taken too. It neither builds histograms nor knows any metric.
//!
//! The text is somebody else's. A line that cannot be read costs itself alone; nothing is kept but the types of
//! [`MAX_FAMILIES`] families; cost is one pass, and an allocation for a sample's list of labels and for values with escapes. How
//! much text there may be is the caller's to bound.

use std::borrow::Cow;
use std::collections::HashMap;

/// Families whose `# TYPE` is remembered; samples of further ones have no kind.
pub const MAX_FAMILIES: usize = 10_000;
/// A longer line is a bad one.
pub const MAX_LINE_BYTES: usize = 64 << 10;
/// A sample with more is a bad line.
pub const MAX_LABELS: usize = 128;

/// What `# TYPE` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
    Summary,
    /// `untyped`, `unknown`, or another word.
    Unknown,
}

impl Kind {
    fn of(word: &str) -> Kind {
        match word {
            "counter" => Kind::Counter,
            "gauge" => Kind::Gauge,
            "histogram" => Kind::Histogram,
            "summary" => Kind::Summary,
            _ => Kind::Unknown,
        }
    }

    /// Endings of samples that belong to a family of this kind.
    const fn suffixes(self) -> &'static [&'static str] {
        match self {
            Kind::Counter => &["_total", "_created"],
            Kind::Histogram => &["_bucket", "_sum", "_count", "_created"],
            Kind::Summary => &["_sum", "_count", "_created"],
            Kind::Gauge | Kind::Unknown => &[],
        }
    }
}

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<'a> {
    /// With `_bucket`, `_sum`, `_total` and so on.
    pub name: Cow<'a, str>,
    /// In their order, `le` and `quantile` among them; no name twice.
    pub labels: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// NaN and the infinities are values.
    pub value: f64,
    /// Unix time, where the text says one.
    pub at_millis: Option<i64>,
    /// Of the family that it belongs to, if its type came before.
    pub kind: Option<Kind>,
    /// How many bytes of the name are the family's: all but the ending that the kind asks for.
    family: usize,
}

impl Sample<'_> {
    /// The name without its ending, as `# TYPE` has it; the whole name where no type was said.
    pub fn family(&self) -> &str {
        &self.name[..self.family]
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| &**value)
    }
}

/// A line that is no sample and no comment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {number}: {why}")]
pub struct BadLine {
    /// From 1.
    pub number: usize,
    pub why: &'static str,
}

/// The samples of a text, in their order.
#[derive(Debug, Clone)]
pub struct Samples<'a> {
    rest: &'a [u8],
    number: usize,
    kinds: HashMap<Cow<'a, str>, Kind>,
}

impl<'a> Samples<'a> {
    pub fn new(text: &'a [u8]) -> Samples<'a> {
        Samples {
            rest: text,
            number: 0,
            kinds: HashMap::new(),
        }
    }

    fn line(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let end = memchr_lf(self.rest);
        let line = &self.rest[..end];
        self.rest = self.rest.get(end + 1..).unwrap_or_default();
        self.number += 1;
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }

    /// `# TYPE name kind`; other comments say nothing.
    fn comment(&mut self, comment: &'a str) {
        let mut text = Text(comment.trim_start_matches([' ', '\t']));
        let Some(rest) = text.0.strip_prefix("TYPE") else {
            return;
        };
        text.0 = rest;
        if !text.blanks() {
            return;
        }
        let name = match text.0.starts_with('"') {
            true => text.quoted(),
            false => text.word(is_name_byte).map(Cow::Borrowed),
        };
        if let Some(name) = name
            && text.blanks()
            && self.kinds.len() < MAX_FAMILIES
        {
            self.kinds.insert(name, Kind::of(text.0.trim()));
        }
    }

    fn sample(&self, line: &'a str) -> Result<Sample<'a>, &'static str> {
        let mut text = Text(line);
        let mut name = text.word(is_name_byte).map(Cow::Borrowed);
        if name
            .as_ref()
            .is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit()))
        {
            return Err("a name begins with a digit");
        }
        let is_apart = text.blanks();
        let mut labels = Vec::new();
        if text.eat('{') {
            text.labels(&mut name, &mut labels)?;
            text.blanks();
        } else if !is_apart && !text.0.is_empty() {
            return Err("a character that no name has");
        }
        let name = name.filter(|name| !name.is_empty()).ok_or("no name")?;
        let value = text.token().ok_or("no value")?;
        let value = value.parse().map_err(|_| "the value is no number")?;
        let mut at_millis = None;
        if text.blanks() && !text.0.is_empty() && !text.0.starts_with('#') {
            let said = text.token().ok_or("no time")?;
            at_millis = Some(millis(said).ok_or("the time is no number")?);
            text.blanks();
        }
        // What follows a number sign is an exemplar.
        if !text.0.is_empty() && !text.0.starts_with('#') {
            return Err("more after the value");
        }
        let (kind, family) = self.family_of(&name);
        Ok(Sample {
            name,
            labels,
            value,
            at_millis,
            kind,
            family,
        })
    }

    fn family_of(&self, name: &str) -> (Option<Kind>, usize) {
        if let Some(kind) = self.kinds.get(name) {
            return (Some(*kind), name.len());
        }
        let underscore = name.rfind('_').filter(|at| *at > 0);
        let found = underscore.and_then(|at| {
            let kind = self.kinds.get(&name[..at])?;
            kind.suffixes()
                .contains(&&name[at..])
                .then_some((Some(*kind), at))
        });
        found.unwrap_or((None, name.len()))
    }
}

impl<'a> Iterator for Samples<'a> {
    type Item = Result<Sample<'a>, BadLine>;

    fn next(&mut self) -> Option<Result<Sample<'a>, BadLine>> {
        loop {
            let line = self.line()?;
            let bad = |why| {
                Some(Err(BadLine {
                    number: self.number,
                    why,
                }))
            };
            if line.len() > MAX_LINE_BYTES {
                return bad("the line is too long");
            }
            let Ok(line) = std::str::from_utf8(line) else {
                return bad("the line is not UTF-8");
            };
            let line = line.trim_matches([' ', '\t']);
            if line.is_empty() {
                continue;
            }
            if let Some(comment) = line.strip_prefix('#') {
                self.comment(comment);
                continue;
            }
            return match self.sample(line) {
                Ok(sample) => Some(Ok(sample)),
                Err(why) => bad(why),
            };
        }
    }
}

/// Milliseconds as an integer, or seconds as OpenMetrics writes them, with a point.
fn millis(text: &str) -> Option<i64> {
    if let Ok(millis) = text.parse() {
        return Some(millis);
    }
    let secs: f64 = text.parse().ok()?;
    (secs.is_finite() && secs.abs() < 1e15).then_some((secs * 1e3) as i64)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':'
}

fn memchr_lf(bytes: &[u8]) -> usize {
    let at = bytes.iter().position(|byte| *byte == b'\n');
    at.unwrap_or(bytes.len())
}

/// What of a line was not read yet.
struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    /// Skips blanks; whether there were some.
    fn blanks(&mut self) -> bool {
        let rest = self.0.trim_start_matches([' ', '\t']);
        let some = rest.len() < self.0.len();
        self.0 = rest;
        some
    }

    fn eat(&mut self, c: char) -> bool {
        match self.0.strip_prefix(c) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn word(&mut self, belongs: impl Fn(u8) -> bool) -> Option<&'a str> {
        let end = self
            .0
            .bytes()
            .position(|byte| !belongs(byte))
            .unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        (!word.is_empty()).then_some(word)
    }

    /// Up to the next blank.
    fn token(&mut self) -> Option<&'a str> {
        self.word(|byte| byte != b' ' && byte != b'\t')
    }

    /// A string in quotes: `\\`, `\"` and `\n` are the escapes; a backslash before anything else stays.
    fn quoted(&mut self) -> Option<Cow<'a, str>> {
        let text = self.0.strip_prefix('"')?;
        let mut owned: Option<String> = None;
        let mut from = 0;
        let mut bytes = text.bytes().enumerate();
        while let Some((at, byte)) = bytes.next() {
            match byte {
                b'"' => {
                    self.0 = &text[at + 1..];
                    return Some(match owned {
                        None => Cow::Borrowed(&text[..at]),
                        Some(mut owned) => {
                            owned.push_str(&text[from..at]);
                            Cow::Owned(owned)
                        }
                    });
                }
                b'\\' => {
                    let (next, escaped) = bytes.next()?;
                    let c = match escaped {
                        b'\\' => '\\',
                        b'"' => '"',
                        b'n' => '\n',
                        _ => continue,
                    };
                    let owned = owned.get_or_insert_default();
                    owned.push_str(&text[from..at]);
                    owned.push(c);
                    from = next + 1;
                }
                _ => {}
            }
        }
        None
    }

    /// After `{`, up to and with `}`. A string alone is the sample's name.
    fn labels(
        &mut self,
        name: &mut Option<Cow<'a, str>>,
        labels: &mut Vec<(Cow<'a, str>, Cow<'a, str>)>,
    ) -> Result<(), &'static str> {
        loop {
            self.blanks();
            if self.eat('}') {
                return Ok(());
            }
            let key = match self.0.starts_with('"') {
                true => self.quoted().ok_or("a string does not end")?,
                false => {
                    let key = self.word(|byte| is_name_byte(byte) && byte != b':');
                    Cow::Borrowed(key.ok_or("no name of a label")?)
                }
            };
            self.blanks();
            if self.eat('=') {
                self.blanks();
                let value = self.quoted().ok_or("a label's value is no string")?;
                if labels.len() == MAX_LABELS {
                    return Err("too many labels");
                }
                if labels.iter().any(|(other, _)| *other == key) {
                    return Err("a label twice");
                }
                labels.push((key, value));
            } else if name.is_none() {
                *name = Some(key);
            } else {
                return Err("a label without a value");
            }
            self.blanks();
            if !self.eat(',') && !self.0.starts_with('}') {
                return Err("no comma or brace after a label");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn one(line: &str) -> Sample<'_> {
        let mut samples = Samples::new(line.as_bytes());
        samples.next().unwrap().unwrap()
    }

    #[track_caller]
    fn bad(line: &str) -> &'static str {
        Samples::new(line.as_bytes())
            .next()
            .unwrap()
            .unwrap_err()
            .why
    }

    fn pairs<'a>(sample: &'a Sample<'_>) -> Vec<(&'a str, &'a str)> {
        sample.labels.iter().map(|(k, v)| (&**k, &**v)).collect()
    }

    #[test]
    fn a_servers_text_is_samples_with_the_kind_of_their_family() {
        let text = "# HELP vllm:time_to_first_token_seconds Time.\n\
            # TYPE vllm:time_to_first_token_seconds histogram\n\
            vllm:time_to_first_token_seconds_bucket{le=\"0.001\",model_name=\"m\"} 3.0\n\
            vllm:time_to_first_token_seconds_sum{model_name=\"m\"} 1.5e-3 1700000000000\n\
            \n# TYPE vllm:prompt_tokens counter\n\
            vllm:prompt_tokens_total{model_name=\"m\"} 17\r\n\
            # TYPE q gauge\nq_total 1\n# EOF\n";
        let samples: Vec<_> = Samples::new(text.as_bytes()).map(Result::unwrap).collect();
        let seen: Vec<_> = samples
            .iter()
            .map(|s| (s.family(), s.kind, s.value))
            .collect();
        let histogram = "vllm:time_to_first_token_seconds";
        assert_eq!(
            seen,
            [
                (histogram, Some(Kind::Histogram), 3.0),
                (histogram, Some(Kind::Histogram), 0.0015),
                ("vllm:prompt_tokens", Some(Kind::Counter), 17.0),
                // A gauge has no such ending: it is another family, of no known kind.
                ("q_total", None, 1.0),
            ]
        );
        assert_eq!(pairs(&samples[0]), [("le", "0.001"), ("model_name", "m")]);
        assert_eq!(samples[1].at_millis, Some(1_700_000_000_000));
        assert_eq!(samples[2].label("model_name"), Some("m"));
    }

    #[test]
    fn values_of_labels_have_braces_commas_and_escapes() {
        let sample = one(r#"a{path="C:\\x}, y=\"1\"\n",b = "é" , } -Inf"#);
        assert_eq!(pairs(&sample), [("path", "C:\\x}, y=\"1\"\n"), ("b", "é")]);
        assert_eq!(sample.value, f64::NEG_INFINITY);
        assert_eq!(pairs(&one(r#"a{b="\q\\n"} 1"#)), [("b", r"\q\n")]);
        assert_eq!(pairs(&one("a{} 1")), []);
        assert!(one("a NaN").value.is_nan());
        assert_eq!(one("a\t+Inf\t-5").at_millis, Some(-5));
    }

    #[test]
    fn of_openmetrics_exemplars_and_times_are_known() {
        let sample = one("a_bucket{le=\"1\"} 3 1700000000.5 # {trace_id=\"x\"} 0.5 1700000000.1");
        assert_eq!(
            (sample.value, sample.at_millis),
            (3.0, Some(1_700_000_000_500))
        );
        assert_eq!(one("a_total 3 # {} 1").value, 3.0);
    }

    #[test]
    fn names_in_quotes_are_names() {
        let sample = one(r#"{"my.metric", "a b"="1", c="2"} 4"#);
        assert_eq!(sample.name, "my.metric");
        assert_eq!(pairs(&sample), [("a b", "1"), ("c", "2")]);
        let text = "# TYPE \"my.metric\" histogram\n{\"my.metric_count\"} 4";
        let sample = Samples::new(text.as_bytes()).next().unwrap().unwrap();
        assert_eq!(
            (sample.family(), sample.kind),
            ("my.metric", Some(Kind::Histogram))
        );
    }

    #[test]
    fn a_line_that_cannot_be_read_costs_itself_alone() {
        for (line, why) in [
            ("a", "no value"),
            ("1a 2", "a name begins with a digit"),
            ("{} 1", "no name"),
            ("+5", "a character that no name has"),
            ("{\"\"} 1", "no name"),
            ("a x", "the value is no number"),
            ("a 1 x", "the time is no number"),
            ("a 1 2 3", "more after the value"),
            ("a{b=\"1\",b=\"2\"} 1", "a label twice"),
            ("a{b=\"1\" c=\"2\"} 1", "no comma or brace after a label"),
            ("a{b=\"1", "a label's value is no string"),
            ("a{b=\"1\\", "a label's value is no string"),
            ("a{b} 1", "a label without a value"),
            ("a{-} 1", "no name of a label"),
            ("a{\"x\"} 1", "a label without a value"),
            ("a-b 1", "a character that no name has"),
            ("a+5", "a character that no name has"),
        ] {
            assert_eq!(bad(line), why, "{line}");
        }
        let long = format!("a{{b=\"{}\"}} 1", "x".repeat(MAX_LINE_BYTES));
        assert_eq!(bad(&long), "the line is too long");
        let many: String = (0..=MAX_LABELS).map(|i| format!("l{i}=\"\",")).collect();
        assert_eq!(bad(&format!("a{{{many}}} 1")), "too many labels");
        let text = b"a 1\nb{\n\xff 2\nc 3";
        let seen: Vec<_> = Samples::new(text).map(|line| line.is_ok()).collect();
        assert_eq!(seen, [true, false, false, true]);
        let numbers: Vec<_> = Samples::new(text)
            .filter_map(|l| l.err().map(|b| b.number))
            .collect();
        assert_eq!(numbers, [2, 3]);
    }
}
