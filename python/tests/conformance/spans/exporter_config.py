"""Cases of `exporter_config/`: where exporters are configured, and what comes of it."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

from package import ORIGINAL, Package

GROUP = "nv_one_logger.exporter_configs"


class Configuration:
    """One case, from its files, packages and direct entries to the exporters that they give."""

    def __init__(self, package: Package, case: dict[str, Any], folder: Path) -> None:
        self.p = package
        self.case = case
        self.folder = folder

    def run(self) -> dict[str, Any]:
        self._make_exporters()
        for name, text in self.case.get("files", {}).items():
            path = self.folder / name
            if text is None:
                path.mkdir(parents=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        for number, described in enumerate(self.case.get("packages", [])):
            self._install(number, described)
        if "provider" in self.case:
            return {"steps": [self._step(step) for step in self.case["provider"]]}
        try:
            manager = self.p.ExporterConfigManager()
            resolved = manager.generate_export_config(
                self._direct(self.case.get("direct")), config_file_path=self.case.get("config_file_path")
            )
            created = manager.create_exporters_from_config(resolved)
        except Exception as e:
            return {"raises": type(e).__name__}
        if len(self.case.get("packages", [])) > 1:
            resolved = sorted(resolved, key=lambda c: c.class_name)
            created = sorted(created, key=self._class_name)
        return {
            "resolved": [{"class_name": c.class_name, "config": c.config, "enabled": c.enabled} for c in resolved],
            "created": [{"class": self._class_name(e), "args": self._args(e)} for e in created],
        }

    def _make_exporters(self) -> None:
        module = types.ModuleType("vector_exporters")

        def override(method: Any) -> Any:
            method.__override__ = True
            return method

        def exporter(name: str, init: Any) -> None:
            made = type(name, (self.p.BaseExporter,), {"__init__": override(init), "__module__": module.__name__})
            setattr(module, name, made)

        def anything(this: Any, **args: Any) -> None:
            self.p.BaseExporter.__init__(this)
            this.args = args

        def one(this: Any, x: Any) -> None:
            anything(this, x=x)

        def boom(this: Any, **args: Any) -> None:
            raise ValueError("boom")

        for name in ("Alpha", "Beta", "Gamma"):
            exporter(name, anything)
        exporter("OneArg", one)
        exporter("Boom", boom)
        module.NotAnExporter = type(  # type: ignore[attr-defined]
            "NotAnExporter", (), {"__init__": lambda this, **args: setattr(this, "args", args)}
        )
        sys.modules[module.__name__] = module

    def _install(self, number: int, described: dict[str, Any]) -> None:
        """A distribution with one entry point, as an installer leaves it."""
        site = self.folder / "site"
        source = "raise ImportError('vectors')"
        if not described.get("load_fails"):
            source = "class Configs:\n"
            if described.get("no_method"):
                source += "    pass\n"
            elif raised := described.get("default_config_raises"):
                source += f"    def get_default_config(self):\n        raise {raised}('vectors')\n"
            else:
                source += f"    def get_default_config(self):\n        return {described['default_config']!r}\n"
            source += "configs = Configs()\n"
        info = site / f"vectors_{number}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"vectors_{number}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vectors-{number}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{described['entry_point']} = vectors_{number}:configs\n")
        if str(site) not in sys.path:
            sys.path.append(str(site))

    def _direct(self, entries: list[dict[str, Any]] | None) -> Any:
        if entries is None:
            return None
        match self.case.get("direct_form"):
            case "objects":
                return [self.p.ExporterConfig(**entry) for entry in entries]
            case "object_then_dicts":
                return [self.p.ExporterConfig(**entries[0]), *entries[1:]]
        return entries

    def _class_name(self, exporter: Any) -> str:
        name = f"{type(exporter).__module__}.{type(exporter).__qualname__}"
        return name.replace(self.p.root, ORIGINAL, 1) if name.startswith(self.p.root + ".") else name

    def _args(self, exporter: Any) -> dict[str, Any]:
        args = getattr(exporter, "args", None)
        if args is None:
            path = next(v for v in vars(exporter).values() if isinstance(v, os.PathLike))
            args = {"file_path": path}
        return {k: {"$path": str(v)} if isinstance(v, Path) else v for k, v in args.items()}

    def _step(self, step: dict[str, Any]) -> Any:
        provider = self.p.TrainingTelemetryProvider.instance()
        try:
            match step["method"]:
                case "with_base_config":
                    fields = {"application_name": "app", "session_tag_or_fn": "s", "world_size_or_fn": 1}
                    provider.with_base_config(self.p.OneLoggerConfig(**fields, **step.get("extra", {})))
                case "with_export_config":
                    options = {}
                    if "direct" in step:
                        options["exporters_config"] = self._direct(step["direct"])
                    if "config_file_path" in step:
                        options["config_file_path"] = step["config_file_path"]
                    provider.with_export_config(**options)
                case "exporters":
                    return {"ok": [self._made(e) for e in exporters_of(provider.recorder)]}
                case method:
                    getattr(provider, method)()
        except Exception as e:
            if not isinstance(e, self.p.OneLoggerError):
                return {"raises": type(e).__name__}
            return {"raises": "OneLoggerError", "code": self.p.code_of(e) or f"? {e}"}
        return {"ok": None}

    def _made(self, exporter: Any) -> dict[str, Any]:
        return {"class": self._class_name(exporter), "args": self._args(exporter), "ready": exporter.ready}


def exporters_of(recorder: Any) -> list[Any]:
    """The exporters that a recorder was given; there is no public name for them."""
    for value in vars(recorder).values():
        items = list(value) if isinstance(value, list | dict) else []
        if items and all(hasattr(item, "export_start") for item in items):
            return items
    return []
