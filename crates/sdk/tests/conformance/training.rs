//! The operations about training: building a job's telemetry, its callbacks, and its scopes.

use serde_json::{Value as Json, json};
use warptrace_sdk::span::{Error, Exception, Filter, Recorder, Span, Start};
use warptrace_sdk::training::{
    CheckpointScope, CheckpointStrategy, Job, Mode, Phase, Setting, TrainStart, Training,
    TrainingConfig, When,
};

use crate::json::{object, of_error, value};
use crate::scenario::{NoMeaning, Outcome, Performed, Scenario, exception, no_meaning, strategy};

/// What was said before `configure_provider`.
#[derive(Default)]
pub(crate) struct Provider {
    base: Option<Json>,
    exporters: Vec<String>,
    filter: Option<Filter>,
}

/// An entered scope.
pub(crate) enum Context {
    /// The span's name, and nothing when it was skipped.
    Span(Recorder, Span),
    Phase(Phase),
    Checkpoint(CheckpointScope),
    Skipped,
}

impl Scenario {
    pub(crate) fn provide(&mut self, op: &Json) -> Performed {
        match op["method"].as_str().unwrap_or_default() {
            "with_base_config" if self.provider.base.is_none() => {
                self.provider.base = Some(op["config"].clone());
                Ok(Outcome::Ok(Json::Null))
            }
            "with_exporter" if self.training.is_none() => {
                let name = op["exporter"].as_str().unwrap_or_default();
                self.provider.exporters.push(name.to_owned());
                Ok(Outcome::Ok(Json::Null))
            }
            "with_export_customization" if self.provider.filter.is_none() => {
                let names = op["filter"].as_array().into_iter().flatten();
                let names = names.filter_map(Json::as_str).map(Into::into).collect();
                self.provider.filter = Some(match op["mode"].as_str() {
                    Some("WHITELIST_SPANS") => Filter::Only(names),
                    Some("BLACKLIST_SPANS") => Filter::AllBut(names),
                    _ => Filter::All,
                });
                Ok(Outcome::Ok(Json::Null))
            }
            "configure_provider" if self.training.is_none() => self.configure_provider(),
            "set_training_telemetry_config" => match &self.training {
                Some(training) => {
                    let set = training.set_config(training_config(&op["config"])?);
                    Ok(set.map(|()| Json::Null).into())
                }
                None => no_meaning("telemetry that is used before it is made"),
            },
            other => no_meaning(format!("the provider's {other}")),
        }
    }

    fn configure_provider(&mut self) -> Performed {
        let Some(base) = self.provider.base.clone() else {
            return no_meaning("telemetry without a configuration");
        };
        let config = match &base["telemetry_config"] {
            Json::Null => None,
            config => Some(training_config(config)?),
        };
        let names = std::mem::take(&mut self.provider.exporters);
        let mut builder = self
            .builder(names.iter().map(String::as_str))
            .strategy(strategy(&base))
            .on(base["enable_for_current_rank"] != json!(false));
        if let Some(filter) = self.provider.filter.clone() {
            builder = builder.filter(filter);
        }
        let job = Job {
            world_size: int(&base["world_size_or_fn"])?.unwrap_or(1.into()),
            session_tag: text(&base["session_tag_or_fn"])?.unwrap_or("".into()),
            is_baseline_run: flag(&base["is_baseline_run_or_fn"], false)?,
            custom_metadata: metadata(&base["custom_metadata"])?,
            rank: self.rank,
            node_name: Some("<hostname>".into()),
            telemetry_version: "<version>".into(),
            mode: Mode::OneLogger,
            ..Job::new(base["application_name"].as_str().unwrap_or_default(), 1, "")
        };
        match Training::new(builder, job, config) {
            Ok(training) => {
                self.recorder = Some(training.recorder().clone());
                self.training = Some(training);
                Ok(Outcome::Ok(Json::Null))
            }
            Err(error) => Ok(Outcome::Raised(of_error(&error))),
        }
    }

