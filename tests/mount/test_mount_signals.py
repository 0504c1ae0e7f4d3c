"""Which signals end a command that waits: real processes, real signals, what each does about them."""

import contextlib
import ctypes
import errno
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.mount_harness import MIB, Device
from ttmfs.fs.kernel.processes import masks_of

pytestmark = pytest.mark.mount

CLIENT = str(Path(__file__).resolve().parent / "signal_client.py")
S = signal.Signals
Start = Callable[..., "Waiting"]


class Waiting:
    """A process that waits in `objects/a/wait`, for a copy that a paused engine does not begin."""

    def __init__(self, device: Device, how: str, *numbers: int) -> None:
        self.device = device
        before = device.control("commands")
        command = [sys.executable, "-I", "-S", CLIENT, f"{device.mountpoint}/objects/a/wait", "kernel 50", how]
        self.popen = subprocess.Popen([*command, *map(str, numbers)], stdout=subprocess.PIPE, text=True)
        assert self.popen.stdout is not None
        self.tid = int(self.popen.stdout.readline().split()[1])
        device.until(lambda: device.control("commands") == before + 1, why="the command waits")

    def send(self, number: int, *, tid: int = 0) -> None:
        """To the process, or to one thread of it."""
        if tid:
            signal_thread(self.popen.pid, tid, number)
        else:
            self.popen.send_signal(number)

    def until_pending(self, number: int) -> None:
        """Until the signal is there for the thread that waits to take."""
        bit = 1 << (number - 1)
        self.device.until(lambda: (masks := masks_of(self.tid)) and masks.pending & bit, why=f"{number} is pending")

    def answer(self) -> tuple[str, int]:
        """(errno's name or ok, how often its handlers ran)."""
        assert self.popen.stdout is not None
        out, _ = self.popen.communicate(timeout=10)
        code, handled = map(int, out.split())
        return errno.errorcode.get(code, "ok"), handled

    def end(self) -> None:
        self.popen.kill()
        self.popen.communicate(timeout=10)


def signal_thread(pid: int, tid: int, number: int) -> None:
    """Python has it for threads of its own only."""
    assert ctypes.CDLL(None).tgkill(pid, tid, number) == 0


@pytest.fixture
def start(device: Device) -> Iterator[Start]:
    device.make("a", MIB, fill=1)
    assert device.command("debug/pause_engine", "1") == "ok"
    assert device.command("objects/a/validate", "vram") == "ok"
    started: list[Waiting] = []

    def begin(how: str, *numbers: int) -> Waiting:
        started.append(Waiting(device, how, *numbers))
        return started[-1]

    try:
        yield begin
    finally:
        with contextlib.suppress(AssertionError):
            device.command("debug/pause_engine", "0")
        for waiting in started:
            waiting.end()


def goes_on(start: Start, waiting: Waiting) -> None:
    """It is looked at, and goes on: another one that is told to end does, and this one waits until the copy is done.

    All that wait are looked at in one go.
    """
    other = start("caught", S.SIGTERM)
    other.send(S.SIGTERM)
    assert other.answer()[0] == "EINTR"
    assert waiting.device.control("commands") == 1
    assert waiting.device.command("debug/pause_engine", "0") == "ok"


@pytest.mark.parametrize("number", [S.SIGINT, S.SIGTERM, S.SIGHUP, S.SIGQUIT])
def test_what_says_stop_ends_it_also_when_it_is_caught(start: Start, number: int) -> None:
    waiting = start("caught", number)
    waiting.send(number)
    assert waiting.answer() == ("EINTR", 1)


FATAL = [
    S.SIGINT, S.SIGTERM, S.SIGHUP, S.SIGQUIT, S.SIGKILL, S.SIGALRM, S.SIGUSR1, S.SIGUSR2, S.SIGPIPE, S.SIGPROF,
    S.SIGVTALRM, S.SIGIO, S.SIGSEGV, S.SIGXCPU, S.SIGRTMIN, S.SIGRTMAX,
]  # fmt: skip


