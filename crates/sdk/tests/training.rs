//! Training telemetry as a job uses it, beyond what the conformance vectors fix.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use warptrace_model::{SpanEvent, SpanRecord, Value};
use warptrace_sdk::span::{
    Attributes, Clock, EVENTS_KEPT, Error, Event, ExportError, Exporter, Filter, MemoryExporter,
    Recorder, Span, Start, Strategy, Timestamp,
};
use warptrace_sdk::training::derived::{Derived, Running};
use warptrace_sdk::training::{
    CheckpointStrategy, Job, Setting, TrainStart, Training, TrainingConfig, When,
};

/// Stands still but for `advance`.
#[derive(Debug, Clone)]
struct Standing(Arc<Mutex<f64>>);

impl Standing {
    fn new() -> Standing {
        Standing(Arc::new(Mutex::new(0.0)))
    }

    fn advance(&self, secs: f64) {
        *self.0.lock().unwrap() += secs;
    }
}

impl Clock for Standing {
    fn now(&self) -> Timestamp {
        let secs = *self.0.lock().unwrap();
        Timestamp::from_secs(1_750_000_000.0 + secs, 1000.0 + secs)
    }
}

struct Run {
    clock: Standing,
    kept: MemoryExporter,
    training: Training,
}

fn run(config: TrainingConfig) -> Run {
    run_with(Some(config), |job| job)
}

fn run_with(config: Option<TrainingConfig>, change: impl FnOnce(Job) -> Job) -> Run {
    let clock = Standing::new();
    let kept = MemoryExporter::default();
    let settings = Recorder::builder()
        .clock(Arc::new(clock.clone()))
        .filter(Filter::All)
        .strategy(Strategy::Propagate)
        .direct_exporter("memory", Box::new(kept.clone()));
    let job = change(Job {
        rank: Some(3),
        ..Job::new("pretrain", 4, "run-7")
    });
    let training = Training::new(settings, job, config).unwrap();
    Run {
        clock,
        kept,
        training,
    }
}

fn config() -> TrainingConfig {
    TrainingConfig {
        log_every_n_train_iterations: 1,
        ..TrainingConfig::new("perf", 32)
    }
}

fn with_throughput() -> TrainingConfig {
    TrainingConfig {
        is_log_throughput_enabled: true.into(),
        flops_per_sample: Some(1_000_000_000_000.into()),
        train_iterations_target: Some(10.into()),
        train_samples_target: Some(320.into()),
        ..config()
    }
}

impl Run {
    fn iteration(&self, secs: f64) {
        let now = When::Now;
        self.training
            .on_training_single_iteration_start(now)
            .unwrap();
        self.clock.advance(secs);
        self.training.on_training_single_iteration_end(now).unwrap();
    }

    #[track_caller]
    fn span(&self, name: &str) -> SpanRecord {
        let found = self.kept.finished().into_iter().find(|s| &*s.name == name);
        found.unwrap_or_else(|| panic!("no span {name}"))
    }
}

#[track_caller]
fn number(event: &SpanEvent, name: &str) -> f64 {
    match event.attributes.get(name) {
        Some(Value::Int(n)) => n.to_f64(),
        Some(Value::Float(x)) => *x,
        other => panic!("{name} is {other:?}"),
    }
}

#[track_caller]
fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> &'static str {
    result.unwrap_err().code()
}

#[test]
fn the_start_says_what_the_job_is_and_how_it_trains() {
    let run = run(TrainingConfig {
        seq_length: Some(128.into()),
        ..config()
    });
    run.training.on_app_start(When::Now).unwrap();
    run.training.on_app_end(When::Now).unwrap();
    let application = run.span("application");
    let job = &application.events[0];
    assert_eq!(&*job.name, "one_logger_initialization");
    let text = |name: &str| job.attributes.get(name).and_then(Value::as_str);
    assert_eq!(text("application_name"), Some("pretrain"));
    assert_eq!(text("app_type"), Some("training"));
    assert_eq!(number(job, "world_size"), 4.0);
    assert_eq!(number(job, "rank"), 3.0);
    let config = &application.events[1];
    assert_eq!(&*config.name, "update_training_telemetry_config");
    assert_eq!(number(config, "seq_length"), 128.0);
}

