//! What an inference server said of itself around an incident: evidence beside the blame, never a part of it.
//!
//! A server is asked every few seconds, so what it says is of the time between two answers. Evidence says that time, not the
//! incident's. What is usual is what the same server said before. Of each answer a few numbers are kept, summed over models.
//!
//! It deliberately does not know how a server was asked, and concludes nothing: a full queue may be why a step was slow, or be
//! there because it was.

use std::collections::{BTreeMap, VecDeque};

use warptrace_model::serving::{ServingMetric, ServingReading, ServingValue};
use warptrace_model::{BootNanos, Evidence, Incarnation, Window};

/// A level is worth saying from this much more than usual on, and one more.
const LEVEL_RATIO: f64 = 2.0;
/// A mean duration likewise.
const DURATION_RATIO: f64 = 1.5;
/// Requests, or tokens, that a usual duration comes from at least.
const USUAL_COUNT: u64 = 10;
/// From this part in use on the cache is full: engines keep a few blocks back.
const FULL: f64 = 0.95;

/// How much is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServingCaps {
    pub engines: usize,
    /// Answers of each: one is some 150 bytes.
    pub answers: usize,
}

impl Default for ServingCaps {
    /// 64 engines; an hour of answers every 10 s, 3.5 MB in all.
    fn default() -> ServingCaps {
        ServingCaps {
            engines: 64,
            answers: 360,
        }
    }
}

/// The servers' answers of the last while.
#[derive(Debug, Default)]
pub struct Serving {
    caps: ServingCaps,
    engines: BTreeMap<Incarnation, VecDeque<Answer>>,
    evicted: u64,
}

/// What is kept of an answer. What the engine does not say is `None`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Answer {
    at: BootNanos,
    queued: Option<f64>,
    kv_cache: Option<f64>,
    preemptions: Option<f64>,
    failed: Option<f64>,
    first_token: Sum,
    token: Sum,
    queue: Sum,
}

/// Of a histogram, since the engine's start.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Sum {
    secs: f64,
    count: u64,
}

impl Sum {
    /// What came since `earlier`; `None` when the engine started anew in between.
    fn since(self, earlier: Sum) -> Option<Sum> {
        let count = self.count.checked_sub(earlier.count)?;
        let secs = self.secs - earlier.secs;
        (secs >= 0.0).then_some(Sum { secs, count })
    }

    fn mean(self) -> Option<f64> {
        (self.count > 0).then(|| self.secs / self.count as f64)
    }
}

impl Answer {
    fn of(at: BootNanos, readings: &[ServingReading]) -> Answer {
        let of = |metric| readings.iter().filter(move |r| r.metric == metric);
        let numbers = |metric| {
            of(metric).filter_map(|r| match r.value {
                ServingValue::Number(n) if n.is_finite() => Some(n),
                _ => None,
            })
        };
        let total = |metric| numbers(metric).reduce(|a, b| a + b);
        let sum = |metric| {
            of(metric).fold(Sum::default(), |all, r| match &r.value {
                ServingValue::Histogram(h) => Sum {
                    secs: all.secs + h.sum,
                    count: all.count.saturating_add(h.count),
                },
                ServingValue::Number(_) => all,
            })
        };
        Answer {
            at,
            queued: total(ServingMetric::RequestsQueued),
            kv_cache: numbers(ServingMetric::KvCacheUtilization).reduce(f64::max),
            preemptions: total(ServingMetric::Preemptions),
            failed: total(ServingMetric::RequestsFailed),
            first_token: sum(ServingMetric::TimeToFirstToken),
            token: sum(ServingMetric::TimePerOutputToken),
            queue: sum(ServingMetric::QueueDuration),
        }
    }
}

impl Serving {
    pub fn new(caps: ServingCaps) -> Serving {
        Serving {
            caps,
            ..Serving::default()
        }
    }

    /// An engine answered. Answers of one engine come in order; an older one is left out. Of more engines than the cap the one
    /// that was silent for longest is forgotten, and counted.
    pub fn answered(&mut self, engine: Incarnation, at: BootNanos, readings: &[ServingReading]) {
        if !self.engines.contains_key(&engine) && self.engines.len() >= self.caps.engines.max(1) {
            let last = |answers: &VecDeque<Answer>| answers.back().map(|a| a.at);
            let silent = self.engines.iter().min_by_key(|(_, answers)| last(answers));
            if let Some(silent) = silent.map(|(engine, _)| *engine) {
                self.engines.remove(&silent);
                self.evicted += 1;
            }
        }
        let answers = self.engines.entry(engine).or_default();
        if answers.back().is_some_and(|last| last.at >= at) {
            return;
        }
        if answers.len() >= self.caps.answers.max(2) {
            answers.pop_front();
        }
        answers.push_back(Answer::of(at, readings));
    }

