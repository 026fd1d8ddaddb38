"""The vectors of GPU memory telemetry that are about Python's names, and the names themselves.

All run twice: against the package ``stormlog`` and against ``warptrace.compat.stormlog``.
"""

import dataclasses
import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support import by_id, conformance, module_or_skip, vectors


@pytest.fixture(params=["stormlog.telemetry", "warptrace.compat.stormlog.telemetry"])
def api(request: pytest.FixtureRequest) -> Any:
    return module_or_skip(request.param)


@pytest.fixture(params=["stormlog.session", "warptrace.compat.stormlog.session"])
def session(request: pytest.FixtureRequest) -> Any:
    return module_or_skip(request.param)


def revived(value: Any) -> Any:
    """Floats that JSON cannot hold, from the vectors' notation."""
    if isinstance(value, list):
        return [revived(v) for v in value]
    if isinstance(value, dict):
        if set(value) == {"$float"}:
            return float(value["$float"])
        return {k: revived(v) for k, v in value.items()}
    return value


def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def same(got: Any, want: Any) -> bool:
    if isinstance(want, dict):
        return isinstance(got, dict) and got.keys() == want.keys() and all(same(got[k], want[k]) for k in want)
    if isinstance(want, list):
        return isinstance(got, list) and len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, float) and isinstance(got, float):
        return (math.isnan(got) and math.isnan(want)) or math.isclose(got, want, rel_tol=1e-6, abs_tol=1e-9)
    return type(got) is type(want) and got == want


def check(call: Any, expect: dict[str, Any], tags: list[str]) -> None:
    """The result, or the error: its text where that is part of the behaviour."""
    if "error" not in expect:
        got, want = plain(call()), revived(expect["ok"])
        assert same(got, want), f"{got}\n{want}"
        return
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    unsaid = {"parser-message", "os-message"} & set(tags)
    if expect.get("error_kind") == "validation" and not unsaid:
        assert str(caught.value) == expect["error"]


def record_of(case: dict[str, Any]) -> Any:
    return json.loads(case["record_text"]) if "record_text" in case else revived(case["record"])


@pytest.mark.parametrize("case", by_id(vectors("memory/records.jsonl")))
def test_records(api: Any, case: dict[str, Any]) -> None:
    args = {k: revived(v) for k, v in case.get("args", {}).items() if v is not None}

    def call() -> Any:
        return dataclasses.asdict(api.telemetry_event_from_record(record_of(case), **args))

    check(call, case["expect"], case["tags"])


@pytest.mark.parametrize("case", by_id(vectors("memory/identity.jsonl")))
def test_identity(api: Any, case: dict[str, Any]) -> None:
    kwargs = revived(case["kwargs"])
    check(lambda: api.resolve_distributed_identity(**kwargs), case["expect"], case["tags"])


@pytest.mark.parametrize("case", by_id(vectors("memory/projection.jsonl")))
def test_projection(api: Any, case: dict[str, Any]) -> None:
    def call() -> Any:
        event = api.telemetry_event_from_record(record_of(case))
        projected = api.project_telemetry_event(event)
        return {f.name: plain(getattr(projected, f.name)) for f in dataclasses.fields(projected)}

    check(call, case["expect"], case["tags"])


@pytest.mark.parametrize("case", by_id(vectors("memory/sessions.jsonl")))
def test_sessions(session: Any, case: dict[str, Any]) -> None:
    given = revived(case["input"])
    summary = session.session_summary_from_dict

    class Loaded:
        def __init__(self, of: Any, events: int) -> None:
            self.summary, self.events = summary(of), [None] * events

    def call() -> Any:
        match case["op"]:
            case "from_dict":
                return session.session_summary_to_dict(summary(given["payload"]))
            case "sort":
                return [s.session_id for s in session.sort_session_summaries(map(summary, given["summaries"]))]
            case "default":
                chosen = session.select_default_loaded_session([Loaded(*pair) for pair in given["loaded"]])
                return chosen and chosen.summary.session_id
            case "finalize":
                ended = session.finalize_session_summary(summary(given["summary"]), ended_at_ns=given["ended_at_ns"])
                return session.session_summary_to_dict(ended)
            case "stable_legacy_session_id":
                return session.stable_legacy_session_id(*given["parts"])
            case "normalize_status":
                return session.normalize_session_status(given["value"])
        raise AssertionError(case["op"])

    check(call, case["expect"], case["tags"])


def loadable() -> list[Any]:
    """Not those of the CSV loader, which is another module's."""
    return [p for p in by_id(vectors("memory/files_expected.jsonl")) if p.values[0]["loader"] == "sessions"]


FILES = conformance() / "memory/files"


def placed(api: Any, session: Any, value: Any) -> Any:
    """An expected value with this folder's path and the ids that are made of it."""
    if isinstance(value, list):
        return [placed(api, session, v) for v in value]
    if isinstance(value, dict):
        return {placed(api, session, k): placed(api, session, v) for k, v in value.items()}
    if not isinstance(value, str):
        return value
    value = value.replace("{FILES}", str(FILES.resolve()))
    while "{LEGACY:" in value:
        before, _, rest = value.partition("{LEGACY:")
        place, _, after = rest.partition("}")
        relative, _, kind = place.rpartition(":")
        made = session.stable_legacy_session_id(str((FILES / relative).resolve()), kind)
        value = before + made + after
    return value


