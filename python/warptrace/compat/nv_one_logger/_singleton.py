"""One object of a class for the process, by ``instance()``."""

from __future__ import annotations

import threading
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")


class _OnlyInstance(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        error = TypeError(f"{cls.__name__} has one object: {cls.__name__}.instance()")
        error.code = "singleton_direct_instantiation"  # type: ignore[attr-defined]
        raise error


class Singleton(metaclass=_OnlyInstance):
    _lock: ClassVar[threading.RLock] = threading.RLock()
    _instances: ClassVar[dict[type, Any]] = {}

    @classmethod
    def instance(cls: type[T]) -> T:
        """The process's own; made when first asked for."""
        found = Singleton._instances.get(cls)
        if found is None:
            with Singleton._lock:
                found = Singleton._instances.get(cls)
                if found is None:
                    found = Singleton._instances[cls] = type.__call__(cls)
        made: T = found
        return made
