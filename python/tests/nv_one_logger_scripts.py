"""Programs that run against nv-one-logger and against warptrace's names for it, with equal results.

Each is the source of a function; `p` is the package's root, imported from as `mod("api.config")`. It returns what
both must give.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = ""


def mod(path: str) -> Any:
    return importlib.import_module(f"{ROOT}.{path}")


def marked(method: Any) -> Any:
    """What `typing.override` does from Python 3.12 on; the original asks for it."""
    method.__override__ = True
    return method


def configured(exporters: list[Any], **fields: Any) -> Any:
    """A recorder that is the process's own."""
    config = mod("api.config").OneLoggerConfig(
        application_name="app", session_tag_or_fn="s", world_size_or_fn=2, **fields
    )
    recorder = mod("recorder.default_recorder").DefaultRecorder(exporters)
    mod("api.one_logger_provider").OneLoggerProvider.instance().configure(config, recorder)
    return recorder


def trained(exporters: list[Any], config: dict[str, Any] | None = None, **training: Any) -> Any:
    """The process's own training telemetry; all spans are exported."""
    api = mod("training_telemetry.api")
    modes = mod("recorder.default_recorder").ExportCustomizationMode
    fields = {"perf_tag_or_fn": "p", "global_batch_size_or_fn": 8, "log_every_n_train_iterations": 2, **training}
    provider = api.TrainingTelemetryProvider.instance()
    base = mod("api.config").OneLoggerConfig(
        application_name="app",
        session_tag_or_fn="s",
        world_size_or_fn=2,
        telemetry_config=api.TrainingTelemetryConfig(**fields),
        **(config or {}),
    )
    provider.with_base_config(base).with_export_customization(modes.BLACKLIST_SPANS, ["(none)"])
    for exporter in exporters:
        provider.with_exporter(exporter)
    provider.configure_provider()
    return api


def keeper() -> Any:
    """An exporter that keeps a line for each call."""

    class Keeper(mod("exporter.exporter").BaseExporter):  # type: ignore[misc]
        @marked
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []
            self.failing = 0

        def keep(self, line: str) -> None:
            if self.failing > 0:
                self.failing -= 1
                raise ValueError("not now")
            self.lines.append(line)

        @marked
        def export_start(self, span: Any) -> None:
            parent = span.parent_span
            self.keep(f"start {span.name_str} in {parent.name_str if parent else None}")

        @marked
        def export_stop(self, span: Any) -> None:
            self.keep(f"stop {span.name_str} {sorted(map(str, span.attributes))}")

        @marked
        def export_event(self, event: Any, span: Any) -> None:
            kind = type(event.attributes).__name__
            self.keep(f"event {event.name_str} of {span.name_str}: {kind} {sorted(map(str, event.attributes))}")

        @marked
        def export_error(self, event: Any, span: Any) -> None:
            # A text of the package's own is in its own words.
            message = event.error_message if event.exception_type else "(its own)"
            self.keep(f"error {message!r} {event.exception_type} of {span.name_str}")

        @marked
        def export_telemetry_data_error(self, error: Any) -> None:
            self.keep(f"data error {error.error_type.value}")

    return Keeper()


def nesting_by_tasks() -> Any:
    import asyncio

    kept = keeper()
    configured([kept])
    timed_span = mod("api.timed_span").timed_span

    async def work(name: str) -> None:
        with timed_span(name):
            await asyncio.sleep(0)
            with timed_span(name + ".inner"):
                await asyncio.sleep(0)

    async def main() -> None:
        with timed_span("main"):
            await asyncio.gather(work("a"), work("b"))

    asyncio.run(main())
    return sorted(line for line in kept.lines if line.startswith("start"))


def decorators_and_exceptions() -> Any:
    kept = keeper()
    configured([kept])
    timed_span = mod("api.timed_span").timed_span

    @timed_span("f")
    def f(x: int) -> int:
        if x > 1:
            raise KeyError("x")
        return x

    results = [f(1)]
    try:
        with timed_span("outer"):
            f(2)
    except KeyError as e:
        results.append(str(e))
    return results, kept.lines


