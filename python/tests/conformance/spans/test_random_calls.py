"""Random calls, with and against the rules: nv-one-logger and our names for it must give the same, as long as both
are installed.

The seeds are fixed. What is known to differ (see DISPUTED.md) is left out of the calls, or of the comparison.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compare import difference
from package import ORIGINAL, OURS
from test_span_vectors import skip_without

CASES = 40
CONFIG = {"application_name": "app", "session_tag_or_fn": "session-1", "world_size_or_fn": 4}
TRAINING = {"perf_tag_or_fn": "perf-a", "global_batch_size_or_fn": 32, "log_every_n_train_iterations": 2}
TARGETS = {"train_samples_target_or_fn": 900, "train_iterations_target_or_fn": 90}
TRAININGS = [
    TRAINING,
    {
        **TRAINING,
        **TARGETS,
        "is_log_throughput_enabled_or_fn": True,
        "flops_per_sample_or_fn": 100,
        "seq_length_or_fn": 8,
    },
    {**TRAINING, **TARGETS, "save_checkpoint_strategy": "async"},
]
PHASES: list[tuple[str, dict[str, Any]]] = [
    ("on_distributed_init", {}),
    ("on_model_init", {}),
    ("on_load_checkpoint", {}),
    ("on_training_single_iteration", {}),
    ("on_validation", {}),
    ("on_validation_single_iteration", {}),
    ("on_testing", {}),
    ("on_save_checkpoint", {"global_step": 3}),
    ("on_train", {"train_iterations_start": 2}),
]


WEIGHTS = {
    "start": 6,
    "stop": 4,
    "event": 3,
    "error": 1,
    "telemetry_data_error": 1,
    "advance": 1,
    "inject_failures": 1,
    "active_by_name": 1,
    "span_info": 1,
    "add_attribute": 1,
}


def core_call(chance: random.Random, spans: list[str]) -> dict[str, Any]:
    """A call; `spans` are those that were started so far, whether they are active or not."""
    op = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0] if spans else "start"
    call: dict[str, Any] = {"op": op}
    if op in ("stop", "event", "error", "span_info", "add_attribute"):
        call["span"] = chance.choice(spans)
    match op:
        case "start":
            if spans and chance.random() < 0.2:
                call["parent"] = chance.choice(spans)
            if chance.random() < 0.3:
                call["span_attributes"] = {"x": chance.randint(0, 9), "l": [1.5]}
            spans.append(f"s{len(spans)}")
            call.update({"as": spans[-1], "name": chance.choice("abc")})
        case "event":
            call.update({"name": "e", "attributes": {"k": chance.random()}})
        case "error":
            call.update({"message": "m", "exception": {"type": "ValueError", "message": "bad"}})
        case "telemetry_data_error":
            call["message"] = "x"
        case "advance":
            call["sec"] = chance.choice([0.001, 0.25, 1.5])
        case "inject_failures":
            call.update({"exporter": "bad", "method": chance.choice(["*", "export_event", "export_stop"])})
            call.update({"count": chance.randint(1, 3), "exception": chance.choice(["ExportError", "ValueError"])})
        case "active_by_name":
            call["name"] = chance.choice("abc")
        case "add_attribute":
            call.update({"name": chance.choice("xyz"), "value": chance.randint(0, 9)})
    return call


def core_calls(chance: random.Random) -> list[dict[str, Any]]:
    spans: list[str] = []
    calls = [core_call(chance, spans) for _ in range(40)]
    configure = {"op": "configure", "config": CONFIG, "recorder": {"exporters": ["rec", "bad"]}}
    return [configure, *calls, {"op": "close"}, *({"op": "span_info", "span": span} for span in spans)]


def training_calls(chance: random.Random) -> list[dict[str, Any]]:
    config = {**CONFIG, "telemetry_config": chance.choice(TRAININGS)}
    calls: list[dict[str, Any]] = [
        {"op": "tt", "method": "with_base_config", "config": config},
        {"op": "tt", "method": "with_exporter", "exporter": "rec"},
    ]
    if chance.random() < 0.7:
        everything = {"mode": "BLACKLIST_SPANS", "filter": ["(nothing)"]}
        calls.append({"op": "tt", "method": "with_export_customization", **everything})
    calls += [{"op": "tt", "method": "configure_provider"}, {"op": "cb", "fn": "on_app_start"}]
    for _ in range(60):
        kind = chance.random()
        name, args = chance.choice(PHASES)
        if kind < 0.3:
            calls.append({"op": "advance", "sec": chance.choice([0.125, 0.5, 0.3])})
        elif kind < 0.36:
            calls.append({"op": "cb", "fn": "on_save_checkpoint_success", "args": {"global_step": 3}})
        elif kind < 0.7:
            calls.append({"op": "cb", "fn": f"{name}_start", "args": args})
        else:
            calls.append({"op": "cb", "fn": f"{name}_end"})
    return [*calls, {"op": "cb", "fn": "on_app_end"}]


def without_known_differences(answer: dict[str, Any]) -> dict[str, Any]:
    """Times of validation are not compared where there is none (training-52)."""
    for record in answer["exporters"].get("rec", []):
        event = record.get("event", {})
        attributes = event.get("attributes", {})
        if event.get("name") == "validation_metrics_update":
            least = attributes.get("min_iteration_time_sec")
            if least is None or isinstance(least, dict):
                for name in ("avg", "min", "max", "total"):
                    attributes.pop(f"{name}_iteration_time_sec", None)
    return answer


@pytest.mark.parametrize(
    ("make", "exporters"), [(core_calls, ["rec", "bad"]), (training_calls, ["rec"])], ids=["core", "training"]
)
def test_random_calls_give_the_same(make: Any, exporters: list[str], tmp_path: Path) -> None:
    for root in (ORIGINAL, OURS):
        skip_without(root)
    files = []
    for seed in range(CASES):
        case = {
            "id": f"{make.__name__}-{seed}",
            "exporters": {name: {"kind": "recording"} for name in exporters},
            "ops": make(random.Random(seed)),
        }
        files.append(tmp_path / f"{seed}.json")
        files[-1].write_text(json.dumps(case), encoding="utf-8")
    answers = []
    for root in (ORIGINAL, OURS):
        driver = Path(__file__).with_name("driver.py")
        run = subprocess.run([sys.executable, driver, root, *files], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        answers.append([json.loads(line) for line in run.stdout.splitlines()])
    assert len(answers[0]) == len(answers[1]) == CASES
    wrong = {}
    for theirs, ours in zip(*answers, strict=True):
        want, got = (without_known_differences(answer["actual"]) for answer in (theirs, ours))
        if (found := difference(want, got)) is not None:
            wrong[theirs["id"]] = found
    assert not wrong
