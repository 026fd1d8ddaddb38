"""Drives a package through cases of the span vectors, and says what it did.

`python driver.py PACKAGE FILE...` prints a line of JSON for each case: what stands under `expected` there, as it came
out here. Each case runs in a process of its own, forked after the package was imported, in an empty folder, and by a
clock that only moves when the case says so.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import json
import logging
import math
import os
import re
import socket
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stubs
from package import Package

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
PARAMETERS = ("RANK", "ONE_LOGGER_EXPORTER_CONFIG_PATH")


class Clock:
    """Both of the package's clocks, at rest."""

    def __init__(self) -> None:
        self.wall = 1750000000.0
        self.perf = 1000.0

    def install(self) -> None:
        time.time = lambda: self.wall
        time.perf_counter = lambda: self.perf


class Injected(Exception):
    pass


class Scenario:
    """One case of `scenarios/`, from its operations to what became of them."""

    def __init__(self, package: Package, case: dict[str, Any], folder: Path) -> None:
        self.p = package
        self.case = case
        self.folder = folder
        self.clock = Clock()
        self.labels: dict[str, str] = {}
        self.kept: dict[str, Any] = {}
        self.users: list[BaseException] = []
        self.contexts: list[Any] = []
        self.callback: Any = None
        self.exporters: dict[str, Any] = {}
        self.received: dict[str, Callable[[], Any]] = {}

    def run(self) -> dict[str, Any]:
        self.clock.install()
        for name, described in self.case["exporters"].items():
            self._make_exporter(name, described)
        results = self._run_ops(self.case["ops"])
        return {"results": results, "exporters": {name: said() for name, said in self.received.items()}}

    def _run_ops(self, ops: list[dict[str, Any]]) -> list[Any]:
        return [self._result(op) for op in ops]

    def _result(self, op: dict[str, Any]) -> Any:
        try:
            return {"ok": getattr(self, "op_" + op["op"])(op)}
        except BaseException as e:
            if os.environ.get("SPANS_TRACE"):
                traceback.print_exc()
            return self.described(e)

    def described(self, e: BaseException) -> dict[str, Any]:
        kind = type(e).__name__
        if any(e is user for user in self.users):
            return {"raises": kind, "message": str(e)}
        if kind == "ValidationError":
            errors = [
                {"loc": list(error["loc"]), "code": self._validation_code(error)}
                for error in e.errors()  # type: ignore[attr-defined]
            ]
            return {"raises": kind, "errors": errors}
        if isinstance(e, self.p.OneLoggerError):
            kind = "ExportError" if isinstance(e, self.p.ExportError) else "OneLoggerError"
            if str(e) == "injected failure":
                return {"raises": kind, "message": str(e)}
            return {"raises": kind, "code": self.p.code_of(e) or f"? {e}"}
        code = self.p.code_of(e) if isinstance(e, TypeError) else None
        return {"raises": kind} if code is None else {"raises": kind, "code": code}

    def _validation_code(self, error: dict[str, Any]) -> str:
        if error["type"] not in ("value_error", "assertion_error"):
            return str(error["type"])
        return self.p.code_of(error["ctx"]["error"]) or f"? {error['msg']}"

    # Values and placeholders.

    def value(self, v: Any) -> Any:
        if isinstance(v, list):
            return [self.value(x) for x in v]
        if not isinstance(v, dict):
            return v
        if "$float" in v:
            return float(v["$float"])
        if "$fn" in v:
            given = self.value(v["$fn"])
            return lambda: given
        if "$fn_raises" in v:
            error = self.exception(v["$fn_raises"])

            def fails() -> None:
                raise error

            return fails
        if "$enum_member" in v:
            m = v["$enum_member"]
            return enum.Enum(m["type"], {m["name"]: m["value"]})[m["name"]]  # type: ignore[misc]
        return {k: self.value(x) for k, x in v.items()}

    def exception(self, v: dict[str, Any]) -> BaseException:
        import builtins

        kind = getattr(builtins, v["type"])
        message = v.get("message")
        made: BaseException = kind() if message is None else kind(message)
        self.users.append(made)
        return made

    def attributes(self, v: dict[str, Any] | None) -> Any:
        return None if v is None else self.p.Attributes(self.value(v))

    def moment(self, v: dict[str, Any] | None) -> Any:
        if v is None:
            return None
        return self.p.TracingTimestamp(v["seconds_since_epoch"], v["perf_counter_seconds"])

    def label(self, id: Any) -> str:
        return self.labels.setdefault(str(id), f"span-{len(self.labels) + 1}")

    def shown(self, v: Any, name: str | None = None) -> Any:
        """A value as the vectors write it."""
        if isinstance(v, uuid.UUID):
            return self.label(v)
        if isinstance(v, dict):
            return {str(k): self.shown(getattr(x, "value", x) if _is_attribute(x) else x, str(k)) for k, x in v.items()}
        if isinstance(v, list | tuple):
            return [self.shown(x) for x in v]
        if isinstance(v, enum.Enum):
            return self.shown(v.value)
        if isinstance(v, float) and not math.isfinite(v):
            return {"$float": "nan" if math.isnan(v) else "inf" if v > 0 else "-inf"}
        if isinstance(v, Path):
            return {"$path": str(v)}
        if isinstance(v, str):
            return self._shown_text(v, name)
        return v

    def _shown_text(self, v: str, name: str | None) -> str:
        match name:
            case "exception_traceback":
                return v if v == "NoneType: None\n" else "<traceback>"
            case "node_name":
                return "<hostname>" if v == socket.gethostname() else v
            case "one_logger_training_telemetry_version":
                return "<version>"
            case "error_message" | "description":
                return self.p.placeholder(v)
        return v

    def timestamp(self, t: Any) -> dict[str, float]:
        return {"seconds_since_epoch": t.seconds_since_epoch, "perf_counter_seconds": t.perf_counter_seconds}

    def event_shown(self, event: Any) -> dict[str, Any]:
        return {
            "name": event.name_str,
            "timestamp": self.timestamp(event.timestamp),
            "attributes": self.shown(event.attributes),
        }

    def span_shown(self, span: Any) -> dict[str, Any]:
        parent = span.parent_span
        return {
            "id": self.label(span.id),
            "name": span.name_str,
            "parent_id": None if parent is None else self.label(parent.id),
            "attributes": self.shown(span.attributes),
            "updated_attributes": self.shown(span.updated_attributes),
        }

    def span_result(self, span: Any, op: dict[str, Any]) -> Any:
        if "as" in op:
            self.kept[op["as"]] = span
        return None if span is None else {"span": self.label(span.id)}

    # Exporters.

    def _make_exporter(self, name: str, described: dict[str, Any]) -> None:
        make = getattr(self, "_make_" + described["kind"])
        self.exporters[name], self.received[name] = make(name, described)

    def _make_recording(self, name: str, described: dict[str, Any]) -> Any:
        exporter = recording_exporter(self.p, self)()
        return exporter, lambda: exporter.received

    def _make_file(self, name: str, described: dict[str, Any]) -> Any:
        path = self.folder / f"{name}.jsonl"

        def received() -> Any:
            if not path.exists():
                return None
            return [self._record(json.loads(line)) for line in path.read_text().splitlines()]

        return self.p.FileExporter(path), received

    def _record(self, v: Any, name: str | None = None) -> Any:
        if isinstance(v, dict):
            return {k: self._record(x, k) for k, x in v.items()}
        if name in ("id", "span_id", "parent_id") and isinstance(v, str):
            return self.label(v)
        if name == "pid":
            return "<pid>" if v == os.getpid() else v
        return self.shown(v, name)

    def _make_logger(self, name: str, described: dict[str, Any]) -> Any:
        lines: list[list[str]] = []
        logger = logging.getLogger(f"vectors.{name}")
        logger.setLevel(logging.DEBUG)
        handler = logging.Handler()

        def placeholder(quoted: str) -> str:
            return json.dumps(self.p.placeholder(json.loads(quoted)))

        def emit(record: logging.LogRecord) -> None:
            text = UUID.sub(lambda m: self.label(m[0]), record.getMessage())
            text = re.sub(rf"\bpid={os.getpid()}\b", "pid=<pid>", text)
            text = re.sub(r'(error_message=)("(?:[^"\\]|\\.)*")', lambda m: m[1] + placeholder(m[2]), text)
            lines.append([record.levelname, text])

        handler.emit = emit  # type: ignore[method-assign]
        logger.addHandler(handler)
        return self.p.LoggerExporter(logger), lambda: lines

    def _make_otel(self, name: str, described: dict[str, Any]) -> Any:
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        made: list[int] = []

        def next_id(_: Any) -> int:
            made.append(len(made) + 1)
            return made[-1]

        # So that the order of their making is known.
        RandomIdGenerator.generate_span_id = next_id  # type: ignore[method-assign]
        memory = InMemorySpanExporter()

        def received() -> Any:
            spans = sorted(memory.get_finished_spans(), key=lambda s: s.context.span_id)
            traces: dict[int, str] = {}
            return [self._otel_span(span, traces) for span in spans]

        return self.p.OTelExporter(memory), received

    def _otel_span(self, span: Any, traces: dict[int, str]) -> Any:
        def attributes(given: Any) -> Any:
            shown = self.shown(dict(given))
            id = shown.get("one_logger_span_id")
            if isinstance(id, int):
                shown["one_logger_span_id"] = {"$span_id_as_int": self.label(uuid.UUID(int=id))}
            elif isinstance(id, str):
                shown["one_logger_span_id"] = {"$span_id_as_hex": self.label(uuid.UUID(hex=id))}
            return shown

        trace = traces.setdefault(span.context.trace_id, f"trace-{len(traces) + 1}")
        description = span.status.description
        return {
            "otel_id": f"otel-{span.context.span_id}",
            "trace": trace,
            "name": span.name,
            "kind": span.kind.name,
            "parent": None if span.parent is None else f"otel-{span.parent.span_id}",
            "start_ns": span.start_time,
            "end_ns": span.end_time,
            "attributes": attributes(span.attributes),
            "events": [
                {"name": e.name, "ns": e.timestamp, "attributes": attributes(e.attributes)} for e in span.events
            ],
            "status": {
                "code": span.status.status_code.name,
                "description": None if description is None else self.p.placeholder(description),
            },
            "links": len(span.links),
            "scope": span.instrumentation_scope.name,
        }

    def _make_wandb_sync(self, name: str, described: dict[str, Any]) -> Any:
        separator = described.get("separator")
        if described.get("naming") == "flat":
            naming = self.p.FlatMetricNamingStrategy()
        elif separator is not None:
            naming = self.p.HierarchicalMetricNamingStrategy(separator)
        else:
            naming = self.p.HierarchicalMetricNamingStrategy()
        config = self.p.Config(entity="vectors", run_name=name)
        run = lambda: next((r for r in stubs.RUNS if r.settings.get("name") == name), None)  # noqa: E731
        exporter = self.p.WandBExporterSync(config, naming)
        return exporter, lambda: [self.shown(r) for r in run().received] if run() else []

    # Operations of the core.

    def op_advance(self, op: dict[str, Any]) -> None:
        self.clock.wall += op.get("wall_sec", op.get("sec", 0.0))
        self.clock.perf += op.get("perf_sec", op.get("sec", 0.0))

    def _config(self, fields: dict[str, Any]) -> Any:
        given = self.value(fields)
        if isinstance(given.get("telemetry_config"), dict):
            given["telemetry_config"] = self.p.TrainingTelemetryConfig(**given["telemetry_config"])
        return self.p.OneLoggerConfig(**given)

    def _recorder(self, described: dict[str, Any]) -> Any:
        options = {}
        if "mode" in described:
            options["export_customization_mode"] = self.p.ExportCustomizationMode[described["mode"]]
        if "filter" in described:
            options["span_name_filter"] = described["filter"]
        exporters = [self.exporters[name] for name in described.get("exporters", [])]
        return self.p.DefaultRecorder(exporters, **options)

    def op_configure(self, op: dict[str, Any]) -> None:
        key = op.get("as_config")
        config = self.kept[key] if "config" not in op else self._config(op["config"])
        if key is not None:
            self.kept[key] = config
        recorder = self.kept[op["use_recorder"]] if "use_recorder" in op else self._recorder(op["recorder"])
        self.p.OneLoggerProvider.instance().configure(config, recorder)

    def op_new_recorder(self, op: dict[str, Any]) -> None:
        self.kept[op["as"]] = self._recorder(op["recorder"])

    def op_provider_state(self, op: dict[str, Any]) -> Any:
        provider = self.p.OneLoggerProvider.instance()
        return {"ready": provider.one_logger_ready, "enabled": provider.one_logger_enabled}

    def op_get_recorder(self, op: dict[str, Any]) -> str:
        return type(self.p.get_recorder()).__name__

    def op_instantiate_provider(self, op: dict[str, Any]) -> None:
        self.p.OneLoggerProvider()

    def op_force_disable(self, op: dict[str, Any]) -> None:
        self.p.OneLoggerProvider.instance().force_disable_logging()

    def recorder(self, op: dict[str, Any]) -> Any:
        return self.kept[op["recorder"]] if "recorder" in op else self.p.OneLoggerProvider.instance().recorder

    def span(self, op: dict[str, Any], key: str = "span") -> Any:
        return self.kept[op[key]] if op.get(key) is not None else None

    def op_start(self, op: dict[str, Any]) -> Any:
        span = self.recorder(op).start(
            span_name=self.value(op["name"]),
            span_attributes=self.attributes(op.get("span_attributes")),
            start_event_attributes=self.attributes(op.get("start_event_attributes")),
            start_time=self.moment(op.get("start_time")),
            parent_span=self.span(op, "parent"),
        )
        return self.span_result(span, op)

    def op_stop(self, op: dict[str, Any]) -> Any:
        return self.recorder(op).stop(
            span=self.span(op),
            stop_event_attributes=self.attributes(op.get("stop_event_attributes")),
            stop_time=self.moment(op.get("stop_time")),
        )

    def _event(self, op: dict[str, Any]) -> Any:
        attributes = self.attributes(op.get("attributes"))
        if "attributes_var" in op:
            attributes = self.kept[op["attributes_var"]]
        return self.p.Event.create(self.value(op["name"]), attributes, self.moment(op.get("timestamp")))

    def op_event(self, op: dict[str, Any]) -> Any:
        event = self.recorder(op).event(self.span(op), self._event(op))
        if "as" in op:
            self.kept[op["as"]] = event
        return None if event is None else {"event": event.name_str}

    def op_error(self, op: dict[str, Any]) -> Any:
        exception = self.exception(op["exception"]) if op.get("exception") else None
        recorder, span = self.recorder(op), self.span(op)
        if op.get("raised"):
            assert exception is not None
            try:
                raise exception
            except Exception as e:
                event = recorder.error(span, op["message"], e)
        elif exception is not None:
            event = recorder.error(span, op["message"], exception)
        else:
            event = recorder.error(span, op["message"])
        return None if event is None else {"event": event.name_str}

    def op_telemetry_data_error(self, op: dict[str, Any]) -> Any:
        return self.recorder(op).telemetry_data_error(op["message"], self.attributes(op.get("attributes")))

    def op_close(self, op: dict[str, Any]) -> Any:
        return self.recorder(op).close()

    def op_active_by_name(self, op: dict[str, Any]) -> Any:
        return [self.label(s.id) for s in self.recorder(op).get_active_spans_by_name(self.value(op["name"]))]

    def op_add_attribute(self, op: dict[str, Any]) -> None:
        self.span(op).add_attribute(op["name"], self.value(op["value"]))

    def op_add_attributes(self, op: dict[str, Any]) -> None:
        self.span(op).add_attributes(self.attributes(op["attributes"]))

    def op_span_info(self, op: dict[str, Any]) -> Any:
        span = self.span(op)
        shown = self.span_shown(span)
        return {**shown, "active": span.active, "events": [self.event_shown(e) for e in span.events]}

    def op_duration(self, op: dict[str, Any]) -> Any:
        return self.span(op).duration_msec()

    def op_inject_failures(self, op: dict[str, Any]) -> None:
        exporter = self.exporters[op["exporter"]]
        kind = {"ExportError": self.p.ExportError}.get(op["exception"]) or getattr(
            __import__("builtins"), op["exception"]
        )
        exporter.failing = [op.get("method", "*"), op["count"], kind]

    def op_enter(self, op: dict[str, Any]) -> Any:
        args = self.value(op.get("args", {}))
        for key in ("span_attributes", "start_event_attributes"):
            if key in args:
                args[key] = self.p.Attributes(args[key])
        context = None
        try:
            make = (
                self.p.timed_span
                if op["ctx"] == "timed_span"
                else getattr(self.p.modules["training_telemetry.api.context"], op["ctx"])
            )
            context = make(**args)
            span = context.__enter__()
        except BaseException:
            self.contexts.append(None)
            raise
        self.contexts.append(context)
        return self.span_result(span, op)

    def op_exit(self, op: dict[str, Any]) -> Any:
        context = self.contexts.pop()
        if context is None:
            return {"skipped": True}
        if not op.get("exception"):
            context.__exit__(None, None, None)
            return None
        error = self.exception(op["exception"])
        try:
            raise error
        except BaseException as e:
            if not context.__exit__(type(e), e, e.__traceback__):
                raise
        return None

    def op_in_thread(self, op: dict[str, Any]) -> Any:
        results: list[Any] = []

        def run() -> None:
            results.extend(self._run_ops(op["ops"]))

        if op.get("copy_context"):
            context = contextvars.copy_context()
            thread = threading.Thread(target=lambda: context.run(run))
        else:
            # Also where threads inherit their context (PEP 830, free-threaded builds): a plain thread has an empty one.
            thread = threading.Thread(target=lambda: contextvars.Context().run(run))
        thread.start()
        thread.join()
        return {"nested": results}

    def op_async_tasks(self, op: dict[str, Any]) -> Any:
        results: dict[str, list[Any]] = {name: [] for name in op["tasks"]}

        async def run_all() -> None:
            turns = {name: asyncio.Queue() for name in op["tasks"]}  # type: ignore[var-annotated]
            done = asyncio.Queue()  # type: ignore[var-annotated]

            async def run(name: str, ops: list[Any]) -> None:
                for one in ops:
                    await turns[name].get()
                    results[name].append(self._result(one))
                    await done.put(None)

            tasks = [asyncio.create_task(run(name, ops)) for name, ops in op["tasks"].items()]
            for name in op["schedule"]:
                await turns[name].put(None)
                await done.get()
            await asyncio.gather(*tasks)

        asyncio.run(run_all())
        return {"nested": results}

    def op_fork(self, op: dict[str, Any]) -> Any:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(write, json.dumps(self._run_ops(op["ops"])).encode())
            os._exit(0)
        os.close(write)
        os.waitpid(pid, 0)
        with open(read, "rb") as pipe:
            return {"nested": json.loads(pipe.read())}

    # Training.

    def op_tt(self, op: dict[str, Any]) -> Any:
        provider = self.p.TrainingTelemetryProvider.instance()
        match op["method"]:
            case "with_base_config":
                provider.with_base_config(self._config(op["config"]))
            case "with_config_override":
                provider.with_config_override(self.value(op["partial"]))
            case "with_exporter":
                provider.with_exporter(self.exporters[op["exporter"]])
            case "with_export_customization":
                provider.with_export_customization(self.p.ExportCustomizationMode[op["mode"]], op["filter"])
            case "set_training_telemetry_config":
                provider.set_training_telemetry_config(self.p.TrainingTelemetryConfig(**self.value(op["config"])))
            case "config":
                return self.config_shown(provider.config)
            case "recorder":
                return type(provider.recorder).__name__
            case "one_logger_ready":
                return provider.one_logger_ready
            case "with_config_override_from_json_file":
                provider.with_config_override_from_json_file(Path("overrides.json"))
            case "with_config_override_from_config_server":
                provider.with_config_override_from_config_server("http://127.0.0.1/")
            case method:
                getattr(provider, method)()
        return None

    def op_cb(self, op: dict[str, Any]) -> Any:
        call = getattr(self.p.modules["training_telemetry.api.callbacks"], op["fn"])
        return self.span_result(call(**self.value(op.get("args", {}))), op)

    def op_ptl_new(self, op: dict[str, Any]) -> None:
        options = {k: op[k] for k in ("call_on_app_start",) if k in op}
        self.callback = self.p.TimeEventCallback(self.p.TrainingTelemetryProvider.instance(), **options)

    def op_ptl_hook(self, op: dict[str, Any]) -> None:
        name = op["hook"]
        call = getattr(self.callback, name)
        step = op.get("global_step")
        if name.startswith("on_save_checkpoint"):
            call(*([] if step is None else [step]))
        elif re.fullmatch(r"on_(train|validation)(_batch)?_(start|end)", name):
            trainer = stubs.Trainer(global_step=step or 0)
            outputs = [None] if name.endswith("_batch_end") else []
            batch = [None, 0] if "_batch_" in name else []
            call(trainer, None, *outputs, *batch)
        else:
            call()

    # Configuration and values.

    def op_make_config(self, op: dict[str, Any]) -> Any:
        return self.config_shown(self._config(op["fields"]))

    def config_shown(self, config: Any) -> Any:
        shown = {
            name: self.shown(getattr(config, name))
            for name in [
                "application_name",
                "world_size",
                "session_tag",
                "is_baseline_run",
                "custom_metadata",
                "error_handling_strategy",
                "enable_for_current_rank",
                "summary_data_schema_version",
            ]
        }
        logger = config.logger_config
        shown["logger_config"] = {
            name: self.shown(getattr(logger, name))
            for name in ("log_level", "log_format", "log_file_path_for_info", "log_file_path_for_err")
        }
        telemetry = config.telemetry_config
        shown["telemetry_config"] = None if telemetry is None else self.training_config_shown(telemetry)
        return shown

    def op_make_training_config(self, op: dict[str, Any]) -> Any:
        return self.training_config_shown(self.p.TrainingTelemetryConfig(**self.value(op["fields"])))

    def training_config_shown(self, config: Any) -> Any:
        names = (
            "app_type perf_tag global_batch_size micro_batch_size seq_length flops_per_sample train_iterations_target "
            "train_samples_target log_every_n_train_iterations is_log_throughput_enabled save_checkpoint_strategy "
            "is_train_iterations_enabled is_validation_iterations_enabled is_test_iterations_enabled "
            "is_save_checkpoint_enabled custom_metadata"
        )
        return {name: self.shown(getattr(config, name)) for name in names.split()}

    def op_attributes(self, op: dict[str, Any]) -> Any:
        return self.shown(self.attributes(op["values"]))

    def op_new_attributes(self, op: dict[str, Any]) -> Any:
        made = self.kept[op["as"]] = self.attributes(op["values"])
        return self.shown(made)

    def op_attributes_get(self, op: dict[str, Any]) -> Any:
        return getattr(self.attributes(op["values"]), f"get_{op['type']}_value")(op["name"])

    def op_attributes_merge(self, op: dict[str, Any]) -> Any:
        return self.shown(self.p.Attributes.merge(self.attributes(op["a"]), self.attributes(op["b"])))

    def _timestamp_result(self, t: Any) -> Any:
        return {**self.timestamp(t), "milliseconds_since_epoch": t.milliseconds_since_epoch}

    def op_for_timestamp(self, op: dict[str, Any]) -> Any:
        return self._timestamp_result(self.p.TracingTimestamp.for_timestamp(**op["args"]))

    def op_timestamp_now(self, op: dict[str, Any]) -> Any:
        return self._timestamp_result(self.p.TracingTimestamp.now())

    def op_timestamp_from_json(self, op: dict[str, Any]) -> Any:
        return self.timestamp(self.p.TracingTimestamp.from_json(op["data"]))

    def op_event_from_json(self, op: dict[str, Any]) -> Any:
        event = self.p.Event.from_json(op["data"])
        return {"class": type(event).__name__, "json": self.shown(event.to_json())}

    def op_span_from_json(self, op: dict[str, Any]) -> Any:
        span = self.p.Span.from_json(op["data"])
        shown = self.shown(span.to_json())
        return {"active": span.active, "id_type": type(span.id).__name__, "json": shown}

    def op_error_event_to_json(self, op: dict[str, Any]) -> Any:
        exception = self.exception(op["exception"]) if op.get("exception") else None
        event = self.p.ErrorEvent.create(op["message"], exception, op.get("traceback"))
        return self.shown(event.to_json())

    def op_telemetry_error_to_json(self, op: dict[str, Any]) -> Any:
        kind = self.p.TelemetryDataError.ErrorType(op["error_type"])
        made = self.p.TelemetryDataError.create(kind, op["message"], self.attributes(op.get("attributes")))
        return self.shown(made.to_json())

    def op_to_json(self, op: dict[str, Any]) -> Any:
        written = self.shown(self.kept[op["of"]].to_json())
        # A UUID, or its text.
        return {**written, "id": self.labels.get(written["id"], written["id"])} if "id" in written else written

    def op_json_dumps_span(self, op: dict[str, Any]) -> Any:
        written = json.loads(json.dumps(self.kept[op["of"]].to_json()))
        return self._record(written)

    def op_new_span(self, op: dict[str, Any]) -> Any:
        return self.span_result(self.p.Span.create(self.value(op["name"])), op)

    def op_stop_span(self, op: dict[str, Any]) -> None:
        self.span(op).stop(self.attributes(op.get("stop_event_attributes")), self.moment(op.get("stop_time")))

    def op_exporter_call(self, op: dict[str, Any]) -> None:
        call = getattr(self.exporters[op["exporter"]], op["method"])
        match op["method"]:
            case "export_start" | "export_stop":
                call(self.span(op))
            case "export_event":
                call(self._event(op), self.span(op))
            case "export_error":
                call(self.p.ErrorEvent.create(op["message"]), self.span(op))
            case "export_telemetry_data_error":
                kind = self.p.TelemetryDataError.ErrorType(op["error_type"])
                call(self.p.TelemetryDataError.create(kind, op["message"]))
            case _:
                call()

    def op_exporter_state(self, op: dict[str, Any]) -> Any:
        exporter = self.exporters[op["exporter"]]
        return {"ready": exporter.ready, "closed": exporter.closed}

    def op_deserialize_log(self, op: dict[str, Any]) -> Any:
        return self.p.LoggerExporter.deserialize_log(op["text"])


