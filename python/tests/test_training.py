"""Training telemetry as a Python job uses it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from warptrace import Event, Exporter, MemoryExporter, Span, SpanError
from warptrace.training import SHORT_SPANS, Training, TrainingConfig


class Clock:
    """Stands still but for `advance`."""

    def __init__(self) -> None:
        self.secs = 0.0

    def __call__(self) -> tuple[float, float]:
        return 1_750_000_000.0 + self.secs, 1000.0 + self.secs

    def advance(self, secs: float) -> None:
        self.secs += secs


class Told(Exporter):
    """Keeps what it is told: kind, span, and attributes."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, Any]]] = []

    def start(self, span: Span) -> None:
        self.calls.append(("start", span.name, span.attributes))

    def stop(self, span: Span) -> None:
        self.calls.append(("stop", span.name, span.attributes))

    def event(self, event: Event, span: Span) -> None:
        self.calls.append((event.name, span.name, event.attributes))

    def error(self, event: Event, span: Span) -> None:
        self.calls.append((event.name, span.name, event.attributes))

    def data_error(self, event: Event) -> None:
        self.calls.append((event.name, "", event.attributes))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [attributes for what, _, attributes in self.calls if what == kind]

    def spans(self) -> list[str]:
        return [f"{what} {name}" for what, name, _ in self.calls if what in ("start", "stop")]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> Told:
    return Told()


def config(**fields: Any) -> TrainingConfig:
    return TrainingConfig(**{"perf_tag": "p", "global_batch_size": 32, "log_every_n_train_iterations": 1, **fields})


def job(told: Exporter, clock: Clock, **settings: Any) -> Training:
    settings = {"config": config(), "on_error": "raise", **settings}
    return Training(
        [told],
        application_name="pretrain",
        world_size=4,
        session_tag="run-7",
        rank=2,
        direct=True,
        clock=clock,
        **settings,
    )


def test_a_whole_job_by_blocks(told: Told, clock: Clock) -> None:
    training = job(told, clock, config=config(custom_metadata={"flag": True, "list": [1, 2]}))
    with training.application(), training.training_loop(train_iterations_start=0) as loop:
        assert loop is not None
        assert loop.attributes["train_samples_start"] == 0
        for _ in range(2):
            with training.training_iteration():
                clock.advance(0.5)
        with training.checkpoint_save(global_step=2):
            clock.advance(0.25)
    (start,) = told.of("one_logger_initialization")
    assert (start["application_name"], start["app_type"], start["rank"]) == ("pretrain", "training", 2)
    (said,) = told.of("update_training_telemetry_config")
    assert said["custom_metadata"] == ["flag:True", "list:[1, 2]"]
    (update,) = told.of("training_metrics_update")
    assert update["num_train_samples"] == 64
    assert update["avg_iteration_time_sec"] == 0.5
    (success,) = told.of("save_checkpoint_success")
    assert success["productive_train_iterations"] == 2
    assert told.spans() == [
        "start application",
        "start training_loop",
        "start checkpoint_save_sync",
        "stop checkpoint_save_sync",
        "stop training_loop",
        "stop application",
    ]
    assert training.recorder.closed


def test_an_error_in_a_block_passes_through_and_the_block_ends(told: Told, clock: Clock) -> None:
    training = job(told, clock, all_spans=True)
    with pytest.raises(KeyError), training.checkpoint_save(global_step=1):
        raise KeyError("mine")
    assert told.of("save_checkpoint_success") == []
    assert told.spans() == ["start checkpoint_save_sync", "stop checkpoint_save_sync"]


def test_phases_decorate_functions_also_async_ones(told: Told, clock: Clock) -> None:
    training = job(told, clock)

    @training.model_init()
    def build(layers: int) -> int:
        """Builds."""
        return layers

    @training.dataloader_init()
    async def load() -> str:
        await asyncio.sleep(0)
        return "loaded"

    assert [build(layers=3), build(4), asyncio.run(load())] == [3, 4, "loaded"]
    assert build.__doc__ == "Builds."
    assert told.spans() == [
        *["start model_initialization", "stop model_initialization"] * 2,
        "start data_loader_initialization",
        "stop data_loader_initialization",
    ]


def test_a_misuse_is_an_error_with_a_code_only_where_asked_for(told: Told, clock: Clock) -> None:
    strict = job(told, clock)
    with pytest.raises(SpanError) as raised:
        strict.on_train_end()
    assert raised.value.code == "active_span_count"
    quiet = job(Told(), clock, on_error="continue")
    quiet.on_train_end()
    quiet.on_training_single_iteration_end()
    assert quiet.recorder.counts().failed_calls == 2


