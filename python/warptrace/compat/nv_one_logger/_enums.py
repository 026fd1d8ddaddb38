"""Enumerations whose members are strings, and print as them: ``enum.StrEnum`` from Python 3.11 on."""

from __future__ import annotations

from enum import Enum


class StrEnum(str, Enum):
    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, spec: str) -> str:
        return format(str(self.value), spec)


def text_of(name: Enum | str) -> str:
    """What a name is called in records: its text, or the value of a member.

    One rule for spans and events; the original gives ``Type.MEMBER`` for the span and the value for the event.
    """
    if type(name) is str:
        return name
    return str(name.value) if isinstance(name, Enum) else name
