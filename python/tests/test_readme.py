"""The quick starts run as they stand, in an empty folder."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

PAGES = {
    "README.md": "## From Python",
    "python/README.md": "",
    "docs/migrate/ingero-annotate.md": "",
    "docs/migrate/stormlog.md": "",
}


def blocks(page: str, heading: str) -> str:
    """The Python of a section of a page, or of the whole page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if heading:
        _, found, text = text.partition(f"\n{heading}\n")
        assert found, f"{page} has no {heading!r}"
        text = text.partition("\n## ")[0]
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(page: str, tmp_path: Path) -> None:
    code = blocks(page, PAGES[page])
    assert "warptrace" in code
    program = tmp_path / "quick_start.py"
    program.write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