    pub(crate) fn callback(&mut self, op: &Json) -> Performed {
        // Before there is telemetry, its calls do nothing.
        let off = Training::off();
        let t = self.training.clone().unwrap_or(off);
        let args = &op["args"];
        let at = ["start_time_msec", "finish_time_msec", "time_msec"]
            .iter()
            .find_map(|name| args[*name].as_f64());
        let step = args["global_step"].as_i64().unwrap_or_default();
        let nothing = |ended: Result<(), Error>| ended.map(|()| None);
        let result = match op["fn"].as_str().unwrap_or_default() {
            "on_app_start" => t.on_app_start(at),
            "on_app_end" => nothing(t.on_app_end(at)),
            "on_distributed_init_start" => t.on_distributed_init_start(at),
            "on_distributed_init_end" => nothing(t.on_distributed_init_end(at)),
            "on_model_init_start" => t.on_model_init_start(at),
            "on_model_init_end" => nothing(t.on_model_init_end(at)),
            "on_dataloader_init_start" => t.on_dataloader_init_start(at),
            "on_dataloader_init_end" => nothing(t.on_dataloader_init_end(at)),
            "on_optimizer_init_start" => t.on_optimizer_init_start(at),
            "on_optimizer_init_end" => nothing(t.on_optimizer_init_end(at)),
            "on_load_checkpoint_start" => t.on_load_checkpoint_start(at),
            "on_load_checkpoint_end" => nothing(t.on_load_checkpoint_end(at)),
            "on_train_start" => t.on_train_start(train_start(args, at)?),
            "on_train_end" => nothing(t.on_train_end(at)),
            "on_training_single_iteration_start" => t.on_training_single_iteration_start(at),
            "on_training_single_iteration_end" => nothing(t.on_training_single_iteration_end(at)),
            "on_validation_start" => t.on_validation_start(at),
            "on_validation_end" => nothing(t.on_validation_end(at)),
            "on_validation_single_iteration_start" => t.on_validation_single_iteration_start(at),
            "on_validation_single_iteration_end" => {
                nothing(t.on_validation_single_iteration_end(at))
            }
            "on_testing_start" => t.on_testing_start(at),
            "on_testing_end" => nothing(t.on_testing_end(at)),
            "on_save_checkpoint_start" => t.on_save_checkpoint_start(step, at),
            "on_save_checkpoint_success" => nothing(t.on_save_checkpoint_success(step, at)),
            "on_save_checkpoint_end" => nothing(t.on_save_checkpoint_end(at)),
            other => return no_meaning(format!("the callback {other}")),
        };
        match result {
            Ok(span) => Ok(Outcome::Ok(self.keep(op, span))),
            Err(error) => Ok(Outcome::Raised(of_error(&error))),
        }
    }

    pub(crate) fn enter(&mut self, op: &Json) -> Performed {
        let args = &op["args"];
        let context = match (op["ctx"].as_str().unwrap_or_default(), &self.training) {
            ("timed_span", _) => {
                let Some(recorder) = self.recorder.clone() else {
                    return no_meaning("a span without a recorder");
                };
                let Some(name) = args["name"].as_str() else {
                    return no_meaning("a name that is not text");
                };
                let start = Start::named(name.to_owned())
                    .attributes(crate::scenario::attributes(&args["span_attributes"])?)
                    .event_attributes(crate::scenario::attributes(
                        &args["start_event_attributes"],
                    )?);
                match recorder.start(start) {
                    Ok(Some(span)) => Context::Span(recorder, span),
                    Ok(None) => Context::Skipped,
                    Err(error) => {
                        self.entered.push(None);
                        return Ok(Outcome::Raised(of_error(&error)));
                    }
                }
            }
            (_, None) => return no_meaning("a phase without telemetry"),
            ("application", Some(t)) => Context::Phase(t.application()),
            ("model_init", Some(t)) => Context::Phase(t.model_init()),
            ("dataloader_init", Some(t)) => Context::Phase(t.dataloader_init()),
            ("optimizer_init", Some(t)) => Context::Phase(t.optimizer_init()),
            ("training_loop", Some(t)) => Context::Phase(t.training_loop(train_start(args, None)?)),
            ("training_iteration", Some(t)) => Context::Phase(t.training_iteration()),
            ("validation_loop", Some(t)) => Context::Phase(t.validation_loop()),
            ("validation_iteration", Some(t)) => Context::Phase(t.validation_iteration()),
            ("testing_loop", Some(t)) => Context::Phase(t.testing_loop()),
            ("checkpoint_load", Some(t)) => Context::Phase(t.checkpoint_load()),
            ("checkpoint_save", Some(t)) => {
                let step = args["global_step"].as_i64().unwrap_or_default();
                Context::Checkpoint(t.checkpoint_save(step))
            }
            (other, _) => return no_meaning(format!("the scope {other}")),
        };
        let span = match &context {
            Context::Span(_, span) => Some(span.clone()),
            Context::Phase(phase) => phase.span().cloned(),
            Context::Checkpoint(checkpoint) => checkpoint.span().cloned(),
            Context::Skipped => None,
        };
        self.entered.push(Some(context));
        Ok(Outcome::Ok(self.keep(op, span)))
    }