def test_settings_may_be_functions_and_what_they_raise_is_the_job_s_own(told: Told, clock: Clock) -> None:
    sizes: Iterator[int] = iter([8, 8, 8, 16])

    def size() -> int:
        return next(sizes)

    training = job(told, clock, config=config(global_batch_size=size, log_every_n_train_iterations=2))
    training.on_train_start(train_iterations_start=0, train_samples_start=0, train_iterations_target=lambda: 5)
    assert told.calls[-1][2]["train_iterations_target"] == 5
    for _ in range(2):
        with training.training_iteration():
            clock.advance(1.0)
    assert told.of("training_metrics_update")[0]["num_train_samples"] == 24
    with pytest.raises(StopIteration), training.training_iteration():
        pass
    quiet = job(Told(), clock, config=config(is_save_checkpoint_enabled=lambda: False), on_error="continue")
    with quiet.checkpoint_save(global_step=1) as span:
        assert span is not None


def test_a_rank_that_does_not_report_does_nothing(told: Told, clock: Clock) -> None:
    training = job(told, clock, enabled=False)
    with training.application() as application, training.training_iteration() as iteration:
        assert application is iteration is None
    assert training.on_train_start(train_iterations_start=0) is None
    training.on_app_end()
    assert (told.calls, training.enabled) == ([], False)


def test_with_one_logger_s_attributes_alone(told: Told, clock: Clock) -> None:
    training = job(told, clock, one_logger=True, telemetry_version="2.3.1", node_name="n")
    training.on_app_start()
    assert told.of("one_logger_initialization") == [
        {
            "world_size": 4,
            "one_logger_training_telemetry_version": "2.3.1",
            "enable_for_current_rank": True,
            "session_tag": "run-7",
            "is_baseline_run": False,
            "summary_data_schema_version": "1.0.0",
            "node_name": "n",
            "rank": 2,
            "timestamp_msec": 1_750_000_000_000,
        }
    ]


def test_the_configuration_may_come_late_once(told: Told, clock: Clock) -> None:
    training = job(told, clock, config=None)
    training.on_app_start()
    assert not training.configured
    training.set_config(config(perf_tag=["a", "b"]))
    assert told.of("update_training_telemetry_config")[0]["perf_tag"] == ["a", "b"]
    with pytest.raises(SpanError) as raised:
        training.set_config(config())
    assert raised.value.code == "training_config_already_set"


def test_a_configuration_that_cannot_be_is_refused_at_once(told: Told, clock: Clock) -> None:
    for fields, code in [
        ({"global_batch_size": 0}, "global_batch_size_not_positive"),
        ({"is_log_throughput_enabled": True}, "flops_per_sample_required"),
    ]:
        with pytest.raises(SpanError) as raised:
            job(told, clock, config=config(**fields))
        assert raised.value.code == code
    with pytest.raises(TypeError):
        job(told, clock, config=config(global_batch_size="many"))
    with pytest.raises(ValueError, match="save_checkpoint_strategy"):
        job(told, clock, config=config(save_checkpoint_strategy="later"))


def test_spans_of_the_program_s_own_are_among_them_and_short_ones_are_not_exported() -> None:
    kept = MemoryExporter()
    training = Training([kept], application_name="a", config=config())
    with training.application(), training.training_iteration() as iteration:
        assert iteration is not None
        with training.recorder.span("data_loading"), training.recorder.span("mine") as mine:
            assert mine.parent is not None
            assert mine.parent.name == "data_loading"
    assert {"training_single_iteration", "data_loading"} < set(SHORT_SPANS)
    assert {span["name"] for span in kept.finished()} == {"application", "mine"}


def test_threads_share_a_job(told: Told, clock: Clock) -> None:
    training = job(told, clock, on_error="continue")
    training.on_train_start(train_iterations_start=0)

    def work() -> None:
        for _ in range(200):
            with training.validation_iteration():
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    training.on_validation_start()
    training.on_validation_end()
    training.recorder.close()
    assert told.spans()[-1] == "stop training_loop"


def test_a_forked_child_goes_on_where_its_parent_was(clock: Clock) -> None:
    told = Told()
    training = job(told, clock, all_spans=True)
    training.on_train_start(train_iterations_start=0)
    with training.training_iteration():
        clock.advance(0.5)
    training.on_training_single_iteration_start()
    child = os.fork()
    if child == 0:
        try:
            clock.advance(0.25)
            training.on_training_single_iteration_end()
            update = told.of("training_metrics_update")[-1]
            os._exit(0 if update["total_iteration_time_sec"] == 0.75 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    clock.advance(1.0)
    training.on_training_single_iteration_end()
    assert told.of("training_metrics_update")[-1]["total_iteration_time_sec"] == 1.5
