//! Files that were damaged, or made to harm.

use std::path::Path;

use rusqlite::Connection;
use warptrace_store::sqlite::TraceDbError;

use crate::database::{MS, Row, T, Version, create, import, insert, row};
use crate::support::Numbers;

#[test]
fn what_is_no_trace_is_an_error_that_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = |result: Result<_, TraceDbError>| match result {
        Ok(_) => panic!("it was imported"),
        Err(e) => e.to_string(),
    };
    assert!(text(import(&path("missing.db")).map(drop)).starts_with("cannot read"));
    std::fs::write(path("empty.db"), "").unwrap();
    std::fs::write(path("text.db"), "SQLite format 2").unwrap();
    std::fs::write(path("head.db"), b"SQLite format 3\0").unwrap();
    for name in ["empty.db", "text.db", "head.db"] {
        assert!(
            text(import(&path(name)).map(drop)).ends_with("is not an SQLite database"),
            "{name}"
        );
    }
    assert!(text(import(dir.path()).map(drop)).ends_with("is not an SQLite database"));

    Connection::open(path("other.db"))
        .unwrap()
        .execute_batch("CREATE TABLE events (a, b); CREATE TABLE t (c)")
        .unwrap();
    assert!(text(import(&path("other.db")).map(drop)).contains("without a table \"events\""));
    // A view would run what the file says: this one for ever.
    Connection::open(path("view.db"))
        .unwrap()
        .execute_batch(
            "CREATE VIEW events AS WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t)
             SELECT n AS timestamp, n AS pid, n AS tid, 1 AS source, 1 AS op, 0 AS duration FROM t",
        )
        .unwrap();
    assert!(text(import(&path("view.db")).map(drop)).contains("without a table \"events\""));

    let c = create(&path("newer.db"), Version::V17);
    c.pragma_update(None, "user_version", 11).unwrap();
    drop(c);
    assert!(text(import(&path("newer.db")).map(drop)).contains("newer agent (user_version 11"));
}

#[test]
fn values_of_the_wrong_type_and_size_cost_their_row() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ingero.db");
    let c = create(&path, Version::V10);
    for i in 0..14 {
        insert(&c, Version::V10, i, &row(T + i as i64 * MS, 100, 1, 5, 10));
    }
    for (rowid, change) in [
        (1, "timestamp = 'soon'"),
        (2, "timestamp = -1"),
        (3, "timestamp = 0"),
        (4, "duration = -5"),
        (5, "duration = 1.5"),
        (6, "pid = 4294967296"),
        (7, "op = x'05'"),
        (
            8,
            "timestamp = 9223372036854775807, duration = 9223372036854775807",
        ),
        (9, "source = zeroblob(50000000)"),
        // These cost nothing but themselves.
        (10, "comm = CAST(zeroblob(50000000) AS TEXT)"),
        (11, "comm = CAST(x'ff41' AS TEXT)"),
        (12, "stack_hash = 12345"),
    ] {
        c.execute(
            &format!("UPDATE events SET {change} WHERE rowid = {rowid}"),
            [],
        )
        .unwrap();
    }
    drop(c);
    let before = resident();
    let got = import(&path).unwrap();
    assert_eq!(got.events().len(), 5, "{:#?}", got.tally);
    assert_eq!(got.tally.kept["events"], 5);
    assert_eq!(got.tally.skipped_rows(), 9);
    assert_eq!(got.skipped("events", "a value is not a whole number"), 4);
    assert_eq!(got.skipped("events", "a number is out of range"), 3);
    assert_eq!(got.skipped("events", "it has no time"), 1);
    assert_eq!(got.skipped("events", "its time is out of range"), 1);
    let places = &got.tally.skipped[&("events", "a value is not a whole number".to_owned())].places;
    assert_eq!(
        places.as_slice(),
        ["events row 1", "events row 5", "events row 7"]
    );
    assert!(
        resident() < before + (48 << 20),
        "fifty megabytes of text were read"
    );
}

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

