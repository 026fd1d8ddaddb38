//! Opening somebody else's database so that nothing of it, nor beside it, changes.
//!
//! SQLite reads a file in rollback mode without a trace. One in WAL mode it opens only with an index of the log beside it
//! (`-shm`), which it would make. So, by what is there:
//!
//! | log (`-wal`) | somebody has it open | how |
//! |---|---|---|
//! | none, or empty | – | `immutable=1`: the file alone, no lock |
//! | some | no | without locks, and the index in memory (exclusive locking mode): what a crash or a copy left |
//! | some | yes | as any reader: the index is there, and the locks keep the snapshot |
//!
//! Without locks nobody keeps a writer out who begins meanwhile: [`TraceDb::changed`] says so afterwards.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags};

use super::table::Schema;

/// The newest `PRAGMA user_version` that is understood, and the one that is written.
pub(crate) const USER_VERSION: i64 = 10;

/// The first bytes of every SQLite database (file format, section 1.3).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Bytes of the header.
const HEADER: usize = 100;
/// Longest value that SQLite may build, bytes: more than any that is asked for.
const LONGEST: i32 = 4 << 20;
/// A cell of a table takes at least so many bytes of a page: a pointer, a size, a rowid, a header of one column.
const LEAST_ROW: u64 = 6;
/// Steps of SQLite's machine between two looks at the budget.
const LOOK_EVERY: i32 = 1_000_000;
/// Steps that reading a row may take, of all passes together.
const STEPS_PER_ROW: u64 = 4_000;
/// Steps that any file has.
const STEPS_AT_LEAST: u64 = 200_000_000;

/// Why a database could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceDbError {
    #[error("cannot read {0:?}")]
    Io(PathBuf, #[source] std::io::Error),
    #[error("{0:?} is not an SQLite database")]
    NotADatabase(PathBuf),
    #[error(
        "{0:?} is an SQLite database without a table \"events\" that has the columns of a trace"
    )]
    NotATrace(PathBuf),
    #[error(
        "{path:?} was written by a newer agent (user_version {found}, this one reads up to {USER_VERSION}): upgrade"
    )]
    Newer { path: PathBuf, found: i64 },
    #[error(
        "{0:?} was left in the middle of a change, and reading must not finish that: open it once with the program that wrote it"
    )]
    HotJournal(PathBuf),
    #[error("SQLite cannot read {path:?}")]
    Sqlite {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("{0:?} was written to while it was read: read it again, or a copy of it")]
    Changed(PathBuf),
}

