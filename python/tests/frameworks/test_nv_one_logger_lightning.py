"""The names of nv-one-logger's Lightning integration in a real `fit`, and the integration itself where it is
installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nv_one_logger_scripts as scripts
import pytest
from support import conformance, module_or_skip

ORIGINAL = "nv_one_logger"
OURS = "warptrace.compat.nv_one_logger"

FIT = """
import json, sys
import torch
import lightning.pytorch as pl
import nv_one_logger_scripts as s

s.ROOT, fails = sys.argv[1], sys.argv[2] == "fails"
said = []

class Said(s.mod("exporter.exporter").BaseExporter):
    @s.marked
    def export_start(self, span):
        parent = span.parent_span
        said.append({"kind": "start", "span": span.name_str, "parent": parent.name_str if parent else None,
                     "attributes": values(span.attributes)})

    @s.marked
    def export_stop(self, span):
        said.append({"kind": "stop", "span": span.name_str})

    @s.marked
    def export_event(self, event, span):
        said.append({"kind": "event", "name": event.name_str, "span": span.name_str,
                     "attributes": values(event.attributes)})

    @s.marked
    def export_error(self, event, span):
        said.append({"kind": "error", "span": span.name_str, "type": event.exception_type,
                     "text": event.exception_message})

def values(attributes):
    return {str(k): getattr(a.value, "value", a.value) for k, a in attributes.items()}

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        if fails:
            raise RuntimeError("bad step")
        return self.layer(batch).sum()

    def validation_step(self, batch, index):
        self.layer(batch)

    def test_step(self, batch, index):
        self.layer(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

api = s.trained([Said()], global_batch_size_or_fn=4)

class Trainer(pl.Trainer):
    pass

integration = s.mod("training_telemetry.integration.pytorch_lightning")
hooked, callback = integration.hook_trainer_cls(Trainer, api.TrainingTelemetryProvider.instance())
data = torch.utils.data.DataLoader(torch.zeros(12, 2), batch_size=4)
trainer = hooked(max_epochs=2, accelerator="cpu", devices=1, logger=False, num_sanity_val_steps=2,
                 enable_progress_bar=False, enable_model_summary=False)
try:
    trainer.fit(Model(), data, data)
    said.append({"kind": "marker", "what": "fit returned"})
    trainer.test(Model(), data, verbose=False)
    said.append({"kind": "marker", "what": "test returned"})
except RuntimeError as e:
    said.append({"kind": "marker", "what": str(e)})
callback.on_app_end()
open("said.json", "w").write(json.dumps(said))
"""


def fit(root: str, how: str, folder: Path) -> list[dict[str, Any]]:
    if root == ORIGINAL:
        try:
            found = importlib.util.find_spec(f"{ORIGINAL}.training_telemetry.integration.pytorch_lightning")
        except ModuleNotFoundError:
            found = None
        if found is None:
            pytest.skip("nv-one-logger-pytorch-lightning-integration is not installed")
    for needed in ("torch", "lightning", "pydantic"):
        module_or_skip(needed)
    paths = [str(Path(scripts.__file__).parent), *filter(None, sys.path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", FIT, root, how], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    if root == ORIGINAL and "TypeError: `OneLoggerPTLTrainer" in done.stderr:
        pytest.skip("nv-one-logger-pytorch-lightning-integration cannot be imported with this Lightning")
    assert done.returncode == 0, done.stderr
    said: list[dict[str, Any]] = json.loads((folder / "said.json").read_text(encoding="utf-8"))
    return said


@pytest.mark.parametrize("root", [ORIGINAL, OURS])
def test_a_fit_says_what_was_observed(root: str, tmp_path: Path) -> None:
    case = json.loads((conformance() / "spans/lightning_fit/fit-01-happy.json").read_text(encoding="utf-8"))
    said = fit(root, "works", tmp_path)
    want = case["expected"]["sequence"]
    assert len(said) == len(want)
    for got, expected in zip(said, want, strict=True):
        kept = expected.get("attributes", {})
        if "attributes" in expected:
            got = {**got, "attributes": {k: v for k, v in got["attributes"].items() if k in kept}}
        assert got == expected


def test_an_exception_of_a_step_is_recorded_where_it_was(tmp_path: Path) -> None:
    said = fit(OURS, "fails", tmp_path)
    errors = [s for s in said if s["kind"] == "error" and s["type"] is not None]
    assert errors == [
        {"kind": "error", "span": "training_single_iteration", "type": "RuntimeError", "text": "bad step"}
    ]
    assert {"kind": "marker", "what": "bad step"} in said
    assert said[-1]["kind"] == "stop"
