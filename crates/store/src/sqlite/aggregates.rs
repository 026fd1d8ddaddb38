//! Exact counts of calls: what was stored one by one, and what was only counted in `event_aggregates`.
//!
//! Calls are counted by minute of their entry, as that table does. When a minute is over, its rows there say how many
//! calls of a key there were in all; those that are no rows of `events` are added with the sum of their durations, each
//! at their mean: how they were spread is not known.

use std::collections::BTreeMap;

use warptrace_model::{
    BootNanos, Call, Event, Gap, GapCode, Histogram, OpCount, OpKey, Pid, Window,
};
use warptrace_record::histogram::{BUCKETS, bucket};
use warptrace_record::{OpId, Source};

use super::open::{TraceDb, TraceDbError};

const MINUTE: u64 = 60_000_000_000;
/// Keys of all open minutes. Beyond that the oldest minutes are closed: calls of theirs that come later are not added.
const KEYS: usize = 1 << 15;

/// Begin of the minute, source, op, process.
type Key = (u64, u8, u16, u32);

#[derive(Default)]
struct Sum {
    count: u64,
    total: u64,
    buckets: BTreeMap<u16, u64>,
}

/// Counts calls as they are replayed.
pub struct Totals<'a> {
    /// The file whose counts are added, when they are of this session.
    db: Option<&'a TraceDb>,
    open: BTreeMap<Key, Sum>,
    /// Minutes before this are closed.
    closed: u64,
    only_counted: u64,
    ready: Vec<Event>,
}

impl<'a> Totals<'a> {
    pub fn new(db: Option<&'a TraceDb>) -> Totals<'a> {
        Totals {
            db: db.filter(|db| db.schema.has_table("event_aggregates")),
            open: BTreeMap::new(),
            closed: 0,
            only_counted: 0,
            ready: Vec::new(),
        }
    }

    /// Counts a call. Cost: O(log n) in the keys of the open minutes.
    ///
    /// # Errors
    /// [`TraceDbError::Sqlite`].
    pub fn call(&mut self, call: &Call) -> Result<(), TraceDbError> {
        let op = call.op.get();
        let minute = call.start.0 / MINUTE * MINUTE;
        if minute < self.closed {
            // Its minute's count, which is closed, has it; without a count nobody has.
            if self.db.is_some() {
                return Ok(());
            }
        }
        let key = (minute, op.source as u8, op.number, call.thread.pid.0);
        let sum = self.open.entry(key).or_default();
        sum.count += 1;
        sum.total = sum.total.saturating_add(call.dur);
        *sum.buckets.entry(bucket(call.dur) as u16).or_default() += 1;
        if self.open.len() > KEYS {
            let oldest = self.open.first_key_value().map_or(0, |((m, ..), _)| *m);
            self.close(oldest.saturating_add(MINUTE))?;
        }
        Ok(())
    }

    /// Takes the counts that are ready: all of them, when it is the `end`.
    ///
    /// # Errors
    /// [`TraceDbError::Sqlite`].
    pub fn take(&mut self, end: bool) -> Result<Vec<Event>, TraceDbError> {
        if end {
            self.close(u64::MAX)?;
        }
        Ok(std::mem::take(&mut self.ready))
    }

    /// What cannot be known of calls that were only counted.
    pub fn gaps(&self) -> Vec<Gap> {
        let count = self.only_counted;
        let gap = Gap {
            code: GapCode::NotRecorded,
            detail: "single calls that the imported trace only counted: they are in the counts, each with the mean of \
                     its minute, and in no step; time in them shows as time between calls"
                .to_owned(),
            count,
        };
        if count > 0 { vec![gap] } else { Vec::new() }
    }

    /// Ends all minutes before `until`.
    fn close(&mut self, until: u64) -> Result<(), TraceDbError> {
        if let Some(db) = self.db {
            self.add_counted(db, until)?;
        }
        let later = self.open.split_off(&(until, 0, 0, 0));
        for (key, sum) in std::mem::replace(&mut self.open, later) {
            self.tell(key, sum);
        }
        self.closed = until;
        Ok(())
    }

    /// Adds the calls that the file only counted, of the minutes from the last one closed up to `until`.
    fn add_counted(&mut self, db: &TraceDb, until: u64) -> Result<(), TraceDbError> {
        let signed = |nanos: u64| i64::try_from(nanos).unwrap_or(i64::MAX);
        let sql = "SELECT bucket, source, op, pid, count, sum_dur FROM main.event_aggregates \
                   WHERE typeof(bucket) = 'integer' AND bucket >= ?1 AND bucket < ?2 ORDER BY bucket, source, op, pid";
        let failure = |e| db.failure(e);
        let Ok(mut query) = db.connection.prepare_cached(sql) else {
            // An older shape of the table: what it counts is not known.
            return Ok(());
        };
        let mut rows = query
            .query((signed(self.closed), signed(until)))
            .map_err(failure)?;
        let mut read = 0;
        while let Ok(Some(row)) = rows.next() {
            read += 1;
            if read > db.rows_at_most {
                break;
            }
            let number = |column: usize| row.get::<_, i64>(column).ok();
            let fields = (|| {
                Some((
                    u64::try_from(number(0)?).ok()?,
                    u8::try_from(number(1)?).ok()?,
                    u16::try_from(number(2)?).ok()?,
                    u32::try_from(number(3)?).ok()?,
                    u64::try_from(number(4)?).ok()?,
                    u64::try_from(number(5)?).ok()?,
                ))
            })();
            let Some((minute, source, op, pid, count, total)) = fields else {
                continue;
            };
            if op_of(source, op).is_none() {
                continue;
            }
            let minute = minute / MINUTE * MINUTE;
            let sum = self.open.entry((minute, source, op, pid)).or_default();
            let more = count.saturating_sub(sum.count);
            if more > 0 {
                let rest = total.saturating_sub(sum.total);
                sum.count += more;
                sum.total = sum.total.saturating_add(rest);
                *sum.buckets.entry(bucket(rest / more) as u16).or_default() += more;
                self.only_counted = self.only_counted.saturating_add(more);
            }
            // A hostile table has any number of keys.
            if self.open.len() > 2 * KEYS {
                let keys: Vec<Key> = self
                    .open
                    .range(..(minute, 0, 0, 0))
                    .map(|(k, _)| *k)
                    .collect();
                for key in keys {
                    if let Some(sum) = self.open.remove(&key) {
                        self.tell(key, sum);
                    }
                }
                if self.open.len() > 4 * KEYS {
                    break;
                }
            }
        }
        Ok(())
    }

    fn tell(&mut self, (minute, source, op, pid): Key, sum: Sum) {
        let Some(op) = op_of(source, op) else { return };
        let mut durations = Histogram::default();
        for (bucket, n) in sum.buckets {
            durations.add(usize::from(bucket).min(BUCKETS - 1), n);
        }
        self.ready.push(Event::Counts(Box::new(OpCount {
            key: OpKey {
                pid: Pid(pid),
                device: None,
                op,
            },
            window: Window::at(BootNanos(minute), MINUTE),
            total: sum.total,
            durations,
        })));
    }
}

fn op_of(source: u8, op: u16) -> Option<OpId> {
    let source = Source::from_u8(source)?;
    OpId::find(source, op)
}
