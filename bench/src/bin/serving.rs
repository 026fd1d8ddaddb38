//! What it costs to follow inference servers: a scan for them, an answer of theirs, an alert.
//!
//! `cargo run --release -p warptrace-bench --bin serving`. CPU time of the thread, best of nine rounds. A scan is of all
//! processes of this machine, against reading each one's `stat` alone; an answer is as vLLM 0.33 gives it (two engines, 20
//! histograms of 22 buckets), against reading its lines as samples alone; an alert is one that is open and raised again, with six
//! details, against a copy of its texts.

use std::fmt::Write as _;
use std::hint::black_box;

use anyhow::ensure;
use nix::time::{ClockId, clock_gettime};
use warptrace_capture::engines::classify;
use warptrace_capture::proc;
use warptrace_export::alert::{Alert, AlertConfig, Alerter};
use warptrace_formats::prometheus_text::Samples;
use warptrace_formats::serving::decode_scrape;
use warptrace_model::serving::Engine;
use warptrace_model::{Severity, UnixNanos, Value};

fn main() -> anyhow::Result<()> {
    let pids = proc::unsorted_pids();
    let stat = best(1, || {
        pids.iter()
            .filter(|p| proc::incarnation(**p).is_some())
            .count()
    });
    let scan = best(1, || {
        let engine = |pid: &&u32| {
            proc::incarnation(**pid).is_some()
                && classify(&proc::arguments(**pid), &|name| {
                    proc::environment_variable(**pid, name)
                })
                .is_some()
        };
        pids.iter().filter(engine).count()
    });
    let count = pids.len() as f64;
    println!(
        "scan: {count} processes, {:.1} µs each; `stat` alone {:.1} µs",
        scan / count / 1e3,
        stat / count / 1e3
    );

    let text = answer();
    let read = best(20, || {
        Samples::new(text.as_bytes()).filter_map(Result::ok).count()
    });
    let decode = best(20, || {
        decode_scrape(Engine::Vllm, text.as_bytes()).readings.len()
    });
    let samples = Samples::new(text.as_bytes()).count();
    let scrape = decode_scrape(Engine::Vllm, text.as_bytes());
    ensure!(
        scrape.readings.len() == 12 && scrape.bad_lines == 0,
        "{scrape:?}"
    );
    println!(
        "answer: {} bytes, {samples} samples: {:.2} ms, its samples alone {:.2} ms ({:.2} ×)",
        text.len(),
        decode / 1e6,
        read / 1e6,
        decode / read
    );

    let config = AlertConfig::from_value(&Value::Null, &|_| None, "node")?;
    let alerter = Alerter::start(config)?;
    let alert = alert();
    let copy = best(100_000, || black_box(alert.clone()).key.len());
    let raise = best(100_000, || {
        alerter.raise(black_box(alert.clone()));
        1
    });
    ensure!(alerter.counts().open == 1);
    println!("alert raised again: {raise:.0} ns, a copy of it {copy:.0} ns");
    Ok(())
}

/// CPU time of one call, ns.
fn best(calls: u32, mut work: impl FnMut() -> usize) -> f64 {
    let now = || {
        let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("the clock exists");
        time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64
    };
    let round = |_| {
        let start = now();
        for _ in 0..calls {
            black_box(work());
        }
        (now() - start) / f64::from(calls)
    };
    (0..9).map(round).fold(f64::INFINITY, f64::min)
}

fn answer() -> String {
    let mut text = String::new();
    let known = [
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
    ];
    let names = known.map(str::to_owned).into_iter();
    let others = (0..14).map(|i| format!("request_other_{i}_seconds"));
    for name in names.chain(others) {
        let _ = writeln!(
            text,
            "# HELP vllm:{name} Histogram of something in seconds."
        );
        let _ = writeln!(text, "# TYPE vllm:{name} histogram");
        for engine in 0..2 {
            let labels =
                format!("engine=\"{engine}\",model_name=\"meta-llama/Llama-3.1-8B-Instruct\"");
            for bucket in 0..21 {
                let le = 0.001 * f64::from(1 << bucket);
                let _ = writeln!(
                    text,
                    "vllm:{name}_bucket{{le=\"{le}\",{labels}}} {bucket}.0"
                );
            }
            let _ = writeln!(text, "vllm:{name}_bucket{{le=\"+Inf\",{labels}}} 21.0");
            let _ = writeln!(text, "vllm:{name}_count{{{labels}}} 21.0");
            let _ = writeln!(text, "vllm:{name}_sum{{{labels}}} 12.345678901");
        }
    }
    for (name, value) in [
        ("num_requests_running", 3.0),
        ("num_requests_waiting", 5.0),
        ("kv_cache_usage_perc", 0.5),
        ("num_preemptions_total", 7.0),
        ("prompt_tokens_total", 8_128_902.0),
        ("generation_tokens_total", 7_557_572.0),
    ] {
        for engine in 0..2 {
            let labels =
                format!("engine=\"{engine}\",model_name=\"meta-llama/Llama-3.1-8B-Instruct\"");
            let _ = writeln!(text, "vllm:{name}{{{labels}}} {value:?}");
        }
    }
    text
}

fn alert() -> Alert {
    let details = ["finding", "pid", "cause", "excess_ms", "units", "detail"];
    Alert {
        key: "warptrace/node-7/incident/run_queue_wait/4711/123456".to_owned(),
        severity: Severity::High,
        summary: "Waiting for a CPU: steps 412-538 took 21.4 ms longer than usual".to_owned(),
        source: "node-7".to_owned(),
        component: "train.py (pid 4711)".to_owned(),
        group: "a100".to_owned(),
        class: "run_queue_wait".to_owned(),
        details: details
            .map(|name| {
                (
                    name.to_owned(),
                    "stress-ng (pid 4890) held cpu 1".to_owned(),
                )
            })
            .to_vec(),
        at: UnixNanos(1_750_000_000_000_000_000),
        needs: 1,
    }
}
