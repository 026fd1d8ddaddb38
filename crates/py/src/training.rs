//! Telemetry of training jobs.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::conversion::FromPyObjectOwned;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};
use warptrace_model::{Object, Value};
use warptrace_sdk::span::{self as sdk, Filter};
use warptrace_sdk::training::{
    self, CheckpointStrategy, Job, Mode, Setting, TrainStart, TrainingConfig, When,
};

use crate::span::{Recorder, Span, builder, clocked, error, started_by};
use crate::value;

/// Adds this subject's names to the native module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Training>()?;
    module.add_class::<TrainingPhase>()?;
    let short = training::SpanName::SHORT.map(training::SpanName::as_str);
    module.add("SHORT_SPANS", PyList::new(module.py(), short)?)
}

thread_local! {
    /// What a setting's function raised, on its way through the SDK.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// The code of an error that [`RAISED`] has.
const SETTING_RAISED: &str = "setting_raised";

fn raised(py: Python<'_>, e: &sdk::Error) -> PyErr {
    let raised = RAISED.take().filter(|_| e.code() == SETTING_RAISED);
    raised.unwrap_or_else(|| error(py, e))
}

/// What a field holds, as it is or as a function gives it whenever it is asked.
fn setting<T>(
    any: &Bound<'_, PyAny>,
    read: fn(&Bound<'_, PyAny>) -> PyResult<T>,
) -> PyResult<Option<Setting<T>>>
where
    T: Clone + Send + Sync + 'static,
{
    if any.is_none() {
        return Ok(None);
    }
    if !any.is_callable() {
        return read(any).map(|value| Some(Setting::Fixed(value)));
    }
    let function = any.clone().unbind();
    let compute = move || {
        let asked = Python::try_attach(|py| {
            let given = function.bind(py).call0().and_then(|value| read(&value));
            given.map_err(|e| {
                let message = e.to_string();
                RAISED.set(Some(e));
                message
            })
        });
        let result = asked.unwrap_or_else(|| Err("the interpreter is ending".to_owned()));
        result.map_err(|message| sdk::Error::rule(SETTING_RAISED, message))
    };
    Ok(Some(Setting::Computed(Arc::new(compute))))
}

fn plain<T: for<'py> FromPyObjectOwned<'py>>(any: &Bound<'_, PyAny>) -> PyResult<T> {
    any.extract().map_err(Into::into)
}

fn text(any: &Bound<'_, PyAny>) -> PyResult<Box<str>> {
    Ok(any.cast::<PyString>()?.to_string_lossy().as_ref().into())
}

/// An optional field of a configuration, or an argument; missing is None.
fn field<'py>(config: &Bound<'py, PyAny>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    config.getattr(name)
}

fn required<T>(found: Option<Setting<T>>, name: &str) -> PyResult<Setting<T>> {
    found.ok_or_else(|| {
        pyo3::exceptions::PyTypeError::new_err(format!("{name}: None is no value for it"))
    })
}

fn metadata(any: &Bound<'_, PyAny>) -> PyResult<Option<Object>> {
    match any.is_none() {
        true => Ok(None),
        false => value::object(any).map(Some),
    }
}

/// An argument that is there and not None.
fn given<'py>(any: Option<&Bound<'py, PyAny>>) -> Option<Bound<'py, PyAny>> {
    any.filter(|a| !a.is_none()).cloned()
}

