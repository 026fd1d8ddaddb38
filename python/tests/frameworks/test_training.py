"""Training telemetry that the adapters feed, from real fits."""

from pathlib import Path
from typing import Any

import pytest
from adapters_support import Said, module_or_skip

torch = module_or_skip("torch")
pl = module_or_skip("lightning.pytorch")

from lightning.pytorch.plugins.io import AsyncCheckpointIO  # noqa: E402
from test_lightning import Model, loader, trainer  # noqa: E402

from warptrace import MemoryExporter  # noqa: E402
from warptrace.adapters import failures  # noqa: E402
from warptrace.adapters.lightning import WarptraceCallback  # noqa: E402
from warptrace.training import Training, TrainingConfig  # noqa: E402


def telemetry(kept: MemoryExporter, **config: Any) -> Training:
    # Short spans, too.
    return Training(
        [kept],
        application_name="fit",
        session_tag="s",
        config=TrainingConfig(perf_tag="p", global_batch_size=2, log_every_n_train_iterations=2, **config),
        all_spans=True,
        on_error="raise",
    )


def named(kept: MemoryExporter) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for span in kept.finished():
        found.setdefault(span["name"], []).append(span)
    return found


def events(span: dict[str, Any]) -> list[str]:
    return [name for name, _, _ in span["events"]]


def test_a_fit_and_a_test_are_told_as_they_were(said: Said, tmp_path: Path) -> None:
    kept = MemoryExporter()
    training = telemetry(kept)
    with training.application():
        callback = WarptraceCallback(training=training, writer=said.writer)
        fit = trainer(tmp_path, callback, max_epochs=2, enable_checkpointing=True)
        model = Model()
        fit.fit(model, loader(5), loader(3))
        fit.test(model, loader(2), verbose=False)
    training.recorder.close()
    assert failures() == {}
    spans = named(kept)
    assert {name: len(found) for name, found in spans.items()} == {
        "application": 1,
        "training_loop": 1,
        "training_single_iteration": 10,
        "validation_loop": 2,
        "validation_single_iteration": 6,
        "checkpoint_save_sync": 2,
        "testing_loop": 1,
    }
    (loop,) = spans["training_loop"]
    assert events(loop).count("training_metrics_update") == 5
    assert all("save_checkpoint_success" in events(span) for span in spans["checkpoint_save_sync"])
    assert [span["attributes"]["current_iteration"] for span in spans["checkpoint_save_sync"]] == [5, 10]


def test_a_failed_fit_says_why_in_the_spans_that_were_open(said: Said, tmp_path: Path) -> None:
    kept = MemoryExporter()
    training = telemetry(kept)
    callback = WarptraceCallback(training=training, writer=said.writer)
    with pytest.raises(RuntimeError, match="no such luck"), training.application():
        trainer(tmp_path, callback, limit_val_batches=0).fit(Model(fail_at=2), loader(5))
    training.recorder.close()
    assert failures() == {}
    spans = named(kept)
    errors = [said for name, _, said in spans["training_single_iteration"][-1]["events"] if name == "error"]
    assert errors[0]["exception_message"] == "no such luck"
    assert len(spans["training_loop"]) == 1


def test_a_checkpoint_that_a_thread_writes_is_a_success_of_the_application(said: Said, tmp_path: Path) -> None:
    kept = MemoryExporter()
    training = telemetry(kept, save_checkpoint_strategy="async")
    with training.application():
        callback = WarptraceCallback(training=training, writer=said.writer)
        options = {"enable_checkpointing": True, "plugins": [AsyncCheckpointIO()], "limit_val_batches": 0}
        trainer(tmp_path, callback, max_epochs=3, **options).fit(Model(), loader(2))
    training.recorder.close()
    assert failures() == {}
    spans = named(kept)
    assert len(spans["checkpoint_save_async"]) == 3
    assert events(spans["application"][0]).count("save_checkpoint_success") == 3
