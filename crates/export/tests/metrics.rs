//! Metrics over HTTP to a collector that behaves, and to collectors that do not.

mod support;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use prost::Message as _;
use support::*;
use warptrace_export::otlp::{Compression, Config, Protocol, Retry, Signal};
use warptrace_export::{DropReason, MetricSender, MetricSettings, Temporality};
use warptrace_formats::metrics::Names;
use warptrace_formats::otlp::{
    Data, ExportMetricsServiceRequest, ExportTracePartialSuccess, ExportTraceServiceResponse,
    PointValue,
};
use warptrace_model::metric::{Meter, Number, Snapshot, metric};
use warptrace_model::{Object, UnixNanos};

const HTTP: [Protocol; 2] = [Protocol::HttpProtobuf, Protocol::HttpJson];

/// Counts launches and copies, and says a level.
struct Job {
    meter: Meter,
    now: u64,
}

const START: u64 = 1_750_000_000_000_000_000;

impl Job {
    fn new() -> Job {
        Job {
            meter: Meter::new(UnixNanos(START), 100),
            now: START,
        }
    }

    /// `launches` more, a second later.
    fn after(&mut self, launches: i64) -> Arc<Snapshot> {
        self.now += 1_000_000_000;
        let meter = &mut self.meter;
        meter
            .add(&metric::CUDA_LAUNCH_COUNT, Object::new(), launches)
            .unwrap();
        for _ in 0..launches {
            meter
                .record(&metric::CUDA_COPY_DURATION, Object::new(), 0.002, None)
                .unwrap();
        }
        let level = Number::Int(launches);
        meter
            .set(&metric::STORE_SIZE, Object::new(), level)
            .unwrap();
        let resource = object(&[("service.name", "warptrace".into())]);
        Arc::new(meter.snapshot(resource, UnixNanos(self.now)))
    }
}

/// Of each metric: seconds after the start that its point counts from, and to; and its value or count.
fn seen(request: &ExportMetricsServiceRequest) -> BTreeMap<String, (u64, u64, i64)> {
    let secs = |nanos: u64| nanos.saturating_sub(START) / 1_000_000_000;
    let scopes = request
        .resource_metrics
        .iter()
        .flat_map(|r| &r.scope_metrics);
    let metrics = scopes.flat_map(|scope| &scope.metrics).map(|metric| {
        let number = |value: Option<PointValue>| match value {
            Some(PointValue::AsInt(n)) => n,
            Some(PointValue::AsDouble(x)) => x as i64,
            None => -1,
        };
        let of = match metric.data.as_ref().unwrap() {
            Data::Gauge(data) => {
                let point = &data.data_points[0];
                (
                    point.start_time_unix_nano,
                    point.time_unix_nano,
                    number(point.value),
                )
            }
            Data::Sum(data) => {
                let point = &data.data_points[0];
                (
                    point.start_time_unix_nano,
                    point.time_unix_nano,
                    number(point.value),
                )
            }
            Data::Histogram(data) => {
                let point = &data.data_points[0];
                (
                    point.start_time_unix_nano,
                    point.time_unix_nano,
                    point.count as i64,
                )
            }
            Data::ExponentialHistogram(data) => {
                let point = &data.data_points[0];
                (
                    point.start_time_unix_nano,
                    point.time_unix_nano,
                    point.count as i64,
                )
            }
        };
        (metric.name.clone(), (secs(of.0), secs(of.1), of.2))
    });
    metrics.collect()
}

fn expect(
    copies: (u64, u64, i64),
    launches: (u64, u64, i64),
    size: (u64, u64, i64),
) -> BTreeMap<String, (u64, u64, i64)> {
    BTreeMap::from([
        (metric::CUDA_COPY_DURATION.name.to_owned(), copies),
        (metric::CUDA_LAUNCH_COUNT.name.to_owned(), launches),
        (metric::STORE_SIZE.name.to_owned(), size),
    ])
}

/// Tries again soon, and for long.
fn patient_settings() -> MetricSettings {
    MetricSettings {
        retry: patient().retry,
        ..MetricSettings::default()
    }
}

fn start(config: &Config, settings: MetricSettings) -> MetricSender {
    MetricSender::new(config, settings, "1.2.3").unwrap()
}

