"""docs/reference.md and docs/STATS.md are what the tables say now."""

import importlib
import os
import subprocess
import sys
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
