//! What metrics cost: recording one, taking a snapshot of many series, and writing it in each format.
//!
//! `cargo run --release -p warptrace-bench --bin metrics -- [SERIES]` (1,000 of each of three metrics unless said). A recording is
//! measured against a counter and a histogram of atomics behind a map of the same keys, in the same run.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use warptrace_formats::metrics::Names;
use warptrace_formats::openmetrics::{Format, encode};
use warptrace_formats::otlp::{Deltas, MetricsEncoder};
use warptrace_model::metric::{Exponential, Meter, Number, Snapshot, metric};
use warptrace_model::{Object, UnixNanos, Value};

fn attributes(pid: usize) -> Object {
    Object::from_pairs(vec![
        ("process.pid".into(), Value::from(pid as i64)),
        ("warptrace.cgroup.hash".into(), "f6f7a079fa79fb5d".into()),
        ("warptrace.inference.phase".into(), "decode".into()),
    ])
}

/// Nanoseconds for each of `n` runs, the least of five.
fn time(n: usize, mut run: impl FnMut()) -> f64 {
    let once = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed().as_nanos() as f64 / n as f64
    };
    (0..5).map(|_| once(&mut run)).fold(f64::INFINITY, f64::min)
}

fn main() {
    let series: usize = match std::env::args().nth(1) {
        Some(said) => said.parse().expect("a number of series"),
        None => 1000,
    };
    const N: usize = 200_000;
    let keys: Vec<Object> = (0..series).map(attributes).collect();

    let floor: HashMap<String, [AtomicU64; 32]> = keys
        .iter()
        .map(|key| (format!("{key:?}"), Default::default()))
        .collect();
    let names: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
    let peer = time(N, || {
        for i in 0..N {
            let cells = &floor[&names[i % series]];
            cells[i % 31].fetch_add(1, Ordering::Relaxed);
            cells[31].fetch_add(i as u64, Ordering::Relaxed);
        }
    });
    let mut meter = Meter::new(UnixNanos(1), 1 << 20);
    let add = time(N, || {
        for i in 0..N {
            let key = keys[i % series].clone();
            let _ = meter.add(&metric::CUDA_LAUNCH_COUNT, key, 1);
        }
    });
    let record = time(N, || {
        for i in 0..N {
            let key = keys[i % series].clone();
            let value = 1e-3 * (1 + i % 977) as f64;
            let _ = meter.record(&metric::INFERENCE_STEP_DURATION, key, value, None);
        }
    });
    let mut alone = Exponential::default();
    let bucket = time(N, || {
        for i in 0..N {
            alone.record(black_box(1e-3 * (1 + i % 977) as f64));
        }
    });
    for key in &keys {
        let value = Number::Double(0.02);
        let _ = meter.set(&metric::INFERENCE_BASELINE_P95, key.clone(), value);
    }
    println!("floor: a map and two atomics          {peer:8.0} ns");
    println!("a value in an exponential histogram   {bucket:8.0} ns");
    println!("Meter::add, attributes cloned         {add:8.0} ns");
    println!("Meter::record, attributes cloned      {record:8.0} ns");

    let points = series * 3;
    let per_point = |what: &str, bytes: usize, run: &mut dyn FnMut()| {
        let nanos = time(points, run);
        let size = match bytes {
            0 => String::new(),
            bytes => format!(", {} bytes a point", bytes / points),
        };
        println!("{what:<38}{nanos:8.0} ns a point{size}");
    };
    let mut snapshot = Snapshot::default();
    per_point("a snapshot", 0, &mut || {
        snapshot = meter.snapshot(Object::new(), UnixNanos(9))
    });
    let snapshot = Arc::new(snapshot);
    println!(
        "it takes {} bytes a point in memory",
        snapshot.size_bytes() / points
    );
    for names in [Names::Native, Names::Ingero] {
        let encoder = MetricsEncoder {
            names,
            ..MetricsEncoder::default()
        };
        let mut bytes = encoder.request(&snapshot).to_protobuf();
        let what = format!("OTLP, protobuf, {}", names.name());
        per_point(&what, bytes.len(), &mut || {
            bytes = encoder.request(&snapshot).to_protobuf()
        });
        black_box(&bytes);
    }
    let mut deltas = Deltas::default();
    deltas.delivered(&snapshot);
    per_point("deltas", 0, &mut || {
        black_box(deltas.since(&snapshot));
    });
    for (names, format) in [
        (Names::Native, Format::OpenMetrics),
        (Names::Ingero, Format::Text),
    ] {
        let mut text = encode(&snapshot, names, format);
        let what = format!("{format:?}, {}", names.name());
        per_point(&what, text.len(), &mut || {
            text = encode(&snapshot, names, format)
        });
        black_box(&text);
    }
}
