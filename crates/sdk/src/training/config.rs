//! What a training job says of itself.

use std::fmt;
use std::sync::Arc;

use warptrace_model::{Object, Value};

use crate::span::{Error, Timestamp};

/// A value, or a function that is asked each time the value is needed, as for a batch size that grows.
#[derive(Clone)]
pub enum Setting<T> {
    Fixed(T),
    /// Called in the thread that calls the callback, outside of all locks.
    Computed(Arc<Compute<T>>),
}

/// See [`Setting::Computed`].
pub type Compute<T> = dyn Fn() -> Result<T, Error> + Send + Sync;

impl<T: Clone> Setting<T> {
    pub fn computed(compute: impl Fn() -> Result<T, Error> + Send + Sync + 'static) -> Setting<T> {
        Setting::Computed(Arc::new(compute))
    }

    /// The value now.
    ///
    /// # Errors
    /// What the function gives.
    pub fn get(&self) -> Result<T, Error> {
        match self {
            Setting::Fixed(value) => Ok(value.clone()),
            Setting::Computed(compute) => compute(),
        }
    }
}

/// The value of an optional setting now.
pub(super) fn get<T: Clone>(setting: &Option<Setting<T>>) -> Result<Option<T>, Error> {
    setting.as_ref().map(Setting::get).transpose()
}

impl<T> From<T> for Setting<T> {
    fn from(value: T) -> Setting<T> {
        Setting::Fixed(value)
    }
}

impl From<&str> for Setting<Box<str>> {
    fn from(value: &str) -> Setting<Box<str>> {
        Setting::Fixed(value.into())
    }
}

impl<T: fmt::Debug> fmt::Debug for Setting<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setting::Fixed(value) => value.fmt(f),
            Setting::Computed(_) => f.write_str("computed"),
        }
    }
}

/// Which attributes are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Those of nv-one-logger-training-telemetry 2.3.1, and ours: `application_name` and `app_type`, and the extremes of
    /// single iterations' throughput.
    #[default]
    Own,
    /// Those of nv-one-logger-training-telemetry 2.3.1 alone, under which also a configuration that is given before the
    /// application starts is an error.
    OneLogger,
}

/// What a job is, whatever it does.
#[derive(Debug, Clone)]
pub struct Job {
    /// Not blank.
    pub application_name: Box<str>,
    /// Ranks in the job; positive.
    pub world_size: Setting<i64>,
    /// The same for jobs that do one task together: a restart keeps it.
    pub session_tag: Setting<Box<str>>,
    /// A run that others are compared with.
    pub is_baseline_run: Setting<bool>,
    /// No key is blank.
    pub custom_metadata: Option<Object>,
    pub summary_data_schema_version: Box<str>,
    /// What the job does: `training`, `validation`, `batch_inference`, `online_inference`, `data_processing`.
    pub app_type: Box<str>,
    /// `None` for the variable RANK as it is when the application starts, and 0 without it.
    pub rank: Option<i64>,
    /// `None` for the host's name.
    pub node_name: Option<Box<str>>,
    /// What is sent as the version of the telemetry.
    pub telemetry_version: Box<str>,
    pub mode: Mode,
}

impl Job {
    pub fn new(application_name: &str, world_size: i64, session_tag: &str) -> Job {
        Job {
            application_name: application_name.into(),
            world_size: world_size.into(),
            session_tag: session_tag.into(),
            is_baseline_run: false.into(),
            custom_metadata: None,
            summary_data_schema_version: "1.0.0".into(),
            app_type: "training".into(),
            rank: None,
            node_name: None,
            telemetry_version: env!("CARGO_PKG_VERSION").into(),
            mode: Mode::Own,
        }
    }

    /// # Errors
    /// `application_name_empty`, `world_size_not_positive`, `custom_metadata_key_empty`.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.application_name.trim().is_empty() {
            let message = "the application has no name";
            return Err(Error::rule("application_name_empty", message));
        }
        let world_size = self.world_size.get()?;
        if world_size <= 0 {
            let message = format!("a world size of {world_size} is not positive");
            return Err(Error::rule("world_size_not_positive", message));
        }
        check_metadata(self.custom_metadata.as_ref())
    }
}

fn check_metadata(metadata: Option<&Object>) -> Result<(), Error> {
    let mut entries = metadata.into_iter().flat_map(Object::iter);
    match entries.any(|(key, _)| key.trim().is_empty()) {
        true => {
            let message = "a key of the custom metadata is blank";
            Err(Error::rule("custom_metadata_key_empty", message))
        }
        false => Ok(()),
    }
}

