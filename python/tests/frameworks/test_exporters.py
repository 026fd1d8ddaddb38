"""The exporters to Weights & Biases and MLflow, with the real packages and no network."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adapters_support import module_or_skip

from warptrace import Recorder
from warptrace.exporters import FLAT, HIERARCHICAL, MLflow, WandB, build


def record(*exporters: Any) -> None:
    """A run with a span in a span, an event, an update and an error; all of it is exported before it ends."""
    recorder = Recorder(list(exporters))
    with recorder.span("loop", {"start": 1, "strategy": "sync"}) as loop:
        loop.event("update", {"current_iteration": 4, "loss": 0.5, "nan": float("nan")})
        with recorder.span("inner", {"sizes": [1, 2]}) as inner:
            inner["ok"] = True
            inner.error("no such luck")
    recorder.data_error("half of it is missing")
    assert recorder.flush(timeout_secs=60)
    recorder.close(timeout_secs=60)
    assert all(c.refused == c.dropped == 0 and not c.disabled for c in recorder.counts().exporters)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    module = module_or_skip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))
    return module


def logged(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, which wandb's are after 7 bytes of their own."""
    block, place, whole = 32 << 10, 7, b""
    while place + 7 <= len(data):
        if (left := block - place % block) < 7:
            place += left
            continue
        length = int.from_bytes(data[place + 4 : place + 6], "little")
        # 1: whole, 2: first, 3: middle, 4: last.
        kind = data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def history(folder: Path) -> list[dict[str, Any]]:
    """The sets of metrics in the one offline run below a folder."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    # `finish` returns before an offline run is in its file (wandb 0.31.0); this waits for the process that writes it.
    wandb.teardown()
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    rows = []
    for data in logged(file.read_bytes()):
        found = Record.FromString(data)
        if found.HasField("history"):
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in found.history.item}
            rows.append({key: value for key, value in row.items() if not key.startswith("_")})
    return rows


@pytest.mark.parametrize(("naming", "prefix", "middle"), [(HIERARCHICAL, "loop.", "update."), (FLAT, "", "")])
def test_wandb_gets_a_set_of_metrics_for_each_start_stop_and_event(
    wandb: Any, tmp_path: Path, naming: Any, prefix: str, middle: str
) -> None:
    record(WandB(project="p", run_name="r", save_dir=str(tmp_path), naming=naming))
    rows = history(tmp_path)
    assert all("app_last_log_time" in row for row in rows)
    first, event = rows[0], rows[1]
    assert first[f"{prefix}start"] == 1
    assert first[f"{prefix}strategy"] == "sync"
    assert event[f"{prefix}{middle}loss"] == 0.5
    # Two starts, an event, two stops and what is missing; the error is none.
    assert len(rows) == 6
    assert [row["telemetry_data_error"] for row in rows if "telemetry_data_error" in row] == [
        "INCOMPLETE_TELEMETRY_DATA"
    ]
    assert "no such luck" not in json.dumps(rows)


def test_a_run_of_the_jobs_own_is_used_and_not_finished(wandb: Any, tmp_path: Path) -> None:
    with wandb.init(project="p", dir=str(tmp_path)) as run:
        record(build("wandb", run=run))
        run.log({"mine": 1})
    rows = history(tmp_path)
    assert len(rows) == 7
    assert rows[-1] == {"mine": 1}


@pytest.mark.parametrize("store", ["sqlite:///{}/m.db", "file://{}/runs"])
def test_mlflow_gets_numbers_as_metrics_with_their_steps_and_all_else_as_tags(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = module_or_skip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    exporter = MLflow(tracking_uri=store.format(tmp_path), experiment="e", run_name="r", tags={"mine": "1"})
    record(exporter)
    client = mlflow.MlflowClient(store.format(tmp_path))
    run = client.get_run(exporter.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.experiment_id == client.get_experiment_by_name("e").experiment_id
    assert run.data.metrics["loop.start"] == 1
    (loss,) = client.get_metric_history(exporter.run_id, "loop.update.loss")
    assert (loss.value, loss.step) == (0.5, 4)
    assert loss.timestamp == run.data.metrics["loop.update.timestamp_msec"]
    expected = {"loop.strategy": "sync", "inner.sizes": "[1, 2]", "inner.ok": "true", "mine": "1"}
    assert run.data.tags.items() >= expected.items()
    assert run.data.tags["telemetry_data_error"] == "INCOMPLETE_TELEMETRY_DATA"
    assert mlflow.active_run() is None
