//! What a stored event costs, against SQLite in the same run: bytes, ingest, and a group-by over all of them.
//!
//! `cargo build --release -p warptrace-sql && cargo run --release -p warptrace-bench --bin store_vs_sqlite -- [EVENTS]`
//! (3,000,000 unless said). Both store the same calls of a made-up training loop on the same disk, one thread each.
//!
//! The peer is the table `events` of an existing GPU tracer: text primary key `node:seq`, 19 columns, its indexes on time
//! and on process, WAL, 1,000 rows a transaction by a prepared statement; `synchronous = NORMAL`, which is faster than
//! the default that the tracer has. The group-by is the program `warptrace-sql` from its start to its end, opening the
//! session included, against a query on the open SQLite connection.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use rusqlite::{Connection, params};
use warptrace_model::record::OpId;
use warptrace_model::{
    BootNanos, Call, CallFlags, ClockAnchor, Cpu, Device, Event, Stream, Thread, UnixNanos,
};
use warptrace_store::fs::RealFs;
use warptrace_store::{DataDir, SessionMeta, SessionWriter};

/// Events given to the store at once, as a recorder does.
const BATCH: usize = 4096;

/// Boot time at which the loop begins, ns.
const START: u64 = 5_000_000_000_000;

fn main() -> anyhow::Result<()> {
    let count = match std::env::args().nth(1) {
        Some(n) => n
            .replace(['_', ','], "")
            .parse()
            .context("usage: store_vs_sqlite [EVENTS]")?,
        None => 3_000_000,
    };
    let folder = tempfile::tempdir()?;
    println!("{count} calls of a training loop");

    let begin = Instant::now();
    let session = write_session(folder.path(), count)?;
    let ours = Measured {
        seconds: begin.elapsed().as_secs_f64(),
        bytes: bytes_below(&session)?,
    };
    let begin = Instant::now();
    let (path, connection) = write_sqlite(folder.path(), count)?;
    let theirs = Measured {
        seconds: begin.elapsed().as_secs_f64(),
        bytes: std::fs::metadata(path)?.len(),
    };
    let made = {
        let begin = Instant::now();
        let mut sum = 0;
        Loop::new().batches(count, |batch| {
            sum += batch.len();
            Ok(())
        })?;
        ensure!(sum == count, "made {sum} events");
        begin.elapsed().as_secs_f64()
    };
    let per_event = |bytes: u64| bytes as f64 / count as f64;
    println!("                       warptrace      SQLite       ratio   budget");
    println!(
        "bytes an event        {:10.2}  {:10.2}  {:10.4}  ≤ 0.1",
        per_event(ours.bytes),
        per_event(theirs.bytes),
        ours.bytes as f64 / theirs.bytes as f64
    );
    let rate = |m: &Measured| count as f64 / (m.seconds - made) / 1e6;
    println!(
        "million events/s      {:10.2}  {:10.2}  {:10.2}  ≥ 10   (making them: {:.0} ns each, taken off)",
        rate(&ours),
        rate(&theirs),
        rate(&ours) / rate(&theirs),
        made / count as f64 * 1e9
    );
    let Some(engine) = engine() else {
        println!(
            "group-by: skipped, there is no warptrace-sql beside this program (build it with --release)"
        );
        return Ok(());
    };
    let (ours, our_groups) = median(|| group_by_sql(&engine, &session))?;
    let (theirs, their_groups) = median(|| group_by_sqlite(&connection))?;
    ensure!(
        our_groups == their_groups,
        "{our_groups:?} against {their_groups:?}"
    );
    println!(
        "group-by, s           {ours:10.3}  {theirs:10.3}  {:10.4}  ≤ 0.1   ({} groups)",
        ours / theirs,
        our_groups.len()
    );
    Ok(())
}

struct Measured {
    seconds: f64,
    bytes: u64,
}

/// A training loop: per step, launches of the same kernels in the same order, copies, a wait; durations vary.
struct Loop {
    random: u64,
    now: u64,
    step: u64,
    at: usize,
}