    /// Engines that were forgotten for others. One that ended is kept until the caps want its room, since an incident may be
    /// concluded later.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// What `engine` said around `window` that is not as usual: from its last answer before to its first one after.
    ///
    /// Nothing without an answer on each side; a window that no answer follows yet is to be asked about again.
    pub fn evidence(&self, engine: Incarnation, window: Window) -> Vec<Evidence> {
        let Some(answers) = self.engines.get(&engine) else {
            return Vec::new();
        };
        let before = answers.iter().rposition(|a| a.at <= window.start);
        let after = answers.iter().position(|a| a.at >= window.end);
        let (Some(before), Some(after)) = (before, after) else {
            return Vec::new();
        };
        let around = Around {
            usual: answers.range(..=before).collect(),
            // A level that was there at the answer before says nothing of what came after.
            inside: answers.range(before + 1..=after.max(before)).collect(),
            from: &answers[before],
            to: &answers[after],
        };
        let said = [
            around.level("queued", |a| a.queued),
            around.full(),
            around.counted("preempted for want of cache", |a| a.preemptions),
            around.counted("failed", |a| a.failed),
            around.duration("queue time of a request", |a| a.queue),
            around.duration("time to first token", |a| a.first_token),
            around.duration("time between tokens", |a| a.token),
        ];
        let (start, end) = (around.from.at, around.to.at);
        let evidence = said.into_iter().flatten().map(|what| Evidence {
            what,
            pid: Some(engine.pid.0),
            tid: None,
            comm: None,
            path: None,
            start,
            dur: end.since(start),
        });
        evidence.collect()
    }
}

/// The answers around a window.
struct Around<'a> {
    /// Up to the last one before it.
    usual: Vec<&'a Answer>,
    inside: Vec<&'a Answer>,
    from: &'a Answer,
    to: &'a Answer,
}

impl Around<'_> {
    fn peak(&self, of: impl Fn(&Answer) -> Option<f64>) -> Option<f64> {
        self.inside.iter().filter_map(|a| of(a)).reduce(f64::max)
    }

    fn median(&self, of: impl Fn(&Answer) -> Option<f64>) -> Option<f64> {
        let mut levels: Vec<f64> = self.usual.iter().filter_map(|a| of(a)).collect();
        levels.sort_by(f64::total_cmp);
        levels.get(levels.len() / 2).copied()
    }

    fn level(&self, word: &str, of: impl Fn(&Answer) -> Option<f64>) -> Option<String> {
        let (peak, usual) = (self.peak(&of)?, self.median(&of)?);
        let is_more = peak >= usual * LEVEL_RATIO + 1.0;
        is_more.then(|| format!("{peak:.0} requests {word}, usually {usual:.0}"))
    }

    fn full(&self) -> Option<String> {
        let (peak, usual) = (self.peak(|a| a.kv_cache)?, self.median(|a| a.kv_cache)?);
        let (peak_percent, usual_percent) = (peak * 100.0, usual * 100.0);
        (peak >= FULL).then(|| {
            format!("key-value cache {peak_percent:.0} % full, usually {usual_percent:.0} %")
        })
    }

    fn counted(&self, word: &str, of: impl Fn(&Answer) -> Option<f64>) -> Option<String> {
        let came = of(self.to)? - of(self.from)?;
        let requests = if came == 1.0 { "request" } else { "requests" };
        (came >= 1.0).then(|| format!("{came:.0} {requests} {word}"))
    }

    fn duration(&self, word: &str, of: impl Fn(&Answer) -> Sum) -> Option<String> {
        let here = of(self.to).since(of(self.from))?.mean()?;
        // Since the first answer that is of the same life of the engine.
        let mut usual = Sum::default();
        for pair in self.usual.windows(2) {
            usual = match of(pair[1]).since(of(pair[0])) {
                Some(came) => Sum {
                    secs: usual.secs + came.secs,
                    count: usual.count.saturating_add(came.count),
                },
                None => Sum::default(),
            };
        }
        let mean = usual.mean().filter(|_| usual.count >= USUAL_COUNT)?;
        (here >= mean * DURATION_RATIO)
            .then(|| format!("{word} {}, usually {}", shown(here), shown(mean)))
    }
}

fn shown(secs: f64) -> String {
    match secs {
        1.0.. => format!("{secs:.2} s"),
        _ => format!("{:.1} ms", secs * 1e3),
    }
}

#[cfg(test)]
mod tests {
    use warptrace_model::Pid;
    use warptrace_model::serving::ServingHistogram;

    use super::*;

    const ENGINE: Incarnation = Incarnation {
        pid: Pid(7),
        start_ticks: 50,
    };

    fn seconds(s: u64) -> BootNanos {
        BootNanos(s * 1_000_000_000)
    }

