//! What Prometheus itself makes of our endpoint: `promtool check metrics` of every name, and a server that scrapes it and is asked.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use expect_test::expect;
use support::*;
use warptrace_export::{Scrape, ScrapeConfig};
use warptrace_formats::metrics::Names;
use warptrace_formats::openmetrics::{Format, encode};
use warptrace_model::metric::{
    Exemplar, Explicit, Exponential, Family, Form, Instrument, Number, Point, Snapshot, attribute,
    metric,
};
use warptrace_model::{Object, UnixNanos, Value};

/// A program of Debian's package `prometheus`: on the path, or where CI unpacks it.
fn program(name: &str) -> Option<PathBuf> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/prometheus/usr/bin");
    [PathBuf::from(name), unpacked.join(name)]
        .into_iter()
        .find(|path| {
            let version = Command::new(path).arg("--version").output();
            version.is_ok_and(|output| output.status.success())
        })
}

const MISSING: &str =
    "no Prometheus (Debian's package prometheus, or unpacked into target/prometheus)";

/// A point of every metric of the table, with every attribute.
fn every_metric(at: UnixNanos) -> Snapshot {
    let families = metric::ALL.iter().map(|metric| {
        let mut attributes = Object::new();
        let theirs = metric.ingero.iter().flat_map(|row| row.attributes);
        for attribute in metric.attributes.iter().chain(theirs) {
            if **attribute != attribute::PERCENTILE {
                let value = match attribute.form {
                    Form::Text => "x".into(),
                    Form::Double => Value::Float(0.5),
                    _ => 7.into(),
                };
                attributes.insert(attribute.name, value);
            }
        }
        let (mut explicit, mut exponential) =
            (Explicit::new(metric.bounds), Exponential::default());
        for bound in metric.bounds {
            explicit.record(bound * 0.9);
            exponential.record(bound * 0.9);
        }
        let is_explicit = metric.name.len() % 2 == 0;
        let value = match metric.instrument {
            Instrument::Histogram if is_explicit => Number::Explicit(explicit),
            Instrument::Histogram => Number::Exponential(exponential),
            _ => Number::Double(3.0),
        };
        let choices = metric.ingero.iter().filter_map(|row| row.only);
        let mut variants: Vec<Object> = choices
            .map(|(key, word)| {
                let mut chosen = attributes.clone();
                chosen.insert(key.name, word);
                chosen
            })
            .collect();
        if variants.is_empty() {
            variants.push(attributes);
        }
        let points = variants.into_iter().map(|attributes| Point {
            attributes,
            start: UnixNanos(1),
            at,
            value: value.clone(),
            exemplars: vec![Exemplar {
                value: metric.bounds.first().map_or(1.0, |first| first * 0.9),
                at,
                context: Some((0xabcd, 0xef)),
                attributes: Object::new(),
            }],
        });
        Family {
            metric,
            points: points.collect(),
        }
    });
    let resource = object(&[
        ("service.name", "warptrace".into()),
        ("host.name", "gpu-7".into()),
    ]);
    Snapshot {
        resource,
        families: families.collect(),
    }
}

