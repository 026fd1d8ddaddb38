//! What is sent when, as text: a script of what happens, and what each receiver is sent.
//!
//! A line of a script begins with its time. `raise KEY SEVERITY [needs N]` and `over KEY` are alerts, `WHO answers ANSWER`
//! is how a receiver answers from then on: `taken`, `lost` (no answer; it may have it), `busy [SECS]`, `refused`. `end` lets time
//! go by until then. Requests take no time.

use std::collections::BTreeMap;
use std::time::Duration;

use warptrace_model::{Severity, UnixNanos};

use super::*;
use crate::otlp::Retry;

/// No jitter.
const MIDDLE: u64 = 1 << 63;

struct Play {
    book: Book,
    outboxes: Vec<(&'static str, Outbox, Outcome)>,
    now: Duration,
    seen: String,
}

fn secs(text: &str) -> Duration {
    humantime::parse_duration(text).unwrap()
}

fn again(after: Option<u64>, may_have_arrived: bool) -> Outcome {
    Outcome::Again {
        after: after.map(Duration::from_secs),
        may_have_arrived,
        why: "no".to_owned(),
    }
}

fn alert(key: &str, severity: &str, needs: u32) -> Alert {
    Alert {
        key: key.to_owned(),
        severity: Severity::by_name(severity).unwrap(),
        summary: format!("{key} happens"),
        source: "node-7".to_owned(),
        component: String::new(),
        group: String::new(),
        class: "test".to_owned(),
        details: Vec::new(),
        at: UnixNanos(0),
        needs,
    }
}

impl Play {
    fn new(rules: Rules, delivery: &Delivery) -> Play {
        Play {
            book: Book::new(rules),
            outboxes: ["slack", "pager"]
                .map(|name| (name, Outbox::new(delivery.clone()), Outcome::Taken))
                .into(),
            now: Duration::ZERO,
            seen: String::new(),
        }
    }

    /// Sends what can be sent now.
    fn settle(&mut self) {
        for notice in self.book.tick(self.now) {
            self.push(&notice);
        }
        for (name, outbox, answer) in &mut self.outboxes {
            while let Step::Send(notice) = outbox.next(self.now) {
                let word = match notice.action {
                    Action::Trigger => "trigger",
                    Action::Update => "update",
                    Action::Resolve => "resolve",
                };
                let (severity, key) = (notice.alert.severity.name(), &notice.alert.key);
                let result = match answer {
                    Outcome::Taken => "",
                    Outcome::Again { .. } => " (again)",
                    Outcome::Refused { .. } => " (refused)",
                };
                let (at, count) = (self.now.as_secs(), notice.count);
                self.seen += &format!("{at}s {name} {word} {key} {severity} x{count}{result}\n");
                outbox.done(self.now, answer.clone(), MIDDLE);
            }
        }
    }

    fn push(&mut self, notice: &Notice) {
        for (_, outbox, _) in &mut self.outboxes {
            outbox.push(notice.clone());
        }
    }

    fn until(&mut self, to: Duration) {
        loop {
            self.settle();
            let waits = self
                .outboxes
                .iter_mut()
                .filter_map(|(_, o, _)| match o.next(self.now) {
                    Step::Wait(until) => Some(until),
                    Step::Idle => None,
                    Step::Send(_) => panic!("not settled"),
                });
            let next = waits.chain(self.book.next(self.now)).min();
            match next {
                Some(at) if at <= to => {
                    assert!(at > self.now, "time stands still at {:?}", self.now);
                    self.now = at;
                }
                _ => break,
            }
        }
        self.now = to;
    }

    fn run(&mut self, script: &str) {
        for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            self.until(secs(words[0]));
            match words[1..] {
                ["raise", key, severity] => self.raise(alert(key, severity, 1)),
                ["raise", key, severity, "needs", n] => {
                    self.raise(alert(key, severity, n.parse().unwrap()));
                }
                ["over", key] => {
                    if let Some(notice) = self.book.over(key) {
                        self.push(&notice);
                    }
                }
                [who, "answers", answer, ref more @ ..] => {
                    let after = more.first().map(|secs| secs.parse().unwrap());
                    let outcome = match answer {
                        "taken" => Outcome::Taken,
                        "lost" => again(None, true),
                        "busy" => again(after, false),
                        "refused" => Outcome::Refused {
                            why: "no".to_owned(),
                        },
                        other => panic!("{other}"),
                    };
                    for (name, _, answer) in &mut self.outboxes {
                        if *name == who || who == "all" {
                            answer.clone_from(&outcome);
                        }
                    }
                }
                ["end"] => {}
                ref other => panic!("{other:?}"),
            }
            self.settle();
        }
    }

