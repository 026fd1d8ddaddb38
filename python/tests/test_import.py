import subprocess
import sys

import pytest

import warptrace


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_loads_neither_the_native_module_nor_anything_of_others() -> None:
    code = (
        "import sys; before = set(sys.modules); import warptrace; "
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)),"
        " 'warptrace._native' in sys.modules)"
    )
    assert run(code).split() == ["warptrace", "False"]


def test_every_public_name_is_there() -> None:
    for name in warptrace.__all__:
        assert getattr(warptrace, name) is not None
        assert name in dir(warptrace)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = warptrace.nothing
