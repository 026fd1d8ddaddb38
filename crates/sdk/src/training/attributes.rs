//! What the events of training telemetry carry. The order is that in which the attributes are added.

use std::fmt::Write as _;

use warptrace_model::{Int, Object, Value, number_text::float_text};

use super::config::{Job, Mode, TrainingConfig, get};
use super::names::Timed;
use super::state::{FirstLast, Productivity, State};
use super::timer::Windows;
use crate::span::{Attributes, Error};

/// Attributes of which some may not be known.
#[derive(Default)]
struct List(Attributes);

impl List {
    fn put(mut self, name: &str, value: impl Into<Value>) -> List {
        self.0 = self.0.with(name, value);
        self
    }

    fn maybe(self, name: &str, value: Option<impl Into<Value>>) -> List {
        match value {
            Some(value) => self.put(name, value),
            None => self,
        }
    }
}

fn int(value: i128) -> Value {
    Value::Int(Int::from(value))
}

/// Of `one_logger_initialization`.
pub(super) fn initialization(job: &Job, enabled: bool) -> Result<Attributes, Error> {
    let own = job.mode == Mode::Own;
    let list = List::default()
        .put("world_size", job.world_size.get()?)
        .put(
            "one_logger_training_telemetry_version",
            &*job.telemetry_version,
        )
        .put("enable_for_current_rank", enabled)
        .put("session_tag", &*job.session_tag.get()?)
        .put("is_baseline_run", job.is_baseline_run.get()?)
        .put(
            "summary_data_schema_version",
            &*job.summary_data_schema_version,
        )
        .put("node_name", node_name(job))
        .maybe("rank", job.rank.or_else(rank_of_environment))
        .maybe("custom_metadata", metadata(job.custom_metadata.as_ref()))
        .maybe("application_name", own.then_some(&*job.application_name))
        .maybe("app_type", own.then_some(&*job.app_type));
    Ok(list.0)
}

fn node_name(job: &Job) -> String {
    match &job.node_name {
        Some(name) => name.as_ref().into(),
        None => nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
    }
}

/// The variable RANK, or 0 where there is none; nothing for what is no integer, which rank 0 would be taken for.
fn rank_of_environment() -> Option<i64> {
    match std::env::var("RANK") {
        Ok(text) => text.trim().parse().ok(),
        Err(_) => Some(0),
    }
}

/// Of `update_training_telemetry_config`.
pub(super) fn config(config: &TrainingConfig) -> Result<Attributes, Error> {
    let list = List::default()
        .put("perf_tag", config.perf_tag.get()?)
        .put("global_batch_size", config.global_batch_size.get()?)
        .put(
            "log_every_n_train_iterations",
            config.log_every_n_train_iterations,
        )
        .maybe("micro_batch_size", get(&config.micro_batch_size)?)
        .maybe("seq_length", get(&config.seq_length)?)
        .maybe("flops_per_sample", get(&config.flops_per_sample)?)
        .maybe(
            "train_iterations_target",
            get(&config.train_iterations_target)?,
        )
        .maybe("train_samples_target", get(&config.train_samples_target)?)
        .put(
            "checkpoint_strategy",
            config.save_checkpoint_strategy.as_str(),
        )
        .put(
            "is_train_iterations_enabled",
            config.is_train_iterations_enabled.get()?,
        )
        .put(
            "is_validation_iterations_enabled",
            config.is_validation_iterations_enabled.get()?,
        )
        .put(
            "is_test_iterations_enabled",
            config.is_test_iterations_enabled.get()?,
        )
        .put(
            "is_save_checkpoint_enabled",
            config.is_save_checkpoint_enabled.get()?,
        )
        .put(
            "is_log_throughput_enabled",
            config.is_log_throughput_enabled.get()?,
        )
        .maybe("custom_metadata", metadata(config.custom_metadata.as_ref()));
    Ok(list.0)
}

