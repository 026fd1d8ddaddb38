"""Records as lines of a Python logger: ``[type="start" | pid=4242 | name="a" | ...]``."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

from warptrace.compat.nv_one_logger.exporter.base_json_exporter import BaseJsonExporter
from warptrace.compat.nv_one_logger.exporter.exporter import ExportError

_SEPARATOR = " | "
_DECODER = json.JSONDecoder()
_PLAIN_KEY = re.compile(r"(?! )[^.=|\[\]\"\\\x00-\x1f\x7f]+(?<! )")


class LoggerExporter(BaseJsonExporter):
    """Logs one line at INFO for each record.

    Objects within objects are dotted keys. A key with a dot of its own, or anything else that would not read back, is
    a JSON string: ``attributes."gen_ai.system"="x"``.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger

    def _write(self, record: dict[str, Any]) -> None:
        pairs = (f"{key}={json.dumps(value)}" for key, value in _flat(record))
        self._logger.info("[%s]", _SEPARATOR.join(pairs))

    @staticmethod
    def deserialize_log(text: str) -> dict[str, Any]:
        """The record of a line, whatever stands before and after its brackets."""
        start, end = text.find("["), text.rfind("]")
        if start < 0 or end < start:
            raise ExportError(f"no brackets: {text}", "log_line_not_bracketed")
        record: dict[str, Any] = {}
        for (*outer, last), value in _pairs(text[start + 1 : end]):
            target = record
            for part in outer:
                target = target.setdefault(part, {})
            target[last] = value
        return record


def _flat(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key in sorted(record, reverse=True):
        value = record[key]
        name = prefix + (key if _PLAIN_KEY.fullmatch(key) else json.dumps(key))
        if isinstance(value, dict):
            yield from _flat(value, name + ".")
        else:
            yield name, value


def _pairs(text: str) -> Iterator[tuple[list[str], Any]]:
    """Keys, split at their dots, and values: JSON, or what is not JSON as it stands."""
    at = 0
    while at < len(text):
        key, start = _key(text, at)
        try:
            value, end = _DECODER.raw_decode(text, start)
            if not (end == len(text) or text.startswith(_SEPARATOR, end)):
                raise ValueError(f"more after a value: {text[end:]}")
        except ValueError:
            end = text.find(_SEPARATOR, start)
            end = len(text) if end < 0 else end
            value = text[start:end]
        yield key, value
        at = end + len(_SEPARATOR)


def _key(text: str, at: int) -> tuple[list[str], int]:
    """The key that starts at ``at``, and where its value starts."""
    parts: list[str] = []
    while True:
        if text.startswith('"', at):
            part, end = _DECODER.raw_decode(text, at)
        else:
            found = re.compile(r"[^.=]*").match(text, at)
            assert found is not None
            part, end = found[0], found.end()
        parts.append(part)
        match text[end : end + 1]:
            case "=":
                return parts, end + 1
            case ".":
                at = end + 1
            case _:
                raise ValueError(f"no value: {text[at:]}")
