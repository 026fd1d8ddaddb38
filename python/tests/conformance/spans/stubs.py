"""Stand-ins for packages that are too heavy for these vectors, whose cases only say what is called on them.

`wandb` gives runs that keep what is logged; `lightning` gives empty base classes. Both stand in also where the true
ones are installed, so that the cases give the same everywhere.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

STANDS_IN_FOR = ("wandb", "lightning", "pytorch_lightning", "torch")

RUNS: list[Run] = []
"""All runs that were begun, in order."""


class Run:
    """A run of wandb: what was logged, and how it was finished."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.received: list[dict[str, Any]] = []

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        self.received.append({"log": dict(data), "commit": commit})

    def finish(self, exit_code: int | None = None, quiet: bool | None = None) -> None:
        self.received.append({"finish": {"exit_code": exit_code, "quiet": quiet}})


def _init(**settings: Any) -> Run:
    RUNS.append(Run(**settings))
    return RUNS[-1]


class _Stub(types.ModuleType):
    """Any name is a class of that name, which takes anything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {"__init__": lambda self, *args, **kwargs: None})
        setattr(self, name, made)
        return made


class Callback:
    """The hooks of a Lightning callback, as its documentation has them."""

    def on_train_start(self, trainer, pl_module):  # type: ignore[no-untyped-def]
        pass

    def on_train_end(self, trainer, pl_module):  # type: ignore[no-untyped-def]
        pass

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):  # type: ignore[no-untyped-def]
        pass

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # type: ignore[no-untyped-def]
        pass

    def on_validation_start(self, trainer, pl_module):  # type: ignore[no-untyped-def]
        pass

    def on_validation_end(self, trainer, pl_module):  # type: ignore[no-untyped-def]
        pass

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):  # type: ignore[no-untyped-def]
        pass

    def on_validation_batch_end(  # type: ignore[no-untyped-def]
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ):
        pass

    def on_test_start(self, trainer, pl_module):  # type: ignore[no-untyped-def]
        pass

    def on_test_end(self, trainer, pl_module):  # type: ignore[no-untyped-def]
        pass

    def on_exception(self, trainer, pl_module, exception):  # type: ignore[no-untyped-def]
        pass


class Trainer:
    """What a hook is given of a trainer."""

    def __init__(
        self, *args: Any, callbacks: list[Callback] | None = None, global_step: int = 0, **kwargs: Any
    ) -> None:
        self.callbacks = callbacks or []
        self.global_step = global_step

    def save_checkpoint(self, filepath, weights_only=None, storage_options=None):  # type: ignore[no-untyped-def]
        pass


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in STANDS_IN_FOR:
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "wandb":
            vars(module).update(init=_init, login=lambda *args, **kwargs: True, __version__="0.20.1")
        elif module.__name__ in ("lightning", "lightning.pytorch", "pytorch_lightning"):
            vars(module).update(__version__="2.5.0", Callback=Callback, Trainer=Trainer)


def install() -> None:
    sys.meta_path.insert(0, _Finder())
