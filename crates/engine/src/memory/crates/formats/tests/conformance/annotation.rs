//! The annotation protocol's vectors: lines as the agent takes them, as the Python package writes them, streams, the join.
//!
//! Records about Python's own types and conversions, and about the Python writer as it runs, have no meaning here: they are
//! the Python package's.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use warptrace_formats::annotation::{
    Draft, Line, Lines, MAX_LINE_BYTES, RateWindow, Refusal, Target, USUAL_LINES_PER_SEC,
    check_scope, encode_labels,
};
use warptrace_model::{Annotation, BootNanos, Incarnation, Labels, Pid, ProcessEvent, Window};

use crate::support::{Report, lines, same};

#[test]
fn annotations_are_read_written_and_joined_as_the_vectors_say() {
    let mut report = Report::new("annotation");
    let mut elsewhere: BTreeMap<&str, u32> = BTreeMap::new();
    for record in lines("annotate.jsonl") {
        let id = text(&record["id"]);
        let case: Case = match text(&record["kind"]) {
            "raw" => raw,
            "stream" => stream,
            "writer" => writer,
            "join" => join,
            "behaviour" if id == "ann-383" => spans_can_be_written,
            _ => {
                *elsewhere.entry("the running Python writer").or_default() += 1;
                report.elsewhere(id);
                continue;
            }
        };
        if let (Some("writer"), Err(why)) = (record["kind"].as_str(), Input::of(&record["input"])) {
            // What reaches the agent is judged all the same.
            *elsewhere.entry(why).or_default() += 1;
            report.case(id, || agent_side(&record));
            continue;
        }
        report.case(id, || case(&record));
    }
    println!("without a meaning in Rust: {elsewhere:?}");
    report.finish();
}

type Case = fn(&Value) -> Result<(), String>;

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
}

// What the agent does with bytes.

const PEER: u32 = 1000;

/// The records' `agent` objects, one for each line.
fn agent(stream: &[u8], env: &Value) -> (Vec<Value>, &'static str) {
    let target = Target {
        uid: match text(&env["pid_owner"]) {
            "peer" => Some(PEER),
            "other" => Some(PEER + 1),
            _ => None,
        },
        start_ticks: env["resolved_start_time"].as_u64().unwrap_or(0),
    };
    let mut answers = Vec::new();
    let mut rate = RateWindow::new(USUAL_LINES_PER_SEC);
    let mut take = |line: &[u8]| {
        answers.push(match (rate.take(0), ingest(line, target)) {
            (true, Ok(row)) => json!({"outcome": "stored", "row": row}),
            (false, _) => json!({"outcome": "rejected", "connection": "kept"}),
            (_, Err(why)) => {
                json!({"outcome": "rejected", "reason": why.name(), "connection": "kept"})
            }
        });
    };
    let mut splitter = Lines::default();
    // In pieces, as a socket gives them.
    let split = stream
        .chunks(4096)
        .try_for_each(|chunk| splitter.push(chunk, &mut take));
    match split {
        Ok(()) => {
            splitter.finish(take);
            (answers, "kept")
        }
        Err(_) => {
            let reason = Refusal::LineTooLong.name();
            answers.push(json!({"outcome": "rejected", "reason": reason, "connection": "dropped"}));
            (answers, "dropped")
        }
    }
}

fn ingest(line: &[u8], target: Target) -> Result<Value, Refusal> {
    let draft = Draft::decode(line)?;
    let mut start_ticks = 0;
    if draft.pid().is_some() {
        check_scope(draft.start_time(), PEER, target)?;
        start_ticks = target.start_ticks;
    }
    let line = draft.check()?;
    let (span_start, span_end) = line.span.unwrap_or((0, 0));
    Ok(json!({
        "ts": line.ts.map_or(json!("receive_time"), Value::from),
        "labels_json": encode_labels(&line.labels),
        "pid": line.pid.unwrap_or(0),
        "start_time": start_ticks,
        "span_start": span_start,
        "span_end": span_end,
    }))
}

/// One line, and what the agent is said to do with it.
fn one_line(line: &[u8], env: &Value, want: &Value) -> Result<(), String> {
    let (got, _) = agent(&[line, b"\n"].concat(), env);
    let [got] = &got[..] else {
        return Err(format!("{} answers to one line", got.len()));
    };
    same("agent", got, want)
}

fn line_of(record: &Value) -> Vec<u8> {
    match &record["line_b64"] {
        Value::String(text) => base64(text),
        _ => text(&record["line"]).as_bytes().to_vec(),
    }
}

