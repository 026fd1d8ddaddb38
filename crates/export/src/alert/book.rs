//! What to say: which alerts are open, and what of them is news.
//!
//! Pure: times are durations since any one moment, and come in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use warptrace_model::{Severity, UnixNanos};

use super::Alert;

/// What is worth saying, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Alerts below it are not told.
    pub min_severity: Severity,
    /// An alert that was not raised for so long is over.
    pub quiet: Duration,
    /// One that lasts is told again each time that so much passed; `None` is never.
    pub reminder: Option<Duration>,
    /// Alerts that are open at a time. Further ones are dropped and counted.
    pub open: usize,
    /// So many alerts are told at once, and then …
    pub burst: u32,
    /// … as many in so much time. Others wait, the worst first; if they are over meanwhile they are never told.
    pub per: Duration,
}

impl Default for Rules {
    /// `MEDIUM`; over after 5 min; a reminder after 4 h; 1,024 open; 10 a minute.
    fn default() -> Rules {
        Rules {
            min_severity: Severity::Medium,
            quiet: Duration::from_secs(300),
            reminder: Some(Duration::from_secs(4 * 3600)),
            open: 1024,
            burst: 10,
            per: Duration::from_secs(60),
        }
    }
}

/// Why a notice is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// It began, as far as the receiver knows.
    Trigger,
    /// It got worse, or a reminder is due.
    Update,
    /// It is over.
    Resolve,
}

/// Something to say of an alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub action: Action,
    /// As it was raised last, with the highest severity that it had.
    pub alert: Arc<Alert>,
    /// When it was raised first.
    pub began: UnixNanos,
    /// From the first time that it was raised to the last.
    pub lasted: Duration,
    /// How often it was raised.
    pub count: u64,
}

#[derive(Debug)]
struct Open {
    alert: Arc<Alert>,
    began: UnixNanos,
    first: Duration,
    last: Duration,
    count: u64,
    /// With which severity it was told, and when; `None` until then.
    told: Option<(Severity, Duration)>,
}

/// The open alerts.
#[derive(Debug)]
pub struct Book {
    rules: Rules,
    open: BTreeMap<String, Open>,
    /// When the next alert may be told by the rate alone (generic cell rate algorithm, ITU-T I.371).
    next_by_rate: Duration,
    dropped: u64,
}

impl Book {
    pub fn new(rules: Rules) -> Book {
        Book {
            rules,
            open: BTreeMap::new(),
            next_by_rate: Duration::ZERO,
            dropped: 0,
        }
    }

    /// An alert was raised.
    pub fn raise(&mut self, now: Duration, alert: Alert) -> Option<Notice> {
        let key = alert.key.clone();
        let is_full = self.open.len() >= self.rules.open;
        match self.open.get_mut(&key) {
            Some(open) => {
                open.last = now;
                open.count += 1;
                let severity = alert.severity.max(open.alert.severity);
                open.alert = Arc::new(Alert { severity, ..alert });
            }
            None if alert.severity < self.rules.min_severity => return None,
            None if is_full => {
                self.dropped += 1;
                return None;
            }
            None => {
                let open = Open {
                    began: alert.at,
                    first: now,
                    last: now,
                    count: 1,
                    told: None,
                    alert: Arc::new(alert),
                };
                self.open.insert(key.clone(), open);
            }
        }
        self.tell(now, &key)
    }

    /// An alert is over. Nothing is said of one that was never told.
    pub fn over(&mut self, key: &str) -> Option<Notice> {
        let open = self.open.remove(key)?;
        open.told?;
        Some(open.notice(Action::Resolve))
    }

    /// What is due by now: alerts that are over because nobody raised them, then those that waited for their turn, the worst
    /// first, and reminders.
    pub fn tick(&mut self, now: Duration) -> Vec<Notice> {
        let quiet = self.rules.quiet;
        let over = self.open.iter().filter(|(_, o)| now >= o.last + quiet);
        let over: Vec<String> = over.map(|(key, _)| key.clone()).collect();
        let mut notices: Vec<Notice> = over.iter().filter_map(|key| self.over(key)).collect();
        if self.may_tell(now) {
            let due = self.open.iter().filter(|(_, o)| self.is_due(now, o));
            let mut due: Vec<(Severity, Duration, String)> = due
                .map(|(key, o)| (o.alert.severity, o.first, key.clone()))
                .collect();
            due.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| (a.1, &a.2).cmp(&(b.1, &b.2))));
            notices.extend(due.iter().map_while(|(.., key)| self.tell(now, key)));
        }
        notices
    }

    /// When [`Book::tick`] has something to say at the earliest, if nothing is raised before; `None` is never.
    pub fn next(&self, now: Duration) -> Option<Duration> {
        let due = |o: &Open| {
            let over = o.last + self.rules.quiet;
            let told = match (self.is_due(now, o), o.told, self.rules.reminder) {
                (true, ..) => Some(self.by_rate().max(now)),
                (false, Some((_, at)), Some(reminder)) => Some(at + reminder),
                _ => None,
            };
            told.map_or(over, |told| told.min(over))
        };
        self.open.values().map(due).min()
    }

    /// How many alerts are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// How many of them wait for their turn.
    pub fn waiting(&self, now: Duration) -> usize {
        self.open.values().filter(|o| self.is_due(now, o)).count()
    }

    /// Alerts beyond the limit.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn is_due(&self, now: Duration, open: &Open) -> bool {
        match open.told {
            None => open.count >= u64::from(open.alert.needs),
            Some((severity, _)) if open.alert.severity > severity => true,
            Some((_, at)) => self.rules.reminder.is_some_and(|r| now >= at + r),
        }
    }

    fn interval(&self) -> Duration {
        self.rules.per / self.rules.burst.max(1)
    }

    /// From when on the rate lets an alert through.
    fn by_rate(&self) -> Duration {
        let slack = self.interval() * (self.rules.burst.max(1) - 1);
        self.next_by_rate.saturating_sub(slack)
    }

    fn may_tell(&self, now: Duration) -> bool {
        now >= self.by_rate()
    }

    fn tell(&mut self, now: Duration, key: &str) -> Option<Notice> {
        let open = self.open.get(key)?;
        if !self.is_due(now, open) || !self.may_tell(now) {
            return None;
        }
        self.next_by_rate = self.next_by_rate.max(now) + self.interval();
        let open = self.open.get_mut(key)?;
        let action = match open.told {
            None => Action::Trigger,
            Some(_) => Action::Update,
        };
        open.told = Some((open.alert.severity, now));
        Some(open.notice(action))
    }
}

impl Open {
    fn notice(&self, action: Action) -> Notice {
        Notice {
            action,
            alert: Arc::clone(&self.alert),
            began: self.began,
            lasted: self.last - self.first,
            count: self.count,
        }
    }
}
