"""Bell: no ring is lost, many are heard as one, and a ring that was waited for in vain is kept."""

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ttmfs.sync.bell import Bell


async def test_rings_before_and_while_the_listener_works_are_heard_once_each_time(autojump_clock: MockClock) -> None:
    bell = Bell()
    heard = 0

    async def listen() -> None:
        nonlocal heard
        while True:
            await bell.heard()
            heard += 1
            await trio.sleep(1)

    bell.ring()
    bell.ring()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await trio.sleep(0.5)
        assert heard == 1
        bell.ring()
        bell.ring()
        await trio.sleep(1)
        assert heard == 2
        await trio.sleep(10)
        assert heard == 2
        bell.ring()
        await wait_all_tasks_blocked()
        assert heard == 3
        nursery.cancel_scope.cancel()


async def test_a_ring_is_kept_from_one_whose_wait_ended(autojump_clock: MockClock) -> None:
    bell = Bell()
    with trio.move_on_after(1):
        await bell.heard()
    bell.ring()
    with trio.CancelScope() as scope:
        scope.cancel()
        await bell.heard()
    assert scope.cancelled_caught
    with trio.fail_after(1):
        await bell.heard()


async def test_what_is_hushed_is_not_heard(autojump_clock: MockClock) -> None:
    bell = Bell()
    bell.ring()
    bell.hush()
    with trio.move_on_after(1) as scope:
        await bell.heard()
    assert scope.cancelled_caught
