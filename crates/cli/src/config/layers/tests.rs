//! Which source comes before which, flag by flag.

use clap::Parser as _;

use super::*;
use crate::args::{Cli, Command};

/// Settings of `trace` with these words, variables, and a file.
fn read(line: &str, variables: &[(&str, &str)], file: &str) -> anyhow::Result<Loaded> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("warptrace.yaml");
    std::fs::write(&path, file)?;
    let words = ["warptrace", "trace", "--config"].map(std::ffi::OsString::from);
    let words = words.into_iter().chain([path.into()]);
    let words = words.chain(line.split_whitespace().map(Into::into));
    let Some(Command::Trace(args)) = Cli::try_parse_from(words)?.command else {
        bail!("another command");
    };
    traced(&args, &|name| {
        let said = variables.iter().find(|(variable, _)| *variable == name);
        said.map(|(_, text)| (*text).to_owned())
    })
}

#[test]
fn a_flag_comes_before_a_variable_before_the_file_before_what_following_servers_changes() {
    let file = "inference: {enabled: true, baseline: {warmup_samples: 40}}\nheartbeat: 40s\nstore: {keep: 4}";
    let variables = [
        ("WARPTRACE_HEARTBEAT", "50s"),
        ("WARPTRACE_STORE_KEEP", "5"),
        ("WARPTRACE_INFERENCE_BASELINE_WARMUP_SAMPLES", " "),
        ("WARPTRACE_NODE", "17"),
    ];
    let loaded = read("--keep 6 --rollover-age 1h", &variables, file).unwrap();
    let hour = Some(Duration::from_secs(3600));
    let store = &loaded.store;
    assert_eq!((store.keep, store.rollover_age), (Some(6), hour));
    assert_eq!(store.rollover_size, Some(Bytes(1 << 30)));
    assert_eq!(loaded.heartbeat, Duration::from_secs(50));
    assert_eq!(loaded.inference.baseline.warmup_samples, 40);
    assert_eq!(loaded.node.as_deref(), Some("17"));
    for (path, origin) in [
        ("store.keep", Origin::Flag),
        ("heartbeat", Origin::Variable),
        ("inference.enabled", Origin::File),
        ("json", Origin::Inference),
        ("annotate", Origin::Default),
    ] {
        assert_eq!(loaded.origin(path), origin, "{path}");
    }
    let off = read("--inference=off", &[], file).unwrap();
    assert_eq!((off.json, off.store.keep), (JsonLines::Off, Some(4)));
    let wrong = read("", &[("WARPTRACE_STORE_KEEP", "many")], file).unwrap_err();
    assert_eq!(
        format!("{wrong:#}"),
        "WARPTRACE_STORE_KEEP: not a whole number from 0 to 4294967295"
    );
}

#[test]
fn every_flag_of_following_servers_reaches_its_setting() {
    let line = "--inference --inference-warmup 7 --inference-outlier-ratio 4.5 --inference-pause-on-severity off \
        --inference-sampler-degrade-on off --inference-sampler=on --inference-phase-classifier off \
        --inference-phase-decode-max-launches 1 --inference-phase-decode-max-memcpy 2 \
        --inference-phase-prefill-min-launches 3 --inference-phase-prefill-min-avg-kernel 4us \
        --inference-phase-mixed-memcpy 5 --inference-phase-mixed-launch-low 6 --inference-phase-mixed-launch-high 8 \
        --inference-phase-memfrag-decode-min 0 --inference-fingerprint-key --inference-kvcache-lineage \
        --inference-kvcache-top-n 9 --inference-kvcache-max-per-pid 10 --inference-scrape off \
        --inference-scrape-interval 11s --inference-scrape-host ::1 --inference-scrape-redetect-interval 12s";
    let loaded = read(line, &[], "").unwrap();
    let theirs = |path: &String| path.starts_with("inference.") && !path.ends_with(".socket");
    for path in paths().iter().filter(|path| theirs(path)) {
        assert_eq!(loaded.origin(path), Origin::Flag, "{path}");
    }
    let judged = inference::rules(&loaded.inference).unwrap();
    assert_eq!((judged.warmup_steps, judged.outlier_ratio), (7, 4.5));
    assert_eq!((judged.pause_on, judged.degrade_on), (None, None));
    assert!(judged.phases.is_none() && judged.fingerprint_key && loaded.inference.sampler);
    let kv = judged.kv_lineage.unwrap();
    assert_eq!((kv.top_n, kv.max_per_process), (9, 10));
    let on = read(&line.replace("classifier off", "classifier rule"), &[], "").unwrap();
    let phases = inference::rules(&on.inference).unwrap().phases.unwrap();
    assert_eq!(phases.decode_max_launches, Some(1));
    assert_eq!(phases.decode_max_copied_bytes, Some(2));
    assert_eq!(phases.prefill_min_launches, Some(3));
    assert_eq!(phases.prefill_min_average_launch_nanos, Some(4_000));
    assert_eq!(phases.mixed_min_copied_bytes, Some(5));
    assert_eq!(phases.mixed_launches, Some((6, 8)));
    assert_eq!(phases.decode_min_memory_calls, None);
}

