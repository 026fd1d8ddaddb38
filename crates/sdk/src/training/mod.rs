//! Telemetry of a training job: what it does, by calls at the places where it begins and ends something.
//!
//! ```
//! use std::time::Duration;
//! use warptrace_sdk::span::{MemoryExporter, Recorder};
//! use warptrace_sdk::training::{Job, TrainStart, Training, TrainingConfig, When};
//!
//! # fn main() -> Result<(), warptrace_sdk::span::Error> {
//! let kept = MemoryExporter::default();
//! let settings = Recorder::builder().exporter("memory", Box::new(kept.clone()));
//! let config = TrainingConfig { log_every_n_train_iterations: 10, ..TrainingConfig::new("llama-8b", 512) };
//! let training = Training::new(settings, Job::new("pretrain", 64, "run-7"), Some(config))?;
//!
//! training.on_app_start(When::Now)?;
//! training.on_train_start(TrainStart::default())?;
//! for _ in 0..20 {
//!     let _iteration = training.training_iteration();
//!     // forward, backward, step
//! }
//! training.on_train_end(When::Now)?;
//! training.on_app_end(When::Now)?; // brings everything out, and closes
//! let loop_ = kept.finished().into_iter().find(|s| &*s.name == "training_loop").unwrap();
//! assert_eq!(loop_.events.len(), 2); // training_metrics_update, after 10 and after 20 iterations
//! # Ok(())
//! # }
//! ```
//!
//! Spans, events, attributes and arithmetic are those of nv-one-logger-training-telemetry 2.3.1, with ours beside them
//! ([`Mode`]); docs/sdk/training.md lists them, and where we differ. All of it is sums and latest values: an iteration costs
//! the same however many there were before. A job has one application, one loop, one iteration at a time: the names in
//! [`SpanName`] are active at most once, whoever starts them.
//!
//! It does not know how its events are exported, and nothing of frameworks.

mod attributes;
mod config;
pub mod derived;
mod names;
mod scope;
mod state;
mod timer;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use config::{
    CheckpointStrategy, Compute, Job, Mode, Setting, TrainStart, TrainingConfig, When,
};
pub use names::{SpanName, default_filter, event};
pub use scope::{CheckpointScope, Phase};

use attributes::Targets;
use config::get;
use names::Timed;
use state::{FirstLast, Iteration, Shared};

use crate::span::{Attributes, Builder, End, Error, Event, Recorder, Span, Start, Timestamp};

/// How long [`Training::on_app_end`] waits for the exporters.
pub const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// The name by which readers know a report of the configuration that failed.
const CONFIG_REPORT: &str = "_update_application_span_with_training_telemetry_config";

/// Telemetry of one job. Clones are the same, for all threads.
///
/// Every callback goes by the recorder's [`crate::span::Strategy`]: by default it never fails, and what is wrong is counted and
/// signalled to the exporters. Starts give `None` when nothing is recorded. What was changed before an error stays changed.
#[derive(Clone)]
pub struct Training(Arc<Inner>);

struct Inner {
    recorder: Recorder,
    shared: Arc<Shared>,
    job: Job,
    config: OnceLock<TrainingConfig>,
}

impl Training {
    /// Telemetry by a recorder of these settings, whose rules it takes over and whose filter, unless there is one, is
    /// [`default_filter`]. A job that is configured late gives `None`, and its configuration by [`Training::set_config`].
    ///
    /// # Errors
    /// What is wrong with `job` or `config`: `application_name_empty`, `world_size_not_positive`,
    /// `custom_metadata_key_empty`, `global_batch_size_not_positive`, `log_every_n_not_positive`,
    /// `flops_per_sample_required`; or with the settings: see [`Builder::build`].
    pub fn new(
        settings: Builder,
        job: Job,
        config: Option<TrainingConfig>,
    ) -> Result<Training, Error> {
        job.check()?;
        if let Some(config) = &config {
            config.check()?;
        }
        let shared = Arc::new(Shared::default());
        let rules = Arc::clone(&shared);
        let recorder = settings
            .filter_unless_set(default_filter)
            .rules(rules)
            .build()?;
        Ok(Training(Arc::new(Inner {
            recorder,
            shared,
            job,
            config: config.map_or_else(OnceLock::new, OnceLock::from),
        })))
    }

