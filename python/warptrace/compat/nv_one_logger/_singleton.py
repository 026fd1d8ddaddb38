"""One object of a class for the process, by ``instance()``."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

T = TypeVar("T")


class _OnlyInstance(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        error = TypeError(f"{cls.__name__} has one object: {cls.__name__}.instance()")
        error.code = "singleton_direct_instantiation"  # type: ignore[attr-defined]
        raise error


class Singleton(metaclass=_OnlyInstance):
    _lock = threading.RLock()

    @classmethod
    def instance(cls: type[T]) -> T:
        """The process's own; made when first asked for."""
        found = cls.__dict__.get("_instance")
        if found is None:
            with Singleton._lock:
                found = cls.__dict__.get("_instance")
                if found is None:
                    found = cls.__new__(cls)
                    found.__init__()  # type: ignore[misc]
                    cls._instance = found  # type: ignore[attr-defined]
        return found  # type: ignore[no-any-return]
