//! Databases as the agent made them, by the statements of each of its versions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, params};
use warptrace_model::{Event, UnixNanos};
use warptrace_store::fs::MemFs;
use warptrace_store::sqlite::{Imported, Survey, Tally, TraceDb, TraceDbError};
use warptrace_store::{DataDir, Session, SessionMeta, SessionWriter};

/// A time in November 2026, Unix ns.
pub(crate) const T: i64 = 1_795_301_100_000_000_000;
pub(crate) const MS: i64 = 1_000_000;

/// A version of the agent, by the shape of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// Numbered ids, stacks with the rows.
    V05,
    /// Interned stacks, sessions, sums.
    V06,
    /// Control groups.
    V07,
    /// Nodes and ranks, text ids.
    V09,
    /// Names with the rows.
    V10,
    /// Annotations.
    V17,
}

pub(crate) const VERSIONS: [Version; 6] = [
    Version::V05,
    Version::V06,
    Version::V07,
    Version::V09,
    Version::V10,
    Version::V17,
];

/// A new database, in WAL mode as the agent's.
pub(crate) fn create(path: &Path, version: Version) -> Connection {
    let c = Connection::open(path).unwrap();
    c.execute_batch("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL;")
        .unwrap();
    let base = "timestamp INTEGER NOT NULL, pid INTEGER NOT NULL, tid INTEGER NOT NULL, source INTEGER NOT NULL,
        op INTEGER NOT NULL, duration INTEGER NOT NULL, gpu_id INTEGER NOT NULL DEFAULT 0,
        arg0 INTEGER NOT NULL DEFAULT 0, arg1 INTEGER NOT NULL DEFAULT 0, ret_code INTEGER NOT NULL DEFAULT 0";
    let events = match version {
        Version::V05 => format!(
            "CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, {base}, stack_ips TEXT NOT NULL DEFAULT '')"
        ),
        Version::V06 | Version::V07 => format!(
            "CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, {base}, stack_hash INTEGER NOT NULL DEFAULT 0)"
        ),
        Version::V09 => format!(
            "CREATE TABLE events (id TEXT PRIMARY KEY, {base}, stack_hash INTEGER NOT NULL DEFAULT 0,
             node TEXT NOT NULL DEFAULT '', rank INTEGER, local_rank INTEGER, world_size INTEGER)"
        ),
        Version::V10 | Version::V17 => format!(
            "CREATE TABLE events (id TEXT PRIMARY KEY, {base}, stack_hash INTEGER NOT NULL DEFAULT 0,
             node TEXT NOT NULL DEFAULT '', rank INTEGER, local_rank INTEGER, world_size INTEGER,
             comm TEXT NOT NULL DEFAULT '')"
        ),
    };
    c.execute_batch(&events).unwrap();
    if version >= Version::V06 {
        c.execute_batch("ALTER TABLE events ADD COLUMN stack_ips TEXT NOT NULL DEFAULT '';")
            .unwrap();
        let sums = "(bucket INTEGER NOT NULL, source INTEGER NOT NULL, op INTEGER NOT NULL,
             pid INTEGER NOT NULL DEFAULT 0, count INTEGER NOT NULL DEFAULT 0, stored INTEGER NOT NULL DEFAULT 0,
             sum_dur INTEGER NOT NULL DEFAULT 0, min_dur INTEGER NOT NULL DEFAULT 0,
             max_dur INTEGER NOT NULL DEFAULT 0, sum_arg0 INTEGER NOT NULL DEFAULT 0,
             PRIMARY KEY (bucket, source, op, pid))";
        c.execute_batch(&format!(
            "CREATE TABLE stack_traces (hash INTEGER PRIMARY KEY, ips TEXT NOT NULL, frames TEXT NOT NULL DEFAULT '');
             CREATE TABLE system_snapshots (id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp INTEGER NOT NULL UNIQUE,
             cpu_pct REAL NOT NULL, mem_pct REAL NOT NULL, mem_avail INTEGER NOT NULL, swap_mb INTEGER NOT NULL,
             load_avg REAL NOT NULL);
             CREATE TABLE process_names (pid INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL,
             seen_at INTEGER NOT NULL DEFAULT 0);
             CREATE TABLE event_aggregates {sums}; CREATE TABLE event_aggregates_5s {sums};
             CREATE TABLE causal_chains (id TEXT PRIMARY KEY, detected_at INTEGER NOT NULL, severity TEXT NOT NULL,
             summary TEXT NOT NULL, root_cause TEXT NOT NULL, explanation TEXT NOT NULL,
             recommendations TEXT NOT NULL DEFAULT '', cuda_op TEXT NOT NULL DEFAULT '',
             cuda_p99_us INTEGER NOT NULL DEFAULT 0, cuda_p50_us INTEGER NOT NULL DEFAULT 0,
             tail_ratio REAL NOT NULL DEFAULT 0, timeline TEXT NOT NULL DEFAULT '', node TEXT NOT NULL DEFAULT '');
             CREATE TABLE schema_info (key TEXT PRIMARY KEY, value TEXT NOT NULL);"
        ))
        .unwrap();
        let nodes = match version >= Version::V09 {
            true => {
                ", node TEXT NOT NULL DEFAULT '', rank INTEGER, local_rank INTEGER, world_size INTEGER"
            }
            false => "",
        };
        c.execute_batch(&format!(
            "CREATE TABLE sessions (id INTEGER PRIMARY KEY AUTOINCREMENT, started_at INTEGER NOT NULL,
             stopped_at INTEGER NOT NULL DEFAULT 0, cpu_cores INTEGER DEFAULT 0, kernel TEXT NOT NULL DEFAULT ''{nodes});"
        ))
        .unwrap();
    }
    if version >= Version::V07 {
        c.execute_batch(
            "ALTER TABLE events ADD COLUMN cgroup_id INTEGER NOT NULL DEFAULT 0;
             CREATE TABLE cgroup_metadata (cgroup_id INTEGER PRIMARY KEY, container_id TEXT NOT NULL DEFAULT '',
             cgroup_path TEXT NOT NULL DEFAULT '', pod_name TEXT NOT NULL DEFAULT '', namespace TEXT NOT NULL DEFAULT '');
             CREATE TABLE cgroup_schedstat (cgroup_id INTEGER NOT NULL, p99_off_cpu INTEGER NOT NULL,
             total_off_cpu INTEGER NOT NULL, event_count INTEGER NOT NULL, window_start INTEGER NOT NULL DEFAULT 0,
             window_end INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (cgroup_id, window_end));",
        )
        .unwrap();
    }
    if version >= Version::V17 {
        c.execute_batch(
            "CREATE TABLE annotations (id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp INTEGER NOT NULL,
             labels TEXT NOT NULL, pid INTEGER NOT NULL DEFAULT 0, start_time INTEGER NOT NULL DEFAULT 0,
             span_start INTEGER NOT NULL DEFAULT 0, span_end INTEGER NOT NULL DEFAULT 0,
             peer_uid INTEGER NOT NULL DEFAULT 0, peer_gid INTEGER NOT NULL DEFAULT 0,
             peer_pid INTEGER NOT NULL DEFAULT 0);
             PRAGMA user_version = 10;",
        )
        .unwrap();
    }
    c.execute_batch(
        "CREATE INDEX idx_events_timestamp ON events(timestamp); CREATE INDEX idx_events_pid ON events(pid);",
    )
    .unwrap();
    c
}