/// `warptrace.training.TrainingConfig`, or anything with its fields.
fn config(any: &Bound<'_, PyAny>) -> PyResult<TrainingConfig> {
    let int = |name: &str| setting(&field(any, name)?, plain::<i64>);
    let flag = |name: &str| required(setting(&field(any, name)?, plain::<bool>)?, name);
    let strategy = field(any, "save_checkpoint_strategy")?.str()?.to_string();
    Ok(TrainingConfig {
        perf_tag: required(
            setting::<Value>(&field(any, "perf_tag")?, value::from_python)?,
            "perf_tag",
        )?,
        global_batch_size: required(int("global_batch_size")?, "global_batch_size")?,
        is_train_iterations_enabled: flag("is_train_iterations_enabled")?,
        is_validation_iterations_enabled: flag("is_validation_iterations_enabled")?,
        is_test_iterations_enabled: flag("is_test_iterations_enabled")?,
        is_save_checkpoint_enabled: flag("is_save_checkpoint_enabled")?,
        custom_metadata: metadata(&field(any, "custom_metadata")?)?,
        micro_batch_size: int("micro_batch_size")?,
        seq_length: int("seq_length")?,
        flops_per_sample: int("flops_per_sample")?,
        train_iterations_target: int("train_iterations_target")?,
        train_samples_target: int("train_samples_target")?,
        log_every_n_train_iterations: field(any, "log_every_n_train_iterations")?.extract()?,
        is_log_throughput_enabled: flag("is_log_throughput_enabled")?,
        save_checkpoint_strategy: match strategy.as_str() {
            "sync" => CheckpointStrategy::Sync,
            "async" => CheckpointStrategy::Async,
            other => {
                return Err(pyo3::exceptions::PyValueError::new_err(format!(
                    "save_checkpoint_strategy={other:?}: one of \"sync\", \"async\""
                )));
            }
        },
    })
}

/// Telemetry of one training job: spans, metrics and checkpoints, by calls at the places where something begins and ends.
#[pyclass(module = "warptrace", frozen, subclass, weakref)]
struct Training {
    training: training::Training,
    recorder: Py<Recorder>,
}

impl Training {
    /// Calls that start a span give it.
    fn start<'py>(
        &self,
        py: Python<'py>,
        start: impl FnOnce(&training::Training) -> Result<Option<sdk::Span>, sdk::Error>,
    ) -> PyResult<Option<Bound<'py, Span>>> {
        start_of(py, &self.training, start)
    }
}

fn start_of<'py>(
    py: Python<'py>,
    training: &training::Training,
    start: impl FnOnce(&training::Training) -> Result<Option<sdk::Span>, sdk::Error>,
) -> PyResult<Option<Bound<'py, Span>>> {
    if !training.recorder().is_on() {
        return Ok(None);
    }
    started_by(py, training.recorder(), || start(training), raised)
}

fn end(py: Python<'_>, ended: Result<(), sdk::Error>) -> PyResult<()> {
    ended.map_err(|e| raised(py, &e))
}

