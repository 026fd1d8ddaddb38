//! `warptrace runlog` on real files: summaries, what is wrong, repair, and following.

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use support::Home;

const START: &str = "{\"kind\":\"run_start\",\"schema\":\"toy/v1\",\"t\":0,\"started_at\":\"2026-02-01T00:00:00Z\",\
    \"host\":{\"name\":\"gx10\"},\"backend\":{\"kind\":\"cuda\"},\"model\":{\"name\":\"m\"},\"config\":{}}\n";

fn request(t: f64, model: &str, principal: &str, tokens: u32, latency_micros: u32) -> String {
    format!(
        "{{\"kind\":\"eval\",\"phase\":\"serve\",\"t\":{t},\"name\":\"request\",\"extra\":{{\"model\":\"{model}\",\
         \"prompt_tokens\":12,\"completion_tokens\":{tokens},\"latency_us\":{latency_micros},\"request_id\":\"r{t}\",\
         \"principal_id\":\"{principal}\"}}}}\n"
    )
}

fn error(t: f64) -> String {
    format!(
        "{{\"kind\":\"error\",\"phase\":\"serve\",\"t\":{t},\"name\":\"request\",\"extra\":{{\"model\":\"small\",\"status\":503,\
         \"code\":\"overloaded\",\"message\":\"queue\\u001b full\"}}}}\n"
    )
}

fn end(t: f64, requests: u32, errors: u32, tokens: u32) -> String {
    format!(
        "{{\"kind\":\"run_end\",\"t\":{t},\"ended_at\":\"2026-02-01T00:00:09Z\",\"reason\":\"completed\",\
         \"stats\":{{\"requests\":{requests},\"errors\":{errors},\"tokens_out\":{tokens}}}}}\n"
    )
}

fn write(home: &Home, text: &str) -> PathBuf {
    let path = home.dir.path().join("events.jsonl");
    std::fs::write(&path, text).unwrap();
    path
}

fn two_runs() -> String {
    [
        START,
        &request(1.0, "small", "user:1", 8, 40_000),
        &request(2.5, "large", "user:2", 100, 900_000),
        &error(3.0),
        &end(4.0, 2, 1, 108),
        START,
        &request(2.0, "small", "user:1", 6, 50_000),
        &end(2.0, 1, 0, 6),
    ]
    .concat()
}

#[test]
fn a_summary_tells_the_file_its_runs_models_and_principals() {
    let home = Home::new();
    write(&home, &two_runs());
    let ran = home.run(["runlog", "summary", "events.jsonl"]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    // Percentiles are within 1 %.
    let want = "\
events.jsonl · 2 runs · 3 requests · 1 error · 114 tokens out, 36 in

                                          requests  errors  tokens out  req/s      p50     p95     p99
  all                                            3       1         114   0.50  49.9 ms  897 ms  897 ms
  run 1, 2026-02-01T00:00:00Z, completed         2       1         108   0.50  40.2 ms  897 ms  897 ms
  run 2, 2026-02-01T00:00:00Z, completed         1       0           6   0.50  50.0 ms  50.0 ms  50.0 ms
";
    let squeezed = |text: &str| -> Vec<String> {
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        text.lines().map(words).collect()
    };
    assert_eq!(squeezed(&ran.out)[..6], squeezed(want)[..], "{}", ran.out);
    for row in [
        "small 2 1 14",
        "large 1 0 100",
        "user:1 2 0 14",
        "(none) 0 1 0",
    ] {
        assert!(
            squeezed(&ran.out).iter().any(|l| l.starts_with(row)),
            "{row}: {}",
            ran.out
        );
    }
}

#[test]
fn a_summary_as_json_has_the_numbers_of_one_run_on_request() {
    let home = Home::new();
    let path = write(&home, &two_runs());
    let json = |args: &[&str]| -> serde_json::Value {
        let mut all = vec!["runlog", "summary", "--json"];
        all.extend(args);
        let ran = home.run(all);
        assert_eq!(ran.code, Some(0), "{ran:#?}");
        serde_json::from_str(&ran.out).unwrap()
    };
    let all = json(&["events.jsonl"]);
    assert_eq!(all["schema"], "warptrace.runlog.summary/v1");
    assert_eq!(
        (&all["requests"], &all["errors"], &all["duration_s"]),
        (&3.into(), &1.into(), &6.0.into())
    );
    assert_eq!(all["last_run"]["latency_us"]["p50"], 50_000);
    assert_eq!(all["models"]["named"][0]["name"], "small");
    let one = json(&["--run", "2", path.to_str().unwrap()]);
    assert_eq!(
        (&one["requests"], &one["tokens_out"]),
        (&1.into(), &6.into())
    );
    assert_eq!(
        home.run(["runlog", "summary", "--run", "3", "events.jsonl"])
            .code,
        Some(2)
    );
    assert_eq!(home.run(["runlog", "summary", "no-such"]).code, Some(2));
}

#[test]
fn check_says_what_is_wrong_by_line_and_exits_with_1() {
    let home = Home::new();
    write(&home, &two_runs());
    let ran = home.run(["runlog", "check", "events.jsonl"]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (Some(0), "events.jsonl: 8 lines, nothing wrong\n")
    );

    let bad = [START, "oops\n", &end(1.0, 5, 0, 0), "{\"kind\":\"no"].concat();
    write(&home, &bad);
    let ran = home.run(["runlog", "check", "events.jsonl"]);
    assert_eq!(ran.code, Some(1), "{ran:#?}");
    for said in [
        "events.jsonl:2: not a record (expected a value at byte 0)",
        "events.jsonl:3: run_end does not say what the records before it say (requests 5, not 0)",
        "events.jsonl:4: no line feed at the end",
        "events.jsonl: 4 lines, 4 problems:",
        "runlog repair --output NEW events.jsonl",
    ] {
        assert!(ran.out.contains(said), "{said}: {}", ran.out);
    }
    let ran = home.run([
        "runlog",
        "check",
        "--json",
        "--max-lines",
        "1",
        "events.jsonl",
    ]);
    let answer: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        answer["counts"],
        serde_json::json!({"no_record": 2, "torn_tail": 1, "wrong_stats": 1})
    );
    assert_eq!(answer["problems"].as_array().unwrap().len(), 1);
}

