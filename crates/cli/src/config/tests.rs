//! What is published of the settings, and what files come to.

use std::path::Path;

use clap::CommandFactory as _;
use expect_test::{expect, expect_file};

use super::file::{File, OTHER_NAMES};
use super::layers::{of_text, paths, variable};
use super::reference::{effective, example, schema, table};
use super::settings::Settings;
use super::tree::{Key, Node as _, Shape};

#[test]
fn what_is_published_is_what_the_program_has() {
    expect_file!["../../../../docs/config.schema.json"].assert_eq(&format!("{:#}\n", schema()));
    expect_file!["../../../../docs/config.example.yaml"].assert_eq(&example());
}

/// From its marker on the page is this test's.
#[test]
fn the_reference_has_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let marker = "<!-- From here on the page is written by the tests of crates/cli. -->\n\n";
    let (head, rest) = page.split_once(marker).unwrap();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, format!("{head}{marker}{}", table())).unwrap();
    } else {
        assert_eq!(rest, table(), "UPDATE_EXPECT=1 rewrites it");
    }
}

#[test]
fn the_example_says_the_defaults_and_its_comments_are_settings_too() {
    let loaded = of_text(&example()).unwrap();
    assert_eq!(*loaded, Settings::default());
    // Keys that stand there as comments: a line without a space behind the `#`.
    let all: Vec<String> = example()
        .lines()
        .filter(|line| !line.contains("inference.enabled") && !line.trim_start().starts_with("# "))
        .map(|line| line.replacen('#', "", 1))
        .collect();
    let said = File::parse(all.join("\n").as_bytes()).unwrap();
    let loaded = of_text(
        &all.join("\n")
            .replace("  enabled: false", "  enabled: true"),
    );
    let loaded = loaded.unwrap_or_else(|e| panic!("{e:#}\n{said:?}"));
    let said = loaded.origins().keys().cloned().collect::<Vec<_>>();
    let mut every = paths();
    every.sort();
    assert_eq!(said, every);
}

#[test]
fn every_key_of_the_schema_is_accepted_with_its_default() {
    fn leaves(section: &serde_json::Value, path: &str, found: &mut Vec<(String, String)>) {
        for (name, key) in section["properties"].as_object().unwrap() {
            let path = format!("{path}{name}");
            match key.get("default") {
                Some(default) => found.push((path, default.to_string())),
                None => leaves(key, &format!("{path}."), found),
            }
        }
    }
    let mut found = Vec::new();
    leaves(&schema(), "", &mut found);
    for (path, default) in &found {
        let depth = path.matches('.').count();
        let text = format!(
            "{{{}: {default}}}{}",
            path.replace('.', ": {"),
            "}".repeat(depth)
        );
        let loaded = of_text(&text).unwrap_or_else(|e| panic!("{text}: {e:#}"));
        assert_eq!(*loaded, Settings::default(), "{text}");
    }
    let ours = found.iter().filter(|(path, _)| paths().contains(path));
    assert_eq!(ours.count(), paths().len());
    assert_eq!(found.len(), paths().len() + OTHER_NAMES.len());
}

#[test]
fn every_flag_that_a_setting_names_is_there() {
    fn flags(keys: &[Key], all: &mut Vec<&'static str>) {
        for key in keys {
            all.extend(key.flag);
            if let Shape::Section(keys) = &key.shape {
                flags(keys, all);
            }
        }
    }
    let mut named = Vec::new();
    if let Shape::Section(keys) = Settings::shape() {
        flags(&keys, &mut named);
    }
    let command = crate::args::Cli::command();
    let trace = command.find_subcommand("trace").unwrap();
    for flag in named {
        let known = trace
            .get_arguments()
            .any(|a| a.get_long() == flag.strip_prefix("--"));
        assert!(known, "{flag}");
    }
}

#[test]
fn no_two_keys_have_the_same_variable() {
    let mut variables: Vec<_> = paths().iter().map(|path| variable(path)).collect();
    variables.sort();
    let count = variables.len();
    variables.dedup();
    assert_eq!(variables.len(), count);
    for ours in ["WARPTRACE_DATA", "WARPTRACE_LOG", "WARPTRACE_CONFIG"] {
        assert!(!variables.iter().any(|v| v == ours), "{ours}");
    }
}

