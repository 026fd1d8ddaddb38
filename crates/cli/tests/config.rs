//! Settings from a file, by the real binary; and its schema, by a validator of others.

mod support;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{Home, skip};

#[test]
fn a_file_is_checked_and_what_is_wrong_is_told_with_its_place() {
    let home = Home::new();
    let file = home.dir.path().join("warptrace.yaml");
    std::fs::write(&file, "inference: {enabled: true}\nnode: gpu-17\n").unwrap();
    let right = home.run(["config", "check", "warptrace.yaml"]);
    assert_eq!(right.code, Some(0), "{right:#?}");
    assert!(right.out.contains("\nnode: gpu-17"), "{right:#?}");
    let json = home.run(["config", "check", "warptrace.yaml", "--json"]);
    assert_eq!(json.json()["settings"]["store"]["keep"], 6);
    assert_eq!(json.json()["origins"]["store.keep"], "inference.enabled");
    // What it comes to is a file that comes to the same.
    std::fs::write(&file, &right.out).unwrap();
    let again = home.run(["config", "check", "warptrace.yaml", "--json"]);
    assert_eq!(again.json()["settings"], json.json()["settings"]);

    std::fs::write(&file, "store:\n  kep: 3\n").unwrap();
    let wrong = home.run(["config", "check", "warptrace.yaml"]);
    assert_eq!(wrong.code, Some(1), "{wrong:#?}");
    let said =
        "warptrace: warptrace.yaml: line 2: unknown key store.kep: did you mean store.keep?\n";
    assert_eq!(wrong.err, said);
    let refused = home.run(["record", "--config", "warptrace.yaml", "--", "true"]);
    assert_eq!(refused.code, Some(125), "{refused:#?}");
    assert_eq!(refused.err, said);
    std::fs::write(&file, vec![b' '; (1 << 20) + 1]).unwrap();
    let large = home.run(["config", "check", "warptrace.yaml"]);
    assert_eq!(large.code, Some(1), "{large:#?}");
    let none = home.run(["config", "check", "none.yaml"]);
    assert!(none.err.contains("none.yaml"), "{none:#?}");
}

#[test]
fn a_flag_comes_before_a_variable_before_the_file() {
    let home = Home::new();
    std::fs::write(home.dir.path().join("on.yaml"), "annotate: on\n").unwrap();
    let socket = |more: &[&str], variables: &[(&str, &str)]| {
        let mut command = home.command(["record", "--quiet"]);
        command.args(more);
        command.args(["--", "sh", "-c", "echo \"at $WARPTRACE_ANNOTATE_SOCKET\""]);
        let output = command.envs(variables.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().len() > "at".len()
    };
    let off = ("WARPTRACE_ANNOTATE", "off");
    let file = ("WARPTRACE_CONFIG", "on.yaml");
    assert!(!socket(&[], &[]));
    assert!(socket(&["--config", "on.yaml"], &[]));
    assert!(socket(&[], &[file]));
    assert!(!socket(&[], &[file, off]));
    assert!(socket(&["--annotate"], &[file, off]));
    assert!(!socket(&["--annotate=off"], &[file]));
}

/// Of those that the schema takes, and those that it does not, each is told with 1 or 0.
const VALIDATE: &str = "import json, sys, yaml, jsonschema
schema, documents = json.load(sys.stdin)
jsonschema.Draft202012Validator.check_schema(schema)
valid = jsonschema.Draft202012Validator(schema).is_valid
print(json.dumps([valid(yaml.safe_load(d)) for d in documents]))";

fn python() -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv/bin/python3");
    [PathBuf::from("python3"), venv].into_iter().find(|python| {
        let mut import = Command::new(python);
        import.args(["-c", "import jsonschema, yaml"]);
        import.output().is_ok_and(|o| o.status.success())
    })
}

#[test]
fn the_schema_and_the_program_take_the_same_files() {
    const TEST: &str = "the_schema_and_the_program_take_the_same_files";
    let Some(python) = python() else {
        return skip(TEST, "no Python with jsonschema and PyYAML");
    };
    let home = Home::new();
    let schema: Value = serde_json::from_str(&home.run(["config", "schema"]).out).unwrap();
    let example = home.run(["config", "example"]).out;
    // The keys that stand there as comments are settings too.
    let lines = example.lines();
    let lines = lines.filter(|line| !line.trim_start().starts_with("# "));
    let whole: Vec<String> = lines.map(|line| line.replacen('#', "", 1)).collect();
    let whole = whole
        .join("\n")
        .replacen("enabled: false", "enabled: true", 1);
    let mut documents: Vec<String> = vec![example, whole];
    for more in [
        "",
        "inference:",
        "inference: {enabled: yes, outlier: {sampler_degrade_on: off}, baseline: {pause_on_severity: MEDIUM}}",
        "inference: {db_rollover: {size: 2g, keep: 3}, daemon: {log_path: /tmp/x.log}}",
        "alerts: {reminder: off, slack: {channel: '#gpu', min_severity: HIGH}}",
        "store: {max_bytes: 4096, rollover_age: 1d 12h}",
        "json: off",
        "cost: {prices: {providers: {ours: {NVIDIA L4: {per_hour: 0.4, as_of: 2026-06}}}}}",
        // Not to be taken:
        "colour: red",
        "inference: {baseline: {warmup: 3}}",
        "alerts: {slack: {webhook_url: https://x}}",
        "heartbeat: 3",
        "heartbeat: soon",
        "node: 17",
        "store: {keep: -1}",
        "store: {keep: [1]}",
        "json: all",
        "metrics: {names: theirs}",
        "otlp: {endpoint: localhost}",
        "cost: {prices: {providers: {ours: {L4: free}}}}",
        "[]",
        "inference: {baseline: {warmup_samples: 0}}",
        "inference: {outlier: {threshold_ratio: 1}}",
        "inference: {kvcache: {lineage: true, top_n: 65}}",
        "inference: {kvcache: {lineage: true, max_per_pid: 262145}}",
        "alerts: {max_open: 0}",
        "alerts: {burst: 1001}",
        "alerts: {queue: 100001}",
    ] {
        documents.push(more.to_owned());
    }
    let mut child = Command::new(python)
        .args(["-c", VALIDATE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let question = json!([schema, documents]).to_string();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(question.as_bytes())
        .unwrap();
    let answer = child.wait_with_output().unwrap();
    let theirs: Vec<bool> = serde_json::from_slice(&answer.stdout).unwrap();
    let file = home.dir.path().join("document.yaml");
    for (document, theirs) in documents.iter().zip(theirs) {
        std::fs::write(&file, document).unwrap();
        let ours = home.run(["config", "check", "document.yaml"]);
        assert_eq!(ours.code, Some(i32::from(!theirs)), "{document}: {ours:#?}");
    }
    assert!(documents.len() > 20);
}
