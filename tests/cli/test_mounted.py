"""mount, umount, run and status as processes, on real mounts."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ttmfs.fs.kernel import tuning

pytestmark = pytest.mark.mount

TTMFS = [sys.executable, "-m", "ttmfs"]
SMALL = ["--vram", "8M", "--gtt", "16M", "--memory", "32M"]


def ttmfs(*arguments: str, seconds: float = 30, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TTMFS, *arguments], capture_output=True, text=True, timeout=seconds, check=False, **more
    )


def shell(script: str, *arguments: str, seconds: float = 20) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script, "test", *arguments], capture_output=True, text=True, timeout=seconds, check=False
    )


def wait_for(what: str, condition: object, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, f"{what} did not happen in {seconds} s"
        time.sleep(0.02)


def is_mounted(path: str) -> bool:
    return path in tuning.mountpoints("fuse.ttmfs")


@pytest.fixture
def mnt(folder: str) -> str:
    done = ttmfs("mount", folder, *SMALL)
    assert done.returncode == 0, done.stderr
    return folder


def test_mount_is_ready_when_it_returns_and_umount_takes_it_down(mnt: str) -> None:
    done = shell('echo hello > "$1/bo/a" && echo vram > "$1/objects/a/validate" && cat "$1/bo/a"', mnt)
    assert (done.stdout, done.stderr) == ("hello\n", "")
    done = ttmfs("umount", mnt)
    assert (done.returncode, done.stderr) == (0, "")
    assert not is_mounted(mnt)


def test_mounting_twice_and_on_a_full_folder_is_refused(mnt: str, tmp_path: Path) -> None:
    done = ttmfs("mount", mnt, *SMALL)
    assert done.returncode == 1
    assert f"`ttmfs umount {mnt}` takes it down" in done.stderr
    (tmp_path / "something").touch()
    done = ttmfs("mount", str(tmp_path), *SMALL)
    assert done.returncode == 1
    assert "is not empty" in done.stderr


def test_a_failure_in_the_daemon_reaches_the_parent(folder: str) -> None:
    done = ttmfs("mount", folder, "--memory", "4096T")
    assert done.returncode == 1
    assert "make it smaller" in done.stderr
    assert not is_mounted(folder)


def test_a_name_with_blanks_and_other_letters(folder: str) -> None:
    path = f"{os.path.dirname(folder)}/dünn dick"
    os.rename(folder, path)
    try:
        assert ttmfs("mount", path, *SMALL).returncode == 0
        assert "is a ttmfs mount already" in ttmfs("mount", path, *SMALL).stderr
        assert ttmfs("status", path).returncode == 0
        assert ttmfs("umount", path).returncode == 0
        assert not is_mounted(path)
    finally:
        with contextlib.suppress(OSError):
            tuning.abort_connection(tuning.connection_number(path))
            tuning.lazy_unmount(path)


def test_the_daemon_keeps_no_descriptor_of_its_caller(folder: str) -> None:
    # `cat` ends only when nobody has the other end of the pipe open any more.
    done = shell('set -o pipefail; "$@" 9>&1 | cat', *TTMFS, "mount", folder, *SMALL, seconds=20)
    assert done.returncode == 0
    assert is_mounted(folder)


def test_umount_of_a_busy_mount_says_who_and_force_does_not_ask(mnt: str) -> None:
    user = subprocess.Popen(
        ["bash", "-c", 'cd "$1" && exec 3>bo/held && echo ready && read -r line', "user", mnt],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert user.stdout is not None
        assert user.stdout.readline() == "ready\n"
        done = ttmfs("umount", mnt)
        assert done.returncode == 1
        assert "is busy" in done.stderr
        assert f"{user.pid} (bash)" in done.stderr
        assert f"{mnt}/bo/held" in done.stderr
        assert "--force" in done.stderr
        assert is_mounted(mnt)
        done = ttmfs("umount", "--force", mnt)
        assert (done.returncode, done.stderr) == (0, "")
        assert not is_mounted(mnt)
    finally:
        user.kill()
        user.communicate(timeout=10)


def test_umount_leaves_other_file_systems_alone() -> None:
    done = ttmfs("umount", "/proc")
    assert done.returncode == 1
    assert "/proc is no ttmfs mount" in done.stderr


def test_status(mnt: str) -> None:
    assert shell('head -c 5000 /dev/zero > "$1/bo/a" && echo vram > "$1/objects/a/validate"', mnt).returncode == 0
    done = ttmfs("status", mnt, env={**os.environ, "COLUMNS": "20"})
    assert done.returncode == 0
    for word in ("region", "vram", "8M", "faults", "moves"):
        assert word in done.stdout
    values = json.loads(ttmfs("status", "--json", mnt).stdout)
    assert values["regions"]["vram"] == {
        "size": 8 << 20, "used": 8192, "visible_size": 8 << 20, "visible_used": 8192, "usage": 8192,
        "bos": 1,
    }  # fmt: skip
    assert values["bos"]["count"] == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_status_of_another_users_mount(mnt: str) -> None:
    os.chmod(os.path.dirname(mnt), 0o755)
    # Everything is imported before the rights are gone: this Python may lie below root's own folder.
    script = (
        "import os, sys, ttmfs.cli.look, ttmfs.cli as cli\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); cli.main(['status', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, mnt], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 1
    assert "--allow-other" in done.stderr


def test_foreground_ends_on_sigterm_and_unmounts(folder: str) -> None:
    daemon = subprocess.Popen(
        [*TTMFS, "mount", folder, "--foreground", *SMALL], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        assert daemon.stderr is not None
        while "is ready" not in (line := daemon.stderr.readline()):
            assert line, "the daemon ended before it was ready"
        assert is_mounted(folder)
        daemon.terminate()
        assert daemon.wait(15) == 0
        assert not is_mounted(folder)
    finally:
        daemon.kill()
        daemon.communicate(timeout=10)


@pytest.mark.skipif(os.geteuid() != 0, reason="the watchdog of a user knows a connection by its place only")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_a_mount_that_was_taken_elsewhere_spares_what_is_at_its_old_place(
    tmp_path: Path, how: signal.Signals
) -> None:
    old, new = tmp_path / "one" / "gpu", tmp_path / "two" / "gpu"
    old.mkdir(parents=True)
    command = [*TTMFS, "mount", str(old), "--foreground", *SMALL]
    daemon = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert daemon.stderr is not None
        while "is ready" not in (line := daemon.stderr.readline()):
            assert line, "the daemon ended before it was ready"
        old.parent.rename(new.parent)
        old.mkdir(parents=True)
        assert ttmfs("mount", str(old), *SMALL).returncode == 0
        assert shell('echo kept > "$1/bo/a"', str(old)).returncode == 0
        daemon.send_signal(how)
        daemon.wait(15)
        wait_for("the unmount", lambda: not is_mounted(str(new)))
        assert shell('cat "$1/bo/a"', str(old)).stdout == "kept\n"
    finally:
        daemon.kill()
        daemon.communicate(timeout=10)
        for mount in (old, new):
            tuning.lazy_unmount(str(mount))


def left_in_tmp(output: str) -> str:
    """The mount that `run` made, as its command has printed it."""
    return output.splitlines()[0]


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143)])
def test_run_returns_the_status_of_its_command(script: str, status: int) -> None:
    done = ttmfs("run", *SMALL, "--", "bash", "-c", f'echo "$TTMFS_MOUNT"; test -e "$TTMFS_MOUNT/stats"; {script}')
    assert done.returncode == status, done.stderr
    assert not os.path.exists(left_in_tmp(done.stdout))


def test_run_options_after_the_command_are_the_commands() -> None:
    done = ttmfs("run", *SMALL, "echo", "--vram", "1G", "--help")
    assert (done.returncode, done.stdout) == (0, "--vram 1G --help\n")


def test_run_a_command_that_has_unmounted_the_device() -> None:
    done = ttmfs("run", *SMALL, "--", "bash", "-c", 'echo "$TTMFS_MOUNT"; umount -l "$TTMFS_MOUNT" && exit 4')
    if done.returncode == 1:
        pytest.skip("umount(8) does not let this user")
    assert done.returncode == 4
    where = done.stdout.strip()
    assert done.stderr == f"ttmfs: the device was unmounted from {where} before the command had ended\n"
    assert not os.path.exists(where)


def test_run_a_command_that_is_none(tmp_path: Path) -> None:
    done = ttmfs("run", *SMALL, "--", "/no/such/program")
    assert (done.returncode, done.stderr) == (127, "ttmfs: /no/such/program: No such file or directory\n")
    (tmp_path / "text").touch()
    assert ttmfs("run", *SMALL, "--", str(tmp_path / "text")).returncode == 126


def test_run_cleans_up_after_a_command_that_leaves_a_process_inside() -> None:
    # The shell waits until its child has become `sleep`: until then it would be found under the shell's name.
    script = (
        'cd "$TTMFS_MOUNT" && pwd && { sleep 60 >&- 2>&- & echo $!; }\n'
        'until [[ $(</proc/$!/comm) == sleep ]]; do :; done'
    )
    done = ttmfs("run", *SMALL, "--", "bash", "-c", script)
    where, pid = done.stdout.splitlines()
    try:
        assert done.returncode == 0
        assert f"{pid} (sleep)" in done.stderr
        assert not is_mounted(where)
        assert not os.path.exists(where)
    finally:
        os.kill(int(pid), signal.SIGKILL)


def test_run_hands_sigterm_on_and_cleans_up() -> None:
    script = 'trap "exit 5" TERM; echo "$TTMFS_MOUNT"; while :; do read -r -t 0.05 <> <(:) || :; done'
    runner = subprocess.Popen([*TTMFS, "run", *SMALL, "--", "bash", "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert runner.stdout is not None
        where = runner.stdout.readline().strip()
        assert is_mounted(where)
        runner.terminate()
        assert runner.wait(20) == 5
        assert not os.path.exists(where)
    finally:
        runner.kill()
        runner.communicate(timeout=10)


def test_a_terminals_interrupt_reaches_the_command_only_once_and_run_cleans_up() -> None:
    script = 'trap "exit 6" INT; echo "$TTMFS_MOUNT"; while :; do read -r -t 0.05 <> <(:) || :; done'
    runner = subprocess.Popen(
        [*TTMFS, "run", *SMALL, "--", "bash", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert runner.stdout is not None
        where = runner.stdout.readline().strip()
        os.killpg(runner.pid, signal.SIGINT)
        assert runner.wait(20) == 6
        assert not os.path.exists(where)
    finally:
        runner.kill()
        runner.communicate(timeout=10)
