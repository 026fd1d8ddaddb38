//! Performs a scenario's operations, and compares what came of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value as Json, json};
use warptrace_sdk::span::{
    Attributes, Builder, Clock as _, End, Error, Event, Exception, FailureLimit, Filter, Recorder,
    Span, Start, Strategy, Timestamp,
};
use warptrace_sdk::training::Training;

use crate::exporters::Kind;
use crate::json::{
    object, of_attributes, of_error, of_event, of_span, of_timestamp, timestamp, value,
};
use crate::training::{Context, Provider};
use crate::world::{Contexts, StandingClock};

/// Why a case belongs elsewhere.
#[derive(Debug)]
pub(crate) struct NoMeaning(#[expect(dead_code, reason = "for whoever debugs")] pub(crate) String);

/// What came of an operation.
pub(crate) enum Outcome {
    Ok(Json),
    Raised(Json),
    /// Our types cannot say it, so it is not done.
    Unsayable,
}

impl From<Result<Json, Error>> for Outcome {
    fn from(result: Result<Json, Error>) -> Outcome {
        match result {
            Ok(value) => Outcome::Ok(value),
            Err(error) => Outcome::Raised(of_error(&error)),
        }
    }
}

pub(crate) type Performed = Result<Outcome, NoMeaning>;

pub(crate) fn no_meaning<T>(what: impl Into<String>) -> Result<T, NoMeaning> {
    Err(NoMeaning(what.into()))
}

/// How long an exporter is waited for; nothing here has to be.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Scenario {
    pub(crate) clock: Arc<StandingClock>,
    pub(crate) contexts: Contexts,
    pub(crate) rank: Option<i64>,
    exporters: HashMap<String, Kind>,
    /// Recorders that nobody closed yet.
    recorders: Vec<Recorder>,
    pub(crate) recorder: Option<Recorder>,
    pub(crate) training: Option<Training>,
    pub(crate) provider: Provider,
    pub(crate) spans: HashMap<String, Option<Span>>,
    pub(crate) entered: Vec<Option<Context>>,
    attributes: HashMap<String, Attributes>,
}

/// Runs a case; gives how it differs from what is expected.
pub(crate) fn run(case: &Json) -> Result<Vec<String>, NoMeaning> {
    let contexts = Contexts::default();
    Contexts::enter(0);
    let folder = tempfile::tempdir().unwrap();
    let mut exporters = HashMap::new();
    for (name, exporter) in case["exporters"].as_object().into_iter().flatten() {
        let kind = exporter["kind"].as_str().unwrap();
        match Kind::new(kind, folder.path(), name, &contexts) {
            Some(exporter) => exporters.insert(name.clone(), exporter),
            None => return no_meaning(format!("an exporter {kind}")),
        };
    }
    let mut scenario = Scenario {
        clock: StandingClock::new(),
        contexts,
        rank: Some(
            case["env"]["RANK"]
                .as_str()
                .map_or(0, |r| r.parse().unwrap()),
        ),
        exporters,
        recorders: Vec::new(),
        recorder: None,
        training: None,
        provider: Provider::default(),
        spans: HashMap::new(),
        entered: Vec::new(),
        attributes: HashMap::new(),
    };
    let ops = case["ops"].as_array().unwrap();
    let mut differences = Vec::new();
    let wanted = case["expected"]["results"].as_array().unwrap();
    for (at, (op, wanted)) in ops.iter().zip(wanted).enumerate() {
        let got = match scenario.perform(op)? {
            Outcome::Ok(got) => json!({"ok": got}),
            Outcome::Raised(got) => got,
            Outcome::Unsayable => continue,
        };
        if !same_result(&got, wanted) {
            differences.push(format!(
                "op {at} {op}\n      got  {got}\n      want {wanted}"
            ));
        }
    }
    for (name, exporter) in &scenario.exporters {
        let got = exporter.got(&scenario.contexts);
        let wanted = &case["expected"]["exporters"][name];
        if got != *wanted {
            differences.push(first_difference(name, &got, wanted));
        }
    }
    Ok(differences)
}