/// What a training loop is to reach; `None` for what is not known.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Targets {
    pub(super) iterations: Option<i64>,
    pub(super) samples: Option<i64>,
    pub(super) tokens: Option<i128>,
}

/// Of the span `training_loop`.
pub(super) fn training_loop(state: &State, targets: Targets, throughput: bool) -> Attributes {
    List::default()
        .put("train_iterations_start", state.train_iterations_start)
        .put("train_samples_start", state.train_samples_start)
        .maybe("train_tokens_target", targets.tokens.map(int))
        .maybe(
            "completed_floating_point_operations_overall",
            state.completed_flops.filter(|_| throughput).map(int),
        )
        .maybe("train_iterations_target", targets.iterations)
        .maybe("train_samples_target", targets.samples)
        .0
}

/// Of `training_metrics_update`.
pub(super) fn training_metrics(state: &State, interval: i64, mode: Mode) -> Attributes {
    let timer = state.timer(Timed::TrainingIteration);
    let windows = timer.windows();
    let single = state.iteration_throughput.filter(|_| mode == Mode::Own);
    List::default()
        .put("train_iterations_start", state.train_iterations_start)
        .put("current_iteration", state.completed_iterations - 1)
        .put("num_iterations", timer.started())
        .put("train_samples_start", state.train_samples_start)
        .put("num_train_samples", state.samples_this_job)
        .put("interval", interval)
        .timing(windows)
        .maybe("train_tokens", state.tokens_this_job.map(int))
        .maybe(
            "completed_floating_point_operations_overall",
            state.completed_flops.map(int),
        )
        .put("total_flops", int(state.flops_this_loop))
        .maybe(
            "train_throughput_per_gpu",
            state.throughput.map(|t| t.latest),
        )
        .maybe(
            "train_throughput_per_gpu_max",
            state.throughput.map(|t| t.max),
        )
        .maybe(
            "train_throughput_per_gpu_min",
            state.throughput.map(|t| t.min),
        )
        .maybe(
            "train_iteration_throughput_per_gpu",
            single.map(|t| t.latest),
        )
        .maybe(
            "train_iteration_throughput_per_gpu_max",
            single.map(|t| t.max),
        )
        .maybe(
            "train_iteration_throughput_per_gpu_min",
            single.map(|t| t.min),
        )
        .maybe(
            "first_logged_train_iterations_finish_timestamp_sec",
            state.iteration_finish_secs.map(|f| f.first),
        )
        .maybe(
            "last_logged_train_iterations_finish_timestamp_sec",
            state.iteration_finish_secs.map(|f| f.last),
        )
        .0
}

impl List {
    fn timing(self, windows: Option<Windows>) -> List {
        let Some(windows) = windows else { return self };
        self.put("avg_iteration_time_sec", windows.avg_secs)
            .put("min_iteration_time_sec", windows.min_secs)
            .put("max_iteration_time_sec", windows.max_secs)
            .put("total_iteration_time_sec", windows.total_secs)
    }
}

/// Of `validation_metrics_update`: times are of all validation iterations of the job so far.
pub(super) fn validation_metrics(state: &State) -> Attributes {
    interval(state, state.validation_interval_start)
        .timing(state.timer(Timed::ValidationIteration).windows())
        .0
}

/// Of `testing_metrics_update`.
pub(super) fn testing_metrics(state: &State) -> Attributes {
    interval(state, state.testing_interval_start).0
}

fn interval(state: &State, start: i64) -> List {
    List::default()
        .put("current_iteration", (state.completed_iterations - 1).max(0))
        .put("interval", state.completed_iterations - start)
}

/// Of the span `checkpoint_save_sync` or `checkpoint_save_async`.
pub(super) fn checkpoint(config: &TrainingConfig, step: i64, attempts: i64) -> Attributes {
    List::default()
        .put(
            "checkpoint_strategy",
            config.save_checkpoint_strategy.as_str(),
        )
        .put("current_iteration", step)
        .put("save_checkpoint_attempt_count", attempts)
        .0
}

