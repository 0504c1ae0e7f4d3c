"""The replaced readiness wait: alone over a pipe, and under a served mount, beside the stock one."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyfuse3
import pytest
import trio

from tests.fs_plumbing.plumbing_harness import Server, cat
from ttmfs.fs.kernel import session_loop
from ttmfs.fs.kernel.session_loop import _FastWait

LOOPS = pytest.mark.parametrize("loop", ["stock", "fast"])


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


class Stock:
    """Stands for the stock wait: says each of `answers` at once."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)

    async def __call__(self) -> bool:
        return self.answers.pop(0)


async def test_a_wakeup_that_a_poll_does_not_confirm_is_not_readiness(pipe: tuple[int, int]) -> None:
    wait = _FastWait(pipe[0], Stock(True, True, True, False), 0.0, 1.0)
    assert await wait.wait() is False
    assert wait.spurious == 3
    assert wait.idle_tasks == 0


async def test_a_confirmed_wakeup_is(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    wait = _FastWait(pipe[0], Stock(True), 0.0, 1.0)
    assert await wait.wait() is True
    assert (wait.parked, wait.polled, wait.spurious) == (1, 0, 0)


async def test_fast_only_beside_a_parked_task(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    wait = _FastWait(pipe[0], Stock(), 0.0, 1.0)
    wait.idle_tasks = 1
    assert await wait.wait() is True  # from the poll: Stock() would raise
    assert wait.polled == 1


class Answers:
    """A source that answers requests of one byte, as many as `answers`; the next are left to pyfuse3."""

    def __init__(self, fd: int, answers: int, linger_s: float = 0.0) -> None:
        self.fd, self.answers, self.linger_s = fd, answers, linger_s

    def take(self) -> bool:
        if self.answers:
            self.answers -= 1
            os.read(self.fd, 1)
            return False
        return True


@pytest.mark.parametrize("parked", [True, False])
async def test_what_a_source_answers_is_none_of_pyfuse3s(pipe: tuple[int, int], parked: bool) -> None:
    os.write(pipe[1], b"xxxx")
    wait = _FastWait(pipe[0], Stock(*[True] * 4), 0.0, 1000.0)
    wait.idle_tasks = 0 if parked else 1
    wait.source = source = Answers(pipe[0], 3)
    assert await wait.wait() is True
    assert source.answers == 0
    assert os.read(pipe[0], 9) == b"x", "the fourth is pyfuse3's"


async def test_a_source_has_an_idle_descriptor_polled_longer_if_nobody_else_has_work(pipe: tuple[int, int]) -> None:
    def polls(source: Answers | None) -> int:
        wait = _FastWait(pipe[0], Stock(), 100e-6, 1000.0)
        clock = itertools.count(0, 10e-6)
        wait._clock = lambda: next(clock)
        wait.source = source
        assert wait._found(wait._clock()) is False
        return round(next(clock) / 10e-6)

    usual = polls(None)
    assert polls(Answers(pipe[0], 0)) == usual
    longer = polls(Answers(pipe[0], 0, 300e-6))
    assert longer == pytest.approx(usual + 30, abs=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.checkpoint)
        assert polls(Answers(pipe[0], 0, 300e-6)) == usual


async def test_no_yield_between_requests_within_the_period(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    wait = _FastWait(pipe[0], Stock(), 0.0, 1000.0)
    wait.idle_tasks = 1
    wait._last_checkpoint = time.perf_counter()
    with pytest.raises(StopIteration) as done:
        wait.wait().send(None)
    assert done.value.value is True


async def test_other_tasks_run_while_requests_keep_coming(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    wait = _FastWait(pipe[0], Stock(), 1e-5, 0.0005)
    wait.idle_tasks = 1
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        while wait.yields < 20:
            assert await wait.wait()
        nursery.cancel_scope.cancel()
    assert turns >= 19
    assert wait.polled > wait.yields  # and yet most requests cost no scheduler pass


class Parked:
    """Stands for the stock wait as pyfuse3 has it: one task at a time waits for the descriptor, until it is closed."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.lock = trio.Lock()

    async def __call__(self) -> bool:
        async with self.lock:
            await trio.lowlevel.wait_readable(self.fd)
        return True


@pytest.mark.parametrize("tasks", [2, 8, 40])
async def test_however_many_tasks_serve_others_run_once_a_period(pipe: tuple[int, int], tasks: int) -> None:
    os.write(pipe[1], b"x")
    wait = _FastWait(pipe[0], Parked(pipe[0]), 0.0, 0.0005)
    ticks = itertools.count()
    wait._clock = lambda: next(ticks) * 100e-6  # so a period is five requests
    served = [0]

    async def session() -> None:
        while True:
            assert await wait.wait()
            served[-1] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(session)
        for _ in range(300):
            await trio.lowlevel.checkpoint()
            served.append(0)
        nursery.cancel_scope.cancel()
    settled = served[50:-1]
    # One that polls for a period, and one that was woken for one request: six. A turn of the loop has no order, so some
    # turns see two such, and hardly one the end of a third.
    assert sum(settled) <= 6 * len(settled) + 6
    assert max(settled) <= 18
    assert sum(each > 12 for each in settled) <= 1
    assert min(settled[i] + settled[i + 1] for i in range(len(settled) - 1)) >= 1, "and none sleeps while there is one"
    assert (wait._yielding, wait.idle_tasks) == (0, 0)


async def test_one_that_is_cancelled_at_its_checkpoint_is_not_left_to(pipe: tuple[int, int]) -> None:
    wait = _FastWait(pipe[0], Parked(pipe[0]), 0.0, 0.0)
    wait.idle_tasks = 1
    with trio.CancelScope() as scope:
        scope.cancel()
        await wait.wait()
    os.write(pipe[1], b"x")
    assert await wait.wait() is True
    assert wait.polled == 1


async def test_cancellation_ends_a_busy_wait(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    wait = _FastWait(pipe[0], Stock(), 1e-5, 0.0005)
    wait.idle_tasks = 1
    with trio.move_on_after(0) as scope:
        for _ in range(1_000_000):
            await wait.wait()
    assert scope.cancelled_caught


def test_no_spin_twice_for_one_idle_time(pipe: tuple[int, int]) -> None:
    wait = _FastWait(pipe[0], Stock(False, False), 0.05, 1000.0)
    wait.idle_tasks = 1
    wait._last_checkpoint = time.perf_counter()
    with pytest.raises(StopIteration):
        wait.wait().send(None)
    begin = time.perf_counter()
    with pytest.raises(StopIteration):
        wait.wait().send(None)
    assert time.perf_counter() - begin < 0.04


def test_stock_loop_stays_when_the_descriptor_is_no_session(pipe: tuple[int, int]) -> None:
    stock = pyfuse3._wait_fuse_readable  # type: ignore[attr-defined]
    assert session_loop.install(pipe[0]) is False
    assert pyfuse3._wait_fuse_readable is stock  # type: ignore[attr-defined]
    assert "not /dev/fuse" in session_loop.statistics().reason
    assert session_loop.install(987654) is False
    assert "not open" in session_loop.statistics().reason


@pytest.fixture
def device() -> Iterator[int]:
    fd = os.open("/dev/fuse", os.O_RDWR)
    yield fd
    os.close(fd)
    session_loop.uninstall()


async def _calls_it(nursery: object, min_tasks: int, max_tasks: int) -> None:
    await pyfuse3._wait_fuse_readable()  # type: ignore[attr-defined]


async def _ignores_it(nursery: object, min_tasks: int, max_tasks: int) -> None:
    await trio.lowlevel.checkpoint()


async def _breaks(nursery: object, min_tasks: int, max_tasks: int) -> None:
    raise TypeError("other arguments")


@pytest.mark.parametrize(
    ("loop", "reason"),
    [(_ignores_it, "did not call"), (_breaks, "other arguments"), (None, "no coroutine function")],
)
def test_stock_loop_stays_with_an_unknown_pyfuse3(
    monkeypatch: pytest.MonkeyPatch, device: int, loop: object, reason: str
) -> None:
    stock = pyfuse3._wait_fuse_readable  # type: ignore[attr-defined]
    monkeypatch.setattr(pyfuse3, "_session_loop", loop)
    assert session_loop.install(device) is False
    assert pyfuse3._wait_fuse_readable is stock  # type: ignore[attr-defined]
    statistics = session_loop.statistics()
    assert not statistics.fast
    assert reason in statistics.reason


def test_install_and_uninstall(monkeypatch: pytest.MonkeyPatch, device: int) -> None:
    stock = pyfuse3._wait_fuse_readable  # type: ignore[attr-defined]
    monkeypatch.setattr(pyfuse3, "_session_loop", _calls_it)
    assert session_loop.install(device)
    assert session_loop.install(device)  # twice: still the stock wait beneath
    assert session_loop.statistics().fast
    assert pyfuse3._wait_fuse_readable is not stock  # type: ignore[attr-defined]
    session_loop.uninstall()
    assert pyfuse3._wait_fuse_readable is stock  # type: ignore[attr-defined]


async def test_install_within_trio(monkeypatch: pytest.MonkeyPatch, device: int) -> None:
    monkeypatch.setattr(pyfuse3, "_session_loop", _calls_it)
    assert session_loop.install(device)


def test_the_timer_interrupts_a_blocking_read(pipe: tuple[int, int]) -> None:
    interrupted: list[int] = []
    session_loop.start_freeze_timer(0.02)
    try:
        signal.signal(signal.SIGALRM, lambda *_: interrupted.append(os.write(pipe[1], b"x")))
        assert os.read(pipe[0], 1) == b"x"
    finally:
        session_loop.stop_freeze_timer()
    assert interrupted


@pytest.mark.mount
@LOOPS
def test_terminate_ends_main(serve: Callable[..., Server], loop: str) -> None:
    server = serve(loop=loop)
    assert server.ready["fast"] is (loop == "fast")
    assert cat(server.mountpoint, "bo") == bytes(16)
    server.begin("terminate")
    assert server.wait(10) == 0


@pytest.mark.mount
@LOOPS
def test_cancelling_the_nursery_ends(serve: Callable[..., Server], loop: str) -> None:
    server = serve(loop=loop)
    assert cat(server.mountpoint, "bo") == bytes(16)
    server.begin("cancel")
    assert server.wait(5) == 0


@pytest.mark.mount
@LOOPS
def test_unmounting_ends_main(serve: Callable[..., Server], loop: str) -> None:
    server = serve(loop=loop)
    assert cat(server.mountpoint, "bo") == bytes(16)
    assert os.system(f"umount '{server.mountpoint}'") == 0
    assert server.wait(5) == 0


@pytest.mark.mount
@LOOPS
def test_64_parked_reads_do_not_stop_other_requests(serve: Callable[..., Server], client: Any, loop: str) -> None:
    server = serve(loop=loop, size=8 << 20)
    reader = client("park", "64")
    server.until(lambda status: status["parked"] == 64)
    for _ in range(3):
        assert cat(server.mountpoint, "bo") == bytes(16)
    assert server.do("inval", ino=2)["known"]
    server.do("release")
    assert reader.wait(5) == 0
    # The surplus tasks of pyfuse3 end; those left are its idle ones (min_tasks 4, and the ones of the toy).
    status = server.until(lambda status: status["parked"] == 0)
    for _ in range(30):
        cat(server.mountpoint, "bo")
        status = server.do("status")
        if status["tasks"] <= 16:
            break
    assert status["tasks"] <= 16


@pytest.mark.mount
@LOOPS
def test_killed_clients_leave_the_loop_alive(serve: Callable[..., Server], client: Any, loop: str) -> None:
    server = serve(loop=loop)
    for _ in range(8):
        reader = client("park", "1")
        reader.popen.send_signal(signal.SIGKILL)
        server.do("status", timeout=3)
        assert cat(server.mountpoint, "bo", timeout=3) == bytes(16)
        server.do("release", timeout=3)
        reader.wait(3)


@pytest.mark.mount
@pytest.mark.parametrize(("loop", "timer"), [("fast", False), ("fast", True), ("stock", True)])
def test_requests_withdrawn_while_the_loop_is_busy(serve: Callable[..., Server], loop: str, timer: Any) -> None:
    """The blocking-read freeze: the only queued request is gone when the loop comes back to read it."""
    server = serve(loop=loop, timer=timer)
    for _ in range(3 if timer else 6):
        number = server.begin("block", seconds=0.1)
        time.sleep(0.02)  # the request must come in the first busy time and go in the second: nothing can report that
        # A killed stat leaves no other request behind, as closing a file would.
        with subprocess.Popen(["stat", f"{server.mountpoint}/nothing"], stderr=subprocess.DEVNULL) as stat:
            time.sleep(0.13)
            stat.kill()
        server.result(number, timeout=3)
        server.do("status", timeout=3)
        assert server.do("inval", ino=2, flush=False, timeout=3)["errno"] is None


@pytest.mark.mount
def test_requests_do_not_each_start_a_task(serve: Callable[..., Server]) -> None:
    server = serve(loop="fast", size=16 << 20, count_tasks=True)
    program = (
        "import os,sys; fd=os.open(sys.argv[1],os.O_RDONLY); os.posix_fadvise(fd,0,0,os.POSIX_FADV_RANDOM)\n"
        "for i in range(4000): os.pread(fd,4096,i*4096)"
    )
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", program, f"{server.mountpoint}/bo"]) == 0
    status = server.do("status")
    assert status["counts"]["read"] == 4000
    assert status["started_tasks"] < 400