/// Whether a file that begins with `head` is an SQLite database.
pub fn is_sqlite(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// A trace database, open for reading.
pub struct TraceDb {
    pub(crate) path: PathBuf,
    pub(crate) connection: Connection,
    pub(crate) schema: Schema,
    /// More rows than this the file cannot hold: it is damaged, or made so.
    pub(crate) rows_at_most: u64,
    /// Files that were opened without locks, as they were.
    unlocked: Vec<(PathBuf, Option<Stamp>)>,
}

/// What changes when a file is written to.
type Stamp = (u64, i64, i64, u64);

fn stamp(meta: &Metadata) -> Stamp {
    (meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ino())
}

/// What is beside the database's file, and how many bytes it has.
fn beside(path: &Path, suffix: &str) -> (PathBuf, Option<Metadata>) {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    let meta = std::fs::symlink_metadata(&name).ok();
    (name.into(), meta)
}

impl TraceDb {
    /// Opens the database at `path`.
    ///
    /// # Errors
    /// [`TraceDbError`]: for what is no database, no trace, of a later version, or cannot be read.
    pub fn open(path: &Path) -> Result<TraceDb, TraceDbError> {
        let io = |e| TraceDbError::Io(path.to_owned(), e);
        // SQLite looks for the log beside the file itself, not beside a link to it.
        let real = path.canonicalize().map_err(io)?;
        let meta = std::fs::metadata(&real).map_err(io)?;
        if !meta.is_file() {
            return Err(TraceDbError::NotADatabase(path.to_owned()));
        }
        let mut header = Vec::with_capacity(HEADER);
        File::open(&real)
            .and_then(|f| f.take(HEADER as u64).read_to_end(&mut header))
            .map_err(io)?;
        if !is_sqlite(&header) || header.len() < HEADER {
            return Err(TraceDbError::NotADatabase(path.to_owned()));
        }
        let wal_mode = header[19] == 2;
        let (log, log_meta) = beside(&real, "-wal");
        let log_bytes = log_meta.as_ref().map_or(0, Metadata::len);

        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let sqlite = |source| failure(path, source);
        let mut unlocked = Vec::new();
        let connection = if wal_mode && !(log_bytes > 0 && is_open_elsewhere(&real)) {
            unlocked.push((real.clone(), Some(stamp(&meta))));
            unlocked.push((log, log_meta.as_ref().map(stamp)));
            if log_bytes > 0 {
                let c = Connection::open_with_flags_and_vfs(&real, flags, "unix-none")
                    .map_err(sqlite)?;
                c.pragma_update(None, "locking_mode", "EXCLUSIVE")
                    .map_err(sqlite)?;
                c
            } else {
                let uri = flags | OpenFlags::SQLITE_OPEN_URI;
                Connection::open_with_flags(immutable_uri(&real), uri).map_err(sqlite)?
            }
        } else {
            Connection::open_with_flags(&real, flags).map_err(sqlite)?
        };
        let rows_at_most = (meta.len() + log_bytes) / LEAST_ROW;
        guard(&connection, rows_at_most).map_err(sqlite)?;

        // One snapshot for all that is read.
        connection
            .execute_batch("BEGIN")
            .and_then(|()| {
                connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
            })
            .map_err(sqlite)?;
        let version: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(sqlite)?;
        if version > USER_VERSION {
            return Err(TraceDbError::Newer {
                path: path.to_owned(),
                found: version,
            });
        }
        let schema = Schema::read(&connection).map_err(sqlite)?;
        let needed = ["timestamp", "pid", "tid", "source", "op", "duration"];
        if !needed.iter().all(|column| schema.has("events", column)) {
            return Err(TraceDbError::NotATrace(path.to_owned()));
        }
        Ok(TraceDb {
            path: path.to_owned(),
            connection,
            schema,
            rows_at_most,
            unlocked,
        })
    }

    /// Whether somebody wrote to the database since it was opened, where no lock kept him from it: what was read may be
    /// of two minds.
    pub fn changed(&self) -> bool {
        self.unlocked
            .iter()
            .any(|(path, was)| std::fs::symlink_metadata(path).ok().as_ref().map(stamp) != *was)
    }

    pub(crate) fn failure(&self, source: rusqlite::Error) -> TraceDbError {
        failure(&self.path, source)
    }
}

fn failure(path: &Path, source: rusqlite::Error) -> TraceDbError {
    use rusqlite::ffi;
    let code = source.sqlite_error().map_or(0, |e| e.extended_code);
    match code {
        ffi::SQLITE_NOTADB => TraceDbError::NotADatabase(path.to_owned()),
        ffi::SQLITE_READONLY_ROLLBACK => TraceDbError::HotJournal(path.to_owned()),
        _ => TraceDbError::Sqlite {
            path: path.to_owned(),
            source,
        },
    }
}

/// Whether another process holds the lock that every user of a WAL database holds: byte 128 of its `-shm` file
/// (SQLite 3.53, `os_unix.c`, `UNIX_SHM_DMS`).
fn is_open_elsewhere(database: &Path) -> bool {
    const DEAD_MAN_SWITCH: i64 = 128;
    let (shm, Some(meta)) = beside(database, "-shm") else {
        return false;
    };
    let Some(file) = meta.is_file().then(|| File::open(shm).ok()).flatten() else {
        return false;
    };
    let mut lock = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as _,
        l_whence: nix::libc::SEEK_SET as _,
        l_start: DEAD_MAN_SWITCH,
        l_len: 1,
        l_pid: 0,
    };
    let asked = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETLK(&mut lock));
    asked.is_ok() && lock.l_type != nix::libc::F_UNLCK as nix::libc::c_short
}

/// `file:` URI of a database that does not change, every byte of the path kept.
fn immutable_uri(path: &Path) -> String {
    let mut uri = "file:".to_owned();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' => uri.push(byte as char),
            _ if byte.is_ascii_alphanumeric() => uri.push(byte as char),
            _ => uri += &format!("%{byte:02X}"),
        }
    }
    uri + "?immutable=1"
}

/// Nothing in the file runs, nothing is built that is large, nothing goes on for ever.
fn guard(connection: &Connection, rows_at_most: u64) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, LONGEST)?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "cache_size", -8192)?;
    connection.busy_timeout(std::time::Duration::from_millis(2_000))?;
    let mut steps = STEPS_AT_LEAST.saturating_add(rows_at_most.saturating_mul(STEPS_PER_ROW));
    connection.progress_handler(
        LOOK_EVERY,
        Some(move || {
            steps = steps.saturating_sub(LOOK_EVERY as u64);
            steps == 0
        }),
    )
}