#[test]
fn snapshots_arrive_whole_and_in_order_in_each_encoding_and_compression() {
    for protocol in HTTP {
        for compression in [Compression::None, Compression::Gzip] {
            let collector = Collector::taking_all();
            let config = Config {
                compression,
                ..collector.metrics_config(protocol)
            };
            let sender = start(&config, MetricSettings::default());
            let mut job = Job::new();
            assert!(sender.offer(job.after(3)));
            assert!(sender.offer(job.after(4)));
            assert!(sender.close(soon()));
            let request = collector.request();
            assert_eq!(request.path, "/v1/metrics");
            assert_eq!(
                seen(&request.metrics()),
                expect((0, 1, 3), (0, 1, 3), (0, 1, 3))
            );
            let said = request.metrics().resource_metrics.remove(0);
            let scope = said.scope_metrics[0].scope.clone().unwrap();
            assert_eq!(
                (scope.name.as_str(), scope.version.as_str()),
                ("warptrace", "1.2.3")
            );
            assert_eq!(said.resource.unwrap().attributes[0].key, "service.name");
            let second = collector.request().metrics();
            assert_eq!(seen(&second), expect((0, 2, 7), (0, 2, 7), (0, 2, 4)));
            let counts = sender.counts();
            assert_eq!(
                (counts.sent, counts.pushed(), counts.unreadable),
                (6, 6, 0),
                "{counts:?}"
            );
            assert!(!sender.offer(job.after(1)));
            assert_eq!(sender.counts().dropped(DropReason::Closed), 3);
        }
    }
}

#[test]
fn deltas_count_from_what_was_delivered_so_that_a_refused_snapshot_costs_no_counts() {
    let mut came = 0;
    let collector = Collector::start(move |_| {
        came += 1;
        match came {
            2 => Reply::Status(400, "", Vec::new()),
            _ => Reply::Ok,
        }
    });
    let settings = MetricSettings {
        temporality: Temporality::Delta,
        ..MetricSettings::default()
    };
    let sender = start(&collector.metrics_config(Protocol::HttpProtobuf), settings);
    let mut job = Job::new();
    for launches in [3, 4, 5] {
        sender.offer(job.after(launches));
        assert!(sender.flush(soon()));
    }
    assert_eq!(
        seen(&collector.request().metrics()),
        expect((0, 1, 3), (0, 1, 3), (0, 1, 3))
    );
    assert_eq!(
        seen(&collector.request().metrics()),
        expect((1, 2, 4), (1, 2, 4), (0, 2, 4))
    );
    assert_eq!(
        seen(&collector.request().metrics()),
        expect((1, 3, 9), (1, 3, 9), (0, 3, 5))
    );
    let counts = sender.counts();
    assert_eq!(
        (counts.sent, counts.dropped(DropReason::Refused)),
        (6, 3),
        "{counts:?}"
    );
    assert!(counts.last_failure.unwrap().contains("400"));
}

#[test]
fn a_beginning_that_is_said_a_little_later_is_the_same_beginning() {
    for temporality in [Temporality::Cumulative, Temporality::Delta] {
        let collector = Collector::taking_all();
        let settings = MetricSettings {
            temporality,
            ..MetricSettings::default()
        };
        let sender = start(&collector.metrics_config(Protocol::HttpProtobuf), settings);
        let mut job = Job::new();
        sender.offer(job.after(3));
        let mut moved = (*job.after(4)).clone();
        let points = moved
            .families
            .iter_mut()
            .flat_map(|family| &mut family.points);
        points.for_each(|point| point.start.0 += 700_000_000);
        sender.offer(Arc::new(moved));
        assert!(sender.close(soon()));
        collector.request();
        let second = collector.request().metrics();
        let scopes = &second.resource_metrics[0].scope_metrics[0];
        let sum = scopes.metrics.iter().find_map(|metric| match &metric.data {
            Some(Data::Sum(sum)) if sum.is_monotonic => Some(sum.data_points[0].clone()),
            _ => None,
        });
        let sum = sum.unwrap();
        let (begin, n) = match temporality {
            Temporality::Cumulative => (START, 7),
            Temporality::Delta => (START + 1_000_000_000, 4),
        };
        assert_eq!(
            (sum.start_time_unix_nano, sum.value),
            (begin, Some(PointValue::AsInt(n)))
        );
    }
}

