//! Totals of a log, and of each run, model and principal in it.

use std::collections::{HashMap, VecDeque};

use warptrace_model::UnixNanos;

use super::histogram::Latencies;
use super::record::{Kind, Record, Runs, is_blank};
use crate::json::{Invalid, Str};
use crate::lines::{DEFAULT_LINE_LIMIT, Line, Lines};

/// What a [`Summary`] keeps at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SummaryOptions {
    /// Longest line, bytes; a longer one is corrupt. At least 8 MiB for logs of others.
    pub line_limit: usize,
    /// Models and principals that are told apart, each; the rest is [`Groups::other`].
    pub max_groups: usize,
    /// Runs that are kept; the oldest give way.
    pub max_runs: usize,
    /// Only this run, from 1 (0: what is before the first); lines are counted all the same.
    pub only_run: Option<u32>,
}

impl Default for SummaryOptions {
    fn default() -> SummaryOptions {
        SummaryOptions {
            line_limit: DEFAULT_LINE_LIMIT,
            max_groups: 256,
            max_runs: 64,
            only_run: None,
        }
    }
}

/// Sums over some requests. They saturate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Totals {
    /// Served.
    pub requests: u64,
    /// Failed.
    pub errors: u64,
    /// Completion tokens.
    pub tokens_out: u64,
    /// Prompt tokens.
    pub tokens_in: u64,
    /// Requests whose completion tokens are absent or no count; they add 0.
    pub invalid_tokens: u64,
    /// Of served requests that say one, µs.
    pub latency_micros: Latencies,
}

impl Totals {
    fn add(&mut self, record: &Record<'_>) {
        if record.kind == Kind::RequestError {
            self.errors += 1;
            return;
        }
        self.requests += 1;
        let (out, in_) = (record.completion_tokens, record.prompt_tokens);
        self.tokens_out = self.tokens_out.saturating_add(out.unwrap_or(0));
        self.tokens_in = self.tokens_in.saturating_add(in_.unwrap_or(0));
        self.invalid_tokens += u64::from(out.is_none());
        if let Some(latency) = record.latency_micros {
            self.latency_micros.add(latency);
        }
    }
}

/// What one model or principal has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Cut to 256 bytes.
    pub name: String,
    pub totals: Totals,
}

/// Totals by a name, with a bound on how many names.
#[derive(Debug, Clone, Default)]
pub struct Groups {
    index: HashMap<Box<[u8]>, usize>,
    groups: Vec<Group>,
    /// The one that was asked for last: logs repeat themselves.
    last: usize,
    /// Requests and errors under names above the bound.
    pub other: Totals,
    /// Requests and errors without a name.
    pub unnamed: Totals,
}

/// Longest name that is told apart from others, bytes.
const MAX_NAME_BYTES: usize = 256;

impl Groups {
    /// The groups, in the order in which they came up.
    pub fn iter(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter()
    }

    fn add(&mut self, name: Option<Str<'_>>, record: &Record<'_>, max: usize) {
        let Some(name) = name else {
            return self.unnamed.add(record);
        };
        if let Some(group) = self.groups.get_mut(self.last)
            && name.is(&group.name)
        {
            return group.totals.add(record);
        }
        let key = name.decode_wtf8();
        let key = &key[..key.len().min(MAX_NAME_BYTES)];
        let index = match self.index.get(key) {
            Some(&index) => index,
            None if self.groups.len() < max => {
                self.index.insert(key.into(), self.groups.len());
                self.groups.push(Group {
                    name: String::from_utf8_lossy(key).into_owned(),
                    totals: Totals::default(),
                });
                self.groups.len() - 1
            }
            None => return self.other.add(record),
        };
        self.last = index;
        self.groups[index].totals.add(record);
    }
}

/// One run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunSummary {
    /// From 1; 0 for what is before the first `run_start`.
    pub number: u32,
    /// It has a `run_start`.
    pub started: bool,
    /// It has a `run_end`.
    pub ended: bool,
    pub started_at: Option<UnixNanos>,
    pub host: Option<String>,
    pub backend: Option<String>,
    /// `model.name` of its `run_start`.
    pub model: Option<String>,
    /// Of its last `run_end`.
    pub reason: Option<String>,
    pub totals: Totals,
    /// The largest `t` of its records, s; 0 when none says one.
    pub duration_secs: f64,
}

impl RunSummary {
    /// Served requests a second; `None` for a run without length.
    pub fn requests_per_sec(&self) -> Option<f64> {
        (self.duration_secs > 0.0).then(|| self.totals.requests as f64 / self.duration_secs)
    }
}