fn base64(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for c in text.bytes().filter(|c| *c != b'=') {
        let alphabet = (b'A'..=b'Z')
            .chain(b'a'..=b'z')
            .chain(b'0'..=b'9')
            .chain(*b"+/");
        let digit = alphabet.zip(0u32..).find(|(a, _)| *a == c);
        bits = bits << 6 | digit.unwrap_or_else(|| panic!("{c} is no base64")).1;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    out
}

fn raw(record: &Value) -> Result<(), String> {
    one_line(&line_of(record), &record["env"], &record["agent"])
}

fn stream(record: &Value) -> Result<(), String> {
    let mut bytes = Vec::new();
    for part in record["parts"].as_array().into_iter().flatten() {
        let repeat = part["repeat"].as_u64().unwrap_or(1) as usize;
        bytes.extend(text(&part["text"]).as_bytes().repeat(repeat));
    }
    let (answers, connection) = agent(&bytes, &record["env"]);
    let stored = answers.iter().filter(|a| a["outcome"] == "stored").count();
    let got =
        json!({"ingested": stored, "rejected": answers.len() - stored, "connection": connection});
    same("agent", &got, &record["agent"])
}

// What the writer sends.

/// What is asked of the writer, where that can be said in Rust.
struct Input {
    labels: Vec<(String, String)>,
    pid: Option<u32>,
    ts: Option<i64>,
}

impl Input {
    /// The input, or why there is none.
    fn of(input: &Value) -> Result<Input, &'static str> {
        let pairs: Vec<(Value, Value)> = match &input["labels"] {
            Value::Object(map) => match map.iter().next() {
                Some((kind, of)) if map.len() == 1 && kind.starts_with('$') => {
                    match kind.as_str() {
                        "$dict" => pairs(of),
                        "$type" if matches!(of.as_str(), Some("mappingproxy" | "UserDict")) => {
                            return Err("types of mappings");
                        }
                        _ => return Err("labels that are no mapping"),
                    }
                }
                Some((_, Value::String(kind)))
                    if map.contains_key("$type") && kind.starts_with(['O', 'd']) =>
                {
                    members(&map["value"])
                }
                _ if map.contains_key("$type") => return Err("types of mappings"),
                _ => members(&input["labels"]),
            },
            _ => return Err("labels that are no mapping"),
        };
        let labels = pairs.iter().map(|(k, v)| Ok((string(k)?, string(v)?)));
        let integer = |value: &Value| match value {
            Value::Null => Ok(None),
            Value::Number(n) => n
                .to_string()
                .parse()
                .map(Some)
                .map_err(|_| "numbers out of range"),
            Value::Object(o) => match o.get("$int").and_then(Value::as_str) {
                Some(n) => n
                    .parse::<i128>()
                    .map(Some)
                    .map_err(|_| "numbers out of range"),
                None => Err("conversions to integers"),
            },
            _ => Err("conversions to integers"),
        };
        let fits = |_| "numbers out of range";
        Ok(Input {
            labels: labels.collect::<Result<_, _>>()?,
            pid: integer(&input["pid"])?
                .map(u32::try_from)
                .transpose()
                .map_err(fits)?,
            ts: integer(&input["ts_ns"])?
                .map(i64::try_from)
                .transpose()
                .map_err(fits)?,
        })
    }
}

fn members(object: &Value) -> Vec<(Value, Value)> {
    let members = object.as_object().into_iter().flatten();
    members.map(|(k, v)| (json!(k), v.clone())).collect()
}

fn pairs(list: &Value) -> Vec<(Value, Value)> {
    let list = list.as_array().into_iter().flatten();
    list.map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect()
}

fn string(value: &Value) -> Result<String, &'static str> {
    const OTHER: &str = "keys and values that are no strings";
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Object(map) => match map.iter().next() {
            Some((kind, of)) if kind == "$repeat" => {
                Ok(string(&of[0])?.repeat(of[1].as_u64().unwrap_or(0) as usize))
            }
            Some((kind, of)) if kind == "$concat" => {
                of.as_array().into_iter().flatten().map(string).collect()
            }
            Some((kind, of)) if kind == "$strsubclass" => string(of),
            Some((kind, of)) if kind == "$codepoints" => {
                let points = of.as_array().into_iter().flatten();
                let chars = points.map(|p| char::from_u32(p.as_u64().unwrap_or(0) as u32));
                chars.collect::<Option<String>>().ok_or("lone surrogates")
            }
            _ => Err(OTHER),
        },
        _ => Err(OTHER),
    }
}

