"""Offload: where the work runs, how many at once, what cancelling does, and that another offloader can take over."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from tests.sync.inline import Inline
from ttmfs.sync import offload
from ttmfs.sync.offload import Lane, Threads

HERE = threading.get_ident


def at_once(_lane: str, _when: str) -> int:
    return 0


async def test_work_runs_in_another_thread_with_its_arguments() -> None:
    total, thread = await Lane("test", 1).run(lambda a, b: (a + b, HERE()), 2, 3)
    assert total == 5
    assert thread != HERE()


@pytest.mark.parametrize("inline", [False, True])
async def test_what_the_work_raises_is_raised(inline: bool) -> None:
    if inline:
        offload.use(Inline(at_once))
    with pytest.raises(ZeroDivisionError):
        await Lane("test", 1).run(lambda: 1 // 0)


async def test_a_lane_has_as_many_threads_as_it_says() -> None:
    lane = Lane("test", 2)
    go, begun = threading.Event(), threading.Semaphore(0)

    def work() -> None:
        begun.release()
        go.wait(30)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(lane.run, work)
        await trio.testing.wait_all_tasks_blocked()
        await trio.to_thread.run_sync(lambda: [begun.acquire(timeout=30) for _ in range(2)])
        assert lane.limiter.statistics().tasks_waiting == 1
        assert not begun.acquire(blocking=False)
        go.set()


@pytest.mark.parametrize("inline", [False, True])
async def test_work_that_has_not_begun_is_never_called_for_a_caller_that_is_cancelled(inline: bool) -> None:
    if inline:
        offload.use(Inline(lambda _lane, when: int(when == "before")))
    called: list[int] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await Lane("test", 1).run(called.append, 1)
    assert scope.cancelled_caught
    assert called == []


async def test_work_that_has_begun_is_waited_for() -> None:
    """Inline, cancelled between its work and the word that it is done: the caller gets the result."""
    offload.use(Inline(lambda _lane, when: 3 * int(when == "after")))
    with trio.CancelScope() as scope:

        def work() -> int:
            scope.cancel()
            return 7

        assert await Lane("test", 1).run(work) == 7
    assert not scope.cancelled_caught


def test_another_offloader_serves_one_run_and_no_other() -> None:
    async def where() -> bool:
        return await Lane("test", 1).run(HERE) == HERE()

    async def inline() -> bool:
        offload.use(Inline(at_once))
        return await where()

    run: Callable[..., Any] = trio.run
    assert run(inline) is True
    assert run(where) is False


async def test_the_schedule_says_who_runs_in_between() -> None:
    """The same two calls, in both orders."""
    for order in (("a", "b"), ("b", "a")):
        done: list[str] = []

        def turns(lane: str, when: str, first: str = order[0]) -> int:
            return 5 * int(lane != first and when == "before")

        inline = Inline(turns)
        offload.use(inline)
        async with trio.open_nursery() as nursery:
            for name in "ab":
                nursery.start_soon(Lane(name, 1).run, done.append, name)
        assert tuple(done) == order
    offload.use(Threads())