def failing_exporter_is_left_out() -> Any:
    bad, good = keeper(), keeper()
    recorder = configured([bad, good])
    recorder.stop(recorder.start("first"))
    bad.failing = 6
    for name in "abcdef":
        recorder.stop(recorder.start(name))
    recorder.close()
    return bad.lines, len(good.lines), bad.closed, good.closed


def filters_by_name() -> Any:
    kept = keeper()
    modes = mod("recorder.default_recorder")
    config = mod("api.config").OneLoggerConfig(application_name="app", session_tag_or_fn="s", world_size_or_fn=2)
    recorder = modes.DefaultRecorder([kept], modes.ExportCustomizationMode.WHITELIST_SPANS, ["b"])
    mod("api.one_logger_provider").OneLoggerProvider.instance().configure(config, recorder)
    event = mod("core.event").Event
    a = recorder.start("a")
    b = recorder.start("b")
    recorder.event(a, event.create("ea"))
    recorder.event(b, event.create("eb"))
    recorder.stop(b)
    recorder.stop(a)
    return kept.lines, a.active, [e.name_str for e in a.events]


def explicit_times_and_late_attributes() -> Any:
    kept = keeper()
    recorder = configured([kept])
    time = mod("core.time").TracingTimestamp
    now = time.now()
    at = time(now.seconds_since_epoch - 5.0, now.perf_counter_seconds - 5.0)
    later = time(now.seconds_since_epoch - 2.5, now.perf_counter_seconds - 2.5)
    attributes = mod("core.attributes").Attributes
    span = recorder.start("a", attributes({"x": 1}), attributes({"why": "w"}), at)
    span.add_attribute("y", [1, 2])
    span.add_attributes(attributes({"z": "s"}))
    recorder.stop(span, attributes({"done": True}), later)
    span.add_attribute("after", 1)
    return {
        "duration": span.duration_msec(),
        "attributes": {k: a.value for k, a in span.attributes.items()},
        "updated": {k: a.value for k, a in span.updated_attributes.items()},
        "start": {k: a.value for k, a in span.start_event.attributes.items() if k != "timestamp_msec"},
        "stop": {k: a.value for k, a in span.stop_event.attributes.items() if k != "timestamp_msec"},
        "milliseconds": span.start_event.attributes["timestamp_msec"].value == at.milliseconds_since_epoch,
        "uuid": span.id.version,
        "events": [e.name_str for e in span.events],
    }


def a_recorder_of_ones_own() -> Any:
    calls = []

    class Mine(mod("api.recorder").Recorder):  # type: ignore[misc]
        @marked
        def start(
            self,
            span_name: Any,
            span_attributes: Any = None,
            start_event_attributes: Any = None,
            start_time: Any = None,
            parent_span: Any = None,
        ) -> Any:
            calls.append(f"start {span_name}")
            return mod("core.span").Span.create(span_name, parent_span, span_attributes)

        @marked
        def stop(self, span: Any, stop_event_attributes: Any = None, stop_time: Any = None) -> None:
            calls.append(f"stop {span.name_str}")
            span.stop(stop_event_attributes, stop_time)

        @marked
        def event(self, span: Any, event: Any) -> Any:
            return span.add_event(event)

        @marked
        def error(self, span: Any, error_message: str, exception: Any = None) -> Any:
            calls.append(f"error {error_message}{type(exception).__name__}")
            return span.add_event(mod("core.event").ErrorEvent.create(error_message, exception))

        @marked
        def telemetry_data_error(self, error_message: str, attributes: Any = None) -> None:
            calls.append("data error")

        @marked
        def close(self) -> None:
            calls.append("close")

    config = mod("api.config").OneLoggerConfig(application_name="app", session_tag_or_fn="s", world_size_or_fn=2)
    mod("api.one_logger_provider").OneLoggerProvider.instance().configure(config, Mine())
    timed = mod("api.timed_span")
    try:
        with timed.timed_span("a"):
            raise ValueError("v")
    except ValueError:
        pass
    return calls, type(timed.get_recorder()).__name__