/// Of errors, type and code; also in nested results.
fn same_result(got: &Json, wanted: &Json) -> bool {
    match (&got["ok"]["nested"], &wanted["ok"]["nested"]) {
        (Json::Array(got), Json::Array(wanted)) => return same_results(got, wanted),
        // By task.
        (Json::Object(got), Json::Object(wanted)) => {
            return got.len() == wanted.len()
                && wanted.iter().all(|(task, wanted)| {
                    let results = (got.get(task).and_then(Json::as_array), wanted.as_array());
                    matches!(results, (Some(got), Some(wanted)) if same_results(got, wanted))
                });
        }
        _ => {}
    }
    let Some(code) = wanted.get("code") else {
        return got == wanted;
    };
    got["raises"] == wanted["raises"] && got["code"] == *code
}

fn same_results(got: &[Json], wanted: &[Json]) -> bool {
    got.len() == wanted.len() && got.iter().zip(wanted).all(|(g, w)| same_result(g, w))
}

fn first_difference(name: &str, got: &Json, wanted: &Json) -> String {
    let none = Vec::new();
    let (got, wanted) = (
        got.as_array().unwrap_or(&none),
        wanted.as_array().unwrap_or(&none),
    );
    let at = got.iter().zip(wanted).position(|(g, w)| g != w);
    let at = at.unwrap_or(got.len().min(wanted.len()));
    let show = |lines: &[Json]| lines.get(at).map_or("nothing".into(), Json::to_string);
    format!(
        "{name}[{at}]\n      got  {}\n      want {}",
        show(got),
        show(wanted)
    )
}

fn text<'a>(op: &'a Json, key: &str) -> &'a str {
    op[key].as_str().unwrap_or_default()
}

/// A name of a span or an event.
fn name(op: &Json) -> Result<String, NoMeaning> {
    match op["name"].as_str() {
        Some(name) => Ok(name.to_owned()),
        None => no_meaning("a name that is not text"),
    }
}

fn filter(mode: &Json, names: &Json) -> Option<Filter> {
    let list = || {
        let names = names.as_array().into_iter().flatten();
        names.filter_map(Json::as_str).map(Into::into).collect()
    };
    match mode.as_str() {
        Some("WHITELIST_SPANS") => Some(Filter::Only(list())),
        Some("BLACKLIST_SPANS") => Some(Filter::AllBut(list())),
        // All, and a list of exceptions: `Filter::All` has none.
        _ if !names.is_null() => None,
        _ => Some(Filter::All),
    }
}

pub(crate) fn strategy(config: &Json) -> Strategy {
    let quiet = "disable_quietly_and_report_metric_error";
    let enabled = config["enable_for_current_rank"] != json!(false);
    match config["error_handling_strategy"].as_str() {
        Some(given) if given == quiet => Strategy::Disable,
        None if !enabled => Strategy::Disable,
        _ => Strategy::Propagate,
    }
}