#[pymethods]
impl Training {
    #[new]
    #[pyo3(signature = (
        exporters=Vec::new(), *, application_name, world_size=None, session_tag=None, config=None, is_baseline_run=None,
        custom_metadata=None, summary_data_schema_version="1.0.0", app_type="training", rank=None, node_name=None,
        telemetry_version=None, one_logger=false, direct=false, include=None, exclude=None, all_spans=false,
        on_error="continue", enabled=true, queue_items=None, failures_in_a_row=true, clock=None
    ))]
    #[expect(
        clippy::too_many_arguments,
        reason = "keyword arguments of a constructor"
    )]
    fn new(
        py: Python<'_>,
        exporters: Vec<Bound<'_, PyAny>>,
        application_name: &str,
        world_size: Option<&Bound<'_, PyAny>>,
        session_tag: Option<&Bound<'_, PyAny>>,
        config: Option<&Bound<'_, PyAny>>,
        is_baseline_run: Option<&Bound<'_, PyAny>>,
        custom_metadata: Option<&Bound<'_, PyAny>>,
        summary_data_schema_version: &str,
        app_type: &str,
        rank: Option<i64>,
        node_name: Option<&str>,
        telemetry_version: Option<&str>,
        one_logger: bool,
        direct: bool,
        include: Option<Vec<String>>,
        exclude: Option<Vec<String>>,
        all_spans: bool,
        on_error: &str,
        enabled: bool,
        queue_items: Option<usize>,
        failures_in_a_row: bool,
        clock: Option<Py<PyAny>>,
    ) -> PyResult<Training> {
        let filter = match include.is_some() || exclude.is_some() {
            true => None,
            false if all_spans => Some(Filter::All),
            false => Some(training::default_filter()),
        };
        let mut settings = builder(
            py,
            exporters,
            direct,
            include,
            exclude,
            on_error,
            enabled,
            queue_items,
            failures_in_a_row,
        )?;
        if let Some(filter) = filter {
            settings = settings.filter(filter);
        }
        let unsaid = Job::new(application_name, 1, "");
        let job = Job {
            world_size: match given(world_size) {
                Some(any) => required(setting(&any, plain::<i64>)?, "world_size")?,
                None => unsaid.world_size.clone(),
            },
            session_tag: match given(session_tag) {
                Some(any) => required(setting(&any, text)?, "session_tag")?,
                None => unsaid.session_tag.clone(),
            },
            is_baseline_run: match given(is_baseline_run) {
                Some(any) => required(setting(&any, plain::<bool>)?, "is_baseline_run")?,
                None => unsaid.is_baseline_run.clone(),
            },
            custom_metadata: custom_metadata.map(metadata).transpose()?.flatten(),
            summary_data_schema_version: summary_data_schema_version.into(),
            app_type: app_type.into(),
            rank,
            node_name: node_name.map(Into::into),
            telemetry_version: telemetry_version
                .map_or(unsaid.telemetry_version.clone(), Into::into),
            mode: if one_logger {
                Mode::OneLogger
            } else {
                Mode::Own
            },
            ..unsaid
        };
        let config = config
            .filter(|c| !c.is_none())
            .map(self::config)
            .transpose()?;
        let training = training::Training::new(clocked(settings, clock), job, config);
        let training = training.map_err(|e| raised(py, &e))?;
        let recorder = Py::new(py, Recorder::known(training.recorder().clone()))?;
        Ok(Training { training, recorder })
    }

    /// For spans and events of the program's own among these.
    #[getter]
    fn recorder(&self, py: Python<'_>) -> Py<Recorder> {
        self.recorder.clone_ref(py)
    }

    #[getter]
    fn enabled(&self) -> bool {
        self.training.recorder().is_on()
    }

    /// Whether it was said how the job trains.
    #[getter]
    fn configured(&self) -> bool {
        self.training.config().is_some()
    }

    /// Says how the job trains, once.
    fn set_config(&self, py: Python<'_>, config: &Bound<'_, PyAny>) -> PyResult<()> {
        end(py, self.training.set_config(self::config(config)?))
    }

    #[pyo3(signature = (*, start_time_msec=None))]
    fn on_app_start<'py>(
        &self,
        py: Python<'py>,
        start_time_msec: Option<f64>,
    ) -> PyResult<Option<Bound<'py, Span>>> {
        self.start(py, |t| t.on_app_start(start_time_msec))
    }

    #[pyo3(signature = (*, finish_time_msec=None))]
    fn on_app_end(&self, py: Python<'_>, finish_time_msec: Option<f64>) -> PyResult<()> {
        // Exporters are waited for.
        let ended = py.detach(|| self.training.on_app_end(finish_time_msec));
        end(py, ended)
    }

    #[pyo3(signature = (*, start_time_msec=None))]
    fn on_distributed_init_start<'py>(
        &self,
        py: Python<'py>,
        start_time_msec: Option<f64>,
    ) -> PyResult<Option<Bound<'py, Span>>> {
        self.start(py, |t| t.on_distributed_init_start(start_time_msec))
    }

    #[pyo3(signature = (*, finish_time_msec=None))]
    fn on_distributed_init_end(
        &self,
        py: Python<'_>,
        finish_time_msec: Option<f64>,
    ) -> PyResult<()> {
        end(py, self.training.on_distributed_init_end(finish_time_msec))
    }

    #[pyo3(signature = (*, start_time_msec=None))]
    fn on_model_init_start<'py>(
        &self,
        py: Python<'py>,
        start_time_msec: Option<f64>,
    ) -> PyResult<Option<Bound<'py, Span>>> {
        self.start(py, |t| t.on_model_init_start(start_time_msec))
    }

    #[pyo3(signature = (*, finish_time_msec=None))]
    fn on_model_init_end(&self, py: Python<'_>, finish_time_msec: Option<f64>) -> PyResult<()> {
        end(py, self.training.on_model_init_end(finish_time_msec))
    }

    #[pyo3(signature = (*, start_time_msec=None))]
    fn on_dataloader_init_start<'py>(
        &self,
        py: Python<'py>,
        start_time_msec: Option<f64>,
    ) -> PyResult<Option<Bound<'py, Span>>> {
        self.start(py, |t| t.on_dataloader_init_start(start_time_msec))
    }

    #[pyo3(signature = (*, finish_time_msec=None))]
    fn on_dataloader_init_end(
        &self,
        py: Python<'_>,
        finish_time_msec: Option<f64>,
    ) -> PyResult<()> {
        end(py, self.training.on_dataloader_init_end(finish_time_msec))
    }

    #[pyo3(signature = (*, start_time_msec=None))]
    fn on_optimizer_init_start<'py>(
        &self,
        py: Python<'py>,
        start_time_msec: Option<f64>,
    ) -> PyResult<Option<Bound<'py, Span>>> {
        self.start(py, |t| t.on_optimizer_init_start(start_time_msec))
    }

    #[pyo3(signature = (*, finish_time_msec=None))]
    fn on_optimizer_init_end(&self, py: Python<'_>, finish_time_msec: Option<f64>) -> PyResult<()> {
        end(py, self.training.on_optimizer_init_end(finish_time_msec))
    }

    #[pyo3(signature = (*, start_time_msec=None))]
    fn on_load_checkpoint_start<'py>(
        &self,
        py: Python<'py>,
        start_time_msec: Option<f64>,
    ) -> PyResult<Option<Bound<'py, Span>>> {
        self.start(py, |t| t.on_load_checkpoint_start(start_time_msec))
    }

    #[pyo3(signature = (*, finish_time_msec=None))]
    fn on_load_checkpoint_end(
        &self,
        py: Python<'_>,
        finish_time_msec: Option<f64>,
    ) -> PyResult<()> {
        end(py, self.training.on_load_checkpoint_end(finish_time_msec))
    }

    #[pyo3(signature = (*, train_iterations_start, train_samples_start=None, train_iterations_target=None, train_samples_target=None, start_time_msec=None))]
    fn on_train_start<'py>(
        &self,
        py: Python<'py>,
        train_iterations_start: i64,
        train_samples_start: Option<i64>,
        train_iterations_target: Option<&Bound<'_, PyAny>>,
        train_samples_target: Option<&Bound<'_, PyAny>>,
        start_time_msec: Option<f64>,
    ) -> PyResult<Option<Bound<'py, Span>>> {
        let start = TrainStart {
            at: When::from(start_time_msec),
            ..train_start(
                train_iterations_start,
                train_samples_start,
                train_iterations_target,
                train_samples_target,
            )?
        };
        self.start(py, |t| t.on_train_start(start))
    }

    #[pyo3(signature = (*, finish_time_msec=None))]
    fn on_train_end(&self, py: Python<'_>, finish_time_msec: Option<f64>) -> PyResult<()> {
        end(py, self.training.on_train_end(finish_time_msec))
    }

    #[pyo3(signature = (*, start_time_msec=None))]
    fn on_training_single_iteration_start<'py>(
        &self,
        py: Python<'py>,
        start_time_msec: Option<f64>,
    ) -> PyResult<Option<Bound<'py, Span>>> {
        self.start(py, |t| {
            t.on_training_single_iteration_start(start_time_msec)
        })
    }

    #[pyo3(signature = (*, finish_time_msec=None))]
    fn on_training_single_iteration_end(
        &self,
        py: Python<'_>,
        finish_time_msec: Option<f64>,
    ) -> PyResult<()> {
        let ended = self
            .training
            .on_training_single_iteration_end(finish_time_msec);
        end(py, ended)
    }

    #[pyo3(signature = (*, start_time_msec=None))]
    fn on_validation_start<'py>(
        &self,
        py: Python<'py>,
        start_time_msec: Option<f64>,
    ) -> PyResult<Option<Bound<'py, Span>>> {
        self.start(py, |t| t.on_validation_start(start_time_msec))
    }

    #[pyo3(signature = (*, finish_time_msec=None))]
    fn on_validation_end(&self, py: Python<'_>, finish_time_msec: Option<f64>) -> PyResult<()> {
        end(py, self.training.on_validation_end(finish_time_msec))
    }

    #[pyo3(signature = (*, start_time_msec=None))]
    fn on_validation_single_iteration_start<'py>(
        &self,
        py: Python<'py>,
        start_time_msec: Option<f64>,
    ) -> PyResult<Option<Bound<'py, Span>>> {
        self.start(py, |t| {
            t.on_validation_single_iteration_start(start_time_msec)
        })
    }

    #[pyo3(signature = (*, finish_time_msec=None))]
    fn on_validation_single_iteration_end(
        &self,
        py: Python<'_>,
        finish_time_msec: Option<f64>,
    ) -> PyResult<()> {
        let ended = self
            .training
            .on_validation_single_iteration_end(finish_time_msec);
        end(py, ended)
    }

    #[pyo3(signature = (*, start_time_msec=None))]
    fn on_testing_start<'py>(
        &self,
        py: Python<'py>,
        start_time_msec: Option<f64>,
    ) -> PyResult<Option<Bound<'py, Span>>> {
        self.start(py, |t| t.on_testing_start(start_time_msec))
    }

    #[pyo3(signature = (*, finish_time_msec=None))]
    fn on_testing_end(&self, py: Python<'_>, finish_time_msec: Option<f64>) -> PyResult<()> {
        end(py, self.training.on_testing_end(finish_time_msec))
    }

    #[pyo3(signature = (*, global_step, start_time_msec=None))]
    fn on_save_checkpoint_start<'py>(
        &self,
        py: Python<'py>,
        global_step: i64,
        start_time_msec: Option<f64>,
    ) -> PyResult<Option<Bound<'py, Span>>> {
        self.start(py, |t| {
            t.on_save_checkpoint_start(global_step, start_time_msec)
        })
    }

    #[pyo3(signature = (*, global_step, time_msec=None))]
    fn on_save_checkpoint_success(
        &self,
        py: Python<'_>,
        global_step: i64,
        time_msec: Option<f64>,
    ) -> PyResult<()> {
        let said = self
            .training
            .on_save_checkpoint_success(global_step, time_msec);
        end(py, said)
    }

    #[pyo3(signature = (*, finish_time_msec=None))]
    fn on_save_checkpoint_end(
        &self,
        py: Python<'_>,
        finish_time_msec: Option<f64>,
    ) -> PyResult<()> {
        end(py, self.training.on_save_checkpoint_end(finish_time_msec))
    }

    /// The application, from the block's start to its end.
    fn application(&self) -> TrainingPhase {
        self.phase(Which::Application)
    }

    fn distributed_init(&self) -> TrainingPhase {
        self.phase(Which::DistributedInit)
    }

    fn model_init(&self) -> TrainingPhase {
        self.phase(Which::ModelInit)
    }

    fn dataloader_init(&self) -> TrainingPhase {
        self.phase(Which::DataLoaderInit)
    }

    fn optimizer_init(&self) -> TrainingPhase {
        self.phase(Which::OptimizerInit)
    }

    fn checkpoint_load(&self) -> TrainingPhase {
        self.phase(Which::CheckpointLoad)
    }

    #[pyo3(signature = (*, train_iterations_start, train_samples_start=None, train_iterations_target=None, train_samples_target=None))]
    fn training_loop(
        &self,
        train_iterations_start: i64,
        train_samples_start: Option<i64>,
        train_iterations_target: Option<&Bound<'_, PyAny>>,
        train_samples_target: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<TrainingPhase> {
        let start = train_start(
            train_iterations_start,
            train_samples_start,
            train_iterations_target,
            train_samples_target,
        )?;
        Ok(self.phase(Which::TrainingLoop(Box::new(start))))
    }

    fn training_iteration(&self) -> TrainingPhase {
        self.phase(Which::TrainingIteration)
    }

    fn validation_loop(&self) -> TrainingPhase {
        self.phase(Which::ValidationLoop)
    }

    fn validation_iteration(&self) -> TrainingPhase {
        self.phase(Which::ValidationIteration)
    }

    fn testing_loop(&self) -> TrainingPhase {
        self.phase(Which::TestingLoop)
    }

    /// Reports success at the block's end, unless that is by an exception or checkpoints are asynchronous.
    #[pyo3(signature = (*, global_step))]
    fn checkpoint_save(&self, global_step: i64) -> TrainingPhase {
        self.phase(Which::CheckpointSave(global_step))
    }
}

