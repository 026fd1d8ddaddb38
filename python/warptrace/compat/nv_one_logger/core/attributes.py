"""What spans and events say of themselves: named values."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from warptrace.compat.nv_one_logger.core.exceptions import OneLoggerError, assert_that

AttributePrimitiveValue = str | bool | int | float
AttributeValue = AttributePrimitiveValue | list[AttributePrimitiveValue]

_A = TypeVar("_A", bound="Attributes")


class Attribute:
    """A name and a value: a string, a boolean, an integer, a double, or a list of one of them.

    Raises OneLoggerError for a list whose items are not all of its first item's type, where a boolean is an integer
    too.
    """

    __slots__ = ("name", "value")
    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __init__(self, name: str, value: Any) -> None:
        if isinstance(value, list) and value:
            kind = type(value[0])
            if not all(isinstance(item, kind) for item in value):
                message = f"attribute {str(name)!r}: a list must be of one type, here {kind.__name__}"
                raise OneLoggerError(message, "list_attribute_mixed_types")
        self.name = name
        self.value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Attribute):
            return NotImplemented
        return (self.name, self.value) == (other.name, other.value)

    def __repr__(self) -> str:
        return f"Attribute(name={self.name!r}, value={self.value!r})"


class Attributes(dict[str, Attribute]):
    """Attributes by name, in the order in which they were first given."""

    __hash__: ClassVar[None]

    def __init__(self, dictionary: dict[str, Any] | None = None) -> None:
        super().__init__()
        for name, value in (dictionary or {}).items():
            self.add(name, value)

    def copy(self: _A) -> _A:
        new = type(self).__new__(type(self))
        dict.update(new, self)
        return new

    def add(self: _A, name: str, value: Any) -> _A:
        """Adds a value, or replaces the one of that name where it stands."""
        self[name] = Attribute(name, value)
        return self

    def add_attribute(self, attribute: Attribute) -> Attribute:
        self[attribute.name] = attribute
        return attribute

    def add_attributes(self, other_attributes: Attributes) -> None:
        self.update(other_attributes)

    @classmethod
    def merge(cls: type[_A], attributes: Attributes | None = None, other: Attributes | None = None) -> _A:
        """A new container with both; what is in both is the second one's."""
        new = cls.__new__(cls)
        dict.update(new, attributes or {})
        dict.update(new, other or {})
        return new

    def plain(self) -> dict[str, Any]:
        """The values by name."""
        return {str(name): attribute.value for name, attribute in self.items()}

    def get_bool_value(self, attribute_name: str) -> bool | None:
        value: bool | None = self._typed(attribute_name, bool)
        return value

    def get_int_value(self, attribute_name: str) -> int | None:
        value: int | None = self._typed(attribute_name, int)
        return value

    def get_float_value(self, attribute_name: str) -> float | None:
        value: float | None = self._typed(attribute_name, (float, int))
        return value

    def get_str_value(self, attribute_name: str) -> str | None:
        value: str | None = self._typed(attribute_name, str)
        return value

    def _typed(self, name: str, kind: Any) -> Any:
        attribute = self.get(name)
        if attribute is None:
            return None
        value = attribute.value
        assert_that(isinstance(value, kind), f"attribute {name!r} is {value!r}", "attribute_type_mismatch")
        return value

    def to_json(self) -> dict[str, Any]:
        return self.plain()

    @classmethod
    def from_json(cls: type[_A], data: dict[str, Any] | None) -> _A:
        new = cls.__new__(cls)
        for name, value in (data or {}).items():
            new.add(name, value)
        return new