#[test]
fn the_other_flags_reach_their_settings_too() {
    let line = "--inference --outliers /o.sock --prometheus=[::1]:9 --otlp=http://c:4318 --otlp-receive=[::1]:8 --metric-names both --node n --cluster c \
        --rollover-size 1MiB --rollover-age 2h --keep 3 --max-bytes 4GiB --max-age 5d --gpu-rates /r.yaml --provider aws --log /l \
        --log-level debug --sample-interval 6s --annotate --duration 7s --json=events --heartbeat 8s --ring-size 64KiB";
    let loaded = read(line, &[], "").unwrap();
    // These have no flag of their own.
    let only_in_files = [
        "compat",
        "prometheus.certificate",
        "prometheus.key",
        "cost.prices",
    ];
    for path in paths() {
        let has_flag = !only_in_files.contains(&path.as_str())
            && !path.starts_with("alerts.")
            && (!path.starts_with("otlp.")
                || path == "otlp.enabled"
                || path == "otlp.endpoint"
                || path == "otlp.receive.enabled"
                || path == "otlp.receive.address")
            && (!path.starts_with("inference.")
                || path == "inference.enabled"
                || path == "inference.outlier.socket");
        assert_eq!(loaded.origin(&path) == Origin::Flag, has_flag, "{path}");
    }
}

#[test]
fn opentelemetrys_variables_choose_exporters() {
    let file = "inference: {enabled: true}\notlp: {enabled: true}";
    let on = |line, variables: &[(&str, &str)], file| {
        let loaded = read(line, variables, file).unwrap();
        let otlp = &loaded.otlp;
        let is_on = |signal| otlp.enabled && signal;
        (
            is_on(otlp.metrics),
            is_on(otlp.traces),
            loaded.prometheus.enabled,
        )
    };
    let nothing = "inference: {enabled: true}";
    let metrics = |to| ("OTEL_METRICS_EXPORTER", to);
    let traces = |to| ("OTEL_TRACES_EXPORTER", to);
    assert_eq!(on("", &[], file), (true, true, false));
    assert_eq!(on("", &[metrics("none")], file), (false, true, false));
    assert_eq!(on("", &[metrics("prometheus")], file), (false, true, true));
    assert_eq!(on("", &[traces("none")], file), (true, false, false));
    assert_eq!(
        on("", &[metrics("otlp"), traces("none")], nothing),
        (true, false, false)
    );
    // A command's variables turn nothing on.
    assert_eq!(
        on("-- true", &[metrics("otlp,prometheus")], nothing),
        (false, false, false)
    );
    let disabled = ("OTEL_SDK_DISABLED", "true");
    let flags = "--otlp --prometheus";
    assert_eq!(on(flags, &[], nothing), (true, true, true));
    assert_eq!(on(flags, &[disabled], nothing), (false, false, false));
}

#[test]
fn settings_that_would_have_no_effect_are_errors() {
    for line in ["--otlp", "--prometheus", "--outliers /o.sock"] {
        let wrong = read(line, &[], "").unwrap_err().to_string();
        assert!(wrong.contains("inference.enabled is not"), "{wrong}");
    }
    let wrong = read("--inference --otlp-receive", &[], "")
        .unwrap_err()
        .to_string();
    assert!(wrong.contains("otlp.enabled is not"), "{wrong}");
}
