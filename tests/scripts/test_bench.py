"""scripts/bench: what its numbers rest on. Nothing here looks at a time that was measured."""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchlib import against, common, every, plot, profiler
from benchlib.main import subcommands
from lib.device import IMPORTED_TTMFS, ROOT, Device, ScriptError


def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, f"not in 30 s: {what}"
        time.sleep(0.01)


def group_of(pid: int) -> tuple[str, str]:
    """The scheduling group of a process, and its weight as a nice value; empty in init's session, which has none."""
    name, _, weight = Path(f"/proc/{pid}/autogroup").read_text().strip().partition(" ")
    return name, weight


def spinning(session: int) -> list[int]:
    """The processes of a session that have the policy SCHED_IDLE."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(process.name)
            if os.getsid(pid) == session and os.sched_getscheduler(pid) == os.SCHED_IDLE:
                found.append(pid)
    return found


def test_a_spinner_a_processor_in_a_session_of_its_own_that_weighs_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """The spinners are in no group with the bench or a server: beside them a daemon would have half a processor."""
    started = []
    popen = subprocess.Popen

    def start(*arguments: Any, **more: Any) -> Any:
        started.append(popen(*arguments, **more))
        return started[-1]

    monkeypatch.setattr(common.subprocess, "Popen", start)  # type: ignore[attr-defined]
    cpus = os.sched_getaffinity(0)
    with common.awake_processors():
        (leader,) = started
        assert os.getsid(leader.pid) == leader.pid != os.getsid(0)
        until(lambda: len(spinning(leader.pid)) == len(cpus), "a spinner on every processor")
        pids = spinning(leader.pid)
        assert set().union(*map(os.sched_getaffinity, pids)) == cpus
        if Path("/proc/self/autogroup").exists() and group_of(leader.pid)[0]:
            group, weight = group_of(leader.pid)
            assert {group_of(pid) for pid in pids} == {(group, weight)}
            assert weight == "nice 19"
            assert group != group_of(os.getpid())[0]
    until(lambda: not spinning(leader.pid), "the spinners are gone")


def _is_a_repository() -> bool:
    """Git says no also where the files belong to somebody else."""
    if shutil.which("git") is None:
        return False
    return not subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, check=False).returncode


in_a_repository = pytest.mark.skipif(not _is_a_repository(), reason="no git, or these files are no git checkout")


@in_a_repository
def test_the_other_side_runs_the_other_commits_code() -> None:
    """A module that only the other tree has is found by both ways to its code: the import and the command."""
    with against.tree_of("HEAD") as tree:
        package = tree / "ttmfs" / "__init__.py"
        package.write_text(package.read_text() + "other_tree = 'the other tree'\n")
        environment = against.environment(tree)
        done = subprocess.run(
            [sys.executable, "-c", "import ttmfs; print(ttmfs.other_tree)"],
            env=environment,
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "the other tree\n"
        command = shlex.split(environment["TTMFS_COMMAND"])
        assert command == IMPORTED_TTMFS
        done = subprocess.run(
            [*command, "--help"], env=environment, cwd="/", capture_output=True, text=True, check=True
        )
        assert "mount" in done.stdout
    assert not tree.exists()
    assert against.environment(ROOT)["PYTHONPATH"].endswith(str(ROOT))


def test_a_tree_without_the_code_is_not_measured(tmp_path: Path) -> None:
    """Otherwise this checkout would be measured against itself."""
    with pytest.raises(ScriptError, match="cannot be run"):
        against.environment(tmp_path)


@in_a_repository
def test_an_unknown_commit_is_said() -> None:
    with pytest.raises(ScriptError, match="no commit 'nothing-of-that-name'"), against.tree_of("nothing-of-that-name"):
        pytest.fail("there is no such tree")


def one_round(ttmfs: float, c: float, met: bool) -> dict[str, Any]:
    """A report of one round as JSON."""
    report = common.Report("t", "ttmfs", "C", goals={"fault1": common.Goal(1.0)})
    report.add("fault1", "us", "C", c)
    report.add("fault1", "us", "ttmfs", ttmfs)
    found = report.as_json()
    assert found["metrics"]["fault1"]["met"] is met
    return found


def test_rounds_are_compared_pair_by_pair() -> None:
    """The machine is slow in the second round, for both alike; now takes half of what it took then."""
    now, then = against.Side("now", {}), against.Side("then", {})
    now.rounds = [one_round(1, 2, True), one_round(10, 20, True), one_round(4, 2, False)]
    then.rounds = [one_round(2, 2, True), one_round(20, 20, True), one_round(8, 2, False)]
    comparison = against.Comparison("t", now, then)
    assert comparison.pairs("fault1") == [0.5, 0.5, 0.5]
    assert (now.ratio("fault1"), then.ratio("fault1")) == (2.0, 4.0)
    assert comparison.missed() == []
    assert comparison.as_json()["metrics"]["fault1"]["now_by_then"] == [0.5, 0.5, 0.5]


def test_without_a_profiler_it_says_which_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(profiler.sys, "executable", str(tmp_path / "python"))  # type: ignore[attr-defined]
    with pytest.raises(ScriptError, match="neither py-spy nor perf"):
        profiler.beside_every_device(tmp_path / "profile")
    assert Device.beside == []


@pytest.mark.mount
def test_the_daemon_is_found_and_what_runs_beside_it_ends_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    @contextlib.contextmanager
    def watched(device: Device) -> Any:
        pid = profiler.daemon_of(device)
        assert os.getsid(pid) != os.getsid(0)
        events.append("begun")
        yield
        assert Path(f"/proc/{pid}").exists()
        assert device.is_mounted()
        events.append("ended")

    monkeypatch.setattr(Device, "beside", [watched])
    with Device(["--vram=2M", "--gtt=2M", "--memory=4M"]) as device:
        assert events == ["begun"]
        assert device.is_mounted()
    assert events == ["begun", "ended"]
    assert not device.is_mounted()


def test_a_quick_look_leaves_nothing_out() -> None:
    assert set(every.QUICK) == set(subcommands())


def test_the_spread_is_that_of_the_rounds() -> None:
    report = common.Report("t", "ttmfs", "C", goals={"evict": common.Goal(2.5, at_least=True)})
    for mine, reference in ((6.0, 2.0), (4.0, 2.0), (8.0, 2.0)):
        report.add("evict", "GB/s", "ttmfs", mine)
        report.add("evict", "GB/s", "C", reference)
    assert report.ratio("evict") == 3.0
    assert report.ratios("evict") == [3.0, 2.0, 4.0]
    assert report.as_json()["metrics"]["evict"]["ratios"] == [3.0, 2.0, 4.0]


def test_what_was_measured_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = [{"subcommand": "io", **one_round(2.0, 1.0, met=False)}]
    assert plot.missed(found[0]) == ["fault1 2.00 x (≤ 1 x)"]
    plot.draw(found, tmp_path / "ratios.svg")
    assert "<svg" in (tmp_path / "ratios.svg").read_text()
    with pytest.raises(ScriptError, match="a picture ends with"):
        plot.draw(found, tmp_path / "ratios.txt")


def test_of_all_one_that_cannot_be_measured_does_not_keep_the_others_from_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(command: list[str], **_more: Any) -> subprocess.CompletedProcess[bytes]:
        name, result = command[3], Path(command[-1].removeprefix("--json="))
        if name == "io":
            return subprocess.CompletedProcess(command, 1)
        result.write_text(json.dumps({"subcommand": name, **one_round(2.0, 1.0, met=False)}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(every.subprocess, "run", measure)  # type: ignore[attr-defined]
    options = argparse.Namespace(quick=True, only=None, json=tmp_path / "all.json", plot=None, strict=False)
    assert every.run(options, ["io", "move"]) == 1
    assert [report["subcommand"] for report in json.loads(options.json.read_text())["reports"]] == ["move"]
    assert "move: fault1 2.00 x" in capsys.readouterr().out