def _is_attribute(x: Any) -> bool:
    return type(x).__name__ == "Attribute"


def recording_exporter(package: Package, scenario: Scenario) -> type:
    """The class of an exporter that stores each call, and fails when it is told to."""

    def override(method: Any) -> Any:
        # What typing.override does from Python 3.12 on; the packages ask for it.
        method.__override__ = True
        return method

    class RecordingExporter(package.BaseExporter):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.received: list[dict[str, Any]] = []
            self.failing: list[Any] | None = None

        def _store(self, call: str, **more: Any) -> None:
            record = {"call": call, **more}
            self.received.append(record)
            if self.failing and self.failing[0] in ("*", call) and self.failing[1] > 0:
                self.failing[1] -= 1
                record["failed"] = True
                raise self.failing[2]("injected failure")

        @override
        def initialize(self) -> None:
            self._store("initialize")
            super().initialize()

        @override
        def close(self) -> None:
            self._store("close")
            super().close()

        @override
        def export_start(self, span: Any) -> None:
            super().export_start(span)
            shown = scenario.span_shown(span)
            self._store("export_start", span=shown, event=scenario.event_shown(span.start_event))

        @override
        def export_stop(self, span: Any) -> None:
            super().export_stop(span)
            shown = scenario.span_shown(span)
            self._store("export_stop", span=shown, event=scenario.event_shown(span.stop_event))

        @override
        def export_event(self, event: Any, span: Any) -> None:
            super().export_event(event, span)
            self._store("export_event", span_id=scenario.label(span.id), event=scenario.event_shown(event))

        @override
        def export_error(self, event: Any, span: Any) -> None:
            super().export_error(event, span)
            self._store("export_error", span_id=scenario.label(span.id), event=scenario.event_shown(event))

        @override
        def export_telemetry_data_error(self, error: Any) -> None:
            super().export_telemetry_data_error(error)
            kind, event = error.error_type.value, scenario.event_shown(error)
            self._store("export_telemetry_data_error", error_type=kind, event=event)

    return RecordingExporter