#[test]
fn throughput_of_single_iterations_stands_beside_that_of_the_mean() {
    let run = run(with_throughput());
    run.training.on_train_start(TrainStart::default()).unwrap();
    run.iteration(0.5);
    run.iteration(0.25);
    run.training.on_train_end(When::Now).unwrap();
    let training_loop = run.span("training_loop");
    let update = &training_loop.events[0];
    // 32 samples of 1 TFLOP in 0.25 s on four ranks; the mean is of two iterations in 0.75 s.
    assert_eq!(number(update, "train_iteration_throughput_per_gpu"), 32.0);
    assert_eq!(
        number(update, "train_iteration_throughput_per_gpu_max"),
        32.0
    );
    assert_eq!(
        number(update, "train_iteration_throughput_per_gpu_min"),
        16.0
    );
    assert_eq!(number(update, "train_throughput_per_gpu"), 64.0 / 3.0);
    assert_eq!(number(update, "train_throughput_per_gpu_max"), 64.0 / 3.0);
}

#[test]
fn operations_of_a_long_job_are_counted_exactly_beyond_64_bits() {
    let run = run(TrainingConfig {
        flops_per_sample: Some(i64::MAX.into()),
        ..with_throughput()
    });
    run.training.on_train_start(TrainStart::default()).unwrap();
    for _ in 0..3 {
        run.iteration(1.0);
    }
    run.training.on_train_end(When::Now).unwrap();
    let training_loop = run.span("training_loop");
    let total = training_loop.events[1].attributes.get("total_flops");
    let exact = 3 * 32 * i128::from(i64::MAX);
    assert_eq!(total.unwrap().as_int().unwrap().to_i128(), Some(exact));
}

#[test]
fn a_window_that_failed_is_not_in_the_average() {
    let run = run(config());
    run.training.on_validation_start(When::Now).unwrap();
    let millis = |secs: f64| When::UnixMillis((1_750_000_000.0 + secs) * 1000.0);
    let start = |at| run.training.on_validation_single_iteration_start(at);
    let end = |at| run.training.on_validation_single_iteration_end(at);
    let span = start(millis(2.0)).unwrap().unwrap();
    assert_eq!(code(end(millis(1.0))), "timer_stop_before_start");
    run.training
        .recorder()
        .stop(&span, Default::default())
        .unwrap();
    for secs in [0.5, 0.25] {
        start(When::Now).unwrap();
        run.clock.advance(secs);
        end(When::Now).unwrap();
    }
    run.training.on_validation_end(When::Now).unwrap();
    let update = &run.span("validation_loop").events[0];
    assert_eq!(number(update, "avg_iteration_time_sec"), 0.375);
    assert_eq!(number(update, "min_iteration_time_sec"), 0.25);
}

#[test]
fn a_checkpoint_that_is_not_measured_is_a_span_all_the_same() {
    let run = run(TrainingConfig {
        is_save_checkpoint_enabled: false.into(),
        ..config()
    });
    for _ in 0..2 {
        let checkpoint = run.training.checkpoint_save(7);
        assert!(checkpoint.span().is_some());
        checkpoint.saved().unwrap();
    }
    let saved: Vec<_> = run.kept.finished();
    assert_eq!(saved.len(), 2);
    assert_eq!(saved[1].events, []);
    let attempts = saved[1].attributes.get("save_checkpoint_attempt_count");
    assert_eq!(attempts, Some(&Value::from(2_i64)));
}

#[test]
fn a_checkpoint_that_is_left_by_an_error_has_not_succeeded() {
    let run = run(config());
    let save = |fails: bool| -> Result<(), std::fmt::Error> {
        let checkpoint = run.training.checkpoint_save(1);
        run.clock.advance(1.0);
        if fails {
            return Err(std::fmt::Error);
        }
        checkpoint.saved().unwrap();
        Ok(())
    };
    assert!(save(true).is_err());
    assert!(save(false).is_ok());
    let names = |span: &SpanRecord| -> Vec<String> {
        span.events.iter().map(|e| e.name.to_string()).collect()
    };
    let saved = run.kept.finished();
    assert_eq!(names(&saved[0]), ["sync_checkpoint_metrics_update"]);
    assert_eq!(
        names(&saved[1]),
        ["save_checkpoint_success", "sync_checkpoint_metrics_update"]
    );
}

