"""Man pages: what roff takes for its own is printed as it stands, and every page that is named is there."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from tests.docs.docs_console import REPOSITORY

PAGES = sorted([*REPOSITORY.glob("docs/man/*.1"), *REPOSITORY.glob("mountpoint-tools/man/*.1")])
needs_groff = pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not there: apt-get install groff-base")


def shown(text: str) -> str:
    """What a terminal shows of a page. AssertionError when groff finds fault with it."""
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-K", "utf8", "-P-cbou", "-rLL=100n", "-"],
        input=text, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def man(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import docslib.man as module  # noqa: PLC0415 - it is found below scripts/

    return module


@needs_groff
def test_what_is_odd_to_roff_is_printed_as_it_stands(man: Any) -> None:
    @click.command(help="A thing.\n\nA paragraph\n.SH that flows.\n\n\b\n'tis  -- a\\n block\n.of lines: `x` ^ ~ \\fB")
    @click.option("--dash-dash", metavar="A\\B", help=".it 'is'.")
    def thing() -> None:
        pass

    text = shown(man.page(click.Context(thing, info_name="thing")))
    assert "A paragraph .SH that flows." in text
    assert "'tis  -- a\\n block\n" in text
    assert ".of lines: `x` ^ ~ \\fB\n" in text
    assert "--dash-dash A\\B" in text
    assert ".it 'is'." in text


@needs_groff
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_shown_without_a_warning(path: Path) -> None:
    text = shown(path.read_text(encoding="utf-8"))
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"):
        assert re.search(rf"^{section}$", text, re.M), (path, section)


def test_pages_that_are_named_are_there() -> None:
    there = {path.stem for path in PAGES}
    texts = [*REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("docs/examples/*"), REPOSITORY / "README.md"]
    named = {name for path in texts for name in re.findall(r"\b(ttm[\w-]+)\(1\)", path.read_text(encoding="utf-8"))}
    assert "ttmfs" in named
    assert named <= there