/// Reads a log and adds it up: [`Summary::feed`] with its bytes, then [`Summary::finish`].
#[derive(Debug, Clone)]
pub struct Summary {
    options: SummaryOptions,
    reader: Option<Lines>,
    runs_seen: Runs,
    /// Lines that are not blank.
    pub lines: u64,
    /// Lines that are no record.
    pub corrupt: u64,
    /// The last line had no line feed.
    pub torn_tail: bool,
    /// `run_start` records.
    pub runs: u64,
    /// Runs that [`Summary::recent`] no longer holds.
    pub runs_given_up: u64,
    /// Requests of the retired shape; they are in no sum.
    pub retired: u64,
    /// Over the whole file, or the one run that was asked for.
    pub totals: Totals,
    /// The lengths of those runs together, s.
    pub duration_secs: f64,
    pub by_model: Groups,
    pub by_principal: Groups,
    recent: VecDeque<RunSummary>,
}

impl Summary {
    pub fn new(options: SummaryOptions) -> Summary {
        Summary {
            options,
            reader: Some(Lines::new(options.line_limit)),
            runs_seen: Runs::default(),
            lines: 0,
            corrupt: 0,
            torn_tail: false,
            runs: 0,
            runs_given_up: 0,
            retired: 0,
            totals: Totals::default(),
            duration_secs: 0.0,
            by_model: Groups::default(),
            by_principal: Groups::default(),
            recent: VecDeque::from([RunSummary::default()]),
        }
    }

    /// Takes the next bytes of the log.
    pub fn feed(&mut self, chunk: &[u8]) {
        if let Some(mut reader) = self.reader.take() {
            reader.feed(chunk, |line| self.line(&line));
            self.reader = Some(reader);
        }
    }

    /// Ends the log: an unterminated last line is tried like any other.
    pub fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.finish(|line| self.line(&line));
        }
    }

    /// The last runs, oldest first; the whole file is one that has not started when there is no `run_start`.
    pub fn recent(&self) -> impl DoubleEndedIterator<Item = &RunSummary> {
        let nothing_before = self.runs > 0 && self.recent.front().is_some_and(is_empty_beginning);
        self.recent.iter().skip(usize::from(nothing_before))
    }

    /// The last run.
    pub fn last_run(&self) -> Option<&RunSummary> {
        self.recent.back()
    }

    /// Served requests a second over the runs' lengths together; `None` when they have none.
    pub fn requests_per_sec(&self) -> Option<f64> {
        (self.duration_secs > 0.0).then(|| self.totals.requests as f64 / self.duration_secs)
    }

    fn line(&mut self, line: &Line<'_>) {
        self.torn_tail |= !line.terminated && line.bytes != Some(b"");
        match line.bytes.map(|bytes| (is_blank(bytes), bytes)) {
            Some((true, _)) => {}
            Some((false, bytes)) => {
                self.lines += 1;
                match Record::parse(bytes) {
                    Ok(record) => self.record(&record),
                    Err(_) => self.corrupt += 1,
                }
            }
            None => {
                self.lines += 1;
                self.corrupt += 1;
            }
        }
    }

    fn record(&mut self, record: &Record<'_>) {
        self.runs_seen.observe(record);
        if record.kind == Kind::RunStart {
            self.start_run(record);
        }
        let number = self.runs_seen.number();
        let counted = self.options.only_run.is_none_or(|only| only == number);
        let Some(run) = self.recent.back_mut() else {
            return;
        };
        if let Some(t) = record.t_secs
            && t > run.duration_secs
        {
            if counted {
                self.duration_secs += t - run.duration_secs;
            }
            run.duration_secs = t;
        }
        match record.kind {
            Kind::Request | Kind::RequestError => {
                run.totals.add(record);
                if counted {
                    self.totals.add(record);
                    let max = self.options.max_groups;
                    self.by_model.add(record.model, record, max);
                    self.by_principal.add(record.principal, record, max);
                }
            }
            Kind::RunEnd => {
                run.ended = true;
                run.reason = text(record.reason);
            }
            Kind::RetiredRequest => self.retired += 1,
            _ => {}
        }
    }

    fn start_run(&mut self, record: &Record<'_>) {
        self.runs += 1;
        self.recent.push_back(RunSummary {
            number: self.runs_seen.number(),
            started: true,
            started_at: self.runs_seen.started_at(),
            host: text(record.host),
            backend: text(record.backend),
            model: text(record.model),
            ..RunSummary::default()
        });
        if self.recent.len() > self.options.max_runs.max(1) {
            let gone = self.recent.pop_front();
            let counts = gone.is_some_and(|run| !is_empty_beginning(&run));
            self.runs_given_up += u64::from(counts);
        }
    }
}

/// What stands for the time before the first `run_start` when there is nothing in it.
fn is_empty_beginning(run: &RunSummary) -> bool {
    run.number == 0 && *run == RunSummary::default()
}