#[test]
fn a_large_snapshot_goes_in_several_requests() {
    let collector = Collector::taking_all();
    let settings = MetricSettings {
        batch_points: 2,
        ..MetricSettings::default()
    };
    let sender = start(&collector.metrics_config(Protocol::HttpProtobuf), settings);
    sender.offer(Job::new().after(3));
    assert!(sender.close(soon()));
    let parts =
        [collector.request(), collector.request()].map(|request| request.metrics().points());
    assert_eq!(parts, [2, 1]);
    assert_eq!(sender.counts().sent, 3);
}

#[test]
fn both_names_go_in_one_request_and_another_tracers_alone_leave_ours_out() {
    for (names, scopes) in [
        (Names::Both, &["warptrace", "ingero"][..]),
        (Names::Ingero, &["ingero"][..]),
    ] {
        let collector = Collector::taking_all();
        let settings = MetricSettings {
            names,
            ..MetricSettings::default()
        };
        let sender = start(&collector.metrics_config(Protocol::HttpJson), settings);
        sender.offer(Job::new().after(3));
        assert!(sender.close(soon()));
        let request = collector.request().metrics();
        let said = &request.resource_metrics[0].scope_metrics;
        let said: Vec<_> = said
            .iter()
            .map(|s| s.scope.as_ref().unwrap().name.as_str())
            .collect();
        assert_eq!(said, scopes);
        let theirs = seen(&request);
        assert_eq!(theirs["gpu.memcpy.duration_ms"], (0, 1, 3));
        assert_eq!(theirs["ingero.node.cuda_kernel_launch_total"], (0, 1, 3));
        assert_eq!(
            theirs.contains_key(metric::CUDA_LAUNCH_COUNT.name),
            names == Names::Both
        );
    }
}

#[test]
fn what_a_collector_rejects_is_counted_and_its_words_are_kept() {
    let response = ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans: 2,
            error_message: "too old".to_owned(),
        }),
    };
    let json =
        br#"{"partialSuccess":{"rejectedDataPoints":"2","errorMessage":"too old"}}"#.to_vec();
    for (protocol, body) in [
        (Protocol::HttpProtobuf, response.encode_to_vec()),
        (Protocol::HttpJson, json),
    ] {
        let collector = Collector::start(move |_| Reply::Status(200, "", body.clone()));
        let sender = start(
            &collector.metrics_config(protocol),
            MetricSettings::default(),
        );
        sender.offer(Job::new().after(1));
        assert!(sender.close(soon()));
        let counts = sender.counts();
        assert_eq!(
            (counts.sent, counts.rejected, counts.unreadable),
            (1, 2, 0),
            "{counts:?}"
        );
        assert_eq!(counts.last_failure.as_deref(), Some("too old"));
    }
}

#[test]
fn a_collector_that_says_when_is_asked_again_then() {
    let mut came = 0;
    let collector = Collector::start(move |_| {
        came += 1;
        match came {
            1 => Reply::Status(503, "retry-after: 0\r\n", Vec::new()),
            2 => Reply::HangUp,
            _ => Reply::Ok,
        }
    });
    let sender = start(
        &collector.metrics_config(Protocol::HttpProtobuf),
        patient_settings(),
    );
    sender.offer(Job::new().after(2));
    assert!(sender.close(soon()), "{:?}", sender.counts());
    let all: Vec<_> = (0..3).map(|_| collector.request().body).collect();
    assert!(
        all[0] == all[1] && all[1] == all[2],
        "the same bytes each time"
    );
    let counts = sender.counts();
    assert_eq!((counts.sent, counts.retried), (3, 2), "{counts:?}");
}

#[test]
fn a_dead_collector_costs_the_oldest_snapshots_and_the_newest_has_all_counts() {
    let place = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    let config = Config::new(Signal::Metrics, Protocol::HttpProtobuf)
        .with_base(&format!("http://{address}"));
    let settings = MetricSettings {
        queue_snapshots: 4,
        ..patient_settings()
    };
    let sender = start(&config, settings);
    let mut job = Job::new();
    for _ in 0..1_000 {
        assert!(sender.offer(job.after(1)));
        let counts = sender.counts();
        // Four in the queue, and one under way.
        assert!(counts.pending <= 5 * 3, "{counts:?}");
    }
    assert_eq!(sender.counts().pushed(), 3_000);
    assert!(sender.counts().dropped(DropReason::QueueFull) >= 995 * 3);
    until(|| sender.counts().retried > 0);

    let collector = Collector::on(TcpListener::bind(address).unwrap(), |_| Reply::Ok);
    assert!(sender.close(soon()), "{:?}", sender.counts());
    let last = collector.so_far().last().unwrap().metrics();
    assert_eq!(
        seen(&last),
        expect((0, 1000, 1000), (0, 1000, 1000), (0, 1000, 1))
    );
    let counts = sender.counts();
    assert_eq!((counts.pending, counts.pushed()), (0, 3_000));
}

