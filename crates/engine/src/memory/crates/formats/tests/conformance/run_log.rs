//! The run log's vectors: what a reader counts, and the bytes that a writer appends.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use serde_json::{Value, json};
use warptrace_formats::run_log::{Latencies, Summary, SummaryOptions};
use warptrace_sdk::run_log::{Clock, Counters, Failed, RunLog, RunStart, Served};

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

/// Both clocks of a vector: whole seconds that the test sets.
#[derive(Debug, Default)]
struct Pinned(AtomicI64);

impl Clock for Pinned {
    fn wall_secs(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    fn monotonic_micros(&self) -> u64 {
        self.wall_secs() as u64 * 1_000_000
    }
}

/// The bytes of `value`, or of its base64 form.
fn bytes(value: &Value) -> Vec<u8> {
    match (value.as_str(), value["b64"].as_str()) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(text)) => base64(text),
        (None, None) => panic!("{value} is no text"),
    }
}

/// The bytes of a field that may come as `<name>_b64` instead.
fn bytes_of(object: &Value, name: &str) -> Vec<u8> {
    match object[format!("{name}_b64")].as_str() {
        Some(text) => base64(text),
        None => bytes(&object[name]),
    }
}

fn base64(text: &str) -> Vec<u8> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut have) = (Vec::new(), 0u32, 0);
    for digit in text.bytes().filter(|&b| b != b'=') {
        let value = alphabet.iter().position(|&a| a == digit).expect("base64");
        (bits, have) = (bits << 6 | value as u32, have + 6);
        if have >= 8 {
            have -= 8;
            bytes.push((bits >> have) as u8);
        }
    }
    bytes
}

/// The file of a case, and its emitters.
struct Emitters {
    path: PathBuf,
    clock: Arc<Pinned>,
    logs: HashMap<u64, RunLog>,
    seen: usize,
}

impl Emitters {
    fn new(folder: &Path, case: &Value) -> Emitters {
        let path = match case["path"].as_str() {
            Some("set") => folder.join("events.jsonl"),
            Some("empty") => PathBuf::new(),
            Some("unwritable") => folder.join("missing/events.jsonl"),
            other => panic!("path {other:?}"),
        };
        let mut seen = 0;
        if case["initial"].is_object() {
            let initial = bytes_of(&case["initial"], "text");
            std::fs::write(&path, &initial).expect("a writable folder");
            seen = initial.len();
        }
        let clock = Arc::new(Pinned::default());
        let first = RunLog::with_clock(&path, Arc::clone(&clock) as Arc<dyn Clock>);
        Emitters {
            path,
            clock,
            logs: HashMap::from([(0, first)]),
            seen,
        }
    }

    /// Makes one call; what `enabled` returns.
    fn call(&mut self, call: &Value) -> Option<bool> {
        if let Some(now) = call["now"].as_i64() {
            self.clock.0.store(now, Ordering::Relaxed);
        }
        let log = self.logs[&call["as"].as_u64().unwrap_or(0)].clone();
        let arg = |i: usize| String::from_utf8_lossy(&bytes(&call["args"][i])).into_owned();
        let int = |i: usize| call["args"][i].as_i64().expect("an integer");
        match call["call"].as_str().expect("a call") {
            "enabled" => return Some(log.is_enabled()),
            "run_start" => log.run_start(&RunStart {
                host: &arg(0),
                backend: &arg(1),
                model: &arg(2),
                model_path: &arg(3),
                config: &arg(4),
            }),
            "inference" => log.request(&Served {
                model: &arg(0),
                prompt_tokens: int(1),
                completion_tokens: int(2),
                latency_micros: int(3),
                extra: &arg(4),
            }),
            "record_error" => log.record_error(),
            "error" => log.error(&Failed {
                model: &arg(0),
                status: int(1),
                code: &arg(2),
                message: &arg(3),
                latency_micros: int(4),
                extra: &arg(5),
            }),
            "run_end" => log.run_end(&arg(0)),
            "run_end_aggregated" => log.run_end_aggregated(&arg(0)),
            how @ ("new" | "fork") => {
                let made = match how {
                    "fork" => log.duplicate(),
                    _ => RunLog::with_clock(&self.path, Arc::clone(&self.clock) as Arc<dyn Clock>),
                };
                self.logs
                    .insert(call["to"].as_u64().expect("a number"), made);
            }
            "raw" => {
                let file = std::fs::OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(&self.path);
                file.and_then(|mut f| f.write_all(&bytes_of(call, "text")))
                    .expect("an append");
            }
            "delete" => {
                std::fs::remove_file(&self.path).expect("a file to delete");
                self.seen = 0;
            }
            other => panic!("unknown call {other}"),
        }
        None
    }

    /// What has come to the file since the last look.
    fn appended(&mut self) -> Vec<u8> {
        let all = std::fs::read(&self.path).unwrap_or_default();
        let new = all[self.seen..].to_vec();
        self.seen = all.len();
        new
    }
}

/// Bytes are compared, but for a `run_end`: that is compared parsed, without what follows the first three keys of `stats`.
fn same_bytes(what: &str, got: &[u8], want: &[u8]) -> Result<(), String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let parsed = |bytes: &[u8]| -> Option<Value> {
        let line = bytes.strip_suffix(b"\n")?;
        let mut value: Value = serde_json::from_slice(line).ok()?;
        if value["kind"] != "run_end" {
            return None;
        }
        let stats = value["stats"].as_object_mut()?;
        stats.retain(|key, _| ["requests", "errors", "tokens_out"].contains(&key.as_str()));
        // The line feed that may come before it is compared, too.
        value["before"] = Value::from(line.iter().position(|&b| b == b'{')?);
        Some(value)
    };
    match (parsed(got), parsed(want)) {
        (Some(got), Some(want)) => same(what, got, want),
        _ => same(what, text(got), text(want)),
    }
}

#[test]
fn calls_append_the_bytes_of_the_vectors() {
    let mut report = Report::new("run_log_emit");
    for case in cases("run_log/emit.json") {
        let id = case["id"].as_str().expect("an id");
        report.case(id, || {
            let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
            let mut emitters = Emitters::new(folder.path(), &case);
            for (i, call) in case["calls"]
                .as_array()
                .ok_or("no calls")?
                .iter()
                .enumerate()
            {
                let returned = emitters.call(call);
                let want = if call["corr"].is_object() {
                    &call["corr"]
                } else {
                    &call["ref"]
                };
                if let Some(want) = want["returns"].as_bool() {
                    same("returned", returned, Some(want))?;
                }
                let appended = emitters.appended();
                if want.is_object() {
                    let what = format!("call {i}, {}", call["call"]);
                    same_bytes(&what, &appended, &bytes_of(want, "append"))?;
                }
            }
            let counters = match case["corr_counters"].is_object() {
                true => &case["corr_counters"],
                false => &case["ref_counters"],
            };
            for (number, want) in counters.as_object().ok_or("no counters")? {
                let number: u64 = number.parse().map_err(|_| "no number")?;
                let count = |key: &str| want[key].as_u64().ok_or("no count");
                let want = Counters {
                    requests: count("requests")?,
                    errors: count("errors")?,
                    tokens_out: count("tokens_out")?,
                };
                same("counters", emitters.logs[&number].counters(), want)?;
            }
            if case["path"] == "unwritable" {
                let written = case["calls"].as_array().map_or(0, Vec::len) as u64;
                same("dropped", emitters.logs[&0].dropped(), written)?;
            }
            Ok(())
        });
    }
    report.finish();
}
