//! `ingest` and `export`, by the binary: files of other systems in, and out.

mod support;

use std::path::Path;

use rusqlite::{Connection, params};
use support::Home;

const T: i64 = 1_795_301_100_000_000_000;
const MS: i64 = 1_000_000;

/// A trace of a job that waits 10 ms a step and, in steps 60 to 79, 40 ms more: off the CPU, woken and not let in.
fn trace(path: &Path) {
    let c = Connection::open(path).unwrap();
    c.execute_batch(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE events (id TEXT PRIMARY KEY, timestamp INTEGER NOT NULL, pid INTEGER NOT NULL, tid INTEGER NOT NULL,
             source INTEGER NOT NULL, op INTEGER NOT NULL, duration INTEGER NOT NULL, gpu_id INTEGER NOT NULL DEFAULT 0,
             arg0 INTEGER NOT NULL DEFAULT 0, arg1 INTEGER NOT NULL DEFAULT 0, ret_code INTEGER NOT NULL DEFAULT 0,
             stack_hash INTEGER NOT NULL DEFAULT 0, node TEXT NOT NULL DEFAULT '', rank INTEGER, local_rank INTEGER,
             world_size INTEGER, comm TEXT NOT NULL DEFAULT '', stack_ips TEXT NOT NULL DEFAULT '',
             cgroup_id INTEGER NOT NULL DEFAULT 0);
         CREATE TABLE annotations (id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp INTEGER NOT NULL, labels TEXT NOT NULL,
             pid INTEGER NOT NULL DEFAULT 0, start_time INTEGER NOT NULL DEFAULT 0, span_start INTEGER NOT NULL DEFAULT 0,
             span_end INTEGER NOT NULL DEFAULT 0, peer_uid INTEGER NOT NULL DEFAULT 0, peer_gid INTEGER NOT NULL DEFAULT 0,
             peer_pid INTEGER NOT NULL DEFAULT 0);
         CREATE TABLE event_aggregates (bucket INTEGER NOT NULL, source INTEGER NOT NULL, op INTEGER NOT NULL,
             pid INTEGER NOT NULL DEFAULT 0, count INTEGER NOT NULL DEFAULT 0, stored INTEGER NOT NULL DEFAULT 0,
             sum_dur INTEGER NOT NULL DEFAULT 0, min_dur INTEGER NOT NULL DEFAULT 0, max_dur INTEGER NOT NULL DEFAULT 0,
             sum_arg0 INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (bucket, source, op, pid));
         PRAGMA user_version = 10; BEGIN;",
    )
    .unwrap();
    let mut number = 0;
    let mut insert = |at: i64, tid: i64, source: i64, op: i64, dur: i64, arg0: i64, arg1: i64| {
        number += 1;
        let pid = if tid == 900 { 900 } else { 100 };
        c.execute(
            "INSERT INTO events (id, timestamp, pid, tid, source, op, duration, arg0, arg1, node, comm)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 'gpu-7', ?10)",
            params![format!("gpu-7:{number}"), at, pid, tid, source, op, dur, arg0, arg1, if pid == 100 { "python" } else { "hog" }],
        )
        .unwrap();
    };
    let mut at = T;
    for step in 0..200 {
        for launch in 0..10 {
            insert(at + launch * 20_000, 100, 1, 3, 6_000, 0x1000, 0x55);
        }
        at += 400_000;
        if (60..80).contains(&step) {
            // Away for 41 ms, of which it slept one.
            insert(at + MS, 900, 3, 2, 0, 0, 100);
            insert(at + 41 * MS, 100, 3, 1, 41 * MS, 0, 900);
            at += 42 * MS;
        } else {
            insert(at + MS, 900, 3, 2, 0, 0, 100);
            insert(at + MS + 1_000, 100, 3, 1, MS + 1_000, 0, 900);
            at += 2 * MS;
        }
        insert(at, 100, 1, 5, 10 * MS, 0x55, 0);
        at += 11 * MS;
    }
    insert(at, 100, 7, 1, 5, 0, 0);
    c.execute_batch(&format!(
        "INSERT INTO annotations (timestamp, labels, pid) VALUES ({T}, '{{\"phase\":\"train\"}}', 100);
         INSERT INTO event_aggregates VALUES ({T} / 60000000000 * 60000000000, 1, 3, 100, 9000, 2000, 54000000, 1, 2, 0);
         COMMIT;"
    ))
    .unwrap();
}