    pub(crate) fn exit(&mut self, op: &Json) -> Performed {
        let Some(context) = self.entered.pop().expect("something was entered") else {
            return Ok(Outcome::Ok(json!({"skipped": true})));
        };
        let raised = exception(&op["exception"], true);
        let ended = match context {
            Context::Span(recorder, span) => {
                // What only ends a Python program is no error of it.
                let ends = |e: &&Exception| !matches!(&*e.kind, "KeyboardInterrupt" | "SystemExit");
                let error = raised.as_ref().filter(ends).map(|exception| {
                    let message = format!("Error in {}: ", span.name());
                    recorder.error(&span, &message, Some(exception))
                });
                let stopped = recorder.stop(&span, Default::default());
                error.transpose().and(stopped).map(|_| ())
            }
            Context::Phase(phase) => phase.end(),
            Context::Checkpoint(checkpoint) if raised.is_none() => checkpoint.saved(),
            Context::Checkpoint(checkpoint) => {
                drop(checkpoint);
                Ok(())
            }
            Context::Skipped => Ok(()),
        };
        // The program's own exception goes on.
        Ok(match (ended, raised) {
            (Err(error), _) => Outcome::Raised(of_error(&error)),
            (Ok(()), Some(e)) => Outcome::Raised(json!({"raises": *e.kind, "message": *e.message})),
            (Ok(()), None) => Outcome::Ok(Json::Null),
        })
    }
}

fn train_start(args: &Json, at: Option<f64>) -> Result<TrainStart, NoMeaning> {
    Ok(TrainStart {
        train_iterations_start: args["train_iterations_start"].as_i64().unwrap_or_default(),
        train_samples_start: args["train_samples_start"].as_i64(),
        train_iterations_target: int(&args["train_iterations_target_or_fn"])?,
        train_samples_target: int(&args["train_samples_target_or_fn"])?,
        at: When::from(at),
    })
}

fn training_config(json: &Json) -> Result<TrainingConfig, NoMeaning> {
    let perf_tag = match setting(&json["perf_tag_or_fn"], |v| value(v).ok())? {
        Some(tag) => tag,
        None => return no_meaning("a configuration that is not complete"),
    };
    let Some(batch) = int(&json["global_batch_size_or_fn"])? else {
        return no_meaning("a configuration that is not complete");
    };
    Ok(TrainingConfig {
        perf_tag,
        global_batch_size: batch,
        is_train_iterations_enabled: flag(&json["is_train_iterations_enabled_or_fn"], true)?,
        is_validation_iterations_enabled: flag(
            &json["is_validation_iterations_enabled_or_fn"],
            true,
        )?,
        is_test_iterations_enabled: flag(&json["is_test_iterations_enabled_or_fn"], true)?,
        is_save_checkpoint_enabled: flag(&json["is_save_checkpoint_enabled_or_fn"], true)?,
        custom_metadata: metadata(&json["custom_metadata"])?,
        micro_batch_size: int(&json["micro_batch_size_or_fn"])?,
        seq_length: int(&json["seq_length_or_fn"])?,
        flops_per_sample: int(&json["flops_per_sample_or_fn"])?,
        train_iterations_target: int(&json["train_iterations_target_or_fn"])?,
        train_samples_target: int(&json["train_samples_target_or_fn"])?,
        log_every_n_train_iterations: json["log_every_n_train_iterations"].as_i64().unwrap_or(50),
        is_log_throughput_enabled: flag(&json["is_log_throughput_enabled_or_fn"], false)?,
        save_checkpoint_strategy: match json["save_checkpoint_strategy"].as_str() {
            Some("async") => CheckpointStrategy::Async,
            _ => CheckpointStrategy::Sync,
        },
    })
}

fn metadata(json: &Json) -> Result<Option<warptrace_model::Object>, NoMeaning> {
    match json {
        Json::Null => Ok(None),
        json => object(json).map(Some),
    }
}

/// A value or a function; nothing for null.
fn setting<T: Clone + Send + Sync + 'static>(
    json: &Json,
    read: impl Fn(&Json) -> Option<T>,
) -> Result<Option<Setting<T>>, NoMeaning> {
    if json.is_null() {
        return Ok(None);
    }
    let (computed, plain) = match json.get("$fn") {
        Some(given) => (true, given),
        None => (false, json),
    };
    let Some(given) = read(plain) else {
        return no_meaning(format!("a setting {json}"));
    };
    Ok(Some(match computed {
        true => Setting::computed(move || Ok(given.clone())),
        false => Setting::Fixed(given),
    }))
}

fn int(json: &Json) -> Result<Option<Setting<i64>>, NoMeaning> {
    setting(json, Json::as_i64)
}

fn text(json: &Json) -> Result<Option<Setting<Box<str>>>, NoMeaning> {
    setting(json, |v| v.as_str().map(Into::into))
}

fn flag(json: &Json, otherwise: bool) -> Result<Setting<bool>, NoMeaning> {
    Ok(setting(json, Json::as_bool)?.unwrap_or(Setting::Fixed(otherwise)))
}