    /// One that does nothing.
    ///
    /// Cost of each of its calls: one load.
    pub fn off() -> Training {
        Training(Arc::new(Inner {
            recorder: Recorder::off(),
            shared: Arc::default(),
            job: Job::new("off", 1, ""),
            config: OnceLock::new(),
        }))
    }

    /// For spans and events of the program's own among these.
    pub fn recorder(&self) -> &Recorder {
        &self.0.recorder
    }

    pub fn job(&self) -> &Job {
        &self.0.job
    }

    /// How the job trains, once that is known.
    pub fn config(&self) -> Option<&TrainingConfig> {
        self.0.config.get()
    }

    /// Says how the job trains, once; it is reported now, or when the application starts.
    ///
    /// # Errors
    /// Whatever the strategy: `training_config_already_set`, and what is wrong with `config`. By the strategy, and only with
    /// [`Mode::OneLogger`]: `app_not_started`; the configuration holds nevertheless.
    pub fn set_config(&self, config: TrainingConfig) -> Result<(), Error> {
        config.check()?;
        if self.0.config.set(config).is_err() {
            let message = "the training is configured already";
            return Err(Error::rule("training_config_already_set", message));
        }
        let report = || {
            let application = self.0.shared.lock().find(SpanName::Application);
            match application {
                Some(application) => self.report_config(&application),
                None if self.0.job.mode == Mode::Own => Ok(()),
                None => {
                    let message = "the application has not started";
                    Err(Error::rule("app_not_started", message))
                }
            }
        };
        self.guarded(CONFIG_REPORT, report).map(|_| ())
    }

    /// # Errors
    /// By the strategy; so with all that follow. `duplicate_active_span`, and here as in all that take a time:
    /// `timestamp_in_future`, `timestamp_too_old`.
    pub fn on_app_start(&self, at: impl Into<When>) -> Result<Option<Span>, Error> {
        let at = at.into();
        self.guarded("on_app_start", || {
            let at = self.moment(at)?;
            let application = self.start(SpanName::Application, Attributes::new(), at)?;
            let enabled = self.0.recorder.is_on();
            let attributes = attributes::initialization(&self.0.job, enabled)?;
            self.event(&application, event::INITIALIZATION, at, attributes)?;
            if self.config().is_some() {
                self.guarded(CONFIG_REPORT, || self.report_config(&application))?;
            }
            Ok(application)
        })
    }

    /// Stops the application, then whatever else is open, brings out what there is within [`CLOSE_PATIENCE`], and closes the
    /// recorder.
    ///
    /// # Errors
    /// `active_span_count`.
    pub fn on_app_end(&self, at: impl Into<When>) -> Result<(), Error> {
        let at = at.into();
        self.guarded("on_app_end", || {
            self.end(SpanName::Application, at)?;
            self.0.recorder.close(CLOSE_PATIENCE)?;
            Ok(())
        })
        .map(|_| ())
    }

