"""ttmfs installed without extras: what prints works, and what does not says which extra has it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ttm_tools
import ttmfs
from tests.docs.docs_console import REPOSITORY
from tests.mount.mount_harness import MIB, Device
from ttm_tools.errors import MountError
from ttm_tools.extras import needed

MOUNT_OPTIONS = ("--vram", "8M", "--gtt", "16M", "--memory", "32M")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = ("matplotlib", "textual", "starlette", "uvicorn", "textual_serve", "aiohttp", "perfetto")
WITHOUT = (
    f"import sys; sys.modules.update(dict.fromkeys({EXTRAS})); from importlib import import_module; "
    "module, sys.argv = sys.argv[1], sys.argv[1:]; import_module(module).main()"
)


def without_extras(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program whose Python has no packages but those that every ttmfs needs."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, f"ttm_tools.{module}", *arguments],
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.mount
def test_what_prints_works_without_extras(device: Device, tmp_path: Path) -> None:
    device.make("tex0", MIB, 1, "vram")
    mount, trace = device.mountpoint, tmp_path / "a.trace"
    for words, shows in (
        (("ls", mount), "tex0\t"),
        (("map", mount, "-r", "vram"), "tex0"),
        (("why", mount, "tex0"), "1M in vram"),
        (("top", "--once", "--interval", "0.1", mount), "bo\ttex0\t"),
        (("trace", "record", "-m", mount, "-o", str(trace), "--", "true"), ""),
        (("trace", "report", str(trace)), "# "),
    ):
        done = without_extras(*words)
        assert done.returncode == 0, (words, done.stderr)
        assert shows in done.stdout, words


@pytest.mark.mount
def test_what_lacks_an_extra_says_which(device: Device, tmp_path: Path) -> None:
    mount, trace = device.mountpoint, tmp_path / "a.trace"
    trace.write_text("# tracer: ttmfs\n")
    for words, extra in (
        (("map", mount, "-o", str(tmp_path / "a.png")), "tools"),
        (("runreport", mount, "-o", str(tmp_path / "a.html")), "tools"),
        (("top", "--screenshot", str(tmp_path / "a.svg"), mount), "tools"),
        (("top", "--serve", mount), "web"),
        (("web.main", mount), "web"),
        (("trace", "report", str(trace), "--perfetto", str(tmp_path / "a.pftrace")), "perfetto"),
    ):
        done = without_extras(*words)
        assert (done.returncode, done.stdout) == (2, ""), (words, done)
        assert f"pip install 'ttmfs[{extra}]'" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert extra in PROJECT["optional-dependencies"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.trace"]


def test_a_fault_of_our_own_is_not_taken_for_a_package_that_is_missing() -> None:
    with pytest.raises(ImportError), needed("x", "y", "tools"):
        from ttm_tools import no_such_module  # type: ignore[attr-defined]  # noqa: F401, PLC0415
    said = r"x needs y: pip install .ttmfs\[tools\]., or z"
    with pytest.raises(MountError, match=said), needed("x", "y", "tools", instead="z"):
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401, PLC0415


def test_the_tools_are_part_of_ttmfs() -> None:
    """One package: a name that somebody else may own is asked of no index."""
    assert ttm_tools.__version__ == ttmfs.__version__
    assert not (REPOSITORY / "mountpoint-tools" / "pyproject.toml").exists()
    modules = {where.split(":")[0].partition(".")[0] for where in PROJECT["scripts"].values()}
    assert modules == {"ttmfs", "ttm_tools"}
