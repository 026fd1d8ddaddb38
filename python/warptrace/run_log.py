"""The run log of an inference server.

>>> log = RunLog("events.jsonl")  # doctest: +SKIP
>>> log.run_start(backend="cuda", model="llama-8b")  # doctest: +SKIP
>>> with log.begin("llama-8b") as request:  # doctest: +SKIP
...     request.served(prompt_tokens=12, completion_tokens=128, extra={"request_id": "r-1"})
>>> log.shutdown(deadline_secs=30)  # doctest: +SKIP
"""

from __future__ import annotations

from warptrace._native import RunLog, RunLogCounters, RunLogRequest

__all__ = ["RunLog", "RunLogCounters", "RunLogRequest"]
