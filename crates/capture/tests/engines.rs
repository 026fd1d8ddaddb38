//! From a process to readings: a server that is started, and publishes, as vLLM is and does.
//!
//! The module `vllm.entrypoints.openai.api_server` is a stand-in; its metrics are made and served by `prometheus_client`, the
//! package that vLLM and SGLang use, under the names of vllm 0.33.0.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use warptrace_capture::engines::{EngineWatch, Report, Settings};
use warptrace_formats::serving::decode_scrape;
use warptrace_model::serving::{Engine, ServingMetric, ServingValue};

/// For what is only waited for when something is broken.
const LONG: Duration = Duration::from_secs(60);

const SERVER: &str = r#"
import sys, threading
from prometheus_client import Counter, Gauge, Histogram, start_http_server

model = sys.argv[sys.argv.index("--model") + 1]
names, values = ["model_name", "engine"], [model, "0"]
Gauge("vllm:num_requests_running", "Running.", names).labels(*values).set(3)
Gauge("vllm:num_requests_waiting", "Waiting.", names).labels(*values).set(2)
Gauge("vllm:kv_cache_usage_perc", "1 means 100 percent.", names).labels(*values).set(0.75)
Counter("vllm:num_preemptions", "Preemptions.", names).labels(*values).inc(4)
Counter("vllm:prompt_tokens", "A \"quote\", a \\ and\na line.", names).labels(*values).inc(1234)
first = Histogram("vllm:time_to_first_token_seconds", "First.", names, buckets=[0.1, 1.0]).labels(*values)
for seconds in (0.05, 0.5, 0.5, 5.0):
    first.observe(seconds)
start_http_server(int(sys.argv[sys.argv.index("--port") + 1]), addr="127.0.0.1")
threading.Event().wait()
"#;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_started_as_vllm_is_found_and_its_metrics_are_read() {
    const NAME: &str = "a_server_started_as_vllm_is_found_and_its_metrics_are_read";
    let Some(python) = python_with("prometheus_client") else {
        return skip(NAME, "no python3 with prometheus_client");
    };
    let folder = tempfile::tempdir().unwrap();
    let package = folder.path().join("vllm/entrypoints/openai");
    std::fs::create_dir_all(&package).unwrap();
    std::fs::write(package.join("api_server.py"), SERVER).unwrap();
    let model = "org/model \"7\" \\ b";
    // A port that is free now; who else takes it meanwhile is not ours, and the server ends.
    let deadline = Instant::now() + LONG;
    let body = loop {
        assert!(Instant::now() < deadline);
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let server = Command::new(&python)
            .args([
                "-u",
                "-m",
                "vllm.entrypoints.openai.api_server",
                "--model",
                model,
            ])
            .args(["--port", &port.to_string()])
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut server = Server(server.unwrap());
        if let Some(body) = scraped(&mut server, model) {
            break body;
        }
    };

    let scrape = decode_scrape(Engine::Vllm, &body);
    assert_eq!((scrape.wrong, scrape.beyond, scrape.bad_lines), (0, 0, 0));
    assert!(
        scrape
            .readings
            .iter()
            .all(|r| r.model.as_deref() == Some(model))
    );
    let number = |metric| {
        let found = scrape.readings.iter().find(|r| r.metric == metric);
        match found.map(|r| &r.value) {
            Some(ServingValue::Number(n)) => *n,
            other => panic!("{metric:?}: {other:?}"),
        }
    };
    assert_eq!(number(ServingMetric::RequestsRunning), 3.0);
    assert_eq!(number(ServingMetric::RequestsQueued), 2.0);
    assert_eq!(number(ServingMetric::KvCacheUtilization), 0.75);
    assert_eq!(number(ServingMetric::Preemptions), 4.0);
    assert_eq!(number(ServingMetric::InputTokens), 1234.0);
    let first = &scrape.readings[0];
    assert_eq!(first.metric, ServingMetric::TimeToFirstToken);
    let ServingValue::Histogram(first) = &first.value else {
        panic!("{first:?}");
    };
    assert_eq!((first.sum, first.count), (6.05, 4));
    assert_eq!(
        (&first.bounds[..], &first.counts[..]),
        (&[0.1, 1.0][..], &[1, 2, 1][..])
    );
}

/// What the server answers; `None` when it ended.
fn scraped(server: &mut Server, model: &str) -> Option<Vec<u8>> {
    let watch = EngineWatch::start(Settings {
        pids: vec![server.0.id()],
        interval: Duration::from_millis(500),
        redetect: Duration::from_millis(50),
        ..Settings::default()
    })
    .unwrap();
    let deadline = Instant::now() + LONG;
    while Instant::now() < deadline {
        match watch.next(Duration::from_millis(500)) {
            Some(Report::Found(engine)) => {
                assert_eq!(engine.command.engine, Engine::Vllm);
                assert_eq!(engine.command.model.as_deref(), Some(model));
            }
            Some(Report::Scraped { engine, body, at }) => {
                assert_eq!(engine.incarnation.pid.0, server.0.id());
                assert!(at.0 > 0);
                return Some(body);
            }
            _ if server.0.try_wait().unwrap().is_some() => return None,
            _ => {}
        }
    }
    panic!("nothing was scraped: {:?}", watch.counts());
}

/// A Python that has the package: of the path, or of the environment that CI makes.
fn python_with(package: &str) -> Option<PathBuf> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv/bin/python3");
    [PathBuf::from("python3"), ours].into_iter().find(|python| {
        let import = Command::new(python)
            .args(["-c", &format!("import {package}")])
            .stderr(Stdio::null())
            .status();
        import.is_ok_and(|status| status.success())
    })
}

/// Says why `test` cannot run here, where CI counts it.
fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../skipped");
    let _ = std::fs::create_dir_all(&folder);
    let _ = std::fs::write(folder.join(format!("{test}.txt")), reason);
}
