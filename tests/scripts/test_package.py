"""What `pip install` of a checkout brings: both packages whole, what they read, programs, plugin, man pages."""

import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest

pytest.importorskip("setuptools", reason="setuptools is not installed: pip install -r requirements/build.lock")

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"ttmfs": ROOT, "ttm_tools": ROOT / "mountpoint-tools"}
PAGES = [*ROOT.glob("docs/man/*.1"), *ROOT.glob("mountpoint-tools/man/*.1")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy: a build leaves folders behind."""
    copy = tmp_path_factory.mktemp("checkout")
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for name in ("ttmfs", "mountpoint-tools", "docs/man"):
        shutil.copytree(ROOT / name, copy / name, ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    done = subprocess.run(
        [sys.executable, "-c", "from setuptools.build_meta import build_wheel; build_wheel('.')"],
        capture_output=True, text=True, timeout=120, check=False, cwd=copy,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = copy.glob("*.whl")
    return zipfile.ZipFile(path)


def told(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_both_packages_are_whole_and_nothing_else_is_there(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for package, folder in PACKAGES.items():
        kinds = ("*.py", "py.typed", "static/*", "templates/*")
        wanted = {str(path.relative_to(folder)) for kind in kinds for path in (folder / package).rglob(kind)}
        assert len(wanted) > 30
        assert wanted - names == set()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.startswith("ttmfs-")} == set(PACKAGES)


def test_programs_plugin_and_man_pages_are_there(wheel: zipfile.ZipFile) -> None:
    points = ConfigParser()
    points.read_string(told(wheel, "entry_points.txt"))
    assert points["pytest11"]["ttmfs"] == "ttm_tools.pytest_plugin"
    programs = set(points["console_scripts"])
    assert programs >= {"ttmfs", "ttm-ls", "ttm-top", "ttm-web", "ttm-why"}
    pages = {name.rpartition("/")[2] for name in wheel.namelist() if ".data/data/share/man/man1/" in name}
    assert pages == {path.name for path in PAGES}
    assert {f"{program}.1" for program in programs} <= pages


def test_what_everybody_gets_is_light(wheel: zipfile.ZipFile) -> None:
    """A suite that wants the fixture installs no toolkit for screens, pictures or pages."""
    facts = Parser().parsestr(told(wheel, "METADATA"))
    assert {"tools", "web", "perfetto", "replay", "dask", "test"} <= set(facts.get_all("Provides-Extra") or ())
    always = [what for what in facts.get_all("Requires-Dist") or () if "extra ==" not in what]
    heavy = ("matplotlib", "textual", "starlette", "uvicorn", "perfetto", "distributed", "pytest")
    assert [what for what in always if what.startswith(heavy)] == []