    fn raise(&mut self, alert: Alert) {
        if let Some(notice) = self.book.raise(self.now, alert) {
            self.push(&notice);
        }
    }
}

/// Over after 5 min, no reminder, a burst of 3 and then one in 20 s.
fn rules() -> Rules {
    Rules {
        reminder: None,
        burst: 3,
        ..Rules::default()
    }
}

/// 1 s, doubling to 60, for 10 min.
fn delivery() -> Delivery {
    Delivery {
        retry: Retry {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(60),
            total: Duration::from_secs(600),
        },
        queue: 4,
    }
}

/// What the receiver `slack` is sent.
#[track_caller]
fn check(script: &str, expected: &str) -> Play {
    check_by(rules(), script, expected)
}

#[track_caller]
fn check_by(rules: Rules, script: &str, expected: &str) -> Play {
    let mut play = Play::new(rules, &delivery());
    play.run(script);
    let seen: Vec<String> = play
        .seen
        .lines()
        .filter(|l| l.contains(" slack "))
        .map(|l| l.replacen(" slack", "", 1))
        .collect();
    let expected: Vec<&str> = expected
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    assert_eq!(seen, expected, "all:\n{}", play.seen);
    play
}

#[test]
fn an_alert_is_told_once_and_resolved_when_it_is_over() {
    check(
        "0s raise a HIGH
         1s raise a HIGH
         2s raise a HIGH
         60s over a
         61s over a",
        "0s trigger a HIGH x1
         60s resolve a HIGH x3",
    );
}

#[test]
fn what_lasts_for_an_hour_second_by_second_is_one_alert() {
    let lines: String = (0..3600).map(|s| format!("{s}s raise a HIGH\n")).collect();
    check(
        &format!("{lines}\n2h end"),
        "0s trigger a HIGH x1
         3899s resolve a HIGH x3600",
    );
}

#[test]
fn an_alert_that_nobody_raises_any_more_is_over_after_five_minutes() {
    check(
        "0s raise a HIGH
         200s raise a HIGH
         499s raise a MEDIUM
         2h end",
        "0s trigger a HIGH x1
         799s resolve a HIGH x3",
    );
}

#[test]
fn what_gets_worse_is_told_again_and_what_gets_better_is_not() {
    check(
        "0s raise a MEDIUM
         1s raise a CRITICAL
         2s raise a MEDIUM
         3s raise a CRITICAL
         4s over a",
        "0s trigger a MEDIUM x1
         1s update a CRITICAL x2
         4s resolve a CRITICAL x4",
    );
}

#[test]
fn what_is_not_severe_enough_is_not_told_until_it_is() {
    check(
        "0s raise a LOW
         1s over a
         2s raise a LOW
         3s raise a MEDIUM
         4s over a",
        "3s trigger a MEDIUM x1
         4s resolve a MEDIUM x1",
    );
}

#[test]
fn one_outlier_is_noise_and_five_within_five_minutes_are_not() {
    check(
        "0s raise a HIGH needs 3
         100s raise a HIGH needs 3
         500s raise a HIGH needs 3
         501s raise a HIGH needs 3
         502s raise a HIGH needs 3
         503s over a",
        "502s trigger a HIGH x3
         503s resolve a HIGH x3",
    );
}

#[test]
fn a_reminder_comes_while_it_lasts_and_only_then() {
    let by = Rules {
        reminder: Some(Duration::from_secs(600)),
        quiet: Duration::from_secs(3600),
        ..rules()
    };
    check_by(
        by,
        "0s raise a HIGH
         700s raise a HIGH
         1700s over a
         2h end",
        "0s trigger a HIGH x1
         600s update a HIGH x1
         1200s update a HIGH x2
         1700s resolve a HIGH x2",
    );
}

#[test]
fn a_storm_is_told_three_at_once_then_one_in_twenty_seconds_the_worst_first() {
    check(
        "0s raise a HIGH
         0s raise b HIGH
         0s raise c HIGH
         0s raise d MEDIUM
         0s raise e CRITICAL
         0s raise f MEDIUM
         30s over f
         50s over a
         200s end",
        "0s trigger a HIGH x1
         0s trigger b HIGH x1
         0s trigger c HIGH x1
         20s trigger e CRITICAL x1
         40s trigger d MEDIUM x1
         50s resolve a HIGH x1",
    );
}

