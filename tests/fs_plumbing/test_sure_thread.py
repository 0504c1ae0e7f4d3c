"""SureThread and in_thread where the host gives no more threads."""

import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from ttmfs.errors import TtmError
from ttmfs.fs.kernel.sure_thread import SureThread
from ttmfs.sync.offload import Lane


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on."""

    async def refused(*_what: Any, **_how: Any) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    return lambda: monkeypatch.setattr(trio.to_thread, "run_sync", refused)


async def test_what_is_sure_is_done_in_order_by_the_one_that_was_there(no_threads: Callable[[], None]) -> None:
    sure = SureThread("sure", 4)
    no_threads()
    done: list[tuple[int, str]] = []

    def work(number: int) -> int:
        done.append((number, threading.current_thread().name))
        return number

    assert [await sure.run(work, number) for number in range(3)] == [0, 1, 2]
    assert done == [(number, "sure") for number in range(3)]
    with pytest.raises(ZeroDivisionError):
        await sure.run(lambda: 1 // 0)


async def test_what_has_begun_is_waited_for_unless_it_may_be_left(no_threads: Callable[[], None]) -> None:
    sure, go = SureThread("sure", 1), threading.Event()
    no_threads()
    with trio.move_on_after(0.01):
        await sure.run(go.wait, 60.0, abandon_on_cancel=True)
    threading.Timer(0.05, go.set).start()
    with trio.move_on_after(0.01) as scope:
        assert await sure.run(go.wait, 60.0)
    assert not scope.cancelled_caught


async def test_others_wait_a_second_for_one_and_are_eagain_then(
    no_threads: Callable[[], None], monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    started, run_sync = trio.current_time(), trio.to_thread.run_sync
    no_threads()
    with pytest.raises(TtmError) as refused:
        await Lane("test", 1).run(int, 7)
    assert refused.value.errno == errno.EAGAIN
    assert 1 <= trio.current_time() - started < 1.1
    async with trio.open_nursery() as nursery:

        async def given_again() -> None:
            await trio.sleep(0.5)
            monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)

        nursery.start_soon(given_again)
        assert await Lane("test", 1).run(int, 7) == 7