impl Training {
    fn phase(&self, which: Which) -> TrainingPhase {
        TrainingPhase {
            training: self.training.clone(),
            which,
            open: Mutex::new(false),
        }
    }
}

fn train_start(
    iterations_start: i64,
    samples_start: Option<i64>,
    iterations_target: Option<&Bound<'_, PyAny>>,
    samples_target: Option<&Bound<'_, PyAny>>,
) -> PyResult<TrainStart> {
    let target = |any: Option<&Bound<'_, PyAny>>| match any {
        Some(any) => setting(any, plain::<i64>),
        None => Ok(None),
    };
    Ok(TrainStart {
        train_iterations_start: iterations_start,
        train_samples_start: samples_start,
        train_iterations_target: target(iterations_target)?,
        train_samples_target: target(samples_target)?,
        at: When::Now,
    })
}

/// A phase of a training job: a context manager, which gives the span, and a decorator.
#[pyclass(module = "warptrace", frozen)]
struct TrainingPhase {
    training: training::Training,
    which: Which,
    /// Its start gave a span.
    open: Mutex<bool>,
}

enum Which {
    Application,
    DistributedInit,
    ModelInit,
    DataLoaderInit,
    OptimizerInit,
    CheckpointLoad,
    TrainingLoop(Box<TrainStart>),
    TrainingIteration,
    ValidationLoop,
    ValidationIteration,
    TestingLoop,
    CheckpointSave(i64),
}