#[test]
fn only_so_many_are_open_and_the_others_are_counted() {
    let by = Rules { open: 2, ..rules() };
    let play = check_by(
        by,
        "0s raise a HIGH
         1s raise b HIGH
         2s raise c HIGH
         3s over a
         4s raise c HIGH",
        "0s trigger a HIGH x1
         1s trigger b HIGH x1
         3s resolve a HIGH x1
         4s trigger c HIGH x1",
    );
    assert_eq!(play.book.dropped(), 1);
}

#[test]
fn a_dead_receiver_is_tried_less_and_less_often_and_hears_the_newest_when_it_is_back() {
    let play = check(
        "0s all answers busy
         0s raise a MEDIUM
         5s raise a HIGH
         100s all answers taken
         200s over a",
        "0s trigger a MEDIUM x1 (again)
         1s trigger a MEDIUM x1 (again)
         3s trigger a MEDIUM x1 (again)
         7s update a HIGH x2 (again)
         15s update a HIGH x2 (again)
         31s update a HIGH x2 (again)
         63s update a HIGH x2 (again)
         123s update a HIGH x2
         200s resolve a HIGH x2",
    );
    let counts = play.outboxes[0].1.counts();
    assert_eq!((counts.sent, counts.superseded, counts.retried), (2, 1, 7));
}

#[test]
fn what_is_over_before_it_could_be_sent_is_never_sent() {
    let play = check(
        "0s all answers busy 60
         0s raise a HIGH
         30s over a
         40s all answers taken
         70s raise b HIGH",
        "0s trigger a HIGH x1 (again)
         70s trigger b HIGH x1",
    );
    let counts = play.outboxes[0].1.counts();
    assert_eq!((counts.sent, counts.superseded, counts.waiting), (1, 2, 0));
}

#[test]
fn what_may_have_arrived_is_resolved_when_it_is_over() {
    check(
        "0s all answers lost
         0s raise a HIGH
         0.5s over a
         0.6s all answers taken
         10s end",
        "0s trigger a HIGH x1 (again)
         1s resolve a HIGH x1",
    );
}

#[test]
fn retry_after_is_kept_and_holds_up_everything_to_that_receiver_alone() {
    let play = check(
        "0s slack answers busy 120
         0s raise a HIGH
         1s raise b HIGH
         2s slack answers taken
         130s end",
        "0s trigger a HIGH x1 (again)
         120s trigger a HIGH x1
         120s trigger b HIGH x1",
    );
    assert!(play.seen.contains("0s pager trigger a"), "{}", play.seen);
    assert!(play.seen.contains("1s pager trigger b"), "{}", play.seen);
}

#[test]
fn a_receiver_that_refuses_is_not_asked_again_and_not_told_that_it_is_over() {
    let play = check(
        "0s all answers refused
         0s raise a HIGH
         1s all answers taken
         2s over a
         3s raise a HIGH",
        "0s trigger a HIGH x1 (refused)
         3s trigger a HIGH x1",
    );
    let counts = play.outboxes[0].1.counts();
    assert_eq!((counts.refused, counts.superseded, counts.open), (1, 1, 1));
    assert_eq!(counts.last_failure.as_deref(), Some("no"));
}

#[test]
fn a_receiver_that_was_dead_for_long_is_told_of_what_lasts_and_not_of_what_is_over() {
    let play = check(
        "0s all answers busy 300
         0s raise a HIGH
         1s raise b HIGH
         2s over b
         250s raise a HIGH
         500s raise a HIGH
         700s all answers taken
         750s raise a HIGH
         2000s end",
        "0s trigger a HIGH x1 (again)
         300s trigger a HIGH x1 (again)
         600s trigger a HIGH x1 (again)
         900s trigger a HIGH x1
         1050s resolve a HIGH x4",
    );
    let counts = play.outboxes[0].1.counts();
    assert_eq!((counts.sent, counts.superseded, counts.waiting), (2, 2, 0));
}

