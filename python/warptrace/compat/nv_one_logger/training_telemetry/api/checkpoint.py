"""How checkpoints are saved."""

from __future__ import annotations

from warptrace.compat.nv_one_logger._enums import StrEnum


class CheckPointStrategy(StrEnum):
    SYNC = "sync"
    ASYNC = "async"


class CheckPointType(StrEnum):
    GLOBAL = "global"
    LOCAL = "local"
