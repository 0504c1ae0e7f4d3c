"""mount(8)'s way of calling, `ttmfs run`'s own failures and what it keeps, and what systemd is told."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ttmfs import cli, service
from ttmfs.fs.kernel import tuning
from ttmfs.fstab import is_asked_for, mount_words, split_options

TTMFS = [sys.executable, "-m", "ttmfs"]
SMALL = ("--vram", "8M", "--gtt", "16M", "--memory", "32M")


def ttmfs(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TTMFS, *arguments], capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **variables}
    )


def test_options_of_fstab_are_split_at_commas_that_are_no_values() -> None:
    assert split_options(r"vram=1M,,swap_store=file:/a\,b,x=\\,y") == ["vram=1M", "swap_store=file:/a,b", "x=\\", "y"]


def test_options_of_fstab_are_those_of_mount() -> None:
    asked = ["rw", "noauto", "x-systemd.automount", "vram=1M", "sync_moves", "visible-vram=1M"]
    words = mount_words(asked, cli.load("mount"))
    assert words == ["--vram", "1M", "--sync-moves", "--visible-vram", "1M"]


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("ro", "read and written"),
        ("vrm=1M", "did you mean vram?"),
        ("qqqqqq", "say some of "),
        ("vram", "say vram=VALUE"),
        ("sync_moves=1", "say sync_moves"),
        ("foreground", "no such option"),
    ],
)
def test_what_fstab_cannot_ask_for_is_refused_with_what_can_be(option: str, why: str) -> None:
    with pytest.raises(click.UsageError, match=why.replace("?", r"\?")):
        mount_words([option], cli.load("mount"))


def test_nobody_is_asked_whether_he_meant_what_he_said() -> None:
    with pytest.raises(click.UsageError) as refused:
        mount_words(["foreground"], cli.load("mount"))
    assert "mean foreground" not in refused.value.message


def test_a_misspelt_command_mounts_nothing() -> None:
    commands = cli.main.commands
    assert is_asked_for(["gpu", "/mnt", "-o", "rw"], commands)
    assert is_asked_for(["gpu", "/mnt", "-orw"], commands)
    assert not is_asked_for(["mout", "/mnt", "--vram", "1M"], commands)
    assert not is_asked_for(["mount", "/mnt", "-o", "rw"], commands)


def test_systemd_is_told_and_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(10)
        for address in (str(tmp_path / "notify"), f"@ttmfs-test-{os.getpid()}"):
            manager_here = manager if address.startswith("/") else socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            manager_here.settimeout(10)
            manager_here.bind(address.replace("@", "\0", 1))
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            service.notify("READY=1")
            assert manager_here.recv(100) == b"READY=1"
            manager_here.close()
    # Nobody listens any more, or nobody was to.
    service.notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    service.notify("READY=1")


@pytest.mark.mount
def test_what_mount_8_calls_mounts_and_no_mount_goes_into_or_away_under_another(folder: str) -> None:
    done = ttmfs("gpu,0", folder, "-o", "rw,vram=8M,gtt=16M,memory=32M,noauto,placement=vram gtt")
    assert (done.returncode, done.stderr) == (0, "")
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        assert f"gpu,0 {folder} fuse.ttmfs " in mounts.read()
    inside = f"{folder}/bo/inside"
    subprocess.run(["mkdir", inside], check=True, timeout=20)
    done = ttmfs("mount", inside, *SMALL)
    assert done.returncode == 1
    assert f"{inside} is inside the ttmfs mount {folder}" in done.stderr
    below = ["mount", "-t", "tmpfs", "none", inside]
    if os.geteuid() == 0 and subprocess.run(below, check=False, timeout=20).returncode == 0:
        try:
            done = ttmfs("umount", folder)
            assert done.returncode == 1
            assert f"another mount is below it ({inside})" in done.stderr
        finally:
            subprocess.run(["umount", inside], check=True, timeout=20)
    assert ttmfs("umount", folder).returncode == 0


@pytest.mark.mount
def test_a_service_says_when_it_is_ready(folder: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        daemon = subprocess.Popen(
            [*TTMFS, "mount", folder, "--foreground", *SMALL],
            stderr=subprocess.DEVNULL, env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )  # fmt: skip
        try:
            assert manager.recv(100) == b"READY=1"
            assert folder in tuning.mountpoints("fuse.ttmfs")
            daemon.terminate()
            assert daemon.wait(30) == 0
        finally:
            daemon.kill()
            daemon.wait(10)


@pytest.mark.mount
def test_run_keeps_what_the_device_knew_and_shows_why_its_command_has_failed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    script = "truncate -s 16M $TTMFS_MOUNT/bo/a; echo vram > $TTMFS_MOUNT/objects/a/validate 2>/dev/null; exit 3"
    done = ttmfs("run", *SMALL, "--keep", str(kept), "--trace", "validated", "--", "bash", "-c", script)
    assert done.returncode == 3
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("ttmfs: ")]
    assert line.startswith("ttmfs: a validate vram: ENOMEM: ")
    names = {path.name for path in kept.iterdir()}
    assert names >= {"error_log", "stats", "metrics", "trace", "config", "map.vram", "map.system", "map.gtt"}
    assert json.loads((kept / "stats").read_text())["bos"]["count"] == 1
    assert "validated: bo=a result=error" in (kept / "trace").read_text()
    assert line.rsplit(": ", 1)[1] in (kept / "error_log").read_text()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--vram", "1"], "less than a page"),
        (["--no-such-option"], "No such option"),
        ([], "Missing argument"),
        (["--trace", "no_such_event", "--", "true"], "no_such_event"),
        (["--memory", "4096T", "--", "true"], "make it smaller"),
    ],
)
def test_runs_own_failures_have_a_status_that_no_command_shares(words: list[str], why: str) -> None:
    done = ttmfs("run", *words, *([] if "--" in words or not words else ["--", "true"]))
    assert done.returncode == 125
    assert why in done.stderr