#[pymethods]
impl TrainingPhase {
    fn __enter__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, Span>>> {
        let now = When::Now;
        let span = start_of(py, &self.training, |t| match &self.which {
            Which::Application => t.on_app_start(now),
            Which::DistributedInit => t.on_distributed_init_start(now),
            Which::ModelInit => t.on_model_init_start(now),
            Which::DataLoaderInit => t.on_dataloader_init_start(now),
            Which::OptimizerInit => t.on_optimizer_init_start(now),
            Which::CheckpointLoad => t.on_load_checkpoint_start(now),
            Which::TrainingLoop(start) => t.on_train_start((**start).clone()),
            Which::TrainingIteration => t.on_training_single_iteration_start(now),
            Which::ValidationLoop => t.on_validation_start(now),
            Which::ValidationIteration => t.on_validation_single_iteration_start(now),
            Which::TestingLoop => t.on_testing_start(now),
            Which::CheckpointSave(step) => t.on_save_checkpoint_start(*step, now),
        })?;
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = span.is_some();
        Ok(span)
    }

    #[pyo3(signature = (kind=None, raised=None, traceback=None))]
    fn __exit__(
        &self,
        py: Python<'_>,
        kind: Option<&Bound<'_, PyAny>>,
        raised: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let _ = (kind, traceback);
        // What did not start is not ended: that would end another's.
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        if !open {
            return Ok(false);
        }
        let ended = self.end(py, raised.is_some());
        match raised {
            None => end(py, ended).map(|()| false),
            // The program's own exception goes on, whatever becomes of its phase.
            Some(_) => Ok(false),
        }
    }