#[test]
fn a_phase_that_could_not_start_does_not_end_the_one_that_is_there() {
    let run = run(config());
    let outer = run.training.validation_loop();
    drop(run.training.validation_loop());
    assert!(outer.span().unwrap().is_active());
    outer.end().unwrap();
    assert_eq!(run.kept.finished().len(), 1);
}

#[test]
fn a_configuration_may_come_before_the_application_and_only_once() {
    let run = run_with(None, |job| job);
    assert_eq!(
        code(run.training.on_train_start(TrainStart::default())),
        "training_config_missing"
    );
    run.training.set_config(config()).unwrap();
    assert_eq!(
        code(run.training.set_config(config())),
        "training_config_already_set"
    );
    run.training.on_app_start(When::Now).unwrap();
    run.training.on_app_end(When::Now).unwrap();
    assert_eq!(run.span("application").events.len(), 2);
}

#[test]
fn what_cannot_be_a_job_is_refused_at_once() {
    let refused = |job: Job, config: TrainingConfig| {
        code(Training::new(Recorder::builder(), job, Some(config)))
    };
    let job = || Job::new("a", 1, "");
    let cases = [
        (Job::new(" ", 1, ""), config(), "application_name_empty"),
        (Job::new("a", 0, ""), config(), "world_size_not_positive"),
        (
            job(),
            TrainingConfig::new("p", 0),
            "global_batch_size_not_positive",
        ),
        (
            job(),
            TrainingConfig {
                log_every_n_train_iterations: 0,
                ..config()
            },
            "log_every_n_not_positive",
        ),
        (
            job(),
            TrainingConfig {
                flops_per_sample: None,
                ..with_throughput()
            },
            "flops_per_sample_required",
        ),
    ];
    for (job, config, wanted) in cases {
        assert_eq!(refused(job, config), wanted);
    }
}

#[test]
fn settings_are_asked_each_time_and_their_failure_is_an_error_of_the_call() {
    let batch = Arc::new(AtomicI64::new(8));
    let asked = Arc::clone(&batch);
    let run = run(TrainingConfig {
        global_batch_size: Setting::computed(move || match asked.load(Ordering::Relaxed) {
            0 => Err(Error::rule("no_batch", "there is none")),
            size => Ok(size),
        }),
        ..config()
    });
    run.training.on_train_start(TrainStart::default()).unwrap();
    run.iteration(1.0);
    batch.store(16, Ordering::Relaxed);
    run.iteration(1.0);
    batch.store(0, Ordering::Relaxed);
    run.training
        .on_training_single_iteration_start(When::Now)
        .unwrap();
    let ended = run.training.on_training_single_iteration_end(When::Now);
    assert_eq!(code(ended), "no_batch");
    batch.store(16, Ordering::Relaxed);
    run.training.on_app_start(When::Now).unwrap();
    run.training.on_app_end(When::Now).unwrap();
    let update = &run.span("training_loop").events[0];
    assert_eq!(number(update, "num_train_samples"), 24.0);
}

#[test]
fn times_that_are_given_hold_and_must_be_near() {
    let run = run(config());
    let at = |millis: f64| run.training.on_model_init_start(Some(millis));
    assert_eq!(code(at(1_750_000_700_000.0)), "timestamp_in_future");
    assert_eq!(code(at(1_000.0)), "timestamp_too_old");
    assert_eq!(code(at(f64::NAN)), "timestamp_too_old");
    at(1_749_999_999_000.0).unwrap();
    run.training.on_model_init_end(When::Now).unwrap();
    let span = run.span("model_initialization");
    assert_eq!(span.start.0, 1_749_999_999_000_000_000);
    assert_eq!(
        span.attributes.get("duration_msec"),
        Some(&Value::from(1_000_i64))
    );
}

