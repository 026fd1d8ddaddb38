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
/// Minutes of the files' counts that are read at once, and keys in them: more are those of no machine.
const AT_ONCE: u64 = 60 * MINUTE;
const MOST_COUNTED: usize = 1 << 19;

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
    /// The files whose counts are added.
    dbs: Vec<&'a TraceDb>,
    open: BTreeMap<Key, Sum>,
    /// Minutes before this are closed.
    closed: u64,
    only_counted: u64,
    ready: Vec<Event>,
}

impl<'a> Totals<'a> {
    /// `dbs` are the files of this session whose counts are its own ([`super::Imported::has_aggregates`]).
    pub fn new(dbs: impl IntoIterator<Item = &'a TraceDb>) -> Totals<'a> {
        let counts = |db: &&TraceDb| db.schema.has_table("event_aggregates");
        Totals {
            dbs: dbs.into_iter().filter(counts).collect(),
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
            if !self.dbs.is_empty() {
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
        loop {
            let counted = self
                .dbs
                .iter()
                .filter_map(|db| self.next_counted(db, until));
            let open = self.open.first_key_value().map(|((minute, ..), _)| *minute);
            let next = counted.chain(open.filter(|m| *m < until)).min();
            match next {
                Some(minute) => self.close_some(minute.saturating_add(AT_ONCE).min(until))?,
                None => break,
            }
        }
        self.closed = until;
        Ok(())
    }

    /// The first minute that a file counted, of those that are not closed.
    fn next_counted(&self, db: &TraceDb, until: u64) -> Option<u64> {
        let sql = "SELECT min(bucket) FROM main.event_aggregates \
                   WHERE typeof(bucket) = 'integer' AND bucket >= ?1 AND bucket < ?2";
        let mut query = db.connection.prepare_cached(sql).ok()?;
        let bounds = (signed(self.closed), signed(until));
        let first: Option<i64> = query.query_row(bounds, |row| row.get(0)).ok()?;
        u64::try_from(first?).ok()
    }

    fn close_some(&mut self, until: u64) -> Result<(), TraceDbError> {
        // Rows of one minute may be in two files, one of which was begun when the other was full.
        let mut counted: BTreeMap<Key, (u64, u64)> = BTreeMap::new();
        for db in self.dbs.clone() {
            self.read_counted(db, until, &mut counted)?;
        }
        for (key, (count, total)) in counted {
            let sum = self.open.entry(key).or_default();
            let more = count.saturating_sub(sum.count);
            if more > 0 {
                let rest = total.saturating_sub(sum.total);
                sum.count += more;
                sum.total = sum.total.saturating_add(rest);
                *sum.buckets.entry(bucket(rest / more) as u16).or_default() += more;
                self.only_counted = self.only_counted.saturating_add(more);
            }
        }
        let later = self.open.split_off(&(until, 0, 0, 0));
        for (key, sum) in std::mem::replace(&mut self.open, later) {
            self.tell(key, sum);
        }
        self.closed = until;
        Ok(())
    }

    /// Adds up what a file counted, of the minutes from the last one closed up to `until`.
    fn read_counted(
        &self,
        db: &TraceDb,
        until: u64,
        counted: &mut BTreeMap<Key, (u64, u64)>,
    ) -> Result<(), TraceDbError> {
        let sql = "SELECT bucket, source, op, pid, count, sum_dur FROM main.event_aggregates \
                   WHERE typeof(bucket) = 'integer' AND bucket >= ?1 AND bucket < ?2";
        let Ok(mut query) = db.connection.prepare_cached(sql) else {
            // An older shape of the table: what it counts is not known.
            return Ok(());
        };
        let mut rows = query
            .query((signed(self.closed), signed(until)))
            .map_err(|e| db.failure(e))?;
        let mut read = 0;
        while let Ok(Some(row)) = rows.next() {
            read += 1;
            // A hostile table has any number of keys.
            if read > db.rows_at_most || counted.len() > MOST_COUNTED {
                break;
            }
            let number = |column: usize| row.get::<_, i64>(column).ok();
            let fields = (|| {
                Some((
                    u64::try_from(number(0)?).ok()? / MINUTE * MINUTE,
                    u8::try_from(number(1)?).ok()?,
                    u16::try_from(number(2)?).ok()?,
                    u32::try_from(number(3)?).ok()?,
                    u64::try_from(number(4)?).ok()?,
                    u64::try_from(number(5)?).ok()?,
                ))
            })();
            if let Some((minute, source, op, pid, count, total)) = fields
                && op_of(source, op).is_some()
            {
                let sum = counted.entry((minute, source, op, pid)).or_default();
                sum.0 = sum.0.saturating_add(count);
                sum.1 = sum.1.saturating_add(total);
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

fn signed(nanos: u64) -> i64 {
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

fn op_of(source: u8, op: u16) -> Option<OpId> {
    let source = Source::from_u8(source)?;
    OpId::find(source, op)
}
