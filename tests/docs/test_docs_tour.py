"""What documents show in their checked blocks is what the commands print: the tour, and what to do in trouble."""

import os
import subprocess
import sys

import pytest

from tests.docs import docs_console
from tests.docs.docs_console import REPOSITORY, checked_commands, matches, run_document

DOCS = REPOSITORY / "docs"


def test_what_differs_between_runs_is_not_compared() -> None:
    one = "  ttmfs-12    [000] .....     4.999999: fault: bo=a x_us=7\nbash: line 3: x\n2026-01-02T03:04:05\tENOMEM\n"
    two = "  ttmfs-99999 [000] ..... 12345.000001: fault: bo=a x_us=81\nbash: x\n2027-11-12T13:14:15\tENOMEM\n"
    assert matches(one, two)
    assert not matches(one, two.replace("bo=a", "bo=b"))
    assert not matches(one, two.replace("ENOMEM", "ENOSPC"))
    assert matches("a\n[...]\n", "a\nb\nc\n")
    assert not matches("a\n[...]\n", "b\n")


def test_continued_lines_are_one_command() -> None:
    text = "<!-- checked -->\n```console\n$ cat <<E\n> one\n> E\none\n$ true\n```\n\n```console\n$ false\n```\n"
    assert checked_commands(text) == [("cat <<E\none\nE", "one\n"), ("true", "")]


def test_a_repository_in_tmp_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs_console, "REPOSITORY", "/tmp/clone")
    assert docs_console.in_folder("cp docs/examples/a tests/data/b /tmp", "/x") == (
        "cp /tmp/clone/docs/examples/a /tmp/clone/tests/data/b /x"
    )


def tour(name: str, answers: str = "") -> "subprocess.CompletedProcess[str]":
    path = f"{REPOSITORY / 'scripts'}:{REPOSITORY}"
    return subprocess.run(
        [sys.executable, "-m", "lib.tour", name], input=answers, capture_output=True, text=True, timeout=60,
        check=False, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


@pytest.mark.mount
def test_the_tour_steps_through_a_document_until_somebody_leaves() -> None:
    done = tour("services", "\nq\n")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert shown[1] == "For one command"
    assert "status 1" in shown
    assert shown[-1].startswith("$ ttmfs run --keep /tmp/out --trace 'validated evict' -- sh ")


def test_a_document_without_commands_is_refused_with_those_that_have_some() -> None:
    done = tour("rules")
    assert done.returncode == 1
    assert "rules has no commands to step through: say one of cookbook" in done.stderr


@pytest.mark.mount
@pytest.mark.skipif(os.geteuid() != 0, reason="the tour shows what root gets")
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("tour", 90),
        ("troubleshooting", 10),
        ("drivers", 8),
        ("policies", 20),
        ("services", 4),
        ("cookbook", 30),
        ("groups", 12),
        ("vm", 20),
    ],
)
def test_a_document_shows_what_is_printed(name: str, least: int) -> None:
    assert run_document(DOCS / f"{name}.md") >= least