def run(package: Package, case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a case gives, in this process, which is not good for another case afterwards."""
    for name in PARAMETERS:
        os.environ.pop(name, None)
    os.environ.update(case.get("env", {}))
    os.chdir(folder)
    if "ops" in case:
        return Scenario(package, case, folder).run()
    from exporter_config import Configuration

    return Configuration(package, case, folder).run()


def in_a_fork(package: Package, case: dict[str, Any]) -> dict[str, Any]:
    """What a case gives, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            try:
                actual = run(package, case, Path(folder))
            except BaseException:
                actual = {"driver_failed": traceback.format_exc()}
            with open(write, "wb") as pipe:
                pipe.write(json.dumps(actual).encode())
            os._exit(0)
        os.close(write)
        with open(read, "rb") as pipe:
            written = pipe.read()
        status = os.waitpid(pid, 0)[1]
        return json.loads(written) if written else {"driver_failed": f"wait status {status}"}  # type: ignore[no-any-return]


def main() -> None:
    stubs.install()
    logging.getLogger().addHandler(logging.NullHandler())
    package = Package(sys.argv[1])
    for path in sys.argv[2:]:
        case = json.loads(Path(path).read_text())
        print(json.dumps({"id": case["id"], "actual": in_a_fork(package, case)}), flush=True)


if __name__ == "__main__":
    main()