fn writer(record: &Value) -> Result<(), String> {
    let Ok(Input { labels, pid, ts }) = Input::of(&record["input"]) else {
        return Err("the input has no meaning".into());
    };
    let mut bytes = Vec::new();
    let written = Labels::from_pairs(&labels)
        .map_err(Refusal::from)
        .and_then(|labels| {
            let line = Line {
                labels,
                pid,
                ts,
                ..Line::default()
            };
            line.encode(&mut bytes)
        });
    let got = match written {
        Ok(()) => {
            json!({"outcome": "accepted", "bytes": String::from_utf8_lossy(&bytes), "n_bytes": bytes.len()})
        }
        Err(why) => {
            json!({"outcome": "rejected", "exception": "AnnotationError", "bytes": "", "reason": why.name()})
        }
    };
    same("writer", &got, &record["writer"])?;
    agent_side(record)
}

/// What the agent makes of what was sent, or of what a writer without checks would have sent.
fn agent_side(record: &Value) -> Result<(), String> {
    let env = json!({"pid_owner": "peer", "resolved_start_time": 5000});
    if !record["agent"].is_null() {
        let line = text(&record["writer"]["bytes"]).trim_end_matches('\n');
        one_line(line.as_bytes(), &env, &record["agent"])?;
    }
    let naive = &record["naive"];
    if naive.is_null() {
        return Ok(());
    }
    let line = line_of(naive);
    if line.len() >= MAX_LINE_BYTES {
        let (answers, _) = agent(&[&line[..], b"\n"].concat(), &env);
        return same("agent", answers.last(), Some(&naive["agent"]));
    }
    one_line(&line, &env, &naive["agent"])
}

/// The Python package's writer has no spans, and `TypeError` for who asks.
fn spans_can_be_written(record: &Value) -> Result<(), String> {
    let labels = Labels::from_pairs(&[("step", "1")]).map_err(|e| e.name())?;
    let line = Line {
        labels,
        span: Some((1, 2)),
        ..Line::default()
    };
    let raises = line.encode(&mut Vec::new()).is_err();
    same(
        "a span raises",
        raises,
        record["expect"]["raises"] == "TypeError",
    )
}

// The join.

fn join(record: &Value) -> Result<(), String> {
    let input = &record["input"];
    let list = |name: &str| input[name].as_array().cloned().unwrap_or_default();
    let time = |value: &Value| BootNanos(value.as_u64().unwrap_or(0));
    let pid = |value: &Value| Pid(value.as_u64().unwrap_or(0) as u32);
    let lifecycle = list("lifecycle").into_iter().map(|e| {
        let (at, pid) = (time(&e[0]), pid(&e[1]));
        match text(&e[2]) {
            "exec" => ProcessEvent::Exec {
                at,
                pid,
                start_ticks: 0,
            },
            _ => ProcessEvent::Exit { at, pid, status: 0 },
        }
    });
    let annotations = list("annotations");
    let annotations = annotations.iter().map(|a| Annotation {
        at: time(&a["ts"]),
        span: a.get("span_start").map(|start| Window {
            start: time(start),
            end: time(&a["span_end"]),
        }),
        scope: a.get("pid").map(|p| Incarnation {
            pid: pid(p),
            start_ticks: a["start_time"].as_u64().unwrap_or(0),
        }),
        labels: labels(&a["labels"]),
        sender: None,
    });
    let events = list("events");
    let events: Vec<_> = events
        .iter()
        .map(|e| (time(&e["ts"]), pid(&e["pid"])))
        .collect();
    let got = warptrace_engine::join(
        time(&input["window"][0])..=time(&input["window"][1]),
        &lifecycle.collect::<Vec<_>>(),
        &annotations.collect::<Vec<_>>(),
        &events,
    );
    let want: Vec<(u64, Labels)> = record["expect"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|e| (e["matched"].as_u64().unwrap_or(0), labels(&e["labels"])))
        .collect();
    let got: Vec<_> = got
        .into_iter()
        .map(|j| (j.matched as u64, j.labels))
        .collect();
    same("labels", got, want)
}

fn labels(object: &Value) -> Labels {
    let pairs = members(object);
    let pairs: Vec<_> = pairs.iter().map(|(k, v)| (text(k), text(v))).collect();
    Labels::from_pairs(&pairs).unwrap_or_default()
}