/// A log with a torn record before a whole one, two on one line, and a cut last one; and what is left of it.
fn damaged() -> (String, String) {
    let (a, b) = (request(1.0, "m", "p", 8, 1), request(2.0, "m", "p", 9, 1));
    let spaced = "{\"kind\": \"note\", \"t\": 1, \"text\": \"kept as it is\"}\r\n";
    let damaged = [
        START,
        "{\"kind\":\"eval\",\"pha",
        &a,
        a.trim_end(),
        &b,
        "garbage\n\n",
        spaced,
        "{\"kind\":\"run_e",
    ]
    .concat();
    let whole = [START, &a, &a, &b, spaced].concat();
    (damaged, whole)
}

#[test]
fn repair_keeps_every_whole_record_byte_for_byte_and_says_what_it_dropped() {
    let home = Home::new();
    let (damaged, whole) = damaged();
    let path = write(&home, &damaged);
    let ran = home.run(["runlog", "repair", "--output", "new.jsonl", "events.jsonl"]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    assert_eq!(
        std::fs::read_to_string(home.dir.path().join("new.jsonl")).unwrap(),
        whole
    );
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        damaged,
        "the log itself is left alone"
    );
    for said in [
        "events.jsonl:2: dropped 19 bytes: {\"kind\":\"eval\",\"pha",
        "events.jsonl:4: dropped 7 bytes: garbage",
        "2 records kept as they were, 3 freed from lines that they shared, 40 bytes dropped in 3 parts",
    ] {
        assert!(ran.out.contains(said), "{said}: {}", ran.out);
    }
    assert_eq!(home.run(["runlog", "check", "new.jsonl"]).code, Some(0));
    let again = home.run(["runlog", "repair", "--output", "new.jsonl", "events.jsonl"]);
    assert_eq!(
        again.code,
        Some(2),
        "an output that exists is not written over: {again:#?}"
    );
    assert_eq!(
        home.run(["runlog", "repair", "events.jsonl"]).code,
        Some(2),
        "neither --output nor --in-place"
    );
}

#[test]
fn repair_in_place_keeps_the_mode_and_leaves_nothing_behind() {
    let home = Home::new();
    let (damaged, whole) = damaged();
    let path = write(&home, &damaged);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let ran = home.run(["runlog", "repair", "--in-place", "--json", "events.jsonl"]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    let answer: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&answer["kept"], &answer["freed"], &answer["dropped"]),
        (&2.into(), &3.into(), &3.into())
    );
    let names: Vec<_> = std::fs::read_dir(path.parent().unwrap())
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert!(
        !names.iter().any(|n| n.to_string_lossy().contains("repair")),
        "{names:?}"
    );
}

#[test]
fn tail_shows_the_last_records_for_people_and_never_steers_the_terminal() {
    let home = Home::new();
    write(&home, &two_runs());
    let ran = home.run(["runlog", "tail", "-n", "6", "events.jsonl"]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), 6, "{}", ran.out);
    for (line, said) in [
        (0, "900 ms     12 → 100    large  user:2  r2.5"),
        (1, "error 503 overloaded  queue\u{fffd} full  small"),
        (2, "run ended: completed, 2 requests, 1 errors, 108 tokens"),
        (3, "run started at 2026-02-01T00:00:00Z on gx10 (cuda), m"),
    ] {
        assert!(lines[line].contains(said), "{said}: {}", lines[line]);
    }
    let ran = home.run(["runlog", "tail", "--json", "-n", "1", "events.jsonl"]);
    assert_eq!(ran.out, end(2.0, 1, 0, 6));
}

/// `tail -f` on a terminal of its own.
struct Following {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Following {
    fn start(home: &Home) -> Following {
        let mut command = home.command(["runlog", "tail", "--json", "-f", "events.jsonl"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Following { child, out }
    }

    fn next(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn append(path: &Path, text: &str) {
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[test]
fn a_followed_log_may_be_half_written_cut_and_replaced() {
    let home = Home::new();
    let path = write(&home, START);
    let mut following = Following::start(&home);
    assert_eq!(following.next(), START);
    let record = |t| request(t, "m", "p", 1, 1);
    append(&path, &record(1.0));
    assert_eq!(following.next(), record(1.0));
    // Half a record is waited for.
    let half = record(2.0);
    append(&path, &half[..30]);
    append(&path, &half[30..]);
    assert_eq!(following.next(), half);
    // Cut to less than was read, as `copytruncate` does.
    std::fs::write(&path, record(3.0)).unwrap();
    assert_eq!(following.next(), record(3.0));
    // Moved away, written to until its server takes the new one, and replaced.
    let old = path.with_extension("1");
    std::fs::rename(&path, &old).unwrap();
    append(&old, &record(4.0));
    assert_eq!(following.next(), record(4.0));
    append(&path, &record(5.0));
    assert_eq!(following.next(), record(5.0));
}
