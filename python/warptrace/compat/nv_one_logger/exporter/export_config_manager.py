"""Which exporters there are, by the program, a file, and installed packages.

A file that replaces what packages say, then the program's own list merged over it by class. Only the program can name
a class that is to be imported: a file, which may lie in whatever folder the program was started in, names exporters
that are here already.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from warptrace.compat.nv_one_logger._log import logger
from warptrace.compat.nv_one_logger.exporter.exporter import Exporter
from warptrace.compat.nv_one_logger.exporter.exporter_config import ExporterConfig

ENTRY_POINT_GROUP = "nv_one_logger.exporter_configs"
PATH_VARIABLE = "ONE_LOGGER_EXPORTER_CONFIG_PATH"
FILE_NAMES = ("one_logger_exporters_config.yaml", "one_logger_exporters_config.yml", "one_logger_exporters_config.json")

_THEIRS = "nv_one_logger."
_OURS = "warptrace.compat.nv_one_logger."
_registered: dict[str, type] = {}


def register_exporter(exporter_class: type, name: str | None = None) -> type:
    """Lets files name this class, by its dotted path unless another name is given. Serves as a decorator."""
    _registered[name or f"{exporter_class.__module__}.{exporter_class.__qualname__}"] = exporter_class
    return exporter_class


class _Entry(ExporterConfig):
    """An entry of a file: what it names is not imported."""


class ExporterConfigManager:
    """Reads what packages say when it is made, and the rest when it is asked."""

    def __init__(self) -> None:
        self._of_packages: list[ExporterConfig] = list(_of_packages())

    def generate_export_config(
        self,
        direct_config: list[ExporterConfig] | list[dict[str, Any]] | None = None,
        config_file_path: str | None = None,
    ) -> list[ExporterConfig]:
        """The entries that hold. Raises for what is wrong with ``direct_config``; all else is a warning."""
        base = _of_file(config_file_path) or list(self._of_packages)
        if not direct_config:
            return base
        return _merged(base, [entry if isinstance(entry, ExporterConfig) else _entry(entry) for entry in direct_config])

    def create_exporters_from_config(
        self, exporters_config: list[ExporterConfig], training_telemetry_config: Any | None = None
    ) -> list[Exporter]:
        """The exporters of the entries that are enabled; one that cannot be made is left out with a warning."""
        made: list[Exporter] = []
        for entry in exporters_config:
            if not entry.enabled:
                continue
            try:
                made.append(_make(entry))
            except Exception as e:
                logger.warning("no exporter %s: %s: %s", entry.class_name, type(e).__name__, e)
        return made


def _entry(data: dict[str, Any], kind: type[ExporterConfig] = ExporterConfig) -> ExporterConfig:
    return kind(data["class_name"], data.get("config", {}), data.get("enabled", True))


def _merged(base: list[ExporterConfig], direct: list[ExporterConfig]) -> list[ExporterConfig]:
    """One entry a class, in the order of ``base``, then of ``direct``; a class in both has the keys of both."""
    last = {entry.class_name: entry for entry in direct}
    merged: dict[str, ExporterConfig] = {}
    for entry in base:
        over = last.get(entry.class_name)
        if over is None:
            merged[entry.class_name] = entry
        elif entry.class_name not in merged:
            merged[entry.class_name] = ExporterConfig(entry.class_name, {**entry.config, **over.config}, over.enabled)
    for name, entry in last.items():
        merged.setdefault(name, entry)
    return list(merged.values())


def _of_packages() -> Iterator[ExporterConfig]:
    """What installed packages say by entry points, each once, though a package may be found twice."""
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    for name, point in {(point.name, point.value): point for point in points}.items():
        try:
            yield _entry(point.load().get_default_config())
        except Exception as e:
            logger.warning("no exporter of entry point %s: %s: %s", name[0], type(e).__name__, e)


def _of_file(named: str | None) -> list[ExporterConfig] | None:
    """The entries of the first file that is there; None without one, or when it cannot be used."""
    candidates = [named, os.environ.get(PATH_VARIABLE), *FILE_NAMES]
    path = next((p for p in map(Path, filter(None, candidates)) if p.exists()), None)
    if path is None:
        return None
    try:
        return [_entry(entry, _Entry) for entry in _read(path)["exporters"]]
    except Exception as e:
        logger.warning("%s is left out: %s: %s", path, type(e).__name__, e)
        return None


def _read(path: Path) -> Any:
    match path.suffix.lower():
        case ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        case ".yaml" | ".yml":
            import yaml  # type: ignore[import-untyped, unused-ignore]

            return yaml.safe_load(path.read_text(encoding="utf-8"))
        case suffix:
            raise ValueError(f"{suffix!r} is none of .yaml, .yml, .json")


def _make(entry: ExporterConfig) -> Exporter:
    name = entry.class_name
    if name.startswith(_THEIRS):
        name = _OURS + name.removeprefix(_THEIRS)
    found = _registered.get(name) or _class(name, may_import=name.startswith(_OURS) or not isinstance(entry, _Entry))
    if not issubclass(found, Exporter):
        raise TypeError(f"{name} is no exporter")
    config = dict(entry.config)
    if "file_path" in config:
        config["file_path"] = Path(config["file_path"])
    made: Exporter = found(**config)
    return made


def _class(name: str, *, may_import: bool) -> Any:
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ImportError(f"{name!r} is no dotted path")
    if may_import:
        return getattr(importlib.import_module(module), attribute)
    if module not in sys.modules:
        raise ImportError(f"a file cannot import {module}: see register_exporter")
    return getattr(sys.modules[module], attribute)
