"""Breather: pieces of work pause every millisecond, and one of those that paused goes on in each turn of the loop."""

from collections.abc import Iterator

import pytest
import trio

from tests.turns import Turns, ticking_clock
from ttmfs.sync.breather import Breather


@pytest.fixture
def ticking() -> Iterator[None]:
    with ticking_clock(300):
        yield


async def test_one_piece_of_work_lets_others_run_every_few_steps(ticking: None) -> None:
    with Turns() as turns:
        breather = Breather()
        for _ in range(1000):
            turns.note("step")
            await breather.step()
    assert turns.most("step") <= 4


async def test_sixty_of_them_go_on_one_after_the_other(ticking: None) -> None:
    done: list[int] = []

    async def work(number: int) -> None:
        breather = Breather(queue=True)
        for _ in range(20):
            await breather.step()
            turns.note("step")
            done.append(number)

    with Turns() as turns:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, -1)
            for _ in range(5):
                await trio.lowlevel.checkpoint()  # one is at work already
            for number in range(60):
                nursery.start_soon(work, number)
    assert turns.most("step") <= 4, "work of several in one turn"
    assert len(done) == 61 * 20
    first = {number: done.index(number) for number in range(60)}
    assert max(first.values()) < len(done) // 2, "nobody waits until the others are done"


async def test_who_is_cancelled_while_it_pauses_holds_up_nobody(ticking: None) -> None:
    finished = []

    async def work(scope: trio.CancelScope) -> None:
        with scope:
            breather = Breather()
            for _ in range(100):
                await breather.step()
            finished.append(1)

    scopes = [trio.CancelScope() for _ in range(10)]
    async with trio.open_nursery() as nursery:
        for scope in scopes:
            nursery.start_soon(work, scope)
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        for scope in scopes[::2]:
            scope.cancel()
    assert len(finished) == 5


async def test_a_pause_alone_takes_two_turns_at_most(ticking: None) -> None:
    with Turns() as turns:
        breather = Breather()
        for _ in range(300):
            await breather.step()
    assert turns.count <= 300 + 10