impl Scenario {
    pub(crate) fn builder<'a>(&self, exporters: impl Iterator<Item = &'a str>) -> Builder {
        let builder = Recorder::builder()
            .clock(self.clock.clone())
            .current(Box::new(self.contexts.clone()))
            .failure_limit(FailureLimit {
                failures: 5,
                in_a_row: false,
            });
        exporters.fold(builder, |builder, name| {
            builder.direct_exporter(name, self.exporters[name].exporter())
        })
    }

    fn recorder(&self) -> Result<&Recorder, NoMeaning> {
        match &self.recorder {
            Some(recorder) => Ok(recorder),
            None => no_meaning("a recorder before there is one"),
        }
    }

    /// The span that an operation is about; `Ok(None)` when its start was skipped.
    fn span(&self, op: &Json) -> Result<Option<Span>, NoMeaning> {
        match op["span"].as_str().and_then(|name| self.spans.get(name)) {
            Some(span) => Ok(span.clone()),
            None => no_meaning("a span that was never started"),
        }
    }

    pub(crate) fn keep(&mut self, op: &Json, span: Option<Span>) -> Json {
        let shown = match &span {
            Some(span) => json!({"span": self.contexts.label(span.id())}),
            None => Json::Null,
        };
        if let Some(name) = op["as"].as_str() {
            self.spans.insert(name.to_owned(), span);
        }
        shown
    }

    fn perform(&mut self, op: &Json) -> Performed {
        match text(op, "op") {
            "advance" => {
                let both = op["sec"].as_f64();
                let secs = |key: &str| op[key].as_f64().or(both).unwrap_or(0.0);
                self.clock.advance(secs("wall_sec"), secs("perf_sec"));
                Ok(Outcome::Ok(Json::Null))
            }
            "configure" => self.configure(op),
            "new_recorder" => Ok(match self.build(&op["recorder"], Strategy::Propagate) {
                Some(built) => {
                    let kept = built.map(|recorder| self.recorders.push(recorder));
                    kept.map(|()| Json::Null).into()
                }
                None => Outcome::Unsayable,
            }),
            "provider_state" => Ok(Outcome::Ok(json!({
                "ready": self.recorder.is_some(),
                "enabled": self.recorder.as_ref().is_some_and(Recorder::is_on),
            }))),
            "force_disable" => {
                self.recorder()?.disable();
                Ok(Outcome::Ok(Json::Null))
            }
            "start" => self.start(op),
            // A first error, after which nothing is recorded.
            "stop" if op["span"].is_null() && self.recorder()?.strategy() == Strategy::Disable => {
                no_meaning("a span that is none")
            }
            "stop" if op["span"].is_null() => Ok(Outcome::Unsayable),
            "stop" => {
                let Some(span) = self.span(op)? else {
                    return Ok(Outcome::Ok(Json::Null));
                };
                let end = End {
                    event_attributes: attributes(&op["stop_event_attributes"])?,
                    at: timestamp(&op["stop_time"]),
                };
                let stopped = self.recorder()?.stop(&span, end);
                Ok(stopped.map(|_| Json::Null).into())
            }
            "event" | "error" if op["span"].is_null() => Ok(Outcome::Unsayable),
            "event" => self.event(op),
            "error" => self.error(op),
            "telemetry_data_error" => {
                let extra = attributes(&op["attributes"])?;
                let said = self.recorder()?.data_error(text(op, "message"), extra);
                Ok(said.map(|_| Json::Null).into())
            }
            "close" => {
                let closed = self.recorder()?.close(PATIENCE);
                Ok(closed.map(|_| Json::Null).into())
            }
            "active_by_name" => {
                let open = self.recorder()?.open_spans(text(op, "name"));
                let labels = open.iter().map(|span| self.contexts.label(span.id()));
                Ok(Outcome::Ok(labels.collect()))
            }
            "add_attribute" | "add_attributes" => {
                let Some(span) = self.span(op)? else {
                    return no_meaning("attributes of a span that was skipped");
                };
                let set = match op["attributes"].is_null() {
                    true => span.set(text(op, "name"), value(&op["value"])?),
                    false => {
                        span.set_all(&attributes(&op["attributes"])?);
                        Ok(())
                    }
                };
                Ok(set.map(|()| Json::Null).into())
            }
            "span_info" => {
                let Some(span) = self.span(op)? else {
                    return no_meaning("a span that was skipped");
                };
                Ok(Outcome::Ok(self.info(&span)))
            }
            "duration" => {
                let Some(span) = self.span(op)? else {
                    return no_meaning("the duration of a span that was skipped");
                };
                Ok(span.duration_millis().map(|ms| json!(ms)).into())
            }
            "exporter_state" => match self.exporters.get(text(op, "exporter")) {
                Some(Kind::Recording(exporter)) => Ok(Outcome::Ok(exporter.state())),
                _ => no_meaning("the state of an exporter that has none"),
            },
            "inject_failures" => {
                let method = op["method"].as_str().unwrap_or("*");
                let exception = op["exception"].as_str().unwrap_or("ExportError");
                let count = op["count"].as_u64().unwrap_or(1);
                let Kind::Recording(exporter) = &self.exporters[text(op, "exporter")] else {
                    return no_meaning("failures of an exporter that has none");
                };
                exporter.inject(method, count, exception);
                Ok(Outcome::Ok(Json::Null))
            }
            "in_thread" => self.in_thread(op),
            "async_tasks" => self.tasks(op),
            "enter" => self.enter(op),
            "exit" => self.exit(op),
            "tt" => self.provide(op),
            "cb" => self.callback(op),
            "attributes" => Ok(match Attributes::from_object(object(&op["values"])?) {
                Ok(attributes) => Outcome::Ok(of_attributes(&attributes)),
                Err(error) => Outcome::Raised(of_error(&error)),
            }),
            "new_attributes" => {
                let new = attributes(&op["values"])?;
                let shown = of_attributes(&new);
                self.attributes.insert(text(op, "as").to_owned(), new);
                Ok(Outcome::Ok(shown))
            }
            "attributes_get" => get(op),
            "attributes_merge" => {
                let mut merged = attributes(&op["a"])?;
                merged.merge(&attributes(&op["b"])?);
                Ok(Outcome::Ok(of_attributes(&merged)))
            }
            "timestamp_now" => Ok(Outcome::Ok(shown_moment(self.clock.now()))),
            "for_timestamp" => self.moment(&op["args"]),
            other => no_meaning(format!("the operation {other}")),
        }
    }

    /// `None` when our types cannot say the settings.
    fn build(&self, settings: &Json, strategy: Strategy) -> Option<Result<Recorder, Error>> {
        let names = settings["exporters"].as_array().into_iter().flatten();
        let builder = self
            .builder(names.filter_map(Json::as_str))
            .strategy(strategy)
            .filter(filter(&settings["mode"], &settings["filter"])?);
        Some(builder.build())
    }

    fn configure(&mut self, op: &Json) -> Performed {
        if self.recorder.is_some() || !op["as_config"].is_null() || !op["use_recorder"].is_null() {
            return no_meaning("a provider that is configured twice");
        }
        let config = &op["config"];
        match self.build(&op["recorder"], strategy(config)) {
            None => Ok(Outcome::Unsayable),
            Some(Err(error)) => Ok(Outcome::Raised(of_error(&error))),
            Some(Ok(recorder)) => {
                // There, the exporters are made ready first.
                if config["enable_for_current_rank"] == json!(false) {
                    recorder.disable();
                }
                self.recorder = Some(recorder);
                Ok(Outcome::Ok(Json::Null))
            }
        }
    }

    fn start(&mut self, op: &Json) -> Performed {
        if !op["recorder"].is_null() {
            return no_meaning("a recorder besides the provider's");
        }
        let mut start = Start::named(name(op)?)
            .attributes(attributes(&op["span_attributes"])?)
            .event_attributes(attributes(&op["start_event_attributes"])?)
            .at(timestamp(&op["start_time"]));
        if let Some(parent) = op["parent"].as_str() {
            match &self.spans[parent] {
                Some(parent) => start = start.parent(parent),
                None => return no_meaning("a parent that was skipped"),
            }
        }
        match self.recorder()?.start(start) {
            Ok(span) => Ok(Outcome::Ok(self.keep(op, span))),
            Err(error) => Ok(Outcome::Raised(of_error(&error))),
        }
    }

    fn event(&mut self, op: &Json) -> Performed {
        let Some(span) = self.span(op)? else {
            return Ok(Outcome::Ok(Json::Null));
        };
        let attributes = match op["attributes_var"].as_str() {
            Some(kept) => self.attributes[kept].clone(),
            None => attributes(&op["attributes"])?,
        };
        let at = timestamp(&op["timestamp"]).unwrap_or_else(|| self.clock.now());
        let event = Event::new(name(op)?, at, attributes);
        let recorded = self.recorder()?.event(&span, event);
        Ok(shown_event(recorded))
    }

    fn error(&mut self, op: &Json) -> Performed {
        let Some(span) = self.span(op)? else {
            return Ok(Outcome::Ok(Json::Null));
        };
        let exception = exception(&op["exception"], op["raised"] == json!(true));
        let message = text(op, "message");
        let recorded = self.recorder()?.error(&span, message, exception.as_ref());
        Ok(shown_event(recorded))
    }

    fn info(&self, span: &Span) -> Json {
        let mut info = of_span(span, &self.contexts);
        let mut events = vec![of_event(span.start_event(), "")];
        events.extend(span.events().iter().map(|event| of_event(event, "")));
        events.extend(span.stop_event().map(|event| of_event(&event, "")));
        info.insert("active".into(), json!(span.is_active()));
        info.insert("events".into(), Json::Array(events));
        Json::Object(info)
    }

    fn nested(&mut self, ops: &[Json]) -> Result<Vec<Json>, NoMeaning> {
        let mut results = Vec::new();
        for op in ops {
            results.push(match self.perform(op)? {
                Outcome::Ok(value) => json!({"ok": value}),
                Outcome::Raised(raised) => raised,
                Outcome::Unsayable => return no_meaning("a nested operation without meaning"),
            });
        }
        Ok(results)
    }

    fn in_thread(&mut self, op: &Json) -> Performed {
        let ops = op["ops"].as_array().unwrap();
        let context = self.contexts.make(op["copy_context"] == json!(true));
        let nested = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                Contexts::enter(context);
                self.nested(ops)
            });
            thread.join().expect("the thread does not panic")
        })?;
        Ok(Outcome::Ok(json!({"nested": nested})))
    }

    /// One context a task, copied when the tasks are made.
    fn tasks(&mut self, op: &Json) -> Performed {
        let Some(tasks) = op["tasks"].as_object() else {
            return no_meaning("tasks without names");
        };
        let mut state: HashMap<&str, (usize, usize, Vec<Json>)> = tasks
            .keys()
            .map(|task| (task.as_str(), (self.contexts.make(true), 0, Vec::new())))
            .collect();
        for task in op["schedule"].as_array().into_iter().flatten() {
            let task = task.as_str().unwrap_or_default();
            let Some((context, next, _)) = state.get(task) else {
                return no_meaning("a schedule of other tasks");
            };
            let op = &tasks[task][*next];
            Contexts::enter(*context);
            let result = self.nested(std::slice::from_ref(op));
            Contexts::enter(0);
            let done = state.get_mut(task).expect("it is there");
            done.1 += 1;
            done.2.extend(result?);
        }
        let results = state
            .into_iter()
            .map(|(task, (_, _, results))| (task.to_owned(), results.into()));
        let results = Json::Object(results.collect());
        Ok(Outcome::Ok(json!({"nested": results})))
    }

    fn moment(&self, args: &Json) -> Performed {
        let unix_secs = args["timestamp_sec"].as_f64().unwrap();
        if args["validate_timestamp"] == json!(false) {
            return Ok(Outcome::Ok(shown_moment(Timestamp::near(
                unix_secs,
                self.clock.now(),
            ))));
        }
        let at =
            Timestamp::of_unix_secs(unix_secs, self.clock.now()).map(
                |at| match args["perf_counter"].as_f64().filter(|perf| *perf != 0.0) {
                    Some(perf_secs) => Timestamp::from_secs(unix_secs, perf_secs),
                    None => at,
                },
            );
        Ok(at.map(shown_moment).into())
    }
}

