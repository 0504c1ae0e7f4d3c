"""Tickets and back-offs: who is told EBUSY, who dies, who goes first then."""

import errno

import trio
import trio.testing

from tests.core.harness import fails
from ttmfs.sync.exec import Exec
from ttmfs.sync.resv import Reservation
from ttmfs.sync.ww_mutex import AcquireContext


async def test_no_wait_with_a_ticket_is_always_ebusy() -> None:
    resv = Reservation()
    with fails(errno.EBUSY):
        await resv.reserve(no_wait=True, ticket=AcquireContext())


async def test_only_the_younger_dies_and_then_takes_the_contended_one_first() -> None:
    a, b = Reservation(), Reservation()
    order: list[str] = []
    both = trio.Event()

    async def older() -> None:
        async with Exec[Reservation]() as execution:
            async for attempt in execution.until_all_locked():
                with attempt:
                    await execution.lock(a)
                    both.set()
                    await trio.testing.wait_all_tasks_blocked()
                    await execution.lock(b)
            assert execution.restarts == 0
            order.append("older")

    async def younger() -> None:
        await both.wait()
        async with Exec[Reservation]() as execution:
            async for attempt in execution.until_all_locked():
                with attempt:
                    await execution.lock(b)
                    await execution.lock(a)
            assert execution.restarts == 1
            assert execution.objects[0] is a
            order.append("younger")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(older)
            nursery.start_soon(younger)
    assert order == ["older", "younger"]
