"""Adapters: a framework's own hooks say which step, phase and request a job is in.

Each framework has a module here that imports it; import the module that you need. See docs/adapters.md.
"""

from __future__ import annotations

from warptrace.adapters._quiet import failures
from warptrace.adapters._steps import Steps

__all__ = ["Steps", "failures"]