pub(crate) fn attributes(json: &Json) -> Result<Attributes, NoMeaning> {
    let given = Attributes::from_object(object(json)?);
    given.or_else(|_| no_meaning("attributes that are refused in passing"))
}

/// An exception as Python shows it; its traceback is a text that depends on whether it was ever raised.
pub(crate) fn exception(json: &Json, raised: bool) -> Option<Exception> {
    let traceback = if raised {
        "<traceback>"
    } else {
        "NoneType: None\n"
    };
    json.is_object().then(|| Exception {
        kind: text(json, "type").into(),
        message: text(json, "message").into(),
        traceback: Some(traceback.into()),
    })
}

fn get(op: &Json) -> Performed {
    let attributes = attributes(&op["values"])?;
    let name = text(op, "name");
    let found = match text(op, "type") {
        "bool" => attributes.get_bool(name).map(|found| found.is_some()),
        "int" => attributes.get_int(name).map(|found| found.is_some()),
        "float" => attributes.get_float(name).map(|found| found.is_some()),
        "str" => attributes.get_str(name).map(|found| found.is_some()),
        other => return no_meaning(format!("a getter of {other}")),
    };
    // There, a getter gives the value without conversion.
    let shown = found.map(|found| match found {
        true => op["values"][name].clone(),
        false => Json::Null,
    });
    Ok(shown.into())
}

fn shown_event(recorded: Result<Option<Arc<Event>>, Error>) -> Outcome {
    let shown = |event: Option<Arc<Event>>| match event {
        Some(event) => json!({"event": event.name()}),
        None => Json::Null,
    };
    recorded.map(shown).into()
}

fn shown_moment(at: Timestamp) -> Json {
    let mut shown = of_timestamp(at);
    shown["milliseconds_since_epoch"] = json!(at.unix_millis());
    shown
}
