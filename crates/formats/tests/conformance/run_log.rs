//! The run log's vectors: what a reader counts, and the bytes that a writer appends.

use serde_json::{Value, json};
use warptrace_formats::run_log::{Latencies, Summary, SummaryOptions};

use crate::support::{Report, cases, read, same};

/// A summary as the vectors tell it.
fn told(summary: &Summary) -> Value {
    let last = summary.last_run().expect("there is always one");
    let totals = &summary.totals;
    json!({
        "lines": summary.lines,
        "corrupt": summary.corrupt,
        "torn_tail": summary.torn_tail,
        "runs": summary.runs,
        "requests": totals.requests,
        "errors": totals.errors,
        "tokens_out": totals.tokens_out,
        "tokens_in": totals.tokens_in,
        "invalid_tokens": totals.invalid_tokens,
        "last_run": {
            "started": last.started,
            "ended": last.ended,
            "requests": last.totals.requests,
            "errors": last.totals.errors,
            "tokens_out": last.totals.tokens_out,
        },
    })
}

/// Count, smallest and largest are exact, percentiles within 1 %.
fn latencies(got: &Latencies, want: &Value) -> Result<(), String> {
    if want.is_null() {
        return same("count of latencies", got.count(), 0);
    }
    let want = |key: &str| want[key].as_u64();
    same("latency count", Some(got.count()), want("count"))?;
    same("latency min", got.min(), want("min"))?;
    same("latency max", got.max(), want("max"))?;
    for percent in [50, 90, 95, 99] {
        let (got, want) = (
            got.percentile(percent).unwrap_or(0),
            want(&format!("p{percent}")).ok_or("no percentile")?,
        );
        if got.abs_diff(want) as f64 > want as f64 * 0.01 {
            return Err(format!("latency p{percent}: {got}, not {want}"));
        }
    }
    Ok(())
}

#[test]
fn logs_are_added_up_as_the_vectors_say() {
    let mut report = Report::new("run_log_aggregate");
    for case in cases("run_log/aggregate.json") {
        let id = case["id"].as_str().expect("an id");
        report.case(id, || {
            let log = read(format!("run_log/{}", case["log"].as_str().ok_or("no log")?));
            same(
                "length of the log",
                Some(log.len() as u64),
                case["bytes"].as_u64(),
            )?;
            for chunk in [1, 7, 4096, usize::MAX] {
                let mut summary = Summary::new(SummaryOptions::default());
                for chunk in log.chunks(chunk.min(log.len().max(1))) {
                    summary.feed(chunk);
                }
                summary.finish();
                let mut want = case["corr"].clone();
                let duration = want["last_run"]["duration_s"].take().as_f64();
                let latency = want["latency_us"].take();
                want.as_object_mut()
                    .ok_or("no object")?
                    .remove("latency_us");
                let last = want["last_run"].as_object_mut().ok_or("no object")?;
                last.remove("duration_s");
                same("summary", told(&summary), want)?;
                same(
                    "duration",
                    summary.last_run().map(|r| r.duration_secs),
                    duration,
                )?;
                latencies(&summary.totals.latency_micros, &latency)?;
            }
            Ok(())
        });
    }
    report.finish();
}