def files_of_json_lines() -> Any:
    path = Path("deep/er/spans.jsonl")
    exporter = mod("exporter").FileExporter(path)
    recorder = configured([exporter])
    attributes = mod("core.attributes").Attributes
    a = recorder.start("a", attributes({"u": "é\n", "l": ["x"], "f": 0.1, "big": 2**53 + 1}))
    b = recorder.start("b")
    recorder.error(b, "oops", ValueError("bad"))
    recorder.stop(b)
    recorder.stop(a)
    recorder.start("left open")
    recorder.close()
    text = path.read_text()
    records = [json.loads(line) for line in text.splitlines()]
    return (
        [(r["type"], r["count"], sorted(r)) for r in records],
        [r.get("attributes", {}).get("u") for r in records],
        text.isascii(),
        all(line == json.dumps(json.loads(line), separators=(",", ":")) for line in text.splitlines()),
    )


def lines_of_a_logger() -> Any:
    import logging

    lines: list[str] = []
    logger = logging.getLogger("lines")
    logger.setLevel(logging.INFO)
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    exporter = mod("exporter").LoggerExporter(logger)
    recorder = configured([exporter])
    attributes = mod("core.attributes").Attributes
    recorder.stop(recorder.start("a", attributes({"n": [1, 2], "t": "text", "nothing": None})))
    recorder.close()
    read = [exporter.deserialize_log(line) for line in lines]
    return [(r["type"], r["name"], r["attributes"]["n"], r["attributes"]["t"], sorted(r)) for r in read]


def a_training_job() -> Any:
    kept = keeper()
    api = trained([kept], flops_per_sample_or_fn=10, seq_length_or_fn=lambda: 4)
    contexts = mod("training_telemetry.api.context")
    with contexts.application():
        with contexts.model_init(), contexts.optimizer_init():
            pass
        with api.training_loop(train_iterations_start=0, train_iterations_target_or_fn=4):
            for step in range(4):
                with api.training_iteration():
                    pass
                if step == 1:
                    with contexts.validation_loop(), contexts.validation_iteration():
                        pass
            with api.checkpoint_save(global_step=4):
                pass
            try:
                with api.checkpoint_save(global_step=5):
                    raise OSError("disk full")
            except OSError:
                pass
        with contexts.testing_loop():
            pass
    return kept.lines


def training_numbers() -> Any:
    import time

    # Both clocks stand still, and move when they are told to.
    clocks = [1750000000.0, 1000.0]
    time.time = lambda: clocks[0]
    time.perf_counter = lambda: clocks[1]

    def advance(secs: float) -> None:
        clocks[0] += secs
        clocks[1] += secs

    numbers = {}

    class Numbers(mod("exporter.exporter").BaseExporter):  # type: ignore[misc]
        @marked
        def export_event(self, event: Any, span: Any) -> None:
            known = ("node_name", "one_logger_training_telemetry_version")
            numbers.setdefault(event.name_str, []).append(
                {str(k): a.value for k, a in event.attributes.items() if k not in known}
            )

    api = trained(
        [Numbers()],
        is_log_throughput_enabled_or_fn=True,
        flops_per_sample_or_fn=lambda: 3 * 10**12,
        seq_length_or_fn=16,
        train_iterations_target_or_fn=100,
        train_samples_target_or_fn=lambda: 800,
        custom_metadata={"flag": True, "l": [1, 2]},
    )
    api.on_app_start(start_time_msec=1749999990000)
    api.on_train_start(train_iterations_start=3, train_samples_start=0)
    for secs in (0.1, 0.3, 0.7, 0.2):
        api.on_training_single_iteration_start()
        advance(secs)
        api.on_training_single_iteration_end()
    for step in (7, 8):
        api.on_save_checkpoint_start(step)
        advance(0.25 * step)
        api.on_save_checkpoint_success(step, time_msec=1750000001000)
        api.on_save_checkpoint_end()
    api.on_train_end()
    api.on_app_end()
    return numbers


def misuse_of_training() -> Any:
    kept = keeper()
    api = trained([kept])
    said = []

    def attempt(call: Callable[[], Any]) -> None:
        try:
            said.append(call() is not None)
        except Exception as e:
            said.append(type(e).__name__)

    attempt(lambda: api.on_train_end())
    attempt(lambda: api.on_app_start())
    attempt(lambda: api.on_app_start())
    attempt(lambda: api.on_training_single_iteration_end())
    attempt(lambda: api.on_train_start(-1))
    attempt(lambda: api.on_train_start(0, start_time_msec=1000.0))
    iteration = api.StandardTrainingJobSpanName.TRAINING_SINGLE_ITERATION
    attempt(lambda: mod("api.timed_span").timed_span(iteration).__enter__())
    attempt(lambda: api.on_app_end())
    attempt(lambda: api.on_app_start())
    return said, kept.lines