    /// # Errors
    /// `training_config_missing`; `negative_train_iterations_start`, `negative_train_samples_start`; with throughput
    /// `train_iterations_target_required`, `train_samples_target_required`; `duplicate_active_span`.
    pub fn on_train_start(&self, start: TrainStart) -> Result<Option<Span>, Error> {
        self.guarded("on_train_start", || {
            let at = self.moment(start.at)?;
            let config = self.configured()?;
            let batch = config.global_batch_size.get()?;
            let iterations_start = start.train_iterations_start;
            let samples_start = start
                .train_samples_start
                .unwrap_or_else(|| iterations_start.saturating_mul(batch));
            let target =
                |given: &Option<Setting<i64>>, otherwise: &Option<Setting<i64>>| match given {
                    Some(given) => given.get().map(Some),
                    None => get(otherwise),
                };
            let iterations = target(
                &start.train_iterations_target,
                &config.train_iterations_target,
            )?;
            let samples = target(&start.train_samples_target, &config.train_samples_target)?;
            let throughput = config.is_log_throughput_enabled.get()?;
            if throughput {
                positive(iterations, "train_iterations_target_required", "iterations")?;
                positive(samples, "train_samples_target_required", "samples")?;
            }
            let length = get(&config.seq_length)?.filter(|n| *n != 0);
            let tokens = length
                .zip(samples.filter(|n| *n != 0))
                .map(|(length, samples)| i128::from(length).saturating_mul(samples.into()));
            let targets = Targets {
                iterations,
                samples,
                tokens,
            };
            not_negative(iterations_start, "negative_train_iterations_start")?;
            not_negative(samples_start, "negative_train_samples_start")?;
            let flops = match throughput {
                true => Some(
                    i128::from(iterations_start).saturating_mul(iteration_flops(config, batch)?),
                ),
                false => None,
            };
            let attributes = {
                let mut state = self.0.shared.lock();
                state.loop_start_secs = Some(at.unix_secs());
                state.train_iterations_start = iterations_start;
                state.completed_iterations = iterations_start;
                state.validation_interval_start = iterations_start;
                state.testing_interval_start = iterations_start;
                state.train_samples_start = samples_start;
                if throughput {
                    state.completed_flops = flops;
                    state.flops_this_loop = 0;
                }
                attributes::training_loop(&state, targets, throughput)
            };
            self.start(SpanName::TrainingLoop, attributes, at)
        })
    }

    /// # Errors
    /// `active_span_count`.
    pub fn on_train_end(&self, at: impl Into<When>) -> Result<(), Error> {
        self.on_end("on_train_end", SpanName::TrainingLoop, at.into())
    }

    /// # Errors
    /// `timer_already_active`, `duplicate_active_span`.
    pub fn on_training_single_iteration_start(
        &self,
        at: impl Into<When>,
    ) -> Result<Option<Span>, Error> {
        let name = "on_training_single_iteration_start";
        self.on_timed_start(name, Timed::TrainingIteration, at.into())
    }

    /// Also sends `training_metrics_update` when it is time.
    ///
    /// # Errors
    /// `training_config_missing`, `timer_not_active`, `timer_stop_before_start`, `zero_iteration_time`, `active_span_count`.
    pub fn on_training_single_iteration_end(&self, at: impl Into<When>) -> Result<(), Error> {
        let at = at.into();
        let end = || {
            let config = self.configured()?;
            let at = self.moment(at)?;
            let batch = config.global_batch_size.get()?;
            let throughput = match config.is_log_throughput_enabled.get()? {
                true => Some((
                    iteration_flops(config, batch)?,
                    self.0.job.world_size.get()?,
                )),
                false => None,
            };
            let iteration = Iteration {
                batch,
                seq_length: get(&config.seq_length)?,
                throughput,
            };
            let every = config.log_every_n_train_iterations;
            let (update, iteration) = {
                let mut state = self.0.shared.lock();
                state.complete_iteration(iteration, at)?;
                let completed = state.completed_iterations;
                let update = match completed > 1 && completed % every == 0 {
                    true => Some((
                        state.open(SpanName::TrainingLoop)?,
                        attributes::training_metrics(&state, every, self.0.job.mode),
                    )),
                    false => None,
                };
                (update, state.open(SpanName::TrainingIteration))
            };
            if let Some((training_loop, attributes)) = update {
                let now = self.0.recorder.now();
                self.event(&training_loop, event::TRAINING_METRICS, now, attributes)?;
            }
            self.stop(&iteration?, at)
        };
        self.guarded("on_training_single_iteration_end", end)
            .map(|_| ())
    }

    /// # Errors
    /// `duplicate_active_span`.
    pub fn on_validation_start(&self, at: impl Into<When>) -> Result<Option<Span>, Error> {
        self.on_start("on_validation_start", SpanName::ValidationLoop, at.into())
    }

    /// # Errors
    /// `active_span_count`.
    pub fn on_validation_end(&self, at: impl Into<When>) -> Result<(), Error> {
        let at = at.into();
        let end = || {
            let at = self.moment(at)?;
            let (span, attributes) = {
                let mut state = self.0.shared.lock();
                let span = state.open(SpanName::ValidationLoop)?;
                let attributes = attributes::validation_metrics(&state);
                state.validation_interval_start = state.completed_iterations;
                (span, attributes)
            };
            let now = self.0.recorder.now();
            self.event(&span, event::VALIDATION_METRICS, now, attributes)?;
            self.stop(&span, at)
        };
        self.guarded("on_validation_end", end).map(|_| ())
    }

