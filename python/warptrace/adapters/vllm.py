"""vLLM's requests, each as an interval that is sent when it has finished.

>>> from warptrace.adapters.vllm import RequestLogger
>>> engine = AsyncLLM.from_engine_args(args, stat_loggers=[RequestLogger])

For a server, without code:

    PYTHONPATH=$(python -m warptrace.adapters.vllm) vllm serve MODEL

which puts our entry point of vLLM's group ``vllm.stat_logger_plugins`` on the path. It is not among those of this
package, since vLLM computes statistics for any logger that it finds, also where they are switched off.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from warptrace.adapters._quiet import failed, quietly
from warptrace.adapters._steps import shared_writer
from warptrace.adapters._vllm_processes import Processes
from warptrace.annotation import AnnotationWriter


def _base() -> Any:
    try:
        from vllm.v1.metrics.loggers import StatLoggerBase  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return object
    return StatLoggerBase


_Base: Any = _base()


class RequestLogger(_Base):  # type: ignore[misc]
    """A stat logger of vLLM's (V1 engine, 0.11 or later) that says what each request was.

    Labels: ``request_id``, ``model``, ``prompt_len``, ``output_len`` (tokens), ``preempted`` (how often),
    ``arrival``, ``first_token``, ``finished`` (Unix nanoseconds). ``first_token`` is late by what the last token took
    from the engine to the server, a millisecond or so. They are about the processes that use the device: the engine's
    workers, or its core.
    """

    def __init__(self, vllm_config: Any, engine_index: int = 0, *, writer: AnnotationWriter | None = None) -> None:
        self._writer = writer
        self._model = _model_of(vllm_config)
        self._processes = Processes()

    @quietly
    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """One iteration of the engine."""
        if iteration_stats is None or not iteration_stats.finished_requests:
            return
        finished_ns = int(iteration_stats.iteration_timestamp * 1e9)
        pids = self._processes.of_engine(engine_idx)
        for request in iteration_stats.finished_requests:
            if request.request_id is None:
                failed("naming requests", TypeError("this vLLM does not say which request has finished"))
                return
            arrival_ns = finished_ns - int(request.e2e_latency * 1e9)
            first_ns = finished_ns - int(request.decode_time * 1e9)
            _say(
                self._writer or shared_writer(),
                pids,
                request_id=request.request_id,
                model=self._model,
                prompt_len=request.num_prompt_tokens,
                output_len=request.num_generation_tokens,
                preempted=getattr(request, "num_preemptions", None),
                arrival_ns=arrival_ns,
                first_ns=max(arrival_ns, first_ns) if request.num_generation_tokens else None,
                finished_ns=finished_ns,
            )

    def log_engine_initialized(self) -> None:
        """The engine's processes are there."""
        self._processes = Processes()

    def log(self) -> None:
        """Nothing is kept back."""

    def record_sleep_state(self, is_awake: int = 0, level: int = 0) -> None:
        """Not said."""


@quietly
def say_outputs(outputs: Iterable[Any], *, model: str | None = None, writer: AnnotationWriter | None = None) -> None:
    """Says the requests that ``LLM.generate`` has answered, from the metrics in their outputs.

    vLLM has those only when statistics are on: ``LLM(..., disable_log_stats=False)``.
    """
    pids = Processes().of_engine(0)
    # The engine's times are of the monotonic clock, which all processes of a machine share.
    offset_ns = time.time_ns() - time.monotonic_ns()
    for output in outputs:
        stats = output.metrics
        if stats is None:
            failed("naming requests", TypeError("outputs without metrics: LLM(..., disable_log_stats=False) has them"))
            return
        if not stats.last_token_ts:
            continue
        _say(
            writer or shared_writer(),
            pids,
            request_id=output.request_id,
            model=model,
            prompt_len=len(output.prompt_token_ids or ()),
            output_len=stats.num_generation_tokens,
            preempted=getattr(stats, "num_preemptions", None),
            arrival_ns=int(stats.arrival_time * 1e9),
            first_ns=offset_ns + int(stats.first_token_ts * 1e9),
            finished_ns=offset_ns + int(stats.last_token_ts * 1e9),
        )


def _say(
    writer: AnnotationWriter,
    pids: Iterable[int],
    *,
    request_id: str,
    model: str | None,
    prompt_len: int,
    output_len: int,
    preempted: int | None,
    arrival_ns: int,
    first_ns: int | None,
    finished_ns: int,
) -> None:
    known = {
        "request_id": request_id,
        "model": model,
        "prompt_len": prompt_len,
        "output_len": output_len,
        "preempted": preempted,
        "arrival": arrival_ns,
        "first_token": first_ns,
        "finished": finished_ns,
    }
    labels = {key: value for key, value in known.items() if value is not None}
    for pid in pids:
        writer.span(labels, start_ns=arrival_ns, end_ns=max(arrival_ns, finished_ns), pid=pid)


def _model_of(vllm_config: Any) -> str | None:
    model = getattr(vllm_config, "model_config", None)
    name = getattr(model, "served_model_name", None) or getattr(model, "model", None)
    if isinstance(name, (list, tuple)):
        name = name[0] if name else None
    return None if name is None else str(name)


if __name__ == "__main__":
    print(Path(__file__).with_name("vllm_plugin"))
