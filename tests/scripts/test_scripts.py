"""The scripts explain themselves, and the matrix runs what it was told to."""

import argparse
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchlib.main import subcommands
from lib import matrix_main

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").iterdir() if path.is_file() and os.access(path, os.X_OK))


def call(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / name, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_explains_and_does_nothing(name: str) -> None:
    done = call(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"scripts/{name}" in done.stdout
    assert len(done.stdout.splitlines()) > 3


def test_a_bare_checkout_explains_itself_too(tmp_path: Path) -> None:
    """Nothing is installed before --help is answered: here is nothing to install from."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in SCRIPTS:
        done = subprocess.run(
            [tmp_path / "scripts" / name, "--help"], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), name
    assert [path.name for path in tmp_path.iterdir()] == ["scripts"]


def test_the_help_of_bench_names_what_it_measures() -> None:
    assert f"Subcommands: {', '.join(sorted(subcommands()))}." in call("bench", "--help").stdout


@pytest.mark.parametrize("name", ["setup", "lock", "test-fresh", "test-matrix", "docs"])
def test_a_word_that_is_none_is_refused(name: str) -> None:
    assert call(name, "--no-such-option").returncode == 2


def chosen(**options: object) -> list[matrix_main.Combination | str]:
    return list(matrix_main.combinations(argparse.Namespace(**{"python": None, "set": None, "around": None} | options)))


def test_without_options_it_is_every_python_times_every_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_main, "find_python", lambda minor: f"/bin/python{minor}" if minor != "3.12" else None)
    titles = [c if isinstance(c, str) else c.title for c in chosen()]
    assert [t for t in titles if t.startswith("python3.11")] == [f"python3.11-{s}" for s in matrix_main.SETS]
    assert [t for t in titles if "3.12" in t] == ["Python 3.12: not on this machine, or without venv or Python.h"]
    assert len(titles) == 3 * (len(matrix_main.minors()) - 1) + 1


def test_surroundings_are_for_the_locked_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_main, "find_python", lambda _minor: "/bin/python3.12")
    assert chosen(around=["C"]) == [matrix_main.Combination(None, "locked", "C")]
    assert chosen(around=["C"], python=["3.12"]) == [matrix_main.Combination("/bin/python3.12", "locked", "C")]
    assert len(chosen(around=["all"])) == len(matrix_main.SURROUNDINGS)
    monkeypatch.setattr(matrix_main, "find_python", lambda _minor: None)
    assert all(isinstance(c, str) for c in chosen(around=["C"], python=["3.12"]))