    /// Decorates a function: a phase around each call.
    fn __call__<'py>(
        slf: &Bound<'py, Self>,
        function: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let module = slf.py().import("warptrace.training")?;
        module.call_method1("_decorate", (function, slf))
    }
}

impl TrainingPhase {
    fn end(&self, py: Python<'_>, failed: bool) -> Result<(), sdk::Error> {
        let (t, now) = (&self.training, When::Now);
        match &self.which {
            Which::Application => py.detach(|| t.on_app_end(now)),
            Which::DistributedInit => t.on_distributed_init_end(now),
            Which::ModelInit => t.on_model_init_end(now),
            Which::DataLoaderInit => t.on_dataloader_init_end(now),
            Which::OptimizerInit => t.on_optimizer_init_end(now),
            Which::CheckpointLoad => t.on_load_checkpoint_end(now),
            Which::TrainingLoop(_) => t.on_train_end(now),
            Which::TrainingIteration => t.on_training_single_iteration_end(now),
            Which::ValidationLoop => t.on_validation_end(now),
            Which::ValidationIteration => t.on_validation_single_iteration_end(now),
            Which::TestingLoop => t.on_testing_end(now),
            Which::CheckpointSave(step) => {
                let strategy = t.config().map(|c| c.save_checkpoint_strategy);
                let said = match strategy {
                    Some(CheckpointStrategy::Sync) if !failed => {
                        t.on_save_checkpoint_success(*step, now)
                    }
                    _ => Ok(()),
                };
                let ended = t.on_save_checkpoint_end(now);
                said.and(ended)
            }
        }
    }
}
