"""The generated documents are what tables and docstrings say now."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.docs_console import REPOSITORY

SCRIPTS = REPOSITORY / "scripts"


def check() -> subprocess.CompletedProcess[str]:
    """`scripts/docs --check`, without the setup that comes before it."""
    return subprocess.run(
        [sys.executable, "-m", "docslib.main", "--check"],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def docslib(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docslib.reference, which may be patched."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("docslib.reference")


def test_nothing_is_stale() -> None:
    done = check()
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_event_makes_it_stale(docslib: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docslib, "EVENTS", {**docslib.EVENTS, "teapot": "it is short and stout"})
    written = (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")
    assert docslib.reference() != written
    assert "`teapot`" in docslib.reference()


def test_what_the_tables_do_not_describe_is_named(docslib: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    status = dict(docslib.tables.STATUS)
    del status["runs"]
    monkeypatch.setattr(docslib.tables, "STATUS", status)
    with pytest.raises(ValueError, match=r"STATUS lacks \['runs'\]"):
        docslib.reference()
    monkeypatch.setattr(docslib.tables, "STATUS", {**status, "runs": "runs", "legs": "four"})
    with pytest.raises(ValueError, match=r"need not have \['legs'\]"):
        docslib.reference()


def test_kernel_names_are_found_where_docstrings_say_them(docslib: ModuleType, tmp_path: Path) -> None:
    del docslib
    kernel_map = importlib.import_module("docslib.kernel_map")
    file = tmp_path / "m.py"
    file.write_text(
        '"""ttm_bo_here."""\nclass A:\n    """x"""\n    def f(self):\n        """dma_resv_x."""\nB = 1\n"""ww_y."""\n'
    )
    found = [(name, kernel_map.NAME.findall(text)) for name, text in kernel_map.docstrings(file)]
    assert found == [("", ["ttm_bo_here"]), ("A", []), ("A.f", ["dma_resv_x"]), ("B", ["ww_y"])]
    assert "`ttm/validate.py`" in "".join(kernel_map.places()["ttm_bo_validate"])
