//! Reading changes nothing: no byte, no file beside it, whatever state the database was left in.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use warptrace_model::Event;
use warptrace_store::sqlite::TraceDb;

use crate::database::{MS, T, Version, create, import, insert, row};
use crate::support::skip;

/// Every file of a folder with its bytes.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                std::fs::read(&path).unwrap(),
            )
        })
        .collect()
}

fn calls(path: &Path) -> usize {
    let events = import(path).unwrap().events();
    events
        .iter()
        .filter(|e| matches!(e, Event::Call(_)))
        .count()
}

/// A database of which some rows are in the file, and some in the log only; `shm`: with the log's index.
fn with_log(to: &Path, shm: bool) {
    let made = tempfile::tempdir().unwrap();
    let path = made.path().join("ingero.db");
    let c = create(&path, Version::V17);
    for i in 0..10 {
        insert(&c, Version::V17, i, &row(T + i as i64 * MS, 100, 1, 5, 10));
    }
    c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    for i in 10..30 {
        insert(&c, Version::V17, i, &row(T + i as i64 * MS, 100, 1, 5, 10));
    }
    // As a crash leaves it, or a copy made while it was written.
    for suffix in ["", "-wal"].into_iter().chain(shm.then_some("-shm")) {
        std::fs::copy(
            format!("{}{suffix}", path.display()),
            to.join(format!("ingero.db{suffix}")),
        )
        .unwrap();
    }
}

#[test]
fn rows_that_are_only_in_the_log_are_read_and_nothing_is_written() {
    for shm in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        with_log(dir.path(), shm);
        let before = contents(dir.path());
        assert!(!before["ingero.db-wal"].is_empty());
        assert_eq!(calls(&dir.path().join("ingero.db")), 30, "shm: {shm}");
        assert_eq!(contents(dir.path()), before, "shm: {shm}");
    }
}

#[test]
fn a_folder_that_nobody_can_write_to_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    with_log(dir.path(), false);
    let path = dir.path().join("ingero.db");
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        std::fs::set_permissions(
            entry.unwrap().path(),
            std::fs::Permissions::from_mode(0o444),
        )
        .unwrap();
    }
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
    assert_eq!(calls(&path), 30);
    // The log alone is missing: what is in the file is read, and a closed database has no log at all.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::remove_file(dir.path().join("ingero.db-wal")).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
    assert_eq!(calls(&path), 10);
    assert_eq!(contents(dir.path()).len(), 1);
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_link_leads_to_the_log_beside_the_file_and_odd_names_are_names() {
    let dir = tempfile::tempdir().unwrap();
    with_log(dir.path(), false);
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link.db");
    std::os::unix::fs::symlink(dir.path().join("ingero.db"), &link).unwrap();
    assert_eq!(calls(&link), 30);
    for suffix in ["", "-wal"] {
        let odd = elsewhere.path().join(format!("a%20b?mode=rw#c {suffix}"));
        std::fs::rename(dir.path().join(format!("ingero.db{suffix}")), odd).unwrap();
    }
    let odd = elsewhere.path().join("a%20b?mode=rw#c ");
    // With the log, and as an immutable file by its URI.
    std::fs::rename(
        elsewhere.path().join("a%20b?mode=rw#c -wal"),
        elsewhere.path().join("a%20b?mode=rw#c -wal2"),
    )
    .unwrap();
    assert_eq!(calls(&odd), 10);
}

#[test]
fn a_database_that_another_program_writes_is_one_snapshot() {
    const WRITER: &str = "
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute('PRAGMA wal_autocheckpoint = 5')
n = 1000
for line in sys.stdin:
    for i in range(50):
        n += 1
        c.execute('INSERT INTO events (id, timestamp, pid, tid, source, op, duration) VALUES (?, ?, 1, 1, 1, 5, 10)', (f':{n}', 1795301100000000000 + n))
    print(c.execute('SELECT count(*) FROM events').fetchone()[0], flush=True)
";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ingero.db");
    drop(create(&path, Version::V17));
    let child = Command::new("python3")
        .args(["-c", WRITER])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else {
        skip("sqlite_live_writer", "no python3");
        return;
    };
    let mut to = child.stdin.take().unwrap();
    let mut from = BufReader::new(child.stdout.take().unwrap());
    let mut write = || -> Option<usize> {
        writeln!(to, "more").ok()?;
        let mut line = String::new();
        from.read_line(&mut line).ok()?;
        line.trim().parse().ok()
    };
    let Some(written) = write() else {
        let _ = child.wait();
        skip("sqlite_live_writer", "this python3 has no sqlite3");
        return;
    };
    let db = TraceDb::open(&path).unwrap();
    // The log grows and is checkpointed while we read: the snapshot stays.
    let more = write().unwrap();
    assert!(more > written);
    assert_eq!(
        db.survey(&mut |_| {}).unwrap().nodes[0].rows,
        written as u64
    );
    assert!(!db.changed(), "the locks kept it");
    drop(db);
    assert_eq!(calls(&path), more);
    drop(to);
    child.wait().unwrap();
}

#[test]
fn a_writer_who_comes_while_no_lock_keeps_him_out_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ingero.db");
    let c = create(&path, Version::V17);
    insert(&c, Version::V17, 1, &row(T, 100, 1, 5, 10));
    drop(c);
    let db = TraceDb::open(&path).unwrap();
    assert!(!db.changed());
    let c = rusqlite::Connection::open(&path).unwrap();
    insert(&c, Version::V17, 2, &row(T + MS, 100, 1, 5, 10));
    assert!(db.changed());
}
