"""Whether what a package did is what a vector expects."""

from __future__ import annotations

from typing import Any


def difference(want: Any, got: Any, at: str = "", tolerance: int = 0) -> str | None:
    """Where two values first differ: an integer is no double and no boolean, and objects have no order."""
    if at.endswith("_ns") or at.endswith(".ns"):
        tolerance = 256
    if type(want) is not type(got):
        return f"{at}: want {want!r}, got {got!r}"
    if isinstance(want, dict):
        if missing := want.keys() - got.keys():
            return f"{at}: without {sorted(missing)}, got {got!r}"
        if more := got.keys() - want.keys():
            return f"{at}: also {sorted(more)}: {got!r}"
        pairs = [(f"{at}.{key}", want[key], got[key]) for key in want]
    elif isinstance(want, list):
        if len(want) != len(got):
            first = next((i for i, (w, g) in enumerate(zip(want, got, strict=False)) if difference(w, g, at)), None)
            where = "" if first is None else f", first at {first}: {difference(want[first], got[first], at)}"
            return f"{at}: want {len(want)} items, got {len(got)}{where}"
        pairs = [(f"{at}[{i}]", w, g) for i, (w, g) in enumerate(zip(want, got, strict=True))]
    elif isinstance(want, int) and tolerance and abs(want - got) <= tolerance:
        return None
    else:
        return None if want == got else f"{at}: want {want!r}, got {got!r}"
    return next((d for d in (difference(w, g, where, tolerance) for where, w, g in pairs) if d), None)


def scenario(want: dict[str, Any], got: dict[str, Any]) -> str | None:
    """For a case of `scenarios/` or `exporter_config/`; log lines are for information."""
    if "driver_failed" in got:
        return str(got["driver_failed"])
    keys = [key for key in want if key not in ("logs", "warnings")]
    return next((d for d in (difference(want[k], got.get(k), k) for k in keys) if d), None)