/// A text for people, cut to 256 bytes.
fn text(s: Option<Str<'_>>) -> Option<String> {
    let mut text = s?.decode(Invalid::Replace)?.into_owned();
    let cut = (0..=MAX_NAME_BYTES.min(text.len()))
        .rev()
        .find(|&i| text.is_char_boundary(i));
    text.truncate(cut.unwrap_or(0));
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(log: &str, options: SummaryOptions) -> Summary {
        let mut summary = Summary::new(options);
        for chunk in log.as_bytes().chunks(7) {
            summary.feed(chunk);
        }
        summary.finish();
        summary
    }

    fn request(t: f64, model: &str, principal: &str, tokens: u32) -> String {
        format!(
            "{{\"kind\":\"eval\",\"phase\":\"serve\",\"t\":{t},\"name\":\"request\",\"extra\":{{\"model\":\"{model}\",\
             \"completion_tokens\":{tokens},\"latency_us\":1000,\"principal_id\":\"{principal}\"}}}}\n"
        )
    }

    #[test]
    fn totals_are_told_by_model_and_by_principal() {
        let log = [
            "{\"kind\":\"run_start\",\"t\":0}\n".to_owned(),
            request(1.0, "a", "user:1", 5),
            request(2.0, "b", "user:1", 6),
            request(4.0, "\\u0061", "user:2", 7),
            "{\"kind\":\"error\",\"phase\":\"serve\",\"t\":4,\"name\":\"request\",\"extra\":{\"model\":\"b\"}}\n".to_owned(),
            "{\"kind\":\"error\",\"phase\":\"serve\",\"t\":4,\"name\":\"request\",\"extra\":{}}\n".to_owned(),
        ]
        .concat();
        let s = summary(&log, SummaryOptions::default());
        let shown: Vec<_> = s
            .by_model
            .iter()
            .map(|g| {
                (
                    g.name.as_str(),
                    g.totals.requests,
                    g.totals.errors,
                    g.totals.tokens_out,
                )
            })
            .collect();
        assert_eq!(shown, [("a", 2, 0, 12), ("b", 1, 1, 6)]);
        assert_eq!(s.by_model.unnamed.errors, 1);
        assert_eq!(s.by_principal.unnamed.errors, 2);
        assert_eq!(s.requests_per_sec(), Some(0.75));
    }

    #[test]
    fn names_and_runs_are_bounded_and_what_is_above_is_counted() {
        let mut log = String::new();
        for run in 0..5 {
            log += "{\"kind\":\"run_start\",\"t\":0}\n";
            for user in 0..4 {
                log += &request(
                    1.0,
                    &"m".repeat(400 + user),
                    &format!("user:{run}:{user}"),
                    1,
                );
            }
        }
        let options = SummaryOptions {
            max_groups: 3,
            max_runs: 2,
            ..SummaryOptions::default()
        };
        let s = summary(&log, options);
        assert_eq!(s.by_principal.iter().count(), 3);
        assert_eq!(s.by_principal.other.requests, 17);
        let models: Vec<_> = s
            .by_model
            .iter()
            .map(|g| (g.name.len(), g.totals.requests))
            .collect();
        assert_eq!(
            models,
            [(256, 20)],
            "names that differ behind their 256th byte are one"
        );
        let runs: Vec<_> = s.recent().map(|r| r.number).collect();
        assert_eq!((runs, s.runs, s.runs_given_up), (vec![4, 5], 5, 3));
        assert_eq!(s.duration_secs, 5.0);
        let one = summary(
            &log,
            SummaryOptions {
                only_run: Some(2),
                ..SummaryOptions::default()
            },
        );
        assert_eq!(
            (one.totals.requests, one.duration_secs, one.lines),
            (4, 1.0, 25)
        );
    }

    #[test]
    fn records_before_the_first_run_start_are_a_run_of_their_own() {
        let log = request(3.0, "m", "p", 1)
            + "{\"kind\":\"run_start\",\"t\":0}\n"
            + &request(1.0, "m", "p", 2);
        let s = summary(&log, SummaryOptions::default());
        let runs: Vec<_> = s
            .recent()
            .map(|r| (r.number, r.started, r.totals.requests))
            .collect();
        assert_eq!(runs, [(0, false, 1), (1, true, 1)]);
        let last = s.last_run().unwrap();
        assert_eq!((last.totals.tokens_out, last.duration_secs), (2, 1.0));
    }

    #[test]
    fn a_line_above_the_limit_is_corrupt_and_costs_itself_alone() {
        let long = format!("{{\"kind\":\"note\",\"text\":\"{}\"}}\n", "x".repeat(300));
        let log = request(1.0, "m", "p", 1) + &long + &request(2.0, "m", "p", 1);
        let s = summary(
            &log,
            SummaryOptions {
                line_limit: 200,
                ..SummaryOptions::default()
            },
        );
        assert_eq!(
            (s.lines, s.corrupt, s.totals.requests, s.torn_tail),
            (3, 1, 2, false)
        );
        let s = summary("\u{feff}", SummaryOptions::default());
        assert_eq!((s.lines, s.torn_tail), (0, false));
    }
}