impl Loop {
    fn new() -> Loop {
        Loop {
            random: 0x9e37_79b9_7f4a_7c15,
            now: START,
            step: 0,
            at: 0,
        }
    }

    /// xorshift64 (Marsaglia 2003).
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn next(&mut self) -> Event {
        const LAUNCHES: usize = 180;
        let noise = self.random();
        thread_local! {
            static OPS: [OpId; 5] = ["cudaLaunchKernel", "cudaMemcpyAsync", "cudaMallocAsync", "cudaEventRecord", "cudaStreamSync"]
                .map(|name| OpId::by_name(name).expect("the op table has it"));
        }
        let kernel = self.at as u64;
        // Log-normal enough: most durations within a factor of two, some ten times as long.
        let dur = |usual: u64| {
            usual
                + usual * (noise & 0xff) / 256
                + if noise >> 40 & 0x3f == 0 {
                    usual * 9
                } else {
                    0
                }
        };
        let (place, dur, arg0, arg1, stream) = match self.at {
            0..LAUNCHES => (
                0,
                dur(4_000),
                0x7f12_3400_0000 + kernel * 0x1a40,
                (64 + kernel % 7) << 16 | 256,
                0x5580_0010,
            ),
            180..184 => (
                1,
                dur(9_000),
                (4 << 20) + (noise >> 8 & 0xfff),
                1,
                0x5580_0020,
            ),
            184..190 => (
                2,
                dur(2_500),
                512 << (noise >> 8 & 0xf),
                0x7f00_0000_0000 + (noise >> 20 & 0xfff) * 512,
                0x5580_0010,
            ),
            190..198 => (3, dur(700), 0x5580_2000 + kernel * 64, 0, 0x5580_0010),
            _ => (4, dur(12_000_000), 0, 0, 0x5580_0010),
        };
        let start = self.now;
        self.now += dur + 1_500 + (noise >> 16 & 0x7ff);
        self.at += 1;
        if self.at == 199 {
            (self.at, self.step) = (0, self.step + 1);
        }
        Event::Call(Call {
            thread: Thread::new(4711, if place == 1 { 4719 } else { 4711 }),
            op: OPS.with(|ops| ops[place]),
            start: BootNanos(start),
            dur,
            device: Some(Device(0)),
            stream: Stream(stream),
            ret: 0,
            flags: CallFlags(0),
            arg0,
            arg1,
            stack_id: 1 + (kernel % 40) as u32,
            cpu: Cpu((noise >> 32 & 3) as u32),
        })
    }

