//! `warptrace memory` over telemetry files, as people and scripts use it.

mod support;

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use support::Home;

const GIB: i64 = 1 << 30;
const SEC: i64 = 1_000_000_000;
const START: i64 = 1_760_000_000 * SEC;

/// A record of version 4, a second after another, with `change` on top.
fn record(second: i64, allocated: i64, change: Value) -> Value {
    let mut record = json!({
        "schema_version": 4, "session_id": "S", "timestamp_ns": START + second * SEC, "event_type": "sample",
        "collector": "stormlog.cuda_tracker", "sampling_interval_ms": 1000, "pid": 7, "host": "node", "device_id": 0,
        "allocator_allocated_bytes": allocated, "allocator_reserved_bytes": allocated + GIB,
        "allocator_active_bytes": null, "allocator_inactive_bytes": null, "allocator_change_bytes": 0,
        "device_used_bytes": allocated + 2 * GIB, "device_free_bytes": null, "device_total_bytes": 80 * GIB,
        "context": null, "metadata": {"backend": "cuda"},
    });
    for (key, value) in change.as_object().into_iter().flatten() {
        record[key] = value.clone();
    }
    record
}

fn lines(records: impl IntoIterator<Item = Value>) -> String {
    records.into_iter().fold(String::new(), |mut text, record| {
        let _ = writeln!(text, "{record}");
        text
    })
}

/// A leak of 64 MiB a second for two minutes.
fn leak() -> String {
    lines((0..120).map(|i| record(i, 4 * GIB + i * (64 << 20), json!({}))))
}