/// What `promtool check metrics` has to say of a text, sorted.
fn check(promtool: &Path, text: &str) -> String {
    let mut process = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    process
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = process.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    let mut lines: Vec<&str> = said.lines().collect();
    lines.sort_unstable();
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn promtool_finds_nothing_wrong_with_our_names_and_the_known_faults_of_anothers() {
    let Some(promtool) = program("promtool") else {
        return skip("promtool", MISSING);
    };
    let snapshot = every_metric(UnixNanos(5));
    let native = encode(&snapshot, Names::Native, Format::Text);
    assert!(native.len() > 10_000);
    assert_eq!(check(&promtool, &native), "");
    let ingero = encode(&snapshot, Names::Ingero, Format::Text);
    expect![[r#"
        gpu_cuda_operation_count counter metrics should have "_total" suffix
        gpu_cuda_operation_count non-histogram and non-summary metrics should not have "_count" suffix
        gpu_cuda_operation_duration_microseconds use base unit "seconds" instead of "microseconds"
        gpu_kernel_launch_count counter metrics should have "_total" suffix
        gpu_kernel_launch_count non-histogram and non-summary metrics should not have "_count" suffix
        gpu_memcpy_duration_ms metric names should not contain abbreviated units
        gpu_nccl_collective_barrier_events counter metrics should have "_total" suffix
        gpu_nccl_collective_count counter metrics should have "_total" suffix
        gpu_nccl_collective_count non-histogram and non-summary metrics should not have "_count" suffix
        gpu_nccl_processes_total non-counter metrics should not have "_total" suffix
        ingero_anomaly_count counter metrics should have "_total" suffix
        ingero_anomaly_count non-histogram and non-summary metrics should not have "_count" suffix
        ingero_fleet_straggler_count non-histogram and non-summary metrics should not have "_count" suffix
        ingero_infer_baseline_mean_ns metric names should not contain abbreviated units
        ingero_infer_baseline_p95_ns metric names should not contain abbreviated units
        ingero_infer_kvcache_alloc_age_ms metric names should not contain abbreviated units
        ingero_infer_step_duration_ns metric names should not contain abbreviated units
    "#]]
    .assert_eq(&check(&promtool, &ingero));
}

/// A server that scrapes one target, and is killed with the test.
struct Prometheus {
    process: Child,
    address: SocketAddr,
    _files: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Prometheus {
    fn start(program: &Path, target: SocketAddr) -> Prometheus {
        let files = tempfile::tempdir().unwrap();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
             scrape_configs:\n- job_name: gpu\n  static_configs: [{{targets: ['{target}']}}]\n"
        );
        std::fs::write(files.path().join("prometheus.yml"), config).unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let process = Command::new(program)
            .arg(format!(
                "--config.file={}",
                files.path().join("prometheus.yml").display()
            ))
            .arg(format!(
                "--storage.tsdb.path={}",
                files.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--enable-feature=exemplar-storage")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Prometheus {
            process,
            address,
            _files: files,
        }
    }

    /// `data` of an answer of the API; `None` while it does not answer.
    fn ask(&self, path: &str) -> Option<serde_json::Value> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        let answer: serde_json::Value = serde_json::from_str(body).ok()?;
        (answer["status"] == "success").then(|| answer["data"].clone())
    }

    /// The values that a query finds, with what comes before the first, in any order.
    fn query(&self, query: &str) -> Vec<f64> {
        let Some(data) = self.ask(&format!("/api/v1/query?query={query}")) else {
            return Vec::new();
        };
        let found = data["result"].as_array().cloned().unwrap_or_default();
        let values = found
            .iter()
            .map(|one| one["value"][1].as_str().unwrap().parse().unwrap());
        values.collect()
    }
}

fn now() -> UnixNanos {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    UnixNanos(since.as_nanos() as u64)
}

#[test]
fn prometheus_scrapes_us_and_its_api_gives_our_numbers_and_exemplars() {
    let Some(program) = program("prometheus") else {
        return skip("prometheus_scrapes", MISSING);
    };
    let config = ScrapeConfig {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        ..ScrapeConfig::loopback()
    };
    let scrape = Scrape::start(&config).unwrap();
    let at = now();
    let snapshot = every_metric(at);
    let points = snapshot.len();
    scrape.publish(Arc::new(snapshot));
    let prometheus = Prometheus::start(&program, scrape.address());
    until(|| prometheus.query("up") == [1.0]);

    assert_eq!(prometheus.query("warptrace_cuda_launch_count_total"), [3.0]);
    assert_eq!(
        prometheus.query("hw_gpu_memory_usage_bytes%7Bhw_id=%22x%22%7D"),
        [3.0]
    );
    let name = "warptrace_inference_healthy_step_duration_seconds";
    assert_eq!(prometheus.query(&format!("{name}_count")), [16.0]);
    let within = prometheus.query(&format!("{name}_bucket%7Ble=%221.0%22%7D"));
    assert_eq!(within, [13.0]);
    let median = prometheus.query(&format!("histogram_quantile(0.5,{name}_bucket)"));
    assert!(median[0] > 0.01 && median[0] < 0.05, "{median:?}");
    assert_eq!(
        prometheus.query("target_info%7Bhost_name=%22gpu-7%22%7D"),
        [1.0]
    );
    // Every point of the table has come: one series each, but for histograms, of which we look at one.
    let series = prometheus.query(
        "count(%7Bjob=%22gpu%22,__name__!~%22.*_(bucket|sum)|up|scrape_.*|target_info%22%7D)",
    );
    assert_eq!(series, [points as f64]);

    let mut found = serde_json::Value::Null;
    until(|| {
        let secs = at.0 / 1_000_000_000;
        let path = format!(
            "/api/v1/query_exemplars?query={name}_bucket&start={}&end={}",
            secs - 60,
            secs + 600
        );
        found = prometheus.ask(&path).unwrap_or_default();
        found.as_array().is_some_and(|list| !list.is_empty())
    });
    let exemplar = &found[0]["exemplars"][0];
    assert_eq!(exemplar["labels"]["trace_id"], format!("{:032x}", 0xabcd));
    assert_eq!(exemplar["value"].as_str().unwrap().parse(), Ok(9e-5));
}

#[test]
fn prometheus_takes_another_tracers_names_beside_ours() {
    let Some(program) = program("prometheus") else {
        return skip("prometheus_scrapes_both", MISSING);
    };
    let config = ScrapeConfig {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        names: Names::Both,
        ..ScrapeConfig::loopback()
    };
    let scrape = Scrape::start(&config).unwrap();
    scrape.publish(Arc::new(every_metric(now())));
    let prometheus = Prometheus::start(&program, scrape.address());
    until(|| prometheus.query("up") == [1.0]);
    assert_eq!(
        prometheus.query("ingero_infer_step_duration_ns_count"),
        [16.0]
    );
    assert_eq!(
        prometheus.query("ingero_infer_step_duration_ns_bucket%7Ble=%221e%2B09%22%7D"),
        [13.0]
    );
    assert_eq!(prometheus.query("gpu_cuda_operation_count"), [22.0]);
    assert_eq!(
        prometheus.query("warptrace_cuda_call_duration_seconds_count"),
        [22.0]
    );
    assert_eq!(
        prometheus.query("gpu_throttle_power_active%7Bgpu_uuid=%22x%22%7D"),
        [3.0]
    );
}