#[test]
fn computed_columns_and_triggers_do_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ingero.db");
    let c = Connection::open(&path).unwrap();
    c.execute_batch(&format!(
        "CREATE TABLE events (id TEXT PRIMARY KEY, timestamp INTEGER, pid INTEGER, tid INTEGER, source INTEGER,
         op INTEGER, duration INTEGER, comm TEXT AS (hex(zeroblob(400000000))), arg0 INTEGER);
         INSERT INTO events (id, timestamp, pid, tid, source, op, duration) VALUES ('1', {T}, 1, 1, 1, 5, 1);"
    ))
    .unwrap();
    drop(c);
    assert_eq!(import(&path).unwrap().events().len(), 1);
}

/// A database of a few pages of every sort.
fn sample(path: &Path) {
    let c = create(path, Version::V17);
    c.execute_batch("BEGIN").unwrap();
    for i in 0..400 {
        let r = Row {
            stack: i as i64 % 7 - 3,
            node: "node-a",
            comm: "python",
            ..row(
                T + i as i64 * MS,
                100 + i as i64 % 3,
                1,
                1 + i as i64 % 8,
                10,
            )
        };
        insert(&c, Version::V17, i, &r);
    }
    for i in 0..100 {
        c.execute(
            "INSERT INTO annotations (timestamp, labels) VALUES (?1, '{\"step\":\"1\"}')",
            [T + i],
        )
        .unwrap();
        c.execute(
            "INSERT INTO stack_traces VALUES (?1, '[\"0x1\"]', '[{\"s\":\"f\"}]')",
            [i - 50],
        )
        .unwrap();
        c.execute(
            "INSERT INTO event_aggregates VALUES (?1, 1, 3, 100, 5, 1, 100, 1, 50, 0)",
            [T + i],
        )
        .unwrap();
    }
    c.execute_batch("COMMIT").unwrap();
    c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
}

#[test]
fn two_hundred_damaged_files_cost_what_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole.db");
    sample(&whole);
    let bytes = std::fs::read(&whole).unwrap();
    let rows = |path: &Path| match import(path) {
        Ok(got) => {
            for (node, session) in got.survey.nodes.iter().zip(&got.sessions) {
                assert!(node.rows <= 400 && session.gaps().is_ok());
            }
            let db = warptrace_store::sqlite::TraceDb::open(path).ok();
            let mut totals = warptrace_store::sqlite::Totals::new(db.as_ref());
            let _ = totals.take(true);
            Some(got.tally.kept_rows())
        }
        Err(_) => None,
    };
    let all = rows(&whole).unwrap();
    let mut n = Numbers(7);
    let (mut refused, mut partly, mut unharmed) = (0, 0, 0);
    let path = dir.path().join("damaged.db");
    for case in 0..200 {
        let mut damaged = bytes.clone();
        match case % 4 {
            // Bits, anywhere.
            0 => {
                for _ in 0..1 + n.below(40) {
                    let at = n.below(damaged.len() as u64) as usize;
                    damaged[at] ^= 1 << n.below(8);
                }
            }
            // The begin of pages: what holds trees together.
            1 => {
                for _ in 0..1 + n.below(4) {
                    let page = n.below(damaged.len() as u64 / 4096) as usize * 4096;
                    let at = page + n.below(24) as usize;
                    damaged[at] = n.next() as u8;
                }
            }
            // Pages in the place of others: trees that share and loop.
            2 => {
                for _ in 0..1 + n.below(4) {
                    let pages = damaged.len() as u64 / 4096;
                    let (from, to) = (
                        n.below(pages) as usize * 4096,
                        4096 + n.below(pages - 1) as usize * 4096,
                    );
                    damaged.copy_within(from..from + 4096, to);
                }
            }
            _ => damaged.truncate(n.below(damaged.len() as u64) as usize),
        }
        std::fs::write(&path, &damaged).unwrap();
        match rows(&path) {
            None => refused += 1,
            Some(kept) if kept < all => partly += 1,
            Some(kept) => {
                assert!(kept <= all + 100, "case {case}: {kept} rows out of {all}");
                unharmed += 1;
            }
        }
    }
    // Each of the three does happen.
    assert!(
        refused > 10 && partly > 10 && unharmed > 0,
        "{refused} refused, {partly} partly, {unharmed} whole"
    );
}
