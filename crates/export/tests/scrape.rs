//! The endpoint that Prometheus asks, over real connections.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use support::*;
use warptrace_export::{Scrape, ScrapeConfig, ServeError, ServerTls, Stage};
use warptrace_formats::metrics::Names;
use warptrace_formats::prometheus_text::Samples;
use warptrace_model::metric::{Meter, Number, Snapshot, metric};
use warptrace_model::{Object, UnixNanos};

fn config() -> ScrapeConfig {
    ScrapeConfig {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        ..ScrapeConfig::loopback()
    }
}

fn snapshot(launches: i64) -> Arc<Snapshot> {
    let mut meter = Meter::new(UnixNanos(1), 100);
    for pid in 0..50 {
        let attributes = object(&[("process.pid", pid.into())]);
        meter
            .add(&metric::CUDA_LAUNCH_COUNT, attributes, launches)
            .unwrap();
    }
    meter
        .set(&metric::STORE_SIZE, Object::new(), Number::Int(5))
        .unwrap();
    let resource = object(&[("service.name", "warptrace".into())]);
    Arc::new(meter.snapshot(resource, UnixNanos(2)))
}

/// Status line and headers, and the body.
fn ask(address: SocketAddr, request: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let body = bytes.split_off(end + 4);
    (String::from_utf8(bytes).unwrap(), body)
}

fn get(address: SocketAddr, path: &str, headers: &str) -> (String, String) {
    let (head, body) = ask(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"),
    );
    (head, String::from_utf8(body).unwrap())
}

#[test]
fn a_scraper_gets_the_newest_snapshot_in_the_format_that_it_asks_for() {
    let scrape = Scrape::start(&config()).unwrap();
    let (head, body) = get(scrape.address(), "/metrics", "");
    assert!(
        head.starts_with("HTTP/1.1 200 OK\r\n") && body.is_empty(),
        "nothing yet: {head}{body}"
    );
    scrape.publish(snapshot(1));
    scrape.publish(snapshot(2));
    let (head, body) = get(scrape.address(), "/metrics?x=1", "");
    assert!(
        head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"),
        "{head}"
    );
    assert!(
        body.contains("warptrace_cuda_launch_count_total{process_pid=\"7\"} 2\n"),
        "{body}"
    );
    let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1\r\n";
    let (head, body) = get(scrape.address(), "/metrics", accept);
    assert!(
        head.contains("Content-Type: application/openmetrics-text; version=1.0.0;"),
        "{head}"
    );
    assert!(body.ends_with("# EOF\n"));
    let request = "GET /metrics HTTP/1.1\r\nAccept-Encoding: gzip\r\n\r\n";
    let (head, body) = ask(scrape.address(), request);
    assert!(head.contains("Content-Encoding: gzip\r\n"), "{head}");
    let mut plain = String::new();
    flate2::read::GzDecoder::new(body.as_slice())
        .read_to_string(&mut plain)
        .unwrap();
    assert!(Samples::new(plain.as_bytes()).all(|sample| sample.is_ok()));
}

#[test]
fn health_and_readiness_say_what_they_were_told_and_what_is_wrong() {
    let scrape = Scrape::start(&config()).unwrap();
    let ask = |path: &str| {
        let (head, body) = get(scrape.address(), path, "");
        format!("{} {body}", &head[9..12])
    };
    assert_eq!(ask("/healthz"), "200 ok\n");
    assert_eq!(ask("/readyz"), "503 not ready: starting\n");
    scrape.set_stage(Stage::Ready);
    scrape.set_watch(|| Err("the disk is full".to_owned()));
    assert_eq!(ask("/healthz"), "503 not healthy: the disk is full\n");
    assert_eq!(ask("/readyz"), "200 ready\n");
    scrape.set_stage(Stage::Stopping);
    scrape.set_watch(|| Ok(()));
    assert_eq!(ask("/healthz"), "200 ok\n");
    assert_eq!(ask("/readyz"), "503 not ready: stopping\n");
    assert!(ask("/").starts_with("404"));
    assert!(ask("/metrics/../etc/passwd").starts_with("404"));
}

#[test]
fn a_token_is_asked_for_metrics_alone() {
    let token = Some("0123456789abcdef".to_owned());
    let scrape = Scrape::start(&ScrapeConfig { token, ..config() }).unwrap();
    scrape.publish(snapshot(1));
    let status =
        |path: &str, headers: &str| get(scrape.address(), path, headers).0[9..12].to_owned();
    assert_eq!(status("/metrics", ""), "401");
    assert_eq!(
        status("/metrics", "Authorization: Bearer 0123456789abcdeF\r\n"),
        "401"
    );
    assert_eq!(
        status("/metrics", "Authorization: Bearer 0123456789abcdef0\r\n"),
        "401"
    );
    assert_eq!(
        status("/metrics", "Authorization: Basic 0123456789abcdef\r\n"),
        "401"
    );
    assert_eq!(
        status("/metrics", "Authorization: bearer 0123456789abcdef\r\n"),
        "200"
    );
    assert_eq!(status("/healthz", ""), "200");
}

