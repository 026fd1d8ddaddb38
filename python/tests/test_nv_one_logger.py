"""The public names of nv-one-logger, run against the packages themselves and against warptrace's names for them.

What both must give is what the other gives, where both are installed; where only ours is, what the original gave is in
`nv_one_logger_results.json`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nv_one_logger_scripts as scripts
import pytest
from support import module_or_skip

ORIGINAL = "nv_one_logger"
OURS = "warptrace.compat.nv_one_logger"
RESULTS = Path(__file__).with_name("nv_one_logger_results.json")
SCRIPTS = Path(scripts.__file__)


def run(code: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program of its own, in that folder."""
    import warptrace

    paths = [str(Path(warptrace.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    for name in ("RANK", "ONE_LOGGER_EXPORTER_CONFIG_PATH"):
        env.pop(name, None)
    return subprocess.run(
        [sys.executable, *code], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(params=[ORIGINAL, OURS])
def root(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    module_or_skip("pydantic")
    if name == ORIGINAL:
        for part in ("core.time", "training_telemetry.api"):
            module_or_skip(f"{ORIGINAL}.{part}")
    return name


@pytest.mark.parametrize("name", [program.__name__ for program in scripts.PROGRAMS])
def test_a_program_gives_the_same_with_both(root: str, name: str, tmp_path: Path) -> None:
    if name == "hooked_trainers" and root == ORIGINAL:
        module_or_skip(f"{ORIGINAL}.training_telemetry.integration")
    done = run([str(SCRIPTS), root, name], tmp_path)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got == json.loads(RESULTS.read_text(encoding="utf-8"))[name]


PUBLIC = {
    "api.config": "OneLoggerConfig LoggerConfig OneLoggerErrorHandlingStrategy",
    "api.telemetry_config": "TelemetryConfig ApplicationType",
    "api.one_logger_provider": "OneLoggerProvider",
    "api.recorder": "Recorder",
    "api.timed_span": "timed_span get_recorder",
    "core.attributes": "Attribute Attributes AttributeValue",
    "core.event": "Event ErrorEvent TelemetryDataError StandardEventName StandardEventAttributeName",
    "core.span": "Span SpanName StandardSpanName StandardSpanAttributeName NVTXColor",
    "core.time": "TracingTimestamp Timer",
    "core.exceptions": "OneLoggerError assert_that",
    "recorder.default_recorder": "DefaultRecorder ExportCustomizationMode",
    "exporter": "Exporter FileExporter LoggerExporter",
    "exporter.exporter": "Exporter BaseExporter ExportError",
    "exporter.base_json_exporter": "BaseJsonExporter",
    "exporter.file_exporter": "FileExporter",
    "exporter.logger_exporter": "LoggerExporter",
    "exporter.exporter_config": "ExporterConfig",
    "exporter.export_config_manager": "ExporterConfigManager",
    "otel.exporter.otel_exporter": "OTelExporter",
    "training_telemetry.api": (
        "CheckPointStrategy TrainingTelemetryConfig application checkpoint_save training_iteration training_loop "
        "StandardTrainingJobSpanName TrainingRecorder TrainingTelemetryProvider on_app_start on_train_start"
    ),
    "training_telemetry.api.attributes": (
        "CheckpointSaveSpanAttributes OneLoggerInitializationAttributes SaveCheckpointSuccessEventAttributes "
        "SyncCheckpointMetricsUpdateAttributes TestingMetricsUpdateAttributes TrainingLoopAttributes "
        "TrainingMetricsUpdateAttributes TrainingTelemetryAttributes ValidationMetricsUpdateAttributes"
    ),
    "training_telemetry.api.callbacks": "on_app_start on_save_checkpoint_success on_train_start",
    "training_telemetry.api.checkpoint": "CheckPointStrategy CheckPointType",
    "training_telemetry.api.config": "TrainingTelemetryConfig",
    "training_telemetry.api.context": "application testing_loop validation_loop checkpoint_load",
    "training_telemetry.api.events": "StandardTrainingJobEventName",
    "training_telemetry.api.spans": "StandardTrainingJobSpanName",
    "training_telemetry.api.training_recorder": "TrainingRecorder",
    "training_telemetry.api.training_telemetry_provider": "TrainingTelemetryProvider",
}


# An inside of the original that is public by its name only.
WITHOUT = {"TrainingRecorder.create_sync_checkpoint_metrics_event"}


def parameters(function: Any) -> list[tuple[str, bool]]:
    """Names of what a call takes, and whether each may be left out."""
    takes = inspect.signature(function).parameters.values()
    named = [p for p in takes if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
    return [(p.name, p.default is not p.empty) for p in named]


def shape(value: Any) -> dict[str, Any]:
    """The public members of a class, and what they take."""
    members: dict[str, Any] = {}
    for name, member in inspect.getmembers(value):
        if (name.startswith("_") and name != "__init__") or name.isupper():
            continue
        members[name] = parameters(member) if inspect.isroutine(member) and _is_pythons(member) else None
    return members


def _is_pythons(function: Any) -> bool:
    return inspect.isfunction(inspect.unwrap(getattr(function, "__func__", function)))


def agree(want: list[tuple[str, bool]], got: list[tuple[str, bool]], name: str) -> None:
    """Whatever may be called so may be called so: ours may take more, and require less."""
    assert [p for p, _ in got[: len(want)]] == [p for p, _ in want], name
    required = {p for p, may_be_left_out in got if not may_be_left_out}
    assert required <= {p for p, may_be_left_out in want if not may_be_left_out}, name


@pytest.mark.parametrize("path", PUBLIC)
def test_names_and_what_calls_take_are_those_of_the_original(path: str) -> None:
    for needed in ("pydantic", "opentelemetry.sdk", f"{ORIGINAL}.core.time", f"{ORIGINAL}.{path}"):
        module_or_skip(needed)
    theirs, ours = (importlib.import_module(f"{root}.{path}") for root in (ORIGINAL, OURS))
    for name in PUBLIC[path].split():
        want, got = getattr(theirs, name), getattr(ours, name)
        if inspect.isclass(want) and hasattr(want, "__members__"):
            assert {k: v.value for k, v in want.__members__.items()} == {k: v.value for k, v in got.__members__.items()}
        elif inspect.isclass(want) and not hasattr(want, "model_fields"):
            have = shape(got)
            for member, takes in shape(want).items():
                if f"{name}.{member}" in WITHOUT:
                    continue
                assert member in have, f"{name}.{member}"
                if takes and member != "create":
                    agree(takes, have[member], f"{name}.{member}")
        elif hasattr(want, "model_fields"):
            assert want.model_fields.keys() == got.model_fields.keys()
        elif inspect.isfunction(want):
            agree(parameters(want), parameters(got), name)


def ours(code: str, folder: Path) -> str:
    """What a program of ours prints."""
    program = f"import nv_one_logger_scripts as s\ns.ROOT = {OURS!r}\n{code}"
    done = run(["-c", program], folder, PYTHONPATH=_with_tests())
    assert done.returncode == 0, done.stderr
    return done.stdout


def _with_tests() -> str:
    import warptrace

    return os.pathsep.join([str(Path(warptrace.__file__).parents[1]), str(SCRIPTS.parent)])


def test_spans_alone_need_none_of_the_packages_around_them(tmp_path: Path) -> None:
    loaded = ours(
        """
import sys
s.mod("recorder.default_recorder"), s.mod("api.timed_span"), s.mod("exporter")
print([m for m in ("pydantic", "yaml", "opentelemetry", "wandb", "lightning", "overrides") if m in sys.modules])
""",
        tmp_path,
    )
    assert loaded.strip() == "[]"


def test_a_start_that_was_held_back_is_written_when_the_program_ends(tmp_path: Path) -> None:
    module_or_skip("pydantic")
    ours(
        """
from pathlib import Path
s.configured([s.mod("exporter").FileExporter(Path("spans.jsonl"))]).start("left open")
""",
        tmp_path,
    )
    (record,) = [json.loads(line) for line in (tmp_path / "spans.jsonl").read_text().splitlines()]
    assert (record["type"], record["name"]) == ("start", "left open")


def test_a_full_disk_is_a_failed_export_and_no_business_of_the_program(tmp_path: Path) -> None:
    module_or_skip("pydantic")
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full")
    said = ours(
        """
from pathlib import Path
kept = s.keeper()
recorder = s.configured([s.mod("exporter").FileExporter(Path("/dev/full")), kept])
for name in "abcdefgh":
    recorder.stop(recorder.start(name))
print(recorder._recorder.counts().exporters[0].disabled, len(kept.lines))
""",
        tmp_path,
    )
    assert said.split() == ["True", "16"]


def test_numbers_that_json_lacks_are_written_as_their_names(tmp_path: Path) -> None:
    module_or_skip("pydantic")
    ours(
        """
from pathlib import Path
recorder = s.configured([s.mod("exporter").FileExporter(Path("spans.jsonl"))])
attributes = s.mod("core.attributes").Attributes({"loss": float("nan"), "l": [1.0, float("-inf")]})
recorder.stop(recorder.start("a", attributes))
""",
        tmp_path,
    )

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    record = json.loads((tmp_path / "spans.jsonl").read_text(), parse_constant=refuse)
    assert record["attributes"]["loss"] == "NaN"
    assert record["attributes"]["l"] == [1.0, "-Infinity"]


def test_who_wants_the_program_to_end_within_an_exporter_is_heard(tmp_path: Path) -> None:
    module_or_skip("pydantic")
    said = ours(
        """
kept = s.keeper()
recorder = s.configured([kept])
def interrupted(span):
    raise KeyboardInterrupt
kept.export_start = interrupted
try:
    recorder.start("a")
except KeyboardInterrupt:
    print("interrupted", len(kept.lines))
""",
        tmp_path,
    )
    assert said.split() == ["interrupted", "0"]


def test_calls_after_close_raise_once_and_cost_little(tmp_path: Path) -> None:
    """In the original each of them goes down to the interpreter's recursion limit."""
    module_or_skip("pydantic")
    said = ours(
        """
recorder = s.configured([s.keeper()])
recorder.close()
import logging
lines = []
logging.getLogger("warptrace.compat.nv_one_logger").addFilter(lambda r: lines.append(r) or False)
for _ in range(3):
    try:
        recorder.start("late")
    except s.mod("core.exceptions").OneLoggerError as e:
        print(e.code)
print(len(lines))
""",
        tmp_path,
    )
    assert said.split() == ["recorder_closed"] * 3 + ["3"]


def test_a_users_exception_passes_though_the_span_cannot_be_stopped(tmp_path: Path) -> None:
    module_or_skip("pydantic")
    said = ours(
        """
recorder = s.configured([s.keeper()])
try:
    with s.mod("api.timed_span").timed_span("a"):
        recorder.close()
        raise ValueError("mine")
except ValueError as e:
    print(e)
""",
        tmp_path,
    )
    assert said.strip() == "mine"


def test_a_file_does_not_bring_code_into_the_program(tmp_path: Path) -> None:
    module_or_skip("pydantic")
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\nclass Exporter: pass\n")
    entry = {"class_name": "evil.Exporter"}
    (tmp_path / "one_logger_exporters_config.json").write_text(json.dumps({"exporters": [entry]}))
    said = ours(
        """
import sys
sys.path.insert(0, ".")
manager = s.mod("exporter.export_config_manager").ExporterConfigManager()
entries = manager.generate_export_config()
print(len(entries), len(manager.create_exporters_from_config(entries)))
""",
        tmp_path,
    )
    assert said.split() == ["1", "0"]
    assert not (tmp_path / "ran").exists()


def test_the_programs_own_opentelemetry_context_stays_its_own(tmp_path: Path) -> None:
    module_or_skip("pydantic")
    module_or_skip("opentelemetry.sdk")
    said = ours(
        """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
memory = InMemorySpanExporter()
recorder = s.configured([s.mod("otel.exporter.otel_exporter").OTelExporter(memory, span_id_as_text=True)])
tracer = TracerProvider().get_tracer("mine")
with tracer.start_as_current_span("mine") as mine:
    outer = recorder.start("outer")
    print(trace.get_current_span() is mine)
    recorder.stop(recorder.start("inner"))
    recorder.stop(outer)
print(trace.get_current_span() is trace.INVALID_SPAN)
recorder.close()
spans = {span.name: span for span in memory.get_finished_spans()}
print(spans["outer"].parent.span_id == mine.get_span_context().span_id)
print(spans["inner"].parent.span_id == spans["outer"].context.span_id)
print(len(spans["outer"].attributes["one_logger_span_id"]) == 32)
print(spans["outer"].resource.attributes["service.name"])
""",
        tmp_path,
    )
    assert said.split() == ["True"] * 5 + ["app"]


def test_a_span_costs_the_same_however_much_its_parent_has_collected(tmp_path: Path) -> None:
    """Counted, not timed: nothing of the parent's events is looked at when a child stops."""
    module_or_skip("pydantic")
    said = ours(
        """
recorder = s.configured([])
event = s.mod("core.event").Event
parent = recorder.start("parent")
for i in range(2000):
    recorder.event(parent, event.create("e"))
looked = []
class Watched(list):
    def __iter__(self):
        looked.append(1)
        return super().__iter__()
    def __getitem__(self, i):
        looked.append(1)
        return super().__getitem__(i)
parent._events = Watched(parent._events)
for i in range(100):
    recorder.stop(recorder.start("child"))
print(len(looked), len(parent.events))
""",
        tmp_path,
    )
    assert said.split() == ["0", "2001"]


def test_threads_share_a_recorder(tmp_path: Path) -> None:
    module_or_skip("pydantic")
    said = ours(
        """
import threading
from pathlib import Path
recorder = s.configured([s.mod("exporter").FileExporter(Path("spans.jsonl"))])
def work():
    for i in range(200):
        recorder.stop(recorder.start("a"))
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
recorder.close()
import json
records = [json.loads(line) for line in open("spans.jsonl")]
stopped = {r["id"] for r in records if r["type"] in ("stop", "complete")}
print(len(stopped), [r["count"] for r in records] == list(range(1, len(records) + 1)))
""",
        tmp_path,
    )
    assert said.split() == ["1600", "True"]


def test_a_forked_child_writes_whole_records_with_its_own_pid(tmp_path: Path) -> None:
    module_or_skip("pydantic")
    ours(
        """
import os
from pathlib import Path
exporter = s.mod("exporter").FileExporter(Path("spans.jsonl"))
recorder = s.configured([exporter])
outer = recorder.start("outer")
recorder.stop(recorder.start("before"))
pid = os.fork()
name = "child" if pid == 0 else "parent"
for i in range(50):
    recorder.stop(recorder.start(name))
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
recorder.close()
""",
        tmp_path,
    )
    records = [json.loads(line) for line in (tmp_path / "spans.jsonl").read_text().splitlines()]
    pids = {name: {r["pid"] for r in records if r.get("name") == name} for name in ("child", "parent")}
    assert all(len(found) == 1 for found in pids.values())
    assert pids["child"] != pids["parent"]
    assert sum(r.get("name") == "child" for r in records) == 50


def test_a_long_run_keeps_a_bounded_number_of_updates(tmp_path: Path) -> None:
    module_or_skip("pydantic")
    said = ours(
        """
kept = s.keeper()
api = s.trained([kept], log_every_n_train_iterations=1)
api.on_app_start()
loop = api.on_train_start(0)
for _ in range(1500):
    api.on_training_single_iteration_start()
    api.on_training_single_iteration_end()
api.on_app_end()
print(sum(line.startswith("event training_metrics_update") for line in kept.lines), len(loop.events))
""",
        tmp_path,
    )
    exported, kept = map(int, said.split())
    assert exported == 1499
    assert kept <= 1001


@pytest.mark.parametrize("native_first", [True, False])
def test_native_exporters_stand_beside_those_of_the_package(native_first: bool, tmp_path: Path) -> None:
    """What they are given is the same: spans, their parents, and events, also those of the recorder's own making."""
    module_or_skip("pydantic")
    program = f"""
import json
import warptrace
from {OURS}.api.config import OneLoggerConfig
from {OURS}.core.event import Event
from {OURS}.exporter import FileExporter
from {OURS}.training_telemetry.api import (
    TrainingTelemetryConfig, TrainingTelemetryProvider, application, training_iteration, training_loop,
)

kept, file = warptrace.MemoryExporter(), FileExporter("spans.jsonl")
provider = TrainingTelemetryProvider.instance()
provider.with_base_config(OneLoggerConfig(application_name="a", world_size_or_fn=1, session_tag_or_fn="s"))
for exporter in (kept, file) if {native_first} else (file, kept):
    provider.with_exporter(exporter)
provider.configure_provider()
config = TrainingTelemetryConfig(perf_tag_or_fn="p", global_batch_size_or_fn=4, log_every_n_train_iterations=2)
with application() as span:
    provider.set_training_telemetry_config(config)
    provider.recorder.event(span, Event.create("own"))
    with training_loop(train_iterations_start=0) as loop:
        for _ in range(4):
            with training_iteration():
                pass
    updates = [e.name for e in loop.events].count("training_metrics_update")
provider.recorder.close()
print(json.dumps({{"kept": kept.finished(), "updates": updates}}))
"""
    done = run(["-c", program], tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    kept = {span["name"]: span for span in said["kept"]}
    assert list(kept) == ["training_loop", "application"]
    assert kept["training_loop"]["parent_span_id"] == kept["application"]["span_id"]
    of_loop, of_application = ([name for name, *_ in kept[name]["events"]] for name in kept)
    assert of_loop.count("training_metrics_update") == said["updates"] > 0
    assert {"own", "one_logger_initialization"} <= set(of_application)
    records = [json.loads(line) for line in (tmp_path / "spans.jsonl").read_text().splitlines()]
    written = [r for r in records if "training_metrics_update" in json.dumps(r)]
    assert len(written) >= said["updates"]