#[test]
fn recording_goes_on_while_a_collector_keeps_a_request() {
    let (release, held) = sync_channel::<()>(0);
    let (arrived, has_arrived) = sync_channel::<()>(100);
    let collector = Collector::start(move |_| {
        let _ = arrived.send(());
        // Answers when the test says so, and not before.
        let _ = held.recv();
        Reply::Ok
    });
    let mut config = collector.metrics_config(Protocol::HttpProtobuf);
    config.timeout = LONG;
    let settings = MetricSettings {
        queue_snapshots: 8,
        ..patient_settings()
    };
    let sender = start(&config, settings);
    let mut job = Job::new();
    sender.offer(job.after(1));
    has_arrived.recv_timeout(LONG).unwrap();
    // The only thread that could answer waits for this one: if an offer waited for the collector, this would never end.
    for _ in 0..500 {
        assert!(sender.offer(job.after(1)));
    }
    let counts = sender.counts();
    assert_eq!(
        (counts.pushed(), counts.pending),
        (501 * 3, 9 * 3),
        "{counts:?}"
    );
    drop(release);
    assert!(sender.close(soon()));
    assert_eq!(sender.counts().sent, 9 * 3);
}

#[test]
fn a_collector_that_lies_is_counted_and_not_believed() {
    // Success with a page of HTML, more rejected than sent, and an endless answer.
    let page = b"<html>welcome</html>".to_vec();
    let collector = Collector::start(move |_| Reply::Status(200, "", page.clone()));
    let sender = start(
        &collector.metrics_config(Protocol::HttpJson),
        MetricSettings::default(),
    );
    sender.offer(Job::new().after(1));
    assert!(sender.close(soon()));
    assert_eq!((sender.counts().sent, sender.counts().unreadable), (3, 1));

    let lie = br#"{"partialSuccess":{"rejectedDataPoints":"99999999999"}}"#.to_vec();
    let collector = Collector::start(move |_| Reply::Status(200, "", lie.clone()));
    let sender = start(
        &collector.metrics_config(Protocol::HttpJson),
        MetricSettings::default(),
    );
    sender.offer(Job::new().after(1));
    assert!(sender.close(soon()));
    let counts = sender.counts();
    assert_eq!(
        (counts.sent, counts.rejected, counts.pending),
        (0, 3, 0),
        "{counts:?}"
    );

    let endless = vec![b' '; 8 << 20];
    let collector = Collector::start(move |_| Reply::Status(200, "", endless.clone()));
    let sender = start(
        &collector.metrics_config(Protocol::HttpJson),
        MetricSettings::default(),
    );
    sender.offer(Job::new().after(1));
    assert!(sender.close(soon()));
    assert_eq!((sender.counts().sent, sender.counts().unreadable), (3, 1));
}

#[test]
fn closing_does_not_outlast_its_deadline_and_says_what_was_left() {
    let collector = Collector::start(|_| Reply::Silence);
    let mut config = collector.metrics_config(Protocol::HttpProtobuf);
    config.timeout = LONG;
    let settings = MetricSettings {
        retry: Retry {
            total: LONG,
            ..Retry::default()
        },
        ..MetricSettings::default()
    };
    let sender = start(&config, settings);
    let mut job = Job::new();
    sender.offer(job.after(1));
    collector.request();
    (0..5).for_each(|_| assert!(sender.offer(job.after(1))));
    assert!(!sender.close(Instant::now() + Duration::from_millis(50)));
    let counts = sender.counts();
    assert_eq!(counts.dropped(DropReason::Closed), 15, "{counts:?}");
    assert_eq!(counts.pending, 3, "the request under way");
}
