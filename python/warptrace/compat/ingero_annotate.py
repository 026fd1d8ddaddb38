"""The documented names of the package ``ingero-annotate`` 0.1.1, over ``warptrace.AnnotationWriter``.

``from warptrace.compat import ingero_annotate`` is the whole migration; lines, errors and results are the same. What
is better here: ``write`` never waits for a recorder that does not read (it drops, counts and returns False), a recorder
that comes later is found, a forked child has a connection of its own, and the socket that WARPTRACE_ANNOTATE_SOCKET
names comes before the usual places.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import time
from types import TracebackType
from typing import Any

from warptrace.annotation import AnnotationWriter as _Writer
from warptrace.annotation import encode_annotation as _encode_plain

ANNOTATION_PROTOCOL_VERSION = 1
ANNOTATION_SOCKET_NAME = "annotate.sock"
ANNOTATION_SOCKET_DIR = "/run/ingero"
MAX_LABEL_KEY_LEN = 64
MAX_LABEL_VALUE_LEN = 256
MAX_LABELS_PER_ANNOTATION = 32
MAX_LINE_BYTES = 16384
KEY_STEP = "step"
KEY_EPOCH = "epoch"
KEY_TASK_ID = "task_id"
KEY_PHASE = "phase"
KEY_RUN_ID = "run_id"

logger = logging.getLogger("ingero.annotate")

_KEY = re.compile(r"[A-Za-z0-9_.\-]{1,64}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class AnnotationError(ValueError):
    """Labels or a line against the protocol."""


def is_valid_label_key(key: str) -> bool:
    """Whether a key is 1 to 64 characters of ``A-Z a-z 0-9 _ . -``."""
    return _KEY.fullmatch(key) is not None


def validate_labels(labels: dict[str, str]) -> None:
    """Raises AnnotationError for the first label that is against the protocol."""
    if not labels:
        raise AnnotationError("no labels")
    if len(labels) > MAX_LABELS_PER_ANNOTATION:
        raise AnnotationError(f"{len(labels)} labels, more than {MAX_LABELS_PER_ANNOTATION}")
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise AnnotationError(f"label {key!r}: keys and values are strings")
        if not is_valid_label_key(key):
            raise AnnotationError(f"label key {key!r} is not 1 to {MAX_LABEL_KEY_LEN} of A-Z a-z 0-9 _ . -")
        if (size := len(value.encode("utf-8"))) > MAX_LABEL_VALUE_LEN:
            raise AnnotationError(f"label {key!r}: a value of {size} bytes, more than {MAX_LABEL_VALUE_LEN}")
        if _CONTROL.search(value):
            raise AnnotationError(f"label {key!r}: a control character in its value")


def encode_annotation(labels: dict[str, str], pid: int | None = None, ts_ns: int | None = None) -> bytes:
    """The line that says so, with its line feed; raises AnnotationError for what is against the protocol."""
    line = _encode_plain(labels, pid=pid, ts_ns=ts_ns)
    if line is not None:
        return line
    # What is not plain is converted, or refused, as that package does.
    validate_labels(labels)
    record: dict[str, Any] = {"labels": labels}
    if pid is not None:
        record["pid"] = int(pid)
    if ts_ns is not None:
        record["ts"] = int(ts_ns)
    line = json.dumps(record, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise AnnotationError(f"a line of {len(line)} bytes, more than {MAX_LINE_BYTES}")
    return line


def default_socket_path() -> str:
    """Where that package looks: the machine's socket if there is one, else the user's."""
    system = os.path.join(ANNOTATION_SOCKET_DIR, ANNOTATION_SOCKET_NAME)
    try:
        if stat.S_ISSOCK(os.lstat(system).st_mode):
            return system
    except OSError:
        pass
    return os.path.join(os.path.expanduser("~"), ".ingero", "annotate", ANNOTATION_SOCKET_NAME)


def now_ns() -> int:
    """Unix time in nanoseconds."""
    return time.time_ns()


class AnnotationWriter:
    """Sends annotations; never raises because nobody listens, and never waits.

    Without ``socket_path``, all the usual places are tried, also those of warptrace; ``connect_timeout`` is not needed,
    since a local socket answers at once.
    """

    def __init__(self, socket_path: str | None = None, connect_timeout: float = 2.0) -> None:
        named = socket_path or os.environ.get("WARPTRACE_ANNOTATE_SOCKET")
        self._socket_path = named or default_socket_path()
        self._writer = _Writer(socket_path or None)
        self._write_plain = self._writer.write_plain
        self._told = False
        if not self._writer.connect():
            self._tell()

    @property
    def active(self) -> bool:
        """Whether there is a connection."""
        return self._writer.is_connected

    @property
    def socket_path(self) -> str:
        return self._socket_path

    def write(self, labels: dict[str, str], pid: int | None = None, ts_ns: int | None = None) -> bool:
        """Sends labels and returns whether they were taken; raises AnnotationError for what is against the protocol."""
        taken = self._write_plain(labels, pid, ts_ns)
        if taken:
            return True
        if taken is None:
            taken = self._writer.write_encoded(encode_annotation(labels, pid, ts_ns))
        if not taken:
            self._tell()
        return taken

    def close(self) -> None:
        self._told = True
        self._writer.close()

    def __enter__(self) -> AnnotationWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            logger.info("nobody takes annotations at %s; they are dropped until somebody does", self._socket_path)