/// Of `save_checkpoint_success`.
pub(super) fn checkpoint_success(
    state: &State,
    config: &TrainingConfig,
    step: i64,
    successes: FirstLast,
    kept: Option<Productivity>,
) -> Attributes {
    // Zeros, all of them integers, for a checkpoint that was not begun in this job.
    let secs =
        |of: fn(&Productivity) -> f64| kept.as_ref().map_or(Value::from(0_i64), |k| of(k).into());
    let tflops = match &kept {
        Some(kept) => kept.flops.map(|flops| Value::from(flops as f64 / 1e12)),
        None => Some(Value::from(0_i64)),
    };
    List::default()
        .put(
            "checkpoint_strategy",
            config.save_checkpoint_strategy.as_str(),
        )
        .put("current_iteration", step)
        .put(
            "first_successful_save_checkpoint_timestamp_sec",
            successes.first,
        )
        .put(
            "latest_successful_save_checkpoint_timestamp_sec",
            successes.last,
        )
        .put("save_checkpoint_success_count", state.checkpoint_successes)
        .put(
            "productive_train_iterations",
            kept.map_or(0, |k| k.iterations),
        )
        .put("productive_train_samples", kept.map_or(0, |k| k.samples))
        .put("productive_train_iterations_sec", secs(|k| k.train_secs))
        .put(
            "productive_validation_iterations_sec",
            secs(|k| k.validation_secs),
        )
        .maybe("productive_train_tflops", tflops)
        .maybe("training_start_timestamp_sec", state.loop_start_secs)
        .0
}

/// Of `sync_checkpoint_metrics_update`: how long saving kept the training from going on.
pub(super) fn checkpoint_metrics(windows: Windows) -> Attributes {
    List::default()
        .put("save_checkpoint_sync_time_total_sec", windows.total_secs)
        .put("save_checkpoint_sync_time_min_sec", windows.min_secs)
        .put("save_checkpoint_sync_time_max_sec", windows.max_secs)
        .0
}

/// `key:value`, with values as Python shows them, which is what readers of this attribute know.
fn metadata(entries: Option<&Object>) -> Option<Vec<String>> {
    let entries = entries?.iter();
    let text = |(key, value): (&str, &Value)| match value {
        Value::String(text) => format!("{key}:{text}"),
        other => {
            let mut out = format!("{key}:");
            show(&mut out, other);
            out
        }
    };
    Some(entries.map(text).collect())
}

/// As Python's `repr` shows it.
fn show(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(n) => _ = write!(out, "{n}"),
        Value::Float(x) => out.push_str(&float_text(*x)),
        Value::String(text) => show_text(out, text),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { ", " });
                show(out, item);
            }
            out.push(']');
        }
        Value::Object(entries) => {
            out.push('{');
            for (at, (key, item)) in entries.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { ", " });
                show_text(out, key);
                out.push_str(": ");
                show(out, item);
            }
            out.push('}');
        }
    }
}

fn show_text(out: &mut String, text: &str) {
    let quote = match text.contains('\'') && !text.contains('"') {
        true => '"',
        false => '\'',
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => _ = write!(out, "\\{c}"),
            c if c.is_control() => _ = write!(out, "\\x{:02x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push(quote);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_shown_as_python_shows_it() {
        let mut entries = Object::new();
        entries.insert("flag", Value::from(true));
        entries.insert("l", Value::from(vec![1_i64, 2]));
        entries.insert("f", Value::from(1.0));
        entries.insert("s", Value::from("x"));
        entries.insert(
            "ls",
            Value::from(vec![Value::from("a"), Value::from("b'\n")]),
        );
        assert_eq!(
            metadata(Some(&entries)).unwrap(),
            [
                "flag:True",
                "l:[1, 2]",
                "f:1.0",
                "s:x",
                "ls:['a', \"b'\\n\"]"
            ]
        );
    }
}