@pytest.mark.parametrize("number", FATAL)
def test_what_will_kill_ends_it(start: Start, number: int) -> None:
    waiting = start("default", number)
    waiting.send(number)
    assert waiting.popen.wait(10) == -number


NOTED = [
    S.SIGCHLD, S.SIGURG, S.SIGWINCH, S.SIGCONT, S.SIGALRM, S.SIGPROF, S.SIGVTALRM, S.SIGUSR1, S.SIGIO, S.SIGRTMIN
]  # fmt: skip


@pytest.mark.parametrize("number", NOTED)
def test_a_handler_for_something_else_does_not(start: Start, number: int) -> None:
    waiting = start("caught", number)
    waiting.send(number)
    waiting.until_pending(number)
    goes_on(start, waiting)
    assert waiting.answer() == ("ok", 1)


@pytest.mark.parametrize("how", ["ignored", "blocked"])
def test_what_is_ignored_or_blocked_does_not(start: Start, how: str) -> None:
    numbers = (S.SIGINT, S.SIGTERM, S.SIGHUP, S.SIGUSR1)
    waiting = start(how, *numbers)
    for number in numbers:
        waiting.send(number)
    if how == "blocked":
        waiting.until_pending(S.SIGUSR1)
    goes_on(start, waiting)
    assert waiting.answer() == ("ok", 0)


def test_a_job_of_the_shell_that_ends_meanwhile_does_not(start: Start, device: Device) -> None:
    script = f"exec 3<&0; cat <&3 & echo kernel 20 > '{device.mountpoint}/objects/a/wait'; echo $?"
    with subprocess.Popen(["bash", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        device.until(lambda: device.control("commands") == 1, why="the command waits")
        assert shell.stdin is not None
        shell.stdin.close()
        bit = 1 << (S.SIGCHLD - 1)
        device.until(lambda: (masks := masks_of(shell.pid)) and masks.pending & bit, why="SIGCHLD is pending")
        other = start("caught", S.SIGINT)
        other.send(S.SIGINT)
        assert other.answer()[0] == "EINTR"
        assert device.command("debug/pause_engine", "0") == "ok"
        assert shell.stdout is not None
        assert shell.stdout.read() == b"0\n"


def test_a_signal_for_another_thread_does_not(start: Start) -> None:
    waiting = start("worker", S.SIGINT)
    assert waiting.tid != waiting.popen.pid
    # The main thread is there to take it, as it would be if the worker waited elsewhere.
    waiting.send(S.SIGINT, tid=waiting.popen.pid)
    waiting.device.until(
        lambda: (masks := masks_of(waiting.popen.pid)) and not masks.pending, why="the main thread has taken it"
    )
    goes_on(start, waiting)
    assert waiting.answer() == ("ok", 1)


def test_a_signal_for_the_thread_that_waits_ends_it(start: Start) -> None:
    waiting = start("worker", S.SIGINT)
    waiting.send(S.SIGINT, tid=waiting.tid)
    assert waiting.answer()[0] == "EINTR"


@pytest.mark.parametrize("number", [S.SIGKILL, S.SIGTERM, S.SIGQUIT])
def test_a_process_dies_whichever_of_its_threads_has_opened_the_file(start: Start, number: int) -> None:
    """The main thread, which has opened it, is gone at once; the one that waits holds the process."""
    waiting = start("handed")
    assert waiting.tid != waiting.popen.pid
    waiting.send(number)
    assert waiting.popen.wait(10) == -number


def test_the_reason_is_in_the_error_log(start: Start, device: Device) -> None:
    waiting = start("caught", S.SIGHUP)
    waiting.send(S.SIGHUP)
    assert waiting.answer()[0] == "EINTR"
    assert "EINTR" in device.shell.do("slurp('error_log')").splitlines()[-1]
