"""The scripts explain themselves, and the matrix runs what it was told to."""

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
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


def installed(root: Path) -> Path:
    """A checkout for which nothing is missing. Its Python compiles, and installs nothing anywhere."""
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    parts = {"pyproject.toml": "[project]", "requirements/3.lock": "numpy", "ttmfs/memory/pages.c": "int pages;"}
    code = {"ttmfs/memory/pool.py": "pages = 1", "mountpoint-tools/ttm_tools/ls.py": "columns = 2"}
    python = f'#!/bin/sh\n[ "$2" = compileall ] && exec {sys.executable} "$@"\n'
    programs = {".venv/bin/python": python, "bin/python3": "#!/bin/sh\nexit 1\n"}
    for name, text in (parts | code | programs | {".venv/bin/ttmfs": "", ".venv/bin/ttm-ls": ""}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    digest = hashlib.sha256("".join(parts.values()).encode()).hexdigest()
    (root / ".venv/.ttmfs-setup").write_text(f"{root}\n{digest}  -\n")
    return root


def test_setup_leaves_no_code_to_be_compiled_at_a_start_even_where_python_writes_none(tmp_path: Path) -> None:
    root = installed(tmp_path)
    around = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "PYTHONPYCACHEPREFIX")}
    around |= {"PYTHONDONTWRITEBYTECODE": "1", "PATH": f"{root}/bin:{around['PATH']}"}
    done = subprocess.run(
        [root / "scripts" / "setup"], capture_output=True, text=True, timeout=60, check=False, env=around
    )
    assert (done.returncode, done.stderr) == (0, "")
    for source in (root / "ttmfs/memory/pool.py", root / "mountpoint-tools/ttm_tools/ls.py"):
        assert Path(importlib.util.cache_from_source(str(source))).exists()


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