#[test]
fn an_alert_that_comes_again_before_its_end_was_sent_stays_open() {
    check(
        "0s raise a HIGH
         1s all answers busy
         2s over a
         2.5s raise a HIGH
         2.6s all answers taken
         10s over a",
        "0s trigger a HIGH x1
         2s resolve a HIGH x1 (again)
         3s trigger a HIGH x1
         10s resolve a HIGH x1",
    );
}

#[test]
fn a_full_queue_drops_the_oldest_trigger_and_never_a_resolve() {
    let by = Rules {
        burst: 100,
        ..rules()
    };
    let play = check_by(
        by,
        "0s raise a HIGH
         1s all answers busy 60
         2s over a
         3s raise b HIGH
         3s raise c HIGH
         3s raise d HIGH
         3s raise e HIGH
         3s raise f HIGH
         10s all answers taken
         100s end",
        "0s trigger a HIGH x1
         2s resolve a HIGH x1 (again)
         62s resolve a HIGH x1
         62s trigger c HIGH x1
         62s trigger d HIGH x1
         62s trigger e HIGH x1
         62s trigger f HIGH x1",
    );
    let counts = play.outboxes[0].1.counts();
    assert_eq!((counts.queue_full, counts.open), (1, 4));
}

/// Every notice ends in exactly one count, and a receiver is told of an end only when it was told, or may have been, before.
#[test]
fn whatever_happens_notices_are_counted_once_and_ends_follow_beginnings() {
    use proptest::prelude::*;
    let step = (0..6_u8, 0..4_u8, 0..5_u8, 0..200_u64);
    proptest!(|(steps in proptest::collection::vec(step, 0..120))| {
        let mut play = Play::new(rules(), &delivery());
        let mut pushed = 0_u64;
        let mut had: BTreeMap<String, bool> = BTreeMap::new();
        for (what, key, how, pass) in steps {
            play.now += Duration::from_secs(pass);
            let key = char::from(b'a' + key).to_string();
            let severity = ["LOW", "MEDIUM", "HIGH", "CRITICAL"][usize::from(how % 4)];
            let mut notices = play.book.tick(play.now);
            match what {
                0..=2 => notices.extend(play.book.raise(play.now, alert(&key, severity, 1))),
                3 => notices.extend(play.book.over(&key)),
                _ => {
                    let answer = match how {
                        0 | 1 => Outcome::Taken,
                        2 => again(None, true),
                        3 => again(Some(30), false),
                        _ => Outcome::Refused { why: String::new() },
                    };
                    play.outboxes[0].2 = answer;
                }
            }
            let (_, outbox, answer) = &mut play.outboxes[0];
            for notice in notices {
                outbox.push(notice);
                pushed += 1;
            }
            while let Step::Send(notice) = outbox.next(play.now) {
                let key = notice.alert.key.clone();
                if notice.action == Action::Resolve {
                    prop_assert!(had.contains_key(&key), "end of {key} without a beginning");
                } else if !matches!(answer, Outcome::Refused { .. } | Outcome::Again { may_have_arrived: false, .. }) {
                    had.insert(key, true);
                }
                outbox.done(play.now, answer.clone(), MIDDLE);
            }
            let c = outbox.counts();
            let all = c.waiting + c.sent + c.superseded + c.queue_full + c.refused;
            prop_assert_eq!(all, pushed);
            prop_assert!(c.waiting <= 8 && c.open <= 4);
        }
    });
}

#[test]
fn texts_are_one_line_of_limited_length_and_the_source_is_never_empty() {
    let alert = Alert {
        key: "k".repeat(1000),
        summary: format!("a\nb{}", "é".repeat(2000)),
        source: " ".to_owned(),
        details: (0..100)
            .map(|i| (i.to_string(), "\u{1b}[31m".to_owned()))
            .collect(),
        needs: 0,
        ..alert("k", "HIGH", 1)
    };
    let other = Alert {
        key: "k".repeat(1001),
        ..alert.clone()
    };
    let alert = alert.within_limits("node-7");
    assert!(alert.key.len() <= MAX_KEY && alert.key.starts_with("kkk"));
    assert_ne!(alert.key, other.within_limits("node-7").key);
    assert!(alert.summary.starts_with("a b") && alert.summary.len() <= MAX_TEXT);
    assert_eq!((alert.source.as_str(), alert.needs), ("node-7", 1));
    assert_eq!(
        (alert.details.len(), alert.details[0].1.as_str()),
        (MAX_DETAILS, " [31m")
    );
}
