"""The watchdog: a daemon wedged in each known way lets its clients go soon after the timeout."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.fs_plumbing.plumbing_harness import HERE, Server, cat
from ttmfs.errors import TtmError
from ttmfs.fs.kernel import tuning
from ttmfs.fs.kernel.watchdog import Ward, Watchdog, _leader, rescue, watch

TIMEOUT = 1.0


def mounted(mountpoint: str) -> bool:
    try:
        tuning.connection_number(mountpoint)
    except TtmError:
        return False
    return True


def gone_by(deadline: float, mountpoint: str) -> bool:
    while time.monotonic() < deadline:
        if not mounted(mountpoint):
            return True
        time.sleep(0.02)
    return False


def stop(server: Server) -> None:
    server.popen.send_signal(signal.SIGSTOP)


def loop_for_ever(server: Server) -> None:
    server.do("spin_forever")


def kill(server: Server) -> None:
    server.popen.send_signal(signal.SIGKILL)


def kill_with_a_thread_in_inval(server: Server) -> None:
    """The leader becomes a zombie while a thread waits in the kernel for the READ that nobody answers now."""
    server.begin("inval", ino=3, flush=False)
    server.do("status")
    tasks = f"/proc/{server.popen.pid}/task"
    end = time.monotonic() + 3
    while not any(" D " in Path(tasks, tid, "stat").read_text() for tid in os.listdir(tasks)):
        assert time.monotonic() < end
        time.sleep(0.01)
    kill(server)


@pytest.mark.mount
@pytest.mark.parametrize(
    ("wedge", "timeout", "reason"),
    [
        (stop, TIMEOUT, "no heartbeat"),
        (loop_for_ever, TIMEOUT, "no heartbeat"),
        (kill, 30, "gone"),
        (kill_with_a_thread_in_inval, 30, "leader thread is dead"),
    ],
)
def test_a_wedged_daemon_frees_its_clients_and_the_mount(
    serve: Callable[..., Server], client: Any, mountpoint: str, tmp_path: Path, wedge: Any, timeout: float, reason: Any
) -> None:
    log = tmp_path / "log"
    server = serve(watchdog=timeout, log=str(log))
    reader = client("park", "1")
    server.until(lambda status: status["parked"] == 1)
    begin = time.monotonic()
    wedge(server)
    # Far from the timeout of 30 s: a daemon that is gone is seen at once, whatever the timeout.
    within = TIMEOUT + 10
    reader.wait(within)
    assert gone_by(begin + within, mountpoint)
    end = time.monotonic() + 10
    while not (log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < end
        time.sleep(0.01)
    text = log.read_text()
    assert text.count("\n") == 1
    assert reason in text
    assert "unmounted" in text


@pytest.mark.mount
def test_a_healthy_daemon_is_left_alone_and_a_clean_end_too(
    serve: Callable[..., Server], mountpoint: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    server = serve(watchdog=TIMEOUT, log=str(log))
    pid = server.ready["watchdog"]
    end = time.monotonic() + 2 * TIMEOUT  # a watchdog without heartbeats would have acted by then
    while time.monotonic() < end:
        assert cat(mountpoint, "bo") == bytes(16)
    server.begin("terminate")
    assert server.wait(5) == 0
    assert not os.path.exists(f"/proc/{pid}")  # reaped by the daemon
    assert not mounted(mountpoint)
    assert not log.exists()


@pytest.mark.mount
def test_the_daemon_survives_the_end_of_its_watchdog(serve: Callable[..., Server], mountpoint: str) -> None:
    server = serve(watchdog=TIMEOUT)
    os.kill(server.ready["watchdog"], signal.SIGKILL)
    server.until(lambda status: status["watchdog_lost"])
    assert cat(mountpoint, "bo") == bytes(16)
    server.begin("terminate")
    assert server.wait(5) == 0


@pytest.mark.mount
def test_another_mount_at_the_same_place_is_not_touched(
    serve: Callable[..., Server], mountpoint: str, tmp_path: Path
) -> None:
    """The rescue comes when another daemon has the mount point, and the connection number too where nobody else mounts:
    the kernel gives freed numbers out again at once."""
    log = tmp_path / "log"
    first = serve(watchdog=TIMEOUT, log=str(log))
    stop(first)
    assert tuning.lazy_unmount(mountpoint) is None
    second = serve()
    end = time.monotonic() + 5
    while not (log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert cat(mountpoint, "bo") == bytes(16)
    assert tuning.connection_number(mountpoint) == second.connection


@pytest.mark.mount
@pytest.mark.skipif(os.geteuid() != 0, reason="umount -f needs root")
def test_without_fusectl_the_forced_unmount_aborts(serve: Callable[..., Server], client: Any, mountpoint: str) -> None:
    server = serve()
    reader = client("park", "1")
    server.until(lambda status: status["parked"] == 1)
    stop(server)
    done = rescue(Ward(server.popen.pid, None, server.connection, mountpoint, 1.0, -1))
    reader.wait(10)
    assert not mounted(mountpoint)
    assert "aborted" in " ".join(done)
    assert not any("killed" in sentence for sentence in done)


def ward(timeout: float = 30.0) -> Ward:
    leader = _leader(os.getpid())
    assert leader is not None
    return Ward(os.getpid(), leader[1], 0, "/nowhere", timeout)


@pytest.mark.parametrize(("sent", "reason"), [(b"..q", None), (b"...", "gone without")])
def test_goodbye_and_the_end_of_the_pipe(sent: bytes, reason: str | None) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, sent)
    os.close(write_end)
    outcome = watch(ward(), read_end)
    os.close(read_end)
    assert outcome is None if reason is None else reason in str(outcome)


def test_silence() -> None:
    read_end, write_end = os.pipe()
    begin = time.monotonic()
    outcome = watch(ward(0.5), read_end)
    assert "no heartbeat" in str(outcome)
    assert time.monotonic() - begin >= 0.5
    os.close(write_end)
    os.close(read_end)


async def test_heartbeats_come_twice_a_second(autojump_clock: MockClock) -> None:
    read_end, write_end = os.pipe()
    watchdog = Watchdog(None, write_end)  # type: ignore[arg-type]
    with trio.move_on_after(10.2):
        await watchdog.heartbeat()
    assert os.read(read_end, 100) == b"." * 21
    os.close(read_end)
    assert not watchdog.lost
    watchdog.beat()
    assert watchdog.lost
    os.close(write_end)


def test_a_full_pipe_does_not_block_the_daemon() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    watchdog = Watchdog(None, write_end)  # type: ignore[arg-type]
    for _ in range(70_000):
        watchdog.beat()
    assert not watchdog.lost
    os.close(read_end)
    os.close(write_end)


def test_the_process_loads_only_the_standard_library() -> None:
    # Without site-packages nothing else can be imported; what a Python loads at its start is its own business.
    program = "import sys; sys.path.append(sys.argv[1]); import ttmfs.fs.kernel.watchdog; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, HERE.parents[1]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ttmfs.fs.kernel.watchdog" in done.stdout.split()


def test_a_timeout_shorter_than_two_heartbeats_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Watchdog.start("/nowhere", timeout=0.5)
    with pytest.raises(TtmError):
        Watchdog.start("/nowhere", timeout=5)