    /// # Errors
    /// `timer_already_active`, `duplicate_active_span`.
    pub fn on_validation_single_iteration_start(
        &self,
        at: impl Into<When>,
    ) -> Result<Option<Span>, Error> {
        let name = "on_validation_single_iteration_start";
        self.on_timed_start(name, Timed::ValidationIteration, at.into())
    }

    /// # Errors
    /// `timer_not_active`, `timer_stop_before_start`, `active_span_count`.
    pub fn on_validation_single_iteration_end(&self, at: impl Into<When>) -> Result<(), Error> {
        let name = "on_validation_single_iteration_end";
        self.on_timed_end(name, Timed::ValidationIteration, at.into())
    }

    /// # Errors
    /// `duplicate_active_span`.
    pub fn on_testing_start(&self, at: impl Into<When>) -> Result<Option<Span>, Error> {
        self.on_start("on_testing_start", SpanName::TestingLoop, at.into())
    }

    /// # Errors
    /// `active_span_count`.
    pub fn on_testing_end(&self, at: impl Into<When>) -> Result<(), Error> {
        let at = at.into();
        let end = || {
            let at = self.moment(at)?;
            let (span, attributes) = {
                let mut state = self.0.shared.lock();
                let span = state.open(SpanName::TestingLoop)?;
                let attributes = attributes::testing_metrics(&state);
                state.testing_interval_start = state.completed_iterations;
                (span, attributes)
            };
            let now = self.0.recorder.now();
            self.event(&span, event::TESTING_METRICS, now, attributes)?;
            self.stop(&span, at)
        };
        self.guarded("on_testing_end", end).map(|_| ())
    }

    /// # Errors
    /// `duplicate_active_span`.
    pub fn on_distributed_init_start(&self, at: impl Into<When>) -> Result<Option<Span>, Error> {
        let name = "on_distributed_init_start";
        self.on_start(name, SpanName::DistributedInit, at.into())
    }

    /// # Errors
    /// `active_span_count`.
    pub fn on_distributed_init_end(&self, at: impl Into<When>) -> Result<(), Error> {
        let name = "on_distributed_init_end";
        self.on_end(name, SpanName::DistributedInit, at.into())
    }

    /// # Errors
    /// `duplicate_active_span`.
    pub fn on_model_init_start(&self, at: impl Into<When>) -> Result<Option<Span>, Error> {
        self.on_start("on_model_init_start", SpanName::ModelInit, at.into())
    }

    /// # Errors
    /// `active_span_count`.
    pub fn on_model_init_end(&self, at: impl Into<When>) -> Result<(), Error> {
        self.on_end("on_model_init_end", SpanName::ModelInit, at.into())
    }

    /// # Errors
    /// `duplicate_active_span`.
    pub fn on_dataloader_init_start(&self, at: impl Into<When>) -> Result<Option<Span>, Error> {
        let name = "on_dataloader_init_start";
        self.on_start(name, SpanName::DataLoaderInit, at.into())
    }

    /// # Errors
    /// `active_span_count`.
    pub fn on_dataloader_init_end(&self, at: impl Into<When>) -> Result<(), Error> {
        let name = "on_dataloader_init_end";
        self.on_end(name, SpanName::DataLoaderInit, at.into())
    }

    /// # Errors
    /// `duplicate_active_span`.
    pub fn on_optimizer_init_start(&self, at: impl Into<When>) -> Result<Option<Span>, Error> {
        let name = "on_optimizer_init_start";
        self.on_start(name, SpanName::OptimizerInit, at.into())
    }

    /// # Errors
    /// `active_span_count`.
    pub fn on_optimizer_init_end(&self, at: impl Into<When>) -> Result<(), Error> {
        let name = "on_optimizer_init_end";
        self.on_end(name, SpanName::OptimizerInit, at.into())
    }

    /// # Errors
    /// `timer_already_active`, `duplicate_active_span`.
    pub fn on_load_checkpoint_start(&self, at: impl Into<When>) -> Result<Option<Span>, Error> {
        let name = "on_load_checkpoint_start";
        self.on_timed_start(name, Timed::CheckpointLoad, at.into())
    }

