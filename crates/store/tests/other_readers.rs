//! Other people's readers understand every file that is written.

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use support::*;
use warptrace_model::serving::{
    Engine, ServingHistogram, ServingMetric, ServingReading, ServingValue,
};
use warptrace_model::*;
use warptrace_store::fs::RealFs;
use warptrace_store::{DataDir, SessionWriter, TABLES};

/// Reads every table with the reader named first, and prints a line a table: its name, rows, and sum of `boot_ns`.
const READ: &str = r#"
import glob, os, sys
reader, session = sys.argv[1:]
if reader == "pyarrow":
    import pyarrow as pa, pyarrow.parquet as pq, pyarrow.compute as pc
    def read(path):
        if path.endswith(".parquet"):
            return pq.ParquetFile(path).read()
        batches, stream = [], pa.ipc.open_stream(pa.OSFile(path))
        try:
            batches.extend(stream)
        except (pa.ArrowInvalid, OSError):
            pass  # torn: what came before is whole
        return pa.Table.from_batches(batches, stream.schema)
    def sums(files):
        tables = [read(f) for f in files]
        for t in tables:
            t.validate(full=True)
            t.to_pylist()
        times = [v for t in tables if "boot_ns" in t.column_names for v in t["boot_ns"].to_pylist() if v is not None]
        return sum(t.num_rows for t in tables), sum(times)
elif reader == "duckdb":
    import duckdb
    def sums(files):
        db = duckdb.connect()
        columns = [c[0] for c in db.execute("describe select * from read_parquet(?)", [files]).fetchall()]
        time = "coalesce(sum(boot_ns), 0)" if "boot_ns" in columns else "0"
        db.execute("select * from read_parquet(?)", [files]).fetchall()
        return db.execute(f"select count(*), {time} from read_parquet(?)", [files]).fetchone()
elif reader == "polars":
    import polars as pl
    def sums(files):
        frame = pl.read_parquet(files)
        time = sum(v for v in frame["boot_ns"].to_list() if v is not None) if "boot_ns" in frame.columns else 0
        return frame.height, time
for table in sorted(os.listdir(session)):
    files = sorted(glob.glob(f"{session}/{table}/*.parquet") + glob.glob(f"{session}/{table}/*.arrows"))
    if files:
        rows, time = sums(files)
        print(table, int(rows), int(time))
"#;

fn write(dir: &Path, sealed: bool) -> std::path::PathBuf {
    let mut writer =
        SessionWriter::with_limits(Arc::new(RealFs), &DataDir::at(dir), meta("s"), SMALL).unwrap();
    writer.units(&(0..20).map(|i| unit(1, i)).collect::<Vec<_>>());
    writer.outliers(&(0..20).map(outlier).collect::<Vec<_>>());
    writer.findings(&(0..20).map(|i| finding(i, i)).collect::<Vec<_>>());
    writer.stacks(&[(1, vec![u64::MAX, 1])]);
    writer.gaps(&[Gap {
        code: GapCode::NoStacks,
        detail: "none".into(),
        count: u64::MAX,
    }]);
    writer.events(&[
        Event::ProcessInfo(Box::new(process(1, 100))),
        Event::ThreadName(ThreadName {
            thread: Thread::new(100, 101),
            name: "naïve ✓".into(),
        }),
        Event::FilePath(Box::new(FilePath {
            pid: Pid(100),
            fd: 3,
            path: "/data".into(),
        })),
        Event::Lost(Loss {
            source: "ebpf",
            reason: LossReason::RingFull,
            count: 1,
            window: None,
            pid: None,
        }),
    ]);
    for i in 0..20 {
        assert!(writer.memory(&memory_event(i)));
        writer.request("run.jsonl", &request(i));
        let reading = ServingReading {
            metric: ServingMetric::RequestDuration,
            model: None,
            value: ServingValue::Histogram(ServingHistogram {
                sum: 1.5,
                count: 3,
                bounds: vec![0.5],
                counts: vec![1, 2],
            }),
        };
        let at = BootNanos(START + i * SECOND);
        writer.serving(at, Incarnation::default(), Engine::Vllm, &[reading]);
    }
    for second in 1..8 {
        writer.events(&events(5, second * 100..(second + 1) * 100));
        writer.tick(BootNanos(START + second * SECOND));
    }
    let path = writer.path().to_owned();
    if sealed {
        writer.seal().unwrap();
    }
    path
}

/// What the reader must find: rows and sum of `boot_ns` of each table, by our own reader.
fn check(reader: &str, sealed: bool) {
    let import = Command::new("python3")
        .args(["-c", &format!("import {reader}")])
        .output();
    if !import.is_ok_and(|o| o.status.success()) {
        skip(
            &format!("store-read-by-{reader}"),
            &format!("python3 has no {reader}"),
        );
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let session = write(temp.path(), sealed);
    let output = Command::new("python3")
        .args(["-c", READ, reader])
        .arg(&session)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut tables = 0;
    for line in said.lines() {
        let [name, rows, time] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        assert!(TABLES.contains(&name), "{name}");
        assert_eq!(
            (rows.parse().unwrap(), time.parse().unwrap()),
            own_sums(&session, name),
            "{name}"
        );
        tables += 1;
    }
    assert_eq!(tables, TABLES.len(), "{said}");
}

fn own_sums(session: &Path, table: &str) -> (u64, u128) {
    use arrow::array::{Array as _, UInt64Array};
    let session = warptrace_store::Session::open(Arc::new(RealFs), session).unwrap();
    let files = session.table(table).unwrap();
    let mut batches = Vec::new();
    for path in &files.sealed {
        let file = std::fs::File::open(path).unwrap();
        let reader =
            parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        batches.extend(reader.build().unwrap().map(Result::unwrap));
    }
    for stream in &files.streams {
        batches.extend((0..stream.batches()).map(|i| stream.read(i).unwrap()));
    }
    let (mut rows, mut time) = (0, 0);
    for batch in batches {
        rows += batch.num_rows() as u64;
        if let Some(column) = batch.column_by_name("boot_ns") {
            let column: &UInt64Array = column.as_any().downcast_ref().unwrap();
            let known = (0..column.len()).filter(|i| column.is_valid(*i));
            time += known.map(|i| u128::from(column.value(i))).sum::<u128>();
        }
    }
    assert!(rows > 0, "{table} is empty");
    (rows, time)
}

#[test]
fn pyarrow_reads_sealed_tables() {
    check("pyarrow", true);
}

#[test]
fn pyarrow_reads_tables_with_streams() {
    check("pyarrow", false);
}

#[test]
fn duckdb_reads_sealed_tables() {
    check("duckdb", true);
}

#[test]
fn polars_reads_sealed_tables() {
    check("polars", true);
}