/// A row of `events`; columns that a version has not are left out of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    pub(crate) at: i64,
    pub(crate) pid: i64,
    pub(crate) tid: i64,
    pub(crate) source: i64,
    pub(crate) op: i64,
    pub(crate) dur: i64,
    pub(crate) arg0: i64,
    pub(crate) arg1: i64,
    pub(crate) ret: i64,
    pub(crate) stack: i64,
    pub(crate) node: &'static str,
    pub(crate) comm: &'static str,
    pub(crate) cgroup: i64,
}

/// A row with the numbers that most tests vary.
pub(crate) fn row(at: i64, tid: i64, source: i64, op: i64, dur: i64) -> Row {
    Row {
        at,
        pid: 100,
        tid,
        source,
        op,
        dur,
        ..Row::default()
    }
}

pub(crate) fn insert(c: &Connection, version: Version, number: usize, r: &Row) {
    let base = "timestamp, pid, tid, source, op, duration, arg0, arg1, ret_code";
    let values = params![
        r.at, r.pid, r.tid, r.source, r.op, r.dur, r.arg0, r.arg1, r.ret
    ];
    c.execute(
        &match version {
            Version::V05 | Version::V06 | Version::V07 => {
                format!("INSERT INTO events ({base}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")
            }
            _ => format!(
                "INSERT INTO events (id, node, {base}) VALUES ('{}:{number}', '{}', ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                r.node, r.node
            ),
        },
        values,
    )
    .unwrap();
    let rowid = c.last_insert_rowid();
    let set = |column: &str, value: &dyn rusqlite::ToSql| {
        c.execute(
            &format!("UPDATE events SET {column} = ?1 WHERE rowid = ?2"),
            params![value, rowid],
        )
        .unwrap();
    };
    if version >= Version::V06 {
        set("stack_hash", &r.stack);
    }
    if version >= Version::V07 {
        set("cgroup_id", &r.cgroup);
    }
    if version >= Version::V10 {
        set("comm", &r.comm);
    }
}

/// What came out of an import.
pub(crate) struct Got {
    pub(crate) sessions: Vec<Session>,
    pub(crate) imported: Vec<Imported>,
    pub(crate) tally: Tally,
    pub(crate) survey: Survey,
}

impl Got {
    pub(crate) fn events(&self) -> Vec<Event> {
        assert_eq!(self.sessions.len(), 1);
        crate::support::read_events(&self.sessions[0], None)
    }

    /// How often rows were skipped for a reason that begins so.
    pub(crate) fn skipped(&self, table: &str, reason: &str) -> u64 {
        let of = |((t, r), s): (&(&'static str, String), &warptrace_store::sqlite::Skipped)| {
            (*t == table && r.starts_with(reason)).then_some(s.count)
        };
        self.tally.skipped.iter().filter_map(of).sum()
    }
}

/// Imports every node of the file, each to a session on a disk in memory.
pub(crate) fn import(path: &Path) -> Result<Got, TraceDbError> {
    let db = TraceDb::open(path)?;
    let survey = db.survey(&mut |_| {})?;
    let fs = MemFs::new();
    let mut got = Got {
        sessions: Vec::new(),
        imported: Vec::new(),
        tally: Tally::default(),
        survey: Survey::default(),
    };
    for (i, node) in survey.nodes.iter().enumerate() {
        let mut meta: SessionMeta = db.session_meta(node, UnixNanos(T as u64 + i as u64))?;
        meta.id = format!("session-{i}");
        let mut writer =
            SessionWriter::create(Arc::new(fs.clone()), &DataDir::at("/data"), meta).unwrap();
        let alone = survey.nodes.len() == 1;
        got.imported
            .push(db.import(node, alone, 0, &mut writer, &mut got.tally, &mut |_| {})?);
        let folder: PathBuf = writer.path().to_owned();
        writer.seal().unwrap();
        got.sessions
            .push(Session::open(Arc::new(fs.clone()), &folder).unwrap());
    }
    got.survey = survey;
    Ok(got)
}