    fn batches(
        mut self,
        count: usize,
        mut give: impl FnMut(&[Event]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut left = count;
        while left > 0 {
            batch.clear();
            batch.extend((0..BATCH.min(left)).map(|_| self.next()));
            left -= batch.len();
            give(&batch)?;
        }
        Ok(())
    }
}

fn write_session(folder: &Path, count: usize) -> anyhow::Result<PathBuf> {
    let meta = SessionMeta::new(ClockAnchor {
        boot: BootNanos(START),
        unix: UnixNanos(1_795_000_000_000_000_000),
    });
    let mut writer = SessionWriter::create(Arc::new(RealFs), &DataDir::at(folder), meta)?;
    let begin = Instant::now();
    Loop::new().batches(count, |batch| {
        writer.events(batch);
        writer.tick(BootNanos(START).plus(begin.elapsed().as_nanos() as u64));
        Ok(())
    })?;
    ensure!(writer.losses().is_empty(), "the store dropped events");
    let path = writer.path().to_owned();
    writer.seal()?;
    Ok(path)
}

fn write_sqlite(folder: &Path, count: usize) -> anyhow::Result<(PathBuf, Connection)> {
    let path = folder.join("peer.db");
    let mut connection = Connection::open(&path)?;
    connection.execute_batch(
        "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
         CREATE TABLE events (
             id TEXT PRIMARY KEY, timestamp INTEGER NOT NULL, pid INTEGER NOT NULL, tid INTEGER NOT NULL,
             source INTEGER NOT NULL, op INTEGER NOT NULL, duration INTEGER NOT NULL,
             gpu_id INTEGER NOT NULL DEFAULT 0, arg0 INTEGER NOT NULL DEFAULT 0, arg1 INTEGER NOT NULL DEFAULT 0,
             ret_code INTEGER NOT NULL DEFAULT 0, stack_hash INTEGER NOT NULL DEFAULT 0,
             node TEXT NOT NULL DEFAULT '', rank INTEGER, local_rank INTEGER, world_size INTEGER,
             comm TEXT NOT NULL DEFAULT '', stack_ips TEXT NOT NULL DEFAULT '', cgroup_id INTEGER NOT NULL DEFAULT 0);
         CREATE INDEX idx_events_timestamp ON events (timestamp);
         CREATE INDEX idx_events_pid ON events (pid);",
    )?;
    let mut sequence = 0u64;
    Loop::new().batches(count, |batch| {
        for rows in batch.chunks(1_000) {
            let transaction = connection.transaction()?;
            let mut insert = transaction.prepare_cached(
                "INSERT INTO events (id, timestamp, pid, tid, source, op, duration, gpu_id, arg0, arg1, ret_code,
                 stack_hash, cgroup_id, node, rank, local_rank, world_size, comm)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
            )?;
            for event in rows {
                let Event::Call(c) = event else { continue };
                sequence += 1;
                let op = c.op.get();
                insert.execute(params![
                    format!("node-1:{sequence}"),
                    c.start.0 as i64,
                    c.thread.pid.0,
                    c.thread.tid.0,
                    op.source as u8,
                    op.number,
                    c.dur as i64,
                    c.device.map_or(0, |d| d.0),
                    c.arg0 as i64,
                    c.arg1 as i64,
                    c.ret,
                    c.stack_id,
                    0,
                    "node-1",
                    0,
                    0,
                    1,
                    "python",
                ])?;
            }
            drop(insert);
            transaction.commit()?;
        }
        Ok(())
    })?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok((path, connection))
}

/// The program `warptrace-sql` beside this one.
fn engine() -> Option<PathBuf> {
    let program = std::env::current_exe()
        .ok()?
        .with_file_name("warptrace-sql");
    program.exists().then_some(program)
}

type Groups = Vec<(u64, u64)>;

fn group_by_sql(engine: &Path, session: &Path) -> anyhow::Result<Groups> {
    let output = Command::new(engine)
        .arg("SELECT count(*) AS n, sum(dur_ns) AS total FROM events GROUP BY layer, op ORDER BY total")
        .arg("--json")
        .arg("--session")
        .arg(session)
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let number = |v: &serde_json::Value| v.as_u64().or_else(|| v.as_str()?.parse().ok());
    let rows = answer["rows"].as_array().context("an answer has rows")?;
    rows.iter()
        .map(|r| {
            number(&r[0])
                .zip(number(&r[1]))
                .context("two numbers a row")
        })
        .collect()
}

fn group_by_sqlite(connection: &Connection) -> anyhow::Result<Groups> {
    let mut query = connection.prepare(
        "SELECT count(*), sum(duration) AS total FROM events GROUP BY source, op ORDER BY total",
    )?;
    let rows = query.query_map([], |row| {
        Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The median of five runs, s, and what they gave.
fn median(mut run: impl FnMut() -> anyhow::Result<Groups>) -> anyhow::Result<(f64, Groups)> {
    let mut seconds = Vec::new();
    let mut groups = Vec::new();
    for _ in 0..5 {
        let begin = Instant::now();
        groups = run()?;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok((seconds[2], groups))
}

fn bytes_below(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() {
            bytes_below(&entry.path())?
        } else {
            meta.len()
        };
    }
    Ok(bytes)
}