    /// `queue=2 kv=0.5 pre=1 fail=0 first=SUM/COUNT token=SUM/COUNT`.
    fn readings(text: &str) -> Vec<ServingReading> {
        let word = |word: &str| {
            let (name, value) = word.split_once('=').unwrap();
            let metric = match name {
                "queue" => ServingMetric::RequestsQueued,
                "kv" => ServingMetric::KvCacheUtilization,
                "pre" => ServingMetric::Preemptions,
                "fail" => ServingMetric::RequestsFailed,
                "first" => ServingMetric::TimeToFirstToken,
                "token" => ServingMetric::TimePerOutputToken,
                other => panic!("{other}"),
            };
            let value = match value.split_once('/') {
                None => ServingValue::Number(value.parse().unwrap()),
                Some((sum, count)) => ServingValue::Histogram(ServingHistogram {
                    sum: sum.parse().unwrap(),
                    count: count.parse().unwrap(),
                    ..ServingHistogram::default()
                }),
            };
            ServingReading {
                metric,
                model: None,
                value,
            }
        };
        text.split_whitespace().map(word).collect()
    }

    /// Answers every 10 s from 0 on, and what is said of a window from `from` to `to` seconds.
    #[track_caller]
    fn check(answers: &str, (from, to): (u64, u64), expected: &[&str]) {
        let mut serving = Serving::default();
        for (i, line) in answers.lines().map(str::trim).enumerate() {
            serving.answered(ENGINE, seconds(i as u64 * 10), &readings(line));
        }
        let window = Window {
            start: seconds(from),
            end: seconds(to),
        };
        let evidence = serving.evidence(ENGINE, window);
        let said: Vec<&str> = evidence.iter().map(|e| e.what.as_str()).collect();
        assert_eq!(said, expected);
        for evidence in &evidence {
            let end = evidence.start.plus(evidence.dur);
            assert!(evidence.start <= window.start && end >= window.end);
        }
    }

    #[test]
    fn a_queue_a_full_cache_and_preemptions_around_a_slow_step_are_said() {
        check(
            "queue=0 kv=0.40 pre=5 fail=1
             queue=1 kv=0.42 pre=5 fail=1
             queue=0 kv=0.45 pre=5 fail=1
             queue=12 kv=0.99 pre=8 fail=2
             queue=0 kv=0.40 pre=8 fail=2",
            (23, 25),
            &[
                "12 requests queued, usually 0",
                "key-value cache 99 % full, usually 42 %",
                "3 requests preempted for want of cache",
                "1 request failed",
            ],
        );
    }

    #[test]
    fn what_is_as_usual_is_not_said_and_neither_is_what_was_before() {
        let answers = "queue=10 kv=0.90 pre=5
             queue=12 kv=0.97 pre=9
             queue=11 kv=0.90 pre=9
             queue=14 kv=0.91 pre=9";
        check(answers, (23, 25), &[]);
    }

    #[test]
    fn durations_are_compared_with_those_before() {
        check(
            "first=10/100 token=100/10000
             first=13/110 token=110/11000
             first=16/120 token=120/12000
             first=40/125 token=150/13000",
            (21, 22),
            &[
                "time to first token 4.80 s, usually 300.0 ms",
                "time between tokens 30.0 ms, usually 10.0 ms",
            ],
        );
        // Nothing finished in it, or too little before it to know what is usual.
        check("first=1/10\nfirst=4/20\nfirst=4/20", (11, 12), &[]);
        check("first=1/10\nfirst=2/15\nfirst=9/16", (11, 12), &[]);
    }

    #[test]
    fn an_engine_that_started_anew_is_not_compared_with_its_former_life() {
        check(
            "first=10/1000 pre=50
             first=11/1100 pre=60
             first=1/2 pre=0
             first=9/10 pre=2",
            (15, 25),
            &[],
        );
    }

    #[test]
    fn without_an_answer_on_each_side_nothing_is_said() {
        let answers = "queue=0\nqueue=50";
        check(answers, (5, 10), &["50 requests queued, usually 0"]);
        check(answers, (5, 11), &[]);
        let serving = Serving::default();
        let window = Window {
            start: seconds(1),
            end: seconds(2),
        };
        assert_eq!(serving.evidence(ENGINE, window), []);
    }

    #[test]
    fn answers_and_engines_are_forgotten_beyond_the_caps() {
        let mut serving = Serving::new(ServingCaps {
            engines: 2,
            answers: 3,
        });
        let engine = |pid| Incarnation {
            pid: Pid(pid),
            start_ticks: 1,
        };
        for s in 0..10 {
            serving.answered(engine(1), seconds(s), &readings("queue=0"));
        }
        assert_eq!(serving.engines[&engine(1)].len(), 3);
        serving.answered(engine(2), seconds(20), &readings("queue=0"));
        serving.answered(engine(3), seconds(21), &readings("queue=0"));
        assert_eq!(serving.evicted(), 1);
        assert!(!serving.engines.contains_key(&engine(1)));
        // What comes late is left out.
        serving.answered(engine(3), seconds(20), &readings("queue=9"));
        assert_eq!(serving.engines[&engine(3)].len(), 1);
    }
}