def a_rank_that_is_off() -> Any:
    kept = keeper()
    api = trained([kept], config={"enable_for_current_rank": False})
    said = [api.on_app_start(), api.on_train_start(0), api.on_app_end()]
    with api.training_loop(0) as span:
        said.append(span)
    provider = mod("api.one_logger_provider").OneLoggerProvider.instance()
    return said, kept.lines, kept.ready, provider.one_logger_ready, provider.one_logger_enabled


def quiet_goes_quiet() -> Any:
    kept = keeper()
    strategies = mod("api.config").OneLoggerErrorHandlingStrategy
    recorder = configured([kept], error_handling_strategy=strategies.DISABLE_QUIETLY_AND_REPORT_METRIC_ERROR)
    span = recorder.start("a")
    recorder.stop(span)
    said = [recorder.stop(span), recorder.start("b")]
    return said, kept.lines, mod("api.one_logger_provider").OneLoggerProvider.instance().one_logger_enabled


def exporters_by_configuration() -> Any:
    Path("mine.json").write_text(
        json.dumps(
            {
                "exporters": [
                    {
                        "class_name": "nv_one_logger.exporter.file_exporter.FileExporter",
                        "config": {"file_path": "out/spans.jsonl"},
                    }
                ]
            }
        )
    )
    api = mod("training_telemetry.api")
    fields = {"perf_tag_or_fn": "p", "global_batch_size_or_fn": 8}
    base = mod("api.config").OneLoggerConfig(
        application_name="app",
        session_tag_or_fn="s",
        world_size_or_fn=2,
        telemetry_config=api.TrainingTelemetryConfig(**fields),
    )
    provider = api.TrainingTelemetryProvider.instance().with_base_config(base)
    provider.with_export_config(config_file_path="mine.json").configure_provider()
    with api.application():
        pass
    records = [json.loads(line) for line in Path("out/spans.jsonl").read_text().splitlines()]
    return [(r["type"], r.get("name") or r["event"]["name"]) for r in records]


def typed_attributes() -> Any:
    attributes = mod("training_telemetry.api.attributes")
    strategy = mod("training_telemetry.api.checkpoint").CheckPointStrategy
    error = mod("core.exceptions").OneLoggerError
    loop = attributes.TrainingLoopAttributes.create(1, 2, train_iterations_target=9)
    saved = attributes.CheckpointSaveSpanAttributes.create(strategy.ASYNC, 5, 1)
    first = attributes.OneLoggerInitializationAttributes.create(
        4, "v", True, "s", False, "1.0.0", "host", 0, custom_metadata={"k": 1, "l": [1]}
    )
    refused = []
    for wrong in (
        lambda: attributes.TrainingLoopAttributes.create(None, 2),
        lambda: attributes.TestingMetricsUpdateAttributes.create(1, None),
    ):
        try:
            wrong()
            refused.append(False)
        except error:
            refused.append(True)
    update = attributes.ValidationMetricsUpdateAttributes.create(
        current_iteration=1, interval=2, avg_iteration_time_sec=0.5
    )
    return (
        loop.to_json(),
        loop.train_iterations_target,
        loop.train_tokens_target,
        saved.checkpoint_strategy is strategy.ASYNC,
        saved.to_json(),
        first.custom_metadata,
        first.world_size,
        update.avg_iteration_time_sec,
        update.max_iteration_time_sec,
        refused,
        type(attributes.TrainingLoopAttributes.merge(loop, saved)).__name__,
    )