#[track_caller]
fn refused(text: &str, message: &str) {
    assert_eq!(format!("{:#}", of_text(text).unwrap_err()), message);
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_what_is_near() {
    refused(
        "inference:\n  baselin:\n    warmup: 3",
        "test.yaml: line 2: unknown key inference.baselin: did you mean inference.baseline?",
    );
    refused(
        "inference:\n  baseline:\n    warmup: 3",
        "test.yaml: line 3: unknown key inference.baseline.warmup; there are warmup_samples, pause_on_severity",
    );
    refused(
        "\nheartbeet: 3s",
        "test.yaml: line 2: unknown key heartbeet: did you mean heartbeat?",
    );
    refused(
        "colour: red",
        "test.yaml: line 1: unknown key colour; there are compat, duration, json, heartbeat, sample_interval, annotate, ring_size, node, cluster, log, store, inference, metrics, prometheus, otlp, alerts, cost",
    );
    refused(
        "heartbeat: 3",
        "test.yaml: line 1: heartbeat: not a time: write a number with a unit (500ms, 30s, 5m, 2h, 7d)",
    );
    refused(
        "heartbeat: 0s",
        "test.yaml: line 1: heartbeat: a time above zero is needed (30s, 5m, 2h)",
    );
    refused("heartbeat:", "test.yaml: line 1: heartbeat: no value");
    refused(
        "json: event",
        r#"test.yaml: line 1: json: "event" is not one of off, findings, events (nearest: events)"#,
    );
    refused(
        "node: 17",
        "test.yaml: line 1: node: not a text (write it in quotes)",
    );
    refused(
        "ring_size: 3MiB",
        "test.yaml: line 1: ring_size: 3MiB is not a power of two (nearest: 2MiB, 4MiB)",
    );
    refused(
        "store: 1GiB",
        "test.yaml: line 1: store: a value, where a section is wanted",
    );
    refused(
        "log:\n  file: {a: 1}",
        "test.yaml: line 2: log.file: not a text (write it in quotes)",
    );
    refused("- a", "test.yaml: a value, where a section is wanted");
    refused(
        "store:\n  keep: 1\nstore:\n  keep: 2",
        "line 3: store is there twice",
    );
    refused(
        "inference: {baseline: {warmup_samples: 0}}",
        "inference.baseline.warmup_samples 0 is not from 1 to 1000000",
    );
    refused(
        "inference: {outlier: {threshold_ratio: 1}}",
        "inference.outlier.threshold_ratio 1 is not a number above 1",
    );
    refused(
        "inference: {outlier: {sampler_degrade_on: 4x}}",
        r#"test.yaml: line 1: inference.outlier.sampler_degrade_on: "4x" is not one of 1.5x, 2x, 3x (nearest: 2x)"#,
    );
    refused(
        "otlp: {enabled: true}",
        "otlp.enabled, but inference.enabled is not: nothing would go out (--inference, or inference: {enabled: true} in the file)",
    );
    refused(
        "prometheus: {key: /a}",
        "prometheus.certificate and prometheus.key: both or neither",
    );
    refused(
        "otlp: {receive: {certificate: /a}}",
        "otlp.receive.certificate and otlp.receive.key: both or neither",
    );
    refused(
        "alerts:\n  reminder: 90d",
        "cannot send alerts: alerts.reminder is not a time as 30s, 5m or 4h, above 0 and at most 30 days",
    );
    refused(
        "alerts: {slack: {template: '{colour}'}}",
        r#"cannot send alerts: alerts.slack.template: no place is named "colour""#,
    );
    refused(
        "cost: {prices: {providers: {ours: {L4: -1}}}}",
        r#"test.yaml: line 1: cost.prices: provider "ours" "L4" is not a price: a number above 0, at most 10000 an hour"#,
    );
    let bomb = (0..9).fold(String::from("a0: &a0 [x]"), |text, i| {
        format!(
            "{text}\na{}: &a{} [*a{i}, *a{i}, *a{i}, *a{i}, *a{i}, *a{i}, *a{i}, *a{i}]",
            i + 1,
            i + 1
        )
    });
    refused(&bomb, "more than 100000 values");
    refused(
        "a: &a [x]\nb: [*a",
        "while parsing a flow sequence, expected ',' or ']' at byte 16 line 3 column 1",
    );
}

#[test]
fn keys_are_in_no_file() {
    refused(
        "alerts: {slack: {webhook_url: https://x}}",
        "test.yaml: line 1: alerts.slack.webhook_url: a key, which no file holds: set the variable WARPTRACE_ALERT_SLACK_URL instead",
    );
    refused(
        "prometheus:\n  token: abc",
        "test.yaml: line 2: prometheus.token: a key, which no file holds: set the variable WARPTRACE_PROMETHEUS_TOKEN instead",
    );
    refused(
        "otlp:\n  receive:\n    token: abc",
        "test.yaml: line 3: otlp.receive.token: a key, which no file holds: set the variable WARPTRACE_OTLP_RECEIVE_TOKEN instead",
    );
    refused(
        "otlp: {headers: {Authorization: Bearer x}}",
        "test.yaml: line 1: otlp.headers: Authorization is a key, which no file holds: set the variable OTEL_EXPORTER_OTLP_HEADERS instead",
    );
    let loaded = of_text("otlp: {headers: {x-scope: '7'}}").unwrap();
    assert_eq!(loaded.otlp.headers.0, [("x-scope".into(), "7".into())]);
}

#[test]
fn following_inference_servers_changes_what_was_not_said() {
    let plain = of_text("").unwrap();
    assert_eq!(*plain, Settings::default());
    let whole = of_text("inference: {enabled: true}").unwrap();
    let lines = effective(&whole);
    let changed: Vec<&str> = lines.lines().filter(|l| l.contains(" # ")).collect();
    expect![[r#"
        json: findings                                  # inference.enabled
        heartbeat: 30s                                  # inference.enabled
          rollover_size: 1GiB                           # inference.enabled
          rollover_age: 1d                              # inference.enabled
          keep: 6                                       # inference.enabled
          enabled: true                                 # file"#]]
    .assert_eq(&changed.join("\n"));
    let said = of_text(
        "inference: {enabled: yes}\njson: off\nheartbeat: 5s\nstore: {rollover_size: off, keep: 2}",
    );
    let lines = effective(&said.unwrap());
    let changed: Vec<&str> = lines.lines().filter(|l| l.contains(" # ")).collect();
    expect![[r#"
        json: "off"                                     # file
        heartbeat: 5s                                   # file
          rollover_size: null                           # file
          rollover_age: 1d                              # inference.enabled
          keep: 2                                       # file
          enabled: true                                 # file"#]]
    .assert_eq(&changed.join("\n"));
}

#[test]
fn a_file_of_the_other_tracer_is_read_as_far_as_it_goes() {
    let theirs = "inference:\n  enabled: true\n  baseline: {warmup_samples: 10, pause_on_severity: MEDIUM}\n  \
         outlier: {threshold_ratio: 4.0, sampler_degrade_on: 2x}\n  db_rollover: {size: 2g, keep: 3}\n  \
         daemon: {duration: 0, log_path: /tmp/x.log}\ncompat: ingero\n";
    let loaded = of_text(theirs).unwrap();
    let lines = effective(&loaded);
    let changed: Vec<&str> = lines.lines().filter(|l| l.contains(" # ")).collect();
    expect![[r#"
        compat: ingero                                  # file
        json: findings                                  # inference.enabled
        heartbeat: 30s                                  # inference.enabled
          file: /tmp/x.log                              # file
          rollover_size: 2GiB                           # file
          rollover_age: 1d                              # inference.enabled
          keep: 3                                       # file
          enabled: true                                 # file
            warmup_samples: 10                          # file
            pause_on_severity: medium                   # file
            threshold_ratio: 4.0                        # file
            sampler_degrade_on: 2x                      # file
          names: ingero                                 # compat"#]]
    .assert_eq(&changed.join("\n"));
    refused(
        "inference: {db_rollover: {keep: 3}}\nstore: {keep: 2}",
        "line 1: inference.db_rollover.keep: another name of store.keep, which is there too",
    );
    refused(
        "inference:\n  db_rollover:\n    size: many",
        "test.yaml: line 3: store.rollover_size: not a size: write a number with a unit (4096, 512KiB, 500MiB, 10GiB)",
    );
}

#[test]
fn what_is_effective_is_a_file_that_says_the_same() {
    let one = of_text("inference: {enabled: true, sampler: on}\nnode: \"yes\"\notlp: {headers: {a: b c}, enabled: on}\nalerts: {reminder: off}\n\
         cost: {prices: {providers: {ours: {L4: 0.5}}}}").unwrap();
    let again = of_text(&effective(&one)).unwrap();
    assert_eq!(*again, *one, "{}", effective(&one));
}

#[test]
fn alerts_that_are_not_said_are_as_the_alerter_has_them() {
    let ours = crate::inference::alerts(&of_text("").unwrap(), &|_| None, "node").unwrap();
    let nothing = warptrace_model::Value::Null;
    let theirs = warptrace_export::alert::AlertConfig::from_value(&nothing, &|_| None, "node");
    assert_eq!(ours, theirs.unwrap());
}