    /// # Errors
    /// `timer_not_active`, `timer_stop_before_start`, `active_span_count`.
    pub fn on_load_checkpoint_end(&self, at: impl Into<When>) -> Result<(), Error> {
        let name = "on_load_checkpoint_end";
        self.on_timed_end(name, Timed::CheckpointLoad, at.into())
    }

    /// A checkpoint of the model after `global_step` iterations begins. What the training had brought by now is what the
    /// checkpoint keeps.
    ///
    /// # Errors
    /// `training_config_missing`, `timer_already_active`, `duplicate_active_span`.
    pub fn on_save_checkpoint_start(
        &self,
        global_step: i64,
        at: impl Into<When>,
    ) -> Result<Option<Span>, Error> {
        let at = at.into();
        self.guarded("on_save_checkpoint_start", || {
            let config = self.configured()?;
            let at = self.moment(at)?;
            let enabled = config.is_save_checkpoint_enabled.get()?;
            let timed = checkpoint_timer(config);
            let attempts = {
                let mut state = self.0.shared.lock();
                state.start_checkpoint(timed, global_step, enabled, at)?
            };
            let attributes = attributes::checkpoint(config, global_step, attempts);
            self.start(timed.span(), attributes, at)
        })
    }

    /// The checkpoint is complete: to be called before its end, or later where checkpoints are asynchronous. Does nothing
    /// without [`TrainingConfig::is_save_checkpoint_enabled`].
    ///
    /// # Errors
    /// `training_config_missing`, `active_span_count`.
    pub fn on_save_checkpoint_success(
        &self,
        global_step: i64,
        at: impl Into<When>,
    ) -> Result<(), Error> {
        let at = at.into();
        let success = || {
            let config = self.configured()?;
            if !config.is_save_checkpoint_enabled.get()? {
                return Ok(());
            }
            let at = self.moment(at)?;
            let (span, attributes) = {
                let mut state = self.0.shared.lock();
                let span = state.open(match config.save_checkpoint_strategy {
                    CheckpointStrategy::Sync => SpanName::CheckpointSaveSync,
                    CheckpointStrategy::Async => SpanName::Application,
                })?;
                state.checkpoint_successes += 1;
                let times = FirstLast::note(&mut state.checkpoint_success_secs, at.unix_secs());
                let kept = state.take_checkpoint(global_step);
                let attributes =
                    attributes::checkpoint_success(&state, config, global_step, times, kept);
                (span, attributes)
            };
            self.event(&span, event::CHECKPOINT_SUCCESS, at, attributes)
        };
        self.guarded("on_save_checkpoint_success", success)
            .map(|_| ())
    }

    /// The training goes on; an asynchronous checkpoint may still be being written.
    ///
    /// # Errors
    /// `training_config_missing`, `timer_not_active`, `timer_stop_before_start`, `active_span_count`.
    pub fn on_save_checkpoint_end(&self, at: impl Into<When>) -> Result<(), Error> {
        let at = at.into();
        let end = || {
            let config = self.configured()?;
            let at = self.moment(at)?;
            let timed = checkpoint_timer(config);
            let enabled = config.is_save_checkpoint_enabled.get()?;
            let (span, attributes) = {
                let mut state = self.0.shared.lock();
                let span = state.open(timed.span())?;
                let attributes = match enabled {
                    true => {
                        state.stop_timer(timed, at)?;
                        state
                            .timer(timed)
                            .windows()
                            .map(attributes::checkpoint_metrics)
                    }
                    false => None,
                };
                (span, attributes)
            };
            if let Some(attributes) = attributes {
                let now = self.0.recorder.now();
                self.event(&span, event::CHECKPOINT_METRICS, now, attributes)?;
            }
            self.stop(&span, at)
        };
        self.guarded("on_save_checkpoint_end", end).map(|_| ())
    }

    fn on_start(&self, function: &str, name: SpanName, at: When) -> Result<Option<Span>, Error> {
        self.guarded(function, || {
            let at = self.moment(at)?;
            self.start(name, Attributes::new(), at)
        })
    }

