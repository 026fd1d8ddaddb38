"""Telemetry as Arrow tables, which pandas, Polars, PyArrow and DuckDB take without a copy.

>>> table = load_memory("memory/")  # doctest: +SKIP
>>> table.to_pandas()  # doctest: +SKIP
"""

from __future__ import annotations

from warptrace._native import (
    SESSION_TABLES,
    ArrowTable,
    load_annotations,
    load_memory,
    load_run_log,
    load_session_table,
)

__all__ = [
    "SESSION_TABLES",
    "ArrowTable",
    "load_annotations",
    "load_memory",
    "load_run_log",
    "load_session_table",
]