@pytest.mark.parametrize("case", loadable())
def test_files(api: Any, case: dict[str, Any]) -> None:
    own = api.__name__.rpartition(".")[0]
    session = module_or_skip(f"{own}.session")
    args = dict(case.get("args") or {})
    wanted = args.pop("session_id", None)
    path = conformance() / "memory" / case["path"]
    expect = placed(api, session, revived(case["expect"]))

    def load() -> Any:
        return [
            {
                "summary": session.session_summary_to_dict(loaded.summary),
                "event_count": len(loaded.events),
                "events": [dataclasses.asdict(e) for e in loaded.events],
                "sources_loaded": loaded.sources_loaded,
                "warnings": loaded.warnings,
            }
            for loaded in api.load_telemetry_sessions(path, **args)
        ]

    if "sessions" not in expect:
        check(load, expect, case["tags"])
        return
    got = load()
    assert same(plain(got), expect["sessions"]), f"{got}\n{expect['sessions']}"
    want = expect["load_events"]
    if "error" in want:
        with pytest.raises(ValueError, match="not found"):
            api.load_telemetry_events(path, session_id=wanted, **args)
        return
    events = api.load_telemetry_events(path, session_id=wanted, **args)
    assert len(events) == want["count"]
    assert sorted({e.session_id for e in events}) == sorted(set(want["session_ids"]))


V4 = {
    "schema_version": 4,
    "session_id": "S",
    "timestamp_ns": 5,
    "event_type": "sample",
    "collector": "c",
    "sampling_interval_ms": 100,
    "pid": 1,
    "host": "h",
    "device_id": 0,
    "allocator_allocated_bytes": 1,
    "allocator_reserved_bytes": 2,
    "allocator_active_bytes": None,
    "allocator_inactive_bytes": None,
    "allocator_change_bytes": 0,
    "device_used_bytes": 2,
    "device_free_bytes": None,
    "device_total_bytes": 9,
    "context": None,
    "metadata": {},
}


def test_names_signatures_and_fields(api: Any) -> None:
    theirs = module_or_skip("stormlog.telemetry")
    assert set(theirs.__all__) <= set(api.__all__)
    for name in theirs.__all__:
        here, there = getattr(api, name), getattr(theirs, name)
        if dataclasses.is_dataclass(there):
            assert [(f.name, f.default) for f in dataclasses.fields(here)] == [
                (f.name, f.default) for f in dataclasses.fields(there)
            ]
        elif inspect.isfunction(there):
            parameters = inspect.signature(here).parameters.values()
            assert [(p.name, p.kind, p.default) for p in parameters] == [
                (p.name, p.kind, p.default) for p in inspect.signature(there).parameters.values()
            ]
        elif isinstance(there, int):
            assert here == there


def test_an_event_becomes_a_dict_in_the_order_in_which_it_is_written(api: Any) -> None:
    event = api.telemetry_event_from_record(V4)
    record = api.telemetry_event_to_dict(event)
    assert list(record)[:4] == ["schema_version", "session_id", "timestamp_ns", "event_type"]
    assert api.telemetry_event_from_record(record) == event
    assert api.validate_telemetry_record(record) is None


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 5},
        {"schema_version": "4"},
        {"session_id": ""},
        {"session_id": 7},
        {"timestamp_ns": -1},
        {"event_type": " "},
        {"collector": 5},
        {"pid": -2},
        {"host": None},
        {"rank": 3},
        {"device_used_bytes": 10},
        {"allocator_allocated_bytes": "1"},
        {"metadata": None},
        {"unknown": 1},
    ],
)
def test_what_is_no_record(api: Any, change: dict[str, Any]) -> None:
    theirs = module_or_skip("stormlog.telemetry")
    record = {**theirs.telemetry_event_to_dict(theirs.telemetry_event_from_record(V4)), **change}
    with pytest.raises(ValueError) as wanted:  # noqa: PT011
        theirs.validate_telemetry_record(record)
    with pytest.raises(ValueError) as got:  # noqa: PT011
        api.validate_telemetry_record(record)
    assert str(got.value) == str(wanted.value)


def test_a_projected_record_does_not_change(api: Any) -> None:
    projected = api.project_telemetry_events([V4, api.telemetry_event_from_record(V4)])
    assert projected[0] == projected[1]
    with pytest.raises(TypeError):
        projected[0].attributes["x"] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        projected[0].event_type = "x"


def test_a_loaded_session_says_its_resources_and_correlations_once(api: Any, tmp_path: Path) -> None:
    lines = [{**V4, "timestamp_ns": n, "device_id": n % 2} for n in range(4)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (loaded,) = api.load_telemetry_sessions(tmp_path / "m.jsonl")
    assert len(loaded.telemetry_records()) == 4
    assert [r["device_id"] for r in loaded.resources()] == [0, 1]
    assert [c["session_id"] for c in loaded.correlations()] == ["S"]
    assert api.load_telemetry_events(str(tmp_path / "m.jsonl"), session_id="S")[0].timestamp_ns == 0
    with pytest.raises(ValueError, match="Requested session_id not found: T"):
        api.load_telemetry_events(tmp_path / "m.jsonl", session_id="T")