#[test]
fn a_trace_of_another_tracer_is_explained_listed_and_exported() {
    let home = Home::new();
    let db = home.dir.path().join("odd name.sqlite3");
    trace(&db);
    let before = std::fs::read_dir(home.dir.path()).unwrap().count();
    let ran = home.run(["ingest", "--json", db.to_str().unwrap()]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    assert_eq!(ran.err, "", "progress is for terminals");
    let answer = ran.json();
    assert_eq!(answer["schema"], "warptrace.ingest/v1");
    assert_eq!(answer["files"][0]["format"], "ingero_db");
    assert_eq!(answer["files"][0]["kept"]["events"], 200 * 13);
    assert_eq!(answer["files"][0]["kept"]["annotations"], 1);
    let skipped = &answer["files"][0]["skipped"][0];
    assert_eq!(
        (skipped["count"].as_u64(), skipped["places"][0].as_str()),
        (Some(1), Some("events row 2601"))
    );
    let id = answer["sessions"][0]["id"].as_str().unwrap();
    assert_eq!(answer["sessions"][0]["node"], "gpu-7");
    let gaps = answer["sessions"][0]["gaps"].as_array().unwrap();
    assert!(
        gaps.iter()
            .any(|g| g["code"] == "not_recorded" && g["count"] == 7_000),
        "{gaps:#?}"
    );
    // Only our data folder is new.
    assert_eq!(
        std::fs::read_dir(home.dir.path()).unwrap().count(),
        before + 1
    );

    let explained = home.run(["explain", "--json"]).json();
    assert_eq!(
        explained["session"].as_str(),
        Some(id),
        "what was read last is the newest"
    );
    let finding = &explained["findings"][0];
    assert_eq!(finding["cause"], "run_queue_wait", "{explained:#}");
    let blamed: u64 = finding["blame"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| b["ns"].as_u64().unwrap())
        .sum();
    assert_eq!(Some(blamed), finding["excess_ns"].as_u64(), "blame adds up");
    assert!(
        (700_000_000..=820_000_000).contains(&blamed),
        "twenty times 40 ms: {blamed}"
    );
    let start: i64 = finding["start_unix_ns"].as_str().unwrap().parse().unwrap();
    assert!((T..T + 60_000 * MS).contains(&start), "Unix time: {start}");
    let op = |name: &str| {
        explained["ops"]
            .as_array()
            .unwrap()
            .iter()
            .find(|o| o["op"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(op("cudaStreamSync")["count"], 200);
    assert_eq!(
        op("cudaLaunchKernel")["count"],
        9_000,
        "those that were only counted, too"
    );

    let listed = home.run(["sessions", "--json"]).json();
    assert_eq!(
        (listed[0]["id"].as_str(), listed[0]["state"].as_str()),
        (Some(id), Some("ended"))
    );
    assert_eq!(listed[0]["created_unix_ns"], T.to_string());
    assert!(
        home.run(["explain"]).out.contains("waiting for a CPU")
            || home.run(["explain"]).out.contains("Waiting for a CPU")
    );

    // Out again: the same rows, and no other file.
    let out = home.dir.path().join("out.db");
    let export = [
        "export",
        "--format",
        "ingero-db",
        "-o",
        out.to_str().unwrap(),
    ];
    let ran = home.run(export);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    let c = Connection::open(&out).unwrap();
    let one = |sql: &str| -> i64 { c.query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(
        one("SELECT count(*) FROM events WHERE source = 1 AND op = 5"),
        200
    );
    assert_eq!(
        one("SELECT count(*) FROM events WHERE source = 3 AND op = 2"),
        200
    );
    assert_eq!(one(&format!("SELECT min(timestamp) = {T} FROM events")), 1);
    assert_eq!(
        one("SELECT sum(count) FROM event_aggregates WHERE op = 3 AND source = 1"),
        9_000
    );
    assert!(
        one("SELECT count(*) FROM causal_chains WHERE severity = 'HIGH' OR severity = 'MEDIUM'")
            > 0
    );
    drop(c);
    assert_eq!(
        std::fs::read_dir(home.dir.path()).unwrap().count(),
        before + 2,
        "nothing is left beside it"
    );
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&out).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    let again = home.run(export);
    assert_eq!(again.code, Some(2));
    assert!(again.err.contains("exists already: --force"), "{again:#?}");
    assert_eq!(
        home.run([
            "export",
            "--format",
            "ingero-db",
            "--force",
            "-o",
            out.to_str().unwrap()
        ])
        .code,
        Some(0)
    );

    // And in again.
    let ran = home.run(["ingest", "--json", out.to_str().unwrap()]);
    assert_eq!(ran.json()["files"][0]["kept"]["events"], 200 * 13);
    assert_eq!(
        home.run(["explain", "--json"]).json()["findings"][0]["cause"],
        "run_queue_wait"
    );
}

#[test]
fn every_format_is_known_by_its_content_and_lies_in_one_session() {
    let home = Home::new();
    let folder = home.dir.path().join("in");
    std::fs::create_dir_all(folder.join("deeper")).unwrap();
    let put = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    trace(&folder.join("a.dat"));
    put(
        "b.dat",
        &format!(
            "{{\"labels\":{{\"step\":\"1\"}},\"ts\":{T},\"pid\":100}}\n{{\"labels\":{{\"bad key\":\"1\"}},\"ts\":{T}}}\n{{\"labels\":{{\"step\":\"2\"}}}}\n{{\"labels\":{{\"st"
        ),
    );
    put(
        "c.dat",
        "{\"schema\":\"toy/v1\",\"kind\":\"run_start\",\"t\":0.0,\"started_at\":\"2026-11-21T23:05:00Z\",\"model\":{\"name\":\"m\"}}\n\
         {\"kind\":\"eval\",\"phase\":\"serve\",\"name\":\"request\",\"t\":1.5,\"extra\":{\"model\":\"m\",\"principal\":\"user:1\",\"latency_us\":250000,\"prompt_tokens\":3,\"completion_tokens\":4}}\n\
         not json\n",
    );
    put("deeper/README", "nothing to see\n");
    put("deeper/empty", "");
    std::os::unix::fs::symlink(&folder, folder.join("deeper/loop")).unwrap();
    let ran = home.run(["ingest", "--json", folder.to_str().unwrap()]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    let answer = ran.json();
    assert_eq!(
        answer["sessions"].as_array().unwrap().len(),
        1,
        "{answer:#}"
    );
    let file = |name: &str| {
        let found = answer["files"]
            .as_array()
            .unwrap()
            .iter()
            .find(|f| f["path"].as_str().unwrap().ends_with(name));
        found
            .unwrap_or_else(|| panic!("{name} in {answer:#}"))
            .clone()
    };
    let reasons = |name: &str| -> Vec<(String, String)> {
        let list = file(name)["skipped"].as_array().unwrap().clone();
        list.iter()
            .map(|s| {
                (
                    s["reason"].as_str().unwrap().to_owned(),
                    s["places"][0].as_str().unwrap_or("").to_owned(),
                )
            })
            .collect()
    };
    assert_eq!(file("b.dat")["format"], "annotations");
    assert_eq!(file("b.dat")["kept"]["annotations"], 1);
    let places: Vec<String> = reasons("b.dat")
        .into_iter()
        .map(|(_, place)| place)
        .collect();
    for (place, line) in places.iter().zip([2, 3, 4]) {
        assert!(place.ends_with(&format!("b.dat:{line}")), "{places:?}");
    }
    assert_eq!(reasons("b.dat")[0].0, "bad_key");
    assert_eq!(file("c.dat")["format"], "run_log");
    assert_eq!(file("c.dat")["kept"]["requests"], 1, "{answer:#}");
    assert!(reasons("c.dat")[0].1.contains("c.dat:3"));
    assert!(
        file("deeper/loop")["error"]
            .as_str()
            .unwrap()
            .contains("symbolic link")
    );
    assert!(
        file("deeper/README")["error"]
            .as_str()
            .unwrap()
            .contains("no format that is known")
    );
    assert_eq!(answer["unread_files"], 3);
    // For people, too.
    let ran = home.run(["ingest", folder.to_str().unwrap()]);
    assert!(
        ran.out.contains("SQLite trace") && ran.out.contains("warptrace explain 20"),
        "{}",
        ran.out
    );
}

#[test]
fn memory_telemetry_of_every_shape_is_taken() {
    let vectors =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/conformance/memory/files");
    let home = Home::new();
    let ran = home.run(["ingest", "--json", vectors.to_str().unwrap()]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    let answer = ran.json();
    let files = answer["files"].as_array().unwrap();
    let with = |format: &str| {
        files
            .iter()
            .filter(|f| f["format"] == format && f["kept"]["memory"].as_u64() > Some(0))
            .count()
    };
    for format in ["memory_jsonl", "memory_json", "memory_sink"] {
        assert!(with(format) > 0, "{format}: {answer:#}");
    }
    let csv = home.dir.path().join("table");
    std::fs::write(
        &csv,
        format!("schema_version,timestamp_ns,event_type,collector,sampling_interval_ms,pid,host,device_id,allocator_allocated_bytes,allocator_reserved_bytes,allocator_active_bytes,allocator_inactive_bytes,allocator_change_bytes,device_used_bytes,device_free_bytes,device_total_bytes,context,metadata\n2,{T},sample,stormlog.cuda_tracker,100,7,a,0,1,2,1,1,0,3,1,4,,{{}}\n2,soon,sample,x,100,7,a,0,1,2,1,1,0,3,1,4,,{{}}\n"),
    )
    .unwrap();
    let ran = home.run(["ingest", "--json", csv.to_str().unwrap()]);
    let file = &ran.json()["files"][0];
    assert_eq!(file["format"], "memory_csv", "{ran:#?}");
    assert_eq!(file["kept"]["memory"], 1, "{ran:#?}");
    assert!(
        file["skipped"][0]["places"][0]
            .as_str()
            .unwrap()
            .contains("table:3"),
        "{ran:#?}"
    );
}

#[test]
fn nothing_kept_is_1_and_leaves_no_session() {
    let home = Home::new();
    let folder = home.dir.path().join("in");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("notes.txt"), "hello\n").unwrap();
    std::fs::write(folder.join("torn.db"), b"SQLite format 3\0").unwrap();
    std::fs::write(
        folder.join("bad.ndjson"),
        "{\"labels\":{\"a b\":\"c\"},\"ts\":5}\n",
    )
    .unwrap();
    let ran = home.run(["ingest", folder.to_str().unwrap()]);
    assert_eq!(ran.code, Some(1), "{ran:#?}");
    assert!(
        ran.out.contains("is not an SQLite database") && ran.out.contains("bad_key"),
        "{}",
        ran.out
    );
    assert!(home.sessions().is_empty());

    let ran = home.run(["ingest", "no-such-file"]);
    assert_eq!((ran.code, home.sessions().len()), (Some(2), 0), "{ran:#?}");
    assert!(ran.err.contains("cannot read \"no-such-file\""), "{ran:#?}");
    assert_eq!(home.run(["ingest"]).code, Some(2));
    assert_eq!(home.run(["export", "-o", "x"]).code, Some(2));
    let ran = home.run(["export", "--format", "nonsense", "-o", "x"]);
    assert!(
        ran.err.contains("[possible values: ingero-db, "),
        "{ran:#?}"
    );
}

#[test]
fn names_cannot_control_a_terminal() {
    let home = Home::new();
    let folder = home.dir.path().join("in");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("a\u{1b}[2J\nb"), "hello\n").unwrap();
    let ran = home.run(["ingest", folder.to_str().unwrap()]);
    assert!(!ran.out.contains('\u{1b}'), "{ran:#?}");
}