/// When a checkpoint is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CheckpointStrategy {
    /// When the call that saves it comes back.
    #[default]
    Sync,
    /// Later, in the background: success is reported by itself, to the application.
    Async,
}

impl CheckpointStrategy {
    pub const fn as_str(self) -> &'static str {
        match self {
            CheckpointStrategy::Sync => "sync",
            CheckpointStrategy::Async => "async",
        }
    }
}

/// How a job trains.
#[derive(Debug, Clone)]
pub struct TrainingConfig {
    /// A text or a list of texts: the same for runs that are expected to be equally fast.
    pub perf_tag: Setting<Value>,
    /// Samples an iteration, over all ranks; positive.
    pub global_batch_size: Setting<i64>,
    /// The first three of these flags are reported, and switch nothing off.
    pub is_train_iterations_enabled: Setting<bool>,
    pub is_validation_iterations_enabled: Setting<bool>,
    pub is_test_iterations_enabled: Setting<bool>,
    /// Without it, checkpoints are spans without metrics.
    pub is_save_checkpoint_enabled: Setting<bool>,
    pub custom_metadata: Option<Object>,
    pub micro_batch_size: Option<Setting<i64>>,
    /// Tokens a sample.
    pub seq_length: Option<Setting<i64>>,
    /// Floating-point operations a sample.
    pub flops_per_sample: Option<Setting<i64>>,
    pub train_iterations_target: Option<Setting<i64>>,
    pub train_samples_target: Option<Setting<i64>>,
    /// `training_metrics_update` is sent whenever the count of iterations is a multiple of it; positive.
    pub log_every_n_train_iterations: i64,
    /// Needs [`TrainingConfig::flops_per_sample`], and both targets when the loop starts.
    pub is_log_throughput_enabled: Setting<bool>,
    pub save_checkpoint_strategy: CheckpointStrategy,
}

impl TrainingConfig {
    pub fn new(perf_tag: &str, global_batch_size: i64) -> TrainingConfig {
        TrainingConfig {
            perf_tag: Value::from(perf_tag).into(),
            global_batch_size: global_batch_size.into(),
            is_train_iterations_enabled: true.into(),
            is_validation_iterations_enabled: true.into(),
            is_test_iterations_enabled: true.into(),
            is_save_checkpoint_enabled: true.into(),
            custom_metadata: None,
            micro_batch_size: None,
            seq_length: None,
            flops_per_sample: None,
            train_iterations_target: None,
            train_samples_target: None,
            log_every_n_train_iterations: 50,
            is_log_throughput_enabled: false.into(),
            save_checkpoint_strategy: CheckpointStrategy::Sync,
        }
    }

    /// # Errors
    /// `global_batch_size_not_positive`, `log_every_n_not_positive`, `flops_per_sample_required`,
    /// `custom_metadata_key_empty`.
    pub(super) fn check(&self) -> Result<(), Error> {
        let batch = self.global_batch_size.get()?;
        if batch <= 0 {
            let message = format!("a global batch size of {batch} is not positive");
            return Err(Error::rule("global_batch_size_not_positive", message));
        }
        let every = self.log_every_n_train_iterations;
        if every <= 0 {
            let message = format!("updates every {every} iterations: that is not positive");
            return Err(Error::rule("log_every_n_not_positive", message));
        }
        if self.is_log_throughput_enabled.get()? && get(&self.flops_per_sample)?.unwrap_or(0) <= 0 {
            let message = "throughput needs a positive number of operations a sample";
            return Err(Error::rule("flops_per_sample_required", message));
        }
        check_metadata(self.custom_metadata.as_ref())
    }
}

/// When something was.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum When {
    #[default]
    Now,
    /// ms since the Unix epoch, within 600 s of now; 0 is now.
    UnixMillis(f64),
    At(Timestamp),
}

impl From<Timestamp> for When {
    fn from(at: Timestamp) -> When {
        When::At(at)
    }
}

/// `None` is now.
impl From<Option<f64>> for When {
    fn from(unix_millis: Option<f64>) -> When {
        unix_millis.map_or(When::Now, When::UnixMillis)
    }
}

/// What a training loop starts with.
#[derive(Debug, Clone, Default)]
pub struct TrainStart {
    /// Iterations that were completed before this job; not negative.
    pub train_iterations_start: i64,
    /// Samples that were used before this job; `None` for that many iterations of the global batch size.
    pub train_samples_start: Option<i64>,
    /// `None` for [`TrainingConfig::train_iterations_target`].
    pub train_iterations_target: Option<Setting<i64>>,
    /// `None` for [`TrainingConfig::train_samples_target`].
    pub train_samples_target: Option<Setting<i64>>,
    pub at: When,
}