def json_and_back() -> Any:
    events, spans, times = mod("core.event"), mod("core.span"), mod("core.time")
    at = times.TracingTimestamp(1.5, 2.5)

    def attributes() -> Any:
        return mod("core.attributes").Attributes({"a": [1.5], "s": "x"})

    event = events.Event("e", at, attributes())
    error = events.ErrorEvent(at, "m", "ValueError", "bad", "trace")
    data = events.TelemetryDataError(at, events.TelemetryDataError.ErrorType.NO_TELEMETRY_DATA, "m")
    span = spans.Span.create("s", span_attributes=attributes(), start_time=at)
    span.add_event(event)
    read = spans.Span.from_json({**span.to_json(), "id": "abc"})
    return (
        event == events.Event.from_json(event.to_json()),
        [events.Event.from_json(e.to_json()).to_json() for e in (event, error, data)],
        [type(events.Event.from_json(e.to_json())).__name__ for e in (event, error, data)],
        events.TelemetryDataError.from_json(data.to_json()).to_json(),
        (read.name_str, read.id, read.active, read.attributes.to_json(), [e.name_str for e in read.events]),
        times.TracingTimestamp.from_json(at.to_json()) == at,
        hash(at) == hash(times.TracingTimestamp(1.5, 2.5)),
    )


def timers() -> Any:
    timer = mod("core.time").Timer()
    error = mod("core.exceptions").OneLoggerError
    said: list[Any] = [timer.running]
    timer.start()
    said.append(timer.running)
    try:
        timer.start()
    except error:
        said.append("running already")
    said.append(timer.stop() >= 0.0)
    try:
        timer.stop()
    except error:
        said.append("not running")
    timer.reset(start=True)
    said.append(timer.running)
    said.append(timer.stop(reset=True) >= 0.0)
    return said


def configuration_objects() -> Any:
    config = mod("api.config")
    made = config.OneLoggerConfig(
        application_name="app",
        session_tag_or_fn=lambda: "tag",
        world_size_or_fn=lambda: 4,
        custom_metadata={"b": True, "i": 1, "f": 1.0, "l": ["x"]},
        logger_config={"log_level": "ERROR"},
        error_handling_strategy="propagate_exceptions",
    )
    refused = {}
    for name, fields in {
        "level": {"logger_config": {"log_level": "LOUD"}},
        "telemetry": {"telemetry_config": {"app_type": "training"}},
        "members": {"telemetry_config": types.SimpleNamespace(app_type="training")},
        "none": {"application_name": None},
    }.items():
        given = {"application_name": "app", "session_tag_or_fn": "s", "world_size_or_fn": 1, **fields}
        try:
            config.OneLoggerConfig(**given)
        except Exception as e:
            refused[name] = type(e).__name__
    dumped = made.model_dump(include={"application_name", "custom_metadata", "logger_config"})
    return (made.session_tag, made.world_size, dumped, made.error_handling_strategy.name, refused)


def hooked_trainers() -> Any:
    sys.path.insert(0, str(Path(__file__).parent / "conformance/spans"))
    stubs = importlib.import_module("stubs")
    stubs.install()
    kept = keeper()
    api = trained([kept])
    integration = mod("training_telemetry.integration.pytorch_lightning")

    class Trainer(stubs.Trainer):  # type: ignore[misc]
        def save_checkpoint(self, filepath: Any, weights_only: bool = False, storage_options: Any = None) -> None:
            if filepath == "full":
                raise OSError("disk full")

    hooked, callback = integration.hook_trainer_cls(Trainer, api.TrainingTelemetryProvider.instance())
    other = stubs.Callback()
    trainer = hooked(callbacks=[other], global_step=5)
    said: list[Any] = [hooked is Trainer, trainer.callbacks == [callback, other]]
    said.append(trainer.nv_one_logger_callback is callback)
    try:
        hooked(callbacks=(other,))
    except ValueError:
        said.append("callbacks: a list")
    trainer.save_checkpoint("here")
    try:
        trainer.save_checkpoint("full")
    except OSError:
        said.append("full")
    callback.on_app_end()
    return said, kept.lines


PROGRAMS = [
    a_rank_that_is_off,
    a_recorder_of_ones_own,
    a_training_job,
    configuration_objects,
    decorators_and_exceptions,
    explicit_times_and_late_attributes,
    exporters_by_configuration,
    failing_exporter_is_left_out,
    files_of_json_lines,
    filters_by_name,
    hooked_trainers,
    json_and_back,
    lines_of_a_logger,
    misuse_of_training,
    nesting_by_tasks,
    quiet_goes_quiet,
    timers,
    training_numbers,
    typed_attributes,
]

if __name__ == "__main__":
    import logging

    logging.getLogger().addHandler(logging.NullHandler())
    ROOT = sys.argv[1]
    print(json.dumps(globals()[sys.argv[2]](), default=str))