#[test]
fn beyond_loopback_it_starts_with_tls_and_a_token_alone() {
    let everywhere = ScrapeConfig {
        address: SocketAddr::from(([0, 0, 0, 0], 0)),
        ..config()
    };
    let refusal = Scrape::start(&everywhere).unwrap_err();
    assert!(matches!(refusal, ServeError::NoToken(_)), "{refusal}");
    assert_eq!(
        refusal.to_string(),
        "0.0.0.0:0 is not loopback: a token is needed"
    );
    let token = Some("0123456789abcdef".to_owned());
    let refusal = Scrape::start(&ScrapeConfig {
        token,
        ..everywhere.clone()
    })
    .unwrap_err();
    assert!(matches!(refusal, ServeError::NoTls(_)), "{refusal}");
    let token = Some("short".to_owned());
    let refusal = Scrape::start(&ScrapeConfig { token, ..config() }).unwrap_err();
    assert!(matches!(refusal, ServeError::BadToken), "{refusal}");
    let mapped = ScrapeConfig {
        address: "[::ffff:127.0.0.1]:0".parse().unwrap(),
        ..config()
    };
    assert!(
        !matches!(Scrape::start(&mapped), Err(ServeError::NoToken(_))),
        "loopback by another name"
    );
    let debug = format!(
        "{:?}",
        ScrapeConfig {
            token: Some("a-secret-of-mine".into()),
            ..config()
        }
    );
    assert!(!debug.contains("secret"), "{debug}");
}

#[test]
fn the_variables_say_where_it_listens() {
    let from = |host: &'static str, port: &'static str| {
        let (config, ignored) = ScrapeConfig::from_env(|name| match name {
            "OTEL_EXPORTER_PROMETHEUS_HOST" => Some(host.to_owned()),
            "OTEL_EXPORTER_PROMETHEUS_PORT" => Some(port.to_owned()),
            _ => None,
        });
        (config.address.to_string(), ignored.len())
    };
    assert_eq!(from("", ""), ("127.0.0.1:9464".to_owned(), 0));
    assert_eq!(from("localhost", "9000"), ("127.0.0.1:9000".to_owned(), 0));
    assert_eq!(from("::1", ""), ("[::1]:9464".to_owned(), 0));
    assert_eq!(from("0.0.0.0", "0"), ("0.0.0.0:0".to_owned(), 0));
    assert_eq!(
        from("example.org", "65536"),
        ("127.0.0.1:9464".to_owned(), 2)
    );
}

#[test]
fn a_port_that_is_taken_and_a_missing_file_are_errors_that_name_them() {
    let first = Scrape::start(&config()).unwrap();
    let again = ScrapeConfig {
        address: first.address(),
        ..config()
    };
    let refusal = Scrape::start(&again).unwrap_err().to_string();
    assert_eq!(refusal, format!("cannot listen on {}", first.address()));
    let files = ServerTls {
        certificate: "/none/a.pem".into(),
        key: "/none/a.key".into(),
    };
    let refusal = Scrape::start(&ScrapeConfig {
        tls: Some(files),
        ..config()
    })
    .unwrap_err();
    assert!(
        matches!(refusal, ServeError::File { .. } | ServeError::NotBuilt),
        "{refusal}"
    );
}

#[test]
fn a_client_that_says_nothing_or_too_much_keeps_nobody_from_being_served() {
    let scrape = Scrape::start(&config()).unwrap();
    scrape.publish(snapshot(1));
    let silent: Vec<_> = (0..15)
        .map(|_| TcpStream::connect(scrape.address()).unwrap())
        .collect();
    assert!(
        get(scrape.address(), "/healthz", "")
            .0
            .starts_with("HTTP/1.1 200")
    );
    // One more than there may be, as soon as all of the silent ones are taken in.
    let mut more = Vec::new();
    until(|| {
        more.push(TcpStream::connect(scrape.address()).unwrap());
        scrape.turned_away() > 0
    });
    drop((silent, more));
    until(|| {
        let mut stream = TcpStream::connect(scrape.address()).unwrap();
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.starts_with("HTTP/1.1 200")
    });
    let mut stream = TcpStream::connect(scrape.address()).unwrap();
    let endless = vec![b'a'; 1 << 20];
    let _ = stream.write_all(&endless);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(
        get(scrape.address(), "/metrics", "")
            .0
            .starts_with("HTTP/1.1 200")
    );
}

#[test]
fn dropping_it_frees_the_port() {
    let scrape = Scrape::start(&config()).unwrap();
    let address = scrape.address();
    drop(scrape);
    until(|| {
        Scrape::start(&ScrapeConfig {
            address,
            ..config()
        })
        .is_ok()
    });
}

#[cfg(feature = "tls")]
#[test]
fn over_tls_it_is_served_to_those_who_trust_its_certificate() {
    use std::process::Command;

    let authority = authority::Authority::new(false);
    let files = ServerTls {
        certificate: authority.file("server.pem"),
        key: authority.file("server.key"),
    };
    let token = "0123456789abcdef";
    let scrape = Scrape::start(&ScrapeConfig {
        token: Some(token.to_owned()),
        tls: Some(files),
        names: Names::Ingero,
        address: SocketAddr::from(([0, 0, 0, 0], 0)),
    })
    .unwrap();
    scrape.publish(snapshot(3));
    let Some(python) = python_with("ssl") else {
        return skip("scrape_tls", "no python3 with ssl");
    };
    const CODE: &str = "
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[1])
request = urllib.request.Request(sys.argv[2], headers={'Authorization': 'Bearer ' + sys.argv[3]})
print(urllib.request.urlopen(request, context=context, timeout=60).read().decode())
";
    let url = format!("https://127.0.0.1:{}/metrics", scrape.address().port());
    let output = Command::new(python)
        .args(["-c", CODE])
        .arg(authority.file("authority.pem"))
        .args([&url, token])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        said.contains("gpu_kernel_launch_count{pid=\"7\"} 3\n"),
        "{said}"
    );
    // Who speaks no TLS gets no metrics.
    let mut stream = TcpStream::connect(("127.0.0.1", scrape.address().port())).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("gpu_kernel_launch_count"));
}