#[test]
fn a_long_loop_keeps_a_bounded_number_of_its_updates_and_counts_all() {
    let run = run(with_throughput());
    run.training.on_train_start(TrainStart::default()).unwrap();
    for _ in 0..1_000 {
        run.training
            .on_training_single_iteration_start(When::Now)
            .unwrap();
        run.clock.advance(0.5);
        run.training
            .on_training_single_iteration_end(When::Now)
            .unwrap();
    }
    run.training.on_train_end(When::Now).unwrap();
    let training_loop = run.span("training_loop");
    assert_eq!(training_loop.events.len(), EVENTS_KEPT);
    assert_eq!(training_loop.dropped_events, 999 - EVENTS_KEPT as u32);
}

#[test]
fn of_threads_that_start_the_same_thing_one_has_it() {
    let kept = MemoryExporter::default();
    let settings = Recorder::builder()
        .filter(Filter::All)
        .exporter("memory", Box::new(kept.clone()));
    let training = Training::new(settings, Job::new("a", 1, ""), Some(config())).unwrap();
    let won = AtomicI64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..500 {
                    if let Ok(Some(_)) = training.on_model_init_start(When::Now) {
                        won.fetch_add(1, Ordering::Relaxed);
                        training.on_model_init_end(When::Now).unwrap();
                    }
                }
            });
        }
    });
    training.recorder().close(Duration::from_secs(20)).unwrap();
    let won = won.into_inner();
    assert_eq!(kept.finished().len() as i64, won);
    let failed = training.recorder().counts().failed_calls as i64;
    assert_eq!(won + failed, 8 * 500);
}

#[test]
fn an_asynchronous_checkpoint_succeeds_in_the_application() {
    let run = run(TrainingConfig {
        save_checkpoint_strategy: CheckpointStrategy::Async,
        ..config()
    });
    let application = run.training.application();
    run.training.checkpoint_save(5).saved().unwrap();
    run.training
        .on_save_checkpoint_success(5, When::Now)
        .unwrap();
    application.end().unwrap();
    let events = run.span("application").events;
    assert_eq!(&*events.last().unwrap().name, "save_checkpoint_success");
    assert_eq!(run.span("checkpoint_save_async").events.len(), 1);
}

/// Keeps the events that it is given.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<(String, Attributes)>>>);

impl Exporter for Events {
    fn start(&self, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }
    fn stop(&self, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }
    fn event(&self, event: &Event, _: &Span) -> Result<(), ExportError> {
        let kept = (event.name().to_owned(), event.own_attributes().clone());
        self.0.lock().unwrap().push(kept);
        Ok(())
    }
    fn error(&self, _: &Event, _: &Span) -> Result<(), ExportError> {
        Ok(())
    }
    fn data_error(&self, _: &Event) -> Result<(), ExportError> {
        Ok(())
    }
    fn close(&self, _: Duration) -> Result<(), ExportError> {
        Ok(())
    }
}

#[test]
fn many_events_become_few_that_say_what_they_were() {
    let events = Events::default();
    let derived = Derived::new(events.clone())
        .running(Running::of("step", "loss").every(3).as_event("loss"))
        .only(|event, _| event.name() != "step");
    let recorder = Recorder::builder()
        .direct_exporter("events", Box::new(derived))
        .build()
        .unwrap();
    let span = recorder.start(Start::named("training")).unwrap().unwrap();
    let step = |loss: Value| {
        let attributes = Attributes::new().with("loss", loss);
        recorder
            .event(&span, Event::new("step", recorder.now(), attributes))
            .unwrap();
    };
    step(Value::from(4.0));
    step(Value::from(1_i64));
    // Neither is a loss.
    step(Value::from(f64::NAN));
    step(Value::from("high"));
    recorder
        .event(
            &span,
            Event::new("other", recorder.now(), Attributes::new()),
        )
        .unwrap();
    step(Value::from(1.0));
    for _ in 0..3 {
        step(Value::from(10.0));
    }
    let events = events.0.lock().unwrap();
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["other", "loss", "loss"]);
    let of = |at: usize, name: &str| events[at].1.get_float(name).unwrap().unwrap();
    assert_eq!(
        (of(1, "loss_avg"), of(1, "loss_min"), of(1, "loss_max")),
        (2.0, 1.0, 4.0)
    );
    assert_eq!(
        (of(2, "loss_avg"), of(2, "loss_max"), of(2, "count")),
        (6.0, 10.0, 6.0)
    );
}
