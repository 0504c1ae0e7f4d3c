"""ttm-ls on a mount: columns, names, which mount is meant, and what it says when there is none."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.mount.mount_harness import MIB, Device

pytestmark = pytest.mark.mount

MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "32M", "--memory", "64M")
Run = Callable[..., CompletedProcess[str]]


IMPATIENT = """
from functools import partial
from ttm_tools import ls
ls.Device = partial(ls.Device, read_seconds=1.0)
ls.main()
"""


def table(text: str) -> list[dict[str, str]]:
    header, *rows = [line.split("\t") for line in text.splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_columns_say_what_status_says(device: Device, run: Run) -> None:
    device.make("tex0", 3 * MIB, 1, "vram")
    device.make("empty", MIB)
    assert device.command("objects/tex0/pin", "\n") == "ok"
    # Nothing but a terminal gets the table for people, whoever asks for colours.
    done = run("ls", device.mountpoint, "-l", FORCE_COLOR="1", COLUMNS="20")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {row["name"]: row for row in table(done.stdout)}
    assert set(rows) == {"tex0", "empty"}
    status = device.status("tex0")
    assert rows["tex0"]["size"] == str(3 * MIB)
    assert rows["tex0"]["place"] == "vram"
    assert rows["tex0"]["populated"] == str(3 * MIB)
    assert rows["tex0"]["pins"] == "1"
    assert rows["tex0"]["moves"] == str(status["moves"])
    assert rows["empty"]["populated"] == "0"
    assert rows["empty"]["orders"] == "-"


def test_names_that_a_table_could_not_bear(device: Device, run: Run) -> None:
    device.shell.do("os.mkdir(path(b'bo/a folder'))")
    device.shell.do("open(path(b'bo/a folder/tab\\there\\n\\\\ \\xff'), 'wb').close()")
    done = run("ls", device.mountpoint)
    assert [row["name"] for row in table(done.stdout)] == ["a folder/tab\\011here\\012\\134 \\377"]
    (status,) = json.loads(run("ls", "--json", device.mountpoint).stdout)
    assert os.fsencode(status["name"]) == b"a folder/tab\there\n\\ \xff"


def test_pattern_and_order(device: Device, run: Run) -> None:
    for name, size in (("tex1", 1), ("tex2", 3), ("mesh", 2)):
        device.make(name, size * MIB)
    names = [row["name"] for row in table(run("ls", device.mountpoint, "--sort", "size").stdout)]
    assert names == ["tex2", "mesh", "tex1"]
    done = run("ls", device.mountpoint, "tex*", "--no-header")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["tex1", "tex2"]
    done = run("ls", "m*", mount=device.mountpoint)
    assert [row["name"] for row in table(done.stdout)] == ["mesh"]


def test_a_link_to_the_mount_is_the_mount(device: Device, run: Run, tmp_path: Path) -> None:
    device.make("a", MIB)
    (tmp_path / "gpu").symlink_to(device.mountpoint)
    assert [row["name"] for row in table(run("ls", str(tmp_path / "gpu")).stdout)] == ["a"]
    done = run("ls", str(tmp_path / "gpu" / "bo"))
    assert done.returncode == 2
    assert f"is inside a ttmfs mount: say {device.mountpoint}" in done.stderr


@pytest.mark.parametrize(("tool", "more"), [("ls", ()), ("top", ("--once",)), ("map", ()), ("storm", ())])
def test_what_is_no_mount(run: Run, tmp_path: Path, tool: str, more: tuple[str, ...]) -> None:
    done = run(tool, str(tmp_path), *more)
    assert done.returncode == 2
    assert f"{tmp_path} is no ttmfs mount; ttmfs is mounted" in done.stderr
    done = run(tool, str(tmp_path / "nothing"), *more)
    assert done.returncode == 2
    assert "is not there" in done.stderr
    done = run(tool, *more, mount=str(tmp_path))
    assert done.returncode == 2
    assert "$TTMFS_MOUNT" in done.stderr


def test_a_dead_daemon(mounted: Callable[..., Device], run: Run) -> None:
    # Without its watchdog, which would take the dead mount down.
    device = mounted(*MOUNT_OPTIONS, "--watchdog", "0")
    device.daemon.popen.send_signal(signal.SIGKILL)
    device.daemon.popen.wait(10)
    done = run("ls", device.mountpoint)
    assert done.returncode == 1
    assert "has ended" in done.stderr
    assert f"ttmfs umount --force {device.mountpoint}" in done.stderr


def test_a_daemon_that_does_not_answer(mounted: Callable[..., Device], run: Run) -> None:
    device = mounted(*MOUNT_OPTIONS, "--watchdog", "0")
    os.kill(device.daemon.pid, signal.SIGSTOP)
    try:
        command = [sys.executable, "-c", IMPATIENT, device.mountpoint]
        done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
    finally:
        os.kill(device.daemon.pid, signal.SIGCONT)
    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert "--force" in done.stderr


def test_completion_knows_mounts_and_bos(device: Device, run: Run) -> None:
    device.make("texture", MIB)
    words = f"ttm-ls '{device.mountpoint}' te"
    done = run("ls", _TTM_LS_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD="2")
    assert "plain,texture" in done.stdout.splitlines()
    words = device.mountpoint.split(" ")[0]
    done = run("ls", _TTM_LS_COMPLETE="bash_complete", COMP_WORDS=f"ttm-ls {words}", COMP_CWORD="1")
    assert f"plain,{device.mountpoint}" in done.stdout.splitlines()


def test_a_bo_with_several_names_is_one_row(device: Device, run: Run) -> None:
    device.make("tex0", MIB, 1)
    shell = device.shell
    shell.do("os.mkdir(path('bo/d')); os.link(path('bo/tex0'), path('bo/a')); os.link(path('bo/a'), path('bo/d/b'))")
    shell.do("os.symlink('tex0', path('bo/link')); os.symlink('d', path('bo/folder'))")
    done = run("ls", device.mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["name"] for row in table(done.stdout)] == ["tex0"]
    for pattern, found in (("tex*", ["tex0"]), ("d/*", ["tex0"]), ("link", [])):
        done = run("ls", device.mountpoint, pattern)
        assert [row["name"] for row in table(done.stdout)] == found, pattern