    fn on_end(&self, function: &str, name: SpanName, at: When) -> Result<(), Error> {
        self.guarded(function, || self.end(name, at)).map(|_| ())
    }

    fn on_timed_start(
        &self,
        function: &str,
        timed: Timed,
        at: When,
    ) -> Result<Option<Span>, Error> {
        self.guarded(function, || {
            let at = self.moment(at)?;
            self.0.shared.lock().start_timer(timed, at)?;
            self.start(timed.span(), Attributes::new(), at)
        })
    }

    fn on_timed_end(&self, function: &str, timed: Timed, at: When) -> Result<(), Error> {
        let end = || {
            let at = self.moment(at)?;
            let span = {
                let mut state = self.0.shared.lock();
                state.stop_timer(timed, at)?;
                state.open(timed.span())?
            };
            self.stop(&span, at)
        };
        self.guarded(function, end).map(|_| ())
    }

    fn guarded<T>(
        &self,
        function: &str,
        call: impl FnOnce() -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        self.0.recorder.guarded(function, call)
    }

    fn configured(&self) -> Result<&TrainingConfig, Error> {
        self.config().ok_or_else(|| {
            let message = "how the job trains has not been said";
            Error::rule("training_config_missing", message)
        })
    }

    fn moment(&self, when: When) -> Result<Timestamp, Error> {
        let now = self.0.recorder.now();
        match when {
            When::At(at) => Ok(at),
            When::UnixMillis(millis) if millis != 0.0 => {
                Timestamp::of_unix_secs(millis / 1000.0, now)
            }
            When::Now | When::UnixMillis(_) => Ok(now),
        }
    }

    fn start(&self, name: SpanName, attributes: Attributes, at: Timestamp) -> Result<Span, Error> {
        let start = Start::named(name.as_str()).attributes(attributes).at(at);
        self.0.recorder.try_start(start)
    }

    fn end(&self, name: SpanName, at: When) -> Result<(), Error> {
        let at = self.moment(at)?;
        let span = self.0.shared.lock().open(name)?;
        self.stop(&span, at)
    }

    fn stop(&self, span: &Span, at: Timestamp) -> Result<(), Error> {
        let end = End {
            at: Some(at),
            ..End::default()
        };
        self.0.recorder.try_stop(span, end)
    }

    fn event(
        &self,
        span: &Span,
        name: &'static str,
        at: Timestamp,
        attributes: Attributes,
    ) -> Result<(), Error> {
        let event = Event::new(name, at, attributes);
        self.0.recorder.add_event(span, event).map(|_| ())
    }

    fn report_config(&self, application: &Span) -> Result<(), Error> {
        let config = self.configured()?;
        let attributes = attributes::config(config)?;
        if config.is_log_throughput_enabled.get()? {
            self.0.shared.lock().completed_flops = Some(0);
        }
        let now = self.0.recorder.now();
        self.event(application, event::CONFIG, now, attributes)
    }
}

impl std::fmt::Debug for Training {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Training")
            .field("job", &self.0.job)
            .field("recorder", &self.0.recorder)
            .finish_non_exhaustive()
    }
}

fn checkpoint_timer(config: &TrainingConfig) -> Timed {
    match config.save_checkpoint_strategy {
        CheckpointStrategy::Sync => Timed::CheckpointSaveSync,
        CheckpointStrategy::Async => Timed::CheckpointSaveAsync,
    }
}

/// Floating-point operations of an iteration of `batch` samples.
fn iteration_flops(config: &TrainingConfig, batch: i64) -> Result<i128, Error> {
    let of_sample = get(&config.flops_per_sample)?.unwrap_or(0);
    Ok(i128::from(batch) * i128::from(of_sample))
}

fn positive(value: Option<i64>, code: &'static str, what: &str) -> Result<(), Error> {
    match value {
        Some(value) if value > 0 => Ok(()),
        _ => {
            let message = format!("throughput needs a positive target of {what}");
            Err(Error::rule(code, message))
        }
    }
}

fn not_negative(value: i64, code: &'static str) -> Result<(), Error> {
    match value {
        0.. => Ok(()),
        _ => Err(Error::rule(code, format!("a start of {value} is negative"))),
    }
}
