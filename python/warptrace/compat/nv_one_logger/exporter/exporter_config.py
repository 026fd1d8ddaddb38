"""How one exporter is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ExporterConfig:
    """A class, what its constructor is given, and whether it is made at all."""

    class_name: str
    config: dict[str, Any] = field(default_factory=dict)
    enabled: bool = True