fn write(home: &Home, name: &str, text: &str) {
    let path = home.dir.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Runs it, and returns its exit code, stdout and stderr.
fn run(home: &Home, args: &[&str]) -> (i32, String, String) {
    let output = home.command(args).output().expect("it starts");
    (
        output.status.code().expect("an exit code"),
        String::from_utf8(output.stdout).expect("text"),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn answer(home: &Home, args: &[&str]) -> Value {
    let (code, out, err) = run(home, args);
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).expect("JSON")
}

#[test]
fn a_leak_is_named_with_its_rate_and_may_fail_a_script() {
    let home = Home::new();
    write(&home, "run.jsonl", &leak());
    let (code, out, _) = run(&home, &["memory", "run.jsonl"]);
    assert_eq!(code, 0);
    assert!(out.contains("HIGH  Memory leaks on device 0"), "{out}");
    let answer = answer(&home, &["memory", "run.jsonl", "--json"]);
    let rate = answer["findings"][0]["evidence"]["bytes_per_second"]
        .as_f64()
        .unwrap();
    assert!((rate / f64::from(64 << 20) - 1.0).abs() < 0.05, "{rate}");
    let (code, ..) = run(&home, &["memory", "run.jsonl", "--fail-on", "high"]);
    assert_eq!(code, 1);
    let (code, ..) = run(&home, &["memory", "run.jsonl", "--fail-on", "critical"]);
    assert_eq!(code, 0);
}

#[test]
fn every_view_answers_and_json_names_its_schema() {
    let home = Home::new();
    write(&home, "run.jsonl", &leak());
    for view in [
        "sessions",
        "timeline",
        "peaks",
        "leaks",
        "fragmentation",
        "gaps",
        "ranks",
        "issues",
    ] {
        let (code, out, err) = run(&home, &["memory", view, "run.jsonl"]);
        assert_eq!((code, out.is_empty()), (0, false), "{view}: {err}");
        let answer = answer(&home, &["memory", view, "run.jsonl", "--json"]);
        assert_eq!(answer["schema"], "warptrace.memory/v1", "{view}");
        assert_eq!(answer["measurements"], 120, "{view}");
        assert_eq!(
            answer["series"][0]["points"].as_array().unwrap().is_empty(),
            view != "timeline"
        );
    }
    let fragmentation = answer(&home, &["memory", "fragmentation", "run.jsonl", "--json"]);
    assert_eq!(fragmentation["findings"], json!([]));
    assert_eq!(fragmentation["checks"][0]["result"], "cannot_tell");
}

#[test]
fn a_bad_record_costs_one_record_unless_it_is_to_be_strict() {
    let home = Home::new();
    write(
        &home,
        "run.jsonl",
        &format!("{}{{\"schema_version\":4}}\nnot json\n{}", leak(), leak()),
    );
    let (code, out, err) = run(&home, &["memory", "run.jsonl", "--json"]);
    assert_eq!(code, 0, "{err}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(answer["events"], 240);
    let skipped: i64 = answer["skipped"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["count"].as_i64().unwrap())
        .sum();
    assert_eq!(skipped, 2);
    assert!(err.contains("run.jsonl:121"), "{err}");
    let (code, _, err) = run(&home, &["memory", "run.jsonl", "--strict"]);
    assert_eq!(code, 2);
    assert!(
        err.contains("run.jsonl:121") && err.contains("Missing required telemetry fields"),
        "{err}"
    );
}

#[test]
fn a_folder_of_ranks_is_one_job() {
    let home = Home::new();
    for rank in 0..2 {
        let records = (0..60).map(|i| {
            let rise = if i >= 30 + 5 * rank { 3 * GIB } else { 0 };
            let whose = json!({"session_id": format!("S{rank}"), "job_id": "J", "rank": rank, "local_rank": rank, "world_size": 2});
            record(i, 8 * GIB + rise, whose)
        });
        write(
            &home,
            &format!("job/rank{rank}/segment-000001.jsonl"),
            &lines(records),
        );
    }
    write(&home, "job/notes.txt", "not telemetry");
    let answer = answer(&home, &["memory", "ranks", "job", "--json"]);
    assert_eq!(answer["sources"].as_array().unwrap().len(), 2);
    let ranks = &answer["ranks"][0];
    assert_eq!(
        (&ranks["job"], &ranks["first"]),
        (&json!("J"), &json!("rank"))
    );
    assert_eq!(ranks["first_ranks"], json!([0]));
    assert_eq!(ranks["lead_ns"], 5 * SEC);
}

#[test]
fn the_page_needs_nothing_else_and_runs_nothing_of_the_input() {
    let home = Home::new();
    let evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u{202e}\u{0}";
    let mut text = leak();
    let metadata = json!({"oom_reason": evil, "oom_dump_path": evil});
    text += &lines([record(
        130,
        4 * GIB,
        json!({"event_type": "error", "context": evil, "host": evil, "session_id": evil, "job_id": evil,
               "collector": evil, "metadata": metadata}),
    )]);
    write(&home, "run.jsonl", &text);
    let (code, _, err) = run(&home, &["memory", "run.jsonl", "--html", "report.html"]);
    assert_eq!(code, 0, "{err}");
    let page = std::fs::read_to_string(home.dir.path().join("report.html")).unwrap();
    assert!(
        !page.contains("<script>alert") && !page.contains("<img"),
        "markup of the input"
    );
    assert!(!page.contains('\u{202e}') && !page.contains('\u{0}'));
    assert!(page.contains("&lt;script&gt;alert(1)"));
    // Our script and the charts' numbers, and nothing from elsewhere.
    assert_eq!(
        page.matches("<script").count(),
        page.matches("application/json").count() + 1
    );
    for word in ["http:", "https:", "url(", "@import", "<link", "<iframe"] {
        assert!(!page.contains(word), "{word}");
    }
    assert!(page.contains("default-src 'none'") && !page.contains("unsafe-inline"));
    assert!(page.contains("<svg") && page.contains("class=\"allocated\""));
    // On a terminal, too, a text stays a text.
    let (_, out, _) = run(&home, &["memory", "run.jsonl"]);
    assert!(!out.contains('\u{202e}') && !out.contains('\u{0}'));
}

#[test]
fn tables_have_a_row_for_each_point_and_empty_fields_where_nothing_is_known() {
    let home = Home::new();
    let no_device =
        json!({"device_used_bytes": null, "device_total_bytes": null, "session_id": "=cmd,\"x\""});
    write(
        &home,
        "run.jsonl",
        &lines((0..10).map(|i| record(i, GIB, no_device.clone()))),
    );
    let (code, out, err) = run(&home, &["memory", "timeline", "run.jsonl", "--csv", "-"]);
    assert_eq!(code, 0, "{err}");
    let rows: Vec<&str> = out.lines().collect();
    assert_eq!(rows.len(), 11);
    assert!(rows[0].starts_with("session,host,pid,rank,device,start_unix_ns"));
    let start = START;
    let want = format!(
        "\"'=cmd,\"\"x\"\"\",node,7,0,0,{start},{start},1,{GIB},{GIB},{r},{r},,,,,,,",
        r = 2 * GIB
    );
    assert_eq!(rows[1], want);
}

#[test]
fn what_is_not_there_is_said_with_what_to_do() {
    let home = Home::new();
    write(&home, "empty/readme.txt", "");
    for (args, word) in [
        (&["memory", "nowhere.jsonl"][..], "nowhere.jsonl"),
        (&["memory", "empty"], "no telemetry in empty"),
        (
            &["memory", "run.jsonl", "--points", "1"],
            "from 2 to 100000",
        ),
    ] {
        let (code, out, err) = run(&home, args);
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert!(err.contains(word), "{err}");
    }
    write(&home, "run.jsonl", &leak());
    let (code, _, err) = run(
        &home,
        &["memory", "run.jsonl", "--html", "no/such/report.html"],
    );
    assert_eq!(code, 2);
    assert!(err.contains("no folder"), "{err}");
    assert!(!Path::new("no").exists());
}

#[test]
fn documents_and_tables_are_read_like_lines() {
    let home = Home::new();
    let records: Vec<Value> = (0..60).map(|i| record(i, 4 * GIB, json!({}))).collect();
    write(
        &home,
        "events.json",
        &json!({"events": records}).to_string(),
    );
    write(
        &home,
        "track.csv",
        &(0..60).fold(
            "timestamp_ns,event_type,memory_allocated,device\n".to_owned(),
            |mut text, i| {
                let _ = writeln!(text, "{},sample,{},cuda:0", START + i * SEC, 4 * GIB);
                text
            },
        ),
    );
    for name in ["events.json", "track.csv"] {
        let answer = answer(&home, &["memory", name, "--json"]);
        assert_eq!(answer["measurements"], 60, "{name}");
        assert_eq!(
            answer["series"][0]["levels"][0]["peak_bytes"],
            4 * GIB,
            "{name}"
        );
        assert_eq!(answer["findings"], json!([]), "{name}");
    }
}
