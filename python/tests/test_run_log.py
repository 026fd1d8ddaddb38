"""warptrace.RunLog: what its lines say, and what they cost when nothing can be written."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from warptrace import RunLog


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_from_its_start_to_its_end(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log")
    assert log.origin_micros is None
    log.run_start(backend="cuda", model="m", model_path="/m", config={"tp": 2, "nan": float("nan")}, host="h")
    assert log.origin_micros is not None
    with log.begin("m") as request:
        assert log.in_flight == 1
        request.served(prompt_tokens=3, completion_tokens=5, extra={"request_id": "r1", "model": "not this"})
        assert request.elapsed_secs is None
        request.failed()
    log.request("m", prompt_tokens=1, completion_tokens=2, latency_micros=7, extra='{"request_id": "r2"}')
    log.error("m", status=503, code="overloaded", message="later", latency_micros=9)
    log.record_error()
    assert log.shutdown(deadline_secs=1) == "completed"
    log.run_end()
    start, first, second, failed, bare, end = records(tmp_path / "log")
    assert start["host"]["name"] == "h"
    assert start["backend"]["kind"] == "cuda"
    assert start["config"] == {"tp": 2, "nan": None}
    assert first["extra"]["request_id"] == "r1"
    assert first["extra"]["model"] == "m"
    assert first["extra"]["completion_tokens"] == 5
    assert second["extra"]["latency_us"] == 7
    assert (failed["kind"], failed["extra"]["status"], failed["extra"]["code"]) == ("error", 503, "overloaded")
    assert bare["extra"] == {}
    assert {k: end["stats"][k] for k in ("requests", "errors", "tokens_out")} == {
        "requests": 2,
        "errors": 2,
        "tokens_out": 7,
    }
    assert (log.counters.requests, log.counters.errors, log.counters.tokens_out) == (2, 2, 7)
    assert log.dropped == 0


def test_an_exception_passes_through_and_its_request_has_failed(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log")
    log.run_start()
    with pytest.raises(ZeroDivisionError), log.begin("m"):
        _ = 1 / 0
    with log.begin("m"):
        pass
    first, second = records(tmp_path / "log")[1:]
    assert (first["extra"]["status"], first["extra"]["code"], first["extra"]["message"]) == (
        500,
        "ZeroDivisionError",
        "",
    )
    assert (second["extra"]["status"], second["extra"]["code"]) == (499, "abandoned")
    assert log.in_flight == 0


def test_a_block_ends_its_run(tmp_path: Path) -> None:
    with RunLog(tmp_path / "a") as log:
        log.run_start()
    log = RunLog(tmp_path / "b")
    log.run_start()
    with pytest.raises(KeyError), log:
        raise KeyError
    assert [records(tmp_path / name)[-1]["reason"] for name in ("a", "b")] == ["completed", "errored"]


def test_without_a_path_nothing_is_written_and_counters_move() -> None:
    for log in (RunLog(), RunLog(None), RunLog("")):
        assert not log.is_enabled
        log.run_start()
        log.request(completion_tokens=4)
        assert log.counters.tokens_out == 4
        log.run_end()


def test_what_cannot_be_written_is_dropped_and_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path / "none" / "log")
    log.run_start()
    log.request()
    log.request()
    assert log.dropped == 3
    assert len(capfd.readouterr().err.splitlines()) == 1


class Odd:
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "odd", [Odd(), object(), float("nan"), float("inf"), 1 << 200, "x", b"\xff", "\ud800", [1], {}]
)
def test_whatever_is_said_nothing_is_raised_and_every_line_is_json(odd: Any, tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log")
    log.run_start(backend=odd, model=odd, model_path=odd, config=odd, host=odd)
    log.begin(odd).served(prompt_tokens=odd, completion_tokens=odd, extra=odd)
    log.begin(odd).failed(status=odd, code=odd, message=odd, extra={"odd": odd})
    log.request(odd, prompt_tokens=odd, completion_tokens=odd, latency_micros=odd, extra={"odd": [odd, {"odd": odd}]})
    log.error(odd, status=odd, code=odd, message=odd, latency_micros=odd, extra=odd)
    log.run_end()
    assert log.dropped == 0
    assert len(records(tmp_path / "log")) == 6


def test_threads_and_forked_children_write_whole_lines(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log")
    log.run_start()

    def work() -> None:
        for n in range(100):
            log.request("m" * 5000, completion_tokens=1, extra={"n": n})

    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            work()
            os._exit(0)
        children.append(child)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3
    log.run_end_aggregated()
    lines = records(tmp_path / "log")
    assert len(lines) == 602
    assert lines[-1]["stats"]["requests"] == 600
    assert log.counters.requests == 300


def test_a_worker_that_was_started_joins_the_run(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log")
    log.run_start()
    assert log.origin_micros is not None
    worker = RunLog.join(tmp_path / "log", origin_micros=log.origin_micros - 5_000_000)
    worker.request("m")
    assert records(tmp_path / "log")[1]["t"] >= 5


def test_shutdown_waits_for_requests_and_not_longer_than_its_deadline(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log")
    log.run_start()
    begun = log.begin("m")
    answered = threading.Timer(0.05, begun.served)
    answered.start()
    assert log.shutdown(deadline_secs=30) == "completed"
    assert [r["kind"] for r in records(tmp_path / "log")] == ["run_start", "eval", "run_end"]
    other = RunLog(tmp_path / "other")
    other.run_start()
    left = other.begin("m")
    assert other.shutdown(deadline_secs=0) == "interrupted"
    left.served()
